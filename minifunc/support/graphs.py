"""Training on CUDA: a step is one launch, and one seed gives the same bits each time.

To launch the many small kernels of a step takes a CPU longer than to run them takes a GPU. A CUDA
graph is recorded once, and launches them all. It knows places in memory, not tensors: what changes
from step to step is copied to where the graph reads it.
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
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
os.environ.setdefault(WORKSPACE, ":4096:8")  # torch reads it once, at a process's first product


class Graphed:
    """step(model, optimizer, cfg, *inputs) → tensors, called with the inputs alone: tensors on the
    model's device, and numbers. One GPU records it for each shape of inputs, and replays it; else,
    or where that fails, it is called as it is. A step must read no value back, and nothing replace
    the optimizer's state (`load_state_dict`) after the first."""

    def __init__(self, step: Callable[..., Outputs], model: Any, optimizer: Optimizer, cfg: Any):
        self.step, self.device = partial(step, model, optimizer, cfg), model.device
        self.optimizer, self.on_cuda = optimizer, self.device.type == "cuda"
        self.records = self.on_cuda and world_size() == 1
        self.graphs: dict[Any, Any] = {}  # by shapes; all that a graph reads and writes is kept
        optimizer.param_groups[0]["capturable"] = self.on_cuda  # counts steps where a graph can

    def __call__(self, *given: Any) -> Outputs:
        if self.on_cuda:  # numbers too: a graph would freeze them
            given = tuple(torch.as_tensor(each, device=self.device) for each in given)
        if not self.records:
            return self.step(*given)
        shapes = tuple((tensor.shape, tensor.dtype) for tensor in given)
        if shapes not in self.graphs:
            inputs = [tensor.clone() for tensor in given]
            try:
                with undone(self.optimizer):
                    replay, outputs = recorded(partial(self.step, *inputs), self.device)
                self.graphs[shapes] = inputs, replay, outputs
            except RuntimeError as error:
                self.records = False
                said = f"a training step cannot be recorded as a CUDA graph ({first_line(error)})"
                tqdm.write(f"{said}: it is made without, slower", file=sys.stderr)
                return self.step(*given)
        inputs, replay, outputs = self.graphs[shapes]
        for tensor, new in zip(inputs, given):
            tensor.copy_(new)
        replay()
        return tuple(output.clone() for output in outputs)


def recorded(call: Callable[[], Outputs], device: torch.device) -> tuple[Any, Outputs]:
    """How to replay a call, and the outputs, which a replay writes anew. Three calls make all that
    is made but once; the fourth is recorded, not run. All this on a stream of its own."""
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


def updated(optimizer: Optimizer) -> list[Tensor]:
    """What a step updates, the very tensors: weights, and what is kept of them."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    return weights + [kept for state in optimizer.state.values() for kept in state.values()]


@contextmanager
def undone(optimizer: Optimizer) -> Iterator[None]:
    """Takes back the steps that are made inside, in place. State that they begin is zero then, as
    it is before a first step."""
    before = {id(tensor): tensor.detach().clone() for tensor in updated(optimizer)}
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor in updated(optimizer):
                tensor.copy_(before.get(id(tensor), torch.zeros_like(tensor)))


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """On CUDA sums have a fixed order inside, or else a line says why not."""
    mode, memory = torch.get_deterministic_debug_mode(), vars(torch.utils)["deterministic"]
    fills, workspace = memory.fill_uninitialized_memory, os.environ.get(WORKSPACE)
    if device.type == "cuda":
        if workspace in (":4096:8", ":16:8"):
            torch.set_deterministic_debug_mode("error")
            memory.fill_uninitialized_memory = False  # it would only cost launches
        else:
            why = f"{WORKSPACE} is {workspace!r}, not :4096:8 or :16:8"
            print(f"{why}: one seed may give other weights each time", file=sys.stderr)
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        memory.fill_uninitialized_memory = fills
