"""Groups of heads taken out, each beside random groups: the rows of `evaluation.ablation`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from minifunc.ablation import Ablator, random_group, random_group_anywhere
from minifunc.analysis.rows import Answers, ablation_row, control_row

FEW_GROUPS = 5  # so many random groups are run on all prompts; more of them on fewer prompts
HOWS = {  # what is put in place of a group's heads
    "function_induction": ("base", "mean", "unrelated", "same_k", "same_answer"),
    "expected_answer": ("operands_changed",),
}


@dataclass(frozen=True)
class Prompts:
    """Contrast prompts on which heads are taken out, and the base prompts beside them.

    counted: contrast prompts. plain: the same prompts' base versions, with the same sources. fewer:
    some of the contrast prompts, for many random groups. Answers [n_prompts] int64 of each.
    """

    counted: Ablator
    plain: Ablator
    answers: Answers
    fewer: Ablator
    fewer_answers: Answers


def group_ablations(
    prompts: Prompts,
    groups: Mapping[str, Sequence[str]],
    roles: Mapping[str, Mapping[str, Any]],
    n_draws: int,
    generator: torch.Generator,
) -> list[dict[str, Any]]:
    """The groups of HOWS, each with as many random heads beside it, and the readers of `roles`."""
    rows: list[dict[str, Any]] = []
    counted, answers = prompts.counted, prompts.answers
    for label, hows in HOWS.items():
        heads = list(groups[label])
        if not heads:
            continue
        for how in hows:
            row = ablation_row(counted, answers, label, heads, how)
            # How often, without these heads, prompts get the answer off by k that never show it.
            floor = ablation_row(prompts.plain, answers, label, heads, how)
            rows.append(row | {"floor": floor["contrast_acc"]})
        rows += controls(prompts, label, heads, n_draws, generator)
    for kind in ("operand_reader", "previous_token"):
        heads = [head for head, role in roles.items() if role["kind"] == kind]
        for how in ("base", "operands_changed") if heads else ():
            rows.append(ablation_row(counted, answers, f"{kind}s", heads, how))
    return rows


def controls(
    prompts: Prompts, label: str, heads: Sequence[str], n_draws: int, generator: torch.Generator
) -> list[dict[str, Any]]:
    """Random groups beside the group `label`: of the same layers, and of any layer."""
    cfg = prompts.counted.cfg
    drawn = {
        "random_same_layers": [random_group(heads, cfg.n_heads, generator) for _ in range(n_draws)],
        "random_any_layer": [random_group_anywhere(heads, cfg, generator) for _ in range(n_draws)],
    }
    rows = []
    for kind, groups in drawn.items():
        ablator, answers = prompts.fewer, prompts.fewer_answers
        if len(set(map(tuple, groups))) <= FEW_GROUPS:
            ablator, answers = prompts.counted, prompts.answers
        for how in HOWS[label]:
            rows.append(control_row(ablator, answers, kind, groups, how) | {"beside": label})
    return rows
