"""The reference run is swapped in whole, or not at all."""

import os
import stat

import pytest

import train
from commands import reference
from minifunc.support.runs import load_run

TINY = [
    *("--device", "cpu", "--steps", "2", "--documents", "2"),
    *("--n-layers", "1", "--d-model", "8", "--d-head", "4", "--d-mlp", "8"),
]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    evaluate = train.evaluate
    monkeypatch.setattr(train, "SHOTS", (1,))
    monkeypatch.setattr(train, "evaluate", lambda model, *_, **__: evaluate(model, 4, False))
    monkeypatch.setattr(train, "print_table", lambda *_: None)


@pytest.fixture
def folder(tmp_path):
    """An older reference run: one of another width."""
    made = tmp_path / "reference"
    assert train.main(["--out", str(made), *TINY, "--d-mlp", "4"]) == 0
    for name in ("resume.pt", "lock"):
        (made / name).unlink()
    return made


def renew(folder, *flags):
    return reference.main(["--reference", str(folder), *TINY, *flags])


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_new_run_takes_the_place_of_the_old_one_and_leaves_nothing_beside(folder, tmp_path):
    before = contents(folder)
    assert renew(folder, "--seed", "7") == 0
    after = contents(folder)
    assert after.keys() == before.keys() == set(reference.FILES)
    assert load_run(folder)[1]["train"]["seed"] == 7 and load_run(folder)[0].cfg.d_mlp == 8
    assert list(tmp_path.iterdir()) == [folder]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755


def test_the_first_reference_run_is_made_where_there_is_none(tmp_path):
    assert renew(tmp_path / "reference") == 0
    assert contents(tmp_path / "reference").keys() == set(reference.FILES)


@pytest.mark.parametrize("code", [130, 2])
def test_a_run_that_does_not_end_leaves_the_old_one(folder, tmp_path, monkeypatch, code):
    before = contents(folder)
    monkeypatch.setattr(train, "main", lambda argv: code)
    assert renew(folder) == code
    assert contents(folder) == before and list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("flags", [["--steps", "0"], ["--diet", "keto"], ["--resume"]], ids=str)
def test_a_mistaken_flag_is_one_line_and_leaves_the_old_one(folder, tmp_path, capsys, flags):
    before = contents(folder)
    capsys.readouterr()
    assert renew(folder, *flags) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and len(told.splitlines()) == 1
    assert contents(folder) == before and list(tmp_path.iterdir()) == [folder]


def test_a_swap_that_fails_half_way_puts_the_old_one_back(folder, tmp_path, monkeypatch, capsys):
    before, replace_folder = contents(folder), os.replace

    def failing(source, target):
        if os.path.isdir(source) and target == folder and "old" not in str(source):
            raise OSError(5, "Input/output error")
        replace_folder(source, target)

    monkeypatch.setattr(os, "replace", failing)
    assert renew(folder) == 2 and "Input/output error" in capsys.readouterr().err
    assert contents(folder) == before and list(tmp_path.iterdir()) == [folder]


def test_a_kill_between_the_two_renames_is_made_good(folder, tmp_path, monkeypatch):
    before = contents(folder)
    os.replace(folder, tmp_path / "reference.old.tmp")
    monkeypatch.setattr(train, "main", lambda argv: 130)
    assert renew(folder) == 130
    assert contents(folder) == before and list(tmp_path.iterdir()) == [folder]


def test_files_of_another_kind_are_not_lost(folder, capsys):
    (folder / "circuit.json").write_text("{}")
    before = contents(folder)
    capsys.readouterr()
    assert renew(folder) == 2 and "circuit.json" in capsys.readouterr().err
    assert contents(folder) == before
