import dataclasses
import json
import os
import shutil

import pytest
import torch

import patch
import tasks
import train
from minifunc.analysis import averaging, completeness, shift_swap, study
from minifunc.circuit import Criteria
from minifunc.model import Transformer
from minifunc.support import runs

SHAPE = {"n-layers": 2, "n-heads": 2, "d-model": 16, "d-head": 8, "d-mlp": 16}
LENGTH = {"steps": 4, "documents": 4, "eval-every": 4, "table-prompts": 8}
TINY = [f"--{name}={value}" for name, value in (SHAPE | LENGTH).items()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of four steps: it can do nothing, and its files are in order."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    assert train.main(["--out", str(out), "--device", "cpu", *TINY]) == 0
    return out


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


FAST = ["--device", "cpu", "--prompts", "6"]
# So that a poor model has groups too.
ANY_MODEL = ["--solves=1e-9", "--strong=1e-9", "--feeds=1e-9", "--looks-at-answers=1e-9"]


@pytest.fixture
def solved(monkeypatch):
    """Pretends that answers are right: an untrained model is studied to the end, on few prompts."""
    monkeypatch.setattr(patch, "accuracy", lambda logits, answers: 1.0)
    for name, value in {
        "N_COUNTED": 20,
        "N_EVALUATED": 10,
        "N_SEARCH": 5,
        "N_DRAWS": 7,
        "REUSED": [("addition", 2), ("caesar", -1)],
    }.items():
        monkeypatch.setattr(patch, name, value)
    for module, name, value in (
        (study, "N_REUSED", 10),
        (study, "N_EXAMPLES", 400),
        (completeness, "N_CONTROLS", 3),
        (shift_swap, "N_PROMPTS", 60),
        (averaging, "N_PROMPTS", 20),
    ):
        monkeypatch.setattr(module, name, value)


def test_a_model_that_cannot_do_the_task_has_no_circuit_and_is_told_so(run, capsys):
    # Every other threshold would be passed.
    assert patch.main(["--run", str(run), *FAST, *ANY_MODEL, "--solves", "0.5"]) == 0
    circuit = json.loads((run / "circuit.json").read_text())
    assert all(group == [] for group in circuit["groups"].values())
    assert circuit["evaluation"]["ablation"] == [] and circuit["reuse"] == []
    assert "No function-induction circuit was found" in capsys.readouterr().out


def test_circuit_json_has_the_promised_layout(run, solved, capsys):
    assert patch.main(["--run", str(run), *FAST, *ANY_MODEL]) == 0
    c = json.loads((run / "circuit.json").read_text())
    assert {
        "task",
        "k",
        "shots",
        "n_prompts",
        "freeze_mlps",
        "seed",
        "device",
        "seconds",
        "F",
        "accuracy",
        "contrast",
        "operands_changed",
    } <= c.keys()
    assert c["weights"] == runs.weights_hash(torch.load(run / "model.pt", weights_only=True))
    assert c["F"].keys() == {"base", "contrast"} and c["accuracy"]["contrast_prompt"].keys() == {
        "base",
        "contrast",
    }
    assert c["groups"].keys() == {
        "function_induction",
        "previous_token",
        "consolidation",
        "shown_answer",
        "expected_answer",
        "other_direct",
        "upstream",
    }
    fi = c["groups"]["function_induction"]
    assert c["routes"].keys() == {"shown_answer", "expected_answer"} and c["routes"]["shown_answer"]
    assert fi and c["evaluation"]["ablation"][0]["heads"] == fi
    evaluation = c["evaluation"]
    assert {
        "faithfulness",
        "circuit_accuracy",
        "completeness",
        "minimality",
        "circuits",
        "by_elimination",
        "operands_changed",
        "ablation",
    } <= evaluation.keys()
    assert evaluation["circuit"] == sorted(
        {head for heads in c["groups"].values() for head in heads}
    ) and evaluation["minimality"].keys() == set(evaluation["circuit"])
    assert {row["replaced_by"] for row in evaluation["circuits"]} == {
        "base",
        "operands_changed",
        "mean",
    } and len({row["circuit"] for row in evaluation["circuits"]}) == 4
    rows = evaluation["ablation"]
    assert [row["how"] for row in rows[:5]] == [
        "base",
        "mean",
        "unrelated",
        "same_k",
        "same_answer",
    ] and all(
        {"base_acc", "contrast_acc", "n_draws", "ci", "n_prompts"} <= row.keys() for row in rows
    )
    for kind in ("random_same_layers", "random_any_layer"):
        assert {row["n_draws"] for row in rows if row["ablated"] == kind} == {patch.N_DRAWS}
    assert [(row["prompt"], row["ablated"]) for row in c["reuse"][:4]] == [
        ("base", "none"),
        ("contrast", "none"),
        ("contrast", "function_induction"),
        ("contrast", "random_same_layers"),
    ]
    assert {(row["task"], row["k"]) for row in c["reuse"]} == set(patch.REUSED)
    for contrast in (c, c["operands_changed"]):
        assert {"logits", *(f"{head}.{which}" for head in fi for which in "qkv")} <= contrast[
            "effects"
        ].keys()
        for effects in contrast["effects"].values():
            assert (
                [len(row) for row in effects["heads"]] == [2, 2]
                and len(effects["mlps"]) == 2
                and isinstance(effects["embedding"], float)
            )
    assert c["attention"]["1.1"].keys() == {
        "last_to_answers",
        "answer_to_previous",
        "answer_to_operands",
        "last_to_self",
        "last_to_bos",
        "last_to_operands",
    }
    out = capsys.readouterr().out
    assert "heads → logits" in out and "function induction" in out and "\x1b[" not in out


def test_each_replacement_takes_its_values_from_where_it_says():
    pairs = tasks.evaluation_pairs("addition", 1, 3, 30, torch.Generator().manual_seed(0))
    model = Transformer(dataclasses.replace(train.MODEL, n_layers=2))
    ablator = study.replacements(tasks, model, pairs).ablator
    wanted = {
        "base": pairs.base,
        "operands_changed": pairs.operands_changed,
        "unrelated": torch.cat([pairs.base[-1:], pairs.base[:-1]]),
        "same_k": torch.cat([pairs.contrast[-1:], pairs.contrast[:-1]]),
    }
    for how, tokens in wanted.items():
        _, cache = model.run_with_cache(tokens, ["blocks.1.attn.hook_z"])
        # Of the last layer the last position is enough.
        torch.testing.assert_close(ablator.sent[how][1], cache["blocks.1.attn.hook_z"][:, -1:])
    _, cache = model.run_with_cache(pairs.base, ["blocks.0.attn.hook_z"])
    mean = cache["blocks.0.attn.hook_z"].mean(0, keepdim=True)
    torch.testing.assert_close(ablator.sent["mean"][0], mean)


def test_donors_ask_for_the_same_answer_by_other_examples():
    pairs = tasks.evaluation_pairs("addition", 2, 3, 60, torch.Generator().manual_seed(0))
    donors, zero = study.donors(tasks, pairs), tasks.ZERO
    query = donors[:, -4:] - zero
    assert ((query[:, 0] + query[:, 2] + 2) == pairs.contrast_answers - zero).all()
    assert (donors != pairs.contrast).any(1).all()
    for answer in tasks.answer_positions(3):  # and all are off by k
        assert (
            donors[:, answer] - zero
            == donors[:, answer - 4] - zero + donors[:, answer - 2] - zero + 2
        ).all()


def test_reuse_gives_four_rows_a_task_and_refuses_what_has_no_prompts(monkeypatch):
    monkeypatch.setattr(study, "N_REUSED", 10)
    model = Transformer(dataclasses.replace(train.MODEL, n_layers=2))
    generator = torch.Generator().manual_seed(0)
    asked = [("addition", 1), ("caesar", -2)]
    rows = patch.reuse(tasks, model, ["1.0"], asked, 3, generator)
    assert [(row["task"], row["k"]) for row in rows] == [("addition", 1)] * 4 + [("caesar", -2)] * 4
    with pytest.raises(ValueError, match="k = 99"):
        patch.reuse(tasks, model, ["1.0"], [*asked, ("addition", 99)], 3, generator)


def test_every_part_of_the_text_is_shown_for_a_circuit_and_none_of_it_without(run, solved, capsys):
    assert patch.main(["--run", str(run), *FAST, *ANY_MODEL, "--full"]) == 0
    out = capsys.readouterr().out
    for title in (
        "the circuit (r in %)",
        "criteria:",
        "circuits alone",
        "misses at most",
        "ablation:",
        "the same heads on",
    ):
        assert title in out
    assert (
        patch.main(["--run", str(run), *FAST, "--full"]) == 0
    )  # at the usual thresholds this model has no FI head
    out = capsys.readouterr().out
    assert "circuits alone" not in out and "heads → logits" in out


@pytest.mark.parametrize("flags", [ANY_MODEL, []], ids=["found", "not found"])
def test_the_talk_fits_a_page_and_ends_with_what_to_do_next(run, solved, capsys, flags):
    assert patch.main(["--run", str(run), *FAST, *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines[:-2])) <= 80  # the line before the last names a path
    assert (
        lines[-2].startswith(f"everything is in {run}")
        and lines[-1] == f"next: make report OUT={run}"
    )


def test_all_that_is_told_is_as_wide_as_the_terminal(run, solved, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "90")
    assert patch.main(["--run", str(run), *FAST, *ANY_MODEL, "--full"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 100 and max(map(len, lines[:-2])) <= 90


def test_each_finding_is_told_when_it_is_known(run, solved):
    model, _ = runs.load_run(run, torch.device("cpu"))
    steps = {}
    criteria = Criteria(solves=1e-9, strong=1e-9, feeds=1e-9, looks_at_answers=1e-9)
    patch.trace(
        model, patch.Study(prompts=6), criteria, lambda step, c: steps.update({step: set(c)})
    )
    order = ["task", "direct", "circuit", "enough", "ablation", "writing", "reuse", "conclusion"]
    assert list(steps) == order
    assert "groups" in steps["circuit"] - steps["direct"]
    assert "evaluation" in steps["enough"] - steps["circuit"] and "reuse" not in steps["writing"]


def test_sums_in_base_k_are_called_so_and_only_those_that_carry_are_traced(
    run, solved, monkeypatch, capsys
):
    asked, drawn = [], tasks.evaluation_pairs
    monkeypatch.setattr(
        tasks, "evaluation_pairs", lambda *a, **b: asked.append(drawn(*a, **b)) or asked[-1]
    )
    assert (
        patch.main(["--run", str(run), *FAST, *ANY_MODEL, "--task", "base_addition", "--k", "8"])
        == 0
    )
    out = capsys.readouterr().out
    assert "off by" not in out and "Addition in base 8 (right on" in out
    assert all(
        pairs.carry.all() for pairs in asked[:2]
    )  # those to trace with, and those to count on


@pytest.mark.slow
def test_the_same_call_finds_the_same_circuit(run, solved, tmp_path):
    found = []
    for name in ("one.json", "two.json"):
        assert (
            patch.main(["--run", str(run), *FAST, *ANY_MODEL, "--json", str(tmp_path / name)]) == 0
        )
        found.append(json.loads((tmp_path / name).read_text()) | {"seconds": 0})
    assert found[0] == found[1] and not (run / "circuit.json").exists()


def test_freezing_the_mlps_is_passed_on(run, solved, tmp_path):
    effects = []
    for flags in ([], ["--freeze-mlps"]):
        assert (
            patch.main(["--run", str(run), *FAST, *flags, "--json", str(tmp_path / "c.json")]) == 0
        )
        effects.append(json.loads((tmp_path / "c.json").read_text())["effects"]["logits"]["heads"])
    assert effects[0] != effects[1]


def test_findings_are_not_put_over_something_that_is_no_plain_file(run, tmp_path, capsys):
    pipe = tmp_path / "pipe"  # stands for a device, which a test must not put at risk
    os.mkfifo(pipe)
    assert patch.main(["--run", str(run), *FAST, "--json", str(pipe)]) == 2
    assert "no plain file" in capsys.readouterr().err and pipe.is_fifo()


def damage(run):
    (run / "model.pt").write_bytes((run / "model.pt").read_bytes()[:1000])


@pytest.mark.parametrize(
    "flags, spoil, says",
    [
        (["--k", "9"], None, "outside the vocabulary"),
        (["--k", "0"], None, "nothing to trace"),
        (["--shots", "50"], None, "context holds 128"),
        (["--shots", "0"], None, "at least one"),
        (["--prompts", "0"], None, "at least one"),
        (["--task", "division"], None, "the tasks are"),
        (["--task", "choice"], None, "cannot be traced"),
        (["--device", "abacus"], None, "not available"),
        (["--strong", "2"], None, "strong"),
        (["--max-memory", "1e-9"], None, "too small for one row"),
        (["--max-memory", "nan"], None, "positive number"),
        (["--seed", "-1"], None, "--seed"),
        (["--prompts", "1000000000"], None, "at most"),
        (["--nonsense"], None, "unrecognized"),
        (["--json", "/proc/no/such/place.json"], None, "cannot write"),
        ([], lambda run: (run / "model.pt").unlink(), "model.pt is missing"),
        ([], lambda run: (run / "config.json").write_text("{"), "config.json cannot be read"),
        ([], damage, "model.pt is damaged"),
        ([], shutil.rmtree, "holds no run"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2_and_nothing_is_written(
    run, capsys, flags, spoil, says
):
    if spoil:
        spoil(run)
    before = sorted(run.glob("*"))
    assert patch.main(["--run", str(run), *FAST, *flags]) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and says in lines[0] and captured.out == ""
    assert sorted(run.glob("*")) == before


def test_a_gpu_that_is_full_is_one_line_and_exit_code_2(run, monkeypatch, capsys):
    def full(*arguments, **others):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nGPU 0 has …")

    monkeypatch.setattr(patch.PathPatcher, "sweep_each", full)
    assert patch.main(["--run", str(run), *FAST]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "patch:" not in line]
    assert line == "error: out of memory: ask for fewer prompts or documents, or a smaller model"
    assert not (run / "circuit.json").exists()


def test_each_step_of_a_study_gets_the_prompts_and_positions_that_it_states(monkeypatch, solved):
    """Circuits are searched for on some prompts and judged on others; ablations go by more; the
    floor is that of base prompts."""
    given = {}

    def noted(name, run):
        def call(*arguments):
            given[name] = arguments
            return run(*arguments)

        return call

    steps = ("solving", "asked", "discover", "evaluate_circuits", "group_ablations", "averaged")
    for name in (*steps, "writings", "reuse"):
        monkeypatch.setattr(patch, name, noted(name, getattr(patch, name)))
    monkeypatch.setattr(shift_swap, "study", noted("shift_swap", shift_swap.study))
    drawn, asked = [], patch.Study(prompts=6, shots=3, seed=4)
    monkeypatch.setattr(patch.Study, "pairs", keeping(drawn, patch.Study.pairs))
    low = dict.fromkeys(("solves", "strong", "feeds", "looks_at_answers"), 1e-9)
    criteria = Criteria(**low, faithful=0.8)
    cfg = dataclasses.replace(train.MODEL, n_layers=2, n_heads=2, d_model=16, d_head=8, d_mlp=16)
    model = Transformer(cfg).requires_grad_(False)
    circuit = patch.trace(model, asked, criteria, lambda *_: None)

    traced, counted, *_ = drawn
    generator = torch.Generator().manual_seed(4)
    for pairs, n in ((traced, 6), (counted, patch.N_COUNTED)):
        stated = tasks.evaluation_pairs("addition", 1, 3, n, generator)
        assert torch.equal(pairs.base, stated.base)
        assert torch.equal(pairs.contrast, stated.contrast)
    assert given["solving"][1] is counted and given["asked"][3] is traced
    assert circuit["accuracy_prompts"] == patch.N_COUNTED and circuit["n_prompts"] == 6
    assert circuit["criteria"] == vars(criteria)
    patchers, answers, by, solves = given["discover"]
    assert (answers.tolist(), by, solves) == ([5, 11, 17], criteria, True)
    for contrast, base in (("answers", traced.base), ("operands", traced.operands_changed)):
        assert torch.equal(patchers[contrast].base_tokens, base)
        assert torch.equal(patchers[contrast].contrast_tokens, traced.contrast)
        both = torch.stack([traced.base_answers, traced.contrast_answers], dim=1)
        assert torch.equal(patchers[contrast].answers, both)
    search, judged, found, faithful, _ = given["evaluate_circuits"]
    assert torch.equal(search.ablator.tokens, traced.contrast[: patch.N_SEARCH])
    assert torch.equal(judged.ablator.tokens, counted.contrast[: patch.N_EVALUATED])
    assert faithful == 0.8
    (contrast, base, fewer), groups, (n_draws, _) = given["group_ablations"]
    assert torch.equal(contrast.ablator.tokens, counted.contrast)
    assert torch.equal(base.ablator.tokens, counted.base)
    assert torch.equal(fewer.ablator.tokens, counted.contrast[: patch.N_SEARCH])
    assert n_draws == patch.N_DRAWS and found is groups
    fi = groups["function_induction"]
    assert given["shift_swap"][2:] == (fi, asked) and given["averaged"][3] is asked
    assert given["writings"][2:4] == (fi, asked)
    assert given["reuse"][2:5] == (fi, patch.REUSED, 3)
    assert circuit["averaging"]["mixtures"] and circuit["evaluation"]["shift_swap"]["rows"]
    assert circuit["function_vectors"] and circuit["reading"] and circuit["reuse"]


def test_answers_are_counted_on_as_many_prompts_as_are_traced_where_these_are_more(monkeypatch):
    asked = []

    def draw(study, n, generator):
        asked.append(n)
        return tasks.evaluation_pairs("addition", 1, 2, 2, generator)

    def stop(*_):
        raise StopIteration

    monkeypatch.setattr(patch.Study, "pairs", draw)
    monkeypatch.setattr(patch, "solving", stop)
    model = Transformer(dataclasses.replace(train.MODEL, n_layers=1, d_mlp=8))
    for prompts in (1, 499, 500, 501):
        with pytest.raises(StopIteration):
            patch.trace(model, patch.Study(prompts=prompts, shots=2), Criteria(), lambda *_: None)
    assert asked == [1, 500, 499, 500, 500, 500, 501, 501]


@pytest.mark.parametrize("prompt", ["base_prompt", "contrast_prompt"])
@pytest.mark.parametrize("answer", ["base", "contrast"])
@pytest.mark.parametrize("share", [0.49, 0.5])
def test_a_model_is_traced_that_gives_the_shifted_answer_often_enough(
    prompt, answer, share, monkeypatch
):
    """Neither plain answers nor plain prompts tell whether it does the task."""
    shares = {name: {"base": 0.0, "contrast": 0.0} for name in ("base_prompt", "contrast_prompt")}
    shares[prompt][answer] = share
    told = []

    def discover(patchers, shown, criteria, solved):
        told.append((list(patchers), shown.tolist(), solved))
        raise StopIteration

    monkeypatch.setattr(patch, "N_COUNTED", 6)
    monkeypatch.setattr(patch, "solving", lambda *_: shares)
    monkeypatch.setattr(patch, "discover", discover)
    cfg = dataclasses.replace(train.MODEL, n_layers=1, n_heads=2, d_model=8, d_head=4, d_mlp=8)
    study = patch.Study(prompts=6, shots=3)
    with pytest.raises(StopIteration):
        patch.trace(Transformer(cfg), study, Criteria(solves=0.5), lambda *_: None)
    does_it = (prompt, answer, share) == ("contrast_prompt", "contrast", 0.5)
    assert told == [(["answers", "operands"], [5, 11, 17], does_it)]


def keeping(results, function):
    def call(*arguments):
        results.append(function(*arguments))
        return results[-1]

    return call
