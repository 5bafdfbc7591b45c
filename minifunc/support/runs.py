"""A run's folder: what is in it, and how it is read.

config.json    what the run is: model, train, diet, vocabulary, versions
metrics.jsonl  one line per evaluation
model.pt       the weights, a bare state_dict
resume.pt      all that an interrupted run needs to go on to the same final weights
circuit.json   what patch.py found
check.json     what commands/check.py measured
report.html    all of it to look at (`python -m minifunc.report`)
lock           empty; locked while a process trains here
"""

import hashlib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from minifunc.model import ModelConfig, Transformer
from minifunc.support.errors import UserError, first_line
from minifunc.support.files import load_json, load_tensors

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)  # what weights may be


def load_run(
    folder: str | Path, device: torch.device | str = "cpu"
) -> tuple[Transformer, dict[str, Any]]:
    """The trained model of a run's folder, on `device` and in evaluation mode, and its config.

    Raises UserError, naming the file and the fault, for a folder that holds no sound run.
    """
    config_path, weights_path = Path(folder) / "config.json", Path(folder) / "model.pt"
    config = load_json(config_path)
    if not isinstance(config, dict) or not isinstance(config.get("vocabulary"), list):
        raise UserError(f"{config_path} is no config of ours: `model` or `vocabulary` is missing")
    cfg = model_config(config.get("model"), config_path)
    n_tokens = len(config["vocabulary"])
    if n_tokens > cfg.d_vocab:
        raise UserError(f"{config_path}: {n_tokens} tokens are more than d_vocab {cfg.d_vocab}")
    state = load_tensors(weights_path)
    with torch.device("meta"):  # nothing large is made before the file is known to fit
        model = Transformer(cfg)
    fault = weights_fault(model, state)
    if fault:
        raise UserError(f"{weights_path} does not fit config.json: {fault}")
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False).to(device).eval(), config


def model_config(values: Any, path: Path) -> ModelConfig:
    """The `model` part of a config.json. Raises UserError where it does not describe a model."""
    known = {field.name for field in fields(ModelConfig)}
    if not isinstance(values, dict) or not set(values) <= known:
        names = ", ".join(sorted(known))
        raise UserError(f"{path}: `model` must hold the fields {names} and no others")
    try:
        return ModelConfig(**values)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: {first_line(error)}") from None


def weights_fault(model: Transformer, state: dict[str, Any]) -> str:
    """What keeps `state` from being this model's weights, in a few words; empty if nothing does."""
    wanted = model.state_dict()
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        return "its weights go by no names"
    dtype = getattr(state.get("embed.W_E"), "dtype", None)
    for name in sorted(wanted.keys() | state.keys()):
        if name not in state:
            return f"{name} is missing"
        if name not in wanted:
            return f"{name!r:.60} is no parameter of this model"
        tensor, shape = state[name], wanted[name].shape
        if not whole(tensor, shape) or tensor.dtype not in FLOATS or tensor.dtype != dtype:
            return f"{name} must be a float tensor of shape {list(shape)}"
        if not tensor.isfinite().all():
            return f"{name} holds values that are not finite"
    return ""


def whole(tensor: Any, shape: torch.Size) -> bool:
    """Whether this is a plain tensor of that shape whose every value is in memory.

    One value can be stretched over any shape.
    """
    if not isinstance(tensor, torch.Tensor) or tensor.shape != shape:
        return False
    if tensor.layout != torch.strided or tensor.is_meta:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def weights_hash(state: Mapping[str, torch.Tensor]) -> str:
    """A SHA-256, in hexadecimal digits, of a state_dict's names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
