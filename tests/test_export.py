"""Our weights in TransformerLens 2.18 and 4: names, shapes, logits, activations (`make parity`)."""

from dataclasses import fields, replace

import pytest
import torch

from experiments.bench_loops import lens_config
from minifunc.model import ModelConfig, Transformer

NO_LENS = "transformer-lens is not installed; make parity sets up environments that have it"
CFG = ModelConfig(n_layers=2, d_model=16, d_head=4, d_mlp=8, d_vocab=11, n_ctx=9, rotary_base=100.0)
CONFIGS = {
    "default": CFG,
    "learned, LN": ModelConfig(n_layers=2, positions="learned", normalization="LN", d_vocab=11),
    "attention-only": ModelConfig(n_layers=1, act_fn="none", d_vocab=11),
}
# No run of ours has them.
ADDED = ("n_kv_heads", "gated_mlp", "tied_embeddings", "qkv_bias", "rotary_divisors")


def in_transformer_lens(model):
    """Our model in the version that is installed.

    2.18 takes our state dict as it is. 4 has weights of another layout, a Linear's, and a function
    of its own that transposes those of 2.18.
    """
    lens = pytest.importorskip("transformer_lens", reason=NO_LENS)
    config, weights = lens_config(model.cfg), model.state_dict()
    try:
        other = lens.HookedTransformer(lens.HookedTransformerConfig(**config))
    except (AttributeError, ImportError):  # 4 has none
        from transformer_lens.utilities.tl_checkpoint_conversion import convert_tl_checkpoint

        shape = lens.TransformerBridgeConfig(**config, architecture="TransformerLensNative")
        other = lens.TransformerBridge.boot_native(shape)
        weights = convert_tl_checkpoint(weights, shape)
    for parameter in other.parameters():
        parameter.data.zero_()  # biases, which we lack
    other.load_state_dict(weights, strict=False)
    return other


@pytest.mark.parametrize("name", CONFIGS)
def test_our_weights_are_our_model_in_transformer_lens(name):
    cfg = CONFIGS[name]
    model = Transformer(cfg)
    other = in_transformer_lens(model)
    tokens = torch.randint(cfg.d_vocab, (3, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, ours = model.run_with_cache(tokens)
        their_logits, theirs = other.run_with_cache(tokens)
    torch.testing.assert_close(logits, their_logits, rtol=0, atol=1e-4)
    compared = [hook for hook in ours if hook in theirs]
    assert sum(hook.endswith("hook_z") for hook in compared) == cfg.n_layers
    assert len(compared) > 8 * cfg.n_layers
    for hook in compared:
        if not hook.endswith("attn_scores"):  # what is masked there is written differently
            same = {"rtol": 0, "atol": 1e-4, "msg": f"{hook} differs"}
            torch.testing.assert_close(ours[hook], theirs[hook], **same)


def test_every_field_of_a_model_is_told_to_transformer_lens():
    """For one left out that package would take a default of its own."""
    cfg = ModelConfig(3, 5, 22, 6, 14, 17, 19, "rotary", "LN", "relu", 3e-4, 50.0)
    told = lens_config(cfg)
    names = {"positions": "positional_embedding_type", "normalization": "normalization_type"}
    for field in fields(cfg):
        if field.name not in ADDED:
            assert told[names.get(field.name, field.name)] == getattr(cfg, field.name)
    assert told["rotary_dim"] == 6 and told["rotary_adjacent_pairs"] is True
    assert told["attn_only"] is False and told["init_weights"] is False
    without_mlps = lens_config(replace(cfg, act_fn="none"))
    assert told.items() - without_mlps.items() == {("act_fn", "relu"), ("attn_only", False)}
    assert without_mlps["attn_only"] is True and without_mlps["act_fn"] is None
    learned = lens_config(replace(cfg, positions="learned"))
    assert not any(name.startswith(("rotary", "positional")) for name in learned)  # its default
