"""Times the path patcher and a training step against what people use today.

    sweeps          all heads → logits, or v, q, k: against the published two-pass loop on
                    TransformerLens 2.18 and on our own model; with frozen MLPs against
                    auto-circuit; then layers, heads, width and prompts grow, one at a time
    training step   against a plain eager step that scores every position
    two processes   of one thread each against one
    memory          peak of a sweep in a fresh process against its budget
    --road          seconds of training until off-by-one addition, never trained on, passes .95

All sides have the same weights and prompts, and their own two cached runs are counted. The loops
are timed on paths spread over the model, and scaled to all: every path costs them the same. Sides
take turns, and times are medians. Exit code 1: numbers differ by more than 1e-4. `make bench`
installs the other libraries; without them, their rows are left out.
"""

import argparse
import json
import platform
import sys
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import tasks
import train
from experiments import bench_loops, bench_train
from experiments.bench_processes import compare_processes, peak_memory
from experiments.bench_sweep import Head, Receiver, Sweep, every_input, medians_in_turn
from experiments.runs import Row, processor
from minifunc.model import ModelConfig
from minifunc.patching import Effects, HeadInput
from minifunc.support.errors import UserError, run_main
from minifunc.support.files import make_folder, save_json
from minifunc.support.flags import pick_device
from minifunc.support.tables import table

TOLERANCE = 1e-4  # float32: logits of the patcher, loss and gradients of the training step
DEFAULT = train.MODEL
SMALL = replace(DEFAULT, n_heads=4, d_head=16)  # what growth starts from
LARGE = replace(DEFAULT, n_layers=6, n_heads=8, d_model=512, d_head=64, d_mlp=2048)
TINY = replace(DEFAULT, n_layers=2, n_heads=2, d_model=16, d_head=8, d_mlp=32)
LOGITS, INPUTS = "all heads → logits", "all heads → v, q, k of every head"
BUDGETS = (0.125, 0.25, 0.5, 1.0)  # GiB


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
    def timed_paths(self) -> list[tuple[Head, Receiver]]:
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
    sizes = (2, 4, 8, 16)
    widths = [replace(SMALL, d_model=16 * n, d_head=4 * n, d_mlp=64 * n) for n in sizes]
    cases += [grown("n_layers", n, replace(SMALL, n_layers=n)) for n in sizes]
    cases += [grown("n_heads", n, replace(SMALL, n_heads=n, d_head=64 // n)) for n in sizes]
    cases += [grown("d_model", cfg.d_model, cfg) for cfg in widths]
    cases += [grown("shots", n, SMALL, shots=n) for n in sizes]
    return cases


def grown(factor: str, size: int, cfg: ModelConfig, shots: int = 8) -> Comparison:
    sweep = Sweep(cfg, n_prompts=50, shots=shots)
    return Comparison(LOGITS, f"{factor} {size}", sweep, n_paths=4, varies=factor)


def quick_comparisons() -> list[Comparison]:
    """One of each kind, tiny."""
    live = Comparison(INPUTS, "tiny", Sweep(TINY, every_input(TINY), 3, shots=2), n_paths=2)
    frozen = replace(live.sweep, freeze_mlps=True)
    return [live, replace(live, work=f"{INPUTS}, frozen MLPs", sweep=frozen)]


def memory_cases() -> list[tuple[str, str, Sweep]]:
    """(work, model, sweep) whose peak is held against each of BUDGETS."""
    heads = [(1, 0), (LARGE.n_layers - 1, 0)]
    inputs = tuple(HeadInput(*head, which) for head in heads for which in "vqk")
    return [
        (LOGITS, "default", Sweep(DEFAULT)),
        (LOGITS, "6x8x512", Sweep(LARGE)),
        ("all heads → v, q, k of two heads", "6x8x512", Sweep(LARGE, inputs, n_prompts=25)),
    ]


# ---------------------------------------------------------------- rows of results/bench.json


def make_row(work: str, model: Row, other: str, seconds: tuple[float, float], diff: float) -> Row:
    """seconds: ours and the other's."""
    ours_s, other_s = seconds
    times = {"ours_s": ours_s, "other": other, "other_s": other_s, "ratio": other_s / ours_s}
    return {"work": work, "model": model, **times, "max_abs_diff": diff, "peak_gib": None}


def describe(name: str, sweep: Sweep) -> Row:
    size = {"prompts": sweep.n_prompts, "tokens": tasks.n_tokens(sweep.shots)}
    return {"name": name} | asdict(sweep.cfg) | size


def compare(case: Comparison, device: torch.device, repeats: int, square: Tensor) -> list[Row]:
    """One row for each other side that is there.

    square [n, n]: its product with itself shows what the machine can do at best.
    """
    sweep, paths = case.sweep, case.timed_paths
    model, pairs = sweep.model(device), sweep.pairs()
    sides = bench_loops.sides(model, pairs, sweep.freeze_mlps)
    if not sides:
        return []  # the library is not installed
    effects: dict[Receiver, Effects] = {}
    works = {
        "ours": lambda: effects.update(sweep.run(model, pairs)),
        "product": lambda: square @ square,
    }
    for label, side in sides.items():
        works |= {f"{label}: start": side.start, f"{label}: paths": partial(side.ask, paths)}
    times = medians_in_turn(works, device, repeats)
    per_prompt = [effects[receiver].per_prompt[sweep.heads.index(head)] for head, receiver in paths]
    ours = torch.stack(per_prompt)  # [path, n_prompts]
    found: Row = {"pairs": len(sweep.paths), "pairs_timed": len(paths)}
    found |= {"receivers": len(sweep.receivers), "peak_gib": peak_memory(sweep, device)}
    found["largest_effect"] = ours.abs().max().item()
    if not sweep.freeze_mlps:
        gflop = sweep.gflop(model, pairs)
        rate = 2e-9 * len(square) ** 3 / times["product"]
        found |= {"gflop_timed": gflop, "product_gflop_per_s": rate}
        found["share_of_product_rate"] = gflop / times["ours"] / rate
    if case.varies:
        found["varies"] = case.varies
    rows = []
    for label, side in sides.items():
        seconds_a_path = times[f"{label}: paths"] / len(paths)
        other_s = times[f"{label}: start"] + seconds_a_path * len(sweep.paths)
        difference = (ours - side.changes.double().cpu()).abs().max().item()
        seconds = (times["ours"], other_s)
        row = make_row(case.work, describe(case.model, sweep), label, seconds, difference)
        rows.append(row | found)
    return rows


def training_step(
    model: ModelConfig, cfg: train.TrainConfig, device: torch.device, repeats: int
) -> Row:
    seconds, difference = bench_train.compare_steps(model, cfg, device, repeats)
    other, named = "plain eager step scoring every position", asdict(model) | {"name": "default"}
    row = make_row("training step", named, other, seconds, difference)
    n_tokens = cfg.documents * (1 + tasks.EXAMPLE * cfg.examples)
    ours, plain = (n_tokens / one for one in seconds)
    return row | {"ours_tokens_per_s": ours, "other_tokens_per_s": plain}


def two_processes(repeats: int) -> Row:
    sweep = Sweep(DEFAULT, every_input(DEFAULT))
    one_s, two_s, difference = compare_processes(sweep, repeats)
    work, other = "two processes: all heads → v, q, k", "one process, one thread each"
    return make_row(work, describe("default", sweep), other, (two_s, one_s), difference)


def timed_rows(device: torch.device, repeats: int, only: str, quick: bool) -> list[Row]:
    """The rows of all that is timed, or of that whose name contains `only`."""
    size = {"cuda": 8192}.get(device.type, 2048)
    cases, model, cfg = comparisons(), DEFAULT, train.TrainConfig()
    if quick:
        cases, size = quick_comparisons(), 64
        model, cfg = TINY, train.TrainConfig(documents=2, examples=3)
    generator = torch.Generator(device).manual_seed(0)
    square = torch.randn(size, size, device=device, generator=generator)
    rows = []
    cases = [case for case in cases if only in f"{case.work} {case.model}"]
    for case in tqdm(cases, desc="bench", disable=None):
        rows += compare(case, device, repeats, square)
    if only in "training step":
        rows.append(training_step(model, cfg, device, 5 * repeats))
    if only in "two processes" and device.type == "cpu" and not quick:
        rows.append(two_processes(repeats))
    return rows


def memory_rows(device: torch.device, only: str) -> list[Row]:
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


# ---------------------------------------------------------------- the command


def about(device: torch.device) -> Row:
    """The machine, and the libraries that took part."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformer_lens": metadata.version("transformer-lens") if bench_loops.lens else None,
        "auto_circuit": metadata.version("auto-circuit") if bench_loops.graph_utils else None,
    }
    hardware = {"processor": name, "threads": torch.get_num_threads(), "device": str(device)}
    return {"hardware": hardware, "versions": versions}


def rounded(result: Row) -> Row:
    """Four significant digits are more than a time can bear."""
    return json.loads(json.dumps(result), parse_float=lambda text: float(f"{float(text):.4g}"))


# What is printed of each kind of row
COMPARED = (
    *("model", "work", "other", "ours_s", "other_s", "ratio", "max_abs_diff", "peak_gib"),
    *("share_of_product_rate", "product_gflop_per_s", "ours_tokens_per_s", "other_tokens_per_s"),
)
MEMORY = ("model", "work", "budget_gib", "peak_gib", "within")
ROAD = ("seed", "seconds", "step", "every", "final")


def show(result: Row) -> None:
    print("{processor}, {device}, {threads} threads".format(**result["hardware"]))
    compared = []
    for row in result["rows"]:
        named = {"model": row["model"]["name"], "max_abs_diff": f"{row['max_abs_diff']:.0e}"}
        compared.append(row | named)
    print(*columns_of(compared, COMPARED, left=3), sep="\n")
    if result["memory"]:
        print(*columns_of(result["memory"], MEMORY, left=2), sep="\n")
    if result["road"]:
        print("until off-by-one addition, never trained on, passes .95, looked at every so often:")
        print(*columns_of(result["road"], ROAD), sep="\n")


def columns_of(rows: list[Row], keys: tuple[str, ...], left: int = 1) -> list[str]:
    """A table of these values of the rows, a dash where one has none."""
    titles = [key.replace("_", " ") for key in keys]
    return table(titles, [map(row.get, keys) for row in rows], left)


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
    rows = timed_rows(device, flags.repeats, flags.only, flags.quick)
    memory = [] if flags.quick else memory_rows(device, flags.only)
    road = [bench_train.road(seed, device) for seed in (0, 1, 2)] if flags.road else []
    result = rounded(about(device) | {"rows": rows, "memory": memory, "road": road})
    if flags.json or not (flags.only or flags.quick):
        path = Path(flags.json or "results/bench.json")
        make_folder(path.parent)
        save_json(path, result)
    show(result)
    agree = all(row["max_abs_diff"] <= TOLERANCE for row in rows)
    return 0 if agree else 1


def main(argv: list[str] | None = None) -> int:
    return run_main(partial(bench, argv))


if __name__ == "__main__":
    sys.exit(main())
