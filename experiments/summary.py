"""What the rows of several runs say together: groups of rows, means with intervals."""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

Rows = list[dict[str, Any]]
Values = Sequence[float | None]  # one for each run; None: a run that diverged, or has no circuit

# Student's t of a two-sided 95 % interval, by number of values
T_975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 8: 2.365}
T_975 |= {10: 2.262, 11: 2.228, 12: 2.201}


def mean_ci(values: Values) -> tuple[float, float]:
    """Mean, and half its 95 % interval (Student's t), without None; NaN where there is none."""
    known = [value for value in values if value is not None]
    n = len(known)
    mean = sum(known) / n if known else math.nan
    if n < 2:
        return mean, math.nan
    # With the t of the next smaller number of values an interval is never too narrow.
    t = T_975[max(n_values for n_values in T_975 if n_values <= n)]
    return mean, t * statistics.stdev(known) / math.sqrt(n)


def in_words(values: Values, digits: int = 2) -> str:
    """`0.98 ± 0.02`; a dash where there is nothing."""
    mean, half = mean_ci(values)
    if math.isnan(mean):
        return "–"
    spread = "" if math.isnan(half) else f" ± {half:.{digits}f}"
    return f"{mean:.{digits}f}{spread}"


def by(rows: Rows, key: Callable[[dict[str, Any]], Any]) -> dict[Any, Rows]:
    """The rows grouped by a key, in the order in which the keys are first met."""
    groups: dict[Any, Rows] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def column(rows: Rows, key: str) -> list[float | None]:
    """A number of each run, or how many heads; a diverged run does no task: its accuracy is 0."""
    values = [0.0 if row["diverged"] and key.endswith("_8") else row[key] for row in rows]
    return [len(value) if isinstance(value, list) else value for value in values]


def means(rows: Rows, *keys: str, digits: int = 2) -> list[str]:
    """Mean and interval of each of these columns."""
    return [in_words(column(rows, key), digits) for key in keys]


def solved(rows: Rows) -> Rows:
    """The runs that do off-by-one addition: at least half of the prompts at 8 shots."""
    return [row for row in rows if not row["diverged"] and row["off_by_one_8"] >= 0.5]
