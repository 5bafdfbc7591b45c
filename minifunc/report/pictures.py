"""The pictures of a report: tables that are heat maps, and SVG. Colours are in style.css alone.

Everything that carries a number has it in `data-tip`, which page.js shows on hover, focus and
touch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from minifunc.report.html import Markup, h, percent, scrolling, signed, table
from minifunc.support.evaluation import wilson
from minifunc.support.names import parse
from minifunc.support.tables import words


@dataclass(frozen=True)
class Scale:
    """The diverging scale of colours from -most to most, centred on 0."""

    most: float
    root: bool = False  # even steps of the square root, so that small values show

    def shade(self, value: float) -> dict[str, str]:
        """Class and style of what has this value."""
        size = min(1.0, abs(value) / self.most) if self.most else 0.0
        size = math.sqrt(size) if self.root else size
        sign = "neg" if value < 0 else "pos"
        return {"class_": sign + " strong" * (size > 0.62), "style": f"--v:{100 * size:.0f}%"}

    def legend(self, unit: str, low: str, high: str) -> Markup:
        """The scale as a row of swatches, with the meaning of its two ends."""
        right = (0.05, 0.25, 0.5, 1.0) if self.root else (0.25, 0.5, 0.75, 1.0)
        values = [step * self.most for step in (*(-step for step in reversed(right)), 0.0, *right)]
        digits = 0 if self.most >= 10 else 1
        swatches = [h("span", signed(value, digits), **self.shade(value)) for value in values]
        scale = h("span", swatches, class_="scale")
        return h("p", h("span", low), scale, h("span", f"{unit}, {high}"), class_="legend")

    def cell(self, value: float, shown: str, tip: str, marked: bool = False) -> Markup:
        """A cell of a heat map; marked: outlined."""
        look = self.shade(value)
        look["class_"] += " marked" * marked + " zero" * (shown == "0")
        return h("td", shown, data_tip=tip, tabindex="-1", **look)


def heat_map(title: str, corner: str, columns: Any, rows: list[Any], kind: str = "") -> Markup:
    """A table of rows [name, *cells]. corner: what stands above the names."""
    return scrolling(table([h("td", corner), *columns], rows, title, f"heat {kind}".rstrip()))


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


def vector_map(title: str, logits: Sequence[Sequence[float]], scale: Scale, k: int) -> Markup:
    """A function vector, logits [x][y]: by how much y rises. The cells y = x + k are outlined."""
    rows = []
    for x, of_x in enumerate(logits):
        row: list[Any] = [x]
        for y, value in enumerate(of_x):
            tip = f"input {x}, output {y}: {signed(value, 2)} logits"
            row.append(scale.cell(value, signed(value, 1), tip, y == x + k))
        rows.append(row)
    return heat_map(title, "x \\ y", map(str, range(len(logits[0]))), rows, "vector")


# ---------------------------------------------------------------- SVG


def svg(width: float, height: float, label: str, parts: Any, **look: Any) -> Markup:
    """A picture of this size in px. label: what a screen reader says of it."""
    size = {"viewBox": f"0 0 {width:g} {height:g}", "width": width, "height": height}
    return h("svg", parts, **(size | {"role": "img", "aria_label": label} | look))


def text(
    x: float, y: float, shown: str, class_: str | None = None, at: str | None = None
) -> Markup:
    """Words on a baseline that has (x, y) at its start, or `at` its middle or end."""
    return h("text", shown, x=x, y=y, class_=class_, text_anchor=at)


def rect(x: float, y: float, width: float, height: float, **look: Any) -> Markup:
    """A filled box whose upper left corner is (x, y)."""
    return h("rect", x=x, y=y, width=width, height=height, **look)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    return h("line", x1=x1, x2=x2, y1=y1, y2=y2, class_=class_)


def attention(head: str, pattern: Sequence[Sequence[float]], tokens: Sequence[str]) -> Markup:
    """One head's attention [query][key] on one prompt, its shown answers set off."""
    answers = range(5, len(tokens) - 1, 6)
    left, top, size = 28, 18, 11  # px; size: of a cell
    length = len(tokens) * size
    stairs = f"h{size}v{size}" * len(tokens)
    floor = h("path", d=f"M{left} {top}{stairs}H{left}Z", class_="floor")  # what a token can see
    bands = [rect(left + at * size - 0.5, top, size, length, class_="band") for at in answers]
    cells, row_names, column_names = [], [], []
    for query, token in enumerate(tokens):
        x, y = left + query * size, top + query * size
        for key, share in enumerate(pattern[query][: query + 1]):
            if share >= 0.03:  # less is hardly seen
                tip = f"{token} ({query}) looks at {tokens[key]} ({key}): {percent(share)}"
                look = {"style": f"--v:{100 * share:.0f}%", "class_": "look", "data_tip": tip}
                cells.append(rect(left + key * size, y, size - 1, size - 1, **look))
        word, class_ = token.replace("<bos>", "bos"), "answer" if query in answers else None
        row_names.append(text(left - 5, y + size - 2.5, word, class_, "end"))
        column_names.append(text(x + size / 2, top - 5, word, class_, "middle"))
    parts = [floor, bands, cells, row_names, column_names]
    label = f"Attention of head {head}: rows look at columns"
    return svg(left + length + 4, top + length + 4, label, parts, class_="attention")


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
        grid.append(line(x, top - 4, x, bottom - 4, "grid"))
        grid.append(text(x, bottom + 9, percent(share), "tick", "middle"))
    for index, (name, row) in enumerate(zip(BARS, four)):
        y, where = top + index * step, f"{title}, {name}"
        names.append(text(BARS_LEFT - 8, y + 14, name, at="end"))
        bars.append(bar(y + 2, where, "plain", row["base_acc"], row["n_prompts"]))
        bars.append(bar(y + 11, where, "shifted", row["contrast_acc"], row["n_prompts"]))
        shares = f"{percent(row['base_acc'], 1)} / {percent(row['contrast_acc'], 1)}"
        names.append(text(BARS_LEFT + BARS_WIDTH + 8, y + 14, shares))
    parts = [text(0, 12, title, "title"), grid, names, bars]
    label = f"{title}: shares of plain and shifted answers"
    return svg(BARS_LEFT + BARS_WIDTH + 84, bottom + 16, label, parts, class_="bars")


def bar(y: float, where: str, answer: str, share: float, n: int) -> Markup:
    """The share of n prompts that get an answer, with its 95 % interval over prompts."""
    low, high = wilson(share, n)
    start, end = (f"{BARS_LEFT + BARS_WIDTH * limit:.1f}" for limit in (low, high))
    interval = f"95 % interval {percent(low)} to {percent(high)}"
    tip = f"{where}: {answer} answer on {percent(share, 1)} of {n} prompts ({interval})"
    parts = [
        rect(BARS_LEFT, y, round(max(BARS_WIDTH * share, 1), 1), 8),
        h("path", d=f"M{start} {y + 4}H{end}"),
        rect(BARS_LEFT, y, BARS_WIDTH, 8, class_="hit"),  # all of the row answers to the pointer
    ]
    return h("g", parts, class_=f"{answer}-answer", data_tip=tip)


def curves(
    label: str, measured: Sequence[tuple[str, str, Sequence[tuple[float, float]]]]
) -> Markup:
    """Shares over the steps of training. measured: of each curve its name, the class that colours
    it, and its points (step, share)."""
    left, top, width, height = 52, 34, 420, 220  # px
    bottom, end = top + height, left + width
    last = max(step for *_, points in measured for step, _ in points)
    parts = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = bottom - height * share
        parts.append(line(left, y, end, y, "grid"))
        parts.append(text(left - 8, y + 4, percent(share), "tick", "end"))
    for step in (0, last / 2, last):
        parts.append(text(left + width * step / last, bottom + 18, f"{step:g}", "tick", "middle"))
    parts.append(text(left + width / 2, bottom + 36, "step", "tick", "middle"))
    name_at = spread([(bottom - height * points[-1][1], name) for name, _, points in measured], 13)
    for name, class_, points in measured:
        corners, dots = [], []
        for step, share in points:
            cx, cy = f"{left + width * step / last:.1f}", f"{bottom - height * share:.1f}"
            corners.append(f"{cx},{cy}")
            tip = f"{name}, step {step:g}: {percent(share)}"
            dots.append(h("circle", cx=cx, cy=cy, r=3.5, data_tip=tip))
        drawn = h("polyline", points=" ".join(corners))
        named = text(end + 9, name_at[name] + 4, name)
        parts.append(h("g", drawn, dots, named, class_=f"curve {class_}"))
    return svg(end + 108, bottom + 42, label, parts, class_="curves")


def spread(wanted: Sequence[tuple[float, str]], least: float) -> dict[str, float]:
    """Places near the wanted ones that are at least so far apart, in their order."""
    wanted = sorted(wanted)
    placed = list(accumulate((y for y, _ in wanted), lambda last, y: max(y, last + least)))
    shift = sum(y - place for (y, _), place in zip(wanted, placed)) / max(1, len(placed))
    return {name: place + shift for (_, name), place in zip(wanted, placed)}


# ---------------------------------------------------------------- the circuit as a graph

COLUMNS = ("from", "bring the answers", "function induction", "also write", "answer")
CONTRASTS = {"answers": "shown answers changed", "operands": "operands changed"}
Node = Mapping[str, Any]  # {name, kind, steps, groups} of circuit.json


@dataclass(frozen=True)
class Edge:
    """A sender's strongest effect on a node under one contrast, whichever input it is on."""

    sender: str
    receiver: str
    contrast: str
    r: float = 0.0
    inputs: tuple[str, ...] = ()  # the effect on each input of a head, in words


def merged(graph: Mapping[str, Any]) -> list[Edge]:
    """One edge for each sender, receiver and contrast: that of the largest |r| among the inputs."""
    edges: dict[tuple[str, str, str], Edge] = {}
    for edge in graph["edges"]:
        receiver, which = edge["receiver"], ""
        if receiver[-2:] in (".q", ".k", ".v"):
            receiver, which = receiver[:-2], receiver[-1]
        key = edge["sender"], receiver, edge["contrast"]
        so_far = edges.get(key, Edge(*key))
        inputs = (f"{which} {signed(100 * edge['r'])}",) if which else ()
        edges[key] = Edge(*key, max(so_far.r, edge["r"], key=abs), so_far.inputs + inputs)
    return list(edges.values())


def column_of(node: Node) -> str:
    """Which of COLUMNS a node stands in."""
    if "function_induction" in node["groups"]:
        return "function induction"
    if node["kind"] == "embedding":
        return "from"
    return {0: "answer", 1: "also write", 2: "bring the answers"}.get(node["steps"], "from")


def depth(node: Node) -> float:
    """How far up in the model a node is; an MLP comes after the heads of its layer."""
    if node["kind"] == "head":
        return parse(node["name"])[0]
    return int(node["name"][3:]) + 0.5 if node["kind"] == "mlp" else -1


BOX_WIDTH, BOX_HEIGHT = 92, 30  # px, of a node


def graph_picture(graph: Mapping[str, Any]) -> Markup:
    """The circuit from left to right; graph: that of circuit.json."""
    top, across, down = 58, 240, 46  # px; from one column to the next, and from node to node
    columns: dict[str, list[Node]] = {}
    for node in sorted(graph["nodes"], key=lambda node: (-depth(node), node["name"])):
        if node["kind"] != "together":
            columns.setdefault(column_of(node), []).append(node)
    height = down * max((len(nodes) for nodes in columns.values()), default=0)
    places: dict[str, tuple[float, float]] = {}  # the upper left corners
    names, boxes, lines = [], [], []
    for index, name in enumerate(sorted(columns, key=COLUMNS.index)):
        x, nodes = index * across + 8, columns[name]
        names.append(text(x + BOX_WIDTH / 2, 22, name, "column", "middle"))
        y = top + (height - len(nodes) * down) / 2
        for row, node in enumerate(nodes):
            places[node["name"]] = (x, y + row * down)
            boxes.append(box(node, x, y + row * down))
    for edge in sorted(merged(graph), key=lambda edge: -abs(edge.r)):
        start, end = places.get(edge.sender), places.get(edge.receiver)
        twice = edge.receiver == "logits" and edge.contrast != "answers"
        if start and end and start[0] < end[0] and not twice:
            lines.append(connection(edge, start, end))
    label = "The circuit: which nodes write to which"
    width = (len(columns) - 1) * across + BOX_WIDTH + 16
    parts = [names, lines, boxes]
    return svg(width, top + height + 10, label, parts, class_="graph", role="group")


def connection(edge: Edge, start: tuple[float, float], end: tuple[float, float]) -> Markup:
    """An edge between two boxes: as wide as |r|, dashed where r > 0, coloured by contrast."""
    class_, aside = f"by-{edge.contrast}", -3 if edge.contrast == "answers" else 3
    if edge.receiver == "logits":
        class_, aside = "to-logits", 0  # else aside, so that the two routes don't hide each other
    x1, x2 = start[0] + BOX_WIDTH, end[0]
    y1, y2 = (y + BOX_HEIGHT / 2 + aside for _, y in (start, end))
    middle = (x1 + x2) / 2
    via = f" ({', '.join(edge.inputs)})" if edge.inputs else ""
    effect = f"r = {signed(100 * edge.r, 1)} %, {CONTRASTS.get(edge.contrast, edge.contrast)}"
    return h(
        "path",
        d=f"M{x1:g} {y1:g}C{middle:g} {y1:g} {middle:g} {y2:g} {x2:g} {y2:g}",
        stroke_width=f"{max(1.2, 18 * min(1.0, abs(edge.r))):.1f}",
        class_=f"edge {class_}" + " positive" * (edge.r > 0),
        data_tip=f"{edge.sender} → {edge.receiver}{via}: {effect}",
    )


def box(node: Node, x: float, y: float) -> Markup:
    """A node; that of a head leads to its row of the table."""
    name, groups = node["name"], node["groups"]
    tip = f"{name}: {', '.join(map(words, groups)) or node['kind']}"
    parts = [rect(x, y, BOX_WIDTH, BOX_HEIGHT, rx=8)]
    parts.append(text(x + BOX_WIDTH / 2, y + 20, name, at="middle"))
    look = {"class_": " ".join(["node", *(groups or [node["kind"]])]), "data_tip": tip}
    if node["kind"] == "head":
        return h("a", parts, href=f"#head-{name}", aria_label=tip, **look)
    return h("g", parts, **look)
