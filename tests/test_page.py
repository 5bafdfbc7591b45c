"""The report in a browser: what is read, cut off, covered, fetched, and reached by keyboard.

The report is that of the run in `reference/`. It is looked at wide and narrow, light and dark, and on
paper, from disk and without a network.
"""

import re
import shutil

import pytest

import patch
from commands import check
from minifunc.report import page
from minifunc.support.runs import ROOT
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
const Eye = (() => {
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

  /** The colours that may lie behind a text: more than one where there is a gradient. */
  function grounds({ element, box }) {
    const chain = up(element).reverse();
    let below = [[255, 255, 255, 1]];
    for (const layer of chain) {
      const { backgroundColor, backgroundImage } = style(layer);
      below = below.map((colour) => over(rgba(backgroundColor), colour));
      const stops = backgroundImage.match(COLOUR) || [];
      if (stops.length) {
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
      if (isSeen(text) && !isIn) found.push(`${named(text)}: “${text.textContent}” outside its svg`);
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
  const USABLE = `a[href], button, input, select, textarea, summary, [tabindex], [data-tip],
    [role=button], [role=slider], [role=link]`;

  /** Notes what has the focus. True when it was noted before, or nothing has it any more. */
  function noteFocus() {
    const element = document.activeElement;
    const isKnown = !element || isPage(element) || reached.has(element);
    reached.add(element);
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
    return [...new Set(missed.map(named))];
  }

  return { faint, cut, overlapping, noteFocus, unreached };
})();
"""
