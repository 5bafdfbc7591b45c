"""Draws the figures of docs/figures/ (PNG and SVG) from results/*.json alone (`make figures`; needs matplotlib, an optional extra)."""

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments import diets, emergence
from experiments.runs import by, mean_ci
from minifunc.support.errors import UserError, run_main
from minifunc.support.files import load_json
from minifunc.support.flags import Parser

Rows = list[dict[str, Any]]
BLUE, RED, GREY = "#3465a4", "#c0392b", "#888888"


def bars(
    axes: Any,
    names: list[str],
    values: list[list[float | None]],
    shift: float,
    colour: str,
    label: str,
) -> None:
    """Horizontal bars of means with 95 % intervals, and every run as a dot."""
    means = [mean_ci(some) for some in values]
    places = [-index + shift for index in range(len(names))]
    axes.barh(
        places, [mean for mean, _ in means], height=0.36, color=colour, alpha=0.45, label=label
    )
    axes.errorbar(
        [mean for mean, _ in means],
        places,
        xerr=[0.0 if math.isnan(half) else half for _, half in means],
        fmt="none",
        ecolor="black",
        elinewidth=0.8,
        capsize=2,
    )
    for place, some in zip(places, values):
        known = [value for value in some if value is not None]
        axes.plot(known, [place] * len(known), "o", color=colour, markersize=3)


def draw_diets(rows: Rows, plt: Any) -> Any:
    """Accuracy by diet, and the law."""
    grouped = dict(by(rows, lambda row: row["diet"]))
    names = [name for name in diets.EXPERIMENT.names if name in grouped]
    figure = plt.figure(figsize=(11, 7.5), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.3, 1))
    axes = left.subplots()
    bars(
        axes,
        names,
        [diets.column(grouped[name], "plain_8") for name in names],
        0.2,
        GREY,
        "plain addition",
    )
    bars(
        axes,
        names,
        [diets.column(grouped[name], "off_by_one_8") for name in names],
        -0.2,
        BLUE,
        "off by one",
    )
    axes.set(
        yticks=[-index for index in range(len(names))],
        yticklabels=[
            name + " *" * (1 in grouped[name][0]["shifts_of_plus_shown"]) for name in names
        ],
        xlim=(0, 1.02),
        title="diets (dots: runs; lines: 95 %)",
    )
    axes.set_xlabel(
        "accuracy at 8 shots (*: off-by-one addition was trained on, another cell is held out)"
    )
    axes.legend(loc="lower right", fontsize=8)
    for axis, (title, (key, wanted)) in zip(right.subplots(len(diets.LAW), 1), diets.LAW.items()):
        points = sorted((grouped[name][0][key], name) for name in wanted if name in grouped)
        for label, value, colour in (
            ("off by one", lambda some: diets.column(some, "off_by_one_8"), BLUE),
            ("all k", diets.mean_of_k, RED),
        ):
            found = [mean_ci(value(grouped[name])) for _, name in points]
            axis.errorbar(
                [x for x, _ in points],
                [mean for mean, _ in found],
                yerr=[0.0 if math.isnan(half) else half for _, half in found],
                fmt="o",
                color=colour,
                capsize=2,
                markersize=4,
                label=label,
            )
        axis.set(xlabel=title, ylabel="unseen cell", ylim=(-0.05, 1.05))
        axis.legend(fontsize=7)
    return figure


def draw_emergence(rows: Rows, plt: Any) -> Any:
    """Curves against steps, one line per seed."""
    panels: list[tuple[str, dict[str, Callable[[dict[str, Any]], float | None]]]] = [
        ("loss", {"loss": lambda row: row["loss"]}),
        (
            "accuracy at 8 shots",
            {
                "plain addition": lambda row: row["plain_8"],
                "shifted subtraction": lambda row: row["accuracy"]["subtraction"]["shift"],
                "off by one, never shown": lambda row: row["off_by_one_8"],
                "repeated documents": lambda row: row["copy_accuracy"],
            },
        ),
        (
            "attention score",
            {name: emergence.EVENTS[name] for name in emergence.EVENTS if "score" in name},
        ),
        (
            "direct effect on the logits of the final FI heads",
            {"strongest FI head": emergence.EVENTS["effect of the strongest FI head"]},
        ),
    ]
    figure, axes = plt.subplots(2, 2, figsize=(11, 7), sharex=True, layout="constrained")
    for axis, (title, curves) in zip(axes.flat, panels):
        for number, (name, value) in enumerate(curves.items()):
            for index, (_, some) in enumerate(
                by([row for row in rows if not row["diverged"]], lambda row: str(row["seed"]))
            ):
                axis.plot(
                    [row["step"] for row in some],
                    [value(row) for row in some],
                    color=f"C{number}",
                    alpha=0.7,
                    linewidth=1.2,
                    label=name if index == 0 else None,
                )
        axis.set(xscale="log", title=title, xlabel="step")
        axis.legend(fontsize=7)
    return figure


def draw_universality(rows: Rows, plt: Any) -> Any:
    """Accuracy by model, and how many heads of each group in those that do the task."""
    grouped = dict(by(rows, lambda row: row["config"]["name"]))
    names = list(grouped)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 1 + len(names) / 3), sharey=True, layout="constrained"
    )
    bars(
        left,
        names,
        [diets.column(grouped[name], "off_by_one_8") for name in names],
        0.0,
        BLUE,
        "off by one",
    )
    left.set(
        yticks=[-index for index in range(len(names))],
        yticklabels=names,
        xlim=(0, 1.02),
        xlabel="off-by-one accuracy at 8 shots (dots: runs; lines: 95 %)",
    )
    for shift, (key, label, colour) in zip(
        (0.25, 0.0, -0.25),
        (
            ("fi_heads", "FI", RED),
            ("pt_heads", "PT", BLUE),
            ("consolidation_heads", "consolidation", GREY),
        ),
    ):
        good = {
            name: [
                row for row in grouped[name] if not row["diverged"] and row["off_by_one_8"] >= 0.5
            ]
            for name in names
        }
        for index, name in enumerate(names):
            counts = [len(row[key]) for row in good[name]]
            right.plot(
                counts,
                [-index + shift] * len(counts),
                "o",
                color=colour,
                markersize=4,
                alpha=0.6,
                label=label if index == 0 else None,
            )
    right.set(xlabel="heads found, in the runs that do the task")
    right.legend(fontsize=8)
    return figure


def draw_dependability(rows: Rows, plt: Any) -> Any:
    """Accuracy by k, a dot per seed."""
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    good = [row for row in rows if not row["diverged"]]
    ks = sorted({k for row in good for k in row["off_by_k_8"]} | {"0"}, key=int)
    for k in ks:
        values = [row["plain_8"] if k == "0" else row["off_by_k_8"][k] for row in good]
        mean, half = mean_ci(values)
        axes.plot(
            [int(k)] * len(values),
            values,
            "o",
            color=GREY if k == "0" else BLUE,
            markersize=3,
            alpha=0.6,
        )
        axes.errorbar(
            [int(k) + 0.15],
            [mean],
            yerr=[0.0 if math.isnan(half) else half],
            fmt="_",
            color="black",
            capsize=2,
        )
    axes.set(
        xlabel="k (0: plain addition)",
        ylabel="accuracy at 8 shots",
        ylim=(0, 1.03),
        title=f"{len(good)} of {len(rows)} seeds (the rest diverged)"
        if len(good) < len(rows)
        else f"{len(rows)} seeds, 95 % intervals",
    )
    return figure


def draw_interventions(rows: Rows, plt: Any) -> Any:
    """Accuracy by what was kept from forming."""
    grouped = dict(by(rows, lambda row: row["intervention"]))
    figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
    for shift, key, colour, label in (
        (0.2, "plain_8", GREY, "plain addition"),
        (-0.2, "off_by_one_8", BLUE, "off by one"),
    ):
        bars(
            axes,
            list(grouped),
            [diets.column(some, key) for some in grouped.values()],
            shift,
            colour,
            label,
        )
    axes.set(
        yticks=[-index for index in range(len(grouped))],
        yticklabels=[name.replace("_", " ") for name in grouped],
        xlim=(0, 1.02),
        xlabel="accuracy at 8 shots (dots: runs; lines: 95 %)",
    )
    axes.legend(loc="lower left", fontsize=8)
    return figure


FIGURES = {
    "diets": draw_diets,
    "emergence": draw_emergence,
    "universality": draw_universality,
    "dependability": draw_dependability,
    "interventions": draw_interventions,
}


def pyplot() -> Any:
    """matplotlib.pyplot, set up for files alone. Raises UserError where matplotlib is not installed."""
    try:
        import matplotlib

        matplotlib.use("agg")
        import matplotlib.pyplot as plt
    except ImportError:
        raise UserError(
            "the figures need matplotlib: pip install matplotlib (make figures does)"
        ) from None
    matplotlib.rcParams |= {
        "svg.hashsalt": "minifunc",
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    return plt


def main(argv: list[str] | None = None) -> int:
    def work() -> int:
        parser = Parser(
            prog="experiments.figures",
            description=__doc__.splitlines()[0],
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        parser.add_argument("--results", default="results", help="where the rows are")
        parser.add_argument("--out", default="docs/figures", help="where the figures go")
        arguments = parser.parse_args(argv)
        plt = pyplot()
        out = Path(arguments.out)
        found = [name for name in FIGURES if (Path(arguments.results) / f"{name}.json").exists()]
        if not found:
            raise UserError(
                f"{arguments.results} holds none of {', '.join(f'{name}.json' for name in FIGURES)}: make diets, emergence, universality, dependability write them"
            )
        try:
            out.mkdir(parents=True, exist_ok=True)
            for name in found:
                figure = FIGURES[name](load_json(Path(arguments.results) / f"{name}.json"), plt)
                figure.savefig(out / f"{name}.png", dpi=150, metadata={"Software": None})
                figure.savefig(out / f"{name}.svg", metadata={"Date": None})
                plt.close(figure)
                print(f"{out / name}.png, .svg")
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{arguments.results} holds rows of another kind: {type(error).__name__} {error}"
            ) from None
        except OSError as error:
            raise UserError(f"cannot write to {out}: {error.strerror}") from None
        return 0

    return run_main(work)


if __name__ == "__main__":
    sys.exit(main())
