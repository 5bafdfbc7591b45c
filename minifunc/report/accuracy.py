"""The table that train.py ends with: accuracy by task and number of shots."""

import math
from collections.abc import Sequence
from typing import Any

from minifunc.support.checks import met_under
from minifunc.support.evaluation import Language, Table
from minifunc.support.tables import words


def accuracy_table(
    table: Table, language: Language, diet: Any, shots: Sequence[int], n_prompts: int
) -> list[str]:
    """Lines of accuracy by task and number of shots; what the diet never shows is marked.
    table: from task to k to shots; n_prompts: behind each figure of addition."""
    about = "(other tasks: about as many for all their k together)"
    lines = [
        f"accuracy on {n_prompts} prompts {about};",
        "the asked answer is none of those shown",
        f"{'task':24}{'shots':>6}" + "".join(f"{number:>6}" for number in shots),
    ]
    for name, how, ks in _rows(table):
        task = language.TASKS.get(name, language.TASKS["base_addition"])
        how = f"{ks[0]}..{ks[-1]}" if task.wrapper == "base" else how
        line = f"{words(name)} {how}".ljust(30)
        for number in shots:
            shares = [table[name][k].get(str(number), math.nan) for k in ks]
            line += f"{sum(shares) / len(ks):6.3f}"
        shown = task.symbol in met_under(diet, "plain" if ks == ["0"] else task.wrapper)
        shown |= name == "addition" and int(ks[0]) in diet.shifted_addition
        left_out = [k for k in ks if k != "0" and int(k) not in (*diet.shifts, *diet.bases)]
        if not shown:
            line += "   never trained on"
        elif left_out:
            amounts = ", ".join(f"{int(k):+d}" for k in left_out)
            line += f"   but never by {amounts}"
        lines.append(line)
    return lines


def _rows(table: Table) -> list[tuple[str, str, list[str]]]:
    """(task, how it is asked, its k) of each row; addition has one for each k."""
    wrapped = {name: [k for k in by_k if k != "0"] for name, by_k in table.items()}
    rows = [(name, "plain", ["0"]) for name in table if "0" in table[name]]
    rows[1:1] = [("addition", f"off by {int(k):+d}", [k]) for k in wrapped.pop("addition")]
    return rows + [(name, "shifted", ks) for name, ks in wrapped.items()]
