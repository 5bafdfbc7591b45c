"""The benchmark, in small: it runs and agrees; its plain side and its counts are what they say."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tasks
import train
from experiments import bench, bench_sweep, bench_train
from experiments.bench_sweep import Sweep, every_input, medians_in_turn
from minifunc.model import Transformer
from minifunc.patching import HeadInput, Logits, PathPatcher

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
KEYS = {"work", "model", "ours_s", "other", "other_s", "ratio", "max_abs_diff", "peak_gib"}


@pytest.fixture
def quick_bench(tmp_path, monkeypatch):
    """Runs the benchmark in small, no other process; returns the exit code and what it wrote."""
    monkeypatch.setattr(bench, "peak_memory", lambda *_: 0.0)
    path = tmp_path / "bench.json"
    flags = ["--quick", "--repeats", "1", "--device", "cpu", "--json", str(path)]
    return lambda: (bench.main(flags), json.loads(path.read_text()))


def test_the_quick_benchmark_runs_and_both_sides_agree(quick_bench, capsys):
    code, result = quick_bench()
    assert code == 0
    assert result.keys() == {"hardware", "versions", "rows", "memory", "road"}
    assert {bench.INPUTS, "training step"} <= {row["work"] for row in result["rows"]}
    for row in result["rows"]:
        assert KEYS <= row.keys()
        assert row["max_abs_diff"] <= bench.TOLERANCE
        assert row["ours_s"] > 0 and row["other_s"] > 0
        assert row["ratio"] == pytest.approx(row["other_s"] / row["ours_s"], rel=1e-2)
    assert "own two-pass loop" in capsys.readouterr().out


def test_another_answer_of_one_side_is_noticed(quick_bench, monkeypatch):
    right = PathPatcher.score
    monkeypatch.setattr(PathPatcher, "score", lambda *arguments: right(*arguments) * 1.01)
    monkeypatch.setattr(bench, "TOLERANCE", 1e-5)
    code, _ = quick_bench()
    assert code == 1


def test_the_rows_of_the_committed_results_are_those_that_are_measured():
    result = json.loads((ROOT / "results" / "bench.json").read_text())
    committed = {(row["work"], row["model"]["name"]) for row in result["rows"]}
    measured = {(sweep.work, sweep.name) for sweep in bench.comparisons()}
    others = {"training step", "two processes: all heads → v, q, k"}
    assert committed == measured | {(work, "default") for work in others}
    budgets = {(row["work"], row["model"]) for row in result["memory"]}
    assert budgets == {(sweep.work, sweep.name) for sweep in bench.memory_cases()}


def test_the_plain_model_is_the_same_function_and_its_loss_has_the_same_gradients():
    model = Transformer(bench.TINY).double()
    generator = torch.Generator().manual_seed(0)
    for block in model.blocks:
        block.ln1.w.data.uniform_(0.5, 1.5, generator=generator)
    plain = bench_train.PlainTransformer(model.float()).double()
    model = model.double()
    documents = tasks.sample(tasks.DIETS["strict"], 4, 3, torch.Generator().manual_seed(0))
    ours, theirs = model(documents.tokens), plain(documents.tokens)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)  # its angles are float32
    assert bench_train.largest_difference(model, plain, documents) < 1e-6


def test_only_heads_below_a_receiver_have_a_path_to_it():
    sweep = Sweep(bench.TINY, (Logits(), HeadInput(1, 0, "q")))
    to_logits = [(head, Logits()) for head in ("0.0", "0.1", "1.0", "1.1")]
    to_q = [(head, HeadInput(1, 0, "q")) for head in ("0.0", "0.1")]
    assert sweep.paths == to_logits + to_q


def test_the_operations_of_a_sweep_are_those_of_its_senders_and_prompts():
    def gflop(sweep: Sweep) -> float:
        return sweep.gflop(sweep.model(CPU), sweep.pairs())

    sweep = Sweep(bench.TINY, n_prompts=3, shots=2)
    assert 0 < gflop(sweep) < gflop(replace(sweep, receivers=(Logits(), HeadInput(1, 0, "v"))))
    assert gflop(replace(sweep, n_prompts=6)) == pytest.approx(2 * gflop(sweep))


def test_works_take_turns_and_the_first_round_does_not_count(monkeypatch):
    order: list[str] = []
    ticks = iter([0, 100, 0, 100, 0, 3, 0, 1, 0, 5, 0, 1, 0, 4, 0, 1])
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    works = {name: lambda name=name: order.append(name) for name in "ab"}
    assert medians_in_turn(works, CPU, repeats=3) == {"a": 4, "b": 1}
    assert "".join(order) == "abababab"


def test_the_first_passing_evaluation_is_found():
    def line(n: int, score: float) -> dict:
        accuracy = {"addition": {"1": {"8": score}}}
        return {"step": 100 * n, "seconds": 7.0 * n, "accuracy": accuracy}

    lines = [line(n, score) for n, score in enumerate([0.5, 0.95, 0.97, 0.9], 1)]
    passed = {"seconds": 21.0, "step": 300, "every": 100, "final": 0.9}
    assert bench_train.when_passed(lines, 0.95) == passed
    assert bench_train.when_passed(lines[:2], 0.95)["seconds"] is None


@pytest.mark.slow
def test_a_sweep_is_seen_in_the_peak_memory():
    cfg = replace(train.MODEL, n_layers=2)
    n_bytes = 200 * tasks.n_tokens(8) * cfg.d_model * 4
    stream = n_bytes / 2**30  # GiB of one residual stream, of which several are kept
    peak = bench_sweep.peak_memory(Sweep(cfg, n_prompts=200), CPU)
    assert 3 * stream < peak < 100 * stream


@pytest.mark.slow
def test_the_memory_budget_is_kept_where_the_vocabulary_is_large():
    cfg = replace(train.MODEL, n_layers=2, d_vocab=20_000)
    sweep = Sweep(cfg, n_prompts=300, shots=2, max_memory=0.1)
    # GiB that libraries and the allocator take for themselves: the resident set of a fresh process
    # is no exact measure
    slack = 0.015
    assert bench_sweep.peak_memory(sweep, CPU) < 0.1 + slack


@pytest.mark.slow
def test_two_processes_find_what_one_finds():
    sweep = Sweep(bench.TINY, every_input(bench.TINY))
    one, two, difference = bench_sweep.compare_processes(sweep, repeats=1)
    assert difference <= 1e-6 and one > 0 and two > 0
