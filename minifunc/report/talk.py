"""What `patch.py` says while it works: a few lines for each step, and a conclusion in plain words.

Every function takes what circuit.json holds and returns lines of at most 80 columns.
`minifunc/report/terminal.py` says all the rest.
"""

import textwrap
from collections.abc import Iterable
from typing import Any

from minifunc.analysis.rows import as_effects
from minifunc.support.tables import table

Circuit = dict[str, Any]
WIDTH = 80


# ---------------------------------------------------------------- words


def words(name: str) -> str:
    """A key of circuit.json for people: `function induction`."""
    return name.replace("_", " ")


def listed(names: Iterable[str], nothing: str = "none") -> str:
    return ", ".join(names) or nothing


def named(effects: dict[str, float], most: int = 4) -> str:
    """Nodes with their r in percent: `0.0 -73, mlp1 -20`."""
    return listed(f"{name} {100 * r:+.0f}" for name, r in list(effects.items())[:most])


def in_words(route: dict[str, float], most: int = 4) -> str:
    """A route's strongest nodes: `the embedding (-34 %) and mlp0 (-29 %)`."""
    parts = []
    for name, r in list(route.items())[:most]:
        article = "the " if name == "embedding" else ""
        parts.append(f"{article}{name} ({100 * r:.0f} %)")
    if len(parts) > 1:
        return f"{', '.join(parts[:-1])} and {parts[-1]}"
    return listed(parts, "no single node")


def wrap(text: str, first: str = "", rest: str = "") -> list[str]:
    """A text as lines, which begin with `first` and then with `rest`."""
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=rest)


def title(c: Circuit) -> str:
    """The task in words: `addition off by +1`."""
    return f"{c['task'].removeprefix('base_')} {c['asked']}"


# ---------------------------------------------------------------- step by step


def solved(c: Circuit) -> list[str]:
    mlps = "frozen" if c["freeze_mlps"] else "live"
    answers = {prompt: c["accuracy"][prompt] for prompt in ("base_prompt", "contrast_prompt")}
    rows = [[words(prompt) + "s", *shares.values()] for prompt, shares in answers.items()]
    return [
        f"{title(c)}, {c['shots']} shots, {c['n_prompts']} prompts, {mlps} MLPs, on {c['device']}",
        *table([f"shares of {c['accuracy_prompts']} prompts", "plain answer", c["asked"]], rows),
    ]


def heat_map(c: Circuit) -> list[str]:
    title = "heads → logits (r in %; -100: all the way back to the plain answer)"
    return [title, *str(as_effects(c["effects"]["logits"])).splitlines()]


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
        lines += wrap(text, f"  {label:20}", " " * 22)
    return lines


def enough(c: Circuit) -> list[str]:
    """All groups together run alone, random circuits beside them."""
    e = c["evaluation"]
    sources = {
        "base": "values of base prompts",
        "operands_changed": "of other operands",
        "mean": "mean values",
    }
    rows = []
    for row in e["circuits"]:
        if row["circuit"] == "union of groups":
            drawn, source = row["random_circuits"]["mean"], sources[row["replaced_by"]]
            rows.append([source, row["faithfulness"], row["circuit_accuracy"], drawn])
    return [
        f"is it enough? Its {len(e['circuit'])} heads alone, {e['n_prompts']} other prompts",
        *table(["all others send", "faithfulness", c["asked"], "random heads"], rows),
        "  (random heads: as many of the same layers; they overlap with the circuit)",
        f"  it misses at most {e['completeness']:.0%} of F, whatever part of it is taken away",
    ]


def ablated(c: Circuit) -> list[str]:
    """What is left without the FI heads, the plain answer beside it."""
    settings = {
        ("function_induction", "base"): "FI heads, base values",
        ("function_induction", "mean"): "FI heads, mean values",
        ("function_induction", "unrelated"): "FI heads, unrelated values",
        ("random_same_layers", "base"): "random heads of these layers, base values",
    }
    rows = []
    for row in c["evaluation"]["ablation"]:
        setting = settings.get((row["ablated"], row["how"]))
        if setting:
            rows.append([setting, row["base_acc"], row["contrast_acc"]])
    return table(["is it needed?", "plain answer", c["asked"]], rows)


def reused(c: Circuit) -> list[str]:
    """How other tasks fare without these heads."""
    shifted: dict[str, list[float]] = {
        "none": [],
        "function_induction": [],
        "random_same_layers": [],
    }
    for row in c["reuse"]:
        if row["prompt"] == "contrast" and row["items"] != "no carry":
            shifted[row["ablated"]].append(row["contrast_acc"])
    n = len(shifted["none"])
    if not n:
        return []
    kept, without, without_random = (sum(shares) / n for shares in shifted.values())
    text = (
        f"the same heads on {n} tasks: shifted answers {kept:.2f}, without them {without:.2f}, "
        f"without as many random ones {without_random:.2f} (means)"
    )
    return wrap(text, "", "  ")


# ---------------------------------------------------------------- the conclusion


def direct_writers(c: Circuit) -> tuple[dict[str, float], dict[str, float]]:
    """The nodes that count on the logits, strongest first: FI heads, and others."""
    strong = as_effects(c["effects"]["logits"]).named(strongest_first=True)
    strong = {name: r for name, r in strong.items() if abs(r) >= c["criteria"]["strong"]}
    fi = {name: r for name, r in strong.items() if name in c["groups"]["function_induction"]}
    return fi, {name: r for name, r in strong.items() if name not in fi}


def not_found(c: Circuit) -> str:
    """Says that there is no circuit, and why."""
    done = c["accuracy"]["contrast_prompt"]["contrast"]
    why = "no head moves the answer and looks at earlier answers as the criteria ask"
    if done < c["criteria"]["solves"]:
        why = "the model does not do the task"
    return (
        f"No function-induction circuit was found for {title(c)} "
        f"(right on {done:.1%} of prompts): {why}."
    )


def sentence(c: Circuit) -> str:
    """A plain paragraph that says what was found."""
    if not c["groups"]["function_induction"]:
        return not_found(c)
    fi, others = direct_writers(c)
    shown, expected = c["routes"]["shown_answer"], c["routes"]["expected_answer"]
    # Both with values from the base prompt.
    left, alone = c["evaluation"]["ablation"][0], c["evaluation"]["circuits"][0]
    done = c["accuracy"]["contrast_prompt"]["contrast"]
    return (
        f"{title(c).capitalize()} (right on {done:.1%} of prompts) is carried to the answer by the "
        f"function-induction head{'s' * (len(fi) > 1)} {in_words(fi, len(fi))}, which at the last "
        f"`=` look at the earlier answers; other direct writers are "
        f"{in_words(others, len(others))}. What was shown reaches the inputs of these heads from "
        f"{in_words(shown)}; what was to be expected, from {in_words(expected)}. "
        f"With their values from the base prompt put in, the model answers {c['asked']} on "
        f"{left['contrast_acc']:.1%} of prompts and gives the plain answer on "
        f"{left['base_acc']:.1%}. With those of all heads but the {len(alone['heads'])} of these "
        f"groups put in, it answers {c['asked']} on {alone['circuit_accuracy']:.1%} (faithfulness "
        f"{alone['faithfulness']:.2f}; as many random heads of the same layers, which overlap with "
        f"them: {alone['random_circuits']['mean']:.2f})."
    )


def conclusion(c: Circuit) -> list[str]:
    """The finding in a few plain words."""
    if not c["groups"]["function_induction"]:
        return ["", *wrap(not_found(c))]
    fi, _ = direct_writers(c)
    plain = {row["how"]: row["base_acc"] for row in c["evaluation"]["ablation"][:2]}
    done = c["accuracy"]["contrast_prompt"]["contrast"]
    text = (
        f"{title(c).capitalize()} (right on {done:.1%}) is carried to the answer by "
        f"{in_words(fi)}: heads that at the last `=` look back at the shown answers. With what "
        f"they send on plain prompts put in, the answer is plain on {plain['base']:.1%}; with mean "
        f"values on {plain['mean']:.1%}, so they carry the answer itself, not the rule alone."
    )
    return ["", *wrap(text)]
