"""Every table of the README's "Where it comes from" is what results/*.json says."""

import json
import re
import statistics
from pathlib import Path

import pytest

from experiments import diets, emergence
from experiments.runs import by, in_words

ROOT = Path(__file__).parent.parent
SECTION = re.search(r"^## Where it comes from\n(.*?)^## ", (ROOT / "README.md").read_text(), flags=re.M | re.S)[1]


def results(name):
    return json.loads((ROOT / f"results/{name}.json").read_text())


def table(head):
    """The rows under the header row that begins so: {first cell: the others}, without marks of emphasis and code."""
    lines = SECTION[SECTION.index(f"\n| {head}") + 1 :].split("\n\n")[0].splitlines()
    cells = [[cell.strip().replace("*", "").replace("`", "") for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in (cells[0], *cells[2:])}


def words(values, digits=2):
    """`.96 ± .04`, as the README writes it."""
    return re.sub(r"\b0\.", ".", in_words(values, digits))


def test_dependability_by_k():
    rows, shown = results("dependability"), table("k |")
    assert len(rows) == 10
    for place, k in enumerate(cell.replace("−", "-") for cell in shown["k"]):
        shares = [row["off_by_k_8"][str(int(k))] for row in rows]
        assert shown["mean of ten seeds"][place] == f"{sum(shares) / len(shares):.3f}"[1:]
        assert shown["worst seed"][place] == f"{min(shares):.3f}"[1:]


EVENTS = {
    "attention of the best head from the last = to the earlier answers (FI score)": "FI score of the best head",
    "the same, of the heads that are FI in the end": "FI score of the finished model's FI heads",
    "the loss falls": "loss falls",
    "copy-induction score of the best head (repeated documents)": "copy-induction score of the best head",
    "shifted subtraction": "shifted subtraction",
    "Caesar's cipher": "Caesar's cipher",
    "off-by-one addition, never shown": "off-by-one addition (never shown)",
    "plain addition": "plain addition",
    "previous-token score of the best head": "PT score of the best head",
    "repeated documents": "copying what is repeated",
    "direct effect of the strongest FI head, in logits": "effect of the strongest FI head",
}


@pytest.mark.parametrize("event", EVENTS)
def test_the_order_of_events(event):
    seeds = [some for _, some in by(results("emergence"), lambda row: str(row["seed"]))]
    steps = [emergence.event_step(some, emergence.EVENTS[EVENTS[event]]) for some in seeds]
    assert len(steps) == 3 and all(len(some) == 48 for some in seeds)
    assert table("event |")[event] == [str(statistics.median(steps)), f"{min(steps)} … {max(steps)}"]


DIETS = {
    "the default without relabelling": "no_relabel",
    "… without mixed documents": "no_mixed",
    "… without copied documents": "no_copy",
    "+ met plain alone, the other functions under everything": "plus_plain",
    "the cell (+, +1) alone held out: + seen with every other k": "held_out_cell",
    "every k > 0 on + held out": "held_out_half",
}


@pytest.mark.parametrize("diet", table("diet |"))
def test_diets(diet):
    shown, grouped = table("diet |")[diet], dict(by(results("diets"), lambda row: row["diet"]))
    if diet == "diet":
        return
    rows = grouped[DIETS.get(diet, diet.split(":")[0])]
    given = [words(diets.column(rows, "plain_8")), words(diets.column(rows, "off_by_one_8")), words(diets.mean_of_k(rows, unseen=True))]
    assert len(rows) == 3
    for cell, figure in zip(shown, given):
        assert cell in ("", figure, figure.split(" ± ")[0]), figure
    heads = [value for value in diets.column(rows, "fi_heads") if value is not None]
    assert shown[3] in ("", f"{sum(heads) / len(heads):.1f}".removesuffix(".0"), f"{sum(heads) / len(heads):.1f}")
