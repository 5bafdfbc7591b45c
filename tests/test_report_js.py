"""The report's JavaScript: model.js against PyTorch, prompts.js against tasks.py, and the playground in a real browser. Skips where neither is there."""

import base64
import dataclasses
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
from minifunc.support.files import save_json, save_tensors
from tests.handwired import headline_model

SOURCES = page.files("minifunc.report")
NODE, CHROMIUM = (
    shutil.which("node"),
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome"),
)
needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed")
SMALL = ModelConfig(
    n_layers=2, n_heads=2, d_model=24, d_head=8, d_mlp=32, d_vocab=len(tasks.VOCABULARY), n_ctx=64
)


def node(script, **data):
    """What a script that sees `data`, M (model.js) and P (prompts.js) returns."""
    requires = "".join(
        f"const {name} = require({json.dumps(str(SOURCES / file))}); "
        for name, file in (("M", "model.js"), ("P", "prompts.js"))
    )
    program = f"{requires}const data = JSON.parse(require('fs').readFileSync(0)); console.log(JSON.stringify((() => {{ {script} }})()))"
    return json.loads(
        subprocess.run(
            [NODE, "-e", program],
            input=json.dumps(data),
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
    )


def embedded(model):
    state = {name: weight.float().contiguous() for name, weight in model.state_dict().items()}
    text = base64.b64encode(
        b"".join(weight.numpy().tobytes() for weight in state.values())
    ).decode()
    return {
        "config": vars(model.cfg),
        "layout": [[name, weight.numel()] for name, weight in state.items()],
        "weights": text,
    }


MAKE = "const model = new M.Transformer(data.config, M.readWeights(data.weights, data.layout)); "


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
    model = Transformer(
        dataclasses.replace(SMALL, **changes), torch.Generator().manual_seed(1)
    ).requires_grad_(False)
    for weight in model.parameters():
        weight.mul_(
            1.5
        )  # so that nonlinearities are met away from 0, and norms have weights other than 1
    generator = torch.Generator().manual_seed(0)
    prompts = [
        row
        for k in (0, 1, -2, 3)
        for row in tasks.evaluation_pairs("addition", k, 4, 13, generator).contrast
    ]  # 52, of each of four models
    logits = node(
        MAKE + "return data.prompts.map((tokens) => Array.from(model.run(tokens).logits))",
        prompts=[prompt.tolist() for prompt in prompts],
        **embedded(model),
    )
    found = torch.tensor(logits).view(len(prompts), -1, model.cfg.d_vocab)
    assert (found - model(torch.stack(prompts))).abs().max() <= 1e-4
    assert found.std() > 0.1


@needs_node
def test_attention_patterns_and_z_are_those_of_pytorch():
    model, tokens = Transformer(SMALL), tasks.encode("1+1=3, 2+2=5, 3+3=")
    _, cache = model.run_with_cache(tokens[None])
    out = node(
        MAKE
        + "const run = model.run(data.tokens); return [Array.from(run.patterns['1.1']), Array.from(run.z['1.1'])]",
        tokens=tokens.tolist(),
        **embedded(model),
    )
    torch.testing.assert_close(
        torch.tensor(out[0]).view(17, 17),
        cache["blocks.1.attn.hook_pattern"][0, 1].detach(),
        atol=1e-5,
        rtol=0,
    )
    torch.testing.assert_close(
        torch.tensor(out[1]).view(17, 8),
        cache["blocks.1.attn.hook_z"][0, :, 1].detach(),
        atol=1e-5,
        rtol=0,
    )


@needs_node
def test_erf_is_exact():
    xs = [x / 7 for x in range(-60, 61)]
    assert (
        max(
            abs(found - math.erf(x))
            for found, x in zip(node("return data.xs.map(M.erf)", xs=xs), xs)
        )
        < 1e-14
    )


@needs_node
def test_a_head_switched_off_sends_zeros_and_a_swapped_one_its_base_values():
    model, (tokens, base) = (
        Transformer(SMALL).requires_grad_(False),
        (tasks.encode(text) for text in ("1+1=3, 2+2=5, 3+3=", "1+1=2, 2+2=4, 3+3=")),
    )
    _, cache = model.run_with_cache(base[None])

    def changed(z, name):
        z = z.clone()
        z[:, :, 0] = 0 if name == "blocks.0.attn.hook_z" else cache[name][:, :, 0]
        return z

    wanted = model.run_with_hooks(
        tokens[None], dict.fromkeys(["blocks.0.attn.hook_z", "blocks.1.attn.hook_z"], changed)
    )[0, -1].softmax(-1)
    found = node(
        MAKE
        + "return Array.from(model.runSwitched(data.tokens, data.base, {'0.0': 'off', '1.0': 'base'}).probabilities)",
        tokens=tokens.tolist(),
        base=base.tolist(),
        **embedded(model),
    )
    torch.testing.assert_close(torch.tensor(found), wanted, atol=1e-5, rtol=0)


@needs_node
def test_prompts_are_read_and_made_plain_as_tasks_does_it():
    texts = [
        "1+1=3, 2+2=5, 3+3=",
        "<bos> 7 max 3 = 8 ; 9 - 4 = 6 ; 2 min 5 =",
        "a copy _=b; d copy=e; z copy _ =",
        "3 7 5=c, 1 2 9 = a, 4 1 0 =",
        "2 first 17=3, 4 same _ = 5, 18 second 3 =",
    ]
    got = node(
        "return data.texts.map((text) => { const tokens = P.tokenize(text, data.words); return [tokens, P.baseTokens(tokens, data.words)] })",
        texts=texts,
        words=tasks.VOCABULARY,
    )
    for text, (tokens, base) in zip(texts, got):
        wanted = tasks.encode(text)
        assert " ".join(tokens) == tasks.decode(wanted) and " ".join(base) == tasks.decode(
            ask.base_prompt(wanted)
        )
    bad = ["", "1+1=3", "1+1=, 2+2=", "1+99=3, 2+2=", "x", "1+1=3 2+2="]
    for message in node(
        "return data.bad.map((text) => { try { P.tokenize(text, data.words); return '' } catch (error) { return error.message } })",
        bad=bad,
        words=tasks.VOCABULARY,
    ):
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
    script = (
        MAKE
        + "const tokens = P.tokenize(data.prompt.slice(6), data.vocabulary), ids = (some) => some.map((token) => data.vocabulary.indexOf(token)); const ask = (switched) => { const p = model.runSwitched(ids(tokens), ids(P.baseTokens(tokens, data.vocabulary)), switched).probabilities; return data.vocabulary[p.indexOf(Math.max(...p))] }; return [ask({}), ask({'0.0': 'base'}), ask({'0.1': 'base'})]"
    )
    prompt = "<bos> 1+1=3, 2+2=5, 3+3="
    assert node(
        script,
        config=data["model"],
        layout=data["layout"],
        weights=weights,
        vocabulary=data["vocabulary"],
        prompt=prompt,
    ) == ["7", "6", "7"]


CLICKS = """<script>
const best = () => document.getElementById("answer").dataset.best, said = [best()], press = (id) => { document.getElementById(id).click(); said.push(best()); };
["switch-0.0", "switch-0.0", "set-function_induction", "reset"].forEach(press);
document.querySelectorAll("input[name=mode]")[1].click(); press("switch-0.0");
document.getElementById("prompt").value = "what?"; document.getElementById("play").requestSubmit();
said.push(document.getElementById("problem").textContent.slice(0, 11), document.documentElement.scrollWidth <= innerWidth);
document.body.dataset.said = JSON.stringify(said);
</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_in_a_browser_a_click_takes_7_to_6_and_back_without_an_error_or_a_request(
    headline, tmp_path
):
    clicked = tmp_path / "clicked.html"
    clicked.write_text(headline.read_text().replace("</body>", CLICKS))
    quiet = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--window-size=500,900",
    ]
    flags = [
        *quiet,
        f"--user-data-dir={tmp_path / 'profile'}",
        "--enable-logging=stderr",
        "--v=0",
        "--dump-dom",
        clicked.as_uri(),
    ]
    page_text, log = (
        tmp_path / "dom.html",
        tmp_path / "log.txt",
    )  # files, for a browser's helpers may hold on to pipes
    with (
        open(page_text, "wb") as out,
        open(log, "wb") as err,
        subprocess.Popen(
            [CHROMIUM, *flags], stdout=out, stderr=err, start_new_session=True
        ) as browser,
    ):
        try:
            browser.wait(timeout=40)
        except subprocess.TimeoutExpired:
            os.killpg(
                browser.pid, signal.SIGKILL
            )  # the session that it was started in, and no more
            pytest.skip("chromium did not come up in time, as happens on a crowded machine")
    said = json.loads(
        re.search(r'data-said="(.*?)"', page_text.read_text())[1].replace("&quot;", '"')
    )
    assert said[:5] == ["7", "6", "7", "6", "7"] and said[6:] == ["cannot read", True]
    assert said[5] != "7"  # switched off, it brings nothing
    assert "CONSOLE" not in log.read_text(), log.read_text()
