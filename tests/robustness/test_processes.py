"""Two processes find what one finds; files and lines are written once; nobody waits in vain."""

import os
import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import together
import torch
from torch.testing import assert_close

import tasks
import train
from minifunc.model import ModelConfig, Transformer
from minifunc.support import evaluation, runs
from minifunc.support import processes as support
from minifunc.support.errors import UserError
from minifunc.support.files import load_json, load_lines
from minifunc.support.processes import all_sum, any_process, is_main, join, run_together, share

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}
BY_TORCHRUN = {"TORCHELASTIC_RUN_ID": "none"}  # what tells that torchrun started a process
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


# ---------------------------------------------------------------- two processes


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """The same study by one process and by two, whose last act is a mistake.

    Returns the folder of one, the folder of two, and what torchrun said.
    """
    one, pair = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    command = [*TORCHRUN, str(HERE / "together.py"), "study", str(pair)]
    ran = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert (pair / "facts0.json").exists() and (pair / "facts1.json").exists(), ran.stderr
    with pytest.MonkeyPatch.context() as restore:
        restore.setattr(train, "evaluate", train.evaluate)
        restore.setattr(train, "Transformer", train.Transformer)
        restore.setattr(runs, "Transformer", runs.Transformer)
        together.quick()
        assert together.study(one) == [0, 130, 0, 0]
    return one, pair, ran


@pytest.mark.slow
@pytest.mark.parametrize("run", ["whole", "resumed"])
def test_two_processes_train_to_the_weights_and_metrics_of_one(studies, run):
    one, pair, _ = studies
    mine = torch.load(one / run / "model.pt", weights_only=True)
    theirs = torch.load(pair / run / "model.pt", weights_only=True)
    assert mine["embed.W_E"].dtype == torch.float64
    assert_close(theirs, mine, rtol=0, atol=1e-10)
    our_lines = load_lines(one / run / "metrics.jsonl")
    for ours, other in zip(our_lines, load_lines(pair / run / "metrics.jsonl"), strict=True):
        assert {**other, "seconds": 0} == {**ours, "seconds": 0}


@pytest.mark.slow
def test_two_processes_trace_the_circuit_of_one(studies):
    mine, theirs = (load_json(folder / "whole" / "circuit.json") for folder in studies[:2])
    own = {"seconds": 0, "weights": ""}  # the weights differ by rounding, and so does their hash
    assert theirs | own == mine | own


@pytest.mark.slow
def test_a_wish_to_stop_that_one_process_hears_stops_both_after_the_same_step(studies):
    _, pair, ran = studies
    facts = [load_json(pair / f"facts{rank}.json") for rank in (0, 1)]
    assert [fact["codes"] for fact in facts] == [[0, 130, 0, 0]] * 2
    assert ran.stderr.count("stopped after step 2 of 6") == 1


@pytest.mark.slow
def test_work_is_shared_out_and_summed(studies):
    facts = [load_json(studies[1] / f"facts{rank}.json") for rank in (0, 1)]
    shares = [fact["share"] for fact in facts]
    assert sorted(shares[0] + shares[1]) == list(range(5)) and all(shares)
    for fact in facts:
        assert fact["sum"] == [[2.0, 11.0]] and fact["number"] == 2.0
        assert fact["any"] and not fact["none"]


@pytest.mark.slow
def test_results_are_printed_once(studies):
    _, pair, ran = studies
    assert ran.stdout.count("the end") == 1
    assert ran.stdout.count(f"the run is in {pair / 'whole'}") == 1
    made = {"config.json", "metrics.jsonl", "model.pt", "resume.pt", "circuit.json", "lock"}
    assert {path.name for path in (pair / "whole").iterdir()} == made


@pytest.mark.slow
def test_a_mistake_is_told_once_with_exit_code_2_and_leaves_no_folder(studies):
    _, pair, ran = studies
    assert [line for line in ran.stderr.splitlines() if line.startswith("error: ")] == [
        f"error: unknown diet 'keto'; the diets are {', '.join(tasks.DIETS)}"
    ]
    assert ran.returncode != 0 and re.search(r"exitcode *: 2 ", ran.stderr)
    assert not (pair / "new").exists()


@pytest.mark.slow
def test_a_process_whose_partner_is_gone_ends_with_one_line(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {**BY_TORCHRUN, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        meeting["MASTER_PORT"] = str(free.getsockname()[1])
    command = [sys.executable, str(HERE / "together.py"), "die", str(tmp_path)]
    processes = []
    for rank in "01":
        own = {"RANK": rank, "LOCAL_RANK": rank}
        environment = ENVIRONMENT | meeting | own
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        processes.append(process)
    first, second = processes
    try:
        assert second.wait(120) == 7
        told = first.communicate(timeout=120)[1]
        assert first.returncode == 2 and "Traceback" not in told
        assert told.count("error: ") == 1 and "lost the others" in told
    finally:
        first.kill()
        second.kill()


# ---------------------------------------------------------------- one process


@pytest.mark.parametrize("n", [2, 3, 7])
def test_the_shares_of_any_number_of_processes_add_up_to_the_loss_and_its_gradient(monkeypatch, n):
    cfg = ModelConfig(**together.MODEL, d_vocab=len(tasks.VOCABULARY))
    model = Transformer(cfg, torch.Generator().manual_seed(0)).double()
    data = torch.Generator().manual_seed(1)
    documents = tasks.sample(tasks.DIETS["strict"], 5, 9, data)  # of 7 processes, some have none
    determined = documents.determined & (torch.arange(5) != 1)[:, None]
    whole = train.loss_on_answers(model, documents.tokens, determined)
    gradient = torch.autograd.grad(whole, list(model.parameters()))
    monkeypatch.setattr(support, "world_size", lambda: n)
    losses = []
    for number in range(n):
        monkeypatch.setattr(support, "rank", lambda number=number: number)
        losses.append(train.loss_on_answers(model, documents.tokens, determined))
    assert_close(sum(losses), whole, rtol=0, atol=1e-12)
    parts = [torch.autograd.grad(loss, list(model.parameters())) for loss in losses]
    assert_close(tuple(map(sum, zip(*parts))), gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [2, 3, 7])
def test_every_prompt_of_the_table_is_answered_by_one_process(monkeypatch, n):
    """Each process finds its own prompts right or wrong; together they find what one would."""
    model = Transformer(ModelConfig(**together.MODEL, d_vocab=len(tasks.VOCABULARY)))
    pairs = tasks.evaluation_pairs("addition", 1, 2, 5, torch.Generator().manual_seed(0))
    last = model(pairs.contrast)[:, -1]
    answers = torch.where(torch.arange(5) == 2, 0, last.argmax(-1))  # all but one are right
    pairs = replace(pairs, contrast_answers=answers)
    whole = evaluation.answers_right(model, pairs.contrast, pairs.contrast_answers)
    monkeypatch.setattr(support, "world_size", lambda: n)
    monkeypatch.setattr(evaluation, "all_sum", lambda *_: None)
    parts = []
    for number in range(n):
        monkeypatch.setattr(support, "rank", lambda number=number: number)
        parts.append(evaluation.answers_right(model, pairs.contrast, pairs.contrast_answers))
    assert whole.tolist() == [1.0, 1.0, 0.0, 1.0, 1.0]
    assert torch.equal(sum(parts), whole)


def test_alone_nothing_is_shared_or_changed(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    tensor = torch.tensor([3.0])
    all_sum(tensor)
    assert tensor == 3 and share([1, 2, 3]) == [1, 2, 3]
    assert is_main() and any_process(True) and not any_process(False)
    cpu = torch.device("cpu")
    assert join(cpu) == cpu and not torch.distributed.is_initialized()


MEETING = {**BY_TORCHRUN, "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
MEETING |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    "name, value, says",
    [
        ("WORLD_SIZE", "two", "WORLD_SIZE is 'two'"),
        ("RANK", "", "RANK is ''"),
        ("LOCAL_RANK", "-1", "LOCAL_RANK is '-1'"),
        ("MASTER_PORT", "x", "MASTER_PORT"),
        ("MASTER_PORT", "70000", "MASTER_PORT"),
        ("MASTER_ADDR", "", "MASTER_ADDR"),
    ],
)
def test_a_bad_set_up_is_one_line(monkeypatch, capsys, name, value, says):
    for variable, setting in {**MEETING, name: value}.items():
        monkeypatch.setenv(variable, setting)
    assert run_together(lambda: join(torch.device("cpu")) and 0) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and says in lines[0]


@pytest.mark.parametrize("left, told", [("", 0), ("1", 0), ("4", 1), ("two", 1)])
def test_what_a_cluster_s_shell_has_left_is_told_of_and_ignored(monkeypatch, capsys, left, told):
    for variable in MEETING:
        monkeypatch.setenv(variable, left)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    monkeypatch.setenv("MASTER_PORT", "x")  # at which nobody waits for long
    cpu = torch.device("cpu")
    assert run_together(lambda: 5 if join(cpu) == cpu and is_main() else 0) == 5
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == told and all(f"WORLD_SIZE is '{left}'" in line for line in lines)


@pytest.mark.parametrize(
    "device, says",
    [("cuda", "GPU of its own"), ("cuda:0", "GPU of its own"), ("mps", "not on mps")],
)
def test_more_processes_than_gpus_are_refused(monkeypatch, device, says):
    for variable, setting in {**MEETING, "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(variable, setting)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=says):
        join(torch.device(device))
