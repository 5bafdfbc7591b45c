"""A run's folder: what is written is read back, what is broken is refused in one line.

And nothing in a file is run.
"""

import argparse
import io
import json
import os
import pickle
import sys
import warnings
import zipfile
from collections import OrderedDict
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

import patch
import tasks
from commands import ask, check
from minifunc.model import ModelConfig, Transformer
from minifunc.report import page
from minifunc.support import runs
from minifunc.support.errors import UserError, run_main
from minifunc.support.files import load_json, load_tensors, save_json, save_lines, save_tensors
from minifunc.support.flags import pick_device
from minifunc.support.runs import load_run
from minifunc.support.settings import from_json, shape_of

try:
    import resource
except ImportError:  # Windows
    resource = None

CFG = ModelConfig(
    n_layers=1,
    n_heads=2,
    d_model=8,
    d_head=4,
    d_mlp=6,
    d_vocab=10,
    n_ctx=12,
    positions="learned",
    normalization="LN",
    act_fn="relu",
)
WEIGHT = "blocks.0.attn.W_Q"


@pytest.fixture
def model():
    return Transformer(CFG, torch.Generator().manual_seed(7))


@pytest.fixture
def run(tmp_path, model):
    save_json(tmp_path / "config.json", {"model": asdict(CFG), "vocabulary": list("abcdefghij")})
    save_tensors(tmp_path / "model.pt", model.state_dict())
    return tmp_path


def refused(path, work, *arguments):
    """Asserts that this is one line that names the file, and no warnings beside it; returns it."""
    with pytest.raises(UserError) as caught, warnings.catch_warnings(record=True) as noise:
        warnings.simplefilter("always")
        work(*arguments)
    line = str(caught.value)
    assert not noise, [str(warning.message) for warning in noise]
    assert str(path) in line and "\n" not in line and len(line) < 300 + 2 * len(str(path))
    return line


def test_a_saved_run_comes_back_as_it_was(run, model):
    loaded, config = load_run(run)
    tokens = torch.arange(10)[None]
    assert torch.equal(loaded(tokens), model(tokens))
    assert loaded.cfg == CFG and config["vocabulary"] == list("abcdefghij")
    assert not loaded.training and not any(weight.requires_grad for weight in loaded.parameters())


def test_parts_that_a_model_lacks_are_not_in_its_config_and_those_it_has_come_back(tmp_path):
    plain, llama = ModelConfig(), replace(CFG, n_heads=4, n_kv_heads=2, tied_embeddings=True)
    divisors = (*[1.0] * (CFG.d_head // 2 - 1), 8.0)
    llama = replace(llama, positions="rotary", rotary_divisors=divisors)
    said = shape_of(plain)
    parts = {"n_kv_heads", "gated_mlp", "tied_embeddings", "qkv_bias", "rotary_divisors"}
    assert not said.keys() & parts
    assert from_json(ModelConfig(), said, "here") == plain
    assert shape_of(llama).items() - shape_of(CFG).items() == {
        ("n_heads", 4),
        ("n_kv_heads", 2),
        ("tied_embeddings", True),
        ("positions", "rotary"),
        ("rotary_divisors", divisors),
    }
    model = Transformer(llama)
    save_json(tmp_path / "config.json", {"model": shape_of(llama), "vocabulary": list("abc")})
    save_tensors(tmp_path / "model.pt", model.state_dict())
    loaded, _ = load_run(tmp_path)
    tokens = torch.arange(10)[None]
    assert loaded.cfg == llama and torch.equal(loaded(tokens), model(tokens))
    for value in ("2", 2.5, 3):
        wrong = shape_of(llama) | {"n_kv_heads": value}
        save_json(tmp_path / "config.json", {"model": wrong, "vocabulary": list("abc")})
        assert "n_kv_heads" in refused(tmp_path / "config.json", load_run, tmp_path)
    for value in (None, 2.0, [8.0] * 99, [0.0] * (CFG.d_head // 2)):
        wrong = shape_of(llama) | {"rotary_divisors": value}
        save_json(tmp_path / "config.json", {"model": wrong, "vocabulary": list("abc")})
        assert "rotary_divisors" in refused(tmp_path / "config.json", load_run, tmp_path)


def test_weights_file_is_a_bare_state_dict_that_plain_torch_reads(run, model):
    state = torch.load(run / "model.pt", weights_only=True)
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], weight) for name, weight in model.state_dict().items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_run_loads_onto_the_device_asked_for(run):
    assert {weight.device.type for weight in load_run(run, "cuda")[0].parameters()} == {"cuda"}


# ---------------------------------------------------------------- unsound folders


@pytest.mark.parametrize("name", ["config.json", "model.pt"])
def test_a_missing_file_is_named(run, name):
    (run / name).unlink()
    assert "missing" in refused(run / name, load_run, run)


def test_a_path_that_cannot_be_is_named(run):
    refused(run / ("x" * 300), load_run, run / ("x" * 300))


@pytest.mark.parametrize("name", ["config.json", "model.pt"])
def test_a_folder_in_a_files_place_is_named(run, name):
    (run / name).unlink()
    (run / name).mkdir()
    refused(run / name, load_run, run)


@pytest.mark.parametrize("kept", [0, 1, 100, 0.3, 0.9, 0.999])
def test_a_truncated_weights_file_is_refused(run, kept):
    whole = (run / "model.pt").read_bytes()
    n_bytes = int(kept * len(whole)) if kept < 1 else kept
    (run / "model.pt").write_bytes(whole[:n_bytes])
    refused(run / "model.pt", load_run, run)


@pytest.mark.parametrize(
    "content",
    [
        b"\0" * 1000,
        b"PK\x03\x04" + b"\xff" * 500,
        b"hello\n",
        b"\x80\x02K\x01.",
        pickle.dumps({"a": 1}),
        pickle.dumps(OrderedDict(a=[]), 5),
    ],
)
def test_a_foreign_file_is_refused(run, content):
    (run / "model.pt").write_bytes(content)
    refused(run / "model.pt", load_run, run)


def test_scattered_damage_gives_a_refusal_or_a_model_but_no_other_error(run):
    whole, random = (run / "model.pt").read_bytes(), torch.Generator().manual_seed(0)
    n_refused = 0
    for place in torch.randint(len(whole), (100,), generator=random).tolist():
        damaged = whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :]
        (run / "model.pt").write_bytes(damaged)
        try:
            load_run(run)
        except UserError:
            n_refused += 1
    assert n_refused > 0


@pytest.mark.parametrize("name", ["config.json", "model.pt"])
def test_a_pipe_in_a_files_place_is_not_waited_for(run, name):
    (run / name).unlink()
    os.mkfifo(run / name)
    assert "no plain file" in refused(run / name, load_run, run)


def test_a_packed_weights_file_is_refused_before_it_is_unpacked(run):
    with (
        zipfile.ZipFile(run / "model.pt") as archive,
        zipfile.ZipFile(run / "packed", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in archive.namelist():
            packed.writestr(name, archive.read(name) + bytes(10**6) * ("/data/" in name))
    os.replace(run / "packed", run / "model.pt")
    assert "declares more" in refused(run / "model.pt", load_run, run)


def test_tuples_within_tuples_do_not_end_the_process(run):
    """Python hashes a key ((((…)))) by calling itself, a million times where there are as many."""
    nested = b"\x80\x02}" + b")" + b"\x85" * 10**6 + b"Ns."  # {((((…)))): None}
    with (
        zipfile.ZipFile(run / "model.pt") as archive,
        zipfile.ZipFile(run / "nested", "w") as changed,
    ):
        for name in archive.namelist():
            changed.writestr(name, nested if name.endswith("data.pkl") else archive.read(name))
    os.replace(run / "nested", run / "model.pt")
    assert "tuples" in refused(run / "model.pt", load_run, run)


def test_one_value_stretched_over_a_shape_is_no_weight(run, model):
    stretched = torch.zeros(1).expand(model.state_dict()[WEIGHT].shape)
    save_tensors(run / "model.pt", {**model.state_dict(), WEIGHT: stretched})
    assert WEIGHT in refused(run / "model.pt", load_run, run)


def test_a_vocabulary_beyond_the_embedding_is_refused(run):
    save_json(run / "config.json", load_json(run / "config.json") | {"vocabulary": ["x"] * 11})
    assert "d_vocab" in refused(run / "config.json", load_run, run)


class Payload:
    """Unpickling this creates a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("wrap", [pickle.dump, torch.save], ids=["pickle", "torch"])
def test_nothing_in_a_weights_file_is_run(run, tmp_path, wrap):
    with open(run / "model.pt", "wb") as file:
        wrap({WEIGHT: Payload(tmp_path / "executed")}, file)
    refused(run / "model.pt", load_run, run)
    assert not (tmp_path / "executed").exists()
    pickle.loads(pickle.dumps(Payload(tmp_path / "executed"))).close()
    assert (tmp_path / "executed").exists()  # so the payload does work where it is let


UNSOUND = {
    "not finite": lambda x: x.index_fill(0, torch.tensor([1]), torch.nan),
    "infinite": lambda x: x + torch.inf,
    "another shape": lambda x: x.transpose(1, 2),
    "integers": lambda x: x.long(),
    "complex": lambda x: x.cfloat(),
    "no tensor": lambda x: x.tolist(),
    "sparse": lambda x: x.to_sparse(),
    "without data": lambda x: x.to("meta"),
    "float8": lambda x: x.to(torch.float8_e4m3fn),
    "other precision than the rest": lambda x: x.double(),
}


@pytest.mark.parametrize("fault", UNSOUND)
def test_an_unsound_weight_is_named(run, model, fault):
    state = dict(model.state_dict())
    save_tensors(run / "model.pt", {**state, WEIGHT: UNSOUND[fault](state[WEIGHT])})
    assert WEIGHT in refused(run / "model.pt", load_run, run)


def test_a_weight_too_many_or_too_few_is_named(run, model):
    state = dict(model.state_dict())
    save_tensors(run / "model.pt", {**state, "blocks.1.ln1.w": torch.ones(8)})
    assert "blocks.1.ln1.w" in refused(run / "model.pt", load_run, run)
    save_tensors(run / "model.pt", {**state, 3: torch.ones(8)})
    assert "no names" in refused(run / "model.pt", load_run, run)
    del state[WEIGHT]
    save_tensors(run / "model.pt", state)
    assert WEIGHT in refused(run / "model.pt", load_run, run)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"model": {}}',
        '{"vocabulary": []}',
        "[" * 100_000,
        b"\xff\xfe",
        '{"model": 3, "vocabulary": []}',
    ],
    ids=lambda text: str(text)[:20],
)
def test_a_config_that_is_none_of_ours_is_refused(run, text):
    (run / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(run / "config.json" if text != '{"model": {}}' else "config.json", load_run, run)


@pytest.mark.parametrize(
    "field, value",
    [
        ("n_layers", "2"),
        ("n_layers", 2.0),
        ("d_model", -8),
        ("n_heads", None),
        ("d_vocab", True),
        ("eps", "small"),
        ("positions", 3),
        ("act_fn", ["relu"]),
        ("n_layer", 1),
        ("d_head", 10**30),
    ],
)
def test_a_config_field_of_a_wrong_kind_is_named(run, field, value):
    config = load_json(run / "config.json")
    config["model"][field] = value
    save_json(run / "config.json", config)
    assert field in refused(run / "config.json", load_run, run)


def test_an_enormous_model_is_refused_before_anything_is_made(run):
    config = load_json(run / "config.json")
    config["model"] |= {"d_model": 10**6, "d_mlp": 10**6}  # 4 TB a matrix
    save_json(run / "config.json", config)
    refused(run / "model.pt", load_run, run)


# ---------------------------------------------------------------- writing


class Unwritable:
    """Can be written in part only."""

    def __reduce__(self):
        raise RuntimeError("the disk is full")


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("fault", [OSError("no space left"), KeyboardInterrupt()], ids=repr)
def test_a_write_that_fails_half_way_leaves_the_old_file_and_nothing_else(
    tmp_path, monkeypatch, call, fault
):
    def fail(*_):
        raise fault

    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, call, fail)
    says = None if isinstance(fault, KeyboardInterrupt) else f"cannot write {path}"
    with pytest.raises((UserError, KeyboardInterrupt), match=says):
        save_json(path, {"new": 1})
    assert [(found.name, found.read_bytes()) for found in tmp_path.iterdir()] == [("file", b"old")]


def test_tensors_that_cannot_be_written_leave_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    refused(path, save_tensors, path, {"a": torch.zeros(1000), "b": Unwritable()})
    assert [(found.name, found.read_bytes()) for found in tmp_path.iterdir()] == [("file", b"old")]


@pytest.mark.skipif(resource is None, reason="no limits on the size of a file here")
@pytest.mark.parametrize(
    "save, value",
    [(save_tensors, {"a": torch.zeros(10**6)}), (save_json, [0] * 10**6)],
    ids=["tensors", "json"],
)
def test_a_disk_that_takes_no_more_leaves_the_old_file_and_nothing_else(tmp_path, save, value):
    path, limits = tmp_path / "file", resource.getrlimit(resource.RLIMIT_FSIZE)
    path.write_bytes(b"old")
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        refused(path, save, path, value)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [(found.name, found.read_bytes()) for found in tmp_path.iterdir()] == [("file", b"old")]


def test_a_file_is_not_written_through_a_link(tmp_path):
    (tmp_path / "precious").write_bytes(b"precious")
    for name in ("file", "file.tmp"):
        (tmp_path / name).symlink_to(tmp_path / "precious")
    save_json(tmp_path / "file", {})
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert not (tmp_path / "file").is_symlink()


def test_numbers_that_are_not_finite_are_not_written(tmp_path):
    assert "finite" in refused(tmp_path / "file", save_json, tmp_path / "file", {"a": torch.nan})


def test_a_new_file_replaces_the_old_one_whole(tmp_path):
    save_json(tmp_path / "file", {"long": list(range(1000))})
    save_json(tmp_path / "file", {"short": 1})
    assert json.loads((tmp_path / "file").read_text()) == {"short": 1}
    assert load_json(tmp_path / "file") == {"short": 1}
    save_tensors(tmp_path / "file", {"a": torch.arange(3)})
    assert load_tensors(tmp_path / "file")["a"].tolist() == [0, 1, 2]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("place", ["missing/file", "afile/file", "folder"])
def test_a_place_that_cannot_be_written_is_named(tmp_path, place):
    (tmp_path / "afile").write_text("")
    (tmp_path / "folder").mkdir()
    refused(tmp_path / place, save_json, tmp_path / place, {})
    assert not list(tmp_path.glob("*.tmp"))


# ---------------------------------------------------------------- devices and exit codes


@pytest.mark.parametrize("name", ["gpu", "", "cpu0", "meta", "cuda:999", "cuda:-1"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(name):
    with pytest.raises(UserError, match=f"device '{name}' .*cpu"):
        pick_device(name)


def test_a_gpu_goes_by_its_number_and_the_others_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    for name in ("cuda:2", "cuda:01", "cuda:999", "cuda:99999999999"):
        with pytest.raises(UserError, match=f"device '{name}' .*: cuda, .*cpu, cuda:0, cuda:1"):
            pick_device(name)


@pytest.mark.parametrize(
    "cuda, mps, picked", [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_auto_picks_cuda_then_mps_then_cpu(monkeypatch, cuda, mps, picked):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert pick_device("auto").type == picked
    assert pick_device("auto", float64=True).type == ("cuda" if cuda else "cpu")
    if not mps:
        with pytest.raises(UserError, match="'mps' is not available"):
            pick_device("mps")


def test_a_users_mistake_is_one_line_and_exit_code_2(capsys):
    def work():
        raise UserError("no such run")

    assert run_main(work) == 2
    assert capsys.readouterr() == ("", "error: no such run\n")
    assert run_main(lambda: 0) == 0


def test_ctrl_c_is_a_word_and_a_mistake_with_a_strange_path_one_line(capsys):
    def work(error):
        raise error

    assert run_main(lambda: work(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "stopped\n"
    assert run_main(lambda: work(UserError("no run in a\nb\u2028c"))) == 2
    assert capsys.readouterr().err == "error: no run in a b c\n"


def test_a_path_that_no_encoding_knows_can_be_shown(monkeypatch):
    shown = io.TextIOWrapper(io.BytesIO(), "utf-8", newline="\n")
    monkeypatch.setattr(sys, "stdout", shown)
    assert run_main(lambda: print("the run is in \udcff") or 0) == 0
    shown.flush()
    assert shown.buffer.getvalue() == b"the run is in \\udcff\n"


def test_a_reader_that_has_gone_is_no_fault(monkeypatch, capsys):
    read, write = os.pipe()
    os.close(read)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.FileIO(write, "w"), "utf-8"))
    assert run_main(lambda: print("a line") or 0) == 1
    assert not capsys.readouterr().err


# ---------------------------------------------------------------- the run to use


SMALL = ModelConfig(
    n_layers=1, n_heads=2, d_model=8, d_head=4, d_mlp=8, d_vocab=len(tasks.VOCABULARY)
)
CONFIG = {"model": asdict(SMALL), "vocabulary": tasks.VOCABULARY, "train": {"steps": 100}}
PLACES = ["flag", "default"]  # how OUT is named: `--run out/default --or-reference`, or not at all


def make_run(folder, step=100):
    folder.mkdir(parents=True)
    save_json(folder / "config.json", CONFIG)
    save_tensors(folder / "model.pt", Transformer(SMALL).state_dict())
    save_lines(folder / "metrics.jsonl", [{"step": step}])
    return folder


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A folder to work in and beside it a reference run; what takes long is left out."""
    monkeypatch.setattr(runs, "REFERENCE", make_run(tmp_path / "clone" / "reference"))
    monkeypatch.chdir(tmp_path / "clone")
    monkeypatch.setattr(patch, "trace", lambda *_, **__: {"task": "addition", "seconds": 0.0})
    monkeypatch.setattr(check, "CHECKS", [])
    monkeypatch.setattr(page, "build", lambda found: f"of {found.folders.name}")
    return tmp_path / "clone"


COMMANDS = {
    "ask": (ask.main, ["--device", "cpu"], None),
    "check": (check.main, ["--device", "cpu"], "check.json"),
    "patch": (patch.main, ["--device", "cpu"], "circuit.json"),
    "report": (page.main, [], "report.html"),
}
every_command = pytest.mark.parametrize("command", COMMANDS)


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def run_command(command, *flags):
    main, always, _ = COMMANDS[command]
    return main([*flags, *always])


@every_command
@pytest.mark.parametrize("flags", [[], ["--run", "out/default", "--or-reference"]], ids=PLACES)
def test_without_a_run_the_reference_is_used_and_said_and_never_written_to(
    clone, capsys, command, flags
):
    before, result = contents(clone), COMMANDS[command][2]
    assert run_command(command, *flags) == 0
    said = " ".join(capsys.readouterr().err.split())  # in lines of 80 columns
    assert said.count("reference run") == 1 and "`make train`" in said
    written = contents(clone).keys() - before.keys()
    assert written == ({clone / "out" / "reference" / result} if result else set())
    assert contents(clone / "reference").items() <= before.items()


@pytest.mark.parametrize("there", [False, True], ids=["reference taken", "own run"])
@pytest.mark.parametrize(
    "run, of_run",
    [
        (None, ""),
        ("out/default", ""),
        ("out/b", " OUT=out/b"),
        ("out/my run", " OUT='out/my run'"),
        ("reference", " OUT=reference"),
    ],
)
def test_the_commands_that_are_told_are_of_the_run_that_was_asked_for(clone, run, of_run, there):
    """Also where the reference run is taken in its place: what they make is not put over that."""
    if there and run != "reference":
        make_run(clone / (run or "out/default"))
    path = None if run is None else Path(run)
    folders = runs.chosen_run(argparse.Namespace(run=path, or_reference=True))
    assert folders.is_reference == (run == "reference" or not there)
    for target in ("train", "patch", "report"):
        assert folders.makes(target) == f"make {target}{of_run}"
    if folders.notice:
        assert f"(`make train{of_run}` makes a run of your own)" in folders.notice


@every_command
def test_the_reference_named_by_its_folder_is_never_written_to_either(clone, capsys, command):
    before = contents(clone / "reference")
    assert run_command(command, "--run", "reference") == 0
    assert contents(clone / "reference") == before and not capsys.readouterr().err
    assert (clone / "out" / "reference").exists() == (command != "ask")


@every_command
def test_a_run_that_is_named_and_not_there_is_an_error(clone, capsys, command):
    before = contents(clone)
    assert run_command(command, "--run", "out/none") == 2
    said = capsys.readouterr().err
    assert "out/none/config.json is missing" in said and said.count("\n") == 1
    assert contents(clone) == before


@every_command
def test_a_run_of_ones_own_is_used_and_written_to(clone, capsys, command):
    before, result = contents(make_run(clone / "out" / "default")), COMMANDS[command][2]
    assert run_command(command, "--run", "out/default", "--or-reference") == 0
    assert not capsys.readouterr().err and not (clone / "out" / "reference").exists()
    written = contents(clone / "out").keys() - before.keys()
    assert written == ({clone / "out" / "default" / result} if result else set())


@every_command
@pytest.mark.parametrize(
    "out, make", [("out/default", "`make train`"), ("out/b", "`make train OUT=out/b`")]
)
def test_a_run_without_a_checkpoint_is_told_how_to_go_on(clone, capsys, command, out, make):
    (make_run(clone / out) / "model.pt").unlink()
    before = contents(clone)
    assert run_command(command, "--run", out, "--or-reference") == 2
    said = capsys.readouterr().err
    assert f"go on with {make}\n" in said and said.count("\n") == 1
    assert contents(clone) == before


@every_command
def test_an_unfinished_run_is_used_and_told_how_to_go_on(clone, capsys, command):
    make_run(clone / "out" / "default", step=40)
    save_tensors(clone / "out" / "default" / "resume.pt", {"step": 60})
    assert run_command(command) == 0
    said = capsys.readouterr().err
    assert said == "out/default is unfinished, at step 60 of 100: go on with `make train`\n"


@pytest.mark.parametrize("name", ["config.json", "model.pt", "metrics.jsonl", "resume.pt"])
def test_a_damaged_run_is_never_replaced_by_the_reference(clone, name):
    out = make_run(clone / "out" / "default")
    (out / name).write_bytes(b"{")
    chosen = runs.chosen_run(argparse.Namespace(run=None, or_reference=True))
    assert chosen.run.resolve() == out and not chosen.is_reference
    for path in out.iterdir():
        path.unlink()
    (out / name).symlink_to("nowhere")
    assert run_command("ask") == 2


def test_where_no_reference_was_installed_a_missing_run_is_a_plain_error(
    clone, monkeypatch, capsys
):
    monkeypatch.setattr(runs, "REFERENCE", clone / "nowhere")
    assert run_command("ask") == 2
    assert "out/default/config.json is missing" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["check", "report"])
def test_a_circuit_of_other_weights_is_refused_by_name(clone, capsys, command):
    out = make_run(clone / "out" / "default")
    state = load_tensors(out / "model.pt")
    circuit = {"task": "addition", "groups": {"function_induction": ["0.1"]}}
    save_json(out / "circuit.json", circuit | {"weights": runs.weights_hash(state)})
    assert run_command(command) == 0
    state["unembed.W_U"] += 1
    save_tensors(out / "model.pt", state)
    capsys.readouterr()
    assert run_command(command) == 2
    said = capsys.readouterr().err
    assert "out/default/circuit.json is about other weights" in said and said.count("\n") == 1


def test_a_results_folder_that_cannot_be_made_is_one_line(clone, capsys):
    (clone / "out").write_text("")
    assert run_command("check") == 2
    assert "cannot make out/reference" in capsys.readouterr().err


def test_a_mistake_is_still_one_line_where_the_reference_is_used(clone, capsys):
    for command, *flags in (
        ["ask", "--prompt", "1+77="],
        ["check", "--k", "0"],
        ["patch", "--k", "0"],
    ):
        assert run_command(command, *flags) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1


def test_a_run_that_is_a_file_is_no_run_and_nothing_else_is_taken(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("no folder")
    with pytest.raises(UserError, match="README.md is no folder"):
        runs.chosen_run(argparse.Namespace(run=path, or_reference=True))
