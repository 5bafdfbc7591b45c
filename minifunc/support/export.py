"""A run's model for other tools, and back.

    python -m minifunc.support.export --run DIR --to safetensors FILE        weights, with the run's config in the header
    python -m minifunc.support.export --run DIR --to transformer-lens FILE   {config, state_dict, run} for the transformer-lens that is installed:

        saved = torch.load(FILE)
        model = HookedTransformer(HookedTransformerConfig(**saved["config"]))                        # 2.18, or
        model = TransformerBridge.boot_native(TransformerBridgeConfig(**saved["config"]))            # 4
        model.load_state_dict(saved["state_dict"])

    python -m minifunc.support.export --run DIR --from FORMAT FILE           a new run folder from such a file, bit for bit

Both packages are optional, and only the one asked for is imported; reading what was made for transformer-lens needs neither.
"""

import importlib
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minifunc.model import ModelConfig, Transformer
from minifunc.support.errors import UserError, first_line, run_main
from minifunc.support.files import load_tensors, save_json, save_tensors, write_file
from minifunc.support.flags import Parser
from minifunc.support.runs import load_run, model_config


def _package(name: str) -> Any:
    """The module of an optional package. Raises UserError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(
            f"this needs the package {name.split('.')[0].replace('_', '-')}, which is not installed here"
        ) from None


# ---------------------------------------------------------------- TransformerLens


def lens_config(cfg: ModelConfig) -> dict[str, Any]:
    """The arguments of a HookedTransformerConfig (2.18), or of a TransformerBridgeConfig (4), for a model of this shape."""
    same = ("n_layers", "n_heads", "d_model", "d_head", "d_mlp", "d_vocab", "n_ctx", "eps")
    config = {name: getattr(cfg, name) for name in same} | {
        "normalization_type": cfg.normalization,
        "init_weights": False,
        "device": "cpu",
    }
    config |= (
        {"act_fn": cfg.act_fn, "attn_only": False}
        if cfg.has_mlp
        else {"act_fn": None, "attn_only": True}
    )
    if cfg.positions == "rotary":
        config |= {
            "positional_embedding_type": "rotary",
            "rotary_dim": cfg.d_head,
            "rotary_base": int(cfg.rotary_base),
            "rotary_adjacent_pairs": True,
        }
    if cfg.positions == "none" or cfg.rotary_base != int(cfg.rotary_base):
        raise UserError(
            "transformer-lens has no model without positions, and none whose rotary base is not a whole number"
        )
    return config


def to_transformer_lens(model: Transformer) -> dict[str, Any]:
    """{config, state_dict} of a HookedTransformer (2.18) or a native TransformerBridge (4), whichever is installed; what we lack
    there (biases) is zero. Needs transformer-lens."""
    lens, config, weights = _package("transformer_lens"), lens_config(model.cfg), model.state_dict()
    try:
        other = lens.HookedTransformer(lens.HookedTransformerConfig(**config))
    except (AttributeError, ImportError):  # 4 has none
        config["architecture"] = "TransformerLensNative"
        shape = lens.TransformerBridgeConfig(**config)
        other = lens.TransformerBridge.boot_native(shape)
        weights = _package(
            "transformer_lens.utilities.tl_checkpoint_conversion"
        ).convert_tl_checkpoint(weights, shape)
    other = other.to(model.unembed.W_U.dtype)
    for parameter in other.parameters():
        parameter.data.zero_()
    other.load_state_dict(weights, strict=False)
    return {
        "config": config,
        "state_dict": {
            name: tensor.detach().clone() for name, tensor in other.state_dict().items()
        },
    }


def from_transformer_lens(path: Path) -> tuple[Any, dict[str, Tensor]]:
    """The run's config and the weights of a file that `--to transformer-lens` made. Raises UserError for any other, and where
    it holds more than our model: biases that are not zero, further weights."""
    saved = load_tensors(path)
    try:
        config, state = json.loads(saved["run"]), dict(saved["state_dict"])
        cfg = model_config(config["model"], path)
        ours = (
            _from_bridge(state, cfg)
            if "embed.weight" in state
            else {name: state.pop(name) for name in _names(cfg)}
        )
        more = [
            name
            for name, tensor in state.items()
            if name.rsplit(".", 1)[-1].lower().startswith("w")
            or name.rsplit(".", 1)[-1].startswith("b")
            and tensor.any()
        ]
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, RuntimeError) as error:
        raise UserError(f"{path} was not made by this command: {first_line(error)}") from None
    if more:
        raise UserError(f"{path}: {more[0]:.60} is not zero, and the run's model has no such part")
    return config, ours


def _names(cfg: ModelConfig) -> list[str]:
    with torch.device("meta"):
        return list(Transformer(cfg).state_dict())


def _from_bridge(state: dict[str, Tensor], cfg: ModelConfig) -> dict[str, Tensor]:
    """Our weights from the names and shapes of TransformerLens 4, which are those of nn.Linear; takes them out of `state`."""
    ours = {}
    for name in _names(cfg):
        part, kind = name.rsplit(".", 1)
        place = {
            "W_Q": ".q",
            "W_K": ".k",
            "W_V": ".v",
            "W_O": ".o",
            "W_in": ".in",
            "W_out": ".out",
        }.get(kind, "")
        weight = state.pop(f"{part}{place}.weight")
        if kind in ("W_Q", "W_K", "W_V"):
            weight = weight.reshape(cfg.n_heads, cfg.d_head, cfg.d_model).mT
        elif kind == "W_O":
            weight = weight.mT.reshape(cfg.n_heads, cfg.d_head, cfg.d_model)
        elif kind in ("W_in", "W_out", "W_U"):
            weight = weight.mT
        ours[name] = weight.contiguous()
    return ours


# ---------------------------------------------------------------- safetensors


def to_safetensors(model: Transformer, config: dict[str, Any]) -> bytes:
    """The file's bytes. Needs safetensors."""
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    data: bytes = _package("safetensors.torch").save(
        state, {"format": "pt", "config": json.dumps(config)}
    )
    return data


def from_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and the weights of a file that `to_safetensors` made. Raises UserError for any other. Needs safetensors."""
    safetensors = _package("safetensors")
    try:
        with safetensors.safe_open(path, "pt") as file:
            config, state = (
                json.loads((file.metadata() or {})["config"]),
                {name: file.get_tensor(name) for name in file.keys()},
            )  # noqa: SIM118
    except KeyError:
        raise UserError(
            f"{path} was not made by this command: its header holds no config"
        ) from None
    except (OSError, ValueError, RecursionError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}") from None
    return config, state


# ---------------------------------------------------------------- the command

READ = {"safetensors": from_safetensors, "transformer-lens": from_transformer_lens}


def import_run(kind: str, path: Path, folder: Path) -> None:
    """Makes a run folder from a file of this kind. Raises UserError, and makes none, where the file holds no sound run or there is one already."""
    config, state = READ[kind](path)
    if (folder / "config.json").exists() or (folder / "model.pt").exists():
        raise UserError(f"{folder} holds a run already: name another folder")
    with tempfile.TemporaryDirectory() as place:
        try:
            save_json(Path(place) / "config.json", config)
            save_tensors(Path(place) / "model.pt", state)
            load_run(place)
        except (UserError, ValueError) as error:  # a NaN in the header is a ValueError
            raise UserError(
                f"{path} holds no sound run: {str(error).replace(f'{place}/', '')}"
            ) from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {folder}: {error}") from None
    save_tensors(folder / "model.pt", state)
    save_json(folder / "config.json", config)


def work(argv: Sequence[str] | None) -> int:
    parser = Parser(
        prog="python -m minifunc.support.export",
        description="A run's model for other tools, and back.",
    )
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="the run's folder")
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument(
        "--to",
        nargs=2,
        metavar=("FORMAT", "FILE"),
        help="write the model to FILE, as safetensors or transformer-lens",
    )
    way.add_argument(
        "--from",
        nargs=2,
        metavar=("FORMAT", "FILE"),
        dest="source",
        help="make the run's folder from FILE, which --to FORMAT wrote",
    )
    arguments = parser.parse_args(argv)
    kind, name = arguments.to or arguments.source
    if kind not in READ:
        raise UserError(f"the format must be {' or '.join(READ)}, not {kind!r}")
    path = Path(name)
    if arguments.source:
        import_run(kind, path, arguments.run)
        print(f"made {arguments.run} from {path}")
        return 0
    model, config = load_run(arguments.run)
    if os.path.lexists(path):
        raise UserError(f"{path} is there already: name another file")
    if kind == "safetensors":
        data = to_safetensors(model, config)
        write_file(path, lambda file: file.write(data))
    else:
        save_tensors(path, to_transformer_lens(model) | {"run": json.dumps(config)})
    print(f"wrote {path}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(lambda: work(argv))


if __name__ == "__main__":
    sys.exit(main())
