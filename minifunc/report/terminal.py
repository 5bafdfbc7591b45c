"""What patch.py says of each step of its work, in short or in full, and what it concludes.

Every part takes what circuit.json holds and returns lines, which in short fit 80 columns.
"""

from collections.abc import Callable, Iterable
from itertools import chain
from statistics import fmean
from typing import Any

from minifunc.analysis.rows import as_effects
from minifunc.support.names import heads_of
from minifunc.support.tables import table, words, wrapped

Circuit = dict[str, Any]


def told(step: str, circuit: Circuit, full: bool) -> list[str]:
    """Lines on one step of the study."""
    in_short, in_full = PARTS[step]
    parts = in_full if full else in_short
    lines = [wrapped(line) for part in parts for line in part(circuit)]
    return ["", *lines] if lines and (full or step == "conclusion") else lines


def listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def named(effects: dict[str, float], most: int = 4) -> str:
    """Nodes with their r in percent: `0.0 -73, mlp1 -20`."""
    return listed(f"{name} {100 * r:+.0f}" for name, r in list(effects.items())[:most])


def in_words(effects: dict[str, float]) -> str:
    """Nodes with their r: `0.1 (-34 %) and 0.2 (-29 %)`."""
    *others, last = [f"{name} ({100 * r:.0f} %)" for name, r in effects.items()]
    return f"{', '.join(others)} and {last}" if others else last


def title(c: Circuit) -> str:
    """The task in words: `addition off by +1`."""
    return f"{c['task'].removeprefix('base_')} {c['asked']}"


def members(c: Circuit) -> list[str]:
    """The heads of all groups, in the order of the model."""
    return heads_of(chain(*c["groups"].values()))


def r_of(c: Circuit, head: str) -> float:
    """A head's direct effect on the logits, in percent."""
    return 100 * as_effects(c["effects"]["logits"]).named()[head]


def direct_writers(c: Circuit) -> tuple[dict[str, float], dict[str, float]]:
    """The nodes that count on the logits, strongest first: FI heads, and others."""
    strong = as_effects(c["effects"]["logits"]).named(strongest_first=True)
    strong = {name: r for name, r in strong.items() if abs(r) >= c["criteria"]["strong"]}
    fi = {name: r for name, r in strong.items() if name in c["groups"]["function_induction"]}
    return fi, {name: r for name, r in strong.items() if name not in fi}


def between(interval: list[float], scale: float = 1) -> str:
    """An interval of 95 %: `0.96 to 0.99`."""
    return " to ".join(f"{scale * end:.2f}" for end in interval)


def solved(c: Circuit) -> list[str]:
    mlps = "frozen" if c["freeze_mlps"] else "live"
    rows = [[words(prompt) + "s", *shares.values()] for prompt, shares in c["accuracy"].items()]
    return [
        f"{title(c)}, {c['shots']} shots, {c['n_prompts']} prompts, {mlps} MLPs, on {c['device']}",
        *table([f"shares of {c['accuracy_prompts']} prompts", "plain answer", c["asked"]], rows),
    ]


def logit_differences(c: Circuit) -> list[str]:
    F = listed(f"{name} {c['F'][name]:.2f} ({between(ci)})" for name, ci in c["F_ci"].items())
    return [f"F = logit(plain) - logit({c['asked']}): {F}"]


def heat_map(c: Circuit) -> list[str]:
    says = "heads → logits (r in %; -100: all the way back to the plain answer)"
    return [says, *str(as_effects(c["effects"]["logits"])).splitlines()]


def traced(c: Circuit) -> list[str]:
    """The FI heads, and what feeds them."""
    if not c["groups"]["function_induction"]:
        return []
    fi, others = direct_writers(c)
    said = {
        "function induction": named(fi, len(fi)),
        "other writers": named(others, len(others)),
        "the shown answers": f"reach them from {named(c['routes']['shown_answer'])}",
        "the expected ones": f"reach them from {named(c['routes']['expected_answer'])}",
    }
    lines = ["the circuit (r in %)"]
    for label, text in said.items():
        lines += wrapped(f"  {label:20}{text}", 20).split("\n")
    return lines


def groups(c: Circuit) -> list[str]:
    """The groups, the criteria that made them, and where their heads look."""
    criteria = listed(f"{words(name)} >= {value:g}" for name, value in c["criteria"].items())
    rows = [[words(group), listed(heads)] for group, heads in c["groups"].items()]
    lines = [*table(["group", "heads"], rows, left=2), f"criteria: {criteria}"]
    if not (heads := members(c)):
        return lines
    rows = list[list[Any]]()
    for head in heads:
        r = [f"{r_of(c, head):.1f}", between(c["r_ci"][head], 100)]
        rows.append([head, *r, *c["attention"][head].values()])
    columns = ["head", "r in %", "95 %", *map(words, c["attention"][heads[0]])]
    return [*lines, "", "where they look: shares of attention", *table(columns, rows, digits=2)]


def enough(c: Circuit) -> list[str]:
    """In short: all groups together run alone, beside all other heads and random circuits."""
    e, rows = c["evaluation"], []
    for row in e["circuits"][:3]:  # of the union of groups
        faithful = f"{row['faithfulness']:.2f} ({between(row['faithfulness_ci'])})"
        alone = [faithful, row["circuit_accuracy"], row["base_acc"]]
        controls = [row["others_alone"]["faithfulness"], (row["random_circuits"] or {}).get("mean")]
        rows.append([words(row["replaced_by"]), *alone, *controls])
    columns = ["all else sends", "faithfulness", c["asked"], "plain", "others", "random"]
    return [
        f"is it enough? Its {len(e['circuit'])} heads alone, {e['n_prompts']} other prompts",
        *table(columns, rows, 1, 2),
        f"  others: all but these; random: as many. It misses at most {e['completeness']:.0%} of F",
    ]


def evaluated(c: Circuit) -> list[str]:
    """Circuits run alone, all heads outside replaced, and their controls."""
    e, rows = c["evaluation"], []
    shares = ("circuit_accuracy", "base_acc", "highest", "overlap")
    for row in e["circuits"]:
        runs = {f"{row['circuit']} ({len(row['heads'])})": row}
        for control in ("others_alone", "random_circuits", "random_lower"):
            runs[f"  {words(control)}"] = row[control] or {}
        for name, run in runs.items():
            faithful = run.get("faithfulness", run.get("mean"))
            ci = between(run.get("faithfulness_ci", []))
            rows.append([name, words(row["replaced_by"]), faithful, ci, *map(run.get, shares)])
    columns = ["circuit", "outside", "faithfulness", "95 %", c["asked"], "plain"]
    return [
        f"circuits alone, {e['n_prompts']} other prompts: heads outside send what they send on the "
        "base prompt, on the one with other operands, or their mean",
        "  random circuits = as many other heads of the same layers; random lower = below the "
        "highest FI head other heads, the FI heads kept; neither is ever the circuit itself (– = "
        "there is no other); overlap = share of the circuit's heads in them",
        *table([*columns, "highest", "overlap"], rows, left=2),
        incomplete("union of groups", e),
        incomplete("the same, operands changed", e["operands_changed"]),
        incomplete("eliminated, both contrasts", e["by_elimination"]),
    ]


def incomplete(name: str, part: dict[str, Any]) -> str:
    """Completeness of one circuit; its minimality is in circuit.json."""
    gap, worst = part["completeness"], listed(part["completeness_gaps"]["worst"])
    return f"  {name}: misses at most {gap:.3f} of F's range, without {worst}"


def needed(c: Circuit) -> list[str]:
    """In short: what is left without the FI heads, the plain answer beside it."""
    settings = {("random_same_layers", "base"): "random heads of these layers, base values"}
    for how in ("base", "mean", "unrelated"):
        settings["function_induction", how] = f"FI heads, {how} values"
    rows = []
    for row in c["evaluation"]["ablation"]:
        if setting := settings.get((row["ablated"], row["how"])):
            rows.append([setting, row["base_acc"], row["contrast_acc"]])
    return table(["is it needed?", "plain answer", c["asked"]], rows)


def ablated(c: Circuit) -> list[str]:
    """Groups replaced in the whole model, and their controls."""
    rows = []
    for row in c["evaluation"]["ablation"]:
        heads, worst = listed(row["heads"]), ["–", "–"]
        if "worst" in row:
            heads = f"{row['n_draws']} draws of {row['n_heads']:g}, {row['n_groups']} groups"
            worst = [row["worst"]["contrast_acc"], listed(row["worst"]["heads"])]
        low, high = row["ci"]
        replaced = [words(row["ablated"]), heads, words(row["how"]), row["n_prompts"]]
        shares = [row["base_acc"], row["contrast_acc"], f"{low:.2f} to {high:.2f}"]
        rows.append([*replaced, *shares, row.get("floor", "–"), *worst])
    columns = ["ablated", "heads", "values from", "prompts", "plain", c["asked"], "95 %"]
    return [
        "ablation: other values in place of what some heads send on contrast prompts",
        "  base = from the paired base prompt, mean = mean over base prompts, unrelated = from "
        "another pair's base prompt, same k = from another contrast prompt, same answer = from one "
        "that asks for the same answer too",
        f"  95 % = of {c['asked']} over prompts, or for random groups over draws; in base prompts ="
        f" {c['asked']} when the same is put into base prompts; worst = of the draws",
        *table([*columns, "in base prompts", "worst", "by"], rows, left=3),
    ]


def carried(c: Circuit) -> list[str]:
    """In short: which FI heads carry the shift."""
    if "shift_swap" not in c["evaluation"]:
        return []
    together, *others = c["evaluation"]["shift_swap"]["rows"]
    alone = [row["passes"] for row in others if row["swapped"] == "one_fi_head"]
    share = f"together {together['answers']['moved']:.0%} of the way"
    return [f"given another shift's: {sum(alone)} of {len(alone)} move the answer, {share}"]


def averages(c: Circuit) -> list[str]:
    """In short: what the answer is where half of the examples are off by -1, half by +1."""
    if "averaging" not in c:
        return []
    row = c["averaging"]["mixtures"][0]
    r2, (low, high) = row["r2"], row["r2_ci"]["attention"]
    return [
        f"examples off by -1 and +1, mixed: {row['unseen_offset_share']:.0%} of answers are off by "
        f"what none shows. The shown differences, weighted by the attention of these heads, "
        f"foretell it: R² {r2['attention']:.2f}, 95 % from {low:.2f} to {high:.2f} (their "
        f"unweighted mean: {r2['uniform']:.2f})"
    ]


def fours(c: Circuit) -> list[list[dict[str, Any]]]:
    """Rows of `reuse` by task: base prompts, contrast prompts, these without FI, without random."""
    rows = c["reuse"]
    return [rows[at : at + 4] for at in range(0, len(rows), 4)]


def spared(c: Circuit) -> list[str]:
    """In short: how other tasks fare without these heads."""
    shares = []
    for base, *settings in fours(c):
        if base["items"] != "no carry":
            shares.append([row[key] for row in settings for key in ("contrast_acc", "base_acc")])
    if not shares:
        return []
    means = [f"{fmean(each):.2f}" for each in zip(*shares)]
    kept, without, random = (" and ".join(means[at : at + 2]) for at in (0, 2, 4))
    return [
        f"the same heads on {len(shares)} tasks: shifted and plain answers {kept}, without them "
        f"{without}, without as many random ones {random} (means)"
    ]


def asked_in(four: list[dict[str, Any]]) -> str:
    """What is asked in four rows of `reuse`: `caesar +1`."""
    task, k, items = (four[0][key] for key in ("task", "k", "items"))
    return f"{task} {k:+d}" if items == "all" else f"base {k}, {items}"


def conclusion(c: Circuit) -> list[str]:
    """The finding in a few plain words, or why there is none."""
    done = c["accuracy"]["contrast_prompt"]["contrast"]
    if not c["groups"]["function_induction"]:
        why = "no head moves the answer and looks at earlier answers as the criteria ask"
        if done < c["criteria"]["solves"]:
            why = "the model does not do the task"
        asked = f"{title(c)} (right on {done:.1%} of prompts)"
        return [f"No function-induction circuit was found for {asked}: {why}."]
    fi, _ = direct_writers(c)
    plain = {row["how"]: row["base_acc"] for row in c["evaluation"]["ablation"][:2]}
    return [
        f"{title(c).capitalize()} (right on {done:.1%}) is carried to the answer by "
        f"{in_words(fi)}: heads that at the last `=` look back at the shown answers. With what "
        f"they send on plain prompts put in, the answer is plain on {plain['base']:.1%}; with mean "
        f"values on {plain['mean']:.1%}, so they carry the answer itself, not the rule alone."
    ]


Parts = tuple[Callable[[Circuit], list[str]], ...]
PARTS: dict[str, tuple[Parts, Parts]] = {  # of each step: in short, in full
    "task": ((solved,), (solved, logit_differences)),
    "direct": ((heat_map,), (heat_map,)),
    "circuit": ((traced,), (traced, groups)),
    "enough": ((enough,), (evaluated,)),
    "ablation": ((needed, carried), (ablated, carried)),
    "writing": ((averages,), (averages,)),
    "reuse": ((spared,), (spared,)),
    "conclusion": ((conclusion,), (conclusion,)),
}
