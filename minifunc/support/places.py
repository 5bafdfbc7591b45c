"""Where senders write and receivers read, by name, for `minifunc/definition.py`."""

from dataclasses import dataclass

from torch import Tensor

from minifunc.model import ModelConfig
from minifunc.support import checks


@dataclass(frozen=True)
class Place:
    """Where a sender writes or a receiver reads: at a hook point, one head (None: there are none),
    some positions (None: all)."""

    hook: str
    head: int | None = None
    positions: checks.Positions = None

    def __post_init__(self) -> None:  # positions are read once, and kept
        object.__setattr__(
            self, "positions", checks.checked_place(self.head, self.positions, self.hook)
        )

    def put(self, activation: Tensor, value: Tensor) -> Tensor:
        """`activation` [prompt, pos, (head,) …], but in this place what `value` holds there."""
        positions = list(checks.checked_positions(self.positions, activation.shape[1]))
        place = (slice(None), positions) + (() if self.head is None else (self.head,))
        activation = activation.clone()
        activation[place] = checks.alike(value, activation)[place]
        return activation


def sender(name: str, positions: checks.Positions = None) -> Place:
    """Where "embedding", "mlp2" or the head "3.1" writes."""
    if checks.checked_node(name, "embedding", "mlp0", "0.0") == "embedding":
        return Place("hook_embed", None, positions)
    if name.startswith("mlp"):
        return Place(f"blocks.{name[3:]}.hook_mlp_out", None, positions)
    layer, head = name.split(".")
    return Place(f"blocks.{layer}.attn.hook_z", int(head), positions)


def receiver(name: str, cfg: ModelConfig, positions: checks.Positions = None) -> Place:
    """Where "logits", "mlp2", "resid2" (the stream that enters block 2) or "3.1.v" reads. In a
    group that is the copy which head 3.1 alone reads; "3.kv0.v" is what the whole group does."""
    grouped = checks.of_type(ModelConfig, "cfg", cfg).n_sharing > 1
    known = ["logits", "resid0", "mlp0", "0.0.v", *["0.kv0.v"] * grouped]
    if checks.checked_node(name, *known).startswith("mlp"):
        return Place(f"blocks.{name[3:]}.hook_mlp_in", None, positions)
    if name in ("logits", f"resid{cfg.n_layers}"):
        return Place(f"blocks.{cfg.n_layers - 1}.hook_resid_post", None, positions)
    if name.startswith("resid"):
        return Place(f"blocks.{name[5:]}.hook_resid_pre", None, positions)
    layer, head, q_k_or_v = name.split(".")
    if grouped and q_k_or_v != "q" and not head.startswith("kv"):
        q_k_or_v += "_of_heads"
    return Place(f"blocks.{layer}.attn.hook_{q_k_or_v}", int(head.removeprefix("kv")), positions)
