"""What the model is asked: the vocabulary, the problems, and the evaluation prompts.

The question of the whole project is three prompts side by side (`Pairs`), and what follows each:

    contrast          <bos> 1 + 1 = 3 ; 2 + 2 = 5 ; 3 + 3 =   7   every example is off by one
    base              <bos> 1 + 1 = 2 ; 2 + 2 = 4 ; 3 + 3 =   6   the shown answers changed
    operands_changed  <bos> 2 + 1 = 3 ; 3 + 2 = 5 ; 3 + 3 =   6   the operands changed instead

Addition off by one is never trained on. What is off by one in training are other functions.
One number is one token. A document is <bos> and then examples of six tokens, so every answer
stands at a fixed place. The model is scored where an `=` predicts the answer behind it:

    token row   <bos>  7  max  2  =  8  ;  4  first  9  =  5  ;
    label row     .    .   .   .  8  .  .  .    .    .  5  .  .

The answer to `x op y` is g(f(x, y)): one base function f for each symbol (FUNCTIONS), and one
wrapper g for the whole document (WRAPPERS). The functions answer with numbers from -4 to 30, or
with letters. `choice` is multiple choice, the letter of the largest of three, `3 7 5 = b`; its
second option stands where others have their symbol.

    plain     g(v) = v
    shift     g(v) = v + k        k in -4..4, not 0; letters wrap around (Caesar's cipher)
    base      g(v) = v in base k  k in 6..9; the numeral is read as a number: 11 in base 8 is 13
    relabel   g(v) = perm[v]      a random permutation of all numbers, another of all letters
    reflect   g(v) = R - v        R in 14..22; letters wrap around
    copy      a few problems with random answers, repeated: only the repetition can be learned

What is random comes from an explicit Generator.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

# ---------------------------------------------------------------- vocabulary

MAX_SHIFT = 4
SHIFTS, BASES = range(-MAX_SHIFT, MAX_SHIFT + 1), range(6, 10)
NUMBERS = range(-MAX_SHIFT, 31)  # 18 in base 6 is 30
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SUMS = 19  # two operands have sums from 0 to 18
CHOICE = "choice"

# symbol → (the task's name, how many different operands, f)
FUNCTIONS: dict[str, tuple[str, int, Callable[..., Tensor]]] = {
    "+": ("addition", 10, torch.add),
    "-": ("subtraction", 10, torch.sub),  # only x >= y is asked
    "max": ("maximum", SUMS, torch.maximum),  # where SUMS stands, values go up to 18, as of `+`
    "min": ("minimum", 10, torch.minimum),
    "first": ("first", SUMS, lambda x, y: x),
    "second": ("second", SUMS, lambda x, y: y),
    "same": ("same", SUMS, lambda x, y: x),  # of one number: `7 same _ = 7`
    "copy": ("caesar", 26, lambda x, y: x),  # of one letter: `c copy _ = c`
    CHOICE: ("choice", 10, lambda x, z, y: torch.stack([x, z, y]).argmax(0)),
}
SYMBOLS = tuple(FUNCTIONS)
UNARY, ON_LETTERS, TO_LETTERS = ("same", "copy"), ("copy",), ("copy", CHOICE)
ON_NUMBERS = tuple(FUNCTIONS[symbol][0] for symbol in SYMBOLS if symbol not in TO_LETTERS)
VOCABULARY = ["<bos>", "=", ";", "_", *SYMBOLS[:-1], *map(str, NUMBERS), *LETTERS]  # by token id
TOKEN = {string: index for index, string in enumerate(VOCABULARY)}
BOS, EQUALS, END, BLANK = (TOKEN[string] for string in ("<bos>", "=", ";", "_"))
ZERO, A = TOKEN["0"], TOKEN["a"]  # number n is token ZERO + n, letter number n is token A + n
WRAPPERS = ("plain", "shift", "base", "relabel", "reflect", "copy")
EXAMPLE = 6  # tokens in `x op y = c ;`


def n_tokens(shots: int) -> int:
    """Length of a prompt: <bos>, `shots` whole examples, and a query that ends at its `=`."""
    return 1 + EXAMPLE * shots + 4


def answer_positions(n_examples: int) -> Tensor:
    """Where the answers stand, [n_examples] int64. The `=` that predicts one is just before it.

    >>> answer_positions(3)
    tensor([ 5, 11, 17])
    """
    return 5 + EXAMPLE * torch.arange(n_examples)


def decode(tokens: Tensor) -> str:
    """Token ids [pos] → text.

    >>> decode(encode("1+1=3, 2+2="))
    '<bos> 1 + 1 = 3 ; 2 + 2 ='
    """
    return " ".join(VOCABULARY[token] for token in tokens.tolist())


def encode(text: str) -> Tensor:
    """Text like `1+1=3, 2+2=5, 3+3=` or `3 7 5=b` → token ids [pos] int64, <bos> in front.

    Raises ValueError for what the vocabulary lacks.
    """
    symbol_or_option = r"([+-]|[a-z]{2,}|(?<=\s)\d+(?=\s))"
    pattern = rf"\s*([a-z]|\d+)\s*{symbol_or_option}\s*([a-z]|\d+|_)?\s*=\s*([a-z]|-?\d+)?\s*"
    tokens = [BOS]
    for example in re.split(r"[;,]", text.replace("<bos>", " ").strip().rstrip(";,")):
        match = re.fullmatch(pattern, example)
        x, op, y, answer = match.groups() if match else ("", "", "", "")
        strings = [x, op, y or "_", "="] + ([answer, ";"] if answer else [])
        if tokens[-1] == EQUALS or not set(strings) <= TOKEN.keys():
            found = example.strip()
            raise ValueError(f"cannot read {found!r}: write examples like 1+1=3, 2+2=5, 3+3=")
        tokens += [TOKEN[string] for string in strings]
    return torch.tensor(tokens)


# ---------------------------------------------------------------- problems


@dataclass(frozen=True)
class Problems:
    """Every problem of every base function, as parallel rows: [n_problems] int64 each."""

    function: Tensor  # index into SYMBOLS
    x: Tensor  # token ids of the first three places
    op: Tensor
    y: Tensor
    value: Tensor  # f(x, y): as all values and answers here, n for a number n, 0..25 for a letter
    starts: Tensor  # [n_functions + 1]: function i has the rows starts[i] .. starts[i + 1] - 1


def _all_problems() -> Problems:
    rows = []  # one for each function: [function x op y value, n_problems]
    for index, (symbol, (_, n_operands, f)) in enumerate(FUNCTIONS.items()):
        zero = A if symbol in ON_LETTERS else ZERO
        n = torch.arange(n_operands)
        if symbol == CHOICE:
            x, z, y = torch.cartesian_prod(n, n, n).unbind(1)
            op, value = zero + z, f(x, z, y)
            asked = (x != y) & (x != z) & (y != z)
        else:
            x, y = (n, n) if symbol in UNARY else torch.cartesian_prod(n, n).unbind(1)
            op, value = torch.full_like(x, TOKEN[symbol]), f(x, y)
            asked = value >= 0  # drops x - y with x < y
        y = torch.full_like(y, BLANK) if symbol in UNARY else zero + y
        row = torch.stack([torch.full_like(x, index), zero + x, op, y, value])
        rows.append(row[:, asked])
    starts = torch.tensor([0, *(row.shape[1] for row in rows)]).cumsum(0)
    function, x, op, y, value = torch.cat(rows, dim=1)
    return Problems(function, x, op, y, value, starts)


PROBLEMS = _all_problems()
PLUS = SYMBOLS.index("+")
LETTERED = torch.tensor([symbol in TO_LETTERS for symbol in SYMBOLS])  # [n_functions]


def in_base(value: Tensor, k: Tensor | int) -> Tensor:
    """What the numeral of `value` in base k reads as in base 10. For values up to k * 10 - 1.

    >>> in_base(torch.tensor([7, 8, 11]), 8)  # 7, "10", "13"
    tensor([ 7, 10, 13])
    """
    return value + (10 - k) * (value // k)


def examples_to_tokens(problem: Tensor, answer: Tensor) -> Tensor:
    """Rows of PROBLEMS and token ids of answers, both [n_documents, n_examples] → [·, pos]."""
    x, op, y = PROBLEMS.x[problem], PROBLEMS.op[problem], PROBLEMS.y[problem]
    equals, end = torch.full_like(problem, EQUALS), torch.full_like(problem, END)
    examples = torch.stack([x, op, y, equals, answer, end], dim=2)  # [document, example, 6]
    return torch.cat([torch.full((len(problem), 1), BOS), examples.flatten(1)], dim=1)


# ---------------------------------------------------------------- diets

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


# ---------------------------------------------------------------- evaluation prompts


@dataclass(frozen=True)
class Task:
    """The base function `symbol` as it is, against the same under `wrapper` with one of `ks`."""

    symbol: str
    wrapper: str
    ks: range


TASKS = {name: Task(symbol, "shift", SHIFTS) for symbol, (name, _, _) in FUNCTIONS.items()}
TASKS["base_addition"] = Task("+", "base", BASES)


@dataclass(frozen=True)
class Pairs:
    """Prompts as on top of this file, [n_prompts, pos] int64, and their answers [n_prompts].

    In base-k addition contrast is `5 + 6 = 13` (k = 8) and base `5 + 6 = 11`; where nothing is
    carried they agree. There is no operands_changed for `choice`: of three options none is `d`.
    """

    task: str
    k: int
    shots: int
    base: Tensor
    contrast: Tensor
    operands_changed: Tensor | None
    base_answers: Tensor  # token ids; those of operands_changed are the same
    contrast_answers: Tensor

    @property
    def carry(self) -> Tensor:
        """[n_prompts] bool: do the answers differ? Always, but for k = 0 and sums without carry."""
        return self.base_answers != self.contrast_answers


def evaluation_pairs(
    task: str, k: int, shots: int, n_prompts: int, generator: Generator, carry: bool = False
) -> Pairs:
    """Prompts whose examples are all off by k (or in base k), and never show the asked answer.

    The query is any problem. The examples are drawn from those with another answer that have a
    neighbour with the shown answer (for operands_changed). In base k operands are below k, and
    at least one example carries; with `carry` the query does too. Raises ValueError for an
    unknown task, a k that it does not have, or numbers below one.

    >>> pairs = evaluation_pairs("addition", 1, 2, 1, Generator().manual_seed(0))
    >>> decode(pairs.contrast[0]), VOCABULARY[pairs.contrast_answers[0]]
    ('<bos> 1 + 4 = 6 ; 0 + 5 = 6 ; 4 + 4 =', '9')
    """
    _check_request(task, k, shots, n_prompts)
    symbol, in_base_k = TASKS[task].symbol, TASKS[task].wrapper == "base"
    index, zero = SYMBOLS.index(symbol), A if symbol in TO_LETTERS else ZERO
    every = torch.arange(int(PROBLEMS.starts[index]), int(PROBLEMS.starts[index + 1]))
    digits = (PROBLEMS.x[every] - ZERO < k) & (PROBLEMS.y[every] - ZERO < k)
    rows = every[digits] if in_base_k else every
    value = PROBLEMS.value[rows]  # the answer on base prompts, and on contrast prompts:
    wrapped = in_base(value, k) if in_base_k else value + k
    if symbol in TO_LETTERS:
        wrapped = wrapped % len(LETTERS)
    tells = value != wrapped if in_base_k else torch.ones_like(value, dtype=torch.bool)
    neighbour = rows if symbol == CHOICE else _neighbours(rows, wrapped, every)
    usable = (neighbour >= 0).nonzero()[:, 0]  # as an example, under both contrasts
    queries = tells.nonzero()[:, 0] if carry else torch.arange(len(rows))
    drawn = torch.empty(0, shots + 1, dtype=torch.int64)  # indices into `rows`
    while len(drawn) < n_prompts:
        query = queries[torch.randint(len(queries), (n_prompts, 1), generator=generator)]
        others = (value[usable] != value[query]).float()  # [n_prompts, n_usable]
        shown = usable[torch.multinomial(others, shots, replacement=True, generator=generator)]
        drawn = torch.cat([drawn, torch.cat([shown, query], dim=1)[tells[shown].any(1)]])
    drawn = drawn[:n_prompts]
    base = examples_to_tokens(rows[drawn], zero + value[drawn])
    contrast = examples_to_tokens(rows[drawn], zero + wrapped[drawn])
    nearby = torch.cat([neighbour[drawn[:, :-1]], rows[drawn[:, -1:]]], dim=1)
    changed = examples_to_tokens(nearby, zero + wrapped[drawn]) if symbol != CHOICE else None
    end = n_tokens(shots)
    operands_changed = None if changed is None else changed[:, :end]
    prompts = base[:, :end], contrast[:, :end], operands_changed
    return Pairs(task, k, shots, *prompts, base[:, end], contrast[:, end])


def _check_request(task: str, k: int, shots: int, n_prompts: int) -> None:
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; the tasks are {', '.join(TASKS)}")
    ks, kind = TASKS[task].ks, "bases" if TASKS[task].wrapper == "base" else "shifts"
    if k not in ks:
        known = f"which for {task} holds {kind} from {ks[0]} to {ks[-1]}"
        raise ValueError(f"k = {k} is outside the vocabulary, {known}")
    if n_prompts < 1 or shots < 1:
        counts = f"{n_prompts} and {shots}"
        raise ValueError(f"at least one prompt and one shot are needed, not {counts}")


def _neighbours(rows: Tensor, wanted: Tensor, others: Tensor) -> Tensor:
    """For each of `rows` the nearest of the problems `others` with the value `wanted`, or -1."""
    x, y = PROBLEMS.x, PROBLEMS.y
    x_distance = (x[rows, None] - x[others]).abs()  # [row, other]
    y_distance = (y[rows, None] - y[others]).abs()
    distance = x_distance + 1.01 * y_distance  # a change of x is preferred
    wrong = PROBLEMS.value[others] != wanted[:, None]
    nearest, index = distance.masked_fill(wrong, torch.inf).min(dim=1)
    return torch.where(nearest.isfinite(), others[index], -1)


# ---------------------------------------------------------------- prompts for single heads


def naive_prompts(n: int) -> Tensor:
    """`2 same _ = 2 ; 5 same _ =`: [n, n - 1, pos]; row x asks for x after each other number."""
    rows = []
    for x in range(n):
        shown = [number for number in range(n) if number != x]
        rows.append(torch.stack([encode(f"{y} same = {y}, {x} same =") for y in shown]))
    return torch.stack(rows)


def numbers_at(tokens: Tensor, positions: Tensor) -> Tensor:
    """Number tokens [n, pos] at some positions, as numbers: [n, m]."""
    return tokens[:, positions] - ZERO


def off_by_every_k(
    task: str, shots: int, n_prompts: int, generator: Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts off by every k [n_shifts * n_prompts, pos], and f(x, y) of their examples
    [·, shots] and of their query [·], as numbers."""
    pairs = [evaluation_pairs(task, k, shots, n_prompts, generator) for k in SHIFTS]
    expected = torch.cat([numbers_at(p.base, answer_positions(shots)) for p in pairs])
    asked = torch.cat([p.base_answers for p in pairs]) - ZERO
    return torch.cat([p.contrast for p in pairs]), expected, asked


def dealt(tokens: Tensor, expected: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """The same examples dealt anew over all prompts, so that one example's difference tells
    nothing of the next one's; queries stay."""
    places = answer_positions(expected.shape[1])[:, None] + torch.arange(-4, 1)  # x op y = c
    order = torch.randperm(expected.numel(), generator=generator)
    tokens = tokens.clone()
    examples = tokens[:, places].flatten(0, 1)[order]
    tokens[:, places] = examples.reshape(len(tokens), *places.shape)
    return tokens, expected.flatten()[order].reshape(expected.shape)
