"""Several processes as one: `torchrun --nproc-per-node=4 train.py`, or patch.py, on any machines.

Every process runs the whole script and draws the same documents and prompts. Each computes its
`share` of the work, and `all_sum` puts the parts together. The first process (`is_main`) alone
writes files; what the others print is dropped. Between GPUs, one for each process of a machine,
nccl is used, otherwise gloo. Without torchrun there is one process, and nothing here does anything:
a WORLD_SIZE that some cluster's shell has set is told of, and ignored. All see the same files.
"""

import os
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from minifunc.support.errors import UserError, first_line, run_main


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def is_main() -> bool:
    """Whether this process is the one that writes files."""
    return rank() == 0


def share(items: Any) -> Any:
    """This process's part of a list, range or tensor (its first axis); the parts don't overlap."""
    return items[rank() :: world_size()]


def own_range(n: int) -> range:
    """This process's part of 0 .. n - 1, in one piece."""
    return range(rank() * n // world_size(), (rank() + 1) * n // world_size())


def all_sum(*tensors: Tensor) -> None:
    """Replaces each tensor by its sum over all processes: one exchange, the same bits everywhere.
    All have one dtype and device. Raises UserError where another process is gone."""
    if world_size() == 1 or not tensors:
        return
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
    try:
        dist.all_reduce(flat)
    except RuntimeError as error:
        lost = f"process {rank()} lost the others: one has ended, or cannot be reached"
        raise UserError(f"{lost} ({first_line(error)})") from None
    for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
        tensor.detach().copy_(total.view_as(tensor))


def any_process(flag: bool) -> bool:
    """Whether `flag` is true in one process at least."""
    count = torch.tensor([int(flag)], device="cpu")
    all_sum(count)
    return count.item() > 0


def join(device: torch.device) -> torch.device:
    """Waits for the other processes and returns this one's device: with CUDA, its own GPU. Raises
    UserError where the processes cannot meet, or are more than the GPUs."""
    if _n_started() == 1:
        left = os.environ.get("WORLD_SIZE", "")
        if left not in ("", "1"):
            ignored = f"WORLD_SIZE is {left!r}, but torchrun has not started this process"
            print(f"{ignored}: it works alone", file=sys.stderr)
        return device
    local, backend = _number("LOCAL_RANK"), "gloo"
    if device.type == "cuda":
        device, backend = _own_gpu(device, local), "cpu:gloo,cuda:nccl"
    elif device.type != "cpu":
        raise UserError(f"several processes run on cpu or cuda, not on {device.type}")
    try:
        met = dist.rendezvous("env://", timeout=timedelta(minutes=2))  # type: ignore[attr-defined]
        store, number, size = next(met)
        dist.init_process_group(backend, store=store, rank=number, world_size=size)
    except (RuntimeError, ValueError) as error:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        apart = f"the processes cannot meet at MASTER_ADDR:MASTER_PORT {place}"
        raise UserError(f"{apart}: {first_line(error)}") from None
    return device


def run_together(work: Callable[[], int]) -> int:
    """`run_main` for a script that torchrun may have started: what all would say is said once."""

    def one_of_them() -> int:
        try:
            if _n_started() == 1 or _number("RANK") == 0:
                return work()
            quiet = suppress(KeyboardInterrupt)
            with quiet, open(os.devnull, "w") as null, redirect_stdout(null), redirect_stderr(null):
                return work()
            return 130
        except UserError:
            if not _first_to_fail():
                return 2
            raise
        finally:
            # Left to the end of Python, gloo's threads may abort it where a partner is gone.
            if world_size() > 1:
                dist.destroy_process_group()

    return run_main(one_of_them)


def _n_started() -> int:
    """How many processes torchrun started, this one among them; 1 where it did not start this."""
    return _number("WORLD_SIZE") if "TORCHELASTIC_RUN_ID" in os.environ else 1


def _number(name: str) -> int:
    """The number that torchrun put into an environment variable."""
    text = os.environ.get(name, "")
    if not text.isdecimal():
        found = f"{name} is {text!r} in the environment of one process among several"
        raise UserError(f"{found}: torchrun sets it to a number")
    return int(text)


def _own_gpu(device: torch.device, local: int) -> torch.device:
    n_gpus = torch.cuda.device_count()
    if device.index is not None or local >= n_gpus:
        none = f"process {local} of this machine has no GPU of its own ({n_gpus} there)"
        raise UserError(f"{none}: start at most one process for each, with --device cuda or cpu")
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def _first_to_fail() -> bool:
    """Whether no other process has come here; without torchrun each speaks for itself."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    try:
        met = dist.rendezvous("env://", timeout=timedelta(seconds=10))  # type: ignore[attr-defined]
        store, _, _ = next(met)  # torchrun's own, which outlives the processes
        return bool(store.add("failed", 1) == 1)
    except RuntimeError:
        return True
