"""The checklist of a trained run: `python -m commands.check --run out/default`.

What one must know of a model before relying on it under a new rule. The *old rule* is plain
addition; the *new rule* is addition off by k, which the examples of a prompt show. Every check has
a threshold that was set before anything was measured. A share passes if its whole 95 % interval
(Wilson) is on the good side, fails if the whole of it is on the bad one, and otherwise could not be
told: then more prompts are needed.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tasks
from minifunc.ablation import Ablator, all_heads, random_group
from minifunc.model import Transformer
from minifunc.support.errors import UserError, run_main
from minifunc.support.evaluation import last_logits, wilson
from minifunc.support.files import load_json, save_json
from minifunc.support.flags import Parser, pick_device
from minifunc.support.runs import add_run_flag, chosen_run, load_circuit, load_run

SHOTS = 8
N_PROMPTS = 500  # behind a share, if not said otherwise
N_EACH = 100  # of each task, amount, or draw, where there are several
N_EXAMPLES = 5  # failures that are shown
LEAST = 30  # prompts from which a slice of them counts
AMOUNTS = (-3, -2, -1, 1, 2, 3)
SHIFTED = [task for task in tasks.TASKS if tasks.TASKS[task].wrapper == "shift"]
DEPENDABILITY = Path("results/dependability.json")
NAMES = tasks.VOCABULARY
MARKS = {"pass": "pass", "fail": "FAIL", "could not tell": "?"}


@dataclass(frozen=True)
class Check:
    """What a check asks, and what to do if the answer is no."""

    name: str
    question: str
    means: str
    wanted: str
    advice: str


@dataclass(frozen=True)
class Result(Check):
    """A check, done. value is the share that was held against the threshold; measured tells it."""

    verdict: str  # one of MARKS
    measured: str
    short: str
    value: float | None = None
    interval: list[float] | None = None
    threshold: float | None = None
    examples: list[dict[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Share:
    """`hits` of n, against a threshold; at_least: the good side is above it."""

    hits: int
    n: int
    threshold: float
    at_least: bool = True

    @property
    def verdict(self) -> str:
        low, high = wilson(self.hits / self.n, self.n)
        good, bad = low >= self.threshold, high < self.threshold
        if not self.at_least:
            good, bad = high <= self.threshold, low > self.threshold
        return verdict_of(good, bad)

    def __str__(self) -> str:
        low, high = wilson(self.hits / self.n, self.n)
        value = round(self.hits / self.n, 4)
        return f"{value:.1%} of {self.n} prompts (95 % interval {low:.1%} to {high:.1%})"

    def result(self, check: Check, measured: str = "", short: str = "") -> Result:
        """The check's result; measured and short, where it is not just this share that is told."""
        return Result(
            **vars(check),
            verdict=self.verdict,
            measured=measured or str(self),
            short=short or f"{self.hits / self.n:.1%}",
            value=round(self.hits / self.n, 4),
            interval=wilson(self.hits / self.n, self.n),
            threshold=self.threshold,
        )


def verdict_of(good: bool, bad: bool) -> str:
    return "pass" if good else "fail" if bad else "could not tell"


def untold(check: Check, measured: str, short: str) -> Result:
    return Result(**vars(check), verdict="could not tell", measured=measured, short=short)


class Checklist:
    """The checks of one model. Each method but the private ones is one; `results` runs them all.

    fi: the heads that carry the new rule, if they are known. Prompts are drawn from one generator,
    so their order is part of what is measured.
    """

    def __init__(self, model: Transformer, diet: Any, fi: Sequence[str], k: int, seed: int) -> None:
        self.model, self.diet, self.fi, self.k = model, diet, fi, k
        self.generator = torch.Generator().manual_seed(seed + 2**40)  # not the prompts of patch.py
        self.pairs = self._pairs("addition", k, N_PROMPTS)

    def results(self) -> list[Result]:
        does = [self.old_rule(), self.new_rule(), self.how_many(), self.other_amounts()]
        does += [self.odd_among_old(), self.odd_among_new(), self.not_shown(), self.spreads()]
        does += [self.confidence(), self.pattern()]
        carries = [self.carriers(), self.others(), self.rest_intact()]
        return [*does, *carries, self.over_prompts(), self.over_seeds()]

    def _pairs(self, task: str, k: int, n: int, shots: int = SHOTS) -> tasks.Pairs:
        return tasks.evaluation_pairs(task, k, shots, n, self.generator)

    def _given(self, tokens: Tensor) -> Tensor:
        """The answers given to tokens [n_prompts, pos], [n_prompts] on the CPU."""
        return last_logits(self.model, tokens).argmax(-1).cpu()

    def _followed(self, k: int, n: int, shots: int = SHOTS) -> int:
        """On how many of n fresh prompts sums are answered off by k, as shown."""
        pairs = self._pairs("addition", k, n, shots)
        return int((self._given(pairs.contrast) == pairs.contrast_answers).sum())

    def _answered(self, check: Check, tokens: Tensor, right: Tensor, threshold: float) -> Result:
        """The share of prompts answered rightly, against a threshold."""
        given = self._given(tokens)
        share = Share(int((given == right).sum()), len(given), threshold)
        return replace(share.result(check), examples=failures(tokens, given, right))

    # ---------------------------------------------------------------- what it does

    def old_rule(self) -> Result:
        check = Check(
            "old_rule",
            "Shown the old rule, does it still answer by the old rule?",
            f"{SHOTS} plain sums are shown and one is asked. A model that can follow new rules must"
            " not lose the one that it had.",
            "at least 95%",
            "Train longer, or give plain addition a larger share of the diet.",
        )
        return self._answered(check, self.pairs.base, self.pairs.base_answers, 0.95)

    def new_rule(self) -> Result:
        check = Check(
            "new_rule",
            f"Shown a new rule, sums off by {self.k:+d}, does it follow it?",
            f"{SHOTS} sums off by {self.k:+d} are shown and another one is asked, whose answer is"
            " none of those shown.",
            "at least 90%",
            "Train longer; make sure the diet shifts other functions. Until then, don't rely on"
            " examples to change what it does.",
        )
        return self._answered(check, self.pairs.contrast, self.pairs.contrast_answers, 0.90)

    def how_many(self) -> Result:
        check = Check(
            "how_many",
            "How many examples of the new rule does it need?",
            "The fewer, the easier the model is to steer, on purpose or by accident.",
            "at least 90% right from 4 examples",
            "Show more examples than this needs, or train longer.",
        )
        hits = {shots: self._followed(self.k, N_PROMPTS, shots) for shots in (1, 2, 4, 8)}
        enough = [shots for shots in hits if hits[shots] / N_PROMPTS >= 0.90]
        told = "; ".join(f"{shots} shown: {hits[shots] / N_PROMPTS:.1%}" for shots in hits)
        short = f"from {enough[0]}" if enough else "more than 8"
        return Share(hits[4], N_PROMPTS, 0.90).result(check, told, short)

    def other_amounts(self) -> Result:
        check = Check(
            "other_amounts",
            "Does it follow rules off by other amounts as well?",
            "Off by one may be special. A rule of another size, or in the other direction, should"
            " work too.",
            "at least 80% for each of −3 to +3",
            "Treat amounts that do badly as not supported.",
        )
        n = 2 * N_EACH
        hits = {k: self._followed(k, n) for k in AMOUNTS}
        worst = min(hits, key=hits.__getitem__)
        told = ", ".join(f"{k:+d}: {hits[k] / n:.1%}" for k in hits)
        short = f"worst {hits[worst] / n:.1%} ({worst:+d})"
        return Share(hits[worst], n, 0.80).result(check, told, short)

    def _one_odd(self, tokens: Tensor, others: Tensor) -> Tensor:
        """The prompts with one example, anywhere, taken from the paired others."""
        which = torch.randint(SHOTS, (len(tokens),), generator=self.generator)
        place = tasks.answer_positions(SHOTS)[which]
        rows, odd = torch.arange(len(tokens)), tokens.clone()
        odd[rows, place] = others[rows, place]
        return odd

    def odd_among_old(self) -> Result:
        check = Check(
            "odd_among_old",
            "Does one odd example among plain ones fool it?",
            f"Of {SHOTS} shown sums one is off by {self.k:+d}, as by a slip of the pen. The right"
            " answer is the plain one.",
            "at least 90%",
            "Look through shown examples for slips before they are used; show more of them.",
        )
        odd = self._one_odd(self.pairs.base, self.pairs.contrast)
        return self._answered(check, odd, self.pairs.base_answers, 0.90)

    def odd_among_new(self) -> Result:
        check = Check(
            "odd_among_new",
            "Does one plain example throw it off the new rule?",
            f"Of {SHOTS} shown sums all but one are off by {self.k:+d}. The right answer is still"
            f" off by {self.k:+d}.",
            "at least 90%",
            "Keep the shown examples of one mind; show more of them.",
        )
        odd = self._one_odd(self.pairs.contrast, self.pairs.base)
        return self._answered(check, odd, self.pairs.contrast_answers, 0.90)

    def not_shown(self) -> Result:
        check = Check(
            "not_shown",
            "Does it stay away from the new rule where nobody showed it?",
            "Prompts of every kind of task, all plain. Answers that are off all the same would be"
            " the new rule leaking out.",
            "at most 5%",
            "The model is not fit for plain use: train longer, with more plain documents.",
        )
        hits = 0
        for task in SHIFTED:
            pairs = self._pairs(task, self.k, N_EACH)
            hits += int((self._given(pairs.base) == pairs.contrast_answers).sum())
        share = Share(hits, len(SHIFTED) * N_EACH, 0.05, at_least=False)
        return share.result(check, f"off by {self.k:+d} on {share}")

    def spreads(self) -> Result:
        mixed = self.diet.get("mixed", 0) if isinstance(self.diet, dict) else 0
        check = Check(
            "spreads",
            "Does a rule shown on sums stay with sums?",
            f"Sums off by {self.k:+d} are shown, and then something else is asked (a maximum, a"
            " difference …). Nobody said that the rule holds for that.",
            "at most 10% answered by the new rule",
            "Keep a prompt to one kind of question, or train without documents that put several"
            f" functions under one rule ({mixed:.0%} of this run's diet do, so it was taught to"
            " spread rules).",
        )
        hits, n, examples = 0, 0, []
        for task in tasks.ON_NUMBERS:
            if task == "addition":
                continue
            pairs, shown = self._pairs(task, self.k, N_EACH), self.pairs.contrast[:N_EACH]
            rows = len(shown)
            prompts = torch.cat([shown[:, :-4], pairs.base[:rows, -4:]], dim=1)
            given, plain = self._given(prompts), pairs.base_answers[:rows]
            off = given == pairs.contrast_answers[:rows]
            hits, n = hits + int(off.sum()), n + rows
            examples += failures(prompts[off], given[off], plain[off])[:1]
        share = Share(hits, n, 0.10, at_least=False)
        result = share.result(check, f"off by {self.k:+d} on {share}")
        return replace(result, examples=examples[:N_EXAMPLES])

    def confidence(self) -> Result:
        check = Check(
            "confidence",
            "When it is sure, is it right?",
            "Of the answers that it gives a probability of 90% or more, over old and new rules, how"
            " many are right.",
            "at least 95%",
            "Do not use its probabilities to decide when to trust it.",
        )
        n_sure, hits = 0, 0
        for k in (-2, -1, 0, 1, 2):
            pairs = self._pairs("addition", k, N_EACH)
            best = last_logits(self.model, pairs.contrast).softmax(-1).cpu().max(-1)
            sure = best.values >= 0.9
            n_sure += int(sure.sum())
            hits += int((sure & (best.indices == pairs.contrast_answers)).sum())
        n = 5 * N_EACH
        if n_sure < LEAST:
            return untold(check, f"only {n_sure} of {n} answers are that sure", "seldom sure")
        told = f"{hits / n_sure:.1%} of the {n_sure} sure answers, of {n} in all"
        return Share(hits, n_sure, 0.95).result(check, told)

    def pattern(self) -> Result:
        """Failures under new rules of all sizes, by what is asked and what was answered instead."""
        check = Check(
            "pattern",
            "Are failures rare in every kind of sum, or do they share a pattern?",
            "Sums off by −3 to +3, sorted by what is asked. Failures that sit together can be"
            " foreseen and kept out.",
            "at least 80% right in the worst slice",
            "Keep such questions from the model, or add more of them to the diet.",
        )
        all_pairs = [self._pairs("addition", k, N_EACH) for k in AMOUNTS]
        tokens = torch.cat([pairs.contrast for pairs in all_pairs])
        right = torch.cat([pairs.contrast_answers for pairs in all_pairs])
        plain = torch.cat([pairs.base_answers for pairs in all_pairs])
        given = self._given(tokens)
        wrong, kinds = given != right, instead(tokens, given, right, plain)
        slices = slices_of(tokens, right, plain)
        size = {name: int(mask.sum()) for name, mask in slices.items() if mask.sum() >= LEAST}
        failed = {name: int((wrong & slices[name]).sum()) for name in size}
        ranked = sorted(size, key=lambda name: failed[name] / size[name], reverse=True)
        worst = ranked[0]
        counted = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds) if kind)
        told = f"{int(wrong.sum())} of {len(tokens)} fail{': ' if counted else ''}{counted}. Worst"
        told += f" where {worst}: {failed[worst]} of {size[worst]} fail. "
        told += "; ".join(f"{name} {failed[name] / size[name]:.0%}" for name in ranked)
        patterns = []
        for row, kind in enumerate(kinds):
            where = "; ".join(name for name in slices if slices[name][row])
            patterns.append(f"{where}; answered {kind}")
        share = Share(size[worst] - failed[worst], size[worst], 0.80)
        result = share.result(check, told, f"worst slice {share.hits / share.n:.1%}")
        return replace(result, examples=failures(tokens, given, right, patterns))

    # ---------------------------------------------------------------- what carries it

    def _swapped(self, groups: Sequence[Sequence[str]]) -> Tensor:
        """Answers [n_groups, n_prompts] to the prompts of the new rule.

        The heads of a group send what they send on the paired prompts of the old rule.
        """
        ablator = Ablator(self.model, self.pairs.contrast, {"base": self.pairs.base})
        return ablator.logits(groups, "base").argmax(-1).cpu()

    def _unknown(self, check: Check) -> Result:
        if not self.fi:
            check = replace(check, advice="Trace the circuit first: patch.py.")
        return untold(check, "no heads are known to carry the rule", "not known")

    def carriers(self) -> Result:
        check = Check(
            "carriers",
            "Which heads carry the new rule, and is it gone without them?",
            "The function-induction heads that patch.py found send, on prompts of the new rule,"
            " what they send on plain ones. If they carry the rule, the answers must be plain"
            " again.",
            "at most 5% still by the new rule",
            "The circuit is incomplete: don't take these heads for the whole story.",
        )
        if not self.fi:
            return self._unknown(check)
        given = self._swapped([self.fi])[0]
        hits = int((given == self.pairs.contrast_answers).sum())
        share = Share(hits, len(given), 0.05, at_least=False)
        plain = (given == self.pairs.base_answers).float().mean().item()
        told = f"heads {', '.join(self.fi)}: the new rule is left on {share}"
        return share.result(check, f"{told}; the plain answer returns on {plain:.1%}")

    def others(self) -> Result:
        check = Check(
            "others",
            "Is it these heads, and not any?",
            "As many other heads of the same layers (all of them, where they are fewer) are swapped"
            " in the same way. The new rule must survive.",
            "at least 90% still by the new rule",
            "These layers are too entangled for single heads to be watched; watch the whole layer.",
        )
        groups = set()
        for _ in range(5 if self.fi else 0):
            groups.add(tuple(random_group(self.fi, self.model.cfg.n_heads, self.generator)))
        groups.discard(())
        if not groups:
            return self._unknown(check)
        right = self._swapped(sorted(groups)) == self.pairs.contrast_answers
        share = Share(int(right.sum(1).min()), right.shape[1], 0.90)
        told = f"{len(groups)} group{'s' * (len(groups) > 1)} of other heads"
        return share.result(check, f"{told}; the worst leaves {share}")

    def rest_intact(self) -> Result:
        check = Check(
            "rest_intact",
            "Can these heads be switched off for good without harm to the old rule?",
            "On plain prompts of all tasks the heads send their mean, which says nothing of the"
            " prompt at hand. If they only served new rules, nothing would change.",
            "at least 90% of plain answers stay right",
            "Don't switch the heads off for good. To undo a new rule, give them what they send on"
            " the plain prompt of the same question, as in the check above.",
        )
        if not self.fi:
            return self._unknown(check)
        kept, before, n = 0, 0, len(SHIFTED) * N_EACH
        for task in SHIFTED:
            pairs = self._pairs(task, self.k, N_EACH)
            ablator = Ablator(self.model, pairs.base, {}, means={"mean": pairs.base})
            right = ablator.logits([self.fi, []], "mean").argmax(-1).cpu() == pairs.base_answers
            without, usual = right
            kept, before = kept + int((usual & without).sum()), before + int(usual.sum())
        if before < LEAST:
            told = f"only {before} of {n} plain prompts are answered rightly to begin with"
            return untold(check, told, "too few")
        share = Share(kept, before, 0.90)
        told = f"{share} that are answered rightly with the heads in place"
        return share.result(check, told)

    # ---------------------------------------------------------------- how stable it is

    def over_prompts(self) -> Result:
        n = 2 * N_EACH
        check = Check(
            "over_prompts",
            "Is the finding the same on other prompts?",
            f"The new rule on five fresh draws of {n} prompts.",
            "at least 90% on each",
            "Quote the lowest figure, not the mean.",
        )
        shares = [self._followed(self.k, n) / n for _ in range(5)]
        lowest = min(shares)
        verdict = verdict_of(lowest >= 0.90, max(shares) < 0.90)
        told = ", ".join(f"{share:.1%}" for share in shares)
        result = Result(**vars(check), verdict=verdict, measured=told, short=f"lowest {lowest:.1%}")
        return replace(result, value=round(lowest, 4), threshold=0.90)

    def over_seeds(self) -> Result:
        check = Check(
            "over_seeds",
            "Is the finding the same for models trained from other seeds?",
            "The default diet, trained from several seeds: off-by-one accuracy of each. A single"
            " run may be luck.",
            "at least 90% in nine seeds of ten, five seeds or more",
            "Train several seeds (make dependability) and pick by this list, not by loss.",
        )
        if not DEPENDABILITY.exists():
            told = f"{DEPENDABILITY} is not there yet: make dependability writes it"
            return untold(check, told, "not known")
        try:
            shares = [float(row.get("off_by_one_8") or 0) for row in load_json(DEPENDABILITY)]
        except (TypeError, ValueError, AttributeError):
            raise UserError(f"{DEPENDABILITY} holds rows of another kind") from None
        if len(shares) < 5:
            return untold(check, f"only {len(shares)} seeds in {DEPENDABILITY}", "not known")
        good = sum(share >= 0.90 for share in shares)
        verdict = "pass" if good >= 0.9 * len(shares) else "fail"
        short = f"{good} of {len(shares)} seeds"
        told = f"{short}; lowest {min(shares):.1%}"
        result = Result(**vars(check), verdict=verdict, measured=told, short=short)
        return replace(result, value=round(good / len(shares), 4), threshold=0.90)


def failures(
    tokens: Tensor, given: Tensor, right: Tensor, patterns: Sequence[str] = ()
) -> list[dict[str, str]]:
    """The first prompts answered wrongly, with what is known of each."""
    shown = []
    for row in (given != right).nonzero()[:N_EXAMPLES, 0].tolist():
        example = {"prompt": tasks.decode(tokens[row])}
        example |= {"answered": NAMES[given[row]], "right": NAMES[right[row]]}
        shown.append(example | {"pattern": patterns[row] if patterns else ""})
    return shown


def slices_of(tokens: Tensor, right: Tensor, plain: Tensor) -> dict[str, Tensor]:
    """Kinds of questions: name → mask [n_prompts].

    tokens [n_prompts, pos]; their right and their plain answers are [n_prompts].
    """
    places = tasks.answer_positions((tokens.shape[1] - 5) // tasks.EXAMPLE)
    x, y, total, wanted = (ids - tasks.ZERO for ids in (tokens[:, -4], tokens[:, -2], plain, right))
    sums = tokens[:, places - 4] + tokens[:, places - 2] - 2 * tasks.ZERO  # [n_prompts, shots]
    nearest = (sums - total[:, None]).abs().min(1).values
    return {
        "the sum has one digit": total <= 9,
        "the sum has two digits": total >= 10,
        "an operand is 0": (x == 0) | (y == 0),
        "both operands are the same": x == y,
        "the right answer is below 0 or above 18": (wanted < 0) | (wanted > 18),
        "no shown sum is within 1 of the asked one": nearest > 1,
    }


def instead(tokens: Tensor, given: Tensor, right: Tensor, plain: Tensor) -> list[str]:
    """What was answered instead of the right answer, for each prompt; empty where it is right."""
    places = tasks.answer_positions((tokens.shape[1] - 5) // tasks.EXAMPLE)
    kinds = [
        ("", given == right),
        ("the plain answer", given == plain),
        ("a shown answer", (tokens[:, places] == given[:, None]).any(1)),
        ("off by another amount", (given - plain).abs() <= tasks.MAX_SHIFT),
        ("something else", torch.ones_like(given, dtype=torch.bool)),
    ]
    first = torch.stack([holds for _, holds in kinds]).int().argmax(0)  # [n_prompts]
    return [kinds[index][0] for index in first.tolist()]


def show(results: Sequence[Result]) -> str:
    """The list as text: a line for each check, then what to do about those that did not pass."""
    lines = [f"{MARKS[result.verdict]:5} {result.question:75} {result.short}" for result in results]
    for result in results:
        if result.verdict == "pass":
            continue
        lines += [
            "",
            f"{MARKS[result.verdict]:5} {result.question}",
            f"      {result.means}",
            f"      measured: {result.measured}; wanted: {result.wanted}",
            f"      what to do: {result.advice}",
        ]
        for example in result.examples:
            pattern = f"; {example['pattern']}" if example["pattern"] else ""
            told = f"answered {example['answered']}, right {example['right']}{pattern}"
            lines.append(f"        {example['prompt']}  {told}")
    verdicts = [result.verdict for result in results]
    passed, failed, open_ = (verdicts.count(verdict) for verdict in MARKS)
    return "\n".join([*lines, "", f"{passed} passed, {failed} failed, {open_} could not be told"])


def carrying_heads(path: Path, model: Transformer) -> list[str]:
    """The FI heads of a circuit.json; none where there is none, or of another task."""
    circuit = load_circuit(path, model)
    if not circuit or circuit.get("task") != "addition":
        return []
    try:
        heads = list(circuit["groups"]["function_induction"])
        if set(heads) <= set(all_heads(model.cfg)):
            return heads
    except (KeyError, TypeError):
        pass
    raise UserError(f"{path} names no heads of this model; patch.py makes it anew")


def work(argv: Sequence[str] | None) -> int:
    """Runs all checks, prints them, writes check.json; returns 1 if one fails."""
    parser = Parser(prog="python -m commands.check", description=__doc__.splitlines()[0])
    add_run_flag(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default: %(default)s)")
    parser.add_argument("--k", type=int, default=1, help="the new rule (default: %(default)s)")
    told = "which prompts are drawn (default: %(default)s)"
    parser.add_argument("--seed", type=int, default=0, help=told)
    arguments = parser.parse_args(argv)
    device, folders = pick_device(arguments.device, float64=True), chosen_run(arguments)
    model, config = load_run(folders.run, device, tasks.VOCABULARY)
    k, seed, n_tokens = arguments.k, arguments.seed, tasks.n_tokens(SHOTS)
    if k == 0 or k not in tasks.SHIFTS:
        allowed = f"it may be from {tasks.SHIFTS[0]} to {tasks.SHIFTS[-1]}, but not 0"
        raise UserError(f"--k {k} is no new rule: {allowed}")
    if not 0 <= seed < 2**63:
        raise UserError("--seed must be from 0 to 2^63 - 1")
    if n_tokens > model.cfg.n_ctx:
        context = f"the model's context holds {model.cfg.n_ctx}"
        raise UserError(f"the checks use prompts of {n_tokens} tokens; {context}")
    fi = carrying_heads(folders.results / "circuit.json", model)
    path, started = folders.to_write("check.json"), time.perf_counter()
    folders.announce()
    results = Checklist(model, config.get("diet"), fi, k, seed).results()
    report = {"k": k, "shots": SHOTS, "seed": seed}
    report |= {"seconds": round(time.perf_counter() - started, 2)}
    save_json(path, report | {"checks": [asdict(result) for result in results]})
    print(show(results))
    print(f"everything is in {path}")
    return int(any(result.verdict == "fail" for result in results))


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(lambda: work(argv))


if __name__ == "__main__":
    sys.exit(main())
