"""r by minifunc/definition.py, for all that the patcher takes: what the fast sweep is held to."""

import torch

from minifunc.definition import effect, path_patch, receiver, sender


class Oracle:
    """The arguments of PathPatcher, and those of its sweep that say what is sent."""

    def __init__(
        self,
        model,
        base,
        contrast,
        base_answers,
        contrast_answers,
        source="base",
        sender_positions=None,
    ):
        self.model, self.contrast = model, contrast
        self.answers = torch.stack([base_answers, contrast_answers], dim=1)
        self.positions = None if sender_positions is None else tuple(sender_positions)
        base_logits, self.sent = model.run_with_cache(base)
        self.of_base, self.of_contrast = base_logits[:, -1], model(contrast)[:, -1]
        if isinstance(source, torch.Tensor):
            _, self.sent = model.run_with_cache(source)
        elif source == "mean":
            self.sent = {
                name: x.mean(0, keepdim=True).expand_as(x) for name, x in self.sent.items()
            }
        elif source == "zero":
            self.sent = {name: torch.zeros_like(x) for name, x in self.sent.items()}

    def r(self, names, receivers, freeze_mlps=False):
        """r of one sender ("embedding", "mlp2", "1.3"), or of a list of them that send together, on
        receivers overwritten together: "logits", "2.1.q", "2.kv0.v", "mlp1", "resid2", with "@1,4"
        behind it where only some positions are."""
        senders = [
            sender(name, self.positions) for name in ([names] if isinstance(names, str) else names)
        ]
        places = []
        for name in receivers:
            name, _, where = name.partition("@")
            positions = tuple(map(int, where.split(","))) if where else None
            places.append(receiver(name, self.model.cfg, positions))
        logits = path_patch(self.model, self.contrast, self.sent, senders, places, freeze_mlps)
        return effect(logits, self.of_contrast, self.of_base, self.answers)
