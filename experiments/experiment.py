"""An experiment: kinds of runs, what is measured on them, and the command that writes the rows."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from experiments.runs import Measure, Row, Run, Study, run_all
from experiments.summary import Rows
from minifunc.support.errors import UserError, command
from minifunc.support.files import check_writable, make_folder, save_json
from minifunc.support.flags import Parser
from minifunc.support.runs import RESULTS
from minifunc.support.tables import fitted
from train import TrainConfig

QUICK_STEPS = 30


@dataclass(frozen=True)
class Experiment:
    """Kinds of runs, what is measured on them, and the lines that say what came out."""

    name: str
    doc: str | None
    kinds: tuple[str, ...]
    make: Callable[[str, int, int], Run]  # of a kind, a seed and a number of steps
    measure: Measure
    rows: Callable[[Run, Row], Rows]  # of the results, from what was measured on a run
    table: Callable[[Rows], list[str]]
    seeds: int = 3  # of each kind, but for those in `more`
    steps: int = TrainConfig.steps
    more: dict[str, int] = field(default_factory=dict)

    def runs(self, kinds: Sequence[str], quick: bool) -> list[Run]:
        """Seed by seed, so that every kind has been tried once before any is tried again."""
        if quick:
            return [self.make(kind, 0, QUICK_STEPS) for kind in kinds]
        made = []
        for seed in range(max([self.seeds, *self.more.values()])):
            some = [kind for kind in kinds if seed < self.more.get(kind, self.seeds)]
            made += [self.make(kind, seed, self.steps) for kind in some]
        return made


@command
def main(experiment: Experiment, argv: list[str] | None = None) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    known = ", ".join(experiment.kinds)
    parser = Parser(f"experiments.{experiment.name}", experiment.doc)
    add = parser.add_argument
    add("--jobs", type=int, default=cores, help="runs at a time (default: %(default)s)")
    where = "where the runs are, and the rows of a part (default: %(default)s)"
    add("--out", default="out/experiments", help=where)
    add("--only", metavar="NAME,NAME", help=f"some of: {known}")
    add("--quick", action="store_true", help="one seed, few steps, few prompts: to see it work")
    arguments = parser.parse_args(argv)
    kinds = arguments.only.split(",") if arguments.only else experiment.kinds
    for kind in kinds:
        if kind not in experiment.kinds:
            raise UserError(f"unknown {experiment.name} run {kind!r}; there are: {known}")
    if arguments.jobs < 1:
        raise UserError("--jobs must be at least 1")

    out = Path(arguments.out, "quick" if arguments.quick else "")
    is_part = arguments.quick or arguments.only
    path = (out if is_part else RESULTS) / f"{experiment.name}.json"
    make_folder(out)
    check_writable(path)
    runs = experiment.runs(kinds, arguments.quick)
    study = Study(experiment.name, experiment.measure, out, arguments.quick)
    measured = run_all(runs, study, arguments.jobs)
    rows = [row for run, found in zip(runs, measured) for row in experiment.rows(run, found)]
    save_json(path, rows)
    print(fitted(experiment.table(rows)), "", f"the rows are in {path}", sep="\n")
    print("next: the same without --quick and --only" if is_part else "next: make figures")
    return 0
