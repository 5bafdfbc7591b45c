"""Trains a model on a diet: `python train.py --out out/default`.

What is learned: next-token prediction on documents of examples (tasks.py), scored at the answers
only. The run can be stopped at any moment (Ctrl-C) and taken up again with --resume, to the same
final weights. `torchrun --nproc-per-node=4 train.py` shares out every batch among four processes.
"""

import math
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import minifunc
import tasks
from minifunc.model import ModelConfig, Transformer
from minifunc.support.checkpoints import Progress, StopAsked, check_unused, claimed, load_checkpoint
from minifunc.support.errors import UserError
from minifunc.support.evaluation import last_logits
from minifunc.support.flags import Parser, add_flags, pick_device
from minifunc.support.processes import all_sum, any_process, join, run_together, share
from minifunc.support.settings import as_json, check_numbers, chosen_settings

MODEL = ModelConfig(n_heads=6, d_vocab=len(tasks.VOCABULARY), act_fn="relu", rotary_base=100.0)
SHOTS = (1, 2, 4, 8, 16)
Table = dict[str, dict[str, dict[str, float]]]  # task → k → shots → accuracy


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained: AdamW (Loshchilov & Hutter 2019), linear warm-up, cosine decay,
    gradient clipping. warmup and eval_every are in steps."""

    seed: int = 0
    steps: int = 2600
    documents: int = 64  # a batch is [documents, 1 + 6 * examples] tokens
    examples: int = 9
    long_every: int = 2  # so many-th batches have half the documents, twice as long (0: none)
    lr: float = 7e-3
    warmup: int = 100
    beta2: float = 0.95
    weight_decay: float = 0.2
    clip: float = 1.0
    eval_every: int = 250

    def __post_init__(self) -> None:
        least = {"steps": 1, "documents": 1, "examples": 2, "eval_every": 1}
        check_numbers(self, least, most={"documents": 100_000, "examples": 100_000})
        if not self.lr > 0 or not self.clip > 0 or not self.beta2 < 1:
            raise ValueError("lr and clip must be positive, and beta2 below 1")

    def lr_at(self, step: int) -> float:
        """Learning rate of step 1 .. steps: up in a line, then down to nothing along a cosine."""
        warm = min(1.0, step / max(1, self.warmup))
        return self.lr * warm * 0.5 * (1 + math.cos(math.pi * (step - 1) / self.steps))

    def batch_at(self, step: int) -> tuple[int, int]:
        """(documents, examples) of a step."""
        if self.long_every and step % self.long_every == 0:
            return max(1, self.documents // 2), self.longest
        return self.documents, self.examples

    @property
    def longest(self) -> int:
        """Examples in the longest document."""
        return 2 * self.examples - 1 if self.long_every else self.examples


def loss_on_answers(model: Transformer, documents: tasks.Documents) -> Tensor:
    """Cross-entropy (nats) of the answers that what stands before them determines, [].

    The model is asked at the `=` signs alone. With several processes: the sum over this one's
    share of the documents, divided by the count over all of them.
    """
    places = tasks.answer_positions(documents.answer.shape[1]).to(model.device)
    tokens = share(documents.tokens).to(model.device)  # [document, pos]
    determined = share(documents.determined).to(model.device)  # [document, example]
    answers = tokens[:, places]  # [document, example]
    logits = model(tokens, places - 1)  # [document, example, d_vocab]
    losses = F.cross_entropy(logits.flatten(0, 1), answers.flatten(), reduction="none")
    losses = losses.view(answers.shape) * determined
    return losses.sum() / documents.determined.sum().clamp(min=1)


def make_optimizer(model: Transformer, cfg: TrainConfig) -> torch.optim.AdamW:
    fused = model.device.type != "mps"
    betas, decay = (0.9, cfg.beta2), cfg.weight_decay
    return torch.optim.AdamW(model.parameters(), cfg.lr, betas, weight_decay=decay, fused=fused)


def train_step(
    model: Transformer,
    optimizer: torch.optim.Optimizer,
    cfg: TrainConfig,
    documents: tasks.Documents,
) -> tuple[Tensor, Tensor]:
    """One step on one batch → its loss and the norm of the gradient before clipping, [] each."""
    loss = loss_on_answers(model, documents)
    optimizer.zero_grad()
    loss.backward()
    all_sum(loss, *(weight.grad for weight in model.parameters() if weight.grad is not None))
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip)
    optimizer.step()
    return loss.detach(), norm


def evaluate(model: Transformer, n_prompts: int, every_task: bool) -> Table:
    """Accuracy by task, k and number of shots; the asked answer is none of those shown.

    Addition is asked n_prompts times for every k, each other task (if wanted) about as often for
    all its k together. Base-k addition has two rows, by whether the query carries.
    """
    generator = torch.Generator().manual_seed(2025)  # the same prompts for every run
    table: Table = {}
    for task in tasks.TASKS if every_task else ["addition"]:
        ks = tasks.TASKS[task].ks
        n = n_prompts if task == "addition" else n_prompts // (len(ks) - 1)
        for k, shots in product(ks, SHOTS):
            pairs = tasks.evaluation_pairs(task, k, shots, n, generator)
            if pairs.contrast.shape[1] > model.cfg.n_ctx:
                continue
            right, carry = answers_right(model, pairs), pairs.carry
            rows = {task: right}
            if tasks.TASKS[task].wrapper == "base":
                rows = {f"{task}_carry": right[carry], f"{task}_no_carry": right[~carry]}
            for name, part in rows.items():
                by_shots = table.setdefault(name, {}).setdefault(str(k), {})
                by_shots[str(shots)] = round(part.mean().item(), 4)  # NaN where there is none
    return table


def answers_right(model: Transformer, pairs: tasks.Pairs) -> Tensor:
    """1 where the model answers a contrast prompt as asked, else 0: [n_prompts] float64.

    Several processes share the prompts."""
    right = torch.zeros(len(pairs.contrast), dtype=torch.float64)
    given = last_logits(model, share(pairs.contrast)).argmax(-1).cpu()
    share(right)[:] = (given == share(pairs.contrast_answers)).double()
    all_sum(right)
    return right


def describe(model_cfg: ModelConfig, cfg: TrainConfig, diet: tasks.Diet) -> dict[str, Any]:
    """What goes into config.json."""
    versions = {"minifunc": minifunc.__version__, "torch": torch.__version__}
    config = {
        "model": asdict(model_cfg),
        "train": asdict(cfg),
        "diet": asdict(diet),
        "vocabulary": tasks.VOCABULARY,
        "versions": versions | {"python": sys.version.split()[0]},
    }
    return as_json(config)


def train(
    out: Path,
    model_cfg: ModelConfig,
    cfg: TrainConfig,
    diet: tasks.Diet,
    device: torch.device,
    resume: bool = False,
    after_step: Callable[[int, Transformer], None] | None = None,
) -> Transformer:
    """Trains one run into the folder `out` and returns the model.

    after_step(step, model) is called after every update, before a checkpoint is made. Raises
    UserError where the run cannot go on, and Diverged where its loss is no longer finite.
    """
    config = describe(model_cfg, cfg, diet)
    checkpoint = load_checkpoint(out, config) if resume else None
    model = Transformer(model_cfg, torch.Generator().manual_seed(cfg.seed)).to(device)
    optimizer = make_optimizer(model, cfg)
    data = torch.Generator().manual_seed(cfg.seed + 1_000_000)
    run = Progress(out, config, model, optimizer, data)
    run.begin(checkpoint)
    done, shown = run.step, {}
    bar = tqdm(total=cfg.steps, initial=done, desc="train", unit="step", disable=None)

    with StopAsked() as stop, bar:
        for step in range(done + 1, cfg.steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = cfg.lr_at(step)
            documents = tasks.sample(diet, *cfg.batch_at(step), data)
            loss, norm = train_step(model, optimizer, cfg, documents)
            run.step = step

            stopping = any_process(stop.asked)
            evaluating = step % cfg.eval_every == 0 or step == cfg.steps
            if evaluating or stopping or step % 20 == 0:  # to look at a value makes a GPU wait
                run.check_finite(loss, norm)
                shown["loss"] = f"{loss.item():.3f}"
            if after_step:
                after_step(step, model)
            if evaluating:
                table = evaluate(model, 100, every_task=False)
                line = {"step": step, "seconds": round(run.seconds, 2)}
                run.metrics.append(line | {"loss": round(loss.item(), 5), "accuracy": table})
                for name, k in (("1+1=2", "0"), ("1+1=3", "1")):
                    shown[name] = f"{table['addition'][k].get('8', math.nan):.2f}"
            if evaluating or stopping:
                run.save()
            bar.set_postfix(shown, refresh=False)
            bar.update()
            if stopping:
                stopped = f"stopped after step {step} of {cfg.steps}"
                raise KeyboardInterrupt(f"{stopped}: go on with --resume")

    if done == cfg.steps:  # nothing was left to do, but a kill may have come between two files
        run.save()
    return model.requires_grad_(False).eval()


def print_table(model: Transformer, diet: tasks.Diet, n_prompts: int) -> None:
    """Accuracy by task and number of shots; what the diet never shows is marked."""
    table = evaluate(model, n_prompts, every_task=True)
    others = [task for task in table if task != "addition"]
    rows = [("addition", [k]) for k in sorted(table["addition"], key=lambda k: (k != "0", int(k)))]
    rows += [(task, ["0"]) for task in others if "0" in table[task]]
    rows += [(task, [k for k in table[task] if k != "0"]) for task in others]
    about = "(other tasks: about as many for all their k together)"
    print(f"accuracy on {n_prompts} prompts {about}; the asked answer is none of those shown")
    print(f"{'task':24}{'shots':>6}" + "".join(f"{shots:>7}" for shots in SHOTS))
    for name, ks in rows:
        task = tasks.TASKS["base_addition" if name.startswith("base_addition") else name]
        if task.wrapper == "base":
            how = f"{ks[0]}..{ks[-1]}"
        elif ks == ["0"]:
            how = "plain"
        else:
            how = f"off by {int(ks[0]):+d}" if name == "addition" else "shifted"
        line = f"{name.replace('_', ' ')} {how}".ljust(30)
        for shots in SHOTS:
            shares = [table[name][k].get(str(shots), math.nan) for k in ks]
            line += f"{sum(shares) / len(ks):7.3f}"
        shown = task.symbol in diet.under("plain" if ks == ["0"] else task.wrapper)
        shown |= name == "addition" and int(ks[0]) in diet.shifted_addition
        print(line if shown else f"{line}   never trained on")


def parse(argv: list[str] | None) -> Namespace:
    parser = Parser(prog="train.py", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--out", default="out/default", help="folder of the run (default: %(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda, mps (default: %(default)s)")
    diets = f"{', '.join(tasks.DIETS)}, or a JSON file of a diet's fields"
    add("--diet", help=f"{diets} (default: {tasks.DEFAULT_DIET.name})")
    add("--resume", action="store_true", help="go on with the run in --out")
    behind = "prompts behind each figure of the last table (default: %(default)s)"
    add("--table-prompts", type=int, default=500, help=behind)
    add_flags(parser, "training", TrainConfig())
    add_flags(parser, "model", MODEL)
    return parser.parse_args(argv)


def run(argv: list[str] | None) -> int:
    arguments = parse(argv)
    out, device = Path(arguments.out), pick_device(arguments.device)
    if not 8 <= arguments.table_prompts <= 100_000:
        raise UserError("--table-prompts must be from 8 to 100000")
    defaults = {"model": MODEL, "train": TrainConfig(), "diet": tasks.DEFAULT_DIET}
    chosen = chosen_settings(arguments, defaults, tasks.DIETS, tasks.VOCABULARY)
    model_cfg, cfg, diet = chosen
    d_vocab, n_ctx = len(tasks.VOCABULARY), 1 + tasks.EXAMPLE * cfg.longest
    if model_cfg.d_vocab < d_vocab or model_cfg.n_ctx < n_ctx:
        place = f"{out / 'config.json'}: " if arguments.resume else ""
        needs = f"d_vocab >= {d_vocab} and n_ctx >= {n_ctx}"
        raise UserError(f"{place}the model needs {needs} for documents of {cfg.longest} examples")
    config = describe(model_cfg, cfg, diet)
    if not arguments.resume:
        check_unused(out, config)
    device = join(device)
    try:
        with claimed(out, config, arguments.resume):
            model = train(out, model_cfg, cfg, diet, device, arguments.resume)
            print_table(model, diet, arguments.table_prompts)
    except KeyboardInterrupt as stop:
        at_once = "stopped at once: --resume goes on from the last checkpoint"
        print(str(stop) or at_once, file=sys.stderr)
        return 130
    print(f"the run is in {out}")
    return 0


def main(argv: list[str] | None = None) -> int:
    return run_together(lambda: run(argv))


if __name__ == "__main__":
    sys.exit(main())
