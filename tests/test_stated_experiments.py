"""What the experiments state of their runs, rows and tables, with values known by hand."""

import math
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import pytest
import torch

import tasks
import train
from experiments import (
    catalogue,
    dependability,
    diets,
    emergence,
    experiment,
    measure,
    precursor,
    runs,
    seeds,
    summary,
    universality,
    unseen_shifts,
)
from minifunc.ablation import Ablator, CircuitScores
from minifunc.analysis import scores
from minifunc.circuit import Criteria
from minifunc.model import ModelConfig, Transformer
from minifunc.support import checks
from minifunc.support.names import parse

TINY = ModelConfig(n_layers=2, n_heads=2, d_model=16, d_head=8, d_mlp=16, n_ctx=128)
TINY = replace(TINY, d_vocab=len(tasks.VOCABULARY), act_fn="relu")
EVERY_K = (-4, -3, -2, -1, 1, 2, 3, 4)
NAMES = list(tasks.FUNCTIONS)
PLUS_FREE = {"copy", "plain", "relabel", "reflect"}  # the wrappers that + may meet, `strict`


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def cells(table):
    """The lines of a table as lists of words; columns stand apart by two spaces or more."""
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in table]


# ---------------------------------------------------------------- the diets

ALL_WRAPPERS = {"plain", "shift", "base", "relabel", "reflect", "copy"}
# What documents of a diet are wrapped in, whether a document mixes functions, the wrappers of +.
LADDER = {
    "addition": ({"plain"}, False, {"plain"}),
    "copied": ({"plain", "copy"}, False, {"plain", "copy"}),
    "shifted": ({"plain", "shift", "base", "copy"}, False, {"plain", "copy"}),
    "mixed": ({"plain", "shift", "base", "copy"}, True, {"plain", "copy"}),
    "relabelled": (ALL_WRAPPERS - {"reflect"}, True, {"plain", "copy", "relabel"}),
    "strict": (ALL_WRAPPERS, True, PLUS_FREE),
    "even": (ALL_WRAPPERS, True, PLUS_FREE),
    "no_relabel": (ALL_WRAPPERS - {"relabel"}, True, PLUS_FREE - {"relabel"}),
    "no_mixed": (ALL_WRAPPERS, False, PLUS_FREE),
    "no_copy": (ALL_WRAPPERS - {"copy"}, True, PLUS_FREE - {"copy"}),
    "held_out_cell": (ALL_WRAPPERS, True, PLUS_FREE | {"shift"}),
    "held_out_half": (ALL_WRAPPERS, True, PLUS_FREE | {"shift"}),
    "plus_plain": (ALL_WRAPPERS, True, {"plain"}),
    "plus_relabel": (ALL_WRAPPERS, True, {"plain", "relabel"}),
    "plus_reflect": (ALL_WRAPPERS, True, {"plain", "reflect"}),
    "shifted_1": (ALL_WRAPPERS, True, PLUS_FREE),
    "shifted_3": (ALL_WRAPPERS, True, PLUS_FREE),
    "addition_low": (ALL_WRAPPERS, True, PLUS_FREE),
    "addition_high": (ALL_WRAPPERS, True, PLUS_FREE),
    "hold_minus": (ALL_WRAPPERS, True, PLUS_FREE | {"shift"}),
    "hold_max_reflect": (ALL_WRAPPERS, True, PLUS_FREE | {"shift"}),
    tasks.DEFAULT_DIET.name: (ALL_WRAPPERS, True, PLUS_FREE),
}
SHIFTS_OF_PLUS = {"held_out_cell": set(EVERY_K) - {1}, "held_out_half": {-4, -3, -2, -1}}
SHIFTS_OF_PLUS |= dict.fromkeys(("hold_minus", "hold_max_reflect"), set(EVERY_K))
SHOWN_SHIFTED = {"shifted_1": {"same"}, "shifted_3": {"same", "-", "max"}}
SHOWN = {"all": EVERY_K, "odd": (-3, -1, 1, 3), "even": (-4, -2, 2, 4), "plus_one": (1,)}
SHOWN |= {"negative": (-4, -3, -2, -1), "small": (-1, 1), "large": (-4, -3, 3, 4)}
SHOWN |= {f"all_but_{k:+d}": tuple(x for x in EVERY_K if x != k) for k in (1, -1, 2, -3, 4)}


def test_the_list_of_diets_is_that_of_the_claims():
    assert {diet.name for diet in catalogue.ALL} == set(catalogue.COMPARED) == set(LADDER)
    assert len(catalogue.ALL) == len(LADDER)
    assert {kind: diet.shifts for kind, diet in catalogue.SOME_SHIFTS.items()} == SHOWN
    assert set(catalogue.DIETS) == {*LADDER, *(f"shifts_{kind}" for kind in SHOWN)}
    for name, diet in catalogue.DIETS.items():
        assert diet.name == name
        even = name in ("even", tasks.DEFAULT_DIET.name) or name.startswith("shifts_")
        assert diet.even_sums == even
    assert catalogue.DIETS["addition_low"].addition < 1 < catalogue.DIETS["addition_high"].addition
    ratios = [catalogue.DIETS[f"addition_{x}"].addition for x in ("low", "high")]
    assert [ratio / catalogue.DIETS["strict"].addition for ratio in ratios] == [0.25, 4.0]


@pytest.mark.parametrize("name", LADDER)
def test_a_diet_shows_what_its_name_says_and_nothing_else(name):
    wrappers, mixes, of_plus = LADDER[name]
    drawn = tasks.sample(catalogue.DIETS[name], 800, 3, generator())
    wrapped = [tasks.WRAPPERS[number] for number in drawn.wrapper.tolist()]
    assert set(wrapped) == wrappers
    assert ((drawn.function != drawn.function[:, :1]).any()) == mixes
    met, shifted, k_of_plus = set(), set(), set()
    off = drawn.answer - drawn.value
    for row, wrapper in enumerate(wrapped):
        functions = drawn.function[row].tolist()
        met |= {wrapper} if tasks.PLUS in functions else set()
        if wrapper == "shift":
            shifted |= set(functions)
            k_of_plus |= {o for o, f in zip(off[row].tolist(), functions) if f == tasks.PLUS}
    assert met == of_plus
    assert k_of_plus == SHIFTS_OF_PLUS.get(name, set())
    usual = set(NAMES) - {"choice"} - ({"-"} if name == "hold_minus" else set())
    usual -= set() if name in SHIFTS_OF_PLUS else {"+"}
    expected = SHOWN_SHIFTED.get(name, usual) if "shift" in wrappers else set()
    assert {NAMES[number] for number in shifted} == expected
    if name in ("addition", "copied"):
        assert set(drawn.function.flatten().tolist()) == {tasks.PLUS}
    if name == "hold_max_reflect":
        reflected = drawn.wrapper == tasks.WRAPPERS.index("reflect")
        seen = {NAMES[i] for i in drawn.function[reflected].unique().tolist()}
        assert "max" not in seen and "min" in seen

