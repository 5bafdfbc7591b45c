"""Weights of half precision (bfloat16, float16) in a stream of float32."""

import torch
from torch import Tensor

SUMS_WIDER = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 8)  # mm has out_dtype


def in_stream(x: Tensor) -> Tensor:
    """x in the dtype of the residual stream: float32, or float64 where x has it."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., n] @ weight [n, m], in the dtype of x.

    Rounded to bfloat16, x has 8 bits, too few for a small change of it. So weights of half
    precision meet x as a sum of two numbers of theirs, of 16 bits (float16: 22, but of x below
    65504), and what is summed up is float32. On CUDA, from torch 2.8 on, these are two products in
    half precision; elsewhere, or for gradients, one in float32 of the same numbers.
    """
    if weight.dtype == x.dtype:
        return x @ weight
    high = x.to(weight.dtype)
    low = (x - high).to(weight.dtype)
    if not (x.is_cuda and SUMS_WIDER) or torch.is_grad_enabled():
        return (high.to(x.dtype) + low) @ weight.to(x.dtype)
    result = torch.mm(high.flatten(0, -2), weight, out_dtype=x.dtype)
    result += torch.mm(low.flatten(0, -2), weight, out_dtype=x.dtype)
    return result.unflatten(0, x.shape[:-1])
