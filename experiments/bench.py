"""Times the path patcher against what people use today: same machine, same run, same weights, same prompts.

    (a) the published loop on TransformerLens 2.18: for each sender, one full pass with every other head frozen, which
        records the receiver, and one full pass with the receiver overwritten (arXiv 2507.09875, section on path patching)
    (b) the same loop on our own model, library-free

Each side makes its own two cached runs, and they are counted. The loops are timed on a few senders, spread over
the model, and scaled to all of them: every sender costs them the same. It is checked that the numbers agree.
`make bench` runs it in an environment that has TransformerLens; without it, (a) is left out.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

import tasks
import train
from minifunc.model import Hooks, ModelConfig, Transformer
from minifunc.patching import HeadInput, Logits, PathPatcher
from minifunc.runs import UserError, pick_device, run_main, save_json

try:
    import transformer_lens as lens
except ImportError:
    lens = None

MODELS = {"default": train.MODEL, "4x4x64": replace(train.MODEL, n_heads=4, d_head=16), "4x8x128": replace(train.MODEL, d_model=128, d_head=16, d_mlp=512), "6x8x512": replace(train.MODEL, n_layers=6, d_model=512, d_head=64, d_mlp=2048)}


def seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median wall time of `work`, after one call to warm up."""
    times = []
    for repeat in range(repeats + 1):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times += [time.perf_counter() - started] if repeat or repeats == 0 else []
    return statistics.median(times)


def hooked_transformer(model: Transformer, device: torch.device) -> "lens.HookedTransformer":
    """Our weights in TransformerLens."""
    cfg = model.cfg
    shape = {name: getattr(cfg, name) for name in ("n_layers", "n_heads", "d_model", "d_head", "d_mlp", "d_vocab", "n_ctx", "eps", "act_fn")}
    rotary = dict(positional_embedding_type="rotary", rotary_dim=cfg.d_head, rotary_base=int(cfg.rotary_base), rotary_adjacent_pairs=True)
    other = lens.HookedTransformer(lens.HookedTransformerConfig(**shape, **rotary, normalization_type="RMS", init_weights=False, device=str(device)))
    for parameter in other.parameters():
        parameter.data.zero_()
    other.load_state_dict(model.state_dict(), strict=False)
    return other.requires_grad_(False)


class Loop:
    """The two-pass loop. `run(tokens, hooks)` gives the logits of one pass, hooks being {name: fn(activation, name)}."""

    def __init__(self, run: Callable, n_layers: int, pairs: tasks.Pairs, device: torch.device) -> None:
        self.run, self.n_layers = run, n_layers
        self.base, self.contrast = pairs.base.to(device), pairs.contrast.to(device)
        self.answers = pairs.base_answers.to(device), pairs.contrast_answers.to(device)
        self.names = [f"blocks.{layer}.attn.hook_z" for layer in range(n_layers)]

    def cached(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        cache: dict[str, torch.Tensor] = {}

        def store(x: torch.Tensor, name: str) -> torch.Tensor:
            cache[name] = x
            return x

        cache["logits"] = self.run(tokens, dict.fromkeys(self.names, store))
        return cache

    def start(self) -> None:
        self.of_base, self.of_contrast = self.cached(self.base), self.cached(self.contrast)

    def F(self, logits: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(len(logits), device=logits.device)
        return logits[rows, -1, self.answers[0]] - logits[rows, -1, self.answers[1]]

    def change(self, sender: tuple[int, int], receiver: tuple[str, int | None]) -> torch.Tensor:
        """F_patched - F_contrast of each prompt; receiver: (hook name, head or None for a whole stream)."""
        noted = {}

        def frozen(x: torch.Tensor, name: str) -> torch.Tensor:
            z = self.of_contrast[name]
            if name == self.names[sender[0]]:
                z = z.clone()
                z[:, :, sender[1]] = self.of_base[name][:, :, sender[1]]
            return z

        def note(x: torch.Tensor, name: str) -> torch.Tensor:
            noted[name] = x
            return x

        def overwrite(x: torch.Tensor, name: str) -> torch.Tensor:
            if receiver[1] is None:
                return noted[name]
            x = x.clone()
            x[:, :, receiver[1]] = noted[name][:, :, receiver[1]]
            return x

        self.run(self.contrast, dict.fromkeys(self.names, frozen) | {receiver[0]: note})
        return self.F(self.run(self.contrast, {receiver[0]: overwrite})) - self.F(self.of_contrast["logits"])


def measure(name: str, cfg: ModelConfig, device: torch.device, n_prompts: int, timed: int, repeats: int) -> list[dict]:
    """Rows of results for one model: heads → logits, and (small models) heads → q, k, v of every head."""
    model = Transformer(cfg, torch.Generator().manual_seed(0)).to(device).requires_grad_(False)
    pairs = tasks.evaluation_pairs("addition", 1, 8, n_prompts, torch.Generator().manual_seed(0))
    data = (model, pairs.base, pairs.contrast, pairs.base_answers, pairs.contrast_answers)
    loops = {"own two-pass loop": Loop(lambda tokens, hooks: model(tokens, None, Hooks(hooks)), cfg.n_layers, pairs, device)}
    if lens is not None:
        other = hooked_transformer(model, device)

        def run(tokens, hooks):  # TransformerLens passes the hook point, of which the loop wants the name
            return other.run_with_hooks(tokens, fwd_hooks=[(hook, lambda x, hook, fn=fn: fn(x, hook.name)) for hook, fn in hooks.items()])

        loops = {"two-pass loop on TransformerLens 2.18": Loop(run, cfg.n_layers, pairs, device)} | loops
    heads = [(layer, head) for layer in range(cfg.n_layers) for head in range(cfg.n_heads)]
    logits = (f"blocks.{cfg.n_layers - 1}.hook_resid_post", None)
    every = [(HeadInput(*head, which), (f"blocks.{head[0]}.attn.hook_{which}", head[1])) for head in heads for which in "qkv"]
    works = {
        "all heads → logits": (lambda: PathPatcher(*data).sweep_each([Logits()]), [(head, 0, logits) for head in heads]),
        "all heads → v, q, k of every head": (
            lambda: PathPatcher(*data).sweep_each([receiver for receiver, _ in every]),
            [(head, index, place) for index, (receiver, place) in enumerate(every) for head in heads if head[0] < receiver.layer],
        ),
    }
    if cfg.d_model > 128:  # all pairs of a large model would take an hour; the logits are told apart in seconds
        del works["all heads → v, q, k of every head"]
    rows = []
    for work, (ours, pairs_of_nodes) in works.items():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        effects = ours()
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
        ours_s = seconds(ours, device, repeats)
        sample = pairs_of_nodes[:: max(1, len(pairs_of_nodes) // timed)][:timed]
        for label, loop in loops.items():
            start_s = seconds(loop.start, device, repeats)
            worst = 0.0
            started = time.perf_counter()
            changes = [loop.change(sender, place) for sender, _, place in sample]
            each_s = (time.perf_counter() - started) / len(sample)
            senders = PathPatcher(*data).senders
            for (sender, index, _), change in zip(sample, changes):
                row = senders.index(f"{sender[0]}.{sender[1]}")
                worst = max(worst, (effects[index].per_prompt[row] - change.double().cpu()).abs().max().item())
            other_s = start_s + each_s * len(pairs_of_nodes)
            shape = {"name": name, "n_layers": cfg.n_layers, "n_heads": cfg.n_heads, "d_model": cfg.d_model, "prompts": n_prompts, "tokens": pairs.base.shape[1]}
            rows.append({"work": work, "model": shape, "ours_s": round(ours_s, 4), "other": label, "other_s": round(other_s, 2), "ratio": round(other_s / ours_s, 1), "max_abs_diff": worst, "peak_gib": round(peak, 3), "pairs": len(pairs_of_nodes), "pairs_timed": len(sample)})
    return rows


def main(argv: list[str] | None = None) -> int:
    def work() -> int:
        parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
        parser.add_argument("--device", default="auto")
        parser.add_argument("--models", default="default,6x8x512", help=f"of {', '.join(MODELS)} (default: %(default)s)")
        parser.add_argument("--prompts", type=int, default=100)
        parser.add_argument("--timed", type=int, default=12, help="senders on which a loop is timed (default: %(default)s)")
        parser.add_argument("--repeats", type=int, default=3)
        parser.add_argument("--json", default="results/bench.json")
        arguments = parser.parse_args(argv)
        device, rows = pick_device(arguments.device), []
        unknown = set(arguments.models.split(",")) - set(MODELS)
        if unknown:
            raise UserError(f"unknown model {sorted(unknown)[0]!r}; there is {', '.join(MODELS)}")
        for name in tqdm(arguments.models.split(","), desc="bench", disable=None):
            rows += measure(name, MODELS[name], device, arguments.prompts, arguments.timed, arguments.repeats)
        processor = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if "model name" in line), platform.processor()) if os.path.exists("/proc/cpuinfo") else platform.processor()
        versions = {"torch": torch.__version__, "transformer_lens": "2.18.0" if lens else None, "python": platform.python_version()}
        result = {"hardware": {"processor": processor, "threads": torch.get_num_threads(), "device": str(device)}, "versions": versions, "rows": rows}
        Path(arguments.json).parent.mkdir(parents=True, exist_ok=True)
        save_json(Path(arguments.json), result)
        print(json.dumps(result["hardware"]))
        for row in rows:
            print(f"{row['model']['name']:10}{row['work']:36}ours {row['ours_s']:8.3f} s   {row['other']:40}{row['other_s']:9.1f} s   ratio {row['ratio']:7.1f}   max diff {row['max_abs_diff']:.1e}")
        return 0 if all(row["max_abs_diff"] <= 1e-4 for row in rows) else 1

    return run_main(work)


if __name__ == "__main__":
    sys.exit(main())
