"""What can receive in path patching: values that know where they read, and what they read there.

A sender's change reaches a receiver as a change of the stream. Pass 1 asks the receiver what it
reads of the changed stream; pass 2 puts that at the receiver's hook point (`minifunc/patching.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minifunc.model import ModelConfig, Transformer
from minifunc.support import checks
from minifunc.support.products import product


class Receiver:
    """Where a sender's change can be read: a value that knows what it reads, and at which stage.

    head: of which head it is an input (None: of none), and which: its "q", "k" or "v". is_stream:
    whether it is the residual stream itself, not what a head or an MLP reads of it.
    """

    head: int | None
    which = ""
    kinds: tuple[str, ...] = ("q", "k", "v")  # what `which` may be
    positions: checks.Positions  # any whole numbers from 0; None: everywhere
    is_stream = False

    def __post_init__(self) -> None:  # positions are read once, and kept
        vars(self)["positions"] = checks.checked_place(self.head, self.positions)

    def hook(self, cfg: ModelConfig) -> str:
        """The hook point that pass 2 overwrites."""
        return ""

    def stage(self, cfg: ModelConfig) -> int:
        raise NotImplementedError

    def heads(self, cfg: ModelConfig) -> Sequence[int]:
        """The (query) heads that read it at once, so that their z changes."""
        return ()

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
        turned = {"q": "rot_q", "k": "rot_k"}.get(self.which, self.which)
        is_copy = cfg.n_sharing > 1 and self.which != "q"
        return f"blocks.{self.layer}.attn.hook_{f'{self.which}_of_heads' if is_copy else turned}"

    def stage(self, cfg: ModelConfig) -> int:
        return 2 * self.layer

    def heads(self, cfg: ModelConfig) -> Sequence[int]:
        return [self.head]

    def read(self, model: Transformer, x: Tensor) -> Tensor:
        """q and k with their positions worked in: [..., pos, d_head]."""
        attn, index = model.blocks[self.layer].attn, self.index(model.cfg)
        value = product(x, getattr(attn, f"W_{self.which.upper()}")[index])
        if model.cfg.qkv_bias:
            value = value + getattr(attn, f"b_{self.which.upper()}")[index]
        if self.which == "v":
            return value
        positions = torch.arange(x.shape[-2], device=x.device)
        return attn.with_position(value[..., None, :], positions).squeeze(-2)

    def index(self, cfg: ModelConfig) -> int:
        """Whose matrices it reads with, among the heads, or the key/value heads for k and v."""
        return self.head if self.which == "q" else self.head // cfg.n_sharing


@dataclass(frozen=True)
class KVInput(HeadInput):
    """The k or v of a whole key/value head, for all heads of its group. `head`: which of these.
    A model whose heads are not grouped has none: there it would be a `HeadInput`."""

    kinds = ("k", "v")

    def __str__(self) -> str:
        return f"{self.layer}.kv{self.head}.{self.which}"

    def hook(self, cfg: ModelConfig) -> str:
        name = "rot_k" if self.which == "k" else self.which
        return f"blocks.{self.layer}.attn.hook_{name}" if cfg.n_sharing > 1 else ""

    def heads(self, cfg: ModelConfig) -> Sequence[int]:
        return range(self.head * cfg.n_sharing, (self.head + 1) * cfg.n_sharing)

    def index(self, cfg: ModelConfig) -> int:
        return self.head


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

    def stage(self, cfg: ModelConfig) -> int:
        return 2 * self.layer
