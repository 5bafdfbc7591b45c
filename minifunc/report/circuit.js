/* The circuit over the prompt that was asked, and over its base prompt. Tokens lie along one side,
   layers rise from them. Over each shown answer rises the stream at its place, through the heads
   that write there; FI heads stand over the last `=`. What they take from a stream has a lane of
   its own below their layer, so that no line can meet a node that it doesn't touch. */
"use strict";

const Circuit = (() => {
  const [DOT, FI, ANSWER, SPACE, LETTER] = [5, 11, 21, 1.5, 7.9]; // px
  const sum = (values) => values.reduce((a, b) => a + b, 0);
  const layerOf = (head) => parseInt(head, 10);

  /** Where each token stands: {t, l} in px, `t` along the examples, `l` up the layers.
      column: the least width of an example; space: what the lines to FI heads need. */
  function placeTokens(tokens, vertical, column, space) {
    const places = [];
    let start = vertical ? 44 : 66;
    for (let first = 1; first < tokens.length; first += 6) {
      const words = tokens.slice(first, first + 5);
      if (!/^[+-]$/.test(words[1])) words[1] = ` ${words[1]} `;
      const size = LETTER * words.join("").length;
      if (words.length < 5) start += space;
      let along = vertical ? -size : start;
      words.forEach((word, i) => {
        const middle = along + (LETTER * word.length) / 2;
        places[first + i] = vertical ? { t: start, l: middle } : { t: middle, l: -8 };
        along += LETTER * word.length;
      });
      start += vertical ? 30 : Math.max(size + 15, column);
    }
    return places;
  }

  /** The picture's nodes {id: {t, l, half, tall, kind, head, at}}, its paths [{from, to, points, width,
      kind, head}] and the layers' bands. readers, fi: heads; at: the token that one looks from.
      Widths in px: reads[head][i], from example i's operands to a reader; into[head][i], from its
      answer to an FI head, 0: none; out[head], from that to the answer. */
  function layout({ tokens, readers, fi, reads, into, out, vertical = false, column = 0 }) {
    const layers = [...new Set([...readers, ...fi].map(layerOf))].sort((a, b) => a - b);
    const within = (heads, layer) => heads.filter((head) => layerOf(head) === layer);
    const flow = (head) => sum(into[head].map((width) => width && width + SPACE));
    const tall = (head) => Math.max(FI, flow(head) / 2, out[head] / 2 + 1);
    const lanes = (layer) => sum(within(fi, layer).map(flow));
    const space = Math.max(0, ...layers.map(lanes)) + (vertical ? 20 : 10);
    const places = placeTokens(tokens, vertical, column, space);
    const nodes = {};
    const paths = [];
    const bands = [];
    const streams = [];
    places.forEach(({ t, l }, at) => {
      nodes[`token ${at}`] = { t, l, kind: "token", at };
      if (at % 6 !== 5 && at < tokens.length - 1) return;
      streams.push({ at, t, l: 2, top: `token ${at}`, kind: at % 6 === 5 ? "stream" : "last" });
    });
    const last = streams.pop();

    /** Draws a stream on to a height, and to a node if one stands there. */
    function rise(stream, l, to) {
      const points = [[stream.t, stream.l], [stream.t, l]];
      paths.push({ from: stream.top, to, points, width: 2.2, kind: stream.kind, at: stream.at });
      Object.assign(stream, { l, top: to });
    }

    function put(node, stream, l) {
      const id = `${node.head ?? "answer"} ${stream.at}`;
      rise(stream, l - node.tall, id);
      nodes[id] = { ...node, t: stream.t, l, at: stream.at };
      stream.l = l + node.tall;
      return id;
    }

    function putReader(head, stream, i, level) {
      const [x, y] = [places[stream.at - 4], places[stream.at - 2]];
      const trunk = vertical ? stream.t - 10 : y.t;
      const end = [[trunk, level], [stream.t - DOT, level]];
      const from = vertical ? [[[trunk, x.l]]] : [[[x.t, 2], [x.t, 6], [trunk, 6]], [[trunk, 2]]];
      const to = put({ kind: "reader", head, half: DOT, tall: DOT }, stream, level);
      for (const start of from) {
        const points = [...start, ...end];
        paths.push({ to, points, width: reads[head][i], kind: "reads", head });
      }
    }

    /** An FI head and its lanes; the example nearest to it has the lowest. */
    function putFI(head, level, corner) {
      const to = put({ kind: "fi", head, half: FI, tall: tall(head) }, last, level);
      let entry = level - flow(head) / 2;
      for (const [i, stream] of [...streams.entries()].reverse()) {
        const width = into[head][i];
        if (!width) continue;
        const half = (width + SPACE) / 2;
        const [high, right, end] = [corner.l + half, corner.t - half, entry + half];
        rise(stream, high);
        const points = [[stream.t, high], [right, high], [right, end], [last.t - FI, end]];
        paths.push({ to, points, width, kind: "into", head, i });
        Object.assign(corner, { l: corner.l + 2 * half, t: corner.t - 2 * half });
        entry += 2 * half;
      }
    }

    let l = vertical ? 2 : 10;
    for (const layer of layers) {
      const [lower, upper] = [within(readers, layer), within(fi, layer)];
      const corner = { l: l + 7, t: last.t - FI - 8 }; // of the lowest lane
      l += upper.length ? lanes(layer) + 14 : 5;
      const height = Math.max(16 * lower.length, sum(upper.map((head) => 2 * tall(head) + 3)));
      bands.push({ layer, from: l, to: l + height });
      let level = l + 1.5;
      for (const head of upper) {
        putFI(head, level + tall(head), corner);
        level += 2 * tall(head) + 3;
      }
      lower.forEach((head, row) => {
        streams.forEach((stream, i) => putReader(head, stream, i, l + 8 + 16 * row));
      });
      l += height;
    }
    const reaching = sum(fi.map((head) => out[head] + SPACE)) / 2;
    const size = { half: ANSWER, tall: Math.max(ANSWER, reaching) };
    const answer = put({ kind: "answer", ...size }, last, l + 12 + size.tall);
    let right = last.t + ANSWER + 8;
    let entry = nodes[answer].l - reaching;
    const rising = layers.flatMap((layer) => within(fi, layer));
    for (const head of rising.reverse()) { // the highest goes up nearest to the stream
      const from = `${head} ${last.at}`;
      const half = (out[head] + SPACE) / 2;
      const [level, up, end] = [nodes[from].l, right + half, entry + half];
      const points = [[last.t + FI, level], [up, level], [up, end], [last.t + ANSWER, end]];
      paths.push({ from, to: answer, points, width: out[head], kind: "out", head });
      [right, entry] = [right + 2 * half, entry + 2 * half];
    }
    return { nodes, paths, bands, along: Math.max(right, last.t + 40) + 4, up: last.l + 4 };
  }

  /** What putting values of the run `other` into a run does to its answer: r of each FI head, `out`
      {head: r}, and of what it takes from each shown answer alone, `into` {head: [r]}.
      None where both runs give one answer. */
  function effects(model, run, other, heads) {
    const patcher = new PathPatching.PathPatcher(model, other, run);
    if (patcher.answers[0] === patcher.answers[1]) return null;
    const shown = [...run.tokens.keys()].filter((at) => at % 6 === 5);
    const of = (measure) => Object.fromEntries(heads.map((head) => [head, measure(head)]));
    return {
      into: of((head) => patcher.effectsByPosition(head, shown)),
      out: of((head) => patcher.r(patcher.patched(head, "logits"))),
    };
  }

  return { layout, effects };
})();

if (typeof module !== "undefined") module.exports = Circuit;

if (typeof document !== "undefined" && Page.model && Page.at("circuit-view")) (() => {
  const { element, svg, percent, ranked, model, membersOf, groupOf, NAMES } = Page;
  const view = Page.at("circuit-view");
  const PLACES = ["first operand", "operation", "second operand", "“=”", "answer", "“;”"];
  const HINT = "Point at a head to see what it does on this prompt; click to keep it.";
  const NO_HEADS = "No function-induction head is known here, so there is no circuit to draw.";
  const SAME = "Both prompts get one answer: lanes are as wide as attention, not effects.";
  const isThere = (head) => `blocks.${parseInt(head, 10)}.attn.W_Q` in model.weights;
  const heads = (...groups) => [...new Set(groups.flatMap(membersOf))].filter(isThere).sort();
  const fi = heads("function_induction");
  const readers = heads("expected_answer", "shown_answer").filter((head) => !fi.includes(head));
  const narrow = matchMedia("(max-width: 600px)");
  const words = element("p", "", { className: "hint" });
  words.setAttribute("aria-live", "polite");
  const matrix = element("details");
  let panels = [];
  let pinned = null; // { side: a panel's number, head, at }

  const signed = (r) => `${r < 0 ? "−" : "+"}${Math.abs(100 * r).toFixed(1)} %`;

  /** A head's attention from a token. */
  const looks = ({ run, tokens }, head, at) =>
    run.patterns[head].subarray(at * tokens.length, (at + 1) * tokens.length);

  function onOperands(panel, head, answer) {
    const shares = looks(panel, head, answer);
    return shares[answer - 4] + shares[answer - 2];
  }

  function named(tokens, at) {
    if (at === 0) return "the start";
    const example = Math.ceil(at / 6);
    const where = 6 * example < tokens.length ? `example ${example}` : "the question";
    return `“${tokens[at]}”, the ${PLACES[(at - 1) % 6]} of ${where}`;
  }

  /** What a head does on a prompt, in sentences. */
  function said({ side, head, at }) {
    const panel = panels[side];
    const { tokens, effects, to } = panel;
    const shares = looks(panel, head, at);
    const [best] = ranked(shares);
    const from = at === panel.end ? "the last “=”" : `“${tokens[at]}”`;
    const where = `from ${from} it looks most at ${named(tokens, best)} (${percent(shares[best])})`;
    const first = `Head ${head}, one of the ${NAMES[groupOf(head)]}: ${where}`;
    if (!fi.includes(head)) {
      const own = percent(onOperands(panel, head, at));
      return `${first}; ${own} are on this example’s operands. It writes where FI heads look.`;
    }
    if (!effects) return `${first}.`;
    const r = effects.out[head];
    const parts = effects.into[head].map((part, i) => `${i + 1}: ${signed(part)}`).join(", ");
    const moved = `${percent(Math.abs(r))} ${r < 0 ? "of the way to" : "further away from"} ${to}`;
    const swapped = `What it sends on the other prompt, put in here, moves the answer ${moved}`;
    return `${first}. ${swapped} (r = ${signed(r)}). By example: ${parts || "none"}.`;
  }

  // ---- Drawing

  /** A path through corners, which it rounds off. */
  function rounded(points) {
    const far = ([x, y], [u, v]) => Math.hypot(u - x, v - y) || 1;
    const bends = points.slice(1, -1).map((corner, i) => {
      const [before, after] = [points[i], points[i + 2]];
      const radius = Math.min(9, far(corner, before) / 2, far(corner, after) / 2);
      const toward = (end) => corner.map((x, k) => x + ((end[k] - x) * radius) / far(corner, end));
      return `L${toward(before)}Q${corner} ${toward(after)}`;
    });
    return `M${points[0]}${bends.join("")}L${points[points.length - 1]}`;
  }

  /** Where everything stands in a panel; px: how wide a line of r = 1 is. */
  function planOf(panel, px) {
    const { tokens, effects, end } = panel;
    const answers = [...tokens.keys()].filter((at) => at % 6 === 5);
    const of = (names, measure) => Object.fromEntries(names.map((head) => [head, measure(head)]));
    const shares = (head) => answers.map((at) => looks(panel, head, end)[at]);
    const wide = (x) => (Math.abs(x) < 0.01 ? 0 : Math.max(0.8, Math.abs(x) * px));
    const read = (head) => answers.map((at) => 0.6 + 2.6 * onOperands(panel, head, at));
    return Circuit.layout({
      tokens,
      readers,
      fi,
      reads: of(readers, read),
      into: of(fi, (head) => (effects?.into[head] ?? shares(head)).map(wide)),
      out: of(fi, (head) => Math.max(0.8, wide(effects?.out[head] ?? 0))),
      vertical: narrow.matches,
      column: Math.min(180, (view.clientWidth / 2 - 240) / (answers.length || 1)),
    });
  }

  function drawPanel(panel, { nodes, paths, bands, along }, up) {
    const vertical = narrow.matches;
    const places = Object.values(nodes);
    const below = vertical ? 32 - Math.min(...places.map(({ l }) => l)) : 50;
    const xy = (t, l) => (vertical ? [l + below, t] : [t, up - l]);
    const text = (t, l, said, kind) => {
      const [x, y] = xy(t, l);
      return svg("text", { x, y, class: kind }, said);
    };
    const parts = [];
    for (const { layer, from, to } of bands) {
      const corners = [[2, from], [along, from], [along, to], [2, to]].map(([t, l]) => xy(t, l));
      parts.push(svg("polygon", { points: corners.join(" "), class: "layer" }));
      const name = vertical ? layer : `layer ${layer}`;
      parts.push(text(vertical ? 12 : 25, (from + to) / 2, name, "label"));
    }
    panel.arcs = svg("g");
    parts.push(panel.arcs);
    for (const { points, width, kind, head, i } of paths) {
      const effects = panel.effects?.[kind]?.[head];
      const against = (effects?.[i] ?? effects) > 0 ? "against" : "";
      const d = rounded(points.map(([t, l]) => xy(t, l)));
      const line = svg("path", { d, "stroke-width": width, class: `line ${kind} ${against}` });
      if (head) line.dataset.head = head;
      parts.push(line);
    }
    for (const { t, l, half, tall, kind, head, at } of places) {
      const [x, y] = xy(t, l);
      const [w, h] = vertical ? [tall, half] : [half, tall];
      const box = { x: x - w, y: y - h, width: 2 * w, height: 2 * h };
      if (kind === "token") {
        parts.push(text(t, l, panel.tokens[at], at % 6 === 5 ? "word shown" : "word"));
      } else if (kind === "answer") {
        parts.push(svg("rect", { ...box, rx: 8, class: "reply" }));
        parts.push(text(t, l, panel.answer, "reply"));
      } else {
        const spot = svg("g", { class: `spot ${groupOf(head)}`, "data-head": head });
        spot.append(svg("rect", { ...box, rx: half }), kind === "fi" ? text(t, l, head) : "");
        parts.push(listen(spot, { side: panel.side, head, at }));
        const name = vertical ? head.slice(head.indexOf(".")) : head;
        if (at === 5 && kind === "reader") parts.push(text(vertical ? 27 : 60, l, name, "label"));
      }
    }
    const edge = vertical ? 28 - below : -18;
    panel.edgeOf = (at) => xy(nodes[`token ${at}`].t, edge);
    const [width, height] = vertical ? [up + below, along] : [along, up + below];
    const look = { viewBox: `0 0 ${width} ${height}`, width, height, class: "circuit" };
    return svg("svg", { ...look, "aria-label": panel.title }, ...parts);
  }

  function listen(spot, chosen) {
    spot.dataset.tip = said(chosen);
    const isPinned = () => pinned?.head === chosen.head && pinned.at === chosen.at;
    const pin = () => {
      pinned = isPinned() ? null : chosen;
      show(pinned ?? chosen);
    };
    spot.addEventListener("click", pin);
    spot.addEventListener("keydown", (event) => event.key === "Enter" && pin());
    for (const name of ["pointerenter", "focus"]) spot.addEventListener(name, () => show(chosen));
    for (const name of ["pointerleave", "blur"]) spot.addEventListener(name, () => show(pinned));
    return spot;
  }

  /** Dims all but one head, or nothing; draws where it looks, and says what it does. */
  function show(chosen) {
    view.classList.toggle("chosen", Boolean(chosen));
    for (const part of view.querySelectorAll("[data-head]")) {
      part.classList.toggle("lit", part.dataset.head === chosen?.head);
    }
    for (const panel of panels) panel.arcs.replaceChildren(...arcsOf(panel, chosen));
    const nothing = fi.length ? `${panels[0].effects ? "" : SAME} ${HINT}` : NO_HEADS;
    words.textContent = chosen ? said(chosen) : nothing;
    matrix.hidden = !pinned;
    if (!pinned) return;
    const all = element("summary", `All that head ${pinned.head} looks at: rows look at columns`);
    matrix.replaceChildren(all, matrix.open ? matrixOf(panels[pinned.side], pinned.head) : "");
  }

  /** Arcs beside the tokens: where a head looks, or the FI heads on average. */
  function arcsOf(panel, chosen) {
    const at = chosen?.at ?? panel.end;
    const shown = chosen ? [chosen.head] : fi;
    const [x, y] = panel.edgeOf(at);
    const arcs = [];
    for (let key = 1; key < at; key++) {
      const total = shown.reduce((sum, head) => sum + looks(panel, head, at)[key], 0);
      if (key % 6 === 0 || !(total >= 0.03 * shown.length)) continue;
      const [u, v] = panel.edgeOf(key);
      const far = Math.abs(u - x) + Math.abs(v - y); // 0 in the same row
      const deep = far && Math.min(56, 14 + far / 3);
      const bend = narrow.matches ? [x - deep, (y + v) / 2] : [(x + u) / 2, y + deep];
      const look = { class: `line arc ${fi.includes(shown[0]) ? "into" : "reads"}`, d: `M${x},${y}Q${bend} ${u},${v}` };
      arcs.push(svg("path", { ...look, "stroke-width": (7 * total) / shown.length }));
    }
    return arcs;
  }

  /** All of a head's attention, small: rows look at columns. */
  function matrixOf(panel, head) {
    const table = element("table", undefined, { className: "all-looks" });
    panel.tokens.forEach((token, at) => {
      const row = table.insertRow();
      row.insertCell().textContent = token.replace("<bos>", "");
      for (const share of looks(panel, head, at)) {
        row.insertCell().style.setProperty("--v", `${100 * share}%`);
      }
    });
    return table;
  }

  function makePanel(side, title, tokens, run, other) {
    const [answer, to] = [run, other].map((of) => {
      return Page.data.vocabulary[ranked(model.next(of))[0]];
    });
    const effects = Circuit.effects(model, run, other, fi);
    return { side, title, tokens, run, answer, to, effects, end: tokens.length - 1 };
  }

  function draw() {
    const { tokens, base, run, baseRun } = Page.asked;
    panels = [
      makePanel(0, "The prompt you asked", tokens, run, baseRun),
      makePanel(1, "Its base prompt", base, baseRun, run),
    ];
    const size = (values) => values.reduce((all, r) => all + Math.abs(r), 0);
    let most = 0.3; // of |r| that comes to one node
    for (const { effects } of panels) {
      if (!effects) continue;
      const taken = Object.values(effects.into).map(size);
      most = Math.max(most, size(Object.values(effects.out)) / 2, ...taken);
    }
    if (fi.includes(pinned?.head)) pinned = { ...pinned, at: tokens.length - 1 };
    if (pinned?.at >= tokens.length) pinned = null;
    const plans = panels.map((panel) => planOf(panel, 16 / most));
    const up = Math.max(...plans.map((plan) => plan.up));
    const row = element("div", undefined, { className: "panels" });
    panels.forEach((panel, side) => {
      const box = element("div", undefined, { className: "scroll" });
      box.append(element("h3", panel.title), drawPanel(panel, plans[side], up));
      row.append(box);
    });
    view.replaceChildren(row, words, matrix);
    show(pinned);
    for (const drawn of view.querySelectorAll(".circuit")) {
      drawn.dispatchEvent(new CustomEvent("drawn", { bubbles: true }));
    }
  }

  matrix.addEventListener("toggle", () => show(pinned));
  document.addEventListener("asked", draw);
  narrow.addEventListener("change", draw);
  if (Page.asked) draw();
})();
