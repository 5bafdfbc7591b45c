"""The runner on tiny runs: what is finished is kept, what is not is picked up, what diverged is recorded; whole rows; quick mode."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import corpus
import tasks
import train
from experiments import catalogue, dependability, diets, emergence, interventions, measure, runs, universality
from experiments.runs import Run, carry_out, finished, log_spaced, mean_ci, run_all
from minifunc.model import ModelConfig
from minifunc.patching import Logits
from minifunc.support.runs import UserError, load_run
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
    """Fewer prompts, and tiny runs wherever a default would be trained."""
    evaluate = train.evaluate
    monkeypatch.setattr(
        train, "evaluate", lambda model, n_prompts, every_task: evaluate(model, 4, every_task)
    )
    monkeypatch.setattr(measure, "FEW", 4)
    for module in (diets, emergence, interventions, universality, dependability):
        monkeypatch.setattr(module, "FEW", 4)


def tiny(seed=0, **changes):
    return Run("tiny", model=TINY, train=replace(TRAIN, seed=seed), **changes)


def norm(model, run, folder, quick):
    """What these tests measure: a number that depends on every weight."""
    return {"norm": sum(weight.double().norm().item() for weight in model.parameters())}


def stop_at(monkeypatch, step, error=KeyboardInterrupt):
    """Makes training end in the middle, as if it had been killed, after some calls of corpus.sample."""
    sample, calls = corpus.sample, []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == step:
            raise error("killed")
        return sample(*arguments)

    monkeypatch.setattr(corpus, "sample", killed)
    return calls


# ---------------------------------------------------------------- one run


def test_a_killed_run_is_unfinished_and_goes_on_to_the_same_result(tmp_path, monkeypatch):
    whole = carry_out(tiny(), tmp_path / "whole", "x", norm, False)
    with monkeypatch.context() as patch:
        stop_at(patch, 5, OSError)
        with pytest.raises(OSError, match="killed"):
            carry_out(tiny(), tmp_path / "killed", "x", norm, False)
    assert finished(tiny(), tmp_path / "killed", "x", False) is None
    assert (tmp_path / "killed/tiny/seed0/resume.pt").exists()
    calls = stop_at(monkeypatch, 100)
    assert carry_out(tiny(), tmp_path / "killed", "x", norm, False) == whole
    assert len(calls) == 2  # steps 5 and 6 alone: the checkpoint of step 4 was taken up


def test_a_trained_run_that_was_not_measured_is_measured_without_training(tmp_path, monkeypatch):
    def fails(*_):
        raise OSError("killed")

    with pytest.raises(OSError):
        carry_out(tiny(), tmp_path, "x", fails, False)
    assert finished(tiny(), tmp_path, "x", False) is None
    calls = stop_at(monkeypatch, 1)
    assert "norm" in carry_out(tiny(), tmp_path, "x", norm, False) and not calls


def test_a_finished_run_is_not_trained_or_measured_again(tmp_path, monkeypatch):
    first = carry_out(tiny(), tmp_path, "x", norm, False)
    calls = stop_at(monkeypatch, 1)
    assert (
        carry_out(tiny(), tmp_path, "x", lambda *_: {"norm": 0}, False)
        == first
        == finished(tiny(), tmp_path, "x", False)
    )
    assert first["diverged"] is False and not calls


def test_two_experiments_share_a_run_but_not_what_they_measured(tmp_path, monkeypatch):
    carry_out(tiny(), tmp_path, "x", norm, False)
    assert (
        finished(tiny(), tmp_path, "y", False) is None
        and finished(tiny(), tmp_path, "x", True) is None
    )
    calls = stop_at(monkeypatch, 1)
    assert (
        carry_out(tiny(), tmp_path, "y", lambda *_: {"other": 1}, False)
        == {"diverged": False, "other": 1}
        and not calls
    )


def test_a_run_that_diverges_is_recorded_as_such_and_not_tried_again(tmp_path, monkeypatch):
    loss = train.loss_on_answers
    monkeypatch.setattr(train, "loss_on_answers", lambda *arguments: loss(*arguments) * math.nan)
    row = carry_out(tiny(), tmp_path, "x", norm, False)
    assert row["diverged"] is True and "no longer finite" in row["message"]
    calls = stop_at(monkeypatch, 1)
    assert (
        carry_out(tiny(), tmp_path, "x", norm, False)
        == row
        == finished(tiny(), tmp_path, "other", False)
        and not calls
    )


@pytest.mark.parametrize(
    "change",
    [
        {"train": replace(TRAIN, lr=1e-3)},
        {"diet": "addition"},
        {"model": replace(TINY, n_layers=1)},
    ],
    ids=["train", "diet", "model"],
)
def test_the_folder_of_another_run_is_refused_and_left_alone(tmp_path, change):
    carry_out(tiny(), tmp_path, "x", norm, False)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="other settings"):
        run_all([replace(tiny(), **change)], tmp_path, "x", norm, 1, False)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_snapshots_are_the_weights_after_their_steps(tmp_path):
    carry_out(tiny(snapshots=(1, 4, 6)), tmp_path, "x", norm, False)
    folder = tiny().folder(tmp_path)
    assert sorted(path.name for path in (folder / "steps").iterdir()) == [
        "00001.pt",
        "00004.pt",
        "00006.pt",
    ]
    first, last = (
        torch.load(folder / "steps" / name, weights_only=True) for name in ("00001.pt", "00006.pt")
    )
    final = load_run(folder)[0].state_dict()
    assert all(torch.equal(last[name], final[name]) for name in final) and not torch.equal(
        first["embed.W_E"], last["embed.W_E"]
    )


def test_a_silenced_head_stays_silent_also_over_a_kill(tmp_path, monkeypatch):
    """Heads are silenced at step 2 or 4, by a score that depends on the weights; the run killed in between goes the same way."""
    monkeypatch.setattr(interventions, "EVERY", 2)
    monkeypatch.setattr(
        interventions, "CRITERIA", replace(interventions.CRITERIA, looks_at_previous=0.055)
    )
    run, left = tiny(seed=3, intervention=interventions.no_previous_token), []
    for name, kill in (("whole", None), ("killed", 4)):
        with monkeypatch.context() as patch:
            if kill:
                stop_at(patch, kill, OSError)
                with pytest.raises(OSError):
                    carry_out(run, tmp_path / name, "x", norm, False)
        carry_out(run, tmp_path / name, "x", norm, False)
        left.append(load_run(run.folder(tmp_path / name))[0].state_dict())
    silent = json.loads((run.folder(tmp_path / "whole") / "silenced.json").read_text())
    assert (
        silent
        and len(silent) < 4
        and silent == json.loads((run.folder(tmp_path / "killed") / "silenced.json").read_text())
    )
    for layer in range(2):
        for head in range(2):
            assert (left[0][f"blocks.{layer}.attn.W_O"][head] == 0).all().item() == (
                f"{layer}.{head}" in silent
            )
    assert all(torch.equal(left[0][name], left[1][name]) for name in left[0])


def test_a_frozen_block_stays_as_it_was_drawn(tmp_path):
    run = tiny(seed=3, intervention=interventions.frozen_1)
    carry_out(run, tmp_path, "x", norm, False)
    drawn, trained = (
        runs.Transformer(TINY, torch.Generator().manual_seed(3)).state_dict(),
        load_run(run.folder(tmp_path))[0].state_dict(),
    )
    assert {name for name in drawn if torch.equal(drawn[name], trained[name])} == {
        name for name in drawn if name.startswith("blocks.1.")
    }


# ---------------------------------------------------------------- several runs


@pytest.mark.slow
def test_runs_side_by_side_are_the_runs_one_by_one(tmp_path):
    some = [tiny(seed) for seed in range(2)]
    one = run_all(some, tmp_path / "one", "x", norm, 1, False)
    assert run_all(some, tmp_path / "two", "x", norm, 2, False) == one
    assert one[0]["norm"] != one[1]["norm"]


SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
from test_experiments import norm, tiny
from experiments.runs import run_all
if __name__ == "__main__":
    run = tiny()
    run_all([replace(run, train=replace(run.train, steps=100_000, eval_every=5), name=name) for name in ("a", "b")], Path(sys.argv[1]), "x", norm, 2, False)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "setsid"), reason="POSIX alone")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["stopped", "killed"])
def test_a_stop_of_the_parent_stops_the_workers_too(tmp_path, how):
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.Popen(
        [sys.executable, tmp_path / "script.py", tmp_path / "out"],
        env=environment,
        stderr=subprocess.PIPE,
    )
    checkpoints = [tmp_path / f"out/{name}/seed0/resume.pt" for name in ("a", "b")]
    try:
        wait_until(lambda: all(path.exists() for path in checkpoints))
        process.send_signal(how)
        assert process.wait(60) != 0
        if how == signal.SIGKILL:
            time.sleep(1)  # for the workers to see that their parent is gone
        before = [path.stat().st_mtime_ns for path in checkpoints]
        time.sleep(1)
        assert before == [path.stat().st_mtime_ns for path in checkpoints]
        assert all(
            0 < torch.load(path, weights_only=True)["step"] < 100_000 for path in checkpoints
        )
    finally:
        process.kill()
        process.communicate()


def wait_until(true, seconds=90):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


# ---------------------------------------------------------------- what is measured


@pytest.fixture(scope="module")
def model():
    return runs.Transformer(TINY, torch.Generator().manual_seed(0)).requires_grad_(False)


def test_answers_given_are_sorted_as_they_should_be(monkeypatch, model):
    pairs = tasks.evaluation_pairs("addition", 1, 8, 40, torch.Generator().manual_seed(0))
    shown = pairs.contrast[:, tasks.answer_positions(8)]
    is_shown = (shown == pairs.base_answers[:, None]).any(1)
    for given, kinds, failure in (
        (pairs.contrast_answers, {"right": 1.0}, "none"),
        (
            pairs.base_answers,
            {
                "plain": 1 - is_shown.float().mean().item(),
                "plain_and_shown": is_shown.float().mean().item(),
            },
            "the plain answer",
        ),
        (
            torch.where(shown[:, 0] == pairs.base_answers, shown[:, 1], shown[:, 0]),
            None,
            "a shown answer",
        ),
        (torch.full((40,), tasks.BOS), {"other": 1.0}, "anything"),
    ):
        monkeypatch.setattr(
            measure,
            "last_logits",
            lambda model, tokens, given=given: (
                torch.nn.functional.one_hot(given, TINY.d_vocab).float() * 9
            ),
        )
        row = measure.answers_given(model, pairs)
        assert row["failure"] == failure and sum(row["answers"].values()) == pytest.approx(
            1, abs=1e-3
        )
        assert kinds is None or {
            name: share for name, share in row["answers"].items() if share
        } == pytest.approx(kinds, abs=1e-3)


def test_the_grid_knows_a_model_that_answers_every_document_rightly(monkeypatch, model):
    """With the right answers put in for the model's, every cell that makes sense is 1; with wrong ones, 0."""
    documents = {}
    for wrapper in tasks.WRAPPERS:
        for symbol in tasks.FUNCTIONS:
            if wrapper != "base" or symbol not in tasks.TO_LETTERS:
                drawn = measure.cell_documents(wrapper, symbol, 12)
                documents |= {
                    tuple(row[:-2].tolist()): int(row[-2])
                    for row in drawn.tokens[drawn.determined[:, -1]]
                }
    for off in (0, 1):
        monkeypatch.setattr(
            measure,
            "last_logits",
            lambda model, tokens, off=off: torch.stack(
                [
                    torch.eye(TINY.d_vocab + 1)[documents[tuple(row.tolist())] + off]
                    for row in tokens
                ]
            ),
        )
        shares = [
            share
            for row in measure.grid(model, 12).values()
            for share in row.values()
            if share is not None
        ]
        assert set(shares) == {1.0 - off} and len(shares) > 30


def test_repeated_documents_repeat_themselves():
    tokens, period, queries, answers = measure.repeated_documents(10)
    assert (
        torch.equal(tokens[:, 1 : 1 + period], tokens[:, 1 + period :])
        and (tokens[:, queries] == tasks.EQUALS).all()
    )
    assert torch.equal(tokens[:, answers], tokens[:, answers - period]) and len(queries) == 4


def test_mean_and_interval():
    assert mean_ci([1.0, 2.0, 3.0, None]) == (2.0, pytest.approx(4.303 / 3**0.5))
    assert mean_ci([0.5])[0] == 0.5 and all(map(math.isnan, (mean_ci([0.5])[1], *mean_ci([None]))))
    assert mean_ci([float(x) for x in range(11)])[1] == pytest.approx(
        2.262 * 11**0.5 / 11**0.5, rel=1e-6
    )  # 11 values: t of 10, never too narrow


@pytest.mark.parametrize("last, at_least", [(2000, 48), (1000, 48), (60, 48), (30, 30), (1, 1)])
def test_snapshots_are_log_spaced_from_the_first_step_to_the_last(last, at_least):
    steps = log_spaced(last)
    assert (
        steps[0] == 1
        and steps[-1] == last
        and at_least <= len(steps) <= 60
        and list(steps) == sorted(set(steps))
    )
    if last == 2000:
        gaps = [after / before for before, after in zip(steps, steps[1:]) if before > 100]
        assert max(gaps) / min(gaps) < 1.05


def test_an_event_is_where_a_curve_stays_above_half_way():
    curve = [
        {"step": 10 * (index + 1), "x": x}
        for index, x in enumerate([0.0, 0.6, 0.2, 0.4, 0.7, 0.9, 1.0])
    ]
    assert emergence.event_step(curve, lambda row: row["x"]) == 50
    assert (
        emergence.event_step(curve, lambda row: -row["x"]) is None
        and emergence.event_step(curve, lambda row: None) is None
    )


def test_the_default_run_is_what_train_py_makes_by_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(
        train,
        "train",
        lambda out, model_cfg, cfg, diet, *_: made.append(train.describe(model_cfg, cfg, diet)),
    )
    monkeypatch.setattr(train, "print_table", lambda *_: None)
    made = []
    assert train.main(["--out", str(tmp_path), "--seed", "4", "--device", "cpu"]) == 0
    assert runs.default_run(4, train.TrainConfig.steps).settings() == {
        part: made[0][part] for part in ("model", "train", "diet", "vocabulary")
    }


# ---------------------------------------------------------------- the commands

CONTRACT = {
    "diets": "diet seed plain_8 off_by_one_8 off_by_k_8 fi_heads pt_heads top_fi_r faithfulness failure",
    "emergence": "seed step loss off_by_one_8 plain_8 pt_score fi_score copy_induction_score",
    "universality": "config seed plain_8 off_by_one_8 fi_heads pt_heads consolidation_heads",
    "dependability": "seed off_by_one_8 off_by_k_8",
    "interventions": "intervention seed silenced plain_8 off_by_one_8 off_by_k_8 fi_heads",
}
SOME = {
    "diets": ["--only", "strict,addition,hold_minus"],
    "emergence": [],
    "universality": ["--only", "default,1_head,attention_only"],
    "dependability": [],
    "interventions": ["--only", "none,no_previous_token,frozen_0"],
}
MODULES = {
    "diets": diets,
    "emergence": emergence,
    "universality": universality,
    "dependability": dependability,
    "interventions": interventions,
}


@pytest.fixture
def small(monkeypatch):
    """Tiny models in place of the default's, wherever an experiment names one."""
    monkeypatch.setattr(
        universality,
        "CONFIGS",
        {
            name: replace(
                TINY,
                n_heads=1 if name == "1_head" else 2,
                d_head=8,
                act_fn="none" if name == "attention_only" else "relu",
                positions="learned" if "learned" in name else "rotary",
                d_mlp=16 + index,
            )
            for index, name in enumerate(universality.CONFIGS)
        },
    )
    default, made = universality.CONFIGS["default"], runs.Run
    for module in (diets, interventions):
        monkeypatch.setattr(
            module,
            "Run",
            lambda *arguments, **more: replace(made(*arguments, **more), model=default),
        )
    for module in (emergence, dependability):
        monkeypatch.setattr(
            module,
            "default_run",
            lambda seed, steps: replace(runs.default_run(seed, steps), model=default),
        )


@pytest.mark.parametrize("name", MODULES)
def test_a_command_writes_whole_rows_and_a_table(tmp_path, capsys, small, name):
    arguments = ["--quick", "--steps", "3", "--jobs", "1", "--out", str(tmp_path), *SOME[name]]
    assert runs.main(MODULES[name].EXPERIMENT, arguments) == 0
    shown = capsys.readouterr().out
    rows = json.loads((tmp_path / f"quick/3_steps/{name}.json").read_text())
    assert rows and all(
        {*CONTRACT[name].split(), "diverged", "versions", "hardware"} <= row.keys() for row in rows
    )
    if name == "emergence":
        assert [row["step"] for row in rows] == [1, 2, 3]
    else:
        assert len(rows) == (3 if SOME[name] else 1) and set(rows[0]["off_by_k_8"]) == {
            str(k) for k in range(-4, 5) if k
        }
    assert "the rows are in" in shown and len(shown.splitlines()) > 4
    again = runs.main(MODULES[name].EXPERIMENT, arguments)
    assert again == 0 and json.loads((tmp_path / f"quick/3_steps/{name}.json").read_text()) == rows


@pytest.mark.parametrize("name", MODULES)
def test_a_diverged_run_is_a_row_and_the_table_bears_it(tmp_path, capsys, monkeypatch, small, name):
    loss = train.loss_on_answers
    monkeypatch.setattr(train, "loss_on_answers", lambda *arguments: loss(*arguments) * math.nan)
    assert (
        runs.main(
            MODULES[name].EXPERIMENT,
            ["--quick", "--steps", "3", "--jobs", "1", "--out", str(tmp_path), *SOME[name]],
        )
        == 0
    )
    rows = json.loads((tmp_path / f"quick/3_steps/{name}.json").read_text())
    assert rows and all(row["diverged"] and "no longer finite" in row["message"] for row in rows)


@pytest.mark.parametrize(
    "name, arguments, word",
    [
        (
            "diets",
            ["--only", "strict,keto"],
            "unknown diets run 'keto'; there are: addition, copied",
        ),
        ("universality", ["--only", "7_layers"], "there are: default, 2_layers"),
        ("diets", ["--jobs", "0"], "--jobs must be at least 1"),
        ("diets", ["--steps", "0"], "--steps must be at least 1"),
        ("emergence", ["--seeds", "9"], "at most 3"),
        ("dependability", ["--results", "no/such/folder/x.json"], "no folder"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, name, arguments, word):
    assert runs.main(MODULES[name].EXPERIMENT, ["--out", str(tmp_path), *arguments]) == 2
    shown = capsys.readouterr()
    assert (
        word in shown.err
        and shown.err.count("\n") == 1
        and not shown.out
        and not list(tmp_path.rglob("*.pt"))
    )


def test_a_part_of_the_list_never_replaces_the_results(tmp_path, monkeypatch, small):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    assert (
        runs.main(
            diets.EXPERIMENT,
            ["--only", "strict", "--seeds", "1", "--steps", "2", "--jobs", "1", "--out", "out"],
        )
        == 0
    )
    assert (
        not list((tmp_path / "results").iterdir())
        and (tmp_path / "out/2_steps/diets.json").exists()
    )


def test_every_kind_of_run_that_the_lists_name_can_be_made():
    for experiment in (module.EXPERIMENT for module in MODULES.values()):
        made = experiment.runs(experiment.names, None, experiment.steps)
        folders = {run.folder(Path()) for run in made}
        assert len(folders) == len(made) >= 3 and len({run.train.seed for run in made}) >= 3
    assert (
        len(universality.CONFIGS) >= 12
        and sum(
            run.name == "model_default"
            for run in universality.EXPERIMENT.runs(universality.EXPERIMENT.names, None, 2000)
        )
        >= 5
    )
    assert len(dependability.EXPERIMENT.runs(("default",), None, 2000)) >= 10
    assert {
        name
        for names in (
            *diets.SECTIONS.values(),
            *(names for _, names in diets.LAW.values()),
            diets.OTHER_CELLS,
        )
        for name in names
    } == set(catalogue.DIETS)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_a_figure_is_drawn_from_the_rows_alone(tmp_path, capsys, monkeypatch, small, name):
    pytest.importorskip("matplotlib")
    from experiments import figures

    assert (
        runs.main(
            MODULES[name].EXPERIMENT,
            [
                "--quick",
                "--steps",
                "3",
                "--jobs",
                "1",
                "--out",
                str(tmp_path),
                "--results",
                str(tmp_path / f"{name}.json"),
                *SOME[name],
            ],
        )
        == 0
    )
    for attempt in ("one", "two"):
        assert figures.main(["--results", str(tmp_path), "--out", str(tmp_path / attempt)]) == 0
    drawn = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert drawn == [f"{name}.png", f"{name}.svg"] and all(
        (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
        for file in drawn
    )


def test_figures_without_results_are_refused(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    from experiments import figures

    assert figures.main(["--results", str(tmp_path)]) == 2
    assert "holds none of diets.json" in capsys.readouterr().err


def test_the_effect_of_a_head_is_how_far_it_takes_F_back():
    model = runs.Transformer(TINY, torch.Generator().manual_seed(1)).requires_grad_(False)
    row = emergence.effects(
        model, {"function_induction": ["1.0", "1.1"], "previous_token": ["0.1"]}, 8
    )
    assert (
        set(row["r"]) == set(row["r_on_fi_heads"]) == {"0.1", "1.0", "1.1"}
        and abs(row["F_range"]) > 1e-3
    )
    assert row["fi_effect"] == pytest.approx(
        max(row["r"][head] * row["F_range"] for head in ("1.0", "1.1")), abs=1e-3
    )
    pairs = tasks.evaluation_pairs(
        "addition", 1, 8, 8, torch.Generator().manual_seed(measure.SEED + 1)
    )
    effect = measure.patchers_of(model, pairs)["answers"].sweep(Logits())
    assert row["r"]["1.1"] == pytest.approx(effect.heads[1, 1].item(), abs=1e-3)
    assert (
        row["r_on_fi_heads"]["1.0"] == 0 and row["r_on_fi_heads"]["0.1"] != 0
    )  # what stands beside an FI head cannot feed it
