"""A run's model for other tools, and back.

    python -m minifunc.support.export --run DIR --to safetensors FILE
    python -m minifunc.support.export --run DIR --to transformer-lens FILE
    python -m minifunc.support.export --run DIR --from FORMAT FILE

A safetensors file holds the weights, with the run's config in the header. The file for
transformer-lens holds {config, state_dict, run}, for the version that is installed:

    saved = torch.load(FILE)
    model = HookedTransformer(HookedTransformerConfig(**saved["config"]))              # 2.18
    model = TransformerBridge.boot_native(TransformerBridgeConfig(**saved["config"]))  # 4
    model.load_state_dict(saved["state_dict"])

--from makes a new run folder from such a file, bit for bit. Both packages are optional; reading
what was made for transformer-lens needs neither.
"""

import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minifunc.model import ModelConfig, Transformer
from minifunc.support import files
from minifunc.support.errors import UserError, command, first_line
from minifunc.support.flags import Parser
from minifunc.support.runs import build_model, load_run, make_command
from minifunc.support.settings import added_parts, from_json


def optional_package(name: str) -> Any:
    """The module of an optional package. Raises UserError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.split(".")[0].replace("_", "-")
        raise UserError(f"this needs the package {package}, which is not installed here") from None


SAME = ("n_layers", "n_heads", "d_model", "d_head", "d_mlp", "d_vocab", "n_ctx", "eps")
NAMES_IN_4 = {"W_Q": "q", "W_K": "k", "W_V": "v", "W_O": "o", "W_in": "in", "W_out": "out"}


def lens_config(cfg: ModelConfig) -> dict[str, Any]:
    """The arguments of a HookedTransformerConfig (2.18) or a TransformerBridgeConfig (4)."""
    if cfg.positions == "none" or cfg.rotary_base != int(cfg.rotary_base):
        lacks = "without positions, and none whose rotary base is not a whole number"
        raise UserError(f"transformer-lens has no model {lacks}")
    if added_parts(cfg):
        raise UserError(f"no model with {', '.join(added_parts(cfg))} goes to transformer-lens")
    config = {name: getattr(cfg, name) for name in SAME}
    config |= {"normalization_type": cfg.normalization, "init_weights": False, "device": "cpu"}
    config |= {"act_fn": cfg.act_fn if cfg.has_mlp else None, "attn_only": not cfg.has_mlp}
    if cfg.positions == "rotary":
        config |= {"positional_embedding_type": "rotary", "rotary_dim": cfg.d_head}
        config |= {"rotary_base": int(cfg.rotary_base), "rotary_adjacent_pairs": True}
    return config


def to_transformer_lens(model: Transformer) -> dict[str, Any]:
    """{config, state_dict} for the transformer-lens that is installed; biases, all 0."""
    lens, config = optional_package("transformer_lens"), lens_config(model.cfg)
    weights = model.state_dict()
    try:
        other = lens.HookedTransformer(lens.HookedTransformerConfig(**config))
    except (AttributeError, ImportError):  # 4 has none
        config["architecture"] = "TransformerLensNative"
        shape = lens.TransformerBridgeConfig(**config)
        other = lens.TransformerBridge.boot_native(shape)
        conversion = optional_package("transformer_lens.utilities.tl_checkpoint_conversion")
        weights = conversion.convert_tl_checkpoint(weights, shape)
    other = other.to(model.dtype)
    for parameter in other.parameters():
        parameter.data.zero_()
    other.load_state_dict(weights, strict=False)
    state = {name: tensor.detach().clone() for name, tensor in other.state_dict().items()}
    return {"config": config, "state_dict": state}


def from_transformer_lens(path: Path) -> tuple[Any, dict[str, Tensor]]:
    """The run's config and the weights of a file that `--to transformer-lens` made.

    Raises UserError for any other, and where it holds more than our model: biases that are not
    zero, further weights.
    """
    saved = files.load_tensors(path)
    with files.reading(path, "was not made by this command"):
        config, state = json.loads(saved["run"]), dict(saved["state_dict"])
        cfg = from_json(ModelConfig(), config["model"], f"{path}: `model`")
        with torch.device("meta"):
            names = list(Transformer(cfg).state_dict())
        if "embed.weight" in state:
            ours = {name: _taken_from_4(state, name, cfg) for name in names}
        else:
            ours = {name: state.pop(name) for name in names}
        more = [name for name, tensor in state.items() if _counts(name, tensor)]
    if more:
        raise UserError(f"{path}: {more[0]:.60} is not zero, and the run's model has no such part")
    return config, ours


def _counts(name: str, tensor: Tensor) -> bool:
    """Whether a tensor that our model lacks changes what the other computes."""
    kind = name.rsplit(".", 1)[-1]
    return kind.lower().startswith("w") or (kind.startswith("b") and bool(tensor.any()))


def _taken_from_4(state: dict[str, Tensor], name: str, cfg: ModelConfig) -> Tensor:
    """Our weight `name`, out of `state`, whose names and shapes are those of nn.Linear."""
    part, kind = name.rsplit(".", 1)
    if kind in NAMES_IN_4:
        part = f"{part}.{NAMES_IN_4[kind]}"
    weight = state.pop(f"{part}.weight")
    if kind in ("W_Q", "W_K", "W_V"):
        weight = weight.reshape(cfg.n_heads, cfg.d_head, cfg.d_model).mT
    elif kind == "W_O":
        weight = weight.mT.reshape(cfg.n_heads, cfg.d_head, cfg.d_model)
    elif kind in ("W_in", "W_out", "W_U"):
        weight = weight.mT
    return weight.contiguous()


def to_safetensors(model: Transformer, config: dict[str, Any]) -> bytes:
    """The file's bytes."""
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    header = {"format": "pt", "config": json.dumps(config)}
    return bytes(optional_package("safetensors.torch").save(state, header))


def from_safetensors(path: Path) -> tuple[Any, dict[str, Tensor]]:
    """The config and the weights of a file that `to_safetensors` made; a UserError for others."""
    safetensors = optional_package("safetensors")
    try:
        with safetensors.safe_open(path, "pt") as file:
            header = file.metadata() or {}
            if "config" not in header:
                raise UserError(f"{path} was not made by this command: its header holds no config")
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return json.loads(header["config"]), state
    except (OSError, ValueError, RecursionError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}") from None


READ = {"safetensors": from_safetensors, "transformer-lens": from_transformer_lens}


def export_run(run: Path, kind: str, path: Path) -> None:
    """Makes a file of this kind from a run. Raises UserError where there is one already."""
    model, config = load_run(run)
    if os.path.lexists(path):
        raise UserError(f"{path} is there already: name another file")
    if kind == "safetensors":
        data = to_safetensors(model, config)
        files.write_file(path, lambda file: file.write(data))
    else:
        files.save_tensors(path, to_transformer_lens(model) | {"run": json.dumps(config)})


def import_run(run: Path, kind: str, path: Path) -> None:
    """Makes a run folder from a file of this kind. Raises UserError, and makes none, where the file
    holds no sound run or there is one already."""
    config, state = READ[kind](path)
    if (run / "config.json").exists() or (run / "model.pt").exists():
        raise UserError(f"{run} holds a run already: name another folder")
    try:
        build_model(config, state, "config.json", "model.pt")
        json.dumps(config, allow_nan=False)
    except (UserError, ValueError) as error:  # a NaN in the header is a ValueError
        raise UserError(f"{path} holds no sound run: {first_line(error)}") from None
    files.make_folder(run)
    files.save_tensors(run / "model.pt", state)
    files.save_json(run / "config.json", config)


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("python -m minifunc.support.export", __doc__)
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="the run's folder")
    way = parser.add_mutually_exclusive_group(required=True)
    pair: dict[str, Any] = {"nargs": 2, "metavar": ("FORMAT", "FILE")}
    way.add_argument("--to", **pair, help=f"write the model to FILE; FORMAT: {' or '.join(READ)}")
    way.add_argument("--from", **pair, dest="source", help="make the run's folder from such a FILE")
    arguments = parser.parse_args(argv)
    kind, name = arguments.to or arguments.source
    if kind not in READ:
        raise UserError(f"the format must be {' or '.join(READ)}, not {kind!r}")
    if arguments.source:
        import_run(arguments.run, kind, Path(name))
        print(f"made {arguments.run} from {name}")
        print(f"next: {make_command('patch', arguments.run)}")
    else:
        export_run(arguments.run, kind, Path(name))
        print(f"wrote {name}", f"next: --from {kind} reads it back", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
