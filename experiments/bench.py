"""Times the path patcher and a training step against what people use today.

Same machine, same run, same weights, same prompts:

    all heads → logits, or v, q, k   against the published two-pass loop on TransformerLens 2.18,
                                     and the same loop on our own model; with frozen MLPs against
                                     auto-circuit; then with layers, heads, width and prompt length
                                     growing, one at a time
    training step                    against a plain eager step that scores every position
    two processes                    of one thread each against one
    memory                           peak of a sweep in a fresh process against its budget
    --road                           seconds of training until off-by-one addition, never trained
                                     on, passes .95

Each side makes its own two cached runs, and they are counted. The loops are timed on paths spread
over the model, and scaled to all of them: every path costs them the same. Sides take turns, and
times are medians. It is checked that the numbers agree to 1e-4; otherwise the exit code is 1.
`make bench` runs it where the libraries are installed; without them, their rows are left out.
"""

import argparse
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import tasks
import train
from experiments import bench_loops, bench_train
from experiments.bench_processes import compare_processes, peak_memory
from experiments.bench_sweep import (
    Head,
    Receiver,
    SquareProduct,
    Sweep,
    every_input,
    medians_in_turn,
    sweep_flops,
)
from minifunc.model import ModelConfig
from minifunc.patching import Effects, HeadInput
from minifunc.support.errors import UserError, run_main
from minifunc.support.files import save_json
from minifunc.support.flags import pick_device

TOLERANCE = 1e-4  # float32: logits of the patcher, loss and gradients of the training step
DEFAULT = train.MODEL
SMALL = replace(DEFAULT, n_heads=4, d_head=16)  # what growth starts from
LARGE = replace(DEFAULT, n_layers=6, n_heads=8, d_model=512, d_head=64, d_mlp=2048)
TINY = replace(DEFAULT, n_layers=2, n_heads=2, d_model=16, d_head=8, d_mlp=32)
LOGITS, INPUTS = "all heads → logits", "all heads → v, q, k of every head"
BUDGETS = (0.125, 0.25, 0.5, 1.0)  # GiB

Row = dict[str, Any]  # of results/bench.json
Measurement = tuple[str, Callable[[], list[Row]]]  # the name that --only looks in, and the work


# ---------------------------------------------------------------- what is timed


@dataclass(frozen=True)
class Comparison:
    """A sweep against the loops, each timed on n_paths of its paths. varies: what grows."""

    work: str
    model: str
    sweep: Sweep
    n_paths: int = 12
    varies: str | None = None

    @property
    def paths(self) -> list[tuple[Head, Receiver]]:
        """The paths that each loop is timed on, spread over all that are swept."""
        paths, n = self.sweep.paths, self.n_paths
        return [paths[(2 * index + 1) * len(paths) // (2 * n)] for index in range(n)]


def comparisons() -> list[Comparison]:
    inputs = Sweep(DEFAULT, every_input(DEFAULT))
    large_inputs = Sweep(LARGE, every_input(LARGE), n_prompts=5)
    frozen, frozen_inputs = Sweep(DEFAULT, freeze_mlps=True), replace(inputs, freeze_mlps=True)
    cases = [
        Comparison(LOGITS, "default", Sweep(DEFAULT)),
        Comparison(INPUTS, "default", inputs),
        Comparison(LOGITS, "6x8x512", Sweep(LARGE), n_paths=3),
        Comparison(INPUTS, "6x8x512", large_inputs, n_paths=6),
        Comparison(f"{LOGITS}, frozen MLPs", "default", frozen),
        Comparison(f"{INPUTS}, frozen MLPs", "default", frozen_inputs),
    ]
    for n in (2, 4, 8, 16):
        cases.append(grown("n_layers", n, replace(SMALL, n_layers=n)))
    for n in (2, 4, 8, 16):
        cases.append(grown("n_heads", n, replace(SMALL, n_heads=n, d_head=64 // n)))
    for d in (32, 64, 128, 256):
        cases.append(grown("d_model", d, replace(SMALL, d_model=d, d_head=d // 4, d_mlp=4 * d)))
    for n in (2, 4, 8, 16):
        cases.append(grown("shots", n, SMALL, shots=n))
    return cases


def grown(factor: str, size: int, cfg: ModelConfig, shots: int = 8) -> Comparison:
    sweep = Sweep(cfg, n_prompts=50, shots=shots)
    return Comparison(LOGITS, f"{factor} {size}", sweep, n_paths=4, varies=factor)


def memory_cases() -> list[tuple[str, str, Sweep]]:
    """(work, model, sweep) whose peak is held against each of BUDGETS."""
    heads = [(1, 0), (LARGE.n_layers - 1, 0)]
    inputs = tuple(HeadInput(*head, which) for head in heads for which in "vqk")
    return [
        (LOGITS, "default", Sweep(DEFAULT)),
        (LOGITS, "6x8x512", Sweep(LARGE)),
        ("all heads → v, q, k of two heads", "6x8x512", Sweep(LARGE, inputs, n_prompts=25)),
    ]


def measurements(device: torch.device, repeats: int, quick: bool) -> list[Measurement]:
    """All that gives rows. quick: something tiny of each kind."""
    cases, model, cfg = comparisons(), DEFAULT, train.TrainConfig()
    product_size = 8192 if device.type == "cuda" else 2048
    if quick:
        live = Comparison(INPUTS, "tiny", Sweep(TINY, every_input(TINY), 3, shots=2), n_paths=2)
        frozen = replace(live.sweep, freeze_mlps=True)
        cases = [live, replace(live, work=f"{INPUTS}, frozen MLPs", sweep=frozen)]
        model, cfg, product_size = TINY, train.TrainConfig(documents=2, examples=3), 64
    product = SquareProduct(product_size, device)
    found: list[Measurement] = []
    for case in cases:
        name = f"{case.work} {case.model}"
        found.append((name, partial(compare, case, device, repeats, product)))
    found.append(("training step", partial(training_step, model, cfg, device, 5 * repeats)))
    if device.type == "cpu" and not quick:
        found.append(("two processes", partial(two_processes, repeats)))
    return found


# ---------------------------------------------------------------- rows of results/bench.json


def make_row(work: str, model: Row, other: str, seconds: tuple[float, float], diff: float) -> Row:
    """seconds: ours and the other's."""
    ours_s, other_s = seconds
    times = {"ours_s": ours_s, "other": other, "other_s": other_s, "ratio": other_s / ours_s}
    return {"work": work, "model": model, **times, "max_abs_diff": diff, "peak_gib": None}


def shape(name: str, sweep: Sweep) -> Row:
    sizes = ("n_layers", "n_heads", "d_model", "d_head", "d_mlp")
    cfg = {size: getattr(sweep.cfg, size) for size in sizes}
    return {"name": name, **cfg, "prompts": sweep.n_prompts, "tokens": tasks.n_tokens(sweep.shots)}


def compare(
    case: Comparison, device: torch.device, repeats: int, product: SquareProduct
) -> list[Row]:
    """One row for each other side that is there."""
    sweep, paths = case.sweep, case.paths
    model, pairs = sweep.model(device), sweep.pairs()
    sides = bench_loops.sides(model, pairs, sweep.freeze_mlps)
    if not sides:
        return []  # the library is not installed
    effects: dict[Receiver, Effects] = {}
    works = {"ours": lambda: effects.update(sweep.run(model, pairs)), "product": product}
    for label, side in sides.items():
        works |= {f"{label}: start": side.start, f"{label}: paths": partial(side.ask, paths)}
    times = medians_in_turn(works, device, repeats)
    ours = [effects[receiver].per_prompt[sweep.heads.index(head)] for head, receiver in paths]
    found = {"peak_gib": peak_memory(sweep, device)}
    found["largest_effect"] = max(change.abs().max().item() for change in ours)
    found |= details(case, times, product)
    rows = []
    for label, side in sides.items():
        side.close()
        seconds_a_path = times[f"{label}: paths"] / len(paths)
        other_s = times[f"{label}: start"] + seconds_a_path * len(sweep.paths)
        theirs = [change.double().cpu() for change in side.changes]
        difference = max((a - b).abs().max().item() for a, b in zip(ours, theirs))
        seconds = (times["ours"], other_s)
        row = make_row(case.work, shape(case.model, sweep), label, seconds, difference)
        rows.append(row | found)
    return rows


def details(case: Comparison, times: dict[str, float], product: SquareProduct) -> Row:
    """What was timed, and how near our sweep comes to the machine's rate in a matrix product."""
    sweep = case.sweep
    found: Row = {"pairs": len(sweep.paths), "pairs_timed": case.n_paths}
    found["receivers"] = len(sweep.receivers)
    if not sweep.freeze_mlps:  # the operations are counted for live MLPs
        found["gflop_timed"] = sweep_flops(sweep) / 1e9
        found["product_gflop_per_s"] = rate = product.gflop / times["product"]
        found["share_of_product_rate"] = found["gflop_timed"] / times["ours"] / rate
    return found | ({"varies": case.varies} if case.varies else {})


def training_step(
    model: ModelConfig, cfg: train.TrainConfig, device: torch.device, repeats: int
) -> list[Row]:
    times, difference = bench_train.compare_steps(model, cfg, device, repeats)
    seconds = (times["ours"], times["plain"])
    other, named = "plain eager step scoring every position", asdict(model) | {"name": "default"}
    row = make_row("training step", named, other, seconds, difference)
    n_tokens = cfg.documents * (1 + tasks.EXAMPLE * cfg.examples)
    rates = {
        "ours_tokens_per_s": n_tokens / seconds[0],
        "other_tokens_per_s": n_tokens / seconds[1],
    }
    return [row | rates]


def two_processes(repeats: int) -> list[Row]:
    sweep = Sweep(DEFAULT, every_input(DEFAULT))
    one_s, two_s, difference = compare_processes(sweep, repeats)
    work, other = "two processes: all heads → v, q, k", "one process, one thread each"
    return [make_row(work, shape("default", sweep), other, (two_s, one_s), difference)]


def memory_rows(only: str, device: torch.device) -> list[Row]:
    """Peak memory of a sweep against the budget asked for."""
    rows = []
    for work, model, sweep in memory_cases():
        if only not in f"memory {work} {model}":
            continue
        for budget in BUDGETS:
            peak = peak_memory(replace(sweep, max_memory=budget), device)
            row = {"work": work, "model": model, "prompts": sweep.n_prompts, "budget_gib": budget}
            rows.append(row | {"peak_gib": peak, "within": peak <= budget})
    return rows


def hardware(device: torch.device) -> Row:
    processor, cpuinfo = platform.processor(), Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        names = [line.split(":")[1].strip() for line in lines if "model name" in line]
        processor = names[0] if names else processor
    if device.type == "cuda":
        processor = torch.cuda.get_device_name(device)
    return {"processor": processor, "threads": torch.get_num_threads(), "device": str(device)}


def versions() -> dict[str, str | None]:
    """Of the libraries that took part."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformer_lens": metadata.version("transformer-lens") if bench_loops.lens else None,
        "auto_circuit": metadata.version("auto-circuit") if bench_loops.graph_utils else None,
    }


# ---------------------------------------------------------------- the command


def rounded(value: Any) -> Any:
    """Four significant digits are more than a time can bear."""
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [rounded(entry) for entry in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


COLUMNS = {  # of a row, by the key that it must have
    "model": "{model[name]:12} {work:48} ours {ours_s:8.3f} s  {other:40} {other_s:9.2f} s",
    "ratio": "  ratio {ratio:6.1f}  max diff {max_abs_diff:.0e}",
    "peak_gib": "  peak {peak_gib:6.3f} GiB",
    "share_of_product_rate": "  {share_of_product_rate:4.0%} of the {product_gflop_per_s:.0f} "
    "GFLOP/s of a matrix product",
    "ours_tokens_per_s": "  {ours_tokens_per_s:.0f} tokens/s against {other_tokens_per_s:.0f}",
}
MEMORY = "{model:12} {work:48} budget {budget_gib:6.3f} GiB  peak {peak_gib:6.3f} GiB"


def show(result: Row) -> None:
    print("{processor}, {device}, {threads} threads".format(**result["hardware"]))
    for row in result["rows"]:
        there = [text for key, text in COLUMNS.items() if row.get(key) is not None]
        print("".join(there).format(**row))
    for row in result["memory"]:
        print(MEMORY.format(**row) + ("" if row["within"] else "  TOO MUCH"))
    for run in result["road"]:
        when = "never passed .95"
        if run["seconds"] is not None:
            when = f"passed .95 after {run['seconds']:.0f} s (step {run['step']})"
        looked = f"looked at every {run['every']} steps; {run['final']:.3f} at the end"
        print(f"seed {run['seed']}: off-by-one addition, never trained on, {when}, {looked}")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flag = parser.add_argument
    flag("--device", default="auto", help="auto, cpu, cuda, mps (default: %(default)s)")
    flag("--repeats", type=int, default=3, help="of which the median counts (default: %(default)s)")
    flag("--only", default="", help="only the comparisons whose work or model contains this")
    flag("--road", action="store_true", help="also train seeds 0, 1 and 2 to the end: minutes each")
    flag("--quick", action="store_true", help="a tiny model, to see that it runs; no real times")
    flag("--json", help="default: results/bench.json, and no file with --only or --quick")
    return parser.parse_args(argv)


def bench(argv: list[str] | None) -> int:
    flags = parse(argv)
    device = pick_device(flags.device, float64=True)
    if flags.repeats < 1:
        raise UserError("--repeats must be at least 1")
    named = measurements(device, flags.repeats, flags.quick)
    chosen = [measure for name, measure in named if flags.only in name]
    rows = []
    for measure in tqdm(chosen, desc="bench", disable=None):
        rows += measure()
    memory = [] if flags.quick else memory_rows(flags.only, device)
    seeds = (0, 1, 2) if flags.road else ()
    road = [bench_train.road(seed, device) for seed in seeds]
    result = {"hardware": hardware(device), "versions": versions(), "rows": rows}
    result = rounded(result | {"memory": memory, "road": road})
    if flags.json or not (flags.only or flags.quick):
        path = Path(flags.json or "results/bench.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        save_json(path, result)
    show(result)
    agree = all(row["max_abs_diff"] <= TOLERANCE for row in rows)
    return 0 if agree else 1


def main(argv: list[str] | None = None) -> int:
    return run_main(partial(bench, argv))


if __name__ == "__main__":
    sys.exit(main())
