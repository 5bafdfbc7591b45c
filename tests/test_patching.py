import copy
import re

import pytest
import torch
from handwired import prompts, two_step_model
from oracle import Oracle

import minifunc.model as model_module
from minifunc import patching
from minifunc.model import ModelConfig, Transformer
from minifunc.patching import Batch, HeadInput, KVInput, Logits, MLPInput, PathPatcher, Resid
from minifunc.support import memory

SMALL = dict(n_layers=3, n_heads=2, d_model=12, d_head=6, d_mlp=16, d_vocab=11, n_ctx=9)
VARIANTS = {
    "rotary RMS relu": dict(act_fn="relu"),
    "learned LN gelu": dict(positions="learned", normalization="LN"),
    "attention-only": dict(act_fn="none"),
}
LLAMA = dict(
    n_heads=4,
    n_kv_heads=2,
    act_fn="silu",
    gated_mlp=True,
    tied_embeddings=True,
    qkv_bias=True,
)


def make(dtype=torch.float64, n_prompts=3, seed=1, **changes):
    """A random model and paired prompts that differ at positions 2 and 4."""
    model = (
        Transformer(ModelConfig(**{**SMALL, **changes}), torch.Generator().manual_seed(seed))
        .to(dtype)
        .requires_grad_(False)
    )
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if ".b_" in name:
            weight.copy_(torch.randn(weight.shape, generator=generator))
    base = torch.randint(11, (n_prompts, 7), generator=generator)
    contrast = base.clone()
    contrast[:, [2, 4]] = (contrast[:, [2, 4]] + torch.tensor([1, 3])) % 11
    answers = torch.randint(5, (n_prompts,), generator=generator)
    return model, base, contrast, answers, answers + 5


def read(name):
    """ "1.0.q" → HeadInput(1, 0, "q"), "1.kv0.v" → KVInput(1, 0, "v"), "mlp2", "logits", and
    "resid1@1,4" (only at these positions)."""
    if name == "logits":
        return Logits()
    name, _, where = name.partition("@")
    where = tuple(int(position) for position in where.split(",")) if where else None
    word, layer = re.fullmatch(r"(mlp|resid)(\d+)|.*", name).groups()
    if word:
        return {"mlp": MLPInput, "resid": Resid}[word](int(layer), where)
    layer, head, which = name.split(".")
    kind = KVInput if head.startswith("kv") else HeadInput
    return kind(int(layer), int(head.removeprefix("kv")), which, where)


def r_by_sender(patcher, effects):
    """{sender: r}, from the three parts of an Effects."""
    r = {"embedding": effects.embedding.item()}
    for layer in range(patcher.cfg.n_layers):
        r |= {
            f"{layer}.{head}": effects.heads[layer, head].item()
            for head in range(patcher.cfg.n_heads)
        }
        r |= {f"mlp{layer}": effects.mlps[layer].item()} if patcher.cfg.has_mlp else {}
    return r


def worst_difference(data, groups, freeze_mlps, senders=None, **options):
    """Largest |r - r of the oracle| over all senders (or some) and the receiver groups (tuples of
    names)."""
    patcher, oracle = PathPatcher(*data, freeze_mlps=freeze_mlps), Oracle(*data, **options)
    receivers = [[read(name) for name in group] for group in groups]
    worst = 0.0
    for group, effects in zip(groups, patcher.sweep_each(receivers, senders, **options)):
        found = (
            zip(senders, effects.r.tolist()) if senders else r_by_sender(patcher, effects).items()
        )
        for sender, r in found:
            worst = max(worst, abs(r - oracle.r(sender, group, freeze_mlps)))
    return worst


HEADS = [(f"{layer}.{head}.{which}",) for layer in range(3) for head in range(2) for which in "qkv"]
STREAMS = [("logits",), ("resid0",), ("resid1",), ("resid3",)]
TOGETHER = [
    ("1.0.q", "1.1.q"),
    ("1.0.v", "1.0.k"),
    ("0.0.v", "2.1.v"),
    ("resid1", "2.0.q"),
    ("1.1.k", "resid2"),
    ("2.0.k", "2.0.q", "1.1.v"),
]
MLPS = [("mlp0",), ("mlp1",), ("mlp2",), ("mlp1", "1.0.q"), ("mlp0", "logits"), ("mlp2", "2.1.v")]


@pytest.mark.parametrize("freeze_mlps", [False, True], ids=["live", "frozen"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_sender_and_receiver_equals_the_naive_oracle(variant, freeze_mlps):
    data = make(**VARIANTS[variant])
    groups = HEADS + STREAMS + TOGETHER + (MLPS if data[0].cfg.has_mlp else [])
    if (
        variant != "rotary RMS relu"
    ):  # all pairs once; the other kinds of model with a sample of them
        groups = groups[::4]
    assert worst_difference(data, groups, freeze_mlps) < 1e-10


@pytest.mark.parametrize("freeze_mlps", [False, True], ids=["live", "frozen"])
def test_receivers_limited_to_positions_equal_the_oracle(freeze_mlps):
    groups = [
        ("1.0.v@2,4",),
        ("2.1.q@6",),
        ("1.1.k@3",),
        ("mlp1@4,6",),
        ("resid2@2",),
        ("1.0.v@2", "2.0.k@2,5"),
        ("0.1.v@3", "mlp2@6"),
        ("mlp0@4", "resid2@3,4"),
    ]
    assert worst_difference(make(act_fn="relu"), groups, freeze_mlps) < 1e-10


OWN = [(f"{layer}.{head}.{which}",) for layer in range(3) for head in range(4) for which in "qkv"]
WHOLE = [
    (f"{layer}.kv{head}.{which}",) for layer in range(3) for head in range(2) for which in "kv"
]
OF_GROUPS = [
    ("1.1.v", "1.kv0.v"),  # what one of the group reads, it reads of its own
    ("1.kv1.k", "1.kv1.v", "1.2.q"),
    ("1.kv0.k@2", "1.1.k@4"),  # each adds to the other
    ("1.1.k@4", "1.kv0.k@2"),
    ("2.3.v@2,4", "2.kv1.v@4,5", "2.2.k"),
    ("0.kv0.v", "2.kv1.k", "mlp1"),
    ("resid1", "1.kv0.v"),
    ("1.kv1.k", "resid2@3"),
    ("1.1.k@2,3", "resid1@5"),
    ("2.kv0.v@4",),
    ("2.2.k@3",),
]
RARE = [("logits",), ("resid0",), ("mlp0",), ("mlp2",), ("mlp1", "1.0.q")]


SENDERS = [["embedding", "0.1", "0.2", "mlp0", "1.3"]]


@pytest.mark.parametrize("freeze_mlps", [False, True], ids=["live", "frozen"])
def test_inputs_of_grouped_heads_equal_the_oracle(freeze_mlps):
    groups = (OWN[12:] + WHOLE[4:])[freeze_mlps::4] + OF_GROUPS + RARE[freeze_mlps::2]
    assert worst_difference(make(**LLAMA), groups, freeze_mlps, SENDERS) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("freeze_mlps", [False, True], ids=["live", "frozen"])
def test_every_sender_and_every_input_of_grouped_heads_equal_the_oracle(freeze_mlps):
    groups = OWN + WHOLE + OF_GROUPS + RARE
    assert worst_difference(make(**LLAMA), groups, freeze_mlps) < 1e-10
    options = dict(source="zero", sender_positions=[2, 5])
    assert worst_difference(make(**LLAMA), groups[::5], freeze_mlps, **options) < 1e-10


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_one_key_value_head_for_all_and_one_for_each_equal_the_oracle(kv_heads):
    groups = [("1.3.v",), ("2.1.k",), ("mlp1", "2.2.v"), ("0.2.q",)]
    groups += [("1.kv0.v",), ("2.kv0.k", "2.1.k@3")] if kv_heads == 1 else []
    data = make(**{**LLAMA, "n_kv_heads": kv_heads, "positions": "learned"})
    assert worst_difference(data, groups, False, SENDERS) < 1e-10


def test_what_a_group_reads_is_what_all_its_heads_read_each_of_its_own():
    patcher = PathPatcher(*make(**LLAMA))
    for which in "kv":
        own = [HeadInput(1, head, which) for head in (2, 3)]
        receivers = [KVInput(1, 1, which), own, *own]
        whole, both, *each = (r.per_prompt for r in patcher.sweep_each(receivers, SENDERS))
        torch.testing.assert_close(both, whole, rtol=0, atol=1e-12)
        assert all((one - whole).abs().max() > 1e-4 for one in each)
    assert str(KVInput(1, 1, "v")) == "1.kv1.v" != str(HeadInput(1, 1, "v"))


@pytest.mark.parametrize(
    "receiver", [KVInput(0, 2, "v"), KVInput(3, 0, "v"), KVInput(0, 0, "q"), HeadInput(0, 4, "v")]
)
def test_an_input_the_grouped_model_lacks_is_refused(receiver):
    with pytest.raises(ValueError, match="3 layers × 4 heads in groups of 2 has no receiver"):
        PathPatcher(*make(**LLAMA)).sweep(receiver)
    with pytest.raises(ValueError, match="3 layers × 2 heads has no receiver KVInput"):
        PathPatcher(*make()).sweep(KVInput(0, 0, "v"))  # there it is a HeadInput


def test_a_budget_counts_the_heads_that_have_k_and_v_and_the_gate():
    """What is cached is what is counted; a gated MLP holds two more hidden layers."""
    shape = dict(n_layers=8, d_head=32, d_mlp=64)
    budgets = {}
    for changes in ({}, LLAMA):
        patcher = PathPatcher(*make(torch.float32, n_prompts=1, **{**shape, **changes}))
        (runs,) = patcher.cached_runs()
        held = sum(x.nbytes for x in (*runs.contrast.values(), *runs.base.values()))
        budgets[len(changes)] = patcher.budget
        assert held <= patcher.budget.cache_bytes() < 1.6 * held
    own = PathPatcher(*make(torch.float32, n_prompts=1, **{**shape, **LLAMA, "n_kv_heads": 4}))
    spared = 4 * 7 * 8 * 2 * 2 * 32  # bytes, positions, layers, k and v, heads, d_head
    assert own.budget.cache_bytes() - budgets[6].cache_bytes() == spared
    plain, llama = budgets[0], budgets[6]
    assert llama.row_bytes(7) - plain.row_bytes(7) == 4 * 7 * (2 * 64 + 8 * 2 * 32)


@pytest.mark.parametrize(
    "source",
    ["mean", "zero", torch.randint(11, (3, 7), generator=torch.Generator().manual_seed(9))],
    ids=["mean", "zero", "unrelated"],
)
def test_other_sources_equal_the_oracle(source):
    assert (
        worst_difference(
            make(act_fn="relu"), [("logits",), ("2.0.v",), ("mlp1", "1.0.q")], False, source=source
        )
        < 1e-10
    )


def test_senders_limited_to_positions_equal_the_oracle():
    assert (
        worst_difference(
            make(act_fn="relu"),
            [("logits",), ("2.0.v",), ("mlp1", "1.0.q")],
            False,
            sender_positions=[4, 6],
        )
        < 1e-10
    )


def test_prompts_that_differ_at_the_last_position_alone_equal_the_oracle():
    model, base, _, *answers = make(act_fn="relu")
    late = base.clone()
    late[:, 6] = (base[:, 6] + 1) % 11
    groups = [("logits",), ("1.0.q",), ("2.1.v",), ("mlp1", "2.0.k"), ("resid2",)]
    assert worst_difference((model, base, late, *answers), groups, False) < 1e-10


def test_all_senders_together_bring_back_the_base_run():
    """Nothing of the contrast run is left where everything that writes is changed."""
    for variant in VARIANTS.values():
        patcher = PathPatcher(*make(**variant), freeze_mlps=True)
        assert patcher.sweep(Logits(), [patcher.senders]).r.tolist() == pytest.approx(
            [-1], abs=1e-10
        )
        patcher = PathPatcher(*make(**variant))
        no_mlps = [sender for sender in patcher.senders if not sender.startswith("mlp")]
        together = patcher.sweep(Logits(), [no_mlps, patcher.senders])
        assert together.r.tolist() == pytest.approx([-1, -1], abs=1e-10)
        torch.testing.assert_close(
            together.per_prompt[0],
            patcher.F_base.double() - patcher.F_contrast.double(),
            rtol=0,
            atol=1e-10,
        )


def test_senders_may_be_picked_in_any_order():
    patcher = PathPatcher(*make(act_fn="relu"))
    picked = ["mlp1", "embedding", "2.1", "0.1"]
    for receiver in (Logits(), HeadInput(2, 0, "k"), [HeadInput(0, 1, "v"), MLPInput(2)]):
        every, some = patcher.sweep(receiver), patcher.sweep(receiver, picked)
        torch.testing.assert_close(
            some.per_prompt,
            every.per_prompt[[patcher.senders.index(name) for name in picked]],
            rtol=0,
            atol=1e-12,
        )
        assert (
            some.heads[0, 1] == some.r[3]
            and some.mlps[1] == some.r[0]
            and some.heads[0, 0].isnan()
            and some.mlps[0].isnan()
        )
    assert (
        patcher.sweep(HeadInput(1, 0, "v"), [["0.0", "2.1"]]).r
        == patcher.sweep(HeadInput(1, 0, "v"), ["0.0"]).r
    )  # 2.1 lies above


@pytest.mark.parametrize(
    "senders, fault",
    [
        (["0.7"], "no sender '0.7'"),
        (["logits"], "no sender"),
        ([["0.1", "x"]], "no sender 'x'"),
        ([[]], "at least one"),
    ],
)
def test_an_unknown_sender_is_refused(senders, fault):
    with pytest.raises(ValueError, match=fault):
        PathPatcher(*make()).sweep(Logits(), senders)


def test_the_mean_does_not_depend_on_chunks():
    data = make(act_fn="relu", n_prompts=5)
    whole, small = (
        PathPatcher(*data, max_memory=budget).sweep(Logits(), source="mean").per_prompt
        for budget in (None, 5e-5)
    )
    torch.testing.assert_close(whole, small, rtol=0, atol=1e-12)


def test_tokens_of_other_prompts_are_sent_row_by_row_in_every_chunk():
    data = make(act_fn="relu", n_prompts=5)
    others = torch.randint(11, (5, 7), generator=torch.Generator().manual_seed(9))
    whole, small = (
        PathPatcher(*data, max_memory=budget).sweep(Logits(), source=others).per_prompt
        for budget in (None, 5e-5)
    )
    assert whole.abs().max() > 0.01
    torch.testing.assert_close(whole, small, rtol=0, atol=1e-12)


def test_the_mean_over_many_prompts_is_not_lost_in_few_bits():
    data = make(torch.bfloat16, act_fn="relu", n_prompts=600)
    whole, small = (PathPatcher(*data, max_memory=budget)._mean_of_base for budget in (None, 5e-4))
    for name, mean in whole.items():
        assert mean.dtype == torch.float32
        torch.testing.assert_close(mean, small[name], rtol=1e-4, atol=1e-4)


def test_freezing_the_norms_scale_would_be_noticed(monkeypatch):
    whole = PathPatcher._stream

    def with_frozen_scale(patcher, runs, receiver, delta, made):
        block = patcher.model.blocks[receiver.layer]
        x = runs.stream(2 * receiver.layer)
        scale = (x.pow(2).mean(-1, keepdim=True) + patcher.cfg.eps).rsqrt()
        assert whole(patcher, runs, receiver, delta, made).shape == delta.shape
        return (x + delta) * scale * block.ln1.w

    monkeypatch.setattr(PathPatcher, "_stream", with_frozen_scale)
    assert worst_difference(make(act_fn="relu"), [("2.0.v",)], False) > 1e-3


def test_a_layer_with_two_digits_is_patched():
    data = make(act_fn="relu", n_layers=12, n_heads=1, d_model=8, d_head=8)
    assert worst_difference(data, [("11.0.v",), ("10.0.q",)], False) < 1e-10


@pytest.mark.parametrize("only_logits", [False, True])
def test_the_memory_budget_changes_nothing(only_logits):
    data = make(act_fn="relu", n_prompts=5)
    groups = (
        [Logits()]
        if only_logits
        else [Logits(), HeadInput(1, 1, "k"), [HeadInput(0, 0, "v"), MLPInput(2)]]
    )
    whole = PathPatcher(*data)
    small = PathPatcher(*data, max_memory=5e-5)
    assert len(list(whole.cached_runs())) == 1 and len(list(small.cached_runs())) == 5
    assert whole._kept and not small._kept
    for a, b in zip(whole.sweep_each(groups), small.sweep_each(groups)):
        assert a.per_prompt.abs().max() > 0.01
        torch.testing.assert_close(a.per_prompt, b.per_prompt, rtol=0, atol=1e-12)


@pytest.mark.parametrize("freeze_mlps", [False, True], ids=["live", "frozen"])
@pytest.mark.parametrize("changes", [dict(act_fn="relu"), LLAMA], ids=["relu", "llama"])
def test_both_prompts_stacked_into_one_run_equal_the_oracle(changes, freeze_mlps, monkeypatch):
    """As on CUDA. The budget counts what is held, and cuts prompts into chunks of it."""
    two_runs = PathPatcher(*make(**changes))
    monkeypatch.setattr(memory, "STACKED", ("cpu",))
    groups = [("logits",), ("2.1.v",), ("mlp1", "2.0.k")]
    assert worst_difference(make(**changes), groups, freeze_mlps) < 1e-10
    runs_made = []
    whole_run = Transformer.run_with_cache

    def noted(model, tokens, *more):
        runs_made.append(len(tokens))
        return whole_run(model, tokens, *more)

    monkeypatch.setattr(Transformer, "run_with_cache", noted)
    patcher = PathPatcher(*make(**changes))
    assert runs_made == [6]  # three base prompts, three contrast prompts
    torch.testing.assert_close(patcher.F_base, two_runs.F_base, rtol=0, atol=1e-12)
    torch.testing.assert_close(patcher.F_contrast, two_runs.F_contrast, rtol=0, atol=1e-12)
    (runs,) = patcher.cached_runs()
    tensors = (*runs.contrast.values(), *runs.base.values())
    held = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}
    held_by_one = sum(held.values()) / 3
    assert held_by_one <= patcher.budget.cache_bytes() < 1.3 * held_by_one
    small = PathPatcher(*make(**changes), max_memory=1e-4)
    assert len(list(small.cached_runs())) == 3
    for a, b in zip(small.sweep_each([Logits()]), two_runs.sweep_each([Logits()])):
        torch.testing.assert_close(a.per_prompt, b.per_prompt, rtol=0, atol=1e-12)


def test_a_budget_too_small_for_one_row_is_refused():
    with pytest.raises(ValueError, match="too small for one row"):
        PathPatcher(*make(), max_memory=1e-9)


@pytest.mark.parametrize("name, below", [("1.0.q", 4), ("mlp1", 6), ("resid2", 7), ("logits", 10)])
def test_a_sender_at_or_above_its_receiver_has_exactly_no_effect(name, below):
    patcher = PathPatcher(*make(act_fn="relu"))
    effect = patcher.sweep(read(name)).per_prompt
    assert len(patcher.senders) == 10
    assert (effect[:below].abs().amax(1) > 0)[
        1:
    ].all()  # the embedding is the same at the last position
    assert (effect[below:] == 0).all()


def test_a_last_layer_head_to_the_logits_is_plain_activation_patching_of_it():
    model, base, contrast, base_answers, contrast_answers = data = make(
        act_fn="relu", n_layers=1
    )  # no MLP above but its own
    patcher, rows = PathPatcher(*data), torch.arange(3)
    _, of_base = model.run_with_cache(base)

    def swap(z, name):
        z = z.clone()
        z[:, :, 1] = of_base[name][:, :, 1]
        return z

    logits = model.run_with_hooks(contrast, {"blocks.0.attn.hook_z": swap})[:, -1]
    expected = logits[rows, base_answers] - logits[rows, contrast_answers] - patcher.F_contrast
    torch.testing.assert_close(patcher.sweep(Logits()).per_prompt[2], expected, rtol=0, atol=1e-12)


def test_two_heads_overwritten_together_are_both_patched():
    patcher = PathPatcher(*make(act_fn="relu"))
    one, other = HeadInput(1, 0, "v"), HeadInput(1, 1, "v")
    both = patcher.sweep([one, other]).per_prompt
    for single in (one, other):
        assert (both - patcher.sweep(single).per_prompt)[1].abs().max() > 1e-3
    assert torch.equal(both, patcher.sweep([other, one]).per_prompt)


def test_a_small_change_has_the_effect_that_the_gradient_says():
    model, base, contrast, base_answers, contrast_answers = data = make(act_fn="gelu")
    patcher, epsilon = PathPatcher(*data), 1e-6
    name = "blocks.2.attn.hook_z"
    whole = patcher.changes
    change = whole(patcher._kept[0], 1, "base", None)[name][:, -1, 0]  # head 2.0, [prompt, d_head]

    def small(*arguments):
        return {name: epsilon * change for name, change in whole(*arguments).items()}

    patcher.changes = small
    measured = patcher.sweep(Logits()).per_prompt[7] / epsilon

    z = {}

    def watch(x, name):
        z[name] = x.clone().requires_grad_()
        return z[name]

    logits = model.run_with_hooks(contrast, {"blocks.2.attn.hook_z": watch})[:, -1]
    F = (
        logits.gather(1, base_answers[:, None]) - logits.gather(1, contrast_answers[:, None])
    ).sum()
    gradient = torch.autograd.grad(F, z["blocks.2.attn.hook_z"])[0][:, -1, 0]
    torch.testing.assert_close(measured, (gradient * change).sum(1), rtol=1e-4, atol=1e-8)


def test_a_hand_wired_two_step_circuit_is_found_edge_by_edge():
    patcher = PathPatcher(two_step_model(), *prompts())
    to_logits, to_v, to_q = patcher.sweep_each(
        [Logits(), HeadInput(1, 0, "v"), HeadInput(1, 0, "q")]
    )
    expected = torch.zeros(2, 2, dtype=torch.float64)
    expected[1, 0] = -1  # only 1.0 writes the answer
    torch.testing.assert_close(to_logits.heads, expected)
    expected = torch.zeros(2, 2, dtype=torch.float64)
    expected[0, 0] = -1  # and all it hands over comes from 0.0 …
    torch.testing.assert_close(to_v.heads, expected)
    assert to_q.heads.abs().max() < 1e-12  # … while nothing decides where it looks
    assert to_logits.embedding == 0 and to_logits.mlps.tolist() == [0, 0]


def test_r_is_refused_where_it_is_undefined():
    model, base, contrast, base_answers, contrast_answers = make()
    with pytest.raises(ValueError, match="r is undefined"):
        PathPatcher(model, base, base, base_answers, contrast_answers).sweep(Logits())
    model.blocks[0].attn.W_O.data[0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        PathPatcher(model, base, contrast, base_answers, contrast_answers).sweep(Logits())


@pytest.mark.parametrize(
    "receiver",
    [
        "logits",
        HeadInput(3, 0, "q"),
        HeadInput(0, 2, "q"),
        HeadInput(0, 0, "z"),
        HeadInput(-1, 0, "v"),
        MLPInput(3),
        Resid(4),
        Resid(3, (0,)),
    ],
)
def test_a_receiver_the_model_lacks_is_refused(receiver):
    with pytest.raises(ValueError, match="no receiver"):
        PathPatcher(*make()).sweep(receiver)


def test_a_position_or_source_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="positions 0 to 6"):
        PathPatcher(*make()).sweep(MLPInput(0, (7,)))
    with pytest.raises(ValueError, match="positions 0 to 6"):
        PathPatcher(*make()).sweep(Logits(), sender_positions=[-1])
    for group in ([HeadInput(1, 0, "v", (2,)), HeadInput(1, 0, "v", (4,))], []):
        with pytest.raises(ValueError, match="each place once"):
            PathPatcher(*make()).sweep(group)
    with pytest.raises(ValueError, match="source"):
        PathPatcher(*make()).sweep(Logits(), source="median")
    with pytest.raises(ValueError, match="source tokens"):
        PathPatcher(*make()).sweep(Logits(), source=torch.zeros(3, 6, dtype=torch.long))


def test_prompts_that_do_not_pair_are_refused():
    model, base, contrast, base_answers, contrast_answers = make()
    with pytest.raises(ValueError, match="one shape"):
        PathPatcher(model, base[:, :-1], contrast, base_answers, contrast_answers)
    with pytest.raises(ValueError, match="answers"):
        PathPatcher(model, base, contrast, base_answers[:-1], contrast_answers)


HALVES = [torch.bfloat16, torch.float16]
SAMPLE = [Logits(), HeadInput(1, 0, "q"), HeadInput(2, 1, "v"), MLPInput(1), Resid(1)]


def in_two_dtypes(dtype, **changes):
    """A patcher with weights of a dtype, and one in float64 with the same weights."""
    model, *prompts = make(dtype, act_fn="relu", **changes)
    return PathPatcher(model, *prompts), PathPatcher(copy.deepcopy(model).double(), *prompts)


# Of logits that are about 1, bfloat16 keeps 16 bits at each product: 1e-5 of them. Some ten
# products follow each other, so 1e-4. float16 keeps 22 bits, about as many as float32.
@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float32, 5e-6), (torch.bfloat16, 1e-4), (torch.float16, 5e-6)]
)
def test_lower_precision_agrees_with_float64(dtype, tolerance):
    low, high = (patcher.sweep_each(SAMPLE) for patcher in in_two_dtypes(dtype))
    for a, b in zip(low, high):
        assert (a.per_prompt - b.per_prompt).abs().max() < tolerance


def test_rounding_once_at_each_product_would_be_noticed(monkeypatch):
    def rounded_once(x, weight):
        return (x.to(weight.dtype) @ weight).to(x.dtype)

    def mean_error():
        low, high = (each.sweep_each(SAMPLE) for each in in_two_dtypes(torch.bfloat16))
        errors = [(a.per_prompt - b.per_prompt).mean(1).abs().max() for a, b in zip(low, high)]
        return max(errors).item()

    precise = mean_error()
    for module in (model_module, patching):
        monkeypatch.setattr(module, "product", rounded_once)
    assert mean_error() > 50 * precise > 0


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("freeze_mlps", [False, True], ids=["live", "frozen"])
def test_weights_of_half_precision_agree_with_the_oracle(dtype, freeze_mlps):
    groups = [("logits",), ("1.0.q",), ("2.1.v",), ("mlp1", "2.0.k"), ("resid2",)]
    assert worst_difference(make(dtype, act_fn="relu"), groups, freeze_mlps) < 1e-3


def test_half_precision_counts_the_stream_in_full_and_the_rounded_inputs_beside():
    single, half = (PathPatcher(*make(dtype)).budget for dtype in (torch.float32, torch.bfloat16))
    assert half.cache_bytes() == single.cache_bytes()
    assert half.row_bytes(7) == 2 * single.row_bytes(7)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_agrees_with_the_cpu():
    data = make(act_fn="relu")
    groups = [Logits(), HeadInput(1, 0, "q"), [HeadInput(0, 0, "v"), MLPInput(2)]]
    cpu = PathPatcher(*data).sweep_each(groups)
    data[0].cuda()
    for a, b in zip(PathPatcher(*data).sweep_each(groups), cpu):
        torch.testing.assert_close(a.per_prompt, b.per_prompt, rtol=0, atol=1e-10)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("freeze_mlps", [False, True], ids=["live", "frozen"])
def test_on_cuda_in_float64_the_patcher_equals_the_oracle(freeze_mlps):
    model, *prompts = make(act_fn="relu")
    data = (model.cuda(), *(each.cuda() for each in prompts))
    assert worst_difference(data, HEADS[::3] + STREAMS + TOGETHER + MLPS, freeze_mlps) < 1e-10


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_cuda_a_sweep_stays_within_its_memory(dtype):
    shape = dict(d_model=256, d_head=64, n_heads=4, d_mlp=1024)
    data = make(dtype, n_prompts=200, act_fn="gelu", **shape)
    data[0].cuda()
    every = [HeadInput(layer, head, x) for layer in (1, 2) for head in range(4) for x in "qkv"]
    PathPatcher(*data).sweep_each(every)  # what libraries take once is not the sweep's
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    PathPatcher(*data, max_memory=0.1).sweep_each(every)
    assert torch.cuda.max_memory_allocated() - before < 0.1 * 2**30


def test_inputs_of_heads_in_one_layer_share_pass_2_as_far_as_memory_allows(monkeypatch):
    """And sharing changes nothing."""
    groups = [HeadInput(2, head, which) for head in range(2) for which in "qkv"]
    groups += [HeadInput(1, 0, "v", (3,)), [HeadInput(1, 0, "v"), HeadInput(1, 1, "v")], Resid(1)]
    patcher, shared = PathPatcher(*make(act_fn="relu")), []
    whole = patcher._pass_2

    def noted(runs, reads):
        shared.append(len(reads))
        return whole(runs, reads)

    monkeypatch.setattr(patcher, "_pass_2", noted)
    together = patcher.sweep_each(groups)
    assert sorted(shared) == [1, 1, 1, 6]
    shared.clear()
    patcher.budget.for_rows = 2 * patcher.n_prompts * 10 * patcher.budget.row_bytes(7)
    half = patcher.sweep_each(groups)
    assert sorted(shared) == [1, 1, 1, 2, 2, 2]
    for index, group in enumerate(groups):
        alone = patcher.sweep(group).per_prompt
        for each in (together, half):
            torch.testing.assert_close(each[index].per_prompt, alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("changes", [dict(act_fn="relu"), LLAMA], ids=["relu", "llama"])
def test_both_passes_make_every_tensor_on_the_models_device(changes):
    """On the meta device an operation that mixes in a CPU tensor raises, as it would on a GPU."""
    model, *rest = make(**changes)
    patcher = PathPatcher(model, *rest)
    model.to("meta")
    for name, value in vars(patcher).items():
        if isinstance(value, torch.Tensor):
            setattr(patcher, name, value.to("meta"))
    groups = [(read(name),) for name in ("logits", "1.0.q", "2.1.v", "mlp1", "resid2")] + [
        (HeadInput(0, 1, "k"), MLPInput(2), HeadInput(2, 0, "q"))
    ]
    if changes == LLAMA:
        groups += [(KVInput(1, 1, "k"), HeadInput(1, 3, "k", (2,))), (KVInput(2, 0, "v"), Resid(2))]
    rows = [(sender,) for sender in range(len(patcher.senders))]
    for runs in patcher._run_both():
        batch = Batch(runs, patcher.changes(runs, patcher.n_pos, "base", None), rows, patcher.n_pos)
        found = dict(patcher._sweep_batch(batch, groups))
        assert found.keys() == set(range(len(groups)))
        assert all(change.is_meta for change in found.values())


def test_answers_outside_the_vocabulary_are_refused():
    model, base, contrast, base_answers, contrast_answers = make()
    for wrong in (contrast_answers + 9, contrast_answers - 99):
        with pytest.raises(ValueError, match="from 0 to 10"):
            PathPatcher(model, base, contrast, base_answers, wrong)


def test_no_receivers_have_no_effects_and_senders_that_were_not_asked_for_no_rank():
    patcher = PathPatcher(*make())
    assert patcher.sweep_each([]) == []
    ranked = patcher.sweep(Logits(), senders=["0.1", "2.0", "mlp1"]).named(strongest_first=True)
    assert set(ranked) == {"0.1", "2.0", "mlp1"}
    sizes = [abs(r) for r in ranked.values()]
    assert sizes == sorted(sizes, reverse=True)
