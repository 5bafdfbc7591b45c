/* The playground: a prompt, the model's answer, heads that can be switched, and where they look.
   All of the model is in model.js. */
"use strict";

(() => {
  const { at, element, button, percent, ranked, model, membersOf, groupOf, idsOf, NAMES } = Page;
  const { model: config, vocabulary, prompt: FIRST } = Page.data;

  const PRESETS = {
    "off by +1": Prompts.toText(FIRST.split(" ")),
    "plain": "1+1=2, 2+2=4, 3+3=",
    "off by +2": "1+1=4, 2+5=9, 6+2=10, 1+4=7, 3+3=",
    "off by −1": "1+1=1, 2+5=6, 6+2=7, 1+4=4, 3+3=",
    "Caesar": "a copy _=b, d copy _=e, h copy _=i, m copy _=",
    "base 8": "5+6=13, 4+7=13, 2+3=5, 7+7=16, 6+6=",
  };
  const STATES = { base: "sends what it sends on the base prompt", off: "switched off" };

  const heads = []; // the last layer first, as they stand on the page
  for (let layer = config.n_layers - 1; layer >= 0; layer--) {
    for (let head = 0; head < config.n_heads; head++) heads.push(`${layer}.${head}`);
  }

  let switched = {}; // {"layer.head": "base" | "off"}
  let tokens = []; // of the prompt
  let query = Infinity; // the token that heads look from; update() takes the last one for more
  let asked = ""; // both prompts of the last two runs as trained
  let asTrained = null; // what the model returned on the prompt,
  let baseRun = null; // on the base prompt,
  let now = null; // and on the prompt with heads switched

  // ---- Reading, running, showing

  /** The base prompt as the user wrote it, or else the one that belongs to the prompt. */
  function readBase() {
    const field = at("base");
    if (field.dataset.own && field.value.trim()) return Prompts.tokenize(field.value, vocabulary);
    const base = Prompts.baseTokens(tokens, vocabulary);
    if (!field.dataset.own) field.value = Prompts.toText(base);
    return base;
  }

  /** Reads both prompts, runs the model as it is and as it is switched, and shows both. */
  function update() {
    at("problem").textContent = "";
    try {
      tokens = Prompts.tokenize(at("prompt").value, vocabulary);
      const base = readBase();
      if (tokens.length > config.n_ctx) {
        const limit = `the model sees ${config.n_ctx}`;
        throw new Error(`this prompt has ${tokens.length} tokens; ${limit}`);
      }
      if (base.length !== tokens.length) {
        throw new Error("the base prompt must have as many examples as the prompt");
      }
      askModel(base);
      now = anySwitched() ? model.runSwitched(idsOf(tokens), baseRun, switched) : asTrained;
      query = Math.min(query, tokens.length - 1);
      showAnswer(model.next(now), model.next(asTrained));
      showLooks();
    } catch (error) {
      at("problem").textContent = error.message;
    }
    showHeads();
  }

  const anySwitched = () => Object.keys(switched).length > 0;

  /** Runs the model on both prompts as it was trained, if they are not those of the last time. */
  function askModel(base) {
    if (asked === `${tokens} ${base}`) return;
    asTrained = model.run(idsOf(tokens));
    baseRun = model.run(idsOf(base));
    asked = `${tokens} ${base}`;
    Page.tellAsked({ tokens, base, run: asTrained, baseRun });
  }

  /** Another prompt: its own base prompt, seen from its last token. */
  function forgetPrompt() {
    delete at("base").dataset.own;
    query = Infinity;
  }

  function showAnswer(probabilities, before) {
    const best = ranked(probabilities)[0];
    const first = ranked(before)[0];
    const list = element("ol", undefined, { className: "top" });
    for (const token of new Set([...ranked(probabilities).slice(0, 5), first])) {
      list.append(answerRow(vocabulary[token], probabilities[token], before[token]));
    }
    const answer = element("p", vocabulary[best], { className: "big" });
    answer.classList.toggle("changed", best !== first);
    const count = Object.keys(switched).length;
    let words = "as trained";
    if (count) {
      const trained = best === first ? "too" : vocabulary[first];
      words = `with ${count} head${count > 1 ? "s" : ""} switched; as trained ${trained}`;
    }
    const label = (text) => element("p", text, { className: "label" });
    at("answer").replaceChildren(label("answer"), answer, label(words), list);
    at("answer").dataset.best = vocabulary[best];
  }

  /** One of the likely answers: its probability as a bar, with a mark at what it was as trained. */
  function answerRow(token, share, before) {
    const row = element("li");
    const bar = element("span", undefined, { className: "bar" });
    bar.style.setProperty("--now", `${100 * share}%`);
    bar.style.setProperty("--before", `${100 * before}%`);
    row.dataset.tip = `${token}: ${percent(share)}, as trained ${percent(before)}`;
    row.append(element("b", token), bar, element("span", percent(share)));
    return row;
  }

  // ---- Heads to switch

  /** Switches heads as the chosen mode says, or back where all of them are so already. */
  function toggle(names) {
    const mode = document.querySelector("input[name=mode]:checked").value;
    const back = names.every((name) => switched[name] === mode);
    for (const name of names) {
      if (back) delete switched[name];
      else switched[name] = mode;
    }
    update();
  }

  function reset() {
    switched = {};
    update();
  }

  function makeHeads() {
    at("heads").style.setProperty("--columns", config.n_heads);
    for (const name of heads) {
      const look = { id: `switch-${name}`, className: `head ${groupOf(name)}` };
      at("heads").append(button(name, look, () => toggle([name])));
    }
    for (const [group, name] of Object.entries(NAMES)) {
      const members = membersOf(group).filter((head) => heads.includes(head));
      const look = { id: `set-${group}`, className: `chip ${group}` };
      if (members.length) at("sets").append(button(`all ${name}`, look, () => toggle(members)));
    }
    at("sets").append(button("as trained", { id: "reset", className: "chip" }, reset));
  }

  function showHeads() {
    for (const name of heads) {
      const head = at(`switch-${name}`);
      const state = switched[name] || "";
      const group = groupOf(name).replaceAll("_", " ");
      const parts = [`head ${name}`, group, STATES[state] || "as trained"];
      const words = parts.filter(Boolean).join(", ");
      head.dataset.state = state;
      head.dataset.tip = words;
      head.setAttribute("aria-pressed", String(Boolean(state)));
      head.setAttribute("aria-label", words);
    }
  }

  // ---- Where heads look

  /** A grid: the tokens on top, and below them a row for each head. */
  function showLooks() {
    const parts = [element("span", ""), ...tokens.map(tokenButton)];
    for (const name of heads) {
      parts.push(element("span", name, { className: `name ${groupOf(name)}` }));
      for (const _ of tokens) parts.push(element("span", undefined, { className: "cell" }));
    }
    at("looks").style.setProperty("--columns", tokens.length);
    at("looks").replaceChildren(...parts);
    paint();
  }

  function tokenButton(token, place) {
    const look = () => {
      if (query === place) return;
      query = place;
      paint();
    };
    const made = button(token === "<bos>" ? "bos" : token, { className: "token" }, look);
    made.setAttribute("aria-label", `${token}, place ${place}`);
    made.addEventListener("pointerenter", look);
    made.addEventListener("focus", look);
    return made;
  }

  /** Colours the grid: the attention that every head pays to each token from the token `query`. */
  function paint() {
    const width = tokens.length;
    const cells = at("looks").children;
    const from = `${tokens[query]} (place ${query})`;
    tokens.forEach((_, place) => cells[1 + place].classList.toggle("chosen", place === query));
    heads.forEach((name, row) => {
      const shares = now.patterns[name].subarray(query * width, query * width + query + 1);
      tokens.forEach((token, key) => {
        const cell = cells[(row + 1) * (width + 1) + 1 + key];
        const share = shares[key] ?? 0; // it sees no token behind it
        const looks = `${name}: ${from} looks at ${token} (place ${key}): ${percent(share)}`;
        cell.style.setProperty("--v", `${100 * share}%`);
        cell.dataset.tip = key <= query ? looks : "";
      });
    });
    at("looks-words").textContent = mostLookedAt(from);
  }

  /** Where each function-induction head looks most, in a sentence. */
  function mostLookedAt(from) {
    const words = [];
    for (const name of heads) {
      if (!membersOf("function_induction").includes(name)) continue;
      const start = query * tokens.length;
      const looks = now.patterns[name].subarray(start, start + query + 1);
      const best = ranked(looks)[0];
      words.push(`${name} at ${tokens[best]} (place ${best}, ${percent(looks[best])})`);
    }
    return words.length ? `From ${from}, the FI heads look most: ${words.join(", ")}.` : "";
  }

  // ---- What the user does

  let waiting;
  function updateSoon() {
    clearTimeout(waiting);
    waiting = setTimeout(update, 150);
  }

  for (const [name, text] of Object.entries(PRESETS)) {
    try {
      Prompts.tokenize(text, vocabulary);
    } catch {
      continue; // a model with another vocabulary
    }
    const ask = () => {
      at("prompt").value = text;
      forgetPrompt();
      update();
    };
    at("presets").append(button(name, { className: "chip", title: text }, ask));
  }
  at("prompt").addEventListener("input", () => {
    forgetPrompt();
    updateSoon();
  });
  at("base").addEventListener("input", () => {
    at("base").dataset.own = "yes";
    updateSoon();
  });
  at("play").addEventListener("submit", (event) => {
    event.preventDefault();
    update();
  });
  at("prompt").value = PRESETS["off by +1"];
  makeHeads();
  update();
})();
