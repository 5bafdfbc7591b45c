"""The training side of the benchmark: a step against one that scores every position."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tasks
import train
from experiments.bench_sweep import medians_in_turn
from minifunc.model import ModelConfig, Transformer
from minifunc.support.graphs import Graphed, deterministic


def next_token_losses(model: Transformer, tokens: Tensor) -> Tensor:
    """Cross-entropy (nats) of every token after the first, [document, pos - 1]."""
    return F.cross_entropy(model(tokens[:, :-1]).mT, tokens[:, 1:], reduction="none")


def largest_difference(model: Transformer, documents: tasks.Documents) -> float:
    """Between the two ways' losses at the answers; between their gradients of the embedding."""
    places = tasks.answer_positions(documents.answer.shape[1])
    tokens, counted = documents.tokens.to(model.device), documents.determined.to(model.device)
    losses = (
        train.loss_on_answers(model, tokens, counted),
        next_token_losses(model, tokens)[:, places - 1][counted].mean(),
    )
    gradients = [torch.autograd.grad(loss, model.embed.W_E)[0] for loss in losses]
    of_gradients = (gradients[0] - gradients[1]).abs().max().item()
    return max((losses[0] - losses[1]).abs().item(), of_gradients)


def compare_steps(
    model_cfg: ModelConfig, cfg: train.TrainConfig, device: torch.device, repeats: int
) -> tuple[tuple[float, float], float]:
    """Seconds of a training step, ours and the plain one, and the largest difference. Drawing the
    documents is part of a step. The plain one has an AdamW as it comes, and clips as ours does."""
    diet, size = tasks.DEFAULT_DIET, (cfg.documents, cfg.examples)
    model, plain = Transformer(model_cfg).to(device), Transformer(model_cfg).to(device)
    documents = tasks.sample(diet, *size, torch.Generator().manual_seed(0))
    difference = largest_difference(model, documents)
    data, plain_data = (torch.Generator().manual_seed(1) for _ in range(2))
    update = Graphed(train.train_step, model, train.make_optimizer(model, cfg), cfg)
    options = {"lr": cfg.lr, "betas": (0.9, cfg.beta2), "weight_decay": cfg.weight_decay}
    plain_optimizer = torch.optim.AdamW(plain.parameters(), **options)

    def step() -> None:
        documents = tasks.sample(diet, *size, data)
        with deterministic(device):  # as in training
            update(cfg.lr, documents.tokens.to(device), documents.determined.to(device))

    def plain_step() -> None:
        loss = next_token_losses(plain, tasks.sample(diet, *size, plain_data).tokens.to(device))
        plain_optimizer.zero_grad()
        loss.mean().backward()
        nn.utils.clip_grad_norm_(plain.parameters(), cfg.clip)
        plain_optimizer.step()

    times = medians_in_turn({"ours": step, "plain": plain_step}, device, repeats)
    return (times["ours"], times["plain"]), difference
