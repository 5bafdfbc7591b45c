"""Attribution patching: what path patching would find if the model were linear, from one backward pass.

The effect of a sender on the logits is estimated as gradient · change (Nanda 2023; Syed et al. 2023). It costs
almost nothing, and it misses all that bends: a norm that rescales, a nonlinearity that switches. So it is a first
screen, printed beside the exact values and never in their place.
"""

import torch
from torch import Tensor

from minifunc.model import Hooks
from minifunc.pairs import Chunk
from minifunc.patching import Effects, PathPatcher
from minifunc.support.processes import all_sum


def attribute(patcher: PathPatcher) -> Effects:
    """The first-order estimate of `patcher.sweep(Logits())`, in the same layout and under the same semantics.

    The gradient is taken along direct paths only: each head's z is cut off from what made it, as pass 1 of path
    patching freezes it; with frozen MLPs their outputs are cut off as well.
    """
    total = torch.zeros(len(patcher.senders), patcher.n_prompts, dtype=torch.float64)

    def along(
        chunk: Chunk, gradients: dict[str, Tensor], name: str, head: int | None = None
    ) -> Tensor:
        """Gradient times what the sender would change, [p]."""
        change, gradient = patcher.change(chunk, name, slice(None), head), gradients[name]
        gradient = (gradient if head is None else gradient[:, :, head])[:, -change.shape[1] :]
        return (gradient * change).flatten(1).sum(1)

    for chunk in patcher.chunks():
        watched: dict[str, Tensor] = {}

        def cut(x: Tensor, name: str, watched: dict[str, Tensor] = watched) -> Tensor:
            watched[name] = x.detach().requires_grad_()
            return watched[name]

        def watch(x: Tensor, name: str, watched: dict[str, Tensor] = watched) -> Tensor:
            watched[name] = x
            return x

        layers = range(patcher.cfg.n_layers)
        hooks = {"hook_embed": cut} | {f"blocks.{layer}.attn.hook_z": cut for layer in layers}
        if patcher.cfg.has_mlp:
            hooks |= {
                f"blocks.{layer}.hook_mlp_out": cut if patcher.freeze_mlps else watch
                for layer in layers
            }
        with torch.enable_grad():
            logits = patcher.model(
                patcher.contrast_tokens[chunk.prompts], patcher.last, Hooks(hooks)
            )[:, -1]
            found = torch.autograd.grad(
                patcher.score(logits, chunk.prompts).sum(), list(watched.values())
            )
        gradients = dict(zip(watched, found))
        rows = [along(chunk, gradients, "hook_embed")]
        for layer in layers:
            rows += [
                along(chunk, gradients, f"blocks.{layer}.attn.hook_z", head)
                for head in range(patcher.cfg.n_heads)
            ]
            rows += (
                [along(chunk, gradients, f"blocks.{layer}.hook_mlp_out")]
                if patcher.cfg.has_mlp
                else []
            )
        total[:, chunk.prompts] = torch.stack(rows).double().cpu()
    all_sum(total)
    return patcher.effects(total)


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation of two tensors of one shape; equal values share the mean of their ranks.

    >>> round(rank_correlation(torch.tensor([1, 2, 3]), torch.tensor([1, 100, 10])), 6)
    0.5
    """

    def ranks(x: Tensor) -> Tensor:
        x = x.flatten().double()
        below, equal = (x[:, None] > x).sum(1), (x[:, None] == x).sum(1)
        rank = below + (equal - 1) / 2
        return rank - rank.mean()

    a, b = ranks(a), ranks(b)
    return (a @ b / (a.norm() * b.norm()).clamp(min=1e-12)).item()
