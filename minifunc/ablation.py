"""What a model answers when some heads send something else than they would.

This is ablation, not path patching: everything above a replaced head is live. What is put in decides what comes out
as much as what is taken away: a base run's values carry the base answer along. So a claim needs several
replacements, and the same done to as many other heads.

Many groups of heads are tried on the same prompts, so the two things that they share are computed once: the run as
it is, from which each group's run starts at its lowest replaced layer, and what the heads send on the source prompts.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minifunc.circuit import heads_of, parse
from minifunc.model import Hooks, ModelConfig, Transformer
from minifunc.support.evaluation import ROWS, accuracy


@dataclass
class _Part:
    """The cached runs of some of the prompts; p = prompts in this part."""

    resid: list[
        Tensor
    ]  # n_layers + 1 of [p, pos, d_model]: what enters each block, and the final norm
    z: dict[str, list[Tensor]]  # by source, n_layers of [p (or 1, for a mean), pos, head, d_head]


class Ablator:
    """A model on some prompts, ready to be run with the z of any heads replaced.

    tokens [n_prompts, pos] int64, answered at the last position. sources: by name, tokens [n_prompts, pos] of the
    prompts whose z are put in, row by row. means: by name, tokens [any number, pos]; their mean z, position by
    position, is put in. Keeps n_layers * (d_model + n_sources * n_heads * d_head) numbers for each token in memory.
    Raises ValueError where a source does not have the prompts' shape.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: Transformer,
        tokens: Tensor,
        sources: Mapping[str, Tensor],
        means: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.model, self.cfg, self.n_prompts = model, model.cfg, len(tokens)
        device = model.unembed.W_U.device
        for name, source in sources.items():
            if source.shape != tokens.shape:
                raise ValueError(
                    f"the source {name!r} must be tokens of shape {list(tokens.shape)} like the prompts, not {list(source.shape)}"
                )
        self.everywhere = torch.arange(tokens.shape[1], device=device)
        self.rows = (
            ROWS // 4 if device.type == "cpu" else ROWS
        )  # in one pass; fewer stay near a processor's caches
        self._resid = [f"blocks.{layer}.hook_resid_pre" for layer in range(self.cfg.n_layers)] + [
            f"blocks.{self.cfg.n_layers - 1}.hook_resid_post"
        ]
        self._z = [f"blocks.{layer}.attn.hook_z" for layer in range(self.cfg.n_layers)]
        mean_z = {name: self._mean(source) for name, source in (means or {}).items()}
        self._parts = []
        for start in range(0, len(tokens), self.rows):
            rows = slice(start, start + self.rows)
            resid = self._run(tokens[rows], self._resid)
            self._parts.append(
                _Part(
                    resid,
                    {name: self._run(source[rows], self._z) for name, source in sources.items()}
                    | mean_z,
                )
            )

    def _run(self, tokens: Tensor, names: list[str]) -> list[Tensor]:
        _, cache = self.model.run_with_cache(tokens.to(self.everywhere.device), names)
        return [cache[name] for name in names]

    def _mean(self, tokens: Tensor) -> list[Tensor]:
        """Mean z over prompts, n_layers of [1, pos, head, d_head]."""
        sums = [
            [z.sum(0, keepdim=True) for z in self._run(rows, self._z)]
            for rows in tokens.split(self.rows)
        ]
        return [sum(layer) / len(tokens) for layer in zip(*sums)]

    @torch.no_grad()
    def logits(
        self, groups: Sequence[Iterable[str]], how: str, positions: Sequence[int] | None = None
    ) -> Tensor:
        """Logits at the last position, [n_groups, n_prompts, d_vocab], when all heads of a group send what source `how` says.

        positions: where they do (default: at every position); elsewhere they send what they make of what they read.
        """
        masks = torch.zeros(len(groups), self.cfg.n_layers, self.cfg.n_heads, dtype=torch.bool)
        for index, group in enumerate(groups):
            for layer, head in map(parse, group):
                masks[index, layer, head] = True
        there = torch.zeros(len(self.everywhere), dtype=torch.bool)
        there[list(range(len(there)) if positions is None else positions)] = True
        there = there.to(self.everywhere.device)[:, None, None]  # [pos, 1, 1]
        lowest = [
            int(mask.any(1).float().argmax()) if mask.any() else self.cfg.n_layers for mask in masks
        ]
        result = self._parts[0].resid[0].new_empty(len(groups), self.n_prompts, self.cfg.d_vocab)
        for layer in sorted(set(lowest)):
            alike = torch.tensor([index for index, start in enumerate(lowest) if start == layer])
            for number, part in enumerate(self._parts):
                n_rows = len(part.resid[0])
                for some in alike.split(max(1, self.rows // n_rows)):
                    result[some, number * self.rows : number * self.rows + n_rows] = self._continue(
                        part, layer, masks[some], how, there
                    )
        return result

    def _continue(self, part: _Part, layer: int, masks: Tensor, how: str, there: Tensor) -> Tensor:
        """Runs the groups `masks` [group, layer, head] on one part, from block `layer` up: [group, p, d_vocab]."""
        n_groups = len(masks)
        on_device = masks.to(there.device)

        def replace(
            z: Tensor, name: str
        ) -> (
            Tensor
        ):  # [group * p, query, head, d_head]; the last block shows its last position alone
            at = int(name.split(".")[1])
            put = on_device[:, at, None, None, :, None] & there[-z.shape[1] :]
            return torch.where(
                put, part.z[how][at][:, -z.shape[1] :], z.unflatten(0, (n_groups, -1))
            ).flatten(0, 1)

        hooks = Hooks({name: replace for at, name in enumerate(self._z) if masks[:, at].any()})
        resid = part.resid[layer].expand(n_groups, -1, -1, -1).flatten(0, 1)
        return self.model.run_from(resid, layer, self.everywhere[-1:], hooks)[:, -1].unflatten(
            0, (n_groups, -1)
        )


def all_heads(cfg: ModelConfig) -> list[str]:
    return [f"{layer}.{head}" for layer in range(cfg.n_layers) for head in range(cfg.n_heads)]


# ---------------------------------------------------------------- rows for circuit.json


def wilson(share: float, n: int) -> list[float]:
    """95 % interval of a share seen in n trials (Wilson 1927).

    >>> wilson(1.0, 100)
    [0.963, 1.0]
    """
    z = 1.96
    centre, half = (
        (share + z * z / (2 * n)) / (1 + z * z / n),
        z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)),
    )
    return [round(max(0.0, centre - half), 4), round(min(1.0, centre + half), 4)]


def ablation_row(
    ablator: Ablator, answers: tuple[Tensor, Tensor], label: str, heads: Sequence[str], how: str
) -> dict[str, Any]:
    """One group: shares of base and contrast answers [n_prompts] given; `ci` is the second share's 95 % interval over prompts."""
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
    ablator: Ablator,
    answers: tuple[Tensor, Tensor],
    label: str,
    draws: Sequence[Sequence[str]],
    how: str,
) -> dict[str, Any]:
    """Many drawn groups as one row: means over draws, sd and `ci` (2.5 % to 97.5 %; of a single group: over prompts) of the contrast share over draws, the worst group.

    A group that was drawn several times is run once and counted as often as it was drawn.
    """
    counts = Counter(tuple(heads) for heads in draws)
    logits = ablator.logits(list(counts), how)
    times = torch.tensor(list(counts.values()))
    base, contrast = (
        torch.tensor([accuracy(one, wanted) for one in logits], dtype=torch.float64)
        for wanted in answers
    )
    over_draws = contrast.repeat_interleave(times)
    ends = (
        over_draws.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        if len(counts) > 1
        else wilson(contrast.item(), ablator.n_prompts)
    )
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


def random_group_anywhere(
    heads: Sequence[str], n_layers: int, n_heads: int, generator: torch.Generator
) -> list[str]:
    """As many heads as `heads` has, drawn from all others, whatever their layer (all of those, where they are fewer)."""
    outside = [
        f"{layer}.{head}"
        for layer in range(n_layers)
        for head in range(n_heads)
        if f"{layer}.{head}" not in heads
    ]
    drawn = torch.randperm(len(outside), generator=generator)[: len(heads)]
    return heads_of(outside[index] for index in drawn.tolist())


def random_group(
    heads: Sequence[str], n_heads: int, generator: torch.Generator, avoid: bool = True
) -> list[str]:
    """As many heads from each layer as `heads` has there, drawn from that layer's other heads (all of those, where they
    are fewer), or from all of its heads if the group need not be avoided.

    >>> random_group(["3.1", "3.2", "3.3", "3.4"], n_heads=6, generator=torch.Generator())  # layer 3 has no others
    ['3.0', '3.5']
    """
    group = []
    for layer in sorted({parse(head)[0] for head in heads}):
        inside = [parse(head)[1] for head in heads if parse(head)[0] == layer]
        outside = [head for head in range(n_heads) if not avoid or head not in inside]
        drawn = torch.randperm(len(outside), generator=generator)[: len(inside)]
        group += [f"{layer}.{outside[index]}" for index in sorted(drawn.tolist())]
    return group
