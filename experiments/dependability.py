"""Can the default be relied on? One run for each of ten seeds (`make dependability`).

Writes results/dependability.json: accuracy on addition for every k.
"""

import sys
from pathlib import Path

from experiments.experiment import Experiment, main
from experiments.measure import addition, how_many, result_row
from experiments.runs import Row, Run
from experiments.summary import Rows, column, in_words
from minifunc.model import Transformer
from minifunc.support import tables


def measure(model: Transformer, run: Run, folder: Path, quick: bool) -> Row:
    return addition(model, how_many(500, quick))


def rows(run: Run, measured: Row) -> Rows:
    return [result_row(run, measured, {}, circuit=False)]


def table(rows: Rows) -> list[str]:
    ks = sorted({k for row in rows for k in row["off_by_k_8"] or ()}, key=int)
    shares = []
    for row in rows:
        by_k = row["off_by_k_8"] or {}
        plain = "diverged" if row["diverged"] else row["plain_8"]
        shares.append([row["seed"], plain, *map(by_k.get, ks)])
    ones = column(rows, "off_by_one_8")
    n_good = sum(share >= 0.95 for share in ones)
    return [
        f"addition at 8 shots, {rows[0]['steps']} steps each, no seed left out",
        *tables.table(["seed", "plain", *(f"{int(k):+}" for k in ks)], shares),
        f"off by one: {in_words(ones, 3)} (± 95 %), lowest {min(ones):.3f}; "
        f"at least 0.95 with {n_good} of {len(ones)} seeds",
    ]


EXPERIMENT = Experiment("dependability", __doc__, measure, rows, table, seeds=10)

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT))
