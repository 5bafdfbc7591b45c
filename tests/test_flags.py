from dataclasses import dataclass

import pytest

from minifunc.support.errors import UserError
from minifunc.support.flags import Parser, add_flags, from_flags


@dataclass(frozen=True)
class Config:
    some_count: int = 3
    share: float = 0.5
    pair: tuple = ()

    def __post_init__(self):
        if self.share > 1:
            raise ValueError("share must not be above 1")


def read(*argv):
    parser = Parser(prog="x.py")
    add_flags(parser, "group", Config())
    return from_flags(parser.parse_args(argv), Config())


def test_flags_are_made_from_fields_and_what_is_not_given_keeps_its_default():
    assert read() == Config()
    assert read("--some-count", "7") == Config(some_count=7)
    assert read("--share", "0.25", "--some-count", "1") == Config(1, 0.25)


def test_help_states_the_defaults(capsys):
    with pytest.raises(SystemExit):
        read("--help")
    out = capsys.readouterr().out
    assert "--some-count" in out and "default: 3" in out and "--pair" not in out


@pytest.mark.parametrize(
    "argv, says",
    [
        (["--share", "2"], "above 1"),
        (["--share", "x"], "invalid float"),
        (["--nothing"], "unrecognized"),
        (["--some-count", "1.5"], "invalid int"),
        (["--share=--"], "expected one argument"),
    ],
)
def test_what_cannot_be_read_or_is_refused_is_a_user_error(argv, says):
    with pytest.raises(UserError, match=says):
        read(*argv)


@pytest.mark.parametrize("about, shown", [("One.\n\nTwo.", "One."), ("One.", "One."), (None, "")])
def test_the_first_line_of_a_docstring_is_shown_where_there_is_one(about, shown):
    """There is none under `python -OO`."""
    told = Parser("x.py", about).format_help().split("\n\n")[1]
    assert told == shown if shown else told.startswith("options:")


def test_a_flag_is_written_out():
    """`--shot 4` would else be taken for --shots, and write over what eight shots had found."""
    parser = Parser("patch.py")
    parser.add_argument("--shots", type=int)
    assert parser.parse_args(["--shots", "4"]).shots == 4
    with pytest.raises(UserError, match="unrecognized arguments: --shot 4"):
        parser.parse_args(["--shot", "4"])
