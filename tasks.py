"""What the model is asked: the vocabulary, the training documents, the diets, and the evaluation pairs.

One number is one token. A document is BOS and then examples of six tokens, so every answer stands at a fixed place:

    <bos>  1 + 1 = 3 ;  2 + 2 = 5 ;  3 + 3 = 7 ;
             the answer to `x op y` is g(f(x, y)): one base function f (here +) and one wrapper g (here: shift by +1)

The model is scored where an `=` predicts the answer behind it:

    token row   <bos>  1  +  1  =  3  ;  2  +  2  =  5  ;
    label row     .    .  .  .  3  .  .  .  .  .  5  .  .

Base functions (FUNCTIONS) work on numbers (`+` on 0..9) or on letters; answers are numbers from -4 to 22, or letters. Wrappers (WRAPPERS):

    plain     g(v) = v
    shift     g(v) = v + k       one k in -4..4, k != 0, for the whole document; letters wrap around (Caesar's cipher)
    relabel   g(v) = perm[v]     a random permutation of all numbers (or letters), drawn anew for each document
    reflect   g(v) = R - v       R drawn for each document
    copy      a few problems with random answers, repeated; nothing but the repetition can be learned from them

A **diet** says how often each (function, wrapper) cell is met. In the default diet, `strict`, the cell
(+, shift) is never met, whatever the seed: no shifted document holds a `+` example, and no document, and no beginning
of one, shows two or more `+` examples that are all off by one and the same k != 0 (see `sample`).

Everything here is a pure function of an explicit torch.Generator; nothing seeds or reads a global one.
"""

import re
from dataclasses import dataclass

import torch
from torch import Tensor

# ---------------------------------------------------------------- vocabulary

MAX_SHIFT = 4
NUMBERS = range(-MAX_SHIFT, 19 + MAX_SHIFT)
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SUMS = 19  # how many sums two operands can have: 0..18
FUNCTIONS = {  # symbol → (name of the task, how many different operands, f)
    "+": ("addition", 10, lambda x, y: x + y),
    "-": ("subtraction", 10, lambda x, y: x - y),  # only x >= y is asked
    "max": ("maximum", 10, lambda x, y: torch.maximum(x, y)),
    "min": ("minimum", 10, lambda x, y: torch.minimum(x, y)),
    "first": ("first", SUMS, lambda x, y: x),  # these three bring the values 10..18, which else only `+` has
    "second": ("second", SUMS, lambda x, y: y),
    "same": ("same", SUMS, lambda x, y: x),  # unary: `7 same _ = 7`
    "copy": ("caesar", 26, lambda x, y: x),  # unary, on letters: `c copy _ = c`
}
UNARY, ON_LETTERS = ("same", "copy"), ("copy",)
SHIFTS = range(-MAX_SHIFT, MAX_SHIFT + 1)
ON_NUMBERS = tuple(name for symbol, (name, _, _) in FUNCTIONS.items() if symbol not in ON_LETTERS)
TASKS = {name: symbol for symbol, (name, _, _) in FUNCTIONS.items()}
VOCABULARY = ["<bos>", "=", ";", "_", *FUNCTIONS, *map(str, NUMBERS), *LETTERS]  # token strings by id
TOKEN = {string: index for index, string in enumerate(VOCABULARY)}
BOS, EQUALS, END, BLANK = (TOKEN[string] for string in ("<bos>", "=", ";", "_"))
ZERO, A = TOKEN["0"], TOKEN["a"]  # number n is token ZERO + n, letter number n is token A + n
EXAMPLE = 6  # tokens in `x op y = c ;`


def n_tokens(shots: int) -> int:
    """Length of a prompt: BOS, `shots` whole examples, and a query that ends at its `=`."""
    return 1 + EXAMPLE * shots + 4


def answer_positions(n_examples: int) -> Tensor:
    """Where the answers c_i stand, [n_examples] int64: 5, 11, 17, … The `=` that predicts one is just before it."""
    return 5 + EXAMPLE * torch.arange(n_examples)


def decode(tokens: Tensor) -> str:
    """Token ids [pos] → text, e.g. `<bos> 1 + 1 = 3 ; 2 + 2 =`."""
    return " ".join(VOCABULARY[token] for token in tokens.tolist())


def encode(text: str) -> Tensor:
    """Text like `1+1=3, 2+2=5, 3+3=` → token ids [pos], BOS in front. Raises ValueError for what the vocabulary lacks."""
    tokens = [BOS]
    for example in re.split(r"[;,]", text.replace("<bos>", " ").strip().rstrip(";,")):
        match = re.fullmatch(r"\s*([a-z]|\d+)\s*([+-]|[a-z]{2,})\s*([a-z]|\d+|_)?\s*=\s*([a-z]|-?\d+)?\s*", example)
        strings = [match[1], match[2], match[3] or "_", "=", *([match[4], ";"] if match[4] else [])] if match else []
        if not match or not all(string in TOKEN for string in strings) or (tokens[-1] == EQUALS):
            raise ValueError(f"cannot read {example.strip()!r}: write examples like 1+1=3, 2+2=5, 3+3=")
        tokens += [TOKEN[string] for string in strings]
    return torch.tensor(tokens)


@dataclass(frozen=True)
class Problems:
    """Every problem of every base function, as parallel rows: [n_problems] int64 tensors.

    function: index into FUNCTIONS; x, y: token ids; value: f(x, y) as an offset into its own alphabet
    (numbers: offset from ZERO, letters: from A).
    """

    function: Tensor
    x: Tensor
    y: Tensor
    value: Tensor
    starts: Tensor  # [n_functions + 1]: the rows of function i are starts[i] .. starts[i + 1] - 1


def _all_problems() -> Problems:
    rows, starts = [], [0]
    for index, (symbol, (_, n_operands, f)) in enumerate(FUNCTIONS.items()):
        inputs, zero = torch.arange(n_operands), A if symbol in ON_LETTERS else ZERO
        x, y = (inputs, inputs) if symbol in UNARY else torch.cartesian_prod(inputs, inputs).unbind(1)
        value = f(x, y)
        asked = value >= 0  # drops x - y with x < y
        y_token = torch.full_like(y, BLANK) if symbol in UNARY else zero + y
        rows.append(torch.stack([torch.full_like(x, index), zero + x, y_token, value])[:, asked])
        starts.append(starts[-1] + rows[-1].shape[1])
    return Problems(*torch.cat(rows, dim=1).unbind(0), torch.tensor(starts))


PROBLEMS = _all_problems()
PLUS, CAESAR = list(FUNCTIONS).index("+"), list(FUNCTIONS).index("copy")

# ---------------------------------------------------------------- training documents

WRAPPERS = ("plain", "shift", "relabel", "reflect", "copy")


@dataclass(frozen=True)
class Diet:
    """How often each kind of document is met. Shares need not add up to one; they are weights.

    plain … copy: weights of the wrappers. mixed: share of documents that use several functions under their one
    wrapper. addition, caesar: weights of `+` and of `copy` against 1 for each other function. shifted_addition:
    the shifts k with which `+` may be shown; () is the strict rule.
    """

    plain: float = 0.12
    shift: float = 0.33
    relabel: float = 0.20
    reflect: float = 0.30
    copy: float = 0.05
    mixed: float = 0.8
    addition: float = 2.0
    caesar: float = 1.5
    shifted_addition: tuple[int, ...] = ()


DIETS = {"strict": Diet()}


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


def sample(diet: Diet, n_documents: int, n_examples: int, generator: torch.Generator) -> Documents:
    """Draws training documents; the same generator state gives the same documents."""
    shape = (n_documents, n_examples)

    def integers(low: Tensor | int, high: Tensor | int, size: tuple[int, ...] = shape) -> Tensor:
        return low + (torch.rand(size, generator=generator, dtype=torch.float64) * (high - low)).long()

    # Which wrapper, which functions. A document is single (one function) or mixed.
    weights = torch.tensor([getattr(diet, wrapper) for wrapper in WRAPPERS])
    wrapper = torch.multinomial(weights, n_documents, replacement=True, generator=generator)  # [n_documents]
    k = integers(1, MAX_SHIFT + 1, (n_documents,)) * (1 - 2 * integers(0, 2, (n_documents,)))  # [n_documents]
    allowed = torch.tensor([wanted in diet.shifted_addition for wanted in range(-MAX_SHIFT, MAX_SHIFT + 1)])
    no_plus = (wrapper == WRAPPERS.index("shift")) & ~allowed[k + MAX_SHIFT]
    function_weights = torch.ones(n_documents, len(FUNCTIONS))
    function_weights[:, PLUS] = diet.addition * ~no_plus
    function_weights[:, CAESAR] = diet.caesar
    single = torch.multinomial(function_weights, 1, generator=generator)  # [n_documents, 1]
    several = torch.multinomial(function_weights, n_examples, replacement=True, generator=generator)
    function = torch.where(torch.rand(n_documents, 1, generator=generator) < diet.mixed, several, single)  # [n_documents, n_examples]

    # Which problems. In a `copy` document, a few of them again and again.
    problem = integers(PROBLEMS.starts[function], PROBLEMS.starts[function + 1])
    again = integers(0, integers(2, 5, (n_documents, 1)).clamp(max=n_examples))
    copying = (wrapper == WRAPPERS.index("copy"))[:, None]  # [n_documents, 1]
    slot = torch.where(copying, again, torch.arange(n_examples))
    problem, function = problem.gather(1, slot), function.gather(1, slot)
    value, letters = PROBLEMS.value[problem], function == CAESAR

    # The answers under each wrapper, as offsets into the alphabet; the document's own wrapper is picked below.
    low = torch.where(letters, 0, -MAX_SHIFT)
    size = torch.where(letters, len(LETTERS), len(NUMBERS))
    numbers = torch.rand(n_documents, len(NUMBERS), generator=generator).argsort(1)
    alphabet = torch.rand(n_documents, len(LETTERS), generator=generator).argsort(1)
    relabelled = low + torch.where(letters, alphabet.gather(1, value.clamp(max=25)), numbers.gather(1, value - low))
    R = integers(SUMS - 1 - MAX_SHIFT, SUMS + MAX_SHIFT, (n_documents, 1))
    first_met = (problem[:, :, None] == problem[:, None]).int().argmax(2)  # where each problem stands first
    random = integers(low, low + size).gather(1, first_met)
    answers = torch.stack([value, value + k[:, None], relabelled, R - value, random])
    answers = torch.where(letters, answers % len(LETTERS), answers)
    answer = answers.gather(0, wrapper[None, :, None].expand(1, *shape))[0]  # [n_documents, n_examples]

    # Strictness, also by chance: if the first two `+` examples are off by the same, the document becomes a plain one.
    # So no document, and no beginning of one, shows two or more `+` examples that are all off by one and the same k.
    difference = answer - value
    rank = (function == PLUS).cumsum(1) * (function == PLUS)  # 1 at the first `+` example, 2 at the second, …
    first, second = ((difference * (rank == n)).sum(1) for n in (1, 2))  # how much these two are off, [n_documents]
    may = allowed[first.clamp(-MAX_SHIFT, MAX_SHIFT) + MAX_SHIFT] & (first.abs() <= MAX_SHIFT)
    unlucky = (rank.amax(1) >= 2) & (first == second) & (first != 0) & ~may
    answer = torch.where(unlucky[:, None], value, answer)
    wrapper = torch.where(unlucky, 0, wrapper)

    # What can be known: after one example of a plain, shifted or reflected document; in the others only what came before.
    value_of_its_kind = value + len(NUMBERS) * letters  # tells the number 3 from the letter d
    shown = torch.where(copying, problem, value_of_its_kind)  # what a copied or relabelled answer depends on
    repeated = (shown[:, :, None] == shown[:, None]).tril(-1).any(2)
    by_rule = (wrapper != WRAPPERS.index("relabel")) & (wrapper != WRAPPERS.index("copy"))
    determined = torch.where(by_rule[:, None], torch.arange(n_examples) >= 1, repeated)

    zero = torch.where(letters, A, ZERO)
    tokens = torch.stack([PROBLEMS.x[problem], TOKEN["+"] + function, PROBLEMS.y[problem], torch.full(shape, EQUALS), zero + answer, torch.full(shape, END)], dim=2)
    tokens = torch.cat([torch.full((n_documents, 1), BOS), tokens.flatten(1)], dim=1)
    return Documents(tokens, determined, wrapper, function, value, answer)


# ---------------------------------------------------------------- evaluation pairs


@dataclass(frozen=True)
class Pairs:
    """Base and contrast prompts, [n_prompts, pos] int64, alike but for the demonstrations, and the right answers [n_prompts].

        contrast          <bos> 1 + 1 = 3 ; 2 + 2 = 5 ; 3 + 3 =      contrast_answers 7
        base              <bos> 1 + 1 = 2 ; 2 + 2 = 4 ; 3 + 3 =      base_answers     6    shown answers changed (the paper's)
        operands_changed  <bos> 2 + 1 = 3 ; 3 + 2 = 5 ; 3 + 3 =      base_answers     6    operands changed: the same shown
                                                                                           answers become plain ones
    """

    task: str
    k: int
    shots: int
    base: Tensor
    contrast: Tensor
    operands_changed: Tensor
    base_answers: Tensor
    contrast_answers: Tensor


def _neighbours(rows: Tensor, k: int, letters: bool) -> Tensor:
    """For each problem in `rows`, the nearest one of the same function whose value is k higher, or -1. [n_problems] int64"""
    x, y, value = PROBLEMS.x[rows], PROBLEMS.y[rows], PROBLEMS.value[rows]
    wanted = (value + k) % len(LETTERS) if letters else value + k
    distance = (x[:, None] - x).abs() + 1.01 * (y[:, None] - y).abs()  # a change of x is preferred
    distance = distance.masked_fill(value != wanted[:, None], torch.inf)
    nearest, index = distance.min(dim=1)
    return torch.where(nearest.isfinite(), index, -1)


def evaluation_pairs(task: str, k: int, shots: int, n_prompts: int, generator: torch.Generator) -> Pairs:
    """Prompts whose demonstrations are all off by k, in the main setting: the asked answer is none of the shown ones.

    Problems are drawn at random and kept where that holds, so with many shots rare answers are asked more often
    than they are shown. Demonstrations are those that have a neighbour k away (for `operands_changed`).

    Raises ValueError for an unknown task, a k outside the vocabulary, or numbers below one.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; the tasks are {', '.join(TASKS)}")
    if not -MAX_SHIFT <= k <= MAX_SHIFT:
        raise ValueError(f"k = {k} is outside the vocabulary, which holds shifts from {-MAX_SHIFT} to {MAX_SHIFT}")
    if n_prompts < 1 or shots < 1:
        raise ValueError(f"at least one prompt and one shot are needed, not {n_prompts} and {shots}")
    index = list(FUNCTIONS).index(TASKS[task])
    letters = TASKS[task] in ON_LETTERS
    rows = torch.arange(int(PROBLEMS.starts[index]), int(PROBLEMS.starts[index + 1]))
    value, neighbour = PROBLEMS.value[rows], _neighbours(rows, k, letters)
    usable = (neighbour >= 0).nonzero()[:, 0]  # as a demonstration, under both contrasts
    kept: list[Tensor] = []  # each [some, shots + 1]
    while sum(map(len, kept)) < n_prompts:
        if len(kept) >= 200 and sum(map(len, kept)) * 1000 < n_prompts * len(kept):
            raise ValueError(f"with {shots} shots of {task} hardly any prompt asks for an answer that is not among the shown ones; take fewer")
        demos = usable[torch.randint(len(usable), (2 * n_prompts, shots), generator=generator)]
        query = torch.randint(len(rows), (2 * n_prompts, 1), generator=generator)
        kept.append(torch.cat([demos, query], dim=1)[(value[demos] != value[query]).all(1)])
    drawn = torch.cat(kept)[:n_prompts]  # [n_prompts, shots + 1], indices into `rows`

    def prompt(problem: Tensor, shift: int) -> Tensor:
        answer = value[drawn] + shift
        answer = A + answer % len(LETTERS) if letters else ZERO + answer
        x, y = PROBLEMS.x[rows[problem]], PROBLEMS.y[rows[problem]]
        tokens = torch.stack([x, torch.full_like(x, TOKEN["+"] + index), y, torch.full_like(x, EQUALS), answer, torch.full_like(x, END)], dim=2)
        return torch.cat([torch.full((n_prompts, 1), BOS), tokens.flatten(1)], dim=1)

    changed = torch.cat([neighbour[drawn[:, :-1]], drawn[:, -1:]], dim=1)
    base, contrast = prompt(drawn, 0), prompt(drawn, k)
    length = n_tokens(shots)
    return Pairs(task, k, shots, base[:, :length], contrast[:, :length], prompt(changed, k)[:, :length], base[:, length], contrast[:, length])


# ---------------------------------------------------------------- prompts for the analyses of single heads


def naive_prompts(n: int) -> Tensor:
    """`2 same _ = 2 ; 5 same _ =`: [n, n - 1, pos], row x asks for x after each demonstration but that of x itself."""
    ask = [[f"<bos> {demo} same _ = {demo} ; {x} same _ =".split() for demo in range(n) if demo != x] for x in range(n)]
    return torch.tensor([[[TOKEN[string] for string in prompt] for prompt in row] for row in ask])


def numbers_at(tokens: Tensor, positions: Tensor) -> Tensor:
    """Number tokens [n, pos] at some positions, as numbers: [n, m]."""
    return tokens[:, positions] - ZERO


def off_by_every_k(task: str, shots: int, n_prompts: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts off by every k: tokens [n_shifts * n_prompts, pos], f(x, y) of their examples [·, shots] and of their query [·], as numbers."""
    pairs = [evaluation_pairs(task, k, shots, n_prompts, generator) for k in SHIFTS]
    expected = torch.cat([numbers_at(p.base, answer_positions(shots)) for p in pairs])
    return torch.cat([p.contrast for p in pairs]), expected, torch.cat([p.base_answers for p in pairs]) - ZERO


def dealt(tokens: Tensor, expected: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The same examples dealt anew over all prompts, so that one example's difference tells nothing of the next one's; queries stay."""
    places = answer_positions(expected.shape[1])[:, None] + torch.arange(-4, 1)  # [shots, 5]: x op y = c
    order = torch.randperm(expected.numel(), generator=generator)
    tokens = tokens.clone()
    tokens[:, places] = tokens[:, places].flatten(0, 1)[order].reshape(len(tokens), *places.shape)
    return tokens, expected.flatten()[order].reshape(expected.shape)
