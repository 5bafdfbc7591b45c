"""What the words of a report mean, told where they are met on hover, focus and tap."""

import re
from typing import Any

from minifunc.report.html import h

GLOSSARY = {  # term → what it means
    "shot": "An example that the prompt shows before it asks: “1 + 1 = 3” is one shot.",
    "base": "The base prompt shows plain examples, 1 + 1 = 2. It teaches the old rule.",
    "contrast": "The contrast prompt shows the same examples by the new rule, 1 + 1 = 3.",
    "head": "An attention head: a small part of the model that looks back at earlier tokens and "
    "hands on what it finds there. Head 3.1 is number 1 in layer 3, both counted from 0.",
    "logit": "The score that the model gives a possible answer. The highest one is its answer.",
    "F": "The logit of the plain answer minus that of the new rule’s. Above 0 it answers plainly.",
    "r": "How far the answer moves when one path is swapped: (F patched − F contrast) / (F contrast"
    " − F base). −100 %: all the way back to the plain answer. 0: not at all.",
    "direct path": "From a sender to a receiver, with no other head in between.",
    "swap": "A swap, or ablation, puts what a head sends on the base prompt in place of what it "
    "sends here. If the answer falls back to the plain one, the other came through this head.",
    "FI head": "A function-induction head: at the last = it looks back at the shown answers, and "
    "its direct path moves the answer from the old rule to the new one.",
    "faithfulness": "How much of the model’s F these heads give alone, while all other heads send "
    "what they send on the base prompt. 1: all of it. 0: nothing.",
    "R²": "1: the forecast fits exactly. 0: as well as always guessing the mean. Below 0: worse.",
}
PLACES = {name: f"means-{name.replace(' ', '-')}" for name in GLOSSARY}  # ids in the list of terms


def glossed(text: str) -> list[Any]:
    """Text in which `[r]`, or `[swapped|swap]` in other words, tells what it means."""
    parts: list[Any] = re.split(r"\[([^]]*)\]", text)
    for at in range(1, len(parts), 2):
        name, shown = parts[at].split("|")[-1], parts[at].split("|")[0]
        look = {"data_tip": GLOSSARY.get(name), "aria_describedby": PLACES.get(name)}
        parts[at] = h("span", shown, class_="term", tabindex="0", **look)
    return parts
