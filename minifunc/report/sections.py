"""The sections of a report. Each takes the findings and returns what stands below its heading; a KeyError says that a file lacks something."""

from collections.abc import Callable, Sequence
from typing import Any

from minifunc.circuit import heads_of
from minifunc.report import pictures
from minifunc.report.findings import Findings
from minifunc.report.html import Markup, details, h, inside, percent, signed, table
from minifunc.report.talk import sentence

INPUTS = {
    "v": "values: what is handed over",
    "k": "keys: what is found",
    "q": "queries: what is looked for",
}
CONTRASTS = {"answers": "shown answers changed", "operands": "operands changed"}


class Missing(Exception):
    """A piece that no file holds: what it is, and what to do about it."""


def figure(picture: Any, words: Any, file: str, command: str, wide: bool = False) -> Markup:
    """A picture with its caption, and the file and command behind it."""
    source = h("p", "from ", h("code", file), ", made by ", h("code", command), class_="source")
    return h(
        "figure",
        h("div", picture, class_="picture"),
        h("figcaption", words, source),
        class_="wide" if wide else None,
    )


def circuit_of(f: Findings) -> dict[str, Any]:
    if f.circuit is None:
        raise Missing("the circuit has not been traced yet", f.makes("patch"))
    return f.circuit


def traced(f: Findings) -> dict[str, Any]:
    """The circuit, where one was found."""
    circuit = circuit_of(f)
    if not f.fi:
        raise Missing(
            "no function-induction head was found in this model, so there is no circuit to show: it may not do the task",
            f.makes("train"),
        )
    return circuit


def number(value: str, words: Any) -> Markup:
    return h("div", h("b", value), h("span", words), class_="number")


def unseen(f: Findings, circuit: dict[str, Any]) -> bool:
    """Whether the run's diet never showed what was traced."""
    diet = f.config.get("diet")
    diet = diet if isinstance(diet, dict) else {}
    never = [list(cell) for cell in diet.get("never", ())]
    return (
        circuit["task"] == "addition"
        and ["shift", "+"] in never
        and circuit["k"] not in diet.get("shifted_addition", ())
    )


def claim(f: Findings) -> list[Any]:
    c = circuit_of(f)
    done = float(c["accuracy"]["contrast_prompt"]["contrast"])
    task = f"{c['task'].removeprefix('base_').replace('_', ' ')} {c['asked']}"
    never = ", which it was never trained on," if unseen(f, c) else ""
    if not f.fi:
        return [
            h(
                "p",
                f"Shown {task}{never} this model answers it rightly on {percent(done, 1)} of prompts, and no head was found that carries the rule.",
                class_="claim",
            )
        ]
    left, alone = c["evaluation"]["ablation"][0], c["evaluation"]["circuits"][0]
    n = len(f.fi)
    words = f"Shown {task}{never} this model does it on {percent(done, 1)} of prompts, and {n} attention head{'s carry' if n > 1 else ' carries'} it: with what {'they send' if n > 1 else 'it sends'} on plain prompts put in, {percent(left['contrast_acc'], 1)} is left and the plain answer returns on {percent(left['base_acc'], 1)}."
    numbers = [
        number(
            percent(done, 1),
            f"answered {c['asked']}, {c['shots']} shots, {c.get('accuracy_prompts', c['n_prompts'])} prompts",
        ),
        number(
            str(n),
            f"function-induction head{'s' * (n > 1)} of {f.model.cfg.n_layers * f.model.cfg.n_heads}: {', '.join(f.fi)}",
        ),
        number(
            percent(left["contrast_acc"], 1),
            "left when their outputs are swapped for those of plain prompts",
        ),
        number(
            f"{float(alone['faithfulness']):.2f}",
            f"faithfulness of the {len(alone['heads'])} heads of all groups alone (random ones: {float(alone['random_circuits']['mean']):.2f})",
        ),
    ]
    source = h(
        "p",
        "from ",
        h("code", "circuit.json"),
        ", made by ",
        h("code", f.makes("patch")),
        class_="source",
    )
    return [
        h("p", words, class_="claim"),
        h("div", numbers, class_="numbers-row"),
        details("In full", h("p", sentence(c))),
        source,
    ]


def graph(f: Findings) -> list[Any]:
    c = traced(f)
    edges = [
        [
            f"{edge['sender']} → {edge['receiver']}",
            CONTRASTS.get(edge["contrast"], edge["contrast"]),
            ", ".join(edge["inputs"]) or "–",
            signed(100 * edge["r"], 1),
        ]
        for edge in pictures.merged(c["graph"])
    ]
    key = h(
        "p",
        [
            h("span", h("i", class_=f"swatch {kind}"), words)
            for kind, words in (
                ("by-answers", "shown answers changed"),
                ("by-operands", "operands changed"),
                ("to-logits", "on the answer"),
            )
        ],
        class_="key",
    )
    words = "Read it from left to right. A line is as wide as |r|, the share of the way back to the plain answer when this one path is patched. What was shown and what was to be expected reach the function-induction heads by two routes, which two contrasts tell apart. Each head leads to its row below."
    groups = {
        head: [group.replace("_", " ") for group, heads in c["groups"].items() if head in heads]
        for head in heads_of(head for heads in c["groups"].values() for head in heads)
    }
    looks = list(next(iter(c["attention"].values()), {}))
    roles = c.get("readers", {})
    rows: list[list[Any]] = []
    for head, names in groups.items():
        layer, index = map(int, head.split("."))
        r = float(c["effects"]["logits"]["heads"][layer][index])
        brings = " and ".join(roles[head]["brings"]) or "neither" if head in roles else "–"
        rows.append(
            [
                h("span", head, id=f"head-{head}", tabindex="-1"),
                ", ".join(names),
                signed(100 * r, 1),
                brings,
                *(percent(float(c["attention"][head][name])) for name in looks),
            ]
        )
    return [
        figure(
            [key, h("div", pictures.graph_picture(c["graph"]), class_="scroll")],
            words,
            "circuit.json (graph)",
            f.makes("patch"),
            wide=True,
        ),
        table(
            [
                "head",
                "group",
                "r on the logits, %",
                "brings",
                *(name.replace("_", " ") for name in looks),
            ],
            rows,
            "The heads of the circuit, and the shares of their attention",
        ),
        details(
            f"All {len(edges)} edges as a table",
            table(["edge", "contrast", "inputs (r in %)", "r, %"], edges, "Edges that count"),
        ),
    ]


def effects(f: Findings) -> list[Any]:
    c = circuit_of(f)
    by = {"answers": c["effects"], "operands": c["operands_changed"]["effects"]}
    union = heads_of(head for heads in c["groups"].values() for head in heads)
    scale = pictures.legend(100, "r in %", True, "back to plain", "on to the shifted answer")

    def maps(receiver: str, title: str) -> list[Markup]:
        return [
            pictures.effects_map(f"{title}, {words}", by[contrast][receiver], receiver, union)
            for contrast, words in CONTRASTS.items()
            if receiver in by[contrast]
        ]

    file, command = "circuit.json (effects)", f.makes("patch")
    out: list[Any] = [
        scale,
        figure(
            h("div", maps("logits", "heads → logits"), class_="maps"),
            "Each cell patches one head's direct path to the answer. Outlined: heads of the circuit. The colour goes with the square root, so that small effects show.",
            file,
            command,
            wide=True,
        ),
    ]
    if not f.fi:
        return out
    together = [maps(f"function_induction.{which}", f"→ {which}") for which in INPUTS]
    words = [
        "What reaches the function-induction heads, all of them overwritten together. ",
        "; ".join(f"{which}: {name.split(': ')[1]}" for which, name in INPUTS.items()),
        ".",
    ]
    if any(together):
        out.append(figure(h("div", together, class_="maps"), words, file, command, wide=True))
    for head in f.fi:
        each = [maps(f"{head}.{which}", f"→ {head}.{which}") for which in INPUTS]
        out.append(
            details(
                f"Head {head} alone",
                figure(
                    h("div", each, class_="maps"),
                    f"What reaches the inputs of head {head}.",
                    file,
                    command,
                    wide=True,
                ),
            )
        )
    return out


GROUPS = {
    "function_induction": "Function induction: the last = looks at the shown answers",
    "expected_answer": "Bring what was to be expected",
    "shown_answer": "Bring what was shown",
    "previous_token": "Previous token: an answer looks at the = before it",
    "consolidation": "Consolidation: the last = looks at itself and the beginning",
}


def attention(f: Findings) -> list[Any]:
    c = traced(f)
    ids = f.example()
    if not ids:
        raise Missing("there is no example prompt in this model's vocabulary", f.makes("patch"))
    tokens, patterns = [f.vocabulary[token] for token in ids], f.patterns(ids)
    answers = list(range(5, len(ids) - 1, 6))
    out: list[Any] = [
        h(
            "p",
            "The prompt: ",
            h("code", " ".join(tokens)),
            ". A row is a token that looks, a column one that is looked at; shown answers are set off.",
        )
    ]
    pictured: set[str] = set()
    for group, title in GROUPS.items():
        heads = list(c["groups"].get(group, []))
        if not heads:
            continue
        route = list(c.get("routes", {}).get(group, {}))  # the strongest first
        fresh = sorted(
            (head for head in heads if head not in pictured),
            key=lambda head: route.index(head) if head in route else len(route),
        )[: 6 if group == "function_induction" else 3]
        pictured.update(fresh)
        rows = []
        for head in heads:
            ranked = sorted(enumerate(patterns[head][-1]), key=lambda pair: -pair[1])[:4]
            rows.append(
                [
                    head,
                    ", ".join(f"{tokens[at]} at {at} ({percent(share)})" for at, share in ranked),
                ]
            )
        drawn = [
            h(
                "div",
                h("h4", f"Head {head}"),
                h(
                    "div",
                    pictures.attention(head, patterns[head], tokens, answers),
                    class_="scroll",
                ),
                class_="pattern",
            )
            for head in fresh
        ]
        more = (
            ""
            if len(fresh) == len(heads)
            else " The others are drawn above, or weaker; all are in the table."
        )
        out += [
            h("h3", title),
            figure(
                h("div", drawn, class_="patterns"),
                f"{len(heads)} head{'s' * (len(heads) > 1)} of this group on the prompt above.{more}",
                "model.pt",
                f.makes("report"),
                wide=True,
            ),
        ]
        out.append(
            details(
                "Where the last token looks, as a table",
                table(["head", "looks most at"], rows, title, numbers=False),
            )
        )
    return out


def vectors(f: Findings) -> list[Any]:
    c = traced(f)
    maps, k = c["function_vectors"], int(c["k"])
    most = max(abs(float(value)) for rows in maps.values() for row in rows for value in row)
    names = ["all"] * ("all" in maps) + [name for name in maps if name != "all"]
    drawn = [
        pictures.vector_map(
            "all of them at once" if name == "all" else f"head {name}", maps[name], most, k
        )
        for name in names
    ]
    words = [
        "The mean of what a head holds at the last = of contrast prompts, added to it on prompts like ",
        h("code", "2 same _ = 2, 5 same _ ="),
        f", which ask for x. Row: x; column: y; a cell says by how many logits y rises. Outlined: y = x {signed(k)}. A head that carried the rule as one direction would raise the outlined cells alone.",
    ]
    return [
        pictures.legend(most, "logits", False, "suppressed", "raised"),
        figure(
            h("div", drawn, class_="maps"),
            words,
            "circuit.json (function_vectors)",
            f.makes("patch"),
            wide=True,
        ),
    ]


def accuracy(f: Findings) -> list[Any]:
    if not f.metrics:
        raise Missing("there is no metrics.jsonl, which training writes", f.makes("train"))
    shares = f.metrics[-1]["accuracy"]["addition"]
    ks = sorted(shares, key=int)
    shots = list(shares[ks[0]])
    rows = [
        (
            "plain" if k == "0" else f"off by {signed(int(k))}",
            [float(shares[k][n]) if n in shares[k] else None for n in shots],
        )
        for k in ks
    ]
    grid = pictures.heat_map(
        "addition: share answered rightly, in %",
        rows,
        shots,
        1.0,
        lambda share: f"{100 * share:.0f}",
        lambda row, column, share: f"{row}, {column} shots: {percent(share)}",
        corner="shots",
        kind="heat share",
    )
    wanted = [k for k in ("0", "1", "2", "3", "4") if k in shares]
    lines = [
        (
            "plain" if k == "0" else f"+{k}",
            f"k{k}",
            [(float(n), float(shares[k][n])) for n in shots if n in shares[k]],
        )
        for k in wanted
    ]
    picture = pictures.curves(
        "Accuracy of addition by shots",
        lines,
        [(float(n), n) for n in shots],
        [(share, percent(share)) for share in (0.0, 0.25, 0.5, 0.75, 1.0)],
        "examples shown",
        lambda name, x, y: f"{name}, {x:g} shots: {percent(y)}",
        log_x=True,
    )
    step = f.metrics[-1]["step"]
    words = f"The asked answer is none of those shown. As measured at step {step}, on few prompts; make train ends with a table on 500."
    return [
        h(
            "div",
            figure(h("div", picture, class_="scroll"), words, "metrics.jsonl", f.makes("train")),
            figure(grid, "The same for every amount.", "metrics.jsonl", f.makes("train")),
            class_="pair",
        )
    ]


FAMILIES = {
    "addition": "Addition, off by k",
    "caesar": "Caesar’s cipher, shifted by k",
    "base_addition": "Addition in base k",
    "choice": "Multiple choice, shifted by k",
}


def bars(f: Findings) -> list[Any]:
    c = traced(f)
    panels: dict[tuple[str, str], dict[tuple[str, str], Any]] = {}
    for row in c["reuse"]:
        items = row.get("items", "all")
        title = (
            f"base {row['k']}, {items}"
            if row["task"] == "base_addition"
            else f"off by {signed(int(row['k']))}"
        )
        panels.setdefault((str(row["task"]), title), {})[
            str(row["prompt"]), str(row["ablated"])
        ] = row
    if not panels:
        raise Missing("no task was measured with heads swapped", f.makes("patch"))
    key = h(
        "p",
        h("span", h("i", class_="swatch plain-answer"), "plain answer"),
        h("span", h("i", class_="swatch shifted-answer"), "shifted answer"),
        class_="key",
    )
    words = "Shares of prompts; lines are 95 % intervals over prompts. Swapped heads send what they send on the base prompt. “Others” are as many random heads of the same layers, or all others where they are fewer."
    out: list[Any] = [key]
    for number_, family in enumerate(dict.fromkeys(task for task, _ in panels)):
        drawn = [
            pictures.four_bars(title, rows)
            for (task, title), rows in panels.items()
            if task == family
        ]
        rows = [
            [
                title,
                *(
                    f"{percent(row['base_acc'])} / {percent(row['contrast_acc'])}"
                    if (row := some.get(column))
                    else "–"
                    for column in pictures.BARS
                ),
            ]
            for (task, title), some in panels.items()
            if task == family
        ]
        inner = [
            figure(
                h("div", drawn, class_="panels"),
                words,
                "circuit.json (reuse)",
                f.makes("patch"),
                wide=True,
            ),
            details(
                "As a table: plain / shifted",
                table([family, *pictures.BARS.values()], rows, FAMILIES.get(family, family)),
            ),
        ]
        title = FAMILIES.get(family, family)
        out += [h("h3", title), *inner] if number_ == 0 else [details(title, *inner)]
    ablated = [
        [
            f"{row['ablated'].replace('_', ' ')} {', '.join(row['heads'])}",
            row["how"].replace("_", " "),
            percent(float(row["base_acc"]), 1),
            percent(float(row["contrast_acc"]), 1),
            f"{percent(float(row['ci'][0]))} to {percent(float(row['ci'][1]))}",
            percent(float(row["floor"]), 1) if "floor" in row else "–",
        ]
        for row in c["evaluation"]["ablation"]
    ]
    return [
        *out,
        details(
            "What is put in decides: every ablation and its controls",
            table(
                ["heads", "values from", "plain", "shifted", "95 %", "shifted, on base prompts"],
                ablated,
                "Ablations",
            ),
        ),
    ]


def training(f: Findings) -> list[Any]:
    if not f.metrics:
        raise Missing("there is no metrics.jsonl, which training writes", f.makes("train"))
    steps = [float(line["step"]) for line in f.metrics]
    marks = spaced(steps)
    at_8 = {
        k: [
            (float(line["step"]), float(line["accuracy"]["addition"][k]["8"]))
            for line in f.metrics
            if "8" in line["accuracy"]["addition"].get(k, {})
        ]
        for k in ("0", "-1", "1", "2", "3")
    }
    lines = [
        ("plain" if k == "0" else signed(int(k)), "k1n" if k == "-1" else f"k{k}", points)
        for k, points in at_8.items()
        if points
    ]
    learned = pictures.curves(
        "Accuracy at 8 shots while training",
        lines,
        marks,
        [(share, percent(share)) for share in (0.0, 0.25, 0.5, 0.75, 1.0)],
        "step",
        lambda name, x, y: f"{name}, step {x:g}: {percent(y)}",
        moments=appear(f),
    )
    losses = [(float(line["step"]), float(line["loss"])) for line in f.metrics]
    low, high = min(y for _, y in losses), max(y for _, y in losses)
    loss_ticks = [
        (tick, f"{tick:g}")
        for tick in (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
        if low / 2 <= tick <= high * 2
    ] or [(low, f"{low:g}")]
    loss = pictures.curves(
        "Loss while training",
        [("loss", "k0", losses)],
        marks,
        loss_ticks,
        "step",
        lambda name, x, y: f"step {x:g}: {y:.3f} nats",
        log_y=low > 0,
    )
    rows = [
        [
            f"{line['step']}",
            f"{float(line['seconds']):.0f}",
            f"{float(line['loss']):.3f}",
            *(
                percent(dict(points).get(float(line["step"]), float("nan")))
                for points in at_8.values()
                if points
            ),
        ]
        for line in f.metrics
    ]
    words: list[Any] = ["Addition, plain and off by other amounts, as training goes on. "]
    words += (
        ["The upright lines are means over the seeds of ", h("code", "results/emergence.json"), "."]
        if appear(f)
        else [
            "When previous-token and function-induction heads form is followed by ",
            h("code", "make emergence"),
            ", and drawn here once its results are there.",
        ]
    )
    columns = ["step", "seconds", "loss", *(name for name, _, _ in lines)]
    return [
        h(
            "div",
            figure(h("div", learned, class_="scroll"), words, "metrics.jsonl", f.makes("train")),
            figure(
                h("div", loss, class_="scroll"),
                "Cross-entropy of one batch’s answers, in nats.",
                "metrics.jsonl",
                f.makes("train"),
            ),
            class_="pair",
        ),
        details("As a table", table(columns, rows, "Training")),
    ]


def spaced(steps: Sequence[float]) -> list[tuple[float, str]]:
    """At most six of the steps, with their names."""
    every = -(-len(steps) // 6)
    return [(step, f"{step:g}") for step in steps[::-1][::every][::-1]]


def appear(f: Findings) -> list[tuple[float, str]]:
    """When heads form: the first step at which a score reaches .3, mean over the seeds of results/emergence.json in which it does, within this run's steps."""
    found, seeds = [], sorted({str(row.get("seed")) for row in f.emergence})
    for key, name in (("pt_score", "PT heads"), ("fi_score", "FI heads")):
        firsts = [
            min(
                (
                    float(row["step"])
                    for row in f.emergence
                    if str(row.get("seed")) == seed and (row.get(key) or 0) >= 0.3
                ),
                default=None,
            )
            for seed in seeds
        ]
        known = [first for first in firsts if first is not None]
        mean = sum(known) / len(known) if known else float("inf")
        found += (
            [(mean, f"{name}: step {mean:.0f}")] if mean <= float(f.metrics[-1]["step"]) else []
        )
    return found


def check(f: Findings) -> list[Any]:
    if f.check is None:
        raise Missing("the checks have not been run on this model yet", f.makes("check"))
    names = {"pass": "✓ pass", "fail": "✗ fail", "could not tell": "? could not tell"}
    counted = [sum(row["verdict"] == verdict for row in f.check["checks"]) for verdict in names]
    items = []
    for row in f.check["checks"]:
        verdict = str(row["verdict"])
        examples = [
            h(
                "li",
                h("code", example["prompt"]),
                f" → {example['answered']} (right: {example['right']}){'; ' * bool(example.get('pattern'))}{example.get('pattern', '')}",
            )
            for example in row.get("examples", [])
        ]
        body = [
            h("p", row["means"]),
            h(
                "dl",
                h("dt", "Measured"),
                h("dd", row["measured"]),
                h("dt", "Wanted"),
                h("dd", row["wanted"]),
                h("dt", "What to do"),
                h("dd", row["advice"]),
            ),
        ]
        body += (
            [h("p", "Some of the failures:"), h("ul", examples, class_="examples")]
            if examples
            else []
        )
        items.append(
            h(
                "details",
                h(
                    "summary",
                    h("span", names.get(verdict, verdict), class_=f"verdict {verdict.split()[0]}"),
                    " ",
                    h("span", row["question"], class_="question"),
                    h("span", row["short"], class_="short"),
                ),
                *body,
                open=verdict == "fail",
            )
        )
    words = f"{counted[0]} passed, {counted[1]} failed, {counted[2]} could not be told."
    return [
        h("p", words, class_="lead"),
        h("div", items, class_="checks"),
        h(
            "p",
            "from ",
            h("code", "check.json"),
            ", made by ",
            h("code", f.makes("check")),
            class_="source",
        ),
    ]


def about(f: Findings) -> list[Any]:
    cfg = f.model.cfg
    weights = sum(weight.numel() for weight in f.model.parameters())
    versions = f.config.get("versions")
    known = [
        ("run", f.run),
        (
            "model",
            f"{cfg.n_layers} layers × {cfg.n_heads} heads, width {cfg.d_model}, {cfg.d_vocab} tokens, {weights:,} weights, {cfg.positions} positions, {cfg.normalization} norm, {cfg.act_fn}",
        ),
        (
            "diet",
            f.config["diet"].get("name", "?") if isinstance(f.config.get("diet"), dict) else "?",
        ),
        (
            "versions",
            ", ".join(f"{name} {version}" for name, version in versions.items())
            if isinstance(versions, dict)
            else "?",
        ),
    ]
    if f.circuit:
        known += [
            (
                name.replace("_", " "),
                ", ".join(
                    f"{criterion.replace('_', ' ')} {value}"
                    for criterion, value in f.circuit[name].items()
                ),
            )
            for name in ("criteria",)
            if name in f.circuit
        ]
    cited = h("a", "arXiv 2507.09875", href="https://arxiv.org/abs/2507.09875")
    return [
        h("dl", [[h("dt", name), h("dd", value)] for name, value in known]),
        h(
            "p",
            "r = (F patched − F contrast) / (F contrast − F base), with F = logit(plain answer) − logit(shifted answer), as in Ye, Jia and Ren (",
            cited,
            "): −100 % takes the model all the way back to plain addition.",
        ),
        h(
            "p",
            "This page is made by ",
            h("code", f.makes("report")),
            ". It holds all it needs, weights included, and asks nothing of any network.",
        ),
    ]


SECTIONS: tuple[tuple[str, str, Callable[[Findings], list[Any]]], ...] = (
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


def content(f: Findings, make: Callable[[Findings], list[Any]]) -> Markup:
    """A section's content, or a note on what is missing and how to make it."""
    try:
        return inside(make(f))
    except Missing as missing:
        what, command = missing.args
    except KeyError as error:
        what, command = (
            f"a file of this run lacks “{str(error.args[0])[:60]}”; an older version may have written it",
            f.makes("patch" if make is not check else "check"),
        )
    return h(
        "p", h("b", "Not here: "), what, ". ", h("code", command), " makes it.", class_="missing"
    )
