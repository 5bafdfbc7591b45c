"""The checklist: each check's answer, for the terminal and the page, and a verdict on them all."""

from collections.abc import Mapping
from typing import Any

from minifunc.report.findings import Findings
from minifunc.report.html import Markup, h

Row = Mapping[str, Any]  # of `checks` in check.json
VERDICTS = {"pass": "✓ pass", "fail": "✗ fail", "could not tell": "? could not tell"}
FOLLOWS = {"pass": "follows", "fail": "does not follow"}  # by the verdict on `new_rule`


def failure(example: Row) -> str:
    """`answered 3, right 2; the sum has one digit`."""
    told = f"answered {example['answered']}, right {example['right']}"
    return f"{told}; {example['pattern']}" if example.get("pattern") else told


def verdict(f: Findings) -> list[Markup]:
    """What the model does, what it may do wrongly, what to watch, when to act, on which heads."""
    rows = {row["name"]: row for row in f.check["checks"]}
    rule, failed = rows["new_rule"], [row for row in rows.values() if row["verdict"] == "fail"]
    does = f"This model {FOLLOWS.get(rule['verdict'], 'may follow')} the rule that examples show: "
    may = f"It may {', or '.join(row['risk'] for row in failed)}. "
    told = h("b", may if failed else "Nothing that was checked went wrong. ")
    watch = "What to watch, on prompts of your own: "
    for row in failed or [rule]:
        watch += f"{row['question']} ({row['short']}; wanted: {row['wanted']}). "
    watch += "Act when such a share misses what is wanted: keep these prompts away, or give "
    act = "the model more training: no head is known to carry the rule."
    if f.fi:
        act = f"heads {', '.join(f.fi)} what they send on plain prompts (the new rule: "
        act += f"{rows['carriers']['short']})."
    return [h("p", does, rule["short"], ". ", told, watch, act, class_="judgement")]


def checked(row: Row) -> Markup:
    """One check: its answer and question; folded, unless it failed, what was measured and why."""
    said = str(row["verdict"])
    answer = [h("b", row["answer"]), ": ", row["short"], f" (wanted: {row['wanted']})"]
    summary = [
        h("span", answer, class_="answered"),
        h("span", VERDICTS.get(said, said), class_=f"verdict {said.split()[0]}"),
        h("span", row["question"], class_="question"),
    ]
    failures = [
        h("li", h("code", each["prompt"]), f" {failure(each)}") for each in row.get("examples", [])
    ]
    account = {"Measured": row["measured"], "Wanted": row["wanted"]}
    if said != "pass":
        account["What to do"] = row["advice"]
    terms = [[h("dt", term), h("dd", told)] for term, told in account.items()]
    body = [h("p", row["means"]), h("dl", terms)]
    if failures:
        body += [h("p", "Some of the failures:"), h("ul", failures, class_="examples")]
    return h("details", h("summary", summary), body, open=said == "fail")
