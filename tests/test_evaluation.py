import torch

from minifunc.model import ModelConfig, Transformer
from minifunc.support.evaluation import ROWS, accuracy, bootstrap, last_logits

MODEL = Transformer(ModelConfig(n_layers=2, n_heads=2, d_model=8, d_head=4, d_mlp=8, d_vocab=9))
TOKENS = torch.randint(9, (ROWS + 3, 5), generator=torch.Generator().manual_seed(0))


def test_last_logits_are_those_of_the_last_position_however_many_prompts_there_are():
    wanted = MODEL(TOKENS)[:, -1].detach()
    torch.testing.assert_close(last_logits(MODEL, TOKENS), wanted, rtol=0, atol=1e-5)


def test_accuracy_is_the_share_of_prompts_whose_largest_logit_is_the_answer():
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0], [0.0, 0.0, 1.0], [5.0, 6.0, 7.0]])
    assert accuracy(logits, torch.tensor([1, 0, 2, 0])) == 0.75


def test_bootstrap_intervals_hold_the_true_mean_about_as_often_as_they_say():
    generator = torch.Generator().manual_seed(0)
    seen = 5 + torch.randn(400, 60, generator=generator)  # 400 studies of 60 prompts
    low, high = torch.tensor(bootstrap(seen)).T
    held = ((low < 5) & (5 < high)).double().mean()
    assert 0.91 < held < 0.97
    width = (high - low).mean().item()
    assert abs(width - 2 * 1.96 / 60**0.5) < 0.04


def test_bootstrap_draws_numerator_and_denominator_of_the_same_prompts():
    generator = torch.Generator().manual_seed(1)
    per = 5 + torch.randn(60, generator=generator)
    noise = torch.randn(1, 60, generator=generator) / 100
    ((low, high),) = bootstrap(0.5 * per + noise, per)
    assert low < 0.5 + noise.mean() / 5 < high and high - low < 0.002
    ((low, high),) = bootstrap(0.5 * per[None])  # of the mean alone
    assert high - low > 0.1


def test_bootstrap_gives_the_same_again_and_of_one_prompt_no_width():
    values = torch.arange(12.0).view(2, 6)
    assert bootstrap(values) == bootstrap(values) == [bootstrap(row[None])[0] for row in values]
    assert bootstrap(torch.tensor([[3.0], [4.0]])) == [[3, 3], [4, 4]]
