"""What one of several processes does.

test_processes.py starts it under torchrun, and calls `study` itself for comparison.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch

import patch
import tasks
import train
from minifunc.model import Transformer
from minifunc.support import checkpoints, errors, files, runs
from minifunc.support.processes import (
    all_sum,
    any_process,
    is_main,
    join,
    rank,
    run_together,
    share,
)

MODEL = {"n_layers": 2, "n_heads": 2, "d_model": 16, "d_head": 8, "d_mlp": 16, "n_ctx": 103}
TRAIN = {"seed": 3, "steps": 6, "documents": 5, "long_every": 2, "warmup": 2, "eval_every": 3}
ALWAYS = {"device": "cpu", "table_prompts": 8}


def flags(**values):
    words = []
    for name, value in values.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return words


def study(out: Path) -> list[int]:
    """Trains a run in peace and one with an interruption, traces the first; the exit codes."""
    settings = flags(**MODEL, **TRAIN, **ALWAYS, lr=0.01)
    codes = [train.main(["--out", str(out / "whole"), *settings])]
    sample, calls = tasks.sample, []
    hears = (1, int(os.environ.get("WORLD_SIZE", 1)) - 1)  # one process alone is told to stop

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 2 and rank() in hears:
            signal.raise_signal(signal.SIGINT)
        return sample(*arguments)

    tasks.sample = interrupted
    codes.append(train.main(["--out", str(out / "resumed"), *settings]))
    tasks.sample = sample
    any_process(False)  # wait until the files are there
    codes.append(train.main(["--out", str(out / "resumed"), "--resume", *flags(**ALWAYS)]))
    any_process(False)
    traced = flags(run=out / "whole", device="cpu", prompts=6, shots=2)
    codes.append(patch.main(traced))
    return codes


def quick() -> None:
    """A small closing table, in float64: what processes compute may differ by rounding alone."""
    evaluate = train.evaluate
    train.evaluate = lambda model, n_prompts, every_task: evaluate(model, 8, every_task=False)
    train.Transformer = runs.Transformer = lambda *arguments: Transformer(*arguments).double()


def work() -> int:
    what, out = sys.argv[1], Path(sys.argv[2])
    join(torch.device("cpu"))
    any_process(False)  # both have met
    if what == "die" and rank() == 1:
        os._exit(7)
    count = torch.tensor([[1.0, 10.0 ** rank()]], dtype=torch.float64)
    number = torch.tensor(rank() + 0.5, dtype=torch.float64)
    all_sum(count, number)
    quick()
    checkpoints.join = patch.join = lambda device: device  # they have met already
    train.run_together = patch.run_together = errors.run_main
    if not is_main():
        files.write_file = lambda path, write: sys.exit(f"a second process writes {path}")
    facts = {"share": list(share(range(5))), "sum": count.tolist(), "number": number.item()}
    facts |= {"any": any_process(rank() == 1), "none": any_process(False)}
    facts["codes"] = study(out)
    (out / f"facts{rank()}.json").write_text(json.dumps(facts))
    print("the end")
    train.run_together = lambda work: work()
    return train.main(flags(out=out / "new", device="cpu", diet="keto"))  # a user's mistake


if __name__ == "__main__":
    sys.exit(run_together(work))
