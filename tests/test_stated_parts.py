"""What is stated of runs, senders, receivers, rows, memory, text and models of others: by hand."""

import gc
import io
import json
import math
import weakref
from dataclasses import FrozenInstanceError, replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

import tasks
from minifunc.model import ModelConfig, Transformer
from minifunc.patching import HeadInput, KVInput, Logits, MLPInput, PathPatcher, Resid
from minifunc.support import (
    evaluation,
    files,
    flags,
    names,
    pairs,
    places,
    pretrained,
    products,
    rows,
    settings,
    shared_streams,
    tables,
    tokenizer,
    vocabulary,
)
from minifunc.support.effects import Effects, Senders
from minifunc.support.errors import UserError
from minifunc.support.memory import GIB, MemoryBudget
from minifunc.support.pairs import PairedRuns
from minifunc.support.places import Place
from minifunc.support.settled import nothing_set, plain_torch, settled

SHAPE = ModelConfig(n_layers=2, n_heads=3, d_model=8, d_head=4, d_mlp=6, d_vocab=9, n_ctx=16)
GROUPED = replace(SHAPE, n_layers=12, n_heads=4, n_kv_heads=2)


def drawing(seed=0):
    return torch.Generator().manual_seed(seed)


def tokens(*shape, most=9):
    return torch.randint(most, shape, generator=drawing())


# ---------------------------------------------------------------- paired runs

N, POS = 5, 6
BASE, CONTRAST = tokens(2, N, POS)
ANSWERS = torch.tensor([0, 1, 2, 3, 4]), torch.tensor([5, 6, 7, 8, 0])


@pytest.fixture(scope="module")
def model():
    return Transformer(SHAPE, drawing(3)).requires_grad_(False)


def paired(model, gib=None):
    return PairedRuns(model, (BASE, CONTRAST), ANSWERS, gib)


def F_of(model, prompts):
    last = model(prompts)[:, -1].double()
    every = torch.arange(N)
    return last[every, ANSWERS[0]] - last[every, ANSWERS[1]]


@pytest.mark.parametrize("gib", [None, 4e-5], ids=["kept", "made anew"])
def test_runs_are_those_of_the_model_and_F_is_base_less_contrast_answer(model, gib):
    runs = paired(model, gib)
    assert_close(runs.F_base, F_of(model, BASE), rtol=0, atol=1e-5)
    assert_close(runs.F_contrast, F_of(model, CONTRAST), rtol=0, atol=1e-5)
    difference = (F_of(model, CONTRAST) - F_of(model, BASE)).mean().item()
    assert runs.F_range == pytest.approx(difference, abs=1e-5) and runs.F_base.dtype == (
        torch.float64
    )
    _, of_base = model.run_with_cache(BASE)
    _, of_contrast = model.run_with_cache(CONTRAST)
    chunks = list(runs.cached_runs())
    assert (len(chunks) == 1) == (gib is None) == bool(runs._kept)
    assert sum(chunk.n_prompts for chunk in chunks) == N
    assert all(chunk is kept for chunk, kept in zip(chunks, runs._kept))
    assert runs.sent == ["hook_embed", "blocks.0.attn.hook_z", "blocks.0.hook_mlp_out"] + [
        "blocks.1.attn.hook_z",
        "blocks.1.hook_mlp_out",
    ]
    for chunk in chunks:
        assert list(chunk.base) == runs.sent
        for found, wanted in ((chunk.base, of_base), (chunk.contrast, of_contrast)):
            for name, x in found.items():
                whole = wanted[name][chunk.prompts]
                assert_close(x, whole[:, -x.shape[1] :], rtol=0, atol=1e-5)
                at_the_end = name in ("blocks.1.attn.hook_z", "blocks.1.attn.hook_rot_q")
                at_the_end |= name.startswith("blocks.1.hook") and not name.endswith("pre")
                assert x.shape[1] == (1 if at_the_end else POS), name
    stages = {0: "blocks.0.hook_resid_pre", 1: "blocks.0.hook_resid_mid"}
    stages |= {2: "blocks.1.hook_resid_pre", 3: "blocks.1.hook_resid_mid"}
    stages |= {4: "blocks.1.hook_resid_post"}
    for stage, name in stages.items():
        assert chunks[0].stream(stage) is chunks[0].contrast[name]


def test_several_processes_run_each_their_prompts_and_sum_up_F(model, monkeypatch):
    whole, parts, noted = paired(model), [], []
    for number in range(2):
        own = range(2) if number == 0 else range(2, N)
        monkeypatch.setattr(pairs, "own_range", lambda n, own=own: own)
        monkeypatch.setattr(pairs, "all_sum", lambda *F: noted.append([x.clone() for x in F]))
        parts.append(paired(model))
        assert [runs.prompts for runs in parts[-1].cached_runs()] == [slice(own.start, own.stop)]
    assert_close(noted[0][0] + noted[1][0], whole.F_base, rtol=0, atol=1e-5)
    assert_close(noted[0][1] + noted[1][1], whole.F_contrast, rtol=0, atol=1e-5)
    for name, x in parts[0]._mean_of_base.items():  # over the prompts of all, in float64
        of_base = whole._kept[0].base[name].double().sum(0, keepdim=True) / N
        assert torch.equal(x, of_base.float()), name
    monkeypatch.setattr(pairs, "all_sum", lambda *F: [x.fill_(i) for i, x in enumerate(F)])
    assert paired(model).F_range == 1.0  # of the sums, not of its own part


SOURCES = {
    "base": lambda of: of["base"],
    "zero": lambda of: {name: 0 * x for name, x in of["base"].items()},
    "mean": lambda of: {name: x.mean(0).expand_as(x) for name, x in of["base"].items()},
    "tokens": lambda of: of["other"],
}


@pytest.mark.parametrize("gib", [None, 6e-5], ids=["kept", "made anew"])
def test_what_senders_change_is_source_less_contrast_at_the_positions(model, gib):
    other = tokens(N, POS, most=5)
    runs, of = paired(model, gib), {}
    for name, prompts in (("base", BASE), ("contrast", CONTRAST), ("other", other)):
        _, of[name] = model.run_with_cache(prompts)
    for chunk in runs.cached_runs():
        for (source, sent), positions in product(SOURCES.items(), [None, [0, 4], []]):
            values, elsewhere = sent(of), torch.ones(POS, dtype=torch.bool)
            elsewhere[range(POS) if positions is None else positions] = False
            for n_pos in (4, POS):
                given = other if source == "tokens" else source
                changes = runs.changes(chunk, n_pos, given, positions)
                assert list(changes) == runs.sent
                for name, change in changes.items():
                    n_there = 1 if name.startswith("blocks.1") else n_pos
                    apart = (values[name] - of["contrast"][name])[chunk.prompts, -n_there:]
                    wanted = apart.masked_fill(
                        elsewhere[-n_there:].view(-1, *[1] * (apart.ndim - 2)), 0
                    )
                    assert_close(change, wanted, rtol=0, atol=1e-5)


def test_a_mask_is_true_at_the_positions(model):
    assert paired(model).mask([1, 4]).tolist() == [[x in (1, 4)] for x in range(POS)]
    assert paired(model).mask(None).all() and paired(model).mask(None).shape == (POS, 1)


# ---------------------------------------------------------------- senders, effects


def test_senders_stand_in_the_order_in_which_they_write():
    senders = Senders(SHAPE)
    below, above = ["0.0", "0.1", "0.2", "mlp0"], ["1.0", "1.1", "1.2", "mlp1"]
    assert senders.names == ["embedding", *below, *above]
    assert [senders.n_before(stage) for stage in range(5)] == [1, 4, 5, 8, 9]
    bare = Senders(replace(SHAPE, act_fn="none"))
    assert bare.names == ["embedding", *below[:3], *above[:3]]
    assert [bare.n_before(stage) for stage in range(5)] == [1, 4, 4, 7, 7]
    assert senders.row("mlp1") == (8,) and bare.row("1.0") == (4,)
    assert senders.row(["mlp0", "embedding", "0.1", "mlp0"]) == (0, 2, 4)
    for wrong in ([], (), "mlp2", ["0.0", "0.3"], "resid0", "2.0"):
        with pytest.raises(ValueError, match="joint sender|no sender"):
            senders.row(wrong)


def test_effects_are_laid_out_by_layer_and_head():
    senders, nan = Senders(SHAPE), torch.nan
    asked = [(8,), (0,), (2, 3), (5,), (4,), (3,)]  # mlp1, embedding, two at once, 1.0, mlp0, 0.2
    r = torch.tensor([0.8, 0.0, -9.0, 0.5, 0.4, 0.3], dtype=torch.float64)
    change = torch.arange(12.0).view(6, 2)
    found = senders.effects(asked, change, r)
    assert_close(
        found.heads,
        torch.tensor([[nan, nan, 0.3], [0.5, nan, nan]]).double(),
        equal_nan=True,
    )
    assert found.mlps.tolist() == [0.4, 0.8] and found.embedding.item() == 0.0
    assert torch.equal(found.r, r) and torch.equal(found.per_prompt, change)
    assert list(found.named()) == Senders(SHAPE).names
    strongest = [("mlp1", 0.8), ("1.0", 0.5), ("mlp0", 0.4), ("0.2", 0.3), ("embedding", 0.0)]
    assert list(found.named(strongest_first=True).items()) == strongest
    assert "per_prompt" not in repr(found) and " r=" not in repr(found)
    bare = Senders(replace(SHAPE, act_fn="none"))
    found = bare.effects([(row,) for row in range(7)], change[:1], torch.arange(7.0).double())
    assert found.mlps.tolist() == [0.0, 0.0] and found.embedding == 0
    assert found.heads.tolist() == [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]


def test_the_strongest_is_the_furthest_from_nothing():
    heads = torch.tensor([[0.1, -0.7]])
    found = Effects(heads, torch.tensor([0.5]), torch.tensor(-0.6))
    assert list(found.named(True)) == ["0.1", "embedding", "mlp0", "0.0"]


# ---------------------------------------------------------------- receivers, places

RECEIVERS = {  # by receiver: name, hook point, stage, heads that read it; in a model of groups
    HeadInput(11, 3, "q"): ("11.3.q", "blocks.11.attn.hook_rot_q", 22, [3]),
    HeadInput(2, 1, "k"): ("2.1.k", "blocks.2.attn.hook_k_of_heads", 4, [1]),
    HeadInput(0, 0, "v"): ("0.0.v", "blocks.0.attn.hook_v_of_heads", 0, [0]),
    KVInput(2, 1, "k"): ("2.kv1.k", "blocks.2.attn.hook_rot_k", 4, [2, 3]),
    KVInput(2, 0, "v"): ("2.kv0.v", "blocks.2.attn.hook_v", 4, [0, 1]),
    MLPInput(3): ("mlp3", "blocks.3.hook_mlp_in", 7, []),
    Resid(10): ("resid10", "blocks.10.hook_resid_pre", 20, []),
    Resid(12): ("resid12", None, 24, []),
    Logits(): ("logits", "", 24, []),
}
PLAIN = {
    HeadInput(1, 2, "q"): "blocks.1.attn.hook_rot_q",
    HeadInput(1, 2, "k"): "blocks.1.attn.hook_rot_k",
    HeadInput(1, 2, "v"): "blocks.1.attn.hook_v",
    KVInput(1, 2, "v"): "",
}


@pytest.mark.parametrize("one", RECEIVERS, ids=str)
def test_a_receiver_knows_its_name_place_stage_and_heads(one):
    name, hook, stage, heads = RECEIVERS[one]
    assert (str(one), one.stage(GROUPED), list(one.heads(GROUPED))) == (name, stage, heads)
    assert hook is None or one.hook(GROUPED) == hook
    assert one.is_stream == isinstance(one, Resid | Logits)
    for plain, at in PLAIN.items():
        assert plain.hook(SHAPE) == at


def test_positions_of_a_receiver_are_read_once():
    for one in (HeadInput(0, 0, "q", iter([3, 1])), MLPInput(0, iter([3, 1]))):
        assert one.positions == (3, 1) == one.positions
    assert Resid(0, range(2)).positions == (0, 1) and Logits().positions is None


@pytest.mark.parametrize("changes", [{}, {"qkv_bias": True, "n_kv_heads": 1}], ids=str)
@pytest.mark.parametrize("which", "qkv")
def test_a_head_reads_what_the_model_computes_of_the_normalized_stream(which, changes):
    model = Transformer(replace(SHAPE, **changes), drawing(1)).requires_grad_(False)
    for name, weight in model.named_parameters():
        if ".b_" in name:
            weight.normal_(generator=drawing(2))
    _, cache = model.run_with_cache(BASE)
    x = cache["blocks.1.ln1.hook_normalized"]
    name = {"q": "rot_q", "k": "rot_k", "v": "v"}[which]
    wanted = cache[f"blocks.1.attn.hook_{name}"]
    for head in range(3):
        own = head if which == "q" or not changes else 0
        read = HeadInput(1, head, which).read(model, x[None])
        assert_close(read[0], wanted[:, :, own], rtol=0, atol=1e-5)
    if changes and which != "q":
        assert_close(KVInput(1, 0, which).read(model, x), wanted[:, :, 0], rtol=0, atol=1e-5)
    assert Resid(1).read(model, x) is x


SENT = {
    "embedding": ("hook_embed", None),
    "mlp12": ("blocks.12.hook_mlp_out", None),
    "10.3": ("blocks.10.attn.hook_z", 3),
}
READ = {  # in a model of 12 layers, plain and of groups
    "logits": ("blocks.11.hook_resid_post", None, None),
    "resid12": ("blocks.11.hook_resid_post", None, None),
    "resid10": ("blocks.10.hook_resid_pre", None, None),
    "mlp7": ("blocks.7.hook_mlp_in", None, None),
    "10.3.q": ("blocks.10.attn.hook_q", 3, "blocks.10.attn.hook_q"),
    "10.3.k": ("blocks.10.attn.hook_k", 3, "blocks.10.attn.hook_k_of_heads"),
    "10.3.v": ("blocks.10.attn.hook_v", 3, "blocks.10.attn.hook_v_of_heads"),
}


def test_a_node_writes_and_reads_at_the_hook_point_of_its_name():
    plain = replace(GROUPED, n_kv_heads=None)
    for name, (hook, head) in SENT.items():
        assert places.sender(name, [2]) == Place(hook, head, [2])
    for name, (hook, head, grouped) in READ.items():
        assert places.receiver(name, plain, iter([2])) == Place(hook, head, [2])
        assert places.receiver(name, GROUPED) == Place(grouped or hook, head)
    assert places.receiver("10.kv1.k", GROUPED) == Place("blocks.10.attn.hook_k", 1)
    assert places.receiver("10.kv0.v", GROUPED, [1]) == Place("blocks.10.attn.hook_v", 0, [1])
    known = Transformer(GROUPED).hook_names()
    assert all(places.receiver(name, GROUPED).hook in known for name in READ)


def test_a_place_is_overwritten_and_nothing_else():
    x, value = torch.zeros(2, 4, 3, 5), torch.ones(2, 4, 3, 5)
    put = Place("blocks.0.attn.hook_z", 1, [0, 3]).put(x, value)
    wanted = torch.zeros_like(x)
    wanted[:, 0, 1] = wanted[:, 3, 1] = 1
    assert torch.equal(put, wanted) and not x.any()
    everywhere = Place("blocks.0.attn.hook_z", 2).put(x, value)
    assert torch.equal(everywhere.sum((0, 1, 3)), torch.tensor([0.0, 0.0, 40.0]))
    assert Place("hook_embed", None, [2]).put(x[:, :, 0], value[:, :, 0]).sum() == 10
    for wrong in (value[:1], value[:, :3]):
        with pytest.raises(ValueError, match="must be of shape"):
            Place("hook_embed").put(x, wrong)
    with pytest.raises(ValueError, match="position 4 is out of range"):
        Place("hook_embed", None, [4]).put(x, value)


# ---------------------------------------------------------------- rows of examples


def test_whole_numbers_are_drawn_evenly_up_to_the_last_but_one():
    drawn = rows.integers(3, 7, (4, 5000), drawing())
    assert drawn.dtype == torch.int64 and drawn.shape == (4, 5000)
    values, counts = drawn.unique(return_counts=True)
    assert values.tolist() == [3, 4, 5, 6] and (counts - 5000).abs().max() < 300
    low, high = torch.tensor([0, 5]), torch.tensor([1, 8])
    columns = rows.integers(low, high, (2000, 2), drawing())
    assert columns[:, 0].unique().tolist() == [0] and columns[:, 1].unique().tolist() == [5, 6, 7]
    picked, often = rows.among((9, 2, 2), [6000], drawing()).unique(return_counts=True)
    assert picked.tolist() == [2, 9] and abs(often[0] - 4000) < 200


def test_what_is_not_allowed_is_drawn_anew_and_nothing_is_drawn_for_nothing():
    generator, x = drawing(), torch.arange(6).repeat(500, 1)
    before = generator.get_state()
    assert torch.equal(rows.redrawn(x, range(6), generator), x)
    assert torch.equal(generator.get_state(), before)
    changed = rows.redrawn(x, (1, 4), generator)
    assert changed[:, [1, 4]].unique(dim=0).tolist() == [[1, 4]]
    anew = changed[:, [0, 2, 3, 5]]
    assert anew.unique().tolist() == [1, 4] and abs((anew == 1).double().mean() - 0.5) < 0.05


def test_indices_are_drawn_so_that_each_value_is_as_likely():
    values = torch.tensor([7, 7, 2, 7, 0, 2])
    index = rows.evenly(torch.rand(30_000, generator=drawing()), values)
    share = index.bincount(minlength=6) / 30_000
    wanted = torch.tensor([1 / 9, 1 / 9, 1 / 6, 1 / 9, 1 / 3, 1 / 6])
    assert (share - wanted).abs().max() < 0.01
    ends = rows.evenly(torch.tensor([0.0, 1 - 1e-7, 0.9999999]), values)
    assert ends.tolist() == [0, 5, 5]
    halves = rows.evenly(torch.tensor([0.0, 0.4999, 0.5]), torch.tensor([7, 2]))
    assert halves.tolist() == [0, 0, 1]  # the lower end of a value's part is its own
    last = torch.tensor([1 - 2.0**-53], dtype=torch.float64)
    assert all(rows.evenly(last, torch.arange(n)).item() == n - 1 for n in range(1, 99))


def test_every_row_is_permuted_by_one_of_all_permutations():
    x = torch.tensor([[0, 1, 2, 2]]).repeat(3000, 1)
    permuted = rows.permuted(x, 3, drawing())
    assert torch.equal(permuted[:, 2], permuted[:, 3])
    found, often = permuted.unique(dim=0, return_counts=True)
    assert len(found) == 6 and (often - 500).abs().max() < 100
    assert all(sorted(row[:3]) == [0, 1, 2] for row in found.tolist())


def test_what_is_so_of_all_examples_up_to_one_is_found_by_looking_at_each():
    x = torch.randint(3, (90, 5), generator=drawing())
    asked = torch.rand(90, 5, generator=drawing(1)) < 0.6
    asked[:, 0] |= ~asked.any(1)  # about something at least
    all_ones, same = rows.all_so_far(x == 1, asked), rows.same_so_far(x, asked)
    met = rows.met_before(x)
    for row in range(90):
        for end in range(5):
            seen = [x[row, at].item() for at in range(end + 1) if asked[row, at]]
            assert all_ones[row, end] == all(value == 1 for value in seen)
            assert same[row, end] == (len(set(seen)) <= 1)
            assert met[row, end] == (x[row, end] in x[row, :end])


def test_the_nearest_allowed_point_is_found_by_looking_at_each():
    points = torch.randint(6, (60, 2), generator=drawing())
    others = torch.randint(6, (9, 2), generator=drawing(1))
    allowed = torch.rand(60, 9, generator=drawing(2)) < 0.3
    found = rows.nearest(points, others, allowed).tolist()
    assert -1 in found
    for point, index, may in zip(points.tolist(), found, allowed.tolist()):
        steps = {
            at: (abs(point[0] - x) + abs(point[1] - y), abs(point[1] - y))
            for at, (x, y) in enumerate(others.tolist())
            if may[at]
        }
        assert (index == -1) == (not steps)
        if steps:  # fewest steps; among these the fewest of the second number
            assert steps[index] == min(steps.values())


# ---------------------------------------------------------------- memory


class Peak(TorchDispatchMode):
    """The most bytes that tensors made inside have held at once."""

    def __init__(self):
        super().__init__()
        self.held, self.now, self.most = {}, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.note(tensor.untyped_storage())
        self.most = max(self.most, self.now)
        return out

    def note(self, storage):
        place = storage.data_ptr()
        if place and place not in self.held:
            self.held[place] = storage.nbytes()
            self.now += storage.nbytes()
            weakref.finalize(storage, self.free, place)

    def free(self, place):
        self.now -= self.held.pop(place)


WIDE = {  # where most of a row's memory goes: the shape, the positions, what is counted for a row
    "the stream": ({"d_model": 128}, 6, 6 * (8 * 128 + 8 * 3 * 4 + 2 * 6 + 3 * 6) + 2 * 9),
    "an MLP": ({"d_mlp": 300}, 6, 6 * (8 * 8 + 8 * 3 * 4 + 2 * 300 + 3 * 6) + 2 * 9),
    "a gated MLP": (
        {"d_mlp": 300, "gated_mlp": True, "act_fn": "silu"},
        6,
        6 * (8 * 8 + 8 * 3 * 4 + 4 * 300 + 3 * 6) + 2 * 9,
    ),
    "no MLP": (
        {"act_fn": "none", "d_mlp": 300, "d_head": 64},
        6,
        6 * (8 * 8 + 8 * 3 * 64 + 3 * 6) + 2 * 9,
    ),
    "tokens": ({"d_vocab": 900}, 2, 2 * (8 * 8 + 8 * 3 * 4 + 2 * 6 + 3 * 2) + 2 * 900),
}


@pytest.mark.parametrize("what", WIDE)
def test_a_row_takes_no_more_than_is_counted_for_it(what):
    changes, n_pos, numbers = WIDE[what]
    model = Transformer(replace(SHAPE, **changes)).requires_grad_(False)
    prompts = tokens(2, 8, n_pos)
    patcher = PathPatcher(model, *prompts, torch.zeros(8).long(), torch.ones(8).long())
    assert patcher.budget.row_bytes(n_pos) == 4 * numbers
    counted = 8 * len(patcher.senders) * 4 * numbers
    most = 0
    for receiver in (Logits(), Resid(1)):
        gc.collect()  # what earlier tests left is not freed meanwhile
        with Peak() as peak:
            patcher.sweep(receiver)
        most = max(most, peak.most)
    assert counted / 8 < most < counted


def test_bytes_are_those_of_the_stream_and_half_precision_needs_both():
    for dtype, factor in ((torch.float32, 1), (torch.float64, 2), (torch.bfloat16, 2)):
        budget = MemoryBudget(Transformer(SHAPE).to(dtype), POS)
        single = MemoryBudget(Transformer(SHAPE), POS)
        assert budget.row_bytes(POS) == factor * single.row_bytes(POS)
        cached = 2 if dtype == torch.float64 else 1  # the stream of bfloat16 is float32
        assert budget.cache_bytes() == cached * single.cache_bytes()


def on_cuda(gib=None, free=8 * GIB, n_pos=POS):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 100 * GIB))
        model = SimpleNamespace(cfg=SHAPE, device=torch.device("cuda"), dtype=torch.float32)
        return MemoryBudget(model, n_pos, gib)


def test_on_cuda_a_quarter_of_what_is_free_is_used_and_both_runs_are_stacked():
    budget = on_cuda()
    assert budget.half == budget.for_rows == GIB  # a quarter of 8 GiB, in two halves
    assert on_cuda(0.5).half == on_cuda(0.5).for_rows == GIB / 4
    plain = MemoryBudget(Transformer(SHAPE), POS, 2)
    assert plain.half == GIB and plain.for_rows == 2**27 and not plain.stacked
    of_cache = POS * ((6 * 2 + 4) * 8 + 8 * 2 * 3 * 4) + 2 * 9
    assert budget.cache_bytes() == 4 * of_cache
    assert plain.cache_bytes() == 4 * (POS * ((4 * 2 + 3) * 8 + 5 * 2 * 3 * 4) + 2 * 9)
    rows, one = GIB // budget.row_bytes(POS), budget.cache_bytes()
    assert budget.prompt_ranges(range(10**6))[0].stop == min(rows // 2, GIB // one // 2)
    whole = budget.prompt_ranges(range(GIB // one))  # of which all runs are kept
    assert whole[0].stop == rows // 2 < GIB // one
    least = 2 * budget.row_bytes(POS) + budget.cache_bytes()
    on_cuda(least / GIB)
    with pytest.raises(ValueError, match="too small for one row"):
        on_cuda((least - 8) / GIB)


def test_a_chunk_is_never_empty_and_never_beyond_the_prompts():
    plain = MemoryBudget(Transformer(SHAPE), POS)
    budget = MemoryBudget(Transformer(SHAPE), POS, 2.1 * plain.cache_bytes() / GIB)
    assert budget.prompt_ranges(range(2, 5)) == [slice(2, 3), slice(3, 4), slice(4, 5)]
    assert budget.prompt_ranges(range(0)) == []
    assert budget.row_ranges(3, 10**9, POS) == [slice(i, i + 1) for i in range(3)]


# ---------------------------------------------------------------- answers, intervals


@pytest.mark.parametrize("n", [1, 7, 100, 10_000])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_the_ends_of_an_interval_are_196_standard_errors_from_what_was_seen(share, n):
    """Each end p is the share of which what was seen is 1.96 of p's own standard errors away."""
    low, high = evaluation.wilson(share, n)
    assert 0 <= low <= share <= high <= 1
    for p in (low, high):
        away = abs(p - share) / math.sqrt(p * (1 - p) / n) if 0 < p < 1 else 1.96
        slack = 2e-4 / math.sqrt(p * (1 - p) / n) if 0 < p < 1 else 0
        assert away == pytest.approx(1.96, abs=0.01 + slack * 2)
    assert (low == 0) == (share == 0) and (high == 1) == (share == 1)
    assert [round(end, 4) for end in (low, high)] == [low, high]


def test_intervals_of_a_coin_are_those_of_the_binomial_distribution():
    """Of 20 tosses with as many heads as tails: 2.5 % below 6, 97.5 % not above 14."""
    coin = torch.tensor([[0.0, 1.0] * 10])
    assert evaluation.bootstrap(coin) == [[0.3, 0.7]]
    assert evaluation.bootstrap(10 * coin, torch.full((20,), 4.0)) == [[0.75, 1.75]]


def test_the_draws_of_intervals_are_those_behind_the_committed_results():
    values = torch.arange(10.0)[None] ** 2 / 7
    counts = np.random.default_rng(0).multinomial(10, [0.1] * 10, 2000)
    means = sorted(counts @ values[0].numpy().astype(float) / 10)
    # of 2000 in order, the 2.5 % point lies 49.975 places after the first
    ends = [
        means[at] + part * (means[at + 1] - means[at]) for at, part in ((49, 0.975), (1949, 0.025))
    ]
    assert evaluation.bootstrap(values) == [[round(end, 5) for end in ends]]


def test_prompts_are_run_by_the_512_and_all_at_once_where_hooks_see_them(monkeypatch):
    model = Transformer(SHAPE)
    prompts, sizes = tokens(1030, 3), []
    whole_run = Transformer.forward

    def noted(model, given, positions=None, hooks=None):
        assert torch.as_tensor(positions).tolist() == [2]
        sizes.append(len(given))
        return whole_run(model, given, positions, hooks)

    monkeypatch.setattr(Transformer, "forward", noted)
    found = evaluation.last_logits(model, prompts)
    assert sizes == [512, 512, 6] and found.shape == (1030, 9) and not found.requires_grad
    hooks = evaluation.Hooks({"hook_embed": lambda x, name: x})
    assert_close(evaluation.last_logits(model, prompts, hooks), found, rtol=0, atol=1e-5)
    assert sizes[3:] == [1030]


def test_an_answer_is_the_largest_logit_of_its_own_prompt(model):
    wanted = model(BASE)[:, -1].argmax(-1)
    wrong = torch.where(torch.arange(N) == 1, (wanted + 1) % 9, wanted)
    right = evaluation.answers_right(model, BASE, wrong)
    assert right.tolist() == [1, 0, 1, 1, 1] and right.dtype == torch.float64
    finite = torch.tensor([[1.0, -math.inf], [0.0, 0.0]])
    assert evaluation.finite(finite) is finite
    with pytest.raises(FloatingPointError):
        evaluation.finite(torch.tensor([[1.0, 2.0], [math.nan, 0.0]]))


def test_the_prompts_of_a_table_are_drawn_in_order_by_seed_2025(monkeypatch):
    model = Transformer(replace(SHAPE, d_vocab=len(tasks.VOCABULARY), n_ctx=32))
    asked, drawn = [], drawing(2025)
    monkeypatch.setattr(
        evaluation,
        "answers_right",
        lambda model, prompts, answers: (
            asked.append((prompts, answers)),
            torch.tensor([1.0, 1.0, 0.0]),
        )[1],
    )
    table = evaluation.accuracy_by_shots(model, tasks, ["caesar", "addition"], [1, 2], 3 * 8)
    monkeypatch.undo()
    for task, n in (("caesar", 3), ("addition", 24)):
        for k in tasks.TASKS[task].ks:
            for shots in (1, 2):
                wanted = tasks.evaluation_pairs(task, k, shots, n, drawn)
                prompts, answers = asked.pop(0)
                assert torch.equal(prompts, wanted.contrast)
                assert torch.equal(answers, wanted.contrast_answers)
            assert table[task][str(k)] == {"1": 0.6667, "2": 0.6667}
    assert not asked and list(table) == ["caesar", "addition"]


# ---------------------------------------------------------------- products, settings of torch


class OnCuda(torch.Tensor):
    """Says that it is on a GPU."""

    is_cuda = True


@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 5, 7)], ids=str)
def test_on_cuda_a_product_is_two_of_half_precision_summed_up_in_the_stream_s(shape, monkeypatch):
    factors = []

    def mm(a, b, out_dtype):
        factors.append((a.dtype, b.dtype, tuple(a.shape)))
        return a.to(out_dtype) @ b.to(out_dtype)

    x, weight = torch.randn(*shape, generator=drawing()), torch.randn(7, 4, generator=drawing(1))
    weight = weight.bfloat16()
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(torch, "mm", mm)
        patch.setattr(products, "SUMS_WIDER", True)
        found = products.product(x.as_subclass(OnCuda), weight).as_subclass(torch.Tensor)
        assert len(factors) == 2
        assert {kind for *kinds, _ in factors for kind in kinds} == {torch.bfloat16}
        assert factors[0][2] == (math.prod(shape[:-1]), 7)
        patch.setattr(products, "SUMS_WIDER", False)
        assert_close(products.product(x, weight), found)
        assert len(factors) == 2
    assert found.dtype == torch.float32 and found.shape == (*shape[:-1], 4)
    assert_close(found, x @ weight.float(), rtol=0, atol=1e-3)


def test_a_stream_has_float32_at_least():
    kinds = {torch.float16: torch.float32, torch.bfloat16: torch.float32}
    kinds |= {torch.float32: torch.float32, torch.float64: torch.float64}
    for given, wanted in kinds.items():
        assert products.in_stream(torch.zeros(1, dtype=given)).dtype == wanted


def said():
    there = torch.empty(0)
    on = torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")
    return there.dtype, there.device.type, *on, torch.is_inference_mode_enabled()


SET = {
    "dtype": lambda: torch.set_default_dtype(torch.float64),
    "device": lambda: torch.device("meta"),
    "autocast on a CPU": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference": torch.inference_mode,
}


@pytest.mark.parametrize("what", SET)
@pytest.mark.parametrize("grad", [True, False])
def test_whatever_is_set_is_plain_inside_and_set_again_afterwards(what, grad):
    assert nothing_set() and said() == (torch.float32, "cpu", False, False, False)
    seen = []

    @settled
    def look(number, *, fails=False):
        """Looks."""
        seen.append((*said(), torch.is_grad_enabled()))
        if fails:
            raise ZeroDivisionError
        return number + 1

    assert look.__doc__ == "Looks."
    try:
        with torch.set_grad_enabled(grad):
            entered = SET[what]()
            with entered or plain_if_none():
                outside = said(), torch.is_grad_enabled()
                assert not nothing_set() and look(1) == 2
                with pytest.raises(ZeroDivisionError):
                    look(1, fails=True)
                assert (said(), torch.is_grad_enabled()) == outside
    finally:
        torch.set_default_dtype(torch.float32)
    wanted = grad and what != "inference"
    assert seen == 2 * [(torch.float32, "cpu", False, False, False, wanted)]
    assert look(5) == 6 and nothing_set()


def plain_if_none():
    return torch.set_grad_enabled(torch.is_grad_enabled())


def test_plain_torch_needs_nothing_to_have_been_set():
    with plain_torch():
        assert nothing_set() and torch.is_grad_enabled()


# ---------------------------------------------------------------- shared streams


def test_streams_are_kept_for_those_used_last_and_the_last_layer_for_one_position(model):
    z = shared_streams.z_of_layers(model, BASE)
    assert [list(x.shape) for x in z] == [[N, POS, 3, 4], [N, 1, 3, 4]]
    _, cache = model.run_with_cache(BASE)
    assert_close(z[0], cache["blocks.0.attn.hook_z"], rtol=0, atol=1e-5)
    assert_close(z[1], cache["blocks.1.attn.hook_z"][:, -1:], rtol=0, atol=1e-5)
    shared = shared_streams.SharedStreams(model, CONTRAST, {"base": z})
    assert shared.most_kept == 64 * 2**20 // (2 * N * POS * 8 * 4)
    everywhere = tuple(range(POS))
    shared.logits([[(0, 1)], [(1, 0)], [(0, 1), (1, 2)], []], "base", everywhere)
    # the lowest block, and the last one above nothing and above 0.1
    assert len(shared.kept) == 3
    assert {x.shape[1] for (_, below), (_, x) in shared.kept.items() if below} == {1}
    shared.most_kept = 2
    shared.logits([[(0, 2)]], "base", everywhere)
    assert (
        len(shared.kept) == 2
        and [below for _, below in shared.kept] == [((),), ((2,),)]
        or ([below for _, below in shared.kept] == [(), ((2,),)])
    )


def test_a_pass_is_of_few_prompts_on_a_cpu():
    assert shared_streams.prompts_in_a_pass(Transformer(SHAPE)) == 128
    there = SimpleNamespace(device=torch.device("cuda"))
    assert shared_streams.prompts_in_a_pass(there) == 512


def test_streams_of_more_prompts_than_a_pass_are_those_of_each(model, monkeypatch):
    z = shared_streams.z_of_layers(model, BASE)
    groups, everywhere = [[(0, 0), (1, 1)], [], [(0, 2)]], tuple(range(POS))
    whole = shared_streams.SharedStreams(model, CONTRAST, {"base": z})
    wanted = whole.logits(groups, "base", everywhere)
    assert_close(wanted[1], model(CONTRAST)[:, -1], rtol=0, atol=1e-5)
    monkeypatch.setattr(shared_streams, "prompts_in_a_pass", lambda model: 2)
    monkeypatch.setattr(shared_streams, "KEPT_BYTES", 0)
    passes = shared_streams.SharedStreams(
        model, CONTRAST, {"base": shared_streams.z_of_layers(model, BASE)}
    )
    assert passes.most_kept == 16
    assert_close(passes.logits(groups, "base", everywhere), wanted, rtol=0, atol=1e-5)
    for source in (z, [x.mean(0, keepdim=True) for x in z]):
        sent = {"base": source}
        many = shared_streams.SharedStreams(model, CONTRAST, sent)
        monkeypatch.setattr(shared_streams, "prompts_in_a_pass", lambda model: 99)
        one = shared_streams.SharedStreams(model, CONTRAST, sent)
        for positions in ((POS - 1,), (0, 2)):
            given = groups, "base", positions
            assert_close(many.logits(*given), one.logits(*given), rtol=0, atol=1e-5)


# ---------------------------------------------------------------- names, tables, text


def test_nodes_are_named_by_layer_and_index_and_stand_in_the_models_order():
    assert names.parse("10.2") == (10, 2)
    for wrong in ("3", "3.1.q", "3.1 ", "-1.0", "3.-1", ".1", "mlp3", "", "3,1", "3.1\n"):
        with pytest.raises(ValueError, match="heads are named like '3.1'"):
            names.parse(wrong)
    given = ["mlp10", "2.3", "mlp2", "embedding", "10.0", "2.11", "mlp2", "2.3"]
    assert names.heads_of(given) == ["2.3", "2.11", "10.0"]
    assert names.mlps_of(given) == ["mlp2", "mlp10"]


def test_a_table_is_as_wide_as_its_widest_text():
    lines = [["a", 0.5, None, 3], ["longer", -12.0, "xyz", 12345]]
    assert tables.table(["head", "r", "s", "n"], lines, digits=1) == [
        "head           r     s       n",
        "  a          0.5     –       3",
        "  longer   -12.0   xyz   12345",
    ]
    both = tables.table(["head", "name", "n"], [["a", "b", 1], ["c", "long one", 22]], left=2)
    assert both == ["head   name        n", "  a    b           1", "  c    long one   22"]
    assert tables.table(["a", "b"], [["x", 0.12345]])[1] == "  x   0.123"
    assert tables.words("function_induction_score") == "function induction score"


def test_floats_are_rounded_wherever_they_stand_and_nothing_else():
    given = {"a": [1.23456, {"b": -0.00006}], "n": 123456, "s": "1.23456", "t": None, "f": True}
    wanted = {"a": [1.2346, {"b": -0.0001}], "n": 123456, "s": "1.23456", "t": None, "f": True}
    assert tables.rounded(given) == wanted and tables.rounded(1.005, 1) == 1.0
    assert given["a"][0] == 1.23456 and tables.rounded([True, 7]) == [True, 7]
    assert tables.rounded(True) is True and type(tables.rounded(7)) is int


def test_a_line_is_wrapped_four_columns_further_in(monkeypatch):
    monkeypatch.setenv("COLUMNS", "12")
    assert tables.wrapped("aaaa bbbb cccc") == "aaaa bbbb\n    cccc"
    assert tables.wrapped("  aaaa bbbb cccc") == "  aaaa bbbb\n      cccc"
    assert tables.fitted(["aaaa bbbb cccc", "d"]) == "aaaa bbbb\n    cccc\nd"
    monkeypatch.delenv("COLUMNS")
    monkeypatch.setattr(tables.shutil, "get_terminal_size", lambda: SimpleNamespace(columns=80))
    assert len(tables.wrapped("aaa " * 20).splitlines()[0]) == 79


def test_a_token_beyond_the_vocabulary_goes_by_its_number():
    named = [vocabulary.token_name(["a", "b"], token) for token in (0, 1, 2, -1)]
    assert named == ["a", "b", "token 2", "token -1"]
    assert vocabulary.token_name(["a", "b"], torch.tensor(1)) == "b"


KNOWN = {word: at for at, word in enumerate([*"0123", "-1", *"abc+-=;_", "max", "caesar"])}
EXAMPLES = {
    "1+2=3, 2+1=": ["1", "+", "2", "=", "3", ";", "2", "+", "1", "="],
    "1 + 2 = 3;2+1=3": ["1", "+", "2", "=", "3", ";", "2", "+", "1", "=", "3", ";"],
    "<bos>\n1+2=3\n\na caesar=b,": [
        "1",
        "+",
        "2",
        "=",
        "3",
        ";",
        "a",
        "caesar",
        "_",
        "=",
        "b",
        ";",
    ],
    "1 max _=": ["1", "max", "_", "="],
    "-1+2=": ["-1", "+", "2", "="],
    "1 3 2=b": ["1", "3", "2", "=", "b", ";"],
}
REFUSED = {
    "99+1=2": "'99' is not known; known: + - _ max caesar, letters a to z, numbers -1 to 3",
    "1+2=7": "'7' is not known",
    "2*2=": "'*' is not known",
    "1+2": "an example is x, what to do, y",
    "1+2=, 1+1=2": "only the last example may lack its answer, and the one before it does",
    "1+2=, 1+1=": "only the last example may lack its answer",
    " , ;": "cannot read an empty prompt: write examples like 1+1=3",
}


def test_examples_are_read_word_by_word():
    strings = list(KNOWN)
    for text, wanted in EXAMPLES.items():
        assert [strings[token] for token in vocabulary.read_examples(text, KNOWN)] == wanted
    for text, told in REFUSED.items():
        with pytest.raises(ValueError) as caught:
            vocabulary.read_examples(text, KNOWN)
        assert told in str(caught.value), text
    with pytest.raises(ValueError, match=r"^cannot read '99\+1=': '99' is"):
        vocabulary.read_examples("1+1=2, 99+1=", KNOWN)
    with pytest.raises(ValueError) as caught:
        vocabulary.read_examples("9" * 50 + "+1=", KNOWN)
    assert str(caught.value).startswith(f"cannot read '{'9' * 39}: '{'9' * 19} is not known")


# ---------------------------------------------------------------- devices, settings


def test_a_device_is_the_best_or_the_one_that_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert flags.pick_device("cpu").type == "cpu" and flags.pick_device("mps").type == "mps"
    says = "^device 'x' is not available here; there is: cuda, cpu, cuda:0$"
    with pytest.raises(UserError, match=says):
        flags.pick_device("x", float64=True)


def test_tensors_are_read_onto_the_cpu_wherever_they_were(tmp_path, monkeypatch):
    path = tmp_path / "file"
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        files.save_tensors(path, {"a": torch.ones(2)})
    assert files.load_tensors(path)["a"].device.type == "cpu"


@pytest.mark.parametrize("config", [[], None, {}, {"model": {}, "train": {}, "diet": {}}], ids=str)
def test_a_config_without_its_parts_cannot_go_on(tmp_path, config):
    files.save_json(tmp_path / "config.json", config)
    defaults = {"model": SHAPE, "train": SHAPE, "diet": tasks.DEFAULT_DIET}
    asked = SimpleNamespace(resume=True, out=str(tmp_path))
    with pytest.raises(UserError, match=f"^{tmp_path}/config.json"):
        settings.chosen_settings(asked, defaults, tasks.DIETS, ["a"])


def test_the_parts_that_a_model_lacks_are_not_said():
    plain = settings.shape_of(SHAPE)
    parts = {"n_kv_heads", "gated_mlp", "tied_embeddings", "qkv_bias", "rotary_divisors"}
    assert not parts & plain.keys()
    more = replace(SHAPE, n_kv_heads=3, gated_mlp=True, act_fn="silu", qkv_bias=True)
    assert settings.shape_of(more).keys() - plain.keys() == {"n_kv_heads", "gated_mlp", "qkv_bias"}
    assert settings.added_parts(more) == ["n_kv_heads", "gated_mlp", "qkv_bias", "silu"]
    scaled = replace(SHAPE, rotary_divisors=(1.0,) * (SHAPE.d_head // 2))
    assert settings.added_parts(scaled) == ["rotary_divisors"]
    assert settings.added_parts(SHAPE) == []
    assert settings.as_json({"a": (1, (2,)), 3: None}) == {"a": [1, [2]], "3": None}


# ---------------------------------------------------------------- models of others

LLAMA = {"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA |= {"hidden_size": 8, "intermediate_size": 6, "vocab_size": 9, "rms_norm_eps": 1e-5}
LLAMA |= {"max_position_embeddings": 16}


def test_a_config_of_others_becomes_ours_field_by_field():
    ours = ModelConfig(
        n_layers=2,
        n_heads=2,
        n_kv_heads=2,
        d_model=8,
        d_head=4,
        d_mlp=6,
        d_vocab=9,
        n_ctx=16,
        eps=1e-5,
        rotary_base=10000.0,
        act_fn="silu",
        gated_mlp=True,
    )
    assert pretrained.model_config(LLAMA) == ours
    more = {"num_key_value_heads": 1, "head_dim": 6, "tie_word_embeddings": True}
    more |= {"rope_scaling": {"rope_theta": 500.0}, "rope_parameters": None, "hidden_act": "silu"}
    found = pretrained.model_config(LLAMA | more)
    changes = {"n_kv_heads": 1, "d_head": 6, "tied_embeddings": True, "rotary_base": 500.0}
    assert found == replace(ours, **changes)
    assert pretrained.model_config(LLAMA | {"model_type": "qwen2"}) == replace(ours, qkv_bias=True)
    assert pretrained.model_config(LLAMA | {"model_type": "mistral"}) == ours


NOT_OURS = [
    {"attention_bias": True},
    {"mlp_bias": 1.5},
    {"hidden_act": "gelu"},
    {"rope_scaling": {"rope_type": "yarn"}},
    {"original_max_position_embeddings": 8},
    {"factor": 2.0},
    {"quantization_config": {"bits": 4}},
    {"num_local_experts": 8},
    {"final_logit_softcapping": 30.0},
    {"sliding_window": 15},
    {"use_qk_norm": True},
]


@pytest.mark.parametrize("change", NOT_OURS, ids=str)
def test_what_our_model_does_not_compute_is_refused_by_its_name(change):
    (name,) = change
    says = {"rope_scaling": "rope.rope_type says, 'yarn'"}.get(name, name)
    with pytest.raises(ValueError, match=says):
        pretrained.model_config(LLAMA | change)


def test_another_family_and_more_scaling_are_refused_too():
    with pytest.raises(ValueError, match="^its architecture, 'gpt2', is none of llama, mistral,"):
        pretrained.model_config(LLAMA | {"model_type": "gpt2"})
    with pytest.raises(ValueError, match="what rope.factor says, 2.0"):
        pretrained.model_config(LLAMA | {"rope_scaling": {"factor": 2.0}})


def test_llama_31_divides_frequencies_from_one_up_to_its_factor():
    """d_head 4, base 100: the pairs turn n_first / 2 pi times, and a tenth of that."""
    names = ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor", "factor")
    for n_turns, low, high, factor, wanted in (
        (10, 1, 4, 8, (1.0, 8.0)),
        (50, 1, 4, 8, (1.0, 1.0)),
        (0.5, 1, 4, 8, (8.0, 8.0)),
        (25, 1, 4, 2, (1.0, 1 / 0.75)),
        (2, 0.1, 2.1, 4, (1 / (0.95 + 0.05 / 4), 1 / (0.05 + 0.95 / 4))),
    ):
        said = dict(zip(names, (2 * math.pi * n_turns, low, high, factor)))
        rope = {"rope_type": "llama3", "rope_theta": 100.0} | said
        found = pretrained.model_config(LLAMA | {"rope_parameters": rope}).rotary_divisors
        assert found == pytest.approx(wanted, rel=1e-12)


def test_what_changes_nothing_is_taken():
    same = [{"attention_bias": False}, {"rope_scaling": {"rope_type": "default", "factor": 1}}]
    same += [{"sliding_window": 16}, {"sliding_window": 4, "use_sliding_window": False}]
    same += [{"quantization_config": None}, {"num_local_experts": 0}, {"eos_token_id": 3}]
    for change in same:
        assert pretrained.model_config(LLAMA | change) == pretrained.model_config(LLAMA)


def test_a_tokenizer_puts_its_first_tokens_before_a_text():
    inner = SimpleNamespace(
        model=None,
        normalizer=None,
        encode=lambda text: SimpleNamespace(ids=[len(text)], tokens=[text], offsets=[(0, 3)]),
        decode=lambda ids, skip_special_tokens: f"{ids}{skip_special_tokens}",
    )
    two = tokenizer.Tokenizer(inner, (7, 8))
    assert two.encode("abc") == [7, 8, 3] and two.string(5) == "[5]False"
    assert tokenizer.Tokenizer(inner).encode("abc") == [3]
    with pytest.raises(FrozenInstanceError):
        two.first = ()


def as_theirs(name, view):
    """A weight as it stands in their files: [out, in], or one axis for norms and biases."""
    one_axis = name.endswith(("norm.weight", "bias"))
    return view.detach().reshape([-1] if one_axis else [-1, view.shape[-1]]).clone()


def gguf_with(monkeypatch, tmp_path, family="llama", rope_freqs=None, **changes):
    """A file as the package gguf would read it: its values, and float32 numbers of each weight."""
    model = Transformer(pretrained.model_config(LLAMA | {"model_type": family}), drawing(4))
    own = {
        "block_count": 2,
        "attention.head_count": 2,
        "attention.head_count_kv": 2,
        "embedding_length": 8,
        "attention.key_length": 4,
        "attention.value_length": 4,
        "rope.dimension_count": 4,
        "feed_forward_length": 6,
        "context_length": 16,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    values = {"general.architecture": family, "tokenizer.ggml.model": "x"}
    values |= {f"{family}.{name}": x for name, x in own.items()} | changes
    source = SimpleNamespace(column=1, halves=family == "qwen2")
    views, path, tensors, at = pretrained.views(model, source), tmp_path / "m.gguf", [], 32
    with open(path, "wb") as file:
        file.write(b"\0" * 32)
        for name, view in views.items():
            flat = as_theirs(name, view).numpy()
            file.write(flat.tobytes())
            shape = np.array(flat.shape[::-1])
            there = {"name": name, "shape": shape, "data": flat, "data_offset": at}
            tensors.append(SimpleNamespace(**there, tensor_type=0))
            at += flat.nbytes
        if rope_freqs is not None:
            file.write(rope_freqs.tobytes())
            there = {"name": "rope_freqs.weight", "shape": np.array(rope_freqs.shape)}
            there |= {"data": rope_freqs, "data_offset": at}
            tensors.append(SimpleNamespace(**there, tensor_type=0))
    fields = {name: SimpleNamespace(contents=lambda x=x: x) for name, x in values.items()}
    package = SimpleNamespace(
        GGUFReader=lambda path: SimpleNamespace(fields=fields, tensors=tensors),
        dequantize=lambda data, kind: np.array(data),
    )
    monkeypatch.setattr(pretrained, "optional_package", lambda name: package)
    monkeypatch.setattr(pretrained, "gguf_tokenizer", lambda values: None)
    return path, model


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_gguf_file_gives_each_weight_its_place(monkeypatch, tmp_path, family):
    path, wanted = gguf_with(monkeypatch, tmp_path, family)
    model, _ = pretrained.load_pretrained(path)
    assert model.cfg == wanted.cfg and not model.training
    for name, weight in wanted.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    assert not any(weight.requires_grad for weight in model.parameters())
    assert pretrained.load_pretrained(path, torch.bfloat16)[0].dtype == torch.bfloat16


def test_a_gguf_files_rope_freqs_are_what_frequencies_are_divided_by(monkeypatch, tmp_path):
    divisors = np.array([1.0, 2.5], "float32")
    path, wanted = gguf_with(monkeypatch, tmp_path, rope_freqs=divisors)
    model, _ = pretrained.load_pretrained(path)
    assert model.cfg == replace(wanted.cfg, rotary_divisors=(1.0, 2.5))
    assert_close(model.state_dict(), wanted.state_dict(), rtol=0, atol=0)
    for wrong in (divisors[:1], divisors * 0, divisors * np.nan):
        path, _ = gguf_with(monkeypatch, tmp_path, rope_freqs=wrong)
        with pytest.raises(UserError, match=f"^{path} holds no model of ours: .*rotary_divisors"):
            pretrained.read_config(path)


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"llama.rope.dimension_count": 2}, "rope.dimension_count is 2, where head_dim is 4"),
        ({"llama.attention.value_length": 2}, "llama.attention.value_length is 2, where head_dim"),
        ({"llama.rope.scaling.factor": 2.0}, "rope.scaling.factor"),
        ({"general.architecture": "gpt2"}, "KeyError|'gpt2'|num_attention_heads"),
        ({"llama.feed_forward_length": 7}, "ffn_.*must be of shape"),
        ({"llama.block_count": 3}, "blk.2.* is missing"),
        ({"llama.block_count": 1}, "our model has no part for the tensor blk.1"),
    ],
    ids=str,
)
def test_a_gguf_file_that_contradicts_itself_is_refused(monkeypatch, tmp_path, changes, says):
    path, _ = gguf_with(monkeypatch, tmp_path, **changes)
    with pytest.raises(UserError, match=f"^{path} holds no model of ours: .*({says})"):
        pretrained.read_config(path)


class Opened:
    """A file of tensors, as the package safetensors opens it."""

    def __init__(self, path, kind):
        assert kind == "pt"
        self.held = torch.load(io.BytesIO(Path(path).read_bytes()))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def keys(self):
        return list(self.held)

    def get_slice(self, name):
        return SimpleNamespace(get_shape=lambda: list(self.held[name].shape))

    def get_tensor(self, name):
        return self.held[name]


def folder_with(monkeypatch, tmp_path, parts=1, left_out=(), **more):
    """A folder as transformers writes it: each weight [out, in], rotary pairs in halves."""
    model = Transformer(pretrained.model_config(LLAMA), drawing(4))
    source, state = SimpleNamespace(column=0, halves=True), {}
    for name, view in pretrained.views(model, source).items():
        state[name] = as_theirs(name, view)
    state = {name: x for name, x in state.items() if name not in left_out} | more
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(3)
    files.save_json(tmp_path / "config.json", LLAMA)
    (tmp_path / "tokenizer.json").write_text("{}")
    if parts == 1:
        files.save_tensors(tmp_path / "model.safetensors", state)
    else:
        places = {name: f"{at % 2}.safetensors" for at, name in enumerate(state)}
        files.save_json(tmp_path / "model.safetensors.index.json", {"weight_map": places})
        for file in ("0.safetensors", "1.safetensors"):
            own = {name: x for name, x in state.items() if places[name] == file}
            files.save_tensors(tmp_path / file, own)
    calls = []
    inner = SimpleNamespace(
        no_truncation=lambda: calls.append("whole"), no_padding=lambda: calls.append("plain")
    )
    read = SimpleNamespace(from_file=lambda path: calls.append(path) or inner)
    packages = {"safetensors": SimpleNamespace(safe_open=Opened)}
    packages["tokenizers"] = SimpleNamespace(Tokenizer=read)
    monkeypatch.setattr(pretrained, "optional_package", packages.__getitem__)
    return model, calls


@pytest.mark.parametrize("parts", [1, 2])
def test_a_folder_gives_each_weight_its_place_in_one_file_or_several(monkeypatch, tmp_path, parts):
    wanted, calls = folder_with(monkeypatch, tmp_path, parts)
    model, its_tokenizer = pretrained.load_pretrained(str(tmp_path))
    for name, weight in wanted.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    assert calls == [str(tmp_path / "tokenizer.json"), "whole", "plain"]
    assert its_tokenizer.first == () and pretrained.read_config(tmp_path) == wanted.cfg


def test_a_weight_of_a_folder_is_out_by_in_with_rotary_pairs_in_halves(monkeypatch, tmp_path):
    model, _ = folder_with(monkeypatch, tmp_path)
    state, attn = Opened(tmp_path / "model.safetensors", "pt").held, model.blocks[1].attn
    for name, ours in (("q", attn.W_Q), ("k", attn.W_K)):
        rows = state[f"model.layers.1.self_attn.{name}_proj.weight"]
        for head, pair, half in product(range(2), range(2), range(2)):
            assert torch.equal(rows[4 * head + 2 * half + pair], ours[head, :, 2 * pair + half])
    value = state["model.layers.1.self_attn.v_proj.weight"]
    assert torch.equal(value.view(2, 4, 8), attn.W_V.mT)
    assert torch.equal(state["model.layers.1.self_attn.o_proj.weight"], attn.W_O.flatten(0, 1).T)
    assert torch.equal(state["lm_head.weight"], model.unembed.W_U.T)
    assert torch.equal(state["model.embed_tokens.weight"], model.embed.W_E)


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"left_out": ["model.norm.weight"]}, "the tensor model.norm.weight is missing"),
        ({"more": torch.ones(1)}, "our model has no part for the tensor more"),
        (
            {"lm_head.weight": torch.ones(8, 9)},
            r"lm_head.weight must be of shape \[9, 8\], not \[8, 9\]",
        ),
        (
            {"model.norm.weight": torch.ones(8, 1)},
            r"model.norm.weight must be of shape \[8\], not \[8, 1\]",
        ),
    ],
    ids=["missing", "too many", "another shape", "no norm"],
)
def test_a_folder_that_does_not_fit_is_refused_by_name(monkeypatch, tmp_path, changes, says):
    folder_with(monkeypatch, tmp_path, **changes)
    with pytest.raises(UserError, match=f"^{tmp_path}/config.json holds no model of ours: {says}$"):
        pretrained.load_pretrained(tmp_path)


def test_a_part_of_a_folder_that_is_missing_or_elsewhere_is_named(monkeypatch, tmp_path):
    folder_with(monkeypatch, tmp_path, 2)
    (tmp_path / "1.safetensors").unlink()
    with pytest.raises(UserError, match=f"^{tmp_path}/1.safetensors is missing$"):
        pretrained.read_config(tmp_path)
    (tmp_path / "sub").mkdir()
    files.save_tensors(tmp_path / "sub" / "1.safetensors", {})
    places = {"weight_map": {"a": "sub/1.safetensors"}}
    files.save_json(tmp_path / "model.safetensors.index.json", places)
    with pytest.raises(UserError, match="sub/1.safetensors is missing$"):
        pretrained.read_config(tmp_path)


GGUF = {
    "model": "gpt2",
    "pre": "gpt-2",
    "tokens": ["a", "b", "ab", "<s>", "<u>"],
    "token_type": [1, 1, 1, 3, 4],
    "merges": ["a b"],
    "bos_token_id": 3,
}


@pytest.mark.parametrize("kind", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
@pytest.mark.parametrize("first", [None, True, False])
def test_a_gguf_tokenizer_is_made_of_what_the_file_says(monkeypatch, kind, first):
    made = {}

    def bpe(vocabulary, merges, ignore_merges):
        made["bpe"] = vocabulary, merges, ignore_merges

    cut = SimpleNamespace(
        Split=lambda words, how: (words, how),
        ByteLevel=lambda **how: how,
        Sequence=lambda steps: steps,
    )
    package = SimpleNamespace(
        pre_tokenizers=cut,
        models=SimpleNamespace(BPE=bpe),
        decoders=SimpleNamespace(ByteLevel=lambda: "bytes"),
        Regex=str,
        Tokenizer=lambda model: SimpleNamespace(
            add_special_tokens=lambda tokens: made.update(special=tokens)
        ),
    )
    monkeypatch.setattr(tokenizer, "optional_package", lambda name: package)
    more = {} if first is None else {"add_bos_token": first}
    given = {f"tokenizer.ggml.{name}": x for name, x in (GGUF | {"pre": kind} | more).items()}
    found = tokenizer.gguf_tokenizer(given)
    ids = {"a": 0, "b": 1, "ab": 2, "<s>": 3, "<u>": 4}
    is_first = kind == "llama-bpe" if first is None else first
    assert made["bpe"] == (ids, [("a", "b")], kind == "llama-bpe")
    assert made["special"] == ["<s>", "<u>"] and found.first == ((3,) if is_first else ())
    *splits, last = found.inner.pre_tokenizer
    assert splits == [(words, "isolated") for words in tokenizer.WORDS[kind]]
    assert last == {"add_prefix_space": False, "use_regex": False}
    assert found.inner.decoder == "bytes"
    for wrong in ({"model": "bert"}, {"pre": "other"}):
        odd = given | {f"tokenizer.ggml.{name}": x for name, x in wrong.items()}
        with pytest.raises(ValueError, match="^its tokenizer, .* is none of llama, gpt2 gpt-2, s"):
            tokenizer.gguf_tokenizer(odd)


PIECES = {
    "model": "llama",
    "tokens": ["<unk>", "<s>", "<u>", "▁", "a", "b", "ab", "▁a", "▁ab", "aa"],
    "scores": [0.0, 0.0, 0.0, -7.0, -8.0, -9.0, -3.0, -1.0, -2.0, -3.0],
    "token_type": [2, 3, 4, 1, 1, 1, 1, 1, 1, 1],
    "bos_token_id": 1,
}


@pytest.mark.parametrize("first", [None, True, False])
@pytest.mark.parametrize("space", [None, True, False])
@pytest.mark.parametrize("unknown", [None, 2])
def test_pieces_of_text_are_merged_by_score(monkeypatch, first, space, unknown):
    """Of one token's halves, those with the longer left one first."""
    made = {}
    kinds = SimpleNamespace(
        Prepend=lambda text: ("before", text),
        Replace=lambda old, new: (old, new),
        Sequence=tuple,
        ByteFallback=lambda: "bytes",
        Fuse=lambda: "joined",
    )
    package = SimpleNamespace(
        models=SimpleNamespace(BPE=lambda *what, **how: made.update(what=what, how=how)),
        normalizers=kinds,
        decoders=kinds,
        Tokenizer=lambda model: SimpleNamespace(
            add_special_tokens=lambda tokens: made.update(special=tokens)
        ),
    )
    monkeypatch.setattr(tokenizer, "optional_package", lambda name: package)
    more = {"add_bos_token": first, "add_space_prefix": space, "unknown_token_id": unknown}
    more = {name: value for name, value in more.items() if value is not None}
    given = {f"tokenizer.ggml.{name}": value for name, value in (PIECES | more).items()}
    found = tokenizer.gguf_tokenizer(given)
    vocabulary, merges = made["what"]
    assert vocabulary == {string: token for token, string in enumerate(PIECES["tokens"])}
    assert merges == [("▁", "a"), ("▁a", "b"), ("▁", "ab"), ("a", "b"), ("a", "a")]
    says = {"unk_token": "<u>" if unknown else "<unk>", "fuse_unk": True, "byte_fallback": True}
    assert made["how"] == says and made["special"] == ["<unk>", "<s>", "<u>"]
    before = [] if space is False else [("before", "▁")]
    assert found.inner.normalizer == (*before, (" ", "▁"))
    assert found.inner.decoder == (("▁", " "), "bytes", "joined")
    assert found.first == (() if first is False else (1,))


def test_a_missing_package_or_file_is_one_line(tmp_path):
    assert pretrained.optional_package("json") is json
    says = "^this needs the package no_such_package, which is not installed here$"
    with pytest.raises(UserError, match=says):
        pretrained.optional_package("no_such_package")
    for path, file in ((tmp_path, tmp_path / "config.json"), (tmp_path / "x", tmp_path / "x")):
        with pytest.raises(UserError, match=f"^{file} is missing: name a Hugging Face folder"):
            pretrained.read_config(path)
