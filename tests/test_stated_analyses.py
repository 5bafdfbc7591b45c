"""What docstrings of the analyses state: which heads, prompts and sources, over which weights."""

import math
from itertools import product
from statistics import fmean
from types import SimpleNamespace

import numpy
import pytest
import torch
from handwired import prompts, two_step_model

import tasks
from minifunc.ablation import Ablator
from minifunc.analysis import (
    ablations,
    completeness,
    function_vectors,
    reading,
    study,
)
from minifunc.analysis import rows as rows_of_circuit
from minifunc.analysis.activations import Examples
from minifunc.analysis.rows import Prompts
from minifunc.model import ModelConfig, Transformer
from minifunc.support.effects import Effects
from minifunc.support.evaluation import wilson

CFG = ModelConfig(n_layers=3, n_heads=4)
GROUPS = {"function_induction": ["2.0", "2.1"], "expected_answer": ["1.0"], "shown_answer": []}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_model(seed=0, **shape):
    """float64, every weight random, the scales of norms too."""
    sizes = {"n_layers": 2, "n_heads": 2, "d_model": 8, "d_head": 4, "d_mlp": 8, "d_vocab": 9}
    model = Transformer(ModelConfig(**sizes | shape), generator(seed)).double()
    for name, weight in model.named_parameters():
        if name.endswith(".w"):
            weight.data += torch.randn(weight.shape, generator=generator(1)) / 2
    return model.requires_grad_(False)


# ---------------------------------------------------------------- groups taken out


@pytest.fixture
def replaced(monkeypatch):
    """Rows of group_ablations that only tell which prompts, heads and source they are of."""

    def row(on, label, heads, how):
        about = {"on": on.name, "ablated": label, "heads": heads, "how": how}
        return about | {
            "base_acc": f"base_acc {on.name}",
            "contrast_acc": f"contrast_acc {on.name}",
        }

    monkeypatch.setattr(ablations, "ablation_row", row)
    monkeypatch.setattr(ablations, "control_row", row)
    names = ("contrast", "base", "fewer")
    ablator = SimpleNamespace(cfg=CFG)
    of = tuple(SimpleNamespace(name=name, ablator=ablator) for name in names)

    def rows(n_draws):
        return ablations.group_ablations(of, GROUPS, (n_draws, generator()))

    return rows


def test_each_group_is_replaced_in_every_way_beside_what_never_shows_its_answer(replaced):
    rows = [row for row in replaced(3) if "floor" in row]
    ways = {"function_induction": ("base", "mean", "unrelated", "same_k", "same_answer")}
    ways["expected_answer"] = ("operands_changed",)
    assert [(row["ablated"], row["heads"], row["how"]) for row in rows] == [
        (label, GROUPS[label], how) for label, hows in ways.items() for how in hows
    ]
    assert {(row["on"], row["floor"]) for row in rows} == {("contrast", "contrast_acc base")}


@pytest.mark.parametrize("n_draws", [1, 5, 6, 40])
def test_random_groups_are_of_the_same_layers_or_of_any_and_many_run_on_fewer_prompts(
    replaced, n_draws
):
    for label, hows in (("function_induction", 5), ("expected_answer", 1)):
        for kind in ("random_same_layers", "random_any_layer"):
            rows = [row for row in replaced(n_draws) if row.get("beside") == label]
            rows = [row for row in rows if row["ablated"] == kind]
            assert len(rows) == hows
            drawn = rows[0]["heads"]
            assert len(drawn) == n_draws
            assert all(len(group) == len(GROUPS[label]) for group in drawn)
            heads = {head for group in drawn for head in group}
            assert not heads & set(GROUPS[label])
            few = len(set(map(tuple, drawn))) <= 5
            assert {row["on"] for row in rows} == {"contrast" if few else "fewer"}
            own_layer = GROUPS[label][0][0]
            if kind == "random_same_layers":
                assert {head[0] for head in heads} == {own_layer}
            elif n_draws > 1:
                assert {head[0] for head in heads} == {"0", "1", "2"}


def test_a_random_group_is_in_the_order_of_the_model_whatever_the_order_of_the_heads():
    """So that the same heads drawn twice are seen to be one group."""
    for seed in range(20):
        group = ablations.random_group(["9.1", "10.0", "2.3", "2.0", "9.3"], 7, generator(seed))
        places = [tuple(map(int, head.split("."))) for head in group]
        assert places == sorted(places) and [layer for layer, _ in places] == [2, 2, 9, 9, 10]


@pytest.mark.parametrize("head", ["1.4", "1.5", "0.40"])
def test_a_random_group_beside_a_head_that_no_layer_has_is_refused(head):
    assert ablations.random_group(["1.3"], 4, generator())[0] in ("1.0", "1.1", "1.2")
    with pytest.raises(ValueError, match="below 4"):
        ablations.random_group(["1.3", head], 4, generator())


def test_a_random_group_of_any_layer_has_as_many_other_heads_or_all_there_are():
    every = [f"{layer}.{head}" for layer in range(3) for head in range(4)]
    for n_heads in range(1, 13):
        heads = every[::-1][:n_heads]
        drawn = ablations.random_group_anywhere(heads, CFG, generator(n_heads))
        assert len(set(drawn)) == len(drawn) == min(n_heads, 12 - n_heads)
        assert drawn == [head for head in every if head in drawn] and not {*drawn} & {*heads}


def test_reuse_is_of_base_prompts_and_of_contrast_prompts_with_and_without_heads():
    names = ("base", "contrast", "base_answers", "contrast_answers")
    pairs = SimpleNamespace(**dict(zip(names, prompts())))
    rows = study.reuse_rows(two_step_model(), pairs, ["1.0"], [["1.1"], ["0.1"]])
    assert [
        (row["prompt"], row["ablated"], row["base_acc"], row["contrast_acc"]) for row in rows
    ] == [
        ("base", "none", 1.0, 0.0),
        ("contrast", "none", 0.0, 1.0),
        ("contrast", "function_induction", 1.0, 0.0),
        ("contrast", "random_same_layers", 0.0, 1.0),
    ]
    assert {row["n_prompts"] for row in rows} == {2}


def test_a_row_of_controls_counts_each_draw_once():
    base, contrast, *answers = prompts()
    of = Prompts(Ablator(two_step_model(), contrast, {"base": base}), tuple(answers))
    row = rows_of_circuit.control_row(of, "it", [["1.0"], ["1.0"], ["0.1", "1.1"]], "base")
    assert (row["n_draws"], row["n_groups"], row["n_heads"]) == (3, 2, 1.33)
    assert (row["base_acc"], row["contrast_acc"]) == (0.6667, 0.3333)


def test_sums_in_base_k_are_reused_by_whether_they_carry(monkeypatch):
    kept = []
    monkeypatch.setattr(study, "reuse_rows", lambda model, pairs, *_: kept.append(pairs) or [{}])
    model = random_model(d_vocab=len(tasks.VOCABULARY))
    rows = study.reuse(tasks, model, ["1.0"], [("base_addition", 8)], 3, generator())
    assert [row["items"] for row in rows] == ["carry", "no carry"]
    for row, pairs in zip(rows, kept):
        carries = pairs.base_answers != pairs.contrast_answers
        assert (carries == (row["items"] == "carry")).all()
        assert len(pairs.base) == len(pairs.contrast) == len(carries)
    assert sum(len(pairs.contrast) for pairs in kept) == study.N_REUSED


# ---------------------------------------------------------------- circuits


class Known:
    """Stands in for CircuitScores: F of a circuit by a function of its heads."""

    def __init__(self, F, heads="abcd", name=""):
        self.heads, self.F, self.name, self.how = [f"0.{head}" for head in heads], F, name, name
        self.ablator = SimpleNamespace(n_prompts=7)
        self.full, self.none = self.scores([self.heads, []])

    def scores(self, circuits):
        made = [self.F({head[2:] for head in circuit}) for circuit in circuits]
        shares = [{"base_acc": 0.0, "contrast_acc": min(max(F, 0.0), 1.0)} for F in made]
        each = [torch.tensor([F, F], dtype=torch.float64) for F in made]
        return [SimpleNamespace(F=F, F_of_each=x, **s) for F, x, s in zip(made, each, shares)]

    def share(self, F):
        return F / (self.full.F - self.none.F)

    def faithfulness(self, circuits):
        return [self.share(score.F - self.none.F) for score in self.scores(circuits)]

    def gaps(self, circuit, without):
        model, C = set(self.heads), set(circuit)
        both = [self.scores([C - set(K), model - set(K)]) for K in without]
        return [abs(self.share(alone.F - whole.F)) for alone, whole in both]


def sums(**weights):
    return Known(lambda circuit: sum(weights[head] for head in circuit), weights)


@pytest.fixture(autouse=True)
def heads_by_letter(monkeypatch):
    monkeypatch.setattr(completeness, "heads_of", lambda names: sorted(set(names)))


def test_the_weakest_heads_go_first_and_as_many_as_stay_faithful():
    # 12.2 in all: at .9 either of the two weak ones may go, not both.
    assert completeness.eliminate([sums(**{"1": 1.2, "2": 1.0, "3": 10.0})], 0.9) == ["0.1", "0.3"]
    # Without 1 the rest would do more than the model: that is not faithful either.
    assert completeness.eliminate([sums(**{"1": -5.0, "2": 10.0})], 0.9) == ["0.1", "0.2"]


def test_elimination_starts_again_until_no_head_can_go():
    """b can go once c and d have; in the first round it is tried between them."""
    off = {"": 0.0, "c": 0.0, "b": 0.01, "d": 0.02, "bc": 0.5, "cd": 0.03, "bcd": 0.04}

    def F(circuit):
        return 1 - off.get("".join(sorted(set("abcd") - circuit)), 1.0)

    assert completeness.eliminate([Known(F)], 0.9) == ["0.a"]


def test_elimination_stays_faithful_under_every_contrast():
    one, other = sums(a=1.0, b=0.0, c=0.0), sums(a=0.0, b=1.0, c=0.0)
    assert completeness.eliminate([one, other], 0.9) == ["0.a", "0.b"]


def test_what_stays_just_as_faithful_as_asked_may_go_and_nothing_else():
    halves = sums(a=1.0, b=1.0)  # without one of them .5 is left
    assert completeness.eliminate([halves], 0.5) == ["0.b"]
    assert completeness.eliminate([halves], 0.51) == ["0.a", "0.b"]
    assert completeness.eliminate([sums(a=1.0, b=0.0)], 1.0) == ["0.a"]  # level 1: entirely
    for level in (0.0, -0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="level"):
            completeness.eliminate([halves], level)
    with pytest.raises(ValueError, match="one score at least"):
        completeness.eliminate([], 0.9)


def test_the_weakest_head_is_the_one_that_no_score_misses_much():
    """Not both may go. At their worst a counts .2, b .15; at their best a counts less."""
    one, other = sums(a=0.2, b=0.1, c=0.7), sums(a=0.0, b=0.15, c=0.85)
    assert completeness.eliminate([one, other], 0.75) == ["0.a", "0.c"]


def test_greedy_subsets_go_up_to_ten_heads():
    scores = sums(**dict.fromkeys("abcdefghijkl", 1.0) | {"z": 1.0})
    circuit = [f"0.{head}" for head in "abcdefghijkl"]
    found = completeness.greedy_subsets(scores, circuit)
    assert [len(K) for K in found] == list(range(1, 11))
    told = completeness.evaluate(scores, circuit, {}, scores, generator())
    assert told["completeness_gaps"]["n_greedy"] == 10


def test_groups_count_by_their_heads_in_the_circuit_and_those_without_any_not_at_all():
    """d does what a and b do together: without these two, and only then, is F the same."""

    def F(heads):
        return 3.0 * ("a" in heads or "d" in heads) + ("b" in heads) + 2.0 * ("c" in heads)

    scores, circuit = Known(F, "abcd", name="mean"), ["0.a", "0.b", "0.c"]
    groups = {"one": ["0.a", "0.d"], "two": ["0.b", "0.c"], "none": ["0.d"], "empty": []}
    search = Known(F, "abcd")
    search.ablator = SimpleNamespace(n_prompts=3)
    found = completeness.evaluate(scores, circuit, groups, search, generator())
    measured = found["completeness_gaps"]
    assert measured["groups"] == {"one": 0.5, "two": 0.0}
    assert (measured["n_greedy"], measured["n_random"]) == (3, 10)
    assert (measured["n_search_prompts"], found["n_prompts"]) == (3, 7)
    assert found["replaced_by"] == "mean" and found["circuit"] == circuit
    # Alone each moves its own share of 6; so it does where the rest of its group is out.
    assert found["minimality"] == pytest.approx(
        {"0.a": 3 / 6, "0.b": 1 / 6, "0.c": 2 / 6}, abs=1e-4
    )


def test_the_rest_of_a_group_is_out_where_a_head_is_tried_for_minimality():
    """a and b do the same: either alone is not missed, but by the other's side."""
    scores = Known(lambda heads: float(bool(heads & {"a", "b"})) + ("c" in heads), "abc")
    circuit = ["0.a", "0.b", "0.c"]
    for groups, stated in (({}, 0.0), ({"same": ["0.a", "0.b"]}, 0.5), ({"all": circuit}, 0.5)):
        found = completeness.minimality(scores, circuit, groups)
        assert found == {"0.a": stated, "0.b": stated, "0.c": 0.5}
        told = completeness.evaluate(scores, circuit, groups, scores, generator())
        assert told["minimality"] == found


def test_minimality_is_the_largest_move_of_either_sign():
    scores = sums(a=-3.0, b=1.0, c=6.0)
    found = completeness.minimality(scores, ["0.a", "0.b", "0.c"], {"one": ["0.a", "0.b"]})
    assert found == pytest.approx({"0.a": 3 / 4, "0.b": 1 / 4, "0.c": 6 / 4})


def test_greedy_subsets_are_looked_for_on_some_prompts_and_measured_on_others():
    """Heads a, b in the circuit, c beside it does the same as a: alone on the judged prompts."""

    def doubled(head):
        return lambda circuit: float(bool({head, "c"} & circuit)) + ("b" in circuit) / 4

    search, judged = Known(doubled("b"), "abc"), Known(doubled("a"), "abc")
    found = completeness.evaluate(
        judged, ["0.a", "0.b"], {"all": ["0.a", "0.b"]}, search, generator()
    )
    greedy = completeness.greedy_subsets(search, ["0.a", "0.b"])
    gaps = judged.gaps(["0.a", "0.b"], greedy)
    assert greedy[0] == ["0.b"] and gaps[0] == 0 < gaps[1]
    measured = found["completeness_gaps"]
    assert measured["greedy_mean"] == pytest.approx(fmean(gaps), abs=1e-4)
    assert found["completeness"] == measured["greedy_max"] == pytest.approx(max(gaps), abs=1e-4)


def test_the_worst_subset_is_named_and_random_ones_stand_beside_it():
    """c helps b alone: where a is out b misses it, where both are out it has nothing to help."""
    scores = Known(
        lambda heads: 5.0 * ("a" in heads) + ("b" in heads) * (1 + ("c" in heads)), "abc"
    )
    circuit = ["0.a", "0.b"]
    found = completeness.evaluate(scores, circuit, {"all": circuit}, scores, generator())
    measured = found["completeness_gaps"]
    drawn = completeness.random_subsets(circuit, completeness.N_CONTROLS, generator())
    by_chance = scores.gaps(circuit, drawn)
    assert measured["random_mean"] == pytest.approx(fmean(by_chance), abs=1e-4)
    assert measured["random_max"] == pytest.approx(max(by_chance), abs=1e-4)
    assert measured["random_mean"] != measured["greedy_mean"] == pytest.approx(1 / 14, abs=1e-4)
    assert measured["worst"] == ["0.a"]


def test_a_row_of_a_circuit_holds_the_mean_and_the_highest_of_random_ones():
    drawn = [["0.c"], ["0.b"], ["0.a"], ["0.c", "0.a"]]  # the last is the circuit itself
    itself, scores = [["0.a", "0.c"]], sums(a=0.1, b=0.1, c=0.6)
    row = completeness.circuit_row(scores, "it", ["0.a", "0.c"], drawn, itself)
    assert row["faithfulness"] == 0.875 and row["faithfulness_ci"] == [0.875, 0.875]
    assert row["circuit_accuracy"] == 0.7 and row["circuit_accuracy_ci"] == wilson(0.7, 7)
    assert row["random_circuits"] == {
        "n_draws": 3,
        "mean": 0.3333,
        "highest": 0.75,
        "overlap": 0.3333,
        "circuit_accuracy": 0.2667,
        "base_acc": 0.0,
    }
    assert row["random_lower"] is None  # there is no other
    assert row["others_alone"]["faithfulness"] == 0.125
    assert row["F"] == pytest.approx({"circuit": 0.7, "none": 0.0, "full": 0.8})


def test_other_lower_heads_are_as_many_and_leave_all_else_of_the_circuit():
    heads = [f"{layer}.{head}" for layer in range(3) for head in range(4)]
    circuit = ["0.1", "1.2", "1.3", "2.0", "2.3"]  # 1.3 and 2.0 are FI heads
    draws = completeness.with_other_lower_heads(circuit, ["1.3", "2.0"], heads, generator())
    assert len(draws) == completeness.N_CONTROLS
    lower = set()
    for drawn in draws:
        assert len(set(drawn)) == 5 and {"1.3", "2.0", "2.3"} <= set(drawn)
        lower |= {*drawn} - {"1.3", "2.0", "2.3"}
    assert {head[0] for head in lower} == {"0", "1"} and len(lower) > 4
    only = completeness.with_other_lower_heads(["2.0", "2.1"], ["2.0"], heads, generator())
    assert only == [["2.0", "2.1"]] * completeness.N_CONTROLS


def test_the_interval_of_a_gap_is_that_of_the_worst_subset_and_its_gap_lies_above_0():
    def F(heads):  # c takes over where a is out
        return 1.0 * ("a" in heads or "c" in heads) + ("b" in heads)

    scores = Known(F, "abc")
    found = completeness.evaluate(scores, ["0.a", "0.b"], {}, scores, generator())
    assert found["completeness"] == 0.5 and found["completeness_ci"] == [0.5, 0.5]


def test_the_interval_of_a_gap_is_between_circuit_and_model_both_without_the_worst_subset():
    """c, outside, does half of what a does, where a is out: (1 + 1) - 1 of 3 is missed. None of
    the heads does what is there without them all."""

    def F(heads):
        return 5.0 + ("b" in heads) + (2.0 if "a" in heads else "c" in heads)

    scores = Known(F, "abc")
    found = completeness.evaluate(scores, ["0.a", "0.b"], {}, scores, generator())
    assert found["completeness"] == 0.3333 and found["completeness_gaps"]["worst"] == ["0.a"]
    assert found["completeness_ci"] == [0.3333, 0.3333]


def test_circuits_are_looked_for_on_some_prompts_and_judged_on_others(monkeypatch):
    looked, judged, rows, put_in = [], [], [], []

    def eliminate(criteria, faithful):
        looked.append([scores.name for scores in criteria])
        return [f"0.{len(looked)}", "1.0"]

    def evaluate(scores, circuit, groups, search, generator):
        judged.append((scores.name, circuit, search.name))
        return {"circuit": circuit}

    def row(scores, name, heads, drawn, lower):
        rows.append((scores.name, name, heads, drawn))
        assert all({*heads} & {"2.0", "2.1"} == {*each} & {"2.0", "2.1"} for each in lower)
        put_in.extend(head for each in lower for head in each if head[0] < "2")

    for name, function in (("eliminate", eliminate), ("evaluate", evaluate), ("circuit_row", row)):
        monkeypatch.setattr(completeness, name, function)

    def prompts_named(name):
        of = SimpleNamespace(ablator=SimpleNamespace(cfg=CFG))
        of.scores = lambda how: SimpleNamespace(name=f"{name} {how}")
        return of

    found = completeness.evaluate_circuits(
        prompts_named("search"), prompts_named("judged"), GROUPS, 0.9, generator()
    )
    assert looked == [["search base", "search operands_changed"], ["search base"], ["search mean"]]
    union = ["1.0", "2.0", "2.1"]
    assert judged == [
        ("judged base", union, "search base"),
        ("judged operands_changed", union, "search operands_changed"),
        ("judged base", ["0.1", "1.0"], "search base"),
    ]
    assert found["by_elimination"] == {"circuit": ["0.1", "1.0"]}
    sources = ("base", "operands_changed", "mean")
    assert [source for source, *_ in rows] == [f"judged {how}" for how in sources] * 4
    assert [heads for _, _, heads, _ in rows[::3]] == [
        union,
        *([f"0.{n}", "1.0"] for n in (1, 2, 3)),
    ]
    by_chance = {head for *_, drawn in rows[:3] for group in drawn for head in group}
    assert by_chance & set(union)  # random circuits may hold its heads
    assert len(set(put_in)) > 4  # other lower heads: of layers below that of the FI heads


# ---------------------------------------------------------------- rows of circuit.json


def test_F_stands_by_contrast():
    def effects(*r):
        per_prompt = torch.tensor([[-5.0, -2.0], [0.0, -3.5]])  # of two heads, two prompts
        return Effects(torch.tensor([r]), torch.zeros(1), torch.tensor(0.0), per_prompt)

    def patcher(base, contrast, exact):
        F = {"F_base": torch.tensor(base), "F_contrast": torch.tensor(contrast)}
        return SimpleNamespace(**F, sweep=lambda receiver: exact, senders=["0.0", "0.1"])

    answers = patcher([1.0, 2.0], [-4.0, 0.0], effects(0.1234567, 0.2, 0.3))
    operands = patcher([5.0, 5.0], [-4.0, 0.0], effects(0.0, 0.0, 0.0))
    found = rows_of_circuit.direct({"answers": answers, "operands": operands})
    assert found["F"] == {"base": 1.5, "contrast": -2.0} and found["contrast"] == "answers"
    assert found["F_ci"] == {"base": [1, 2], "contrast": [-4, 0]}
    assert found["operands_changed"].pop("F_ci") == {"base": [5, 5], "contrast": [-4, 0]}
    # F goes from 1 to -4, and from 2 to 0: both heads and F are of the same prompts in each draw.
    assert found["r_ci"] == {"0.0": [1, 1], "0.1": [0, 1.75]}
    assert found["operands_changed"] == {"F": {"base": 5.0, "contrast": -2.0}}
    assert found["effects"]["logits"]["heads"] == [[0.123457, 0.2, 0.3]]


# ---------------------------------------------------------------- function vectors

SHIFTS, N_INPUTS = (-1, 0, 1), 3
NUMBERS = {token - 3: token for token in range(1, 8)}


def test_function_vectors_are_those_of_a_plain_loop():
    model, heads, zero = random_model(4), ["0.1", "1.0"], 2
    for block in model.blocks:
        block.attn.W_O.data *= 3  # so that what is put in changes answers
    tokens = {k: torch.randint(9, (30, 5), generator=generator(k + 5)) for k in SHIFTS}
    naive = torch.randint(9, (N_INPUTS, 20, 5), generator=generator(9))
    found = function_vectors.study(model, tokens, naive, heads, NUMBERS)
    scores = found["function_vector_scores"]
    mean = {}
    for k in SHIFTS:
        _, cache = model.run_with_cache(tokens[k])
        mean[k] = [cache[f"blocks.{layer}.attn.hook_z"][:, -1].mean(0) for layer in (0, 1)]

    def run(rows, vector, some):
        """Logits of naive prompts, a vector added to z of some heads at the last position."""

        def add(x, name):
            x, layer = x.clone(), int(name.split(".")[1])
            for head in some:
                if head.startswith(f"{layer}."):
                    x[:, -1, int(head[2:])] += vector[layer][int(head[2:])]
            return x

        hooks = {f"blocks.{layer}.attn.hook_z": add for layer in (0, 1)}
        return model.run_with_hooks(rows, hooks)[:, -1]

    def hits(vector, k, some):
        """Share of the naive prompts that are then answered x + k."""
        right = []
        for x, rows in enumerate(naive):
            answered = run(rows, vector, some).argmax(1)
            right += (answered == NUMBERS[x + k]).tolist()
        return fmean(right)

    def map_of(vector, some):
        before = [model(rows)[:, -1] for rows in naive]
        after = [run(rows, vector, some) for rows in naive]
        rose = [(new - old).mean(0) for new, old in zip(after, before)]  # over demos
        return torch.stack(rose)[:, list(NUMBERS.values())]

    def moved(change, k):
        cells = [change[x, zero + x + k] - change[x, zero + x] for x in range(N_INPUTS)]
        return torch.stack(cells).mean().item()

    parts = {"0.1": ["0.1"], "1.0": ["1.0"], "all": heads}
    for part, some in parts.items():
        drawn = map_of(mean[1], some)[:, zero : zero + 3].tolist()
        assert found["function_vectors"][part] == [pytest.approx(row, abs=6e-4) for row in drawn]
    for k, (part, some) in product((-1, 1), parts.items()):
        stated = {
            "moves": moved(map_of(mean[k], some), k),
            "plain_moves": moved(map_of(mean[0], some), k),
            "hits": hits(mean[k], k, some),
        }
        assert scores["parts"][str(k)][part] == pytest.approx(stated, abs=1.1e-4)
    nothing = torch.zeros(2, 2, 4, dtype=torch.float64)
    assert scores["naive_accuracy"] == pytest.approx(hits(nothing, 0, heads), abs=1e-4)
    assert len({row["hits"] for row in scores["parts"]["1"].values()}) > 1  # the parts differ


@pytest.mark.parametrize("heads, k", [([], 1), (["0.1", "0.1"], 1), (["0.1"], 0), (["0.1"], 2)])
def test_function_vectors_are_of_different_heads_one_at_least_and_of_a_k_that_was_shown(heads, k):
    tokens = {shift: torch.zeros(2, 5, dtype=torch.int64) for shift in SHIFTS}
    with pytest.raises(ValueError, match="different heads, and prompts for k"):
        naive = torch.zeros(N_INPUTS, 2, 5, dtype=torch.int64)
        function_vectors.study(random_model(), tokens, naive, heads, NUMBERS, k)


# ---------------------------------------------------------------- q, k and v apart


@pytest.fixture
def written():
    """A random model with examples whose c and d are independent of the tokens but for one."""
    model, n_pos = random_model(5), 7
    tokens = torch.randint(9, (60, n_pos), generator=generator())
    answers = torch.tensor([2, 5])
    shown = tokens[:, answers] % 5  # c
    d = torch.randint(-1, 2, shown.shape, generator=generator(1))
    return model, Examples(tokens, answers, shown - d, shown), d


def left_by(tables, y):
    """Share of the variance of y [n, width] that least squares on columns [n, …] leave."""
    fitted = numpy.linalg.lstsq(tables.numpy(), y.numpy())[0]
    left = (y - tables @ torch.from_numpy(fitted)).square().sum()
    return (left / (y - y.mean(0)).square().sum()).item()


def test_what_is_handed_over_is_the_normalized_stream_through_the_weights(written):
    model, examples, d = written
    c, f = examples.shown, examples.expected
    found = reading.hands_over(model, examples, ["0.1", "1.0"])
    _, cache = model.run_with_cache(examples.tokens)
    one_hot = {}
    for name, labels in {"c": c, "f": f, "d": d}.items():
        one_hot[name] = (labels.flatten()[:, None] == labels.unique()).double()
    for head in ("0.1", "1.0"):
        layer, index = int(head[0]), int(head[2])
        attn = model.blocks[layer].attn
        stream = cache[f"blocks.{layer}.hook_resid_pre"][:, examples.answers]
        scale = (stream.square().mean(-1, keepdim=True) + model.cfg.eps).rsqrt()
        x = stream * scale * model.blocks[layer].ln1.w
        out = (x @ attn.W_V[index] @ attn.W_O[index]).flatten(0, 1)
        both = torch.cat([one_hot["c"], one_hot["f"]], dim=1)
        stated = {"separately": 1 - left_by(both, out)}
        stated["difference_alone"] = 1 - left_by(one_hot["d"], out)
        assert found[head] == pytest.approx(stated, abs=1e-4)
        assert stated["separately"] > 2 * stated["difference_alone"]


def test_scores_are_split_among_the_answers_of_one_prompt():
    model, n_shots = random_model(6), 3
    tokens = torch.randint(9, (50, 6 * n_shots + 5), generator=generator())
    answers = torch.tensor([5, 11, 17])
    expected, shown = (torch.randint(4, (50, n_shots), generator=generator(n)) for n in (1, 2))
    asked = torch.randint(4, (50,), generator=generator(3))
    examples = Examples(tokens, answers, expected, shown)
    found = reading.looks_for(model, examples, asked, ["1.1"])["1.1"]
    _, cache = model.run_with_cache(tokens)
    scores = cache["blocks.1.attn.hook_attn_scores"][:, 1, -1]
    pattern = cache["blocks.1.attn.hook_pattern"][:, 1, -1]

    def explained(values, labels):
        groups = {}
        for value, label in zip(values.flatten().tolist(), labels.flatten().tolist()):
            groups.setdefault(label, []).append(value)
        mean = values.mean().item()
        between = sum(len(some) * (fmean(some) - mean) ** 2 for some in groups.values())
        return between / (values - mean).square().sum().item()

    centred = scores[:, answers] - scores[:, answers].mean(1, keepdim=True)
    nearness = expected - asked[:, None]
    example = torch.arange(n_shots).expand_as(shown)
    labels = {"nearness": nearness, "example": example, "shown": shown}
    stated = {name: explained(centred, of) for name, of in labels.items()}
    assert found["among_answers"] == pytest.approx(stated, abs=1e-4)
    at_answers = pattern[:, answers]
    means = [at_answers[nearness.abs() == apart].mean().item() for apart in range(4)]
    assert found["by_distance"] == pytest.approx(means, abs=1e-4)


def test_attention_at_a_distance_that_no_answer_has_is_null():
    tokens = torch.randint(9, (4, 11), generator=generator())
    expected = torch.tensor([[5, 8], [5, 2], [8, 2], [2, 2]])  # 0 or 3 away from 5
    examples = Examples(tokens, torch.tensor([3, 7]), expected, expected)
    found = reading.looks_for(random_model(), examples, torch.full((4,), 5), ["0.0"])["0.0"]
    seen = found["by_distance"]
    assert len(seen) == 4 and seen[1:3] == [None, None] and min(seen[0], seen[3]) > 0


# ---------------------------------------------------------------- more prompts


def test_writings_hand_each_analysis_the_prompts_that_it_states(monkeypatch):
    import patch

    given = {}

    def record(name, result):
        return lambda *arguments, **_: given.setdefault(name, arguments) and None or dict(result)

    monkeypatch.setattr(function_vectors, "study", record("vectors", {}))
    for name in ("inputs_apart", "looks_for", "hands_over"):
        monkeypatch.setattr(reading, name, record(name, {}))
    model = random_model(d_vocab=len(tasks.VOCABULARY))
    of = patch.Study(shots=3, prompts=12)
    study.writings(tasks, model, ["1.0"], of, generator())

    def number_at(tokens, place):
        return tokens[:, place] - tasks.ZERO

    _, asking, _, heads, _, k = given["vectors"]
    assert (heads, k, list(asking)) == (["1.0"], 1, list(range(-4, 5)))
    for shift, tokens in asking.items():
        first = number_at(tokens, 5) - number_at(tokens, 1) - number_at(tokens, 3)
        assert (first == shift).all() and len(tokens) == 36
    patcher, sources, _ = given["inputs_apart"]
    base, contrast = patcher.base_tokens, patcher.contrast_tokens
    assert len(contrast) == 24 and torch.equal(sources["base"], base)
    assert torch.equal(sources["operands_changed"][:, 5::6], contrast[:, 5::6])
    _, shown, asked, _ = given["looks_for"]
    assert torch.equal(asked, number_at(shown.tokens, -4) + number_at(shown.tokens, -2))
    _, over, _ = given["hands_over"]
    assert over is shown and len(shown.tokens) >= 9 * 12
    assert (shown.difference == shown.difference[:, :1]).all()
    assert shown.difference.unique().tolist() == list(range(-4, 5))


def test_what_is_asked_is_shown_with_four_examples_at_most(monkeypatch):
    import patch

    model = random_model(d_vocab=len(tasks.VOCABULARY))
    for shots in (1, 4, 8):
        of = patch.Study(shots=shots, prompts=2)
        pairs = of.pairs(2, generator())
        told = study.asked(tasks, model, of, pairs)["example"]
        for name, tokens in (("base", pairs.base[0]), ("contrast", pairs.contrast[0])):
            words, whole = told[name].split(), tasks.decode(tokens).split()
            assert words == whole[: 1 + 6 * min(shots, 4)] + whole[-4:]


def test_donors_are_shared_out_among_prompts_of_one_answer():
    pairs = tasks.evaluation_pairs("addition", 1, 3, 60, generator())
    donors = study.donors(tasks, pairs)
    answer = pairs.contrast_answers.mode().values
    mine = donors[pairs.contrast_answers == answer]
    assert len(mine.unique(dim=0)) >= math.ceil(len(mine) / 2) > 1
