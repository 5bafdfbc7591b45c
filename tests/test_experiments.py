"""Many runs, on tiny models: what is finished is kept, the rest is picked up; rows and tables."""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

import patch
import tasks
import train
from experiments import (
    catalogue,
    dependability,
    diets,
    emergence,
    experiment,
    measure,
    precursor,
    runs,
    seeds,
    universality,
    unseen_shifts,
)
from experiments.experiment import main
from experiments.runs import Run, Study, carry_out, finished, log_spaced, run_all
from experiments.summary import column, in_words, mean_ci
from minifunc.model import ModelConfig, Transformer
from minifunc.patching import Logits
from minifunc.support.checkpoints import Diverged
from minifunc.support.errors import UserError
from minifunc.support.runs import load_run
from minifunc.support.settings import described
from train import TrainConfig

ROOT = Path(__file__).parent.parent
TINY = ModelConfig(
    n_layers=2,
    n_heads=2,
    d_model=16,
    d_head=8,
    d_mlp=16,
    d_vocab=len(tasks.VOCABULARY),
    n_ctx=128,
    act_fn="relu",
)
TRAIN = TrainConfig(steps=6, documents=4, examples=4, warmup=2, eval_every=2)


@pytest.fixture(autouse=True)
def quick_evaluation(monkeypatch):
    """Fewer prompts everywhere."""
    evaluate = train.evaluate

    def evaluate_few(model, n_prompts, every_task):
        return evaluate(model, 4, every_task)

    monkeypatch.setattr(train, "evaluate", evaluate_few)
    monkeypatch.setattr(measure, "FEW", 4)


def tiny(seed=0, **changes):
    return Run("tiny", model=TINY, train=replace(TRAIN, seed=seed), **changes)


def norm(model, run, folder, quick):
    """What these tests measure: a number that depends on every weight."""
    return {"norm": sum(weight.double().norm().item() for weight in model.parameters())}


def study(out, name="x", measure=norm, quick=False):
    return Study(name, measure, out, quick)


def stop_at(monkeypatch, step, error=KeyboardInterrupt):
    """Makes training end in the middle, as if killed, after some calls of tasks.sample."""
    sample, calls = tasks.sample, []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == step:
            raise error("killed")
        return sample(*arguments)

    monkeypatch.setattr(tasks, "sample", killed)
    return calls


def make_diverge(monkeypatch):
    loss = train.loss_on_answers
    monkeypatch.setattr(train, "loss_on_answers", lambda *arguments: loss(*arguments) * math.nan)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---------------------------------------------------------------- one run


@pytest.mark.slow
def test_a_killed_run_is_unfinished_and_goes_on_to_the_same_result(tmp_path, monkeypatch):
    whole = carry_out(tiny(), study(tmp_path / "whole"))
    killed = study(tmp_path / "killed")
    with monkeypatch.context() as patch:
        stop_at(patch, 5, OSError)
        with pytest.raises(OSError, match="killed"):
            carry_out(tiny(), killed)
    assert finished(tiny(), killed) is None
    assert (tmp_path / "killed/tiny/seed0/resume.pt").exists()
    calls = stop_at(monkeypatch, 100)
    assert carry_out(tiny(), killed) == whole
    assert len(calls) == 2  # steps 5 and 6 alone: the checkpoint of step 4 was taken up


def test_a_trained_run_that_was_not_measured_is_measured_without_training(tmp_path, monkeypatch):
    def fails(*_):
        raise OSError("killed")

    with pytest.raises(OSError):
        carry_out(tiny(), study(tmp_path, measure=fails))
    assert finished(tiny(), study(tmp_path)) is None
    calls = stop_at(monkeypatch, 1)
    assert "norm" in carry_out(tiny(), study(tmp_path))
    assert not calls


def test_a_finished_run_is_not_trained_or_measured_again(tmp_path, monkeypatch):
    first = carry_out(tiny(), study(tmp_path))
    assert finished(tiny(), study(tmp_path)) == first
    monkeypatch.setattr(runs, "side_by_side", None)
    assert run_all([tiny()], study(tmp_path), 1) == [first]
    assert first["diverged"] is False


def test_two_studies_share_a_run_but_not_what_they_measured(tmp_path, monkeypatch):
    carry_out(tiny(), study(tmp_path))
    assert finished(tiny(), study(tmp_path, "y")) is None
    assert finished(tiny(), study(tmp_path, quick=True)) is None
    calls = stop_at(monkeypatch, 1)
    row = carry_out(tiny(), study(tmp_path, "y", lambda *_: {"other": 1}))
    assert row == {"diverged": False, "other": 1} | runs.made_on(runs.CPU)
    assert not calls


def test_a_run_that_diverges_is_recorded_as_such_and_not_tried_again(tmp_path, monkeypatch):
    make_diverge(monkeypatch)
    row = carry_out(tiny(), study(tmp_path))
    assert row["diverged"] is True and "no longer finite" in row["message"]
    assert finished(tiny(), study(tmp_path)) == row


def test_a_row_says_where_it_was_made_and_counts_on_every_device(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    cuda = torch.device("cuda")
    made = runs.made_on(cuda)
    assert made["hardware"]["processor"] == "H100" and made["hardware"]["device"] == "cuda"
    assert made["versions"]["cuda"] == "13.0" and made["versions"]["torch"] == torch.__version__
    row = carry_out(tiny(), study(tmp_path))
    assert row["hardware"]["device"] == "cpu" and "cuda" not in row["versions"]
    path = tmp_path / "tiny/seed0/x.json"
    kept = json.loads(path.read_text())
    path.write_text(json.dumps(kept | {"row": row | made}))
    assert finished(tiny(), study(tmp_path)) == row | made
    older = {"diverged": False, "norm": 1.0}  # of a version that did not write where
    path.write_text(json.dumps(kept | {"row": older}))
    on_cuda = replace(study(tmp_path), device=cuda)
    assert run_all([tiny()], on_cuda, 1) == [older | runs.made_on(runs.CPU)]


def test_runs_are_trained_and_measured_on_the_device_of_their_study(tmp_path, monkeypatch):
    asked = []

    def note(out, model_cfg, cfg, diet, device, *_):
        asked.append(device)

    monkeypatch.setattr(train, "train", note)
    monkeypatch.setattr(runs, "made_on", lambda device: {"on": device.type})
    of_meta = replace(study(tmp_path, measure=lambda *_: {}), device=torch.device("meta"))
    assert carry_out(tiny(), of_meta)["on"] == "meta"
    assert asked == [torch.device("meta")]


def test_results_of_several_devices_say_so():
    rows = [{"hardware": {"device": device, "processor": "x"}} for device in ("cpu", "cuda", "cpu")]
    assert experiment.mixed(rows) == ["runs of several devices: 2 on cpu (x), 1 on cuda (x)"]
    assert experiment.mixed(rows[:1]) == []


def test_the_sweeps_of_runs_that_share_a_card_take_no_quarter_of_it_each(tmp_path, monkeypatch):
    asked = []

    def patchers(study, *_):
        asked.append(study.max_memory)
        raise ZeroDivisionError

    monkeypatch.setattr(patch.Study, "patchers", patchers)
    monkeypatch.setattr(measure, "answers_given", lambda *_: {"answers": {"right": 1.0}})
    model = Transformer(train.MODEL)
    for sweeps in (
        lambda: measure.circuit(model, True),
        lambda: emergence.effects(model, {}, 2),
        lambda: seeds.traced(model, tmp_path, True),
    ):
        with pytest.raises(ZeroDivisionError):
            sweeps()
    assert asked == [2.0] * 3 and runs.GIB_EACH >= 2 * max(asked)


@pytest.mark.parametrize("free, cores, n", [(80, 16, 8), (80, 2, 2), (9, 16, 2), (1, 16, 1)])
def test_a_card_is_shared_as_far_as_its_memory_and_the_cores_go(monkeypatch, free, cores, n):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores), raising=False)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free * 2**30, 80 * 2**30))
    assert runs.runs_at_once(torch.device("cuda")) == n
    assert runs.runs_at_once(runs.CPU) == cores


CHANGES = {"train": replace(TRAIN, lr=1e-3), "diet": "addition", "model": replace(TINY, n_layers=1)}


@pytest.mark.slow
@pytest.mark.parametrize("part", CHANGES)
def test_the_folder_of_another_run_is_refused_and_left_alone(tmp_path, part):
    carry_out(tiny(), study(tmp_path))
    before = contents(tmp_path)
    with pytest.raises(UserError, match="other settings"):
        run_all([replace(tiny(), **{part: CHANGES[part]})], study(tmp_path), 1)
    assert contents(tmp_path) == before


def test_snapshots_are_the_weights_after_their_steps(tmp_path):
    carry_out(tiny(snapshots=(1, 4, 6)), study(tmp_path))
    folder = tiny().folder(tmp_path)
    files = sorted((folder / "steps").iterdir())
    assert [path.name for path in files] == ["00001.pt", "00004.pt", "00006.pt"]
    first, _, last = (torch.load(path, weights_only=True) for path in files)
    final = load_run(folder)[0].state_dict()
    assert all(torch.equal(last[name], final[name]) for name in final)
    assert not torch.equal(first["embed.W_E"], last["embed.W_E"])


@pytest.mark.slow
def test_a_silenced_head_stays_silent_also_over_a_kill(tmp_path, monkeypatch):
    """Heads are silenced at step 2 or 4, by score; a run killed in between does the same."""
    criteria = replace(measure.CRITERIA, looks_at_previous=0.055)
    monkeypatch.setattr(measure, "CRITERIA", criteria)
    monkeypatch.setattr(precursor, "EVERY", 2)
    run = tiny(seed=3, intervention=partial(precursor.silence, precursor.previous_token_heads))
    with monkeypatch.context() as patch:
        stop_at(patch, 4, OSError)
        with pytest.raises(OSError):
            carry_out(run, study(tmp_path / "killed"))
    weights, silent = [], []
    for name in ("whole", "killed"):
        carry_out(run, study(tmp_path / name))
        folder = run.folder(tmp_path / name)
        weights.append(load_run(folder)[0].state_dict())
        silent.append(precursor.silenced(folder))
    assert silent[0] == silent[1] and 0 < len(silent[0]) < 4
    for layer in range(2):
        for head in range(2):
            writes_nothing = (weights[0][f"blocks.{layer}.attn.W_O"][head] == 0).all().item()
            assert writes_nothing == (f"{layer}.{head}" in silent[0])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_head_is_silent_from_the_very_step_on_that_chose_it(tmp_path, monkeypatch):
    """After each step: also a second time, from an older checkpoint, when silenced.json is there.
    No head is asked for between two looks, and one that is chosen again keeps its first step."""
    monkeypatch.setattr(precursor, "EVERY", 2)
    model, run, looked = Transformer(TINY).requires_grad_(False), tiny(), []
    chosen = {2: {"0.1"}, 4: {"0.1", "1.0"}, 6: set()}

    def choose(step, *_):
        looked.append(step)
        return chosen[step]

    def silent_after(step):
        for block in model.blocks:
            block.attn.W_O.fill_(1.0)  # as an update would
        precursor.silence(choose, step, model, run, tmp_path)
        heads = [f"{layer}.{head}" for layer in range(2) for head in range(2)]
        written = torch.cat([block.attn.W_O.flatten(1) for block in model.blocks])
        assert ((written == 0).all(1) | (written == 1).all(1)).all()
        return {head for head, row in zip(heads, written) if not row.any()}

    silent = [set(), {"0.1"}, {"0.1"}, {"0.1", "1.0"}, {"0.1", "1.0"}, {"0.1", "1.0"}]
    for _ in ("at first", "over a kill"):
        assert [silent_after(step) for step in range(1, 7)] == silent
        assert precursor.silenced(tmp_path) == {"0.1": 2, "1.0": 4}
    assert looked == [2, 4, 6] * 2


def silenced_by_copying(tmp_path, since, seed=0):
    """The folder of a control, beside that of the run that it follows."""
    for kind in (precursor.COPYING, precursor.CONTROL):
        (tmp_path / precursor.run_name(kind) / f"seed{seed}").mkdir(parents=True)
    folder = tmp_path / precursor.run_name(precursor.COPYING) / f"seed{seed}"
    (folder / "silenced.json").write_text(json.dumps(since))
    return tmp_path / precursor.run_name(precursor.CONTROL) / f"seed{seed}"


def test_the_control_loses_as_many_heads_of_each_layer_after_the_same_steps(tmp_path):
    since = {"3.0": 40, "3.5": 40, "2.2": 60, "3.1": 80}
    wide, drawn = replace(TINY, n_layers=4, n_heads=6), []
    for attempt, seed in enumerate((0, 0, 1, 2)):
        folder = silenced_by_copying(tmp_path / str(attempt), since, seed)
        run, model = replace(tiny(seed), model=wide), Transformer(wide).requires_grad_(False)
        for step in range(1, 101):
            precursor.silence(precursor.random_heads, step, model, run, folder)
        lost = precursor.silenced(folder)
        by_layer = Counter((head[0], step) for head, step in lost.items())
        assert by_layer == Counter((head[0], step) for head, step in since.items())
        drawn.append(lost)
    assert drawn[0] == drawn[1] and len(set(map(frozenset, drawn))) > 1


def test_the_control_takes_what_was_silenced_from_the_rows_or_says_what_it_lacks(
    tmp_path, monkeypatch
):
    folder, run = tmp_path / "other/seed0", tiny()
    monkeypatch.setattr(precursor, "RESULTS", tmp_path)
    with pytest.raises(UserError, match="needs the run no_copy_induction of seed 0"):
        precursor.lost_by_copying(run, folder)
    row = {"run": "precursor_no_copy_induction", "seed": 0, "silenced": {"1.0": 20}}
    others = [row | {"seed": 1, "silenced": {}}, row | {"run": "x", "silenced": {}}]
    (tmp_path / "precursor.json").write_text(json.dumps([*others, row]))
    assert precursor.lost_by_copying(run, folder) == {"1.0": 20}


def test_the_verdict_follows_the_paired_differences():
    def told(*differences):
        rows = []
        for seed, difference in enumerate(differences):
            for kind, accuracy in ((precursor.COPYING, 0.9 + difference), (precursor.CONTROL, 0.9)):
                rows.append({"kind": kind, "seed": seed, "off_by_one_8": accuracy})
        return precursor.verdict(rows)

    assert told(-0.5, -0.6, -0.55).endswith("ordinary induction is a precursor")
    assert told(0.01, -0.01, 0.0).endswith("ordinary induction is no precursor")
    assert "paired: 0.000 ± 0.025 (3 seeds)" in told(0.01, -0.01, 0.0)
    assert told(-0.5, 0.5, 0.0).endswith("undecided") and told(-0.5).endswith("undecided")
    assert told().endswith("undecided")
    assert told(0.09, 0.095, 0.092).endswith("no precursor")  # it even helps


# ---------------------------------------------------------------- several runs


@pytest.fixture
def ready_made(forkserver, monkeypatch):
    """A worker is a copy of a process that has loaded torch; spawned, it takes seconds to start."""
    monkeypatch.setattr(runs.multiprocessing, "get_context", lambda how: forkserver)


@pytest.mark.slow
def test_runs_side_by_side_are_the_runs_one_by_one(tmp_path):
    """As they are really started: spawned."""
    some = [tiny(seed) for seed in range(2)]
    one = [carry_out(run, study(tmp_path / "one")) for run in some]
    assert run_all(some, study(tmp_path / "two"), 2) == one
    assert one[0]["norm"] != one[1]["norm"]


def trouble(model, run, folder, quick):
    """What these runs meet, by seed: an end from outside, no memory, divergence; and none."""
    if run.train.seed == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    if run.train.seed == 1:
        raise torch.OutOfMemoryError("CUDA out of memory.\nsecond line")
    if run.train.seed == 2:
        raise Diverged("the loss is no longer finite")
    return norm(model, run, folder, quick)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX alone")
def test_a_run_that_fails_is_one_line_and_the_others_go_on(ready_made, tmp_path, capfd):
    some = [tiny(seed) for seed in range(4)]
    with pytest.raises(UserError, match="2 of 4 runs failed: the same command tries them again"):
        run_all(some, study(tmp_path, measure=trouble), 2)
    told = [
        "tiny/seed0: its process was ended from outside (out of memory?)",
        "tiny/seed1: CUDA out of memory.",
        "tiny/seed2: the loss is no longer finite",
    ]
    assert sorted(capfd.readouterr().err.splitlines()) == told
    kept = [finished(run, study(tmp_path)) for run in some]
    assert kept[:2] == [None, None] and kept[2]["diverged"] and kept[3]["norm"] > 0
    rows = run_all(some, study(tmp_path), 2)
    assert rows[2:] == kept[2:] and rows[0]["norm"] != rows[1]["norm"]


def mistaken(*_):
    raise TypeError("a fault of ours")


@pytest.mark.slow
def test_a_fault_of_ours_is_no_failure_of_a_run(ready_made, tmp_path):
    with pytest.raises(TypeError, match="a fault of ours"):
        run_all([tiny()], study(tmp_path, measure=mistaken), 1)


SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
import train
from test_experiments import study, tiny
from experiments.runs import run_all
from minifunc.support.errors import run_main
train.SHOTS = (1,)
if __name__ == "__main__":
    run = tiny()
    run = replace(run, train=replace(run.train, steps=100_000, eval_every=5))
    some = [replace(run, name=name) for name in ("a", "b")]
    sys.exit(run_main(lambda: run_all(some, study(Path(sys.argv[1])), 2)))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="Linux alone")
def test_ctrl_c_reaches_all_of_a_terminal_and_is_one_line_while_processes_start(tmp_path):
    process = start_script(tmp_path)
    try:
        tasks_of = Path(f"/proc/{process.pid}/task")
        found = tasks_of.glob  # two workers, and what multiprocessing keeps beside them
        wait_until(lambda: sum(len(x.read_text().split()) for x in found("*/children")) >= 3)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(300) == 130
        assert process.stderr.read() == b"stopped: the same command goes on\n"
    finally:
        end(process)


def start_script(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    paths = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    return subprocess.Popen(
        [sys.executable, tmp_path / "script.py", tmp_path / "out"],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def end(process):
    """Ends the process and its workers, which would hold its stderr open."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "setsid"), reason="POSIX alone")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["stopped", "killed"])
def test_a_stop_of_the_parent_stops_the_workers_too(tmp_path, how):
    process = start_script(tmp_path)
    checkpoints = [tmp_path / f"out/{name}/seed0/resume.pt" for name in ("a", "b")]
    try:
        wait_until(lambda: all(path.exists() for path in checkpoints))
        process.send_signal(how)
        process.communicate(timeout=300)  # workers hold its stderr: until none is left
        assert process.returncode != 0
        for path in checkpoints:
            assert 0 < torch.load(path, weights_only=True)["step"] < 100_000
    finally:
        end(process)


def wait_until(true, seconds=300):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


# ---------------------------------------------------------------- what is measured


@pytest.fixture(scope="module")
def model():
    return Transformer(TINY, torch.Generator().manual_seed(0)).requires_grad_(False)


def test_answers_given_are_sorted_as_they_should_be(monkeypatch, model):
    pairs = tasks.evaluation_pairs("addition", 1, 8, 40, torch.Generator().manual_seed(0))
    shown = pairs.contrast[:, tasks.answer_positions(8)]  # [n_prompts, n_shots]
    share = (shown == pairs.base_answers[:, None]).any(1).float().mean().item()
    other_shown = torch.where(shown[:, 0] == pairs.base_answers, shown[:, 1], shown[:, 0])
    plain = {"plain": 1 - share, "plain_and_shown": share}
    for given, kinds, failure in (
        (pairs.contrast_answers, {"right": 1.0}, "none"),
        (pairs.base_answers, plain, "the plain answer"),
        (other_shown, None, "a shown answer"),
        (torch.full((40,), tasks.BOS), {"other": 1.0}, "anything"),
    ):
        logits = 9 * torch.nn.functional.one_hot(given, TINY.d_vocab).float()
        monkeypatch.setattr(measure, "last_logits", lambda *_: logits)
        row = measure.answers_given(model, pairs)
        assert row["failure"] == failure
        assert sum(row["answers"].values()) == pytest.approx(1, abs=1e-3)
        met = {name: share for name, share in row["answers"].items() if share}
        assert kinds is None or met == pytest.approx(kinds, abs=1e-3)


def test_the_grid_knows_a_model_that_answers_every_document_rightly(monkeypatch, model):
    """With right answers put in for the model's, every cell that makes sense is 1; else 0."""
    answers = {}
    for wrapper in tasks.WRAPPERS:
        for symbol in tasks.FUNCTIONS:
            if wrapper != "base" or symbol not in tasks.TO_LETTERS:
                drawn = measure.cell_documents(wrapper, symbol, 12)
                for *prompt, answer, _ in drawn.tokens[drawn.determined[:, -1]].tolist():
                    answers[tuple(prompt)] = answer
    one_hot = torch.eye(TINY.d_vocab + 1)
    for off in (0, 1):

        def logits_of(model, tokens):
            return one_hot[[answers[tuple(row)] + off for row in tokens.tolist()]]

        monkeypatch.setattr(measure, "last_logits", logits_of)
        shares = []
        for cells in measure.grid(model, 12).values():
            shares += [share for share in cells.values() if share is not None]
        assert set(shares) == {1.0 - off} and len(shares) > 30


def test_repeated_documents_repeat_themselves():
    tokens, period, queries, answers = measure.repeated_documents(10)
    assert torch.equal(tokens[:, 1 : 1 + period], tokens[:, 1 + period :])
    assert (tokens[:, queries] == tasks.EQUALS).all()
    assert torch.equal(tokens[:, answers], tokens[:, answers - period])
    assert len(queries) == 4


def test_the_effect_of_a_head_is_how_far_it_takes_F_back():
    model = Transformer(TINY, torch.Generator().manual_seed(1)).requires_grad_(False)
    groups = {"function_induction": ["1.0", "1.1"], "previous_token": ["0.1"]}
    row = emergence.effects(model, groups, 8)
    assert set(row["r"]) == {"0.1", "1.0", "1.1"}
    assert abs(row["F_range"]) > 1e-3
    taken_back = [row["r"][head] * row["F_range"] for head in ("1.0", "1.1")]
    assert row["fi_effect"] == pytest.approx(max(taken_back), abs=1e-3)
    pairs = tasks.evaluation_pairs("addition", 1, 8, 8, measure.generator(1))
    effect = patch.Study().patchers(model, pairs)["answers"].sweep(Logits())
    assert row["r"]["1.1"] == pytest.approx(effect.heads[1, 1].item(), abs=1e-3)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_snapshots_are_looked_at_on_the_device_of_the_model(monkeypatch, tmp_path, device):
    model = Transformer(TINY).to(device)
    monkeypatch.setattr(measure, "circuit", lambda *_: {"groups": {}})
    monkeypatch.setattr(emergence, "load_tensors", lambda path: model.state_dict())
    monkeypatch.setattr(emergence, "at_one_step", lambda model, *_: {"on": model.device.type})
    found = emergence.measure_run(model, tiny(snapshots=(1,)), tmp_path, True)
    assert found["steps"] == [{"step": 1, "on": device}]


# ---------------------------------------------------------------- what the runs say together


def test_mean_and_interval():
    assert mean_ci([1.0, 2.0, 3.0, None]) == (2.0, pytest.approx(4.303 / 3**0.5))
    mean, half = mean_ci([0.5])
    assert mean == 0.5 and math.isnan(half)
    assert all(map(math.isnan, mean_ci([None])))
    values = [float(x) for x in range(11)]  # their standard deviation is the root of 11
    assert mean_ci(values)[1] == pytest.approx(2.228, rel=1e-6)
    values = [float(x) for x in range(9)]  # the t of 8 values: never too narrow
    assert mean_ci(values)[1] == pytest.approx(2.365 * 7.5**0.5 / 3, rel=1e-6)
    assert in_words([1.0, 2.0, 3.0], 1) == "2.0 ± 2.5"
    assert (in_words([0.5]), in_words([None])) == ("0.50", "–")


def test_a_column_counts_heads_and_gives_a_diverged_run_no_accuracy():
    done = {"diverged": False, "plain_8": 0.9, "fi_heads": ["2.1", "2.2"]}
    diverged = {"diverged": True, "plain_8": None, "fi_heads": None}
    assert column([done, diverged], "plain_8") == [0.9, 0.0]
    assert column([done, diverged], "fi_heads") == [2, None]


@pytest.mark.parametrize("last, at_least", [(2000, 48), (1000, 48), (60, 48), (30, 30), (1, 1)])
def test_snapshots_are_log_spaced_from_the_first_step_to_the_last(last, at_least):
    steps = log_spaced(last)
    assert steps[0] == 1 and steps[-1] == last
    assert at_least <= len(steps) <= 60
    assert list(steps) == sorted(set(steps))
    if last == 2000:
        gaps = [after / before for before, after in zip(steps, steps[1:]) if before > 100]
        assert max(gaps) / min(gaps) < 1.05


def test_an_event_is_where_a_curve_stays_above_half_way():
    values = [0.0, 0.6, 0.2, 0.4, 0.7, 0.9, 1.0]
    curve = [{"step": 10 * (index + 1), "x": x} for index, x in enumerate(values)]
    assert emergence.event_step(curve, lambda row: row["x"]) == 50
    assert emergence.event_step(curve, lambda row: -row["x"]) is None
    assert emergence.event_step(curve, lambda row: None) is None


def test_the_default_run_is_what_train_py_makes_by_itself(tmp_path, monkeypatch):
    made = []

    def note(out, model_cfg, cfg, diet, *_):
        made.append(described(model_cfg, cfg, diet, tasks.VOCABULARY))

    monkeypatch.setattr(train, "train", note)
    monkeypatch.setattr(train, "print_table", lambda *_: None)
    assert train.main(["--out", str(tmp_path), "--seed", "4", "--device", "cpu"]) == 0
    settings = runs.default_run("default", 4, TrainConfig.steps).settings()
    assert settings == {part: made[0][part] for part in settings}


# ---------------------------------------------------------------- the commands

KEYS = {  # that docs and others rely on
    "diets": "diet seed plain_8 off_by_one_8 off_by_k_8 fi_heads pt_heads top_fi_r faithfulness "
    "failure",
    "emergence": "seed step loss off_by_one_8 plain_8 pt_score fi_score copy_induction_score",
    "universality": "config seed plain_8 off_by_one_8 fi_heads pt_heads consolidation_heads",
    "dependability": "seed off_by_one_8 off_by_k_8",
    "precursor": "kind seed silenced plain_8 off_by_one_8 off_by_k_8 fi_heads from_step",
    "unseen_shifts": "shifts seed task accuracy",
}
SOME = {
    "diets": ["--only", "strict,addition,hold_minus"],
    "emergence": [],
    "universality": ["--only", "default,1_head,attention_only"],
    "dependability": [],
    "precursor": ["--only", "none,no_copy_induction,random_heads"],
    "unseen_shifts": ["--only", "odd"],
}
MODULES = {
    "diets": diets,
    "emergence": emergence,
    "universality": universality,
    "dependability": dependability,
    "precursor": precursor,
    "unseen_shifts": unseen_shifts,
}


@pytest.fixture
def small(monkeypatch):
    """Tiny models in place of the default's, wherever an experiment names one; in one process."""
    configs = {}
    for index, name in enumerate(universality.CONFIGS):
        configs[name] = replace(TINY, d_mlp=16 + index)
    configs["1_head"] = replace(configs["1_head"], n_heads=1)
    configs["attention_only"] = replace(configs["attention_only"], act_fn="none")
    configs["learned_positions"] = replace(configs["learned_positions"], positions="learned")
    monkeypatch.setattr(universality, "CONFIGS", configs)

    def tiny_run(*arguments, **more):
        return replace(Run(*arguments, **more), model=TINY)

    for module in (diets, precursor, unseen_shifts, runs):
        monkeypatch.setattr(module, "Run", tiny_run)

    def without_workers(some, study, jobs):
        return [finished(run, study) or carry_out(run, study) for run in some]

    monkeypatch.setattr(experiment, "run_all", without_workers)
    monkeypatch.setattr(experiment, "QUICK_STEPS", 3)


def command(name, out):
    """Carries out a part of an experiment, in three steps a run."""
    return main(MODULES[name].EXPERIMENT, ["--quick", "--out", str(out), *SOME[name]])


def rows_of(name, out):
    return json.loads((out / f"quick/{name}.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_a_command_writes_whole_rows_and_a_table(tmp_path, capsys, small, name):
    assert command(name, tmp_path) == 0
    shown = capsys.readouterr().out
    rows = rows_of(name, tmp_path)
    for row in rows:
        assert {*KEYS[name].split(), "diverged", "versions", "hardware"} <= row.keys()
    if name == "emergence":
        assert [row["step"] for row in rows] == [1, 2, 3]
    elif name == "unseen_shifts":
        assert [row["task"] for row in rows] == ["addition", "first"]
        assert set(rows[0]["accuracy"]) == {str(k) for k in range(-4, 5) if k}
    else:
        assert len(rows) == (3 if SOME[name] else 1)
        assert set(rows[0]["off_by_k_8"]) == {str(k) for k in range(-4, 5) if k}
    assert "the rows are in" in shown and len(shown.splitlines()) > 4
    assert shown.splitlines()[-1].startswith("next: ") and "\\" not in shown
    assert command(name, tmp_path) == 0
    assert rows_of(name, tmp_path) == rows


@pytest.mark.parametrize("name", MODULES)
def test_a_diverged_run_is_a_row_and_the_table_bears_it(tmp_path, monkeypatch, small, name):
    make_diverge(monkeypatch)
    assert command(name, tmp_path) == 0
    rows = rows_of(name, tmp_path)
    assert rows and all(row["diverged"] for row in rows)
    assert all("no longer finite" in row["message"] for row in rows)


FAULTS = [
    ("diets", "--only strict,keto", "unknown diets run 'keto'; there are: addition, copied"),
    ("universality", "--only 7_layers", "there are: default, 2_layers"),
    ("diets", "--jobs 0", "--jobs must be at least 1"),
    ("emergence", "--device cuda:999", "device 'cuda:999' is not available here"),
]


@pytest.mark.parametrize("name, arguments, word", FAULTS)
def test_bad_input_is_one_line(tmp_path, capsys, name, arguments, word):
    arguments = ["--out", str(tmp_path), *arguments.split()]
    assert main(MODULES[name].EXPERIMENT, arguments) == 2
    shown = capsys.readouterr()
    assert word in shown.err and shown.err.count("\n") == 1
    assert not shown.out
    assert not list(tmp_path.rglob("*.pt"))


def test_where_no_results_can_be_written_nothing_is_trained(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experiment, "RESULTS", tmp_path / "results")
    assert main(dependability.EXPERIMENT, []) == 2
    assert "results is no folder" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.pt"))


@pytest.mark.slow
def test_an_experiment_that_grows_goes_on_with_the_rows_that_are_there(
    tmp_path, monkeypatch, small
):
    """Row by row, also with those of somebody else, whose runs are not here; nothing twice."""
    monkeypatch.setattr(experiment, "RESULTS", tmp_path)
    two = replace(unseen_shifts.EXPERIMENT, kinds=("odd", "even"), seeds=2, steps=2)
    arguments = ["--jobs", "1", "--out"]
    assert main(two, [*arguments, str(tmp_path / "one")]) == 0
    path = tmp_path / "unseen_shifts.json"
    whole = json.loads(path.read_text())
    of_runs = [(row["run"], row["seed"]) for row in whole[::2]]
    assert of_runs == [("unseen_odd", 0), ("unseen_even", 0), ("unseen_odd", 1), ("unseen_even", 1)]
    path.write_text(json.dumps(whole[:4]))
    assert main(two, [*arguments, str(tmp_path / "another")]) == 0
    assert json.loads(path.read_text()) == whole
    made = tmp_path.glob("another/*/*/model.pt")
    assert {tuple(model.parts[-3:-1]) for model in made} == {
        ("unseen_odd", "seed1"),
        ("unseen_even", "seed1"),
    }


@pytest.mark.parametrize(
    "rows, word",
    [
        ([{"run": "unseen_odd", "steps": 3}], "rows of unseen_odd that are made otherwise now"),
        ([{"run": "unseen_keto", "steps": 2}], "rows of unseen_keto that are made otherwise now"),
        ([{"seed": 0}], "holds no rows of this experiment"),
        ({"run": 3}, "holds no rows of this experiment"),
    ],
)
def test_rows_of_other_settings_are_refused_and_kept(tmp_path, monkeypatch, capsys, rows, word):
    monkeypatch.setattr(experiment, "RESULTS", tmp_path)
    path = tmp_path / "unseen_shifts.json"
    path.write_text(json.dumps(rows))
    odd = replace(unseen_shifts.EXPERIMENT, kinds=("odd",), seeds=1, steps=2)
    assert main(odd, ["--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert word in told and told.count("\n") == 1
    assert json.loads(path.read_text()) == rows and not list(tmp_path.rglob("*.pt"))


def test_a_run_is_never_made_beside_the_one_it_comes_after():
    names = ["none", "copying", "previous", "random"]
    some = [Run(name, after="copying" if name == "random" else "") for name in 2 * names]
    for most in range(1, 9):
        found = [[run.name for run in batch] for batch in experiment.batches(some, most)]
        assert [name for batch in found for name in batch] == 2 * names
        assert all(len(batch) <= most for batch in found)
        for batch in found:
            assert "random" not in batch or "copying" not in batch[: batch.index("random")]
    assert max(map(len, experiment.batches(some, 8))) == 4


def test_each_kind_of_unseen_shifts_shows_its_shifts_alone_and_nothing_in_base_k():
    drawn = torch.Generator().manual_seed(0)
    assert len(unseen_shifts.KINDS) == 12
    for kind in unseen_shifts.KINDS:
        diet = catalogue.SOME_SHIFTS[kind]
        documents = tasks.sample(diet, 4000, 6, drawn)
        shifted = documents.wrapper == tasks.WRAPPERS.index("shift")
        numbers = shifted[:, None] & ~tasks.LETTERED[documents.function]
        shown = (documents.answer - documents.value)[numbers].unique().tolist()
        assert shown == sorted(diet.shifts) and 0 not in shown
        assert not (documents.wrapper == tasks.WRAPPERS.index("base")).any()
        assert not (documents.function[shifted] == tasks.PLUS).any()


@pytest.mark.slow
def test_a_part_of_the_list_never_replaces_the_results(tmp_path, monkeypatch, small):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(experiment, "RESULTS", tmp_path / "results")
    short = replace(diets.EXPERIMENT, seeds=1, steps=2, more={})
    assert main(short, ["--only", "strict", "--out", "out"]) == 0
    assert not list((tmp_path / "results").iterdir())
    assert (tmp_path / "out/diets.json").exists()


def all_runs(of):
    return of.runs(of.kinds, quick=False)


@pytest.mark.parametrize("name", MODULES)
def test_every_kind_of_run_that_the_lists_name_can_be_made(name):
    made = all_runs(MODULES[name].EXPERIMENT)
    folders = {run.folder(Path()) for run in made}
    assert len(folders) == len(made) >= 3
    assert len({run.train.seed for run in made}) >= 3


def test_the_lists_are_as_long_as_the_claims_need():
    assert len(universality.CONFIGS) >= 12
    default = [run for run in all_runs(universality.EXPERIMENT) if run.name == "model_default"]
    assert len(default) >= 5
    assert len(all_runs(dependability.EXPERIMENT)) >= 10


@pytest.mark.slow
@pytest.mark.parametrize("name", ["diets", "unseen_shifts"])
def test_a_figure_is_drawn_from_the_rows_alone(tmp_path, small, name):
    pytest.importorskip("matplotlib")
    from experiments import figures

    assert command(name, tmp_path) == 0
    results = ["--results", str(tmp_path / "quick")]
    for attempt in ("one", "two"):
        assert figures.main([*results, "--out", str(tmp_path / attempt)]) == 0
    one, two = (contents(tmp_path / attempt) for attempt in ("one", "two"))
    assert {path.name for path in one} == {f"{name}.png"}
    assert sorted(one.values()) == sorted(two.values())


@pytest.mark.parametrize(
    "rows, says",
    [(None, "no rows are in"), ('[{"diet": "strict"}]', "diets.json is of another layout")],
)
def test_figures_without_results_are_refused(tmp_path, capsys, rows, says):
    pytest.importorskip("matplotlib")
    from experiments import figures

    if rows is not None:
        (tmp_path / "diets.json").write_text(rows)
    assert figures.main(["--results", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert says in capsys.readouterr().err


def test_the_committed_figures_are_those_that_are_drawn():
    pytest.importorskip("matplotlib")
    from experiments import figures

    drawn = {path.stem for path in Path(figures.ROOT, "docs/figures").glob("*.png")}
    assert drawn == {*figures.DRAW, "report"}


def drawn_dots(figure):
    """{(row, colour): shares} of the dots, and the ends of intervals, of a figure."""
    dots, ends = {}, {}
    for line in figure.axes[0].lines:
        x, y = line.get_xdata(), line.get_ydata()
        if len(x):
            kind = ends if line.get_marker() == "|" else dots
            kind[round(float(y[0])), line.get_color()] = [float(value) for value in x]
    return dots, ends


EVERY_K = ("-4", "-3", "-2", "-1", "1", "2", "3", "4")


def test_figures_show_each_run_and_intervals_from_three_on():
    pytest.importorskip("matplotlib")
    from experiments import figures

    rows = []
    for name, shares in (("strict", (0.7, 0.8, 0.99)), ("addition", (0.1, 0.2)), ("even", (0.5,))):
        for seed, share in enumerate(shares):
            row = {"diet": name, "seed": seed, "diverged": False, "off_by_one_8": share}
            rows.append(row | {"plain_8": 1 - share / 10})
    figure = figures.draw_diets(rows)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == [
        "… and reflected ones: all of these",
        "plain sums alone",
    ]  # no one asked for `even`
    dots, ends = drawn_dots(figure)
    pos, other = figures.COLOURS["pos"], figures.COLOURS["other"]
    assert dots[0, pos] == [0.7, 0.8, 0.99] and dots[1, pos] == [0.1, 0.2]
    assert dots[1, other] == pytest.approx([0.99, 0.98])
    mean, half = mean_ci([0.7, 0.8, 0.99])
    assert ends[0, pos] == pytest.approx([mean - half, 1.0])  # a share is at most 1
    assert {row for row, _ in ends} == {0}  # two runs have no interval
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["plain addition", "off by one, never shown"]
    figures.plt.close(figure)

    shares = dict(zip(EVERY_K, [0.0, 0.1, 0.2, 1.0, 0.6, 0.8, 0.3, 0.4]))
    row = {"task": "addition", "kind": "all_but_+1", "shifts": [-1, 2], "accuracy": shares}
    others = [{"task": "first", "accuracy": shares, "kind": "x"}]
    others.append({"task": "addition", "accuracy": None, "kind": "y"})
    figure = figures.draw_unseen_shifts([row, *others])
    dots, _ = drawn_dots(figure)
    wanted = {"other": 0.9, "pos": 0.6, "neg": 0.2}  # shown -1, 2; between: 1; beyond: the rest
    assert len(dots) == 3
    for name, share in wanted.items():
        assert dots[0, figures.COLOURS[name]] == pytest.approx([share])
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["all but +1"]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["k was shown", "never, but between shown ones", "never, and beyond them"]
    low, high = figure.axes[0].get_xlim()
    assert low < 0 and high > 1  # the dots at 0 and 1 are whole
    figures.plt.close(figure)
