"""The checklist of a trained run: `python -m commands.check --run out/default`.

What one must know of a model before relying on it under a new rule. The *old rule* is plain
addition; the *new rule* is addition off by k, which the examples of a prompt show. Every check has
a threshold that was set before anything was measured. A share passes if its whole 95 % interval
(Wilson) is on the good side, fails if all of it is on the bad one, and else could not be told.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tasks
from minifunc.ablation import Ablator, all_heads
from minifunc.analysis.ablations import random_group
from minifunc.model import Transformer
from minifunc.report import page
from minifunc.report.checklist import failure
from minifunc.report.html import percent
from minifunc.support.checks import MOST_SEED, checked_heads
from minifunc.support.errors import UserError, command
from minifunc.support.evaluation import finite, last_logits, wilson
from minifunc.support.files import save_json
from minifunc.support.flags import Parser, check_flag, pick_device
from minifunc.support.runs import add_run_flag, chosen_run, load_circuit, load_run
from minifunc.support.tables import fitted, wrapped
from minifunc.support.vocabulary import token_name

SHOTS = 8
N_PROMPTS = 500  # behind a share, if not said otherwise
N_EACH = 100  # of each task, amount, or draw, where there are several
N_EXAMPLES = 5  # failures that are shown
LEAST = 30  # prompts from which a slice of them counts
AMOUNTS = (-3, -2, -1, 1, 2, 3)
SHIFTED = [name for name, task in tasks.TASKS.items() if task.wrapper == "shift"]
MARKS = {"pass": "pass", "fail": "FAIL", "could not tell": "?"}  # by verdict


@dataclass(frozen=True)
class Finding:
    """What a check found. value: the share held against the threshold; short: in a few words."""

    measured: str
    short: str = ""
    verdict: str = "could not tell"  # one of MARKS
    value: float | None = None
    interval: list[float] | None = None
    threshold: float | None = None
    examples: Sequence[dict[str, str]] = ()


NO_HEADS = Finding("no heads are known to carry the rule: patch.py finds them")
NO_OTHERS = Finding("all heads of these layers carry the rule: there are no others to swap")


def verdict_of(low: float, high: float, threshold: float) -> str:
    """Of a share between low and high that is to be the threshold at least."""
    if low >= threshold:
        return "pass"
    return "fail" if high < threshold else "could not tell"


def share_of(right: Tensor) -> float:
    return right.double().mean().item()


def judged(
    right: Tensor, threshold: float, told: str = "{}", short: str = "", at_least: bool = True
) -> Finding:
    """The share of prompts for which `right` is true, against a threshold. told: what was measured;
    {} stands for the share. at_least: the good side is above the threshold."""
    n = right.numel()
    if n < LEAST:
        return Finding(f"only {n} prompts to judge by")
    share = share_of(right)
    low, high = wilson(share, n)
    good_side = (low, high, threshold) if at_least else (-high, -low, -threshold)
    shown = percent(share, 1)
    in_words = f"{shown} of {n} prompts (95 % interval {percent(low, 1)} to {percent(high, 1)})"
    judgement = (verdict_of(*good_side), round(share, 4), [low, high], threshold)
    return Finding(told.format(in_words), short or shown, *judgement)


class Study:
    """A model, the heads known to carry the new rule, and the prompts that are asked: drawn from
    one generator, in the order of CHECKS."""

    def __init__(self, model: Transformer, diet: Any, heads: list[str], k: int, seed: int) -> None:
        self.model, self.heads, self.k = model, heads, k
        self.mixed = diet.get("mixed", 0) if isinstance(diet, dict) else 0
        self.generator = torch.Generator().manual_seed(MOST_SEED - seed)  # not that of patch.py
        self.pairs = self.draw("addition", k, N_PROMPTS)

    def draw(self, task: str, k: int, n: int, shots: int = SHOTS) -> tasks.Pairs:
        return tasks.evaluation_pairs(task, k, shots, n, self.generator)

    def draw_each(self, asked: Sequence[tuple[str, int]]) -> tasks.Pairs:
        """N_EACH pairs of each task and k in turn, as one."""
        drawn = [self.draw(task, k, N_EACH) for task, k in asked]
        joined: dict[str, Any] = {}
        for part in ("base", "contrast", "base_answers", "contrast_answers"):
            joined[part] = torch.cat([getattr(pairs, part) for pairs in drawn])
        return replace(drawn[0], **joined)

    def ask(self, tokens: Tensor) -> Tensor:
        """The answers given to tokens [n_prompts, pos], [n_prompts] on the CPU."""
        return finite(last_logits(self.model, tokens)).argmax(-1).cpu()

    def ask_swapped(self, groups: Sequence[Sequence[str]]) -> Tensor:
        """Answers [n_groups, n_prompts] under the new rule; the heads send as under the old."""
        ablator = Ablator(self.model, self.pairs.contrast, {"base": self.pairs.base})
        return finite(ablator.logits(groups, "base")).argmax(-1).cpu()

    def followed(self, k: int, n: int, shots: int = SHOTS) -> Tensor:
        """Whether each of n fresh sums is answered off by k, as shown."""
        pairs = self.draw("addition", k, n, shots)
        return self.ask(pairs.contrast) == pairs.contrast_answers

    def answered(self, tokens: Tensor, right: Tensor, threshold: float) -> Finding:
        """The share of prompts answered rightly, against a threshold."""
        given = self.ask(tokens)
        return replace(judged(given == right, threshold), examples=failures(tokens, given, right))

    def one_odd(self, tokens: Tensor, paired: Tensor) -> Tensor:
        """The prompts with the answer of one example, anywhere, taken from the paired ones."""
        which = torch.randint(SHOTS, (len(tokens),), generator=self.generator)
        place = tasks.answer_positions(SHOTS)[which]
        rows, odd = torch.arange(len(tokens)), tokens.clone()
        odd[rows, place] = paired[rows, place]
        return odd


def failures(
    tokens: Tensor, given: Tensor, right: Tensor, facts: Mapping[str, Tensor] | None = None
) -> list[dict[str, str]]:
    """The first prompts answered wrongly, each with the facts [n_prompts] that hold of it."""
    shown = []
    for row in (given != right).nonzero()[:N_EXAMPLES, 0].tolist():
        pattern = "; ".join(name for name, mask in (facts or {}).items() if mask[row])
        answered, wanted = (token_name(tasks.VOCABULARY, ids[row]) for ids in (given, right))
        told = {"answered": answered, "right": wanted, "pattern": pattern}
        shown.append({"prompt": tasks.decode(tokens[row]), **told})
    return shown


Check = Callable[[Study], Finding]
# pass, fail: the answer to the question, by verdict; short: what was measured ({}), in a few words;
# risk: what the model may do wrongly, and advice: what to do, where it does not pass.
TEXTS = ("question", "pass", "fail", "means", "wanted", "short", "risk", "advice")
# Every check, and its texts, which may hold {k}, {shots}, {mixed} and {heads}.
CHECKS: list[tuple[Check, dict[str, str]]] = []


def asks(text: str) -> Callable[[Check], Check]:
    """Puts the function below it into CHECKS. text: its TEXTS, in four lines: advice may have two.
    They are question | pass | fail, means, wanted | short | risk, advice."""
    parts = text.replace("\n", " | ", 3).replace("\n", " ").split(" | ")

    def register(check: Check) -> Check:
        CHECKS.append((check, dict(zip(TEXTS, parts))))
        return check

    return register


# ---------------------------------------------------------------- what it does


@asks("""Shown the old rule, does it still answer by the old rule? | Yes | No
{shots} plain sums are shown and one is asked. Following new rules must not cost the old one.
at least 95 % | right on {} of prompts | forget the old rule
Train longer, or give plain addition a larger share of the diet.""")
def old_rule(study: Study) -> Finding:
    return study.answered(study.pairs.base, study.pairs.base_answers, 0.95)


@asks("""Shown a new rule, sums off by {k:+d}, does it follow it? | Yes | No
{shots} sums off by {k:+d} are shown and another is asked, whose answer is none of those.
at least 90 % | right on {} of prompts | answer by the old rule where a new one is shown
Train longer; make sure the diet shifts other functions. Until then, don't rely on examples.""")
def new_rule(study: Study) -> Finding:
    return study.answered(study.pairs.contrast, study.pairs.contrast_answers, 0.90)


@asks("""How many examples of the new rule does it need? | Few | Many
The fewer, the easier the model is to steer, on purpose or by accident.
at least 90 % with 4 shown | {} | miss a new rule of which it sees few examples
Show more examples than this needs, or train longer.""")
def how_many(study: Study) -> Finding:
    followed = {shots: study.followed(study.k, N_PROMPTS, shots) for shots in (1, 2, 4, 8)}
    enough = [shots for shots, right in followed.items() if share_of(right) >= 0.90]
    shares = {shots: percent(share_of(right), 1) for shots, right in followed.items()}
    told = "; ".join(f"{shots} shown: {share}" for shots, share in shares.items())
    short = f"right from {enough[0]} shown on" if enough else "even 8 are too few"
    return judged(followed[4], 0.90, told, short)


@asks("""Does it follow rules off by other amounts as well? | Yes | No
Off by one may be special. Rules of another size or in the other direction should work too.
at least 80 % for each of −3 to +3 | right on {} | miss rules off by other amounts
Treat amounts that do badly as not supported.""")
def other_amounts(study: Study) -> Finding:
    followed = {k: study.followed(k, 2 * N_EACH) for k in AMOUNTS}
    shares = {k: share_of(right) for k, right in followed.items()}
    worst = min(shares, key=shares.__getitem__)
    told = ", ".join(f"{k:+d}: {percent(share, 1)}" for k, share in shares.items())
    return judged(followed[worst], 0.80, told, f"{percent(shares[worst], 1)} at worst ({worst:+d})")


@asks("""Does one odd example among plain ones fool it? | No | Yes
Of {shots} shown sums one is off by {k:+d}, by a slip of the pen. The right answer is plain.
at least 90 % | keeps the old rule on {} of prompts | be fooled by one odd example
Look through shown examples for slips before they are used; show more of them.""")
def odd_among_old(study: Study) -> Finding:
    odd = study.one_odd(study.pairs.base, study.pairs.contrast)
    return study.answered(odd, study.pairs.base_answers, 0.90)


@asks("""Does one plain example throw it off the new rule? | No | Yes
Of {shots} shown sums all but one are off by {k:+d}. The right answer is still off by {k:+d}.
at least 90 % | keeps the new rule on {} of prompts | be thrown off by one plain example
Keep the shown examples of one mind; show more of them.""")
def odd_among_new(study: Study) -> Finding:
    odd = study.one_odd(study.pairs.contrast, study.pairs.base)
    return study.answered(odd, study.pairs.contrast_answers, 0.90)


@asks("""Does it stay away from the new rule where nobody showed it? | Yes | No
Prompts of every kind of task, all plain. Answers off by {k:+d} are the new rule leaking out.
at most 5 % | the new rule slips in on {} of prompts | use the new rule where nobody showed it
The model is not fit for plain use: train longer, with more plain documents.""")
def not_shown(study: Study) -> Finding:
    pairs = study.draw_each([(task, study.k) for task in SHIFTED])
    off = study.ask(pairs.base) == pairs.contrast_answers
    return judged(off, 0.05, f"off by {study.k:+d} on {{}}", at_least=False)


@asks("""Does a rule shown on sums stay with sums? | Yes | No
Sums off by {k:+d} are shown, then a maximum, say, is asked. Nobody said it has the rule.
at most 10 % | other questions get it on {} of prompts | apply a rule shown on sums elsewhere
Keep a prompt to one kind of question, or train without documents that put several functions
under one rule (up to {mixed} of this run's do: it was taught to spread rules).""")
def spreads(study: Study) -> Finding:
    spread, examples = [], []
    for task in [task for task in tasks.ON_NUMBERS if task != "addition"]:
        pairs = study.draw(task, study.k, N_EACH)
        tokens = torch.cat([study.pairs.contrast[:N_EACH, :-4], pairs.base[:, -4:]], dim=1)
        given = study.ask(tokens)
        off = given == pairs.contrast_answers
        spread.append(off)
        examples += failures(tokens[off], given[off], pairs.base_answers[off])[:1]
    finding = judged(torch.cat(spread), 0.10, f"off by {study.k:+d} on {{}}", at_least=False)
    return replace(finding, examples=examples[:N_EXAMPLES])


@asks("""When it is sure, is it right? | Yes | No
How many of the answers with a probability of 90 % or more, over old and new rules, are right.
at least 95 % | right on {} of sure answers | be wrong where it is sure
Do not use its probabilities to decide when to trust it.""")
def confidence(study: Study) -> Finding:
    pairs = study.draw_each([("addition", k) for k in (-2, -1, 0, 1, 2)])
    probability, given = last_logits(study.model, pairs.contrast).softmax(-1).cpu().max(-1)
    right_where_sure = (given == pairs.contrast_answers)[probability >= 0.9]
    told = f"{percent(share_of(right_where_sure), 1)} of the {len(right_where_sure)} sure answers"
    return judged(right_where_sure, 0.95, f"{told}, of {len(given)} in all")


@asks("""Are failures rare in every kind of sum, or do they share a pattern? | Rare | A pattern
Sums off by −3 to +3, by what is asked. Failures that sit together can be foreseen.
at least 80 % | right on {} of the worst kind | fail on one kind of sum
Keep such questions from the model, or add more of them to the diet.""")
def pattern(study: Study) -> Finding:
    pairs = study.draw_each([("addition", k) for k in AMOUNTS])
    given, right = study.ask(pairs.contrast), pairs.contrast_answers
    wrong, slices = given != right, slices_of(pairs)
    rates = {name: share_of(wrong[mask]) for name, mask in slices.items() if mask.sum() >= LEAST}
    ranked = sorted(rates, key=rates.__getitem__, reverse=True)
    worst = wrong[slices[ranked[0]]]
    told = f"{int(wrong.sum())} of {len(wrong)} fail, share by what is asked: "
    told += "; ".join(f"{name} {percent(rates[name])}" for name in ranked)
    examples = failures(pairs.contrast, given, right, slices)
    return replace(judged(~worst, 0.80, told), examples=examples)


def slices_of(pairs: tasks.Pairs) -> dict[str, Tensor]:
    """Kinds of questions: name → mask [n_prompts]."""
    numbers, places = pairs.contrast - tasks.ZERO, tasks.answer_positions(SHOTS)
    total, wanted = pairs.base_answers - tasks.ZERO, pairs.contrast_answers - tasks.ZERO
    x, y = numbers[:, -4], numbers[:, -2]
    sums = numbers[:, places - 4] + numbers[:, places - 2]  # [n_prompts, shots]
    nearest = (sums - total[:, None]).abs().min(1).values
    return {
        "the sum has one digit": total <= 9,
        "the sum has two digits": total >= 10,
        "an operand is 0": (x == 0) | (y == 0),
        "both operands are the same": x == y,
        "the right answer is below 0 or above 18": (wanted < 0) | (wanted > 18),
        "no shown sum is within 1 of the asked one": nearest > 1,
    }


# ---------------------------------------------------------------- what carries it


@asks("""Which heads carry the new rule? | Heads {heads} | Not {heads} alone
The function-induction heads of patch.py send what they send on plain prompts: is all plain?
at most 5 % | without them {} of prompts still follow it | follow the new rule by other heads
The circuit is incomplete: don't take these heads for the whole story.""")
def carriers(study: Study) -> Finding:
    if not study.heads:
        return NO_HEADS
    given = study.ask_swapped([study.heads])[0]
    plain = percent(share_of(given == study.pairs.base_answers), 1)
    told = f"the new rule is still followed on {{}}; the plain answer returns on {plain}"
    return judged(given == study.pairs.contrast_answers, 0.05, told, at_least=False)


@asks("""Is it these heads, and not any? | Yes | No
As many others of the same layers are swapped in the same way. The new rule must survive.
at least 90 % | it stays on {} of prompts with others swapped | depend on other heads as well
These layers are too entangled for single heads to be watched; watch the whole layer.""")
def others(study: Study) -> Finding:
    n_heads = study.model.cfg.n_heads
    groups = {tuple(random_group(study.heads, n_heads, study.generator)) for _ in range(5)} - {()}
    if not groups:
        return NO_OTHERS if study.heads else NO_HEADS
    right = study.ask_swapped(sorted(groups)) == study.pairs.contrast_answers
    counted = "1 group" if len(groups) == 1 else f"{len(groups)} groups"
    told = f"{counted} of other heads; the worst leaves {{}}"
    return judged(min(right, key=share_of), 0.90, told)


@asks("""Can these heads be switched off for good without harm to the old rule? | Yes | No
On plain prompts of all tasks they send their mean. If they only serve new rules, none fails.
at least 90 % | {} of plain answers stay right | add wrongly once the rule's heads are off
Don't switch them off for good. To undo a rule, give them what they send on plain prompts.""")
def rest_intact(study: Study) -> Finding:
    if not study.heads:
        return NO_HEADS
    right = []
    for task in SHIFTED:
        pairs = study.draw(task, study.k, N_EACH)
        ablator = Ablator(study.model, pairs.base, {}, means={"mean": pairs.base})
        given = finite(ablator.logits([study.heads, []], "mean")).argmax(-1).cpu()
        right.append(given == pairs.base_answers)  # [2, n_prompts]
    without, usual = torch.cat(right, dim=1)
    return judged(without[usual], 0.90, "{} that are answered rightly with the heads in place")


# ---------------------------------------------------------------- the command


def checked(study: Study) -> list[dict[str, Any]]:
    """All checks, done, as check.json holds them."""
    values = {"k": study.k, "shots": SHOTS, "mixed": percent(study.mixed)}
    values["heads"] = ", ".join(study.heads)
    rows = []
    for check, texts in CHECKS:
        found = check(study)
        row = {part: text.format(found.short, **values) for part, text in texts.items()}
        answers = {"pass": row.pop("pass"), "fail": row.pop("fail")}
        told = {"answer": answers.get(found.verdict, "Too close to tell"), "short": row["short"]}
        if found.value is None:
            told = {"answer": "Not known", "short": found.measured}
        rows.append({"name": check.__name__} | row | vars(found) | told)  # the last `short` counts
    return rows


def show(rows: Sequence[dict[str, Any]]) -> str:
    """The list as text: answers and questions, then what to do about those that did not pass."""
    lines, details = [], []
    for row in rows:
        mark = f"{MARKS[row['verdict']]:5}"
        answer = f"{mark} {row['answer']}: {row['short']} (wanted: {row['wanted']})"
        lines += [wrapped(answer, 6), wrapped(f"      {row['question']}", 0)]
        if row["verdict"] == "pass":
            continue
        details += ["", f"{mark} {row['question']}", f"      {row['means']}"]
        details += [f"      measured: {row['measured']}", f"      what to do: {row['advice']}"]
        details += [f"        {each['prompt']}  {failure(each)}" for each in row["examples"]]
    verdicts = [row["verdict"] for row in rows]
    passed, failed, unknown = map(verdicts.count, MARKS)
    total = f"{passed} passed, {failed} failed, {unknown} could not be told"
    return "\n".join([*lines, fitted([*details, "", total])])


def carrying_heads(path: Path, model: Transformer) -> list[str]:
    """The FI heads of a circuit.json; none where there is none, or of another task."""
    circuit = load_circuit(path, model) or {}
    if circuit.get("task") != "addition":
        return []
    try:
        heads = list(circuit["groups"]["function_induction"])
        checked_heads(heads, all_heads(model.cfg))
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path} names no heads of this model; patch.py makes it anew") from None
    return heads


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs all checks, prints them, writes check.json; returns 1 if one fails."""
    parser = Parser("python -m commands.check", __doc__)
    add_run_flag(parser)
    add = parser.add_argument
    add("--device", default="auto", help="auto, cpu, cuda (default: %(default)s)")
    add("--k", type=int, default=1, help="the new rule (default: %(default)s)")
    add("--seed", type=int, default=0, help="which prompts are drawn (default: %(default)s)")
    arguments = parser.parse_args(argv)
    device, folders = pick_device(arguments.device, float64=True), chosen_run(arguments)
    model, config = load_run(folders.run, device, tasks.VOCABULARY)
    k, seed, n_tokens, n_ctx = arguments.k, arguments.seed, tasks.n_tokens(SHOTS), model.cfg.n_ctx
    if k == 0 or k not in tasks.SHIFTS:
        allowed = f"it may be from {tasks.SHIFTS[0]} to {tasks.SHIFTS[-1]}, but not 0"
        raise UserError(f"--k {k} is no new rule: {allowed}")
    check_flag(arguments, "seed", 0, MOST_SEED)
    if n_tokens > n_ctx:
        raise UserError(f"checks use prompts of {n_tokens} tokens; the context holds {n_ctx}")
    heads = carrying_heads(folders.found("circuit.json"), model)
    path, started = folders.to_write("check.json"), time.perf_counter()
    folders.announce()
    rows = checked(Study(model, config.get("diet"), heads, k, seed))
    seconds = round(time.perf_counter() - started, 2)
    save_json(path, {"k": k, "shots": SHOTS, "seed": seed, "seconds": seconds, "checks": rows})
    print(show(rows), f"everything is in {path}", sep="\n")
    if failed := [row["verdict"] for row in rows].count("fail"):
        counted = "1 check" if failed == 1 else f"{failed} checks"
        print(f"exit code 1: {counted} failed, listed above")
    if (folders.results / "report.html").exists():
        print("made anew, with these answers: ", end="")
        page.write(replace(folders, notice=""))
    else:
        print(f"next: {folders.makes('report')}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
