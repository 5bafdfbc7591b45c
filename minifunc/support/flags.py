"""Command-line flags made from the fields of a dataclass, so that help and defaults cannot drift from the code."""

import argparse
from dataclasses import fields, replace
from typing import Any, TypeVar

from minifunc.support.runs import UserError

Config = TypeVar("Config")


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line each."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(f"{message} (see {self.prog} --help)")


def add_flags(parser: argparse.ArgumentParser, title: str, default: Any) -> None:
    """One flag per field of the dataclass instance `default`; a flag that is not given stays None."""
    group = parser.add_argument_group(title)
    for field in fields(default):
        kind = {"int": int, "float": float, "str": str}.get(
            getattr(field.type, "__name__", str(field.type))
        )
        if kind is not None:
            group.add_argument(
                f"--{field.name.replace('_', '-')}",
                type=kind,
                metavar=field.name.split("_")[-1].upper(),
                help=f"default: {getattr(default, field.name)}",
            )


def from_flags(arguments: argparse.Namespace, default: Config) -> Config:
    """`default` with the flags that were given; a value the dataclass refuses is a UserError."""
    given = {field.name: getattr(arguments, field.name, None) for field in fields(default)}  # type: ignore[arg-type]
    for name, value in given.items():
        if isinstance(value, list):  # what argparse makes of `--strong=--`
            raise UserError(f"--{name.replace('_', '-')} needs one value")
    try:
        return replace(
            default, **{name: value for name, value in given.items() if value is not None}
        )  # type: ignore[type-var]
    except ValueError as error:
        raise UserError(str(error)) from None
