/* The circuit over the prompt that was asked, and over its base prompt. Tokens lie along one
   side; layers rise from them. From each shown answer rises the stream at its place, through the
   heads that write there; FI heads stand over the last `=`. What they take from a stream runs in
   a lane of its own, below their layer, so that no line meets a node that it doesn't touch. */
"use strict";

const Circuit = (() => {
  const [DOT, FI, ANSWER, TURN, LETTER, LABELS] = [5, 11, 20, 9, 7.3, 30]; // px
  const sum = (values) => values.reduce((a, b) => a + b, 0);
  const layerOf = (head) => parseInt(head, 10);

  // ---- Where everything stands

  /** Places of the tokens: {t, l} in px, `t` along the examples and `l` up the layers, and of the
      streams over them: t alone. `space`: what the lines beside the last stream need. */
  function placeTokens(tokens, { vertical, room, space }) {
    const signs = tokens.map((word, at) => (at % 6 === 2 && !/^[+-]$/.test(word) ? 2 : 0));
    const widths = tokens.map((word, at) => LETTER * (word.length + signs[at]));
    const places = [];
    const streams = [];
    let cursor = LABELS;
    for (let start = 1; start < tokens.length; start += 6) {
      const size = sum(widths.slice(start, start + 5));
      const last = start + 6 > tokens.length;
      const least = (streams[streams.length - 1] ?? -space) + space;
      if (last) cursor = Math.max(cursor, vertical ? least : least - size + LETTER / 2);
      let along = vertical ? -size : cursor;
      for (let at = start; at < Math.min(start + 5, tokens.length); at++) {
        const middle = along + widths[at] / 2;
        places[at] = vertical ? { t: cursor, l: middle } : { t: middle, l: -8 };
        along += widths[at];
      }
      streams.push(places[last ? tokens.length - 1 : start + 4].t);
      cursor += vertical ? 30 : Math.max(size + 15, Math.min(130, room));
    }
    return { places, streams, widths };
  }

  /** Nodes {id: {t, l, half, kind, head, at}} and paths [{from, to, points, width, kind, head}] of
      a picture. readers and fi: names of heads; `reads` and `into` {head: [px]} and `out`
      {head: px}: how wide the line is to a reader from each example's operands, to an FI head from
      each shown answer, and from it to the answer. at: the token that a node's head looks from. */
  function layout({ tokens, readers, fi, reads, into, out, vertical = false, room = 0 }) {
    const flow = (head) => sum(into[head]);
    const layers = [...new Set([...readers, ...fi].map(layerOf))].sort((a, b) => a - b);
    const inLayer = (heads, layer) => heads.filter((head) => layerOf(head) === layer);
    const space = Math.max(...layers.map((layer) => sum(inLayer(fi, layer).map(flow))), 0) + 45;
    const { places, streams, widths } = placeTokens(tokens, { vertical, room, space });
    const [shots, last] = [streams.length - 1, streams[streams.length - 1]];
    const nodes = {};
    const paths = [];
    const rows = [];
    const bands = [];
    places.forEach((place, at) => (nodes[`token ${at}`] = { ...place, kind: "token", at }));
    const answerOf = (i) => (i < shots ? 6 * i + 5 : tokens.length - 1);
    const chains = streams.map((_, i) => [`token ${answerOf(i)}`]);
    const ends = streams.map(() => 0);

    function put(head, i, l, kind, half) {
      const id = `${head} ${i}`;
      nodes[id] = { t: streams[i], l, half, kind, head, at: answerOf(i) };
      chains[i].push(id);
      ends[i] = l;
      return id;
    }

    let l = vertical ? 4 : 12;
    for (const layer of layers) {
      const [readersHere, fiHere] = [inLayer(readers, layer), inLayer(fi, layer)];
      let lane = l + TURN;
      l = fiHere.length ? lane + sum(fiHere.map(flow)) + TURN : l + 4;
      let riser = last - FI - TURN;
      readersHere.forEach((head, row) => {
        const level = l + 8 + 16 * row;
        rows.push({ head, l: level });
        for (let i = 0; i < shots; i++) {
          const operand = places[answerOf(i) - 2];
          const trunk = vertical ? streams[i] - 10 : operand.t;
          const points = [[trunk, vertical ? operand.l : 1], [trunk, level]];
          const to = put(head, i, level, "reader", DOT);
          points.push([streams[i] - DOT, level]);
          paths.push({ to, points, width: reads[head][i], kind: "reads", head });
        }
      });
      fiHere.forEach((head, row) => {
        const level = l + 13 + 25 * row;
        const to = put(head, shots, level, "fi", FI);
        let entry = level - flow(head) / 2;
        for (let i = shots - 1; i >= 0; i--) { // the nearest example takes the lowest lane
          const width = into[head][i];
          const [high, right, end] = [lane + width / 2, riser - width / 2, entry + width / 2];
          const start = [[streams[i], high - TURN], [streams[i], high]];
          const points = [...start, [right, high], [right, end], [last - FI, end]];
          paths.push({ to, points, width, kind: "into", head, example: i });
          [lane, riser, entry] = [lane + width, riser - width, entry + width];
          ends[i] = Math.max(ends[i], high - TURN);
        }
      });
      const height = Math.max(16 * readersHere.length, 25 * fiHere.length);
      bands.push({ layer, from: l, to: l + height });
      l += height;
    }
    const top = l + 14 + ANSWER;
    nodes.answer = { t: last, l: top, half: ANSWER, kind: "answer" };
    let entry = top - sum(fi.map((head) => out[head])) / 2;
    let right = last + ANSWER + TURN;
    for (const head of [...fi].reverse()) { // the highest head leads up nearest to the stream
      const [width, level] = [out[head], nodes[`${head} ${shots}`].l];
      const [up, end] = [right + width / 2, entry + width / 2];
      const points = [[last + FI, level], [up, level], [up, end], [last + ANSWER, end]];
      paths.push({ from: `${head} ${shots}`, to: "answer", points, width, kind: "out", head });
      [right, entry] = [right + width, entry + width];
    }
    chains[shots].push("answer");
    chains.forEach((chain, i) => {
      const stops = chain.map((id) => nodes[id]);
      const low = (node) => (node.kind === "token" ? (vertical ? 3 : 0) : node.l + node.half);
      stops.forEach((node, index) => {
        const next = stops[index + 1];
        const end = next ? next.l - next.half : ends[i];
        const points = [[streams[i], low(node)], [streams[i], end]];
        const ids = { from: chain[index], to: chain[index + 1] };
        if (end > low(node)) paths.push({ ...ids, points, width: 2, kind: i < shots ? "shown" : "last" });
      });
    });
    return { nodes, paths, rows, bands, streams, widths, size: [right + 8, top + ANSWER + 4] };
  }

  // ---- How wide the lines are

  /** Effects of the other prompt's values on a run: r of each FI head on the answer, `out`
      {head: r}, and of what it takes from each shown answer alone, `into` {head: [r]}. Only the
      direct path moves: heads stay as they are, MLPs are live. F = logit(plain) - logit(shifted);
      r = -1: what was put in takes F all the way to the other prompt's. None: both have one F. */
  function effects(model, run, other, heads, plain, shifted) {
    const { d_model, d_head, n_layers, act_fn } = model.config;
    const place = run.tokens.length - 1;
    const at = (stream) => MiniFunc.part(stream, place, d_model);
    const F = (stream) => {
      const logits = model.unembed(stream);
      return logits[plain] - logits[shifted];
    };
    const end = at(run.streams[2 * n_layers]);
    const [own, others] = [F(end), F(at(other.streams[2 * n_layers]))];
    if (plain === shifted || Math.abs(own - others) < 1e-6) return null;

    function r(head, z) {
      const [layer, index] = head.split(".").map(Number);
      let delta = model.written(z, layer, index);
      for (let l = layer; l < n_layers && act_fn !== "none"; l++) {
        const before = at(run.streams[2 * l + 1]);
        const [now, then] = [model.mlp(MiniFunc.add(before, delta), l), model.mlp(before, l)];
        delta = delta.map((x, i) => x + now[i] - then[i]);
      }
      return (F(MiniFunc.add(end, delta)) - own) / (own - others);
    }

    const [into, out] = [{}, {}];
    for (const head of heads) {
      const taken = ({ v, patterns }, from) => {
        const share = patterns[head][place * run.tokens.length + from];
        return MiniFunc.part(v[head], from, d_head).map((x) => share * x);
      };
      const less = (a, b) => a.map((x, i) => x - b[i]);
      into[head] = [];
      for (let from = 5; from < place; from += 6) {
        into[head].push(r(head, less(taken(other, from), taken(run, from))));
      }
      const z = (of) => MiniFunc.part(of.z[head], place, d_head);
      out[head] = r(head, less(z(other), z(run)));
    }
    return { into, out };
  }

  return { layout, effects };
})();

if (typeof module !== "undefined") module.exports = Circuit;

if (typeof document !== "undefined" && Page.model && Page.at("circuit-view")) (() => {
  const { at, element, svg, percent, ranked, model, membersOf, groupOf, NAMES } = Page;
  const view = at("circuit-view");
  const exists = (head) => Number(head.split(".")[0]) < model.config.n_layers;
  const fi = membersOf("function_induction").filter(exists);
  const routes = [...membersOf("expected_answer"), ...membersOf("shown_answer")].filter(exists);
  const readers = [...new Set(routes)].filter((head) => !fi.includes(head)).sort();
  const narrow = matchMedia("(max-width: 600px)");
  const PLACES = ["first operand", "operation", "second operand", "“=”", "answer", "“;”"];
  const signed = (r) => `${r < 0 ? "−" : "+"}${Math.abs(100 * r).toFixed(1)} %`;
  let panels = [];
  let pinned = null;
  const words = element("p", "", { className: "hint" });
  const matrix = element("details");
  words.setAttribute("aria-live", "polite");

  /** The attention that a head pays from a token. */
  const looks = ({ run, tokens }, head, from) =>
    run.patterns[head].subarray(from * tokens.length, (from + 1) * tokens.length);

  function placeWords(tokens, key) {
    if (key === 0) return "the start";
    const example = Math.floor((key - 1) / 6);
    const of = 6 * example + 5 < tokens.length ? `example ${example + 1}` : "the question";
    return `${tokens[key]}, the ${PLACES[(key - 1) % 6]} of ${of}`;
  }

  /** A line through corners, which are rounded. */
  function rounded(points) {
    const toward = ([x, y], [u, v]) => {
      const far = Math.hypot(u - x, v - y);
      const share = Math.min(9, far / 2) / (far || 1);
      return `${x + (u - x) * share} ${y + (v - y) * share}`;
    };
    const bends = points.slice(1, -1).map((corner, i) =>
      `L${toward(corner, points[i])}Q${corner.join(" ")} ${toward(corner, points[i + 2])}`);
    return `M${points[0].join(" ")}${bends.join("")}L${points[points.length - 1].join(" ")}`;
  }

  function widthsOf(panel, scale) {
    const shots = Math.floor((panel.tokens.length - 1) / 6);
    const shares = (head, places) => Array.from({ length: shots }, (_, i) => places(looks, i));
    const [into, out, reads] = [{}, {}, {}];
    for (const head of fi) {
      const row = looks(panel, head, panel.tokens.length - 1);
      const r = panel.effects?.into[head] ?? shares(head, (_, i) => row[6 * i + 5]);
      into[head] = r.map((x) => Math.max(0.7, Math.abs(x) * scale));
      out[head] = panel.effects ? Math.max(0.7, Math.abs(panel.effects.out[head]) * scale) : 2;
    }
    for (const head of readers) {
      reads[head] = Array.from({ length: shots }, (_, i) => {
        const row = looks(panel, head, 6 * i + 5);
        return 0.5 + 3 * (row[6 * i + 1] + row[6 * i + 3]);
      });
    }
    return { into, out, reads };
  }

  function drawPanel(panel, scale) {
    const vertical = narrow.matches;
    const { tokens } = panel;
    const shots = Math.floor((tokens.length - 1) / 6);
    const room = (Math.min(view.clientWidth, 1104) / 2 - 230) / Math.max(1, shots);
    const plan = Circuit.layout({ tokens, readers, fi, vertical, room, ...widthsOf(panel, scale) });
    const depth = vertical ? 26 + Math.max(...plan.widths.map((_, i) => -(plan.nodes[`token ${i}`]?.l ?? 0))) + 12 : 60;
    const [along, up] = plan.size;
    const xy = (t, l) => (vertical ? [l + depth, t] : [t, up - l]);
    const [width, height] = vertical ? [up + depth, along] : [along, up + depth];
    const parts = [];
    for (const { from, to } of plan.bands) {
      const [[x1, y1], [x2, y2]] = [xy(LEFT, from), xy(along, to)];
      parts.push(svg("rect", { x: Math.min(x1, x2), y: Math.min(y1, y2), width: Math.abs(x2 - x1), height: Math.abs(y2 - y1), rx: 6, class: "layer" }));
    }
    for (const { head, l } of plan.rows) {
      const [x, y] = xy(LEFT + 13, l);
      parts.push(svg("text", { x, y, class: "label", "data-head": head }, head));
    }
    panel.arcs = svg("g", { class: "arcs" });
    parts.push(panel.arcs);
    for (const path of plan.paths) {
      const against = path.example === undefined ? panel.effects?.out[path.head] > 0 : panel.effects?.into[path.head][path.example] > 0;
      const d = rounded(path.points.map(([t, l]) => xy(t, l)));
      const look = { d, "stroke-width": path.width, class: `line ${path.kind}${against ? " against" : ""}` };
      if (path.head) look["data-head"] = path.head;
      parts.push(svg("path", look));
    }
    panel.place = (key) => plan.nodes[`token ${key}`] && xy(plan.nodes[`token ${key}`].t, plan.nodes[`token ${key}`].l);
    for (const node of Object.values(plan.nodes)) {
      const [x, y] = xy(node.t, node.l);
      if (node.kind === "token") parts.push(svg("text", { x, y, class: "word" + (node.at % 6 === 5 ? " shown" : "") }, tokens[node.at]));
      else if (node.kind === "answer") parts.push(svg("text", { x, y, class: "reply" }, panel.answer));
      else {
        const made = svg("g", { class: `spot ${node.kind} ${groupOf(node.head)}`, "data-head": node.head, "data-at": node.at },
          svg("circle", { cx: x, cy: y, r: node.half }));
        if (node.kind === "fi") made.append(svg("text", { x, y }, node.head));
        made.dataset.tip = tipOf(panel, node);
        parts.push(made);
      }
    }
    const drawn = svg("svg", { class: "circuit", viewBox: `0 0 ${width} ${height}`, width, height, "aria-label": panel.title, role: "group" }, ...parts);
    return drawn;
  }
  const LEFT = 2;
  function tipOf(panel, { kind, head, at }) {
    if (kind === "fi") return `${head}, FI head${panel.effects ? `: r = ${signed(panel.effects.out[head])}` : ""}`;
    const row = looks(panel, head, at);
    return `${head} at ${placeWords(panel.tokens, at)}: ${percent(row[at - 4] + row[at - 2])} on its operands`;
  }
  function draw() {
    const { tokens, base, run, baseRun } = Page.asked;
    const best = (of) => ranked(model.next(of))[0];
    const [plain, shifted] = [best(baseRun), best(run)];
    const name = (id) => Page.data.vocabulary[id];
    panels = [
      { title: "The prompt you asked", tokens, run, other: baseRun, answer: name(shifted), to: name(plain) },
      { title: "Its base prompt", tokens: base, run: baseRun, other: run, answer: name(plain), to: name(shifted) },
    ];
    let most = 0.4;
    for (const panel of panels) {
      panel.effects = Circuit.effects(model, panel.run, panel.other, fi, plain, shifted);
      const size = (values) => values.reduce((a, b) => a + Math.abs(b), 0);
      if (!panel.effects) continue;
      most = Math.max(most, size(Object.values(panel.effects.out)) / 2, ...Object.values(panel.effects.into).map(size));
    }
    view.replaceChildren(element("div", undefined, { className: "panels" }), words);
    for (const panel of panels) {
      const box = element("div", undefined, { className: "scroll" });
      box.append(element("h3", panel.title), drawPanel(panel, 18 / most));
      view.firstChild.append(box);
    }
  }
  document.addEventListener("asked", draw);
  narrow.addEventListener("change", draw);
  if (Page.asked) draw();
})();
