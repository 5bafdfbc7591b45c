"""Groups of heads taken out, random groups beside them: what `ablation` holds."""

import torch
from torch import Generator

from minifunc.ablation import all_heads
from minifunc.analysis.rows import Prompts, ablation_row, control_row
from minifunc.model import ModelConfig
from minifunc.support.checks import checked_heads, of_type
from minifunc.support.names import Found, Groups, Heads, heads_of, parse

FEW_GROUPS = 5  # so many different random groups are run on all prompts, more of them on fewer
HOWS = {  # by group: what is put in place of its heads
    "function_induction": ("base", "mean", "unrelated", "same_k", "same_answer"),
    "expected_answer": ("operands_changed",),
}


def random_group(heads: Heads, n_heads: int, generator: Generator, avoid: bool = True) -> list[str]:
    """As many heads from each layer as `heads` has there, drawn from that layer's other heads.

    All of those, where they are fewer. Without `avoid` the heads themselves may be drawn too.

    >>> random_group(["3.1", "3.2", "3.3", "3.4"], 6, torch.Generator())  # layer 3 has no others
    ['3.0', '3.5']
    """
    places, avoid = [parse(head) for head in heads], of_type(bool, "avoid", avoid)
    if any(head >= n_heads for _, head in places):
        raise ValueError(f"heads must be below {n_heads} in their layers, not {list(heads)!s:.60}")
    group = []
    for layer in sorted({layer for layer, _ in places}):
        inside = [head for block, head in places if block == layer]
        others = [head for head in range(n_heads) if not (avoid and head in inside)]
        drawn = torch.randperm(len(others), generator=generator, device="cpu")[: len(inside)]
        group += [f"{layer}.{others[index]}" for index in sorted(drawn.tolist())]
    return group


def random_group_anywhere(heads: Heads, cfg: ModelConfig, generator: Generator) -> list[str]:
    """As many heads as `heads` has, drawn from all others of any layer (all, where fewer)."""
    mine = checked_heads(heads, all_heads(cfg))
    others = [head for head in all_heads(cfg) if head not in mine]
    drawn = torch.randperm(len(others), generator=generator, device="cpu")[: len(heads)]
    return heads_of(others[index] for index in drawn.tolist())


def group_ablations(
    prompts: tuple[Prompts, Prompts, Prompts], groups: Groups, draws: tuple[int, Generator]
) -> list[Found]:
    """Rows of `evaluation.ablation`: the groups of HOWS, controls beside them.
    prompts: contrast prompts, their base prompts, and fewer contrast prompts, for many random
    groups. draws: how many random groups of each kind, and what draws them."""
    contrast, base, fewer = prompts
    n, generator = draws
    rows = []
    for label, hows in HOWS.items():
        heads = groups[label]
        if not heads:
            continue
        for how in hows:
            # How often, without these heads, a prompt gets the answer off by k that never shows it.
            floor = ablation_row(base, label, heads, how)["contrast_acc"]
            rows.append(ablation_row(contrast, label, heads, how) | {"floor": floor})
        cfg = contrast.ablator.cfg
        drawn = {
            "random_same_layers": [random_group(heads, cfg.n_heads, generator) for _ in range(n)],
            "random_any_layer": [random_group_anywhere(heads, cfg, generator) for _ in range(n)],
        }
        for kind, some in drawn.items():
            on = contrast if len(set(map(tuple, some))) <= FEW_GROUPS else fewer
            rows += [control_row(on, kind, some, how) | {"beside": label} for how in hows]
    return rows
