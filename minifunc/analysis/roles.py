"""What the heads below the FI heads do, and what hangs on the thresholds of the groups."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from minifunc.analysis.rows import Prompts, ablation_row, answered
from minifunc.circuit import ROUTES, Criteria, Discovery, direct_groups, previous_token, route
from minifunc.support.names import Found, heads_of
from minifunc.support.tables import rounded

# What is put in over the shown examples: name in circuit.json → the ablator's source.
PUT_IN = {"answers": "base", "operands": "operands_changed", "unrelated": "unrelated"}
KINDS = {"previous": "previous_token", "operands": "operand_reader"}

# By criterion: the values that `other_thresholds` tries, and the groups that it makes.
DIRECT = ("function_induction", "consolidation", "other_direct")
THRESHOLDS = {
    "strong": ((0.01, 0.02, 0.05, 0.1, 0.2), DIRECT),
    "looks_at_answers": ((0.15, 0.2, 0.3, 0.4, 0.5, 0.6), ("function_induction",)),
    "feeds": ((0.01, 0.02, 0.05, 0.1, 0.2), tuple(ROUTES)),
    "looks_at_previous": ((0.1, 0.2, 0.3, 0.4, 0.5), ("previous_token",)),
}


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


def other_thresholds(found: Discovery, criteria: Criteria) -> list[Found]:
    """The groups that other thresholds would make, one criterion changed at a time, the FI heads as
    found: [{criterion, value, in_force, group, heads}]."""
    rows = []
    for name, (values, concerned) in THRESHOLDS.items():
        in_force = getattr(criteria, name)
        for value in sorted({*values, in_force}):
            groups = regrouped(found, replace(criteria, **{name: value}))
            row = {"criterion": name, "value": value, "in_force": value == in_force}
            rows += [row | {"group": group, "heads": groups[group]} for group in concerned]
    return rows


def regrouped(found: Discovery, criteria: Criteria) -> dict[str, list[str]]:
    """The groups by other criteria, from the effects that were measured."""
    groups = direct_groups(found.effects["answers"]["logits"].heads, found.attention, criteria)
    fi = found.groups["function_induction"]
    lower = list(found.groups["upstream"])
    for group, contrast in ROUTES.items():
        groups[group] = heads_of(route(found.effects.get(contrast, {}), fi, criteria))
        lower += groups[group]
    groups["previous_token"] = previous_token(lower, found.attention, criteria)
    return groups


def sensitivity(prompts: Prompts, found: Discovery, criteria: Criteria) -> list[Found]:
    """Rows of `evaluation.sensitivity`: `other_thresholds`, and what is left without each group."""
    rows = other_thresholds(found, criteria)
    for row in rows:
        reads_operands = row["group"] in ("expected_answer", "previous_token")
        how = "operands_changed" if reads_operands else "base"
        left = ablation_row(prompts, row["group"], row["heads"], how)
        row.update({name: left[name] for name in ("how", "base_acc", "contrast_acc", "n_prompts")})
    return rows
