"""What must there be for function induction to come up? (a part of `make emergence`)

The default model is trained anew, on the diet `strict` in 1700 steps, each time with something
kept from forming; writes results/interventions.json.

    no_previous_token    every head that becomes a previous-token head is silenced for good, as soon
                         as its score passes the threshold
    no_copy_induction    the same for every head that becomes an ordinary induction head, by its
                         score on repeated documents
    random_heads         a control: as many heads as no_copy_induction takes on average of each
                         layer, and when it takes most, but drawn at random
    frozen_0, frozen_1   the first (second) block stays as it was drawn
"""

import random
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import tasks
from experiments import measure
from experiments.experiment import Experiment, main
from experiments.runs import SHORT, Row, Run
from experiments.summary import Rows, by, means
from minifunc.analysis.scores import copy_induction_score, previous_token_score
from minifunc.model import Transformer
from minifunc.support import tables
from minifunc.support.files import load_json, save_json
from minifunc.support.names import parse

EVERY = 20  # steps between two looks at the heads
N_LOOKED_AT = 32  # prompts each time
RANDOM_AT = 300  # the step at which random_heads are silenced,
N_RANDOM = {3: 5, 2: 2}  # and how many of a layer

# (step, model, run) → the heads that are to be silenced from this step on
Choose = Callable[[int, Transformer, Run], set[str]]


def silence(choose: Choose, step: int, model: Transformer, run: Run, folder: Path) -> None:
    """Makes heads write nothing: their W_O is set to zero after this step and every later one.

    silenced.json says since which step, so that a run taken up from an older checkpoint goes the
    same way.
    """
    since = silenced(folder)
    if step % EVERY == 0:
        new = choose(step, model, run) - since.keys()
        since |= dict.fromkeys(sorted(new), step)
        save_json(folder / "silenced.json", since)
    for name, first in since.items():
        if first <= step:
            layer, head = parse(name)
            model.blocks[layer].attn.W_O.data[head] = 0.0


def silenced(folder: Path) -> dict[str, int]:
    """The step since which a head is silent, by head."""
    path = folder / "silenced.json"
    return load_json(path) if path.exists() else {}


def previous_token_heads(step: int, model: Transformer, run: Run) -> set[str]:
    drawn, shots = measure.generator(), measure.SHOTS
    pairs = tasks.evaluation_pairs("subtraction", 1, shots, N_LOOKED_AT, drawn)
    return passing(previous_token_score(model, pairs.contrast, tasks.answer_positions(shots)))


def copy_induction_heads(step: int, model: Transformer, run: Run) -> set[str]:
    tokens, period, queries, _ = measure.repeated_documents(N_LOOKED_AT)
    return passing(copy_induction_score(model, tokens, period, queries))


def random_heads(step: int, model: Transformer, run: Run) -> set[str]:
    chosen: set[str] = set()
    dice = random.Random(run.train.seed)
    for layer, n in N_RANDOM.items() if step == RANDOM_AT else ():
        drawn = dice.sample(range(run.model.n_heads), n)
        chosen |= {f"{layer}.{head}" for head in drawn}
    return chosen


def passing(score: Tensor) -> set[str]:
    """Heads whose score, [n_layers, n_heads], passes the threshold of a previous-token head."""
    places = (score >= measure.CRITERIA.looks_at_previous).nonzero().tolist()
    return {f"{layer}.{head}" for layer, head in places}


def freeze(layer: int, step: int, model: Transformer, run: Run, folder: Path) -> None:
    """Puts a block back to what it was before the first step."""
    drawn = Transformer(run.model, torch.Generator().manual_seed(run.train.seed))
    model.blocks[layer].load_state_dict(drawn.blocks[layer].state_dict())


INTERVENTIONS = {
    "no_previous_token": partial(silence, previous_token_heads),
    "no_copy_induction": partial(silence, copy_induction_heads),
    "random_heads": partial(silence, random_heads),
    "frozen_0": partial(freeze, 0),
    "frozen_1": partial(freeze, 1),
}


def make(kind: str, seed: int, steps: int) -> Run:
    cfg = replace(SHORT, seed=seed, steps=steps)
    return Run(f"without_{kind}", train=cfg, intervention=INTERVENTIONS.get(kind))


def measure_run(model: Transformer, run: Run, folder: Path, quick: bool) -> Row:
    found = measure.addition(model, measure.how_many(500, quick)) | measure.circuit(model, quick)
    return {"silenced": silenced(folder)} | found


def rows(run: Run, measured: Row) -> Rows:
    about = {"intervention": run.name.removeprefix("without_"), "silenced": None}
    return [measure.result_row(run, measured, about)]


def table(rows: Rows) -> list[str]:
    columns = ["without", "runs", "plain", "off by one", "FI heads", "top FI r", "silenced"]
    lines = []
    for name, some in by(rows, lambda row: row["intervention"]).items():
        accuracies = means(some, "plain_8", "off_by_one_8", digits=3)
        heads = means(some, "fi_heads", digits=1) + means(some, "top_fi_r")
        since = "; ".join(listed(row["silenced"] or {}) for row in some)
        lines.append([name, len(some), *accuracies, *heads, since])
    return [
        "addition at 8 shots, means over seeds ± 95 % (Student's t), "
        f"{rows[0]['steps']} steps each; silenced: head@step, by seed",
        *tables.table(columns, lines, left=len(columns)),
    ]


def listed(since: dict[str, int]) -> str:
    return " ".join(f"{head}@{step}" for head, step in since.items()) or "–"


KINDS = ("none", *INTERVENTIONS)
EXPERIMENT = Experiment("interventions", __doc__, KINDS, make, measure_run, rows, table, steps=1700)

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT))
