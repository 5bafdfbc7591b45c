import json

import pytest
import torch

import patch
import tasks
from minifunc.analysis import study
from minifunc.model import ModelConfig, Transformer
from minifunc.report import terminal


def model():
    return Transformer(
        ModelConfig(
            d_vocab=len(tasks.VOCABULARY), n_layers=2, n_heads=3, d_model=32, d_head=4, d_mlp=16
        )
    ).requires_grad_(False)


def test_naive_prompts_ask_for_each_input_after_every_other_demonstration():
    naive = study.naive_prompts(tasks, 10)
    assert naive.shape[:2] == (10, 9)
    assert (
        tasks.decode(naive[3, 0]) == "<bos> 0 same _ = 0 ; 3 same _ ="
        and tasks.decode(naive[3, 8]) == "<bos> 9 same _ = 9 ; 3 same _ ="
    )


def numbers_at(tokens, places):
    return tokens[:, places] - tasks.ZERO


def drawn(shots, n_prompts):
    """Sums off by every k, and the sums that their queries ask for."""
    generator = torch.Generator().manual_seed(0)
    return study.examples(tasks, ["addition"], shots, n_prompts, generator)


def test_documents_hold_every_k_and_know_what_was_to_be_expected():
    shown, asked = drawn(3, 20)
    x, y, c = (numbers_at(shown.tokens, shown.answers + offset) for offset in (-4, -2, 0))
    assert torch.equal(x + y, shown.expected)
    assert torch.equal(c, shown.shown)
    assert torch.equal(shown.tokens[:, -4] + shown.tokens[:, -2] - 2 * tasks.ZERO, asked)
    k = torch.arange(-4, 5).repeat_interleave(20)
    assert torch.equal(shown.difference, k[:, None].expand(-1, 3))


def test_dealing_keeps_every_example_whole_and_makes_differences_independent():
    shown, _ = drawn(4, 50)
    tokens, expected = shown.tokens.clone(), shown.expected.clone()
    mixed = shown.dealt(torch.Generator().manual_seed(1))
    assert torch.equal(shown.tokens, tokens) and torch.equal(shown.expected, expected)
    x, y, c = (numbers_at(mixed.tokens, mixed.answers + offset) for offset in (-4, -2, 0))
    assert torch.equal(x + y, mixed.expected)
    assert torch.equal(c, mixed.shown)

    def examples(rows):
        places = shown.answers[:, None] + torch.arange(-4, 1)
        return sorted(map(tuple, rows[:, places].flatten(0, 1).tolist()))

    assert examples(mixed.tokens) == examples(tokens)
    assert torch.equal(mixed.tokens[:, 25:], tokens[:, 25:])
    d = mixed.difference.double()
    assert abs(torch.corrcoef(d[:, :2].T)[0, 1]) < 0.15
    assert (d != d[:, :1]).any(1).double().mean() > 0.9


def test_the_analyses_have_the_promised_layout_and_fit_into_circuit_json():
    found = json.loads(
        json.dumps(
            patch.writings(
                tasks,
                model(),
                ["0.1", "1.2"],
                ["0.0"],
                patch.Study(shots=4, prompts=24),
                torch.Generator().manual_seed(0),
            ),
            allow_nan=False,
        )
    )
    vectors = found["function_vectors"]
    assert vectors.keys() == {"0.1", "1.2", "all"} and all(
        len(rows) == 10 and all(len(row) == 10 for row in rows) for rows in vectors.values()
    )
    assert found["function_vectors_by_k"].keys() == set(map(str, range(-4, 5)))
    reading, probe = found["reading"], found["probe"]
    assert (
        reading["inputs"].keys() == {"0.1", "1.2", "all"}
        and reading["wrote"].keys() == {"0.0"}
        and reading["looks_for"].keys() == reading["hands_over"].keys() == {"0.1", "1.2"}
    )
    assert reading["inputs"]["all"]["v"].keys() == {"base", "operands_changed", "same_k"}
    assert (
        probe["sites"] == ["embed", "attn0", "mlp0", "attn1", "mlp1"]
        and probe["made_by"] in probe["sites"]
    )
    for kind in ("consistent", "dealt"):
        assert all(
            len(values) == 5
            for place in ("answer", "equals", "y")
            for values in probe[kind][place].values()
        )
        assert (
            probe[kind]["answer"]["shown"][0] > 0.999
        )  # the embedding alone tells which number is shown
        assert (
            max(probe[kind]["answer"]["shuffled"]) < 0.05
            and max(probe[kind]["equals"]["shown"][:1]) < 0.05
        )
        assert probe[kind]["answer"]["difference"][0] == pytest.approx(
            probe[kind]["from_shown_alone"], abs=0.02
        )
    shown = "\n".join(terminal.written(found | {"k": 1}))
    assert "linear probes" in shown and probe["made_by"] in shown
