"""A run's model for other tools; as safetensors it comes back.

    python -m minifunc.support.export --run DIR --to safetensors FILE
    python -m minifunc.support.export --run DIR --to transformer-lens FILE
    python -m minifunc.support.export --run DIR --from safetensors FILE

A safetensors file holds the weights, with the run's config in the header. The file for
transformer-lens holds {config, state_dict}, for the version that is installed:

    saved = torch.load(FILE)
    model = HookedTransformer(HookedTransformerConfig(**saved["config"]))              # 2.18
    model = TransformerBridge.boot_native(TransformerBridgeConfig(**saved["config"]))  # 4
    model.load_state_dict(saved["state_dict"])

--from makes a new run folder, with the same bits. Both packages are optional.
"""

import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from minifunc.model import ModelConfig, Transformer
from minifunc.support import files
from minifunc.support.errors import UserError, command, first_line
from minifunc.support.flags import Parser
from minifunc.support.runs import build_model, load_run, make_command
from minifunc.support.settings import added_parts


def optional_package(name: str) -> Any:
    """The module of an optional package. Raises UserError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.split(".")[0].replace("_", "-")
        raise UserError(f"this needs the package {package}, which is not installed here") from None


SAME = ("n_layers", "n_heads", "d_model", "d_head", "d_mlp", "d_vocab", "n_ctx", "eps")
WRITTEN, READ = ("safetensors", "transformer-lens"), ("safetensors",)  # formats


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


def export_run(run: Path, kind: str, path: Path) -> None:
    """Makes a file of this kind from a run. Raises UserError where there is one already."""
    model, config = load_run(run)
    if os.path.lexists(path):
        raise UserError(f"{path} is there already: name another file")
    if kind == "safetensors":
        data = to_safetensors(model, config)
        files.write_file(path, lambda file: file.write(data))
    else:
        files.save_tensors(path, to_transformer_lens(model))


def import_run(run: Path, path: Path) -> None:
    """Makes a run folder from a safetensors file. Raises UserError, and makes none, where the file
    holds no sound run or there is one already."""
    config, state = from_safetensors(path)
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
    told = f"write the model to FILE; FORMAT: {' or '.join(WRITTEN)}"
    way.add_argument("--to", **pair, help=told)
    told = f"make the run's folder from such a FILE; FORMAT: {READ[0]}"
    way.add_argument("--from", **pair, dest="source", help=told)
    arguments = parser.parse_args(argv)
    kind, name = arguments.to or arguments.source
    known = WRITTEN if arguments.to else READ
    if kind not in known:
        raise UserError(f"the format must be {' or '.join(known)}, not {kind!r}")
    if arguments.source:
        import_run(arguments.run, Path(name))
        print(f"made {arguments.run} from {name}")
        print(f"next: {make_command('patch', arguments.run)}")
    else:
        export_run(arguments.run, kind, Path(name))
        reader = "--from safetensors reads" if kind in READ else "torch.load reads"
        print(f"wrote {name}", f"next: {reader} it", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
