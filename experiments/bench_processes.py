"""What is measured in processes of its own: peak memory, and what a second process brings.

Run as a command, it is one of these processes: it gets a task and a sweep, and prints JSON.
"""

import json
import os
import pickle
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from experiments.bench_sweep import Sweep
from minifunc.support.processes import any_process, is_main, join, run_together

ROOT = Path(__file__).parent.parent


def peak_memory(sweep: Sweep, device: torch.device) -> float:
    """Peak memory of a sweep beside weights and prompts, in GiB, measured in a fresh process.

    CUDA: what was allocated. CPU: growth of the resident set.
    """
    return float(_in_fresh_process("memory", sweep, device))


def compare_processes(sweep: Sweep, repeats: int) -> tuple[float, float, float]:
    """One process and two, of one thread each, in turn.

    Returns the median seconds of one and of two, and the largest difference of r.
    """
    seconds: dict[int, list[float]] = {1: [], 2: []}
    r: dict[int, torch.Tensor] = {}
    for _ in range(repeats):
        for n in seconds:
            found = _in_fresh_process("seconds", sweep, torch.device("cpu"), n)
            seconds[n].append(found["seconds"])
            r[n] = torch.tensor(found["r"], dtype=torch.float64)
    one, two = (statistics.median(seconds[n]) for n in (1, 2))
    return one, two, (r[1] - r[2]).abs().max().item()


def _in_fresh_process(
    task: str, sweep: Sweep, device: torch.device, n_processes: int | None = None
) -> Any:
    """What this file prints as a command. n_processes: under torchrun, with one thread each."""
    launcher, environment = [], dict(os.environ)
    if n_processes is not None:
        launcher = [
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={n_processes}",
        ]
        environment["OMP_NUM_THREADS"] = "1"
    handed_over = pickle.dumps((sweep, device)).hex()
    command = [sys.executable, *launcher, "-m", "experiments.bench_processes", task, handed_over]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the process for {task} failed: {done.stderr[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


# ---------------------------------------------------------------- in the fresh process


def _seconds(sweep: Sweep, device: torch.device) -> dict[str, Any]:
    """Of one sweep, all processes together; and its r."""
    model, pairs = sweep.model(device), sweep.pairs()
    replace(sweep, receivers=sweep.receivers[:1]).run(model, pairs)  # to warm up
    any_process(False)  # all begin together
    started = time.perf_counter()
    found = sweep.run(model, pairs)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "r": [effects.r.tolist() for effects in found.values()]}


def _memory(sweep: Sweep, device: torch.device) -> float:
    """Peak of one sweep, GiB."""
    narrow = replace(sweep.cfg, d_model=16, d_head=2, d_mlp=16)
    small = replace(sweep, cfg=narrow, n_prompts=1, max_memory=None)
    model, pairs = sweep.model(device), sweep.pairs()
    small.run(small.model(device), small.pairs())  # what libraries take once is not the sweep's
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        sweep.run(model, pairs)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**30
    before = _resident("VmRSS")
    sweep.run(model, pairs)
    return max(0, _resident("VmHWM") - before) / 2**30


def _resident(which: str) -> int:
    """Bytes of the resident set, now (VmRSS) or at its peak (VmHWM)."""
    try:  # getrusage's peak would include that of the parent process, which Linux hands on
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(which))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _main() -> int:
    task, handed_over = sys.argv[1:]
    sweep, device = pickle.loads(bytes.fromhex(handed_over))
    measure = {"memory": _memory, "seconds": _seconds}[task]
    found = measure(sweep, join(device))
    if is_main():
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(run_together(_main))
