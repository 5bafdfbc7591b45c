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
  receiver's layer, with senders folded into the batch. In the last block only the last position is computed, and
  positions before the first one at which the two runs differ are not computed again: their k and v are a `past`.

Semantics (`freeze_mlps`): with **live** MLPs (False, the paper's) a direct path may pass through MLPs, which
are re-run in pass 1; with **frozen** MLPs (True, "edge" patching) delta stays as it was sent. Norms are re-run
on x + delta under both. Several receivers given as a list are overwritten together, each with its pass-1 value.
"""

import bisect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from minifunc.model import Hook, Hooks, Transformer
from minifunc.nodes import HeadInput, Logits, MLPInput, Receiver, Resid
from minifunc.pairs import Chunk, PairedRuns
from minifunc.support.processes import all_sum

__all__ = ["Effects", "HeadInput", "Logits", "MLPInput", "PathPatcher", "Receiver", "Resid"]


Senders = Sequence[str | Sequence[str]]


@dataclass(frozen=True)
class Effects:
    """r of every sender on one receiver, float64 on the CPU; -1 = fully back to base, 0 = nothing.

    heads [n_layers, n_heads], mlps [n_layers] (zeros in an attention-only model), embedding []; NaN where a sender
    was not asked for. per_prompt [n_senders, n_prompts]: each prompt's F_patched - F_contrast in logits, and
    r [n_senders]: rows in the order of the `senders` asked for, by default `PathPatcher.senders`. A sender at or
    above its receiver has no path to it: its effect is exactly 0.
    """

    heads: Tensor
    mlps: Tensor
    embedding: Tensor
    per_prompt: Tensor
    r: Tensor = field(default_factory=lambda: torch.empty(0))

    def named(self, strongest_first: bool = False) -> dict[str, float]:
        """r by name of sender, in the order of the model: embedding, 0.0, 0.1, …, mlp0, 1.0, …"""
        named = {"embedding": self.embedding.item()}
        for layer, row in enumerate(self.heads.tolist()):
            named |= {f"{layer}.{head}": r for head, r in enumerate(row)}
            named[f"mlp{layer}"] = self.mlps[layer].item()
        if strongest_first:
            return dict(sorted(named.items(), key=lambda pair: -abs(pair[1])))
        return named


class PathPatcher(PairedRuns):
    """Path patching between two sets of paired prompts; the arguments are those of `PairedRuns`, and freeze_mlps.

    freeze_mlps: False (the paper's semantics) lets a direct path pass through MLPs; True leaves it the residual
    stream alone. Under both, `sweep` is exact: it gives what the definition's two passes per sender would give.

    >>> from minifunc.model import ModelConfig
    >>> base, contrast = torch.tensor([[1, 2, 3]]), torch.tensor([[1, 4, 3]])
    >>> patcher = PathPatcher(Transformer(ModelConfig(d_vocab=9)), base, contrast, torch.tensor([5]), torch.tensor([6]))
    >>> patcher.sweep(Logits()).heads.shape  # r of each head on the answer
    torch.Size([4, 4])
    >>> patcher.sweep(HeadInput(3, 2, "v"), senders=["mlp3", ["0.1", "2.2"]]).r == 0  # mlp3 is above: no path; two heads jointly
    tensor([ True, False])
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
        super().__init__(
            model,
            base_tokens,
            contrast_tokens,
            base_answers,
            contrast_answers,
            max_memory,
            source,
            sender_positions,
        )
        self.freeze_mlps = freeze_mlps or not model.cfg.has_mlp

    # ------------------------------------------------------------ what a caller uses

    def sweep(
        self, receiver: Receiver | Sequence[Receiver], senders: Senders | None = None
    ) -> Effects:
        """The effect of every sender on one receiver, or on a list of receivers overwritten together."""
        return self.sweep_each([receiver], senders)[0]

    @torch.no_grad()
    def sweep_each(
        self, receivers: Sequence[Receiver | Sequence[Receiver]], senders: Senders | None = None
    ) -> list[Effects]:
        """One `Effects` for each entry of `receivers`, all from a single pass 1.

        senders: which ones, by name, in place of all; an entry that is a list of names is a joint sender, whose
        members send together. Raises ValueError for a receiver or a sender that the model lacks.
        """
        groups = [tuple(entry) if isinstance(entry, Sequence) else (entry,) for entry in receivers]
        for group in groups:
            for receiver in group:
                self._check(receiver)
            places = [str(receiver) for receiver in set(group)]
            if not group or len(set(places)) < len(places):
                raise ValueError(
                    f"a list of receivers must name each place once, with all its positions, not {sorted(places)}"
                )
        rows = self._rows(self.senders if senders is None else senders)
        if not abs(self.F_range) > 1e-6:  # also where it is NaN
            raise ValueError(
                f"F_contrast - F_base is {self.F_range:.2g}, so r is undefined: the model does not tell these prompts apart, or a weight is not finite"
            )
        totals = [torch.zeros(len(rows), self.n_prompts, dtype=torch.float64) for _ in groups]
        only_logits = all(group == (Logits(),) for group in groups)
        in_budget = (
            self.rows_in_budget(1)
            if only_logits
            else self.rows_in_budget(self.n_pos - self.first, self.first)
        )
        order = sorted(
            range(len(rows)), key=lambda row: rows[row]
        )  # the lowest ones first: those below a receiver are then a beginning
        for chunk in self.chunks():
            for some in torch.tensor(order).split(max(1, in_budget // len(chunk.contrast_logits))):
                for index, change in self._sweep_chunk(
                    chunk, [rows[row] for row in some], groups, only_logits
                ):
                    totals[index][some[: len(change)], chunk.prompts] = change.cpu()
        all_sum(*totals)
        return [self.effects(total, rows) for total in totals]

    # ------------------------------------------------------------ pass 1

    def _sweep_chunk(
        self,
        chunk: Chunk,
        rows: list[tuple[int, ...]],
        groups: list[tuple[Receiver, ...]],
        only_logits: bool,
    ) -> Iterator[tuple[int, Tensor]]:
        """Carries the deltas of some senders up the layers; yields (group, F_patched - F_contrast [sender, p]) as groups complete."""
        where = slice(-1, None) if only_logits else slice(None)
        delta = torch.zeros_like(chunk.at(0, "hook_resid_pre")[:, where]).repeat(
            len(rows), 1, 1, 1
        )  # [sender, p, pos, d_model]
        values: list[dict[Receiver, Tensor]] = [
            {} for _ in groups
        ]  # what each group's receivers would read, noted so far

        def send(sender: int, name: str, layer: int, head: int | None = None) -> None:
            for row, members in enumerate(rows):
                if sender in members:
                    change = self.change(chunk, name, where, head)
                    delta[row] += (
                        change if head is None else change @ self.model.blocks[layer].attn.W_O[head]
                    )

        def below(stage: int) -> int:
            return bisect.bisect_left(rows, (self._n_below(stage),))

        def note(stage: int) -> Iterator[tuple[int, Tensor]]:
            """Notes what the receivers of this stage would read; runs pass 2 for the groups that are then complete."""
            read: dict[
                object, Tensor
            ] = {}  # the normalized stream that all heads of the layer read
            for index, group in enumerate(groups):
                here = [receiver for receiver in group if self._stage(receiver) == stage]
                n_senders = below(max(map(self._stage, group)))
                if here and n_senders:
                    values[index] |= {
                        receiver: self._read(receiver, chunk, delta[:n_senders], where, read)
                        for receiver in here
                    }
                    if len(values[index]) == len(set(group)):
                        yield index, self._second_pass(chunk, values[index])
                        values[index] = {}

        none, last = Hooks(), self.cfg.n_layers - 1
        send(0, "hook_embed", 0)
        for layer, block in enumerate(self.model.blocks):
            yield from note(2 * layer)
            where, delta = (slice(-1, None), delta[:, :, -1:]) if layer == last else (where, delta)
            for head in range(self.cfg.n_heads):
                send(self._n_below(2 * layer) + head, f"{block.name}.attn.hook_z", layer, head)
            yield from note(2 * layer + 1)
            if block.mlp is not None:
                sent, sender = delta[: below(2 * layer + 1)], self._n_below(2 * layer + 1)
                if not self.freeze_mlps and len(sent):
                    resid, after = (
                        chunk.at(layer, "hook_resid_mid")[:, where],
                        chunk.at(layer, "hook_mlp_out")[:, where],
                    )
                    through = block.mlp(block.ln2(resid + sent, none), none) - after
                    through[[sender in row for row in rows[: len(sent)]]] = (
                        0  # what it sends does not depend on what joint senders below make it read
                    )
                    sent += through
                send(sender, f"{block.name}.hook_mlp_out", layer)
        yield from note(2 * self.cfg.n_layers)

    def _read(
        self,
        receiver: Receiver,
        chunk: Chunk,
        delta: Tensor,
        where: slice,
        read: dict[object, Tensor],
    ) -> Tensor:
        """What `receiver` reads when the stream is the contrast run's plus delta: [sender, p, pos, d_head or d_model]."""
        if not isinstance(receiver, Logits) and receiver.positions is not None:
            delta = delta * self.mask(receiver.positions)[-delta.shape[2] :]
        if isinstance(receiver, HeadInput):
            block = self.model.blocks[receiver.layer]
            same = (
                receiver.positions,
                len(delta),
            )  # receivers for which the normalized stream is the same
            if same not in read:
                read.clear()  # no more than one is held
                read[same] = block.ln1(chunk.at(receiver.layer, "hook_resid_pre") + delta, Hooks())
            return read[same] @ getattr(block.attn, f"W_{receiver.which.upper()}")[receiver.head]
        if isinstance(receiver, MLPInput):
            return chunk.at(receiver.layer, "hook_resid_mid") + delta
        return (
            self._stream(
                chunk, receiver.layer if isinstance(receiver, Resid) else self.cfg.n_layers
            )[:, where]
            + delta
        )

    def _stream(self, chunk: Chunk, layer: int) -> Tensor:
        """The contrast run's stream that enters a block, or leaves the last one."""
        return (
            chunk.at(layer - 1, "hook_resid_post")
            if layer == self.cfg.n_layers
            else chunk.at(layer, "hook_resid_pre")
        )

    # ------------------------------------------------------------ pass 2

    def _second_pass(self, chunk: Chunk, values: dict[Receiver, Tensor]) -> Tensor:
        """Continues the contrast run with each receiver overwritten by its value [sender, p, pos, …] → F_patched - F_contrast [sender, p]."""
        n_layers, n_senders = self.cfg.n_layers, len(next(iter(values.values())))
        lowest, hooks = min(map(self._stage, values)), self._overwrite(values)
        streams = {
            self._stage(receiver): value.flatten(0, 1)
            for receiver, value in values.items()
            if isinstance(receiver, (Logits, Resid))
        }
        start = (
            2 * n_layers if 2 * n_layers in streams else lowest
        )  # where the final stream is overwritten, nothing below it matters
        layer = start // 2
        if start in streams:
            logits = self._continue(chunk, streams[start], layer, hooks)
        else:  # heads of the lowest layer are recomputed one by one; what stands beside them is the contrast run's
            resid = chunk.at(layer, "hook_resid_mid").expand(
                n_senders, -1, -1, -1
            )  # [sender, p, query, d_model]
            for head in sorted(
                {
                    receiver.head
                    for receiver in values
                    if isinstance(receiver, HeadInput) and receiver.layer == layer
                }
            ):
                resid = resid + self._changed_head(chunk, layer, head, values)
            resid = self.model.blocks[layer].add_mlp(
                resid.flatten(0, 1), hooks
            )  # [sender * p, query, d_model]
            logits = self._continue(chunk, resid, layer + 1, hooks)
        logits = logits.unflatten(0, (n_senders, -1))  # [sender, p, d_vocab]
        return self.score(logits, chunk.prompts) - self.score(chunk.contrast_logits, chunk.prompts)

    def _continue(self, chunk: Chunk, resid: Tensor, layer: int, hooks: Hooks) -> Tensor:
        """Runs rows of the stream that enters block `layer`, [row, pos, d_model], to the last position's logits, [row, d_vocab]."""
        if layer == self.cfg.n_layers:
            return self.model.run_from(resid[:, -1:], layer)[:, 0]
        return self.model.run_from(resid, layer, self.last, hooks, chunk.past[layer:])[:, 0]

    def _changed_head(
        self, chunk: Chunk, layer: int, head: int, values: dict[Receiver, Tensor]
    ) -> Tensor:
        """What head (layer, head) adds to its contrast output when its overwritten inputs are used: [sender, p, query, d_model]."""
        attn = self.model.blocks[layer].attn
        q, k, v = (
            chunk.at(layer, f"attn.{name}")[:, :, head]
            for name in ("hook_rot_q", "hook_rot_k", "hook_v")
        )  # [p, query or key, d_head]
        new = {
            receiver.which: value
            for receiver, value in values.items()
            if isinstance(receiver, HeadInput) and (receiver.layer, receiver.head) == (layer, head)
        }
        keys, queries = (
            torch.arange(self.n_pos, device=q.device),
            torch.arange(self.n_pos - q.shape[1], self.n_pos, device=q.device),
        )

        def turned(
            x: Tensor, positions: Tensor
        ) -> Tensor:  # [sender, p, pos, d_head], positions worked in
            return attn.position(x.flatten(0, 1)[:, :, None], positions)[:, :, 0].unflatten(
                0, x.shape[:2]
            )

        def after_past(
            old: Tensor, x: Tensor
        ) -> Tensor:  # [p, key, d_head], [sender, p, pos, d_head] → [sender, p, key, d_head]
            return (
                torch.cat([old[:, : self.first].expand(len(x), -1, -1, -1), x], dim=2)
                if self.first
                else x
            )

        if "q" in new:
            q = turned(new["q"][:, :, -len(queries) :], queries)
        if "k" in new:
            k = after_past(k, turned(new["k"], keys[self.first :]))
        if "v" in new:
            v = after_past(v, new["v"])
        scores = (
            q @ k.mT / math.sqrt(self.cfg.d_head)
        )  # [(sender,) p, query, key]: where only v is new, one pattern serves every sender
        pattern = scores.masked_fill(keys > queries[:, None], -torch.inf).softmax(-1)
        return (pattern @ v - chunk.at(layer, "attn.hook_z")[:, :, head]) @ attn.W_O[head]

    def _overwrite(self, values: dict[Receiver, Tensor]) -> Hooks:
        """Hooks that overwrite, in pass 2, the receivers above the lowest layer and the inputs of MLPs."""
        functions: dict[str, Hook] = {}
        for receiver, value in values.items():
            if isinstance(receiver, Logits):
                continue
            place = (
                f"attn.hook_{receiver.which}"
                if isinstance(receiver, HeadInput)
                else "hook_mlp_in"
                if isinstance(receiver, MLPInput)
                else "hook_resid_pre"
            )
            name = f"blocks.{receiver.layer}.{place}"
            before = functions.get(
                name, lambda x, name: x
            )  # another head of the same block may be overwritten too

            def put(
                x: Tensor,
                name: str,
                receiver: HeadInput | MLPInput | Resid = receiver,
                rows: Tensor = value.flatten(0, 1),
                before: Hook = before,
            ) -> Tensor:
                x, there = before(x, name), self.mask(receiver.positions)
                rows, there = (
                    rows[:, -x.shape[1] :],
                    there[-x.shape[1] :],
                )  # the last block may compute its last position alone
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

    def _rows(self, senders: Senders) -> list[tuple[int, ...]]:
        """Each entry of `senders` as the places of its members in `self.senders`, ascending."""
        rows = []
        for entry in senders:
            names = [entry] if isinstance(entry, str) else list(entry)
            unknown = [name for name in names if name not in self.senders]
            if unknown or not names:
                raise ValueError(
                    f"no sender {unknown[0]!r}: there is embedding, 0.0 (a head), …, mlp0, …"
                    if unknown
                    else "a joint sender needs at least one member"
                )
            rows.append(tuple(sorted({self.senders.index(name) for name in names})))
        return rows

    def effects(self, total: Tensor, rows: Sequence[tuple[int, ...]] | None = None) -> Effects:
        """Sums per sender and prompt, [n_senders, n_prompts] float64 in logits → r values."""
        each = total.mean(dim=1) / self.F_range
        r = torch.full([len(self.senders)], torch.nan, dtype=each.dtype)
        for row, members in enumerate(
            [(sender,) for sender in range(len(r))] if rows is None else rows
        ):
            if len(members) == 1:
                r[members[0]] = each[row]
        layers = r[1:].unflatten(0, (self.cfg.n_layers, -1))  # [n_layers, n_heads (+ 1)]
        n_heads = self.cfg.n_heads
        mlps = (
            layers[:, n_heads]
            if self.cfg.has_mlp
            else torch.zeros(self.cfg.n_layers, dtype=r.dtype)
        )
        return Effects(layers[:, :n_heads], mlps, r[0], total, each)

    def _check(self, receiver: Receiver) -> None:
        layers = self.cfg.n_layers
        if isinstance(receiver, Logits):
            return
        self.mask(getattr(receiver, "positions", None))
        if (
            isinstance(receiver, HeadInput)
            and 0 <= receiver.layer < layers
            and 0 <= receiver.head < self.cfg.n_heads
            and receiver.which in ("q", "k", "v")
        ):
            return
        if isinstance(receiver, MLPInput) and 0 <= receiver.layer < layers and self.cfg.has_mlp:
            return
        if isinstance(receiver, Resid) and (
            0 <= receiver.layer < layers or receiver == Resid(layers)
        ):
            return
        raise ValueError(
            f"this model of {layers} layers × {self.cfg.n_heads} heads has no receiver {receiver!r}"
        )
