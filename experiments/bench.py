"""Times the path patcher and a training step against what people use today: same machine, same run, same weights, same prompts.

    all heads → logits, or q, k, v     against the published two-pass loop on TransformerLens 2.18, and the same loop, library-free, on our
                                       own model; with frozen MLPs against auto-circuit (bench_loops.py)
    growth                             the same with layers, heads, width and prompt length, one at a time
    memory                             peak of a sweep in a fresh process against the budget it was given (bench_cost.py)
    two processes                      of one thread each against one (bench_processes.py)
    training step                      against a plain eager step that scores every position (bench_train.py)
    --road                             seconds of training until off-by-one addition, never trained on, passes .95

Each side makes its own two cached runs, and they are counted. The loops are timed on pairs of sender and receiver spread over the model, and
scaled to all of them: every pair costs them the same. Sides take turns, and times are medians. It is checked that the
numbers agree to 1e-4; otherwise the exit code is 1. `make bench` runs it in an environment that has the libraries; without them, their rows are left out.
"""

import argparse
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import tasks
import train
from experiments import bench_loops, bench_processes, bench_train
from experiments.bench_cost import interleaved, peak_memory, square_product, sweep_flops
from minifunc.model import ModelConfig, Transformer
from minifunc.patching import HeadInput, Logits, PathPatcher
from minifunc.support.errors import UserError, run_main
from minifunc.support.files import save_json
from minifunc.support.flags import pick_device

TOLERANCE = 1e-4  # float32: logits of the patcher, loss and gradients of the training step
SMALL = replace(train.MODEL, n_heads=4, d_head=16)  # what growth starts from
LARGE = replace(train.MODEL, n_layers=6, n_heads=8, d_model=512, d_head=64, d_mlp=2048)
TINY = replace(train.MODEL, n_layers=2, n_heads=2, d_model=16, d_head=8, d_mlp=32)
GROWTH: dict[str, list[ModelConfig | int]] = {  # what varies → models, or shots
    "n_layers": [replace(SMALL, n_layers=n) for n in (2, 4, 8, 16)],
    "n_heads": [replace(SMALL, n_heads=n, d_head=64 // n) for n in (2, 4, 8, 16)],
    "d_model": [replace(SMALL, d_model=d, d_head=d // 4, d_mlp=4 * d) for d in (32, 64, 128, 256)],
    "shots": [2, 4, 8, 16],
}


@dataclass(frozen=True)
class Case:
    """One comparison. timed: the receivers that are really swept, the last of them in the last layer (default: all)."""

    work: str
    name: str
    cfg: ModelConfig
    receivers: Sequence[HeadInput | Logits]
    timed: Sequence[HeadInput | Logits] = ()
    prompts: int = 100
    shots: int = 8
    frozen_mlps: bool = False
    pairs: int = 12  # that each loop is timed on
    varies: str | None = None


def every_input(
    cfg: ModelConfig, heads: Sequence[int] | None = None, which: str = "vqk"
) -> list[HeadInput]:
    """The q, k and v of all heads, or of some heads of each layer; layer 0 has no senders below it."""
    return [
        HeadInput(layer, head, letter)
        for head in heads or range(cfg.n_heads)
        for letter in which
        for layer in range(1, cfg.n_layers)
    ]


def all_cases() -> list[Case]:
    small = Case("all heads → logits", "default", train.MODEL, [Logits()])
    large = replace(small, name="6x8x512", cfg=LARGE, pairs=3)
    inputs = "all heads → v, q, k of every head"
    cases = [small, replace(small, work=inputs, receivers=every_input(train.MODEL))]
    cases += [
        large,
        replace(
            large,
            work=inputs,
            receivers=every_input(LARGE),
            timed=two_of_each_layer(LARGE),
            prompts=5,
            pairs=6,
        ),
    ]
    cases += [
        replace(case, frozen_mlps=True, work=f"{case.work}, frozen MLPs") for case in cases[:2]
    ]
    for factor, values in GROWTH.items():
        for value in values:
            change: dict[str, Any] = (
                {"shots": value, "cfg": SMALL} if isinstance(value, int) else {"cfg": value}
            )
            cases.append(
                replace(
                    small,
                    name=f"{factor} {value if isinstance(value, int) else getattr(value, factor)}",
                    varies=factor,
                    prompts=50,
                    pairs=4,
                    **change,
                )
            )
    return cases


def two_of_each_layer(cfg: ModelConfig) -> list[HeadInput]:
    """Two receivers of each layer, v, q and k in turn."""
    return [
        HeadInput(layer, head, "vqk"[(layer + head) % 3])
        for head in (0, 1)
        for layer in range(1, cfg.n_layers)
    ]


def compare(
    case: Case, device: torch.device, repeats: int, product_size: int
) -> list[dict[str, Any]]:
    """The rows of one case, one for each other side that is there. The machine's rate is taken in the same rounds, from products of this size."""
    cfg, timed = case.cfg, list(case.timed or case.receivers)
    model = Transformer(cfg, torch.Generator().manual_seed(0)).to(device).requires_grad_(False)
    pairs = tasks.evaluation_pairs(
        "addition", 1, case.shots, case.prompts, torch.Generator().manual_seed(0)
    )
    sides = (bench_loops.edge_loops if case.frozen_mlps else bench_loops.two_pass_loops)(
        model, pairs
    )
    if not sides:
        return []
    heads = [(layer, head) for layer in range(cfg.n_layers) for head in range(cfg.n_heads)]
    names = [f"{layer}.{head}" for layer, head in heads]

    def sweep(receivers: Sequence[HeadInput | Logits]) -> list[torch.Tensor]:
        patcher = PathPatcher(
            model,
            pairs.base,
            pairs.contrast,
            pairs.base_answers,
            pairs.contrast_answers,
            freeze_mlps=case.frozen_mlps,
        )
        return [effects.per_prompt for effects in patcher.sweep_each(receivers, names)]

    def sender_and_receiver(receivers: Sequence[HeadInput | Logits]) -> list[tuple[int, int]]:
        """Which (row of `heads`, receiver) have a path between them."""
        return [
            (row, index)
            for index, receiver in enumerate(receivers)
            for row, head in enumerate(heads)
            if isinstance(receiver, Logits) or head[0] < receiver.layer
        ]

    among = sender_and_receiver(timed)
    sampled = [
        among[(2 * index + 1) * len(among) // (2 * case.pairs)] for index in range(case.pairs)
    ]
    changes: dict[str, list[torch.Tensor]] = {}

    def ask(label: str, side: bench_loops.Side) -> None:
        changes[label] = [side.change(heads[row], timed[index]) for row, index in sampled]

    works: dict[str, Callable[[], object]] = {
        "ours": lambda: sweep(timed),
        "product": square_product(product_size, device),
    }
    if case.timed:
        works["one"] = lambda: sweep(timed[-1:])
    for label, side in sides.items():
        works |= {f"{label}: start": side.start, f"{label}: pairs": partial(ask, label, side)}
    times = interleaved(works, device, repeats)
    effects = sweep(timed)
    for side in sides.values():
        side.close()
    ours_s, n_pairs = times["ours"], len(sender_and_receiver(case.receivers))
    first = int((pairs.base != pairs.contrast).any(dim=0).nonzero()[0])

    def gflop(receivers: Sequence[HeadInput | Logits]) -> float:
        return sweep_flops(cfg, case.prompts, pairs.base.shape[1], first, receivers) / 1e9

    if case.timed:  # the cached runs and pass 1, which one receiver of the last layer needs as well, count once; pass 2 is scaled by its operations
        ours_s = times["one"] + max(0.0, ours_s - times["one"]) * (
            gflop(case.receivers) - gflop(timed[-1:])
        ) / (gflop(timed) - gflop(timed[-1:]))
    rate = 2e-9 * product_size**3 / times["product"]
    peak = peak_memory(cfg, case.prompts, case.shots, timed, None, device)
    shape = {
        "name": case.name,
        **{
            name: getattr(cfg, name)
            for name in ("n_layers", "n_heads", "d_model", "d_head", "d_mlp")
        },
        "prompts": case.prompts,
        "tokens": pairs.base.shape[1],
    }
    largest = max(effects[index][row].abs().max().item() for row, index in sampled)
    rows = []
    for label in sides:
        other_s = times[f"{label}: start"] + times[f"{label}: pairs"] / case.pairs * n_pairs
        worst = max(
            (effects[index][row] - change.double().cpu()).abs().max().item()
            for (row, index), change in zip(sampled, changes[label])
        )
        row = {
            "work": case.work,
            "model": shape,
            "ours_s": ours_s,
            "other": label,
            "other_s": other_s,
            "ratio": other_s / ours_s,
            "max_abs_diff": worst,
            "peak_gib": peak,
        }
        row |= {
            "largest_effect": largest,
            "pairs": n_pairs,
            "pairs_timed": case.pairs,
            "receivers": len(case.receivers),
            "receivers_timed": len(timed),
        }
        row |= (
            {}
            if case.frozen_mlps
            else {
                "gflop_timed": gflop(timed),
                "product_gflop_per_s": rate,
                "share_of_product_rate": gflop(timed) / times["ours"] / rate,
            }
        )
        rows.append(row | ({"varies": case.varies} if case.varies else {}))
    return rows


def training_row(
    model_cfg: ModelConfig, cfg: train.TrainConfig, device: torch.device, repeats: int
) -> dict[str, Any]:
    """A step of train.py beside a plain eager one."""
    works, n_tokens, worst = bench_train.steps(model_cfg, cfg, device)
    times = interleaved(works, device, repeats)
    row = {
        "work": "training step",
        "model": asdict(model_cfg) | {"name": "default"},
        "ours_s": times["ours"],
        "other": "plain eager step scoring every position",
        "other_s": times["plain"],
    }
    row |= {"ratio": times["plain"] / times["ours"], "max_abs_diff": worst, "peak_gib": None}
    return row | {
        f"{side}_tokens_per_s": n_tokens / time
        for side, time in (("ours", times["ours"]), ("other", times["plain"]))
    }


def memory_rows(
    cases: Sequence[Case], budgets: Sequence[float], device: torch.device
) -> list[dict[str, Any]]:
    """Peak memory of a sweep against the budget asked for."""
    rows = []
    for case in cases:
        for budget in budgets:
            peak = peak_memory(case.cfg, case.prompts, case.shots, case.receivers, budget, device)
            rows.append(
                {
                    "work": case.work,
                    "model": case.name,
                    "prompts": case.prompts,
                    "budget_gib": budget,
                    "peak_gib": peak,
                    "within": peak <= budget,
                }
            )
    return rows


def hardware(device: torch.device) -> dict[str, Any]:
    name = platform.processor()
    if os.path.exists("/proc/cpuinfo"):
        name = next(
            (
                line.split(":")[1].strip()
                for line in Path("/proc/cpuinfo").read_text().splitlines()
                if "model name" in line
            ),
            name,
        )
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else name
    return {"processor": name, "threads": torch.get_num_threads(), "device": str(device)}


def versions() -> dict[str, str | None]:
    """Of the libraries that took part."""
    found: dict[str, str | None] = {"python": platform.python_version(), "torch": torch.__version__}
    for name, there in (
        ("transformer-lens", bench_loops.lens),
        ("auto-circuit", bench_loops.graph_utils),
    ):
        found[name.replace("-", "_")] = metadata.version(name) if there else None
    return found


def rounded(value: Any) -> Any:
    """Four significant digits are more than a time can bear."""
    if isinstance(value, Mapping):
        return {key: rounded(entry) for key, entry in value.items()}
    return (
        [rounded(entry) for entry in value]
        if isinstance(value, list)
        else float(f"{value:.4g}")
        if isinstance(value, float)
        else value
    )


def show(result: dict[str, Any]) -> None:
    machine = result["hardware"]
    print(f"{machine['processor']}, {machine['device']}, {machine['threads']} threads")
    for row in result["rows"]:
        share = (
            f"  {row['share_of_product_rate']:4.0%} of the {row['product_gflop_per_s']:.0f} GFLOP/s of a matrix product"
            if "share_of_product_rate" in row
            else f"  {row['ours_tokens_per_s']:.0f} tokens/s against {row['other_tokens_per_s']:.0f}"
            if "ours_tokens_per_s" in row
            else ""
        )
        peak = f"  peak {row['peak_gib']:6.3f} GiB" if row["peak_gib"] is not None else ""
        print(
            f"{row['model']['name']:12} {row['work']:48} ours {row['ours_s']:8.3f} s  {row['other']:40} {row['other_s']:9.2f} s  ratio {row['ratio']:6.1f}  max diff {row['max_abs_diff']:.0e}{peak}{share}"
        )
    for row in result["memory"]:
        print(
            f"{row['model']:12} {row['work']:48} budget {row['budget_gib']:6.3f} GiB  peak {row['peak_gib']:6.3f} GiB{'' if row['within'] else '  TOO MUCH'}"
        )
    for run in result["road"]:
        when = (
            f"passed .95 after {run['seconds']:.0f} s (step {run['step']})"
            if run["seconds"] is not None
            else "never passed .95"
        )
        print(
            f"seed {run['seed']}: off-by-one addition, never trained on, {when}, looked at every {run['every']} steps; {run['final']:.3f} at the end"
        )


def main(argv: list[str] | None = None) -> int:
    def work() -> int:
        parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
        parser.add_argument(
            "--device", default="auto", help="auto, cpu, cuda, mps (default: %(default)s)"
        )
        parser.add_argument(
            "--repeats",
            type=int,
            default=3,
            help="of each timing; the median counts (default: %(default)s)",
        )
        parser.add_argument(
            "--only", default="", help="only the comparisons whose work or model contains this"
        )
        parser.add_argument(
            "--road",
            action="store_true",
            help="also train seeds 0, 1 and 2 to the end: minutes each",
        )
        parser.add_argument(
            "--quick",
            action="store_true",
            help="a tiny model, to see that everything runs; the times mean nothing",
        )
        parser.add_argument(
            "--json",
            help="where the results go (default: results/bench.json, and nowhere with --only or --quick)",
        )
        arguments = parser.parse_args(argv)
        device, quick = pick_device(arguments.device, float64=True), arguments.quick
        if arguments.repeats < 1:
            raise UserError("--repeats must be at least 1")
        product_size = 64 if quick else 8192 if device.type == "cuda" else 2048
        cases, model_cfg, cfg, budgets = (
            all_cases(),
            train.MODEL,
            train.TrainConfig(),
            [0.125, 0.25, 0.5, 1.0],
        )
        in_memory = [
            cases[0],
            cases[2],
            replace(
                cases[2],
                work="all heads → v, q, k of two heads",
                receivers=every_input(LARGE, [0, 1])[:6],
                prompts=25,
            ),
        ]
        if quick:
            tiny = replace(cases[0], cfg=TINY, prompts=3, shots=2, pairs=2)
            cases = [
                replace(
                    tiny,
                    work="all heads → v, q, k of every head",
                    receivers=every_input(TINY),
                    timed=every_input(TINY, [0])[:2],
                )
            ]
            in_memory, model_cfg, cfg, budgets = (
                [],
                TINY,
                train.TrainConfig(documents=2, examples=3),
                [],
            )
        rows = []
        for case in tqdm(
            [case for case in cases if arguments.only in f"{case.work} {case.name}"],
            desc="bench",
            disable=None,
        ):
            rows += compare(case, device, arguments.repeats, product_size)
        if arguments.only in "training step":
            rows.append(training_row(model_cfg, cfg, device, 5 * arguments.repeats))
        if arguments.only in "two processes" and device.type == "cpu" and not quick:
            rows.append(bench_processes.row(model_cfg, arguments.repeats))
        result = {"hardware": hardware(device), "versions": versions(), "rows": rows}
        result["memory"] = memory_rows(
            [case for case in in_memory if arguments.only in f"memory {case.work} {case.name}"],
            budgets,
            device,
        )
        result["road"] = (
            [bench_train.road(seed, device) for seed in (0, 1, 2)] if arguments.road else []
        )
        result = rounded(result)
        if arguments.json or not (arguments.only or quick):
            path = Path(arguments.json or "results/bench.json")
            path.parent.mkdir(parents=True, exist_ok=True)
            save_json(path, result)
        show(result)
        return 0 if all(row["max_abs_diff"] <= TOLERANCE for row in rows) else 1

    return run_main(work)


if __name__ == "__main__":
    sys.exit(main())
