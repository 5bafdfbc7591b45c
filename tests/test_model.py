"""The transformer against independent formulas; its hooks; its names and shapes."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from minifunc.model import ModelConfig, Transformer, rotate
from minifunc.support.products import product

SMALL = dict(
    n_layers=2,
    n_heads=3,
    d_model=12,
    d_head=4,
    d_mlp=20,
    d_vocab=11,
    n_ctx=16,
    positions="rotary",
    normalization="RMS",
    act_fn="gelu",
    eps=1e-5,
    rotary_base=100.0,
)
BATCH, POS = 5, 7
VARIANTS = [
    dict(zip(("positions", "normalization", "act_fn"), kinds))
    for kinds in itertools.product(
        ("rotary", "learned", "none"), ("RMS", "LN"), ("gelu", "relu", "none")
    )
]
LLAMA = dict(
    n_heads=4,
    n_kv_heads=2,
    act_fn="silu",
    gated_mlp=True,
    tied_embeddings=True,
    qkv_bias=True,
)
VARIANTS += [
    LLAMA,
    dict(rotary_divisors=(1.0, 8.0)),
    dict(n_kv_heads=1),
    dict(gated_mlp=True),
    dict(tied_embeddings=True),
]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def named(variant):
    return "-".join(
        value if type(value) is str and name not in LLAMA else f"{name}={value}"
        for name, value in variant.items()
    )


def small(dtype=torch.float64, **changes):
    """A small model with random weights, the norms' scales and biases included."""
    generator = torch.Generator().manual_seed(1)
    model = Transformer(ModelConfig(**{**SMALL, **changes}), generator)
    for name, weight in model.named_parameters():
        if weight.ndim == 1 or ".b_" in name:
            weight.data += torch.rand(weight.shape, generator=generator)
    return model.requires_grad_(False).to(dtype)


def written_out(model):
    """Hooks that change nothing, but make attention show its scores."""
    return {
        f"blocks.{layer}.attn.hook_pattern": lambda x, name: x
        for layer in range(model.cfg.n_layers)
    }


@pytest.fixture
def tokens():
    return torch.randint(SMALL["d_vocab"], (BATCH, POS), generator=torch.Generator().manual_seed(2))


def turned(x, base, divisors=()):
    """Rotary positions by their definition, one pair and one position at a time.

    x [batch, head, pos, d_head] → the same shape
    """
    out = torch.empty_like(x)
    for pos, pair in itertools.product(range(x.shape[2]), range(x.shape[3] // 2)):
        angle = pos / base ** (2 * pair / x.shape[3]) / (divisors[pair] if divisors else 1)
        a, b = x[:, :, pos, 2 * pair], x[:, :, pos, 2 * pair + 1]
        out[:, :, pos, 2 * pair] = a * math.cos(angle) - b * math.sin(angle)
        out[:, :, pos, 2 * pair + 1] = a * math.sin(angle) + b * math.cos(angle)
    return out


@pytest.mark.parametrize("positions", ["rotary", "learned", "none"])
def test_attention_is_the_textbook_one(tokens, positions):
    model = small(torch.float32, positions=positions)
    _, cache = model.run_with_cache(tokens)
    attn, x = model.blocks[1].attn, cache["blocks.1.ln1.hook_normalized"] * model.blocks[1].ln1.w
    q, k, v = (
        torch.einsum("bpm,hmd->bhpd", x, weight) for weight in (attn.W_Q, attn.W_K, attn.W_V)
    )
    if positions == "rotary":
        q, k = turned(q, model.cfg.rotary_base), turned(k, model.cfg.rotary_base)
    z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert_close(cache["blocks.1.hook_attn_out"], torch.einsum("bhpd,hdm->bpm", z, attn.W_O))


@pytest.mark.parametrize("positions", [None, [POS - 1], [1, 4]])
def test_fused_attention_equals_the_written_out_one(tokens, positions):
    model = small(torch.float32)
    positions = None if positions is None else torch.tensor(positions)
    assert_close(
        model(tokens, positions),
        model.run_with_hooks(tokens, written_out(model), positions),
        rtol=0,
        atol=1e-6,
    )


@pytest.mark.parametrize("act_fn", ["gelu", "relu"])
def test_mlp_is_two_products_and_a_nonlinearity(tokens, act_fn):
    model = small(act_fn=act_fn)
    _, cache = model.run_with_cache(tokens)
    mlp, pre = (
        model.blocks[0].mlp,
        cache["blocks.0.ln2.hook_normalized"] * model.blocks[0].ln2.w @ model.blocks[0].mlp.W_in,
    )
    assert_close(cache["blocks.0.mlp.hook_pre"], pre)
    post = pre.clamp(min=0) if act_fn == "relu" else pre * (1 + torch.erf(pre / math.sqrt(2))) / 2
    assert_close(cache["blocks.0.hook_mlp_out"], post @ mlp.W_out)


def by_hand(model, tokens):
    """The logits of a model of the Llama family, head by head, position by position."""
    cfg, weights = model.cfg, model.state_dict()

    def norm(x, name):
        return x / (x.square().mean(-1, keepdim=True) + cfg.eps).sqrt() * weights[f"{name}.w"]

    def read(x, name, head):
        bias = weights[f"{name.replace('W_', 'b_')}"][head] if cfg.qkv_bias else 0
        return x @ weights[name][head] + bias

    x = weights["embed.W_E"][tokens]
    for layer in range(cfg.n_layers):
        block, added = f"blocks.{layer}", torch.zeros_like(x)
        normed = norm(x, f"{block}.ln1")
        for head in range(cfg.n_heads):
            shared = head * (cfg.n_kv_heads or cfg.n_heads) // cfg.n_heads
            q, k, v = (
                read(normed, f"{block}.attn.W_{which}", head if which == "Q" else shared)
                for which in "QKV"
            )
            how = cfg.rotary_base, cfg.rotary_divisors
            q, k = (turned(part[:, None], *how)[:, 0] for part in (q, k))
            for pos in range(tokens.shape[1]):
                score = (q[:, pos, None] * k[:, : pos + 1]).sum(-1) / math.sqrt(cfg.d_head)
                z = (score.softmax(-1)[..., None] * v[:, : pos + 1]).sum(1)
                added[:, pos] += z @ weights[f"{block}.attn.W_O"][head]
        x = x + added
        normed = norm(x, f"{block}.ln2")
        hidden = normed @ weights[f"{block}.mlp.W_in"]
        if cfg.gated_mlp:
            gate = normed @ weights[f"{block}.mlp.W_gate"]
            hidden = gate / (1 + (-gate).exp()) * hidden
        else:
            hidden = hidden / (1 + (-hidden).exp())
        x = x + hidden @ weights[f"{block}.mlp.W_out"]
    W_U = weights["embed.W_E"].T if cfg.tied_embeddings else weights["unembed.W_U"]
    return norm(x, "ln_final") @ W_U


@pytest.mark.parametrize(
    "part",
    [
        {},
        dict(n_kv_heads=1),
        dict(n_kv_heads=2),
        dict(n_kv_heads=4),
        dict(gated_mlp=True),
        dict(tied_embeddings=True),
        dict(qkv_bias=True),
        dict(rotary_divisors=(1.0, 8.0)),
        LLAMA,
    ],
    ids=str,
)
def test_the_llama_familys_parts_are_the_textbook_ones(tokens, part):
    model = small(**{"n_heads": 4, "act_fn": "silu", **part})
    logits = by_hand(model, tokens)
    assert_close(model(tokens), logits, rtol=0, atol=1e-12)
    assert_close(model.run_with_hooks(tokens, written_out(model)), logits, rtol=0, atol=1e-12)
    assert_close(model(tokens, [1, 4]), logits[:, [1, 4]], rtol=0, atol=1e-12)


@pytest.mark.parametrize("normalization", ["RMS", "LN"])
def test_norm_follows_its_formula(tokens, normalization):
    model = small(normalization=normalization, eps=0.1)
    _, cache = model.run_with_cache(tokens)
    x = cache["blocks.0.hook_resid_pre"]
    x = x - x.mean(-1, keepdim=True) if normalization == "LN" else x
    by_hand = x / (x.square().mean(-1, keepdim=True) + 0.1).sqrt()
    shown = (
        by_hand if normalization == "RMS" else by_hand * model.blocks[0].ln1.w
    )  # where TransformerLens has this hook
    assert_close(cache["blocks.0.ln1.hook_normalized"], shown)
    assert_close(
        cache["blocks.0.attn.hook_v"][:, :, 1],
        by_hand * model.blocks[0].ln1.w @ model.blocks[0].attn.W_V[1],
    )


@pytest.mark.parametrize("variant", VARIANTS, ids=named)
def test_stream_is_the_sum_of_its_parts(tokens, variant):
    model = small(**variant)
    logits, cache = model.run_with_cache(tokens)
    parts = [
        name for name in cache if name.endswith(("hook_embed", "hook_attn_out", "hook_mlp_out"))
    ]
    if model.cfg.positions == "learned":
        parts.append("hook_pos_embed")
    assert_close(sum(cache[name] for name in parts), cache["blocks.1.hook_resid_post"])
    scale = model.ln_final.w if model.cfg.normalization == "RMS" else 1
    assert_close(cache["ln_final.hook_normalized"] * scale @ model.W_U, logits)


@pytest.mark.parametrize("changed", [1, POS - 1])
@pytest.mark.parametrize("fused", [True, False])
def test_a_later_token_never_changes_earlier_logits(tokens, changed, fused):
    model = small()
    other = tokens.clone()
    other[:, changed] = (other[:, changed] + 1) % SMALL["d_vocab"]
    hooks = {} if fused else written_out(model)
    a, b = model.run_with_hooks(tokens, hooks), model.run_with_hooks(other, hooks)
    assert_close(a[:, :changed], b[:, :changed], rtol=0, atol=1e-12)
    assert ((a[:, changed:] - b[:, changed:]).abs().amax(-1) > 1e-6).all()


def test_rotary_scores_depend_on_distance_only():
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0))

    def score(query, key):
        return (
            rotate(q, torch.tensor([query]), 100.0) * rotate(k, torch.tensor([key]), 100.0)
        ).sum()

    assert_close(score(5, 2), score(45, 42), rtol=0, atol=1e-4)  # float32 angles
    assert (score(5, 2) - score(5, 3)).abs() > 1e-2


def test_rotation_is_exact_in_float64():
    x = torch.randn(2, 100, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = turned(x.transpose(1, 2), 10000.0).transpose(1, 2)
    assert_close(rotate(x, torch.arange(100), 10000.0), expected, rtol=0, atol=1e-12)
    divisors = (1.0, 1.5, 3.0, 8.0)
    expected = turned(x.transpose(1, 2), 10000.0, divisors).transpose(1, 2)
    assert_close(rotate(x, torch.arange(100), 10000.0, divisors), expected, rtol=0, atol=1e-12)
    plain, ones = (
        rotate(x, torch.arange(100), 10000.0),
        rotate(x, torch.arange(100), 10000.0, [1] * 4),
    )
    assert torch.equal(plain, ones)


def test_learned_positions_are_added_to_the_embedding(tokens):
    model = small(positions="learned")
    _, cache = model.run_with_cache(tokens)
    assert_close(
        cache["blocks.0.hook_resid_pre"], model.embed.W_E[tokens] + model.pos_embed.W_pos[:POS]
    )


# ---------------------------------------------------------------- hooks


def hook_table(cfg, query=POS):
    """Every hook point in order, with its shape. `query`: rows asked for in the last block."""
    table = {"hook_embed": (BATCH, POS, cfg.d_model)}
    if cfg.positions == "learned":
        table["hook_pos_embed"] = (BATCH, POS, cfg.d_model)
    for layer in range(cfg.n_layers):
        rows = query if layer == cfg.n_layers - 1 else POS
        stream, heads, keys = (
            (BATCH, rows, cfg.d_model),
            (BATCH, rows, cfg.n_heads, cfg.d_head),
            (BATCH, POS, cfg.n_kv_heads or cfg.n_heads, cfg.d_head),
        )
        scores, hidden = (BATCH, cfg.n_heads, rows, POS), (BATCH, rows, cfg.d_mlp)
        block = {
            "hook_resid_pre": (BATCH, POS, cfg.d_model),
            "ln1.hook_normalized": (BATCH, POS, cfg.d_model),
        }
        block |= {
            "attn.hook_q": heads,
            "attn.hook_k": keys,
            "attn.hook_v": keys,
            "attn.hook_rot_q": heads,
            "attn.hook_rot_k": keys,
        }
        if cfg.n_kv_heads:
            copies = (BATCH, POS, cfg.n_heads, cfg.d_head)
            block |= {"attn.hook_k_of_heads": copies, "attn.hook_v_of_heads": copies}
        block |= {
            "attn.hook_attn_scores": scores,
            "attn.hook_pattern": scores,
            "attn.hook_z": heads,
            "hook_attn_out": stream,
            "hook_resid_mid": stream,
        }
        if cfg.act_fn != "none":
            block |= {
                "hook_mlp_in": stream,
                "ln2.hook_normalized": stream,
                "mlp.hook_pre": hidden,
                **({"mlp.hook_pre_linear": hidden} if cfg.gated_mlp else {}),
                "mlp.hook_post": hidden,
                "hook_mlp_out": stream,
            }
        table |= {
            f"blocks.{layer}.{name}": shape
            for name, shape in {**block, "hook_resid_post": stream}.items()
        }
    return table | {"ln_final.hook_normalized": (BATCH, query, cfg.d_model)}


@pytest.mark.parametrize("positions", [None, [POS - 1]], ids=["everywhere", "last"])
@pytest.mark.parametrize("variant", VARIANTS, ids=named)
def test_hook_points_are_met_once_each_in_order_and_shape(tokens, variant, positions):
    model, met = small(**variant), []

    def look(x, name):
        met.append((name, tuple(x.shape)))
        return x

    model.run_with_hooks(
        tokens,
        dict.fromkeys(model.hook_names(), look),
        None if positions is None else torch.tensor(positions),
    )
    assert met == list(hook_table(model.cfg, len(positions or range(POS))).items())
    assert model.hook_names() == [name for name, _ in met]


@pytest.mark.parametrize("variant", VARIANTS, ids=named)
def test_identity_on_every_hook_point_changes_nothing(tokens, variant):
    model = small(**variant)
    unchanged = model.run_with_hooks(tokens, dict.fromkeys(model.hook_names(), lambda x, name: x))
    assert_close(unchanged, model(tokens), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "name, changes",
    [(name, dict(positions="learned")) for name in small(positions="learned").hook_names()]
    + [(name, LLAMA) for name in small(**LLAMA).hook_names() if "of_heads" in name]
    + [("blocks.0.mlp.hook_pre_linear", LLAMA)],
)
def test_what_a_hook_returns_is_what_the_model_goes_on_with(tokens, name, changes):
    model = small(**changes)
    before = model(tokens)
    noise = torch.Generator().manual_seed(3)
    after = model.run_with_hooks(
        tokens, {name: lambda x, name: x + torch.randn(x.shape, generator=noise, dtype=x.dtype)}
    )
    assert (after - before).abs().max() > 1e-3


def test_cache_holds_just_what_was_asked_for(tokens):
    model = small()
    logits, cache = model.run_with_cache(tokens, ["blocks.1.attn.hook_z"])
    everything = model.run_with_cache(tokens)[1]
    assert list(cache) == ["blocks.1.attn.hook_z"]
    assert_close(cache["blocks.1.attn.hook_z"], everything["blocks.1.attn.hook_z"])
    assert torch.equal(logits, model(tokens))


def test_hooks_end_with_their_call(tokens):
    model = small()
    before = model(tokens)

    def fail(x, name):
        raise RuntimeError("from the hook")

    model.run_with_hooks(tokens, {"hook_embed": lambda x, name: 0 * x})
    model.run_with_cache(tokens)
    with pytest.raises(RuntimeError, match="from the hook"):
        model.run_with_hooks(tokens, {"blocks.0.attn.hook_z": fail})
    assert torch.equal(model(tokens), before)


@pytest.mark.parametrize(
    "run",
    [
        lambda model, tokens, name: model.run_with_hooks(tokens, {name: lambda x, name: x}),
        lambda model, tokens, name: model.run_with_cache(tokens, [name]),
    ],
    ids=["hooks", "cache"],
)
def test_unknown_hook_name_raises_and_names_close_ones(tokens, run):
    with pytest.raises(
        ValueError, match=r"'blocks\.0\.attn\.hook_zz'; close ones: .*blocks\.0\.attn\.hook_z\b"
    ):
        run(small(), tokens, "blocks.0.attn.hook_zz")
    with pytest.raises(ValueError, match="no hook point 'blocks.0.mlp.hook_post'"):
        run(small(act_fn="none"), tokens, "blocks.0.mlp.hook_post")


# ---------------------------------------------------------------- parts of a run


@pytest.mark.parametrize("asked", [[POS - 1], [0], [2, 5], list(range(POS))], ids=str)
@pytest.mark.parametrize("kind", ["rotary", "learned"])
def test_asking_for_some_positions_equals_slicing(tokens, asked, kind):
    model = small(positions=kind)
    assert_close(model(tokens, torch.tensor(asked)), model(tokens)[:, asked], rtol=0, atol=1e-12)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_going_on_from_the_stream_equals_the_whole_run(tokens, layer):
    model = small()
    logits, cache = model.run_with_cache(tokens)
    resid = cache[f"blocks.{layer}.hook_resid_pre" if layer < 2 else "blocks.1.hook_resid_post"]
    assert_close(model.run_from(resid, layer), logits, rtol=0, atol=1e-12)
    assert_close(
        model.run_from(resid, layer, torch.tensor([POS - 1])), logits[:, -1:], rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("shape", [(POS,), (1, 0), (1, SMALL["n_ctx"] + 1), (1, 2, 3)], ids=str)
def test_tokens_of_a_wrong_shape_are_refused(shape):
    with pytest.raises(ValueError, match="tokens must be"):
        small()(torch.zeros(shape, dtype=torch.long))


# ---------------------------------------------------------------- weights, devices, config


@pytest.mark.parametrize("positions", ["rotary", "learned"])
@pytest.mark.parametrize("act_fn", ["relu", "none"])
def test_parameters_have_the_names_and_shapes_of_the_contract(positions, act_fn):
    model = small(positions=positions, act_fn=act_fn)
    wanted = {"embed.W_E": (11, 12), "ln_final.w": (12,), "unembed.W_U": (12, 11)}
    if positions == "learned":
        wanted["pos_embed.W_pos"] = (16, 12)
    for layer in range(2):
        block = {
            "ln1.w": (12,),
            "attn.W_Q": (3, 12, 4),
            "attn.W_K": (3, 12, 4),
            "attn.W_V": (3, 12, 4),
            "attn.W_O": (3, 4, 12),
        }
        if act_fn != "none":
            block |= {"ln2.w": (12,), "mlp.W_in": (12, 20), "mlp.W_out": (20, 12)}
        wanted |= {f"blocks.{layer}.{name}": shape for name, shape in block.items()}
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == wanted


def test_parameters_of_the_llama_family_have_their_names_and_shapes():
    state = small(**LLAMA).state_dict()
    block = {"attn.W_Q": (4, 12, 4), "attn.W_K": (2, 12, 4), "attn.W_V": (2, 12, 4)}
    block |= {"attn.b_Q": (4, 4), "attn.b_K": (2, 4), "attn.b_V": (2, 4), "attn.W_O": (4, 4, 12)}
    block |= {"mlp.W_gate": (12, 20), "mlp.W_in": (12, 20), "mlp.W_out": (20, 12)}
    wanted = {f"blocks.1.{name}": shape for name, shape in block.items()}
    found = {name: tuple(weight.shape) for name, weight in state.items()}
    assert {name: found[name] for name in found if name.startswith("blocks.1")} == {
        **wanted,
        "blocks.1.ln1.w": (12,),
        "blocks.1.ln2.w": (12,),
    }
    assert found.keys() - {name for name in found if name.startswith("blocks")} == {
        "embed.W_E",
        "ln_final.w",
    }


def test_initial_weights_come_from_the_generator_alone():
    def weights(seed, world):
        torch.manual_seed(world)
        state = torch.get_rng_state()
        model = Transformer(ModelConfig(**SMALL), torch.Generator().manual_seed(seed))
        assert torch.equal(torch.get_rng_state(), state)
        return torch.cat([weight.flatten() for weight in model.parameters()])

    assert torch.equal(weights(0, 1), weights(0, 2))
    assert not torch.equal(weights(0, 1), weights(1, 1))


def test_initial_weights_have_variance_one_over_fan_in_and_less_where_they_write_into_the_stream():
    model = Transformer(
        ModelConfig(
            n_layers=3, n_heads=4, d_model=64, d_head=32, d_mlp=256, d_vocab=64, positions="learned"
        )
    )
    fan_in = {
        "W_E": 1,
        "W_pos": 1,
        "W_Q": 64,
        "W_K": 64,
        "W_V": 64,
        "W_O": 4 * 32 * 2 * 3,
        "W_in": 64,
        "W_out": 256 * 2 * 3,
        "W_U": 64,
    }
    tied = Transformer(ModelConfig(d_vocab=500, tied_embeddings=True, qkv_bias=True))
    assert tied.embed.W_E.std().item() == pytest.approx(64**-0.5, rel=0.05)
    assert not tied.blocks[0].attn.b_K.any() and tied.blocks[0].ln1.w.eq(1).all()
    for name, weight in model.named_parameters():
        kind = name.split(".")[-1]
        assert kind == "w" or weight.std().item() == pytest.approx(
            fan_in[kind] ** -0.5, rel=0.05
        ), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variant", VARIANTS, ids=named)
def test_weights_may_have_any_dtype_and_the_stream_has_float32_at_least(tokens, dtype, variant):
    """16 bits of what meets bfloat16 count: 1e-5 of it at each product, and logits are about 1."""
    model = small(dtype, **variant)
    logits, cache = model.run_with_cache(tokens)
    of_stream = torch.float64 if dtype == torch.float64 else torch.float32
    assert {tensor.dtype for tensor in (logits, *cache.values())} == {of_stream}
    assert set(cache) == set(model.hook_names())
    assert_close(model.double()(tokens), logits.double(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype, bits", [(torch.bfloat16, 16), (torch.float16, 22)])
def test_a_product_with_weights_of_half_precision_keeps_twice_their_bits(dtype, bits):
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 3, 50, generator=generator), torch.randn(50, 40, generator=generator)
    weight = weight.to(dtype)
    exact = x.double() @ weight.double()
    of_sums = x.double().abs() @ weight.double().abs()
    found = product(x, weight)
    assert found.dtype == torch.float32
    assert ((found - exact).abs() <= 2.0**-bits * of_sums).all()
    once = (x.to(dtype) @ weight).double()  # rounded once, before and after, is far worse
    assert (once - exact).abs().max() > 50 * (found - exact).abs().max()


def test_a_product_in_one_dtype_is_the_plain_one():
    for dtype in (torch.float32, torch.float64):
        x, weight = torch.rand(2, 3, 5, dtype=dtype), torch.rand(5, 4, dtype=dtype)
        assert torch.equal(product(x, weight), x @ weight)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_product_in_half_precision_is_the_same_on_cuda(dtype):
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 3, 64, generator=generator), torch.randn(64, 8, generator=generator)
    with torch.no_grad():
        on_cuda = product(x.cuda(), weight.to(dtype).cuda())
    assert on_cuda.dtype == torch.float32
    assert_close(on_cuda.cpu(), product(x, weight.to(dtype)), rtol=0, atol=1e-4)


def test_weights_of_half_precision_have_gradients(tokens):
    models = [small(dtype).requires_grad_(True) for dtype in (torch.bfloat16, torch.float64)]
    models[1].load_state_dict(models[0].state_dict())
    for model in models:
        model(tokens).square().mean().backward()
    for low, high in zip(*(model.parameters() for model in models)):
        assert (low.grad - high.grad).abs().max() <= 0.01 * high.grad.abs().max()


@pytest.mark.parametrize("variant", VARIANTS, ids=named)
def test_every_tensor_is_made_on_the_models_device(tokens, variant):
    """On the meta device: a tensor made on the CPU by mistake meets one that is not, and raises."""
    model, tokens = small(**variant).to("meta"), tokens.to("meta")
    logits, cache = model.run_with_cache(tokens)
    some = model(tokens, [POS - 1])
    assert some.shape == (BATCH, 1, SMALL["d_vocab"])
    assert all(tensor.is_meta for tensor in (logits, some, model(tokens), *cache.values()))


def test_positions_off_the_cpu_are_not_read_but_must_be_a_list_of_whole_numbers(tokens):
    """To read them would make a GPU wait; on meta there is nothing to read."""
    model, tokens = small().to("meta"), tokens.to("meta")
    places = torch.zeros(2, dtype=torch.int32, device="meta")
    assert model(tokens, places).shape == (BATCH, 2, SMALL["d_vocab"])
    for wrong, word in ((places[None], "shape"), (places.float(), "int64"), (places > 0, "int64")):
        with pytest.raises(ValueError, match=f"positions must be .*{word}"):
            model(tokens, wrong)


@needs_gpu
@pytest.mark.parametrize("variant", VARIANTS, ids=named)
def test_cuda_gives_the_logits_of_the_cpu(tokens, variant):
    model = small(**variant)
    everywhere, last = model(tokens), model(tokens, torch.tensor([POS - 1]))
    model.to("cuda")
    assert_close(model(tokens.cuda()).cpu(), everywhere)
    assert_close(model.run_with_hooks(tokens.cuda(), written_out(model)).cpu(), everywhere)
    assert_close(model(tokens.cuda(), torch.tensor([POS - 1]).cuda()).cpu(), last)


@pytest.mark.parametrize(
    "field, value",
    [
        ("n_layers", 0),
        ("n_layers", 2.0),
        ("n_layers", True),
        ("n_layers", 10**6),
        ("d_model", -1),
        ("d_head", 3),
        ("d_vocab", "64"),
        ("n_ctx", None),
    ]
    + [
        ("positions", "alibi"),
        ("positions", None),
        ("normalization", "rms"),
        ("act_fn", "swish"),
        ("act_fn", []),
    ]
    + [("n_kv_heads", value) for value in (0, 2, -3, 3.0, True, "3", 6)]
    + [("rotary_divisors", x) for x in (None, [1.0, 2.0], (1.0,), (1.0, 0.0), (1.0, math.inf))]
    + [("gated_mlp", 1), ("tied_embeddings", None), ("qkv_bias", "yes")]
    + [("eps", 0.0), ("eps", math.nan), ("eps", math.inf), ("eps", "1e-5"), ("rotary_base", -1.0)],
)
def test_config_refuses_a_model_that_cannot_be_built(field, value):
    with pytest.raises(ValueError, match=f"model config: .*{field}"):
        ModelConfig(**{**SMALL, field: value})


def test_config_refuses_a_gate_without_an_mlp():
    with pytest.raises(ValueError, match="model config: gated_mlp needs an act_fn"):
        ModelConfig(act_fn="none", gated_mlp=True)


def test_odd_heads_are_fine_without_rotary_positions():
    assert small(positions="learned", d_head=3)(torch.zeros(1, 2, dtype=torch.long)).shape == (
        1,
        2,
        11,
    )
