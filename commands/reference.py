"""Trains the run in reference/ anew: `python -m commands.reference`.

The default run is trained into a temporary folder beside reference/, and swapped in whole once it
is done, so that an interruption leaves the old one. Flags of train.py go on to it. On the way the
model is looked at, for the report to show how it learned: learning.json. In the end it is traced,
as by `make patch`: circuit.json.
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Generator

import patch
import tasks
import train
from minifunc.circuit import Criteria, attention_shares, direct_groups
from minifunc.model import Transformer
from minifunc.patching import Logits
from minifunc.support.errors import UserError, command, first_line
from minifunc.support.files import save_json, save_text
from minifunc.support.flags import Parser
from minifunc.support.runs import REFERENCE, load_run, weights_hash
from minifunc.support.settings import TABLE_PROMPTS
from minifunc.support.tables import rounded

FILES = ("config.json", "model.pt", "metrics.jsonl", "learning.json", "circuit.json")
PROMPT = tasks.encode("1+1=3, 2+2=5, 3+3=")  # what the README begins with


@torch.no_grad()
def look(model: Transformer) -> dict[str, Any]:
    """The model as it is at one step; nothing is drawn from the generators of training.
    plain, off_by_one: accuracy. r, to_answers: [n_layers][n_heads], as `make patch` has them. On
    PROMPT: answers, the likeliest five, and attention [n_layers][n_heads][pos] from the last =."""
    study = patch.Study()
    pairs = study.pairs(study.prompts, Generator().manual_seed(study.seed))
    right = patch.solving(model, pairs)
    patcher = study.patchers(model, pairs)["answers"]
    to_logits = patcher.sweep(Logits()).heads
    shares = attention_shares(model, pairs.contrast, tasks.answer_positions(study.shots))
    to_answers = torch.tensor([each["last_to_answers"] for each in shares.values()])
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers)]
    logits, patterns = model.run_with_cache(PROMPT[None].to(model.device), names)
    best = logits[0, -1].softmax(-1).topk(5)
    seen = {
        "plain": right["base_prompt"]["base"],
        "off_by_one": right["contrast_prompt"]["contrast"],
        "F_range": patcher.F_range,
        "r": to_logits.tolist(),
        "to_answers": to_answers.view(to_logits.shape).tolist(),
        "fi": direct_groups(to_logits, shares, Criteria())["function_induction"],
        "answers": [[tasks.VOCABULARY[i], p] for i, p in zip(best.indices, best.values.tolist())],
        "attention": [patterns[name][0, :, -1].tolist() for name in names],
    }
    return rounded(seen, 3)


def learning(run: Path, looks: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """What learning.json holds: looks by step, and those at a run's first and last weights; and
    what the closing table of `make train` is made of."""
    model, config = load_run(run)  # raises UserError where the run is not sound
    untrained = Transformer(model.cfg, Generator().manual_seed(config["train"]["seed"]))
    looks = {0: look(untrained)} | looks | {config["train"]["steps"]: look(model)}
    return {
        "weights": weights_hash(model.state_dict()),
        "prompt": tasks.decode(PROMPT),
        "n_prompts": patch.Study().prompts,
        "criteria": vars(Criteria()),
        "accuracy": train.evaluate(model, TABLE_PROMPTS, every_task=True),
        "looks": [{"step": step} | seen for step, seen in looks.items()],
    }


def settle(folder: Path, old: Path) -> None:
    """Ends a swap, or undoes one that stopped between its two renames."""
    if old.exists() and not folder.exists():
        os.replace(old, folder)
    shutil.rmtree(old, ignore_errors=True)


def renew(folder: Path, flags: list[str]) -> int:
    """Trains with `flags` of train.py and puts the run into `folder` → the exit code."""
    old = folder.with_name(f"{folder.name}.old.tmp")
    settle(folder, old)  # a process may have been killed
    if foreign := sorted({path.name for path in folder.glob("*")} - {*FILES}):
        raise UserError(f"{folder} also holds {foreign[0]}, which would be lost")
    new, looks = Path(tempfile.mkdtemp(".tmp", f"{folder.name}.", folder.parent)), {}

    def after_step(step: int, model: Transformer) -> None:
        if step % (25 if step <= 500 else 125) == 0:  # in the first 500 it learns the most
            looks[step] = look(model)

    try:
        code = train.main([*flags, "--out", str(new)], after_step)
        if code != 0:
            return code
        save_text(new / "learning.json", json.dumps(learning(new, looks)) + "\n")
        traced = patch.trace(load_run(new)[0], patch.Study(), Criteria(), lambda *_: None)
        save_json(new / "circuit.json", traced)
        for path in new.iterdir():
            if path.name not in FILES:
                path.unlink()
        new.chmod(0o755)  # mkdtemp keeps a folder from all others
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}") from None
    except (ValueError, FloatingPointError) as error:  # too short a context, too high a rate
        raise UserError(f"a look at this model fails: {first_line(error)}") from None
    finally:
        settle(folder, old)
        shutil.rmtree(new, ignore_errors=True)
    print(f"swapped in: the run is in {folder}", "next: make test holds docs to it", sep="\n")
    return 0


@command
def main(argv: list[str] | None = None) -> int:
    usage = "%(prog)s [--reference DIR] [flags of train.py]"
    parser = Parser("commands.reference", __doc__, usage=usage)
    parser.add_argument("--reference", type=Path, default=REFERENCE, help="the folder")
    arguments, flags = parser.parse_known_args(argv)
    return renew(arguments.reference, flags)


if __name__ == "__main__":
    sys.exit(main())
