"""Misuse that used to give wrong numbers without a word: it works, or is refused by name.

Hooks that edit later what they returned; weights that change after runs of a model were kept; flags
that are no bools; logits that hold no answer; lists, arrays and strings in place of what is wanted.
"""

import inspect
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch
from test_public import GROUP, World, drawing, public
from test_refused import HOOK_POINTS, TOKENS, VARIANTS, small

import tasks
from minifunc import ModelConfig, Transformer, circuit, definition
from minifunc.ablation import Ablator
from minifunc.analysis import (
    ablations,
    activations,
    averaging,
    function_vectors,
    reading,
    rows,
    scores,
)
from minifunc.definition import Place
from minifunc.patching import HeadInput, KVInput, Logits, PathPatcher
from minifunc.support import checkpoints, errors, evaluation, shared_streams
from minifunc.support.hooks import Hooks


@pytest.fixture(scope="module")
def w():
    return World()


# ---------------------------------------------------------------- hooks that edit later


@pytest.mark.parametrize("variant, name", HOOK_POINTS)
def test_a_hook_may_keep_and_edit_later_what_it_got_and_returned(variant, name):
    model, mine = small(variant), []

    def keeps(x, name):
        mine[:] = [x, x * 0.5]
        return mine[1]

    def edits(x, name):
        for each in mine:
            each.fill_(7.0)
        return x

    names = model.hook_names()
    later = dict.fromkeys(names[names.index(name) + 1 :], edits)
    plain, edited = Hooks({name: keeps}, names), Hooks({**later, name: keeps}, names)
    logits = model(TOKENS, None, plain)
    wanted = {each: x.clone() for each, x in plain.kept.items()}
    edits(None, "after the pass")
    assert torch.equal(model(TOKENS, None, edited), logits)
    edits(None, "after the pass")
    for kept in (plain.kept, edited.kept):
        assert all(torch.equal(kept[each], wanted[each]) for each in names)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_hooks_keep_shares_no_memory(variant):
    model = small(variant)
    hooks = Hooks(keep=model.hook_names())
    model(TOKENS, None, hooks)
    owners = [x.untyped_storage().data_ptr() for x in (*hooks.kept.values(), *model.parameters())]
    assert len(set(owners)) == len(owners) > 30


# ---------------------------------------------------------------- weights that change

CHANGES = {
    "edited": lambda model: model.blocks[0].attn.W_O.mul_(2),
    "loaded": lambda model: model.load_state_dict(Transformer(model.cfg, drawing()).state_dict()),
    "replaced": lambda model: model.load_state_dict(
        {name: 2 * x for name, x in model.state_dict().items()}, assign=True
    ),
    "of another dtype": lambda model: model.double(),
}
KEPT = {  # what keeps runs of a model: what it is asked
    "sweep": lambda w: (patcher := w.patcher()) and (lambda: patcher.sweep(Logits())),
    "sweep, not kept": lambda w: (
        (patcher := w.patcher(max_memory=0.0005)) and (lambda: patcher.sweep(Logits()))
    ),
    "inputs_apart": lambda w: (
        (patcher := w.patcher()) and (lambda: reading.inputs_apart(patcher, w.sources, GROUP))
    ),
    "logits": lambda w: (ablator := w.ablator()) and (lambda: ablator.logits([GROUP], "base")),
    "plainly": lambda w: (
        (ablator := w.ablator()) and (lambda: ablator.logits_plainly(GROUP, "base"))
    ),
    "on": lambda w: (ablator := w.ablator()) and (lambda: ablator.on(w.p.base)),
    "a known circuit": lambda w: (scores := w.scores()) and (lambda: scores.faithfulness([[]])),
    "a row": lambda w: (
        (prompts := w.for_ablation()) and (lambda: rows.ablation_row(prompts, "x", GROUP, "base"))
    ),
}


@pytest.mark.parametrize(
    "kept, change", [*((kept, "edited") for kept in KEPT), *(("sweep", each) for each in CHANGES)]
)
def test_runs_of_weights_that_have_changed_are_refused(kept, change):
    w = World()
    ask = KEPT[kept](w)
    ask()
    w.model(w.tokens)  # to run a model, or to freeze it, changes no weight
    w.model.requires_grad_(True).requires_grad_(False).eval()
    ask()
    CHANGES[change](w.model)
    with pytest.raises(ValueError, match="weights have changed since its runs were kept"):
        ask()


# ---------------------------------------------------------------- flags

# By module and function: a call with its flag. The others are the command line's, or a core
# function's, which check none.
FLAGS = {
    ("minifunc.definition", "path_patch"): lambda w, flag: definition.path_patch(
        w.model, w.tokens, {}, [], [], flag
    ),
    ("minifunc.patching", "PathPatcher"): lambda w, flag: w.patcher(freeze_mlps=flag).sweep(
        HeadInput(1, 0, "q")
    ),
    ("minifunc.support.effects", "Effects"): lambda w, flag: w.found.effects["answers"][
        "logits"
    ].named(flag),
    ("minifunc.support.checkpoints", "claimed"): lambda w, flag: checkpoints.claimed(
        None, {}, flag, torch.device("cpu")
    ).__enter__(),
    ("minifunc.analysis.ablations", "random_group"): lambda w, flag: ablations.random_group(
        GROUP, 2, drawing(), flag
    ),
    ("minifunc.analysis.activations", "activations"): lambda w, flag: activations.activations(
        w.model, w.tokens, ["hook_embed"], lambda x: x, flag
    ),
    ("tasks", "Diet"): lambda w, flag: tasks.Diet("mine", even_sums=flag),
    ("minifunc.model", "ModelConfig"): lambda w, flag: ModelConfig(gated_mlp=flag),
}
UNCHECKED = {  # processes and reports are handed their own flags
    "minifunc.report",
    "minifunc.support.flags",
    "minifunc.support.processes",
    "minifunc.support.runs",
    "minifunc.support.checkpoints.Progress",
    "minifunc.support.pretrained.Source",
    "minifunc.circuit.discover",
    "train",
    "tasks.evaluation_pairs",
}


@pytest.mark.parametrize("flag", [0.5, 1, 0, None, "False"])
@pytest.mark.parametrize("place", FLAGS, ids=lambda place: place[1])
def test_a_flag_that_is_no_bool_is_refused_by_name(w, place, flag):
    if place[1] == "PathPatcher" and not flag:
        return  # it means False, and nothing else
    with pytest.raises(ValueError, match=f"must be a bool, not {flag!r}"):
        FLAGS[place](w, flag)


def test_every_public_flag_has_a_case():
    found = set()
    for module, name in public():
        if any(f"{module}.{name}.".startswith(f"{each}.") for each in UNCHECKED):
            continue
        value = getattr(import_module(module), name)
        own = vars(value).values() if inspect.isclass(value) else (value,)
        for each in filter(inspect.isfunction, own):
            if bool in [kind for what, kind in each.__annotations__.items() if what != "return"]:
                found.add((module, name))
    assert found == set(FLAGS)


# ---------------------------------------------------------------- logits that hold no answer


def spoilt(value):
    model = Transformer(ModelConfig(d_vocab=73, n_layers=1)).requires_grad_(False)
    model.unembed.W_U[:, 5] = value
    return model


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_are_no_answer(w, value):
    logits, model = w.logits.clone(), spoilt(value)
    logits[3, 2] = value
    naive = function_vectors.Naive(w.model, w.naive, w.numbers, GROUP)
    asking = (
        lambda: evaluation.accuracy(logits, w.labels),
        lambda: evaluation.answers_right(model, w.tokens, w.answers[0]),
        lambda: rows.answered(logits, [w.labels, w.labels]),
        lambda: w.scores().score(torch.full((6, 73), value)),
        lambda: naive.hits(torch.full_like(naive.before, value), 3),
    )
    for ask in asking:
        with pytest.raises(FloatingPointError, match="logits are not finite"):
            ask()
    logits[3, 2] = -torch.inf  # what is masked out is no fault
    assert evaluation.accuracy(logits, w.labels) >= 0


def test_such_logits_are_one_line_of_a_command(capsys, w):
    def work():
        return evaluation.answers_right(spoilt(torch.nan), w.tokens, w.answers[0])

    assert errors.run_main(work) == 2
    assert capsys.readouterr().err.count("\n") == 1


# ---------------------------------------------------------------- what is not of the wanted kind

TAKE_TOKENS = {
    "model": lambda w, x: w.model(x),
    "cache": lambda w, x: w.model.run_with_cache(x),
    "last_logits": lambda w, x: evaluation.last_logits(w.model, x),
    "answers_right": lambda w, x: evaluation.answers_right(w.model, x, w.answers[0]),
    "PathPatcher": lambda w, x: PathPatcher(w.model, w.tokens, x, *w.answers),
    "source": lambda w, x: w.patcher().sweep(Logits(), source=x),
    "Ablator": lambda w, x: Ablator(w.model, x, {}),
    "a source": lambda w, x: Ablator(w.model, w.tokens, {"a": x}),
    "a mean": lambda w, x: Ablator(w.model, w.tokens, {}, {"a": x}),
    "on": lambda w, x: w.ablator().on(x),
    "shares": lambda w, x: circuit.attention_shares(w.model, x, w.places),
    "path_patch": lambda w, x: definition.path_patch(w.model, x, {}, [], []),
    "previous": lambda w, x: scores.previous_token_score(w.model, x, w.places),
    "induction": lambda w, x: scores.function_induction_score(w.model, x, w.places),
    "last_z": lambda w, x: function_vectors.last_z(w.model, x),
    "inputs_apart": lambda w, x: reading.inputs_apart(w.patcher(), {"a": x}, GROUP),
    "z_of_layers": lambda w, x: shared_streams.z_of_layers(w.model, x),
    "SharedStreams": lambda w, x: shared_streams.SharedStreams(w.model, x, {}),
    "decode": lambda w, x: tasks.decode(x[0]),
}


@pytest.mark.parametrize("kind", [lambda x: x.tolist(), lambda x: x.numpy()], ids=["list", "numpy"])
@pytest.mark.parametrize("taker", TAKE_TOKENS)
def test_tokens_that_are_no_tensor_are_refused_by_name(w, taker, kind):
    must = r"(tokens|source 'a'|another) must be a Tensor, not |source must be .* or tokens, not "
    with pytest.raises(ValueError, match=must):
        TAKE_TOKENS[taker](w, kind(w.tokens))


def patched(w, sender, receiver):
    _, sent = w.model.run_with_cache(w.p.base)
    return definition.path_patch(w.model, w.tokens, sent, [sender], [receiver])


NO_RECEIVER = "this model of 2 layers × 2 heads has no receiver"
SHAPE = ModelConfig(n_layers=2, n_heads=2)
LOGITS = definition.receiver("logits", SHAPE)
REFUSED = {
    "a string": (lambda w: w.patcher().sweep("logits"), NO_RECEIVER),
    "None": (lambda w: w.patcher().sweep(None), NO_RECEIVER),
    "a class": (lambda w: w.patcher().sweep(HeadInput), NO_RECEIVER),
    "another class": (lambda w: w.patcher().sweep(Logits), NO_RECEIVER),
    "a receiver that is a dict": (lambda w: w.patcher().sweep({}), NO_RECEIVER),
    "a list in a list": (lambda w: w.patcher().sweep([[Logits()]]), NO_RECEIVER),
    "a number of receivers": (
        lambda w: w.patcher().sweep_each(3),
        "receivers must be a Sequence, not 3",
    ),
    "a tensor of receivers": (
        lambda w: w.patcher().sweep_each(torch.zeros(2)),
        r"receivers must be a Sequence, not tensor\(",
    ),
    "a number of senders": (
        lambda w: w.patcher().sweep(Logits(), 3),
        "senders must be a Sequence, not 3",
    ),
    "a sender that is a number": (
        lambda w: w.patcher().sweep(Logits(), [1.0]),
        "a sender must be a Sequence, not 1.0",
    ),
    "layer '1'": (lambda w: w.patcher().sweep(HeadInput("1", 0, "q")), NO_RECEIVER),
    "head '0'": (lambda w: HeadInput(1, "0", "q"), "head must be a whole number from 0, not '0'"),
    "no place": (lambda w: patched(w, LOGITS, "logits"), "no hook point \"'logits'\""),
    "a class of places": (lambda w: patched(w, Place, LOGITS), "no hook point"),
    "sender 9.9": (
        lambda w: patched(w, definition.sender("9.9"), LOGITS),
        "no hook point 'blocks.9",
    ),
    "sender foo": (
        lambda w: definition.sender("foo"),
        "no node 'foo': there is embedding, mlp0, 0.0",
    ),
    "sender mlpX": (lambda w: definition.sender("mlpX"), "no node 'mlpX': there is embedding"),
    "sender 1.0.q": (lambda w: definition.sender("1.0.q"), "no node '1.0.q': there is embedding"),
    "sender None": (lambda w: definition.sender(None), "no node None: there is embedding"),
    "receiver 1.0.z": (
        lambda w: definition.receiver("1.0.z", SHAPE),
        "no node '1.0.z': there is logits, resid0, mlp0, 0.0.v",
    ),
    "receiver of a number": (
        lambda w: definition.receiver("1.0.q", 2),
        "cfg must be a ModelConfig, not 2",
    ),
    "key/value head, not grouped": (
        lambda w: definition.receiver("1.kv0.v", SHAPE),
        "no node '1.kv0.v': there is logits, resid0, mlp0, 0.0.v, or another number",
    ),
    "q of a key/value head": (
        lambda w: definition.receiver("1.kv0.q", replace(SHAPE, n_kv_heads=1)),
        "no node '1.kv0.q': there is logits, resid0, mlp0, 0.0.v, 0.kv0.v",
    ),
    "KVInput, not grouped": (lambda w: w.patcher().sweep(KVInput(1, 0, "v")), NO_RECEIVER),
    "KVInput '0'": (lambda w: KVInput(1, "0", "v"), "head must be a whole number from 0, not '0'"),
    "n_kv_heads 3": (
        lambda w: replace(SHAPE, n_kv_heads=3),
        "model config: n_kv_heads must be None or a whole number that divides n_heads = 2, not 3",
    ),
    "a head of none": (lambda w: Place("hook_embed", 1), "hook_embed has no head 1"),
    "a head of MLPs": (lambda w: Place("blocks.0.hook_mlp_out", 0), "has no head 0"),
    "a head of attn_out": (lambda w: Place("blocks.0.hook_attn_out", 0), "has no head 0"),
    "a head of scores": (lambda w: Place("blocks.0.attn.hook_attn_scores", 0), "has no head 0"),
    "positions of pairs": (
        lambda w: Place("blocks.0.attn.hook_pattern", None, [1]),
        r"hook_pattern has no head None or positions \[1\]",
    ),
    "K outside": (
        lambda w: w.scores().gaps(GROUP, [["0.0"]]),
        "no head '0.0' here; there is 0.1, 1.0",
    ),
    "K of nothing": (lambda w: w.scores().gaps([], [["0.0"]]), "no head '0.0' here; there is none"),
    "r2": (
        lambda w: averaging.r2(w.logits[:1], w.logits),
        r"the forecast must be of shape \[40, 5\], not \[1, 5\]",
    ),
    "r2_interval": (
        lambda w: averaging.r2_interval(w.logits[0, :1], w.logits[0]),
        r"the forecast must be of shape \[5\], not \[1\]",
    ),
    "an array": (lambda w: averaging.r2(np.ones(4), w.logits), "must be a Tensor"),
    "logits": (lambda w: evaluation.accuracy([[1.0]], w.labels), "logits must be a Tensor"),
    "answers": (lambda w: evaluation.accuracy(w.logits, [1, 2]), "answers must be a Tensor"),
}


@pytest.mark.parametrize("wrong", REFUSED)
def test_what_does_not_fit_is_refused_by_name(w, wrong):
    call, said = REFUSED[wrong]
    with pytest.raises(ValueError, match=said) as error:
        call(w)
    assert "\n" not in str(error.value)


def test_heads_and_positions_fit_every_hook_point_that_has_them():
    of_heads = set()
    for name in small("rotary, RMS").hook_names():
        try:
            Place(name, 0, [1])
            of_heads.add(name.rpartition("hook_")[2])
        except ValueError:
            pass
    assert of_heads == {"q", "k", "v", "rot_q", "rot_k", "z"}
