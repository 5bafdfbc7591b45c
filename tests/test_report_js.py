"""The report's JavaScript: model.js against PyTorch, prompts.js against tasks.py, the playground.

What needs node or a browser is skipped where there is none.
"""

import base64
import dataclasses
import html
import json
import math
import os
import re
import shutil
import signal
import subprocess

import pytest
import torch

import tasks
from commands import ask
from minifunc.model import ModelConfig, Transformer
from minifunc.report import page
from minifunc.support.files import save_json, save_lines, save_tensors
from tests.handwired import headline_model

SOURCES = page.files("minifunc.report")
NODE = shutil.which("node")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed")
SMALL = ModelConfig(
    n_layers=2, n_heads=2, d_model=24, d_head=8, d_mlp=32, d_vocab=len(tasks.VOCABULARY), n_ctx=64
)


def node(script, **data):
    """What a script returns that sees `data`, M (model.js) and P (prompts.js)."""
    program = f"""
        const M = require({json.dumps(str(SOURCES / "model.js"))});
        const P = require({json.dumps(str(SOURCES / "prompts.js"))});
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
        timeout=60,
    )
    return json.loads(done.stdout)


def embedded(model):
    """A model as a report holds it."""
    state = {name: weight.float().contiguous() for name, weight in model.state_dict().items()}
    values = b"".join(weight.numpy().tobytes() for weight in state.values())
    return {
        "config": vars(model.cfg),
        "layout": [[name, weight.numel()] for name, weight in state.items()],
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
def test_a_head_switched_off_sends_zeros_and_a_swapped_one_its_base_values():
    model = Transformer(SMALL).requires_grad_(False)
    tokens, base = tasks.encode("1+1=3, 2+2=5, 3+3="), tasks.encode("1+1=2, 2+2=4, 3+3=")
    _, cache = model.run_with_cache(base[None])

    def changed(z, name):
        z = z.clone()
        z[:, :, 0] = 0 if name == "blocks.0.attn.hook_z" else cache[name][:, :, 0]
        return z

    hooks = dict.fromkeys(["blocks.0.attn.hook_z", "blocks.1.attn.hook_z"], changed)
    wanted = model.run_with_hooks(tokens[None], hooks)[0, -1].softmax(-1)
    script = """
        const switched = { "0.0": "off", "1.0": "base" };
        const run = model.runSwitched(data.tokens, model.run(data.base), switched);
        return Array.from(model.next(run));
    """
    prompts = {"tokens": tokens.tolist(), "base": base.tolist()}
    found = node(MAKE + script, **prompts, **embedded(model))
    torch.testing.assert_close(torch.tensor(found), wanted, atol=1e-5, rtol=0)


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


@pytest.fixture
def headline(tmp_path):
    """The report of a model built by hand that answers 7, and whose head 0.0 carries it."""
    model = headline_model(len(tasks.VOCABULARY))
    save_tensors(tmp_path / "model.pt", model.state_dict())
    save_json(tmp_path / "config.json", {"model": vars(model.cfg), "vocabulary": tasks.VOCABULARY})
    save_json(tmp_path / "circuit.json", {"groups": {"function_induction": ["0.0"]}})
    assert page.main(["--run", str(tmp_path)]) == 0
    return tmp_path / "report.html"


@needs_node
def test_with_its_fi_head_swapped_the_answer_falls_from_7_to_6(headline):
    html = headline.read_text()
    data = json.loads(re.search(r'id="model-data">(.*?)</script>', html)[1])
    weights = re.search(r'id="weights">(.*?)</script>', html)[1]
    script = """
        const ids = (strings) => strings.map((string) => data.vocabulary.indexOf(string));
        const tokens = P.tokenize("1+1=3, 2+2=5, 3+3=", data.vocabulary);
        const base = P.baseTokens(tokens, data.vocabulary);
        const answer = (switched) => {
            const run = model.runSwitched(ids(tokens), model.run(ids(base)), switched);
            const found = model.next(run);
            return data.vocabulary[found.indexOf(Math.max(...found))];
        };
        return [answer({}), answer({ "0.0": "base" }), answer({ "0.1": "base" })];
    """
    embedded = {"config": data["model"], "layout": data["layout"], "weights": weights}
    answers = node(MAKE + script, vocabulary=data["vocabulary"], **embedded)
    assert answers == ["7", "6", "7"]


CLICKS = """<script>
const at = (id) => document.getElementById(id);
const said = [];
const press = (id) => {
    if (id) at(id).click();
    said.push(at("answer").dataset.best);
};
[null, "switch-0.0", "switch-0.0", "set-function_induction", "reset"].forEach(press);
document.querySelectorAll("input[name=mode]")[1].click();
press("switch-0.0");
at("prompt").value = "what?";
at("play").requestSubmit();
said.push(at("problem").textContent.slice(0, 11));
said.push(document.documentElement.scrollWidth <= innerWidth);
document.body.dataset.said = JSON.stringify(said);
</script></body>"""

QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=500,900",
    "--enable-logging=stderr",
    "--v=0",
]


def browse(page, folder):
    """What a browser makes of a page, and what it logs. Skips where the browser doesn't come up."""
    dom, log = folder / "dom.html", folder / "log.txt"  # helpers of a browser may hold on to pipes
    profile = f"--user-data-dir={folder / 'profile'}"
    command = [CHROMIUM, *QUIET, profile, "--dump-dom", page.as_uri()]
    with (
        open(dom, "wb") as out,
        open(log, "wb") as err,
        subprocess.Popen(command, stdout=out, stderr=err, start_new_session=True) as browser,
    ):
        try:
            browser.wait(timeout=40)
        except subprocess.TimeoutExpired:
            os.killpg(browser.pid, signal.SIGKILL)  # the session it was started in, and no more
            pytest.skip("chromium did not come up in time, as happens on a crowded machine")
    return dom.read_text(), log.read_text()


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_in_a_browser_a_click_takes_7_to_6_and_back_without_an_error(headline, tmp_path):
    clicked = tmp_path / "clicked.html"
    clicked.write_text(headline.read_text().replace("</body>", CLICKS))
    dom, log = browse(clicked, tmp_path)
    said = json.loads(re.search(r'data-said="(.*?)"', dom)[1].replace("&quot;", '"'))
    assert said[:5] == ["7", "6", "7", "6", "7"]
    assert said[5] != "7"  # switched off, it brings nothing
    assert said[6:] == ["cannot read", True]
    assert "CONSOLE" not in log, log


SLIDES = """<script>
const at = (id) => document.getElementById(id);
const said = [];
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
document.body.dataset.said = JSON.stringify(said);
</script></body>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
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
    headline.write_text(headline.read_text().replace("</body>", SLIDES))
    dom, log = browse(headline, tmp_path)
    said = json.loads(html.unescape(re.search(r'data-said="(.*?)"', dom)[1]))
    assert said[:5] == [
        "9",
        "7",
        ["0.04.0!", "0.1−0.8"],
        ["plain: 100 %", "off by one: 90.0 %"],
        "0",
    ]
    assert said[5:10] == ["0", "<b>", ["0.0", "0.1"], ["plain: 10.0 %", "off by one: 0 %"], "8"]
    assert said[10] == "44,159 399,15"  # from step 0 to the last, from 10 % to 100 %
    assert "CONSOLE" not in log, log
