"""Where function induction comes from: the same model on other diets (`make diets` writes results/diets.json).

A ladder of diets that ends at the default, its last rung but one (`strict`) without one ingredient, less held out, and the grid of
(function × wrapper) cells cut in other ways (catalogue.py). One table says which ingredient is necessary and which is
enough, another what the accuracy on the unseen cell depends on.
"""

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import corpus
import tasks
import train
from experiments.catalogue import DIETS
from experiments.measure import FEW, addition, circuit, grid
from experiments.runs import SHORT, Experiment, Run, by, in_words, main, mean_ci, provenance
from minifunc.model import Transformer

SECTIONS = {
    "ladder: each adds to the one above": (
        "addition",
        "copied",
        "shifted",
        "mixed",
        "relabelled",
        "strict",
        "even",
    ),
    "`strict` without one ingredient (`relabelled` is the one without reflection)": (
        "strict",
        "no_relabel",
        "relabelled",
        "no_mixed",
        "no_copy",
    ),
    "less held out": ("strict", "held_out_cell", "held_out_half"),
}
LAW = {
    "wrappers that `+` meets": (
        "plus_wrappers",
        (
            "plus_plain",
            "plus_relabel",
            "plus_reflect",
            "no_copy",
            "no_relabel",
            "relabelled",
            "strict",
        ),
    ),
    "functions that are seen shifted": ("shifted_functions", ("shifted_1", "shifted_3", "strict")),
    "share of `+` among all examples": ("plus_share", ("addition_low", "strict", "addition_high")),
}
OTHER_CELLS = ("hold_minus", "hold_max_reflect")
WITHOUT = {
    "relabelling": "no_relabel",
    "reflection": "relabelled",
    "mixing": "no_mixed",
    "copying": "no_copy",
}


def make(name: str, seed: int, steps: int) -> Run:
    return Run(
        f"diet_{name}",
        name,
        train=replace(SHORT, seed=seed, steps=steps, eval_every=max(1, steps // 2)),
    )


def measure(model: Transformer, run: Run, folder: Path, quick: bool) -> dict[str, Any]:
    return (
        addition(model, FEW if quick else 200)
        | circuit(model, FEW if quick else 500, FEW if quick else 50)
        | {"grid": grid(model, FEW if quick else 100)}
    )


def about(name: str) -> dict[str, Any]:
    """What of a diet the law is about: the wrappers that `+` meets, the functions met shifted, the share of `+`, the cells held out."""
    diet = DIETS[name]
    documents = corpus.sample(diet, 4000, 9, torch.Generator().manual_seed(0))
    met = [
        wrapper
        for wrapper in tasks.WRAPPERS
        if "+" in diet.under(wrapper) or (wrapper == "shift" and diet.shifted_addition)
    ]
    never = [
        [wrapper, symbol]
        for wrapper, symbol in diet.never
        if symbol in diet.functions
        and not (wrapper == "base" and symbol in tasks.TO_LETTERS)
        and not (symbol == "+" and wrapper == "shift" and diet.shifted_addition)
    ]
    return {
        "plus_wrappers": len(met),
        "wrappers_of_plus": met,
        "shifted_functions": len(diet.under("shift")),
        "plus_share": round((documents.function == tasks.PLUS).float().mean().item(), 3),
        "held_out": never,
        "shifts_of_plus_shown": list(diet.shifted_addition),
    }


def rows(run: Run, measured: dict[str, Any]) -> list[dict[str, Any]]:
    nothing = {
        key: None
        for key in (
            "plain_8",
            "off_by_one_8",
            "off_by_k_8",
            "fi_heads",
            "pt_heads",
            "top_fi_r",
            "faithfulness",
        )
    } | {"failure": "diverged"}
    return [
        {"diet": run.diet, "seed": run.train.seed}
        | nothing
        | measured
        | about(run.diet)
        | provenance(run)
    ]


def column(rows: list[dict[str, Any]], key: str) -> list[float | None]:
    """A figure of each run; how many, where it is a list of heads. A run that diverged does no task: accuracy 0."""
    values = [0.0 if row["diverged"] and key.endswith("_8") else row[key] for row in rows]
    return [len(value) if isinstance(value, list) else value for value in values]


def mean_of_k(rows: list[dict[str, Any]], unseen: bool = False) -> list[float | None]:
    """Accuracy at 8 shots over all k but 0; unseen: over those with which `+` was never shown."""
    found: list[float | None] = []
    for row in rows:
        shares = [
            share
            for k, share in (row["off_by_k_8"] or {}).items()
            if not (unseen and int(k) in row["shifts_of_plus_shown"])
        ]
        found.append(sum(shares) / len(shares) if shares else 0.0 if row["diverged"] else None)
    return found


def by_shots(rows: list[dict[str, Any]], shots: int, k: int = 1) -> list[float | None]:
    return [0.0 if row["diverged"] else row["by_shots"][str(k)].get(str(shots)) for row in rows]


def failures(rows: list[dict[str, Any]]) -> str:
    """What the runs do instead, most frequent first, with the mean share of all runs' answers."""
    words = [row["failure"] for row in rows]
    named = sorted(set(words), key=lambda word: -words.count(word))
    shares: dict[str, float] = {}
    for row in rows:
        for name, share in (row.get("answers") or {}).items():
            shares[name] = shares.get(name, 0.0) + share / len(rows)
    detail = ", ".join(
        f"{name.replace('_', ' ')} {share:.2f}"
        for name, share in sorted(shares.items(), key=lambda pair: -pair[1])
        if name != "right" and share >= 0.1
    )
    return (
        ", ".join(named)
        if named == ["none"]
        else f"{', '.join(named)}" + f" ({detail})" * bool(detail)
    )


def table(rows: list[dict[str, Any]]) -> str:
    grouped = dict(by(rows, lambda row: row["diet"]))
    first = rows[0]
    out = [
        f"means over seeds ± 95 % (Student's t); off by one by shots, the rest at 8 shots; {first['steps']} steps each; failing: fewer than half right"
    ]
    head = (
        f"{'diet':18}{'runs':>5}{'plain':>14}"
        + "".join(f"{f'{shots} shots':>14}" for shots in train.SHOTS)
        + f"{'unseen k':>14}{'FI':>12}{'PT':>12}{'top FI r':>14}{'faithful':>14}  does instead"
    )
    for title, names in SECTIONS.items():
        out += ["", title, head]
        for name in names:
            some = grouped.get(name)
            if some:
                cells = (
                    [in_words(column(some, "plain_8"))]
                    + [in_words(by_shots(some, shots)) for shots in train.SHOTS]
                    + [in_words(mean_of_k(some, unseen=True))]
                )
                circuit_cells = [
                    f"{in_words(column(some, 'fi_heads'), 1):>12}",
                    f"{in_words(column(some, 'pt_heads'), 1):>12}",
                    f"{in_words(column(some, 'top_fi_r')):>14}",
                    f"{in_words(column(some, 'faithfulness')):>14}",
                ]
                out.append(
                    f"{name:18}{len(some):>5}"
                    + "".join(f"{cell:>14}" for cell in cells)
                    + "".join(circuit_cells)
                    + f"  {failures(some)}"
                )
    out += ["", *verdict(grouped)]
    for title, (key, names) in LAW.items():
        out += [
            "",
            f"the law: {title}",
            f"{'diet':18}{'runs':>5}{title[:38]:>40}{'off by one':>14}{'all k':>14}",
        ]
        known = sorted(
            (name for name in names if name in grouped), key=lambda name: grouped[name][0][key]
        )
        out += [
            f"{name:18}{len(grouped[name]):>5}{grouped[name][0][key]:>40}{in_words(column(grouped[name], 'off_by_one_8')):>14}{in_words(mean_of_k(grouped[name])):>14}"
            for name in known
        ]
    out += [
        "",
        "the law: every cell that a diet holds out, and the mean of those that it shows (documents of 8 shots and a question)",
    ]
    for name in dict.fromkeys((*OTHER_CELLS, "strict", "held_out_cell")):
        some = [row for row in grouped.get(name, []) if not row["diverged"]]
        if some:
            held = {
                f"({symbol}, {wrapper})": [row["grid"][wrapper][symbol] for row in some]
                for wrapper, symbol in some[0]["held_out"]
            }
            out.append(
                f"{name:18}"
                + "   ".join(f"{cell} {in_words(values)}" for cell, values in held.items())
                + f"   shown {in_words(shown_cells(some))}"
            )
    return "\n".join(out)


def shown_cells(rows: list[dict[str, Any]]) -> list[float | None]:
    """Mean accuracy over the cells that the diet shows, for each run."""
    found: list[float | None] = []
    for row in rows:
        diet = DIETS[row["diet"]]
        shares = [
            row["grid"][wrapper][symbol]
            for wrapper in tasks.WRAPPERS
            for symbol in diet.under(wrapper)
        ]
        known = [share for share in shares if share is not None]
        found.append(sum(known) / len(known) if known else None)
    return found


def verdict(grouped: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Which ingredient is necessary, which is enough, as far as the runs say: an interval that excludes no change decides nothing."""
    if "strict" not in grouped:
        return []
    lines, full = [], mean_ci(column(grouped["strict"], "off_by_one_8"))
    for what, name in WITHOUT.items():
        if name in grouped:
            mean, half = mean_ci(column(grouped[name], "off_by_one_8"))
            apart = mean + half < full[0] - full[1]
            word = (
                "necessary"
                if apart and mean < 0.5
                else "a help"
                if apart
                else "undecided (too few seeds)"
                if math.isnan(half)
                else "not shown to be needed"
            )
            lines.append(
                f"without {what:12} off by one {in_words(column(grouped[name], 'off_by_one_8'))} (with it {in_words(column(grouped['strict'], 'off_by_one_8'))}): {word}"
            )
    enough = [
        name
        for name in SECTIONS["ladder: each adds to the one above"]
        if name in grouped
        and all(
            share is not None and share >= 0.5 for share in column(grouped[name], "off_by_one_8")
        )
    ]
    lines.append(
        f"rungs of the ladder on which every seed is right on at least half: {', '.join(enough) or 'none'}"
    )
    return lines


THRICE = dict.fromkeys(
    [name for names in SECTIONS.values() for name in names] + ["plus_plain"], 3
)  # what the claims rest on has three seeds
EXPERIMENT = Experiment(
    "diets", __doc__, tuple(DIETS), 2, 700, make, measure, rows, table, more=THRICE
)

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT))
