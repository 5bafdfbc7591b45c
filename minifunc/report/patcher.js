/* Path patching in the page: minifunc/definition.py once more, with live MLPs, for one prompt.

   A sender is "embedding", "mlp2" or the head "2.1"; a receiver is "logits", or the q, k or v of a
   head, "3.1.q". A stage is an index of a run's `streams`. A change of a stream is [rows, d_model],
   at all positions or at the last ones. */
"use strict";

const PathPatching = (({ add, minus, part }) => {
  const best = (probabilities) => probabilities.indexOf(Math.max(...probabilities));

  class PathPatcher {
    /** base, contrast: two runs of the model, on prompts of the same length. */
    constructor(model, base, contrast) {
      Object.assign(this, { model, base, contrast });
      this.answers = [base, contrast].map((run) => best(model.next(run))); // token ids
    }

    /** logit(base answer) - logit(contrast answer) after the last token of a run. */
    F({ logits }) {
      const [ofBase, ofContrast] = this.answers.map((id) => id - this.model.config.d_vocab);
      return logits.at(ofBase) - logits.at(ofContrast);
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

    /** What a sender writes in the base run, less what it writes in the contrast run. */
    change(sender) {
      const stage = this.writesTo(sender);
      const written = ({ streams, z }) => {
        if (z[sender]) return this.model.written(z[sender], ...sender.split(".").map(Number));
        return stage ? minus(streams[stage], streams[stage - 1]) : streams[0];
      };
      return minus(written(this.base), written(this.contrast));
    }

    /** Pass 1: the contrast run's stream at stage `to`, changed at stage `from`. In between heads
        write what they wrote; MLPs and norms run. */
    arriving(change, from, to) {
      const { model, contrast } = this;
      if (from > to) throw new RangeError("the sender does not lie below the receiver");
      const asItWas = (stage) => contrast.streams[stage].subarray(-change.length);
      let stream = add(asItWas(from), change);
      for (let stage = from; stage < to; stage++) {
        const isLive = stage % 2 === 1 && model.config.act_fn !== "none";
        const frozen = minus(asItWas(stage + 1), asItWas(stage));
        stream = add(stream, isLive ? model.mlp(stream, (stage - 1) / 2) : frozen);
      }
      return stream;
    }

    /** { logits [d_vocab] } of the contrast run, when a change of the last position [d_model] at
        stage `from` goes to the logits through no head. */
    toLogits(change, from) {
      const stream = this.arriving(change, from, 2 * this.model.config.n_layers);
      return { logits: this.model.unembed(stream) };
    }

    /** The contrast run, but the direct path from sender to receiver carries the base run's value:
        what `model.run` returns; where the logits receive, { logits [d_vocab] } alone. */
    patched(sender, receiver) {
      const { model, contrast } = this;
      const [change, from] = [this.change(sender), this.writesTo(sender)];
      if (receiver === "logits") return this.toLogits(change.subarray(-model.config.d_model), from);
      const [layer, head, which] = receiver.split(".");
      const normed = (stream) => model.norm(stream, `blocks.${layer}.ln1`);
      const other = { [which]: normed(this.arriving(change, from, 2 * layer)) };
      const { z } = model.head(normed(contrast.streams[2 * layer]), layer, Number(head), other);
      return model.run(contrast.tokens, { [`${layer}.${head}`]: z }); // pass 2
    }

    /** r on the logits, for each of some positions, of what a head takes from it alone. */
    effectsByPosition(sender, positions) {
      const { model, base, contrast } = this;
      const taken = ({ tokens, v, patterns }, at) => {
        const share = patterns[sender].at(at - tokens.length); // the last position's attention
        return part(v[sender], at, model.config.d_head).map((x) => share * x);
      };
      return positions.map((at) => {
        const change = minus(taken(base, at), taken(contrast, at));
        const written = model.written(change, ...sender.split(".").map(Number));
        return this.r(this.toLogits(written, this.writesTo(sender)));
      });
    }
  }

  return { PathPatcher };
})(typeof module === "undefined" ? MiniFunc : require("./model.js"));

if (typeof module !== "undefined") module.exports = PathPatching;
