/* Prompts as text: `1+1=3, 2+2=5, 3+3=` to tokens and back, and the base prompt that belongs to one. */
"use strict";

const Prompts = (() => {
  const EXAMPLE = /^\s*([a-z]|\d+)\s*([+-]|[a-z]{2,}|(?<=\s)\d+(?=\s))\s*([a-z]|\d+|_)?\s*=\s*([a-z]|-?\d+)?\s*$/;

  /** Text → token strings, <bos> in front. Throws an Error, in words, for what cannot be read. */
  function tokenize(text, vocabulary) {
    const tokens = ["<bos>"];
    for (const example of text.replace("<bos>", " ").trim().replace(/[;,]+$/, "").split(/[;,]/)) {
      const match = EXAMPLE.exec(example);
      const strings = match ? [match[1], match[2], match[3] || "_", "=", ...(match[4] ? [match[4], ";"] : [])] : [];
      if (!match || tokens[tokens.length - 1] === "=" || !strings.every((string) => vocabulary.includes(string)))
        throw new Error(`cannot read “${example.trim()}”: write examples like 1+1=3, 2+2=5, 3+3=`);
      tokens.push(...strings);
    }
    if (tokens[tokens.length - 1] !== "=") throw new Error("leave the last answer open, as in 1+1=3, 2+2=5, 3+3=");
    return tokens;
  }

  /** What `x op y` is as it stands; undefined where that is unknown. Three numbers in a row: the letter of the largest. */
  function plainAnswer(x, op, y) {
    const [a, b] = [Number(x), Number(y)];
    const known = { "+": a + b, "-": a - b, max: Math.max(a, b), min: Math.min(a, b), first: x, second: y, same: x, copy: x };
    if (Object.hasOwn(known, op)) return String(known[op]);
    if (!/^\d+$/.test(op)) return undefined;
    const options = [a, Number(op), b];
    return "abc"[options.indexOf(Math.max(...options))];
  }

  /** Token strings → those of the base prompt: every shown answer replaced by the plain one, where that is known. */
  function baseTokens(tokens, vocabulary) {
    const base = tokens.slice();
    for (let at = 5; at < base.length; at += 6) {
      const answer = plainAnswer(base[at - 4], base[at - 3], base[at - 2]);
      if (vocabulary.includes(answer)) base[at] = answer;
    }
    return base;
  }

  /** Token strings → text as one types it. */
  function toText(tokens) {
    return tokens.filter((token) => token !== "<bos>").join(" ").replace(/ (\+|-|=) ?/g, "$1").replace(/ ;/g, ",");
  }

  return { tokenize, plainAnswer, baseTokens, toText };
})();

if (typeof module !== "undefined") module.exports = Prompts;
