"""The sections of a report. Each takes the findings and returns what stands below its heading.

A KeyError says that a file lacks something: `content` makes a note of it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from minifunc.report import checklist, pictures
from minifunc.report.findings import Findings
from minifunc.report.html import (
    Markup,
    definitions,
    details,
    h,
    inside,
    percent,
    scrolling,
    signed,
    table,
)
from minifunc.report.pictures import CONTRASTS, Scale
from minifunc.report.terminal import Circuit, asked_in, fours, members, r_of, title
from minifunc.support.tables import words

Content = list[Any]  # what `h` takes as children
# file: the target of make; `patch` makes all others
MADE_BY = {"check.json": "check", "metrics.jsonl": "train", "model.pt": "report"}


def source(f: Findings, file: str) -> Markup:
    """`from circuit.json (graph), made by make patch`."""
    command = f.folders.makes(MADE_BY.get(file, "patch"))
    return h("p", "from ", h("code", file), ", made by ", h("code", command), class_="source")


def figure(f: Findings, picture: Any, caption: Any, file: str) -> Markup:
    """A picture with its caption, and the file and command behind it."""
    told = h("figcaption", caption, source(f, file))
    return h("figure", h("div", picture, class_="picture"), told)


def numbers(columns: list[str], rows: list[list[Any]], caption: str) -> Markup:
    """A table of numbers that can be copied; the first cell of a row names it."""
    inner = table(columns, rows, caption, "plain numbers")
    return scrolling(inner, tabindex="0", role="region", aria_label=caption)


def colour_key(meanings: Mapping[str, str]) -> Markup:
    """What colours mean: {class of a swatch: words}."""
    spans = [h("span", h("i", class_=f"swatch {name}"), said) for name, said in meanings.items()]
    return h("p", spans, class_="key")


def claim(f: Findings) -> Content:
    """One sentence with what was found, and four large numbers."""
    circuit = f.circuit
    done = percent(circuit["accuracy"]["contrast_prompt"]["contrast"], 1)
    never = ", which it was never trained on," if unseen(f, circuit) else ""
    shown = f"Shown {title(circuit)}{never} this model"
    if not f.fi:
        none = "and no head was found that carries the rule."
        return [h("p", f"{shown} answers it rightly on {done} of prompts, {none}", class_="claim")]
    carried = "1 attention head carries it: with what it sends"
    if len(f.fi) > 1:
        carried = f"{len(f.fi)} attention heads carry it: with what they send"
    left = circuit["evaluation"]["ablation"][0]
    remains, returns = (percent(left[answer], 1) for answer in ("contrast_acc", "base_acc"))
    said = f"{shown} does it on {done} of prompts, and {carried} on plain prompts put in, "
    said += f"{remains} is left and the plain answer returns on {returns}."
    return [
        h("p", said, class_="claim"),
        h("div", claim_numbers(f, circuit, done, remains), class_="numbers-row"),
        source(f, "circuit.json"),
    ]


def unseen(f: Findings, circuit: Circuit) -> bool:
    """Whether the run's diet never showed what was traced."""
    diet, k = f.config.get("diet", {}), circuit["k"]
    if k not in diet.get("bases" if circuit["task"] == "base_addition" else "shifts", (k,)):
        return True
    told = circuit["task"] != "addition" or k in diet.get("shifted_addition", ())
    return ["shift", "+"] in diet.get("never", ()) and not told


def claim_numbers(f: Findings, circuit: Circuit, done: str, remains: str) -> list[Markup]:
    """The numbers in large print, each with what it counts."""
    n, n_heads = circuit["accuracy_prompts"], f.model.cfg.n_layers * f.model.cfg.n_heads
    alone = circuit["evaluation"]["circuits"][0]
    heads = f"function-induction head{'s' * (len(f.fi) > 1)} of {n_heads}: {', '.join(f.fi)}"
    faithful = f"faithfulness of the {len(alone['heads'])} heads of all groups alone"
    shown = [
        (done, f"answered {circuit['asked']}, {circuit['shots']} shots, {n} prompts"),
        (len(f.fi), heads),
        (remains, "left when their outputs are swapped for those of plain prompts"),
        (f"{alone['faithfulness']:.2f}", faithful),
    ]
    return [h("div", h("b", value), h("span", what), class_="number") for value, what in shown]


def graph(f: Findings) -> Content:
    """The circuit as a graph, and its heads in a table."""
    circuit = f.circuit
    colours = {f"by-{contrast}": changed for contrast, changed in CONTRASTS.items()}
    colours["to-logits"] = "on the answer"
    view = h("div", id="circuit-view", class_="mount")
    picture = [view, colour_key(colours), scrolling(pictures.graph_picture(circuit["graph"]))]
    caption = (
        "Read it from left to right. A line is as wide as |r|, the share of the way back to the "
        "plain answer when this one path is patched. What was shown and what was to be expected "
        "reach the function-induction heads by two routes, which two contrasts tell apart. "
        "Each head leads to its row below."
    )
    return [figure(f, picture, caption, "circuit.json (graph)"), heads_table(circuit)]


def mount(name: str) -> Callable[[Findings], Content]:
    """The place that a script of the page fills."""
    return lambda f: [h("div", id=name, class_="mount")]


def groups_of(circuit: Circuit, head: str) -> str:
    """The groups of a head, in words."""
    groups = circuit["groups"].items()
    return ", ".join(words(group) for group, heads in groups if head in heads)


def heads_table(circuit: Circuit) -> Markup:
    """A row per head of the circuit: its groups, its r, where it looks."""
    rows: list[list[Any]] = []
    for head in members(circuit):
        looks = map(percent, circuit["attention"][head].values())
        name, r = h("span", head, id=f"head-{head}", tabindex="-1"), signed(r_of(circuit, head), 1)
        rows.append([name, groups_of(circuit, head), r, *looks])
    shares = map(words, next(iter(circuit["attention"].values())))
    columns = ["head", "group", "r on the logits, %", *shares]
    return numbers(columns, rows, "The heads of the circuit, and the shares of their attention")


def effects(f: Findings) -> Content:
    """Heat maps of r on the logits, and on the function-induction heads together."""
    caption = (
        "Each cell patches one head’s direct path to the answer. Outlined: heads of the circuit. "
        "The colour goes with the square root, so that small effects show."
    )
    scale = Scale(100, root=True).legend("r in %", "back to plain", "on to the shifted answer")
    content = [scale, effects_on(f, {"logits": "heads → logits"}, caption)]
    if f.fi:
        caption = (
            "What reaches the function-induction heads, all of them overwritten together. "
            "v: what is handed over; k: what is found; q: what is looked for."
        )
        together = {f"function_induction.{which}": f"→ {which}" for which in "vkq"}
        content.append(effects_on(f, together, caption))
    return content


def effects_on(f: Findings, receivers: Mapping[str, str], caption: str) -> Markup:
    """The maps of r on some {receiver: title}, under each contrast that was traced."""
    under = {"answers": f.circuit, "operands": f.circuit["operands_changed"]}
    maps = []
    for receiver, to in receivers.items():
        for contrast, changed in CONTRASTS.items():
            r, name = under[contrast]["effects"][receiver], f"{to}, {changed}"
            maps.append(pictures.effects_map(name, r, receiver, members(f.circuit)))
    return figure(f, h("div", maps, class_="maps"), caption, "circuit.json (effects)")


def attention(f: Findings) -> Content:
    """A prompt, and where each head of the circuit looks on it; all but the FI heads are folded."""
    tokens = f.circuit["example"]["contrast"].split()
    patterns, drawn = f.patterns(tokens), {}
    for head in members(f.circuit):
        picture = scrolling(pictures.attention(head, patterns[head], tokens))
        heading = h("h3", f"Head {head}: {groups_of(f.circuit, head)}")
        drawn[head] = h("div", heading, picture, class_="pattern")
    prompt = h("p", "The prompt: ", h("code", " ".join(tokens)))
    caption = (
        "A row is a token that looks, a column one that is looked at; shown answers are set off."
    )

    def pictured(heads: Sequence[str]) -> Markup:
        inner = h("div", [drawn[head] for head in heads], class_="patterns")
        return figure(f, inner, caption, "model.pt")

    others = [head for head in drawn if head not in f.fi]
    folded = details(f"The other {len(others)} heads of the circuit", pictured(others))
    return [prompt, pictured(f.fi), folded]


def vectors(f: Findings) -> Content:
    """The function vectors as heat maps, that of all heads at once first."""
    maps, k = f.circuit["function_vectors"], f.circuit["k"]
    scale = Scale(max(abs(value) for x_y in maps.values() for row in x_y for value in row))
    drawn = []
    for name in sorted(maps, key=lambda name: name != "all"):
        what = "all of them at once" if name == "all" else f"head {name}"
        drawn.append(pictures.vector_map(what, maps[name], scale, k))
    caption = [
        "The mean of what a head holds at the last = of contrast prompts, "
        "added to it on prompts like ",
        h("code", "2 same _ = 2, 5 same _ ="),
        ", which ask for x. Row: x; column: y; a cell says by how many logits y rises. "
        f"Outlined: y = x {signed(k)}. "
        "A head that carried the rule as one direction would raise the outlined cells alone.",
    ]
    picture = h("div", drawn, class_="maps")
    return [
        scale.legend("logits", "suppressed", "raised"),
        figure(f, picture, caption, "circuit.json (function_vectors)"),
    ]


def bars(f: Findings) -> Content:
    """Four bars for each amount of addition; all tasks in a table."""
    colours = {"plain-answer": "plain answer", "shifted-answer": "shifted answer"}
    caption = (
        "Shares of prompts; lines are 95 % intervals over prompts. Swapped heads send what they "
        "send on the base prompt. “Others” are as many random heads of the same layers, or all "
        "others where they are fewer."
    )
    drawn, rows = [], list[list[Any]]()
    for four in fours(f.circuit):
        if four[0]["task"] == "addition":
            drawn.append(pictures.four_bars(asked_in(four), four))
        rows.append([asked_in(four), *map(both_answers, four)])
    shares = numbers(["task", *pictures.BARS], rows, "Plain / shifted answers")
    return [
        colour_key(colours),
        figure(f, h("div", drawn, class_="panels"), caption, "circuit.json (reuse)"),
        details(f"The same heads on {len(rows)} tasks", shares),
    ]


def both_answers(row: Mapping[str, Any]) -> str:
    return f"{percent(row['base_acc'])} / {percent(row['contrast_acc'])}"


CURVES = {"0": "k0", "-1": "k1n", "1": "k1", "2": "k2", "3": "k3"}  # amounts, and their colours


def training(f: Findings) -> Content:
    """Accuracy of addition off by some amounts, while it is trained."""
    lines = f.metrics
    last = lines[-1]["accuracy"]["addition"]  # {k: {shots: share}}
    shots = list(last[min(last, key=int)])
    most = "8" if "8" in shots else shots[-1]
    curves = []
    for k, colour in CURVES.items():
        if k in last:
            shares = [(line["step"], line["accuracy"]["addition"][k][most]) for line in lines]
            curves.append((amount(k), colour, shares))
    picture = pictures.curves(f"Accuracy at {most} shots while training", curves)
    caption = (
        f"Addition, plain and off by other amounts, as training goes on; {most} examples shown, on "
        "few prompts. make train ends with a table on 500."
    )
    return [figure(f, scrolling(picture), caption, "metrics.jsonl")]


def amount(k: str) -> str:
    """`plain`, or by how much addition is off: `+1`."""
    return "plain" if k == "0" else signed(int(k))


def check(f: Findings) -> Content:
    """The checklist."""
    return [checklist.shown(f.check["checks"], f.fi), source(f, "check.json")]


def about(f: Findings) -> Content:
    """What the run is, how r is defined, and how the page is made."""
    cfg = f.model.cfg
    n_weights = sum(weight.numel() for weight in f.model.parameters())
    model = (
        f"{cfg.n_layers} layers × {cfg.n_heads} heads, width {cfg.d_model}, {cfg.d_vocab} tokens, "
        f"{n_weights:,} weights, {cfg.positions} positions, {cfg.normalization} norm, {cfg.act_fn}"
    )
    diet = f.config.get("diet", {}).get("name", "?")
    known = {"run": f.folders.name, "model": model, "diet": diet}
    known["versions"] = named(f.config.get("versions", {}))
    if "criteria" in f.circuit:
        known["criteria"] = named(f.circuit["criteria"])
    cited = h("a", "arXiv 2507.09875", href="https://arxiv.org/abs/2507.09875")
    definition = [
        "r = (F patched − F contrast) / (F contrast − F base), with F = logit(plain answer) − "
        "logit(shifted answer), as in Ye, Jia and Ren (",
        cited,
        "): −100 % takes the model all the way back to plain addition.",
    ]
    said = ". It holds all it needs, weights included, and asks nothing of any network."
    made = ["This page is made by ", h("code", f.folders.makes("report")), said]
    return [definitions(known), h("p", definition), h("p", made)]


def named(values: Mapping[str, Any]) -> str:
    """`torch 2.13.0, python 3.11`."""
    return ", ".join(f"{words(name)} {value}" for name, value in values.items())


# (name, title, what makes the content, what of Findings it needs)
SECTIONS: tuple[tuple[str, str, Callable[[Findings], Content], str], ...] = (
    ("circuit", "The circuit", graph, "circuit fi"),
    ("path", "Patch a path yourself", mount("path-view"), "circuit"),
    ("checklist", "Checklist", check, "check"),
    ("effects", "Who writes to whom", effects, "circuit"),
    ("attention", "Where heads look", attention, "circuit fi"),
    ("vectors", "What they write", vectors, "circuit fi"),
    ("ablations", "Switched off, and reused", bars, "circuit fi"),
    ("training", "How it learned", training, "metrics"),
    ("learned", "While it learned", mount("learned-view"), "metrics"),
    ("about", "About", about, ""),
)
NO_FI = "no function-induction head was found in this model"
WITHOUT = {  # what is missing: in words, and the target of make that makes it
    "circuit": ("the circuit has not been traced yet", "patch"),
    "fi": (f"{NO_FI}, so there is no circuit to show: it may not do the task", "train"),
    "metrics": ("there is no metrics.jsonl, which training writes", "train"),
    "check": ("the checks have not been run on this model yet", "check"),
}


def content(f: Findings, make: Callable[[Findings], Content], needs: str) -> Markup:
    """A section's content, or a note on what is missing and how to make it."""
    try:
        lacking = [part for part in needs.split() if not getattr(f, part)]
        if not lacking:
            return inside(make(f))
        what, target = WITHOUT[lacking[0]]
    except KeyError as error:
        lacked = str(error.args[0])[:60]
        what = f"a file of this run lacks “{lacked}”; an older version may have written it"
        target = "check" if make is check else "patch"
    note = [h("b", "Not here: "), what, ". ", h("code", f.folders.makes(target)), " makes it."]
    return h("p", note, class_="missing")
