"""Models built by hand, whose circuits are therefore known.

In the first, two heads carry a token in two steps to the end. Head 0.0 moves the token at position
1 to position 2. Head 1.0 moves what stands at 2 to position 3, where the unembedding reads it.
Heads 0.1 and 1.1 write nothing.
"""

import torch

from minifunc.model import ModelConfig, Transformer

TWO_LAYERS = {"n_layers": 2, "n_heads": 2, "d_vocab": 4, "n_ctx": 4}


def empty_model(**shape: int) -> Transformer:
    """Attention alone, with learned positions: all weights are 0, and the scales of norms 1."""
    model = Transformer(ModelConfig(**shape, positions="learned", act_fn="none"))
    for name, weight in model.named_parameters():
        weight.data.fill_(1.0 if name.endswith(".w") else 0.0)
    return model.requires_grad_(False)


def two_step_model() -> Transformer:
    """float64. The stream is [token | carried once | carried twice | position]."""
    model = empty_model(**TWO_LAYERS, d_model=16, d_head=4).double()
    token, once, twice, position = (slice(start, start + 4) for start in (0, 4, 8, 12))
    eye = torch.eye(4, dtype=torch.float64)
    model.embed.W_E.data[:, token] = eye
    model.pos_embed.W_pos.data[:, position] = eye
    steps = [(1, 2, token, once), (2, 3, once, twice)]
    for block, (source, target, read, write) in zip(model.blocks, steps):
        attn = block.attn
        attn.W_Q.data[0][position][target, source] = 30.0  # `target` asks for `source`
        attn.W_K.data[0][position] = eye * 30.0
        attn.W_V.data[0][read] = eye
        attn.W_O.data[0][:, write] = eye
    model.unembed.W_U.data[twice] = eye
    return model


def prompts() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """base tokens, contrast tokens, base answers, contrast answers.

    The token at position 1 is the answer.
    """
    base = torch.tensor([[0, 1, 0, 3], [3, 2, 0, 0]])
    contrast = torch.tensor([[0, 2, 0, 3], [3, 1, 0, 0]])
    return base, contrast, base[:, 1], contrast[:, 1]


# ---------------------------------------------------------------- function induction, by hand


def difference_model(looks_at: int = 2) -> Transformer:
    """Two routes meet: how far is the *shown* answer (position 2) off the *expected* one (1)?

    Head 0.0 looks from the shown answer at position 1 and brings the expected one. Head 1.0 looks
    from the end at the shown answer (or at another position, `looks_at`), where both now stand.
    The unembedding takes their difference: the logit of token 3 is shown - expected, all others
    are 0. Heads 0.1 and 1.1 write nothing.
    """
    model = empty_model(**TWO_LAYERS, d_model=20, d_head=8).double()
    # The stream is [token | expected | shown, at the end | expected, at the end | position].
    token, expected, end, position = slice(0, 4), slice(4, 8), slice(8, 16), slice(16, 20)
    eye = torch.eye(4, dtype=torch.float64)
    model.embed.W_E.data[:, token] = eye
    model.pos_embed.W_pos.data[:, position] = eye
    first, second = model.blocks[0].attn, model.blocks[1].attn
    for attn, target, source in ((first, 2, 1), (second, 3, looks_at)):
        attn.W_Q.data[0][position, 0] = 30.0  # all look at position 0, which never changes …
        attn.W_Q.data[0][position][target, :4] = eye[source] * 30.0  # … but this one
        attn.W_K.data[0][position, :4] = eye * 30.0
    first.W_V.data[0][token, :4] = eye
    first.W_O.data[0][:4, expected] = eye
    second.W_V.data[0][slice(0, 8)] = torch.eye(8, dtype=torch.float64)
    second.W_O.data[0][:, end] = torch.eye(8, dtype=torch.float64)
    value = torch.arange(4, dtype=torch.float64)
    model.unembed.W_U.data[end, 3] = torch.cat([value, -value])
    return model


def difference_prompts() -> dict[str, torch.Tensor]:
    """Two prompts: shown 2, expected 1; shown 3, expected 2. The answers are 0 and 3.

    base: the shown answer changed to the expected one. operands: the other way round.
    """
    contrast = torch.tensor([[0, 1, 2, 0], [0, 2, 3, 0]])
    base, operands = contrast.clone(), contrast.clone()
    base[:, 2], operands[:, 1] = contrast[:, 1], contrast[:, 2]
    return {
        "contrast": contrast,
        "base": base,
        "operands": operands,
        "base_answers": torch.tensor([0, 0]),
        "contrast_answers": torch.tensor([3, 3]),
    }


# ---------------------------------------------------------------- the headline, by hand


def headline_model(d_vocab: int, more: int = 2) -> Transformer:
    """Answers `1+1=3, 2+2=5, 3+3=` with 7 and `1+1=2, 2+2=4, 3+3=` with 6. One layer, float32.

    Head 0.0 looks from the last `=` (position 16) at the last shown answer (position 11) and says:
    that, and two more. For this prompt no one could tell it from a model that adds. Head 0.1 writes
    nothing. With more = 0 it copies.
    """
    n_ctx, width = 32, 2 * d_vocab + 32
    shape = {"n_layers": 1, "n_heads": 2, "d_vocab": d_vocab, "n_ctx": n_ctx}
    model = empty_model(**shape, d_model=width, d_head=d_vocab)
    # The stream is [token | what head 0.0 brought | position].
    token, brought = slice(0, d_vocab), slice(d_vocab, 2 * d_vocab)
    position = slice(2 * d_vocab, width)
    eye = torch.eye(d_vocab)
    model.embed.W_E.data[:, token] = eye
    model.pos_embed.W_pos.data[:, position] = torch.eye(n_ctx)
    attn = model.blocks[0].attn
    attn.W_Q.data[0][position][16, 11] = 30.0
    attn.W_K.data[0][position, :n_ctx] = torch.eye(n_ctx) * 30.0
    attn.W_V.data[0][token] = eye
    attn.W_O.data[0][:, brought] = eye
    model.unembed.W_U.data[brought] = eye.roll(more, 1)  # n stands two tokens before n + 2
    return model
