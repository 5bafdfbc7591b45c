"""Lists of training runs: each is trained by train.train, measured, and kept in a folder of its own, several at a time.

    OUT/NAME/seed0/     what train.py writes; steps/00123.pt, weights on the way, where a run keeps them;
                        EXPERIMENT.json, what was measured, written last: without it a run is unfinished;
                        diverged.json, where the loss became infinite

Stop at any moment; the same command goes on where it was, and runs that two experiments share are trained once.
Every run has one thread, so the results do not depend on how many run side by side.
"""

import argparse
import math
import multiprocessing
import os
import platform
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import corpus
import train
from experiments.catalogue import DIETS
from minifunc.circuit import Criteria
from minifunc.support.flags import Parser
from minifunc.model import ModelConfig, Transformer
from minifunc.support.checkpoints import Diverged
from minifunc.support.runs import (
    UserError,
    check_writable,
    load_json,
    locked,
    run_main,
    save_json,
    save_tensors,
)
from train import TrainConfig

N_SNAPSHOTS = 48  # weights kept on the way, evenly spaced on a logarithmic scale
SNAPSHOT_SEEDS = 3  # the default's first seeds keep them
QUICK_STEPS = 30
SHORT = replace(
    TrainConfig(), documents=64, long_every=3, lr=1e-2, weight_decay=0.2
)  # what results/ of diets, universality and interventions were made with; the default may go on
T_975 = {
    2: 12.706,
    3: 4.303,
    4: 3.182,
    5: 2.776,
    6: 2.571,
    7: 2.447,
    8: 2.365,
    9: 2.306,
    10: 2.262,
    12: 2.201,
    15: 2.145,
    20: 2.093,
    30: 2.045,
}  # Student's t by number of values


@dataclass(frozen=True)
class Run:
    """One training run. name: its folder; snapshots: the steps after which the weights are kept; intervention: what is done to the model after every step."""

    name: str = "default"
    diet: str = "strict"
    model: ModelConfig = train.MODEL
    train: TrainConfig = TrainConfig()
    snapshots: tuple[int, ...] = ()
    intervention: "Intervention | None" = None

    def folder(self, out: Path) -> Path:
        return out / self.name / f"seed{self.train.seed}"

    def settings(self) -> dict[str, Any]:
        """All that makes the run what it is, as config.json holds it, but for the versions."""
        config = train.describe(self.model, self.train, DIETS[self.diet])
        return {part: config[part] for part in ("model", "train", "diet", "vocabulary")}


Intervention = Callable[
    [int, Transformer, Run, Path], None
]  # (step, model, run, folder): changes the weights in place


def default_run(seed: int, steps: int) -> Run:
    """The default, as dependability and emergence share it."""
    return Run(
        diet=corpus.DEFAULT_DIET.name,
        train=replace(TrainConfig(), seed=seed, steps=steps),
        snapshots=log_spaced(steps) if seed < SNAPSHOT_SEEDS else (),
    )


def log_spaced(last: int, n: int = N_SNAPSHOTS) -> tuple[int, ...]:
    """At least n different whole numbers from 1 to `last`, evenly spaced on a logarithmic scale (all of them where there are fewer)."""
    if last <= n:
        return tuple(range(1, last + 1))
    found: set[int] = set()
    for points in range(n, 100 * n):
        found = {round(last ** (i / (points - 1))) for i in range(points)}
        if len(found) >= n:
            break
    return tuple(sorted(found))


# ---------------------------------------------------------------- one run

Measure = Callable[
    [Transformer, Run, Path, bool], dict[str, Any]
]  # (model, run, folder, quick) → what was measured


def measuring(quick: bool) -> dict[str, Any]:
    """How it was measured: with other criteria, trained runs are measured again."""
    return {"quick": quick, "criteria": vars(Criteria())}


def finished(run: Run, out: Path, experiment: str, quick: bool) -> dict[str, Any] | None:
    """What was measured, or that it diverged; None where the run is not finished. Raises UserError where the folder
    belongs to another run: nothing is overwritten."""
    folder = run.folder(out)
    if (folder / "config.json").exists():
        config = load_json(folder / "config.json")
        if not isinstance(config, dict) or any(
            config.get(part) != value for part, value in run.settings().items()
        ):
            raise UserError(
                f"{folder} was made with other settings than this version has: remove it, or give another --out"
            )
    for name in ("diverged", experiment):
        if (folder / f"{name}.json").exists():
            kept = load_json(folder / f"{name}.json")
            if (
                isinstance(kept, dict)
                and kept.get("settings")
                == run.settings() | (measuring(quick) if name == experiment else {})
                and isinstance(kept.get("row"), dict)
            ):
                return kept["row"]
    return None


def carry_out(
    run: Run, out: Path, experiment: str, measure: Measure, quick: bool
) -> dict[str, Any]:
    """Trains (or goes on training) one run, measures it, writes that down and returns it."""
    row = finished(run, out, experiment, quick)
    if row is not None:
        return row
    folder = run.folder(out)
    try:
        (folder / "steps").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}") from None
    told = 0

    def after_step(step: int, model: Transformer) -> None:
        nonlocal told
        told += 1
        if run.intervention:
            run.intervention(step, model, run, folder)
        if step in run.snapshots:
            save_tensors(folder / "steps" / f"{step:05}.pt", model.state_dict())
        _progress.tell(1)
        if _progress.stopped():
            signal.raise_signal(signal.SIGINT)  # train.py then makes a checkpoint and stops

    same = run.settings()
    try:
        with locked(folder):
            model = train.train(
                folder,
                run.model,
                run.train,
                DIETS[run.diet],
                torch.device("cpu"),
                (folder / "resume.pt").exists(),
                after_step,
            )
        row = measure(model, run, folder, quick)
    except Diverged as error:
        row = {"diverged": True, "message": str(error)}
        save_json(folder / "diverged.json", {"settings": same, "row": row})
    else:
        row = {"diverged": False} | row
        save_json(folder / f"{experiment}.json", {"settings": same | measuring(quick), "row": row})
    _progress.tell(run.train.steps - told)  # those that had been made before
    return row


class Progress:
    """Counts the steps of all runs, over all processes, and carries the wish to stop."""

    def __init__(self, steps: Any = None, stop: Any = None) -> None:
        self.steps, self.stop, self.bar = steps, stop, None

    def tell(self, n: int) -> None:
        if self.steps is not None:
            with self.steps.get_lock():
                self.steps.value += n
        if self.bar is not None:
            self.bar.update(n)

    def stopped(self) -> bool:
        return self.stop is not None and self.stop.is_set()


_progress = Progress()


def _start(steps: Any, stop: Any) -> None:
    """A worker begins: one thread; the terminal's Ctrl-C reaches the parent alone; where the parent is gone, so is the worker."""
    global _progress
    _progress = Progress(steps, stop)
    torch.set_num_threads(1)
    if hasattr(os, "setsid"):
        os.setsid()
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (the bars of train.py: the parent shows one for all)

    def follow() -> None:
        multiprocessing.parent_process().join()  # type: ignore[union-attr]
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


# ---------------------------------------------------------------- all runs


def run_all(
    runs: Sequence[Run], out: Path, experiment: str, measure: Measure, jobs: int, quick: bool
) -> list[dict[str, Any]]:
    """One row for each run, in their order. Raises UserError where a run cannot be made, KeyboardInterrupt after Ctrl-C;
    what was done until then is kept."""
    rows: dict[Run, dict[str, Any]] = {}
    for run in runs:
        row = finished(run, out, experiment, quick)
        if row is not None:
            rows[run] = row
    left = [run for run in dict.fromkeys(runs) if run not in rows]
    with tqdm(
        total=sum(run.train.steps for run in left),
        desc=f"{experiment}: {len(left)} of {len(runs)} runs",
        unit="step",
        mininterval=0.5,
        disable=None,
    ) as bar:
        if jobs == 1:
            rows |= _one_by_one(left, bar, out, experiment, measure, quick)
        elif left:
            rows |= _side_by_side(left, bar, out, experiment, measure, quick, jobs)
    return [rows[run] for run in runs]


def _one_by_one(
    left: Sequence[Run], bar: Any, out: Path, experiment: str, measure: Measure, quick: bool
) -> dict[Run, dict[str, Any]]:
    torch.set_num_threads(1)
    _progress.bar = bar
    stderr = sys.stderr
    try:
        with open(os.devnull, "w") as sys.stderr:  # the bars of train.py: there is one for all
            return {run: carry_out(run, out, experiment, measure, quick) for run in left}
    finally:
        sys.stderr, _progress.bar = stderr, None


def _side_by_side(
    left: Sequence[Run],
    bar: Any,
    out: Path,
    experiment: str,
    measure: Measure,
    quick: bool,
    jobs: int,
) -> dict[Run, dict[str, Any]]:
    context = multiprocessing.get_context("spawn")
    steps, stop = context.Value("q", 0), context.Event()
    rows: dict[Run, dict[str, Any]] = {}
    os.environ["OMP_NUM_THREADS"] = "1"  # read as a worker imports torch
    with ProcessPoolExecutor(
        min(jobs, len(left)), mp_context=context, initializer=_start, initargs=(steps, stop)
    ) as pool:
        futures: dict[Future[dict[str, Any]], Run] = {
            pool.submit(carry_out, run, out, experiment, measure, quick): run for run in left
        }
        try:
            waiting = set(futures)
            while waiting:
                done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                rows |= {futures[future]: future.result() for future in done}
                bar.update(steps.value - bar.n)
        except BrokenProcessPool:
            raise UserError(
                "a process was ended from outside (out of memory?): the same command goes on"
            ) from None
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return rows


# ---------------------------------------------------------------- what was found


def provenance(run: Run) -> dict[str, Any]:
    """What every row says about where it comes from."""
    processor = platform.processor() or platform.machine()
    try:
        processor = next(
            (
                line.split(":")[1].strip()
                for line in Path("/proc/cpuinfo").read_text().splitlines()
                if "model name" in line
            ),
            processor,
        )
    except OSError:
        pass
    versions = train.describe(run.model, run.train, DIETS[run.diet])["versions"]
    return {
        "steps": run.train.steps,
        "criteria": vars(Criteria()),
        "versions": versions,
        "hardware": {
            "processor": processor,
            "cores": os.cpu_count(),
            "threads": 1,
            "device": "cpu",
        },
    }


def mean_ci(values: Sequence[float | None]) -> tuple[float, float]:
    """Mean and half the 95 % interval (Student's t) of some runs' values. None (a run that diverged, a circuit that is not
    there) is left out; NaN where nothing is left, and for the interval where there is one value."""
    known = [value for value in values if value is not None]
    if not known:
        return math.nan, math.nan
    mean = sum(known) / len(known)
    if len(known) < 2:
        return mean, math.nan
    t = T_975[
        max(n for n in T_975 if n <= len(known))
    ]  # the next smaller number of values: never too narrow
    return mean, t * math.sqrt(
        sum((value - mean) ** 2 for value in known) / (len(known) - 1) / len(known)
    )


def in_words(values: Sequence[float | None], digits: int = 2) -> str:
    """`0.98 ± 0.02`; a dash where there is nothing."""
    mean, half = mean_ci(values)
    return (
        "–"
        if math.isnan(mean)
        else f"{mean:.{digits}f}" + ("" if math.isnan(half) else f" ± {half:.{digits}f}")
    )


def by(
    rows: Sequence[dict[str, Any]], key: Callable[[dict[str, Any]], str]
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Groups rows by a key, in the order in which the keys are first met."""
    for name in dict.fromkeys(map(key, rows)):
        yield name, [row for row in rows if key(row) == name]


@dataclass(frozen=True)
class Experiment:
    """A list of runs and what is measured on them.

    names: of its kinds of run, each trained with `seeds` seeds (or as many as `more` says), `steps` long; make(name,
    seed, steps) → the run. rows(run, measured) → the rows of the results; table(rows) → text.
    """

    name: str
    doc: str
    names: tuple[str, ...]
    seeds: int
    steps: int
    make: Callable[[str, int, int], Run]
    measure: Measure
    rows: Callable[[Run, dict[str, Any]], list[dict[str, Any]]]
    table: Callable[[list[dict[str, Any]]], str]
    more: dict[str, int] = field(default_factory=dict)

    def runs(self, names: Sequence[str], seeds: int | None, steps: int) -> list[Run]:
        """Seed by seed, so that every kind has been tried once before any is tried again."""
        wanted = {
            name: self.more.get(name, self.seeds) if seeds is None else seeds for name in names
        }
        return [
            self.make(name, seed, steps)
            for seed in range(max(wanted.values()))
            for name in names
            if seed < wanted[name]
        ]


def main(experiment: Experiment, argv: list[str] | None = None) -> int:
    """The command line of an experiment."""

    def work() -> int:
        parser = Parser(
            prog=f"experiments.{experiment.name}",
            description=experiment.doc.splitlines()[0],
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        parser.add_argument(
            "--jobs",
            type=int,
            default=len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count(),
            help="runs at a time",
        )
        parser.add_argument("--out", default="out/experiments", help="where the runs are")
        parser.add_argument(
            "--only", metavar="NAME,NAME", help=f"some of: {', '.join(experiment.names)}"
        )
        parser.add_argument(
            "--seeds",
            type=int,
            help=f"seeds of each (default: {experiment.seeds}{''.join(f'; {name} {n}' for name, n in experiment.more.items())})",
        )
        parser.add_argument(
            "--steps", type=int, help=f"steps of each (default: {experiment.steps})"
        )
        parser.add_argument(
            "--quick",
            action="store_true",
            help="one seed, few steps, few prompts: to see that it works",
        )
        parser.add_argument(
            "--results",
            help="where the rows go (default: results/ for the whole list, else the folder OUT)",
        )
        arguments = parser.parse_args(argv)
        names = tuple(arguments.only.split(",")) if arguments.only else experiment.names
        wrong = [name for name in names if name not in experiment.names]
        if wrong:
            raise UserError(
                f"unknown {experiment.name} run {wrong[0]!r}; there are: {', '.join(experiment.names)}"
            )
        for name in ("jobs", "seeds", "steps"):
            if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
                raise UserError(f"--{name} must be at least 1")
        out = (
            Path(arguments.out)
            / ("quick" if arguments.quick else "")
            / (f"{arguments.steps}_steps" if arguments.steps else "")
        )
        seeds, steps = (
            arguments.seeds or (1 if arguments.quick else None),
            arguments.steps or (QUICK_STEPS if arguments.quick else experiment.steps),
        )
        whole = not (arguments.quick or arguments.only or arguments.seeds or arguments.steps)
        path = Path(
            arguments.results
            or (f"results/{experiment.name}.json" if whole else out / f"{experiment.name}.json")
        )
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the folder {out}: {error.strerror}") from None
        check_writable(path)
        runs = experiment.runs(names, seeds, steps)
        try:
            measured = run_all(
                runs, out, experiment.name, experiment.measure, arguments.jobs, arguments.quick
            )
        except KeyboardInterrupt:
            print("stopped: the same command goes on", file=sys.stderr)
            return 130
        rows = [row for run, found in zip(runs, measured) for row in experiment.rows(run, found)]
        save_json(path, rows)
        print(experiment.table(rows))
        print(f"\nthe rows are in {path}")
        return 0

    return run_main(work)
