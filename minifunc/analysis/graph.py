"""What discovery found, as a graph: the `graph` of circuit.json."""

from typing import Any

from minifunc.circuit import Criteria, Discovery

# Heads that were also swept together: name → edges to the logits.
TOGETHER = {"function_induction": 1, "shown_answer": 2, "expected_answer": 2}


def circuit_graph(found: Discovery, criteria: Criteria) -> dict[str, list[dict[str, Any]]]:
    """{"nodes": [{name, kind, steps, groups}], "edges": [{sender, receiver, contrast, r}]}."""
    edges = strong_edges(found, criteria)
    nodes = [node("logits", "logits", 0, [])]
    for name, step in sorted(found.steps.items(), key=lambda pair: pair[1]):
        kind = "head" if "." in name else name.rstrip("0123456789")
        groups = [group for group, heads in found.groups.items() if name in heads]
        nodes.append(node(name, kind, step, groups))
    for name, step in TOGETHER.items():
        if any(edge["receiver"].startswith(name) for edge in edges):
            nodes.append(node(name, "together", step, [name]))
    return {"nodes": nodes, "edges": edges}


def strong_edges(found: Discovery, criteria: Criteria) -> list[dict[str, Any]]:
    """All effects that count, of nodes that count."""
    edges: list[dict[str, Any]] = []
    for contrast, each in found.effects.items():
        for receiver, effect in each.items():
            least = criteria.strong if receiver == "logits" else criteria.feeds
            for sender, r in effect.named().items():
                if abs(r) >= least and sender in found.steps:
                    edge = {"sender": sender, "receiver": receiver, "contrast": contrast}
                    edges.append(edge | {"r": round(r, 5)})
    return edges


def node(name: str, kind: str, step: int, groups: list[str]) -> dict[str, Any]:
    return {"name": name, "kind": kind, "steps": step, "groups": groups}
