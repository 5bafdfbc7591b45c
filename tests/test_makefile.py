"""What `make` offers without running any of it: the list of targets, and what each would do."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
START = ("train", "patch", "report", "ask", "check")
EXPERIMENTS = ("diets", "emergence", "universality", "dependability", "bench", "figures")
OTHERS = ("reference", "test", "test-slow", "test-matrix", "lint", "coverage", "parity", "clean")

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="no make here")


def make(*words):
    command = ["make", "--directory", str(ROOT), "--no-print-directory", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_help_names_every_target_within_80_columns():
    lines = make().splitlines()
    assert max(map(len, lines)) <= 80
    named = [line.split()[1] for line in lines if line.startswith("  make ")]
    assert sorted(named) == sorted(["help", "mutations", *START, *EXPERIMENTS, *OTHERS])


@pytest.mark.parametrize("target", ["patch", "report", "ask", "check"])
def test_what_looks_at_a_run_may_take_the_reference(target):
    assert "--run out/x --or-reference" in make("--dry-run", target, "OUT=out/x")


def test_a_prompt_with_an_apostrophe_is_one_word():
    assert "--prompt '1'\\''+1='" in make("--dry-run", "ask", "PROMPT=1'+1=")
