"""Our side of the benchmark: a sweep on random weights, its seconds, operations and memory.

On a CPU memory is measured in fresh processes, and so is what a second process brings.
"""

import resource
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.utils.flop_counter import FlopCounterMode

import tasks
from minifunc.ablation import all_heads
from minifunc.model import ModelConfig, Transformer
from minifunc.patching import Effects, HeadInput, Logits, PathPatcher, Receiver
from minifunc.support.names import parse
from minifunc.support.precision import effects_error
from minifunc.support.processes import any_process, join
from minifunc.support.settings import shape_of

SweepPath = tuple[str, Receiver]  # from a head, by name
CPU = torch.device("cpu")
LOGITS, INPUTS = "all heads → logits", "all heads → v, q, k of every head"
ARITHMETIC = {  # by the name of Sweep.dtype: the weights' dtype, how float32 products are computed
    "float32": (torch.float32, "highest"),
    "bfloat16": (torch.bfloat16, "highest"),
    "tf32": (torch.float32, "high"),
}


@dataclass(frozen=True)
class Sweep:
    """The cached runs on pairs of prompts, then all heads as senders to each of the receivers.

    name: of the model. dtype: of ARITHMETIC. n_timed: on how many of its paths the loops are timed.
    n_checked: on how many prompts the effects are held against float64.
    """

    cfg: ModelConfig
    receivers: tuple[Receiver, ...] = (Logits(),)
    n_prompts: int = 100
    shots: int = 8
    freeze_mlps: bool = False
    max_memory: float | None = None  # GiB
    work: str = LOGITS
    name: str = "default"
    n_timed: int = 12
    dtype: str = "float32"
    n_checked: int = 0

    @property
    def paths(self) -> list[SweepPath]:
        """Every head and receiver with a path between them: the receiver is above the head."""
        every = product(self.receivers, all_heads(self.cfg))
        return [(head, to) for to, head in every if 2 * parse(head)[0] < to.stage(self.cfg)]

    @property
    def timed_paths(self) -> list[SweepPath]:
        """Paths that are spread over all."""
        paths, n = self.paths, self.n_timed
        return [paths[(2 * index + 1) * len(paths) // (2 * n)] for index in range(n)]

    def described(self) -> dict[str, Any]:
        """The model and the prompts."""
        size = {"prompts": self.n_prompts, "tokens": tasks.n_tokens(self.shots)}
        return {"name": self.name} | shape_of(self.cfg) | size

    def model(self, device: torch.device) -> Transformer:
        """Random weights, drawn on the device. Sets how float32 products are computed."""
        dtype, products = ARITHMETIC[self.dtype]
        torch.set_float32_matmul_precision(products)
        return random_model(self.cfg, device).to(dtype).requires_grad_(False)

    def pairs(self) -> tasks.Pairs:
        generator = torch.Generator().manual_seed(0)
        return tasks.evaluation_pairs("addition", 1, self.shots, self.n_prompts, generator)

    def patcher(self, model: Transformer, pairs: tasks.Pairs) -> PathPatcher:
        prompts = (pairs.base, pairs.contrast, pairs.base_answers, pairs.contrast_answers)
        return PathPatcher(model, *prompts, self.freeze_mlps, self.max_memory)

    def run(self, model: Transformer, pairs: tasks.Pairs) -> dict[Receiver, Effects]:
        """What is timed. The rows of each Effects are in the order of `all_heads`."""
        found = self.patcher(model, pairs).sweep_each(self.receivers, all_heads(self.cfg))
        return dict(zip(self.receivers, found))

    def error(self, model: Transformer) -> dict[str, float]:
        """The largest error of an effect, in logits, and as a share of the largest effect: against
        the same weights in float64, on `n_checked` prompts."""
        few = replace(self, n_prompts=self.n_checked)
        patcher, heads = few.patcher(model, few.pairs()), all_heads(self.cfg)
        error, largest = effects_error(patcher, self.receivers, heads, self.n_checked)
        return {"max_error": error, "error_share": error / largest}

    def gflop(self, model: Transformer, pairs: tasks.Pairs) -> float:
        """10^9 floating-point operations of the matrix products in a run, as PyTorch counts them.

        A multiply-add is two. Attention's fused kernel is not counted on the CPU.
        """
        with FlopCounterMode(display=False) as counter:
            self.run(model, pairs)
        return counter.get_total_flops() / 1e9


def random_model(cfg: ModelConfig, device: torch.device) -> Transformer:
    """A new model, made and drawn on the device itself: a large one takes a CPU long."""
    with torch.device("meta"):
        model = Transformer(cfg).to_empty(device=device)
    with device:  # not `settled`, which draws on the CPU
        draw = Transformer._draw_weights.__wrapped__
        draw(model, torch.Generator(device).manual_seed(0))
    return model


def every_input(cfg: ModelConfig) -> tuple[HeadInput, ...]:
    """The v, q and k of every head; not those of layer 0, which has no head below it."""
    places = product(range(cfg.n_heads), "vqk", range(1, cfg.n_layers))
    return tuple(HeadInput(layer, head, which) for head, which, layer in places)


def medians_in_turn(
    works: Mapping[Hashable, Callable[[], object]], device: torch.device, repeats: int
) -> dict[Any, float]:
    """Median wall time of each work, in seconds.

    All works are run in turn, once to warm up and then `repeats` times, so that a slow moment of
    the machine meets every side alike.
    """
    times: dict[Hashable, list[float]] = {name: [] for name in works}
    for _ in range(repeats + 1):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(of_work[1:]) for name, of_work in times.items()}


def peak_memory(sweep: Sweep, device: torch.device) -> float:
    """Peak memory of a sweep beside weights and prompts, in GiB. CUDA: what was allocated; CPU:
    growth of the resident set, in a fresh process."""
    if device.type == "cuda":
        return growth(sweep, device)
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
