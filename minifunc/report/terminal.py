"""All that is known of a traced circuit, as text: what `patch.py --full` prints, step by step.

Every function takes what circuit.json holds and returns lines. `told` wraps them.
"""

import shutil
import textwrap
from collections.abc import Callable
from typing import Any

import torch

from minifunc.analysis import function_vectors, reading
from minifunc.analysis.rows import as_effects
from minifunc.circuit import Criteria, feeding, heads_of, parse
from minifunc.report import talk
from minifunc.report.talk import Circuit, listed, named, sentence, setting, words


def told(step: str, circuit: Circuit, full: bool, colour: bool) -> list[str]:
    """Lines on one step of the study: those of the short talk, or all, as wide as the terminal."""
    heat_map = talk.heat_map(circuit, colour) if step == "direct" else []
    if not full:
        return heat_map + (talk.PARTS[step](circuit) if step in talk.PARTS else [])
    lines, width = ["", *heat_map] if heat_map else [], shutil.get_terminal_size().columns
    for part in PARTS[step]:
        found = part(circuit)
        if found and not heat_map:
            lines.append("")
        lines += [wrapped(line, width) for line in found]
    return lines


def wrapped(line: str, width: int) -> str:
    """A line broken at spaces where it is too long, its continuations indented further."""
    if len(line) <= width or "\x1b" in line:  # a coloured line is as wide as its table
        return line
    indent = " " * (len(line) - len(line.lstrip()) + 4)
    return textwrap.fill(
        line, width, subsequent_indent=indent, drop_whitespace=True, break_on_hyphens=False
    )


# ---------------------------------------------------------------- the task, heads → logits


def solved(c: Circuit) -> list[str]:
    lines = [setting(c)]
    for prompt in ("base_prompt", "contrast_prompt"):
        plain, shifted = (c["accuracy"][prompt][answer] for answer in ("base", "contrast"))
        lines.append(
            f"  {words(prompt):16} plain answer {plain:.3f}   answer {c['asked']} {shifted:.3f}"
        )
    F = f"base {c['F']['base']:.2f}, contrast {c['F']['contrast']:.2f}"
    return [*lines, f"  F = logit(plain) - logit({c['asked']}): {F}"]


def attributed(c: Circuit) -> list[str]:
    exact, linear = (torch.tensor(e["heads"]) for e in (c["effects"]["logits"], c["attribution"]))
    return [
        "attribution patching, the linear estimate of the same, ranks the heads with a correlation "
        f"of {c['attribution']['rank_correlation']:.2f}; "
        f"largest error {100 * (exact - linear).abs().max().item():.0f} % points"
    ]


# ---------------------------------------------------------------- groups and what feeds them


def groups(c: Circuit) -> list[str]:
    """The groups, the criteria that made them, and where their heads look."""
    lines = [f"{words(group):20}{listed(heads)}" for group, heads in c["groups"].items()]
    criteria = (f"{words(name)} >= {value:g}" for name, value in c["criteria"].items())
    lines.append(f"  criteria: {listed(criteria)}")
    shown = heads_of(head for heads in c["groups"].values() for head in heads)
    if shown:
        columns = "".join(f"{words(name):>20}" for name in c["attention"][shown[0]])
        lines += ["", f"{'head':8}{'r in %':>8}{columns}   (shares of attention)"]
    for head in shown:
        layer, index = parse(head)
        r = 100 * c["effects"]["logits"]["heads"][layer][index]
        shares = "".join(f"{share:20.2f}" for share in c["attention"][head].values())
        lines.append(f"{head:8}{r:8.1f}{shares}")
    return lines


def inputs(c: Circuit) -> list[str]:
    """What feeds each receiver, under each contrast; receivers that nothing feeds are left out."""
    criteria = Criteria(**c["criteria"])
    lines = ["what feeds them (r in %; q, k and v are a head's inputs)"]
    under = {
        "shown answers changed": c["effects"],
        "operands changed": c["operands_changed"]["effects"],
    }
    receivers = dict.fromkeys(name for effects in under.values() for name in effects)
    for receiver in receivers:
        for contrast, effects in under.items():
            if receiver == "logits" or receiver not in effects:
                continue
            fed = feeding([as_effects(effects[receiver])], criteria)
            if fed:
                lines.append(f"→ {receiver:22}{contrast + ':':24}{named(fed)}")
    return lines


def readers(c: Circuit) -> list[str]:
    """The heads below the FI heads."""
    if not c["readers"]:
        return []
    sources = {
        "answers": "other shown answers",
        "operands": "other operands",
        "unrelated": "unrelated examples",
    }
    lines = [
        "heads below: where they look from a shown answer, and r and accuracy "
        f"({c['asked']}) when each is replaced over the examples by values from",
        f"{'head':8}{'kind':18}{'looks at':12}{'brings':18}"
        + "".join(f"{text:>22}" for text in sources.values()),
    ]
    for head, role in c["readers"].items():
        brings = " and ".join(role["brings"]) or "neither"
        line = f"{head:8}{words(role['kind']):18}{role['looks_at']:12}{brings:18}"
        for name in sources:
            without = role["replaced"][name]
            line += f"{100 * without['r']:12.0f} % {without['contrast_acc']:7.2f}"
        lines.append(line)
    return lines


# ---------------------------------------------------------------- is it enough, is it needed?


def evaluated(c: Circuit) -> list[str]:
    """Circuits run alone: all heads outside replaced."""
    e = c["evaluation"]
    lines = [
        f"circuits alone, {e['n_prompts']} other prompts: heads outside send what they send on the "
        "base prompt, on the one with other operands, or their mean",
        "  (random: as many heads of the same layers, the circuit's own among them, so they overlap"
        " with it and may even equal it)",
        f"{'circuit':34}{'heads':>6}  {'outside':18}{'faithfulness':>14}{c['asked']:>10}"
        f"{'plain':>8}{'random: mean':>15}{'highest':>9}",
    ]
    for row in e["circuits"]:
        drawn, outside = row["random_circuits"], words(row["replaced_by"])
        lines.append(
            f"{row['circuit']:34}{len(row['heads']):>6}  {outside:18}{row['faithfulness']:14.3f}"
            f"{row['circuit_accuracy']:10.3f}{row['base_acc']:8.3f}"
            f"{drawn['mean']:15.3f}{drawn['highest']:9.3f}"
        )
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
    lines = [
        "ablation: other values in place of what some heads send on contrast prompts",
        "  base = from the paired base prompt, mean = mean over base prompts, unrelated = from "
        "another pair's base prompt, same k = from another contrast prompt, same answer = from one "
        "that asks for the same answer too",
        f"  {'heads':46}{'values from':18}{'prompts':>8}{'plain':>8}{c['asked']:>10}"
        "  [95 % over prompts; random groups: over draws]",
    ]
    for row in c["evaluation"]["ablation"]:
        heads = f" ({', '.join(row['heads'])})" if row["heads"] else ""
        low, high = row["ci"]
        line = (
            f"  {words(row['ablated']) + heads:45} {words(row['how']):18}{row['n_prompts']:>8}"
            f"{row['base_acc']:8.3f}{row['contrast_acc']:10.3f}  [{low:.2f}, {high:.2f}]"
        )
        if "floor" in row:
            line += f"   the same put into base prompts: {row['floor']:.3f}"
        elif "worst" in row:
            worst = row["worst"]
            line += (
                f"   {row['n_draws']} draws of {row['n_heads']:g} heads, {row['n_groups']} groups; "
                f"worst {worst['contrast_acc']:.3f} ({', '.join(worst['heads'])})"
            )
        lines.append(line)
    return lines


def thresholds(c: Circuit) -> list[str]:
    """The groups that other thresholds would make."""
    lines = [
        "other thresholds (* in force; those that change nothing are left out): the group, and the "
        f"accuracy {c['asked']} that is left without it"
    ]
    rows = c["evaluation"]["sensitivity"]
    in_force = {(row["criterion"], row["group"]): row["heads"] for row in rows if row["in_force"]}
    for row in rows:
        changes = row["heads"] != in_force[row["criterion"], row["group"]]
        if changes or (row["in_force"] and row["heads"]):
            mark = "*" if row["in_force"] else " "
            lines.append(
                f" {mark}{words(row['criterion']):20}{row['value']:6.2f}  {words(row['group']):20}"
                f"{row['contrast_acc']:6.2f}  {listed(row['heads'])}"
            )
    return lines


# ---------------------------------------------------------------- what the heads write; other tasks


def written(c: Circuit) -> list[str]:
    """What the FI heads write and read, and the probes."""
    if "probe" not in c:
        return []
    vectors, read = function_vectors.show(c, c["k"]), reading.show(c["reading"])
    return [*vectors.split("\n"), "", *read.split("\n"), "", *probed(c["probe"])]


def probed(probe: dict[str, Any]) -> list[str]:
    width = max(map(len, probe["sites"])) + 3
    sites = "".join(f"{site:>{width}}" for site in probe["sites"])
    lines = [f"{'linear probes, R² on prompts not fitted, after each writer':72}{sites}"]

    def row(where: str, target: str, values: list[float]) -> str:
        return f"  {where:34}{target:36}" + "".join(f"{value:{width}.3f}" for value in values)

    for kind in ("dealt", "consistent"):
        for place in ("answer", "equals"):
            for target in ("difference", "expected", "shuffled"):
                values = probe[kind][place][target]
                lines.append(row(f"{kind} documents, at {place}", target, values))
    for measure, text in (("r2", "difference"), ("correlation", "difference, correlation, not R²")):
        values = probe["other_functions"][measure]["difference"]
        lines.append(row("fitted on other functions", text, values))
    return [
        *lines,
        f"  from the shown answer alone: {probe['dealt']['from_shown_alone']:.3f}. The difference "
        f"becomes readable at the answers by {probe['made_by']} ({probe['step']:+.3f}).",
    ]


def reused(c: Circuit) -> list[str]:
    """The four accuracies of each task: plain / shifted answers."""
    columns = {
        ("base", "none"): "base prompt",
        ("contrast", "none"): "contrast prompt",
        ("contrast", "function_induction"): "without FI",
        ("contrast", "random_same_layers"): "without random",
    }
    if not c["reuse"]:
        return []
    lines = [
        "the same heads on other tasks: shares of plain / shifted answers (random: as many heads "
        "of the same layers, or all others where they are fewer)",
        f"  {'task':18}" + "".join(f"{text:>18}" for text in columns.values()),
    ]
    by_task: dict[str, dict[tuple[str, str], str]] = {}
    for row in c["reuse"]:
        name = f"{row['task']} {row['k']:+d}"
        if row["items"] != "all":
            name = f"base {row['k']}, {row['items']}"
        share = f"{row['base_acc']:.2f} / {row['contrast_acc']:.2f}"
        by_task.setdefault(name, {})[row["prompt"], row["ablated"]] = share
    for name, cells in by_task.items():
        lines.append(f"  {name:18}" + "".join(f"{cells.get(column, ''):>18}" for column in columns))
    return lines


def concluded(c: Circuit) -> list[str]:
    return [sentence(c)]


PARTS: dict[str, list[Callable[[Circuit], list[str]]]] = {
    "task": [solved],
    "direct": [attributed],
    "circuit": [groups, inputs],
    "enough": [evaluated, readers],
    "ablation": [ablated, thresholds],
    "writing": [written],
    "reuse": [reused],
    "conclusion": [concluded],
}
