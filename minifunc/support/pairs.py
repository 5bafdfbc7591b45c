"""The two runs that path patching compares, cached in chunks of prompts that fit into memory.

Base and contrast prompts are paired. They are scored by F = logit(base answer) - logit(contrast
answer) at the last position. Under torchrun each process runs its own part of the prompts.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minifunc.model import Transformer
from minifunc.support import checks
from minifunc.support.memory import MemoryBudget
from minifunc.support.processes import all_sum, own_range

Pair = tuple[Tensor, Tensor]  # of base and of contrast prompts


@dataclass(frozen=True)
class CachedRuns:
    """Both runs on some of the prompts, as far as a sweep needs them; p = prompts in here.
    contrast, base: activations by hook point, [p, pos, …]. In the last block those that follow
    attention, and q, are there at the last position alone: nothing else reaches the answer."""

    prompts: slice
    contrast: Mapping[str, Tensor]
    base: Mapping[str, Tensor]

    @property
    def n_prompts(self) -> int:
        return int(self.prompts.stop - self.prompts.start)

    def stream(self, stage: int) -> Tensor:
        """The contrast run's residual stream at a stage (`patching.py`), [p, pos, d_model]."""
        layer, after_attention = divmod(stage, 2)
        place = "mid" if after_attention else "pre"
        name = f"blocks.{layer}.hook_resid_{place}"
        end = f"blocks.{layer - 1}.hook_resid_post"
        return self.contrast[name if name in self.contrast else end]


class PairedRuns:
    """Paired prompts of one model, and their runs. The arguments are those of `PathPatcher`, those
    of the base prompts first.

    sent: the hook points at which senders write, from below up. F_base, F_contrast [n_prompts]
    float64, in logits; F_range is the difference of their means.
    """

    def __init__(
        self, model: Transformer, tokens: Pair, answers: Pair, max_memory: float | None
    ) -> None:
        checks.check_pairs(model.cfg.d_vocab, *tokens, *answers)
        self.model, self.cfg, device = model, model.cfg, model.device
        self.base_tokens, self.contrast_tokens = (each.to(device).clone() for each in tokens)
        self.answers = torch.stack(answers, dim=1).to(device).long()  # [n_prompts, 2]
        self.n_prompts, self.n_pos = tokens[0].shape
        self.weights = checks.weights_of(model)
        self.last = [self.n_pos - 1]
        self.sent = ["hook_embed"]
        for layer in range(self.cfg.n_layers):
            self.sent += [f"blocks.{layer}.attn.hook_z"]
            self.sent += [f"blocks.{layer}.hook_mlp_out"] if self.cfg.has_mlp else []
        self.budget = MemoryBudget(model, self.n_pos, max_memory)
        self.F_base = torch.zeros(self.n_prompts, dtype=torch.float64, device=device)
        self.F_contrast = self.F_base.clone()
        keeps = self.budget.keeps(len(own_range(self.n_prompts)))
        self._kept = [runs for runs in self._run_both() if keeps]  # F is noted of all
        all_sum(self.F_base, self.F_contrast)
        self.F_range = float(self.F_contrast.mean() - self.F_base.mean())

    def cached_runs(self) -> Iterable[CachedRuns]:
        """Both runs, in chunks of prompts: kept where all fit the budget, else made anew."""
        checks.of_type(bool, "freeze_mlps", getattr(self, "freeze_mlps", False))
        checks.weights_of(self.model, self.weights)
        return self._kept or self._run_both()

    @torch.no_grad()
    def _run_both(self) -> Iterator[CachedRuns]:
        """Runs both prompts of some pairs at a time; keeps what a sweep needs, and notes F."""
        needed = list(self.sent)
        for layer in range(self.cfg.n_layers):
            needed += [f"blocks.{layer}.hook_resid_pre", f"blocks.{layer}.hook_resid_mid"]
            needed += [f"blocks.{layer}.attn.hook_{name}" for name in ("rot_q", "rot_k", "v")]
        needed += [f"blocks.{self.cfg.n_layers - 1}.hook_resid_post"]
        for prompts in self.budget.prompt_ranges(own_range(self.n_prompts)):
            pair = self.base_tokens[prompts], self.contrast_tokens[prompts]
            if self.budget.stacked:
                logits, cache = self._run(torch.cat(pair), needed)
                base_logits, contrast_logits = logits.chunk(2)
                base = {name: cache[name].chunk(2)[0] for name in self.sent}
                contrast = {name: x.chunk(2)[1] for name, x in cache.items()}
            else:
                base_logits, base = self._run(pair[0], self.sent)
                contrast_logits, contrast = self._run(pair[1], needed)
            self.F_base[prompts] = self.score(base_logits, prompts)
            self.F_contrast[prompts] = self.score(contrast_logits, prompts)
            yield CachedRuns(prompts, contrast, base)

    def _run(self, tokens: Tensor, names: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits at the last position, [p, d_vocab], and activations."""
        logits, cache = self.model.run_with_cache(tokens.to(self.model.device), names, self.last)
        return logits[:, -1], cache

    def score(self, logits: Tensor, prompts: slice) -> Tensor:
        """F = logit(base answer) - logit(contrast answer) of logits [..., p, d_vocab]: [..., p], in
        float64, since it is a small difference of large numbers."""
        answers = self.answers[prompts].expand(*logits.shape[:-1], 2)
        picked = logits.gather(-1, answers).double()
        return picked[..., 0] - picked[..., 1]

    def changes(
        self, runs: CachedRuns, n_pos: int, source: str | Tensor, positions: checks.Positions
    ) -> dict[str, Tensor]:
        """What senders change where they write, by hook point: source - contrast at the last n_pos
        positions, [p, pos, …]; zero but at `positions` (None: all). source: as in `sweep_each`."""
        checks.check_source(source, self.contrast_tokens)
        sent = runs.base
        if isinstance(source, Tensor):
            _, sent = self._run(source[runs.prompts], self.sent)
        elif source == "zero":
            sent = {name: torch.zeros_like(runs.contrast[name]) for name in self.sent}
        elif source == "mean":
            sent = self._mean_of_base
        changes = {}
        for name in self.sent:
            change = sent[name][:, -n_pos:] - runs.contrast[name][:, -n_pos:]
            if positions is not None:
                chosen = self.mask(positions)[-change.shape[1] :]  # [pos, 1]
                change = change * (chosen if change.ndim == 3 else chosen[..., None])
            changes[name] = change
        return changes

    @functools.cached_property
    def _mean_of_base(self) -> dict[str, Tensor]:
        """Mean over the base prompts of all that senders write, by hook point: [1, pos, …]."""
        total: dict[str, Tensor] = {}
        for prompts in self.budget.prompt_ranges(range(self.n_prompts)):
            _, cache = self._run(self.base_tokens[prompts], self.sent)
            for name, x in cache.items():
                part = x.sum(0, keepdim=True, dtype=torch.float64)
                total[name] = total[name] + part if name in total else part
        return {name: (total[name] / self.n_prompts).to(x.dtype) for name, x in cache.items()}

    def mask(self, positions: checks.Positions) -> Tensor:
        """[pos, 1] bool: true at the positions (None: everywhere)."""
        chosen = torch.zeros(self.n_pos, 1, dtype=torch.bool)
        chosen[list(checks.checked_positions(positions, self.n_pos))] = True
        return chosen.to(self.model.device)
