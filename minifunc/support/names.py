"""Names of nodes: "embedding", "3.1" (a head: its layer and its index), "mlp2"."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Head = tuple[int, int]
Heads = Sequence[str]
Groups = Mapping[str, Heads]
Found = dict[str, Any]  # a part of circuit.json


def parse(head: str) -> Head:
    """The layer and the index of a head by name. Raises ValueError for what is none.

    >>> parse("3.14")
    (3, 14)
    """
    if not re.fullmatch(r"\d+\.\d+", head):
        raise ValueError(f"no head {head!r:.60}: heads are named like '3.1'")
    layer, index = head.split(".")
    return int(layer), int(index)


def heads_of(names: Iterable[str]) -> list[str]:
    """The heads among some nodes, in the order of the model.

    >>> heads_of(["mlp0", "10.1", "2.11", "2.3", "embedding"])
    ['2.3', '2.11', '10.1']
    """
    return sorted({name for name in names if "." in name}, key=parse)


def mlps_of(names: Iterable[str]) -> list[str]:
    """The MLPs among some nodes, in the order of the model."""
    mlps = {name for name in names if name.startswith("mlp")}
    return sorted(mlps, key=lambda name: int(name[3:]))
