"""What a dtype is worth: how far the effects that it gives are off those in float64."""

import copy
from collections.abc import Sequence

import torch

from minifunc.patching import Asked, PathPatcher, Receiver
from minifunc.support.settled import settled


@settled
def effects_error(
    patcher: PathPatcher, receivers: Sequence[Receiver], senders: Asked | None = None, n: int = 8
) -> tuple[float, float]:
    """(error, largest), in logits: the largest difference from float64, with the same weights, and
    the largest effect there. An effect is the mean of F_patched - F_contrast over n prompts."""
    base, contrast, (b, c) = patcher.base_tokens, patcher.contrast_tokens, patcher.answers[:n].T
    effects = []
    for model in (patcher.model, copy.deepcopy(patcher.model).double()):
        twin = PathPatcher(model, base[:n], contrast[:n], b, c, patcher.freeze_mlps)
        found = twin.sweep_each(receivers, senders)
        effects.append(torch.stack([each.per_prompt.mean(1) for each in found]))
    low, high = effects
    return (low - high).abs().max().item(), high.abs().max().item()
