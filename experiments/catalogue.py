"""The diets of experiments: those of tasks.py, and others that change one thing.

Each is `strict` with some fields changed, handed as a value to `tasks.sample` and `train.train`.
Names that begin with `default_` change the default in its place.
"""

from dataclasses import replace
from itertools import product
from typing import Any

from tasks import CHOICE, DEFAULT_DIET, HELD_OUT, SHIFTS, SYMBOLS, Diet

EVERY_SHIFT = tuple(k for k in SHIFTS if k)
OTHERS = ("relabel", "reflect", "copy")  # wrappers that `+` is met under, beside plain
PLUS_ALONE: dict[str, Any] = dict(shift=0.0, base=0.0, relabel=0.0, reflect=0.0, functions=("+",))


def no_plus_under(*wrappers: str) -> Any:
    return (*HELD_OUT, *product(wrappers, "+"))


def shifted_only(*shown: str) -> Any:
    others = [symbol for symbol in SYMBOLS if symbol not in ("+", CHOICE, *shown)]
    return (*HELD_OUT, *product(["shift"], others))


LADDER = [  # each rung adds one kind of document to the one before
    Diet("addition", **PLUS_ALONE, copy=0.0),
    Diet("copied", **PLUS_ALONE),
    Diet("shifted", relabel=0.0, reflect=0.0, mixed=0.0),  # the others, shifted or in base k
    Diet("mixed", relabel=0.0, reflect=0.0),
    Diet("relabelled", reflect=0.0),
    Diet("strict"),  # and reflected ones
    Diet("even", even_sums=True),  # the same, with every sum as often as any other
    DEFAULT_DIET,  # the same, and nothing is ever shifted by +1
]
WITHOUT_ONE = [  # `strict` without one ingredient (`relabelled` is the one without reflection)
    Diet("no_relabel", relabel=0.0),
    Diet("no_mixed", mixed=0.0),
    Diet("no_copy", copy=0.0),
]
LESS_HELD_OUT = [  # `+` shifted by every k but one; by the negative ones
    Diet("held_out_cell", shifted_addition=tuple(k for k in EVERY_SHIFT if k != 1)),
    Diet("held_out_half", shifted_addition=tuple(k for k in EVERY_SHIFT if k < 0)),
]
ALONE: dict[str, Any] = dict(never=no_plus_under(*OTHERS))
OFTEN: dict[str, Any] = dict(plain=0.3, addition=8.0)
PLUS_PLAIN = [  # `+` is met plain alone; in 2 % of the examples, or in 12 %, as in `strict`
    Diet("plus_plain", **ALONE),
    Diet("plus_plain_often", **ALONE, **OFTEN),
    replace(DEFAULT_DIET, name="default_plus_plain", **ALONE),
    replace(DEFAULT_DIET, name="default_plus_plain_often", **ALONE, **OFTEN),
]
WRAPPERS_OF_PLUS = [  # the wrappers that `+` meets, while the other functions meet all
    Diet("plus_relabel", never=no_plus_under("reflect", "copy")),
    Diet("plus_reflect", never=no_plus_under("relabel", "copy")),
]
SHIFTED_FUNCTIONS = [  # the functions that are seen shifted
    Diet("shifted_1", never=shifted_only("same")),
    Diet("shifted_3", never=shifted_only("same", "-", "max")),
]
SHARE_OF_PLUS = [Diet("addition_low", addition=0.5), Diet("addition_high", addition=8.0)]
OTHER_CELLS = [  # other cells held out instead of (shift, +)
    Diet("hold_minus", shifted_addition=EVERY_SHIFT, never=(*HELD_OUT, ("shift", "-"))),
    Diet("hold_max_reflect", shifted_addition=EVERY_SHIFT, never=(*HELD_OUT, ("reflect", "max"))),
]
ALL = LADDER + WITHOUT_ONE + LESS_HELD_OUT + PLUS_PLAIN
ALL += WRAPPERS_OF_PLUS + SHIFTED_FUNCTIONS + SHARE_OF_PLUS + OTHER_CELLS
COMPARED = tuple(diet.name for diet in ALL)

# Diets that show some shifts alone, under any function (`make unseen`)
SHOWN: dict[str, tuple[int, ...]] = {"all": EVERY_SHIFT}
SHOWN |= {f"all_but_{k:+d}": tuple(x for x in EVERY_SHIFT if x != k) for k in (1, -1, 2, -3, 4)}
SHOWN |= {"odd": (-3, -1, 1, 3), "even": (-4, -2, 2, 4), "negative": (-4, -3, -2, -1)}
SHOWN |= {"small": (-1, 1), "large": (-4, -3, 3, 4), "plus_one": (1,)}
SOME_SHIFTS = {
    kind: Diet(f"shifts_{kind}", even_sums=True, base=0.0, shifts=ks) for kind, ks in SHOWN.items()
}
DIETS = {diet.name: diet for diet in [*ALL, *SOME_SHIFTS.values()]}
