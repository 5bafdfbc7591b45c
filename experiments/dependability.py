"""How far the default can be relied on: one run for each of ten seeds (`make dependability` writes results/dependability.json)."""

import sys
from pathlib import Path
from typing import Any

import train
from experiments.measure import FEW, addition
from experiments.runs import Experiment, Run, default_run, in_words, main, provenance
from minifunc.model import Transformer


def make(name: str, seed: int, steps: int) -> Run:
    return default_run(seed, steps)


def measure(model: Transformer, run: Run, folder: Path, quick: bool) -> dict[str, Any]:
    return addition(model, FEW if quick else 500)


def rows(run: Run, measured: dict[str, Any]) -> list[dict[str, Any]]:
    nothing = {key: None for key in ("plain_8", "off_by_one_8", "off_by_k_8")}
    return [{"seed": run.train.seed} | nothing | measured | provenance(run)]


def table(rows: list[dict[str, Any]]) -> str:
    ks = sorted({k for row in rows for k in row["off_by_k_8"] or ()}, key=int)
    out = [
        f"addition at 8 shots, {rows[0]['steps']} steps each, no seed left out",
        f"{'seed':>6}{'plain':>8}" + "".join(f"{int(k):>+8}" for k in ks),
    ]
    for row in rows:
        out.append(
            f"{row['seed']:>6}"
            + (
                "  diverged"
                if row["diverged"]
                else f"{row['plain_8']:8.3f}" + "".join(f"{row['off_by_k_8'][k]:8.3f}" for k in ks)
            )
        )
    ones = [0.0 if row["diverged"] else row["off_by_one_8"] for row in rows]
    out.append(
        f"off by one: {in_words(ones, 3)} (± 95 %), lowest {min(ones):.3f}; at least 0.95 with {sum(share >= 0.95 for share in ones)} of {len(ones)} seeds"
    )
    return "\n".join(out)


EXPERIMENT = Experiment(
    "dependability", __doc__, ("default",), 10, train.TrainConfig.steps, make, measure, rows, table
)

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT))
