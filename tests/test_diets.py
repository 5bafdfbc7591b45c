"""Every named diet, read back from its documents.

What it says is held out is never shown, not even by chance, and the rest is.
"""

import math
import re
from dataclasses import replace

import pytest
import torch
from test_tasks import BASES, SHIFTS, check_answers, draw, numeral, shown_by

import tasks
from experiments import catalogue
from minifunc.support.checks import met_under
from tasks import Diet

NAMES = list(tasks.FUNCTIONS)


def looks_like(documents, wrapper, symbol):
    """How documents begin that have two or more examples of a function, all as if wrapped: under
    `shift` the shifts, under `base` the bases, under `reflect` the sums (of different values), as a
    set. Worked out for each beginning apart."""
    found = set()
    for functions, values, answers in zip(
        documents.function.tolist(), documents.value.tolist(), documents.answer.tolist()
    ):
        rows = [
            (value, answer)
            for function, value, answer in zip(functions, values, answers)
            if NAMES[function] == symbol
        ]
        for n in range(2, len(rows) + 1):
            some = rows[:n]
            if wrapper == "shift":
                around = 26 if symbol in tasks.TO_LETTERS else 10**6
                off = {(answer - value) % around for value, answer in some}
                found |= {k for k in SHIFTS if k and off == {k % around}}
            elif wrapper == "base" and any(value != answer for value, answer in some):
                found |= {
                    k for k in BASES if all(answer == numeral(value, k) for value, answer in some)
                }
            elif (
                wrapper == "reflect"
                and len({value for value, _ in some}) > 1
                and len({value + answer for value, answer in some}) == 1
            ):
                found.add(sum(some[0]))
    return found


@pytest.mark.parametrize("n_examples", [4, 9])
@pytest.mark.parametrize("name", catalogue.DIETS)
def test_what_a_diet_holds_out_is_never_shown(name, n_examples):
    diet = catalogue.DIETS[name]
    documents = draw(diet, 2000, n_examples)
    met = {
        (tasks.WRAPPERS[index], NAMES[function])
        for index in documents.wrapper.unique()
        for function in documents.function[documents.wrapper == index].unique()
    }
    allowed = set()
    for wrapper in tasks.WRAPPERS:
        allowed |= {(wrapper, symbol) for symbol in met_under(diet, wrapper)}
    assert met == allowed | ({("shift", "+")} if diet.shifted_addition else set())
    assert {k for k in shown_by(documents, "+")[0] if not isinstance(k, str)} == set(
        diet.shifted_addition
    )
    for wrapper, symbol in diet.never:
        if symbol in diet.functions and (wrapper == "shift" or symbol not in tasks.TO_LETTERS):
            seen = looks_like(documents, wrapper, symbol)
            if (
                symbol == "+" and diet.shifted_addition
            ):  # what is allowed as a shift may look like a base: 8 + 2 = 12 is right in base 8
                assert wrapper == "base" or seen == set(diet.shifted_addition)
            else:
                assert wrapper in ("relabel", "copy") or not seen, (wrapper, symbol, seen)


@pytest.mark.parametrize("cell", [("shift", "-"), ("base", "max"), ("reflect", "max")], ids=str)
def test_a_diet_without_the_cell_held_out_shows_it_and_the_check_above_would_see_it(cell):
    assert looks_like(draw(Diet("all"), 2000), *cell)
    assert not looks_like(draw(Diet("less", never=(*tasks.HELD_OUT, cell)), 2000), *cell)


def test_chance_alone_would_show_a_held_out_reflection():
    """Relabelled documents of `max` read as reflected ones now and then: the rule is needed."""
    others = dict.fromkeys(("plain", "shift", "base", "reflect", "copy"), 0.0)
    documents = draw(Diet("relabelled max", **others, functions=("max",)), 2000)
    assert looks_like(documents, "reflect", "max")


@pytest.mark.parametrize("name", catalogue.DIETS)
def test_every_answer_of_every_diet_is_what_function_and_wrapper_say(name):
    check_answers(draw(catalogue.DIETS[name], 200))


def test_the_rungs_add_one_kind_of_document_at_a_time():
    ladder = [
        catalogue.DIETS[name]
        for name in ("addition", "copied", "shifted", "mixed", "relabelled", "strict")
    ]
    kinds = [
        {wrapper for wrapper in tasks.WRAPPERS if getattr(diet, wrapper) > 0}
        | ({"mixed"} if diet.mixed and diet.functions != ("+",) else set())
        for diet in ladder
    ]
    added = [after - before for before, after in zip(kinds, kinds[1:])]
    assert added == [{"copy"}, {"shift", "base"}, {"mixed"}, {"relabel"}, {"reflect"}]
    assert ladder[-1] == Diet("strict")
    even = catalogue.DIETS["even"]
    assert even == replace(ladder[-1], name="even", even_sums=True)
    shown = {"shifts": (-4, -3, -2, -1, 2, 3, 4), "bases": (6, 7, 8)}
    assert tasks.DEFAULT_DIET == replace(even, name="nothing_by_one", **shown)


def test_every_diet_goes_by_its_name_and_those_of_tasks_are_among_them():
    assert all(name == diet.name for name, diet in catalogue.DIETS.items())
    assert len(catalogue.COMPARED) == 25 and len(catalogue.DIETS) == 37
    assert tasks.DIETS.items() <= catalogue.DIETS.items()


@pytest.mark.parametrize("even", [False, True])
def test_sums_are_drawn_by_pairs_of_operands_or_evenly_and_the_rest_does_not_change(even):
    """Expected counts of each sum, from the definition; within it pairs of operands are even."""
    diet = Diet("by sums", even_sums=even, copy=0.0)
    documents, other = draw(diet, 30_000), draw(replace(diet, even_sums=not even), 30_000)
    plus = documents.function == tasks.PLUS
    n_pairs = torch.tensor(
        [sum(x + y == value for x in range(10) for y in range(10)) for value in range(19)]
    )
    expected = plus.sum() * (torch.full((19,), 1 / 19) if even else n_pairs / 100)
    counts = documents.value[plus].bincount()
    assert ((counts - expected).abs() < 5 * expected.sqrt()).all() and counts.sum() > 20_000
    x, y = (
        documents.tokens[:, 1::6][plus] - tasks.ZERO,
        documents.tokens[:, 3::6][plus] - tasks.ZERO,
    )
    by_pair = (10 * x + y).bincount(minlength=100)
    of_pair = torch.arange(100) // 10 + torch.arange(100) % 10
    assert (
        (by_pair - (expected / n_pairs)[of_pair]).abs() < 5 * (expected / n_pairs).sqrt()[of_pair]
    ).all()
    assert torch.equal(documents.function, other.function) and torch.equal(
        documents.value[~plus], other.value[~plus]
    )


def test_the_grid_diets_change_only_what_they_say():
    everywhere = {wrapper: set(met_under(Diet("strict"), wrapper)) for wrapper in tasks.WRAPPERS}
    for name, lost in (
        ("plus_plain", {"relabel", "reflect", "copy"}),
        ("plus_plain_often", {"relabel", "reflect", "copy"}),
        ("plus_relabel", {"reflect", "copy"}),
        ("plus_reflect", {"relabel", "copy"}),
    ):
        diet = catalogue.DIETS[name]
        under = {wrapper: set(met_under(diet, wrapper)) for wrapper in tasks.WRAPPERS}
        assert under == {
            wrapper: symbols - ({"+"} if wrapper in lost else set())
            for wrapper, symbols in everywhere.items()
        }
    assert met_under(catalogue.DIETS["shifted_1"], "shift") == ["same"]
    assert set(met_under(catalogue.DIETS["shifted_3"], "shift")) == {"same", "-", "max"}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"functions": ("+", "times")}, "functions cannot hold 'times', only +, -"),
        ({"never": (("shifted", "+"),)}, "never cannot hold ('shifted', '+'), only ('shift', '+')"),
        ({"never": (("plain", "+"),)}, "('plain', '+')"),
        ({"never": ("shift",)}, "'shift'"),
        ({"shifted_addition": (1, 9)}, "9"),
        ({"shifts": (0, 1)}, "shifts cannot hold 0, only -4, -3, -2, -1, 1"),
        ({"bases": (5,)}, "bases cannot hold 5, only 6, 7, 8, 9"),
        ({"shifts": (2,), "shifted_addition": (1,)}, "shifted_addition cannot hold 1, only 2"),
        ({"shifts": ()}, "no function to be met under shift"),
        ({"bases": ()}, "no function to be met under base"),
        ({"functions": ("+",)}, "no function to be met under shift"),
        ({"functions": ("+",), "addition": 0.0}, "no function to be met under plain"),
        (dict.fromkeys(tasks.WRAPPERS, 0.0), "no function to be met under any wrapper"),
        ({"plain": -1.0}, "plain must be 0, or from 1e-6 to 1e+06"),
        ({"copy": math.nan}, "copy"),
        ({"mixed": 1.5}, "mixed must be 0, or from 1e-6 to 1"),
    ],
)
def test_what_a_diet_cannot_be_is_refused_with_what_it_can(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Diet("impossible", **changes)


def test_no_document_is_changed_where_nothing_is_held_out():
    """A shifted document of `+` alone stays one: the rule works on held-out cells only."""
    others = dict.fromkeys(("plain", "base", "relabel", "reflect", "copy"), 0.0)
    diet = Diet("shifted sums", **others, functions=("+",), never=())
    documents = draw(diet, 500)
    assert (documents.wrapper == tasks.WRAPPERS.index("shift")).all() and (
        (documents.answer - documents.value) != 0
    ).all()
    assert torch.equal(documents.tokens, draw(replace(diet, mixed=0.8), 500).tokens)
