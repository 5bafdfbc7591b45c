"""circuit.js: no line meets a node that it doesn't touch, widths are PyTorch's effects, and what
the picture says can be had by mouse and by keyboard."""

import itertools
import json
import random

import pytest

import tasks
from tests.test_report_js import (
    MAKE,
    PATCHED,
    SOURCES,
    embedded,
    headline,  # noqa: F401 (a fixture)
    needs_browser,
    needs_node,
    node,
    reference_model,
    said_on,
)

LOAD = f"""
    globalThis.PathPatching = require({json.dumps(str(SOURCES / "patcher.js"))});
    const Circuit = require({json.dumps(str(SOURCES / "circuit.js"))});
"""

# ---------------------------------------------------------------- where everything stands


SUM = ["14", "+", "17", "=", "31", ";"]


def pictures():
    """Circuits and prompts of many sizes, each along the page and down it."""
    draw = random.Random(0)
    for shots, n_layers, n_heads in itertools.product((0, 1, 3, 12), (1, 3, 12), (1, 8)):
        heads = [f"{layer}.{head}" for layer in range(n_layers) for head in range(n_heads)]
        some = draw.sample(heads, draw.randint(0, min(12, len(heads))))
        fi = draw.sample(some, draw.randint(0, len(some)))
        readers = [head for head in some if head not in fi]
        example = ["a", "copy", "_", "=", "b", ";"] if n_heads == 8 else list(SUM)
        lanes = {head: [draw.choice([0, 0.8, 5.5]) for _ in range(shots)] for head in fi}
        for vertical in (False, True):
            yield {
                "tokens": ["<bos>", *example * shots, *example[:4]],
                "readers": sorted(readers, key=float),
                "fi": sorted(fi, key=float),
                "reads": {head: [draw.uniform(0.6, 3.2) for _ in range(shots)] for head in readers},
                "into": lanes,
                "out": {head: draw.uniform(0.8, 18) for head in fi},
                "vertical": vertical,
                "column": draw.choice([0, 180]),
            }


def box(node, picture):
    """(least t, least l, largest t, largest l) of a node."""
    half = [node.get("half"), node.get("tall")]
    if node["kind"] in ("word", "shown"):
        long = 3.9 * len(picture["tokens"][node["at"]])
        half = [6, long] if picture["vertical"] else [long, 6]
    return (node["t"] - half[0], node["l"] - half[1], node["t"] + half[0], node["l"] + half[1])


def strokes(path):
    """The boxes that the straight parts of a path cover."""
    half = path["width"] / 2
    for (t, l), (u, m) in itertools.pairwise(path["points"]):  # noqa: E741 (it is the layers' axis)
        across, up = (half, 0) if t == u else (0, half)
        yield (min(t, u) - across, min(l, m) - up, max(t, u) + across, max(l, m) + up)


def overlap(a, b):
    apart = a[0] >= b[2] - 1e-6 or b[0] >= a[2] - 1e-6
    return not (apart or a[1] >= b[3] - 1e-6 or b[1] >= a[3] - 1e-6)


def other(picture, draw):
    """The same heads on a prompt of other answers and effects, to be drawn beside it."""
    tokens = [{"31": "7", "b": "17"}.get(token, token) for token in picture["tokens"]]
    into = {head: [draw.choice([0, 0.8, 9]) for _ in i] for head, i in picture["into"].items()}
    out = {head: draw.uniform(0.8, 18) for head in picture["fi"]}
    return {**picture, "tokens": tokens, "into": into, "out": out}


@pytest.fixture(scope="module")
def laid_out():
    """(picture, layout) of each of `pictures`, and after it of what is drawn beside it."""
    wanted = [(one, other(one, random.Random(1))) for one in pictures()]
    layouts = node(LOAD + "return data.all.map(Circuit.layouts);", all=wanted)
    return [pair for both, drawn in zip(wanted, layouts) for pair in zip(both, drawn)]


@needs_node
def test_no_line_runs_through_a_node_that_it_does_not_touch(laid_out):
    n_lines = 0
    for picture, layout in laid_out:
        boxes = {name: box(node, picture) for name, node in layout["nodes"].items()}
        for path in layout["paths"]:
            on_it = [name for name, node in layout["nodes"].items() if node["at"] == path.get("at")]
            ends = (path.get("from"), path.get("to"), *on_it)  # a stream goes through its heads
            others = [box for name, box in boxes.items() if name not in ends]
            for stroke in strokes(path):
                n_lines += 1
                assert not any(overlap(stroke, other) for other in others), (picture, path)
    assert n_lines > 3000


@needs_node
def test_nodes_and_lanes_do_not_cover_each_other_and_all_is_inside(laid_out):
    n_pairs = 0
    for picture, layout in laid_out:
        nodes = [box(node, picture) for node in layout["nodes"].values()]
        assert not any(overlap(a, b) for a, b in itertools.combinations(nodes, 2)), picture
        assert all(0 <= t and u <= layout["along"] and m <= layout["up"] for t, _, u, m in nodes)
        lanes = [path for path in layout["paths"] if path["kind"] in ("into", "out")]
        drawn = [list(strokes(path)) for path in lanes[:60]]
        for one, other in itertools.combinations(drawn, 2):
            n_pairs += 1
            assert not any(overlap(a, b) for a in one for b in other), picture
    assert n_pairs > 1000


@needs_node
def test_each_line_ends_at_its_node_and_is_as_wide_as_its_effect(laid_out):
    for picture, layout in laid_out:
        at = {"reads": {}, "into": {}, "out": {}}
        for path in layout["paths"]:
            if path["kind"] not in at:
                continue
            at[path["kind"]].setdefault(path["head"], []).append(path["width"])
            target = layout["nodes"][path["to"]]
            t, height = path["points"][-1]
            beside = t - target["t"]
            assert abs(abs(beside) - target["half"]) < 1e-6
            assert (beside > 0) == (path["kind"] == "out")
            assert abs(height - target["l"]) + path["width"] / 2 <= target["tall"]
            if path["kind"] != "out":
                assert target["head"] == path["head"]
        for head in picture["fi"]:
            assert sorted(at["into"].get(head, [])) == sorted(filter(None, picture["into"][head]))
            assert at["out"][head] == [picture["out"][head]]
        layers = [(n["l"], n["head"]) for n in layout["nodes"].values() if n["kind"] == "spot"]
        by_height = [int(head.split(".")[0]) for _, head in sorted(layers)]
        assert by_height == sorted(by_height)


@needs_node
def test_two_prompts_are_drawn_alike(laid_out):
    n_lanes = 0
    for (_, one), (_, other) in zip(laid_out[::2], laid_out[1::2]):
        assert one["nodes"] == other["nodes"] and one["bands"] == other["bands"]
        assert all(one[size] == other[size] for size in ("along", "up", "down"))
        lanes = [
            {(path["head"], path["i"]): path["points"] for path in drawn["paths"] if "i" in path}
            for drawn in (one, other)
        ]
        for lane in lanes[0].keys() & lanes[1].keys():
            n_lanes += 1
            assert lanes[0][lane] == lanes[1][lane]
    assert n_lanes > 100


@needs_node
def test_each_line_begins_at_its_token_and_each_layer_has_its_band(laid_out):
    for picture, layout in laid_out:
        tokens, nodes, last = picture["tokens"], layout["nodes"], len(picture["tokens"]) - 1
        shown = [at - 1 for at, token in enumerate(tokens) if token == ";"]
        places = {node["at"]: node for name, node in nodes.items() if name.startswith("token")}
        answers = [at for at, node in places.items() if node["kind"] == "shown"]
        assert answers == shown
        axis = "l" if picture["vertical"] else "t"  # along which an example is written
        for path in layout["paths"]:
            (t, height), kind = path["points"][0], path["kind"]
            if kind == "reads":  # between the operands of the answer above which it ends
                at = nodes[path["to"]]["at"]
                start = height if picture["vertical"] else t
                x, op, y = (places[at - back][axis] for back in (4, 3, 2))
                assert start == op and x < op < y and at in shown
            elif kind == "into":
                assert t == places[shown[path["i"]]]["t"]
            elif kind in ("stream", "last"):
                assert t == places[path["at"]]["t"] == path["points"][-1][0]
        risen = [(p["kind"], p["at"]) for p in layout["paths"] if p["kind"] in ("stream", "last")]
        assert risen == [*(("stream", at) for at in shown), ("last", last)]
        spots = [node for node in nodes.values() if node["kind"] == "spot"]
        layers = {int(head.split(".")[0]) for head in picture["readers"] + picture["fi"]}
        assert [band["layer"] for band in layout["bands"]] == sorted(layers)
        for band, spot in itertools.product(layout["bands"], spots):
            is_inside = (
                band["from"] < spot["l"] - spot["tall"] < spot["l"] + spot["tall"] < band["to"]
            )
            is_apart = (
                spot["l"] + spot["tall"] < band["from"] or band["to"] < spot["l"] - spot["tall"]
            )
            assert is_inside == (int(spot["head"].split(".")[0]) == band["layer"]) != is_apart


# ---------------------------------------------------------------- widths


def answer_alone(model, contrast, cache, other, head, at):
    """The last logits when a head sends what it took from `at` in another run, all other heads as
    they were, MLPs live."""
    layer, index = map(int, head.split("."))

    def taken(run):
        share = run[f"blocks.{layer}.attn.hook_pattern"][0, index, -1, at]
        return share * run[f"blocks.{layer}.attn.hook_v"][0, at, index]

    def frozen(z, name):
        z = cache[name].clone()
        if name == f"blocks.{layer}.attn.hook_z":
            z[0, -1, index] += taken(other) - taken(cache)
        return z

    names = [f"blocks.{layer}.attn.hook_z" for layer in range(model.cfg.n_layers)]
    return model.run_with_hooks(contrast, dict.fromkeys(names, frozen))[0, -1]


@needs_node
def test_the_width_of_a_lane_is_the_effect_that_pytorch_finds():
    model, heads = reference_model(), ["1.0", "2.3", "3.5"]
    contrast, base = map(tasks.encode, ("1+1=3, 2+5=8, 3+3=", "1+1=2, 2+5=7, 3+3="))
    script = f"""
        {LOAD}
        const both = [Circuit.effects(model, contrast, base, data.heads)];
        return [...both, Circuit.effects(model, base, contrast, data.heads), patcher.answers];
    """
    prompts = {"base": base.tolist(), "contrast": contrast.tolist(), "heads": heads}
    *found, (plain, shifted) = node(MAKE + PATCHED + script, **prompts, **embedded(model))
    assert plain != shifted
    model = model.double()
    sides = []
    for tokens in (contrast, base):
        logits, cache = model.run_with_cache(tokens[None])
        sides.append((tokens[None], cache, logits[0, -1]))
    for effects, own, other in ((found[0], *sides), (found[1], *reversed(sides))):
        gaps = [(logits[plain] - logits[shifted]).item() for _, _, logits in (own, other)]
        for head, at in itertools.product(heads, (5, 11)):
            logits = answer_alone(model, *own[:2], other[1], head, at)
            F = (logits[plain] - logits[shifted]).item()
            r = (F - gaps[0]) / (gaps[0] - gaps[1])
            assert abs(effects["into"][head][at // 6] - r) < 1e-4
    assert all(sum(effects["into"]["2.3"]) < -0.1 for effects in found)


# ---------------------------------------------------------------- in a browser

USE = """
    const view = at("circuit-view");
    const spots = () => [...view.querySelectorAll(".spot")];
    const answers = () => [...view.querySelectorAll(".answer text")].map((one) => one.textContent);
    const dims = () => view.classList.contains("chosen");
    const words = () => view.querySelector(".hint").textContent;
    said.push(answers(), spots().length, dims(), words());
    spots()[0].focus();
    said.push(dims(), words(), spots()[0].classList.contains("lit"));
    spots()[0].dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true }));
    spots()[0].blur();
    said.push(dims());
    Playground.ask("2+2=5, 4+4=9, 3+3=");
    said.push(dims(), words());
    said.push(view.querySelectorAll("[tabindex='0']").length);
    said.push(spots().every((spot) => spot.getAttribute("aria-label")));
    Playground.ask("3+3=");
    said.push(answers(), view.querySelector("p").textContent);
    const outs = [...view.querySelectorAll(".out, .into")];
    said.push(Math.max(...outs.map((line) => line.getAttribute("stroke-width"))));
    done();
"""


@needs_browser
@pytest.mark.slow
def test_a_head_says_what_it_does_on_the_prompt_that_was_asked(headline, tmp_path):  # noqa: F811
    said = said_on(headline, tmp_path, USE)
    assert said[:3] == [["7", "6"], 2, False] and "Point at or tap a head" in said[3]
    assert said[4] and said[6]
    for part in ("Head 0.0, one of the FI heads", "it looks most at", "of the way to 6 (r = −"):
        assert part in said[5]
    assert said[7] is True  # pinned: it stays
    assert said[8] is False and "Point at or tap a head" in said[9]  # until something else is asked
    assert said[10:12] == [2, True]  # one stop of the tab key for each picture
    assert said[12][0] == said[12][1]
    for part in (f"Both prompts are answered {said[12][0]}, so no swap can move", "like 1+1=3"):
        assert part in said[13]
    assert said[14] == 0  # no line of an effect
