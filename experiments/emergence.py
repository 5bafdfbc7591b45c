"""What comes up first? Runs of the default, looked at from the first step on (`make emergence`).

Writes results/emergence.json: after 1, 2, 3, … steps, up to the last, the loss, the accuracy on
every task, the scores of previous-token, function-induction and copy-induction heads, and the
effects of the heads of the circuit that the finished model has.
"""

import statistics
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

import patch
import tasks
import train
from experiments import measure
from experiments.catalogue import DIETS
from experiments.experiment import Experiment, main
from experiments.runs import SWEEP_GIB, Row, Run, provenance
from experiments.summary import Rows, by
from minifunc.ablation import all_heads
from minifunc.analysis import scores
from minifunc.model import Transformer
from minifunc.patching import Logits
from minifunc.support import evaluation, tables
from minifunc.support.files import load_tensors
from minifunc.support.names import Groups, heads_of, parse

FOLLOWED = {"pt": "previous_token", "fi": "function_induction"}  # score: group of its heads


def measure_run(model: Transformer, run: Run, folder: Path, quick: bool) -> Row:
    """Every snapshot, and the groups of the finished model, whose heads are followed."""
    groups = measure.circuit(model, quick)["groups"]
    snapshot = Transformer(run.model).to(model.device).requires_grad_(False).eval()
    steps = []
    for step in run.snapshots:
        snapshot.load_state_dict(load_tensors(folder / "steps" / f"{step:05}.pt"))
        steps.append({"step": step} | at_one_step(snapshot, run, groups, quick))
    return {"groups": groups, "steps": steps}


@torch.no_grad()
def at_one_step(model: Transformer, run: Run, groups: Groups, quick: bool) -> Row:
    n_documents, n_scored = measure.how_many(256, quick), measure.how_many(100, quick)
    drawn = tasks.sample(DIETS[run.diet], n_documents, run.train.examples, measure.generator())
    loss = train.loss_on_answers(model, drawn.tokens, drawn.determined)
    row: Row = {"loss": round(loss.item(), 5)}
    row["accuracy"] = every_task(model, measure.how_many(96, quick))
    row["plain_8"] = row["accuracy"]["addition"]["plain"]
    pairs = measure.off_by_one(measure.how_many(200, quick), measure.generator())
    row["off_by_one_8"] = measure.share_right(model, pairs.contrast, pairs.contrast_answers)
    row |= head_scores(model, pairs.contrast[:n_scored], groups)
    return row | effects(model, groups, measure.how_many(50, quick))


def every_task(model: Transformer, n_prompts: int) -> dict[str, dict[str, float]]:
    """Accuracy at 8 shots by task: plain, and shifted (or in base k), n_prompts over all k."""
    prompts, table = measure.generator(), {}
    for name, task in tasks.TASKS.items():
        kinds = {"plain": [0]} if 0 in task.ks else {}
        kinds[task.wrapper] = [k for k in task.ks if k]
        shares = table[name] = {}
        for kind, ks in kinds.items():
            n = max(2, n_prompts // len(ks))
            pairs = [tasks.evaluation_pairs(name, k, measure.SHOTS, n, prompts) for k in ks]
            asked = torch.cat([each.contrast for each in pairs])
            answers = torch.cat([each.contrast_answers for each in pairs])
            shares[kind] = measure.share_right(model, asked, answers)
    return table


def head_scores(model: Transformer, prompts: Tensor, groups: Groups) -> Row:
    """Each score of the best head, which one that is, and the mean over the final heads of a kind,
    on prompts [n_prompts, pos] of off-by-one addition, and as many documents that repeat."""
    answers = tasks.answer_positions(measure.SHOTS)
    repeated, period, queries, copied = measure.repeated_documents(len(prompts))
    kinds = {  # each [n_layers, n_heads]
        "pt": scores.previous_token_score(model, prompts, answers),
        "fi": scores.function_induction_score(model, prompts, answers),
        "copy_induction": scores.copy_induction_score(model, repeated, period, queries),
    }
    row: Row = {}
    for name, score in kinds.items():
        row[f"{name}_score"] = round(score.max().item(), 4)
        row[f"{name}_head"] = all_heads(model.cfg)[score.argmax()]
        if heads := groups.get(FOLLOWED.get(name, "")):
            of_heads = [score[parse(head)].item() for head in heads]
            row[f"{name}_score_of_final_heads"] = round(sum(of_heads) / len(heads), 4)
    logits = model(repeated.to(model.device), queries).flatten(0, 1)  # [row, d_vocab]
    right = evaluation.accuracy(logits, repeated[:, copied].flatten())
    return row | {"copy_accuracy": round(right, 4)}


def effects(model: Transformer, groups: Groups, n_prompts: int) -> Row:
    """r on the logits, at this step, of the finished model's heads; None where F_range
    (F_contrast - F_base) is about 0. fi_effect: r * F_range of the strongest FI head, in logits."""
    pairs = measure.off_by_one(n_prompts, measure.generator(1))
    patcher = patch.Study(max_memory=SWEEP_GIB).patchers(model, pairs)["answers"]
    F_range = round(patcher.F_range, 4)
    r: dict[str, float | None] = dict.fromkeys(heads_of(chain(*groups.values())))
    if r and abs(F_range) > 1e-3:
        to_logits = patcher.sweep(Logits()).heads  # [n_layers, n_heads]
        r = {head: round(to_logits[parse(head)].item(), 4) for head in r}
    of_fi_heads = [r[head] for head in groups.get("function_induction", [])]
    taken_back = [round(effect * F_range, 4) for effect in of_fi_heads if effect is not None]
    return {"F_range": F_range, "r": r, "fi_effect": max(taken_back, default=None)}


def rows(run: Run, measured: Row) -> Rows:
    about = {"seed": run.train.seed}
    if measured["diverged"]:
        return [about | {"step": None} | measured | provenance(run)]
    common = measured | provenance(run)
    common["total_steps"] = common.pop("steps")
    return [about | each | common for each in measured["steps"]]


Curve = Callable[[Row], float | None]

# What comes up in the course of a run: the name, and a value that grows.
EVENTS: dict[str, Curve] = {
    "loss falls": lambda row: -row["loss"],
    "plain addition": lambda row: row["plain_8"],
    "copying what is repeated": lambda row: row["copy_accuracy"],
    "shifted subtraction": lambda row: row["accuracy"]["subtraction"]["shift"],
    "Caesar's cipher": lambda row: row["accuracy"]["caesar"]["shift"],
    "off-by-one addition (never shown)": lambda row: row["off_by_one_8"],
    "PT score of the best head": lambda row: row["pt_score"],
    "FI score of the best head": lambda row: row["fi_score"],
    "FI score of the finished model's FI heads": lambda row: row.get("fi_score_of_final_heads"),
    "copy-induction score of the best head": lambda row: row["copy_induction_score"],
    "effect of the strongest FI head": lambda row: row["fi_effect"],
}


def event_step(rows: Rows, value: Curve) -> int | None:
    """The step from which a value stays above half-way from first to last; None without growth."""
    values = [value(row) or 0.0 for row in rows]
    if not values[-1] > values[0]:
        return None
    half = (values[0] + values[-1]) / 2
    last_below = max(index for index, x in enumerate(values) if x < half)
    return int(rows[last_below + 1]["step"])


def table(rows: Rows) -> list[str]:
    """The events, in the order of their median step; those that never come stand last."""
    seeds = by([row for row in rows if not row["diverged"]], lambda row: row["seed"])
    events = []
    for name, value in EVENTS.items():
        steps = [event_step(curve, value) for curve in seeds.values()]
        known = [step for step in steps if step is not None]
        events.append([name, statistics.median(known) if known else None, *steps])
    events.sort(key=lambda event: (event[1] is None, event[1]))
    return [
        "order of events: the first step from which on a curve stays above half-way from its first "
        "to its last value",
        *tables.table(["event", "median", *(f"seed {seed}" for seed in seeds)], events, digits=1),
        *(f"seed {row['seed']}: {row['message']}" for row in rows if row["diverged"]),
    ]


EXPERIMENT = Experiment("emergence", __doc__, measure_run, rows, table)

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT))
