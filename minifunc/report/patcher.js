/* Path patching in the report: minifunc/definition.py once more, with live MLPs, for one prompt.

   A sender is "embedding", "mlp2" or the head "2.1"; a receiver is "logits", or the q, k or v of a
   head, "3.1.q". Stages count the `streams` of a run. A change of a stream is [rows, d_model], at
   all positions or at the last ones. */
"use strict";

const PathPatching = (({ add, part }) => {
  const minus = (a, b) => a.map((x, i) => x - b[i]);
  const best = (probabilities) => probabilities.indexOf(Math.max(...probabilities));

  class PathPatcher {
    /** base, contrast: two runs of the model, on prompts of the same length. */
    constructor(model, base, contrast) {
      Object.assign(this, { model, base, contrast });
      this.answers = [best(model.next(base)), best(model.next(contrast))]; // token ids
      this.end = 2 * model.config.n_layers; // the stage that the logits read
    }

    /** logit(base answer) - logit(contrast answer) after the last token of a run. */
    F({ logits }) {
      const last = logits.subarray(-this.model.config.d_vocab);
      return last[this.answers[0]] - last[this.answers[1]];
    }

    /** How far a patched run has gone from the contrast run (0) to the base run (-1). */
    r(patched) {
      const contrast = this.F(this.contrast);
      return (this.F(patched) - contrast) / (contrast - this.F(this.base));
    }

    /** The first stage that holds what a sender writes. */
    writesTo(sender) {
      if (sender === "embedding") return 0;
      return sender.startsWith("mlp") ? 2 * sender.slice(3) + 2 : 2 * parseInt(sender) + 1;
    }

    readsAt(receiver) {
      return receiver === "logits" ? this.end : 2 * parseInt(receiver);
    }

    /** What a sender writes in the base run, less what it writes in the contrast run. */
    change(sender) {
      const stage = this.writesTo(sender);
      const written = ({ streams, z }) => {
        if (z[sender]) return this.model.written(z[sender], ...sender.split(".").map(Number));
        return stage ? minus(streams[stage], streams[stage - 1]) : streams[0];
      };
      return minus(written(this.base), written(this.contrast));
    }

    /** Pass 1: the contrast run's stream at stage `to`, changed at stage `from`, where all heads
        write on what they wrote, and MLPs and norms run. */
    arriving(change, from, to) {
      const { model } = this;
      const asItWas = (stage) => this.contrast.streams[stage].subarray(-change.length);
      let stream = add(asItWas(from), change);
      for (let stage = from; stage < to; stage++) {
        const isLive = stage % 2 === 1 && model.config.act_fn !== "none";
        const frozen = minus(asItWas(stage + 1), asItWas(stage));
        stream = add(stream, isLive ? model.mlp(stream, (stage - 1) / 2) : frozen);
      }
      return stream;
    }

    /** The contrast run's { logits [d_vocab] } when the last position's stream is changed by
        [d_model] at stage `from`, and this goes to the logits through no head. */
    toLogits(change, from) {
      return { logits: this.model.unembed(this.arriving(change, from, this.end)) };
    }

    /** The contrast run, but the direct path from sender to receiver carries the base run's value:
        what `run` returns; where the logits receive, { logits [d_vocab] } alone. */
    patched(sender, receiver) {
      const { model, contrast } = this;
      const [from, to] = [this.writesTo(sender), this.readsAt(receiver)];
      if (from > to) throw new RangeError(`${sender} does not lie below ${receiver}`);
      const change = this.change(sender);
      if (to === this.end) return this.toLogits(change.subarray(-model.config.d_model), from);
      const [layer, head, which] = receiver.split(".");
      const normed = (stream) => model.norm(stream, `blocks.${layer}.ln1`);
      const other = { [which]: normed(this.arriving(change, from, to)) };
      const x = normed(contrast.streams[to]);
      const { z, pattern } = model.head(x, layer, Number(head), contrast.tokens.length, other);
      const run = model.run(contrast.tokens, { [`${layer}.${head}`]: z }, contrast); // pass 2
      run.patterns[`${layer}.${head}`] = pattern;
      return run;
    }

    /** r of each head on the logits, {"layer.head": r}. */
    headEffects() {
      const r = (head) => this.r(this.patched(head, "logits"));
      return Object.fromEntries(Object.keys(this.base.z).map((head) => [head, r(head)]));
    }

    /** r of a head on the logits when it sends what it takes from one position alone, for each of
        some positions. */
    effectsByPosition(sender, places = this.contrast.tokens.keys()) {
      const [layer, head] = sender.split(".").map(Number);
      const { d_model, d_head } = this.model.config;
      const pos = this.contrast.tokens.length;
      const taken = ({ streams, patterns }) => {
        const x = this.model.norm(streams[2 * layer], `blocks.${layer}.ln1`);
        const shares = part(patterns[sender], pos - 1, pos); // the last position's attention
        const { v } = this.model.head(x, layer, head, pos);
        return v.map((value, i) => value * shares[Math.floor(i / d_head)]);
      };
      const change = this.model.written(minus(taken(this.base), taken(this.contrast)), layer, head);
      const r = (at) => this.r(this.toLogits(part(change, at, d_model), 2 * layer + 1));
      return Array.from(places, r);
    }
  }

  return { PathPatcher };
})(typeof module === "undefined" ? MiniFunc : require("./model.js"));

if (typeof module !== "undefined") module.exports = PathPatching;
