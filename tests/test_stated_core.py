"""What docstrings of the core state, held by what is known of it beforehand."""

import json
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from statistics import fmean, pstdev
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

import patch
import tasks
import train
from minifunc import circuit
from minifunc.ablation import CircuitScores
from minifunc.analysis.rows import Prompts, ablation_row, control_row, discovered
from minifunc.circuit import Criteria, discover, feeding
from minifunc.model import ModelConfig, Transformer
from minifunc.patching import Effects
from minifunc.support.errors import UserError
from minifunc.support.evaluation import wilson
from train import TrainConfig

SMALL = ModelConfig(
    n_layers=2, n_heads=2, d_model=8, d_head=4, d_mlp=8, d_vocab=len(tasks.VOCABULARY)
)


def effects(heads, mlp=0.0, embedding=0.0):
    values = ([heads], [mlp], embedding)
    return Effects(*(torch.tensor(x, dtype=torch.float64) for x in values))


# ---------------------------------------------------------------- discovery


def test_what_feeds_is_the_same_in_whatever_order_the_receivers_come():
    """Each sender by its r of largest size, of either sign, the strongest first."""
    receivers = [
        effects([0.1, -0.3, 0.019], -0.02, 0.0),
        effects([-0.4, 0.2, -0.019], 0.01, 0.03),
        effects([0.2, 0.25, 0.0], -0.01, -0.05),
    ]
    stated = [("0.0", -0.4), ("0.1", -0.3), ("embedding", -0.05), ("mlp0", -0.02)]
    for some in permutations(receivers):
        assert list(feeding(some, Criteria()).items()) == stated


def test_operands_stand_four_and_two_before_an_answer_unless_it_is_said_otherwise(monkeypatch):
    given = []

    def shares(model, tokens, answers, operands):
        given.append((answers.tolist(), tuple(operands)))
        raise StopIteration

    monkeypatch.setattr(circuit, "attention_shares", shares)
    monkeypatch.setattr(circuit.checks, "same_prompts", lambda patchers, _: patchers)
    patchers = {"answers": SimpleNamespace(model=None, contrast_tokens=None)}
    for more in ((), (True, (5, 3))):
        with pytest.raises(StopIteration):
            discover(patchers, torch.tensor([5, 11]), Criteria(), *more)
    assert given == [([5, 11], (4, 2)), ([5, 11], (5, 3))]


def test_what_is_kept_of_a_discovery_stands_under_its_contrast():
    of = {"logits": ([0.123456, 0.0, -1.0], 0.5, 0.25), "0.1.v": ([0.0, 0.2, 0.0], 0.0, 0.0)}
    answers = {receiver: effects(*r) for receiver, r in of.items()}
    operands = {"logits": effects([0.7, 0.0, 0.0]), "0.2.k": effects([0.0, 0.0, 0.0], 0.9)}
    groups = {"function_induction": ["0.2"], "shown_answer": ["0.0"]}
    looks = {"0.2": {"last_to_answers": 0.4}}
    routes = {"shown_answer": {"0.0": -0.123456}, "expected_answer": {}}
    found = circuit.Discovery({"answers": answers, "operands": operands}, looks, groups, routes)
    kept = discovered(found, {"operands_changed": {"F": {"base": 3.0}}})
    assert kept["effects"] == {
        "logits": {"heads": [[0.123456, 0.0, -1.0]], "mlps": [0.5], "embedding": 0.25},
        "0.1.v": {"heads": [[0.0, 0.2, 0.0]], "mlps": [0.0], "embedding": 0.0},
    }
    assert kept["operands_changed"] == {
        "F": {"base": 3.0},
        "effects": {
            "logits": {"heads": [[0.7, 0.0, 0.0]], "mlps": [0.0], "embedding": 0.0},
            "0.2.k": {"heads": [[0.0, 0.0, 0.0]], "mlps": [0.9], "embedding": 0.0},
        },
    }
    assert kept["groups"] == groups and kept["attention"] == looks
    assert kept["routes"] == {"shown_answer": {"0.0": -0.123456}, "expected_answer": {}}


@pytest.mark.parametrize("F_range", [1e-6, -1e-6, 0.0, float("nan")])
def test_a_millionth_of_a_logit_and_less_is_nothing_to_be_a_share_of(F_range):
    scores = object.__new__(CircuitScores)
    scores.F_range = F_range
    with pytest.raises(ValueError, match="nothing"):
        scores.share(1.0)


# ---------------------------------------------------------------- training by several processes


def test_what_several_processes_found_is_summed_before_a_step(monkeypatch):
    """The loss, and the gradient of each weight that has one: here another did just the same."""
    documents = tasks.sample(tasks.DEFAULT_DIET, 8, 4, torch.Generator().manual_seed(0))
    batch = documents.tokens, documents.determined
    cfg, after = TrainConfig(clip=1e9), []
    for others in (0, 1):

        def all_sum(*tensors, others=others):
            for tensor in tensors:
                tensor.data.mul_(1 + others)

        monkeypatch.setattr(train, "all_sum", all_sum)
        model = Transformer(SMALL, torch.Generator().manual_seed(1)).double()
        model.unembed.W_U.requires_grad_(False)  # it has no gradient
        before = [weight.detach().clone() for weight in model.parameters()]
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        loss, norm = train.train_step(model, optimizer, cfg, 0.5, *batch)
        moved = [old - new.detach() for old, new in zip(before, model.parameters())]
        after.append([loss, norm, *moved])
    assert_close([2 * x for x in after[0]], after[1])
    assert sum(bool(x.any()) for x in after[0]) == len(after[0]) - 1


def test_the_closing_table_is_of_every_task_on_as_many_prompts_and_marks_by_the_runs_diet(
    monkeypatch, capsys
):
    asked = []
    monkeypatch.setattr(train, "evaluate", lambda *given, **how: asked.append((given, how)) or "it")
    monkeypatch.setattr(train, "accuracy_table", lambda *given: asked.append(given) or ["a", "b"])
    diet = tasks.DIETS["strict"]
    train.print_table("model", diet, 16)
    assert asked[0] == (("model", 16), {"every_task": True})
    assert asked[1] == ("it", tasks, diet, (1, 2, 4, 8, 16), 16)
    assert capsys.readouterr().out == "a\nb\n"


def test_train_py_trains_and_tells_of_what_its_flags_say(monkeypatch, tmp_path, capsys):
    given = []
    monkeypatch.setattr(train, "train", lambda *arguments: given.append(arguments) or "model")
    monkeypatch.setattr(train, "print_table", lambda *arguments: given.append(arguments))
    flags = ["--diet", "strict", "--table-prompts", "9", "--steps", "7", "--n-heads", "2"]
    assert train.main(["--out", str(tmp_path / "run"), "--device", "cpu", *flags]) == 0
    (out, model, cfg, diet, device, resume, after_step), table = given
    assert (out, diet, device) == (tmp_path / "run", tasks.DIETS["strict"], torch.device("cpu"))
    assert model == replace(train.MODEL, n_heads=2) and cfg == TrainConfig(steps=7)
    assert (resume, after_step) == (False, None)
    assert table == ("model", tasks.DIETS["strict"], 9)
    assert capsys.readouterr().out.endswith(f"next: make patch OUT={tmp_path / 'run'}\n")


@pytest.mark.parametrize("examples, long_every, needed", [(9, 2, 103), (9, 0, 55), (2, 1, 19)])
def test_a_context_is_enough_that_holds_the_longest_document(
    monkeypatch, tmp_path, capsys, examples, long_every, needed
):
    """One token, and six for each example: 17 where every so many-th batch is long."""
    monkeypatch.setattr(train, "train", lambda *_: None)
    monkeypatch.setattr(train, "print_table", lambda *_: None)
    flags = [f"--examples={examples}", f"--long-every={long_every}", "--device=cpu"]
    for n_ctx, code in ((needed, 0), (needed - 1, 2)):
        out = f"--out={tmp_path / str(n_ctx)}"
        assert train.main([out, f"--n-ctx={n_ctx}", *flags]) == code
    assert f"n_ctx >= {needed}" in capsys.readouterr().err


# ---------------------------------------------------------------- a diet of some functions


def test_a_function_that_a_diet_leaves_out_is_never_met():
    for symbol in tasks.SYMBOLS:
        diet = tasks.Diet("one", functions=(symbol,), never=())
        assert [bool(diet.weight(other)) for other in tasks.SYMBOLS] == [
            other == symbol for other in tasks.SYMBOLS
        ]


# ---------------------------------------------------------------- patch.py


def test_shares_of_right_answers_stand_by_prompt_and_by_answer(monkeypatch):
    """The base answer on .75 and the contrast answer on .25 of base prompts; on contrast prompts
    on none and on .5."""
    prompts = {"base": [5, 5, 5, 7], "contrast": [0, 0, 7, 7]}  # what is answered to each
    given = {"base_answers": [5] * 4, "contrast_answers": [7] * 4}
    pairs = SimpleNamespace(**{name: torch.tensor(x) for name, x in (prompts | given).items()})

    def last_logits(model, answers):
        return torch.nn.functional.one_hot(answers, 10).float()

    monkeypatch.setattr(patch, "last_logits", last_logits)
    assert patch.solving(None, pairs) == {
        "base_prompt": {"base": 0.75, "contrast": 0.25},
        "contrast_prompt": {"base": 0.0, "contrast": 0.5},
    }


# ---------------------------------------------------------------- rows of ablations

GIVEN = {  # by group: what is answered to four prompts, as "b"ase, "c"ontrast or neither
    ("0.0",): "bbc.",
    ("0.1", "1.0"): "bccc",
    ("1.1",): "....",
    (): "cccb",
}


class Answering:
    """Stands in for an `Ablator` of four prompts."""

    n_prompts = 4

    def logits(self, groups, how):
        assert how == "mean"
        tokens = [["bc.".index(answer) for answer in GIVEN[tuple(group)]] for group in groups]
        return torch.nn.functional.one_hot(torch.tensor(tokens), 3).float()


def test_rows_tell_base_and_contrast_answers_apart_and_which_of_them_each_figure_is_of():
    answers = torch.full((4,), 0), torch.full((4,), 1)
    prompts = Prompts(Answering(), answers)
    row = ablation_row(prompts, "it", ["0.1", "1.0"], "mean")
    assert (row["base_acc"], row["contrast_acc"]) == (0.25, 0.75)
    assert (row["base_ci"], row["ci"]) == (wilson(0.25, 4), wilson(0.75, 4))

    draws = [["0.0"], ["0.1", "1.0"], ["0.1", "1.0"], ["1.1"], ["0.1", "1.0"]]
    row = control_row(prompts, "random", draws, "mean")
    contrast = [0.25, 0.75, 0.75, 0.0, 0.75]
    assert row["base_acc"] == 0.25 and row["contrast_acc"] == fmean(contrast)
    assert row["sd"] == round(pstdev(contrast), 4)
    assert row["ci"] == [0.025, 0.75]  # a tenth of the way from the lowest to the next
    assert row["worst"] == {"heads": ["1.1"], "contrast_acc": 0.0}
    assert (row["n_draws"], row["n_groups"], row["n_heads"], row["n_prompts"]) == (5, 3, 1.6, 4)

    row = control_row(prompts, "random", [["0.0"], ["0.0"]], "mean")
    assert row["ci"] == wilson(0.25, 4) and row["sd"] == 0


def test_the_worst_group_is_that_of_the_fewest_contrast_answers():
    prompts = Prompts(Answering(), (torch.full((4,), 0), torch.full((4,), 1)))
    row = control_row(prompts, "random", [["0.1", "1.0"], ["0.0"]], "mean")
    assert row["worst"] == {"heads": ["0.0"], "contrast_acc": 0.25}  # its base answers are the most


def test_both_contrasts_are_patched_as_the_study_says(monkeypatch):
    """MLPs and memory; the paper's contrast is that of other shown answers."""
    made = []
    monkeypatch.setattr(patch, "PathPatcher", lambda *given: made.append(given) or len(made))
    pairs = tasks.evaluation_pairs("addition", 2, 2, 3, torch.Generator().manual_seed(0))
    study = patch.Study(k=2, shots=2, prompts=3, freeze_mlps=True, max_memory=0.25)
    assert study.patchers("model", pairs) == {"answers": 1, "operands": 2}
    both = "model", pairs.base_answers, pairs.contrast_answers, True, 0.25
    for (model, base, contrast, *more), own in zip(made, (pairs.base, pairs.operands_changed)):
        assert (model, *more) == both and torch.equal(base, own)
        assert torch.equal(contrast, pairs.contrast)
    assert patch.Study().freeze_mlps is False


def test_a_study_in_base_k_draws_queries_that_carry_and_another_any():
    generator = torch.Generator().manual_seed(0)
    of = patch.Study(task="base_addition", k=6, shots=2)
    assert of.pairs(200, generator).carry.all()
    assert not tasks.evaluation_pairs("base_addition", 6, 2, 200, generator).carry.all()


@pytest.mark.parametrize("float64", [True, False])
def test_patching_asks_for_a_device_that_has_float64(monkeypatch, float64):
    asked = []

    def pick(name, float64=False):
        asked.append((name, float64))
        raise UserError("enough")

    monkeypatch.setattr(patch if float64 else train, "pick_device", pick)
    main = patch.main if float64 else train.main
    assert main(["--device", "cpu"]) == 2
    assert asked == [("cpu", float64)]


@pytest.mark.parametrize("is_main", [True, False])
def test_one_of_several_processes_writes_the_findings(monkeypatch, tmp_path, is_main):
    monkeypatch.setattr(patch, "trace", lambda *_: {"seconds": 1.0, "found": "it"})
    monkeypatch.setattr(patch, "is_main", lambda: is_main)
    path, reference = tmp_path / "c.json", str(Path(__file__).parents[1] / "reference")
    assert patch.main(["--run", reference, "--device", "cpu", "--json", str(path)]) == 0
    assert path.exists() == is_main
    assert not is_main or json.loads(path.read_text())["found"] == "it"
