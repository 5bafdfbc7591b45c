"""Wrong arguments are refused by name, and nothing is stretched, wrapped round or left out to fit.

The rules: hooks get copies and must return what fits; positions are any whole numbers from 0, and
mean the same wherever they are taken; one answer or label for each prompt; a head, a task or a
token that there is not is an error, and never counts as nothing.
"""

import numpy as np
import pytest
import torch
from test_public import GROUP, World, drawing, flat

import tasks
from minifunc import ModelConfig, Transformer, circuit, definition
from minifunc.ablation import Ablator
from minifunc.analysis import (
    ablations,
    completeness,
    function_vectors,
    reading,
    rows,
    scores,
    study,
)
from minifunc.patching import HeadInput, Logits, MLPInput, PathPatcher, Resid
from minifunc.support import evaluation, names, runs
from minifunc.support.hooks import Hooks

# ---------------------------------------------------------------- hooks

TINY = {"n_layers": 2, "n_heads": 2, "d_model": 8, "d_head": 4, "d_mlp": 8, "d_vocab": 9}
VARIANTS = {
    "rotary, RMS": {},
    "learned, LN, attention-only": {
        "positions": "learned",
        "normalization": "LN",
        "act_fn": "none",
    },
}
TOKENS = torch.tensor([[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]])


def small(variant):
    return Transformer(ModelConfig(n_ctx=8, **TINY, **VARIANTS[variant])).requires_grad_(False)


HOOK_POINTS = [(variant, name) for variant in VARIANTS for name in small(variant).hook_names()]


@pytest.mark.parametrize("positions", [None, [1, 4]], ids=["everywhere", "some"])
@pytest.mark.parametrize("variant, name", HOOK_POINTS)
def test_editing_in_place_and_returning_equals_returning_anew(variant, name, positions):
    model = small(variant)

    def in_place(x, name):
        x[:, :1] = 0.5
        x += 0.25
        return x

    def anew(x, name):
        return torch.cat([torch.full_like(x[:, :1], 0.5), x[:, 1:]], dim=1) + 0.25

    before = [weight.clone() for weight in model.parameters()]
    edited, known = model.run_with_hooks(TOKENS, {name: in_place}, positions), model(TOKENS)
    assert torch.equal(edited, model.run_with_hooks(TOKENS, {name: anew}, positions))
    assert all(map(torch.equal, before, model.parameters()))
    assert torch.equal(model(TOKENS), known)
    if positions is None:
        assert not torch.equal(edited, known)


RETURNED = {
    "None": (lambda x: None, "not None"),
    "shape": (lambda x: x[:1], "must return shape"),
    "dtype": (lambda x: x.double(), "must return dtype torch.float32, not torch.float64"),
    "device": (lambda x: x.to("meta"), "must return device cpu, not meta"),
    "list": (lambda x: [x], "must return an activation"),
}


@pytest.mark.parametrize("variant, name", HOOK_POINTS)
def test_what_a_hook_must_not_return_is_refused_by_name(variant, name):
    model = small(variant)
    for wrong, said in RETURNED.values():
        with pytest.raises(ValueError, match=said) as error:
            model.run_with_hooks(TOKENS, {name: lambda x, name: wrong(x)})
        assert f"the hook at {name} must" in str(error.value)


@pytest.mark.parametrize("variant", VARIANTS)
def test_entries_of_a_cache_share_no_memory(variant):
    model = small(variant)
    known, (_, cache) = model(TOKENS), model.run_with_cache(TOKENS)
    weights = [weight.clone() for weight in model.parameters()]
    kept = {name: x.clone() for name, x in cache.items()}
    owners = [x.untyped_storage().data_ptr() for x in (*cache.values(), *model.parameters())]
    assert len(set(owners)) == len(owners)
    for name in cache:
        cache[name][:] = 7.0
        kept[name][:] = 7.0
        assert all(torch.equal(cache[other], kept[other]) for other in cache)
    assert all(map(torch.equal, weights, model.parameters()))
    assert torch.equal(model(TOKENS), known)


# ---------------------------------------------------------------- positions

KINDS = {  # the same positions
    "list": list,
    "tuple": tuple,
    "tensor": torch.tensor,
    "int32": lambda places: torch.tensor(places, dtype=torch.int32),
    "generator": lambda places: (place for place in places),
    "map": lambda places: map(int, places),
    "numpy": lambda places: np.array(places),
    "numpy ints": lambda places: [np.int64(place) for place in places],
    "range": lambda places: range(places[0], places[-1] + 1, places[1] - places[0]),
}


def placed(w, positions):
    """Senders and receivers limited to positions, as they are defined."""
    _, sent = w.model.run_with_cache(w.p.base)
    senders, receivers = (
        [definition.sender("0.1", positions)],
        [definition.receiver("mlp0", w.model.cfg)],
    )
    return definition.path_patch(w.model, w.tokens, sent, senders, receivers)


def read_where(w, positions):
    _, sent = w.model.run_with_cache(w.p.base)
    place = definition.receiver("1.0.v", w.model.cfg, positions)
    return definition.path_patch(w.model, w.tokens, sent, [definition.sender("0.1")], [place])


# By name: what is done with a World and positions, and whether they must ascend.
TAKEN = {
    "forward": lambda w, at: w.model(w.tokens, at),
    "run_from": lambda w, at: w.model.run_from(w.stream(), 1, at),
    "run_with_hooks": lambda w, at: w.model.run_with_hooks(w.tokens, {}, at),
    "run_with_cache": lambda w, at: w.model.run_with_cache(w.tokens, ["hook_embed"], at)[0],
    "sender_positions": lambda w, at: w.patcher().sweep(Resid(1), sender_positions=at).r,
    "HeadInput": lambda w, at: w.patcher().sweep(HeadInput(1, 0, "v", at)).r,
    "MLPInput": lambda w, at: w.patcher().sweep(MLPInput(0, at)).r,
    "Resid": lambda w, at: w.patcher().sweep(Resid(1, at)).r,
    "Ablator.logits": lambda w, at: w.ablator().logits([GROUP], "base", at),
    "logits_plainly": lambda w, at: w.ablator().logits_plainly(GROUP, "base", at),
    "definition.sender": placed,
    "definition.receiver": read_where,
    "attention_shares": lambda w, at: circuit.attention_shares(w.model, w.tokens, at)["1.0"],
}
ASCENDING = {"forward", "run_from", "run_with_hooks", "run_with_cache"}
WRONG = ([-1], [4, -1], [17], [4.0], [True], ["4"], torch.tensor([4.0]), torch.tensor([True]), "4")


@pytest.fixture(scope="module")
def w():
    return World()


@pytest.mark.parametrize("taker", TAKEN)
def test_positions_mean_the_same_however_and_wherever_they_are_given(w, taker):
    def taken(positions):
        return list(map(str, flat(TAKEN[taker](w, positions))))

    wanted = taken([5, 11])
    for kind, made in KINDS.items():
        assert taken(made([5, 11])) == wanted, kind
    assert taken([6, 10]) != wanted


@pytest.mark.parametrize("taker", TAKEN)
def test_positions_that_there_are_not_are_refused(w, taker):
    for wrong in WRONG:
        with pytest.raises(ValueError, match="position"):
            TAKEN[taker](w, wrong)
    for wrong in ([11, 5], [5, 5]) if taker in ASCENDING else ():
        with pytest.raises(ValueError, match="positions must be ascending and distinct, not"):
            TAKEN[taker](w, wrong)


# ---------------------------------------------------------------- all other arguments


def ids(*values):
    return torch.tensor(values)


def put(w, heads):
    return function_vectors.logits_with(
        w.model, w.tokens, function_vectors.last_z(w.model, w.tokens)[0], heads
    )


def vectors_of(w, heads, k=1):
    return function_vectors.study(w.model, w.asking, w.naive, heads, w.numbers, k)


def asked(**changes):
    given = {"task": "addition", "k": 1, "shots": 2, "n_prompts": 3} | changes
    return tasks.evaluation_pairs(**given, generator=drawing())


def sampled(n_documents=4, n_examples=4):
    return tasks.sample(tasks.DEFAULT_DIET, n_documents, n_examples, drawing())


def subsets(w, circuit, groups):
    return completeness.minimality(w.scores(), circuit, groups)


def to_logits(w):
    return w.found.effects["answers"]["logits"].heads


def any_layer(w, heads):
    return ablations.random_group_anywhere(heads, w.model.cfg, drawing())


def reused(w, heads, task):
    return study.reuse(tasks, w.model, heads, [(task, 1)], 2, drawing())


def swept(w, heads, mlps):
    return circuit.sweep_inputs(w.patcher(), heads, mlps, {})


EASY = circuit.Criteria()
NO_HEAD = "no head '9.9' here; there is 0.0, 0.1, 1.0, 1.1"
NO_NAME = "no head '0.-1'"
# By what is wrong: what is called with a World, and what is said.
REFUSED = {
    # tasks
    "documents 0": (lambda w: sampled(0), "n_documents must be a whole number from 1, not 0"),
    "documents -1": (lambda w: sampled(-1), "n_documents must be .* not -1"),
    "documents 4.0": (lambda w: sampled(4.0), "n_documents must be .* not 4.0"),
    "examples 0": (lambda w: sampled(4, 0), "n_examples must be a whole number from 1, not 0"),
    "examples True": (lambda w: sampled(4, True), "n_examples must be .* not True"),
    "shots -1": (lambda w: tasks.n_tokens(-1), "shots must be a whole number from 0, not -1"),
    "answers -1": (lambda w: tasks.answer_positions(-1), "n_examples must be .* from 0, not -1"),
    "numeral 100": (lambda w: tasks.in_base(ids(9, 100), 8), "value must be from 0 to k \\* k - 1"),
    "numeral -3": (lambda w: tasks.in_base(ids(-3), 8), "value must be from 0 .*-3"),
    "base 0": (lambda w: tasks.in_base(ids(3), 0), "value must be from 0"),
    "token -1": (
        lambda w: tasks.decode(ids(5, -1)),
        "must be .* from 0 to 72, not from -1 to 5",
    ),
    "token 73": (
        lambda w: tasks.decode(ids(73)),
        "must be .* from 0 to 72, not from 73",
    ),
    "token True": (lambda w: tasks.decode(ids(True)), "tokens must be int64 .* not torch.bool"),
    "token 1.0": (lambda w: tasks.decode(ids(1.0)), "tokens must be int64 .* not torch.float32"),
    "many texts": (
        lambda w: tasks.decode(w.tokens),
        r"tokens must be of .* not \[6, 17\]",
    ),
    "no task": (lambda w: asked(task="sum"), "unknown task 'sum'; the tasks are addition"),
    "k 5": (lambda w: asked(k=5), "k = 5 is outside the vocabulary"),
    "k 1.0": (lambda w: asked(k=1.0), "k = 1.0 is outside the vocabulary"),
    "prompts 3.5": (lambda w: asked(n_prompts=3.5), "at least one prompt"),
    "shots 0": (lambda w: asked(shots=0), "at least one prompt and one shot"),
    # answers
    "one answer": (lambda w: evaluation.accuracy(w.logits, ids(1)), r"of shape \[40\], not \[1\]"),
    "an answer 9": (lambda w: evaluation.accuracy(w.logits, w.labels + 9), "not from 9 to 11"),
    "one of all": (
        lambda w: evaluation.answers_right(w.model, w.tokens, ids(1)),
        r"answers must be of shape \[6\], not \[1\]",
    ),
    "answers of a row": (lambda w: rows.answered(w.logits, [ids(1), ids(1)]), r"\[40\], not \[1\]"),
    "one prompt": (
        lambda w: evaluation.last_logits(w.model, w.tokens[0]),
        r"must be \[batch, pos",
    ),
    "answer 2": (
        lambda w: circuit.attention_shares(w.model, w.tokens, ids(2)),
        r"answers at distinct positions from 4: not 6 and \[2\]",
    ),
    "no answers": (lambda w: circuit.attention_shares(w.model, w.tokens, []), r"not 6 and \[\]"),
    "no prompts": (
        lambda w: circuit.attention_shares(w.model, w.tokens[:0], ids(5)),
        "at least one prompt",
    ),
    "operand 0": (
        lambda w: circuit.attention_shares(w.model, w.tokens, ids(5), (0,)),
        "operands must be a whole number from 1, not 0",
    ),
    "query -1": (
        lambda w: scores.attention_to(w.model, w.tokens, ids(-1), ids([0])),
        "a query must lie inside",
    ),
    "answer at 0": (
        lambda w: scores.previous_token_score(w.model, w.tokens, ids(0)),
        "a query must lie inside",
    ),
    "period 0": (
        lambda w: scores.copy_induction_score(w.model, w.tokens, 0, ids(5)),
        "a query must lie inside",
    ),
    "query 99": (
        lambda w: scores.copy_induction_score(w.model, w.tokens, 3, ids(99)),
        "a query must lie inside",
    ),
    # heads
    "name": (lambda w: names.parse("x"), "no head 'x': heads are named like '3.1'"),
    "a string": (lambda w: put(w, "0.1"), "a group is a list of heads like"),
    "put in": (lambda w: put(w, ["9.9"]), NO_HEAD),
    "put in -1": (lambda w: put(w, ["0.-1"]), NO_NAME),
    "vectors": (lambda w: vectors_of(w, ["9.9"]), NO_HEAD),
    "vectors of none": (lambda w: vectors_of(w, []), "need different heads"),
    "vectors twice": (lambda w: vectors_of(w, ["0.1", "0.1"]), "need different heads"),
    "vectors k": (lambda w: vectors_of(w, GROUP, k=7), "prompts for k and for k = 0"),
    "inputs": (lambda w: reading.inputs_apart(w.patcher(), w.sources, ["9.9"]), NO_HEAD),
    "inputs -1": (lambda w: reading.inputs_apart(w.patcher(), w.sources, ["0.-1"]), NO_NAME),
    "looks": (lambda w: reading.looks_for(w.model, w.examples, w.query, ["9.9"]), NO_HEAD),
    "hands": (lambda w: reading.hands_over(w.model, w.examples, ["9.9"]), NO_HEAD),
    "greedy": (lambda w: completeness.greedy_subsets(w.scores(), ["9.9"]), NO_HEAD),
    "minimal": (lambda w: subsets(w, ["9.9"], {}), NO_HEAD),
    "minimal group": (lambda w: subsets(w, ["0.1"], {"a": ["9.9"]}), NO_HEAD),
    "in a row": (lambda w: rows.ablation_row(w.for_ablation(), "x", ["9.9"], "base"), NO_HEAD),
    "a circuit": (lambda w: completeness.alone(w.scores(), ["9.9"]), NO_HEAD),
    "at random": (
        lambda w: any_layer(w, ["9.9"]),
        NO_HEAD,
    ),
    "in a layer": (
        lambda w: ablations.random_group(["0.9"], 4, drawing()),
        r"heads must be below 4 in their layers, not \['0.9'\]",
    ),
    "reused": (
        lambda w: reused(w, ["9.9"], "addition"),
        "9.9",
    ),
    "reused task": (
        lambda w: reused(w, GROUP, "sum"),
        "'sum'",
    ),
    "fed": (lambda w: swept(w, ["9.9"], []), "no receiver HeadInput"),
    "fed MLP": (
        lambda w: swept(w, [], ["mlp9"]),
        "no receiver MLPInput",
    ),
    "routed": (lambda w: circuit.route(w.found.effects["answers"], ["9.9"], EASY), "'9.9'"),
    "previous": (lambda w: circuit.previous_token(["9.9"], w.found.attention, EASY), NO_HEAD),
    "direct": (
        lambda w: circuit.direct_groups(to_logits(w), {"0.-1": w.found.attention["0.0"]}, EASY),
        NO_NAME,
    ),
    "receiver True": (
        lambda w: HeadInput(1, True, "q"),
        "head must be a whole number from 0, not True",
    ),
    # what must have as many rows, or the same shape
    "level 2": (lambda w: completeness.eliminate([w.scores()], 2.0), "level must be a share"),
    "no scores": (lambda w: completeness.eliminate([], 0.5), "of one score at least"),
    "one source": (
        lambda w: reading.inputs_apart(w.patcher(), {"a": w.p.base[:1]}, GROUP),
        r"the source 'a' must be of shape \[6, 17\], not \[1, 17\]",
    ),
    "a long source": (
        lambda w: reading.inputs_apart(w.patcher(), {"a": w.p.base.repeat(1, 2)}, GROUP),
        r"the source 'a' must be of shape \[6, 17\], not \[6, 34\]",
    ),
    "one asked": (
        lambda w: reading.looks_for(w.model, w.examples, w.query[:1], ["0.1"]),
        r"asked must be of shape \[360\], not \[1\]",
    ),
    "few labels": (
        lambda w: reading.explained(w.logits, w.labels, w.halves[:5]),
        r"labels must be of shape \[40\], not \[5\]",
    ),
    "no such cells": (lambda w: function_vectors.cells(w.maps[0], 1, 9), "columns do not hold"),
    "no source": (lambda w: rows.control_row(w.for_ablation(), "x", [GROUP], "y"), "source 'y'"),
    "a mean's shape": (
        lambda w: Ablator(w.model, w.tokens, {}, {"m": w.tokens[:, 1:]}),
        r"the mean source 'm' must be tokens \[any number, 17\]",
    ),
    "other prompts": (lambda w: w.ablator().on(w.tokens[:3]), r"must be of shape \[6, 17\]"),
    "a name twice": (
        lambda w: Ablator(w.model, w.tokens, {"m": w.tokens}, {"m": w.tokens}),
        "no source named twice",
    ),
    "answers twice": (
        lambda w: circuit.attention_shares(w.model, w.tokens, [5, 5, 11]),
        "distinct positions",
    ),
    "contrast": (
        lambda w: circuit.discover(
            {"answers": w.patcher(), "operand": w.patcher()}, w.places, EASY
        ),
        "patchers must be by",
    ),
    "other semantics": (
        lambda w: circuit.discover(
            {"answers": w.patcher(), "operands": w.patcher(freeze_mlps=True)}, w.places, EASY
        ),
        "'operands' must be of the same model",
    ),
    "a misspelt hook": (
        lambda w: w.model(w.tokens, None, Hooks({"blocks.0.attn.hook_zz": lambda x, name: x})),
        "no hook point 'blocks.0.attn.hook_zz'",
    ),
    "another shape is sent": (
        lambda w: definition.sender("mlp1").put(torch.zeros(2, 3, 4), torch.zeros(3, 2, 4)),
        r"must be of shape \[2, 3, 4\], not \[3, 2, 4\]",
    ),
    "layer -1": (lambda w: w.model.run_from(w.stream(), -1), "layer must be from 0 to 2, not -1"),
}


@pytest.mark.parametrize("wrong", ["too large", "negative", "no whole numbers"])
def test_tokens_that_are_put_in_are_refused_by_the_name_of_their_source(w, wrong):
    """Wherever prompts are handed over beside others: which of them is wrong is said."""
    d_vocab, tokens = w.model.cfg.d_vocab, w.tokens.clone()
    tokens[-1, -1] = d_vocab if wrong == "too large" else -1
    tokens = w.tokens.float() if wrong == "no whole numbers" else tokens
    good = {"a": w.p.base}
    for put_in in (
        lambda: Ablator(w.model, w.tokens, good | {"odd": tokens}),
        lambda: Ablator(w.model, w.tokens, good, means={"odd": tokens}),
        lambda: reading.inputs_apart(w.patcher(), good | {"odd": tokens}, GROUP),
    ):
        with pytest.raises(ValueError, match="^the source 'odd' must be (tokens|int64)"):
            put_in()


def test_receivers_of_the_definition_are_read_once_and_answers_fit_the_prompts(w):
    _, sent = w.model.run_with_cache(w.p.base)
    receivers = [definition.receiver("logits", w.model.cfg)]
    patched = [
        definition.path_patch(w.model, w.tokens, sent, [definition.sender("0.1")], given)
        for given in (receivers, iter(receivers))
    ]
    assert torch.equal(*patched)
    with pytest.raises(RuntimeError):
        definition.effect(patched[0], patched[0], patched[0], torch.stack(w.answers, 1)[:3])


def test_prompts_are_kept_however_the_caller_s_change(w):
    given = [tokens.clone() for tokens in w.prompts]
    patcher = PathPatcher(w.model, *given, *w.answers)
    ablator = Ablator(w.model, given[1], {"base": given[0]})
    before = ablator.logits_plainly(GROUP, "base")
    for tokens in given:
        tokens.fill_(5)
    for source in ("base", "mean"):
        assert torch.equal(
            patcher.sweep(Logits(), source=source).r, w.patcher().sweep(Logits(), source=source).r
        )
    assert torch.equal(ablator.logits_plainly(GROUP, "base"), before)


@pytest.mark.parametrize("wrong", REFUSED)
def test_a_wrong_argument_is_refused_by_name(w, wrong):
    call, said = REFUSED[wrong]
    with pytest.raises(ValueError, match=said) as error:
        call(w)
    assert "\n" not in str(error.value)


def test_a_folder_without_a_run_and_a_run_of_other_words_are_refused(tmp_path):
    with pytest.raises(runs.UserError, match="config.json is missing"):
        runs.load_run(tmp_path)
    with pytest.raises(runs.UserError, match="another vocabulary"):
        runs.load_run(runs.REFERENCE, vocabulary=["a"])
    with pytest.raises(RuntimeError, match="device"):
        runs.load_run(runs.REFERENCE, device="gpu")
