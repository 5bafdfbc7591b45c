"""Scores on models whose attention is known: hand-wired, and looking everywhere alike."""

import pytest
import torch
from handwired import prompts, two_step_model
from torch.testing import assert_close

from minifunc.analysis.scores import (
    attention_to,
    copy_induction_score,
    function_induction_score,
    previous_token_score,
)
from minifunc.circuit import attention_shares
from minifunc.model import ModelConfig, Transformer


def copier(period=4, d_vocab=7):
    """One layer, float64: head 0.0 looks `period` - 1 places back, 0.1 everywhere alike."""
    n_ctx = 2 * period + 1
    cfg = ModelConfig(
        n_layers=1,
        n_heads=2,
        d_model=d_vocab + n_ctx,
        d_head=n_ctx,
        d_vocab=d_vocab,
        n_ctx=n_ctx,
        positions="learned",
        act_fn="none",
    )
    model = Transformer(cfg).double().requires_grad_(False)
    for parameter in model.parameters():
        parameter.zero_()
    eye = torch.eye(n_ctx, dtype=torch.float64)
    model.embed.W_E[:, :d_vocab] = torch.eye(d_vocab)
    model.pos_embed.W_pos[:, d_vocab:] = eye
    attn = model.blocks[0].attn
    attn.W_Q[0, d_vocab:] = 30 * eye.roll(1 - period, 1)  # place t asks for place t - (period - 1)
    attn.W_K[0, d_vocab:] = 30 * eye
    model.blocks[0].ln1.w.fill_(1.0)
    return model


def test_the_copier_has_a_copy_induction_score_of_one_and_the_idle_head_what_chance_gives():
    tokens = torch.randint(7, (5, 4), generator=torch.Generator().manual_seed(0)).repeat(1, 2)
    score = copy_induction_score(copier(), tokens, 4, torch.tensor([5, 7]))
    expected = torch.tensor([[1.0, (1 / 6 + 1 / 8) / 2]], dtype=torch.float64)
    assert_close(score, expected, atol=1e-6, rtol=0)


def test_what_does_not_repeat_has_no_copy_induction_score():
    tokens = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 4]])
    assert copy_induction_score(copier(), tokens, 4, torch.tensor([5])).shape == (1, 2)
    for queries in ([7], [3]):
        with pytest.raises(ValueError, match="do not repeat"):
            copy_induction_score(copier(), tokens, 4, torch.tensor(queries))


@pytest.mark.parametrize("query", range(-1, 9))
@pytest.mark.parametrize("text", [[0, 1, 2, 3], [5, 5, 5, 5]], ids=str)
def test_a_place_of_the_repetition_has_been_met_before(text, query):
    """Whatever stands there: the last place of the first time has nothing `period` before it."""
    tokens = torch.tensor([text]).repeat(2, 2)
    if 4 <= query < 8:
        score = copy_induction_score(copier(), tokens, 4, torch.tensor([query]))
        assert_close(score[0, 1].item(), 1 / (query + 1))  # the head that looks everywhere alike
        return
    with pytest.raises(ValueError, match="do not repeat|inside the prompts"):
        copy_induction_score(copier(), tokens, 4, torch.tensor([6, query]))


def test_scores_of_the_hand_wired_model_are_where_it_was_wired_to_look():
    model, tokens, answers = two_step_model(), prompts()[1], torch.tensor([2])
    previous = previous_token_score(model, tokens, answers)[0].tolist()
    induction = function_induction_score(model, tokens, answers)[1].tolist()
    assert previous == pytest.approx([1, 1 / 3], abs=1e-4)
    assert induction == pytest.approx([1, 1 / 4], abs=1e-4)


@pytest.mark.parametrize(
    "score, name",
    [(previous_token_score, "answer_to_previous"), (function_induction_score, "last_to_answers")],
)
def test_scores_are_the_attention_shares_of_the_circuit(score, name):
    model = Transformer(ModelConfig(d_vocab=9, n_layers=2, n_heads=3, d_model=12, d_head=4))
    tokens = torch.randint(9, (150, 17), generator=torch.Generator().manual_seed(0))
    answers = torch.tensor([5, 11])
    found, shares = score(model, tokens, answers), attention_shares(model, tokens, answers)
    for head, share in shares.items():
        layer, index = map(int, head.split("."))
        assert found[layer, index].item() == pytest.approx(share[name], abs=6e-5)


@pytest.mark.parametrize(
    "queries, keys",
    [([2], [[3]]), ([9], [[3]]), ([2], [[-1]])],
    ids=str,
)
def test_places_that_no_head_could_look_at_are_refused(queries, keys):
    tokens = torch.zeros(1, 9, dtype=torch.int64)
    queries, keys = (torch.tensor(some, dtype=torch.int64) for some in (queries, keys))
    with pytest.raises(ValueError, match="quer"):
        attention_to(copier(), tokens, queries, keys)


def test_keys_of_another_shape_are_refused():
    model, tokens = Transformer(ModelConfig(d_vocab=9)), torch.zeros(2, 5, dtype=torch.long)
    for keys in (torch.tensor([1, 2]), torch.tensor([[1]])):
        with pytest.raises(ValueError, match="keys must be"):
            attention_to(model, tokens, torch.tensor([3, 4]), keys)


def test_a_query_may_look_at_itself_and_at_the_last_position():
    model = Transformer(
        ModelConfig(n_layers=1, n_heads=2, d_model=8, d_head=4, act_fn="none", d_vocab=9)
    )
    tokens = torch.arange(6)[None]
    _, cache = model.run_with_cache(tokens)
    pattern = cache["blocks.0.attn.hook_pattern"][0].double()  # [head, query, key]
    found = attention_to(model, tokens, torch.tensor([0, 5]), torch.tensor([[0], [5]]))
    torch.testing.assert_close(found[0], (pattern[:, 0, 0] + pattern[:, 5, 5]) / 2)
