"""Path patching as it is defined: two passes of the whole model for one sender and one receiver.

Two runs of a model on paired prompts are compared: a **base** run, and a **contrast** run, whose
examples show another rule. A **sender** (a head, say) wrote one thing in the base run, another in
the contrast run. How much does that matter to a **receiver** (the logits, say)?

Putting the sender's base output into the contrast run would not tell: other heads read it and pass
it on. We want to count only the **direct path**, the one that leads through no other head. So

    pass 1   Run the contrast prompts with every head frozen at what it wrote there. The sender
             alone writes what it wrote in the base run. Note what the receiver reads.
    pass 2   Run the contrast prompts again, all live, but the receiver reads what was noted.

In pass 1 norms run. MLPs run as well, so a direct path may lead through them (**live** MLPs, as in
arXiv 2507.09875); or they are frozen as heads are (`freeze_mlps`), and only the stream is left.
With F = logit(base answer) - logit(contrast answer), mean over prompts, the effect is

    r = (F_patched - F_contrast) / (F_contrast - F_base)      -1: all the way back to the base run

This is slow, and written to be read. `minifunc/patching.py` computes the same for all senders at
once. The tests hold it to this one, to 1e-10; the two share only the model.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from minifunc.model import Transformer
from minifunc.support import checks
from minifunc.support.places import Place, receiver, sender

__all__ = ["Place", "effect", "path_patch", "receiver", "sender"]


@torch.no_grad()
def path_patch(
    model: Transformer,
    contrast_tokens: Tensor,
    sent: Mapping[str, Tensor],
    senders: Sequence[Place],
    receivers: Sequence[Place],
    freeze_mlps: bool = False,
) -> Tensor:
    """Logits at the last position, [n_prompts, d_vocab]: those of the contrast run, but the direct
    paths from the senders to the receivers carry what is in `sent`, the activations of the base
    run by hook point. contrast_tokens [n_prompts, pos] int64."""
    _, contrast = model.run_with_cache(contrast_tokens)

    # Pass 1: what do the receivers read when all is frozen, and the senders write what was `sent`?
    mlps_frozen = checks.of_type(bool, "freeze_mlps", freeze_mlps)
    freezes = ("attn.hook_z", "hook_mlp_out") if mlps_frozen else ("attn.hook_z",)
    frozen = {name: x for name, x in contrast.items() if name.endswith(freezes)}
    for place in checks.checked_places(senders, contrast):
        before = frozen.get(place.hook, contrast[place.hook])
        frozen[place.hook] = place.put(before, sent[place.hook])
    receivers = checks.checked_places(receivers, contrast)
    read: dict[str, Tensor] = {}

    def freeze_and_note(activation: Tensor, name: str) -> Tensor:
        read[name] = frozen.get(name, activation)
        return read[name]

    hooks = [*frozen, *(place.hook for place in receivers)]
    model.run_with_hooks(contrast_tokens, dict.fromkeys(hooks, freeze_and_note))

    # Pass 2: what does the model answer when the receivers read that, and all else is live?
    def overwrite(activation: Tensor, name: str) -> Tensor:
        for place in receivers:
            if place.hook == name:
                activation = place.put(activation, read[name])
        return activation

    patched = model.run_with_hooks(contrast_tokens, {place.hook: overwrite for place in receivers})
    return patched[:, -1]


def effect(patched: Tensor, contrast: Tensor, base: Tensor, answers: Tensor) -> float:
    """r of three runs' logits at the last position, [n_prompts, d_vocab]; answers [n_prompts, 2]
    int64: the base and the contrast answer."""

    def F(logits: Tensor) -> Tensor:
        of_base, of_contrast = torch.take_along_dim(logits, answers, dim=1).unbind(1)
        return (of_base - of_contrast).mean()

    return ((F(patched) - F(contrast)) / (F(contrast) - F(base))).item()
