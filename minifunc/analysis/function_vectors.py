"""Function vectors: what FI heads write at the last `=`, taken out of one prompt and put into another.

    contrast    1 + 1 = 2+k ; … ; 3 + 3 =        z of head h at the last `=`, mean over prompts: FV(h)
    naive       2 same _ = 2 ;  5 same _ =       FV(h) is added to z of head h at the last `=`; everything after is live

The picture is arXiv 2507.09875's: rows the input x (here 5), columns the output y, in each cell how much logit(y) rises.
A head that carries +k raises the cells y = x + k.

One mean over all prompts supposes that +k is one direction whatever is asked. Whether it is, three things tell:
how z varies (by k, by what is asked, by both), the vectors of the prompts that ask for one value s alone, FV(k, s),
put into naive prompts of every input x, and how FV(k, s) - FV(0, s) turns as s moves.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from minifunc.circuit import parse
from minifunc.model import Hooks, Transformer
from minifunc.support.evaluation import ROWS

WAYS = (
    "added",
    "replaced",
    "swapped",
)  # FV(k) on top of z; FV(k) in place of z; FV(k) - FV(0) on top of z


@torch.no_grad()
def last_z(model: Transformer, tokens: Tensor) -> Tensor:
    """What every head holds at the last position of tokens [n_prompts, pos]: z [n_prompts, n_layers, n_heads, d_head]."""
    device, parts = model.unembed.W_U.device, []
    last = torch.tensor([tokens.shape[1] - 1], device=device)
    for rows in tokens.split(ROWS):
        kept: list[Tensor] = []

        def keep(z: Tensor, name: str, kept: list[Tensor] = kept) -> Tensor:
            kept.append(z[:, -1])
            return z

        model(
            rows.to(device),
            last,
            Hooks({f"blocks.{layer}.attn.hook_z": keep for layer in range(model.cfg.n_layers)}),
        )
        parts.append(torch.stack(kept, dim=1))
    return torch.cat(parts)


@torch.no_grad()
def put(
    model: Transformer, tokens: Tensor, vectors: Tensor, heads: Sequence[str], replace: bool = False
) -> Tensor:
    """Logits [n_rows, d_vocab] at the last position of tokens [n_rows, pos] when `heads` get other values there.

    vectors [n_rows or 1, n_layers, n_heads, d_head] are added to z at the last position, or stand in its place.
    Everything after is live. Raises ValueError for a head the model lacks or vectors of another shape.
    """
    cfg, device, logits = model.cfg, model.unembed.W_U.device, []
    if vectors.shape[1:] != (cfg.n_layers, cfg.n_heads, cfg.d_head) or len(vectors) not in (
        1,
        len(tokens),
    ):
        raise ValueError(
            f"vectors must be [{len(tokens)} or 1, {cfg.n_layers}, {cfg.n_heads}, {cfg.d_head}], not {list(vectors.shape)}"
        )
    chosen = torch.zeros(cfg.n_layers, cfg.n_heads, 1, dtype=torch.bool, device=device)
    for layer, head in map(parse, heads):
        if not (layer < cfg.n_layers and head < cfg.n_heads):
            raise ValueError(
                f"this model of {cfg.n_layers} layers × {cfg.n_heads} heads has no head {layer}.{head}"
            )
        chosen[layer, head] = True
    last = torch.tensor([tokens.shape[1] - 1], device=device)
    for rows, new in zip(tokens.split(ROWS), vectors.expand(len(tokens), -1, -1, -1).split(ROWS)):

        def change(z: Tensor, name: str, new: Tensor = new) -> Tensor:
            layer, here = int(name.split(".")[1]), z[:, -1]  # [row, head, d_head]
            value = new[:, layer] if replace else here + new[:, layer]
            return torch.cat([z[:, :-1], torch.where(chosen[layer], value, here)[:, None]], dim=1)

        hooks = Hooks(
            {
                f"blocks.{layer}.attn.hook_z": change
                for layer in sorted({parse(head)[0] for head in heads})
            }
        )
        logits.append(model(rows.to(device), last, hooks)[:, 0])
    return torch.cat(logits)


# ---------------------------------------------------------------- measures on a map [n_inputs, n_numbers]


def cells(change: Tensor, zero: int, k: int) -> Tensor:
    """The cells y = x + k of a map [..., n_inputs, n_numbers] with number 0 in column `zero`: [..., n_inputs]."""
    rows = torch.arange(change.shape[-2], device=change.device)
    if zero + k < 0 or zero + k + len(rows) > change.shape[-1]:
        raise ValueError(
            f"the {change.shape[-1]} columns do not hold x{k:+d} for each of the {len(rows)} inputs"
        )
    return change[..., rows, rows + zero + k]


def promotes(change: Tensor, zero: int, k: int) -> float:
    """How much a map of Δlogits raises x + k: the cell y = x + k minus the mean of the row's other cells, mean over x; logits."""
    wanted = cells(change, zero, k)
    return (wanted - (change.sum(-1) - wanted) / (change.shape[-1] - 1)).mean().item()


def moves(change: Tensor, zero: int, k: int) -> float:
    """How much a map moves the answer from x to x + k: the cell y = x + k minus the cell y = x, mean over x; logits."""
    return (cells(change, zero, k) - cells(change, zero, 0)).mean().item()


def adds_up(parts: Tensor, whole: Tensor) -> dict[str, float]:
    """Whether parts [n_parts, n_inputs, n_numbers] put in one by one sum to what they do together, [n_inputs, n_numbers].

    Each row is centred first: a constant on all logits means nothing. r2 = 1 - |whole - sum|² / |whole|²; correlation of
    sum and whole; ratio = the factor by which the sum must be multiplied to come closest to the whole.
    """
    total, whole = (x - x.mean(-1, keepdim=True) for x in (parts.sum(0).double(), whole.double()))
    across, of_whole, of_sum = (
        (total * whole).sum(),
        whole.square().sum().clamp(min=1e-12),
        total.square().sum().clamp(min=1e-12),
    )
    r2, correlation, ratio = (
        1 - (whole - total).square().sum() / of_whole,
        across / (of_whole * of_sum).sqrt(),
        across / of_sum,
    )
    return {
        "r2": round(r2.item(), 4),
        "correlation": round(correlation.item(), 4),
        "ratio": round(ratio.item(), 4),
    }


def explained(vectors: Tensor, labels: Tensor) -> float:
    """Share of the variance of vectors [n, width] that the means of the groups with one label [n] explain, from 0 to 1."""
    x = vectors.double() - vectors.double().mean(0)
    _, group = labels.to(x.device).unique(return_inverse=True)
    counts = torch.bincount(group)
    means = x.new_zeros(len(counts), x.shape[1]).index_add_(0, group, x) / counts[:, None]
    return ((means.square().sum(1) * counts).sum() / x.square().sum().clamp(min=1e-30)).item()


# ---------------------------------------------------------------- the study


@torch.no_grad()
def study(
    model: Transformer,
    prompts: Mapping[int, Tensor],
    asked: Mapping[int, Tensor],
    naive: Tensor,
    heads: Sequence[str],
    numbers: Tensor,
    zero: int,
    k: int = 1,
    at_least: int = 3,
) -> dict[str, Any]:
    """Function vectors of `heads`, ready for circuit.json.

    prompts[k] [n_prompts, pos] int64: contrast prompts off by k, for several k, 0 (plain) among them; asked[k]
    [n_prompts]: the number f(x, y) that each asks for, before the shift. naive [n_inputs, n_demos, pos]: prompts
    [x, any] whose plain answer is x. numbers [n_numbers]: token ids of consecutive numbers, numbers[zero] that of 0.
    A vector FV(k, s) is made where at least `at_least` prompts ask for s.

    function_vectors: {head: map, "all": map} of this k, [n_inputs][n_inputs] Δlogits, means over the demonstrations;
    function_vectors_by_k: the same for every k. function_vector_scores:
        naive_accuracy  share of naive prompts answered x as they are
        parts[k][part]  promotes, moves (see there, over all numbers); share = promotes / promotes of all; hits = share of naive prompts
                        then answered x + k; plain_moves: `moves` when FV(0) is added instead, the control
        adds_up[k]      see there
        variance[head]  share of z's variance over all prompts by k, by what is asked, and by both (one mean per k and s)
        put[k]          hits of all heads together, by WAYS: `mean` with FV(k), `own` with FV(k, x), the vector of the prompts that ask for x
        reach[k]        replaced by FV(k, s) in naive prompts of input x: hits by s - x, {distance: hits}
        others[k]       the same, answered s + k instead, over all s other than x: near 0 if what is handed over is a shift and not an answer
        turns[k]        mean cosine of FV(k, s) - FV(0, s) and FV(k, t) - FV(0, t), heads side by side, by t - s = 0, 1, 2, …
    Raises ValueError where k or 0 is not among the prompts, or x + k is no number.
    """
    if 0 not in prompts or k not in prompts or not heads:
        raise ValueError("function vectors need at least one head, and prompts for k and for k = 0")
    n_inputs, n_demos, device = naive.shape[0], naive.shape[1], model.unembed.W_U.device
    flat, inputs, numbers = (
        naive.flatten(0, 1),
        torch.arange(n_inputs, device=device).repeat_interleave(n_demos),
        numbers.to(device),
    )
    asked = {shift: values.to(device) for shift, values in asked.items()}
    z = {
        shift: last_z(model, tokens) for shift, tokens in prompts.items()
    }  # each [n_prompts, n_layers, n_heads, d_head]
    mean = {shift: values.mean(0, keepdim=True) for shift, values in z.items()}
    places = [parse(head) for head in heads]
    parts = {head: [head] for head in heads} | {"all": list(heads)}

    def logits(vectors: Tensor, which: Sequence[str], replace: bool = False) -> Tensor:
        return put(model, flat, vectors, which, replace)

    def grid(
        values: Tensor,
    ) -> (
        Tensor
    ):  # logits of all tokens → those of numbers, mean over demonstrations: [n_inputs, n_numbers]
        return values[:, numbers].unflatten(0, (n_inputs, n_demos)).mean(1)

    def hits(values: Tensor, shift: int, of: Tensor | None = None, start: Tensor = inputs) -> float:
        right = values.argmax(-1) == numbers[zero + start + shift]
        return round((right if of is None else right[of]).double().mean().item(), 4)

    before = logits(torch.zeros_like(mean[0]), heads)
    plain = {part: grid(logits(mean[0], which)) - grid(before) for part, which in parts.items()}
    maps: dict[int, dict[str, Tensor]] = {}
    scores: dict[str, Any] = {
        "naive_accuracy": hits(before, 0),
        "parts": {},
        "adds_up": {},
        "variance": {},
        "put": {},
        "reach": {},
        "others": {},
        "turns": {},
    }
    for shift in sorted(prompts):
        after = {part: logits(mean[shift], which) for part, which in parts.items()}
        maps[shift] = {part: grid(values) - grid(before) for part, values in after.items()}
        promoted = {part: promotes(change, zero, shift) for part, change in maps[shift].items()}
        scores["parts"][str(shift)] = {
            part: {
                "promotes": round(promoted[part], 4),
                "moves": round(moves(change, zero, shift), 4),
                "share": round(promoted[part] / promoted["all"], 4) if promoted["all"] else None,
                "hits": hits(after[part], shift),
                "plain_moves": round(moves(plain[part], zero, shift), 4),
            }
            for part, change in maps[shift].items()
        }
        scores["adds_up"][str(shift)] = adds_up(
            torch.stack([maps[shift][head] for head in heads]), maps[shift]["all"]
        )

    shifts, values = (
        torch.cat([torch.full_like(asked[shift], shift) for shift in z]),
        torch.cat([asked[shift] for shift in z]),
    )
    everything = torch.cat(list(z.values()))
    both = shifts * (values.max() - values.min() + 1) + values
    for head, (layer, index) in zip(heads, places):
        scores["variance"][head] = {
            name: round(explained(everything[:, layer, index], labels), 4)
            for name, labels in (("k", shifts), ("asked", values), ("both", both))
        }

    # FV(k, s), the mean over the prompts that ask for s; what it does to input x, near s and far from it.
    local = {
        shift: {
            s: z[shift][asked[shift] == s].mean(0)
            for s in asked[shift].unique().tolist()
            if (asked[shift] == s).sum() >= at_least
        }
        for shift in z
    }
    for shift in sorted(set(z) - {0}):
        ways: dict[str, dict[str, float | None]] = {"mean": {}, "own": {}}
        for way in WAYS:
            base = mean[0] if way == "swapped" else torch.zeros_like(mean[0])
            ways["mean"][way] = hits(logits(mean[shift] - base, heads, way == "replaced"), shift)
            own = [x for x in range(n_inputs) if x in local[shift] and x in local[0]]
            rows = torch.stack(
                [
                    local[shift][x] - (local[0][x] if way == "swapped" else 0)
                    if x in own
                    else torch.zeros_like(base[0])
                    for x in range(n_inputs)
                ]
            )
            there = torch.tensor([x in own for x in range(n_inputs)], device=device)[inputs]
            ways["own"][way] = (
                hits(logits(rows[inputs], heads, way == "replaced"), shift, there) if own else None
            )
        scores["put"][str(shift)] = ways
        by_distance: dict[int, list[float]] = {}
        others: list[float] = []
        for s in [s for s in range(n_inputs) if s in local[shift]]:
            after_s = logits(local[shift][s][None], heads, True)
            for x in range(n_inputs):
                by_distance.setdefault(s - x, []).append(hits(after_s, shift, inputs == x))
            others.append(hits(after_s, shift, inputs != s, torch.full_like(inputs, s)))
        scores["reach"][str(shift)] = {
            str(distance): round(sum(found) / len(found), 4)
            for distance, found in sorted(by_distance.items())
        }
        scores["others"][str(shift)] = round(sum(others) / len(others), 4) if others else None
        common = sorted(set(local[shift]) & set(local[0]))
        cosines: dict[int, list[float]] = {}
        if common:
            turned = torch.stack(
                [
                    torch.cat(
                        [(local[shift][s] - local[0][s])[layer, index] for layer, index in places]
                    )
                    for s in common
                ]
            ).double()
            cosine = torch.cosine_similarity(turned[:, None], turned[None], dim=-1).tolist()
            for i, s in enumerate(common):
                for j, t in enumerate(common[i:], start=i):
                    cosines.setdefault(t - s, []).append(cosine[i][j])
        scores["turns"][str(shift)] = {
            str(distance): round(sum(found) / len(found), 4)
            for distance, found in sorted(cosines.items())
        }

    def shown(change: Tensor) -> list[list[float]]:
        return [
            [round(value, 3) for value in row] for row in change[:, zero : zero + n_inputs].tolist()
        ]

    by_k = {
        str(shift): {part: shown(change) for part, change in found.items()}
        for shift, found in maps.items()
    }
    return {
        "function_vectors": by_k[str(k)],
        "function_vectors_by_k": by_k,
        "function_vector_scores": scores,
    }


def show(found: Mapping[str, Any], k: int = 1) -> str:
    """The findings of `study` as a few lines of text."""
    scores, lines = found["function_vector_scores"], []
    lines.append(
        f"function vectors: mean z at the last `=`, off by {k:+d}, added in naive prompts (which are answered x on {scores['naive_accuracy']:.1%})"
    )
    lines.append(
        f"  {'head':8}{'promotes x' + format(k, '+d'):>16}{'moves x → x' + format(k, '+d'):>18}{'share':>8}{'then answered x' + format(k, '+d'):>20}"
    )
    for part, row in scores["parts"][str(k)].items():
        share = "" if row["share"] is None else f"{row['share']:8.2f}"
        lines.append(
            f"  {part:8}{row['promotes']:16.2f}{row['moves']:18.2f}{share:>8}{row['hits']:20.2f}"
        )
    fit = scores["adds_up"][str(k)]
    lines.append(
        f"  the parts add up to the whole with R² {fit['r2']:.2f} (correlation {fit['correlation']:.2f}, ratio {fit['ratio']:.2f}); the vector of plain prompts moves x → x{k:+d} by {scores['parts'][str(k)]['all']['plain_moves']:.2f}"
    )
    lines.append(
        "  variance of z by k / by what is asked / by both: "
        + ", ".join(
            f"{head} {row['k']:.2f} / {row['asked']:.2f} / {row['both']:.2f}"
            for head, row in scores["variance"].items()
        )
    )
    for shift, ways in scores["put"].items():
        texts = [
            f"{name} "
            + " ".join(
                f"{way} {'–' if hits is None else format(hits, '.2f')}"
                for way, hits in ways[name].items()
            )
            for name in ("mean", "own")
        ]
        lines.append(
            f"  answered x{int(shift):+d} with the vector of all prompts: {texts[0][5:]}; of those that ask for x: {texts[1][4:]}"
        )
    others = scores["others"][str(k)]
    lines.append(
        f"  replaced by the vector of prompts that ask for another value s, the model answers s{k:+d} on {'–' if others is None else format(others, '.1%')} of naive prompts"
    )
    for name, text in (
        ("reach", "answered x%+d when replaced by the vector of prompts that ask for s, by s - x"),
        ("turns", "cosine of the %+d vectors of two asked values, by their distance"),
    ):
        lines.append(
            f"  {text % k}: "
            + ", ".join(
                f"{int(distance):+d} {value:.2f}" if name == "reach" else f"{distance} {value:.2f}"
                for distance, value in scores[name][str(k)].items()
            )
        )
    return "\n".join(lines)
