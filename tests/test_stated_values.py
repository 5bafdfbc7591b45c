"""Numbers that are stated: what --help says against what is used, what pages say against the code.

One table for each kind, written out by hand: a default that is changed has to be changed here too,
and on the page that tells of it.
"""

import importlib
import re
from argparse import SUPPRESS
from dataclasses import FrozenInstanceError, asdict, fields, is_dataclass, replace
from pathlib import Path

import pytest

import patch
import tasks
import train
from minifunc.analysis import ablations, completeness, study
from minifunc.circuit import Criteria
from minifunc.model import ModelConfig
from minifunc.support.flags import Parser, from_flags

ROOT = Path(__file__).parent.parent

# ---------------------------------------------------------------- flags

STUDY = {"task": "addition", "k": 1, "shots": 8, "prompts": 100, "seed": 0}
STUDY |= {"freeze_mlps": False, "max_memory": None}
CRITERIA = {"solves": 0.5, "strong": 0.05, "feeds": 0.02, "looks_at_answers": 0.3}
CRITERIA |= {"looks_at_self_or_bos": 0.5, "looks_at_previous": 0.3, "faithful": 0.9}
TRAIN = {"seed": 0, "steps": 3500, "documents": 64, "examples": 9, "long_every": 2, "lr": 0.01}
TRAIN |= {"warmup": 100, "beta2": 0.95, "weight_decay": 0.2, "clip": 1.0, "eval_every": 250}
MODEL = {"n_layers": 4, "n_heads": 6, "d_model": 64, "d_head": 16, "d_mlp": 256, "d_vocab": 73}
MODEL |= {"n_ctx": 128, "positions": "rotary", "normalization": "RMS", "act_fn": "relu"}
MODEL |= {"eps": 1e-5, "rotary_base": 100.0, "n_kv_heads": None, "gated_mlp": False}
MODEL |= {"tied_embeddings": False, "qkv_bias": False, "rotary_divisors": ()}
OF_A_CLASS = {"n_heads": 4, "d_vocab": 64, "act_fn": "gelu", "rotary_base": 10000.0}

FLAGS = {  # by module: what is used where a flag is not given
    "train": {"out": "out/default", "device": "auto", "diet": "nothing_by_one", "resume": False}
    | {"table_prompts": 500},
    "patch": {"device": "auto", "json": "circuit.json in the run's folder", "full": False}
    | {"run": "out/default, or else the reference run", "or_reference": False},
    "commands.ask": {"device": "auto", "prompt": "1+1=3, 2+2=5, 3+3=", "or_reference": False}
    | {"run": "out/default, or else the reference run"},
    "commands.check": {"device": "auto", "k": 1, "seed": 0, "or_reference": False}
    | {"run": "out/default, or else the reference run"},
    "commands.own_model": {"out": "out/own-model", "to": "", "device": "auto"}
    | {"dtype": "float32"},
    "commands.smollm": {"out": "out/smollm", "device": "auto", "full": False, "quick": False},
    "experiments.bench": {"device": "auto", "repeats": 3, "quick": False}
    | {"json": "results/bench.json, on CUDA bench_cuda.json; no file with --quick"},
}
OF_FLAGS = {"train": TRAIN | MODEL, "patch": STUDY | CRITERIA}  # made of dataclasses


class Parsed(BaseException):
    """Stops a command when its flags are known."""


@pytest.fixture
def flags_of(monkeypatch):
    """The parser of a command."""

    def parse(parser, *_):
        raise Parsed(parser)

    def flags(module):
        monkeypatch.setattr(Parser, "parse_args", parse)
        monkeypatch.setattr(Parser, "parse_known_args", parse)
        with pytest.raises(Parsed) as stopped:
            importlib.import_module(module).main([])
        monkeypatch.undo()
        return stopped.value.args[0]

    return flags


def told_default(parser, action):
    """What a flag's help says its default is, if it says so."""
    told = parser._get_formatter()._expand_help(action) if action.help else ""
    found = re.search(r"^default: (.*)$|\(default: ([^)]*)\)", told)
    return found and (found[1] or found[2])


@pytest.mark.parametrize("module", FLAGS)
def test_flags_have_the_defaults_that_their_help_states(module, flags_of):
    parser = flags_of(module)
    stated = FLAGS[module] | OF_FLAGS.get(module, {})
    for action in parser._actions:
        told = told_default(parser, action)
        if action.dest in stated and action.dest not in ("freeze_mlps", "max_memory"):
            value = stated[action.dest]
            assert told in (None, str(value)), action.dest
            used = action.default if action.default != SUPPRESS else value
            assert str(used) == str(value) or told == str(value), action.dest
        else:  # what states a default is in the table
            assert told is None or action.dest in ("freeze_mlps", "max_memory"), action.dest


def test_what_is_not_asked_for_is_traced_and_trained_by_the_defaults(flags_of):
    nothing = flags_of("patch")
    arguments = Parser.parse_args(nothing, [])
    assert asdict(from_flags(arguments, patch.Study())) == STUDY
    assert asdict(from_flags(arguments, Criteria())) == CRITERIA
    arguments = Parser.parse_args(flags_of("train"), [])
    assert asdict(from_flags(arguments, train.TrainConfig())) == TRAIN
    assert asdict(from_flags(arguments, train.MODEL)) == MODEL
    assert asdict(ModelConfig()) == MODEL | OF_A_CLASS


def test_the_diets_are_as_stated():
    shares = {"plain": 0.12, "shift": 0.33, "base": 0.05, "relabel": 0.2, "reflect": 0.3}
    stated = shares | {"copy": 0.05, "mixed": 0.8, "addition": 2.0, "caesar": 1.5, "choice": 1.0}
    stated |= {"even_sums": False, "shifted_addition": (), "functions": tasks.SYMBOLS}
    stated |= {"shifts": (-4, -3, -2, -1, 1, 2, 3, 4), "bases": (6, 7, 8, 9)}
    never = (("shift", "+"), ("shift", "choice"))
    stated |= {"never": (*never, ("base", "+"), ("base", "copy"), ("base", "choice"))}
    assert asdict(tasks.DIETS["strict"]) == {"name": "strict"} | stated
    less = {"shifts": (-4, -3, -2, -1, 2, 3, 4), "bases": (6, 7, 8), "even_sums": True}
    assert asdict(tasks.DEFAULT_DIET) == stated | less | {"name": "nothing_by_one"}
    assert list(tasks.DIETS) == ["strict", "nothing_by_one"]


# ---------------------------------------------------------------- amounts

AMOUNTS = [  # where it stands in the code; what it is; the page that says so, in these words
    ("patch", "N_COUNTED", 500, "results", "8 shots, 500 contrast prompts"),
    ("patch", "N_DRAWS", 50, "results", "(50 draws of 50 prompts,"),
    ("patch", "N_SEARCH", 50, "results", "(50 draws of 50 prompts,"),
    ("patch", "N_EVALUATED", 100, "results", "100 prompts that were not used to find it"),
    ("train", "SHOTS", (1, 2, 4, 8, 16), "../README", "shots     1     2     4     8    16"),
    ("minifunc.analysis.completeness", "N_CONTROLS", 10, "results", "(means of 10 draws)"),
    ("minifunc.analysis.study", "N_DRAWS", 10, "results", "where they are fewer, in ten draws"),
    ("minifunc.analysis.study", "N_REUSED", 100, "results", "100 prompts a row"),
    ("minifunc.analysis.study", "N_INPUTS", 10, "results", "none of the 90 answer x + 1"),
    ("minifunc.analysis.averaging", "N_PROMPTS", 200, "results", "the same 200 prompts in each"),
    ("minifunc.analysis.shift_swap", "LEAST", 0.02, "results", "two intervals lie above .02"),
    ("minifunc.analysis.shift_swap", "N_DRAWS", 5, "results", "Five groups of as many other heads"),
    ("minifunc.analysis.shift_swap", "N_PROMPTS", 500, "results", "(Of 481 prompts."),
    ("minifunc.support.evaluation", "N_RESAMPLES", 2000, "results", "drawn anew, 2,000 times"),
]


@pytest.mark.parametrize("module, name, value, page, words", AMOUNTS)
def test_an_amount_is_what_the_page_says(module, name, value, page, words):
    assert getattr(importlib.import_module(module), name) == value
    text = " ".join((ROOT / "docs" / f"{page}.md").read_text().split())
    assert " ".join(words.split()) in text


def test_amounts_that_no_page_tells_are_those_behind_the_committed_results():
    assert completeness.MOST_GREEDY == 10 and ablations.FEW_GROUPS == 5
    assert study.N_EXAMPLES == 4000
    sources = {"eliminated, both contrasts": ("base", "operands_changed")}
    sources |= {"eliminated, shown answers alone": ("base",)}
    assert completeness.ELIMINATED == sources | {"eliminated, means put in": ("mean",)}


def test_the_tasks_reused_are_four_under_every_k():
    ks = {"addition": [-4, -3, -2, -1, 1, 2, 3, 4], "base_addition": [6, 7, 8, 9]}
    ks |= {"caesar": ks["addition"], "choice": ks["addition"]}
    assert sorted(patch.REUSED) == sorted((task, k) for task, some in ks.items() for k in some)


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize("settings", [patch.Study(), Criteria(), train.TrainConfig(), train.MODEL])
def test_settings_stay_what_they_were_checked_to_be(settings):
    assert is_dataclass(settings) and replace(settings) == settings
    for field in fields(settings):
        with pytest.raises(FrozenInstanceError):
            setattr(settings, field.name, getattr(settings, field.name))
