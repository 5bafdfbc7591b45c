"""The tables of the README, docs/results.md and docs/performance.md are what results/*.json says.

Nothing of the project is imported: means, intervals and steps are worked out here once more.
"""

import json
import math
import re
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
T_975 = {2: 12.706, 3: 4.303, 5: 2.776, 10: 2.262}  # Student's t, by the number of values


def results(name):
    return json.loads((ROOT / f"results/{name}.json").read_text())


def section(page, heading):
    """The text from a `## heading` to the next."""
    text = (ROOT / page).read_text()
    return re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, flags=re.M | re.S)[1]


def table(page, heading, head):
    """The rows of the table whose header row begins so: {first cell: the others}."""
    text = section(page, heading)
    lines = text[text.index(f"\n| {head}") + 1 :].split("\n\n")[0].splitlines()
    rows = [[plain(cell) for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in (rows[0], *rows[2:])}


def plain(cell):
    """A cell without marks of emphasis and code."""
    return cell.strip().replace("*", "").replace("`", "").replace("−", "-")


def share(value, digits=3):
    """`.998`, as the pages write it."""
    return f"{value:.{digits}f}".removeprefix("0")


def figure(value, digits=2):
    """Two significant digits as the pages write them: `.072`, `4.6`, `44`."""
    return f"{value:.{digits}g}".removeprefix("0")


def mean_and_half(values):
    """The mean, and half its 95 % interval by Student's t."""
    half = T_975[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return sum(values) / len(values), half


def words(values, digits=2):
    """`.96 ± .04`, or nothing where there is no value."""
    mean, half = mean_and_half(values)
    return f"{share(mean, digits)} ± {share(half, digits)}"


def column(rows, key):
    """A figure of each run: the number of heads where it is a list. A diverged run does no task."""
    values = []
    for row in rows:
        value = row[key]
        if row["diverged"] and key.endswith("_8"):
            value = 0.0
        values.append(len(value) if isinstance(value, list) else value)
    return values


# ---------------------------------------------------------------- accuracy


SHOTS = ("1", "2", "4", "8", "16")
SUMMARIES = {"mean of ten seeds": statistics.mean, "worst seed": min}


@pytest.mark.parametrize("name", SUMMARIES)
def test_off_by_one_by_shots(name):
    rows = results("dependability")
    shown = table("docs/results.md", "Accuracy", "shots |")
    assert len(rows) == 10 and shown["shots"] == list(SHOTS)
    assert shown[name] == [
        share(SUMMARIES[name]([row["by_shots"]["1"][shots] for row in rows])) for shots in SHOTS
    ]


def test_off_by_one_and_plain_in_words():
    rows = results("dependability")
    text = section("docs/results.md", "Accuracy")
    assert words([row["off_by_one_8"] for row in rows], 3) in text
    assert all(row["plain_8"] >= 0.998 for row in rows)


def test_off_by_k():
    rows, shown = results("dependability"), table("docs/results.md", "Accuracy", "k |")
    assert len(rows) == 10
    for place, k in enumerate(shown["k"]):
        shares = [row["off_by_k_8"][str(int(k))] for row in rows]
        assert shown["mean of ten seeds"][place] == share(statistics.mean(shares))
        assert shown["worst seed"][place] == share(min(shares))


def test_addition_of_one_run():
    by_shots = results("dependability")[0]["by_shots"]
    shown = table("docs/results.md", "Accuracy", "task |")
    assert tuple(shown["task"][:5]) == SHOTS
    names = {"addition plain": "0"}
    names |= {f"addition off by {k:+d}": str(k) for k in range(-4, 5) if k}
    for name, k in names.items():
        assert shown[name][:5] == [share(by_shots[k][shots]) for shots in SHOTS]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_accuracy_of_the_traced_seeds(seed):
    row = results("dependability")[seed]
    by_k = {int(k): share(value) for k, value in row["off_by_k_8"].items()}
    by_shots = [share(row["by_shots"]["1"][shots]) for shots in SHOTS[1:]]
    assert row["seed"] == seed
    assert table("docs/results.md", "Three seeds", "seed | plain")[str(seed)][:3] == [
        share(row["plain_8"]),
        " / ".join(by_shots),
        f"{by_k[-3]} {by_k[-2]} {by_k[-1]} · {by_k[1]} {by_k[2]} {by_k[3]}",
    ]


def test_the_six_rows_of_the_readme():
    by_shots = results("dependability")[0]["by_shots"]
    text = (ROOT / "README.md").read_text()
    rows = re.findall(r"^ *addition (plain|off by \S+) +((?:\d\.\d{3} *){5})", text, flags=re.M)
    assert len(rows) >= 4
    for name, figures in rows:
        k = "0" if name == "plain" else str(int(name.removeprefix("off by ")))
        assert figures.split() == [f"{by_shots[k][shots]:.3f}" for shots in SHOTS]


# ---------------------------------------------------------------- order of events


EVENTS = {
    "attention of the best head from the last = to the earlier answers (FI score)": "fi_score",
    "the same, of the heads that are FI in the end": "fi_score_of_final_heads",
    "copy-induction score of the best head (repeated documents)": "copy_induction_score",
    "previous-token score of the best head": "pt_score",
    "off-by-one addition, never shown": "off_by_one_8",
    "plain addition": "plain_8",
    "repeated documents": "copy_accuracy",
    "direct effect of the strongest FI head, in logits": "fi_effect",
}
LOOKED_UP = {
    "the loss falls": lambda row: -row["loss"],
    "shifted subtraction": lambda row: row["accuracy"]["subtraction"]["shift"],
    "Caesar's cipher": lambda row: row["accuracy"]["caesar"]["shift"],
}


def step_from_which_above_half(rows, value):
    values = [value(row) or 0.0 for row in rows]
    half = (values[0] + values[-1]) / 2
    below = [index for index, one in enumerate(values) if one < half]
    return rows[below[-1] + 1]["step"]


@pytest.mark.parametrize("event", [*EVENTS, *LOOKED_UP])
def test_order_of_events(event):
    value = LOOKED_UP.get(event) or (lambda row: row[EVENTS[event]])
    steps = []
    for seed in range(3):
        rows = [row for row in results("emergence") if row["seed"] == seed]
        assert len(rows) == 48
        steps.append(step_from_which_above_half(rows, value))
    shown = table("docs/results.md", "Order of events", "event |")
    assert len(shown) == len(EVENTS) + len(LOOKED_UP) + 1
    assert shown[event] == [str(statistics.median(steps)), f"{min(steps)} … {max(steps)}"]


# ---------------------------------------------------------------- training data


DIETS = {
    "strict without relabelling": "no_relabel",
    "… without mixed documents": "no_mixed",
    "… without copied documents": "no_copy",
    "+ met plain alone, the other functions under everything": "plus_plain",
    "the cell (+, +1) alone held out: + seen with every other k": "held_out_cell",
    "every k > 0 on + held out": "held_out_half",
}


def mean_over_unseen_k(row):
    shares = [
        value for k, value in row["off_by_k_8"].items() if int(k) not in row["shifts_of_plus_shown"]
    ]
    return statistics.mean(shares)


def failure(rows):
    """What runs answer instead, where most of them do."""
    failing = [row["failure"] for row in rows if row["failure"] != "none"]
    if len(failing) * 2 <= len(rows):
        return ""
    return failing[0]


@pytest.mark.parametrize("diet", list(table("docs/results.md", "Training data", "diet |"))[1:])
def test_training_data(diet):
    shown = table("docs/results.md", "Training data", "diet |")[diet]
    name = DIETS.get(diet, diet.split(":")[0])
    rows = [row for row in results("diets") if row["diet"] == name]
    figures = [
        words(column(rows, "plain_8")),
        words(column(rows, "off_by_one_8")),
        words([mean_over_unseen_k(row) for row in rows]),
    ]
    assert len(rows) == 3
    for cell, expected in zip(shown, figures):
        assert cell in (expected, expected.split(" ± ")[0])
    heads = f"{statistics.mean(column(rows, 'fi_heads')):.1f}"
    assert shown[3] in (heads, heads.removesuffix(".0"))
    assert shown[4].split(" (")[0] == failure(rows)


# ---------------------------------------------------------------- other models


MODELS = {"the default": "default", "1 head a layer": "1_head", "no MLPs": "attention_only"}


def runs_of(model):
    """The rows of results/universality.json that a row of the table is about."""
    name, _, longer = re.sub(r" \(.*\)", "", model).partition(", 1750")
    name = MODELS.get(name, name.replace(" ", "_")) + "_longer" * bool(longer)
    return [row for row in results("universality") if row["config"]["name"] == name]


def does_it(row):
    return row["off_by_one_8"] >= 0.5


@pytest.mark.parametrize("model", list(table("docs/results.md", "Other models", "model |"))[1:])
def test_other_models(model):
    shown, rows = table("docs/results.md", "Other models", "model |")[model], runs_of(model)
    good = [row for row in rows if does_it(row)]
    assert len(rows) >= 3 and shown[:3] == [
        f"{len(good)} of {len(rows)}",
        words(column(rows, "plain_8")),
        words(column(rows, "off_by_one_8")),
    ]
    if not good:
        assert shown[3:] == ["", ""]
        return
    layers = sorted({head.split(".")[0] for row in good for head in row["fi_heads"]})
    fi, pt = (share(statistics.mean(column(good, key)), 1) for key in ("fi_heads", "pt_heads"))
    assert shown[3:] == [f"{fi} ({', '.join(layers)})", pt]


def test_every_model_is_in_the_table():
    models = list(table("docs/results.md", "Other models", "model |"))[1:]
    assert sum(len(runs_of(model)) for model in models) == len(results("universality"))


def test_what_is_said_of_the_runs_that_do_it():
    good = [row for row in results("universality") if does_it(row)]
    with_fi, with_pt = (sum(bool(row[key]) for row in good) for key in ("fi_heads", "pt_heads"))
    text = section("docs/results.md", "Other models")
    assert f"in {with_fi} of the {len(good)} runs that do the task" in text
    assert f"Previous-token heads are in {with_pt} of them" in text
    assert not any(row["consolidation_heads"] for row in good)
    for row in good:
        layers = [int(head.split(".")[0]) for head in row["fi_heads"]]
        assert row["config"]["positions"] == "learned" or min(layers, default=2) >= 2


def test_no_run_of_two_layers_does_it():
    rows = runs_of("2 layers") + runs_of("2 layers, 1750 steps")
    assert len(rows) == 6 and not any(map(does_it, rows))
    assert len({row["config"]["d_model"] for row in rows}) == 1


# ---------------------------------------------------------------- parts kept from forming


KEPT = {
    "nothing": "none",
    "previous-token heads": "no_previous_token",
    "ordinary induction heads": "no_copy_induction",
    "as many heads of the same layers, at random": "random_heads",
    "block 0, left as it was drawn": "frozen_0",
    "block 1, left as it was drawn": "frozen_1",
}


@pytest.mark.parametrize("kept", KEPT)
def test_parts_kept_from_forming(kept):
    rows = [row for row in results("interventions") if row["intervention"] == KEPT[kept]]
    silenced = ", ".join(str(len(row["silenced"])) for row in rows if row["silenced"])
    assert len(rows) == 3
    assert table("docs/results.md", "Parts kept from forming", "kept from forming |")[kept] == [
        silenced,
        words(column(rows, "plain_8"), 3),
        words(column(rows, "off_by_one_8"), 3),
        ", ".join(share(row["off_by_one_8"]) for row in rows),
        ", ".join(str(len(row["fi_heads"])) for row in rows),
    ]


# ---------------------------------------------------------------- performance


LENS, OWN = "two-pass loop on TransformerLens 2.18", "own two-pass loop"
WORK = {
    "all heads → logits, default": ("all heads → logits", "default"),
    "all heads → q, k, v of every head, default": ("all heads → v, q, k of every head", "default"),
    "all heads → logits, 6 layers × 8 heads × d_model 512": ("all heads → logits", "6x8x512"),
    "all heads → q, k, v of every head, the same": ("all heads → v, q, k of every head", "6x8x512"),
}


def bench_rows(**wanted):
    """The rows of results/bench.json with these values; model is a model's name."""
    found = []
    for row in results("bench")["rows"]:
        named = row | {"model": row["model"]["name"]}
        if all(named[key] == value for key, value in wanted.items()):
            found.append(row)
    return found


@pytest.mark.parametrize("work", WORK)
def test_the_patcher_against_a_loop(work):
    name, model = WORK[work]
    (lens,) = bench_rows(work=name, model=model, other=LENS)
    (own,) = bench_rows(work=name, model=model, other=OWN)
    shown = table("docs/performance.md", "The patcher against a loop", "work, model |")
    assert shown[work] == [
        f"{figure(lens['ours_s'])} s",
        f"{lens['ratio']:.0f}×",
        f"{own['ratio']:.0f}×",
    ]
    assert max(lens["max_abs_diff"], own["max_abs_diff"]) < 2e-6


def test_memory():
    rows = results("bench")["memory"]
    assert all(row["peak_gib"] <= row["budget_gib"] for row in rows) and len(rows) == 12
    text = section("docs/performance.md", "Memory")
    for start in range(0, len(rows), 4):
        some = rows[start : start + 4]
        budgets = ", ".join(figure(row["budget_gib"], 3) for row in some)
        peaks = ", ".join(share(row["peak_gib"]) for row in some)
        assert f"| {some[0]['work']} | {some[0]['model']} | {budgets} | {peaks} |" in text


def test_training():
    (step,) = bench_rows(work="training step")
    training = section("docs/performance.md", "Training")
    assert f"takes {share(step['ours_s'])} s" in training
    assert f"takes {share(step['other_s'])} s ({step['ratio']:.1f}×)" in training


def test_the_machine_is_named():
    bench = results("bench")
    text = (ROOT / "docs/performance.md").read_text()
    torch_version = bench["versions"]["torch"].split("+")[0]
    machine = f"{bench['hardware']['threads']} cores of an {bench['hardware']['processor']}"
    assert machine in text and f"torch {torch_version}" in text
