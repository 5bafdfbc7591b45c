"""The reference run is swapped in whole, or not at all."""

import functools
import json
import os
import stat

import pytest
import torch
from torch import Generator

import patch
import tasks
import train
from commands import reference
from minifunc.circuit import Criteria, discover
from minifunc.model import Transformer
from minifunc.patching import Logits
from minifunc.support.runs import REFERENCE, RESULTS, load_run, weights_hash
from tests.handwired import headline_model

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
    monkeypatch.setattr(patch, "Study", functools.partial(patch.Study, prompts=4))


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
    assert after.keys() == before.keys() | {"learning.json", "circuit.json"} == set(reference.FILES)
    assert load_run(folder)[1]["train"]["seed"] == 7 and load_run(folder)[0].cfg.d_mlp == 8
    assert list(tmp_path.iterdir()) == [folder]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755


def test_the_first_reference_run_is_made_where_there_is_none(tmp_path):
    assert renew(tmp_path / "reference") == 0
    assert contents(tmp_path / "reference").keys() == set(reference.FILES)


@pytest.mark.parametrize("code", [130, 2])
def test_a_run_that_does_not_end_leaves_the_old_one(folder, tmp_path, monkeypatch, code):
    before = contents(folder)
    monkeypatch.setattr(train, "main", lambda *_: code)
    assert renew(folder) == code
    assert contents(folder) == before and list(tmp_path.iterdir()) == [folder]


SHORT = ["--n-ctx", "40", "--examples", "3"]  # a look needs 53


@pytest.mark.parametrize(
    "flags", [SHORT, ["--steps", "0"], ["--diet", "keto"], ["--resume"]], ids=str
)
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
    monkeypatch.setattr(train, "main", lambda *_: 130)
    assert renew(folder) == 130
    assert contents(folder) == before and list(tmp_path.iterdir()) == [folder]


def test_files_of_another_kind_are_not_lost(folder, capsys):
    (folder / "check.json").write_text("{}")
    before = contents(folder)
    capsys.readouterr()
    assert renew(folder) == 2 and "check.json" in capsys.readouterr().err
    assert contents(folder) == before


# ---------------------------------------------------------------- looks at it while it learns


def trained(out, after_step=None):
    assert train.main(["--out", str(out), *TINY, "--steps", "4"], after_step) == 0
    return load_run(out)[0].state_dict()


def test_looks_change_no_bit_of_what_is_trained(tmp_path):
    seen = []
    looked_at = trained(tmp_path / "a", lambda step, model: seen.append(reference.look(model)))
    assert weights_hash(looked_at) == weights_hash(trained(tmp_path / "b"))
    assert len(seen) == 4 and seen[0] != seen[3]


def test_the_first_look_is_at_the_untrained_model_and_the_last_at_the_finished(
    tmp_path, monkeypatch
):
    make_optimizer, start = train.make_optimizer, {}

    def noted(model, cfg):
        start.update({name: weight.clone() for name, weight in model.state_dict().items()})
        return make_optimizer(model, cfg)

    monkeypatch.setattr(train, "make_optimizer", noted)
    assert renew(tmp_path / "new", "--seed", "3", "--steps", "26") == 0
    finished = load_run(tmp_path / "new")[0]
    learning = json.loads((tmp_path / "new" / "learning.json").read_text())
    first, middle, last = learning["looks"]
    untrained = Transformer(finished.cfg)
    untrained.load_state_dict(start)
    assert first == {"step": 0} | reference.look(untrained)
    assert last == {"step": 26} | reference.look(finished)
    assert middle["step"] == 25 and middle["attention"] not in (
        first["attention"],
        last["attention"],
    )
    assert learning["weights"] == weights_hash(finished.state_dict())


def test_a_head_is_fi_as_make_patch_has_it(monkeypatch):
    monkeypatch.setattr(patch, "Study", functools.partial(patch.Study, shots=2, prompts=100))
    model, study = headline_model(len(tasks.VOCABULARY)), patch.Study()
    pairs = study.pairs(study.prompts, torch.Generator().manual_seed(study.seed))
    patchers = {"answers": study.patchers(model, pairs)["answers"]}
    found = discover(patchers, tasks.answer_positions(2), Criteria())
    seen = reference.look(model)
    assert seen["fi"] == found.groups["function_induction"] != []
    r = found.effects["answers"]["logits"].heads
    torch.testing.assert_close(torch.tensor(seen["r"]), r.float(), atol=5e-4, rtol=0)
    assert seen["answers"][0][0] == "7"
    _, cache = model.run_with_cache(tasks.encode("1+1=3, 2+2=5, 3+3=")[None])
    wanted = cache["blocks.0.attn.hook_pattern"][0, :, -1]
    torch.testing.assert_close(torch.tensor(seen["attention"][0]), wanted, atol=5e-4, rtol=0)


def test_what_is_kept_of_the_reference_run_is_about_its_weights():
    (model, config), path = load_run(REFERENCE), REFERENCE / "learning.json"
    learning = json.loads(path.read_text())
    assert learning["weights"] == weights_hash(model.state_dict())
    assert learning["n_prompts"] == patch.Study.func().prompts  # without what `quick` changes
    assert learning["accuracy"].keys() >= tasks.TASKS.keys() - {"base_addition"}
    steps = [*range(0, 501, 25), *range(625, config["train"]["steps"] + 1, 125)]
    assert [look["step"] for look in learning["looks"]] == steps
    n_tokens = len(learning["prompt"].split())
    for look in learning["looks"]:
        assert torch.tensor(look["attention"]).shape == (4, 6, n_tokens)
        assert torch.tensor(look["r"]).shape == torch.tensor(look["to_answers"]).shape == (4, 6)
    assert path.stat().st_size < 300_000


def test_the_accuracy_kept_of_the_reference_run_is_that_of_seed_0_of_dependability():
    kept = json.loads((REFERENCE / "learning.json").read_text())["accuracy"]["addition"]
    of_seed_0 = json.loads((RESULTS / "dependability.json").read_text())[0]
    assert of_seed_0["seed"] == 0
    for k, shares in of_seed_0["by_shots"].items():
        assert kept[k] == pytest.approx(shares, abs=1e-9)


@pytest.mark.slow
def test_the_last_look_at_the_reference_run_is_what_its_weights_do(monkeypatch):
    monkeypatch.undo()  # all prompts
    seen = reference.look(load_run(REFERENCE)[0])
    last = json.loads((REFERENCE / "learning.json").read_text())["looks"][-1]
    assert last["fi"] == seen["fi"]
    assert last["off_by_one"] == pytest.approx(seen["off_by_one"], abs=0.01)
    torch.testing.assert_close(torch.tensor(last["r"]), torch.tensor(seen["r"]), atol=2e-3, rtol=0)


def test_the_circuit_of_the_reference_run_is_that_of_make_patch():
    model, study = load_run(REFERENCE)[0], patch.Study.func
    circuit = json.loads((REFERENCE / "circuit.json").read_text())
    assert circuit["weights"] == weights_hash(model.state_dict())
    asked = {name: circuit[name] for name in ("task", "k", "shots", "seed", "freeze_mlps")}
    assert asked | {"prompts": circuit["n_prompts"], "max_memory": None} == vars(study())
    assert circuit["criteria"] == vars(Criteria())


@pytest.mark.slow
def test_the_effects_in_the_circuit_of_the_reference_run_are_those_of_its_weights(monkeypatch):
    monkeypatch.undo()
    model, study = load_run(REFERENCE)[0], patch.Study()
    pairs = study.pairs(study.prompts, Generator().manual_seed(study.seed))
    seen = study.patchers(model, pairs)["answers"].sweep(Logits())
    kept = json.loads((REFERENCE / "circuit.json").read_text())["effects"]["logits"]
    for name in ("heads", "mlps"):
        wanted = torch.tensor(kept[name])
        torch.testing.assert_close(getattr(seen, name).float(), wanted, atol=2e-3, rtol=0)
