"""What comes first? Three runs of the default, looked at after 1, 2, 3, … steps up to the last (`make emergence` writes results/emergence.json):
loss, accuracy on every task, the scores of previous-token, function-induction and copy-induction heads, and the
effects of the heads of the circuit that the finished model has.
"""

import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import corpus
import tasks
import train
from experiments.catalogue import DIETS
from experiments.measure import FEW, SEED, SHOTS, circuit, patchers_of, repeated_documents
from experiments.runs import SNAPSHOT_SEEDS, Experiment, Run, by, default_run, main, provenance
from minifunc.circuit import heads_of, parse
from minifunc.support.evaluation import accuracy, last_logits
from minifunc.model import Transformer
from minifunc.patching import HeadInput, Logits, Receiver
from minifunc.support.runs import UserError, load_tensors
from minifunc.analysis.scores import (
    copy_induction_score,
    function_induction_score,
    previous_token_score,
)


def make(name: str, seed: int, steps: int) -> Run:
    if seed >= SNAPSHOT_SEEDS:
        raise UserError(
            f"weights on the way are kept for seeds 0 to {SNAPSHOT_SEEDS - 1}: --seeds must be at most {SNAPSHOT_SEEDS}"
        )
    return default_run(seed, steps)


def measure(model: Transformer, run: Run, folder: Path, quick: bool) -> dict[str, Any]:
    """Every snapshot, and the circuit of the finished model, whose heads are followed."""
    final = circuit(model, FEW if quick else 500, FEW if quick else 50)
    one = Transformer(run.model)
    found = []
    for step in run.snapshots:
        one.load_state_dict(load_tensors(folder / "steps" / f"{step:05}.pt"))
        found.append(
            {"step": step}
            | at_one_step(one.requires_grad_(False).eval(), run, final["groups"], quick)
        )
    return {
        "final": {key: final[key] for key in ("groups", "top_fi_r", "faithfulness")},
        "steps": found,
    }


@torch.no_grad()
def at_one_step(
    model: Transformer, run: Run, groups: dict[str, list[str]], quick: bool
) -> dict[str, Any]:
    documents = corpus.sample(
        DIETS[run.diet],
        FEW if quick else 256,
        run.train.examples,
        torch.Generator().manual_seed(SEED),
    )
    row: dict[str, Any] = {"loss": round(train.loss_on_answers(model, documents).item(), 5)}
    row["accuracy"] = every_task(model, FEW if quick else 96)
    row |= {"plain_8": row["accuracy"]["addition"]["plain"]}
    generator = torch.Generator().manual_seed(SEED)
    count = tasks.evaluation_pairs("addition", 1, SHOTS, FEW if quick else 200, generator)
    row["off_by_one_8"] = round(
        accuracy(last_logits(model, count.contrast), count.contrast_answers), 4
    )

    # Scores: of the best head, and which one that is; and the mean over the finished model's heads of that kind.
    answers = tasks.answer_positions(SHOTS)
    some = count.contrast[: FEW if quick else 100]
    repeated, period, queries, copied = repeated_documents(FEW if quick else 100)
    everywhere = torch.arange(1 + period, repeated.shape[1])
    for name, scores, group in (
        ("pt", previous_token_score(model, some, answers), "previous_token"),
        ("fi", function_induction_score(model, some, answers), "function_induction"),
        ("copy_induction", copy_induction_score(model, repeated, period, queries), ""),
        (
            "copy_induction_everywhere",
            copy_induction_score(model, repeated, period, everywhere),
            "",
        ),
    ):
        best = int(scores.argmax())
        row |= {
            f"{name}_score": round(scores.max().item(), 4),
            f"{name}_head": f"{best // model.cfg.n_heads}.{best % model.cfg.n_heads}",
        }
        if groups.get(group):
            row[f"{name}_score_of_final_heads"] = round(
                sum(scores[parse(head)].item() for head in groups[group]) / len(groups[group]), 4
            )
    logits = model(repeated, queries)  # [n_prompts, n_queries, d_vocab]
    row["copy_accuracy"] = round(
        (logits.argmax(-1) == repeated[:, copied]).float().mean().item(), 4
    )
    return row | effects(model, groups, FEW if quick else 50)


def every_task(model: Transformer, n_prompts: int) -> dict[str, dict[str, float]]:
    """Accuracy at 8 shots on each task: plain, and shifted (or in base k) with n_prompts over all k together."""
    generator = torch.Generator().manual_seed(SEED)
    table: dict[str, dict[str, float]] = {}
    for name, task in tasks.TASKS.items():
        ks = [k for k in task.ks if k]
        asked = {"plain": [0]} if 0 in task.ks else {}
        for kind, some in (asked | {task.wrapper: ks}).items():
            pairs = [
                tasks.evaluation_pairs(name, k, SHOTS, max(2, n_prompts // len(some)), generator)
                for k in some
            ]
            right = accuracy(
                last_logits(model, torch.cat([pair.contrast for pair in pairs])),
                torch.cat([pair.contrast_answers for pair in pairs]),
            )
            table.setdefault(name, {})[kind] = round(right, 4)
    return table


def effects(model: Transformer, groups: dict[str, list[str]], n_prompts: int) -> dict[str, Any]:
    """r of the finished model's heads, now: on the logits, and on the q, k, v of its FI heads together (the strongest of
    the three, under either contrast). F_range: F_contrast - F_base in logits; where it is about 0, r means nothing
    (and is None), while r * F_range, the effect in logits, still does."""
    pairs = tasks.evaluation_pairs(
        "addition", 1, SHOTS, n_prompts, torch.Generator().manual_seed(SEED + 1)
    )
    fi, heads = (
        groups.get("function_induction", []),
        heads_of(head for some in groups.values() for head in some),
    )
    patchers = patchers_of(model, pairs)
    row: dict[str, Any] = {
        "F_range": round(patchers["answers"].F_range, 4),
        "r": dict.fromkeys(heads),
        "r_on_fi_heads": dict.fromkeys(heads),
    }
    receivers: list[Sequence[Receiver]] = [
        [Logits()],
        *([[HeadInput(*parse(head), which) for head in fi] for which in "qkv"] if fi else []),
    ]
    for name, patcher in patchers.items():
        if not heads or not abs(patcher.F_range) > 1e-3:
            continue
        to_logits, *to_fi = patcher.sweep_each(receivers)
        for head in heads:
            if name == "answers":
                row["r"][head] = round(to_logits.heads[parse(head)].item(), 4)
            strongest = max(
                [
                    row["r_on_fi_heads"][head] or 0.0,
                    *(each.heads[parse(head)].item() for each in to_fi),
                ],
                key=abs,
            )
            row["r_on_fi_heads"][head] = round(strongest, 4)
    known = [row["r"][head] * row["F_range"] for head in fi if row["r"][head] is not None]
    row["fi_effect"] = (
        round(max(known), 4) if known else None
    )  # how far F goes back, in logits, without the strongest FI head's shift
    return row


def rows(run: Run, measured: dict[str, Any]) -> list[dict[str, Any]]:
    if measured["diverged"]:
        return [
            {"seed": run.train.seed, "step": None, "diverged": True, "message": measured["message"]}
            | provenance(run)
        ]
    same = {
        "seed": run.train.seed,
        "diverged": False,
        "groups": measured["final"]["groups"],
    } | provenance(run)
    same["total_steps"] = same.pop("steps")
    return [
        {"seed": run.train.seed, "step": each["step"]} | each | same for each in measured["steps"]
    ]


# What comes up in the course of a run: the name, and a value that grows.
EVENTS: dict[str, Callable[[dict[str, Any]], float | None]] = {
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


def event_step(
    rows: list[dict[str, Any]], value: Callable[[dict[str, Any]], float | None]
) -> int | None:
    """The first step from which on the value stays above half-way from its first to its last. None where it does not grow."""
    values = [value(row) or 0.0 for row in rows]
    half = (values[0] + values[-1]) / 2
    if not values[-1] > values[0]:
        return None
    last_below = max((index for index, x in enumerate(values) if x < half), default=-1)
    return int(rows[last_below + 1]["step"])


def table(rows: list[dict[str, Any]]) -> str:
    seeds = [
        (seed, some)
        for seed, some in by(rows, lambda row: str(row["seed"]))
        if not some[0]["diverged"]
    ]
    out = [
        f"{'seed':>5}{'step':>6}{'loss':>8}{'plain':>8}{'off by 1':>9}{'PT':>7}{'FI':>7}{'copy':>7}{'F range':>9}{'FI effect':>11}   (scores of the best head; the last two in logits)"
    ]
    for seed, some in seeds:
        for row in some[:: max(1, len(some) // 12)] + some[-1:]:
            effect = "–" if row["fi_effect"] is None else f"{row['fi_effect']:.2f}"
            out.append(
                f"{seed:>5}{row['step']:>6}{row['loss']:8.3f}{row['plain_8']:8.2f}{row['off_by_one_8']:9.2f}{row['pt_score']:7.2f}{row['fi_score']:7.2f}{row['copy_induction_score']:7.2f}{row['F_range']:9.2f}{effect:>11}"
            )
    out += [
        "",
        "order of events: the first step from which on a curve stays above half-way from its first to its last value",
        f"{'event':44}{'median':>8}{'from':>8}{'to':>8}   by seed",
    ]
    lines = []
    for name, value in EVENTS.items():
        steps = [event_step(some, value) for _, some in seeds]
        known = [step for step in steps if step is not None]
        median = statistics.median(known) if known else float("inf")
        spread = (
            f"{median:>8g}{min(known):>8}{max(known):>8}" if known else f"{'–':>8}{'–':>8}{'–':>8}"
        )
        lines.append(
            (
                median,
                f"{name:44}{spread}   "
                + ", ".join("never" if step is None else str(step) for step in steps),
            )
        )
    out += [line for _, line in sorted(lines)]
    return "\n".join(
        [*out, *(f"seed {row['seed']}: {row['message']}" for row in rows if row["diverged"])]
    )


EXPERIMENT = Experiment(
    "emergence",
    __doc__,
    ("default",),
    SNAPSHOT_SEEDS,
    train.TrainConfig.steps,
    make,
    measure,
    rows,
    table,
)

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT))
