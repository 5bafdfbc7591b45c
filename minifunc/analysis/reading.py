"""Q, K and V of a head apart: what it looks for, what it finds, what it hands over.

Three readings. By replacement (`inputs_apart`): only the q, only the k or only the v of a head comes from another run.
Of its scores (`looks_for`): which keys does the last `=` prefer, and by what do the answers differ among themselves?
Of its weights (`hands_over`, `wrote`): the stream at the answers, pushed through W_V W_O (and W_U): does what comes out tell the
shown answer c apart, the difference d = c - f(x, y), or the expected answer f(x, y)?

Shares of variance are those of a two-way analysis of variance on the means of the cells (Fisher 1925), all cells counted alike:
what the first label explains, what the second does, what only the two together do, and what varies inside the cells.
An example is `x op y = c ;`, so with its answer at p it fills p - 4 … p + 1.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from minifunc.analysis.function_vectors import explained
from minifunc.analysis.probe import fit, one_hot, r2
from minifunc.circuit import parse
from minifunc.model import Hooks, Transformer
from minifunc.support.evaluation import accuracy

INPUTS = ("q", "k", "v", "qk")


def shares(vectors: Tensor, first: Tensor, second: Tensor) -> dict[str, float]:
    """Shares of the variance of vectors [n, width] by two labels [n], of which every pair must occur: they add up to 1.

    first, second: by that label alone; both: by the pair beyond the two alone; rest: inside the cells. Each cell (pair) has weight 1,
    however many rows it has, so the two labels are independent even where they were not drawn so. Raises ValueError where a pair is missing.
    """
    x = vectors.double()
    _, i = first.to(x.device).unique(return_inverse=True)
    _, j = second.to(x.device).unique(return_inverse=True)
    n_first, n_second = int(i.max()) + 1, int(j.max()) + 1
    cell = i * n_second + j
    counts = torch.bincount(cell, minlength=n_first * n_second)
    if (counts == 0).any():
        raise ValueError(
            f"{int((counts == 0).sum())} of the {n_first} × {n_second} pairs of labels never occur: these two cannot be told apart"
        )
    means = x.new_zeros(len(counts), x.shape[1]).index_add_(0, cell, x) / counts[:, None]
    inside = ((x - means[cell]).square().sum(1) / counts[cell]).sum() / len(counts)
    table = (means - means.mean(0)).unflatten(0, (n_first, n_second))  # [n_first, n_second, width]
    parts = {
        "first": table.mean(1).square().sum(1).mean(),
        "second": table.mean(0).square().sum(1).mean(),
    }
    between = table.square().sum(2).mean()
    parts |= {"both": (between - parts["first"] - parts["second"]).clamp(min=0), "rest": inside}
    total = (between + inside).clamp(min=1e-30)
    return {name: round((part / total).item(), 4) for name, part in parts.items()}


# ---------------------------------------------------------------- by replacement


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
    """What only the q, only the k, only the v (or q and k) of a head does when it comes, at every position, from another run.

    base, contrast [n_prompts, pos] int64 and their answers [n_prompts], as for `PathPatcher`; sources {name: tokens of the contrast
    prompts' shape}. Everything after is live: this is ablation, not path patching. → {head or "all": {input: {source: {r,
    base_acc, contrast_acc}}}}, r as in `patching` (-1: fully back to base), "all" = these heads together.
    """
    device = model.unembed.W_U.device
    places = {head: [parse(head)] for head in heads} | {"all": [parse(head) for head in heads]}
    lowest = min(layer for layer, _ in places["all"])
    names = [
        f"blocks.{layer}.attn.hook_{which}"
        for layer in sorted({layer for layer, _ in places["all"]})
        for which in "qkv"
    ]
    last = torch.tensor([contrast.shape[1] - 1], device=device)
    answers = torch.stack([base_answers, contrast_answers], dim=1).to(device)

    def score(logits: Tensor) -> float:
        return (
            (logits.gather(1, answers) * torch.tensor([1, -1], device=device))
            .sum(1)
            .double()
            .mean()
            .item()
        )

    logits, cache = model.run_with_cache(contrast.to(device), [f"blocks.{lowest}.hook_resid_pre"])
    resid, F_contrast = cache[f"blocks.{lowest}.hook_resid_pre"], score(logits[:, -1])
    F_range = F_contrast - score(model(base.to(device), last)[:, 0])
    if not abs(F_range) > 1e-6:  # also where it is NaN
        raise ValueError(
            f"F_contrast - F_base is {F_range:.2g}, so r is undefined: the model does not tell these prompts apart"
        )
    found: dict[str, Any] = {part: {which: {} for which in INPUTS} for part in places}
    for source, tokens in sources.items():
        _, other = model.run_with_cache(tokens.to(device), names)
        for part, where in places.items():
            for which in INPUTS:

                def replace(
                    x: Tensor,
                    name: str,
                    where: list[tuple[int, int]] = where,
                    other: dict[str, Tensor] = other,
                ) -> Tensor:
                    x = x.clone()
                    for head in (
                        head for layer, head in where if name.startswith(f"blocks.{layer}.")
                    ):
                        x[:, :, head] = other[name][
                            :, -x.shape[1] :, head
                        ]  # the last block's q is that of the last position alone
                    return x

                hooks = Hooks(
                    {
                        f"blocks.{layer}.attn.hook_{letter}": replace
                        for layer, _ in where
                        for letter in which
                    }
                )
                patched = model.run_from(resid, lowest, last, hooks)[:, 0]
                found[part][which][source] = {
                    "r": round((score(patched) - F_contrast) / F_range, 4),
                    "base_acc": round(accuracy(patched, base_answers), 4),
                    "contrast_acc": round(accuracy(patched, contrast_answers), 4),
                }
    return found


# ---------------------------------------------------------------- of the scores


@torch.no_grad()
def looks_for(
    model: Transformer,
    tokens: Tensor,
    answers: Tensor,
    expected: Tensor,
    shown: Tensor,
    asked: Tensor,
    heads: Sequence[str],
) -> dict[str, Any]:
    """Which keys the last `=` scores high in each head, before the softmax and as attention.

    tokens [n_prompts, pos] int64; answers [n_shots]: positions of the shown answers; expected, shown [n_prompts, n_shots]: f(x, y) and c as
    numbers; asked [n_prompts]: the query's f(x, y). Per head:
        slot, example, both, rest   shares of the score's variance over the keys of all examples (see `shares`): by the place in
                                    `x op y = c ;`, by which example it is (recency), by both, and by what stands there
        is_answer                   the part of all variance that lies between answers and the other keys
        among_answers               shares of the scores' variance among the answers of one prompt (each prompt centred), by one label
                                    alone: nearness (f(x, y) there minus the asked one), example, shown c, difference d. They overlap.
        by_distance                 mean attention on an answer whose f(x, y) lies 0, 1, 2, … from the asked one; null if there is none
    """
    names = sorted(
        {
            f"blocks.{parse(head)[0]}.attn.hook_{what}"
            for head in heads
            for what in ("attn_scores", "pattern")
        }
    )
    n_shots, device = len(answers), model.unembed.W_U.device
    keys = (answers[:, None] + torch.arange(-4, 2)).to(device)  # [n_shots, slot]
    found: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(x: Tensor, name: str) -> Tensor:
        found[name].append(x[:, :, -1])
        return x

    last = torch.tensor([tokens.shape[1] - 1], device=device)
    for rows in tokens.split(256):
        model(rows.to(device), last, Hooks(dict.fromkeys(names, keep)))
    near = (expected - asked[:, None]).to(device)  # [n_prompts, n_shots]
    example = torch.arange(n_shots, device=device).expand(len(tokens), -1)
    labels = {
        "nearness": near,
        "example": example,
        "shown": shown.to(device),
        "difference": (shown - expected).to(device),
    }
    report = {}
    for head in heads:
        layer, index = parse(head)
        score, pattern = (
            torch.cat(found[f"blocks.{layer}.attn.hook_{what}"])[:, index]
            for what in ("attn_scores", "pattern")
        )  # [n_prompts, key]
        grid = score[:, keys].double()  # [n_prompts, n_shots, slot]
        slot = torch.arange(6, device=device).expand_as(grid)
        parts = shares(
            grid.flatten()[:, None], slot.flatten(), example[..., None].expand_as(grid).flatten()
        )
        of_slots = grid.mean((0, 1)) - grid.mean()
        is_answer = (
            of_slots[4].square() * (1 + 1 / 5) / 6 / grid.var(unbiased=False).clamp(min=1e-30)
        )
        mine = grid[:, :, 4] - grid[:, :, 4].mean(1, keepdim=True)
        attention = pattern[:, answers.to(device)].double()
        distances = [
            attention[near.abs() == distance] for distance in range(int(near.abs().max()) + 1)
        ]
        report[head] = {
            "slot": parts["first"],
            "example": parts["second"],
            "both": parts["both"],
            "rest": parts["rest"],
            "is_answer": round(is_answer.item(), 4),
            "among_answers": {
                name: round(explained(mine.flatten()[:, None], label.flatten()), 4)
                for name, label in labels.items()
            },
            "by_distance": [
                round(some.mean().item(), 4) if len(some) else None for some in distances
            ],
        }
    return report


# ---------------------------------------------------------------- of the weights


@torch.no_grad()
def hands_over(
    model: Transformer,
    tokens: Tensor,
    answers: Tensor,
    expected: Tensor,
    shown: Tensor,
    numbers: Tensor,
    first_number: int,
    heads: Sequence[str],
) -> dict[str, Any]:
    """What each head's OV path would write from the answers: the normalized stream there through W_V W_O, and on through W_U.

    tokens … shown: as in `looks_for`, of documents with several d = c - f(x, y). numbers [n_numbers]: token ids of consecutive numbers, the first of which is
    first_number. Per head:
        stream, logits   shares of the variance of what is written, into the stream or on the logits of numbers (the final norm's scale left out,
                         each row centred), by shown c (first), difference d (second), both, rest; over those c that occur with every d
        separately       R² of g(c) + h(f(x, y)) on the stream, two tables fitted on one half of the prompts and scored on the other. Near 1 with a small
                         share of d: the shown and the expected answer are handed over side by side (`both` is then h, for f(x, y) = c - d)
        difference_alone the same for one table g(d)
        copies           share of the values of c, and of f(x, y), whose mean written logits are highest at that value itself
    Raises ValueError where no c occurs with every d.
    """
    device = model.unembed.W_U.device
    c, e = shown.flatten().to(device), expected.flatten().to(device)
    d = c - e
    every = d.unique()
    wide = torch.tensor(
        [value for value in c.unique().tolist() if len(d[c == value].unique()) == len(every)],
        device=device,
    )
    if not len(wide):
        raise ValueError(
            "no shown answer occurs with every difference, so the two cannot be told apart: take more prompts"
        )
    inside = torch.isin(c, wide)
    tables = torch.cat([one_hot(c), one_hot(e)], dim=1)
    half = (torch.arange(len(tokens), device=device) % 2 == 0).repeat_interleave(len(answers))
    layers = sorted({parse(head)[0] for head in heads})
    kept: dict[str, list[Tensor]] = {f"blocks.{layer}.hook_resid_pre": [] for layer in layers}

    def keep(x: Tensor, name: str) -> Tensor:
        kept[name].append(x[:, answers.to(device)].flatten(0, 1))
        return x

    for rows in tokens.split(256):
        model(rows.to(device), None, Hooks(dict.fromkeys(kept, keep)))
    unembed = (
        model.ln_final.w[:, None] * model.unembed.W_U[:, numbers.to(device)]
    )  # [d_model, n_numbers]
    report = {}
    for head in heads:
        layer, index = parse(head)
        attn = model.blocks[layer].attn
        written = (
            model.blocks[layer].ln1(torch.cat(kept[f"blocks.{layer}.hook_resid_pre"]), Hooks())
            @ attn.W_V[index]
            @ attn.W_O[index]
        )  # [n, d_model]
        logits = written @ unembed
        logits = logits - logits.mean(1, keepdim=True)
        row: dict[str, Any] = {
            name: shares(x[inside], c[inside], d[inside])
            for name, x in (("stream", written), ("logits", logits))
        }
        for name, inputs in (("separately", tables), ("difference_alone", one_hot(d))):
            # R² over all directions: residual over variance, each summed over the stream's width
            probe, rest = fit(inputs[half], written[half]), ~half
            residual = (written[rest].double() - probe(inputs[rest])).square().sum()
            row[name] = round(
                (
                    1
                    - residual
                    / (written[rest].double() - written[rest].double().mean(0))
                    .square()
                    .sum()
                    .clamp(min=1e-30)
                ).item(),
                4,
            )
        row["copies"] = {}
        for name, label in (("shown", c), ("expected", e)):
            values = [
                value
                for value in label.unique().tolist()
                if 0 <= value - first_number < len(numbers)
            ]
            right = [
                int(logits[label == value].mean(0).argmax()) == value - first_number
                for value in values
            ]
            row["copies"][name] = round(sum(right) / len(right), 4)
        report[head] = row
    return report


@torch.no_grad()
def wrote(
    model: Transformer,
    tokens: Tensor,
    answers: Tensor,
    x: Tensor,
    y: Tensor,
    expected: Tensor,
    shown: Tensor,
    heads: Sequence[str],
) -> dict[str, Any]:
    """What each head did write at the answers (z W_O there), for heads that gather the expected answer.

    x, y [n_prompts, n_shots]: the operands as numbers, every pair of which must occur; the rest as in `looks_for`. Per head: shares of the variance by
    operand x (first), operand y (second), both, rest; expected_r2, shown_r2: R² with which f(x, y) and c can be read off it linearly, on the half of the prompts not fitted.
    """
    device = model.unembed.W_U.device
    kept: dict[str, list[Tensor]] = {f"blocks.{parse(head)[0]}.attn.hook_z": [] for head in heads}

    def keep(z: Tensor, name: str) -> Tensor:
        kept[name].append(z[:, answers.to(device)].flatten(0, 1))
        return z

    for rows in tokens.split(256):
        model(rows.to(device), None, Hooks(dict.fromkeys(kept, keep)))
    half = (torch.arange(len(tokens), device=device) % 2 == 0).repeat_interleave(len(answers))
    targets = torch.stack([expected.flatten(), shown.flatten()], dim=1).to(device)
    report = {}
    for head in heads:
        layer, index = parse(head)
        z = torch.cat(kept[f"blocks.{layer}.attn.hook_z"])[:, index]
        score = r2(fit(z[half], targets[half]), z[~half], targets[~half])
        report[head] = shares(z @ model.blocks[layer].attn.W_O[index], x.flatten(), y.flatten()) | {
            "expected_r2": round(score[0].item(), 4),
            "shown_r2": round(score[1].item(), 4),
        }
    return report


def show(found: Mapping[str, Any]) -> str:
    """The findings {inputs, looks_for, hands_over, wrote} as a few lines of text."""
    lines = [
        "q, k, v of the FI heads from other runs: r in %, and accuracy on plain / shifted answers"
    ]
    sources = list(next(iter(found["inputs"].values()))["q"])
    lines.append(
        f"  {'':8}{'':4}" + "".join(f"{source.replace('_', ' '):>26}" for source in sources)
    )
    for part, rows in found["inputs"].items():
        for which, row in rows.items():
            lines.append(
                f"  {part:8}{which:4}"
                + "".join(
                    f"{100 * row[source]['r']:12.1f}{row[source]['base_acc']:7.2f}/{row[source]['contrast_acc']:.2f}  "
                    for source in sources
                )
            )
    lines.append("scores of the last `=`: shares of their variance")
    for head, row in found["looks_for"].items():
        among, near = (
            row["among_answers"],
            " ".join("–" if value is None else f"{value:.2f}" for value in row["by_distance"][:8]),
        )
        lines.append(
            f"  {head:8}place in the example {row['slot']:.2f} (answer or not {row['is_answer']:.2f}), which example {row['example']:.2f}, both {row['both']:.2f}, what stands there {row['rest']:.2f}"
        )
        lines.append(
            f"  {'':8}among answers: "
            + ", ".join(f"{name} {value:.2f}" for name, value in among.items())
            + f"; attention by distance of f(x, y) from the asked one, from 0: {near}"
        )
    lines.append(
        "what W_V W_O writes from the answers: shares of its variance by shown c / difference d / both / rest"
    )
    for head, row in found["hands_over"].items():
        texts = [
            f"{name} " + " / ".join(f"{value:.2f}" for value in row[name].values())
            for name in ("stream", "logits")
        ]
        lines.append(
            f"  {head:8}{texts[0]}; {texts[1]}; R² of g(c) + h(f(x, y)) {row['separately']:.2f}, of g(d) {row['difference_alone']:.2f}; copies c {row['copies']['shown']:.2f}, f(x, y) {row['copies']['expected']:.2f}"
        )
    if found["wrote"]:
        lines.append(
            "what the heads that gather the expected answer write at the answers: shares by x / y / both / rest; R² of reading f(x, y), c"
        )
    for head, row in found["wrote"].items():
        lines.append(
            f"  {head:8}"
            + " / ".join(f"{row[name]:.2f}" for name in ("first", "second", "both", "rest"))
            + f"; {row['expected_r2']:.2f}, {row['shown_r2']:.2f}"
        )
    return "\n".join(lines)
