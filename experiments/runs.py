"""Many training runs: each in its own folder, several at a time, each going on where it stopped.

    OUT/NAME/seed0/         what train.py writes
        steps/00123.pt      weights on the way, where a run keeps them
        STUDY.json          what was measured, or that the loss became infinite; written last

A `Run` says what is trained, a `Study` what is then measured, and `run_all` carries out a list of
runs. Runs that two studies share are trained once. Every run has one thread and a process of its
own, so no result depends on how many run side by side, on a CPU or on one card.
"""

import multiprocessing
import os
import platform
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent import futures
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
from minifunc.support.errors import UserError, first_line
from minifunc.support.files import load_json, locked, make_folder, save_json, save_tensors
from minifunc.support.settings import described, versions
from train import TrainConfig

Row = dict[str, Any]
# (step, model, run, folder): changes the weights in place
Intervention = Callable[[int, Transformer, "Run", Path], None]
# (model, run, folder, quick) → what was measured
Measure = Callable[[Transformer, "Run", Path, bool], Row]

N_SNAPSHOTS = 48  # weights kept on the way
CPU = torch.device("cpu")
ON_A_CARD, GIB_EACH = 8, 4  # runs at once on CUDA, and what each needs to be free: GiB
SWEEP_GIB = 2.0  # of it, for a sweep: by itself each run would take a quarter of the card
# What results/ of diets, universality and interventions were made with; the default may go on.
SHORT = replace(TrainConfig(), documents=64, long_every=3, lr=1e-2, weight_decay=0.2)


@dataclass(frozen=True)
class Run:
    """One training run. snapshots: steps after which weights are kept. after: a run to await."""

    name: str  # of its folder
    diet: str = "strict"
    model: ModelConfig = train.MODEL
    train: TrainConfig = TrainConfig()
    snapshots: tuple[int, ...] = ()
    intervention: Intervention | None = None  # after every step
    after: str = ""

    def folder(self, out: Path) -> Path:
        return out / self.name / f"seed{self.train.seed}"

    def settings(self) -> dict[str, Any]:
        """All that makes the run what it is: what config.json holds, but for the versions."""
        config = described(self.model, self.train, DIETS[self.diet], tasks.VOCABULARY)
        del config["versions"]
        return config


@dataclass(frozen=True)
class Study:
    """What is measured on each of some runs, and where they are kept. quick: on few prompts."""

    name: str
    measure: Measure
    out: Path
    quick: bool = False
    device: torch.device = CPU  # of the runs that are still to be made

    def settings(self, run: Run) -> dict[str, Any]:
        """The run's, and those of the measurement: with other criteria it is measured again."""
        return run.settings() | {"quick": self.quick, "criteria": vars(Criteria())}


def default_run(name: str, seed: int, steps: int) -> Run:
    """The default, as dependability and emergence share it."""
    cfg = replace(TrainConfig(), seed=seed, steps=steps)
    return Run(name, tasks.DEFAULT_DIET.name, train=cfg, snapshots=log_spaced(steps))


def log_spaced(last: int) -> tuple[int, ...]:
    """Whole numbers from 1 to `last`, on a logarithmic scale: N_SNAPSHOTS or more, or all."""
    n_points, found = N_SNAPSHOTS, {last}
    while len(found) < min(last, N_SNAPSHOTS):  # rounded, some of the points coincide
        found = {round(last ** (i / (n_points - 1))) for i in range(n_points)}
        n_points += 1
    return tuple(sorted(found))


def provenance(run: Run) -> Row:
    """What every row of results says about what it is of, beside `made_on`."""
    return {"steps": run.train.steps, "criteria": vars(Criteria())}


def made_on(device: torch.device) -> Row:
    """The machine and the versions at hand. On CUDA the processor is the card."""
    made, hardware = versions(), {"processor": processor(), "device": device.type}
    if device.type == "cuda":
        hardware["processor"] = torch.cuda.get_device_name(device)
        made["cuda"] = str(torch.version.cuda)
    hardware |= {"cores": os.cpu_count(), "threads": torch.get_num_threads()}
    return {"versions": made, "hardware": hardware}


def runs_at_once(device: torch.device) -> int:
    """One run for each core; on CUDA at most ON_A_CARD, and no more than fit."""
    asked = getattr(os, "sched_getaffinity", None)
    cores = len(asked(0)) if asked else (os.cpu_count() or 1)
    if device.type != "cuda":
        return cores
    fitting = torch.cuda.mem_get_info(device)[0] // (GIB_EACH * 2**30)
    return max(1, min(ON_A_CARD, cores, fitting))


def processor() -> str:
    """The processor's name, by Linux where it says one, else by Python."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text("utf-8", "replace").splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor() or platform.machine()


def finished(run: Run, study: Study) -> Row | None:
    """What was measured, wherever that was, or None. A row that does not say where was made on a
    CPU. Raises UserError where the folder belongs to another run."""
    folder = run.folder(study.out)
    if (folder / "config.json").exists():
        config = load_json(folder / "config.json")
        if config | run.settings() != config:
            other = f"{folder} was made with other settings than this version has"
            raise UserError(f"{other}: remove it, or give another --out")
    path = folder / f"{study.name}.json"
    kept = load_json(path) if path.exists() else {}
    if kept.get("settings") != study.settings(run):
        return None
    return made_on(CPU) | kept["row"]


def carry_out(run: Run, study: Study) -> Row:
    """Trains one run, or goes on with it, measures it, writes that down and returns it."""
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
        count_steps(1)

    diet, device = DIETS[run.diet], study.device
    resume = (folder / "resume.pt").exists()
    try:
        with locked(folder):
            model = train.train(folder, run.model, run.train, diet, device, resume, after_step)
        row = {"diverged": False} | study.measure(model, run, folder, study.quick)
    except Diverged as error:
        row = {"diverged": True, "message": str(error)}
    row |= made_on(device)
    save_json(folder / f"{study.name}.json", {"settings": study.settings(run), "row": row})
    count_steps(run.train.steps - n_made)
    return row


def run_all(runs: Sequence[Run], study: Study, jobs: int) -> list[Row]:
    """One row for each run, in their order, `jobs` of them at a time, each in its own process.
    A run that fails is told in one line, and the others go on. Raises UserError where one failed or
    cannot be made, KeyboardInterrupt after Ctrl-C. What was done until then is kept."""
    rows = {run: finished(run, study) for run in runs}
    if left := [run for run, row in rows.items() if row is None]:
        rows |= side_by_side(left, study, jobs)
    if failed := sum(row is None for row in rows.values()):
        raise UserError(f"{failed} of {len(rows)} runs failed: the same command tries them again")
    return [rows[run] for run in runs]


def side_by_side(runs: Sequence[Run], study: Study, jobs: int) -> dict[Run, Row | None]:
    """Carries out each run in a process of its own, of one thread, under one bar. What a process
    holds, a card's memory too, ends with its run. None for a run that failed."""
    context = multiprocessing.get_context("spawn")
    n_steps, stop = context.Value("q", 0), context.Event()
    os.environ["OMP_NUM_THREADS"] = "1"  # read as a worker imports torch

    def in_a_process(run: Run) -> Row:
        with futures.ProcessPoolExecutor(1, context, start_worker, (n_steps, stop)) as worker:
            return worker.submit(carry_out, run, study).result()

    total = sum(run.train.steps for run in runs)
    bar = tqdm(total=total, desc=f"{study.name}: {len(runs)} runs", unit="step", disable=None)
    # A process that is still starting has no handler of Ctrl-C: it inherits that none reaches it.
    threads = futures.ThreadPoolExecutor(jobs, initializer=let_ctrl_c_in, initargs=(False,))
    with bar, threads:
        rows: dict[Run, Row | None] = {}
        try:
            left = {threads.submit(in_a_process, run): run for run in runs}
            while left:
                for future in futures.wait(left, 0.5, futures.FIRST_COMPLETED).done:
                    run = left.pop(future)
                    rows[run], told = outcome(future)
                    if told:
                        bar.write(f"{run.folder(Path())}: {told}", file=sys.stderr)
                bar.update(n_steps.value - bar.n)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("stopped: the same command goes on") from None
        finally:
            stop.set()
            threads.shutdown(cancel_futures=True)
    return rows


def outcome(future: futures.Future[Row]) -> tuple[Row | None, str]:
    """The row of a run that has ended (None if it failed), and what is to be told of it."""
    try:
        row = future.result()
        return row, row.get("message", "")
    except futures.BrokenExecutor:
        return None, "its process was ended from outside (out of memory?)"
    except (UserError, OSError, MemoryError, RuntimeError) as error:  # torch's are RuntimeErrors
        return None, first_line(error)


def let_ctrl_c_in(wanted: bool) -> None:
    """Whether this thread, and the processes that it starts, are reached by Ctrl-C (POSIX)."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK if wanted else signal.SIG_BLOCK, [signal.SIGINT])


shared: tuple[Any, Any] | None = None  # in a worker: the counter of steps, the wish to stop


def start_worker(n_steps: Any, stop: Any) -> None:
    """Sets up a worker: one thread, no bars, no Ctrl-C but in training; it ends with its parent."""
    global shared
    shared = n_steps, stop

    def end_with_parent() -> None:
        multiprocessing.parent_process().join()  # type: ignore[union-attr]
        os._exit(1)

    torch.set_num_threads(1)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as a background job's stays
        signal.signal(signal.SIGINT, lambda *_: None)
    let_ctrl_c_in(True)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (the parent shows one bar for all)
    threading.Thread(target=end_with_parent, daemon=True).start()


def count_steps(n: int) -> None:
    """Counts the steps that a worker has made, and stops it where the parent asks."""
    if shared is None:  # not in a worker
        return
    n_steps, stop = shared
    with n_steps.get_lock():
        n_steps.value += n
    if stop.is_set():
        signal.raise_signal(signal.SIGINT)  # train.py then makes a checkpoint and stops
