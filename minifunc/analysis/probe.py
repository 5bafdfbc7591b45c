"""Where a number can be read off the residual stream: linear probes, in closed form, scored on prompts they did not see.

At a shown answer c the model must come to hold d = c - f(x, y). A probe is a linear map from the stream to a number,
fitted by least squares with a small ridge; R² on other prompts says how much of the number is linearly there. It does not say
that the model uses it, nor that it holds it as one thing: where c and f(x, y) can both be read, so can their difference.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from minifunc.model import Hooks, Transformer

Rows = tuple[
    Tensor, Tensor
]  # prompts [n, pos] int64 and what their examples should answer, [n, shots]
PENALTY = 1e-4  # of the mean variance of an input: enough where inputs are dependent, too little to matter elsewhere


@dataclass(frozen=True)
class Probe:
    """y ≈ (x - mean_x) @ weight + mean_y; float64."""

    weight: Tensor  # [n_inputs, n_targets]
    mean_x: Tensor
    mean_y: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return (x.double() - self.mean_x) @ self.weight + self.mean_y


def fit(x: Tensor, y: Tensor, penalty: float = PENALTY) -> Probe:
    """Ridge regression of y [n, n_targets] on x [n, n_inputs], in closed form."""
    x, y = x.double(), y.double()
    mean_x, mean_y = x.mean(0), y.mean(0)
    centred = x - mean_x
    gram = centred.T @ centred / len(x)
    ridge = torch.eye(len(gram), dtype=x.dtype, device=x.device) * (
        penalty * gram.diagonal().mean() + 1e-12
    )
    return Probe(
        torch.linalg.solve(gram + ridge, centred.T @ (y - mean_y) / len(x)), mean_x, mean_y
    )


def r2(probe: Probe, x: Tensor, y: Tensor) -> Tensor:
    """1 - residual / variance around the mean of y [n, n_targets]: [n_targets]. 1 is perfect; 0 is no better than the mean; it may be negative."""
    y = y.double()
    return 1 - (y - probe(x)).square().sum(0) / (y - y.mean(0)).square().sum(0).clamp(min=1e-12)


def correlation(probe: Probe, x: Tensor, y: Tensor) -> Tensor:
    """Correlation of a probe's readings with y [n, n_targets]: [n_targets]. Unlike R² it forgives a wrong zero and a wrong scale."""
    read, y = probe(x), y.double()
    read, y = read - read.mean(0), y - y.mean(0)
    return (read * y).sum(0) / (read.norm(dim=0) * y.norm(dim=0)).clamp(min=1e-12)


def one_hot(labels: Tensor, among: Tensor | None = None) -> Tensor:
    """Whole numbers [n] → [n, max - min + 1] float64, one column per value (of `among`).

    >>> one_hot(torch.tensor([4, 6]))
    tensor([[1., 0., 0.],
            [0., 0., 1.]], dtype=torch.float64)
    """
    among = labels if among is None else among
    return torch.nn.functional.one_hot(
        labels - among.min(), int(among.max() - among.min()) + 1
    ).double()


def sites(model: Transformer) -> list[str]:
    """The residual stream from the embedding to the end: before each block, and after each attention and MLP."""
    kinds = ["hook_resid_mid", "hook_resid_post"] if model.cfg.has_mlp else ["hook_resid_mid"]
    return [
        "blocks.0.hook_resid_pre",
        *(f"blocks.{layer}.{kind}" for layer in range(model.cfg.n_layers) for kind in kinds),
    ]


def writers(model: Transformer) -> list[str]:
    """What wrote last before each of `sites`: embed, attn0, mlp0, attn1, …"""
    return [
        "embed",
        *(("attn" if "mid" in name else "mlp") + name.split(".")[1] for name in sites(model)[1:]),
    ]


@torch.no_grad()
def stream(
    model: Transformer, tokens: Tensor, positions: Tensor, rows: int = 256
) -> dict[str, Tensor]:
    """The stream at some positions [m] of tokens [n, pos], by site: each [n, m, d_model]."""
    device, names = model.unembed.W_U.device, sites(model)
    found: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(x: Tensor, name: str) -> Tensor:
        found[name].append(x[:, positions.to(device)])
        return x

    for part in tokens.split(rows):
        model(part.to(device), None, Hooks(dict.fromkeys(names, keep)))
    return {name: torch.cat(parts) for name, parts in found.items()}


Measure = Callable[[Probe, Tensor, Tensor], Tensor]


def readable(
    train: Mapping[str, Tensor],
    train_targets: Mapping[str, Tensor],
    test: Mapping[str, Tensor],
    test_targets: Mapping[str, Tensor],
    measure: Measure = r2,
) -> dict[str, list[float]]:
    """How well each target is read on the test prompts, for probes fitted on the training prompts: {target: one value per site}.

    train, test: {site: [n, m, d_model]} as `stream` gives them; targets {name: [n, m]}, a number for each prompt and position. That no prompt
    is in both is the caller's to see to (`halves`). Raises ValueError for targets of another shape.
    """
    names, y = list(train_targets), []
    for streams, targets in ((train, train_targets), (test, test_targets)):
        x = next(iter(streams.values()))
        for name in names:
            if targets[name].shape != x.shape[:2]:
                raise ValueError(
                    f"target {name!r} must be {list(x.shape[:2])}, one number for each prompt and position, not {list(targets[name].shape)}"
                )
        y.append(torch.stack([targets[name].flatten() for name in names], dim=1).to(x.device))
    found = torch.stack(
        [
            measure(fit(train[site].flatten(0, 1), y[0]), test[site].flatten(0, 1), y[1])
            for site in train
        ]
    )  # [n_sites, n_targets]
    return {
        name: [round(value, 4) for value in column] for name, column in zip(names, found.T.tolist())
    }


def halves(tokens: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows of tokens [n, pos] for training and for testing, at random, each prompt in one of the two and once: two index tensors."""
    _, which = tokens.unique(dim=0, return_inverse=True)
    first = torch.full((int(which.max()) + 1,), len(tokens)).scatter_reduce_(
        0, which.cpu(), torch.arange(len(tokens)), "amin"
    )  # one row of each prompt
    shuffled = first[torch.randperm(len(first), generator=generator)]
    return shuffled[: len(first) // 2], shuffled[len(first) // 2 :]


def largest_step(values: Sequence[float], names: Sequence[str]) -> tuple[str, float]:
    """The name at which a series rises most above the value before it, and by how much. The first value has nothing before it."""
    steps = [after - before for before, after in pairwise(values)]
    best = max(range(len(steps)), key=steps.__getitem__)
    return names[best + 1], round(steps[best], 4)


def probes(
    model: Transformer,
    kinds: Mapping[str, Rows],
    others: Rows,
    answers: Tensor,
    zero: int,
    generator: torch.Generator,
) -> dict[str, Any]:
    """R² of linear probes along the residual stream, on prompts that were not fitted.

    difference = c - f(x, y), shown = c, expected = f(x, y), shuffled = the differences of other examples (must come to about 0), at
        answer          the shown answers
        equals, y       the `=` before them and the second operand: before c is shown, the difference can only come from earlier examples
    kinds: {"consistent": one k in a prompt, "dealt": the examples dealt anew, so nothing but the example itself tells its difference};
    others: dealt prompts of other functions. Each is tokens [n, pos] and the expected answers [n, shots] as numbers; number n is token zero + n.
    from_shown_alone: what one table over c achieves, no stream at all. other_functions: probes fitted at the answers of the other functions
    on numbers (dealt), scored on this one. made_by: what wrote into the stream where the difference's R² rises most, in dealt documents.
    """
    shots, places = len(answers), {"answer": 0, "equals": -1, "y": -2}
    where = torch.cat([answers + offset for offset in places.values()])
    found: dict[str, Any] = {
        "sites": writers(model),
        "n_prompts": len(kinds["dealt"][0]),
        **{kind: {} for kind in kinds},
    }

    def targets(rows: Tensor, plain: Tensor) -> dict[str, Tensor]:
        shown = rows[:, answers] - zero
        return {"difference": shown - plain, "shown": shown, "expected": plain}

    def part(
        streams: dict[str, Tensor], rows: Tensor | slice, index: int
    ) -> dict[str, Tensor]:  # at the index-th place alone
        return {site: x[rows, shots * index : shots * (index + 1)] for site, x in streams.items()}

    for kind, (rows, plain) in kinds.items():
        streams, numbers = stream(model, rows, where), targets(rows, plain)
        numbers["shuffled"] = (
            numbers["difference"]
            .flatten()[torch.randperm(plain.numel(), generator=generator)]
            .reshape(plain.shape)
        )
        train, test = halves(rows, generator)
        fitted, scored = (
            {name: values[half] for name, values in numbers.items()} for half in (train, test)
        )
        for index, place in enumerate(places):
            found[kind][place] = readable(
                part(streams, train, index), fitted, part(streams, test, index), scored
            )
        table, y = zip(
            *(
                (
                    one_hot(some["shown"].flatten(), numbers["shown"]),
                    some["difference"].flatten()[:, None],
                )
                for some in (fitted, scored)
            )
        )
        found[kind]["from_shown_alone"] = round(r2(fit(table[0], y[0]), table[1], y[1]).item(), 4)
    there, here = (
        stream(model, others[0], answers),
        part(streams, slice(None), 0),
    )  # here: the dealt documents of this task
    for name, measure in (("r2", r2), ("correlation", correlation)):
        found["other_functions"] = found.get("other_functions", {}) | {
            name: readable(there, targets(*others), here, targets(*kinds["dealt"]), measure)
        }
    found["made_by"], found["step"] = largest_step(
        found["dealt"]["answer"]["difference"], found["sites"]
    )
    return found
