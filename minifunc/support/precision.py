"""What a dtype is worth: how far the effects it gives are off those in float64."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from minifunc.patching import Asked, PathPatcher, Receiver
from minifunc.support.settled import settled

TOO_FAR = 0.05  # of the largest effect


@dataclass(frozen=True)
class Precision:
    """error: the largest |effect - effect in float64|, in logits; largest: the largest |effect|."""

    dtype: torch.dtype
    error: float
    largest: float

    @property
    def too_far(self) -> bool:
        return not self.error <= TOO_FAR * self.largest  # also where it is NaN

    def __str__(self) -> str:
        name, share = str(self.dtype).removeprefix("torch."), self.error / (self.largest or 1)
        warning = f": more than {TOO_FAR:.0%}, not to be relied on" if self.too_far else ""
        return f"{name}: off float64 by {share:.2g} of the largest effect{warning}"


@settled
def effects_error(
    patcher: PathPatcher, receivers: Sequence[Receiver], senders: Asked | None = None, n: int = 8
) -> Precision:
    """Sweeps the first n prompts twice, in the model's dtype and in float64, with the same weights.
    An effect is the mean of F_patched - F_contrast over these prompts. On CUDA the copy of the
    weights needs 8 bytes for each."""
    prompts = (patcher.base_tokens, patcher.contrast_tokens, *patcher.answers.T)
    effects = []
    for model in (patcher.model, copy.deepcopy(patcher.model).double()):
        some = PathPatcher(model, *(each[:n] for each in prompts), patcher.freeze_mlps)
        found = some.sweep_each(receivers, senders)
        effects.append(torch.stack([one.per_prompt.mean(1) for one in found]))
    low, high = effects
    return Precision(
        patcher.model.dtype, (low - high).abs().max().item(), high.abs().max().item()
    )
