"""The other side of the benchmark: path patching as people write it today, one path at a time.

The published two-pass loop (arXiv 2507.09875), on TransformerLens 2.18 or on our own model: a pass
with every head frozen but the sender, to see what the receiver reads, and one that overwrites it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import tasks
from experiments.bench_sweep import SweepPath
from minifunc import definition
from minifunc.model import ModelConfig, Transformer
from minifunc.patching import Receiver
from minifunc.support.hooks import Hook
from minifunc.support.settings import added_parts

try:
    import transformer_lens as lens
except ImportError:
    lens = None

OWN = "own two-pass loop"
Run = Callable[[Tensor, Mapping[str, Hook]], Tensor]  # tokens, hooks by name → logits of one pass


def sides(model: Transformer, pairs: tasks.Pairs) -> dict[str, "Loop"]:
    """The loops that can be run here."""
    found = {}
    if lens is not None and not added_parts(model.cfg):
        found["two-pass loop on TransformerLens 2.18"] = Loop(model, pairs, lens_runner(model))
    return found | {OWN: Loop(model, pairs, model.run_with_hooks)}


class Loop:
    """The two-pass loop, MLPs live: `start` makes the two cached runs, for all paths; after `ask`,
    `changes` holds F_patched - F_contrast, [path, n_prompts]."""

    def __init__(self, model: Transformer, pairs: tasks.Pairs, run: Run) -> None:
        self.run, self.cfg = run, model.cfg
        self.base, self.contrast = pairs.base.to(model.device), pairs.contrast.to(model.device)
        answers = torch.stack([pairs.base_answers, pairs.contrast_answers], dim=1)
        self.answers = answers.to(model.device)  # [n_prompts, 2]
        self.z_names = [f"blocks.{layer}.attn.hook_z" for layer in range(self.cfg.n_layers)]

    def F(self, logits: Tensor) -> Tensor:
        """Logit(base answer) - logit(contrast answer): [n_prompts, pos, d_vocab] → [n_prompts]."""
        picked = logits[:, -1].gather(-1, self.answers)
        return picked[:, 0] - picked[:, 1]

    def start(self) -> None:
        self.z_base: dict[str, Tensor] = {}
        self.z_contrast: dict[str, Tensor] = {}
        self.run(self.base, dict.fromkeys(self.z_names, storing_in(self.z_base)))
        hooks = dict.fromkeys(self.z_names, storing_in(self.z_contrast))
        self.F_contrast = self.F(self.run(self.contrast, hooks))

    def ask(self, paths: Sequence[SweepPath]) -> None:
        """Patches each path."""
        self.changes = torch.stack([self.F_patched(*path) for path in paths]) - self.F_contrast

    def F_patched(self, head: str, receiver: Receiver) -> Tensor:
        sends, reads = definition.sender(head), definition.receiver(str(receiver), self.cfg)
        z = dict(self.z_contrast)
        z[sends.hook] = sends.put(z[sends.hook], self.z_base[sends.hook])
        frozen = dict.fromkeys(z, lambda _, name: z[name])
        read: dict[str, Tensor] = {}  # by the receiver, in the first pass
        self.run(self.contrast, frozen | {reads.hook: storing_in(read)})
        overwritten = {reads.hook: lambda x, name: reads.put(x, read[name])}
        return self.F(self.run(self.contrast, overwritten))


def storing_in(cache: dict[str, Tensor]) -> Hook:
    """A hook that keeps each activation it meets, by name."""

    def store(x: Tensor, name: str) -> Tensor:
        cache[name] = x
        return x

    return store


def lens_config(cfg: ModelConfig) -> dict[str, Any]:
    """The same shape, as arguments of a HookedTransformerConfig."""
    same = ("n_layers", "n_heads", "d_model", "d_head", "d_mlp", "d_vocab", "n_ctx", "eps")
    config = {name: getattr(cfg, name) for name in same}
    config |= {"normalization_type": cfg.normalization, "init_weights": False, "device": "cpu"}
    config |= {"act_fn": cfg.act_fn if cfg.has_mlp else None, "attn_only": not cfg.has_mlp}
    if cfg.positions == "rotary":
        config |= {"positional_embedding_type": "rotary", "rotary_dim": cfg.d_head}
        config |= {"rotary_base": int(cfg.rotary_base), "rotary_adjacent_pairs": True}
    return config


def lens_runner(model: Transformer) -> Run:
    """Passes through our weights in TransformerLens, on the same device."""
    config = lens_config(model.cfg) | {"device": str(model.device), "dtype": model.dtype}
    other = lens.HookedTransformer(lens.HookedTransformerConfig(**config)).requires_grad_(False)
    for parameter in other.parameters():
        parameter.data.zero_()  # what we lack (biases) stays zero
    other.load_state_dict(model.state_dict(), strict=False)

    def run(tokens: Tensor, hooks: Mapping[str, Hook]) -> Tensor:
        def by_name(x: Tensor, hook: Any) -> Tensor:  # it is given the hook point
            return hooks[hook.name](x, hook.name)

        return other.run_with_hooks(tokens, fwd_hooks=[(name, by_name) for name in hooks])

    return run
