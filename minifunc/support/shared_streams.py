"""Many groups of heads replaced in one model, each layer run once for all groups that agree below.

What is computed is said in `minifunc/ablation.py:Ablator.logits_plainly`; this is how it is fast.
Groups that replace the same heads in the lowest layers have the same stream there. Streams are kept
by what was replaced below them, also over several calls, up to a budget of memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minifunc.model import Transformer
from minifunc.support.checks import of_type, weights_of
from minifunc.support.evaluation import ROWS
from minifunc.support.hooks import Hooks
from minifunc.support.names import Head
from minifunc.support.products import product
from minifunc.support.settled import settled

# Streams that are kept, so that they need not be run again: so many bytes, or a few large ones.
KEPT_BYTES, FEW = 64 * 2**20, 16
Replaced = tuple[tuple[int, ...], ...]  # for each block, from the lowest: the heads replaced there


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
    last = [of_type(Tensor, "tokens", tokens).shape[1] - 1]
    parts = []
    for rows in tokens.to(model.device).split(prompts_in_a_pass(model)):
        _, cache = model.run_with_cache(rows, names, last)
        parts.append([cache[name] for name in names])
    return [torch.cat(part) for part in zip(*parts)]


class SharedStreams:
    """A model on prompts tokens [n_prompts, pos], with the streams of earlier calls.
    sent: by source, for each layer the z to put in, [n_prompts or 1, pos, head, d_head]; of the
    last layer the last position is enough."""

    @torch.no_grad()
    def __init__(self, model: Transformer, tokens: Tensor, sent: dict[str, list[Tensor]]) -> None:
        self.model, self.cfg, self.sent = model, model.cfg, sent
        self.n_prompts, self.n_pos = of_type(Tensor, "tokens", tokens).shape
        self.rows, self.weights = prompts_in_a_pass(model), weights_of(model)
        self.embedded = model.embed(tokens.to(model.device))  # [n_prompts, pos, d_model]
        if self.cfg.positions == "learned":
            self.embedded = self.embedded + model.pos_embed(self.n_pos)
        of_a_pass = self.embedded[: self.rows].nbytes  # z is about as large
        self.most_kept = max(FEW, KEPT_BYTES // (2 * of_a_pass))
        self.kept: dict[tuple[_Pass, Replaced], tuple[Tensor, Tensor]] = {}

    @settled
    @torch.no_grad()
    def logits(self, groups: Sequence[list[Head]], how: str, positions: tuple[int, ...]) -> Tensor:
        """Logits at the last position, [n_groups, n_prompts, d_vocab]."""
        weights_of(self.model, self.weights)
        replaced = [self._by_block(group) for group in groups]
        result = self.embedded.new_empty(len(groups), self.n_prompts, self.cfg.d_vocab)
        for start in range(0, self.n_prompts, self.rows):
            one = _Pass(start, how, positions)
            # In this order, groups that share a stream follow each other.
            for index in sorted(range(len(groups)), key=replaced.__getitem__):
                last = self._leave_block(one, replaced[index])[:, -1:]  # [p, 1, d_model]
                logits = self.model.run_from(last, self.cfg.n_layers)
                result[index, start : start + self.rows] = logits[:, 0]
        return result

    def _by_block(self, heads: Sequence[Head]) -> Replaced:
        blocks = range(self.cfg.n_layers)
        return tuple(tuple(head for layer, head in heads if layer == block) for block in blocks)

    def _leave_block(self, one: _Pass, replaced: Replaced) -> Tensor:
        """The stream that leaves block len(replaced) - 1, [p, pos, d_model] (the last: pos = 1)."""
        below, heads = replaced[:-1], replaced[-1]
        layer = len(below)
        stream, z = self._enter_block(one, below)
        queries = slice(-z.shape[1], None)
        if heads:
            sent = self.sent[one.how][layer]  # [n_prompts or 1, pos, head, d_head]
            sent = sent[one.start : one.start + self.rows] if len(sent) > 1 else sent
            put = torch.zeros(self.n_pos, self.cfg.n_heads, 1, dtype=torch.bool)
            positions = torch.tensor(one.positions, dtype=torch.int64)
            put[positions[:, None], torch.tensor(heads)] = True
            z = torch.where(put[queries].to(z.device), sent[:, queries], z)
        block = self.model.blocks[layer]
        attn_out = product(z.flatten(2), block.attn.W_O.flatten(0, 1))
        return block.add_mlp(stream[:, queries] + attn_out, Hooks())

    def _enter_block(self, one: _Pass, below: Replaced) -> tuple[Tensor, Tensor]:
        """The stream that enters block len(below), [p, pos, d_model], and z of the block's heads,
        none of them replaced, [p, query, head, d_head]. Those used last are kept."""
        if not any(below):
            one = _Pass(one.start, how="", positions=())  # the same whatever the source
        entered = self.kept.pop((one, below), None) or self._run_heads(one, below)
        self.kept[one, below] = entered
        if len(self.kept) > self.most_kept:
            del self.kept[next(iter(self.kept))]
        return entered

    def _run_heads(self, one: _Pass, below: Replaced) -> tuple[Tensor, Tensor]:
        layer = len(below)
        stream = self.embedded[one.start : one.start + self.rows]
        if below:
            stream = self._leave_block(one, below)
        queries = torch.arange(self.n_pos, device=self.model.device)
        if layer == self.cfg.n_layers - 1:
            queries = queries[-1:]
        block, name = self.model.blocks[layer], f"blocks.{layer}.attn.hook_z"
        hooks = Hooks(keep=[name])
        block.attn(block.ln1(stream, hooks), queries, hooks)
        return stream, hooks.kept[name]
