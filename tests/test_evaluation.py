import torch

from minifunc.model import ModelConfig, Transformer
from minifunc.support.evaluation import ROWS, accuracy, last_logits

MODEL = Transformer(ModelConfig(n_layers=2, n_heads=2, d_model=8, d_head=4, d_mlp=8, d_vocab=9))
TOKENS = torch.randint(9, (ROWS + 3, 5), generator=torch.Generator().manual_seed(0))


def test_last_logits_are_those_of_the_last_position_however_many_prompts_there_are():
    wanted = MODEL(TOKENS)[:, -1].detach()
    torch.testing.assert_close(last_logits(MODEL, TOKENS), wanted, rtol=0, atol=1e-5)


def test_accuracy_is_the_share_of_prompts_whose_largest_logit_is_the_answer():
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0], [0.0, 0.0, 1.0], [5.0, 6.0, 7.0]])
    assert accuracy(logits, torch.tensor([1, 0, 2, 0])) == 0.75
