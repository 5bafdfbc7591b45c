"""Training on CUDA: a step is launched as a whole, and one seed gives the same bits each time.

To launch the hundreds of small kernels of a step takes a CPU longer than to run them takes a GPU. A
CUDA graph is recorded once, and launches them all. It knows places in memory, not tensors: what
changes from step to step, the batch and the learning rate, is written where the graph reads it.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from tqdm import tqdm

from minifunc.support.errors import first_line
from minifunc.support.processes import world_size

Outputs = tuple[Tensor, ...]
Step = Callable[..., Outputs]
# Runs a call and records it. Gives how to replay it, and the outputs that a replay writes anew.
Recorder = Callable[[Callable[[], Outputs]], tuple[Callable[[], None], Outputs]]
WORKSPACE, ORDERED = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")


def graphed(step: Step, optimizer: Optimizer, device: torch.device) -> Step:
    """`step` as CUDA graphs; on other devices, and with several processes, as it is."""
    if device.type != "cuda" or world_size() > 1:
        return step
    return Graphed(step, optimizer, partial(cuda_graph, device))


class Graphed:
    """step(*inputs) → tensors, recorded once for each shape of the inputs, and then replayed.

    A step updates what `optimizer` trains, and reads no value back. After the first call nothing
    may replace the optimizer's state: `load_state_dict` comes before. A step that cannot be
    recorded is made as it is.
    """

    def __init__(self, step: Step, optimizer: Optimizer, record: Recorder) -> None:
        self.step, self.optimizer, self.record = step, optimizer, record
        self.can_record = True
        # By shapes: inputs, replay, outputs. To hold them keeps the memory that the graph knows.
        self.graphs: dict[Any, tuple[list[Tensor], Callable[[], None], Outputs]] = {}

    def __call__(self, *given: Tensor) -> Outputs:
        shapes = tuple((tensor.shape, tensor.dtype) for tensor in given)
        if self.can_record and shapes not in self.graphs:
            inputs = [tensor.clone() for tensor in given]
            try:
                with undone(self.optimizer):
                    self.graphs[shapes] = (inputs, *self.record(lambda: self.step(*inputs)))
            except RuntimeError as error:
                self.can_record = False
                said = f"a training step cannot be recorded as a CUDA graph ({first_line(error)})"
                tqdm.write(f"{said}: it is made without, slower", file=sys.stderr)
        if not self.can_record:
            return self.step(*given)
        inputs, replay, outputs = self.graphs[shapes]
        for tensor, new in zip(inputs, given):
            tensor.copy_(new)
        replay()
        return tuple(output.clone() for output in outputs)


def cuda_graph(
    device: torch.device, call: Callable[[], Outputs]
) -> tuple[Callable[[], None], Outputs]:
    """A `Recorder`. Three calls make all that is made but once; the fourth is recorded, not run.
    Both on a stream of their own. Gradients and all between lie in memory of the graph's own."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    try:
        with torch.cuda.stream(stream):
            for _ in range(3):
                call()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                outputs = call()
    finally:
        torch.cuda.current_stream(device).wait_stream(stream)
    return graph.replay, outputs


@contextmanager
def undone(optimizer: Optimizer) -> Iterator[None]:
    """Takes back the steps that are made inside, in place. State that was not there is zero, as it
    is before a first step."""
    weights = [weight.detach() for group in optimizer.param_groups for weight in group["params"]]
    before = [weight.clone() for weight in weights]
    state = {id(place): place.clone() for place in state_of(optimizer)}
    try:
        yield
    finally:
        for weight, old in zip(weights, before):
            weight.copy_(old)
        for place in state_of(optimizer):
            place.copy_(state.get(id(place), torch.zeros_like(place)))


def state_of(optimizer: Optimizer) -> list[Tensor]:
    """The tensors that an optimizer keeps of all weights, the very ones."""
    return [tensor for kept in optimizer.state.values() for tensor in kept.values()]


def adamw_settings(device: torch.device, rate: float) -> dict[str, Any]:
    """Of an AdamW: one kernel for all weights, where there is one. On CUDA the learning rate and
    the count of steps lie on the card too, where a graph finds them."""
    if device.type == "cuda":
        on_card = torch.tensor(rate, dtype=torch.float32, device=device)
        return {"lr": on_card, "fused": True, "capturable": True}
    return {"lr": rate, "fused": device.type == "cpu"}


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Sets the learning rate; one that is a tensor in place, where a graph reads it."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """On CUDA, inside: sums have a fixed order, so that one seed gives the same bits each time.
    Elsewhere nothing is changed. Says so where the environment does not allow it."""
    if device.type != "cuda":
        yield
        return
    if os.environ.setdefault(WORKSPACE, ORDERED[0]) not in ORDERED:
        found = f"{WORKSPACE} is {os.environ[WORKSPACE]!r}, with which sums have no fixed order"
        print(f"{found}: one seed may give other weights each time", file=sys.stderr)
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False  # it would only cost launches
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)
        memory.fill_uninitialized_memory = filled
