"""What the README and docs/results.md say of one run is what reference/circuit.json says.

Nothing of the project is imported but by the slow tests, which make what no file holds: the closing
table of `make train`, and the counts of `make check`.
"""

import functools
import json
import re

import pytest

from tests.test_docs_figures import ROOT, percents, plain, said, section, share, table, table_rows

RESULTS = "docs/results.md"
FI = ["2.1", "2.3", "3.2", "3.3", "3.5"]


@functools.cache
def circuit():
    return json.loads((ROOT / "reference/circuit.json").read_text())


def text_of(heading, page=RESULTS):
    """A section in one line, without marks of emphasis and code."""
    return plain(said(page, heading))


def holds(heading, *sentences):
    text = text_of(heading)
    for sentence in sentences:
        assert sentence in text


def listed(parts):
    """`a, b and c`."""
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def two(value):
    return share(value, 2).replace("-.00", ".00")


def ends(interval):
    return " to ".join(map(two, interval))


def percent(r):
    return f"{100 * r:.0f}"


def signed(r):
    """`+13` or `-27`."""
    return f"{100 * r:+.0f}"


def named(effects):
    """{node: r} of a sweep, the strongest first."""
    found = {"embedding": effects["embedding"]}
    found |= {f"mlp{layer}": r for layer, r in enumerate(effects["mlps"])}
    for layer, heads in enumerate(effects["heads"]):
        found |= {f"{layer}.{head}": r for head, r in enumerate(heads)}
    return dict(sorted(found.items(), key=lambda item: -abs(item[1])))


def sent(contrast, receiver):
    """{node: r} on a receiver. contrast: `answers`, as in the paper, or `operands`."""
    source = circuit() if contrast == "answers" else circuit()["operands_changed"]
    return named(source["effects"][receiver])


def looks(head, where="last_to_answers"):
    return circuit()["attention"][head][where]


def test_it_is_the_run_that_the_pages_tell_of():
    found = circuit()
    asked = [found[name] for name in ("task", "k", "shots", "n_prompts", "seed", "freeze_mlps")]
    assert asked == ["addition", 1, 8, 100, 0, False]
    assert found["accuracy_prompts"] == 500 and found["evaluation"]["n_prompts"] == 100
    assert found["groups"]["function_induction"] == FI
    last = (ROOT / "reference/metrics.jsonl").read_text().splitlines()[-1]
    assert (
        json.loads(last)["step"]
        == json.loads((ROOT / "results/seeds.json").read_text())[0]["steps"]
    )


# ---------------------------------------------------------------- who writes the answer


def r_rows():
    """Layer → its cells of the table of r on the logits, in %."""
    logits = circuit()["effects"]["logits"]
    rows = {}
    for layer, (heads, mlp) in enumerate(zip(logits["heads"], logits["mlps"])):
        rows[str(layer)] = [f"{100 * r:.1f}" for r in (*heads, mlp)]
    return rows


def test_r_of_each_node():
    shown = table(RESULTS, "Who writes the answer", "layer |")
    assert shown.pop("layer") == [*(f"h{head}" for head in range(6)), "mlp"]
    assert shown == r_rows() and len(shown) == 4


def test_r_of_each_node_in_the_readme():
    text = section("README.md", "What you will see")
    shown = re.findall(r"^ +(\d) +(-?\d+\.\d .*)$", text, flags=re.M)
    assert {layer: cells.split() for layer, cells in shown} == r_rows() and len(shown) == 4


def test_who_writes_the_answer():
    found, r = circuit(), sent("answers", "logits")
    asked = found["criteria"]
    strong = [node for node, each in r.items() if abs(each) >= asked["strong"]]
    heads = [node for node in strong if "." in node]
    through = sent("answers", "mlp3")
    brought = [f"{node} {percent(through[node])}" for node in through if through[node] <= -0.045]
    brought[0] = brought[0].replace(" ", " brings ")
    assert brought[0].startswith("2.3") and strong[0] == "mlp3"
    attentive = sorted(FI, key=lambda head: -looks(head))
    attention = [f"{head} with {two(looks(head))}" for head in attentive]
    attention[0] += " of its attention"
    known = [f"{head} {percents(*found['r_ci'][head])}" for head in heads]
    assert [head for head in heads if looks(head) < asked["looks_at_answers"]] == ["3.1"]
    holds(
        "Who writes the answer",
        f"last two layers and their MLPs write the answer: {', '.join(heads)}, mlp3 and mlp2.",
        f"Of mlp3's own {percent(r['mlp3'])} %, {listed(brought)}.",
        f"look at the earlier answers: {', '.join(attention)}. This",
        f"from |r| ≥ {percent(asked['strong'])} % and from {two(asked['looks_at_answers'])} of its",
        f"An even look gives {two(found['shots'] / (6 * found['shots'] + 5))}.",
        f"3.3 ({share(looks('3.3'))}) and 2.1 ({100 * r['2.1']:.1f} %) just count.",
        f"3.1 ({percent(r['3.1'])} %) gives answers {two(looks('3.1'))}, and just does not.",
        f"3.0 ({100 * r['3.0']:.1f} %, {two(looks('3.0'))}) misses both.",
        f"(95 %, bootstrap): {', '.join(known)}. So 2.1 may miss the",
    )
    assert set(strong) - set(heads) == {"mlp3", "mlp2"}
    assert abs(r["3.0"]) < asked["strong"] and looks("3.0") < asked["looks_at_answers"]
    assert found["r_ci"]["2.1"][1] > -asked["strong"]


def test_the_claims_of_one_run():
    found, r = circuit(), sent("answers", "logits")
    shown, expected = (found["routes"][name] for name in ("shown_answer", "expected_answer"))
    seven = circuits()["eliminated, shown answers alone"]
    reading = found["reading"]
    nearness = [each["among_answers"]["nearness"] for each in reading["looks_for"].values()]
    parts = [
        ends((min(values), max(values)))
        for values in (
            [each[name] for each in reading["hands_over"].values()]
            for name in ("separately", "difference_alone")
        )
    ]
    hits = found["function_vector_scores"]["parts"]["1"]["all"]["hits"]
    fi_r = ", ".join(percent(r[head]) for head in sorted(FI, key=r.get))
    holds(
        "Claims, figures, code",
        f"r = {fi_r} %; one more {percent(r['3.1'])} %",
        f"embedding {percent(shown['embedding'])} %; 1.3 {percent(expected['1.3'])} %, "
        f"1.0 {percent(expected['1.0'])} %",
        f"7 heads: {share(seven['base']['faithfulness'])} under it, "
        f"{share(seven['operands_changed']['faithfulness'])} when the operands change",
        f"nearness is {ends((min(nearness), max(nearness)))} of the variance",
        f"R² {parts[0]} for a sum of the two, {parts[1]} for their difference; no control",
        f"naive prompts answered x + 1: {two(hits)}",
    )


# ---------------------------------------------------------------- what reaches these heads


def test_the_two_routes():
    rows = table(RESULTS, "What reaches these heads", "contrast |")
    shown = {"shown answers changed (the paper's)": "shown_answer"}
    shown["operands changed (ours)"] = "expected_answer"
    for row, name in shown.items():
        route = circuit()["routes"][name]
        assert rows[row][1] == ", ".join(f"{node} {signed(r)}" for node, r in route.items()) + " %"
    assert len(rows) == len(shown) + 1


def test_on_which_input_a_sender_is_strongest():
    """Of all receivers that `route` reads, it is v of the five together, but for two senders."""
    found, together = circuit(), "function_induction.v"
    elsewhere = {}
    for contrast, route in (("answers", "shown_answer"), ("operands", "expected_answer")):
        for node, r in found["routes"][route].items():
            if r != sent(contrast, together)[node]:
                elsewhere.setdefault(node, []).append((contrast, r))
    assert {node: len(places) for node, places in elsewhere.items()} == {"2.1": 2, "mlp2": 1}
    of_one = [r for _, r in elsewhere["2.1"]]
    assert of_one == [sent(contrast, "3.2.v")["2.1"] for contrast, _ in elsewhere["2.1"]]
    of_five = [sent(contrast, together)["2.1"] for contrast in ("answers", "operands")]
    (mlp2,) = elsewhere["mlp2"]
    assert mlp2 == ("operands", sent("operands", "function_induction.k")["mlp2"])
    holds(
        "What reaches these heads",
        f"2.1 has {listed(map(signed, of_one))} % on v of 3.2 alone; on v of the five together it "
        f"has {listed(map(signed, of_five))} %.",
        f"mlp2 has {percent(mlp2[1])} % on k of the five together, and "
        f"{percent(sent('operands', together)['mlp2'])} % on v.",
        f"from {percent(found['criteria']['feeds'])} % on.",
    )


def ablated(label, how, beside="function_induction"):
    for row in circuit()["evaluation"]["ablation"]:
        if (row["ablated"], row["how"], row.get("beside", beside)) == (label, how, beside):
            return row


def test_who_brings_the_expected_answer():
    found = circuit()
    heads = found["evaluation"]["circuit"]
    previous = max(heads, key=lambda head: looks(head, "answer_to_previous"))
    at_operands = sorted(heads, key=lambda head: -looks(head, "answer_to_operands"))
    at_operands = [head for head in at_operands if looks(head, "answer_to_operands") >= 0.3]
    assert len(at_operands) == 5
    told = [f"{head} with {two(looks(head, 'answer_to_operands'))}" for head in at_operands]
    told[0] += " of its attention"
    route = ablated("expected_answer", "operands_changed")
    of_any = ablated("random_any_layer", "operands_changed", "expected_answer")
    others = ablated("random_same_layers", "operands_changed", "expected_answer")
    assert not found["groups"]["previous_token"]
    holds(
        "What reaches these heads",
        f"looks there is {two(looks(previous, 'answer_to_previous'))} of its attention "
        f"({previous}).",
        f"look at its operands: {', '.join(told)}.",
        f"the eight heads of the route together ({', '.join(route['heads'])}) take",
        f"off by one {share(route['contrast_acc'])}, plain {route['base_acc']:.3f}, of "
        f"{route['n_prompts']} prompts",
        f"Eight random heads of any layer leave {two(of_any['contrast_acc'])} "
        f"({of_any['n_draws']} draws of {of_any['n_prompts']} prompts, 95 % of them from "
        f"{ends(of_any['ci'])}).",
        f"The four other heads of layers 1 and 2 leave {share(others['contrast_acc'])}.",
        f"(Plain: {two(of_any['base_acc'])} and {share(others['base_acc'])}.)",
    )
    assert len(route["heads"]) == of_any["n_heads"] == 8
    assert (others["n_groups"], others["n_heads"]) == (1, 4)


# ---------------------------------------------------------------- ablation


def test_what_other_values_in_the_fi_heads_do():
    shown = table(RESULTS, "Ablation", "what ")
    assert f"what {', '.join(FI)} send" in shown
    own = circuit()["accuracy"]["contrast_prompt"]
    assert shown["their own values"] == [share(own["contrast"]), "", share(own["base"]), ""]
    for name in ("base", "mean", "unrelated", "same k", "same answer"):
        row = ablated("function_induction", name.replace(" ", "_"))
        (cells,) = (cells for first, cells in shown.items() if first.startswith(f"{name}: "))
        acc, floor = share(row["contrast_acc"]), share(row["floor"])
        assert cells == [acc, ends(row["ci"]), share(row["base_acc"]), floor]
        assert (row["heads"], row["n_prompts"]) == (FI, 500)


def test_what_is_said_of_other_values():
    mean, unrelated, same_k, same_answer = (
        ablated("function_induction", how) for how in ("mean", "unrelated", "same_k", "same_answer")
    )
    off = [share(row["contrast_acc"]) for row in (mean, unrelated)]
    floors = [share(row["floor"]) for row in (mean, unrelated)]
    holds(
        "Ablation",
        f"gives the plain sum on {share(mean['base_acc'])} of prompts",
        f"mislead it ({share(unrelated['base_acc'])} plain)",
        f"Under means {off[0]} are off by one, the floor is {floors[0]}; under unrelated values "
        f"{off[1]} and {floors[1]}.",
        f"another off-by-one prompt leave {share(same_k['contrast_acc'])}, hardly",
        f"asks for the same answer leave {share(same_answer['contrast_acc'])}. Put into plain "
        f"prompts, they bring that answer about too, on {share(same_answer['floor'])}.",
        f"more than the FI heads do ({off[0]} and {off[1]})",
    )


CONTROLS = ("random_same_layers", "random_any_layer")


def test_the_same_values_in_other_heads():
    shown = list(table(RESULTS, "Ablation", "other heads |").items())[1:]
    hows = ("base", "mean", "unrelated")
    for (_, cells), label in zip(shown, CONTROLS, strict=True):
        rows = [ablated(label, how) for how in hows]
        plains = ", ".join(share(row["base_acc"]) for row in rows)
        assert cells == [*(share(row["contrast_acc"]) for row in rows), plains]
        assert {(row["n_prompts"], row["n_heads"]) for row in rows} == {(50, 5)}
    layers, anywhere = (ablated(label, "base") for label in CONTROLS)
    rest = sorted(head for head in circuit()["attention"] if head[0] == "3" and head not in FI)
    assert [name for name, _ in shown] == [
        f"{', '.join(rest)} and two others of layer 2: {layers['n_groups']} groups, "
        f"{layers['n_prompts']} prompts",
        f"five of any layer, {anywhere['n_draws']} draws, {anywhere['n_prompts']} prompts",
    ]
    lie = [ablated("random_any_layer", how)["ci"] for how in ("mean", "unrelated")]
    between = [" and ".join(map(two, interval)) for interval in lie]
    holds("Ablation", f"between {between[0]} with means, and between {between[1]} with unrelated")


# ---------------------------------------------------------------- is the circuit enough


ALL, BOTH, SHOWN = (
    "union of groups",
    "eliminated, both contrasts",
    "eliminated, shown answers alone",
)
OTHERS_SEND = {"base": "base", "operands changed": "operands_changed", "mean": "mean"}
IS_ENOUGH = "Is the circuit enough"


def circuits():
    """{circuit: {what the others send: row}}."""
    found = {}
    for row in circuit()["evaluation"]["circuits"]:
        found.setdefault(row["circuit"], {})[row["replaced_by"]] = row
    return found


def drawn(random):
    """`mean, best [plain]` of random circuits, or nothing where there are none."""
    if random is None:
        return ""
    return f"{share(random['mean'])}, {share(random['highest'])} [{share(random['base_acc'])}]"


@pytest.mark.parametrize("place", range(9))
def test_circuits_alone(place):
    rows = table_rows(RESULTS, IS_ENOUGH, "circuit |")[1:]
    name = (ALL, BOTH, SHOWN)[place // 3]
    cells = rows[place]
    row = circuits()[name][OTHERS_SEND[cells[1]]]
    assert len(rows) == 9 and row["n_prompts"] == 100
    assert list(OTHERS_SEND)[place % 3] == cells[1]
    assert cells[0].startswith(f"{len(row['heads'])} heads")
    assert cells[2:] == [
        share(row["faithfulness"]),
        ends(row["faithfulness_ci"]),
        share(row["circuit_accuracy"]),
        share(row["base_acc"]),
        share(row["others_alone"]["faithfulness"]),
        drawn(row["random_circuits"]),
        drawn(row["random_lower"]),
    ]
    for random in (row["random_circuits"], row["random_lower"]):
        assert random is None or random["n_draws"] == 10


def test_which_heads_the_circuits_have():
    found = circuit()
    heads, groups = set(found["evaluation"]["circuit"]), found["groups"]
    bring = sorted(set(groups["expected_answer"]) - set(FI))
    rest = sorted(heads - {*FI, *bring, *groups["other_direct"]})
    lower = [head for head in heads if head[0] != "3" and head not in FI]
    upper = {layer: sum(head[0] == layer for head in heads) for layer in "23"}
    seven = circuits()[SHOWN]["base"]["heads"]
    assert (len(heads), len(rest), len(lower), upper) == (15, 3, 8, {"2": 5, "3": 5})
    left = listed(sorted(set(seven) - set(FI)))
    holds(
        IS_ENOUGH,
        f"six more that bring the expected answer ({', '.join(bring)}), "
        f"{', '.join(groups['other_direct'])}, and three beside or below these "
        f"({', '.join(rest)}).",
        f"The five FI heads with {left} reach",
        f"(Seed 0, {circuit()['evaluation']['n_prompts']} prompts that",
    )


def test_what_is_said_of_the_circuits():
    found, evaluation = circuits(), circuit()["evaluation"]
    of_all, of_seven, of_both = found[ALL], found[SHOWN], found[BOTH]
    alone = max(row["others_alone"]["faithfulness"] for row in of_all.values())
    lower = [of_all[how]["random_lower"] for how in ("base", "operands_changed")]
    overlaps = [row["base"]["random_circuits"]["overlap"] for row in (of_all, of_both, of_seven)]
    changed = evaluation["operands_changed"]
    needed, needed_changed = evaluation["minimality"], changed["minimality"]
    pairs = [of_all["mean"], of_both["mean"]]
    holds(
        IS_ENOUGH,
        f"reach {share(of_seven['base']['faithfulness'])} under it and "
        f"{share(of_seven['operands_changed']['faithfulness'])} when the operands change.",
        f"outside the fifteen reach {two(alone)} at most.",
        f"reach {share(lower[0]['mean'])} under base values, and {share(lower[1]['mean'])} when "
        f"the operands change (best of ten {share(lower[1]['highest'])}). Such a draw shares "
        f"{two(lower[0]['overlap'])} of its heads",
        "share {} of the fifteen heads on average ({} of the thirteen, {} of the seven)".format(
            *map(two, overlaps)
        ),
        "It is {:.3f} where {} of the answers are right, and {} where {} are.".format(
            pairs[0]["faithfulness"],
            share(pairs[0]["circuit_accuracy"]),
            share(pairs[1]["faithfulness"]),
            share(pairs[1]["circuit_accuracy"]),
        ),
        f"differ by at most {share(evaluation['completeness'])} of F's range (base, 95 % "
        f"{ends(evaluation['completeness_ci'])}) and {share(changed['completeness'])} (operands "
        f"changed, {ends(changed['completeness_ci'])})",
        f"under base values 2.3 moves F by {two(needed['2.3'])} of its range and 1.0 by "
        f"{two(needed['1.0'])}. Under changed operands 1.0 ({two(needed_changed['1.0'])}) counts "
        f"as much as 2.3 ({two(needed_changed['2.3'])}).",
    )


# ---------------------------------------------------------------- what the heads carry


def test_where_the_heads_look():
    found = circuit()["reading"]["looks_for"]
    strongest = ("2.3", "3.2", "3.5")
    at = {}
    for distance in (1, 5):
        attention = [found[head]["by_distance"][distance] for head in strongest]
        at[distance] = ends((min(attention), max(attention)))
    far = {head: two(found[head]["by_distance"][18]) for head in strongest}
    near = {head: two(each["among_answers"]["nearness"]) for head, each in found.items()}
    shown = [two(found[head]["among_answers"]["shown"]) for head in ("2.1", "3.3")]
    example = max(each["among_answers"]["example"] for each in found.values())
    assert shown[0] == shown[1]
    holds(
        "What the heads carry",
        f"{at[1]} of their attention at distance 1, {at[5]} at distance 5.",
        f"3.2 gives {far['3.2']} again, 3.5 even {far['3.5']}.",
        f"Nearness explains {near['2.3']} (2.3), {near['3.2']} (3.2) and {near['3.5']} (3.5) of",
        f"In 2.1 and 3.3 it explains {near['2.1']} and {near['3.3']}, and what was shown "
        f"{shown[0]} in each.",
        f"first or last, explains {two(example)} at most.",
    )


def test_which_input_counts():
    found = circuit()["reading"]["inputs"]["all"]
    under = {}
    for contrast in ("base", "operands_changed"):
        under[contrast] = {which: percent(-found[which][contrast]["r"]) for which in "qkv"}
    base, operands = under.values()
    holds(
        "What the heads carry",
        f"in v take F back by {base['v']} %, in k by {base['k']} %; in q they take it "
        f"{base['q'].removeprefix('-')} % further away.",
        f"Under changed operands v takes it back by {operands['v']} %, k by {operands['k']} % and "
        f"q by {operands['q']} %.",
    )
    assert base["q"].startswith("-")


def test_what_the_heads_hand_over():
    found = circuit()["reading"]["hands_over"]
    parts = {}
    for name in ("separately", "difference_alone"):
        values = [each[name] for each in found.values()]
        parts[name] = ends((min(values), max(values)))
    holds(
        "What the heads carry",
        f"a sum of two parts, to R² {parts['separately']}:",
        f"f(x, y) alone explains {parts['difference_alone']}.",
    )


def test_the_shift_that_the_heads_carry():
    swap = circuit()["evaluation"]["shift_swap"]
    rows = {}
    for row in swap["rows"]:
        rows.setdefault(row["swapped"], []).append(row)
    (five,) = rows["function_induction"]
    how = ("answers", "operands")
    one = {row["heads"][0]: row for row in rows["one_fi_head"]}
    order = sorted(one, key=lambda head: -one[head]["answers"]["moved"])
    alone = [", ".join(two(one[head][key]["moved"]) for head in order[:-1]) for key in how]
    last = [two(one[order[-1]][key]["moved"]) for key in how]
    others = {row["heads"][0]: row for row in rows["one_other_head"]}
    (passing,) = (head for head, row in others.items() if row["passes"])
    groups = rows["random_same_layers"]
    moved = [sorted(row[key]["moved"] for row in groups) for key in how]
    assert all(row["passes"] for row in one.values()) and len(others) == 7
    assert all("3.1" in row["heads"] for row in groups) and len(groups) == 5
    first, second = (
        f"{two(five[key]['moved'])}{words} {ends(five[key]['ci'])})"
        for key, words in zip(how, (" of the way (95 %", " ("))
    )
    holds(
        "What the heads carry",
        f"The five together move the answer {first} and {second.replace('( ', '(')}.",
        "The other shift's answer is given on {} and {}, the plain one on {} and {}.".format(
            *(two(five[key][name]) for name in ("other_acc", "base_acc") for key in how)
        ),
        f"Alone they move it {alone[0]} and {last[0]} ({', '.join(order)}), and {alone[1]} and "
        f"{last[1]}.",
        f"whose two intervals lie above {two(swap['least'])}:",
        "Of the other heads of these layers {} passes too ({} and {})".format(
            passing, *(two(others[passing][key]["moved"]) for key in how)
        ),
        f"move it {ends((moved[0][0], moved[0][-1]))} and {ends((moved[1][0], moved[1][-1]))}.",
        f"(Of {swap['n_prompts']} prompts.",
    )


def test_function_vectors():
    scores = circuit()["function_vector_scores"]
    moves = {int(k): part["all"]["moves"] for k, part in scores["parts"].items()}
    hits = {int(k): part["all"]["hits"] for k, part in scores["parts"].items()}
    plain_moves = scores["parts"]["1"]["all"]["plain_moves"]
    others = [k for k in hits if k != 1]
    by = {k: f"{moves[k]:.1f}" for k in others}
    assert hits[1] == 0
    most = two(max(hits[k] for k in others))
    holds(
        "What the heads carry",
        f"It moves x → x + 1 by {moves[1]:.2f} logits, the vector of plain prompts by "
        f"{two(plain_moves)}.",
        f"of -1 and +2 {by[-1]} and {by[2]} logits, of -2 {by[-2]}, of -4, -3, +3 and +4 "
        f"{by[-4]}, {by[-3]}, {by[3]} and {by[4]}.",
        f"none of them makes more than {most} answer x + k.",
    )
    large = sorted(moves[k] for k in others if k < -1 or k > 2)
    holds(
        "Differences from the paper",
        f"it moves x → x + 1 by {moves[1]:.2f} logits, the vector of plain prompts by "
        f"{two(plain_moves)}.",
        f"-4 to -2 and +3, +4 by {large[0]:.1f} to {large[-1]:.1f} logits, and bring the answer "
        f"about on {most} at most.",
    )


def test_the_column_of_this_run_beside_real_models():
    found, heading = circuit(), "A real language model"
    shown = {name: cells[-1] for name, *cells in table_rows(RESULTS, heading, "| the paper")}
    own, F = found["accuracy"]["contrast_prompt"]["contrast"], found["F"]
    r = min(found["effects"]["logits"]["heads"][2])
    assert shown["off by one at 8 shots"] == share(own)
    assert shown["heads"] == str(len(found["attention"]))
    assert shown["FI heads (the paper: from 2 %; else 5 %)"] == str(len(FI))
    assert shown["r of the strongest, %"] == percent(r)
    assert shown["the fall of F, logits"] == f"{F['base'] - F['contrast']:.0f}"
    left, by_chance = (
        share(ablated(who, "base")["contrast_acc"])
        for who in ("function_induction", "random_same_layers")
    )
    assert shown["off by one, base-run values in FI heads"] == left
    assert shown["the same, random heads of these layers"] == by_chance


# ---------------------------------------------------------------- what no file holds


def test_how_many_documents_the_run_was_trained_on():
    from train import TrainConfig

    config = json.loads((ROOT / "reference/config.json").read_text())["train"]
    cfg = TrainConfig(**config)
    n_documents = sum(cfg.batch_at(step)[0] for step in range(1, cfg.steps + 1))
    holds("What is never shown", f"the {n_documents:,} that the reference run was trained on")


@pytest.fixture
def closing_table():
    """Name → (five shares, what stands beside them), as `make train` prints them."""
    import tasks
    import train
    from minifunc.report.accuracy import accuracy_table
    from minifunc.support.settings import TABLE_PROMPTS

    kept = json.loads((ROOT / "reference/learning.json").read_text())["accuracy"]
    printed = accuracy_table(kept, tasks, tasks.DEFAULT_DIET, train.SHOTS, TABLE_PROMPTS)
    lines = re.findall(r"^(\w.*?) +((?: ?\d\.\d{3}){5})(.*)$", "\n".join(printed), re.M)
    return {name: (shares.split(), beside.strip()) for name, shares, beside in lines}


OTHER_TASKS = {
    "Caesar's cipher": "caesar shifted",
    "base 6 to 9, sums that carry": "base addition carry 6..9",
    "base 6 to 9, sums that don't": "base addition no carry 6..9",
}


def test_the_closing_table(closing_table):
    shown = table(RESULTS, "Accuracy", "task |")
    shown.pop("task")
    assert len(shown) == 14
    for name, (*figures, _) in shown.items():
        shares, _ = closing_table[OTHER_TASKS.get(name, name)]
        assert figures == [share(float(each)) for each in shares]
    text = section("README.md", "What you will see")
    rows = re.findall(r"^(addition .*?) +((?: ?\d\.\d{3}){5})(.*)$", text, re.M)
    assert len(rows) == 6
    for name, shares, beside in rows:
        assert closing_table[name] == (shares.split(), beside.strip())


NUMBER = r"(\d+\.\d) %"


@pytest.fixture
def checked(tmp_path, monkeypatch):
    """The checks of the reference run, by name, and the shares that each tells."""
    from commands import check

    monkeypatch.chdir(tmp_path)
    assert check.main(["--run", str(ROOT / "reference"), "--device", "cpu"]) == 1
    rows = json.loads((tmp_path / "out/reference/check.json").read_text())["checks"]
    for row in rows:
        row["shares"] = re.findall(NUMBER, row["measured"])
        row["n"] = (re.findall(r"(\d+) prompts", row["measured"]) or [""])[0]
    return {row["name"]: row for row in rows}


@pytest.mark.slow
def test_the_counts_of_make_check(checked):
    verdicts = [row["verdict"] for row in checked.values()]
    counted = [verdicts.count(verdict) for verdict in ("pass", "fail", "could not tell")]
    names = ("spreads", "rest_intact", "odd_among_new", "others")
    (spreads, low, high), intact, odd, others = (checked[name]["shares"] for name in names)
    failing = {name for name in checked if checked[name]["verdict"] != "pass"}
    assert (counted, failing) == ([9, 2, 2], set(names))
    assert "3 groups" in checked["others"]["measured"]
    threshold = percent(checked["rest_intact"]["threshold"])
    assert percent(checked["others"]["threshold"]) == threshold
    holds(
        "Accuracy",
        f"asks the run {len(verdicts)} plain questions. Nine pass, two fail, two cannot be told.",
        f"shifts that too ({spreads} % of {checked['spreads']['n']} prompts, {low} to {high})",
        f"{intact[0]} % of the plain answers of all tasks stay right "
        f"({checked['rest_intact']['n']} prompts, {intact[1]} to {intact[2]}; {threshold} wanted).",
        f"Two shares are at least {threshold} % as wanted",
        f"{odd[0]} % of answers still follow the new rule "
        f"({checked['odd_among_new']['n']} prompts, {odd[1]} to {odd[2]}).",
        f"the worst of three groups of other heads of the same layers leaves {others[0]} % off by "
        f"one ({others[1]} to {others[2]}).",
    )
    holds("Ablation", f"counts {intact[0]} % of the plain answers of all tasks still right")
