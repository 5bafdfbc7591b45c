"""A model built by hand, whose circuit is therefore known: two heads carry a token in two steps to the end.

Four positions: head 0.0 moves the token at position 1 to position 2, head 1.0 moves what stands at 2 to position 3,
and the unembedding reads it there. Heads 0.1 and 1.1 write nothing.
"""

import torch

from minifunc.model import ModelConfig, Transformer

D_VOCAB, N_POS = 4, 4
CONFIG = ModelConfig(
    n_layers=2, n_heads=2, d_model=2 * D_VOCAB + D_VOCAB + N_POS, d_head=4, d_vocab=D_VOCAB, n_ctx=N_POS, positions="learned", act_fn="none"
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
    for layer, (source, target, read, write) in enumerate([(1, 2, token, once), (2, 3, once, twice)]):
        attn = model.blocks[layer].attn
        attn.W_Q.data[0][position][target, source] = 30.0  # position `target` asks for position `source`
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
