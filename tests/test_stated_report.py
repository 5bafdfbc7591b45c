"""What the report and the terminal say of what was found, with a circuit made up by hand."""

import html
import math
import re
from types import SimpleNamespace

import pytest

import tasks
from minifunc.report import accuracy, checklist, learned, pictures, sections, terminal, titles
from minifunc.report.html import Markup, h, inside, percent, signed
from minifunc.support.evaluation import wilson

HEADS = [[0.04, -0.05], [-0.6, 0.3], [-0.2, 0.01]]
LOOKS = {"last_to_answers": 0.5, "previous": 0.25}


def four(task, k, shares, items="all", n=100):
    """Rows of `reuse`: base prompts, contrast prompts, without FI heads, without random ones."""
    about = {"task": task, "k": k, "items": items, "n_prompts": n, "ci": [0.1, 0.3]}
    return [about | {"base_acc": base, "contrast_acc": other} for base, other in shares]


def replaced(who, how, base, contrast, **more):
    row = {"ablated": who, "how": how, "base_acc": base, "contrast_acc": contrast}
    return row | {"heads": ["1.0"], "n_prompts": 100, "ci": [0.1, 0.3]} | more


def alone(outside, faithful, **more):
    row = {"circuit": "union", "heads": ["0.1", "1.0", "2.0"], "replaced_by": outside}
    row |= {"faithfulness": faithful, "faithfulness_ci": [faithful - 0.1, faithful + 0.1]}
    row |= {"circuit_accuracy": 0.75, "base_acc": 0.125, "random_lower": None}
    row |= {"others_alone": {"faithfulness": 0.05, "faithfulness_ci": [0.0, 0.1]}}
    return row | {"random_circuits": {"mean": 0.2, "highest": 0.4, "overlap": 0.33}} | more


def circuit():
    effects = {"embedding": -0.01, "heads": HEADS, "mlps": [0.0, 0.07, -0.02]}
    groups = {"function_induction": ["1.0", "2.0"], "expected_answer": ["0.1"], "shown_answer": []}
    shares = {"base": 0.97, "contrast": 0.02}, {"base": 0.03, "contrast": 0.92}
    c = {"task": "addition", "k": 1, "asked": "off by +1", "shots": 8, "n_prompts": 100}
    c |= {"freeze_mlps": False, "device": "cpu", "accuracy_prompts": 500, "groups": groups}
    c |= {"accuracy": dict(zip(("base_prompt", "contrast_prompt"), shares))}
    c |= {"F": {"base": 5.0, "contrast": -3.0}, "effects": {"logits": effects}}
    c |= {"F_ci": {"base": [4.5, 5.5], "contrast": [-3.5, -2.5]}}
    c |= {
        "criteria": {"strong": 0.05, "solves": 0.5},
        "attention": dict.fromkeys(flat(groups), LOOKS),
    }
    c |= {"r_ci": {head: [-0.7, -0.5] for head in flat(groups)}}
    c |= {"routes": {"shown_answer": {"mlp0": -0.4, "0.0": 0.2}, "expected_answer": {"0.1": -0.9}}}
    ablation = [replaced("function_induction", "base", 0.9, 0.04)]
    ablation.append(replaced("function_induction", "mean", 0.3, 0.2, floor=0.15))
    worst = {"contrast_acc": 0.7, "heads": ["1.1"]}
    drawn = {"n_draws": 20, "n_heads": 2.0, "n_groups": 4, "worst": worst}
    ablation.append(replaced("random_same_layers", "base", 0.06, 0.88, **drawn))
    ablation.append(replaced("function_induction", "unrelated", 0.1, 0.11))
    swaps = [{"swapped": "all_fi", "passes": True, "answers": {"moved": 0.81}}]
    swaps += [{"swapped": "one_fi_head", "passes": passes} for passes in (True, False, True)]
    swaps += [{"swapped": "one_other_head", "passes": True}]
    c |= {"evaluation": {"ablation": ablation, "shift_swap": {"rows": swaps}, "n_prompts": 300}}
    c["evaluation"] |= {"circuit": ["0.1", "1.0", "2.0"], "completeness": 0.12}
    circuits = [alone("base_values", 0.9), alone("other_operands", 0.8), alone("mean", 0.5)]
    c["evaluation"]["circuits"] = [*circuits, alone("mean", 0.1, circuit="FI")]
    c["reuse"] = four("caesar", -1, [(0.9, 0.1), (0.2, 0.8), (0.7, 0.3), (0.2, 0.6)])
    c["reuse"] += four("base_addition", 8, [(1, 0), (0.5, 0.5), (1, 0), (1, 0)], "no carry")
    c["reuse"] += four("addition", 2, [(0.8, 0.2), (0.0, 0.6), (0.9, 0.1), (0.1, 0.5)])
    mixtures = [
        {"offsets": [0], "unseen_offset_share": 0.9, "r2": {"attention": 0.1, "uniform": 0}}
    ]
    r2 = {"attention": 0.91, "uniform": 0.62}
    mixed = {"offsets": [-1, 1], "unseen_offset_share": 0.25, "r2": r2, "n_prompts": 200}
    mixtures.insert(0, mixed | {"r2_ci": {"attention": [0.88, 0.93], "uniform": [0.5, 0.7]}})
    return c | {"averaging": {"mixtures": mixtures}}


def flat(groups):
    return [head for heads in groups.values() for head in heads]


# ---------------------------------------------------------------- the terminal


def test_the_nodes_that_write_the_answer_are_told_strongest_first_and_from_the_criterion_on():
    fi, others = terminal.direct_writers(circuit())
    assert list(fi.items()) == [("1.0", pytest.approx(-0.6)), ("2.0", pytest.approx(-0.2))]
    assert list(others) == ["1.1", "mlp1", "0.1"]  # -0.05 counts, 0.04 does not
    assert terminal.r_of(circuit(), "1.0") == pytest.approx(-60)
    assert terminal.members(circuit()) == ["0.1", "1.0", "2.0"]
    assert terminal.in_words({"a": -0.344, "b": -0.2}) == "a (-34 %) and b (-20 %)"
    assert terminal.in_words({"a": -0.3, "b": 0.2, "c": 0.1}) == "a (-30 %), b (20 %) and c (10 %)"
    assert terminal.in_words({"a": -0.3}) == "a (-30 %)"
    many = {name: -0.5 for name in "abcdef"}
    assert terminal.named(many) == "a -50, b -50, c -50, d -50"  # the four strongest
    lines = terminal.traced(circuit())
    told = {line[2:22].strip(): line[22:] for line in lines[1:]}
    assert told == {
        "function induction": "1.0 -60, 2.0 -20",
        "other writers": "1.1 +30, mlp1 +7, 0.1 -5",
        "the shown answers": "reach them from mlp0 -40, 0.0 +20",
        "the expected ones": "reach them from 0.1 -90",
    }


@pytest.mark.parametrize("freeze, word", [(False, "live"), (True, "frozen")])
def test_what_was_asked_is_told_with_both_shares(freeze, word):
    first, columns, base, contrast = terminal.solved(circuit() | {"freeze_mlps": freeze})
    assert first == f"addition off by +1, 8 shots, 100 prompts, {word} MLPs, on cpu"
    assert re.split(r"\s{2,}", columns) == ["shares of 500 prompts", "plain answer", "off by +1"]
    assert base.split() == ["base", "prompts", "0.970", "0.020"]
    assert contrast.split() == ["contrast", "prompts", "0.030", "0.920"]
    [F] = terminal.logit_differences(circuit())
    assert F.endswith("base 5.00 (4.50 to 5.50), contrast -3.00 (-3.50 to -2.50)")
    assert F.startswith("F = logit(plain) - logit(off by +1)")


def columns_of(line):
    return re.split(r"\s{2,}", line.strip())


def test_circuits_alone_are_told_beside_all_others_and_random_ones():
    says, columns, *rows, last = terminal.enough(circuit())
    assert "Its 3 heads alone, 300 other prompts" in says and len(rows) == 3
    wanted = ["all else sends", "faithfulness", "off by +1", "plain", "others", "random"]
    assert columns_of(columns) == wanted
    assert columns_of(rows[0]) == ["base values", "0.90 (0.80 to 1.00)", "0.75", "0.12"] + [
        "0.05",
        "0.20",
    ]
    assert [columns_of(row)[0] for row in rows] == ["base values", "other operands", "mean"]
    assert last.endswith("misses at most 12% of F")


def test_heads_replaced_are_told_by_setting():
    lines = terminal.needed(circuit())
    rows = [columns_of(line) for line in lines]
    assert rows[0] == ["is it needed?", "plain answer", "off by +1"]
    assert rows[1:] == [
        ["FI heads, base values", "0.900", "0.040"],
        ["FI heads, mean values", "0.300", "0.200"],
        ["random heads of these layers, base values", "0.060", "0.880"],
        ["FI heads, unrelated values", "0.100", "0.110"],
    ]
    rows = [columns_of(line) for line in terminal.ablated(circuit())[4:]]
    start = ["function induction", "1.0", "mean", "100", "0.300", "0.200", "0.10 to 0.30"]
    assert rows[1] == [*start, "0.150", "–", "–"]
    assert rows[0][-3:] == ["–", "–", "–"]  # nothing was put into base prompts
    random = ["random same layers", "20 draws of 2, 4 groups", "base", "100", "0.060", "0.880"]
    assert rows[2] == [*random, "0.10 to 0.30", "–", "0.700", "1.1"]


def test_in_short_shifts_swapped_mixed_rules_and_other_tasks():
    [line] = terminal.carried(circuit())
    assert line == "given another shift's: 2 of 3 move the answer, together 81% of the way"
    [line] = terminal.averages(circuit())
    assert "25% of answers are off by what none shows" in line
    assert line.endswith("R² 0.91, 95 % from 0.88 to 0.93 (their unweighted mean: 0.62)")
    [line] = terminal.spared(circuit())
    assert line == (  # means of caesar and addition; base 8 without a carry is no shift
        "the same heads on 2 tasks: shifted and plain answers 0.70 and 0.10, without them "
        "0.20 and 0.80, without as many random ones 0.55 and 0.15 (means)"
    )
    asked = [terminal.asked_in(rows) for rows in terminal.fours(circuit())]
    assert asked == ["caesar -1", "base 8, no carry", "addition +2"]
    nothing = {"evaluation": {}, "reuse": circuit()["reuse"][4:8]}
    assert terminal.carried(nothing) == terminal.averages(nothing) == terminal.spared(nothing) == []


def test_the_conclusion_names_the_fi_heads_and_what_is_left():
    [said] = terminal.conclusion(circuit())
    assert said.startswith("Addition off by +1 (right on 92.0%) is carried to the answer by ")
    assert "by 1.0 (-60 %) and 2.0 (-20 %): heads" in said
    assert "the answer is plain on 90.0%; with mean values on 30.0%," in said
    none = circuit() | {"groups": {"function_induction": []}}
    [said] = terminal.conclusion(none)
    assert "addition off by +1 (right on 92.0% of prompts): no head moves the answer" in said
    none["accuracy"]["contrast_prompt"]["contrast"] = 0.49
    assert terminal.conclusion(none)[0].endswith("the model does not do the task.")
    none["accuracy"]["contrast_prompt"]["contrast"] = 0.5
    assert "no head moves" in terminal.conclusion(none)[0]
    assert terminal.traced(none) == []


def test_in_short_only_the_conclusion_is_set_off():
    for step in terminal.PARTS:
        for full in (False, True):
            if (step, full) in (("enough", True), ("circuit", True)):
                continue  # longer than what is made up here
            lines = terminal.told(step, circuit(), full)
            assert (lines[0] == "") == (full or step == "conclusion")
    assert "where they look" in "".join(terminal.told("circuit", circuit(), True))
    assert "where they look" not in "".join(terminal.told("circuit", circuit(), False))


# ---------------------------------------------------------------- titles


def findings(**parts):
    c = parts.get("circuit") or circuit()
    more = {"circuit": c, "fi": c["groups"]["function_induction"], "n_heads": 6, "config": {}}
    return SimpleNamespace(**more | parts)


def test_titles_say_how_many_which_and_on_what():
    f = findings()
    assert titles.title_of(f, "circuit", "") == (
        "The answer by the rule comes through 2 of 6 heads, 1.0 most"
    )
    assert titles.title_of(f, "proof", "") == (
        "Swap these heads: 4.0 % of prompts still follow the new rule; swap others: 88.0 %"
    )
    assert titles.title_of(f, "averaging", "") == (
        "The heads average: shown −1 and +1 mixed, it answers in a way that no example showed "
        "on 25 % of 200 prompts"
    )
    rows = [{"verdict": "pass"}] * 3 + [{"verdict": "fail"}, {"verdict": "could not tell"}]
    f.check = {"checks": rows}
    assert titles.title_of(f, "checklist", "") == "What may go wrong: 3 of 5 checks pass, 1 fail"
    f.learning = {"criteria": {"solves": 0.5}}
    looks = [(0, 0.6), (10, 0.4), (1200, 0.5), (3500, 0.9)]
    f.learning["looks"] = [{"step": step, "off_by_one": share} for step, share in looks]
    said = "From step 1,200 on, 50 % or more of off-by-one sums are right"
    assert titles.title_of(f, "learned", "") == said
    sets = (["1.0"], ["2.0", "2.1", "1.1"], [], ["1.0"])
    f.seeds = [{"groups": {"function_induction": heads}} for heads in sets]
    assert titles.title_of(f, "seeds", "") == (
        "3 of 4 models have such heads, 1 to 3 each, in 2 different sets of places"
    )
    assert titles.title_of(f, "path", "plain") == "plain"


@pytest.mark.parametrize(
    "diet, task, k, is_unseen",
    [
        ({"shifts": [2, 3]}, "addition", 1, True),
        ({"shifts": [1, 2]}, "addition", 1, False),
        ({"shifts": [1], "never": [["shift", "+"]]}, "addition", 1, True),
        ({"shifts": [1], "never": [["shift", "+"]], "shifted_addition": [1]}, "addition", 1, False),
        (
            {"shifts": [1, 2], "never": [["shift", "+"]], "shifted_addition": [2]},
            "addition",
            1,
            True,
        ),
        ({"shifts": [1], "never": [["shift", "+"]]}, "caesar", 1, False),
        ({"bases": [8]}, "base_addition", 8, False),
        ({"bases": [7], "shifts": [8]}, "base_addition", 8, True),
        ({}, "addition", 1, False),
    ],
)
def test_a_rule_is_unseen_where_the_diet_never_shows_it(diet, task, k, is_unseen):
    assert titles.unseen(findings(config={"diet": diet}), task, k) == is_unseen


# ---------------------------------------------------------------- while it learned


def test_what_appears_lasts_from_its_step_to_the_end():
    criteria = {"solves": 0.5, "strong": 0.05, "looks_at_answers": 0.3}
    held = [(0, 0.9, ["1.0"]), (5, 0.4, ["1.0"]), (9, 0.5, []), (1200, 0.6, ["1.0"])]
    looks = [{"step": step, "off_by_one": share, "fi": fi} for step, share, fi in held]
    looks.append({"step": 3500, "off_by_one": 0.8, "fi": ["1.0", "2.0"]})
    said = learned.appeared(looks, criteria)
    assert said.startswith("Off-by-one addition is there from step 9; heads that carry it: ")
    assert "1.0 from step 1,200, 2.0 from step 3,500. " in said
    for share in ("at least 50 % of these sums", "at least 5 % of the way", "at least 30 % of its"):
        assert share in said
    looks[-1] = looks[-1] | {"off_by_one": 0.1}
    said = learned.appeared(looks, criteria)
    assert "is not there in the end" in said and "1.0 never for good, 2.0 never for good" in said
    looks[-1] = looks[-1] | {"fi": []}
    assert "that carry it: none." in learned.appeared(looks, criteria)
    steps = [{"step": step} for step in (1, 2, 3)]
    for bits, first in (("111", 1), ("011", 2), ("101", 3), ("110", None), ("001", 3)):
        assert learned.since(steps, [bit == "1" for bit in bits]) == first


def test_accuracy_while_it_learned_is_at_8_shots_or_the_most_there_are():
    def line(*shots):
        shares = [{n: k + i / 10 for i, n in enumerate(shots)} for k in (0, 1)]
        return {"step": 7.0, "accuracy": {"addition": {"0": shares[0], "1": shares[1]}}}

    of_8 = {"step": 7, "plain": pytest.approx(0.2), "off_by_one": pytest.approx(1.2)}
    assert learned.accuracies(line("1", "2", "8", "16")) == of_8
    assert learned.accuracies(line("1", "2", "4")) == of_8


# ---------------------------------------------------------------- the table of train.py


def test_the_table_of_accuracy_marks_what_the_diet_never_shows():
    diet = tasks.DEFAULT_DIET  # shows no +1, and + not shifted at all
    ks = map(str, range(-4, 5))
    table = {"addition": {k: {"1": 0.25, "8": 0.5} for k in ks}}
    shifted = {k: {"1": 0.25, "8": 1.0 if k == "2" else 0.0} for k in map(str, range(-4, 5))}
    table["subtraction"] = shifted
    table["base_addition"] = {k: {"1": 0.5, "8": 0.75} for k in ("6", "7", "8", "9")}
    about, few, columns, *lines = accuracy.accuracy_table(table, tasks, diet, (1, 8), 96)
    assert about.startswith("accuracy on 96 prompts") and columns.split() == [
        "task",
        "shots",
        "1",
        "8",
    ]
    rows = {line[:30].strip(): line[30:].split(maxsplit=2) for line in lines}
    assert rows["addition plain"] == ["0.250", "0.500"]
    for k in (-4, -1, 1, 2):
        assert rows[f"addition off by {k:+d}"] == ["0.250", "0.500", "never trained on"]
    assert rows["subtraction plain"] == ["0.250", "0.000"]
    assert rows["subtraction shifted"] == ["0.250", "0.125", "but never by +1"]  # a mean over 8 k
    base = rows["base addition 6..9"]
    assert base[:2] == ["0.500", "0.750"] and base[2] == "never trained on"
    names = [line[:30].strip() for line in lines]
    assert (
        names[:2] == ["addition plain", "addition off by -4"] and names[-1] == "base addition 6..9"
    )
    half = tasks.Diet("half", shifted_addition=(-1,), never=())
    rows = accuracy.accuracy_table(table, tasks, half, (8, 16), 96)
    assert all("never" not in row and row.count("nan") == 1 for row in rows[3:])


# ---------------------------------------------------------------- pictures, numbers


@pytest.mark.parametrize(
    "most, root, value, sign, size",
    [(1.0, False, -0.25, "neg", 25), (1.0, True, -0.25, "neg", 50), (2.0, False, 0.5, "pos", 25),
     (100, True, 81, "pos", 90), (1.0, False, 3.0, "pos", 100), (0, False, 0.5, "pos", 0),
     (1.0, True, 0.0, "pos", 0)],
)  # fmt: skip
def test_a_colour_is_as_strong_as_its_value(most, root, value, sign, size):
    shade = pictures.Scale(most, root).shade(value)
    assert shade == {"class_": sign, "style": f"--v:{size}%"}


def test_a_legend_runs_from_one_end_of_the_scale_to_the_other():
    made = pictures.Scale(100, root=True).legend("r in %", "back", "on")
    swatches = re.findall(r'<span class="(neg|pos)" style="--v:(\d+)%">(.*?)</span>', made)
    values = ["−100", "−50", "−25", "−5", "0", "+5", "+25", "+50", "+100"]
    assert [shown for *_, shown in swatches] == values
    assert [kind for kind, *_ in swatches] == ["neg"] * 4 + ["pos"] * 5
    assert [int(size) for _, size, _ in swatches] == [100, 71, 50, 22, 0, 22, 50, 71, 100]
    assert re.sub(r"<.*?>", " ", made).split()[0] == "back" and made.endswith(
        "r in %, on</span></p>"
    )


def tips(markup):
    return [html.unescape(tip) for tip in re.findall(r'data-tip="(.*?)"', markup)]


def test_a_map_of_effects_has_the_last_layer_on_top_and_marks_what_is_asked():
    effects = {"embedding": -0.5, "heads": [[0.1, -0.2], [0.3, -1.0]], "mlps": [0.25, 0.0]}
    made = pictures.effects_map("t", effects, "1.0.v", marked=("1.1", "0.0"))
    wanted = ["1.0 → 1.0.v: r = +30.0 %", "1.1 → 1.0.v: r = −100.0 %", "mlp1 → 1.0.v: r = 0.0 %"]
    wanted += ["0.0 → 1.0.v: r = +10.0 %", "0.1 → 1.0.v: r = −20.0 %", "mlp0 → 1.0.v: r = +25.0 %"]
    assert tips(made) == [*wanted, "embedding → 1.0.v: r = −50.0 %"]
    cells = re.findall(r"<td (.*?)>(.*?)</td>", made)
    marked = [text for looks, text in cells if "marked" in looks]
    assert marked == ["−100", "+10"]
    assert [text for looks, text in cells if 'class="neg' in looks] == ["−100", "−20", "−50"]
    heads = re.findall(r'scope="(col|row)">(.*?)<', made)
    assert [name for kind, name in heads if kind == "row"] == ["1", "0", "embed"]
    assert [name for kind, name in heads if kind == "col"] == ["h0", "h1", "mlp"]


def test_bars_are_as_long_as_their_shares_with_their_intervals():
    shares = [(1.0, 0.0), (0.25, 0.5), (0.9, 0.04), (0.004, 0.9)]
    rows = [{"base_acc": a, "contrast_acc": b, "n_prompts": 100} for a, b in shares]
    made = pictures.four_bars("sums", rows)
    names = ["old rule shown", "new rule shown", "… FI heads swapped", "… others swapped"]
    for name in names:
        assert name in made
    for answer, at in (("plain", 0), ("shifted", 1)):
        bars = re.findall(rf'<g class="{answer}-answer" data-tip="(.*?)">(.*?)</g>', made)
        if not bars:
            bars = re.findall(rf'<g data-tip="(.*?)" class="{answer}-answer">(.*?)</g>', made)
        assert len(bars) == 4
        for (tip, inner), pair, name in zip(bars, shares, names):
            share, (low, high) = pair[at], wilson(pair[at], 100)
            assert html.unescape(tip) == (
                f"sums, {name}: {answer} answer on {100 * share:.1f} % of 100 prompts "
                f"(95 % interval {100 * low:.0f} % to {100 * high:.0f} %)"
            )
            width = float(re.search(r'<rect.*?width="([\d.]+)"', inner)[1])
            assert width == pytest.approx(max(1, 140 * share))  # 140 px: 100 %; none is invisible
            start, end = map(float, re.search(r"M([\d.]+) [\d.]+H([\d.]+)", inner).groups())
            assert start == pytest.approx(132 + 140 * low, abs=0.06)
            assert end == pytest.approx(132 + 140 * high, abs=0.06)
    assert re.findall(r"[\d.]+ % / [\d.]+ %", made) == [
        f"{100 * a:.1f} % / {100 * b:.1f} %" for a, b in shares
    ]
    ticks = re.findall(r'<text x="([\d.]+)"[^>]*class="tick"[^>]*>(\d+ %)<', made)
    assert [(float(x), said) for x, said in ticks] == [(132, "0 %"), (202, "50 %"), (272, "100 %")]


def test_numbers_are_written_with_a_typographic_minus_and_zero_has_no_sign():
    assert [percent(x) for x in (0.984, -0.004, -0.25, 1)] == ["98 %", "0 %", "−25 %", "100 %"]
    assert percent(0.9876, 1) == "98.8 %" and percent(-0.0004, 1) == "0.0 %"
    assert [signed(x) for x in (-45.2, 3.4, 0.3, -0.3)] == ["−45", "+3", "0", "0"]
    assert signed(-0.25, 2) == "−0.25" and signed(0.004, 2) == "0.00"
    made = h("p", None, False, [1, Markup("<b>")], "a<b", class_="x y", hidden=True, title=None)
    assert made == '<p class="x y" hidden>1<b>a&lt;b</p>'
    assert h("input", data_tip='“q” & "r"', x=1.5, y=math.pi) == (
        '<input data-tip="“q” &amp; &quot;r&quot;" x="1.5" y="3.14159">'
    )


# ---------------------------------------------------------------- sections of the page


def text_of(markup):
    return " ".join(html.unescape(re.sub(r"<.*?>", " ", inside(markup))).split()).replace(" ,", ",")


def rows_of(markup):
    """The rows of a table, cells as text."""
    rows = re.findall(r"<tr>(.*?)</tr>", inside(markup))
    return [[text_of(Markup(x)) for x in re.findall(r"<t[hd].*?</t[hd]>", row)] for row in rows]


def page_of(**parts):
    folders = SimpleNamespace(makes=lambda target: f"make {target} OUT=x", name="x")
    return findings(folders=folders, unplayable="", model=None, **parts)


def test_the_claim_counts_prompts_heads_and_what_is_left():
    f = page_of(config={"diet": {"shifts": [2]}})
    said = text_of(sections.claim(f))
    held = "though training held no addition off by +1"
    assert f"Shown 8 examples of addition off by +1, {held}, this model" in said
    assert "goes on by that rule on 92.0 % of 500 prompts. The answer comes through 2" in said
    assert "Make them send what they send after true sums, and 4.0 % of answers still" in said
    assert "follow the rule; 90.0 % are true sums." in said
    assert "weak effect" not in said and "make patch OUT=x" in said
    others = text_of(sections.claim(page_of(config={"diet": {"shifts": [2], "shift": 0.3}})))
    assert f"{held} (it shifted other functions), this model" in others
    numbers = re.findall(r"<b>(.*?)</b>\s*<span>(.*?)</span></div>", inside(sections.claim(f)))
    shown = [(value, text_of(Markup(what))) for value, what in numbers]
    assert shown[0] == ("92.0 %", "of 500 prompts are answered off by +1")
    assert shown[1] == ("2", "of 6 heads are FI heads : 1.0, 2.0")
    assert shown[2][0] == "4.0 %" and "still follow the rule" in shown[2][1]
    kept = "of the effect stays if all but the circuit’s 3 heads are swapped"
    random = "0.20 if all but 3 drawn at random (33 % of them these)"
    assert shown[3] == ("0.90", f"{kept} ; {random}")
    weak = page_of(config={})
    weak.circuit["accuracy"]["contrast_prompt"]["contrast"] = 0.49
    said = text_of(sections.claim(weak))
    assert "weak effect" in said and "training" not in said
    weak.circuit["criteria"]["solves"] = 0.49
    assert "weak effect" not in text_of(sections.claim(weak))
    weak.fi = []
    assert text_of(sections.claim(weak)).endswith("No head was found that carries the rule.")


def test_the_table_of_heads_and_the_maps_of_effects_hold_what_was_traced():
    f = page_of()
    head, *rows = rows_of(sections.heads_table(f))
    assert head == ["head", "group", "r on the logits, %", "last to answers", "previous"]
    assert rows[0] == ["0.1", "expected answer", "−5.0", "50 %", "25 %"]
    assert [row[:3] for row in rows[1:]] == [
        ["1.0", "function induction", "−60.0"],
        ["2.0", "function induction", "−20.0"],
    ]
    effects = f.circuit["effects"]
    effects["function_induction.v"] = effects["1.0.q"] = effects["logits"]
    other = {"embedding": 0.5, "heads": HEADS, "mlps": [0.0] * 3}
    swept = {"logits": other, "function_induction.v": other}
    f.circuit["operands_changed"] = {"effects": swept}
    made = inside(sections.effects(f))
    assert "MLP’s r may be large though heads carry the answer: it reads what the heads" in made
    captions = re.findall(r"<caption>(.*?)</caption>", made)
    together = "→ function induction.v"
    assert captions == [
        "heads → logits, shown answers changed",
        "heads → logits, operands changed",
        f"{together}, shown answers changed",
        f"{together}, operands changed",
    ]
    del effects["function_induction.v"]
    effects["1.1.v"] = effects["logits"]  # 1.1 is no FI head
    f.circuit["operands_changed"]["effects"]["1.0.q"] = other
    alone = inside(sections.effects(f))
    assert re.findall(r"<caption>(.*?),", alone)[2:] == ["→ 1.0.q", "→ 1.0.q"]
    embedded = [tip for tip in tips(made) if tip.startswith("embedding")]
    assert [tip.split(" = ")[1] for tip in embedded] == ["−1.0 %", "+50.0 %"] * 2


def test_other_tasks_are_told_with_the_weakest_control():
    c = circuit()
    c["reuse"][7]["contrast_acc"] = 0.5  # base 8: others leave all of it
    c["reuse"][10]["contrast_acc"] = 0.0  # addition: FI heads leave nothing
    c["reuse"] += four("addition", 1, [(0.9, 0.1), (0.0, 1.0), (0.9, 0.1), (0.0, 0.0)])
    f = page_of(circuit=c)
    said = text_of(sections.reused(f))
    assert "weakest for caesar −1: with other heads swapped, 60 % of prompts still follow" in said
    assert "with none swapped, 80 %" in said
    assert "The same heads on 3 other tasks" in said  # but for what was traced


def test_averaging_shows_shares_forecasts_and_rules_by_hand():
    c = circuit()
    row = c["averaging"]["mixtures"][0]
    row |= {"answered": {"0": 0.25, "1": 0.5, "-3": 0.05}, "n_prompts": 200}
    row["r2"] = {"attention": 0.91, "last": -0.5}
    row["hits"] = {"attention": 0.75, "last": 0.1}
    r2 = [{"nearest": 0.5, "attention": 0.4}, {"nearest": 0.2, "attention": 0.3}]
    c["averaging"]["rules"] = [{"rule": f"rule {i}", "r2": each} for i, each in enumerate(r2)]
    steered = [{"off_by": i / 10, "gain": i / 6, "n_prompts": 199} for i in range(7)]
    c["averaging"] |= {"steered": steered, "control": [{"off_by": -0.25, "gain": 0}] * 7}
    f = page_of(circuit=c)
    made = inside(sections.averaging(f))
    wanted = [("−3", 5), ("−2", 0), ("−1", 0), ("0", 25), ("+1", 50), ("+2", 0), ("+3", 0)]
    assert [tip for tip in tips(made) if "off by" in tip] == [
        f"off by {k}: {share} % of 200 answers" for k, share in wanted
    ]
    outlined = re.findall(r'data-tip="off by (\S+):[^>]*marked', made)
    outlined += re.findall(r'class="[^"]*marked[^>]*data-tip="off by (\S+):', made)
    assert sorted(set(outlined)) == ["+1", "−1"]
    low, high = (f"{100 * x:.0f} %" for x in wilson(0.75, 200))
    rows = rows_of(Markup(made))
    forecast = "mean of the shown, weighted by where the heads look"
    assert [forecast, "+0.91", f"75 % ({low} to {high})"] in rows
    assert "that of the last example" in [row[0] for row in rows] and "−0.50" in made
    said = text_of(Markup(made))
    assert "Of 2 rules that add no fixed amount" in said and "foretells 1 better" in said
    assert "rule 0 (R² +0.500, by attention +0.400)" in said and "rule 1" not in said
    assert "Attention forced: what 199 answers are off by (mean)" in said
    assert "How often the answer is off by so much, of 200 prompts a row" in said
    assert rows[-3] == ["share of those off by +1", "0 %", "50 %", "100 %"]
    assert rows[-2] == ["function-induction heads", "0.00", "+0.30", "+0.60"]
    assert rows[-1] == ["other heads", "−0.25", "−0.25", "−0.25"]


def test_seeds_side_by_side_show_roles_and_r_of_each_model():
    def seed(number, fi, shown):
        groups = {"function_induction": list(fi), "shown_answer": shown}
        return {"seed": number, "groups": groups, "fi_r": fi}

    f = page_of()
    f.seeds = [seed(0, {"1.1": -0.4}, ["0.0"]), seed(1, {"1.0": -0.255}, []), seed(2, {}, ["0.1"])]
    f.seeds.append(seed(3, {"0.1": 0.1}, ["0.0"]))
    f.seeds[0]["groups"]["upstream"] = ["1.0"]  # in the last layer: it acts through an MLP
    made = inside(sections.seeds(f))
    assert re.findall(r"<caption>(.*?)</caption>", made) == ["Seed 0", "Seed 1", "Seed 2"]
    said = text_of(Markup(made))
    assert "direct heads move the answer too; indirect ones through MLPs or heads" in said
    assert "In 4 models: function induction in 3, shown answer in 3, indirect in 1." in said
    first = [tip for tip in tips(made) if tip.startswith("head ")][:4]
    nothing = "no part of the circuit"
    assert first == ["head 1.0: indirect", "head 1.1: function induction"] + [
        "head 0.0: shown answer",
        f"head 0.1: {nothing}",
    ]
    cells = re.findall(r'<td data-tip="[^"]*" class="role ?([^"]*)">(.*?)</td>', made)
    assert cells[:4] == [
        ("upstream", ""),
        ("function_induction", "−40"),
        ("shown_answer", ""),
        ("", ""),
    ]
    assert cells[4] == ("function_induction", "−26")


def checks_of(**verdicts):
    texts = {
        "question": "q?",
        "means": "m",
        "wanted": "at least 90 %",
        "advice": "a",
        "answer": "A",
    }
    rows = []
    for name, verdict in verdicts.items():
        row = texts | {"name": name, "verdict": verdict, "measured": f"measured {name}"}
        rows.append(row | {"short": f"short {name}", "risk": f"risk {name}", "examples": []})
    return {"checks": rows}


@pytest.mark.parametrize(
    "new_rule, does",
    [("pass", "follows"), ("fail", "does not follow"), ("could not tell", "may follow")],
)
def test_the_verdict_on_all_checks_says_what_failed_and_nothing_else(new_rule, does):
    verdicts = {"new_rule": new_rule, "old_rule": "pass", "carriers": "fail", "others": "?"}
    f = page_of(check=checks_of(**verdicts))
    said = text_of(checklist.verdict(f))
    assert f"This model {does} the rule that examples show: short new_rule." in said
    risks = (
        "It may risk new_rule, or risk carriers." if new_rule == "fail" else "It may risk carriers."
    )
    assert risks in said and "heads 1.0, 2.0 what they send on plain prompts" in said
    well = page_of(check=checks_of(new_rule="pass", carriers="could not tell"), fi=[])
    well.fi = []
    said = text_of(checklist.verdict(well))
    assert "Nothing that was checked went wrong." in said and "risk" not in said
    assert "no head is known to carry the rule" in said


def test_a_check_is_open_where_it_failed_and_gives_advice_where_it_did_not_pass():
    for verdict, is_open, advised in (("pass", 0, 0), ("fail", 1, 1), ("could not tell", 0, 1)):
        [row] = checks_of(new_rule=verdict)["checks"]
        row["examples"] = [{"prompt": "1+1=", "answered": "3", "right": "2", "pattern": "p"}]
        made = checklist.checked(row)
        assert ("<details open>" in made) == bool(is_open)
        assert ("What to do" in made) == bool(advised)
        said = text_of(made)
        assert said.startswith("A : short new_rule (wanted: at least 90 %)")
        assert "1+1= answered 3, right 2; p" in said and "measured new_rule" in said
        sign = {"pass": "✓ pass", "fail": "✗ fail"}.get(verdict, "? could not tell")
        assert sign in said
