"""Damaged and hostile files and command lines: one line that names the file, or a clean 0.

The exit code of that line is 2. Nothing is run, nothing is overwritten. Mutations are drawn by
seeded generators. What is expensive (training, tracing) is left out; all that is read and checked
before it is not.
"""

import io
import json
import os
import pickle
import random
import shutil
import struct
import zipfile
from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch

import patch
import tasks
import train
from commands import ask, check
from minifunc.model import ModelConfig
from minifunc.report import page
from train import TrainConfig

TRAIN = TrainConfig(seed=3, steps=2, documents=2, examples=2, long_every=0, warmup=1, eval_every=1)
MODEL = ModelConfig(
    n_layers=1,
    n_heads=2,
    d_model=8,
    d_head=4,
    d_mlp=8,
    d_vocab=len(tasks.VOCABULARY),
    n_ctx=128,
    act_fn="relu",
)
FILES = ("config.json", "metrics.jsonl", "model.pt", "resume.pt", "circuit.json")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """The files of a sound run, by name."""
    folder = tmp_path_factory.mktemp("sound")
    table = {"addition": {"0": {"8": 0.5}, "1": {"8": 0.5}}}
    with pytest.MonkeyPatch.context() as change:
        change.setattr(train, "evaluate", lambda *_, **__: table)
        change.setattr("time.perf_counter", lambda: 0.0)  # seconds: the same files each time
        train.train(folder, MODEL, TRAIN, tasks.DEFAULT_DIET, torch.device("cpu"))
        assert patch.main(["--run", str(folder), "--device", "cpu", "--prompts", "4"]) == 0
    return {name: (folder / name).read_bytes() for name in FILES}


@pytest.fixture
def quick(monkeypatch):
    """What follows the reading and checking, without the work."""
    monkeypatch.setattr(train, "evaluate", lambda *_, **__: {"addition": {"0": {}, "1": {}}})
    monkeypatch.setattr(train, "print_table", lambda *_: None)
    monkeypatch.setattr(train, "train_step", lambda *_: (torch.tensor(1.0), torch.tensor(1.0)))
    nothing = SimpleNamespace(tokens=torch.zeros(1), determined=torch.zeros(1))
    monkeypatch.setattr(train.tasks, "sample", lambda *_: nothing)

    def traced(model, study, *_):
        study.pairs(min(study.prompts, 3), torch.Generator())
        return {"seconds": 0.0}

    monkeypatch.setattr(patch, "trace", traced)
    monkeypatch.setattr(check, "CHECKS", [])


# ---------------------------------------------------------------- mutations of bytes


def damage(dice, content):
    """Any file's bytes, damaged: cut, flipped, removed, repeated, overwritten."""
    a, b = sorted(dice.randrange(len(content) + 1) for _ in range(2))
    kinds = ["cut", "flip", "flips", "remove", "repeat", "zeros", "noise", "empty", "swap"]
    kind = dice.choice(kinds)
    if kind in ("flip", "flips"):
        changed = bytearray(content)
        for _ in range(1 if kind == "flip" else 30):
            changed[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        return kind, bytes(changed)
    middle = b""
    if kind == "zeros":
        middle = bytes(b - a)
    elif kind == "noise":
        middle = dice.randbytes(b - a)
    elif kind == "repeat":
        middle = content[a:b] * 2
    others = {"cut": content[:a], "empty": b"", "swap": content[b:] + content[:b]}
    return kind, others.get(kind, content[:a] + middle + content[b:])


# ---------------------------------------------------------------- mutations of JSON

DEEP = "d" * 40  # stands for lists within lists, which json.dumps cannot write
VALUES = [
    *(None, True, False, -1, 0, 1, 3, 0.5, 1e308, 10**30, 10**400, float("nan"), float("inf")),
    *("", "2", "a\nb", "\ud800", "../../etc", "x" * 5000, DEEP),
    *([], {}, [[]], {"a": 1}, ["a"] * 50),
]


def places(tree):
    """Every (container, key) below a JSON-like value."""
    items = ()
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, (list, tuple)):
        items = enumerate(tree)
    for key, value in items:
        yield tree, key
        yield from places(value)


def change(dice, tree, values):
    """One value of a tree replaced, left out, or joined by another; tuples are left alone."""
    found = [place for place in places(tree) if not isinstance(place[0], tuple)]
    if not found:
        return "nothing", tree
    by_depth = dice.choice([found, found[:12]])  # most places are deep in lists
    container, key = dice.choice(by_depth)
    kind = dice.choice(["replace", "replace", "replace", "leave out", "add"])
    if kind == "leave out":
        del container[key]
    elif kind == "add" and isinstance(container, dict):
        name = dice.choice(["n_layer", "__class__", "", "x" * 300, "a\nb"])
        container[name] = dice.choice(values)
    elif isinstance(values, list):
        container[key] = dice.choice(values)
    return f"{kind} {key!r}", tree


def damage_json(dice, content):
    text = content.decode()
    others = ["bytes", "bytes", "deep", "utf-16", "bom", "latin", "twice", "other"]
    kind = dice.choice(["change"] * 5 + others)
    if kind == "bytes":
        return damage(dice, content)
    if kind == "change":
        lines = text.splitlines() if text.count("\n{") else [text]  # JSON lines
        n = dice.randrange(len(lines))
        name, tree = change(dice, json.loads(lines[n]), VALUES)
        depth = dice.choice([100, 980, 100_000])
        lines[n] = json.dumps(tree).replace(f'"{DEEP}"', "[" * depth + "]" * depth)
        return name, "\n".join(lines).encode()
    if kind == "twice":  # a key that stands there twice
        key = dice.choice(["model", "train", "vocabulary", "diet", "step", "task"])
        value = json.dumps(dice.choice(VALUES))
        return kind, text.replace("{", f'{{"{key}": {value},', 1).encode()
    if kind == "deep":
        return kind, b'{"a":' * 50_000
    if kind == "latin":
        return kind, text.replace("e", "é").encode("latin-1")
    return kind, {
        "utf-16": text.encode("utf-16"),
        "bom": b"\xef\xbb\xbf" + content,
        "other": json.dumps(dice.choice(VALUES)).encode(),
    }[kind]


# ---------------------------------------------------------------- mutations of checkpoints


class Payload:
    """Unpickling this would create a file."""

    def __init__(self, how, path):
        self.how, self.path = how, str(path)

    def __reduce__(self):
        return {
            "open": (open, (self.path, "w")),
            "system": (os.system, (f"touch {self.path}",)),
            "eval": (eval, (f"open({self.path!r}, 'w')",)),
            "mkdir": (os.mkdir, (self.path,)),
        }[self.how]


def tensors(dice, shape):
    """Values to put in place of a tensor of that shape."""
    x = torch.ones(shape)
    huge = torch.zeros(1).expand(10**6, 10**6)
    nan = float("nan")
    return [
        *(x * nan, x * float("inf"), x * 1e38, x.double(), x.half(), x.long(), x.cfloat()),
        *(x.bool(), x.to_sparse(), x.to("meta"), x.to(torch.float8_e4m3fn), x[None]),
        *(x.flatten()[:1], torch.zeros(()), torch.zeros(0), torch.zeros(()).expand(shape)),
        *(x.mT if x.ndim > 1 else x[None], huge, torch.nn.Parameter(x), -x),
        *(None, 3, -1, True, "x", "a\nb", 10**400, nan, 2**63, [], {}, (), b"x", x.tolist()),
        *({"a": x}, {x: 1}, {(): 1}, {3: x}, {None: 1}),
    ]


def save_the_old_way(value, file):
    torch.save(value, file, _use_new_zipfile_serialization=False)


def damage_tensors(dice, content, canary):
    others = ["bytes", "bytes", "payload", "payload", "archive", "archive"]
    kind = dice.choice(["change"] * 6 + others)
    if kind == "bytes":
        return damage(dice, content)
    if kind == "archive":
        return damage_archive(dice, content, canary)
    state = torch.load(io.BytesIO(content), weights_only=True)
    file = io.BytesIO()
    if kind == "payload":
        how = dice.choice(["open", "system", "eval", "mkdir"])
        state[dice.choice(list(state))] = Payload(how, canary)
        for name, value in state.items():
            state[name] = 1 if isinstance(value, torch.Tensor) else value
        dice.choice([torch.save, pickle.dump, save_the_old_way])(dict(state), file)
        return f"payload {how}", file.getvalue()
    shape = dice.choice([(), (8,), (2, 8, 4), (len(tasks.VOCABULARY), 8)])
    name, state = change(dice, dict(state), tensors(dice, shape))
    if name.startswith("replace") and dice.random() < 0.5:
        state = torch.load(io.BytesIO(content), weights_only=True)
        name = spoil_weight(dice, state)
    torch.save(state, file)
    return name, file.getvalue()


def spoil_weight(dice, state):
    """A weight of the right shape, most often, with something else wrong with it."""
    weights = [place for place in places(state) if isinstance(place[0][place[1]], torch.Tensor)]
    container, key = dice.choice(weights)
    container[key] = dice.choice(tensors(dice, container[key].shape))
    return f"replace weight {key!r}"


def damage_archive(dice, content, canary):
    """The zip archive written anew: packed, with made up sizes, with other entries."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    data = [name for name in entries if "/data/" in name]
    kind = dice.choice(["packed", "bomb", "sizes", "missing", "renamed", "pickle", "shared"])
    pickled = next(name for name in entries if name.endswith("data.pkl"))
    if kind == "bomb":
        entries[dice.choice(data)] = bytes(30_000_000)
    elif kind == "missing":
        del entries[dice.choice(list(entries))]
    elif kind == "renamed":
        renamed = {}
        for name, value in entries.items():
            renamed[name.replace("archive/", dice.choice(["", "../", "/etc/", "a/b/"]))] = value
        entries = renamed
    elif kind == "pickle" and dice.random() < 0.5:
        entries[pickled] = pickle.dumps(Payload("open", canary), protocol=2)
    elif kind == "pickle":
        entries[pickled] = damage(dice, entries[pickled])[1]
    elif kind == "shared":  # a tensor reads the bytes of another
        entries[dice.choice(data)] = entries[dice.choice(data)]
    file = io.BytesIO()
    packing = zipfile.ZIP_DEFLATED if kind in ("packed", "bomb") else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "w", packing) as archive:
        for name, value in entries.items():
            archive.writestr(name, value)
    changed = bytearray(file.getvalue())
    if kind == "sizes":  # in the central directory, at one entry or at all
        at, size = changed.find(b"PK\1\2"), dice.choice([2**31, 2**32 - 2, 2**32 - 1, 0, 1])
        while at >= 0:
            if dice.random() < 0.7:
                struct.pack_into("<II", changed, at + 20, dice.choice([size, 100]), size)
            at = changed.find(b"PK\1\2", at + 4)
    return f"archive {kind}", bytes(changed)


# ---------------------------------------------------------------- mutations of the folder


def replace_by_link(dice, folder, name):
    """Something else stands where a file was, or where one will be written."""
    place = folder / dice.choice([name, name, f"{name}.tmp", "lock"])
    kinds = ["precious", "dangling", "loop", "pipe", "folder"]
    kind = dice.choice([*kinds, "/dev/zero", "/dev/full", "/dev/null", ".."])
    if os.path.lexists(place):
        place.unlink()
    inside = {"precious": folder.parent / "precious", "dangling": folder.parent / "nowhere"}
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    elif kind == "loop":
        place.symlink_to(place)
    else:
        place.symlink_to(inside.get(kind, kind))
    return f"{kind} as {place.name}"


GIANTS = [
    {"d_model": 10**6, "d_mlp": 10**6},
    {"d_mlp": 10**6, "n_layers": 12},
    {"d_vocab": 10**6, "d_model": 10**6},
    {"n_heads": 1000, "d_head": 10**6},
]


def make_giant(dice, folder, name):
    """A config that asks for a model beyond any memory, and checkpoints that seem to fit it.

    Each of their tensors is one value, stretched.
    """
    config = json.loads((folder / "config.json").read_text())
    config["model"] |= dice.choice(GIANTS)
    (folder / "config.json").write_text(json.dumps(config))
    if dice.random() < 0.7:
        with torch.device("meta"):
            wanted = train.Transformer(ModelConfig(**config["model"])).state_dict()
        weights = {name: torch.zeros(1).expand(weight.shape) for name, weight in wanted.items()}
        torch.save(weights, folder / "model.pt")
        state = torch.load(folder / "resume.pt", weights_only=True)
        step, moments = torch.tensor(float(state["step"])), {}
        for index, weight in enumerate(weights.values()):
            moments[index] = {"step": step, "exp_avg": weight, "exp_avg_sq": weight}
        state["optimizer"] = {**state["optimizer"], "state": moments}
        torch.save({**state, "config": config, "model": weights}, folder / "resume.pt")
    return f"giant {config['model']}"


def mutate(dice, folder, canary):
    """Spoils one file of the run in `folder`; returns its name and what was done."""
    names = ["config.json"] * 2 + ["model.pt"] + ["resume.pt"] * 2
    name = dice.choice([*names, "circuit.json", "metrics.jsonl"])
    kind = dice.choice(["content"] * 8 + ["link", "giant"])
    if kind == "link":
        return name, replace_by_link(dice, folder, name)
    if kind == "giant":
        return name, make_giant(dice, folder, name)
    content = (folder / name).read_bytes()
    if name.endswith(".pt"):
        what, changed = damage_tensors(dice, content, canary)
    else:
        what, changed = damage_json(dice, content)
    (folder / name).write_bytes(changed)
    return name, what


# ---------------------------------------------------------------- what must hold


def contents(folder):
    """Every file, link and pipe below a folder, but for the lock."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.name != "lock":
            found[name] = path.read_bytes() if path.is_file() else "no file"
    return found


def fault(work, argv, folder, capsys, canary, names=()):
    """What is wrong with how `work` took it, in a word; empty where nothing is."""
    before, precious = contents(folder), (folder.parent / "precious").read_bytes()
    try:
        code = work(argv)
    except BaseException as error:  # noqa: BLE001
        return f"{type(error).__name__}: {error}"[:200]
    finally:
        shown = capsys.readouterr()
        if canary.exists():
            return "code was run"
    lines = shown.err.splitlines()
    nowhere = folder.parent / "nowhere"
    if (folder.parent / "precious").read_bytes() != precious or nowhere.exists():
        return "something outside was changed"
    lines = [line for line in lines if " is unfinished, at step " not in line]
    if code == 0:
        return f"exit code 0, and {lines}" if lines else ""
    if code != 2 or len(lines) != 1 or not lines[0].startswith("error: "):
        return f"exit code {code} and {len(lines)} lines: {shown.err[:300]!r}"
    if names and len(lines[0]) > 500 + 2 * len(str(folder)):
        return f"a long line: {shown.err[:300]!r}"
    if names and not any(name in lines[0] for name in names):
        return f"no file is named: {lines[0]}"
    return "" if contents(folder) == before else f"files were changed: {lines[0]}"


def lay_out(sound, folder):
    """A fresh copy of the sound run."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in sound.items():
        (folder / name).write_bytes(content)


TOOLS = {
    "patch": (patch.main, ["--device", "cpu", "--run"]),
    "ask": (ask.main, ["--device", "cpu", "--run"]),
    "check": (check.main, ["--device", "cpu", "--run"]),
    "train": (train.main, ["--resume", "--device", "cpu", "--out"]),
    "report": (page.main, ["--run"]),
}


def spoil_and_try(sound, tmp_path, capsys, seed, n):
    """n mutations; returns how many were refused, and the faults."""
    folder, canary, faults, codes = tmp_path / "run", tmp_path / "canary", [], []
    (tmp_path / "precious").write_bytes(b"precious")
    for number in range(n):
        dice = random.Random(1000 * seed + number)
        lay_out(sound, folder)
        (tmp_path / "nowhere").unlink(missing_ok=True)
        spoilt, what = mutate(dice, folder, canary)
        tool = dice.choice(["patch", "train", "report", "patch", "train", "report", "ask", "check"])
        main, argv = TOOLS[tool]

        def work(argv, main=main):
            codes.append(main(argv))
            return codes[-1]

        argv = [*argv, str(folder)]
        found = fault(work, argv, folder, capsys, canary, (spoilt, str(folder)))
        if found:
            faults.append(f"{number}: {tool}, {spoilt}, {what}: {found}")
    return codes.count(2), faults


@pytest.mark.slow
def test_spoilt_files_by_the_thousand_do_no_harm(sound, quick, tmp_path, capsys):
    n = 700
    refused, faults = spoil_and_try(sound, tmp_path, capsys, 1, n)
    with capsys.disabled():
        done = n - refused - len(faults)
        print(f"\n{n} mutations: {refused} refused in one line, {done} taken without harm")
    assert not faults, "\n".join(faults)
    assert 0.2 < refused / n < 0.95


# ---------------------------------------------------------------- command lines

WORDS = [
    *("0", "1", "2", "-1", "9", "8", "1000000000000", "9" * 30, "9" * 5000),
    *("1e400", "1e-400", "nan", "inf", "-inf", "0.5", "", " ", "-", "--", "=", "true", "None"),
    *("addition", "choice", "base_addition", "strict", "cpu", "cuda", "cuda:99999999999", "cpu:3"),
    *("rotary", "none", "a\nb", "\udcff", "é", "../..", "x" * 5000, "%s", "{}"),
]
TRACING = ("--task", "--k", "--shots", "--prompts", "--freeze-mlps", "--max-memory")
BOTH = ("--device", "--seed", "--nonsense", "-x")
FLAGS = {
    patch: [*BOTH, *TRACING, "--strong", "--solves", "--faithful"],
    ask: [*BOTH, "--prompt"],
    check: [*BOTH, "--k"],
    train: [*BOTH, "--diet", "--table-prompts"],
}
for field in fields(TrainConfig) + fields(ModelConfig):
    if field.name != "steps" and field.type in (
        int,
        float,
        str,
    ):  # steps without work still take time
        FLAGS[train].append(f"--{field.name.replace('_', '-')}")


def command_line(dice, flags, own):
    words = []
    for _ in range(dice.randint(0, 3)):  # none: taken as it is
        flag, kind = dice.choice(flags), dice.randrange(7)
        if kind < 3:
            words += [flag, dice.choice(WORDS)]
        else:
            others = [[f"{flag}={dice.choice(WORDS)}"], [flag], [dice.choice(WORDS)]]
            words += [*others, [flag[:-1], "1"]][kind - 3]
    return [*own, *words] if dice.random() < 0.5 else [*words, *own]


def try_command_lines(sound, tmp_path, capsys, seed, n):
    folder, canary, faults, codes = tmp_path / "run", tmp_path / "canary", [], []
    (tmp_path / "precious").write_bytes(b"precious")
    for number in range(n):
        dice = random.Random(1000 * seed + number)
        lay_out(sound, folder)
        shutil.rmtree(tmp_path / "new", ignore_errors=True)
        script = dice.choice([patch, patch, train, train, ask, check])
        own = ["--run", str(folder)]
        if script is train:
            resumed, there = ["--resume", "--out", str(folder)], ["--out", str(folder)]
            own = dice.choice([resumed, there, ["--out", str(tmp_path / "new")]])
            own = [*own, "--steps", "2"]
        argv = command_line(dice, FLAGS[script], own)

        def work(argv, script=script):
            codes.append(script.main(argv))
            return codes[-1]

        found = fault(work, argv, folder, capsys, canary)
        if found:
            faults.append(f"{number}: {script.__name__} {' '.join(argv)[:300]!r}: {found}")
    return codes.count(2), faults


@pytest.mark.slow
def test_any_command_line_is_followed_or_refused_in_one_line(sound, quick, tmp_path, capsys):
    refused, faults = try_command_lines(sound, tmp_path, capsys, 0, 100)
    assert not faults, "\n".join(faults)
    assert 20 < refused < 98


@pytest.mark.slow
def test_command_lines_by_the_thousand(sound, quick, tmp_path, capsys):
    n = 700
    refused, faults = try_command_lines(sound, tmp_path, capsys, 1, n)
    with capsys.disabled():
        done = n - refused - len(faults)
        print(f"\n{n} command lines: {refused} refused in one line, {done} followed")
    assert not faults, "\n".join(faults)
