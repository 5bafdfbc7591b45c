"""The flags of `patch.py`, and what it refuses before it starts."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from minifunc.support.errors import UserError
from minifunc.support.flags import add_flags

MOST_PROMPTS = 100_000


def add_study_flags(parser: ArgumentParser, study: Any, criteria: Any) -> None:
    """Where it is computed and written; a flag for each field of a study and of its criteria."""
    add = parser.add_argument
    add("--device", default="auto", help="auto, cpu, cuda (default: auto)")
    to = "where the findings go (default: circuit.json in the run's folder)"
    add("--json", type=Path, metavar="PATH", help=to)
    add("--full", action="store_true", help="print all that is found")
    add_flags(parser, "what is traced", study)
    frozen = "direct paths do not pass through MLPs (default: they do, as in the paper)"
    add("--freeze-mlps", action="store_true", help=frozen)
    memory = "memory that a sweep may use (default: 2; on CUDA a quarter of what is free)"
    add("--max-memory", type=float, metavar="GIB", help=memory)
    add_flags(parser, "criteria of the groups", criteria)


def check_study(study: Any, n_tokens: int, n_ctx: int) -> None:
    """Raises UserError for a study that the model cannot take, or that holds nothing to trace.

    n_tokens: of a prompt. n_ctx: of the model.
    """
    if n_tokens > n_ctx:
        said = f"--shots {study.shots} makes prompts of {n_tokens} tokens"
        raise UserError(f"{said}; the model's context holds {n_ctx}")
    if study.k == 0:
        said = "--k 0 leaves nothing to trace"
        raise UserError(f"{said}: base and contrast prompts would be the same")
    if not 0 <= study.seed < 2**63 or study.prompts > MOST_PROMPTS:
        raise UserError(f"--seed must be from 0 to 2^63 - 1, and --prompts at most {MOST_PROMPTS}")
