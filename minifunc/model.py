"""A decoder-only transformer, written out so that every step of attention can be read and hooked.

Glossary of shapes (of this file; other files say what else)
    batch     prompts, or rows of prompts           pos        token positions; in a pattern
    d_model   width of the residual stream                     `query` looks at `key`
    n_heads   attention heads in a block            n_layers   blocks
    d_head    width of one head's q, k, v and z     d_mlp      hidden width of an MLP
                                                    d_vocab    tokens

One block (pre-norm), with its main hook points (`model.hook_names()` lists all):

    resid_pre ─ ln1 ─ q, k, v ─ scores ─ pattern ─ z ─ + ─ resid_mid
        └──────────────────────────────────────────────┘
    resid_mid ─ ln2 ─ pre ─ post ─ + ─ resid_post
        └──────────────────────────┘

A head looks from its query position to earlier positions. The pattern says how much it looks at
each, z is the mean of their v with these weights, and W_O writes z into the stream.
Hook points and parameters have the names and shapes of TransformerLens 2.18. There are no biases,
but for q, k and v with `qkv_bias`.
A hook belongs to one call, `model.run_with_hooks(tokens, {name: fn})`: fn(activation, name) returns
what to go on with, and may have edited the activation in place.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minifunc.support import checks
from minifunc.support.checks import Positions
from minifunc.support.hooks import Hooked, Hooks
from minifunc.support.products import in_stream, product
from minifunc.support.settled import settled


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a model. Raises ValueError for a shape that cannot be built.
    positions: "rotary" (RoFormer, adjacent pairs), "learned" (added to the embedding), or "none".
    normalization: "RMS" (x / rms(x) * w) or "LN" (centred as well, weight only).
    act_fn: "gelu" (exact), "relu", "silu", or "none" (attention-only: the blocks have no MLP).
    The last five are the Llama family's. n_kv_heads: heads that have a k and v; query heads share
    them, the first few those of head 0, and so on (None: each has its own). gated_mlp: an MLP is
    act(x W_gate) * (x W_in) W_out, SwiGLU with "silu". tied_embeddings: W_E unembeds too.
    rotary_divisors: each rotary pair's frequency is divided by its own (Llama 3.1; (): by none).
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
    n_kv_heads: int | None = None
    gated_mlp: bool = False
    tied_embeddings: bool = False
    qkv_bias: bool = False
    rotary_divisors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        checks.check_model_config(self)

    @property
    def has_mlp(self) -> bool:
        return self.act_fn != "none"

    @property
    def n_sharing(self) -> int:
        """How many query heads share one k and v; 1 where heads are not grouped."""
        return self.n_heads // (self.n_kv_heads or self.n_heads)


class Embed(nn.Module):
    """Token ids [batch, pos] → vectors [batch, pos, d_model]."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.W_E = nn.Parameter(torch.empty(cfg.d_vocab, cfg.d_model))

    def forward(self, tokens: Tensor) -> Tensor:
        return in_stream(F.embedding(tokens, self.W_E))


class PosEmbed(nn.Module):
    """The first `n_pos` learned position vectors, [pos, d_model]."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.W_pos = nn.Parameter(torch.empty(cfg.n_ctx, cfg.d_model))

    def forward(self, n_pos: int) -> Tensor:
        return in_stream(self.W_pos[:n_pos])


class Norm(nn.Module):
    """RMSNorm (Zhang & Sennrich 2019), or LayerNorm without bias. Keeps the shape."""

    def __init__(self, cfg: ModelConfig, name: str) -> None:
        super().__init__()
        self.hook = f"{name}.hook_normalized"
        self.center, self.eps = cfg.normalization == "LN", cfg.eps
        self.w = nn.Parameter(torch.empty(cfg.d_model))

    def forward(self, x: Tensor, hooks: Hooks) -> Tensor:
        # The hook sees what TransformerLens shows: after the scale w for LN, before it for RMS.
        if self.center:
            return hooks(F.layer_norm(x, self.w.shape, in_stream(self.w), eps=self.eps), self.hook)
        return hooks(F.rms_norm(x, self.w.shape, eps=self.eps), self.hook) * self.w


def at_positions(x: Tensor, positions: Tensor) -> Tensor:
    """x [batch, pos, d_model] at some of its positions [query]; x itself where these are all."""
    return x if len(positions) == x.shape[1] else x[:, positions]


def rotate(x: Tensor, positions: Tensor, base: float, divisors: Sequence[float] = ()) -> Tensor:
    """Rotary positions (Su et al. 2021): pair (2i, 2i + 1) turns by position / base^(2i/d_head),
    divided by divisors[i] where these are given.

    x [..., pos, head, d_head], positions [pos] int64 → the same shape. The score of a turned query
    and a turned key depends on their positions through the distance alone. A pair is read as one
    complex number, and a turn is a product with exp(i angle).
    """
    n_pairs = x.shape[-1] // 2
    fraction = torch.arange(n_pairs, device=x.device, dtype=x.dtype) / n_pairs
    frequency = base**-fraction  # [pair]
    if divisors:
        frequency = frequency / x.new_tensor(divisors)
    angle = positions[:, None, None] * frequency  # [pos, 1, pair]
    turn = torch.polar(torch.ones_like(angle), angle)
    pairs = torch.view_as_complex(x.unflatten(-1, (n_pairs, 2)))  # [..., pos, head, pair]
    return torch.view_as_real(pairs * turn).flatten(-2)


def attention_scores(q: Tensor, k: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """q [..., query, d_head], k [..., key, d_head] and their positions → [..., query, key].

    A query cannot see what comes after it: the score of a later key is minus infinity."""
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    return scores.masked_fill(keys > queries[:, None], -torch.inf)


class Attention(nn.Module):
    """Causal multi-head attention (Vaswani et al. 2017), one line a step. Where heads are grouped
    (Ainslie et al. 2023), query head h reads k and v of the key/value head h // n_sharing."""

    def __init__(self, cfg: ModelConfig, name: str) -> None:
        super().__init__()
        self.cfg, self.name = cfg, name
        n_kv_heads = cfg.n_heads // cfg.n_sharing
        self.W_Q = nn.Parameter(torch.empty(cfg.n_heads, cfg.d_model, cfg.d_head))
        self.W_K = nn.Parameter(torch.empty(n_kv_heads, cfg.d_model, cfg.d_head))
        self.W_V = nn.Parameter(torch.empty(n_kv_heads, cfg.d_model, cfg.d_head))
        self.W_O = nn.Parameter(torch.empty(cfg.n_heads, cfg.d_head, cfg.d_model))
        if cfg.qkv_bias:
            self.b_Q = nn.Parameter(torch.empty(cfg.n_heads, cfg.d_head))
            self.b_K = nn.Parameter(torch.empty(n_kv_heads, cfg.d_head))
            self.b_V = nn.Parameter(torch.empty(n_kv_heads, cfg.d_head))

    def forward(self, x: Tensor, queries: Tensor, hooks: Hooks) -> Tensor:
        """Normalized stream x [batch, pos, d_model] → what the heads write, all together, at the
        positions `queries`: [batch, query, d_model]."""
        name, keys = self.name, torch.arange(x.shape[1], device=x.device)
        q = hooks(self.project(at_positions(x, queries), "Q"), f"{name}.hook_q")
        k = hooks(self.project(x, "K"), f"{name}.hook_k")  # [batch, key, key/value head, d_head]
        v = hooks(self.project(x, "V"), f"{name}.hook_v")  # [batch, key, key/value head, d_head]
        q = hooks(self.with_position(q, queries), f"{name}.hook_rot_q")
        k = hooks(self.with_position(k, keys), f"{name}.hook_rot_k")
        if self.cfg.n_sharing > 1:  # each query head gets a copy: [batch, key, head, d_head]
            k = hooks(k.repeat_interleave(self.cfg.n_sharing, 2), f"{name}.hook_k_of_heads")
            v = hooks(v.repeat_interleave(self.cfg.n_sharing, 2), f"{name}.hook_v_of_heads")
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [batch, head, …, d_head]
        if hooks.wants(f"{name}.hook_attn_scores", f"{name}.hook_pattern"):
            scores = hooks(attention_scores(q, k, queries, keys), f"{name}.hook_attn_scores")
            pattern = hooks(scores.softmax(-1), f"{name}.hook_pattern")  # [batch, head, query, key]
            z = pattern @ v  # [batch, head, query, d_head]
        else:
            z = self.fused(q, k, v, queries, keys)
        z = hooks(z.transpose(1, 2), f"{name}.hook_z")  # [batch, query, head, d_head]
        return product(z.flatten(2), self.W_O.flatten(0, 1))

    def fused(self, q: Tensor, k: Tensor, v: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        """An aside: the same z from one kernel, faster, which never shows its scores."""
        if len(queries) == len(keys):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=keys <= queries[:, None])

    def project(self, x: Tensor, which: str) -> Tensor:
        """x [batch, pos, d_model] → its "Q", "K" or "V", [batch, pos, head, d_head]."""
        weight = getattr(self, f"W_{which}")  # [head, d_model, d_head]
        flat = weight.permute(1, 0, 2).flatten(1)  # [d_model, head * d_head]: one matrix product
        projected = product(x, flat).unflatten(-1, weight.shape[::2])
        return (projected + getattr(self, f"b_{which}")) if self.cfg.qkv_bias else projected

    def with_position(self, x: Tensor, positions: Tensor) -> Tensor:
        """Queries or keys [..., pos, head, d_head] with their positions worked in, if rotary."""
        turns = self.cfg.rotary_base, self.cfg.rotary_divisors
        return rotate(x, positions, *turns) if self.cfg.positions == "rotary" else x


class MLP(nn.Module):
    """Two matrices and a nonlinearity; keeps the shape [batch, pos, d_model]. With a third matrix
    (Shazeer 2020) the nonlinearity of one product is a gate for another."""

    def __init__(self, cfg: ModelConfig, name: str) -> None:
        super().__init__()
        self.name, self.act, self.gated = name, getattr(F, cfg.act_fn), cfg.gated_mlp
        if cfg.gated_mlp:
            self.W_gate = nn.Parameter(torch.empty(cfg.d_model, cfg.d_mlp))
        self.W_in = nn.Parameter(torch.empty(cfg.d_model, cfg.d_mlp))
        self.W_out = nn.Parameter(torch.empty(cfg.d_mlp, cfg.d_model))

    def forward(self, x: Tensor, hooks: Hooks) -> Tensor:
        W_pre = self.W_gate if self.gated else self.W_in
        pre = hooks(product(x, W_pre), f"{self.name}.hook_pre")  # [batch, pos, d_mlp]
        post = self.act(pre)
        if self.gated:
            post = post * hooks(product(x, self.W_in), f"{self.name}.hook_pre_linear")
        post = hooks(post, f"{self.name}.hook_post")  # [batch, pos, d_mlp]
        return product(post, self.W_out)


class Block(nn.Module):
    """Attention, then MLP; each reads the normalized residual stream and adds its output to it."""

    def __init__(self, cfg: ModelConfig, layer: int) -> None:
        super().__init__()
        self.name = f"blocks.{layer}"
        self.ln1, self.attn = Norm(cfg, f"{self.name}.ln1"), Attention(cfg, f"{self.name}.attn")
        self.mlp = MLP(cfg, f"{self.name}.mlp") if cfg.has_mlp else None
        if self.mlp is not None:
            self.ln2 = Norm(cfg, f"{self.name}.ln2")

    def forward(self, resid: Tensor, queries: Tensor, hooks: Hooks) -> Tensor:
        """resid_pre [batch, pos, d_model] → resid_post at the positions `queries`."""
        resid = hooks(resid, f"{self.name}.hook_resid_pre")
        attn_out = self.attn(self.ln1(resid, hooks), queries, hooks)  # [batch, query, d_model]
        attn_out = hooks(attn_out, f"{self.name}.hook_attn_out")
        return self.add_mlp(at_positions(resid, queries) + attn_out, hooks)

    def add_mlp(self, resid: Tensor, hooks: Hooks) -> Tensor:
        """resid_mid → resid_post, both [batch, query, d_model]."""
        resid = hooks(resid, f"{self.name}.hook_resid_mid")
        if self.mlp is not None:
            mlp_in = hooks(resid, f"{self.name}.hook_mlp_in")
            mlp_out = self.mlp(self.ln2(mlp_in, hooks), hooks)
            resid = resid + hooks(mlp_out, f"{self.name}.hook_mlp_out")
        return hooks(resid, f"{self.name}.hook_resid_post")


class Transformer(Hooked):
    """Token ids [batch, pos] int64 → logits [batch, pos, d_vocab]. generator: draws the initial
    weights, float32 (a CPU generator; the default is one seeded with 0)."""

    blocks: Sequence[Block]  # an nn.ModuleList

    def __init__(self, cfg: ModelConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.cfg = cfg
        self.embed = Embed(cfg)
        if cfg.positions == "learned":
            self.pos_embed = PosEmbed(cfg)
        blocks = nn.ModuleList(Block(cfg, layer) for layer in range(cfg.n_layers))
        self.blocks = blocks  # type: ignore[assignment]
        self.ln_final = Norm(cfg, "ln_final")
        self.unembed = nn.ParameterDict()
        if not cfg.tied_embeddings:
            self.unembed["W_U"] = torch.empty(cfg.d_model, cfg.d_vocab)
        self.float()._draw_weights(generator or torch.Generator().manual_seed(0))

    @property
    def W_U(self) -> Tensor:
        """The unembedding, [d_model, d_vocab]."""
        return self.embed.W_E.T if self.cfg.tied_embeddings else self.unembed["W_U"]

    @settled
    def _draw_weights(self, generator: torch.Generator) -> None:
        """Linear maps start at standard deviation 1/sqrt(fan in); those that write into the stream
        smaller by sqrt(2 n_layers); the scales of norms at 1, biases at 0."""
        cfg = self.cfg
        fan_in = {"W_E": 1, "W_pos": 1, "W_O": cfg.n_heads * cfg.d_head, "W_out": cfg.d_mlp}
        if cfg.tied_embeddings:
            del fan_in["W_E"]  # which reads the stream as well
        for name, weight in self.named_parameters():
            kind = name.rsplit(".", 1)[-1]
            std = fan_in.get(kind, cfg.d_model) ** -0.5  # all others read the stream
            if kind in ("W_O", "W_out"):
                std /= math.sqrt(2 * cfg.n_layers)
            if kind == "w" or kind.startswith("b_"):
                weight.data.fill_(1.0 if kind == "w" else 0.0)
            elif not weight.is_meta:  # a meta tensor is a shape alone
                weight.data.copy_(torch.randn(weight.shape, generator=generator) * std)

    @settled
    def forward(
        self, tokens: Tensor, positions: Positions = None, hooks: Hooks | None = None
    ) -> Tensor:
        """positions [query], ascending, distinct: where logits are wanted (default: everywhere).
        The last block alone can skip the others: there q, pattern, z and all after them have
        `query` rows. Raises ValueError for tokens or positions that don't fit."""
        checks.check_tokens(tokens, self.cfg.d_vocab, self.cfg.n_ctx)
        hooks = self.known(hooks)
        resid = hooks(self.embed(tokens), "hook_embed")  # [batch, pos, d_model]
        if self.cfg.positions == "learned":
            pos_embed = self.pos_embed(tokens.shape[1]).expand_as(resid)
            resid = resid + hooks(pos_embed, "hook_pos_embed")
        return self.run_from(resid, 0, positions, hooks)

    @settled
    def run_from(
        self, resid: Tensor, layer: int, positions: Positions = None, hooks: Hooks | None = None
    ) -> Tensor:
        """The upper part of the model, to the logits: from the stream [batch, pos, d_model] that
        enters block `layer` (n_layers: the final norm). positions, hooks: as in `forward`."""
        hooks, everywhere = hooks or Hooks(), torch.arange(resid.shape[1], device=resid.device)
        queries = checks.ascending(positions, resid.shape[1]).to(resid.device)
        for block in self.blocks[checks.check_layer(layer, self.cfg.n_layers) :]:
            resid = block(resid, queries if block is self.blocks[-1] else everywhere, hooks)
        if layer == self.cfg.n_layers:
            resid = at_positions(resid, queries)
        return product(self.ln_final(resid, hooks), self.W_U)
