"""Effects and ablations as rows of circuit.json, rounded; and back."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minifunc.ablation import Ablator, CircuitScores
from minifunc.circuit import Discovery
from minifunc.patching import Effects, Logits, PathPatcher
from minifunc.support.evaluation import accuracy, bootstrap, wilson
from minifunc.support.names import Found, Heads
from minifunc.support.tables import rounded

# What circuit.json holds where there are no function-induction heads.
NOTHING_FOUND = {"evaluation": {"ablation": []}, "reuse": []}


@dataclass(frozen=True)
class Prompts:
    """Prompts on which heads can be replaced, with their base and contrast answers."""

    ablator: Ablator
    answers: tuple[Tensor, Tensor]  # of base and contrast prompts, [n_prompts] int64 each

    def scores(self, how: str) -> CircuitScores:
        return CircuitScores(self.ablator, how, *self.answers)


def as_lists(effects: Effects) -> dict[str, Any]:
    """r values as they stand in circuit.json."""
    lists = {name: getattr(effects, name).tolist() for name in ("heads", "mlps", "embedding")}
    return rounded(lists, 6)


def as_effects(lists: dict[str, Any]) -> Effects:
    """r values from circuit.json; the values of single prompts are not kept there."""
    r = [np.array(lists[name]) for name in ("heads", "mlps", "embedding")]
    return Effects(*map(torch.from_numpy, r))


def direct(patchers: Mapping[str, PathPatcher]) -> dict[str, Any]:
    """F under each contrast, and heads → logits under the first. F_ci, r_ci: 95 % intervals over
    prompts; r_ci of every sender on the logits."""
    F, F_ci = {}, {}
    for changed, each in patchers.items():
        ends = {"base": each.F_base, "contrast": each.F_contrast}
        F[changed] = rounded({name: ours.mean().item() for name, ours in ends.items()}, 5)
        F_ci[changed] = dict(zip(ends, bootstrap(torch.stack(list(ends.values())))))
    patcher = patchers["answers"]
    exact = patcher.sweep(Logits())
    r_ci = bootstrap(exact.per_prompt, patcher.F_contrast - patcher.F_base)
    return {
        "F": F["answers"],
        "F_ci": F_ci["answers"],
        "r_ci": dict(zip(patcher.senders, r_ci)),
        "contrast": "answers",
        "effects": {"logits": as_lists(exact)},
        "operands_changed": {"F": F["operands"], "F_ci": F_ci["operands"]},
    }


def discovered(found: Discovery, circuit: Mapping[str, Any]) -> dict[str, Any]:
    """What `discover` found; circuit: what `direct` gave."""
    effects: dict[str, dict[str, Any]] = {}
    for changed, each in found.effects.items():
        effects[changed] = {receiver: as_lists(effect) for receiver, effect in each.items()}
    return {
        "effects": effects["answers"],
        "operands_changed": circuit["operands_changed"] | {"effects": effects["operands"]},
        "groups": found.groups,
        "routes": rounded(found.routes, 6),
        "attention": found.attention,
    }


def answered(logits: Tensor, answers: Iterable[Tensor]) -> dict[str, float]:
    """Shares of base and of contrast answers, given logits [n_prompts, d_vocab]."""
    base, contrast = (accuracy(logits, wanted) for wanted in answers)
    return {"base_acc": base, "contrast_acc": contrast}


def ablation_row(prompts: Prompts, label: str, heads: Heads, how: str) -> Found:
    """One group replaced; `ci` is the 95 % interval of the contrast share, over prompts, `base_ci`
    that of the base share."""
    shares = answered(prompts.ablator.logits([heads], how)[0], prompts.answers)
    row = {"ablated": label, "heads": list(heads), "how": how, **rounded(shares), "n_draws": 1}
    n = prompts.ablator.n_prompts
    ci, base_ci = (wilson(shares[name], n) for name in ("contrast_acc", "base_acc"))
    return row | {"ci": ci, "base_ci": base_ci, "n_prompts": n}


def control_row(prompts: Prompts, label: str, draws: Sequence[Heads], how: str) -> Found:
    """Many drawn groups as one row: mean shares, and sd, `ci` and the worst of the contrast share.
    `ci` goes from 2.5 % to 97.5 % of the draws (of a single group: over prompts). A group that was
    drawn several times is run once and counted as often as it was drawn."""
    groups = list(dict.fromkeys(map(tuple, draws)))
    all_logits = prompts.ablator.logits(groups, how)
    n = prompts.ablator.n_prompts
    shares = {heads: answered(each, prompts.answers) for heads, each in zip(groups, all_logits)}
    base = [shares[tuple(heads)]["base_acc"] for heads in draws]
    contrast = [shares[tuple(heads)]["contrast_acc"] for heads in draws]
    over_draws = np.quantile(contrast, [0.025, 0.975]).tolist()
    worst = min(groups, key=lambda heads: shares[heads]["contrast_acc"])
    row = {
        "ablated": label,
        "heads": [],
        "how": how,
        "base_acc": fmean(base),
        "contrast_acc": fmean(contrast),
        "n_draws": len(draws),
        "ci": over_draws if len(groups) > 1 else wilson(contrast[0], n),
        "n_prompts": n,
        "n_groups": len(groups),
        "n_heads": round(fmean(map(len, draws)), 2),
        "sd": pstdev(contrast),
        "worst": {"heads": list(worst), "contrast_acc": shares[worst]["contrast_acc"]},
    }
    return rounded(row)
