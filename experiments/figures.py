"""Draws the figures of docs/figures/ from results/*.json (`make figures`).

All are of many runs, in the colours of the report of one. Needs matplotlib, an optional extra.
"""

import re
import sys
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from experiments.summary import Rows, by, column, mean_ci
from experiments.unseen_shifts import KS, place
from minifunc.support.errors import UserError, command
from minifunc.support.files import load_json, make_folder, write_file
from minifunc.support.flags import Parser
from minifunc.support.runs import RESULTS, ROOT

try:
    import matplotlib
    from matplotlib import pyplot as plt
except ImportError:
    print("error: the figures need matplotlib, which make figures gets", file=sys.stderr)
    sys.exit(2)

matplotlib.use("agg")  # for files alone
matplotlib.rc("axes.spines", top=False, right=False)
STYLE = (ROOT / "minifunc/report/style.css").read_text(encoding="utf-8")
COLOURS = dict(re.findall(r"--([a-z-]+): light-dark[(](#\w+)", STYLE))
DIETS = {  # those that the finding is about; the others are in the table
    "addition": "plain sums alone",
    "copied": "… and repeated problems",
    "shifted": "… and other functions shifted",
    "mixed": "… several functions in a document",
    "relabelled": "… and relabelled documents",
    "strict": "… and reflected ones: all of these",
    "plus_plain": "all, but + always plain",
    "plus_relabel": "all, but + plain or relabelled",
    "plus_reflect": "all, but + plain or reflected",
    "shifted_1": "all, but only one function shifted",
    "shifted_3": "all, but only three shifted",
    "nothing_by_one": "the default: nothing shifted by +1",
    "default_plus_plain": "the default, but + always plain",
}


def dots(title: str, groups: dict[str, Rows], series: dict[str, tuple[str, Any]]) -> Any:
    """A dot for each run, and from three on the 95 % interval of their mean, as far as it is a
    share. series: the colour of a kind of dot, and what returns the shares of some runs."""
    figure, axes = plt.subplots(figsize=(8, 1.4 + len(groups) / 3), layout="constrained")
    for number, (label, (colour, shares_of)) in enumerate(series.items(), start=1):
        look = {"color": COLOURS[colour], "alpha": 0.8}
        axes.plot([], [], "o", label=label, **look)
        for row, some in enumerate(groups.values()):
            values, y = shares_of(some), row - 0.5 + number / (len(series) + 1)
            axes.plot(values, [y] * len(values), "o", markersize=4, **look)
            mean, half = mean_ci(values)
            if len(values) > 2:
                axes.plot([max(0.0, mean - half), min(1.0, mean + half)], [y, y], "|-", **look)
    axes.set(xlim=(-0.02, 1.02), ylim=(len(groups) - 0.5, -0.5), xlabel="right at 8 shots")
    axes.set_yticks(range(len(groups)), groups)
    axes.xaxis.set_major_formatter("{x:.0%}")
    figure.suptitle(title)
    figure.legend(loc="outside lower right", ncols=3, frameon=False)
    return figure


def draw_diets(rows: Rows) -> Any:
    title = "Plain sums are not enough: + and other functions must be met under more"
    series = {
        "plain addition": ("other", lambda some: column(some, "plain_8")),
        "off by one, never shown": ("pos", lambda some: column(some, "off_by_one_8")),
    }
    known = [row for row in rows if row["diet"] in DIETS]
    return dots(title, by(known, lambda row: DIETS[row["diet"]]), series)


def draw_unseen_shifts(rows: Rows) -> Any:
    """Addition off by k: means over the k that were shown, or never."""

    def shares_at(where: str, some: Rows) -> list[float]:
        means = []
        for row in some:
            at = [row["accuracy"][str(k)] for k in KS if place(k, row["shifts"]) == where]
            means += [fmean(at)] if at else []
        return means

    known = [row for row in rows if row["task"] == "addition" and row["accuracy"]]
    series = {
        "k was shown": ("other", partial(shares_at, "shown")),
        "never, but between shown ones": ("pos", partial(shares_at, "between")),
        "never, and beyond them": ("neg", partial(shares_at, "beyond")),
    }
    kinds = by(known, lambda row: row["kind"].replace("_", " "))
    title = "A shift between shown ones is mostly answered, though nobody showed it"
    return dots(title, kinds, series)


DRAW = {"diets": draw_diets, "unseen_shifts": draw_unseen_shifts}


@command
def main(argv: list[str] | None = None) -> int:
    parser = Parser("experiments.figures", __doc__)
    add = parser.add_argument
    add("--results", default=RESULTS, help="where the rows are (default: %(default)s)")
    add("--out", default=ROOT / "docs/figures", help="where the figures go (default: %(default)s)")
    arguments = parser.parse_args(argv)
    results, out = Path(arguments.results), Path(arguments.out)
    names = [name for name in DRAW if (results / f"{name}.json").exists()]
    if not names:
        raise UserError(f"no rows are in {results}: make {', '.join(DRAW)} write them")
    make_folder(out)
    for name in names:
        rows, path = results / f"{name}.json", out / f"{name}.png"
        try:
            figure = DRAW[name](load_json(rows))
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{rows} is of another layout: {error!r}") from None
        write_file(path, lambda file, figure=figure: figure.savefig(file, dpi=150))
        plt.close(figure)
        print(path)
    print(f"next: look at them in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
