"""Other tools read our models; from safetensors they come back bit for bit (`make parity`: all)."""

import json
import sys
from dataclasses import fields, replace

import pytest
import torch

from minifunc.model import ModelConfig, Transformer
from minifunc.support import export
from minifunc.support.errors import UserError
from minifunc.support.files import load_json, save_json, save_tensors
from minifunc.support.runs import load_run

NO_LENS = "transformer-lens is not installed; make parity sets up environments that have it"
CFG = ModelConfig(n_layers=2, d_model=16, d_head=4, d_mlp=8, d_vocab=11, n_ctx=9, rotary_base=100.0)


def make_run(folder, cfg=CFG):
    folder.mkdir()
    model = Transformer(cfg)
    save_tensors(folder / "model.pt", model.state_dict())
    config = {"model": vars(cfg), "vocabulary": list("abcdefghijk"), "train": {"seed": 3}}
    save_json(folder / "config.json", config)
    return model


def export_main(run, way, kind, path):
    return export.main(["--run", str(run), f"--{way}", kind, str(path)])


def assert_same_run(folder, model, config):
    """The run in `folder` has this model, bit for bit, and this config."""
    again, its_config = load_run(folder)
    assert its_config == config
    assert again.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])


def test_a_run_comes_back_from_safetensors_bit_for_bit(tmp_path, capsys):
    pytest.importorskip("safetensors")
    run, again, path = tmp_path / "run", tmp_path / "a" / "new", tmp_path / "file"
    model = make_run(run)
    assert export_main(run, "to", "safetensors", path) == 0
    assert export_main(again, "from", "safetensors", path) == 0
    assert_same_run(again, model, load_json(run / "config.json"))
    assert export_main(run, "from", "safetensors", path) == 2
    assert "holds a run already" in capsys.readouterr().err
    weights = (run / "model.pt").read_bytes()
    assert export_main(run, "to", "safetensors", run / "model.pt") == 2
    assert "is there already" in capsys.readouterr().err
    assert (run / "model.pt").read_bytes() == weights


def assert_refused(path, word, capsys):
    """No run is made from this file: one line that names it and says why."""
    new = path.parent / "new"
    assert export_main(new, "from", "safetensors", path) == 2
    message = capsys.readouterr().err
    assert str(path) in message and word in message and message.count("\n") == 1
    assert not new.exists()


def test_a_file_that_holds_no_sound_run_is_refused_and_makes_no_folder(tmp_path, capsys):
    safetensors = pytest.importorskip("safetensors.torch")
    model, path = Transformer(CFG), tmp_path / "file"
    state, config = dict(model.state_dict()), {"model": vars(CFG), "vocabulary": ["a"]}
    whole = export.to_safetensors(model, config)
    other = state | {"unembed.W_U": torch.ones(2)}
    for data, word in (
        (b"", "cannot be read"),
        (whole[:-10], "cannot be read"),
        (safetensors.save(state), "holds no config"),
        (safetensors.save(state, {"config": "{"}), "cannot be read"),
        (safetensors.save(state, {"config": "[]"}), "no sound run"),
        (safetensors.save(state, {"config": '{"vocabulary": [NaN]}'}), "no sound run"),
        (safetensors.save(other, {"config": json.dumps(config)}), "unembed.W_U"),
    ):
        path.write_bytes(data)
        assert_refused(path, word, capsys)


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
    assert export_main(run, "to", "transformer-lens", path) == 0
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
    assert export_main(tmp_path / "run", "to", kind, tmp_path / "file") == 2
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
        ["--from", "transformer-lens", "x"],
        ["--from", "safetensors", str(tmp_path / "none")],
        [],
        ["--to", "safetensors"],
    ):
        assert export.main(["--run", str(tmp_path), *flags]) == 2
        assert capsys.readouterr().err.count("\n") == 1
