"""The report as one file: sections, styles, scripts and weights put together, and the command that writes it."""

import base64
from importlib.resources import files
from typing import Any

from minifunc.circuit import heads_of
from minifunc.report.findings import HEADLINE, Findings, read
from minifunc.report.html import Markup, h, script_data
from minifunc.report.sections import SECTIONS, claim, content
from minifunc.support.errors import UserError, run_main
from minifunc.support.files import save_text
from minifunc.support.flags import Parser
from minifunc.support.runs import add_run_flag, chosen_run

LARGEST = 2_000_000  # bytes of report.html; where the weights would make it larger, the playground becomes a file of its own
MOST_WEIGHTS = 16_000_000  # and beyond so many it is left out
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"  # nothing is fetched from anywhere


def asset(name: str) -> Markup:
    return Markup(files("minifunc.report").joinpath(name).read_text(encoding="utf-8"))


def document(f: Findings, title: str, body: list[Any], scripts: list[Any]) -> str:
    head = h(
        "head",
        h("meta", charset="utf-8"),
        h("meta", http_equiv="Content-Security-Policy", content=POLICY),
        h("meta", name="viewport", content="width=device-width, initial-scale=1"),
        h("title", title),
        h("style", asset("style.css")),
    )
    return "<!doctype html>\n" + h("html", head, h("body", body, scripts), lang="en") + "\n"


def header(f: Findings, links: list[tuple[str, str]]) -> list[Any]:
    toggle = h("button", "Dark", id="theme", type="button", aria_pressed="false")
    nav = h(
        "nav",
        h("ul", [h("li", h("a", words, href=target)) for target, words in links]),
        aria_label="Sections",
    )
    return [
        h("a", "To the content", href="#main", class_="skip"),
        h("header", h("p", "minifunc", h("span", f.run), class_="brand"), nav, toggle),
    ]


def playground(f: Findings) -> tuple[Markup, list[Any]]:
    """The section in which the model runs, and the scripts and data behind it."""
    state = {
        name: weight.detach().float().cpu().contiguous()
        for name, weight in f.model.state_dict().items()
    }
    groups = f.circuit["groups"] if f.circuit and isinstance(f.circuit.get("groups"), dict) else {}
    data = {
        "model": f.config["model"] | vars(f.model.cfg),
        "vocabulary": f.vocabulary,
        "layout": [[name, weight.numel()] for name, weight in state.items()],
        "groups": {str(name): heads_of(heads) for name, heads in groups.items()},
        "prompt": HEADLINE,
    }
    weights = base64.b64encode(
        b"".join(weight.numpy().astype("<f4").tobytes() for weight in state.values())
    ).decode("ascii")
    scripts = [
        script_data("model-data", data),
        h("script", Markup(weights), type="text/plain", id="weights"),
        *(h("script", asset(name)) for name in ("model.js", "prompts.js", "playground.js")),
    ]
    return h(
        "section",
        h("h2", "Playground"),
        asset("playground.html"),
        id="playground",
        aria_label="Playground",
    ), scripts


def build(f: Findings) -> dict[str, str]:
    """The files of a report: {"report.html": …} and, of a large model, "playground.html"."""
    page = h("script", asset("page.js"))
    sections = [
        h("section", h("h2", title), content(f, make), id=name, aria_label=title)
        for name, title, make in SECTIONS
    ]
    opening = h(
        "section",
        h("h1", "Function induction, seen from inside"),
        content(f, claim),
        id="claim",
        aria_label="The claim",
    )
    links = [
        (f"#{name}", name.capitalize())
        for name in ("playground", *(name for name, _, _ in SECTIONS))
    ]
    size = sum(weight.numel() for weight in f.model.parameters())
    if size > MOST_WEIGHTS:
        away = h(
            "section",
            h("h2", "Playground"),
            h(
                "p",
                h("b", "Not here: "),
                f"this model has {size:,} weights, too many for a page.",
                class_="missing",
            ),
            id="playground",
        )
        return {
            "report.html": document(
                f,
                f"minifunc: {f.run}",
                [*header(f, links), h("main", opening, away, sections, id="main")],
                [page],
            )
        }
    played, scripts = playground(f)
    whole = document(
        f,
        f"minifunc: {f.run}",
        [*header(f, links), h("main", opening, played, sections, id="main")],
        [page, *scripts],
    )
    if len(whole.encode()) <= LARGEST:
        return {"report.html": whole}
    away = h(
        "section",
        h("h2", "Playground"),
        h(
            "p",
            "With its weights this page would be large, so the model runs ",
            h("a", "on a page of its own", href="playground.html"),
            ".",
        ),
        id="playground",
    )
    apart = document(
        f,
        f"minifunc playground: {f.run}",
        [*header(f, [("report.html", "Report")]), h("main", played, id="main")],
        [page, *scripts],
    )
    return {
        "report.html": document(
            f,
            f"minifunc: {f.run}",
            [*header(f, links), h("main", opening, away, sections, id="main")],
            [page],
        ),
        "playground.html": apart,
    }


def main(argv: list[str] | None = None) -> int:
    def work() -> int:
        parser = Parser(prog="python -m minifunc.report", description="Makes a run's report.html.")
        add_run_flag(parser)
        parser.add_argument(
            "--results",
            default="results",
            help="folder of the experiments' results, of which emergence.json is drawn (default: %(default)s)",
        )
        arguments = parser.parse_args(argv)
        folders = chosen_run(arguments)
        found = read(str(folders.run), arguments.results, folders.results)
        found.run = folders.name
        folder = folders.to_write("report.html").parent
        try:
            pages = build(found)
        except (
            TypeError,
            ValueError,
            AttributeError,
            IndexError,
            ArithmeticError,
            RecursionError,
        ) as error:
            raise UserError(
                f"{folder} holds a file of another layout than ours: {type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"
            ) from None
        folders.announce()
        for name, text in pages.items():
            save_text(folder / name, text)
            print(f"{folder / name} ({len(text.encode()) / 1e6:.1f} MB)")
        return 0

    return run_main(work)
