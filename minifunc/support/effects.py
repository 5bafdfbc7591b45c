"""The senders of path patching, in the order in which they write, and their effects by name."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from minifunc.model import ModelConfig
from minifunc.support.checks import of_type

NOTHING = torch.empty(0, dtype=torch.float64, device="cpu")
Row = tuple[int, ...]  # who sends together, as places in `Senders.names`, ascending


@dataclass(frozen=True)
class Effects:
    """r of every sender on one receiver, float64 on the CPU; -1: fully back to base, 0: nothing.

    heads [n_layers, n_heads], mlps [n_layers] (zeros in an attention-only model), embedding []; NaN
    where a sender was not asked for. per_prompt [n_senders, n_prompts]: F_patched - F_contrast in
    logits, and r [n_senders]: in the order of the senders asked for (`PathPatcher.senders`). A
    sender at or above its receiver has no path to it: its effect is exactly 0.
    """

    heads: Tensor
    mlps: Tensor
    embedding: Tensor
    per_prompt: Tensor = field(default=NOTHING, repr=False)
    r: Tensor = field(default=NOTHING, repr=False)

    def named(self, strongest_first: bool = False) -> dict[str, float]:
        """r by name: {"embedding": …, "0.0": …, "0.1": …, "mlp0": …, "1.0": …}, from below up; or
        the strongest first, without the senders that were not asked for."""
        effects = {"embedding": self.embedding.item()}
        for layer, row in enumerate(self.heads.tolist()):
            effects |= {f"{layer}.{head}": r for head, r in enumerate(row)}
            effects[f"mlp{layer}"] = self.mlps[layer].item()
        if not of_type(bool, "strongest_first", strongest_first):
            return effects
        known = {name: r for name, r in effects.items() if not math.isnan(r)}
        return dict(sorted(known.items(), key=lambda item: -abs(item[1])))

    def __str__(self) -> str:
        """The map: r in percent, a row for each layer, the highest on top."""
        n_layers, n_heads = self.heads.shape
        lines = ["layer " + "".join(f"{f'h{head}':>7}" for head in range(n_heads)) + "    mlp"]
        for layer in reversed(range(n_layers)):
            row = [*self.heads[layer].tolist(), self.mlps[layer].item()]
            lines.append(f"{layer:>5} " + "".join(f"{100 * r:7.1f}" for r in row))
        return "\n".join([*lines, f"embed {100 * self.embedding.item():7.1f}"])


class Senders:
    """Who can send in a model of this shape.
    names: embedding, the heads of layer 0, its MLP, the heads of layer 1 …, as they write."""

    def __init__(self, cfg: ModelConfig) -> None:
        self.cfg = cfg
        self.names = ["embedding"]
        for layer in range(cfg.n_layers):
            self.names += [f"{layer}.{head}" for head in range(cfg.n_heads)]
            self.names += [f"mlp{layer}"] if cfg.has_mlp else []

    def n_before(self, stage: int) -> int:
        """How many of them, the first ones, write before a stage of the stream (`patching.py`)."""
        layer, after_attention = divmod(stage, 2)
        in_block = self.cfg.n_heads + (1 if self.cfg.has_mlp else 0)
        return 1 + layer * in_block + after_attention * self.cfg.n_heads

    def row(self, entry: str | Sequence[str]) -> Row:
        """One sender by name, or several that send together. ValueError for a name there is not."""
        members = [entry] if isinstance(entry, str) else list(of_type(Sequence, "a sender", entry))
        if not members:
            raise ValueError("a joint sender needs at least one member")
        for name in members:
            if name not in self.names:
                there_is = "embedding, 0.0 (a head), …, mlp0, …"
                raise ValueError(f"no sender {name!r}: there is {there_is}")
        return tuple(sorted({self.names.index(name) for name in members}))

    def effects(self, rows: Sequence[Row], change_of_F: Tensor, r: Tensor) -> Effects:
        """F_patched - F_contrast [n_senders, n_prompts] and r [n_senders] of rows, laid out."""
        single = r.new_full([len(self.names)], torch.nan)
        alone = [row for row, members in enumerate(rows) if len(members) == 1]
        single[[rows[row][0] for row in alone]] = r[alone]
        n_layers, n_heads = self.cfg.n_layers, self.cfg.n_heads
        by_layer = single[1:].unflatten(0, (n_layers, -1))  # [n_layers, n_heads (+ 1)]
        mlps = by_layer[:, n_heads] if self.cfg.has_mlp else r.new_zeros(n_layers)
        return Effects(by_layer[:, :n_heads], mlps, single[0], change_of_F, r)
