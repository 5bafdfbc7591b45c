"""Attribution patching: path patching as if the model were linear, from one backward pass.

The effect of a sender on the logits is estimated as gradient · change (Nanda 2023; Syed et al.
2023). It costs almost nothing. It misses all that bends: a norm that rescales, a nonlinearity that
switches. So it is a first screen, printed beside the exact values and never in their place.
"""

import torch
from torch import Tensor

from minifunc.patching import Effects, PathPatcher
from minifunc.support.hooks import Hooks
from minifunc.support.pairs import CachedRuns
from minifunc.support.processes import all_sum
from minifunc.support.settled import settled


def attribute(patcher: PathPatcher) -> Effects:
    """The first-order estimate of `patcher.sweep(Logits())`, in the same layout and semantics."""
    total = torch.zeros(len(patcher.senders), patcher.n_prompts, dtype=torch.float64, device="cpu")
    for runs in patcher.cached_runs():
        gradients = direct_gradients(patcher, runs)
        rows: list[Tensor] = []  # [p] each, in the order of patcher.senders
        for name, change in patcher.changes(runs, patcher.n_pos, "base", None).items():
            # In the last block, of the last position alone.
            product = gradients[name][:, -change.shape[1] :] * change
            if product.ndim == 3:  # a head's has one dimension more: [p, pos, head, d_head]
                product = product[:, :, None]
            rows += product.sum((1, 3)).unbind(1)
        total[:, runs.prompts] = torch.stack(rows).double().cpu()
    all_sum(total)
    alone = [(sender,) for sender in range(len(patcher.senders))]
    return patcher.order.effects(alone, total, total.mean(dim=1) / patcher.F_range)


@settled
def direct_gradients(patcher: PathPatcher, runs: CachedRuns) -> dict[str, Tensor]:
    """The gradient of F at each hook point where senders write, along direct paths only: what pass
    1 of path patching freezes (each z, and frozen MLPs' outputs) is cut off from what made it."""
    watched: dict[str, Tensor] = {}

    def watch(x: Tensor, name: str) -> Tensor:
        through_mlp = name.endswith("hook_mlp_out") and not patcher.freeze_mlps
        watched[name] = x if through_mlp else x.detach().requires_grad_()
        return watched[name]

    tokens = patcher.contrast_tokens[runs.prompts].clone()  # no tensor of inference mode
    with torch.enable_grad():
        logits = patcher.model(tokens, patcher.last, Hooks(dict.fromkeys(patcher.sent, watch)))
        F = patcher.score(logits[:, -1], runs.prompts).sum()
        gradients = torch.autograd.grad(F, list(watched.values()))
    return dict(zip(watched, gradients))


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation of two tensors of one shape; equal values share their mean rank.

    >>> round(rank_correlation(torch.tensor([1, 2, 3]), torch.tensor([1, 100, 10])), 6)
    0.5
    """
    pair = torch.stack([a.flatten(), b.flatten()]).double()[:, :, None]
    below = (pair > pair.mT).sum(2) + (pair >= pair.mT).sum(2)  # [2, n]: rank · 2, from 1
    return torch.corrcoef(below.double())[0, 1].nan_to_num().item()  # 0 where all are equal
