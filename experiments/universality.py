"""Is it always the same circuit? The same training for other models (`make universality`).

Other depths, heads, widths and positions, and no MLPs. Writes results/universality.json: whether
off-by-one addition generalises, and whether it is done by the same three groups of heads.
"""

import sys
from dataclasses import replace

import train
from experiments.experiment import Experiment, main
from experiments.measure import GROUPS, addition_and_circuit, result_row
from experiments.runs import SHORT, Row, Run
from experiments.summary import Rows, by, means, solved
from minifunc.model import ModelConfig, Transformer
from minifunc.support import tables
from minifunc.support.settings import shape_of

M = train.MODEL
WIDTH = M.n_heads * M.d_head  # of all heads together: the same, however many there are
CONFIGS: dict[str, ModelConfig] = {
    "default": M,
    **{f"{n}_layers": replace(M, n_layers=n) for n in (2, 3, 5, 6)},
    **{f"{n}_head{'s' * (n > 1)}": replace(M, n_heads=n, d_head=WIDTH // n) for n in (1, 2, 8)},
    **{f"width_{d}": replace(M, d_model=d, d_mlp=4 * d) for d in (32, 128)},
    "learned_positions": replace(M, positions="learned"),
    "attention_only": replace(M, act_fn="none"),
}
# Those that do not learn it in the usual steps, given more of them: can't they, or not yet?
TOO_SHORT = ("2_layers", "1_head", "learned_positions", "attention_only")
LONGER = {f"{name}_longer": name for name in TOO_SHORT}
TIMES = 2.5  # as many steps


def make(kind: str, seed: int, steps: int) -> Run:
    steps = round(steps * TIMES) if kind in LONGER else steps
    cfg = replace(SHORT, seed=seed, steps=steps, eval_every=max(1, steps // 2))
    return Run(f"model_{kind}", model=CONFIGS[LONGER.get(kind, kind)], train=cfg)


def rows(run: Run, measured: Row) -> Rows:
    config = {"name": run.name.removeprefix("model_")} | shape_of(run.model)
    config["n_parameters"] = sum(each.numel() for each in Transformer(run.model).parameters())
    return [result_row(run, measured, {"config": config})]


def table(rows: Rows) -> list[str]:
    columns = ["model", "runs", "solve it", "plain", "off by one"]
    columns += ["FI heads", "PT heads", "consol.", "top FI r", "faithful"]
    lines = []
    for name, some in by(rows, lambda row: row["config"]["name"]).items():
        good = solved(some)
        accuracies = means(some, "plain_8", "off_by_one_8")
        heads = means(good, *GROUPS, digits=1) + means(good, "top_fi_r", "faithfulness")
        lines.append([name, len(some), len(good), *accuracies, *heads])
    shown = [
        "off-by-one addition at 8 shots, means over seeds ± 95 % (Student's t), "
        f"{rows[0]['steps']} steps each ({TIMES} times as many where it says longer)",
        *tables.table(columns, lines),
    ]
    good = solved(rows)
    for n, words in enumerate(("FI heads", "FI and PT heads", "all three groups"), start=1):
        n_runs = sum(all(row[key] for key in [*GROUPS][:n]) for row in good)
        shown.append(f"{words}: in {n_runs} of the {len(good)} runs that do the task")
    return shown


KINDS = (*CONFIGS, *LONGER)
MORE = {"default": 5}
EXPERIMENT = Experiment(
    "universality", __doc__, addition_and_circuit, rows, table, KINDS, make, steps=700, more=MORE
)

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT))
