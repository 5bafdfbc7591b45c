"""An experiment: kinds of runs, what is measured on them, and the command that writes the rows."""

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from experiments.runs import Measure, Row, Run, Study, run_all
from experiments.summary import Rows
from minifunc.support.errors import UserError, run_main
from minifunc.support.files import check_writable, make_folder, save_json
from minifunc.support.flags import Parser
from train import TrainConfig

QUICK_STEPS = 30


@dataclass(frozen=True)
class Experiment:
    """Kinds of runs, what is measured on them, and the lines that say what came out."""

    name: str
    doc: str
    kinds: tuple[str, ...]
    make: Callable[[str, int, int], Run]  # of a kind, a seed and a number of steps
    measure: Measure
    rows: Callable[[Run, Row], Rows]  # of the results, from what was measured on a run
    table: Callable[[Rows], list[str]]
    seeds: int = 3  # of each kind, but for those in `more`
    steps: int = TrainConfig.steps
    more: dict[str, int] = field(default_factory=dict)

    def runs(self, kinds: Sequence[str], seeds: int | None, steps: int) -> list[Run]:
        """Seed by seed, so that every kind has been tried once before any is tried again."""
        n_seeds = {kind: seeds or self.more.get(kind, self.seeds) for kind in kinds}
        made = []
        for seed in range(max(n_seeds.values())):
            made += [self.make(kind, seed, steps) for kind in kinds if seed < n_seeds[kind]]
        return made


def main(experiment: Experiment, argv: list[str] | None = None) -> int:
    return run_main(lambda: work(experiment, argv))


def work(experiment: Experiment, argv: list[str] | None) -> int:
    arguments = parse(experiment, argv)
    kinds = arguments.only.split(",") if arguments.only else experiment.kinds
    for kind in kinds:
        if kind not in experiment.kinds:
            known = ", ".join(experiment.kinds)
            raise UserError(f"unknown {experiment.name} run {kind!r}; there are: {known}")

    out, seeds, steps = Path(arguments.out), arguments.seeds, experiment.steps
    if arguments.quick:
        out, seeds, steps = out / "quick", seeds or 1, QUICK_STEPS
    if arguments.steps:  # runs of another length are other runs
        out, steps = out / f"{arguments.steps}_steps", arguments.steps
    whole = not (arguments.quick or arguments.only or arguments.seeds or arguments.steps)
    path = (Path("results") if whole else out) / f"{experiment.name}.json"
    make_folder(out)
    check_writable(path)

    runs = experiment.runs(kinds, seeds, steps)
    study = Study(experiment.name, experiment.measure, out, arguments.quick)
    measured = run_all(runs, study, arguments.jobs)
    rows = [row for run, found in zip(runs, measured) for row in experiment.rows(run, found)]
    save_json(path, rows)
    print(*experiment.table(rows), "", f"the rows are in {path}", sep="\n")
    return 0


def parse(experiment: Experiment, argv: list[str] | None) -> argparse.Namespace:
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count()
    more = "".join(f"; {name} {n}" for name, n in experiment.more.items())
    parser = Parser(
        prog=f"experiments.{experiment.name}",
        description=experiment.doc.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--jobs", type=int, default=cores, help="runs at a time")
    add("--out", default="out/experiments", help="where the runs are, and the rows of a part")
    add("--only", metavar="NAME,NAME", help=f"some of: {', '.join(experiment.kinds)}")
    add("--seeds", type=int, help=f"seeds of each (default: {experiment.seeds}{more})")
    add("--steps", type=int, help=f"steps of each (default: {experiment.steps})")
    add("--quick", action="store_true", help="one seed, few steps, few prompts: to see it work")
    arguments = parser.parse_args(argv)
    for name in ("jobs", "seeds", "steps"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1")
    return arguments
