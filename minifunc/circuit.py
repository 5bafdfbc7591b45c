"""From effects and attention to a circuit: which heads do what, by stated criteria, and what happens without them.

Three groups as in arXiv 2507.09875, made explicit, and the two routes that feed them:

    function_induction   strong on the logits, and at the last `=` it looks at earlier answers
    consolidation        strong on the logits, and at the last `=` it looks at itself and at BOS
    shown_answer         feeds an FI head's q, k or v when the *shown* answers are changed
    expected_answer      feeds an FI head's q, k or v when the *operands* are changed instead
    previous_token       one of these two that looks, at an answer, at the `=` before it

A head is "layer.head"; a group is a list of heads in the order of the model.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minifunc.evaluation import last_logits
from minifunc.model import Hooks, Transformer
from minifunc.patching import Effects

Head = tuple[int, int]


@dataclass(frozen=True)
class Criteria:
    """The thresholds that make the groups.

    solves: share of contrast prompts that the model must answer rightly; below it there is nothing to explain and
    r, a ratio to almost nothing, means nothing. strong: |r| on the logits from which a head counts; feeds: |r| on
    the q, k or v of an FI head, or of all of them together, from which a node counts (the paper takes 2 % for
    both, among 672 heads).
    looks_at_answers, looks_at_self_or_bos, looks_at_previous: shares of attention, means over prompts (and over
    the answers, for the last one).
    """

    solves: float = 0.5
    strong: float = 0.05
    feeds: float = 0.02
    looks_at_answers: float = 0.50
    looks_at_self_or_bos: float = 0.50
    looks_at_previous: float = 0.30

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 < value <= 1:
                raise ValueError(f"{name.replace('_', '-')} is a share: it must lie above 0 and not above 1, not {value}")


@torch.no_grad()
def attention_shares(model: Transformer, tokens: Tensor, answers: Tensor) -> dict[str, dict[str, float]]:
    """Where each head looks, as shares of its attention, means over the prompts tokens [n_prompts, pos].

    answers [n_shots] int64: positions of the shown answers. Per head: last_to_answers, last_to_self, last_to_bos,
    last_to_operands (the query's own two) are seen from the last position, which is an `=`; answer_to_previous and
    answer_to_operands go from each shown answer to the `=` before it and to its own two operands. In `x op y = c`
    the operands stand 3 and 1 before the `=`, and 4 and 2 before the answer.
    """
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers)]
    total = 0
    for part in tokens.split(128):
        _, cache = model.run_with_cache(part.to(model.unembed.W_U.device), names)
        total = total + torch.stack([cache[name].sum(0) for name in names]).double().cpu()
    pattern = total / len(tokens)  # [n_layers, n_heads, query, key]
    last = pattern[:, :, -1]
    shares = {
        "last_to_answers": last[..., answers].sum(-1),
        "answer_to_previous": pattern[:, :, answers, answers - 1].mean(-1),
        "answer_to_operands": (pattern[:, :, answers, answers - 4] + pattern[:, :, answers, answers - 2]).mean(-1),
        "last_to_self": last[..., -1],
        "last_to_bos": last[..., 0],
        "last_to_operands": last[..., [-4, -2]].sum(-1),
    }
    return {
        f"{layer}.{head}": {name: round(share[layer, head].item(), 4) for name, share in shares.items()}
        for layer in range(model.cfg.n_layers)
        for head in range(model.cfg.n_heads)
    }


def parse(head: str) -> Head:
    layer, index = head.split(".")
    return int(layer), int(index)


def direct_groups(to_logits: Tensor, attention: Mapping[str, Mapping[str, float]], criteria: Criteria) -> dict[str, list[str]]:
    """function_induction and consolidation from r of heads → logits [n_layers, n_heads] and `attention_shares`.

    An FI head moves the answer away from base (r < 0); the paper's consolidation heads do either.
    """
    fi, consolidation = [], []
    for layer, row in enumerate(to_logits.tolist()):
        for index, r in enumerate(row):
            head = f"{layer}.{index}"
            looks = attention[head]
            if r <= -criteria.strong and looks["last_to_answers"] >= criteria.looks_at_answers:
                fi.append(head)
            elif abs(r) >= criteria.strong and looks["last_to_self"] + looks["last_to_bos"] >= criteria.looks_at_self_or_bos:
                consolidation.append(head)
    return {"function_induction": fi, "consolidation": consolidation}


def nodes(effects: Effects) -> dict[str, float]:
    """r by name of node, in the order of the model: embedding, 0.0, 0.1, …, mlp0, 1.0, …"""
    named = {"embedding": effects.embedding.item()}
    for layer, row in enumerate(effects.heads.tolist()):
        named |= {f"{layer}.{head}": r for head, r in enumerate(row)} | {f"mlp{layer}": effects.mlps[layer].item()}
    return named


def feeding(effects: Sequence[Effects], criteria: Criteria) -> dict[str, float]:
    """The nodes that count on at least one of some receivers, each with its r of largest size, the strongest first."""
    strongest: dict[str, float] = {}
    for named in map(nodes, effects):
        strongest |= {name: r for name, r in named.items() if abs(r) > abs(strongest.get(name, 0.0))}
    kept = {name: r for name, r in strongest.items() if abs(r) >= criteria.feeds}
    return dict(sorted(kept.items(), key=lambda pair: -abs(pair[1])))


def heads_of(names: Iterable[str]) -> list[str]:
    """The heads among some nodes, in the order of the model."""
    return sorted({name for name in names if "." in name}, key=parse)


@torch.no_grad()
def ablated_logits(model: Transformer, tokens: Tensor, source: Tensor, heads: Sequence[str], mean: bool = False) -> Tensor:
    """Logits [n_prompts, d_vocab] at the last position when `heads` send, at every position, what they send on `source`.

    tokens, source [n_prompts, pos] int64; mean: they send their mean over all source prompts instead. Everything
    else is live: this is ablation, not path patching. What is put in decides what comes out as much as what is
    taken away: a base run's values carry the base answer along.
    """
    by_layer: dict[int, list[int]] = {}
    for layer, head in map(parse, heads):
        by_layer.setdefault(layer, []).append(head)
    names = [f"blocks.{layer}.attn.hook_z" for layer in by_layer]
    device, logits = model.unembed.W_U.device, []

    def sent(rows: Tensor) -> dict[str, Tensor]:
        return model.run_with_cache(rows.to(device), names)[1]

    means: dict[str, Tensor] = {}
    for rows in source.split(256) if mean else ():
        means = {name: means.get(name, 0) + z.sum(0, keepdim=True) / len(source) for name, z in sent(rows).items()}
    for rows, other in zip(tokens.split(256), source.split(256)):
        values = means or sent(other)

        def replace(z: Tensor, name: str, values=values) -> Tensor:
            z = z.clone()
            for head in by_layer[int(name.split(".")[1])]:
                z[:, :, head] = values[name][:, -z.shape[1] :, head]  # the last block shows its last position alone
            return z

        logits.append(last_logits(model, rows, Hooks(dict.fromkeys(names, replace))))
    return torch.cat(logits)


def wilson(share: float, n: int) -> list[float]:
    """95 % interval of a share seen in n trials (Wilson 1927)."""
    z = 1.96
    centre, half = (share + z * z / (2 * n)) / (1 + z * z / n), z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return [round(max(0.0, centre - half), 4), round(min(1.0, centre + half), 4)]


def random_group_anywhere(heads: Sequence[str], n_layers: int, n_heads: int, generator: torch.Generator) -> list[str]:
    """As many heads as `heads` has, drawn from all others, whatever their layer."""
    outside = [f"{layer}.{head}" for layer in range(n_layers) for head in range(n_heads) if f"{layer}.{head}" not in heads]
    drawn = torch.randperm(len(outside), generator=generator)[: len(heads)]
    return heads_of(outside[index] for index in drawn.tolist())


def random_group(heads: Sequence[str], n_heads: int, generator: torch.Generator) -> list[str]:
    """As many heads from each layer as `heads` has there, drawn from that layer's other heads (all of those, where they are fewer)."""
    group = []
    for layer in sorted({parse(head)[0] for head in heads}):
        inside = [parse(head)[1] for head in heads if parse(head)[0] == layer]
        outside = [head for head in range(n_heads) if head not in inside]
        drawn = torch.randperm(len(outside), generator=generator)[: len(inside)]
        group += [f"{layer}.{outside[index]}" for index in sorted(drawn.tolist())]
    return group
