/* The playground: a prompt, the model's answer, and heads that can be swapped. */
"use strict";

const Playground = (() => {
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

  const heads = []; // the last layer first, as they stand on the page
  for (let layer = config.n_layers - 1; layer >= 0; layer--) {
    for (let head = 0; head < config.n_heads; head++) heads.push(`${layer}.${head}`);
  }

  let swapped = []; // heads that send what they send on the base prompt
  let asked = ""; // both prompts of the last two runs as trained
  let asTrained = null; // what the model returned on the prompt,
  let baseRun = null; // and on the base prompt

  // ---- Reading, running, showing

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

  /** The base prompt as the user wrote it, or else the one that belongs to the prompt. */
  function readBase(tokens) {
    const field = at("base");
    const own = field.dataset.own && field.value.trim();
    const base = own ? read(field.value) : Prompts.baseTokens(tokens, vocabulary);
    if (!field.dataset.own) field.value = Prompts.toText(base);
    if (base.length === tokens.length) return base;
    throw new Error("the base prompt must have as many examples as the prompt");
  }

  /** Reads both prompts, runs the model as it is and with heads swapped, and shows both.
      Returns the answer, or nothing where a prompt cannot be read. */
  function update() {
    let answer;
    try {
      const tokens = read(at("prompt").value);
      const base = readBase(tokens);
      askModel(tokens, base);
      const now = swapped.length ? model.runSwapped(idsOf(tokens), baseRun, swapped) : asTrained;
      answer = showAnswer(tokens, model.next(now), model.next(asTrained));
      const same = `${tokens}` === `${base}`;
      at("same").textContent = same ? "Both prompts are the same: nothing to swap." : "";
      at("problem").textContent = "";
    } catch (error) {
      at("problem").textContent = error.message;
    }
    at("answer").classList.toggle("stale", !answer);
    showHeads();
    return answer;
  }

  /** Runs the model on both prompts as it was trained, if they are not those of the last time. */
  function askModel(tokens, base) {
    if (asked === `${tokens} ${base}`) return;
    asTrained = model.run(idsOf(tokens));
    baseRun = model.run(idsOf(base));
    asked = `${tokens} ${base}`;
    Page.tellAsked({ tokens, base, run: asTrained, baseRun });
  }

  /** Asks something else, with the base prompt that belongs to it. */
  function choose(text) {
    at("prompt").value = text;
    delete at("base").dataset.own;
    return update();
  }

  /** Shows the answer, and as trained, by their probabilities. Returns it and why it is a guess. */
  function showAnswer(tokens, now, before) {
    const [best, first] = [ranked(now)[0], ranked(before)[0]];
    const list = element("ol", undefined, { className: "top" });
    for (const token of new Set([...ranked(now).slice(0, 5), first])) {
      list.append(answerRow(vocabulary[token], now[token], before[token]));
    }
    const answer = element("p", vocabulary[best], { className: "big" });
    answer.classList.toggle("changed", best !== first);
    const count = swapped.length;
    const words = count ? `with ${count} swapped; as trained ${vocabulary[first]}` : "as trained";
    const why = Prompts.doubts(tokens, now[best]).join("; ");
    const guess = why && `This is a guess: ${why}.`;
    const label = (text) => element("p", text, { className: "label" });
    at("answer").replaceChildren(label("answer"), answer, label(words), label(guess), list);
    at("answer").dataset.best = vocabulary[best];
    return { answer: vocabulary[best], guess };
  }

  /** One of the likely answers: its probability as a bar, with a mark at what it was as trained. */
  function answerRow(token, share, before) {
    const tip = `${token}: ${percent(share)}, as trained ${percent(before)}`;
    const row = element("li", undefined, { tabIndex: 0, ariaLabel: tip });
    const bar = element("span", undefined, { className: "bar" });
    bar.style.setProperty("--now", `${100 * share}%`);
    bar.style.setProperty("--before", `${100 * before}%`);
    row.dataset.tip = tip;
    row.append(element("b", token), bar, element("span", percent(share)));
    return row;
  }

  // ---- Heads to swap

  /** Swaps heads, or back where all of them are swapped already. */
  function toggle(names) {
    const others = swapped.filter((name) => !names.includes(name));
    const back = names.every((name) => swapped.includes(name));
    swap(back ? others : [...others, ...names]);
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
    at("sets").append(button("as trained", { id: "reset", className: "chip" }, () => swap([])));
  }

  function showHeads() {
    for (const name of heads) {
      const head = at(`switch-${name}`);
      const isSwapped = swapped.includes(name);
      const state = isSwapped ? "sends what it sends on the base prompt" : "as trained";
      const words = [`head ${name}`, NAMES[groupOf(name)], state].filter(Boolean).join(", ");
      head.dataset.tip = words;
      head.setAttribute("aria-pressed", String(isSwapped));
      head.setAttribute("aria-label", words);
    }
  }

  // ---- What the user does, and what other scripts do

  /** Asks the model as trained. Returns its answer; nothing where the text cannot be asked. */
  function ask(text) {
    swapped = [];
    return choose(text);
  }

  /** Swaps in what these heads send on the base prompt, and only these. Returns the answer. */
  function swap(names) {
    swapped = names;
    return update();
  }

  let waiting;
  at("play").addEventListener("input", ({ target }) => {
    if (target.id === "prompt") delete at("base").dataset.own;
    if (target.id === "base") target.dataset.own = "yes";
    target.value = target.value.replace(/\n$/, ""); // Enter ends no line
    clearTimeout(waiting);
    waiting = setTimeout(update, 150);
  });
  const presets = Object.entries(PRESETS).filter(([, text]) => canAsk(text));
  for (const [name, text] of presets) {
    at("presets").append(button(name, { className: "chip", title: text }, () => choose(text)));
  }
  const numbers = vocabulary.filter((word) => /^-?\d+$/.test(word)).map(Number);
  at("signs").textContent = vocabulary.filter((word) => /^([+-]|[a-z]{2,})$/.test(word)).join(" ");
  at("numbers").textContent = `${Math.min(...numbers)} to ${Math.max(...numbers)}`;
  at("most").textContent = Math.floor((config.n_ctx - 5) / 6);
  makeHeads();
  if (presets.length) choose(presets[0][1]);

  return { heads, ask, swap, canAsk };
})();
