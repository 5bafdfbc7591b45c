"""What a piece of work costs: seconds, multiply-adds against what the machine can do, and memory.

Run as a command, it is the fresh process in which peak memory is measured: it reads one JSON object and prints GiB.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

import tasks
from minifunc.model import ModelConfig, Transformer
from minifunc.patching import HeadInput, Logits, PathPatcher


def interleaved(
    works: Mapping[str, Callable[[], object]], device: torch.device, repeats: int
) -> dict[str, float]:
    """Median wall time of each work, in seconds. All of them are run in turn, once to warm up and then `repeats` times, so that
    a slow moment of the machine meets every side alike."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats + 1):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(of_work[1:]) for name, of_work in times.items()}


def square_product(size: int, device: torch.device) -> Callable[[], object]:
    """A square float32 matrix product, 2 size^3 operations: what the machine can do at best."""
    a, b = (
        torch.randn(size, size, device=device, generator=torch.Generator(device).manual_seed(seed))
        for seed in (0, 1)
    )
    return lambda: a @ b


def sweep_flops(
    cfg: ModelConfig,
    n_prompts: int,
    n_pos: int,
    first: int,
    receivers: Sequence[HeadInput | Logits],
) -> float:
    """Floating-point operations of the matrix products that the algorithm needs, counted by hand (a multiply-add is two).

    The cached runs, pass 1 for all heads as senders (live MLPs), and for each q, k or v its pass 2. `first`: the first position at which
    base and contrast prompts differ: nothing changes before it. A count of what must be done, not of what the code does.
    """
    width, last_layer = cfg.n_heads * cfg.d_head, cfg.n_layers - 1
    project, mlp, unembed = (
        2 * cfg.d_model * width,
        4 * cfg.d_model * cfg.d_mlp,
        2 * cfg.d_model * cfg.d_vocab,
    )
    changed = n_pos - first
    visible = (
        n_pos * (n_pos + 1) - first * (first + 1)
    ) / 2  # (query, key) pairs of a causal pattern, queries that change

    def senders(layer: int) -> int:  # heads below this layer
        return layer * cfg.n_heads

    def blocks(start: int, positions: int, pairs: float) -> float:
        """Of one prompt: the blocks from `start` up, the last of them for the last position alone."""
        whole = positions * (4 * project + mlp) + pairs * 4 * width
        last = positions * 2 * project + 2 * project + mlp + n_pos * 4 * width
        return max(0, last_layer - start) * whole + (last if start <= last_layer else 0) + unembed

    total = blocks(0, n_pos, n_pos * (n_pos + 1) / 2) + blocks(
        0, changed, visible
    )  # contrast, base
    heads = [receiver for receiver in receivers if isinstance(receiver, HeadInput)]
    top = max((receiver.layer for receiver in heads), default=0)
    for layer in range(cfg.n_layers):  # pass 1
        positions = changed if layer < top else 1 if len(heads) < len(receivers) else 0
        total += positions * (project + (senders(layer) + cfg.n_heads) * mlp)
    if len(heads) < len(receivers):
        total += senders(cfg.n_layers) * unembed
    for receiver in heads:  # pass 2
        queries, pairs = (1, n_pos) if receiver.layer == last_layer else (changed, visible)
        read = 2 * cfg.d_model * cfg.d_head * (queries if receiver.which == "q" else changed)
        head = (
            pairs * (2 if receiver.which == "v" else 4) * cfg.d_head
            + queries * 2 * cfg.d_head * cfg.d_model
        )
        total += senders(receiver.layer) * (
            read + head + queries * mlp + blocks(receiver.layer + 1, changed, visible)
        )
    return float(n_prompts * total)


# ---------------------------------------------------------------- memory


def peak_memory(
    cfg: ModelConfig,
    n_prompts: int,
    shots: int,
    receivers: Sequence[HeadInput | Logits],
    max_memory: float | None,
    device: torch.device,
) -> float:
    """Peak memory of one sweep beside weights and prompts, in GiB, measured in a fresh process (CUDA: what was allocated; CPU: growth of the resident set)."""
    asked = {
        "model": asdict(cfg),
        "prompts": n_prompts,
        "shots": shots,
        "max_memory": max_memory,
        "device": str(device),
    }
    asked["receivers"] = [
        [receiver.layer, receiver.head, receiver.which] if isinstance(receiver, HeadInput) else None
        for receiver in receivers
    ]
    root = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-m", "experiments.bench_cost"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        cwd=root,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the process that measures memory failed: {done.stderr[-500:]}")
    return float(done.stdout)


def _resident(which: str) -> int:
    """Bytes of the resident set, now (VmRSS) or at its peak (VmHWM)."""
    try:  # getrusage's peak would include that of the parent process, which Linux hands on
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(which))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
            1 if sys.platform == "darwin" else 1024
        )


def _measure_peak() -> None:
    asked = json.load(sys.stdin)
    device = torch.device(asked["device"])
    receivers = [
        Logits() if receiver is None else HeadInput(*receiver) for receiver in asked["receivers"]
    ]

    def sweep(cfg: ModelConfig, n_prompts: int, max_memory: float | None) -> Callable[[], object]:
        model = Transformer(cfg).to(device).requires_grad_(False)
        pairs = tasks.evaluation_pairs(
            "addition", 1, asked["shots"], n_prompts, torch.Generator().manual_seed(0)
        )
        heads = [f"{layer}.{head}" for layer in range(cfg.n_layers) for head in range(cfg.n_heads)]
        return lambda: PathPatcher(
            model,
            pairs.base,
            pairs.contrast,
            pairs.base_answers,
            pairs.contrast_answers,
            max_memory=max_memory,
        ).sweep_each(receivers, heads)

    cfg = ModelConfig(**asked["model"])
    work = sweep(cfg, asked["prompts"], asked["max_memory"])
    sweep(
        ModelConfig(**asked["model"] | {"d_model": 16, "d_head": 2, "d_mlp": 16}), 1, None
    )()  # what the libraries take once is not the sweep's
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        print((torch.cuda.max_memory_allocated(device) - before) / 2**30)
    else:
        before = _resident("VmRSS")
        work()
        print(max(0, _resident("VmHWM") - before) / 2**30)


if __name__ == "__main__":
    _measure_peak()
