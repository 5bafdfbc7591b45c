/* While it learned: a slider over the steps of training. #learning-data holds what was kept of it:
   of any run its accuracy; of the reference run also an answer, and what the heads do. */
"use strict";

if (document.getElementById("learning-data")) {
  const { at, svg, percent, answerRow } = Page;
  const { looks, prompt } = JSON.parse(at("learning-data").textContent);
  const end = looks[looks.length - 1].step;
  const text = (x, y, words) => svg("text", { x, y, "text-anchor": "middle" }, words);

  /** Accuracy over the steps, with a mark at one of them. */
  function showCurves(look) {
    const x = (step) => 44 + (355 * step) / end;
    const y = (share) => 175 - 160 * share;
    const parts = [svg("path", { d: `M ${x(look.step)} ${y(0)} V ${y(1)}` })];
    for (const share of [0, 0.5, 1]) {
      parts.push(svg("path", { class: "grid", d: `M ${x(0)} ${y(share)} H ${x(end)}` }));
      parts.push(text(20, y(share) + 4, `${100 * share} %`));
      parts.push(text(x(share * end), 193, `step ${share * end}`));
    }
    ["plain", "off_by_one"].forEach((name, row) => {
      const points = looks.map((each) => `${x(each.step)},${y(each[name])}`).join(" ");
      const curve = svg("polyline", { points, "stroke-width": 2 });
      const said = `${name.replaceAll("_", " ")}: ${percent(look[name])}`;
      parts.push(svg("g", { class: name }, curve, text(320, 138 + 20 * row, said)));
    });
    at("learned-curves").replaceChildren(...parts);
  }

  function showAnswer({ answers }) {
    at("learned-answer").textContent = answers[0][0];
    at("learned-answers").replaceChildren(...answers.map((answer) => answerRow(...answer)));
  }

  /** Arcs from the last = : thick those of the heads that are FI heads in the end, thin others. */
  function showAttention({ attention }) {
    const x = (place) => 18 + (404 * place) / (prompt.length - 1);
    const parts = prompt.map((token, place) => text(x(place), 122, token));
    for (const [kind, width] of [["others", 5], ["function_induction", 16]]) {
      attention[kind].forEach((share, place) => {
        const top = -25 + x(place) / 4;
        const d = `M 422 104 C 422 ${top} ${x(place)} ${top} ${x(place)} 104`;
        parts.push(svg("path", { d, class: kind, "stroke-width": width * share }));
        const words = kind !== "others" && share > 0.1 ? Math.round(100 * share) : "";
        parts.push(text(x(place), 140, words));
      });
    }
    at("learned-attention").replaceChildren(...parts);
  }

  /** A cell fills with what its head adds, 5 logits at most. Outlined: an FI head at this step. */
  function showHeads({ added, fi }) {
    for (const cell of at("learned-heads").children) {
      const logits = added[cell.dataset.head];
      cell.style.setProperty("--v", `${20 * logits}%`);
      cell.dataset.fi = fi.includes(cell.dataset.head);
      cell.lastChild.textContent = logits.toFixed(1).replace("-", "−").replace(/^−?0.0$/, "");
    }
  }

  function show() {
    const look = looks[at("learned-step").value];
    at("learned-now").textContent = look.step;
    at("learned-step").ariaValueText = `step ${look.step}`;
    showCurves(look);
    if (look.answers) [showAnswer, showAttention, showHeads].forEach((part) => part(look));
  }
  at("learned-step").addEventListener("input", show);
  show();
}
