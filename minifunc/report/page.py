"""The report as one file: sections, styles, scripts and weights, and the command that writes it."""

import base64
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from minifunc.report.findings import Findings, read
from minifunc.report.html import Markup, h, inside, script_data
from minifunc.report.sections import SECTIONS, claim, content
from minifunc.support.errors import UserError, first_line, run_main
from minifunc.support.files import save_text
from minifunc.support.flags import Parser
from minifunc.support.names import heads_of
from minifunc.support.runs import RESULTS, RunFolders, add_run_flag, chosen_run
from minifunc.support.settings import added_parts

LARGEST = 2_000_000  # bytes; where the weights make it larger, the model plays on its own page
MOST_WEIGHTS = 16_000_000  # a model with more is not played with at all
PROMPT = "<bos> 1 + 1 = 3 ; 2 + 2 = 5 ; 3 + 3 ="  # what the README begins with
# Nothing is fetched from anywhere.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
ODD_LAYOUT = (TypeError, ValueError, AttributeError, IndexError, ArithmeticError, RecursionError)


def asset(name: str) -> Markup:
    """A script, style or piece of HTML that lies beside this file."""
    return Markup(files("minifunc.report").joinpath(name).read_text(encoding="utf-8"))


def document(title: str, header: Markup, main: Sequence[Markup], scripts: Sequence[Markup]) -> str:
    """A whole page."""
    head = h(
        "head",
        h("meta", charset="utf-8"),
        h("meta", http_equiv="Content-Security-Policy", content=POLICY),
        h("meta", name="viewport", content="width=device-width, initial-scale=1"),
        h("title", title),
        h("style", asset("style.css")),
    )
    body = h("body", header, h("main", main, id="main"), h("script", asset("page.js")), scripts)
    return "<!doctype html>\n" + h("html", head, body, lang="en") + "\n"


def header(f: Findings, links: dict[str, str]) -> Markup:
    """The bar that stays on top: the run's name, links to the sections, light or dark."""
    items = [h("li", h("a", words, href=target)) for target, words in links.items()]
    bar = h(
        "header",
        h("p", "minifunc", h("span", f.folders.name), class_="brand"),
        h("nav", h("ul", items), aria_label="Sections"),
        h("button", "Dark", id="theme", type="button", aria_pressed="false"),
    )
    return inside([h("a", "To the content", href="#main", class_="skip"), bar])


def section(name: str, title: str, inner: Markup) -> Markup:
    return h("section", h("h2", title), inner, id=name, aria_label=title)


def playground(f: Findings) -> list[Markup]:
    """The scripts in which the model runs, and what they read: its shape and its weights."""
    state = f.model.state_dict()
    arrays = {name: weight.detach().float().cpu().numpy() for name, weight in state.items()}
    groups = f.circuit.get("groups", {})
    data = {
        "model": f.config["model"] | vars(f.model.cfg),
        "vocabulary": f.names,
        "layout": [[name, array.size] for name, array in arrays.items()],
        "groups": {name: heads_of(heads) for name, heads in groups.items()},
        "prompt": PROMPT,
    }
    values = b"".join(array.astype("<f4").tobytes() for array in arrays.values())
    weights = Markup(base64.b64encode(values).decode("ascii"))
    return [
        script_data("model-data", data),
        h("script", weights, type="text/plain", id="weights"),
        *(h("script", asset(name)) for name in ("model.js", "prompts.js", "playground.js")),
    ]


def report(f: Findings, played: Markup, scripts: Sequence[Markup] = ()) -> str:
    """The page of all sections; `played`: what stands where the model plays."""
    heading = h("h1", "Function induction, seen from inside")
    said = content(f, claim, "circuit")
    opening = h("section", heading, said, id="claim", aria_label="The claim")
    parts = [("playground", "Playground", played)]
    parts += [(name, title, content(f, make, needs)) for name, title, make, needs in SECTIONS]
    links = {f"#{name}": name.capitalize() for name, *_ in parts}
    main = [opening, *(section(*part) for part in parts)]
    return document(f"minifunc: {f.folders.name}", header(f, links), main, scripts)


def build(f: Findings) -> dict[str, str]:
    """The files of a report: {"report.html": …} and, of a large model, "playground.html"."""
    n_weights = sum(weight.numel() for weight in f.model.parameters())
    unknown = added_parts(f.model.cfg)
    if unknown or n_weights > MOST_WEIGHTS:
        reason = f"this model has {n_weights:,} weights, too many for a page."
        if unknown:
            reason = f"the page cannot run a model with {', '.join(unknown)}."
        missing = h("p", h("b", "Not here: "), reason, class_="missing")
        return {"report.html": report(f, missing)}
    played, scripts = asset("playground.html"), playground(f)
    whole = report(f, played, scripts)
    if len(whole.encode(errors="replace")) <= LARGEST:
        return {"report.html": whole}
    link = h("a", "on a page of its own", href="playground.html")
    said = h("p", "With its weights this page would be large, so the model runs ", link, ".")
    bar = header(f, {"report.html": "Report"})
    main = [section("playground", "Playground", played)]
    apart = document(f"minifunc playground: {f.folders.name}", bar, main, scripts)
    return {"report.html": report(f, said), "playground.html": apart}


def write(folders: RunFolders, experiments: Path) -> None:
    """Reads a run, and writes and names the files of its report."""
    found = read(folders, experiments)
    folders.to_write("report.html")
    try:
        pages = build(found)
    except ODD_LAYOUT as error:
        fault = f"a file of another layout than ours: {type(error).__name__}: {first_line(error)}"
        raise UserError(f"{folders.results} holds {fault}") from None
    folders.announce()
    for name, text in pages.items():
        save_text(folders.results / name, text)
        print(f"{folders.results / name} ({len(text.encode(errors='replace')) / 1e6:.1f} MB)")
    print("next: open it in a browser")


def main(argv: list[str] | None = None) -> int:
    """The command. Returns the exit code: 0, or 2 for an input that cannot be used."""

    def work() -> int:
        parser = Parser("python -m minifunc.report", "Makes a run's report.html.")
        add_run_flag(parser)
        told = "folder that holds emergence.json (default: the repository's results/)"
        parser.add_argument("--results", type=Path, default=RESULTS, help=told)
        arguments = parser.parse_args(argv)
        write(chosen_run(arguments), arguments.results)
        return 0

    return run_main(work)
