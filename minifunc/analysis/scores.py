"""Scores of attention: how far a head does what the textbook head of its kind does, from 0 to 1.

    previous_token       at each shown answer, attention to the `=` before it          … = c      c looks at =
    function_induction   at the last `=`, attention to the earlier answers             … c … =    = looks at the c's
    copy_induction       on a sequence that is repeated, at each place of the repetition, attention to what followed
                         this place the first time (Olsson et al. 2022)                A B … A    A looks at B

Each is a mean over prompts and places, [n_layers, n_heads] float64. They say where a head looks, not what it does.
"""

import torch
from torch import Tensor

from minifunc.model import Transformer


@torch.no_grad()
def attention_to(model: Transformer, tokens: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """Attention from each query to its keys, summed over its keys, the mean over queries and prompts: [n_layers, n_heads] float64.

    tokens [n_prompts, pos] int64; queries [n_queries], keys [n_queries, n_keys] int64: positions. Raises ValueError
    for a key that lies behind its query, which no head could see, or a place outside the prompts.
    """
    if keys.ndim != 2 or len(keys) != len(queries) or not len(queries):
        raise ValueError(
            f"keys must be [n_queries, n_keys] = [{len(queries)}, …], not {list(keys.shape)}"
        )
    if keys.min() < 0 or (keys > queries[:, None]).any() or queries.max() >= tokens.shape[1]:
        raise ValueError("a query must lie inside the prompts, and its keys not behind it")
    device = model.unembed.W_U.device
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers)]
    queries, keys = queries.to(device), keys.to(device)
    total = torch.zeros(model.cfg.n_layers, model.cfg.n_heads, dtype=torch.float64, device=device)
    for part in tokens.split(128):
        _, cache = model.run_with_cache(part.to(device), names)
        for layer, name in enumerate(names):
            seen = cache[name][:, :, queries[:, None], keys]  # [n_prompts, head, n_queries, n_keys]
            total[layer] += seen.double().sum((0, 2, 3))
    return total / (len(tokens) * len(queries))


def previous_token_score(model: Transformer, tokens: Tensor, answers: Tensor) -> Tensor:
    """tokens [n_prompts, pos]; answers [n_shots]: where the shown answers stand."""
    return attention_to(model, tokens, answers, answers[:, None] - 1)


def function_induction_score(model: Transformer, tokens: Tensor, answers: Tensor) -> Tensor:
    """tokens [n_prompts, pos], whose last position asks for an answer; answers [n_shots]: where the shown ones stand."""
    return attention_to(model, tokens, torch.tensor([tokens.shape[1] - 1]), answers[None])


def copy_induction_score(
    model: Transformer, tokens: Tensor, period: int, queries: Tensor
) -> Tensor:
    """tokens [n_prompts, pos] repeat themselves after `period` positions; queries [n_queries]: places of the repetition.
    Raises ValueError where a token that a query should look for does not stand `period` before it as well."""
    if queries.min() < period or not torch.equal(tokens[:, queries], tokens[:, queries - period]):
        raise ValueError(
            f"the tokens do not repeat themselves after {period} positions at these queries"
        )
    return attention_to(model, tokens, queries, queries[:, None] - period + 1)
