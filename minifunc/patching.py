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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minifunc.model import Hook, Hooks, Transformer


@dataclass(frozen=True)
class Logits:
    """The final residual stream at the last position, as the unembedding reads it."""

    def __str__(self) -> str:
        return "logits"


@dataclass(frozen=True)
class HeadInput:
    """The q, k or v of one head, at all positions or only at some (a tuple of them, from 0)."""

    layer: int
    head: int
    which: str
    positions: tuple[int, ...] | None = None

    def __str__(self) -> str:
        return f"{self.layer}.{self.head}.{self.which}"


@dataclass(frozen=True)
class MLPInput:
    """What an MLP reads (its norm's input), not the stream that passes it by; at all positions or only at some."""

    layer: int
    positions: tuple[int, ...] | None = None

    def __str__(self) -> str:
        return f"mlp{self.layer}"


@dataclass(frozen=True)
class Resid:
    """The whole residual stream that enters a block (`hook_resid_pre`), at all positions or only at some."""

    layer: int
    positions: tuple[int, ...] | None = None

    def __str__(self) -> str:
        return f"resid{self.layer}"


Receiver = Logits | HeadInput | MLPInput | Resid


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


@dataclass
class Chunk:
    """The two cached runs on some of the prompts; p = prompts in this chunk.

    Of the contrast run: the stream around each attention and MLP, and each head's q, k (positions worked in), v, z.
    As differences base - contrast: what the embedding, each head's z and each MLP would send.
    """

    prompts: slice
    resid_pre: list[Tensor]  # n_layers + 1 of [p, pos, d_model]; the last one enters the final norm
    resid_mid: list[Tensor]  # n_layers of [p, pos, d_model]
    q: list[Tensor]  # n_layers of [p, pos, head, d_head]
    k: list[Tensor]
    v: list[Tensor]
    z: list[Tensor]
    d_embed: Tensor  # [p, pos, d_model]
    d_z: list[Tensor]  # n_layers of [p, pos, head, d_head]
    d_mlp: list[Tensor]  # n_layers of [p, pos, d_model]
    base_logits: Tensor  # [p, d_vocab], last position
    contrast_logits: Tensor


class PathPatcher:
    """Path patching between two sets of paired prompts.

    base_tokens, contrast_tokens: [n_prompts, pos] int64, scored at the last position. base_answers,
    contrast_answers: [n_prompts] int64, the two tokens whose logits F compares. freeze_mlps: see the module's
    docstring. source: what senders send in place of their contrast values. "base" (the paired base run), "mean" (the
    mean over the base prompts, position by position), "zero", or tokens [n_prompts, pos] of other prompts whose
    activations are sent. sender_positions: the positions at which senders are changed (default: all). r is always measured against
    F of the paired base run. max_memory: GiB that the sweep may use beside the weights (default: a quarter of what is free on
    CUDA, 0.5 elsewhere); it sets the size of the chunks, never the results.

    F_base, F_contrast [n_prompts]: F of the two runs, in logits. Raises ValueError where shapes or answers do
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
        freeze_mlps: bool = False,
        max_memory: float | None = None,
        source: str | Tensor = "base",
        sender_positions: Sequence[int] | None = None,
    ) -> None:
        cfg, device = model.cfg, model.unembed.W_U.device
        if base_tokens.shape != contrast_tokens.shape or base_tokens.ndim != 2 or 0 in base_tokens.shape:
            raise ValueError(f"base and contrast tokens must be [n_prompts, pos] of one shape, not {list(base_tokens.shape)} and {list(contrast_tokens.shape)}")
        if base_answers.shape != base_tokens.shape[:1] or contrast_answers.shape != base_tokens.shape[:1]:
            raise ValueError(f"answers must be [n_prompts] = [{len(base_tokens)}], not {list(base_answers.shape)} and {list(contrast_answers.shape)}")
        self.model, self.cfg, self.freeze_mlps = model, cfg, freeze_mlps or not cfg.has_mlp
        self.base_tokens, self.contrast_tokens = base_tokens.to(device), contrast_tokens.to(device)
        self.answers = torch.stack([base_answers, contrast_answers], dim=1).to(device)  # [n_prompts, 2]
        self.n_prompts, self.n_pos = base_tokens.shape
        self.everywhere = torch.arange(self.n_pos, device=device)
        self.last = self.everywhere[-1:]
        self.sender_positions = self._mask(sender_positions)  # [pos, 1] bool
        if not isinstance(source, Tensor) and source not in ("base", "mean", "zero"):
            raise ValueError(f"source must be 'base', 'mean', 'zero' or tokens, not {source!r}")
        if isinstance(source, Tensor) and source.shape != base_tokens.shape:
            raise ValueError(f"source tokens must be {list(base_tokens.shape)} like the prompts, not {list(source.shape)}")
        self.source = source.to(device) if isinstance(source, Tensor) else source
        # Senders, in the order in which they write to the stream: embedding, heads of layer 0, MLP 0, heads of layer 1 …
        self.senders = ["embedding"]
        for layer in range(cfg.n_layers):
            self.senders += [f"{layer}.{head}" for head in range(cfg.n_heads)] + ([f"mlp{layer}"] if cfg.has_mlp else [])
        self._sent = ["hook_embed", *(f"blocks.{layer}.attn.hook_z" for layer in range(cfg.n_layers))]
        self._sent += [f"blocks.{layer}.hook_mlp_out" for layer in range(cfg.n_layers) if cfg.has_mlp]
        self.max_memory = _default_memory(device) if max_memory is None else max_memory
        rows = self._rows_in_budget(self.n_pos)
        self.prompts_per_chunk = min(self.n_prompts, max(1, rows // len(self.senders)))
        keep = self._cache_bytes() * self.n_prompts < self.max_memory * 2**30 / 2
        self._kept: list[Chunk] = []
        self._mean = self._mean_of_base() if isinstance(source, str) and source == "mean" else {}
        scores = []
        for chunk in self._chunks():
            scores.append((self.score(chunk.base_logits, chunk.prompts), self.score(chunk.contrast_logits, chunk.prompts)))
            self._kept += [chunk] if keep else []
        self.F_base, self.F_contrast = (torch.cat(F) for F in zip(*scores))  # [n_prompts] each
        self.F_range = float(self.F_contrast.double().mean() - self.F_base.double().mean())

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
        rows = self._rows_in_budget(1 if only_logits else self.n_pos)
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
                    resid = chunk.resid_mid[layer][:, where]
                    sent += block.mlp(block.ln2(resid + sent, none), none) - block.mlp(block.ln2(resid, none), none)
                send(self._n_below(2 * layer + 1), chunk.d_mlp[layer][:, where])
        yield from note(2 * self.cfg.n_layers)

    def _read(self, receiver: Receiver, chunk: Chunk, delta: Tensor, where: slice) -> Tensor:
        """What `receiver` reads when the stream is the contrast run's plus delta: [sender, p, pos, d_head or d_model]."""
        if not isinstance(receiver, Logits) and receiver.positions is not None:
            delta = delta * self._mask(receiver.positions)
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
        n_layers = self.cfg.n_layers
        stage, top = (choose(map(self._stage, values)) for choose in (min, max))
        layer, hooks = stage // 2, self._overwrite(values)
        n_senders = len(next(iter(values.values())))
        streams = [value for receiver, value in values.items() if isinstance(receiver, (Logits, Resid)) and self._stage(receiver) in (stage, 2 * n_layers)]
        if top == 2 * n_layers or streams:  # a whole stream is overwritten: nothing below it matters
            layer = n_layers if top == 2 * n_layers else layer
            resid = streams[-1].flatten(0, 1)  # [sender * p, pos, d_model]
            resid, layer = (resid[:, -1:], layer) if layer == n_layers else (resid, layer)
        else:  # heads of the lowest layer are recomputed one by one; what stands beside them is the contrast run's
            queries = self.last if layer == n_layers - 1 else self.everywhere
            resid = chunk.resid_mid[layer][:, queries].expand(n_senders, -1, -1, -1)  # [sender, p, query, d_model]
            for head in sorted({receiver.head for receiver in values if isinstance(receiver, HeadInput) and receiver.layer == layer}):
                resid = resid + self._changed_head(chunk, layer, head, values, queries)
            resid = self.model.blocks[layer].add_mlp(resid.flatten(0, 1), hooks)
            layer += 1
        logits = self.model.run_from(resid, layer, None if layer == n_layers else self.last, hooks)[:, -1]
        logits = logits.unflatten(0, (n_senders, -1))  # [sender, p, d_vocab]
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
                x, there = before(x, name), self._mask(receiver.positions)
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
        """Where a receiver reads: 2 * layer before that layer's attention, 2 * layer + 1 before its MLP, 2 * n_layers at the end."""
        if isinstance(receiver, Logits):
            return 2 * self.cfg.n_layers
        return 2 * receiver.layer + isinstance(receiver, MLPInput)

    def _n_below(self, stage: int) -> int:
        """How many senders write to the stream before a stage; they are the first ones in `senders`."""
        layer, after_heads = divmod(stage, 2)
        return 1 + layer * (self.cfg.n_heads + self.cfg.has_mlp) + after_heads * self.cfg.n_heads

    def score(self, logits: Tensor, prompts: slice) -> Tensor:
        """F = logit(base answer) - logit(contrast answer) of logits [..., p, d_vocab]: [..., p]."""
        answers = self.answers[prompts].expand(*logits.shape[:-1], 2)
        picked = logits.gather(-1, answers)
        return picked[..., 0] - picked[..., 1]

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
        self._mask(receiver.positions)
        if isinstance(receiver, HeadInput) and 0 <= receiver.layer < layers and 0 <= receiver.head < self.cfg.n_heads and receiver.which in ("q", "k", "v"):
            return
        if isinstance(receiver, MLPInput) and 0 <= receiver.layer < layers and self.cfg.has_mlp:
            return
        if isinstance(receiver, Resid) and (0 <= receiver.layer < layers or receiver == Resid(layers)):
            return
        raise ValueError(f"this model of {layers} layers × {self.cfg.n_heads} heads has no receiver {receiver!r}")

    def chunks(self) -> Iterable[Chunk]:
        """The cached runs: kept from the start where they fit the budget, made anew where they do not."""
        return self._kept or self._chunks()

    @torch.no_grad()
    def _chunks(self) -> Iterator[Chunk]:
        """Runs both prompts of some pairs at a time and keeps what the sweep needs."""
        for start in range(0, self.n_prompts, self.prompts_per_chunk):
            prompts = slice(start, start + self.prompts_per_chunk)
            layers = range(self.cfg.n_layers)
            read = [f"blocks.{layer}.{name}" for layer in layers for name in ("hook_resid_pre", "hook_resid_mid", "attn.hook_rot_q", "attn.hook_rot_k", "attn.hook_v")]
            logits, contrast = self.model.run_with_cache(self.contrast_tokens[prompts], [*self._sent, *read, f"blocks.{layers[-1]}.hook_resid_post"])
            base_logits, base = self.model.run_with_cache(self.base_tokens[prompts], self._sent)
            if isinstance(self.source, Tensor):
                _, base = self.model.run_with_cache(self.source[prompts], self._sent)
            elif self.source != "base":
                base = {name: self._mean.get(name, torch.zeros_like(x)) for name, x in base.items()}
            at = lambda name: [contrast[f"blocks.{layer}.{name}"] for layer in layers]  # noqa: E731
            change = lambda name: self._change(base[name], contrast[name])  # noqa: E731
            yield Chunk(
                prompts=prompts,
                resid_pre=[*at("hook_resid_pre"), contrast[f"blocks.{layers[-1]}.hook_resid_post"]],
                resid_mid=at("hook_resid_mid"),
                q=at("attn.hook_rot_q"),
                k=at("attn.hook_rot_k"),
                v=at("attn.hook_v"),
                z=at("attn.hook_z"),
                d_embed=change("hook_embed"),
                d_z=[change(f"blocks.{layer}.attn.hook_z") for layer in layers],
                d_mlp=[change(f"blocks.{layer}.hook_mlp_out") for layer in layers if self.cfg.has_mlp],
                base_logits=base_logits[:, -1],
                contrast_logits=logits[:, -1],
            )

    def _change(self, source: Tensor, contrast: Tensor) -> Tensor:
        """source - contrast, [p, pos, …], at the positions at which senders are changed."""
        mask = self.sender_positions.view(-1, *[1] * (contrast.ndim - 2))
        return (source - contrast) * mask

    def _mask(self, positions: Sequence[int] | None) -> Tensor:
        """[pos, 1] bool, true at the positions (None: everywhere). Raises ValueError for one out of range."""
        wrong = [position for position in positions or () if not 0 <= position < self.n_pos]
        if wrong:
            raise ValueError(f"position {wrong[0]} is out of range: the prompts have positions 0 to {self.n_pos - 1}")
        chosen = [positions is None or position in positions for position in range(self.n_pos)]
        return torch.tensor(chosen, device=self.everywhere.device)[:, None]

    @torch.no_grad()
    def _mean_of_base(self) -> dict[str, Tensor]:
        """Mean over the base prompts of all that senders send, by hook point: [1, pos, …]."""
        total: dict[str, Tensor] = {}
        for tokens in self.base_tokens.split(self.prompts_per_chunk):
            _, cache = self.model.run_with_cache(tokens, self._sent)
            total = {name: total.get(name, 0) + x.sum(0, keepdim=True) for name, x in cache.items()}
        return {name: x / self.n_prompts for name, x in total.items()}

    def _cache_bytes(self) -> int:
        """Bytes of one prompt in a `Chunk`."""
        cfg = self.cfg
        floats = (3 * cfg.n_layers + 2) * cfg.d_model + 5 * cfg.n_layers * cfg.n_heads * cfg.d_head
        return self.n_pos * floats * self.model.unembed.W_U.element_size()

    def _rows_in_budget(self, n_pos: int) -> int:
        """How many rows (one sender on one prompt, n_pos positions each) fit the budget at pass 2's widest moment."""
        cfg = self.cfg
        floats = 8 * cfg.d_model + 8 * cfg.n_heads * cfg.d_head + 2 * cfg.d_mlp * cfg.has_mlp + 3 * n_pos
        row = n_pos * floats * self.model.unembed.W_U.element_size()
        if self.max_memory * 2**30 < row + self._cache_bytes():
            raise ValueError(f"max_memory of {self.max_memory:.3g} GiB is too small for one row, which needs {(row + self._cache_bytes()) / 2**30:.3g} GiB: ask for more, or use shorter prompts")
        return int(self.max_memory * 2**30 / 2 // row) or 1


def _default_memory(device: torch.device) -> float:
    """GiB: a quarter of what is free on a CUDA device, half a GiB elsewhere."""
    return torch.cuda.mem_get_info(device)[0] / 2**32 if device.type == "cuda" else 0.5
