"""Draws the figures of docs/figures/, as PNG and SVG (`make figures`).

Those of many runs from results/*.json alone, those of one run from its circuit.json
(run_figures.py). Needs matplotlib, an optional extra.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments import diets, emergence, run_figures
from experiments.summary import Rows, Values, by, column, mean_ci, solved
from minifunc.support.errors import UserError, run_main
from minifunc.support.files import load_json, make_folder
from minifunc.support.flags import Parser

BLUE, RED, GREY = "#3465a4", "#c0392b", "#888888"
# Accuracies at 8 shots: (key in a row, label, colour)
PLAIN = ("plain_8", "plain addition", GREY)
OFF_BY_ONE = ("off_by_one_8", "off by one", BLUE)
# What the accuracy of a diet may depend on: (its key in a row, diets that differ in it)
PLUS_DIETS = ("plus_plain", "plus_relabel", "plus_reflect", "no_copy", "no_relabel", "relabelled")
LAW = {
    "wrappers that `+` meets": ("plus_wrappers", (*PLUS_DIETS, "strict")),
    "functions that are seen shifted": ("shifted_functions", ("shifted_1", "shifted_3", "strict")),
    "share of `+` among all examples": ("plus_share", ("addition_low", "strict", "addition_high")),
}
# Heads found: (shift of the dots, key in a row, label, colour)
FOUND = (
    (0.25, "fi_heads", "FI", RED),
    (0.0, "pt_heads", "PT", BLUE),
    (-0.25, "consolidation_heads", "consolidation", GREY),
)

# ---------------------------------------------------------------- parts of figures


def means_and_errors(groups: Sequence[Values]) -> tuple[list[float], list[float]]:
    """The mean of each group of values, and half its 95 % interval (0 for a single value)."""
    intervals = [mean_ci(values) for values in groups]
    means = [mean for mean, _ in intervals]
    return means, [0.0 if math.isnan(half) else half for _, half in intervals]


def accuracy_bars(
    axes: Any, groups: dict[str, Rows], accuracy: tuple[str, str, str], shift: float = 0.0
) -> None:
    """A horizontal bar for each group of runs: mean, 95 % interval, and every run as a dot."""
    key, label, colour = accuracy
    values = [column(rows, key) for rows in groups.values()]
    means, errors = means_and_errors(values)
    places = [-index + shift for index in range(len(groups))]
    axes.barh(places, means, height=0.36, color=colour, alpha=0.45, label=label)
    line = {"fmt": "none", "ecolor": "black", "elinewidth": 0.8, "capsize": 2}
    axes.errorbar(means, places, xerr=errors, **line)
    for place, some in zip(places, values):
        axes.plot(some, [place] * len(some), "o", color=colour, markersize=3)
    ticks = [-index for index in range(len(groups))]
    axes.set(yticks=ticks, yticklabels=list(groups), xlim=(0, 1.02))


# ---------------------------------------------------------------- one function for each figure


def draw_diets(rows: Rows, plt: Any) -> Any:
    """Accuracy by diet, and the law: what the accuracy depends on."""
    grouped = by(rows, lambda row: row["diet"])
    figure = plt.figure(figsize=(11, 7.5), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.3, 1))

    axes = left.subplots()
    named = {}
    for name, some in grouped.items():
        was_shown = 1 in some[0]["shifts_of_plus_shown"]
        named[f"{name} *" if was_shown else name] = some
    accuracy_bars(axes, named, PLAIN, 0.2)
    accuracy_bars(axes, named, OFF_BY_ONE, -0.2)
    axes.set(title="diets (dots: runs; lines: 95 %)")
    axes.set_xlabel(
        "accuracy at 8 shots (*: off-by-one addition was trained on, another cell is held out)"
    )
    axes.legend(loc="lower right", fontsize=8)

    panels = right.subplots(len(LAW), 1)
    for axis, (title, (key, wanted)) in zip(panels, LAW.items()):
        points = sorted((grouped[name][0][key], name) for name in wanted if name in grouped)
        xs = [x for x, _ in points]
        groups = [grouped[name] for _, name in points]
        curves = {
            ("off by one", BLUE): [column(some, "off_by_one_8") for some in groups],
            ("all k", RED): [diets.mean_of_k(some) for some in groups],
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
    panels: dict[str, dict[str, emergence.Curve]] = {
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
    figure, axes = plt.subplots(2, 2, figsize=(11, 7), sharex=True, layout="constrained")
    for axis, (title, curves) in zip(axes.flat, panels.items()):
        for number, (name, value) in enumerate(curves.items()):
            style = {"color": f"C{number}", "alpha": 0.7, "linewidth": 1.2}
            for index, some in enumerate(emergence.by_seed(rows).values()):
                steps, values = [row["step"] for row in some], [value(row) for row in some]
                axis.plot(steps, values, label=name if index == 0 else None, **style)
        axis.set(xscale="log", title=title, xlabel="step")
        axis.legend(fontsize=7)
    return figure


def draw_universality(rows: Rows, plt: Any) -> Any:
    """Accuracy by model, and how many heads of each group in those that do the task."""
    grouped = by(rows, lambda row: row["config"]["name"])
    size = (11, 1 + len(grouped) / 3)
    figure, (left, right) = plt.subplots(1, 2, figsize=size, sharey=True, layout="constrained")
    accuracy_bars(left, grouped, OFF_BY_ONE)
    left.set(xlabel="off-by-one accuracy at 8 shots (dots: runs; lines: 95 %)")
    for shift, key, label, colour in FOUND:
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
    shares = [{"0": row["plain_8"]} | row["off_by_k_8"] for row in whole]
    for k in sorted(shares[0] if shares else (), key=int):
        values = [by_k[k] for by_k in shares]
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
    grouped = by(rows, lambda row: row["intervention"].replace("_", " "))
    figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
    accuracy_bars(axes, grouped, PLAIN, 0.2)
    accuracy_bars(axes, grouped, OFF_BY_ONE, -0.2)
    axes.set(xlabel="accuracy at 8 shots (dots: runs; lines: 95 %)")
    axes.legend(loc="lower left", fontsize=8)
    return figure


FIGURES: dict[str, Callable[[Rows, Any], Any]] = {
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


def save(figure: Any, path: Path) -> None:
    """Writes path.png and path.svg, the same bytes for the same figure. Raises UserError."""
    try:
        figure.savefig(f"{path}.png", dpi=150, metadata={"Software": None})
        figure.savefig(f"{path}.svg", metadata={"Date": None})
    except OSError as error:
        raise UserError(f"cannot write to {path.parent}: {error.strerror}") from None
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
    parser.add_argument("--run", default="out/default", help="folder of a traced run")
    parser.add_argument("--out", default="docs/figures", help="where the figures go")
    arguments = parser.parse_args(argv)
    plt = pyplot()
    circuit, out = Path(arguments.run) / "circuit.json", Path(arguments.out)
    paths = {name: Path(arguments.results) / f"{name}.json" for name in FIGURES}
    paths |= dict.fromkeys(run_figures.FIGURES, circuit)
    found = {name: path for name, path in paths.items() if path.exists()}
    if not found:
        makers = "make patch, diets, emergence, universality and dependability write them"
        raise UserError(f"there is no {circuit}, and no rows are in {arguments.results}: {makers}")
    make_folder(out)
    draw = FIGURES | run_figures.FIGURES
    for name, path in found.items():
        try:
            figure = draw[name](load_json(path), plt)
        except KeyError as error:
            print(f"{name} is not drawn: {path} holds no {error.args[0]}", file=sys.stderr)
            continue
        except (TypeError, AttributeError, ValueError, IndexError) as error:
            fault = f"{type(error).__name__} {error}"
            raise UserError(f"{path} is of another layout: {fault}") from None
        save(figure, out / name)
        plt.close(figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
