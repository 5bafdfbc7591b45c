"""How much work fits into memory at once. It sets the size of chunks, never the results.

One half of the budget is for the cached runs of the prompts, the other for the rows of pass 2: one
sender on one prompt each. On a CPU fewer rows are taken: near its caches they go through faster.
"""

import torch

from minifunc.model import Transformer

GIB = 2**30
CPU_ROWS = 2**27  # bytes of rows that a CPU takes at once
# Where both prompts go through the model as one batch: there to launch a kernel costs more than
# its work. The base run then keeps as much as the contrast run, half as much again in all.
STACKED = ("cuda",)


class MemoryBudget:
    """Cuts prompts and senders into ranges that fit.
    gib: what may be used beside the weights (default: 2, on CUDA a quarter of what is free). Raises
    ValueError where not a single row would fit."""

    def __init__(self, model: Transformer, n_pos: int, gib: float | None = None) -> None:
        self.model, self.n_pos = model, n_pos
        self.stacked = model.device.type in STACKED
        self.itemsize = max(4, model.dtype.itemsize)  # of the stream, bytes of a number
        if gib is None:
            on_cuda = model.device.type == "cuda"
            gib = torch.cuda.mem_get_info(model.device)[0] / GIB / 4 if on_cuda else 2.0
        if not 0 < gib < 2**20:
            raise ValueError(f"max_memory must be a positive number of GiB, not {gib}")
        self.half = self.for_rows = gib * GIB / 2
        needed = (1 + self.stacked) * self.row_bytes(n_pos) + self.cache_bytes()
        if gib * GIB < needed:
            small = f"max_memory of {gib:.3g} GiB is too small for one row, which needs"
            advice = "ask for more, or use shorter prompts"
            raise ValueError(f"{small} {needed / GIB:.3g} GiB: {advice}")
        if model.device.type == "cpu":
            self.for_rows = min(self.half, CPU_ROWS)
            torch.empty(31 * 2**20, dtype=torch.uint8)  # freed, it makes glibc keep what is freed

    def cache_bytes(self) -> int:
        """What the cached runs of one prompt take."""
        cfg = self.model.cfg
        streams = (4 * cfg.n_layers + 3) * cfg.d_model
        heads = (3 + 2 / cfg.n_sharing) * cfg.n_layers * cfg.n_heads * cfg.d_head
        if self.stacked:
            streams = (6 * cfg.n_layers + 4) * cfg.d_model
            heads = (4 + 4 / cfg.n_sharing) * cfg.n_layers * cfg.n_heads * cfg.d_head
        numbers = self.n_pos * (streams + int(heads)) + 2 * cfg.d_vocab
        return numbers * self.itemsize

    def row_bytes(self, n_pos: int) -> int:
        """What one row of n_pos positions takes at the widest moment of pass 2."""
        cfg = self.model.cfg
        hidden = (2 + 2 * cfg.gated_mlp) * cfg.d_mlp * cfg.has_mlp
        wide = 8 * cfg.d_model + 8 * cfg.n_heads * cfg.d_head + hidden
        numbers = n_pos * (wide + 3 * n_pos) + 2 * cfg.d_vocab
        beside = self.itemsize > self.model.dtype.itemsize  # what `product` makes of half precision
        return numbers * self.itemsize * (1 + beside)

    def keeps(self, n_prompts: int) -> bool:
        """Whether the cached runs of so many prompts fit, all at once."""
        return n_prompts * self.cache_bytes() <= self.half

    def prompt_ranges(self, prompts: range) -> list[slice]:
        """The prompts in chunks: their cached runs fit, and so does one row for each of them."""
        in_cache = int(self.half // self.cache_bytes())
        if not self.keeps(len(prompts)):
            in_cache //= 2  # while a chunk is made anew, the one before it is still there
        in_a_run = self._rows(self.n_pos) // (1 + self.stacked)
        size = max(1, min(len(prompts), in_cache, in_a_run))
        return [slice(i, min(i + size, prompts.stop)) for i in prompts[::size]]

    def row_ranges(self, n_items: int, n_each: int, n_pos: int) -> list[slice]:
        """Items in chunks, of which each stands for n_each rows of n_pos positions."""
        size = max(1, self._rows(n_pos) // n_each)
        return [slice(i, i + size) for i in range(0, n_items, size)]

    def _rows(self, n_pos: int) -> int:
        return int(self.for_rows // self.row_bytes(n_pos)) or 1
