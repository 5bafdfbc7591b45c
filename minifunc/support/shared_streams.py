"""Many groups of heads replaced in one model, each layer run once for all groups that agree below.

What is computed is said in `minifunc/ablation.py:Ablator.logits_plainly`; this is how it is fast.
Groups that replace the same heads in the lowest layers have the same stream there. Streams are kept
by what was replaced below them, also over several calls, up to a budget of memory.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minifunc.model import Transformer
from minifunc.support.evaluation import ROWS
from minifunc.support.hooks import Hooks
from minifunc.support.names import Head

KEPT_BYTES = 64 * 2**20  # of streams that are kept, so that they need not be run again
Replaced = tuple[tuple[int, ...], ...]  # for each block, from the lowest: the heads replaced there


class Recent:
    """Tensors by key. Beyond `most_bytes` those are dropped that were not used for longest.

    >>> recent = Recent(most_bytes=1000)
    >>> recent.get("ones", lambda: torch.ones(3)) is recent.get("ones", lambda: torch.zeros(3))
    True
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes, self.n_bytes = most_bytes, 0
        self.tensors: OrderedDict[Hashable, Tensor] = OrderedDict()

    def get(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """The tensor of this key: the one that was kept, or that `compute` gives."""
        if key not in self.tensors:
            tensor = compute()  # which may ask for others, and so drop some
            self.tensors[key] = tensor
            self.n_bytes += tensor.nbytes
        self.tensors.move_to_end(key)
        wanted = self.tensors[key]
        while self.n_bytes > self.most_bytes:
            _, dropped = self.tensors.popitem(last=False)
            self.n_bytes -= dropped.nbytes
        return wanted


@dataclass(frozen=True)
class _Pass:
    """Some prompts, from `start` on, with what source `how` sends put in at `positions`."""

    start: int
    how: str
    positions: tuple[int, ...]


def prompts_in_a_pass(model: Transformer) -> int:
    """How many prompts go through at once: on a CPU few, which stay near its caches."""
    return ROWS // 4 if model.device.type == "cpu" else ROWS


@torch.no_grad()
def z_of_layers(model: Transformer, tokens: Tensor) -> list[Tensor]:
    """z of each layer, [n, pos, head, d_head]; of the last, [n, 1, head, d_head] is enough."""
    names = [f"blocks.{layer}.attn.hook_z" for layer in range(model.cfg.n_layers)]
    last = torch.tensor([tokens.shape[1] - 1], device=model.device)
    parts = []
    for rows in tokens.to(model.device).split(prompts_in_a_pass(model)):
        _, cache = model.run_with_cache(rows, names, last)
        parts.append([cache[name] for name in names])
    return [torch.cat(part) for part in zip(*parts)]


class SharedStreams:
    """A model on prompts tokens [n_prompts, pos], with the streams of earlier calls.

    sent: by source, for each layer the z to put in, [n_prompts or 1, pos, head, d_head]; of the
    last layer the last position is enough.
    """

    @torch.no_grad()
    def __init__(
        self, model: Transformer, tokens: Tensor, sent: Mapping[str, Sequence[Tensor]]
    ) -> None:
        self.model, self.cfg, self.sent = model, model.cfg, sent
        self.n_prompts, self.n_pos = tokens.shape
        self.rows = prompts_in_a_pass(model)
        self.recent = Recent(KEPT_BYTES)
        self.embedded = model.embed(tokens.to(model.device))  # [n_prompts, pos, d_model]
        if self.cfg.positions == "learned":
            self.embedded = self.embedded + model.pos_embed(self.n_pos)

    @torch.no_grad()
    def logits(
        self, groups: Sequence[Sequence[Head]], how: str, positions: tuple[int, ...]
    ) -> Tensor:
        """Logits at the last position, [n_groups, n_prompts, d_vocab]."""
        replaced = [self._by_block(group) for group in groups]
        result = self.embedded.new_empty(len(groups), self.n_prompts, self.cfg.d_vocab)
        for start in range(0, self.n_prompts, self.rows):
            one = _Pass(start, how, positions)
            # In this order, groups that share a stream follow each other.
            for index in sorted(range(len(groups)), key=replaced.__getitem__):
                last = self._stream(one, replaced[index])[:, -1]  # [p, d_model]
                logits = self.model.unembed(self.model.ln_final(last, Hooks()))
                result[index, start : start + self.rows] = logits
        return result

    def _by_block(self, heads: Sequence[Head]) -> Replaced:
        blocks = range(self.cfg.n_layers)
        return tuple(tuple(head for layer, head in heads if layer == block) for block in blocks)

    def _stream(self, one: _Pass, replaced: Replaced) -> Tensor:
        """What leaves the lowest len(replaced) blocks, [p, pos, d_model] (all blocks: pos = 1)."""
        if not replaced:
            return self.embedded[one.start : one.start + self.rows]
        if not any(replaced):
            one = _Pass(one.start, how="", positions=())  # the same whatever the source
        key = ("stream", one, replaced)
        return self.recent.get(key, lambda: self._leave_block(one, replaced))

    def _leave_block(self, one: _Pass, replaced: Replaced) -> Tensor:
        """The stream that leaves the block of the last entry of `replaced`."""
        below, heads, layer = replaced[:-1], replaced[-1], len(replaced) - 1
        block, stream = self.model.blocks[layer], self._stream(one, below)
        z = self.recent.get(("z", one, below), lambda: self._own_z(one, below))
        queries = slice(-z.shape[1], None)
        if heads:
            sent = self.sent[one.how][layer]  # [n_prompts or 1, pos, head, d_head]
            sent = sent[one.start : one.start + self.rows] if len(sent) > 1 else sent
            put = torch.zeros(self.n_pos, self.cfg.n_heads, 1, dtype=torch.bool)
            positions = torch.tensor(one.positions, dtype=torch.int64)
            put[positions[:, None], torch.tensor(heads)] = True
            z = torch.where(put[queries].to(z.device), sent[:, queries], z)
        attn_out = z.flatten(2) @ block.attn.W_O.flatten(0, 1)
        return block.add_mlp(stream[:, queries] + attn_out, Hooks())

    def _own_z(self, one: _Pass, below: Replaced) -> Tensor:
        """z of all heads of block len(below), none of them replaced: [p, query, head, d_head]."""
        layer, block = len(below), self.model.blocks[len(below)]
        queries = torch.arange(self.n_pos, device=self.model.device)
        if layer == self.cfg.n_layers - 1:
            queries = queries[-1:]
        seen: list[Tensor] = []

        def see(z: Tensor, name: str) -> Tensor:
            seen.append(z)
            return z

        hooks = Hooks({f"blocks.{layer}.attn.hook_z": see})
        block.attn(block.ln1(self._stream(one, below), hooks), queries, hooks)
        return seen[0]
