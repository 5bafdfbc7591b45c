/* "Patch a path yourself": a sender is picked in the base run, a receiver in the patched one, and r
   is worked out before one's eyes. The patching itself is in patcher.js. */
"use strict";

if (Page.model && Page.at("path-view")) (() => {
  const { at, element, button, svg, model, groupOf, nothing } = Page;
  const { n_layers, n_heads, act_fn, d_vocab } = model.config;
  const INPUTS = { q: "q: what it looks for", k: "k: where it finds that", v: "v: what it takes" };
  const PATCHED = "As contrast, but for the red path.\nClick here on what shall receive.";
  const READS = "\nAn MLP reads what the heads below it wrote: its r tells of theirs once more.";
  const columns = n_heads + 1 + (act_fn !== "none"); // the first is the stream's
  const places = { logits: [0, 0], embedding: [n_layers + 1, 0] }; // {part: [row, column]}
  for (let layer = 0; layer < n_layers; layer++) {
    const row = n_layers - layer;
    for (let head = 0; head < n_heads; head++) places[`${layer}.${head}`] = [row, head + 1];
    if (act_fn !== "none") places[`mlp${layer}`] = [row, n_heads + 1];
  }
  const picked = { sender: "", receiver: "logits", input: "v", note: "" }; // input: of a head
  let patcher = null;

  const box = (className, ...children) => element("div", "", { className }, ...children);
  const isHead = (name) => name.includes(".");
  const token = (id) => Page.data.vocabulary[id];
  const fixed = (x, digits = 2) => x.toFixed(digits).replace("-", "−");
  const less = (a, b) => `${fixed(a)} − ${b < 0 ? `(${fixed(b)})` : fixed(b)}`;

  /** Another sender, receiver or input. A part that no path leads to, or from, gives way. */
  function pick(change) {
    const focused = document.activeElement.id;
    const { sender, receiver } = Object.assign(picked, change);
    const isBelow = places[sender][0] > places[receiver][0];
    picked.note = isBelow ? "" : `${sender} is not before ${receiver}, so it cannot send to it.\n`;
    if (!isBelow) Object.assign(picked, { sender: "embedding", receiver: "logits" }, change);
    show();
    at(focused)?.focus({ preventScroll: true });
  }

  /** A part of the model, marked where it is one of the `ends` (sender, receiver) that a run shows;
      a button where it can be picked as the last of these. */
  function partOf(name, ends, words) {
    const [row, column] = places[name];
    const end = ends.at(-1);
    const marks = ends.filter((each) => picked[each] === name);
    const className = ["part", groupOf(name), ...marks].join(" ");
    const style = `grid-area: ${row + 1} / ${column + 1} / auto / ${column ? "auto" : -1}`;
    const canBe = { sender: name !== "logits", receiver: isHead(name) || name === "logits" };
    if (!canBe[end]) return element("span", words, { className, style });
    const look = { className, style, id: `${end}-${name}`, ariaPressed: name === picked[end] };
    return button(words, look, () => pick({ [end]: name }));
  }

  /** One run: the parts of the model, its answer on top, and its F. */
  function panel(name, run, ends, hint) {
    const size = { viewBox: `0 0 ${columns} ${n_layers + 2}`, preserveAspectRatio: "none" };
    const lines = svg("svg", size, svg("path", { d: `M0.5 0.8V${n_layers + 1.2}` }));
    if (name === "patched") { // from the sender to the stream, and up to where it is read
      const [[from, x], [to, end]] = ends.map((each) => places[picked[each]]);
      const d = `M${x + 0.5} ${from + 0.5}v-0.42H0.5V${to + 0.92}H${end + 0.5}v-0.42`;
      lines.append(svg("path", { d, class: "way" }));
    }
    const answer = token(Page.ranked(model.next(run))[0]);
    const words = { embedding: "tokens", logits: `answer ${answer}` };
    const made = Object.keys(places).map((part) => partOf(part, ends, words[part] ?? part));
    const numbers = less(...patcher.answers.map((id) => run.logits.at(id - d_vocab)));
    const sum = element("p", `F ${name} = ${numbers} = ${fixed(patcher.F(run))}`);
    const parts = box("parts", lines, ...made);
    return box("run", element("h3", `The ${name} run`), element("p", hint), parts, sum);
  }

  /** What is picked, on the prompts asked. At first the head with the strongest path sends. */
  function show() {
    const { tokens, base, run, baseRun } = Page.asked;
    patcher = new PathPatching.PathPatcher(model, baseRun, run);
    const [plain, shifted] = patcher.answers.map(token);
    if (plain === shifted) return at("path-view").replaceChildren(element("p", nothing(plain)));
    const r = (head) => patcher.r(patcher.patched(head, "logits"));
    picked.sender ||= Object.keys(run.z).sort((a, b) => r(a) - r(b))[0];
    const { sender, receiver, input } = picked;
    const patched = patcher.patched(sender, isHead(receiver) ? `${receiver}.${input}` : receiver);
    const runs = [
      panel("base", baseRun, ["sender"], `${Prompts.toText(base)}\nClick here on what shall send.`),
      panel("contrast", run, [], `${Prompts.toText(tokens)}\nTo compare with: nothing is put in.`),
      panel("patched", patched, ["sender", "receiver"], PATCHED),
    ];
    const inputs = Object.entries(isHead(receiver) ? INPUTS : {}).map(([name, words]) => {
      const look = { className: "chip", id: `input-${name}`, ariaPressed: name === input };
      return button(words, look, () => pick({ input: name }));
    });
    const F = [patched, run, baseRun].map((each) => patcher.F(each));
    const sum = `${picked.note}F = score (logit) of ${plain} − score of ${shifted}
      r = (F patched − F contrast) / (F contrast − F base)
      = (${less(F[0], F[1])}) / (${less(F[1], F[2])})
      = ${fixed(100 * patcher.r(patched), 1)} %, where −100 % is all the way back to ${plain}
      and above 0 further away from it${sender.startsWith("mlp") ? READS : ""}`;
    const worked = element("p", sum, { className: "sum" });
    at("path-view").replaceChildren(box("runs", ...runs), box("chips", ...inputs), worked);
  }

  at("path-view").style.setProperty("--columns", columns);
  document.addEventListener("asked", show);
  if (Page.asked) show();
})();
