"""Draws the figures of docs/figures/ from results/*.json alone (`make figures`).

PNG and SVG. Needs matplotlib, an optional extra.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments import diets, emergence
from experiments.runs import Row, make_folder
from experiments.summary import Rows, Values, by, column, mean_ci, solved
from minifunc.support.errors import UserError, run_main
from minifunc.support.files import load_json
from minifunc.support.flags import Parser

BLUE, RED, GREY = "#3465a4", "#c0392b", "#888888"
# Accuracies at 8 shots: (key in a row, label, colour)
PLAIN = ("plain_8", "plain addition", GREY)
OFF_BY_ONE = ("off_by_one_8", "off by one", BLUE)

# ---------------------------------------------------------------- parts of figures


def means_and_errors(groups: Sequence[Values]) -> tuple[list[float], list[float]]:
    """The mean of each group of values, and half its 95 % interval (0 for a single value)."""
    intervals = [mean_ci(values) for values in groups]
    means = [mean for mean, _ in intervals]
    return means, [0.0 if math.isnan(half) else half for _, half in intervals]


def accuracy_bars(
    axes: Any, groups: Sequence[Rows], accuracy: tuple[str, str, str], shift: float = 0.0
) -> None:
    """A horizontal bar for each group of runs: mean, 95 % interval, and every run as a dot."""
    key, label, colour = accuracy
    values = [column(rows, key) for rows in groups]
    means, errors = means_and_errors(values)
    places = [-index + shift for index in range(len(groups))]
    axes.barh(places, means, height=0.36, color=colour, alpha=0.45, label=label)
    line = {"fmt": "none", "ecolor": "black", "elinewidth": 0.8, "capsize": 2}
    axes.errorbar(means, places, xerr=errors, **line)
    for place, some in zip(places, values):
        known = [value for value in some if value is not None]
        axes.plot(known, [place] * len(known), "o", color=colour, markersize=3)


def name_bars(axes: Any, names: Sequence[str]) -> None:
    """Names the bars of `accuracy_bars`, whose lengths are shares."""
    ticks = [-index for index in range(len(names))]
    axes.set(yticks=ticks, yticklabels=names, xlim=(0, 1.02))


# ---------------------------------------------------------------- one function for each figure


def draw_diets(rows: Rows, plt: Any) -> Any:
    """Accuracy by diet, and the law: what the accuracy depends on."""
    grouped = dict(by(rows, lambda row: row["diet"]))
    names = [name for name in diets.EXPERIMENT.kinds if name in grouped]
    figure = plt.figure(figsize=(11, 7.5), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.3, 1))

    axes = left.subplots()
    groups = [grouped[name] for name in names]
    accuracy_bars(axes, groups, PLAIN, 0.2)
    accuracy_bars(axes, groups, OFF_BY_ONE, -0.2)
    was_shown = [1 in rows[0]["shifts_of_plus_shown"] for rows in groups]
    name_bars(axes, [f"{name} *" if shown else name for name, shown in zip(names, was_shown)])
    axes.set(title="diets (dots: runs; lines: 95 %)")
    axes.set_xlabel(
        "accuracy at 8 shots (*: off-by-one addition was trained on, another cell is held out)"
    )
    axes.legend(loc="lower right", fontsize=8)

    panels = right.subplots(len(diets.LAW), 1)
    for axis, (title, (key, wanted)) in zip(panels, diets.LAW.items()):
        points = sorted((grouped[name][0][key], name) for name in wanted if name in grouped)
        xs = [x for x, _ in points]
        groups = [grouped[name] for _, name in points]
        curves = {
            ("off by one", BLUE): [column(rows, "off_by_one_8") for rows in groups],
            ("all k", RED): [diets.mean_of_k(rows) for rows in groups],
        }
        for (label, colour), values in curves.items():
            means, errors = means_and_errors(values)
            style = {"fmt": "o", "color": colour, "capsize": 2, "markersize": 4}
            axis.errorbar(xs, means, yerr=errors, label=label, **style)
        axis.set(xlabel=title, ylabel="unseen cell", ylim=(-0.05, 1.05))
        axis.legend(fontsize=7)
    return figure


def draw_emergence(rows: Rows, plt: Any) -> Any:
    """Curves against steps, one line for each seed."""
    events = emergence.EVENTS
    panels: dict[str, dict[str, Callable[[Row], float | None]]] = {
        "loss": {"loss": lambda row: row["loss"]},
        "accuracy at 8 shots": {
            "plain addition": events["plain addition"],
            "shifted subtraction": events["shifted subtraction"],
            "off by one, never shown": events["off-by-one addition (never shown)"],
            "repeated documents": events["copying what is repeated"],
        },
        "attention score": {name: events[name] for name in events if "score" in name},
        "direct effect on the logits of the final FI heads": {
            "strongest FI head": events["effect of the strongest FI head"]
        },
    }
    whole = [row for row in rows if not row["diverged"]]
    seeds = [some for _, some in by(whole, lambda row: str(row["seed"]))]
    figure, axes = plt.subplots(2, 2, figsize=(11, 7), sharex=True, layout="constrained")
    for axis, (title, curves) in zip(axes.flat, panels.items()):
        for number, (name, value) in enumerate(curves.items()):
            style = {"color": f"C{number}", "alpha": 0.7, "linewidth": 1.2}
            for index, some in enumerate(seeds):
                steps, values = [row["step"] for row in some], [value(row) for row in some]
                axis.plot(steps, values, label=name if index == 0 else None, **style)
        axis.set(xscale="log", title=title, xlabel="step")
        axis.legend(fontsize=7)
    return figure


def draw_universality(rows: Rows, plt: Any) -> Any:
    """Accuracy by model, and how many heads of each group in those that do the task."""
    grouped = dict(by(rows, lambda row: row["config"]["name"]))
    size = (11, 1 + len(grouped) / 3)
    figure, (left, right) = plt.subplots(1, 2, figsize=size, sharey=True, layout="constrained")
    accuracy_bars(left, list(grouped.values()), OFF_BY_ONE)
    name_bars(left, list(grouped))
    left.set(xlabel="off-by-one accuracy at 8 shots (dots: runs; lines: 95 %)")
    for shift, key, label, colour in (
        (0.25, "fi_heads", "FI", RED),
        (0.0, "pt_heads", "PT", BLUE),
        (-0.25, "consolidation_heads", "consolidation", GREY),
    ):
        style = {"color": colour, "markersize": 4, "alpha": 0.6}
        for index, some in enumerate(grouped.values()):
            counts = column(solved(some), key)
            places = [-index + shift] * len(counts)
            right.plot(counts, places, "o", label=label if index == 0 else None, **style)
    right.set(xlabel="heads found, in the runs that do the task")
    right.legend(fontsize=8)
    return figure


def draw_dependability(rows: Rows, plt: Any) -> Any:
    """Accuracy by k, a dot for each seed."""
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    whole = [row for row in rows if not row["diverged"]]
    ks = sorted({"0"}.union(*(row["off_by_k_8"] for row in whole)), key=int)
    for k in ks:
        values = [row["plain_8"] if k == "0" else row["off_by_k_8"][k] for row in whole]
        means, errors = means_and_errors([values])
        colour = GREY if k == "0" else BLUE
        axes.plot([int(k)] * len(values), values, "o", color=colour, markersize=3, alpha=0.6)
        axes.errorbar([int(k) + 0.15], means, yerr=errors, fmt="_", color="black", capsize=2)
    title = f"{len(rows)} seeds, 95 % intervals"
    if len(whole) < len(rows):
        title = f"{len(whole)} of {len(rows)} seeds (the rest diverged)"
    axes.set(xlabel="k (0: plain addition)", ylabel="accuracy at 8 shots")
    axes.set(ylim=(0, 1.03), title=title)
    return figure


def draw_interventions(rows: Rows, plt: Any) -> Any:
    """Accuracy by what was kept from forming."""
    grouped = dict(by(rows, lambda row: row["intervention"]))
    figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
    accuracy_bars(axes, list(grouped.values()), PLAIN, 0.2)
    accuracy_bars(axes, list(grouped.values()), OFF_BY_ONE, -0.2)
    name_bars(axes, [name.replace("_", " ") for name in grouped])
    axes.set(xlabel="accuracy at 8 shots (dots: runs; lines: 95 %)")
    axes.legend(loc="lower left", fontsize=8)
    return figure


FIGURES = {
    "diets": draw_diets,
    "emergence": draw_emergence,
    "universality": draw_universality,
    "dependability": draw_dependability,
    "interventions": draw_interventions,
}


# ---------------------------------------------------------------- files


def pyplot() -> Any:
    """matplotlib.pyplot, set up for files alone. Raises UserError where it is not installed."""
    try:
        import matplotlib

        matplotlib.use("agg")
        import matplotlib.pyplot as plt
    except ImportError:
        raise UserError(
            "the figures need matplotlib: pip install matplotlib (make figures does)"
        ) from None
    spines = {"axes.spines.top": False, "axes.spines.right": False}
    matplotlib.rcParams |= {"svg.hashsalt": "minifunc"} | spines
    return plt


def save(figure: Any, path: Path, plt: Any) -> None:
    """Writes path.png and path.svg, the same bytes for the same figure. Raises UserError."""
    try:
        figure.savefig(f"{path}.png", dpi=150, metadata={"Software": None})
        figure.savefig(f"{path}.svg", metadata={"Date": None})
    except OSError as error:
        raise UserError(f"cannot write to {path.parent}: {error.strerror}") from None
    plt.close(figure)
    print(f"{path}.png, .svg")


def main(argv: list[str] | None = None) -> int:
    return run_main(lambda: work(argv))


def work(argv: list[str] | None) -> int:
    parser = Parser(
        prog="experiments.figures",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--results", default="results", help="where the rows are")
    parser.add_argument("--out", default="docs/figures", help="where the figures go")
    arguments = parser.parse_args(argv)
    plt = pyplot()
    results, out = Path(arguments.results), Path(arguments.out)
    found = [name for name in FIGURES if (results / f"{name}.json").exists()]
    if not found:
        files = ", ".join(f"{name}.json" for name in FIGURES)
        raise UserError(
            f"{results} holds none of {files}: "
            "make diets, emergence, universality, dependability write them"
        )
    make_folder(out)
    for name in found:
        rows = load_json(results / f"{name}.json")
        try:
            figure = FIGURES[name](rows, plt)
        except (KeyError, TypeError, AttributeError) as error:
            fault = f"{type(error).__name__} {error}"
            raise UserError(f"{results} holds rows of another kind: {fault}") from None
        save(figure, out / name, plt)
    return 0


if __name__ == "__main__":
    sys.exit(main())
