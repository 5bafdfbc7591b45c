"""Our side of the benchmark: a sweep on random weights, its seconds and its operations."""

import itertools
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

import tasks
from minifunc.model import ModelConfig, Transformer
from minifunc.patching import Effects, HeadInput, Logits, PathPatcher

Head = tuple[int, int]  # (layer, head)
Receiver = HeadInput | Logits
FIRST_CHANGE = int(tasks.answer_positions(1))  # base and contrast are alike before this position


@dataclass(frozen=True)
class Sweep:
    """The cached runs on pairs of prompts, then all heads as senders to each of the receivers."""

    cfg: ModelConfig
    receivers: tuple[Receiver, ...] = (Logits(),)
    n_prompts: int = 100
    shots: int = 8
    freeze_mlps: bool = False
    max_memory: float | None = None  # GiB

    @property
    def heads(self) -> list[Head]:
        return list(itertools.product(range(self.cfg.n_layers), range(self.cfg.n_heads)))

    @property
    def paths(self) -> list[tuple[Head, Receiver]]:
        """Every head and receiver with a path between them: the receiver is above the head."""
        paths: list[tuple[Head, Receiver]] = []
        for receiver in self.receivers:
            layer = self.cfg.n_layers if isinstance(receiver, Logits) else receiver.layer
            paths += [(head, receiver) for head in self.heads if head[0] < layer]
        return paths

    def model(self, device: torch.device) -> Transformer:
        return Transformer(self.cfg).to(device).requires_grad_(False)

    def pairs(self) -> tasks.Pairs:
        generator = torch.Generator().manual_seed(0)
        return tasks.evaluation_pairs("addition", 1, self.shots, self.n_prompts, generator)

    def run(self, model: Transformer, pairs: tasks.Pairs) -> dict[Receiver, Effects]:
        """What is timed. The rows of each Effects are in the order of `heads`."""
        tokens, answers = (pairs.base, pairs.contrast), (pairs.base_answers, pairs.contrast_answers)
        options = {"freeze_mlps": self.freeze_mlps, "max_memory": self.max_memory}
        patcher = PathPatcher(model, *tokens, *answers, **options)
        senders = [f"{layer}.{head}" for layer, head in self.heads]
        return dict(zip(self.receivers, patcher.sweep_each(self.receivers, senders)))


def every_input(cfg: ModelConfig) -> tuple[HeadInput, ...]:
    """The v, q and k of every head; not those of layer 0, which has no head below it."""
    places = itertools.product(range(cfg.n_heads), "vqk", range(1, cfg.n_layers))
    return tuple(HeadInput(layer, head, which) for head, which, layer in places)


def medians_in_turn(
    works: Mapping[str, Callable[[], object]], device: torch.device, repeats: int
) -> dict[str, float]:
    """Median wall time of each work, in seconds.

    All works are run in turn, once to warm up and then `repeats` times, so that a slow moment of
    the machine meets every side alike.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats + 1):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(of_work[1:]) for name, of_work in times.items()}


# ---------------------------------------------------------------- operations


class SquareProduct:
    """A square float32 matrix product, to be called: what the machine can do at best."""

    def __init__(self, size: int, device: torch.device) -> None:
        generators = (torch.Generator(device).manual_seed(seed) for seed in (0, 1))
        self.a, self.b = (
            torch.randn(size, size, device=device, generator=generator) for generator in generators
        )
        self.gflop = 2e-9 * size**3

    def __call__(self) -> torch.Tensor:
        return self.a @ self.b


def sweep_flops(sweep: Sweep) -> float:
    """Floating-point operations of the matrix products that a sweep needs (a multiply-add is two).

    Counted by hand, for live MLPs: the cached runs, pass 1, and pass 2 for each q, k or v. Nothing
    changes before FIRST_CHANGE. A count of what must be done, not of what the code does.
    """
    count = _OnePrompt(sweep.cfg, tasks.n_tokens(sweep.shots))
    inputs = [receiver for receiver in sweep.receivers if isinstance(receiver, HeadInput)]
    contrast_run = count.blocks(0, count.n_pos, count.n_pos * (count.n_pos + 1) / 2)
    base_run = count.blocks(0, count.changed, count.visible)
    pass_1 = count.pass_1(inputs, to_logits=len(inputs) < len(sweep.receivers))
    pass_2 = sum(count.pass_2(receiver) for receiver in inputs)
    return float(sweep.n_prompts * (contrast_run + base_run + pass_1 + pass_2))


class _OnePrompt:
    """Operations for one prompt. `visible`, `pairs`: queries and the keys they attend to."""

    def __init__(self, cfg: ModelConfig, n_pos: int) -> None:
        self.cfg, self.n_pos, self.last_layer = cfg, n_pos, cfg.n_layers - 1
        self.width = cfg.n_heads * cfg.d_head
        self.project = 2 * cfg.d_model * self.width  # one of W_Q, W_K, W_V, W_O at one position
        self.mlp, self.unembed = 4 * cfg.d_model * cfg.d_mlp, 2 * cfg.d_model * cfg.d_vocab
        self.changed = n_pos - FIRST_CHANGE  # positions
        self.visible = (n_pos * (n_pos + 1) - FIRST_CHANGE * (FIRST_CHANGE + 1)) / 2

    def blocks(self, start: int, positions: int, pairs: float) -> float:
        """The blocks from `start` up, the last of them for the last position alone; the logits."""
        if start > self.last_layer:
            return self.unembed
        whole_block = positions * (4 * self.project + self.mlp) + pairs * 4 * self.width
        keys_and_values = positions * 2 * self.project
        last_query = 2 * self.project + self.mlp + self.n_pos * 4 * self.width
        last_block = keys_and_values + last_query
        return (self.last_layer - start) * whole_block + last_block + self.unembed

    def pass_1(self, inputs: list[HeadInput], to_logits: bool) -> float:
        """All heads as senders, up to the highest receiver; for the logits the last position."""
        n_heads, n_layers = self.cfg.n_heads, self.cfg.n_layers
        top = max((receiver.layer for receiver in inputs), default=0)
        total = int(to_logits) * n_layers * n_heads * self.unembed
        for layer in range(n_layers):
            positions = self.changed if layer < top else int(to_logits)
            total += positions * (self.project + (layer + 1) * n_heads * self.mlp)
        return total

    def pass_2(self, receiver: HeadInput) -> float:
        """For all heads below the receiver: what it reads, its head, its MLP, the blocks above."""
        d_model, d_head = self.cfg.d_model, self.cfg.d_head
        in_last = receiver.layer == self.last_layer
        queries, pairs = (1, self.n_pos) if in_last else (self.changed, self.visible)
        read = 2 * d_model * d_head * (queries if receiver.which == "q" else self.changed)
        products = 2 if receiver.which == "v" else 4  # a v leaves the pattern as it is
        head = pairs * products * d_head + queries * 2 * d_head * d_model
        above = self.blocks(receiver.layer + 1, self.changed, self.visible)
        n_senders = receiver.layer * self.cfg.n_heads
        return n_senders * (read + head + queries * self.mlp + above)
