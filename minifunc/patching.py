"""Exact path patching, batched over senders, without a forward pass per sender.

Two runs of the same model on paired prompts: **base** and **contrast** (elsewhere: clean and corrupted). For a
**sender** (a head, an MLP, the embedding) and a **receiver** (the logits, a head's q, k or v, an MLP's input,
the residual stream at some layer) path patching asks: if only the sender's *direct* path to the receiver carried the base run's value,
everything else being the contrast run, how would the answer change? (Wang et al. 2022; Goldowsky-Dill et al.
2023; the definitions used here are those of arXiv 2507.09875.) With F = logit(base answer) - logit(contrast
answer) at the last position and means over prompts,

    r = (F_patched - F_contrast) / (F_contrast - F_base)         r = -1: fully back to the base run's behaviour

The definition takes two passes for each sender and receiver: (1) run the contrast prompt with every head frozen
but the sender, and note what the receiver would read; (2) run it again with only the receiver overwritten by
that, everything after it live. Two observations make it cheap without making it approximate:

* **Pass 1, all senders at once.** While every head is frozen, positions don't talk to each other and no
  attention is computed. All that differs from the contrast run is delta [sender, prompt, pos, d_model], what a
  sender's change has become in the residual stream. It starts as (z_base - z_contrast) W_O where the sender
  writes, and going up it changes only at MLPs: delta += MLP(x + delta) - MLP(x). One sweep serves every
  receiver; for the logits it is needed at the last position alone.
* **Pass 2 starts at the receiver.** Below it nothing changed, so the cached contrast run is continued from the
  receiver's layer, with senders folded into the batch. In the last block only the last position is computed.

Semantics (`freeze_mlps`): with **live** MLPs (False, the paper's) a direct path may pass through MLPs, which
are re-run in pass 1; with **frozen** MLPs (True, "edge" patching) delta stays as it was sent. Norms are re-run
on x + delta under both. Several receivers given as a list are overwritten together, each with its pass-1 value.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minifunc.model import Hook, Hooks, Transformer
from minifunc.nodes import HeadInput, Logits, MLPInput, Receiver, Resid
from minifunc.pairs import Chunk, PairedRuns

__all__ = ["Effects", "HeadInput", "Logits", "MLPInput", "PathPatcher", "Receiver", "Resid"]


@dataclass(frozen=True)
class Effects:
    """r of every sender on one receiver, float64 on the CPU; -1 = fully back to base, 0 = nothing.

    heads [n_layers, n_heads], mlps [n_layers] (zeros in an attention-only model), embedding [].
    per_prompt [n_senders, n_prompts]: each prompt's F_patched - F_contrast in logits, rows in the order of
    `PathPatcher.senders`. A sender at or above its receiver has no path to it: its effect is exactly 0.
    """

    heads: Tensor
    mlps: Tensor
    embedding: Tensor
    per_prompt: Tensor


class PathPatcher(PairedRuns):
    """Path patching between two sets of paired prompts; the arguments are those of `PairedRuns`, and freeze_mlps.

    freeze_mlps: False (the paper's semantics) lets a direct path pass through MLPs; True leaves it the residual
    stream alone. Under both, `sweep` is exact: it gives what the definition's two passes per sender would give.
    """

    def __init__(
        self,
        model: Transformer,
        base_tokens: Tensor,
        contrast_tokens: Tensor,
        base_answers: Tensor,
        contrast_answers: Tensor,
        freeze_mlps: bool = False,
        max_memory: float | None = None,
        source: str | Tensor = "base",
        sender_positions: Sequence[int] | None = None,
    ) -> None:
        super().__init__(model, base_tokens, contrast_tokens, base_answers, contrast_answers, max_memory, source, sender_positions)
        self.freeze_mlps = freeze_mlps or not model.cfg.has_mlp

    # ------------------------------------------------------------ what a caller uses

    def sweep(self, receiver: Receiver | Sequence[Receiver]) -> Effects:
        """The effect of every sender on one receiver, or on a list of receivers overwritten together."""
        return self.sweep_each([receiver])[0]

    @torch.no_grad()
    def sweep_each(self, receivers: Sequence[Receiver | Sequence[Receiver]]) -> list[Effects]:
        """One `Effects` for each entry of `receivers`, all from a single pass 1. Raises ValueError for a receiver the model lacks."""
        groups = [tuple(entry) if isinstance(entry, Sequence) else (entry,) for entry in receivers]
        for group in groups:
            for receiver in group:
                self._check(receiver)
            places = [str(receiver) for receiver in set(group)]
            if not group or len(set(places)) < len(places):
                raise ValueError(f"a list of receivers must name each place once, with all its positions, not {sorted(places)}")
        if not abs(self.F_range) > 1e-6:  # also where it is NaN
            raise ValueError(f"F_contrast - F_base is {self.F_range:.2g}, so r is undefined: the model does not tell these prompts apart, or a weight is not finite")
        totals = [torch.zeros(len(self.senders), self.n_prompts, dtype=torch.float64) for _ in groups]
        only_logits = all(group == (Logits(),) for group in groups)
        rows = self.rows_in_budget(1 if only_logits else self.n_pos)
        for chunk in self.chunks():
            step = max(1, rows // len(chunk.contrast_logits))
            for start in range(0, len(self.senders), step):
                senders = range(start, min(start + step, len(self.senders)))
                for index, change in self._sweep_chunk(chunk, senders, groups, only_logits):
                    totals[index][start : start + len(change), chunk.prompts] = change.double().cpu()
        return [self.effects(total) for total in totals]

    # ------------------------------------------------------------ pass 1

    def _sweep_chunk(self, chunk: Chunk, senders: range, groups: list[tuple[Receiver, ...]], only_logits: bool) -> Iterator[tuple[int, Tensor]]:
        """Carries the deltas of `senders` up the layers; yields (group, F_patched - F_contrast [sender, p]) as groups complete."""
        where = slice(-1, None) if only_logits else slice(None)
        delta = chunk.d_embed.new_zeros(len(senders), *chunk.d_embed[:, where].shape)  # [sender, p, pos, d_model]
        values: list[dict[Receiver, Tensor]] = [{} for _ in groups]  # what each group's receivers would read, noted so far

        def send(sender: int, change: Tensor) -> None:
            if sender in senders:
                delta[sender - senders.start] = change

        def note(stage: int) -> Iterator[tuple[int, Tensor]]:
            """Notes what the receivers of this stage would read; runs pass 2 for the groups that are then complete."""
            for index, group in enumerate(groups):
                here = [receiver for receiver in group if self._stage(receiver) == stage]
                n_senders = min(self._n_below(max(map(self._stage, group))), senders.stop) - senders.start
                if here and n_senders > 0:
                    values[index] |= {receiver: self._read(receiver, chunk, delta[:n_senders], where) for receiver in here}
                    if len(values[index]) == len(set(group)):
                        yield index, self._second_pass(chunk, values[index])
                        values[index] = {}

        none = Hooks()
        send(0, chunk.d_embed[:, where])
        for layer, block in enumerate(self.model.blocks):
            yield from note(2 * layer)
            for head in range(self.cfg.n_heads):
                send(self._n_below(2 * layer) + head, chunk.d_z[layer][:, where, head] @ block.attn.W_O[head])
            yield from note(2 * layer + 1)
            if block.mlp is not None:
                sent = delta[: max(0, self._n_below(2 * layer + 1) - senders.start)]
                if not self.freeze_mlps and len(sent):
                    resid, after = chunk.resid_mid[layer][:, where], chunk.resid_pre[layer + 1][:, where]
                    sent += block.mlp(block.ln2(resid + sent, none), none) - (after - resid)  # after - resid: the MLP's output at delta = 0
                send(self._n_below(2 * layer + 1), chunk.d_mlp[layer][:, where])
        yield from note(2 * self.cfg.n_layers)

    def _read(self, receiver: Receiver, chunk: Chunk, delta: Tensor, where: slice) -> Tensor:
        """What `receiver` reads when the stream is the contrast run's plus delta: [sender, p, pos, d_head or d_model]."""
        if not isinstance(receiver, Logits) and receiver.positions is not None:
            delta = delta * self.mask(receiver.positions)
        if isinstance(receiver, HeadInput):
            block = self.model.blocks[receiver.layer]
            weight = getattr(block.attn, f"W_{receiver.which.upper()}")[receiver.head]  # [d_model, d_head]
            return block.ln1(chunk.resid_pre[receiver.layer] + delta, Hooks()) @ weight
        if isinstance(receiver, MLPInput):
            return chunk.resid_mid[receiver.layer] + delta
        return chunk.resid_pre[receiver.layer if isinstance(receiver, Resid) else -1][:, where] + delta

    # ------------------------------------------------------------ pass 2

    def _second_pass(self, chunk: Chunk, values: dict[Receiver, Tensor]) -> Tensor:
        """Continues the contrast run with each receiver overwritten by its value [sender, p, pos, …] → F_patched - F_contrast [sender, p]."""
        n_layers, n_senders = self.cfg.n_layers, len(next(iter(values.values())))
        lowest, hooks = min(map(self._stage, values)), self._overwrite(values)
        layer = lowest // 2
        streams = {self._stage(receiver): value.flatten(0, 1) for receiver, value in values.items() if isinstance(receiver, (Logits, Resid))}
        if 2 * n_layers in streams:  # the final stream is overwritten: nothing below it matters
            logits = self.model.run_from(streams[2 * n_layers][:, -1:], n_layers)
        elif lowest in streams:
            logits = self.model.run_from(streams[lowest], layer, self.last, hooks)
        else:  # heads of the lowest layer are recomputed one by one; what stands beside them is the contrast run's
            in_last = layer == n_layers - 1
            queries = self.last if in_last else self.everywhere
            resid = chunk.resid_mid[layer][:, queries].expand(n_senders, -1, -1, -1)  # [sender, p, query, d_model]
            for head in sorted({receiver.head for receiver in values if isinstance(receiver, HeadInput) and receiver.layer == layer}):
                resid = resid + self._changed_head(chunk, layer, head, values, queries)
            resid = self.model.blocks[layer].add_mlp(resid.flatten(0, 1), hooks)  # [sender * p, query, d_model]
            logits = self.model.run_from(resid, layer + 1, None if in_last else self.last, hooks)
        logits = logits[:, -1].unflatten(0, (n_senders, -1))  # [sender, p, d_vocab]
        return self.score(logits, chunk.prompts) - self.F_contrast[chunk.prompts]

    def _changed_head(self, chunk: Chunk, layer: int, head: int, values: dict[Receiver, Tensor], queries: Tensor) -> Tensor:
        """What head (layer, head) adds to its contrast output when its overwritten inputs are used: [sender, p, query, d_model]."""
        attn = self.model.blocks[layer].attn
        q, k, v = (x[layer][:, :, head : head + 1] for x in (chunk.q, chunk.k, chunk.v))  # [p, pos, 1, d_head]
        new: dict[str, Tensor | None] = dict.fromkeys("qkv")
        new |= {receiver.which: value for receiver, value in values.items() if isinstance(receiver, HeadInput) and (receiver.layer, receiver.head) == (layer, head)}

        def turned(x: Tensor) -> Tensor:  # [sender, p, pos, d_head] → the same as rows, positions worked in
            return attn.position(x.flatten(0, 1)[:, :, None], self.everywhere).unflatten(0, x.shape[:2])

        if new["q"] is None and new["k"] is None:  # the contrast run's pattern serves every sender
            pattern = attn.scores(q[:, queries], k, queries, self.everywhere).softmax(-1)  # [p, 1, query, key]
        else:
            q = q if new["q"] is None else turned(new["q"])  # [(sender,) p, pos, 1, d_head]
            k = k if new["k"] is None else turned(new["k"])
            scores = q[..., queries, 0, :] @ k[..., 0, :].mT / math.sqrt(self.cfg.d_head)  # [sender, p, query, key]
            pattern = scores.masked_fill(self.everywhere > queries[:, None], -torch.inf).softmax(-1)
        pattern = pattern[:, 0] if new["q"] is None and new["k"] is None else pattern
        z = pattern @ (v[:, :, 0] if new["v"] is None else new["v"])  # [sender, p, query, d_head]
        return (z - chunk.z[layer][:, queries, head]) @ attn.W_O[head]

    def _overwrite(self, values: dict[Receiver, Tensor]) -> Hooks:
        """Hooks that overwrite, in pass 2, the receivers above the lowest layer and the inputs of MLPs."""
        functions: dict[str, Hook] = {}
        for receiver, value in values.items():
            if isinstance(receiver, Logits):
                continue
            place = f"attn.hook_{receiver.which}" if isinstance(receiver, HeadInput) else "hook_mlp_in" if isinstance(receiver, MLPInput) else "hook_resid_pre"
            name = f"blocks.{receiver.layer}.{place}"
            before = functions.get(name, lambda x, name: x)  # another head of the same block may be overwritten too

            def put(x: Tensor, name: str, receiver=receiver, rows=value.flatten(0, 1), before=before) -> Tensor:
                x, there = before(x, name), self.mask(receiver.positions)
                rows, there = rows[:, -x.shape[1] :], there[-x.shape[1] :]  # the last block may compute its last position alone
                if not isinstance(receiver, HeadInput):
                    return torch.where(there, rows, x)
                x = x.clone()
                x[:, :, receiver.head] = torch.where(there, rows, x[:, :, receiver.head])
                return x

            functions[name] = put
        return Hooks(functions)

    # ------------------------------------------------------------ small parts

    def _stage(self, receiver: Receiver) -> int:
        return receiver.stage(self.cfg.n_layers)

    def _n_below(self, stage: int) -> int:
        """How many senders write to the stream before a stage; they are the first ones in `senders`."""
        layer, after_heads = divmod(stage, 2)
        return 1 + layer * (self.cfg.n_heads + self.cfg.has_mlp) + after_heads * self.cfg.n_heads

    def effects(self, total: Tensor) -> Effects:
        """Sums per sender and prompt, [n_senders, n_prompts] float64 in logits → r values."""
        r = total.mean(dim=1) / self.F_range
        layers = r[1:].unflatten(0, (self.cfg.n_layers, -1))  # [n_layers, n_heads (+ 1)]
        n_heads = self.cfg.n_heads
        mlps = layers[:, n_heads] if self.cfg.has_mlp else torch.zeros(self.cfg.n_layers, dtype=r.dtype)
        return Effects(layers[:, :n_heads], mlps, r[0], total)

    def _check(self, receiver: Receiver) -> None:
        layers = self.cfg.n_layers
        if isinstance(receiver, Logits):
            return
        self.mask(receiver.positions)
        if isinstance(receiver, HeadInput) and 0 <= receiver.layer < layers and 0 <= receiver.head < self.cfg.n_heads and receiver.which in ("q", "k", "v"):
            return
        if isinstance(receiver, MLPInput) and 0 <= receiver.layer < layers and self.cfg.has_mlp:
            return
        if isinstance(receiver, Resid) and (0 <= receiver.layer < layers or receiver == Resid(layers)):
            return
        raise ValueError(f"this model of {layers} layers × {self.cfg.n_heads} heads has no receiver {receiver!r}")
