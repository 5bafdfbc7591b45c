"""Files that are written whole or not at all, and read without running anything in them.

A file is written to a temporary name and then renamed: a reader sees the old one or the new one.
"""

import contextlib
import json
import os
import pickletools
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from minifunc.support.errors import UserError, first_line

# In a checkpoint. A tensor takes about five; a million, one within the other, end the process.
MOST_TUPLES = 20_000


def check_writable(path: Path) -> None:
    """Raises UserError where no file could be put: no such folder, no permission, no plain file."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"cannot write {path}: it is there already and is no plain file")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"cannot write {path}: {path.parent} is no folder that one can write to")


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {folder}: {error.strerror}") from None


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps every other process from training into `folder`. Raises UserError where one does.

    The kernel gives the lock back when the process ends. The file stays: were it removed, two could
    hold locks, on the old and on a new one. Without fcntl (Windows), or locks, nothing is locked.
    """
    path = folder / "lock"
    check_writable(path)
    no_link = getattr(os, "O_NOFOLLOW", 0)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | no_link, 0o666)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    with open(descriptor, "a"):
        try:
            if fcntl:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder} is in use: another process trains there") from None
        except OSError:
            pass
        yield


def write_file(path: Path, write: Callable[[Any], object]) -> None:
    """Makes or replaces the file at `path` by what `write` puts into an open binary file."""
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
        raise UserError(f"cannot write {path}: {first_line(error)}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def save_tensors(path: Path, state: dict[str, Any]) -> None:
    write_file(path, lambda file: torch.save(state, file))


def save_json(path: Path, value: Any) -> None:
    try:
        text = json.dumps(value, indent=1, allow_nan=False)
    except ValueError:
        raise UserError(f"cannot write {path}: some of its numbers are not finite") from None
    save_text(path, text + "\n")


def save_lines(path: Path, values: list[Any]) -> None:
    """JSON lines."""
    save_text(path, "".join(json.dumps(value, allow_nan=False) + "\n" for value in values))


def save_text(path: Path, text: str) -> None:
    write_file(path, lambda file: file.write(text.encode("utf-8", "replace")))


@contextlib.contextmanager
def reading(path: Path, fault: str = "cannot be read") -> Iterator[None]:
    """Whatever goes wrong with reading a file becomes a UserError: a damaged one raises anything. A
    pipe or a device is refused first, as it may never come to an end."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"{path} is no plain file")
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        missing = f"{path} is missing: {path.parent} holds no run (train.py makes one)"
        raise UserError(missing) from None
    except Exception as error:
        raise UserError(f"{path} {fault}: {first_line(error)}") from None


def load_json(path: Path) -> Any:
    with reading(path):
        return json.loads(path.read_text(encoding="utf-8"))


def load_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines."""
    with reading(path):
        values = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
    if not all(isinstance(value, dict) for value in values):
        raise UserError(f"{path} is none of ours: a line holds no object")
    return values


def load_tensors(path: Path) -> dict[str, Any]:
    """A file of tensors and plain values, read without running anything in it (`weights_only`)."""
    with reading(path, "is damaged or no checkpoint of ours"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise UserError(f"{path} is no checkpoint of ours: it holds a {type(state).__name__}")
    return state


def check_archive(path: Path) -> None:
    """Raises ValueError for a file on which torch.load would use up memory, or end the process.
    torch.save packs nothing, yet torch.load makes room for whatever size an entry declares."""
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
            raise ValueError("it declares more than it holds")
        for name in [name for name in archive.namelist() if name.lower().endswith("data.pkl")]:
            operations = pickletools.genops(archive.read(name))
            if sum(code.name.startswith("TUPLE") for code, *_ in operations) > MOST_TUPLES:
                raise ValueError("it holds too many tuples")
