"""While it learned: what learned.js shows at each step of training, and what is there from when."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from minifunc.ablation import all_heads
from minifunc.report.findings import Findings
from minifunc.report.html import Markup, h, percent, script_data
from minifunc.support.tables import rounded

Look = Mapping[str, Any]  # what is known of one step


def learned(f: Findings) -> list[Markup]:
    """The slider, places for what it shows, and the data: the looks that `make reference` took
    (commands/reference.py), or else the accuracy alone."""
    kept, prompt = f.learning, f.learning.get("prompt", "").replace("<bos>", "bos").split()
    looks = list(map(accuracies, f.metrics))
    if kept:
        looks = [
            at_a_step(look, all_heads(f.model.cfg), kept["looks"][-1]) for look in kept["looks"]
        ]
    last = len(looks) - 1
    slider = h("input", type="range", id="learned-step", min="0", max=last, value=last)
    parts = [titled("Share of sums that are right", drawing("curves", 200, "Accuracy by step"))]
    more = "make reference keeps also what the model answers at each step, and what its heads do."
    below = f"Of this run the accuracy alone was kept; {more}"
    if kept:
        parts = [answer(prompt), *parts, *heads_at_a_step(f)]
        below = appeared(looks, kept["criteria"])
    step = h("label", "Training step ", h("output", id="learned-now"), slider)
    view = h(
        "div", step, h("div", parts, class_="fields learned"), h("p", below), id="learned-view"
    )
    return [view, script_data("learning-data", {"looks": looks, "prompt": prompt})]


def accuracies(line: Look) -> Look:
    """What a line of metrics.jsonl says of addition, at 8 shots or at the most there are."""
    by_k, step = line["accuracy"]["addition"], int(line["step"])
    shots = "8" if "8" in by_k["1"] else list(by_k["1"])[-1]
    return {"step": step, "plain": by_k["0"][shots], "off_by_one": by_k["1"][shots]}


def at_a_step(look: Look, heads: Sequence[str], last: Look) -> Look:
    """What is shown of a look. last: that at the finished model, whose FI heads are followed."""
    r, attention = (list(chain(*look[name])) for name in ("r", "attention"))  # as `heads`
    followed: dict[str, list[Any]] = {"function_induction": [], "others": []}
    for head, shares in zip(heads, attention):
        followed["function_induction" if head in last["fi"] else "others"].append(shares)
    means = {kind: [sum(x) / len(x) for x in zip(*rows)] for kind, rows in followed.items()}
    added = {head: each * look["F_range"] for head, each in zip(heads, r)}
    same = {name: look[name] for name in ("step", "plain", "off_by_one", "answers", "fi")}
    return rounded(same | {"attention": means, "added": added}, 3)


def drawing(name: str, height: int, label: str) -> Markup:
    """A picture that learned.js draws."""
    box = f"0 0 440 {height}"
    return h("svg", id=f"learned-{name}", viewBox=box, role="img", aria_label=label)


def titled(words: Any, *parts: Markup) -> Markup:
    """Parts under a line of words."""
    return h("div", h("p", words, class_="label"), parts)


def answer(prompt: Sequence[str]) -> Markup:
    """Places for the answer to a prompt, and for its rivals."""
    best = h("p", id="learned-answer", class_="big")
    rivals = h("ol", id="learned-answers", class_="top")
    return titled(["Answer to ", h("code", " ".join(prompt[1:]))], best, rivals)


def heads_at_a_step(f: Findings) -> list[Markup]:
    """Places for where heads look, and for what each adds: a cell per head, the last on top."""
    cfg, cells = f.model.cfg, []
    for layer in reversed(range(cfg.n_layers)):
        for head in (f"{layer}.{head}" for head in range(cfg.n_heads)):
            cells.append(h("span", head, " ", h("b"), data_head=head))
    grid = h("div", cells, id="learned-heads", style=f"--columns:{cfg.n_heads}")
    looks = "Where the last = looks, in %. Amber: the heads that are FI in the end; grey: others."
    adds = "What each head adds to the shifted answer, in logits. Outlined: FI at this step."
    picture = drawing("attention", 145, "Attention from the last =")
    return [titled(looks, picture), titled(adds, grid)]


def since(looks: Sequence[Look], held: Sequence[bool]) -> int | None:
    """The first step from which something held up to the end; None where it did not then."""
    first = None
    for look, holds in zip(reversed(looks), reversed(held)):
        if not holds:
            break
        first = int(look["step"])
    return first


def appeared(looks: Sequence[Look], criteria: Mapping[str, float]) -> str:
    """Since when behaviour and FI heads are there, and what that means."""
    solved = since(looks, [look["off_by_one"] >= criteria["solves"] for look in looks])
    behaviour = f"is there from step {solved}" if solved is not None else "is not there in the end"
    heads = []
    for head in looks[-1]["fi"]:
        step = since(looks, [head in look["fi"] for look in looks])
        heads.append(f"{head} from step {step}")
    least, back, seen = (criteria[name] for name in ("solves", "strong", "looks_at_answers"))
    return (
        f"Off-by-one addition {behaviour}; the heads that carry it: {', '.join(heads) or 'none'}. "
        f"“There” means up to the end: at least {percent(least)} of these sums are right; and "
        f"patching a head’s direct path takes the answer at least {percent(back)} of the way back "
        f"to plain (r), while at least {percent(seen)} of its attention is on shown answers."
    )
