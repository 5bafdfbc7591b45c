"""Tiny runs: interrupted and taken up again, refused, diverged; what is learned and written."""

import errno
import json
import math
import os
import shutil
import signal
from dataclasses import asdict, replace

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.testing import assert_close

import tasks
import train
from experiments import catalogue
from minifunc.model import ModelConfig, Transformer
from minifunc.support import checkpoints, evaluation
from minifunc.support.runs import load_run
from minifunc.support.settings import named_diet, shape_of
from train import TrainConfig

TRAIN = TrainConfig(
    seed=3, steps=6, documents=4, examples=9, long_every=2, lr=0.01, warmup=2, eval_every=3
)
MODEL = ModelConfig(
    n_layers=2,
    n_heads=2,
    d_model=16,
    d_head=8,
    d_mlp=16,
    d_vocab=len(tasks.VOCABULARY),
    n_ctx=1 + 6 * TRAIN.longest,
    act_fn="relu",
)
TINY = [
    word
    for name, value in {
        **shape_of(MODEL),
        **asdict(TRAIN),
        "device": "cpu",
        "table_prompts": 8,
    }.items()
    for word in (f"--{name.replace('_', '-')}", str(value))
]

EVALUATE = train.evaluate


@pytest.fixture(autouse=True, scope="module")
def quick_evaluation():
    """A smaller table from fewer prompts: a run is to take a fraction of a second."""
    evaluate = train.evaluate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "SHOTS", (1, 8))
        patch.setattr(
            train, "evaluate", lambda model, n_prompts, every_task: evaluate(model, 8, every_task)
        )
        yield


@pytest.fixture
def no_table(monkeypatch):
    monkeypatch.setattr(train, "print_table", lambda *_: None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    train.train(folder, MODEL, TRAIN, tasks.DEFAULT_DIET, torch.device("cpu"))
    return folder


def main(out, *flags):
    return train.main(["--out", str(out), *map(str, flags)])


def refused(capsys, out, *flags):
    """Asserts exit code 2 and one line on stderr, without a result; returns the line."""
    assert main(out, "--device", "cpu", *flags) == 2
    shown = capsys.readouterr()
    lines = [line for line in shown.err.replace("\r", "\n").splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("error: ") and not shown.out, shown
    return lines[0]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"}


def metrics(folder):
    """The lines of metrics.jsonl without the time they took."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def weights(folder):
    return load_run(folder)[0].state_dict()


def interrupted(folder, monkeypatch, place, step):
    """Starts the run in `folder` and presses Ctrl-C in a step, at `place` → the exit code."""
    calls = 0

    def press(*_):
        nonlocal calls
        calls += 1
        if calls == step:
            signal.raise_signal(signal.SIGINT)

    sample = tasks.sample
    with monkeypatch.context() as patch:
        if place == "before":
            patch.setattr(tasks, "sample", lambda *arguments: (press(), sample(*arguments))[1])
        handle = register_optimizer_step_post_hook(press if place == "after" else lambda *_: None)
        try:
            return main(folder, *TINY)
        finally:
            handle.remove()


# ---------------------------------------------------------------- interruption


def test_seconds_are_those_of_all_parts_of_a_run(tmp_path, monkeypatch, capsys, no_table):
    assert interrupted(tmp_path, monkeypatch, "before", 3) == 130
    state = torch.load(tmp_path / "resume.pt", weights_only=True)
    torch.save(state | {"seconds": 1000.0}, tmp_path / "resume.pt")
    assert main(tmp_path, "--resume", "--device", "cpu") == 0
    assert (
        1000
        < json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["seconds"]
        < 1100
    )


@pytest.mark.slow
@pytest.mark.parametrize("place", ["before", "after"], ids=lambda place: f"{place} the update")
@pytest.mark.parametrize("step", [1, 4])
def test_an_interrupted_run_goes_on_to_the_same_weights_and_metrics(
    tmp_path, monkeypatch, capsys, no_table, whole, place, step
):
    assert interrupted(tmp_path, monkeypatch, place, step) not in (0, 2)
    stopped = torch.load(tmp_path / "resume.pt", weights_only=True)["step"]
    told = capsys.readouterr().err
    assert step <= stopped <= step + 1 and f"step {stopped} " in told and "--resume" in told
    assert main(tmp_path, "--resume", "--device", "cpu") == 0
    assert all(
        torch.equal(weights(tmp_path)[name], weight) for name, weight in weights(whole).items()
    )
    assert metrics(tmp_path) == metrics(whole)


def test_a_second_ctrl_c_stops_at_once_with_a_word_about_it(tmp_path, monkeypatch, capsys):
    def twice(*_):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(tasks, "sample", twice)
    assert main(tmp_path, *TINY) not in (0, 2)
    assert "stopped" in capsys.readouterr().err


def write_fails(monkeypatch, number, fault):
    """From the `number`th write to a disk on, `fault()` is called in it."""
    calls, fsync = [], os.fsync
    monkeypatch.setattr(
        os,
        "fsync",
        lambda file: (calls.append(1), fault() if len(calls) >= number else fsync(file)),
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [5, 6, 7])  # after config.json and the three files of step 3
def test_a_second_ctrl_c_while_a_file_is_written_leaves_the_last_good_state(
    tmp_path, monkeypatch, capsys, no_table, whole, number
):
    with monkeypatch.context() as patch:
        write_fails(patch, number, lambda: [signal.raise_signal(signal.SIGINT) for _ in range(2)])
        assert main(tmp_path, *TINY) == 130
    assert len(capsys.readouterr().err.splitlines()) == 1 and not list(tmp_path.glob("*.tmp"))
    assert torch.load(tmp_path / "resume.pt", weights_only=True)["step"] == (
        3 if number == 5 else 6
    )
    assert main(tmp_path, "--resume", "--device", "cpu") == 0
    assert all(
        torch.equal(weights(tmp_path)[name], weight) for name, weight in weights(whole).items()
    ) and metrics(tmp_path) == metrics(whole)


@pytest.mark.slow
@pytest.mark.parametrize("number", [5, 6, 7])
def test_a_full_disk_is_one_line_and_leaves_the_last_good_state(
    tmp_path, monkeypatch, capsys, no_table, whole, number
):
    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        write_fails(patch, number, full)
        assert "No space left on device" in refused(capsys, tmp_path, *TINY)
    assert not list(tmp_path.glob("*.tmp"))
    assert main(tmp_path, "--resume", "--device", "cpu") == 0
    assert all(
        torch.equal(weights(tmp_path)[name], weight) for name, weight in weights(whole).items()
    ) and metrics(tmp_path) == metrics(whole)


def test_a_run_in_a_read_only_folder_does_not_go_on(tmp_path, monkeypatch, capsys, whole):
    folder = shutil.copytree(whole, tmp_path / "run")
    monkeypatch.setattr(os, "access", lambda *_: False)  # for root every folder is writable
    assert "cannot write" in refused(capsys, folder, "--resume")
    assert contents(folder) == contents(whole)


def test_ctrl_c_is_given_back_after_a_run(whole, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    train.train(tmp_path, MODEL, replace(TRAIN, steps=1), tasks.DEFAULT_DIET, torch.device("cpu"))
    assert signal.getsignal(signal.SIGINT) is before


def test_resuming_a_finished_run_changes_nothing(tmp_path, monkeypatch, no_table, whole):
    for name, content in contents(whole).items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "model.pt").unlink()  # as after a kill between two files
    monkeypatch.setattr(tasks, "sample", lambda *_: pytest.fail("a step was made"))
    assert main(tmp_path, "--resume", "--device", "cpu") == 0
    assert metrics(tmp_path) == metrics(whole)
    assert all(
        torch.equal(weights(tmp_path)[name], weight) for name, weight in weights(whole).items()
    )


# ---------------------------------------------------------------- divergence


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_its_checkpoint(
    tmp_path, monkeypatch, capsys
):
    calls, loss_on_answers = [], train.loss_on_answers

    def diverging(*batch):
        calls.append(1)
        return loss_on_answers(*batch) * (math.nan if len(calls) > 4 else 1)

    monkeypatch.setattr(train, "loss_on_answers", diverging)
    assert "finite" in refused(capsys, tmp_path, *TINY)
    assert torch.load(tmp_path / "resume.pt", weights_only=True)["step"] == 3
    assert all(weight.isfinite().all() for weight in weights(tmp_path).values())


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "name", ["config.json", "resume.pt", "model.pt", "metrics.jsonl", "circuit.json"]
)
def test_an_existing_run_is_not_overwritten(tmp_path, capsys, name):
    (tmp_path / name).write_text("precious")
    assert str(tmp_path) in refused(capsys, tmp_path, *TINY)
    assert contents(tmp_path) == {name: b"precious"}


def test_a_run_killed_before_its_first_checkpoint_starts_afresh(tmp_path, no_table, whole):
    (tmp_path / "config.json").write_bytes((whole / "config.json").read_bytes())
    assert main(tmp_path, *TINY) == 0 and metrics(tmp_path) == metrics(whole)


@pytest.mark.parametrize(
    "flags, word",
    [
        (["--diet", "keto"], "keto"),
        (["--n-ctx", str(MODEL.n_ctx - 1)], "n_ctx"),
        (["--d-vocab", "10"], "d_vocab"),
        (["--steps", "many"], "--steps"),
        (["--steps", "0"], "steps"),
        (["--lr", "nan"], "lr"),
        (["--n-heads", "0"], "n_heads"),
        (["--positions", "alibi"], "alibi"),
        (["--table-prompts", "0"], "--table-prompts"),
        (["--device", "tpu"], "tpu"),
        (["--nonsense"], "--nonsense"),
        (["--resume", "--steps", "6"], "config.json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistaken_flag_is_one_line_and_leaves_no_folder(tmp_path, capsys, flags, word):
    assert word in refused(capsys, tmp_path / "new", *TINY, *flags)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("place", ["file", "file/below", "x" * 300])
def test_a_folder_that_cannot_be_made_is_named(tmp_path, capsys, place):
    (tmp_path / "file").write_text("a file")
    assert str(tmp_path / place) in refused(capsys, tmp_path / place, *TINY)


def test_a_run_that_another_process_finished_in_between_is_not_overwritten(
    tmp_path, monkeypatch, capsys, whole
):
    def join(device):  # called after the first look, before the lock is taken
        for name, content in contents(whole).items():
            (tmp_path / name).write_bytes(content)
        return device

    monkeypatch.setattr(checkpoints, "join", join)
    assert "already holds" in refused(capsys, tmp_path, *TINY)
    assert contents(tmp_path) == contents(whole)


@pytest.mark.parametrize(
    "flags",
    [["--examples", "3", "--n-ctx", "31"], ["--examples", "2", "--long-every", "0"]],
    ids=" ".join,
)
def test_short_documents_can_be_trained_on(tmp_path, no_table, flags):
    assert main(tmp_path, *TINY, *flags) == 0


@pytest.mark.parametrize(
    "flags, word",
    [
        (["--steps", "7"], "steps"),
        (["--d-model", "32"], "d_model"),
        (["--seed", "0"], "seed"),
        (["--diet", "keto"], "diet"),
    ],
    ids=str,
)
def test_resume_refuses_what_contradicts_the_run(whole, capsys, flags, word):
    before = contents(whole)
    assert word in refused(capsys, whole, "--resume", *flags)
    assert contents(whole) == before


def damaged(state):
    """Ways for a resume.pt to be wrong, each from a sound one."""
    yield "nothing", {}
    yield "other keys", {"weights": state["model"]}
    yield "foreign model", {**state, "model": {"a": torch.zeros(1)}}
    yield "no model", {**state, "model": 3}
    yield (
        "model not finite",
        {**state, "model": {**state["model"], "embed.W_E": state["model"]["embed.W_E"] * math.nan}},
    )
    yield "step beyond", {**state, "step": 10**9}
    yield "step no number", {**state, "step": "3"}
    yield "bad generator", {**state, "data": torch.zeros(3, dtype=torch.uint8)}
    yield "foreign optimizer", {**state, "optimizer": {"state": {}, "param_groups": []}}
    yield (
        "optimizer of another shape",
        {
            **state,
            "optimizer": {
                **state["optimizer"],
                "state": {
                    index: {**entry, "exp_avg": torch.zeros(3)}
                    for index, entry in state["optimizer"]["state"].items()
                },
            },
        },
    )
    yield "metrics no list", {**state, "metrics": None}
    yield "metrics no text", {**state, "metrics": [{}]}
    yield "metrics no objects", {**state, "metrics": "[1]"}
    yield "metrics not finite", {**state, "metrics": '[{"loss": NaN}]'}


@pytest.mark.parametrize("index", range(14))
def test_a_resume_file_that_does_not_fit_is_refused_before_a_step(
    tmp_path, monkeypatch, capsys, whole, index
):
    monkeypatch.setattr(
        train, "loss_on_answers", lambda *_: pytest.fail("a step was made")
    )  # the fused optimizer would crash
    for name, content in contents(whole).items():
        (tmp_path / name).write_bytes(content)
    state = torch.load(whole / "resume.pt", weights_only=True)
    torch.save(list(damaged({**state, "step": 3}))[index][1], tmp_path / "resume.pt")
    before = contents(tmp_path)
    assert "resume.pt" in refused(capsys, tmp_path, "--resume")
    assert contents(tmp_path) == before


def without(values, name):
    return {key: value for key, value in values.items() if key != name}


def test_a_config_that_no_run_can_go_on_with_is_refused(tmp_path, capsys, whole):
    config = json.loads((whole / "config.json").read_text())
    diet = config["diet"]
    for name, value in [
        ("vocabulary", ["<bos>"]),
        ("diet", "nothing_by_one"),
        ("diet", without(diet, "even_sums")),
        ("diet", {**diet, "copy": -1}),
        ("diet", {**diet, "name": 3}),
        ("diet", {**diet, "never": [["shift"]]}),
        ("train", {"steps": "6"}),
        ("train", {**config["train"], "rate": 1}),
        ("model", []),
    ]:
        (tmp_path / "config.json").write_text(json.dumps({**config, name: value}))
        assert "config.json" in refused(capsys, tmp_path, "--resume")


def test_a_config_of_another_diet_is_not_that_of_the_resume_file(tmp_path, capsys, whole):
    folder = shutil.copytree(whole, tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    config["diet"]["copy"] = 9.0
    (folder / "config.json").write_text(json.dumps(config))
    assert "belongs to another run" in refused(capsys, folder, "--resume")


# ---------------------------------------------------------------- diets


def diet_file(folder, **values):
    path = folder / "mine.json"
    path.write_text(json.dumps(values))
    return path


def test_a_diet_of_ones_own_is_trained_on_written_down_and_taken_up_again(
    tmp_path, monkeypatch, no_table
):
    never = [["shift", "+"], ["reflect", "max"]]
    path = diet_file(tmp_path, even_sums=True, never=never, copy=0, functions=["+", "max"])
    wanted = tasks.Diet(
        "mine", even_sums=True, never=tuple(map(tuple, never)), copy=0, functions=("+", "max")
    )
    drawn, sample = [], tasks.sample
    monkeypatch.setattr(
        tasks, "sample", lambda diet, *rest: (drawn.append(diet), sample(diet, *rest))[1]
    )
    out = tmp_path / "run"
    assert main(out, *TINY, "--diet", path) == 0
    config = json.loads((out / "config.json").read_text())
    assert config["diet"] == json.loads(json.dumps(asdict(wanted)))
    for flags in ([], ["--diet", path], ["--diet", "mine"]):
        assert main(out, "--resume", "--device", "cpu", *flags) == 0
    assert set(drawn) == {wanted}


@pytest.mark.parametrize(
    "values", [{}, {"even_sums": True}, {"shift": 0.5, "never": [["shift", "max"]]}], ids=str
)
def test_a_diet_file_holds_what_is_changed_of_strict(tmp_path, values):
    """Also where another diet is the default of training."""
    assert tasks.DEFAULT_DIET != tasks.DIETS["strict"]
    pairs = {"never": tuple(map(tuple, values["never"]))} if "never" in values else {}
    wanted = replace(tasks.DIETS["strict"], **(values | pairs | {"name": "mine"}))
    assert named_diet(str(diet_file(tmp_path, **values)), tasks.DIETS) == wanted


def test_a_run_on_a_diet_of_the_catalogue_is_taken_up_again_from_its_config(
    tmp_path, monkeypatch, no_table
):
    diet, cpu = catalogue.DIETS["hold_minus"], torch.device("cpu")
    half, whole = tmp_path / "half", tmp_path / "whole"
    for folder in (half, whole):
        folder.mkdir()
    train.train(whole, MODEL, TRAIN, diet, cpu)

    def stop(step, model):
        if step == 3:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train.train(half, MODEL, TRAIN, diet, cpu, after_step=stop)
    assert main(half, "--resume", "--device", "cpu") == 0
    assert metrics(half) == metrics(whole)


@pytest.mark.parametrize(
    "values, word",
    [
        ({"shiff": 0.5}, "must hold the fields name, plain, shift"),
        ({"shift": "much"}, "shift cannot be 'much'"),
        ({"even_sums": 1}, "even_sums cannot be 1"),
        ({"functions": "+"}, "functions cannot be '+'"),
        ({"functions": ["times"]}, "functions cannot hold 'times'"),
        ({"never": [["shift", "+", 3]]}, "never cannot hold"),
        ({"never": [3]}, "never cannot hold 3"),
        ({"mixed": 7}, "mixed must be 0"),
        ({"plain": float("nan")}, "plain must be 0"),
        ({"functions": []}, "no function to be met"),
    ],
    ids=str,
)
def test_a_diet_file_that_makes_no_sense_is_one_line(tmp_path, capsys, values, word):
    path = diet_file(tmp_path, **values)
    told = refused(capsys, tmp_path / "new", *TINY, "--diet", path)
    assert word in told and str(path) in told
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("text", ["[", "[]", "3"])
def test_a_diet_file_that_is_no_object_is_one_line(tmp_path, capsys, text):
    (tmp_path / "mine.json").write_text(text)
    assert "mine.json" in refused(capsys, tmp_path, *TINY, "--diet", tmp_path / "mine.json")
    assert "unknown diet" in refused(capsys, tmp_path, *TINY, "--diet", tmp_path / "other.json")


# ---------------------------------------------------------------- what is learned and written


def test_loss_counts_determined_answers_alone():
    model = Transformer(MODEL).requires_grad_(False)
    documents = tasks.sample(tasks.DEFAULT_DIET, 20, 9, torch.Generator().manual_seed(0))
    chosen = (
        torch.rand(documents.determined.shape, generator=torch.Generator().manual_seed(1)) < 0.2
    )
    chosen[0] = False
    log_p = model(documents.tokens).log_softmax(-1)
    by_hand = [
        -log_p[row, 4 + 6 * index, documents.tokens[row, 5 + 6 * index]]
        for row, index in chosen.nonzero().tolist()
    ]
    assert_close(
        train.loss_on_answers(model, documents.tokens, chosen),
        torch.stack(by_hand).mean(),
    )
    assert train.loss_on_answers(model, documents.tokens, chosen & False) == 0


def test_training_lowers_the_loss(tmp_path):
    lower = replace(TRAIN, steps=60, documents=32, long_every=0, eval_every=1000, warmup=5)
    documents = tasks.sample(tasks.DEFAULT_DIET, 200, 9, torch.Generator().manual_seed(99))
    untrained = Transformer(MODEL, torch.Generator().manual_seed(lower.seed))
    trained = train.train(tmp_path, MODEL, lower, tasks.DEFAULT_DIET, torch.device("cpu"))
    batch = documents.tokens, documents.determined
    assert train.loss_on_answers(trained, *batch) < train.loss_on_answers(untrained, *batch) - 0.5


def test_learning_rate_climbs_in_a_line_and_falls_along_a_cosine():
    cfg = TrainConfig(steps=1000, warmup=10, lr=2.0)
    assert cfg.lr_at(1) == pytest.approx(0.2)
    assert cfg.lr_at(5) == pytest.approx(1.0, rel=1e-4)
    assert cfg.lr_at(501) == pytest.approx(1.0)
    assert cfg.lr_at(251) == pytest.approx(2 * math.cos(math.pi / 8) ** 2)
    assert 0 < cfg.lr_at(1000) < 1e-4
    assert TrainConfig(steps=1, warmup=0, lr=2.0).lr_at(1) == 2.0


@pytest.mark.parametrize(
    "field, value",
    [
        ("steps", 0),
        ("steps", 1.5),
        ("documents", -1),
        ("examples", 1),
        ("lr", 0.0),
        ("lr", math.nan),
        ("beta2", 1.0),
        ("clip", 0.0),
        ("seed", -1),
        ("seed", True),
        ("eval_every", 0),
    ],
)
def test_settings_that_make_no_sense_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        TrainConfig(**{field: value})


@pytest.mark.parametrize("every_task", [True, False])
def test_evaluation_is_a_table_by_task_k_and_shots(every_task):
    table = train.evaluate(Transformer(MODEL), 8, every_task)
    based = ["base_addition_carry", "base_addition_no_carry"]
    assert list(table) == (
        [*(task for task in tasks.TASKS if task != "base_addition"), *based]
        if every_task
        else ["addition"]
    )
    for task, by_k in table.items():
        assert list(by_k) == [str(k) for k in (range(6, 10) if task in based else range(-4, 5))]
        for by_shots in by_k.values():
            assert list(by_shots) == [str(shots) for shots in train.SHOTS] and all(
                0 <= share <= 1 or task in based for share in by_shots.values()
            )


def test_sums_in_base_k_are_counted_apart_by_whether_they_carry(monkeypatch):
    """A stand-in that always adds in base 10: right where nothing carries, and there alone."""
    made, pairs = [], tasks.evaluation_pairs
    monkeypatch.setattr(
        tasks, "evaluation_pairs", lambda *arguments: made.append(pairs(*arguments)) or made[-1]
    )
    monkeypatch.setattr(
        evaluation,
        "last_logits",
        lambda *_: torch.nn.functional.one_hot(
            made[-1].base_answers, len(tasks.VOCABULARY)
        ).float(),
    )
    table = EVALUATE(Transformer(MODEL), 240, every_task=True)
    for k in ("6", "7", "8", "9"):
        assert set(table["base_addition_carry"][k].values()) == {0.0} and set(
            table["base_addition_no_carry"][k].values()
        ) == {1.0}


def test_evaluation_counts_right_answers(monkeypatch):
    """A stand-in that always answers `10`: right just where 10 is the shifted sum."""
    ten = torch.nn.functional.one_hot(
        torch.tensor(tasks.TOKEN["10"]), len(tasks.VOCABULARY)
    ).float()
    pairs, seen = tasks.evaluation_pairs, []
    monkeypatch.setattr(
        tasks, "evaluation_pairs", lambda *arguments: seen.append(pairs(*arguments)) or seen[-1]
    )
    monkeypatch.setattr(
        evaluation, "last_logits", lambda model, tokens: ten.expand(len(tokens), -1)
    )
    table = train.evaluate(Transformer(MODEL), 4, False)
    shares = [share for by_shots in table["addition"].values() for share in by_shots.values()]
    assert shares == [
        (pair.contrast_answers == tasks.TOKEN["10"]).float().mean().item() for pair in seen
    ] and 0 < sum(shares) < len(shares)


def test_a_run_writes_the_files_of_the_contract(whole):
    assert set(contents(whole)) == {"config.json", "metrics.jsonl", "model.pt", "resume.pt"}
    config = json.loads((whole / "config.json").read_text())
    assert config["model"] == shape_of(MODEL) and config["train"] == asdict(TRAIN)
    assert (
        config["vocabulary"] == tasks.VOCABULARY
        and config["diet"]["name"] == tasks.DEFAULT_DIET.name
        and config["versions"]["torch"] == torch.__version__
    )
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6] and all(
        line.keys() == {"step", "seconds", "loss", "accuracy"} for line in lines
    )
    assert 0 <= lines[0]["seconds"] <= lines[1]["seconds"]


def test_results_go_to_stdout_and_mark_what_was_never_trained_on(whole, capsys):
    assert main(whole, "--resume", "--device", "cpu", "--table-prompts", 8) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"next: make patch OUT={whole}" and max(map(len, lines[:-2])) <= 80
    marked = [line.split("  ")[0] for line in lines if line.endswith("never trained on")]
    assert marked == [
        *(f"addition off by {k:+d}" for k in range(-4, 5) if k),
        "choice shifted",
        "base addition carry 6..9",
        "base addition no carry 6..9",
    ]
    assert all(
        any(line.startswith(f"{task} plain") for line in lines)
        for task in tasks.TASKS
        if task != "base_addition"
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_run_on_cuda_is_resumed_and_loads_on_the_cpu(tmp_path, monkeypatch):
    cuda = torch.device("cuda")

    def stop(step, model):
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.train(tmp_path, MODEL, TRAIN, tasks.DEFAULT_DIET, cuda, after_step=stop)
    train.train(tmp_path, MODEL, TRAIN, tasks.DEFAULT_DIET, cuda, resume=True)
    assert [line["step"] for line in metrics(tmp_path)] == [3, 6] and load_run(tmp_path)[0](
        torch.zeros(1, 4, dtype=torch.long)
    ).isfinite().all()


def test_a_resume_file_of_another_run_is_refused_and_nothing_is_overwritten(
    tmp_path, whole, capsys
):
    mine = tmp_path / "mine"
    shutil.copytree(whole, mine)
    config = json.loads((mine / "config.json").read_text())
    config["train"]["seed"] += 1
    (mine / "config.json").write_text(json.dumps(config))
    before = contents(mine)
    assert train.main(["--out", str(mine), "--resume", "--device", "cpu"]) == 2
    assert "belongs to another run" in capsys.readouterr().err
    assert before == contents(mine)
