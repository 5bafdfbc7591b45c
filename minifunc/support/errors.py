"""A user's mistake is one line on stderr and exit code 2, never a traceback."""

import io
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import ParamSpec

import torch

from minifunc.support.tables import SPELLER

Given = ParamSpec("Given")


class UserError(Exception):
    """A user's mistake or an unusable input: shown as one line, exit code 2."""


def first_line(error: BaseException) -> str:
    """What an error says, in one line of at most 160 characters."""
    return (str(error) or type(error).__name__).splitlines()[0][:160]


def _open_streams() -> None:
    """Opens what is closed (`>&-`) to nowhere. Else the next file that is opened, a checkpoint
    say, would get its number, and torch's own warnings would be written into that file."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None or stream.closed:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=SPELLER)  # a path may hold what no encoding knows


def run_main(work: Callable[Given, int], *arguments: Given.args, **named: Given.kwargs) -> int:
    """Runs a script's work and returns its exit code.
    A UserError, what the system refuses, and memory that runs out become one line on stderr and
    exit code 2; Ctrl-C a word, or what the KeyboardInterrupt says, and 130."""
    _open_streams()
    try:
        code = work(*arguments, **named)
        sys.stdout.flush()
        return code
    except OSError as error:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (Python flushes it again at its end)
        if isinstance(error, BrokenPipeError):  # the reader has gone (`| head`): no complaint
            return 1
        complaint = first_line(error)
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped", file=sys.stderr)
        return 130
    except (UserError, FloatingPointError) as error:
        complaint = " ".join(str(error).splitlines())
    except (MemoryError, RuntimeError) as error:
        known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not known and "allocate memory" not in str(error):  # torch's, on a CPU
            raise
        complaint = "out of memory: ask for fewer prompts or documents, or a smaller model"
    print("error:", complaint, file=sys.stderr)
    return 2


def command(work: Callable[Given, int]) -> Callable[Given, int]:
    """Makes a script's work its main function, whose mistakes end as `run_main` says."""
    return partial(run_main, work)
