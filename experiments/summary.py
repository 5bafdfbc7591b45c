"""What the rows of several runs say together: groups of rows, means with intervals, text tables."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Rows = list[dict[str, Any]]
Values = Sequence[float | None]  # one for each run; None: a run that diverged, or has no circuit

# Student's t of a two-sided 95 % interval, by number of values
N_VALUES = (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 20, 30)
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.201, 2.145, 2.093, 2.045)


def mean_ci(values: Values) -> tuple[float, float]:
    """Mean, and half of the 95 % interval (Student's t).

    None is left out. NaN where nothing is left, and for the interval of a single value.
    """
    known = [value for value in values if value is not None]
    n = len(known)
    if n == 0:
        return math.nan, math.nan
    mean = sum(known) / n
    if n == 1:
        return mean, math.nan
    # With the t of the next smaller number of values an interval is never too narrow.
    t = max((n_values, t) for n_values, t in zip(N_VALUES, T_975) if n_values <= n)[1]
    variance = sum((value - mean) ** 2 for value in known) / (n - 1)
    return mean, t * math.sqrt(variance / n)


def in_words(values: Values, digits: int = 2) -> str:
    """`0.98 ± 0.02`; a dash where there is nothing."""
    mean, half = mean_ci(values)
    if math.isnan(mean):
        return "–"
    spread = "" if math.isnan(half) else f" ± {half:.{digits}f}"
    return f"{mean:.{digits}f}{spread}"


def by(rows: Rows, key: Callable[[dict[str, Any]], str]) -> Iterator[tuple[str, Rows]]:
    """Groups rows by a key, in the order in which the keys are first met."""
    for name in dict.fromkeys(map(key, rows)):
        yield name, [row for row in rows if key(row) == name]


def column(rows: Rows, key: str) -> list[float | None]:
    """A number of each run; how many, where it is a list of heads.

    A run that diverged does no task: its accuracy is 0.
    """
    values = [0.0 if row["diverged"] and key.endswith("_8") else row[key] for row in rows]
    return [len(value) if isinstance(value, list) else value for value in values]


def solved(rows: Rows) -> Rows:
    """The runs that do off-by-one addition: at least half of the prompts at 8 shots."""
    return [row for row in rows if not row["diverged"] and row["off_by_one_8"] >= 0.5]


def aligned(cells: Sequence[object], widths: Sequence[int]) -> str:
    """One line of a table; a column of negative width is aligned to the left."""
    line = ""
    for cell, width in zip(cells, widths, strict=True):
        line += f"{cell:<{-width}}" if width < 0 else f"{cell:>{width}}"
    return line
