"""What a terminal is shown: rounded numbers, tables, lines that fit, characters that it has."""

import codecs
import shutil
import textwrap
from collections.abc import Iterable
from typing import Any

SPELLED = {"█": "#", "→": "->", "…": "...", "–": "-", "−": "-", "±": "+-", "²": "^2", "×": "x"}
SPELLER = "minifunc.spelled"


def spelled(error: UnicodeError) -> tuple[str | bytes, int]:
    """The error handler SPELLER of our streams: a character of ours that an encoding lacks is
    spelled in others; one that is not ours, as in a path, becomes an escape."""
    if isinstance(error, UnicodeEncodeError):
        error.end = error.start + 1
        if (sign := error.object[error.start]) in SPELLED:
            return SPELLED[sign], error.end
    return codecs.backslashreplace_errors(error)


codecs.register_error(SPELLER, spelled)


def wrapped(line: str, indent: int = 4) -> str:
    """A line broken at spaces to fit the terminal (or 80 columns), continuations indented."""
    later = " " * (indent + len(line) - len(line.lstrip()))
    lines = textwrap.TextWrapper(shutil.get_terminal_size().columns, subsequent_indent=later)
    lines.break_on_hyphens = lines.break_long_words = False
    return lines.fill(line)


def fitted(lines: Iterable[str]) -> str:
    """Lines, each wrapped, as one text."""
    return "\n".join(map(wrapped, lines))


def rounded(value: Any, digits: int = 4) -> Any:
    """The floats in nested dictionaries and lists, rounded.

    >>> rounded({"r": 0.123456, "heads": ["3.1"], "n": 5, "mean": None})
    {'r': 0.1235, 'heads': ['3.1'], 'n': 5, 'mean': None}
    """
    if isinstance(value, dict):
        return {name: rounded(each, digits) for name, each in value.items()}
    if isinstance(value, list):
        return [rounded(each, digits) for each in value]
    return round(value, digits) if isinstance(value, float) else value


def table(
    columns: Iterable[str], rows: Iterable[Iterable[object]], left: int = 1, digits: int = 3
) -> list[str]:
    """A line of names and a line per row, each column as wide as its widest text.

    The first `left` columns are aligned to the left, the others to the right. A float gets `digits`
    decimals; None is a dash.

    >>> table(["head", "r", "share"], [["3.1", -0.4, 1.0], ["all", "-", None]], digits=2)
    ['head        r   share', '  3.1   -0.40    1.00', '  all       -       –']
    """
    lines = [list(columns)]
    for first, *others in rows:
        lines.append([f"  {first}", *(_text(cell, digits) for cell in others)])
    widths = [max(map(len, column)) for column in zip(*lines)]
    shown = []
    for line in lines:
        cells = [text.ljust(width) for text, width in zip(line[:left], widths)]
        cells += [text.rjust(width) for text, width in zip(line[left:], widths[left:])]
        shown.append("   ".join(cells).rstrip())
    return shown


def words(name: str) -> str:
    """A key of circuit.json for people; heads that are `upstream` of an MLP may be in any layer."""
    return name.replace("_", " ").replace("upstream", "indirect")


def _text(cell: object, digits: int) -> str:
    if cell is None:
        return "–"
    return f"{cell:.{digits}f}" if isinstance(cell, float) else str(cell)
