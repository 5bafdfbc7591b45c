"""A tiny run in a process of its own, for test_crash.py to kill.

It imports train.py alone, so that it starts quickly.
"""

import os
import signal

import torch

import train

FLAGS = (
    "--device cpu --seed 3 --steps 40 --documents 4 --long-every 2 --lr 0.01 --warmup 2 "
    "--eval-every 2 --n-layers 2 --n-heads 2 --d-model 16 --d-head 8 --d-mlp 16 --n-ctx 128"
)


FILES = ("config.json", "resume.pt", "model.pt", "metrics.jsonl")  # in the order of writing
AT_WORK = {
    "at the start": "make_optimizer",
    "in a step": "train_step",
    "in an evaluation": "evaluate",
}
# All at which a run may be killed on purpose.
MOMENTS = [*AT_WORK, *(f"{when} {name}" for name in FILES for when in ("within", "after"))]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(moment: str, n: int) -> None:
    """This process is ended, as by kill -9, at the moment of that name that is its n-th.

    Within a file: half of it is written, under its temporary name. After: it just got its own.
    """
    left = n

    def come(there: bool) -> bool:
        nonlocal left
        left -= there
        return there and left == 0

    replace_file = os.replace

    def replace_or_die(temporary, path):
        name = os.path.basename(path)
        if come(moment == f"within {name}"):
            os.truncate(temporary, os.path.getsize(temporary) // 2)
            die()
        replace_file(temporary, path)
        if come(moment == f"after {name}"):
            die()

    os.replace = replace_or_die
    if moment in AT_WORK:
        work = getattr(train, AT_WORK[moment])

        def work_and_die(*arguments, **options):
            done = work(*arguments, **options)
            if come(True):
                die()
            return done

        setattr(train, AT_WORK[moment], work_and_die)


def go_on(folder: str, moment: str = "", n: int = 1) -> None:
    """Starts the run in `folder`, or goes on with it as `make train` does; exits as train.py does,
    unless it is to die before."""
    torch.set_num_threads(1)
    evaluate = train.evaluate
    train.SHOTS = (1,)
    train.evaluate = lambda model, n_prompts, every_task: evaluate(
        model, 4, every_task
    )  # most of the time is to go into steps and files
    train.print_table = lambda *_: None
    die_at(moment, n)
    resume = ["--resume"] if os.path.exists(os.path.join(folder, "resume.pt")) else []
    os._exit(train.main(["--out", folder, *FLAGS.split(), *resume]))
