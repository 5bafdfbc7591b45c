"""What the scripts of a report show, held against what is known by hand. No browser: node runs
them on as much of a document as they use (page_in_node.cjs)."""

import copy
import json
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

import tasks
from commands import ask
from minifunc import definition
from minifunc.report import page
from minifunc.support.files import save_json, save_lines, save_tensors
from tests.handwired import empty_model, headline_model
from tests.test_report_circuit import answer_alone
from tests.test_report_js import NODE, needs_node, node, scaled_model

RUNNER = Path(__file__).with_name("page_in_node.cjs")
EMPTY = {"meta", "input", "br"}


class Tree(HTMLParser):
    """A page as [tag, attributes, children], and its scripts apart."""

    def __init__(self, text):
        super().__init__()
        self.open, self.scripts = [["", {}, []]], []
        self.feed(text)
        [self.root] = [x for x in self.open[0][2] if isinstance(x, list)]

    def handle_starttag(self, tag, attributes):
        made = [tag, dict(attributes), []]
        self.open[-1][2].append(made)
        if tag not in EMPTY:
            self.open.append(made)

    def handle_startendtag(self, tag, attributes):
        self.open[-1][2].append([tag, dict(attributes), []])

    def handle_endtag(self, tag):
        closed = self.open.pop()
        assert closed[0] == tag
        if tag == "script" and "type" not in closed[1]:
            self.scripts += closed[2]
            self.open[-1][2].remove(closed)

    def handle_data(self, data):
        self.open[-1][2].append(data)


def report_of(model, folder, groups, words=tasks.VOCABULARY):
    """The page of a model of which no more is known than its groups of heads."""
    save_tensors(folder / "model.pt", model.state_dict())
    save_json(folder / "config.json", {"model": vars(model.cfg), "vocabulary": words})
    r = [[-0.053, 0.25]] * model.cfg.n_layers
    effects = {"logits": {"embedding": 0.0, "heads": r, "mlps": [0.0] * len(r)}}
    save_json(folder / "circuit.json", {"groups": groups, "effects": effects})
    assert page.main(["--run", str(folder)]) == 0
    return folder / "report.html"


DRAWN = ("circuit-view", "path-view")  # drawn anew whenever something is asked, which takes long


def said_by(report, script, **data):
    """What a script returns that is run on a page once it is loaded. data: without=DRAWN, if not
    said otherwise."""
    tree = Tree(report.read_text())
    given = {"page": tree.root, "scripts": tree.scripts, "script": script, "without": DRAWN} | data
    done = subprocess.run(
        [NODE, str(RUNNER)], input=json.dumps(given), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


ASKED, PLAIN = "1+1=3, 2+5=8, 3+3=", "1+1=2, 2+5=7, 3+3="
GROUPS = {"function_induction": ["2.0", "1.1"], "expected_answer": ["0.1"]}
GROUPS |= {"shown_answer": ["1.1", "0.0"], "previous_token": [], "consolidation": ["2.1"]}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """(page, model): three layers of two heads, with large random weights."""
    model = scaled_model(n_ctx=59)
    return report_of(model, tmp_path_factory.mktemp("drawn"), GROUPS), model


WORDS = ["<bos>", "=", ";", "_", "+", *map(str, range(1, 28))]


def by_hand(folder, groups, more=2, size=1.0, n_layers=1, n_heads=4):
    """The page of a model whose head 0.0 alone says something: the last shown answer, and `more`.
    It knows numbers to 27, and nothing but +."""
    small = headline_model(len(WORDS), more)
    shape = {"n_layers": n_layers, "n_heads": n_heads, "d_vocab": len(WORDS), "n_ctx": 32}
    model = empty_model(**shape, d_model=small.cfg.d_model, d_head=len(WORDS))
    for name, weight in small.state_dict().items():
        model.state_dict()[name][: len(weight)] = weight
    model.unembed.W_U.mul_(size)
    return report_of(model, folder, groups, WORDS)


# ---------------------------------------------------------------- small tools

TOOLS = """
const row = Page.answerRow("x", 0.25, 0.5);
const style = row.querySelector(".bar").attributes.style;
return {
    percent: [0, 0.0004, 0.0006, 0.05, 0.5, 0.9994, 0.9996, 1].map(Page.percent),
    ranked: Page.ranked([0.1, 0.7, -0.3, 0.2]),
    row: [row.textContent, ...style.match(/[\\d.]+(?=%)/g)],
    names: Playground.heads.map((head) => [head, Page.groupOf(head)]),
    dots: at("heads").children.flatMap((head) =>
        head.querySelectorAll("i").map((dot) => [head.id, dot.className])),
    tip: at("switch-1.1").dataset.tip,
    ids: Page.idsOf(["<bos>", "1", "="]),
    sets: at("sets").children.map((one) => [one.id, one.textContent]),
};
"""


@needs_node
def test_the_tools_of_a_page_write_shares_and_groups_as_stated(drawn):
    said = said_by(drawn[0], TOOLS)
    assert said["percent"] == ["0 %", "0 %", "0.1 %", "5.0 %", "50.0 %", "99.9 %", *["100 %"] * 2]
    assert said["ranked"] == [1, 3, 0, 2]
    assert said["row"] == ["x25.0 %", "25", "50"]  # a bar as long as the share, a mark before
    bring = "all heads that bring the"
    assert said["sets"] == [
        ["set-function_induction", "all FI heads (2)"],
        ["set-expected_answer", f"{bring} expected answer (1)"],
        ["set-shown_answer", f"{bring} shown answer (2)"],
        ["set-consolidation", "all consolidation heads (1)"],  # a group without heads has none
        ["reset", "as trained"],
    ]
    fi, expected, shown, other = list(GROUPS)[:3] + ["consolidation"]
    wanted = [["2.0", fi], ["2.1", other], ["1.0", ""], ["1.1", fi], ["0.0", shown]]
    assert said["names"] == [*wanted, ["0.1", expected]]  # the last layer on top
    assert said["dots"] == [["switch-1.1", shown]]  # the role that the ring doesn't show
    assert said["tip"] == "head 1.1, FI heads, heads that bring the shown answer"
    assert said["ids"] == [0, tasks.VOCABULARY.index("1"), tasks.VOCABULARY.index("=")]


def test_a_page_fits_narrow_screens_and_may_fetch_nothing(drawn):
    text = drawn[0].read_text()
    tree = Tree(text)
    assert tree.root[0] == "html" and tree.root[1] == {"lang": "en"}
    metas = [one[1] for one in tree.root[2][0][2] if one[0] == "meta"]
    assert {"charset": "utf-8"} in metas
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in metas
    [policy] = [meta["content"] for meta in metas if "http-equiv" in meta]
    assert policy.startswith("default-src 'none';")
    assert len(tree.scripts) == 10 and text.startswith("<!doctype html>")


# ---------------------------------------------------------------- the playground

PLAY = """
const heads = [...at("heads").children];
const words = (elements) => elements.map((one) => one.textContent);
const pressed = () => words(heads.filter((one) => one.ariaPressed === "true"));
const texts = (selector) => words(at("answer").querySelectorAll(selector));
const rows = () => at("answer").querySelectorAll("li").map((one) => [
    one.querySelector("b").textContent,
    ...one.querySelector(".bar").attributes.style.match(/[\\d.e-]+(?=%)/g).map(Number),
]);
const state = () => ({
    big: texts(".big")[0], labels: texts(".label"), rows: rows(), pressed: pressed(),
    changed: at("answer").querySelector(".big").classList.contains("changed"),
    prompt: at("prompt").value, base: at("base").value, same: at("same").textContent,
    problem: at("problem").textContent, stale: at("answer").classList.contains("stale"),
});
const type = (id, text) => {
    at(id).value = text;
    at(id).dispatchEvent(new Event("input", { bubbles: true }));
    return settle();
};
const shown = {
    heads: words(heads), tips: heads.map((one) => one.dataset.tip),
    presets: words(at("presets").children),
    signs: at("signs").textContent, numbers: at("numbers").textContent, first: state(),
};
"""


def next_shares(model, text, base=None, swapped=()):
    """The probabilities of what follows, where some heads send what they send on a base prompt."""
    _, cache = model.run_with_cache(tasks.encode(base or text)[None])

    def send(z, name):
        for head in swapped:
            layer, index = map(int, head.split("."))
            if name.startswith(f"blocks.{layer}."):
                z[:, :, index] = cache[name][:, :, index]
        return z

    hooks = {f"blocks.{layer}.attn.hook_z": send for layer in range(model.cfg.n_layers)}
    return model.run_with_hooks(tasks.encode(text)[None], hooks)[0, -1].softmax(-1)


@needs_node
def test_the_playground_shows_what_pytorch_answers_as_it_is_and_with_heads_swapped(drawn):
    report, model = drawn
    script = f"""
        const asked = {json.dumps(ASKED)};
        const [trained, swapped] = [[], ["2.1", "0.0", "1.1"]].map((names) => {{
            Playground.ask(asked, names);
            return state();
        }});
        return {{ shown, trained, swapped }};
    """
    said = said_by(report, PLAY + script)
    before = next_shares(model, ASKED)
    first = before.argmax()
    for key, heads in (("trained", ()), ("swapped", ("2.1", "0.0", "1.1"))):
        got, shares = said[key], next_shares(model, ASKED, PLAIN, heads)
        best = shares.sort(descending=True).indices.tolist()
        wanted = best[:5] + [int(first)] * (first not in best[:5])
        assert [row[0] for row in got["rows"]] == [tasks.VOCABULARY[token] for token in wanted]
        for (_, now, then), token in zip(got["rows"], wanted):
            assert now == pytest.approx(100 * float(shares[token]), abs=1e-3)
            assert then == pytest.approx(100 * float(before[token]), abs=1e-3)
        assert got["big"] == tasks.VOCABULARY[best[0]] and got["pressed"] == sorted(
            heads, key=lambda head: (-int(head[0]), head)
        )
        assert got["changed"] == (best[0] != first) == (key == "swapped")
        assert (got["prompt"], got["base"]) == (ASKED, PLAIN)
        told = f"with 3 swapped; as trained {tasks.VOCABULARY[first]}" if heads else "as trained"
        assert got["labels"][:2] == ["answer", told]
        unsure = shares[best[0]] < 0.5
        assert ("guess" in got["labels"][2]) == unsure
    shown = said["shown"]
    assert shown["heads"] == ["2.0", "2.1", "1.0", "1.1", "0.0", "0.1"]
    assert shown["tips"][:3] == ["head 2.0, FI heads", "head 2.1, consolidation heads", "head 1.0"]
    numbers = [int(word) for word in tasks.VOCABULARY if word.lstrip("-").isdigit()]
    assert shown["numbers"] == f"{min(numbers)} to {max(numbers)}"
    signs = [word for word in tasks.VOCABULARY if word in "+-" or word.isalpha() and len(word) > 1]
    assert shown["signs"].split() == signs
    assert len(shown["presets"]) == 6 and shown["first"]["prompt"] == "1+1=3, 2+2=5, 3+3="


PRESS = """
Playground.ask("3+3=");
const [fi, shownAnswer] = ["set-function_induction", "set-shown_answer"];
for (const id of ["switch-0.1", fi, "switch-2.0", shownAnswer, fi, fi, "reset", fi, fi]) {
    at(id).click();
    said.push(pressed());
}
at("switch-1.0").click();
for (const preset of at("presets").children) {
    preset.click();
    said.push([preset.textContent, at("prompt").value, at("base").value, pressed()]);
}
return said;
"""


@needs_node
def test_clicks_swap_heads_and_presets_ask_what_they_are_called(drawn):
    said = said_by(drawn[0], PLAY + PRESS)
    assert said[:9] == [
        ["0.1"],
        ["2.0", "1.1", "0.1"],
        ["1.1", "0.1"],
        ["1.1", "0.0", "0.1"],  # those of a group that are not all swapped: the missing ones
        ["2.0", "1.1", "0.0", "0.1"],
        ["0.0", "0.1"],  # all were: back
        [],
        ["2.0", "1.1"],
        [],
    ]
    for name, prompt, base, pressed in said[9:]:
        assert pressed == ["1.0"]  # stays swapped
        examples = [example.strip().rstrip("_=").split("=") for example in prompt.split(",")]
        off = set()
        for (left, right), answered in zip((x for x in examples if len(x) == 2), base.split(",")):
            plain = answered.split("=")[1]
            if name == "Caesar":
                assert plain == left.split()[0]
                off.add(ord(right) - ord(plain))
            else:
                assert int(plain) == sum(map(int, left.split("+")))
                off.add(int(right) - int(plain))
                if name == "base 8":
                    assert int(right, 8) == int(plain)
        if name != "base 8":
            k = {"off by +1": 1, "plain": 0, "off by +2": 2, "off by −1": -1, "Caesar": 1}[name]
            assert off == {k}


TYPED = f"""
const long = (n) => "1+1=3, ".repeat(n) + "3+3=";
type("prompt", "{ASKED}\\n");
said.push(state());
type("base", "1+1=1, 2+5=5, 3+3=");
said.push(state());
type("prompt", "1+1=2, 2+2=4, 3+3=");
said.push(state());
type("base", "1+1=2, 3+3=");
said.push(state());
for (const n of [9, 10]) {{
    type("prompt", long(n));
    said.push(state());
}}
at("prompt").value = "a";
at("prompt").dispatchEvent(new Event("input", {{ bubbles: true }}));
const waits = type("prompt", "3+3=");
return [...said, state(), waits, Page.asked.base.join(" ")];
"""


@needs_node
def test_what_is_typed_is_asked_with_its_base_prompt_or_the_page_says_why_not(drawn):
    report, model = drawn
    asked, own, same, short, longest, long, few, waits, base = said_by(report, PLAY + TYPED)
    assert (asked["prompt"], asked["base"], asked["same"]) == (ASKED, PLAIN, "")
    assert own["base"] == "1+1=1, 2+5=5, 3+3=" and not own["problem"]
    assert same["base"] == same["prompt"] == "1+1=2, 2+2=4, 3+3="  # the old base is forgotten
    assert same["same"] == "Both prompts are the same: nothing to swap."
    assert "as many examples" in short["problem"] and short["stale"]
    assert not longest["problem"] and not longest["stale"]  # 59 tokens, as many as the model sees
    assert "65 tokens" in long["problem"] and "59" in long["problem"] and long["stale"]
    assert waits == 1 and base == "<bos> 3 + 3 ="  # two keys in haste ask once
    best = tasks.VOCABULARY[next_shares(model, "3+3=").argmax()]
    assert few["big"] == best and "no example" in few["labels"][2]


# ---------------------------------------------------------------- the guided opening

STORY = """
const look = () => {
    const prompt = at("story-prompt");
    const bold = prompt.querySelectorAll("b").map((one) => one.textContent);
    const last = prompt.lastChild;
    const heads = at("story-heads").children.map((one) => one.className);
    return {
        prompt: prompt.textContent, bold, changed: last.className === "changed", heads,
        words: at("story-words").textContent, at: at("story-at").textContent,
        next: at("story-next").textContent, back: !at("story-back").disabled,
        done: parseFloat(at("story").attributes.style.split(":")[1]),
    };
};
for (let i = 0; i === 0 || (at("story-at").textContent[0] !== "1" && i < 9); i++) {
    said.push(look());
    at("story-next").click();
}
at("story-next").click();
at("story-back").click();
return [...said, look()];
"""
HIGH, TRUE, MIXED = "1+1=3, 2+2=5, 3+3=", "1+1=2, 2+2=4, 3+3=", "1+1=2, 2+2=6, 3+3="


@needs_node
def test_the_guided_opening_tells_what_a_model_known_by_hand_answers(tmp_path):
    """Head 0.0 carries the answer; here 0.3 passes for the head that does, and is found out."""
    groups = {"function_induction": ["0.3"], "shown_answer": ["0.1"]}
    *steps, again = said_by(by_hand(tmp_path, groups, n_layers=2), STORY)
    asked = [(HIGH, "7"), (TRUE, "6"), (HIGH, "7"), (HIGH, "7"), (MIXED, "8"), (HIGH, "7")]
    assert [one["prompt"] for one in steps] == ["".join(pair) for pair in asked]
    assert [one["bold"] for one in steps] == [["3", "5"], [], ["3", "5"], ["3", "5"], ["6"]] + [
        ["3", "5"]
    ]
    assert [one["at"] for one in steps] == [f"{n} of 6" for n in range(1, 7)]
    assert [round(one["done"]) for one in steps] == [17, 33, 50, 67, 83, 100]
    assert [one["back"] for one in steps] == [False] + [True] * 5
    titles = ["Show it true sums", "Swap one head", "Swap the 1 FI head", "Mix two rules"]
    assert [one["next"] for one in steps] == [*titles, "Your turn", "Start again"]
    wanted = ["answers 7, one too high as well", "answers 6, the true sum"]
    wanted += ["Head 0.2, one of 8 that", "heads, 0.3, send", "answers 8, like the second"]
    for one, words in zip(steps, wanted):
        assert words in one["words"]
    assert all("still 7, nothing happens" in one["words"] for one in steps[2:4])
    rest = [
        "",
        "shown_answer",
        "",
        "function_induction",
    ]  # heads 0.0 to 0.3, below those of layer 1
    assert steps[0]["heads"] == [""] * 4 + rest
    assert steps[2]["heads"] == [""] * 4 + [*rest[:2], "swapped", rest[3]]
    assert steps[3]["heads"] == [""] * 4 + [*rest[:3], "swapped"]
    assert not any(one["changed"] or "guess" in one["words"] for one in steps)
    assert again == steps[0]


@needs_node
@pytest.mark.parametrize(
    "more, told",
    [
        (1, ["6, the true sum", "5, something else", "7, in between"]),
        (0, ["5, something else", "4, something else", "6, like the first"]),
    ],
)
def test_the_guided_opening_makes_nothing_up(tmp_path, more, told):
    groups, size = {"function_induction": ["0.0"]}, 0.01 if more else 1.0
    report = by_hand(tmp_path, groups, more, size, n_heads=2)
    *steps, _ = said_by(report, STORY)
    for step, words in zip((0, 1, 4), told):
        assert f"answers {words}." in steps[step]["words"]
    becomes = f"the answer becomes {told[1]}"
    assert becomes in steps[3]["words"] and "0.0, send" in steps[3]["words"]
    assert [one["changed"] for one in steps] == [False] * 3 + [True] + [False] * 2
    unsure = ["This is a guess: " in one["words"] for one in steps]
    assert unsure == [more == 1] * 6  # with small logits nothing is sure


@needs_node
@pytest.mark.parametrize(
    "groups, left",
    [
        ({"function_induction": ["0.0"], "shown_answer": ["0.1"]}, [1, 2, 4, 5, 6]),
        ({"shown_answer": ["0.0"]}, [1, 2, 5, 6]),
    ],
    ids=["no other head", "no head that carries"],
)
def test_the_guided_opening_leaves_out_a_step_that_has_no_heads(tmp_path, groups, left):
    script = """
        const next = () => at("story-next").click() ?? at("story-next").textContent;
        return [at("story-at").textContent, ...[1, 2, 3].map(next)];
    """
    first, *titles = said_by(by_hand(tmp_path, groups, n_heads=2), script)
    names = {3: "Swap one head", 4: "Swap the 1 FI head", 5: "Mix two rules"}
    names |= {1: "Start again", 2: "Show it true sums", 6: "Your turn"}
    assert first == f"1 of {len(left)}"
    assert titles == [names[step] for step in [*left, *left][2:5]]


# ---------------------------------------------------------------- a path, patched by hand

PATH = """
const view = at("path-view");
const isPart = (one) => one.localName !== "svg";
const parts = (run) => run.querySelector(".parts").children.filter(isPart);
const place = (one) => one.attributes.style.match(/\\d+/g).slice(0, 2).map(Number);
const look = (run) => ({
    title: run.querySelector("h3").textContent,
    hint: run.querySelector("p").textContent,
    F: run.children.at(-1).textContent,
    parts: Object.fromEntries(parts(run).map((one) => [one.textContent, place(one)])),
    buttons: words(parts(run).filter((one) => one.localName === "button")),
    marks: parts(run).map((one) => [one.textContent, one.className]).filter(([, looks]) =>
        / (sender|receiver)/.test(looks)),
    answer: parts(run)[0].textContent,
    way: run.querySelector(".way")?.attributes.d ?? null,
});
const state = () => ({
    runs: view.querySelectorAll(".run").map(look), sum: view.querySelector(".sum").textContent,
    chips: view.querySelectorAll(".chip").map((one) => [one.textContent, one.ariaPressed]),
});
const words = (elements) => elements.map((one) => one.textContent);
Playground.ask(data.asked);
const results = [state()];
for (const ids of data.clicks) {
    ids.forEach((id) => at(id).click());
    results.push(state());
}
return results;
"""
SENDERS = [
    "embedding",
    "mlp0",
    "mlp1",
    "mlp2",
    *(f"{layer}.{i}" for layer in range(3) for i in (0, 1)),
]


def two_runs(model, *texts):
    """float64: (tokens [1, pos], the cache, the last logits [1, d_vocab]) of each text."""
    for text in texts or (ASKED, PLAIN):
        tokens = tasks.encode(text)[None]
        logits, cache = model.run_with_cache(tokens)
        yield tokens, cache, logits[:, -1]


def patched_logits(model, sender, receiver, *texts):
    (contrast, _, _), (_, sent, _) = two_runs(model, *texts)
    ends = definition.sender(sender), definition.receiver(receiver, model.cfg)
    return definition.path_patch(model, contrast, sent, ends[:1], ends[1:])


def numbers_in(text):
    return [float(x.replace("−", "-")) for x in re.findall(r"(?<!\d)[-−]?\d+\.\d+", text)]


@needs_node
def test_a_path_patched_by_clicks_shows_the_runs_and_r_that_the_definition_gives(drawn):
    report, model = drawn[0], drawn[1]
    picks = [("mlp0", "2.1", "v"), ("0.1", "2.0", "q"), ("embedding", "1.0", "k")]
    clicks = [[f"sender-{a}", f"receiver-{b}", f"input-{c}"] for a, b, c in picks]
    clicks += [["receiver-logits", "sender-1.1"], ["sender-2.0"], ["receiver-2.0"]]
    data = json.dumps({"asked": ASKED, "clicks": clicks})
    states = said_by(report, f"const data = {data};" + PATH, without=DRAWN[:1])
    model = copy.deepcopy(model).double()
    (_, _, now), (_, _, base) = two_runs(model, HIGH, TRUE)
    first = [int(logits.argmax()) for logits in (base, now)]
    heads = SENDERS[4:]
    moved = {head: patched_logits(model, head, "logits", HIGH, TRUE)[0] for head in heads}
    way_back = {head: logits[first[0]] - logits[first[1]] for head, logits in moved.items()}
    strongest = max(way_back, key=way_back.get)  # the plain answer is above in the base run alone

    (_, _, F_now), (_, _, F_base) = two_runs(model)
    ids = [int(logits.argmax()) for logits in (F_base, F_now)]
    plain, shifted = (tasks.VOCABULARY[token] for token in ids)

    def F(logits):
        return [float(logits[0, ids[0]]), float(logits[0, ids[1]])]

    def of(logits):
        return F(logits)[0] - F(logits)[1]

    def r(logits):
        return (of(logits) - of(F_now)) / (of(F_now) - of(F_base))

    wanted = [(strongest, "logits"), *((a, f"{b}.{c}") for a, b, c in picks)]
    wanted += [
        ("1.1", "logits"),
        ("2.0", "logits"),
        ("embedding", "2.0.k"),
    ]  # nothing in 2.0 is below
    for state, (sender, receiver) in zip(states, wanted, strict=True):
        logits = patched_logits(model, sender, receiver)
        runs, target = state["runs"], receiver.rpartition(".")[0] or "logits"
        assert [run["title"] for run in runs] == [
            f"The {x} run" for x in ("base", "contrast", "patched")
        ]
        assert runs[0]["hint"].startswith(PLAIN) and runs[1]["hint"].startswith(ASKED)
        for run, its in zip(runs, (F_base, F_now, logits)):
            assert run["answer"] == f"answer {tasks.VOCABULARY[its.argmax()]}"
            assert numbers_in(run["F"]) == pytest.approx([*F(its), of(its)], abs=0.006)
            assert ("− (−" in run["F"]) == (F(its)[1] < 0)
            assert list(run["parts"].values())[0] == [1, 1]  # the answer on top, the tokens below
            assert run["parts"]["tokens"] == [5, 1] and run["parts"]["mlp0"] == [4, 4]
            assert run["parts"]["0.1"] == [4, 3] and run["parts"]["2.0"] == [2, 2]
        assert [set(run["buttons"]) for run in runs] == [
            {"tokens", *SENDERS[1:]},
            set(),
            {runs[2]["answer"], *heads},
        ]
        sends = {"embedding": "tokens"}.get(sender, sender)
        reads = {"logits": runs[2]["answer"]}.get(target, target)
        marks = [{name: looks.split()[-1] for name, looks in run["marks"]} for run in runs]
        assert marks == [{sends: "sender"}, {}, {sends: "sender", reads: "receiver"}]
        (y, x), (top, end) = (runs[2]["parts"][name] for name in (sends, reads))
        assert runs[0]["way"] is None and runs[1]["way"] is None
        way = f"M{x - 0.5} {y - 0.5}v-0.42H0.5V{top - 0.08}H{end - 0.5}v-0.42"
        assert runs[2]["way"] == way.replace(".0 ", " ").replace(".0v", "v")
        told, read, more = state["sum"].partition("\nAn MLP reads what the heads below it wrote")
        assert bool(read) == sender.startswith("mlp") and more.endswith("." if read else "")
        *note, first, answers, given, share, above = told.split(chr(10))
        gives_way = receiver == "2.0.k"  # where 2.0 itself was the sender
        assert note == (["2.0 is not before 2.0, so it cannot send to it."] if gives_way else [])
        assert first == f"F = score (logit) of {plain} − score of {shifted}"
        assert answers.strip() == "r = (F patched − F contrast) / (F contrast − F base)"
        for written in (given, *(run["F"] for run in runs)):  # brackets around what is below 0
            assert not re.search(r"− −|− \(\d", written)
        four = [of(logits), of(F_now), of(F_now), of(F_base)]
        assert numbers_in(given) == pytest.approx(four, abs=0.006)
        assert numbers_in(share)[0] == pytest.approx(100 * r(logits), abs=0.06)
        assert share.endswith(f"where −100 % is all the way back to {plain}")
        assert above.strip() == "and above 0 further away from it"
        chips = [[name[0], pressed] for name, pressed in state["chips"]]
        which = receiver[-1]
        assert chips == [[x, str(x == which).lower()] for x in "qkv" if target != "logits"]


# ---------------------------------------------------------------- the circuit over a prompt

# One head takes the answer to the other prompt's, the other further away; so do shown answers.
BOTH_WAYS = ("2+3=4, 6+1=6, 3+4=", "2+3=5, 6+1=7, 3+4=")
CIRCUIT = """
const view = at("circuit-view");
const lineOf = (one) => ({
    kind: one.className.split(" ")[1], head: one.dataset.head,
    against: one.classList.contains("against"), width: Number(one.attributes["stroke-width"]),
});
const isToken = (group) => /^(word|shown) /.test(group.className);
const panel = (one) => ({
    title: one.querySelector("h3").textContent,
    answer: one.querySelector(".answer text").textContent,
    words: one.querySelectorAll("g").filter(isToken).map((g) => g.textContent),
    spots: one.querySelectorAll(".spot").map((spot) => [spot.textContent, spot.className]),
    lines: one.querySelectorAll(".line").map(lineOf),
});
Playground.ask(data.asked);
const panels = view.querySelector(".panels").children.map(panel);
const hint = () => view.querySelector(".hint").textContent;
const said = view.querySelectorAll(".spot").map((spot) => {
    spot.focus();
    return [spot.textContent, hint(), view.querySelectorAll(".lit").map((one) => one.dataset.head)];
});
const chosen = () => view.classList.contains("chosen");
document.activeElement.blur();
const [spot, other] = view.querySelectorAll(".spot");
const pins = [[chosen(), hint()]];
const [pin, point, leave] = [() => spot.click(), () => other.focus(), () => other.blur()];
const enter = () => spot.dispatchEvent(new Event("keydown", { key: "Enter" }));
for (const act of [enter, point, leave, pin]) {
    act();
    pins.push([chosen(), hint()]);
}
spot.click();
Playground.ask("1+1=3, 2+5=8, 3+3=");
const another = view.querySelector(".spot");
another.focus();
another.blur(); // what was kept is of the old prompt
pins.push([chosen(), hint()]);
Playground.ask("3+3=");
return { panels, said, pins, alone: view.children[0].textContent };
"""


@needs_node
def test_the_widest_line_to_the_answer_is_15_px_whichever_way_it_leads(drawn):
    """Here it leads back: r of head 1.1 is -1.24, the largest r above zero is .71."""
    asked = json.dumps({"asked": "9+1=11, 2+7=10, 5+3="})
    said = said_by(drawn[0], f"const data = {asked};" + CIRCUIT, without=DRAWN[1:])
    outs = [x for panel in said["panels"] for x in panel["lines"] if x["kind"] == "out"]
    widest = max(outs, key=lambda line: line["width"])
    assert widest["width"] == pytest.approx(15) and widest["head"] == "1.1"
    assert not widest["against"]


def in_words(tokens, at):
    """A token of a prompt, and the example it stands in."""
    start, names = (at - 1) // 6 * 6 + 1, [tasks.VOCABULARY[token] for token in tokens]
    return f"“{names[at]}” in “{''.join(names[start : start + 5])}”" if at else "the start"


@needs_node
def test_the_circuit_shows_each_effect_and_says_what_a_head_does(drawn):
    report, model = drawn[0], copy.deepcopy(drawn[1]).double()
    said = said_by(
        report, f"const data = {json.dumps({'asked': BOTH_WAYS[0]})};" + CIRCUIT, without=DRAWN[1:]
    )
    sides = [(tokens, cache, logits[0]) for tokens, cache, logits in two_runs(model, *BOTH_WAYS)]
    names = [tasks.VOCABULARY[int(logits.argmax())] for _, _, logits in sides]
    answers = [int(sides[1][2].argmax()), int(sides[0][2].argmax())]
    fi, readers, effects = ["1.1", "2.0"], ["0.0", "0.1"], []

    def F(logits):
        return float(logits[answers[0]] - logits[answers[1]])

    for own, other in (sides, sides[::-1]):
        gap = F(own[2]) - F(other[2])
        into, out = {}, {}
        for head in fi:
            alone = [answer_alone(model, *own[:2], other[1], head, at) for at in (5, 11)]
            into[head] = [(F(logits) - F(own[2])) / gap for logits in alone]
            ends = definition.sender(head), definition.receiver("logits", model.cfg)
            patched = definition.path_patch(model, own[0], other[1], ends[:1], ends[1:])
            out[head] = (F(patched[0]) - F(own[2])) / gap
        effects.append((into, out))
    unit = 15 / max(0.3, *(abs(r) for _, out in effects for r in out.values()))  # px of r = 1

    def pattern(cache, head):
        layer, index = head.split(".")
        return cache[f"blocks.{layer}.attn.hook_pattern"][0, int(index)]

    titles = ["The prompt you asked", "Its base prompt"]
    for side, (panel, (_, cache, _), (into, out)) in enumerate(zip(said["panels"], sides, effects)):
        assert [panel["title"], panel["answer"]] == [titles[side], names[side]]
        assert "".join(panel["words"]) == BOTH_WAYS[side].replace(", ", "")
        found = {}
        for line in panel["lines"]:
            found.setdefault((line["kind"], line.get("head")), []).append(line)
        for head in fi:
            [one] = found["out", head]
            assert one["width"] == pytest.approx(max(0.8, abs(out[head]) * unit), abs=1e-3)
            assert one["against"] == (out[head] > 0)
            drawn_r = [r for r in into[head] if abs(r) >= 0.01][::-1]  # the nearest example first
            lanes = found.get(("into", head), [])
            widths = [max(0.8, abs(r) * unit) for r in drawn_r]
            assert [one["width"] for one in lanes] == pytest.approx(widths, abs=1e-3)
            assert [one["against"] for one in lanes] == [r > 0 for r in drawn_r]
        for head in readers:
            shares = [pattern(cache, head)[at, [at - 4, at - 2]].sum() for at in (5, 11)]
            widths = [0.6 + 2.6 * float(share) for share in shares]
            assert [one["width"] for one in found["reads", head]] == pytest.approx(widths, abs=1e-3)
            assert not any(one["against"] for one in found["reads", head])
        assert sorted(name for name, _ in panel["spots"]) == sorted(2 * readers + fi)
        looks = dict(panel["spots"])
        assert looks["1.1"].endswith("function_induction") and "shown_answer" in looks["0.0"]
    signs = {r > 0 for _, out in effects for r in out.values()}
    signs |= {(r > 0, at) for into, _ in effects for rs in into.values() for at, r in enumerate(rs)}
    assert {True, False, (False, 0), (True, 1)} <= signs  # both ways were drawn, of examples too

    spots = [(side, *spot) for side in (0, 1) for spot in said["panels"][side]["spots"]]
    seen_at, role = {}, {"0.0": "shown", "0.1": "expected"}
    for (side, head, _), (name, words, lit) in zip(spots, said["said"], strict=True):
        tokens, cache = sides[side][0][0].tolist(), sides[side][1]
        seen_at[side, head] = seen_at.get((side, head), -1) + 1
        last = head in fi
        at = len(tokens) - 1 if last else (5, 11)[seen_at[side, head]]
        shares = pattern(cache, head)[at]
        best = int(shares.argmax())
        assert name == head and set(lit) == {head}
        group = "FI heads" if last else f"heads that bring the {role[head]} answer"
        assert words.startswith(f"Head {head}, one of the {group}: ")
        assert f"from {in_words(tokens, at)} it looks most at {in_words(tokens, best)} (" in words
        r = effects[side][1].get(head)
        shown = [float(share) for share in re.findall(r"([\d.]+) %", words)]
        assert shown[0] == pytest.approx(100 * float(shares[best]), abs=0.06)
        assert ("of the way to" in words) == (r is not None and r < 0)
        assert ("further away from" in words) == (r is not None and r > 0)
        if r is not None:
            assert shown[1] == pytest.approx(100 * abs(r), abs=0.06)
            assert f"{'of the way to' if r < 0 else 'away from'} {names[1 - side]} (r = " in words
            assert ("r = −" in words) == (r < 0) and ("r = +" in words) == (r > 0)
            average = {"1.1": "+25.0", "2.0": "−5.3"}[head]  # of circuit.json, on contrast prompts
            told = f" % on this prompt; {average} % on average)."
            assert words.endswith(told) if side == 0 else "average" not in words
    (quiet, point), (on, first), (_, second), (kept, again), (off, _), asked_anew = said["pins"]
    assert not quiet and "Point at or tap a head" in point and on and first != second
    assert kept and again == first and first.startswith("Head 0.0")
    assert off  # the pointer is still there, so that it stays lit
    assert asked_anew == [quiet, point]
    assert said["alone"].startswith("Both prompts ")  # are answered alike


WHERE = """
const number = (one, name) => Number(one.attributes[name]);
const box = (group) => {
    const [rect, text] = group.children;
    const [x, y, width, height] = ["x", "y", "width", "height"].map((name) => number(rect, name));
    const middle = [number(text, "x"), number(text, "y")];
    return { kind: group.className.split(" ")[0], text: group.textContent, middle,
        box: [x, y, x + width, y + height] };
};
const drawn = at("circuit-view").querySelector(".panels svg");
const points = (one) => one.attributes.d.match(/[-\\d.]+/g).map(Number);
const line = (one) => [one.className.split(" ")[1], points(one)];
return {
    boxes: drawn.querySelectorAll("g").map(box),
    lines: drawn.querySelectorAll(".line").map(line),
    frame: drawn.attributes.viewBox.match(/[-\\d.]+/g).map(Number),
    size: ["width", "height"].map((name) => number(drawn, name)),
};
"""


@needs_node
@pytest.mark.parametrize("narrow", [False, True])
def test_tokens_lie_along_one_side_and_layers_rise_from_them(drawn, narrow):
    """Wide: tokens from left to right, layers upwards. Narrow: tokens down, layers to the right."""
    said = said_by(drawn[0], WHERE, without=DRAWN[1:], narrow=narrow)
    boxes, (x, y, width, height) = said["boxes"], said["frame"]
    assert said["size"] == [width, height]
    along, up = (1, 0) if narrow else (0, 1)
    rise = 1 if narrow else -1  # upwards y falls

    def of(*kinds):
        return [one for one in boxes if one["kind"] in kinds]

    tokens = of("word", "shown")
    assert [one["text"] for one in tokens] == tasks.decode(tasks.encode(HIGH)).replace(
        " ;", ""
    ).split()[1:]
    answers = [one["middle"][along] for one in of("shown")] + [tokens[-1]["middle"][along]]
    assert answers == sorted(answers)
    numbers = [one for one in boxes if one["kind"] == "layer" and one["text"]]
    bands = [one for one in boxes if one["kind"] == "layer" and not one["text"]]
    names = [one["text"] for one in numbers]
    assert names == [str(n) if narrow else f"layer {n}" for n in (0, 1, 2)]
    middles = [rise * one["middle"][up] for one in numbers]
    assert middles == sorted(middles) and middles[0] > rise * tokens[0]["middle"][up]
    for band, number in zip(bands, numbers, strict=True):
        low, high = band["box"][up], band["box"][up + 2]
        assert number["middle"][up] == pytest.approx((low + high) / 2)
        layer = number["text"][-1]
        inside = [one["text"] for one in of("spot") if low < one["middle"][up] < high]
        assert inside and {head[0] for head in inside} == {layer}
    [answer] = of("answer")
    assert rise * answer["middle"][up] > middles[-1]  # above all layers
    for one in boxes:
        ends = [*one["box"][:2], *one["box"][2:]]
        for a, b in (ends[:2], ends[2:]):
            assert x <= a <= x + width and y <= b <= y + height
        mean = [(one["box"][i] + one["box"][i + 2]) / 2 for i in (0, 1)]
        assert one["middle"] == pytest.approx(mean)
    rising = [points for kind, points in said["lines"] if kind in ("stream", "last")]
    assert len(rising) == 3
    for points, start in zip(rising, answers):
        assert points[along] == points[-2 + along] == pytest.approx(start)
        assert rise * points[-2 + up] > rise * points[up]


# ---------------------------------------------------------------- while it learned

SLIDE = """
const numbers = (text) => text.match(/-?[\\d.]+/g).map(Number);
const curve = (name) => at("learned-curves").querySelector(`.${name} polyline`).attributes.points;
const arcs = (kind) => at("learned-attention").querySelectorAll(`path.${kind}`).map((one) =>
    [numbers(one.attributes.d), Number(one.attributes["stroke-width"])]);
const look = () => ({
    now: at("learned-now").textContent, said: at("learned-step").ariaValueText,
    answer: at("learned-answer").textContent,
    answers: at("learned-answers").children.map((one) => [one.textContent,
        ...numbers(one.querySelector(".bar").attributes.style.replaceAll("--", ""))]),
    curves: ["plain", "off_by_one"].map((name) => curve(name).split(" ").map(numbers)),
    mark: numbers(at("learned-curves").children[0].attributes.d),
    shares: at("learned-curves").querySelectorAll("g text").map((one) => one.textContent),
    axes: at("learned-curves").children.filter((one) => one.localName === "text").map((one) =>
        [one.textContent, ...["x", "y"].map((name) => Number(one.attributes[name]))]),
    arcs: { fi: arcs("function_induction"), others: arcs("others") },
    written: at("learned-attention").querySelectorAll("text").map((one) =>
        [one.textContent, Number(one.attributes.x)]),
    cells: at("learned-heads").children.map((cell) =>
        [cell.dataset.head, cell.lastChild.textContent, cell.dataset.fi,
         numbers(cell.attributes.style.replace("--v", ""))[0]]),
});
said.push(look());
for (const value of data.values) {
    at("learned-step").value = value;
    at("learned-step").dispatchEvent(new Event("input"));
    said.push(look());
}
return said;
"""


def looks_of(step, plain, shifted, r, fi, answers, attention):
    parts = {"step": step, "plain": plain, "off_by_one": shifted, "F_range": -4.0, "r": [r]}
    return parts | {"fi": fi, "answers": answers, "attention": [attention]}


@needs_node
def test_the_slider_shows_each_step_as_it_was_kept(tmp_path):
    even, first, last = [0.5, 0.25, 0.25], [1.0, 0.0, 0.0], [0.0, 0.04, 0.96]
    early = [["3", 0.4], ["4", 0.35]], [even, even, even, first]
    looks = [looks_of(0, 0.1, 0.0, [0.0, 0.01, -0.02, 0.3], [], *early)]
    middle = [["6", 0.9]], [first, even, last, last]
    looks += [looks_of(3, 0.5, 0.25, [-0.25, 0.0, -0.5, 0.125], ["0.0", "0.2"], *middle)]
    late = [["7", 1.0], ["6", 0.0]], [first, even, even, last]
    looks += [looks_of(12, 1.0, 0.75, [0.0, 0.5, -1.0, -0.1], ["0.2"], *late)]
    criteria = {"solves": 0.5, "strong": 0.05, "looks_at_answers": 0.3}
    save_json(
        tmp_path / "learning.json", {"prompt": "<bos> 1 =", "looks": looks, "criteria": criteria}
    )
    metrics = [{"step": 9, "accuracy": {"addition": {k: {"8": 1.0} for k in "01"}}}]
    save_lines(tmp_path / "metrics.jsonl", metrics)
    report = by_hand(tmp_path, {"function_induction": ["0.2"]})
    opened, *said, end = said_by(report, "const data = {values: [0, 1, 2]};" + SLIDE)
    assert opened == end  # the page opens on the last step
    x = [44, 44 + 355 / 4, 399]  # px of steps 0, 3, 12
    for index, got in enumerate([*said, end]):
        look = looks[index]
        assert got["now"] == str(look["step"]) and got["said"] == f"step {look['step']}"
        assert got["answer"] == look["answers"][0][0]
        for (written, now, before), (token, share) in zip(got["answers"], look["answers"]):
            assert written.startswith(token) and (now, before) == (100 * share, -100)
        for curve, key in zip(got["curves"], ("plain", "off_by_one")):
            wanted = [(place, 175 - 160 * each[key]) for place, each in zip(x, looks)]
            assert [n for point in curve for n in point] == pytest.approx(sum(wanted, ()))
        assert got["mark"] == pytest.approx([x[index], 175, 15])  # from 0 % to 100 %
        told = [re.sub(r"[\d.]+ %", "", words) for words in got["shares"]]
        assert told == ["plain: ", "off by one: "]
        shares = [float(re.search(r"[\d.]+", words)[0]) for words in got["shares"]]
        assert shares == [100 * look["plain"], 100 * look["off_by_one"]]
        axes = [["0 %", 20, 179], ["step 0", 44, 193], ["50 %", 20, 99], ["step 6", 221.5, 193]]
        assert got["axes"] == [*axes, ["100 %", 20, 19], ["step 12", 399, 193]]
        of_fi = look["attention"][0][2]  # the head that is FI in the end, whatever it is now
        rest = [sum(look["attention"][0][head][at] for head in (0, 1, 3)) / 3 for at in range(3)]
        for kind, shares, width in (("fi", of_fi, 16), ("others", rest, 5)):
            for (path, stroke), share, end in zip(got["arcs"][kind], shares, (18, 220, 422)):
                assert stroke == pytest.approx(width * share, abs=0.01)
                assert (path[0], path[-2]) == (422, end)  # from the last token to each
        words = [["bos", 18], ["1", 220], ["=", 422], *[["", 18], ["", 220], ["", 422]]]
        noted = [str(round(100 * share)) if share > 0.1 else "" for share in of_fi]
        wanted = [*words[:3], *([word, at] for word, at in zip(noted, (18, 220, 422)) if word)]
        assert [pair for pair in got["written"] if pair[0]] == wanted
        for head, shown, is_fi, filled in got["cells"]:
            added = -4.0 * look["r"][0][int(head[2])]
            assert filled == pytest.approx(20 * added) and is_fi == str(head in look["fi"]).lower()
            assert float(shown.replace("−", "-") or 0) == pytest.approx(added, abs=0.05)
            assert (shown == "") == (abs(added) < 0.05)


# ---------------------------------------------------------------- theme, tips, keys

MOVES = """
const root = document.documentElement;
const themes = [[root.dataset.theme, at("theme").textContent]];
for (const _ of [1, 2]) {
    at("theme").click();
    themes.push([root.dataset.theme, at("theme").textContent]);
}
const tipped = document.querySelector("#heads [data-tip]");
const tip = () => [at("tip").classList.contains("shown"), at("tip").textContent];
const move = (target) => target.dispatchEvent(new Event("pointermove", { bubbles: true }));
move(tipped);
const tips = [tip()];
document.dispatchEvent(new Event("keydown", { key: "a" }));
tips.push(tip());
document.dispatchEvent(new Event("keydown", { key: "Escape" }));
tips.push(tip());
move(tipped);
move(at("prompt"));
tips.push(tip());
const spots = at("circuit-view").querySelectorAll(".panels svg")[0].querySelectorAll(".spot");
spots[0].focus();
const press = (key) => {
    document.activeElement.dispatchEvent(new Event("keydown", { key, bubbles: true }));
    return [spots.indexOf(document.activeElement), spots.map((spot) => spot.tabIndex).join(" ")];
};
const stops = spots.map((spot) => spot.tabIndex).join(" ");
const keys = ["ArrowRight", "ArrowDown", "ArrowLeft", "x", "ArrowUp", "ArrowUp"].map(press);
const table = document.querySelector("table.heat");
const cells = table.querySelectorAll("[data-tip]");
cells[8].focus(); // the second row's third of six
const walk = (key) => {
    document.activeElement.dispatchEvent(new Event("keydown", { key, bubbles: true }));
    return cells.indexOf(document.activeElement);
};
const sides = ["ArrowUp", "ArrowUp", "ArrowDown", "ArrowRight", "ArrowDown", "ArrowLeft"];
const walked = sides.map(walk);
const moved = [[300, 100], [900, 750], [-50, 100]].map(([clientX, clientY]) => {
    const event = new Event("pointermove", { bubbles: true, clientX, clientY });
    tipped.dispatchEvent(event);
    return ["left", "top"].map((side) => parseFloat(at("tip").style[side]));
});
const stopped = cells.map((cell) => cell.tabIndex);
return { themes, tips, tip: tipped.dataset.tip, stops, keys, walked, stopped, moved };
"""


@needs_node
def test_a_page_has_two_themes_tips_that_go_and_one_stop_of_the_tab_key_per_picture(drawn):
    said = said_by(drawn[0], MOVES, without=DRAWN[1:])
    light, dark = ["light", "dark theme"], ["dark", "light theme"]  # the button says the other
    assert said["themes"] == [light, dark, light]
    shown = [True, said["tip"]]
    assert said["tips"] == [shown, shown, [False, said["tip"]], [False, said["tip"]]]
    n_spots = len(said["stops"].split())
    stop = [" ".join(["-1"] * at + ["0"] + ["-1"] * (n_spots - 1 - at)) for at in range(n_spots)]
    assert said["stops"] == stop[0] and n_spots == 6
    assert said["keys"] == [[at, stop[at]] for at in (1, 2, 1, 1, 0, 0)]
    assert said["walked"] == [2, 2, 8, 9, 15, 14]  # rows of six; above the first is nothing
    assert [at for at, index in enumerate(said["stopped"]) if index == "0"] == [0, 14]
    # The tip is 200 x 40 px, the window 1000 x 800: right below the pointer, and inside.
    below, above, left = said["moved"]
    assert 300 < below[0] < 330 and 100 < below[1] < 130
    assert above[0] + 200 <= 1000 and above[1] + 40 < 750 < above[1] + 90  # over it
    assert left[0] >= 0


# ---------------------------------------------------------------- prompts as text

ONE, FEW_RIGHT = "no example shows by which rule to answer", "the model gives it less than half"
LITTLE, MIXED_UP = "one example is little to go by", "the examples are off by different amounts"
DOUBTED = [  # a prompt, the probability of its answer, and why that is a guess
    ("3+3=", 0.9, [ONE]),
    ("3+3=", 0.2, [ONE, FEW_RIGHT]),
    ("1+1=3, 3+3=", 0.5, []),
    ("1+1=3, 3+3=", 0.49, [LITTLE, FEW_RIGHT]),
    ("1+1=3, 2+2=5, 3+3=", 0.49, [FEW_RIGHT]),
    ("1+1=3, 5-2=4, 3+3=", 0.4, [FEW_RIGHT]),
    ("1+1=3, 2+2=4, 3+3=", 0.4, [MIXED_UP, FEW_RIGHT]),
    ("1+1=3, 2+2=4, 3+3=", 0.5, []),
    ("1+1=1, 2 max 5=4, 6 min 3=2, 4 first 7=3, 4 second 7=6, 2 same _=1, 3+3=", 0.1, [FEW_RIGHT]),
]
READ = """
const asTyped = (strings) => P.toText(strings.split(" "));
const read = (text) => P.tokenize(text, data.words);
const refused = (text) => {
    try {
        return read(text).join(" ");
    } catch (error) {
        return error.message;
    }
};
return {
    typed: data.drawn.map(asTyped),
    again: data.drawn.map((strings) => read(asTyped(strings)).join(" ")),
    bases: data.drawn.map((text) => P.baseTokens(text.split(" "), data.words).join(" ")),
    why: data.doubted.map(([text, share]) => P.doubts(read(text), share)),
    refused: data.refused.map(refused),
};
"""


@needs_node
def test_prompts_of_every_kind_are_typed_and_read_back_and_made_plain_as_ask_does_it():
    drawn = []
    for name, task in tasks.TASKS.items():
        for k in task.ks[:2]:
            pairs = tasks.evaluation_pairs(name, k, 3, 3, torch.Generator().manual_seed(k + 9))
            drawn += pairs.contrast
    drawn.append(tasks.encode("30+30=1, 0-20=1, 2+2="))  # 60 and -20 are no tokens: these stay
    strings = [tasks.decode(tokens) for tokens in drawn]
    odd = ["1 a 2=3, 2+2=", "1+1=3, 2+2=5", "1+1=, 2+2=", "1+31=", "1+1 2+2="]
    data = {"drawn": strings, "doubted": DOUBTED, "refused": odd, "words": tasks.VOCABULARY}
    said = node(READ, **data)
    assert said["again"] == strings
    assert said["bases"] == [tasks.decode(ask.base_prompt(tokens)) for tokens in drawn]
    assert said["typed"][-1] == "30+30=1, 0-20=1, 2+2="
    assert said["why"] == [why for *_, why in DOUBTED]
    unread, opened, twice, unknown, joined = said["refused"]
    assert "cannot read “1 a 2=3”" in unread and opened.startswith("leave the last answer open")
    assert "cannot read “2+2=”" in twice and "cannot read “1+1 2+2=”" in joined
    assert "31 is not known" in unknown
    assert all("1+1=3, 2+2=5, 3+3=" in told for told in said["refused"])


# ---------------------------------------------------------------- the folded attention

UNFOLDED = """
const painted = [];
globalThis.ImageData = class { constructor(data) { Object.assign(this, { data }); } };
const paint = { putImageData: ({ data }) => painted.push([...data.filter((_, i) => i % 4 === 3)]) };
at("attention").constructor.prototype.getContext = () => paint;
Page.data.attention = { "2.0": { last_to_answers: 0.25 }, "1.1": { last_to_answers: 0.5 } };
const mean = () => at("attention-mean").textContent;
Playground.ask("1+1=3, 2+5=8, 3+3=");
const folded = [at("squares").textContent, mean()];
at("attention").open = true;
at("attention").dispatchEvent(new Event("toggle"));
const squares = at("squares").querySelectorAll(".square").map((one) => [
    one.textContent, one.className, one.dataset.tip]);
const first = at("squares").querySelector(".square");
const canvas = first.querySelector("canvas");
canvas.clientWidth = 170; // 10 px for each of 17 tokens
canvas.onpointermove({ offsetX: 55, offsetY: 115 });
const told = [mean(), first.dataset.tip];
Page.data.attention = {};
Playground.ask("1+1=2, 3+3=");
return [folded, squares, painted.slice(0, 6), told, mean()];
"""


@needs_node
def test_unfolded_each_head_has_a_square_and_the_fi_heads_a_mean_beside_the_usual_one(drawn):
    report, model = drawn
    folded, squares, painted, (told, tip), unknown = said_by(report, UNFOLDED)
    assert folded == ["", ""]  # nothing is drawn before it is unfolded
    heads = ["2.0", "2.1", "1.0", "1.1", "0.0", "0.1"]
    assert [name for name, *_ in squares] == heads
    assert squares[0][1] == "square function_induction" and squares[1][1] == "square consolidation"
    _, cache = model.run_with_cache(tasks.encode(ASKED)[None])
    patterns = {
        head: cache[f"blocks.{head[0]}.attn.hook_pattern"][0, int(head[2])] for head in heads
    }
    here = sum(patterns[head][-1, [5, 11]].sum().item() for head in ("2.0", "1.1")) / 2
    shares = [float(share) for share in re.findall(r"([\d.]+) %", told)]
    assert shares == pytest.approx([100 * here, 37.5], abs=0.06)
    for head, alpha in zip(heads, painted):  # the stronger, the less seen through
        wanted = 255 * patterns[head].sqrt().flatten()
        assert alpha == pytest.approx(wanted.tolist(), abs=1.01)
    share = 100 * patterns["2.0"][11, 5].item()
    words, said = tip.split("(")
    assert words == "Head 2.0: from “8” in “2+5=8” it looks at “3” in “1+1=3” "
    assert float(said.split()[0]) == pytest.approx(share, abs=0.06)
    assert squares[0][2].startswith("Head 2.0: from “=” in “3+3=” it looks most at ")
    assert unknown == ""  # nothing is known of the prompts that were traced
