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
LEAST = 28  # caught, for exit code 0 of a run over all faults
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
        old="masked_fill(keys > queries[:, None], -torch.inf)",
        new="masked_fill(keys > queries[:, None] + 1, -torch.inf)",
        breaks="written-out attention sees one token ahead",
        tests="model",
    ),
    Fault(
        "minifunc/model.py",
        old="else keys <= queries[:, None]",
        new="else keys <= queries[:, None] + 1",
        breaks="fused attention at chosen positions sees one token ahead",
        tests="model",
    ),
    Fault(
        "minifunc/model.py",
        old="/ math.sqrt(self.cfg.d_head)\n        return",
        new="/ math.sqrt(self.cfg.d_model)\n        return",
        breaks="scores are scaled by the width of the model",
        tests="model",
    ),
    Fault(
        "minifunc/model.py",
        old="F.rms_norm(x, self.w.shape, eps=self.eps)",
        new="F.rms_norm(x, self.w.shape)",
        breaks="the RMS norm forgets eps",
        tests="model",
    ),
    Fault(
        "minifunc/model.py",
        old="F.layer_norm(x, self.w.shape, self.w, eps=self.eps)",
        new="F.layer_norm(x, self.w.shape, self.w)",
        breaks="the layer norm forgets eps",
        tests="model",
    ),
    Fault(
        "minifunc/model.py",
        old="rotate(x, positions, self.cfg.rotary_base)",
        new="rotate(x, positions, 10000.0)",
        breaks="the rotary base of the config is ignored",
        tests="model",
    ),
    Fault(
        "minifunc/model.py",
        old="(-torch.arange(pairs, device=x.device, dtype=wide.dtype) / pairs)",
        new="(-torch.arange(pairs, device=x.device, dtype=wide.dtype) / x.shape[-1])",
        breaks="rotary angles fall half as fast",
        tests="model",
    ),
    Fault(
        "minifunc/model.py",
        old="self.position(k, keys[n_past:])",
        new="self.position(k, keys[: x.shape[1]])",
        breaks="keys after a past are placed from 0 again",
        tests="model",
    ),
    Fault(
        "minifunc/model.py",
        old="kept = resid if len(queries) == resid.shape[1] else resid[:, queries - n_past]",
        new="kept = resid if len(queries) == resid.shape[1] else resid[:, queries - n_past - 1]",
        breaks="the stream beside attention is that of the position before",
        tests="model",
    ),
    Fault(
        "minifunc/model.py",
        old="return hooks(kept + attn_out,",
        new="return hooks(kept - attn_out,",
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
    Fault(
        "minifunc/model.py",
        old="unseen = self.relu and not hooks.wants(",
        new="unseen = self.relu and hooks.wants(",
        breaks="what hook_pre shows is overwritten",
        tests="model",
    ),
    # ---- the path patcher
    Fault(
        "minifunc/patching.py",
        old="total.mean(dim=1) / self.F_range",
        new="-total.mean(dim=1) / self.F_range",
        breaks="the sign of r",
        tests="patching",
    ),
    Fault(
        "minifunc/patching.py",
        old='block.ln1(chunk.at(receiver.layer, "hook_resid_pre") + delta, Hooks())',
        new=(
            'block.ln1(chunk.at(receiver.layer, "hook_resid_pre"), Hooks()) + delta * '
            'chunk.at(receiver.layer, "hook_resid_pre").square().mean(-1, '
            "keepdim=True).rsqrt() * block.ln1.w"
        ),
        breaks="the scale of the receiver's norm is frozen",
        tests="patching",
    ),
    Fault(
        "minifunc/patching.py",
        old="block.mlp(block.ln2(resid + sent, none), none) - after",
        new="block.mlp(block.ln2(sent, none), none) - after",
        breaks="live MLPs read the change alone",
        tests="patching",
    ),
    Fault(
        "minifunc/patching.py",
        old="attn.W_O[head]\n\n        def below",
        new="attn.W_O[0]\n\n        def below",
        breaks="every head sends through the first head's W_O",
        tests="patching",
    ),
    Fault(
        "minifunc/patching.py",
        old="@ attn.W_O[head]\n\n    def _overwrite",
        new="@ attn.W_O[head - 1]\n\n    def _overwrite",
        breaks="a changed head writes through its neighbour's W_O",
        tests="patching",
    ),
    Fault(
        "minifunc/patching.py",
        old="x[:, :, receiver.head] = torch.where",
        new="x[:, :, receiver.head - 1] = torch.where",
        breaks="pass 2 overwrites the head beside",
        tests="patching",
    ),
    Fault(
        "minifunc/patching.py",
        old='turned(new["k"], keys[self.first :])',
        new='turned(new["k"], keys[: len(keys) - self.first])',
        breaks="patched keys are placed as if nothing came before",
        tests="patching",
    ),
    Fault(
        "minifunc/patching.py",
        old="scores.masked_fill(keys > queries[:, None], -torch.inf)",
        new="scores.masked_fill(keys >= queries[:, None] + 2, -torch.inf)",
        breaks="a recomputed head sees one token ahead",
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
        old="totals[index][some[: len(change)], chunk.prompts]",
        new="totals[index][some[: len(change)], : change.shape[1]]",
        breaks="every chunk writes over the first one",
        tests="patching",
    ),
    Fault(
        "minifunc/patching.py",
        old="1 + layer * (self.cfg.n_heads + self.cfg.has_mlp)",
        new="layer * (self.cfg.n_heads + self.cfg.has_mlp)",
        breaks="senders are counted without the embedding",
        tests="patching",
    ),
    # ---- the paired runs
    Fault(
        "minifunc/pairs.py",
        old="change = source[:, where] - contrast[:, where]",
        new="change = contrast[:, where] - source[:, where]",
        breaks="a sender sends the change the wrong way round",
        tests="patching",
    ),
    Fault(
        "minifunc/pairs.py",
        old="return picked[..., 0] - picked[..., 1]",
        new="return picked[..., 1] - picked[..., 0]",
        breaks="the sign of F",
        tests="patching",
    ),
    Fault(
        "minifunc/pairs.py",
        old="(x / self.n_prompts).to(",
        new="(x / self.prompts_per_chunk).to(",
        breaks="the mean is over one chunk's number of prompts",
        tests="patching",
    ),
    Fault(
        "minifunc/pairs.py",
        old="min(start + self.prompts_per_chunk, self.own.stop)",
        new="min(start + self.prompts_per_chunk, self.own.stop - 1)",
        breaks="the last prompt is left out",
        tests="patching",
    ),
    Fault(
        "minifunc/pairs.py",
        old="return 0  # a mean differs",
        new="return 1  # a mean differs",
        breaks="what a mean changes at the first position is lost",
        tests="patching",
    ),
    Fault(
        "minifunc/pairs.py",
        old="return int(differs.int().argmax()) if",
        new="return int(differs.int().argmax()) + 1 if",
        breaks="the sweep starts after the first change",
        tests="patching",
    ),
    # ---- from effects to claims
    Fault(
        "minifunc/analysis/attribution.py",
        old="cut if patcher.freeze_mlps else watch",
        new="watch if patcher.freeze_mlps else cut",
        breaks="gradients stop at live MLPs and pass frozen ones",
        tests="attribution",
    ),
    Fault(
        "minifunc/circuit.py",
        old="if r < 0 and looks",
        new="if looks",
        breaks="a head that moves towards the base answer is called FI",
        tests="circuit",
    ),
    Fault(
        "minifunc/circuit.py",
        old="pattern[:, :, answers, answers - 1].mean(-1)",
        new="pattern[:, :, answers, answers].mean(-1)",
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
        "minifunc/ablation.py",
        old="self._stream(run, replaced[index])",
        new="self._stream(run, replaced[0])",
        breaks="every group is ablated as the first one is",
        tests="ablation",
    ),
    Fault(
        "minifunc/ablation.py",
        old="sent = self.sent[run.how][layer]",
        new="sent = next(iter(self.sent.values()))[layer]",
        breaks="whatever the source, the first one is put in",
        tests="ablation",
    ),
    Fault(
        "minifunc/ablation.py",
        old="sent[run.start : run.start + self.rows] if",
        new="sent[: len(stream)] if",
        breaks="prompts beyond the first pass get the first ones' values",
        tests="ablation",
    ),
    Fault(
        "minifunc/ablation.py",
        old="self.share(score.F - self.none.F)",
        new="self.share(self.full.F - score.F)",
        breaks="faithfulness is one less itself",
        tests="completeness",
    ),
    Fault(
        "minifunc/ablation.py",
        old="[[head for head in self.heads if head not in circuit] for circuit in new]",
        new="[[head for head in self.heads if head in circuit] for circuit in new]",
        breaks="the circuit is replaced in place of the rest",
        tests="completeness",
    ),
    Fault(
        "minifunc/support/evaluation.py",
        old="torch.tensor([tokens.shape[1] - 1], device=device)",
        new="torch.tensor([tokens.shape[1] - 2], device=device)",
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
        "minifunc/analysis/probe.py",
        old="(y - y.mean(0)).square()",
        new="y.square()",
        breaks="R² is measured around zero",
        tests="probe",
    ),
    Fault(
        "minifunc/analysis/probe.py",
        old="shuffled[:half]",
        new="shuffled[: half + 1]",
        breaks="a prompt is fitted and scored",
        tests="probe",
    ),
    Fault(
        "minifunc/analysis/function_vectors.py",
        old="diagonal(zero + k)",
        new="diagonal(zero - k)",
        breaks="cells of x - k are read for x + k",
        tests="function_vectors",
    ),
    Fault(
        "minifunc/analysis/function_vectors.py",
        old="vectors[:, layer] if replace",
        new="old + vectors[:, layer] if replace",
        breaks="a vector is added where it should replace",
        tests="function_vectors",
    ),
    Fault(
        "minifunc/analysis/reading.py",
        old="-x.shape[1] :, head]",
        new=": x.shape[1], head]",
        breaks="the last block's q comes from the first position",
        tests="reading",
    ),
    # ---- files
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
    # ---- what is asked
    Fault(
        "tasks.py",
        old='NEVER = {"shift": ("+", CHOICE)',
        new='NEVER = {"shift": (CHOICE,)',
        breaks="shifted addition is shown",
        tests="tasks",
    ),
    Fault(
        "tasks.py",
        old="wrapper == WRAPPERS.index(name)) & ~(",
        new="wrapper == WRAPPERS.index(name)) & (",
        breaks="a held-out cell is not held out",
        tests="tasks",
    ),
    Fault(
        "tasks.py",
        old="answer = torch.where(unlucky[:, None], value, answer)",
        new="answer = torch.where(unlucky[:, None] & (value < 0), value, answer)",
        breaks="chance shows what must never be shown",
        tests="tasks",
    ),
    Fault(
        "tasks.py",
        old="(rank.amax(1) >= 2) & (first == second)",
        new="(rank.amax(1) >= 3) & (first == second)",
        breaks="documents with two examples of `+` escape the rule",
        tests="tasks",
    ),
    Fault(
        "tasks.py",
        old="torch.where(function == PLUS, PROBLEMS.starts[PLUS] + evenly, problem)",
        new="torch.where(function < PLUS, PROBLEMS.starts[PLUS] + evenly, problem)",
        breaks="sums are drawn by pairs all the same",
        tests="diets",
    ),
    Fault(
        "tasks.py",
        old="value + (10 - k) * (value // k)",
        new="value + (10 - k) * (value // 10)",
        breaks="carrying in base k happens at ten",
        tests="tasks",
    ),
    Fault(
        "tasks.py",
        old="repeated = (shown[:, :, None] == shown[:, None]).tril(-1)",
        new="repeated = (shown[:, :, None] == shown[:, None]).tril(0)",
        breaks="an answer counts as determined by itself",
        tests="tasks",
    ),
    Fault(
        "tasks.py",
        old="others = (value[usable] != value[query]).float()",
        new="others = (value[usable] == value[query]).float()",
        breaks="the asked answer is among the shown ones",
        tests="tasks",
    ),
    Fault(
        "tasks.py",
        old="return 5 + EXAMPLE * torch.arange(n_examples)",
        new="return 4 + EXAMPLE * torch.arange(n_examples)",
        breaks="answers are looked for at their `=`",
        tests="tasks",
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
