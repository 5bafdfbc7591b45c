"""Checks of a configuration. A wrong value raises ValueError: it names the field, and what fits."""

import difflib
import operator
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from itertools import chain, product
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

Positions = Iterable[int] | Tensor | None  # whole numbers from 0; None: everywhere
MOST_SEED = 2**32 - 1  # a CPU's generator takes 32 bits: a larger seed would draw as another does

KNOWN = {  # by field of a `ModelConfig`
    "positions": ("rotary", "learned", "none"),
    "normalization": ("RMS", "LN"),
    "act_fn": ("gelu", "relu", "silu", "none"),
}


def check_model_config(cfg: Any) -> None:
    """Raises ValueError for a `ModelConfig` of a shape that cannot be built."""
    for field in fields(cfg):
        name, value = field.name, getattr(cfg, field.name)
        if name == "n_kv_heads":
            fits = value is None or (type(value) is int and 1 <= value and not cfg.n_heads % value)
            must = f"None or a whole number that divides n_heads = {cfg.n_heads}"
        elif name == "rotary_divisors":
            n_pairs = cfg.d_head // 2 if cfg.positions == "rotary" else 0
            fits = type(value) is tuple and len(value) in (0, n_pairs)
            fits = fits and all(type(x) in (int, float) and 0 < x < 1e300 for x in value)
            must = f"() or a tuple of positive numbers, one for each of {n_pairs} rotary pairs"
        elif field.type is bool:
            fits, must = type(value) is bool, "a bool"
        elif field.type is int:
            most = 1000 if name in ("n_layers", "n_heads") else 1_000_000
            fits = type(value) is int and 1 <= value <= most
            must = f"a whole number from 1 to {most}"
        elif field.type is float:
            fits = type(value) in (int, float) and 0 < value < 1e300  # an int may be larger
            must = "a positive number"
        else:
            fits, must = value in KNOWN[name], f"one of {', '.join(KNOWN[name])}"
        if not fits:
            raise ValueError(f"model config: {name} must be {must}, not {value!r:.60}")
    if cfg.positions == "rotary" and cfg.d_head % 2:
        raise ValueError(f"model config: rotary positions need an even d_head, not {cfg.d_head}")
    if cfg.gated_mlp and not cfg.has_mlp:
        raise ValueError("model config: gated_mlp needs an act_fn, not 'none'")


def check_tokens(tokens: Tensor, d_vocab: int, n_ctx: int = 2**40) -> None:
    """Raises ValueError unless tokens are [batch, pos] whole numbers of the vocabulary, and fit.
    Those on a GPU are not looked at: it would have to wait."""
    if of_type(Tensor, "tokens", tokens).ndim != 2 or not 1 <= tokens.shape[1] <= n_ctx:
        wanted = f"[batch, pos] with 1 to {n_ctx} positions"
        raise ValueError(f"tokens must be {wanted}, not {list(tokens.shape)}")
    check_ids("tokens", tokens, d_vocab)


def check_ids(name: str, ids: Tensor, d_vocab: int) -> None:
    """Raises ValueError unless ids are int32 or int64, and tokens of the vocabulary."""
    if of_type(Tensor, name, ids).dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{name} must be int64 (or int32), not {ids.dtype}")
    if ids.device.type == "cpu" and ids.numel() and (ids.min() < 0 or ids.max() >= d_vocab):
        must = f"{name} must be tokens, from 0 to {d_vocab - 1}"
        raise ValueError(f"{must}, not from {ids.min()} to {ids.max()}")


def of_type(kind: type, name: str, given: Any) -> Any:
    """What was given. Raises ValueError unless it is of this type: nothing is turned into it."""
    if not isinstance(given, kind):
        raise ValueError(f"{name} must be a {kind.__name__}, not {given!r:.60}".splitlines()[0])
    return given


def weights_of(model: Any, known: Any = None) -> list[tuple[int, int]]:
    """Where each weight lies, and its version. Raises ValueError where that is not as `known`."""
    weights = chain(*(module._parameters.values() for module in model.modules()))
    found = [(w.data_ptr(), 0 if w.is_inference() else w._version) for w in weights]
    if known not in (None, found):
        raise ValueError("the model's weights have changed since its runs were kept: start anew")
    return found


def check_layer(layer: int, n_layers: int) -> int:
    """The layer. Raises ValueError unless the model has it; n_layers is its end."""
    if not 0 <= layer <= n_layers:
        raise ValueError(f"layer must be from 0 to {n_layers}, not {layer!r:.60}")
    return layer


def token_list(tokens: Tensor, d_vocab: int) -> list[int]:
    """Token ids [pos] as a list. Raises ValueError unless they are tokens of the vocabulary."""
    check_ids("tokens", tokens, d_vocab)
    check_shape("tokens", tokens, [tokens.numel()])
    return [int(token) for token in tokens]


def counted(name: str, number: int, least: int = 1) -> int:
    """The number. Raises ValueError unless it is a whole one, and not below `least`."""
    if isinstance(number, bool) or not isinstance(number, Integral) or number < least:
        raise ValueError(f"{name} must be a whole number from {least}, not {number!r:.60}")
    return int(number)


def numerals(value: Tensor, k: Tensor | int) -> Tensor:
    """The values. Raises ValueError for one that has not one or two digits in base k."""
    if not ((value >= 0) & (value < k * k)).all():
        raise ValueError(f"value must be from 0 to k * k - 1 for base k, not {value!s:.60}")
    return value


def check_hook_names(names: Iterable[str], known: Collection[str]) -> None:
    """Raises ValueError, with the nearest names, for one that is no hook point."""
    for name in names:
        if name not in known:
            near = ", ".join(difflib.get_close_matches(name, known, 3))
            raise ValueError(f"no hook point {name!r}" + (f"; close ones: {near}" if near else ""))


def check_returned(name: str, returned: Any, activation: Tensor) -> Tensor:
    """What a hook returned. Raises ValueError unless it fits in the place of `activation`."""
    if not isinstance(returned, Tensor):
        raise ValueError(f"the hook at {name} must return an activation, not {returned!r:.60}")
    for what in ("shape", "dtype", "device"):
        wanted, found = getattr(activation, what), getattr(returned, what)
        if found != wanted:
            raise ValueError(f"the hook at {name} must return {what} {wanted}, not {found}")
    return returned


def check_pairs(d_vocab: int, base: Tensor, contrast: Tensor, *answers: Tensor) -> None:
    """Raises ValueError unless tokens are [n_prompts, pos] of one shape, answers [n_prompts]."""
    for tokens in (base, contrast):
        check_ids("tokens", tokens, d_vocab)
    if base.shape != contrast.shape or base.ndim != 2 or 0 in base.shape:
        must = "base and contrast tokens must be [n_prompts, pos] of one shape"
        raise ValueError(f"{must}, not {list(base.shape)} and {list(contrast.shape)}")
    check_answers(d_vocab, len(base), *answers)


def check_answers(d_vocab: int, n_prompts: int, *answers: Tensor) -> None:
    """Raises ValueError unless there is one token of the vocabulary for each prompt."""
    for given in answers:
        check_shape("answers", given, [n_prompts])
        check_ids("answers", given, d_vocab)


def whole_numbers(positions: Positions) -> tuple[int, ...] | None:
    """Positions given as any iterable, once read. Raises ValueError for what is no whole number."""
    if positions is None:
        return None
    try:
        given = positions.tolist() if isinstance(positions, Tensor) else list(positions)
        if any(isinstance(position, bool) for position in given):
            raise TypeError
        return tuple(operator.index(position) for position in given)
    except TypeError:
        must = "positions must be whole numbers, like [0, 3] or range(4)"
        raise ValueError(f"{must}, not {positions!r:.60}") from None


def checked_place(head: Any, positions: Positions, hook: str = "hook_z") -> tuple[int, ...] | None:
    """`whole_numbers` of a place in the model. Raises ValueError for a head below 0 too, for a head
    where there are none, and for positions where there are pairs of them."""
    counted("head", 0 if head is None else head, 0)
    of_heads = re.search("_[qkvz](_of_heads)?$", hook)
    of_pairs = re.search("scores$|pattern$", hook)
    if (head is not None and not of_heads) or (positions is not None and of_pairs):
        raise ValueError(f"{hook} has no head {head} or positions {positions} to choose")
    return whole_numbers(positions)


def checked_node(name: str, *known: str) -> str:
    """The name. Raises ValueError unless it is among those known, but for numbers; v: or q, k."""
    kind = re.sub(r"\d+", "0", str(name))
    kind = {"0.0.q": "0.0.v", "0.0.k": "0.0.v", "0.kv0.k": "0.kv0.v"}.get(kind, kind)
    if kind not in known:
        raise ValueError(f"no node {name!r:.60}: there is {', '.join(known)}, or another number")
    return name


def checked_places(given: Iterable[Any], hooks: Collection[str]) -> list[Any]:
    """The places. Raises ValueError for one at no hook point."""
    places = list(given)
    check_hook_names([getattr(place, "hook", repr(place)) for place in places], hooks)
    return places


def checked_positions(positions: Positions, n_pos: int) -> tuple[int, ...]:
    """`whole_numbers`, all of them if None. Raises ValueError for one the prompts do not have."""
    chosen = whole_numbers(range(n_pos) if positions is None else positions) or ()
    for position in chosen:
        if not 0 <= position < n_pos:
            have = f"the prompts have positions 0 to {n_pos - 1}"
            raise ValueError(f"position {position} is out of range: {have}")
    return chosen


def ascending(positions: Positions, n_pos: int) -> Tensor:
    """Positions [query] int64. Raises ValueError unless each is larger than the one before. Those
    on a GPU are not looked at: it would have to wait."""
    if isinstance(positions, Tensor) and positions.device.type != "cpu":
        check_shape("positions", positions, [positions.numel()])
        check_ids("positions", positions, n_pos)
        return positions.long()
    chosen = checked_positions(positions, n_pos)
    if list(chosen) != sorted(set(chosen)):
        raise ValueError(f"positions must be ascending and distinct, not {list(chosen)!s:.60}")
    return torch.tensor(chosen, dtype=torch.int64)


def check_source(source: str | Tensor, tokens: Tensor) -> None:
    """Raises ValueError unless senders can send that in place of what they do on `tokens`."""
    if isinstance(source, Tensor):
        check_shape("source tokens", source, tokens.shape)
    elif str(source) not in ("base", "mean", "zero"):
        raise ValueError(f"source must be 'base', 'mean', 'zero' or tokens, not {source!r:.60}")


def check_shape(name: str, given: Tensor, shape: Sequence[int]) -> None:
    """Raises ValueError unless `given` has this shape: nothing is stretched to fit."""
    if of_type(Tensor, name, given).shape != tuple(shape):
        raise ValueError(f"{name} must be of shape {list(shape)}, not {list(given.shape)}")


def alike(given: Tensor, other: Tensor, name: str = "what is put in place of another") -> Tensor:
    """What was given. Raises ValueError unless it has the shape of the other."""
    check_shape(name, given, of_type(Tensor, name, other).shape)
    return given


def check_sources(
    d_vocab: int, tokens: Tensor, sources: Mapping[str, Tensor], means: Mapping[str, Tensor]
) -> None:
    """Raises ValueError unless sources have the shape of tokens [n_prompts, pos], means its pos."""
    check_tokens(tokens, d_vocab)
    twice = sorted(sources.keys() & means.keys())
    if twice or not len(tokens):
        rule = "there must be prompts, and no source named twice"
        raise ValueError(f"{rule}: {len(tokens)}, {twice}")
    for name, source in (*sources.items(), *means.items()):
        check_ids(f"the source {name!r}", source, d_vocab)
    for name, source in sources.items():
        check_shape(f"the source {name!r}", source, tokens.shape)
    for name, source in means.items():
        if source.ndim != 2 or not len(source) or source.shape[1] != tokens.shape[1]:
            must = f"must be tokens [any number, {tokens.shape[1]}] like the prompts"
            raise ValueError(f"the mean source {name!r} {must}, not {list(source.shape)}")


def checked_heads(group: Iterable[str], known: Sequence[str]) -> frozenset[str]:
    """The heads of a group. Raises ValueError for one that is not among those known."""
    if isinstance(group, str):
        raise ValueError(f"a group is a list of heads like ['3.1'], not {group!r}")
    names = frozenset(group)
    for name in names:
        if name not in known:
            raise ValueError(f"no head {name!r} here; there is {', '.join(known) or 'none':.60}")
    return names


def _has_receiver(cfg: Any, hooks: Collection[str], receiver: Any) -> bool:
    layer = getattr(receiver, "layer", 0)
    if isinstance(receiver, type) or not hasattr(receiver, "stage") or type(layer) is not int:
        return False
    if receiver.is_stream and receiver.stage(cfg) == 2 * cfg.n_layers:
        return receiver.positions is None  # only the last position of it reaches the answer
    has_head = all(head < cfg.n_heads for head in receiver.heads(cfg))
    is_input = receiver.head is None or receiver.which in receiver.kinds
    return is_input and has_head and receiver.hook(cfg) in hooks


def answers_seen(tokens: Tensor, answers: Positions, operands: Sequence[int]) -> Tensor:
    """Positions of answers [n_shots] int64. Raises ValueError for none, for one that tokens
    [n_prompts, pos] do not have, and where an operand, so far before, would lie outside."""
    check_shape("tokens", tokens, [*of_type(Tensor, "tokens", tokens).shape, 1, 1][:2])
    chosen = checked_positions(answers, tokens.shape[1])
    far = max([1, *(counted("operands", back) for back in operands)])
    if not len(tokens) or not chosen or min(chosen) < far or len(set(chosen)) < len(chosen):
        needs = f"at least one prompt, and answers at distinct positions from {far}"
        raise ValueError(f"{needs}: not {len(tokens)} and {list(chosen)!s:.60}")
    return torch.tensor(chosen, dtype=torch.int64)


def receivers_in(effects: Mapping[str, Any], fi: Sequence[str]) -> list[str]:
    """The heads `fi`, and all together. Raises ValueError for one of which nothing was swept."""
    if missing := [head for head in fi if effects and f"{head}.v" not in effects]:
        raise ValueError(f"no effects on the head {missing[0]!r}, only on {', '.join(effects)}")
    return [*fi, "function_induction"]


def same_prompts(patchers: Mapping[str, Any], known: Sequence[str]) -> Mapping[str, Any]:
    """The patchers, by what is changed. Raises ValueError for a name that is not known, unless all
    are of one model, the same contrast prompts, and the same semantics."""
    first = patchers.get("answers")
    if first is None or not patchers.keys() <= set(known):
        raise ValueError(f'patchers must be by {known}, "answers" among them, not {list(patchers)}')
    for name, other in patchers.items():
        same = other.model is first.model and other.freeze_mlps == first.freeze_mlps
        if not same or not torch.equal(other.contrast_tokens, first.contrast_tokens):
            what = "of the same model, contrast prompts and freeze_mlps"
            raise ValueError(f"the patcher {name!r} must be {what} as the others")
    return patchers


def check_F_range(F_range: float) -> None:
    """Raises ValueError where base and contrast run do not differ in F, so that r is undefined."""
    if not abs(F_range) > 1e-6:  # also where it is NaN
        why = "the model does not tell these prompts apart, or a weight is not finite"
        raise ValueError(f"F_contrast - F_base is {F_range:.2g}, so r is undefined: {why}")


def checked_group(entry: Any, model: Any, n_pos: int) -> tuple[Any, ...]:
    """A receiver, or those of a list. Raises ValueError for one there is not, or two alike."""
    group = tuple(entry) if isinstance(entry, list | tuple) else (entry,)
    cfg, hooks = model.cfg, model.hook_names()
    for receiver in group:
        if not _has_receiver(cfg, hooks, receiver):
            size = f"{cfg.n_layers} layers × {cfg.n_heads} heads"
            size += f" in groups of {cfg.n_sharing}" if cfg.n_sharing > 1 else ""
            raise ValueError(f"this model of {size} has no receiver {receiver!r}")
        checked_positions(receiver.positions, n_pos)
    group = tuple(dict.fromkeys(group))
    places = sorted(map(str, group))
    if not group or len(set(places)) < len(places):
        rule = "must name each place once, with all its positions"
        raise ValueError(f"a list of receivers {rule}, not {places}")
    return group


def check_train_config(cfg: Any) -> None:
    """Raises ValueError for a `TrainConfig` whose fields are no numbers, or not within bounds."""
    least = {"steps": 1, "documents": 1, "examples": 2, "eval_every": 1}
    most = {"documents": 100_000, "examples": 100_000, "seed": MOST_SEED}
    for field in fields(cfg):
        value = getattr(cfg, field.name)
        low, high = least.get(field.name, 0), most.get(field.name, 2**40)
        is_number = type(value) is field.type or (field.type is float and type(value) is int)
        if not is_number or not low <= value <= high:
            bounds = f"from {low} to {high}"
            raise ValueError(f"{field.name} must be a number {bounds}, not {value!r:.60}")
    if not cfg.lr > 0 or not cfg.clip > 0 or not cfg.beta2 < 1:
        raise ValueError("lr and clip must be positive, and beta2 below 1")


def met_under(diet: Any, wrapper: str) -> list[str]:
    """The functions that a diet shows under a wrapper, whatever the k."""
    ks = {"shift": diet.shifts, "base": diet.bases}
    if not getattr(diet, wrapper) or (wrapper in ks and not ks[wrapper]):
        return []
    met = [symbol for symbol in diet.functions if diet.weight(symbol)]
    return [symbol for symbol in met if (wrapper, symbol) not in diet.never]


def check_diet(
    diet: Any, wrappers: Sequence[str], symbols: Sequence[str], shifts: range, bases: range
) -> None:
    """Raises ValueError for a diet that holds what there is not, or that leaves nothing to draw."""
    cells = list(product(wrappers[1:], symbols))
    may_hold = {"never": cells, "functions": symbols, "shifted_addition": diet.shifts}
    may_hold |= {"shifts": [k for k in shifts if k], "bases": bases}
    for field, known in may_hold.items():
        for name in getattr(diet, field):
            if name not in known:
                names = ", ".join(map(str, known))
                raise ValueError(f"a diet's {field} cannot hold {name!r}, only {names}")
    for field in (*wrappers, "addition", "caesar", "choice", "mixed"):
        weight = getattr(diet, field)
        most = 1 if field == "mixed" else 1e6
        if weight != 0 and not 1e-6 <= weight <= most:
            raise ValueError(f"a diet's {field} must be 0, or from 1e-6 to {most:g}")
    of_type(bool, "a diet's even_sums", diet.even_sums)
    met = [wrapper for wrapper in wrappers if getattr(diet, wrapper)]
    empty = [wrapper for wrapper in met if not met_under(diet, wrapper)]
    if empty or not met:
        where = empty[0] if empty else "any wrapper"
        raise ValueError(f"the diet leaves no function to be met under {where}")


def check_request(tasks: Mapping[str, Any], task: str, k: int, counts: tuple[int, int]) -> None:
    """Raises ValueError for prompts that there are none of. counts: of prompts and of shots."""
    if task not in tasks:
        raise ValueError(f"unknown task {task!r}; the tasks are {', '.join(tasks)}")
    ks = tasks[task].ks
    kind = "bases" if tasks[task].wrapper == "base" else "shifts"
    if k not in ks or not isinstance(k, Integral):
        known = f"which for {task} holds {kind} from {ks[0]} to {ks[-1]}"
        raise ValueError(f"k = {k} is outside the vocabulary, {known}")
    if not all(isinstance(n, Integral) for n in counts) or min(counts) < 1:
        found = " and ".join(map(str, counts))
        raise ValueError(f"at least one prompt and one shot are needed, not {found}")


def check_shares(criteria: Any) -> None:
    """Raises ValueError unless every field lies above 0 and not above 1."""
    for name, value in vars(criteria).items():
        if not 0 < value <= 1:
            must = "is a share: it must lie above 0 and not above 1"
            raise ValueError(f"{name.replace('_', '-')} {must}, not {value}")
