from statistics import correlation

import pytest
import torch
from test_patching import LLAMA, VARIANTS, make

from minifunc.analysis.attribution import attribute, rank_correlation
from minifunc.patching import Logits, PathPatcher


@pytest.mark.parametrize("freeze_mlps", [False, True], ids=["live", "frozen"])
@pytest.mark.parametrize("variant", [*VARIANTS.values(), LLAMA], ids=[*VARIANTS, "llama"])
def test_it_is_the_limit_of_path_patching_for_small_changes(variant, freeze_mlps):
    patcher, epsilon = PathPatcher(*make(**variant), freeze_mlps=freeze_mlps), 1e-7
    estimate = attribute(patcher).per_prompt
    whole = patcher.changes
    patcher.changes = lambda *asked: {name: epsilon * x for name, x in whole(*asked).items()}
    measured = patcher.sweep(Logits()).per_prompt / epsilon
    torch.testing.assert_close(measured, estimate, rtol=1e-3, atol=1e-5)
    assert estimate.abs().max() > 0.01


def test_chunks_change_nothing_and_no_gradient_stays_behind():
    data = make(act_fn="relu", n_prompts=5)
    data[0].requires_grad_(True)
    whole, small = attribute(PathPatcher(*data)), attribute(PathPatcher(*data, max_memory=5e-5))
    torch.testing.assert_close(whole.per_prompt, small.per_prompt, rtol=0, atol=1e-12)
    assert all(parameter.grad is None for parameter in data[0].parameters())


@pytest.mark.parametrize(
    "a, b, expected",
    [
        ([1, 2, 3, 4], [10, 20, 30, 99], 1),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1),
        ([1, 1, 2, 3], [5, 5, 6, 7], 1),
        ([1, 2, 3], [1, 3, 2], 0.5),
    ],
)
def test_rank_correlation_of_known_cases(a, b, expected):
    assert rank_correlation(torch.tensor(a), torch.tensor(b)) == pytest.approx(expected)


def test_equal_values_share_their_mean_rank():
    """In one of the two alone, too: worked out rank by rank."""

    def mean_ranks(values):
        ordered = sorted(values)
        first = {value: ordered.index(value) for value in values}
        return [first[value] + (ordered.count(value) - 1) / 2 for value in values]

    for seed in range(20):
        drawn = torch.randint(4, (2, 3, 3), generator=torch.Generator().manual_seed(seed))
        a, b = (mean_ranks(one.flatten().tolist()) for one in drawn)
        assert rank_correlation(*drawn) == pytest.approx(correlation(a, b))
    assert rank_correlation(torch.ones(4), torch.arange(4)) == 0
