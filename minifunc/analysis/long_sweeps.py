"""Sweeps that take long: some prompts at a time, and what is done is kept on disk.

`PathPatcher` sweeps all prompts at once. With a large model that takes minutes or hours. Here each
part of the prompts has a patcher of its own, and its effects are written down when they are known,
so that the same call goes on where an earlier one stopped. The result is that of one patcher: an
effect is a mean over prompts, and so is the range of F that it is measured by.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from minifunc.model import Transformer
from minifunc.patching import Effects, PathPatcher, Receiver
from minifunc.support.checks import counted
from minifunc.support.effects import Senders
from minifunc.support.errors import UserError
from minifunc.support.evaluation import bootstrap
from minifunc.support.files import load_tensors, make_folder, save_tensors
from minifunc.support.names import Found
from minifunc.support.runs import weights_hash
from minifunc.support.tables import table

TOGETHER = 10  # prompts whose effects are written down together


@dataclass(frozen=True)
class Swept:
    """Effects of the senders on a receiver, and F of both runs, [n_prompts] float64, in logits."""

    senders: list[str]
    effects: Effects
    F_base: Tensor
    F_contrast: Tensor

    @property
    def F(self) -> dict[str, float]:
        """The means over prompts."""
        return {"base": self.F_base.mean().item(), "contrast": self.F_contrast.mean().item()}

    def intervals(self) -> dict[str, list[float]]:
        """95 % intervals of r over prompts, by sender."""
        change = self.effects.per_prompt
        return dict(zip(self.senders, bootstrap(change, self.F_contrast - self.F_base)))

    def told(self, to: str, n_listed: int) -> list[str]:
        """The strongest senders, with the intervals of their r. to: names the receiver."""
        intervals, rows = self.intervals(), []
        for name, r in list(self.effects.named(strongest_first=True).items())[:n_listed]:
            rows.append([name, 100 * r, *(100 * end for end in intervals[name])])
        says = f"what reaches {to}, r in % and its 95 % interval over {len(self.F_base)} prompts"
        F = "F: base {base:.2f}, contrast {contrast:.2f}".format(**self.F)
        lines = [f"{says} ({F})", *table(["sender", "r", "from", "to"], rows, digits=1)]
        if not bootstrap((self.F_base - self.F_contrast)[None])[0][0] > 0:  # also where it is NaN
            lines.append("warning: F rises here, or may not fall (95 %), so r tells nothing")
        return lines


def digest(model: Transformer, tokens: Iterable[Tensor]) -> str:
    """What stands for a model, by its weights, and for what it is asked."""
    found = hashlib.sha256(f"{model.cfg} {weights_hash(model.state_dict())}".encode())
    for tensor in tokens:
        found.update(tensor.cpu().long().numpy().tobytes())
    return found.hexdigest()


class LongSweeps:
    """Paired prompts of one model. tokens, answers: of base and of contrast, as in `PathPatcher`;
    folder: where the effects are kept, a file for each receiver."""

    def __init__(
        self,
        model: Transformer,
        tokens: tuple[Tensor, Tensor],
        answers: tuple[Tensor, Tensor],
        folder: Path,
        max_memory: float | None = None,
    ) -> None:
        self.model, self.prompts = model, (*tokens, *answers)
        self.folder, self.max_memory = folder, max_memory
        self.about = digest(model, self.prompts)
        make_folder(folder)

    def sweep(self, receiver: Receiver, n_prompts: int | None = None) -> Swept:
        """The effects on a receiver, from the first n_prompts (None: all). Raises UserError for
        kept effects of other weights or prompts, answers that are alike, and too little memory."""
        path, n_all = self.folder / f"{receiver}.pt", len(self.prompts[0])
        wanted = n_all if n_prompts is None else min(counted("n_prompts", n_prompts), n_all)
        about = f"{self.about} {receiver.positions}".removesuffix(" None")
        kept: Found = {"about": about, "change": [], "F": []}
        if path.exists():
            kept = load_tensors(path)
        if kept.get("about") != about:
            raise UserError(f"{path} is of other weights, prompts or positions: use another folder")
        n_done = sum(part.shape[1] for part in kept["change"])
        bar = tqdm(total=wanted, initial=n_done, desc=f"→ {receiver}", unit="prompt", disable=None)
        with bar:
            for start in range(n_done, wanted, TOGETHER):
                some = slice(start, min(start + TOGETHER, wanted))
                x, y, a, b = (each[some] for each in self.prompts)  # tokens, their answers
                try:
                    patcher = PathPatcher(self.model, x, y, a, b, max_memory=self.max_memory)
                    kept["change"].append(patcher.sweep(receiver).per_prompt)
                except ValueError as error:  # answers that are alike, too little memory
                    raise UserError(str(error)) from None
                kept["F"].append(torch.stack([patcher.F_base, patcher.F_contrast]).cpu())
                save_tensors(path, kept)
                bar.update(some.stop - start)
        change = torch.cat(kept["change"], dim=1)[:, :wanted]  # [n_senders, n_prompts]
        F_base, F_contrast = torch.cat(kept["F"], dim=1)[:, :wanted]
        order = Senders(self.model.cfg)
        alone = [(sender,) for sender in range(len(order.names))]
        r = change.mean(1) / (F_contrast - F_base).mean()
        return Swept(order.names, order.effects(alone, change, r), F_base, F_contrast)
