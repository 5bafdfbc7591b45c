"""Rows of examples: drawn, and looked through from left to right. Rows are independent.

`asked` [n_rows, n_examples] bool says which examples a question is about; the others don't count.
"""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor


def integers(
    low: Tensor | int, high: Tensor | int, size: tuple[int, ...], generator: Generator
) -> Tensor:
    """Whole numbers from `low` to `high` - 1, each as likely: [*size] int64.

    >>> integers(3, 5, (6,), Generator().manual_seed(0))
    tensor([4, 4, 3, 4, 4, 4])
    """
    drawn = torch.rand(size, generator=generator, dtype=torch.float64, device="cpu")
    return low + (drawn * (high - low)).long()


def among(values: Sequence[int], size: Sequence[int], generator: Generator) -> Tensor:
    """Some of `values`, each as likely: [*size] int64.

    >>> among((3, 7), (6,), Generator().manual_seed(0))
    tensor([7, 7, 3, 7, 7, 7])
    """
    index = integers(0, len(values), tuple(size), generator)
    return torch.tensor(values, dtype=torch.int64, device="cpu")[index]


def redrawn(x: Tensor, allowed: Sequence[int], generator: Generator) -> Tensor:
    """x [...] int64, where what is not allowed is drawn anew among what is. Draws only if it must.

    >>> redrawn(torch.tensor([1, 2, 3, 2]), (1, 3), Generator().manual_seed(0))
    tensor([1, 3, 3, 3])
    """
    missing = ~torch.isin(x, torch.tensor(allowed, dtype=torch.int64, device="cpu"))
    return torch.where(missing, among(allowed, x.shape, generator), x) if missing.any() else x


def evenly(drawn: Tensor, values: Tensor) -> Tensor:
    """Numbers in [0, 1) → indices into values [n], so that each value is as likely as another.

    >>> evenly(torch.tensor([0.1, 0.4, 0.6, 0.9]), torch.tensor([3, 3, 3, 5])).tolist()
    [0, 2, 3, 3]
    """
    n_same = values.bincount()[values]  # [n]
    up_to = (1 / len(values.unique()) / n_same.double()).cumsum(0)
    return torch.searchsorted(up_to, drawn, right=True).clamp(max=len(values) - 1)


def permuted(x: Tensor, n: int, generator: Generator) -> Tensor:
    """x [n_rows, n_examples] from 0 to n - 1, changed by a random permutation of these numbers.
    Every row has a permutation of its own."""
    keys = torch.rand(len(x), n, generator=generator, dtype=torch.float32, device="cpu")
    return keys.argsort(1).gather(1, x)


def all_so_far(holds: Tensor, asked: Tensor) -> Tensor:
    """For each example: does it hold of all asked up to there? [n_rows, n_examples] bool.

    >>> all_so_far(torch.tensor([[True, False, True]]), torch.tensor([[True, True, True]]))
    tensor([[ True, False, False]])
    """
    return (holds | ~asked).cummin(1).values


def same_so_far(x: Tensor, asked: Tensor) -> Tensor:
    """For each example: is x the same for all asked up to there? [n_rows, n_examples] bool.

    >>> same_so_far(torch.tensor([[7, 1, 7, 2]]), torch.tensor([[True, False, True, True]]))
    tensor([[ True,  True,  True, False]])
    """
    first = x.gather(1, asked.int().argmax(1, keepdim=True))
    return all_so_far(x == first, asked)


def met_before(x: Tensor) -> Tensor:
    """For each example: has its x been met to the left of it? [n_rows, n_examples] bool.

    >>> met_before(torch.tensor([[5, 6, 5, 5]]))
    tensor([[False, False,  True,  True]])
    """
    return (x[:, :, None] == x[:, None]).tril(-1).any(2)


def nearest(points: Tensor, others: Tensor, allowed: Tensor) -> Tensor:
    """For each of points [n, 2] the nearest of others [m, 2] that is allowed, or -1: [n] int64.

    allowed: [n, m] bool. A change of the first number is preferred to one of the second.

    >>> points, others = torch.tensor([[1, 1], [1, 1]]), torch.tensor([[1, 2], [2, 1], [3, 1]])
    >>> yes, no = True, False
    >>> nearest(points, others, torch.tensor([[yes, yes, yes], [no, no, no]]))
    tensor([ 1, -1])
    """
    apart = (points[:, None] - others).abs()  # [n, m, 2]
    distance = (apart[..., 0] + 1.01 * apart[..., 1]).masked_fill(~allowed, torch.inf)
    least, index = distance.min(dim=1)
    return torch.where(least.isfinite(), index, -1)
