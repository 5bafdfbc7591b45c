"""What the terminal shows of a traced circuit: tables, a heat map and one plain sentence, from what circuit.json holds."""

from typing import Any

import torch

from minifunc.analysis import function_vectors, reading
from minifunc.circuit import Criteria, feeding, heads_of, nodes, parse
from minifunc.patching import Effects


def as_effects(lists: dict[str, Any]) -> Effects:
    """r values as they stand in circuit.json → Effects; the values of single prompts are not kept there."""
    return Effects(
        torch.tensor(lists["heads"]),
        torch.tensor(lists["mlps"]),
        torch.tensor(lists["embedding"]),
        torch.empty(0),
        torch.empty(0),
    )


def heat_map(
    title: str, heads: list[list[float]], mlps: list[float], embedding: float, colour: bool
) -> str:
    """r in percent, a row per layer; red pulls back to base (r < 0), blue pushes on (r > 0)."""
    n_heads = len(heads[0])
    lines = [
        f"{title} (r in %)",
        "layer " + "".join(f"{f'h{head}':>7}" for head in range(n_heads)) + "     mlp",
    ]
    for layer, row in reversed(list(enumerate(heads))):
        lines.append(
            f"{layer:>5} "
            + "".join(_cell(r, colour) for r in row)
            + " "
            + _cell(mlps[layer], colour)
        )
    lines.append("embed " + _cell(embedding, colour))
    return "\n".join(lines)


def _cell(r: float, colour: bool) -> str:
    text = f"{100 * r:7.1f}"
    if not colour:
        return text
    shade = 255 - int(215 * min(1.0, abs(r) ** 0.5))
    red, green, blue = (255, shade, shade) if r < 0 else (shade, shade, 255)
    return f"\x1b[48;2;{red};{green};{blue}m\x1b[38;2;0;0;0m{text}\x1b[0m"


def named(effects: dict[str, float], most: int = 4) -> str:
    """Nodes with their r in percent: `0.0 -73, mlp1 -20`."""
    return ", ".join(f"{name} {100 * r:+.0f}" for name, r in list(effects.items())[:most]) or "none"


def in_words(route: dict[str, float], most: int = 4) -> str:
    """A route's strongest nodes: `the embedding (-34 %) and mlp0 (-29 %)`."""
    parts = [
        f"{'the ' * (name == 'embedding')}{name} ({100 * r:.0f} %)"
        for name, r in list(route.items())[:most]
    ]
    return " and ".join([", ".join(parts[:-1])] * (len(parts) > 1) + parts[-1:]) or "no single node"


def sentence(circuit: dict[str, Any]) -> str:
    """One plain sentence that says what was found."""
    groups, asked = circuit["groups"], circuit["asked"]
    task = f"{circuit['task'].removeprefix('base_')} {asked}"
    done = circuit["accuracy"]["contrast_prompt"]["contrast"]
    if not groups["function_induction"]:
        why = (
            "the model does not do the task"
            if done < circuit["criteria"]["solves"]
            else "no head moves the answer and looks at earlier answers as the criteria ask"
        )
        return f"No function-induction circuit was found for {task} (right on {done:.1%} of prompts): {why}."
    effects = circuit["effects"]["logits"]
    direct = {
        name: r
        for name, r in nodes(as_effects(effects)).items()
        if abs(r) >= circuit["criteria"]["strong"]
    }
    fi, others = (
        {
            name: r
            for name, r in sorted(direct.items(), key=lambda pair: -abs(pair[1]))
            if (name in groups["function_induction"]) == wanted
        }
        for wanted in (True, False)
    )
    left, alone = (
        circuit["evaluation"]["ablation"][0],
        circuit["evaluation"]["circuits"][0],
    )  # both with values from the base prompt
    return (
        f"{task.capitalize()} (right on {done:.1%} of prompts) is carried to the answer by the function-induction head{'s' * (len(fi) > 1)} {in_words(fi, len(fi))}, which at the last `=` look at the earlier answers; "
        f"other direct writers are {in_words(others, len(others))}. "
        f"What was shown reaches the inputs of these heads from {in_words(circuit['routes']['shown_answer'])}; what was to be expected, from {in_words(circuit['routes']['expected_answer'])}. "
        f"With their values from the base prompt put in, the model answers {asked} on {left['contrast_acc']:.1%} of prompts and gives the plain answer on {left['base_acc']:.1%}. "
        f"With those of all heads but the {len(alone['heads'])} of these groups put in, it answers {asked} on {alone['circuit_accuracy']:.1%} "
        f"(faithfulness {alone['faithfulness']:.2f}; as many random heads of the same layers: {alone['random_circuits']['mean']:.2f})."
    )


def show(circuit: dict[str, Any], colour: bool) -> str:
    """The findings as text."""
    c, found = circuit, bool(circuit["groups"]["function_induction"])
    parts = [solved(c), direct(c, colour), groups(c)]
    if found:
        parts += [
            inputs(c),
            readers(c),
            evaluated(c),
            ablated(c),
            thresholds(c),
            written(c),
            reused(c),
        ]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n\n" + sentence(c)


def solved(c: dict[str, Any]) -> list[str]:
    out = [
        f"{c['task'].removeprefix('base_')} {c['asked']}, {c['shots']} shots, {c['n_prompts']} prompts, {'frozen' if c['freeze_mlps'] else 'live'} MLPs, {c['seconds']:.0f} s on {c['device']}"
    ]
    for prompt in ("base_prompt", "contrast_prompt"):
        share = c["accuracy"][prompt]
        out.append(
            f"  {prompt.replace('_', ' '):16} plain answer {share['base']:.3f}   answer {c['asked']} {share['contrast']:.3f}"
        )
    return [
        *out,
        f"  F = logit(plain) - logit({c['asked']}): base {c['F']['base']:.2f}, contrast {c['F']['contrast']:.2f}",
    ]


def direct(c: dict[str, Any], colour: bool) -> list[str]:
    logits = c["effects"]["logits"]
    worst = (
        (torch.tensor(logits["heads"]) - torch.tensor(c["attribution"]["heads"])).abs().max().item()
    )
    out = [heat_map("heads → logits", logits["heads"], logits["mlps"], logits["embedding"], colour)]
    return [
        *out,
        f"attribution patching, the linear estimate of the same, ranks the heads with a correlation of {c['attribution']['rank_correlation']:.2f}; largest error {100 * worst:.0f} % points",
    ]


def groups(c: dict[str, Any]) -> list[str]:
    """The groups, the criteria that made them, and where their heads look."""
    out = [
        f"{group.replace('_', ' '):20}" + (", ".join(heads) or "none")
        for group, heads in c["groups"].items()
    ]
    out.append(
        "  criteria: "
        + ", ".join(
            f"{name.replace('_', ' ')} >= {value:g}" for name, value in c["criteria"].items()
        )
    )
    shown = heads_of(head for heads in c["groups"].values() for head in heads)
    if shown:
        out.append(
            f"\n{'head':8}{'r in %':>8}"
            + "".join(f"{name.replace('_', ' '):>20}" for name in c["attention"][shown[0]])
            + "   (shares of attention)"
        )
    for head in shown:
        layer, index = parse(head)
        out.append(
            f"{head:8}{100 * c['effects']['logits']['heads'][layer][index]:8.1f}"
            + "".join(f"{share:20.2f}" for share in c["attention"][head].values())
        )
    return out


def inputs(c: dict[str, Any]) -> list[str]:
    """What feeds each receiver, under each contrast; receivers that nothing feeds are left out."""
    criteria, out = (
        Criteria(**c["criteria"]),
        ["what feeds them (r in %; q, k and v are a head's inputs)"],
    )
    under = {
        "shown answers changed": c["effects"],
        "operands changed": c["operands_changed"]["effects"],
    }
    for receiver in dict.fromkeys(
        name for effects in under.values() for name in effects if name != "logits"
    ):
        for contrast, effects in under.items():
            fed = feeding([as_effects(effects[receiver])], criteria) if receiver in effects else {}
            out += [f"→ {receiver:22}{contrast + ':':24}{named(fed)}"] if fed else []
    return out


def readers(c: dict[str, Any]) -> list[str]:
    """The heads below the FI heads."""
    out = [
        f"heads below: where they look from a shown answer, and r and accuracy ({c['asked']}) when each is replaced over the examples by values from"
    ]
    out.append(
        f"{'head':8}{'kind':18}{'looks at':12}{'brings':18}{'other shown answers':>22}{'other operands':>22}{'unrelated examples':>22}"
    )
    for head, role in c["readers"].items():
        cells = "".join(
            f"{100 * role['replaced'][name]['r']:12.0f} % {role['replaced'][name]['contrast_acc']:7.2f}"
            for name in ("answers", "operands", "unrelated")
        )
        out.append(
            f"{head:8}{role['kind'].replace('_', ' '):18}{role['looks_at']:12}{' and '.join(role['brings']) or 'neither':18}{cells}"
        )
    return out if c["readers"] else []


def evaluated(c: dict[str, Any]) -> list[str]:
    """Circuits run alone: all heads outside replaced."""
    e = c["evaluation"]
    out = [
        f"circuits alone, {e['n_prompts']} other prompts: heads outside send what they send on the base prompt, on the one with other operands, or their mean"
    ]
    out.append(
        f"{'circuit':34}{'heads':>6}  {'outside':18}{'faithfulness':>14}{c['asked']:>10}{'plain':>8}   as many random heads of the same layers: mean, highest"
    )
    for row in e["circuits"]:
        drawn = row["random_circuits"]
        out.append(
            f"{row['circuit']:34}{len(row['heads']):>6}  {row['replaced_by'].replace('_', ' '):18}{row['faithfulness']:14.3f}{row['circuit_accuracy']:10.3f}{row['base_acc']:8.3f}   {drawn['mean']:8.3f}{drawn['highest']:8.3f}"
        )
    for name, part in (
        ("union of groups", e),
        ("the same, operands changed", e["operands_changed"]),
        ("eliminated, both contrasts", e["by_elimination"]),
    ):
        gaps, least = (
            part["completeness_gaps"],
            sorted(part["minimality"].items(), key=lambda pair: pair[1]),
        )
        out.append(f"  {name}: {', '.join(part['circuit'])}")
        out.append(
            f"    completeness gap, share of F's range: greedy max {part['completeness']:.3f} (without {', '.join(gaps['worst'])}), mean {gaps.get('greedy_mean', 0):.3f}; random max {gaps.get('random_max', 0):.3f}, mean {gaps.get('random_mean', 0):.3f}"
        )
        out.append(
            "    minimality, least needed first: "
            + ", ".join(f"{head} {share:.3f}" for head, share in least)
        )
    return out


def ablated(c: dict[str, Any]) -> list[str]:
    """Groups replaced in the whole model, and their controls."""
    out = [
        "ablation: other values in place of what some heads send on contrast prompts",
        "  base = from the paired base prompt, mean = mean over base prompts, unrelated = from another pair's base prompt, same k = from another contrast prompt, same answer = from one that asks for the same answer too",
    ]
    out.append(
        f"  {'heads':46}{'values from':18}{'prompts':>8}{'plain':>8}{c['asked']:>10}  [95 % over prompts; random groups: over draws]"
    )
    for row in c["evaluation"]["ablation"]:
        drawn = (
            f"   {row['n_draws']} draws of {row['n_heads']:g} heads, {row['n_groups']} groups; worst {row['worst']['contrast_acc']:.3f} ({', '.join(row['worst']['heads'])})"
            if "worst" in row
            else ""
        )
        drawn = (
            f"   the same put into base prompts: {row['floor']:.3f}" if "floor" in row else drawn
        )
        label = f"{row['ablated'].replace('_', ' ')} {'(' * bool(row['heads'])}{', '.join(row['heads'])}{')' * bool(row['heads'])}"
        low, high = row["ci"]
        out.append(
            f"  {label:45} {row['how'].replace('_', ' '):18}{row['n_prompts']:>8}{row['base_acc']:8.3f}{row['contrast_acc']:10.3f}  [{low:.2f}, {high:.2f}]{drawn}"
        )
    return out


def thresholds(c: dict[str, Any]) -> list[str]:
    """The groups that other thresholds would make."""
    out = [
        f"other thresholds (* in force; those that change nothing are left out): the group, and the accuracy {c['asked']} that is left without it"
    ]
    rows = c["evaluation"]["sensitivity"]
    in_force = {(row["criterion"], row["group"]): row["heads"] for row in rows if row["in_force"]}
    for row in rows:
        if row["heads"] == in_force[row["criterion"], row["group"]] and not (
            row["in_force"] and row["heads"]
        ):
            continue
        mark = "*" if row["in_force"] else " "
        out.append(
            f" {mark}{row['criterion'].replace('_', ' '):20}{row['value']:6.2f}  {row['group'].replace('_', ' '):20}{row['contrast_acc']:6.2f}  {', '.join(row['heads']) or 'none'}"
        )
    return out


def reused(c: dict[str, Any]) -> list[str]:
    """The four accuracies of each task: plain / shifted answers."""
    columns = [
        ("base", "none"),
        ("contrast", "none"),
        ("contrast", "function_induction"),
        ("contrast", "random_same_layers"),
    ]
    out = [
        "the same heads on other tasks: shares of plain / shifted answers (random: as many heads of the same layers, or all others where they are fewer)",
        f"  {'task':18}{'base prompt':>16}{'contrast prompt':>18}{'without FI':>16}{'without random':>18}",
    ]
    by_task: dict[tuple[str, int, str], dict[tuple[str, str], str]] = {}
    for row in c["reuse"]:
        by_task.setdefault((row["task"], row["k"], row["items"]), {})[
            row["prompt"], row["ablated"]
        ] = f"{row['base_acc']:.2f} / {row['contrast_acc']:.2f}"
    for (task, k, items), cells in by_task.items():
        name = f"{task} {k:+d}" if items == "all" else f"base {k}, {items}"
        out.append(
            f"  {name:18}"
            + "".join(
                f"{cells.get(column, ''):>{width}}"
                for column, width in zip(columns, (16, 18, 16, 18))
            )
        )
    return out if by_task else []


def written(c: dict[str, Any]) -> list[str]:
    """What the FI heads write and read, and the probes."""
    if "probe" not in c:
        return []
    lines, probe = (
        [function_vectors.show(c, c["k"]), "", reading.show(c["reading"]), ""],
        c["probe"],
    )
    width = max(map(len, probe["sites"])) + 3
    lines.append(
        f"linear probes, R² on prompts not fitted, after each writer{'':15}"
        + "".join(f"{site:>{width}}" for site in probe["sites"])
    )
    rows = [
        (kind, place, target)
        for kind in ("dealt", "consistent")
        for place in ("answer", "equals")
        for target in ("difference", "expected", "shuffled")
    ]
    for kind, place, target in rows:
        lines.append(
            f"  {kind + ' documents, at ' + place:34}{target:38}"
            + "".join(f"{value:{width}.3f}" for value in probe[kind][place][target])
        )
    for measure, text in (
        ("r2", "difference"),
        ("correlation", "difference, correlation instead of R²"),
    ):
        lines.append(
            f"  {'fitted on other functions':34}{text:38}"
            + "".join(
                f"{value:{width}.3f}" for value in probe["other_functions"][measure]["difference"]
            )
        )
    lines.append(
        f"  from the shown answer alone: {probe['dealt']['from_shown_alone']:.3f}. The difference becomes readable at the answers by {probe['made_by']} ({probe['step']:+.3f})."
    )
    return lines
