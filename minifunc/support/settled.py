"""What callers set for the whole process changes no result.

torch keeps some settings for a process or a block of code: the default dtype and device, autocast,
inference mode. They would change what is drawn, how exactly it is computed, and whether it has a
gradient. Here the model's device and dtype decide, always: what people call is `settled`.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


@contextmanager
def plain_torch() -> Iterator[None]:
    """float32 on the CPU where nothing else is said, no autocast, gradients as they were."""
    dtype, grad = torch.get_default_dtype(), torch.is_grad_enabled()
    torch.set_default_dtype(torch.float32)
    try:
        with (
            torch.device("cpu"),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
            torch.inference_mode(False),
            torch.set_grad_enabled(grad),
        ):
            yield
    finally:
        torch.set_default_dtype(dtype)


def nothing_set() -> bool:
    """Whether torch's settings are those that it starts with."""
    return (
        torch.get_default_dtype() == torch.float32
        and torch.get_default_device() == torch.device("cpu")
        and not any(torch.is_autocast_enabled(device) for device in ("cpu", "cuda"))
        and not torch.is_inference_mode_enabled()
    )


def settled(function: Function) -> Function:
    """Decorates a function, or an __init__: whatever is set around it, its results are the same."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if nothing_set():
            return function(*args, **kwargs)
        with plain_torch():
            return function(*args, **kwargs)

    return call  # type: ignore[return-value]
