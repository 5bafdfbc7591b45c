"""Draws what a run's circuit.json holds, in the paper's manner (`make figures`).

Same sign and colours as there: r < 0, red, goes back to the base answer; r > 0, blue, goes on to
the contrast answer.
"""

import math
from collections.abc import Callable
from typing import Any

from experiments.summary import by
from minifunc.support.evaluation import wilson

Circuit = dict[str, Any]  # what circuit.json holds

# The two bars at each place: (shift, key in a row, colour, label)
ANSWERS = (
    (-0.2, "base_acc", "#8b9097", "plain answer"),
    (0.2, "contrast_acc", "#2166ac", "shifted answer"),
)
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


def heat_map(axes: Any, values: list[list[float]], most: float, percent: bool = False) -> None:
    """Cells from -most (red) to most (blue), with their values written in.

    percent: whole numbers, in colours that follow the square root, so that small ones show.
    """
    exponent = 0.5 if percent else 1.0
    shades = [[math.copysign(abs(x / most) ** exponent, x) for x in row] for row in values]
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            whole = f"{value:+.0f}".replace("+0", "0").replace("-0", "0")
            colour = "white" if abs(shades[y][x]) > 0.65 else "black"
            style = {"ha": "center", "va": "center", "fontsize": 7, "color": colour}
            axes.text(x, y, whole if percent else f"{value:.1f}", **style)
    axes.imshow(shades, cmap="RdBu", vmin=-1, vmax=1, aspect="equal")
    axes.set(xticks=range(len(values[0])), yticks=range(len(values)))


def answer_bars(axes: Any, place: int, row: dict[str, Any]) -> None:
    """The shares of plain and of shifted answers at one place, with 95 % intervals."""
    style = {"width": 0.38, "ecolor": "black", "capsize": 2, "error_kw": {"elinewidth": 0.8}}
    for shift, key, colour, label in ANSWERS:
        share = row[key]
        low, high = wilson(share, row["n_prompts"])
        errors = [[max(0.0, share - low)], [max(0.0, high - share)]]
        label = label if place == 0 else None
        axes.bar(place + shift, share, yerr=errors, color=colour, label=label, **style)


# ---------------------------------------------------------------- one function for each figure


def draw_heads(circuit: Circuit, plt: Any) -> Any:
    """r of heads and MLPs on the logits, under both contrasts."""
    effects = {
        "shown answers changed": circuit["effects"]["logits"],
        "operands changed": circuit["operands_changed"]["effects"]["logits"],
    }
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    for axis, (title, to_logits) in zip(axes, effects.items()):
        layers = [[*heads, mlp] for heads, mlp in zip(to_logits["heads"], to_logits["mlps"])]
        heat_map(axis, [[100 * r for r in layer] for layer in layers], 100.0, percent=True)
        n_heads = len(layers[0]) - 1
        axis.set(title=title, xlabel="head", xticklabels=[*range(n_heads), "mlp"])
        axis.invert_yaxis()
    axes[0].set_ylabel("layer")
    figure.suptitle("heads → logits: r in % (−100: back to the plain answer)")
    return figure


def draw_vectors(circuit: Circuit, plt: Any) -> Any:
    """Function vectors of all FI heads together, and of each."""
    vectors = circuit["function_vectors"]
    heads = [name for name in vectors if name != "all"]
    maps = {"all FI heads": vectors["all"]} | {f"head {name}": vectors[name] for name in heads}
    most = max(abs(x) for values in maps.values() for row in values for x in row)
    size = (3.6 * len(maps), 3.7)
    figure, axes = plt.subplots(1, len(maps), figsize=size, layout="constrained", squeeze=False)
    for axis, (title, values) in zip(axes[0], maps.items()):
        heat_map(axis, values, most)
        axis.set(title=title, xlabel="output y")
    axes[0][0].set_ylabel("input x")
    figure.suptitle(
        f"function vectors put into prompts that ask for x: change of logit(y), scale ± {most:.1f}"
    )
    return figure


def draw_bars(circuit: Circuit, plt: Any) -> Any:
    """The four bars of each task."""
    panels = by(circuit["reuse"], lambda row: PANELS.get((row["task"], row["k"], row["items"])))
    titles = [title for title in PANELS.values() if title in panels]
    layout = {"sharey": True, "layout": "constrained", "squeeze": False}
    figure, axes = plt.subplots(1, len(titles), figsize=(3.1 * len(titles), 3.2), **layout)
    for axis, title in zip(axes[0], titles):
        for row in panels[title]:
            answer_bars(axis, list(PLACES).index((row["prompt"], row["ablated"])), row)
        axis.set(title=title, xticks=range(len(PLACES)), ylim=(0, 1.05))
        axis.set_xticklabels(PLACES.values(), fontsize=7)
    axes[0][0].set_ylabel("share of prompts")
    handles = axes[0][0].get_legend_handles_labels()
    figure.legend(*handles, fontsize=8, loc="outside upper right", ncols=2)
    return figure


FIGURES: dict[str, Callable[[Circuit, Any], Any]] = {
    "heads_to_logits": draw_heads,
    "function_vectors": draw_vectors,
    "four_bars": draw_bars,
}
