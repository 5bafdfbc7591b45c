"""The other sides of the benchmark: path patching as people write it today, one path at a time.

    Loop    the published two-pass loop (arXiv 2507.09875): one full pass with every head frozen
            but the sender, which records what the receiver reads, and one with the receiver
            overwritten. On TransformerLens 2.18, or on our own model.
    Edges   auto-circuit 1.0.1: one full pass with the one edge's difference added to the
            receiver's input, everything else live. That is `freeze_mlps=True` here: the direct
            path is the residual stream alone.

TransformerLens 4.3 has the second kind too (`get_act_patch_direct_path`: heads only, no logits),
but no longer the class that the first loop and auto-circuit are written for.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

import tasks
from experiments.bench_sweep import SweepPath
from minifunc import definition
from minifunc.model import Transformer
from minifunc.patching import Receiver
from minifunc.support.export import lens_config
from minifunc.support.hooks import Hook

try:
    import transformer_lens as lens
except ImportError:
    lens = None
try:
    from auto_circuit.utils import ablation_activations, graph_utils
except ImportError:
    graph_utils = None

OWN = "own two-pass loop"
Run = Callable[[Tensor, Mapping[str, Hook]], Tensor]  # tokens, hooks by name → logits of one pass


def sides(model: Transformer, pairs: tasks.Pairs, freeze_mlps: bool) -> dict[str, "Side"]:
    """The tools that are installed here and patch with live MLPs, or with frozen ones."""
    if freeze_mlps:
        has_edges = graph_utils is not None
        return {"auto-circuit 1.0.1, one pass per edge": Edges(model, pairs)} if has_edges else {}
    found: dict[str, Side] = {}
    if lens is not None:
        found["two-pass loop on TransformerLens 2.18"] = Loop(model, pairs, lens_runner(model))
    return found | {OWN: Loop(model, pairs, model.run_with_hooks)}


class Side:
    """What all loops share: the prompts, their score, and the paths asked for.

    `start` makes the two cached runs, for all paths, and sets F_contrast [n_prompts];
    `F_patched(head, receiver)` → [n_prompts].
    """

    def __init__(self, model: Transformer, pairs: tasks.Pairs) -> None:
        self.base, self.contrast = pairs.base.to(model.device), pairs.contrast.to(model.device)
        answers = torch.stack([pairs.base_answers, pairs.contrast_answers], dim=1)
        self.answers = answers.to(model.device)  # [n_prompts, 2]

    def F(self, logits: Tensor) -> Tensor:
        """Logit(base answer) - logit(contrast answer): [n_prompts, pos, d_vocab] → [n_prompts]."""
        picked = logits[:, -1].gather(-1, self.answers)
        return picked[:, 0] - picked[:, 1]

    def ask(self, paths: Sequence[SweepPath]) -> None:
        """Patches each path; `changes` is then F_patched - F_contrast, [path, n_prompts]."""
        F_patched = torch.stack([self.F_patched(*path) for path in paths])
        self.changes = F_patched - self.F_contrast


class Loop(Side):
    """The two-pass loop, MLPs live."""

    def __init__(self, model: Transformer, pairs: tasks.Pairs, run: Run) -> None:
        super().__init__(model, pairs)
        self.run, self.cfg = run, model.cfg
        self.z_names = [f"blocks.{layer}.attn.hook_z" for layer in range(self.cfg.n_layers)]

    def start(self) -> None:
        self.z_base: dict[str, Tensor] = {}
        self.z_contrast: dict[str, Tensor] = {}
        self.run(self.base, dict.fromkeys(self.z_names, storing_in(self.z_base)))
        hooks = dict.fromkeys(self.z_names, storing_in(self.z_contrast))
        self.F_contrast = self.F(self.run(self.contrast, hooks))

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


class Edges(Side):
    """auto-circuit, used as its own edge-by-edge search uses it.

    The patching mode is entered once, then one mask at a time is set.
    """

    def __init__(self, model: Transformer, pairs: tasks.Pairs) -> None:
        super().__init__(model, pairs)
        other = hooked_transformer(model)
        other.cfg.use_attn_result = other.cfg.use_split_qkv_input = other.cfg.use_hook_mlp_in = True
        options = {"factorized": True, "separate_qkv": True, "device": model.device}
        self.model = graph_utils.patchable_model(other, **options)
        self.edges = {edge.name: edge for edge in self.model.edges}
        self.mode = ExitStack()

    def start(self) -> None:
        self.mode.close()  # of an earlier start
        self.F_contrast = self.F(self.model(self.contrast))
        # [source, p, pos, d_model]
        sent = ablation_activations.src_ablations(self.model, self.base)
        self.mode.enter_context(graph_utils.patch_mode(self.model, sent, edges=[]))

    def F_patched(self, head: str, receiver: Receiver) -> Tensor:
        end = "Resid End" if receiver.is_stream else f"A{receiver}".upper()
        edge = self.edges[f"A{head}->{end}"]
        mask = edge.patch_mask(self.model).data
        mask[edge.patch_idx] = 1.0
        with torch.inference_mode():  # as there
            logits = self.model(self.contrast)
        mask[edge.patch_idx] = 0.0
        return self.F(logits)


def hooked_transformer(model: Transformer) -> "lens.HookedTransformer":
    """Our weights in TransformerLens, on the same device."""
    config = lens_config(model.cfg) | {"device": str(model.device), "dtype": model.dtype}
    other = lens.HookedTransformer(lens.HookedTransformerConfig(**config))
    for parameter in other.parameters():
        parameter.data.zero_()  # what we lack (biases) stays zero
    other.load_state_dict(model.state_dict(), strict=False)
    return other.requires_grad_(False)


def lens_runner(model: Transformer) -> Run:
    """Passes through our weights in TransformerLens."""
    other = hooked_transformer(model)

    def run(tokens: Tensor, hooks: Mapping[str, Hook]) -> Tensor:
        def by_name(x: Tensor, hook: Any) -> Tensor:  # it is given the hook point
            return hooks[hook.name](x, hook.name)

        return other.run_with_hooks(tokens, fwd_hooks=[(name, by_name) for name in hooks])

    return run
