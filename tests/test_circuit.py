import pytest
import torch
from handwired import prompts, two_step_model

from minifunc.circuit import Criteria, attention_shares, direct_groups, feeding
from minifunc.model import ModelConfig, Transformer
from minifunc.patching import Effects
from minifunc.support.names import heads_of

LOOKS = {
    "last_to_answers": 0.0,
    "answer_to_previous": 0.0,
    "answer_to_operands": 0.0,
    "last_to_self": 0.0,
    "last_to_bos": 0.0,
    "last_to_operands": 0.0,
}


def looks(**heads):
    """attention_shares of 2 layers × 2 heads; all but the named shares are 0."""
    return {
        f"{layer}.{head}": LOOKS | heads.get(f"h{layer}{head}", {})
        for layer in range(2)
        for head in range(2)
    }


def test_attention_shares_of_the_hand_wired_model_are_where_it_was_wired_to_look():
    shares = attention_shares(two_step_model(), prompts()[1], torch.tensor([2]), operands=(2, 1))
    assert shares["0.0"]["answer_to_previous"] == pytest.approx(
        1, abs=1e-4
    )  # position 2 looks at 1
    assert shares["1.0"]["last_to_answers"] == pytest.approx(1, abs=1e-4)  # position 3 looks at 2
    idle = {
        "last_to_answers": 1 / 4,
        "answer_to_previous": 1 / 3,
        "answer_to_operands": 2 / 3,
        "last_to_self": 1 / 4,
        "last_to_bos": 1 / 4,
        "last_to_operands": 1 / 2,
    }
    assert shares["0.1"] == pytest.approx(idle, abs=1e-4)  # looks everywhere alike


def test_attention_shares_do_not_depend_on_how_prompts_are_split():
    model = Transformer(ModelConfig(d_vocab=9, n_layers=2, n_heads=2, d_model=8, d_head=4))
    tokens = torch.randint(9, (300, 12), generator=torch.Generator().manual_seed(0))
    whole, parts = (
        attention_shares(model, tokens, torch.tensor([5])),
        [attention_shares(model, part, torch.tensor([5])) for part in tokens.split(100)],
    )
    for head, share in whole.items():
        for name, value in share.items():
            assert value == pytest.approx(sum(part[head][name] for part in parts) / 3, abs=2e-4)


@pytest.mark.parametrize(
    "r, share, group",
    [
        (-0.5, {"last_to_answers": 0.6}, "function_induction"),
        (-0.5, {"last_to_answers": 0.2}, "other_direct"),
        (-0.01, {"last_to_answers": 0.6}, None),
        (+0.5, {"last_to_answers": 0.6}, "other_direct"),  # works against the shift: no FI head
        (-0.5, {"last_to_self": 0.3, "last_to_bos": 0.3}, "consolidation"),
        (
            +0.5,
            {"last_to_bos": 0.6},
            "consolidation",
        ),  # the paper's consolidation heads may do either
        (+0.01, {"last_to_bos": 0.6}, None),
    ],
)
def test_groups_follow_the_stated_criteria(r, share, group):
    to_logits = torch.tensor([[0.0, 0.0], [0.0, r]])
    groups = direct_groups(to_logits, looks(h11=share), Criteria())
    assert groups == {
        name: ["1.1"] if name == group else []
        for name in ("function_induction", "consolidation", "other_direct")
    }


def test_a_node_feeds_if_it_counts_on_any_receiver_with_either_sign():
    def effects(heads, mlps, embedding):
        return Effects(
            torch.tensor(heads),
            torch.tensor(mlps),
            torch.tensor(embedding),
            torch.empty(0),
            torch.empty(0),
        )

    receivers = [
        effects([[0.0, -0.3], [0.01, 0.0]], [0.0, 0.25], 0.0),
        effects([[0.0, 0.1], [0.0, 0.05]], [0.0, 0.0], -0.5),
    ]
    route = feeding(receivers, Criteria())
    assert list(route) == ["embedding", "0.1", "mlp1", "1.1"] and route["0.1"] == pytest.approx(
        -0.3
    )
    assert (
        list(feeding(receivers, Criteria(feeds=0.1))) == ["embedding", "0.1", "mlp1"]
        and feeding([], Criteria()) == {}
    )
    assert heads_of([*route, "0.1", "10.0", "2.0"]) == ["0.1", "1.1", "2.0", "10.0"]


@pytest.mark.parametrize(
    "field",
    [
        "solves",
        "strong",
        "feeds",
        "looks_at_answers",
        "looks_at_self_or_bos",
        "looks_at_previous",
        "faithful",
    ],
)
def test_a_threshold_that_is_no_share_is_refused(field):
    for value in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=field.replace("_", "-")):
            Criteria(**{field: value})
