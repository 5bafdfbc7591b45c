"""What `make` offers without running any of it: the list of targets, and what each would do."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
START = ("train", "patch", "report", "ask", "check")
EXPERIMENTS = ("diets", "emergence", "universality", "dependability", "unseen", "precursor")
OTHERS = (
    "reference",
    "bench",
    "figures",
    "test",
    "smollm",
    "test-slow",
    "test-page",
    "test-matrix",
    "lint",
    "coverage",
    "parity",
    "clean",
)

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="no make here")


def make(*words):
    command = ["make", "--directory", str(ROOT), "--no-print-directory", *words]
    above = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")  # of the make that runs the tests
    variables = {name: value for name, value in os.environ.items() if name not in above}
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=True).stdout


def test_help_names_every_target_within_80_columns():
    lines = make().splitlines()
    assert max(map(len, lines)) <= 80
    named = [line.split()[1] for line in lines if line.startswith("  make ")]
    assert sorted(named) == sorted(["help", "mutations", *START, *EXPERIMENTS, *OTHERS])


# What a variable may hold: each is one word for the command, letter by letter.
ODD = ("""-a 'b' "c" $HOME ${x} `pwd` *;&|<>(#,)~! \\n""", "'")
SHOWN = """#!{python}
import json, sys
print(json.dumps(sys.argv[1:]))
"""


@pytest.mark.parametrize("missing", ["node", "chromium"])
def test_the_tests_of_the_page_say_what_they_need(tmp_path, monkeypatch, missing):
    """Without a browser or node they fail: nothing is skipped."""
    true = shutil.which("true")
    for name in ("make", "sh", "true", *({"node", "chromium"} - {missing})):
        (tmp_path / name).symlink_to(shutil.which(name) or true)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(subprocess.CalledProcessError) as failed:
        make("--silent", "test-page", "--old-file=.venv/ready", "PY=true")
    line, *end = failed.value.stderr.splitlines()
    assert failed.value.returncode == 2 and "apt-get install nodejs chromium" in line
    assert len(end) <= 1  # that of make
    (tmp_path / missing).symlink_to(true)
    make("--silent", "test-page", "--old-file=.venv/ready", "PY=true")


def words(tmp_path, target, *variables):
    """What the last command of a target is given: its words, as Python gets them."""
    python = tmp_path / "python"
    python.write_text(SHOWN.format(python=sys.executable))
    python.chmod(0o755)
    ready = [f"--old-file={name}" for name in (".venv/ready", ".venv-parity/ready")]
    environments = sorted(ROOT.glob(".venv*"))
    made = make("--silent", *ready, f"PY={python}", f"PARITY={python}", target, *variables)
    assert sorted(ROOT.glob(".venv*")) == environments  # none is set up, which takes long
    return json.loads(made.splitlines()[-1])


RUN = ("train", "patch", "report", "ask", "check")
ON_A_DEVICE = ("reference", "bench", "diets", "emergence", "universality", "dependability")


@pytest.mark.slow
@pytest.mark.parametrize("value", ODD)
@pytest.mark.parametrize("target", [*RUN, *ON_A_DEVICE, "figures"])
def test_what_a_variable_holds_is_one_word(tmp_path, target, value):
    names = ("OUT", "SEED", "DEVICE")
    given = words(tmp_path, target, *(f"{name}={value}" for name in names))
    run = "--out" if target == "train" else "--run"
    assert (f"{run}={value}" in given) == (target in RUN)
    assert (f"--seed={value}" in given) == (target == "train")
    assert (f"--device={value}" in given) == (target not in ("report", "figures"))
    allowed = {f"{flag}={value}" for flag in ("--out", "--run", "--seed", "--device")}
    others = {"--or-reference", "-m", "train.py", "patch.py", "--prompt=1+1=3, 2+2=5, 3+3="}
    unknown = set(given) - allowed - others
    assert all(word.startswith(("commands.", "experiments.", "minifunc.")) for word in unknown)


@pytest.mark.parametrize("prompt", ["1'+1=", '"', "-1+2=", "1+1=3\n2+2=", "7 max 3=; `x`"])
def test_a_prompt_is_one_word(tmp_path, prompt):
    assert f"--prompt={prompt}" in words(tmp_path, "ask", f"PROMPT={prompt}")


@pytest.mark.parametrize("name", ["out", "an 'odd' one"])
def test_an_interrupted_run_is_gone_on_with(tmp_path, name):
    run = tmp_path / name
    assert "--resume" not in words(tmp_path, "train", f"OUT={run}")
    run.mkdir()
    (run / "resume.pt").touch()
    assert words(tmp_path, "train", f"OUT={run}").count("--resume") == 1


@pytest.mark.parametrize("value", ODD)
def test_help_shows_what_the_variables_hold(value):
    assert f"OUT={value} SEED=0" in make("help", f"OUT={value}")


@pytest.mark.parametrize("target", ["patch", "report", "ask", "check"])
def test_what_looks_at_a_run_may_take_the_reference(tmp_path, target):
    given = words(tmp_path, target, "OUT=out/x")
    assert given[given.index("--run=out/x") + 1] == "--or-reference"


def test_what_would_keep_python_from_starting_does_not_reach_it(tmp_path, monkeypatch):
    for name, value in (("PYTHONSAFEPATH", "1"), ("TQDM_MININTERVAL", "abc"), ("KEPT", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(
        globals(), "SHOWN", SHOWN.replace("sys.argv[1:]", "list(__import__('os').environ)")
    )
    for target in START:
        found = words(tmp_path, target)
        assert "KEPT" in found and not {"PYTHONSAFEPATH", "TQDM_MININTERVAL"} & {*found}
