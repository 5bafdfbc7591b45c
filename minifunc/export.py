"""A run's model for other tools, and back.

    python -m minifunc.export --run DIR --to safetensors FILE        weights, with the run's config in the header
    python -m minifunc.export --run DIR --from safetensors FILE      a new run folder from such a file, bit for bit
    python -m minifunc.export --run DIR --to transformer-lens FILE   {config, state_dict} of a HookedTransformer (2.18):

        saved = torch.load(FILE)
        model = HookedTransformer(HookedTransformerConfig(**saved["config"]))
        model.load_state_dict(saved["state_dict"])

Both packages are optional, and only the one asked for is imported.
"""

import importlib
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from minifunc.flags import Parser
from minifunc.model import ModelConfig, Transformer
from minifunc.runs import UserError, _line, _write, load_run, run_main, save_json, save_tensors


def _package(name: str) -> Any:
    """The module of an optional package. Raises UserError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"this needs the package {name.split('.')[0].replace('_', '-')}, which is not installed here") from None


def lens_config(cfg: ModelConfig) -> dict[str, Any]:
    """The arguments of a HookedTransformerConfig (2.18) for a model of this shape."""
    same = ("n_layers", "n_heads", "d_model", "d_head", "d_mlp", "d_vocab", "n_ctx", "eps")
    config = {name: getattr(cfg, name) for name in same} | {"normalization_type": cfg.normalization, "init_weights": False, "device": "cpu"}
    config |= {"act_fn": cfg.act_fn, "attn_only": False} if cfg.has_mlp else {"act_fn": None, "attn_only": True}
    if cfg.positions == "rotary":
        config |= {"positional_embedding_type": "rotary", "rotary_dim": cfg.d_head, "rotary_base": int(cfg.rotary_base), "rotary_adjacent_pairs": True}
    if cfg.positions == "none" or cfg.rotary_base != int(cfg.rotary_base):
        raise UserError("transformer-lens has no model without positions, and none whose rotary base is not a whole number")
    return config


def to_transformer_lens(model: Transformer) -> dict[str, Any]:
    """{config, state_dict} of a HookedTransformer with our weights; what we lack there (biases) is zero. Needs transformer-lens 2."""
    lens = _package("transformer_lens")
    if not hasattr(lens, "HookedTransformer"):
        raise UserError("this needs transformer-lens 2: later ones have no HookedTransformer")
    config = lens_config(model.cfg)
    other = lens.HookedTransformer(lens.HookedTransformerConfig(**config)).to(model.unembed.W_U.dtype)
    for parameter in other.parameters():
        parameter.data.zero_()
    other.load_state_dict(model.state_dict(), strict=False)
    return {"config": config, "state_dict": dict(other.state_dict())}


def to_safetensors(model: Transformer, config: dict[str, Any]) -> bytes:
    """The file's bytes. Needs safetensors."""
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    data: bytes = _package("safetensors.torch").save(state, {"format": "pt", "config": json.dumps(config)})
    return data


def from_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and the weights of a file that `to_safetensors` made. Raises UserError for any other. Needs safetensors."""
    safetensors = _package("safetensors")
    try:
        with safetensors.safe_open(path, "pt") as file:
            config, state = json.loads((file.metadata() or {})["config"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except KeyError:
        raise UserError(f"{path} was not made by this command: its header holds no config") from None
    except (OSError, ValueError, RecursionError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {_line(error)}") from None
    return config, state


def import_run(path: Path, folder: Path) -> None:
    """Makes a run folder from a safetensors file. Raises UserError, and makes none, where the file holds no sound run or there is one already."""
    config, state = from_safetensors(path)
    if (folder / "config.json").exists() or (folder / "model.pt").exists():
        raise UserError(f"{folder} holds a run already: name another folder")
    with tempfile.TemporaryDirectory() as place:
        try:
            save_json(Path(place) / "config.json", config)
            save_tensors(Path(place) / "model.pt", state)
            load_run(place)
        except (UserError, ValueError) as error:  # a NaN in the header is a ValueError
            raise UserError(f"{path} holds no sound run: {str(error).replace(f'{place}/', '')}") from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {folder}: {error}") from None
    save_tensors(folder / "model.pt", state)
    save_json(folder / "config.json", config)


def work(argv: Sequence[str] | None) -> int:
    parser = Parser(prog="python -m minifunc.export", description="A run's model for other tools, and back.")
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="the run's folder")
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--to", nargs=2, metavar=("FORMAT", "FILE"), help="write the model to FILE, as safetensors or transformer-lens")
    way.add_argument("--from", nargs=2, metavar=("FORMAT", "FILE"), dest="source", help="make the run's folder from FILE, which --to safetensors wrote")
    arguments = parser.parse_args(argv)
    kind, name = arguments.to or arguments.source
    known = ["safetensors", "transformer-lens"] if arguments.to else ["safetensors"]
    if kind not in known:
        raise UserError(f"the format must be {' or '.join(known)}, not {kind!r}")
    path = Path(name)
    if arguments.source:
        import_run(path, arguments.run)
        print(f"made {arguments.run} from {path}")
        return 0
    model, config = load_run(arguments.run)
    if kind == "safetensors":
        data = to_safetensors(model, config)
        _write(path, lambda file: file.write(data))
    else:
        save_tensors(path, to_transformer_lens(model))
    print(f"wrote {path}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(lambda: work(argv))


if __name__ == "__main__":
    sys.exit(main())
