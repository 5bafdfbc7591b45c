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


def go_on(folder: str, die_at: int = 0) -> None:
    """Starts the run in `folder`, or goes on with it as `make train` does; exits as train.py does.

    die_at: the file written so many-th is left half-way, as by kill -9, before it gets its name.
    """
    torch.set_num_threads(1)
    written, replace_file = 0, os.replace

    def replace_or_die(*paths):
        nonlocal written
        written += 1
        if written == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        replace_file(*paths)

    os.replace = replace_or_die
    evaluate = train.evaluate
    train.SHOTS = (1,)
    train.evaluate = lambda model, n_prompts, every_task: evaluate(
        model, 4, every_task
    )  # most of the time is to go into steps and files
    train.print_table = lambda *_: None
    resume = ["--resume"] if os.path.exists(os.path.join(folder, "resume.pt")) else []
    os._exit(train.main(["--out", folder, *FLAGS.split(), *resume]))
