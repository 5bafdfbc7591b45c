import copy
import functools
import html
import json
import operator
import os
import re
import shutil
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest

import patch
import tasks
import train
from commands import check
from minifunc.model import ModelConfig, Transformer
from minifunc.report import checklist, findings, page, pictures, sections, titles
from minifunc.report.findings import read
from minifunc.report.glossary import GLOSSARY, PLACES
from minifunc.report.html import Markup, h, script_data, signed
from minifunc.report.learned import since
from minifunc.report.titles import PUZZLE, title_of
from minifunc.support.errors import UserError
from minifunc.support.files import save_json, save_lines, save_tensors
from minifunc.support.runs import RESULTS, RunFolders, load_run, weights_hash
from minifunc.support.settings import described
from tests.test_patch import ANY_MODEL, FAST

ALL_SECTIONS = (*sections.SECTIONS, *sections.DETAILS)


def metrics(step):
    """A line of metrics.jsonl."""
    shares = {"2": 0.1 * step, "8": 0.2 * step}
    accuracy = {"addition": {str(k): shares for k in (-1, 0, 1)}}
    return {"step": step, "seconds": 1.0 * step, "loss": 3.0 / step, "accuracy": accuracy}


def some_writings(language, model, heads, *_):
    """What `patch.writings` takes seconds for; of it, the part that is drawn."""
    vector = [[0.1 * (x - y) for y in range(10)] for x in range(10)]
    return {"function_vectors": dict.fromkeys([*heads, "all"], vector)}


FEW = {
    "N_COUNTED": 20,
    "N_EVALUATED": 10,
    "N_SEARCH": 5,
    "N_DRAWS": 3,
    "REUSED": [("addition", 1), ("caesar", -1), ("base_addition", 8)],
    "accuracy": lambda logits, answers: 1.0,
    "writings": some_writings,
}


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """An untrained run with a circuit and a check, as if it could do the task, and as if there
    were other heads beside the FI heads."""
    run = studied(tmp_path_factory.mktemp("run"))
    rewrite(run, lambda circuit: set_control_heads(circuit, 2.0))
    return run


def set_control_heads(circuit, n_heads):
    for row in circuit["evaluation"]["ablation"]:
        if row["ablated"] == "random_same_layers":
            row["n_heads"] = n_heads


def rewrite(run, change, name="circuit.json"):
    """Changes what a JSON file of a run holds."""
    found = json.loads((run / name).read_text())
    change(found)
    save_json(run / name, found)


def studied(out, **changes):
    shape = dict(n_layers=2, n_heads=2, d_model=16, d_head=8, d_mlp=16)
    cfg = ModelConfig(d_vocab=len(tasks.VOCABULARY), **shape | changes)
    save_tensors(out / "model.pt", Transformer(cfg).state_dict())
    config = described(cfg, train.TrainConfig(), tasks.DIETS["strict"], tasks.VOCABULARY)
    save_json(out / "config.json", config)
    save_lines(out / "metrics.jsonl", [metrics(step) for step in (1, 2, 4)])
    with pytest.MonkeyPatch.context() as few:
        for name, value in FEW.items():
            few.setattr(patch, name, value)
        for name in ("N_PROMPTS", "N_EACH"):
            few.setattr(check, name, 10)
        assert patch.main(["--run", str(out), *FAST, *ANY_MODEL]) == 0
        assert check.main(["--run", str(out), "--device", "cpu"]) in (0, 1)
    return out


@pytest.fixture
def run(traced, tmp_path):
    return shutil.copytree(traced, tmp_path / "run")


def found_in(run):
    return read(RunFolders(run, run, False))


def made(run):
    assert page.main(["--run", str(run)]) == 0
    return (run / "report.html").read_text()


class Elements(HTMLParser):
    """Tags with their attributes; complains where they are not nested."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open, self.texts = [], [], {}
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in ("meta", "input", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        if self.open:
            self.texts[self.open[-1]] = data

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


def test_the_report_has_every_section_and_nothing_is_missing(run):
    text = made(run)
    ids = [attributes["id"] for _, attributes in Elements(text).found if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {"claim", "playground", *(name for name, *_ in ALL_SECTIONS)} <= set(ids)
    assert "Not here:" not in re.sub(r"<noscript>.*?</noscript>", "", text, flags=re.DOTALL)


def test_nothing_is_fetched_from_anywhere(run):
    text = made(run)
    elements = Elements(text)
    for _, attributes in elements.found:
        assert "src" not in attributes and not any(name.startswith("on") for name in attributes)
        assert re.match("#|https://arxiv.org/", attributes.get("href", "#"))
    assert not elements.all("link") and not elements.all("img")
    assert not any(word in text for word in ("url(", "@import", "fetch("))
    assert "default-src 'none'" in elements.all("meta")[1]["content"]


def test_it_can_be_used_by_keyboard_and_screen_reader(run):
    text = made(run)
    elements = Elements(text)
    assert elements.all("html")[0]["lang"] == "en"
    assert len(elements.all("main")) == len(elements.all("h1")) == 1
    assert all(element["aria-label"] for tag in ("svg", "nav") for element in elements.all(tag))
    levels = [int(tag[1]) for tag, _ in elements.found if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:]))
    assert {label["for"] for label in elements.all("label") if "for" in label} == {"prompt", "base"}
    figures = text.count('class="source">from') - 2  # the claim and the checks have a source too
    assert len(elements.all("figcaption")) == len(elements.all("figure")) == figures


def test_the_sections_tell_the_story_in_order_and_details_come_last(run):
    elements = Elements(made(run)).found
    ids = [attributes["id"] for tag, attributes in elements if tag == "section"]
    story = ["circuit", "path", "proof", "averaging", "checklist", "learned", "seeds"]
    assert ids[:2] == ["claim", "playground"] and ids[-1] == "details"
    assert [name for name in ids if name in story] == story
    after = [attributes.get("id") for _, attributes in elements]
    folded = ["all-heads", "effects", "glossary", "about"]
    assert [name for name in after[after.index("details") :] if name in folded] == folded


def changed(whole, path, value):
    """A copy of nested data that holds another value in one place."""
    whole = copy.deepcopy(whole)
    at = whole
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    return whole


FI_SWAPPED = ("evaluation", "ablation", 0, "contrast_acc")
SAYS = [  # what changes: part of the findings, path in it, value; then the section and its title
    (
        "circuit",
        ("groups", "function_induction"),
        ["1.1"],
        "circuit",
        "through 1 of 4 heads, 1.1",
    ),
    (
        "circuit",
        ("groups", "function_induction"),
        ["0.1", "1.0", "1.1"],
        "circuit",
        " 3 of 4 heads",
    ),
    ("circuit", ("effects", "logits", "heads", 1, 0), -83.2, "circuit", "1.0 most$"),
    ("circuit", FI_SWAPPED, 0.123, "proof", r"12\.3 % of prompts still follow"),
    ("circuit", ("averaging", "mixtures", 0, "unseen_offset_share"), 0.31, "averaging", "31 % of "),
    ("circuit", ("averaging", "mixtures", 0, "r2", "attention"), 2, "averaging", "heads average"),
    (
        "circuit",
        ("averaging", "mixtures", 0, "unseen_offset_share"),
        0.4,
        "averaging",
        "^Shown −1 and",
    ),
    ("check", ("checks", 0, "verdict"), "pass", "checklist", " 2 of 13 checks pass"),
    ("learning", ("looks", 2, "off_by_one"), 0.2, "learned", "^From step 9 on, 50 % or more"),
    ("seeds", (0, "groups", "function_induction"), [], "seeds", "^9 of 10 models"),
    ("seeds", (1, "groups", "function_induction"), ["1.1"], "seeds", "heads, 1 to 5 each"),
]


@pytest.mark.parametrize("part, path, value, section, title", SAYS)
def test_a_title_says_what_the_files_say(run, part, path, value, section, title):
    found = found_in(run)
    found.circuit["groups"]["function_induction"] = ["1.0", "1.1"]
    found.circuit["averaging"]["mixtures"][0]["r2"] = {"attention": 0.5, "last": 0.7}
    for index, row in enumerate(found.check["checks"]):
        row["verdict"] = "pass" if index == 1 else "fail"
    found.learning = {"looks": looks(), "criteria": {"solves": 0.5}}
    before = title_of(found, section, "plain")
    setattr(found, part, changed(getattr(found, part), path, value))
    after = title_of(found, section, "plain")
    assert re.search(title, after) and after != before
    setattr(found, part, {} if isinstance(getattr(found, part), dict) else [])
    found.metrics = []
    assert title_of(found, section, "plain") == "plain"


def test_heads_average_where_attention_foretells_best_and_better_than_nothing(run):
    found = found_in(run)
    for attention, last, says in ((0.5, 0.3, True), (0.3, 0.5, False), (-0.1, -0.7, False)):
        found.circuit["averaging"]["mixtures"][0]["r2"] = {"attention": attention, "last": last}
        title = title_of(found, "averaging", "plain")
        assert title.startswith("The heads average") == says and "mixed" in title


@pytest.mark.parametrize(
    "answer, diet, heading",
    [
        ("7", "default", "3+3=7: a rule that nobody taught"),
        ("7", "no-such", "This model says 7"),
        ("6", "default", "This model says 6"),
        (None, "default", "Function induction"),
    ],
)
def test_the_heading_is_what_the_model_makes_of_the_puzzle(run, monkeypatch, answer, diet, heading):
    found = found_in(run)
    shifts = {"default": [-1, 2], "no-such": [1]}[diet]
    found.config["diet"] = {"shifts": shifts}
    monkeypatch.setattr(found, "answer", lambda prompt: answer)
    assert heading in Elements(page.build(found)).texts["h1"]


def test_the_model_is_asked_the_puzzle(run):
    found = found_in(run)
    prompt = tasks.encode("1+1=3, 2+2=5, 3+3=")
    wanted = found.names[int(found.model(prompt[None])[0, -1].argmax())]
    assert found.answer(PUZZLE.split()) == wanted
    assert found.answer(["no", "such", "token"]) is None


def test_every_term_is_defined_once_and_used(run):
    elements = Elements(made(run))
    terms = [attributes for _, attributes in elements.found if attributes.get("class") == "term"]
    meanings = Counter(attributes.get("id") for attributes in elements.all("dd"))
    assert all(term["tabindex"] == "0" for term in terms)
    assert {term["data-tip"] for term in terms} == set(GLOSSARY.values())
    assert {term["aria-describedby"] for term in terms} == set(PLACES.values())
    assert all(meanings[place] == 1 for place in PLACES.values())


def test_shares_that_count_the_same_agree(run):
    """The claim, the title and the bars quote the same prompts; other draws are told apart."""
    circuit = json.loads((run / "circuit.json").read_text())
    for path, value in (
        (("accuracy", "contrast_prompt", "contrast"), 0.876),
        (("evaluation", "ablation", 0, "contrast_acc"), 0.065),
    ):
        circuit = changed(circuit, path, value)
    for row in circuit["reuse"]:  # a smaller draw
        row["contrast_acc"] = 0.777 if (row["task"], row["k"]) == ("addition", 1) else 0.5
    save_json(run / "circuit.json", circuit)
    text = made(run)
    assert "77.7 %" not in text
    assert text.count("87.6 %") == 4  # claim, large number, bar and what it tells
    assert text.count("6.5 %") == 6  # and in the title of the section, twice: for screen readers
    assert "Each check asks prompts of its own" in text


def test_averaging_shows_how_often_each_amount_is_answered_and_its_control(run):
    found = found_in(run)
    mixture = found.circuit["averaging"]["mixtures"][0]
    mixture["answered"], mixture["hits"]["attention"] = {"0": 0.84, "-1": 0.16}, 0.84
    found.circuit["averaging"]["control"] = [{"off_by": -0.17}]
    drawn = sections.content(found, sections.averaging, "circuit fi")
    assert re.search('class="pos" style="--v:42%">84 %', drawn)
    assert re.search('class="pos marked" style="--v:8%">16 %', drawn)
    assert "84 % (78 % to 88 %)" in drawn  # Wilson, 200 prompts
    assert re.search("other heads</th><td>−0.17", drawn)
    found.circuit["averaging"]["control"] = []
    drawn = sections.content(found, sections.averaging, "circuit fi")
    assert "other heads" not in drawn and "function-induction heads</th><td>" in drawn
    del found.circuit["averaging"]
    lacking = sections.content(found, sections.averaging, "circuit fi")
    assert "lacks “averaging”" in lacking and f"make patch OUT={run}" in lacking


def test_rules_that_the_nearest_example_foretells_better_are_named(run):
    found = found_in(run)
    for row, near in zip(found.circuit["averaging"]["rules"], (0.9, 0.3, 0.6)):
        row["r2"] = {"attention": 0.5, "nearest": near}
    found.circuit["averaging"]["rules"][3:] = []
    names = [row["rule"] for row in found.circuit["averaging"]["rules"]]
    drawn = sections.content(found, sections.averaging, "circuit fi")
    assert "Of 3 rules that add no fixed amount, the most similar example foretells 2" in drawn
    named = (
        f"{names[0]} (R² +0.900, by attention +0.500), {names[2]} (R² +0.600, by attention +0.500)."
    )
    assert named in drawn and names[1] not in drawn


def test_the_control_says_in_the_open_where_it_is_weakest(run):
    found = found_in(run)
    rows = found.circuit["reuse"]
    for four, kept in enumerate([0.1, 0.9, 0.3, 0.8]):  # the first is of what was traced
        rows[4 * four + 1]["contrast_acc"], rows[4 * four + 3]["contrast_acc"] = 0.95, kept
    told = sections.content(found, sections.proof, "circuit fi").split("<details>")[0]
    assert (
        "weakest for base 8, carry: with other heads swapped, 30 % of prompts still follow" in told
    )
    assert "with none swapped, 95 %." in told
    fi, control = titles.swaps(found.circuit)
    n = found.circuit["accuracy_prompts"]
    assert f"Shares of {n} prompts (the control: {control['n_prompts']}) answered plainly" in told
    found.circuit["evaluation"]["ablation"].remove(control)
    assert f"Shares of {n} prompts answered" in sections.content(found, sections.proof, "")


def test_where_no_random_circuits_were_tried_none_are_told_of(run):
    found = found_in(run)
    (alone, *_) = found.circuit["evaluation"]["circuits"]
    alone["random_circuits"], alone["heads"] = (
        {"mean": 0.123, "overlap": 0.69},
        ["0.0", "1.0", "1.1"],
    )
    drawn = section(sections.content(found, sections.claim, ""), None)
    told = "of the effect stays if all but the circuit’s 3 heads are swapped"
    assert f"{told}; 0.12 if all but 3 drawn at random (69 % of them these)" in drawn
    del alone["random_circuits"]
    drawn = section(sections.content(found, sections.claim, ""), None)
    assert told in drawn and "at random" not in drawn and "nan" not in drawn


def test_seeds_side_by_side_and_a_package_without_results_says_so(run, monkeypatch, tmp_path):
    found = found_in(run)
    drawn = sections.content(found, sections.seeds, "seeds")
    first = json.loads((RESULTS / "seeds.json").read_text())[0]
    assert drawn.count("<table") == 3 and drawn.count("<td data-tip") == 3 * 4 * 6
    for head, r in first["fi_r"].items():
        assert re.search(f'head {head}: function induction.*?">{signed(100 * r)}<', drawn)
    assert "function induction in 10, other direct in 8" in drawn and "consolidation" not in drawn
    swatches = re.findall('class="swatch (.*?)"', drawn)  # of the three models, pink in none
    assert len(swatches) == 5 and all(
        f'<i class="{role}">' in drawn or f' {role}"' in drawn for role in swatches
    )
    roles = [sum(head in heads for heads in first["groups"].values()) for head in ("2.1", "3.2")]
    for head, dots in zip(("2.1", "3.2"), roles):  # a head of one role has no dot
        cell = re.search(f'<td data-tip="head {head}:.*?</td>', drawn)[0]
        assert cell.count("<i ") == (dots if dots > 1 else 0)
    assert roles[0] > 1 == roles[1]
    monkeypatch.setattr("minifunc.report.findings.RESULTS", tmp_path)
    lacking = sections.content(found_in(run), sections.seeds, "seeds")
    assert "in the repository" in lacking and "<code>make dependability</code>" in lacking


def test_a_heat_map_shows_the_number_the_file_holds_with_its_sign(run):
    circuit = json.loads((run / "circuit.json").read_text())
    heads = circuit["effects"]["logits"]["heads"]
    heads[1][0], heads[0][1] = -0.4321, 0.25
    (run / "circuit.json").write_text(json.dumps(circuit))
    text = made(run)
    for tip, sign, size, shown in (
        (r"1\.0 → logits: r = −43\.2 %", "neg", 66, "−43"),
        (r"0\.1 → logits: r = \+25\.0 %", "pos", 50, r"\+25"),
    ):
        look = f'class="{sign}[^"]*" style="--v:{size}%"'
        assert re.search(f'<td data-tip="{tip}" tabindex="-1" {look}>{shown}</td>', text)


def test_the_scale_is_centred_on_0_and_even():
    scale = pictures.Scale(2)
    shown = [scale.shade(value)["style"] for value in (0, 1, 5)]
    assert shown == ["--v:0%", "--v:50%", "--v:100%"]
    assert scale.shade(-1) == scale.shade(1) | {"class_": "neg"}


def test_a_report_is_made_of_a_run_alone_and_says_how_to_make_the_rest(run):
    for name in ("circuit.json", "check.json", "metrics.jsonl"):
        (run / name).unlink()
    text = made(run)
    for command in ("make patch", "make check", "make train"):
        assert f"{command} OUT={run}" in text
    lacking = [name for name, _, _, needs in ALL_SECTIONS if needs not in ("", "seeds")]
    # these, the claim, and the note for those without JavaScript
    # and, for the checklist, that there are neither checks nor a circuit
    assert text.count("Not here:") == len(lacking) + 4 > 9 and "playground" in text


def keys_of(found, path=()):
    """The path to each list or dictionary that a file holds, three levels deep. The
    first of a list, and two of the receivers, stand for all."""
    parts = found.items() if isinstance(found, dict) else enumerate(found[:1])
    for key, part in list(parts)[: 2 if path[-1:] == ("effects",) else None]:
        if isinstance(part, (dict, list)) and len(path) < 3 and key not in UNREAD:
            yield (*path, key)
            yield from keys_of(part, (*path, key))


def emptied(found, path):
    """A copy of what a file holds, with one of its lists or dictionaries empty."""
    return changed(found, path, type(functools.reduce(operator.getitem, path, found))())


LEARNING = {"prompt": "<bos> =", "criteria": {"solves": 0.5, "strong": 0.1, "looks_at_answers": 0}}
SECTIONS_OF = {  # file: the sections that may be lost with a key of it
    "circuit": {"claim", "circuit", "proof", "averaging", "all-heads", "effects", "checklist"},
    "check": {"checklist"},
    "learning": {"learned"},
    "seeds": {"seeds"},
}


@pytest.mark.parametrize("part", SECTIONS_OF)
def test_what_is_empty_in_a_file_costs_its_own_sections_alone(run, part):
    found, lost = found_in(run), set()
    found.learning, found.seeds = {**LEARNING, "looks": looks()}, found.seeds[:2]
    whole = getattr(found, part)
    for path in keys_of(whole):
        setattr(found, part, findings.filled(emptied(whole, path)))
        for name, _, make, needs in (("claim", "", sections.claim, "circuit"), *ALL_SECTIONS):
            text = sections.content(found, make, needs)
            if "Not here:" in text:
                lost.add(name)
                assert re.search("<code>make .*|was not measured", text), (path, text)
        assert all(title_of(found, name, "plain") for name in titles.FINDINGS)
    assert len(SECTIONS_OF[part]) / 2 < len(lost) and lost <= SECTIONS_OF[part]


def test_a_page_is_made_with_an_empty_part_and_names_it(run):
    rewrite(run, lambda circuit: circuit["averaging"].update(mixtures=[], rules=[]))
    text = made(run)
    assert "circuit.json lacks “mixtures”, or has it empty" in section(text, "averaging")
    assert text.count("Not here:") == 2  # and the note for those without JavaScript


def test_a_head_that_the_model_lacks_is_named_where_heads_are_told_of(run):
    rewrite(run, lambda circuit: circuit["groups"]["shown_answer"].append("7.7"))
    text = made(run)
    for name in ("claim", "circuit", "proof", "averaging", "all-heads", "effects", "checklist"):
        assert "`groups` names '7.7', which is no head of this model" in section(text, name)
    assert "Does a rule shown on sums stay with sums?" in section(text, "checklist")
    assert "Not here: circuit.json" in section(text, "checklist")
    assert "7.7" not in re.search('id="model-data">(.*?)<', text)[1]


def test_a_model_without_a_circuit_is_told_so(run):
    assert patch.main(["--run", str(run), *FAST]) == 0  # at the usual thresholds it has none
    text = made(run)
    assert "no function-induction head was found" in text
    assert "No head was found that carries the rule" in text
    titles = Elements(text).all("section")
    assert "Who carries it" in [element["aria-label"] for element in titles]


def test_the_run_and_what_was_found_may_be_in_two_folders(run, tmp_path):
    found = tmp_path / "found"
    found.mkdir()
    for name in ("circuit.json", "check.json"):
        (run / name).rename(found / name)
    page.write(RunFolders(run, found, False))
    text = (found / "report.html").read_text()
    assert not (run / "report.html").exists()
    assert text.count("Not here:") == 1  # the note for those without JavaScript
    assert f"<span>{run}</span>" in text


def test_a_report_is_refused_where_the_circuit_is_that_of_other_weights(run, capsys):
    circuit = json.loads((run / "circuit.json").read_text())
    model, _ = load_run(run)
    circuit["weights"] = weights_hash(model.state_dict())
    save_json(run / "circuit.json", circuit)
    made(run)
    capsys.readouterr()
    (run / "report.html").unlink()
    model.unembed.W_U[0, 0] += 1
    save_tensors(run / "model.pt", model.state_dict())
    assert page.main(["--run", str(run)]) == 2
    says = capsys.readouterr().err
    assert says.count("\n") == 1 and not (run / "report.html").exists()
    for part in (str(run / "circuit.json"), "other weights", "`make patch`"):
        assert part in says


def test_circuits_of_older_versions_name_no_weights_and_are_shown(run):
    circuit = json.loads((run / "circuit.json").read_text())
    circuit.pop("weights", None)
    save_json(run / "circuit.json", circuit)
    assert "function-induction head" in made(run)


EVIL = "</script><img src=x onerror=alert(1)>\"'`<!--"


def strings(value, path=()):
    """The path to each place of a string (a value, or a key).

    Below the top, the first of a list and the first three keys stand for all.
    """
    if isinstance(value, dict):
        for key in list(value)[: 3 if path else None]:
            yield (*path, ("key", key))
            yield from strings(value[key], (*path, key))
    elif isinstance(value, list) and value:
        yield from strings(value[0], (*path, 0))
    elif isinstance(value, str):
        yield path


def poisoned(value, path):
    value = copy.deepcopy(value)
    at = value
    for step in path[:-1]:
        at = at[step]
    if isinstance(path[-1], tuple):
        at[EVIL] = at.pop(path[-1][1])
    else:
        at[path[-1]] = EVIL
    return value


ABOUT_THE_CIRCUIT = (
    sections.claim,
    sections.graph,
    sections.effects,
    sections.proof,
    sections.heads_table,
    sections.about,
    page.playground,
)
SHOWN_BY = {  # file: the sections that show what it holds
    "circuit": ABOUT_THE_CIRCUIT,
    "check": (sections.check,),
    "config": (sections.claim, sections.about),
}
READ_BY = {  # key of circuit.json: the sections that read below it, where these are not all
    "effects": (sections.effects,),
    "operands_changed": (sections.effects,),
    "evaluation": (sections.claim, sections.proof),
    "reuse": (sections.proof,),
    "attention": (sections.heads_table,),
}
UNREAD = {  # numbers that are checked when the run is read, and what the report doesn't show
    "model",
    "function_vectors",
    "function_vector_scores",
    "reading",
}


def poisons(whole, makes):
    """Each poisoned copy of what a file holds, and the sections that would show it."""
    for path in strings(whole):
        top = path[0] if isinstance(path[0], str) else path[0][1]
        if top not in UNREAD:
            yield poisoned(whole, path), makes if len(path) == 1 else READ_BY.get(top, makes)


@pytest.mark.slow
def test_hostile_strings_are_shown_as_text_wherever_they_stand(run):
    found = found_in(run)
    tried = shown = 0
    for part, all_sections in SHOWN_BY.items():
        whole = getattr(found, part)
        for poison, makes in poisons(whole, all_sections):
            setattr(found, part, poison)
            tried += 1
            for make in makes:
                try:
                    text = sections.content(found, make, "")
                except (TypeError, ValueError, AttributeError, IndexError):
                    continue  # page.main makes one line of it
                shown += "&lt;img" in text or "\\u003cimg" in text
                assert "<img" not in text
        setattr(found, part, whole)
    assert tried > 100 and shown > 20


def test_hostile_names_of_folders_and_tasks_are_shown_as_text(run):
    found = found_in(run)
    found.folders = RunFolders(Path(EVIL), Path(EVIL), False)
    found.circuit["asked"] = EVIL
    whole = page.build(found)
    Elements(whole)
    assert "<img" not in whole


def test_data_for_scripts_cannot_end_them_and_is_read_back():
    text = script_data("x", {EVIL: EVIL})
    assert text.count("</") == 1 and "<!--" not in text
    assert json.loads(re.search(">(.*)<", text)[1]) == {EVIL: EVIL}


def test_whatever_is_not_markup_is_escaped():
    children = ["<b>", Markup("<i></i>"), [1, None, False, " & "]]
    made = h("p", *children, class_='a"b', hidden=True, data_tip=None)
    assert made == '<p class="a&quot;b" hidden>&lt;b&gt;<i></i>1 &amp; </p>'
    assert signed(-0.04, 1) == "0.0" and signed(-0.4, 1) == "−0.4"


ODD_STEP = '{"step": [], "accuracy": {"addition": {"0": {"8": 1}}}, "loss": 1, "seconds": 1}\n'
FI_ONLY = '{"groups": {"function_induction": ["1.1"]}, "accuracy": 3}'


@pytest.mark.parametrize(
    "name, text, says",
    [
        ("circuit.json", "{", "circuit.json cannot be read"),
        ("circuit.json", "[]", "none of ours"),
        ("circuit.json", '{"groups": {"function_induction": 3}}', "another layout"),
        ("circuit.json", FI_ONLY, "another layout"),
        ("circuit.json", '{"weights": 3}', "other weights"),
        ("metrics.jsonl", '{"step": 1}\n{', "metrics.jsonl cannot be read"),
        ("metrics.jsonl", "3\n", "none of ours"),
        ("metrics.jsonl", ODD_STEP, "another layout"),
        ("check.json", '{"checks": 5}', "another layout"),
        ("learning.json", '{"weights": 3}', "run `make reference` again"),
        ("learning.json", '{"prompt": 3}', "another layout"),
        ("config.json", "{", "config.json cannot be read"),
        ("model.pt", "", "damaged"),
    ],
)
def test_a_broken_file_is_one_line_and_exit_code_2(run, capsys, name, text, says):
    (run / name).write_text(text)
    assert page.main(["--run", str(run)]) == 2
    captured = capsys.readouterr()
    assert says in captured.err and captured.err.count("\n") == 1
    assert captured.out == "" and not (run / "report.html").exists()


def test_a_vocabulary_that_does_not_fit_is_refused(run):
    config = json.loads((run / "config.json").read_text())
    config["vocabulary"][-1] = 3
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="vocabulary"):
        found_in(run)


def test_a_huge_model_is_not_played_with(run, monkeypatch):
    assert 'id="weights"' in made(run)
    monkeypatch.setattr(findings, "MOST_WEIGHTS", 10)
    text = made(run)
    assert "too many for a page" in text and 'id="weights"' not in text
    assert text.index("const Page") < text.index(
        "showCurves"
    )  # how it learned is shown all the same


def test_a_model_that_the_page_cannot_run_is_not_played_with_and_the_page_says_why(run):
    """The scripts know no grouped heads."""
    config = json.loads((run / "config.json").read_text())
    config["model"] |= {"n_kv_heads": 1, "act_fn": "silu"}
    cfg = ModelConfig(**config["model"])
    (run / "config.json").write_text(json.dumps(config))
    save_tensors(run / "model.pt", Transformer(cfg).state_dict())
    (run / "circuit.json").unlink()
    text = made(run)
    assert "the page cannot run a model with n_kv_heads, silu." in text
    assert 'id="weights"' not in text and not (run / "playground.html").exists()


@pytest.mark.slow
def test_a_run_of_the_llama_family_is_studied_as_any_other(tmp_path):
    parts = dict(n_kv_heads=1, gated_mlp=True, tied_embeddings=True, qkv_bias=True)
    run = studied(tmp_path, act_fn="silu", **parts)
    named = "n_kv_heads, gated_mlp, tied_embeddings, qkv_bias, silu"
    assert f"the page cannot run a model with {named}." in made(run)
    assert json.loads((run / "circuit.json").read_text())["function_vectors"]


# of 2 × 2 heads on 2 tokens; 0.0 meets the criteria at step 2 too, and loses them again
FI_AT = {0: [], 2: ["0.0"], 5: ["1.1"], 9: ["0.0", "1.1"]}


def looks():
    """What commands/reference.py keeps of four steps; all sums are right at steps 5 and 9."""
    attention = [[[0.1, 0.9], [0.2, 0.8]], [[0.3, 0.7], [0.5, 0.5]]]
    common = {"F_range": -2.0, "r": [[-0.5, 0.0], [0.25, -1.0]], "attention": attention}
    common["answers"] = [["7", 0.8], ["</script><b>", 0.2]]
    return [
        common | {"step": step, "plain": 0.5, "off_by_one": float(step > 2), "fi": fi}
        for step, fi in FI_AT.items()
    ]


def shown_while_it_learned(text):
    """The data of the slider, and the words around it."""
    data = json.loads(re.search('id="learning-data">(.*?)</script>', text)[1])
    return data, re.search('<section id="learned".*?</section>', text)[0]


def test_of_any_run_the_accuracy_is_shown_by_step(run):
    shots = {"0": {"1": 0.1, "8": 0.5, "16": 0.9}, "1": {"1": 0.2, "8": 0.4, "16": 0.8}}
    save_lines(run / "metrics.jsonl", [{"step": 2, "accuracy": {"addition": shots}}])
    data, words = shown_while_it_learned(made(run))
    assert data["looks"] == [{"step": 2, "plain": 0.5, "off_by_one": 0.4}]  # at 8 shots
    assert "make reference keeps" in words and "learned-answer" not in words


def test_of_a_run_that_was_looked_at_heads_and_answers_are_shown_by_step(run):
    criteria = {"solves": 0.5, "strong": 0.05, "looks_at_answers": 0.3}
    learning = {"prompt": "<bos> =", "looks": looks(), "criteria": criteria, "n_prompts": 37}
    save_json(run / "learning.json", learning)
    data, words = shown_while_it_learned(made(run))
    assert "of only 37 sums" in words
    assert [look["step"] for look in data["looks"]] == [0, 2, 5, 9]
    first = data["looks"][0]
    # The heads that are FI in the end, and the others, at a step at which none is:
    assert first["attention"] == {"function_induction": [0.3, 0.7], "others": [0.25, 0.75]}
    assert first["added"] == {"0.0": 1.0, "0.1": 0.0, "1.0": -0.5, "1.1": 2.0}
    assert first["answers"] == looks()[0]["answers"]
    assert "addition is there from step 5; " in words and "accuracy alone" not in words
    assert "carry it: 0.0 from step 9, 1.1 from step 5. " in words
    cells = re.findall('data-head="(.*?)"', words)
    assert cells == ["1.0", "1.1", "0.0", "0.1"]  # as the playground has them


def test_what_does_not_last_to_the_end_is_not_there():
    steps = looks()
    assert since(steps, [True, True, False, False]) is None
    assert since(steps, [True, False, True, True]) == 5
    assert since(steps, [True] * 4) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="a folder's name is no bytes there")
def test_a_folder_whose_name_is_no_utf_8_has_a_report(run, capsys):
    odd = run.rename(run.with_name(os.fsdecode(b"r\xffn")))
    assert page.main(["--run", str(odd)]) == 0
    assert "r?n" in (odd / "report.html").read_text("utf-8")


# ---------------------------------------------------------------- other models, and the checklist


def section(text, name):
    """What stands in a section of a page, as text."""
    inner = re.search(f'<(section|details) id="{name}".*?</\\1>|$', text, re.DOTALL)
    return html.unescape(re.sub("<[^>]*>", "", inner[0] if name else text))


def found_elsewhere(circuit):
    """Makes of a circuit.json what `make smollm` would write."""
    for name in ("function_vectors", "accuracy_prompts", "example"):
        circuit.pop(name, None)
    circuit["reuse"] = None
    circuit["accuracy"]["contrast_prompt"]["contrast"] = 0.09
    circuit["criteria"]["solves"] = 0.5
    mixtures = circuit["averaging"]["mixtures"]
    mixtures.insert(0, mixtures[0] | {"offsets": [0]})
    del circuit["evaluation"]["circuits"], circuit["averaging"]["steered"]
    circuit["evaluation"]["faithfulness"] = 0.71
    head = circuit["groups"]["function_induction"][0]
    for part in (circuit, circuit["operands_changed"]):
        together = part["effects"]["function_induction.v"]
        part["effects"] = {"logits": part["effects"]["logits"], f"{head}.v": together}
    circuit |= {"model": f"Other-135M {EVIL}", "readers": None}
    circuit["missing"] = {"function_vectors, reuse": f"it knows no such tasks {EVIL}"}


def test_what_was_found_in_a_model_that_is_not_there_is_shown(run, monkeypatch):
    rewrite(run, found_elsewhere)
    for name in ("model.pt", "config.json", "metrics.jsonl", "check.json"):
        (run / name).unlink()
    assert page.main(["--run", str(run), "--or-reference"]) == 0
    text = (run / "report.html").read_text()
    Elements(text)
    assert "<img" not in text and 'id="weights"' not in text
    for name in ("playground", "path", "circuit"):
        assert "Not here:" in section(text, name)
    assert "without the model" in section(text, "playground")
    assert "the page holds no model" in section(text, "path")
    assert "it knows no such tasks" in section(text, "proof")
    assert "new rule shown" in section(text, "proof")  # the bars
    assert "Shown −1 and +1: what foretells" in section(text, "averaging")
    assert "weak effect" in section(text, "claim")
    for name in ("checklist", "training"):
        if f'id="{name}"' in text:
            assert "That takes a run that make train made" in section(text, name)
    assert ".v, shown answers changed" in section(text, "effects")
    assert "Other-135M" in section(text, "about")
    assert "weights included" not in section(text, "about")
    assert "made by make smollm" in section(text, "claim") and "0.71" in section(text, "claim")


def test_a_run_whose_model_is_missing_is_still_refused(run, capsys):
    (run / "model.pt").unlink()
    assert page.main(["--run", str(run)]) == 2
    assert "model.pt is missing" in capsys.readouterr().err


PARTS = {name: (make, needs) for name, _, make, needs in sections.SECTIONS + sections.DETAILS}


@pytest.mark.parametrize(
    "key, where, says",
    [
        ("averaging", "averaging", "lacks “averaging”"),
        ("averaging.steered", "averaging", "forecast"),
        ("operands_changed", "effects", "lacks “operands_changed”"),
        ("reuse", "proof", "new rule shown"),
        ("reuse", "proof", "lacks “reuse”"),
        ("evaluation.shift_swap", "proof", "new rule shown"),
        ("r_ci", "all-heads", "function induction"),
    ],
)
def test_an_older_circuit_is_shown_and_what_it_lacks_is_named(older, key, where, says):
    found = copy.copy(older)
    found.circuit = at = copy.deepcopy(older.circuit)
    *above, last = key.split(".")
    for name in above:
        at = at[name]
    del at[last]
    text = sections.content(found, *PARTS[where])
    assert says in text
    assert ("lacks" not in says) or "make patch OUT=" in text


@pytest.fixture(scope="module")
def older(traced):
    return found_in(traced)


def test_a_page_that_holds_no_model_has_no_empty_places_for_its_scripts(run, monkeypatch):
    assert 'id="path-view"' in made(run)
    monkeypatch.setattr("minifunc.report.findings.MOST_WEIGHTS", 10)
    text = made(run)
    assert 'id="path-view"' not in text and 'id="circuit-view"' not in text
    assert "Not here: the page holds no model" in section(text, "path")


@pytest.mark.parametrize("n_heads, swapped", [(2.0, 2), (0.0, 1)])
def test_where_no_other_heads_are_left_none_are_said_to_be_swapped(older, n_heads, swapped):
    found = copy.deepcopy(older.circuit)
    set_control_heads(found, n_heads)
    assert len(titles.swaps(found)) == swapped


def test_the_checklist_begins_with_answers_and_a_verdict_on_them_all(run):
    def failing(check):
        for row in check["checks"]:
            row |= {"verdict": "fail" if row["name"] == "spreads" else "pass", "short": "1 %"}
            row["answer"] = "No" if row["name"] == "spreads" else "Yes"

    rewrite(run, failing, "check.json")
    text = section(made(run), "checklist")
    groups = json.loads((run / "circuit.json").read_text())["groups"]
    heads = ", ".join(groups["function_induction"])
    for said in (
        "This model follows the rule that examples show: 1 %. It may apply a rule shown on sums "
        "elsewhere. What to watch, on prompts of your own: Does a rule shown on sums stay with "
        "sums? (1 %; wanted: at most 10 %). Act when such a share misses what is wanted: ",
        f"or give heads {heads} what they send on plain prompts (the new rule: 1 %).",
    ):
        assert said in text
    assert "No: 1 % (wanted: at most 10 %)✗ failDoes a rule shown on sums stay with sums?" in text
    assert "Yes: 1 % (wanted: at least 90 % with 4 shown)✓ pass" in text


def judged(row, fi):
    told = checklist.verdict(SimpleNamespace(check={"checks": [row]}, fi=fi))
    return re.sub("<[^>]*>", "", "".join(told))


def test_a_checklist_without_failures_or_heads_says_so():
    row = dict(name="new_rule", verdict="pass", short="1 %", risk="x", wanted="9 %", question="y?")
    told = judged(row, [])
    assert "Nothing that was checked went wrong. What to watch" in told
    assert "y? (1 %; wanted: 9 %). Act" in told and "no head is known" in told
    told = judged(row | {"verdict": "fail"}, [])
    assert "does not follow" in told and "It may x." in told


def test_a_check_json_of_an_older_version_is_said_to_lack_answers(run):
    def older(check):
        for row in check["checks"]:
            del row["answer"], row["risk"]
            row["short"] = "from 2"

    rewrite(run, older, "check.json")
    text = section(made(run), "checklist")
    assert "Not here: check.json lacks “answer”" in text and "make check OUT=" in text


def test_before_the_checks_are_run_the_page_says_what_it_shows_itself_of_what_may_go_wrong(run):
    def change(circuit):
        circuit["accuracy"]["contrast_prompt"]["contrast"], circuit["accuracy_prompts"] = 0.9, 100
        circuit["evaluation"]["ablation"][0] |= {"contrast_acc": 0.02, "ci": [0.0, 0.07]}
        circuit["groups"]["function_induction"] = ["1.0", "1.1"]
        for four, kept in enumerate([0.1, 0.9, 0.3, 0.8]):
            circuit["reuse"][4 * four + 1]["contrast_acc"] = 0.95
            circuit["reuse"][4 * four + 3]["contrast_acc"] = kept
        circuit["averaging"]["mixtures"][0]["unseen_offset_share"] = 0.37

    rewrite(run, change)
    whole = section(made(run), "checklist")
    assert "Watch, on prompts of your own: the share" not in whole  # the checks say more
    (run / "check.json").unlink()
    text = section(made(run), "checklist")
    for said in (
        "the share that follows the rule (here 90.0 %; with heads 1.0, 1.1 swapped, 2.0 %).",
        "Act when it falls below 82.6 %, or with these swapped rises above 7.0 %",  # Wilson
        "That heads 1.0, 1.1 matter holds for this model alone.",
        "The control is weakest for base 8, carry: with other heads swapped",
        "it answers in a way that no example showed on 37 % of ",
        "Not here: what the checks, which have not been run on this model yet, add to this. make c",
    ):
        assert said in text
    rewrite(run, lambda circuit: circuit.update(reuse=[]))
    text = section(made(run), "checklist")
    assert "37 %" in text and "circuit.json lacks “reuse”" in text


def test_a_run_that_was_not_looked_at_has_a_heading_from_its_accuracy(run):
    found = found_in(run)
    found.learning, found.circuit["criteria"]["solves"] = {}, 0.5
    assert (
        title_of(found, "learned", "")
        == "From step 4 on, 50 % or more of off-by-one sums are right"
    )
    found.circuit["criteria"]["solves"] = 0.9  # it never is
    assert title_of(found, "learned", "plain") == "plain"
