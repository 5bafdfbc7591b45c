import json
import os
import shutil

import pytest

import patch
import train

TINY = ["--n-layers", "2", "--n-heads", "2", "--d-model", "16", "--d-head", "8", "--d-mlp", "16", "--steps", "4", "--documents", "4", "--eval-every", "4", "--table-prompts", "8"]


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
ANY_MODEL = ["--solves", "1e-9", "--strong", "1e-9", "--feeds", "1e-9", "--looks-at-answers", "1e-9"]  # so that a poor model has groups too


@pytest.fixture
def solved(monkeypatch):
    """Pretends that answers are right, so that an untrained model is studied to the end."""
    monkeypatch.setattr(patch, "accuracy", lambda logits, answers: 1.0)


def test_a_model_that_cannot_do_the_task_has_no_circuit_and_is_told_so(run, capsys):
    assert patch.main(["--run", str(run), *FAST, *ANY_MODEL, "--solves", "0.5"]) == 0  # every other threshold would be passed
    circuit = json.loads((run / "circuit.json").read_text())
    assert all(group == [] for group in circuit["groups"].values()) and circuit["evaluation"]["ablation"] == []
    assert "No function-induction circuit was found" in capsys.readouterr().out


def test_circuit_json_has_the_promised_layout(run, solved, capsys):
    assert patch.main(["--run", str(run), *FAST, *ANY_MODEL]) == 0
    c = json.loads((run / "circuit.json").read_text())
    assert {"task", "k", "shots", "n_prompts", "freeze_mlps", "seed", "device", "seconds", "F", "accuracy", "contrast", "operands_changed"} <= c.keys()
    assert c["F"].keys() == {"base", "contrast"} and c["accuracy"]["contrast_prompt"].keys() == {"base", "contrast"}
    assert c["groups"].keys() == {"function_induction", "previous_token", "consolidation", "shown_answer", "expected_answer"}
    fi = c["groups"]["function_induction"]
    assert c["routes"].keys() == {"shown_answer", "expected_answer"} and c["routes"]["shown_answer"]
    assert fi and c["evaluation"]["ablation"][0]["heads"] == fi
    rows = c["evaluation"]["ablation"]
    assert [row["how"] for row in rows[:3]] == ["base", "mean", "unrelated"] and all({"base_acc", "contrast_acc", "n_draws", "ci"} <= row.keys() for row in rows)
    for kind in ("random_same_layers", "random_any_layer"):
        assert sum(row["n_draws"] for row in rows if row["ablated"] == kind and row["how"] == "base") == patch.N_RANDOM
    for contrast in (c, c["operands_changed"]):
        assert {"logits", *(f"{head}.{which}" for head in fi for which in "qkv")} <= contrast["effects"].keys()
        for effects in contrast["effects"].values():
            assert [len(row) for row in effects["heads"]] == [2, 2] and len(effects["mlps"]) == 2 and isinstance(effects["embedding"], float)
    assert c["attention"]["1.1"].keys() == {"last_to_answers", "answer_to_previous", "answer_to_operands", "last_to_self", "last_to_bos", "last_to_operands"}
    out = capsys.readouterr().out
    assert "heads → logits" in out and "function induction" in out and "\x1b[" not in out


def test_each_replacement_takes_its_values_from_where_it_says(run, solved, monkeypatch):
    sources, true = {}, patch.ablated_logits

    def watch(model, tokens, source, heads, mean=False):
        sources.setdefault(len(sources), (source, mean))
        return true(model, tokens, source, heads, mean)

    monkeypatch.setattr(patch, "ablated_logits", watch)
    assert patch.main(["--run", str(run), *FAST, *ANY_MODEL]) == 0
    (base, no), (mean, yes), (unrelated, not_mean) = (sources[index] for index in range(3))
    assert (no, yes, not_mean) == (False, True, False) and base.equal(mean)
    assert unrelated[1:].equal(base[:-1]) and not unrelated.equal(base)


def test_the_same_call_finds_the_same_circuit(run, solved, tmp_path):
    found = []
    for name in ("one.json", "two.json"):
        assert patch.main(["--run", str(run), *FAST, *ANY_MODEL, "--json", str(tmp_path / name)]) == 0
        found.append(json.loads((tmp_path / name).read_text()) | {"seconds": 0})
    assert found[0] == found[1] and not (run / "circuit.json").exists()


def test_freezing_the_mlps_is_passed_on(run, solved, tmp_path):
    effects = []
    for flags in ([], ["--freeze-mlps"]):
        assert patch.main(["--run", str(run), *FAST, *flags, "--json", str(tmp_path / "c.json")]) == 0
        effects.append(json.loads((tmp_path / "c.json").read_text())["effects"]["logits"]["heads"])
    assert effects[0] != effects[1]


def test_colour_marks_sign_and_size():
    strong, weak, positive = (patch._cell(r, colour=True) for r in (-0.9, -0.01, 0.9))
    assert len({strong, weak, positive}) == 3 and "255;" in strong and patch._cell(-0.9, colour=False) == "  -90.0"


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
def test_bad_input_is_one_line_and_exit_code_2_and_nothing_is_written(run, capsys, flags, spoil, says):
    if spoil:
        spoil(run)
    before = sorted(run.glob("*"))
    assert patch.main(["--run", str(run), *FAST, *flags]) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and says in lines[0] and captured.out == ""
    assert sorted(run.glob("*")) == before
