"""While it learned: what learned.js shows at each step of training, and what is there from when."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from minifunc.ablation import all_heads
from minifunc.report.findings import Findings
from minifunc.report.html import Markup, h, percent, script_data
from minifunc.support.names import parse
from minifunc.support.tables import rounded

Look = Mapping[str, Any]  # what is known of one step


def learned(f: Findings) -> list[Markup]:
    """The slider, places and data: the looks of commands/reference.py, or else the accuracy."""
    heads, prompt, looks = all_heads(f.model.cfg), "", list(map(accuracies, f.metrics))
    n_prompts = f.learning.get("n_prompts", "few")
    parts = [pictured("curves", 200, f"Share right, of only {n_prompts} sums")]
    below = "Of this run the accuracy alone was kept; make reference keeps answers and heads too."
    if f.learning:
        prompt = f.learning["prompt"].replace("<bos>", "bos")
        looks = [at_a_step(look, f.learning["looks"][-1], heads) for look in f.learning["looks"]]
        below = appeared(looks, f.learning["criteria"])
        asked = h("p", "Answer to ", h("code", prompt.replace("bos ", "")), class_="label")
        best = h("p", id="learned-answer", class_="big")
        answer = h("div", asked, best, h("ol", id="learned-answers", class_="top"))
        parts = [answer, *parts, *of_heads(heads, f.model.cfg.n_heads)]
    last, now = len(looks) - 1, h("output", id="learned-now")
    look = {"min": "0", "max": last, "value": last, "aria_label": "training step"}
    slider = h("input", type="range", id="learned-step", **look)
    step, shown = h("label", "Training step ", now, slider), h("div", parts, class_="learned")
    data = script_data("learning-data", {"looks": looks, "prompt": prompt.split()})
    return [h("div", step, shown, h("p", below), id="learned-view"), data]


def accuracies(line: Look) -> Look:
    """What a line of metrics.jsonl says of addition, at 8 shots or at the most there are."""
    by_k, step = line["accuracy"]["addition"], int(line["step"])
    shots = "8" if "8" in by_k["1"] else list(by_k["1"])[-1]
    return {"step": step, "plain": by_k["0"][shots], "off_by_one": by_k["1"][shots]}


def at_a_step(look: Look, last: Look, heads: Sequence[str]) -> Look:
    """A look, with the mean attention of heads that are FI in the `last` look, and of others."""
    means = {}
    for kind, is_fi in (("function_induction", True), ("others", False)):
        by_head = zip(heads, chain(*look["attention"]))
        among = [shares for head, shares in by_head if (head in last["fi"]) == is_fi]
        means[kind] = [sum(shares) / len(among) for shares in zip(*among)]
    added = {head: r * look["F_range"] for head, r in zip(heads, chain(*look["r"]))}
    return rounded({**look, "attention": means, "added": added}, 3)


def pictured(name: str, height: int, said: str) -> Markup:
    """A place for a picture that learned.js draws, under what is said of it."""
    look = {"viewBox": f"0 0 440 {height}", "role": "img", "aria_label": said}
    return h("div", h("p", said, class_="label"), h("svg", id=f"learned-{name}", **look))


def of_heads(heads: Sequence[str], columns: int) -> list[Markup]:
    """Places for where heads look, and for what each adds: a cell per head, the last on top."""
    looks = "Where the last = looks, in %. Amber: the heads that are FI in the end; grey: others."
    adds = "Logits by which a head’s direct path moves F. Outlined: an FI head at this step."
    downwards = sorted(heads, key=lambda head: -parse(head)[0])
    cells = [h("span", head, h("b"), data_head=head) for head in downwards]
    grid = h("div", cells, id="learned-heads", style=f"--columns:{columns}")
    return [pictured("attention", 145, looks), h("div", h("p", adds, class_="label"), grid)]


def since(looks: Sequence[Look], held: Sequence[bool]) -> int | None:
    """The first step from which something held up to the end; None where it did not then."""
    missed = [at for at, holds in enumerate(held) if not holds]
    lasting = looks[missed[-1] + 1 :] if missed else looks
    return int(lasting[0]["step"]) if lasting else None


def behaving(looks: Sequence[Look], criteria: Mapping[str, float]) -> list[bool]:
    """Whether enough off-by-one sums are right, at each look."""
    return [look["off_by_one"] >= criteria["solves"] for look in looks]


def appeared(looks: Sequence[Look], criteria: Mapping[str, float]) -> str:
    """Since when behaviour and FI heads are there, and what that means."""
    right = behaving(looks, criteria)
    solved = since(looks, right)
    behaviour = "is not there in the end" if solved is None else f"is there from step {solved:,}"
    told = []
    for head in looks[-1]["fi"]:
        step = since(looks, [so_far and head in look["fi"] for so_far, look in zip(right, looks)])
        told.append(f"{head} from step {step:,}" if step is not None else f"{head} never for good")
    least, back, seen = (criteria[name] for name in ("solves", "strong", "looks_at_answers"))
    return (
        f"Off-by-one addition {behaviour}; heads that carry it: {', '.join(told) or 'none'}. "
        f"“There” means up to the end: at least {percent(least)} of these sums are right; and, for "
        f"a head, patching its direct path takes the answer at least {percent(back)} of the way "
        f"back to plain (r), while at least {percent(seen)} of its attention is on shown answers."
    )
