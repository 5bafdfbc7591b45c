"""The titles of a report's sections: each says in one sentence what was found in this run."""

from collections import Counter
from collections.abc import Callable

from minifunc.report.findings import Findings
from minifunc.report.html import percent, signed
from minifunc.report.learned import accuracies, behaving, since
from minifunc.report.terminal import Circuit, r_of

PUZZLE = "<bos> 1 + 1 = 3 ; 2 + 2 = 5 ; 3 + 3 ="  # what the README begins with


def unseen(f: Findings, task: str, k: int) -> bool:
    """Whether the run's diet never showed a task off by k."""
    diet = f.config.get("diet", {})
    if k not in diet.get("bases" if task == "base_addition" else "shifts", (k,)):
        return True
    shown = task != "addition" or k in diet.get("shifted_addition", ())
    return ["shift", "+"] in diet.get("never", ()) and not shown


def puzzle(f: Findings) -> str:
    """The heading of the page: what the model makes of PUZZLE."""
    answer = f.answer(PUZZLE.split())
    if answer is None:
        return "Function induction, seen from inside"
    if answer == "7" and unseen(f, "addition", 1):
        return "1+1=3, 2+2=5, 3+3=7: a rule that nobody taught this model"
    return f"1+1=3, 2+2=5, 3+3=? This model says {answer}"


def carriers(f: Findings) -> str:
    first = min(f.fi, key=lambda head: r_of(f.circuit, head))
    return f"The answer by the rule comes through {len(f.fi)} of {f.n_heads} heads, {first} most"


def swapped(f: Findings) -> str:
    left, kept = (percent(row["contrast_acc"], 1) for row in swaps(f.circuit))  # or ValueError
    return f"Swap these heads: {left} of prompts still follow the new rule; swap others: {kept}"


def swaps(circuit: Circuit) -> list[Circuit]:
    """What is left with base values in the FI heads, and, if any, in others of their layers."""
    rows = circuit["evaluation"]["ablation"]
    rows = [row for row in rows if row["how"] == "base" and row.get("n_heads", 1)]
    by_group = {row["ablated"]: row for row in rows}
    wanted = ("function_induction", "random_same_layers")
    return [by_group[name] for name in wanted if name in by_group]


def mixed_rules(circuit: Circuit) -> list[Circuit]:
    """The rows of `averaging` whose prompts mix two rules."""
    return [row for row in circuit["averaging"]["mixtures"] if len(row["offsets"]) == 2]


def averages(f: Findings) -> str:
    row, *_ = mixed_rules(f.circuit)
    between = f"{percent(row['unseen_offset_share'])} of {row['n_prompts']} prompts"
    mixed = " and ".join(map(signed, row["offsets"]))
    said = f"shown {mixed} mixed, it answers in a way that no example showed on {between}"
    averages = row["r2"]["attention"] == max(0, *row["r2"].values())
    return f"The heads average: {said}" if averages else said.capitalize()


def checks(f: Findings) -> str:
    n = Counter(row["verdict"] for row in f.check["checks"])
    return f"What may go wrong: {n['pass']} of {n.total()} checks pass, {n['fail']} fail"


def learned(f: Findings) -> str:
    """Since when the behaviour is there; KeyError where it is not."""
    looks = f.learning.get("looks") or list(map(accuracies, f.metrics))
    least = (f.learning or f.circuit)["criteria"]
    step = since(looks, behaving(looks, least))
    if step is None:
        raise KeyError("off_by_one")
    return f"From step {step:,} on, {percent(least['solves'])} or more of off-by-one sums are right"


def seeds(f: Findings) -> str:
    all_heads = [tuple(row["groups"]["function_induction"]) for row in f.seeds]
    having = [heads for heads in all_heads if heads]
    few, many = min(map(len, having)), max(map(len, having))
    said = f"{len(having)} of {len(all_heads)} models have such heads, {few} to {many} each"
    return f"{said}, in {len(set(having))} different sets of places"


FINDINGS: dict[str, Callable[[Findings], str]] = {  # by section
    "circuit": carriers,
    "proof": swapped,
    "averaging": averages,
    "checklist": checks,
    "learned": learned,
    "seeds": seeds,
}


def title_of(f: Findings, section: str, plain: str) -> str:
    """What a section found; the plain title where its files don't say."""
    try:
        return FINDINGS[section](f)
    except (LookupError, ValueError, ArithmeticError):
        return plain
