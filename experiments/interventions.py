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

import functools
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import tasks
from experiments.experiment import Experiment, main
from experiments.measure import (
    CRITERIA,
    SHOTS,
    addition_and_circuit,
    generator,
    repeated_documents,
    result_row,
)
from experiments.runs import SHORT, Row, Run
from experiments.summary import Rows, aligned, by, column, in_words
from minifunc.analysis.scores import copy_induction_score, previous_token_score
from minifunc.circuit import parse
from minifunc.model import Transformer
from minifunc.support.runs import load_json, save_json

EVERY = 20  # steps between two looks at the heads
N_LOOKED_AT = 32  # prompts each time
RANDOM_AT = 300  # the step at which random_heads are silenced,
N_RANDOM = (5, 2)  # and how many of the last layer and of the one below

# ---------------------------------------------------------------- what is done after each step


def no_previous_token(step: int, model: Transformer, run: Run, folder: Path) -> None:
    def choose() -> set[str]:
        answers = tasks.answer_positions(SHOTS)
        return passing(previous_token_score(model, shifted_prompts(), answers))

    silence(step, model, folder, choose)


def no_copy_induction(step: int, model: Transformer, run: Run, folder: Path) -> None:
    def choose() -> set[str]:
        tokens, period, queries, _ = repeated_documents(N_LOOKED_AT)
        return passing(copy_induction_score(model, tokens, period, queries))

    silence(step, model, folder, choose)


def random_heads(step: int, model: Transformer, run: Run, folder: Path) -> None:
    def choose() -> set[str]:
        if step != RANDOM_AT:
            return set()
        dice = random.Random(run.train.seed)
        heads = range(run.model.n_heads)
        chosen = set()
        for depth, n in enumerate(N_RANDOM, start=1):
            layer = run.model.n_layers - depth
            chosen |= {f"{layer}.{head}" for head in dice.sample(heads, min(n, len(heads)))}
        return chosen

    silence(step, model, folder, choose)


def frozen_0(step: int, model: Transformer, run: Run, folder: Path) -> None:
    model.blocks[0].load_state_dict(as_drawn(run).blocks[0].state_dict())


def frozen_1(step: int, model: Transformer, run: Run, folder: Path) -> None:
    model.blocks[1].load_state_dict(as_drawn(run).blocks[1].state_dict())


INTERVENTIONS = {
    function.__name__: function
    for function in (no_previous_token, no_copy_induction, random_heads, frozen_0, frozen_1)
}


def silence(step: int, model: Transformer, folder: Path, choose: Callable[[], set[str]]) -> None:
    """Makes heads write nothing: their W_O is set to zero after this step and every later one.

    choose() is asked every EVERY steps which heads are to be silenced from then on. silenced.json
    says since which step, so that a run taken up from an older checkpoint goes the same way.
    """
    path = folder / "silenced.json"
    since = silenced(folder)
    new = choose() - since.keys() if step % EVERY == 0 else set()
    if new:
        since |= dict.fromkeys(sorted(new), step)
        save_json(path, since)
    for name, first in since.items():
        if first <= step:
            layer, head = parse(name)
            model.blocks[layer].attn.W_O.data[head] = 0.0


def silenced(folder: Path) -> dict[str, int]:
    """The step since which a head is silent, by head."""
    path = folder / "silenced.json"
    return load_json(path) if path.exists() else {}


def passing(score: Tensor) -> set[str]:
    """Heads whose score, [n_layers, n_heads], passes the threshold of a previous-token head."""
    places = (score >= CRITERIA.looks_at_previous).nonzero().tolist()
    return {f"{layer}.{head}" for layer, head in places}


@functools.cache
def shifted_prompts() -> Tensor:
    return tasks.evaluation_pairs("subtraction", 1, SHOTS, N_LOOKED_AT, generator()).contrast


@functools.cache
def as_drawn(run: Run) -> Transformer:
    """The model before its first step."""
    return Transformer(run.model, torch.Generator().manual_seed(run.train.seed))


# ---------------------------------------------------------------- the experiment


def make(kind: str, seed: int, steps: int) -> Run:
    cfg = replace(SHORT, seed=seed, steps=steps)
    return Run(f"without_{kind}", train=cfg, intervention=INTERVENTIONS.get(kind))


def measure(model: Transformer, run: Run, folder: Path, quick: bool) -> Row:
    return {"silenced": silenced(folder)} | addition_and_circuit(model, quick, 500)


def rows(run: Run, measured: Row) -> Rows:
    name = "none" if run.intervention is None else run.intervention.__name__
    about = {"intervention": name, "seed": run.train.seed, "silenced": None}
    return [result_row(about, run, measured)]


def table(rows: Rows) -> str:
    titles = ["kept from forming", "runs", "plain", "off by one", "FI heads", "top FI r"]
    widths = [-20, 5, 14, 14, 12, 14]
    lines = [
        "addition at 8 shots, means over seeds ± 95 % (Student's t), "
        f"{rows[0]['steps']} steps each",
        aligned(titles, widths) + "   heads silenced (head@step), by seed",
    ]
    for name, some in by(rows, lambda row: row["intervention"]):
        cells = [name, len(some)]
        for key, digits in (("plain_8", 3), ("off_by_one_8", 3), ("fi_heads", 1), ("top_fi_r", 2)):
            cells.append(in_words(column(some, key), digits))
        heads = "; ".join(heads_at_steps(row["silenced"] or {}) for row in some)
        lines.append(aligned(cells, widths) + f"   {heads}")
    return "\n".join(lines)


def heads_at_steps(since: dict[str, int]) -> str:
    return " ".join(f"{head}@{step}" for head, step in since.items()) or "–"


EXPERIMENT = Experiment(
    "interventions", __doc__, ("none", *INTERVENTIONS), make, measure, rows, table, steps=1700
)

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT))
