import pytest
import torch
from handwired import prompts, two_step_model

from minifunc.model import ModelConfig, Transformer
from minifunc.analysis.reading import (
    INPUTS,
    hands_over,
    inputs_apart,
    looks_for,
    shares,
    show,
    wrote,
)


def linear_model(d_vocab, d_model, n_heads, d_head, **other):
    """One attention-only layer, float64, all weights 0 and norms that do nothing (their eps dwarfs all else)."""
    cfg = ModelConfig(
        n_layers=1,
        n_heads=n_heads,
        d_model=d_model,
        d_head=d_head,
        d_vocab=d_vocab,
        act_fn="none",
        eps=1e16,
        **{"positions": "none", **other},
    )
    model = Transformer(cfg).double().requires_grad_(False)
    for parameter in model.parameters():
        parameter.zero_()
    for norm in (model.blocks[0].ln1, model.ln_final):
        norm.w.fill_(1e8)
    return model


# ---------------------------------------------------------------- shares


TABLES = {
    "a copier": (lambda c, d: torch.eye(4)[c], {"first": 1, "second": 0, "both": 0, "rest": 0}),
    "a difference": (lambda c, d: torch.eye(3)[d], {"first": 0, "second": 1, "both": 0, "rest": 0}),
    "both side by side": (
        lambda c, d: torch.stack([(c % 2).float(), (d - 1).float() * (3 / 8) ** 0.5], 1),
        {"first": 0.5, "second": 0.5, "both": 0, "rest": 0},
    ),
    "only the pair": (
        lambda c, d: ((c % 2 * 2 - 1) * (d - 1)).float()[:, None],
        {"first": 0, "second": 0, "both": 1, "rest": 0},
    ),
}


@pytest.mark.parametrize("what", TABLES)
def test_shares_of_known_tables(what):
    c, d = torch.cartesian_prod(torch.arange(4), torch.arange(3)).unbind(1)
    table, expected = TABLES[what]
    assert shares(table(c, d), c + 10, -d) == pytest.approx(expected, abs=1e-4)
    often = torch.arange(12).repeat_interleave(
        torch.arange(1, 13)
    )  # some pairs twelve times as often as others: the shares stay
    assert shares(table(c, d)[often], c[often], d[often]) == pytest.approx(expected, abs=1e-4)


def test_what_varies_inside_the_cells_is_the_rest():
    c, d = torch.cartesian_prod(torch.arange(2), torch.arange(2)).repeat_interleave(2, 0).unbind(1)
    noise = torch.tensor([1.0, -1.0]).repeat(4)
    assert shares(((2 * c - 1) + noise)[:, None], c, d) == {
        "first": 0.5,
        "second": 0.0,
        "both": 0.0,
        "rest": 0.5,
    }


def test_a_pair_that_never_occurs_is_refused():
    with pytest.raises(ValueError, match="1 of the 2 × 2 pairs"):
        shares(torch.zeros(3, 1), torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0]))


# ---------------------------------------------------------------- by replacement


def test_the_hand_wired_heads_hand_over_by_v_and_look_by_position_alone():
    model, (base, contrast, base_answers, contrast_answers) = two_step_model(), prompts()
    found = inputs_apart(
        model,
        base,
        contrast,
        base_answers,
        contrast_answers,
        {"base": base, "same": contrast},
        ["0.0", "1.0", "1.1"],
    )
    back, kept = (
        {"r": -1.0, "base_acc": 1.0, "contrast_acc": 0.0},
        {"r": 0.0, "base_acc": 0.0, "contrast_acc": 1.0},
    )
    for part in ("0.0", "1.0", "all"):
        assert found[part]["v"]["base"] == pytest.approx(back, abs=1e-3)
        assert all(
            found[part][which]["base"] == pytest.approx(kept, abs=1e-3)
            for which in ("q", "k", "qk")
        )
    assert all(found["1.1"][which]["base"] == kept for which in INPUTS)  # an idle head
    assert all(found[part][which]["same"] == kept for part in found for which in INPUTS)


@pytest.mark.parametrize("which", INPUTS)
def test_replacing_inputs_is_the_run_with_those_inputs(which):
    model = (
        Transformer(ModelConfig(d_vocab=9, n_layers=3, n_heads=2, d_model=8, d_head=4))
        .double()
        .requires_grad_(False)
    )
    base, contrast, other = torch.randint(9, (3, 6, 7), generator=torch.Generator().manual_seed(0))
    answers = torch.zeros(6, dtype=torch.int64), torch.ones(6, dtype=torch.int64)
    _, cache = model.run_with_cache(other)

    def replace(x, name):
        x = x.clone()
        x[:, :, 1] = cache[name][:, :, 1]
        return x

    F = [
        (logits[:, -1, 0] - logits[:, -1, 1]).mean()
        for logits in (
            model(base),
            model(contrast),
            model.run_with_hooks(
                contrast,
                {
                    f"blocks.{layer}.attn.hook_{letter}": replace
                    for layer in (1, 2)
                    for letter in which
                },
            ),
        )
    ]
    found = inputs_apart(model, base, contrast, *answers, {"other": other}, ["1.1", "2.1"])
    assert found["all"][which]["other"]["r"] == pytest.approx(
        ((F[2] - F[1]) / (F[1] - F[0])).item(), abs=1e-4
    )


def test_prompts_that_the_model_does_not_tell_apart_are_refused():
    model, (base, _, base_answers, contrast_answers) = two_step_model(), prompts()
    with pytest.raises(ValueError, match="r is undefined"):
        inputs_apart(model, base, base, base_answers, contrast_answers, {"base": base}, ["1.0"])


# ---------------------------------------------------------------- of the scores

N = 8  # numbers 0..7, which are also the tokens; an example has 6 tokens, its answer at 4


def looks(score, n_shots=3):
    """looks_for of one head whose score on a key is score(key token, position, query token), in prompts of `n_shots` examples and a query."""
    n_pos = 6 * n_shots + 1
    model = linear_model(N, N + n_pos, 1, N + n_pos, positions="learned", n_ctx=n_pos)
    model.embed.W_E[:, :N] = torch.eye(N)
    model.pos_embed.W_pos[:, N:] = torch.eye(n_pos)
    attn = model.blocks[0].attn
    attn.W_K[0] = torch.eye(N + n_pos)
    matrix = torch.zeros(N + n_pos, N + n_pos, dtype=torch.float64)  # [query, key]
    matrix[:N, :N] = torch.tensor(
        [[score(key, None, query) for key in range(N)] for query in range(N)]
    )
    matrix[-1, N:] = torch.tensor([float(score(None, position, None)) for position in range(n_pos)])
    attn.W_Q[0] = matrix * (N + n_pos) ** 0.5
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(N, (200, n_pos), generator=generator)
    answers = 4 + 6 * torch.arange(n_shots)
    expected = tokens[
        :, answers
    ]  # the answers are shown as they are to be expected, but for `shown`, which nothing depends on
    shown = torch.randint(N, expected.shape, generator=generator)
    return looks_for(model, tokens, answers, expected, shown, tokens[:, -1], ["0.0"])["0.0"]


def test_a_head_that_scores_answers_and_nothing_else():
    found = looks(
        lambda key, position, query: float(position % 6 == 4) if position is not None else 0.0
    )
    assert {name: found[name] for name in ("slot", "example", "both", "rest", "is_answer")} == {
        "slot": 1.0,
        "example": 0.0,
        "both": 0.0,
        "rest": 0.0,
        "is_answer": 1.0,
    }
    assert looks(
        lambda key, position, query: float(position % 6 == 3) if position is not None else 0.0
    )["is_answer"] == pytest.approx(1 / 25, abs=1e-3)


def test_a_head_that_scores_by_recency():
    found = looks(
        lambda key, position, query: float(position // 6) if position is not None else 0.0
    )
    assert (
        found["example"] == 1.0
        and found["among_answers"]["example"] == 1.0
        and found["is_answer"] == 0.0
    )


def test_a_head_that_looks_for_answers_near_the_asked_one():
    found = looks(
        lambda key, position, query: (
            -abs(key - query) * 1.0 if position is None else 30.0 * (position % 6 == 4)
        ),
        n_shots=8,
    )
    among = found["among_answers"]
    assert (
        among["nearness"] > 0.7 > 10 * max(among["example"], among["shown"]) and found["slot"] > 0.9
    )  # the prompt's mean, taken out, is no function of nearness
    near = found["by_distance"]
    assert near == sorted(near, reverse=True) and near[0] > 3 * near[2] > 0


def test_attention_by_distance_counts_answers_below_and_above_the_asked_one():
    found = looks(
        lambda key, position, query: 20.0 * key if position is None else 300.0 * (position % 6 == 4)
    )  # the largest answer
    assert found["by_distance"][7] == pytest.approx(
        0.45, abs=0.2
    )  # all of it on 7 seen from 0 (shared where there are two), none on 0 seen from 7


# ---------------------------------------------------------------- of the weights


def test_a_head_that_writes_the_difference_is_told_from_those_that_copy():
    e, d = torch.cartesian_prod(torch.arange(6), torch.arange(-1, 2)).unbind(1)
    c = e + d  # -1 .. 6; those from 1 to 4 occur with every difference
    pairs = len(c)  # one token for each pair (c, d)
    blocks = torch.cat(
        [torch.nn.functional.one_hot(x - x.min()) for x in (c, d, e)], dim=1
    ).double()  # [c | d | e] one-hot
    model = linear_model(pairs, blocks.shape[1], 4, blocks.shape[1])
    model.embed.W_E.copy_(blocks)
    model.unembed.W_U[:8, :8] = torch.eye(8)  # number n from c's or …
    model.unembed.W_U[11:, 1:7] = torch.eye(6)  # … from e's column
    attn = model.blocks[0].attn
    attn.W_O.copy_(torch.eye(blocks.shape[1]).expand(4, -1, -1))
    for head, (start, stop) in enumerate([(0, 8), (8, 11), (11, 17)]):  # head 3 writes nothing
        attn.W_V[head, start:stop, start:stop] = torch.eye(stop - start).double()
    tokens = torch.randint(pairs, (600, 4), generator=torch.Generator().manual_seed(0))
    answers = torch.tensor([1, 3])
    found = hands_over(
        model,
        tokens,
        answers,
        e[tokens[:, answers]],
        c[tokens[:, answers]],
        torch.arange(8),
        -1,
        ["0.0", "0.1", "0.2", "0.3"],
    )
    copier, difference, expected, idle = (found[f"0.{head}"] for head in range(4))
    assert (
        copier["stream"]
        == copier["logits"]
        == {"first": 1.0, "second": 0.0, "both": 0.0, "rest": 0.0}
        and copier["copies"]["shown"] == 1.0
    )
    assert difference["stream"] == {
        "first": 0.0,
        "second": 1.0,
        "both": 0.0,
        "rest": 0.0,
    } and difference["difference_alone"] == pytest.approx(1, abs=1e-3)
    assert (
        copier["difference_alone"] < 0.3
        and copier["separately"] == pytest.approx(1, abs=1e-3) == expected["separately"]
    )
    assert (
        difference["separately"] < 0.8
        and expected["copies"]["expected"] == 1.0
        and expected["stream"]["both"] > 0.2
    )
    assert idle["stream"] == {"first": 0.0, "second": 0.0, "both": 0.0, "rest": 0.0}


def test_answers_that_never_occur_with_every_difference_are_refused():
    model = linear_model(4, 4, 1, 4)
    tokens, shown = torch.zeros(5, 2, dtype=torch.int64), torch.tensor([[0, 5]] * 5)
    with pytest.raises(ValueError, match="cannot be told apart"):
        hands_over(
            model,
            tokens,
            torch.tensor([0, 1]),
            torch.zeros(5, 2, dtype=torch.int64),
            shown,
            torch.arange(4),
            0,
            ["0.0"],
        )


def test_a_head_that_adds_up_the_operands_is_seen_to():
    model = linear_model(
        16, 3, 2, 3
    )  # tokens 0..3 are x, 4..7 y, 8..15 answers; the stream holds [x, y, c]
    model.embed.W_E[0:4, 0], model.embed.W_E[4:8, 1], model.embed.W_E[8:, 2] = (
        torch.arange(4.0).double(),
        torch.arange(4.0).double(),
        torch.arange(8.0).double(),
    )
    attn = model.blocks[0].attn
    attn.W_V[0, :2, 0] = 1.0  # at the answer, the mean over three positions is (x + y) / 3
    attn.W_V[1, 2, 0] = 1.0  # the other head writes the answer that is shown
    attn.W_O.copy_(torch.eye(3).expand(2, -1, -1))
    x, y, c = torch.randint(4, (3, 400), generator=torch.Generator().manual_seed(0))
    tokens = torch.stack([x, 4 + y, 8 + c], dim=1)
    found = wrote(
        model,
        tokens,
        torch.tensor([2]),
        x[:, None],
        y[:, None],
        (x + y)[:, None],
        c[:, None],
        ["0.0", "0.1"],
    )
    assert found["0.0"] == pytest.approx(
        {"first": 0.5, "second": 0.5, "both": 0, "rest": 0, "expected_r2": 1, "shown_r2": 0},
        abs=0.03,
    )
    assert (
        found["0.1"]["shown_r2"] == pytest.approx(1, abs=1e-3)
        and found["0.1"]["expected_r2"] < 0.05
        and found["0.1"]["rest"] > 0.8
    )


def test_the_findings_are_shown_with_their_figures():
    model, (base, contrast, base_answers, contrast_answers) = two_step_model(), prompts()
    inputs = inputs_apart(
        model, base, contrast, base_answers, contrast_answers, {"base": base}, ["1.0"]
    )
    text = show(
        {
            "inputs": inputs,
            "looks_for": {"0.0": looks(lambda key, position, query: 0.0)},
            "hands_over": {},
            "wrote": {},
        }
    )
    assert "-100.0   1.00/0.00" in text and "among answers: nearness 0.00" in text
