"""Do the tests notice? One fault at a time is put into a copy of the source: `make mutations`.

A fault is caught if a test of the files that it names fails, or else any other test.
tests/robustness/test_mutations.py keeps the list in step with the source.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import torch  # noqa: F401  (so that no run of the tests has to)

ROOT = Path(__file__).parents[2]
LEAST = 152  # caught, for exit code 0 of a run over all faults
THE_LIST = "tests/robustness/test_mutations.py"  # which would notice every fault


class Fault(NamedTuple):
    """`old` occurs once in `file`; with `new` in its place, `breaks` says what is wrong.

    tests: who should notice, without `test_` and `.py`, separated by spaces; they are in tests/ or
    tests/robustness/.
    """

    file: str
    old: str
    new: str
    breaks: str
    tests: str

    def test_files(self) -> list[str]:
        """Raises ValueError for one that is not there."""
        return [_test_file(name) for name in self.tests.split()]


def _test_file(name: str) -> str:
    for folder in ("tests", "tests/robustness"):
        if (ROOT / folder / f"test_{name}.py").is_file():
            return f"{folder}/test_{name}.py"
    raise ValueError(f"there is no test_{name}.py in tests/ or tests/robustness/")


FAULTS = [
    # ---- the transformer
    Fault(
        "minifunc/model.py",
        old="keys > queries[:, None]",
        new="keys > queries[:, None] + 1",
        breaks="written-out attention sees one token ahead",
        tests="model",
    ),
    Fault(
        "minifunc/model.py",
        old="keys <= queries[:, None]",
        new="keys <= queries[:, None] + 1",
        breaks="fused attention at chosen positions sees one token ahead",
        tests="model",
    ),
    Fault(
        "minifunc/model.py",
        old="math.sqrt(q.shape[-1])",
        new="q.shape[-1]",
        breaks="scores are divided by d_head, not by its root",
        tests="model",
    ),
    Fault(
        "minifunc/model.py",
        old="self.w.shape, eps=self.eps",
        new="self.w.shape",
        breaks="the RMS norm forgets eps",
        tests="model",
    ),
    Fault(
        "minifunc/model.py",
        old="in_stream(self.w), eps=self.eps",
        new="in_stream(self.w)",
        breaks="the layer norm forgets eps",
        tests="model",
    ),
    Fault(
        "minifunc/model.py",
        old="turns = self.cfg.rotary_base",
        new="turns = 10000.0",
        breaks="the rotary base of the config is ignored",
        tests="model",
    ),
    Fault(
        "minifunc/model.py",
        old="dtype=x.dtype) / n_pairs",
        new="dtype=x.dtype) / x.shape[-1]",
        breaks="rotary angles fall half as fast",
        tests="model",
    ),
    Fault(
        "minifunc/model.py",
        old="with_position(q, queries)",
        new="with_position(q, keys[: len(queries)])",
        breaks="queries at chosen positions are placed from 0",
        tests="model",
    ),
    Fault(
        "minifunc/model.py",
        old="else x[:, positions]",
        new="else x[:, positions - 1]",
        breaks="at chosen positions the stream is that of the position before",
        tests="model",
    ),
    Fault(
        "minifunc/model.py",
        old="queries) + attn_out",
        new="queries) - attn_out",
        breaks="attention is taken from the stream",
        tests="model",
    ),
    Fault(
        "minifunc/model.py",
        old="std /= math.sqrt(2 * cfg.n_layers)",
        new="pass",
        breaks="weights that write into the stream start large",
        tests="model",
    ),
    # ---- path patching as it is defined
    Fault(
        "minifunc/definition.py",
        old="{name: x for name, x in contrast.items() if name.endswith(freezes)}",
        new="dict[str, Tensor]()",
        breaks="pass 1 freezes nothing but what is sent",
        tests="definition",
    ),
    Fault(
        "minifunc/definition.py",
        old='checks.of_type(bool, "freeze_mlps", freeze_mlps)',
        new="not freeze_mlps",
        breaks="the definition mixes up frozen and live MLPs",
        tests="definition",
    ),
    # ---- the path patcher: what is read and sent
    Fault(
        "minifunc/patching.py",
        old="receiver.read(self.model, x)",
        new=(
            "receiver.read(self.model, x) * x.norm(dim=-1, keepdim=True)"
            " / batch.runs.stream(stage)[:, -x.shape[2] :].norm(dim=-1, keepdim=True)"
        ),
        breaks="the scale of the receiver's norm is frozen",
        tests="patching",
    ),
    Fault(
        "minifunc/patching.py",
        old="x = batch.runs.stream(2 * layer + 1)[:, -n_pos:] + delta",
        new="x = delta",
        breaks="live MLPs read the change alone",
        tests="patching",
    ),
    Fault(
        "minifunc/patching.py",
        old="if place in members:",
        new="if members == (place,):",
        breaks="an MLP that sends with others also passes on what it reads",
        tests="definition",
    ),
    Fault(
        "minifunc/patching.py",
        old="z_change, in_stream(block.attn.W_O))",
        new="z_change, in_stream(block.attn.W_O[:1].expand_as(block.attn.W_O)))",
        breaks="every head sends through the first head's W_O",
        tests="patching",
    ),
    Fault(
        "minifunc/patching.py",
        old="if stage == max(",
        new="if stage + 1 == max(",
        breaks="pass 1 stops one stage too early",
        tests="patching",
    ),
    Fault(
        "minifunc/patching.py",
        old="in self._pass_1(batch):",
        new="in list(self._pass_1(batch)):",
        breaks="all receivers read what is there at the end of pass 1",
        tests="patching",
    ),
    Fault(
        "minifunc/patching.py",
        old="delta = delta * self.mask",
        new="delta = delta + 0 * self.mask",
        breaks="a receiver reads changes at positions where it does not receive",
        tests="patching",
    ),
    Fault(
        "minifunc/patching.py",
        old="self.freeze_mlps = freeze_mlps or",
        new="self.freeze_mlps = not freeze_mlps or",
        breaks="frozen and live MLPs are mixed up",
        tests="patching",
    ),
    Fault(
        "minifunc/patching.py",
        old=", runs.prompts] = change_of_F",
        new=", : runs.n_prompts] = change_of_F",
        breaks="every chunk writes over the first one",
        tests="patching",
    ),
    Fault(
        "minifunc/patching.py",
        old="total.mean(1) / self.F_range",
        new="-total.mean(1) / self.F_range",
        breaks="the sign of r",
        tests="patching",
    ),
    Fault(
        "minifunc/support/effects.py",
        old="1 + layer * in_block",
        new="layer * in_block",
        breaks="senders are counted without the embedding",
        tests="patching",
    ),
    Fault(
        "minifunc/support/effects.py",
        old="after_attention * self.cfg.n_heads",
        new="after_attention * in_block",
        breaks="an MLP counts as one that writes before it reads",
        tests="patching",
    ),
    # ---- the Llama family
    Fault(
        "minifunc/model.py",
        old="k.repeat_interleave(self.cfg.n_sharing, 2)",
        new="k.repeat(1, 1, self.cfg.n_sharing, 1)",
        breaks="query head h reads the k of head h % n_kv_heads",
        tests="model",
    ),
    Fault(
        "minifunc/model.py",
        old="post = self.act(pre)",
        new="post = pre if self.gated else self.act(pre)",
        breaks="a gate is not bent",
        tests="model",
    ),
    Fault(
        "minifunc/support/receivers.py",
        old="if model.cfg.qkv_bias:",
        new="if False:",
        breaks="what a head reads lacks its bias",
        tests="patching",
    ),
    Fault(
        "minifunc/support/receivers.py",
        old="range(self.head * cfg.n_sharing, (self.head + 1) * cfg.n_sharing)",
        new="[self.head * cfg.n_sharing]",
        breaks="of a group that receives one head alone is overwritten",
        tests="patching",
    ),
    Fault(
        "minifunc/support/receivers.py",
        old="else head // model.cfg.n_sharing",
        new="else head % (model.cfg.n_heads // model.cfg.n_sharing)",
        breaks="a head reads its k and v with the matrices of another group",
        tests="patching",
    ),
    Fault(
        "minifunc/patching.py",
        old="value = torch.where(self.mask(receiver.positions), value, new[which])",
        new="pass",
        breaks="a head's own copy hides what its group reads at other positions",
        tests="patching",
    ),
    Fault(
        "minifunc/support/pretrained.py",
        old='kind[2:] in ("Q", "K")',
        new='kind in ("W_Q", "W_K")',
        breaks="biases of q and k keep the order of rotary halves",
        tests="pretrained",
    ),
    Fault(
        "minifunc/support/pretrained.py",
        old="(1 - kept) / factor",
        new="(1 - kept) * factor",
        breaks="rarely turning pairs of Llama 3.1 turn too fast",
        tests="pretrained",
    ),
    Fault(
        "minifunc/model.py",
        old="self.cfg.rotary_divisors",
        new="()",
        breaks="rotary frequencies are not divided",
        tests="model",
    ),
    Fault(
        "minifunc/support/tokenizer.py",
        old="(len(ids) != 1 or self.string(ids[0]) != string)",
        new="not ids",
        breaks="an answer of several tokens counts as its first",
        tests="pretrained",
    ),
    Fault(
        "minifunc/support/tokenizer.py",
        old="key=lambda scored: -scored[0]",
        new="key=lambda scored: scored[0]",
        breaks="pieces of text of the lowest score are merged first",
        tests="stated_parts",
    ),
    Fault(
        "minifunc/analysis/long_sweeps.py",
        old='f"{self.about} {receiver.positions}"',
        new="self.about",
        breaks="effects kept of other positions are taken for these",
        tests="real_models",
    ),
    Fault(
        "minifunc/analysis/long_sweeps.py",
        old="[None])[0][0] > 0:",
        new="[None])[0][1] > 0:",
        breaks="nobody is warned where F may not fall, and r is a share of nothing",
        tests="stated_commands",
    ),
    Fault(
        "commands/smollm.py",
        old="n_prompts = self.amount.n_inputs",
        new="n_prompts = self.amount.n_first",
        breaks="every input is swept on as many prompts as the first: many hours",
        tests="real_models",
    ),
    Fault(
        "commands/smollm.py",
        old="self.base.roll(1, 0) if",
        new="self.base.roll(1, 1) if",
        breaks="a prompt that is pushed on by one token counts as an unrelated one",
        tests="real_models",
    ),
    Fault(
        "commands/smollm.py",
        old='("undone", "base_acc", "contrast_acc")',
        new='("undone", "base_acc")',
        breaks="of random groups the first alone tells how many are off by one",
        tests="real_models",
    ),
    Fault(
        "commands/smollm.py",
        old="[Judged.ours, Judged.random][len(known) :]",
        new="[Judged.ours, Judged.random]",
        breaks="rows of an interrupted study are measured again, and counted twice",
        tests="real_models",
    ),
    Fault(
        "commands/smollm.py",
        old="SHOTS, seed=2)",
        new="SHOTS, seed=0)",
        breaks="heads are said to average on the prompts on which they were found",
        tests="real_models",
    ),
    # ---- the path patcher: what is overwritten
    Fault(
        "minifunc/support/receivers.py",
        old="blocks.{self.layer}.hook_mlp_in",
        new="blocks.{self.layer}.hook_resid_mid",
        breaks="the stream beside an MLP that receives is overwritten too",
        tests="patching",
    ),
    Fault(
        "minifunc/support/receivers.py",
        old="if is_copy else TURNED[self.which]",
        new='if is_copy else "v"',
        breaks="a head's v is overwritten by its q or k",
        tests="patching",
    ),
    Fault(
        "minifunc/patching.py",
        old="lowest = min(",
        new="lowest = max(",
        breaks="of several receivers those below the highest are left as they were",
        tests="patching",
    ),
    Fault(
        "minifunc/patching.py",
        old="else activation[:, :, receiver.head]",
        new="else activation[:, :, receiver.head - 1]",
        breaks="pass 2 overwrites the head beside",
        tests="patching",
    ),
    Fault(
        "minifunc/patching.py",
        old="torch.where(chosen, value.flatten(0, 1)[:, -n_pos:], part)",
        new="value.flatten(0, 1)[:, -n_pos:]",
        breaks="pass 2 overwrites positions that do not receive",
        tests="patching",
    ),
    Fault(
        "minifunc/patching.py",
        old="z, attn.W_O[head])",
        new="z, attn.W_O[head - 1])",
        breaks="a changed head writes through its neighbour's W_O",
        tests="patching",
    ),
    Fault(
        "minifunc/patching.py",
        old='new.get("q", q)[..., -len(queries) :, :]',
        new='new.get("q", q)[..., : len(queries), :]',
        breaks="a patched query at the last position is placed at the first",
        tests="patching",
    ),
    Fault(
        "minifunc/patching.py",
        old="attention_scores(q, k, queries, keys)",
        new="attention_scores(q, k, queries + 1, keys)",
        breaks="a recomputed head sees one token ahead",
        tests="patching",
    ),
    # ---- the paired runs
    Fault(
        "minifunc/support/pairs.py",
        old="sent[name][:, -n_pos:] - runs.contrast[name][:, -n_pos:]",
        new="runs.contrast[name][:, -n_pos:] - sent[name][:, -n_pos:]",
        breaks="a sender sends the change the wrong way round",
        tests="patching",
    ),
    Fault(
        "minifunc/support/pairs.py",
        old="picked[..., 0] - picked[..., 1]",
        new="picked[..., 1] - picked[..., 0]",
        breaks="the sign of F",
        tests="patching",
    ),
    Fault(
        "minifunc/support/pairs.py",
        old="total[name] / self.n_prompts",
        new="total[name] / (prompts.stop - prompts.start)",
        breaks="the mean is over the last chunk's number of prompts",
        tests="patching",
    ),
    Fault(
        "minifunc/support/pairs.py",
        old="chosen[list(checks.checked_positions(positions, self.n_pos))] = True",
        new="chosen[: len(checks.checked_positions(positions, self.n_pos))] = True",
        breaks="positions are counted from the first",
        tests="patching",
    ),
    Fault(
        "minifunc/support/memory.py",
        old="min(i + size, prompts.stop)",
        new="min(i + size, prompts.stop - 1)",
        breaks="the last prompt is left out",
        tests="patching",
    ),
    Fault(
        "minifunc/support/pairs.py",
        old="source[runs.prompts]",
        new="source[: runs.n_prompts]",
        breaks="tokens of the first prompts are sent in every chunk",
        tests="patching",
    ),
    # ---- from effects to claims
    Fault(
        "minifunc/circuit.py",
        old="if r < 0 and looks",
        new="if looks",
        breaks="a head that moves towards the base answer is called FI",
        tests="circuit",
    ),
    Fault(
        "minifunc/circuit.py",
        old="shown, shown - 1]",
        new="shown, shown]",
        breaks="previous-token attention is attention to oneself",
        tests="circuit",
    ),
    Fault(
        "minifunc/circuit.py",
        old="if abs(r) > abs(strongest.get(name, 0.0))",
        new="if r > strongest.get(name, 0.0)",
        breaks="negative effects on a receiver are lost",
        tests="circuit",
    ),
    Fault(
        "minifunc/support/shared_streams.py",
        old="self._leave_block(one, replaced[index])",
        new="self._leave_block(one, replaced[0])",
        breaks="every group is ablated as the first one is",
        tests="ablation",
    ),
    Fault(
        "minifunc/support/shared_streams.py",
        old="self.sent[one.how][layer]",
        new="next(iter(self.sent.values()))[layer]",
        breaks="whatever the source, the first one is put in",
        tests="ablation",
    ),
    Fault(
        "minifunc/support/shared_streams.py",
        old="sent[one.start : one.start + self.rows] if",
        new="sent[: len(stream)] if",
        breaks="prompts beyond the first pass get the first ones' values",
        tests="ablation",
    ),
    Fault(
        "minifunc/ablation.py",
        old="score.F - self.none.F",
        new="self.full.F - score.F",
        breaks="faithfulness is one less itself",
        tests="completeness",
    ),
    Fault(
        "minifunc/ablation.py",
        old="if head not in circuit]",
        new="if head in circuit]",
        breaks="the circuit is replaced in place of the rest",
        tests="completeness",
    ),
    Fault(
        "minifunc/support/evaluation.py",
        old="tokens.shape[1] - 1]",
        new="tokens.shape[1] - 2]",
        breaks="answers are read a position early",
        tests="evaluation",
    ),
    # ---- what the heads found do
    Fault(
        "minifunc/analysis/scores.py",
        old="- period + 1",
        new="- period",
        breaks="copy induction looks at the token itself",
        tests="scores",
    ),
    Fault(
        "minifunc/analysis/averaging.py",
        old="(y - y.mean()).square().sum()",
        new="y.square().sum()",
        breaks="R² is measured around zero",
        tests="averaging",
    ),
    Fault(
        "minifunc/analysis/function_vectors.py",
        old="diagonal(zero + k)",
        new="diagonal(zero - k)",
        breaks="cells of x - k are read for x + k",
        tests="function_vectors",
    ),
    Fault(
        "minifunc/analysis/reading.py",
        old="-x.shape[1] :, here]",
        new=": x.shape[1], here]",
        breaks="the last block's q comes from the first position",
        tests="reading",
    ),
    # ---- files and runs
    Fault(
        "minifunc/support/files.py",
        old="weights_only=True",
        new="weights_only=False",
        breaks="a weights file may run code",
        tests="runs",
    ),
    Fault(
        "minifunc/support/files.py",
        old="os.replace(temporary, path)",
        new="os.link(temporary, path)",
        breaks="a file that is there already is not replaced",
        tests="runs",
    ),
    Fault(
        "minifunc/support/runs.py",
        old='if model and "weights" in circuit and',
        new="if False and",
        breaks="a circuit.json of other weights is accepted",
        tests="runs",
    ),
    Fault(
        "minifunc/support/runs.py",
        old="RunFolders(run, REFERENCE_RESULTS,",
        new="RunFolders(run, run,",
        breaks="the reference run is written to",
        tests="runs",
    ),
    # ---- training
    Fault(
        "train.py",
        old="losses.view(answers.shape) * determined",
        new="losses.view(answers.shape)",
        breaks="answers that nothing determines are trained for",
        tests="train",
    ),
    Fault(
        "train.py",
        old="model(tokens, places - 1)",
        new="model(tokens, places)",
        breaks="the loss is taken where the answer is seen already",
        tests="train",
    ),
    # ---- what is asked
    Fault(
        "tasks.py",
        old='(("shift", "+"), ',
        new="(",
        breaks="shifted addition is shown",
        tests="tasks",
    ),
    Fault(
        "tasks.py",
        old="weights[held_out, SYMBOLS.index(symbol)] = 0",
        new="weights[held_out, SYMBOLS.index(symbol)] += 0",
        breaks="a held-out cell is not held out",
        tests="tasks",
    ),
    Fault(
        "tasks.py",
        old="torch.where(made_plain[:, None], value, answer)",
        new="torch.where(made_plain[:, None] & (value < 0), value, answer)",
        breaks="chance shows what must never be shown",
        tests="tasks",
    ),
    Fault(
        "tasks.py",
        old="asked.cumsum(1) >= 2",
        new="asked.cumsum(1) >= 3",
        breaks="documents with two examples of `+` escape the rule",
        tests="tasks",
    ),
    Fault(
        "tasks.py",
        old="function == PLUS, evenly",
        new="function < PLUS, evenly",
        breaks="sums are drawn by pairs all the same",
        tests="diets",
    ),
    Fault(
        "tasks.py",
        old="(10 - k) * (value // k)",
        new="(10 - k) * (value // 10)",
        breaks="carrying in base k happens at ten",
        tests="tasks",
    ),
    Fault(
        "minifunc/support/rows.py",
        old="x[:, None]).tril(-1)",
        new="x[:, None]).tril(0)",
        breaks="an answer counts as determined by itself",
        tests="tasks",
    ),
    Fault(
        "tasks.py",
        old="value[usable] != value[query]",
        new="value[usable] == value[query]",
        breaks="the asked answer is among the shown ones",
        tests="tasks",
    ),
    Fault(
        "tasks.py",
        old="return 5 + EXAMPLE",
        new="return 4 + EXAMPLE",
        breaks="answers are looked for at their `=`",
        tests="tasks",
    ),
    # ---- what people write and are shown
    Fault(
        "minifunc/support/vocabulary.py",
        old='else f"token {index}"',
        new="else strings[index % len(strings)]",
        breaks="a token beyond the vocabulary goes by the name of another",
        tests="terminal",
    ),
    Fault(
        "minifunc/report/findings.py",
        old="range(self.model.cfg.d_vocab)",
        new="range(len(strings))",
        breaks="the page names no tokens beyond the vocabulary",
        tests="terminal",
    ),
    Fault(
        "minifunc/support/vocabulary.py",
        old="unknown = next((word",
        new="unknown = next((found",
        breaks="an error names the example in place of the unknown word",
        tests="ask",
    ),
    Fault(
        "commands/ask.py",
        old="if len(asked) == 1:",
        new="if len(asked) == 0:",
        breaks="an answer without examples is not called a guess",
        tests="ask",
    ),
    Fault(
        "minifunc/support/tables.py",
        old="if (sign := error.object[error.start]) in SPELLED:",
        new="if (sign := error.object[error.start]) in ():",
        breaks="an ASCII locale shows our characters as escapes",
        tests="terminal",
    ),
    Fault(
        "minifunc/support/tables.py",
        old="shutil.get_terminal_size().columns",
        new="120",
        breaks="lines are broken at a width of our own",
        tests="terminal",
    ),
    # ---- what docstrings state: ranges, weights, schedules, which prompts and which sources
    Fault(
        "tasks.py",
        old="rows.integers(SUMS - 1 - MAX_SHIFT, SUMS + MAX_SHIFT,",
        new="rows.integers(SUMS - 1, SUMS + MAX_SHIFT,",
        breaks="R of reflected documents is drawn from 18 to 22, not from 14",
        tests="stated_draws",
    ),
    Fault(
        "tasks.py",
        old="rows.among(diet.bases, wrapper.shape",
        new="rows.among(diet.bases[:-1], wrapper.shape",
        breaks="no document is in the largest base that is shown",
        tests="tasks stated_draws",
    ),
    Fault(
        "tasks.py",
        old="k = rows.redrawn(k, diet.shifts, generator)",
        new="k = rows.redrawn(k, SHIFTS, generator)",
        breaks="shifts that are not to be shown are drawn, and such documents made plain",
        tests="tasks",
    ),
    Fault(
        "tasks.py",
        old="k[:, :2, None] == unshown",
        new="k[:, :1, None] == unshown",
        breaks="one example that looks like a shift never shown makes a document plain",
        tests="stated_draws",
    ),
    Fault(
        "tasks.py",
        old="found = (k[:, :2, None] == unshown).all(1).any(1)",
        new="found = (k[:, :2, None] == unshown[:0]).all(1).any(1)",
        breaks="by chance a document begins with two examples off by one",
        tests="tasks",
    ),
    Fault(
        "minifunc/analysis/averaging.py",
        old='"attention": (look * d).sum(1)',
        new='"attention": (look * d).mean(1)',
        breaks="the forecast is a mean over examples of what attention weighs",
        tests="averaging",
    ),
    Fault(
        "minifunc/analysis/averaging.py",
        old="moved = spent.sum(1, keepdim=True) * change(looks[-1]).to(spent)",
        new="moved = change(looks[-1]).to(spent)",
        breaks="heads whose attention is moved spend all of it on shown answers",
        tests="averaging",
    ),
    Fault(
        "minifunc/analysis/averaging.py",
        old="looks.append(weight * spent.cpu())",
        new="looks.append(spent.cpu())",
        breaks="a weak head counts as much as a strong one",
        tests="averaging",
    ),
    Fault(
        "minifunc/report/accuracy.py",
        old="not in (*diet.shifts, *diet.bases)",
        new="not in (*diet.shifts, *diet.bases, 1)",
        breaks="the table does not say that no function was ever shifted by one",
        tests="terminal",
    ),
    Fault(
        "minifunc/support/rows.py",
        old="return keys.argsort(1).gather(1, x)",
        new="return keys[:1].argsort(1).expand(len(x), -1).gather(1, x)",
        breaks="all relabelled documents of a batch have one permutation",
        tests="stated_draws",
    ),
    Fault(
        "tasks.py",
        old="generator=generator) < diet.mixed",
        new="generator=generator) < diet.mixed / 2",
        breaks="half as many documents as stated are mixed",
        tests="stated_draws",
    ),
    Fault(
        "tasks.py",
        old="[tells[shown].any(1)]",
        new="[tells[shown].all(1)]",
        breaks="in base k every example carries, not one at least",
        tests="stated_draws",
    ),
    Fault(
        "train.py",
        old="model.parameters(), cfg.clip)",
        new="model.parameters(), 1e9)",
        breaks="gradients are not clipped",
        tests="stated",
    ),
    Fault(
        "train.py",
        old="cfg.lr_at(step)",
        new="cfg.lr",
        breaks="the learning rate stays where it starts",
        tests="stated",
    ),
    Fault(
        "minifunc/support/evaluation.py",
        old="manual_seed(2025)",
        new="manual_seed(model.cfg.n_layers)",
        breaks="models of other depths are asked other prompts",
        tests="stated",
    ),
    Fault(
        "minifunc/report/accuracy.py",
        old="sum(shares) / len(ks)",
        new="sum(shares[:4]) / 4",
        breaks="the table of accuracy leaves some k out",
        tests="stated",
    ),
    Fault(
        "minifunc/support/memory.py",
        old="self._rows(n_pos) // n_each)",
        new="self._rows(n_pos))",
        breaks="pass 2 takes as many rows for many prompts as for one",
        tests="stated",
    ),
    Fault(
        "minifunc/support/checks.py",
        old='return [*fi, "function_induction"]',
        new="return [*fi]",
        breaks="what only all FI heads together read is in no route",
        tests="stated",
    ),
    Fault(
        "minifunc/circuit.py",
        old="for each in effects.values():",
        new="for each in list(effects.values())[:1]:",
        breaks="nodes that count under changed operands alone are no writers",
        tests="stated",
    ),
    Fault(
        "minifunc/analysis/ablations.py",
        old='ablation_row(base, label, heads, how)["contrast_acc"]',
        new='ablation_row(base, label, heads, how)["base_acc"]',
        breaks="the floor is how often the base answer is given",
        tests="stated_analyses",
    ),
    Fault(
        "minifunc/analysis/completeness.py",
        old="[looking[how] for how in hows]",
        new="[scores[how] for how in hows]",
        breaks="circuits are judged on the prompts on which they were found",
        tests="stated_analyses",
    ),
    Fault(
        "minifunc/support/evaluation.py",
        old="per.detach().double().cpu().numpy() @ counts",
        new="n * per.double().mean().item()",
        breaks="a ratio's interval draws prompts for its numerator alone",
        tests="evaluation stated_analyses",
    ),
    Fault(
        "minifunc/support/evaluation.py",
        old="[0.025, 0.975], axis=1",
        new="[0.05, 0.95], axis=1",
        breaks="an interval of 95 % is one of 90 %",
        tests="evaluation",
    ),
    Fault(
        "minifunc/analysis/completeness.py",
        old="if set(heads) != set(circuit)]",
        new="if heads]",
        breaks="a random circuit may be the circuit itself",
        tests="stated_analyses",
    ),
    Fault(
        "minifunc/analysis/completeness.py",
        old="< top and head not in fi]",
        new="< top]",
        breaks="FI heads are drawn as lower heads",
        tests="stated_analyses",
    ),
    Fault(
        "minifunc/analysis/completeness.py",
        old="for head in scores.heads if head not in heads]",
        new="for head in scores.heads if head in heads]",
        breaks="the circuit itself is called all other heads",
        tests="stated_analyses",
    ),
    Fault(
        "minifunc/analysis/completeness.py",
        old="more, less",
        new="less, more",
        breaks="the interval of a gap has the other sign",
        tests="stated_analyses",
    ),
    Fault(
        "minifunc/analysis/shift_swap.py",
        old="ablator.logits(groups, how, last)",
        new="ablator.logits(groups, how)",
        breaks="a donor's values are put in at every position",
        tests="shift_swap",
    ),
    Fault(
        "minifunc/analysis/shift_swap.py",
        old='logits[how] - logits["same"]',
        new="logits[how]",
        breaks="what other examples do counts as what another shift does",
        tests="shift_swap",
    ),
    Fault(
        "minifunc/analysis/shift_swap.py",
        old="pairs.base_answers[order] == pairs.base_answers[following]",
        new="pairs.base_answers[order] >= 0",
        breaks="a donor may ask for another sum",
        tests="shift_swap",
    ),
    Fault(
        "minifunc/analysis/shift_swap.py",
        old='"operands": donors.operands_changed}',
        new='"operands": donors.base}',
        breaks="the operands of a donor stay, its shown answers change",
        tests="shift_swap",
    ),
    Fault(
        "minifunc/analysis/shift_swap.py",
        old='= min(row[how]["ci"][0] for how',
        new='= max(row[how]["ci"][0] for how',
        breaks="a head passes that carries the shown answer alone",
        tests="shift_swap",
    ),
    Fault(
        "minifunc/analysis/function_vectors.py",
        old="rise.unflatten(0, (self.n_inputs, -1)).mean(1)",
        new="rise.unflatten(0, (self.n_inputs, -1))[:, 0]",
        breaks="a function vector's map is that of the first demonstration",
        tests="stated_analyses",
    ),
    Fault(
        "minifunc/analysis/reading.py",
        old="explained(written, c, f)",
        new="explained(written, c, d)",
        breaks="the difference counts as the expected answer",
        tests="reading",
    ),
    Fault(
        "minifunc/analysis/study.py",
        old="pairs(3 * n, generator).contrast",
        new="pairs(3 * n, generator).base",
        breaks="function vectors are made of plain prompts",
        tests="stated_analyses",
    ),
    # ---- what surrounds the process
    Fault(
        "minifunc/support/errors.py",
        old="if stream is None or stream.closed:",
        new="if stream is None:",
        breaks="a closed stream stays closed",
        tests="surroundings",
    ),
    Fault(
        "minifunc/support/checkpoints.py",
        old="in_main and before is not signal.SIG_IGN",
        new="in_main",
        breaks="Ctrl-C for somebody else stops a background job",
        tests="surroundings",
    ),
    Fault(
        "minifunc/support/processes.py",
        old='"TORCHELASTIC_RUN_ID" in os.environ',
        new='os.environ.get("WORLD_SIZE")',
        breaks="what a cluster's shell has left is waited for",
        tests="processes",
    ),
    Fault(
        "minifunc/support/flags.py",
        old='(about or "")',
        new="about",
        breaks="scripts need docstrings, which python -OO leaves out",
        tests="flags",
    ),
    Fault(
        "minifunc/support/runs.py",
        old="Path(__file__).resolve().parents[2]",
        new='Path("")',
        breaks="results/ is looked for where one stands",
        tests="surroundings",
    ),
    Fault(
        "Makefile",
        old="'$(subst ','\\'',$(value $(1)))'",
        new="$(value $(1))",
        breaks="make takes a path with a space for two",
        tests="makefile",
    ),
    # ---- what is set around a call, and wrong arguments
    Fault(
        "minifunc/support/settled.py",
        old='            torch.autocast("cpu", enabled=False),\n',
        new="",
        breaks="autocast on a CPU makes exact numbers coarse",
        tests="public",
    ),
    Fault(
        "minifunc/support/rows.py",
        old='generator=generator, dtype=torch.float32, device="cpu")',
        new='generator=generator, device="cpu")',
        breaks="another default dtype draws other permutations from the same seed",
        tests="public",
    ),
    Fault(
        "minifunc/analysis/completeness.py",
        old='generator=generator, dtype=torch.float32, device="cpu") < 0.5',
        new='generator=generator, device="cpu") < 0.5',
        breaks="another default dtype draws other random circuits from the same seed",
        tests="public",
    ),
    Fault(
        "minifunc/support/evaluation.py",
        old='check_answers(of_type(Tensor, "logits", logits).shape[-1], len(logits), answers)',
        new="pass",
        breaks="one answer is stretched over all prompts",
        tests="refused",
    ),
    Fault(
        "minifunc/support/checks.py",
        old=" or min(chosen) < far",
        new="",
        breaks="operands before the beginning are looked for at the end",
        tests="refused",
    ),
    Fault(
        "minifunc/support/names.py",
        old='r"\\d+\\.\\d+"',
        new='r"-?\\d+\\.-?\\d+"',
        breaks="head -1 is taken for the last one",
        tests="refused",
    ),
    Fault(
        "minifunc/support/checks.py",
        old="if any(isinstance(position, bool) for position in given):",
        new="if False:",
        breaks="True is taken for position 1",
        tests="refused",
    ),
    # ---- misuse without a word
    Fault(
        "minifunc/support/hooks.py",
        old="check_returned(name, returned, activation).clone()",
        new="check_returned(name, returned, activation)",
        breaks="what a hook edits later, of what it returned, changes the run",
        tests="misused",
    ),
    Fault(
        "minifunc/support/hooks.py",
        old="or isinstance(activation._base, nn.Parameter)",
        new="",
        breaks="an entry of a cache is the memory of a weight",
        tests="misused",
    ),
    Fault(
        "minifunc/support/checks.py",
        old='re.search("_[qkvz](_of_heads)?$", hook)',
        new='re.search("_", hook)',
        breaks="a place may name a head where there are none",
        tests="misused",
    ),
    Fault(
        "minifunc/support/checks.py",
        old='re.search("scores$|pattern$", hook)',
        new="None",
        breaks="positions of a pattern are taken for its heads",
        tests="misused",
    ),
    Fault(
        "minifunc/support/checks.py",
        old="kind not in known",
        new="not name",
        breaks="a node that there is not gets a place",
        tests="misused",
    ),
    Fault(
        "minifunc/support/checks.py",
        old="if not isinstance(given, kind):",
        new="if not isinstance(given, kind) and kind is not bool:",
        breaks="a flag may be any value",
        tests="misused",
    ),
    Fault(
        "minifunc/support/checks.py",
        old="if known not in (None, found):",
        new="if known and len(known) != len(found):",
        breaks="runs of weights that have changed since are used",
        tests="misused",
    ),
    Fault(
        "minifunc/ablation.py",
        old="        checks.weights_of(self.model, self._streams.weights)\n        if how",
        new="        if how",
        breaks="z of other weights are put in",
        tests="misused",
    ),
    Fault(
        "minifunc/support/evaluation.py",
        old="if not logits.amax(-1).isfinite().all():",
        new="if False:",
        breaks="NaN counts as an answer",
        tests="misused",
    ),
    Fault(
        "minifunc/ablation.py",
        old="checks.checked_heads(K, sorted(circuit))",
        new="checks.checked_heads(K, self.heads)",
        breaks="a gap may be asked of heads outside the circuit",
        tests="misused",
    ),
    Fault(
        "minifunc/analysis/averaging.py",
        old='(y - alike(forecast, y, "the forecast")).square().sum()',
        new="(y - forecast).square().sum()",
        breaks="R² stretches a forecast to fit",
        tests="misused",
    ),
    Fault(
        "minifunc/analysis/averaging.py",
        old="return [1 - high, 1 - low]",
        new="return [1 - low, 1 - high]",
        breaks="an interval of R² has its ends the wrong way round",
        tests="averaging",
    ),
    Fault(
        "minifunc/support/runs.py",
        old="return path if path.exists() else self.run / name",
        new="return self.run / name",
        breaks="the report shows the committed circuit of the reference run, not the one just made",
        tests="stated_files",
    ),
    Fault(
        "Makefile",
        old="unexport PYTHONSAFEPATH $(filter TQDM_%,$(.VARIABLES))",
        new="unexport NOTHING",
        breaks="what a shell has set keeps Python from starting",
        tests="makefile",
    ),
    Fault(
        "minifunc/report/page.py",
        old='len(text.encode(errors="replace"))',
        new="len(text.encode())",
        breaks="no report where a folder's name is no UTF-8",
        tests="report",
    ),
    # ---- what blind faults went through at first
    Fault(
        "commands/check.py",
        old="manual_seed(MOST_SEED - seed)",
        new="manual_seed(seed)",
        breaks="the checks ask the prompts that were traced",
        tests="stated_commands",
    ),
    Fault(
        "commands/smollm.py",
        old="draw(self.tokenizer, self.amount.n_fresh, shots, seed=10 + number)",
        new="draw(self.tokenizer, self.amount.n_fresh, shots, seed=10)",
        breaks="fresh draws of prompts are one and the same",
        tests="real_models",
    ),
    Fault(
        "tasks.py",
        old="found = (k[:, :2, None] == unshown).all(1).any(1)",
        new="found = (k[:, :2, None] == unshown).any(2).all(1)",
        breaks="two examples off by two different unshown shifts count as held out",
        tests="stated_draws",
    ),
    Fault(
        "experiments/runs.py",
        old='return run.settings() | {"quick": self.quick, "criteria": vars(Criteria())}',
        new='return run.settings() | {"quick": self.quick}',
        breaks="rows of other criteria are taken as done",
        tests="stated_experiments",
    ),
    Fault(
        "minifunc/report/circuit.js",
        old="const most = Math.max(0.3, ...outs.map(Math.abs));",
        new="const most = Math.max(0.3, ...outs);",
        breaks="the scale of widths ignores lines that lead back",
        tests="page_scripts",
    ),
]


def copy_of_the_tree(place: Path) -> Path:
    """The source and tests, without runs, environments and caches."""
    left_out = shutil.ignore_patterns(".*", "out", "build", "dist", "__pycache__", "*.egg-info")
    return Path(shutil.copytree(ROOT, place / "tree", ignore=left_out))


def fails(tree: Path, tests: list[str], limit: int) -> bool:
    """Whether pytest finds a failing test in `tree`, or takes longer than `limit` seconds.

    It is forked, so that torch is imported once for all.
    """
    child = os.fork()
    if child == 0:
        signal.alarm(limit)  # which ends the process
        os.chdir(tree)
        os.environ["PYTHONPATH"] = str(tree)
        sys.path[:0] = [str(tree), str(tree / "tests")]
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        os._exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]))
    return os.waitpid(child, 0)[1] != 0


def try_out(fault: Fault, tree: Path, named_only: bool, limit: int) -> str:
    """Puts a fault into the copy `tree` and takes it out again: who caught it."""
    source = (ROOT / fault.file).read_text()
    (tree / fault.file).write_text(source.replace(fault.old, fault.new))
    try:
        if fails(tree, fault.test_files(), limit):
            return "caught"
        if not named_only and fails(tree, ["--deselect", THE_LIST], limit):
            return "caught elsewhere"
        return "MISSED"
    finally:
        (tree / fault.file).write_text(source)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.robustness.mutations",
        description=f"{__doc__} Exit code 1 if, of all {len(FAULTS)} faults, fewer than {LEAST} "
        "are caught, or, of some, not all.",
    )
    parser.add_argument(
        "--only", type=int, nargs="+", metavar="N", help="these faults alone, by number from 0"
    )
    parser.add_argument(
        "--named-only",
        action="store_true",
        help="don't run the other tests where the named ones miss a fault",
    )
    parser.add_argument(
        "--unchecked", action="store_true", help="don't run the named tests without any fault first"
    )
    parser.add_argument(
        "--limit",
        type=int,
        default=900,
        metavar="SECONDS",
        help="for one run of pytest; one that takes longer counts as caught (default: 900)",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = make_parser()
    arguments = parser.parse_args(argv)
    numbers = range(len(FAULTS)) if arguments.only is None else arguments.only
    if not all(0 <= number < len(FAULTS) for number in numbers):
        parser.error(f"the faults are numbered from 0 to {len(FAULTS) - 1}")
    sys.dont_write_bytecode = True
    caught = 0
    with tempfile.TemporaryDirectory() as place:
        tree = copy_of_the_tree(Path(place))
        named = sorted({file for number in numbers for file in FAULTS[number].test_files()})
        if not arguments.unchecked and fails(tree, named, arguments.limit):
            print("error: the tests fail without any fault", file=sys.stderr)
            return 2
        for number in numbers:
            fault, start = FAULTS[number], time.monotonic()
            found = try_out(fault, tree, arguments.named_only, arguments.limit)
            caught += found != "MISSED"
            seconds = time.monotonic() - start
            print(
                f"{number:3} {found:16} {seconds:6.1f} s  {fault.file}: {fault.breaks}", flush=True
            )
    print(f"{caught} of {len(numbers)} faults caught")
    return 0 if caught >= (LEAST if arguments.only is None else len(numbers)) else 1


if __name__ == "__main__":
    sys.exit(main())
