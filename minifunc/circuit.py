"""Discovery: from paired prompts to groups of heads, by stated criteria.

Three groups of arXiv 2507.09875, made explicit (function_induction, or FI; consolidation;
previous_token), the two routes that feed FI heads, and what is left:

    function_induction   strong on the logits, r < 0, and at the last `=` looks at earlier answers
    consolidation        strong on the logits, and at the last `=` looks at itself or BOS
    other_direct         strong on the logits, and neither of the two
    shown_answer         feeds an FI head's q, k or v when the *shown* answers are changed
    expected_answer      feeds an FI head's q, k or v when the *operands* are changed instead
    upstream             any other that counts, even in the last layer: on a consolidation head, an
                         MLP, a head further down, or on the logits under changed operands alone
    previous_token       one of the three above that looks, at an answer, at the `=` before it

A head is "layer.head", listed in the order of the model; it may be in several groups.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minifunc.model import Transformer
from minifunc.patching import Effects, HeadInput, Logits, MLPInput, PathPatcher, Receiver
from minifunc.support import checks
from minifunc.support.names import Groups, Heads, heads_of, mlps_of, parse
from minifunc.support.settled import settled

ROUTES = {"shown_answer": "answers", "expected_answer": "operands"}  # group → what is changed


@dataclass(frozen=True)
class Criteria:
    """The thresholds that make the groups; each is a share, above 0 and not above 1."""

    # Below `solves` there is nothing to explain: r is then a ratio to almost nothing.
    solves: float = 0.5  # share of contrast prompts answered rightly
    # The paper has 2 % for the next two, in a model of 672 heads.
    strong: float = 0.05  # |r| of a node on the logits
    feeds: float = 0.02  # |r| of a node on the q, k or v, or the MLP, of one that counts
    looks_at_answers: float = 0.30  # attention from the last `=`; an even look: .15, 8 shots
    looks_at_self_or_bos: float = 0.50  # the same, the sum of both
    looks_at_previous: float = 0.30  # attention from a shown answer
    faithful: float = 0.90  # how faithful a circuit stays (1: entirely) while heads are taken out

    def __post_init__(self) -> None:
        checks.check_shares(self)


# ---------------------------------------------------------------- groups


@settled
@torch.no_grad()
def attention_shares(
    model: Transformer, tokens: Tensor, shown: Tensor, operands: Sequence[int] = (4, 2)
) -> dict[str, dict[str, float]]:
    """Where each head looks on the prompts tokens [n_prompts, pos]: mean shares of its attention.

    shown [n_shots] int64: positions of the shown answers. operands: how far before an answer its
    operands stand (in `x op y = c` 4 and 2), and so, less 1, how far before the last `=` the
    query's. last_to_… are seen from the last position, an `=`; answer_to_… from each shown answer.
    """
    shown = checks.answers_seen(tokens, shown, operands)
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers)]
    total: Any = 0
    for part in tokens.split(128):
        _, cache = model.run_with_cache(part.to(model.device), names)
        total = total + torch.stack([cache[name].sum(0) for name in names]).double().cpu()
    pattern = total / len(tokens)  # [n_layers, n_heads, query, key]
    last = pattern[:, :, -1]  # [n_layers, n_heads, key]
    to_operands = sum(pattern[:, :, shown, shown - back] for back in operands)
    shares = {
        "last_to_answers": last[..., shown].sum(-1),
        "answer_to_previous": pattern[:, :, shown, shown - 1].mean(-1),
        "answer_to_operands": to_operands.mean(-1),
        "last_to_self": last[..., -1],
        "last_to_bos": last[..., 0],
        "last_to_operands": last[..., [-back for back in operands]].sum(-1),
    }
    by_head = torch.stack(list(shares.values()), dim=-1)  # [n_layers, n_heads, n_shares]
    found = {}
    for layer, of_layer in enumerate(by_head.tolist()):
        for head, row in enumerate(of_layer):
            found[f"{layer}.{head}"] = {name: round(share, 4) for name, share in zip(shares, row)}
    return found


def direct_groups(
    to_logits: Tensor, attention: Mapping[str, Mapping[str, float]], criteria: Criteria
) -> dict[str, list[str]]:
    """function_induction, consolidation and other_direct.

    to_logits [n_layers, n_heads]: r of heads → logits. attention: `attention_shares`. An FI head
    moves the answer away from base (r < 0); the paper's consolidation heads do either.
    """
    fi, consolidation, other = [], [], []
    for head, looks in attention.items():
        r = to_logits[parse(head)].item()
        at_self_or_bos = looks["last_to_self"] + looks["last_to_bos"]
        if not abs(r) >= criteria.strong:  # nor where it is a ratio to nothing
            continue
        if r < 0 and looks["last_to_answers"] >= criteria.looks_at_answers:
            fi.append(head)
        elif at_self_or_bos >= criteria.looks_at_self_or_bos:
            consolidation.append(head)
        else:
            other.append(head)
    return {"function_induction": fi, "consolidation": consolidation, "other_direct": other}


def feeding(effects: Iterable[Effects], criteria: Criteria) -> dict[str, float]:
    """The nodes that count on one of some receivers, each with its largest r, strongest first."""
    strongest: dict[str, float] = {}
    for effect in effects:
        for name, r in effect.named().items():
            if abs(r) > abs(strongest.get(name, 0.0)):
                strongest[name] = r
    kept = {name: r for name, r in strongest.items() if abs(r) >= criteria.feeds}
    return dict(sorted(kept.items(), key=lambda pair: -abs(pair[1])))


def route(effects: Mapping[str, Effects], fi: Heads, criteria: Criteria) -> dict[str, float]:
    """`feeding` of the q, k and v of each FI head, and of all of them at once."""
    receivers = checks.receivers_in(effects, fi)
    read_by_fi = [e for name, e in effects.items() if name.rsplit(".", 1)[0] in receivers]
    return feeding(read_by_fi, criteria)


def previous_token(
    heads: Iterable[str], attention: Mapping[str, Mapping[str, float]], criteria: Criteria
) -> list[str]:
    """Those heads that look, at a shown answer, at the `=` before it."""
    least, heads = criteria.looks_at_previous, checks.checked_heads(heads, list(attention))
    return [head for head in heads_of(heads) if attention[head]["answer_to_previous"] >= least]


# ---------------------------------------------------------------- from the logits downwards


@dataclass(frozen=True)
class Discovery:
    """What `discover` found.

    effects: by what is changed, by name of receiver (`logits`, `2.1.v`, `mlp3`, or a group's, all
    its heads together: `function_induction.v`). routes: by group shown_answer and expected_answer,
    the nodes that feed the FI heads, each with its r of largest size.
    """

    effects: dict[str, dict[str, Effects]]
    attention: dict[str, dict[str, float]]
    groups: dict[str, list[str]]
    routes: dict[str, dict[str, float]]


def discover(
    patchers: Mapping[str, PathPatcher],
    shown: Tensor,
    criteria: Criteria,
    solved: bool = True,
    operands: Sequence[int] = (4, 2),
) -> Discovery:
    """Traces a circuit downwards from the logits, on any model and prompts. Deterministic.

    patchers: by what is changed, of one model on the same contrast prompts: "answers" (shown
    answers changed) and, for the other route, "operands" (operands changed). shown, operands: as
    in `attention_shares`. solved: whether the model does the task; if not, only the logits are
    looked at, and every group stays empty.

    An MLP that counts is followed as well, through its input. Under live MLPs a head's direct path
    may pass through it too, so it then shows a part of what is already counted.
    """
    # 1. Which nodes bring the answer to the end? What do the heads among them look at?
    first = checks.same_prompts(patchers, list(ROUTES.values()))["answers"]
    attention = attention_shares(first.model, first.contrast_tokens, shown, operands)
    effects = {name: {"logits": patcher.sweep(Logits())} for name, patcher in patchers.items()}
    groups = direct_groups(effects["answers"]["logits"].heads, attention, criteria)
    if not solved:
        groups = {name: [] for name in groups}
    writers = strong_writers(effects, criteria) if solved else []
    fi = groups["function_induction"]
    traced = fi + groups["consolidation"]
    counted = set(writers)
    routes: dict[str, dict[str, float]] = {}
    for group, changed in ROUTES.items():
        routes[group], groups[group] = {}, []
        if not traced or changed not in patchers:
            continue
        # 2. What feeds the FI and consolidation heads, and the MLPs that write?
        together = {"function_induction": fi}
        swept = sweep_inputs(patchers[changed], traced, mlps_of(writers), together)
        effects[changed] |= swept
        below = feeding(swept.values(), criteria)
        routes[group] = route(swept, fi, criteria)
        groups[group] = heads_of(routes[group])
        # 3. What feeds those, under the contrast under which they were found?
        heads = [head for head in heads_of(below) if head not in traced]
        mlps = [mlp for mlp in mlps_of(below) if mlp not in writers]
        swept = sweep_inputs(patchers[changed], heads, mlps, {group: groups[group]})
        effects[changed] |= swept
        counted |= {*below, *feeding(swept.values(), criteria)}
    # 4. What is left over?
    named = {head for group in groups.values() for head in group}
    groups["upstream"] = [head for head in heads_of(counted) if head not in named]
    lower = groups["shown_answer"] + groups["expected_answer"] + groups["upstream"]
    groups["previous_token"] = previous_token(lower, attention, criteria)
    return Discovery(effects, attention, groups, routes)


def strong_writers(effects: Mapping[str, Mapping[str, Effects]], criteria: Criteria) -> list[str]:
    """The nodes that count on the logits under at least one contrast."""
    strong: list[str] = []
    for each in effects.values():
        for node, r in each["logits"].named().items():
            if abs(r) >= criteria.strong and node not in strong:
                strong.append(node)
    return strong


def sweep_inputs(
    patcher: PathPatcher, heads: Heads, mlps: Heads, together: Groups
) -> dict[str, Effects]:
    """The effects on v, q and k of heads, some `together`, and on inputs of MLPs, by name."""
    receivers: dict[str, list[Receiver]] = {}
    groups = {name: group for name, group in together.items() if group}
    groups |= {head: [head] for head in heads}
    for which in "vqk":
        for name, group in groups.items():
            receivers[f"{name}.{which}"] = [HeadInput(*parse(head), which) for head in group]
    for mlp in mlps:
        receivers[mlp] = [MLPInput(int(mlp[3:]))]
    if not receivers:
        return {}
    return dict(zip(receivers, patcher.sweep_each(list(receivers.values()))))
