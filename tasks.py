"""What the model is asked: the vocabulary, the training documents, the diets, and the evaluation pairs.

One number is one token. A document is BOS and then examples of six tokens, so every answer stands at a fixed place:

    <bos>  1 + 1 = 3 ;  2 + 2 = 5 ;  3 + 3 = 7 ;
             the answer to `x op y` is g(f(x, y)): one base function f (here +) and one wrapper g (here: shift by +1)

The model is scored where an `=` predicts the answer behind it:

    token row   <bos>  1  +  1  =  3  ;  2  +  2  =  5  ;
    label row     .    .  .  .  3  .  .  .  .  .  5  .  .

Base functions (FUNCTIONS) work on numbers (`+` on 0..9) and answer with numbers (from -4 to 30) or letters. One of them, `choice`,
is multiple choice: three options, and the letter of the largest, `3 7 5 = b ;`. It has its second option where others have their symbol.
Wrappers (WRAPPERS):

    plain     g(v) = v
    shift     g(v) = v + k       one k in -4..4, k != 0, for the whole document; letters wrap around (Caesar's cipher)
    base      g(v) = v in base k one k in 6..9; the numeral is read as a number: 11 in base 8 is 13. Numbers below k stay. No letters.
    relabel   g(v) = perm[v]     a random permutation of all numbers (or letters), drawn anew for each document
    reflect   g(v) = R - v       R in 14..22, drawn for each document; letters wrap around
    copy      a few problems with random answers, repeated; nothing but the repetition can be learned from them

A **diet** says how often each (function, wrapper) cell is met. In the diet `strict`, and in `even`, the default, which differs from it
in how often each sum is asked, the cells of NEVER are never met, whatever the seed: no document shifted by k, or in base k, holds an
example of `+` or `choice`. And by chance neither: no document, and no beginning of one, shows two or more `+` examples that are all
off by one and the same k != 0, or that all read right in one base and not all in base 10; or two or more `choice` examples that are
all off by one and the same k in -4..4, k != 0 (see `sample`).

Everything here is a pure function of an explicit torch.Generator; nothing seeds or reads a global one.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

# ---------------------------------------------------------------- vocabulary

MAX_SHIFT = 4
SHIFTS, BASES = range(-MAX_SHIFT, MAX_SHIFT + 1), range(6, 10)
NUMBERS = range(-MAX_SHIFT, 31)  # 18 in base 6 is 30
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SUMS = 19  # how many sums two operands can have: 0..18
CHOICE = "choice"
# symbol → (name of the task, how many different operands, f); `choice` alone takes a third operand, in the place of a symbol
FUNCTIONS: dict[str, tuple[str, int, Callable[..., Tensor]]] = {
    "+": ("addition", 10, lambda x, y: x + y),
    "-": ("subtraction", 10, lambda x, y: x - y),  # only x >= y is asked
    "max": ("maximum", SUMS, lambda x, y: torch.maximum(x, y)),
    "min": ("minimum", 10, lambda x, y: torch.minimum(x, y)),
    "first": (
        "first",
        SUMS,
        lambda x, y: x,
    ),  # `max`, this one and the next two bring the values 10..18, which else only `+` has
    "second": ("second", SUMS, lambda x, y: y),
    "same": ("same", SUMS, lambda x, y: x),  # unary: `7 same _ = 7`
    "copy": ("caesar", 26, lambda x, y: x),  # unary, from letters to letters: `c copy _ = c`
    CHOICE: (
        "choice",
        10,
        lambda x, z, y: torch.stack([x, z, y]).argmax(0),
    ),  # from three different numbers to a letter: `3 7 5 = b`
}
UNARY, ON_LETTERS, TO_LETTERS = ("same", "copy"), ("copy",), ("copy", CHOICE)
ON_NUMBERS = tuple(name for symbol, (name, _, _) in FUNCTIONS.items() if symbol not in TO_LETTERS)
VOCABULARY = [
    "<bos>",
    "=",
    ";",
    "_",
    *(symbol for symbol in FUNCTIONS if symbol != CHOICE),
    *map(str, NUMBERS),
    *LETTERS,
]  # token strings by id
TOKEN = {string: index for index, string in enumerate(VOCABULARY)}
BOS, EQUALS, END, BLANK = (TOKEN[string] for string in ("<bos>", "=", ";", "_"))
ZERO, A = TOKEN["0"], TOKEN["a"]  # number n is token ZERO + n, letter number n is token A + n
EXAMPLE = 6  # tokens in `x op y = c ;`


def n_tokens(shots: int) -> int:
    """Length of a prompt: BOS, `shots` whole examples, and a query that ends at its `=`."""
    return 1 + EXAMPLE * shots + 4


def answer_positions(n_examples: int) -> Tensor:
    """Where the answers c_i stand, [n_examples] int64. The `=` that predicts one is just before it.

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
    """Text like `1+1=3, 2+2=5, 3+3=` or `3 7 5=b` → token ids [pos], BOS in front. Raises ValueError for what the vocabulary lacks."""
    tokens = [BOS]
    for example in re.split(r"[;,]", text.replace("<bos>", " ").strip().rstrip(";,")):
        match = re.fullmatch(
            r"\s*([a-z]|\d+)\s*([+-]|[a-z]{2,}|(?<=\s)\d+(?=\s))\s*([a-z]|\d+|_)?\s*=\s*([a-z]|-?\d+)?\s*",
            example,
        )
        strings = (
            [match[1], match[2], match[3] or "_", "=", *([match[4], ";"] if match[4] else [])]
            if match
            else []
        )
        if not match or not all(string in TOKEN for string in strings) or (tokens[-1] == EQUALS):
            raise ValueError(
                f"cannot read {example.strip()!r}: write examples like 1+1=3, 2+2=5, 3+3="
            )
        tokens += [TOKEN[string] for string in strings]
    return torch.tensor(tokens)


@dataclass(frozen=True)
class Problems:
    """Every problem of every base function, as parallel rows: [n_problems] int64 tensors.

    function: index into FUNCTIONS; x, op, y: token ids of the first three places; value: f(x, y) as an offset into
    its own alphabet (numbers: offset from ZERO, letters: from A).
    """

    function: Tensor
    x: Tensor
    op: Tensor
    y: Tensor
    value: Tensor
    starts: Tensor  # [n_functions + 1]: the rows of function i are starts[i] .. starts[i + 1] - 1


def _all_problems() -> Problems:
    rows, starts = [], [0]
    for index, (symbol, (_, n_operands, f)) in enumerate(FUNCTIONS.items()):
        zero, n = A if symbol in ON_LETTERS else ZERO, torch.arange(n_operands)
        if symbol == CHOICE:
            x, z, y = torch.cartesian_prod(n, n, n).unbind(1)
            value, op, asked = f(x, z, y), zero + z, (x != y) & (x != z) & (y != z)
        else:
            x, y = (n, n) if symbol in UNARY else torch.cartesian_prod(n, n).unbind(1)
            value, op = f(x, y), torch.full_like(x, TOKEN[symbol])
            asked = value >= 0  # drops x - y with x < y
        y_token = torch.full_like(y, BLANK) if symbol in UNARY else zero + y
        rows.append(
            torch.stack([torch.full_like(x, index), zero + x, op, y_token, value])[:, asked]
        )
        starts.append(starts[-1] + rows[-1].shape[1])
    function, x, op, y, value = torch.cat(rows, dim=1)
    return Problems(function, x, op, y, value, torch.tensor(starts))


PROBLEMS = _all_problems()
PLUS, CAESAR, MULTIPLE_CHOICE = (list(FUNCTIONS).index(symbol) for symbol in ("+", "copy", CHOICE))
LETTERED = torch.tensor([symbol in TO_LETTERS for symbol in FUNCTIONS])  # [n_functions]
_SUMS = PROBLEMS.value[PROBLEMS.function == PLUS]
UP_TO = (1 / SUMS / _SUMS.bincount()[_SUMS].double()).cumsum(
    0
)  # [100]: the share of `+` problems up to each, where every sum is asked equally often


def in_base(value: Tensor, k: Tensor | int) -> Tensor:
    """What the numeral of `value` in base k reads as in base 10. For values from 0 to k * 10 - 1.

    >>> in_base(torch.tensor([7, 8, 11]), 8)  # 7, "10", "13"
    tensor([ 7, 10, 13])
    """
    return value + (10 - k) * (value // k)


def examples_to_tokens(problem: Tensor, answer: Tensor) -> Tensor:
    """problem (rows of PROBLEMS), answer (token ids), both [n_documents, n_examples] → token ids [n_documents, pos]."""
    equals, end = torch.full_like(problem, EQUALS), torch.full_like(problem, END)
    tokens = torch.stack(
        [PROBLEMS.x[problem], PROBLEMS.op[problem], PROBLEMS.y[problem], equals, answer, end], dim=2
    )
    return torch.cat([torch.full((len(problem), 1), BOS), tokens.flatten(1)], dim=1)


# ---------------------------------------------------------------- training documents

WRAPPERS = ("plain", "shift", "base", "relabel", "reflect", "copy")
NEVER = {
    "shift": ("+", CHOICE),
    "base": ("+", *TO_LETTERS),
}  # wrapper → functions that no document shows under it
CELLS = tuple(
    (wrapper, symbol) for wrapper, symbols in NEVER.items() for symbol in symbols
)  # the same, as (wrapper, function)


@dataclass(frozen=True)
class Diet:
    """How often each kind of document is met. Shares need not add up to one; they are weights.

    plain … copy: weights of the wrappers. mixed: share of documents that use several functions under their one
    wrapper. addition, caesar, choice: weights of `+`, of `copy` and of multiple choice against 1 for each other
    function. even_sums: of `+`, every sum is asked equally often, rather than every pair of operands, which makes 0 and 18 ten times
    as rare as 9. shifted_addition: the shifts k with which `+` may be shown all the same; () is the strict rule. functions:
    those that are met at all. never: the cells (wrapper, function) that are held out. No document of this wrapper then holds an
    example of this function; and for `shift`, for `base` and, of functions on numbers, for `reflect`, none looks by chance as if it did.

    Raises ValueError for names that there are not, and for a wrapper left without any function.
    """

    plain: float = 0.12
    shift: float = 0.33
    base: float = 0.05
    relabel: float = 0.20
    reflect: float = 0.30
    copy: float = 0.05
    mixed: float = 0.8
    addition: float = 2.0
    caesar: float = 1.5
    choice: float = 1.0
    even_sums: bool = False
    shifted_addition: tuple[int, ...] = ()
    functions: tuple[str, ...] = tuple(FUNCTIONS)
    never: tuple[tuple[str, str], ...] = CELLS

    def __post_init__(self) -> None:
        wrappers, symbols = (
            {wrapper for wrapper, _ in self.never},
            {*self.functions, *(symbol for _, symbol in self.never)},
        )
        for what, given, known in (
            ("wrapper", wrappers, WRAPPERS[1:]),
            ("function", symbols, tuple(FUNCTIONS)),
            ("shift", self.shifted_addition, tuple(SHIFTS)),
        ):
            wrong = [name for name in given if name not in known]
            if wrong:
                raise ValueError(
                    f"a diet cannot name the {what} {wrong[0]!r}; it may be {', '.join(map(str, known))}"
                )
        for wrapper in WRAPPERS:
            if getattr(self, wrapper) > 0 and not self.under(wrapper):
                raise ValueError(f"the diet leaves no function to be met under {wrapper}")

    def under(self, wrapper: str) -> list[str]:
        """The functions met under a wrapper, whatever the k."""
        return (
            [symbol for symbol in self.functions if (wrapper, symbol) not in self.never]
            if getattr(self, wrapper) > 0
            else []
        )


def changed(**changes: Any) -> Diet:
    """The diet `strict` with some fields changed. Raises ValueError for a field that there is not."""
    known = [field.name for field in fields(Diet)]
    wrong = [name for name in changes if name not in known]
    if wrong:
        raise ValueError(f"a diet has no field {wrong[0]!r}; its fields are {', '.join(known)}")
    return Diet(**changes)


ALONE = {
    "shift": 0.0,
    "base": 0.0,
    "relabel": 0.0,
    "reflect": 0.0,
    "functions": ("+",),
}  # `+`, and nothing done to it
EVERY_SHIFT = tuple(k for k in SHIFTS if k)
DIETS = {
    # a ladder: each rung adds one kind of document to the one before
    "addition": changed(**ALONE, copy=0.0),
    "copied": changed(**ALONE),
    "shifted": changed(
        relabel=0.0, reflect=0.0, mixed=0.0
    ),  # the other functions, shifted or in base k
    "mixed": changed(relabel=0.0, reflect=0.0),
    "relabelled": changed(reflect=0.0),
    "strict": Diet(),  # and reflected ones
    "even": changed(even_sums=True),  # the same, with every sum as often as any other: the default
    # `strict` without one ingredient (`relabelled` is the one without reflection)
    "no_relabel": changed(relabel=0.0),
    "no_mixed": changed(mixed=0.0),
    "no_copy": changed(copy=0.0),
    # less held out: `+` shifted by every k but one; by the negative ones
    "held_out_cell": changed(shifted_addition=tuple(k for k in EVERY_SHIFT if k != 1)),
    "held_out_half": changed(shifted_addition=tuple(k for k in EVERY_SHIFT if k < 0)),
    # the wrappers that `+` meets, while the other functions meet all
    "plus_plain": changed(never=(*CELLS, ("relabel", "+"), ("reflect", "+"), ("copy", "+"))),
    "plus_relabel": changed(never=(*CELLS, ("reflect", "+"), ("copy", "+"))),
    "plus_reflect": changed(never=(*CELLS, ("relabel", "+"), ("copy", "+"))),
    # the functions that are seen shifted
    "shifted_1": changed(
        never=(
            *CELLS,
            *(("shift", symbol) for symbol in FUNCTIONS if symbol not in ("+", CHOICE, "same")),
        )
    ),
    "shifted_3": changed(
        never=(
            *CELLS,
            *(
                ("shift", symbol)
                for symbol in FUNCTIONS
                if symbol not in ("+", CHOICE, "same", "-", "max")
            ),
        )
    ),
    # the share of `+`
    "addition_low": changed(addition=0.5),
    "addition_high": changed(addition=8.0),
    # other cells held out instead of (+, shift)
    "hold_minus": changed(shifted_addition=EVERY_SHIFT, never=(*CELLS, ("shift", "-"))),
    "hold_max_reflect": changed(shifted_addition=EVERY_SHIFT, never=(*CELLS, ("reflect", "max"))),
}
DEFAULT_DIET = "even"


@dataclass(frozen=True)
class Documents:
    """A batch of documents, with what made it kept beside it.

    tokens [n_documents, pos] int64. determined [n_documents, n_examples] bool: whether the answer follows from
    what stands before it. wrapper [n_documents] (index into WRAPPERS), function and value
    [n_documents, n_examples] (as in Problems), answer [n_documents, n_examples] (offset, after the wrapper).
    """

    tokens: Tensor
    determined: Tensor
    wrapper: Tensor
    function: Tensor
    value: Tensor
    answer: Tensor


def _first(x: Tensor, asked: Tensor) -> Tensor:
    """x at the first place of each row that is asked for; both [n_documents, n_examples] → [n_documents, 1]. Anything where none is."""
    return x.gather(1, asked.int().argmax(1, keepdim=True))


def sample(diet: Diet, n_documents: int, n_examples: int, generator: torch.Generator) -> Documents:
    """Draws training documents; the same generator state gives the same documents.

    >>> documents = sample(DIETS["strict"], 64, 9, torch.Generator().manual_seed(0))
    >>> documents.tokens.shape, documents.answer.shape
    (torch.Size([64, 55]), torch.Size([64, 9]))
    """
    shape = (n_documents, n_examples)

    def integers(low: Tensor | int, high: Tensor | int, size: tuple[int, ...] = shape) -> Tensor:
        return (
            low + (torch.rand(size, generator=generator, dtype=torch.float64) * (high - low)).long()
        )

    # Which wrapper, which functions. A document is single (one function) or mixed.
    weights = torch.tensor([getattr(diet, wrapper) for wrapper in WRAPPERS])
    wrapper = torch.multinomial(
        weights, n_documents, replacement=True, generator=generator
    )  # [n_documents]
    k = integers(1, MAX_SHIFT + 1, (n_documents,)) * (
        1 - 2 * integers(0, 2, (n_documents,))
    )  # [n_documents]
    base = integers(BASES[0], BASES[-1] + 1, (n_documents,))  # [n_documents]
    plus_allowed = (wrapper == WRAPPERS.index("shift")) & torch.tensor(
        [wanted in diet.shifted_addition for wanted in SHIFTS]
    )[k + MAX_SHIFT]
    function_weights = torch.ones(n_documents, len(FUNCTIONS))
    function_weights[:, [PLUS, CAESAR, MULTIPLE_CHOICE]] = torch.tensor(
        [diet.addition, diet.caesar, diet.choice]
    )
    function_weights *= torch.tensor([symbol in diet.functions for symbol in FUNCTIONS])
    for name, symbol in diet.never:
        function_weights[
            (wrapper == WRAPPERS.index(name)) & ~(plus_allowed & (symbol == "+")),
            list(FUNCTIONS).index(symbol),
        ] = 0
    single = torch.multinomial(function_weights, 1, generator=generator)  # [n_documents, 1]
    several = torch.multinomial(function_weights, n_examples, replacement=True, generator=generator)
    function = torch.where(
        torch.rand(n_documents, 1, generator=generator) < diet.mixed, several, single
    )  # [n_documents, n_examples]

    # Which problems. In a `copy` document, a few of them again and again.
    drawn = torch.rand(shape, generator=generator, dtype=torch.float64)
    start, end = PROBLEMS.starts[function], PROBLEMS.starts[function + 1]
    problem = start + (drawn * (end - start)).long()
    if diet.even_sums:
        evenly = torch.searchsorted(UP_TO, drawn, right=True).clamp(max=len(UP_TO) - 1)
        problem = torch.where(function == PLUS, PROBLEMS.starts[PLUS] + evenly, problem)
    again = integers(0, integers(2, 5, (n_documents, 1)).clamp(max=n_examples))
    copying = (wrapper == WRAPPERS.index("copy"))[:, None]  # [n_documents, 1]
    slot = torch.where(copying, again, torch.arange(n_examples))
    problem, function = problem.gather(1, slot), function.gather(1, slot)
    value, letters = PROBLEMS.value[problem], LETTERED[function]

    # The answers under each wrapper, as offsets into the alphabet; the document's own wrapper is picked below.
    low = torch.where(letters, 0, -MAX_SHIFT)
    size = torch.where(letters, len(LETTERS), len(NUMBERS))
    numbers = torch.rand(n_documents, len(NUMBERS), generator=generator).argsort(1)
    alphabet = torch.rand(n_documents, len(LETTERS), generator=generator).argsort(1)
    relabelled = low + torch.where(
        letters, alphabet.gather(1, value.clamp(max=25)), numbers.gather(1, value - low)
    )
    R = integers(SUMS - 1 - MAX_SHIFT, SUMS + MAX_SHIFT, (n_documents, 1))
    first_met = (
        (problem[:, :, None] == problem[:, None]).int().argmax(2)
    )  # where each problem stands first
    random = integers(low, low + size).gather(1, first_met)
    answers = torch.stack(
        [value, value + k[:, None], in_base(value, base[:, None]), relabelled, R - value, random]
    )
    answers = torch.where(letters, answers % len(LETTERS), answers)
    answer = answers.gather(0, wrapper[None, :, None].expand(1, *shape))[
        0
    ]  # [n_documents, n_examples]

    # Strictness, also by chance. If the first two examples of a function held out from `shift` are off by the same (letters: by the
    # same k of ours), or if those of one held out from `base` or `reflect` read right in one base, or as R - v with one R, from the
    # first one on, the document becomes a plain one.
    half = len(LETTERS) // 2
    off = torch.where(
        letters, (answer - value + half) % len(LETTERS) - half, answer - value
    )  # letters: the short way around
    unlucky = torch.zeros(n_documents, dtype=torch.bool)
    for name, symbol in diet.never:
        asked, lettered = function == list(FUNCTIONS).index(symbol), symbol in TO_LETTERS
        if name == "shift":
            rank = asked.cumsum(1) * asked  # 1 at the first such example, 2 at the second, …
            first, second = (
                (off * (rank == n)).sum(1) for n in (1, 2)
            )  # how much these two are off, [n_documents]
            unlucky = unlucky | (
                (rank.amax(1) >= 2)
                & (first == second)
                & (first != 0)
                & (first.abs() <= (MAX_SHIFT if lettered else len(NUMBERS)))
            )
        if name == "base" and not lettered:
            not_plain = (asked & (off != 0)).cummax(1).values
            for some_base in BASES:
                right = (
                    (~asked | (answer == in_base(value, some_base))).cummin(1).values
                )  # so far, [n_documents, n_examples]
                unlucky = unlucky | (right & not_plain & (asked.cumsum(1) >= 2)).any(1)
        if name == "reflect" and not lettered:
            constant, one_value = (
                (~asked | (x == _first(x, asked))).cummin(1).values for x in (answer + value, value)
            )  # so far
            unlucky = unlucky | (constant & ~one_value).any(1)
    unlucky &= ~plus_allowed
    answer = torch.where(unlucky[:, None], value, answer)
    wrapper = torch.where(unlucky, 0, wrapper)

    # What can be known: after one example of a plain, shifted or reflected document; in base k, what is not plain only after
    # something that was not; in the others only what came before.
    value_of_its_kind = value + len(NUMBERS) * letters  # tells the number 3 from the letter d
    shown = torch.where(
        copying, problem, value_of_its_kind
    )  # what a copied or relabelled answer depends on
    repeated = (shown[:, :, None] == shown[:, None]).tril(-1).any(2)
    anything = torch.arange(n_examples).expand(shape) >= 1
    in_its_base = anything & ((answer == value) | ((answer != value).cumsum(1) >= 2))
    known = torch.stack(
        [anything, anything, in_its_base, repeated, anything, repeated]
    )  # in the order of WRAPPERS
    determined = known.gather(0, wrapper[None, :, None].expand(1, *shape))[0]

    tokens = examples_to_tokens(problem, torch.where(letters, A, ZERO) + answer)
    return Documents(tokens, determined, wrapper, function, value, answer)


# ---------------------------------------------------------------- evaluation pairs


@dataclass(frozen=True)
class Task:
    """What a pair of prompts asks: the base function `symbol` as it is against the same under `wrapper`, with one of the `ks`."""

    symbol: str
    wrapper: str
    ks: range

    @property
    def trained(self) -> list[str]:
        """Under which wrappers the strict diet shows this function."""
        return [wrapper for wrapper in WRAPPERS if self.symbol not in NEVER.get(wrapper, ())]

    @property
    def never(self) -> list[str]:
        """And under which it never does."""
        return [wrapper for wrapper in WRAPPERS if self.symbol in NEVER.get(wrapper, ())]


TASKS = {name: Task(symbol, "shift", SHIFTS) for symbol, (name, _, _) in FUNCTIONS.items()} | {
    "base_addition": Task("+", "base", BASES)
}


@dataclass(frozen=True)
class Pairs:
    """Base and contrast prompts, [n_prompts, pos] int64, alike but for the demonstrations, and the right answers [n_prompts].

        contrast          <bos> 1 + 1 = 3 ; 2 + 2 = 5 ; 3 + 3 =      contrast_answers 7
        base              <bos> 1 + 1 = 2 ; 2 + 2 = 4 ; 3 + 3 =      base_answers     6    shown answers changed (the paper's)
        operands_changed  <bos> 2 + 1 = 3 ; 3 + 2 = 5 ; 3 + 3 =      base_answers     6    operands changed: the same shown
                                                                                           answers become plain ones
    In base-k addition, contrast is `5 + 6 = 13` (k = 8) and base `5 + 6 = 11`; where nothing is carried they agree.
    operands_changed is None for multiple choice: of three options none is the fourth.
    """

    task: str
    k: int
    shots: int
    base: Tensor
    contrast: Tensor
    operands_changed: Tensor | None
    base_answers: Tensor
    contrast_answers: Tensor

    @property
    def carry(self) -> Tensor:
        """[n_prompts] bool: whether base and contrast ask for different answers. Always, but for sums in base k that carry nothing."""
        return self.base_answers != self.contrast_answers


def _neighbours(rows: Tensor, wanted: Tensor, others: Tensor) -> Tensor:
    """For each problem in `rows`, the nearest of the problems `others` whose value is `wanted` [n_rows], or -1. [n_rows] int64"""
    x, y = PROBLEMS.x, PROBLEMS.y
    distance = (x[rows, None] - x[others]).abs() + 1.01 * (
        y[rows, None] - y[others]
    ).abs()  # a change of x is preferred
    nearest, index = distance.masked_fill(PROBLEMS.value[others] != wanted[:, None], torch.inf).min(
        dim=1
    )
    return torch.where(nearest.isfinite(), others[index], -1)


def evaluation_pairs(
    task: str, k: int, shots: int, n_prompts: int, generator: torch.Generator, carry: bool = False
) -> Pairs:
    """Prompts whose demonstrations are all off by k (or in base k), in the main setting: the asked answer is none of the shown ones.

    The query is any problem; the demonstrations are drawn from those with another answer that have a neighbour with the shown
    answer (for `operands_changed`; multiple choice: any). In base-k addition operands are digits, below k, and at least one
    demonstration carries; so does the query if `carry` is set.

    Raises ValueError for an unknown task, a k that it does not have, or numbers below one.

    >>> pairs = evaluation_pairs("addition", k=1, shots=2, n_prompts=1, generator=torch.Generator().manual_seed(0))
    >>> for tokens, answer in ((pairs.base, pairs.base_answers), (pairs.contrast, pairs.contrast_answers)):
    ...     print(decode(torch.cat([tokens[0], answer])))
    <bos> 1 + 4 = 5 ; 0 + 5 = 5 ; 4 + 4 = 8
    <bos> 1 + 4 = 6 ; 0 + 5 = 6 ; 4 + 4 = 9
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; the tasks are {', '.join(TASKS)}")
    symbol, based = TASKS[task].symbol, TASKS[task].wrapper == "base"
    if k not in TASKS[task].ks:
        kind, (first, *_, last) = "bases" if based else "shifts", TASKS[task].ks
        raise ValueError(
            f"k = {k} is outside the vocabulary, which for {task} holds {kind} from {first} to {last}"
        )
    if n_prompts < 1 or shots < 1:
        raise ValueError(
            f"at least one prompt and one shot are needed, not {n_prompts} and {shots}"
        )
    index, zero = list(FUNCTIONS).index(symbol), A if symbol in TO_LETTERS else ZERO
    everything = torch.arange(int(PROBLEMS.starts[index]), int(PROBLEMS.starts[index + 1]))
    digits = (PROBLEMS.x[everything] - ZERO < k) & (PROBLEMS.y[everything] - ZERO < k)
    rows = everything[digits] if based else everything
    value = PROBLEMS.value[rows]  # the right answers on base prompts, and on contrast prompts:
    other = (
        in_base(value, k)
        if based
        else (value + k) % len(LETTERS)
        if symbol in TO_LETTERS
        else value + k
    )
    neighbour = rows if symbol == CHOICE else _neighbours(rows, other, everything)
    usable = (neighbour >= 0).nonzero()[:, 0]  # as a demonstration, under both contrasts
    queries = (value != other).nonzero()[:, 0] if carry and based else torch.arange(len(rows))
    kept: list[Tensor] = []  # each [some, shots + 1]
    while sum(map(len, kept)) < n_prompts:
        query = queries[torch.randint(len(queries), (n_prompts, 1), generator=generator)]
        others = (value[usable] != value[query]).float()  # [n_prompts, n_usable]
        demos = usable[torch.multinomial(others, shots, replacement=True, generator=generator)]
        tells = (value != other)[demos].any(1) | (not based)  # in base k, something must carry
        kept.append(torch.cat([demos, query], dim=1)[tells])
    drawn = torch.cat(kept)[:n_prompts]  # [n_prompts, shots + 1], indices into `rows`
    base, contrast = (
        examples_to_tokens(rows[drawn], zero + answer[drawn]) for answer in (value, other)
    )
    changed = torch.cat([neighbour[drawn[:, :-1]], rows[drawn[:, -1:]]], dim=1)
    length = n_tokens(shots)
    operands_changed = (
        None if symbol == CHOICE else examples_to_tokens(changed, zero + other[drawn])[:, :length]
    )
    return Pairs(
        task,
        k,
        shots,
        base[:, :length],
        contrast[:, :length],
        operands_changed,
        base[:, length],
        contrast[:, length],
    )


# ---------------------------------------------------------------- prompts for the analyses of single heads


def naive_prompts(n: int) -> Tensor:
    """`2 same _ = 2 ; 5 same _ =`: [n, n - 1, pos], row x asks for x after each demonstration but that of x itself."""
    ask = [
        [f"<bos> {demo} same _ = {demo} ; {x} same _ =".split() for demo in range(n) if demo != x]
        for x in range(n)
    ]
    return torch.tensor([[[TOKEN[string] for string in prompt] for prompt in row] for row in ask])


def numbers_at(tokens: Tensor, positions: Tensor) -> Tensor:
    """Number tokens [n, pos] at some positions, as numbers: [n, m]."""
    return tokens[:, positions] - ZERO


def off_by_every_k(
    task: str, shots: int, n_prompts: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts off by every k: tokens [n_shifts * n_prompts, pos], f(x, y) of their examples [·, shots] and of their query [·], as numbers."""
    pairs = [evaluation_pairs(task, k, shots, n_prompts, generator) for k in SHIFTS]
    expected = torch.cat([numbers_at(p.base, answer_positions(shots)) for p in pairs])
    return (
        torch.cat([p.contrast for p in pairs]),
        expected,
        torch.cat([p.base_answers for p in pairs]) - ZERO,
    )


def dealt(tokens: Tensor, expected: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The same examples dealt anew over all prompts, so that one example's difference tells nothing of the next one's; queries stay."""
    places = answer_positions(expected.shape[1])[:, None] + torch.arange(
        -4, 1
    )  # [shots, 5]: x op y = c
    order = torch.randperm(expected.numel(), generator=generator)
    tokens = tokens.clone()
    tokens[:, places] = tokens[:, places].flatten(0, 1)[order].reshape(len(tokens), *places.shape)
    return tokens, expected.flatten()[order].reshape(expected.shape)
