"""Our side of the benchmark: a sweep on random weights, its seconds and its operations."""

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import tasks
from minifunc.model import ModelConfig, Transformer
from minifunc.patching import Effects, HeadInput, Logits, PathPatcher

Head = tuple[int, int]  # (layer, head)
Receiver = HeadInput | Logits
LOGITS, INPUTS = "all heads → logits", "all heads → v, q, k of every head"


@dataclass(frozen=True)
class Sweep:
    """The cached runs on pairs of prompts, then all heads as senders to each of the receivers.

    name: of the model. n_timed: on how many of its paths the loops are timed.
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

    @property
    def heads(self) -> list[Head]:
        return list(product(range(self.cfg.n_layers), range(self.cfg.n_heads)))

    @property
    def paths(self) -> list[tuple[Head, Receiver]]:
        """Every head and receiver with a path between them: the receiver is above the head."""
        paths: list[tuple[Head, Receiver]] = []
        for receiver in self.receivers:
            stage = receiver.stage(self.cfg)
            paths += [(head, receiver) for head in self.heads if 2 * head[0] < stage]
        return paths

    @property
    def timed_paths(self) -> list[tuple[Head, Receiver]]:
        """Paths that are spread over all."""
        paths, n = self.paths, self.n_timed
        return [paths[(2 * index + 1) * len(paths) // (2 * n)] for index in range(n)]

    def described(self) -> dict[str, Any]:
        """The model and the prompts."""
        size = {"prompts": self.n_prompts, "tokens": tasks.n_tokens(self.shots)}
        return {"name": self.name} | asdict(self.cfg) | size

    def model(self, device: torch.device) -> Transformer:
        return Transformer(self.cfg).to(device).requires_grad_(False)

    def pairs(self) -> tasks.Pairs:
        generator = torch.Generator().manual_seed(0)
        return tasks.evaluation_pairs("addition", 1, self.shots, self.n_prompts, generator)

    def run(self, model: Transformer, pairs: tasks.Pairs) -> dict[Receiver, Effects]:
        """What is timed. The rows of each Effects are in the order of `heads`."""
        prompts = (pairs.base, pairs.contrast, pairs.base_answers, pairs.contrast_answers)
        patcher = PathPatcher(model, *prompts, self.freeze_mlps, self.max_memory)
        senders = [f"{layer}.{head}" for layer, head in self.heads]
        return dict(zip(self.receivers, patcher.sweep_each(self.receivers, senders)))

    def gflop(self, model: Transformer, pairs: tasks.Pairs) -> float:
        """10^9 floating-point operations of the matrix products in a run, as PyTorch counts them.

        A multiply-add is two. Attention's fused kernel is not counted on the CPU.
        """
        with FlopCounterMode(display=False) as counter:
            self.run(model, pairs)
        return counter.get_total_flops() / 1e9


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
