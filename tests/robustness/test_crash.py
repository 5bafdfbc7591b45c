"""kill -9 at any moment: the run goes on to the same weights and metrics."""

import errno
import json
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


@pytest.fixture(scope="module")
def start(forkserver):
    """Starts a process that goes on with the run in a folder."""

    def start(folder, moment="", n=1):
        process = forkserver.Process(target=crash.go_on, args=(str(folder), moment, n))
        process.start()
        return process

    return start


@pytest.fixture(scope="module")
def timed(start, tmp_path_factory):
    """The folder of a run that nothing interrupted, and how long it took, in seconds."""
    began = time.monotonic()
    return finished(start, tmp_path_factory.mktemp("whole")), time.monotonic() - began


@pytest.fixture(scope="module")
def whole(timed):
    return timed[0]


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


def step_of(folder):
    try:
        return torch.load(folder / "resume.pt", weights_only=True)["step"]
    except FileNotFoundError:
        return 0


def kill_and_finish(start, folder, dice, times, delay):
    """Kills the run in `folder` up to `times` times, each after up to `delay` seconds, and lets it
    end. Returns the step that it had come to at each kill."""
    steps = []
    for _ in range(times):
        process = start(folder)
        process.join(dice.uniform(0, delay))
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        if process.exitcode == 0:
            break
        steps.append(step_of(folder))
    finished(start, folder)
    return steps


def check_same(folder, whole):
    assert results(folder) == results(whole)
    assert {path.name for path in folder.iterdir()} == FILES


def die(start, folder, moment, n=1):
    """Goes on with the run until that moment; what is left shows that it was the one."""
    before = step_of(folder)
    process = start(folder, moment, n)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    when, _, name = moment.partition(" ")
    assert [path.name for path in folder.glob("*.tmp")] == [f"{name}.tmp"] * (when == "within")
    made = 2 * (n - 1) + 2 * (moment in crash.MOMENTS[-5:])  # from "after resume.pt" on
    assert step_of(folder) == before + made


@pytest.mark.slow
def test_a_run_killed_at_each_kind_of_moment_goes_on_to_the_same_weights_and_metrics(
    start, whole, tmp_path
):
    for moment in crash.MOMENTS:  # one process after the other; the first half has no checkpoint
        die(start, tmp_path, moment)
    for moment in crash.MOMENTS:  # once more, from a checkpoint
        if "config" not in moment:
            die(start, tmp_path, moment)
    n_left = (step_of(whole) - step_of(tmp_path)) // 2  # checkpoints
    die(start, tmp_path, "within resume.pt", n_left)
    for moment in crash.MOMENTS[-5:]:  # in the very last one, after which there is no step
        folder = shutil.copytree(tmp_path, tmp_path.with_name(moment))
        die(start, folder, moment)
        finished(start, folder)
        check_same(folder, whole)


@pytest.mark.slow
def test_runs_killed_at_any_moment_go_on_to_the_same_weights_and_metrics(start, timed, tmp_path):
    dice, steps, runs = random.Random(1), [], 0
    whole, seconds = timed
    while len(steps) < 16:
        folder = tmp_path / str(runs)
        folder.mkdir()
        steps += kill_and_finish(start, folder, dice, 8, seconds / 2)
        check_same(folder, whole)
        runs += 1
    print(f"{len(steps)} kills in {runs} runs, at checkpoints {steps}: all identical")
    assert len(set(steps)) > 2


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
