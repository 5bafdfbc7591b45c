"""What FI heads compute: forecasts by hand, attention that is moved, and the reference run."""

import json
from pathlib import Path

import pytest
import torch

import tasks
from minifunc import Logits, ModelConfig, PathPatcher, Transformer, load_run
from minifunc.analysis import averaging
from minifunc.analysis.activations import Examples
from minifunc.analysis.averaging import REACH, Asker
from minifunc.circuit import Criteria, attention_shares, direct_groups

REFERENCE = Path(__file__).parent.parent / "reference"
SHOTS = 4


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def model():
    shape = ModelConfig(
        n_layers=2, n_heads=3, d_model=24, d_head=8, d_mlp=16, d_vocab=len(tasks.VOCABULARY)
    )
    return Transformer(shape, generator(3)).requires_grad_(False)


@pytest.fixture(scope="module")
def plain():
    """300 plain prompts (more than one pass takes), and f(x, y) of their queries."""
    pairs = tasks.evaluation_pairs("addition", 1, SHOTS, 300, generator())
    places = tasks.answer_positions(SHOTS)
    f = pairs.base[:, places] - tasks.ZERO
    return Examples(pairs.base, places, f, f), pairs.base_answers - tasks.ZERO


def asker_of(model, **weights):
    heads = {f"{name[1]}.{name[2]}": weight for name, weight in weights.items()}
    return Asker(model, heads, tasks.ZERO, tasks.NUMBERS)


def test_forecasts_worked_out_by_hand():
    d = torch.tensor([[1, -1, 3], [2, 0, 0]])
    look = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.6, 0.3]]).double()
    distance = torch.tensor([[4, 1, 1], [0, 2, 5]])
    told = averaging.forecasts(d, look, distance)
    expected = {
        "attention": [1.0, 0.2],
        "uniform": [1.0, 2 / 3],
        "most_attended": [1.0, 0.0],
        "nearest": [-1.0, 2.0],
        "last": [3.0, 0.0],
    }
    assert told.keys() == expected.keys()
    for name, values in expected.items():
        assert told[name].tolist() == pytest.approx(values), name


def test_r2_worked_out_by_hand():
    y, forecast = torch.tensor([[0.0, 1.0, 2.0, 5.0], [0.0, 1.0, 2.0, 3.0]]).double()
    assert averaging.r2(forecast, y) == pytest.approx(1 - 4 / 14)  # of y the mean is 2
    assert averaging.r2(y, forecast) == pytest.approx(1 - 4 / 5)
    assert averaging.r2(y, y) == 1.0 and averaging.r2(torch.full_like(y, 2.0), y) == 0.0


def test_the_interval_of_r2_is_that_of_the_residual_over_the_variance():
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(400, dtype=torch.float64, generator=generator)
    forecast = y + 0.5 * torch.randn(400, dtype=torch.float64, generator=generator)
    low, high = averaging.r2_interval(forecast, y)
    draws = []  # the same, resampled here
    for seed in range(400):
        drawn = torch.Generator().manual_seed(seed)
        some = torch.randint(400, (400,), generator=drawn)
        draws.append(1 - averaging.r2(forecast[some], y[some]))
    ends = 1 - torch.tensor(draws).quantile(torch.tensor([0.975, 0.025]))
    assert [low, high] == pytest.approx(ends.tolist(), abs=0.01)
    assert low < averaging.r2(forecast, y) < high and 0.05 < high - low < 0.2
    assert averaging.r2_interval(y, y) == [1.0, 1.0]


def test_shown_answers_are_off_by_what_was_asked_and_the_rest_of_the_prompt_stays(plain):
    examples, _ = plain
    d = torch.randint(-4, 9, examples.shown.shape, generator=generator())
    mixed = averaging.with_differences(examples, tasks.ZERO, d)
    assert torch.equal(mixed.difference, d) and torch.equal(mixed.expected, examples.expected)
    for row in (0, 17):
        words = tasks.decode(mixed.tokens[row]).split()
        shown = [int(words[6 * i + 1]) + int(words[6 * i + 3]) + d[row, i].item() for i in range(4)]
        assert [int(words[6 * i + 5]) for i in range(4)] == shown
    others = torch.ones(examples.tokens.shape[1], dtype=torch.bool)
    others[examples.answers] = False
    assert torch.equal(mixed.tokens[:, others], examples.tokens[:, others])


def test_what_is_asked_is_read_from_logits_and_patterns(model, plain):
    """Against the cache: heads of two layers by their weights; answers out of the vocabulary 0."""
    examples, query = plain
    chance, look = asker_of(model, h02=3.0, h11=1.0).ask(examples, query)
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(2)]
    logits, cache = model.run_with_cache(examples.tokens, names)
    rows = [cache[name][:, head, -1, examples.answers] for name, head in zip(names, (2, 1))]
    expected = (3.0 * rows[0] + rows[1]).double()
    torch.testing.assert_close(look, expected / expected.sum(1, keepdim=True))
    share = logits[:, -1].double().softmax(-1)
    for row in (0, 5, 299):
        answers = query[row].item() + torch.arange(-REACH, REACH + 1)
        known = [n in tasks.NUMBERS for n in answers.tolist()]
        by_hand = [
            share[row, tasks.ZERO + n].item() if ok else 0.0 for n, ok in zip(answers, known)
        ]
        by_hand = torch.tensor(by_hand) / sum(by_hand)
        torch.testing.assert_close(chance[row], by_hand.double(), atol=1e-6, rtol=0)


def test_changed_attention_keeps_what_is_spent_on_answers_and_other_heads(model, plain):
    examples, query = plain
    asker = asker_of(model, h10=1.0)
    hook, z = "blocks.1.attn.hook_pattern", "blocks.1.attn.hook_z"
    _, cache = model.run_with_cache(examples.tokens, [hook, z, "blocks.1.attn.hook_v"])
    pattern, v = cache[hook].clone(), cache["blocks.1.attn.hook_v"]
    mass = pattern[:, 0, -1, examples.answers].sum(1, keepdim=True)
    pattern[:, 0, -1, examples.answers] = mass / SHOTS
    wanted = torch.einsum("bhk,bkhd->bhd", pattern[:, :, -1], v)
    changed = cache[z].clone()
    changed[:, -1] = wanted
    logits = model.run_with_hooks(examples.tokens, {z: lambda activation, name: changed})[:, -1]
    chance, _ = asker.ask(examples, query, averaging._even)
    tokens = tasks.ZERO + query[:, None] + torch.arange(-2, 3)
    share = logits.double().softmax(-1).gather(1, tokens)
    ours = chance[:, REACH - 2 : REACH + 3]
    torch.testing.assert_close(
        ours / ours.sum(1, keepdim=True), share / share.sum(1, keepdim=True), atol=1e-5, rtol=0
    )


class Answering(Asker):
    """Answers what its own attention forecasts, rounded, or what `answers` says."""

    def ask(self, examples, query, change=None):
        look = torch.rand(examples.shown.shape, generator=generator(1)).double()
        look /= look.sum(1, keepdim=True)
        if change:
            look = change(look)
        mean = (look * examples.difference).sum(1)
        low = mean.floor()
        chance = torch.zeros(len(query), 2 * REACH + 1).double()
        chance.scatter_(1, (low.long() + REACH)[:, None], (1 - (mean - low))[:, None])
        return chance.scatter_add_(
            1, (low.long() + REACH + 1)[:, None], (mean - low)[:, None]
        ), look


def test_the_account_of_an_averager_is_its_attention_and_gains_move_it_from_end_to_end(plain):
    examples, query = plain
    d = 2 * torch.randint(2, examples.shown.shape, generator=generator()) - 1
    mixed = averaging.with_differences(examples, tasks.ZERO, d)
    asker = Answering(None, {"1.0": 1.0}, tasks.ZERO, tasks.NUMBERS)
    row = averaging.account(asker, mixed, query)
    assert row["r2"]["attention"] == pytest.approx(1) and row["hits"]["attention"] == 1.0
    assert all(row["r2"][other] < 0.9 for other in ("uniform", "most_attended", "nearest", "last"))
    _, look = asker.ask(mixed, query)
    answered, plain_mean = (look * d).sum(1), d.double().mean(1)
    assert row["r2"]["uniform"] == pytest.approx(averaging.r2(plain_mean, answered))
    assert sum(row["answered"].values()) == pytest.approx(1) and row["n_prompts"] == 300
    moved = averaging.steered(asker, mixed, query)
    both = (d == 1).any(1) & (d == -1).any(1)
    assert [step["gain"] for step in moved] == list(averaging.GAINS)
    for step in moved:
        assert step["off_by"] == pytest.approx(2 * step["gain"] - 1)
        assert step["n_prompts"] == both.sum()


def test_where_one_shot_leaves_nothing_to_mix_no_attention_is_moved(model):
    """No prompt shows both kinds: an empty list, not a mean over nothing."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(averaging, "N_PROMPTS", 20)
        found = averaging.study(tasks, model, {"1.0": 1.0}, ("addition", 1), generator())
    assert found["steered"] == found["control"] == []


def test_the_share_of_answers_by_a_rule_counts_those_of_the_query(plain):
    examples, query = plain
    rule = averaging.RULES["+1 up to 8, +2 above"]
    asker = Answering(None, {"1.0": 1.0}, tasks.ZERO, tasks.NUMBERS)
    steady = averaging.with_differences(examples, tasks.ZERO, torch.ones_like(examples.shown))
    row = averaging.account(asker, steady, query, rule(query))
    assert row["right"] == pytest.approx((query <= 8).double().mean().item(), abs=1e-4)


@pytest.mark.parametrize("k", [6, 7, 8, 9])
def test_base_k_as_a_rule_is_what_tasks_writes(k):
    f = torch.arange(19)
    assert torch.equal(f + averaging.RULES[f"in base {k}"](f), tasks.in_base(f, k))


@pytest.fixture(scope="module")
def reference():
    """What is found in the reference run, on fewer prompts."""
    model, _ = load_run(REFERENCE, torch.device("cpu"), tasks.VOCABULARY)
    pairs = tasks.evaluation_pairs("addition", 1, 8, 50, generator(7))
    answers = pairs.base_answers, pairs.contrast_answers
    effects = PathPatcher(model, pairs.base, pairs.contrast, *answers).sweep(Logits())
    looks = attention_shares(model, pairs.contrast, tasks.answer_positions(8))
    heads = direct_groups(effects.heads, looks, Criteria())["function_induction"]
    fi = {head: -effects.named()[head] for head in heads}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(averaging, "N_PROMPTS", 80)
        return averaging.study(tasks, model, fi, ("addition", 8), generator())


def test_in_the_reference_run_attention_foretells_answers_to_mixed_rules(reference):
    first = reference["mixtures"][0]
    ahead = first["r2"].pop("attention")
    assert first["offsets"] == [-1, 1] and ahead > 0.5 and ahead > max(first["r2"].values()) + 0.1
    assert first["unseen_offset_share"] > 0.3 and first["answered"]["0"] > 0.3


def test_in_the_reference_run_moving_attention_of_fi_heads_moves_the_answer(reference):
    ours, others = ([row["off_by"] for row in reference[name]] for name in ("steered", "control"))
    assert ours == sorted(ours) and ours[-1] - ours[0] > 1.0
    assert max(others) - min(others) < 0.3
    assert reference["flat"]["fi"] < 0.7 < 0.9 < reference["flat"]["others"]


def test_the_findings_fit_into_json(reference):
    assert json.loads(json.dumps(reference)) == reference
