import pytest
import torch
from handwired import prompts, two_step_model

from minifunc.circuit import Criteria, ablated_logits, attention_shares, direct_groups, feeding, heads_of, random_group, random_group_anywhere, wilson
from minifunc.model import ModelConfig, Transformer
from minifunc.patching import Effects

LOOKS = {"last_to_answers": 0.0, "answer_to_previous": 0.0, "answer_to_operands": 0.0, "last_to_self": 0.0, "last_to_bos": 0.0, "last_to_operands": 0.0}


def looks(**heads):
    """attention_shares of a model of 2 layers × 2 heads in which only the named shares are not 0."""
    return {f"{layer}.{head}": LOOKS | heads.get(f"h{layer}{head}", {}) for layer in range(2) for head in range(2)}


def test_attention_shares_of_the_hand_wired_model_are_where_it_was_wired_to_look():
    shares = attention_shares(two_step_model(), prompts()[1], answers=torch.tensor([2]))
    assert shares["0.0"]["answer_to_previous"] == pytest.approx(1, abs=1e-4)  # position 2 looks at 1
    assert shares["1.0"]["last_to_answers"] == pytest.approx(1, abs=1e-4)  # position 3 looks at 2
    idle = {"last_to_answers": 1 / 4, "answer_to_previous": 1 / 3, "answer_to_operands": 2 / 3, "last_to_self": 1 / 4, "last_to_bos": 1 / 4, "last_to_operands": 1 / 2}
    assert shares["0.1"] == pytest.approx(idle, abs=1e-4)  # looks everywhere alike (four positions: the far operand wraps round)


def test_attention_shares_do_not_depend_on_how_prompts_are_split():
    model = Transformer(ModelConfig(d_vocab=9, n_layers=2, n_heads=2, d_model=8, d_head=4))
    tokens = torch.randint(9, (300, 12), generator=torch.Generator().manual_seed(0))
    whole, parts = attention_shares(model, tokens, torch.tensor([5])), [attention_shares(model, part, torch.tensor([5])) for part in tokens.split(100)]
    for head, share in whole.items():
        for name, value in share.items():
            assert value == pytest.approx(sum(part[head][name] for part in parts) / 3, abs=2e-4)


@pytest.mark.parametrize(
    "r, share, group",
    [
        (-0.5, {"last_to_answers": 0.6}, "function_induction"),
        (-0.5, {"last_to_answers": 0.2}, None),
        (-0.01, {"last_to_answers": 0.6}, None),
        (+0.5, {"last_to_answers": 0.6}, None),  # works against the shift: no FI head
        (-0.5, {"last_to_self": 0.3, "last_to_bos": 0.3}, "consolidation"),
        (+0.5, {"last_to_bos": 0.6}, "consolidation"),  # the paper's consolidation heads may do either
        (+0.01, {"last_to_bos": 0.6}, None),
    ],
)
def test_groups_follow_the_stated_criteria(r, share, group):
    to_logits = torch.tensor([[0.0, 0.0], [0.0, r]])
    groups = direct_groups(to_logits, looks(h11=share), Criteria())
    assert groups == {name: ["1.1"] if name == group else [] for name in ("function_induction", "consolidation")}


def test_a_node_feeds_if_it_counts_on_any_receiver_with_either_sign():
    def effects(heads, mlps, embedding):
        return Effects(torch.tensor(heads), torch.tensor(mlps), torch.tensor(embedding), torch.empty(0))

    receivers = [effects([[0.0, -0.3], [0.01, 0.0]], [0.0, 0.25], 0.0), effects([[0.0, 0.1], [0.0, 0.05]], [0.0, 0.0], -0.5)]
    route = feeding(receivers, Criteria())
    assert list(route) == ["embedding", "0.1", "mlp1", "1.1"] and route["0.1"] == pytest.approx(-0.3)
    assert list(feeding(receivers, Criteria(feeds=0.1))) == ["embedding", "0.1", "mlp1"] and feeding([], Criteria()) == {}
    assert heads_of([*route, "0.1", "10.0", "2.0"]) == ["0.1", "1.1", "2.0", "10.0"]


def test_ablating_the_carrying_head_brings_the_base_answer_and_ablating_an_idle_one_nothing():
    model = two_step_model()
    base, contrast, base_answers, contrast_answers = prompts()
    assert torch.equal(ablated_logits(model, contrast, base, ["1.0"]).argmax(-1), base_answers)
    assert torch.equal(ablated_logits(model, contrast, base, ["0.0"]).argmax(-1), base_answers)
    assert torch.equal(ablated_logits(model, contrast, base, ["0.1", "1.1"]).argmax(-1), contrast_answers)


def test_ablating_every_head_of_a_model_without_mlps_gives_the_base_run():
    model = two_step_model()
    base, contrast, *_ = prompts()
    torch.testing.assert_close(ablated_logits(model, contrast, base, ["0.0", "0.1", "1.0", "1.1"]), model(base)[:, -1])


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


@pytest.mark.parametrize("share, n, low, high", [(0.5, 100, 0.4038, 0.5962), (0.0, 10, 0.0, 0.2775), (1.0, 500, 0.9924, 1.0)])
def test_wilson_interval_of_known_cases(share, n, low, high):
    assert wilson(share, n) == pytest.approx([low, high], abs=2e-4)


def test_ablation_of_more_prompts_than_one_pass_holds_pairs_each_with_its_own_source():
    model = two_step_model()
    base, contrast, base_answers, _ = (x.repeat(300, *[1] * (x.ndim - 1)) for x in prompts())
    assert torch.equal(ablated_logits(model, contrast, base, ["1.0"]).argmax(-1), base_answers)


def test_random_groups_match_layer_by_layer_and_avoid_the_group():
    generator = torch.Generator().manual_seed(0)
    groups = [random_group(["1.0", "2.1", "2.3"], 6, generator) for _ in range(40)]
    for group in groups:
        assert [head[0] for head in group] == ["1", "2", "2"] and not {"1.0", "2.1", "2.3"} & set(group) and len(set(group)) == 3
    assert {head for group in groups for head in group} == {f"1.{h}" for h in (1, 2, 3, 4, 5)} | {f"2.{h}" for h in (0, 2, 4, 5)}


def test_random_groups_from_any_layer_avoid_the_group_and_reach_every_other_head():
    generator = torch.Generator().manual_seed(0)
    groups = [random_group_anywhere(["0.1", "1.1"], 2, 3, generator) for _ in range(40)]
    assert all(len(set(group)) == 2 for group in groups) and {head for group in groups for head in group} == {"0.0", "0.2", "1.0", "1.2"}


@pytest.mark.parametrize("field", ["solves", "strong", "feeds", "looks_at_answers", "looks_at_self_or_bos", "looks_at_previous"])
def test_a_threshold_that_is_no_share_is_refused(field):
    for value in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=field.replace("_", "-")):
            Criteria(**{field: value})
