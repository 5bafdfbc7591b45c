"""Command-line flags, made from a dataclass's fields: help and defaults cannot drift."""

import argparse
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from minifunc.support.checks import MOST_SEED
from minifunc.support.errors import UserError

Config = TypeVar("Config")
MOST_PROMPTS = 100_000  # of a study


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line each (UserError).
    about: a docstring, of which the first line is shown; under `python -OO` there are none."""

    def __init__(self, prog: str, about: str | None = None, **more: Any) -> None:
        about = (about or "").partition("\n")[0]
        super().__init__(prog, description=about, allow_abbrev=False, **more)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        found = super().parse_args(args, namespace)
        for action in self._actions:
            value = getattr(found, action.dest, None)
            if action.nargs is None and isinstance(value, list):  # what it makes of `--strong=--`
                self.error(f"argument {action.option_strings[0]}: expected one argument")
        return found

    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(f"{message} (see {self.prog} --help)")


def add_flags(parser: argparse.ArgumentParser, title: str, default: Any) -> None:
    """One flag per field of the dataclass instance `default`; a flag not given stays None."""
    group = parser.add_argument_group(title)
    for field in fields(default):
        kind: Any = field.type
        if kind in (int, float, str):  # a field of another type gets no flag
            flag, unit = f"--{field.name.replace('_', '-')}", field.name.split("_")[-1].upper()
            told = f"default: {getattr(default, field.name)}"
            group.add_argument(flag, type=kind, metavar=unit, help=told)


def from_flags(arguments: argparse.Namespace, default: Config) -> Config:
    """`default` with the flags that were given; a value the dataclass refuses is a UserError."""
    names = {field.name for field in fields(default)}  # type: ignore[arg-type]
    flags = vars(arguments).items()
    try:
        given = {name: value for name, value in flags if name in names and value is not None}
        return replace(default, **given)  # type: ignore[type-var]
    except ValueError as error:
        raise UserError(str(error)) from None


def check_flag(arguments: argparse.Namespace, name: str, least: int, most: int) -> None:
    """Raises UserError for a number out of bounds."""
    if not least <= getattr(arguments, name) <= most:
        raise UserError(f"--{name.replace('_', '-')} must be from {least} to {most}")


def pick_device(name: str, float64: bool = False) -> torch.device:
    """auto (cuda, then mps, then cpu), or the device named. Raises UserError if it is not there.
    float64: one that has these numbers, which mps has not."""
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available() and not float64
    found = ["cuda"] * cuda + ["mps"] * mps + ["cpu"]
    known = [*found, *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if name not in ("auto", *known):
        raise UserError(f"device {name!r} is not available here; there is: {', '.join(known)}")
    return torch.device(found[0] if name == "auto" else name)


def add_study_flags(parser: argparse.ArgumentParser, study: Any, criteria: Any) -> None:
    """Where it is computed and written; a flag for each field of a study and of its criteria."""
    add = parser.add_argument
    add("--device", default="auto", help="auto, cpu, cuda (default: auto)")
    to = "where the findings go (default: circuit.json in the run's folder)"
    add("--json", type=Path, metavar="PATH", help=to)
    add("--full", action="store_true", help="print more tables")
    add_flags(parser, "what is traced", study)
    frozen = "direct paths do not pass through MLPs (default: they do, as in the paper)"
    add("--freeze-mlps", action="store_true", help=frozen)
    memory = "memory that a sweep may use (default: 2; on CUDA a quarter of what is free)"
    add("--max-memory", type=float, metavar="GIB", help=memory)
    add_flags(parser, "criteria of the groups", criteria)


def check_study(study: Any, n_tokens: int, n_ctx: int) -> None:
    """Raises UserError for a study that the model cannot take, or that holds nothing to trace.
    n_tokens: of a prompt. n_ctx: of the model."""
    if n_tokens > n_ctx:
        said = f"--shots {study.shots} makes prompts of {n_tokens} tokens"
        raise UserError(f"{said}; the model's context holds {n_ctx}")
    if study.k == 0:
        said = "--k 0 leaves nothing to trace"
        raise UserError(f"{said}: base and contrast prompts would be the same")
    if not 0 <= study.seed <= MOST_SEED or study.prompts > MOST_PROMPTS:
        raise UserError(f"--seed must be from 0 to 2^32 - 1, and --prompts at most {MOST_PROMPTS}")
