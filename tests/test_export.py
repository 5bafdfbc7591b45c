"""Other tools read our models (`make parity`: all)."""

import json
import sys
from dataclasses import fields, replace

import pytest
import torch

from minifunc.model import ModelConfig, Transformer
from minifunc.support import export
from minifunc.support.errors import UserError
from minifunc.support.files import load_json, save_json, save_tensors

NO_LENS = "transformer-lens is not installed; make parity sets up environments that have it"
CFG = ModelConfig(n_layers=2, d_model=16, d_head=4, d_mlp=8, d_vocab=11, n_ctx=9, rotary_base=100.0)


def make_run(folder, cfg=CFG):
    folder.mkdir()
    model = Transformer(cfg)
    save_tensors(folder / "model.pt", model.state_dict())
    config = {"model": vars(cfg), "vocabulary": list("abcdefghijk"), "train": {"seed": 3}}
    save_json(folder / "config.json", config)
    return model


def export_main(run, kind, path):
    return export.main(["--run", str(run), "--to", kind, str(path)])


def test_a_file_of_safetensors_has_the_weights_bit_for_bit_and_the_config(tmp_path, capsys):
    safetensors = pytest.importorskip("safetensors")
    run, path = tmp_path / "run", tmp_path / "file"
    model = make_run(run)
    assert export_main(run, "safetensors", path) == 0
    with safetensors.safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["config"]) == load_json(run / "config.json")
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert state.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name])
    weights = (run / "model.pt").read_bytes()
    assert export_main(run, "safetensors", run / "model.pt") == 2
    assert "is there already" in capsys.readouterr().err
    assert (run / "model.pt").read_bytes() == weights


CONFIGS = {
    "default": CFG,
    "learned, LN": ModelConfig(n_layers=2, positions="learned", normalization="LN", d_vocab=11),
    "attention-only": ModelConfig(n_layers=1, act_fn="none", d_vocab=11),
}


def in_transformer_lens(saved):
    """What the docstring of minifunc/support/export.py says to do, under either version."""
    lens = pytest.importorskip("transformer_lens", reason=NO_LENS)
    if "architecture" in saved["config"]:  # noqa: SIM108 (two ways, two lines)
        model = lens.TransformerBridge.boot_native(lens.TransformerBridgeConfig(**saved["config"]))
    else:
        model = lens.HookedTransformer(lens.HookedTransformerConfig(**saved["config"]))
    model.load_state_dict(saved["state_dict"])
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_an_exported_file_is_our_model_in_transformer_lens(tmp_path, name):
    pytest.importorskip("transformer_lens", reason=NO_LENS)
    cfg, run, path = CONFIGS[name], tmp_path / "run", tmp_path / "lens.pt"
    model = make_run(run, cfg)
    assert export_main(run, "transformer-lens", path) == 0
    saved = torch.load(path, weights_only=True)
    tokens = torch.randint(cfg.d_vocab, (3, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, ours = model.run_with_cache(tokens)
        their_logits, theirs = in_transformer_lens(saved).run_with_cache(tokens)
    torch.testing.assert_close(logits, their_logits, rtol=0, atol=1e-4)
    compared = [hook for hook in ours if hook in theirs]
    assert sum(hook.endswith("hook_z") for hook in compared) == cfg.n_layers
    assert len(compared) > 8 * cfg.n_layers
    for hook in compared:
        if not hook.endswith("attn_scores"):  # what is masked there is written differently
            same = {"rtol": 0, "atol": 1e-4, "msg": f"{hook} differs"}
            torch.testing.assert_close(ours[hook], theirs[hook], **same)


@pytest.mark.parametrize(
    "kind, package", [("safetensors", "safetensors"), ("transformer-lens", "transformer_lens")]
)
def test_a_package_that_is_missing_is_named(tmp_path, capsys, monkeypatch, kind, package):
    make_run(tmp_path / "run")
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    assert export_main(tmp_path / "run", kind, tmp_path / "file") == 2
    assert "not installed" in capsys.readouterr().err and not (tmp_path / "file").exists()


@pytest.mark.parametrize("changes", [dict(positions="none"), dict(rotary_base=0.5)], ids=str)
def test_a_model_that_transformer_lens_cannot_hold_is_refused(changes):
    with pytest.raises(UserError, match="transformer-lens has no model"):
        export.lens_config(ModelConfig(**changes))


def test_every_field_of_a_model_is_told_to_transformer_lens():
    """For one left out that package would take a default of its own."""
    cfg = ModelConfig(3, 5, 22, 6, 14, 17, 19, "rotary", "LN", "relu", 3e-4, 50.0)
    told = export.lens_config(cfg)
    names = {"positions": "positional_embedding_type", "normalization": "normalization_type"}
    refused = {"n_kv_heads": 1, "gated_mlp": True, "tied_embeddings": True, "qkv_bias": True}
    for field in fields(cfg):
        if field.name in refused:
            with pytest.raises(UserError, match=f"no model with {field.name} goes to"):
                export.lens_config(replace(cfg, **{field.name: refused[field.name]}))
            continue
        assert told[names.get(field.name, field.name)] == getattr(cfg, field.name)
    assert told["rotary_dim"] == 6 and told["rotary_adjacent_pairs"] is True
    assert told["attn_only"] is False and told["init_weights"] is False
    without_mlps = export.lens_config(replace(cfg, act_fn="none"))
    assert told.items() - without_mlps.items() == {("act_fn", "relu"), ("attn_only", False)}
    assert without_mlps["attn_only"] is True and without_mlps["act_fn"] is None
    learned = export.lens_config(replace(cfg, positions="learned"))
    assert not any(name.startswith(("rotary", "positional")) for name in learned)  # its default


def test_a_mistaken_command_is_one_line(tmp_path, capsys):
    for flags in (
        ["--to", "onnx", "x"],
        ["--to", "safetensors", str(tmp_path / "none")],
        [],
        ["--to", "safetensors"],
    ):
        assert export.main(["--run", str(tmp_path), *flags]) == 2
        assert capsys.readouterr().err.count("\n") == 1
