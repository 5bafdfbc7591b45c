"""Compares this checkout's path patcher with another's: `--other ../minifunc-before`.

Each measurement is a process of its own, on the CPU: it runs this file's text in the checkout's
folder, with the `minifunc` and `tasks` found there, on the same random weights and prompts. The
checkouts take turns; times are medians. The cached runs (making the PathPatcher) and the sweep are
timed apart. A ratio above 1: this checkout is faster. Exit code 1: r differs by more than 1e-4.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

import tasks
from minifunc import model, patching

DEFAULT = {"n_layers": 4, "n_heads": 6, "act_fn": "relu", "rotary_base": 100.0}
LARGE = DEFAULT | {"n_layers": 6, "n_heads": 8, "d_model": 512, "d_head": 64, "d_mlp": 2048}
WORKS: dict[str, tuple[dict[str, Any], int, str]] = {  # model, prompts, receivers
    "default: heads → logits": (DEFAULT, 100, "logits"),
    "default: heads → every q, k, v": (DEFAULT, 100, "every input"),
    "6x8x512: heads → logits": (LARGE, 100, "logits"),
    "6x8x512: heads → every q, k, v": (LARGE, 1, "every input"),
    "default: heads → 1.0.v": (DEFAULT, 100, "1.0.v"),
}


def measure(work: str) -> dict[str, Any]:
    """Seconds of each part, and r of every head on every receiver, in the current folder."""
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
    for _ in range(2):  # the first round warms up
        start = time.perf_counter()
        patcher = patching.PathPatcher(net, *prompts)
        ready = time.perf_counter()
        effects = patcher.sweep_each(receivers, senders)
        end = time.perf_counter()
    r = torch.stack([each.heads for each in effects]).flatten().tolist()
    return {"cached runs": ready - start, "sweep": end - ready, "r": r}


def compare(other: Path, work: str, repeats: int) -> float:
    """Prints a line for each part of a work. Returns the largest difference of r."""
    command, text = [sys.executable, "-", "--measure", work], Path(__file__).read_text()
    checkouts = (Path(__file__).resolve().parent.parent, other)
    run = partial(subprocess.check_output, command, input=text, text=True)
    rounds = []
    for _ in range(repeats):
        outputs = [run(cwd=folder) for folder in checkouts]
        rounds.append([json.loads(output) for output in outputs])
    ours, theirs = zip(*rounds)
    for part in ("cached runs", "sweep"):
        this_s, other_s = (statistics.median(one[part] for one in side) for side in (ours, theirs))
        seconds = f"this {this_s:8.4f} s, other {other_s:8.4f} s, ratio {other_s / this_s:.2f}"
        print(f"{work:31} {part:11} {seconds}", flush=True)
    return (torch.tensor(ours[0]["r"]) - torch.tensor(theirs[0]["r"])).abs().max().item()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--other", type=Path, required=True, help="the other checkout's folder")
    parser.add_argument("--repeats", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--only", default="", help="only the works whose name contains this")
    flags = parser.parse_args(argv)
    if not (flags.other / "minifunc").is_dir():
        parser.error(f"{flags.other} is no checkout: it has no minifunc")
    works = [work for work in WORKS if flags.only in work]
    difference = max(compare(flags.other, work, flags.repeats) for work in works)
    print(f"r differs by {difference:.0e} at most")
    return int(difference > 1e-4)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(sys.argv[2])))
    else:
        sys.exit(main())
