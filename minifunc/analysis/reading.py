"""Q, K and V of a head apart: what does it look for, what does it find, what does it hand over?

Three readings answer this, on prompts of examples `x op y = c ;`:
    inputs_apart         by replacement: only the q, k or v of a head comes from another run
    looks_for            from its scores: which keys the last `=` prefers, and which answers
    hands_over, wrote    from its weights: is it c, f(x, y), or their difference d = c - f(x, y)?

Shares of variance: a two-way analysis of variance (Fisher 1925), all pairs of labels counted alike.
"""

from collections.abc import Mapping
from itertools import product

import torch
from torch import Tensor

from minifunc.analysis.activations import Examples, activations
from minifunc.analysis.function_vectors import Numbers, explained, hook_points
from minifunc.analysis.probe import held_out, one_hot, r2_together
from minifunc.analysis.rows import answered
from minifunc.model import Transformer
from minifunc.patching import HeadInput, PathPatcher
from minifunc.support import checks
from minifunc.support.hooks import Hooks
from minifunc.support.names import Found, Heads, parse
from minifunc.support.products import in_stream
from minifunc.support.settled import settled
from minifunc.support.tables import rounded, table, table_of_heads

INPUTS = ("q", "k", "v", "qk")
SHARES = ("first", "second", "both", "rest")
N_SLOTS, ANSWER = 6, 4  # tokens in `x op y = c ;`, and which of them is the answer
HALVES = slice(0, None, 2), slice(1, None, 2)  # every second prompt for fitting


def shares(vectors: Tensor, first: Tensor, second: Tensor) -> dict[str, float]:
    """Shares of the variance of vectors [..., width] by two labels [...]: they add up to 1.

    first, second: by that label alone; both: by the pair beyond these two; rest: inside the cells
    (pairs). A cell has weight 1, however many rows it has, so that the labels are independent even
    where they were not drawn so. Raises ValueError where a pair is missing.
    """
    for labels in (first, second):
        checks.check_shape("labels", labels, vectors.shape[:-1])
    x = vectors.double().flatten(0, -2)  # [n, width]
    _, i = first.flatten().to(x.device).unique(return_inverse=True)
    _, j = second.flatten().to(x.device).unique(return_inverse=True)
    n_first, n_second = int(i.max()) + 1, int(j.max()) + 1
    cell = i * n_second + j
    counts = torch.bincount(cell, minlength=n_first * n_second)
    missing = int((counts == 0).sum())
    if missing:
        pairs = f"{missing} of the {n_first} × {n_second} pairs of labels"
        raise ValueError(f"{pairs} never occur: these two cannot be told apart")
    means = x.new_zeros(len(counts), x.shape[1]).index_add_(0, cell, x) / counts[:, None]
    inside = ((x - means[cell]).square().sum(1) / counts[cell]).sum() / len(counts)
    centred = (means - means.mean(0)).unflatten(0, (n_first, n_second))  # [first, second, width]
    between = centred.square().sum(-1).mean()
    by_first, by_second = (centred.mean(dim).square().sum(-1).mean() for dim in (1, 0))
    both = (between - by_first - by_second).clamp(min=0)
    parts = torch.stack([by_first, by_second, both, inside]) / (between + inside).clamp(min=1e-30)
    return rounded(dict(zip(SHARES, parts.tolist())))


def _replace(heads: Heads, which: str, other: Mapping[str, Tensor]) -> Hooks:
    """Hooks by which the inputs `which` (letters of "qkv") of `heads` are those of another run."""

    def replace(x: Tensor, name: str) -> Tensor:  # [batch, pos, head, d_head]
        layer = int(name.split(".")[1])
        here = [index for block, index in map(parse, heads) if block == layer]
        # In the last block q is that of the last position alone.
        x[:, :, here] = other[name][:, -x.shape[1] :, here]
        return x

    names = [name for name in other if name[-1] in which]
    return Hooks(dict.fromkeys(names, replace))


@torch.no_grad()
def inputs_apart(patcher: PathPatcher, sources: Mapping[str, Tensor], heads: Heads) -> Found:
    """What only the q, k, v (or q and k) of a head does when it is, everywhere, another run's.

    sources {name: tokens shaped like those of the patcher}. Everything after is live: this is
    ablation, not path patching. → {head or "all": {input: {source: {r, base_acc, contrast_acc}}}};
    "all" = these heads together. Raises ValueError where r is undefined.
    """
    checks.check_F_range(patcher.F_range)
    checks.weights_of(patcher.model, patcher.weights)
    model, F_contrast = patcher.model, patcher.F_contrast.mean()
    checks.check_sources(model.cfg.d_vocab, patcher.contrast_tokens, sources, {})
    parts = {head: [head] for head in heads} | {"all": list(heads)}
    names = hook_points(model, heads, *(f"attn.hook_{letter}" for letter in "qkv"))
    lowest = min(parse(head)[0] for head in heads)
    entry = f"blocks.{lowest}.hook_resid_pre"  # what is below these heads never changes
    _, cache = model.run_with_cache(patcher.contrast_tokens, [entry], patcher.last)
    found: Found = {part: {which: {} for which in INPUTS} for part in parts}
    for source, tokens in sources.items():
        _, other = model.run_with_cache(tokens.to(model.device), names)
        for part, which in product(parts, INPUTS):
            hooks = _replace(parts[part], which, other)
            patched = model.run_from(cache[entry], lowest, patcher.last, hooks)[:, 0]
            change = patcher.score(patched, slice(None)).mean() - F_contrast
            r = {"r": (change / patcher.F_range).item()}
            found[part][which][source] = r | answered(patched, patcher.answers.T)
    return rounded(found)


@torch.no_grad()
def looks_for(model: Transformer, examples: Examples, asked: Tensor, heads: Heads) -> Found:
    """Which keys the last `=` scores high in each head, before the softmax and as attention.

    asked [n_prompts]: the query's f(x, y). Per head:
        slot, example, both, rest  shares of the scores' variance over the keys of all examples: by
                                   place in `x op y = c ;`, by which example, by what stands there
        is_answer                  the share that lies between answers and the other keys
        among_answers              shares among the answers of one prompt, each prompt centred, by
                                   one label alone (they overlap): nearness (f(x, y) there minus the
                                   asked one), example, shown c, difference d
        by_distance                mean attention on an answer whose f(x, y) lies 0, 1, 2, … from
                                   the asked one; null if there is none
    """
    slots = torch.arange(N_SLOTS, device="cpu")
    checks.check_shape("asked", asked, examples.tokens.shape[:1])
    keys = examples.answers[:, None] - ANSWER + slots  # [n_shots, slot]
    labels = {
        "nearness": examples.expected - asked[:, None],
        "example": examples.answers.expand_as(examples.shown),
        "shown": examples.shown,
        "difference": examples.difference,
    }
    distance = labels["nearness"].abs()  # [n_prompts, n_shots]
    kinds = ("attn.hook_attn_scores", "attn.hook_pattern")
    names = hook_points(model, heads, *kinds)
    found = activations(model, examples.tokens, names, lambda x: x[:, :, -1], last=True)
    report = {}
    for head in heads:
        layer, index = parse(head)
        scores, pattern = (found[f"blocks.{layer}.{kind}"][:, index] for kind in kinds)
        grid = scores[:, keys].double()  # [n_prompts, n_shots, slot]
        centred = grid[:, :, ANSWER] - grid[:, :, ANSWER].mean(1, keepdim=True)
        attention = pattern[:, examples.answers].double()  # [n_prompts, n_shots]
        by_distance = [attention[distance == at] for at in range(int(distance.max()) + 1)]
        slot, example = slots.expand_as(grid), examples.answers[:, None].expand_as(grid)
        by_place = shares(grid[..., None], slot, example)
        by_place |= {"slot": by_place.pop("first"), "example": by_place.pop("second")}
        report[head] = by_place | {
            "is_answer": explained(grid[..., None], slot == ANSWER),
            "among_answers": {name: explained(centred[..., None], labels[name]) for name in labels},
            "by_distance": [seen.mean().item() if len(seen) else None for seen in by_distance],
        }
    return rounded(report)


def _copies(logits: Tensor, labels: Tensor, numbers: Numbers) -> float:
    """Share of the values of labels [...] at which mean logits [..., n_numbers] are highest."""
    values = labels.unique()
    means = torch.stack([logits[labels == value].mean(0) for value in values])
    return (means.argmax(-1).cpu() == values - numbers.first).double().mean().item()


def _with_every_difference(c: Tensor, d: Tensor) -> Tensor:
    """Where the shown answer c [...] is one that occurs with every difference d [...]: bool."""
    wide = [value for value in c.unique() if len(d[c == value].unique()) == len(d.unique())]
    if not wide:
        why = "so the two cannot be told apart: take more prompts"
        raise ValueError(f"no shown answer occurs with every difference, {why}")
    return torch.isin(c, torch.stack(wide))


@settled
@torch.no_grad()
def hands_over(model: Transformer, examples: Examples, numbers: Numbers, heads: Heads) -> Found:
    """What each head's OV path would write from the answers: the normalized stream through W_V W_O.

    examples: of prompts with several d = c - f(x, y). Per head:
        stream, logits    shares of the variance of what is written, into the stream or, through
                          W_U, on the logits of numbers (1 / rms of the final norm left out, rows
                          centred): by c (first), by d (second); over those c that occur with all d
        separately        R² of g(c) + h(f(x, y)) on the stream, two tables fitted on half of the
                          prompts. Near 1 with a small share of d: c and f(x, y) side by side
        difference_alone  R² of one table g(d)
        copies            share of the values of c, and of f(x, y), whose mean written logits are
                          highest at that value itself
    Raises ValueError where no c occurs with every d.
    """
    c, e, d = examples.shown, examples.expected, examples.difference
    comparable = _with_every_difference(c, d)
    side_by_side = torch.cat([one_hot(c), one_hot(e)], dim=-1)
    W_U = in_stream(model.W_U)[:, numbers.tokens.to(model.device)]
    unembed = model.ln_final.w[:, None] * W_U
    names = hook_points(model, heads, "hook_resid_pre")
    streams = activations(model, examples.tokens, names, lambda x: x[:, examples.answers])
    report = {}
    for head in heads:
        layer, index = parse(head)
        block = model.blocks[layer]
        x = block.ln1(streams[f"blocks.{layer}.hook_resid_pre"], Hooks())
        v = HeadInput(layer, index, "v").read(model, x)  # [n_prompts, n_shots, d_head]
        written = v @ in_stream(block.attn.W_O[index])  # [n_prompts, n_shots, d_model]
        logits = written @ unembed  # [n_prompts, n_shots, n_numbers]
        logits = logits - logits.mean(-1, keepdim=True)
        copies = {"shown": _copies(logits, c, numbers), "expected": _copies(logits, e, numbers)}
        report[head] = {
            "stream": shares(written[comparable], c[comparable], d[comparable]),
            "logits": shares(logits[comparable], c[comparable], d[comparable]),
            "separately": held_out(side_by_side, written, *HALVES, r2_together).item(),
            "difference_alone": held_out(one_hot(d), written, *HALVES, r2_together).item(),
            "copies": copies,
        }
    return rounded(report)


@settled
@torch.no_grad()
def wrote(model: Transformer, examples: Examples, x: Tensor, y: Tensor, heads: Heads) -> Found:
    """What each head did write at the answers, for heads that gather the expected answer.

    x, y [n_prompts, n_shots]: the operands as numbers, of which every pair must occur. Per head:
    shares of the variance of z W_O by x (first), y (second); expected_r2, shown_r2: R² with which
    f(x, y) and c can be read off z, on the half of the prompts that was not fitted.
    """
    targets = torch.stack([examples.expected, examples.shown], dim=-1)
    names = hook_points(model, heads, "attn.hook_z")
    found = activations(model, examples.tokens, names, lambda x: x[:, examples.answers])
    report = {}
    for head in heads:
        layer, index = parse(head)
        z = found[f"blocks.{layer}.attn.hook_z"][:, :, index]  # [n_prompts, n_shots, d_head]
        expected, shown = held_out(z, targets, *HALVES).tolist()
        written = shares(z @ in_stream(model.blocks[layer].attn.W_O[index]), x, y)
        report[head] = written | {"expected_r2": expected, "shown_r2": shown}
    return rounded(report)


def show(found: Found) -> list[str]:
    """The findings {inputs, looks_for, hands_over, wrote} as lines of text."""
    inputs, looks, hands = found["inputs"], found["looks_for"], found["hands_over"]
    replaced = []
    for part, which in product(inputs, INPUTS):
        row = inputs[part][which].values()
        cells = [f"{100 * x['r']:.1f}  {x['base_acc']:.2f}/{x['contrast_acc']:.2f}" for x in row]
        replaced.append([f"{part} {which}", *cells])
    sources = [name.replace("_", " ") for name in next(iter(inputs.values()))["q"]]
    among = {head: row["among_answers"] for head, row in looks.items()}
    near = [[head, *row["by_distance"][:8]] for head, row in looks.items()]
    kinds = product(hands, ("stream", "logits"))
    written = {f"{head} {where}": hands[head][where] for head, where in kinds}
    copied = {head: row | row["copies"] for head, row in hands.items()}
    return [
        "q, k, v of the FI heads from other runs: r in %, and accuracy on plain / shifted answers",
        *table(["head", *sources], replaced, digits=2),
        "scores of the last `=`: shares of their variance by place in the example (and by whether "
        "that is the answer), by which example, by both, by what stands there",
        *table_of_heads(looks, ("slot", "is_answer", "example", "both", "rest")),
        "of the answers' scores in one prompt: nearness is f(x, y) less the asked one",
        *table_of_heads(among, ("nearness", "example", "shown", "difference")),
        "attention on an answer by the distance of f(x, y) from the asked one",
        *table(["head", *map(str, range(8))], near, digits=2),
        "what W_V W_O writes from the answers: shares of its variance by c (first), d (second)",
        *table_of_heads(written, SHARES),
        "R² of g(c) + h(f(x, y)), of g(d); share of values of c, of f(x, y) that it copies",
        *table_of_heads(copied, ("separately", "difference_alone", "shown", "expected")),
        "what the heads that gather the expected answer write at the answers: shares by x (first), "
        "y (second); R² of reading f(x, y), c",
        *table_of_heads(found["wrote"], (*SHARES, "expected_r2", "shown_r2")),
    ]
