"""Discovery: from paired prompts to a circuit as a graph, and to groups of heads, by stated criteria.

Three groups as in arXiv 2507.09875, made explicit, the two routes that feed them, and what is left over:

    function_induction   strong on the logits, and at the last `=` it looks at earlier answers
    consolidation        strong on the logits, and at the last `=` it looks at itself and at BOS
    other_direct         strong on the logits, and neither
    shown_answer         feeds an FI head's q, k or v when the *shown* answers are changed
    expected_answer      feeds an FI head's q, k or v when the *operands* are changed instead
    upstream             found only a step further down, feeding what is named above
    previous_token       one of these three that looks, at an answer, at the `=` before it

A head is "layer.head"; a group is a list of heads in the order of the model.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from minifunc.model import Transformer
from minifunc.patching import Effects, HeadInput, Logits, MLPInput, PathPatcher, Receiver

Head = tuple[int, int]


@dataclass(frozen=True)
class Criteria:
    """The thresholds that make the groups.

    solves: share of contrast prompts that the model must answer rightly; below it there is nothing to explain and
    r, a ratio to almost nothing, means nothing. strong: |r| on the logits from which a head counts; feeds: |r| on
    the q, k or v of an FI head, or of all of them together, from which a node counts (the paper takes 2 % for
    both, among 672 heads).
    looks_at_answers, looks_at_self_or_bos, looks_at_previous, looks_at_operands: shares of attention, means over
    prompts (and over the answers, for the last two). With 8 shots an even look at all positions would give .15 to the
    earlier answers; the first threshold is twice that. faithful: how faithful (1: entirely) a circuit must stay while
    heads are taken out of it.
    """

    solves: float = 0.5
    strong: float = 0.05
    feeds: float = 0.02
    looks_at_answers: float = 0.30
    looks_at_self_or_bos: float = 0.50
    looks_at_previous: float = 0.30
    looks_at_operands: float = 0.30
    faithful: float = 0.90

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 < value <= 1:
                raise ValueError(
                    f"{name.replace('_', '-')} is a share: it must lie above 0 and not above 1, not {value}"
                )


@torch.no_grad()
def attention_shares(
    model: Transformer, tokens: Tensor, answers: Tensor, operands: Sequence[int] = (4, 2)
) -> dict[str, dict[str, float]]:
    """Where each head looks, as shares of its attention, means over the prompts tokens [n_prompts, pos].

    answers [n_shots] int64: positions of the shown answers. operands: how far before an answer its operands stand
    (in `x op y = c` 4 and 2), and so, less 1, how far before the last `=` the query's. Per head: last_to_answers,
    last_to_self, last_to_bos, last_to_operands are seen from the last position, which is an `=`; answer_to_previous
    and answer_to_operands go from each shown answer to the token before it (an `=`) and to its own operands.
    """
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers)]
    total: Any = 0
    for part in tokens.split(128):
        _, cache = model.run_with_cache(part.to(model.unembed.W_U.device), names)
        total = total + torch.stack([cache[name].sum(0) for name in names]).double().cpu()
    pattern = total / len(tokens)  # [n_layers, n_heads, query, key]
    last = pattern[:, :, -1]
    shares = {
        "last_to_answers": last[..., answers].sum(-1),
        "answer_to_previous": pattern[:, :, answers, answers - 1].mean(-1),
        "answer_to_operands": torch.stack(
            [pattern[:, :, answers, answers - back] for back in operands]
        )
        .sum(0)
        .mean(-1),
        "last_to_self": last[..., -1],
        "last_to_bos": last[..., 0],
        "last_to_operands": last[..., [-back for back in operands]].sum(-1),
    }
    return {
        f"{layer}.{head}": {
            name: round(share[layer, head].item(), 4) for name, share in shares.items()
        }
        for layer in range(model.cfg.n_layers)
        for head in range(model.cfg.n_heads)
    }


def parse(head: str) -> Head:
    """The layer and the index of a head by name.

    >>> parse("3.14")
    (3, 14)
    """
    layer, index = head.split(".")
    return int(layer), int(index)


def direct_groups(
    to_logits: Tensor, attention: Mapping[str, Mapping[str, float]], criteria: Criteria
) -> dict[str, list[str]]:
    """function_induction, consolidation and other_direct from r of heads → logits [n_layers, n_heads] and `attention_shares`.

    An FI head moves the answer away from base (r < 0); the paper's consolidation heads do either.
    """
    fi, consolidation, other = [], [], []
    for layer, row in enumerate(to_logits.tolist()):
        for index, r in enumerate(row):
            head = f"{layer}.{index}"
            looks = attention[head]
            if r <= -criteria.strong and looks["last_to_answers"] >= criteria.looks_at_answers:
                fi.append(head)
            elif (
                abs(r) >= criteria.strong
                and looks["last_to_self"] + looks["last_to_bos"] >= criteria.looks_at_self_or_bos
            ):
                consolidation.append(head)
            elif abs(r) >= criteria.strong:
                other.append(head)
    return {"function_induction": fi, "consolidation": consolidation, "other_direct": other}


def nodes(effects: Effects) -> dict[str, float]:
    """r by name of node, in the order of the model: embedding, 0.0, 0.1, …, mlp0, 1.0, …"""
    named = {"embedding": effects.embedding.item()}
    for layer, row in enumerate(effects.heads.tolist()):
        named |= {f"{layer}.{head}": r for head, r in enumerate(row)} | {
            f"mlp{layer}": effects.mlps[layer].item()
        }
    return named


def feeding(effects: Sequence[Effects], criteria: Criteria) -> dict[str, float]:
    """The nodes that count on at least one of some receivers, each with its r of largest size, the strongest first."""
    strongest: dict[str, float] = {}
    for named in map(nodes, effects):
        strongest |= {
            name: r for name, r in named.items() if abs(r) > abs(strongest.get(name, 0.0))
        }
    kept = {name: r for name, r in strongest.items() if abs(r) >= criteria.feeds}
    return dict(sorted(kept.items(), key=lambda pair: -abs(pair[1])))


def route(
    effects: Mapping[str, Effects], fi: Sequence[str], criteria: Criteria
) -> dict[str, float]:
    """`feeding` of the q, k and v of the FI heads, each alone and all together; effects by name of receiver."""
    return feeding(
        [
            effect
            for receiver, effect in effects.items()
            if receiver[:-2] in [*fi, "function_induction"]
        ],
        criteria,
    )


def heads_of(names: Iterable[str]) -> list[str]:
    """The heads among some nodes, in the order of the model.

    >>> heads_of(["mlp0", "10.1", "2.11", "2.3", "embedding"])
    ['2.3', '2.11', '10.1']
    """
    return sorted({name for name in names if "." in name}, key=parse)


def mlps_of(names: Iterable[str]) -> list[str]:
    """The MLPs among some nodes, in the order of the model."""
    return sorted(
        {name for name in names if name.startswith("mlp")}, key=lambda name: int(name[3:])
    )


# ---------------------------------------------------------------- the circuit as a graph


@dataclass(frozen=True)
class Discovery:
    """What `discover` found.

    effects: by contrast, by name of receiver (`logits`, `2.1.v`, `mlp3`, or `function_induction.v`, all of these
    heads together). routes: by group shown_answer and expected_answer, the nodes that feed the FI heads, each with
    its r of largest size. graph: {"nodes": [{name, kind, steps, groups}], "edges": [{sender, receiver, contrast, r}]}.
    """

    effects: dict[str, dict[str, Effects]]
    attention: dict[str, dict[str, float]]
    groups: dict[str, list[str]]
    routes: dict[str, dict[str, float]]
    graph: dict[str, list[dict[str, Any]]]


ROUTES = {
    "shown_answer": "answers",
    "expected_answer": "operands",
}  # group → the contrast under which it shows


def discover(
    patchers: Mapping[str, PathPatcher],
    answers: Tensor,
    criteria: Criteria,
    solved: bool = True,
    operands: Sequence[int] = (4, 2),
) -> Discovery:
    """Traces a circuit downwards from the logits, on any model and prompts. Deterministic.

    patchers: by contrast, patchers of one model on the same contrast prompts: "answers" (shown answers changed) and,
    for the other route, "operands" (operands changed). answers, operands: as in `attention_shares`. solved: whether
    the model does the task; if not, only the logits are looked at, and every group stays empty.

    logits → the heads that write the answer → the q, k, v of the FI and consolidation heads, each alone and all FI
    heads together → the heads found there, under the contrast under which they were found → their q, k, v. An MLP
    that counts is followed as well, through its input; under live MLPs a head's direct path may pass through it too,
    so it then shows a part of what is already counted. On the logits a node counts from `criteria.strong`, further
    down from `criteria.feeds`.
    """
    first = patchers["answers"]
    attention = attention_shares(first.model, first.contrast_tokens, answers, operands)
    effects = {name: {"logits": patcher.sweep(Logits())} for name, patcher in patchers.items()}
    groups = direct_groups(effects["answers"]["logits"].heads, attention, criteria)
    if not solved:
        groups = {name: [] for name in groups}
    fi = groups["function_induction"]

    def follow(
        contrast: str,
        heads: Sequence[str],
        mlps: Sequence[str],
        together: Mapping[str, Sequence[str]],
    ) -> list[str]:
        """Sweeps the inputs of some nodes under one contrast; returns all that feed them."""
        receivers: dict[str, list[Receiver]] = {}
        for which in "vqk":
            receivers |= {
                f"{name}.{which}": [HeadInput(*parse(head), which) for head in group]
                for name, group in together.items()
                if group
            }
            receivers |= {f"{head}.{which}": [HeadInput(*parse(head), which)] for head in heads}
        receivers |= {mlp: [MLPInput(int(mlp[3:]))] for mlp in mlps}
        swept = (
            dict(zip(receivers, patchers[contrast].sweep_each(list(receivers.values()))))
            if receivers
            else {}
        )
        effects[contrast] |= swept
        return list(feeding(list(swept.values()), criteria))

    writers = (
        [
            node
            for each in effects.values()
            for node, r in nodes(each["logits"]).items()
            if abs(r) >= criteria.strong
        ]
        if solved
        else []
    )
    traced = fi + groups["consolidation"]
    steps = dict.fromkeys(writers, 1)  # of each node: edges to the logits
    routes: dict[str, dict[str, float]] = {}
    for group, contrast in ROUTES.items():
        below = (
            follow(contrast, traced, mlps_of(writers), {"function_induction": fi})
            if traced and contrast in patchers
            else []
        )
        routes[group] = route(effects.get(contrast, {}), fi, criteria)
        groups[group] = heads_of(routes[group])
        heads = [head for head in heads_of(below) if head not in traced]
        further = (
            follow(
                contrast,
                heads,
                [mlp for mlp in mlps_of(below) if mlp not in writers],
                {group: groups[group]},
            )
            if below
            else []
        )
        for step, reached in ((2, below), (3, further)):
            steps |= {node: min(step, steps.get(node, step)) for node in reached}
    named = {head for group in groups.values() for head in group}
    groups["upstream"] = [head for head in heads_of(steps) if head not in named]
    lower = heads_of(groups["shown_answer"] + groups["expected_answer"] + groups["upstream"])
    groups["previous_token"] = [
        head
        for head in lower
        if attention[head]["answer_to_previous"] >= criteria.looks_at_previous
    ]
    return Discovery(effects, attention, groups, routes, _graph(effects, groups, steps, criteria))


THRESHOLDS = {  # what `other_thresholds` tries, besides the value in force
    "strong": (0.01, 0.02, 0.05, 0.1, 0.2),
    "looks_at_answers": (0.15, 0.2, 0.3, 0.4, 0.5, 0.6),
    "feeds": (0.01, 0.02, 0.05, 0.1, 0.2),
    "looks_at_previous": (0.1, 0.2, 0.3, 0.4, 0.5),
}


def other_thresholds(found: Discovery, criteria: Criteria) -> list[dict[str, Any]]:
    """The groups that other thresholds would make, one criterion changed at a time: [{criterion, value, in_force, group, heads}].

    `feeds` and `looks_at_previous` are changed with the FI heads as found.
    """
    rows = []
    for name, values in THRESHOLDS.items():
        for value in sorted({*values, getattr(criteria, name)}):
            other, fi = replace(criteria, **{name: value}), found.groups["function_induction"]
            groups = direct_groups(found.effects["answers"]["logits"].heads, found.attention, other)
            routes = {
                group: heads_of(route(found.effects.get(contrast, {}), fi, other))
                for group, contrast in ROUTES.items()
            }
            groups |= routes | {
                "previous_token": [
                    head
                    for head in heads_of(sum(routes.values(), found.groups["upstream"]))
                    if found.attention[head]["answer_to_previous"] >= other.looks_at_previous
                ]
            }
            concerned = {
                "strong": ("function_induction", "consolidation", "other_direct"),
                "looks_at_answers": ("function_induction",),
                "feeds": tuple(ROUTES),
                "looks_at_previous": ("previous_token",),
            }[name]
            rows += [
                {
                    "criterion": name,
                    "value": value,
                    "in_force": value == getattr(criteria, name),
                    "group": group,
                    "heads": groups[group],
                }
                for group in concerned
            ]
    return rows


def _graph(
    effects: Mapping[str, Mapping[str, Effects]],
    groups: Mapping[str, Sequence[str]],
    steps: Mapping[str, int],
    criteria: Criteria,
) -> dict[str, list[dict[str, Any]]]:
    """All edges that count, under each contrast, and the nodes at their ends, from the logits down; `steps` of a node: edges to the logits."""
    edges: list[dict[str, Any]] = []
    for contrast, each in effects.items():
        for receiver, effect in each.items():
            least = criteria.strong if receiver == "logits" else criteria.feeds
            edges += [
                {"sender": sender, "receiver": receiver, "contrast": contrast, "r": round(r, 5)}
                for sender, r in nodes(effect).items()
                if abs(r) >= least and sender in steps
            ]
    found: list[dict[str, Any]] = [{"name": "logits", "kind": "logits", "steps": 0, "groups": []}]
    for name, step in sorted(steps.items(), key=lambda pair: pair[1]):
        kind = "head" if "." in name else name.rstrip("0123456789")
        found.append(
            {
                "name": name,
                "kind": kind,
                "steps": step,
                "groups": [group for group, heads in groups.items() if name in heads],
            }
        )
    for name in ("function_induction", *ROUTES):
        if any(edge["receiver"].startswith(name) for edge in edges):
            found.append(
                {
                    "name": name,
                    "kind": "together",
                    "steps": 1 if name == "function_induction" else 2,
                    "groups": [name],
                }
            )
    return {"nodes": found, "edges": edges}


def reader_roles(
    heads: Sequence[str],
    attention: Mapping[str, Mapping[str, float]],
    replaced: Mapping[str, Mapping[str, Mapping[str, float]]],
    criteria: Criteria,
) -> dict[str, dict[str, Any]]:
    """Says of heads below the FI heads which kind they are, by where they look and by what breaks when they are replaced.

    replaced: by head, by what is put in over the shown examples ("answers": the values of the run with other shown
    answers; "operands": with other operands), {r, …}: how far F then goes to that run's (-1: all the way).
    looks_at: "previous" or "operands" from a shown answer, the larger share if it meets its criterion. brings: "shown",
    "expected" or both, by |r| >= `criteria.feeds`. kind: previous_token or operand_reader where it looks there
    *and* brings what was to be expected; else other.
    """
    roles: dict[str, dict[str, Any]] = {}
    for head in heads:
        shares = {
            "previous": attention[head]["answer_to_previous"],
            "operands": attention[head]["answer_to_operands"],
        }
        looks = max(shares, key=lambda name: shares[name])
        looks = looks if shares[looks] >= getattr(criteria, f"looks_at_{looks}") else "neither"
        brings = [
            route.split("_")[0]
            for route, contrast in ROUTES.items()
            if abs(replaced[head].get(contrast, {"r": 0.0})["r"]) >= criteria.feeds
        ]
        kind = (
            {"previous": "previous_token", "operands": "operand_reader"}.get(looks, "other")
            if "expected" in brings
            else "other"
        )
        roles[head] = {
            "kind": kind,
            "looks_at": looks,
            "brings": brings,
            "replaced": replaced[head],
        }
    return roles
