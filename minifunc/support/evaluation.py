"""What a model answers: the token it prefers at the last position, and how often it is right."""

import math
from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minifunc.model import Transformer
from minifunc.support.checks import check_answers, check_tokens, of_type
from minifunc.support.hooks import Hooks
from minifunc.support.processes import all_sum, share
from minifunc.support.tables import rounded

Language = Any  # what tasks.py offers; handed in, since nothing in this package imports a script
Table = dict[str, dict[str, dict[str, float]]]  # task → k → shots → accuracy
ROWS = 512  # prompts in one pass: enough to keep every core busy, small enough for any machine
N_RESAMPLES = 2000


@torch.no_grad()
def last_logits(model: Transformer, tokens: Tensor, hooks: Hooks | None = None) -> Tensor:
    """tokens [n_prompts, pos] → last logits [n_prompts, d_vocab]. Hooks see all prompts at once."""
    check_tokens(tokens, model.cfg.d_vocab)
    last = torch.tensor([tokens.shape[1] - 1], device=model.device)
    rows = tokens.split(len(tokens) if hooks else ROWS)
    return torch.cat([model(part.to(model.device), last, hooks)[:, 0] for part in rows])


def finite(logits: Tensor) -> Tensor:
    """Logits [..., d_vocab]. Raises FloatingPointError where a row's largest is NaN or infinite."""
    if not logits.amax(-1).isfinite().all():
        raise FloatingPointError("the model's logits are not finite, so they hold no answer")
    return logits


def answers_right(model: Transformer, tokens: Tensor, answers: Tensor) -> Tensor:
    """1 where tokens [n_prompts, pos] are answered with `answers`, else 0: [n_prompts] float64.
    Several processes share the prompts."""
    check_answers(model.cfg.d_vocab, len(tokens), answers)
    right = torch.zeros(len(tokens), dtype=torch.float64, device="cpu")
    given = finite(last_logits(model, share(tokens))).argmax(-1).cpu()
    share(right)[:] = (given == share(answers)).double()
    all_sum(right)
    return right


def accuracy_by_shots(
    model: Transformer, language: Language, names: Iterable[str], shots: Sequence[int], n: int
) -> Table:
    """Accuracy on contrast prompts by task, k and number of shots, as far as the context holds.

    Addition is asked n times for every k. Each other task shares out n among all its k but one,
    which gets as many as each of them: n // 8 for each shift, n // 3 for each base. Base-k addition
    has two rows, by whether the query carries.
    """
    generator = torch.Generator().manual_seed(2025)  # the same prompts for every run
    table: Table = {}
    for name in names:
        task = language.TASKS[name]
        n_prompts = n if name == "addition" else n // (len(task.ks) - 1)
        for k, number in product(task.ks, shots):
            pairs = language.evaluation_pairs(name, k, number, n_prompts, generator)
            if pairs.contrast.shape[1] > model.cfg.n_ctx:
                continue  # they are drawn all the same, so that all models get the same prompts
            right = answers_right(model, pairs.contrast, pairs.contrast_answers)
            rows = {name: right}
            if task.wrapper == "base":
                rows = {f"{name}_carry": right[pairs.carry]}
                rows[f"{name}_no_carry"] = right[~pairs.carry]
            for row, part in rows.items():
                by_shots = table.setdefault(row, {}).setdefault(str(k), {})
                by_shots[str(number)] = round(part.mean().item(), 4)  # NaN where there is none
    return table


def accuracy(logits: Tensor, answers: Tensor) -> float:
    """Share of prompts whose largest logit [n_prompts, d_vocab] is the answer's [n_prompts].

    >>> accuracy(torch.tensor([[0.0, 2.0], [3.0, 1.0]]), torch.tensor([1, 1]))
    0.5
    """
    check_answers(of_type(Tensor, "logits", logits).shape[-1], len(logits), answers)
    return (finite(logits).argmax(-1) == answers.to(logits.device)).cpu().double().mean().item()


def wilson(share: float, n: int) -> list[float]:
    """95 % interval of a share seen in n trials (Wilson 1927).

    >>> wilson(1.0, 100)
    [0.963, 1.0]
    """
    z = 1.96
    scale = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return [round(max(0.0, centre - half), 4), round(min(1.0, centre + half), 4)]


def bootstrap(values: Tensor, per: Tensor | None = None) -> list[list[float]]:
    """95 % intervals over prompts of the mean of each row of values [n_rows, n_prompts]; with per
    [n_prompts], of mean(values) / mean(per), both over the same prompts. Percentiles of draws with
    repetition (Efron 1979), always the same ones. A single prompt gives no width.

    >>> bootstrap(torch.tensor([[1.0, 1.0, 3.0, 3.0]]), torch.tensor([2.0, 2.0, 6.0, 6.0]))
    [[0.5, 0.5]]
    """
    n = values.shape[1]
    counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), N_RESAMPLES).T
    total = values.detach().double().cpu().numpy() @ counts  # [n_rows, n_resamples]
    per_total = n if per is None else per.detach().double().cpu().numpy() @ counts
    return rounded(np.quantile(total / per_total, [0.025, 0.975], axis=1).T.tolist(), 5)
