"""Sweeps that are kept on disk: of which prompts, by what they are measured, whose they are."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from minifunc.analysis import long_sweeps
from minifunc.analysis.long_sweeps import LongSweeps
from minifunc.model import ModelConfig, Transformer
from minifunc.patching import HeadInput, Logits, PathPatcher
from minifunc.support.errors import UserError

CFG = ModelConfig(n_layers=2, n_heads=2, d_model=8, d_head=4, d_mlp=8, d_vocab=9)
N = 23


def made(cfg=CFG, seed=0):
    model = Transformer(cfg, torch.Generator().manual_seed(seed)).double()
    return model.requires_grad_(False)


def drawn(n=N, seed=0):
    """((base, contrast tokens), (base, contrast answers))."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(9, (2, n, 5), generator=generator)
    first = torch.randint(9, (n,), generator=generator)
    return tuple(tokens), (first, (first + 1) % 9)


def some_of(prompts, which):
    tokens, answers = prompts
    return tuple(x[which] for x in tokens), tuple(x[which] for x in answers)


@pytest.mark.parametrize("n", [1, 13, N + 5, None])
def test_effects_are_those_of_the_first_prompts_alone_however_many_are_kept(tmp_path, n):
    model, prompts = made(), drawn()
    sweeps = LongSweeps(model, *prompts, tmp_path)
    for _ in range(2):  # as they are made, and from a folder that keeps those of all prompts
        found = sweeps.sweep(Logits(), n)
        tokens, answers = some_of(prompts, slice(n))
        patcher = PathPatcher(model, *tokens, *answers)
        whole = patcher.sweep(Logits())
        for part in ("heads", "mlps", "embedding", "per_prompt", "r"):
            assert_close(getattr(found.effects, part), getattr(whole, part), rtol=0, atol=1e-9)
        assert_close(found.F_base, patcher.F_base.cpu(), rtol=0, atol=1e-12)
        assert_close(found.F_contrast, patcher.F_contrast.cpu(), rtol=0, atol=1e-12)
        sweeps.sweep(Logits())


def test_no_more_prompts_are_swept_than_were_asked_for(tmp_path, monkeypatch):
    sizes, sweep = [], PathPatcher.sweep

    def noted(patcher, receiver):
        sizes.append(patcher.n_prompts)
        return sweep(patcher, receiver)

    monkeypatch.setattr(PathPatcher, "sweep", noted)
    monkeypatch.setattr(long_sweeps, "TOGETHER", 4)
    sweeps = LongSweeps(made(), *drawn(), tmp_path)
    sweeps.sweep(Logits(), 6)
    sweeps.sweep(Logits(), 3)
    sweeps.sweep(Logits(), 11)
    assert sizes == [4, 2, 4, 1]


def test_the_bar_counts_prompts_from_those_that_are_kept_to_those_wanted(tmp_path, monkeypatch):
    bars = []

    class Bar(nullcontext):
        def __init__(self, total, initial, **_):
            bars.append([total, initial])
            self.enter_result = None

        def update(self, n):
            bars[-1].append(n)

    monkeypatch.setattr(long_sweeps, "tqdm", Bar)
    sweeps = LongSweeps(made(), *drawn(), tmp_path)
    sweeps.sweep(Logits(), 12)
    sweeps.sweep(Logits())
    assert bars == [[12, 0, 10, 2], [23, 12, 10, 1]]


def test_of_one_prompt_many_times_the_interval_of_each_sender_is_its_r(tmp_path):
    prompts = some_of(drawn(), torch.full((12,), 3))
    found = LongSweeps(made(), *prompts, tmp_path).sweep(Logits())
    named = found.effects.named()
    assert max(named.values()) > 0.01 and min(named.values()) < -0.01
    for name, ends in found.intervals().items():
        assert ends == pytest.approx([named[name]] * 2, abs=1e-5)


OTHERS = {  # what the folder's effects are of, and what is asked for then
    "weights": lambda: (made(seed=1), *drawn()),
    "shape": lambda: (made(replace(CFG, eps=1e-3)), *drawn()),
    "base tokens": lambda: (made(), (drawn(seed=1)[0][0], drawn()[0][1]), drawn()[1]),
    "contrast tokens": lambda: (made(), (drawn()[0][0], drawn(seed=1)[0][1]), drawn()[1]),
    "base answers": lambda: (made(), drawn()[0], (drawn(seed=1)[1][0], drawn()[1][1])),
    "contrast answers": lambda: (made(), drawn()[0], (drawn()[1][0], drawn(seed=1)[1][1])),
}


@pytest.mark.parametrize("what", OTHERS)
def test_effects_of_anything_else_are_refused(tmp_path, what):
    LongSweeps(made(), *drawn(), tmp_path).sweep(Logits(), 2)
    with pytest.raises(UserError, match=r"logits\.pt is of other weights"):
        LongSweeps(*OTHERS[what](), tmp_path).sweep(Logits(), 2)


def test_effects_on_a_receiver_at_other_positions_are_refused_and_others_kept_apart(tmp_path):
    sweeps = LongSweeps(made(), *drawn(), tmp_path)
    one, same = (HeadInput(1, 0, "k", positions=at) for at in ((1,), (1,)))
    first = sweeps.sweep(one, 2)
    assert_close(sweeps.sweep(same, 2).effects.r, first.effects.r, rtol=0, atol=0)
    sweeps.sweep(HeadInput(1, 0, "v"), 2)
    for file in tmp_path.glob("*.pt"):  # by whatever name it is kept
        file.with_name(f"{HeadInput(1, 0, 'k', positions=(2,))}.pt").write_bytes(file.read_bytes())
        with pytest.raises(UserError, match="positions"):
            sweeps.sweep(HeadInput(1, 0, "k", positions=(2,)), 2)


def test_the_memory_that_is_allowed_is_that_of_each_part(tmp_path, monkeypatch):
    allowed = []

    class Noting(PathPatcher):
        def __init__(self, *given, max_memory=None):
            allowed.append(max_memory)
            super().__init__(*given, max_memory=max_memory)

    monkeypatch.setattr(long_sweeps, "PathPatcher", Noting)
    LongSweeps(made(), *drawn(), tmp_path, 0.5).sweep(Logits())
    assert allowed == [0.5] * 3
