"""Is a head found to carry the shift where one does, and by no model that cannot?"""

from types import SimpleNamespace

import pytest
import torch
from handwired import headline_model

import tasks
from minifunc.ablation import Ablator, all_heads
from minifunc.analysis import shift_swap
from minifunc.model import ModelConfig, Transformer
from minifunc.support.evaluation import bootstrap
from minifunc.support.runs import load_run

ASKED = SimpleNamespace(task="addition", k=1, shots=2, seed=0)
SMALL = {"n_layers": 2, "n_heads": 3, "d_model": 24, "d_head": 8, "d_mlp": 48}


def swapped(model, fi, shots=2):
    asked = SimpleNamespace(**vars(ASKED) | {"shots": shots})
    return shift_swap.study(tasks, model, fi, asked)["shift_swap"]["rows"]


@pytest.fixture(autouse=True)
def fewer(monkeypatch):
    monkeypatch.setattr(shift_swap, "N_PROMPTS", 150)


def numbers(tokens, places):
    return tokens[:, places] - tasks.ZERO


def test_donors_ask_for_the_same_sum_by_other_examples_and_differ_in_the_shift_alone(monkeypatch):
    made = []
    monkeypatch.setattr(shift_swap, "Ablator", lambda *given: made.append(given) or Ablator(*given))
    model = Transformer(ModelConfig(d_vocab=len(tasks.VOCABULARY), **SMALL))
    found = shift_swap.study(tasks, model.requires_grad_(False), ["1.0"], ASKED)["shift_swap"]
    ((_, prompts, donors),) = made
    places = tasks.answer_positions(2)
    shifts = {}
    for name, tokens in {"own": prompts, **donors}.items():
        x, y, c = (numbers(tokens, places + back) for back in (-4, -2, 0))
        d = c - x - y
        assert torch.equal(d, d[:, :1].expand_as(d))
        shifts[name] = d[:, 0]
        asked = numbers(tokens, [-4, -2]).sum(1)
        assert torch.equal(asked, numbers(prompts, [-4, -2]).sum(1))
    assert set(shifts["own"].tolist()) == set(shifts["same"].tolist()) == {1}
    assert set(shifts["answers"].tolist()) == {-4, -3, -2, -1, 2, 3, 4} == set(found["shifts"])
    assert set(shifts["operands"].tolist()) == {0}
    assert torch.equal(numbers(donors["same"], places), numbers(donors["operands"], places))
    operands = torch.cat([places - 4, places - 2])
    assert torch.equal(donors["same"][:, operands], donors["answers"][:, operands])
    assert (donors["same"][:, operands] != prompts[:, operands]).any(1).all()
    assert found["n_prompts"] == len(prompts) > 100


def test_what_moved_is_what_donors_move_at_the_last_equals_sign_alone(monkeypatch):
    made = []
    monkeypatch.setattr(shift_swap, "Ablator", lambda *given: made.append(given) or Ablator(*given))
    cfg = ModelConfig(d_vocab=len(tasks.VOCABULARY), **SMALL)
    model = Transformer(cfg, torch.Generator().manual_seed(3)).requires_grad_(False)
    row = swapped(model, ["0.0", "0.2", "1.1"])[0]
    ((_, prompts, donors),) = made
    last, each = [prompts.shape[1] - 1], torch.arange(len(prompts))
    plain = prompts[:, [-4, -2]].sum(1) - tasks.ZERO
    first = tasks.answer_positions(1)
    x, y, c = (numbers(donors["answers"], first + back)[:, 0] for back in (-4, -2, 0))
    ablator = Ablator(model, prompts, donors)
    for how, wanted in (("answers", plain + c - x - y), ("operands", plain)):

        def moved(run, how=how, wanted=wanted):
            change = (run(how) - run("same")).double()
            return change[each, wanted] - change[each, plain + 1]

        patched = moved(lambda how: ablator.logits_plainly(row["heads"], how, last))
        whole = moved(lambda how: model(donors[how])[:, -1]).abs()
        share = patched.mean() / whole.mean()
        assert row[how]["moved"] == pytest.approx(share.item(), abs=2e-4)
        everywhere = moved(lambda how: ablator.logits_plainly(row["heads"], how))
        assert abs((everywhere.mean() / whole.mean() - share).item()) > 0.003


def test_the_heads_of_the_reference_run_carry_the_shift_and_others_of_their_layers_hardly_do():
    model, _ = load_run("reference")
    rows = swapped(model, ["2.1", "2.3", "3.2", "3.3", "3.5"], shots=8)
    together, random = rows[0], [row for row in rows if row["swapped"] == "random_same_layers"]
    passing = {row["heads"][0] for row in rows if row["passes"] and len(row["heads"]) == 1}
    assert together["passes"] and {"2.3", "3.2", "3.5"} <= passing
    assert passing.isdisjoint({"2.0", "2.2", "2.4", "2.5", "3.4"})
    assert min(together[how]["moved"] for how in ("answers", "operands")) > 0.6
    assert max(row[how]["moved"] for how in ("answers", "operands") for row in random) < 0.2
    assert together["operands"]["base_acc"] == together["operands"]["other_acc"] > 0.8


@pytest.mark.parametrize("seed", range(3))
def test_no_head_of_an_untrained_model_passes(seed):
    cfg = ModelConfig(d_vocab=len(tasks.VOCABULARY), **SMALL)
    model = Transformer(cfg, torch.Generator().manual_seed(seed)).requires_grad_(False)
    rows = swapped(model, all_heads(cfg))
    alone = [row["passes"] for row in rows if row["swapped"] == "one_fi_head"]
    assert alone == [False] * 6


@pytest.mark.parametrize("more", [0, 2])
def test_a_head_that_looks_at_a_shown_answer_and_copies_it_does_not_pass(more):
    """Nor one that adds to it: other operands change nothing of what it sends."""
    rows = swapped(headline_model(len(tasks.VOCABULARY), more), ["0.0"])
    assert not any(row["passes"] for row in rows)
    assert rows[0]["operands"]["moved"] == pytest.approx(0, abs=1e-6)
    assert more or rows[0]["answers"]["moved"] < 0


@pytest.mark.parametrize("lows, passes", [((0.5, 0.02), 0), ((0.02, 0.5), 0), ((0.03, 0.03), 1)])
def test_a_head_passes_that_moves_the_answer_under_both(monkeypatch, lows, passes):
    given = iter(lows)

    def interval(change, whole):
        return [[next(given), 1.0]] * len(change)

    monkeypatch.setattr(shift_swap, "bootstrap", interval)
    rows = swapped(headline_model(len(tasks.VOCABULARY)), ["0.0"])
    assert {row["passes"] for row in rows} == {bool(passes)}


def test_a_function_that_is_not_on_numbers_has_none():
    asked = SimpleNamespace(**vars(ASKED) | {"task": "caesar"})
    assert shift_swap.study(tasks, None, ["0.0"], asked) == {}


# ---------------------------------------------------------------- its rows, worked out again


def asked_for(**changes):
    return SimpleNamespace(**vars(ASKED) | changes)


def random_model(seed=4):
    """It answers sums from 5 to 14 alone, so that some of its answers are right."""
    cfg = ModelConfig(d_vocab=len(tasks.VOCABULARY), n_layers=3, n_heads=4, d_model=16, d_head=4)
    model = Transformer(cfg, torch.Generator().manual_seed(seed)).requires_grad_(False)
    model.unembed.W_U.data[:, : tasks.ZERO + 5] = model.unembed.W_U.data[:, tasks.ZERO + 15 :] = 0
    return model


@pytest.fixture(scope="module")
def known():
    """What is found of a random model by seed 5 and k = 2, and the prompts and donors behind it."""
    made = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(shift_swap, "N_PROMPTS", 80)
        patched.setattr(shift_swap, "Ablator", lambda *given: made.append(given) or Ablator(*given))
        asked = asked_for(k=2, seed=5, shots=3)
        found = shift_swap.study(tasks, random_model(), ["1.0", "1.3", "2.2"], asked)
    ((_, prompts, donors),) = made
    return found["shift_swap"], prompts, donors


def test_there_is_a_row_for_all_fi_heads_for_each_for_random_groups_and_for_each_other_head(known):
    rows = known[0]["rows"]
    by_kind = {}
    for row in rows:
        by_kind.setdefault(row["swapped"], []).append(row["heads"])
    assert by_kind.pop("function_induction") == [["1.0", "1.3", "2.2"]]
    assert by_kind.pop("one_fi_head") == [["1.0"], ["1.3"], ["2.2"]]
    assert by_kind.pop("one_other_head") == [["1.1"], ["1.2"], ["2.0"], ["2.1"], ["2.3"]]
    random = by_kind.pop("random_same_layers")
    assert not by_kind and len(random) == 5 and len(set(map(tuple, random))) > 1
    for group in random:
        assert group[:2] == ["1.1", "1.2"] and len(group) == 3
        assert group[2] in ("2.0", "2.1", "2.3")
    assert known[0]["least"] == 0.02 and known[0]["shifts"] == [-4, -3, -2, -1, 1, 3, 4]


def test_pairs_are_those_of_the_studys_seed_and_all_that_ask_for_a_sum_twice_in_a_row(known):
    found, prompts, donors = known
    generator = torch.Generator().manual_seed(5)
    pairs = tasks.evaluation_pairs("addition", 2, 3, 80, generator)
    order = sorted(range(80), key=lambda i: int(pairs.base_answers[i]))
    alike = [(i, j) for i, j in zip(order, order[1:]) if not pairs.base_answers[[i, j]].diff()]
    mine, others = map(list, zip(*alike))
    assert torch.equal(prompts, pairs.contrast[mine]) and found["n_prompts"] == len(mine)
    assert torch.equal(donors["same"], pairs.contrast[others])
    assert torch.equal(donors["operands"], pairs.operands_changed[others])


def test_each_row_is_that_of_plain_runs_prompt_by_prompt(known):
    """Its share and its interval, and how often each answer is given."""
    found, prompts, donors = known
    model, n = random_model(), len(prompts)
    ablator, last, each = Ablator(model, prompts, donors), [prompts.shape[1] - 1], torch.arange(n)
    plain = (prompts[:, [-4, -2]] - tasks.ZERO).sum(1)
    shifts = torch.tensor([-4, -3, -2, -1, 1, 3, 4] * n)[:n]
    for how, other in (("answers", plain + shifts), ("operands", plain)):

        def moved(run, how=how, other=other):
            change = (run(how) - run("same")).double()
            return change[each, tasks.ZERO + other] - change[each, tasks.ZERO + plain + 2]

        whole = moved(lambda how: model(donors[how])[:, -1]).abs()
        for row in (found["rows"][0], found["rows"][-1]):
            runs = {x: ablator.logits_plainly(row["heads"], x, last) for x in ("same", how)}
            answers = runs[how].argmax(-1) - tasks.ZERO
            stated = {"base_acc": plain, "contrast_acc": plain + 2, "other_acc": other}
            for name, wanted in stated.items():
                right = (answers == wanted).double().mean().item()
                assert row[how][name] == pytest.approx(right, abs=1e-4)
            assert row[how]["base_acc"] != row[how]["contrast_acc"]
            change = moved(runs.get)
            share = (change.mean() / whole.mean()).item()
            assert row[how]["moved"] == pytest.approx(share, abs=1e-4)
            assert row[how]["ci"] == pytest.approx(bootstrap(change[None], whole)[0], abs=2e-4)
