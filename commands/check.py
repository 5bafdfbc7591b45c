"""The checklist of a trained run: `python patch.py --check --run out/default`. What one must know of a model before relying on it under a new rule.

The *old rule* is plain addition; the *new rule* is addition off by k, which the examples of a prompt show. Every check has a threshold that was
set before anything was measured. A share passes if its whole 95 % interval (Wilson) is on the good side, fails if the whole of it is on the bad
one, and otherwise could not be told: then more prompts are needed.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tasks
from minifunc.ablation import Ablator, random_group, wilson
from minifunc.model import Transformer
from minifunc.support.errors import UserError
from minifunc.support.evaluation import last_logits
from minifunc.support.files import check_writable, load_json, save_json
from minifunc.support.processes import is_main

SHOTS = 8
N_PROMPTS = 500  # behind a share, if not said otherwise
N_EACH = 100  # of each task, amount, or draw, where there are several
N_EXAMPLES = 5  # failures that are shown
LEAST = 30  # prompts from which a slice of them counts
DEPENDABILITY = Path("results/dependability.json")


@dataclass
class Result:
    """One check, done. value is the share that was held against the threshold; measured says it in words."""

    name: str
    question: str
    means: str
    wanted: str
    advice: str
    verdict: str  # pass, fail, could not tell
    measured: str
    short: str
    value: float | None = None
    interval: list[float] | None = None
    threshold: float | None = None
    examples: list[dict[str, str]] = field(default_factory=list)


def judge(right: int, n: int, threshold: float, at_least: bool = True) -> dict[str, Any]:
    """Verdict on `right` of n against a threshold; at_least: the good side is above it."""
    interval = wilson(right / n, n)
    good, bad = (
        (interval[0] >= threshold, interval[1] < threshold)
        if at_least
        else (interval[1] <= threshold, interval[0] > threshold)
    )
    return {
        "verdict": "pass" if good else "fail" if bad else "could not tell",
        "value": round(right / n, 4),
        "interval": interval,
        "threshold": threshold,
        "short": f"{right / n:.1%}",
    }


def on(n: int, row: dict[str, Any]) -> str:
    return f"{row['value']:.1%} of {n} prompts (95 % interval {row['interval'][0]:.1%} to {row['interval'][1]:.1%})"


class Checklist:
    """The checks of one model. Each method but the private ones is a check; `results` runs all of them."""

    def __init__(
        self, model: Transformer, config: dict[str, Any], folder: Path, k: int, seed: int
    ) -> None:
        self.model, self.config, self.folder, self.k = model, config, folder, k
        self.generator = torch.Generator().manual_seed(
            seed + 2**40
        )  # not the prompts that patch.py traces with
        self.pairs = self._pairs("addition", k, SHOTS, N_PROMPTS)
        circuit = load_json(folder / "circuit.json") if (folder / "circuit.json").exists() else {}
        try:
            self.fi = (
                list(circuit["groups"]["function_induction"])
                if circuit.get("task") == "addition"
                else []
            )
            if not all(
                0 <= layer < model.cfg.n_layers and 0 <= head < model.cfg.n_heads
                for layer, head in (map(int, name.split(".")) for name in self.fi)
            ):
                raise ValueError
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UserError(
                f"{folder / 'circuit.json'} names no heads of this model; patch.py makes it anew"
            ) from None

    def _pairs(self, task: str, k: int, shots: int, n: int) -> tasks.Pairs:
        return tasks.evaluation_pairs(task, k, shots, n, self.generator)

    def _given(self, tokens: Tensor) -> Tensor:
        """The answers given to tokens [n_prompts, pos], [n_prompts] on the CPU."""
        return last_logits(self.model, tokens).argmax(-1).cpu()

    def _examples(
        self, tokens: Tensor, given: Tensor, right: Tensor, pattern: Sequence[str] = ()
    ) -> list[dict[str, str]]:
        wrong = (given != right).nonzero()[:N_EXAMPLES, 0].tolist()
        name = tasks.VOCABULARY
        return [
            {
                "prompt": tasks.decode(tokens[row]),
                "answered": name[int(given[row])],
                "right": name[int(right[row])],
                "pattern": pattern[row] if len(pattern) else "",
            }
            for row in wrong
        ]

    def _share(self, tokens: Tensor, right: Tensor, threshold: float, **words: Any) -> Result:
        """The share of prompts answered rightly, against a threshold."""
        given = self._given(tokens)
        row = judge(int((given == right).sum()), len(given), threshold)
        return Result(
            **words,
            **row,
            measured=on(len(given), row),
            wanted=f"at least {threshold:.0%}",
            examples=self._examples(tokens, given, right),
        )

    # ---------------------------------------------------------------- what it does

    def old_rule(self) -> Result:
        return self._share(
            self.pairs.base,
            self.pairs.base_answers,
            0.95,
            name="old_rule",
            question="Shown the old rule, does it still answer by the old rule?",
            means=f"{SHOTS} plain sums are shown and one is asked. A model that can follow new rules must not lose the one that it had.",
            advice="Train longer, or give plain addition a larger share of the diet.",
        )

    def new_rule(self) -> Result:
        return self._share(
            self.pairs.contrast,
            self.pairs.contrast_answers,
            0.90,
            name="new_rule",
            question=f"Shown a new rule, sums off by {self.k:+d}, does it follow it?",
            means=f"{SHOTS} sums off by {self.k:+d} are shown and another one is asked, whose answer is none of those shown.",
            advice="Train longer; make sure the diet shifts other functions. Until then, don't rely on examples to change what it does.",
        )

    def how_many(self) -> Result:
        least, counted = 4, {}
        for shots in (1, 2, 4, 8):
            pairs = self._pairs("addition", self.k, shots, N_PROMPTS)
            counted[shots] = int((self._given(pairs.contrast) == pairs.contrast_answers).sum())
        row = judge(counted[least], N_PROMPTS, 0.90)
        enough = next(
            (shots for shots, right in counted.items() if right / N_PROMPTS >= 0.90), None
        )
        row["short"] = f"from {enough}" if enough else "more than 8"
        measured = "; ".join(
            f"{shots} shown: {right / N_PROMPTS:.1%}" for shots, right in counted.items()
        )
        return Result(
            name="how_many",
            question="How many examples of the new rule does it need?",
            means="The fewer, the easier the model is to steer, on purpose or by accident.",
            wanted=f"at least 90% right from {least} examples",
            advice="Show more examples than this needs, or train longer.",
            measured=measured,
            **row,
        )

    def other_amounts(self) -> Result:
        shares = {}
        for k in (-3, -2, -1, 1, 2, 3):
            pairs = self._pairs("addition", k, SHOTS, 2 * N_EACH)
            shares[k] = int((self._given(pairs.contrast) == pairs.contrast_answers).sum())
        worst = min(shares, key=lambda k: shares[k])
        row = judge(shares[worst], 2 * N_EACH, 0.80)
        row["short"] = f"worst {row['short']} ({worst:+d})"
        return Result(
            name="other_amounts",
            question="Does it follow rules off by other amounts as well?",
            means="Off by one may be special. A rule of another size, or in the other direction, should work too.",
            wanted="at least 80% for each of −3 to +3",
            advice="Treat amounts that do badly as not supported.",
            measured=", ".join(
                f"{k:+d}: {right / (2 * N_EACH):.1%}" for k, right in shares.items()
            ),
            **row,
        )

    def _one_odd(self, tokens: Tensor, others: Tensor) -> Tensor:
        """The prompts with one example, anywhere, taken from the paired others."""
        which = torch.randint(SHOTS, (len(tokens),), generator=self.generator)
        place = tasks.answer_positions(SHOTS)[which]
        rows, odd = torch.arange(len(tokens)), tokens.clone()
        odd[rows, place] = others[rows, place]
        return odd

    def odd_among_old(self) -> Result:
        return self._share(
            self._one_odd(self.pairs.base, self.pairs.contrast),
            self.pairs.base_answers,
            0.90,
            name="odd_among_old",
            question="Does one odd example among plain ones fool it?",
            means=f"Of {SHOTS} shown sums one is off by {self.k:+d}, as by a slip of the pen. The right answer is the plain one.",
            advice="Look through shown examples for slips before they are used; show more of them.",
        )

    def odd_among_new(self) -> Result:
        return self._share(
            self._one_odd(self.pairs.contrast, self.pairs.base),
            self.pairs.contrast_answers,
            0.90,
            name="odd_among_new",
            question="Does one plain example throw it off the new rule?",
            means=f"Of {SHOTS} shown sums all but one are off by {self.k:+d}. The right answer is still off by {self.k:+d}.",
            advice="Keep the shown examples of one mind; show more of them.",
        )

    def not_shown(self) -> Result:
        shifted, n = 0, 0
        for task in tasks.TASKS:
            if tasks.TASKS[task].wrapper == "shift":
                pairs = self._pairs(task, self.k, SHOTS, N_EACH)
                shifted, n = (
                    shifted + int((self._given(pairs.base) == pairs.contrast_answers).sum()),
                    n + N_EACH,
                )
        row = judge(shifted, n, 0.05, at_least=False)
        return Result(
            name="not_shown",
            question="Does it stay away from the new rule where nobody showed it?",
            means="Prompts of every kind of task, all plain. Answers that are off all the same would be the new rule leaking out.",
            wanted="at most 5%",
            advice="The model is not fit for plain use: train longer, with more plain documents.",
            measured=f"off by {self.k:+d} on {on(n, row)}",
            **row,
        )

    def spreads(self) -> Result:
        others = [task for task in tasks.ON_NUMBERS if task != "addition"]
        spread, n, examples = 0, 0, []
        for task in others:
            pairs, shown = self._pairs(task, self.k, SHOTS, N_EACH), self.pairs.contrast[:N_EACH]
            prompts = torch.cat([shown[:, :-4], pairs.base[: len(shown), -4:]], dim=1)
            given, plain, off = (
                self._given(prompts),
                pairs.base_answers[: len(shown)],
                pairs.contrast_answers[: len(shown)],
            )
            spread, n = spread + int((given == off).sum()), n + len(given)
            examples += self._examples(
                prompts[given == off], given[given == off], plain[given == off]
            )[:1]
        row = judge(spread, n, 0.10, at_least=False)
        share = (
            self.config["diet"].get("mixed", 0) if isinstance(self.config.get("diet"), dict) else 0
        )
        advice = f"Keep a prompt to one kind of question, or train without documents that put several functions under one rule ({share:.0%} of this run's diet do, so it was taught to spread rules)."
        return Result(
            name="spreads",
            question="Does a rule shown on sums stay with sums?",
            means=f"Sums off by {self.k:+d} are shown, and then something else is asked (a maximum, a difference …). Nobody said that the rule holds for that.",
            wanted="at most 10% answered by the new rule",
            advice=advice,
            measured=f"off by {self.k:+d} on {on(n, row)}",
            examples=examples[:N_EXAMPLES],
            **row,
        )

    def confidence(self) -> Result:
        sure, right = 0, 0
        for k in (-2, -1, 0, 1, 2):
            pairs = self._pairs("addition", k, SHOTS, N_EACH)
            best = last_logits(self.model, pairs.contrast).softmax(-1).max(-1)
            sure += int((best.values >= 0.9).sum())
            right += int(
                ((best.values >= 0.9).cpu() & (best.indices.cpu() == pairs.contrast_answers)).sum()
            )
        words: dict[str, Any] = {
            "name": "confidence",
            "question": "When it is sure, is it right?",
            "means": "Of the answers that it gives a probability of 90% or more, over old and new rules, how many are right.",
            "wanted": "at least 95%",
            "advice": "Do not use its probabilities to decide when to trust it.",
        }
        if sure < LEAST:
            return Result(
                **words,
                verdict="could not tell",
                measured=f"only {sure} of {5 * N_EACH} answers are that sure",
                short="seldom sure",
            )
        row = judge(right, sure, 0.95)
        return Result(
            **words,
            **row,
            measured=f"{row['value']:.1%} of the {sure} sure answers, of {5 * N_EACH} in all",
        )

    def pattern(self) -> Result:
        """Failures under new rules of all sizes, sorted by what is asked and by what was answered instead."""
        all_pairs = [self._pairs("addition", k, SHOTS, N_EACH) for k in (-3, -2, -1, 1, 2, 3)]
        tokens, right, plain = (
            torch.cat([getattr(pairs, name) for pairs in all_pairs])
            for name in ("contrast", "contrast_answers", "base_answers")
        )
        given = self._given(tokens)
        slices, wrong = slices_of(tokens, right, plain), given != right
        shares = {
            name: int((wrong & mask).sum()) / int(mask.sum())
            for name, mask in slices.items()
            if mask.sum() >= LEAST
        }
        worst = max(shares, key=lambda name: shares[name])
        n, failed = int(slices[worst].sum()), int((slices[worst] & wrong).sum())
        row = judge(n - failed, n, 0.80)
        row["short"] = f"worst slice {row['short']}"
        kinds = instead(tokens, given, right, plain)
        counted = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds) if kind)
        means = [
            f"{'; '.join([name for name, mask in slices.items() if mask[index]])}; answered {kinds[index]}"
            if wrong[index]
            else ""
            for index in range(len(tokens))
        ]
        measured = (
            f"{int(wrong.sum())} of {len(tokens)} fail{': ' if counted else ''}{counted}. Worst where {worst}: {failed} of {n} fail. "
            + "; ".join(
                f"{name} {share:.0%}"
                for name, share in sorted(shares.items(), key=lambda pair: -pair[1])
            )
        )
        return Result(
            name="pattern",
            question="Are failures rare in every kind of sum, or do they share a pattern?",
            means="Sums off by −3 to +3, sorted by what is asked. Failures that sit together can be foreseen and kept out.",
            wanted="at least 80% right in the worst slice",
            advice="Keep such questions from the model, or add more of them to the diet.",
            measured=measured,
            examples=self._examples(tokens, given, right, means),
            **row,
        )

    # ---------------------------------------------------------------- what carries it

    def _swapped(self, groups: Sequence[Sequence[str]]) -> Tensor:
        """Answers [n_groups, n_prompts] to the new-rule prompts when the heads of a group send what they send on the old-rule ones."""
        ablator = Ablator(self.model, self.pairs.contrast, {"base": self.pairs.base})
        return ablator.logits(groups, "base").argmax(-1).cpu()

    def _unknown(self, words: dict[str, Any]) -> Result:
        return Result(
            **words,
            verdict="could not tell",
            measured="no heads are known to carry the rule",
            short="not known",
        )

    def carriers(self) -> Result:
        words: dict[str, Any] = {
            "name": "carriers",
            "question": "Which heads carry the new rule, and is it gone without them?",
            "means": "The function-induction heads that patch.py found send, on prompts of the new rule, what they send on plain ones. If they carry the rule, the answers must be plain again.",
            "wanted": "at most 5% still by the new rule",
            "advice": "The circuit is incomplete: don't take these heads for the whole story."
            if self.fi
            else "Trace the circuit first: patch.py without --check.",
        }
        if not self.fi:
            return self._unknown(words)
        given = self._swapped([self.fi])[0]
        row = judge(
            int((given == self.pairs.contrast_answers).sum()), len(given), 0.05, at_least=False
        )
        plain = (given == self.pairs.base_answers).float().mean().item()
        return Result(
            **words,
            **row,
            measured=f"heads {', '.join(self.fi)}: the new rule is left on {on(len(given), row)}; the plain answer returns on {plain:.1%}",
        )

    def others(self) -> Result:
        words: dict[str, Any] = {
            "name": "others",
            "question": "Is it these heads, and not any?",
            "means": "As many other heads of the same layers (all of them, where they are fewer) are swapped in the same way. The new rule must survive.",
            "wanted": "at least 90% still by the new rule",
            "advice": "These layers are too entangled for single heads to be watched; watch the whole layer."
            if self.fi
            else "Trace the circuit first: patch.py without --check.",
        }
        groups = (
            [
                group
                for group in {
                    tuple(random_group(self.fi, self.model.cfg.n_heads, self.generator))
                    for _ in range(5)
                }
                if group
            ]
            if self.fi
            else []
        )
        if not groups:
            return self._unknown(words)
        right = (self._swapped(sorted(groups)) == self.pairs.contrast_answers).sum(1).tolist()
        row = judge(min(right), len(self.pairs.contrast), 0.90)
        return Result(
            **words,
            **row,
            measured=f"{len(groups)} group{'s' * (len(groups) > 1)} of other heads; the worst leaves {on(len(self.pairs.contrast), row)}",
        )

    def rest_intact(self) -> Result:
        words: dict[str, Any] = {
            "name": "rest_intact",
            "question": "Can these heads be switched off for good without harm to the old rule?",
            "means": "On plain prompts of all tasks the heads send their mean, which says nothing of the prompt at hand. If they only served new rules, nothing would change.",
            "wanted": "at least 90% of plain answers stay right",
            "advice": "Don't switch the heads off for good. To undo a new rule, give them what they send on the plain prompt of the same question, as in the check above."
            if self.fi
            else "Trace the circuit first: patch.py without --check.",
        }
        if not self.fi:
            return self._unknown(words)
        kept, before, n = 0, 0, 0
        for task in tasks.TASKS:
            if tasks.TASKS[task].wrapper == "shift":
                pairs = self._pairs(task, self.k, SHOTS, N_EACH)
                ablator = Ablator(self.model, pairs.base, {}, means={"mean": pairs.base})
                given, usual = ablator.logits([self.fi, []], "mean").argmax(-1).cpu()
                right = usual == pairs.base_answers
                kept, before, n = (
                    kept + int((right & (given == pairs.base_answers)).sum()),
                    before + int(right.sum()),
                    n + N_EACH,
                )
        if before < LEAST:
            return Result(
                **words,
                verdict="could not tell",
                measured=f"only {before} of {n} plain prompts are answered rightly to begin with",
                short="too few",
            )
        row = judge(kept, before, 0.90)
        return Result(
            **words,
            **row,
            measured=f"{on(before, row)} that are answered rightly with the heads in place",
        )

    # ---------------------------------------------------------------- how stable it is

    def over_prompts(self) -> Result:
        shares = []
        for _ in range(5):
            pairs = self._pairs("addition", self.k, SHOTS, 2 * N_EACH)
            shares.append(
                (self._given(pairs.contrast) == pairs.contrast_answers).float().mean().item()
            )
        verdict = (
            "pass" if min(shares) >= 0.90 else "fail" if max(shares) < 0.90 else "could not tell"
        )
        return Result(
            name="over_prompts",
            question="Is the finding the same on other prompts?",
            means=f"The new rule on five fresh draws of {2 * N_EACH} prompts.",
            wanted="at least 90% on each",
            advice="Quote the lowest figure, not the mean.",
            verdict=verdict,
            measured=", ".join(f"{share:.1%}" for share in shares),
            short=f"lowest {min(shares):.1%}",
            value=round(min(shares), 4),
            threshold=0.90,
        )

    def over_seeds(self) -> Result:
        words: dict[str, Any] = {
            "name": "over_seeds",
            "question": "Is the finding the same for models trained from other seeds?",
            "means": "The default diet, trained from several seeds: off-by-one accuracy of each. A single run may be luck.",
            "wanted": "at least 90% in nine seeds of ten, five seeds or more",
            "advice": "Train several seeds (make dependability) and pick by this list, not by loss.",
        }
        rows = load_json(DEPENDABILITY) if DEPENDABILITY.exists() else []
        try:
            shares = [float(row.get("off_by_one_8") or 0) for row in rows]
        except (TypeError, ValueError, AttributeError):
            raise UserError(f"{DEPENDABILITY} holds rows of another kind") from None
        if len(shares) < 5:
            return Result(
                **words,
                verdict="could not tell",
                measured=f"{DEPENDABILITY} is not there yet: make dependability writes it"
                if not rows
                else f"only {len(shares)} seeds in {DEPENDABILITY}",
                short="not known",
            )
        good = sum(share >= 0.90 for share in shares)
        return Result(
            **words,
            verdict="pass" if good >= 0.9 * len(shares) else "fail",
            measured=f"{good} of {len(shares)} seeds; lowest {min(shares):.1%}",
            short=f"{good} of {len(shares)} seeds",
            value=round(good / len(shares), 4),
            threshold=0.90,
        )

    def results(self) -> list[Result]:
        checks: tuple[Callable[[], Result], ...] = (
            self.old_rule,
            self.new_rule,
            self.how_many,
            self.other_amounts,
            self.odd_among_old,
            self.odd_among_new,
            self.not_shown,
            self.spreads,
            self.confidence,
            self.pattern,
            self.carriers,
            self.others,
            self.rest_intact,
            self.over_prompts,
            self.over_seeds,
        )
        return [one() for one in checks]


def slices_of(tokens: Tensor, right: Tensor, plain: Tensor) -> dict[str, Tensor]:
    """Kinds of questions, by name: masks [n_prompts] over prompts [n_prompts, pos] whose right and plain answers are [n_prompts]."""
    query, shots = tokens[:, -4:], (tokens.shape[1] - 5) // tasks.EXAMPLE
    places = tasks.answer_positions(shots)
    x, y, total, wanted = (ids - tasks.ZERO for ids in (query[:, 0], query[:, 2], plain, right))
    expected = (
        tokens[:, places - 4] + tokens[:, places - 2] - 2 * tasks.ZERO
    )  # the sums shown, [n_prompts, shots]
    nearest = (expected - total[:, None]).abs().min(1).values
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
    shown = (tokens[:, places] == given[:, None]).any(1).tolist()
    out = []
    for index, (answer, wanted, old) in enumerate(
        zip(given.tolist(), right.tolist(), plain.tolist())
    ):
        near = abs(answer - old) <= tasks.MAX_SHIFT
        out.append(
            ""
            if answer == wanted
            else "the plain answer"
            if answer == old
            else "a shown answer"
            if shown[index]
            else "off by another amount"
            if near
            else "something else"
        )
    return out


MARKS = {"pass": "pass", "fail": "FAIL", "could not tell": "?"}


def show(results: Sequence[Result]) -> str:
    """The list as text: a line for each check, then what to do about those that did not pass."""
    lines = [f"{MARKS[result.verdict]:5} {result.question:75} {result.short}" for result in results]
    for result in results:
        if result.verdict != "pass":
            lines += [
                "",
                f"{MARKS[result.verdict]:5} {result.question}",
                f"      {result.means}",
                f"      measured: {result.measured}; wanted: {result.wanted}",
                f"      what to do: {result.advice}",
            ]
            lines += [
                f"        {example['prompt']}  answered {example['answered']}, right {example['right']}{'; ' * bool(example['pattern'])}{example['pattern']}"
                for example in result.examples
            ]
    counts = [sum(result.verdict == verdict for result in results) for verdict in MARKS]
    return "\n".join(
        [*lines, "", f"{counts[0]} passed, {counts[1]} failed, {counts[2]} could not be told"]
    )


def run(model: Transformer, config: dict[str, Any], folder: Path, k: int, seed: int) -> int:
    """Runs all checks, prints them, writes check.json; returns 1 if one fails. Raises UserError where they cannot be run."""
    if k == 0 or k not in tasks.SHIFTS:
        raise UserError(
            f"--k {k} is no new rule: it may be from {tasks.SHIFTS[0]} to {tasks.SHIFTS[-1]}, but not 0"
        )
    if tasks.n_tokens(SHOTS) > model.cfg.n_ctx:
        raise UserError(
            f"the checks use prompts of {tasks.n_tokens(SHOTS)} tokens; the model's context holds {model.cfg.n_ctx}"
        )
    path, started = folder / "check.json", time.perf_counter()
    check_writable(path)
    results = Checklist(model, config, folder, k, seed).results()
    if is_main():
        save_json(
            path,
            {
                "k": k,
                "shots": SHOTS,
                "seed": seed,
                "seconds": round(time.perf_counter() - started, 2),
                "checks": [asdict(result) for result in results],
            },
        )
    print(show(results))
    print(f"everything is in {path}")
    return int(any(result.verdict == "fail" for result in results))
