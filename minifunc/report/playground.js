/* The playground: a prompt, the model's answer, heads that can be swapped, and where they look. */
"use strict";

const Playground = (() => {
  const { at, element, button, percent, ranked, answerRow, model, idsOf, NAMES } = Page;
  const { membersOf, groupsOf, groupOf } = Page;
  const { model: config, vocabulary, prompt: FIRST } = Page.data;

  const PRESETS = {
    "off by +1": Prompts.toText(FIRST.split(" ")),
    "plain": "1+1=2, 2+2=4, 3+3=",
    "off by +2": "1+1=4, 2+5=9, 6+2=10, 1+4=7, 3+3=",
    "off by −1": "1+1=1, 2+5=6, 6+2=7, 1+4=4, 3+3=",
    "Caesar": "a copy _=b, d copy _=e, h copy _=i, m copy _=",
    "base 8": "5+6=13, 4+7=13, 2+3=5, 7+7=16, 6+6=",
  };

  const headsOf = (layer) => [...Array(config.n_heads).keys()].map((head) => `${layer}.${head}`);
  const heads = [...Array(config.n_layers).keys()].reverse().flatMap(headsOf); // as on the page

  let swapped = []; // heads that send what they send on the base prompt

  /** Text → tokens. Throws an Error, in words, for what the model cannot be asked. */
  function read(text) {
    const tokens = Prompts.tokenize(text, vocabulary);
    if (tokens.length <= config.n_ctx) return tokens;
    throw new Error(`this prompt has ${tokens.length} tokens; the model sees ${config.n_ctx}`);
  }

  function canAsk(text) {
    try {
      return Boolean(read(text));
    } catch {
      return false; // a model with another vocabulary, or a short context
    }
  }

  /** The base prompt. Where none is written, the one that belongs to the prompt is. */
  function readBase(tokens) {
    const field = at("base");
    field.value = field.value.trim() || Prompts.toText(Prompts.baseTokens(tokens, vocabulary));
    const base = read(field.value);
    if (base.length === tokens.length) return base;
    throw new Error("the base prompt must have as many examples as the prompt");
  }

  /** Reads both prompts, runs the model with heads swapped, and shows what it answers.
      Returns the answer, or nothing where a prompt cannot be read. */
  function update() {
    let [answer, problem] = ["", ""];
    try {
      const tokens = read(at("prompt").value);
      askModel(tokens, readBase(tokens));
      answer = showAnswer(Page.asked);
    } catch (error) {
      problem = error.message;
    }
    at("problem").textContent = problem;
    at("answer").classList.toggle("stale", !answer);
    for (const name of heads) at(`switch-${name}`).ariaPressed = swapped.includes(name);
    for (const field of [at("prompt"), at("base")]) {
      field.classList.toggle("long", field.value.length > 80);
      if (field !== document.activeElement) field.scrollTop = field.scrollHeight; // to its end
    }
    return answer;
  }

  /** Asks the model as it was trained, if not the same as the last time. `Page.asked` keeps, and
      "asked" tells, `tokens` and `base`, as strings, and their runs, `run` and `baseRun`. */
  function askModel(tokens, base) {
    if (`${Page.asked?.tokens} ${Page.asked?.base}` === `${tokens} ${base}`) return;
    const [run, baseRun] = [tokens, base].map((strings) => model.run(idsOf(strings)));
    Page.asked = { tokens, base, run, baseRun };
    document.dispatchEvent(new CustomEvent("asked", { detail: Page.asked }));
  }

  /** Shows the answer, and as trained, by their probabilities. Returns it and why it is a guess. */
  function showAnswer({ tokens, base, run, baseRun }) {
    const sent = Object.fromEntries(swapped.map((head) => [head, baseRun.z[head]]));
    const now = model.next(swapped.length ? model.run(run.tokens, sent) : run);
    const before = model.next(run);
    const [best, first] = [now, before].map((probabilities) => ranked(probabilities)[0]);
    const shown = [...new Set([...ranked(now).slice(0, 5), first])];
    const rows = shown.map((token) => answerRow(vocabulary[token], now[token], before[token]));
    const answer = element("p", vocabulary[best], { className: "big" });
    answer.classList.toggle("changed", best !== first);
    const count = swapped.length;
    const words = count ? `with ${count} swapped; as trained ${vocabulary[first]}` : "as trained";
    const why = Prompts.doubts(tokens, now[best]).join("; ");
    const guess = why && `This is a guess: ${why}.`;
    const label = (text) => element("p", text, { className: "label" });
    const list = element("ol", "", { className: "top" }, ...rows);
    at("answer").replaceChildren(label("answer"), answer, label(words), label(guess), list);
    at("answer").dataset.best = vocabulary[best];
    const same = `${tokens}` === `${base}`;
    at("same").textContent = same ? "Both prompts are the same: nothing to swap." : "";
    return { answer: vocabulary[best], guess };
  }

  /** Asks something, with the base prompt that belongs to it. Returns what `update` does. */
  function ask(text, names = []) {
    at("prompt").value = text;
    at("base").value = "";
    return swap(names);
  }

  /** Swaps in what these heads send on the base prompt, and only these. Returns the same. */
  function swap(names) {
    swapped = names;
    return update();
  }

  /** Swaps heads, or back where all of them are swapped already. */
  function toggle(names) {
    const others = swapped.filter((name) => !names.includes(name));
    const back = names.every((name) => swapped.includes(name));
    swap(back ? others : [...others, ...names]);
  }

  /** From which token a head looks at which, and how much: at `to`, or at what it looks at most. */
  function told({ tokens, run }, head, from, to) {
    const shares = run.patterns[head].subarray(from * tokens.length, (from + 1) * tokens.length);
    const best = to ?? ranked(shares)[0];
    const [start, end] = [from, best].map((place) => {
      const last = 6 * Math.ceil(place / 6); // of its example
      const around = tokens.slice(last - 5, last).join("");
      return place ? `“${tokens[place]}” in “${around}”` : "the start";
    });
    const most = to === undefined ? "most " : "";
    return `from ${start} it looks ${most}at ${end} (${percent(shares[best])})`;
  }

  /** A head's attention [query, key] as a square, which says of each place what it means. */
  function square(head) {
    const { tokens: { length: n }, run } = Page.asked;
    const canvas = element("canvas", "", { width: n, height: n });
    const image = new ImageData(new Uint8ClampedArray(4 * n * n).fill(255), n, n); // see `canvas`
    run.patterns[head].forEach((share, i) => (image.data[4 * i + 3] = 255 * Math.sqrt(share)));
    canvas.getContext("2d").putImageData(image, 0, 0);
    const box = element("div", head, { className: `square ${groupOf(head)}` }, canvas);
    const tell = (...to) => (box.dataset.tip = `Head ${head}: ${told(Page.asked, head, ...to)}`);
    const place = (px) => Math.min(n - 1, Math.trunc((n * px) / canvas.clientWidth));
    canvas.onpointermove = canvas.onpointerdown = (e) => tell(place(e.offsetY), place(e.offsetX));
    tell(n - 1);
    return box;
  }

  /** All squares, where they are unfolded, and how usual the attention of FI heads is here. */
  function drawAttention() {
    if (!at("attention").open) return;
    const { tokens, run } = Page.asked;
    const fi = membersOf("function_induction");
    const mean = (of) => fi.reduce((sum, head) => sum + of(head) / fi.length, 0);
    const last = (head) => run.patterns[head].subarray(-tokens.length);
    const here = mean((head) => last(head).reduce((sum, x, i) => sum + x * (i % 6 === 5), 0));
    const usual = mean((head) => Page.data.attention[head]?.last_to_answers);
    const said = `From the last = the FI heads give shown answers ${percent(here)} of their
      attention; on the prompts that were traced, ${percent(usual)}.`;
    at("attention-mean").textContent = usual ? said : "";
    const squares = element("div", "", { className: "tiles" }, ...heads.map(square));
    at("squares").replaceChildren(squares);
    squares.dispatchEvent(new CustomEvent("drawn", { bubbles: true }));
  }

  at("heads").style.setProperty("--columns", config.n_heads);
  for (const name of heads) {
    const made = button(name, { id: `switch-${name}` }, () => toggle([name]));
    const [first = "", ...others] = groupsOf(name);
    made.className = `head ${first}`;
    made.dataset.tip = [`head ${name}`, ...groupsOf(name).map((role) => NAMES[role])].join(", ");
    made.append(...others.map((className) => element("i", "", { className })));
    at("heads").append(made);
  }
  for (const [group, name] of Object.entries(NAMES)) {
    const members = membersOf(group).filter((head) => heads.includes(head));
    const look = { id: `set-${group}`, className: `chip ${group}` };
    const words = `all ${name} (${members.length})`;
    if (members.length) at("sets").append(button(words, look, () => toggle(members)));
  }
  at("sets").append(button("as trained", { id: "reset", className: "chip" }, () => swap([])));

  const presets = Object.entries(PRESETS).filter(([, text]) => canAsk(text));
  const chip = ([name, text]) => button(name, { className: "chip" }, () => ask(text, swapped));
  at("presets").append(...presets.map(chip));
  const numbers = vocabulary.filter((word) => /^-?\d+$/.test(word)).map(Number);
  at("signs").textContent = vocabulary.filter((word) => /^([+-]|[a-z]{2,})$/.test(word)).join(" ");
  at("numbers").textContent = `${Math.min(...numbers)} to ${Math.max(...numbers)}`;

  at("attention").addEventListener("toggle", drawAttention);
  document.addEventListener("asked", drawAttention);
  let waiting;
  at("play").addEventListener("input", ({ target }) => {
    if (target.id === "prompt") at("base").value = "";
    target.value = target.value.replace(/\n$/, ""); // Enter ends no line
    clearTimeout(waiting);
    waiting = setTimeout(update, 150);
  });
  if (presets.length) ask(presets[0][1]);

  return { heads, ask, swap, canAsk, told };
})();
