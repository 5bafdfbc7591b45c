"""What a model answers: the token it prefers at the last position, and how often it is right."""

import torch
from torch import Tensor

from minifunc.model import Hooks, Transformer

ROWS = 512  # prompts in one pass: enough to keep every core busy, small enough for any machine


@torch.no_grad()
def last_logits(model: Transformer, tokens: Tensor, hooks: Hooks | None = None) -> Tensor:
    """tokens [n_prompts, pos] int64 → logits at the last position, [n_prompts, d_vocab].

    Hooks see all prompts at once.
    """
    last = torch.tensor([tokens.shape[1] - 1], device=model.device)
    rows = tokens.split(len(tokens) if hooks else ROWS)
    return torch.cat([model(part.to(model.device), last, hooks)[:, 0] for part in rows])


def accuracy(logits: Tensor, answers: Tensor) -> float:
    """Share of prompts whose largest logit [n_prompts, d_vocab] is the answer's [n_prompts].

    >>> accuracy(torch.tensor([[0.0, 2.0], [3.0, 1.0]]), torch.tensor([1, 1]))
    0.5
    """
    return (logits.argmax(-1) == answers.to(logits.device)).cpu().double().mean().item()
