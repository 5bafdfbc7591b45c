"""What the model is trained on: diets, and the documents that a diet draws.

A document is <bos> and some examples under one wrapper (tasks.py), here shifted by 1:

    <bos>  7 max 2 = 8 ;  4 first 9 = 5 ;  8 - 2 = 7 ;

A `Diet` says how often each wrapper and function is met. The default never shows the cells of
HELD_OUT: no document shifted by k, or in base k, holds an example of `+` or `choice`. Nor does
a document *begin* as if it did, by chance: so that all its `+` examples so far, two or more, are
off by the same k, or read right in one base and not in base 10; or so that all its `choice`
examples so far, two or more, are off by the same k in -4..4 (`looks_held_out`).

`sample` draws documents in five steps, each a function of its own: which wrappers, which
problems, the answers, what must not happen by chance, what can be known from the examples before.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from tasks import (
    BASES,
    CHOICE,
    LETTERED,
    LETTERS,
    MAX_SHIFT,
    NUMBERS,
    PLUS,
    PROBLEMS,
    SHIFTS,
    SUMS,
    SYMBOLS,
    TO_LETTERS,
    WRAPPERS,
    ZERO,
    A,
    examples_to_tokens,
    in_base,
)

# [100]: the share of `+` problems up to each one, where every sum is asked equally often
_SUMS = PROBLEMS.value[PROBLEMS.function == PLUS]
UP_TO = (1 / SUMS / _SUMS.bincount()[_SUMS].double()).cumsum(0)

# the cells (wrapper, function) that the default diet never shows
HELD_OUT = (("shift", "+"), ("shift", CHOICE), ("base", "+"), ("base", "copy"), ("base", CHOICE))


@dataclass(frozen=True)
class Diet:
    """How often each kind of document is met. Raises ValueError for what makes no sense."""

    name: str
    # weights of the wrappers
    plain: float = 0.12
    shift: float = 0.33
    base: float = 0.05
    relabel: float = 0.20
    reflect: float = 0.30
    copy: float = 0.05
    mixed: float = 0.8  # share of documents with several functions under their one wrapper
    # weights of the functions `+`, `copy` and `choice`; each other one has 1
    addition: float = 2.0
    caesar: float = 1.5
    choice: float = 1.0
    even_sums: bool = False  # each sum as often as another; else each pair of operands
    shifted_addition: tuple[int, ...] = ()  # the k with which shifted `+` is shown all the same
    functions: tuple[str, ...] = SYMBOLS  # those that are met at all
    # Cells held out. Under `shift`, `base` and, for numbers, `reflect`, none is shown by chance.
    never: tuple[tuple[str, str], ...] = HELD_OUT

    def __post_init__(self) -> None:
        cells = [(wrapper, symbol) for wrapper in WRAPPERS[1:] for symbol in SYMBOLS]
        known = {"never": cells, "functions": SYMBOLS, "shifted_addition": SHIFTS}
        for field, names in known.items():
            for name in getattr(self, field):
                if name not in names:
                    may_be = ", ".join(map(str, names))
                    raise ValueError(f"a diet's {field} cannot hold {name!r}, only {may_be}")
        for field in (*WRAPPERS, "addition", "caesar", "choice", "mixed"):
            weight, most = getattr(self, field), 1 if field == "mixed" else 1e6
            if weight != 0 and not 1e-6 <= weight <= most:
                raise ValueError(f"a diet's {field} must be 0, or from 1e-6 to {most:g}")
        met = [wrapper for wrapper in WRAPPERS if getattr(self, wrapper) > 0]
        for wrapper in met or ["any wrapper"]:
            if not self.under(wrapper):
                raise ValueError(f"the diet leaves no function to be met under {wrapper}")

    def weight(self, symbol: str) -> float:
        """How often a function is met, as a weight; 0 where it is not met at all."""
        own = {"+": self.addition, "copy": self.caesar, CHOICE: self.choice}
        return own.get(symbol, 1.0) if symbol in self.functions else 0.0

    def under(self, wrapper: str) -> list[str]:
        """The functions met under a wrapper, whatever the k."""
        if not getattr(self, wrapper, 0) > 0:
            return []
        met = [symbol for symbol in self.functions if self.weight(symbol) > 0]
        return [symbol for symbol in met if (wrapper, symbol) not in self.never]


DIETS = {"strict": Diet("strict"), "even": Diet("even", even_sums=True)}
DEFAULT_DIET = DIETS["even"]
# ---------------------------------------------------------------- documents


@dataclass(frozen=True)
class Documents:
    """A batch of documents, with what made it kept beside it."""

    tokens: Tensor  # [n_documents, pos] int64
    determined: Tensor  # [n_documents, n_examples] bool: follows the answer from what is before?
    wrapper: Tensor  # [n_documents] int64, index into WRAPPERS
    function: Tensor  # [n_documents, n_examples] int64, index into SYMBOLS
    value: Tensor  # [n_documents, n_examples] int64, f(x, y)
    answer: Tensor  # [n_documents, n_examples] int64, g(f(x, y))


@dataclass(frozen=True)
class Rules:
    """What each document does to its values, [n_documents] each."""

    wrapper: Tensor  # int64, index into WRAPPERS
    k: Tensor  # int64 in -4..4, not 0; used under `shift`
    base: Tensor  # int64 in 6..9; used under `base`
    allows_plus: Tensor  # bool: `+` may be shown here although it is held out


def sample(diet: Diet, n_documents: int, n_examples: int, generator: Generator) -> Documents:
    """Draws training documents; the same generator state gives the same documents.

    >>> documents = sample(DIETS["strict"], 64, 9, Generator().manual_seed(0))
    >>> documents.tokens.shape, documents.answer.shape
    (torch.Size([64, 55]), torch.Size([64, 9]))
    """
    rules = draw_rules(diet, n_documents, generator)
    problem = draw_problems(diet, rules, n_examples, generator)
    answer = draw_answers(rules, problem, generator)
    value, function = PROBLEMS.value[problem], PROBLEMS.function[problem]
    made_plain = looks_held_out(diet, problem, answer) & ~rules.allows_plus  # [n_documents]
    answer = torch.where(made_plain[:, None], value, answer)
    wrapper = torch.where(made_plain, WRAPPERS.index("plain"), rules.wrapper)
    known = determined(wrapper, problem, answer)
    tokens = examples_to_tokens(problem, torch.where(LETTERED[function], A, ZERO) + answer)
    return Documents(tokens, known, wrapper, function, value, answer)


def draw_rules(diet: Diet, n_documents: int, generator: Generator) -> Rules:
    """Step 1: which wrapper each document has. One column is one document:

    wrapper  shift  base  relabel  plain
    k           -2     3        1     -4    used in the first
    base         7     8        6      9    used in the second
    """
    shares = torch.tensor([getattr(diet, wrapper) for wrapper in WRAPPERS], dtype=torch.float32)
    wrapper = torch.multinomial(shares, n_documents, replacement=True, generator=generator)
    k = _integers(1, MAX_SHIFT + 1, wrapper.shape, generator)
    k = k * (1 - 2 * _integers(0, 2, wrapper.shape, generator))
    base = _integers(BASES[0], BASES[-1] + 1, wrapper.shape, generator)
    allowed = torch.isin(k, torch.tensor(diet.shifted_addition, dtype=torch.int64))
    return Rules(wrapper, k, base, allowed & (wrapper == WRAPPERS.index("shift")))


def draw_problems(diet: Diet, rules: Rules, n_examples: int, generator: Generator) -> Tensor:
    """Step 2: what is asked, as rows of PROBLEMS, [n_documents, n_examples] int64.

    one function             1 + 1   4 + 0     7 + 9     2 + 2
    mixed                    1 + 1   5 max 2   3 same _  2 + 2
    `copy`: a few, repeated  1 + 1   5 max 2   5 max 2   1 + 1
    """
    n_documents = len(rules.wrapper)
    weights = torch.tensor([diet.weight(symbol) for symbol in SYMBOLS], dtype=torch.float32)
    weights = weights.repeat(n_documents, 1)  # [n_documents, n_functions]
    for wrapper, symbol in diet.never:
        held_out = rules.wrapper == WRAPPERS.index(wrapper)
        if symbol == "+":
            held_out = held_out & ~rules.allows_plus
        weights[held_out, SYMBOLS.index(symbol)] = 0
    one = torch.multinomial(weights, 1, generator=generator)
    several = torch.multinomial(weights, n_examples, replacement=True, generator=generator)
    mixed = torch.rand(n_documents, 1, generator=generator) < diet.mixed
    function = torch.where(mixed, several, one)  # [n_documents, n_examples]

    drawn = torch.rand(function.shape, generator=generator, dtype=torch.float64)
    start, end = PROBLEMS.starts[function], PROBLEMS.starts[function + 1]
    problem = start + (drawn * (end - start)).long()
    if diet.even_sums:
        evenly = torch.searchsorted(UP_TO, drawn, right=True).clamp(max=len(UP_TO) - 1)
        problem = torch.where(function == PLUS, PROBLEMS.starts[PLUS] + evenly, problem)

    n_different = _integers(2, 5, (n_documents, 1), generator).clamp(max=n_examples)
    repeated = _integers(0, n_different, problem.shape, generator)
    is_copy = (rules.wrapper == WRAPPERS.index("copy"))[:, None]
    return problem.gather(1, torch.where(is_copy, repeated, torch.arange(n_examples)))


def draw_answers(rules: Rules, problem: Tensor, generator: Generator) -> Tensor:
    """Step 3: the answers, [n_documents, n_examples] int64. One problem, under each wrapper:

    problem          1 + 1   5 max 8   8 first 0
    plain                2         8           8
    shift, k = 1         3         9           9
    base 6               2        12          12
    relabel             17         5           5    perm[2] = 17, perm[8] = 5
    reflect, R = 16     14         8           8
    copy                -3        20          11    random; the same for the same problem
    """
    value, letters = PROBLEMS.value[problem], LETTERED[PROBLEMS.function[problem]]
    low = torch.where(letters, 0, NUMBERS[0])
    high = torch.where(letters, len(LETTERS), NUMBERS[-1] + 1)
    numbers = torch.rand(len(problem), len(NUMBERS), generator=generator).argsort(1)
    alphabet = torch.rand(len(problem), len(LETTERS), generator=generator).argsort(1)
    letter, number = alphabet.gather(1, value.clamp(max=25)), numbers.gather(1, value - low)
    relabelled = low + torch.where(letters, letter, number)
    R = _integers(SUMS - 1 - MAX_SHIFT, SUMS + MAX_SHIFT, (len(problem), 1), generator)
    random = _integers(low, high, problem.shape, generator)
    random = random.gather(1, (problem[:, :, None] == problem[:, None]).int().argmax(2))
    shifted, based = value + rules.k[:, None], in_base(value, rules.base[:, None])
    answers = torch.stack([value, shifted, based, relabelled, R - value, random])
    answers = torch.where(letters, answers % len(LETTERS), answers)
    return answers[rules.wrapper, torch.arange(len(problem))]


def looks_held_out(diet: Diet, problem: Tensor, answer: Tensor) -> Tensor:
    """Step 4: which documents begin as if they showed a cell held out, [n_documents] bool.

    1 + 1 = 3 ; 5 max 2 = 9 ; 2 + 2 = 5 ;     yes: both sums so far are off by 1
    1 + 1 = 3 ; 5 max 2 = 9 ; 2 + 2 = 9 ;     no: one is off by 1, one by 5
    1 + 1 = 2 ; 5 max 2 = 9 ; 4 + 4 = 12 ;    yes: both sums are right in base 6
    """
    function, value = PROBLEMS.function[problem], PROBLEMS.value[problem]
    found = torch.zeros(len(problem), dtype=torch.bool)
    for wrapper, symbol in diet.never:
        asked = function == SYMBOLS.index(symbol)
        if wrapper == "shift":
            found |= _begins_shifted(asked, value, answer, symbol in TO_LETTERS)
        elif wrapper == "base" and symbol not in TO_LETTERS:
            found |= _begins_in_base(asked, value, answer)
        elif wrapper == "reflect" and symbol not in TO_LETTERS:
            reflected, one_value = _one(answer + value, asked), _one(value, asked)
            found |= (reflected & ~one_value).any(1)
    return found


def _begins_shifted(asked: Tensor, value: Tensor, answer: Tensor, letters: bool) -> Tensor:
    off, half = answer - value, len(LETTERS) // 2
    if letters:
        off = (off + half) % len(LETTERS) - half  # the short way around the alphabet
    possible = (off != 0) & (off.abs() <= (MAX_SHIFT if letters else len(NUMBERS)))
    return (_one(off, asked) & _all(possible, asked) & (asked.cumsum(1) >= 2)).any(1)


def _begins_in_base(asked: Tensor, value: Tensor, answer: Tensor) -> Tensor:
    right = [_all(answer == in_base(value, base), asked) for base in BASES]
    carries = ~_all(answer == value, asked)
    return (torch.stack(right).any(0) & carries & (asked.cumsum(1) >= 2)).any(1)


def _all(holds: Tensor, asked: Tensor) -> Tensor:
    """For each example: does it hold of all asked up to there? [n_documents, n_examples] bool."""
    return (holds | ~asked).cummin(1).values


def _one(x: Tensor, asked: Tensor) -> Tensor:
    """For each example: is x the same for all asked up to there?"""
    first = x.gather(1, asked.int().argmax(1, keepdim=True))
    return _all(x == first, asked)


def determined(wrapper: Tensor, problem: Tensor, answer: Tensor) -> Tensor:
    """Step 5: which answers follow from those before them, [n_documents, n_examples] bool.

    shift    1 - 1 = 1 ; 2 - 1 = 2 ; 4 max 3 = 5 ;     . * *  one example tells k
    base     1 max 1 = 1 ; 1 max 9 = 13 ; 8 - 0 = 12   . . *  but for what it does from k on
    relabel  1 + 1 = 7 ; 4 + 4 = 3 ; 2 + 0 = 7 ;       . . *  2 was 7 before
    """
    value, letters = PROBLEMS.value[problem], LETTERED[PROBLEMS.function[problem]]
    after_one = torch.arange(problem.shape[1]).expand(problem.shape) >= 1
    after_change = after_one & ((answer == value) | ((answer != value).cumsum(1) >= 2))
    value_met = _met_before(value + len(NUMBERS) * letters)  # the number 3 is not the letter d
    known = [after_one, after_one, after_change, value_met, after_one, _met_before(problem)]
    return torch.stack(known)[wrapper, torch.arange(len(problem))]  # in the order of WRAPPERS


def _met_before(x: Tensor) -> Tensor:
    repeated = (x[:, :, None] == x[:, None]).tril(-1)
    return repeated.any(2)


def _integers(
    low: Tensor | int, high: Tensor | int, size: tuple[int, ...], generator: Generator
) -> Tensor:
    """Whole numbers from `low` to `high` - 1, each as likely: [*size] int64."""
    return low + (torch.rand(size, generator=generator, dtype=torch.float64) * (high - low)).long()
