"""Trains a model on a diet: `python train.py --out out/default`.

What is learned: next-token prediction on documents of examples (tasks.py), scored at answers that
earlier ones determine. The run can be stopped at any moment (Ctrl-C); --resume goes on, to the same
final weights. `torchrun --nproc-per-node=4 train.py` shares out every batch among four processes.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import AdamW, Optimizer

import tasks
from minifunc.model import ModelConfig, Transformer
from minifunc.report.accuracy import accuracy_table
from minifunc.support.checkpoints import Progress, claimed, load_checkpoint
from minifunc.support.checks import check_train_config
from minifunc.support.evaluation import Table, accuracy_by_shots
from minifunc.support.flags import pick_device
from minifunc.support.graphs import Graphed, deterministic
from minifunc.support.processes import all_sum, run_together, share
from minifunc.support.runs import make_command
from minifunc.support.settings import check_room, chosen_settings, described, run_arguments
from minifunc.support.settled import settled

AfterStep = Callable[[int, Transformer], None]
MODEL = ModelConfig(n_heads=6, d_vocab=len(tasks.VOCABULARY), act_fn="relu", rotary_base=100.0)
SHOTS = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained, by AdamW (Loshchilov & Hutter 2019). Raises ValueError."""

    seed: int = 0
    steps: int = 3500
    documents: int = 64  # a batch is [documents, 1 + 6 * examples] tokens
    examples: int = 9
    long_every: int = 2  # each so-many-th batch: half the documents, twice as long (0: none)
    lr: float = 1e-2
    warmup: int = 100  # steps
    beta2: float = 0.95
    weight_decay: float = 0.2
    clip: float = 1.0  # the longest gradient
    eval_every: int = 250  # steps

    def __post_init__(self) -> None:
        check_train_config(self)

    def lr_at(self, step: int) -> float:
        """Learning rate of step 1 .. steps: a ramp times a falling cosine, both from step 1."""
        warm = min(1.0, step / max(1, self.warmup))
        return self.lr * warm * 0.5 * (1 + math.cos(math.pi * (step - 1) / self.steps))

    def batch_at(self, step: int) -> tuple[int, int]:
        """(documents, examples) of a step."""
        if self.long_every and step % self.long_every == 0:
            return max(1, self.documents // 2), self.longest
        return self.documents, self.examples

    @property
    def longest(self) -> int:
        """Examples in the longest document: a query after n - 1 shots, or after twice as many."""
        return 2 * self.examples - 1 if self.long_every else self.examples


def loss_on_answers(model: Transformer, tokens: Tensor, determined: Tensor) -> Tensor:
    """Mean cross-entropy (nats) over the determined answers of all documents, []. tokens
    [document, pos], determined [document, example]. Of several processes: this one's part of it."""
    places = tasks.answer_positions(determined.shape[1], tokens.device)
    count = determined.sum().clamp(min=1)  # over all processes
    tokens, determined = share(tokens), share(determined)
    answers = tokens[:, places]  # [document, example]
    logits = model(tokens, places - 1)  # at the `=` signs alone: [document, example, d_vocab]
    losses = F.cross_entropy(logits.flatten(0, 1), answers.flatten(), reduction="none")
    return (losses.view(answers.shape) * determined).sum() / count


def make_optimizer(model: Transformer, cfg: TrainConfig) -> AdamW:
    fused, decay = model.device.type != "mps", cfg.weight_decay
    return AdamW(model.parameters(), cfg.lr, (0.9, cfg.beta2), weight_decay=decay, fused=fused)


@settled
def train_step(
    model: Transformer, optimizer: Optimizer, cfg: TrainConfig, rate: float | Tensor, *batch: Tensor
) -> tuple[Tensor, Tensor]:
    """One step on one batch → its loss and the norm of the gradient before clipping, [] each."""
    loss = loss_on_answers(model, *batch)
    optimizer.zero_grad()
    loss.backward()
    all_sum(loss, *(weight.grad for weight in model.parameters() if weight.grad is not None))
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip)
    optimizer.param_groups[0]["lr"] = rate
    optimizer.step()
    return loss.detach(), norm


def evaluate(model: Transformer, n_prompts: int, every_task: bool) -> Table:
    """Accuracy on addition, or on every task, by k and number of shots."""
    names = list(tasks.TASKS) if every_task else ["addition"]
    return accuracy_by_shots(model, tasks, names, SHOTS, n_prompts)


@settled
def train(
    out: Path,
    model_cfg: ModelConfig,
    cfg: TrainConfig,
    diet: tasks.Diet,
    device: torch.device,
    resume: bool = False,
    after_step: AfterStep | None = None,
) -> Transformer:
    """Trains one run into the folder `out`; after_step(step, model) is called after every update.
    Raises UserError where the run cannot go on, and Diverged where its loss is not finite."""
    config = described(model_cfg, cfg, diet, tasks.VOCABULARY)
    checkpoint = load_checkpoint(out, config) if resume else None
    model = Transformer(model_cfg, torch.Generator().manual_seed(cfg.seed)).to(device)
    optimizer = make_optimizer(model, cfg)
    update = Graphed(train_step, model, optimizer, cfg)  # which CUDA launches as a whole
    data = torch.Generator().manual_seed(cfg.seed + 1_000_000)
    run = Progress(out, config, model, optimizer, data)
    with deterministic(device), run.going_on(checkpoint):
        for step in range(run.step + 1, cfg.steps + 1):
            documents = tasks.sample(diet, *cfg.batch_at(step), data)
            batch = documents.tokens.to(device), documents.determined.to(device)
            loss, norm = update(cfg.lr_at(step), *batch)

            evaluating = step % cfg.eval_every == 0 or step == cfg.steps
            run.made(step, loss, norm, look=evaluating)
            if after_step:
                after_step(step, model)
            if evaluating:
                run.add_metrics(evaluate(model, 100, every_task=False))
            run.end_step(save=evaluating)
    return model.requires_grad_(False).eval()


def print_table(model: Transformer, diet: tasks.Diet, n_prompts: int) -> None:
    """Accuracy by task and number of shots; what the diet never shows is marked."""
    table = evaluate(model, n_prompts, every_task=True)
    print(*accuracy_table(table, tasks, diet, SHOTS, n_prompts), sep="\n")


def work(argv: list[str] | None, after_step: AfterStep | None) -> int:
    defaults = {"model": MODEL, "train": TrainConfig(), "diet": tasks.DEFAULT_DIET}
    arguments = run_arguments(argv, __doc__, defaults, tasks.DIETS)
    out, device = Path(arguments.out), pick_device(arguments.device)
    model_cfg, cfg, diet = chosen_settings(arguments, defaults, tasks.DIETS, tasks.VOCABULARY)
    needs = {"d_vocab": len(tasks.VOCABULARY), "n_ctx": 1 + tasks.EXAMPLE * cfg.longest}
    check_room(arguments, model_cfg, needs, f"documents of {cfg.longest} examples")
    config = described(model_cfg, cfg, diet, tasks.VOCABULARY)
    with claimed(out, config, arguments.resume, device) as device:
        model = train(out, model_cfg, cfg, diet, device, arguments.resume, after_step)
        print_table(model, diet, arguments.table_prompts)
    print(f"the run is in {out}", f"next: {make_command('patch', out)}", sep="\n")
    return 0


def main(argv: list[str] | None = None, after_step: AfterStep | None = None) -> int:
    return run_together(lambda: work(argv, after_step))


if __name__ == "__main__":
    sys.exit(main())
