"""Linear probes: where along the residual stream can a number be read off?

At a shown answer c the model must come to hold the difference d = c - f(x, y). A probe is a linear
map from the stream to a number, fitted by least squares with a small ridge, and scored on prompts
that it did not see: R² says how much of the number is linearly there.

    stream at one site     [n_prompts, n_positions, d_model]    a row of x for each position
    c, f(x, y), d          [n_prompts, n_positions]             a column of y for each target
    fitted on half of the prompts, scored on the other half     {target: one R² for each site}

A high R² does not say that the model uses the number, nor that it holds it as one thing: where c
and f(x, y) can both be read, so can their difference.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from minifunc.analysis.activations import Examples, activations
from minifunc.model import Transformer
from minifunc.support.tables import rounded

PENALTY = 1e-4  # of an input's mean variance: enough where inputs are dependent
PLACES = {"answer": 0, "equals": -1, "y": -2}  # where probes read, counted from the shown answer


@dataclass(frozen=True)
class Probe:
    """y ≈ (x - mean_x) @ weight + mean_y; float64."""

    weight: Tensor  # [n_inputs, n_targets]
    mean_x: Tensor  # [n_inputs]
    mean_y: Tensor  # [n_targets]

    def __call__(self, x: Tensor) -> Tensor:
        return (x.double() - self.mean_x) @ self.weight + self.mean_y


Measure = Callable[[Probe, Tensor, Tensor], Tensor]  # (probe, x, y) → one value for each target
Data = tuple[Mapping[str, Tensor], Mapping[str, Tensor]]  # the stream by site, numbers by target


def fit(x: Tensor, y: Tensor) -> Probe:
    """Ridge regression of y [n, n_targets] on x [n, n_inputs], in closed form."""
    x, y = x.double(), y.double()
    mean_x, mean_y = x.mean(0), y.mean(0)
    centred = x - mean_x
    gram = centred.T @ centred / len(x)  # [n_inputs, n_inputs]
    moment = centred.T @ (y - mean_y) / len(x)  # [n_inputs, n_targets]
    ridge = PENALTY * gram.diagonal().mean() + 1e-12
    identity = torch.eye(len(gram), dtype=x.dtype, device=x.device)
    return Probe(torch.linalg.solve(gram + identity * ridge, moment), mean_x, mean_y)


def r2(probe: Probe, x: Tensor, y: Tensor) -> Tensor:
    """1 - residual / variance of y [n, n_targets]: [n_targets]. 0 is as good as the mean of y."""
    y = y.double()
    residual, variance = (y - probe(x)).square().sum(0), (y - y.mean(0)).square().sum(0)
    return 1 - residual / variance.clamp(min=1e-12)


def r2_together(probe: Probe, x: Tensor, y: Tensor) -> Tensor:
    """The same of all targets at once, over the sum of their variances: []."""
    y = y.double()
    residual, variance = (y - probe(x)).square().sum(), (y - y.mean(0)).square().sum()
    return 1 - residual / variance.clamp(min=1e-12)


def correlation(probe: Probe, x: Tensor, y: Tensor) -> Tensor:
    """Of readings and y [n, n_targets]: [n_targets]. It forgives a wrong zero and a wrong scale."""
    read, y = probe(x), y.double()
    read, y = read - read.mean(0), y - y.mean(0)
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
    where = positions.to(model.device)
    return activations(model, tokens, list(sites(model).values()), lambda x: x[:, where])


def readable(fitted: Data, scored: Data, measure: Measure = r2) -> dict[str, list[float]]:
    """How well probes fitted on some prompts read each target on others: {target: value by site}.

    Streams [n, m, d_model], targets [n, m]. No prompt should be in both (`halves`).
    """
    y, other_y = (
        torch.stack([numbers.flatten() for numbers in targets.values()], dim=1)  # [n * m, target]
        for _, targets in (fitted, scored)
    )
    values = []
    for site, x in fitted[0].items():
        probe = fit(x.flatten(0, 1), y)
        values.append(measure(probe, scored[0][site].flatten(0, 1), other_y))  # [target]
    return rounded(dict(zip(fitted[1], torch.stack(values, dim=1).tolist())))


def halves(tokens: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows of tokens [n, pos] for training and for testing, drawn at random: two index tensors.

    Each prompt is in one of the two and once, however often it stands in `tokens`.
    """
    first: dict[tuple[int, ...], int] = {}  # the first row of each prompt
    for row, prompt in enumerate(tokens.tolist()):
        first.setdefault(tuple(prompt), row)
    rows = torch.tensor([first[prompt] for prompt in sorted(first)])
    shuffled = rows[torch.randperm(len(rows), generator=generator)]
    half = len(first) // 2
    return shuffled[:half], shuffled[half:]


def largest_step(values: Sequence[float], names: Sequence[str]) -> tuple[str, float]:
    """The name at which a series rises most above the value before it, and by how much."""
    steps = [after - before for before, after in pairwise(values)]
    best = max(range(len(steps)), key=steps.__getitem__)
    return names[best + 1], round(steps[best], 4)


def targets_of(examples: Examples) -> dict[str, Tensor]:
    """What probes are to read, each [n_prompts, n_shots]."""
    e = examples
    return {"difference": e.difference, "shown": e.shown, "expected": e.expected}


def read_at_places(
    model: Transformer, examples: Examples, generator: torch.Generator
) -> dict[str, Any]:
    """{place: {target: R² by site}, "from_shown_alone": R²} of prompts, fitted on half of them."""
    targets, d = targets_of(examples), examples.difference
    order = torch.randperm(d.numel(), generator=generator)
    targets["shuffled"] = d.flatten()[order].reshape(d.shape)
    train, test = halves(examples.tokens, generator)

    def part(streams: Mapping[str, Tensor], rows: Tensor) -> Data:
        x = {site: some[rows] for site, some in streams.items()}
        return x, {name: some[rows] for name, some in targets.items()}

    def read(streams: Mapping[str, Tensor]) -> dict[str, list[float]]:
        return readable(part(streams, train), part(streams, test))

    positions = torch.stack([examples.answers + offset for offset in PLACES.values()])
    streams = stream(model, examples.tokens, positions)  # each [n_prompts, place, n_shots, d_model]
    found: dict[str, Any] = {}
    for index, place in enumerate(PLACES):
        found[place] = read({site: x[:, index] for site, x in streams.items()})
    alone = read({"shown": one_hot(examples.shown)})["difference"][0]
    return found | {"from_shown_alone": alone}


def probes(
    model: Transformer, kinds: Mapping[str, Examples], others: Examples, generator: torch.Generator
) -> dict[str, Any]:
    """R² of linear probes along the residual stream, on prompts that were not fitted.

    kinds: {"consistent": one k in a prompt, "dealt": the examples dealt anew, so that nothing but
    the example itself tells its difference}; others: dealt prompts of other functions. The result:
        sites                  what wrote last before each site
        [kind][place][target]  R² by site at the shown answers, the `=` before them and the second
                               operand. Before c is shown, d can only come from earlier examples.
                               shuffled: the differences of other examples; R² must be about 0
        from_shown_alone       R² of one table over c for d, without any stream
        other_functions        probes fitted at the answers of `others`, scored on dealt prompts
        made_by, step          the writer at which R² of d rises most in dealt prompts, the rise
    """
    kinds = {kind: examples.to(model.device) for kind, examples in kinds.items()}
    dealt, others = kinds["dealt"], others.to(model.device)
    found: dict[str, Any] = {"sites": list(sites(model)), "n_prompts": len(dealt.tokens)}
    for kind, examples in kinds.items():
        found[kind] = read_at_places(model, examples, generator)
    fitted, scored = (
        (stream(model, some.tokens, some.answers), targets_of(some)) for some in (others, dealt)
    )
    found["other_functions"] = {
        "r2": readable(fitted, scored),
        "correlation": readable(fitted, scored, correlation),
    }
    rise = found["dealt"]["answer"]["difference"]
    found["made_by"], found["step"] = largest_step(rise, found["sites"])
    return found
