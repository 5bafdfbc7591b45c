"""The tables of the README, docs/results.md and docs/performance.md are what results/*.json says.

Means, intervals and steps are worked out here once more; of the project, `verdict` alone is used.
"""

import functools
import json
import math
import re
import statistics
from itertools import product
from pathlib import Path

import pytest

from commands import smollm
from experiments.precursor import verdict

ROOT = Path(__file__).parent.parent
# Student's t, by the number of values
T_975 = {
    2: 12.706,
    3: 4.303,
    4: 3.182,
    5: 2.776,
    6: 2.571,
    7: 2.447,
    8: 2.365,
    10: 2.262,
    11: 2.228,
    12: 2.201,
}


@functools.cache
def results(name):
    return json.loads((ROOT / f"results/{name}.json").read_text())


def section(page, heading):
    """The text from a `## heading` to the next."""
    text = (ROOT / page).read_text()
    return re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, flags=re.M | re.S)[1]


def table_rows(page, heading, head):
    """The rows of the table whose header row begins so, that row first: lists of cells."""
    text = section(page, heading)
    lines = text[text.index(f"\n| {head}") + 1 :].split("\n\n")[0].splitlines()
    rows = [[plain(cell) for cell in line.strip("|").split("|")] for line in lines]
    return [rows[0], *rows[2:]]


def table(page, heading, head):
    """The same table: {first cell: the others}."""
    return {row[0]: row[1:] for row in table_rows(page, heading, head)}


def plain(cell):
    """A cell without marks of emphasis and code."""
    return cell.strip().replace("*", "").replace("`", "").replace("−", "-")


def share(value, digits=3):
    """`.998` or `-.998`, as the pages write it."""
    return re.sub(r"^(-?)0\.", r"\1.", f"{value:.{digits}f}")


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


def test_the_six_rows_of_the_readme():
    by_shots = results("dependability")[0]["by_shots"]
    text = (ROOT / "README.md").read_text()
    rows = re.findall(r"^ *addition (plain|off by \S+) +((?:\d\.\d{3} *){5})", text, flags=re.M)
    assert len(rows) >= 4
    for name, figures in rows:
        k = "0" if name == "plain" else str(int(name.removeprefix("off by ")))
        assert figures.split() == [f"{by_shots[k][shots]:.3f}" for shots in SHOTS]


# ---------------------------------------------------------------- ten seeds


HOWS = ("base", "mean", "unrelated")
UNDER = ("base_values", "other_operands")


def traced():
    rows = results("seeds")
    assert [row["seed"] for row in rows] == list(range(10))
    return rows


def said(page, heading):
    """A section in one line, with hyphens for minus signs: where it breaks lines is no matter."""
    return " ".join(section(page, heading).replace("−", "-").split())


def percents(*values):
    return " to ".join(f"{100 * value:.0f}" for value in values)


def ablated(row, how, label="function_induction"):
    """The row of `ablation` of FI heads, or of random groups beside them."""
    for each in row["ablation"]:
        beside = each.get("beside", "function_induction")
        if (each["ablated"], each["how"], beside) == (label, how, "function_induction"):
            return each


def swapped(row, kind):
    return [each for each in row["shift_swap"]["rows"] if each["swapped"] == kind]


def carrying(row, kind):
    return [each["heads"][0] for each in swapped(row, kind) if each["passes"]]


def pairs_of(row):
    """Plain and off by one, in words, with the FI heads' values replaced."""
    found = [ablated(row, how) for how in HOWS]
    return [f"{share(one['base_acc'])} / {share(one['contrast_acc'])}" for one in found]


def by_source(row, judged, key):
    return [row[source][judged][key] if judged else row[source][key] for source in UNDER]


@pytest.mark.parametrize("seed", range(10))
def test_the_heads_of_each_seed(seed):
    row = traced()[seed]
    r = row["fi_r"]
    heads = sorted(r, key=r.get)
    fi, others = "one_fi_head", "one_other_head"
    assert set(heads) == set(row["groups"]["function_induction"])
    assert table("docs/results.md", "Ten seeds", "seed | FI heads")[str(seed)] == [
        ", ".join(heads),
        f"{heads[0]}: {percents(r[heads[0]])}",
        percents(*row["fi_r_ci"][heads[0]]),
        f"{len(carrying(row, fi))} of {len(swapped(row, fi))}",
        f"{len(carrying(row, others))} of {len(swapped(row, others))}",
        ", ".join(row["groups"]["previous_token"]) or "none",
    ]


@pytest.mark.parametrize("seed", range(10))
def test_ablation_and_circuit_of_each_seed(seed):
    row = traced()[seed]
    assert table("docs/results.md", "Ten seeds", "seed | base values")[str(seed)] == [
        *pairs_of(row),
        " / ".join(map(share, by_source(row, "", "faithfulness"))),
        share(max(by_source(row, "others_alone", "faithfulness"))),
        " / ".join(map(share, by_source(row, "random_lower", "mean"))),
    ]


def means_of_ten():
    """Name → `.95 ± .05` of what the pages say of ten seeds."""
    rows, found = traced(), {}
    for how in (*HOWS, "same_k", "same_answer"):
        for key in ("base_acc", "contrast_acc", "floor"):
            found[how, key] = words([ablated(row, how)[key] for row in rows])
    for how in HOWS:
        others = [ablated(row, how, "random_same_layers")["contrast_acc"] for row in rows]
        found[how, "control"] = words(others)
    for place, source in enumerate(UNDER):
        found[source] = words([by_source(row, "", "faithfulness")[place] for row in rows])
        lower = [by_source(row, "random_lower", "mean")[place] for row in rows]
        found[source, "lower"] = words(lower)
    for key in ("answers", "operands"):
        moved = [swapped(row, "function_induction")[0][key]["moved"] for row in rows]
        found[key] = words(moved)
    return found


def test_the_means_of_ten_seeds():
    told = means_of_ten()
    plain_and_off = [f"{told[how, 'base_acc']} / {told[how, 'contrast_acc']}" for how in HOWS]
    assert table("docs/results.md", "Ten seeds", "seed | base values")["mean"] == [
        *plain_and_off,
        " / ".join(told[source] for source in UNDER),
        "",
        " / ".join(told[source, "lower"] for source in UNDER),
    ]


def test_what_is_said_of_ten_seeds():
    told, text = means_of_ten(), said("docs/results.md", "Ten seeds")
    plain, off = ([told[how, key] for how in HOWS] for key in ("base_acc", "contrast_acc"))
    control = [told[how, "control"] for how in HOWS]
    for sentence in (
        f"move the answer {told['answers']} of the way (other answers shown) and "
        f"{told['operands']} (other operands)",
        f"with base values {plain[0]} of the answers are plain, with means {plain[1]}, with "
        f"unrelated values {plain[2]}. Off by one stay {off[0]}, {off[1]} and {off[2]}.",
        f"is {told['mean', 'floor']} for means, {told['unrelated', 'floor']} for unrelated values",
        f"leave {control[0]} off by one with base values, {control[1]} with means, {control[2]} "
        "with unrelated ones",
        f"off-by-one prompt {told['same_k', 'contrast_acc']} stay off by one, hardly above the "
        f"floor ({told['same_k', 'floor']})",
        f"asks for the same answer {told['same_answer', 'contrast_acc']} do",
        f"faithfulness {told['base_values']} and {told['other_operands']}",
        f"it gives {told['base_values', 'lower']}, nearly what the circuit has. Under other "
        f"operands it is {told['other_operands', 'lower']}",
    ):
        assert sentence in text


def test_the_shift_is_carried_by_all_fi_heads_and_some_others():
    rows, text = traced(), said("docs/results.md", "Ten seeds")
    counts, named = [], []
    for kind in ("one_fi_head", "one_other_head"):
        counts.append(sum(len(carrying(row, kind)) for row in rows))
        counts.append(sum(len(swapped(row, kind)) for row in rows))
    assert "{} of {} pass".format(*counts[:2]) in text and counts[0] == counts[1]
    assert f"Of the {counts[3]} other heads of these layers {counts[2]} pass too" in text
    for row in rows:
        direct = row["groups"]["other_direct"]
        assert set(direct) <= set(carrying(row, "one_other_head"))
        named += direct
    asked = rows[0]["criteria"]
    strong, looks = percents(asked["strong"]), share(asked["looks_at_answers"], 2)
    nine = f"Nine of them write the answer (|r| ≥ {strong} %) and look at answers with less than"
    assert len(named) == 9 and f"{nine} {looks} of" in text
    far = {}
    for row in rows:
        for each in swapped(row, "one_other_head"):
            moved = [share(each[key]["moved"], 2) for key in ("answers", "operands")]
            far[f"{row['seed']}: {each['heads'][0]}"] = " and ".join(moved)
    strong = f"3.4 moves the answer {far['4: 3.4']} of the way, 3.2 {far['7: 3.2']}"
    assert f"In seeds 4 and 7 one of them is strong: {strong}" in text
    assert sum(bool(carrying(row, "one_other_head")) for row in rows) == 9
    limits = said("docs/results.md", "Limits")
    assert f"Of the {counts[3]} other heads in the layers of FI heads {counts[2]} carry" in limits


def test_no_head_of_an_untrained_model_carries_the_shift():
    drawn = [row["untrained"] for row in results("seeds")]
    assert len(drawn) == 10 and sum(each["n_passing"] for each in drawn) == 0
    n_heads, highest = sum(each["n_heads"] for each in drawn), max(x["highest"] for x in drawn)
    said = f"of {n_heads} heads the highest lower end is {share(highest, 3)} (`untrained`"
    assert said in " ".join(section("docs/results.md", "What the heads carry").split())


def test_which_heads_ten_seeds_have():
    rows, text = traced(), said("docs/results.md", "Ten seeds")
    sizes = [len(set().union(*row["groups"].values())) for row in rows]
    assert f"{min(sizes)} to {max(sizes)} heads" in text
    assert {len(row["fi_r"]) for row in rows} == {3, 4, 5} and "three to five in each" in text
    assert not any(row["groups"]["consolidation"] for row in rows)
    with_pt = [row["seed"] for row in rows if row["groups"]["previous_token"]]
    assert with_pt == list(range(3, 10)) and "seven of ten circuits**, seeds 3 to 9." in text
    on_route = {}
    for row in rows:
        found = set(row["groups"]["previous_token"]) & set(row["groups"]["expected_answer"])
        on_route |= dict.fromkeys(found, row["seed"])
    assert on_route == {"1.3": 3, "2.3": 4, "1.1": 9}
    assert "(1.3 in seed 3, 2.3 in 4, 1.1 in 9)" in text
    layers = [{head[0] for head in row["fi_r"]} for row in rows]
    assert [seed for seed in range(10) if layers[seed] == {"3"}] == [1, 3, 4, 5]
    assert [seed for seed in range(10) if layers[seed] == {"2", "3"}] == [0, 2, 6, 7, 8, 9]
    assert "in layer 3 alone** in seeds 1, 3, 4 and 5, in layers 2 and 3 in the others." in text
    groups = [ablated(row, "base", "random_same_layers") for row in rows]
    assert [seed for seed in range(10) if groups[seed]["n_groups"] == 1] == [1, 3, 4, 5]
    assert groups[3]["n_heads"] == 1
    few = "in seeds 1, 3, 4 and 5 there is one such group only, and in seed 3 it is one head"
    assert few in text
    left = [ablated(row, "mean")["contrast_acc"] for row in rows]
    assert sorted(range(10), key=left.__getitem__)[-2:] == [7, 4]
    assert "Most is left under means in seeds 4 and 7." in text
    draws = {row[source]["random_lower"]["n_draws"] for row in rows for source in UNDER}
    assert draws == {10} and "(means of 10 draws)" in text
    assert f"The heads outside reach {share(most_of_others_alone(), 2)} at most" in text
    whole = [row["other_operands"]["faithfulness"] for row in rows]
    assert sorted(range(10), key=whole.__getitem__)[:2] == [2, 9]
    missing = f"({share(whole[2])} and {share(whole[9])})"
    assert f"In seeds 2 and 9 more is missing {missing}" in text


def test_how_weak_and_how_whole_in_ten_seeds():
    rows, text = traced(), said("docs/results.md", "Ten seeds")
    readme = said("README.md", "What we found")
    smaller = []
    for row in rows:
        for one in swapped(row, "one_fi_head"):
            smaller.append(min(one[key]["moved"] for key in ("answers", "operands")))
    least, median, most = min(smaller), statistics.median(smaller), max(smaller)
    least, median, most = (share(each, 2) for each in (least, median, most))
    plain_acc = [ablated(row, "base")["base_acc"] for row in rows]
    gaps = sorted((row["completeness"], row["seed"]) for row in rows)
    rest = f"{share(gaps[0][0], 2)} to {share(gaps[-3][0], 2)}"
    overlaps = [row[source]["random_lower"]["overlap"] for row in rows for source in UNDER]
    shared = f"share {share(min(overlaps), 2)} to {share(max(overlaps), 2)} of the circuit's heads"
    assert plain_acc.index(min(plain_acc)) == 7 and [seed for _, seed in gaps[-2:]] == [5, 9]
    for sentence in (
        f"two figures is {least} to {most}, and {median} in the median.",
        f"Fewest are plain under base values in seed 7 ({share(min(plain_acc))}).",
        f"is {share(gaps[-1][0])} of F's range in seed 9 and {share(gaps[-2][0])} in seed 5, "
        f"{rest} in the others.",
        f"they {shared}.",
    ):
        assert sentence in text
    assert f"these {shared}" in said("docs/results.md", "Claims, figures, code")
    assert f"reach {share(gaps[-1][0])}." in said("docs/results.md", "Is the circuit enough")
    control = words([ablated(row, "base", "random_same_layers")["contrast_acc"] for row in rows])
    for sentence in (
        f"(worst seed: {share(min(plain_acc), 2)}). As many other heads leave {control} off by one",
        f"each of all {len(smaller)} moves it, at the median {median} of the way.",
    ):
        assert sentence in readme


def test_back_to_plain_under_means():
    plain = [ablated(row, "mean")["base_acc"] for row in traced()]
    bring = f"Over ten seeds means bring the plain sum on {words(plain)} alone"
    assert f"{bring}: this seed is the highest." in said("docs/results.md", "Ablation")
    assert max(plain) == plain[0]


def most_of_others_alone():
    return max(max(by_source(row, "others_alone", "faithfulness")) for row in traced())


def test_the_claims_of_ten_seeds():
    told = means_of_ten()
    claims = said("docs/results.md", "Claims, figures, code")
    plain, off = ([told[how, key] for how in HOWS] for key in ("base_acc", "contrast_acc"))
    for figures in (
        f"plain {plain[0]}, off by one {off[0]}, ten seeds",
        f"plain {plain[1]} and {plain[2]}; off by one {off[1]} and {off[2]}, ten seeds",
        f"another off-by-one prompt: {told['same_k', 'contrast_acc']}; of one with the same "
        f"answer: {told['same_answer', 'contrast_acc']}, ten seeds",
        f"faithfulness {told['base_values']} (base), {told['other_operands']} (operands changed)",
        f"in their place: {told['base_values', 'lower']} under it, "
        f"{told['other_operands', 'lower']} when the operands change, ten seeds",
        f"all others alone {share(most_of_others_alone(), 2)} at most, ten seeds",
        "ahead of four other forecasts in 50 of 50 rows, ten seeds",
        f"37 of 37 heads; together {told['answers']} and {told['operands']} of the way, ten seeds",
    ):
        assert figures in claims
    accuracy = results("dependability")
    by_one = [row["off_by_one_8"] for row in accuracy]
    four = [statistics.mean([row["off_by_k_8"][k] for row in accuracy]) for k in ("-4", "4")]
    of_seed_0 = sorted(traced()[0]["fi_r"].values())
    assert f"{words(by_one, 3)}, ten seeds, worst {share(min(by_one))}" in claims
    assert f"k = ±4: {share(four[0])} and {share(four[1])}, ten seeds" in claims
    assert f"r = {', '.join(map(percents, of_seed_0))} %; one more" in claims


def test_the_findings_of_the_readme():
    told, text = means_of_ten(), said("README.md", "What we found")
    mixed = averaged((-1, 1))
    forecast = {
        name: words([row["r2"][name] for row in mixed]) for name in ("attention", "uniform")
    }
    for figures in (
        f"it is plain on {told['base', 'base_acc']} (worst seed",
        f"another plain prompt's values {told['unrelated', 'base_acc']} are plain. 15 of "
        "their layers' 59 others carry it too.",
        f"makes {told['base_values']} of the effect; random heads for its lower ones, "
        f"{told['base_values', 'lower']}.",
        f"same answers, {told['other_operands']} and {told['other_operands', 'lower']}.",
        f"the plain sum on {words([row['answered']['0'] for row in mixed])} of prompts",
        f"0 and +2 give +1 on {words([row['answered']['1'] for row in averaged((0, 2))])}.",
        f"R² {forecast['attention']}, unweighted {forecast['uniform']}.",
        f"even attention just {words([row['flat']['fi'] for row in besides()])} stay right",
        f"{words([row['off_by_one_8'] for row in results('dependability')], 3)} of prompts",
    ):
        assert figures in text
    for diet, sentence in (
        ("default_plus_plain", "right on {} of"),
        ("nothing_by_one", "repeated, on {}."),
    ):
        rows = [row for row in results("diets") if row["diet"] == diet]
        assert sentence.format(words(column(rows, "off_by_one_8"))) in text
    good = [row for row in results("universality") if does_it(row)]
    counts = [sum(bool(row[key]) for row in good) for key in ("fi_heads", "pt_heads")]
    fi, pt = counts
    architectures = f"several architectures, {fi} have the first, {pt} the second"
    assert f"Of {len(good)} successful runs of {architectures}" in text


# ---------------------------------------------------------------- the heads average


MIXTURES = {
    "-1 or +1": (-1, 1),
    "0 or +1": (0, 1),
    "0 or +2": (0, 2),
    "-2 or +2": (-2, 2),
    "-4 to +4": tuple(range(-4, 5)),
}
FORECASTS = ("attention", "uniform", "most_attended", "nearest", "last")


def averaged(offsets):
    rows = [row for row in results("averaging") if row["offsets"] == list(offsets)]
    assert [row["seed"] for row in rows] == list(range(10))
    return rows


def besides():
    """What results/averaging.json holds beside mixtures: one row a seed."""
    rows = [row for row in results("averaging") if row["offsets"] is None]
    assert [row["seed"] for row in rows] == list(range(10))
    return rows


def of_rule(name):
    return [rule for row in besides() for rule in row["rules"] if rule["rule"] == name]


def best(row, kind="r2"):
    return max(row[kind], key=row[kind].get)


@pytest.mark.parametrize("mixture", MIXTURES)
def test_mixtures(mixture):
    rows = averaged(MIXTURES[mixture])
    shown = table("docs/results.md", "The heads average", "examples off by |")
    assert shown[mixture] == [
        *(words([row["r2"][name] for row in rows]) for name in FORECASTS),
        words([row["unseen_offset_share"] for row in rows]),
    ]
    assert {best(row) for row in rows} == {best(row, "hits") for row in rows} == {"attention"}
    assert {row["n_prompts"] for row in rows} == {200}


def test_what_is_said_of_mixtures():
    text = said("docs/results.md", "The heads average")
    hits = {name: [] for name in ("attention", "uniform")}
    for offsets in MIXTURES.values():
        for name, found in hits.items():
            found.append(words([row["hits"][name] for row in averaged(offsets)]))
    weighted, even = hits["attention"], [cell.split(" ")[0] for cell in hits["uniform"]]
    plain_sums = words([row["answered"]["0"] for row in averaged((-1, 1))])
    by_one = words([row["answered"]["1"] for row in averaged((0, 2))])
    for sentence in (
        f"-1 and +1 mixed give the plain sum** on {plain_sums} of prompts",
        "highest R² of the five in 50 of 50 rows. As a whole number it is ahead in all 50 too",
        "On 199 prompts of -1 and +1 a share",
        f"mixed give +1 on {by_one}, which",
        f"{', '.join(weighted[:-1])} and {weighted[-1]} of prompts, in the order",
        f"The unweighted mean is on {', '.join(even[:-1])} and {even[-1]}.",
        f"made even among the answers, only {words([row['flat']['fi'] for row in besides()])} are",
        f"of these layers, {words([row['flat']['others'] for row in besides()])} are",
    ):
        assert sentence in text
    claims = said("docs/results.md", "Claims, figures, code")
    r2 = {}
    for name in ("attention", "uniform"):
        means = [
            statistics.mean([row["r2"][name] for row in averaged(offsets)])
            for offsets in MIXTURES.values()
        ]
        r2[name] = f"{share(min(means), 2)} to {share(max(means), 2)}"
    assert (
        f"R² {r2['attention']} on five mixtures; unweighted mean {r2['uniform']}; ahead" in claims
    )
    assert f"the plain sum on {plain_sums} of 200 prompts, ten seeds" in claims


def test_steered_attention():
    shown = table("docs/results.md", "The heads average", "share of the attention on +1")
    gains = [share(row["gain"], 2).rstrip("0").rstrip(".") for row in besides()[0]["steered"]]
    assert shown["share of the attention on +1"] == [gain or "0" for gain in gains]
    for name, key in (("FI heads", "steered"), ("others", "control")):
        rows = [[step["off_by"] for step in row[key]] for row in besides()]
        assert shown[name] == [words(values) for values in zip(*rows)]
        assert {step["n_prompts"] for row in besides() for step in row[key]} == {199}


def test_some_examples_off_by_one_and_scope():
    by_number = table("docs/results.md", "The heads average", "examples off by one |")
    assert by_number["examples off by one"] == [str(number) for number in range(9)]
    columns = zip(*(row["n_off"] for row in besides()))
    assert by_number["off by one answered"] == [words(values) for values in columns]
    by_k = table("docs/results.md", "The heads average", "k |")
    scope = [words([row["scope"][k] for row in besides()]) for k in by_k["k"]]
    assert by_k["right"] == scope and len(scope) == 8
    assert f"at k = 5, it is right on {scope[4]} of" in said("docs/results.md", "Limits")


@pytest.mark.parametrize("rule", [row["rule"] for row in besides()[0]["rules"]])
def test_rules_of_the_expected_answer(rule):
    rows = of_rule(rule)
    assert len(rows) == 10
    assert table("docs/results.md", "The heads average", "rule of the examples |")[rule] == [
        *(words([row["r2"][name] for row in rows]) for name in FORECASTS),
        f"{[best(row) for row in rows].count('attention')} of 10",
        words([row["right"] for row in rows]),
    ]


def test_where_the_nearest_example_forecasts_better():
    text, limits = (said("docs/results.md", name) for name in ("The heads average", "Limits"))
    ahead = {}
    for rule in ("in base 6", "in base 7", "always 7"):
        ahead[rule] = sum(row["r2"]["nearest"] > row["r2"]["attention"] for row in of_rule(rule))
    assert ahead == {"in base 6": 10, "in base 7": 6, "always 7": 7}

    def both(rule, kind):
        near, weighted = ([row[kind][name] for row in of_rule(rule)] for name in FORECASTS[3::-3])
        return f"{words(near)} against {words(weighted)}"

    six = f"({both('in base 6', 'r2')}; as a whole number {both('in base 6', 'hits')})"
    assert f"in each seed {six}" in text
    assert f"six seeds (as a whole number {both('in base 7', 'hits')})" in text
    assert f'"always 7" in seven (there as a whole number {both("always 7", "hits")})' in text
    assert 'better in each of ten seeds, in base 7 in six, for "always 7" in seven' in limits
    flat = words([row["flat"]["fi"] for row in besides()])
    assert f"With even attention {flat} stay right" in limits


# ---------------------------------------------------------------- other tasks


REUSED = {"addition": "addition", "Caesar, ROT": "caesar", "multiple choice": "choice"}
KEPT_ROWS = ("none", "function_induction", "random_same_layers")


@functools.cache
def reuse_of_ten():
    """{(task, k, items): {(prompt, ablated): rows of ten seeds}}."""
    found = {}
    for row in traced():
        for each in row["reuse"]:
            asked = found.setdefault((each["task"], each["k"], each["items"]), {})
            asked.setdefault((each["prompt"], each["ablated"]), []).append(each)
    assert {len(rows) for asked in found.values() for rows in asked.values()} == {10}
    return found


def reused(task, k, items="all"):
    """{ablated: rows of ten seeds}, on contrast prompts."""
    found = reuse_of_ten()[task, k, items]
    return {name: found["contrast", name] for name in KEPT_ROWS}


def asked_in(name):
    based = re.fullmatch(r"base (\d), sums that carry", name)
    if based:
        return "base_addition", int(based[1]), "carry"
    task, k = re.fullmatch(r"(.*?) ?([+-]\d)", name).groups()
    return REUSED[task], int(k)


def of_ten(rows, key="contrast_acc"):
    return words([row[key] for row in rows])


@pytest.mark.parametrize("name", list(table("docs/results.md", "Other tasks", "task |"))[1:])
def test_other_tasks(name):
    found = reused(*asked_in(name))
    cells = [f"{of_ten(rows, 'base_acc')} / {of_ten(rows)}" for rows in found.values()]
    assert table("docs/results.md", "Other tasks", "task |")[name] == cells


def test_what_is_said_of_other_tasks():
    text = said("docs/results.md", "Other tasks")
    every = {asked: rows for asked, rows in reuse_of_ten().items() if asked[2] != "no carry"}

    def means(ablated, key, wanted):
        rows = [found["contrast", ablated] for asked, found in every.items() if wanted(*asked)]
        return [statistics.mean([row[key] for row in some]) for some in rows]

    def ends(*values):
        return f"{share(min(values), 2)} to {share(max(values), 2)}"

    def sums(task, k, items):
        return task in ("addition", "caesar")

    small = means("function_induction", "base_acc", lambda *a: sums(*a) and abs(a[1]) == 1)
    large = means("function_induction", "base_acc", lambda *a: sums(*a) and abs(a[1]) > 1)
    control = means("random_same_layers", "contrast_acc", lambda *a: sums(*a) and abs(a[1]) == 1)
    choice = means("none", "contrast_acc", lambda task, *_: task == "choice")
    left = share(max(means("function_induction", "contrast_acc", lambda *_: True)), 2)
    six = max(row["contrast_acc"] for row in reused("base_addition", 6, "carry")[KEPT_ROWS[1]])
    carry = [
        row["n_prompts"]
        for k in range(6, 10)
        for row in reused("base_addition", k, "carry")["none"]
    ]
    on_base = []
    for found in every.values():
        on_base.append(statistics.mean([row["base_acc"] for row in found["base", "none"]]))
    falls = {}
    for task in ("addition", "caesar"):
        found = reused(task, -4)
        before = share(statistics.mean([row["contrast_acc"] for row in found["none"]]), 2)
        falls[task] = f"from {before} to {of_ten(found['random_same_layers'])}"
    for sentence in (
        f"shifted answers fall to {left} or less on average",
        f"that carry are counted, {min(carry)} to {max(carry)} of them",
        f"plain on {share(min(on_base))} or more",
        f"ROT+1 is right on {of_ten(reused('caesar', 1)['none'])} all",
        f"in part** ({ends(*choice)} by k; for +1 the plain letter stays on "
        f"{of_ten(reused('choice', 1)['none'], 'base_acc')})",
        f"is right on {of_ten(reused('base_addition', 9, 'carry')['none'])}.",
        f"on {share(min(small), 2)} or more for ±1, but on {ends(*large)} for larger shifts",
        f"one seed stays shifted on {share(six, 2)}.",
        f"addition -4 falls {falls['addition']}, Caesar -4 {falls['caesar']}",
        f"For ±1 {ends(*control)} stay",
    ):
        assert sentence in text
    claims = said("docs/results.md", "Claims, figures, code")
    assert f"shifted answers fall to {left} or less, means of ten seeds" in claims
    assert f"as many others addition -4 falls as well, {falls['addition']}" in claims


def test_other_bases_beside_the_paper():
    text = said("docs/results.md", "Differences from the paper")
    six, seven, eight, nine = (
        of_ten(reused("base_addition", k, "carry")["none"]) for k in range(6, 10)
    )
    others = of_ten(reused("base_addition", 9, "no carry")["none"])
    assert f"carry are right on {nine}, and {others} of the others are left alone" in text
    assert f"{six}, {seven} and {eight}." in text


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


def test_what_is_said_of_the_order_of_events():
    text = " ".join(section("docs/results.md", "Order of events").split())
    runs = [[row for row in results("emergence") if row["seed"] == seed] for seed in range(3)]
    last = [rows[-1] for rows in runs]
    early = max(abs(row["F_range"]) for rows in runs for row in rows if row["step"] <= 198)
    assert "Up to step 198 F's range is below .07 logits" in text and 0.06 < early < 0.07
    shares = [share(row["fi_effect"] / -row["F_range"], 2) for row in last]
    assert f"{shares[0]}, {shares[1]} and {shares[2]} of it at step {last[0]['step']}" in text
    heads = [row["copy_induction_head"] for row in last]
    assert f"FI head in each seed ({', '.join(heads)})" in text
    assert all(x in row["groups"]["function_induction"] for x, row in zip(heads, last))
    copied = [row["copy_accuracy"] for row in last]
    assert f"right on {share(min(copied), 2)} to {share(max(copied), 2)} in the end" in text
    for event in ("copy_induction_score", "off_by_one_8"):
        steps = [step_from_which_above_half(rows, lambda row, x=event: row[x]) for rows in runs]
        assert f"{min(steps)} to {max(steps)}" in text
    late = [row["pt_score"] for row in runs[0] if row["step"] >= 363]
    assert f"has it ({share(min(late), 2)} or more from step 363 on; {last[0]['pt_head']})" in text
    highest = max(runs[2], key=lambda row: row["pt_score"])
    shown = f"head {highest['pt_head']} shows it ({share(highest['pt_score'], 2)} at step"
    assert f"{shown} {highest['step']})" in text
    assert f"fades: {share(last[2]['pt_score'], 2)} in the end" in text
    assert f"in the end ({share(last[1]['pt_score'], 2)})" in text
    for row in (last[0], last[2]):
        assert row["pt_head"] not in {head for group in row["groups"].values() for head in group}


# ---------------------------------------------------------------- training data


DIETS = {
    "strict without relabelling": "no_relabel",
    "… without mixed documents": "no_mixed",
    "… without copied documents": "no_copy",
    "+ met plain alone, the other functions under everything": "plus_plain",
    "the same, + as often as in strict": "plus_plain_often",
    "nothing_by_one, + met plain alone": "default_plus_plain",
    "the same, + as often as in nothing_by_one": "default_plus_plain_often",
    "the cell (+, +1) alone held out: + seen with every other k": "held_out_cell",
    "every k > 0 on + held out": "held_out_half",
}


PLUS_PLAIN = ("plus_plain", "plus_plain_often")


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


def test_plus_shown_plain_alone_fails_however_often_it_is_shown():
    text = " ".join(section("docs/results.md", "Training data").split())
    rows = {name: [x for x in results("diets") if x["diet"] == name] for name in PLUS_PLAIN}
    rare, often = ({row["plus_share"] for row in some} for some in rows.values())
    assert f"rare there ({100 * max(rare):.0f} % of the examples)" in text
    assert f"as often as in `strict` ({100 * max(often):.0f} %)" in text
    assert "gives .00 in each of three seeds" in text
    assert [row["off_by_one_8"] for row in rows["plus_plain_often"]] == [0.0] * 3
    rare, often, usual = (
        [row["off_by_one_8"] for row in results("diets") if row["diet"] == name]
        for name in ("default_plus_plain", "default_plus_plain_often", "nothing_by_one")
    )
    assert often == [0.0] * 3 and f"beside {words(usual)}." in text
    assert (
        f"{words(rare)} ({share(rare[0], 2)}, {share(rare[1], 2)} and {share(rare[2], 2)})" in text
    )
    assert "(on none if `+` is as frequent" in " ".join((ROOT / "README.md").read_text().split())


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
    "seven heads of the same layers, at random": "random_heads",
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


AWAY = {
    "nothing": "none",
    "ordinary induction heads": "no_copy_induction",
    "as many heads of each layer, at random": "random_heads",
    "previous-token heads": "no_previous_token",
}


def span(values):
    return str(min(values)) if min(values) == max(values) else f"{min(values)} to {max(values)}"


def spread(values):
    return words(values, 3) if len(values) > 1 else share(values[0])


@pytest.mark.parametrize("kept", AWAY)
def test_parts_kept_away_from_the_default(kept):
    some = [row for row in results("precursor") if row["kind"] == AWAY[kept]]
    assert table("docs/results.md", "Parts kept from forming", "kept away |")[kept] == [
        str(len(some)),
        span([len(row["silenced"]) for row in some]),
        spread(column(some, "plain_8")),
        spread(column(some, "off_by_one_8")),
        share(min(column(some, "off_by_one_8"))),
        span([len(row["fi_heads"]) for row in some]),
        span([row["from_step"] for row in some if row["from_step"] is not None]),
    ]


def away(key):
    """A figure of the runs from which something was kept away, by kind and seed."""
    return {(row["kind"], row["seed"]): row[key] for row in results("precursor")}


def paired(found, kind, other):
    seeds = [seed for each, seed in found if each == kind]
    both = [(found[kind, seed], found[other, seed]) for seed in seeds]
    return [one - other for one, other in both if None not in (one, other)]


def test_whether_ordinary_induction_is_a_precursor():
    rows, text = results("precursor"), said("docs/results.md", "Parts kept from forming")
    _, copying, control, previous = AWAY.values()
    acc, steps = away("off_by_one_8"), away("from_step")
    told, answer = verdict(rows).split(": ", 1)[1].rsplit(": ", 1)
    difference, seeds = told.replace("0.", ".").split(" (")
    worse = [seed for seed in range(12) if acc[copying, seed] < acc[control, seed]]
    most = sorted(worse, key=lambda seed: acc[copying, seed] - acc[control, seed])[:2]
    beside = [" and ".join(share(acc[kind, seed]) for seed in most) for kind in (copying, control)]
    later = paired(steps, copying, control)
    mean, half = mean_and_half(later)
    ((_, failed),) = (each for each, right in acc.items() if right < 0.4)  # "but for one run"
    assert acc[control, failed] < 0.1 and min(acc[copying, seed] for seed in range(12)) > 0.49
    silenced, found = away("silenced"), away("fi_heads")
    both = [silenced[control, seed].keys() & silenced[copying, seed] for seed in range(12)]
    n_silenced = sum(len(silenced[control, seed]) for seed in range(12))
    others = [x for at, x in enumerate(paired(acc, copying, control)) if at != failed]
    none_found = [seed for seed in range(12) if not found[copying, seed]]
    first, second, third = none_found
    left = [share(acc[copying, seed]) for seed in none_found]
    assert len(silenced[control, failed]) == 6
    for sentence in (
        f"the difference is {difference}, of {seeds.split()[0]} seeds.",
        f'word for that is "{answer}"',
        f"{len(rows)} runs.",
        f"({sum(map(len, both))} of {n_silenced} are the same heads)",
        f"Without seed {failed} it is {words(others, 3)}, undecided as well: there, with six "
        f"random heads silenced, off by one is right on {share(acc[control, failed])}, plain "
        f"addition on {share(away('plain_8')[control, failed])}.",
        f"changes by {words(paired(acc, copying, 'none'), 4)} without ordinary induction heads, by "
        f"{words(paired(acc, control, 'none'), 3)} in the control.",
        f"In seeds {first}, {second} and {third} no FI head is found without them, and off by one "
        f"is right on {left[0]}, {left[1]} and {left[2]}.",
        f"In {len(worse)} of 12 seeds it is worse",
        f"most in seeds {most[0]} and {most[1]} ({beside[0]} beside {beside[1]}).",
        f"right {mean:.0f} ± {half:.0f} steps later than in the control, where it gets so far "
        f"({len(later)} seeds, looked at every 250 steps).",
        f"it changes by {words(paired(acc, previous, 'none'), 3)}, "
        f"{share(min(acc[previous, seed] for seed in range(12)))} at the lowest",
    ):
        assert sentence in text


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


def test_a_real_models_shape_against_a_loop():
    (row,) = bench_rows(model="SmolLM2's shape")
    shown = table("docs/performance.md", "The patcher against a loop", "work, model |")
    cells = shown["all heads → logits, SmolLM2's shape"]
    assert cells == [f"{figure(row['ours_s'])} s", "–", f"{row['ratio']:.0f}×"]
    assert row["other"] == OWN and row["pairs"] == 270 and row["max_abs_diff"] < 1e-4
    text = plain(" ".join(section("docs/performance.md", "The patcher against a loop").split()))
    assert (
        f"{row['pairs_timed']} of its 270 heads are timed, on {row['model']['prompts']} prompts"
        in text
    )


def test_the_least_and_the_most_against_a_loop():
    found = []
    for name, model in WORK.values():
        found += [
            bench_rows(work=name, model=model, other=loop)[0]["ratio"] for loop in (LENS, OWN)
        ]
    text = (ROOT / "docs/performance.md").read_text()
    (real,) = bench_rows(model="SmolLM2's shape")
    told = (
        f"{min(found):.1f} to {max(found):.0f} times as fast in the first four cases below, on a "
    )
    told += f"CPU, and with a real model's shape {real['ratio']:.0f} times."
    assert told in " ".join(text.split())


def test_memory():
    rows = results("bench")["memory"]
    text = section("docs/performance.md", "Memory")
    used = [row["peak_gib"] / row["budget_gib"] for row in rows]
    within, most = sum(share <= 1 for share in used), f"{100 * max(used) - 100:.0f}"
    told = f"stayed within it in {within} of {len(used)} cases, and was {most} % above at most."
    assert told in " ".join(text.split())
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


# ---------------------------------------------------------------- a real language model

REAL = "A real language model"


def real_text():
    return plain(" ".join(section("docs/results.md", REAL).split()))


def full_study():
    return results("smollm_full")


def in_percent(r, ci):
    """`-55 (-71 to -46)`"""
    return f"{100 * r:.0f} ({' to '.join(f'{100 * end:.0f}' for end in ci)})"


def test_the_amounts_of_the_full_study():
    found, text = full_study(), real_text()
    assert found["full"] and found["n_prompts"] == 200 and found["shots"] == 8
    assert "8 shots, 200 prompts, if not said otherwise" in text
    share_right = share(found["accuracy"]["contrast_prompt"]["contrast"] + 1e-9, 2)
    before = share(statistics.fmean(of_the_full_study(8, "base", True, "contrast_acc_before")), 2)
    told = f"it answers off by one on {share_right} of 200 prompts, and on {before} of 600 others."
    assert told in text
    F = found["F"]
    assert f"falls from {F['base']:.2f} to {F['contrast']:.2f} logits" in text
    assert found["evaluation"]["circuit"] == ["23.3", "18.6", "20.5"]
    r = {where: of["effects"]["logits"]["heads"][23][3] for where, of in both_contrasts().items()}
    assert f"Head 23.3 has the largest r, {100 * r['answers']:.0f} %; 18.6 and 20.5 have" in text
    assert f"23.3 hardly differs (r {100 * r['operands']:.0f} %)" in text
    assert r["answers"] == min(of_heads(found).values())


def both_contrasts():
    return {"answers": full_study(), "operands": full_study()["operands_changed"]}


def of_heads(of):
    """r on the logits by head."""
    rows = of["effects"]["logits"]["heads"]
    return {f"{n}.{i}": x for n, row in enumerate(rows) for i, x in enumerate(row)}


def test_what_the_real_model_answers_by_shots():
    shown = table("docs/results.md", REAL, "shots |")
    by = {(row["shots"], row["prompt"]): row for row in full_study()["accuracy_by_shots"]}
    for shots in (1, 2, 4, 8, 16):
        base, contrast = by[shots, "base"], by[shots, "contrast"]
        cells = (base["base"], contrast["contrast"], contrast["base"])
        assert shown[str(shots)] == [share(cell + 1e-9, 2) for cell in cells]
        assert base["n_prompts"] == 200


def test_what_gains_and_what_loses_where_the_real_model_is_shown_a_shift():
    chances = {x["shown"]: x["log_probability"] for x in full_study()["averaging"]["mixtures"]}
    up, down = (
        {k: chances[shown][k] - chances["plain"][k] for k in ("+1", "+0", "-1")}
        for shown in ("+1", "-1")
    )
    gains, opposite, plainly = (
        (up["+1"], down["-1"]),
        (up["-1"], down["+1"]),
        (up["+0"], down["+0"]),
    )
    assert min(gains) > 0 > max(*opposite, *plainly)
    told = (
        "gains in mean log-probability (+1: {}, -1: {}), the opposite one loses ({}, {}), and so "
    )
    told += "does the plain one ({}, {})."
    changes = [share(abs(x), 2) for x in (*gains, *opposite, *plainly)]
    assert told.format(*changes) in real_text()


def test_what_prompts_of_the_real_model_show():
    prompts = smollm.draw(None, 200, 8, seed=2)  # those of `averaging`
    sums = prompts.x + prompts.y
    asked, shown = sums[:, -1:], sums[:, :-1]
    plainly = (shown + 1 == asked).any(1).double().mean().item()
    assert f"and the plain one is shown, in {share(plainly + 1e-9, 2)} of prompts." in real_text()
    assert not (shown == asked).any()


def test_the_second_contrast_of_the_real_model():
    shown, text = table_rows("docs/results.md", REAL, "head | r, answers")[1:], real_text()
    reference = json.loads((ROOT / "reference/circuit.json").read_text())
    ours = {"answers": reference, "operands": reference["operands_changed"]}
    for number, (name, *cells) in enumerate(shown):
        both = both_contrasts() if number < 5 else ours
        head = name.split()[-1]
        wanted = [f"{100 * of_heads(of)[head]:.0f}" for of in both.values()]
        if number < 5:
            logits = [of["effects"]["logits"] for of in both.values()]
            wanted = [
                in_percent(of_heads(of)[head], found["r_ci"][head])
                for of, found in zip(both.values(), logits, strict=True)
            ]
        assert cells == wanted
    fi = {name.split()[-1] for name, *_ in shown[5:]}
    theirs = of_heads(reference)
    assert fi == set(sorted(reference["groups"]["function_induction"], key=theirs.get)[:3])
    F = {where: of["F"] for where, of in both_contrasts().items()}
    fall = F["answers"]["base"] - F["answers"]["contrast"]
    without = F["answers"]["base"] - F["operands"]["base"]
    told = f"F is then {F['operands']['base']:.2f}: of the fall of {share(fall, 2)}, "
    assert f"{told}{share(without, 2)} comes without any wrong sum." in text
    parts = []
    for head in ("23.3", "18.6"):
        r = {where: of_heads(of)[head] for where, of in both_contrasts().items()}
        falls = {where: x["base"] - x["contrast"] for where, x in F.items()}
        parts.append(" and ".join(share(-r[where] * falls[where], 2) for where in r))
    assert f"23.3 has {parts[0]} of them, 18.6 {parts[1]}." in text
    strongest = sorted(of_heads(full_study()["operands_changed"]).items(), key=lambda x: -abs(x[1]))
    assert [name for name, _ in strongest[:3]] == ["23.0", "29.1", "18.6"]


def test_the_strongest_heads_of_the_real_model():
    found, shown = full_study(), table("docs/results.md", REAL, "head | r on")
    heads, effects = list(shown)[1:], found["effects"]["logits"]["heads"]
    r = {f"{n}.{i}": x for n, row in enumerate(effects) for i, x in enumerate(row)}
    assert heads == sorted(r, key=lambda head: -abs(r[head]))[:7] and len(r) == 270
    kinds = {"function_induction": "FI", "consolidation": "consolidation"}
    for head in heads:
        low, high = (f"{100 * end:.0f}" for end in found["r_ci"][head])
        looks = share(found["attention"][head]["last_to_answers"], 2)
        group = [kinds[name] for name, members in found["groups"].items() if head in members]
        told = [f"{100 * r[head]:.0f}", f"{low} to {high}", looks]
        assert shown[head] == [*told, *(group or ["none: below 5 %"])]
    assert -0.05 < r["20.4"] and found["criteria"]["strong"] == 0.05
    assert found["criteria"]["looks_at_answers"] == 0.3
    stronger = [head for head in ("18.6", "20.5") if abs(r[head]) < abs(r["23.0"])]
    assert len(stronger) == 2 and "23.0 is stronger than two of the FI heads" in real_text()
    mlps = found["effects"]["logits"]["mlps"]
    told = f"MLPs 22 and 21 have {100 * mlps[22]:.0f} and {100 * mlps[21]:.0f} %"
    assert told in real_text()


def of_the_full_study(shots, how, ours, name="undone"):
    """What the three draws of `--full` give: of FI heads or of random ones."""
    rows = full_study()["evaluation"]["ablation"]
    assert len(rows) == 36 and {row["n_prompts"] for row in rows} == {200}
    found = [x for x in rows if (x["shots"], x["how"], bool(x["heads"])) == (shots, how, ours)]
    assert [row["draw"] for row in found] == [0, 1, 2]
    return [row[name] for row in found]


def over_draws(values):
    mean, *ends = (share(x, 2) for x in (sum(values) / len(values), min(values), max(values)))
    return f"{mean} ({ends[0]} to {ends[1]})".replace("-.00", ".00")


KINDS = {"base": "base-run values, ", "mean": "the mean", "unrelated": "an unrelated "}


def test_what_heads_of_the_real_model_undo():
    shown = table_rows("docs/results.md", REAL, "put into heads | undone of the fall of F, 8")[1:]
    for (label, *cells), (how, ours) in zip(shown, product(KINDS, (True, False)), strict=True):
        assert cells == [over_draws(of_the_full_study(shots, how, ours)) for shots in (8, 16)]
        assert label.startswith(KINDS[how] if ours else "the same, ")
    text = real_text()
    ours, random = (row[1].split()[0] for row in shown[:2])
    assert (
        f"{ours} of the fall is undone. With random heads of the same layers it is {random}."
        in text
    )
    settings = list(product((8, 16), KINDS))
    ours, random = (
        [ends for at in settings for ends in of_the_full_study(*at, group, "undone_ci")]
        for group in (True, False)
    )
    gaps = [low - high for (low, _), (_, high) in zip(ours, random, strict=True)]
    assert "There are 18 cases" in text and len(gaps) == 18 and 0.09 <= min(gaps) < 0.1
    assert "lies at least .09 above the 97.5 % point of the random groups" in text
    others = [float(cell.split()[0]) for row in (shown[2], shown[4]) for cell in row[1:]]
    ends = f"{share(min(others), 2)} to {share(max(others), 2)}"
    assert f"most of the fall of F, the others {ends} of it." in text


def test_what_the_real_model_answers_with_heads_replaced():
    shown = table_rows("docs/results.md", REAL, "share of answers, 8 shots")[1:]
    settings = [(how, ours) for how in KINDS for ours in (True, False)]
    for (label, *cells), (how, ours) in zip(shown[1:], settings, strict=True):
        names = ("contrast_acc", "base_acc", "plain_kept")
        off, plainly, kept = (of_the_full_study(8, how, ours, name) for name in names)
        told = "as it is" if how == "base" else "not measured"
        if how != "base" and ours:
            told = over_draws(kept)
        assert cells == [over_draws(off), over_draws(plainly), told]
        assert label.startswith(KINDS[how] if ours else "the same, ")
        assert (None in kept) == (told == "not measured")
    names = ("contrast_acc_before", "plain_kept")
    before, usual = (over_draws(of_the_full_study(8, "base", True, name)) for name in names)
    rows = full_study()["evaluation"]["ablation"]
    alone = [row["faithfulness"] for row in rows if "faithfulness" in row and row["shots"] == 8]
    told = over_draws(alone).replace(" (", " of the fall (")
    assert f"{told} stays: the three are not the whole of it." in real_text()
    assert shown[0] == ["no head replaced", before, "not kept", usual]


def senders(found, receiver):
    """r of the senders on a receiver, and its intervals, the strongest first."""
    effects = found["effects"][receiver]
    r = {"embedding": effects["embedding"]}
    for layer, (heads, mlp) in enumerate(zip(effects["heads"], effects["mlps"], strict=True)):
        r |= {f"{layer}.{i}": x for i, x in enumerate(heads)} | {f"mlp{layer}": mlp}
    strongest = sorted(r, key=lambda name: -abs(r[name]))
    return {name: in_percent(r[name], effects["r_ci"][name]) for name in strongest}


def test_what_reaches_the_strongest_head_of_the_real_model():
    found, text = full_study(), real_text()
    shown = table_rows("docs/results.md", REAL, "input | contrast")[1:]
    told = {"shown answers changed": found, "operands changed": found["operands_changed"]}
    for (where, of), (receiver, contrast, n_prompts, cell) in zip(told.items(), shown, strict=True):
        assert (receiver, contrast) == ("v of 23.3", where)
        assert int(n_prompts) == of["effects"]["23.3.v"]["n_prompts"] == 100
        three = list(senders(of, "23.3.v").items())[:3]
        assert cell == ", ".join(f"{name} {r}" for name, r in three)
    heads = senders(found["operands_changed"], "23.3.v")
    three = [(name, r) for name, r in heads.items() if "." in name][:3]
    (first, r), second, third = three
    told = f"{first} {r.replace(' (', ' % (')}, {' '.join(second)}, {' '.join(third)}"
    assert f"{told.replace('-0)', '0)')} and 1.3 {heads['1.3']}." in text
    F = found["operands_changed"]["effects"]["23.3.v"]["F"]
    assert f"of a fall of {share(F['base'] - F['contrast'], 2)} logits" in text
    n_below = 1 + 23 * 10  # the embedding, heads and MLPs of 23 layers
    assert f"They were picked out of {n_below} senders" in text


def test_sixteen_prompts_of_the_real_model_are_too_few():
    found, text = full_study(), real_text()
    receivers = {f"{head}.{which}" for head in ("23.3", "18.6", "20.5") for which in "qkv"}
    effects = found["operands_changed"]["effects"]
    assert effects.keys() == receivers | {"logits"}
    for receiver in receivers - {"23.3.v"}:
        assert effects[receiver]["n_prompts"] == found["effects"][receiver]["n_prompts"] == 16
        F = effects[receiver]["F"]
        assert f"With operands changed F falls by {share(F['base'] - F['contrast'], 2)}" in text
    embedding = senders(found, "18.6.v")["embedding"].replace(" (", " %, ").removesuffix(")")
    assert f"(embedding → v of 18.6: {embedding})" in text


def test_whether_the_real_model_averages():
    found = {row["shown"]: row for row in full_study()["averaging"]["mixtures"]}
    told = (
        "Where each example is off by -1 or +1, at random, F is {} (95 % from {}). It is {} ({}) "
    )
    told += "where all are off by +1, and {} ({}) where all are off by -1: it lies between"
    cells = []
    for shown in ("-1 and +1, mixed", "+1", "-1"):
        row = found[shown]
        F = row["log_probability"]["+0"] - row["log_probability"]["+1"]
        cells += [f"{F:.2f}", " to ".join(f"{end:.2f}" for end in row["F_ci"])]
    text, mixed = real_text(), found["-1 and +1, mixed"]
    assert told.format(*cells) in text
    assert float(cells[2]) < float(cells[0]) < float(cells[4])
    usual = found["plain"]["log_probability"]
    ends = " to ".join(f"{end:.2f}" for end in found["plain"]["F_ci"])
    assert f"the F of plain prompts, {usual['+0'] - usual['+1']:.2f} ({ends})." in text
    assert mixed["F_ci"][1] < found["plain"]["F_ci"][0]
    assert f"on plain prompts (R² {share(found['plain']['r2']['attention'], 2)})" in text
    r2 = [share(mixed["r2"][name], 2) for name in ("attention", "uniform")]
    ends = " to ".join(share(end, 2) for end in mixed["r2_ci"]["attention"])
    assert f"(R² {r2[0]}, 95 % from {ends}; the unweighted mean {r2[1]})" in text


def test_the_smaller_amount():
    found, text = results("smollm"), real_text()
    told = []
    for head in sorted(found["fi_r"], key=found["fi_r"].get):
        r = in_percent(found["fi_r"][head], found["r_ci"][head])
        told.append(f"{head} {r if told else r.replace(' (', ' % (')}")
    assert f"Four heads pass there: {', '.join(told)}." in text
    rows = found["evaluation"]["ablation"]
    assert {row["n_prompts"] for row in rows} == {60} and found["n_prompts"] == 100
    undone = [share(row["undone"], 2) for row in rows]
    ends = [" to ".join(share(end, 2) for end in row["undone_ci"]) for row in rows[::2]]
    told = "undo {} of the fall of F ({}), mean values {} ({}), an unrelated prompt's {} ({}), and "
    cells = [cell for pair in zip(undone[::2], ends, strict=True) for cell in pair]
    assert (told + "random heads {}, {} and {}.").format(*cells, *undone[1::2]) in text


def test_the_column_of_the_real_model_beside_others():
    found, side = full_study(), table("docs/results.md", REAL, "| the paper")
    own = {name: cells[1] for name, cells in side.items()}
    before, left, by_chance = (
        over_draws(of_the_full_study(8, "base", ours, name))
        for ours, name in ((1, "contrast_acc_before"), (1, "contrast_acc"), (0, "contrast_acc"))
    )
    fall = found["F"]["base"] - found["F"]["contrast"]
    reference = json.loads((ROOT / "reference/circuit.json").read_text())["F"]
    assert round((reference["base"] - reference["contrast"]) / fall) == 13
    assert "a thirteenth of ours" in real_text()
    *_, this, _, sentence = smollm.side_by_side(found)
    assert (
        f"{statistics.fmean(of_the_full_study(8, 'base', True, 'contrast_acc_before')):.3f}" in this
    )
    undone = [
        float(of.split()[0]) for of in (over_draws(of_the_full_study(8, "base", x)) for x in (1, 0))
    ]
    assert f"undo {undone[0]:.0%} of the shift in F" in sentence
    assert f"random heads {undone[1]:.0%}." in sentence
    assert own == {
        "": "SmolLM2-135M",
        "off by one at 8 shots": before.replace(")", ", three draws)"),
        "heads": str(len(found["attention"])),
        "FI heads (the paper: from 2 %; else 5 %)": str(len(found["fi_r"])),
        "r of the strongest, %": f"{100 * min(found['fi_r'].values()):.0f}",
        "the fall of F, logits": share(fall, 1),
        "off by one, base-run values in FI heads": left,
        "the same, random heads of these layers": by_chance,
    }


UNSEEN = {"all of ±1 to ±4": "all", "odd": "odd", "even": "even", "negative": "negative"}
UNSEEN |= {f"all but {k:+d}": f"all_but_{k:+d}" for k in (1, -1, 2, -3, 4)}
UNSEEN |= {"±1": "small", "±3, ±4": "large", "+1": "plus_one"}
UNSEEN_KS = (-4, -3, -2, -1, 1, 2, 3, 4)


def of_kind(kind, task):
    return [row for row in results("unseen_shifts") if (row["kind"], row["task"]) == (kind, task)]


def where_it_lies(k, shown):
    if k in shown:
        return "shown"
    return "between" if min(*shown, 0) < k < max(*shown, 0) else "beyond"


def short(share):
    return f"{share:.2f}".removeprefix("0")


def unseen_phrases():
    """What the prose says of unseen shifts, with the figures of the file."""

    def mean(kind, k, task="addition"):
        return short(statistics.fmean(row["accuracy"][str(k)] for row in of_kind(kind, task)))

    def ends(rows, *ks):
        shares = [row["accuracy"][str(k)] for row in rows for k in ks]
        return f"{short(min(shares))} to {short(max(shares))}"

    def between(kind, task="addition"):
        return [
            row["accuracy"][str(k)]
            for row in of_kind(kind, task)
            for k in UNSEEN_KS
            if where_it_lies(k, row["shifts"]) == "between"
        ]

    good = [between(kind) for kind in ("all_but_+1", "all_but_-1", "all_but_+2", "odd")]
    means = sorted(short(statistics.fmean(shares)) for shares in good[:3])
    means += [mean("odd", -2), mean("odd", 2)]
    even = of_kind("even", "addition")
    bad = min(even, key=lambda row: row["accuracy"]["1"])
    others = [row for row in even if row is not bad]
    worst = min(of_kind("all_but_-3", "addition"), key=lambda row: row["accuracy"]["-3"])
    ahead = [mean("negative", k) for k in (1, 2, 3, 4)]
    off_by_one = [row["accuracy"]["1"] for row in of_kind("negative", "addition")]
    return [
        f"{min(means)} to {max(means)} in four of seven diets, "
        f"and {short(min(min(shares) for shares in good))} or more in each of their runs",
        f"four runs of five have {ends(others, -3, -1, 1, 3)}, "
        f"and the fifth {ends([bad], -3, -1, 1, 3)}",
        f"±3 and ±4 alone give {short(statistics.fmean(between('large')))}",
        f"+4 is right on {mean('all_but_+4', 4)} where +3 is shown",
        f"+1 to +4 on {', '.join(ahead[:3])} and {ahead[3]} where −1 is",
        f"odd ones is right on {short(statistics.fmean(between('odd', 'first')))}",
        f"±3 and ±4 on {short(statistics.fmean(between('large', 'first')))}.",
        f"give +1 on `+` in {words(off_by_one)} of prompts",
        f"seed {worst['seed']} of all but −3 has {ends([worst], *UNSEEN_KS)} at every k",
    ]


def test_shifts_that_nobody_showed():
    section = "Shifts that nobody showed"
    by_k = table("docs/results.md", section, "shown on other functions | runs")
    by_place = table("docs/results.md", section, "shown on other functions | `+`: k")
    assert len(results("unseen_shifts")) == 2 * 12 * 5
    text = " ".join((ROOT / "docs/results.md").read_text().split())
    for phrase in unseen_phrases():
        assert phrase in text, phrase
    for name, kind in UNSEEN.items():
        some = of_kind(kind, "addition")
        means = [statistics.fmean(row["accuracy"][str(k)] for row in some) for k in UNSEEN_KS]
        assert by_k[plain(name)] == [str(len(some)), *map(short, means)]
        cells = []
        for task in ("addition", "first"):
            for where in ("shown", "between", "beyond"):
                shares = [
                    row["accuracy"][str(k)]
                    for row in of_kind(kind, task)
                    for k in UNSEEN_KS
                    if where_it_lies(k, row["shifts"]) == where
                ]
                cells.append(
                    f"{short(statistics.fmean(shares))} ({short(min(shares))})" if shares else "–"
                )
        assert by_place[plain(name)] == cells
