/* The circuit over the prompt that was asked, and over its base prompt. Tokens lie along one side,
   layers rise from them. Over each shown answer rises the stream at its place, through the heads
   that write there; FI heads stand over the last `=`. What they take from a stream has a lane of
   its own below their layer, so that no line can meet a node that it doesn't touch. */
"use strict";

const Circuit = (() => {
  const [NODE, ANSWER, SPACE, LETTER] = [10, 21, 1.5, 7.9]; // px: half of a box, a box, apart, wide
  const sum = (values) => values.reduce((a, b) => a + b, 0);
  const layerOf = (head) => parseInt(head, 10);
  const shownIn = (tokens) => [...tokens.keys()].filter((at) => at % 6 === 5); // answers
  const byHead = (heads, measure) => Object.fromEntries(heads.map((head) => [head, measure(head)]));

  /** Where each token stands: {t, l} in px, `t` along the examples, `l` up the layers.
      column: the least width of an example; space: what the lines to FI heads need. */
  function placeTokens(tokens, vertical, column, space) {
    const places = [];
    let start = vertical ? 48 : 66;
    for (let first = 1; first < tokens.length; first += 6) {
      const sizes = tokens.slice(first, first + 5).map((word) => LETTER * word.length + 2);
      if (sizes.length < 5) start += space;
      let along = vertical ? -sum(sizes) : start;
      sizes.forEach((size, i) => {
        const middle = along + size / 2;
        places[first + i] = vertical ? { t: start, l: middle } : { t: middle, l: -8 };
        along += size;
      });
      start += vertical ? 34 : Math.max(sum(sizes) + 15, column);
    }
    return places;
  }

  /** The picture's nodes {id: {kind, t, l, half, tall, head, at}}, its paths [{kind, points, width,
      from, to, head, at, i}] and the layers' bands. readers, fi: heads, layer by layer.
      Widths in px: reads[head][i], from example i's operands to a reader; into[head][i], from its
      answer to an FI head, 0: none; out[head], from that to the answer. room: the tokens, into and
      out that there must be room for. */
  function layout({ tokens, readers, fi, reads, into, out, vertical, column, room }) {
    const layers = [...new Set([...readers, ...fi].map(layerOf))].sort((a, b) => a - b);
    const within = (heads, layer) => heads.filter((head) => layerOf(head) === layer);
    const flow = (head) => sum((room.into[head] ?? []).map((width) => width && width + SPACE));
    const lanes = (layer) => sum(within(fi, layer).map(flow));
    const tall = (head) => Math.max(NODE, flow(head) / 2, (room.out[head] ?? 0) / 2 + 1);
    const space = Math.max(0, ...layers.map(lanes)) + 10;
    const places = placeTokens(room.tokens, vertical, column, space);
    const shown = shownIn(tokens);
    const last = tokens.length - 1;
    const { t: x } = places[last];
    const [nodes, paths, bands] = [{}, [], []];
    places.forEach((place, at) => {
      nodes[`token ${at}`] = { kind: at % 6 === 5 ? "shown" : "word", ...place, at };
    });

    function put(kind, head, at, l, half, tall) {
      const id = `${head} ${at}`;
      nodes[id] = { kind, t: places[at].t, l, half, tall, head, at };
      return id;
    }

    /** Adds a path [t, l] to [t, l] that goes up or down at `bend` only. */
    const add = (path, start, bend, end) =>
      paths.push({ ...path, points: [start, [bend, start[1]], [bend, end[1]], end] });

    function putReader(head, level) {
      shown.forEach((at, i) => {
        const to = put("spot", head, at, level, NODE, NODE);
        const { t, l } = places[at - 3]; // between its operands
        const start = vertical ? [places[at].t - NODE - 5, l] : [t, 2];
        const end = [places[at].t - NODE, level];
        add({ kind: "reads", to, head, width: reads[head][i] }, start, start[0], end);
      });
    }

    /** An FI head and its lanes; the example nearest to it has the lowest. */
    function putFI(head, level) {
      const to = put("spot", head, last, level, NODE, tall(head));
      const entry = level - flow(head) / 2 - used;
      for (const i of [...shown.keys()].reverse()) {
        const [width, spare] = [into[head][i], room.into[head][i]];
        const middle = used + (spare + SPACE) / 2;
        const start = [places[shown[i]].t, lowest + middle];
        const end = [x - NODE, entry + middle];
        if (width) add({ kind: "into", to, head, i, width }, start, x - NODE - 8 - middle, end);
        used += spare && spare + SPACE;
      }
    }

    let l = 0; // below, all is full
    let [lowest, used] = [0, 0]; // where a layer's lanes begin, and how much of them is drawn
    for (const layer of layers) {
      [lowest, used] = [l + 6, 0];
      l += lanes(layer) + 12;
      bands.push({ layer, from: l });
      for (const head of within([...readers, ...fi], layer)) {
        (fi.includes(head) ? putFI : putReader)(head, l + tall(head) + 1.5);
        l += 2 * tall(head) + 3;
      }
      bands.at(-1).to = l;
    }
    const reaching = sum(fi.map((head) => room.out[head] + SPACE)) / 2;
    const tallest = Math.max(ANSWER, reaching);
    const to = put("answer", "answer", last, l + 12 + tallest, ANSWER, tallest);
    const entry = nodes[to].l - reaching;
    used = 0;
    for (const head of [...fi].reverse()) { // the highest goes up nearest to the stream
      const from = `${head} ${last}`;
      const middle = used + (room.out[head] + SPACE) / 2;
      const [start, end] = [[x + NODE, nodes[from].l], [x + ANSWER, entry + middle]];
      const path = { kind: "out", from, to, head, i: 0, width: out[head] };
      add(path, start, x + ANSWER + 8 + middle, end);
      used += room.out[head] + SPACE;
    }
    for (const at of [...shown, last]) {
      const { t } = places[at];
      add({ kind: at === last ? "last" : "stream", at, width: 2.2 }, [t, 2], t, [t, l + 12]);
    }
    const down = 16 - Math.min(...Object.values(nodes).map((node) => node.l));
    return { nodes, paths, bands, along: x + ANSWER + used + 12, up: l + 2 * tallest + 16, down };
  }

  /** Layouts of prompts that are drawn alike: each leaves room for the widest of all. */
  function layouts(all) {
    const most = (of) => Math.max(...all.map(of));
    const [{ tokens, fi, into }] = all;
    const room = {
      tokens: tokens.map((_, at) => "x".repeat(most((one) => one.tokens[at].length))),
      into: byHead(fi, (head) => into[head].map((_, i) => most((one) => one.into[head][i]))),
      out: byHead(fi, (head) => most((one) => one.out[head])),
    };
    return all.map((drawn) => layout({ ...drawn, room }));
  }

  /** What putting values of the run `other` into a run does to its answer: r of each FI head, `out`
      {head: r}, and of what it takes from each shown answer alone, `into` {head: [r]}.
      None where both runs give one answer. */
  function effects(model, run, other, heads) {
    const patcher = new PathPatching.PathPatcher(model, other, run);
    if (patcher.answers[0] === patcher.answers[1]) return null;
    const shown = shownIn(run.tokens);
    return {
      into: byHead(heads, (head) => patcher.effectsByPosition(head, shown)),
      out: byHead(heads, (head) => patcher.r(patcher.patched(head, "logits"))),
    };
  }

  return { layouts, effects, shownIn, byHead };
})();

if (typeof module !== "undefined") module.exports = Circuit;

if (typeof document !== "undefined" && Page.model && Page.at("circuit-view")) (() => {
  const { element, svg, percent, ranked, model, membersOf, groupOf, NAMES, nothing } = Page;
  const view = Page.at("circuit-view");
  const TITLES = ["The prompt you asked", "Its base prompt"];
  const HINT = "Point at or tap a head to see what it does on this prompt; click to keep it.";
  const { layouts, effects, shownIn, byHead } = Circuit;
  const heads = [...Playground.heads].sort((a, b) => a - b); // layer by layer
  const fi = heads.filter((head) => membersOf("function_induction").includes(head));
  const reading = [...membersOf("expected_answer"), ...membersOf("shown_answer")];
  const readers = heads.filter((head) => reading.includes(head) && !fi.includes(head));
  const narrow = matchMedia("(max-width: 600px)");
  const words = element("p", "", { className: "hint", ariaLive: "polite" });
  let panels = [];
  let pinned = null; // { side: a panel's number, head, at: the token below }

  /** What a head does on a prompt, in sentences. */
  function said({ side, head, at }) {
    const { effects, to } = panels[side];
    const looks = Playground.told(panels[side], head, at);
    const first = `Head ${head}, one of the ${NAMES[groupOf(head)]}: ${looks}.`;
    const r = effects?.out[head];
    if (r === undefined) return first;
    const [layer, index] = head.split(".");
    const signed = (x) => `${x < 0 ? "−" : "+"}${percent(Math.abs(x))}`;
    const mean = side ? undefined : Page.data.r[layer]?.[index]; // of the traced prompts
    const average = mean === undefined ? "" : ` on this prompt; ${signed(mean)} on average`;
    const way = r < 0 ? "of the way to" : "further away from";
    const swapped = "What it sends on the other prompt, put in here, moves the answer";
    return `${first} ${swapped} ${percent(Math.abs(r))} ${way} ${to} (r = ${signed(r)}${average}).`;
  }

  /** What a panel's layout is of; px: how wide a line of r = 1 is. */
  function drawnIn(panel, px) {
    const { tokens, effects } = panel;
    const shown = shownIn(tokens);
    const wide = (x) => (Math.abs(x) < 0.01 ? 0 : Math.max(0.8, Math.abs(x) * px));

    const reads = (head) => shown.map((at) => {
      const share = (place) => panel.run.patterns[head][at * tokens.length + place];
      return 0.6 + 2.6 * (share(at - 4) + share(at - 2));
    });
    const into = (head) => (effects?.into[head] ?? []).map(wide);
    const out = (head) => (effects ? Math.max(0.8, wide(effects.out[head])) : 0);
    const widths = { reads: byHead(readers, reads), into: byHead(fi, into), out: byHead(fi, out) };
    const column = Math.min(180, (view.clientWidth / 2 - 240) / (shown.length || 1));
    return { tokens, readers, fi, ...widths, vertical: narrow.matches, column };
  }

  function picture(panel, { nodes, paths, bands, along, up, down }) {
    const vertical = narrow.matches;
    const xy = ([t, l]) => (vertical ? [l, t] : [t, -l]);
    const parts = [];

    /** Words in the middle of a box, if that has a size. */
    function put(kind, place, half, tall, words) {
      const [[x, y], [w, h]] = [xy(place), vertical ? [tall, half] : [half, tall]];
      const box = svg("rect", { x: x - w, y: y - h, width: 2 * w, height: 2 * h, rx: 8 });
      const made = svg("g", { class: kind }, box, svg("text", { x, y }, words));
      parts.push(made);
      return made;
    }

    for (const { layer, from, to } of bands) {
      const middle = (from + to) / 2;
      const [t, words] = vertical ? [12, layer] : [25, `layer ${layer}`];
      put("layer", [along / 2, middle], along / 2, (to - from) / 2, "");
      put("layer", [t, middle], 0, 0, words);
    }
    for (const { kind, points, width, head, i } of paths) {
      const r = [panel.effects?.[kind]?.[head]].flat()[i];
      const look = { "stroke-width": width, class: `line ${kind} ${r > 0 ? "against" : ""}` };
      const line = svg("path", { ...look, d: `M${points.map(xy).join("L")}` });
      if (head) line.dataset.head = head;
      parts.push(line);
    }
    for (const { kind, t, l, half = 0, tall = 0, head, at } of Object.values(nodes)) {
      const words = { spot: head, answer: panel.answer }[kind] ?? panel.tokens[at];
      const node = put(`${kind} ${groupOf(head)}`, [t, l], half, tall, words);
      if (kind === "spot") listen(node, { side: panel.side, head, at });
    }
    const [width, height] = vertical ? [up + down, along] : [along, up + down];
    const viewBox = `${xy([0, vertical ? -down : up])} ${width} ${height}`;
    const look = { viewBox, width, height, class: "circuit", "aria-label": TITLES[panel.side] };
    return svg("svg", look, ...parts);
  }

  /** Lets a head be pointed at, moved to, and kept in view. */
  function listen(spot, chosen) {
    const { head } = chosen;
    Object.assign(spot.dataset, { head, tip: `${head}, one of the ${NAMES[groupOf(head)]}` });
    const pin = () => {
      pinned = pinned?.head === head && pinned.at === chosen.at ? null : chosen;
      show(pinned ?? chosen);
    };
    spot.addEventListener("click", pin);
    spot.addEventListener("keydown", (event) => event.key === "Enter" && pin());
    for (const name of ["pointerenter", "focus"]) spot.addEventListener(name, () => show(chosen));
    for (const name of ["pointerleave", "blur"]) spot.addEventListener(name, () => show(pinned));
  }

  /** Dims all but one head, or nothing, and says what it does. */
  function show(chosen) {
    view.classList.toggle("chosen", Boolean(chosen));
    for (const part of view.querySelectorAll("[data-head]")) {
      part.classList.toggle("lit", part.dataset.head === chosen?.head);
    }
    words.textContent = chosen ? said(chosen) : HINT;
  }

  function draw() {
    const { tokens, base, run, baseRun } = Page.asked;
    const answerOf = (some) => Page.data.vocabulary[ranked(model.next(some))[0]];
    panels = [[tokens, run, baseRun], [base, baseRun, run]].map(([tokens, run, other], side) => {
      const [answer, to] = [answerOf(run), answerOf(other)];
      return { side, tokens, run, answer, to, effects: effects(model, run, other, fi) };
    });
    pinned = null;
    const outs = panels.flatMap(({ effects }) => Object.values(effects?.out ?? {}));
    const most = Math.max(0.3, ...outs.map(Math.abs));
    const plans = layouts(panels.map((panel) => drawnIn(panel, 15 / most)));
    const boxes = panels.map((panel, side) => {
      const parts = [element("h3", TITLES[side]), picture(panel, plans[side])];
      return element("div", "", { className: "scroll" }, ...parts);
    });
    const why = element("p", panels[0].effects ? "" : nothing(panels[0].answer));
    view.replaceChildren(why, element("div", "", { className: "panels" }, ...boxes), words);
    for (const box of boxes) {
      box.scrollLeft = box.scrollWidth; // to the answer
      box.lastChild.dispatchEvent(new CustomEvent("drawn", { bubbles: true }));
    }
    show(null);
  }

  document.addEventListener("asked", draw);
  narrow.addEventListener("change", draw);
  if (Page.asked) draw();
})();
