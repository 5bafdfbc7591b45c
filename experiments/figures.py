"""Draws the figures of docs/figures/, as PNG and SVG (`make figures`).

Those of many runs from results/*.json alone, those of one run from its circuit.json alone, in the
paper's manner and with its sign: r < 0, red, goes back to the base answer; r > 0, blue, goes on to
the contrast answer. Needs matplotlib, an optional extra.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import diets, emergence
from experiments.runs import Row
from experiments.summary import Rows, Values, by, column, mean_ci, solved
from minifunc.support.errors import UserError, command
from minifunc.support.evaluation import wilson
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
matplotlib.rcParams |= {"svg.hashsalt": "minifunc", "figure.constrained_layout.use": True}
matplotlib.rcParams |= {"axes.spines.top": False, "axes.spines.right": False}

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
# Heads found, key in a row: (label, colour)
FOUND = {
    "fi_heads": ("FI", RED),
    "pt_heads": ("PT", BLUE),
    "consolidation_heads": ("consolidation", GREY),
}
# Two of the four bars stand at each place, key in a row: (label, colour)
ANSWERS = {"base_acc": ("plain answer", "#8b9097"), "contrast_acc": ("shifted answer", "#2166ac")}
# The places: (prompts, heads that are swapped): label
PLACES = {
    ("base", "none"): "old rule\nshown",
    ("contrast", "none"): "new rule\nshown",
    ("contrast", "function_induction"): "… FI heads\nswapped",
    ("contrast", "random_same_layers"): "… others\nswapped",
}
# The panels: (task, k, items): title
PANELS = {
    ("addition", 1, "all"): "addition, off by +1",
    ("addition", -2, "all"): "addition, off by −2",
    ("caesar", 1, "all"): "Caesar, ROT+1",
    ("base_addition", 8, "carry"): "base 8, sums that carry",
}


def means_and_errors(groups: Sequence[Values]) -> tuple[np.ndarray, np.ndarray]:
    """The mean of each group of values, and half its 95 % interval (0 for a single value)."""
    means, halves = np.array([mean_ci(values) for values in groups]).reshape(-1, 2).T
    return means, np.nan_to_num(halves)


def accuracy_bars(axes: Any, groups: dict[str, Rows], *accuracies: tuple[str, str, str]) -> None:
    """A horizontal bar for each group of runs: mean, 95 % interval, and every run as a dot."""
    ticks = -np.arange(len(groups))
    axes.set(yticks=ticks, yticklabels=list(groups), xlim=(0, 1.02))
    shifts = (0.2, -0.2) if len(accuracies) == 2 else (0.0,)
    line = {"ecolor": "black", "elinewidth": 0.8, "capsize": 2}
    for shift, (key, label, colour) in zip(shifts, accuracies):
        values, places = [column(rows, key) for rows in groups.values()], ticks + shift
        means, errors = means_and_errors(values)
        style = {"color": colour, "alpha": 0.45, "label": label, "error_kw": line}
        axes.barh(places, means, height=0.36, xerr=errors, **style)
        for place, some in zip(places, values):
            axes.plot(some, [place] * len(some), "o", color=colour, markersize=3)


def draw_diets(rows: Rows) -> Any:
    """Accuracy by diet, and the law: what the accuracy depends on."""
    grouped = by(rows, lambda row: row["diet"])
    starred = by(rows, lambda row: row["diet"] + " *" * (1 in row["shifts_of_plus_shown"]))
    figure = plt.figure(figsize=(11, 7.5))
    left, right = figure.subfigures(1, 2, width_ratios=(1.3, 1))

    axes = left.subplots()
    accuracy_bars(axes, starred, PLAIN, OFF_BY_ONE)
    held_out = "off-by-one addition was trained on, another cell is held out"
    axes.set(title="diets (dots: runs; lines: 95 %)", xlabel=f"accuracy at 8 shots (*: {held_out})")
    axes.legend(loc="lower right", fontsize=8)

    for axis, (title, (key, wanted)) in zip(right.subplots(len(LAW), 1), LAW.items()):
        points = sorted((grouped[name][0][key], name) for name in wanted if name in grouped)
        groups = [grouped[name] for _, name in points]
        curves = {
            ("off by one", BLUE): [column(some, "off_by_one_8") for some in groups],
            ("all k", RED): [diets.mean_of_k(some) for some in groups],
        }
        for (label, colour), values in curves.items():
            means, errors = means_and_errors(values)
            style = {"fmt": "o", "color": colour, "capsize": 2, "markersize": 4}
            axis.errorbar([x for x, _ in points], means, yerr=errors, label=label, **style)
        axis.set(xlabel=title, ylabel="unseen cell", ylim=(-0.05, 1.05))
        axis.legend(fontsize=7)
    return figure


def draw_emergence(rows: Rows) -> Any:
    """Curves against steps, one line for each seed."""
    events = emergence.EVENTS
    curves_of: dict[str, dict[str, emergence.Curve]] = {
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
    figure, axes = plt.subplots(2, 2, figsize=(11, 7), sharex=True)
    for axis, (title, curves) in zip(axes.flat, curves_of.items()):
        for number, (name, value) in enumerate(curves.items()):
            style = {"color": f"C{number}", "alpha": 0.7, "linewidth": 1.2}
            for index, some in enumerate(emergence.by_seed(rows).values()):
                steps, values = [row["step"] for row in some], [value(row) for row in some]
                axis.plot(steps, values, label=name if index == 0 else None, **style)
        axis.set(xscale="log", title=title, xlabel="step")
        axis.legend(fontsize=7)
    return figure


def draw_universality(rows: Rows) -> Any:
    """Accuracy by model, and how many heads of each group in those that do the task."""
    grouped = by(rows, lambda row: row["config"]["name"])
    size = (11, 1 + len(grouped) / 3)
    figure, (left, right) = plt.subplots(1, 2, figsize=size, sharey=True)
    accuracy_bars(left, grouped, OFF_BY_ONE)
    left.set(xlabel="off-by-one accuracy at 8 shots (dots: runs; lines: 95 %)")
    for number, (key, (label, colour)) in enumerate(FOUND.items()):
        style = {"color": colour, "markersize": 4, "alpha": 0.6}
        for index, some in enumerate(grouped.values()):
            counts = column(solved(some), key)
            places = [-index + 0.25 * (1 - number)] * len(counts)
            right.plot(counts, places, "o", label=label if index == 0 else None, **style)
    right.set(xlabel="heads found, in the runs that do the task")
    right.legend(fontsize=8)
    return figure


def draw_dependability(rows: Rows) -> Any:
    """Accuracy by k, a dot for each seed."""
    figure, axes = plt.subplots(figsize=(6, 3.5))
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


def draw_heads(circuit: Row) -> Any:
    """r of heads and MLPs on the logits in %; colours go by its square root, so that all show."""
    changed = {"shown answers": circuit, "operands": circuit["operands_changed"]}
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
    for axis, (what, traced) in zip(axes, changed.items()):
        effects = traced["effects"]["logits"]
        layers = [[*heads, mlp] for heads, mlp in zip(effects["heads"], effects["mlps"])]
        shades = [[math.copysign(math.sqrt(abs(r)), r) for r in layer] for layer in layers]
        axis.imshow(shades, cmap="RdBu", vmin=-1, vmax=1, aspect="equal")
        for (y, x), r in np.ndenumerate(layers):
            percent = f"{100 * r:+.0f}".replace("+0", "0").replace("-0", "0")
            colour = "white" if abs(shades[y][x]) > 0.65 else "black"
            axis.text(x, y, percent, ha="center", va="center", fontsize=7, color=colour)
        labels = [*range(len(layers[0]) - 1), "mlp"]
        axis.set(xticks=range(len(labels)), xticklabels=labels, yticks=range(len(layers)))
        axis.set(title=f"{what} changed", xlabel="head")
        axis.invert_yaxis()
    axes[0].set_ylabel("layer")
    figure.suptitle("heads → logits: r in % (−100: back to the plain answer)")
    return figure


def draw_bars(circuit: Row) -> Any:
    """The four bars of each task: shares of plain and of shifted answers, with 95 % intervals."""
    reuse = by(circuit["reuse"], lambda row: PANELS.get((row["task"], row["k"], row["items"])))
    titles = [title for title in PANELS.values() if title in reuse]
    size = (3.1 * len(titles), 3.2)
    figure, axes = plt.subplots(1, len(titles), figsize=size, sharey=True, squeeze=False)
    style = {"width": 0.38, "ecolor": "black", "capsize": 2, "error_kw": {"elinewidth": 0.8}}
    for axis, title in zip(axes[0], titles):
        for row in reuse[title]:
            place = list(PLACES).index((row["prompt"], row["ablated"]))
            for shift, (key, (label, colour)) in zip((-0.2, 0.2), ANSWERS.items()):
                share, (low, high) = row[key], wilson(row[key], row["n_prompts"])
                errors = [[max(0.0, share - low)], [max(0.0, high - share)]]
                label = label if place == 0 else None
                axis.bar(place + shift, share, yerr=errors, color=colour, label=label, **style)
        axis.set(title=title, xticks=range(len(PLACES)), ylim=(0, 1.05))
        axis.set_xticklabels(PLACES.values(), fontsize=7)
    axes[0][0].set_ylabel("share of prompts")
    handles = axes[0][0].get_legend_handles_labels()
    figure.legend(*handles, fontsize=8, loc="outside upper right", ncols=2)
    return figure


OF_ONE_RUN = {"heads_to_logits": draw_heads, "four_bars": draw_bars}
OF_MANY_RUNS = {
    "diets": draw_diets,
    "emergence": draw_emergence,
    "universality": draw_universality,
    "dependability": draw_dependability,
}


def save(figure: Any, path: Path) -> None:
    """Writes path.png and path.svg, the same bytes for the same figure. Raises UserError."""
    png = {"format": "png", "dpi": 150, "metadata": {"Software": None}}
    svg = {"format": "svg", "metadata": {"Date": None}}
    write_file(Path(f"{path}.png"), lambda file: figure.savefig(file, **png))
    write_file(Path(f"{path}.svg"), lambda file: figure.savefig(file, **svg))
    print(f"{path}.png, .svg")


@command
def main(argv: list[str] | None = None) -> int:
    parser = Parser("experiments.figures", __doc__)
    add = parser.add_argument
    add("--results", default=RESULTS, help="where the rows are (default: %(default)s)")
    add("--run", default="out/default", help="folder of a traced run (default: %(default)s)")
    add("--out", default=ROOT / "docs/figures", help="where the figures go (default: %(default)s)")
    arguments = parser.parse_args(argv)
    circuit, out = Path(arguments.run) / "circuit.json", Path(arguments.out)
    paths = {name: Path(arguments.results, f"{name}.json") for name in OF_MANY_RUNS}
    paths |= dict.fromkeys(OF_ONE_RUN, circuit)
    found = {name: path for name, path in paths.items() if path.exists()}
    if not found:
        makers = "make patch, diets, emergence, universality and dependability write them"
        raise UserError(f"there is no {circuit}, and no rows are in {arguments.results}: {makers}")
    make_folder(out)
    draw = OF_MANY_RUNS | OF_ONE_RUN
    for name, path in found.items():
        try:
            figure = draw[name](load_json(path))
        except KeyError as error:
            print(f"{name} is not drawn: {path} holds no {error.args[0]}", file=sys.stderr)
            continue
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            raise UserError(f"{path} is of another layout: {error}") from None
        save(figure, out / name)
        plt.close(figure)
    print(f"next: look at them in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
