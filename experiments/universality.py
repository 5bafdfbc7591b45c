"""Is it always the same circuit? Other seeds, depths, heads, widths, positions, no MLPs (`make universality` writes
results/universality.json): does off-by-one addition generalise, by the same three groups of heads, in which layers?
"""

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import train
from experiments.measure import FEW, addition, circuit
from experiments.runs import SHORT, Experiment, Run, by, in_words, main, provenance
from minifunc.model import ModelConfig, Transformer

M = train.MODEL
WIDTH = M.n_heads * M.d_head  # all heads together: as wide, however many there are
CONFIGS: dict[str, ModelConfig] = {
    "default": M,
    **{f"{n}_layers": replace(M, n_layers=n) for n in (2, 3, 5, 6)},
    **{f"{n}_head{'s' * (n > 1)}": replace(M, n_heads=n, d_head=WIDTH // n) for n in (1, 2, 8)},
    **{f"width_{d}": replace(M, d_model=d, d_mlp=4 * d) for d in (32, 128)},
    "learned_positions": replace(M, positions="learned"),
    "attention_only": replace(M, act_fn="none"),
}
LONGER = {
    f"{name}_longer": name for name in ("2_layers", "1_head", "learned_positions", "attention_only")
}  # can't they, or not yet?
TIMES = 2.5  # as many steps


def make(name: str, seed: int, steps: int) -> Run:
    steps = round(steps * TIMES) if name in LONGER else steps
    return Run(
        f"model_{name}",
        model=CONFIGS[LONGER.get(name, name)],
        train=replace(SHORT, seed=seed, steps=steps, eval_every=max(1, steps // 2)),
    )


def measure(model: Transformer, run: Run, folder: Path, quick: bool) -> dict[str, Any]:
    return addition(model, FEW if quick else 200) | circuit(
        model, FEW if quick else 500, FEW if quick else 50
    )


def rows(run: Run, measured: dict[str, Any]) -> list[dict[str, Any]]:
    name = run.name.removeprefix("model_")
    nothing = {
        key: None
        for key in (
            "plain_8",
            "off_by_one_8",
            "off_by_k_8",
            "fi_heads",
            "pt_heads",
            "consolidation_heads",
            "top_fi_r",
            "faithfulness",
        )
    } | {"failure": "diverged"}
    n_parameters = sum(parameter.numel() for parameter in Transformer(run.model).parameters())
    return [
        {
            "config": {"name": name} | asdict(run.model) | {"n_parameters": n_parameters},
            "seed": run.train.seed,
        }
        | nothing
        | measured
        | provenance(run)
    ]


def layers_of(rows: list[dict[str, Any]], key: str) -> str:
    """How many runs have heads of a group in each layer: `3 in layer 2, 1 in layer 3`."""
    layers = [sorted({int(head.split(".")[0]) for head in row[key] or ()}) for row in rows]
    met = sorted({layer for some in layers for layer in some})
    return ", ".join(f"{layer} ({sum(layer in some for some in layers)})" for layer in met) or "–"


def table(rows: list[dict[str, Any]]) -> str:
    out = [
        f"off-by-one addition at 8 shots, means over seeds ± 95 % (Student's t), {rows[0]['steps']} steps each ({TIMES} times as many where it says longer); layers: in how many runs a group has a head there"
    ]
    out.append(
        f"{'model':26}{'runs':>5}{'solve it':>10}{'plain':>14}{'off by one':>14}{'FI heads':>12}{'PT heads':>12}{'consol.':>12}{'top FI r':>14}{'faithful':>14}   FI in layers; PT in layers; consolidation in layers"
    )
    for name, some in by(rows, lambda row: row["config"]["name"]):
        good = [row for row in some if not row["diverged"] and row["off_by_one_8"] >= 0.5]
        shares = [
            in_words([0.0 if row["diverged"] else row[key] for row in some])
            for key in ("plain_8", "off_by_one_8")
        ]
        counts = [
            in_words([len(row[key]) for row in good], 1)
            for key in ("fi_heads", "pt_heads", "consolidation_heads")
        ]
        rest = [in_words([row[key] for row in good]) for key in ("top_fi_r", "faithfulness")]
        places = "; ".join(
            layers_of(good, key) for key in ("fi_heads", "pt_heads", "consolidation_heads")
        )
        out.append(
            f"{name:26}{len(some):>5}{f'{len(good)} of {len(some)}':>10}"
            + "".join(f"{cell:>14}" for cell in shares)
            + "".join(f"{cell:>12}" for cell in counts)
            + "".join(f"{cell:>14}" for cell in rest)
            + f"   {places}"
        )
    solved = [row for row in rows if not row["diverged"] and row["off_by_one_8"] >= 0.5]
    for word, keys in (
        ("FI heads", ("fi_heads",)),
        ("FI and PT heads", ("fi_heads", "pt_heads")),
        ("all three groups", ("fi_heads", "pt_heads", "consolidation_heads")),
    ):
        out.append(
            f"{word}: in {sum(all(row[key] for key in keys) for row in solved)} of the {len(solved)} runs that do the task"
        )
    return "\n".join(out)


EXPERIMENT = Experiment(
    "universality",
    __doc__,
    (*CONFIGS, *LONGER),
    3,
    700,
    make,
    measure,
    rows,
    table,
    more={"default": 5},
)

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT))
