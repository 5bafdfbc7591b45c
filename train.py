"""Trains a model on a diet: `python train.py --out out/default`.

What is learned: next-token prediction on documents of examples (tasks.py), scored at the answers only. The run
can be stopped at any moment (Ctrl-C) and taken up again with --resume, to the same final weights.
`torchrun --nproc-per-node=4 train.py` shares out every batch and every evaluation among four processes.
"""

import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import minifunc
import tasks
from minifunc.model import ModelConfig, Transformer
from minifunc.support.errors import UserError
from minifunc.support.evaluation import accuracy, last_logits
from minifunc.support.files import (
    check_writable,
    load_json,
    load_tensors,
    locked,
    save_json,
    save_lines,
    save_tensors,
)
from minifunc.support.flags import Parser, add_flags, from_flags, pick_device
from minifunc.support.processes import (
    all_sum,
    any_process,
    is_main,
    join,
    rank,
    run_together,
    share,
    world_size,
)
from minifunc.support.runs import model_config, weights_fault, whole


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained. AdamW (Loshchilov & Hutter 2019), linear warm-up, cosine decay, gradient clipping.

    documents, examples: a batch is [documents, 1 + 6 * examples] tokens; every `long_every`-th batch has half the
    documents at about twice the length, so that the model also works beyond 8 shots (0: never). warmup,
    eval_every: in steps.
    """

    seed: int = 0
    steps: int = 2600
    documents: int = 64
    examples: int = 9
    long_every: int = 2
    lr: float = 7e-3
    warmup: int = 100
    beta2: float = 0.95
    weight_decay: float = 0.2
    clip: float = 1.0
    eval_every: int = 250

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = (
                getattr(self, field.name),
                {"examples": 2, "steps": 1, "documents": 1, "eval_every": 1}.get(field.name, 0),
            )
            most = 100_000 if field.name in ("documents", "examples") else 2**40
            is_number = type(value) is field.type or (field.type is float and type(value) is int)
            if not is_number or not least <= value <= most:
                raise ValueError(
                    f"{field.name} must be a number from {least} to {most}, not {value!r:.60}"
                )
        if not self.lr > 0 or not self.clip > 0 or not self.beta2 < 1:
            raise ValueError("lr and clip must be positive, and beta2 below 1")

    def lr_at(self, step: int) -> float:
        """Learning rate of step 1 .. steps: up in a line, then down to nothing along a cosine."""
        warm = min(1.0, step / max(1, self.warmup))
        return self.lr * warm * 0.5 * (1 + math.cos(math.pi * (step - 1) / self.steps))

    def batch_at(self, step: int) -> tuple[int, int]:
        """(documents, examples) of a step."""
        long = self.long_every and step % self.long_every == 0
        return (
            (max(1, self.documents // 2), self.longest) if long else (self.documents, self.examples)
        )

    @property
    def longest(self) -> int:
        """Examples in the longest document."""
        return 2 * self.examples - 1 if self.long_every else self.examples


MODEL = ModelConfig(n_heads=6, d_vocab=len(tasks.VOCABULARY), act_fn="relu", rotary_base=100.0)
SHOTS = (1, 2, 4, 8, 16)
MOST_PROMPTS = 100_000


def loss_on_answers(model: Transformer, documents: tasks.Documents) -> Tensor:
    """Cross-entropy (nats) of the answers that what stands before them determines; the rest would only add noise.

    The model is asked at the `=` signs alone, which spares five positions of six in the last block. With several
    processes: the sum over this one's share of the documents, divided by the count over all of them.
    """
    device = model.unembed.W_U.device
    places = tasks.answer_positions(documents.answer.shape[1])
    tokens = share(documents.tokens).to(device)
    labels = tokens[:, places.to(device)]  # [document, example]
    logits = model(tokens, (places - 1).to(device))  # [document, example, d_vocab]
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(
        labels.shape
    )
    counted = share(documents.determined).to(device)
    return (losses * counted).sum() / documents.determined.sum().clamp(min=1)


def make_optimizer(model: Transformer, cfg: TrainConfig) -> torch.optim.AdamW:
    on_mps = model.unembed.W_U.device.type == "mps"
    return torch.optim.AdamW(
        model.parameters(),
        lr=cfg.lr,
        betas=(0.9, cfg.beta2),
        weight_decay=cfg.weight_decay,
        fused=not on_mps,
    )


def train_step(
    model: Transformer,
    optimizer: torch.optim.Optimizer,
    cfg: TrainConfig,
    documents: tasks.Documents,
) -> tuple[Tensor, Tensor]:
    """One step on one batch; returns the loss and the norm of the gradient before clipping, both [] on the device."""
    loss = loss_on_answers(model, documents)
    optimizer.zero_grad()
    loss.backward()
    all_sum(loss, *(weight.grad for weight in model.parameters() if weight.grad is not None))
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip)
    optimizer.step()
    return loss.detach(), norm


def evaluate(
    model: Transformer, n_prompts: int, every_task: bool
) -> dict[str, dict[str, dict[str, float]]]:
    """Accuracy by task, k and number of shots, on prompts of the main setting: {task: {k: {shots: share}}}.

    Addition is asked for every k with n_prompts prompts each; the other tasks (if wanted) with about n_prompts for all
    their k together. Base-k addition stands in two rows: `base_addition_carry` and `base_addition_no_carry`, by the query.
    Several processes take turns at the entries of the table.
    """
    generator = torch.Generator().manual_seed(2025)  # the same prompts for every run
    entries, shares = [], []
    rows = [
        (task, k)
        for task in (tasks.TASKS if every_task else ["addition"])
        for k in tasks.TASKS[task].ks
    ]
    for row, (task, k) in enumerate(rows):
        for column, shots in enumerate(SHOTS):
            n = n_prompts if task == "addition" else n_prompts // (len(tasks.TASKS[task].ks) - 1)
            pairs = tasks.evaluation_pairs(task, k, shots, n, generator)
            if pairs.contrast.shape[1] > model.cfg.n_ctx:
                continue
            mine = (
                row + column
            ) % world_size() == rank()  # long prompts and short ones for everybody
            logits = last_logits(model, pairs.contrast).cpu() if mine else None
            based = tasks.TASKS[task].wrapper == "base"
            for name, part in (
                {f"{task}_carry": pairs.carry, f"{task}_no_carry": ~pairs.carry}.items()
                if based
                else [(task, torch.ones(n, dtype=torch.bool))]
            ):
                entries.append((name, str(k), str(shots)))
                shares.append(
                    0.0
                    if logits is None
                    else accuracy(logits[part], pairs.contrast_answers[part])
                    if part.any()
                    else math.nan
                )
    known = torch.tensor(shares, dtype=torch.float64)
    all_sum(known)
    table: dict[str, dict[str, dict[str, float]]] = {}
    for (name, at_k, at_shots), right in zip(entries, known.tolist()):
        table.setdefault(name, {}).setdefault(at_k, {})[at_shots] = round(right, 4)
    return table


def describe(model_cfg: ModelConfig, cfg: TrainConfig, diet_name: str) -> dict[str, Any]:
    """What goes into config.json."""
    diet = {"name": diet_name, **asdict(tasks.DIETS[diet_name])}
    versions = {
        "minifunc": minifunc.__version__,
        "torch": torch.__version__,
        "python": sys.version.split()[0],
    }
    config = {
        "model": asdict(model_cfg),
        "train": asdict(cfg),
        "diet": diet,
        "vocabulary": tasks.VOCABULARY,
        "versions": versions,
    }
    return json.loads(json.dumps(config))  # as it will be read back


class Diverged(UserError):
    """The loss, the gradient or a weight is no longer finite."""


def train(
    out: Path,
    model_cfg: ModelConfig,
    cfg: TrainConfig,
    diet_name: str,
    device: torch.device,
    resume: bool = False,
    after_step: Callable[[int, Transformer], None] | None = None,
) -> Transformer:
    """Trains one run into the folder `out` and returns the model. Raises UserError where it cannot, `Diverged` where the loss diverges.

    after_step(step, model): called after every update, before a checkpoint is made.
    """
    diet = tasks.DIETS[diet_name]
    config = describe(model_cfg, cfg, diet_name)
    if is_main():
        for name in ("resume.pt", "model.pt", "metrics.jsonl"):
            check_writable(out / name)  # now, not after the first steps
    state = load_checkpoint(out, config) if resume else None
    model = Transformer(model_cfg, torch.Generator().manual_seed(cfg.seed)).to(device)
    optimizer = make_optimizer(model, cfg)
    data = torch.Generator().manual_seed(cfg.seed + 1_000_000)
    done, seconds, lines = 0, 0.0, []
    if state:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(
            {"state": state["moments"], "param_groups": optimizer.state_dict()["param_groups"]}
        )
        data.set_state(state["data"])
        done, seconds, lines = state["step"], state["seconds"], state["metrics"]
    elif is_main():
        save_json(out / "config.json", config)

    def diverged(step: int) -> Diverged:
        kept = (
            f"{out} keeps its last good checkpoint"
            if (out / "resume.pt").exists()
            else "no checkpoint had been made yet"
        )
        return Diverged(f"the loss is no longer finite at step {step}: {kept}; try a lower --lr")

    started, stop = time.perf_counter() - seconds, StopAsked()
    bar = tqdm(
        total=cfg.steps, initial=done, desc="train", unit="step", mininterval=0.5, disable=None
    )
    shown: dict[str, str] = {}

    def checkpoint(step: int) -> None:
        if not all(weight.isfinite().all() for weight in model.parameters()):
            raise diverged(step)
        if not is_main():
            return
        state = {
            "config": config,
            "step": step,
            "seconds": time.perf_counter() - started,
            "metrics": json.dumps(lines),
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "data": data.get_state(),
        }
        save_tensors(out / "resume.pt", state)
        save_tensors(out / "model.pt", model.state_dict())
        save_lines(out / "metrics.jsonl", lines)

    with stop, bar:
        for step in range(done + 1, cfg.steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = cfg.lr_at(step)
            loss, norm = train_step(
                model, optimizer, cfg, tasks.sample(diet, *cfg.batch_at(step), data)
            )
            asked = any_process(stop.asked)
            pause = step % cfg.eval_every == 0 or step == cfg.steps or asked
            if pause or step % 20 == 0:  # looking at a value makes a GPU wait, so not at every step
                if not (loss + norm).isfinite():
                    raise diverged(step)
                shown["loss"] = f"{loss.item():.3f}"
            if after_step:
                after_step(step, model)
            if step % cfg.eval_every == 0 or step == cfg.steps:
                table = evaluate(model, 100, every_task=False)
                shown |= {
                    "1+1=2": f"{table['addition']['0'].get('8', math.nan):.2f}",
                    "1+1=3": f"{table['addition']['1'].get('8', math.nan):.2f}",
                }
                lines.append(
                    {
                        "step": step,
                        "seconds": round(time.perf_counter() - started, 2),
                        "loss": round(loss.item(), 5),
                        "accuracy": table,
                    }
                )
            if pause:
                checkpoint(step)
            bar.set_postfix(shown, refresh=False)
            bar.update()
            if asked:
                raise KeyboardInterrupt(
                    f"stopped after step {step} of {cfg.steps}: go on with --resume"
                )
    if done == cfg.steps:  # nothing was left to do; a kill may have come between two files
        checkpoint(done)
    return model.requires_grad_(False).eval()


def load_checkpoint(out: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The resume.pt of an interrupted run, with the optimizer's state by parameter as `moments`. It is checked whole
    before anything large is made or anything changed; how the optimizer goes on is for config.json to say."""
    path = out / "resume.pt"
    state = load_tensors(path)
    with torch.device("meta"):
        model = Transformer(ModelConfig(**config["model"]))
    try:
        if any(state["config"][part] != config[part] for part in ("model", "train", "diet")):
            raise UserError(f"{path} belongs to another run than {out / 'config.json'}")
        fault = weights_fault(model, state["model"])
        if fault:
            raise UserError(f"{path} does not fit config.json: {fault}")
        done, seconds, lines, moments = (
            state["step"],
            state["seconds"],
            json.loads(state["metrics"]),
            {},
        )
        sound = (
            type(done) is int
            and 0 < done <= config["train"]["steps"]
            and type(seconds) is float
            and 0 <= seconds < math.inf
        )
        for index, weight in enumerate(model.parameters()):
            moments[index] = {
                key: state["optimizer"]["state"][index][key]
                for key in ("step", "exp_avg", "exp_avg_sq")
            }
            for key, value in moments[index].items():
                sound = (
                    sound
                    and whole(value, torch.Size() if key == "step" else weight.shape)
                    and (key == "step" or value.dtype == weight.dtype)
                    and bool(value.isfinite().all())
                )
        torch.Generator().set_state(state["data"])
        json.dumps(lines, allow_nan=False)
        if (
            not sound
            or type(lines) is not list
            or not all(type(line) is dict for line in lines)
            or any(entry["step"] != done for entry in moments.values())
        ):
            raise ValueError
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError):
        raise UserError(f"{path} is damaged or no checkpoint of ours") from None
    return state | {"moments": moments, "metrics": lines}


class StopAsked:
    """Turns the first Ctrl-C into a wish to stop after the step at hand; a second one stops at once."""

    asked = False

    def _ask(self, signum: int, frame: Any) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, self.before)

    def __enter__(self) -> None:
        try:
            self.before = signal.signal(signal.SIGINT, self._ask)
        except ValueError:  # not the main thread: Ctrl-C is somebody else's business
            self.before = None

    def __exit__(self, *_: object) -> None:
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)


def print_table(model: Transformer, diet_name: str, n_prompts: int) -> None:
    """Accuracy by task and number of shots; what the diet never showed is marked."""
    table = evaluate(model, n_prompts, every_task=True)
    allowed = tasks.DIETS[diet_name].shifted_addition
    print(
        f"accuracy on {n_prompts} prompts (other tasks: about as many for all their k together); the asked answer is none of those shown"
    )
    print(f"{'task':24}{'shots':>6}" + "".join(f"{shots:>7}" for shots in SHOTS))
    rows = [("addition", [k]) for k in ["0", *sorted(set(table["addition"]) - {"0"}, key=int)]]
    rows += [(task, ["0"]) for task in table if task != "addition" and "0" in table[task]]
    rows += [(task, [k for k in table[task] if k != "0"]) for task in table if task != "addition"]
    for task, ks in rows:
        shares = [
            sum(table[task][k].get(str(shots), math.nan) for k in ks) / len(ks) for shots in SHOTS
        ]
        based = task.startswith("base_addition")
        unseen = ks != ["0"] and (
            based
            or tasks.TASKS[task].wrapper in tasks.TASKS[task].never
            and int(ks[0]) not in (allowed if task == "addition" else ())
        )
        how = (
            f"{ks[0]}..{ks[-1]}"
            if based
            else "plain"
            if ks == ["0"]
            else "shifted"
            if len(ks) > 1
            else f"off by {int(ks[0]):+d}"
        )
        print(
            f"{task.replace('_', ' ')} {how}".ljust(30)
            + "".join(f"{share:7.3f}" for share in shares)
            + ("   never trained on" if unseen else "")
        )


def main(argv: list[str] | None = None) -> int:
    def work() -> int:
        parser = Parser(prog="train.py", description=__doc__.splitlines()[0])
        parser.add_argument(
            "--out", default="out/default", help="folder of the run (default: %(default)s)"
        )
        parser.add_argument(
            "--device", default="auto", help="auto, cpu, cuda, mps (default: %(default)s)"
        )
        parser.add_argument(
            "--diet", help=f"one of: {', '.join(tasks.DIETS)} (default: {tasks.DEFAULT_DIET})"
        )
        parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
        parser.add_argument(
            "--table-prompts",
            type=int,
            default=500,
            help="prompts behind each figure of the last table (default: %(default)s)",
        )
        add_flags(parser, "training", TrainConfig())
        add_flags(parser, "model", MODEL)
        arguments = parser.parse_args(argv)
        out, device = Path(arguments.out), pick_device(arguments.device)
        if not 8 <= arguments.table_prompts <= MOST_PROMPTS:
            raise UserError(f"--table-prompts must be from 8 to {MOST_PROMPTS}")
        if arguments.resume:
            model_cfg, cfg, diet_name = settings_of(out, arguments)
        else:
            model_cfg, cfg, diet_name = (
                from_flags(arguments, MODEL),
                from_flags(arguments, TrainConfig()),
                arguments.diet or tasks.DEFAULT_DIET,
            )
        if diet_name not in tasks.DIETS:
            raise UserError(f"unknown diet {diet_name!r}; the diets are {', '.join(tasks.DIETS)}")
        if (
            model_cfg.d_vocab < len(tasks.VOCABULARY)
            or model_cfg.n_ctx < 1 + tasks.EXAMPLE * cfg.longest
        ):
            place = f"{out / 'config.json'}: " if arguments.resume else ""
            raise UserError(
                f"{place}the model needs d_vocab >= {len(tasks.VOCABULARY)} and n_ctx >= {1 + tasks.EXAMPLE * cfg.longest} for documents of {cfg.longest} examples"
            )
        if not arguments.resume:
            check_empty(out, describe(model_cfg, cfg, diet_name))
        device = join(device)
        try:
            if is_main():
                out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the folder {out}: {error.strerror}") from None
        try:
            with locked(out) if is_main() else nullcontext():
                if is_main() and not arguments.resume:
                    check_empty(
                        out, describe(model_cfg, cfg, diet_name)
                    )  # once more: another process may have been faster
                print_table(
                    train(out, model_cfg, cfg, diet_name, device, arguments.resume),
                    diet_name,
                    arguments.table_prompts,
                )
        except KeyboardInterrupt as stop:
            print(
                str(stop) or "stopped at once: --resume goes on from the last checkpoint",
                file=sys.stderr,
            )
            return 130
        print(f"the run is in {out}")
        return 0

    return run_together(work)


def check_empty(out: Path, config: dict[str, Any]) -> None:
    """Raises UserError where a new run would overwrite something. A config.json of ours, alone, is what a run
    leaves behind that ended before its first checkpoint: nothing is lost with it."""
    found = [
        name
        for name in ("config.json", "metrics.jsonl", "model.pt", "resume.pt", "circuit.json")
        if os.path.exists(out / name)
    ]
    ours = (
        found == ["config.json"]
        and isinstance(load_json(out / "config.json"), dict)
        and load_json(out / "config.json").keys() == config.keys()
    )
    if found and not ours:
        raise UserError(
            f"{out} already holds {found[-1]}: go on with --resume, or give another --out"
        )


def settings_of(out: Path, arguments: Any) -> tuple[ModelConfig, TrainConfig, str]:
    """The settings of the run to go on with; a flag that contradicts them is a UserError."""
    path = out / "config.json"
    config = load_json(path)
    try:
        model_cfg = model_config(config["model"], path)
        cfg = TrainConfig(**config["train"])
        diet_name = config["diet"]["name"]
        if (
            config["diet"] != describe(model_cfg, cfg, diet_name)["diet"]
            or config["vocabulary"] != tasks.VOCABULARY
        ):
            raise UserError(
                f"{path}: the run was made with another diet or vocabulary than this version has; it cannot go on"
            )
    except (KeyError, TypeError, ValueError, RecursionError):
        raise UserError(f"{path} is no config of ours") from None
    for name, value in {**asdict(model_cfg), **asdict(cfg), "diet": diet_name}.items():
        given = getattr(arguments, name, None)
        if given is not None and given != value:
            raise UserError(
                f"the run in {out} has {name} {value}, not {given}: give another --out, or leave --{name.replace('_', '-')} out"
            )
    return model_cfg, cfg, diet_name


if __name__ == "__main__":
    sys.exit(main())
