"""A run's model for other tools.

    python -m minifunc.support.export --run DIR --to safetensors FILE
    python -m minifunc.support.export --run DIR --to transformer-lens FILE

A safetensors file holds the weights, with the run's config in the header. The file for
transformer-lens holds {config, state_dict}, for the version that is installed:

    saved = torch.load(FILE)
    model = HookedTransformer(HookedTransformerConfig(**saved["config"]))              # 2.18
    model = TransformerBridge.boot_native(TransformerBridgeConfig(**saved["config"]))  # 4
    model.load_state_dict(saved["state_dict"])

Both packages are optional.
"""

import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minifunc.model import ModelConfig, Transformer
from minifunc.support import files
from minifunc.support.errors import UserError, command
from minifunc.support.flags import Parser
from minifunc.support.runs import load_run
from minifunc.support.settings import added_parts


def optional_package(name: str) -> Any:
    """The module of an optional package. Raises UserError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.split(".")[0].replace("_", "-")
        raise UserError(f"this needs the package {package}, which is not installed here") from None


SAME = ("n_layers", "n_heads", "d_model", "d_head", "d_mlp", "d_vocab", "n_ctx", "eps")
FORMATS = ("safetensors", "transformer-lens")


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


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("python -m minifunc.support.export", __doc__)
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="the run's folder")
    known = " or ".join(FORMATS)
    pair, told = ("FORMAT", "FILE"), f"write the model to FILE; FORMAT: {known}"
    parser.add_argument("--to", nargs=2, required=True, metavar=pair, help=told)
    arguments = parser.parse_args(argv)
    kind, name = arguments.to
    if kind not in FORMATS:
        raise UserError(f"the format must be {known}, not {kind!r}")
    export_run(arguments.run, kind, Path(name))
    reader = "safetensors.torch.load_file" if kind == "safetensors" else "torch.load"
    print(f"wrote {name}", f"next: {reader} reads it", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
