"""What the scripts of a report show, held against what is known by hand. No browser: node runs
them on as much of a document as they use (page_in_node.js)."""

import json
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

import tasks
from minifunc.report import page
from minifunc.support.files import save_json, save_tensors
from tests.handwired import empty_model, headline_model
from tests.test_report_js import NODE, needs_node, scaled_model

RUNNER = Path(__file__).with_name("page_in_node.js")
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
    save_json(folder / "circuit.json", {"groups": groups})
    assert page.main(["--run", str(folder)]) == 0
    return folder / "report.html"


def said_by(report, script, **data):
    """What a script returns that is run on a page once it is loaded."""
    tree = Tree(report.read_text())
    given = {"page": tree.root, "scripts": tree.scripts, "script": script} | data
    done = subprocess.run(
        [NODE, str(RUNNER)], input=json.dumps(given), capture_output=True, text=True, timeout=60
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


def by_hand(folder, groups, more=2, size=1.0):
    """The page of a model with two layers of four heads, of which 0.0 alone says: the last shown
    answer, and `more`. It knows numbers to 27, and nothing but +."""
    small = headline_model(len(WORDS), more)
    shape = {"n_layers": 2, "n_heads": 4, "d_vocab": len(WORDS), "n_ctx": 32}
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
    ids: Page.idsOf(["<bos>", "1", "="]),
};
"""


@needs_node
def test_the_tools_of_a_page_write_shares_and_groups_as_stated(drawn):
    said = said_by(drawn[0], TOOLS)
    assert said["percent"] == ["0 %", "0 %", "0.1 %", "5.0 %", "50.0 %", "99.9 %", *["100 %"] * 2]
    assert said["ranked"] == [1, 3, 0, 2]
    assert said["row"] == ["x25.0 %", "25", "50"]  # a bar as long as the share, a mark before
    fi, expected, shown, other = list(GROUPS)[:3] + ["consolidation"]
    wanted = [["2.0", fi], ["2.1", other], ["1.0", ""], ["1.1", fi], ["0.0", shown]]
    assert said["names"] == [*wanted, ["0.1", expected]]  # the last layer on top
    assert said["ids"] == [0, tasks.VOCABULARY.index("1"), tasks.VOCABULARY.index("=")]


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
    sets: words(at("sets").children),
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
    assert shown["sets"][0] == "all FI heads" and shown["sets"][-1] == "as trained"
    assert len(shown["sets"]) == 5  # a group without heads has none
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
    *steps, again = said_by(by_hand(tmp_path, groups), STORY)
    asked = [(HIGH, "7"), (TRUE, "6"), (HIGH, "7"), (HIGH, "7"), (MIXED, "8"), (HIGH, "7")]
    assert [one["prompt"] for one in steps] == ["".join(pair) for pair in asked]
    assert [one["bold"] for one in steps] == [["3", "5"], [], ["3", "5"], ["3", "5"], ["6"]] + [
        ["3", "5"]
    ]
    assert [one["at"] for one in steps] == [f"{n} of 6" for n in range(1, 7)]
    assert [round(one["done"]) for one in steps] == [17, 33, 50, 67, 83, 100]
    assert [one["back"] for one in steps] == [False] + [True] * 5
    titles = ["Show it true sums", "Swap one head", "Swap the heads that matter", "Mix two rules"]
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
    report = by_hand(tmp_path, {"function_induction": ["0.0"]}, more, size=0.01 if more else 1.0)
    *steps, _ = said_by(report, STORY)
    for step, words in zip((0, 1, 4), told):
        assert f"answers {words}." in steps[step]["words"]
    becomes = f"the answer becomes {told[1]}"
    assert becomes in steps[3]["words"] and "0.0, send" in steps[3]["words"]
    assert [one["changed"] for one in steps] == [False] * 3 + [True] + [False] * 2
    unsure = ["This is a guess: " in one["words"] for one in steps]
    assert unsure == [more == 1] * 6  # with small logits nothing is sure
