"""Scores of attention: how far does a head look where the textbook head of its kind looks?

    previous_token       from each shown answer to the `=` before it       … = c       c looks at =
    function_induction   from the last `=` to the earlier answers          … c … =     = looks at c
    copy_induction       on a sequence that is repeated, from each place   A B … A     A looks at B
                         of the repetition to what followed this place
                         the first time (Olsson et al. 2022)

Each score is attention, from 0 to 1, a mean over prompts and places, [n_layers, n_heads] float64.
It says where a head looks, not what it does.
"""

import torch
from torch import Tensor

from minifunc.analysis.activations import activations
from minifunc.model import Transformer


def attention_to(model: Transformer, tokens: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """Attention from a query to all its keys, the mean over queries: [n_layers, n_heads] float64.
    tokens [n_prompts, pos] int64; queries [n_queries], keys [n_queries, n_keys] int64: positions.
    Raises ValueError for a key behind its query, or a place outside the prompts."""
    if keys.ndim != 2 or len(keys) != len(queries):
        raise ValueError(f"keys must be [{len(queries)}, n_keys], not {list(keys.shape)}")
    if keys.min() < 0 or (keys > queries[:, None]).any() or queries.max() >= len(tokens[0]):
        raise ValueError("a query must lie inside the prompts, and its keys not behind it")

    def seen(pattern: Tensor) -> Tensor:  # [batch, head, query, key] → [batch, head]
        return pattern[:, :, queries[:, None], keys].double().sum((2, 3))

    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers)]
    shares = activations(model, tokens, names, seen)
    return torch.stack([each.mean(0) for each in shares.values()]) / len(queries)


def previous_token_score(model: Transformer, tokens: Tensor, answers: Tensor) -> Tensor:
    """tokens [n_prompts, pos]; answers [n_shots]: where the shown answers stand."""
    return attention_to(model, tokens, answers, answers[:, None] - 1)


def function_induction_score(model: Transformer, tokens: Tensor, answers: Tensor) -> Tensor:
    """tokens [n_prompts, pos], which end with the last `=`; answers [n_shots]: as above."""
    return attention_to(model, tokens, answers.new_tensor([len(tokens[0]) - 1]), answers[None])


def copy_induction_score(model: Transformer, tokens: Tensor, period: int, places: Tensor) -> Tensor:
    """tokens [n_prompts, pos] repeat after `period`; places [n_queries]: some of the repetition.
    Raises ValueError where the token at a place does not stand `period` before it as well."""
    found = attention_to(model, tokens, places, places[:, None] - period + 1)
    if places.min() < period or not torch.equal(tokens[:, places], tokens[:, places - period]):
        said = "the tokens do not repeat themselves"
        raise ValueError(f"{said} after {period} positions at these queries")
    return found
