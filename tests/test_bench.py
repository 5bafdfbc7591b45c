"""The benchmark, in small: that it runs and agrees, and that its plain side and its counts are what they say."""

import json
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import corpus
import tasks
import train
from experiments import bench, bench_cost, bench_processes, bench_train
from minifunc.model import Transformer
from minifunc.patching import HeadInput, Logits, PathPatcher


@pytest.fixture
def no_other_process(monkeypatch):
    monkeypatch.setattr(bench, "peak_memory", lambda *_: 0.0)


def test_the_quick_benchmark_runs_and_both_sides_agree(tmp_path, capsys, no_other_process):
    assert (
        bench.main(
            ["--quick", "--repeats", "1", "--device", "cpu", "--json", str(tmp_path / "bench.json")]
        )
        == 0
    )
    result = json.loads((tmp_path / "bench.json").read_text())
    assert {"hardware", "versions", "rows"} <= result.keys()
    assert {"all heads → v, q, k of every head", "training step"} == {
        row["work"] for row in result["rows"]
    }
    for row in result["rows"]:
        assert {
            "work",
            "model",
            "ours_s",
            "other",
            "other_s",
            "ratio",
            "max_abs_diff",
            "peak_gib",
        } <= row.keys()
        assert row["max_abs_diff"] <= bench.TOLERANCE and row["ours_s"] > 0 and row["other_s"] > 0
    assert "own two-pass loop" in capsys.readouterr().out


def test_another_answer_of_one_side_is_noticed(tmp_path, monkeypatch, no_other_process):
    right = PathPatcher.score
    monkeypatch.setattr(PathPatcher, "score", lambda *arguments: right(*arguments) * 1.01)
    monkeypatch.setattr(bench, "TOLERANCE", 1e-5)
    assert (
        bench.main(
            ["--quick", "--repeats", "1", "--device", "cpu", "--json", str(tmp_path / "bench.json")]
        )
        == 1
    )


def test_the_plain_model_is_the_same_function_and_its_loss_at_the_answers_has_the_same_gradients():
    model = Transformer(bench.TINY).double()
    for block in model.blocks:
        block.ln1.w.data.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(0))
    plain = bench_train.plain_copy(model.float()).double()
    model = model.double()
    documents = corpus.sample(corpus.DIETS["strict"], 4, 3, torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        plain(documents.tokens), model(documents.tokens), rtol=0, atol=1e-5
    )  # its angles are float32
    assert bench_train.largest_difference(model, plain, documents) < 1e-6


@pytest.mark.parametrize(
    "receivers",
    [[Logits()], [HeadInput(3, 0, "v"), HeadInput(2, 1, "q"), HeadInput(1, 0, "k")]],
    ids=["logits", "q, k, v"],
)
def test_the_operations_counted_by_hand_are_most_of_those_done_and_not_more(receivers):
    cfg = replace(bench.TINY, n_layers=4, d_model=64, d_mlp=256)
    model = Transformer(cfg).requires_grad_(False)
    pairs = tasks.evaluation_pairs("addition", 1, 4, 3, torch.Generator().manual_seed(0))
    with (
        FlopCounterMode(display=False) as counter,
        sdpa_kernel(SDPBackend.MATH),
    ):  # a fused kernel would not be counted
        PathPatcher(
            model, pairs.base, pairs.contrast, pairs.base_answers, pairs.contrast_answers
        ).sweep_each(receivers, [f"{n}.{m}" for n in range(4) for m in range(2)])
    by_hand = bench_cost.sweep_flops(cfg, 3, pairs.base.shape[1], 5, receivers)
    assert 0.6 * counter.get_total_flops() < by_hand <= counter.get_total_flops()


def test_the_first_passing_evaluation_is_found():
    lines = [
        {"step": 100 * n, "seconds": 7.0 * n, "accuracy": {"addition": {"1": {"8": score}}}}
        for n, score in enumerate([0.5, 0.95, 0.97, 0.9], 1)
    ]
    assert bench_train.when_passed(lines, 0.95) == {
        "seconds": 21.0,
        "step": 300,
        "every": 100,
        "final": 0.9,
    }
    assert bench_train.when_passed(lines[:2], 0.95)["seconds"] is None


@pytest.mark.slow
def test_a_sweep_is_seen_in_the_peak_memory():
    cfg = replace(train.MODEL, n_layers=2)
    stream = (
        200 * 53 * cfg.d_model * 4 / 2**30
    )  # GiB of one residual stream, of which several are kept
    assert (
        3 * stream
        < bench_cost.peak_memory(cfg, 200, 8, [Logits()], None, torch.device("cpu"))
        < 100 * stream
    )


@pytest.mark.slow
def test_the_memory_budget_is_kept_where_the_vocabulary_is_large():
    cfg = replace(train.MODEL, n_layers=2, d_vocab=20_000)
    slack = 0.015  # GiB that libraries and the allocator take for themselves: the resident set of a fresh process is no exact measure
    assert bench_cost.peak_memory(cfg, 300, 2, [Logits()], 0.1, torch.device("cpu")) < 0.1 + slack


@pytest.mark.slow
def test_two_processes_find_what_one_finds():
    row = bench_processes.row(bench.TINY, repeats=1)
    assert row["max_abs_diff"] <= 1e-6 and row["ours_s"] > 0 and row["other_s"] > 0
