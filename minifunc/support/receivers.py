"""What can receive in path patching (`minifunc/patching.py`): pass 1 asks a receiver what it reads
of the changed stream, and pass 2 puts that at the receiver's hook point."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minifunc.model import ModelConfig, Transformer
from minifunc.support import checks
from minifunc.support.products import product

TURNED = {"q": "rot_q", "k": "rot_k", "v": "v"}  # hook points behind the rotary positions


class Receiver:
    """Where a sender's change can be read: a value that knows what it reads, and at which stage.
    head: of which head it is an input (None: of none), and which: its "q", "k" or "v". is_stream:
    whether it is the residual stream itself, not what a head or an MLP reads of it."""

    layer: int
    head: int | None
    which: str
    kinds: tuple[str, ...] = ("q", "k", "v")  # what `which` may be
    positions: checks.Positions  # any whole numbers from 0; None: everywhere
    is_stream = False

    def __post_init__(self) -> None:  # positions are read once, and kept
        object.__setattr__(self, "positions", checks.checked_place(self.head, self.positions))

    def hook(self, cfg: ModelConfig) -> str:
        """The hook point that pass 2 overwrites."""
        return ""

    def stage(self, cfg: ModelConfig) -> int:
        return 2 * self.layer

    def heads(self, cfg: ModelConfig) -> Sequence[int]:
        """The (query) heads that read it, so that their z changes."""
        return [] if self.head is None else [self.head]

    def read(self, model: Transformer, x: Tensor) -> Tensor:
        """What it reads of x [sender, prompt, pos, d_model], the stream; normalized for heads."""
        return x


@dataclass(frozen=True)
class Logits(Receiver):
    """The final residual stream at the last position; the last norm and the unembedding follow."""

    head = positions = None
    is_stream = True

    def __str__(self) -> str:
        return "logits"

    def stage(self, cfg: ModelConfig) -> int:
        return 2 * cfg.n_layers


@dataclass(frozen=True)
class HeadInput(Receiver):
    """The q, k or v of one head, at all positions or only at some. Where heads are grouped, k and v
    are the head's own copy: the others of its group read on as before."""

    layer: int
    head: int
    which: str
    positions: checks.Positions = None

    def __str__(self) -> str:
        return f"{self.layer}.{self.head}.{self.which}"

    def hook(self, cfg: ModelConfig) -> str:
        is_copy = cfg.n_sharing > 1 and self.which != "q"
        name = f"{self.which}_of_heads" if is_copy else TURNED[self.which]
        return f"blocks.{self.layer}.attn.hook_{name}"

    def read(self, model: Transformer, x: Tensor) -> Tensor:
        """q and k with their positions worked in: [..., pos, d_head]."""
        attn, kind = model.blocks[self.layer].attn, self.which.upper()
        head = self.heads(model.cfg)[0]  # any of those that share k and v
        index = head if kind == "Q" else head // model.cfg.n_sharing
        value = product(x, getattr(attn, f"W_{kind}")[index])
        if model.cfg.qkv_bias:
            value = value + getattr(attn, f"b_{kind}")[index]
        if self.which == "v":
            return value
        positions = torch.arange(x.shape[-2], device=x.device)
        return attn.with_position(value[..., None, :], positions).squeeze(-2)


@dataclass(frozen=True)
class KVInput(HeadInput):
    """The k or v of a whole key/value head, for all heads of its group. `head`: which of these.
    A model whose heads are not grouped has none: there it would be a `HeadInput`."""

    kinds = ("k", "v")

    def __str__(self) -> str:
        return f"{self.layer}.kv{self.head}.{self.which}"

    def hook(self, cfg: ModelConfig) -> str:
        return f"blocks.{self.layer}.attn.hook_{TURNED[self.which]}" if cfg.n_sharing > 1 else ""

    def heads(self, cfg: ModelConfig) -> Sequence[int]:
        return range(self.head * cfg.n_sharing, (self.head + 1) * cfg.n_sharing)


@dataclass(frozen=True)
class MLPInput(Receiver):
    """What an MLP reads (its norm's input), not the stream that passes it by."""

    layer: int
    positions: checks.Positions = None
    head = None

    def __str__(self) -> str:
        return f"mlp{self.layer}"

    def hook(self, cfg: ModelConfig) -> str:
        return f"blocks.{self.layer}.hook_mlp_in"

    def stage(self, cfg: ModelConfig) -> int:
        return 2 * self.layer + 1


@dataclass(frozen=True)
class Resid(Receiver):
    """The residual stream that enters a block (layer = n_layers: that leaves the last one)."""

    layer: int
    positions: checks.Positions = None
    head = None
    is_stream = True

    def __str__(self) -> str:
        return f"resid{self.layer}"

    def hook(self, cfg: ModelConfig) -> str:
        return f"blocks.{self.layer}.hook_resid_pre"
