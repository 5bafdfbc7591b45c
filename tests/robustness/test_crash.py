"""kill -9 at any moment: the run goes on to the same weights and metrics."""

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import time

import crash
import pytest
import torch

import train
from minifunc.support import files
from minifunc.support.errors import UserError
from minifunc.support.files import locked
from minifunc.support.runs import load_run

FILES = {"config.json", "metrics.jsonl", "model.pt", "resume.pt", "lock"}

pytestmark = pytest.mark.skipif(
    "forkserver" not in multiprocessing.get_all_start_methods(), reason="no fork here"
)


@pytest.fixture(scope="module")
def start():
    """Starts a process that goes on with the run in a folder: a copy of one that has loaded torch,
    but has trained nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train"])

    def start(folder, die_at=0):
        process = context.Process(target=crash.go_on, args=(str(folder), die_at))
        process.start()
        return process

    return start


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    """The folder of a run that nothing interrupted."""
    return finished(start, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def seconds(start, whole, tmp_path_factory):
    """How long such a run takes, its start included, once a first one has warmed up."""
    began = time.monotonic()
    finished(start, tmp_path_factory.mktemp("timed"))
    return time.monotonic() - began


def finished(start, folder):
    process = start(folder)
    process.join()
    assert process.exitcode == 0
    return folder


def results(folder):
    """Weights, and metrics without the time they took."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        name: weight.numpy().tobytes() for name, weight in load_run(folder)[0].state_dict().items()
    }, [{**line, "seconds": 0} for line in lines]


def killed(start, folder, random, delay, at_a_write):
    """Goes on with the run and kills it after up to `delay` seconds, or within a few milliseconds
    after the next file was begun. False where it had ended before."""
    process = start(folder)
    until = time.monotonic() + random.uniform(0, delay)
    while process.is_alive() and time.monotonic() < until + at_a_write:
        if at_a_write and time.monotonic() >= until and any(folder.glob("*.tmp")):
            time.sleep(random.uniform(0, 0.004))
            break
        time.sleep(0.0002)
    process.kill()
    process.join()
    assert process.exitcode in (0, -9)
    return process.exitcode == -9


def step_of(folder):
    try:
        return torch.load(folder / "resume.pt", weights_only=True)["step"]
    except FileNotFoundError:
        return 0


def kill_and_finish(start, folder, random, times, seconds):
    """Kills the run in `folder` up to `times` times, half of them when a file is being written, and
    lets it end. seconds: what a whole run takes. Returns for each kill the step it had come to, and
    whether a file was left half written."""
    kills = []
    while len(kills) < times and killed(
        start, folder, random, seconds, at_a_write=random.random() < 0.5
    ):
        kills.append((step_of(folder), any(folder.glob("*.tmp"))))
    finished(start, folder)
    return kills


def check_same(folder, whole):
    assert results(folder) == results(whole)
    assert {path.name for path in folder.iterdir()} == FILES


@pytest.mark.slow
def test_a_run_killed_while_it_writes_its_files_goes_on_to_the_same_weights_and_metrics(
    start, whole, tmp_path
):
    for file in (5, 9):  # counted from where it had come to: a checkpoint, then metrics
        process = start(tmp_path, die_at=file)
        process.join()
        assert process.exitcode == -signal.SIGKILL and any(tmp_path.glob("*.tmp"))
    assert 0 < step_of(tmp_path) < step_of(whole)
    finished(start, tmp_path)
    check_same(tmp_path, whole)


@pytest.mark.slow
def test_many_runs_killed_at_any_moment_go_on_to_the_same_weights_and_metrics(
    start, whole, seconds, tmp_path
):
    dice, kills, runs = random.Random(1), [], 0
    while len(kills) < 60:
        folder = tmp_path / str(runs)
        folder.mkdir()
        kills += kill_and_finish(start, folder, dice, 10, seconds)
        check_same(folder, whole)
        runs += 1
    steps, half_written = {step for step, _ in kills}, sum(half for _, half in kills)
    print(
        f"{len(kills)} kills in {runs} runs, at {len(steps)} different checkpoints, "
        f"{half_written} in the middle of a file: all identical"
    )
    assert len(steps) > 2 and half_written


@pytest.mark.slow
def test_what_a_file_holds_is_compared(whole, tmp_path):
    """The comparison can fail: one bit of one weight."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    state["embed.W_E"].view(torch.int32)[0, 0] ^= 1
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(AssertionError):
        check_same(tmp_path, whole)


# ---------------------------------------------------------------- two processes


@pytest.mark.slow
def test_a_second_process_is_refused_in_one_line_and_touches_nothing(start, tmp_path, capsys):
    first = start(tmp_path)
    try:
        while not (tmp_path / "config.json").exists() and first.is_alive():
            time.sleep(0.001)
        os.kill(first.pid, signal.SIGSTOP)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        resume = ["--resume"] if "resume.pt" in before else []
        assert train.main(["--out", str(tmp_path), *crash.FLAGS.split(), *resume]) == 2
        assert (
            capsys.readouterr().err
            == f"error: {tmp_path} is in use: another process trains there\n"
        )
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    finally:
        first.kill()
        first.join()
    with locked(tmp_path):  # the dead process holds it no longer
        pass


def test_a_folder_is_free_again_after_a_run_that_failed(tmp_path):
    with pytest.raises(ValueError), locked(tmp_path):
        raise ValueError
    with locked(tmp_path), pytest.raises(UserError, match="in use"), locked(tmp_path):
        pass


@pytest.mark.parametrize("place", ["missing", "lock"])
def test_a_lock_that_cannot_be_made_is_named(tmp_path, place):
    (tmp_path / "lock").mkdir()
    with (
        pytest.raises(UserError, match="cannot write .*lock"),
        locked(tmp_path / "missing" if place == "missing" else tmp_path),
    ):
        pass


def test_where_there_are_no_locks_there_is_none(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(files.fcntl, "flock", unsupported)
    with locked(tmp_path), locked(tmp_path):
        pass
    monkeypatch.setattr(files, "fcntl", None)
    with locked(tmp_path), locked(tmp_path):
        pass
