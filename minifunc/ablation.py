"""What a model answers when some heads send something else; whether a circuit is enough.

This is ablation, not path patching: everything above a replaced head is live. What is put in
decides what comes out as much as what is taken away: a base run's values carry the base answer
along. So a claim needs several replacements, and the same done to as many other heads.

A **circuit** C is a set of heads; MLPs and embeddings always stay. To run the model as a circuit,
every head outside C sends what a source says, at every position (Wang et al. 2022). With
F(C) = logit(base answer) - logit(contrast answer) at the last position, mean over prompts, and M
the circuit of all heads:

    faithfulness   (F(C) - F(none)) / (F(M) - F(none))                1: C behaves like the model
    gap of K       |F(C minus K) - F(M minus K)| / |F(M) - F(none)|   0: nothing outside C takes
                                                                      over where K in C is missing
With the paired base run as source, F(none) is F_base: the faithfulness of arXiv 2507.09875. Heads
outside then still send whatever is the same in both runs, and under changed shown answers that is
the whole route of the expected answer. So circuits are judged under changed operands and means too.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minifunc.circuit import heads_of, parse
from minifunc.model import ModelConfig, Transformer
from minifunc.support.evaluation import ROWS, accuracy
from minifunc.support.hooks import Hooks
from minifunc.support.recent import Recent

KEPT_BYTES = 64 * 2**20  # of streams that an Ablator keeps, so that they need not be run again
Replaced = tuple[tuple[int, ...], ...]  # for each block, from the lowest: the heads replaced there


@dataclass(frozen=True)
class _Run:
    """A run with heads replaced: of which prompts (from `start` on), by which source, where."""

    start: int
    how: str
    positions: tuple[int, ...]


class Ablator:
    """A model on some prompts, ready to be run with the z of any heads replaced.

    tokens [n_prompts, pos] int64, answered at the last position. sources: by name, tokens
    [n_prompts, pos] of the prompts whose z are put in, row by row. means: by name, tokens
    [any number, pos]; their mean z, position by position, is put in. Raises ValueError where a
    source does not have the prompts' shape.

    Groups of heads that agree below some layer share the stream that enters it. Such a stream is
    computed once, also over several calls: those used last are kept.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: Transformer,
        tokens: Tensor,
        sources: Mapping[str, Tensor],
        means: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.model, self.cfg, self.n_prompts = model, model.cfg, len(tokens)
        for name, source in sources.items():
            if source.shape != tokens.shape:
                raise ValueError(
                    f"the source {name!r} must be tokens of shape {list(tokens.shape)} "
                    f"like the prompts, not {list(source.shape)}"
                )
        self.everywhere = torch.arange(tokens.shape[1], device=model.device)
        # Prompts in one pass: few of them stay near a processor's caches.
        self.rows = ROWS // 4 if model.device.type == "cpu" else ROWS
        # Each of these runs once, also if it serves as a source and for a mean.
        runs = {id(source): source for source in [*sources.values(), *(means or {}).values()]}
        z = {key: self._all_z(source) for key, source in runs.items()}
        # By source, for each layer [n_prompts, pos, head, d_head]; of a mean, one row for all.
        self.sent = {name: z[id(source)] for name, source in sources.items()}
        for name, source in (means or {}).items():
            self.sent[name] = [layer.mean(0, keepdim=True) for layer in z[id(source)]]
        self._read(tokens)

    def _all_z(self, tokens: Tensor) -> list[Tensor]:
        """z of each layer, [n, pos, head, d_head]; of the last, [n, 1, head, d_head] is enough."""
        names = [f"blocks.{layer}.attn.hook_z" for layer in range(self.cfg.n_layers)]
        last, parts = self.everywhere[-1:], []
        for rows in tokens.to(self.model.device).split(self.rows):
            _, cache = self.model.run_with_cache(rows, names, last)
            parts.append([cache[name] for name in names])
        return [torch.cat(part) for part in zip(*parts)]

    def _read(self, tokens: Tensor) -> None:
        """Takes these as the prompts."""
        self._recent = Recent(KEPT_BYTES)
        self._embedded = self.model.embed(tokens.to(self.model.device))  # [n_prompts, pos, d_model]
        if self.cfg.positions == "learned":
            self._embedded = self._embedded + self.model.pos_embed(tokens.shape[1])

    @torch.no_grad()
    def on(self, tokens: Tensor) -> "Ablator":
        """The same replacements in other prompts, as many and as long."""
        other = copy.copy(self)
        other._read(tokens)
        return other

    @torch.no_grad()
    def logits(
        self, groups: Sequence[Iterable[str]], how: str, positions: Sequence[int] | None = None
    ) -> Tensor:
        """Logits at the last position when all heads of a group send what source `how` says.

        Returns [n_groups, n_prompts, d_vocab]. positions: where they do (default: everywhere);
        elsewhere they send what they make of what they read.
        """
        places = tuple(range(len(self.everywhere)) if positions is None else positions)
        replaced = [self._by_block(group) for group in groups]
        result = self._embedded.new_empty(len(groups), self.n_prompts, self.cfg.d_vocab)
        for start in range(0, self.n_prompts, self.rows):
            run = _Run(start, how, places)
            # In this order, groups that share a stream follow each other.
            for index in sorted(range(len(groups)), key=replaced.__getitem__):
                last = self._stream(run, replaced[index])[:, -1]  # [p, d_model]
                logits = self.model.unembed(self.model.ln_final(last, Hooks()))
                result[index, start : start + self.rows] = logits
        return result

    def _by_block(self, group: Iterable[str]) -> Replaced:
        heads = sorted({parse(head) for head in group})
        blocks = range(self.cfg.n_layers)
        return tuple(tuple(head for layer, head in heads if layer == block) for block in blocks)

    def _stream(self, run: _Run, replaced: Replaced) -> Tensor:
        """What leaves the lowest len(replaced) blocks, [p, pos, d_model] (all blocks: pos = 1)."""
        if not replaced:
            return self._embedded[run.start : run.start + self.rows]
        if not any(replaced):
            run = _Run(run.start, how="", positions=())  # the same whatever the source
        key = ("stream", run, replaced)
        return self._recent.get(key, lambda: self._leave_block(run, replaced))

    def _leave_block(self, run: _Run, replaced: Replaced) -> Tensor:
        """The stream that leaves the block of the last entry of `replaced`."""
        below, heads, layer = replaced[:-1], replaced[-1], len(replaced) - 1
        block, stream = self.model.blocks[layer], self._stream(run, below)
        z = self._recent.get(("z", run, below), lambda: self._own_z(run, below))
        queries = slice(-z.shape[1], None)
        if heads:
            sent = self.sent[run.how][layer]  # [n_prompts or 1, pos, head, d_head]
            sent = sent[run.start : run.start + self.rows] if len(sent) > 1 else sent
            put = torch.zeros(len(self.everywhere), self.cfg.n_heads, 1, dtype=torch.bool)
            put[torch.tensor(run.positions)[:, None], torch.tensor(heads)] = True
            z = torch.where(put[queries].to(z.device), sent[:, queries], z)
        attn_out = z.flatten(2) @ block.attn.W_O.flatten(0, 1)
        return block.add_mlp(stream[:, queries] + attn_out, Hooks())

    def _own_z(self, run: _Run, below: Replaced) -> Tensor:
        """z of all heads of block len(below), none of them replaced: [p, query, head, d_head]."""
        layer, block = len(below), self.model.blocks[len(below)]
        queries = self.everywhere[-1:] if layer == self.cfg.n_layers - 1 else self.everywhere
        seen: list[Tensor] = []

        def see(z: Tensor, name: str) -> Tensor:
            seen.append(z)
            return z

        hooks = Hooks({f"blocks.{layer}.attn.hook_z": see})
        block.attn(block.ln1(self._stream(run, below), hooks), queries, hooks)
        return seen[0]


def all_heads(cfg: ModelConfig) -> list[str]:
    return [f"{layer}.{head}" for layer in range(cfg.n_layers) for head in range(cfg.n_heads)]


# ---------------------------------------------------------------- is a circuit enough?


@dataclass(frozen=True)
class Score:
    """The model run as a circuit: mean F in logits, shares of base and of contrast answers."""

    F: float
    base_acc: float
    contrast_acc: float


class CircuitScores:
    """Scores circuits on an `Ablator`'s prompts; heads outside send what its source `how` says.

    base_answers, contrast_answers [n_prompts] int64. Each circuit is run once.
    """

    def __init__(
        self, ablator: Ablator, how: str, base_answers: Tensor, contrast_answers: Tensor
    ) -> None:
        self.ablator, self.how = ablator, how
        answers = torch.stack([base_answers, contrast_answers], dim=1)
        self.answers = answers.to(ablator.model.device)  # [n_prompts, 2]
        self.heads = all_heads(ablator.cfg)
        self._known: dict[frozenset[str], Score] = {}
        self.full, self.none = self.scores([self.heads, []])
        self.F_range = self.full.F - self.none.F

    def score(self, logits: Tensor) -> Score:
        """The score of logits [n_prompts, d_vocab], however they came about."""
        picked = logits.gather(1, self.answers)  # [n_prompts, 2]
        F = (picked[:, 0] - picked[:, 1]).double().mean().item()
        return Score(F, *(accuracy(logits, answers) for answers in self.answers.T))

    def scores(self, circuits: Sequence[Iterable[str]]) -> list[Score]:
        """One `Score` for each circuit."""
        wanted = [frozenset(circuit) for circuit in circuits]
        new = sorted(set(wanted) - self._known.keys(), key=sorted)
        if new:
            outside = [[head for head in self.heads if head not in circuit] for circuit in new]
            for circuit, logits in zip(new, self.ablator.logits(outside, self.how)):
                self._known[circuit] = self.score(logits)
        return [self._known[circuit] for circuit in wanted]

    def share(self, F: float) -> float:
        """A difference of F as a share of F(M) - F(none). Raises ValueError if that is nothing."""
        if not abs(self.F_range) > 1e-6:
            raise ValueError(
                "all heads together do not change F on these prompts, "
                "so there is nothing to be faithful to"
            )
        return F / self.F_range

    def faithfulness(self, circuits: Sequence[Iterable[str]]) -> list[float]:
        return [self.share(score.F - self.none.F) for score in self.scores(circuits)]

    def gaps(self, circuit: Iterable[str], without: Sequence[Iterable[str]]) -> list[float]:
        """The completeness gap of each K in `without`."""
        circuit, model, subsets = set(circuit), set(self.heads), [set(K) for K in without]
        alone = self.scores([circuit - K for K in subsets])
        in_model = self.scores([model - K for K in subsets])
        return [abs(self.share(a.F - b.F)) for a, b in zip(alone, in_model)]


# ---------------------------------------------------------------- controls


def random_group(
    heads: Sequence[str], n_heads: int, generator: torch.Generator, avoid: bool = True
) -> list[str]:
    """As many heads from each layer as `heads` has there, drawn from that layer's other heads.

    All of those, where they are fewer. Without `avoid` the heads themselves may be drawn too.

    >>> random_group(["3.1", "3.2", "3.3", "3.4"], 6, torch.Generator())  # layer 3 has no others
    ['3.0', '3.5']
    """
    places = [parse(head) for head in heads]
    group = []
    for layer in sorted({layer for layer, _ in places}):
        inside = [head for block, head in places if block == layer]
        others = [head for head in range(n_heads) if not (avoid and head in inside)]
        drawn = torch.randperm(len(others), generator=generator)[: len(inside)]
        group += [f"{layer}.{others[index]}" for index in sorted(drawn.tolist())]
    return group


def random_group_anywhere(
    heads: Sequence[str], cfg: ModelConfig, generator: torch.Generator
) -> list[str]:
    """As many heads as `heads` has, drawn from all others of any layer (all, where fewer)."""
    others = [head for head in all_heads(cfg) if head not in heads]
    drawn = torch.randperm(len(others), generator=generator)[: len(heads)]
    return heads_of(others[index] for index in drawn.tolist())
