"""A run's folder: what is in it, how it is written so that nothing is lost, how it is read so that nothing runs.

    config.json    what the run is: model, train, diet, vocabulary, versions
    metrics.jsonl  one line per evaluation
    model.pt       the weights, a bare state_dict
    resume.pt      all that an interrupted run needs to go on to the same final weights
    circuit.json   what patch.py found
    check.json     what `patch.py --check` measured
    report.html    all of it to look at (`python -m minifunc.report`)
    lock           empty; locked while a process trains here

Every file is written whole to a temporary name and then renamed, so a reader sees the old one or the new one.
"""

import contextlib
import hashlib
import io
import json
import os
import pickletools
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from minifunc.model import ModelConfig, Transformer

MOST_TUPLES = 20_000  # in a checkpoint; each tensor takes about five, and a million, one within the other, end the process


class UserError(Exception):
    """A user's mistake or an unusable input: shown as one line, exit code 2."""


def run_main(work: Callable[[], int]) -> int:
    """Runs a script's work; a UserError becomes one line on stderr and exit code 2, Ctrl-C a word and 130."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="backslashreplace"
            )  # a path may hold anything, also what no encoding knows
    try:
        code = work()
        sys.stdout.flush()
        return code
    except (
        BrokenPipeError
    ):  # whoever read what is printed has gone (`| head`): no reason to complain, nor to write on
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (Python flushes it once more at its end)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except UserError as error:
        print("error:", " ".join(str(error).splitlines()), file=sys.stderr)
    except (
        MemoryError,
        RuntimeError,
    ) as error:  # torch's CPU allocator raises a plain RuntimeError
        if not isinstance(
            error, (MemoryError, torch.OutOfMemoryError)
        ) and "allocate memory" not in str(error):
            raise
        print(
            "error: out of memory: ask for fewer prompts or documents, or a smaller model",
            file=sys.stderr,
        )
    return 2


def pick_device(name: str, float64: bool = False) -> torch.device:
    """auto (cuda, then mps, then cpu), or the device named. float64: one that has these numbers, which mps has not.

    Raises UserError for one that is not there.
    """
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available() and not float64,
        "cpu": True,
    }
    if name == "auto":
        return torch.device(next(kind for kind, found in there.items() if found))
    try:
        device = torch.device(name)
        if there.get(device.type) and (
            device.type != "cuda" or (device.index or 0) < torch.cuda.device_count()
        ):
            return device
    except RuntimeError:
        pass
    raise UserError(
        f"device {name!r} is not available here; there is: {', '.join(kind for kind, found in there.items() if found)}"
    )


def check_writable(path: Path) -> None:
    """Raises UserError where a file could not be put: no such folder, no permission, or something there that is no plain file."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"cannot write {path}: it is there already and is no plain file")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"cannot write {path}: {path.parent} is no folder that one can write to")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps every other process from training into `folder`. Raises UserError where one does already.

    The kernel gives the lock back when the process ends, however it ends. The file stays: whoever removed it could lock
    a new one while somebody else holds the old one. Without fcntl (Windows), or where the file system has no locks, nothing is locked.
    """
    check_writable(folder / "lock")
    try:
        file = open(
            folder / "lock",
            "a",
            opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NOFOLLOW", 0), 0o666),
        )  # noqa: SIM115 (closed below)
    except OSError as error:
        raise UserError(f"cannot write {folder / 'lock'}: {error.strerror}") from None
    with file:
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder} is in use: another process trains there") from None
        except OSError:
            pass
        yield


def _write(path: Path, write: Callable[[Any], object]) -> None:
    check_writable(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.unlink(missing_ok=True)  # what a killed process left; a link would lead elsewhere
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        raise UserError(f"cannot write {path}: {_line(error)}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def save_tensors(path: Path, state: dict[str, Any]) -> None:
    _write(path, lambda file: torch.save(state, file))


def save_json(path: Path, value: Any) -> None:
    try:
        text = json.dumps(value, indent=1, allow_nan=False)
    except ValueError:
        raise UserError(f"cannot write {path}: some of its numbers are not finite") from None
    _write(path, lambda file: file.write(text.encode() + b"\n"))


def save_lines(path: Path, values: list[Any]) -> None:
    """JSON lines."""
    text = "".join(json.dumps(value, allow_nan=False) + "\n" for value in values)
    _write(path, lambda file: file.write(text.encode()))


def save_text(path: Path, text: str) -> None:
    _write(path, lambda file: file.write(text.encode("utf-8", "replace")))


def _check_plain(path: Path) -> None:
    """Raises UserError for what is there and no plain file: a pipe or a device may never come to an end."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"{path} is no plain file")


def load_json(path: Path) -> Any:
    _check_plain(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing: {path.parent} holds no run (train.py makes one)"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {_line(error)}") from None


def load_tensors(path: Path) -> dict[str, Any]:
    """A file of tensors and plain values, read without running anything in it (`weights_only`)."""
    _check_plain(path)
    try:
        with (
            zipfile.ZipFile(path) as archive
        ):  # torch.save packs nothing, and torch.load makes room for whatever size is declared
            if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                raise ValueError("it declares more than it holds")
            for name in archive.namelist():
                if (
                    name.lower().endswith("data.pkl")
                    and sum(
                        code.name.startswith("TUPLE")
                        for code, *_ in pickletools.genops(archive.read(name))
                    )
                    > MOST_TUPLES
                ):
                    raise ValueError("it holds too many tuples")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing: {path.parent} holds no trained model (train.py makes one)"
        ) from None
    except Exception as error:  # a damaged file can make torch.load raise anything
        raise UserError(f"{path} is damaged or no checkpoint of ours: {_line(error)}") from None
    if not isinstance(state, dict):
        raise UserError(f"{path} is no checkpoint of ours: it holds a {type(state).__name__}")
    return state


def model_config(values: Any, path: Path) -> ModelConfig:
    """The `model` part of a config.json. Raises UserError where it does not describe a model."""
    known = {field.name for field in fields(ModelConfig)}
    if not isinstance(values, dict) or not set(values) <= known:
        raise UserError(
            f"{path}: `model` must hold the fields {', '.join(sorted(known))} and no others"
        )
    try:
        return ModelConfig(**values)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: {_line(error)}") from None


def load_run(
    folder: str | Path, device: torch.device | str = "cpu"
) -> tuple[Transformer, dict[str, Any]]:
    """The trained model of a run's folder, on `device` and in evaluation mode, and its config.

    Raises UserError, naming the file and the fault, for a folder that holds no sound run.
    """
    folder = Path(folder)
    config = load_json(folder / "config.json")
    if not isinstance(config, dict) or not isinstance(config.get("vocabulary"), list):
        raise UserError(
            f"{folder / 'config.json'} is no config of ours: `model` or `vocabulary` is missing"
        )
    cfg = model_config(config.get("model"), folder / "config.json")
    if len(config["vocabulary"]) > cfg.d_vocab:
        raise UserError(
            f"{folder / 'config.json'}: {len(config['vocabulary'])} tokens are more than d_vocab {cfg.d_vocab}"
        )
    state = load_tensors(folder / "model.pt")
    with torch.device(
        "meta"
    ):  # shapes first: nothing large is made before the file is known to fit
        model = Transformer(cfg)
    fault = weights_fault(model, state)
    if fault:
        raise UserError(f"{folder / 'model.pt'} does not fit config.json: {fault}")
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False).to(device).eval(), config


def weights_fault(model: Transformer, state: dict[str, Any]) -> str:
    """What keeps `state` from being this model's weights, in a few words; empty if nothing does."""
    wanted = model.state_dict()
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        return "its weights go by no names"
    for name in sorted(wanted.keys() | state.keys()):
        if name not in state:
            return f"{name} is missing"
        if name not in wanted:
            return f"{name!r:.60} is no parameter of this model"
        tensor = state[name]
        if (
            not whole(tensor, wanted[name].shape)
            or tensor.dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16)
            or tensor.dtype != getattr(state.get("embed.W_E"), "dtype", None)
        ):
            return f"{name} must be a float tensor of shape {list(wanted[name].shape)}"
        if not tensor.isfinite().all():
            return f"{name} holds values that are not finite"
    return ""


def weights_hash(state: Mapping[str, torch.Tensor]) -> str:
    """A SHA-256, in hexadecimal digits, of a state_dict's names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def whole(tensor: Any, shape: torch.Size) -> bool:
    """Whether this is a plain tensor of that shape whose every value is in memory: one value can be stretched over any shape."""
    plain = (
        isinstance(tensor, torch.Tensor)
        and tensor.shape == shape
        and tensor.layout == torch.strided
        and not tensor.is_meta
    )
    return plain and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:160]
