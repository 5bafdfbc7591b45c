"""Settings are frozen dataclasses: chosen by flags, or read back from JSON."""

import json
import sys
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import NoneType
from typing import Any

import torch

import minifunc
from minifunc.model import ModelConfig
from minifunc.support.errors import UserError
from minifunc.support.files import load_json
from minifunc.support.flags import Config, Parser, add_flags, check_flag, from_flags

TABLE_PROMPTS = 500  # behind each figure of addition in the closing table

ByName = Mapping[str, Any]


def versions() -> dict[str, str]:
    """What a run is made with."""
    python = sys.version.split()[0]
    return {"minifunc": minifunc.__version__, "torch": torch.__version__, "python": python}


def as_json(value: Any) -> Any:
    """What plain values are once they are written to a JSON file and read again."""
    return json.loads(json.dumps(value))


def from_json(default: Config, values: Any, place: object) -> Config:
    """`default`, a frozen dataclass, with a JSON object's fields. Raises UserError, with place."""
    known: dict[str, Any] = asdict(default)  # type: ignore[call-overload]
    if not isinstance(values, dict) or not values.keys() <= known.keys():
        raise UserError(f"{place} must hold the fields {', '.join(known)} and no others")
    for name, value in values.items():
        kind = type(known[name])
        kinds = {float: (float, int), tuple: (list,), NoneType: (int, NoneType)}
        if type(value) not in kinds.get(kind, (kind,)):
            raise UserError(f"{place}: {name} cannot be {value!r:.60}")
    try:
        changes = {name: _tuples(value) for name, value in values.items()}
        return replace(default, **changes)  # type: ignore[type-var]
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{place}: {str(error).splitlines()[0][:300]}") from None


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def named_diet(text: str, diets: Mapping[str, Config]) -> Config:
    """One of `diets`, or that of a JSON file; the fields left out are those of `strict`."""
    path = Path(text)
    if path.suffix == ".json" and path.is_file():
        diet = from_json(diets["strict"], load_json(path), path)
        return replace(diet, name=path.stem)  # type: ignore[type-var]
    if text not in diets:
        raise UserError(f"unknown diet {text!r}; the diets are {', '.join(diets)}")
    return diets[text]


def described(model: Any, train: Any, diet: Any, vocabulary: list[str]) -> dict[str, Any]:
    """What goes into config.json. model, train, diet: the settings, frozen dataclasses."""
    chosen = {"model": shape_of(model), "train": asdict(train), "diet": asdict(diet)}
    return as_json(chosen | {"vocabulary": vocabulary, "versions": versions()})


def shape_of(model: Any) -> dict[str, Any]:
    """A `ModelConfig` by field, without the parts that the model lacks: the default's config.json
    is what it was before there were such parts."""
    return {name: x for name, x in asdict(model).items() if x not in (None, False, ())}


def added_parts(model: ModelConfig) -> list[str]:
    """What a model has that no model of this repository's has, by name."""
    fields = [name for name in shape_of(model) if name not in shape_of(ModelConfig())]
    return [*fields, "silu"] if model.act_fn == "silu" else fields


def run_arguments(
    argv: list[str] | None, about: str | None, defaults: ByName, diets: ByName
) -> Namespace:
    """The flags of train.py: where the run is kept and computed, its diet, and one flag for each
    field of defaults["train"] and defaults["model"]. Raises UserError."""
    parser = Parser("train.py", about)
    add = parser.add_argument
    add("--out", default="out/default", help="folder of the run (default: %(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda, mps (default: %(default)s)")
    names = f"{', '.join(diets)}, or a JSON file of a diet's fields"
    add("--diet", help=f"{names} (default: {defaults['diet'].name})")
    add("--resume", action="store_true", help="go on with the run in --out")
    behind = "prompts behind each figure of the last table (default: %(default)s)"
    add("--table-prompts", type=int, default=TABLE_PROMPTS, help=behind)
    add_flags(parser, "training", defaults["train"])
    add_flags(parser, "model", defaults["model"])
    arguments: Namespace = parser.parse_args(argv)
    check_flag(arguments, "table_prompts", 8, 100_000)
    return arguments


def chosen_settings(
    arguments: Namespace, defaults: ByName, diets: ByName, vocabulary: list[str]
) -> tuple[Any, Any, Any]:
    """What to train, (model, train, diet): as the flags say, or else `defaults`; with --resume as
    the run's config.json says. Raises UserError for flags that contradict it."""
    if not arguments.resume:
        model, train = (from_flags(arguments, defaults[part]) for part in ("model", "train"))
        return model, train, named_diet(arguments.diet or defaults["diet"].name, diets)
    path = Path(arguments.out) / "config.json"
    config = load_json(path)
    if not isinstance(config, dict) or not config.keys() >= {*defaults, "vocabulary"}:
        raise UserError(f"{path} is no config of ours")
    saved = {}
    for part, default in defaults.items():
        saved[part] = from_json(default, config[part], f"{path}: `{part}`")
        read = shape_of(saved[part]) if part == "model" else asdict(saved[part])
        if as_json(read) != config[part]:
            raise UserError(f"{path}: `{part}` lacks a field of this version; it cannot go on")
    if config["vocabulary"] != vocabulary:
        said = "the run has another vocabulary than this version; it cannot go on"
        raise UserError(f"{path}: {said}")
    _refuse_contradictions(arguments, saved, diets)
    return saved["model"], saved["train"], saved["diet"]


def _refuse_contradictions(arguments: Namespace, saved: ByName, diets: ByName) -> None:
    values = {**asdict(saved["model"]), **asdict(saved["train"]), "diet": saved["diet"].name}
    for name, value in values.items():
        given = getattr(arguments, name, None)
        if given in (None, value):
            continue
        if name == "diet" and named_diet(given, diets) == saved["diet"]:
            continue
        advice = f"give another --out, or leave --{name.replace('_', '-')} out"
        raise UserError(f"the run in {arguments.out} has {name} {value}, not {given}: {advice}")


def check_room(arguments: Namespace, model: ModelConfig, needs: ByName, what: str) -> None:
    """Raises UserError for a model of which a field is less than `what` needs."""
    if any(getattr(model, name) < least for name, least in needs.items()):
        place = f"{Path(arguments.out) / 'config.json'}: " if arguments.resume else ""
        told = " and ".join(f"{name} >= {least}" for name, least in needs.items())
        raise UserError(f"{place}the model needs {told} for {what}")
