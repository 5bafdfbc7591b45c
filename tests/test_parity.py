"""Our weights, as they are, give the same logits and activations in TransformerLens 2.18.

Run by `make parity`.
"""

import pytest
import torch

from experiments.bench_loops import lens_config
from minifunc.model import ModelConfig, Transformer

lens = pytest.importorskip(
    "transformer_lens",
    reason="transformer-lens is not installed; make parity sets up an environment that has it",
)

CONFIGS = {
    "default": ModelConfig(n_heads=8, d_head=8, act_fn="relu", rotary_base=100.0),
    "learned, LN, gelu": ModelConfig(n_layers=2, positions="learned", normalization="LN"),
    "attention-only": ModelConfig(n_layers=2, act_fn="none"),
}


def hooked_transformer(model):
    """A HookedTransformer with our weights; what we lack there (biases) stays zero."""
    other = lens.HookedTransformer(lens.HookedTransformerConfig(**lens_config(model.cfg)))
    for parameter in other.parameters():
        parameter.data.zero_()
    missing, unexpected = other.load_state_dict(model.state_dict(), strict=False)
    buffers = (".b", "mask", "IGNORE", "rotary_sin", "rotary_cos")
    assert not unexpected
    assert all(".b_" in name or name.endswith(buffers) for name in missing)
    return other


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_every_activation_agree_with_transformer_lens(name):
    model = Transformer(CONFIGS[name]).requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim == 1:  # norm scales other than one
            parameter.data.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(0))
    tokens = torch.randint(model.cfg.d_vocab, (3, 20), generator=torch.Generator().manual_seed(1))
    logits, ours = model.run_with_cache(tokens)
    other = hooked_transformer(model)
    theirs_logits, theirs = other.run_with_cache(tokens)
    torch.testing.assert_close(logits, theirs_logits, rtol=0, atol=1e-4)
    compared = [hook for hook in ours if hook in theirs]
    assert sum(hook.endswith("hook_z") for hook in compared) == model.cfg.n_layers
    assert len(compared) > 8 * model.cfg.n_layers
    for hook in compared:
        a, b = ours[hook].nan_to_num(neginf=0), theirs[hook].nan_to_num(neginf=0)
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4, msg=f"{hook} differs")
