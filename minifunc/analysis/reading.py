"""Q, K and V of a head apart: what does it look for, what does it find, what does it hand over?

Three readings answer this, on prompts of examples `x op y = c ;`:
    inputs_apart    by replacement: only the q, k or v of a head comes from another run
    looks_for       from its scores: which answers the last `=` prefers
    hands_over      from its weights: is it c and f(x, y), or their difference d = c - f(x, y)?
"""

from collections.abc import Mapping
from itertools import product

import torch
from torch import Tensor

from minifunc.analysis.activations import Examples, activations
from minifunc.analysis.function_vectors import hook_points
from minifunc.analysis.rows import answered
from minifunc.model import Transformer
from minifunc.patching import HeadInput, PathPatcher
from minifunc.support import checks
from minifunc.support.hooks import Hooks
from minifunc.support.names import Found, Heads, parse
from minifunc.support.products import in_stream
from minifunc.support.settled import settled
from minifunc.support.tables import rounded

INPUTS = ("q", "k", "v")


def explained(vectors: Tensor, *labels: Tensor) -> float:
    """Share, 0 to 1, of the variance of vectors [..., width] that labels [...] tell: R² of a table
    g(label), their mean, or for two of a sum, g(first) + h(second), by least squares."""
    x = vectors.cpu().double().flatten(0, -2)  # [n, width]
    x = x - x.mean(0)
    tables = []
    for each in labels:
        checks.check_shape("labels", each, vectors.shape[:-1])
        _, group = each.cpu().flatten().unique(return_inverse=True)
        tables.append(torch.nn.functional.one_hot(group).double())
    columns = torch.cat(tables, dim=1)  # [n, values of all labels]
    fitted = columns @ torch.linalg.lstsq(columns, x, driver="gelsd").solution
    return (fitted.square().sum() / x.square().sum().clamp(min=1e-30)).item()


def _replace(heads: Heads, which: str, other: Mapping[str, Tensor]) -> Hooks:
    """Hooks by which the inputs `which` (letters of "qkv") of `heads` are those of another run."""

    def replace(x: Tensor, name: str) -> Tensor:  # [batch, pos, head, d_head]
        layer = int(name.split(".")[1])
        here = [index for block, index in map(parse, heads) if block == layer]
        # In the last block q is that of the last position alone.
        x[:, :, here] = other[name][:, -x.shape[1] :, here]
        return x

    return Hooks(dict.fromkeys([name for name in other if name[-1] in which], replace))


@torch.no_grad()
def inputs_apart(patcher: PathPatcher, sources: Mapping[str, Tensor], heads: Heads) -> Found:
    """What only the q, k or v of a head does when it is, everywhere, another run's.

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
        among_answers   shares of the scores' variance among the answers of one prompt, each prompt
                        centred, by one label alone (they overlap): nearness (f(x, y) there minus
                        the asked one), example, shown c
        by_distance     mean attention on answers whose f(x, y) lies 0, 1, 2, … from the asked
    """
    checks.check_shape("asked", asked, examples.tokens.shape[:1])
    nearness = examples.expected - asked[:, None]  # [n_prompts, n_shots]
    example = examples.answers.expand_as(examples.shown)
    labels = {"nearness": nearness, "example": example, "shown": examples.shown}
    distance = nearness.abs()
    kinds = ("attn.hook_attn_scores", "attn.hook_pattern")
    names = hook_points(model, heads, *kinds)
    found = activations(model, examples.tokens, names, lambda x: x[:, :, -1], last=True)
    report = {}
    for head in heads:
        layer, index = parse(head)
        at_answers = (found[f"blocks.{layer}.{kind}"][:, index, examples.answers] for kind in kinds)
        scores, attention = (x.double() for x in at_answers)  # [n_prompts, n_shots]
        centred = scores - scores.mean(1, keepdim=True)
        by_distance = [attention[distance == at] for at in range(int(distance.max()) + 1)]
        report[head] = {
            "among_answers": {name: explained(centred[..., None], labels[name]) for name in labels},
            "by_distance": [seen.mean().item() if len(seen) else None for seen in by_distance],
        }
    return rounded(report)


@settled
@torch.no_grad()
def hands_over(model: Transformer, examples: Examples, heads: Heads) -> Found:
    """What each head's OV path would write from the answers: the normalized stream through W_V W_O.

    examples: of prompts with several d = c - f(x, y). Shares of its variance, per head:
        separately        told by c and f(x, y), each for itself: g(c) + h(f(x, y))
        difference_alone  told by d
    Side by side: the first is near 1, the second small.
    """
    c, f, d = examples.shown, examples.expected, examples.difference
    names = hook_points(model, heads, "hook_resid_pre")
    streams = activations(model, examples.tokens, names, lambda x: x[:, examples.answers])
    report = {}
    for head in heads:
        layer, index = parse(head)
        block = model.blocks[layer]
        x = block.ln1(streams[f"blocks.{layer}.hook_resid_pre"], Hooks())
        v = HeadInput(layer, index, "v").read(model, x)  # [n_prompts, n_shots, d_head]
        written = v @ in_stream(block.attn.W_O[index])  # [n_prompts, n_shots, d_model]
        shares = {"separately": explained(written, c, f), "difference_alone": explained(written, d)}
        report[head] = shares
    return rounded(report)
