import pytest
import torch
from handwired import prompts, two_step_model

from minifunc.analysis.activations import Examples
from minifunc.analysis.function_vectors import Numbers
from minifunc.analysis.reading import (
    INPUTS,
    hands_over,
    inputs_apart,
    looks_for,
    shares,
    show,
    wrote,
)
from minifunc.model import ModelConfig, Transformer
from minifunc.patching import PathPatcher

NOTHING = {"first": 0.0, "second": 0.0, "both": 0.0, "rest": 0.0}


def linear_model(d_vocab, d_model, n_heads, d_head, **other):
    """One attention-only layer, float64, all weights 0, and norms that do nothing.

    (Their eps dwarfs all else.)
    """
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


def two_columns(c, d):
    return torch.stack([(c % 2).float(), (d - 1).float() * (3 / 8) ** 0.5], dim=1)


TABLES = {  # vectors as a function of c in 0..3 and d in 0..2, and their shares
    "a copier": (lambda c, d: torch.eye(4)[c], NOTHING | {"first": 1}),
    "a difference": (lambda c, d: torch.eye(3)[d], NOTHING | {"second": 1}),
    "both side by side": (two_columns, NOTHING | {"first": 0.5, "second": 0.5}),
    "only the pair": (
        lambda c, d: ((c % 2 * 2 - 1) * (d - 1)).float()[:, None],
        NOTHING | {"both": 1},
    ),
}


@pytest.mark.parametrize("what", TABLES)
def test_shares_of_known_tables(what):
    c, d = torch.cartesian_prod(torch.arange(4), torch.arange(3)).unbind(1)
    table, expected = TABLES[what]
    assert shares(table(c, d), c + 10, -d) == pytest.approx(expected, abs=1e-4)
    # Some pairs occur twelve times as often as others: the shares stay.
    often = torch.arange(12).repeat_interleave(torch.arange(1, 13))
    found = shares(table(c, d)[often], c[often], d[often])
    assert found == pytest.approx(expected, abs=1e-4)


def test_what_varies_inside_the_cells_is_the_rest():
    c, d = torch.cartesian_prod(torch.arange(2), torch.arange(2)).repeat_interleave(2, 0).unbind(1)
    noise = torch.tensor([1.0, -1.0]).repeat(4)
    found = shares(((2 * c - 1) + noise)[:, None], c, d)
    assert found == NOTHING | {"first": 0.5, "rest": 0.5}


def test_a_pair_that_never_occurs_is_refused():
    with pytest.raises(ValueError, match="1 of the 2 × 2 pairs"):
        shares(torch.zeros(3, 1), torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0]))


# ---------------------------------------------------------------- by replacement


def test_the_hand_wired_heads_hand_over_by_v_and_look_by_position_alone():
    model, (base, contrast, *answers) = two_step_model(), prompts()
    sources, heads = {"base": base, "same": contrast}, ["0.0", "1.0", "1.1"]
    found = inputs_apart(PathPatcher(model, base, contrast, *answers), sources, heads)
    back = pytest.approx({"r": -1.0, "base_acc": 1.0, "contrast_acc": 0.0}, abs=1e-3)
    kept = pytest.approx({"r": 0.0, "base_acc": 0.0, "contrast_acc": 1.0}, abs=1e-3)
    for part in ("0.0", "1.0", "all"):
        assert found[part]["v"]["base"] == back
        for which in ("q", "k", "qk"):
            assert found[part][which]["base"] == kept
    for which in INPUTS:
        assert found["1.1"][which]["base"] == kept  # an idle head
        for part in found:
            assert found[part][which]["same"] == kept


@pytest.mark.parametrize("which", INPUTS)
def test_replacing_inputs_is_the_run_with_those_inputs(which):
    cfg = ModelConfig(d_vocab=9, n_layers=3, n_heads=2, d_model=8, d_head=4)
    model = Transformer(cfg).double().requires_grad_(False)
    base, contrast, other = torch.randint(9, (3, 6, 7), generator=torch.Generator().manual_seed(0))
    answers = torch.zeros(6, dtype=torch.int64), torch.ones(6, dtype=torch.int64)
    _, cache = model.run_with_cache(other)

    def replace(x, name):
        x = x.clone()
        x[:, :, 1] = cache[name][:, :, 1]
        return x

    def mean_F(logits):
        return (logits[:, -1, 0] - logits[:, -1, 1]).mean()

    names = [f"blocks.{layer}.attn.hook_{letter}" for layer in (1, 2) for letter in which]
    F_base, F_contrast = mean_F(model(base)), mean_F(model(contrast))
    F_patched = mean_F(model.run_with_hooks(contrast, dict.fromkeys(names, replace)))
    expected = ((F_patched - F_contrast) / (F_contrast - F_base)).item()
    patcher = PathPatcher(model, base, contrast, *answers)
    found = inputs_apart(patcher, {"other": other}, ["1.1", "2.1"])
    assert found["all"][which]["other"]["r"] == pytest.approx(expected, abs=1e-4)


def test_prompts_that_the_model_does_not_tell_apart_are_refused():
    model, (base, _, *answers) = two_step_model(), prompts()
    with pytest.raises(ValueError, match="r is undefined"):
        inputs_apart(PathPatcher(model, base, base, *answers), {"base": base}, ["1.0"])


# ---------------------------------------------------------------- of the scores

N = 8  # numbers 0..7, which are also the tokens; an example has 6 tokens, its answer at 4


def looks(at_position=lambda position: 0.0, at_key=lambda key, query: 0.0, n_shots=3):
    """`looks_for` of one head, in prompts of `n_shots` examples and a query.

    The head's score on a key is at_position(position) + at_key(key token, query token).
    """
    n_pos = 6 * n_shots + 1
    model = linear_model(N, N + n_pos, 1, N + n_pos, positions="learned", n_ctx=n_pos)
    model.embed.W_E[:, :N] = torch.eye(N)
    model.pos_embed.W_pos[:, N:] = torch.eye(n_pos)
    attn = model.blocks[0].attn
    attn.W_K[0] = torch.eye(N + n_pos)
    scores = torch.zeros(N + n_pos, N + n_pos, dtype=torch.float64)  # [query, key]
    for query in range(N):
        scores[query, :N] = torch.tensor([float(at_key(key, query)) for key in range(N)])
    scores[-1, N:] = torch.tensor([float(at_position(position)) for position in range(n_pos)])
    attn.W_Q[0] = scores * (N + n_pos) ** 0.5
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(N, (200, n_pos), generator=generator)
    answers = 4 + 6 * torch.arange(n_shots)
    expected = tokens[:, answers]
    shown = torch.randint(N, expected.shape, generator=generator)  # on which nothing depends
    examples = Examples(tokens, answers, expected, shown)
    return looks_for(model, examples, tokens[:, -1], ["0.0"])["0.0"]


def test_a_head_that_scores_answers_and_nothing_else():
    found = looks(at_position=lambda position: position % 6 == 4)
    assert found["slot"] == found["is_answer"] == 1.0
    assert found["example"] == found["both"] == found["rest"] == 0.0
    beside = looks(at_position=lambda position: position % 6 == 3)
    assert beside["is_answer"] == pytest.approx(1 / 25, abs=1e-3)


def test_a_head_that_scores_by_recency():
    found = looks(at_position=lambda position: position // 6)
    assert found["example"] == found["among_answers"]["example"] == 1.0
    assert found["is_answer"] == 0.0


def test_a_head_that_looks_for_answers_near_the_asked_one():
    found = looks(
        at_position=lambda position: 30.0 * (position % 6 == 4),
        at_key=lambda key, query: -abs(key - query),
        n_shots=8,
    )
    among = found["among_answers"]
    # not 1: the prompt's mean, taken out, is no function of nearness
    assert among["nearness"] > 0.7 > 10 * max(among["example"], among["shown"])
    assert found["slot"] > 0.9
    near = found["by_distance"]
    assert near == sorted(near, reverse=True)
    assert near[0] > 3 * near[2] > 0


def test_attention_by_distance_counts_answers_below_and_above_the_asked_one():
    found = looks(  # it looks at the largest answer
        at_position=lambda position: 300.0 * (position % 6 == 4),
        at_key=lambda key, query: 20.0 * key,
    )
    # All of it is on 7 seen from 0 (shared where there are two), none on 0 seen from 7.
    assert found["by_distance"][7] == pytest.approx(0.45, abs=0.2)


# ---------------------------------------------------------------- of the weights


def test_a_head_that_writes_the_difference_is_told_from_those_that_copy():
    e, d = torch.cartesian_prod(torch.arange(6), torch.arange(-1, 2)).unbind(1)
    c = e + d  # -1 .. 6; those from 1 to 4 occur with every difference
    n_pairs = len(c)  # one token for each pair (c, d)
    one_hots = [torch.nn.functional.one_hot(x - x.min()) for x in (c, d, e)]
    embedding = torch.cat(one_hots, dim=1).double()  # [c | d | e]: 8, 3 and 6 columns
    width = embedding.shape[1]
    model = linear_model(n_pairs, width, 4, width)
    model.embed.W_E.copy_(embedding)
    model.unembed.W_U[:8, :8] = torch.eye(8)  # number n from c's or …
    model.unembed.W_U[11:, 1:7] = torch.eye(6)  # … from e's column
    attn = model.blocks[0].attn
    attn.W_O.copy_(torch.eye(width).expand(4, -1, -1))
    for head, columns in enumerate((range(8), range(8, 11), range(11, 17))):
        attn.W_V[head, columns, columns] = 1.0  # head 3 writes nothing
    tokens = torch.randint(n_pairs, (600, 4), generator=torch.Generator().manual_seed(0))
    answers = torch.tensor([1, 3])
    examples = Examples(tokens, answers, e[tokens[:, answers]], c[tokens[:, answers]])
    heads = ["0.0", "0.1", "0.2", "0.3"]
    found = hands_over(model, examples, Numbers(torch.arange(8), first=-1), heads)
    copier, difference, expected, idle = (found[head] for head in heads)
    one = pytest.approx(1, abs=1e-3)
    assert copier["stream"] == copier["logits"] == NOTHING | {"first": 1.0}
    assert copier["copies"]["shown"] == 1.0
    assert copier["separately"] == one
    assert copier["difference_alone"] < 0.3
    assert difference["stream"] == NOTHING | {"second": 1.0}
    assert difference["difference_alone"] == one
    assert difference["separately"] < 0.8
    assert expected["separately"] == one
    assert expected["copies"]["expected"] == 1.0
    assert expected["stream"]["both"] > 0.2
    assert idle["stream"] == NOTHING


def test_answers_that_never_occur_with_every_difference_are_refused():
    tokens = expected = torch.zeros(5, 2, dtype=torch.int64)
    examples = Examples(tokens, torch.tensor([0, 1]), expected, torch.tensor([[0, 5]] * 5))
    with pytest.raises(ValueError, match="cannot be told apart"):
        hands_over(linear_model(4, 4, 1, 4), examples, Numbers(torch.arange(4), 0), ["0.0"])


def test_a_head_that_adds_up_the_operands_is_seen_to():
    model = linear_model(16, 3, 2, 3)  # the stream holds [x, y, c]
    model.embed.W_E[0:4, 0] = torch.arange(4.0).double()  # tokens 0..3 are x,
    model.embed.W_E[4:8, 1] = torch.arange(4.0).double()  # 4..7 are y,
    model.embed.W_E[8:, 2] = torch.arange(8.0).double()  # and 8..15 answers
    attn = model.blocks[0].attn
    attn.W_V[0, :2, 0] = 1.0  # at the answer, the mean over three positions is (x + y) / 3
    attn.W_V[1, 2, 0] = 1.0  # the other head writes the answer that is shown
    attn.W_O.copy_(torch.eye(3).expand(2, -1, -1))
    x, y, c = torch.randint(4, (3, 400, 1), generator=torch.Generator().manual_seed(0))
    tokens = torch.cat([x, 4 + y, 8 + c], dim=1)
    examples = Examples(tokens, torch.tensor([2]), x + y, c)
    adder, copier = wrote(model, examples, x, y, ["0.0", "0.1"]).values()
    known = NOTHING | {"first": 0.5, "second": 0.5, "expected_r2": 1, "shown_r2": 0}
    assert adder == pytest.approx(known, abs=0.03)
    assert copier["shown_r2"] == pytest.approx(1, abs=1e-3)
    assert copier["expected_r2"] < 0.05
    assert copier["rest"] > 0.8


def test_the_findings_are_shown_with_their_figures():
    model, (base, contrast, *answers) = two_step_model(), prompts()
    inputs = inputs_apart(PathPatcher(model, base, contrast, *answers), {"base": base}, ["1.0"])
    found = {"inputs": inputs, "looks_for": {"0.0": looks()}, "hands_over": {}, "wrote": {}}
    text = "\n".join(show(found))
    assert "-100.0  1.00/0.00" in text
    assert "nearness" in text
    assert f"{found['looks_for']['0.0']['rest']:.2f}" in text
