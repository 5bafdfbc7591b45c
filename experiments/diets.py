"""Where function induction comes from: the same model on other diets (`make diets`).

Writes results/diets.json. A ladder of diets that ends at the default; its last rung but one,
`strict`, without one ingredient; less held out; and the grid of (function × wrapper) cells cut in
other ways. One table says which ingredient is necessary and which is enough, another, the law,
what the accuracy on the unseen cell depends on.
"""

import math
import sys
from dataclasses import replace
from pathlib import Path

import torch

import tasks
import train
from experiments.catalogue import DIETS
from experiments.experiment import Experiment, main
from experiments.measure import addition_and_circuit, grid, how_many, result_row
from experiments.runs import SHORT, Row, Run
from experiments.summary import Rows, aligned, by, column, in_words, mean_ci
from minifunc.model import Transformer

LADDER = ("addition", "copied", "shifted", "mixed", "relabelled", "strict", "even")
WITHOUT = {  # ingredient: `strict` without it
    "relabelling": "no_relabel",
    "reflection": "relabelled",
    "mixing": "no_mixed",
    "copying": "no_copy",
}
LACKING = ("strict", *WITHOUT.values())
SECTIONS = {
    "ladder: each adds to the one above": LADDER,
    "`strict` without one ingredient (`relabelled` is the one without reflection)": LACKING,
    "less held out": ("strict", "held_out_cell", "held_out_half"),
}
PLUS_UNDER = ("plus_plain", "plus_relabel", "plus_reflect")  # other functions meet all wrappers
PLUS_DIETS = (*PLUS_UNDER, "no_copy", "no_relabel", "relabelled", "strict")
LAW = {  # what the accuracy may depend on: (its key in a row, diets that differ in it)
    "wrappers that `+` meets": ("plus_wrappers", PLUS_DIETS),
    "functions that are seen shifted": ("shifted_functions", ("shifted_1", "shifted_3", "strict")),
    "share of `+` among all examples": ("plus_share", ("addition_low", "strict", "addition_high")),
}
OTHER_CELLS = ("hold_minus", "hold_max_reflect")


def make(kind: str, seed: int, steps: int) -> Run:
    cfg = replace(SHORT, seed=seed, steps=steps, eval_every=max(1, steps // 2))
    return Run(f"diet_{kind}", kind, train=cfg)


def measure(model: Transformer, run: Run, folder: Path, quick: bool) -> Row:
    return addition_and_circuit(model, quick) | {"grid": grid(model, how_many(100, quick))}


def rows(run: Run, measured: Row) -> Rows:
    name = {"diet": run.diet, "seed": run.train.seed}
    return [result_row(name, run, measured | about(DIETS[run.diet]))]


def about(diet: tasks.Diet) -> Row:
    """What of a diet the law is about.

    The wrappers that `+` meets, how many functions are met shifted, the share of `+` among all
    examples, the cells held out [(wrapper, function)], and the shifts k shown with `+`.
    """
    documents = tasks.sample(diet, 4000, 9, torch.Generator().manual_seed(0))
    share = (documents.function == tasks.PLUS).float().mean().item()
    met = [wrapper for wrapper in tasks.WRAPPERS if "+" in shown_under(diet, wrapper)]
    held_out = [list(cell) for cell in diet.never if is_held_out(diet, *cell)]
    return {
        "plus_wrappers": len(met),
        "wrappers_of_plus": met,
        "shifted_functions": len(diet.under("shift")),
        "plus_share": round(share, 3),
        "held_out": held_out,
        "shifts_of_plus_shown": list(diet.shifted_addition),
    }


def shown_under(diet: tasks.Diet, wrapper: str) -> list[str]:
    """The functions that the diet shows under a wrapper, be it with some k alone."""
    shown = diet.under(wrapper)
    return [*shown, "+"] if wrapper == "shift" and diet.shifted_addition else shown


def is_held_out(diet: tasks.Diet, wrapper: str, symbol: str) -> bool:
    """Whether a cell that the diet never shows makes sense, and could have been shown."""
    makes_sense = wrapper != "base" or symbol not in tasks.TO_LETTERS
    could_be = symbol in diet.functions and symbol not in shown_under(diet, wrapper)
    return makes_sense and could_be


# ---------------------------------------------------------------- a number of each run


def mean_of_k(rows: Rows, unseen: bool = False) -> list[float | None]:
    """Accuracy at 8 shots over all k but 0; unseen: over those with which `+` was never shown."""
    means: list[float | None] = []
    for row in rows:
        shares = row["off_by_k_8"] or {}
        shown = row["shifts_of_plus_shown"] if unseen else []
        wanted = [share for k, share in shares.items() if int(k) not in shown]
        nothing = 0.0 if row["diverged"] else None
        means.append(sum(wanted) / len(wanted) if wanted else nothing)
    return means


def off_by_one(rows: Rows, shots: int) -> list[float | None]:
    return [0.0 if row["diverged"] else row["by_shots"]["1"].get(str(shots)) for row in rows]


def shown_cells(rows: Rows) -> list[float | None]:
    """Mean accuracy over the cells of the grid that the diet shows."""
    means: list[float | None] = []
    for row in rows:
        diet = DIETS[row["diet"]]
        shares: list[float | None] = []
        for wrapper in tasks.WRAPPERS:
            shares += [row["grid"][wrapper][symbol] for symbol in diet.under(wrapper)]
        known = [share for share in shares if share is not None]
        means.append(sum(known) / len(known) if known else None)
    return means


def failures(rows: Rows) -> str:
    """What the runs do instead, most frequent first, with the mean shares of wrong answers."""
    words = [row["failure"] for row in rows]
    names = sorted(set(words), key=lambda word: -words.count(word))
    if names == ["none"]:
        return "none"
    shares: dict[str, float] = {}
    for row in rows:
        for kind, share in (row.get("answers") or {}).items():
            shares[kind] = shares.get(kind, 0.0) + share / len(rows)
    wrong = [kind for kind, share in shares.items() if kind != "right" and share >= 0.1]
    wrong.sort(key=lambda kind: -shares[kind])
    detail = ", ".join(f"{kind.replace('_', ' ')} {shares[kind]:.2f}" for kind in wrong)
    return ", ".join(names) + (f" ({detail})" if detail else "")


# ---------------------------------------------------------------- the tables


def table(rows: Rows) -> str:
    grouped = by(rows, lambda row: row["diet"])
    lines = [
        "means over seeds ± 95 % (Student's t); off by one by shots, the rest at 8 shots; "
        f"{rows[0]['steps']} steps each; failing: fewer than half right"
    ]
    for title, names in SECTIONS.items():
        lines += ["", title, *section([name for name in names if name in grouped], grouped)]
    lines += ["", *verdict(grouped)]
    for title, (key, names) in LAW.items():
        known = [name for name in names if name in grouped]
        lines += ["", f"the law: {title}", *law(title, key, known, grouped)]
    lines += [
        "",
        "the law: every cell that a diet holds out, and the mean of those that it shows "
        "(documents of 8 shots and a question)",
        *held_out_cells(grouped),
    ]
    return "\n".join(lines)


def section(names: list[str], grouped: dict[str, Rows]) -> list[str]:
    """A line for each diet: accuracies, numbers of heads, effects, and what failing runs do."""
    shots = [f"{n} shots" for n in train.SHOTS]
    titles = ["diet", "runs", "plain", *shots, "unseen k", "FI", "PT", "top FI r", "faithful"]
    widths = [-18, 5, 14, *(14 for _ in shots), 14, 12, 12, 14, 14]
    lines = [aligned(titles, widths) + "  does instead"]
    for name in names:
        rows = grouped[name]
        cells = [name, len(rows), in_words(column(rows, "plain_8"))]
        cells += [in_words(off_by_one(rows, n)) for n in train.SHOTS]
        cells += [in_words(mean_of_k(rows, unseen=True))]
        cells += [in_words(column(rows, key), digits=1) for key in ("fi_heads", "pt_heads")]
        cells += [in_words(column(rows, key)) for key in ("top_fi_r", "faithfulness")]
        lines.append(aligned(cells, widths) + f"  {failures(rows)}")
    return lines


def verdict(grouped: dict[str, Rows]) -> list[str]:
    """Which ingredient is necessary, which is enough, as far as the runs say."""
    if "strict" not in grouped:
        return []
    shares = {name: column(rows, "off_by_one_8") for name, rows in grouped.items()}
    lines = []
    for what, name in WITHOUT.items():
        if name in shares:
            word = need(shares[name], shares["strict"])
            without, with_it = in_words(shares[name]), in_words(shares["strict"])
            lines.append(f"without {what:12} off by one {without} (with it {with_it}): {word}")
    enough = [name for name in LADDER if min(shares.get(name, [0.0])) >= 0.5]
    rungs = "rungs of the ladder on which every seed is right on at least half"
    return [*lines, f"{rungs}: {', '.join(enough) or 'none'}"]


def need(without: list[float | None], full: list[float | None]) -> str:
    """How much an ingredient is needed. Intervals that overlap decide nothing."""
    mean, half = mean_ci(without)
    full_mean, full_half = mean_ci(full)
    if mean + half < full_mean - full_half:
        return "necessary" if mean < 0.5 else "a help"
    return "undecided (too few seeds)" if math.isnan(half) else "not shown to be needed"


def law(title: str, key: str, names: list[str], grouped: dict[str, Rows]) -> list[str]:
    """Accuracy of some diets by one of their properties, from the lowest on."""
    widths = [-18, 5, 40, 14, 14]
    lines = [aligned(["diet", "runs", title[:38], "off by one", "all k"], widths)]
    for name in sorted(names, key=lambda name: grouped[name][0][key]):
        rows = grouped[name]
        accuracies = [in_words(column(rows, "off_by_one_8")), in_words(mean_of_k(rows))]
        lines.append(aligned([name, len(rows), rows[0][key], *accuracies], widths))
    return lines


def held_out_cells(grouped: dict[str, Rows]) -> list[str]:
    """Accuracy on each cell that a diet holds out, and on all that it shows."""
    lines = []
    for name in (*OTHER_CELLS, "strict", "held_out_cell"):
        rows = [row for row in grouped.get(name, []) if not row["diverged"]]
        if rows:
            cells = []
            for wrapper, symbol in rows[0]["held_out"]:
                shares = in_words([row["grid"][wrapper][symbol] for row in rows])
                cells.append(f"({symbol}, {wrapper}) {shares}")
            cells.append(f"shown {in_words(shown_cells(rows))}")
            lines.append(f"{name:18}" + "   ".join(cells))
    return lines


MORE = dict.fromkeys((*sum(SECTIONS.values(), ()), "plus_plain"), 3)  # what the claims rest on
EXPERIMENT = Experiment(
    "diets", __doc__, tuple(DIETS), make, measure, rows, table, seeds=2, steps=700, more=MORE
)

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT))
