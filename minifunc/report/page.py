"""The report as one file: sections, styles, scripts and weights, and the command that writes it."""

import base64
from importlib.resources import files
from itertools import accumulate
from typing import Any

from minifunc.ablation import all_heads
from minifunc.report.findings import Findings, read
from minifunc.report.glossary import glossed
from minifunc.report.html import Markup, details, h, inside, script_data
from minifunc.report.sections import DETAILS, LEADS, SECTIONS, claim, content, missing
from minifunc.report.titles import PUZZLE, puzzle, title_of
from minifunc.support.errors import UserError, command, first_line
from minifunc.support.files import save_text
from minifunc.support.flags import Parser
from minifunc.support.runs import DEFAULT_RUN, RunFolders, add_run_flag, chosen_run, traced_alone

# Each sees those before it.
MODEL_SCRIPTS = ["model", "patcher", "prompts", "ui", "playground", "circuit", "path", "story"]
# Nothing is fetched from anywhere.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
ODD_LAYOUT = (TypeError, ValueError, AttributeError, IndexError, ArithmeticError, RecursionError)


def asset(name: str) -> Markup:
    """A script, style or piece of HTML that lies beside this file."""
    return Markup(files("minifunc.report").joinpath(name).read_text(encoding="utf-8"))


def header(name: str, links: dict[str, str]) -> Markup:
    """The bar that stays on top: the run's name, links to the sections, light or dark."""
    items = [h("li", h("a", words, href=target)) for target, words in links.items()]
    bar = h(
        "header",
        h("p", "minifunc", h("span", name), class_="brand"),
        h("nav", h("ul", items), aria_label="Sections"),
        h("button", "Dark", id="theme", type="button"),
    )
    return inside([h("a", "To the content", href="#main", class_="skip"), bar])


def playground(f: Findings) -> list[Markup]:
    """The scripts in which the model runs, and what they read: its shape and its weights."""
    state = f.model.state_dict()
    arrays = {name: weight.detach().float().cpu().numpy() for name, weight in state.items()}
    ends = accumulate(array.size for array in arrays.values())
    groups, every = f.circuit.get("groups", {}), all_heads(f.model.cfg)
    data = {
        "model": f.config["model"] | vars(f.model.cfg),
        "vocabulary": f.names,
        "layout": [[name, end - arrays[name].size, end] for name, end in zip(arrays, ends)],
        "groups": {name: [x for x in every if x in heads] for name, heads in groups.items()},
        "r": f.circuit.get("effects", {}).get("logits", {}).get("heads", []),
        "attention": f.circuit.get("attention", {}),
        "prompt": PUZZLE,
    }
    values = b"".join(array.astype("<f4").tobytes() for array in arrays.values())
    weights = Markup(base64.b64encode(values).decode("ascii"))
    return [
        script_data("model-data", data),
        h("script", weights, type="text/plain", id="weights"),
        *(h("script", asset(f"{name}.js")) for name in MODEL_SCRIPTS),
    ]


def build(f: Findings) -> str:
    """The whole page."""
    played, scripts = missing(f.unplayable), [h("script", asset("ui.js"))]
    if not f.unplayable:
        played, scripts = asset("playground.html"), playground(f)
    scripts.append(h("script", asset("learned.js")))
    parts: dict[str, tuple[str, Any]] = {"playground": ("Ask it, and swap its heads", played)}
    for name, plain, make, needs in SECTIONS:
        lead = h("p", glossed(LEADS[name]), class_="lead") if name in LEADS else None
        parts[name] = title_of(f, name, plain), [lead, content(f, make, needs)]
    folded = [details(plain, content(f, make, needs), id=x) for x, plain, make, needs in DETAILS]
    parts["details"] = "Details", folded
    heading = h("h1", puzzle(f))
    main = [h("section", heading, content(f, claim, "circuit"), id="claim", aria_label="The claim")]
    for name, (title, inner) in parts.items():
        main.append(h("section", h("h2", title), inner, id=name, aria_label=title))
    head = h(
        "head",
        h("meta", charset="utf-8"),
        h("meta", http_equiv="Content-Security-Policy", content=POLICY),
        h("meta", name="viewport", content="width=device-width, initial-scale=1"),
        h("title", f"minifunc: {f.folders.name}"),
        h("style", asset("style.css")),
    )
    bar = header(f.folders.name, {f"#{name}": name.capitalize() for name in parts})
    body = h("body", bar, h("main", main, id="main"), h("script", asset("page.js")), scripts)
    return "<!doctype html>\n" + h("html", head, body, lang="en") + "\n"


def write(folders: RunFolders) -> None:
    """Reads a run, and writes and names its report."""
    try:
        found, path = read(folders), folders.to_write("report.html")
        text = build(found)
    except ODD_LAYOUT as error:
        fault = f"a file of another layout than ours: {type(error).__name__}: {first_line(error)}"
        raise UserError(f"{folders.results} holds {fault}") from None
    folders.announce()
    save_text(path, text)
    size = len(text.encode(errors="replace"))
    print(f"{path} ({size / 1e6:.1f} MB)", "next: open it in a browser", sep="\n")


@command
def main(argv: list[str] | None = None) -> int:
    parser = Parser("python -m minifunc.report", "Makes a run's report.html.")
    add_run_flag(parser)
    arguments = parser.parse_args(argv)
    run = arguments.run or DEFAULT_RUN
    write(RunFolders(run, run, False) if traced_alone(run) else chosen_run(arguments))
    return 0
