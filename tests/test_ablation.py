import random

import pytest
import torch
from handwired import prompts, two_step_model
from test_patching import LLAMA

from minifunc.ablation import Ablator, all_heads
from minifunc.analysis.ablations import random_group, random_group_anywhere
from minifunc.analysis.rows import Prompts, ablation_row, control_row
from minifunc.model import ModelConfig, Transformer
from minifunc.support import shared_streams
from minifunc.support.evaluation import ROWS, wilson


def ablated_logits(model, tokens, source, heads, mean=False):
    how = {"means": {"s": source}, "sources": {}} if mean else {"sources": {"s": source}}
    return Ablator(model, tokens, **how).logits([heads], "s")[0]


def test_ablating_the_carrying_head_brings_the_base_answer_and_ablating_an_idle_one_nothing():
    model = two_step_model()
    base, contrast, base_answers, contrast_answers = prompts()
    assert torch.equal(ablated_logits(model, contrast, base, ["1.0"]).argmax(-1), base_answers)
    assert torch.equal(ablated_logits(model, contrast, base, ["0.0"]).argmax(-1), base_answers)
    assert torch.equal(
        ablated_logits(model, contrast, base, ["0.1", "1.1"]).argmax(-1), contrast_answers
    )


def test_ablating_every_head_of_a_model_without_mlps_gives_the_base_run():
    model = two_step_model()
    base, contrast, *_ = prompts()
    torch.testing.assert_close(
        ablated_logits(model, contrast, base, ["0.0", "0.1", "1.0", "1.1"]), model(base)[:, -1]
    )


def test_mean_ablation_sends_the_mean_of_the_source_prompts():
    model = two_step_model()
    base, contrast, *_ = prompts()
    _, cache = model.run_with_cache(base)

    def put_mean(z, name):
        z = z.clone()
        z[:, :, 0] = cache[name].mean(0)[:, 0]
        return z

    expected = model.run_with_hooks(contrast, {"blocks.1.attn.hook_z": put_mean})[:, -1]
    torch.testing.assert_close(ablated_logits(model, contrast, base, ["1.0"], mean=True), expected)
    assert not torch.allclose(expected, ablated_logits(model, contrast, base, ["1.0"]))


def test_ablation_of_more_prompts_than_one_pass_holds_pairs_each_with_its_own_source():
    model = two_step_model()
    base, contrast, base_answers, _ = (x.repeat(300, *[1] * (x.ndim - 1)) for x in prompts())
    assert torch.equal(ablated_logits(model, contrast, base, ["1.0"]).argmax(-1), base_answers)


@pytest.mark.parametrize(
    "share, n, low, high",
    [(0.5, 100, 0.4038, 0.5962), (0.0, 10, 0.0, 0.2775), (1.0, 500, 0.9924, 1.0)],
)
def test_wilson_interval_of_known_cases(share, n, low, high):
    assert wilson(share, n) == pytest.approx([low, high], abs=2e-4)


def test_random_groups_match_layer_by_layer_and_avoid_the_group():
    generator = torch.Generator().manual_seed(0)
    groups = [random_group(["1.0", "2.1", "2.3"], 6, generator) for _ in range(40)]
    for group in groups:
        assert [head[0] for head in group] == ["1", "2", "2"] and len(set(group)) == 3
    others = {f"1.{h}" for h in (1, 2, 3, 4, 5)} | {f"2.{h}" for h in (0, 2, 4, 5)}
    assert {head for group in groups for head in group} == others


def test_random_groups_from_any_layer_avoid_the_group_and_reach_every_other_head():
    cfg, generator = ModelConfig(n_layers=2, n_heads=3), torch.Generator().manual_seed(0)
    groups = [random_group_anywhere(["0.1", "1.1"], cfg, generator) for _ in range(40)]
    assert all(len(set(group)) == 2 for group in groups)
    assert {head for group in groups for head in group} == {"0.0", "0.2", "1.0", "1.2"}


def make(n_prompts=5, **changes):
    """A random model, float64, and three sets of random prompts of seven tokens."""
    shape = dict(n_layers=3, n_heads=3, d_model=12, d_head=4, d_mlp=16, d_vocab=11, n_ctx=7)
    model = Transformer(ModelConfig(**shape | changes)).double().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    return model, *torch.randint(11, (3, n_prompts, 7), generator=generator)


def naive(model, tokens, values, heads, positions=range(7)):
    """One whole run with hooks, head by head, position by position: [n_prompts, d_vocab]."""

    def put(z, name):
        z = z.clone()
        for layer, head in (map(int, head.split(".")) for head in heads):
            if name == f"blocks.{layer}.attn.hook_z":
                for position in positions:
                    z[:, position, head] = values[name][:, position, head]
        return z

    hooks = {f"blocks.{layer}.attn.hook_z": put for layer in range(model.cfg.n_layers)}
    return model.run_with_hooks(tokens, hooks)[:, -1]


GROUPS = [
    ["0.1"],
    ["2.0", "2.2"],
    [],
    ["1.0", "0.0", "2.1"],
    ["1.2"],
    ["2.1"],
    ["0.0", "0.1", "0.2", "1.0"],
    ["1.2"],
]


@pytest.mark.parametrize(
    "changes",
    [{}, {"act_fn": "none", "positions": "learned"}, {"n_layers": 1, "n_heads": 3}],
    ids=["rotary", "attention-only", "one layer"],
)
def test_many_groups_at_once_equal_one_naive_run_each(changes):
    model, tokens, source, other = make(**changes)
    groups = [[head for head in group if int(head[0]) < model.cfg.n_layers] for group in GROUPS]
    ablator = Ablator(model, tokens, {"source": source, "other": other}, means={"mean": other})
    of = {"source": model.run_with_cache(source)[1], "other": model.run_with_cache(other)[1]}
    z = {name: x for name, x in of["other"].items() if name.endswith("hook_z")}
    of["mean"] = {name: x.mean(0, keepdim=True).expand_as(x) for name, x in z.items()}
    for how, values in of.items():
        for positions in (None, [2, 4]):
            got = ablator.logits(groups, how, positions)
            for group, logits in zip(groups, got):
                expected = naive(model, tokens, values, group, positions or range(7))
                torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"act_fn": "none"},
        {"positions": "learned"},
        {"n_layers": 1},
        pytest.param(LLAMA, marks=pytest.mark.slow),
    ],
    ids=["rotary", "attention-only", "learned positions", "one layer", "llama"],
)
def test_the_fast_way_gives_what_the_plain_way_gives(changes):
    model, tokens, source, other = make(**changes)
    ablator = Ablator(model, tokens, {"source": source, "other": other}, means={"mean": other})
    draw, heads = random.Random(0), all_heads(model.cfg)
    for how in ("source", "other", "mean"):
        for positions in (None, [], *(draw.sample(range(7), draw.randint(1, 6)) for _ in range(4))):
            groups = [draw.sample(heads, draw.randint(0, len(heads))) for _ in range(6)]
            fast = ablator.logits(groups, how, positions)
            plain = [ablator.logits_plainly(group, how, positions) for group in groups]
            torch.testing.assert_close(fast, torch.stack(plain), rtol=0, atol=1e-10)


def test_replacing_nothing_or_nowhere_changes_nothing():
    model, tokens, source, _ = make()
    ablator, own = Ablator(model, tokens, {"s": source}), model(tokens)[:, -1]
    for group, positions in ([], None), (all_heads(model.cfg), []):
        for logits in (
            ablator.logits([group], "s", positions)[0],
            ablator.logits_plainly(group, "s", positions),
        ):
            torch.testing.assert_close(logits, own, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "group, how, positions, said",
    [
        (["9.0"], "s", None, "no head '9.0' here; there is 0.0, 0.1, 0.2, 1.0"),
        (["0.3"], "s", None, "no head '0.3'"),
        (["mlp0"], "s", None, "no head 'mlp0'"),
        ([], "t", None, "unknown source 't'; the sources are s, m"),
        (["0.0"], "s", [-1], "position -1 is out of range"),
        (["0.0"], "s", [7], "position 7 is out of range"),
    ],
)
def test_what_is_not_there_is_refused_by_name(group, how, positions, said):
    model, tokens, source, _ = make()
    ablator = Ablator(model, tokens, {"s": source}, means={"m": source})
    with pytest.raises(ValueError, match=said):
        ablator.logits([["0.0"], group], how, positions)
    with pytest.raises(ValueError, match=said):
        ablator.logits_plainly(group, how, positions)


def test_how_prompts_and_groups_are_split_changes_nothing():
    model, tokens, source, _ = make(n_prompts=ROWS // 4 + 3)
    ablator = Ablator(model, tokens, {"s": source}, means={"m": source})
    small = Ablator(model, tokens[-3:], {"s": source[-3:]}, means={"m": source})
    assert ablator.n_prompts > shared_streams.prompts_in_a_pass(model) > small.n_prompts
    for how in ("s", "m"):
        torch.testing.assert_close(
            ablator.logits(GROUPS, how)[:, -3:], small.logits(GROUPS, how), rtol=0, atol=1e-12
        )


def test_what_was_computed_before_is_used_again_and_what_was_dropped_is_not_missed(monkeypatch):
    model, tokens, source, _ = make()
    ablator = Ablator(model, tokens, {"s": source})
    wanted = ablator.logits(GROUPS, "s")
    runs, block = [], model.blocks[0].add_mlp
    monkeypatch.setattr(model.blocks[0], "add_mlp", lambda *x: runs.append(1) or block(*x))
    assert torch.equal(ablator.logits(GROUPS[::-1], "s"), wanted.flip(0)) and not runs
    monkeypatch.setattr(shared_streams, "KEPT_BYTES", 1)  # nothing can be kept
    monkeypatch.setattr(shared_streams, "FEW", 0)
    fresh = Ablator(model, tokens, {"s": source})
    torch.testing.assert_close(fresh.logits(GROUPS, "s"), wanted, rtol=0, atol=1e-12)
    assert runs and not fresh._streams.kept


def test_the_same_replacements_serve_other_prompts():
    model, tokens, source, other = make()
    ablator = Ablator(model, tokens, {"s": source}, means={"m": source})
    before = ablator.logits(GROUPS, "s")
    moved, direct = ablator.on(other), Ablator(model, other, {"s": source}, means={"m": source})
    for how in ("s", "m"):
        assert torch.equal(moved.logits(GROUPS, how), direct.logits(GROUPS, how))
    assert torch.equal(ablator.logits(GROUPS, "s"), before)


def test_a_source_of_another_shape_is_refused():
    model, tokens, source, _ = make()
    with pytest.raises(ValueError, match="the source 's' must be of shape"):
        Ablator(model, tokens, {"s": source[:, :-1]})


def test_all_heads_are_named_in_the_order_of_the_model():
    names = all_heads(ModelConfig(n_layers=2, n_heads=3))
    assert names == ["0.0", "0.1", "0.2", "1.0", "1.1", "1.2"]


def test_a_row_of_one_group_holds_its_accuracies():
    base, contrast, *answers = prompts()
    ablator = Ablator(two_step_model(), contrast, {"base": base})
    assert ablation_row(Prompts(ablator, answers), "it", ["1.0"], "base") == {
        "ablated": "it",
        "heads": ["1.0"],
        "how": "base",
        "base_acc": 1.0,
        "contrast_acc": 0.0,
        "n_draws": 1,
        "ci": wilson(0.0, 2),
        "base_ci": wilson(1.0, 2),
        "n_prompts": 2,
    }


def test_a_group_drawn_several_times_is_counted_as_often_but_run_once(monkeypatch):
    base, contrast, *answers = prompts()
    ablator, run = Ablator(two_step_model(), contrast, {"base": base}), []
    true = ablator.logits
    monkeypatch.setattr(
        ablator, "logits", lambda groups, how: run.append(groups) or true(groups, how)
    )
    draws = [["1.0"], ["1.1"], ["1.0"], ["1.0"]]
    row = control_row(Prompts(ablator, answers), "random", draws, "base")
    assert run == [[("1.0",), ("1.1",)]]
    # 1.0 carries the answer: without it none is right; without 1.1 all are.
    assert (row["contrast_acc"], row["base_acc"]) == (0.25, 0.75)
    assert (row["n_draws"], row["n_groups"], row["n_heads"]) == (4, 2, 1)
    assert row["sd"] == pytest.approx(0.433, abs=1e-3)
    assert row["worst"] == {"heads": ["1.0"], "contrast_acc": 0.0}
    assert row["ci"] == pytest.approx([0, 0.925])


def test_the_interval_is_over_draws():
    base, contrast, *answers = prompts()
    prompts_of = Prompts(Ablator(two_step_model(), contrast, {"base": base}), answers)
    row = control_row(prompts_of, "random", [["1.1"]] * 40, "base")
    assert row["ci"] == wilson(1.0, len(contrast))  # a single group tells nothing of draws
    row = control_row(prompts_of, "random", [["1.1"]] * 39 + [["1.0"]], "base")
    # 2.5 % of 40 draws is one of them: between the lowest two.
    assert row["ci"] == pytest.approx([0.975, 1.0]) and row["contrast_acc"] == 0.975


def test_random_circuits_may_hold_the_heads_themselves():
    generator = torch.Generator().manual_seed(0)
    groups = [random_group(["0.0", "0.1", "1.0"], 3, generator, avoid=False) for _ in range(40)]
    assert all([head[0] for head in group] == ["0", "0", "1"] for group in groups)
    assert {head for group in groups for head in group} == {
        f"{layer}.{head}" for layer in range(2) for head in range(3)
    }
