/* The transformer of minifunc/model.py once more, in plain JavaScript, so that a report can run it. It follows that file step by
   step and in the same names; tests/test_report_js.py holds its logits against PyTorch's, to 1e-4.

   Every matrix is a flat array, row after row. Numbers are added up in float64; the weights are float32.
   Glossary: see minifunc/model.py. `pos` counts tokens, and one prompt is run at a time. */
"use strict";

const MiniFunc = (() => {
  /** a [rows, inner] @ b [inner, columns] → [rows, columns] */
  function matmul(a, b, rows, inner, columns) {
    const out = new Float64Array(rows * columns);
    for (let row = 0; row < rows; row++)
      for (let i = 0; i < inner; i++) {
        const x = a[row * inner + i];
        if (x !== 0) for (let column = 0; column < columns; column++) out[row * columns + column] += x * b[i * columns + column];
      }
    return out;
  }

  function add(a, b) {
    return a.map((x, i) => x + b[i]);
  }

  function softmax(scores) {
    const most = scores.reduce((a, b) => Math.max(a, b), -Infinity);
    const exp = scores.map((x) => Math.exp(x - most));
    const total = exp.reduce((a, b) => a + b, 0);
    return exp.map((x) => x / total);
  }

  /** erf(x) = 2/√π e^(-x²) Σ 2ⁿ x^(2n+1) / (1·3·5 … (2n+1)): every term has the sign of x, so nothing cancels. Exact to float64 rounding. */
  function erf(x) {
    if (Math.abs(x) > 6) return Math.sign(x);
    let term = x, sum = x;
    for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum); n++) sum += term *= (2 * x * x) / (2 * n + 1);
    return (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * sum;
  }

  const ACTIVATIONS = { gelu: (x) => 0.5 * x * (1 + erf(x / Math.SQRT2)), relu: (x) => Math.max(0, x) };

  /** Rotary positions on x [pos, d_head]: pair (2i, 2i + 1) turns by position / base^(2i / d_head). */
  function rotate(x, width, base) {
    const out = new Float64Array(x.length), pairs = width / 2;
    for (let at = 0; at < x.length; at += 2) {
      const position = Math.floor(at / width), i = (at % width) / 2;
      const angle = position * Math.pow(base, -i / pairs), cos = Math.cos(angle), sin = Math.sin(angle);
      out[at] = x[at] * cos - x[at + 1] * sin;
      out[at + 1] = x[at] * sin + x[at + 1] * cos;
    }
    return out;
  }

  class Transformer {
    /** config: the `model` part of config.json. weights: {name: Float32Array}, named and shaped as in model.pt. */
    constructor(config, weights) {
      this.config = config;
      this.weights = weights;
    }

    /** RMSNorm, or LayerNorm without bias, of x [pos, d_model]. */
    norm(x, name) {
      const { d_model: width, normalization, eps } = this.config, w = this.weights[`${name}.w`];
      const out = new Float64Array(x.length);
      for (let start = 0; start < x.length; start += width) {
        const row = x.subarray(start, start + width);
        const mean = normalization === "LN" ? row.reduce((a, b) => a + b, 0) / width : 0;
        const scale = 1 / Math.sqrt(row.reduce((sum, value) => sum + (value - mean) ** 2, 0) / width + eps);
        for (let i = 0; i < width; i++) out[start + i] = (row[i] - mean) * scale * w[i];
      }
      return out;
    }

    /** One head's z [pos, d_head] and pattern [query, key] from the normalized stream x [pos, d_model]. */
    head(x, layer, head, pos) {
      const { d_model, d_head, positions, rotary_base } = this.config;
      const [q, k, v] = ["W_Q", "W_K", "W_V"].map((kind) => {
        const weight = this.weights[`blocks.${layer}.attn.${kind}`].subarray(head * d_model * d_head, (head + 1) * d_model * d_head);
        const projected = matmul(x, weight, pos, d_model, d_head);
        return positions === "rotary" && kind !== "W_V" ? rotate(projected, d_head, rotary_base) : projected;
      });
      const pattern = new Float64Array(pos * pos), z = new Float64Array(pos * d_head);
      for (let query = 0; query < pos; query++) {
        const scores = new Float64Array(query + 1); // a query sees no key behind it
        for (let key = 0; key <= query; key++) {
          for (let i = 0; i < d_head; i++) scores[key] += q[query * d_head + i] * k[key * d_head + i];
          scores[key] /= Math.sqrt(d_head);
        }
        const looks = softmax(scores);
        pattern.set(looks, query * pos);
        for (let key = 0; key <= query; key++)
          for (let i = 0; i < d_head; i++) z[query * d_head + i] += looks[key] * v[key * d_head + i];
      }
      return { z, pattern };
    }

    /** tokens (ids) → {logits [pos, d_vocab], patterns {"layer.head": [query, key]}, z {"layer.head": [pos, d_head]}}.
        replace {"layer.head": z}: what these heads send instead of what they would; everything after is live. */
    run(tokens, replace = {}) {
      const { n_layers, n_heads, d_model, d_head, d_mlp, d_vocab, n_ctx, positions, act_fn } = this.config;
      const pos = tokens.length, patterns = {}, zs = {};
      if (pos < 1 || pos > n_ctx) throw new RangeError(`a prompt has 1 to ${n_ctx} tokens, not ${pos}`);
      let resid = new Float64Array(pos * d_model);
      tokens.forEach((token, at) => resid.set(this.weights["embed.W_E"].subarray(token * d_model, (token + 1) * d_model), at * d_model));
      if (positions === "learned") resid = add(resid, this.weights["pos_embed.W_pos"]);
      for (let layer = 0; layer < n_layers; layer++) {
        const x = this.norm(resid, `blocks.${layer}.ln1`);
        for (let head = 0; head < n_heads; head++) {
          const name = `${layer}.${head}`, out = this.head(x, layer, head, pos);
          patterns[name] = out.pattern;
          zs[name] = replace[name] || out.z;
          const W_O = this.weights[`blocks.${layer}.attn.W_O`].subarray(head * d_head * d_model, (head + 1) * d_head * d_model);
          resid = add(resid, matmul(zs[name], W_O, pos, d_head, d_model));
        }
        if (act_fn === "none") continue;
        const pre = matmul(this.norm(resid, `blocks.${layer}.ln2`), this.weights[`blocks.${layer}.mlp.W_in`], pos, d_model, d_mlp);
        resid = add(resid, matmul(pre.map(ACTIVATIONS[act_fn]), this.weights[`blocks.${layer}.mlp.W_out`], pos, d_mlp, d_model));
      }
      const logits = matmul(this.norm(resid, "ln_final"), this.weights["unembed.W_U"], pos, d_model, d_vocab);
      return { logits, patterns, z: zs };
    }

    /** The run with some heads switched: `switched` {"layer.head": "off" | "base"}. Off: the head sends zeros. Base: it sends
        what it sends on `baseTokens`, a prompt of the same length. Returns `run`'s object with `probabilities` of what comes next. */
    runSwitched(tokens, baseTokens, switched) {
      const replace = {}, names = Object.keys(switched);
      const base = names.some((name) => switched[name] === "base") ? this.run(baseTokens) : null;
      if (base && baseTokens.length !== tokens.length) throw new RangeError("the base prompt must have as many tokens as the prompt");
      for (const name of names) replace[name] = switched[name] === "base" ? base.z[name] : new Float64Array(tokens.length * this.config.d_head);
      const out = this.run(tokens, replace);
      return { ...out, probabilities: softmax(out.logits.subarray((tokens.length - 1) * this.config.d_vocab)) };
    }
  }

  /** The weights of a report: `layout` [[name, number of values], …] of a base64 text of float32 values, least byte first. */
  function readWeights(base64, layout) {
    const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0)), weights = {};
    const values = new Float32Array(bytes.buffer);
    let start = 0;
    for (const [name, size] of layout) weights[name] = values.subarray(start, (start += size));
    return weights;
  }

  return { Transformer, readWeights, softmax, erf };
})();

if (typeof module !== "undefined") module.exports = MiniFunc;
