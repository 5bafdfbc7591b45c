"""Ten seeds of the default, traced (a part of `make dependability`, which trains them).

Writes results/seeds.json, the circuit of each seed, and results/averaging.json, what its FI heads
compute. The settings were chosen on seeds 100 to 107; these are 0 to 9.
"""

import sys
from pathlib import Path

from torch import Generator

import patch
import tasks
from experiments.experiment import Experiment, main
from experiments.measure import CRITERIA, FEW, GROUPS, SHOTS
from experiments.runs import SWEEP_GIB, Row, Run, provenance
from experiments.summary import Rows, by, in_words
from minifunc.ablation import all_heads
from minifunc.analysis import shift_swap
from minifunc.analysis.rows import as_effects
from minifunc.model import Transformer
from minifunc.support import tables
from minifunc.support.files import load_json, save_json
from minifunc.support.runs import weights_hash

UNDER = ("base_values", "other_operands")  # what the heads outside a circuit send


def traced(model: Transformer, folder: Path, quick: bool) -> Row:
    """What patch.py finds in a run; it is kept in the run's folder."""
    path = folder / ("circuit_quick.json" if quick else "circuit.json")
    circuit = load_json(path) if path.exists() else {}
    if circuit.get("weights") != weights_hash(model.state_dict()):
        study = patch.Study(prompts=FEW if quick else patch.Study.prompts, max_memory=SWEEP_GIB)
        circuit = patch.trace(model, study, CRITERIA, lambda *_: None)
        save_json(path, circuit)
    return circuit


JUDGED = ("faithfulness", "faithfulness_ci", "circuit_accuracy")
JUDGED += ("others_alone", "random_circuits", "random_lower")  # the controls beside it


def circuit_of(circuit: Row) -> Row:
    """What a row of seeds.json holds; without a circuit, what judges it is None."""
    effects = as_effects(circuit["effects"]["logits"]).named()
    fi = circuit["groups"]["function_induction"]
    kept = {name: circuit[name] for name in ("accuracy", "F", "F_ci", "groups", "reuse")}
    kept |= {"fi_r": {head: effects[head] for head in fi}}
    kept |= {"fi_r_ci": {head: circuit["r_ci"][head] for head in fi}}
    kept |= dict.fromkeys(("ablation", "shift_swap", "completeness", *UNDER))
    if fi:
        evaluation = circuit["evaluation"]
        kept |= {name: evaluation[name] for name in ("ablation", "shift_swap", "completeness")}
        for name, row in zip(UNDER, evaluation["circuits"]):  # the first are all groups together
            kept[name] = {each: row[each] for each in JUDGED}
    return kept


def untrained(run: Run, quick: bool) -> Row:
    """The null of `shift_swap`: each head of the model as it was drawn, before any training.

    highest: of the lower ends of the heads' intervals (the lower of both contrasts), the highest.
    """
    model = Transformer(run.model, Generator().manual_seed(run.train.seed)).requires_grad_(False)
    study, heads = patch.Study(shots=2 if quick else SHOTS), all_heads(run.model)
    found = shift_swap.study(tasks, model.eval(), heads, study)["shift_swap"]
    alone = [row for row in found["rows"] if row["swapped"] == "one_fi_head"]
    lows = [min(row[how]["ci"][0] for how in ("answers", "operands")) for row in alone]
    n_passing = sum(row["passes"] for row in alone)
    return {"n_heads": len(alone), "n_passing": n_passing, "highest": max(lows)}


def circuit_and_null(model: Transformer, run: Run, folder: Path, quick: bool) -> Row:
    circuit = traced(model, folder, quick)
    return circuit_of(circuit) | {"untrained": untrained(run, quick)}


def averaged(model: Transformer, run: Run, folder: Path, quick: bool) -> Row:
    return {"averaging": traced(model, folder, quick).get("averaging")}


def seed_rows(run: Run, measured: Row) -> Rows:
    return [{"seed": run.train.seed} | measured | provenance(run)]


def averaging_rows(run: Run, measured: Row) -> Rows:
    """One row for each mixture, and one for all else."""
    found = dict(measured.get("averaging") or {})
    rows = [*found.pop("mixtures", []), {"offsets": None} | found]
    made = {name: value for name, value in measured.items() if name != "averaging"}
    return [{"seed": run.train.seed} | row | made | provenance(run) for row in rows]


def seeds_table(rows: Rows) -> list[str]:
    lines = []
    for row in [row for row in rows if not row["diverged"]]:
        groups = [", ".join(row["groups"][group]) or "–" for group in GROUPS.values()]
        shares = [row[name]["faithfulness"] if row[name] else "–" for name in UNDER]
        lines.append([row["seed"], *groups, *shares])
    columns = ["seed", *map(tables.words, GROUPS.values()), *map(tables.words, UNDER)]
    return [
        "the circuit of off by one, 8 shots; how faithful all groups alone are, by what others "
        "send",
        *tables.table(columns, lines, left=4),
    ]


def averaging_table(rows: Rows) -> list[str]:
    found = [row for row in rows if row["offsets"]]
    if not found:
        return ["no run has a circuit"]
    names = list(found[0]["r2"])
    lines = []
    for offsets, some in by(found, lambda row: str(row["offsets"]).strip("[]")).items():
        r2 = [in_words([row["r2"][name] for row in some]) for name in names]
        unseen = in_words([row["unseen_offset_share"] for row in some])
        lines.append([offsets, len(some), *r2, unseen])
    ahead = sum(max(row["r2"], key=row["r2"].get) == "attention" for row in found)
    return [
        "R² of forecasts of what answers to mixed rules are off by, means over seeds ± 95 %; the "
        "share of answers that are off by what no example shows",
        *tables.table(["off by", "seeds", *map(tables.words, names), "unseen"], lines),
        f"attention is ahead of all other forecasts in {ahead} of {len(found)} rows",
    ]


EXPERIMENT = Experiment("seeds", __doc__, circuit_and_null, seed_rows, seeds_table, seeds=10)
AVERAGING = Experiment("averaging", __doc__, averaged, averaging_rows, averaging_table, seeds=10)

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT) or main(AVERAGING))
