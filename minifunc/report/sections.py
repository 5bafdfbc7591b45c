"""The sections of a report. Each takes the findings and returns what stands below its heading.

A KeyError says that a file lacks something: `content` makes a note of it.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from minifunc.report import checklist, pictures
from minifunc.report.findings import Findings
from minifunc.report.glossary import GLOSSARY, PLACES, glossed
from minifunc.report.html import Markup, details, h, inside, percent, scrolling, signed, table
from minifunc.report.learned import learned
from minifunc.report.pictures import Scale
from minifunc.report.terminal import Circuit, asked_in, fours, listed, members, r_of, title
from minifunc.report.titles import mixed_rules, swaps, title_of, unseen
from minifunc.support.evaluation import wilson
from minifunc.support.names import parse
from minifunc.support.tables import words

CONTRASTS = {"answers": "shown answers changed", "operands": "operands changed"}
Content = list[Any]  # what `h` takes as children
# {file: the target of make}, `patch` makes all others; {what a section needs first: its file}
MADE_BY = {"check.json": "check", "results/seeds.json": "dependability"}
MADE_BY |= {"metrics.jsonl": "train", "learning.json": "reference"}
FILES = {"check": "check.json", "seeds": "results/seeds.json", "metrics": "metrics.jsonl"}


def source(f: Findings, file: str) -> Markup:
    """`from circuit.json (effects), made by make patch`."""
    command = makes(f, MADE_BY.get(file, "patch"))
    return h("p", "from ", h("code", file), ", made by ", h("code", command), class_="source")


def makes(f: Findings, target: str) -> str:
    """A command; one that is about no run of ours has no OUT."""
    if target == "patch" and "model" in f.circuit:
        target = "smollm"
    ours = target in ("dependability", "smollm", "reference")
    return f"make {target}" if ours else f.folders.makes(target)


def figure(f: Findings, picture: Any, caption: Any, file: str) -> Markup:
    """A caption, what it is about, and the file and command behind that."""
    told = h("figcaption", caption)
    return h("figure", told, h("div", picture, class_="picture"), source(f, file))


def numbers(columns: list[str], rows: list[list[Any]], caption: str) -> Markup:
    """A table of numbers; the first cell of a row names it."""
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
    n = circuit["accuracy_prompts"]
    is_new = unseen(f, circuit["task"], circuit["k"])
    others = " (it shifted other functions)" if f.config.get("diet", {}).get("shift") else ""
    never = f", though training held no {title(circuit)}{others}," if is_new else ""
    shown = [f"Shown {circuit['shots']} ", *glossed("[examples|shot]"), f" of {title(circuit)}"]
    shown.append(f"{never} this model goes on by that rule on {done} of {n} prompts")
    if not f.fi:
        return [h("p", shown, ". No head was found that carries the rule.", class_="claim")]
    if circuit["accuracy"]["contrast_prompt"]["contrast"] < circuit["criteria"]["solves"]:
        shown.append(", so what follows is about a weak effect")
    ours, *_ = swaps(circuit)
    remains, returns = percent(ours["contrast_acc"], 1), percent(ours["base_acc"], 1)
    plain = "true sums" if circuit["task"] == "addition" else "plain answers"
    told = f". The answer comes through {len(f.fi)} small parts, [attention heads|head]. Make them "
    told += f"[send|swap] what they send after {plain}, and {remains} of answers still follow "
    return [
        h("p", shown, glossed(f"{told}the rule; {returns} are {plain}."), class_="claim"),
        h("div", claim_numbers(f, n, done, remains), class_="tiles"),
        source(f, "circuit.json"),
    ]


def claim_numbers(f: Findings, n: int, done: str, remains: str) -> list[Markup]:
    """The numbers in large print, each with what it counts. n: prompts."""
    found = f.circuit["evaluation"]
    alone, *_ = found.get("circuits", [found | {"heads": found["circuit"]}])
    kept = len(alone["heads"])
    stays = f"of the effect stays if all but the circuit’s {kept} heads are [swapped|faithfulness]"
    if lot := alone.get("random_circuits"):
        mean, those = f"{lot['mean']:.2f}", percent(lot["overlap"])
        stays += f"; {mean} if all but {kept} drawn at random ({those} of them these)"
    shown = {
        f"of {n} prompts are answered {f.circuit['asked']}": done,
        f"of {f.n_heads} heads are [FI heads|FI head]: {', '.join(f.fi)}": len(f.fi),
        "still follow the rule when these heads are [swapped|swap]": remains,
        stays: f"{alone['faithfulness']:.2f}",
    }
    told = [(h("b", value), h("span", glossed(what))) for what, value in shown.items()]
    return [h("div", parts, class_="number") for parts in told]


def graph(f: Findings) -> Content:
    """The place of the circuit over the prompt that was asked, which circuit.js draws."""
    colours = {
        "stream": "a shown answer, and the model’s state above it",
        "reads": "its operands: what was to be expected",
        "into": "what FI heads take from there",
        "out": "brings this prompt’s answer",
        "against": "works against it",
    }
    caption = (
        "Two pictures of the same model: on the prompt you asked, and on its base prompt. Follow a "
        "shown answer up its purple line; amber lines bring it to the FI heads, red ones go from "
        "these to the answer. Width: how far the answer moves if only this line carries what it "
        "carries on the other prompt (under 1 %: no line, but FI heads keep a thin one). Not drawn:"
        " other heads, and MLPs; a line leads through those above its sender. What MLPs do at the "
        "last = may be much, but differs between prompts only by what heads brought there."
    )
    picture = [colour_key(colours), view(f, "circuit-view")]
    return [figure(f, picture, caption, "circuit.json (groups)")]


def view(f: Findings, name: str) -> Markup:
    """The place that a script of the page fills, if there is a model for it to run."""
    return missing("the page holds no model.") if f.unplayable else h("div", id=name)


def path(f: Findings) -> Content:
    """The place of a path that the reader patches, which path.js fills."""
    return [view(f, "path-view")]


def groups_of(circuit: Circuit, head: str) -> str:
    """The groups of a head, in words."""
    return ", ".join(words(group) for group, heads in circuit["groups"].items() if head in heads)


def heads_table(f: Findings) -> Content:
    """A row per head of the circuit: its groups, its r, where it looks."""
    circuit, rows = f.circuit, list[list[Any]]()
    for head in members(circuit):
        looks = map(percent, circuit["attention"][head].values())
        rows.append([head, groups_of(circuit, head), signed(r_of(circuit, head), 1), *looks])
    shares = map(words, next(iter(circuit["attention"].values())))
    columns = ["head", "group", "r on the logits, %", *shares]
    told = "The heads of the circuit, and shares of attention; last: of the last =; bos: the start"
    return [numbers(columns, rows, told)]


def effects(f: Findings) -> Content:
    """Heat maps of r on the logits, and on the function-induction heads together."""
    caption = glossed(
        "Each cell patches one part’s [direct path] to the [logits|logit] and gives [r]. Outlined: "
        "heads of the circuit. Colour: by the square root. An MLP’s r may be large though heads "
        "carry the answer: it reads what the heads below it wrote."
    )
    scale = Scale(100, root=True).legend("r in %", "back to plain", "on to the shifted answer")
    content = [effects_on(f, {"logits": "heads → logits"}, [*caption, scale])]
    if f.fi:
        on_fi = "What reaches FI heads. v: what is handed over; k: what is found; q: what is "
        on_fi += "looked for. “Function induction”: a path into all of these heads at once."
        swept = f.circuit["effects"]
        together = [to for to in swept if to.startswith("function_induction.")]
        into = together or [to for to in swept if to[:-2] in f.fi]
        content.append(effects_on(f, {to: f"→ {words(to)}" for to in into}, on_fi))
    return content


def effects_on(f: Findings, receivers: Mapping[str, str], caption: Any) -> Markup:
    """The maps of r on some {receiver: title}, under each contrast that was traced."""
    under = {"answers": f.circuit, "operands": f.circuit["operands_changed"]}
    maps = []
    for receiver, to in receivers.items():
        for contrast, changed in CONTRASTS.items():
            r, name = under[contrast]["effects"][receiver], f"{to}, {changed}"
            maps.append(pictures.effects_map(name, r, receiver, members(f.circuit)))
    return figure(f, h("div", maps, class_="maps"), caption, "circuit.json (effects)")


def proof(f: Findings) -> Content:
    """Four bars for what was traced, the plain answer beside; other tasks in a table."""
    circuit = f.circuit
    colours = {"plain-answer": "plain answer", "shifted-answer": "answer by the new rule"}
    n = {"n_prompts": circuit["accuracy_prompts"]}
    few = "".join(f" (the control: {row['n_prompts']})" for row in swaps(circuit)[1:])
    caption = glossed(
        f"Shares of {n['n_prompts']} prompts{few} answered plainly, and by the new rule; lines: "
        "95 % intervals. Third row: the [FI heads|FI head] are [swapped|swap]. Fourth, the control:"
        " as many other heads of the same layers, drawn at random (all of them if there are fewer)."
    )
    shares = circuit["accuracy"].values()
    four = [{"base_acc": x["base"], "contrast_acc": x["contrast"]} | n for x in shares]
    picture = pictures.four_bars(title(circuit), four + swaps(circuit))
    shown = figure(f, [colour_key(colours), picture], caption, "circuit.json (evaluation)")
    return [shown, content(f, reused, "")]


def reused(f: Findings) -> Content:
    """The same heads on tasks that were not traced: where the control is weakest, and a table."""
    traced = (f.circuit["task"], f.circuit["k"])
    named = {asked_in(x): x for x in fours(f.circuit) if (x[0]["task"], x[0]["k"]) != traced}
    rows = [[name.replace("-", "−"), *map(pictures.both, four)] for name, four in named.items()]
    caption = "Plain / shifted answers; the rest are neither. Without a carry both rules give one."
    others = numbers(["task", *pictures.BARS], rows, caption)
    worst = max(named, key=lambda x: named[x][1]["contrast_acc"] - named[x][3]["contrast_acc"])
    had, left = (percent(named[worst][at]["contrast_acc"]) for at in (1, 3))
    told = f"The control is weakest for {worst.replace('-', '−')}: with other heads "
    told += f"swapped, {left} of prompts still follow the new rule; with none swapped, {had}."
    return [h("p", told), details(f"The same heads on {len(rows)} other tasks", others)]


FORECASTS = {  # of what the answer is off by
    "attention": "mean of the shown, weighted by where the heads look",
    "uniform": "unweighted mean of the shown",
    "most_attended": "that of the example looked at most",
    "nearest": "that of the most similar example",
    "last": "that of the last example",
}


def averaging(f: Findings) -> Content:
    """What is answered where examples disagree, what foretells it, and what steers it."""
    mixtures, offsets = mixed_rules(f.circuit), range(-3, 4)
    answered: list[list[Any]] = []
    for row in mixtures:
        cells = []
        for offset in offsets:
            share = row["answered"].get(str(offset), 0)
            tip = f"off by {signed(offset)}: {percent(share)} of {row['n_prompts']} answers"
            cells.append(Scale(2.0).cell(share, percent(share), tip, offset in row["offsets"]))
        answered.append([" and ".join(map(signed, row["offsets"])), *cells])
    told = f"How often the answer is off by so much, of {mixtures[0]['n_prompts']} prompts a row"
    heat = pictures.heat_map(told, "shown", map(signed, offsets), answered)
    first, foretold = mixtures[0], []
    for name, r2 in first["r2"].items():
        low, high = map(percent, wilson(first["hits"][name], first["n_prompts"]))
        hits = f"{percent(first['hits'][name])} ({low} to {high})"
        foretold.append([FORECASTS[name], signed(r2, 2), hits])
    caption = glossed(
        "Each [shot] of a prompt is off by one of two amounts (outlined), at random. Copying the "
        "rule of one shot would give outlined answers alone. [R²] says which forecast fits best. "
        "The last table forces the [FI heads|FI head]’ attention and shows that the answer follows."
    )
    told = f"Shown {answered[0][0]}: what foretells the answer"
    fits = numbers(["forecast", "R²", "rounded, is the answer (95 %)"], foretold, told)
    parts = [heat, fits, content(f, nearer, ""), content(f, steering, "")]
    return [figure(f, parts, caption, "circuit.json (averaging)")]


def nearer(f: Findings) -> Content:
    """For which rules that are no fixed amount the most similar example foretells better."""
    rules = {row["rule"]: row["r2"] for row in f.circuit["averaging"]["rules"]}
    better = []
    for rule, r2 in rules.items():
        if r2["nearest"] > r2["attention"]:
            near, mean = (signed(r2[name], 3) for name in ("nearest", "attention"))
            better.append(f"{rule} (R² {near}, by attention {mean})")
    told = f"Of {len(rules)} rules that add no fixed amount, the most similar example foretells "
    return [h("p", f"{told}{len(better)} better than the mean by attention: {listed(better)}.")]


def steering(f: Findings) -> Content:
    """What the answer is off by, once heads are made to look at some examples more."""
    found, rows = f.circuit["averaging"], list[list[Any]]()
    for who, key in (("function-induction heads", "steered"), ("other heads", "control")):
        if found[key]:  # there may be no others
            rows.append([who, *(signed(row["off_by"], 2) for row in found[key][::3])])
    gains = [percent(row["gain"]) for row in found["steered"][::3]]  # 0, half, all
    told = f"Attention forced: what {found['steered'][0]['n_prompts']} answers are off by (mean)"
    return [numbers(["share of those off by +1", *gains], rows, told)]


def seeds(f: Findings) -> Content:
    """Three models that differ by their seed alone, as grids of heads with their roles."""
    roles = [[kind for kind, heads in row["groups"].items() if heads] for row in f.seeds]
    occurring = ", ".join(f"{words(kind)} in {n}" for kind, n in Counter(sum(roles, [])).items())
    caption = glossed(
        "The default training from other random starts; pictured: seeds 0 to 2, not picked. "
        "Number: an [FI head]’s [r] in %. Same colours, other places: head 2.3 of one model is not "
        "2.3 of another."
        " Dots: a head’s roles. Other direct heads move the answer too; indirect ones through MLPs "
        f"or heads; others bring FI heads what they name. In {len(f.seeds)} models: {occurring}."
    )
    ends = [parse(head) for row in f.seeds for head in members(row)]
    n_layers, n_heads = (max(end) + 1 for end in zip(*ends))  # of models of one shape
    grids = h("div", [roles_map(row, n_layers, n_heads) for row in f.seeds[:3]], class_="maps")
    colours = {kind: words(kind) for kind in sum(roles[:3], [])}
    return [figure(f, [colour_key(colours), grids], caption, "results/seeds.json")]


def roles_map(row: Circuit, n_layers: int, n_heads: int) -> Markup:
    """A model's heads, the last layer on top, coloured by what they do."""
    rows: list[list[Any]] = []
    for layer in reversed(range(n_layers)):
        cells = []
        for head in (f"{layer}.{index}" for index in range(n_heads)):
            roles = [kind for kind, heads in row["groups"].items() if head in heads]
            shown = signed(100 * row["fi_r"][head]) if head in row["fi_r"] else ""
            tip = f"head {head}: {groups_of(row, head) or 'no part of the circuit'}"
            dots = [h("i", class_=role) for role in roles] if len(roles) > 1 else None
            cells.append(h("td", shown, dots, data_tip=tip, class_=" ".join(["role", *roles])))
        rows.append([str(layer), *cells])
    columns = [f"h{index}" for index in range(n_heads)]
    return pictures.heat_map(f"Seed {row['seed']}", "layer", columns, rows)


def check(f: Findings) -> Content:
    """The checklist: a verdict, and every check, those that passed last; or `limits` alone."""
    if not f.check:
        return [content(f, limits, "circuit fi"), content(f, check, "check")]
    rows = sorted(f.check["checks"], key=lambda row: bool(row["verdict"] == "pass"))
    checks = h("div", list(map(checklist.checked, rows)), class_="checks")
    told = "Each check asks prompts of its own: a share may differ a little from that above."
    verdict = content(f, checklist.verdict, "")
    return [h("p", told, class_="lead"), verdict, checks, source(f, "check.json")]


def limits(f: Findings) -> Content:
    """What this page shows of what may go wrong, what to watch, and when to act."""
    swapped = swaps(f.circuit)[0]
    right = f.circuit["accuracy"]["contrast_prompt"]["contrast"]
    n = f.circuit["accuracy_prompts"]
    heads = f"heads {', '.join(f.fi)}"
    done, low = percent(right, 1), percent(wilson(right, n)[0], 1)
    high, left = percent(swapped["ci"][1], 1), percent(swapped["contrast_acc"], 1)
    watch = f"Watch, on {n} prompts of your own, the share that follows the rule (here {done}; "
    watch += f"with {heads} swapped, {left}). Act when it falls below {low}, or with these swapped "
    watch += f"rises above {high}, the ends of the 95 % intervals here: keep such prompts away, or "
    watch += f"run patch.py anew. That {heads} matter holds for this model alone."
    mixed = h("p", title_of(f, "averaging", "How it mixes two rules was not asked"), ".")
    return [h("p", watch, class_="judgement"), content(f, lambda f: reused(f)[:1], ""), mixed]


def about(f: Findings) -> Content:
    """What the run is, and how the page is made."""
    model = f.circuit.get("model") or named(f.config.get("model", {}))
    diet = f.config.get("diet", {}).get("name", "?")
    known = {"run": f.folders.name, "model": model, "diet": diet}
    known["versions"] = named((f.config or f.circuit).get("versions", {}))
    known["after"] = h("a", "arXiv 2507.09875", href="https://arxiv.org/abs/2507.09875")
    weights = "" if f.unplayable else ", weights included"
    said = f". It holds all it needs{weights}, and asks nothing of any network."
    made = h("p", "This page is made by ", h("code", f.folders.makes("report")), said)
    return [h("dl", [[h("dt", x), h("dd", value)] for x, value in known.items()]), made]


def glossary(f: Findings) -> Content:
    """All terms; a term on the page is described by its `dd`."""
    return [h("dl", [[h("dt", x), h("dd", GLOSSARY[x], id=PLACES[x])] for x in GLOSSARY])]


def named(values: Mapping[str, Any]) -> str:
    """`torch 2.13.0, python 3.11`."""
    return ", ".join(f"{words(name)} {value}" for name, value in values.items())


# (name, plain title, what makes the content, what of Findings it needs)
Sections = tuple[tuple[str, str, Callable[[Findings], Content], str], ...]
SECTIONS: Sections = (
    ("circuit", "Who carries it", graph, "circuit fi"),
    ("path", "Patch a path yourself", path, "circuit"),
    ("proof", "Swapped, and a control", proof, "circuit fi"),
    ("averaging", "What the heads compute", averaging, "circuit fi"),
    ("checklist", "What may go wrong", check, ""),
    ("learned", "While it learned", learned, "metrics"),
    ("seeds", "Other seeds", seeds, "seeds"),
)
DETAILS: Sections = (  # folded, at the end
    ("all-heads", "All heads of the circuit, in a table", heads_table, "circuit fi"),
    ("effects", "Who writes to whom: effect maps", effects, "circuit"),
    ("glossary", "What the words mean", glossary, ""),
    ("about", "About this run and this page", about, ""),
)
LEADS = {  # what a reader should know before the content
    "circuit": "The model is a stack of layers with small parts, [heads|head], that hand on what "
    "they find at other tokens. The [FI heads|FI head] are those that move the answer. [r] is how "
    "far: −100 % is all the way from the new rule back to the plain answer.",
    "path": "Three runs: on the [base] prompt, on the [contrast] prompt, and that again with one "
    "[direct path], in red, as in the base run. Click on a sender in the first, on a receiver in "
    "the third. [F]: the plain answer’s score minus the new one’s; [r]: how far the path moves it.",
}
WITHOUT = {  # what is missing: in words, and the target of make that makes it
    "circuit": ("the circuit has not been traced yet", "patch"),
    "fi": ("no function-induction head was found: the model may not do the task", "train"),
    "metrics": ("there is no metrics.jsonl, which training writes", "train"),
    "check": ("what the checks, which have not been run on this model yet, add to this", "check"),
    "seeds": ("the study of ten seeds is in the repository, not in this package", "dependability"),
}


def content(f: Findings, make: Callable[[Findings], Content], needs: str) -> Markup:
    """A section's content, or a note on what is missing and how to make it."""
    try:
        lacking = [part for part in needs.split() if not getattr(f, part)]
        if not lacking:
            return inside(make(f))
        what, target = WITHOUT[lacking[0]]
    except (LookupError, ValueError, ArithmeticError) as error:
        lacked = str(*error.args[:1]).split("\n")[0][:160]
        for parts, reason in f.circuit.get("missing", {}).items():
            if lacked in parts.split(", "):
                return missing(f"“{lacked}” was not measured: {reason}.")
        file = FILES.get(needs or make.__name__, "circuit.json")
        if make is learned and f.learning:
            file = "learning.json"
        what = f"{file} holds something empty or odd here: {lacked}"
        if isinstance(error, KeyError):
            what = f"{file} lacks “{lacked}”, or has it empty; an older version may have made it"
        target = MADE_BY.get(file, "patch")
    if f.model is None and target in ("train", "check"):
        return missing(f"{what}. That takes a run that make train made.")
    return missing(f"{what}. ", h("code", makes(f, target)), " makes it.")


def missing(*why: Any) -> Markup:
    """A note on what is not on the page, and why."""
    return h("p", h("b", "Not here: "), why, class_="missing")
