"""The sections of a report. Each takes the findings and returns what stands below its heading.

A KeyError says that a file lacks something: `content` makes a note of it.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from minifunc.report import pictures
from minifunc.report.findings import Findings
from minifunc.report.html import Markup, details, h, inside, percent, scrolling, signed, table
from minifunc.report.pictures import CONTRASTS, Axis, Curve, Scale
from minifunc.report.terminal import Circuit, concluded, fours, members, r_of, title
from minifunc.support.tables import words

Content = list[Any]  # what `h` takes as children
SHARES = Axis([(share, percent(share)) for share in (0.0, 0.25, 0.5, 0.75, 1.0)])
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


def numbers(columns: list[str], rows: list[list[Any]], caption: str, text: bool = False) -> Markup:
    """A table that can be copied; cells but the first of a row are numbers, or `text`."""
    inner = table(columns, rows, caption, "plain" if text else "plain numbers")
    return scrolling(inner, tabindex="0", role="region", aria_label=caption)


def colour_key(meanings: Mapping[str, str]) -> Markup:
    """What colours mean: {class of a swatch: words}."""
    spans = [h("span", h("i", class_=f"swatch {name}"), said) for name, said in meanings.items()]
    return h("p", spans, class_="key")


def definitions(said: Mapping[str, Any]) -> Markup:
    return h("dl", [[h("dt", term), h("dd", value)] for term, value in said.items()])


def amount(k: str) -> str:
    """`plain`, or by how much addition is off: `+1`."""
    return "plain" if k == "0" else signed(int(k))


def claim(f: Findings) -> Content:
    """One sentence with what was found, four large numbers, and the full account folded away."""
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
        details("In full", h("p", concluded(circuit))),
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
    """The circuit as a graph, its heads in a table, and all its edges folded away."""
    circuit = f.circuit
    colours = {f"by-{contrast}": changed for contrast, changed in CONTRASTS.items()}
    colours["to-logits"] = "on the answer"
    picture = [colour_key(colours), scrolling(pictures.graph_picture(circuit["graph"]))]
    caption = (
        "Read it from left to right. A line is as wide as |r|, the share of the way back to the "
        "plain answer when this one path is patched. What was shown and what was to be expected "
        "reach the function-induction heads by two routes, which two contrasts tell apart. "
        "Each head leads to its row below."
    )
    rows = []
    for edge in pictures.merged(circuit["graph"]):
        contrast = CONTRASTS.get(edge.contrast, edge.contrast)
        ends, inputs = f"{edge.sender} → {edge.receiver}", ", ".join(edge.inputs) or "–"
        rows.append([ends, contrast, inputs, signed(100 * edge.r, 1)])
    edges = numbers(["edge", "contrast", "inputs (r in %)", "r, %"], rows, "Edges that count")
    return [
        figure(f, picture, caption, "circuit.json (graph)"),
        heads_table(circuit),
        details(f"All {len(rows)} edges as a table", edges),
    ]


def heads_table(circuit: Circuit) -> Markup:
    """A row per head of the circuit: its groups, its r, what it brings, where it looks."""
    rows: list[list[Any]] = []
    for head in members(circuit):
        groups = [words(group) for group, heads in circuit["groups"].items() if head in heads]
        reader = circuit["readers"].get(head, {"brings": ["–"]})  # –: was not measured
        brings = " and ".join(reader["brings"]) or "neither"
        looks = map(percent, circuit["attention"][head].values())
        name = h("span", head, id=f"head-{head}", tabindex="-1")
        rows.append([name, ", ".join(groups), signed(r_of(circuit, head), 1), brings, *looks])
    shares = map(words, next(iter(circuit["attention"].values())))
    columns = ["head", "group", "r on the logits, %", "brings", *shares]
    return numbers(columns, rows, "The heads of the circuit, and the shares of their attention")


def effects(f: Findings) -> Content:
    """Heat maps of r on the logits, on the function-induction heads together, and on each."""
    caption = (
        "Each cell patches one head’s direct path to the answer. Outlined: heads of the circuit. "
        "The colour goes with the square root, so that small effects show."
    )
    scale = Scale(100, root=True).legend("r in %", "back to plain", "on to the shifted answer")
    content = [scale, effects_on(f, {"logits": "heads → logits"}, caption)]
    if not f.fi:
        return content
    caption = (
        "What reaches the function-induction heads, all of them overwritten together. "
        "v: what is handed over; k: what is found; q: what is looked for."
    )
    together = {f"function_induction.{which}": f"→ {which}" for which in "vkq"}
    content.append(effects_on(f, together, caption))
    for head in f.fi:
        inputs = {f"{head}.{which}": f"→ {head}.{which}" for which in "vkq"}
        picture = effects_on(f, inputs, f"What reaches the inputs of head {head}.")
        content.append(details(f"Head {head} alone", picture))
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


GROUPS = {
    "function_induction": "Function induction: the last = looks at the shown answers",
    "expected_answer": "Bring what was to be expected",
    "shown_answer": "Bring what was shown",
    "previous_token": "Previous token: an answer looks at the = before it",
    "consolidation": "Consolidation: the last = looks at itself and the beginning",
}


def attention(f: Findings) -> Content:
    """A prompt, and for each group of heads where they look on it: pictures and a table."""
    circuit = f.circuit
    tokens = circuit["example"]["contrast"].split()
    patterns = f.patterns(tokens)
    prompt = h("code", " ".join(tokens))
    said = "A row is a token that looks, a column one that is looked at; shown answers are set off."
    content: Content = [h("p", "The prompt: ", prompt, ". ", said)]
    pictured: set[str] = set()
    for group, what in GROUPS.items():
        heads = circuit["groups"][group]
        if not heads:
            continue
        ranked = circuit["routes"].get(group, heads)  # strongest first
        fresh = [head for head in ranked if head in heads and head not in pictured]
        fresh = fresh[: 6 if group == "function_induction" else 3]
        pictured.update(fresh)
        drawn = []
        for head in fresh:
            picture = scrolling(pictures.attention(head, patterns[head], tokens))
            drawn.append(h("div", h("h4", f"Head {head}"), picture, class_="pattern"))
        caption = f"{len(heads)} head{'s' * (len(heads) > 1)} of this group on the prompt above."
        if len(fresh) < len(heads):
            caption += " The others are drawn above, or weaker; all are in the table."
        rows = [[head, most_looked_at(patterns[head][-1], tokens)] for head in heads]
        looks = numbers(["head", "looks most at"], rows, what, text=True)
        content += [
            h("h3", what),
            figure(f, h("div", drawn, class_="patterns"), caption, "model.pt"),
            details("Where the last token looks, as a table", looks),
        ]
    return content


def most_looked_at(shares: Sequence[float], tokens: Sequence[str]) -> str:
    """The four tokens to which most attention goes, in words."""
    ranked = sorted(enumerate(shares), key=lambda pair: -pair[1])[:4]
    return ", ".join(f"{tokens[at]} at {at} ({percent(share)})" for at, share in ranked)


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


FAMILIES = {
    "addition": "Addition, off by k",
    "caesar": "Caesar’s cipher, shifted by k",
    "base_addition": "Addition in base k",
    "choice": "Multiple choice, shifted by k",
}


def bars(f: Findings) -> Content:
    """Four bars for each amount of each task, addition unfolded; all ablations in a table."""
    colours = {"plain-answer": "plain answer", "shifted-answer": "shifted answer"}
    caption = (
        "Shares of prompts; lines are 95 % intervals over prompts. Swapped heads send what they "
        "send on the base prompt. “Others” are as many random heads of the same layers, or all "
        "others where they are fewer."
    )
    content: Content = [colour_key(colours)]
    for family, of_family in groupby(fours(f.circuit), key=lambda four: four[0]["task"]):
        name, panels = FAMILIES.get(family, family), {asked_in(four): four for four in of_family}
        drawn = [pictures.four_bars(asked, four) for asked, four in panels.items()]
        picture = figure(f, h("div", drawn, class_="panels"), caption, "circuit.json (reuse)")
        rows = [[asked, *map(both_answers, four)] for asked, four in panels.items()]
        shares = numbers([family, *pictures.BARS], rows, name)
        folded = details("As a table: plain / shifted", shares)
        first = family == "addition"
        content += [h("h3", name), picture, folded] if first else [details(name, picture, folded)]
    ablations = ablations_table(f.circuit["evaluation"]["ablation"])
    content.append(details("What is put in decides: every ablation and its controls", ablations))
    return content


def asked_in(four: list[dict[str, Any]]) -> str:
    """What was asked in four rows of `reuse`: `off by +1`."""
    k, items = four[0]["k"], four[0]["items"]
    return f"off by {signed(k)}" if items == "all" else f"base {k}, {items}"


def both_answers(row: Mapping[str, Any]) -> str:
    return f"{percent(row['base_acc'])} / {percent(row['contrast_acc'])}"


def ablations_table(ablations: Iterable[Mapping[str, Any]]) -> Markup:
    """A row per ablation: whose values were put in, and what is answered then."""
    rows: list[list[Any]] = []
    for row in ablations:
        heads = f"{words(row['ablated'])} {', '.join(row['heads'])}"
        shares = [percent(row[answer], 1) for answer in ("base_acc", "contrast_acc")]
        interval = " to ".join(map(percent, row["ci"]))
        floor = percent(row["floor"], 1) if "floor" in row else "–"
        rows.append([heads, words(row["how"]), *shares, interval, floor])
    columns = ["heads", "values from", "plain", "shifted", "95 %", "shifted, on base prompts"]
    return numbers(columns, rows, "Ablations")


def accuracy(f: Findings) -> Content:
    """How well addition is done by shots: curves of some amounts, a heat map of all."""
    last, file = f.metrics[-1], "metrics.jsonl"
    shares = last["accuracy"]["addition"]  # {k: {shots: share}}
    shots = list(shares[min(shares, key=int)])
    measured = [(float(n), shares, n) for n in shots]
    curves = share_curves("01234", measured, "{:g} shots")
    shown = Axis([(float(n), n) for n in shots], "examples shown", log=True)
    picture = pictures.plot("Accuracy of addition by shots", shown, SHARES, curves)
    caption = (
        f"The asked answer is none of those shown. As measured at step {last['step']}, "
        "on few prompts; make train ends with a table on 500."
    )
    grid = figure(f, accuracy_map(shares, shots), "The same for every amount.", file)
    return [h("div", figure(f, scrolling(picture), caption, file), grid, class_="pair")]


def share_curves(ks: Iterable[str], measured: list[tuple[float, Any, str]], at: str) -> list[Curve]:
    """A curve for each amount. measured: of each point x, {k: {shots: share}}, shots; at: of x."""
    curves = []
    for k in ks:
        points = []
        for x, shares, shots in measured:
            share = shares.get(k, {}).get(shots)
            if share is not None:
                points.append((x, share, f"{amount(k)}, {at.format(x)}: {percent(share)}"))
        if points:
            curves.append(Curve(amount(k), "k1n" if k == "-1" else f"k{k}", points))
    return curves


def accuracy_map(shares: Mapping[str, Any], shots: Sequence[str]) -> Markup:
    """Accuracy of every amount at every number of examples."""
    rows = []
    for k in sorted(shares, key=int):
        name = "plain" if k == "0" else f"off by {amount(k)}"
        row: list[Any] = [name]
        for n in shots:
            share = shares[k][n]
            tip = f"{name}, {n} shots: {percent(share)}"
            row.append(Scale(1.0).cell(share, f"{100 * share:.0f}", tip))
        rows.append(row)
    name = "addition: share answered rightly, in %"
    return pictures.heat_map(name, "shots", shots, rows, "share")


def training(f: Findings) -> Content:
    """Accuracy and loss over the steps of training, and the same as a table."""
    lines, file, moments = f.metrics, "metrics.jsonl", appear(f)
    measured = [(line["step"], line["accuracy"]["addition"], "8") for line in lines]
    curves = share_curves(("0", "-1", "1", "2", "3"), measured, "step {:g}")
    every = -(-len(lines) // 6)  # at most six ticks, evenly spaced up to the last step
    ticks = [line["step"] for line in lines[::-1][::every][::-1]]
    steps = Axis([(step, f"{step:g}") for step in ticks], "step")
    told = "When previous-token and function-induction heads form is followed by "
    drawn = [told, h("code", "make emergence"), ", and drawn here once its results are there."]
    if moments:
        emergence = h("code", "results/emergence.json")
        drawn = [
            "The upright lines are means over the seeds of ",
            emergence,
            ", maybe of another diet.",
        ]
    caption = ["Addition, plain and off by other amounts, as training goes on. ", drawn]
    picture = pictures.plot("Accuracy at 8 shots while training", steps, SHARES, curves, moments)
    shares = figure(f, scrolling(picture), caption, file)
    nats = "Cross-entropy of one batch’s answers, in nats."
    losses = figure(f, scrolling(loss_picture(lines, steps)), nats, file)
    shown = {(curve.name, x): percent(y) for curve in curves for x, y, _ in curve.points}
    rows: list[list[Any]] = []
    for line in lines:
        at_step = [shown.get((curve.name, line["step"]), "–") for curve in curves]
        seconds, loss = f"{line['seconds']:.0f}", f"{line['loss']:.3f}"
        rows.append([line["step"], seconds, loss, *at_step])
    columns = ["step", "seconds", "loss", *(curve.name for curve in curves)]
    folded = details("As a table", numbers(columns, rows, "Training"))
    return [h("div", shares, losses, class_="pair"), folded]


def loss_picture(lines: Sequence[Mapping[str, Any]], steps: Axis) -> Markup:
    """The loss over the steps, on a logarithmic axis where it is always positive."""
    points = []
    for line in lines:
        step, loss = line["step"], line["loss"]
        points.append((step, loss, f"step {step:g}: {loss:.3f} nats"))
    losses = [loss for _, loss, _ in points]
    low, high = min(losses), max(losses)
    values = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
    ticks = [value for value in values if low / 2 <= value <= high * 2] or [low]
    nats = Axis([(value, f"{value:g}") for value in ticks], log=low > 0)
    return pictures.plot("Loss while training", steps, nats, [Curve("loss", "k0", points)])


def appear(f: Findings) -> list[tuple[float, str]]:
    """When heads form: at which step a score first reaches .3, on average over the seeds."""
    moments = []
    for score, name in (("pt_score", "PT heads"), ("fi_score", "FI heads")):
        first: dict[int, float] = {}  # by seed; rows are in the order of steps
        for row in f.emergence:
            if (row[score] or 0) >= 0.3:
                first.setdefault(row["seed"], row["step"])
        mean = sum(first.values()) / len(first) if first else math.inf
        if mean <= f.metrics[-1]["step"]:
            moments.append((mean, f"{name}: step {mean:.0f}"))
    return moments


VERDICTS = {"pass": "✓ pass", "fail": "✗ fail", "could not tell": "? could not tell"}


def check(f: Findings) -> Content:
    """How many checks passed, and each of them: folded, unless it failed."""
    verdicts = [row["verdict"] for row in f.check["checks"]]
    passed, failed, unknown = (verdicts.count(verdict) for verdict in VERDICTS)
    return [
        h("p", f"{passed} passed, {failed} failed, {unknown} could not be told.", class_="lead"),
        h("div", [checked(row) for row in f.check["checks"]], class_="checks"),
        source(f, "check.json"),
    ]


def checked(row: Mapping[str, Any]) -> Markup:
    """One check: its verdict and question, and folded below what was measured and is advised."""
    verdict = str(row["verdict"])
    summary = [
        h("span", VERDICTS.get(verdict, verdict), class_=f"verdict {verdict.split()[0]}"),
        " ",
        h("span", row["question"], class_="question"),
        h("span", row["short"], class_="short"),
    ]
    failures = []
    for example in row.get("examples", []):
        answer = f" → {example['answered']} (right: {example['right']})"
        if example.get("pattern"):
            answer += f"; {example['pattern']}"
        failures.append(h("li", h("code", example["prompt"]), answer))
    account = {"Measured": row["measured"], "Wanted": row["wanted"], "What to do": row["advice"]}
    body = [h("p", row["means"]), definitions(account)]
    if failures:
        body += [h("p", "Some of the failures:"), h("ul", failures, class_="examples")]
    return h("details", h("summary", summary), body, open=verdict == "fail")


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
    ("checklist", "Checklist", check, "check"),
    ("effects", "Who writes to whom", effects, "circuit"),
    ("attention", "Where heads look", attention, "circuit fi"),
    ("vectors", "What they write", vectors, "circuit fi"),
    ("ablations", "Switched off, and reused", bars, "circuit fi"),
    ("accuracy", "How well it does", accuracy, "metrics"),
    ("training", "How it came about", training, "metrics"),
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
