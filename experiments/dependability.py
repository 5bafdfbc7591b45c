"""Can the default be relied on? One run for each of ten seeds (`make dependability`).

Writes results/dependability.json: accuracy on addition for every k.
"""

import sys
from pathlib import Path

from experiments.experiment import Experiment, main
from experiments.measure import addition, how_many, result_row
from experiments.runs import Row, Run, default_run
from experiments.summary import Rows, aligned, column, in_words
from minifunc.model import Transformer


def measure(model: Transformer, run: Run, folder: Path, quick: bool) -> Row:
    return addition(model, how_many(500, quick))


def rows(run: Run, measured: Row) -> Rows:
    return [result_row({"seed": run.train.seed}, run, measured, circuit=False)]


def table(rows: Rows) -> str:
    ks = sorted({k for row in rows for k in row["off_by_k_8"] or ()}, key=int)
    widths = [6, 8] + [8] * len(ks)
    lines = [
        f"addition at 8 shots, {rows[0]['steps']} steps each, no seed left out",
        aligned(["seed", "plain", *(f"{int(k):+}" for k in ks)], widths),
    ]
    for row in rows:
        if row["diverged"]:
            lines.append(f"{row['seed']:>6}  diverged")
            continue
        shares = [row["plain_8"], *(row["off_by_k_8"][k] for k in ks)]
        lines.append(aligned([row["seed"], *(f"{share:.3f}" for share in shares)], widths))
    ones = column(rows, "off_by_one_8")
    n_good = sum(share >= 0.95 for share in ones)
    lines.append(
        f"off by one: {in_words(ones, 3)} (± 95 %), lowest {min(ones):.3f}; "
        f"at least 0.95 with {n_good} of {len(ones)} seeds"
    )
    return "\n".join(lines)


KINDS = ("default",)
EXPERIMENT = Experiment(
    "dependability", __doc__, KINDS, default_run, measure, rows, table, seeds=10
)

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT))
