"""The sections of a report. Each takes the findings and returns what stands below its heading.

A KeyError says that a file lacks something; Missing, that no file has it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from minifunc.circuit import heads_of, parse
from minifunc.report import pictures
from minifunc.report.findings import Findings
from minifunc.report.html import Markup, details, h, inside, percent, signed, table
from minifunc.report.pictures import CONTRASTS, Axis, Curve, Plot, Scale
from minifunc.report.talk import sentence

Content = list[Any]  # what `h` takes as children
SHARES = Axis([(share, percent(share)) for share in (0.0, 0.25, 0.5, 0.75, 1.0)])


class Missing(Exception):
    """A piece that no file holds: what it is, and the command that makes it."""


def source(file: str, command: str) -> Markup:
    """`from circuit.json, made by make patch`."""
    return h("p", "from ", h("code", file), ", made by ", h("code", command), class_="source")


def figure(picture: Any, words: Any, file: str, command: str) -> Markup:
    """A picture with its caption, and the file and command behind it."""
    caption = h("figcaption", words, source(file, command))
    return h("figure", h("div", picture, class_="picture"), caption)


def scrolling(picture: Markup) -> Markup:
    """A picture in a box that scrolls where the page is narrow."""
    return h("div", picture, class_="scroll")


def colour_key(meanings: Mapping[str, str]) -> Markup:
    """What colours mean: {class of a swatch: words}."""
    swatches = {name: h("i", class_=f"swatch {name}") for name in meanings}
    return h("p", [h("span", swatches[name], meanings[name]) for name in meanings], class_="key")


def definitions(pairs: Iterable[tuple[str, Any]]) -> Markup:
    """A list of terms and what is said of each."""
    return h("dl", [[h("dt", term), h("dd", value)] for term, value in pairs])


def spaced(name: str) -> str:
    """A file's name for something, as words."""
    return name.replace("_", " ")


def amount(k: str) -> str:
    """`plain`, or by how much addition is off: `+1`."""
    return "plain" if k == "0" else signed(int(k))


def circuit_of(f: Findings) -> dict[str, Any]:
    """What circuit.json holds. Raises Missing without it."""
    if f.circuit is None:
        raise Missing("the circuit has not been traced yet", f.makes("patch"))
    return f.circuit


def traced(f: Findings) -> dict[str, Any]:
    """What circuit.json holds. Raises Missing where no circuit was found."""
    circuit = circuit_of(f)
    if not f.fi:
        what = (
            "no function-induction head was found in this model, so there is no circuit to show: "
            "it may not do the task"
        )
        raise Missing(what, f.makes("train"))
    return circuit


def metrics_of(f: Findings) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl. Raises Missing where there are none."""
    if not f.metrics:
        raise Missing("there is no metrics.jsonl, which training writes", f.makes("train"))
    return f.metrics


def members(circuit: Mapping[str, Any]) -> list[str]:
    """The heads of all groups, in the order of the model."""
    return heads_of(head for heads in circuit["groups"].values() for head in heads)


def claim(f: Findings) -> Content:
    """One sentence with what was found, four large numbers, and the full account folded away."""
    circuit = circuit_of(f)
    done = percent(float(circuit["accuracy"]["contrast_prompt"]["contrast"]), 1)
    task = f"{spaced(circuit['task'].removeprefix('base_'))} {circuit['asked']}"
    never = ", which it was never trained on," if unseen(f, circuit) else ""
    shown = f"Shown {task}{never} this model"
    if not f.fi:
        right = f"answers it rightly on {done} of prompts"
        words = f"{shown} {right}, and no head was found that carries the rule."
        return [h("p", words, class_="claim")]
    n = len(f.fi)
    carried = f"{n} attention head{'s carry' if n > 1 else ' carries'} it"
    swapped = f"with what {'they send' if n > 1 else 'it sends'} on plain prompts put in"
    left = circuit["evaluation"]["ablation"][0]
    remains = f"{percent(left['contrast_acc'], 1)} is left"
    returns = f"the plain answer returns on {percent(left['base_acc'], 1)}"
    does = f"does it on {done} of prompts"
    words = f"{shown} {does}, and {carried}: {swapped}, {remains} and {returns}."
    return [
        h("p", words, class_="claim"),
        h("div", claim_numbers(f, circuit, done), class_="numbers-row"),
        details("In full", h("p", sentence(circuit))),
        source("circuit.json", f.makes("patch")),
    ]


def unseen(f: Findings, circuit: Mapping[str, Any]) -> bool:
    """Whether the run's diet never showed what was traced."""
    diet = f.config.get("diet")
    if not isinstance(diet, dict) or circuit["task"] != "addition":
        return False
    never = [list(cell) for cell in diet.get("never", ())]
    return ["shift", "+"] in never and circuit["k"] not in diet.get("shifted_addition", ())


def claim_numbers(f: Findings, circuit: Mapping[str, Any], done: str) -> list[Markup]:
    """The numbers in large print, each with what it counts."""
    n_prompts = circuit.get("accuracy_prompts", circuit["n_prompts"])
    n_heads = f.model.cfg.n_layers * f.model.cfg.n_heads
    plural = "s" * (len(f.fi) > 1)
    left = circuit["evaluation"]["ablation"][0]
    alone = circuit["evaluation"]["circuits"][0]
    of_random = f"{float(alone['random_circuits']['mean']):.2f}"
    all_groups = f"the {len(alone['heads'])} heads of all groups alone"
    numbers = [
        (done, f"answered {circuit['asked']}, {circuit['shots']} shots, {n_prompts} prompts"),
        (str(len(f.fi)), f"function-induction head{plural} of {n_heads}: {', '.join(f.fi)}"),
        (
            percent(left["contrast_acc"], 1),
            "left when their outputs are swapped for those of plain prompts",
        ),
        (
            f"{float(alone['faithfulness']):.2f}",
            f"faithfulness of {all_groups} (random ones: {of_random})",
        ),
    ]
    return [h("div", h("b", value), h("span", what), class_="number") for value, what in numbers]


def graph(f: Findings) -> Content:
    """The circuit as a graph, its heads in a table, and all its edges folded away."""
    circuit = traced(f)
    colours = {
        "by-answers": CONTRASTS["answers"],
        "by-operands": CONTRASTS["operands"],
        "to-logits": "on the answer",
    }
    picture = [colour_key(colours), scrolling(pictures.graph_picture(circuit["graph"]))]
    words = (
        "Read it from left to right. A line is as wide as |r|, the share of the way back to the "
        "plain answer when this one path is patched. What was shown and what was to be expected "
        "reach the function-induction heads by two routes, which two contrasts tell apart. "
        "Each head leads to its row below."
    )
    edges = [
        [
            f"{edge.sender} → {edge.receiver}",
            CONTRASTS.get(edge.contrast, edge.contrast),
            ", ".join(edge.inputs) or "–",
            signed(100 * edge.r, 1),
        ]
        for edge in pictures.merged(circuit["graph"])
    ]
    all_edges = table(["edge", "contrast", "inputs (r in %)", "r, %"], edges, "Edges that count")
    return [
        figure(picture, words, "circuit.json (graph)", f.makes("patch")),
        heads_table(circuit),
        details(f"All {len(edges)} edges as a table", all_edges),
    ]


def heads_table(circuit: Mapping[str, Any]) -> Markup:
    """A row per head of the circuit: its groups, its r, what it brings, where it looks."""
    shares = list(next(iter(circuit["attention"].values()), {}))
    roles = circuit.get("readers", {})
    rows: list[list[Any]] = []
    for head in members(circuit):
        layer, index = parse(head)
        r = float(circuit["effects"]["logits"]["heads"][layer][index])
        groups = [spaced(group) for group, heads in circuit["groups"].items() if head in heads]
        looks = [percent(float(circuit["attention"][head][share])) for share in shares]
        brings = "–"  # was not measured
        if head in roles:
            brings = " and ".join(roles[head]["brings"]) or "neither"
        name = h("span", head, id=f"head-{head}", tabindex="-1")
        rows.append([name, ", ".join(groups), signed(100 * r, 1), brings, *looks])
    columns = ["head", "group", "r on the logits, %", "brings", *map(spaced, shares)]
    return table(columns, rows, "The heads of the circuit, and the shares of their attention")


def effects(f: Findings) -> Content:
    """Heat maps of r on the logits, on the function-induction heads together, and on each."""
    circuit = circuit_of(f)

    def drawn(maps: list[Markup], words: str) -> Markup:
        picture = h("div", maps, class_="maps")
        return figure(picture, words, "circuit.json (effects)", f.makes("patch"))

    words = (
        "Each cell patches one head’s direct path to the answer. Outlined: heads of the circuit. "
        "The colour goes with the square root, so that small effects show."
    )
    scale = Scale(100, root=True).legend("r in %", "back to plain", "on to the shifted answer")
    content = [scale, drawn(maps_of(circuit, {"logits": "heads → logits"}), words)]
    together = {f"function_induction.{which}": f"→ {which}" for which in "vkq"}
    if f.fi and (maps := maps_of(circuit, together)):
        words = (
            "What reaches the function-induction heads, all of them overwritten together. "
            "v: what is handed over; k: what is found; q: what is looked for."
        )
        content.append(drawn(maps, words))
    for head in f.fi:
        inputs = {f"{head}.{which}": f"→ {head}.{which}" for which in "vkq"}
        picture = drawn(maps_of(circuit, inputs), f"What reaches the inputs of head {head}.")
        content.append(details(f"Head {head} alone", picture))
    return content


def maps_of(circuit: Mapping[str, Any], receivers: Mapping[str, str]) -> list[Markup]:
    """The maps of r on some {receiver: title}, under each contrast that was traced."""
    maps = []
    for receiver, title in receivers.items():
        for contrast, words in CONTRASTS.items():
            changed = circuit if contrast == "answers" else circuit["operands_changed"]
            if receiver in changed["effects"]:
                r, whole_title = changed["effects"][receiver], f"{title}, {words}"
                maps.append(pictures.effects_map(whole_title, r, receiver, members(circuit)))
    return maps


GROUPS = {
    "function_induction": "Function induction: the last = looks at the shown answers",
    "expected_answer": "Bring what was to be expected",
    "shown_answer": "Bring what was shown",
    "previous_token": "Previous token: an answer looks at the = before it",
    "consolidation": "Consolidation: the last = looks at itself and the beginning",
}


def attention(f: Findings) -> Content:
    """A prompt, and for each group of heads where they look on it: pictures and a table."""
    circuit = traced(f)
    ids = f.example()
    if not ids:
        raise Missing("there is no example prompt in this model's vocabulary", f.makes("patch"))
    tokens, patterns = [f.vocabulary[token] for token in ids], f.patterns(ids)
    words = (
        ". A row is a token that looks, a column one that is looked at; shown answers are set off."
    )
    content: Content = [h("p", "The prompt: ", h("code", " ".join(tokens)), words)]
    pictured: set[str] = set()
    for group, title in GROUPS.items():
        heads = list(circuit["groups"].get(group, []))
        if not heads:
            continue
        fresh = to_draw(circuit, group, pictured)
        pictured.update(fresh)
        drawn = [head_picture(head, patterns[head], tokens) for head in fresh]
        words = f"{len(heads)} head{'s' * (len(heads) > 1)} of this group on the prompt above."
        if len(fresh) < len(heads):
            words += " The others are drawn above, or weaker; all are in the table."
        picture = h("div", drawn, class_="patterns")
        rows = [[head, most_looked_at(patterns[head][-1], tokens)] for head in heads]
        looks = table(["head", "looks most at"], rows, title, numbers=False)
        content += [
            h("h3", title),
            figure(picture, words, "model.pt", f.makes("report")),
            details("Where the last token looks, as a table", looks),
        ]
    return content


def to_draw(circuit: Mapping[str, Any], group: str, pictured: set[str]) -> list[str]:
    """The strongest heads of a group that are not pictured yet: three, six of those that induce."""
    order = {head: rank for rank, head in enumerate(circuit.get("routes", {}).get(group, {}))}
    fresh = [head for head in circuit["groups"][group] if head not in pictured]
    fresh.sort(key=lambda head: order.get(head, len(order)))
    return fresh[: 6 if group == "function_induction" else 3]


def head_picture(head: str, pattern: Sequence[Sequence[float]], tokens: Sequence[str]) -> Markup:
    """One head's attention with its name above."""
    answers = range(5, len(tokens) - 1, 6)
    picture = scrolling(pictures.attention(head, pattern, tokens, answers))
    return h("div", h("h4", f"Head {head}"), picture, class_="pattern")


def most_looked_at(shares: Sequence[float], tokens: Sequence[str]) -> str:
    """The four tokens to which most attention goes, in words."""
    ranked = sorted(enumerate(shares), key=lambda pair: -pair[1])[:4]
    return ", ".join(f"{tokens[at]} at {at} ({percent(share)})" for at, share in ranked)


def vectors(f: Findings) -> Content:
    """The function vectors as heat maps, that of all heads at once first."""
    circuit = traced(f)
    maps, k = circuit["function_vectors"], int(circuit["k"])
    scale = Scale(max(abs(float(value)) for x_y in maps.values() for row in x_y for value in row))
    drawn = []
    for name in sorted(maps, key=lambda name: name != "all"):
        title = "all of them at once" if name == "all" else f"head {name}"
        drawn.append(pictures.vector_map(title, maps[name], scale, k))
    words = [
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
        figure(picture, words, "circuit.json (function_vectors)", f.makes("patch")),
    ]


def accuracy(f: Findings) -> Content:
    """How well addition is done by shots: curves of some amounts, a heat map of all."""
    last = metrics_of(f)[-1]
    shares = last["accuracy"]["addition"]  # {k: {shots: share}}
    shots = list(shares[min(shares, key=int)])
    words = (
        f"The asked answer is none of those shown. As measured at step {last['step']}, "
        "on few prompts; make train ends with a table on 500."
    )
    made_by = "metrics.jsonl", f.makes("train")
    curves = figure(scrolling(accuracy_curves(shares, shots)), words, *made_by)
    grid = figure(accuracy_map(shares, shots), "The same for every amount.", *made_by)
    return [h("div", curves, grid, class_="pair")]


def accuracy_curves(shares: Mapping[str, Any], shots: Sequence[str]) -> Markup:
    """Accuracy over the number of examples shown, a line for each of five amounts."""
    curves = []
    for k in ("0", "1", "2", "3", "4"):
        if k in shares:
            points = [(float(n), float(shares[k][n])) for n in shots if n in shares[k]]
            curves.append(Curve(amount(k), f"k{k}", points))
    shown = Axis([(float(n), n) for n in shots], log=True)

    def tip(name: str, x: float, y: float) -> str:
        return f"{name}, {x:g} shots: {percent(y)}"

    plot = Plot("Accuracy of addition by shots", "examples shown", shown, SHARES, tip)
    return plot.draw(curves)


def accuracy_map(shares: Mapping[str, Any], shots: Sequence[str]) -> Markup:
    """Accuracy of every amount at every number of examples."""
    rows = []
    for k in sorted(shares, key=int):
        name = amount(k) if k == "0" else f"off by {amount(k)}"
        cells = [pictures.NO_CELL] * len(shots)
        for column, n in enumerate(shots):
            if n in shares[k]:
                share = float(shares[k][n])
                tip = f"{name}, {n} shots: {percent(share)}"
                cells[column] = Scale(1.0).cell(share, f"{100 * share:.0f}", tip)
        rows.append((name, cells))
    title = "addition: share answered rightly, in %"
    return pictures.heat_map(title, "shots", shots, rows, kind="heat share")


FAMILIES = {
    "addition": "Addition, off by k",
    "caesar": "Caesar’s cipher, shifted by k",
    "base_addition": "Addition in base k",
    "choice": "Multiple choice, shifted by k",
}
Panels = dict[str, dict[tuple[str, str], Any]]  # {title: {(prompt, ablated): row of `reuse`}}


def bars(f: Findings) -> Content:
    """Four bars for each amount of each task, addition unfolded; all ablations in a table."""
    circuit = traced(f)
    families = panels_of(circuit)
    if not families:
        raise Missing("no task was measured with heads swapped", f.makes("patch"))
    colours = {"plain-answer": "plain answer", "shifted-answer": "shifted answer"}
    words = (
        "Shares of prompts; lines are 95 % intervals over prompts. Swapped heads send what they "
        "send on the base prompt. “Others” are as many random heads of the same layers, or all "
        "others where they are fewer."
    )
    content: Content = [colour_key(colours)]
    for family, panels in families.items():
        title = FAMILIES.get(family, family)
        drawn = [pictures.four_bars(name, rows) for name, rows in panels.items()]
        picture = h("div", drawn, class_="panels")
        numbers = table([family, *pictures.BARS.values()], bars_rows(panels), title)
        inner = [
            figure(picture, words, "circuit.json (reuse)", f.makes("patch")),
            details("As a table: plain / shifted", numbers),
        ]
        first = len(content) == 1
        content += [h("h3", title), *inner] if first else [details(title, *inner)]
    ablations = ablations_table(circuit["evaluation"]["ablation"])
    content.append(details("What is put in decides: every ablation and its controls", ablations))
    return content


def panels_of(circuit: Mapping[str, Any]) -> dict[str, Panels]:
    """The rows of `reuse` by task, and within it by what was asked."""
    families: dict[str, Panels] = {}
    for row in circuit["reuse"]:
        name = f"off by {signed(int(row['k']))}"
        if row["task"] == "base_addition":
            name = f"base {row['k']}, {row.get('items', 'all')}"
        panel = families.setdefault(str(row["task"]), {}).setdefault(name, {})
        panel[str(row["prompt"]), str(row["ablated"])] = row
    return families


def bars_rows(panels: Panels) -> list[list[str]]:
    """The numbers of one task's panels: `plain / shifted` in each setting."""
    rows = []
    for name, measured in panels.items():
        cells = [name]
        for row in map(measured.get, pictures.BARS):
            both = f"{percent(row['base_acc'])} / {percent(row['contrast_acc'])}" if row else "–"
            cells.append(both)
        rows.append(cells)
    return rows


def ablations_table(ablations: Iterable[Mapping[str, Any]]) -> Markup:
    """A row per ablation: whose values were put in, and what is answered then."""
    rows: list[list[Any]] = []
    for row in ablations:
        low, high = row["ci"][0], row["ci"][1]
        rows.append(
            [
                f"{spaced(row['ablated'])} {', '.join(row['heads'])}",
                spaced(row["how"]),
                percent(float(row["base_acc"]), 1),
                percent(float(row["contrast_acc"]), 1),
                f"{percent(float(low))} to {percent(float(high))}",
                percent(float(row["floor"]), 1) if "floor" in row else "–",
            ]
        )
    columns = ["heads", "values from", "plain", "shifted", "95 %", "shifted, on base prompts"]
    return table(columns, rows, "Ablations")


def training(f: Findings) -> Content:
    """Accuracy and loss over the steps of training, and the same as a table."""
    lines = metrics_of(f)
    curves, moments = learning_curves(lines), appear(f)
    losses = [(float(line["step"]), float(line["loss"])) for line in lines]
    steps = Axis(few([step for step, _ in losses]))
    words = ["Addition, plain and off by other amounts, as training goes on. "]
    if moments:
        file = h("code", "results/emergence.json")
        words += ["The upright lines are means over the seeds of ", file, "."]
    else:
        words += [
            "When previous-token and function-induction heads form is followed by ",
            h("code", "make emergence"),
            ", and drawn here once its results are there.",
        ]

    def tip(name: str, step: float, share: float) -> str:
        return f"{name}, step {step:g}: {percent(share)}"

    label = "Accuracy at 8 shots while training"
    learned = Plot(label, "step", steps, SHARES, tip, moments).draw(curves)
    loss = loss_picture(losses, steps)
    made_by = "metrics.jsonl", f.makes("train")
    pair = [
        figure(scrolling(learned), words, *made_by),
        figure(scrolling(loss), "Cross-entropy of one batch’s answers, in nats.", *made_by),
    ]
    shares = [dict(curve.points) for curve in curves]
    rows: list[list[Any]] = []
    for line, (step, value) in zip(lines, losses):
        at_step = [percent(points.get(step, float("nan"))) for points in shares]
        rows.append([f"{line['step']}", f"{float(line['seconds']):.0f}", f"{value:.3f}", *at_step])
    columns = ["step", "seconds", "loss", *(curve.name for curve in curves)]
    numbers = details("As a table", table(columns, rows, "Training"))
    return [h("div", pair, class_="pair"), numbers]


def learning_curves(lines: Iterable[Mapping[str, Any]]) -> list[Curve]:
    """Accuracy at 8 shots over the steps, for the amounts that were measured."""
    curves = []
    for k in ("0", "-1", "1", "2", "3"):
        points = []
        for line in lines:
            shares = line["accuracy"]["addition"].get(k, {})
            if "8" in shares:
                points.append((float(line["step"]), float(shares["8"])))
        if points:
            curves.append(Curve(amount(k), "k1n" if k == "-1" else f"k{k}", points))
    return curves


def loss_picture(losses: Sequence[tuple[float, float]], steps: Axis) -> Markup:
    """The loss over the steps, on a logarithmic axis where it is always positive."""
    low, high = min(loss for _, loss in losses), max(loss for _, loss in losses)
    values = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
    ticks = [value for value in values if low / 2 <= value <= high * 2] or [low]
    nats = Axis([(value, f"{value:g}") for value in ticks], log=low > 0)

    def tip(_: str, step: float, loss: float) -> str:
        return f"step {step:g}: {loss:.3f} nats"

    return Plot("Loss while training", "step", steps, nats, tip).draw([Curve("loss", "k0", losses)])


def few(steps: Sequence[float]) -> list[tuple[float, str]]:
    """At most six of the steps, evenly spaced up to the last, with their names."""
    every = -(-len(steps) // 6)
    return [(step, f"{step:g}") for step in steps[::-1][::every][::-1]]


def appear(f: Findings) -> list[tuple[float, str]]:
    """When heads form: the first step at which a score reaches .3.

    The mean over those seeds of results/emergence.json in which it does, if it lies within the
    steps of this run.
    """
    moments = []
    for score, name in (("pt_score", "PT heads"), ("fi_score", "FI heads")):
        first: dict[str, float] = {}  # by seed
        for row in f.emergence:
            if (row.get(score) or 0) >= 0.3:
                seed, step = str(row.get("seed")), float(row["step"])
                first[seed] = min(step, first.get(seed, step))
        mean = sum(first.values()) / len(first) if first else float("inf")
        if mean <= float(f.metrics[-1]["step"]):
            moments.append((mean, f"{name}: step {mean:.0f}"))
    return moments


VERDICTS = {"pass": "✓ pass", "fail": "✗ fail", "could not tell": "? could not tell"}


def check(f: Findings) -> Content:
    """How many checks passed, and each of them: folded, unless it failed."""
    if f.check is None:
        raise Missing("the checks have not been run on this model yet", f.makes("check"))
    verdicts = [row["verdict"] for row in f.check["checks"]]
    passed, failed, unknown = (verdicts.count(verdict) for verdict in VERDICTS)
    words = f"{passed} passed, {failed} failed, {unknown} could not be told."
    return [
        h("p", words, class_="lead"),
        h("div", [checked(row) for row in f.check["checks"]], class_="checks"),
        source("check.json", f.makes("check")),
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
    account = definitions(
        [("Measured", row["measured"]), ("Wanted", row["wanted"]), ("What to do", row["advice"])]
    )
    failures = []
    for example in row.get("examples", []):
        words = f" → {example['answered']} (right: {example['right']})"
        if example.get("pattern"):
            words += f"; {example['pattern']}"
        failures.append(h("li", h("code", example["prompt"]), words))
    body = [h("p", row["means"]), account]
    if failures:
        body += [h("p", "Some of the failures:"), h("ul", failures, class_="examples")]
    return h("details", h("summary", summary), body, open=verdict == "fail")


def about(f: Findings) -> Content:
    """What the run is, how r is defined, and how the page is made."""
    cfg = f.model.cfg
    n_weights = sum(weight.numel() for weight in f.model.parameters())
    shape = f"{cfg.n_layers} layers × {cfg.n_heads} heads, width {cfg.d_model}"
    size = f"{cfg.d_vocab} tokens, {n_weights:,} weights"
    kinds = f"{cfg.positions} positions, {cfg.normalization} norm, {cfg.act_fn}"
    known = [("run", f.folders.name), ("model", f"{shape}, {size}, {kinds}")]
    diet, versions = f.config.get("diet"), f.config.get("versions")
    known.append(("diet", diet.get("name", "?") if isinstance(diet, dict) else "?"))
    known.append(("versions", named(versions) if isinstance(versions, dict) else "?"))
    if f.circuit and "criteria" in f.circuit:
        known.append(("criteria", named(f.circuit["criteria"])))
    cited = h("a", "arXiv 2507.09875", href="https://arxiv.org/abs/2507.09875")
    definition = [
        "r = (F patched − F contrast) / (F contrast − F base), with F = logit(plain answer) − "
        "logit(shifted answer), as in Ye, Jia and Ren (",
        cited,
        "): −100 % takes the model all the way back to plain addition.",
    ]
    made = [
        "This page is made by ",
        h("code", f.makes("report")),
        ". It holds all it needs, weights included, and asks nothing of any network.",
    ]
    return [definitions(known), h("p", definition), h("p", made)]


def named(values: Mapping[str, Any]) -> str:
    """`torch 2.13.0, python 3.11`."""
    return ", ".join(f"{spaced(name)} {value}" for name, value in values.items())


SECTIONS: tuple[tuple[str, str, Callable[[Findings], Content]], ...] = (
    ("circuit", "The circuit", graph),
    ("checklist", "Checklist", check),
    ("effects", "Who writes to whom", effects),
    ("attention", "Where heads look", attention),
    ("vectors", "What they write", vectors),
    ("ablations", "Switched off, and reused", bars),
    ("accuracy", "How well it does", accuracy),
    ("training", "How it came about", training),
    ("about", "About", about),
)


def content(f: Findings, make: Callable[[Findings], Content]) -> Markup:
    """A section's content, or a note on what is missing and how to make it."""
    try:
        return inside(make(f))
    except Missing as missing:
        what, command = missing.args
    except KeyError as error:
        lacking = f"a file of this run lacks “{str(error.args[0])[:60]}”"
        what = f"{lacking}; an older version may have written it"
        command = f.makes("check" if make is check else "patch")
    note = [h("b", "Not here: "), what, ". ", h("code", command), " makes it."]
    return h("p", note, class_="missing")
