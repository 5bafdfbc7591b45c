"""Every table of the README's "Where it comes from" is what results/*.json says."""

import json
import re
import statistics
from pathlib import Path

import pytest

from experiments import diets, emergence
from experiments.summary import by, in_words

ROOT = Path(__file__).parent.parent
SECTION = re.search(
    r"^## Where it comes from\n(.*?)^## ", (ROOT / "README.md").read_text(), flags=re.M | re.S
)[1]


def results(name):
    return json.loads((ROOT / f"results/{name}.json").read_text())


def table(head):
    """The rows under the header row that begins so: {first cell: the others}, without marks of emphasis and code."""
    lines = SECTION[SECTION.index(f"\n| {head}") + 1 :].split("\n\n")[0].splitlines()
    cells = [
        [cell.strip().replace("*", "").replace("`", "") for cell in line.strip("|").split("|")]
        for line in lines
    ]
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
    assert table("event |")[event] == [
        str(statistics.median(steps)),
        f"{min(steps)} … {max(steps)}",
    ]


DIETS = {
    "strict without relabelling": "no_relabel",
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
    given = [
        words(diets.column(rows, "plain_8")),
        words(diets.column(rows, "off_by_one_8")),
        words(diets.mean_of_k(rows, unseen=True)),
    ]
    assert len(rows) == 3
    for cell, figure in zip(shown, given):
        assert cell in ("", figure, figure.split(" ± ")[0]), figure
    heads = [value for value in diets.column(rows, "fi_heads") if value is not None]
    assert shown[3] in (
        "",
        f"{sum(heads) / len(heads):.1f}".removesuffix(".0"),
        f"{sum(heads) / len(heads):.1f}",
    )


MODELS = {"the default": "default", "1 head a layer": "1_head", "no MLPs": "attention_only"}


@pytest.mark.parametrize("model", table("model |"))
def test_universality(model):
    shown, grouped = (
        table("model |")[model],
        dict(by(results("universality"), lambda row: row["config"]["name"])),
    )
    if model == "model":
        assert len(table("model |")) == len(grouped) + 1
        return
    name, _, longer = re.sub(r" \(.*\)", "", model).partition(", 1750")
    rows = grouped[MODELS.get(name, name.replace(" ", "_")) + "_longer" * bool(longer)]
    good = [row for row in rows if row["off_by_one_8"] >= 0.5]
    assert len(rows) >= 3 and shown[:3] == [
        f"{len(good)} of {len(rows)}",
        words(diets.column(rows, "plain_8")),
        words(diets.column(rows, "off_by_one_8")),
    ]
    if good:
        layers = sorted({int(head.split(".")[0]) for row in good for head in row["fi_heads"]})
        heads = [
            words(diets.column(good, key), 1).split(" ± ")[0] for key in ("fi_heads", "pt_heads")
        ]
        assert shown[3:] == [f"{heads[0]} ({', '.join(map(str, layers))})", heads[1]]
    else:
        assert shown[3:] == ["", ""]


KEPT = {
    "nothing": "none",
    "previous-token heads": "no_previous_token",
    "ordinary induction heads": "no_copy_induction",
    "as many heads of the same layers, at random": "random_heads",
    "block 0, left as it was drawn": "frozen_0",
    "block 1, left as it was drawn": "frozen_1",
}


@pytest.mark.parametrize("kept", KEPT)
def test_interventions(kept):
    rows = [row for row in results("interventions") if row["intervention"] == KEPT[kept]]
    by_seed = ", ".join(f"{row['off_by_one_8']:.3f}".removeprefix("0") for row in rows)
    silenced = (
        ", ".join(str(len(row["silenced"])) for row in rows)
        if any(row["silenced"] for row in rows)
        else ""
    )
    figures = [
        silenced,
        words(diets.column(rows, "plain_8"), 3),
        words(diets.column(rows, "off_by_one_8"), 3),
        by_seed,
        ", ".join(str(len(row["fi_heads"])) for row in rows),
    ]
    assert len(rows) == 3 and table("kept from forming |")[kept] == figures
