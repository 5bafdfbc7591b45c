"""What the analyses share: activations of many prompts, and what the prompts' examples say."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minifunc.model import Transformer
from minifunc.support.checks import check_tokens, of_type

ROWS = 256  # prompts in one forward pass


@dataclass(frozen=True)
class Examples:
    """Prompts of examples `x op y = c ;`, with the numbers that stand in them; on the CPU."""

    tokens: Tensor  # [n_prompts, pos] int64
    answers: Tensor  # [n_shots] int64: the positions of the shown answers
    expected: Tensor  # [n_prompts, n_shots] int64: f(x, y)
    shown: Tensor  # [n_prompts, n_shots] int64: c

    @property
    def difference(self) -> Tensor:
        """d = c - f(x, y), [n_prompts, n_shots]."""
        return self.shown - self.expected

    def rows(self, which: Tensor) -> "Examples":
        """Some of the prompts, by their numbers."""
        tokens, expected, shown = (x[which] for x in (self.tokens, self.expected, self.shown))
        return Examples(tokens, self.answers, expected, shown)


@torch.no_grad()
def activations(
    model: Transformer,
    tokens: Tensor,
    names: Sequence[str],
    cut: Callable[[Tensor], Tensor],
    last: bool = False,
) -> dict[str, Tensor]:
    """{name: activation at this hook point} for tokens [n_prompts, pos], a few prompts at a time.
    cut: takes what is kept from an activation [batch, …]. last: the last position is enough."""
    check_tokens(tokens, model.cfg.d_vocab)
    positions = [tokens.shape[1] - 1] if of_type(bool, "last", last) else None
    kept: dict[str, list[Tensor]] = {name: [] for name in names}
    for rows in tokens.split(ROWS):
        _, cache = model.run_with_cache(rows.to(model.device), names, positions)
        for name in names:
            kept[name].append(cut(cache[name]).clone())  # the rest of it is freed
    return {name: torch.cat(parts) for name, parts in kept.items()}
