"""The sweep against the definition (oracle.py).

Models, prompts, senders and receivers are drawn at random.
"""

import random
from dataclasses import replace

import pytest
import torch
from oracle import Oracle
from test_patching import read

from minifunc.model import ModelConfig, Transformer
from minifunc.patching import PathPatcher

LLAMA = 24  # seeds from here on are of the Llama family
FAST = [*range(LLAMA), 26]
SEEDS = FAST + [pytest.param(n, marks=pytest.mark.slow) for n in range(LLAMA, 44) if n not in FAST]


def draw(seed):
    """Small, and odd in every way that is allowed.

    → (arguments of both, options of both, those of the patcher alone, receiver groups, senders)
    """
    dice, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    cfg = ModelConfig(
        n_layers=dice.choice([1, 1, 2, 3]),
        n_heads=dice.choice([1, 2, 3]),
        d_model=8,
        d_head=dice.choice([2, 4]),
        d_mlp=12,
        d_vocab=9,
        n_ctx=8,
        positions=dice.choice(["rotary", "learned", "none"]),
        normalization=dice.choice(["RMS", "LN"]),
        act_fn=dice.choice(["gelu", "relu", "none"]),
    )
    if seed >= LLAMA:
        act_fn = dice.choice(["silu", "gelu", "none"])
        parts = {"gated_mlp": act_fn != "none" and dice.random() < 0.7}
        parts |= {name: dice.random() < 0.5 for name in ("tied_embeddings", "qkv_bias")}
        cfg = replace(cfg, n_heads=4, n_kv_heads=dice.choice([1, 2]), act_fn=act_fn, **parts)
    model = Transformer(cfg, generator).double().requires_grad_(False)
    for name, weight in model.named_parameters():
        weight.mul_(1.5)  # so that norms and nonlinearities bend
        if ".b_" in name:
            weight.copy_(torch.randn(weight.shape, generator=generator))
    n_prompts, n_pos = dice.choice([1, 2, 3, 5]), dice.choice([1, 2, 3, 6, 8])
    contrast = torch.randint(9, (n_prompts, n_pos), generator=generator)
    base = contrast.clone()
    where = dice.choice(
        [
            [0],
            [n_pos - 1],
            [n_pos // 2, n_pos - 1],
            dice.sample(range(n_pos), dice.randint(1, n_pos)),
        ]
    )
    alike = (
        1 if n_prompts > 1 and dice.random() < 0.4 else 0
    )  # this many pairs of prompts are the same
    base[alike:, where] = (
        base[alike:, where]
        + 1
        + torch.randint(8, (n_prompts - alike, len(where)), generator=generator)
    ) % 9
    base_answers = torch.randint(4, (n_prompts,), generator=generator)
    data = (model, base, contrast, base_answers, base_answers + 5)

    def some_positions():
        return dice.sample(range(n_pos), dice.randint(1, n_pos)) if dice.random() < 0.4 else None

    other = contrast.clone()
    other[:, dice.randrange(n_pos) :] = torch.randint(9, (1,), generator=generator)
    source = dice.choice(["base", "base", "base", "mean", "zero", other])
    options = {"source": source, "sender_positions": some_positions()}
    budget = {"max_memory": dice.choice([None, None, 5e-5, 4e-5, 1e-4])}

    places = (
        ["logits"]
        + [f"resid{layer}" for layer in range(cfg.n_layers + 1)]
        + [f"mlp{layer}" for layer in range(cfg.n_layers) if cfg.has_mlp]
    )
    places += [
        f"{layer}.{head}.{which}"
        for layer in range(cfg.n_layers)
        for head in range(cfg.n_heads)
        for which in "qkv"
    ]
    if seed >= LLAMA:
        places += [
            f"{layer}.kv{head}.{which}"
            for layer in range(cfg.n_layers)
            for head in range(cfg.n_kv_heads)
            for which in "kv"
        ] * 2
    groups = [["logits"]]
    for _ in range(dice.choice([0, 5, 5])):
        group = list(
            dict.fromkeys(dice.sample(places, min(len(places), dice.choice([1, 1, 2, 3]))))
        )
        limited = [
            (place, some_positions() if place not in ("logits", f"resid{cfg.n_layers}") else None)
            for place in group
        ]
        groups.append(
            [place + ("@" + ",".join(map(str, at)) if at else "") for place, at in limited]
        )
    names = PathPatcher(*data).senders
    if seed >= LLAMA:
        names = dice.sample(names, min(len(names), 5))
    senders = names + [dice.sample(names, dice.randint(1, len(names))) for _ in range(3)]
    dice.shuffle(senders)
    return data, options, budget, groups, senders


@pytest.mark.parametrize("seed", SEEDS)
def test_the_sweep_is_the_definition(seed):
    data, options, budget, groups, senders = draw(seed)
    freeze_mlps = seed % 2 == 1
    patcher = PathPatcher(*data, freeze_mlps=freeze_mlps, **budget)
    oracle = Oracle(*data, **options)
    scale = abs(patcher.F_range)
    if scale < 1e-3:
        pytest.skip("base and contrast run answer alike")
    receivers = [[read(name) for name in group] for group in groups]
    for group, effects in zip(groups, patcher.sweep_each(receivers, senders, **options)):
        for sender, r in zip(senders, effects.r.tolist()):
            assert abs(r - oracle.r(sender, group, freeze_mlps)) * scale < 1e-10, (sender, group)
