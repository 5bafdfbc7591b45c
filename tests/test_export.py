"""Other tools read our models, and what they hold comes back bit for bit. All of it is run by `make parity`."""

import json
import sys

import pytest
import torch

from minifunc.model import ModelConfig, Transformer
from minifunc.support import export
from minifunc.support.errors import UserError
from minifunc.support.files import save_json, save_tensors
from minifunc.support.runs import load_run

CFG = ModelConfig(n_layers=2, d_model=16, d_head=4, d_mlp=8, d_vocab=11, n_ctx=9, rotary_base=100.0)


def make_run(folder, cfg=CFG):
    folder.mkdir()
    model = Transformer(cfg)
    save_tensors(folder / "model.pt", model.state_dict())
    save_json(
        folder / "config.json",
        {"model": vars(cfg), "vocabulary": list("abcdefghijk"), "train": {"seed": 3}},
    )
    return model


def test_a_run_comes_back_from_safetensors_bit_for_bit(tmp_path, capsys):
    pytest.importorskip("safetensors")
    model = make_run(tmp_path / "run")
    assert (
        export.main(["--run", str(tmp_path / "run"), "--to", "safetensors", str(tmp_path / "file")])
        == 0
    )
    assert (
        export.main(
            ["--run", str(tmp_path / "a" / "new"), "--from", "safetensors", str(tmp_path / "file")]
        )
        == 0
    )
    again, config = load_run(tmp_path / "a" / "new")
    assert config == json.loads((tmp_path / "run" / "config.json").read_text())
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(
        torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items()
    )
    assert (
        export.main(
            ["--run", str(tmp_path / "run"), "--from", "safetensors", str(tmp_path / "file")]
        )
        == 2
    )
    assert "holds a run already" in capsys.readouterr().err
    weights = (tmp_path / "run" / "model.pt").read_bytes()
    assert (
        export.main(
            [
                "--run",
                str(tmp_path / "run"),
                "--to",
                "safetensors",
                str(tmp_path / "run" / "model.pt"),
            ]
        )
        == 2
    )
    assert (
        "is there already" in capsys.readouterr().err
        and (tmp_path / "run" / "model.pt").read_bytes() == weights
    )


def test_a_file_that_holds_no_sound_run_is_refused_and_makes_no_folder(tmp_path, capsys):
    safetensors = pytest.importorskip("safetensors.torch")
    model, path = Transformer(CFG), tmp_path / "file"
    state, config = dict(model.state_dict()), {"model": vars(CFG), "vocabulary": ["a"]}
    whole = export.to_safetensors(model, config)
    for data, word in (
        (b"", "cannot be read"),
        (whole[:-10], "cannot be read"),
        (safetensors.save(state), "holds no config"),
        (safetensors.save(state, {"config": "{"}), "cannot be read"),
        (safetensors.save(state, {"config": "[]"}), "no sound run"),
        (safetensors.save(state, {"config": '{"vocabulary": [NaN]}'}), "no sound run"),
        (
            safetensors.save(
                state | {"unembed.W_U": torch.ones(2)}, {"config": json.dumps(config)}
            ),
            "unembed.W_U",
        ),
    ):
        path.write_bytes(data)
        assert (
            export.main(["--run", str(tmp_path / "new"), "--from", "safetensors", str(path)]) == 2
        )
        message = capsys.readouterr().err
        assert str(path) in message and word in message and message.count("\n") == 1
    assert not (tmp_path / "new").exists()


CONFIGS = {
    "default": CFG,
    "learned, LN": ModelConfig(n_layers=2, positions="learned", normalization="LN", d_vocab=11),
    "attention-only": ModelConfig(n_layers=1, act_fn="none", d_vocab=11),
}


def in_transformer_lens(saved):
    """What the docstring of minifunc/support/export.py says to do with the file, under either version."""
    lens = pytest.importorskip(
        "transformer_lens",
        reason="transformer-lens is not installed; make parity sets up environments that have it",
    )
    if "architecture" in saved["config"]:  # noqa: SIM108 (two ways, two lines)
        model = lens.TransformerBridge.boot_native(lens.TransformerBridgeConfig(**saved["config"]))
    else:
        model = lens.HookedTransformer(lens.HookedTransformerConfig(**saved["config"]))
    model.load_state_dict(saved["state_dict"])
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_an_exported_file_is_our_model_in_transformer_lens_and_comes_back_bit_for_bit(
    tmp_path, name
):
    pytest.importorskip(
        "transformer_lens",
        reason="transformer-lens is not installed; make parity sets up environments that have it",
    )
    cfg, path = CONFIGS[name], tmp_path / "lens.pt"
    model = make_run(tmp_path / "run", cfg)
    assert export.main(["--run", str(tmp_path / "run"), "--to", "transformer-lens", str(path)]) == 0
    saved = torch.load(path, weights_only=True)
    tokens = torch.randint(cfg.d_vocab, (3, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        (logits, ours), (their_logits, theirs) = (
            model.run_with_cache(tokens),
            in_transformer_lens(saved).run_with_cache(tokens),
        )
    torch.testing.assert_close(logits, their_logits, rtol=0, atol=1e-4)
    compared = [
        hook for hook in ours if hook in theirs and not hook.endswith("attn_scores")
    ]  # what is masked there is written differently
    assert (
        sum(hook.endswith("hook_z") for hook in compared) == cfg.n_layers
        and len(compared) > 8 * cfg.n_layers
    )
    for hook in compared:
        torch.testing.assert_close(
            ours[hook],
            theirs[hook],
            rtol=0,
            atol=1e-4,
            msg=lambda message, hook=hook: f"{hook}: {message}",
        )
    assert (
        export.main(["--run", str(tmp_path / "again"), "--from", "transformer-lens", str(path)])
        == 0
    )
    again, config = load_run(tmp_path / "again")
    assert config == json.loads((tmp_path / "run" / "config.json").read_text())
    assert all(
        torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items()
    )


def as_in_transformer_lens(model, bridge):
    """The weights by the names and shapes of TransformerLens 4 (bridge) or 2.18, in words of our own, with biases of zero."""
    shapes = {"W_Q": "q", "W_K": "k", "W_V": "v", "W_O": "o", "W_in": "in", "W_out": "out"}
    state = {
        "blocks.0.attn.q.bias" if bridge else "blocks.0.attn.b_Q": torch.zeros(16),
        "blocks.0.attn.rotary_sin": torch.ones(3),
    }
    for name, tensor in model.state_dict().items():
        part, kind = name.rsplit(".", 1)
        if not bridge:
            state[name] = tensor
        elif kind in (
            "W_Q",
            "W_K",
            "W_V",
        ):  # [head, d_model, d_head]: the rows of nn.Linear are head after head
            state[f"{part}.{shapes[kind]}.weight"] = torch.cat([head.T for head in tensor])
        elif kind == "W_O":
            state[f"{part}.o.weight"] = torch.cat(list(tensor)).T
        else:
            state[f"{part}.{shapes[kind]}.weight" if kind in shapes else f"{part}.weight"] = (
                tensor.T if kind.startswith(("W_in", "W_out", "W_U")) else tensor
            )
    return state


@pytest.mark.parametrize("bridge", [False, True], ids=["2.18", "4"])
def test_a_run_comes_back_from_transformer_lens_bit_for_bit(tmp_path, capsys, bridge):
    """Without the package: reading needs none."""
    model, path = make_run(tmp_path / "run"), tmp_path / "lens.pt"
    state, run = (
        as_in_transformer_lens(model, bridge),
        (tmp_path / "run" / "config.json").read_text(),
    )
    save_tensors(path, {"state_dict": state, "run": run})
    assert (
        export.main(["--run", str(tmp_path / "again"), "--from", "transformer-lens", str(path)])
        == 0
    )
    again, config = load_run(tmp_path / "again")
    assert config == json.loads(run) and all(
        torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items()
    )
    capsys.readouterr()
    unembed = "unembed.weight" if bridge else "unembed.W_U"
    for changed, word in (
        ({"run": "{"}, "not made by this command"),
        ({"run": "[]"}, "not made by this command"),
        ({"run": json.dumps({"model": {"n_layers": -1}})}, "n_layers"),
        ({"state_dict": {}}, "not made by this command"),
        ({"state_dict": 7}, "not made by this command"),
        ({"state_dict": state | {unembed: torch.ones(2, 3)}}, "unembed"),
        ({"state_dict": state | {unembed: "text"}}, str(path)),
        (
            {"state_dict": state | {"unembed.b_U": torch.tensor([0.0, 1.0])}},
            "unembed.b_U is not zero",
        ),
        (
            {
                "state_dict": state
                | {"blocks.2.ln1.weight" if bridge else "blocks.2.ln1.w": torch.ones(16)}
            },
            "no such part",
        ),
    ):
        save_tensors(path, {"state_dict": state, "run": run} | changed)
        assert (
            export.main(["--run", str(tmp_path / "new"), "--from", "transformer-lens", str(path)])
            == 2
        )
        message = capsys.readouterr().err
        assert str(path) in message and word in message and message.count("\n") == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "kind, package", [("safetensors", "safetensors"), ("transformer-lens", "transformer_lens")]
)
def test_a_package_that_is_missing_is_named(tmp_path, capsys, monkeypatch, kind, package):
    make_run(tmp_path / "run")
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    assert export.main(["--run", str(tmp_path / "run"), "--to", kind, str(tmp_path / "file")]) == 2
    assert "not installed" in capsys.readouterr().err and not (tmp_path / "file").exists()


@pytest.mark.parametrize("changes", [dict(positions="none"), dict(rotary_base=0.5)], ids=str)
def test_a_model_that_transformer_lens_cannot_hold_is_refused(changes):
    with pytest.raises(UserError, match="transformer-lens has no model"):
        export.lens_config(ModelConfig(**changes))


def test_a_mistaken_command_is_one_line(tmp_path, capsys):
    for flags in (
        ["--to", "onnx", "x"],
        ["--from", "transformer-lens", str(tmp_path / "none")],
        [],
        ["--to", "safetensors"],
    ):
        assert export.main(["--run", str(tmp_path), *flags]) == 2
        assert capsys.readouterr().err.count("\n") == 1
