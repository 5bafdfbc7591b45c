"""Q, K and V of a head apart: what does it look for, what does it find, what does it hand over?

Three readings answer this, on prompts of examples `x op y = c ;`:
    inputs_apart         by replacement: only the q, k or v of a head comes from another run
    looks_for            from its scores: which keys the last `=` prefers, and which answers
    hands_over, wrote    from its weights: the stream at the answers, through W_V W_O (and W_U).
                         Does that tell c, or f(x, y), or their difference d = c - f(x, y)?

    scores of the last `=`      [n_prompts, key] → [n_prompts, n_shots, slot of x op y = c ;]
    stream at the answers       [n_prompts * n_shots, d_model] → written by a head, the same shape

Shares of variance are those of a two-way analysis of variance on the means of the cells (Fisher
1925), all cells counted alike: what the first label explains, what the second does, what only the
two together do, and what varies inside the cells.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

from minifunc.analysis.activations import Examples, activations, last_position
from minifunc.analysis.function_vectors import Numbers, explained
from minifunc.analysis.probe import fit, one_hot, r2
from minifunc.circuit import parse
from minifunc.model import Hooks, Transformer
from minifunc.support.evaluation import accuracy

INPUTS = ("q", "k", "v", "qk")
N_SLOTS, ANSWER = 6, 4  # tokens in `x op y = c ;`, and which of them is the answer


def shares(vectors: Tensor, first: Tensor, second: Tensor) -> dict[str, float]:
    """Shares of the variance of vectors [n, width] by two labels [n]: they add up to 1.

    first, second: by that label alone; both: by the pair beyond these two; rest: inside the cells.
    Each cell (pair) has weight 1, however many rows it has, so the two labels are independent even
    where they were not drawn so. Raises ValueError where a pair is missing.
    """
    x = vectors.double()
    _, i = first.to(x.device).unique(return_inverse=True)
    _, j = second.to(x.device).unique(return_inverse=True)
    n_first, n_second = int(i.max()) + 1, int(j.max()) + 1
    cell = i * n_second + j
    counts = torch.bincount(cell, minlength=n_first * n_second)
    missing = int((counts == 0).sum())
    if missing:
        raise ValueError(
            f"{missing} of the {n_first} × {n_second} pairs of labels never occur: "
            "these two cannot be told apart"
        )
    means = x.new_zeros(len(counts), x.shape[1]).index_add_(0, cell, x) / counts[:, None]
    inside = ((x - means[cell]).square().sum(1) / counts[cell]).sum() / len(counts)
    table = (means - means.mean(0)).unflatten(0, (n_first, n_second))  # [n_first, n_second, width]
    between = table.square().sum(2).mean()
    by_first = table.mean(1).square().sum(1).mean()
    by_second = table.mean(0).square().sum(1).mean()
    both = (between - by_first - by_second).clamp(min=0)
    parts = {"first": by_first, "second": by_second, "both": both, "rest": inside}
    total = (between + inside).clamp(min=1e-30)
    return {name: round((part / total).item(), 4) for name, part in parts.items()}


# ---------------------------------------------------------------- by replacement


def _replace(heads: Sequence[str], which: str, other: Mapping[str, Tensor]) -> Hooks:
    """Hooks by which the inputs `which` (letters of "qkv") of `heads` are those of another run."""
    by_layer: dict[int, list[int]] = {}
    for layer, head in map(parse, heads):
        by_layer.setdefault(layer, []).append(head)

    def replace(x: Tensor, name: str) -> Tensor:  # [batch, pos, head, d_head]
        x = x.clone()
        for head in by_layer[int(name.split(".")[1])]:
            # in the last block q is that of the last position alone
            x[:, :, head] = other[name][:, -x.shape[1] :, head]
        return x

    names = [f"blocks.{layer}.attn.hook_{letter}" for layer in by_layer for letter in which]
    return Hooks(dict.fromkeys(names, replace))


@torch.no_grad()
def inputs_apart(
    model: Transformer,
    base: Tensor,
    contrast: Tensor,
    base_answers: Tensor,
    contrast_answers: Tensor,
    sources: Mapping[str, Tensor],
    heads: Sequence[str],
) -> dict[str, Any]:
    """What only the q, k, v (or q and k) of a head does when it is, everywhere, another run's.

    base, contrast [n_prompts, pos] int64 and their answers [n_prompts], as for `PathPatcher`;
    sources {name: tokens shaped like contrast}. Everything after is live: this is ablation, not
    path patching. → {head or "all": {input: {source: {r, base_acc, contrast_acc}}}}; "all" = these
    heads together, r as in `patching`: -1 is fully back to base. Raises ValueError without such r.
    """
    parts = {head: [head] for head in heads} | {"all": list(heads)}
    layers = sorted({parse(head)[0] for head in heads})
    entry = f"blocks.{layers[0]}.hook_resid_pre"  # what is below these heads never changes
    last = last_position(model, contrast)
    answers = torch.stack([base_answers, contrast_answers], dim=1).to(model.device)

    def mean_F(logits: Tensor) -> float:
        picked = logits.gather(1, answers)
        return (picked[:, 0] - picked[:, 1]).double().mean().item()

    logits, cache = model.run_with_cache(contrast.to(model.device), [entry])
    F_contrast = mean_F(logits[:, -1])
    F_range = F_contrast - mean_F(model(base.to(model.device), last)[:, 0])
    if not abs(F_range) > 1e-6:  # also where it is NaN
        raise ValueError(
            f"F_contrast - F_base is {F_range:.2g}, so r is undefined: "
            "the model does not tell these prompts apart"
        )
    names = [f"blocks.{layer}.attn.hook_{letter}" for layer in layers for letter in "qkv"]
    found: dict[str, Any] = {part: {which: {} for which in INPUTS} for part in parts}
    for source, tokens in sources.items():
        _, other = model.run_with_cache(tokens.to(model.device), names)
        for part, which in product(parts, INPUTS):
            hooks = _replace(parts[part], which, other)
            patched = model.run_from(cache[entry], layers[0], last, hooks)[:, 0]
            found[part][which][source] = {
                "r": round((mean_F(patched) - F_contrast) / F_range, 4),
                "base_acc": round(accuracy(patched, base_answers), 4),
                "contrast_acc": round(accuracy(patched, contrast_answers), 4),
            }
    return found


# ---------------------------------------------------------------- of the scores


@torch.no_grad()
def looks_for(
    model: Transformer, examples: Examples, asked: Tensor, heads: Sequence[str]
) -> dict[str, Any]:
    """Which keys the last `=` scores high in each head, before the softmax and as attention.

    asked [n_prompts]: the query's f(x, y). Per head:
        slot, example, both, rest  shares of the scores' variance over the keys of all examples: by
                                   the place in `x op y = c ;`, by which example (recency), by both,
                                   by what stands there
        is_answer                  the share that lies between answers and the other keys
        among_answers              shares among the answers of one prompt, each prompt centred, by
                                   one label alone (they overlap): nearness (f(x, y) there minus the
                                   asked one), example, shown c, difference d
        by_distance                mean attention on an answer whose f(x, y) lies 0, 1, 2, … from
                                   the asked one; null if there is none
    """
    examples = examples.to(model.device)
    keys = examples.answers[:, None] - ANSWER + torch.arange(N_SLOTS, device=model.device)
    order = torch.arange(len(keys), device=model.device)  # [n_shots]; keys: [n_shots, slot]
    labels = {
        "nearness": examples.expected - asked.to(model.device)[:, None],
        "example": order.expand_as(examples.shown),
        "shown": examples.shown,
        "difference": examples.difference,
    }
    kinds, layers = ("attn_scores", "pattern"), {parse(head)[0] for head in heads}
    names = [f"blocks.{layer}.attn.hook_{kind}" for layer in layers for kind in kinds]
    last = last_position(model, examples.tokens)
    seen = activations(model, examples.tokens, names, lambda x: x[:, :, -1], last)
    report = {}
    for head in heads:
        layer, index = parse(head)
        scores, pattern = (seen[f"blocks.{layer}.attn.hook_{kind}"][:, index] for kind in kinds)
        grid = scores[:, keys].double()  # [n_prompts, n_shots, slot]
        at_answers = grid[:, :, ANSWER]
        centred = (at_answers - at_answers.mean(1, keepdim=True)).flatten()[:, None]
        attention, distance = pattern[:, examples.answers].double(), labels["nearness"].abs()
        report[head] = _by_place(grid) | {
            "among_answers": {
                name: round(explained(centred, label.flatten()), 4)
                for name, label in labels.items()
            },
            "by_distance": _by_distance(attention, distance),
        }
    return report


def _by_place(scores: Tensor) -> dict[str, float]:
    """Shares of the variance of scores [n_prompts, n_shots, slot] by place, and `is_answer`."""
    _, n_shots, n_slots = scores.shape
    slot = torch.arange(n_slots, device=scores.device).expand_as(scores)
    example = torch.arange(n_shots, device=scores.device)[:, None].expand_as(scores)
    found = shares(scores.flatten()[:, None], slot.flatten(), example.flatten())
    # Of n_slots keys one is the answer. Its mean is `above` the mean of all, and so the mean of the
    # others is above / (n_slots - 1) below it. The variance between the two kinds of keys is then:
    above = scores[:, :, ANSWER].mean() - scores.mean()
    between = above.square() * (1 + 1 / (n_slots - 1)) / n_slots
    is_answer = between / scores.var(unbiased=False).clamp(min=1e-30)
    places = {"slot": found.pop("first"), "example": found.pop("second")}
    return places | found | {"is_answer": round(is_answer.item(), 4)}


def _by_distance(attention: Tensor, distance: Tensor) -> list[float | None]:
    """Mean of attention [n_prompts, n_shots] where distance, of the same shape, is 0, 1, 2, …"""
    means: list[float | None] = []
    for at in range(int(distance.max()) + 1):
        some = attention[distance == at]
        means.append(round(some.mean().item(), 4) if len(some) else None)
    return means


# ---------------------------------------------------------------- of the weights


def _at_answers(model: Transformer, examples: Examples, names: list[str]) -> dict[str, Tensor]:
    """Activations [batch, pos, …] at the answers alone: [n_prompts * n_shots, …]."""

    def cut(x: Tensor) -> Tensor:
        return x[:, examples.answers].flatten(0, 1)

    return activations(model, examples.tokens, names, cut)


def _even_prompts(examples: Examples) -> Tensor:
    """Every second prompt, to fit on; the others are scored: [n_prompts * n_shots] bool."""
    even = torch.arange(len(examples.tokens), device=examples.tokens.device) % 2 == 0
    return even.repeat_interleave(len(examples.answers))


def _r2_of_all(x: Tensor, y: Tensor, fitted: Tensor) -> float:
    """R² of y [n, width] read off x [n, n_inputs], all directions together, where not fitted."""
    probe, y = fit(x[fitted], y[fitted]), y.double()
    residual = (y[~fitted] - probe(x[~fitted])).square().sum()
    variance = (y[~fitted] - y[~fitted].mean(0)).square().sum()
    return round((1 - residual / variance.clamp(min=1e-30)).item(), 4)


def _copies(logits: Tensor, labels: Tensor, numbers: Numbers) -> float:
    """Share of the values of labels [n] at which the mean of logits [n, n_numbers] is highest."""
    right = []
    for value in labels.unique().tolist():
        index = value - numbers.first
        if 0 <= index < len(numbers.tokens):
            right.append(int(logits[labels == value].mean(0).argmax()) == index)
    return round(sum(right) / len(right), 4)


def _with_every_difference(c: Tensor, d: Tensor) -> Tensor:
    """Which rows have a shown answer c [n] that occurs with every difference d [n]: [n] bool."""
    n_differences = len(d.unique())
    wide = [value for value in c.unique() if len(d[c == value].unique()) == n_differences]
    if not wide:
        raise ValueError(
            "no shown answer occurs with every difference, "
            "so the two cannot be told apart: take more prompts"
        )
    return torch.isin(c, torch.stack(wide))


@torch.no_grad()
def hands_over(
    model: Transformer, examples: Examples, numbers: Numbers, heads: Sequence[str]
) -> dict[str, Any]:
    """What each head's OV path would write from the answers: the normalized stream through W_V W_O.

    examples: of prompts with several d = c - f(x, y). Per head:
        stream, logits    shares of the variance of what is written, into the stream or, through
                          W_U, on the logits of numbers (the final norm's scale left out, rows
                          centred): by c (first), by d (second), both, rest; over those c that
                          occur with every d
        separately        R² of g(c) + h(f(x, y)) on the stream, two tables. Near 1 with a small
                          share of d: both are handed over side by side (f(x, y) = c - d is `both`)
        difference_alone  R² of one table g(d)
        copies            share of the values of c, and of f(x, y), whose mean written logits are
                          highest at that value itself
    Tables are fitted on half of the prompts and scored on the others. Raises ValueError where no c
    occurs with every d.
    """
    device, examples = model.device, examples.to(model.device)
    c, e, d = examples.shown.flatten(), examples.expected.flatten(), examples.difference.flatten()
    comparable, fitted = _with_every_difference(c, d), _even_prompts(examples)
    side_by_side = torch.cat([one_hot(c), one_hot(e)], dim=1)
    unembed = model.ln_final.w[:, None] * model.unembed.W_U[:, numbers.tokens.to(device)]
    names = [f"blocks.{layer}.hook_resid_pre" for layer in {parse(head)[0] for head in heads}]
    streams = _at_answers(model, examples, names)
    report: dict[str, Any] = {}
    for head in heads:
        layer, index = parse(head)
        block = model.blocks[layer]
        x = block.ln1(streams[f"blocks.{layer}.hook_resid_pre"], Hooks())
        written = x @ block.attn.W_V[index] @ block.attn.W_O[index]  # [n, d_model]
        logits = written @ unembed  # [n, n_numbers]
        logits = logits - logits.mean(1, keepdim=True)
        report[head] = {
            "stream": shares(written[comparable], c[comparable], d[comparable]),
            "logits": shares(logits[comparable], c[comparable], d[comparable]),
            "separately": _r2_of_all(side_by_side, written, fitted),
            "difference_alone": _r2_of_all(one_hot(d), written, fitted),
            "copies": {
                "shown": _copies(logits, c, numbers),
                "expected": _copies(logits, e, numbers),
            },
        }
    return report


@torch.no_grad()
def wrote(
    model: Transformer, examples: Examples, x: Tensor, y: Tensor, heads: Sequence[str]
) -> dict[str, Any]:
    """What each head did write at the answers, for heads that gather the expected answer.

    x, y [n_prompts, n_shots]: the operands as numbers, of which every pair must occur. Per head:
    shares of the variance of z W_O by x (first), y (second), both, rest; expected_r2, shown_r2: R²
    with which f(x, y) and c can be read off z, on the half of the prompts that was not fitted.
    """
    examples = examples.to(model.device)
    targets = torch.stack([examples.expected.flatten(), examples.shown.flatten()], dim=1)
    fitted = _even_prompts(examples)
    names = [f"blocks.{layer}.attn.hook_z" for layer in {parse(head)[0] for head in heads}]
    found = _at_answers(model, examples, names)
    report = {}
    for head in heads:
        layer, index = parse(head)
        z = found[f"blocks.{layer}.attn.hook_z"][:, index]  # [n_prompts * n_shots, d_head]
        score = r2(fit(z[fitted], targets[fitted]), z[~fitted], targets[~fitted]).tolist()
        written = z @ model.blocks[layer].attn.W_O[index]
        report[head] = shares(written, x.flatten(), y.flatten()) | {
            "expected_r2": round(score[0], 4),
            "shown_r2": round(score[1], 4),
        }
    return report


# ---------------------------------------------------------------- in words


def show(found: Mapping[str, Any]) -> str:
    """The findings {inputs, looks_for, hands_over, wrote} as a few lines of text."""
    lines = _show_inputs(found["inputs"])
    lines.append("scores of the last `=`: shares of their variance")
    for head, row in found["looks_for"].items():
        among = ", ".join(f"{name} {value:.2f}" for name, value in row["among_answers"].items())
        near = ["–" if value is None else f"{value:.2f}" for value in row["by_distance"][:8]]
        lines += [
            f"  {head:8}place in the example {row['slot']:.2f} (answer or not "
            f"{row['is_answer']:.2f}), which example {row['example']:.2f}, both {row['both']:.2f}, "
            f"what stands there {row['rest']:.2f}",
            f"  {'':8}among answers: {among}; "
            f"attention by distance of f(x, y) from the asked one, from 0: {' '.join(near)}",
        ]
    lines.append(
        "what W_V W_O writes from the answers: shares of its variance by "
        "shown c / difference d / both / rest"
    )
    for head, row in found["hands_over"].items():
        stream, logits = (_slashed(row[name].values()) for name in ("stream", "logits"))
        lines.append(
            f"  {head:8}stream {stream}; logits {logits}; R² of g(c) + h(f(x, y)) "
            f"{row['separately']:.2f}, of g(d) {row['difference_alone']:.2f}; "
            f"copies c {row['copies']['shown']:.2f}, f(x, y) {row['copies']['expected']:.2f}"
        )
    if found["wrote"]:
        lines.append(
            "what the heads that gather the expected answer write at the answers: shares by "
            "x / y / both / rest; R² of reading f(x, y), c"
        )
    for head, row in found["wrote"].items():
        parts = _slashed(row[name] for name in ("first", "second", "both", "rest"))
        lines.append(f"  {head:8}{parts}; {row['expected_r2']:.2f}, {row['shown_r2']:.2f}")
    return "\n".join(lines)


def _slashed(values: Iterable[float]) -> str:
    return " / ".join(f"{value:.2f}" for value in values)


def _show_inputs(inputs: Mapping[str, Any]) -> list[str]:
    sources = list(next(iter(inputs.values()))["q"])
    titles = "".join(f"{source.replace('_', ' '):>26}" for source in sources)
    lines = [
        "q, k, v of the FI heads from other runs: r in %, and accuracy on plain / shifted answers",
        f"  {'':12}{titles}",
    ]
    for part, which in product(inputs, INPUTS):
        cells = [inputs[part][which][source] for source in sources]
        texts = [
            f"{100 * cell['r']:12.1f}{cell['base_acc']:7.2f}/{cell['contrast_acc']:.2f}  "
            for cell in cells
        ]
        lines.append(f"  {part:8}{which:4}" + "".join(texts))
    return lines
