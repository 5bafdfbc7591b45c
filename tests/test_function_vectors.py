import pytest
import torch
from torch.testing import assert_close

from minifunc.analysis import activations, function_vectors
from minifunc.analysis.function_vectors import (
    cells,
    last_z,
    logits_with,
    moves,
    study,
)
from minifunc.model import ModelConfig, Transformer

# tokens 0..5 are the numbers -1..4, tokens 6..8 the markers of k = -1, 0, 1
N_NUMBERS, FIRST, SHIFTS = 6, -1, (-1, 0, 1)
NUMBERS = {FIRST + token: token for token in range(N_NUMBERS)}
D = N_NUMBERS + len(SHIFTS)
HEADS = ["0.0", "0.1"]


def shift_model(what):
    """A linear model, float64, that answers the number at the last position.

    Head 0 adds what[marker] [3, D] / 2 to the logits, head 1 a known 0.1 / 2 to each. Prompts are
    [marker or number, number]. Both heads look at both positions alike. The norms do nothing: their
    eps dwarfs all else.
    """
    cfg = ModelConfig(
        n_layers=1,
        n_heads=2,
        d_model=D,
        d_head=D,
        d_vocab=D,
        n_ctx=2,
        positions="none",
        act_fn="none",
        eps=1e16,
    )
    model = Transformer(cfg).double().requires_grad_(False)
    for parameter in model.parameters():
        parameter.zero_()
    eye = torch.eye(D, dtype=torch.float64)
    model.embed.W_E.copy_(eye)
    model.unembed.W_U.copy_(eye)
    for norm in (model.blocks[0].ln1, model.ln_final):
        norm.w.fill_(1e8)
    attn = model.blocks[0].attn
    attn.W_V[0, N_NUMBERS:] = what
    attn.W_V[1, N_NUMBERS:] = 0.1 * eye[:3]
    attn.W_O.copy_(eye.expand(2, -1, -1))
    return model


ASKED = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
PROMPTS = {  # k → tokens [8, 2]
    k: torch.stack([torch.full_like(ASKED, N_NUMBERS + index), ASKED - FIRST], dim=1)
    for index, k in enumerate(SHIFTS)
}
NAIVE = torch.tensor([[[x - FIRST, x - FIRST]] * 2 for x in range(3)])  # x = 0, 1, 2, each twice
WHAT = torch.randn(3, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_a_head_that_adds_a_known_vector_gives_exactly_that_heat_map():
    found = study(shift_model(WHAT), PROMPTS, NAIVE, HEADS, NUMBERS)
    maps = {
        part: torch.tensor(rows, dtype=torch.float64)
        for part, rows in found["function_vectors"].items()
    }
    columns = slice(-FIRST, -FIRST + 3)  # the logits of the numbers 0, 1, 2
    of_head_0, of_head_1 = (WHAT[2] / 2)[columns], torch.zeros(3, dtype=torch.float64)
    of_head_1[2 - columns.start] = 0.05  # the marker of k = 1 is the third of them
    rounding = {"atol": 6e-4, "rtol": 0}
    assert_close(maps["0.0"], of_head_0.expand(3, 3), **rounding)
    assert_close(maps["all"], (of_head_0 + of_head_1).expand(3, 3), **rounding)
    other = study(shift_model(WHAT), PROMPTS, NAIVE, HEADS, NUMBERS, k=-1)
    assert_close(
        torch.tensor(other["function_vectors"]["0.0"], dtype=torch.float64),
        (WHAT[0] / 2)[columns].expand(3, 3),
        **rounding,
    )
    assert other["function_vector_scores"] == found["function_vector_scores"]


def test_hits_count_the_naive_prompts_that_are_then_answered_off_by_k():
    what = torch.zeros(3, D, dtype=torch.float64)
    what[2, 1 - FIRST] = 100.0  # with the marker of +1, everything is answered 1
    found = study(shift_model(what), PROMPTS, NAIVE, ["0.0"], NUMBERS)
    scores = found["function_vector_scores"]
    assert scores["naive_accuracy"] == 1.0
    assert scores["parts"].keys() == {"-1", "1"}
    # Of the inputs 0, 1, 2 only 0 + 1 is 1; the vector of -1 does nothing.
    assert scores["parts"]["1"]["0.0"]["hits"] == pytest.approx(1 / 3, abs=1e-4)
    assert scores["parts"]["-1"]["0.0"] == {"moves": 0.0, "plain_moves": 0.0, "hits": 0.0}


def test_the_vector_of_plain_prompts_is_the_control():
    what = torch.zeros(3, D, dtype=torch.float64)
    what[1, 2 - FIRST] = 6.0  # the marker of 0 raises the number 2, by 6 / 2
    found = study(shift_model(what), PROMPTS, NAIVE, ["0.0"], NUMBERS)
    scores = found["function_vector_scores"]["parts"]["1"]["0.0"]
    # It is x + 1 for one of the three inputs, and x for another.
    assert scores == {"moves": 0.0, "plain_moves": 0.0, "hits": 0.0}
    what[1, 3 - FIRST] = 6.0  # x + 1 for another one
    found = study(shift_model(what), PROMPTS, NAIVE, ["0.0"], NUMBERS)
    assert found["function_vector_scores"]["parts"]["1"]["0.0"]["plain_moves"] == 1.0


def test_moves_of_a_map_written_by_hand():
    change = torch.zeros(3, 6)
    change[torch.arange(3), torch.arange(3) + 2] = 3.0  # number 0 is column 1: this is y = x + 1
    assert moves(change, 1, 1) == 3.0
    assert moves(change, 1, 2) == 0.0
    assert moves(change + 7, 1, 1) == pytest.approx(3.0)  # a constant means nothing
    with pytest.raises(ValueError, match=r"x\+3"):
        cells(change, 1, 3)


def random_model():
    cfg = ModelConfig(d_vocab=9, n_layers=3, n_heads=3, d_model=12, d_head=4, d_mlp=16)
    return Transformer(cfg).double().requires_grad_(False)


def random_tokens(*shape):
    return torch.randint(9, shape, generator=torch.Generator().manual_seed(0))


EXACT = {"atol": 1e-12, "rtol": 0}


def test_a_vector_of_zeros_changes_nothing():
    model, tokens = random_model(), random_tokens(7, 5)
    nothing = torch.zeros_like(last_z(model, tokens)[0])
    assert_close(logits_with(model, tokens, nothing, ["0.1", "2.2"]), model(tokens)[:, -1], **EXACT)


def test_everything_after_what_is_added_is_live():
    model, tokens = random_model(), random_tokens(7, 5)
    other = last_z(model, tokens.flip(0))[0]

    def change(x, name):
        x = x.clone()
        x[:, -1, [0, 2]] += other[1, [0, 2]]
        return x

    expected = model.run_with_hooks(tokens, {"blocks.1.attn.hook_z": change})[:, -1]
    assert_close(logits_with(model, tokens, other, ["1.0", "1.2"]), expected, **EXACT)
    assert not torch.allclose(expected, model(tokens)[:, -1])


@pytest.mark.parametrize("rows", [2, 100], ids=["several passes", "one pass"])
def test_last_z_is_that_of_a_whole_run(rows, monkeypatch):
    monkeypatch.setattr(activations, "ROWS", rows)
    model, tokens = random_model(), random_tokens(7, 6)
    z, (_, cache) = last_z(model, tokens), model.run_with_cache(tokens)
    for layer in range(3):
        assert_close(z[:, layer], cache[f"blocks.{layer}.attn.hook_z"][:, -1], **EXACT)


def test_bad_input_is_refused_in_one_line():
    model, tokens = random_model(), torch.zeros(4, 5, dtype=torch.int64)
    with pytest.raises(ValueError, match="no head '7.0'"):
        logits_with(model, tokens, last_z(model, tokens)[0], ["7.0"])
    with pytest.raises(ValueError, match="k = 0"):
        study(model, {1: tokens}, tokens[None], ["0.0"], NUMBERS)
    with pytest.raises(ValueError, match="k = 0"):
        study(model, {0: tokens}, tokens[None], ["0.0"], NUMBERS, k=0)


def test_vectors_of_another_shape_are_refused():
    model = Transformer(ModelConfig(d_vocab=9))
    tokens = torch.zeros(3, 5, dtype=torch.long)
    for shape in ((4, 4, 1), (1, 4, 4, 16), (3, 4, 16)):
        with pytest.raises(ValueError, match="vectors must be"):
            function_vectors.logits_with(model, tokens, torch.zeros(shape), ["0.1"])
