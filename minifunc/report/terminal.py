"""All that is known of a traced circuit, as text: what `patch.py --full` prints, step by step.

Every function takes what circuit.json holds and returns lines. `told` wraps them.
"""

import shutil
import textwrap
from collections.abc import Callable
from typing import Any

from minifunc.analysis import function_vectors, reading
from minifunc.analysis.rows import as_effects
from minifunc.circuit import Criteria, feeding
from minifunc.report import talk
from minifunc.report.talk import Circuit, listed, named, sentence, words
from minifunc.support.names import heads_of, parse
from minifunc.support.tables import table


def told(step: str, circuit: Circuit, full: bool) -> list[str]:
    """Lines on one step of the study: those of the short talk, or all, as wide as the terminal."""
    short, whole = PARTS[step]
    lines = talk.heat_map(circuit) if step == "direct" else []
    for part in whole if full else short:
        lines += part(circuit)
    if not full or not lines:
        return lines
    width = shutil.get_terminal_size().columns
    return [wrapped(line, width) for line in ["", *lines]]


def wrapped(line: str, width: int) -> str:
    """A line broken at spaces where it is too long, its continuations indented further."""
    if len(line) <= width:
        return line
    indent = " " * (len(line) - len(line.lstrip()) + 4)
    return textwrap.fill(line, width, subsequent_indent=indent, break_on_hyphens=False)


# ---------------------------------------------------------------- the task, heads → logits


def solved(c: Circuit) -> list[str]:
    F = f"base {c['F']['base']:.2f}, contrast {c['F']['contrast']:.2f}"
    return [*talk.solved(c), f"F = logit(plain) - logit({c['asked']}): {F}"]


def attributed(c: Circuit) -> list[str]:
    exact, linear = as_effects(c["effects"]["logits"]), as_effects(c["attribution"])
    error = 100 * (exact.heads - linear.heads).abs().max().item()
    return [
        "attribution patching, the linear estimate of the same, ranks the heads with a correlation "
        f"of {c['attribution']['rank_correlation']:.2f}; largest error {error:.0f} % points"
    ]


# ---------------------------------------------------------------- groups and what feeds them


def groups(c: Circuit) -> list[str]:
    """The groups, the criteria that made them, and where their heads look."""
    criteria = listed(f"{words(name)} >= {value:g}" for name, value in c["criteria"].items())
    rows = [[words(group), listed(heads)] for group, heads in c["groups"].items()]
    lines = [*table(["group", "heads"], rows, left=2), f"criteria: {criteria}"]
    shown = heads_of(head for heads in c["groups"].values() for head in heads)
    if not shown:
        return lines
    rows = []
    for head in shown:
        layer, index = parse(head)
        r = 100 * c["effects"]["logits"]["heads"][layer][index]
        rows.append([head, f"{r:.1f}", *c["attention"][head].values()])
    columns = ["head", "r in %", *map(words, c["attention"][shown[0]])]
    return [*lines, "", "where they look: shares of attention", *table(columns, rows, digits=2)]


def inputs(c: Circuit) -> list[str]:
    """What feeds each receiver, under each contrast; receivers that nothing feeds are left out."""
    criteria, answers, operands = Criteria(**c["criteria"]), c["effects"], c["operands_changed"]
    under = {"shown answers": answers, "operands": operands["effects"]}
    rows = []
    for receiver in dict.fromkeys([*answers, *operands["effects"]]):
        for contrast, effects in under.items():
            if receiver != "logits" and receiver in effects:
                fed = feeding([as_effects(effects[receiver])], criteria)
                rows += [[receiver, contrast, named(fed)]] if fed else []
    title = "what feeds them (r in %; q, k and v are a head's inputs)"
    return [title, *table(["receiver", "changed", "fed by"], rows, left=3)]


def readers(c: Circuit) -> list[str]:
    """The heads below the FI heads."""
    if not c["readers"]:
        return []
    rows = []
    for head, role in c["readers"].items():
        brings = " and ".join(role["brings"]) or "neither"
        row = [head, words(role["kind"]), role["looks_at"], brings]
        for source in ("answers", "operands", "unrelated"):
            without = role["replaced"][source]
            row.append(f"{100 * without['r']:.0f} % {without['contrast_acc']:7.2f}")
        rows.append(row)
    columns = ["head", "kind", "looks at", "brings", "other shown answers", "other operands"]
    return [
        "heads below: where they look from a shown answer, and r and accuracy "
        f"({c['asked']}) when each is replaced over the examples by values from",
        *table([*columns, "unrelated examples"], rows, left=4),
    ]


# ---------------------------------------------------------------- is it enough, is it needed?


def evaluated(c: Circuit) -> list[str]:
    """Circuits run alone: all heads outside replaced."""
    e = c["evaluation"]
    columns = ["circuit", "outside", "heads", "faithfulness", c["asked"], "plain"]
    columns += ["random: mean", "highest"]
    rows = []
    for row in e["circuits"]:
        alone = [row["faithfulness"], row["circuit_accuracy"], row["base_acc"]]
        drawn = [row["random_circuits"]["mean"], row["random_circuits"]["highest"]]
        kind = [row["circuit"], words(row["replaced_by"]), len(row["heads"])]
        rows.append([*kind, *alone, *drawn])
    lines = [
        f"circuits alone, {e['n_prompts']} other prompts: heads outside send what they send on the "
        "base prompt, on the one with other operands, or their mean",
        "  (random: as many heads of the same layers, the circuit's own among them, so they overlap"
        " with it and may even equal it)",
        *table(columns, rows, left=2),
    ]
    parts = {
        "union of groups": e,
        "the same, operands changed": e["operands_changed"],
        "eliminated, both contrasts": e["by_elimination"],
    }
    for name, part in parts.items():
        gaps = part["completeness_gaps"]
        least_first = sorted(part["minimality"].items(), key=lambda pair: pair[1])
        lines += [
            f"  {name}: {listed(part['circuit'])}",
            f"    completeness gap, share of F's range: greedy max {part['completeness']:.3f} "
            f"(without {listed(gaps['worst'])}), mean {gaps.get('greedy_mean', 0):.3f}; "
            f"random max {gaps.get('random_max', 0):.3f}, mean {gaps.get('random_mean', 0):.3f}",
            "    minimality, least needed first: "
            + listed(f"{head} {share:.3f}" for head, share in least_first),
        ]
    return lines


def ablated(c: Circuit) -> list[str]:
    """Groups replaced in the whole model, and their controls."""
    rows = []
    for row in c["evaluation"]["ablation"]:
        heads = listed(row["heads"])
        put_in_base, worst = row.get("floor", "–"), ["–", "–"]
        if "worst" in row:
            heads = f"{row['n_draws']} draws of {row['n_heads']:g}, {row['n_groups']} groups"
            worst = [row["worst"]["contrast_acc"], listed(row["worst"]["heads"])]
        low, high = row["ci"]
        replaced = [words(row["ablated"]), heads, words(row["how"]), row["n_prompts"]]
        shares = [row["base_acc"], row["contrast_acc"], f"{low:.2f} to {high:.2f}", put_in_base]
        rows.append(replaced + shares + worst)
    columns = ["ablated", "heads", "values from", "prompts", "plain", c["asked"], "95 %"]
    columns += ["in base prompts", "worst", "by"]
    return [
        "ablation: other values in place of what some heads send on contrast prompts",
        "  base = from the paired base prompt, mean = mean over base prompts, unrelated = from "
        "another pair's base prompt, same k = from another contrast prompt, same answer = from one "
        "that asks for the same answer too",
        f"  95 % = of {c['asked']} over prompts, or for random groups over draws; in base prompts ="
        f" {c['asked']} when the same is put into base prompts; worst = of the draws",
        *table(columns, rows, left=3),
    ]


def thresholds(c: Circuit) -> list[str]:
    """The groups that other thresholds would make."""
    sensitivity, rows = c["evaluation"]["sensitivity"], []
    usual = {(row["criterion"], row["group"]): row for row in sensitivity if row["in_force"]}
    for row in sensitivity:
        heads = row["heads"]
        changes = heads != usual[row["criterion"], row["group"]]["heads"]
        if changes or (row["in_force"] and heads):
            criterion = words(row["criterion"]) + " *" * row["in_force"]
            shares = [f"{row['value']:.2f}", f"{row['contrast_acc']:.2f}"]
            rows.append([criterion, words(row["group"]), listed(heads), *shares])
    return [
        "other thresholds (* in force; those that change nothing are left out): the group, and the "
        f"accuracy {c['asked']} that is left without it",
        *table(["criterion", "group", "heads", "threshold", "left"], rows, left=3),
    ]


# ---------------------------------------------------------------- what the heads write; other tasks


def written(c: Circuit) -> list[str]:
    """What the FI heads write and read, and the probes."""
    if "probe" not in c:
        return []
    vectors, read = function_vectors.show(c, c["k"]), reading.show(c["reading"])
    return [*vectors, "", *read, "", *probed(c["probe"])]


def probed(probe: dict[str, Any]) -> list[str]:
    rows = []
    for kind in ("dealt", "consistent"):
        for place in ("answer", "equals"):
            for target in ("difference", "expected", "shuffled"):
                values = probe[kind][place][target]
                rows.append([f"{kind} documents, at {place}", target, *values])
    others = probe["other_functions"]
    for target, measured in (("difference", "r2"), ("difference: correlation", "correlation")):
        rows.append(["fitted on other functions", target, *others[measured]["difference"]])
    return [
        "linear probes, R² on prompts not fitted, after each writer",
        *table(["fitted on", "target", *probe["sites"]], rows, left=2),
        f"  from the shown answer alone: {probe['dealt']['from_shown_alone']:.3f}. The difference "
        f"becomes readable at the answers by {probe['made_by']} ({probe['step']:+.3f}).",
    ]


def reused(c: Circuit) -> list[str]:
    """The four accuracies of each task: plain / shifted answers."""
    by_task: dict[str, list[str]] = {}
    for row in c["reuse"]:
        name = f"{row['task']} {row['k']:+d}"
        if row["items"] != "all":
            name = f"base {row['k']}, {row['items']}"
        shares = f"{row['base_acc']:.2f} / {row['contrast_acc']:.2f}"
        by_task.setdefault(name, []).append(shares)
    columns = ["task", "base prompt", "contrast prompt", "without FI", "without random"]
    return [
        "the same heads on other tasks: shares of plain / shifted answers (random: as many heads "
        "of the same layers, or all others where they are fewer)",
        *table(columns, [[name, *shares] for name, shares in by_task.items()]),
    ]


def concluded(c: Circuit) -> list[str]:
    return [sentence(c)]


Part = Callable[[Circuit], list[str]]
PARTS: dict[str, tuple[list[Part], list[Part]]] = {  # of each step: in short, in full
    "task": ([talk.solved], [solved]),
    "direct": ([], [attributed]),
    "circuit": ([talk.traced], [groups, inputs]),
    "enough": ([talk.enough], [evaluated, readers]),
    "ablation": ([talk.ablated], [ablated, thresholds]),
    "writing": ([], [written]),
    "reuse": ([talk.reused], [reused]),
    "conclusion": ([talk.conclusion], [concluded]),
}
