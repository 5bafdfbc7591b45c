"""Which shifts come up though no function ever showed them? (`make unseen`)

Twelve diets, each with some shifts alone, under any function, and nothing in base k; the default
settings otherwise, 1500 steps. Writes results/unseen_shifts.json: accuracy at 8 shots by k, on `+`,
which is never shifted, and on `first`, which is. A call goes on with the rows that are there.

If the heads average what is shown (minifunc/analysis/averaging.py), a shift that nobody showed
should come up between shown ones, and not beyond them. The table says whether it does.
"""

import sys
from dataclasses import replace
from itertools import product

import tasks
from experiments.catalogue import SOME_SHIFTS
from experiments.experiment import Experiment, main
from experiments.measure import SHOTS, generator, how_many, share_right
from experiments.runs import Row, Run, provenance
from experiments.summary import Rows, by, in_words
from minifunc.model import Transformer
from minifunc.support import tables
from train import TrainConfig

ASKED = ("addition", "first")
KS = tuple(k for k in tasks.SHIFTS if k)


def make(kind: str, seed: int, steps: int) -> Run:
    cfg = replace(TrainConfig(), seed=seed, steps=steps, eval_every=max(1, steps // 2))
    return Run(f"unseen_{kind}", SOME_SHIFTS[kind].name, train=cfg)


def measure(model: Transformer, run: Run, folder: object, quick: bool) -> Row:
    """Accuracy by task and k."""
    accuracy: dict[str, dict[str, float]] = {task: {} for task in ASKED}
    for task, k in product(ASKED, KS):
        pairs = tasks.evaluation_pairs(task, k, SHOTS, how_many(300, quick), generator())
        accuracy[task][str(k)] = share_right(model, pairs.contrast, pairs.contrast_answers)
    return {"accuracy": accuracy}


def rows(run: Run, measured: Row) -> Rows:
    """One row for each function that is asked; accuracy is None where the run diverged."""
    kind = run.name.removeprefix("unseen_")
    about = {"run": run.name, "kind": kind, "shifts": list(SOME_SHIFTS[kind].shifts)}
    found = []
    for task in ASKED:
        accuracy = {"accuracy": measured.get("accuracy", {}).get(task)}
        told = about | {"seed": run.train.seed, "task": task}
        found.append(told | measured | accuracy | provenance(run))
    return found


def place(k: int, shown: list[int]) -> str:
    """Where a shift lies: shown, between shown ones (0 is one, by plain documents), or beyond them.

    >>> place(1, [-1, 2]), place(2, [-1, 2]), place(3, [-1, 2])
    ('between', 'shown', 'beyond')
    """
    if k in shown:
        return "shown"
    return "between" if min(*shown, 0) < k < max(*shown, 0) else "beyond"


def table(rows: Rows) -> list[str]:
    lines, means, places = [], [], ("shown", "between", "beyond")
    for (kind, task), some in by(rows, lambda row: (row["kind"], row["task"])).items():
        shares = {k: [row["accuracy"][str(k)] for row in some if row["accuracy"]] for k in KS}
        lines.append([kind, task, len(some), *(in_words(shares[k]) for k in KS)])
        at: dict[str, list[float]] = {name: [] for name in places}
        for k in KS:
            at[place(k, some[0]["shifts"])] += shares[k]
        lowest = [f"{min(found):.2f}" if found else "–" for found in at.values()]
        mean = [f"{sum(found) / len(found):.2f}" if found else "–" for found in at.values()]
        means.append([kind, task, *(f"{m} ({low})" for m, low in zip(mean, lowest))])
    return [
        f"off by k at {SHOTS} shots, means over seeds ± 95 % (Student's t); "
        f"{rows[0]['steps']} steps each",
        *tables.table(["shown", "task", "runs", *(f"{k:+}" for k in KS)], lines, left=2),
        "",
        "means (lowest run) over the k that are shown, lie between shown ones, or beyond them",
        *tables.table(["shown", "task", *places], means, left=2),
    ]


KINDS = tuple(SOME_SHIFTS)
EXPERIMENT = Experiment(
    "unseen_shifts", __doc__, measure, rows, table, KINDS, make, seeds=5, steps=1500, grows=True
)

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT))
