/* The transformer of minifunc/model.py once more, in plain JavaScript, so that a report can run it.
   It follows that file step by step and in the same names; tests/test_report_js.py holds its logits
   against PyTorch's, to 1e-4.

   Every matrix is a flat array, row after row. Sums are in float64; the weights are float32.
   Glossary: see minifunc/model.py. `pos` counts tokens, and one prompt is run at a time. */
"use strict";

const MiniFunc = (() => {
  /** a [rows, inner] @ b [inner, columns] → [rows, columns] */
  function matmul(a, b, rows, inner, columns) {
    const out = new Float64Array(rows * columns);
    for (let row = 0; row < rows; row++) {
      for (let i = 0; i < inner; i++) {
        const x = a[row * inner + i];
        for (let column = 0; column < columns; column++) {
          out[row * columns + column] += x * b[i * columns + column];
        }
      }
    }
    return out;
  }

  /** Part number `index` of an array of parts of equal size. */
  const part = (array, index, size) => array.subarray(index * size, (index + 1) * size);
  const add = (a, b) => a.map((x, i) => x + b[i]);
  const minus = (a, b) => a.map((x, i) => x - b[i]);
  const sum = (values) => values.reduce((a, b) => a + b, 0);
  const dot = (a, b) => sum(a.map((x, i) => x * b[i]));

  function softmax(scores) {
    const most = Math.max(...scores);
    const exp = scores.map((x) => Math.exp(x - most));
    const total = sum(exp);
    return exp.map((x) => x / total);
  }

  /** erf(x) = 2/√π e^(-x²) Σ 2ⁿ x^(2n+1) / (1·3·5 … (2n+1)), exact to float64 rounding:
      every term has the sign of x, so nothing cancels. */
  function erf(x) {
    if (Math.abs(x) > 6) return Math.sign(x);
    let [term, total] = [x, x];
    for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(total); n++) {
      term *= (2 * x * x) / (2 * n + 1);
      total += term;
    }
    return (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * total;
  }

  const ACTIVATIONS = {
    gelu: (x) => 0.5 * x * (1 + erf(x / Math.SQRT2)),
    relu: (x) => Math.max(0, x),
  };

  /** Rotary positions on x [pos, d_head]:
      pair (2i, 2i + 1) turns by position / base^(2i / d_head). */
  function rotate(x, d_head, base) {
    const out = new Float64Array(x.length);
    for (let at = 0; at < x.length; at += 2) {
      const angle = Math.floor(at / d_head) * base ** (-(at % d_head) / d_head);
      const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
      out[at] = x[at] * cos - x[at + 1] * sin;
      out[at + 1] = x[at] * sin + x[at + 1] * cos;
    }
    return out;
  }

  /** q, k [pos, d_head] → pattern [query, key]. */
  function attention(q, k, pos, d_head) {
    const pattern = new Float64Array(pos * pos);
    for (let query = 0; query < pos; query++) {
      const keys = [...Array(query + 1).keys()]; // a query sees none behind it
      const scores = keys.map((key) => dot(part(q, query, d_head), part(k, key, d_head)));
      pattern.set(softmax(scores.map((x) => x / Math.sqrt(d_head))), query * pos);
    }
    return pattern;
  }

  class Transformer {
    /** config: the `model` part of config.json.
        weights: {name: Float32Array}, named and shaped as in model.pt. */
    constructor(config, weights) {
      Object.assign(this, { config, weights });
    }

    /** RMSNorm, or LayerNorm without bias, of x [pos, d_model]. */
    norm(x, name) {
      const { d_model, normalization, eps } = this.config;
      const w = this.weights[`${name}.w`];
      const out = new Float64Array(x.length);
      for (let at = 0; at < x.length; at += d_model) {
        const row = x.subarray(at, at + d_model);
        const mean = normalization === "LN" ? sum(row) / d_model : 0;
        const centred = row.map((value) => value - mean);
        const scale = 1 / Math.sqrt(dot(centred, centred) / d_model + eps);
        out.set(centred.map((value, i) => value * scale * w[i]), at);
      }
      return out;
    }

    /** Token ids → the stream before the first layer [pos, d_model]. */
    embed(tokens) {
      const { d_model, positions } = this.config;
      const rows = tokens.map((token) => [...part(this.weights["embed.W_E"], token, d_model)]);
      const resid = Float64Array.from(rows.flat());
      return positions === "learned" ? add(resid, this.weights["pos_embed.W_pos"]) : resid;
    }

    /** One head's z and v [pos, d_head] and its pattern [query, key]. x: the normalized stream,
        of which it reads q, k and v; `other` may hold another one for some of the three. */
    head(x, layer, head, other = {}) {
      const { d_model, d_head, positions, rotary_base } = this.config;
      const pos = x.length / d_model;
      const project = (name, from = x) => {
        const weight = this.weights[`blocks.${layer}.attn.${name}`]; // [head, d_model, d_head]
        return matmul(from, part(weight, head, d_model * d_head), pos, d_model, d_head);
      };
      const turn = (rows) => (positions === "rotary" ? rotate(rows, d_head, rotary_base) : rows);
      const [q, k] = [turn(project("W_Q", other.q)), turn(project("W_K", other.k))];
      const pattern = attention(q, k, pos, d_head);
      const v = project("W_V", other.v);
      return { z: matmul(pattern, v, pos, pos, d_head), v, pattern };
    }

    /** What a head adds to the stream [pos, d_model], of its z [pos, d_head]. */
    written(z, layer, head) {
      const { d_model, d_head } = this.config;
      const W_O = part(this.weights[`blocks.${layer}.attn.W_O`], head, d_head * d_model);
      return matmul(z, W_O, z.length / d_head, d_head, d_model);
    }

    /** What an MLP adds to the stream [pos, d_model]. */
    mlp(resid, layer) {
      const { d_model, d_mlp, act_fn } = this.config;
      const pos = resid.length / d_model;
      const W_in = this.weights[`blocks.${layer}.mlp.W_in`];
      const W_out = this.weights[`blocks.${layer}.mlp.W_out`];
      const pre = matmul(this.norm(resid, `blocks.${layer}.ln2`), W_in, pos, d_model, d_mlp);
      return matmul(pre.map(ACTIVATIONS[act_fn]), W_out, pos, d_mlp, d_model);
    }

    /** The last stream [pos, d_model] → logits [pos, d_vocab]. */
    unembed(resid) {
      const { d_model, d_vocab } = this.config;
      const [x, W_U] = [this.norm(resid, "ln_final"), this.weights["unembed.W_U"]];
      return matmul(x, W_U, resid.length / d_model, d_model, d_vocab);
    }

    /** tokens (ids) → { tokens, logits [pos, d_vocab],
                         patterns {"layer.head": [query, key]},
                         z and v {"layer.head": [pos, d_head]},
                         streams [[pos, d_model]]: number 2 l is what the heads of layer l read,
                         2 l + 1 what its MLP reads, the last one what the logits read }.
        replace {"layer.head": z}: what these heads send instead of what they would;
        everything after them is live. */
    run(tokens, replace = {}) {
      const { n_layers, n_heads, act_fn } = this.config;
      const [patterns, z, v, streams] = [{}, {}, {}, []];
      let resid = this.embed(tokens);
      for (let layer = 0; layer < n_layers; layer++) {
        streams.push(resid);
        const x = this.norm(resid, `blocks.${layer}.ln1`);
        for (let head = 0; head < n_heads; head++) {
          const name = `${layer}.${head}`;
          const sent = this.head(x, layer, head);
          patterns[name] = sent.pattern;
          v[name] = sent.v;
          z[name] = replace[name] || sent.z;
          resid = add(resid, this.written(z[name], layer, head));
        }
        streams.push(resid);
        if (act_fn !== "none") resid = add(resid, this.mlp(resid, layer));
      }
      streams.push(resid);
      return { tokens, logits: this.unembed(resid), patterns, z, v, streams };
    }

    /** The probabilities [d_vocab] of what comes after the prompt of a run. */
    next({ logits }) {
      return softmax(logits.subarray(-this.config.d_vocab));
    }
  }

  /** The weights of a report: a base64 text of float32 values, least byte first.
      layout: [[name, start, end], …]. */
  function readWeights(base64, layout) {
    const values = new Float32Array(Uint8Array.from(atob(base64), (x) => x.charCodeAt(0)).buffer);
    const read = ([name, start, end]) => [name, values.subarray(start, end)];
    return Object.fromEntries(layout.map(read));
  }

  return { Transformer, readWeights, erf, add, minus, part };
})();

if (typeof module !== "undefined") module.exports = MiniFunc;
