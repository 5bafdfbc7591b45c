"""Is ordinary induction a precursor of function induction? (`make precursor`)

The default model is trained anew in 1700 steps, twelve seeds of each kind; writes
results/precursor.json, and a call goes on with the rows that are there.

    none                 nothing is kept from forming
    no_copy_induction    a head that becomes an ordinary induction head, by its score on repeated
                         documents, is silenced for good as soon as it passes the threshold
    no_previous_token    the same for every head that becomes a previous-token head
    random_heads         the control: as many heads of each layer as no_copy_induction silenced
                         with the same seed, after the same steps, but drawn at random

Written down before the first run. Expected, from three seeds of an older study
(results/interventions.json): no_copy_induction costs more than random_heads, since a finished
model's best copying head is one of its FI heads. Test: off-by-one accuracy at 8 shots, the
difference of these two kinds, paired by seed, with its 95 % interval (Student's t). A precursor:
the whole interval is below 0. None: it holds 0, and its lower end is above -0.1. Else undecided.
"""

import random
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor

import tasks
from experiments import measure
from experiments.experiment import Experiment, main
from experiments.runs import Row, Run
from experiments.summary import Rows, by, in_words, mean_ci, means
from minifunc.analysis.scores import copy_induction_score, previous_token_score
from minifunc.model import Transformer
from minifunc.support import tables
from minifunc.support.errors import UserError
from minifunc.support.files import load_json, load_lines, save_json
from minifunc.support.names import parse
from minifunc.support.runs import RESULTS
from train import TrainConfig

EVERY = 20  # steps between two looks at the heads
N_LOOKED_AT = 32  # prompts each time
HARMLESS = -0.1  # a difference of accuracies above it counts as none
COPYING, CONTROL = "no_copy_induction", "random_heads"

Silenced = dict[str, int]  # the step since which a head is silent, by head
# (step, model, run, folder) → the heads that are to be silenced from this step on
Choose = Callable[[int, Transformer, Run, Path], set[str]]


def silence(choose: Choose, step: int, model: Transformer, run: Run, folder: Path) -> None:
    """Makes heads write nothing: their W_O is set to zero after this step and every later one. A
    run that is taken up from an older checkpoint goes the same way, by silenced.json."""
    since = silenced(folder)
    if step % EVERY == 0:
        since |= dict.fromkeys(sorted(choose(step, model, run, folder) - since.keys()), step)
        save_json(folder / "silenced.json", since)
    for name, first in since.items():
        if first <= step:
            layer, head = parse(name)
            model.blocks[layer].attn.W_O.data[head] = 0.0


def silenced(folder: Path) -> Silenced:
    path = folder / "silenced.json"
    return load_json(path) if path.exists() else {}


def copy_induction_heads(step: int, model: Transformer, run: Run, folder: Path) -> set[str]:
    tokens, period, queries, _ = measure.repeated_documents(N_LOOKED_AT)
    return passing(copy_induction_score(model, tokens, period, queries))


def previous_token_heads(step: int, model: Transformer, run: Run, folder: Path) -> set[str]:
    drawn, shots = measure.generator(), measure.SHOTS
    pairs = tasks.evaluation_pairs("subtraction", 2, shots, N_LOOKED_AT, drawn)
    return passing(previous_token_score(model, pairs.contrast, tasks.answer_positions(shots)))


def passing(score: Tensor) -> set[str]:
    """Heads whose score, [n_layers, n_heads], passes the threshold of a previous-token head."""
    places = (score >= measure.CRITERIA.looks_at_previous).nonzero().tolist()
    return {f"{layer}.{head}" for layer, head in places}


def random_heads(step: int, model: Transformer, run: Run, folder: Path) -> set[str]:
    """For each head that the run without copying lost at this step, one of its layer, at random."""
    copying = [head for head, first in lost_by_copying(run, folder).items() if first == step]
    dice = random.Random(f"{run.train.seed} {step}")
    so_far = silenced(folder)
    chosen = set[str]()
    for layer, _ in map(parse, copying):
        heads = {f"{layer}.{head}" for head in range(run.model.n_heads)}
        chosen.add(dice.choice(sorted(heads - so_far.keys() - chosen)))
    return chosen


def lost_by_copying(run: Run, folder: Path) -> Silenced:
    """What no_copy_induction silenced with the same seed: in its folder, or in the results."""
    other = folder.parents[1] / run_name(COPYING) / folder.name
    if (other / "silenced.json").exists():
        return silenced(other)
    path = RESULTS / "precursor.json"
    for row in load_json(path) if path.exists() else []:
        if (row["run"], row["seed"]) == (run_name(COPYING), run.train.seed):
            return dict(row["silenced"])
    raise UserError(f"{CONTROL} needs the run {COPYING} of seed {run.train.seed}: make it first")


def run_name(kind: str) -> str:
    return f"precursor_{kind}"


CHOOSE: dict[str, Choose] = {
    COPYING: copy_induction_heads,
    "no_previous_token": previous_token_heads,
    CONTROL: random_heads,
}
KINDS = ("none", *CHOOSE)


def make(kind: str, seed: int, steps: int) -> Run:
    cfg = replace(TrainConfig(), seed=seed, steps=steps)
    intervention = partial(silence, CHOOSE[kind]) if kind in CHOOSE else None
    after = run_name(COPYING) if kind == CONTROL else ""
    diet = tasks.DEFAULT_DIET.name
    return Run(run_name(kind), diet, train=cfg, intervention=intervention, after=after)


def measure_run(model: Transformer, run: Run, folder: Path, quick: bool) -> Row:
    found = measure.addition(model, measure.how_many(500, quick)) | measure.circuit(model, quick)
    return {"silenced": silenced(folder), "from_step": from_step(folder)} | found


def from_step(folder: Path) -> int | None:
    """The first step at which half of the off-by-one sums, or more, were answered rightly."""
    for line in load_lines(folder / "metrics.jsonl"):
        if line["accuracy"]["addition"]["1"][str(measure.SHOTS)] >= measure.CRITERIA.solves:
            return int(line["step"])
    return None


def rows(run: Run, measured: Row) -> Rows:
    about = {"run": run.name, "kind": run.name.removeprefix(run_name("")), "silenced": None}
    return [measure.result_row(run, measured, about | {"from_step": None})]


def table(rows: Rows) -> list[str]:
    columns = ["kept away", "runs", "plain", "off by one", "lowest", "FI heads", "top FI r", "from"]
    lines = []
    for kind, some in by(rows, lambda row: row["kind"]).items():
        lowest = f"{min(row['off_by_one_8'] or 0.0 for row in some):.3f}"
        accuracies = [*means(some, "plain_8", "off_by_one_8", digits=3), lowest]
        heads = means(some, "fi_heads", digits=1) + means(some, "top_fi_r")
        steps = in_words([row["from_step"] for row in some], 0)
        n_silenced = in_words([len(row["silenced"] or {}) for row in some], 1)
        lines.append([kind, len(some), *accuracies, *heads, steps, n_silenced])
    return [
        "addition at 8 shots, means over seeds ± 95 % (Student's t), "
        f"{rows[0]['steps']} steps each; from: the step from which half is right",
        *tables.table([*columns, "silenced"], lines),
        verdict(rows),
    ]


def verdict(rows: Rows) -> str:
    """The answer of the test that the head of this file sets."""
    accuracy = {(row["kind"], row["seed"]): row["off_by_one_8"] or 0.0 for row in rows}
    seeds = [seed for kind, seed in accuracy if kind == COPYING and (CONTROL, seed) in accuracy]
    differences = [accuracy[COPYING, seed] - accuracy[CONTROL, seed] for seed in seeds]
    mean, half = mean_ci(differences)
    answer = "undecided"
    if mean + half < 0:
        answer = "ordinary induction is a precursor"
    elif mean - half > HARMLESS and mean + half >= 0:
        answer = "ordinary induction is no precursor"
    told = f"{COPYING} less {CONTROL}, paired: {in_words(differences, 3)} ({len(seeds)} seeds)"
    return f"{told}: {answer}"


EXPERIMENT = Experiment(
    "precursor", __doc__, measure_run, rows, table, KINDS, make, seeds=12, steps=1700, grows=True
)

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT))
