"""Random groups of heads: what is taken out beside a group, so that its effect means something."""

from collections.abc import Sequence

import torch

from minifunc.ablation import all_heads
from minifunc.model import ModelConfig
from minifunc.support.names import heads_of, parse


def random_group(
    heads: Sequence[str], n_heads: int, generator: torch.Generator, avoid: bool = True
) -> list[str]:
    """As many heads from each layer as `heads` has there, drawn from that layer's other heads.

    All of those, where they are fewer. Without `avoid` the heads themselves may be drawn too.

    >>> random_group(["3.1", "3.2", "3.3", "3.4"], 6, torch.Generator())  # layer 3 has no others
    ['3.0', '3.5']
    """
    places = [parse(head) for head in heads]
    group = []
    for layer in sorted({layer for layer, _ in places}):
        inside = [head for block, head in places if block == layer]
        others = [head for head in range(n_heads) if not (avoid and head in inside)]
        drawn = torch.randperm(len(others), generator=generator)[: len(inside)]
        group += [f"{layer}.{others[index]}" for index in sorted(drawn.tolist())]
    return group


def random_group_anywhere(
    heads: Sequence[str], cfg: ModelConfig, generator: torch.Generator
) -> list[str]:
    """As many heads as `heads` has, drawn from all others of any layer (all, where fewer)."""
    others = [head for head in all_heads(cfg) if head not in heads]
    drawn = torch.randperm(len(others), generator=generator)[: len(heads)]
    return heads_of(others[index] for index in drawn.tolist())
