"""The training side of the benchmark: a step against a plain one."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tasks
import train
from experiments.bench_sweep import medians_in_turn
from minifunc.model import Block, ModelConfig, Transformer
from minifunc.support.graphs import Graphed, deterministic


class PlainBlock(nn.Module):
    """Pre-norm block as one writes it without much thought; its weights are those of `ours`."""

    def __init__(self, ours: Block, cfg: ModelConfig) -> None:
        super().__init__()
        self.heads, self.eps = (cfg.n_heads, cfg.d_head), cfg.eps
        attn, mlp = ours.attn, ours.mlp
        qkv = torch.cat([attn.W_Q, attn.W_K, attn.W_V])  # [3 head, d_model, d_head]
        self.qkv, self.out = own(qkv.transpose(1, 2).flatten(0, 1)), own(attn.W_O.flatten(0, 1).T)
        self.up, self.down = own(mlp.W_in.T), own(mlp.W_out.T)
        self.norm1, self.norm2 = own(ours.ln1.w), own(ours.ln2.w)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        read = F.rms_norm(x, x.shape[-1:], self.norm1, self.eps)
        qkv = F.linear(read, self.qkv).chunk(3, dim=-1)
        # [batch, head, pos, d_head]
        q, k, v = (part.unflatten(-1, self.heads).transpose(1, 2) for part in qkv)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.heads[1])  # [batch, head, query, key]
        pattern = scores.masked_fill(mask, -torch.inf).softmax(dim=-1)
        x = x + F.linear((pattern @ v).transpose(1, 2).flatten(2), self.out)
        read = F.rms_norm(x, x.shape[-1:], self.norm2, self.eps)
        return x + F.linear(F.relu(F.linear(read, self.up)), self.down)


class PlainTransformer(nn.Module):
    """The same function as minifunc's default `model` (RMSNorm, rotary, ReLU), written anew.
    Tokens [batch, pos] → logits [batch, pos, d_vocab]. A copy of the weights, same device."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.cfg = cfg = model.cfg
        self.embed, self.unembed = own(model.embed.W_E), own(model.unembed.W_U.T)
        self.norm = own(model.ln_final.w)
        self.blocks = nn.ModuleList(PlainBlock(block, cfg) for block in model.blocks)
        frequency = cfg.rotary_base ** (-torch.arange(0, cfg.d_head, 2) / cfg.d_head)
        angle = torch.arange(cfg.n_ctx)[:, None] * frequency  # [pos, d_head / 2]
        self.register_buffer("cos", angle.cos().repeat_interleave(2, dim=-1))  # [pos, d_head]
        self.register_buffer("sin", angle.sin().repeat_interleave(2, dim=-1))
        self.register_buffer("mask", torch.ones(cfg.n_ctx, cfg.n_ctx, dtype=torch.bool).triu(1))
        self.to(model.device)

    def forward(self, tokens: Tensor) -> Tensor:
        n, x = tokens.shape[1], F.embedding(tokens, self.embed)
        for block in self.blocks:
            x = block(x, self.cos[:n], self.sin[:n], self.mask[:n, :n])
        return F.linear(F.rms_norm(x, x.shape[-1:], self.norm, self.cfg.eps), self.unembed)


def own(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions, adjacent pairs. x [batch, head, pos, d_head]."""
    quarter_turn = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
    return x * cos + quarter_turn * sin


def largest_difference(
    model: Transformer, plain: PlainTransformer, documents: tasks.Documents
) -> float:
    """Between the losses of the two models, scored at the same answers; between their gradients
    of the embedding, which all else goes into."""
    places = tasks.answer_positions(documents.answer.shape[1])
    tokens, counted = documents.tokens.to(model.device), documents.determined.to(model.device)
    logits = plain(tokens)[:, places - 1]  # [document, example, d_vocab]
    theirs = F.cross_entropy(logits[counted], tokens[:, places][counted])
    ours = train.loss_on_answers(model, tokens, counted)
    (their_gradient,) = torch.autograd.grad(theirs, plain.embed)
    (our_gradient,) = torch.autograd.grad(ours, model.embed.W_E)
    of_gradients = (our_gradient - their_gradient).abs().max().item()
    return max((ours - theirs).abs().item(), of_gradients)


def compare_steps(
    model_cfg: ModelConfig, cfg: train.TrainConfig, device: torch.device, repeats: int
) -> tuple[tuple[float, float], float]:
    """Seconds of a training step, ours and the plain one, and the largest difference. Drawing the
    documents is part of a step. The plain one has an AdamW as it comes, and clips as ours does."""
    diet, size = tasks.DEFAULT_DIET, (cfg.documents, cfg.examples)
    model = Transformer(model_cfg).to(device)
    plain = PlainTransformer(model)
    documents = tasks.sample(diet, *size, torch.Generator().manual_seed(0))
    difference = largest_difference(model, plain, documents)
    data, plain_data = (torch.Generator().manual_seed(1) for _ in range(2))
    update = Graphed(train.train_step, model, train.make_optimizer(model, cfg), cfg)
    options = {"lr": cfg.lr, "betas": (0.9, cfg.beta2), "weight_decay": cfg.weight_decay}
    plain_optimizer = torch.optim.AdamW(plain.parameters(), **options)

    def step() -> None:
        documents = tasks.sample(diet, *size, data)
        with deterministic(device):  # as in training
            update(cfg.lr, documents.tokens.to(device), documents.determined.to(device))

    def plain_step() -> None:
        tokens = tasks.sample(diet, *size, plain_data).tokens.to(device)
        logits = plain(tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        plain_optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(plain.parameters(), cfg.clip)
        plain_optimizer.step()

    times = medians_in_turn({"ours": step, "plain": plain_step}, device, repeats)
    return (times["ours"], times["plain"]), difference
