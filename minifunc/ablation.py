"""What a model answers when some heads send something else; whether a circuit is enough.

This is ablation, not path patching: everything above a replaced head is live. What is put in
decides what comes out as much as what is taken away: a base run's values carry the base answer
along. So a claim needs several replacements, and the same done to as many other heads.

A **circuit** C is a set of heads; MLPs and embeddings always stay. To run the model as a circuit,
every head outside C sends what a source says, at every position (Wang et al. 2022). With
F(C) = logit(base answer) - logit(contrast answer) at the last position, mean over prompts, and M
the circuit of all heads:

    faithfulness   (F(C) - F(none)) / (F(M) - F(none))                1: C behaves like the model
    gap of K in C  |F(C minus K) - F(M minus K)| / |F(M) - F(none)|   0: nothing outside C takes
                                                                      over where K is missing
With the paired base run as source, F(none) is F_base, since both prompts end with the same `=` and
so have the same embedding there: it is the faithfulness of arXiv 2507.09875. Heads outside then
still send whatever is the same in both runs, and under changed shown answers that is the whole
route of the expected answer. So circuits are judged under changed operands and means too.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minifunc.model import ModelConfig, Transformer
from minifunc.support import checks
from minifunc.support.checks import Positions
from minifunc.support.evaluation import accuracy
from minifunc.support.names import Head, parse
from minifunc.support.settled import settled
from minifunc.support.shared_streams import SharedStreams, z_of_layers

Sources = Mapping[str, Tensor]  # by name: tokens [n_prompts, pos]


class Ablator:
    """A model on some prompts, ready to be run with the z of any heads replaced.

    tokens [n_prompts, pos] int64, answered at the last position. sources: by name, tokens
    [n_prompts, pos] of the prompts whose z are put in, row by row. means: by name, tokens
    [any number, pos]; their mean z, position by position, is put in. Raises ValueError where a
    source does not have the prompts' shape.
    `logits_plainly` says what is computed. `logits` gives the same for many groups, and is fast.
    """

    @settled
    @torch.no_grad()
    def __init__(
        self, model: Transformer, tokens: Tensor, sources: Sources, means: Sources | None = None
    ) -> None:
        self.model, self.cfg = model, model.cfg
        checks.check_sources(model.cfg.d_vocab, tokens, sources, means or {})
        # By source, for each layer [n_prompts, pos, head, d_head]; in the last layer pos is 1.
        self.sent = {name: z_of_layers(model, source) for name, source in sources.items()}
        for name, source in (means or {}).items():
            self.sent[name] = [z.mean(0, keepdim=True) for z in z_of_layers(model, source)]
        self._read(tokens)

    def _read(self, tokens: Tensor) -> None:
        """Takes these as the prompts."""
        self.tokens = tokens.to(self.model.device).clone()
        self.n_prompts, self.n_pos = tokens.shape
        self._streams = SharedStreams(self.model, tokens, self.sent)

    @settled
    def on(self, tokens: Tensor) -> "Ablator":
        """The same replacements in other prompts, as many and as long."""
        checks.weights_of(self.model, self._streams.weights)
        other = copy.copy(self)
        other._read(checks.alike(tokens, self.tokens))
        return other

    @settled
    @torch.no_grad()
    def logits_plainly(self, group: Iterable[str], how: str, positions: Positions = None) -> Tensor:
        """Logits at the last position, [n_prompts, d_vocab], in one run of the whole model in which
        the group's heads send, at `positions` (default: everywhere), what source `how` says.
        All else is as it comes. Raises ValueError for a head, a source or a position there is not.
        """
        heads, places = self._heads(group), self._positions(how, positions)

        def put(z: Tensor, name: str) -> Tensor:  # [n_prompts, query, head, d_head]
            layer = int(name.split(".")[1])
            start = self.n_pos - z.shape[1]  # the last layer is run at the last position alone
            at = [position - start for position in places if position >= start]
            for block, head in heads:
                if block == layer:
                    z[:, at, head] = self.sent[how][layer][:, at, head]
            return z

        hooks = {f"blocks.{layer}.attn.hook_z": put for layer in range(self.cfg.n_layers)}
        return self.model.run_with_hooks(self.tokens, hooks, [self.n_pos - 1])[:, 0]

    @settled
    def logits(
        self, groups: Sequence[Iterable[str]], how: str, positions: Positions = None
    ) -> Tensor:
        """`logits_plainly` of each group: [n_groups, n_prompts, d_vocab].

        Groups that agree below some layer share the stream that enters it; the latest are kept.
        """
        heads = [self._heads(group) for group in groups]
        return self._streams.logits(heads, how, self._positions(how, positions))

    def _heads(self, group: Iterable[str]) -> list[Head]:
        return sorted(map(parse, checks.checked_heads(group, all_heads(self.cfg))))

    def _positions(self, how: str, positions: Positions) -> tuple[int, ...]:
        checks.weights_of(self.model, self._streams.weights)
        if how not in self.sent:
            raise ValueError(f"unknown source {how!r}; the sources are {', '.join(self.sent)}")
        return checks.checked_positions(positions, self.n_pos)


def all_heads(cfg: ModelConfig) -> list[str]:
    return [f"{layer}.{head}" for layer in range(cfg.n_layers) for head in range(cfg.n_heads)]


# ---------------------------------------------------------------- is a circuit enough?


@dataclass(frozen=True)
class Score:
    """The model run as a circuit: F in logits, its mean and of each prompt; shares of answers."""

    F: float
    F_of_each: Tensor  # [n_prompts] float64
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
        answers = (base_answers, contrast_answers)
        checks.check_answers(ablator.cfg.d_vocab, ablator.n_prompts, *answers)
        self.answers = torch.stack(answers, dim=1).to(ablator.model.device).long()  # [n_prompts, 2]
        self.heads = all_heads(ablator.cfg)
        self._known: dict[frozenset[str], Score] = {}
        self.full, self.none = self.scores([self.heads, []])
        self.F_range = self.full.F - self.none.F

    def score(self, logits: Tensor) -> Score:
        """The score of logits [n_prompts, d_vocab], however they came about."""
        picked = logits.gather(1, self.answers)  # [n_prompts, 2]
        F = (picked[:, 0] - picked[:, 1]).double()
        base_acc, contrast_acc = (accuracy(logits, answers) for answers in self.answers.T)
        return Score(F.mean().item(), F, base_acc, contrast_acc)

    def scores(self, circuits: Sequence[Iterable[str]]) -> list[Score]:
        """One `Score` for each circuit."""
        wanted = [checks.checked_heads(circuit, self.heads) for circuit in circuits]
        new = sorted(set(wanted) - self._known.keys(), key=sorted)
        outside = [[head for head in self.heads if head not in circuit] for circuit in new]
        for circuit, logits in zip(new, self.ablator.logits(outside, self.how)):
            self._known[circuit] = self.score(logits)
        return [self._known[circuit] for circuit in wanted]

    def share(self, F: float) -> float:
        """A difference of F as a share of F(M) - F(none). Raises ValueError if that is nothing."""
        if not abs(self.F_range) > 1e-6:
            raise ValueError("all heads together do not change F: nothing to be faithful to")
        return F / self.F_range

    def faithfulness(self, circuits: Sequence[Iterable[str]]) -> list[float]:
        return [self.share(score.F - self.none.F) for score in self.scores(circuits)]

    def gaps(self, circuit: Iterable[str], without: Sequence[Iterable[str]]) -> list[float]:
        """The completeness gap of each K in `without`."""
        circuit, model = checks.checked_heads(circuit, self.heads), frozenset(self.heads)
        subsets = [checks.checked_heads(K, sorted(circuit)) for K in without]
        alone = self.scores([circuit - K for K in subsets])
        in_model = self.scores([model - K for K in subsets])
        return [abs(self.share(a.F - b.F)) for a, b in zip(alone, in_model)]
