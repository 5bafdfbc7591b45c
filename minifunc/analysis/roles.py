"""What the heads below the FI heads do."""

from collections.abc import Mapping, Sequence

from minifunc.analysis.rows import Prompts, answered
from minifunc.circuit import ROUTES, Criteria, Discovery
from minifunc.support.names import Found, heads_of
from minifunc.support.tables import rounded

# What is put in over the shown examples: name in circuit.json → the ablator's source.
PUT_IN = {"answers": "base", "operands": "operands_changed", "unrelated": "unrelated"}
KINDS = {"previous": "previous_token", "operands": "operand_reader"}


def readers(prompts: Prompts, shown: Sequence[int], found: Discovery, criteria: Criteria) -> Found:
    """`reader_role` of the heads below the FI heads, each replaced alone at the positions `shown`,
    those of the examples, so that the query stays. The prompts have the sources of PUT_IN."""
    groups = found.groups
    direct = {*groups["function_induction"], *groups["consolidation"]}
    below = groups["shown_answer"] + groups["expected_answer"] + groups["upstream"]
    heads = [head for head in heads_of(below) if head not in direct]
    replaced: Found = {head: {} for head in heads}
    for name, how in PUT_IN.items():
        # Unrelated prompts have no answer of their own here: r is measured by the range to base.
        scores = prompts.scores("base" if how == "unrelated" else how)
        all_logits = prompts.ablator.logits([[head] for head in heads], how, shown)
        for head, logits in zip(heads, all_logits):
            r = scores.share(scores.score(logits).F - scores.full.F)
            replaced[head][name] = rounded({"r": r, **answered(logits, prompts.answers)})
    return {head: reader_role(found.attention[head], replaced[head], criteria) for head in heads}


def reader_role(
    attention: Mapping[str, float], replaced: Mapping[str, dict[str, float]], criteria: Criteria
) -> Found:
    """Which kind a head is, by where it looks and by what breaks when it is replaced.

    attention: its `attention_shares`. replaced: by name in PUT_IN, {r, …}: how far F then goes to
    that run's (-1: all the way). looks_at: "previous" or "operands" from a shown answer, the larger
    share if it meets its criterion. brings: "shown", "expected" or both, by |r| >= `feeds`. kind:
    one of KINDS where it looks there *and* brings what was to be expected.
    """
    looks_at = max(KINDS, key=lambda place: attention[f"answer_to_{place}"])
    if attention[f"answer_to_{looks_at}"] < getattr(criteria, f"looks_at_{looks_at}"):
        looks_at = "neither"
    brings = []
    for group, contrast in ROUTES.items():
        if contrast in replaced and abs(replaced[contrast]["r"]) >= criteria.feeds:
            brings.append(group.removesuffix("_answer"))
    kind = KINDS.get(looks_at, "other") if "expected" in brings else "other"
    return {"kind": kind, "looks_at": looks_at, "brings": brings, "replaced": replaced}
