"""Many training runs: each in its own folder, several at a time, each going on where it stopped.

    OUT/NAME/seed0/         what train.py writes
        steps/00123.pt      weights on the way, where a run keeps them
        STUDY.json          what was measured; written last: without it the run is unfinished
        diverged.json       in its place, where the loss became infinite

A `Run` says what is trained, a `Study` what is then measured, and `run_all` carries out a list of
runs. Stop it at any moment: the same call goes on where it was. Runs that two studies share are
trained once. Every run has one thread, so no result depends on how many run side by side.
"""

import multiprocessing
import os
import platform
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import tasks
import train
from experiments.catalogue import DIETS
from minifunc.circuit import Criteria
from minifunc.model import ModelConfig, Transformer
from minifunc.support.checkpoints import Diverged
from minifunc.support.errors import UserError
from minifunc.support.files import load_json, locked, save_json, save_tensors
from train import TrainConfig

Row = dict[str, Any]

N_SNAPSHOTS = 48  # weights kept on the way, evenly spaced on a logarithmic scale
SNAPSHOT_SEEDS = 3  # the default's first seeds keep them
# What results/ of diets, universality and interventions were made with; the default may go on.
SHORT = replace(TrainConfig(), documents=64, long_every=3, lr=1e-2, weight_decay=0.2)


# ---------------------------------------------------------------- what is trained, and measured


@dataclass(frozen=True)
class Run:
    """One training run.

    name: of its folder. diet: the name of one. snapshots: the steps after which the weights are
    kept. intervention: what is done to the model after every step.
    """

    name: str = "default"
    diet: str = "strict"
    model: ModelConfig = train.MODEL
    train: TrainConfig = TrainConfig()
    snapshots: tuple[int, ...] = ()
    intervention: "Intervention | None" = None

    def folder(self, out: Path) -> Path:
        return out / self.name / f"seed{self.train.seed}"

    def config(self) -> dict[str, Any]:
        """What config.json holds."""
        return train.describe(self.model, self.train, DIETS[self.diet])

    def settings(self) -> dict[str, Any]:
        """All that makes the run what it is: its config, but for the versions."""
        config = self.config()
        return {part: config[part] for part in ("model", "train", "diet", "vocabulary")}


# (step, model, run, folder): changes the weights in place
Intervention = Callable[[int, Transformer, Run, Path], None]
# (model, run, folder, quick) → what was measured
Measure = Callable[[Transformer, Run, Path, bool], Row]


@dataclass(frozen=True)
class Study:
    """What is measured on each of some runs, and where they are kept. quick: on few prompts."""

    name: str
    measure: Measure
    out: Path
    quick: bool = False

    def settings(self, run: Run) -> dict[str, Any]:
        """The run's, and those of the measurement: with other criteria it is measured again."""
        return run.settings() | {"quick": self.quick, "criteria": vars(Criteria())}


def default_run(seed: int, steps: int) -> Run:
    """The default, as dependability and emergence share it."""
    return Run(
        diet=tasks.DEFAULT_DIET.name,
        train=replace(TrainConfig(), seed=seed, steps=steps),
        snapshots=log_spaced(steps) if seed < SNAPSHOT_SEEDS else (),
    )


def log_spaced(last: int, n: int = N_SNAPSHOTS) -> tuple[int, ...]:
    """At least n different whole numbers from 1 to `last`, evenly spaced on a logarithmic scale.

    All of them, where there are fewer than n.
    """
    if last <= n:
        return tuple(range(1, last + 1))
    found: set[int] = set()
    for n_points in range(n, 100 * n):  # rounded, some of the points coincide
        found = {round(last ** (i / (n_points - 1))) for i in range(n_points)}
        if len(found) >= n:
            break
    return tuple(sorted(found))


# ---------------------------------------------------------------- one run


def finished(run: Run, study: Study) -> Row | None:
    """What was measured, or that the run diverged; None where it is not finished.

    Raises UserError where the folder belongs to another run: nothing is overwritten.
    """
    folder = run.folder(study.out)
    if (folder / "config.json").exists():
        config = load_json(folder / "config.json")
        parts = config if isinstance(config, dict) else {}
        if any(parts.get(name) != value for name, value in run.settings().items()):
            raise UserError(
                f"{folder} was made with other settings than this version has: "
                "remove it, or give another --out"
            )
    for name, settings in (("diverged", run.settings()), (study.name, study.settings(run))):
        path = folder / f"{name}.json"
        kept = load_json(path) if path.exists() else None
        if not isinstance(kept, dict) or kept.get("settings") != settings:
            continue
        if isinstance(kept.get("row"), dict):
            return kept["row"]
    return None


def carry_out(run: Run, study: Study) -> Row:
    """Trains one run, or goes on with it, measures it, writes that down and returns it."""
    row = finished(run, study)
    if row is not None:
        return row
    folder = run.folder(study.out)
    make_folder(folder / "steps")
    n_made = 0  # steps made here; a checkpoint may hold more of them

    def after_step(step: int, model: Transformer) -> None:
        nonlocal n_made
        n_made += 1
        if run.intervention:
            run.intervention(step, model, run, folder)
        if step in run.snapshots:
            save_tensors(folder / "steps" / f"{step:05}.pt", model.state_dict())
        progress.add(1)
        if progress.stop_asked():
            signal.raise_signal(signal.SIGINT)  # train.py then makes a checkpoint and stops

    diet, cpu = DIETS[run.diet], torch.device("cpu")
    resume = (folder / "resume.pt").exists()
    try:
        with locked(folder):
            model = train.train(folder, run.model, run.train, diet, cpu, resume, after_step)
        row = {"diverged": False} | study.measure(model, run, folder, study.quick)
    except Diverged as error:
        row = {"diverged": True, "message": str(error)}
        save_json(folder / "diverged.json", {"settings": run.settings(), "row": row})
    else:
        save_json(folder / f"{study.name}.json", {"settings": study.settings(run), "row": row})
    progress.add(run.train.steps - n_made)
    return row


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it. Raises UserError where it cannot."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}") from None


def provenance(run: Run) -> Row:
    """What every row of results says about where it comes from."""
    hardware = {"processor": processor(), "cores": os.cpu_count(), "threads": 1, "device": "cpu"}
    versions = run.config()["versions"]
    made = {"versions": versions, "hardware": hardware}
    return {"steps": run.train.steps, "criteria": vars(Criteria())} | made


def processor() -> str:
    """The processor's name, by Linux where it says one, else by Python."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor() or platform.machine()


# ---------------------------------------------------------------- all runs


@dataclass(frozen=True)
class Progress:
    """How a run reports: add(n) counts its steps for the one bar; stop_asked() says to stop."""

    add: Callable[[int], object] = lambda n: None
    stop_asked: Callable[[], bool] = lambda: False


progress = Progress()  # of this process: a worker's counts for all, and is stopped by the parent


def run_all(runs: Sequence[Run], study: Study, jobs: int) -> list[Row]:
    """One row for each run, in their order, `jobs` of them at a time.

    Raises UserError where a run cannot be made, KeyboardInterrupt after Ctrl-C. What was done
    until then is kept.
    """
    rows = {run: finished(run, study) for run in runs}
    left = [run for run, row in rows.items() if row is None]
    total = sum(run.train.steps for run in left)
    words = f"{study.name}: {len(left)} of {len(runs)} runs"
    with tqdm(total=total, desc=words, unit="step", mininterval=0.5, disable=None) as bar:
        if left and jobs == 1:
            rows |= one_by_one(left, study, bar)
        elif left:
            rows |= side_by_side(left, study, bar, jobs)
    return [rows[run] for run in runs]


def one_by_one(runs: Sequence[Run], study: Study, bar: Any) -> dict[Run, Row]:
    """Carries out the runs in this process."""
    global progress
    torch.set_num_threads(1)
    before, stderr = progress, sys.stderr
    progress = Progress(add=bar.update)
    try:
        with open(os.devnull, "w") as sys.stderr:  # no bars of train.py: there is one for all
            return {run: carry_out(run, study) for run in runs}
    finally:
        progress, sys.stderr = before, stderr


def side_by_side(runs: Sequence[Run], study: Study, bar: Any, jobs: int) -> dict[Run, Row]:
    """Carries out the runs in `jobs` worker processes of one thread each."""
    context = multiprocessing.get_context("spawn")
    n_steps, stop = context.Value("q", 0), context.Event()
    os.environ["OMP_NUM_THREADS"] = "1"  # read as a worker imports torch
    rows: dict[Run, Row] = {}
    jobs = min(jobs, len(runs))
    with ProcessPoolExecutor(jobs, context, start_worker, (n_steps, stop)) as pool:
        futures = {pool.submit(carry_out, run, study): run for run in runs}
        waiting = set(futures)
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                rows |= {futures[future]: future.result() for future in done}
                bar.update(n_steps.value - bar.n)
        except BrokenProcessPool:
            raise UserError(
                "a process was ended from outside (out of memory?): the same command goes on"
            ) from None
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return rows


def start_worker(n_steps: Any, stop: Any) -> None:
    """Sets up a worker: one thread, no bars, and an end where the parent is gone.

    n_steps: the counter that all workers share. stop: the parent's wish to stop; the terminal's
    Ctrl-C reaches the parent alone.
    """
    global progress

    def add(n: int) -> None:
        with n_steps.get_lock():
            n_steps.value += n

    def end_with_parent() -> None:
        multiprocessing.parent_process().join()  # type: ignore[union-attr]
        os._exit(1)

    progress = Progress(add, stop.is_set)
    torch.set_num_threads(1)
    if hasattr(os, "setsid"):
        os.setsid()
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (the parent shows one bar for all)
    threading.Thread(target=end_with_parent, daemon=True).start()
