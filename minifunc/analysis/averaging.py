"""Do FI heads average? The answer, against the mean of what was shown, weighted by attention.

A prompt may mix rules: `1+1=3, 2+2=3, 4+1=6, 3+3=` shows d = c - f(x, y) of +1, -1, +1. If the
heads looked up a rule, the answer would be off by +1 or by -1. If they average, it is off by

    sum over shown answers of attention * d        (Nadaraya-Watson regression, 1964)

which may be a difference that nobody showed. Nothing here is fitted: the attention is that of the
last `=`, a head counts by its r on the logits, and the forecast is held against the answer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Generator, Tensor

from minifunc.ablation import all_heads
from minifunc.analysis.activations import Examples
from minifunc.model import Transformer
from minifunc.support.checks import alike
from minifunc.support.evaluation import Language, bootstrap
from minifunc.support.hooks import Hooks
from minifunc.support.names import Found, parse
from minifunc.support.settled import settled
from minifunc.support.tables import rounded

N_PROMPTS = 200
MIXTURES = ((-1, 1), (0, 1), (0, 2), (-2, 2), tuple(range(-4, 5)))
GAINS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)  # shares of the attention on answers off by +1
SCOPE = range(1, 9)  # the k with which consistent prompts are tried
REACH = 12  # an answer counts as off by -12 to 12
STEPS = torch.arange(-REACH, REACH + 1, device="cpu")


def _step(k: int, f: Tensor) -> Tensor:
    return (10 - k) * (f // k)


RULES: dict[str, Callable[[Tensor], Tensor]] = {  # f(x, y) → d, for all examples of a prompt
    **{f"in base {k}": partial(_step, k) for k in (6, 7, 8, 9)},
    "+1 up to 8, +2 above": lambda f: 1 + (f > 8).long(),
    "half": lambda f: f // 2 - f,
    "always 7": lambda f: 7 - f,
}
Change = Callable[[Tensor], Tensor]  # attention on shown answers → other shares, [prompt, shot]


@dataclass(frozen=True)
class Asker:
    """A model that is asked sums: who looks, and how answers are read.
    weights: of the heads that look, by name. zero, numbers: the token of 0, and the numbers that
    have tokens, one after the other."""

    model: Transformer
    weights: Mapping[str, float]
    zero: int
    numbers: range

    @torch.no_grad()
    def ask(
        self, examples: Examples, query: Tensor, change: Change | None = None
    ) -> tuple[Tensor, Tensor]:
        """How the answer is off, as probabilities of STEPS, [n_prompts, n_steps]; and where the
        heads look, as shares of the shown answers, [n_prompts, shot]; both float64.
        query [n_prompts]: the asked f(x, y). change: other shares for all these heads."""
        answers = query[:, None] + STEPS
        known = (answers >= self.numbers[0]) & (answers <= self.numbers[-1])
        looks = []

        def look(pattern: Tensor, name: str) -> Tensor:
            for head, weight in self.weights.items():
                if name == _hook_point(head):
                    row = pattern[:, parse(head)[1], -1]  # [prompt, key]
                    spent = row[:, examples.answers].double()
                    looks.append(weight * spent.cpu())
                    if change:
                        moved = spent.sum(1, keepdim=True) * change(looks[-1]).to(spent)
                        row[:, examples.answers] = moved.to(row.dtype)
            return pattern

        tokens = examples.tokens.to(self.model.device)
        hooks = Hooks(dict.fromkeys(map(_hook_point, self.weights), look))
        logits = self.model(tokens, [tokens.shape[1] - 1], hooks)[:, 0]
        wanted = (self.zero + answers).where(known, self.zero)  # where unknown, any token
        chance = logits.double().softmax(-1).cpu().gather(1, wanted) * known
        return _as_shares(chance), _as_shares(torch.stack(looks).sum(0))


def _hook_point(head: str) -> str:
    return f"blocks.{parse(head)[0]}.attn.hook_pattern"


def _as_shares(x: Tensor) -> Tensor:
    return x / x.sum(1, keepdim=True).clamp(min=1e-30)


def with_differences(plain: Examples, zero: int, d: Tensor) -> Examples:
    """The examples with other shown answers, f(x, y) + d [n_prompts, shot]."""
    shown, tokens = plain.expected + d, plain.tokens.long().clone()
    tokens[:, plain.answers] = zero + shown
    return Examples(tokens, plain.answers, plain.expected, shown)


def forecasts(d: Tensor, look: Tensor, distance: Tensor) -> dict[str, Tensor]:
    """What the answer would be off by, [n_prompts]; all arguments [n_prompts, shot]."""
    return {
        "attention": (look * d).sum(1),
        "uniform": d.double().mean(1),
        "most_attended": d.gather(1, look.argmax(1, keepdim=True))[:, 0].double(),
        "nearest": d.gather(1, distance.argmin(1, keepdim=True))[:, 0].double(),
        "last": d[:, -1].double(),
    }


def r2(forecast: Tensor, y: Tensor) -> float:
    """1 - residual / variance of y [n]: 1 is exact, 0 as good as the mean of y, below 0 worse."""
    residual = (y - alike(forecast, y, "the forecast")).square().sum()
    variance = (y - y.mean()).square().sum()
    return (1 - residual / variance.clamp(min=1e-12)).item()


def r2_interval(forecast: Tensor, y: Tensor) -> list[float]:
    """95 % of `r2` over prompts, by bootstrap; the mean of y is held."""
    residual = (y - alike(forecast, y, "the forecast")).square()
    low, high = bootstrap(residual[None], (y - y.mean()).square().clamp(min=1e-12))[0]
    return [1 - high, 1 - low]


def account(asker: Asker, examples: Examples, query: Tensor, right: Tensor | None = None) -> Found:
    """How well each forecast tells what the answers are off by.

    r2, r2_ci: of the mean over the answer's probabilities. hits: share of prompts whose likeliest
    answer is the forecast, rounded. answered: shares of the likeliest answers. right [n_prompts]:
    by how much they should be off.
    """
    chance, look = asker.ask(examples, query)
    mean, likeliest = chance @ STEPS.double(), chance.argmax(1) - REACH
    told = forecasts(examples.difference, look, (examples.expected - query[:, None]).abs())
    values, counts = likeliest.unique(return_counts=True)
    row: Found = {
        "n_prompts": len(query),
        "r2": {name: r2(x, mean) for name, x in told.items()},
        "r2_ci": {name: r2_interval(x, mean) for name, x in told.items()},
        "hits": {name: _share(x.round() == likeliest) for name, x in told.items()},
        "answered": dict(zip(map(str, values.tolist()), (counts.double() / len(query)).tolist())),
    }
    return row if right is None else row | {"right": _share(likeliest == right)}


def _share(holds: Tensor) -> float:
    return holds.double().mean().item()


def steered(asker: Asker, examples: Examples, query: Tensor) -> list[dict[str, float]]:
    """What the answer is off by, on average, as the heads' attention is moved between the answers
    off by +1 and the others. What they spend on answers in all, and how they share it out among
    those of one kind, stays. On prompts that show both; empty where none does (one shot)."""
    up = examples.difference == 1
    both = up.any(1) & ~up.all(1)
    if not both.any():
        return []
    examples, query, up = examples.rows(both), query[both], up[both]

    def moved(gain: float, look: Tensor) -> Tensor:
        return gain * _as_shares(look * up) + (1 - gain) * _as_shares(look * ~up)

    rows = []
    for gain in GAINS:
        chance, _ = asker.ask(examples, query, partial(moved, gain))
        off_by = (chance @ STEPS.double()).mean().item()
        rows.append({"gain": gain, "off_by": off_by, "n_prompts": len(query)})
    return rows


@settled
def study(
    language: Language,
    model: Transformer,
    fi: Mapping[str, float],
    asked: tuple[str, int],
    generator: Generator,
) -> Found:
    """What circuit.json holds under `averaging`, on N_PROMPTS prompts of each kind.

    fi: FI heads, and how much each counts. asked: (task, shots), a function on numbers.
        mixtures   each example off by one of `offsets`, at random: `account`, and
                   unseen_offset_share: of likeliest answers, off by what no example showed
        n_off      share of answers off by +1, where 0, 1, … of the examples are, and others plain
        scope      share of answers off by k, where all examples are: k = 1 … 8
        rules      the same account of rules of which d depends on f(x, y); right: answers by them
        steered    see there; control: the same on the other heads of these layers
        flat       of prompts off by +1, the share answered so with the attention of FI heads made
                   even among the answers; others: with that of the other heads made even
    """
    task, shots = asked
    pairs = language.evaluation_pairs(task, 1, shots, N_PROMPTS, generator)
    places = language.answer_positions(shots)
    f, query = pairs.base[:, places] - language.ZERO, pairs.base_answers - language.ZERO
    plain = Examples(pairs.base, places, f, f)
    layers = {parse(head)[0] for head in fi}
    others = {head for head in all_heads(model.cfg) if parse(head)[0] in layers} - set(fi)
    asker = Asker(model, fi, language.ZERO, language.NUMBERS)
    control = replace(asker, weights=dict.fromkeys(sorted(others), 1.0))
    put = partial(with_differences, plain, language.ZERO)

    def off_by(k: int, who: Asker, d: Tensor, change: Change | None = None) -> float:
        chance, _ = who.ask(put(d), query, change)
        return _share(chance.argmax(1) == REACH + k)

    found: Found = {"mixtures": [], "rules": []}
    for offsets in MIXTURES:
        drawn = torch.randint(len(offsets), f.shape, generator=generator)
        mixed = put(torch.tensor(offsets)[drawn])
        row = account(asker, mixed, query)
        unseen = sum(part for k, part in row["answered"].items() if int(k) not in offsets)
        found["mixtures"].append({"offsets": list(offsets), **row, "unseen_offset_share": unseen})
        if offsets == (-1, 1):
            found["steered"] = steered(asker, mixed, query)
            found["control"] = steered(control, mixed, query) if control.weights else []
    order = torch.rand(f.shape, generator=generator).argsort(1)
    found["n_off"] = [off_by(1, asker, (order < n).long()) for n in range(shots + 1)]
    found["scope"] = {str(k): off_by(k, asker, torch.full_like(f, k)) for k in SCOPE}
    for name, rule in RULES.items():
        row = account(asker, put(rule(f)), query, rule(query))
        found["rules"].append({"rule": name, **row})
    found["flat"] = {"fi": off_by(1, asker, torch.ones_like(f), _even)}
    if control.weights:
        found["flat"]["others"] = off_by(1, control, torch.ones_like(f), _even)
    return rounded(found)


def _even(look: Tensor) -> Tensor:
    return torch.full_like(look, 1 / look.shape[1])
