"""HTML and SVG as nested calls: `h("p", "1 < 2", class_="note")` → `<p class="note">1 &lt; 2</p>`.

Whatever is not `Markup` is escaped, so text from a run's files cannot become markup.
Nothing else in this package writes a tag.
"""

import json
from collections.abc import Iterable
from html import escape
from typing import Any

EMPTY = {"meta", "input"}  # HTML elements that have no end tag
SHAPES = {"rect", "line", "path"}  # SVG elements without content


class Markup(str):
    """Text that is HTML already."""


def h(tag: str, *children: Any, **attributes: Any) -> Markup:
    """One element.

    Children: Markup as it is, other values escaped, lists flattened, None and False left out.
    Attributes: None and False leave one out, True gives a bare one. A last underscore goes, others
    become dashes."""
    written = "".join(attribute(name, value) for name, value in attributes.items())
    if tag in SHAPES:
        return Markup(f"<{tag}{written}/>")
    return Markup(f"<{tag}{written}>" + ("" if tag in EMPTY else f"{inside(children)}</{tag}>"))


def attribute(name: str, value: Any) -> str:
    """One attribute, with a space before it; see `h`."""
    name = name.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    if isinstance(value, float):
        value = f"{value:g}"
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'


def inside(children: Any) -> Markup:
    """What stands between two tags."""
    if children is None or children is False:
        return Markup("")
    if isinstance(children, (list, tuple)):
        return Markup("".join(inside(child) for child in children))
    return children if isinstance(children, Markup) else Markup(escape(str(children)))


def script_data(name: str, value: Any) -> Markup:
    """A value as JSON for the scripts of the page; no text in it can end the element."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    text = text.translate({ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&"})
    return h("script", Markup(text), type="application/json", id=name)


def table(columns: Iterable[Any], rows: Iterable[list[Any]], caption: str, class_: str) -> Markup:
    """A table; the first cell of a row names it. Cells that are Markup stand as they are."""

    def cells(values: Iterable[Any], tag: str, scope: str | None = None) -> list[Markup]:
        return [x if isinstance(x, Markup) else h(tag, x, scope=scope) for x in values]

    head = h("thead", h("tr", cells(columns, "th", "col")))
    body = [h("tr", h("th", name, scope="row"), cells(values, "td")) for name, *values in rows]
    return h("table", h("caption", caption), head, h("tbody", body), class_=class_)


def scrolling(content: Markup, **attributes: Any) -> Markup:
    """Content in a box that scrolls where the page is narrow."""
    return h("div", content, class_="scroll", **attributes)


def details(summary: str, *children: Any, **attributes: Any) -> Markup:
    """Children that are folded away behind one line."""
    return h("details", h("summary", summary), *children, **attributes)


def percent(share: float, digits: int = 0) -> str:
    """`98 %`; a typographic minus, and no minus before a zero."""
    text = f"{100 * share:.{digits}f}"
    return text.replace("-", "−" if float(text) else "") + " %"


def signed(value: float, digits: int = 0) -> str:
    """`−45` or `+3`; plain `0`."""
    text = f"{value:+.{digits}f}"
    return text.replace("-", "−") if float(text) else text[1:]
