/* Prompts as text: `1+1=3, 2+2=5, 3+3=` to tokens and back, and the base prompt of one. */
"use strict";

const Prompts = (() => {
  /* `x op y = answer`. An operation is a sign, a word, or a number between two others (a choice).
     y may be missing, and so may the answer, as it is in the last example. */
  const X = String.raw`([a-z]|-?\d+)`;
  const OP = String.raw`([+-]|[a-z]{2,}|(?<=\s)\d+(?=\s))`;
  const EXAMPLE = new RegExp(`^ ${X} ${OP} (?:${X}|_)? = ${X}? $`.replaceAll(" ", "\\s*"));
  const WORD = /\p{Nd}+|[\p{L}\p{N}]+|\S/gu;
  const LIKE = "1+1=3, 2+2=5, 3+3=";

  /** Text → token strings, <bos> in front. Throws an Error, in words, for what cannot be read. */
  function tokenize(text, vocabulary) {
    const tokens = ["<bos>"];
    for (const example of text.replace("<bos>", "").trim().split(/[;,\n]\s*/).filter(Boolean)) {
      const strings = tokensOf(example);
      const words = strings.length ? strings : example.match(WORD);
      const unknown = words.find((word) => !vocabulary.includes(word));
      if (unknown || !strings.length || tokens[tokens.length - 1] === "=") {
        const why = unknown ? `${unknown} is not known; ` : "";
        throw new Error(`cannot read “${example.trim()}”: ${why}write examples like ${LIKE}`);
      }
      tokens.push(...strings);
    }
    if (tokens.length === 1 || tokens[tokens.length - 1] !== "=") {
      throw new Error(`leave the last answer open, as in ${LIKE}`);
    }
    return tokens;
  }

  /** The tokens of one example; none where it cannot be read. */
  function tokensOf(example) {
    const [, x, op, y, answer] = EXAMPLE.exec(example) ?? [];
    if (!x) return [];
    const tokens = [x, op, y || "_", "="];
    return answer ? [...tokens, answer, ";"] : tokens;
  }

  /** What `x op y` is as it stands; undefined where that is unknown.
      Three numbers in a row: the letter of the largest. */
  function plainAnswer(x, op, y) {
    const [a, b] = [Number(x), Number(y)];
    const sizes = { "+": a + b, "-": a - b, max: Math.max(a, b), min: Math.min(a, b) };
    const known = { ...sizes, first: x, second: y, same: x, copy: x };
    if (Object.hasOwn(known, op)) return String(known[op]);
    if (!/^\d+$/.test(op)) return undefined;
    const options = [a, Number(op), b];
    return "abc"[options.indexOf(Math.max(...options))];
  }

  /** Token strings → those of the base prompt: every shown answer replaced by the plain one,
      where that is known. */
  function baseTokens(tokens, vocabulary) {
    const base = tokens.slice();
    for (let at = 5; at < base.length; at += 6) {
      const answer = plainAnswer(base[at - 4], base[at - 3], base[at - 2]);
      if (vocabulary.includes(answer)) base[at] = answer;
    }
    return base;
  }

  /** Why the answer to a prompt is a guess, if it is. share: its probability. */
  function doubts(tokens, share) {
    const shown = tokens.slice(1).join(" ").split(" ; ").slice(0, -1);
    const why = shown.length ? [] : ["no example shows by which rule to answer"];
    if (share >= 0.5) return why;
    if (shown.length === 1) why.push("one example is little to go by");
    const amounts = shown.map((example) => {
      const [x, op, y, , answer] = example.split(" ");
      return answer - plainAnswer(x, op, y);
    });
    if (new Set(amounts).size > 1) why.push("the examples are off by different amounts");
    return [...why, "the model gives it less than half"];
  }

  /** Token strings → text as one types it. */
  function toText(tokens) {
    const text = tokens.filter((token) => token !== "<bos>").join(" ");
    return text.replace(/ (\+|-|=) ?/g, "$1").replace(/ ;/g, ",");
  }

  return { tokenize, plainAnswer, baseTokens, doubts, toText };
})();

if (typeof module !== "undefined") module.exports = Prompts;
