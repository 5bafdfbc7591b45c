"""What `patch.py` says while it works: a few lines for each step, and a conclusion in plain words.

Every function takes what circuit.json holds and returns lines of at most 80 columns.
`minifunc/report/terminal.py` says all the rest.
"""

import textwrap
from collections.abc import Callable, Iterable
from typing import Any

from minifunc.analysis.rows import as_effects

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


def title(c: Circuit) -> str:
    """The task in words: `addition off by +1`."""
    return f"{c['task'].removeprefix('base_')} {c['asked']}"


def setting(c: Circuit) -> str:
    mlps = "frozen" if c["freeze_mlps"] else "live"
    return (
        f"{title(c)}, {c['shots']} shots, {c['n_prompts']} prompts, {mlps} MLPs, on {c['device']}"
    )


def item(label: str, text: str, width: int = 20) -> list[str]:
    """A label and what is said of it, the text wrapped beside it."""
    indent = " " * (width + 2)
    return textwrap.wrap(text, WIDTH, initial_indent=f"  {label:{width}}", subsequent_indent=indent)


# ---------------------------------------------------------------- step by step


def solved(c: Circuit) -> list[str]:
    lines = [
        setting(c),
        f"  shares of {c['accuracy_prompts']} prompts{'plain answer':>24}{c['asked']:>14}",
    ]
    for prompt in ("base_prompt", "contrast_prompt"):
        plain, shifted = (c["accuracy"][prompt][answer] for answer in ("base", "contrast"))
        lines.append(f"  {words(prompt) + 's':21}{plain:24.3f}{shifted:14.3f}")
    return lines


def heat_map(c: Circuit, colour: bool) -> list[str]:
    """r in percent, a row per layer; red pulls back to base (r < 0), blue pushes on (r > 0)."""
    logits = c["effects"]["logits"]
    columns = [f"h{head}" for head in range(len(logits["heads"][0]))]
    lines = [
        "heads → logits (r in %; -100: all the way back to the plain answer)",
        "layer " + "".join(f"{column:>7}" for column in columns) + f"{'mlp':>8}",
    ]
    for layer, row in reversed(list(enumerate(logits["heads"]))):
        cells = "".join(cell(r, colour) for r in row)
        lines.append(f"{layer:>5} {cells} {cell(logits['mlps'][layer], colour)}")
    return [*lines, "embed " + cell(logits["embedding"], colour)]


def cell(r: float, colour: bool) -> str:
    text = f"{100 * r:7.1f}"
    if not colour:
        return text
    shade = 255 - int(215 * min(1.0, abs(r) ** 0.5))
    red, green, blue = (255, shade, shade) if r < 0 else (shade, shade, 255)
    return f"\x1b[48;2;{red};{green};{blue}m\x1b[38;2;0;0;0m{text}\x1b[0m"


def traced(c: Circuit) -> list[str]:
    """The FI heads, and what feeds them."""
    if not c["groups"]["function_induction"]:
        return []
    fi, others = direct_writers(c)
    lines = ["the circuit (r in %)"]
    lines += item("function induction", named(fi, len(fi)))
    lines += item("other writers", named(others, len(others)))
    lines += item("the shown answers", f"reach them from {named(c['routes']['shown_answer'])}")
    lines += item("the expected ones", f"reach them from {named(c['routes']['expected_answer'])}")
    return lines


def enough(c: Circuit) -> list[str]:
    """All groups together run alone, random circuits beside them."""
    e = c["evaluation"]
    union = [row for row in e["circuits"] if row["circuit"] == "union of groups"]
    lines = [
        f"is it enough? Its {len(union[0]['heads'])} heads alone, {e['n_prompts']} other prompts",
        f"  {'all others send':24}{'faithfulness':>14}{c['asked']:>14}{'random heads':>20}",
    ]
    sources = {
        "base": "values of base prompts",
        "operands_changed": "of other operands",
        "mean": "mean values",
    }
    for row in union:
        drawn = row["random_circuits"]["mean"]
        lines.append(
            f"  {sources[row['replaced_by']]:24}{row['faithfulness']:14.2f}"
            f"{row['circuit_accuracy']:14.3f}{drawn:20.2f}"
        )
    return [
        *lines,
        "  (random heads: as many of the same layers; they overlap with the circuit)",
        f"  it misses at most {e['completeness']:.0%} of F, whatever part of it is taken away",
    ]


def ablated(c: Circuit) -> list[str]:
    """What is left without the FI heads, the plain answer beside it."""
    rows = c["evaluation"]["ablation"]
    if not rows:
        return []
    lines = [f"is it needed? {'plain answer':>42}{c['asked']:>14}"]
    for row in rows:
        of_fi = row["ablated"] == "function_induction"
        control = row["ablated"] == "random_same_layers" and row["beside"] == "function_induction"
        if not (of_fi or control) or row["how"] not in ("base", "mean", "unrelated"):
            continue
        if control and row["how"] != "base":
            continue
        who = "FI heads" if of_fi else "random heads of these layers"
        lines.append(
            f"  {who}, {row['how']} values{'':<1}".ljust(42)
            + f"{row['base_acc']:14.3f}{row['contrast_acc']:14.3f}"
        )
    return lines


def reused(c: Circuit) -> list[str]:
    """How other tasks fare without these heads."""
    by_way: dict[tuple[str, str], list[float]] = {}
    for row in c["reuse"]:
        if row["items"] in ("all", "carry"):
            way = (row["prompt"], row["ablated"])
            by_way.setdefault(way, []).append(row["contrast_acc"])
    if not by_way:
        return []
    mean = {way: sum(values) / len(values) for way, values in by_way.items()}
    n = len(by_way["contrast", "none"])
    text = (
        f"the same heads on {n} tasks: shifted answers {mean['contrast', 'none']:.2f}, without "
        f"them {mean['contrast', 'function_induction']:.2f}, without as many random ones "
        f"{mean['contrast', 'random_same_layers']:.2f} (means)"
    )
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ")


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
        return ["", *textwrap.wrap(not_found(c), WIDTH)]
    fi, _ = direct_writers(c)
    left = {row["how"]: row for row in reversed(c["evaluation"]["ablation"]) if "floor" in row}
    done = c["accuracy"]["contrast_prompt"]["contrast"]
    text = (
        f"{title(c).capitalize()} (right on {done:.1%}) is carried to the answer by "
        f"{in_words(fi)}: heads that at the last `=` look back at the shown answers. "
        "With what they send on plain prompts put in, the answer is plain on "
        f"{left['base']['base_acc']:.1%}; with mean values on "
        f"{left['mean']['base_acc']:.1%}, so they carry the answer itself, not the rule alone."
    )
    return ["", *textwrap.wrap(text, WIDTH)]


PARTS: dict[str, Callable[[Circuit], list[str]]] = {
    "task": solved,
    "circuit": traced,
    "enough": enough,
    "ablation": ablated,
    "reuse": reused,
    "conclusion": conclusion,
}
