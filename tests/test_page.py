"""The report in a browser: what is read, cut off, covered, fetched, and reached by keyboard.

The report is that of the run in `reference/`, looked at wide and narrow, light and dark, and on
paper, from disk and without a network.
"""

import contextlib
import itertools
import json
import math
import re
import shutil
from statistics import fmean

import pytest
import torch

import patch
import tasks
from commands import check
from minifunc.report import page
from minifunc.support.runs import ROOT, load_run
from tests.browser import CHROMIUM, Browser
from tests.test_report import FEW

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]
VIEWS = [(width, dark) for width in (1280, 390) for dark in (False, True)]
LEAST = 4.5  # contrast of text, as WCAG AA has it

# What an eye would see amiss on a page. Each of `Eye`'s functions returns descriptions.
EYE = """
var Eye = (() => {
  const paper = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const known = new Map();

  /** [red, green, blue, alpha] of a colour as CSS writes it, the first three up to 255. */
  function rgba(colour) {
    if (!known.has(colour)) {
      paper.clearRect(0, 0, 1, 1);
      paper.fillStyle = colour;
      paper.fillRect(0, 0, 1, 1);
      const [r, g, b, a] = paper.getImageData(0, 0, 1, 1).data;
      known.set(colour, [r, g, b, a / 255]);
    }
    return known.get(colour);
  }

  const over = ([r, g, b, a], below) =>
    [r, g, b].map((value, i) => value * a + below[i] * (1 - a)).concat(1);
  const faded = ([r, g, b, a], share) => [r, g, b, a * share];

  function luminance(colour) {
    const [r, g, b] = colour.map((value) => {
      const share = value / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  }

  function contrast(one, other) {
    const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  }

  const style = (element) => getComputedStyle(element);
  const up = (element) => (element ? [element, ...up(element.parentElement)] : []);
  const ups = (element) => up(element.parentElement);
  const COLOUR = /(?:rgba?|oklab|oklch|color|hsla?)[(][^)]*[)]/g;
  const hidden = { opacityProperty: true, visibilityProperty: true };
  const isSeen = (element) => element.checkVisibility(hidden);

  function named(element) {
    const classes = [...element.classList].map((name) => `.${name}`).join("");
    const id = element.id && `#${element.id}`;
    const own = element.tagName.toLowerCase() + id + classes;
    const around = ups(element).find((other) => other.id || other.classList.length);
    return around ? `${named(around)} > ${own}` : own;
  }

  const short = (words) => words.trim().replace(/\\s+/g, " ").slice(0, 30);

  /** The texts that are seen: {element, words, box}. What stands in a field is one too. */
  function texts() {
    const found = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const node = walker.currentNode;
      const element = node.parentElement;
      if (!node.data.trim() || !isSeen(element)) continue;
      if (element.closest("script, style, noscript, .skip, option")) continue;
      const range = document.createRange();
      range.selectNodeContents(node);
      for (const box of range.getClientRects()) {
        if (box.width && box.height) found.push({ element, words: short(node.data), box });
      }
    }
    for (const element of document.querySelectorAll("input, textarea, select")) {
      const words = short(element.value);
      const isText = !["radio", "checkbox", "range", "hidden"].includes(element.type);
      const box = element.getBoundingClientRect();
      if (isText && words && isSeen(element)) found.push({ element, words, box });
    }
    return found;
  }

  // ---- Contrast

  /** Whether an element's gradient, which may fill a part of it, is where a text is. */
  function isUnder(box, layer) {
    const around = layer.getBoundingClientRect();
    const { backgroundSize, backgroundPosition, backgroundRepeat } = style(layer);
    if (backgroundRepeat !== "no-repeat") return true;
    const share = (words, whole) =>
      words.endsWith("%") ? parseFloat(words) / 100 : parseFloat(words) / whole;
    const meets = (axis, start, end, from, whole) => {
      const size = backgroundSize.split(" ")[axis];
      const long = size === "auto" || size === undefined ? whole : share(size, whole) * whole;
      const first = from + share(backgroundPosition.split(" ")[axis], whole) * (whole - long);
      return long > 0.5 && start < first + long && end > first;
    };
    const inset = 0.22 * box.height;
    return meets(0, box.left, box.right, around.left, around.width) &&
      meets(1, box.top + inset, box.bottom - inset, around.top, around.height);
  }

  /** The colours that may lie behind a text: more than one where there is a gradient. */
  function grounds({ element, box }) {
    const chain = up(element).reverse();
    let below = [[255, 255, 255, 1]];
    for (const layer of chain) {
      const { backgroundColor, backgroundImage } = style(layer);
      below = below.map((colour) => over(rgba(backgroundColor), colour));
      const stops = backgroundImage.match(COLOUR) || [];
      if (stops.length && isUnder(box, layer)) {
        below = below.flatMap((colour) => stops.map((stop) => over(rgba(stop), colour)));
      }
    }
    const svg = element.closest("svg");
    return svg ? below.flatMap((colour) => drawnBelow(svg, element, box, colour)) : below;
  }

  const drawn = new Map(); // of each picture: its shapes in order, as `painted` returns them
  const SHAPES = "rect, circle, ellipse, path, line, polygon, polyline";

  function painted(shape) {
    const look = style(shape);
    const share = opacity(shape);
    const colours = [
      look.fill === "none" ? null : faded(rgba(look.fill), share * look.fillOpacity),
      look.stroke === "none" ? null : faded(rgba(look.stroke), share * look.strokeOpacity),
    ];
    const matrix = shape.getScreenCTM().inverse();
    return { shape, box: shape.getBoundingClientRect(), edge: parseFloat(look.strokeWidth) || 0,
      matrix, colours };
  }

  function shapesOf(svg) {
    if (!drawn.has(svg)) {
      const shapes = [...svg.querySelectorAll(SHAPES)];
      drawn.set(svg, shapes.filter((e) => isSeen(e) && !e.closest("defs")).map(painted));
    }
    return drawn.get(svg);
  }

  /** The colours at some places of a text in a picture: what was drawn before it lies below. */
  function drawnBelow(svg, text, box, ground) {
    const y = box.top + box.height / 2;
    return [0.15, 0.5, 0.85].map((share) => {
      const x = box.left + share * box.width;
      let colour = ground;
      for (const { shape, box: around, edge, matrix, colours } of shapesOf(svg)) {
        if (x < around.left - edge || x > around.right + edge) continue;
        if (y < around.top - edge || y > around.bottom + edge) continue;
        if (shape.compareDocumentPosition(text) !== Node.DOCUMENT_POSITION_FOLLOWING) continue;
        const at = new DOMPoint(x, y).matrixTransform(matrix);
        const [fill, stroke] = colours;
        if (fill && shape.isPointInFill(at)) colour = over(fill, colour);
        if (stroke && shape.isPointInStroke(at)) colour = over(stroke, colour);
      }
      return colour;
    });
  }

  const opacity = (element) =>
    up(element).reduce((share, layer) => share * style(layer).opacity, 1);

  /** Texts of less than this contrast, each kind of place once, the worst first. */
  function faint(least) {
    const worst = new Map();
    drawn.clear(); // the page may have grown since
    for (const text of texts()) {
      const { element, words } = text;
      if (element.closest(":disabled")) continue;
      const isDrawn = element.closest("svg");
      const look = style(element);
      const ink = faded(rgba(isDrawn ? look.fill : look.color), opacity(element));
      const found = Math.min(...grounds(text).map((colour) => contrast(over(ink, colour), colour)));
      const where = named(element);
      if (found < least && found < (worst.get(where)?.found ?? Infinity)) {
        worst.set(where, { found, words });
      }
    }
    return [...worst]
      .sort(([, one], [, other]) => one.found - other.found)
      .map(([where, { found, words }]) => `${found.toFixed(2)} ${where}: ${words}`);
  }

  // ---- Cut off, covered

  const clips = (element) => style(element).overflowX !== "visible";
  const scrolls = (element) => ["auto", "scroll"].includes(style(element).overflowX);
  const isPage = (element) => element === document.documentElement || element === document.body;

  /** What is wider than the window, the box it is in, or its picture, and cannot be scrolled to. */
  function cut() {
    const found = [];
    const width = document.documentElement.clientWidth;
    const page = document.documentElement.scrollWidth;
    if (page > width) found.push(`the page is ${page} px wide in ${width}`);
    for (const element of document.querySelectorAll("body *")) {
      if (!isSeen(element) || element.closest(".skip, #tip, script, noscript")) continue;
      const isInner = element.ownerSVGElement;
      const box = element.getBoundingClientRect();
      const holder = ups(element).find((other) => !isPage(other) && scrolls(other));
      const isOut = box.right > width + 0.5 || box.left < -0.5;
      if (box.width && isOut && !holder) found.push(`outside the window: ${named(element)}`);
      if (isInner || scrolls(element) || !clips(element) || element.matches("input, svg")) continue;
      const hides = element.scrollWidth > element.clientWidth + 1 ||
        element.scrollHeight > element.clientHeight + 1;
      if (hides && element.clientWidth > 1) found.push(`hides a part: ${named(element)}`);
    }
    for (const text of document.querySelectorAll("svg text")) {
      const [inner, outer] = [text, text.ownerSVGElement].map((e) => e.getBoundingClientRect());
      const isIn = inner.left > outer.left - 1 && inner.right < outer.right + 1 &&
        inner.top > outer.top - 2 && inner.bottom < outer.bottom + 2;
      const what = `${named(text)}, “${text.textContent}”`;
      if (isSeen(text) && !isIn) found.push(`outside its svg: ${what}`);
    }
    return [...new Set(found)];
  }

  /** The part of a text's box in which its letters are and that is not scrolled away, or null. */
  function letters({ element, box }) {
    const inset = 0.22 * box.height;
    let [left, right, top, bottom] =
      [box.left + 1, box.right - 1, box.top + inset, box.bottom - inset];
    for (const layer of up(element)) {
      if (isPage(layer) || !clips(layer) || layer.tagName === "svg") continue;
      const around = layer.getBoundingClientRect();
      left = Math.max(left, around.left);
      right = Math.min(right, around.right);
      top = Math.max(top, around.top);
      bottom = Math.min(bottom, around.bottom);
    }
    return left < right && top < bottom ? { left, right, top, bottom } : null;
  }

  const floats = (element) => up(element).some((e) => /fixed|sticky/.test(style(e).position));

  /** Pairs of texts that cover each other. */
  function overlapping() {
    const boxes = texts()
      .map((text) => ({ ...text, at: letters(text) }))
      .filter(({ at, element }) => at && !floats(element))
      .sort((one, other) => one.at.top - other.at.top);
    const found = new Set();
    boxes.forEach((one, index) => {
      for (const other of boxes.slice(index + 1)) {
        if (other.at.top >= one.at.bottom) break;
        const apart = other.at.left >= one.at.right || other.at.right <= one.at.left;
        if (apart || one.element === other.element) continue;
        found.add(`${named(one.element)}: “${one.words}” and “${other.words}”`);
      }
    });
    return [...found];
  }

  // ---- What the keyboard reaches

  const reached = new Set();
  const unmarked = new Set();
  const USABLE = `a[href], button, input, select, textarea, summary, [tabindex='0'], [data-tip],
    [role=button], [role=slider], [role=link]`;

  /** Notes what has the focus. True when it was noted before, or nothing has it any more. */
  function noteFocus() {
    const element = document.activeElement;
    const isKnown = !element || isPage(element) || reached.has(element);
    reached.add(element);
    const { outlineStyle, boxShadow } = style(element);
    if (!isKnown && outlineStyle === "none" && boxShadow === "none") unmarked.add(element);
    return isKnown;
  }

  /** What one can use or point at, and the tab key did not come to. Arrow keys go on from one in
      the same table or picture, or of the same set of radio buttons. */
  function unreached() {
    const isReached = (element) => reached.has(element);
    const missed = [...document.querySelectorAll(USABLE)].filter((element) => {
      if (!isSeen(element) || element.matches(":disabled, main, section")) return false;
      if (isReached(element) || !element.matches(":not([data-tip=''])")) return false;
      const walked = element.closest("table, svg, fieldset, [role=group], [role=radiogroup]");
      const byArrows = element.matches("[tabindex='-1'], input[type=radio]");
      if (byArrows && walked && [...walked.querySelectorAll("*")].some(isReached)) return false;
      if (byArrows && walked && isReached(walked)) return false;
      return !(element.dataset.tip && [...element.querySelectorAll("*")].some(isReached));
    });
    const reasons = missed.map((e) => `not reached: ${named(e)}`);
    return [...new Set([...reasons, ...[...unmarked].map((e) => `no ring: ${named(e)}`)])];
  }

  return { faint, cut, overlapping, noteFocus, unreached };
})();
"""

UNFOLD = "document.querySelectorAll('details').forEach((folded) => (folded.open = true))"
PAUSE = "new Promise((done) => setTimeout(done, 400))"
# Some heads swapped, and then a prompt that cannot be read.
USE = """
const press = (selector) => document.querySelector(selector).click();
press("#set-function_induction");
"""
MISUSE = """
document.getElementById("prompt").value = "what?";
document.getElementById("prompt").dispatchEvent(new Event("input", { bubbles: true }));
"""


def all_shades(language, model, heads, *_):
    """What `patch.writings` takes long for: function vectors that have each colour."""
    vector = [[0.5 * (x - y) for y in range(10)] for x in range(10)]
    return {"function_vectors": dict.fromkeys([*heads, "all"], vector)}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report of the reference run: traced and checked on few prompts."""
    run = tmp_path_factory.mktemp("reference") / "run"
    shutil.copytree(ROOT / "reference", run)
    few = {**FEW, "accuracy": patch.accuracy, "writings": all_shades}
    with pytest.MonkeyPatch.context() as changed:
        for name, value in few.items():
            changed.setattr(patch, name, value)
        for name in ("N_PROMPTS", "N_EACH"):
            changed.setattr(check, name, 10)
        assert patch.main(["--run", str(run), "--device", "cpu", "--prompts", "10"]) == 0
        assert check.main(["--run", str(run), "--device", "cpu"]) in (0, 1)
    assert page.main(["--run", str(run)]) == 0
    return run / "report.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with started(tmp_path_factory) as browser:
        yield browser


@contextlib.contextmanager
def started(tmp_path_factory):
    """A browser. It may hang, or die, as it starts: three tries."""
    for _ in range(3):
        browser = Browser(tmp_path_factory.mktemp("browser"))
        try:
            browser.attach()
            break
        except (OSError, EOFError):  # too slow, or gone
            browser.close()
    else:
        pytest.skip("chromium did not come up in time, three times")
    try:
        yield browser
    finally:
        browser.close()


def looked_at(browser, path, *view, **paper):
    """A page with all of it unfolded, and `Eye` there."""
    browser.open(path, *view, **paper)
    browser.evaluate(UNFOLD)
    browser.evaluate(EYE)
    return browser


@pytest.fixture(scope="module", params=VIEWS, ids=lambda view: f"{view[0]}{'-dark' * view[1]}")
def seen(request, browser, report):
    return looked_at(browser, report, *request.param)


BY_SIZE = pytest.mark.parametrize("seen", [(1280, False), (390, False)], indirect=True, ids=str)


def complaints(browser):
    """What the page has asked for since it was opened, apart from itself, and has complained of."""
    found = []
    for name, told in browser.events:
        if name == "Network.requestWillBeSent" and told["type"] != "Document":
            found.append(told["request"]["url"])
        if name in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
            found.append(str(told))
    return found


def test_nothing_is_cut_off_or_covered(seen):
    assert seen.evaluate("Eye.cut()") == []
    assert seen.evaluate("Eye.overlapping()") == []


def test_all_text_can_be_read_while_the_page_is_used_too_and_nothing_is_complained_of(seen):
    for step in ("", USE, MISUSE):
        seen.evaluate(f"(() => {{ {step} }})()")
        seen.evaluate(PAUSE)
        assert seen.evaluate(f"Eye.faint({LEAST})") == [], step
    assert complaints(seen) == []


def test_each_role_of_a_head_has_a_colour_of_its_own(seen):
    colour = "getComputedStyle(swatch).backgroundColor.match(/\\d+/g).map(Number)"
    swatches = f"[...document.querySelectorAll('#seeds .swatch')].map((swatch) => {colour})"
    colours = seen.evaluate(swatches)
    assert len(colours) == 5  # previous-token heads are in none of the three models that are drawn
    assert min(itertools.starmap(math.dist, itertools.combinations(colours, 2))) > 50


AGAINST = """
(() => {
  const [against] = document.querySelectorAll("#circuit .key span:has(.against)");
  const lines = [...document.querySelectorAll("#circuit .line.out")];
  return [true, false].map((is) => {
    lines.forEach((line) => line.classList.toggle("against", is));
    return against.checkVisibility();
  });
})()
"""


@BY_SIZE
def test_what_is_in_no_picture_is_not_in_its_key(seen):
    assert seen.evaluate(AGAINST) == [True, False]


LONG = ", ".join(["12+5=18", "6+12=19", "13+4=18"] * 5) + ", 3+3="
FIELDS = """
(Playground.ask("%s"), ["prompt", "base"].map((id) => {
  const { scrollTop, clientHeight, scrollHeight } = document.getElementById(id);
  return [clientHeight, scrollHeight - clientHeight, scrollHeight - clientHeight - scrollTop];
}))
"""


@BY_SIZE
def test_a_long_prompt_is_small_and_shows_its_end(seen):
    for tall, hidden, below in seen.evaluate(FIELDS % LONG):
        assert tall < 80 and hidden > 0 and below < 2
    for _, hidden, _ in seen.evaluate(FIELDS % "1+1=3, 2+2=5, 3+3="):
        assert hidden == 0


# Of each square: how opaque its pixels are, and what it says at the left end of its last row.
SQUARES = """
(async () => {
  %s
  await new Promise((done) => setTimeout(done, 400));
  return [...document.querySelectorAll("#squares .square")].map((square) => {
    const [canvas, usual] = [square.lastChild, square.dataset.tip];
    const { width, height } = canvas;
    const pixels = canvas.getContext("2d").getImageData(0, 0, width, height).data;
    const point = { offsetX: 1, offsetY: canvas.clientHeight - 1 };
    canvas.onpointermove(point);
    const opaque = [...pixels].filter((_, i) => i %% 4 === 3);
    return { head: square.textContent, opaque, usual, label: square.ariaLabel,
      pointed: square.dataset.tip };
  });
})()
"""
UNFOLD_ATTENTION = "document.querySelector('#attention summary').click();"


@pytest.mark.parametrize("prompt", ["1+1=3, 2+2=5, 3+3=", "1+1=2, 2+2=6, 5+4=11, 3+3="])
def test_attention_of_every_head_is_drawn_once_it_is_unfolded(browser, report, prompt):
    browser.open(report)
    assert browser.evaluate(SQUARES % "") == []
    first = "Playground.ask('1+1=2, 3+3=');" + UNFOLD_ATTENTION  # asked anew, it is drawn anew
    assert len(browser.evaluate(SQUARES % first)) == 24
    squares = browser.evaluate(SQUARES % f"Playground.ask('{prompt}');")
    model, _ = load_run(ROOT / "reference")
    tokens = tasks.encode(prompt)
    _, cache = model.run_with_cache(tokens[None])
    assert [square["head"] for square in squares] == [
        f"{layer}.{head}" for layer in (3, 2, 1, 0) for head in range(6)
    ]
    for square in squares:
        layer, head = map(int, square["head"].split("."))
        pattern = cache[f"blocks.{layer}.attn.hook_pattern"][0, head]
        wanted = (255 * pattern.sqrt()).round().flatten()
        assert (torch.tensor(square["opaque"]) - wanted).abs().max() <= 1
        (share, best), start = pattern[-1].max(-1), pattern[-1, 0]
        around = tasks.VOCABULARY[tokens[best]]
        looks = f"Head {layer}.{head}: from “=” in “3+3=” it looks "
        assert square["usual"].startswith(f"{looks}most at ") and square["label"] == square["usual"]
        assert f"“{around}” in" in square["usual"] or best == 0
        assert abs(float(square["usual"].split("(")[1].split(" ")[0]) - 100 * share) < 0.06
        assert square["pointed"].startswith(f"{looks}at the start (")
        assert abs(float(square["pointed"].split("(")[1].split(" ")[0]) - 100 * start) < 0.06


def test_the_page_says_how_usual_the_attention_on_the_first_prompt_is(browser, report):
    browser.open(report)
    browser.evaluate(SQUARES % UNFOLD_ATTENTION)
    said = browser.evaluate("document.getElementById('attention-mean').textContent")
    circuit = json.loads((report.parent / "circuit.json").read_text())
    model, _ = load_run(ROOT / "reference")
    _, cache = model.run_with_cache(tasks.encode("1+1=3, 2+2=5, 3+3=")[None])
    here, usual = [], []
    for name in circuit["groups"]["function_induction"]:
        layer, head = map(int, name.split("."))
        here.append(cache[f"blocks.{layer}.attn.hook_pattern"][0, head, -1, [5, 11]].sum().item())
        usual.append(circuit["attention"][name]["last_to_answers"])
    told = [float(share) / 100 for share in re.findall(r"([\d.]+) %", said)]
    assert told == pytest.approx([fmean(here), fmean(usual)], abs=0.0006)
    assert abs(fmean(here) - fmean(usual)) < 0.1  # the prompt that the page begins with is usual


# Of each box that scrolls: how far it does, and, at its start and its end, its mask.
FADES = """
(async () => {
  const boxes = [...document.querySelectorAll(".scroll, nav")].filter((e) => e.checkVisibility());
  const frame = () =>
    new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  return Promise.all(boxes.map(async (box) => {
    const masks = [];
    for (const end of [0, box.scrollWidth]) {
      box.scrollLeft = end;
      await frame();
      const { maskImage, maskPosition, maskSize } = getComputedStyle(box);
      const [px = 0] = maskPosition.match(/-?[\\d.]+(?=px)/) ?? [];
      masks.push([maskImage !== "none", Number(px), maskSize]);
    }
    return [box.scrollWidth - box.clientWidth, ...masks];
  }));
})()
"""


def test_a_box_that_scrolls_fades_only_where_there_is_more(browser, report):
    looked_at(browser, report, 390)
    boxes = browser.evaluate(FADES)
    hidden = [box for box in boxes if box[0] > 0]
    assert len(hidden) >= 3 and len(hidden) < len(boxes)
    for more, start, end in boxes:
        if more:  # the mask is a fade wider than the box: beyond its left edge, then its right one
            assert start == [True, -24, "calc(100% + 24px) auto"]
            assert end == [True, 0, "calc(100% + 24px) auto"]
        else:
            assert not start[0] and not end[0]


@BY_SIZE
def test_the_keyboard_reaches_all_that_can_be_used_and_it_has_a_name(seen):
    for _ in range(1500):
        seen.press("Tab")
        if seen.evaluate("Eye.noteFocus()"):
            break
    assert seen.evaluate("Eye.unreached()") == []
    assert seen.nameless() == []


def test_the_keyboard_swaps_heads(browser, report):
    browser.open(report)
    best = "document.getElementById('answer').dataset.best"
    assert browser.evaluate(best) == "7"
    browser.evaluate("document.getElementById('set-function_induction').focus()")
    browser.press("Enter")
    assert browser.evaluate(best) != "7"
    browser.press(" ")
    assert browser.evaluate(best) == "7"


def test_on_paper_it_is_light_and_holds_what_can_be_read_there(browser, report):
    looked_at(browser, report, 720, True, media="print")
    assert browser.evaluate("Eye.cut()") == []
    assert browser.evaluate(f"Eye.faint({LEAST})") == []
    assert (
        browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    )
    shown = "[...document.querySelectorAll('body > header, #playground, main section')]"
    hidden = browser.evaluate(f"{shown}.filter((e) => !e.checkVisibility()).map((e) => e.id)")
    assert hidden == ["", "playground"]
    assert browser.printed().startswith(b"%PDF") and complaints(browser) == []


FAULTS = """<!doctype html><html lang="en"><body style="background: #fff">
<p id="wide" style="width: 2000px">wide</p>
<p id="pale" style="color: #888">pale</p> <p id="dark" style="color: #666">dark</p>
<p id="thin" style="opacity: 0.5">thin</p>
<p style="background: linear-gradient(#fff, #999)"><b id="on" style="color: #666">on</b></p>
<p style="background: linear-gradient(#666, #666) 0 0 / 90% 2px no-repeat; color: #666">below</p>
<svg width="200" height="60" fill="#333">
  <rect width="90" height="50" fill="#444" /><text id="drawn" x="5" y="20">drawn</text>
  <text id="free" x="110" y="20">free</text><text id="near" x="115" y="25">near</text>
  <text id="out" x="190" y="50">out</text>
</svg>
<div style="width: 30px; overflow: hidden" id="short">Donaudampfschifffahrt</div>
<div style="overflow-x: auto; width: 60px"><p style="width: 3000px" id="scrolled">fine</p></div>
<button id="nameless"></button><button>named</button> <input aria-label="field">
<b id="pointed" data-tip="a tip">pointed at</b> <b tabindex="0" data-tip="a tip">reached</b>
<b tabindex="0" style="outline: none" id="bare">bare</b>
<script>console.log("said")</script></body></html>"""


def test_these_tests_see_faults(browser, tmp_path):
    path = tmp_path / "faults.html"
    path.write_text(FAULTS)
    looked_at(browser, path)
    pale = [line.split(" ")[1].rstrip(":") for line in browser.evaluate(f"Eye.faint({LEAST})")]
    assert sorted(pale) == ["b#on", "p#pale", "p#thin", "text#drawn"]
    assert browser.evaluate("Eye.cut()") == [
        "the page is 2008 px wide in 1280",
        "outside the window: p#wide",
        "hides a part: div#short",
        "outside its svg: text#out, “out”",
    ]
    assert browser.evaluate("Eye.overlapping()") == ["text#free: “free” and “near”"]
    for _ in range(9):
        browser.press("Tab")
        browser.evaluate("Eye.noteFocus()")
    assert browser.evaluate("Eye.unreached()") == ["not reached: b#pointed", "no ring: b#bare"]
    assert len(browser.nameless()) == 1 and "said" in complaints(browser)[0]
