"""Scores on models whose attention is known: hand-wired, and looking everywhere alike."""

import pytest
import torch
from handwired import prompts, two_step_model
from torch.testing import assert_close

from minifunc.circuit import attention_shares
from minifunc.model import ModelConfig, Transformer
from minifunc.analysis.scores import (
    attention_to,
    copy_induction_score,
    function_induction_score,
    previous_token_score,
)


def copier(period=4, d_vocab=7):
    """One layer, two heads, float64: head 0.0 looks, from each place, `period` - 1 places back; head 0.1 everywhere alike."""
    n_ctx = 2 * period + 1
    model = Transformer(
        ModelConfig(
            n_layers=1,
            n_heads=2,
            d_model=d_vocab + n_ctx,
            d_head=n_ctx,
            d_vocab=d_vocab,
            n_ctx=n_ctx,
            positions="learned",
            act_fn="none",
        )
    ).double()
    for parameter in model.parameters():
        parameter.data.zero_()
    eye = torch.eye(n_ctx, dtype=torch.float64)
    model.embed.W_E.data[:, :d_vocab] = torch.eye(d_vocab)
    model.pos_embed.W_pos.data[:, d_vocab:] = eye
    attn = model.blocks[0].attn
    attn.W_Q.data[0][d_vocab:] = 30 * eye.roll(
        -(period - 1), 1
    )  # place t asks for place t - (period - 1)
    attn.W_K.data[0][d_vocab:] = 30 * eye
    model.blocks[0].ln1.w.data.fill_(1.0)
    return model.requires_grad_(False)


def test_the_copier_has_a_copy_induction_score_of_one_and_the_idle_head_what_chance_gives():
    tokens = torch.randint(7, (5, 4), generator=torch.Generator().manual_seed(0)).repeat(1, 2)
    score = copy_induction_score(copier(), tokens, 4, torch.tensor([5, 7]))
    assert_close(
        score, torch.tensor([[1.0, (1 / 6 + 1 / 8) / 2]], dtype=torch.float64), atol=1e-6, rtol=0
    )


def test_what_does_not_repeat_has_no_copy_induction_score():
    tokens = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 4]])
    assert copy_induction_score(copier(), tokens, 4, torch.tensor([5])).shape == (1, 2)
    for queries in ([7], [3]):
        with pytest.raises(ValueError, match="do not repeat"):
            copy_induction_score(copier(), tokens, 4, torch.tensor(queries))


def test_scores_of_the_hand_wired_model_are_where_it_was_wired_to_look():
    model, tokens, answers = two_step_model(), prompts()[1], torch.tensor([2])
    assert_close(
        previous_token_score(model, tokens, answers)[0],
        torch.tensor([1, 1 / 3], dtype=torch.float64),
        atol=1e-4,
        rtol=0,
    )
    assert_close(
        function_induction_score(model, tokens, answers)[1],
        torch.tensor([1, 1 / 4], dtype=torch.float64),
        atol=1e-4,
        rtol=0,
    )


def test_scores_are_the_attention_shares_of_the_circuit():
    model = Transformer(ModelConfig(d_vocab=9, n_layers=2, n_heads=3, d_model=12, d_head=4))
    tokens, answers = (
        torch.randint(9, (150, 17), generator=torch.Generator().manual_seed(0)),
        torch.tensor([5, 11]),
    )
    shares = attention_shares(model, tokens, answers)
    for score, name in (
        (previous_token_score, "answer_to_previous"),
        (function_induction_score, "last_to_answers"),
    ):
        wanted = torch.tensor(
            [[shares[f"{layer}.{head}"][name] for head in range(3)] for layer in range(2)],
            dtype=torch.float64,
        )
        assert_close(score(model, tokens, answers), wanted, atol=6e-5, rtol=0)


@pytest.mark.parametrize(
    "queries, keys",
    [([2], [[3]]), ([9], [[3]]), ([2], [[-1]]), ([2, 3], [[1]]), ([], [[]])],
    ids=str,
)
def test_places_that_no_head_could_look_at_are_refused(queries, keys):
    with pytest.raises(ValueError, match="quer"):
        attention_to(
            copier(),
            torch.zeros(1, 9, dtype=torch.int64),
            torch.tensor(queries, dtype=torch.int64),
            torch.tensor(keys, dtype=torch.int64),
        )
