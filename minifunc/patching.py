"""Exact path patching, batched over senders, without a forward pass per sender.

`minifunc/definition.py` says what path patching is: two passes for one sender and one receiver.
Here the same numbers come for all senders at once. With F = logit(base answer) - logit(contrast
answer) at the last position, and means over prompts, the effect of a sender on a receiver is

    r = (F_patched - F_contrast) / (F_contrast - F_base)      -1: all the way back to the base run

as in arXiv 2507.09875. (Path patching: Wang et al. 2022, Goldowsky-Dill et al. 2023.) Two
observations make it cheap without making it approximate:

* **Pass 1 serves all senders, and needs no attention.** While every head is frozen, positions do
  not talk to each other. All that differs from the contrast run is delta, what a sender's change
  has become in the residual stream. It starts as (z_base - z_contrast) W_O where the sender
  writes. On its way up only MLPs change it: delta += MLP(x + delta) - MLP(x). Whoever reads on the
  way reads x + delta. So one sweep up the layers serves every receiver, up to the highest one.
* **Pass 2 starts at the receiver.** Below it nothing has changed. The cached contrast run goes on
  from there, with the senders folded into the batch. In the receiver's own layer its head alone is
  computed again; in the last block the last position alone.

Semantics (`freeze_mlps`): with **live** MLPs (False, the paper's) a direct path may lead through
MLPs; with **frozen** MLPs (True, "edge" patching) delta stays as it was sent. Norms are always run
anew, on x + delta. Several receivers given as a list are overwritten together.

The stream is read at **stages**: the heads of a layer read at 2 * layer, its MLP at 2 * layer + 1,
and the end is 2 * n_layers. delta is [sender, p, pos, d_model], p = prompts of one chunk.
"""

import bisect
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minifunc.model import Transformer, attention_scores
from minifunc.support import checks
from minifunc.support.effects import Effects, Row, Senders
from minifunc.support.hooks import Hooks
from minifunc.support.pairs import CachedRuns, PairedRuns
from minifunc.support.processes import all_sum
from minifunc.support.products import in_stream, product
from minifunc.support.receivers import HeadInput, KVInput, Logits, MLPInput, Receiver, Resid
from minifunc.support.settled import settled

__all__ = ["Effects", "HeadInput", "KVInput", "Logits", "MLPInput", "PathPatcher", "Receiver"]
__all__ += ["Resid"]

Asked = Sequence[str | Sequence[str]]  # senders by name; those in a list send together
NO_HOOKS = Hooks()


@dataclass(frozen=True)
class Batch:
    """Some senders on some prompts: what one sweep carries up the layers.
    changes: what senders change where they write, by hook point, [p, pos, …]. rows: who sends in
    each row of delta, ascending. n_pos: how many positions are carried, counted from the end.
    """

    runs: CachedRuns
    changes: Mapping[str, Tensor]
    rows: Sequence[Row]
    n_pos: int

    def n_started(self, n_written: int) -> int:
        """How many rows have a member among the first n_written senders."""
        return bisect.bisect_left(self.rows, (n_written,))


class PathPatcher(PairedRuns):
    """Path patching between two sets of paired prompts.

    base_tokens, contrast_tokens: [n_prompts, pos] int64, scored at the last position.
    base_answers, contrast_answers: [n_prompts] int64, the two tokens whose logits F compares.
    freeze_mlps: see above. max_memory: GiB that a sweep may use beside the weights; it sets the
    size of chunks, never the results. senders: the names of all senders, from below up.
    Both runs are cached, so the weights must not change afterwards. Raises ValueError where shapes
    or answers do not fit, or the memory does not hold a single row.

    >>> from minifunc import ModelConfig
    >>> base, contrast = torch.tensor([[1, 2, 3]]), torch.tensor([[1, 4, 3]])
    >>> answers = torch.tensor([5]), torch.tensor([6])
    >>> patcher = PathPatcher(Transformer(ModelConfig(d_vocab=9)), base, contrast, *answers)
    >>> patcher.sweep(Logits()).heads.shape  # r of each head on the answer
    torch.Size([4, 4])
    >>> patcher.sweep(HeadInput(3, 2, "v"), senders=["mlp3", ["0.1", "2.2"]]).r == 0
    tensor([ True, False])
    """

    @settled
    def __init__(
        self,
        model: Transformer,
        base_tokens: Tensor,
        contrast_tokens: Tensor,
        base_answers: Tensor,
        contrast_answers: Tensor,
        freeze_mlps: bool = False,
        max_memory: float | None = None,
    ) -> None:
        tokens, answers = (base_tokens, contrast_tokens), (base_answers, contrast_answers)
        super().__init__(model, tokens, answers, max_memory)
        self.freeze_mlps = freeze_mlps or not self.cfg.has_mlp
        self.end = 2 * self.cfg.n_layers  # the stage of the final stream
        self.order = Senders(self.cfg)
        self.senders = self.order.names

    def sweep(
        self, receiver: Receiver | Sequence[Receiver], senders: Asked | None = None, **sending: Any
    ) -> Effects:
        """The effect of every sender on one receiver, or on several overwritten together."""
        return self.sweep_each([receiver], senders, **sending)[0]

    @settled
    @torch.no_grad()
    def sweep_each(
        self,
        receivers: Sequence[Receiver | Sequence[Receiver]],
        senders: Asked | None = None,
        source: str | Tensor = "base",
        sender_positions: checks.Positions = None,
    ) -> list[Effects]:
        """One `Effects` for each entry of `receivers`, all from a single pass 1.

        senders: some of them, by name; an entry that is a list of names is a joint sender, whose
        members send together. source: what senders send instead of their contrast values: "base"
        (the paired base run's), "mean" (the mean over base prompts), "zero", or tokens [n_prompts,
        pos] of other prompts. sender_positions: where they do (default: everywhere). r is measured
        against the base run in any case. Raises ValueError for what model or prompts do not have.
        """
        if not checks.of_type(Sequence, "receivers", receivers):
            return []
        groups = [checks.checked_group(entry, self.model, self.n_pos) for entry in receivers]
        asked = self.senders if senders is None else checks.of_type(Sequence, "senders", senders)
        rows = [self.order.row(entry) for entry in asked]
        checks.check_F_range(self.F_range)
        sender_positions = checks.whole_numbers(sender_positions)
        n_below = self.order.n_before(max(map(self._highest, groups)))
        # Senders above all receivers have no path. The others go in the order in which they write.
        carried = [index for index, row in enumerate(rows) if row[0] < n_below]
        carried.sort(key=lambda index: rows[index])
        only_logits = all(group == (Logits(),) for group in groups)
        n_pos = 1 if only_logits else self.n_pos  # logits come from the last position alone
        totals = [torch.zeros(len(rows), self.n_prompts, dtype=torch.float64) for _ in groups]
        for runs in self.cached_runs():
            changes = self.changes(runs, n_pos, source, sender_positions)
            for part in self.budget.row_ranges(len(carried), runs.n_prompts, n_pos):
                some = carried[part]
                batch = Batch(runs, changes, [rows[index] for index in some], n_pos)
                for group, change_of_F in self._sweep_batch(batch, groups):
                    totals[group][some[: len(change_of_F)], runs.prompts] = change_of_F.cpu()
        all_sum(*totals)
        return [self.order.effects(rows, total, total.mean(1) / self.F_range) for total in totals]

    def _sweep_batch(
        self, batch: Batch, groups: Sequence[tuple[Receiver, ...]]
    ) -> Iterator[tuple[int, Tensor]]:
        """Yields (group, F_patched - F_contrast [sender, p]) as soon as a group's highest receiver
        has read, for the senders that have a path to it. Heads of one layer share a pass 2."""
        read: dict[int, dict[Receiver, Tensor]] = {index: {} for index in range(len(groups))}
        for stage, delta in self._pass_1(batch):
            streams: dict[Hashable, Tensor] = {}  # what is read at this stage, made once
            complete: dict[int | None, list[int]] = {}  # what goes through pass 2 together
            for index, group in enumerate(groups):
                n_senders = batch.n_started(self.order.n_before(self._highest(group)))
                if not n_senders:
                    continue
                for receiver in group:
                    if receiver.stage(self.cfg) == stage:
                        x = self._stream(batch.runs, receiver, delta[:n_senders], streams)
                        read[index][receiver] = receiver.read(self.model, x)
                if stage == self._highest(group):
                    alone = len(group) > 1 or group[0].head is None or group[0].positions
                    together = index if alone else None
                    complete.setdefault(together, []).append(index)
            n_rows = len(batch.rows) * batch.runs.n_prompts
            for some in complete.values():
                for part in self.budget.row_ranges(len(some), n_rows, batch.n_pos):
                    reads = [read.pop(index) for index in some[part]]
                    yield from zip(some[part], self._pass_2(batch.runs, reads))
            if stage == max(map(self._highest, groups)):
                return

    def _pass_1(self, batch: Batch) -> Iterator[tuple[int, Tensor]]:
        """Carries what senders change up the stream: yields each stage, and delta there, [sender,
        p, pos, d_model]. In the last block it goes on at the last position alone."""
        sends = torch.zeros(len(batch.rows), len(self.senders))
        places = [(row, member) for row, members in enumerate(batch.rows) for member in members]
        sends[tuple(zip(*places))] = 1.0
        sends = sends.to(batch.changes["hook_embed"])  # [sender, member]: who sends in which row
        delta = torch.einsum("s,ptm->sptm", sends[:, 0], batch.changes["hook_embed"])
        for layer, block in enumerate(self.model.blocks):
            yield 2 * layer, delta
            if layer == self.cfg.n_layers - 1:
                delta = delta[:, :, -1:].contiguous()
            first = self.order.n_before(2 * layer)  # of this layer's heads, among the senders
            heads = sends[:, first : first + self.cfg.n_heads]  # [sender, head]
            z_change = batch.changes[f"{block.name}.attn.hook_z"][:, -delta.shape[2] :]
            written = torch.einsum("pthd,hdm->hptm", z_change, in_stream(block.attn.W_O))
            delta += torch.einsum("sh,hptm->sptm", heads, written)
            yield 2 * layer + 1, delta
            if self.cfg.has_mlp:
                self._pass_through_mlp(batch, layer, delta)
                mlp = sends[:, first + self.cfg.n_heads, None, None, None]  # [sender, 1, 1, 1]
                written = batch.changes[f"{block.name}.hook_mlp_out"][:, -delta.shape[2] :]
                delta.addcmul_(mlp, written)
        yield self.end, delta

    def _pass_through_mlp(self, batch: Batch, layer: int, delta: Tensor) -> None:
        """Adds to delta what an MLP makes of it: MLP(x + delta) - MLP(x)."""
        block, n_pos = self.model.blocks[layer], delta.shape[2]
        place = self.order.n_before(2 * layer + 1)  # of this MLP among the senders
        n_started = batch.n_started(place)
        if self.freeze_mlps or block.mlp is None or not n_started:
            return
        x = batch.runs.stream(2 * layer + 1)[:, -n_pos:] + delta[:n_started]
        change = block.mlp(block.ln2(x, NO_HOOKS), NO_HOOKS)  # [sender, p, pos, d_model]
        change -= batch.runs.contrast[f"{block.name}.hook_mlp_out"][:, -n_pos:]
        for row, members in enumerate(batch.rows[:n_started]):
            if place in members:  # it sends, so what it writes does not depend on what it reads
                change[row] = 0
        delta[:n_started].add_(change)

    def _stream(
        self, runs: CachedRuns, receiver: Receiver, delta: Tensor, made: dict[Hashable, Tensor]
    ) -> Tensor:
        """What `Receiver.read` takes, in pass 1; made: those of this stage, for others to share."""
        key = (receiver.positions, receiver.head is None, len(delta))
        if key not in made:
            n_pos, stage = delta.shape[2], receiver.stage(self.cfg)
            if receiver.positions is not None:
                delta = delta * self.mask(receiver.positions)[-n_pos:]
            x = runs.stream(stage)[:, -n_pos:] + delta
            of_head = receiver.head is not None
            made[key] = self.model.blocks[stage // 2].ln1(x, NO_HOOKS) if of_head else x
        return made[key]

    def _pass_2(self, runs: CachedRuns, reads: Sequence[Mapping[Receiver, Tensor]]) -> Tensor:
        """Goes on with the contrast run from the lowest receiver of each group, all overwritten by
        what they read, [sender, p, pos, …]. Returns F_patched - F_contrast, [group, sender, p]."""
        read = reads[0]  # where there are more, they overwrite nothing further up
        stages = {receiver: receiver.stage(self.cfg) for receiver in read}
        ends = [value for receiver, value in read.items() if stages[receiver] == self.end]
        lowest = min(stages.values())
        layer = lowest // 2
        if ends:  # nothing below the end matters then
            logits = self.model.run_from(ends[0][:, :, -1:].flatten(0, 1), self.cfg.n_layers)
        elif any(receiver.is_stream and stages[receiver] == lowest for receiver in read):
            n_senders = len(next(iter(read.values())))
            resid = runs.stream(lowest).repeat(n_senders, 1, 1)  # [sender * p, pos, d_model]
            logits = self.model.run_from(resid, layer, self.last, self._overwriting(read))
        else:
            resid = torch.cat([self._with_heads(runs, layer, each) for each in reads])
            hooks = self._overwriting(read)
            resid = self.model.blocks[layer].add_mlp(resid.flatten(0, 1), hooks)
            logits = self.model.run_from(resid, layer + 1, [resid.shape[1] - 1], hooks)
        logits = logits[:, -1].unflatten(0, (len(reads), -1, runs.n_prompts))
        return self.score(logits, runs.prompts) - self.F_contrast[runs.prompts]

    def _with_heads(self, runs: CachedRuns, layer: int, read: Mapping[Receiver, Tensor]) -> Tensor:
        """The contrast run's stream after a block's attention, [sender, p, query, d_model], when
        heads of it read what is in `read`: these heads alone are computed again."""
        attn = self.model.blocks[layer].attn
        n_senders = len(next(iter(read.values())))
        resid = runs.stream(2 * layer + 1).expand(n_senders, -1, -1, -1)
        keys = torch.arange(self.n_pos, device=resid.device)
        here = [receiver for receiver in read if receiver.stage(self.cfg) == 2 * layer]
        heads = {head for receiver in here for head in receiver.heads(self.cfg)}
        for head in sorted(heads):
            kv_head = head // self.cfg.n_sharing
            q, z = (runs.contrast[f"{attn.name}.hook_{x}"][:, :, head] for x in ("rot_q", "z"))
            k, v = (runs.contrast[f"{attn.name}.hook_{x}"][:, :, kv_head] for x in ("rot_k", "v"))
            queries = keys[-q.shape[1] :]  # in the last block the last position alone
            new: dict[str, Tensor] = {}  # instead of q, k or v: [sender, p, pos, d_head]
            for receiver in here:
                if head in receiver.heads(self.cfg):
                    which, value = receiver.which, read[receiver]
                    if which in new:  # a head's own copy, and what all its group reads
                        value = torch.where(self.mask(receiver.positions), value, new[which])
                    new[which] = value
            q = new.get("q", q)[..., -len(queries) :, :]
            k, v = new.get("k", k), new.get("v", v)
            pattern = attention_scores(q, k, queries, keys).softmax(-1)  # [(sender,) p, query, key]
            resid = resid + product(pattern @ v - z, attn.W_O[head])
        return resid

    def _overwriting(self, read: Mapping[Receiver, Tensor]) -> Hooks:
        """Hooks that overwrite each receiver, at its positions, by what it read."""

        def overwrite(activation: Tensor, name: str) -> Tensor:
            n_pos = activation.shape[1]  # the last block may compute its last position alone
            for receiver, value in read.items():
                if receiver.hook(self.cfg) == name:  # activation: [sender * p, pos, (head,) …]
                    part = activation if receiver.head is None else activation[:, :, receiver.head]
                    chosen = self.mask(receiver.positions)[-n_pos:]  # [pos, 1]
                    part[:] = torch.where(chosen, value.flatten(0, 1)[:, -n_pos:], part)
            return activation

        return Hooks({receiver.hook(self.cfg): overwrite for receiver in read})

    def _highest(self, group: Sequence[Receiver]) -> int:
        """The stage at which the last receiver of a group reads."""
        return max(receiver.stage(self.cfg) for receiver in group)
