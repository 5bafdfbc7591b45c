"""Our side of the benchmark: a sweep on random weights, its seconds and its memory."""

import copy
import multiprocessing
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import tasks
from minifunc.ablation import all_heads
from minifunc.model import ModelConfig, Transformer
from minifunc.patching import Effects, HeadInput, Logits, PathPatcher, Receiver
from minifunc.support.names import parse
from minifunc.support.settings import shape_of

SweepPath = tuple[str, Receiver]  # from a head, by name
STATUS = Path("/proc/self/status")  # of Linux
LOGITS, INPUTS = "all heads → logits", "all heads → v, q, k of every head"
ARITHMETIC = {  # by the name of Sweep.dtype: the weights' dtype, how float32 products are computed
    "float32": (torch.float32, "highest"),
    "bfloat16": (torch.bfloat16, "highest"),
    "tf32": (torch.float32, "high"),
}


@dataclass(frozen=True)
class Sweep:
    """The cached runs on pairs of prompts, then all heads as senders to each of the receivers.
    n_timed: paths on which the loops are timed. n_checked: prompts held against float64."""

    cfg: ModelConfig
    receivers: tuple[Receiver, ...] = (Logits(),)
    n_prompts: int = 100
    shots: int = 8
    max_memory: float | None = None  # GiB
    work: str = LOGITS
    name: str = "default"  # of the model
    n_timed: int = 12
    dtype: str = "float32"  # of ARITHMETIC
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

    def run(self, model: Transformer, pairs: tasks.Pairs) -> dict[Receiver, Effects]:
        """What is timed. The rows of each Effects are in the order of `all_heads`."""
        prompts = (pairs.base, pairs.contrast, pairs.base_answers, pairs.contrast_answers)
        patcher = PathPatcher(model, *prompts, max_memory=self.max_memory)
        return dict(zip(self.receivers, patcher.sweep_each(self.receivers, all_heads(self.cfg))))

    def error(self, model: Transformer) -> dict[str, float]:
        """The largest error of an effect, in logits, and as a share of the largest effect: against
        the same weights in float64, on `n_checked` prompts."""
        few, effects = replace(self, n_prompts=self.n_checked), []
        for each in (model, copy.deepcopy(model).double()):
            swept = few.run(each, few.pairs()).values()
            effects.append(torch.stack([found.per_prompt.mean(1) for found in swept]))
        error, largest = (effects[0] - effects[1]).abs().max().item(), effects[1].abs().max().item()
        return {"max_error": error, "error_share": error / largest}

    def operations(self, model: Transformer) -> int:
        """Multiplications and additions of all matrix products; each prompt takes as many. What
        attention fuses is counted where torch counts it: on CUDA."""
        one = replace(self, n_prompts=1)
        with FlopCounterMode(display=False) as counter:
            one.run(model, one.pairs())
        return counter.get_total_flops() * self.n_prompts

    def product_rate(self, device: torch.device) -> float:
        """Operations a second of one large square product: what this device can do at best."""
        dtype, products = ARITHMETIC[self.dtype]
        torch.set_float32_matmul_precision(products)
        side = 8192 if device.type == "cuda" else 1024
        drawn = torch.Generator(device).manual_seed(0)  # a card is faster where all are alike
        x = torch.randn(side, side, device=device, generator=drawn).to(dtype)
        seconds = medians_in_turn({"product": lambda: x @ x}, device, repeats=5)["product"]
        return 2 * side**3 / seconds


def random_model(cfg: ModelConfig, device: torch.device) -> Transformer:
    """A new model, made and drawn on the device itself: a large one takes a CPU long."""
    with torch.device("meta"):
        model = Transformer(cfg).to_empty(device=device)
    with device:  # not `settled`, which draws on the CPU
        Transformer._draw_weights.__wrapped__(model, torch.Generator(device).manual_seed(0))
    return model


def every_input(cfg: ModelConfig) -> tuple[HeadInput, ...]:
    """The v, q and k of every head; not those of layer 0, which has no head below it."""
    places = product(range(cfg.n_heads), "vqk", range(1, cfg.n_layers))
    return tuple(HeadInput(layer, head, which) for head, which, layer in places)


def medians_in_turn(
    works: Mapping[Hashable, Callable[[], object]], device: torch.device, repeats: int
) -> dict[Any, float]:
    """Median wall time of each work, in seconds. All are run in turn, once to warm up and then
    `repeats` times, so that a slow moment of the machine meets every side alike."""
    times: dict[Hashable, list[float]] = {name: [] for name in works}
    for _ in range(repeats + 1):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(of_work[1:]) for name, of_work in times.items()}


def peak_memory(sweep: Sweep, device: torch.device) -> float | None:
    """Peak memory of a sweep beside weights and prompts, in GiB. CUDA: what was allocated; CPU:
    growth of the resident set, in a fresh process. None where the system does not tell it."""
    if device.type == "cuda":
        return growth_on_cuda(sweep, device)
    if not STATUS.exists():
        return None
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(growth_of_process, sweep, device).result()


def growth_on_cuda(sweep: Sweep, device: torch.device) -> float:
    model, pairs = sweep.model(device), sweep.pairs()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    sweep.run(model, pairs)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**30


def growth_of_process(sweep: Sweep, device: torch.device) -> float:
    model, pairs = sweep.model(device), sweep.pairs()
    narrow = replace(sweep.cfg, d_model=16, d_head=2, d_mlp=16)
    small = replace(sweep, cfg=narrow, n_prompts=1, max_memory=None)
    small.run(small.model(device), small.pairs())  # what libraries take once is not the sweep's
    before = resident("VmRSS")
    sweep.run(model, pairs)
    return max(0, resident("VmHWM") - before) / 2**20


def resident(which: str) -> int:
    """KiB of the resident set, now (VmRSS) or at its peak (VmHWM)."""
    # getrusage's peak would include that of the parent process, which Linux hands on
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(which))
