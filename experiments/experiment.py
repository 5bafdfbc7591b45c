"""An experiment: kinds of runs, what is measured on them, and the command that writes the rows."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from experiments.runs import ON_A_CARD, Measure, Row, Run, Study, default_run, run_all, runs_at_once
from experiments.summary import Rows
from minifunc.support.errors import UserError, command
from minifunc.support.files import check_writable, load_json, make_folder, reading, save_json
from minifunc.support.flags import Parser, pick_device
from minifunc.support.runs import RESULTS
from minifunc.support.tables import fitted
from train import TrainConfig

QUICK_STEPS = 30


@dataclass(frozen=True)
class Experiment:
    """Kinds of runs, what is measured on them, and the lines that say what came out."""

    name: str
    doc: str | None
    measure: Measure
    rows: Callable[[Run, Row], Rows]  # of the results, from what was measured on a run
    table: Callable[[Rows], list[str]]
    kinds: tuple[str, ...] = ("default",)
    make: Callable[[str, int, int], Run] = default_run  # of a kind, a seed and a number of steps
    seeds: int = 3  # of each kind, but for those in `more`
    steps: int = TrainConfig.steps
    more: dict[str, int] = field(default_factory=dict)
    grows: bool = False  # whether a call goes on with the rows in results/, by `run` and `seed`

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
    known = ", ".join(experiment.kinds)
    parser = Parser(f"experiments.{experiment.name}", experiment.doc)
    add = parser.add_argument
    add("--device", default="auto", help="auto, cpu, cuda (default: %(default)s)")
    at_once = f"runs at a time (default: one for each core, on CUDA at most {ON_A_CARD})"
    add("--jobs", type=int, help=at_once)
    where = "where the runs are, and the rows of a part (default: %(default)s)"
    add("--out", default="out/experiments", help=where)
    add("--only", metavar="NAME,NAME", help=f"some of: {known}")
    add("--quick", action="store_true", help="one seed, few steps, few prompts: to see it work")
    arguments = parser.parse_args(argv)
    kinds = arguments.only.split(",") if arguments.only else experiment.kinds
    for kind in kinds:
        if kind not in experiment.kinds:
            raise UserError(f"unknown {experiment.name} run {kind!r}; there are: {known}")
    if arguments.jobs is not None and arguments.jobs < 1:
        raise UserError("--jobs must be at least 1")
    device = pick_device(arguments.device, float64=True)

    out = Path(arguments.out, "quick" if arguments.quick else "")
    is_part = arguments.quick or arguments.only
    path = (out if is_part else RESULTS) / f"{experiment.name}.json"
    make_folder(out)
    check_writable(path)
    runs = experiment.runs(kinds, arguments.quick)
    study = Study(experiment.name, experiment.measure, out, arguments.quick, device)
    rows = rows_so_far(path, runs) if experiment.grows and not is_part else []
    there = {(row["run"], row["seed"]) for row in rows}
    runs = [run for run in runs if (run.name, run.train.seed) not in there]
    jobs = arguments.jobs or runs_at_once(device)
    for some in batches(runs, jobs if experiment.grows else len(runs)):
        for run, found in zip(some, run_all(some, study, jobs)):
            rows += experiment.rows(run, found)
        save_json(path, rows)
    print(fitted([*experiment.table(rows), *mixed(rows), ""]), f"the rows are in {path}", sep="\n")
    print("next: the same without --quick and --only" if is_part else "next: make figures")
    return 0


def rows_so_far(path: Path, runs: Sequence[Run]) -> Rows:
    """The rows of an earlier call, or of somebody else. Raises UserError for other settings."""
    rows: Rows = load_json(path) if path.exists() else []
    steps = {run.name: run.train.steps for run in runs}
    with reading(path, "holds no rows of this experiment"):
        others = [row["run"] for row in rows if row["steps"] != steps.get(row["run"])]
    if others:
        raise UserError(f"{path} has rows of {others[0]} that are made otherwise now: remove it")
    return rows


def batches(runs: Sequence[Run], most: int) -> Iterator[list[Run]]:
    """The runs in their order, so many together; none stands beside the one that it comes after."""
    batch: list[Run] = []
    for run in runs:
        if len(batch) == most or run.after in [other.name for other in batch]:
            yield batch
            batch = []
        batch.append(run)
    if batch:
        yield batch


def mixed(measured: list[Row]) -> list[str]:
    """A line where the runs were not all made on one device: the bits of a seed depend on it."""
    devices = Counter("{device} ({processor})".format(**row["hardware"]) for row in measured)
    made = ", ".join(f"{n} on {device}" for device, n in devices.items())
    return [f"runs of several devices: {made}"] if len(devices) > 1 else []
