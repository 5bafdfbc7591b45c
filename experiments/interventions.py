"""What must there be for function induction to come up? The default model trained anew, on the diet `strict` in 1700 steps,
each time with something kept from forming (a part of `make emergence`; writes results/interventions.json).

    no_previous_token    every head that becomes a previous-token head is silenced for good, as soon as its score passes the threshold
    no_copy_induction    the same for every head that becomes an ordinary induction head, by its score on repeated documents
    random_heads         a control: as many heads as no_copy_induction takes on average of each layer, and when it takes most, but drawn at random
    frozen_0, frozen_1   the first (second) block stays as it was drawn
"""

import functools
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tasks
from experiments.measure import CRITERIA, FEW, SEED, SHOTS, addition, circuit, repeated_documents
from experiments.runs import SHORT, Experiment, Run, by, in_words, main, provenance
from minifunc.analysis.scores import copy_induction_score, previous_token_score
from minifunc.circuit import parse
from minifunc.model import Transformer
from minifunc.support.files import load_json, save_json

EVERY = 20  # steps between two looks at the heads
RANDOM_AT, N_RANDOM = (
    300,
    (5, 2),
)  # random_heads: when, and how many of the last layer and of the one below
N_LOOKED_AT = 32  # prompts each time

# ---------------------------------------------------------------- what is done after a step: (step, model, run, folder)


def _silence(step: int, model: Transformer, folder: Path, choose: Callable[[], set[str]]) -> None:
    """A head that was chosen writes nothing from then on: its W_O is set to zero after this step and every later one.
    silenced.json says since which step, so that a run taken up from an older checkpoint goes the same way."""
    path = folder / "silenced.json"
    since = load_json(path) if path.exists() else {}
    if step % EVERY == 0:
        new = choose() - since.keys()
        if new:
            since |= dict.fromkeys(sorted(new), step)
            save_json(path, since)
    for head in (parse(head) for head, first in since.items() if first <= step):
        model.blocks[head[0]].attn.W_O.data[head[1]] = 0.0


def _passing(score: Tensor) -> set[str]:
    """The heads whose score, [n_layers, n_heads], passes the threshold of a previous-token head."""
    return {
        f"{layer}.{head}"
        for layer, head in (score >= CRITERIA.looks_at_previous).nonzero().tolist()
    }


@functools.cache
def _shifted_prompts() -> Tensor:
    return tasks.evaluation_pairs(
        "subtraction", 1, SHOTS, N_LOOKED_AT, torch.Generator().manual_seed(SEED)
    ).contrast


def no_previous_token(step: int, model: Transformer, run: Run, folder: Path) -> None:
    _silence(
        step,
        model,
        folder,
        lambda: _passing(
            previous_token_score(model, _shifted_prompts(), tasks.answer_positions(SHOTS))
        ),
    )


def no_copy_induction(step: int, model: Transformer, run: Run, folder: Path) -> None:
    tokens, period, queries, _ = repeated_documents(N_LOOKED_AT)
    _silence(
        step, model, folder, lambda: _passing(copy_induction_score(model, tokens, period, queries))
    )


def random_heads(step: int, model: Transformer, run: Run, folder: Path) -> None:
    def draw() -> set[str]:
        dice = random.Random(run.train.seed)
        return {
            f"{run.model.n_layers - depth}.{head}"
            for depth, n in enumerate(N_RANDOM, start=1)
            for head in dice.sample(range(run.model.n_heads), min(n, run.model.n_heads))
        }

    _silence(step, model, folder, lambda: draw() if step == RANDOM_AT else set())


@functools.cache
def _as_drawn(run: Run) -> dict[str, Tensor]:
    return Transformer(run.model, torch.Generator().manual_seed(run.train.seed)).state_dict()


def _freeze(layer: int, model: Transformer, run: Run) -> None:
    prefix = f"blocks.{layer}."
    model.blocks[layer].load_state_dict(
        {
            name.removeprefix(prefix): weight
            for name, weight in _as_drawn(run).items()
            if name.startswith(prefix)
        }
    )


def frozen_0(step: int, model: Transformer, run: Run, folder: Path) -> None:
    _freeze(0, model, run)


def frozen_1(step: int, model: Transformer, run: Run, folder: Path) -> None:
    _freeze(1, model, run)


# ---------------------------------------------------------------- the experiment

INTERVENTIONS = {
    function.__name__: function
    for function in (no_previous_token, no_copy_induction, random_heads, frozen_0, frozen_1)
}


def make(name: str, seed: int, steps: int) -> Run:
    return Run(
        f"without_{name}",
        train=replace(SHORT, seed=seed, steps=steps),
        intervention=INTERVENTIONS.get(name),
    )


def measure(model: Transformer, run: Run, folder: Path, quick: bool) -> dict[str, Any]:
    path = folder / "silenced.json"
    return (
        {"silenced": load_json(path) if path.exists() else {}}
        | addition(model, FEW if quick else 500)
        | circuit(model, FEW if quick else 500, FEW if quick else 50)
    )


def rows(run: Run, measured: dict[str, Any]) -> list[dict[str, Any]]:
    name = "none" if run.intervention is None else run.intervention.__name__
    nothing = {
        key: None
        for key in (
            "silenced",
            "plain_8",
            "off_by_one_8",
            "off_by_k_8",
            "fi_heads",
            "pt_heads",
            "top_fi_r",
            "faithfulness",
        )
    } | {"failure": "diverged"}
    return [{"intervention": name, "seed": run.train.seed} | nothing | measured | provenance(run)]


def table(rows: list[dict[str, Any]]) -> str:
    out = [
        f"addition at 8 shots, means over seeds ± 95 % (Student's t), {rows[0]['steps']} steps each",
        f"{'kept from forming':20}{'runs':>5}{'plain':>14}{'off by one':>14}{'FI heads':>12}{'top FI r':>14}   heads silenced (head@step), by seed",
    ]
    for name, some in by(rows, lambda row: row["intervention"]):
        shares = [
            in_words([0.0 if row["diverged"] else row[key] for row in some], 3)
            for key in ("plain_8", "off_by_one_8")
        ]
        counts = in_words(
            [None if row["fi_heads"] is None else len(row["fi_heads"]) for row in some], 1
        )
        gone = "; ".join(
            " ".join(f"{head}@{step}" for head, step in (row["silenced"] or {}).items()) or "–"
            for row in some
        )
        out.append(
            f"{name:20}{len(some):>5}{shares[0]:>14}{shares[1]:>14}{counts:>12}{in_words([row['top_fi_r'] for row in some]):>14}   {gone}"
        )
    return "\n".join(out)


EXPERIMENT = Experiment(
    "interventions", __doc__, ("none", *INTERVENTIONS), 3, 1700, make, measure, rows, table
)

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT))
