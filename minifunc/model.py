"""A decoder-only transformer, written out so that every step of attention can be read and hooked.

Glossary of shapes (used in every comment of this package)
    batch       prompts, or rows of prompts                pos         token positions; `query`, `key` in patterns
    d_model     width of the residual stream               n_layers    blocks
    n_heads     attention heads in a block                 d_head      width of one head's q, k, v and z
    d_mlp       hidden width of an MLP                     d_vocab     tokens

One block (pre-norm), with the hook points in the order in which they are met:

    resid_pre ── ln1 ── q, k, v ── scores ── pattern ── z ── W_O ──(+)── resid_mid ── ln2 ── pre ── post ──(+)── resid_post
        └────────────────────────────────────────────────────────┘  └───────────────────────────────────────┘

Hook points and parameters carry the names and shapes of TransformerLens 2.18, so what you know from there
holds here and the weights load there. There are no biases.

A hook belongs to one call: `model.run_with_hooks(tokens, {name: fn})`, where `fn(activation, name)` returns
the activation to go on with. Nothing is stored in the model, so nothing can stay behind.
"""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Hook = Callable[[Tensor, str], Tensor]
Past = tuple[
    Tensor, Tensor
]  # k and v of the positions already run, [batch, key, head, d_head] each


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a model. Raises ValueError for a shape that cannot be built.

    positions: "rotary" (RoFormer, adjacent pairs), "learned" (added to the embedding), or "none".
    normalization: "RMS" (x / rms(x) * w) or "LN" (centred as well, weight only).
    act_fn: "gelu" (exact), "relu", or "none" (attention-only: the blocks have no MLP).
    """

    n_layers: int = 4
    n_heads: int = 4
    d_model: int = 64
    d_head: int = 16
    d_mlp: int = 256
    d_vocab: int = 64
    n_ctx: int = 128
    positions: str = "rotary"
    normalization: str = "RMS"
    act_fn: str = "gelu"
    eps: float = 1e-5
    rotary_base: float = 10000.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, kind = getattr(self, field.name), field.type
            most = 1000 if field.name in ("n_layers", "n_heads") else 1_000_000
            if kind is int and (type(value) is not int or not 1 <= value <= most):
                raise ValueError(
                    f"model config: {field.name} must be a whole number from 1 to {most}, not {value!r:.60}"
                )
            if kind is float and (
                type(value) not in (int, float) or not 0 < value < 1e300
            ):  # JSON knows whole numbers beyond every float
                raise ValueError(
                    f"model config: {field.name} must be a positive number, not {value!r:.60}"
                )
        for name, known in (
            ("positions", ("rotary", "learned", "none")),
            ("normalization", ("RMS", "LN")),
            ("act_fn", ("gelu", "relu", "none")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"model config: {name} must be one of {', '.join(known)}, not {getattr(self, name)!r:.60}"
                )
        if self.positions == "rotary" and self.d_head % 2:
            raise ValueError(
                f"model config: rotary positions need an even d_head, not {self.d_head}"
            )

    @property
    def has_mlp(self) -> bool:
        return self.act_fn != "none"


class Hooks:
    """What one call wants to see or change. `hooks(activation, name)` returns the activation to go on with."""

    def __init__(self, functions: Mapping[str, Hook] | None = None) -> None:
        self.functions = dict(functions or {})

    def __call__(self, activation: Tensor, name: str) -> Tensor:
        function = self.functions.get(name)
        return activation if function is None else function(activation, name)

    def wants(self, *names: str) -> bool:
        return any(name in self.functions for name in names)


class Embed(nn.Module):
    """Token ids [batch, pos] → vectors [batch, pos, d_model]."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.W_E = nn.Parameter(torch.empty(cfg.d_vocab, cfg.d_model))

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.W_E)


class PosEmbed(nn.Module):
    """The first `pos` learned position vectors, [pos, d_model]."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.W_pos = nn.Parameter(torch.empty(cfg.n_ctx, cfg.d_model))

    def forward(self, n_pos: int) -> Tensor:
        return self.W_pos[:n_pos]


class Norm(nn.Module):
    """RMSNorm (Zhang & Sennrich 2019), or LayerNorm without bias. Keeps the shape [..., d_model]."""

    def __init__(self, cfg: ModelConfig, name: str) -> None:
        super().__init__()
        self.name, self.center, self.eps = name, cfg.normalization == "LN", cfg.eps
        self.w = nn.Parameter(torch.empty(cfg.d_model))

    def forward(self, x: Tensor, hooks: Hooks) -> Tensor:
        name = f"{self.name}.hook_normalized"  # as in TransformerLens, after the scale w for LN and before it for RMS
        if self.center:
            return hooks(F.layer_norm(x, self.w.shape, self.w, eps=self.eps), name)
        return hooks(F.rms_norm(x, self.w.shape, eps=self.eps), name) * self.w


def rotate(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """Rotary positions (Su et al. 2021): turn dimension pair (2i, 2i + 1) by the angle position / base^(2i/d_head).

    x [batch, pos, head, d_head], positions [pos] int64 → the same shape. The score of a rotated query and a
    rotated key then depends on the two positions through their distance alone. A pair is read as one complex
    number and a turn is a product with exp(i * angle), so it takes one small kernel.
    """
    pairs = x.shape[-1] // 2
    wide = x if x.dtype == torch.float64 else x.float()  # there is no complex bfloat16
    angle = positions[:, None, None] * base ** (
        -torch.arange(pairs, device=x.device, dtype=wide.dtype) / pairs
    )  # [pos, 1, pairs]
    turn = torch.polar(torch.ones_like(angle), angle)
    turned = (
        torch.view_as_complex(wide.unflatten(-1, (pairs, 2))) * turn
    )  # [batch, pos, head, pairs]
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)


class Attention(nn.Module):
    """Causal multi-head attention (Vaswani et al. 2017), one line a step."""

    def __init__(self, cfg: ModelConfig, name: str) -> None:
        super().__init__()
        self.cfg, self.name = cfg, name
        self.W_Q = nn.Parameter(torch.empty(cfg.n_heads, cfg.d_model, cfg.d_head))
        self.W_K = nn.Parameter(torch.empty(cfg.n_heads, cfg.d_model, cfg.d_head))
        self.W_V = nn.Parameter(torch.empty(cfg.n_heads, cfg.d_model, cfg.d_head))
        self.W_O = nn.Parameter(torch.empty(cfg.n_heads, cfg.d_head, cfg.d_model))

    def project(self, x: Tensor, weight: Tensor) -> Tensor:
        """x [batch, pos, d_model], weight [head, d_model, d_head] → [batch, pos, head, d_head], as one matrix product."""
        flat = weight.permute(1, 0, 2).flatten(1)  # [d_model, head * d_head]
        return (x @ flat).unflatten(-1, weight.shape[::2])

    def position(self, x: Tensor, positions: Tensor) -> Tensor:
        """Queries or keys [batch, pos, head, d_head] with their positions worked in, where these are rotary."""
        return rotate(x, positions, self.cfg.rotary_base) if self.cfg.positions == "rotary" else x

    def scores(self, q: Tensor, k: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        """q [batch, query, head, d_head], k [batch, key, head, d_head], their positions → [batch, head, query, key]."""
        scores = q.transpose(1, 2) @ k.permute(0, 2, 3, 1) / math.sqrt(self.cfg.d_head)
        return scores.masked_fill(keys > queries[:, None], -torch.inf)

    def forward(self, x: Tensor, queries: Tensor, hooks: Hooks, past: Past | None = None) -> Tensor:
        """Normalized stream x [batch, pos, d_model] → attention output at the positions `queries`, [batch, query, d_model].

        past: k (positions worked in) and v of the positions before x, which then only has what follows them. Where it has fewer
        rows than x, these serve again for the next ones.
        """
        n_past = 0 if past is None else past[0].shape[1]
        name, keys = self.name, torch.arange(n_past + x.shape[1], device=x.device)
        whole = len(queries) == len(keys)
        q = hooks(
            self.project(x if len(queries) == x.shape[1] else x[:, queries - n_past], self.W_Q),
            f"{name}.hook_q",
        )  # [batch, query, head, d_head]
        k = hooks(self.project(x, self.W_K), f"{name}.hook_k")  # [batch, key, head, d_head]
        v = hooks(self.project(x, self.W_V), f"{name}.hook_v")  # [batch, key, head, d_head]
        q = hooks(self.position(q, queries), f"{name}.hook_rot_q")
        k = hooks(self.position(k, keys[n_past:]), f"{name}.hook_rot_k")
        if past is not None:
            k, v = (
                torch.cat([old.repeat(len(x) // len(old), 1, 1, 1), new], dim=1)
                for old, new in zip(past, (k, v))
            )
        if hooks.wants(f"{name}.hook_attn_scores", f"{name}.hook_pattern"):
            scores = hooks(
                self.scores(q, k, queries, keys), f"{name}.hook_attn_scores"
            )  # [batch, head, query, key]
            pattern = hooks(
                scores.softmax(dim=-1), f"{name}.hook_pattern"
            )  # [batch, head, query, key]
            z = pattern @ v.transpose(1, 2)  # [batch, head, query, d_head]
        else:  # the same in one fused kernel, which never shows its scores
            mask = None if whole else keys <= queries[:, None]
            z = F.scaled_dot_product_attention(
                q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask, is_causal=whole
            )
        z = hooks(z.transpose(1, 2), f"{name}.hook_z")  # [batch, query, head, d_head]
        return z.flatten(2) @ self.W_O.flatten(0, 1)


class MLP(nn.Module):
    """Two matrices and a nonlinearity; keeps the shape [batch, pos, d_model]."""

    def __init__(self, cfg: ModelConfig, name: str) -> None:
        super().__init__()
        self.name, self.act = name, F.gelu if cfg.act_fn == "gelu" else F.relu
        self.relu = cfg.act_fn == "relu"
        self.W_in = nn.Parameter(torch.empty(cfg.d_model, cfg.d_mlp))
        self.W_out = nn.Parameter(torch.empty(cfg.d_mlp, cfg.d_model))

    def forward(self, x: Tensor, hooks: Hooks) -> Tensor:
        pre = hooks(x @ self.W_in, f"{self.name}.hook_pre")  # [batch, pos, d_mlp]
        unseen = self.relu and not hooks.wants(f"{self.name}.hook_pre")  # then it need not be kept
        post = hooks(
            pre.relu_() if unseen else self.act(pre), f"{self.name}.hook_post"
        )  # [batch, pos, d_mlp]
        return post @ self.W_out


class Block(nn.Module):
    """Attention, then MLP; each reads the normalized residual stream and adds its output to it."""

    def __init__(self, cfg: ModelConfig, layer: int) -> None:
        super().__init__()
        self.name = f"blocks.{layer}"
        self.ln1, self.attn = Norm(cfg, f"{self.name}.ln1"), Attention(cfg, f"{self.name}.attn")
        self.mlp = MLP(cfg, f"{self.name}.mlp") if cfg.has_mlp else None
        if self.mlp is not None:
            self.ln2 = Norm(cfg, f"{self.name}.ln2")

    def add_attention(
        self, resid: Tensor, queries: Tensor, hooks: Hooks, past: Past | None = None
    ) -> Tensor:
        """resid_pre [batch, pos, d_model] → resid_mid at the positions `queries`, [batch, query, d_model]."""
        resid = hooks(resid, f"{self.name}.hook_resid_pre")
        attn_out = hooks(
            self.attn(self.ln1(resid, hooks), queries, hooks, past), f"{self.name}.hook_attn_out"
        )
        n_past = 0 if past is None else past[0].shape[1]
        kept = resid if len(queries) == resid.shape[1] else resid[:, queries - n_past]
        return hooks(kept + attn_out, f"{self.name}.hook_resid_mid")

    def add_mlp(self, resid: Tensor, hooks: Hooks) -> Tensor:
        """resid_mid → resid_post, both [batch, query, d_model]."""
        if self.mlp is not None:
            mlp_in = hooks(resid, f"{self.name}.hook_mlp_in")
            resid = resid + hooks(
                self.mlp(self.ln2(mlp_in, hooks), hooks), f"{self.name}.hook_mlp_out"
            )
        return hooks(resid, f"{self.name}.hook_resid_post")

    def forward(
        self, resid: Tensor, queries: Tensor, hooks: Hooks, past: Past | None = None
    ) -> Tensor:
        """resid_pre [batch, pos, d_model] → resid_post at the positions `queries`, [batch, query, d_model]."""
        return self.add_mlp(self.add_attention(resid, queries, hooks, past), hooks)


class Unembed(nn.Module):
    """Vectors [..., d_model] → logits [..., d_vocab]."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.W_U = nn.Parameter(torch.empty(cfg.d_model, cfg.d_vocab))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.W_U


class Transformer(nn.Module):
    """Token ids [batch, pos] int64 → logits [batch, pos, d_vocab].

    generator: draws the initial weights (a CPU generator; the default is one seeded with 0). Linear maps
    start at standard deviation 1/sqrt(fan in), those that write into the stream smaller by sqrt(2 n_layers).
    """

    blocks: Sequence[Block]  # an nn.ModuleList

    def __init__(self, cfg: ModelConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.cfg = cfg
        self.embed = Embed(cfg)
        if cfg.positions == "learned":
            self.pos_embed = PosEmbed(cfg)
        self.blocks = nn.ModuleList(Block(cfg, layer) for layer in range(cfg.n_layers))  # type: ignore[assignment]
        self.ln_final = Norm(cfg, "ln_final")
        self.unembed = Unembed(cfg)
        self._draw_weights(generator or torch.Generator().manual_seed(0))

    @property
    def device(self) -> torch.device:
        return self.unembed.W_U.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unembed.W_U.dtype

    def _draw_weights(self, generator: torch.Generator) -> None:
        cfg = self.cfg
        fan_in = {
            "W_E": 1,
            "W_pos": 1,
            "W_O": cfg.n_heads * cfg.d_head,
            "W_out": cfg.d_mlp,
        }  # the others read the stream
        for name, weight in self.named_parameters():
            kind = name.rsplit(".", 1)[-1]
            if weight.is_meta:  # only the shapes are wanted
                continue
            if kind == "w":  # the scale of a norm
                weight.data.fill_(1.0)
                continue
            std = fan_in.get(kind, cfg.d_model) ** -0.5
            if kind in ("W_O", "W_out"):
                std /= math.sqrt(2 * cfg.n_layers)
            weight.data.copy_(torch.randn(weight.shape, generator=generator) * std)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        hooks: Hooks | None = None,
        past: Sequence[Past] | None = None,
    ) -> Tensor:
        """positions [query] int64, from 0 and ascending: the only positions whose logits are wanted (default: all).

        The last block then works for these alone: logits [batch, query, d_vocab]; in that block q, pattern, z
        and everything after have `query` rows. past: one `Past` for each block; the tokens are those that follow
        it. Raises ValueError for tokens of a wrong shape or length.
        """
        n_past = past[0][0].shape[1] if past else 0
        if tokens.ndim != 2 or not 1 <= tokens.shape[1] <= self.cfg.n_ctx - n_past:
            raise ValueError(
                f"tokens must be [batch, pos] with 1 to {self.cfg.n_ctx - n_past} positions, not {list(tokens.shape)}"
            )
        hooks = hooks or Hooks()
        resid = hooks(self.embed(tokens), "hook_embed")  # [batch, pos, d_model]
        if self.cfg.positions == "learned":
            resid = resid + hooks(
                self.pos_embed(n_past + tokens.shape[1])[n_past:].expand_as(resid), "hook_pos_embed"
            )
        return self.run_from(resid, 0, positions, hooks, past)

    def run_from(
        self,
        resid: Tensor,
        layer: int,
        positions: Tensor | None = None,
        hooks: Hooks | None = None,
        past: Sequence[Past] | None = None,
    ) -> Tensor:
        """The upper part of the model: from the stream that enters block `layer`, [batch, pos, d_model], to the logits.

        positions, past (one for each of these blocks): as in `forward`.
        """
        hooks = hooks or Hooks()
        n_past = past[0][0].shape[1] if past else 0
        everywhere = torch.arange(n_past, n_past + resid.shape[1], device=resid.device)
        positions = everywhere if positions is None else positions
        for index, block in enumerate(self.blocks[layer:]):
            last = block is self.blocks[-1]
            resid = block(
                resid, positions if last else everywhere, hooks, past[index] if past else None
            )
        if layer == self.cfg.n_layers and len(positions) != len(everywhere):
            resid = resid[:, positions - n_past]
        return self.unembed(self.ln_final(resid, hooks))

    def hook_names(self) -> list[str]:
        """Every hook point of this model, in the order in which a forward pass meets them."""
        attn = [
            "hook_q",
            "hook_k",
            "hook_v",
            "hook_rot_q",
            "hook_rot_k",
            "hook_attn_scores",
            "hook_pattern",
            "hook_z",
        ]
        block = [
            "hook_resid_pre",
            "ln1.hook_normalized",
            *(f"attn.{name}" for name in attn),
            "hook_attn_out",
            "hook_resid_mid",
        ]
        block += (
            ["hook_mlp_in", "ln2.hook_normalized", "mlp.hook_pre", "mlp.hook_post", "hook_mlp_out"]
            if self.cfg.has_mlp
            else []
        )
        names = ["hook_embed"] + (["hook_pos_embed"] if self.cfg.positions == "learned" else [])
        names += [
            f"blocks.{layer}.{name}"
            for layer in range(self.cfg.n_layers)
            for name in [*block, "hook_resid_post"]
        ]
        return [*names, "ln_final.hook_normalized"]

    def check_hook_names(self, names: Sequence[str]) -> None:
        """Raises ValueError, with the nearest names, for one that is no hook point of this model."""
        known = self.hook_names()
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(name, known, 3)
                raise ValueError(
                    f"no hook point {name!r}" + (f"; close ones: {', '.join(near)}" if near else "")
                )

    def run_with_hooks(
        self, tokens: Tensor, hooks: Mapping[str, Hook], positions: Tensor | None = None
    ) -> Tensor:
        """Logits of a run in which each named activation is replaced by what its function returns.

        >>> model, tokens = Transformer(ModelConfig(d_vocab=9)), torch.tensor([[1, 2, 3]])
        >>> def without_head_2(z, name):  # [batch, pos, head, d_head]
        ...     return torch.cat([z[:, :, :2], 0 * z[:, :, 2:3], z[:, :, 3:]], dim=2)
        >>> logits = model.run_with_hooks(tokens, {"blocks.1.attn.hook_z": without_head_2})
        >>> logits.shape, torch.equal(logits, model(tokens))
        (torch.Size([1, 3, 9]), False)
        """
        self.check_hook_names(list(hooks))
        return self(tokens, positions, Hooks(hooks))

    def run_with_cache(
        self,
        tokens: Tensor,
        names: Sequence[str] | None = None,
        positions: Tensor | None = None,
        past: Sequence[Past] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits, and the activations at `names` (default: every hook point), as they are in the run. The rest as in `forward`.

        >>> logits, cache = Transformer(ModelConfig(d_vocab=9)).run_with_cache(torch.tensor([[1, 2, 3]]))
        >>> cache["blocks.0.attn.hook_pattern"].sum(-1).shape  # attention adds up to one at each [batch, head, query]
        torch.Size([1, 4, 3])
        """
        names = self.hook_names() if names is None else names
        self.check_hook_names(names)
        cache: dict[str, Tensor] = {}

        def store(activation: Tensor, name: str) -> Tensor:
            cache[name] = activation
            return activation

        logits = self(tokens, positions, Hooks(dict.fromkeys(names, store)), past)
        return logits, cache
