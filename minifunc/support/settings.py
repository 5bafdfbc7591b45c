"""Settings are frozen dataclasses: their numbers checked, and read back from JSON."""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from minifunc.support.runs import UserError, load_json

Config = TypeVar("Config")


def check_numbers(config: Any, least: Mapping[str, int], most: Mapping[str, int]) -> None:
    """Raises ValueError for a field of a dataclass that is no number of its type, or not within
    its bounds: 0 and 2^40 where no others are given."""
    for field in fields(config):
        value = getattr(config, field.name)
        low, high = least.get(field.name, 0), most.get(field.name, 2**40)
        is_number = type(value) is field.type or (field.type is float and type(value) is int)
        if not is_number or not low <= value <= high:
            bounds = f"from {low} to {high}"
            raise ValueError(f"{field.name} must be a number {bounds}, not {value!r:.60}")


def as_json(value: Any) -> Any:
    """What plain values are once they are written to a JSON file and read again."""
    return json.loads(json.dumps(value))


def from_json(default: Config, values: Any, place: object) -> Config:
    """`default`, a frozen dataclass, with the fields that a JSON object gives.

    Raises UserError, which names the `place`, for what does not fit.
    """
    known: dict[str, Any] = asdict(default)  # type: ignore[call-overload]
    if not isinstance(values, dict) or not values.keys() <= known.keys():
        raise UserError(f"{place} must hold the fields {', '.join(known)} and no others")
    for name, value in values.items():
        kinds = {float: (float, int), tuple: (list,)}.get(type(known[name]), (type(known[name]),))
        if type(value) not in kinds:
            raise UserError(f"{place}: {name} cannot be {value!r:.60}")
    try:
        changes = {name: _tuples(value) for name, value in values.items()}
        return replace(default, **changes)  # type: ignore[type-var]
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{place}: {str(error).splitlines()[0][:300]}") from None


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def saved_settings(path: Path, defaults: Mapping[str, Any], vocabulary: list[str]) -> list[Any]:
    """The parts of a run's config.json that `defaults` names, as dataclasses of their kinds.

    Raises UserError where such a run cannot go on.
    """
    config = load_json(path)
    if not isinstance(config, dict) or not config.keys() >= {*defaults, "vocabulary"}:
        raise UserError(f"{path} is no config of ours")
    saved = []
    for part, default in defaults.items():
        saved.append(from_json(default, config[part], f"{path}: `{part}`"))
        if as_json(asdict(saved[-1])) != config[part]:
            raise UserError(f"{path}: `{part}` lacks a field of this version; it cannot go on")
    if config["vocabulary"] != vocabulary:
        raise UserError(
            f"{path}: the run has another vocabulary than this version; it cannot go on"
        )
    return saved


def refuse_contradictions(arguments: Any, out: Path, *settings: Any) -> None:
    """Raises UserError for a flag that was given and is not what the run in `out` has."""
    for config in settings:
        for name, value in asdict(config).items():
            given = getattr(arguments, name, None)
            if given is not None and given != value:
                advice = f"give another --out, or leave --{name.replace('_', '-')} out"
                raise UserError(f"the run in {out} has {name} {value}, not {given}: {advice}")
