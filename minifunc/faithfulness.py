"""Is a circuit the whole story? Faithfulness, completeness and minimality, as arXiv 2507.09875 and Wang et al. 2022 ask.

A circuit is a set of heads; MLPs and embeddings always stay. Running the model *as a circuit* C means that every
head outside C sends, at every position, what a source says (`Ablator`), and F(C) = logit(base answer) -
logit(contrast answer) at the last position, mean over prompts. M is the circuit of all heads.

    faithfulness   (F(C) - F(none)) / (F(M) - F(none)): 1 = C behaves like the model; 0 = like no heads at all
    completeness   |F(C minus K) - F(M minus K)| as a share of |F(M) - F(none)|, for subsets K of C: 0 = nothing
                   outside C takes over when parts of C are missing
    minimality     of a head v in C: the largest |F(C minus K minus v) - F(C minus K)|, as the same share, over stated K

With the paired base run as source F(none) is F_base exactly, and faithfulness is the paper's. Note what such a
source leaves alone: whatever is the same in both runs is still sent by the heads outside. Under changed shown
answers that is the whole route of the expected answer; so circuits are judged under changed operands as well, and
with means put in, which leave nothing of the prompt to the heads outside.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minifunc.ablation import Ablator, all_heads
from minifunc.circuit import heads_of
from minifunc.support.evaluation import accuracy


@dataclass(frozen=True)
class Score:
    """Of the model run as a circuit: mean F in logits, and the shares of prompts answered with the base and the contrast answer."""

    F: float
    base_acc: float
    contrast_acc: float


class CircuitScores:
    """Scores circuits on the prompts of an `Ablator`, heads outside sending what its source `how` says. Each circuit is run once.

    base_answers, contrast_answers [n_prompts] int64.
    """

    def __init__(
        self, ablator: Ablator, how: str, base_answers: Tensor, contrast_answers: Tensor
    ) -> None:
        self.ablator, self.how = ablator, how
        self.answers = torch.stack([base_answers, contrast_answers], dim=1).to(
            ablator.everywhere.device
        )  # [n_prompts, 2]
        self.heads = all_heads(ablator.cfg)
        self._known: dict[frozenset[str], Score] = {}
        self.full, self.none = self.scores([self.heads, []])
        self.F_range = self.full.F - self.none.F

    def scores(self, circuits: Sequence[Iterable[str]]) -> list[Score]:
        """One `Score` for each circuit."""
        wanted = [frozenset(circuit) for circuit in circuits]
        new = sorted(set(wanted) - self._known.keys(), key=sorted)
        if new:
            all_logits = self.ablator.logits(
                [[head for head in self.heads if head not in circuit] for circuit in new], self.how
            )
            for circuit, logits in zip(new, all_logits):
                picked = logits.gather(1, self.answers)  # [n_prompts, 2]
                F = (picked[:, 0] - picked[:, 1]).double().mean().item()
                self._known[circuit] = Score(
                    F, *(accuracy(logits, self.answers[:, column]) for column in (0, 1))
                )
        return [self._known[circuit] for circuit in wanted]

    def share(self, F: float) -> float:
        """A difference of F as a share of what all heads together make. Raises ValueError where they make none."""
        if not abs(self.F_range) > 1e-6:
            raise ValueError(
                "all heads together do not change F on these prompts, so there is nothing to be faithful to"
            )
        return F / self.F_range

    def faithfulness(self, circuits: Sequence[Iterable[str]]) -> list[float]:
        return [self.share(score.F - self.none.F) for score in self.scores(circuits)]

    def gaps(self, circuit: Iterable[str], without: Sequence[Iterable[str]]) -> list[float]:
        """The completeness gap of each K in `without`."""
        circuit, subsets = set(circuit), [set(K) for K in without]
        alone, in_model = (
            self.scores([circuit - K for K in subsets]),
            self.scores([set(self.heads) - K for K in subsets]),
        )
        return [abs(self.share(a.F - b.F)) for a, b in zip(alone, in_model)]


def greedy_subsets(
    scores: CircuitScores, circuit: Iterable[str], most: int = 10
) -> list[list[str]]:
    """Subsets K of a circuit, each one head larger than the one before, up to `most`: always by the head that makes the completeness gap largest."""
    circuit = heads_of(circuit)
    K: list[str] = []
    found = []
    for _ in range(min(most, len(circuit))):
        left = [head for head in circuit if head not in K]
        gaps = scores.gaps(circuit, [[*K, head] for head in left])
        K = [*K, left[gaps.index(max(gaps))]]
        found.append(heads_of(K))
    return found


def random_subsets(circuit: Iterable[str], n: int, generator: torch.Generator) -> list[list[str]]:
    """n subsets of a circuit, each head in with probability one half."""
    circuit = heads_of(circuit)
    return [
        [head for head, chosen in zip(circuit, row) if chosen]
        for row in (torch.rand(n, len(circuit), generator=generator) < 0.5).tolist()
    ]


def minimality(
    scores: CircuitScores, circuit: Iterable[str], groups: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """By head v: the largest share of F that it moves, over K = nothing and K = the other heads of each group that v is in.

    The second kind shows a head whose work the others of its group take over when it alone is missing.
    """
    circuit = heads_of(circuit)
    family = {
        head: [set[str]()] + [set(group) - {head} for group in groups.values() if head in group]
        for head in circuit
    }
    circuits = [
        pair
        for head, sets in family.items()
        for K in sets
        for pair in (set(circuit) - K, set(circuit) - K - {head})
    ]
    F = iter([score.F for score in scores.scores(circuits)])
    return {
        head: max(abs(scores.share(next(F) - next(F))) for _ in sets)
        for head, sets in family.items()
    }


def eliminate(criteria: Sequence[CircuitScores], level: float) -> list[str]:
    """The heads that are left when every head is taken out that can be, weakest first, with the rest staying faithful.

    Faithful: |1 - faithfulness| <= 1 - level under each of the given scores. Heads are tried in the order of how much
    their loss alone, from the whole model, moves F; then again from the start, until none can go: the circuit is
    minimal in that it loses its faithfulness with any one of its heads. Deterministic.
    """
    heads = criteria[0].heads

    def off(circuits: Sequence[Iterable[str]]) -> list[float]:
        """How far each circuit is from faithfulness 1, at worst."""
        return [
            max(abs(1 - f) for f in each)
            for each in zip(*(scores.faithfulness(circuits) for scores in criteria))
        ]

    loss = dict(zip(heads, off([set(heads) - {head} for head in heads])))
    kept, before = set(heads), None
    while kept != before:
        before = set(kept)
        for head in sorted(before, key=lambda head: (loss[head], heads.index(head))):
            if off([kept - {head}])[0] <= 1 - level:
                kept -= {head}
    return heads_of(kept)


def evaluate(
    scores: CircuitScores,
    circuit: Iterable[str],
    groups: Mapping[str, Sequence[str]],
    search: CircuitScores,
    generator: torch.Generator,
    n_random: int = 10,
) -> dict[str, Any]:
    """The keys of circuit.json's `evaluation` for one circuit.

    search: scores on (fewer) prompts, on which greedy subsets are looked for; their gaps are then measured by `scores`.
    """
    circuit = heads_of(circuit)
    parts = {name: [head for head in group if head in circuit] for name, group in groups.items()}
    parts = {name: part for name, part in parts.items() if part}
    greedy, drawn = greedy_subsets(search, circuit), random_subsets(circuit, n_random, generator)
    gaps = {
        name: scores.gaps(circuit, sets)
        for name, sets in (("greedy", greedy), ("random", drawn), ("groups", list(parts.values())))
    }
    score, faithfulness = scores.scores([circuit])[0], scores.faithfulness([circuit])[0]
    worst = max(range(len(greedy)), key=lambda index: gaps["greedy"][index], default=None)
    return {
        "circuit": circuit,
        "faithfulness": round(faithfulness, 4),
        "circuit_accuracy": round(score.contrast_acc, 4),
        "completeness": round(max(gaps["greedy"], default=0.0), 4),
        "completeness_gaps": {
            **{
                f"{name}_{kind}": round(of(gap), 4)
                for name, gap in gaps.items()
                if name != "groups" and gap
                for kind, of in (("max", max), ("mean", lambda gap: sum(gap) / len(gap)))
            },
            "groups": {name: round(gap, 4) for name, gap in zip(parts, gaps["groups"])},
            "worst": [] if worst is None else greedy[worst],
            "n_greedy": len(greedy),
            "n_random": n_random,
            "n_search_prompts": search.ablator.n_prompts,
        },
        "minimality": {
            head: round(share, 4) for head, share in minimality(scores, circuit, parts).items()
        },
        "replaced_by": scores.how,
        "n_prompts": scores.ablator.n_prompts,
    }
