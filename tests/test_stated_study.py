"""What `analysis/study.py` states: which prompts and heads each analysis of a study gets."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch

import patch
import tasks
from minifunc.ablation import Ablator
from minifunc.analysis import averaging, function_vectors, reading, study
from minifunc.circuit import Discovery
from minifunc.model import ModelConfig, Transformer
from minifunc.support.effects import Effects

CFG = ModelConfig(
    n_layers=2, n_heads=3, d_model=8, d_head=4, d_mlp=8, d_vocab=len(tasks.VOCABULARY)
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def model():
    return Transformer(CFG, generator(1)).requires_grad_(False)


def sums(tokens):
    """x + y of each example and of the query, and the shown answers."""
    places = tasks.answer_positions((tokens.shape[1] + 1) // 6)
    x, y = tokens[:, places - 4] - tasks.ZERO, tokens[:, places - 2] - tasks.ZERO
    return x + y, tokens[:, places[:-1]] - tasks.ZERO


@pytest.mark.parametrize(
    "task, k, said",
    [("addition", 1, "off by +1"), ("caesar", -3, "off by -3"), ("base_addition", 8, "in base 8")],
)
def test_what_is_studied_is_told_as_it_was_asked_for(model, task, k, said):
    of = patch.Study(task=task, k=k, shots=3, prompts=7, seed=11, freeze_mlps=True)
    told = study.asked(tasks, model, of, of.pairs(2, generator()))
    del told["example"], told["weights"]
    stated = {"task": task, "k": k, "asked": said, "shots": 3, "n_prompts": 7, "seed": 11}
    assert told == stated | {"freeze_mlps": True, "device": "cpu"}


@pytest.mark.parametrize("task, k", [("addition", 1), ("addition", -4), ("caesar", 2)])
def test_every_prompt_has_a_donor_of_its_answer_and_all_that_there_are_serve(task, k):
    pairs = tasks.evaluation_pairs(task, k, 2, 80, generator(3))
    donors = study.donors(tasks, pairs)
    answers, rows = pairs.contrast_answers.tolist(), [tuple(row) for row in donors.tolist()]
    pool = tasks.evaluation_pairs(task, k, 2, 20 * 80, generator(80))
    of_answer = {}
    for row, answer in zip(pool.contrast.tolist(), pool.contrast_answers.tolist()):
        of_answer.setdefault(answer, []).append(tuple(row))
    assert all(row in of_answer[answer] for row, answer in zip(rows, answers))
    for answer, n in Counter(answers).items():
        mine = {row for row, other in zip(rows, answers) if other == answer}
        assert len(mine) > 0.6 * min(n, len(set(of_answer[answer])))


def test_an_answer_that_nobody_else_is_asked_for_has_any_donor():
    pairs = tasks.evaluation_pairs("addition", 1, 2, 3, generator())
    pairs.contrast_answers[1] = tasks.TOKEN["-4"]
    assert study.donors(tasks, pairs).shape == pairs.contrast.shape


def test_reuse_asks_each_task_by_its_own_k_and_takes_the_same_groups_of_other_heads(
    model, monkeypatch
):
    made = []
    monkeypatch.setattr(study, "reuse_rows", lambda *given: made.append(given) or [{}])
    asked = [("addition", -2), ("addition", 3), ("caesar", 1)]
    rows = study.reuse(tasks, model, ["0.0", "1.2"], asked, 2, generator())
    assert rows == [{"task": task, "k": k, "items": "all"} for task, k in asked]
    drawn = made[0][3]
    assert len(drawn) == 10 and {head for group in drawn for head in group} == {
        "0.1",
        "0.2",
        "1.0",
        "1.1",
    }
    for (task, k), (_, pairs, heads, groups) in zip(asked, made):
        assert groups == drawn and heads == ["0.0", "1.2"]
        assert len(pairs.base) == len(pairs.contrast) == 100 and pairs.base.shape[1] == 17
        if task == "addition":
            (plain, base), (_, contrast) = sums(pairs.base), sums(pairs.contrast)
            assert torch.equal(base, plain[:, :-1]) and torch.equal(contrast, base + k)


def test_plain_tasks_and_kinds_of_which_there_are_no_prompts_make_no_rows(model, monkeypatch):
    monkeypatch.setattr(study, "reuse_rows", lambda *given: [{}])
    monkeypatch.setattr(study, "N_REUSED", 30)
    kinds = []
    for task, k in (("addition", 0), ("base_addition", 6), ("base_addition", 9)):
        rows = study.reuse(tasks, model, ["1.0"], [(task, k)], 2, generator())
        kinds.append([row["items"] for row in rows])
    assert kinds == [[], ["carry", "no carry"], ["carry", "no carry"]]


def test_rows_of_reuse_run_base_and_contrast_prompts_with_values_of_the_base_run(
    model, monkeypatch
):
    """Which prompts, whose values, which heads; the last row is of the groups that were drawn."""
    made = []

    def row(prompts, label, heads, how):
        made.append((prompts.ablator.tokens, prompts.ablator.sent, label, heads, how))
        kept = ("ablated", "base_acc", "contrast_acc", "ci", "n_prompts")
        return dict.fromkeys(kept, label)

    monkeypatch.setattr(study, "ablation_row", row)
    monkeypatch.setattr(study, "control_row", row)
    pairs = tasks.evaluation_pairs("addition", 1, 2, 9, generator())
    rows = study.reuse_rows(model, pairs, ["1.0"], [["1.1"], ["1.2"]])
    assert [row["prompt"] for row in rows] == ["base", "contrast", "contrast", "contrast"]
    stated = [("none", []), ("none", []), ("function_induction", ["1.0"])]
    stated.append(("random_same_layers", [["1.1"], ["1.2"]]))
    assert [(label, heads) for _, _, label, heads, _ in made] == stated
    values = Ablator(model, pairs.contrast, {"base": pairs.base}).sent["base"]
    for (tokens, sent, *_, how), prompts in zip(made, [pairs.base] + [pairs.contrast] * 3):
        assert how == "base" and torch.equal(tokens, prompts) and sent.keys() == {"base"}
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(sent["base"], values))


def test_what_is_put_in_is_of_six_kinds_and_answers_stay_with_their_prompts(model):
    """Of the last block the last position is enough."""
    pairs = tasks.evaluation_pairs("addition", 1, 2, 12, generator())
    prompts = study.replacements(tasks, model, pairs)
    assert torch.equal(prompts.ablator.tokens, pairs.contrast)
    assert [*map(id, prompts.answers)] == [id(pairs.base_answers), id(pairs.contrast_answers)]
    others = [11, *range(11)]  # each gets what the prompt before it sends
    sources = {"base": pairs.base, "operands_changed": pairs.operands_changed}
    sources |= {"unrelated": pairs.base[others], "same_k": pairs.contrast[others]}
    sources["same_answer"] = study.donors(tasks, pairs)
    assert prompts.ablator.sent.keys() == {*sources, "mean"}
    for how, tokens in sources.items():
        first, last = Ablator(model, tokens, {"it": tokens}).sent["it"]
        ours = prompts.ablator.sent[how]
        assert torch.allclose(ours[0], first, atol=1e-6)
        assert torch.allclose(ours[1], last, atol=1e-6)
        if how == "base":
            mean = prompts.ablator.sent["mean"]
            assert torch.allclose(mean[0], first.mean(0, keepdim=True), atol=1e-6)
            assert torch.allclose(mean[1], last.mean(0, keepdim=True), atol=1e-6)


# ---------------------------------------------------------------- averaging, writings


def test_a_head_counts_in_averaging_by_minus_its_r_on_the_logits_under_changed_answers(
    model, monkeypatch
):
    given = []
    monkeypatch.setattr(averaging, "study", lambda *arguments: given.append(arguments) or "it")

    def logits(heads):
        heads = torch.tensor(heads, dtype=torch.float64)
        return {"logits": Effects(heads, torch.zeros(2), torch.tensor(0.0))}

    effects = {"answers": logits([[0.1, -0.2, 0.3], [-0.5, 0.6, -0.7]])}
    effects["operands"] = logits([[0.0] * 3] * 2)
    found = Discovery(effects, {}, {"function_induction": ["0.1", "1.2"]}, {})
    of = patch.Study(task="maximum", shots=5, seed=9)
    assert study.averaged(tasks, model, found, of) == {"averaging": "it"}
    ((language, who, fi, asked, draws),) = given
    assert (language, who, fi, asked) == (tasks, model, {"0.1": 0.2, "1.2": 0.7}, ("maximum", 5))
    assert torch.equal(draws.get_state(), generator(9).get_state())
    for task in ("caesar", "choice"):  # which are not on numbers
        assert study.averaged(tasks, model, found, patch.Study(task=task)) == {}
        assert study.writings(tasks, model, ["0.1"], patch.Study(task=task), generator()) == {}


@pytest.mark.parametrize("shots, prompts", [(8, 4), (7, 4), (2, 500)])
def test_at_least_4000_examples_stand_behind_shares_of_variance(model, monkeypatch, shots, prompts):
    given = {}
    monkeypatch.setattr(function_vectors, "study", lambda *arguments: {})
    for name in ("inputs_apart", "looks_for", "hands_over"):
        monkeypatch.setattr(reading, name, lambda *a, name=name: given.update({name: a}))
    monkeypatch.setattr(study, "PathPatcher", lambda *a, **more: (a, more))
    of = patch.Study(shots=shots, prompts=prompts, max_memory=0.75)
    study.writings(tasks, model, ["1.0"], of, generator())
    (_, shown, query, fi), (_, over, _) = given["looks_for"], given["hands_over"]
    n_of_each_k = len(shown.tokens) // 9
    assert over is shown and fi == ["1.0"] and len(query) == len(shown.tokens) == 9 * n_of_each_k
    least = next(n for n in range(1, 4000) if 9 * n * shots >= 4000)
    assert n_of_each_k == max(least, prompts)
    (_, base, contrast, base_answers, contrast_answers), more = given["inputs_apart"][0]
    assert more == {"max_memory": 0.75} and len(base) == len(contrast) == 2 * prompts
    assert torch.equal(base_answers + 1, contrast_answers)


def test_function_vectors_are_made_of_thrice_as_many_contrast_prompts_of_each_k(model, monkeypatch):
    given = []
    monkeypatch.setattr(function_vectors, "study", lambda *a: given.append(a) or {"vectors": 1})
    for name in ("inputs_apart", "looks_for", "hands_over"):
        monkeypatch.setattr(reading, name, lambda *a: {})
    monkeypatch.setattr(study, "N_EXAMPLES", 9)
    of = patch.Study(k=3, shots=2, prompts=5)
    found = study.writings(tasks, model, ["1.0"], of, generator())
    assert found.keys() == {"vectors", "reading"}
    ((_, contrast, naive, heads, numbers, k),) = given
    assert (heads, k, naive.shape[:2]) == (["1.0"], 3, (10, 9))
    assert numbers == {n: tasks.TOKEN[str(n)] for n in range(-4, 31)}
    assert list(contrast) == list(range(-4, 5))
    for shift, tokens in contrast.items():
        plain, shown = sums(tokens)
        assert len(tokens) == 15 and torch.equal(shown, plain[:, :-1] + shift)


def test_some_of_the_pairs_are_the_same_rows_of_every_tensor_and_the_rest_stays():
    pairs = tasks.evaluation_pairs("addition", 2, 2, 6, generator())
    which = torch.tensor([True, False, True, False, False, True])
    for chosen, rows in ((which, [0, 2, 5]), (slice(2), [0, 1]), (torch.tensor([4, 0]), [4, 0])):
        few = study.some(pairs, chosen)
        assert (few.task, few.k, few.shots) == ("addition", 2, 2)
        for name in ("base", "contrast", "operands_changed", "base_answers", "contrast_answers"):
            assert torch.equal(getattr(few, name), getattr(pairs, name)[rows])
    of = SimpleNamespace(base_answers=1, contrast_answers=2)
    assert study.answers_of(of) == (1, 2)
