"""What lets a run be stopped, or killed, at any moment: its checkpoints, its folder, its Ctrl-C.

`resume.pt` holds all that an interrupted run needs to go on to the same final weights.
"""

import contextlib
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor
from torch.optim import Optimizer
from tqdm import tqdm

from minifunc.model import ModelConfig, Transformer
from minifunc.support import checks, files
from minifunc.support.errors import UserError
from minifunc.support.evaluation import Table
from minifunc.support.processes import any_process, is_main, join
from minifunc.support.runs import MADE_BY_TRAINING, fitting_model, whole

Settings = dict[str, Any]  # what config.json holds


class Diverged(UserError):
    """The loss, the gradient or a weight is no longer finite."""


class Progress:
    """How far a run has come, and its checkpoints in the folder `out`. step: the one at hand, or
    the last one done; seconds: over all interruptions; metrics: one for each evaluation."""

    def __init__(
        self, out: Path, config: Settings, model: Transformer, optimizer: Optimizer, data: Generator
    ) -> None:
        self.out, self.config = out, config
        self.model, self.optimizer, self.data = model, optimizer, data
        self.device = model.device.type
        if self.device == "cuda":
            self.device = torch.cuda.get_device_name(model.device)
        self.step = 0
        self.n_steps: int = config["train"]["steps"]
        self.metrics: list[dict[str, Any]] = []
        self.shown: dict[str, str] = {}  # beside the bar
        self.stop_asked = False
        self._started = time.perf_counter()

    def _take_up(self, checkpoint: dict[str, Any]) -> None:
        before = checkpoint.get("device", self.device)  # an older one doesn't say
        if before != self.device:
            moved = f"{self.out} was trained on {before!r:.60} so far, now on {self.device!r}"
            print(f"{moved}: its weights are not those of either, to the bit", file=sys.stderr)
        self.model.load_state_dict(checkpoint["model"])
        groups = self.optimizer.state_dict()["param_groups"]  # as config.json says, not the file
        self.optimizer.load_state_dict(checkpoint["optimizer"] | {"param_groups": groups})
        self.data.set_state(checkpoint["data"])
        self.step, self.metrics = checkpoint["step"], checkpoint["metrics"]
        self._started -= checkpoint["seconds"]
        if self.step == self.n_steps:  # nothing is left to do; a kill may have come between files
            self.save()

    @contextlib.contextmanager
    def going_on(self, checkpoint: dict[str, Any] | None) -> Iterator[None]:
        """While steps are made: shows a bar, and Ctrl-C stops after the step at hand. checkpoint:
        of `load_checkpoint`; None for a new run in the folder."""
        if is_main():
            for name in ("resume.pt", "model.pt", "metrics.jsonl"):
                files.check_writable(self.out / name)  # now, not after the first steps
        if checkpoint:
            self._take_up(checkpoint)
        elif is_main():
            files.save_json(self.out / "config.json", self.config)
        before = signal.getsignal(signal.SIGINT) or signal.SIG_DFL

        def ask(signum: int, frame: Any) -> None:
            self.stop_asked = True
            signal.signal(signal.SIGINT, before)  # a second Ctrl-C stops at once

        bar = tqdm(total=self.n_steps, initial=self.step, desc="train", unit="step", disable=None)
        in_main = threading.current_thread() is threading.main_thread()  # only there are signals
        listens = in_main and before is not signal.SIG_IGN  # Ctrl-C is not for a background job
        if listens:
            signal.signal(signal.SIGINT, ask)
        try:
            with bar as self.bar:
                yield
        finally:
            if listens:
                signal.signal(signal.SIGINT, before)

    def made(self, step: int, loss: Tensor, norm: Tensor, look: bool) -> None:
        """A step was made. Raises Diverged where its loss, or the gradient's norm, is not finite.
        To look at a value makes a GPU wait: this is done when asked for, and now and then."""
        self.step = step
        self.stopping = any_process(self.stop_asked)
        if look or self.stopping or step % 20 == 0:
            self.check_finite(loss, norm)
            self.loss = loss.item()
            self.shown["loss"] = f"{self.loss:.3f}"

    def add_metrics(self, accuracy: Table) -> None:
        """A line of metrics.jsonl, of the step just made."""
        line = {"step": self.step, "seconds": round(self.seconds, 2)}
        self.metrics.append(line | {"loss": round(self.loss, 5), "accuracy": accuracy})
        for name, k in (("1+1=2", "0"), ("1+1=3", "1")):
            self.shown[name] = f"{accuracy['addition'][k].get('8', math.nan):.2f}"

    def end_step(self, save: bool) -> None:
        """Makes a checkpoint, if wanted. Raises KeyboardInterrupt after Ctrl-C."""
        if save or self.stopping:
            self.save()
        self.bar.set_postfix(self.shown, refresh=False)
        self.bar.update()
        if self.stopping:
            stopped = f"stopped after step {self.step} of {self.n_steps}"
            raise KeyboardInterrupt(f"{stopped}: go on with --resume")

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started

    def check_finite(self, *tensors: Tensor) -> None:
        """Raises Diverged where one of the tensors holds a value that is not finite."""
        if all(tensor.isfinite().all() for tensor in tensors):
            return
        kept = "no checkpoint had been made yet"
        if (self.out / "resume.pt").exists():
            kept = f"{self.out} keeps its last good checkpoint"
        where = f"the loss is no longer finite at step {self.step}"
        raise Diverged(f"{where}: {kept}; try a lower --lr")

    def save(self) -> None:
        """Writes a checkpoint. Raises Diverged where a weight is not finite; the last one stays."""
        self.check_finite(*self.model.parameters())
        if not is_main():
            return
        state = {
            "config": self.config,
            "step": self.step,
            "seconds": self.seconds,
            "metrics": json.dumps(self.metrics),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "data": self.data.get_state(),
            "device": self.device,
        }
        files.save_tensors(self.out / "resume.pt", state)
        files.save_tensors(self.out / "model.pt", self.model.state_dict())
        files.save_lines(self.out / "metrics.jsonl", self.metrics)


def load_checkpoint(out: Path, config: Settings) -> dict[str, Any]:
    """The resume.pt of an interrupted run, checked. Raises UserError where it does not fit."""
    path = out / "resume.pt"
    state = files.load_tensors(path)
    try:
        if any(state["config"][part] != config[part] for part in ("model", "train", "diet")):
            raise UserError(f"{path} belongs to another run than {out / 'config.json'}")
        model = fitting_model(ModelConfig(**config["model"]), state["model"], path)
        step, seconds, metrics = state["step"], state["seconds"], json.loads(state["metrics"])
        sound = [
            type(step) is int and 0 < step <= config["train"]["steps"],
            type(seconds) is float and 0 <= seconds < math.inf,
            type(metrics) is list and all(type(line) is dict for line in metrics),
        ]
        for index, weight in enumerate(model.parameters()):
            sound.append(_moments_fit(state["optimizer"]["state"][index], weight, step))
        if not all(sound):
            raise ValueError
        json.dumps(metrics, allow_nan=False)
        Generator().set_state(state["data"])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError):
        raise UserError(f"{path} is damaged or no checkpoint of ours") from None
    return state | {"metrics": metrics}


def _moments_fit(saved: dict[str, Any], weight: Tensor, step: int) -> bool:
    """Whether this is what AdamW keeps of a weight after that step: all else would crash it."""
    for moment in (saved["exp_avg"], saved["exp_avg_sq"]):
        if not whole(moment, weight.shape) or moment.dtype != weight.dtype:
            return False
        if not moment.isfinite().all():
            return False
    return len(saved) == 3 and whole(saved["step"], torch.Size()) and bool(saved["step"] == step)


@contextlib.contextmanager
def claimed(
    out: Path, config: Settings, resume: bool, device: torch.device
) -> Iterator[torch.device]:
    """While this process trains: waits for the others, makes and locks the folder → its device.
    Raises UserError where that cannot be, or where a new run would overwrite something."""
    if not checks.of_type(bool, "resume", resume):
        check_unused(out, config)
    device = join(device)
    try:
        if is_main():
            files.make_folder(out)
        with files.locked(out) if is_main() else contextlib.nullcontext():
            if is_main() and not resume:
                check_unused(out, config)  # once more: another process may have been faster
            yield device
    except KeyboardInterrupt as stop:
        at_once = "stopped at once: --resume goes on from the last checkpoint"
        raise KeyboardInterrupt(str(stop) or at_once) from None


def check_unused(out: Path, config: Settings) -> None:
    """Raises UserError where a new run would overwrite something. A config.json of ours, alone, is
    what a run leaves behind that ended before its first checkpoint: nothing is lost with it."""
    found = [name for name in (*MADE_BY_TRAINING, "circuit.json") if os.path.exists(out / name)]
    if found == ["config.json"]:
        kept = files.load_json(out / "config.json")
        if isinstance(kept, dict) and kept.keys() == config.keys():
            return
    if found:
        advice = "go on with --resume, or give another --out"
        raise UserError(f"{out} already holds {found[-1]}: {advice}")
