"""Linear probes: where along the residual stream can a number be read off?

At a shown answer c the model must come to hold the difference d = c - f(x, y). A probe is a linear
map from the stream to a number, fitted by least squares with a small ridge, and scored on prompts
that it did not see: R² says how much of the number is linearly there.

A high R² does not say that the model uses the number, nor that it holds it as one thing: where c
and f(x, y) can both be read, so can their difference.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Generator, Tensor

from minifunc.analysis.activations import Examples, activations
from minifunc.model import Transformer
from minifunc.support.checks import alike, checked_positions, of_type
from minifunc.support.names import Found
from minifunc.support.tables import rounded

PENALTY = 1e-4  # of an input's mean variance: enough where inputs are dependent
PLACES = {"answer": 0, "equals": -1, "y": -2}  # where probes read, counted from the shown answer


Probe = Callable[[Tensor], Tensor]  # x [n, n_inputs] → y [n, n_targets] float64
Measure = Callable[[Tensor, Tensor], Tensor]  # (what was read, y) → one value for each target
Rows = Tensor | slice  # some of the prompts


def fit(x: Tensor, y: Tensor) -> Probe:
    """Ridge regression of y [n, n_targets] on x [n, n_inputs], in closed form."""
    x, y = x.double(), y.double()
    mean_x, mean_y = x.mean(0), y.mean(0)
    centred = x - mean_x
    gram = centred.T @ centred / len(x)  # [n_inputs, n_inputs]
    moment = centred.T @ (y - mean_y) / len(x)  # [n_inputs, n_targets]
    ridge = PENALTY * gram.diagonal().mean() + 1e-12
    weight = torch.linalg.solve(gram + ridge * gram.new_ones(len(gram)).diag(), moment)

    def probe(x: Tensor) -> Tensor:
        return (x.double() - mean_x) @ weight + mean_y

    return probe


def r2(read: Tensor, y: Tensor, over: tuple[int, ...] = (0,)) -> Tensor:
    """1 - residual / variance of y [n, n_targets]: [n_targets]. 0 is as good as the mean of y."""
    read, y = alike(read, y, "what was read"), y.double()
    residual, variance = (y - read).square().sum(over), (y - y.mean(0)).square().sum(over)
    return 1 - residual / variance.clamp(min=1e-12)


r2_together = partial(r2, over=(0, 1))  # of all targets at once, over the sum of their variances


def correlation(read: Tensor, y: Tensor) -> Tensor:
    """Of readings and y [n, n_targets]: [n_targets]. It forgives a wrong zero and a wrong scale."""
    read, y = alike(read, y, "what was read") - read.mean(0), y.double() - y.double().mean(0)
    return (read * y).sum(0) / (read.norm(dim=0) * y.norm(dim=0)).clamp(min=1e-12)


def one_hot(labels: Tensor) -> Tensor:
    """Whole numbers [...] → [..., max - min + 1] float64, one column per value.

    >>> one_hot(torch.tensor([4, 6]))
    tensor([[1., 0., 0.],
            [0., 0., 1.]], dtype=torch.float64)
    """
    return torch.nn.functional.one_hot(labels - labels.min()).double()


def sites(model: Transformer) -> dict[str, str]:
    """Hook points along the stream, by what wrote last before: embed, attn0, mlp0, attn1, …"""
    names = {"embed": "blocks.0.hook_resid_pre"}
    for layer in range(model.cfg.n_layers):
        names[f"attn{layer}"] = f"blocks.{layer}.hook_resid_mid"
        if model.cfg.has_mlp:
            names[f"mlp{layer}"] = f"blocks.{layer}.hook_resid_post"
    return names


def stream(model: Transformer, tokens: Tensor, positions: Tensor) -> dict[str, Tensor]:
    """By site, the stream at some positions of tokens [n, pos]: [n, *positions.shape, d_model]."""
    checked_positions(positions.flatten(), of_type(Tensor, "tokens", tokens).shape[1])
    return activations(model, tokens, list(sites(model).values()), lambda x: x[:, positions])


def held_out(x: Tensor, y: Tensor, train: Rows, test: Rows, measure: Measure = r2) -> Tensor:
    """How well y is read off x, both [n, m, …], in the prompts `test`; fitted on `train`."""
    x, y = x.cpu(), y.cpu()
    probe = fit(x[train].flatten(0, 1), y[train].flatten(0, 1))
    return measure(probe(x[test].flatten(0, 1)), y[test].flatten(0, 1))


def readable(
    streams: Mapping[str, Tensor], targets: Mapping[str, Tensor], *how: Any
) -> dict[str, list[float]]:
    """`held_out` of each target [n, m] from each site's stream [n, m, …]: {target: [by site]}."""
    y = torch.stack(list(targets.values()), dim=-1)  # [n, m, n_targets]
    by_site = torch.stack([held_out(x, y, *how) for x in streams.values()], dim=1)
    return rounded(dict(zip(targets, by_site.tolist())))


def halves(tokens: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Rows of tokens [n, pos] for training and for testing, drawn at random: two index tensors.
    Each prompt is in one of the two and once, however often it stands in `tokens`."""
    first: dict[tuple[int, ...], int] = {}  # the first row of each prompt
    for row, prompt in enumerate(of_type(Tensor, "tokens", tokens).tolist()):
        first.setdefault(tuple(prompt), row)
    order = torch.randperm(len(first), generator=generator, device="cpu")
    rows = torch.tensor([first[prompt] for prompt in sorted(first)], device="cpu")[order]
    return rows[: len(first) // 2], rows[len(first) // 2 :]


def largest_step(values: Sequence[float], names: Sequence[str]) -> tuple[str, float]:
    """The name at which a series rises most above the value before it, and by how much."""
    steps = {name: after - before for name, (before, after) in zip(names[1:], pairwise(values))}
    best = max(steps, key=steps.__getitem__)
    return best, round(steps[best], 4)


def targets_of(e: Examples) -> dict[str, Tensor]:
    """What probes are to read, each [n_prompts, n_shots]."""
    return {"difference": e.difference, "shown": e.shown, "expected": e.expected}


def read_at_places(model: Transformer, examples: Examples, generator: Generator) -> Found:
    """{place: {target: R² by site}, "from_shown_alone": R²} of prompts, fitted on half of them."""
    targets, d = targets_of(examples), examples.difference
    order = torch.randperm(d.numel(), generator=generator, device="cpu")
    targets["shuffled"] = d.flatten()[order].reshape(d.shape)
    rows = halves(examples.tokens, generator)
    found: Found = {}
    positions = torch.stack([examples.answers + offset for offset in PLACES.values()])
    streams = stream(model, examples.tokens, positions)  # each [n_prompts, place, n_shots, d_model]
    for index, place in enumerate(PLACES):
        found[place] = readable({site: x[:, index] for site, x in streams.items()}, targets, *rows)
    alone = readable({"shown": one_hot(examples.shown)}, targets, *rows)["difference"][0]
    return found | {"from_shown_alone": alone}


def probes(
    model: Transformer, consistent: Examples, others: Examples, generator: Generator
) -> Found:
    """R² of linear probes along the residual stream, on prompts that were not fitted.

    consistent: one k in a prompt; others: prompts of other functions. Both are also dealt anew, so
    that nothing but an example itself tells its difference. The result, kind consistent or dealt:
        sites                  what wrote last before each site
        [kind][place][target]  R² by site. Before c is shown, d can only come from earlier examples.
                               shuffled: the differences of other examples; R² must be about 0
        from_shown_alone       R² of one table over c for d, without any stream
        other_functions        probes fitted at the answers of `others`, scored on dealt prompts
        made_by, step          the writer at which R² of d rises most in dealt prompts, the rise
    """
    others, dealt = others.dealt(generator), consistent.dealt(generator)
    found: Found = {"sites": list(sites(model)), "n_prompts": len(dealt.tokens)}
    for kind, examples in {"consistent": consistent, "dealt": dealt}.items():
        found[kind] = read_at_places(model, examples, generator)
    streams = stream(model, torch.cat([others.tokens, dealt.tokens]), dealt.answers)
    numbers = targets_of(others)
    targets = {name: torch.cat([numbers[name], some]) for name, some in targets_of(dealt).items()}
    rows = slice(len(others.tokens)), slice(len(others.tokens), None)
    found["other_functions"] = {
        "r2": readable(streams, targets, *rows),
        "correlation": readable(streams, targets, *rows, correlation),
    }
    rise = found["dealt"]["answer"]["difference"]
    found["made_by"], found["step"] = largest_step(rise, found["sites"])
    return found
