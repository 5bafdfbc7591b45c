import copy
import json
import os
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import patch
import tasks
import train
from commands import check
from minifunc.model import ModelConfig, Transformer
from minifunc.report import page, pictures, sections
from minifunc.report.findings import read
from minifunc.report.html import Markup, h, script_data, signed
from minifunc.report.learned import since
from minifunc.report.terminal import members
from minifunc.support.errors import UserError
from minifunc.support.files import save_json, save_lines, save_tensors
from minifunc.support.runs import RunFolders, load_run, weights_hash
from minifunc.support.settings import described
from tests.test_patch import ANY_MODEL, FAST


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
    """An untrained run with a circuit and a check, as if it could do the task."""
    return studied(tmp_path_factory.mktemp("run"))


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
        self.found, self.open = [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in ("meta", "input", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


def test_the_report_has_every_section_and_nothing_is_missing(run):
    text = made(run)
    ids = [attributes["id"] for _, attributes in Elements(text).found if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {"claim", "playground", *(name for name, *_ in sections.SECTIONS)} <= set(ids)
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


def test_an_edge_is_as_wide_as_r_and_leads_to_its_head(run):
    nodes = [
        {"name": "logits", "kind": "logits", "steps": 0, "groups": []},
        {"name": "1.1", "kind": "head", "steps": 1, "groups": ["function_induction"]},
        {"name": "embedding", "kind": "embedding", "steps": 2, "groups": []},
    ]
    edges = [
        {"sender": "1.1", "receiver": "logits", "contrast": "answers", "r": -0.5},
        {"sender": "embedding", "receiver": "1.1.v", "contrast": "answers", "r": -0.1},
        {"sender": "embedding", "receiver": "1.1.k", "contrast": "answers", "r": 0.25},
    ]
    drawn = pictures.graph_picture({"nodes": nodes, "edges": edges})
    assert sorted(re.findall(r'stroke-width="([\d.]+)"', drawn)) == ["4.5", "9.0"]
    assert 'href="#head-1.1"' in drawn
    assert "embedding → 1.1 (v −10, k +25): r = +25.0 %" in drawn and drawn.count("positive") == 1


def test_a_report_is_made_of_a_run_alone_and_says_how_to_make_the_rest(run):
    for name in ("circuit.json", "check.json", "metrics.jsonl"):
        (run / name).unlink()
    text = made(run)
    for command in ("make patch", "make check", "make train"):
        assert f"{command} OUT={run}" in text
    # the claim, sections, and the note for those without JavaScript
    lacking = sum(bool(needs) for *_, needs in sections.SECTIONS)
    assert text.count("Not here:") == 1 + lacking + 1 and "playground" in text


def test_every_key_of_circuit_json_may_be_missing(run):
    whole = json.loads((run / "circuit.json").read_text())
    found = found_in(run)
    for key in whole:
        found.circuit = {name: value for name, value in whole.items() if name != key}
        for name, _, make, needs in (("claim", "", sections.claim, "circuit"), *sections.SECTIONS):
            assert sections.content(found, make, needs), (key, name)
    found.circuit = {}
    assert page.build(found).count("Not here:") >= 5


def test_a_model_without_a_circuit_is_told_so(run):
    assert patch.main(["--run", str(run), *FAST]) == 0  # at the usual thresholds it has none
    text = made(run)
    assert "no function-induction head was found" in text
    assert "no head was found that carries the rule" in text


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
    sections.attention,
    sections.vectors,
    sections.bars,
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
    "graph": (sections.graph,),
    "evaluation": (sections.claim,),
    "reuse": (sections.bars,),
    "function_vectors": (sections.vectors,),
    "attention": (sections.graph,),
}
UNREAD = {  # numbers that are checked when the run is read, and what the report doesn't show
    "model",
    "function_vector_scores",
    "reading",
}


def poisons(whole, makes):
    """Each poisoned copy of what a file holds, and the sections that would show it."""
    for path in strings(whole):
        top = path[0] if isinstance(path[0], str) else path[0][1]
        if top not in UNREAD:
            yield poisoned(whole, path), makes if len(path) == 1 else READ_BY.get(top, makes)


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


ODD_STEP = '{"step": "a", "accuracy": {"addition": {"0": {"8": 1}}}, "loss": 1, "seconds": 1}\n'
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
    monkeypatch.setattr(page, "MOST_WEIGHTS", 10)
    text = made(run)
    assert "too many for a page" in text and 'id="weights"' not in text
    assert text.index("const Page") < text.index(
        "showCurves"
    )  # how it learned is shown all the same


def test_every_head_of_the_circuit_is_pictured_once_and_fi_heads_alone_unfolded(run):
    found = found_in(run)
    drawn = sections.content(found, sections.attention, "circuit fi")
    unfolded, folded = drawn.split("<details>")
    for head in members(found.circuit):
        label = f"Attention of head {head}:"
        assert unfolded.count(label) == (head in found.fi)
        assert folded.count(label) == (head not in found.fi)


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
    learning = {"prompt": "<bos> =", "looks": looks(), "criteria": criteria}
    save_json(run / "learning.json", learning)
    data, words = shown_while_it_learned(made(run))
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
