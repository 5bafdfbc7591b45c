"""Receivers of path patching: where a sender's changed value can be read. Small, comparable, self-describing values.

>>> print(Logits(), HeadInput(3, 4, "v"), MLPInput(2), Resid(1))
logits 3.4.v mlp2 resid1
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Logits:
    """The final residual stream at the last position, as the unembedding reads it."""

    def __str__(self) -> str:
        return "logits"

    def stage(self, n_layers: int) -> int:
        """Where a receiver reads: 2 * layer before that layer's attention, 2 * layer + 1 before its MLP, 2 * n_layers at the end."""
        return 2 * n_layers


@dataclass(frozen=True)
class HeadInput:
    """The q, k or v of one head, at all positions or only at some (a tuple of them, from 0)."""

    layer: int
    head: int
    which: str
    positions: tuple[int, ...] | None = None

    def __str__(self) -> str:
        return f"{self.layer}.{self.head}.{self.which}"

    def stage(self, n_layers: int) -> int:
        return 2 * self.layer


@dataclass(frozen=True)
class MLPInput:
    """What an MLP reads (its norm's input), not the stream that passes it by; at all positions or only at some."""

    layer: int
    positions: tuple[int, ...] | None = None

    def __str__(self) -> str:
        return f"mlp{self.layer}"

    def stage(self, n_layers: int) -> int:
        return 2 * self.layer + 1


@dataclass(frozen=True)
class Resid:
    """The whole residual stream that enters a block (`hook_resid_pre`), at all positions or only at some."""

    layer: int
    positions: tuple[int, ...] | None = None

    def __str__(self) -> str:
        return f"resid{self.layer}"

    def stage(self, n_layers: int) -> int:
        return 2 * self.layer


Receiver = Logits | HeadInput | MLPInput | Resid
