"""What `averaging.study` states of each of its findings: which prompts, which heads, which share.

The model is left out: whoever is asked answers by a rule that is known, the weighted mean of what
its prompt shows. So each figure is worked out again from the prompts' tokens, in plain Python.
"""

import math
from collections import Counter
from itertools import islice
from statistics import fmean
from types import SimpleNamespace

import pytest
import torch

import tasks
from minifunc.analysis import averaging
from minifunc.model import ModelConfig, Transformer

SHOTS = 3
FI = {"1.0": 2.0, "2.1": 0.5}
OTHERS = {"1.1": 1.0, "1.2": 1.0, "2.0": 1.0, "2.2": 1.0}  # of the same layers, none of layer 0
MODEL = SimpleNamespace(cfg=ModelConfig(n_layers=3, n_heads=3))
LOOKS = {
    "fi": [0.4571, 0.3313, 0.2116],
    "others": [0.1, 0.2, 0.7],
}  # shares of the attention, by answer


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def numerals(k):
    """What 0 … 18 in base k read as."""
    return [int(f"{f // k}{f % k}") for f in range(19)]


RULES = {  # by name: what the answer to 0 … 18 is
    **{f"in base {k}": numerals(k) for k in (6, 7, 8, 9)},
    "+1 up to 8, +2 above": [f + 1 for f in range(9)] + [f + 2 for f in range(9, 19)],
    "half": [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9],
    "always 7": [7] * 19,
}


def read(tokens):
    """What stands in each prompt: [(x + y, shown answer), …] of its examples; the asked x + y."""
    examples, asked = [], []
    for row in tokens.tolist():
        assert len(row) == 1 + 6 * SHOTS + 4 and {*row[2::6]} == {tasks.TOKEN["+"]}
        n = [token - tasks.ZERO for token in row]
        examples.append([(n[i] + n[i + 2], n[i + 4]) for i in range(1, 6 * SHOTS, 6)])
        asked.append(n[-4] + n[-2])
    return examples, asked


def next_to(x):
    """The other number that gets some probability."""
    return x + 2 if x <= 10 else x - 2


def mean_of(call):
    """What the answers are off by on average, of each prompt."""
    return [0.6 * x + 0.4 * next_to(x) for x in call.off_by]


class Known(averaging.Asker):
    """Answers by the mean of what is shown, weighted by its attention and rounded up; and one less
    where the asked sum cannot be divided by 2 (FI heads) or 3 (others). Another number gets
    the rest of the probability. Notes what it was asked."""

    calls = []

    def ask(self, examples, query, change=None):
        who = "fi" if self.weights == FI else "others" if self.weights == OTHERS else "unknown"
        shown, asked = read(examples.tokens)
        assert asked == query.tolist() and (self.zero, self.numbers) == (tasks.ZERO, tasks.NUMBERS)
        look = torch.tensor(LOOKS[who]).double().expand(len(asked), -1)
        given = look if change is None else change(look)
        d = [[c - f for f, c in row] for row in shown]
        off_by = []
        for weights, row, total in zip(given.tolist(), d, asked):
            mean = sum(weight * x for weight, x in zip(weights, row))
            off_by.append(math.ceil(mean - 1e-9) - (total % {"fi": 2, "others": 3}[who] > 0))
        chance = torch.zeros(len(asked), 25).double()
        for row, x in zip(chance, off_by):
            row[12 + x], row[12 + next_to(x)] = 0.6, 0.4
        call = SimpleNamespace(who=who, shown=shown, d=d, asked=asked, look=given, off_by=off_by)
        Known.calls.append(call)
        return chance, look


@pytest.fixture(scope="module")
def studied():
    """What is found, and what was asked for it, in the order of the docstring."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(averaging, "Asker", Known)
        patched.setattr(Known, "calls", [])
        found = averaging.study(tasks, MODEL, FI, ("addition", SHOTS), generator())
        calls = iter(Known.calls)
        parts = {}
        for part, n in (("first", 1), ("steered", 7), ("control", 7), ("mixtures", 4)):
            parts[part] = list(islice(calls, n))
        parts["mixtures"] = parts.pop("first") + parts["mixtures"]
        for part, n in (("n_off", SHOTS + 1), ("scope", 8), ("rules", 7), ("flat", 2)):
            parts[part] = list(islice(calls, n))
        assert not list(calls)
        return found, SimpleNamespace(**parts)


def share(holds):
    return pytest.approx(fmean(map(bool, holds)), abs=1e-4)


def right_by(call, k):
    """The share of a call's prompts that are answered off by k."""
    return share(x == k for x in call.off_by)


def assert_accounted(row, call):
    """`account` of one call, from its prompts alone."""
    looks = LOOKS["fi"]
    told = {name: [] for name in ("attention", "uniform", "most_attended", "nearest", "last")}
    for d, shown, total in zip(call.d, call.shown, call.asked):
        told["attention"].append(sum(weight * x for weight, x in zip(looks, d)))
        told["uniform"].append(fmean(d))
        told["most_attended"].append(d[0])
        distance = [abs(f - total) for f, _ in shown]
        told["nearest"].append(d[distance.index(min(distance))])
        told["last"].append(d[-1])
    n, counts = len(call.d), Counter(call.off_by)
    assert row["n_prompts"] == n == 200
    assert row["answered"] == {str(k): round(counts[k] / n, 4) for k in sorted(counts)}
    y = mean_of(call)
    variance = sum((value - fmean(y)) ** 2 for value in y)
    for name, forecast in told.items():
        left = sum((a - b) ** 2 for a, b in zip(forecast, y))
        assert row["r2"][name] == pytest.approx(1 - left / variance, abs=2e-4)
        whole = [round(x) == off for x, off in zip(forecast, call.off_by)]
        assert row["hits"][name] == share(whole)


def test_every_mixture_draws_its_offsets_evenly_and_for_each_example_anew(studied):
    found, asked = studied
    stated = [[-1, 1], [0, 1], [0, 2], [-2, 2], [-4, -3, -2, -1, 0, 1, 2, 3, 4]]
    assert [row["offsets"] for row in found["mixtures"]] == stated
    for row, call, offsets in zip(found["mixtures"], asked.mixtures, stated):
        assert call.who == "fi"
        assert_accounted(row, call)
        unseen = share(x not in offsets for x in call.off_by)
        assert row["unseen_offset_share"] == unseen and "right" not in row
        for shot in range(SHOTS):
            counts = Counter(d[shot] for d in call.d)
            assert sorted(counts) == offsets
            even = 200 / len(offsets)
            assert all(abs(count - even) < 5 * even**0.5 for count in counts.values())
        alike = fmean(len(set(d)) == 1 for d in call.d)
        assert alike == pytest.approx(len(offsets) ** (1 - SHOTS), abs=0.13)
    assert any(row["unseen_offset_share"] for row in found["mixtures"])


@pytest.mark.parametrize("name, who", [("steered", "fi"), ("control", "others")])
def test_attention_is_moved_on_prompts_of_the_first_mixture_that_show_both(studied, name, who):
    found, asked = studied
    first = asked.mixtures[0]
    both = [i for i, d in enumerate(first.d) if {*d} == {-1, 1}]
    gains = [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0]
    assert [row["gain"] for row in found[name]] == gains
    for row, call, gain in zip(found[name], getattr(asked, name), gains):
        assert (call.who, row["n_prompts"]) == (who, len(both))
        assert call.d == [first.d[i] for i in both] and call.asked == [first.asked[i] for i in both]
        for given, d in zip(call.look.tolist(), call.d):
            kinds = {k: sum(x for x, at in zip(LOOKS[who], d) if at == k) for k in (-1, 1)}
            share_of = {1: gain, -1: 1 - gain}
            stated = [share_of[at] * x / kinds[at] for x, at in zip(LOOKS[who], d)]
            assert given == pytest.approx(stated)
        assert row["off_by"] == pytest.approx(fmean(mean_of(call)), abs=1e-4)


def test_of_the_examples_none_one_and_so_on_to_all_are_off_by_one_at_random_places(studied):
    found, asked = studied
    assert len(found["n_off"]) == SHOTS + 1
    for n, (value, call) in enumerate(zip(found["n_off"], asked.n_off)):
        assert call.who == "fi" and value == right_by(call, 1)
        assert all(sorted(d) == [0] * (SHOTS - n) + [1] * n for d in call.d)
        places = Counter(shot for d in call.d for shot in range(SHOTS) if d[shot])
        assert all(abs(count - 200 * n / SHOTS) < 50 for count in places.values())
    assert len(set(found["n_off"])) > 1


def test_the_scope_goes_from_off_by_1_to_off_by_8(studied):
    found, asked = studied
    assert list(found["scope"]) == [str(k) for k in range(1, 9)]
    for (k, value), call in zip(found["scope"].items(), asked.scope):
        assert {x for d in call.d for x in d} == {int(k)}
        assert call.who == "fi" and value == right_by(call, int(k))
    assert 0 < min(found["scope"].values()) < 1


def test_rules_are_those_named_and_right_by_the_asked_sum(studied):
    found, asked = studied
    assert {row["rule"] for row in found["rules"]} == RULES.keys()
    for row, call in zip(found["rules"], asked.rules):
        rule = RULES[row["rule"]]
        assert call.who == "fi" and all(c == rule[f] for shown in call.shown for f, c in shown)
        assert_accounted(row, call)
        answered = [total + x for total, x in zip(call.asked, call.off_by)]
        assert row["right"] == share(c == rule[f] for c, f in zip(answered, call.asked))


def test_flat_attention_is_that_of_fi_heads_and_then_of_all_others_of_their_layers(studied):
    found, asked = studied
    assert [call.who for call in asked.flat] == ["fi", "others"] == list(found["flat"])
    for value, call in zip(found["flat"].values(), asked.flat):
        assert {x for d in call.d for x in d} == {1} and value == right_by(call, 1)
        assert call.look.tolist() == [[pytest.approx(1 / SHOTS)] * SHOTS] * 200


def test_all_prompts_are_plain_but_for_what_is_shown_and_the_same_throughout(studied):
    _, asked = studied
    every = [*asked.mixtures, *asked.n_off, *asked.scope, *asked.rules, *asked.flat]
    pairs = tasks.evaluation_pairs("addition", 1, SHOTS, 200, generator())
    for call in every:
        assert call.asked == [int(n) - tasks.ZERO for n in pairs.base_answers]
        expected = [[f for f, _ in shown] for shown in call.shown]
        assert expected == [[f for f, _ in shown] for shown in read(pairs.base)[0]]


def test_a_layer_of_fi_heads_alone_has_no_control(monkeypatch):
    monkeypatch.setattr(averaging, "N_PROMPTS", 10)
    model = SimpleNamespace(cfg=ModelConfig(n_layers=3, n_heads=2))
    weights = {"1.0": 1.0, "1.1": 1.0}
    monkeypatch.setattr(averaging, "Asker", Known)
    monkeypatch.setitem(globals(), "FI", weights)
    found = averaging.study(tasks, model, weights, ("addition", SHOTS), generator())
    assert found["control"] == [] and found["flat"].keys() == {"fi"} and found["steered"]


# ---------------------------------------------------------------- who is asked


def asked_of(shown, query):
    """One prompt for each (x, y) of the query, all with the same examples (x, y, answer)."""
    text = ", ".join(f"{x}+{y}={c}" for x, y, c in shown)
    tokens = torch.stack([tasks.encode(f"{text}, {x}+{y}=") for x, y in query])
    expected, answers = (torch.tensor([x + y for x, y, *_ in some]) for some in (shown, query))
    numbers = torch.tensor([c for *_, c in shown]).expand(len(query), -1)
    places = tasks.answer_positions(len(shown))
    return averaging.Examples(tokens, places, expected.expand_as(numbers), numbers), answers


@pytest.fixture(scope="module")
def asker():
    """Of two heads in different layers of a random model that tells its prompts apart."""
    shape = {"n_layers": 2, "n_heads": 2, "d_model": 16, "d_head": 8, "act_fn": "none"}
    cfg = ModelConfig(**shape, d_vocab=len(tasks.VOCABULARY))
    model = Transformer(cfg, generator(2)).requires_grad_(False)
    for block in model.blocks:
        block.attn.W_Q.data *= 3
        block.attn.W_O.data *= 2
    return averaging.Asker(model, {"0.1": 2.0, "1.0": 0.5}, tasks.ZERO, tasks.NUMBERS)


SHOWN = [(1, 1, 3), (2, 5, 8), (4, 0, 6), (9, 3, 13)]  # off by 1, 1, 2, 1


def test_all_numbers_up_to_12_away_that_have_tokens_may_be_answered_and_no_other(asker):
    examples, query = asked_of(SHOWN, [(0, 0), (4, 5), (9, 8), (9, 9)])
    chance, _ = asker.ask(examples, query)
    for row, total in zip(chance, query.tolist()):
        steps = [step - 12 for step in row.nonzero()[:, 0].tolist()]
        assert steps == [step for step in range(-12, 13) if -4 <= total + step <= 30]
        assert row.sum().item() == pytest.approx(1)


def test_each_heads_attention_is_changed_from_its_own(asker):
    """Shares that stay as they are change nothing, whosever they are; and `change` sees its own."""
    examples, query = asked_of(SHOWN, [(3, 3), (7, 1)])
    plain, look = asker.ask(examples, query)
    seen = []

    def same(own):
        seen.append(own)
        return own / own.sum(1, keepdim=True)

    chance, again = asker.ask(examples, query, same)
    torch.testing.assert_close(chance, plain, atol=1e-6, rtol=0)
    torch.testing.assert_close(again, look, atol=1e-6, rtol=0)
    _, cache = asker.model.run_with_cache(examples.tokens)
    for own, (layer, head, weight) in zip(seen, [(0, 1, 2.0), (1, 0, 0.5)]):
        pattern = cache[f"blocks.{layer}.attn.hook_pattern"][:, head, -1, examples.answers]
        torch.testing.assert_close(own, weight * pattern.double(), atol=1e-6, rtol=0)
    assert len(seen) == 2 and not torch.allclose(seen[0] / 4, seen[1], atol=1e-3)


def test_answers_off_by_one_are_set_apart_from_all_others_also_from_those_off_by_more(monkeypatch):
    monkeypatch.setattr(Known, "calls", [])
    shown = [(1, 1, 3), (2, 5, 9), (4, 0, 4)]
    for answers, up in (((3, 9, 4), [0]), ((4, 8, 3), [1]), ((3, 9, 5), [0, 2])):
        some = [(x, y, c) for (x, y, _), c in zip(shown, answers)]
        examples, query = asked_of(some, [(3, 3), (2, 4)])
        Known.calls.clear()
        averaging.steered(Known(None, FI, tasks.ZERO, tasks.NUMBERS), examples, query)
        ends = [Known.calls[step].look[0].nonzero()[:, 0].tolist() for step in (0, -1)]
        assert ends == [[shot for shot in range(3) if shot not in up], up]


def test_where_all_or_none_of_the_examples_are_off_by_one_there_is_nothing_to_move():
    for answers in ((3, 8, 5), (2, 9, 6)):
        some = [(x, y, c) for (x, y), c in zip([(1, 1), (2, 5), (4, 0)], answers)]
        asker = Known(None, FI, tasks.ZERO, tasks.NUMBERS)
        assert averaging.steered(asker, *asked_of(some, [(3, 3)])) == []
