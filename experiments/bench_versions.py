"""Compares this checkout's path patcher with another checkout's, in one run.

    python -m experiments.bench_versions --other ../minifunc-before --json out/versions.json

Each checkout works in a process of its own, on the CPU, with its own `minifunc` and `tasks`, on the
same random weights and prompts. They take turns. The cached runs (making the PathPatcher) and the
sweep are timed apart. The first round does not count; times are medians of the others. A ratio
above 1: this checkout is faster. Exit code 1: r differs by more than 1e-4.
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DEFAULT = {"n_layers": 4, "n_heads": 6, "act_fn": "relu", "rotary_base": 100.0}
LARGE = DEFAULT | {"n_layers": 6, "n_heads": 8, "d_model": 512, "d_head": 64, "d_mlp": 2048}
WORKS: dict[str, tuple[dict[str, Any], int, str]] = {  # model, prompts, receivers
    "default: heads → logits": (DEFAULT, 100, "logits"),
    "default: heads → every q, k, v": (DEFAULT, 100, "every input"),
    "6x8x512: heads → logits": (LARGE, 100, "logits"),
    "6x8x512: heads → every q, k, v": (LARGE, 1, "every input"),
    "default: heads → 1.0.v": (DEFAULT, 100, "1.0.v"),
}
PARTS = ("cached runs", "sweep", "together")
LINE = "{work:31} {part:11} this {this_s:8.4f} s, other {other_s:8.4f} s, ratio {ratio:.2f}"
Process = subprocess.Popen[str]
Answer = dict[str, Any]  # seconds of each of PARTS; r of every head on every receiver


@functools.cache
def prepare(work: str) -> Callable[[], Answer]:
    """Builds model and prompts with the code of the current folder; what it returns is timed."""
    import torch

    import tasks
    from minifunc import model, patching

    if not Path(patching.__file__).is_relative_to(Path.cwd()):
        raise ImportError(f"minifunc comes from {patching.__file__}, not from {Path.cwd()}")
    shape, n_prompts, which = WORKS[work]
    cfg = model.ModelConfig(**shape, d_vocab=len(tasks.VOCABULARY))
    net = model.Transformer(cfg, torch.Generator().manual_seed(0)).requires_grad_(False)
    pairs = tasks.evaluation_pairs("addition", 1, 8, n_prompts, torch.Generator().manual_seed(0))
    prompts = (pairs.base, pairs.contrast, pairs.base_answers, pairs.contrast_answers)
    heads = [(layer, head) for layer in range(cfg.n_layers) for head in range(cfg.n_heads)]
    senders = [f"{layer}.{head}" for layer, head in heads]
    receivers = [patching.HeadInput(*head, x) for head in heads[cfg.n_heads :] for x in "qkv"]
    if which != "every input":
        receivers = [patching.Logits() if which == "logits" else patching.HeadInput(1, 0, "v")]

    def run() -> Answer:
        start = time.perf_counter()
        patcher = patching.PathPatcher(net, *prompts)
        ready = time.perf_counter()
        effects = patcher.sweep_each(receivers, senders)
        end = time.perf_counter()
        seconds = dict(zip(PARTS, (ready - start, end - ready, end - start)))
        return seconds | {"r": torch.stack([each.heads for each in effects]).flatten().tolist()}

    return run


def serve() -> int:
    """In a checkout's process: does each work that stdin names, and prints its answer."""
    sys.path[0] = os.getcwd()  # in place of this file's folder
    for line in sys.stdin:
        print(json.dumps(prepare(json.loads(line))()), flush=True)
    return 0


def started(folder: Path) -> Process:
    command, pipe = [sys.executable, str(Path(__file__).resolve()), "--serve"], subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, stdin=pipe, stdout=pipe, text=True)


def ask(process: Process, work: str) -> Answer:
    print(json.dumps(work), file=process.stdin, flush=True)
    return json.loads(process.stdout.readline())  # no line: it ended, and its error stands above


def compare(here: Path, there: Path, works: list[str], repeats: int) -> Iterator[dict[str, Any]]:
    """One row for each work and part of it; `here` and `there` are the two checkouts."""
    with started(here) as this, started(there) as other:
        for work in works:
            rounds = [(ask(this, work), ask(other, work)) for _ in range(repeats + 1)]
            ours, theirs = rounds[0]
            difference = max(abs(a - b) for a, b in zip(ours["r"], theirs["r"]))
            for part in PARTS:
                seconds = [[answer[part] for answer in answers] for answers in zip(*rounds[1:])]
                this_s, other_s = map(statistics.median, seconds)
                row = {"work": work, "part": part, "this_s": this_s, "other_s": other_s}
                yield row | {"ratio": other_s / this_s, "max_abs_diff": difference}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--other", type=Path, required=True, help="the other checkout's folder")
    parser.add_argument("--repeats", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--only", default="", help="only the works whose name contains this")
    parser.add_argument("--json", type=Path, help="where the rows go")
    flags = parser.parse_args(argv)
    if not (flags.other / "minifunc").is_dir():
        parser.error(f"{flags.other} is no checkout: it has no minifunc")
    rows, here = [], Path(__file__).resolve().parent.parent
    works = [work for work in WORKS if flags.only in work]
    for row in compare(here, flags.other, works, flags.repeats):
        print(LINE.format(**row), flush=True)
        rows.append(row)
    if flags.json:
        flags.json.write_text(json.dumps(rows, indent=1) + "\n")
    difference = max([row["max_abs_diff"] for row in rows], default=0.0)
    print(f"r differs by {difference:.0e} at most")
    return int(difference > 1e-4)


if __name__ == "__main__":
    sys.exit(serve() if sys.argv[1:] == ["--serve"] else main())
