"""Every command, whatever surrounds its process: it works as ever, or says why not in one line.

Surroundings: `python -OO`, closed streams, no terminal, an ASCII locale, variables that a cluster's
shell has set, other directories, paths with spaces and quotes, a Ctrl-C that is not for us.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
import surroundings
import torch

import tasks
import train
from minifunc.model import ModelConfig
from minifunc.support import errors, runs
from minifunc.support.files import load_json
from minifunc.support.runs import weights_hash

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
ODD = """the "model's" b&w $HOME"""  # a folder's name
CLUSTER = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX alone")


class Surrounding(NamedTuple):
    flags: tuple[str, ...] = ()  # of Python
    variables: dict[str, str] = {}
    closed: tuple[int, ...] = ()
    bare: bool = False  # without a terminal, and with next to no variables
    folder: str = "here"  # in which the commands run
    link: str = ""  # by which the repository is reached


SURROUNDINGS = {
    "plain": Surrounding(),
    "-OO": Surrounding(flags=("-OO",)),
    "closed stdout": Surrounding(closed=(1,)),
    "closed stderr": Surrounding(closed=(2,)),
    "all closed": Surrounding(closed=(0, 1, 2)),
    "no terminal, empty variables": Surrounding(variables=dict.fromkeys(CLUSTER, ""), bare=True),
    "ASCII": Surrounding(variables=ASCII, folder="wörter – 語"),
    "a cluster's variables": Surrounding(
        variables=dict(zip(CLUSTER, ("4", "1", "1", "no.such.host", "29500")))
    ),
    "odd paths": Surrounding(folder=ODD, link=f"{ODD}'s code"),
}


def start(surrounding, script, place, *arguments, **more):
    """A process of ours in these surroundings, in a new folder below `place`."""
    root, folder = ROOT, place / surrounding.folder
    folder.mkdir()
    if surrounding.link:
        root = place / surrounding.link
        root.symlink_to(ROOT, target_is_directory=True)
    variables = {"PATH": os.environ["PATH"]} if surrounding.bare else dict(os.environ)
    variables |= {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", **surrounding.variables}
    closing = " ".join(f"{number}>&-" for number in surrounding.closed)
    words = [sys.executable, *surrounding.flags, root / script, *arguments]
    shell = ["sh", "-c", f'exec "$@" {closing}', "sh", *words]
    detached = {"stdin": subprocess.DEVNULL, "start_new_session": surrounding.bare}
    return subprocess.Popen(shell, cwd=folder, env=variables, **detached | more)


def all_commands(surrounding, place):
    """What became of every command: {name: {"code", "out", "err"}}; None: was closed."""
    with open(place / "out", "wb") as out, open(place / "err", "wb") as err:
        script = "tests/robustness/surroundings.py"
        streams = {"stdout": out, "stderr": err}
        process = start(surrounding, script, place, place / "facts.json", **streams)
        try:
            assert process.wait(900) == 0, (place / "err").read_text()
        finally:
            process.kill()
    printed = [(place / name).read_bytes() for name in ("out", "err")]
    facts = load_json(place / "facts.json")
    for fact in facts.values():
        texts = []
        for before, after, text in zip(*fact.pop("printed"), printed):
            texts.append(None if before is None else text[before:after].decode())
        fact["out"], fact["err"] = texts
    return facts


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return {name: tmp_path_factory.mktemp("place") for name in SURROUNDINGS}


@pytest.fixture(scope="module")
def facts(places):
    """By surrounding and command. Two surroundings are tried at a time."""
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(all_commands, SURROUNDINGS.values(), places.values())
        return dict(zip(SURROUNDINGS, found))


@pytest.mark.slow
@pytest.mark.parametrize("name", SURROUNDINGS)
@pytest.mark.parametrize("command", surroundings.COMMANDS)
def test_every_command_works_or_says_in_one_line_why_not(facts, name, command):
    fact, plain = facts[name][command], facts["plain"][command]
    if command.endswith("--nonsense"):
        assert fact["code"] == 2
        if fact["err"] is not None:
            assert fact["err"].count("\n") == 1 and fact["err"].startswith("error: ")
        return
    # 1: a check fails, as it may; 2: a package is missing.
    works = {"check": (0, 1), "figures --help": (0, 2)}.get(command, (0,))
    assert fact["code"] == plain["code"] and fact["code"] in works, fact["err"]
    if fact["code"] != 2 and fact["out"] is not None:
        assert fact["out"].strip()
    told = (fact["err"] or "").splitlines()
    known = (
        "no trained run in",
        "    ",  # a line that goes on
        "WORLD_SIZE is '4'",
        "error: the figures need",
    )
    assert all(line.startswith(known) for line in told) and len(told) <= 4


@pytest.mark.slow
@pytest.mark.parametrize("name", SURROUNDINGS)
def test_and_finds_what_it_finds_elsewhere(facts, places, name):
    mine, plain = (places[each] / SURROUNDINGS[each].folder for each in (name, "plain"))
    assert made(mine) == made(plain)


def made(folder):
    """What the commands have made in a folder, without times, and without what Python says."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path.suffix == ".pt":
            state = torch.load(path, weights_only=True)
            what = weights_hash(state.get("model", state))
        elif path.suffix == ".json":
            what = load_json(path) | {"seconds": 0}
        elif path.suffix == ".jsonl":
            lines = path.read_text().splitlines()
            what = [json.loads(line) | {"seconds": 0} for line in lines]
        else:
            what = path.stat().st_size > 1000 or path.name == "lock"
        found[str(path.relative_to(folder))] = what
    assert {"run/model.pt", "mine/model.pt", "out/reference/circuit.json"} <= found.keys()
    return found


@pytest.mark.slow
def test_nothing_is_put_into_the_repository(facts):
    assert {path.name for path in (ROOT / "reference").iterdir()} == {*surroundings.reference.FILES}


def test_what_the_repository_holds_is_found_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert runs.chosen_run(Namespace(run=None, or_reference=False)).run == ROOT / "reference"
    assert runs.RESULTS.is_dir() and runs.ROOT.resolve() == runs.ROOT


# ---------------------------------------------------------------- closed streams


def test_a_missing_stream_is_opened_to_nowhere(monkeypatch):
    """As itself: no file that is opened later gets its number."""
    closed = open(os.devnull, "w")  # noqa: SIM115
    closed.close()
    for missing in (None, closed):
        for name in ("stdin", "stdout", "stderr"):
            monkeypatch.setattr(sys, name, missing)
        assert errors.run_main(lambda: print("to nowhere") or print(file=sys.stderr) or 5) == 5
        assert not sys.stdin.read()
        for name in ("stdin", "stdout", "stderr"):
            getattr(sys, name).close()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux alone")
def test_a_full_disk_below_stdout_is_one_line(monkeypatch, capsys):
    with open("/dev/full", "w") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        assert errors.run_main(lambda: print("lost") or 0) == 2
        with contextlib.suppress(OSError):
            full.close()
    assert capsys.readouterr().err == "error: [Errno 28] No space left on device\n"


# ---------------------------------------------------------------- Ctrl-C for somebody else


def test_training_is_not_stopped_by_a_ctrl_c_that_was_ignored_before(tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    step_of = []

    def hears(step, model):
        signal.raise_signal(signal.SIGINT)
        step_of.append(step)

    tiny = ModelConfig(n_layers=1, n_heads=1, d_model=8, d_head=8, d_mlp=8, d_vocab=69)
    cfg = train.TrainConfig(steps=3, documents=2, examples=2)
    try:
        cpu = torch.device("cpu")
        train.train(tmp_path, tiny, cfg, tasks.DEFAULT_DIET, cpu, after_step=hears)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN and step_of == [1, 2, 3]
    finally:
        signal.signal(signal.SIGINT, before)


EXPERIMENT = """
import sys
from dataclasses import replace
from pathlib import Path
import train
from test_experiments import study, tiny
from experiments.runs import run_all
train.SHOTS = (1,)
if __name__ == "__main__":
    run = tiny()
    run = replace(run, train=replace(run.train, steps=60, eval_every=20))
    run_all([run], study(Path("run")), 1)
"""
LONGER = surroundings.WORK["train"].replace("--steps=4 ", "--steps=100 ")
LONGER = LONGER.replace("--eval-every=2 ", "--eval-every=50 ")
TRAIN = f"from train import main; import sys; sys.exit(main({LONGER!r}.split()))"


@pytest.mark.slow
@pytest.mark.parametrize("script", [TRAIN, EXPERIMENT], ids=["train", "experiment"])
def test_a_background_job_is_not_stopped_by_ctrl_c(tmp_path, script):
    """A shell without job control starts it with SIGINT ignored; Ctrl-C reaches the whole group."""
    (tmp_path / "script.py").write_text(script)
    shell = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", sys.executable, tmp_path / "script.py"]
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    variables = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(shell, cwd=tmp_path, env=variables, start_new_session=True)
    n_sent = 0
    try:
        while process.poll() is None:
            time.sleep(0.02)
            if list(tmp_path.glob("run/**/config.json")):
                os.killpg(process.pid, signal.SIGINT)
                n_sent += 1
    finally:
        process.kill()
    assert process.returncode == 0 and n_sent


# ---------------------------------------------------------------- the tests themselves


@pytest.mark.slow
@pytest.mark.parametrize("value", ["", "4"])
def test_the_tests_pass_in_a_cluster_s_shell(value):
    tests = ["tests/robustness/test_processes.py", "tests/test_evaluation.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    variables = os.environ | dict.fromkeys(CLUSTER, value) | {"TORCHELASTIC_RUN_ID": "x"}
    ran = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout
    assert "[100%]" in ran.stdout  # they did run, whatever another process has taken
