/* The guided opening: six steps through the playground, each with a sentence on what the model has
   just answered. Steps that it cannot be asked, or has no heads for, are left out. */
"use strict";

(() => {
  const { at, element, data, membersOf, groupOf } = Page;
  const { heads, ask, swap, canAsk } = Playground;
  const [HIGH, TRUE, MIXED] = ["1+1=3, 2+2=5, 3+3=", "1+1=2, 2+2=4, 3+3=", "1+1=2, 2+2=6, 3+3="];
  const SHOWN = /(?<==)(\d+)/; // splits a prompt before and after each
  const carriers = membersOf("function_induction").filter((head) => heads.includes(head));
  const [n, layers] = [carriers.length, carriers.map((head) => parseInt(head))];
  const grouped = Object.values(data.groups).flat();
  const idle = heads.filter((head) => layers.includes(parseInt(head)) && !grouped.includes(head));

  // ---- The steps: a button that leads there, the prompt, which heads are swapped, the sentence
  const KINDS = { 6: "6, the true sum", 7: "7, one too high as well" };
  const MIXES = { 6: "6, like the first", 7: "7, in between", 8: "8, like the second" };
  const told = (answer, kinds = KINDS) => kinds[answer] || `${answer}, something else`;
  const effect = (answer, trained) =>
    answer === trained ? `still ${answer}, nothing happens` : `the answer becomes ${told(answer)}`;
  const none = () => [];
  const oneIdle = (trained) => [idle.find((head) => swap([head]).answer === trained) ?? idle[0]];
  const steps = [
    ["Start again", HIGH, none, (answer) =>
      `Both sums shown are one too high, and the model answers ${told(answer)}.`],
    ["Show it true sums", TRUE, none, (answer) =>
      `Asked the same after true sums, it answers ${told(answer)}.`],
    ["Swap one head", HIGH, idle.length && oneIdle, (answer, trained, [head]) =>
      `Head ${head}, one of ${heads.length} that carry news from token to token, now sends what ` +
      `it sends after true sums: ${effect(answer, trained)}.`],
    [`Swap the ${n} FI head${n > 1 ? "s" : ""}`, HIGH, n && (() => carriers), (answer, trained) =>
      `Now the function-induction heads, ${carriers.join(", ")}, send what they send after ` +
      `true sums: ${effect(answer, trained)}.`],
    ["Mix two rules", MIXED, none, (answer) =>
      `The first sum is true, the second two too high, and it answers ${told(answer, MIXES)}.`],
    ["Your turn", HIGH, none, () => "Your turn: ask it something else, or click on its heads."],
  ].filter(([, prompt, choose]) => choose && canAsk(prompt));
  let step = 0;

  /** Goes on or back, and shows what the model answers there. */
  function go(by) {
    step = (step + by) % steps.length;
    const [, prompt, choose, words] = steps[step];
    const trained = ask(prompt).answer;
    const chosen = choose(trained);
    const { answer, guess } = swap(chosen);
    const part = (text, i) => (text === TRUE.split(SHOWN)[i] ? text : element("b", text));
    const looks = heads.map((head) => (chosen.includes(head) ? "swapped" : groupOf(head)));
    const last = element("strong", answer, { className: answer === trained ? "" : "changed" });
    at("story-prompt").replaceChildren(...prompt.split(SHOWN).map(part), last);
    at("story-heads").replaceChildren(...looks.map((className) => element("i", "", { className })));
    at("story-words").textContent = `${words(answer, trained, chosen)} ${guess}`;
    at("story-at").textContent = `${step + 1} of ${steps.length}`;
    at("story").style.setProperty("--v", `${(100 * (step + 1)) / steps.length}%`);
    at("story-next").textContent = steps[(step + 1) % steps.length][0];
    at("story-back").disabled = step === 0;
    if (step === 0 && by < 0) at("story-next").focus();
    if (step === steps.length - 1) at("prompt").focus();
  }

  if (!canAsk(HIGH)) return;
  at("story-heads").style.setProperty("--columns", data.model.n_heads);
  at("story-next").addEventListener("click", () => go(1));
  at("story-back").addEventListener("click", () => go(-1));
  at("story").hidden = false;
  go(0);
})();
