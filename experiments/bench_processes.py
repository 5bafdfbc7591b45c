"""What a second process brings: the sweep of all heads → v, q, k of every head, by one process of one thread and by two (torchrun, gloo).

Run as a command, it is one of the processes: it meets the others, sweeps, and the first one prints seconds and r as JSON.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

import tasks
from minifunc.support.processes import any_process, is_main, join, run_together
from minifunc.model import ModelConfig, Transformer
from minifunc.patching import HeadInput, PathPatcher

PROMPTS, SHOTS = 100, 8


def row(cfg: ModelConfig, repeats: int) -> dict[str, Any]:
    """The row of results/bench.json: `ours` are two processes, `other` is one; each has one thread. They take turns."""
    took: dict[int, list[float]] = {1: [], 2: []}
    r: dict[int, torch.Tensor] = {}
    for _ in range(repeats):
        for n in took:
            found = _started(n, cfg)
            took[n].append(found["seconds"])
            r[n] = torch.tensor(found["r"], dtype=torch.float64)
    one, two = (statistics.median(took[n]) for n in (1, 2))
    shape = {
        "name": "default",
        **{
            name: getattr(cfg, name)
            for name in ("n_layers", "n_heads", "d_model", "d_head", "d_mlp")
        },
        "prompts": PROMPTS,
    }
    return {
        "work": "two processes: all heads → v, q, k",
        "model": shape,
        "ours_s": two,
        "other": "one process, one thread each",
        "other_s": one,
        "ratio": one / two,
        "max_abs_diff": (r[1] - r[2]).abs().max().item(),
        "peak_gib": None,
    }


def _started(n: int, cfg: ModelConfig) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(n),
        "-m",
        "experiments.bench_processes",
        json.dumps(vars(cfg)),
    ]
    root = Path(__file__).parent.parent
    done = subprocess.run(
        command,
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the {n} processes failed: {done.stderr[-500:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _sweep() -> int:
    device = join(torch.device("cpu"))
    cfg = ModelConfig(**json.loads(sys.argv[1]))
    model = Transformer(cfg, torch.Generator().manual_seed(0)).to(device).requires_grad_(False)
    pairs = tasks.evaluation_pairs("addition", 1, SHOTS, PROMPTS, torch.Generator().manual_seed(0))
    receivers = [
        HeadInput(layer, head, which)
        for layer in range(1, cfg.n_layers)
        for head in range(cfg.n_heads)
        for which in "vqk"
    ]

    def sweep(n_receivers: int) -> list[list[float]]:
        patcher = PathPatcher(
            model, pairs.base, pairs.contrast, pairs.base_answers, pairs.contrast_answers
        )
        return [effects.r.tolist() for effects in patcher.sweep_each(receivers[:n_receivers])]

    sweep(1)  # to warm up
    any_process(False)  # all begin together
    started = time.perf_counter()
    found = sweep(len(receivers))
    if is_main():
        print(json.dumps({"seconds": time.perf_counter() - started, "r": found}))
    return 0


if __name__ == "__main__":
    sys.exit(run_together(_sweep))
