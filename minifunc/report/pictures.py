"""The pictures of a report: tables that are heat maps, and SVG. Colours are in style.css alone.

What carries a number has it in `data-tip`, which page.js shows on hover, focus and touch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minifunc.report.html import Markup, h, percent, scrolling, signed, table
from minifunc.support.evaluation import wilson


@dataclass(frozen=True)
class Scale:
    """The diverging scale of colours from -most to most, centred on 0."""

    most: float
    root: bool = False  # even steps of the square root, so that small values show

    def shade(self, value: float) -> dict[str, str]:
        """Class and style of what has this value."""
        size = min(1.0, abs(value) / self.most) if self.most else 0.0
        size = math.sqrt(size) if self.root else size
        return {"class_": "neg" if value < 0 else "pos", "style": f"--v:{100 * size:.0f}%"}

    def legend(self, unit: str, low: str, high: str) -> Markup:
        """The scale as a row of swatches, with the meaning of its two ends."""
        steps = (-1, -0.5, -0.25, -0.05, 0, 0.05, 0.25, 0.5, 1)
        values = [step * self.most for step in steps]
        swatches = [h("span", signed(value), **self.shade(value)) for value in values]
        scale = h("span", swatches, class_="scale")
        return h("p", h("span", low), scale, h("span", f"{unit}, {high}"), class_="legend")

    def cell(self, value: float, shown: str, tip: str, marked: bool = False) -> Markup:
        """A cell of a heat map; marked: outlined."""
        look = self.shade(value)
        look["class_"] += " marked" if marked else ""
        return h("td", shown, data_tip=tip, tabindex="-1", **look)


def heat_map(title: str, corner: str, columns: Any, rows: list[Any]) -> Markup:
    """A table of rows [name, *cells]. corner: what stands above the names."""
    return scrolling(table([h("td", corner), *columns], rows, title, "heat"))


def effects_map(title: str, effects: Any, receiver: str, marked: Sequence[str] = ()) -> Markup:
    """r of every sender on one receiver, the last layer on top; `marked`: senders to outline."""
    scale = Scale(1.0, root=True)

    def cell(sender: str, r: float) -> Markup:
        tip = f"{sender} → {receiver}: r = {signed(100 * r, 1)} %"
        return scale.cell(r, signed(100 * r), tip, sender in marked)

    rows = [["embed", cell("embedding", effects["embedding"])]]
    for layer, (of_heads, mlp) in enumerate(zip(effects["heads"], effects["mlps"])):
        heads = [cell(f"{layer}.{head}", r) for head, r in enumerate(of_heads)]
        rows.insert(0, [str(layer), *heads, cell(f"mlp{layer}", mlp)])
    columns = [f"h{head}" for head in range(len(effects["heads"][0]))]
    return heat_map(title, "layer", [*columns, "mlp"], rows)


def text(x: float, y: float, shown: str, class_: Any = None, at: Any = None) -> Markup:
    """Words on a baseline that has (x, y) at its start, or `at` its middle or end."""
    return h("text", shown, x=x, y=y, class_=class_, text_anchor=at)


# The settings of `fours` of `terminal.py`.
BARS = ("old rule shown", "new rule shown", "… FI heads swapped", "… others swapped")
BARS_LEFT, BARS_WIDTH = 132, 140  # px: where bars begin, and how long one of 100 % is


def four_bars(title: str, four: Sequence[Mapping[str, Any]]) -> Markup:
    """Shares of plain and shifted answers in each setting of BARS, in rows of `reuse`."""
    top, step = 24, 30  # px; step: from one setting to the next
    bottom = top + len(BARS) * step
    grid, names, bars = [], [], []
    for share in (0, 0.5, 1):
        x = BARS_LEFT + BARS_WIDTH * share
        grid.append(h("path", d=f"M{x} {top - 4}V{bottom - 4}", class_="grid"))
        grid.append(text(x, bottom + 9, percent(share), "tick", "middle"))
    for index, (name, row) in enumerate(zip(BARS, four)):
        y, where = top + index * step, f"{title}, {name}"
        names.append(text(BARS_LEFT - 8, y + 14, name, at="end"))
        bars.append(bar(y + 2, where, "plain", row["base_acc"], row["n_prompts"]))
        bars.append(bar(y + 11, where, "shifted", row["contrast_acc"], row["n_prompts"]))
        names.append(text(BARS_LEFT + BARS_WIDTH + 8, y + 14, both(row)))
    parts = [text(0, 12, title, "title"), grid, names, bars]
    size, label = f"0 0 376 {bottom + 16}", f"{title}: shares of plain and shifted answers"
    return h("svg", parts, viewBox=size, role="img", aria_label=label, class_="bars")


def both(row: Mapping[str, Any]) -> str:
    """The shares of plain and shifted answers, in words."""
    return f"{percent(row['base_acc'], 1)} / {percent(row['contrast_acc'], 1)}"


def bar(y: float, where: str, answer: str, share: float, n: int) -> Markup:
    """The share of n prompts that get an answer, with its 95 % interval over prompts."""
    low, high = wilson(share, n)
    start, end = (f"{BARS_LEFT + BARS_WIDTH * limit:.1f}" for limit in (low, high))
    interval = f"95 % interval {percent(low)} to {percent(high)}"
    tip = f"{where}: {answer} answer on {percent(share, 1)} of {n} prompts ({interval})"
    box = {"x": BARS_LEFT, "y": y, "width": BARS_WIDTH, "height": 8}
    parts = [
        h("rect", **box | {"width": round(max(BARS_WIDTH * share, 1), 1)}),
        h("path", d=f"M{start} {y + 4}H{end}"),
        h("rect", **box, class_="hit"),  # all of the row answers to the pointer
    ]
    return h("g", parts, class_=f"{answer}-answer", data_tip=tip)
