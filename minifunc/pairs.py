"""The two runs that path patching compares, cached chunk by chunk within a memory budget.

Base and contrast prompts are paired and scored by F = logit(base answer) - logit(contrast answer) at the last
position. `PairedRuns` holds the prompts, makes the cached runs, and knows how much fits into memory.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minifunc.model import Past, Transformer
from minifunc.support.processes import all_sum, rank, world_size


@dataclass
class Chunk:
    """The cached runs on some of the prompts; p = prompts in this chunk.

    contrast, source: activations by hook point, from position `PairedRuns.first` on (rotated k and v: all
    positions; in the last block: the last position, for nothing else there reaches the answer). source is what
    senders send instead of their contrast values.
    """

    prompts: slice
    contrast: dict[str, Tensor]  # [p, pos, …]
    source: dict[str, Tensor]  # hook_embed, and each block's hook_z and hook_mlp_out
    base_logits: Tensor  # [p, d_vocab], last position
    contrast_logits: Tensor
    past: list[
        Past
    ]  # by layer, what both runs share: k and v of the positions before `PairedRuns.first`; empty if there are none

    def at(self, layer: int, name: str) -> Tensor:
        """An activation of the contrast run in one block."""
        return self.contrast[f"blocks.{layer}.{name}"]


class PairedRuns:
    """Two sets of paired prompts and their runs.

    base_tokens, contrast_tokens: [n_prompts, pos] int64, scored at the last position. base_answers,
    contrast_answers: [n_prompts] int64, the two tokens whose logits F compares. source: what senders send in place of their contrast values. "base" (the paired base run), "mean" (the
    mean over the base prompts, position by position), "zero", or tokens [n_prompts, pos] of other prompts whose
    activations are sent. sender_positions: the positions at which senders are changed (default: all). r is always measured against
    F of the paired base run. max_memory: GiB that the sweep may use beside the weights (default: a quarter of what is free on
    CUDA, 2 elsewhere); it sets the size of the chunks, never the results.

    With several processes (minifunc/support/processes.py) each runs its own part of the prompts, and all get the same results.

    F_base, F_contrast [n_prompts] float64: F of the two runs, in logits. Raises ValueError where shapes or answers do
    not fit, where the budget is too small for a single row, or where F_contrast and F_base do not differ (r is
    then undefined).
    """

    def __init__(
        self,
        model: Transformer,
        base_tokens: Tensor,
        contrast_tokens: Tensor,
        base_answers: Tensor,
        contrast_answers: Tensor,
        max_memory: float | None = None,
        source: str | Tensor = "base",
        sender_positions: Sequence[int] | None = None,
    ) -> None:
        cfg, device = model.cfg, model.unembed.W_U.device
        if (
            base_tokens.shape != contrast_tokens.shape
            or base_tokens.ndim != 2
            or 0 in base_tokens.shape
        ):
            raise ValueError(
                f"base and contrast tokens must be [n_prompts, pos] of one shape, not {list(base_tokens.shape)} and {list(contrast_tokens.shape)}"
            )
        if (
            base_answers.shape != base_tokens.shape[:1]
            or contrast_answers.shape != base_tokens.shape[:1]
        ):
            raise ValueError(
                f"answers must be [n_prompts] = [{len(base_tokens)}], not {list(base_answers.shape)} and {list(contrast_answers.shape)}"
            )
        self.model, self.cfg = model, cfg
        self.base_tokens, self.contrast_tokens = base_tokens.to(device), contrast_tokens.to(device)
        self.answers = torch.stack([base_answers, contrast_answers], dim=1).to(
            device
        )  # [n_prompts, 2]
        self.n_prompts, self.n_pos = base_tokens.shape
        self.everywhere = torch.arange(self.n_pos, device=device)
        self.last = self.everywhere[-1:]
        self.sender_positions = (
            None if sender_positions is None else self.mask(sender_positions)
        )  # [pos, 1] bool
        if not isinstance(source, Tensor) and source not in ("base", "mean", "zero"):
            raise ValueError(f"source must be 'base', 'mean', 'zero' or tokens, not {source!r}")
        if isinstance(source, Tensor) and source.shape != base_tokens.shape:
            raise ValueError(
                f"source tokens must be {list(base_tokens.shape)} like the prompts, not {list(source.shape)}"
            )
        self.source = source.to(device) if isinstance(source, Tensor) else source
        # Senders, in the order in which they write to the stream: embedding, heads of layer 0, MLP 0, heads of layer 1 …
        self.senders = ["embedding"]
        for layer in range(cfg.n_layers):
            self.senders += [f"{layer}.{head}" for head in range(cfg.n_heads)] + (
                [f"mlp{layer}"] if cfg.has_mlp else []
            )
        self._sent = [
            "hook_embed",
            *(f"blocks.{layer}.attn.hook_z" for layer in range(cfg.n_layers)),
        ]
        self._sent += [
            f"blocks.{layer}.hook_mlp_out" for layer in range(cfg.n_layers) if cfg.has_mlp
        ]
        self.first = (
            self._first_change()
        )  # the runs are alike before this position, so the sweep starts here
        self.max_memory = _default_memory(device) if max_memory is None else max_memory
        if not 0 < self.max_memory < 2**20:
            raise ValueError(f"max_memory must be a positive number of GiB, not {max_memory}")
        in_cache = int(
            self.max_memory * 2**30 / 2 // self._cache_bytes()
        )  # prompts whose cached runs fit half the budget
        self.own = range(
            rank() * self.n_prompts // world_size(), (rank() + 1) * self.n_prompts // world_size()
        )  # this process's prompts
        keep = in_cache >= len(self.own)
        in_chunk = (
            in_cache if keep else in_cache // 2
        )  # while a chunk is made anew, the one before it is still there
        self.prompts_per_chunk = max(
            1, min(len(self.own), in_chunk, self.rows_in_budget(self.n_pos))
        )
        self._kept: list[Chunk] = []
        self._mean = self._mean_of_base() if isinstance(source, str) and source == "mean" else {}
        if device.type == "cpu":
            torch.empty(
                31 * 2**20, dtype=torch.uint8
            )  # freeing one large block makes the C library keep freed memory for the next tensor (glibc, M_MMAP_THRESHOLD)
        self.F_base, self.F_contrast = torch.zeros(
            2, self.n_prompts, dtype=torch.float64, device=device
        )
        for chunk in self._chunks():
            for F, logits in (
                (self.F_base, chunk.base_logits),
                (self.F_contrast, chunk.contrast_logits),
            ):
                F[chunk.prompts] = self.score(logits, chunk.prompts)
            self._kept += [chunk] if keep else []
        all_sum(self.F_base, self.F_contrast)
        self.F_range = float(self.F_contrast.mean() - self.F_base.mean())

    def score(self, logits: Tensor, prompts: slice) -> Tensor:
        """F = logit(base answer) - logit(contrast answer) of logits [..., p, d_vocab]: [..., p] float64."""
        answers = self.answers[prompts].expand(*logits.shape[:-1], 2)
        picked = logits.gather(
            -1, answers
        ).double()  # few numbers, and small differences of large ones
        return picked[..., 0] - picked[..., 1]

    def chunks(self) -> Iterable[Chunk]:
        """The cached runs: kept from the start where they fit the budget, made anew where they do not."""
        return self._kept or self._chunks()

    @torch.no_grad()
    def _chunks(self) -> Iterator[Chunk]:
        """Runs both prompts of some pairs at a time and keeps what the sweep needs. What is alike is run once."""
        layers, first = range(self.cfg.n_layers), self.first
        read = [
            f"blocks.{layer}.{name}"
            for layer in layers
            for name in (
                "hook_resid_pre",
                "hook_resid_mid",
                "attn.hook_rot_q",
                "attn.hook_rot_k",
                "attn.hook_v",
            )
        ]
        for start in self.own[:: self.prompts_per_chunk]:
            prompts = slice(start, min(start + self.prompts_per_chunk, self.own.stop))
            logits, contrast = self.model.run_with_cache(
                self.contrast_tokens[prompts],
                [*self._sent, *read, f"blocks.{layers[-1]}.hook_resid_post"],
                self.last,
            )
            past = (
                [
                    (
                        contrast[f"blocks.{layer}.attn.hook_rot_k"][:, :first],
                        contrast[f"blocks.{layer}.attn.hook_v"][:, :first],
                    )
                    for layer in layers
                ]
                if first
                else []
            )
            base_logits, source = self.model.run_with_cache(
                self.base_tokens[prompts, first:], self._sent, self.last, past
            )
            if isinstance(self.source, Tensor):
                _, source = self.model.run_with_cache(
                    self.source[prompts, first:], self._sent, self.last, past
                )
            elif self.source != "base":
                source = {
                    name: self._mean.get(name, torch.zeros_like(x)) for name, x in source.items()
                }
            contrast = {
                name: x[:, first:]
                if x.shape[1] == self.n_pos and not name.endswith(("_k", "_v"))
                else x
                for name, x in contrast.items()
            }
            yield Chunk(prompts, contrast, source, base_logits[:, -1], logits[:, -1], past)

    def _first_change(self) -> int:
        """The first position from which on anything differs between the contrast run and what is sent."""
        if not isinstance(self.source, Tensor) and self.source != "base":
            return 0  # a mean differs from the very start
        others = [self.base_tokens, *([self.source] if isinstance(self.source, Tensor) else [])]
        differs = torch.stack([(other != self.contrast_tokens).any(0) for other in others]).any(
            0
        )  # [pos]
        return int(differs.int().argmax()) if differs.any() else self.n_pos - 1

    def change(self, chunk: Chunk, name: str, where: slice, head: int | None = None) -> Tensor:
        """What a sender would send, source - contrast, at the positions `where` and at which senders are changed: [p, pos, d_head or d_model]."""
        source, contrast = (
            x if head is None else x[:, :, head] for x in (chunk.source[name], chunk.contrast[name])
        )
        change = source[:, where] - contrast[:, where]
        return (
            change
            if self.sender_positions is None
            else change * self.sender_positions[-change.shape[1] :]
        )

    def mask(self, positions: Sequence[int] | None) -> Tensor:
        """[pos, 1] bool, true at the positions (None: everywhere). Raises ValueError for one out of range."""
        wrong = [position for position in positions or () if not 0 <= position < self.n_pos]
        if wrong:
            raise ValueError(
                f"position {wrong[0]} is out of range: the prompts have positions 0 to {self.n_pos - 1}"
            )
        chosen = [positions is None or position in positions for position in range(self.n_pos)]
        return torch.tensor(chosen, device=self.everywhere.device)[:, None]

    @torch.no_grad()
    def _mean_of_base(self) -> dict[str, Tensor]:
        """Mean over the base prompts of all that senders send, by hook point: [1, pos, …]."""
        total: dict[str, Tensor] = {}
        for tokens in self.base_tokens.split(self.prompts_per_chunk):
            _, cache = self.model.run_with_cache(tokens, self._sent, self.last)
            total = {
                name: total.get(name, 0) + x.sum(0, keepdim=True, dtype=torch.float64)
                for name, x in cache.items()
            }
        return {
            name: (x / self.n_prompts).to(self.model.unembed.W_U.dtype) for name, x in total.items()
        }

    def _cache_bytes(self) -> int:
        """Bytes of one prompt in a `Chunk`."""
        cfg = self.cfg
        floats = (4 * cfg.n_layers + 3) * cfg.d_model + 5 * cfg.n_layers * cfg.n_heads * cfg.d_head
        return (self.n_pos * floats + 2 * cfg.d_vocab) * self.model.unembed.W_U.element_size()

    def rows_in_budget(self, n_pos: int, n_past: int = 0) -> int:
        """How many rows (one sender on one prompt, n_pos positions each, n_past before them) fit the budget at pass 2's widest moment."""
        cfg = self.cfg
        floats = (
            8 * cfg.d_model
            + 8 * cfg.n_heads * cfg.d_head
            + 2 * cfg.d_mlp * cfg.has_mlp
            + 3 * (n_pos + n_past)
        )
        floats = n_pos * floats + 4 * n_past * cfg.n_heads * cfg.d_head + 2 * cfg.d_vocab
        row = floats * self.model.unembed.W_U.element_size()
        if self.max_memory * 2**30 < row + self._cache_bytes():
            raise ValueError(
                f"max_memory of {self.max_memory:.3g} GiB is too small for one row, which needs {(row + self._cache_bytes()) / 2**30:.3g} GiB: ask for more, or use shorter prompts"
            )
        budget = self.max_memory * 2**30 / 2  # the other half is for the cached runs
        if self.everywhere.device.type == "cpu":
            budget = min(
                budget, 2**25
            )  # rows that stay near the processor's caches go through faster
        return int(budget // row) or 1


def _default_memory(device: torch.device) -> float:
    """GiB: a quarter of what is free on a CUDA device, 2 elsewhere."""
    return torch.cuda.mem_get_info(device)[0] / 2**32 if device.type == "cuda" else 2.0
