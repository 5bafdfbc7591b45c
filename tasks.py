"""What the model is asked, and what it is trained on.

The question of the whole project is three prompts side by side (`Pairs`), and what follows each:

    contrast          <bos> 1 + 1 = 3 ; 2 + 2 = 5 ; 3 + 3 =   7   every example is off by one
    base              <bos> 1 + 1 = 2 ; 2 + 2 = 4 ; 3 + 3 =   6   the shown answers changed
    operands_changed  <bos> 2 + 1 = 3 ; 3 + 2 = 5 ; 3 + 3 =   6   the operands changed instead

In training no function is ever shifted by +1, and addition never at all. One number is one token. A
document is <bos> and then examples of six tokens, so every answer stands at a fixed place. The
model is scored where an `=` predicts an answer that those before it determine (all off by +2 here):

    token row   <bos>  7  max  2  =  9  ;  4  first  9  =  6  ;
    label row     .    .   .   .  .  .  .  .    .    .  6  .  .

The answer to `x op y` is g(f(x, y)): one function f for each symbol (FUNCTIONS), and one
wrapper g for the whole document (WRAPPERS). f gives a number from 0 to 18 or a letter, g(f) one
from -4 to 30 or a letter. `choice` is multiple choice, the letter of the largest of three,
`3 7 5 = b`; its second option stands where others have their symbol.

    plain     g(v) = v
    shift     g(v) = v + k        k in -4..4, not 0, not 1; letters wrap around (Caesar's cipher)
    base      g(v) = v in base k  k in 6..8; the numeral is read as a number: 11 in base 8 is 13
    relabel   g(v) = perm[v]      a random permutation of all numbers, another of all letters
    reflect   g(v) = R - v        R in 14..22; letters wrap around
    copy      a few problems with random answers, repeated (not the function of this name)
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from minifunc.support import checks, rows, vocabulary
from minifunc.support.settled import settled  # same results, whatever torch's defaults are

MAX_SHIFT = 4
SHIFTS, BASES = range(-MAX_SHIFT, MAX_SHIFT + 1), range(6, 10)
NUMBERS = range(-MAX_SHIFT, 31)  # 18 in base 6 is 30
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SUMS, CHOICE = 19, "choice"  # two operands have sums from 0 to 18

# symbol → (the task's name, how many different operands, f)
FUNCTIONS: dict[str, tuple[str, int, Callable[..., int]]] = {
    "+": ("addition", 10, lambda x, y: x + y),
    "-": ("subtraction", 10, lambda x, y: x - y),  # only x >= y is asked
    "max": ("maximum", SUMS, max),  # where SUMS stands, values go up to 18, as of `+`
    "min": ("minimum", 10, min),
    "first": ("first", SUMS, lambda x, y: x),
    "second": ("second", SUMS, lambda x, y: y),
    "same": ("same", SUMS, lambda x: x),  # of one number: `7 same _ = 7`
    "copy": ("caesar", 26, lambda x: x),  # of one letter: `c copy _ = c`
    CHOICE: ("choice", 10, lambda *options: options.index(max(options))),
}
SYMBOLS = tuple(FUNCTIONS)
ON_LETTERS, TO_LETTERS = ("copy",), ("copy", CHOICE)
N_OPERANDS = {"same": 1, "copy": 1, CHOICE: 3}  # of all others: 2
ON_NUMBERS = tuple(FUNCTIONS[symbol][0] for symbol in SYMBOLS if symbol not in TO_LETTERS)
VOCABULARY = ["<bos>", "=", ";", "_", *SYMBOLS[:-1], *map(str, NUMBERS), *LETTERS]  # by token id
TOKEN = {string: index for index, string in enumerate(VOCABULARY)}
BOS, EQUALS, END, BLANK = (TOKEN[string] for string in ("<bos>", "=", ";", "_"))
ZERO, A = TOKEN["0"], TOKEN["a"]  # number n is token ZERO + n, letter number n is token A + n
WRAPPERS = ("plain", "shift", "base", "relabel", "reflect", "copy")
EXAMPLE = 6  # tokens in `x op y = c ;`


def n_tokens(shots: int) -> int:
    """Length of a prompt: <bos>, `shots` whole examples, and a query that ends at its `=`."""
    return 1 + EXAMPLE * checks.counted("shots", shots, 0) + 4


def answer_positions(n_examples: int, device: torch.device | str = "cpu") -> Tensor:
    """Where the answers stand: 5, 11, 17, … [n_examples] int64. Each is predicted at its `=`."""
    return 5 + EXAMPLE * torch.arange(checks.counted("n_examples", n_examples, 0), device=device)


def encode(text: str) -> Tensor:
    """Text like `1+1=3, 2+2=` → token ids [pos] int64. Raises ValueError for what has no tokens."""
    return torch.tensor([BOS, *vocabulary.read_examples(text, TOKEN)], device="cpu")


def decode(tokens: Tensor) -> str:
    """Token ids [pos] → text like `<bos> 1 + 1 = 2 ; 2 + 2 =`."""
    return " ".join(VOCABULARY[token] for token in checks.token_list(tokens, len(VOCABULARY)))


class Problems(NamedTuple):
    """Every problem of every function, as parallel columns: [n_problems] int64 each."""

    function: Tensor  # index into SYMBOLS
    x: Tensor  # token ids of the first three places
    op: Tensor
    y: Tensor
    value: Tensor  # f(x, y): n for a number n, 0..25 for a letter; answers in `Documents` likewise


def _all_problems() -> Problems:
    table = []
    for index, (symbol, (_, n, f)) in enumerate(FUNCTIONS.items()):
        zero = A if symbol in ON_LETTERS else ZERO
        for operands in product(range(n), repeat=N_OPERANDS.get(symbol, 2)):
            value = f(*operands)
            tokens = [zero + operand for operand in operands]
            if symbol != CHOICE:
                tokens.insert(1, TOKEN[symbol])
            elif len(set(operands)) < 3:
                continue  # two of them may be the largest
            if value >= 0:
                table.append([index, *tokens, BLANK][:4] + [value])
    return Problems(*torch.tensor(table, device="cpu").T)


PROBLEMS = _all_problems()
PLUS = SYMBOLS.index("+")
LETTERED = torch.tensor([symbol in TO_LETTERS for symbol in SYMBOLS], device="cpu")  # [n_functions]


def in_base(value: Tensor, k: Tensor | int) -> Tensor:
    """What the numeral in base k reads as in base 10: 11 in base 8 is 13. For values < k * k."""
    return checks.numerals(value, k) + (10 - k) * (value // k)


def examples_to_tokens(problem: Tensor, answer: Tensor) -> Tensor:
    """Rows of PROBLEMS and token ids of answers, both [n_documents, n_examples] → [·, pos]."""
    x, op, y = PROBLEMS.x[problem], PROBLEMS.op[problem], PROBLEMS.y[problem]
    equals, end = torch.full_like(problem, EQUALS), torch.full_like(problem, END)
    examples = torch.stack([x, op, y, equals, answer, end], dim=2)  # [document, example, 6]
    return torch.cat([problem.new_full((len(problem), 1), BOS), examples.flatten(1)], dim=1)


# Cells (wrapper, function) that the default never shows. No document begins with two or more that
# look so by chance (`looks_held_out`); letters under `base` and `reflect` are left aside.
HELD_OUT = (("shift", "+"), ("shift", CHOICE), ("base", "+"), ("base", "copy"), ("base", CHOICE))


@dataclass(frozen=True)
class Diet:
    """How documents are drawn. The defaults here are the diet `strict`. ValueError for nonsense."""

    name: str
    # weights of the wrappers, which need not sum to 1; step 4 then makes some documents plain
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
    shifts: tuple[int, ...] = tuple(k for k in SHIFTS if k)  # those that any function is shifted by
    bases: tuple[int, ...] = tuple(BASES)  # those that any function is written in
    functions: tuple[str, ...] = SYMBOLS  # those that are met at all
    never: tuple[tuple[str, str], ...] = HELD_OUT  # cells held out, see `looks_held_out`

    def __post_init__(self) -> None:
        checks.check_diet(self, WRAPPERS, SYMBOLS, SHIFTS, BASES)

    def weight(self, symbol: str) -> float:
        """How often a function is met, as a weight; 0 where it is not met at all."""
        own = {"+": self.addition, "copy": self.caesar, CHOICE: self.choice}
        return own.get(symbol, 1.0) if symbol in self.functions else 0.0


DEFAULT_DIET = Diet(  # base 9 would be off by one as well, from 9 to 17
    "nothing_by_one", even_sums=True, shifts=(-4, -3, -2, -1, 2, 3, 4), bases=(6, 7, 8)
)
DIETS = {"strict": Diet("strict"), DEFAULT_DIET.name: DEFAULT_DIET}


class Rules(NamedTuple):
    """What each document does to its values, [n_documents] each."""

    wrapper: Tensor  # int64, index into WRAPPERS
    k: Tensor  # int64 in -4..4, not 0; used under `shift`
    base: Tensor  # int64 in 6..9; used under `base`
    allows_plus: Tensor  # bool: `+` may be shown here although it is held out


@dataclass(frozen=True)
class Documents:
    """A batch of documents, with what made it kept beside it."""

    tokens: Tensor  # [n_documents, pos] int64
    determined: Tensor  # [n_documents, n_examples] bool: do earlier examples fix the answer?
    wrapper: Tensor  # [n_documents] int64, index into WRAPPERS
    function: Tensor  # [n_documents, n_examples] int64, index into SYMBOLS
    value: Tensor  # [n_documents, n_examples] int64, f(x, y)
    answer: Tensor  # [n_documents, n_examples] int64, g(f(x, y))


def sample(diet: Diet, n_documents: int, n_examples: int, generator: Generator) -> Documents:
    """Draws training documents in five steps. The same generator state gives the same ones."""
    rules = draw_rules(diet, checks.counted("n_documents", n_documents), generator)
    problem = draw_problems(diet, rules, checks.counted("n_examples", n_examples), generator)
    answer = draw_answers(rules, problem, generator)
    value, function = PROBLEMS.value[problem], PROBLEMS.function[problem]
    made_plain = looks_held_out(diet, problem, answer) & ~rules.allows_plus  # [n_documents]
    answer = torch.where(made_plain[:, None], value, answer)
    wrapper = torch.where(made_plain, WRAPPERS.index("plain"), rules.wrapper)
    known = determined(wrapper, problem, answer)
    tokens = examples_to_tokens(problem, torch.where(LETTERED[function], A, ZERO) + answer)
    return Documents(tokens, known, wrapper, function, value, answer)


@settled
def draw_rules(diet: Diet, n_documents: int, generator: Generator) -> Rules:
    """Step 1: which wrapper each document has. One column is one document:

    wrapper  shift  base  relabel  plain
    k           -2     3        2     -4    used in the first
    base         7     8        6      7    used in the second
    """
    shares = torch.tensor([getattr(diet, wrapper) for wrapper in WRAPPERS], dtype=torch.float32)
    wrapper = torch.multinomial(shares, n_documents, replacement=True, generator=generator)
    k = rows.integers(1, MAX_SHIFT + 1, wrapper.shape, generator)
    k = k * (1 - 2 * rows.integers(0, 2, wrapper.shape, generator))  # times 1 or -1
    k = rows.redrawn(k, diet.shifts, generator)
    base = rows.among(diet.bases, wrapper.shape, generator)
    allowed = torch.isin(k, torch.tensor(diet.shifted_addition, dtype=torch.int64))
    return Rules(wrapper, k, base, allowed & (wrapper == WRAPPERS.index("shift")))


@settled
def draw_problems(diet: Diet, rules: Rules, n_examples: int, generator: Generator) -> Tensor:
    """Step 2: what is asked, as rows of PROBLEMS, [n_documents, n_examples] int64.

    one function             1 + 1   4 + 0     7 + 9     2 + 2
    mixed                    1 + 1   5 max 2   3 same _  2 + 2
    `copy`: a few, repeated  1 + 1   5 max 2   5 max 2   1 + 1
    """
    weights = torch.tensor([diet.weight(symbol) for symbol in SYMBOLS], dtype=torch.float32)
    weights = weights.repeat(len(rules.wrapper), 1)  # [n_documents, n_functions]
    for wrapper, symbol in diet.never:
        held_out = rules.wrapper == WRAPPERS.index(wrapper)
        if symbol == "+":
            held_out &= ~rules.allows_plus
        weights[held_out, SYMBOLS.index(symbol)] = 0
    one = torch.multinomial(weights, 1, generator=generator)
    several = torch.multinomial(weights, n_examples, replacement=True, generator=generator)
    mixed = torch.rand(len(weights), 1, generator=generator) < diet.mixed
    function = torch.where(mixed, several, one)  # [n_documents, n_examples]

    drawn = torch.rand(function.shape, generator=generator, dtype=torch.float64)
    n_problems = PROBLEMS.function.bincount()  # [n_functions]
    start = n_problems.cumsum(0) - n_problems  # [n_functions]: where each one's problems start
    problem = start[function] + (drawn * n_problems[function]).long()
    if diet.even_sums:
        evenly = start[PLUS] + rows.evenly(drawn, PROBLEMS.value[PROBLEMS.function == PLUS])
        problem = torch.where(function == PLUS, evenly, problem)

    n_different = rows.integers(2, 5, (len(weights), 1), generator).clamp(max=n_examples)
    repeated = rows.integers(0, n_different, problem.shape, generator)
    is_copy = (rules.wrapper == WRAPPERS.index("copy"))[:, None]
    return problem.gather(1, torch.where(is_copy, repeated, torch.arange(n_examples)))


def draw_answers(rules: Rules, problem: Tensor, generator: Generator) -> Tensor:
    """Step 3: the answers, [n_documents, n_examples] int64. One problem, under each wrapper:

    problem          1 + 1   5 max 8   8 first 0
    plain                2         8           8
    shift, k = 2         4        10          10
    base 6               2        12          12
    relabel             17         5           5    perm[2] = 17, perm[8] = 5
    reflect, R = 16     14         8           8
    copy                -3        20          11    random; the same for the same problem
    """
    value, letters = PROBLEMS.value[problem], LETTERED[PROBLEMS.function[problem]]
    low = torch.where(letters, 0, NUMBERS[0])
    high = torch.where(letters, len(LETTERS), NUMBERS[-1] + 1)
    number = rows.permuted(value - low, len(NUMBERS), generator)
    letter = rows.permuted(value.clamp(max=25), len(LETTERS), generator)
    relabelled = low + torch.where(letters, letter, number)
    R = rows.integers(SUMS - 1 - MAX_SHIFT, SUMS + MAX_SHIFT, (len(problem), 1), generator)
    random = rows.integers(low, high, problem.shape, generator)
    random = random.gather(1, (problem[:, :, None] == problem[:, None]).int().argmax(2))
    shifted, based = value + rules.k[:, None], in_base(value, rules.base[:, None])
    answers = torch.stack([value, shifted, based, relabelled, R - value, random])  # as WRAPPERS
    answers = torch.where(letters, answers % len(LETTERS), answers)
    return answers[rules.wrapper, torch.arange(len(problem), device=problem.device)]


def looks_held_out(diet: Diet, problem: Tensor, answer: Tensor) -> Tensor:
    """Step 4: which documents begin as if they showed a cell held out, [n_documents] bool.

    1 + 1 = 3 ; 5 max 2 = 9 ; 2 + 2 = 5 ;     yes: both sums so far are off by 1
    1 + 1 = 3 ; 5 max 2 = 9 ; 2 + 2 = 9 ;     no: one is off by 1, one by 5
    1 + 1 = 2 ; 5 max 2 = 9 ; 4 + 4 = 12 ;    yes: both sums are right in base 6
    1 + 1 = 4 ; 5 max 2 = 7 ; 4 + 4 = 6 ;     yes, if no function is ever shifted by 2
    """
    function, value = PROBLEMS.function[problem], PROBLEMS.value[problem]
    k, letters = answer - value, LETTERED[function]
    k = torch.where(letters, (k + 13) % 26 - 13, k)  # between letters the short way around;
    k = torch.where(letters & (k.abs() > MAX_SHIFT), 0, k)  # further off is no shift of letters
    unshown = torch.tensor([k for k in SHIFTS if k and k not in diet.shifts], device="cpu")
    found = (k[:, :2, None] == unshown).all(1).any(1)  # of whatever functions
    for wrapper, symbol in diet.never:
        asked, has_numbers = function == SYMBOLS.index(symbol), symbol not in TO_LETTERS
        begins = torch.zeros_like(asked)  # [n_documents, n_examples]: up to there, as if it did
        if wrapper == "shift":
            begins = rows.same_so_far(k, asked) & rows.all_so_far(k != 0, asked)
        elif wrapper == "base" and has_numbers:
            right = [rows.all_so_far(answer == in_base(value, base), asked) for base in BASES]
            begins = torch.stack(right).any(0) & ~rows.all_so_far(answer == value, asked)
        elif wrapper == "reflect" and has_numbers:
            begins = rows.same_so_far(answer + value, asked) & ~rows.same_so_far(value, asked)
        found |= (begins & (asked.cumsum(1) >= 2)).any(1)
    return found


def determined(wrapper: Tensor, problem: Tensor, answer: Tensor) -> Tensor:
    """Step 5: which answers follow from those before them, [n_documents, n_examples] bool.

    shift    1 - 1 = 2 ; 2 - 1 = 3 ; 4 max 3 = 6 ;     . * *  one example tells k
    base     1 max 1 = 1 ; 1 max 9 = 13 ; 8 - 0 = 12   . . *  if unchanged, or k was told before
    relabel  1 + 1 = 7 ; 4 + 4 = 3 ; 2 + 0 = 7 ;       . . *  2 was 7 before
    """
    value, letters = PROBLEMS.value[problem], LETTERED[PROBLEMS.function[problem]]
    after_one = torch.ones_like(problem).cumsum(1) > 1  # all but the first
    after_change = after_one & ((answer == value) | ((answer != value).cumsum(1) >= 2))
    value_met = rows.met_before(value + len(NUMBERS) * letters)  # the number 3 is not the letter d
    # In the order of WRAPPERS:
    known = [after_one, after_one, after_change, value_met, after_one, rows.met_before(problem)]
    return torch.stack(known)[wrapper, torch.arange(len(problem), device=problem.device)]


class Task(NamedTuple):
    """The function `symbol` as it is, against the same under `wrapper` with one of `ks`."""

    symbol: str
    wrapper: str
    ks: range


TASKS = {name: Task(symbol, "shift", SHIFTS) for symbol, (name, _, _) in FUNCTIONS.items()}
TASKS["base_addition"] = Task("+", "base", BASES)


@dataclass(frozen=True)
class Pairs:
    """Prompts as on top of this file, [n_prompts, pos] int64, and their answers [n_prompts].
    In base-k addition contrast is `5 + 6 = 13` (k = 8) and base `5 + 6 = 11`; where nothing is
    carried they agree. Base and contrast prompts never show their own answer. operands_changed
    does in nearly half (addition, k = 1, 8 shots). `choice` has none: of three options none is `d`.
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


@settled
def evaluation_pairs(
    task: str, k: int, shots: int, n_prompts: int, generator: Generator, carry: bool = False
) -> Pairs:
    """Prompts whose examples are all off by k, or in base k: contrast, and the others beside it.
    The query is any problem; examples have another answer, and a nearby problem has the shown one
    (for operands_changed, where the asked answer may be shown: see `Pairs`). In base k operands are
    below k, and an example carries; with `carry` the query too. Raises ValueError for a task or k
    that there is not, or numbers below one.
    """
    checks.check_request(TASKS, task, k, (n_prompts, shots))
    symbol, in_base_k = TASKS[task].symbol, TASKS[task].wrapper == "base"
    every = (PROBLEMS.function == SYMBOLS.index(symbol)).nonzero()[:, 0]
    digit = torch.maximum(PROBLEMS.x, PROBLEMS.y)[every] - ZERO  # the larger one
    asked = every[digit < k] if in_base_k else every
    value = PROBLEMS.value[asked]  # the answer on base prompts, and on contrast prompts:
    wrapped = in_base(value, k) if in_base_k else value + k
    zero = ZERO
    if symbol in TO_LETTERS:
        wrapped, zero = wrapped % len(LETTERS), A
    tells = (value != wrapped) | (not in_base_k)  # in base k only what carries tells the rule
    operands = torch.stack([PROBLEMS.x, PROBLEMS.y], dim=1)
    has_shown = PROBLEMS.value[every] == wrapped[:, None]  # [n_asked, n_every]: shown answer?
    near = rows.nearest(operands[asked], operands[every], has_shown)
    neighbour = asked if symbol == CHOICE else torch.where(near < 0, near, every[near])  # -1: none
    usable = (neighbour >= 0).nonzero()[:, 0]  # as an example, under both contrasts
    queries = tells.nonzero()[:, 0] if carry else torch.arange(len(asked))
    drawn = torch.empty(0, shots + 1, dtype=torch.int64)  # indices into `asked`
    while len(drawn) < n_prompts:
        query = queries[torch.randint(len(queries), (n_prompts, 1), generator=generator)]
        others = (value[usable] != value[query]).float()  # [n_prompts, n_usable]
        shown = usable[torch.multinomial(others, shots, replacement=True, generator=generator)]
        drawn = torch.cat([drawn, torch.cat([shown, query], dim=1)[tells[shown].any(1)]])
    drawn = drawn[:n_prompts]
    nearby = torch.cat([neighbour[drawn[:, :-1]], asked[drawn[:, -1:]]], dim=1)
    base = examples_to_tokens(asked[drawn], zero + value[drawn])
    contrast = examples_to_tokens(asked[drawn], zero + wrapped[drawn])
    changed = examples_to_tokens(nearby, zero + wrapped[drawn])
    end = n_tokens(shots)
    prompts = base[:, :end], contrast[:, :end], None if symbol == CHOICE else changed[:, :end]
    return Pairs(task, k, shots, *prompts, base[:, end], contrast[:, end])
