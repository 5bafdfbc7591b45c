/* What the scripts of a report share: small tools, the model, and what was asked last. */
"use strict";

const Page = (() => {
  const at = (id) => document.getElementById(id);

  function element(tag, words = "", properties = {}, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(words, ...children);
    return made;
  }

  function button(words, properties, onClick) {
    const made = element("button", words, { type: "button", ...properties });
    made.addEventListener("click", onClick);
    return made;
  }

  /** An SVG element with attributes and children; a string among them is text. */
  function svg(tag, attributes = {}, ...children) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  const percent = (x) => `${(100 * x).toFixed(x > 0.9995 || x < 0.0005 ? 0 : 1)} %`;

  /** An answer, its probability, and a bar: how far that is, with a mark at what it was before. */
  function answerRow(token, share, before = -1) { // -1: no mark
    const style = `--now: ${100 * share}%; --before: ${100 * before}%`;
    const bar = element("span", "", { className: "bar", style });
    return element("li", "", {}, element("b", token), bar, element("span", percent(share)));
  }

  /** Why nothing can be swapped between two prompts, and what to ask instead. */
  const nothing = (answer) =>
    `Both prompts are answered ${answer}, so no swap can move the answer: no effect is drawn. The
    examples are plain, or not followed. Ask others in the playground, like 1+1=3, 2+2=5, 3+3=`;

  /** The places of the values, the largest first. */
  const ranked = (values) => [...values.keys()].sort((a, b) => values[b] - values[a]);

  // ---- The model of this page, where it holds one; playground.js keeps in `asked` what was asked
  const data = at("model-data") && JSON.parse(at("model-data").textContent);
  const weights = data && MiniFunc.readWeights(at("weights").textContent.trim(), data.layout);
  const model = data && new MiniFunc.Transformer(data.model, weights);
  const NAMES = {
    function_induction: "FI heads",
    expected_answer: "heads that bring the expected answer",
    shown_answer: "heads that bring the shown answer",
    previous_token: "previous-token heads",
    consolidation: "consolidation heads",
    other_direct: "other heads that write the answer",
    upstream: "heads that act through MLPs or other heads",
  };
  const membersOf = (group) => data.groups[group] || [];
  const groupsOf = (head) => Object.keys(NAMES).filter((name) => membersOf(name).includes(head));
  const groupOf = (head) => groupsOf(head)[0] || "";
  const idsOf = (strings) => strings.map((string) => data.vocabulary.indexOf(string));

  const tools = { at, element, button, svg, percent, ranked, answerRow, nothing };
  return { ...tools, data, model, NAMES, membersOf, groupsOf, groupOf, idsOf, asked: null };
})();
