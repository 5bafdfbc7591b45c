"""Times the path patcher and a training step against what people use today.

    sweeps          all heads → logits, or v, q, k: against the published two-pass loop on
                    TransformerLens 2.18 and on our own model
    training step   against an eager step of the same model that scores every position
    memory          peak of a sweep against its budget
    on CUDA         also models of GPT-2 small's size and of 1.2 billion weights, in float32,
                    bfloat16 and TF32, with the error of the effects against float64
    rate share      of a sweep: its operations a second beside those of one large product

All sides have the same weights and prompts, and their own two cached runs are counted. The loops
are timed on paths spread over the model, and scaled to all: every path costs them the same. Sides
take turns, and times are medians. Exit code 1: numbers differ by more than 1e-4 in float32. `make
bench` installs the other libraries; without them, their rows are left out.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib import metadata
from itertools import product
from pathlib import Path

import torch
from tqdm import tqdm

import train
from experiments import bench_loops, bench_sweep, bench_train
from experiments.bench_sweep import ARITHMETIC, INPUTS, Sweep, every_input, peak_memory
from experiments.runs import Row, made_on
from minifunc.ablation import all_heads
from minifunc.model import ModelConfig
from minifunc.patching import HeadInput
from minifunc.support.errors import UserError, command
from minifunc.support.files import make_folder, save_json
from minifunc.support.flags import Parser, pick_device
from minifunc.support.runs import RESULTS
from minifunc.support.settings import shape_of
from minifunc.support.tables import fitted, table

TOLERANCE = 1e-4  # float32: logits of the patcher, loss and gradients of the training step
ERROR_SHARE = 0.05  # of the largest effect: with larger errors a row is warned of
DEFAULT = train.MODEL


def shaped(n_layers: int, n_heads: int, width: int) -> ModelConfig:
    more = {"d_model": width, "d_head": width // n_heads, "d_mlp": 4 * width}
    return replace(DEFAULT, n_layers=n_layers, n_heads=n_heads, **more)


LARGE, TINY = shaped(6, 8, 512), replace(shaped(2, 2, 16), d_mlp=32)
GROUPED = {"n_kv_heads": 3, "d_mlp": 1536, "d_vocab": 49152, "act_fn": "silu"}
SMOLLM2 = replace(shaped(30, 9, 576), **GROUPED, gated_mlp=True, tied_embeddings=True)
BUDGETS = (0.125, 0.25, 0.5, 1.0)  # GiB
SHAPES = ((12, 12, 768), (24, 16, 2048))  # layers, heads, d_model: of a GPU


def comparisons() -> list[Sweep]:
    """Sweeps against the loops."""
    logits, inputs = Sweep(DEFAULT), Sweep(DEFAULT, every_input(DEFAULT), work=INPUTS)
    large = Sweep(LARGE, name="6x8x512", n_timed=3)
    of_large = {"receivers": every_input(LARGE), "work": INPUTS, "n_prompts": 5, "n_timed": 6}
    real = Sweep(SMOLLM2, name="SmolLM2's shape", n_prompts=10, n_timed=2)
    return [logits, inputs, large, replace(large, **of_large), real]


def shapes(sizes: Sequence[tuple[int, int, int]]) -> list[Sweep]:
    """Sweeps of large models: to the logits, to v of a head in the middle and of one on top."""
    sweeps = []
    for size, dtype in product(sizes, ARITHMETIC):
        more = {"name": "{}x{}x{}".format(*size), "dtype": dtype, "n_timed": 2, "n_checked": 4}
        logits = Sweep(shaped(*size), **more)
        sweeps.append(logits)
        for layer in (size[0] // 2, size[0] - 1):
            to, work = (HeadInput(layer, 0, "v"),), f"all heads → v of {layer}.0"
            sweeps.append(replace(logits, receivers=to, work=work))
    return sweeps


def memory_cases() -> list[Sweep]:
    """Those whose peak is held against each of BUDGETS."""
    large = Sweep(LARGE, name="6x8x512")
    heads = [(1, 0), (LARGE.n_layers - 1, 0)]
    inputs = tuple(HeadInput(*head, which) for head in heads for which in "vqk")
    work = "all heads → v, q, k of two heads"
    return [Sweep(DEFAULT), large, replace(large, receivers=inputs, n_prompts=25, work=work)]


def make_row(work: str, model: Row, other: str, seconds: tuple[float, float], diff: float) -> Row:
    """seconds: ours and the other's."""
    ours_s, other_s = seconds
    times = {"ours_s": ours_s, "other": other, "other_s": other_s, "ratio": other_s / ours_s}
    return {"work": work, "model": model, **times, "max_abs_diff": diff, "peak_gib": None}


def compare(sweep: Sweep, device: torch.device, repeats: int) -> list[Row]:
    """One row for each other side that is there."""
    torch.cuda.empty_cache()  # the budget of a sweep is a share of what is free
    model, pairs, paths = sweep.model(device), sweep.pairs(), sweep.timed_paths
    found: Row = {"pairs": len(sweep.paths), "pairs_timed": len(paths), "dtype": sweep.dtype}
    found |= {"receivers": len(sweep.receivers), "peak_gib": peak_memory(sweep, device)}
    found |= sweep.error(model) if sweep.n_checked else {}
    sides = bench_loops.sides(model, pairs)
    effects = {}  # by receiver
    works = {"ours": lambda: effects.update(sweep.run(model, pairs))}
    for other, side in sides.items():
        works |= {(other, "start"): side.start, (other, "paths"): partial(side.ask, paths)}
    times = bench_sweep.medians_in_turn(works, device, repeats)
    heads = all_heads(sweep.cfg)
    per_prompt = [effects[receiver].per_prompt[heads.index(head)] for head, receiver in paths]
    ours = torch.stack(per_prompt)  # [path, n_prompts]
    found["rate_share"] = sweep.operations(model) / times["ours"] / sweep.product_rate(device)
    rows = []
    for other, side in sides.items():
        seconds_a_path = times[other, "paths"] / len(paths)
        seconds = (times["ours"], times[other, "start"] + seconds_a_path * len(sweep.paths))
        difference = (ours - side.changes.double().cpu()).abs().max().item()
        rows.append(make_row(sweep.work, sweep.described(), other, seconds, difference) | found)
    return rows


def timed_rows(device: torch.device, repeats: int, quick: bool) -> list[Row]:
    """The rows of all that is timed."""
    sweeps = comparisons()
    if device.type == "cuda":
        sweeps += shapes(SHAPES)
    model, cfg = DEFAULT, train.TrainConfig()
    if quick:
        live = Sweep(TINY, every_input(TINY), 3, shots=2, work=INPUTS, name="tiny", n_timed=2)
        sweeps = [live, *(replace(x, n_prompts=3, shots=2) for x in shapes([(3, 2, 32)]))]
        model, cfg = TINY, train.TrainConfig(documents=2, examples=3)
    rows = []
    for sweep in tqdm(sweeps, desc="bench", disable=None):
        try:
            rows += compare(sweep, device, repeats)
        except (torch.OutOfMemoryError, MemoryError):
            skipped = f"{sweep.name}, {sweep.dtype}, {sweep.work}: skipped, too little memory"
            tqdm.write(skipped, file=sys.stderr)
    torch.set_float32_matmul_precision("highest")
    step = bench_train.compare_steps(model, cfg, device, 5 * repeats)
    named, other = shape_of(model) | {"name": "default"}, "eager step scoring every position"
    return [*rows, make_row("training step", named, other, *step)]


def memory_rows(device: torch.device) -> list[Row]:
    """Peak memory of a sweep against the budget asked for."""
    rows = []
    for sweep in memory_cases():
        about = {"work": sweep.work, "model": sweep.name, "prompts": sweep.n_prompts}
        for budget in BUDGETS:
            peak = peak_memory(replace(sweep, max_memory=budget), device)
            rows.append(about | {"budget_gib": budget, "peak_gib": peak})
    return rows


def rounded(result: Row) -> Row:
    """Four significant digits are more than a time can bear."""
    return json.loads(json.dumps(result), parse_float=lambda text: float(f"{float(text):.4g}"))


def show(result: Row) -> None:
    print("{processor}, {device}, {threads} threads".format(**result["hardware"]))
    compared = []
    for row in result["rows"]:
        small = {key: f"{row[key]:.0e}" for key in ("max_abs_diff", "error_share") if key in row}
        compared.append(row | small | {"model": row["model"]["name"]})
    columns = "model work dtype other ours_s other_s ratio rate_share max_abs_diff peak_gib"
    show_table(compared, [*columns.split(), "error_share"], left=4)
    if result["memory"]:
        show_table(result["memory"], ["work", "model", "budget_gib", "peak_gib"], left=2)
    for about in filter(None, dict.fromkeys(map(warning, result["rows"]))):
        print(about)


def warning(row: Row) -> str:
    """Of effects that are off by more than ERROR_SHARE; else empty."""
    share = row.get("error_share", 0.0)
    if share <= ERROR_SHARE:
        return ""
    what = f"{row['model']['name']}, {row['dtype']}, {row['work']}"
    cause = "MLP(x + delta) - MLP(x) is a small difference of rounded numbers"
    return f"warning: {what}: off by {share:.0%} of the largest effect. {cause}: use float32"


def show_table(rows: list[Row], keys: list[str], left: int) -> None:
    """These values of the rows, a dash where one has none."""
    titles = [key.replace("_", " ") for key in keys]
    print(fitted(table(titles, [map(row.get, keys) for row in rows], left)))


@command
def main(argv: list[str] | None = None) -> int:
    parser = Parser("experiments.bench", __doc__)
    flag = parser.add_argument
    flag("--device", default="auto", help="auto, cpu, cuda, mps (default: %(default)s)")
    flag("--repeats", type=int, default=3, help="of which the median counts (default: %(default)s)")
    flag("--quick", action="store_true", help="a tiny model, to see that it runs; no real times")
    written = "default: results/bench.json, on CUDA bench_cuda.json; no file with --quick"
    flag("--json", type=Path, help=written)
    flags = parser.parse_args(argv)
    device = pick_device(flags.device, float64=True)
    if flags.repeats < 1:
        raise UserError("--repeats must be at least 1")
    rows = timed_rows(device, flags.repeats, flags.quick)
    memory = [] if flags.quick else memory_rows(device)
    made = made_on(device)
    lens_version = metadata.version("transformer-lens") if bench_loops.lens else None
    made["versions"]["transformer_lens"] = lens_version
    result = rounded(made | {"rows": rows, "memory": memory})
    if flags.json or not flags.quick:
        name = "bench_cuda.json" if device.type == "cuda" else "bench.json"
        path = flags.json or RESULTS / name
        make_folder(path.parent)
        save_json(path, result)
    show(result)
    print("next: docs/performance.md, which says what was measured")
    exact = [row for row in rows if row.get("dtype", "float32") == "float32"]
    return int(not all(row["max_abs_diff"] <= TOLERANCE for row in exact))


if __name__ == "__main__":
    sys.exit(main())
