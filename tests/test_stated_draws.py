"""How often what is drawn: every value that tasks.py states, with its weight, and no other.

A training distribution that drifts would be seen nowhere else: each document stays a sound one.
"""

from itertools import permutations, product

import pytest
import torch
from torch import Generator

import tasks

N = 20_000
WEIGHTS = {"plain": 0.1, "shift": 0.3, "base": 0.15, "relabel": 0.2, "reflect": 0.2, "copy": 0.05}
FUNCTIONS = {symbol: 1.0 for symbol in tasks.SYMBOLS} | {"+": 3.0, "copy": 1.5, "choice": 2.0}
DIET = tasks.Diet("mix", **WEIGHTS, mixed=0.6, addition=3.0, caesar=1.5, choice=2.0)
PAIRS, WIDE_PAIRS = list(product(range(10), repeat=2)), list(product(range(19), repeat=2))
OPERANDS = {  # all that are asked of each function
    "+": PAIRS,
    "-": [(x, y) for x, y in PAIRS if x >= y],
    "max": WIDE_PAIRS,
    "min": PAIRS,
    "first": WIDE_PAIRS,
    "second": WIDE_PAIRS,
    "same": [(x,) for x in range(19)],
    "copy": [(x,) for x in range(26)],
    "choice": list(permutations(range(10), 3)),
}
LETTERED = ("copy", "choice")


def evenly(values):
    return dict.fromkeys(values, 1.0)


def assert_drawn(values, weights):
    """Each of `values` [n] is drawn in proportion to its weight, within 5 sigma, and no other."""
    n, total = len(values), sum(weights.values())
    found, counts = values.unique(return_counts=True)
    counts = dict(zip(found.tolist(), counts.tolist()))
    assert counts.keys() <= {value for value, weight in weights.items() if weight}
    for value, weight in weights.items():
        share = weight / total
        sigma = (n * share * (1 - share)) ** 0.5
        assert abs(counts.get(value, 0) - n * share) <= 5 * sigma, (value, counts.get(value, 0))


def generator(seed=0):
    return Generator().manual_seed(seed)


def rules_of(wrapper, n=N):
    """The rules of n documents, all under this wrapper."""
    others = dict.fromkeys(tasks.WRAPPERS, 0.0)
    return tasks.draw_rules(tasks.Diet("one", **others | {wrapper: 1.0}), n, generator())


def answers(wrapper, symbol, n=8000):
    """The answers of n documents that hold every problem of a function: [n, n_problems]."""
    rows = (tasks.PROBLEMS.function == tasks.SYMBOLS.index(symbol)).nonzero()[:, 0]
    return tasks.draw_answers(rules_of(wrapper, n), rows.expand(n, -1), generator(1))


RULES = tasks.draw_rules(DIET, N, generator())
PROBLEM = tasks.draw_problems(DIET, RULES, 9, generator(2))  # [n_documents, n_examples]
FUNCTION = tasks.PROBLEMS.function[PROBLEM]
ANY_K, ANY_R = evenly([-4, -3, -2, -1, 1, 2, 3, 4]), evenly(range(14, 23))


def under(wrapper):
    """Which documents are under it, [N] bool."""
    return RULES.wrapper == tasks.WRAPPERS.index(wrapper)


DRAWN = {  # how it is found, and its values with their weights
    "wrapper": (lambda: RULES.wrapper, dict(enumerate(WEIGHTS.values()))),
    "k": (lambda: RULES.k, ANY_K),
    "k of shifted documents": (lambda: RULES.k[under("shift")], ANY_K),
    "base": (lambda: RULES.base, evenly(range(6, 10))),
    "base of documents in a base": (lambda: RULES.base[under("base")], evenly(range(6, 10))),
    "R": (lambda: answers("reflect", "same")[:, 5] + 5, ANY_R),
    "R of letters": (lambda: answers("reflect", "copy")[:, 0] % 26, ANY_R),
    "a relabelled number": (lambda: answers("relabel", "same")[:, 18], evenly(range(-4, 31))),
    "a relabelled letter": (lambda: answers("relabel", "copy")[:, 25], evenly(range(26))),
    "an answer of copy": (lambda: answers("copy", "same")[:, 7], evenly(range(-4, 31))),
    "a letter of copy": (lambda: answers("copy", "copy")[:, 7], evenly(range(26))),
}


@pytest.mark.parametrize("what", DRAWN)
def test_every_value_is_drawn_with_its_weight_and_no_other(what):
    find, weights = DRAWN[what]
    assert_drawn(find(), weights)


@pytest.mark.parametrize("symbol, n_values", [("same", 35), ("copy", 26)])
def test_each_relabelled_document_has_a_permutation_of_its_own_any_of_all(symbol, n_values):
    permuted = answers("relabel", symbol)
    assert len(permuted.unique(dim=0)) == len(permuted)
    assert all(len(row.unique()) == permuted.shape[1] for row in permuted[:100])
    steps = (permuted[:, 1] - permuted[:, 0]) % n_values  # of two different values: any but 0
    assert_drawn(steps, evenly(range(1, n_values)))


def test_the_answers_of_different_problems_are_independent_under_copy():
    random = answers("copy", "same")
    assert_drawn((random[:, 1] - random[:, 0]) % 35, evenly(range(35)))


def test_the_problems_are_all_those_stated():
    for index, symbol in enumerate(tasks.SYMBOLS):
        rows = torch.stack(tasks.PROBLEMS[1:4], dim=1)[tasks.PROBLEMS.function == index]
        zero = tasks.TOKEN["a" if symbol == "copy" else "0"]
        places = [0, 1, 2] if symbol == "choice" else [0, 2][: len(OPERANDS[symbol][0])]
        assert (rows[:, places] - zero).tolist() == list(map(list, OPERANDS[symbol]))


# ---------------------------------------------------------------- problems


@pytest.mark.parametrize("wrapper", tasks.WRAPPERS)
def test_functions_are_met_by_their_weights_under_each_wrapper(wrapper):
    weights = {}
    for index, symbol in enumerate(tasks.SYMBOLS):
        weights[index] = 0.0 if (wrapper, symbol) in tasks.HELD_OUT else FUNCTIONS[symbol]
    assert_drawn(FUNCTION[under(wrapper), 0], weights)


def test_as_many_documents_are_mixed_as_stated():
    plain = FUNCTION[under("plain")]
    shares = torch.tensor(list(FUNCTIONS.values())) / sum(FUNCTIONS.values())
    seen = DIET.mixed * (1 - (shares**9).sum().item())  # nine alike by chance look unmixed
    several = (plain != plain[:, :1]).any(1).long()
    assert_drawn(several, {0: 1 - seen, 1: seen})


@pytest.mark.parametrize("symbol", tasks.SYMBOLS)
def test_operands_are_drawn_evenly_from_all_problems(symbol):
    of_symbol = FUNCTION == tasks.SYMBOLS.index(symbol)
    rows = PROBLEM[of_symbol & ~under("copy")[:, None]]
    zero = tasks.TOKEN["a" if symbol == "copy" else "0"]
    places = (tasks.PROBLEMS.x, tasks.PROBLEMS.op, tasks.PROBLEMS.y)
    places = places if symbol == "choice" else places[::2][: len(OPERANDS[symbol][0])]
    for place, tokens in enumerate(places):
        stated = torch.tensor([operands[place] for operands in OPERANDS[symbol]])
        weights = dict(enumerate(stated.bincount().tolist()))
        assert_drawn(tokens[rows] - zero, weights)


def test_a_document_of_copy_repeats_two_three_or_four_problems():
    choices = tasks.Diet("choices", functions=("choice",), never=())
    many = tasks.draw_problems(choices, rules_of("copy", 3000), 40, generator(3))
    n_different = torch.tensor([len(row.unique()) for row in many])
    # Wherever two examples stand, they are alike one time in two, three or four.
    for other in (1, 20, 39):
        alike = (many[:, 0] == many[:, other]).double().mean().item()
        assert alike == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 3, abs=5 * (0.23 / 3000) ** 0.5)
    # Of 720 problems two alike are rare: less than one document in a hundred shows one fewer.
    counts = n_different.bincount(minlength=5)
    assert counts[:2].sum() < 10 and len(counts) == 5
    assert ((counts[2:] - 1000).abs() < 5 * (3000 * 2 / 9) ** 0.5 + 10).all()


LOOKS = [  # cells held out; examples (symbol, x, y, answer); whether they look like one of these
    ([("shift", "+")], [("+", 1, 1, 3), ("max", 5, 2, 9), ("+", 2, 2, 5)], True),
    ([("shift", "+")], [("+", 1, 1, 3), ("max", 5, 2, 9), ("+", 2, 2, 9)], False),
    ([("shift", "+")], [("+", 1, 1, 3)], False),  # one example tells nothing
    ([("base", "+")], [("+", 1, 1, 2), ("max", 5, 2, 9), ("+", 4, 4, 12)], True),
    ([("base", "+")], [("+", 1, 1, 2), ("+", 2, 2, 4)], False),  # it is plain as well
    ([("base", "+")], [("+", 4, 4, 12), ("+", 5, 4, 12)], False),  # base 6, then base 7
    ([("shift", "+")], [("+", 1, 1, 3), ("+", 2, 2, 5), ("+", 3, 3, 0)], True),  # it began so
    ([("reflect", "max")], [("max", 5, 2, 9), ("max", 3, 6, 8)], True),
    ([("reflect", "max")], [("max", 5, 2, 9), ("max", 5, 4, 9)], False),  # a value met twice
    ([("shift", "copy")], [("copy", 0, 0, 24), ("copy", 25, 25, 23)], True),  # -2, around
    ([("shift", "copy")], [("copy", 0, 0, 5), ("copy", 1, 1, 6)], False),  # +5 is not asked
]


@pytest.mark.parametrize("never, examples, looks", LOOKS)
def test_what_looks_held_out_is_told_from_what_does_not(never, examples, looks):
    problem = []
    for symbol, x, y, _ in examples:
        rows = (tasks.PROBLEMS.function == tasks.SYMBOLS.index(symbol)).nonzero()[:, 0].tolist()
        operands = (x, y)[: len(OPERANDS[symbol][0])]
        problem.append(rows[OPERANDS[symbol].index(operands)])
    answer = torch.tensor([[answer for *_, answer in examples]])
    diet = tasks.Diet("some", never=tuple(never))
    assert tasks.looks_held_out(diet, torch.tensor([problem]), answer).tolist() == [looks]


UNSHOWN = [  # shifts never shown; the first two examples, (x, y, answer) of `+`
    ({1}, [(1, 1, 3), (2, 2, 5), (4, 0, 4)], True),
    ({1}, [(1, 1, 3), (2, 2, 4), (4, 0, 4)], False),
    ({1}, [(1, 1, 2), (2, 2, 5), (4, 0, 5)], False),
    ({1, 2}, [(1, 1, 4), (2, 2, 6), (4, 0, 4)], True),
    ({1, 2}, [(1, 1, 3), (2, 2, 6), (4, 0, 6)], False),  # each by another of them
]


@pytest.mark.parametrize("unshown, examples, looks", UNSHOWN)
def test_a_shift_that_is_never_shown_is_told_by_both_of_the_first_two_examples(
    unshown, examples, looks
):
    shown = tuple(k for k in (-4, -3, -2, -1, 1, 2, 3, 4) if k not in unshown)
    diet = tasks.Diet("some shifts", shifts=shown, never=())
    pluses = (tasks.PROBLEMS.function == tasks.PLUS).nonzero()[:, 0]
    problem = torch.tensor([[pluses[10 * x + y] for x, y, _ in examples]])
    assert tasks.PROBLEMS.value[problem][0].tolist() == [x + y for x, y, _ in examples]
    answer = torch.tensor([[answer for *_, answer in examples]])
    assert tasks.looks_held_out(diet, problem, answer).tolist() == [looks]


# ---------------------------------------------------------------- evaluation prompts


def pairs_of(task, k, n=4000, shots=3, **how):
    pairs = tasks.evaluation_pairs(task, k, shots, n, generator(), **how)
    tokens = pairs.base[:, tasks.answer_positions(shots + 1)[:, None] - torch.tensor([4, 2])]
    return pairs, tokens - tasks.ZERO  # [n_prompts, n_examples, 2]: x and y; the query's last


@pytest.mark.parametrize(
    "task, k, operands",
    [
        ("addition", 1, PAIRS),
        ("addition", -4, PAIRS),
        ("subtraction", 2, OPERANDS["-"]),
        ("maximum", 1, WIDE_PAIRS),
        ("base_addition", 6, list(product(range(6), repeat=2))),
        ("base_addition", 9, list(product(range(9), repeat=2))),
    ],
)
def test_a_query_is_any_problem(task, k, operands):
    _, xy = pairs_of(task, k)
    for place in (0, 1):
        stated = torch.tensor([each[place] for each in operands])
        if task != "base_addition":  # there, prompts whose examples all stay plain are left out
            assert_drawn(xy[:, -1, place], dict(enumerate(stated.bincount().tolist())))
        assert set(xy[:, -1, place].tolist()) == set(stated.tolist())


def test_sums_in_base_k_are_of_digits_and_one_example_at_least_carries():
    for k in range(6, 10):
        _, xy = pairs_of("base_addition", k)
        assert set(xy.flatten().tolist()) == set(range(k))
        n_carry = (xy[:, :-1].sum(2) >= k).sum(1)
        assert set(n_carry.tolist()) == {1, 2, 3}


def test_examples_are_drawn_evenly_from_those_of_another_answer():
    """Of sums off by 1: all pairs whose shown answer another pair has as its own."""
    _, xy = pairs_of("addition", 1, n=20_000, shots=1)
    sums = xy.sum(2)
    usable = [pair for pair in PAIRS if sum(pair) < 18]  # 19 is no sum
    eight = xy[sums[:, 1] == 8, 0]  # examples in prompts that ask for 8
    stated = [x + 10 * y for x, y in usable if x + y != 8]
    assert_drawn(eight[:, 0] + 10 * eight[:, 1], evenly(stated))


def test_the_neighbour_is_the_nearest_pair_with_the_shown_answer():
    for k in (1, 3, -2):
        pairs, xy = pairs_of("addition", k, n=100)
        places = tasks.answer_positions(3)[:, None] - torch.tensor([4, 2])
        changed = (pairs.operands_changed[:, places] - tasks.ZERO).flatten(0, 1).tolist()
        for (x, y), new in zip(xy[:, :-1].flatten(0, 1).tolist(), changed):
            own = [pair for pair in PAIRS if sum(pair) == x + y + k]
            apart = {pair: abs(pair[0] - x) + abs(pair[1] - y) for pair in own}
            assert apart[tuple(new)] == min(apart.values())
