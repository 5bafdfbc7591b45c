"""Do the tests notice? Faults are put into a copy of the source, one at a time, and the tests are run on each: `make mutations`.

A fault is caught if a test of the named files fails, or else any other test. tests/test_mutations.py keeps the list in step with the source.
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
LEAST = 28  # caught, for exit code 0 of a run over all faults


class Fault(NamedTuple):
    """`old` occurs once in `file`; with `new` in its place, `breaks` says what is wrong and `tests` (without test_ and .py) should notice."""

    file: str
    old: str
    new: str
    breaks: str
    tests: tuple[str, ...]


FAULTS = [
    # ---- the transformer
    Fault(
        "minifunc/model.py",
        "masked_fill(keys > queries[:, None], -torch.inf)",
        "masked_fill(keys > queries[:, None] + 1, -torch.inf)",
        "written-out attention sees one token ahead",
        ("model",),
    ),
    Fault(
        "minifunc/model.py",
        "else keys <= queries[:, None]",
        "else keys <= queries[:, None] + 1",
        "fused attention at chosen positions sees one token ahead",
        ("model",),
    ),
    Fault(
        "minifunc/model.py",
        "/ math.sqrt(self.cfg.d_head)\n        return",
        "/ math.sqrt(self.cfg.d_model)\n        return",
        "scores are scaled by the width of the model",
        ("model",),
    ),
    Fault(
        "minifunc/model.py",
        "F.rms_norm(x, self.w.shape, eps=self.eps)",
        "F.rms_norm(x, self.w.shape)",
        "the RMS norm forgets eps",
        ("model",),
    ),
    Fault(
        "minifunc/model.py",
        "F.layer_norm(x, self.w.shape, self.w, eps=self.eps)",
        "F.layer_norm(x, self.w.shape, self.w)",
        "the layer norm forgets eps",
        ("model",),
    ),
    Fault(
        "minifunc/model.py",
        "rotate(x, positions, self.cfg.rotary_base)",
        "rotate(x, positions, 10000.0)",
        "the rotary base of the config is ignored",
        ("model",),
    ),
    Fault(
        "minifunc/model.py",
        "(-torch.arange(pairs, device=x.device, dtype=wide.dtype) / pairs)",
        "(-torch.arange(pairs, device=x.device, dtype=wide.dtype) / x.shape[-1])",
        "rotary angles fall half as fast",
        ("model",),
    ),
    Fault(
        "minifunc/model.py",
        "self.position(k, keys[n_past:])",
        "self.position(k, keys[: x.shape[1]])",
        "keys after a past are placed from 0 again",
        ("model",),
    ),
    Fault(
        "minifunc/model.py",
        "kept = resid if len(queries) == resid.shape[1] else resid[:, queries - n_past]",
        "kept = resid if len(queries) == resid.shape[1] else resid[:, queries - n_past - 1]",
        "the stream beside attention is that of the position before",
        ("model",),
    ),
    Fault(
        "minifunc/model.py",
        "return hooks(kept + attn_out,",
        "return hooks(kept - attn_out,",
        "attention is taken from the stream",
        ("model",),
    ),
    Fault(
        "minifunc/model.py",
        "std /= math.sqrt(2 * cfg.n_layers)",
        "pass",
        "weights that write into the stream start large",
        ("model",),
    ),
    Fault(
        "minifunc/model.py",
        "unseen = self.relu and not hooks.wants(",
        "unseen = self.relu and hooks.wants(",
        "what hook_pre shows is overwritten",
        ("model",),
    ),
    # ---- the path patcher
    Fault(
        "minifunc/patching.py",
        "total.mean(dim=1) / self.F_range",
        "-total.mean(dim=1) / self.F_range",
        "the sign of r",
        ("patching",),
    ),
    Fault(
        "minifunc/patching.py",
        'block.ln1(chunk.at(receiver.layer, "hook_resid_pre") + delta, Hooks())',
        'block.ln1(chunk.at(receiver.layer, "hook_resid_pre"), Hooks()) + delta * chunk.at(receiver.layer, "hook_resid_pre").square().mean(-1, keepdim=True).rsqrt() * block.ln1.w',
        "the scale of the receiver's norm is frozen",
        ("patching",),
    ),
    Fault(
        "minifunc/patching.py",
        "block.mlp(block.ln2(resid + sent, none), none) - after",
        "block.mlp(block.ln2(sent, none), none) - after",
        "live MLPs read the change alone",
        ("patching",),
    ),
    Fault(
        "minifunc/patching.py",
        "attn.W_O[head]\n\n        def below",
        "attn.W_O[0]\n\n        def below",
        "every head sends through the first head's W_O",
        ("patching",),
    ),
    Fault(
        "minifunc/patching.py",
        "@ attn.W_O[head]\n\n    def _overwrite",
        "@ attn.W_O[head - 1]\n\n    def _overwrite",
        "a changed head writes through its neighbour's W_O",
        ("patching",),
    ),
    Fault(
        "minifunc/patching.py",
        "x[:, :, receiver.head] = torch.where",
        "x[:, :, receiver.head - 1] = torch.where",
        "pass 2 overwrites the head beside",
        ("patching",),
    ),
    Fault(
        "minifunc/patching.py",
        'turned(new["k"], keys[self.first :])',
        'turned(new["k"], keys[: len(keys) - self.first])',
        "patched keys are placed as if nothing came before",
        ("patching",),
    ),
    Fault(
        "minifunc/patching.py",
        "scores.masked_fill(keys > queries[:, None], -torch.inf)",
        "scores.masked_fill(keys >= queries[:, None] + 2, -torch.inf)",
        "a recomputed head sees one token ahead",
        ("patching",),
    ),
    Fault(
        "minifunc/patching.py",
        "self.freeze_mlps = freeze_mlps or",
        "self.freeze_mlps = not freeze_mlps or",
        "frozen and live MLPs are mixed up",
        ("patching",),
    ),
    Fault(
        "minifunc/patching.py",
        "totals[index][some[: len(change)], chunk.prompts]",
        "totals[index][some[: len(change)], : change.shape[1]]",
        "every chunk writes over the first one",
        ("patching",),
    ),
    Fault(
        "minifunc/patching.py",
        "1 + layer * (self.cfg.n_heads + self.cfg.has_mlp)",
        "layer * (self.cfg.n_heads + self.cfg.has_mlp)",
        "senders are counted without the embedding",
        ("patching",),
    ),
    # ---- the paired runs
    Fault(
        "minifunc/pairs.py",
        "change = source[:, where] - contrast[:, where]",
        "change = contrast[:, where] - source[:, where]",
        "a sender sends the change the wrong way round",
        ("patching",),
    ),
    Fault(
        "minifunc/pairs.py",
        "return picked[..., 0] - picked[..., 1]",
        "return picked[..., 1] - picked[..., 0]",
        "the sign of F",
        ("patching",),
    ),
    Fault(
        "minifunc/pairs.py",
        "(x / self.n_prompts).to(",
        "(x / self.prompts_per_chunk).to(",
        "the mean is over one chunk's number of prompts",
        ("patching",),
    ),
    Fault(
        "minifunc/pairs.py",
        "min(start + self.prompts_per_chunk, self.own.stop)",
        "min(start + self.prompts_per_chunk, self.own.stop - 1)",
        "the last prompt is left out",
        ("patching",),
    ),
    Fault(
        "minifunc/pairs.py",
        "return 0  # a mean differs",
        "return 1  # a mean differs",
        "what a mean changes at the first position is lost",
        ("patching",),
    ),
    Fault(
        "minifunc/pairs.py",
        "return int(differs.int().argmax()) if",
        "return int(differs.int().argmax()) + 1 if",
        "the sweep starts after the first change",
        ("patching",),
    ),
    # ---- from effects to claims
    Fault(
        "minifunc/analysis/attribution.py",
        "cut if patcher.freeze_mlps else watch",
        "watch if patcher.freeze_mlps else cut",
        "gradients stop at live MLPs and pass frozen ones",
        ("attribution",),
    ),
    Fault(
        "minifunc/circuit.py",
        "if r <= -criteria.strong and",
        "if abs(r) >= criteria.strong and",
        "a head that moves towards the base answer is called FI",
        ("circuit",),
    ),
    Fault(
        "minifunc/circuit.py",
        "pattern[:, :, answers, answers - 1].mean(-1)",
        "pattern[:, :, answers, answers].mean(-1)",
        "previous-token attention is attention to oneself",
        ("circuit",),
    ),
    Fault(
        "minifunc/circuit.py",
        "if abs(r) > abs(strongest.get(name, 0.0))",
        "if r > strongest.get(name, 0.0)",
        "negative effects on a receiver are lost",
        ("circuit",),
    ),
    Fault(
        "minifunc/ablation.py",
        "masks[index, layer, head] = True",
        "masks[0, layer, head] = True",
        "all groups are ablated together in the first",
        ("ablation",),
    ),
    Fault(
        "minifunc/ablation.py",
        "torch.where(put, part.z[how][at][:, -z.shape[1] :], z",
        "torch.where(put, next(iter(part.z.values()))[at][:, -z.shape[1] :], z",
        "whatever the source, the first one is put in",
        ("ablation",),
    ),
    Fault(
        "minifunc/ablation.py",
        "self._run(source[rows], self._z) for name, source in sources.items()}",
        "self._run(source[: len(resid[0])], self._z) for name, source in sources.items()}",
        "prompts beyond the first pass get the first ones' values",
        ("ablation",),
    ),
    Fault(
        "minifunc/faithfulness.py",
        "self.share(score.F - self.none.F)",
        "self.share(self.full.F - score.F)",
        "faithfulness is one less itself",
        ("faithfulness",),
    ),
    Fault(
        "minifunc/faithfulness.py",
        "[[head for head in self.heads if head not in circuit] for circuit in new]",
        "[[head for head in self.heads if head in circuit] for circuit in new]",
        "the circuit is replaced in place of the rest",
        ("faithfulness",),
    ),
    Fault(
        "minifunc/support/evaluation.py",
        "torch.tensor([tokens.shape[1] - 1], device=model.device)",
        "torch.tensor([tokens.shape[1] - 2], device=model.device)",
        "answers are read a position early",
        ("evaluation",),
    ),
    Fault(
        "minifunc/analysis/scores.py",
        "queries[:, None] - period + 1",
        "queries[:, None] - period",
        "copy induction looks at the token itself",
        ("scores",),
    ),
    Fault(
        "minifunc/analysis/probe.py",
        "1 - (y - probe(x)).square().sum(0) / (y - y.mean(0))",
        "1 - (y - probe(x)).square().sum(0) / y",
        "R² is measured around zero",
        ("probe",),
    ),
    Fault(
        "minifunc/analysis/probe.py",
        "shuffled[: len(first) // 2], shuffled[len(first) // 2 :]",
        "shuffled[: len(first) // 2 + 1], shuffled[len(first) // 2 :]",
        "a prompt is fitted and scored",
        ("probe",),
    ),
    Fault(
        "minifunc/analysis/function_vectors.py",
        "rows + zero + k]",
        "rows + zero - k]",
        "cells of x - k are read for x + k",
        ("function_vectors",),
    ),
    Fault(
        "minifunc/analysis/function_vectors.py",
        "new[:, layer] if replace else here + new[:, layer]",
        "here + new[:, layer]",
        "a vector is added where it should replace",
        ("function_vectors",),
    ),
    Fault(
        "minifunc/analysis/reading.py",
        "other[name][:, -x.shape[1] :, head]",
        "other[name][:, : x.shape[1], head]",
        "the last block's q comes from the first position",
        ("reading",),
    ),
    Fault(
        "minifunc/support/files.py",
        "weights_only=True",
        "weights_only=False",
        "a weights file may run code",
        ("runs",),
    ),
    Fault(
        "minifunc/support/files.py",
        "os.replace(temporary, path)",
        "os.link(temporary, path)",
        "a file that is there already is not replaced",
        ("runs",),
    ),
    # ---- what is asked
    Fault(
        "tasks.py",
        'NEVER = {"shift": ("+", CHOICE)',
        'NEVER = {"shift": (CHOICE,)',
        "shifted addition is shown",
        ("tasks",),
    ),
    Fault(
        "tasks.py",
        "wrapper == WRAPPERS.index(name)) & ~(",
        "wrapper == WRAPPERS.index(name)) & (",
        "a held-out cell is not held out",
        ("tasks",),
    ),
    Fault(
        "tasks.py",
        "answer = torch.where(unlucky[:, None], value, answer)",
        "answer = torch.where(unlucky[:, None] & (value < 0), value, answer)",
        "chance shows what must never be shown",
        ("tasks",),
    ),
    Fault(
        "tasks.py",
        "(rank.amax(1) >= 2) & (first == second)",
        "(rank.amax(1) >= 3) & (first == second)",
        "documents with two examples of `+` escape the rule",
        ("tasks",),
    ),
    Fault(
        "tasks.py",
        "torch.where(function == PLUS, PROBLEMS.starts[PLUS] + evenly, problem)",
        "torch.where(function < PLUS, PROBLEMS.starts[PLUS] + evenly, problem)",
        "sums are drawn by pairs all the same",
        ("diets",),
    ),
    Fault(
        "tasks.py",
        "value + (10 - k) * (value // k)",
        "value + (10 - k) * (value // 10)",
        "carrying in base k happens at ten",
        ("tasks",),
    ),
    Fault(
        "tasks.py",
        "repeated = (shown[:, :, None] == shown[:, None]).tril(-1)",
        "repeated = (shown[:, :, None] == shown[:, None]).tril(0)",
        "an answer counts as determined by itself",
        ("tasks",),
    ),
    Fault(
        "tasks.py",
        "others = (value[usable] != value[query]).float()",
        "others = (value[usable] == value[query]).float()",
        "the asked answer is among the shown ones",
        ("tasks",),
    ),
    Fault(
        "tasks.py",
        "return 5 + EXAMPLE * torch.arange(n_examples)",
        "return 4 + EXAMPLE * torch.arange(n_examples)",
        "answers are looked for at their `=`",
        ("tasks",),
    ),
]


def copy_of_the_tree(place: Path) -> Path:
    """The source and tests, without runs, environments and caches."""
    left_out = shutil.ignore_patterns(".*", "out", "build", "dist", "__pycache__", "*.egg-info")
    return Path(shutil.copytree(ROOT, place / "tree", ignore=left_out))


def fails(tree: Path, tests: list[str], limit: int) -> bool:
    """Whether pytest finds a failing test in `tree` (or does not come to an end in `limit` seconds). Forked, so that torch is imported once for all."""
    child = os.fork()
    if child == 0:
        signal.alarm(limit)  # which ends the process
        os.chdir(tree)
        os.environ["PYTHONPATH"] = str(tree)
        sys.path[:0] = [str(tree), str(tree / "tests")]
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1), os.dup2(nowhere, 2)
        os._exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]))
    return os.waitpid(child, 0)[1] != 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.robustness.mutations",
        description=f"{__doc__} Exit code 1 if, of all {len(FAULTS)} faults, fewer than {LEAST} are caught, or, of some, not all.",
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
    arguments = parser.parse_args(argv)
    numbers = range(len(FAULTS)) if arguments.only is None else arguments.only
    if not all(0 <= number < len(FAULTS) for number in numbers):
        parser.error(f"the faults are numbered from 0 to {len(FAULTS) - 1}")
    sys.dont_write_bytecode, caught = True, 0
    with tempfile.TemporaryDirectory() as place:
        tree = copy_of_the_tree(Path(place))
        named = sorted(
            {f"tests/test_{name}.py" for number in numbers for name in FAULTS[number].tests}
        )
        if not arguments.unchecked and fails(tree, named, arguments.limit):
            print("error: the tests fail without any fault", file=sys.stderr)
            return 2
        for number in numbers:
            fault, start = FAULTS[number], time.monotonic()
            path, source = tree / fault.file, (ROOT / fault.file).read_text()
            path.write_text(source.replace(fault.old, fault.new))
            by_named = fails(
                tree, [f"tests/test_{name}.py" for name in fault.tests], arguments.limit
            )
            found = by_named or (
                not arguments.named_only
                and fails(tree, ["--deselect", "tests/test_mutations.py"], arguments.limit)
            )
            path.write_text(source)
            caught += found
            print(
                f"{number:3} {'caught' if by_named else 'caught elsewhere' if found else 'MISSED':16} {time.monotonic() - start:6.1f} s  {fault.file}: {fault.breaks}",
                flush=True,
            )
    print(f"{caught} of {len(numbers)} faults caught")
    return 0 if caught >= (LEAST if arguments.only is None else len(numbers)) else 1


if __name__ == "__main__":
    sys.exit(main())
