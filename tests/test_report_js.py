"""The report's JavaScript: model.js against PyTorch, prompts.js against tasks.py, the playground.

What needs node or a browser is skipped where there is none.
"""

import base64
import dataclasses
import html
import itertools
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch

import tasks
from commands import ask
from minifunc import definition
from minifunc.model import ModelConfig, Transformer
from minifunc.report import page
from minifunc.support.files import save_json, save_lines, save_tensors
from minifunc.support.runs import load_run
from tests.browser import CHROMIUM, QUIET
from tests.handwired import headline_model

SOURCES = page.files("minifunc.report")
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
SMALL = ModelConfig(
    n_layers=2, n_heads=2, d_model=24, d_head=8, d_mlp=32, d_vocab=len(tasks.VOCABULARY), n_ctx=64
)


def node(script, **data):
    """What a script returns that sees `data`, M (model.js), P (prompts.js), and PathPatcher."""
    program = f"""
        const M = require({json.dumps(str(SOURCES / "model.js"))});
        const P = require({json.dumps(str(SOURCES / "prompts.js"))});
        const {{ PathPatcher }} = require({json.dumps(str(SOURCES / "patcher.js"))});
        const data = JSON.parse(require("fs").readFileSync(0));
        const result = (() => {{ {script} }})();
        console.log(JSON.stringify(result));
    """
    done = subprocess.run(
        [NODE, "-e", program],
        input=json.dumps(data),
        capture_output=True,
        text=True,
        check=True,
        timeout=200,
    )
    return json.loads(done.stdout)


def embedded(model):
    """A model as a report holds it."""
    state = {name: weight.float().contiguous() for name, weight in model.state_dict().items()}
    values = b"".join(weight.numpy().tobytes() for weight in state.values())
    ends = itertools.accumulate(weight.numel() for weight in state.values())
    return {
        "config": vars(model.cfg),
        "layout": [[name, end - state[name].numel(), end] for name, end in zip(state, ends)],
        "weights": base64.b64encode(values).decode(),
    }


MAKE = "const model = new M.Transformer(data.config, M.readWeights(data.weights, data.layout));"


@needs_node
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"act_fn": "relu", "rotary_base": 100.0},
        {"positions": "learned", "normalization": "LN"},
        {"positions": "none", "act_fn": "none"},
    ],
    ids=str,
)
def test_logits_are_those_of_pytorch(changes):
    cfg = dataclasses.replace(SMALL, **changes)
    model = Transformer(cfg, torch.Generator().manual_seed(1)).requires_grad_(False)
    for weight in model.parameters():
        weight.mul_(1.5)  # nonlinearities are met away from 0, and norms have weights other than 1
    generator = torch.Generator().manual_seed(0)
    pairs = [tasks.evaluation_pairs("addition", k, 4, 13, generator) for k in (0, 1, -2, 3)]
    prompts = torch.cat([pair.contrast for pair in pairs])  # 52, of each of four models
    run_all = "return data.prompts.map((tokens) => Array.from(model.run(tokens).logits));"
    logits = node(MAKE + run_all, prompts=prompts.tolist(), **embedded(model))
    found = torch.tensor(logits).view(len(prompts), -1, model.cfg.d_vocab)
    assert (found - model(prompts)).abs().max() <= 1e-4
    assert found.std() > 0.1


@needs_node
def test_attention_patterns_and_z_are_those_of_pytorch():
    model, tokens = Transformer(SMALL), tasks.encode("1+1=3, 2+2=5, 3+3=")
    _, cache = model.run_with_cache(tokens[None])
    script = """
        const run = model.run(data.tokens);
        return [Array.from(run.patterns["1.1"]), Array.from(run.z["1.1"])];
    """
    pattern, z = node(MAKE + script, tokens=tokens.tolist(), **embedded(model))
    wanted = cache["blocks.1.attn.hook_pattern"][0, 1].detach()
    torch.testing.assert_close(torch.tensor(pattern).view(17, 17), wanted, atol=1e-5, rtol=0)
    wanted = cache["blocks.1.attn.hook_z"][0, :, 1].detach()
    torch.testing.assert_close(torch.tensor(z).view(17, 8), wanted, atol=1e-5, rtol=0)


@needs_node
def test_erf_is_exact():
    xs = [x / 7 for x in range(-60, 61)]
    found = node("return data.xs.map(M.erf);", xs=xs)
    assert max(abs(erf - math.erf(x)) for erf, x in zip(found, xs)) < 1e-14


@needs_node
def test_a_swapped_head_sends_its_base_values():
    model = Transformer(SMALL).requires_grad_(False)
    tokens, base = tasks.encode("1+1=3, 2+2=5, 3+3="), tasks.encode("1+1=2, 2+2=4, 3+3=")
    _, cache = model.run_with_cache(base[None])

    def changed(z, name):
        z = z.clone()
        z[:, :, 0] = cache[name][:, :, 0]
        return z

    hooks = dict.fromkeys(["blocks.0.attn.hook_z", "blocks.1.attn.hook_z"], changed)
    wanted = model.run_with_hooks(tokens[None], hooks)[0, -1].softmax(-1)
    script = """
        const sent = model.run(data.base).z;
        const run = model.run(data.tokens, { "0.0": sent["0.0"], "1.0": sent["1.0"] });
        return Array.from(model.next(run));
    """
    prompts = {"tokens": tokens.tolist(), "base": base.tolist()}
    found = node(MAKE + script, **prompts, **embedded(model))
    torch.testing.assert_close(torch.tensor(found), wanted, atol=1e-5, rtol=0)


def below(sender, receiver):
    """Whether what a sender writes can be read by a receiver, as layers lie one above another."""
    top = math.inf if receiver == "logits" else int(receiver.split(".")[0])
    if sender == "embedding":
        return True
    return int(sender.removeprefix("mlp").split(".")[0]) < top


def drawn_paths(cfg, n_pairs=50):
    """Pairs of a sender and a receiver above it: a fifth to the logits, and as many from the
    embedding; all else drawn."""
    senders = [f"{layer}.{head}" for layer in range(cfg.n_layers) for head in range(cfg.n_heads)]
    receivers = [f"{head}.{which}" for head in senders for which in "qkv"]
    if cfg.has_mlp:
        senders += [f"mlp{layer}" for layer in range(cfg.n_layers)]
    draw = random.Random(0)
    pairs = [(sender, "logits") for sender in draw.sample(senders, min(10, len(senders)))]
    pairs += [("embedding", receiver) for receiver in draw.sample(receivers, 9)]
    pairs.append(("embedding", "logits"))
    inner = [(s, r) for s in senders for r in receivers if below(s, r)]
    return pairs + draw.sample(inner, min(n_pairs - len(pairs), len(inner)))


def reference_model():
    """The trained run that lies in the repository."""
    folder = page.files("tests").joinpath("../reference")
    return load_run(folder, torch.device("cpu"), tasks.VOCABULARY)[0]


def scaled_model(**changes):
    """Not trained, but its weights are large enough for attention and MLPs to matter.
    With this seed the two prompts get different answers."""
    cfg = dataclasses.replace(SMALL, n_layers=3, **changes)
    model = Transformer(cfg, torch.Generator().manual_seed(2)).requires_grad_(False)
    for weight in model.parameters():
        weight.mul_(1.5)
    return model


PATCHED = """
    const [base, contrast] = [model.run(data.base), model.run(data.contrast)];
    const patcher = new PathPatcher(model, base, contrast);
"""
MODELS = {
    "random": scaled_model,
    "layer norm": lambda: scaled_model(positions="learned", normalization="LN", act_fn="relu"),
    "attention alone": lambda: scaled_model(act_fn="none"),
    "reference": reference_model,
}


@needs_node
@pytest.mark.parametrize(
    "name", ["random", *(pytest.param(name, marks=pytest.mark.slow) for name in list(MODELS)[1:])]
)
def test_patched_paths_are_those_of_the_definition(name):
    model = MODELS[name]()
    contrast = tasks.encode("1+1=3, 2+5=8, 3+3=")
    base = ask.base_prompt(contrast)
    paths = drawn_paths(model.cfg)
    script = """
        const ran = data.paths.map(([sender, receiver]) => patcher.patched(sender, receiver));
        const last = (run) => Array.from(run.logits.slice(-model.config.d_vocab));
        return [patcher.answers, ran.map(last), ran.map((run) => [patcher.F(run), patcher.r(run)])];
    """
    prompts = {"base": base.tolist(), "contrast": contrast.tolist(), "paths": paths}
    answers, logits, found = node(MAKE + PATCHED + script, **prompts, **embedded(model))
    model = model.double()
    with torch.no_grad():
        base_logits, sent = model.run_with_cache(base[None])
    untouched = model(contrast[None])[:, -1].detach()
    assert answers == [base_logits[0, -1].argmax(), untouched.argmax()]
    assert answers[0] != answers[1]
    differences = []
    for (sends, receives), last, (F, r) in zip(paths, logits, found, strict=True):
        ends = definition.sender(sends), definition.receiver(receives, model.cfg)
        wanted = definition.path_patch(model, contrast[None], sent, [ends[0]], [ends[1]])
        assert (wanted - torch.tensor(last)).abs().max() < 1e-4, (sends, receives)
        assert abs(F - (wanted[0, answers[0]] - wanted[0, answers[1]]).item()) < 1e-4
        differences.append((wanted - untouched).abs().max().item())
        of_both = torch.tensor([answers])
        assert abs(r - definition.effect(wanted, untouched, base_logits[:, -1], of_both)) < 1e-4
    assert len(paths) == 50 and sum(x > 1e-3 for x in differences) >= 25  # paths that matter


@needs_node
def test_effects_of_what_a_head_takes_from_one_position_are_those_of_the_definition():
    model, head = reference_model(), "2.3"
    contrast = tasks.encode("1+1=3, 2+5=8, 3+3=")
    base = ask.base_prompt(contrast)
    script = "return [patcher.answers, patcher.effectsByPosition(data.head, [5, 11, 12])];"
    data = {"base": base.tolist(), "contrast": contrast.tolist(), "head": head}
    answers, found = node(MAKE + PATCHED + script, **data, **embedded(model))
    model = model.double().requires_grad_(False)
    logits, caches = zip(*(model.run_with_cache(tokens[None]) for tokens in (base, contrast)))
    patterns = [cache["blocks.2.attn.hook_pattern"][0, 3, -1] for cache in caches]
    values = [cache["blocks.2.attn.hook_v"][0, :, 3] for cache in caches]
    taken = [share[:, None] * value for share, value in zip(patterns, values)]  # [pos, d_head]
    ends = definition.sender(head), definition.receiver("logits", model.cfg)
    for at, r in zip((5, 11, 12), found, strict=True):
        sent = caches[1]["blocks.2.attn.hook_z"].clone()
        sent[0, -1, 3] += taken[0][at] - taken[1][at]
        ended = {"blocks.2.attn.hook_z": sent}
        patched = definition.path_patch(model, contrast[None], ended, ends[:1], ends[1:])
        contrasted, based = logits[1][:, -1], logits[0][:, -1]
        wanted = definition.effect(patched, contrasted, based, torch.tensor([answers]))
        assert abs(r - wanted) < 1e-4
    assert found[0] < -0.1 and found[1] < -0.1 and abs(found[2]) < 0.01  # the two shown answers


@pytest.mark.slow
@needs_node
def test_the_reference_run_gives_its_logits_on_200_prompts():
    model, generator = reference_model().requires_grad_(False), torch.Generator().manual_seed(0)
    asked = [("addition", 1), ("subtraction", -2), ("caesar", 3), ("base_addition", 8)]
    groups = [
        tasks.evaluation_pairs(task, k, shots, 10, generator).contrast
        for task, k in asked
        for shots in (1, 2, 3, 5, 9)
    ]
    script = """
        return data.prompts.map((tokens) => Array.from(model.run(tokens).logits));
    """
    prompts = [tokens for group in groups for tokens in group.tolist()]
    logits = node(MAKE + script, prompts=prompts, **embedded(model))
    wanted = [one.flatten() for group in groups for one in model(group)]
    assert len(prompts) == 200
    for found, one in zip(logits, wanted, strict=True):
        assert (torch.tensor(found) - one).abs().max() <= 1e-4


@needs_node
def test_prompts_are_read_and_made_plain_as_tasks_does_it():
    texts = [
        "1+1=3, 2+2=5, 3+3=",
        "<bos> 7 max 3 = 8 ; 9 - 4 = 6 ; 2 min 5 =",
        "a copy _=b; d copy=e; z copy _ =",
        "3 7 5=c, 1 2 9 = a, 4 1 0 =",
        "2 first 17=3, 4 same _ = 5, 18 second 3 =",
        "1+1=3\n2+2=5,\n3+3=\n",
    ]
    script = """
        return data.texts.map((text) => {
            const tokens = P.tokenize(text, data.words);
            return [tokens, P.baseTokens(tokens, data.words)];
        });
    """
    read = node(script, texts=texts, words=tasks.VOCABULARY)
    for text, (tokens, base) in zip(texts, read):
        wanted = tasks.encode(text)
        assert " ".join(tokens) == tasks.decode(wanted)
        assert " ".join(base) == tasks.decode(ask.base_prompt(wanted))


@needs_node
def test_what_cannot_be_read_is_refused_in_words():
    texts = ["", "1+1=3", "1+1=, 2+2=", "1+99=3, 2+2=", "x", "1+1=3 2+2="]
    script = """
        return data.texts.map((text) => {
            try {
                return P.tokenize(text, data.words).join(" ");
            } catch (error) {
                return error.message;
            }
        });
    """
    messages = node(script, texts=texts, words=tasks.VOCABULARY)
    assert "99 is not known" in messages[3] and "x" in messages[4]
    for message in messages:
        assert "cannot read" in message or "leave the last answer open" in message


@needs_node
def test_an_answer_is_a_guess_for_the_reasons_that_ask_gives_and_says_why_it_is_unsure():
    texts = ["3+3=", "1+1=3, 2+2=5, 3+3=", "3-5=2, 1+1=3, 2+2=", "30+1=2, 1+1=2, 2+2="]
    texts += ["3 3 5=a, 1 2 9=c, 4 1 0=", "a copy _=b, 18 max 19=18, 3 same _=", "9 min 10=9, 1+1="]
    texts += ["18 max 17=18, 4 first 12=4, 3 same _=3, c copy _="]
    script = "return data.asked.map(([tokens, share]) => P.doubts(tokens, share));"
    asked = [(text, share) for text in texts for share in (0.4, 0.6)]
    found = node(script, asked=[[["<bos>", *words_of(text)], share] for text, share in asked])
    for (text, share), why in zip(asked, found):
        extra = ("one example is little to go by", "the examples are off by different amounts")
        wanted = ask.doubts(tasks.encode(text), share)  # it also says what training never asks
        wanted = [one for one in wanted if "never asks" not in one]
        assert [one for one in why if one not in extra] == wanted
        assert share < 0.5 or not set(extra) & set(why)
    mixed = [["<bos>", *words_of(text)] for text in ("1+1=1, 2+2=5, 3+3=", "1+1=3, 3+3=")]
    mixed, few = node(script, asked=[[tokens, 0.4] for tokens in mixed])
    assert "different amounts" in mixed[0] and "little" in few[0]


def words_of(text):
    return tasks.decode(tasks.encode(text)).split()[1:]


def report_of(model, folder, groups):
    save_tensors(folder / "model.pt", model.state_dict())
    save_json(folder / "config.json", {"model": vars(model.cfg), "vocabulary": tasks.VOCABULARY})
    save_json(folder / "circuit.json", {"groups": groups})
    assert page.main(["--run", str(folder)]) == 0
    return folder / "report.html"


@pytest.fixture
def headline(tmp_path):
    """The report of a model built by hand that answers 7, and whose head 0.0 carries it."""
    model = headline_model(len(tasks.VOCABULARY))
    return report_of(model, tmp_path, {"function_induction": ["0.0"]})


@needs_node
def test_with_its_fi_head_swapped_the_answer_falls_from_7_to_6(headline):
    text = headline.read_text()
    data = json.loads(re.search(r'id="model-data">(.*?)</script>', text)[1])
    weights = re.search(r'id="weights">(.*?)</script>', text)[1]
    script = """
        const ids = (strings) => strings.map((string) => data.vocabulary.indexOf(string));
        const tokens = P.tokenize("1+1=3, 2+2=5, 3+3=", data.vocabulary);
        const base = P.baseTokens(tokens, data.vocabulary);
        const answer = (heads) => {
            const { z } = model.run(ids(base));
            const sent = Object.fromEntries(heads.map((head) => [head, z[head]]));
            const found = model.next(model.run(ids(tokens), sent));
            return data.vocabulary[found.indexOf(Math.max(...found))];
        };
        return [answer([]), answer(["0.0"]), answer(["0.1"])];
    """
    embedded = {"config": data["model"], "layout": data["layout"], "weights": weights}
    answers = node(MAKE + script, vocabulary=data["vocabulary"], **embedded)
    assert answers == ["7", "6", "7"]


CLICKS = """
const press = (id) => {
    if (id) at(id).click();
    said.push(at("answer").dataset.best);
};
const type = (text) => {
    at("prompt").value = text;
    at("prompt").dispatchEvent(new Event("input", { bubbles: true }));
};
const stale = () => at("answer").classList.contains("stale");
[null, "switch-0.0", "switch-0.0", "set-function_induction", "reset"].forEach(press);
said.push(document.documentElement.scrollWidth <= innerWidth, at("same").textContent, stale());
type("what?\\n");
setTimeout(() => {
    said.push(at("problem").textContent.slice(0, 11), stale(), at("prompt").value);
    type("1+1=2, 2+2=4, 3+3=");
    setTimeout(() => {
        said.push(at("problem").textContent, stale(), at("same").textContent);
        done();
    }, 300); // after the page has read it, however slow the machine is
}, 300);
"""

# By the keyboard alone: what has the focus is pressed.
STORY = """
const next = () => {
    const swapped = document.querySelectorAll("#story-heads .swapped").length;
    const words = ["story-at", "story-prompt", "story-words"].map((id) => at(id).textContent);
    said.push([...words, swapped, document.activeElement.id, at("answer").dataset.best]);
    document.activeElement.click();
};
at("story-next").focus();
while (said.length < 6 && document.activeElement.id === "story-next") next();
next();
at("story-back").focus();
for (const _ of said.slice(1)) document.activeElement.click();
said.push(at("story-at").textContent, document.activeElement.id, at("story").hidden);
done();
"""

LOGGED = ["--window-size=500,900", "--virtual-time-budget=3000", "--enable-logging=stderr", "--v=0"]


def browse(page, folder):
    """What a browser makes of a page, and what it logs. It may hang as it starts: three tries."""
    dom, log = folder / "dom.html", folder / "log.txt"  # helpers of a browser may hold on to pipes
    for number in range(3):
        profile = f"--user-data-dir={folder / f'profile{number}'}"
        command = [CHROMIUM, *QUIET, *LOGGED, profile, "--dump-dom", page.as_uri()]
        with (
            open(dom, "wb") as out,
            open(log, "wb") as err,
            subprocess.Popen(command, stdout=out, stderr=err, start_new_session=True) as browser,
        ):
            try:
                browser.wait(timeout=120)
                return dom.read_text(), log.read_text()
            except subprocess.TimeoutExpired:
                os.killpg(browser.pid, signal.SIGKILL)  # its own session, and no more
    pytest.skip("chromium did not come up in time, three times")


def said_on(page, folder, script):
    """What a script says that is run on a page once it is loaded: the list `said`."""
    start = "const at = (id) => document.getElementById(id); const said = [];"
    end = "const done = () => (document.body.dataset.said = JSON.stringify(said));"
    tried = folder / "tried.html"
    code = f"<script>{{ {start} {end} {script} }}</script></body>"
    tried.write_text(page.read_text().replace("</body>", code))
    dom, log = browse(tried, folder)
    assert "CONSOLE" not in log, log
    return json.loads(html.unescape(re.search(r'data-said="(.*?)"', dom)[1]))


@needs_browser
@pytest.mark.slow
def test_in_a_browser_a_click_takes_7_to_6_and_back_without_an_error(headline, tmp_path):
    said = said_on(headline, tmp_path, CLICKS)
    assert said[:5] == ["7", "6", "7", "6", "7"]
    assert said[5:8] == [True, "", False]
    assert said[8:11] == ["cannot read", True, "what?"]
    assert said[11:] == ["", False, "Both prompts are the same: nothing to swap."]


PATHS = """
const path = (id) => {
    if (id) at(id).click();
    const picked = [...document.querySelectorAll("button.part[aria-pressed=true]")];
    const r = document.querySelector("#path-view .sum").textContent.split(/\\n *= /)[2];
    said.push([...picked.map((one) => one.id), at("receiver-logits").textContent, r.split(",")[0]]);
};
at("receiver-0.0").focus();
[null, "receiver-0.0", "input-k", "sender-0.0", "sender-0.1"].forEach(path);
at("receiver-0.0").focus();
path("receiver-0.0");
said.push(document.activeElement.id);
at("prompt").value = "1+1=2, 2+2=4, 3+3=";
at("prompt").dispatchEvent(new Event("input", { bubbles: true }));
setTimeout(() => {
    said.push(at("path-view").textContent);
    done();
}, 300);
"""


@needs_browser
@pytest.mark.slow
def test_a_path_is_patched_by_two_clicks(headline, tmp_path):
    said = said_on(headline, tmp_path, PATHS)
    logits, head = "receiver-logits", "receiver-0.0"
    assert said[:6] == [
        ["sender-0.0", logits, "answer 6", "−100.0 %"],  # at first the head that carries it
        ["sender-embedding", head, "answer 6", "−100.0 %"],  # no head lies below the head; its v
        ["sender-embedding", head, "answer 7", "0.0 %"],  # its k
        ["sender-0.0", logits, "answer 6", "−100.0 %"],  # not below the head, which gives way
        ["sender-0.1", logits, "answer 7", "0.0 %"],  # which writes nothing
        ["sender-embedding", head, "answer 7", "0.0 %"],
    ]
    assert said[6] == head
    assert said[7].startswith("Both prompts are answered 6, so no swap can move the answer")


@needs_browser
@pytest.mark.slow
def test_the_guided_opening_tells_what_this_model_answers(headline, tmp_path):
    *steps, at, focus, hidden = said_on(headline, tmp_path, STORY)
    assert [one[0] for one in steps] == [f"{n} of 6" for n in range(1, 7)]
    assert [one[1][-1] for one in steps] == ["7", "6", "7", "6", "8", "7"]
    assert [one[1][-1] for one in steps] == [one[5] for one in steps]  # as the playground has it
    assert [one[3] for one in steps] == [0, 0, 1, 1, 0, 0]
    assert [one[4] for one in steps] == ["story-next"] * 5 + ["prompt"]
    wanted = ["7, one too high", "6, the true sum", "Head 0.1, one of 2", "heads, 0.0, send"]
    for (_, _, words, *_), part in zip(steps, [*wanted, "8, like the second", "Your turn"]):
        assert part in words
    assert "still 7" in steps[2][2] and not any("guess" in one[2] for one in steps)
    assert [at, focus, hidden] == ["1 of 6", "story-next", False]


@needs_browser
@pytest.mark.slow
def test_the_guided_opening_leaves_out_what_a_model_lacks_and_makes_nothing_up(tmp_path):
    unsure = headline_model(len(tasks.VOCABULARY), more=0)  # it copies, and is sure of nothing
    unsure.unembed.W_U.mul_(0.01)
    wrong = report_of(unsure, tmp_path, {"function_induction": ["0.1", "7.7"]})
    *steps, _, _, _ = said_on(wrong, tmp_path, STORY)
    assert "Head 0.0" in steps[2][2] and "becomes 4, something else" in steps[2][2]
    assert "0.1, send" in steps[3][2] and "still 5, nothing happens" in steps[3][2]
    *steps, _, _, _ = said_on(report_of(unsure, tmp_path, {}), tmp_path, STORY)
    assert [one[0] for one in steps] == [f"{n} of 4" for n in range(1, 5)]
    assert [one[1][-1] for one in steps] == ["5", "4", "6", "5"]
    assert "5, something else" in steps[0][2] and "6, like the first" in steps[2][2]
    assert all("This is a guess: " in one[2] and "less than half" in one[2] for one in steps)


@needs_browser
@pytest.mark.slow
def test_the_guided_opening_of_the_reference_run(tmp_path):
    for file in ("config.json", "model.pt"):
        shutil.copy(f"reference/{file}", tmp_path)
    groups = json.loads(Path("results/seeds.json").read_text())[0]["groups"]  # of seed 0, as it is
    save_json(tmp_path / "circuit.json", {"groups": groups})
    assert page.main(["--run", str(tmp_path)]) == 0
    *steps, _, _, _ = said_on(tmp_path / "report.html", tmp_path, STORY)
    assert [one[1][-1] for one in steps] == ["7", "6", "7", "6", "7", "7"]
    head = re.match(r"Head (\d\.\d),", steps[2][2])[1]
    assert head[0] in "23" and head not in sum(groups.values(), [])
    assert "nothing happens" in steps[2][2] and "in between" in steps[4][2]
    assert not any("guess" in one[2] for one in steps)


SLIDES = """
for (const value of [1, 0]) {
    at("learned-step").value = value;
    at("learned-step").dispatchEvent(new Event("input"));
    const cells = [...at("learned-heads").children];
    said.push(at("learned-now").textContent, at("learned-answer").textContent);
    said.push(cells.map((cell) => cell.textContent + (cell.dataset.fi === "true" ? "!" : "")));
    said.push([...at("learned-curves").querySelectorAll("g text")].map((each) => each.textContent));
    const arc = at("learned-attention").querySelector(".function_induction");
    said.push(arc.getAttribute("stroke-width"));
}
const [plain] = at("learned-curves").querySelectorAll("polyline");
said.push(plain.getAttribute("points"));
done();
"""


@pytest.mark.slow
@needs_browser
def test_in_a_browser_the_slider_shows_what_the_model_was_at_each_step(headline, tmp_path):
    look = {"plain": 0.1, "off_by_one": 0.0, "F_range": -0.5, "r": [[-0.02, 0.0]], "fi": []}
    look |= {"step": 0, "answers": [["<b>", 0.5]], "attention": [[[0.5, 0.5], [1.0, 0.0]]]}
    now = {"step": 9, "plain": 1.0, "off_by_one": 0.9, "F_range": -4.0, "r": [[-1.0, 0.2]]}
    now |= {"fi": ["0.0"], "answers": [["7", 1.0]], "attention": [[[0.0, 1.0], [1.0, 0.0]]]}
    criteria = {"solves": 0.5, "strong": 0.05, "looks_at_answers": 0.3}
    learning = {"prompt": "<bos> =", "looks": [look, now], "criteria": criteria}
    save_json(tmp_path / "learning.json", learning)
    line = {"step": 9, "accuracy": {"addition": {k: {"8": 1.0} for k in "01"}}}
    save_lines(tmp_path / "metrics.jsonl", [line])
    assert page.main(["--run", str(tmp_path)]) == 0
    said = said_on(headline, tmp_path, SLIDES)
    assert said[:5] == [
        "9",
        "7",
        ["0.04.0!", "0.1−0.8"],
        ["plain: 100 %", "off by one: 90.0 %"],
        "0",
    ]
    assert said[5:10] == ["0", "<b>", ["0.0", "0.1"], ["plain: 10.0 %", "off by one: 0 %"], "8"]
    assert said[10] == "44,159 399,15"  # from step 0 to the last, from 10 % to 100 %
