"""What is measured in processes of its own: peak memory, and what a second process brings."""

import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from experiments.bench_sweep import Sweep
from minifunc.support.processes import any_process, join

CPU = torch.device("cpu")


def peak_memory(sweep: Sweep, device: torch.device) -> float:
    """Peak memory of a sweep beside weights and prompts, in GiB, measured in a fresh process.

    CUDA: what was allocated. CPU: growth of the resident set.
    """
    return in_fresh_processes(1, growth, sweep, device)


def compare_processes(sweep: Sweep, repeats: int) -> tuple[float, float, float]:
    """One process and two, of one thread each, in turn.

    Returns the median seconds of one and of two, and the largest difference of r.
    """
    seconds: dict[int, list[float]] = {1: [], 2: []}
    r: dict[int, torch.Tensor] = {}
    for _ in range(repeats):
        for n in seconds:
            found, r[n] = in_fresh_processes(n, seconds_and_r, sweep)
            seconds[n].append(found)
    one_s, two_s = (statistics.median(seconds[n]) for n in (1, 2))
    return one_s, two_s, (r[1] - r[2]).abs().max().item()


def in_fresh_processes(n: int, work: Callable[..., Any], *arguments: Any) -> Any:
    """What `work` returns in the first of n fresh processes, started as torchrun starts them."""
    meeting = {"run_id": "bench", "rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0"}
    config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=n, max_restarts=0, **meeting)
    return elastic_launch(config, work)(*arguments)[0]


# ---------------------------------------------------------------- in a fresh process


def seconds_and_r(sweep: Sweep) -> tuple[float, torch.Tensor]:
    """Of one sweep, all processes together."""
    torch.set_num_threads(1)
    join(CPU)
    model, pairs = sweep.model(CPU), sweep.pairs()
    replace(sweep, receivers=sweep.receivers[:1]).run(model, pairs)  # to warm up
    any_process(False)  # all begin together
    started = time.perf_counter()
    found = sweep.run(model, pairs)
    seconds = time.perf_counter() - started
    if dist.is_initialized():
        dist.destroy_process_group()
    return seconds, torch.stack([effects.r for effects in found.values()])


def growth(sweep: Sweep, device: torch.device) -> float:
    """Memory of one sweep at its peak, less what was there before, GiB."""
    narrow = replace(sweep.cfg, d_model=16, d_head=2, d_mlp=16)
    small = replace(sweep, cfg=narrow, n_prompts=1, max_memory=None)
    model, pairs = sweep.model(device), sweep.pairs()
    small.run(small.model(device), small.pairs())  # what libraries take once is not the sweep's
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        sweep.run(model, pairs)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**30
    before = resident("VmRSS")
    sweep.run(model, pairs)
    return max(0, resident("VmHWM") - before) / 2**30


def resident(which: str) -> int:
    """Bytes of the resident set, now (VmRSS) or at its peak (VmHWM); on macOS always the peak."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # getrusage's peak would include that of the parent process, which Linux hands on
    lines = status.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(which))
