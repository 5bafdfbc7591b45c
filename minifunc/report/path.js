/* "Patch a path yourself": a sender is picked in the base run, a receiver in the patched one, and r
   is worked out before one's eyes. The patching itself is in patcher.js. */
"use strict";

if (Page.model && Page.at("path-view")) (() => {
  const { at, element, button, svg, model, groupOf, NAMES } = Page;
  const { n_layers, n_heads, act_fn, d_vocab } = model.config;
  const INPUTS = { q: "q: what it looks for", k: "k: where it finds that", v: "v: what it takes" };
  const PATCHED = // in a sentence: what a direct path is
    "As contrast, but on the red path, which passes through no other head, goes what goes there " +
    "in the base run.\nClick on the part that shall receive.";
  const columns = n_heads + 1 + (act_fn !== "none"); // the first is the stream's
  const places = { logits: [0, 0, "answer"], embedding: [n_layers + 1, 0, "tokens"] };
  for (let layer = 0; layer < n_layers; layer++) { // {part: [row, column, words]}
    const row = n_layers - layer;
    for (let head = 0; head < n_heads; head++) {
      places[`${layer}.${head}`] = [row, head + 1, `${layer}.${head}`];
    }
    if (act_fn !== "none") places[`mlp${layer}`] = [row, n_heads + 1, "mlp"];
  }
  const picked = { sender: "", receiver: "logits", input: "v" }; // input: of a receiving head
  let patcher = null;

  const isHead = (name) => name.includes(".");
  const isBelow = (name) => patcher.writesTo(name) <= patcher.readsAt(picked.receiver);
  const token = (id) => Page.data.vocabulary[id];
  const rounded = (x, digits) => (Number(x.toFixed(digits)) + 0).toFixed(digits); // no "-0.0"
  const fixed = (x, digits = 2) => rounded(x, digits).replace("-", "−");
  const less = (a, b) => `${fixed(a)} − ${b < 0 ? `(${fixed(b)})` : fixed(b)}`;

  function box(className, ...children) {
    const made = element("div", undefined, { className });
    made.append(...children);
    return made;
  }

  function pick(change) {
    const focused = document.activeElement.id;
    Object.assign(picked, change);
    if (!isBelow(picked.sender)) picked.sender = "embedding"; // which lies below all
    show();
    at(focused)?.focus({ preventScroll: true });
  }

  /** A part of the model in one of the runs; a button where it can be picked as `role`. */
  function partOf(name, role, answer) {
    const [row, column, words] = places[name];
    const ends = { sender: name !== "logits", receiver: isHead(name) || name === "logits" };
    const isAbove = role === "sender" && ends.sender && !isBelow(name);
    const look = { className: `part ${groupOf(name)}`, id: `${role}-${name}` };
    const onClick = () => isAbove || pick({ [role]: name });
    const states = { ariaPressed: name === picked[role], ariaDisabled: isAbove || null };
    const made = ends[role]
      ? button(words + answer, { ...look, ...states }, onClick)
      : element("span", words + answer, look);
    made.style.gridArea = `${row + 1} / ${column + 1} / auto / ${column ? "auto" : -1}`;
    made.classList.toggle("sender", role !== "contrast" && name === picked.sender);
    made.classList.toggle("receiver", role === "receiver" && name === picked.receiver);
    const why = isAbove ? `, not below ${picked.receiver}: no path leads up to there` : "";
    const tip = [name, NAMES[groupOf(name)]].filter(Boolean).join(", one of the ") + why;
    if (ends[role]) made.dataset.tip = tip; // the keyboard comes to no other
    return made;
  }

  /** One run: the parts of the model, its answer on top, and its F. */
  function panel(name, run, role, hint) {
    const size = { viewBox: `0 0 ${columns} ${n_layers + 2}`, preserveAspectRatio: "none" };
    const lines = svg("svg", size, svg("path", { d: `M0.5 0.8V${n_layers + 1.2}` }));
    if (role === "receiver") { // from the sender to the stream, and up to where it is read
      const [[from, x], [to, end]] = [places[picked.sender], places[picked.receiver]];
      const out = `M${x + 0.5} ${from + 0.2}V${from + 0.08}H0.5`;
      const into = to ? `V${to + 0.92}H${end + 0.5}` : "";
      lines.append(svg("path", { d: `${out}${into}V${to + 0.8}`, class: "way" }));
    }
    const answer = ` ${token(Page.ranked(model.next(run))[0])}`;
    const makePart = (part) => partOf(part, role, part === "logits" ? answer : "");
    const parts = box("parts", lines, ...Object.keys(places).map(makePart));
    const numbers = less(...patcher.answers.map((id) => run.logits.at(id - d_vocab)));
    const F = `F ${name} = logit of ${patcher.answers.map(token).join(" − logit of ")}`;
    const sum = element("p", `${F}\n= ${numbers} = ${fixed(patcher.F(run))}`);
    return box("run", element("h3", `The ${name} run`), element("p", hint), parts, sum);
  }

  function show() {
    const { sender, receiver, input } = picked;
    const { base, contrast } = patcher;
    const patched = patcher.patched(sender, isHead(receiver) ? `${receiver}.${input}` : receiver);
    const asked = ({ tokens }) => Prompts.toText(tokens.map(token));
    const runs = box(
      "runs",
      panel("base", base, "sender", `${asked(base)}\nClick on the part that shall send.`),
      panel("contrast", contrast, "contrast", `${asked(contrast)}\nNothing is put in here.`),
      panel("patched", patched, "receiver", PATCHED),
    );
    runs.style.setProperty("--columns", columns);
    const inputs = Object.entries(isHead(receiver) ? INPUTS : {}).map(([name, words]) => {
      const look = { className: "chip", id: `input-${name}`, ariaPressed: name === input };
      return button(words, look, () => pick({ input: name }));
    });
    const F = [patched, contrast, base].map((run) => patcher.F(run));
    const numbers = `(${less(F[0], F[1])}) / (${less(F[1], F[2])})`;
    const r = `${fixed(100 * patcher.r(patched), 1)} %`;
    const end = `where −100 % is all the way back to ${token(patcher.answers[0])}`;
    const formula = "r = (F patched − F contrast) / (F contrast − F base)";
    const sum = element("p", `${formula}\n= ${numbers}\n= ${r}, ${end}`, { className: "sum" });
    at("path-view").replaceChildren(runs, box("chips", ...inputs), sum);
  }

  /** Another prompt. At first the sender is the head with the strongest path to the answer. */
  function read({ run, baseRun }) {
    patcher = new PathPatching.PathPatcher(model, baseRun, run);
    const r = (head) => patcher.r(patcher.patched(head, "logits"));
    picked.sender ||= Object.keys(run.z).sort((a, b) => r(a) - r(b))[0];
    const [plain, shifted] = patcher.answers.map(token);
    if (plain !== shifted) return show();
    const words = `Both prompts are answered ${plain}: there is nothing to patch.`;
    at("path-view").replaceChildren(element("p", words, { className: "missing" }));
  }

  document.addEventListener("asked", ({ detail }) => read(detail));
  if (Page.asked) read(Page.asked);
})();
