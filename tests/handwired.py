"""A model built by hand, whose circuit is therefore known: two heads carry a token in two steps to the end.

Four positions: head 0.0 moves the token at position 1 to position 2, head 1.0 moves what stands at 2 to position 3,
and the unembedding reads it there. Heads 0.1 and 1.1 write nothing.
"""

import torch

from minifunc.model import ModelConfig, Transformer

D_VOCAB, N_POS = 4, 4
CONFIG = ModelConfig(
    n_layers=2,
    n_heads=2,
    d_model=2 * D_VOCAB + D_VOCAB + N_POS,
    d_head=4,
    d_vocab=D_VOCAB,
    n_ctx=N_POS,
    positions="learned",
    act_fn="none",
)  # the stream: [token | carried once | carried twice | position]


def two_step_model() -> Transformer:
    """The model, float64."""
    model = Transformer(CONFIG).double()
    for parameter in model.parameters():
        parameter.data.zero_()
    token, once, twice, position = (slice(start, start + 4) for start in (0, 4, 8, 12))
    eye = torch.eye(4, dtype=torch.float64)
    model.embed.W_E.data[:, token] = eye
    model.pos_embed.W_pos.data[:, position] = eye
    for layer, (source, target, read, write) in enumerate(
        [(1, 2, token, once), (2, 3, once, twice)]
    ):
        attn = model.blocks[layer].attn
        attn.W_Q.data[0][position][target, source] = (
            30.0  # position `target` asks for position `source`
        )
        attn.W_K.data[0][position] = eye * 30.0
        attn.W_V.data[0][read] = eye
        attn.W_O.data[0][:, write] = eye
        model.blocks[layer].ln1.w.data.fill_(1.0)
    model.ln_final.w.data.fill_(1.0)
    model.unembed.W_U.data[twice] = eye
    return model.requires_grad_(False)


def prompts() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """base tokens, contrast tokens, base answers, contrast answers: the token at position 1 is the answer."""
    base = torch.tensor([[0, 1, 0, 3], [3, 2, 0, 0]])
    contrast = torch.tensor([[0, 2, 0, 3], [3, 1, 0, 0]])
    return base, contrast, base[:, 1], contrast[:, 1]


# ---------------------------------------------------------------- function induction, by hand


def difference_model(looks_at: int = 2) -> Transformer:
    """Two routes meet: the answer is how far the *shown* answer (position 2) is off the *expected* one (position 1).

    Head 0.0 looks from the shown answer at position 1 and brings the expected one; head 1.0 looks from the end at the
    shown answer (or at another position, `looks_at`), where both now stand, and the unembedding takes their
    difference: the logit of token 3 is shown - expected, all others are 0. Heads 0.1 and 1.1 write nothing.
    """
    cfg = ModelConfig(
        n_layers=2,
        n_heads=2,
        d_model=20,
        d_head=8,
        d_vocab=4,
        n_ctx=4,
        positions="learned",
        act_fn="none",
    )
    model = (
        Transformer(cfg).double()
    )  # the stream: [token | expected | shown, at the end | expected, at the end | position]
    for parameter in model.parameters():
        parameter.data.zero_()
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
    for norm in (model.blocks[0].ln1, model.blocks[1].ln1, model.ln_final):
        norm.w.data.fill_(1.0)
    value = torch.arange(4, dtype=torch.float64)
    model.unembed.W_U.data[end, 3] = torch.cat([value, -value])
    return model.requires_grad_(False)


def difference_prompts() -> dict[str, torch.Tensor]:
    """contrast: shown 2, expected 1 (and 3, 2); base: shown answer changed to the expected one; operands: the other way round. The answers 0 and 3."""
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


def headline_model(d_vocab: int) -> Transformer:
    """One layer of two heads that answers `1+1=3, 2+2=5, 3+3=` with 7 and `1+1=2, 2+2=4, 3+3=` with 6, in float32.

    Head 0.0 looks from the last `=` (position 16) at the last shown answer (position 11) and says: that, and two more. For this
    prompt no one could tell it from a model that adds. Head 0.1 writes nothing.
    """
    cfg = ModelConfig(
        n_layers=1,
        n_heads=2,
        d_model=2 * d_vocab + 32,
        d_head=d_vocab,
        d_vocab=d_vocab,
        n_ctx=32,
        positions="learned",
        act_fn="none",
    )
    model = Transformer(cfg)  # the stream: [token | what head 0.0 brought | position]
    for parameter in model.parameters():
        parameter.data.zero_()
    token, brought, position = (
        slice(0, d_vocab),
        slice(d_vocab, 2 * d_vocab),
        slice(2 * d_vocab, 2 * d_vocab + 32),
    )
    eye = torch.eye(d_vocab)
    model.embed.W_E.data[:, token] = eye
    model.pos_embed.W_pos.data[:, position] = torch.eye(32)
    attn = model.blocks[0].attn
    attn.W_Q.data[0][position][16, 11] = 30.0
    attn.W_K.data[0][position, :32] = torch.eye(32) * 30.0
    attn.W_V.data[0][token] = eye
    attn.W_O.data[0][:, brought] = eye
    model.blocks[0].ln1.w.data.fill_(1.0)
    model.ln_final.w.data.fill_(1.0)
    model.unembed.W_U.data[brought] = eye.roll(
        2, 1
    )  # number n stands two tokens before number n + 2
    return model.requires_grad_(False)
