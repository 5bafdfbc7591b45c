import json

import torch

import patch
import tasks
from minifunc.analysis import study
from minifunc.model import ModelConfig, Transformer


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
    return study.examples(tasks, "addition", shots, n_prompts, generator)


def test_documents_hold_every_k_and_know_what_was_to_be_expected():
    shown, asked = drawn(3, 20)
    x, y, c = (numbers_at(shown.tokens, shown.answers + offset) for offset in (-4, -2, 0))
    assert torch.equal(x + y, shown.expected)
    assert torch.equal(c, shown.shown)
    assert torch.equal(shown.tokens[:, -4] + shown.tokens[:, -2] - 2 * tasks.ZERO, asked)
    k = torch.arange(-4, 5).repeat_interleave(20)
    assert torch.equal(shown.difference, k[:, None].expand(-1, 3))


def test_the_analyses_have_the_promised_layout_and_fit_into_circuit_json():
    few, generator = patch.Study(shots=4, prompts=24), torch.Generator().manual_seed(0)
    written = patch.writings(tasks, model(), ["0.1", "1.2"], few, generator)
    found = json.loads(json.dumps(written, allow_nan=False))
    parts = {"0.1", "1.2", "all"}
    assert found.keys() == {"function_vectors", "function_vector_scores", "reading"}
    vectors = found["function_vectors"]
    assert vectors.keys() == parts and all(
        len(rows) == 10 and all(len(row) == 10 for row in rows) for rows in vectors.values()
    )
    scores = found["function_vector_scores"]["parts"]
    assert scores.keys() == {str(k) for k in range(-4, 5) if k}
    assert all(of_k.keys() == parts for of_k in scores.values())
    reading = found["reading"]
    assert reading["inputs"].keys() == parts
    assert reading["looks_for"].keys() == reading["hands_over"].keys() == {"0.1", "1.2"}
    assert reading["inputs"]["all"]["v"].keys() == {"base", "operands_changed"}
