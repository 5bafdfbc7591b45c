"""The pictures of a report: tables that are heat maps, and SVG drawn by hand. Colours are named in style.css alone.

Everything that carries a number has it in `data-tip`, which page.js shows on hover, focus and touch, and once more in a table.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from minifunc.support.evaluation import wilson
from minifunc.circuit import parse
from minifunc.report.html import Markup, h, percent, signed

# ---------------------------------------------------------------- heat maps


def shade(value: float, most: float, root: bool = False) -> dict[str, str]:
    """Class and style of a cell on the diverging scale from -most to most, centred on 0; root: on the scale of square roots."""
    size = min(1.0, abs(value) / most) if most else 0.0
    size = math.sqrt(size) if root else size
    return {
        "class_": ("neg" if value < 0 else "pos") + " strong" * (size > 0.62),
        "style": f"--v:{100 * size:.0f}%",
    }


def heat_map(
    title: str,
    rows: Sequence[tuple[str, Sequence[float | None]]],
    columns: Sequence[str],
    most: float,
    show: Callable[[float], str],
    tip: Callable[[str, str, float], str],
    root: bool = False,
    corner: str = "",
    marked: Callable[[str, str], bool] = lambda row, column: False,
    kind: str = "heat",
) -> Markup:
    """A table whose cells are coloured; None is an empty cell. tip(row, column, value): what is said of a cell. marked: cells to outline."""

    def cell(row: str, column: str, value: float | None) -> Markup:
        if value is None:
            return h("td", class_="empty")
        look, shown = shade(value, most, root), show(value)
        look["class_"] += " marked" * marked(row, column) + " zero" * (shown == "0")
        return h("td", shown, data_tip=tip(row, column, value), tabindex="-1", **look)

    head = h(
        "thead", h("tr", h("td", corner), [h("th", column, scope="col") for column in columns])
    )
    body = h(
        "tbody",
        [
            h(
                "tr",
                h("th", name, scope="row"),
                [cell(name, column, value) for column, value in zip(columns, values)],
            )
            for name, values in rows
        ],
    )
    return h("div", h("table", h("caption", title), head, body, class_=kind), class_="scroll")


def legend(most: float, unit: str, root: bool, low: str, high: str) -> Markup:
    """The scale of `shade`, with the meaning of its two ends."""
    steps = (
        [-1, -0.5, -0.25, -0.05, 0, 0.05, 0.25, 0.5, 1]
        if root
        else [-1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1]
    )
    digits = 0 if most >= 10 else 1
    swatches = [h("span", signed(step * most, digits), **shade(step, 1, root)) for step in steps]
    return h(
        "p",
        h("span", low),
        h("span", swatches, class_="scale"),
        h("span", f"{unit}, {high}"),
        class_="legend",
    )


def effects_map(
    title: str, effects: Mapping[str, Any], what: str, marked: Sequence[str] = ()
) -> Markup:
    """r of every sender on one receiver: a row per layer, the last one on top, with its MLP; the embedding below."""
    heads, mlps = effects["heads"], effects["mlps"]
    columns = [f"h{index}" for index in range(len(heads[0]))] + ["mlp"]
    rows: list[tuple[str, Sequence[float | None]]] = [
        (str(layer), [*map(float, row), float(mlps[layer])])
        for layer, row in reversed(list(enumerate(heads)))
    ]
    rows += [("embed", [float(effects["embedding"])])]

    def name(row: str, column: str) -> str:
        return (
            "embedding"
            if row == "embed"
            else f"mlp{row}"
            if column == "mlp"
            else f"{row}.{column[1:]}"
        )

    def tip(row: str, column: str, r: float) -> str:
        return f"{name(row, column)} → {what}: r = {signed(100 * r, 1)} %"

    return heat_map(
        title,
        rows,
        columns,
        1.0,
        lambda r: signed(100 * r),
        tip,
        root=True,
        corner="layer",
        marked=lambda row, column: name(row, column) in marked,
    )


def vector_map(title: str, rows: Sequence[Sequence[float]], most: float, k: int) -> Markup:
    """A function vector: row x, column y, how much logit(y) rises; the cells y = x + k are outlined."""
    columns = [str(y) for y in range(len(rows[0]))]
    named = [(str(x), [float(value) for value in row]) for x, row in enumerate(rows)]
    return heat_map(
        title,
        named,
        columns,
        most,
        lambda value: signed(value, 1),
        lambda x, y, value: f"input {x}, output {y}: {signed(value, 2)} logits",
        corner="x \\ y",
        marked=lambda x, y: int(y) == int(x) + k,
        kind="heat vector",
    )


# ---------------------------------------------------------------- SVG


def svg(width: float, height: float, label: str, *children: Any, **attributes: Any) -> Markup:
    return h(
        "svg",
        *children,
        **{
            "viewBox": f"0 0 {width:g} {height:g}",
            "width": f"{width:g}",
            "height": f"{height:g}",
            "role": "img",
            "aria_label": label,
        }
        | attributes,
    )


def text(
    x: float, y: float, words: Any, class_: str = "", anchor: str = "start", **attributes: Any
) -> Markup:
    return h(
        "text",
        words,
        x=f"{x:g}",
        y=f"{y:g}",
        class_=class_ or None,
        text_anchor=anchor if anchor != "start" else None,
        **attributes,
    )


def shorter(token: str) -> str:
    return "bos" if token == "<bos>" else token


def attention(
    head: str,
    pattern: Sequence[Sequence[float]],
    tokens: Sequence[str],
    answers: Sequence[int],
    size: int = 11,
) -> Markup:
    """One head's attention on one prompt: a row per query token, a column per key token; shown answers are set off."""
    left, top, n = 28, 18, len(tokens)
    cells = []
    for query, row in enumerate(pattern):
        for key, share in enumerate(row[: query + 1]):
            if share >= 0.03:
                cells.append(
                    h(
                        "rect",
                        x=left + key * size,
                        y=top + query * size,
                        width=size - 1,
                        height=size - 1,
                        style=f"--v:{100 * min(1.0, share):.0f}%",
                        class_="look",
                        data_tip=f"{tokens[query]} ({query}) looks at {tokens[key]} ({key}): {percent(share)}",
                    )
                )
    names = [
        text(
            left - 5,
            top + at * size + size - 2.5,
            shorter(token),
            "answer" if at in answers else "",
            "end",
        )
        for at, token in enumerate(tokens)
    ]
    names += [
        text(
            left + at * size + size / 2,
            top - 5,
            shorter(token),
            "answer" if at in answers else "",
            "middle",
        )
        for at, token in enumerate(tokens)
    ]
    bands = [
        h("rect", x=left + at * size - 0.5, y=top, width=size, height=n * size, class_="band")
        for at in answers
    ]
    steps = "".join(f"h{size}v{size}" for _ in tokens)
    seen = h("path", d=f"M{left} {top}{steps}H{left}Z", class_="floor")  # what a token can see
    return svg(
        left + n * size + 4,
        top + n * size + 4,
        f"Attention of head {head}: rows look at columns",
        seen,
        bands,
        cells,
        names,
        class_="attention",
    )


BARS = {
    ("base", "none"): "old rule shown",
    ("contrast", "none"): "new rule shown",
    ("contrast", "function_induction"): "… FI heads swapped",
    ("contrast", "random_same_layers"): "… others swapped",
}


def four_bars(title: str, rows: Mapping[tuple[str, str], Mapping[str, Any]]) -> Markup:
    """Shares of plain and shifted answers in four settings, with 95 % intervals over prompts."""
    left, width, step, top = 132, 186, 30, 24
    parts: list[Any] = [text(0, 12, title, "title")]
    parts += [
        [
            h(
                "line",
                x1=left + width * at,
                x2=left + width * at,
                y1=top - 4,
                y2=top + 4 * step - 4,
                class_="grid",
            ),
            text(left + width * at, top + 4 * step + 9, percent(at), "tick", "middle"),
        ]
        for at in (0, 0.5, 1)
    ]
    for index, (key, name) in enumerate(BARS.items()):
        y = top + index * step
        parts.append(text(left - 8, y + 14, name, "", "end"))
        if key not in rows:
            continue
        n = int(rows[key]["n_prompts"])
        for offset, (answer, which) in enumerate(
            (("base_acc", "plain answer"), ("contrast_acc", "shifted answer"))
        ):
            share = float(rows[key][answer])
            low, high = wilson(share, n)
            bar_y = y + 2 + offset * 9
            tip = f"{title}, {name}: {which} on {percent(share)} of {n} prompts (95 % interval {percent(low)} to {percent(high)})"
            whisker = f"M{left + width * low:.1f} {bar_y + 4}H{left + width * high:.1f}"
            parts.append(
                h(
                    "g",
                    h("rect", x=left, y=bar_y, width=f"{max(width * share, 1):.1f}", height=8),
                    h("path", d=whisker),
                    h("rect", x=left, y=bar_y, width=width, height=8, class_="hit"),
                    class_=which.replace(" ", "-"),
                    data_tip=tip,
                )
            )
    return svg(
        left + width + 22,
        top + 4 * step + 16,
        f"{title}: shares of plain and shifted answers",
        parts,
        class_="bars",
    )


def curves(
    label: str,
    series: Sequence[tuple[str, str, Sequence[tuple[float, float]]]],
    ticks: Sequence[tuple[float, str]],
    y_ticks: Sequence[tuple[float, str]],
    x_name: str,
    tip: Callable[[str, float, float], str],
    log_x: bool = False,
    log_y: bool = False,
    moments: Sequence[tuple[float, str]] = (),
) -> Markup:
    """Lines of (name, class, [(x, y), …]), named at their right end; moments: upright lines with a name."""
    left, right, top, width, height = 52, 108, 22 + 14 * len(moments), 420, 220
    across, up = (math.log if log_x else float), (math.log if log_y else float)
    xs = [across(x) for x, _ in ticks] + [across(x) for _, _, points in series for x, _ in points]
    ys = [up(y) for y, _ in y_ticks] + [up(y) for _, _, points in series for _, y in points]
    low_x, wide, low_y, tall = (
        min(xs),
        (max(xs) - min(xs)) or 1.0,
        min(ys),
        (max(ys) - min(ys)) or 1.0,
    )

    def place(x: float, y: float) -> tuple[float, float]:
        return left + width * (across(x) - low_x) / wide, top + height * (
            1 - (up(y) - low_y) / tall
        )

    parts: list[Any] = []
    for y, name in y_ticks:
        parts += [
            h(
                "line",
                x1=left,
                x2=left + width,
                y1=f"{place(ticks[0][0], y)[1]:.1f}",
                y2=f"{place(ticks[0][0], y)[1]:.1f}",
                class_="grid",
            ),
            text(left - 8, place(ticks[0][0], y)[1] + 4, name, "tick", "end"),
        ]
    parts += [
        text(round(place(x, y_ticks[0][0])[0], 1), top + height + 18, name, "tick", "middle")
        for x, name in ticks
    ]
    parts.append(text(left + width / 2, top + height + 36, x_name, "tick", "middle"))
    for index, (x, name) in enumerate(moments):
        at = round(place(x, y_ticks[0][0])[0], 1)
        parts += [
            h("line", x1=at, x2=at, y1=14 * index + 12, y2=top + height, class_="moment"),
            text(at + 4, 14 * index + 14, name, "tick"),
        ]
    ends = spread([(place(*points[-1])[1], name) for name, _, points in series if points], 13)
    for name, class_, points in series:
        if not points:
            continue
        placed = [place(x, y) for x, y in points]
        dots = [
            h("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=3.5, data_tip=tip(name, *point))
            for (x, y), point in zip(placed, points)
        ]
        parts.append(
            h(
                "g",
                h("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in placed)),
                dots,
                text(left + width + 9, ends[name] + 4, name),
                class_=f"curve {class_}",
            )
        )
    return svg(left + width + right, top + height + 42, label, parts, class_="curves")


def spread(wanted: Sequence[tuple[float, str]], least: float) -> dict[str, float]:
    """Places near the wanted ones that are at least so far apart, in their order."""
    placed: list[tuple[float, str]] = []
    for y, name in sorted(wanted):
        placed.append((max(y, placed[-1][0] + least) if placed else y, name))
    shift = (
        sum(y for y, _ in sorted(wanted)) / len(wanted) - sum(y for y, _ in placed) / len(placed)
        if placed
        else 0.0
    )
    return {name: y + shift for y, name in placed}


# ---------------------------------------------------------------- the circuit as a graph

COLUMNS = ("from", "bring the answers", "function induction", "also write", "answer")
KINDS = (
    "function_induction",
    "consolidation",
    "previous_token",
    "expected_answer",
    "shown_answer",
    "other_direct",
    "upstream",
)  # the first that fits colours a node


def kind_of(node: Mapping[str, Any]) -> str:
    return next((group for group in KINDS if group in node["groups"]), str(node["kind"]))


def column_of(node: Mapping[str, Any]) -> int:
    if node["kind"] == "logits":
        return 4
    if node["kind"] == "embedding":
        return 0
    if "function_induction" in node["groups"]:
        return 2
    return {1: 3, 2: 1}.get(int(node["steps"]), 0)


def merged(graph: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One edge for each sender, receiver and contrast: the largest |r| among the receiver's inputs, all of which `inputs` names."""
    edges: dict[tuple[str, str, str], dict[str, Any]] = {}
    for edge in graph["edges"]:
        node, _, which = (
            str(edge["receiver"]).rpartition(".")
            if str(edge["receiver"])[-2:] in (".q", ".k", ".v")
            else (str(edge["receiver"]), "", "")
        )
        one = edges.setdefault(
            (str(edge["sender"]), node, str(edge["contrast"])),
            {
                "sender": str(edge["sender"]),
                "receiver": node,
                "contrast": str(edge["contrast"]),
                "r": 0.0,
                "inputs": [],
            },
        )
        one["r"] = max(one["r"], float(edge["r"]), key=abs)
        one["inputs"] += [f"{which} {signed(100 * float(edge['r']))}"] if which else []
    return list(edges.values())


def graph_picture(graph: Mapping[str, Any]) -> Markup:
    """The circuit from left to right; an edge is as wide as |r|, dashed where r > 0, and coloured by the contrast under which it shows."""
    gap, step, top, wide, tall = 240, 46, 58, 92, 30
    columns: list[list[Mapping[str, Any]]] = [[], [], [], [], []]
    for node in graph["nodes"]:
        if node["kind"] != "together":
            columns[column_of(node)].append(node)
    edges = merged(graph)
    for column in columns:
        column.sort(
            key=lambda node: (
                -(
                    parse(node["name"])[0]
                    if node["kind"] == "head"
                    else int(node["name"][3:]) + 0.5
                    if node["kind"] == "mlp"
                    else -1
                ),
                str(node["name"]),
            )
        )
    used = [place for place in range(5) if columns[place]]
    height = top + max(map(len, columns)) * step + 10
    at = {}
    for x, place in enumerate(used):
        start = top + (height - top - 10 - len(columns[place]) * step) / 2
        for y, node in enumerate(columns[place]):
            at[str(node["name"])] = (x * gap + 8.0, start + y * step, x)
    parts: list[Any] = [
        text(x * gap + 8 + wide / 2, 22, COLUMNS[place], "column", "middle")
        for x, place in enumerate(used)
    ]
    drawn = [
        edge
        for edge in edges
        if edge["sender"] in at
        and edge["receiver"] in at
        and at[edge["sender"]][2] < at[edge["receiver"]][2]
        and not (edge["receiver"] == "logits" and edge["contrast"] != "answers")
    ]
    for edge in sorted(drawn, key=lambda edge: -abs(edge["r"])):
        (x1, y1, _), (x2, y2, _) = at[edge["sender"]], at[edge["receiver"]]
        aside = {"answers": -3, "operands": 3}.get(edge["contrast"], 0) * (
            edge["receiver"] != "logits"
        )  # so that the two routes don't hide each other
        x1, y1, y2 = x1 + wide, y1 + tall / 2 + aside, y2 + tall / 2 + aside
        bend = (x2 - x1) * 0.5
        via = f" ({', '.join(edge['inputs'])})" if edge["inputs"] else ""
        changed = "shown answers changed" if edge["contrast"] == "answers" else "operands changed"
        tip = f"{edge['sender']} → {edge['receiver']}{via}: r = {signed(100 * edge['r'], 1)} %, {changed}"
        kind = (
            "to-logits"
            if edge["receiver"] == "logits"
            else f"by-{'answers' if edge['contrast'] == 'answers' else 'operands'}"
        )
        parts.append(
            h(
                "path",
                d=f"M{x1:g} {y1:g}C{x1 + bend:g} {y1:g} {x2 - bend:g} {y2:g} {x2:g} {y2:g}",
                stroke_width=f"{max(1.2, 18 * min(1.0, abs(edge['r']))):.1f}",
                class_=f"edge {kind}" + " positive" * (edge["r"] > 0),
                data_tip=tip,
            )
        )
    for column in columns:
        for node in column:
            name = str(node["name"])
            x1, y1, _ = at[name]
            box = [
                h("rect", x=f"{x1:g}", y=f"{y1:g}", width=wide, height=tall, rx=8),
                text(x1 + wide / 2, y1 + 20, name, "", "middle"),
            ]
            tip = f"{name}: {', '.join(str(group).replace('_', ' ') for group in node['groups']) or node['kind']}"
            look = {"class_": f"node {kind_of(node)}", "data_tip": tip}
            parts.append(
                h("a", box, href=f"#head-{name}", aria_label=tip, **look)
                if node["kind"] == "head"
                else h("g", box, **look)
            )
    width = (len(used) - 1) * gap + wide + 16
    return svg(
        width,
        height,
        "The circuit: which nodes write to which",
        parts,
        class_="graph",
        role="group",
    )
