"""The training side of the benchmark: our step against a plain eager one, and the whole road to off-by-one addition."""

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import corpus
import tasks
import train
from minifunc.model import ModelConfig, Transformer


class PlainBlock(nn.Module):
    """Pre-norm block as one writes it without much thought: scores, mask, softmax."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        width = cfg.n_heads * cfg.d_head
        self.heads, self.eps = (cfg.n_heads, cfg.d_head), cfg.eps
        self.norm1, self.norm2 = (nn.Parameter(torch.ones(cfg.d_model)) for _ in range(2))
        self.qkv = nn.Linear(cfg.d_model, 3 * width, bias=False)
        self.out = nn.Linear(width, cfg.d_model, bias=False)
        self.up = nn.Linear(cfg.d_model, cfg.d_mlp, bias=False)
        self.down = nn.Linear(cfg.d_mlp, cfg.d_model, bias=False)
        self.act = F.gelu if cfg.act_fn == "gelu" else F.relu

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, self.heads).transpose(1, 2)
            for part in self.qkv(norm(x, self.norm1, self.eps)).chunk(3, dim=-1)
        )
        scores = (
            turned(q, cos, sin) @ turned(k, cos, sin).transpose(-1, -2) / math.sqrt(self.heads[1])
        )  # [batch, head, query, key]
        pattern = scores.masked_fill(mask, -torch.inf).softmax(dim=-1)
        x = x + self.out((pattern @ v).transpose(1, 2).flatten(2))
        return x + self.down(self.act(self.up(norm(x, self.norm2, self.eps))))


class PlainTransformer(nn.Module):
    """The same function as minifunc's default model (RMSNorm, rotary positions), written independently. Tokens → logits at every position."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.embed = nn.Embedding(cfg.d_vocab, cfg.d_model)
        self.blocks = nn.ModuleList(PlainBlock(cfg) for _ in range(cfg.n_layers))
        self.norm, self.eps = nn.Parameter(torch.ones(cfg.d_model)), cfg.eps
        self.unembed = nn.Linear(cfg.d_model, cfg.d_vocab, bias=False)
        angle = torch.arange(cfg.n_ctx)[:, None] * cfg.rotary_base ** (
            -torch.arange(0, cfg.d_head, 2) / cfg.d_head
        )  # [pos, pair]
        self.register_buffer("cos", angle.cos().repeat_interleave(2, dim=-1))  # [pos, d_head]
        self.register_buffer("sin", angle.sin().repeat_interleave(2, dim=-1))
        self.register_buffer("mask", torch.ones(cfg.n_ctx, cfg.n_ctx, dtype=torch.bool).triu(1))

    def forward(self, tokens: Tensor) -> Tensor:
        n, x = tokens.shape[1], self.embed(tokens)
        for block in self.blocks:
            x = block(x, self.cos[:n], self.sin[:n], self.mask[:n, :n])
        return self.unembed(norm(x, self.norm, self.eps))


def norm(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + eps) * scale


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions, adjacent pairs. x [batch, head, pos, d_head]."""
    other = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
    return x * cos + other * sin


def plain_copy(model: Transformer) -> PlainTransformer:
    """The plain model with the weights of `model`, on its device."""
    plain = PlainTransformer(model.cfg).to(model.unembed.W_U.device)
    pairs = [
        (plain.embed.weight, model.embed.W_E),
        (plain.norm, model.ln_final.w),
        (plain.unembed.weight, model.unembed.W_U.T),
    ]
    for block, ours in zip(plain.blocks, model.blocks):
        qkv = torch.cat(
            [
                weight.permute(0, 2, 1).flatten(0, 1)
                for weight in (ours.attn.W_Q, ours.attn.W_K, ours.attn.W_V)
            ]
        )
        pairs += [
            (block.norm1, ours.ln1.w),
            (block.norm2, ours.ln2.w),
            (block.qkv.weight, qkv),
            (block.out.weight, ours.attn.W_O.flatten(0, 1).T),
        ]
        pairs += [(block.up.weight, ours.mlp.W_in.T), (block.down.weight, ours.mlp.W_out.T)]
    with torch.no_grad():
        for parameter, weight in pairs:
            parameter.copy_(weight)
    return plain


def largest_difference(
    model: Transformer, plain: PlainTransformer, documents: corpus.Documents
) -> float:
    """Between the two models, scored at the same answers: of the losses and of the gradients of the embedding, which all else goes into."""
    device = model.unembed.W_U.device
    places = tasks.answer_positions(documents.answer.shape[1])
    logits = plain(documents.tokens.to(device))[:, (places - 1).to(device)]
    counted = documents.determined.to(device)
    theirs = F.cross_entropy(logits[counted], documents.tokens[:, places].to(device)[counted])
    ours = train.loss_on_answers(model, documents)
    gradients = (
        torch.autograd.grad(ours, model.embed.W_E)[0]
        - torch.autograd.grad(theirs, plain.embed.weight)[0]
    )
    return max((ours - theirs).abs().item(), gradients.abs().max().item())


def steps(
    model_cfg: ModelConfig, cfg: train.TrainConfig, device: torch.device
) -> tuple[dict[str, Callable[[], object]], float, float]:
    """A training step of either side, drawing the documents included: ({"ours": step, "plain": step}, tokens in a step, largest difference).

    The plain step scores every position, with an AdamW as it comes and gradients clipped as in ours.
    """
    diet, shape = corpus.DEFAULT_DIET, (cfg.documents, cfg.examples)
    model = Transformer(model_cfg, torch.Generator().manual_seed(0)).to(device)
    plain = plain_copy(model)
    worst = largest_difference(
        model, plain, corpus.sample(diet, *shape, torch.Generator().manual_seed(0))
    )
    ours_data, plain_data = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    ours_optimizer = train.make_optimizer(model, cfg)
    plain_optimizer = torch.optim.AdamW(
        plain.parameters(), lr=cfg.lr, betas=(0.9, cfg.beta2), weight_decay=cfg.weight_decay
    )

    def ours() -> None:
        train.train_step(model, ours_optimizer, cfg, corpus.sample(diet, *shape, ours_data))

    def plain_step() -> None:
        tokens = corpus.sample(diet, *shape, plain_data).tokens.to(device)
        logits = plain(tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        plain_optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(plain.parameters(), cfg.clip)
        plain_optimizer.step()

    return (
        {"ours": ours, "plain": plain_step},
        cfg.documents * (1 + tasks.EXAMPLE * cfg.examples),
        worst,
    )


def road(
    seed: int, device: torch.device, goal: float = 0.95, flags: tuple[str, ...] = ()
) -> dict[str, float | None]:
    """Trains one run and says when the accuracy at unseen off-by-one addition (8 shots) first passed `goal`: {seed, seconds, step, every, final}.

    Seconds since the training loop began, evaluations included; it is looked at every `every` steps only. None where it never passed.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(__file__).parent.parent
        command = [
            sys.executable,
            "train.py",
            "--out",
            folder,
            "--seed",
            str(seed),
            "--device",
            str(device),
            "--table-prompts",
            "8",
            *flags,
        ]
        subprocess.run(command, cwd=root, check=True, stdout=subprocess.DEVNULL)
        lines = [
            json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()
        ]
    return {"seed": seed, **when_passed(lines, goal)}


def when_passed(lines: list[dict], goal: float) -> dict[str, float | None]:
    """From the lines of a metrics.jsonl: the first evaluation at which off-by-one addition at 8 shots was right on more than `goal`."""
    scores = [line["accuracy"]["addition"]["1"]["8"] for line in lines]
    first = next(
        (line for line, score in zip(lines, scores) if score > goal),
        {"seconds": None, "step": None},
    )
    return {
        "seconds": first["seconds"],
        "step": first["step"],
        "every": lines[0]["step"],
        "final": scores[-1],
    }
