"""A run's folder: what is in it, and how it is read.

config.json    what the run is: model, train, diet, vocabulary, versions
metrics.jsonl  one line per evaluation
learning.json  what the model was at some steps, kept by commands/reference.py alone
model.pt       the weights, a bare state_dict
resume.pt      all that an interrupted run needs to go on to the same final weights
circuit.json   what patch.py found
check.json     what commands/check.py measured
report.html    all of it to look at (`python -m minifunc.report`)
lock           empty; locked while a process trains here
"""

import argparse
import hashlib
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from minifunc.model import ModelConfig, Transformer
from minifunc.support.errors import UserError
from minifunc.support.files import check_writable, load_json, load_tensors, make_folder
from minifunc.support.settings import from_json
from minifunc.support.tables import wrapped

DEFAULT_RUN = Path("out/default")
# What the repository holds is found beside the code, wherever one stands; what is made is put where
# one stands. (Where only the package is installed, there is no such folder.)
ROOT = Path(__file__).resolve().parents[2]
REFERENCE, RESULTS = ROOT / "reference", ROOT / "results"
REFERENCE_RESULTS = Path("out/reference")
MADE_BY_TRAINING = ("config.json", "metrics.jsonl", "model.pt", "resume.pt")
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)  # what weights may be


def load_run(
    folder: str | Path, device: torch.device | str = "cpu", vocabulary: list[str] | None = None
) -> tuple[Transformer, dict[str, Any]]:
    """The trained model of a run's folder, on `device` and in evaluation mode, and its config.
    Raises UserError, naming the file and the fault, for a folder that holds no sound run, or one of
    another `vocabulary`."""
    config_path, weights_path = Path(folder) / "config.json", Path(folder) / "model.pt"
    config, state = load_json(config_path), load_tensors(weights_path)
    if not isinstance(config, dict) or not isinstance(config.get("vocabulary"), list):
        raise UserError(f"{config_path} is no config of ours: `model` or `vocabulary` is missing")
    cfg = from_json(ModelConfig(), config.get("model"), f"{config_path}: `model`")
    n_tokens = len(config["vocabulary"])
    if n_tokens > cfg.d_vocab:
        raise UserError(f"{config_path}: {n_tokens} tokens are more than d_vocab {cfg.d_vocab}")
    model = fitting_model(cfg, state, weights_path)
    model.load_state_dict(state, assign=True)
    if vocabulary and config["vocabulary"] != vocabulary:
        raise UserError(f"{folder} was trained on another vocabulary than this version has")
    return model.requires_grad_(False).to(device).eval(), config


def fitting_model(cfg: ModelConfig, state: Any, path: Path) -> Transformer:
    """A model whose weights are shapes alone: nothing large is made before `state` is known to fit.
    Raises UserError where it does not."""
    with torch.device("meta"):
        model = Transformer(cfg)
    if fault := _fault(model.state_dict(), state):
        raise UserError(f"{path} does not fit config.json: {fault}")
    return model


def _fault(wanted: Mapping[str, torch.Tensor], state: Any) -> str:
    """What keeps `state` from being the weights that are wanted; empty if nothing does."""
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
    """Whether this is a plain tensor of that shape, with every value in memory: none stretched."""
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
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_circuit(
    path: Path, model: Transformer | None, made_by: str = "patch"
) -> dict[str, Any] | None:
    """A circuit.json, or what else is `made_by` a target of make about a run's weights; None where
    there is none. Raises UserError for one of other weights."""
    if not path.exists():
        return None
    circuit = load_json(path)
    if not isinstance(circuit, dict):
        raise UserError(f"{path} is none of ours: it holds a {type(circuit).__name__}")
    if model and "weights" in circuit and circuit["weights"] != weights_hash(model.state_dict()):
        raise UserError(f"{path} is about other weights than the run's: run `make {made_by}` again")
    return circuit


def traced_alone(folder: Path) -> bool:
    """Whether it holds a circuit.json and no run: what `make smollm` leaves."""
    made = any(os.path.lexists(folder / name) for name in MADE_BY_TRAINING)
    return (folder / "circuit.json").exists() and not made


@dataclass(frozen=True)
class RunFolders:
    """Where a command's run is, and where its results go: elsewhere for the reference run alone."""

    run: Path
    results: Path
    is_reference: bool
    notice: str = ""  # what the user should know of the choice
    asked: Path | None = None  # the run in whose place the reference run is taken

    def announce(self) -> None:
        """Prints the notice on stderr, once nothing can be wrong with the flags and the run."""
        if self.notice:
            print(wrapped(self.notice), file=sys.stderr)

    @property
    def name(self) -> str:
        """For titles; quoted, for commands too, as in `make patch OUT=name`."""
        return "reference" if self.is_reference else str(self.run)

    def makes(self, target: str) -> str:
        """The command that makes a file of this run."""
        return make_command(target, self.asked or self.name)

    def found(self, name: str) -> Path:
        """The path of a result that may be there; for the reference run, else of that it has."""
        path = self.results / name
        return path if path.exists() else self.run / name

    def to_write(self, name: str) -> Path:
        """The path of a result. Makes its folder; raises UserError where it cannot be written."""
        make_folder(self.results)
        check_writable(self.results / name)
        return self.results / name


def make_command(target: str, run: Path | str) -> str:
    """What makes a file of a run: `make patch OUT=out/other`."""
    return f"make {target}" + ("" if Path(run) == DEFAULT_RUN else f" OUT={shlex.quote(str(run))}")


def add_run_flag(parser: argparse.ArgumentParser) -> None:
    """`--run` and `--or-reference`, for `chosen_run` to read."""
    told = f"folder of the trained run (default: {DEFAULT_RUN}, or else the reference run)"
    parser.add_argument("--run", type=Path, metavar="DIR", help=told)
    told = "take the reference run where DIR holds none"
    parser.add_argument("--or-reference", action="store_true", help=told)


def chosen_run(arguments: argparse.Namespace) -> RunFolders:
    """The run that the flags name; the reference run where there is none and that is allowed. A
    damaged one stays, for `load_run` to refuse. Raises UserError for a run without a checkpoint."""
    run = arguments.run or DEFAULT_RUN
    if run.exists() and not run.is_dir():
        raise UserError(f"{run} is no folder")
    make = f"`{make_command('train', run)}`"
    found = [name for name in MADE_BY_TRAINING if os.path.lexists(run / name)]
    may_fall_back = arguments.or_reference or arguments.run is None
    if not found and may_fall_back and REFERENCE.is_dir():
        said = f"no trained run in {run}: using the reference run"
        said = f"{said}, results go to {REFERENCE_RESULTS}/ ({make} makes a run of your own)"
        return RunFolders(REFERENCE, REFERENCE_RESULTS, True, said, asked=run)
    if run.resolve() == REFERENCE:
        return RunFolders(run, REFERENCE_RESULTS, is_reference=True)
    if "config.json" in found and "model.pt" not in found:
        said = f"{run / 'model.pt'} is missing: the run was interrupted before its first checkpoint"
        raise UserError(f"{said}; go on with {make}")
    done, wanted = progress(run)
    said = f"{run} is unfinished, at step {done} of {wanted}: go on with {make}"
    return RunFolders(run, run, is_reference=False, notice=said if done < wanted else "")


def progress(run: Path) -> tuple[int, int]:
    """Steps that a run has taken, and that it is to take; (0, 0) where its files don't say."""
    try:
        wanted = load_json(run / "config.json")["train"]["steps"]
        return int(load_tensors(run / "resume.pt")["step"]), int(wanted)
    except Exception:  # damaged files may raise anything; load_run names the fault
        return 0, 0
