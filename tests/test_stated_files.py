"""What is stated of a run's files, checkpoints, errors and processes, held where it is made."""

import errno
import gc
import io
import json
import math
import os
import pickle
import signal
import sys
import threading
import zipfile
from contextlib import nullcontext
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import tasks
import train
from minifunc.model import ModelConfig, Transformer
from minifunc.support import checkpoints, errors, files, processes, runs, settings
from minifunc.support.checkpoints import Diverged, Progress, check_unused, claimed, load_checkpoint
from minifunc.support.errors import UserError, first_line, run_main
from minifunc.support.settings import described
from train import TrainConfig

CPU = torch.device("cpu")
SHAPE = ModelConfig(
    n_layers=1, n_heads=2, d_model=8, d_head=4, d_mlp=6, d_vocab=len(tasks.VOCABULARY)
)
CFG = TrainConfig(steps=40, documents=2, examples=2)
NAN = torch.tensor(math.nan)


def started(out, **changes):
    """A run at step 7, whose optimizer has made that many steps."""
    cfg = replace(CFG, **changes)
    model = Transformer(SHAPE)
    optimizer = train.make_optimizer(model, cfg)
    for number, weight in enumerate(model.parameters()):
        weight.grad = torch.full_like(weight, 0.1 * (number + 1))
    optimizer.step()
    for kept in optimizer.state.values():
        kept["step"].fill_(7)
    config = described(SHAPE, cfg, tasks.DEFAULT_DIET, tasks.VOCABULARY)
    run = Progress(out, config, model, optimizer, torch.Generator().manual_seed(5))
    run.step, run.loss, run.stopping = 7, 0.123456, False
    return run


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """The seconds of a run are told by this; each test sets `now`."""
    clock = SimpleNamespace(now=1000.0)
    clock.perf_counter = lambda: clock.now
    monkeypatch.setattr(checkpoints, "time", clock)
    return clock


@pytest.fixture
def run(tmp_path):
    return started(tmp_path)


def entered(manager):
    with manager:
        pass


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---------------------------------------------------------------- checkpoints

ONE, INFINITE = torch.tensor(1.0), torch.tensor(-math.inf)
LOOKS = [  # step, look, stop asked; whether the values of the step are looked at
    (1, False, False, False),
    (19, False, False, False),
    (21, False, False, False),
    (20, False, False, True),
    (40, False, False, True),
    (19, True, False, True),
    (19, False, True, True),
]


def test_a_step_is_looked_at_when_asked_at_a_stop_and_each_20th(run):
    broken = [(NAN, ONE), (ONE, NAN), (INFINITE, ONE), (ONE, INFINITE)]
    for (step, look, asked, seen), (loss, norm) in product(LOOKS, broken):
        run.stop_asked, run.shown, run.loss = asked, {}, 0.123456
        with pytest.raises(Diverged, match=f"at step {step}: ") if seen else nullcontext():
            run.made(step, loss, norm, look)
        assert run.step == step and run.stopping == asked and "loss" not in run.shown
        run.made(step, torch.tensor(0.1236), ONE, look)
        assert run.shown == ({"loss": "0.124"} if seen else {})
        assert run.loss == (torch.tensor(0.1236).item() if seen else 0.123456)


def test_a_line_of_metrics_is_of_its_step_in_seconds_and_the_bar_shows_addition(run, clock):
    clock.now += 12.344
    accuracy = {"addition": {"0": {"1": 0.1, "8": 0.25}, "1": {"8": 0.751}, "2": {"8": 0.9}}}
    run.add_metrics(accuracy)
    run.shown["loss"] = "x"
    (line,) = run.metrics
    wanted = {"step": 7, "loss": 0.12346, "accuracy": accuracy, "seconds": 12.34}
    assert line == wanted and list(line) == ["step", "seconds", "loss", "accuracy"]
    assert run.shown == {"1+1=2": "0.25", "1+1=3": "0.75", "loss": "x"}
    run.add_metrics({"addition": {"0": {"1": 0.1}, "1": {"8": 1.0}}})
    assert run.shown["1+1=2"] == "nan" and len(run.metrics) == 2


@pytest.mark.parametrize("save", [False, True])
@pytest.mark.parametrize("stopping", [False, True])
def test_a_step_ends_with_a_checkpoint_if_wanted_and_with_one_before_a_stop(run, save, stopping):
    run.stopping, postfix, moved = stopping, [], []
    run.shown = {"loss": "0.1"}
    show = {"set_postfix": lambda shown, refresh: postfix.append((shown, refresh))}
    run.bar = SimpleNamespace(**show, update=lambda: moved.append(1))
    says = "^stopped after step 7 of 40: go on with --resume$"
    with pytest.raises(KeyboardInterrupt, match=says) if stopping else nullcontext():
        run.end_step(save)
    assert (run.out / "resume.pt").exists() == (save or stopping)
    assert postfix == [({"loss": "0.1"}, False)] and moved == [1]


def test_a_value_that_is_not_finite_is_told_with_what_is_kept_and_what_to_do(run):
    run.check_finite(ONE, torch.zeros(3, 3))
    run.check_finite()
    said = "^the loss is no longer finite at step 7: {}; try a lower --lr$"
    with pytest.raises(Diverged, match=said.format("no checkpoint had been made yet")):
        run.check_finite(ONE, torch.tensor([0.0, math.nan]))
    run.save()
    with pytest.raises(Diverged, match=said.format(f"{run.out} keeps its last good checkpoint")):
        run.check_finite(INFINITE)


def test_weights_that_are_not_finite_are_never_saved(run):
    run.save()
    before = contents(run.out)
    run.step = 8
    *_, last = run.model.parameters()
    last.data.view(-1)[-1] = math.inf
    with pytest.raises(Diverged, match="step 8"):
        run.save()
    assert contents(run.out) == before


def test_a_checkpoint_holds_all_of_the_run_and_model_pt_the_weights_alone(run, clock, monkeypatch):
    written, save = [], files.write_file
    monkeypatch.setattr(
        files, "write_file", lambda path, write: (written.append(path), save(path, write))
    )
    run.metrics = [{"step": 3, "loss": 0.5}, {"step": 7, "loss": 0.25}]
    clock.now += 100
    run.save()
    assert [path.name for path in written] == ["resume.pt", "model.pt", "metrics.jsonl"]
    state = torch.load(run.out / "resume.pt", weights_only=True)
    assert state["config"] == run.config and state["step"] == 7 and state["device"] == "cpu"
    assert state["seconds"] == 100 and json.loads(state["metrics"]) == run.metrics
    assert torch.equal(state["data"], torch.Generator().manual_seed(5).get_state())
    bare = torch.load(run.out / "model.pt", weights_only=True)
    for found in (state["model"], bare):
        assert found.keys() == run.model.state_dict().keys()
        assert all(torch.equal(x, found[name]) for name, x in run.model.state_dict().items())
    assert state["optimizer"]["state"][0]["step"] == 7
    lines = (run.out / "metrics.jsonl").read_text().splitlines()
    assert list(map(json.loads, lines)) == run.metrics


def test_another_process_than_the_first_writes_nothing(run, monkeypatch):
    monkeypatch.setattr(checkpoints, "is_main", lambda: False)
    monkeypatch.setattr(files, "check_writable", lambda path: pytest.fail("it was looked at"))
    with run.going_on(None):
        run.save()
    assert not list(run.out.iterdir())
    run.model.embed.W_E.data[0, 0] = math.nan
    with pytest.raises(Diverged):  # in every process
        run.save()


def test_a_checkpoint_is_taken_up_whole(run, clock, tmp_path, capsys):
    run.metrics, run.step = [{"step": 7}], 7
    clock.now += 100
    run.save()
    (tmp_path / "other").mkdir()
    other = started(tmp_path / "other", lr=0.5)
    other.step = 0
    torch.rand(3, generator=other.data)
    for weight in other.model.parameters():
        weight.data.zero_()
    with other.going_on(load_checkpoint(tmp_path, run.config)):
        assert other.step == 7 and other.metrics == [{"step": 7}] and other.bar.n == 7
        assert other.bar.total == 40
    clock.now += 5
    assert other.seconds == 105
    ours, theirs = other.model.state_dict(), run.model.state_dict()
    assert all(torch.equal(x, theirs[name]) for name, x in ours.items())
    assert torch.equal(other.data.get_state(), run.data.get_state())
    assert other.optimizer.param_groups[0]["lr"] == 0.5  # as config.json says, not the file
    assert other.optimizer.state_dict()["state"][0]["step"] == 7
    assert not list((tmp_path / "other").iterdir()) and not capsys.readouterr().err


@pytest.mark.parametrize("before, told", [("cpu", 0), ("NVIDIA X", 1), (None, 0)])
def test_another_device_than_before_is_told(run, capsys, before, told):
    run.save()
    checkpoint = load_checkpoint(run.out, run.config)
    checkpoint["device"] = before
    if before is None:  # an older one doesn't say
        del checkpoint["device"]
    run._take_up(checkpoint)
    said = f"{run.out} was trained on 'NVIDIA X' so far, now on 'cpu': its weights are not those"
    shown = capsys.readouterr().err
    assert shown.count("\n") == told and shown.startswith(said * told)


def test_what_a_kill_left_unwritten_at_the_last_step_is_written(run):
    run.step = 40
    for state in run.optimizer.state.values():
        state["step"].fill_(40)
    run.save()
    for name in ("model.pt", "metrics.jsonl"):
        (run.out / name).unlink()
    other = started(run.out)
    with other.going_on(load_checkpoint(run.out, run.config)):
        pass
    assert {path.name for path in run.out.iterdir()} == {"resume.pt", "model.pt", "metrics.jsonl"}


@pytest.mark.parametrize("name", ["resume.pt", "model.pt", "metrics.jsonl"])
def test_a_file_that_cannot_be_written_is_told_before_a_step(run, name):
    (run.out / name).mkdir()
    with pytest.raises(UserError, match=f"cannot write .*{name}"), run.going_on(None):
        pytest.fail("a step was made")
    assert [path.name for path in run.out.iterdir()] == [name]


def test_a_new_run_writes_its_config_first(run):
    new = Progress(run.out, run.config, run.model, run.optimizer, run.data)
    assert (new.step, new.metrics, new.n_steps, new.stop_asked) == (0, [], 40, False)
    assert new.seconds == 0
    with run.going_on(None):
        assert files.load_json(run.out / "config.json") == run.config
        assert [path.name for path in run.out.iterdir()] == ["config.json"]


def test_the_first_ctrl_c_is_noted_and_the_second_is_what_it_was(run):
    before = signal.getsignal(signal.SIGINT)
    with run.going_on(None):
        assert not run.stop_asked
        signal.raise_signal(signal.SIGINT)
        assert run.stop_asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(ZeroDivisionError), run.going_on(None):
        assert signal.getsignal(signal.SIGINT) is not before
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_is_not_for_a_background_job_nor_for_another_thread(run):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with run.going_on(None):
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    seen = []

    def train_there():
        with run.going_on(None):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=train_there)
    thread.start()
    thread.join()
    assert seen == [before]


def changed(state, path, value):
    """A copy of nested dictionaries, with another value at a path of keys."""
    first, *rest = path
    return {**state, first: changed(state[first], rest, value) if rest else value}


MOMENTS = ("optimizer", "state", 0)
SOUND = {
    "the last step": [(("step",), 40)],
    "no time": [(("seconds",), 0.0)],
    "no metrics": [(("metrics",), "[]")],
}
UNSOUND = {
    "step 0": [(("step",), 0)],
    "a step more": [(("step",), 41)],
    "step True": [(("step",), True)],
    "step 7.0": [(("step",), 7.0)],
    "seconds -1": [(("seconds",), -1.0)],
    "seconds 1": [(("seconds",), 1)],
    "seconds inf": [(("seconds",), math.inf)],
    "seconds nan": [(("seconds",), math.nan)],
    "metrics {}": [(("metrics",), "{}")],
    "metrics of a number": [(("metrics",), "[{}, 1]")],
    "metrics of text": [(("metrics",), '"ab"')],
    "metrics infinite": [(("metrics",), '[{"loss": Infinity}]')],
    "metrics no JSON": [(("metrics",), "[")],
    "no generator": [(("data",), torch.zeros(16, dtype=torch.uint8))],
    "generator no tensor": [(("data",), 3)],
    "optimizer none": [(("optimizer",), None)],
    "moments of the first alone": [(("optimizer", "state"), {0: {}})],
}
for moment in ("exp_avg", "exp_avg_sq"):
    for wrong in (NAN.expand(1), torch.zeros(3), torch.zeros(1).expand(73, 8), None):
        UNSOUND[f"{moment} {wrong if wrong is None else list(wrong.stride())}"] = [
            ((*MOMENTS, moment), wrong)
        ]
    UNSOUND[f"{moment} double"] = [((*MOMENTS, moment), torch.zeros(73, 8).double())]
    UNSOUND[f"{moment} nan"] = [((*MOMENTS, moment), NAN.expand(73, 8).clone())]
UNSOUND["other step"] = [((*MOMENTS, "step"), torch.tensor(6.0))]
UNSOUND["steps"] = [((*MOMENTS, "step"), torch.tensor([7.0]))]
UNSOUND["more kept"] = [((*MOMENTS, "max_exp_avg_sq"), torch.zeros(73, 8))]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    run = started(tmp_path_factory.mktemp("saved"))
    run.save()
    return run, torch.load(run.out / "resume.pt", weights_only=True)


@pytest.mark.parametrize("case", [*SOUND, *UNSOUND])
def test_a_checkpoint_is_whole_or_refused(saved, tmp_path, monkeypatch, case):
    run, state = saved
    for path, value in {**SOUND, **UNSOUND}[case]:
        state = changed(state, path, value)
    if case == "the last step":
        states = state["optimizer"]["state"]
        each = {index: {**kept, "step": torch.tensor(40.0)} for index, kept in states.items()}
        state = changed(state, ("optimizer", "state"), each)
    monkeypatch.setattr(files, "load_tensors", lambda path: state)
    if case in SOUND:
        found = load_checkpoint(tmp_path, run.config)
        assert found["metrics"] == json.loads(state["metrics"]) and found["step"] == state["step"]
        return
    says = f"^{tmp_path}/resume.pt is damaged or no checkpoint of ours$"
    with pytest.raises(UserError, match=says):
        load_checkpoint(tmp_path, run.config)


@pytest.mark.parametrize("part, field", [("model", "eps"), ("train", "lr"), ("diet", "copy")])
def test_a_checkpoint_is_of_the_config_beside_it(saved, part, field):
    run, _ = saved
    other = changed(run.config, (part, field), 0.125)
    says = f"resume.pt belongs to another run than {run.out}/config.json$"
    with pytest.raises(UserError, match=says):
        load_checkpoint(run.out, other)
    load_checkpoint(run.out, changed(run.config, ("versions", "torch"), "9"))


# ---------------------------------------------------------------- the folder of a run

KEPT = ("config.json", "metrics.jsonl", "model.pt", "resume.pt", "circuit.json")


@pytest.mark.parametrize("name", KEPT)
def test_a_folder_that_holds_anything_of_a_run_is_used(run, name):
    (run.out / name).write_text("[]")
    says = f"^{run.out} already holds {name}: go on with --resume, or give another --out$"
    with pytest.raises(UserError, match=says):
        check_unused(run.out, run.config)
    files.save_json(run.out / "config.json", run.config)
    with pytest.raises(UserError) if name != "config.json" else nullcontext():
        check_unused(run.out, run.config)


def test_a_config_alone_is_no_loss_if_it_is_ours_whatever_it_says(run):
    for values in (run.config, dict.fromkeys(run.config), {**run.config, "train": {}}):
        files.save_json(run.out / "config.json", values)
        check_unused(run.out, run.config)
    fewer = {name: run.config[name] for name in list(run.config)[1:]}
    for values in (fewer, {**run.config, "more": 1}, list(run.config), "model", None):
        files.save_json(run.out / "config.json", values)
        with pytest.raises(UserError, match="already holds config.json"):
            check_unused(run.out, run.config)
    (run.out / "config.json").unlink()
    (run.out / "other").write_text("")  # what is not ours
    check_unused(run.out, run.config)


def test_a_folder_is_claimed_while_a_run_trains_there(run, tmp_path):
    out = tmp_path / "a" / "b"
    with claimed(out, run.config, False, CPU) as device:
        assert device == CPU and out.is_dir()
        with pytest.raises(UserError, match=f"^{out} is in use: another process trains there$"):
            entered(claimed(out, run.config, False, CPU))
        files.save_text(out / "model.pt", "")
    (out / "lock").unlink()
    with pytest.raises(UserError, match="already holds model.pt"):
        entered(claimed(out, run.config, False, CPU))
    assert not (out / "lock").exists()  # it did not even come to that
    with claimed(out, run.config, True, CPU):  # goes on with it
        pass
    assert (out / "lock").exists()


def test_a_run_that_another_process_began_while_this_one_waited_is_kept(run, tmp_path, monkeypatch):
    out = tmp_path / "new"

    def begin(folder):
        folder.mkdir()
        (folder / "model.pt").write_text("theirs")

    monkeypatch.setattr(files, "make_folder", begin)
    with pytest.raises(UserError, match="already holds model.pt"):
        entered(claimed(out, run.config, False, CPU))


@pytest.mark.parametrize(
    "words, told",
    [
        ("stopped after step 3", "stopped after step 3"),
        ("", "stopped at once: --resume goes on from the last checkpoint"),
    ],
)
def test_after_ctrl_c_it_is_said_how_to_go_on(run, words, told):
    says = pytest.raises(KeyboardInterrupt, match=f"^{told}$")
    with says, claimed(run.out, run.config, True, CPU):
        raise KeyboardInterrupt(words)
    entered(files.locked(run.out))


def test_all_processes_meet_before_the_folder_is_made(run, tmp_path, monkeypatch):
    out, elsewhere = tmp_path / "new", torch.device("meta")

    def meet(device):
        assert not out.exists() and device == CPU
        return elsewhere

    monkeypatch.setattr(checkpoints, "join", meet)
    monkeypatch.setattr(checkpoints, "is_main", lambda: False)
    with claimed(out, run.config, False, CPU) as device:
        assert device == elsewhere and not out.exists()
    monkeypatch.setattr(checkpoints, "is_main", lambda: True)
    with claimed(out, run.config, False, CPU):
        assert out.exists()


# ---------------------------------------------------------------- files


def test_a_file_is_on_the_disk_before_it_takes_the_place_of_the_old_one(tmp_path, monkeypatch):
    path, seen, opened = tmp_path / "file", [], []
    path.write_bytes(b"old")
    sync, move = os.fsync, os.replace

    def synced(descriptor):
        temporary = os.stat(tmp_path / "file.tmp")
        assert os.fstat(descriptor).st_ino == temporary.st_ino and temporary.st_size == 3
        seen.append("synced")
        sync(descriptor)

    def replaced(source, target):
        assert Path(source).parent == Path(target).parent and path.read_bytes() == b"old"
        assert opened[0].closed
        seen.append("replaced")
        move(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    files.write_file(path, lambda file: (opened.append(file), file.write(b"new")))
    assert seen == ["synced", "replaced"] and path.read_bytes() == b"new"
    assert len(list(tmp_path.iterdir())) == 1


def test_what_a_killed_process_left_is_in_nobodys_way(tmp_path):
    (tmp_path / "file.tmp").write_bytes(b"half of it")
    files.save_text(tmp_path / "file", "new\udcff é")
    assert (tmp_path / "file").read_bytes() == "new? é".encode()
    assert not (tmp_path / "file.tmp").exists()


def test_json_is_written_for_people_too(tmp_path):
    files.save_json(tmp_path / "file", {"a": [1]})
    assert (tmp_path / "file").read_text() == '{\n "a": [\n  1\n ]\n}\n'
    with pytest.raises(UserError, match=f"^cannot write {tmp_path}/file: some of its numbers are"):
        files.save_json(tmp_path / "file", {"a": math.nan})


def test_a_write_that_cannot_begin_says_why(tmp_path):
    (tmp_path / "file.tmp").mkdir()
    (tmp_path / "file.tmp" / "x").write_text("")
    with pytest.raises(UserError, match=f"^cannot write {tmp_path}/file: .*director"):
        files.save_text(tmp_path / "file", "new")


def test_a_place_can_be_written_or_is_refused_by_its_kind(tmp_path, monkeypatch):
    (tmp_path / "there").write_text("")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("there", "new"):
        files.check_writable(tmp_path / name)
    os.mkfifo(tmp_path / "lock")
    reader = os.open(tmp_path / "lock", os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(UserError, match="lock: it is there already and is no plain file$"):
        entered(files.locked(tmp_path))
    os.close(reader)
    for name in ("folder", "pipe"):
        says = f"^cannot write {tmp_path}/{name}: it is there already and is no plain file$"
        with pytest.raises(UserError, match=says):
            files.check_writable(tmp_path / name)
    says = f"^cannot write .*/new: {tmp_path}/none is no folder that one can write to$"
    with pytest.raises(UserError, match=says):
        files.check_writable(tmp_path / "none" / "new")
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(UserError, match="is no folder that one can write to"):
        files.check_writable(tmp_path / "new")


def test_a_folder_is_made_with_those_above_it_or_named(tmp_path):
    files.make_folder(tmp_path / "a" / "b")
    files.make_folder(tmp_path / "a" / "b")
    (tmp_path / "file").write_text("")
    says = f"^cannot make {tmp_path}/file/c: {os.strerror(errno.ENOTDIR)}$"
    with pytest.raises(UserError, match=says):
        files.make_folder(tmp_path / "file" / "c")


def test_a_lock_is_no_link_and_stays_and_is_closed(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "lock").symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match=f"^cannot write {tmp_path}/lock: "):
        entered(files.locked(tmp_path))
    (tmp_path / "lock").unlink()
    gc.collect()  # what earlier tests left open
    opened = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    for _ in range(2):
        says = pytest.raises(UserError, match=f"^{tmp_path} is in use: another process trains")
        with files.locked(tmp_path), says:
            entered(files.locked(tmp_path))
    assert (tmp_path / "lock").read_bytes() == b""
    if opened:
        assert len(os.listdir("/proc/self/fd")) == opened


def test_lines_are_objects_and_empty_lines_are_none(tmp_path):
    path = tmp_path / "lines"
    files.save_lines(path, [{"a": 1}, {"b": "é\n"}])
    assert path.read_bytes().count(b"\n") == 2 and path.read_bytes().endswith(b"\n")
    path.write_text(path.read_text() + "\n  \n{}\n")
    assert files.load_lines(path) == [{"a": 1}, {"b": "é\n"}, {}]
    path.write_text("{}\n[]\n")
    with pytest.raises(UserError, match=f"^{path} is none of ours: a line holds no object$"):
        files.load_lines(path)
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError):
            files.save_lines(path, [{"a": value}])
    assert path.read_text() == "{}\n[]\n"


def test_what_goes_wrong_with_reading_is_told_with_the_file(tmp_path):
    path = tmp_path / "file"
    missing = f"^{path} is missing: {tmp_path} holds no run .train.py makes one.$"
    for error, says in (
        (FileNotFoundError(), missing),
        (ValueError("odd\nmore"), f"^{path} cannot be read: odd$"),
        (RecursionError(), f"^{path} cannot be read: RecursionError$"),
        (UserError("as it is"), "^as it is$"),
    ):
        with pytest.raises(UserError, match=says), files.reading(path):
            raise error
    with pytest.raises(UserError, match=f"^{path} is odd: x$"), files.reading(path, "is odd"):
        raise ValueError("x")
    with pytest.raises(KeyboardInterrupt), files.reading(path):
        raise KeyboardInterrupt
    with pytest.raises(UserError, match=f"^{tmp_path} is no plain file$"), files.reading(tmp_path):
        pytest.fail("it was read")


def test_a_file_of_tensors_is_a_dictionary_on_the_cpu(tmp_path):
    path = tmp_path / "file"
    files.save_tensors(path, {"a": torch.ones(2), "n": 3})
    assert files.load_tensors(path)["n"] == 3
    torch.save([torch.ones(2)], path)
    with pytest.raises(UserError, match=f"^{path} is no checkpoint of ours: it holds a list$"):
        files.load_tensors(path)


@pytest.mark.parametrize("name", ["data.pkl", "a/b/DATA.PKL", "x.data.pkl"])
def test_a_file_holds_up_to_twenty_thousand_tuples(tmp_path, monkeypatch, name):
    def archive(n):
        path = tmp_path / "file"
        with zipfile.ZipFile(path, "w") as file:
            file.writestr(name, b"\x80\x02" + b"N\x85" * n + b".")
            file.writestr("other", b"N\x85" * 100)
        return path

    assert files.MOST_TUPLES == 20_000
    monkeypatch.setattr(files, "MOST_TUPLES", 20)
    files.check_archive(archive(20))
    with pytest.raises(ValueError, match="too many tuples"):
        files.check_archive(archive(21))


# ---------------------------------------------------------------- errors

EXITS = [  # what a script's work raises or returns; its exit code; what is said
    (0, 0, ""),
    (3, 3, ""),
    (UserError("no\nsuch run"), 2, "error: no such run\n"),
    (FloatingPointError("not finite"), 2, "error: not finite\n"),
    (OSError(28, "No space"), 2, "error: [Errno 28] No space\n"),
    (BrokenPipeError(), 1, ""),
    (KeyboardInterrupt(), 130, "stopped\n"),
    (KeyboardInterrupt("after step 3"), 130, "after step 3\n"),
]
FULL = "error: out of memory: ask for fewer prompts or documents, or a smaller model\n"
EXITS += [
    (error, 2, FULL)
    for error in (
        MemoryError(),
        torch.OutOfMemoryError("CUDA"),
        RuntimeError("x: can't allocate memory: you tried"),
    )
]


@pytest.mark.parametrize("end, code, said", EXITS, ids=lambda x: repr(x)[:30])
def test_a_script_ends_with_a_code_and_a_line(monkeypatch, capsys, end, code, said):
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # put back afterwards

    def work(*given, **named):
        assert given == (1,) and named == {"a": 2}
        if isinstance(end, BaseException):
            raise end
        return end

    assert run_main(work, 1, a=2) == code
    assert errors.command(work)(1, a=2) == code
    assert capsys.readouterr().err == 2 * said


@pytest.mark.parametrize("error", [RuntimeError("a fault of ours"), ValueError("x"), KeyError(1)])
def test_a_fault_of_ours_is_not_hidden(error):
    def work():
        raise error

    with pytest.raises(type(error)):
        run_main(work)


def test_what_is_printed_last_is_out_or_told(monkeypatch, capsys):
    class Full(io.StringIO):
        def flush(self):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    assert run_main(lambda: 0) == 2
    assert capsys.readouterr().err == "error: [Errno 28] No space left on device\n"
    sys.stdout.flush()  # as Python does at its end


def test_an_error_is_its_first_line_of_160_characters_or_its_name():
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(ValueError()) == "ValueError" == first_line(ValueError(""))
    assert first_line(ValueError("x" * 300)) == "x" * 160


def test_a_stream_that_is_closed_is_opened_to_nowhere_and_the_others_stay(monkeypatch):
    closed, kept = io.StringIO(), io.TextIOWrapper(io.BytesIO(), "ascii")
    closed.close()
    monkeypatch.setattr(sys, "stdin", None)
    monkeypatch.setattr(sys, "stdout", kept)
    monkeypatch.setattr(sys, "stderr", closed)
    errors._open_streams()
    assert sys.stdin.read() == "" and sys.stdout is kept
    print("nowhere", file=sys.stderr)
    print("→ \udcff", flush=True)
    assert kept.buffer.getvalue() == b"-> \\udcff\n"
    for stream in (sys.stdin, sys.stderr):
        assert stream.name == os.devnull
        stream.close()


# ---------------------------------------------------------------- several processes


@pytest.fixture
def several(monkeypatch):
    """This process is number 1 of 3; what the others sum up is twice as much."""
    exchanged = []

    def reduce(flat):
        exchanged.append(flat.clone())
        flat.mul_(3)

    group = {"is_initialized": lambda: True, "get_world_size": lambda: 3, "get_rank": lambda: 1}
    for name, value in {**group, "all_reduce": reduce}.items():
        monkeypatch.setattr(processes.dist, name, value)
    return exchanged


def test_each_tensor_is_replaced_by_its_sum_in_one_exchange(several):
    matrix, number = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor(5.0, requires_grad=True)
    turned = torch.tensor([[6.0, 7.0, 8.0]]).T
    processes.all_sum(matrix, number, turned)
    assert matrix.tolist() == [[3, 6], [9, 12]] and number.item() == 15
    assert turned.tolist() == [[18], [21], [24]]
    (flat,) = several
    assert flat.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    processes.all_sum()
    assert len(several) == 1


def test_this_process_knows_its_number_and_its_part(several):
    assert (processes.world_size(), processes.rank(), processes.is_main()) == (3, 1, False)
    assert processes.share(list(range(8))) == [1, 4, 7]
    assert processes.own_range(8) == range(2, 5)
    assert processes.any_process(True) is True and processes.any_process(False) is False


def test_a_process_that_is_left_alone_says_so(several, monkeypatch):
    def gone(flat):
        raise RuntimeError("Connection closed\nby peer")

    monkeypatch.setattr(processes.dist, "all_reduce", gone)
    says = r"^process 1 lost the others: .* cannot be reached \(Connection closed\)$"
    with pytest.raises(UserError, match=says):
        processes.all_sum(torch.ones(2))


def test_without_a_group_a_process_is_alone(monkeypatch):
    monkeypatch.setattr(processes.dist, "is_available", lambda: False)
    monkeypatch.setattr(processes.dist, "is_initialized", lambda: pytest.fail("not there"))
    assert (processes.world_size(), processes.rank(), processes.is_main()) == (1, 0, True)


TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "3", "RANK": "1", "LOCAL_RANK": "1"}


@pytest.fixture
def torchrun(monkeypatch):
    """As in a process that torchrun started; who meets is noted."""
    met = []

    def rendezvous(url, timeout):
        met.append((url, timeout.total_seconds()))
        return iter([("store", 1, 3)])

    def group(backend, store, rank, world_size):
        met.append((backend, store, rank, world_size))

    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(processes.dist, "rendezvous", rendezvous)
    monkeypatch.setattr(processes.dist, "init_process_group", group)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: met.append(device))
    return met


def test_processes_on_cpus_meet_by_gloo_within_two_minutes(torchrun):
    assert processes.join(CPU) == CPU
    assert torchrun == [("env://", 120.0), ("gloo", "store", 1, 3)]


def test_processes_on_gpus_have_one_each_and_meet_by_nccl_too(torchrun, monkeypatch):
    assert processes.join(torch.device("cuda")) == torch.device("cuda", 1)
    assert torchrun == [1, ("env://", 120.0), ("cpu:gloo,cuda:nccl", "store", 1, 3)]
    monkeypatch.setenv("LOCAL_RANK", "2")
    says = r"^process 2 of this machine has no GPU of its own \(2 there\): start at most one"
    with pytest.raises(UserError, match=says):
        processes.join(torch.device("cuda"))


def test_processes_that_cannot_meet_say_where(torchrun, monkeypatch):
    def refuse(*_, **__):
        raise ValueError("port\nmore")

    monkeypatch.setenv("MASTER_ADDR", "here")
    monkeypatch.setenv("MASTER_PORT", "77")
    monkeypatch.setattr(processes.dist, "rendezvous", refuse)
    says = "^the processes cannot meet at MASTER_ADDR:MASTER_PORT here:77: port$"
    with pytest.raises(UserError, match=says):
        processes.join(CPU)


@pytest.mark.parametrize("rank, shown", [("0", True), ("1", False)])
def test_what_all_processes_would_print_is_printed_by_the_first(
    torchrun, monkeypatch, capsys, rank, shown
):
    monkeypatch.setenv("RANK", rank)
    ended, alone = [], processes.dist.is_initialized()

    def work():
        print("result")
        print("progress", file=sys.stderr)
        return 5

    assert not alone and processes.run_together(work) == 5
    assert capsys.readouterr() == (("result\n", "progress\n") if shown else ("", ""))

    def stop():
        raise KeyboardInterrupt("stopped after step 3")

    assert processes.run_together(stop) == 130
    assert capsys.readouterr().err == ("stopped after step 3\n" if shown else "")
    monkeypatch.setattr(processes, "world_size", lambda: 3)
    monkeypatch.setattr(processes.dist, "destroy_process_group", lambda: ended.append(1))
    assert processes.run_together(work) == 5 and ended == [1]
    assert processes.run_together(stop) == 130 and ended == [1, 1]


@pytest.mark.parametrize("number, told", [(1, "error: no\n"), (2, "")])
def test_a_mistake_of_all_is_told_by_the_first_to_fail(torchrun, monkeypatch, capsys, number, told):
    def work():
        raise UserError("no")

    added, waited = [], []
    store = SimpleNamespace(add=lambda key, n: (added.append((key, n)), number)[1])

    def meet(url, timeout):
        waited.append(timeout.total_seconds())
        return iter([(store, 0, 3)])

    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setattr(processes.dist, "rendezvous", meet)
    assert processes.run_together(work) == 2
    assert capsys.readouterr().err == told and added == [("failed", 1)] and waited == [10]


def test_a_mistake_is_told_where_there_is_no_store_to_ask(torchrun, monkeypatch, capsys):
    def gone(*_, **__):
        raise RuntimeError("no store")

    def work():
        raise UserError("no")

    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(processes.dist, "rendezvous", gone)
    for setting in ("True", "False"):
        monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", setting)
        assert processes.run_together(work) == 2
        assert capsys.readouterr().err == "error: no\n"


# ---------------------------------------------------------------- a run that is read


def test_the_hash_of_weights_is_of_names_dtypes_shapes_and_values():
    state = {"a": torch.tensor([[1.0, 2.0]]), "b": torch.tensor([3.0])}
    others = [
        {"b": state["b"], "a": state["a"]},  # the same
        {"a": state["a"], "c": state["b"]},
        {"a": state["a"].T.contiguous(), "b": state["b"]},
        {"a": state["a"].flip(1), "b": state["b"]},
        {"a": state["a"].double(), "b": state["b"]},
        {"a": state["a"].view(torch.int32), "b": state["b"]},
        {"a": state["a"]},
        {"a": torch.tensor(1.0)},
    ]
    hashes = [runs.weights_hash(other) for other in others]
    assert hashes[0] == runs.weights_hash(state) and len(set(hashes)) == len(others)
    assert all(len(each) == 64 and int(each, 16) for each in hashes)
    turned = {"a": torch.tensor([[1.0], [2.0]]).T, "b": torch.nn.Parameter(state["b"])}
    assert runs.weights_hash(turned) == hashes[0]


@pytest.mark.parametrize("n_tokens, fits", [(10, True), (11, False), (0, True)])
def test_a_vocabulary_is_no_larger_than_the_embedding(tmp_path, n_tokens, fits):
    cfg = replace(SHAPE, d_vocab=10)
    config = {"model": settings.shape_of(cfg), "vocabulary": ["x"] * n_tokens}
    files.save_json(tmp_path / "config.json", config)
    files.save_tensors(tmp_path / "model.pt", Transformer(cfg).state_dict())
    says = "config.json: 11 tokens are more than d_vocab 10$"
    with nullcontext() if fits else pytest.raises(UserError, match=says):
        made, _ = runs.load_run(tmp_path)
        assert made.cfg == cfg and not made.unembed.W_U.is_meta


def test_whole_is_a_plain_tensor_of_the_shape_with_every_value():
    shape = torch.Size([2, 3])
    plain = torch.zeros(2, 3)
    for fits in (plain, torch.zeros(3, 2).T, torch.zeros(9, 3)[:2], plain.half()):
        assert runs.whole(fits, shape)
    stretched = [torch.zeros(1, 3).expand(2, 3), torch.zeros(2, 1).expand(2, 3)]
    for wrong in (
        *stretched,
        torch.zeros(3, 2),
        plain.to_sparse(),
        plain.to("meta"),
        [[0] * 3] * 2,
    ):
        assert not runs.whole(wrong, shape)


def test_a_circuit_is_of_the_weights_of_the_run(tmp_path):
    model, path = Transformer(SHAPE), tmp_path / "circuit.json"
    assert runs.load_circuit(path, model) is None
    own = {"weights": runs.weights_hash(model.state_dict())}
    for fits in (own, {"task": "addition"}, {}):
        files.save_json(path, fits)
        assert runs.load_circuit(path, model) == fits
    files.save_json(path, {"weights": "0"})
    assert runs.load_circuit(path, None) == {"weights": "0"}
    says = f"^{path} is about other weights than the run's: run `make learned` again$"
    with pytest.raises(UserError, match=says):
        runs.load_circuit(path, model, "learned")
    files.save_json(path, [])
    with pytest.raises(UserError, match="it holds a list$"):
        runs.load_circuit(path, model)


def test_a_folder_of_a_circuit_alone_is_told_from_a_run(tmp_path):
    assert not runs.traced_alone(tmp_path)
    (tmp_path / "circuit.json").write_text("{}")
    assert runs.traced_alone(tmp_path)
    for name in ("config.json", "metrics.jsonl", "model.pt", "resume.pt"):
        (tmp_path / name).symlink_to("nowhere")
        assert not runs.traced_alone(tmp_path)
        (tmp_path / name).unlink()


def test_progress_is_that_of_the_checkpoint_or_unknown(tmp_path):
    assert runs.progress(tmp_path) == (0, 0)
    files.save_json(tmp_path / "config.json", {"train": {"steps": 9}})
    files.save_tensors(tmp_path / "resume.pt", {"step": 4})
    assert runs.progress(tmp_path) == (4, 9)
    files.save_json(tmp_path / "config.json", {"train": {}})
    assert runs.progress(tmp_path) == (0, 0)


@pytest.mark.parametrize("done, told", [(8, True), (9, False)])
def test_a_run_is_unfinished_until_its_last_step(tmp_path, done, told):
    files.save_json(tmp_path / "config.json", {"train": {"steps": 9}})
    files.save_tensors(tmp_path / "resume.pt", {"step": done})
    files.save_tensors(tmp_path / "model.pt", {})
    asked = SimpleNamespace(run=tmp_path, or_reference=True)
    found = runs.chosen_run(asked)
    assert (found.run, found.results, found.is_reference) == (tmp_path, tmp_path, False)
    said = f"{tmp_path} is unfinished, at step 8 of 9: go on with `make train OUT={tmp_path}`"
    assert found.notice == (said if told else "")


def test_a_result_is_found_where_results_go_or_else_where_the_reference_run_is(tmp_path):
    folders = runs.RunFolders(tmp_path / "run", tmp_path / "results", is_reference=True)
    assert folders.found("circuit.json") == tmp_path / "run" / "circuit.json"
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "circuit.json").touch()
    assert folders.found("circuit.json") == tmp_path / "results" / "circuit.json"


def test_a_result_is_written_where_results_go_and_its_folder_is_made(tmp_path):
    folders = runs.RunFolders(tmp_path / "run", tmp_path / "a" / "b", False)
    assert folders.to_write("x.json") == tmp_path / "a" / "b" / "x.json"
    (tmp_path / "a" / "b" / "x.json").mkdir()
    with pytest.raises(UserError, match="no plain file"):
        folders.to_write("x.json")
    assert folders.name == str(tmp_path / "run") and replace(folders, is_reference=True).name == (
        "reference"
    )
    there = replace(folders, is_reference=True, asked=Path("out/b"))
    assert there.makes("patch") == "make patch OUT=out/b"
    assert replace(there, asked=Path("out/default")).makes("train") == "make train"


def test_a_run_is_made_with_versions_that_are_noted():
    import minifunc

    python = ".".join(map(str, sys.version_info[:3]))
    assert (
        settings.versions()["python"].startswith(python)
        and " " not in settings.versions()["python"]
    )
    assert settings.versions()["torch"] == torch.__version__
    assert settings.versions()["minifunc"] == minifunc.__version__


def test_a_pickle_alone_is_no_file_of_tensors(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(pickle.dumps({"a": 1}))
    says = f"^{path} is damaged or no checkpoint of ours: "
    with pytest.raises(UserError, match=says):
        files.load_tensors(path)
