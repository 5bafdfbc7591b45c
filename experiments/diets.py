"""Where function induction comes from: the same model on other diets (`make diets`).

Writes results/diets.json. The diets (catalogue.py): a ladder that ends at the default; its last
rung but two, `strict`, without one ingredient; less held out; and the grid of (function × wrapper)
cells cut in other ways. The tables say what the accuracy on the unseen cell depends on.
"""

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch

import tasks
import train
from experiments.catalogue import COMPARED, DIETS, LADDER, LESS_HELD_OUT, PLUS_PLAIN, WITHOUT_ONE
from experiments.experiment import Experiment, main
from experiments.measure import addition_and_circuit, grid, how_many, result_row
from experiments.runs import SHORT, Row, Run
from experiments.summary import Rows, by, in_words, means
from minifunc.model import Transformer
from minifunc.support import tables
from minifunc.support.checks import met_under


def make(kind: str, seed: int, steps: int) -> Run:
    cfg = replace(SHORT, seed=seed, steps=steps, eval_every=max(1, steps // 2))
    return Run(f"diet_{kind}", kind, train=cfg)


def measure(model: Transformer, run: Run, folder: Path, quick: bool) -> Row:
    cells = {"grid": grid(model, how_many(100, quick))}
    return addition_and_circuit(model, run, folder, quick) | cells


def rows(run: Run, measured: Row) -> Rows:
    return [result_row(run, measured | about(DIETS[run.diet]), {"diet": run.diet})]


def about(diet: tasks.Diet) -> Row:
    """What a diet shows: what the accuracy on the unseen cell may depend on."""
    functions = tasks.sample(diet, 4000, 9, torch.Generator().manual_seed(0)).function
    met = [wrapper for wrapper in tasks.WRAPPERS if "+" in shown_under(diet, wrapper)]
    return {
        "plus_wrappers": len(met),
        "wrappers_of_plus": met,
        "shifted_functions": len(met_under(diet, "shift")),
        "plus_share": round((functions == tasks.PLUS).float().mean().item(), 3),
        "held_out": [list(cell) for cell in diet.never if is_held_out(diet, *cell)],
        "shifts_of_plus_shown": list(diet.shifted_addition),
    }


def shown_under(diet: tasks.Diet, wrapper: str) -> list[str]:
    """The functions that the diet shows under a wrapper, be it with some k alone."""
    shown = met_under(diet, wrapper)
    return [*shown, "+"] if wrapper == "shift" and diet.shifted_addition else shown


def is_held_out(diet: tasks.Diet, wrapper: str, symbol: str) -> bool:
    """Whether a cell that the diet never shows makes sense, and could have been shown."""
    if wrapper == "base" and symbol in tasks.TO_LETTERS:
        return False
    return symbol in diet.functions and symbol not in shown_under(diet, wrapper)


def mean_of_unseen_k(rows: Rows) -> list[float | None]:
    """Accuracy at 8 shots over the k with which `+` was never shown."""
    found: list[float | None] = []
    for row in rows:
        if row["diverged"]:
            found.append(0.0)
            continue
        shown = row["shifts_of_plus_shown"]
        shares = [share for k, share in row["off_by_k_8"].items() if int(k) not in shown]
        found.append(sum(shares) / len(shares) if shares else None)
    return found


def off_by_one(rows: Rows, shots: int) -> list[float | None]:
    return [0.0 if row["diverged"] else row["by_shots"]["1"].get(str(shots)) for row in rows]


def table(rows: Rows) -> list[str]:
    accuracy = ["diet", "runs", "plain", *(f"{n} shots" for n in train.SHOTS)]
    accuracy += ["unseen k", "does instead"]
    circuit = ["diet", "FI", "PT", "top FI r", "faithful", "+ under", "shifted", "share"]
    circuit.append("(function, wrapper) held out")
    accuracies, circuits = [], []
    for name, some in by(rows, lambda row: row["diet"]).items():
        columns = [off_by_one(some, n) for n in train.SHOTS]
        shares = [*means(some, "plain_8"), *map(in_words, [*columns, mean_of_unseen_k(some)])]
        instead = Counter(row["failure"] for row in some)
        failures = ", ".join(f"{what} ({n})" for what, n in instead.items())
        accuracies.append([name, len(some), *shares, failures])
        heads = means(some, "fi_heads", "pt_heads", digits=1)
        effects = means(some, "top_fi_r", "faithfulness")
        shown = [some[0][key] for key in ("plus_wrappers", "shifted_functions", "plus_share")]
        circuits.append([name, *heads, *effects, *shown, held_out_cells(some)])
    return [
        "means over seeds ± 95 % (Student's t); off by one by shots, the rest at 8 shots; "
        f"{rows[0]['steps']} steps each; failing: fewer than half right",
        *tables.table(accuracy, accuracies, left=len(accuracy)),
        "",
        "heads and effects; the wrappers that `+` meets, how many functions are seen shifted, the "
        "share of `+` among all examples; accuracy on the cells held out",
        *tables.table(circuit, circuits, left=len(circuit)),
    ]


def held_out_cells(rows: Rows) -> str:
    """Accuracy on each cell that a diet holds out."""
    grids = [row["grid"] for row in rows if not row["diverged"]]
    cells = []
    for wrapper, symbol in rows[0]["held_out"]:
        shares = in_words([grid[wrapper][symbol] for grid in grids])
        cells.append(f"({symbol}, {wrapper}) {shares}")
    return "   ".join(cells)


CLAIMED = (*LADDER, *WITHOUT_ONE, *LESS_HELD_OUT, *PLUS_PLAIN)  # what claims rest on
MORE = {diet.name: 3 for diet in CLAIMED}
EXPERIMENT = Experiment(
    "diets", __doc__, measure, rows, table, COMPARED, make, seeds=2, steps=700, more=MORE
)

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT))
