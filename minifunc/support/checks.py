"""Checks of a configuration. A wrong value raises ValueError: it names the field, and what fits."""

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from itertools import product
from typing import Any

from torch import Tensor

KNOWN = {  # by field of a `ModelConfig`
    "positions": ("rotary", "learned", "none"),
    "normalization": ("RMS", "LN"),
    "act_fn": ("gelu", "relu", "none"),
}


def check_model_config(cfg: Any) -> None:
    """Raises ValueError for a `ModelConfig` of a shape that cannot be built."""
    for field in fields(cfg):
        name, value = field.name, getattr(cfg, field.name)
        if field.type is int:
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


def check_tokens(tokens: Tensor, n_ctx: int) -> None:
    """Raises ValueError for tokens that a context of n_ctx positions cannot take."""
    if tokens.ndim != 2 or not 1 <= tokens.shape[1] <= n_ctx:
        wanted = f"[batch, pos] with 1 to {n_ctx} positions"
        raise ValueError(f"tokens must be {wanted}, not {list(tokens.shape)}")


def check_hook_names(names: Iterable[str], known: Collection[str]) -> None:
    """Raises ValueError, with the nearest names, for one that is no hook point."""
    for name in names:
        if name not in known:
            near = ", ".join(difflib.get_close_matches(name, known, 3))
            raise ValueError(f"no hook point {name!r}" + (f"; close ones: {near}" if near else ""))


def check_pairs(d_vocab: int, base: Tensor, contrast: Tensor, *answers: Tensor) -> None:
    """Raises ValueError unless tokens are [n_prompts, pos] of one shape, and answers [n_prompts]
    tokens of the vocabulary."""
    if base.shape != contrast.shape or base.ndim != 2 or 0 in base.shape:
        must = "base and contrast tokens must be [n_prompts, pos] of one shape"
        raise ValueError(f"{must}, not {list(base.shape)} and {list(contrast.shape)}")
    if any(given.shape != base.shape[:1] for given in answers):
        shapes = " and ".join(str(list(given.shape)) for given in answers)
        raise ValueError(f"answers must be [n_prompts] = [{len(base)}], not {shapes}")
    if any(given.min() < 0 or given.max() >= d_vocab for given in answers):
        raise ValueError(f"answers must be tokens, from 0 to {d_vocab - 1}")


def check_positions(positions: Iterable[int], n_pos: int) -> None:
    """Raises ValueError for a position that the prompts do not have."""
    for position in positions:
        if not 0 <= position < n_pos:
            have = f"the prompts have positions 0 to {n_pos - 1}"
            raise ValueError(f"position {position} is out of range: {have}")


def check_source(source: str | Tensor, tokens: Tensor) -> None:
    """Raises ValueError unless senders can send that in place of what they do on `tokens`."""
    if isinstance(source, Tensor):
        check_shape("source tokens must be", source, tokens)
    elif source not in ("base", "mean", "zero"):
        raise ValueError(f"source must be 'base', 'mean', 'zero' or tokens, not {source!r}")


def check_shape(must_be: str, source: Tensor, tokens: Tensor) -> None:
    """Raises ValueError unless a source has one prompt for each of `tokens`, as long."""
    if source.shape != tokens.shape:
        wanted = f"{list(tokens.shape)} like the prompts"
        raise ValueError(f"{must_be} {wanted}, not {list(source.shape)}")


def check_heads(names: Iterable[str], known: Sequence[str]) -> None:
    """Raises ValueError for a head that is not among those of the model."""
    for name in names:
        if name not in known:
            raise ValueError(f"no head {name!r}; this model has heads {known[0]} to {known[-1]}")


def _has_receiver(cfg: Any, hooks: Collection[str], receiver: Any) -> bool:
    if not hasattr(receiver, "stage"):
        return False
    if receiver.is_stream and receiver.stage(cfg) == 2 * cfg.n_layers:
        return receiver.positions is None  # only the last position of it reaches the answer
    has_head = receiver.head is None or 0 <= receiver.head < cfg.n_heads
    is_input = receiver.head is None or receiver.which in ("q", "k", "v")
    return receiver.hook in hooks and has_head and is_input


def check_F_range(F_range: float) -> None:
    """Raises ValueError where base and contrast run do not differ in F, so that r is undefined."""
    if not abs(F_range) > 1e-6:  # also where it is NaN
        why = "the model does not tell these prompts apart, or a weight is not finite"
        raise ValueError(f"F_contrast - F_base is {F_range:.2g}, so r is undefined: {why}")


def checked_group(entry: Any, model: Any, n_pos: int) -> tuple[Any, ...]:
    """A receiver, or the different ones of a list. Raises ValueError for receivers that the model
    lacks, or that name one place twice."""
    group = tuple(dict.fromkeys(entry if isinstance(entry, list | tuple) else [entry]))
    cfg, hooks = model.cfg, model.hook_names()
    for receiver in group:
        if not _has_receiver(cfg, hooks, receiver):
            size = f"{cfg.n_layers} layers × {cfg.n_heads} heads"
            raise ValueError(f"this model of {size} has no receiver {receiver!r}")
        check_positions(receiver.positions or (), n_pos)
    places = sorted(map(str, group))
    if not group or len(set(places)) < len(places):
        rule = "must name each place once, with all its positions"
        raise ValueError(f"a list of receivers {rule}, not {places}")
    return group


def check_train_config(cfg: Any) -> None:
    """Raises ValueError for a `TrainConfig` whose fields are no numbers, or not within bounds."""
    least = {"steps": 1, "documents": 1, "examples": 2, "eval_every": 1}
    most = {"documents": 100_000, "examples": 100_000}
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
    met = [symbol for symbol in diet.functions if diet.weight(symbol) * getattr(diet, wrapper)]
    return [symbol for symbol in met if (wrapper, symbol) not in diet.never]


def check_diet(
    diet: Any, wrappers: Sequence[str], symbols: Sequence[str], shifts: Sequence[int]
) -> None:
    """Raises ValueError for a diet that holds what there is not, or that leaves nothing to draw."""
    cells = list(product(wrappers[1:], symbols))
    may_hold = {"never": cells, "functions": symbols, "shifted_addition": shifts}
    for field, known in may_hold.items():
        for name in getattr(diet, field):
            if name not in known:
                names = ", ".join(map(str, known))
                raise ValueError(f"a diet's {field} cannot hold {name!r}, only {names}")
    for field in (*wrappers, "addition", "caesar", "choice", "mixed"):
        weight, most = getattr(diet, field), 1 if field == "mixed" else 1e6
        if weight != 0 and not 1e-6 <= weight <= most:
            raise ValueError(f"a diet's {field} must be 0, or from 1e-6 to {most:g}")
    met = [wrapper for wrapper in wrappers if getattr(diet, wrapper)]
    empty = [wrapper for wrapper in met if not met_under(diet, wrapper)]
    if empty or not met:
        where = empty[0] if empty else "any wrapper"
        raise ValueError(f"the diet leaves no function to be met under {where}")


def check_request(tasks: Mapping[str, Any], task: str, k: int, counts: tuple[int, int]) -> None:
    """Raises ValueError for prompts that there are none of. counts: of prompts and of shots."""
    if task not in tasks:
        raise ValueError(f"unknown task {task!r}; the tasks are {', '.join(tasks)}")
    ks, kind = tasks[task].ks, "bases" if tasks[task].wrapper == "base" else "shifts"
    if k not in ks:
        known = f"which for {task} holds {kind} from {ks[0]} to {ks[-1]}"
        raise ValueError(f"k = {k} is outside the vocabulary, {known}")
    if min(counts) < 1:
        found = " and ".join(map(str, counts))
        raise ValueError(f"at least one prompt and one shot are needed, not {found}")


def check_shares(criteria: Any) -> None:
    """Raises ValueError unless every field lies above 0 and not above 1."""
    for name, value in vars(criteria).items():
        if not 0 < value <= 1:
            must = "is a share: it must lie above 0 and not above 1"
            raise ValueError(f"{name.replace('_', '-')} {must}, not {value}")
