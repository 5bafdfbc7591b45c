"""HTML and SVG as nested calls: `h("p", "1 < 2", class_="note")` → `<p class="note">1 &lt; 2</p>`.

Whatever is not `Markup` is escaped, so text from a run's files cannot become markup. Nothing else in this package writes a tag.
"""

import json
from html import escape
from typing import Any

VOID = {
    "meta",
    "input",
    "br",
    "rect",
    "line",
    "circle",
    "path",
    "polyline",
    "stop",
}  # without an end tag here


class Markup(str):
    """Text that is HTML already."""


def h(tag: str, *children: Any, **attributes: Any) -> Markup:
    """One element. Children: Markup as it is, other values escaped, lists flattened, None and False left out.

    Attributes: `class_` and `for_` lose their last underscore, inner ones become dashes; None and False leave one out, True gives a bare one.
    """
    parts = []
    for name, value in attributes.items():
        name = name.rstrip("_").replace("_", "-")
        parts += (
            []
            if value is None or value is False
            else [f" {name}"]
            if value is True
            else [f' {name}="{escape(str(value))}"']
        )
    opened = f"<{tag}{''.join(parts)}>"
    return Markup(
        opened
        if tag in VOID and tag in ("meta", "input", "br")
        else f"{opened[:-1]}/>"
        if tag in VOID
        else f"{opened}{inside(children)}</{tag}>"
    )


def inside(children: Any) -> Markup:
    """What stands between two tags."""
    if children is None or children is False:
        return Markup("")
    if isinstance(children, (list, tuple)):
        return Markup("".join(inside(child) for child in children))
    return children if isinstance(children, Markup) else Markup(escape(str(children)))


def script_data(name: str, value: Any) -> Markup:
    """A value as JSON that scripts of the page read; `<` is written \\u003c, so that no text in it can end the element."""
    text = (
        json.dumps(value, ensure_ascii=True, separators=(",", ":"))
        .replace("<", "\\u003c")
        .replace(">", "\\u003e")
        .replace("&", "\\u0026")
    )
    return Markup(f'<script type="application/json" id="{escape(name)}">{text}</script>')


def table(columns: list[Any], rows: list[list[Any]], caption: str, numbers: bool = True) -> Markup:
    """A table that can be copied; the first cell of a row names it. numbers: align all other cells to the right."""
    head = h("thead", h("tr", [h("th", name, scope="col") for name in columns]))
    body = h(
        "tbody",
        [
            h("tr", h("th", row[0], scope="row"), [h("td", cell) for cell in row[1:]])
            for row in rows
        ],
    )
    return h(
        "div",
        h(
            "table",
            h("caption", caption),
            head,
            body,
            class_="plain numbers" if numbers else "plain",
        ),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label=caption,
    )


def details(summary: str, *children: Any) -> Markup:
    return h("details", h("summary", summary), *children)


def percent(share: float, digits: int = 0) -> str:
    """`98 %`; a typographic minus, and no minus before a zero."""
    text = f"{100 * share:.{digits}f}"
    return text.replace("-", "−" if float(text) else "") + " %"


def signed(value: float, digits: int = 0) -> str:
    """`−45` or `+3`; plain `0`."""
    text = f"{value:+.{digits}f}"
    return text.replace("-", "−") if float(text) else text[1:]
