"""Runs every command, each in a copy of this process, for test_surroundings.py.

`python surroundings.py FACTS`: the file FACTS gets, for each command, its exit code, and from where
to where it has written into stdout and stderr, which are plain files.
"""

import json
import os
import shlex
import sys
import traceback
from pathlib import Path

import torch
import torch._dynamo  # noqa: F401  (else the first optimizer of each copy would load it)

import patch
import train
from commands import ask, check, reference
from experiments import (
    bench,
    dependability,
    diets,
    emergence,
    experiment,
    precursor,
    seeds,
    universality,
    unseen_shifts,
)
from minifunc.analysis import averaging, completeness, shift_swap, study
from minifunc.report import page

ROOT = Path(__file__).parents[2]  # by the name that it was called by
TINY = "--steps=4 --documents=4 --eval-every=2 --table-prompts=8 --device=cpu --n-layers=2"
TINY += " --n-heads=2 --d-model=16 --d-head=8 --d-mlp=16"
FEW = "--prompts=2 --shots=2 --strong=0.3 --device=cpu"


def figures(argv):
    """Needs matplotlib, and looks for it as it is imported."""
    from experiments import figures

    return figures.main(argv)


def experiments():
    made = (diets, emergence, precursor, universality, dependability, seeds, unseen_shifts)
    for module in made:
        run = module.EXPERIMENT
        yield f"experiments.{run.name}", lambda argv, run=run: experiment.main(run, argv)


MAINS = {
    "train": train.main,
    "patch": patch.main,
    "check": check.main,
    "ask": ask.main,
    "report": page.main,
    "reference": reference.main,
    "bench": bench.main,
    "figures": figures,
    **dict(experiments()),
}
# What each really does; without --run, on the reference run. Of the experiments, the longest of
# all, only what --help shows is wanted here.
WORK = {
    "train": f"--out=run {TINY}",
    "train resumed": "--out=run --resume --table-prompts=8 --device=cpu",
    "patch": FEW,
    "check": "--device=cpu",
    "ask": "--device=cpu",
    "report": "",
    "report of the reference": f"--run {shlex.quote(str(ROOT / 'reference'))}",
    "reference": f"--reference=mine {TINY}",
}
COMMANDS = {name: shlex.split(words) for name, words in WORK.items()}
COMMANDS |= {f"{name} --help": ["--help"] for name in MAINS}
COMMANDS |= {f"{name} --nonsense": ["--nonsense"] for name in MAINS}


def make_small() -> None:
    """Few prompts everywhere, and no more threads than one."""
    torch.set_num_threads(1)
    patch.N_DRAWS, patch.N_COUNTED, patch.N_EVALUATED, patch.N_SEARCH = 2, 8, 8, 4
    patch.REUSED[1:] = []
    completeness.N_CONTROLS = completeness.MOST_GREEDY = 2
    completeness.ELIMINATED.popitem()
    completeness.ELIMINATED.popitem()
    shift_swap.N_PROMPTS, shift_swap.N_DRAWS = 40, 1
    averaging.N_PROMPTS, averaging.SCOPE = 16, (1,)
    study.N_DRAWS, study.N_REUSED, study.N_EXAMPLES = 1, 8, 400
    check.N_PROMPTS = check.N_EACH = check.LEAST = 8
    train.SHOTS = (1,)


def size(number: int) -> int | None:
    """Bytes written so far to the open file of this number; None where there is none."""
    try:
        return os.fstat(number).st_size
    except OSError:
        return None


def run(main, argv) -> int:
    """The exit code of a command that runs in a copy of this process."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        code = main(argv)
    except SystemExit as leaving:
        code = leaving.code or 0
    except BaseException:
        traceback.print_exc()
        code = 99
    for stream in (sys.stdout, sys.stderr):
        if stream:
            stream.flush()
    os._exit(code)


def run_all(path: Path) -> None:
    facts = {}
    for name, argv in COMMANDS.items():
        before = [size(1), size(2)]
        code = run(MAINS[name.split()[0]], argv)
        facts[name] = {"code": code, "printed": [before, [size(1), size(2)]]}
    path.write_text(json.dumps(facts))


if __name__ == "__main__":
    make_small()
    run_all(Path(sys.argv[1]))
