"""The checklist: each check's answer, for the terminal and the page, and a verdict on them all."""

from collections.abc import Mapping, Sequence
from typing import Any

from minifunc.report.html import Markup, h

Row = Mapping[str, Any]  # of `checks` in check.json
VERDICTS = {"pass": "✓ pass", "fail": "✗ fail", "could not tell": "? could not tell"}
FOLLOWS = {"pass": "follows", "fail": "does not follow"}  # by the verdict on `new_rule`


def failure(example: Row) -> str:
    """`answered 3, right 2; the sum has one digit`."""
    told = f"answered {example['answered']}, right {example['right']}"
    return f"{told}; {example['pattern']}" if example.get("pattern") else told


def shown(rows: Sequence[Row], fi: Sequence[str]) -> list[Markup]:
    """The verdict, and every check. fi: the heads to watch."""
    told = [verdict(rows, fi)] if all("answer" in row for row in rows) else []
    passed_last = sorted(rows, key=lambda row: bool(row["verdict"] == "pass"))
    return [*told, h("div", [checked(row) for row in passed_last], class_="checks")]


def verdict(rows: Sequence[Row], fi: Sequence[str]) -> Markup:
    """What the model does, what it may do wrongly, and which heads to watch."""
    rule = {row["name"]: row for row in rows}["new_rule"]
    does = f"This model {FOLLOWS.get(rule['verdict'], 'may follow')} the rule that examples show: "
    risks = [row["risk"] for row in rows if row["verdict"] == "fail"]
    may = f"It may {', or '.join(risks)}. " if risks else "Nothing that was checked went wrong. "
    watch = f"Heads to watch: {', '.join(fi) or 'none is known to carry the rule'}."
    return h("p", does, rule["short"], ". ", h("b", may), watch, class_="judgement")


def checked(row: Row) -> Markup:
    """One check: its answer and question, and folded below, unless it failed, what was measured
    and is advised. A check.json of an older version holds no answer, but a share."""
    said = str(row["verdict"])
    answer = [row["short"], f" (wanted: {row['wanted']})"]
    if "answer" in row:
        answer = [h("b", row["answer"]), ": ", *answer]
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
