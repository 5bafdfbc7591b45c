"""Tensors that were computed before and may be wanted again, up to a budget of memory."""

from collections import OrderedDict
from collections.abc import Callable, Hashable

from torch import Tensor


class Recent:
    """Tensors by key. Beyond `most_bytes` those are dropped that were not used for longest.

    >>> import torch
    >>> recent = Recent(most_bytes=1000)
    >>> recent.get("ones", lambda: torch.ones(3)) is recent.get("ones", lambda: torch.zeros(3))
    True
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes, self.n_bytes = most_bytes, 0
        self.tensors: OrderedDict[Hashable, Tensor] = OrderedDict()

    def get(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """The tensor of this key: the one that was kept, or that `compute` gives."""
        if key not in self.tensors:
            tensor = compute()  # which may ask for others, and so drop some
            self.tensors[key] = tensor
            self.n_bytes += tensor.nbytes
        self.tensors.move_to_end(key)
        wanted = self.tensors[key]
        while self.n_bytes > self.most_bytes:
            _, dropped = self.tensors.popitem(last=False)
            self.n_bytes -= dropped.nbytes
        return wanted
