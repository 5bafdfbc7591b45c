"""What is printed can be read: on any terminal, of any model, and it says what to do next."""

import ast
import io
import json
import re
import sys
from pathlib import Path

import pytest
import torch

import tasks
from commands import ask, check
from experiments import (
    bench,
    dependability,
    diets,
    emergence,
    precursor,
    universality,
    unseen_shifts,
)
from minifunc.model import ModelConfig, Transformer
from minifunc.report import page
from minifunc.report.accuracy import accuracy_table
from minifunc.report.findings import read
from minifunc.support.errors import run_main
from minifunc.support.files import save_json, save_tensors
from minifunc.support.flags import Parser
from minifunc.support.runs import RunFolders, make_command
from minifunc.support.tables import SPELLED, SPELLER, fitted, wrapped

ROOT = Path(__file__).parent.parent
N_KNOWN = len(tasks.VOCABULARY)
SMALL = {"n_layers": 2, "n_heads": 2, "d_model": 16, "d_head": 8, "d_mlp": 16}
EXPERIMENTS = (dependability, diets, emergence, precursor, universality, unseen_shifts)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A run of a model that has 128 tokens and always answers one of those that have no string."""
    run = tmp_path_factory.mktemp("wide")
    model = Transformer(ModelConfig(d_vocab=128, **SMALL))
    with torch.no_grad():
        model.unembed.W_U[:, N_KNOWN:] *= 30
    save_tensors(run / "model.pt", model.state_dict())
    save_json(run / "config.json", {"model": vars(model.cfg), "vocabulary": tasks.VOCABULARY})
    return run


COMMANDS = {
    "ask": lambda run: ask.main(["--run", run, "--device", "cpu"]),
    "ask without examples": lambda run: ask.main(["--run", run, "--device", "cpu", "1+1="]),
    "check": lambda run: check.main(["--run", run, "--device", "cpu"]),
    "report": lambda run: page.main(["--run", run]),
}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("columns", [80, 50])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_command_works_fits_has_all_characters_and_says_what_is_next(
    wide, monkeypatch, command, columns, encoding
):
    """The run's model answers with tokens that have no string. Lines with a path stay whole."""
    for name in ("N_PROMPTS", "N_EACH"):
        monkeypatch.setattr(check, name, 30)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding))
    assert COMMANDS[command](str(wide)) in (0, 1)
    sys.stdout.flush()
    said = sys.stdout.buffer.getvalue().decode(encoding).splitlines()
    assert said[-1].startswith("next: ") and "\\" not in "".join(said)
    assert max(len(line) for line in said if "/" not in line) <= columns + 2 * (encoding == "ascii")
    if command in ("ask", "check"):
        assert re.search(r"token \d+", " ".join(said))


def test_a_page_names_every_token_of_the_model(wide):
    names = read(RunFolders(wide, wide, False)).names
    assert names[:N_KNOWN] == tasks.VOCABULARY
    assert names[N_KNOWN:] == [f"token {index}" for index in range(N_KNOWN, 128)]


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda e: e.EXPERIMENT.name)
def test_the_table_of_an_experiment_fits(experiment):
    path = ROOT / "results" / f"{experiment.EXPERIMENT.name}.json"
    if not path.exists():
        pytest.skip("no run of it has been made yet")
    rows = json.loads(path.read_text())
    text = fitted(experiment.table(rows))
    assert max(map(len, text.splitlines())) <= 80


def test_the_tables_of_the_benchmark_and_of_training_fit(capsys):
    bench.show(json.loads((ROOT / "results" / "bench.json").read_text()))
    names = [*tasks.TASKS, "base_addition_no_carry", "base_addition_carry"]
    shares = {name: {str(k): {"8": 0.5} for k in tasks.SHIFTS} for name in names}
    del shares["base_addition"]
    rows = accuracy_table(shares, tasks, tasks.DEFAULT_DIET, (1, 2, 4, 8, 16), 500)
    lines = [*rows, *capsys.readouterr().out.splitlines()]
    assert max(map(len, lines)) <= 80
    assert any(row.endswith("never trained on") for row in rows)
    assert any(row.startswith("maximum") and row.endswith("but never by +1") for row in rows)
    assert not any("plain" in row and "never" in row for row in rows)


def printable(path):
    """The strings of a file that a terminal may show: all but what documents functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


FILES = [
    *ROOT.glob("*.py"),
    *(ROOT / "commands").glob("*.py"),
    *(ROOT / "experiments").glob("*.py"),
]
FILES += [*(ROOT / "minifunc" / "report").glob("[_aft]*.py"), *(ROOT / "minifunc").glob("*.py")]
FILES += [*(ROOT / "minifunc" / "support").glob("*.py"), *(ROOT / "minifunc/analysis").glob("*.py")]
NEVER_SHOWN = "─└┘·≠≈"  # in drawings of docstrings alone


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_character_of_ours_can_be_spelled_in_ascii(path):
    text = "".join(printable(path)).translate(dict.fromkeys(map(ord, NEVER_SHOWN)))
    assert {sign for sign in text if ord(sign) > 127} <= SPELLED.keys()


def test_what_is_not_ours_becomes_an_escape():
    assert "a → b \udcff ±é".encode("ascii", SPELLER) == b"a -> b \\udcff +-\\xe9"
    assert "a → \udcff".encode("utf-8", SPELLER) == "a → \\udcff".encode()


def test_help_has_our_characters_too(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    with pytest.raises(SystemExit):
        run_main(lambda: Parser("x", "heads → logits").parse_args(["--help"]))
    sys.stdout.flush()
    assert b"heads -> logits" in sys.stdout.buffer.getvalue()


def test_a_line_breaks_at_words_alone(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    assert wrapped("  one two three four-five", 2) == "  one two three\n    four-five"
    assert wrapped("/a/path/that/is/longer/than/it") == "/a/path/that/is/longer/than/it"
    assert wrapped("") == ""


def test_a_command_for_a_run_quotes_its_folder():
    assert make_command("patch", Path("out/default")) == "make patch"
    assert make_command("patch", "out/a b") == "make patch OUT='out/a b'"
