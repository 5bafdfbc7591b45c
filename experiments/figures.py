"""Draws the figures of docs/figures/ from results/*.json (`make figures`).

All are of many runs: what there is to see of one run is in its report. Needs matplotlib, an
optional extra.
"""

import sys
from pathlib import Path
from typing import Any

from experiments.emergence import EVENTS, by_seed
from experiments.summary import Rows, Values, by, column, mean_ci
from minifunc.support.errors import UserError, command
from minifunc.support.files import load_json, make_folder, write_file
from minifunc.support.flags import Parser
from minifunc.support.runs import RESULTS, ROOT

try:
    import matplotlib
    from matplotlib import pyplot as plt
except ImportError:
    needed = "the figures need matplotlib: pip install matplotlib (make figures does)"
    print("error:", needed, file=sys.stderr)
    sys.exit(2)

matplotlib.use("agg")  # for files alone
matplotlib.rcParams |= {"axes.spines.top": False, "axes.spines.right": False}
BLUE, GREY = "#3465a4", "#888888"


def draw_diets(rows: Rows) -> Any:
    """Accuracy by diet; a star where off-by-one addition was trained on."""
    return accuracies(by(rows, lambda row: row["diet"] + " *" * (1 in row["shifts_of_plus_shown"])))


def draw_universality(rows: Rows) -> Any:
    """Accuracy by model."""
    return accuracies(by(rows, lambda row: row["config"]["name"]))


def accuracies(groups: dict[str, Rows]) -> Any:
    """Plain and off-by-one addition in each group of runs."""
    figure, axes = plt.subplots(figsize=(8, 1.5 + len(groups) / 3), layout="constrained")
    places = range(len(groups))
    for key, label, colour, shift in (
        ("plain_8", "plain addition", GREY, -0.15),
        ("off_by_one_8", "off by one", BLUE, 0.15),
    ):
        axes.plot([], [], "o", color=colour, label=label)
        for place, rows in zip(places, groups.values()):
            draw_runs(axes, place + shift, column(rows, key), colour)
    axes.set(yticks=places, yticklabels=list(groups), xlim=(0, 1.02))
    axes.set(ylim=(len(groups) - 0.5, -0.5), xlabel="accuracy at 8 shots")
    figure.legend(loc="outside upper right", ncols=2)
    return figure


def draw_runs(axes: Any, place: float, values: Values, colour: str) -> None:
    """A dot for each run, and a line for the 95 % interval of their mean."""
    axes.plot(values, [place] * len(values), "o", color=colour, markersize=3, alpha=0.6)
    mean, half = mean_ci(values)
    axes.errorbar(mean, place, xerr=half, fmt="|", color=colour, elinewidth=0.8, capsize=2)


def draw_emergence(rows: Rows) -> Any:
    """Curves against steps, one line for each seed."""
    panels = {
        "− loss": ["loss falls"],
        "accuracy at 8 shots": [
            "plain addition",
            "shifted subtraction",
            "off-by-one addition (never shown)",
            "copying what is repeated",
        ],
        "attention score": [name for name in EVENTS if "score" in name],
        "direct effect on the logits": ["effect of the strongest FI head"],
    }
    figure, axes = plt.subplots(2, 2, figsize=(11, 7), sharex=True, layout="constrained")
    for axis, (title, names) in zip(axes.flat, panels.items()):
        for number, name in enumerate(names):
            axis.plot([], color=f"C{number}", label=name)
            for some in by_seed(rows).values():
                steps, values = [row["step"] for row in some], [EVENTS[name](row) for row in some]
                axis.plot(steps, values, color=f"C{number}", alpha=0.7)
        axis.set(xscale="log", title=title, xlabel="step")
        axis.legend(fontsize=7)
    return figure


DRAW = {"diets": draw_diets, "emergence": draw_emergence, "universality": draw_universality}


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
