"""Hooks: to see and to change activations, one call at a time.

A hook is `fn(activation, name)`; it returns the activation to go on with. Hooks are handed to one
call and passed down with it. Nothing is stored in the model, so nothing can stay behind.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from minifunc.support.checks import Positions, check_hook_names, check_returned

Hook = Callable[[Tensor, str], Tensor]


class Hooks:
    """What one call sees or changes. `hooks(activation, name)` returns what to go on with.
    functions: by hook point. Each gets a copy, and a copy of what it returns (of that shape and
    dtype) goes on, so no edit, then or later, changes more. keep: hook points to note in `kept`."""

    def __init__(
        self, functions: Mapping[str, Hook] | None = None, keep: Iterable[str] = ()
    ) -> None:
        self.functions, self.keep = dict(functions or {}), frozenset(keep)
        self.kept: dict[str, Tensor] = {}
        self._taken: set[int] = set()  # the memory of what is kept

    def __call__(self, activation: Tensor, name: str) -> Tensor:
        if name in self.functions:
            returned = self.functions[name](activation.clone(), name)
            activation = check_returned(name, returned, activation).clone()
        if name in self.keep:
            memory = activation.untyped_storage().data_ptr()
            shared = memory in self._taken or isinstance(activation._base, nn.Parameter)
            self.kept[name] = activation.clone() if shared else activation
            self._taken.add(memory)
        return activation

    def wants(self, *names: str) -> bool:
        return any(name in self.functions or name in self.keep for name in names)


class Hooked(nn.Module):
    """A model with hook points: its forward takes tokens, positions and `Hooks`."""

    cfg: Any

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights. Below float32 the stream, and all that is hooked, is float32 still."""
        return next(self.parameters()).dtype

    def hook_names(self) -> list[str]:
        """Every hook point, in the order in which a forward pass meets them."""
        attn = ["q", "k", "v", "rot_q", "rot_k"]
        if self.cfg.n_sharing > 1:
            attn += ["k_of_heads", "v_of_heads"]
        attn += ["attn_scores", "pattern", "z"]
        block = ["hook_resid_pre", "ln1.hook_normalized", *(f"attn.hook_{name}" for name in attn)]
        block += ["hook_attn_out", "hook_resid_mid"]
        if self.cfg.has_mlp:
            block += ["hook_mlp_in", "ln2.hook_normalized", "mlp.hook_pre"]
            block += ["mlp.hook_pre_linear"] if self.cfg.gated_mlp else []
            block += ["mlp.hook_post", "hook_mlp_out"]
        learned = self.cfg.positions == "learned"
        names = ["hook_embed", "hook_pos_embed"] if learned else ["hook_embed"]
        for layer in range(self.cfg.n_layers):
            names += [f"blocks.{layer}.{name}" for name in [*block, "hook_resid_post"]]
        return [*names, "ln_final.hook_normalized"]

    def known(self, hooks: Hooks | None) -> Hooks:
        """The hooks, or none. Raises ValueError for a name that is no hook point."""
        if hooks is not None and (hooks.functions or hooks.keep):
            check_hook_names([*hooks.functions, *hooks.keep], self.hook_names())
        return hooks or Hooks()

    def run_with_hooks(
        self, tokens: Tensor, hooks: Mapping[str, Hook], positions: Positions = None
    ) -> Tensor:
        """Logits of a run in which each named activation is replaced by what its function returns.

        >>> from minifunc import ModelConfig, Transformer
        >>> model, tokens = Transformer(ModelConfig(d_vocab=9)), torch.tensor([[1, 2, 3]])
        >>> def without_head_2(z, name):  # [batch, pos, head, d_head]
        ...     return torch.cat([z[:, :, :2], 0 * z[:, :, 2:3], z[:, :, 3:]], dim=2)
        >>> logits = model.run_with_hooks(tokens, {"blocks.1.attn.hook_z": without_head_2})
        >>> logits.shape, torch.equal(logits, model(tokens))
        (torch.Size([1, 3, 9]), False)
        """
        return self(tokens, positions, Hooks(hooks))

    def run_with_cache(
        self, tokens: Tensor, names: Iterable[str] | None = None, positions: Positions = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits, and the activations of the run at `names` (default: at every hook point).

        >>> from minifunc import ModelConfig, Transformer
        >>> model, tokens = Transformer(ModelConfig(d_vocab=9)), torch.tensor([[1, 2, 3]])
        >>> logits, cache = model.run_with_cache(tokens)
        >>> cache["blocks.0.attn.hook_pattern"].sum(-1).shape  # adds up to one at each query
        torch.Size([1, 4, 3])
        """
        hooks = Hooks(keep=self.hook_names() if names is None else names)
        return self(tokens, positions, hooks), hooks.kept
