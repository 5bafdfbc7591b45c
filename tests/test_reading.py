import pytest
import torch
from handwired import prompts, two_step_model

from minifunc.analysis.activations import Examples
from minifunc.analysis.reading import INPUTS, explained, hands_over, inputs_apart, looks_for
from minifunc.model import ModelConfig, Transformer
from minifunc.patching import PathPatcher


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


# ---------------------------------------------------------------- shares of variance


def test_one_label_tells_all_of_its_means_and_nothing_of_groups_alike():
    labels = torch.tensor([0, 0, 5, 5])
    assert explained(torch.tensor([[1.0], [1.0], [3.0], [3.0]]), labels) == pytest.approx(1.0)
    assert explained(torch.tensor([[1.0], [3.0], [1.0], [3.0]]), labels) == pytest.approx(0.0)
    assert explained(torch.tensor([[0.0], [1.0], [2.0], [3.0]]), labels) == pytest.approx(0.8)
    assert explained(torch.ones(4, 2), labels) == 0.0


def test_two_labels_tell_a_sum_of_tables_and_nothing_of_their_pairs():
    c, d = torch.cartesian_prod(torch.arange(4), torch.arange(3)).unbind(1)
    table = torch.stack([(c % 2).double(), d.double() ** 2], dim=1)
    pair = ((c % 2 * 2 - 1) * (d - 1)).double()[:, None]
    for often in (1, torch.arange(1, 13)):  # pairs may occur as often as they like
        rows = torch.arange(12).repeat_interleave(torch.ones(12, dtype=torch.long) * often)
        assert explained(table[rows], c[rows] + 10, -d[rows]) == pytest.approx(1.0)
    assert explained(pair, c, d) == pytest.approx(0.0, abs=1e-9)
    noisy = (2 * (c % 2) - 1).repeat_interleave(2).double() + torch.tensor([1.0, -1.0]).repeat(12)
    twice = (each.repeat_interleave(2) for each in (c, d))
    assert explained(noisy[:, None], *twice) == pytest.approx(0.5)


# ---------------------------------------------------------------- by replacement


def test_the_hand_wired_heads_hand_over_by_v_and_look_by_position_alone():
    model, (base, contrast, *answers) = two_step_model(), prompts()
    sources, heads = {"base": base, "same": contrast}, ["0.0", "1.0", "1.1"]
    found = inputs_apart(PathPatcher(model, base, contrast, *answers), sources, heads)
    back = pytest.approx({"r": -1.0, "base_acc": 1.0, "contrast_acc": 0.0}, abs=1e-3)
    kept = pytest.approx({"r": 0.0, "base_acc": 0.0, "contrast_acc": 1.0}, abs=1e-3)
    for part in ("0.0", "1.0", "all"):
        assert found[part]["v"]["base"] == back
        for which in ("q", "k"):
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


def test_a_head_that_scores_by_recency():
    found = looks(at_position=lambda position: position // 6)
    assert found["among_answers"]["example"] == 1.0


def test_a_head_that_looks_for_answers_near_the_asked_one():
    found = looks(
        at_position=lambda position: 30.0 * (position % 6 == 4),
        at_key=lambda key, query: -abs(key - query),
        n_shots=8,
    )
    among = found["among_answers"]
    # not 1: the prompt's mean, taken out, is no function of nearness
    assert among["nearness"] > 0.7 > 10 * max(among["example"], among["shown"])
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
    attn = model.blocks[0].attn
    attn.W_O.copy_(torch.eye(width).expand(4, -1, -1))
    for head, columns in enumerate((range(8), range(8, 11), range(11, 17))):
        attn.W_V[head, columns, columns] = 1.0  # head 3 writes nothing
    tokens = torch.randint(n_pairs, (600, 4), generator=torch.Generator().manual_seed(0))
    answers = torch.tensor([1, 3])
    examples = Examples(tokens, answers, e[tokens[:, answers]], c[tokens[:, answers]])
    heads = ["0.0", "0.1", "0.2", "0.3"]
    found = hands_over(model, examples, heads)
    copier, difference, expected, idle = (found[head] for head in heads)
    one = pytest.approx(1, abs=1e-3)
    assert copier["separately"] == expected["separately"] == difference["difference_alone"] == one
    assert copier["difference_alone"] < 0.3
    assert difference["separately"] < 0.8
    assert idle == {"separately": 0.0, "difference_alone": 0.0}
