"""Draws what a run's circuit.json holds, in the paper's manner, as PNG and SVG (`make figures`; needs matplotlib, an optional extra).

Same sign and colours as there: r < 0, red, goes back to the base answer; r > 0, blue, goes on to the contrast answer.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.figures import pyplot
from minifunc.support.evaluation import wilson
from minifunc.support.errors import UserError, run_main
from minifunc.support.files import load_json
from minifunc.support.flags import Parser

PLAIN, SHIFTED = "#8b9097", "#2166ac"
BARS = [
    ("base", "none", "old rule\nshown"),
    ("contrast", "none", "new rule\nshown"),
    ("contrast", "function_induction", "… FI heads\nswapped"),
    ("contrast", "random_same_layers", "… others\nswapped"),
]
WANTED = {
    ("addition", 1): "addition, off by +1",
    ("addition", -2): "addition, off by −2",
    ("caesar", 1): "Caesar, ROT+1",
    ("base_addition", 8): "base 8, sums that carry",
}


def grid(axes: Any, values: list[list[float]], most: float, power: float = 1.0) -> Any:
    """A heat map on the diverging scale from -most to most; power below 1 lets small values show."""
    shades = [
        [(abs(value) / most) ** power * (1 if value > 0 else -1) for value in row] for row in values
    ]
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            axes.text(
                x,
                y,
                f"{value:+.0f}".replace("+0", "0").replace("-0", "0")
                if power < 1
                else f"{value:.1f}",
                ha="center",
                va="center",
                fontsize=7,
                color="white" if abs(shades[y][x]) > 0.65 else "black",
            )
    return axes.imshow(shades, cmap="RdBu", vmin=-1, vmax=1, aspect="equal")


def draw_heads(circuit: dict[str, Any], plt: Any) -> Any:
    """r of heads and MLPs on the logits, under both contrasts."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    for axis, effects, title in zip(
        axes,
        (circuit["effects"], circuit["operands_changed"]["effects"]),
        ("shown answers changed", "operands changed"),
    ):
        rows = [
            [100 * r for r in row] + [100 * mlp]
            for row, mlp in zip(effects["logits"]["heads"], effects["logits"]["mlps"])
        ]
        grid(axis, rows, 100.0, 0.5)
        axis.set(
            title=title,
            xlabel="head",
            xticks=range(len(rows[0])),
            xticklabels=[*range(len(rows[0]) - 1), "mlp"],
            yticks=range(len(rows)),
        )
        axis.invert_yaxis()
    axes[0].set_ylabel("layer")
    figure.suptitle("heads → logits: r in % (−100: back to the plain answer)")
    return figure


def draw_vectors(circuit: dict[str, Any], plt: Any) -> Any:
    """Function vectors of each FI head and of all together."""
    maps = circuit["function_vectors"]
    names = ["all", *(name for name in maps if name != "all")]
    most = max(abs(value) for name in names for row in maps[name] for value in row)
    figure, axes = plt.subplots(
        1, len(names), figsize=(3.6 * len(names), 3.7), layout="constrained", squeeze=False
    )
    for axis, name in zip(axes[0], names):
        grid(axis, maps[name], most)
        axis.set(
            title="all FI heads" if name == "all" else f"head {name}",
            xlabel="output y",
            xticks=range(len(maps[name][0])),
            yticks=range(len(maps[name])),
        )
    axes[0][0].set_ylabel("input x")
    figure.suptitle(
        f"function vectors put into prompts that ask for x: change of logit(y), scale ± {most:.1f}"
    )
    return figure


def draw_bars(circuit: dict[str, Any], plt: Any) -> Any:
    """The four bars of each task, with 95 % intervals over prompts."""
    panels: dict[str, list[dict[str, Any]]] = {
        name: []
        for key, name in WANTED.items()
        if any((row["task"], row["k"]) == key for row in circuit["reuse"])
    }
    for row in circuit["reuse"]:
        name = WANTED.get((row["task"], row["k"]))
        if name and row.get("items", "all") in ("all", "carry"):
            panels[name].append(row)
    if not panels:
        raise KeyError("reuse")
    figure, axes = plt.subplots(
        1,
        len(panels),
        figsize=(3.1 * len(panels), 3.2),
        sharey=True,
        layout="constrained",
        squeeze=False,
    )
    for axis, (name, rows) in zip(axes[0], panels.items()):
        for place, (prompt, ablated, _) in enumerate(BARS):
            row = next(
                (row for row in rows if (row["prompt"], row["ablated"]) == (prompt, ablated)), None
            )
            for shift, key, colour, label in (
                (-0.2, "base_acc", PLAIN, "plain answer"),
                (0.2, "contrast_acc", SHIFTED, "shifted answer"),
            ):
                if row:
                    low, high = wilson(row[key], row["n_prompts"])
                    errors = [[max(0.0, row[key] - low)], [max(0.0, high - row[key])]]
                    axis.bar(
                        place + shift,
                        row[key],
                        width=0.38,
                        color=colour,
                        yerr=errors,
                        ecolor="black",
                        capsize=2,
                        error_kw={"elinewidth": 0.8},
                        label=label if place == 0 else None,
                    )
        axis.set(title=name, xticks=range(len(BARS)), ylim=(0, 1.05))
        axis.set_xticklabels([label for _, _, label in BARS], fontsize=7)
    axes[0][0].set_ylabel("share of prompts")
    figure.legend(
        *axes[0][0].get_legend_handles_labels(), fontsize=8, loc="outside upper right", ncols=2
    )
    return figure


FIGURES: dict[str, Callable[[dict[str, Any], Any], Any]] = {
    "heads_to_logits": draw_heads,
    "function_vectors": draw_vectors,
    "four_bars": draw_bars,
}


def main(argv: list[str] | None = None) -> int:
    def work() -> int:
        parser = Parser(
            prog="experiments.run_figures",
            description=__doc__.splitlines()[0],
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        parser.add_argument("--run", default="out/default", help="folder of the traced run")
        parser.add_argument("--out", default="docs/figures", help="where the figures go")
        arguments = parser.parse_args(argv)
        plt = pyplot()
        path, out = Path(arguments.run) / "circuit.json", Path(arguments.out)
        if not path.exists():
            raise UserError(f"{path} is missing: make patch makes it")
        circuit = load_json(path)
        try:
            out.mkdir(parents=True, exist_ok=True)
            for name, draw in FIGURES.items():
                try:
                    figure = draw(circuit, plt)
                except KeyError as error:
                    print(f"{name} is not drawn: {path} holds no {error.args[0]}", file=sys.stderr)
                    continue
                figure.savefig(out / f"{name}.png", dpi=150, metadata={"Software": None})
                figure.savefig(out / f"{name}.svg", metadata={"Date": None})
                plt.close(figure)
                print(f"{out / name}.png, .svg")
        except (TypeError, AttributeError, ValueError, IndexError) as error:
            raise UserError(
                f"{path} is of another layout: {type(error).__name__} {error}"
            ) from None
        except OSError as error:
            raise UserError(f"cannot write to {out}: {error.strerror}") from None
        return 0

    return run_main(work)


if __name__ == "__main__":
    sys.exit(main())
