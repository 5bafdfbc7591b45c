"""What the words of a report mean; where one is met, it tells that on hover, focus and tap."""

import re
from typing import Any

from minifunc.report.html import Markup, h

GLOSSARY = {  # term → what it means
    "shot": "An example that the prompt shows before it asks: “1 + 1 = 3” is one shot.",
    "base": "The base prompt shows plain examples, such as 1 + 1 = 2. It teaches the old rule.",
    "contrast": "The contrast prompt shows the same examples by the new rule, such as 1 + 1 = 3.",
    "head": "An attention head: a small part of the model that looks back at earlier tokens and "
    "hands on what it finds there. Head 3.1 is number 1 in layer 3, both counted from 0.",
    "logit": "The score that the model gives a possible answer. The highest one is its answer.",
    "F": "The logit of the plain answer minus that of the new rule’s. Above 0 it answers plainly.",
    "r": "How far the answer moves when one path is swapped: (F patched − F contrast) / (F contrast"
    " − F base). −100 %: all the way back to the plain answer. 0: not at all.",
    "direct path": "From a sender to a receiver, with no other head in between.",
    "swap": "A head sends what it sends on the base prompt, in place of what it would send here. "
    "If the answer falls back to the old rule, the head carried the new one.",
    "ablation": "Putting something else in place of what a head sends; a swap is one kind.",
    "FI head": "A function-induction head: at the last = it looks back at the shown answers, and "
    "its direct path moves the answer from the old rule to the new one.",
    "faithfulness": "How much of the model’s F these heads give alone, while all other heads send "
    "what they send on the base prompt. 1: all of it. 0: nothing.",
    "R²": "How well a forecast meets the answers. 1: exactly. 0: no better than their mean. "
    "Below 0: worse than that.",
}


def term(name: str, shown: str) -> Markup:
    """A word that can be asked what it means."""
    look = {"class_": "term", "tabindex": "0", "data_tip": GLOSSARY[name]}
    return h("span", shown, aria_describedby=place_of(name), **look)


def place_of(name: str) -> str:
    """The id of a term's meaning in the list at the end of the page."""
    return "means-" + name.replace(" ", "-")


def glossed(text: str) -> list[Any]:
    """Text in which `[r]`, or `[patched|swap]` in other words, tells what it means."""
    parts = re.split(r"\[([^]]*)\]", text)
    for at in range(1, len(parts), 2):
        shown, _, name = parts[at].partition("|")
        name = name or shown
        parts[at] = term(name, shown) if name in GLOSSARY else f"[{parts[at]}]"
    return parts
