"""Limits that are stated: the last value that fits is taken, the next one is refused by name.

Each line of a table holds values worked out by hand: those on both sides of a bound.
"""

import math
from argparse import Namespace
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import tasks
from minifunc.circuit import Criteria
from minifunc.model import ModelConfig, Transformer
from minifunc.patching import HeadInput, KVInput, Logits, MLPInput, Resid
from minifunc.support import checks, flags, memory, settings
from minifunc.support.errors import UserError
from train import TrainConfig

SMALL = ModelConfig(n_layers=3, n_heads=4, d_model=8, d_head=4, d_mlp=8, d_vocab=9)


def ids(*values, dtype=torch.int64):
    return torch.tensor(values, dtype=dtype)


def holds(call, fit, refused, error=ValueError, says="."):
    """Asserts that the values that fit are taken, and that all others are refused."""
    for value in fit:
        call(value)
    for value in refused:
        with pytest.raises(error, match=says) as caught:
            call(value)
        assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- numbers

INFINITE = (math.nan, math.inf, -1)
MODEL_FIELDS = {  # field: the values at its bounds that fit, those that do not
    "n_layers": ([1, 1000], [0, 1001, True, 2.0]),
    "n_heads": ([1, 1000], [0, 1001]),
    "d_model": ([1, 10**6], [0, 10**6 + 1, "8"]),
    "d_mlp": ([1, 10**6], [0, 10**6 + 1]),
    "d_vocab": ([1, 10**6], [0, 10**6 + 1]),
    "n_ctx": ([1, 10**6], [0, 10**6 + 1]),
    "d_head": ([2, 4, 10**6], [0, 10**6 + 2, 3]),  # even: rotary positions turn pairs
    "eps": ([1e-300, 1, 1e299], [0, 0.0, 1e300, True, *INFINITE]),
    "rotary_base": ([1e-300, 10, 1e299], [0, 1e300, *INFINITE]),
    "n_kv_heads": ([None, 1, 2, 4], [0, 3, 8, -2, 2.0, True]),
    "positions": (["rotary", "learned", "none"], ["Rotary", None, ["rotary"]]),
    "normalization": (["RMS", "LN"], ["rms"]),
    "act_fn": (["gelu", "relu", "silu", "none"], ["tanh"]),
    "gated_mlp": ([True, False], [0, 1, None]),
    "tied_embeddings": ([True, False], [0, 1, None]),
    "qkv_bias": ([True, False], [0, 1, None]),
    "rotary_divisors": (
        [(), (1, 1e299), (1e-300, 8.0)],
        [None, [1.0, 2.0], (1.0,), (1, 2, 3), (1, 0), (1, 1e300), (1, True), (1, "2"), 2.0]
        + [(1.0, x) for x in INFINITE],
    ),
}


@pytest.mark.parametrize("field", MODEL_FIELDS)
def test_a_field_of_a_model_fits_up_to_its_bounds_and_no_further(field):
    fit, refused = MODEL_FIELDS[field]
    says = "d_head" if field == "d_head" else f"model config: {field} must be "
    holds(lambda value: replace(SMALL, **{field: value}), fit, refused, says=says)


def test_every_field_of_a_model_has_its_bounds_here():
    assert {field.name for field in fields(ModelConfig)} == MODEL_FIELDS.keys()


def test_the_parts_of_a_model_that_exclude_each_other():
    replace(SMALL, positions="learned", d_head=3)
    replace(SMALL, act_fn="none", gated_mlp=False)
    holds(lambda x: replace(SMALL, **x), [], [{"act_fn": "none", "gated_mlp": True}], says="gated")


TRAIN_FIELDS = {
    "seed": ([0, 2**32 - 1], [-1, 2**32, 0.5, True]),
    "steps": ([1, 2**40], [0, 2**40 + 1, 1.0]),
    "documents": ([1, 100_000], [0, 100_001]),
    "examples": ([2, 100_000], [1, 100_001]),
    "long_every": ([0, 2**40], [-1, 2**40 + 1]),
    "lr": ([1e-9, 1, 2**40], [0, 0.0, -1e-9, 2**40 + 1, True, "1", math.nan, math.inf]),
    "beta2": ([0, 0.0, 0.999], [1, 1.0, -0.1, math.nan]),
    "weight_decay": ([0, 0.0, 5.0], [-0.1, math.nan]),
    "warmup": ([0, 5], [-1, 0.5]),
    "clip": ([1e-9, 1], [0, -1.0, math.nan]),
    "eval_every": ([1, 2**40], [0, 2**40 + 1]),
}


@pytest.mark.parametrize("field", TRAIN_FIELDS)
def test_a_setting_of_training_fits_up_to_its_bounds_and_no_further(field):
    fit, refused = TRAIN_FIELDS[field]
    holds(lambda value: replace(TrainConfig(), **{field: value}), fit, refused, says=field)


def test_every_setting_of_training_has_its_bounds_here():
    assert {field.name for field in fields(TrainConfig)} == TRAIN_FIELDS.keys()


def test_a_bound_is_told_in_numbers():
    """The lowest and the highest that fit, and what was given."""
    with pytest.raises(ValueError, match="^steps must be a number from 1 to 1099511627776, not 0$"):
        TrainConfig(steps=0)
    with pytest.raises(ValueError, match="documents must be a number from 1 to 100000, not 100001"):
        TrainConfig(documents=100_001)
    with pytest.raises(ValueError, match="seed must be a number from 0 to 4294967295, not -1"):
        TrainConfig(seed=-1)
    with pytest.raises(ValueError, match="n_heads must be a whole number from 1 to 1000, not 2000"):
        replace(SMALL, n_heads=2000)
    with pytest.raises(ValueError, match="d_mlp must be a whole number from 1 to 1000000, not 0"):
        replace(SMALL, d_mlp=0)


@dataclass(frozen=True)
class Shares:
    first_share: float = 1.0
    other: float = 0.5


def test_a_share_lies_above_0_and_not_above_1_in_every_field():
    def check(value):
        checks.check_shares(Shares(*value))

    tiny = 1e-300
    holds(check, [(1.0, 1.0), (1, tiny), (tiny, 1)], [(0.0, 1.0), (1.0, 0.0), (1.01, 1), (1, -1)])
    holds(check, [], [(math.nan, 1), (2.5, 1)], says="^first-share is a share: .*, not (nan|2.5)$")
    for name in asdict(Criteria()):
        with pytest.raises(ValueError, match=name.replace("_", "-")):
            replace(Criteria(), **{name: 0.0})


def test_a_whole_number_is_counted_from_its_least():
    assert [checks.counted("n", n, 2) for n in (2, np.int64(3))] == [2, 3]
    assert type(checks.counted("n", np.int64(3))) is int
    says = "^n must be a whole number from {}, not "
    holds(lambda n: checks.counted("n", n), [1, 2], [0, -1, True, 1.0, "1"], says=says.format(1))
    holds(lambda n: checks.counted("n", n, 3), [3], [2, True], says=says.format(3))
    holds(lambda n: checks.counted("n", n, 0), [0], [-1, False], says=says.format(0))


def test_a_layer_is_one_of_the_models_or_its_end():
    assert [checks.check_layer(layer, 3) for layer in range(4)] == [0, 1, 2, 3]
    says = "layer must be from 0 to 3, not"
    holds(lambda layer: checks.check_layer(layer, 3), [], [-1, 4], says=says)


def test_a_numeral_has_one_or_two_digits_in_its_own_base():
    fit = [(ids(0, 63), 8), (ids(63, 35), ids(8, 6)), (ids(80), 9)]
    refused = [(ids(64), 8), (ids(0, -1), 8), (ids(63, 36), ids(8, 6)), (ids(81), 9)]
    holds(lambda given: checks.numerals(*given), fit, refused, says="value must be from 0")
    assert checks.numerals(ids(5, 63), 8).tolist() == [5, 63]


@pytest.mark.parametrize("F_range", [1.1e-6, -1.1e-6, 5.0, -5.0, 1e-6, -1e-6, 0.0, math.nan])
def test_prompts_that_a_model_tells_apart_differ_by_more_than_a_millionth(F_range):
    told = pytest.raises(ValueError, match="F_contrast - F_base is .*, so r is undefined")
    with nullcontext() if abs(F_range) > 1e-6 else told:
        checks.check_F_range(F_range)


# ---------------------------------------------------------------- tokens, shapes


def test_tokens_are_those_of_the_vocabulary_in_two_axes():
    fit = [
        ids([0, 8]),
        ids([3]),
        ids([8, 0], dtype=torch.int32),
        ids([0, 0, 0, 0, 0], [8, 8, 8, 8, 8]),
    ]
    refused = {
        "must be tokens, from 0 to 8, not from 0 to 9": ids([0, 9]),
        "must be tokens, from 0 to 8, not from -1 to 3": ids([3, -1]),
        r"with 1 to 5 positions, not \[1, 6\]": ids([0] * 6),
        r"with 1 to 5 positions, not \[2, 0\]": torch.zeros(2, 0, dtype=torch.int64),
        r"positions, not \[2\]": ids(0, 1),
        r"positions, not \[1, 1, 2\]": ids([[0, 1]]),
        "must be int64 .or int32., not torch.int16": ids([0, 1], dtype=torch.int16),
        "not torch.uint8": ids([0, 1], dtype=torch.uint8),
        "not torch.bool": ids([0, 1], dtype=torch.bool),
        "not torch.float32": ids([0, 1], dtype=torch.float32),
        r"tokens must be a Tensor, not \[\[0\]\]": [[0]],
    }
    holds(lambda tokens: checks.check_tokens(tokens, 9, 5), fit, [])
    for says, tokens in refused.items():
        holds(lambda tokens: checks.check_tokens(tokens, 9, 5), [], [tokens], says=says)
    checks.check_tokens(torch.zeros(1, 10**4, dtype=torch.int64), 9)  # any number of positions
    checks.check_ids("labels", torch.zeros(0, dtype=torch.int64), 9)
    holds(lambda x: checks.check_ids("labels", x, 9), [ids(8)], [ids(9), ids(-1)], says="^labels")


def test_tokens_off_the_cpu_are_not_looked_at():
    there = torch.empty(2, dtype=torch.int64, device="meta")
    checks.check_ids("tokens", there, 9)
    assert checks.ascending(there, 9).device.type == "meta"
    with pytest.raises(ValueError, match="int64"):
        checks.check_ids("tokens", torch.empty(2, device="meta"), 9)


def test_a_text_of_tokens_is_one_list():
    assert checks.token_list(ids(0, 8, dtype=torch.int32), 9) == [0, 8]
    refused = [ids([0, 1]), torch.tensor(3), ids(9), ids(0.0, dtype=torch.float32)]
    holds(lambda tokens: checks.token_list(tokens, 9), [ids(3)], refused)


def test_what_is_of_another_type_is_told_in_one_short_line():
    with pytest.raises(ValueError) as caught:
        checks.of_type(bool, "flag", np.zeros((50, 50)))
    said = str(caught.value)
    assert said.startswith("flag must be a bool, not array") and "\n" not in said
    with pytest.raises(ValueError, match=f"^flag must be a bool, not '{'x' * 59}$"):
        checks.of_type(bool, "flag", "x" * 99)
    assert checks.of_type(int, "flag", True) is True


PAIR = ids([0, 1], [2, 3], [4, 5])


def test_a_pair_of_prompts_has_one_shape_and_an_answer_for_each():
    answers = ids(0, 8, 3)
    fit = [(PAIR, PAIR, answers, answers), (PAIR, PAIR)]
    refused = [
        (PAIR, PAIR[:2]),
        (PAIR, PAIR[:, :1]),
        (PAIR[:2], PAIR),
        (PAIR[0], PAIR[0]),
        (PAIR[None], PAIR[None]),
        (PAIR[:0], PAIR[:0]),
        (PAIR[:, :0], PAIR[:, :0]),
        (PAIR, PAIR + 4),
        (PAIR - 1, PAIR),
        (PAIR, PAIR, answers, answers[:2]),
        (PAIR, PAIR, answers[:1], answers),
        (PAIR, PAIR, answers[:, None], answers),
        (PAIR, PAIR, answers, answers + 1),
        (PAIR, PAIR, answers - 1, answers),
    ]
    holds(lambda given: checks.check_pairs(9, *given), fit, refused)


def test_sources_have_the_shape_of_the_prompts_and_means_their_positions():
    other, wide = ids([1, 1], [1, 1], [1, 1]), torch.zeros(3, 3, dtype=torch.int64)
    fit = [({"a": other}, {"b": other[:1]}), ({}, {"b": other.repeat(4, 1)}), ({}, {})]
    refused = {
        "named twice: 3, .'a'.": ({"a": other}, {"a": other}),
        r"source 'a' must be of shape \[3, 2\], not \[1, 2\]": ({"a": other[:1]}, {}),
        r"source 'a' must be of shape \[3, 2\], not \[3, 3\]": ({"a": wide}, {}),
        r"mean source 'b' must be tokens .any number, 2. .*, not \[3, 3\]": ({}, {"b": wide}),
        r"mean source 'b' .*, not \[0, 2\]": ({}, {"b": other[:0]}),
        r"mean source 'b' .*, not \[2\]": ({}, {"b": other[0]}),
        r"mean source 'b' .*, not \[1, 3, 2\]": ({}, {"b": other[None]}),
        "source 'a' must be tokens": ({"a": other + 8}, {}),
        "source 'b' must be tokens": ({"a": other}, {"b": other + 8}),
    }
    holds(lambda given: checks.check_sources(9, PAIR, *given), fit, [])
    for says, given in refused.items():
        holds(lambda given: checks.check_sources(9, PAIR, *given), [], [given], says=says)
    for prompts in (PAIR[:0], PAIR[0], PAIR + 8):
        holds(lambda prompts: checks.check_sources(9, prompts, {}, {}), [], [prompts])


def test_what_senders_send_is_named_or_of_the_shape_of_the_prompts():
    fit = ["base", "mean", "zero", PAIR + 1]
    holds(lambda source: checks.check_source(source, PAIR), fit, ["Base", "", None, 0, PAIR[:1]])


def test_what_is_put_in_place_of_another_has_its_shape():
    x = torch.zeros(2, 3)
    assert checks.alike(x, torch.ones(2, 3)) is x
    refused = [torch.zeros(1, 3), torch.zeros(3, 2), torch.zeros(2, 3, 1), 0.0]
    holds(lambda other: checks.alike(x, other), [], refused)
    holds(lambda given: checks.alike(given, x), [], refused, says="in place of another must be")


# ---------------------------------------------------------------- positions


def test_positions_are_whole_numbers_that_the_prompts_have():
    assert checks.checked_positions(None, 3) == (0, 1, 2)
    assert checks.checked_positions([2, 0, 2], 3) == (2, 0, 2)
    assert checks.checked_positions([], 3) == () == checks.whole_numbers(iter([]))
    assert checks.whole_numbers(None) is None and checks.whole_numbers([-1]) == (-1,)
    says = "^position {} is out of range: the prompts have positions 0 to 2$"
    holds(lambda at: checks.checked_positions(at, 3), [], [[0, 3]], says=says.format(3))
    holds(lambda at: checks.checked_positions(at, 3), [], [[-1, 0]], says=says.format(-1))
    holds(checks.whole_numbers, [], [3, [1.0], [True], ["1"], [None]], says="whole numbers, like")


def test_positions_that_must_ascend_are_all_if_none_are_named():
    assert checks.ascending(None, 3).tolist() == [0, 1, 2]
    assert checks.ascending((0, 2), 3).tolist() == [0, 2]
    assert checks.ascending(ids(1, dtype=torch.int32), 3).dtype == torch.int64
    assert checks.ascending([], 3).dtype == torch.int64
    refused = [[1, 0], [0, 0], [0, 3], [-1, 0]]
    holds(lambda at: checks.ascending(at, 3), [[0, 1, 2]], refused, says="position")


def test_answers_leave_room_for_the_operands_before_them():
    tokens = torch.zeros(2, 9, dtype=torch.int64)
    assert checks.answers_seen(tokens, [4, 8], (4, 2)).tolist() == [4, 8]
    for answers in ([8, 1], range(1, 9)):
        assert checks.answers_seen(tokens, answers, ()).tolist() == list(answers)
    assert checks.answers_seen(tokens, [2], (2, 1)).tolist() == [2]
    for answers, operands, far in (
        ([3, 8], (4, 2), 4),
        ([0], (), 1),
        ([], (4, 2), 4),
        ([5, 5], (4,), 4),
    ):
        with pytest.raises(ValueError, match=f"at distinct positions from {far}: not 2 and"):
            checks.answers_seen(tokens, answers, operands)
    with pytest.raises(ValueError, match="not 0 and"):
        checks.answers_seen(tokens[:0], [4], (4,))
    for given in ((tokens, [9], (4,)), (tokens, [4], (0,))):
        holds(lambda given: checks.answers_seen(*given), [], [given])
    for shape in ([9], [2, 9, 1], []):
        with pytest.raises(ValueError, match="^tokens must be of shape "):
            checks.answers_seen(torch.zeros(shape, dtype=torch.int64), [4], (4,))


# ---------------------------------------------------------------- names

NODES = ("embedding", "mlp0", "0.0", "0.0.v", "0.kv0.v", "logits", "resid0")


def test_a_node_is_known_by_its_kind_whatever_its_numbers():
    fit = ["embedding", "mlp12", "3.14", "3.14.q", "3.14.k", "3.14.v", "2.kv1.k", "2.kv1.v"]
    refused = ["2.kv1.q", "3.14.z", "mlp", "mlp-1", "3", "3.", "x3.1", "3.1 ", "", "resid", None]
    holds(lambda name: checks.checked_node(name, *NODES), [*fit, "logits", "resid3"], refused)
    for name in ("3.1.q", "3.1.k", "3.1.v"):  # only where the head's inputs are known
        says = f"^no node '{name}': there is embedding, mlp0, 0.0, or another number$"
        holds(lambda name: checks.checked_node(name, *NODES[:3]), [], [name], says=says)
    assert checks.checked_node("mlp7", *NODES) == "mlp7"


def test_a_head_is_chosen_where_there_are_heads_and_positions_where_there_are_no_pairs():
    block = "blocks.1."
    of_heads = ["q", "k", "v", "z", "rot_q", "rot_k", "k_of_heads", "v_of_heads"]
    names = Transformer(replace(SMALL, n_kv_heads=2, gated_mlp=True)).hook_names()
    for name in names:
        short, pairs = name.rpartition("hook_")[2], name.endswith(("scores", "pattern"))
        has_head = short in of_heads and ".attn." in name
        holds(
            lambda given: checks.checked_place(*given),
            [(None, None, name), *[(1, None, name)] * has_head, *[(None, [1], name)] * (not pairs)],
            [*[(1, None, name)] * (not has_head), *[(None, [1], name)] * pairs],
            says="has no head .* or positions .* to choose",
        )
    assert checks.checked_place(0, iter([3, 1]), f"{block}attn.hook_z") == (3, 1)
    holds(lambda head: checks.checked_place(head, None), [0, 99, None], [-1, True, 1.0, "0"])


def test_a_name_that_is_no_hook_point_is_told_with_the_three_nearest():
    known = ["hook_embed", "hook_embeds", "hook_embedx", "hook_embedy", "other"]
    checks.check_hook_names(known, known)
    with pytest.raises(ValueError, match="no hook point 'hook_embe'; close ones: ") as caught:
        checks.check_hook_names(["other", "hook_embe"], known)
    assert str(caught.value).count("hook_") == 4
    with pytest.raises(ValueError, match="^no hook point 'zzz'$"):
        checks.check_hook_names(["zzz"], known)


def test_a_group_holds_known_heads_alone():
    known = ["0.0", "0.1", "1.0"]
    assert checks.checked_heads(iter(["1.0", "0.0", "1.0"]), known) == {"0.0", "1.0"}
    holds(lambda group: checks.checked_heads(group, known), [[], known], [["0.0", "1.1"]])
    with pytest.raises(ValueError, match="^a group is a list of heads like .*, not '0.0'$"):
        checks.checked_heads("0.0", known)
    with pytest.raises(ValueError, match="^no head '9.9' here; there is 0.0, 0.1, 1.0$"):
        checks.checked_heads(["9.9"], known)


RECEIVERS = (
    [Logits(), MLPInput(0), MLPInput(2), Resid(0), Resid(2), Resid(3)]
    + [HeadInput(2, 3, kind, [0, 4]) for kind in "qkv"]
    + [MLPInput(2, [4]), Resid(2, [4])]
)
NO_RECEIVERS = (
    [HeadInput(3, 0, "q"), HeadInput(0, 4, "q"), HeadInput(-1, 0, "q"), HeadInput(0, 0, "z")]
    + [MLPInput(3), MLPInput(-1), Resid(4), Resid(-1), Resid(3, [1]), KVInput(0, 0, "v")]
    + [HeadInput(0, 0, "q", [5]), MLPInput(0, [-1]), MLPInput(0.0), MLPInput(True)]
    + [HeadInput, Logits, "logits", None, 3, object()]
)


def test_a_receiver_is_one_that_the_model_has_at_positions_that_prompts_have():
    model = Transformer(SMALL)
    holds(lambda one: checks.checked_group(one, model, 5), RECEIVERS, NO_RECEIVERS)
    attention_only = Transformer(replace(SMALL, act_fn="none"))
    holds(lambda one: checks.checked_group(one, attention_only, 5), [Resid(3)], [MLPInput(0)])
    grouped = Transformer(replace(SMALL, n_kv_heads=2))
    fit = [*RECEIVERS, KVInput(0, 0, "k"), KVInput(2, 1, "v", [4])]
    refused = [KVInput(0, 2, "v"), KVInput(0, 0, "q"), KVInput(3, 0, "k"), KVInput(0, 1, "v", [5])]
    holds(lambda one: checks.checked_group(one, grouped, 5), fit, refused)
    with pytest.raises(ValueError, match="^this model of 3 layers × 4 heads has no receiver"):
        checks.checked_group(HeadInput(3, 0, "q"), model, 5)
    with pytest.raises(ValueError, match="3 layers × 4 heads in groups of 2 has no receiver"):
        checks.checked_group(KVInput(0, 2, "v"), grouped, 5)


def test_a_group_of_receivers_names_each_place_once():
    model, one, other = Transformer(SMALL), HeadInput(1, 0, "q"), MLPInput(1)
    assert checks.checked_group(one, model, 5) == (one,)
    assert checks.checked_group([other, one, other], model, 5) == (other, one)
    refused = [[], (), [one, HeadInput(1, 0, "q", [2])], [one, HeadInput(9, 0, "q")]]
    holds(lambda group: checks.checked_group(group, model, 5), [(one, other)], refused)


def test_readers_are_swept_heads_and_all_together():
    effects = {"0.1.v": 1, "1.0.v": 1, "1.0.q": 1}
    assert checks.receivers_in(effects, ["1.0", "0.1"]) == ["1.0", "0.1", "function_induction"]
    assert checks.receivers_in({}, ["9.9"]) == ["9.9", "function_induction"]
    says = "^no effects on the head '2.0', only on 0.1.v, 1.0.v, 1.0.q$"
    holds(lambda fi: checks.receivers_in(effects, fi), [[]], [["1.0", "2.0"]], says=says)


def test_patchers_of_one_study_share_model_contrast_prompts_and_semantics():
    def patcher(model="m", tokens=PAIR, freeze=False):
        return SimpleNamespace(model=model, contrast_tokens=tokens, freeze_mlps=freeze)

    known, first = ["answers", "operands"], patcher()
    fit = [{"answers": first}, {"operands": patcher(tokens=PAIR.clone()), "answers": first}]
    others = [patcher("other"), patcher(tokens=PAIR + 1), patcher(tokens=PAIR[:1])]
    others += [patcher(freeze=True)]
    refused = [{"answers": first, "operands": other} for other in others]
    refused += [{}, {"operands": first}, {"answers": first, "bases": first}]
    holds(lambda given: checks.same_prompts(given, known), fit, refused, says="patcher")
    assert checks.same_prompts(fit[1], known) is fit[1]


def test_a_hook_returns_what_fits_in_its_place():
    x = torch.zeros(2, 3)
    assert checks.check_returned("here", x, torch.ones(2, 3)) is x
    refused = [torch.zeros(3, 2), x.double(), x.to("meta"), None, 0.0]
    says = "^the hook at here must return "
    holds(lambda y: checks.check_returned("here", y, x), [torch.ones(2, 3)], refused, says=says)


def test_a_place_is_at_a_hook_point_of_the_model():
    places = [SimpleNamespace(hook="b"), SimpleNamespace(hook="a")]
    assert checks.checked_places(iter(places), ["a", "b", "c"]) == places
    with pytest.raises(ValueError, match="^no hook point 'b'; close ones: |^no hook point 'b'$"):
        checks.checked_places(places, ["a", "c"])
    with pytest.raises(ValueError, match="^no hook point"):
        checks.checked_places([3], ["a", "c"])


def test_weights_are_known_by_where_they_lie_and_by_their_versions():
    model = Transformer(SMALL).requires_grad_(False)
    known = checks.weights_of(model)
    assert checks.weights_of(model, known) == known and len(known) == len([*model.parameters()])
    model.unembed.W_U.mul_(1)
    with pytest.raises(ValueError, match="^the model's weights have changed since its runs were"):
        checks.weights_of(model, known)
    with torch.inference_mode():
        assert {version for _, version in checks.weights_of(Transformer(SMALL))} == {0}


# ---------------------------------------------------------------- diets, prompts

DIET_FIELDS = {
    "never": (
        [(), (("shift", "+"),), (("base", "+"),)],
        [(("none", "+"),), (("shift", "?"),)],
    ),
    "functions": ([("+",)], [("?",)]),
    "shifts": ([(1, -4), ()], [(0,), (5,), (-5,)]),
    "bases": ([(6, 9), ()], [(10,), (5,)]),
    "shifted_addition": ([(), (2,)], [(5,), (0,)]),
    "shift": ([0, 1e-6, 1e6], [-1, 9e-7, 1.1e6, math.nan]),
    "copy": ([0, 1e-6, 1e6], [-1, 9e-7, 1.1e6]),
    "addition": ([1e-6, 1e6], [-1, 9e-7, 1.1e6]),
    "caesar": ([0, 1e-6, 1e6], [-1, 1.1e6]),
    "choice": ([0, 1e-6, 1e6], [-1, 1.1e6]),
    "mixed": ([0, 1e-6, 1, 0.5], [-1, 9e-7, 1.01, math.nan]),
    "even_sums": ([True, False], [0, 1, None]),
}


@pytest.mark.parametrize("field", DIET_FIELDS)
def test_a_field_of_a_diet_fits_up_to_its_bounds_and_no_further(field):
    fit, refused = DIET_FIELDS[field]
    diet = replace(tasks.DIETS["strict"], never=())

    def change(value):
        changed = {field: value}
        if field == "shifts":  # else nothing is left to be met under it
            changed |= {"shift": float(bool(value)), "shifted_addition": ()}
        if field == "bases":
            changed |= {"base": float(bool(value))}
        return replace(diet, **changed)

    holds(change, fit, refused, says=field)


def test_a_diet_leaves_a_function_to_be_met_under_each_wrapper_that_it_shows():
    plus = replace(tasks.DIETS["strict"], functions=("+",), never=())
    wrappers = [field for field in ("shift", "base", "reflect", "copy") if getattr(plus, field)]
    assert len(wrappers) >= 3
    for wrapper in wrappers:
        with pytest.raises(ValueError, match=f"leaves no function to be met under {wrapper}$"):
            replace(plus, never=((wrapper, "+"),))
        replace(plus, never=((wrapper, "+"),), **{wrapper: 0})
        replace(plus, never=((wrapper, "max"),))
    with pytest.raises(ValueError, match="met under shift"):
        replace(plus, shifts=(), shifted_addition=())
    with pytest.raises(ValueError, match="met under base"):
        replace(plus, bases=())


def test_a_function_without_a_weight_is_not_met_nor_one_that_is_never_shown():
    diet = replace(tasks.DIETS["strict"], functions=("+", "max", "min"), never=(("base", "min"),))
    met = {wrapper: checks.met_under(diet, wrapper) for wrapper in ("shift", "base")}
    assert met == {"shift": ["+", "max", "min"], "base": ["+", "max"]}
    light = replace(diet, addition=0)
    assert checks.met_under(light, "shift") == ["max", "min"]
    assert checks.met_under(replace(diet, shift=0), "shift") == []
    alone = {"functions": ("+", "max"), "never": (("shift", "max"),)}
    with pytest.raises(ValueError, match="met under shift$"):
        replace(light, **alone)


def test_prompts_are_asked_of_a_task_a_k_and_at_least_one_of_each():
    def check(given):
        checks.check_request(tasks.TASKS, *given)

    fit = [("addition", k, (1, 1)) for k in (-4, 0, 4)] + [("caesar", np.int64(1), (1, 1))]
    fit += [("base_addition", k, (1, 1)) for k in (6, 9)]
    holds(check, fit, [("addition", 1, (0, 1)), ("addition", 1, (1, 0)), ("addition", 1, (1, 2.0))])
    says = "k = {} is outside the vocabulary, which for {} holds {} from {} to {}$"
    for k in (-5, 5):
        shifts = says.format(k, "addition", "shifts", -4, 4)
        holds(check, [], [("addition", k, (1, 1))], says=shifts)
    ks = tasks.TASKS["base_addition"].ks
    bases = says.format(11, "base_addition", "bases", ks[0], ks[-1])
    holds(check, [], [("base_addition", 11, (1, 1))], says=bases)
    holds(check, [], [("sum", 1, (1, 1))], says="^unknown task 'sum'; the tasks are addition, ")
    holds(check, [], [("addition", 1, (3, -2))], says="are needed, not 3 and -2$")


# ---------------------------------------------------------------- flags


def study(**changes):
    return SimpleNamespace(**({"shots": 2, "k": 1, "seed": 0, "prompts": 8} | changes))


def test_a_study_fits_the_context_and_its_own_bounds():
    fit = [{"k": -1}, {"seed": 2**32 - 1}, {"prompts": 100_000}, {"k": 4}]
    refused = [{"k": 0}, {"seed": -1}, {"seed": 2**32}, {"prompts": 100_001}]
    holds(lambda x: flags.check_study(study(**x), 17, 17), fit, refused, UserError)
    says = "^--shots 2 makes prompts of 17 tokens; the model's context holds 16$"
    holds(lambda n_ctx: flags.check_study(study(), 17, n_ctx), [17, 18], [16], UserError, says)
    said = "--seed must be from 0 to 2.32 - 1, and --prompts at most 100000"
    holds(lambda x: flags.check_study(study(**x), 17, 17), [], [{"seed": -1}], UserError, said)


def test_a_flag_lies_within_its_bounds_both_of_them_allowed():
    def check(value):
        flags.check_flag(Namespace(some_count=value), "some_count", 3, 5)

    says = "^--some-count must be from 3 to 5$"
    holds(check, [3, 4, 5], [2, 6, -3], UserError, says)


def test_a_flag_of_zero_was_given():
    @dataclass(frozen=True)
    class Settings:
        warmup: int = 200
        lr: float = 0.5
        name: str = "x"

    parser = flags.Parser("x.py")
    flags.add_flags(parser, "settings", Settings())
    given = parser.parse_args(["--warmup", "0", "--lr", "0", "--name", ""])
    assert flags.from_flags(given, Settings()) == Settings(0, 0.0, "")
    assert vars(parser.parse_args([])) == {"warmup": None, "lr": None, "name": None}
    with pytest.raises(UserError, match=r"^unrecognized arguments: --no \(see x.py --help\)$"):
        parser.parse_args(["--no"])


def test_the_flags_of_a_study_are_those_of_its_fields_and_criteria():
    parser = flags.Parser("x.py")
    flags.add_study_flags(parser, Shares(), Criteria())
    plain = vars(parser.parse_args([]))
    assert plain["device"] == "auto" and plain["json"] is None and plain["max_memory"] is None
    assert plain["full"] is False and plain["freeze_mlps"] is False
    assert plain.keys() >= {*asdict(Shares()), *asdict(Criteria())}
    words = ["--freeze-mlps", "--full", "--max-memory", ".5", "--json", "a", "--other", ".25"]
    given = parser.parse_args(words)
    assert given.freeze_mlps is given.full is True and given.max_memory == 0.5
    assert flags.from_flags(given, Shares()) == Shares(other=0.25)


# ---------------------------------------------------------------- settings


def test_the_flags_of_training_are_bounded_and_told_with_the_defaults_that_hold():
    defaults = {"train": TrainConfig(warmup=77), "model": SMALL, "diet": tasks.DEFAULT_DIET}

    def read(*words):
        return settings.run_arguments(list(words), "About.", defaults, tasks.DIETS)

    plain = vars(read())
    assert plain["out"] == "out/default" and plain["device"] == "auto" and not plain["resume"]
    assert plain["table_prompts"] == 500 and plain["warmup"] is None and plain["diet"] is None
    assert read("--n-ctx", "5", "--resume").n_ctx == 5
    fit, refused = ["8", "100000"], ["7", "0", "100001"]
    says = "^--table-prompts must be from 8 to 100000$"
    holds(lambda n: read("--table-prompts", n), fit, refused, UserError, says)
    parser = flags.Parser("x.py")
    flags.add_flags(parser, "training", defaults["train"])
    assert "default: 77" in parser.format_help()


def named(**changes):
    names = ("d_vocab", "n_ctx", "out", "resume")
    return Namespace(**(dict.fromkeys(names) | {"out": "a", "resume": False} | changes))


@pytest.mark.parametrize("resume, place", [(False, "^"), (True, "^a.config.json: ")])
def test_a_model_has_room_for_what_is_needed_of_every_field(resume, place):
    needs, arguments = {"d_vocab": 9, "n_ctx": 16}, named(resume=resume)

    def check(shape):
        model = replace(SMALL, **dict(zip(needs, shape)))
        settings.check_room(arguments, model, needs, "its prompts")

    says = f"{place}the model needs d_vocab >= 9 and n_ctx >= 16 for its prompts$"
    holds(check, [(9, 16), (10, 17)], [(8, 16), (9, 15)], UserError, says)


def test_a_field_read_from_json_has_its_type():
    @dataclass(frozen=True)
    class Settings:
        count: int = 1
        share: float = 0.5
        pairs: tuple = ()
        flag: bool = False
        name: str = "x"
        maybe: int | None = None

        def __post_init__(self):
            if self.count == 99:
                raise ValueError("count is 99\nand more")

    def read(values):
        return settings.from_json(Settings(), values, "here")

    given = {"count": 2, "share": 1, "pairs": [[1, ["a"]]], "flag": True, "name": "y", "maybe": 3}
    assert read(given) == Settings(2, 1, ((1, ("a",)),), True, "y", 3)
    assert read({}) == Settings() and read({"maybe": None}) == Settings()
    refused = {
        "count": [1.0, True, "1", None],
        "share": ["1", True, None],
        "pairs": ["ab", {}, 3],
        "flag": [0, None],
        "name": [1, None],
        "maybe": [1.0, True, "1"],
    }
    for name, values in refused.items():
        for value in values:
            holds(read, [], [{name: value}], UserError, f"^here: {name} cannot be ")
    fields_known = "^here must hold the fields count, share, pairs, flag, name, maybe and no others"
    holds(read, [], [{"other": 1}, [], None, 3, {"count": 1, "x": 1}], UserError, fields_known)
    holds(read, [], [{"count": 99}], UserError, "^here: count is 99$")


def test_a_budget_of_memory_is_a_positive_finite_number_of_gibibytes():
    def budget(gib):
        return memory.MemoryBudget(Transformer(SMALL), 5, gib)

    refused = [0, -1.0, math.nan, math.inf, 2**20]
    holds(budget, [1, 0.5, 2**20 - 1], refused, says="max_memory must be a positive number of GiB")
    assert budget(None).half == 2**30 == budget(2).half
    made = budget(1)
    needed = made.row_bytes(5) + made.cache_bytes()
    exact = needed / 2**30
    holds(budget, [exact], [exact * (1 - 1e-9)], says="too small for one row, which needs")
    with pytest.raises(ValueError, match=f"max_memory of {exact / 2:.3g} GiB .* {exact:.3g} GiB"):
        budget(exact / 2)
