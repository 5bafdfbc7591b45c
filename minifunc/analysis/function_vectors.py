"""Function vectors: what do FI heads write at the last `=`, and does it carry +k elsewhere?

What a head holds there (its z), mean over prompts off by k, is its function vector, FV(k). It is
put into naive prompts, which show no shift, at the same head. Everything after is live.

    contrast    1 + 1 = 2+k ; … ; 3 + 3 =     FV(k) is the mean of a head's z at the last `=`
    naive       2 same _ = 2 ;  5 same _ =    FV(k) is added to that head's z at the last `=`

A map is the picture of arXiv 2507.09875: cells say how much logit(y) (columns) rises at input x
(rows, here 5). A head that carries +k raises the cells y = x + k. FV(k, s) is the mean over the
prompts that ask for s: is +k one direction, whatever is asked, or does it turn with s?
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from statistics import fmean

import torch
from torch import Tensor

from minifunc.ablation import all_heads
from minifunc.analysis.activations import activations
from minifunc.model import Transformer
from minifunc.support.checks import check_shape, checked_heads, of_type
from minifunc.support.evaluation import finite, last_logits
from minifunc.support.hooks import Hooks
from minifunc.support.names import Found, Heads, parse
from minifunc.support.tables import rounded, table, table_of_heads

WAYS = ("added", "replaced", "swapped")  # z + FV(k); FV(k) in place of z; z + FV(k) - FV(0)
ALL = slice(None)
Parts = dict[str, Tensor]  # logits [n_rows, d_vocab] by what was changed: a head, or "all"


@dataclass(frozen=True)
class Numbers:
    """Token ids of consecutive numbers: tokens[i] is the number first + i."""

    tokens: Tensor  # [n_numbers] int64
    first: int


def hook_points(model: Transformer, heads: Iterable[str], *kinds: str) -> list[str]:
    """The hook points of these kinds in the layers of `heads`, from below up. Raises ValueError
    for a head there is not."""
    found = checked_heads(heads, all_heads(model.cfg))
    layers = sorted({parse(head)[0] for head in found})
    return [f"blocks.{layer}.{kind}" for layer in layers for kind in kinds]


def last_z(model: Transformer, tokens: Tensor) -> Tensor:
    """z at the last position of tokens [n_prompts, pos]: [n_prompts, n_layers, n_heads, d_head]."""
    names = [f"blocks.{layer}.attn.hook_z" for layer in range(model.cfg.n_layers)]
    z = activations(model, tokens, names, lambda z: z[:, -1], last=True)
    return torch.stack(list(z.values()), dim=1)


def logits_with(
    model: Transformer, tokens: Tensor, vectors: Tensor, heads: Heads, replace: bool = False
) -> Tensor:
    """Logits [n_rows, d_vocab] at the last position of tokens [n_rows, pos], z of `heads` changed.

    vectors [n_rows or 1, n_layers, n_heads, d_head] are added to z at that position, or replace it.
    """
    cfg, n_vectors = model.cfg, 1 if len(vectors) == 1 else len(tokens)
    check_shape("vectors", vectors, [n_vectors, cfg.n_layers, cfg.n_heads, cfg.d_head])
    names, replace = hook_points(model, heads, "attn.hook_z"), of_type(bool, "replace", replace)

    def change(z: Tensor, name: str) -> Tensor:  # [n_rows, pos, head, d_head]
        layer = int(name.split(".")[1])
        here = [index for block, index in map(parse, heads) if block == layer]
        put_in = vectors[:, layer, here]
        z[:, -1, here] = put_in if replace else z[:, -1, here] + put_in
        return z

    return last_logits(model, tokens, Hooks(dict.fromkeys(names, change)))


def cells(change: Tensor, zero: int, k: int) -> Tensor:
    """The cells y = x + k, [n_inputs], of a map [n_inputs, n_numbers], number 0 in column `zero`.
    Raises ValueError where the map has no such column."""
    n_inputs, n_numbers = change.shape
    if zero + k < 0 or zero + k + n_inputs > n_numbers:
        missing = f"x{k:+d} for each of the {n_inputs} inputs"
        raise ValueError(f"the {n_numbers} columns do not hold {missing}")
    return change.diagonal(zero + k)


def promotes(change: Tensor, zero: int, k: int) -> float:
    """How much a map raises x + k: its cell minus the mean of the row's others, mean over x."""
    wanted = cells(change, zero, k)
    return (wanted - (change.sum(-1) - wanted) / (change.shape[-1] - 1)).mean().item()


def moves(change: Tensor, zero: int, k: int) -> float:
    """How much a map moves the answer from x to x + k: that cell minus cell x, mean over x."""
    return (cells(change, zero, k) - cells(change, zero, 0)).mean().item()


def adds_up(parts: Tensor, whole: Tensor) -> dict[str, float]:
    """Do the maps parts [n_parts, n_inputs, n_numbers] sum to the map of all put in together?

    Rows are centred: a constant on all logits means nothing. r2: 1 - |whole - sum|² / |whole|²;
    correlation of sum and whole; ratio: the factor that brings the sum closest to the whole.
    """
    check_shape("whole", whole, parts.shape[1:])
    total, whole = (x - x.mean(-1, keepdim=True) for x in (parts.sum(0).double(), whole.double()))
    of_total, of_whole = (max(x.square().sum().item(), 1e-12) for x in (total, whole))
    across = (total * whole).sum().item()
    r2 = 1 - (whole - total).square().sum().item() / of_whole
    correlation = across / math.sqrt(of_whole * of_total)
    return rounded({"r2": r2, "correlation": correlation, "ratio": across / of_total})


def explained(vectors: Tensor, labels: Tensor) -> float:
    """Share, 0 to 1, of the variance of vectors [..., width] between groups of one label [...]."""
    x = vectors.double().flatten(0, -2)  # [n, width]
    x = x - x.mean(0)
    labels = labels.flatten().to(x.device)
    _, group, counts = labels.unique(return_inverse=True, return_counts=True)
    means = x.new_zeros(len(counts), x.shape[1]).index_add_(0, group, x) / counts[:, None]
    return ((means.square().sum(1) * counts).sum() / x.square().sum().clamp(min=1e-30)).item()


class Naive:
    """Naive prompts [n_inputs, n_demos, pos] that vectors are tried on; row x is to be answered x.
    All n_rows = n_inputs * n_demos run together."""

    def __init__(self, model: Transformer, prompts: Tensor, numbers: Numbers, heads: Heads) -> None:
        self.model, self.heads, self.zero = model, heads, -numbers.first
        self.numbers = numbers.tokens.to(model.device)
        self.n_inputs, n_demos, _ = prompts.shape
        self.tokens = prompts.flatten(0, 1)  # [n_rows, pos]
        self.inputs = torch.arange(self.n_inputs, device=model.device).repeat_interleave(n_demos)
        self.before = last_logits(model, self.tokens)  # [n_rows, d_vocab]

    def logits(self, vectors: Tensor, replace: bool = False) -> Tensor:
        """`logits_with` the vectors of all heads."""
        return logits_with(self.model, self.tokens, vectors, self.heads, replace)

    def parts(self, vectors: Tensor) -> Parts:
        """`logits_with` the vector of each head added, and "all": of all heads."""
        alone = {head: logits_with(self.model, self.tokens, vectors, [head]) for head in self.heads}
        return alone | {"all": self.logits(vectors)}

    def map(self, logits: Tensor) -> Tensor:
        """How far logits [n_rows, d_vocab] rose, mean over demos: [n_inputs, n_numbers]."""
        rise = logits[:, self.numbers] - self.before[:, self.numbers]
        return rise.unflatten(0, (self.n_inputs, -1)).mean(1)

    def hits(self, logits: Tensor, wanted: Tensor | int, rows: Tensor | slice = ALL) -> float:
        """Share of some rows that are answered with the number `wanted`."""
        right = finite(logits).argmax(-1) == self.numbers[self.zero + wanted]  # [n_rows]
        return round(right[rows].double().mean().item(), 4)


class Vectors:
    """Function vectors of all heads for one k, each [1, n_layers, n_heads, d_head]: the mean FV(k),
    and by_asked FV(k, s), from z [n_prompts, …] and what each prompt asks for [n_prompts]."""

    def __init__(self, k: int, z: Tensor, asked: Tensor, at_least: int) -> None:
        self.k, self.mean = k, z.mean(0, keepdim=True)
        values, counts = asked.unique(return_counts=True)
        enough = values[counts >= at_least].tolist()
        self.by_asked = {s: z[asked == s].mean(0, keepdim=True) for s in enough}

    def of(self, values: Iterable[int]) -> Tensor:
        """FV(k, s) of each s, FV(k) where there is none: [n_values, n_layers, n_heads, d_head]."""
        return torch.cat([self.by_asked.get(s, self.mean) for s in values])


def _variance(z: Mapping[int, Tensor], asked: Mapping[int, Tensor], head: str) -> dict[str, float]:
    layer, index = parse(head)
    vectors = torch.cat([some[:, layer, index] for some in z.values()])  # [all prompts, d_head]
    values = torch.cat(list(asked.values()))
    shifts = torch.cat([torch.full_like(some, k) for k, some in asked.items()])
    pairs = shifts * (values.max() - values.min() + 1) + values  # another label for each pair
    labels = {"k": shifts, "asked": values, "both": pairs}
    return {name: explained(vectors, each) for name, each in labels.items()}


def _parts(naive: Naive, after: Parts, plain: Parts, k: int) -> Found:
    """after, plain: `parts` of FV(k) and of FV(0)."""
    whole = promotes(naive.map(after["all"]), naive.zero, k)
    rows = {}
    for part, logits in after.items():
        change = naive.map(logits)
        promoted = promotes(change, naive.zero, k)
        rows[part] = {
            "promotes": promoted,
            "moves": moves(change, naive.zero, k),
            "share": promoted / whole if whole else None,
            "hits": naive.hits(logits, naive.inputs + k),
            "plain_moves": moves(naive.map(plain[part]), naive.zero, k),
        }
    return rows


def _put(naive: Naive, new: Vectors, plain: Vectors) -> Found:
    inputs, both = naive.inputs.tolist(), new.by_asked.keys() & plain.by_asked.keys()
    has_own = torch.tensor([x in both for x in inputs], device=naive.inputs.device)

    def answered(new_z: Tensor, plain_z: Tensor, rows: Tensor | slice) -> dict[str, float]:
        put_in = {"added": new_z, "replaced": new_z, "swapped": new_z - plain_z}
        after = {way: naive.logits(put_in[way], way == "replaced") for way in WAYS}
        return {way: naive.hits(after[way], naive.inputs + new.k, rows) for way in WAYS}

    own = dict.fromkeys(WAYS)
    if has_own.any():
        own |= answered(new.of(inputs), plain.of(inputs), has_own)
    return {"mean": answered(new.mean, plain.mean, ALL), "own": own}


def _reach(naive: Naive, new: Vectors) -> tuple[dict[str, float], float | None]:
    """`reach` and `others`."""
    by_distance: dict[int, list[float]] = defaultdict(list)
    others = []
    for s in sorted(new.by_asked.keys() & set(range(naive.n_inputs))):
        logits = naive.logits(new.by_asked[s], replace=True)
        for x in range(naive.n_inputs):
            by_distance[s - x].append(naive.hits(logits, x + new.k, naive.inputs == x))
        others.append(naive.hits(logits, s + new.k, naive.inputs != s))
    return _means(by_distance), fmean(others) if others else None


def _turns(new: Vectors, plain: Vectors, heads: Heads) -> dict[str, float]:
    shifts = {}
    for s in sorted(new.by_asked.keys() & plain.by_asked.keys()):
        shift = new.by_asked[s][0] - plain.by_asked[s][0]  # [n_layers, n_heads, d_head]
        shifts[s] = torch.cat([shift[parse(head)] for head in heads]).double()
    by_distance: dict[int, list[float]] = defaultdict(list)
    for s, t in combinations_with_replacement(shifts, 2):
        by_distance[t - s].append(torch.cosine_similarity(shifts[s], shifts[t], dim=0).item())
    return _means(by_distance)


def _means(values: Mapping[int, Sequence[float]]) -> dict[str, float]:
    return {str(at): fmean(some) for at, some in sorted(values.items())}


@torch.no_grad()
def study(
    model: Transformer,
    prompts: Mapping[int, tuple[Tensor, Tensor]],
    naive_prompts: Tensor,
    heads: Heads,
    numbers: Numbers,
    k: int = 1,
    at_least: int = 3,
) -> Found:
    """Function vectors of `heads`, ready for circuit.json.

    prompts {k: (tokens [n_prompts, pos], asked [n_prompts])}: contrast prompts off by several k, 0
    (plain) among them, and the number f(x, y) each asks for. naive_prompts: see `Naive`. FV(k, s)
    is made where at least `at_least` prompts ask for s. function_vectors: {head: map, "all": map}
    of this k, columns 0 to n_inputs - 1. In function_vector_scores hits are shares of naive prompts
        naive_accuracy  hits on x, as they are
        parts[k][part]  promotes, moves; share: promotes / promotes of all; hits on x + k;
                        plain_moves: moves with FV(0) added instead, the control
        variance[head]  shares of z's variance by k, by what is asked, by both
        put[k]          hits on x + k by WAYS: `mean` with FV(k), `own` with FV(k, x)
        reach[k]        hits on x + k with FV(k, s) in place of z, by s - x
        others[k]       hits on s + k there, x ≠ s: near 0 if it is a shift and no answer
        turns[k]        mean cosine of FV(k, s) - FV(0, s) and FV(k, t) - FV(0, t), by t - s
    Raises ValueError where k or 0 is not among the prompts, or x + k is no number.
    """
    if 0 not in prompts or k not in prompts or len(set(heads)) < max(1, len(heads)):
        raise ValueError("function vectors need different heads, and prompts for k and for k = 0")
    naive, by_k = Naive(model, naive_prompts, numbers, heads), {}
    asked = {shift: some for shift, (_, some) in prompts.items()}
    z = {shift: last_z(model, tokens) for shift, (tokens, _) in prompts.items()}
    plain = Vectors(0, z[0], asked[0], at_least)
    plain_parts = naive.parts(plain.mean)
    scores: Found = defaultdict(dict)
    columns = slice(naive.zero, naive.zero + naive.n_inputs)
    for shift in sorted(prompts):
        new, key = Vectors(shift, z[shift], asked[shift], at_least), str(shift)
        after = naive.parts(new.mean)
        maps = {part: naive.map(logits) for part, logits in after.items()}
        scores["parts"][key] = _parts(naive, after, plain_parts, shift)
        scores["adds_up"][key] = adds_up(torch.stack([maps[head] for head in heads]), maps["all"])
        if shift != 0:
            scores["put"][key] = _put(naive, new, plain)
            scores["reach"][key], scores["others"][key] = _reach(naive, new)
            scores["turns"][key] = _turns(new, plain, heads)
        by_k[key] = {part: rounded(change[:, columns].tolist(), 3) for part, change in maps.items()}
    scores["naive_accuracy"] = naive.hits(naive.before, naive.inputs)
    scores["variance"] = {head: _variance(z, asked, head) for head in heads}
    vectors = {"function_vectors": by_k[str(k)], "function_vectors_by_k": by_k}
    return vectors | {"function_vector_scores": rounded(scores)}


def show(found: Found, k: int = 1) -> list[str]:
    """The findings of `study` as lines of text."""
    scores, key, to = found["function_vector_scores"], str(k), f"x{k:+d}"
    parts, fit, others = (scores[name][key] for name in ("parts", "adds_up", "others"))
    put = []
    for shift, hits in scores["put"].items():
        put.append([f"{int(shift):+d}", *hits["mean"].values(), *hits["own"].values()])
    on_others = "–" if others is None else f"{others:.1%}"
    return [
        f"function vectors: mean z at the last `=`, off by {k:+d}, added in naive prompts (which "
        f"are answered x on {scores['naive_accuracy']:.1%}). Promotes {to}, moves x → {to}, its "
        f"share of all heads', then answered {to} (hits)",
        *table_of_heads(parts, ("promotes", "moves", "share", "hits")),
        f"the parts add up to the whole with R² {fit['r2']:.2f} (correlation "
        f"{fit['correlation']:.2f}, ratio {fit['ratio']:.2f}); the vector of plain prompts moves "
        f"x → {to} by {parts['all']['plain_moves']:.2f}",
        "shares of the variance of z by k, by what is asked, by both",
        *table_of_heads(scores["variance"], ("k", "asked", "both")),
        "answered x + k with the vector of all prompts; with that of those that ask for x",
        *table(["k", *WAYS, *(f"{way}, x" for way in WAYS)], put, digits=2),
        f"replaced by the vector of prompts that ask for another value s, the model answers "
        f"s{k:+d} on {on_others} of naive prompts",
        f"answered {to} when replaced by the vector of prompts that ask for s, by s - x: "
        f"{_series(scores['reach'][key])}",
        f"cosine of the {k:+d} vectors of two asked values, by their distance: "
        f"{_series(scores['turns'][key])}",
    ]


def _series(values: Mapping[str, float]) -> str:
    return ", ".join(f"{at}: {value:.2f}" for at, value in values.items())
