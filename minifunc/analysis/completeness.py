"""Is a circuit the whole story, and is all of it needed? Searches, as in arXiv 2507.09875 and Wang
et al. 2022, by the faithfulness and the gaps of `CircuitScores` (`minifunc/ablation.py`).

    completeness   the largest gap of greedily grown K, beside those of random K and whole groups
    minimality     of a head v in C: the largest |F(C minus K minus v) - F(C minus K)|, as a share
                   of |F(M) - F(none)|, over K = nothing and K = the other heads of its groups
    elimination    heads are taken out while the rest stays faithful; what is left is a circuit too
"""

from collections.abc import Iterable, Sequence
from itertools import chain
from statistics import fmean

import torch
from torch import Generator

from minifunc.ablation import CircuitScores, Score, all_heads
from minifunc.analysis.ablations import random_group
from minifunc.analysis.rows import Prompts
from minifunc.support.checks import checked_heads
from minifunc.support.evaluation import bootstrap, wilson
from minifunc.support.names import Found, Groups, Heads, heads_of, parse
from minifunc.support.tables import rounded

N_CONTROLS = 10  # random circuits of each kind beside one that was found, random subsets of it
SOURCES = ("base", "operands_changed", "mean")  # of what the heads outside a circuit send
MOST_GREEDY = 10  # heads in the largest greedy subset
ELIMINATED = {  # by name: the sources under which what is left must be faithful
    "eliminated, both contrasts": ("base", "operands_changed"),
    "eliminated, shown answers alone": ("base",),
    "eliminated, means put in": ("mean",),
}


def greedy_subsets(scores: CircuitScores, circuit: Heads) -> list[list[str]]:
    """Subsets K of a circuit, up to MOST_GREEDY heads, each by one head larger than the one before:
    by the head that makes the completeness gap largest."""
    circuit, K = heads_of(circuit), list[str]()
    found = []
    for _ in circuit[:MOST_GREEDY]:
        larger = [heads_of([*K, head]) for head in circuit if head not in K]
        gaps = scores.gaps(circuit, larger)
        K = larger[gaps.index(max(gaps))]
        found.append(K)
    return found


def random_subsets(circuit: Heads, n: int, generator: Generator) -> list[list[str]]:
    """n subsets of a circuit, each head in with probability one half."""
    size = n, len(circuit)
    chosen = torch.rand(size, generator=generator, dtype=torch.float32, device="cpu") < 0.5
    return [[head for head, take in zip(circuit, row) if take] for row in chosen.tolist()]


def minimality(scores: CircuitScores, circuit: Iterable[str], groups: Groups) -> dict[str, float]:
    """By head v: the largest share of F that it moves, over the K that the module's text names. K =
    the rest of its group shows a head whose work the others do when it alone is missing."""
    known = [checked_heads(group, scores.heads) for group in groups.values()]
    whole, found = set(circuit), dict.fromkeys(heads_of(circuit), 0.0)
    for head in found:
        missing = [group - {head} for group in known if head in group]
        for K in [frozenset(), *missing]:
            of_rest, without = scores.scores([whole - K, whole - K - {head}])
            found[head] = max(found[head], abs(scores.share(of_rest.F - without.F)))
    return found


def eliminate(criteria: Sequence[CircuitScores], level: float) -> list[str]:
    """The heads that are left when every head is taken out that can be, weakest first.

    The rest must stay faithful: |1 - faithfulness| <= 1 - level under each of the given scores.
    Heads are tried in the order of how much their loss alone, from the whole model, moves F; then
    again from the start, until none can go. Deterministic.
    """
    if not criteria or not 0 < level <= 1:
        raise ValueError(f"level must be a share above 0, of one score at least, not {level}")
    kept = set(criteria[0].heads)

    def unfaithful(circuit: set[str]) -> float:
        return max(abs(1 - scores.faithfulness([circuit])[0]) for scores in criteria)

    alone = {head: unfaithful(kept - {head}) for head in kept}
    before = None
    while kept != before:
        before = set(kept)
        for head in sorted(heads_of(before), key=alone.__getitem__):
            if unfaithful(kept - {head}) <= 1 - level:
                kept -= {head}
    return heads_of(kept)


def evaluate(
    scores: CircuitScores,
    circuit: Iterable[str],
    groups: Groups,
    search: CircuitScores,
    generator: Generator,
) -> Found:
    """The keys of circuit.json's `evaluation` for one circuit of at least one head. search: scores
    on (fewer) prompts, on which greedy subsets K are looked for."""
    circuit = heads_of(circuit)
    inside = {name: [head for head in group if head in circuit] for name, group in groups.items()}
    parts = {name: heads for name, heads in inside.items() if heads}
    greedy = greedy_subsets(search, circuit)
    drawn = random_subsets(circuit, N_CONTROLS, generator)
    of_greedy, of_drawn = scores.gaps(circuit, greedy), scores.gaps(circuit, drawn)
    worst = greedy[of_greedy.index(max(of_greedy))]
    without = scores.scores([{*circuit} - {*worst}, {*scores.heads} - {*worst}])
    less, more = sorted(without, key=lambda score: scores.share(score.F))
    found = {
        "circuit": circuit,
        **alone(scores, circuit),
        "completeness": max(of_greedy),
        "completeness_ci": interval(scores, more, less),
        "completeness_gaps": {
            "greedy_max": max(of_greedy),
            "greedy_mean": fmean(of_greedy),
            "random_max": max(of_drawn),
            "random_mean": fmean(of_drawn),
            "groups": dict(zip(parts, scores.gaps(circuit, list(parts.values())))),
            "worst": worst,
            "n_greedy": len(greedy),
            "n_random": N_CONTROLS,
            "n_search_prompts": search.ablator.n_prompts,
        },
        "minimality": minimality(scores, circuit, parts),
        "replaced_by": scores.how,
        "n_prompts": scores.ablator.n_prompts,
    }
    return rounded(found)


def interval(scores: CircuitScores, one: Score, other: Score) -> list[float]:
    """95 % over prompts of F(one) - F(other), as a share of F(M) - F(none)."""
    whole = scores.full.F_of_each - scores.none.F_of_each
    return bootstrap((one.F_of_each - other.F_of_each)[None], whole)[0]


def alone(scores: CircuitScores, circuit: Heads) -> Found:
    """A circuit run alone; the intervals are of 95 %, over prompts."""
    run = scores.scores([circuit])[0]
    return {
        "faithfulness": scores.faithfulness([circuit])[0],
        "faithfulness_ci": interval(scores, run, scores.none),
        "circuit_accuracy": run.contrast_acc,
        "circuit_accuracy_ci": wilson(run.contrast_acc, scores.ablator.n_prompts),
        "base_acc": run.base_acc,
    }


def with_other_lower_heads(
    circuit: Heads, fi: Heads, heads: Heads, generator: Generator
) -> list[list[str]]:
    """N_CONTROLS times the circuit with as many random heads in place of its lower ones. Lower are
    those of `heads` in layers below the highest FI head, but for FI heads."""
    top = max((parse(head)[0] for head in fi), default=0)
    lower = [head for head in heads if parse(head)[0] < top and head not in fi]
    kept = [head for head in circuit if head not in lower]
    found = []
    for _ in range(N_CONTROLS):
        order = torch.randperm(len(lower), generator=generator, device="cpu").tolist()
        drawn = [lower[index] for index in order[: len(circuit) - len(kept)]]
        found.append(heads_of([*kept, *drawn]))
    return found


def by_chance(scores: CircuitScores, circuit: Heads, drawn: Sequence[Heads]) -> Found | None:
    """Drawn circuits run alone, each draw that is the circuit itself left out; None where all are.
    mean, highest: of their faithfulness. overlap: mean share of the circuit's heads in them."""
    others = [heads for heads in drawn if set(heads) != set(circuit)]
    if not others:
        return None
    runs, faithfulness = scores.scores(others), scores.faithfulness(others)
    return {
        "n_draws": len(others),
        "mean": fmean(faithfulness),
        "highest": max(faithfulness),
        "overlap": fmean(len({*heads} & {*circuit}) / len(circuit) for heads in others),
        "circuit_accuracy": fmean(run.contrast_acc for run in runs),
        "base_acc": fmean(run.base_acc for run in runs),
    }


def circuit_row(
    scores: CircuitScores, name: str, heads: Heads, drawn: Sequence[Heads], lower: Sequence[Heads]
) -> Found:
    """A circuit run alone; beside it all other heads, random circuits, other lower heads."""
    found = {
        **alone(scores, heads),
        "F": {"circuit": scores.scores([heads])[0].F, "none": scores.none.F, "full": scores.full.F},
        "n_prompts": scores.ablator.n_prompts,
        "others_alone": alone(scores, [head for head in scores.heads if head not in heads]),
        "random_circuits": by_chance(scores, heads, drawn),
        "random_lower": by_chance(scores, heads, lower),
    }
    return {"circuit": name, "heads": heads, "replaced_by": scores.how, **rounded(found)}


def evaluate_circuits(
    search: Prompts, judged: Prompts, groups: Groups, faithful: float, generator: Generator
) -> Found:
    """circuit.json's `evaluation` of all groups together, and of what elimination leaves. search:
    the prompts on which these and subsets are looked for; judged: others. faithful: the level."""
    looking = {how: search.scores(how) for how in SOURCES}
    scores = {how: judged.scores(how) for how in SOURCES}
    n_heads, every = judged.ablator.cfg.n_heads, all_heads(judged.ablator.cfg)
    fi = groups.get("function_induction", [])
    union = heads_of(chain(*groups.values()))
    circuits = {"union of groups": union}
    for name, hows in ELIMINATED.items():
        circuits[name] = eliminate([looking[how] for how in hows], faithful)
    rows = []
    own = Generator().manual_seed(0)  # of the other lower heads alone
    for name, heads in circuits.items():
        drawn = [random_group(heads, n_heads, generator, avoid=False) for _ in range(N_CONTROLS)]
        lower = with_other_lower_heads(heads, fi, every, own)
        rows += [circuit_row(each, name, heads, drawn, lower) for each in scores.values()]

    def whole(how: str, circuit: Heads) -> Found:
        return evaluate(scores[how], circuit, groups, looking[how], generator)

    found = whole("base", union) | {"defined_as": "union of groups", "circuits": rows}
    found["operands_changed"] = whole("operands_changed", union)
    found["by_elimination"] = whole("base", circuits["eliminated, both contrasts"])
    return found
