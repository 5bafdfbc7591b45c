"""The other sides of the benchmark: path patching as people write it today, one sender and one receiver at a time.

    Loop    the published two-pass loop (arXiv 2507.09875): one full pass with every head frozen but the sender, which
            records the receiver, and one with the receiver overwritten. On TransformerLens 2.18, or on our own model.
    Edges   auto-circuit 1.0.1: one full pass with the one edge's difference added to the receiver's input, everything else live.
            That is `freeze_mlps=True` here: the direct path is the residual stream alone.

Both make their two cached runs in `start()` and share them over all pairs. TransformerLens 4.3 has the second kind too
(`get_act_patch_direct_path`: one full pass for each pair, heads only, no logits), but no longer the class that
the first loop and auto-circuit are written for, so it cannot stand beside them in one run.
"""

from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor

import tasks
from minifunc.model import Hooks, Transformer
from minifunc.patching import HeadInput, Logits

try:
    import transformer_lens as lens
except ImportError:
    lens = None
try:
    from auto_circuit.utils import ablation_activations, graph_utils
except ImportError:
    graph_utils = None

Head = tuple[int, int]  # (layer, head)


def hooked_transformer(model: Transformer) -> "lens.HookedTransformer":
    """Our weights in TransformerLens, on the same device. The model must have rotary positions, RMSNorm and MLPs."""
    cfg = model.cfg
    shape = {
        name: getattr(cfg, name)
        for name in (
            "n_layers",
            "n_heads",
            "d_model",
            "d_head",
            "d_mlp",
            "d_vocab",
            "n_ctx",
            "eps",
            "act_fn",
        )
    }
    rotary = {
        "positional_embedding_type": "rotary",
        "rotary_dim": cfg.d_head,
        "rotary_base": int(cfg.rotary_base),
        "rotary_adjacent_pairs": True,
    }
    device = str(model.unembed.W_U.device)
    other = lens.HookedTransformer(
        lens.HookedTransformerConfig(
            **shape, **rotary, normalization_type="RMS", init_weights=False, device=device
        )
    )
    for parameter in other.parameters():
        parameter.data.zero_()  # what we lack (biases) stays zero
    other.load_state_dict(model.state_dict(), strict=False)
    return other.requires_grad_(False)


class Side:
    """What both loops share: the prompts and their score. `change` gives F_patched - F_contrast, [n_prompts]."""

    def __init__(self, pairs: tasks.Pairs, device: torch.device) -> None:
        self.base, self.contrast = pairs.base.to(device), pairs.contrast.to(device)
        self.answers = torch.stack([pairs.base_answers, pairs.contrast_answers], dim=1).to(
            device
        )  # [n_prompts, 2]

    def F(self, logits: Tensor) -> Tensor:
        """logits [n_prompts, pos, d_vocab] → logit(base answer) - logit(contrast answer) at the last position, [n_prompts]."""
        picked = logits[:, -1].gather(-1, self.answers)
        return picked[:, 0] - picked[:, 1]

    def start(self) -> None:
        raise NotImplementedError

    def change(self, sender: Head, receiver: HeadInput | Logits) -> Tensor:
        raise NotImplementedError

    def close(self) -> None:
        """To be called when nothing more is asked."""


class Loop(Side):
    """The two-pass loop, MLPs live. `run(tokens, hooks)` gives the logits of one pass, hooks being {name: fn(activation, name)}."""

    def __init__(
        self,
        run: Callable[[Tensor, dict], Tensor],
        n_layers: int,
        pairs: tasks.Pairs,
        device: torch.device,
    ) -> None:
        super().__init__(pairs, device)
        self.run, self.n_layers = run, n_layers
        self.names = [f"blocks.{layer}.attn.hook_z" for layer in range(n_layers)]

    def cached(self, tokens: Tensor) -> dict[str, Tensor]:
        cache: dict[str, Tensor] = {}

        def store(x: Tensor, name: str) -> Tensor:
            cache[name] = x
            return x

        cache["logits"] = self.run(tokens, dict.fromkeys(self.names, store))
        return cache

    def start(self) -> None:
        self.of_base, self.of_contrast = self.cached(self.base), self.cached(self.contrast)

    def change(self, sender: Head, receiver: HeadInput | Logits) -> Tensor:
        noted: dict[str, Tensor] = {}
        to_head = isinstance(receiver, HeadInput)
        place = (
            f"blocks.{receiver.layer}.attn.hook_{receiver.which}"
            if to_head
            else f"blocks.{self.n_layers - 1}.hook_resid_post"
        )

        def frozen(x: Tensor, name: str) -> Tensor:
            z = self.of_contrast[name]
            if name == self.names[sender[0]]:
                z = z.clone()
                z[:, :, sender[1]] = self.of_base[name][:, :, sender[1]]
            return z

        def note(x: Tensor, name: str) -> Tensor:
            noted[name] = x
            return x

        def overwrite(x: Tensor, name: str) -> Tensor:
            if not to_head:
                return noted[name]
            x = x.clone()
            x[:, :, receiver.head] = noted[name][:, :, receiver.head]
            return x

        self.run(self.contrast, dict.fromkeys(self.names, frozen) | {place: note})
        return self.F(self.run(self.contrast, {place: overwrite})) - self.F(
            self.of_contrast["logits"]
        )


class Edges(Side):
    """auto-circuit, used as its own edge-by-edge search uses it: the patching mode is entered once, then one mask at a time is set."""

    def __init__(self, model: Transformer, pairs: tasks.Pairs, device: torch.device) -> None:
        super().__init__(pairs, device)
        other = hooked_transformer(model)
        other.cfg.use_attn_result = other.cfg.use_split_qkv_input = other.cfg.use_hook_mlp_in = True
        self.model = graph_utils.patchable_model(
            other, factorized=True, separate_qkv=True, device=device
        )
        self.edges = {edge.name: edge for edge in self.model.edges}
        self.mode = ExitStack()

    def close(self) -> None:
        self.mode.close()

    def start(self) -> None:
        self.close()  # of an earlier start
        self.of_contrast = self.model(self.contrast)
        sent = ablation_activations.src_ablations(
            self.model, self.base
        )  # [source, n_prompts, pos, d_model]
        self.mode.enter_context(graph_utils.patch_mode(self.model, sent, edges=[]))

    def change(self, sender: Head, receiver: HeadInput | Logits) -> Tensor:
        to = (
            f"A{receiver.layer}.{receiver.head}.{receiver.which.upper()}"
            if isinstance(receiver, HeadInput)
            else "Resid End"
        )
        edge = self.edges[f"A{sender[0]}.{sender[1]}->{to}"]
        mask = edge.patch_mask(self.model).data
        mask[edge.patch_idx] = 1.0
        with torch.inference_mode():  # as there
            logits = self.model(self.contrast)
        mask[edge.patch_idx] = 0.0
        return self.F(logits) - self.F(self.of_contrast)


def two_pass_loops(model: Transformer, pairs: tasks.Pairs) -> dict[str, Side]:
    """The two-pass loop on TransformerLens, where that is installed, and on our own model."""
    n_layers, device = model.cfg.n_layers, model.unembed.W_U.device
    sides: dict[str, Side] = {}
    if lens is not None:
        other = hooked_transformer(model)

        def run(
            tokens: Tensor, hooks: dict
        ) -> Tensor:  # TransformerLens passes the hook point, of which the loop wants the name
            return other.run_with_hooks(
                tokens,
                fwd_hooks=[
                    (name, lambda x, hook, fn=fn: fn(x, hook.name)) for name, fn in hooks.items()
                ],
            )

        sides["two-pass loop on TransformerLens 2.18"] = Loop(run, n_layers, pairs, device)
    sides["own two-pass loop"] = Loop(
        lambda tokens, hooks: model(tokens, None, Hooks(hooks)), n_layers, pairs, device
    )
    return sides


def edge_loops(model: Transformer, pairs: tasks.Pairs) -> dict[str, Side]:
    """auto-circuit, where it is installed."""
    return (
        {}
        if graph_utils is None
        else {
            "auto-circuit 1.0.1, one pass per edge": Edges(model, pairs, model.unembed.W_U.device)
        }
    )
