import pytest
import torch

from minifunc.analysis import function_vectors
from minifunc.analysis.function_vectors import (
    adds_up,
    cells,
    explained,
    last_z,
    moves,
    promotes,
    put,
    show,
    study,
)
from minifunc.model import ModelConfig, Transformer

N_NUMBERS, FIRST, SHIFTS = (
    6,
    -1,
    (-1, 0, 1),
)  # tokens 0..5 are the numbers -1..4, tokens 6..8 the markers of k = -1, 0, 1
D = N_NUMBERS + len(SHIFTS)


def shift_model(what):
    """A linear model, float64, that answers the number at the last position; head 0 adds what[marker] [3, D] / 2 to the logits, head 1 a known 0.1 / 2 to each.

    Prompts are [marker or number, number]. Both heads look at both positions alike. The norms do nothing: their eps dwarfs all else.
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
    attn.W_V[1, N_NUMBERS:] = 0.1 * torch.eye(D, dtype=torch.float64)[:3]
    attn.W_O.copy_(eye.expand(2, -1, -1))
    return model


def prompts():
    """prompts and asked numbers by k, and naive prompts [x, x] of the inputs 0..2."""
    numbers = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
    tokens = {
        k: torch.stack([torch.full_like(numbers, N_NUMBERS + index), numbers - FIRST], dim=1)
        for index, k in enumerate(SHIFTS)
    }
    naive = torch.tensor([[[x - FIRST, x - FIRST]] * 2 for x in range(3)])
    return tokens, dict.fromkeys(SHIFTS, numbers), naive


WHAT = torch.randn(3, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_a_head_that_adds_a_known_vector_gives_exactly_that_heat_map_and_the_parts_add_up():
    tokens, asked, naive = prompts()
    found = study(
        shift_model(WHAT), tokens, asked, naive, ["0.0", "0.1"], torch.arange(N_NUMBERS), -FIRST
    )
    row = (WHAT[2] / 2)[-FIRST : -FIRST + 3]  # the logits of the numbers 0, 1, 2
    torch.testing.assert_close(
        torch.tensor(found["function_vectors"]["0.0"], dtype=torch.float64),
        row.expand(3, 3),
        atol=6e-4,
        rtol=0,
    )  # rounded to 3 places
    one_logit = torch.zeros(D, dtype=torch.float64).index_fill(0, torch.tensor([2]), 0.05)[
        -FIRST : -FIRST + 3
    ]
    torch.testing.assert_close(
        torch.tensor(found["function_vectors"]["all"], dtype=torch.float64),
        (row + one_logit).expand(3, 3),
        atol=6e-4,
        rtol=0,
    )
    assert (
        found["function_vectors"]
        == found["function_vectors_by_k"]["1"]
        != found["function_vectors_by_k"]["-1"]
    )
    assert all(
        fit == {"r2": 1.0, "correlation": 1.0, "ratio": 1.0}
        for fit in found["function_vector_scores"]["adds_up"].values()
    )


def test_vectors_that_depend_on_k_alone_are_told_from_vectors_that_depend_on_what_is_asked():
    model, (tokens, asked, naive) = shift_model(WHAT), prompts()
    model.blocks[0].attn.W_V[1].copy_(torch.eye(D))  # head 1 now holds the marker and the number
    model.blocks[0].attn.W_V[1, N_NUMBERS:] = 0  # … and now the number alone
    scores = study(
        model, tokens, asked, naive, ["0.0", "0.1"], torch.arange(N_NUMBERS), -FIRST, at_least=1
    )["function_vector_scores"]
    assert scores["variance"] == {
        "0.0": {"k": 1.0, "asked": 0.0, "both": 1.0},
        "0.1": {"k": 0.0, "asked": 1.0, "both": 1.0},
    }
    assert scores["turns"]["1"] == {
        "0": 1.0,
        "1": 1.0,
        "2": 1.0,
        "3": 1.0,
    }  # the same vector, whatever is asked
    assert scores["put"]["1"]["mean"] == scores["put"]["1"]["own"]


def test_hits_count_the_naive_prompts_that_are_then_answered_off_by_k():
    what = torch.zeros(3, D, dtype=torch.float64)
    what[2, 1 - FIRST] = 100.0  # with the marker of +1, everything is answered 1
    tokens, asked, naive = prompts()
    scores = study(
        shift_model(what),
        tokens,
        asked,
        naive,
        ["0.0"],
        torch.arange(N_NUMBERS),
        -FIRST,
        at_least=1,
    )["function_vector_scores"]
    assert scores["naive_accuracy"] == 1.0
    assert (
        scores["parts"]["1"]["0.0"]["hits"] == pytest.approx(1 / 3, abs=1e-4)
        and scores["parts"]["0"]["0.0"]["hits"] == 1.0
    )  # of the inputs 0, 1, 2 only 0 + 1 is 1
    assert scores["put"]["1"]["mean"]["added"] == pytest.approx(1 / 3, abs=1e-4)
    assert scores["reach"]["1"] == pytest.approx(
        {"-2": 0, "-1": 0, "0": 1 / 3, "1": 1 / 2, "2": 1}, abs=1e-4
    )  # x = 0 alone is hit, whatever s is
    assert scores["others"]["1"] == pytest.approx(
        1 / 3, abs=1e-4
    )  # s = 0 is answered 1 whatever x is; s = 1 and s = 2 never


def test_promotes_and_moves_of_a_map_written_by_hand():
    change = torch.zeros(3, 6)
    change[torch.arange(3), torch.arange(3) + 2] = (
        3.0  # number 0 stands in column 1, so this is y = x + 1
    )
    assert (promotes(change, 1, 1), moves(change, 1, 1)) == (3.0, 3.0)
    assert promotes(change, 1, 0) == pytest.approx(-3 / 5) and moves(change, 1, 2) == 0.0
    assert promotes(change + 7, 1, 1) == pytest.approx(3.0) and moves(
        change + 7, 1, 1
    ) == pytest.approx(3.0)  # a constant means nothing
    with pytest.raises(ValueError, match=r"x\+3"):
        cells(change, 1, 3)


def test_adding_up_is_measured_after_centring_each_row():
    parts = torch.randn(2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    constant = torch.randn(4, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert adds_up(parts, parts.sum(0) + constant) == {"r2": 1.0, "correlation": 1.0, "ratio": 1.0}
    assert adds_up(parts, parts.sum(0) / 2) == {"r2": 0.0, "correlation": 1.0, "ratio": 0.5}
    assert adds_up(parts, -parts.sum(0))["correlation"] == -1.0


def test_explained_is_one_for_group_means_and_zero_for_groups_alike():
    labels = torch.tensor([0, 0, 5, 5])
    assert explained(torch.tensor([[1.0], [1.0], [3.0], [3.0]]), labels) == pytest.approx(1.0)
    assert explained(torch.tensor([[1.0], [3.0], [1.0], [3.0]]), labels) == pytest.approx(0.0)
    assert explained(torch.tensor([[0.0], [1.0], [2.0], [3.0]]), labels) == pytest.approx(0.8)


def random_model():
    return (
        Transformer(ModelConfig(d_vocab=9, n_layers=3, n_heads=3, d_model=12, d_head=4, d_mlp=16))
        .double()
        .requires_grad_(False)
    )


def test_putting_in_what_is_there_already_changes_nothing_and_everything_after_is_live(monkeypatch):
    model, tokens = (
        random_model(),
        torch.randint(9, (7, 5), generator=torch.Generator().manual_seed(0)),
    )
    z, plain, heads = last_z(model, tokens), model(tokens)[:, -1], ["0.1", "1.0", "1.2", "2.2"]
    torch.testing.assert_close(
        put(model, tokens, z, heads, replace=True), plain, rtol=0, atol=1e-12
    )
    torch.testing.assert_close(
        put(model, tokens, torch.zeros_like(z[:1]), heads), plain, rtol=0, atol=1e-12
    )
    other = last_z(model, tokens.flip(0))

    def change(x, name):
        x = x.clone()
        x[:, -1, [0, 2]] += other[:, 1, [0, 2]]
        return x

    expected = model.run_with_hooks(tokens, {"blocks.1.attn.hook_z": change})[:, -1]
    torch.testing.assert_close(
        put(model, tokens, other, ["1.0", "1.2"]), expected, rtol=0, atol=1e-12
    )
    monkeypatch.setattr(function_vectors, "ROWS", 2)  # several passes
    torch.testing.assert_close(
        put(model, tokens, other, ["1.0", "1.2"]), expected, rtol=0, atol=1e-12
    )
    torch.testing.assert_close(last_z(model, tokens), z, rtol=0, atol=1e-12)
    assert not torch.allclose(expected, plain)


def test_last_z_is_that_of_a_whole_run():
    model, tokens = (
        random_model(),
        torch.randint(9, (4, 6), generator=torch.Generator().manual_seed(0)),
    )
    _, cache = model.run_with_cache(tokens)
    for layer in range(3):
        torch.testing.assert_close(
            last_z(model, tokens)[:, layer],
            cache[f"blocks.{layer}.attn.hook_z"][:, -1],
            rtol=0,
            atol=1e-12,
        )


def test_bad_input_is_refused_in_one_line():
    model, tokens = random_model(), torch.zeros(4, 5, dtype=torch.int64)
    with pytest.raises(ValueError, match="has no head 7.0"):
        put(model, tokens, last_z(model, tokens), ["7.0"])
    with pytest.raises(ValueError, match="vectors must be"):
        put(model, tokens, last_z(model, tokens)[:3], ["0.0"])
    with pytest.raises(ValueError, match="k = 0"):
        study(model, {1: tokens}, {1: tokens[:, 0]}, tokens[None], ["0.0"], torch.arange(5), 1)


def test_the_findings_are_shown_with_their_figures():
    tokens, asked, naive = prompts()
    found = study(
        shift_model(WHAT), tokens, asked, naive, ["0.0", "0.1"], torch.arange(N_NUMBERS), -FIRST
    )  # no prompt asks often enough for FV(k, s)
    assert found["function_vector_scores"]["put"]["1"]["own"] == dict.fromkeys(
        function_vectors.WAYS
    )
    text = show(found)
    assert (
        "R² 1.00" in text
        and f"{found['function_vector_scores']['parts']['1']['0.0']['promotes']:.2f}" in text
    )
