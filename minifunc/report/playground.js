/* The playground: a prompt, the model's answer, heads that can be switched, and where they look. All of the model is in model.js. */
"use strict";

(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const { model: config, vocabulary, layout, groups, prompt: headline } = read("model-data");
  const model = new MiniFunc.Transformer(config, MiniFunc.readWeights(document.getElementById("weights").textContent.trim(), layout));
  const at = (id) => document.getElementById(id);
  const heads = Array.from({ length: config.n_layers * config.n_heads }, (_, i) => `${Math.floor(i / config.n_heads)}.${i % config.n_heads}`);
  const PRESETS = {
    "off by +1": Prompts.toText(headline.split(" ")),
    "plain": "1+1=2, 2+2=4, 3+3=",
    "off by +2": "1+1=4, 2+5=9, 6+2=10, 1+4=7, 3+3=",
    "off by −1": "1+1=1, 2+5=6, 6+2=7, 1+4=4, 3+3=",
    "Caesar": "a copy _=b, d copy _=e, h copy _=i, m copy _=",
    "base 8": "5+6=13, 4+7=13, 2+3=5, 7+7=16, 6+6=",
  };
  const STATES = { base: "sends what it sends on the base prompt", off: "switched off" };
  const NAMES = { function_induction: "FI heads", expected_answer: "heads that bring the expected answer", shown_answer: "heads that bring the shown answer", previous_token: "previous-token heads", consolidation: "consolidation heads" };
  let switched = {}; // {"layer.head": "base" | "off"}
  let tokens = [], base = [], query = 0, now = null;

  function element(tag, words, properties = {}) {
    const made = Object.assign(document.createElement(tag), properties);
    if (words !== undefined) made.textContent = words;
    return made;
  }

  const groupOf = (head) => Object.keys(NAMES).find((group) => (groups[group] || []).includes(head)) || "";
  const percent = (share) => `${(100 * share).toFixed(share > 0.995 || share < 0.0005 ? 0 : 1)} %`;
  const ids = (strings) => strings.map((string) => vocabulary.indexOf(string));

  /** Reads both prompts, runs the model as it is and as it is switched, and shows both. */
  function update() {
    at("problem").textContent = "";
    try {
      tokens = Prompts.tokenize(at("prompt").value, vocabulary);
      base = at("base").value.trim() && at("base").dataset.own ? Prompts.tokenize(at("base").value, vocabulary) : Prompts.baseTokens(tokens, vocabulary);
      if (!at("base").dataset.own) at("base").value = Prompts.toText(base);
      if (tokens.length > config.n_ctx) throw new Error(`this prompt has ${tokens.length} tokens; the model sees ${config.n_ctx}`);
      if (base.length !== tokens.length) throw new Error("the base prompt must have as many examples as the prompt");
      now = model.runSwitched(ids(tokens), ids(base), switched);
      const asTrained = Object.keys(switched).length ? model.runSwitched(ids(tokens), ids(base), {}) : now;
      query = Math.min(query, tokens.length - 1);
      showAnswer(now.probabilities, asTrained.probabilities);
      showLooks();
    } catch (error) {
      at("problem").textContent = error.message;
    }
    showHeads();
  }

  const ranked = (probabilities) => Array.from(probabilities.keys()).sort((a, b) => probabilities[b] - probabilities[a]);

  function showAnswer(probabilities, before) {
    const best = ranked(probabilities)[0], first = ranked(before)[0];
    const shown = [...new Set([...ranked(probabilities).slice(0, 5), first])];
    const big = element("p", vocabulary[best], { className: "big" + (best !== first ? " changed" : "") });
    const list = element("ol", undefined, { className: "top" });
    for (const token of shown) {
      const row = element("li");
      const bar = element("span", undefined, { className: "bar" });
      bar.style.setProperty("--now", `${100 * probabilities[token]}%`);
      bar.style.setProperty("--before", `${100 * before[token]}%`);
      row.dataset.tip = `${vocabulary[token]}: ${percent(probabilities[token])}, as trained ${percent(before[token])}`;
      row.append(element("b", vocabulary[token]), bar, element("span", percent(probabilities[token])));
      list.append(row);
    }
    const count = Object.keys(switched).length;
    const words = !count ? "as trained" : best === first ? `with ${count} head${count > 1 ? "s" : ""} switched; as trained too` : `with ${count} head${count > 1 ? "s" : ""} switched; as trained ${vocabulary[first]}`;
    at("answer").replaceChildren(element("p", "answer", { className: "label" }), big, element("p", words, { className: "label" }), list);
    at("answer").dataset.best = vocabulary[best];
  }

  function toggle(names) {
    const mode = document.querySelector("input[name=mode]:checked").value;
    const back = names.every((name) => switched[name] === mode);
    for (const name of names) {
      if (back) delete switched[name];
      else switched[name] = mode;
    }
    update();
  }

  function makeHeads() {
    at("heads").style.setProperty("--columns", config.n_heads);
    for (let layer = config.n_layers - 1; layer >= 0; layer--)
      for (let head = 0; head < config.n_heads; head++) {
        const name = `${layer}.${head}`;
        const button = element("button", name, { type: "button", id: `switch-${name}`, className: `head ${groupOf(name)}` });
        button.addEventListener("click", () => toggle([name]));
        at("heads").append(button);
      }
    for (const group of Object.keys(NAMES)) {
      const members = (groups[group] || []).filter((name) => heads.includes(name));
      if (!members.length) continue;
      const button = element("button", `all ${NAMES[group]}`, { type: "button", id: `set-${group}`, className: `chip ${group}` });
      button.addEventListener("click", () => toggle(members));
      at("sets").append(button);
    }
    const reset = element("button", "as trained", { type: "button", id: "reset", className: "chip" });
    reset.addEventListener("click", () => { switched = {}; update(); });
    at("sets").append(reset);
  }

  function showHeads() {
    for (const name of heads) {
      const button = at(`switch-${name}`), state = switched[name] || "";
      button.dataset.state = state;
      button.setAttribute("aria-pressed", String(Boolean(state)));
      const words = [`head ${name}`, groupOf(name).replaceAll("_", " "), STATES[state] || "as trained"].filter(Boolean).join(", ");
      button.setAttribute("aria-label", words);
      button.dataset.tip = words;
    }
  }

  /** The tokens, and below each the attention that every head pays to it from the token `query`. */
  function showLooks() {
    const grid = at("looks"), width = tokens.length;
    grid.style.setProperty("--columns", width);
    const row = [element("span", "")];
    tokens.forEach((token, place) => {
      const button = element("button", token === "<bos>" ? "bos" : token, { type: "button", className: "token" + (place === query ? " chosen" : "") });
      button.setAttribute("aria-label", `${token}, place ${place}`);
      for (const event of ["pointerenter", "focus", "click"]) button.addEventListener(event, () => { if (query !== place) { query = place; paint(); } });
      row.push(button);
    });
    for (const name of [...heads].sort((a, b) => parseInt(b) - parseInt(a))) { // the last layer on top
      row.push(element("span", name, { className: `name ${groupOf(name)}` }));
      for (let key = 0; key < width; key++) row.push(element("span", undefined, { className: "cell" }));
    }
    grid.replaceChildren(...row);
    paint();
  }

  function paint() {
    const width = tokens.length, children = at("looks").children, words = [];
    tokens.forEach((_, place) => children[1 + place].classList.toggle("chosen", place === query));
    for (let row = 1; row <= heads.length; row++) {
      const name = children[row * (width + 1)].textContent;
      for (let key = 0; key < width; key++) {
        const cell = children[row * (width + 1) + 1 + key], share = key <= query ? now.patterns[name][query * width + key] : 0;
        cell.style.setProperty("--v", `${100 * share}%`);
        cell.dataset.tip = key <= query ? `${name}: ${tokens[query]} (place ${query}) looks at ${tokens[key]} (place ${key}): ${percent(share)}` : "";
      }
      if ((groups.function_induction || []).includes(name)) {
        const looks = now.patterns[name].subarray(query * width, query * width + query + 1);
        const best = ranked(looks)[0];
        words.push(`${name} at ${tokens[best]} (place ${best}, ${percent(looks[best])})`);
      }
    }
    at("looks-words").textContent = words.length ? `From ${tokens[query]} (place ${query}), the FI heads look most: ${words.join(", ")}.` : "";
  }

  for (const [name, text] of Object.entries(PRESETS)) {
    try { Prompts.tokenize(text, vocabulary); } catch { continue; } // a model with another vocabulary
    const button = element("button", name, { type: "button", className: "chip", title: text });
    button.addEventListener("click", () => { at("prompt").value = text; delete at("base").dataset.own; query = Infinity; update(); });
    at("presets").append(button);
  }
  let waiting;
  at("prompt").addEventListener("input", () => { delete at("base").dataset.own; query = Infinity; clearTimeout(waiting); waiting = setTimeout(update, 150); });
  at("base").addEventListener("input", () => { at("base").dataset.own = "yes"; clearTimeout(waiting); waiting = setTimeout(update, 150); });
  at("play").addEventListener("submit", (event) => { event.preventDefault(); update(); });
  at("prompt").value = PRESETS["off by +1"];
  query = Infinity;
  makeHeads();
  update();
})();
