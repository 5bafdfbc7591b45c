import pytest
import torch
from handwired import two_step_model
from torch.testing import assert_close

from minifunc.analysis import activations
from minifunc.analysis.probe import (
    correlation,
    fit,
    halves,
    largest_step,
    one_hot,
    r2,
    readable,
    sites,
    stream,
)
from minifunc.model import ModelConfig, Transformer


def test_a_probe_finds_a_linear_map_exactly_and_nothing_in_shuffled_targets():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 5, dtype=torch.float64, generator=generator)
    weight = torch.randn(5, 2, dtype=torch.float64, generator=generator)
    y = x @ weight + 3
    probe = fit(x[:300], y[:300])
    unit = torch.eye(5, dtype=torch.float64)
    assert_close(probe(unit) - 3, weight, atol=1e-3, rtol=1e-3)
    assert_close(r2(probe(x[300:]), y[300:]), torch.ones(2, dtype=torch.float64), atol=1e-6, rtol=0)
    shuffled = y[torch.randperm(600, generator=generator)]
    assert (r2(fit(x[:300], shuffled[:300])(x[300:]), shuffled[300:]) < 0.05).all()
    far = 2 * y[300:] + 50  # a wrong scale and zero
    assert (r2(probe(x[300:]), far) < 0).all()
    assert correlation(probe(x[300:]), far) == pytest.approx([1, 1])


def test_inputs_that_never_change_leave_the_mean():
    probe = fit(torch.ones(10, 3), torch.arange(10.0)[:, None])
    assert r2(probe(torch.ones(10, 3)), torch.arange(10.0)[:, None]).item() == pytest.approx(0)


def carried(position):
    """R² by target at one position of the hand-wired model, and what writes at each site.

    Which token stands at position 1 is carried to position 2 by attn0, to 3 by attn1.
    """
    model, generator = two_step_model(), torch.Generator().manual_seed(0)
    tokens = torch.randint(4, (800, 4), generator=generator)
    shown, expected = tokens[:, [position]], tokens[:, [1]]
    numbers = {"difference": shown - expected, "shown": shown, "expected": expected}
    streams = stream(model, tokens, torch.tensor([position]))
    rows = slice(0, 400), slice(400, None)
    return readable(streams, numbers, *rows), list(sites(model))


@pytest.mark.parametrize(
    "position, made_by, known",
    [(2, "attn0", 0), (3, "attn1", 1 / 3)],  # at position 3, attn0 leaves the mean of all tokens
)
def test_the_difference_becomes_readable_exactly_where_the_hand_wired_model_makes_it(
    position, made_by, known
):
    found, names = carried(position)
    assert names == ["embed", "attn0", "attn1"]
    assert largest_step(found["difference"], names)[0] == made_by
    at = names.index(made_by)
    before = found["difference"][at - 1]  # half of the difference is the token itself
    assert found["difference"][0] == pytest.approx(0.5, abs=0.07)
    assert before == pytest.approx(0.5 + known / 2, abs=0.07)
    assert found["expected"][at - 1] == pytest.approx(known, abs=0.07)
    for values in found.values():
        assert min(values[at:]) > 0.999
    assert min(found["shown"]) > 0.999


def test_sites_are_where_something_wrote_and_the_stream_there_is_the_runs(monkeypatch):
    model = Transformer(ModelConfig(d_vocab=9, n_layers=2, n_heads=2, d_model=8, d_head=4))
    assert list(sites(model)) == ["embed", "attn0", "mlp0", "attn1", "mlp1"]
    monkeypatch.setattr(activations, "ROWS", 2)  # several passes
    tokens = torch.randint(9, (5, 6), generator=torch.Generator().manual_seed(0))
    _, cache = model.run_with_cache(tokens)
    for site, x in stream(model, tokens, torch.tensor([1, 4])).items():
        assert_close(x, cache[site][:, [1, 4]])


def test_halves_share_no_prompt_and_take_each_once():
    tokens = torch.tensor([[1, 2], [3, 4], [1, 2], [5, 6], [7, 8], [3, 4]])
    train, test = halves(tokens, torch.Generator().manual_seed(0))
    rows = [tuple(row) for part in (train, test) for row in tokens[part].tolist()]
    assert len(train) == len(test) == 2
    assert sorted(rows) == [(1, 2), (3, 4), (5, 6), (7, 8)]


def test_one_hot_has_a_column_for_each_number():
    assert one_hot(torch.tensor([-1, 1])).tolist() == [[1, 0, 0], [0, 0, 1]]


def test_the_largest_step_is_the_largest_rise():
    assert largest_step([0.5, 0.6, 0.1, 0.9, 0.95], ["a", "b", "c", "d", "e"]) == ("d", 0.8)
