"""Effects and ablations as rows of circuit.json, rounded; and back."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minifunc.ablation import Ablator, CircuitScores
from minifunc.analysis.attribution import attribute, rank_correlation
from minifunc.circuit import Discovery
from minifunc.model import ModelConfig
from minifunc.patching import Effects, Logits, PathPatcher
from minifunc.support.evaluation import accuracy, wilson

Answers = tuple[Tensor, Tensor]  # of base and contrast prompts, [n_prompts] int64 each


@dataclass(frozen=True)
class Prompts:
    """Prompts on which heads can be replaced, with their base and contrast answers."""

    ablator: Ablator
    answers: Answers

    @property
    def cfg(self) -> ModelConfig:
        return self.ablator.cfg

    def scores(self, how: str) -> CircuitScores:
        return CircuitScores(self.ablator, how, *self.answers)


# ---------------------------------------------------------------- effects


def as_lists(effects: Effects) -> dict[str, Any]:
    """r values as they stand in circuit.json."""
    return {
        "heads": [[round(r, 5) for r in row] for row in effects.heads.tolist()],
        "mlps": [round(r, 5) for r in effects.mlps.tolist()],
        "embedding": round(effects.embedding.item(), 5),
    }


def as_effects(lists: dict[str, Any]) -> Effects:
    """r values from circuit.json; the values of single prompts are not kept there."""
    heads, mlps, embedding = (torch.tensor(lists[name]) for name in ("heads", "mlps", "embedding"))
    return Effects(heads, mlps, embedding, torch.empty(0), torch.empty(0))


def direct(patchers: Mapping[str, PathPatcher]) -> dict[str, Any]:
    """F under each contrast, heads → logits under the first, and the linear estimate of that."""
    F = {}
    for contrast, patcher in patchers.items():
        ends = {"base": patcher.F_base, "contrast": patcher.F_contrast}
        F[contrast] = {name: round(each.mean().item(), 5) for name, each in ends.items()}
    exact, linear = patchers["answers"].sweep(Logits()), attribute(patchers["answers"])
    correlation = round(rank_correlation(linear.heads, exact.heads), 4)
    return {
        "F": F["answers"],
        "contrast": "answers",
        "effects": {"logits": as_lists(exact)},
        "operands_changed": {"F": F["operands"]},
        "attribution": as_lists(linear) | {"rank_correlation": correlation},
    }


def discovered(found: Discovery, circuit: Mapping[str, Any]) -> dict[str, Any]:
    """What `discover` found; circuit: what `direct` gave."""
    effects: dict[str, dict[str, Any]] = {}
    for contrast, each in found.effects.items():
        effects[contrast] = {receiver: as_lists(effect) for receiver, effect in each.items()}
    routes = {}
    for group, route in found.routes.items():
        routes[group] = {node: round(r, 5) for node, r in route.items()}
    return {
        "effects": effects["answers"],
        "operands_changed": circuit["operands_changed"] | {"effects": effects["operands"]},
        "groups": found.groups,
        "routes": routes,
        "graph": found.graph,
        "attention": found.attention,
    }


# ---------------------------------------------------------------- ablations


def ablation_row(
    ablator: Ablator, answers: Answers, label: str, heads: Sequence[str], how: str
) -> dict[str, Any]:
    """One group replaced: the shares of base and of contrast answers.

    `ci` is the 95 % interval of the second share, over prompts.
    """
    logits = ablator.logits([heads], how)[0]
    base, contrast = (accuracy(logits, wanted) for wanted in answers)
    return {
        "ablated": label,
        "heads": list(heads),
        "how": how,
        "base_acc": round(base, 4),
        "contrast_acc": round(contrast, 4),
        "n_draws": 1,
        "ci": wilson(contrast, len(logits)),
        "n_prompts": len(logits),
    }


def control_row(
    ablator: Ablator, answers: Answers, label: str, draws: Sequence[Sequence[str]], how: str
) -> dict[str, Any]:
    """Many drawn groups as one row: mean shares, and sd, `ci` and the worst of the contrast share.

    `ci` goes from 2.5 % to 97.5 % of the draws (of a single group: over prompts). A group that was
    drawn several times is run once and counted as often as it was drawn.
    """
    counts = Counter(tuple(heads) for heads in draws)
    times = torch.tensor(list(counts.values()))
    logits = ablator.logits(list(counts), how)
    base, contrast = (
        torch.tensor([accuracy(one, wanted) for one in logits], dtype=torch.float64)
        for wanted in answers
    )
    over_draws = contrast.repeat_interleave(times)
    ends = wilson(contrast[0].item(), ablator.n_prompts)
    if len(counts) > 1:
        ends = over_draws.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    worst = int(contrast.argmin())
    return {
        "ablated": label,
        "heads": [],
        "how": how,
        "base_acc": round((base @ times.double() / times.sum()).item(), 4),
        "contrast_acc": round(over_draws.mean().item(), 4),
        "n_draws": len(draws),
        "ci": [round(end, 4) for end in ends],
        "n_prompts": ablator.n_prompts,
        "n_groups": len(counts),
        "n_heads": round(sum(map(len, draws)) / len(draws), 2),
        "sd": round(over_draws.std(correction=0).item(), 4),
        "worst": {
            "heads": list(list(counts)[worst]),
            "contrast_acc": round(contrast[worst].item(), 4),
        },
    }
