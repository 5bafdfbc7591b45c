import functools
import json

import pytest
import torch

import patch
import tasks
from commands import ask, check
from minifunc.model import ModelConfig, Transformer
from minifunc.support.errors import UserError
from minifunc.support.files import save_json, save_tensors

CFG = ModelConfig(
    n_layers=1, n_heads=2, d_model=8, d_head=4, d_mlp=8, d_vocab=len(tasks.VOCABULARY)
)


@pytest.fixture
def run(tmp_path):
    model = Transformer(CFG)
    save_tensors(tmp_path / "model.pt", model.state_dict())
    save_json(tmp_path / "config.json", {"model": vars(CFG), "vocabulary": tasks.VOCABULARY})
    return tmp_path


plain_answer = functools.lru_cache(ask.plain_answer)


def plain_of(row, place):
    """The plain answer to the problem before a place of a row of tokens."""
    return plain_answer(row[place - 4], row[place - 3], row[place - 2])


def logits_of(given):
    return (
        20
        * torch.nn.functional.one_hot(
            given.clamp(0, len(tasks.VOCABULARY) - 1), len(tasks.VOCABULARY)
        ).float()
    )


def adds(tokens):
    """Logits [n_prompts, d_vocab] of a model that only ever answers plainly."""
    return logits_of(torch.tensor([plain_of(row, tokens.shape[1]) for row in tokens.tolist()]))


def follows(tokens, spread=True):
    """And of one that does what most of the examples show, whatever is asked, or (not spread) only if they are of the same function."""
    places = tasks.answer_positions((tokens.shape[1] - 5) // tasks.EXAMPLE)
    off = (
        (
            tokens[:, places]
            - torch.tensor(
                [[plain_of(row, place) for place in places.tolist()] for row in tokens.tolist()]
            )
        )
        .mode(1)
        .values
    )
    return logits_of(adds(tokens).argmax(1) + off * (spread | (tokens[:, -9] == tokens[:, -3])))


def checklist(run, monkeypatch, answers, k=1):
    for name, value in {"N_PROMPTS": 150, "N_EACH": 40}.items():
        monkeypatch.setattr(check, name, value)
    monkeypatch.setattr(check, "last_logits", lambda model, tokens: answers(tokens))
    return check.Checklist(Transformer(CFG), {"diet": {"mixed": 0.8}}, run, k, 0)


BEHAVIOUR = (
    "old_rule",
    "new_rule",
    "how_many",
    "other_amounts",
    "odd_among_old",
    "odd_among_new",
    "not_shown",
    "spreads",
    "confidence",
    "pattern",
    "over_prompts",
)


def verdicts(checks):
    return {name: getattr(checks, name)().verdict for name in BEHAVIOUR}


def test_a_model_that_follows_the_majority_passes_and_one_that_spreads_the_rule_is_told_so(
    run, monkeypatch
):
    assert verdicts(checklist(run, monkeypatch, follows)) == dict.fromkeys(BEHAVIOUR, "pass") | {
        "spreads": "fail"
    }
    assert (
        checklist(run, monkeypatch, lambda tokens: follows(tokens, spread=False)).spreads().verdict
        == "pass"
    )


def test_a_model_that_only_adds_fails_what_asks_for_a_new_rule_and_nothing_else(run, monkeypatch):
    found = verdicts(checklist(run, monkeypatch, adds))
    assert {name for name, verdict in found.items() if verdict == "fail"} == {
        "new_rule",
        "how_many",
        "other_amounts",
        "odd_among_new",
        "confidence",
        "pattern",
        "over_prompts",
    }


def test_failures_are_listed_with_their_pattern(run, monkeypatch):
    def fails_on_carries(tokens):
        carries = adds(tokens).argmax(1) >= tasks.ZERO + 10
        return torch.where(carries[:, None], adds(tokens), follows(tokens))

    result = checklist(run, monkeypatch, fails_on_carries).pattern()
    assert (
        result.verdict == "fail"
        and "the sum has two digits 100%" in result.measured
        and "the sum has one digit 0%" in result.measured
    )
    assert result.examples and all(
        "the sum has two digits" in example["pattern"]
        and "answered the plain answer" in example["pattern"]
        for example in result.examples
    )


def test_odd_examples_are_one_in_each_prompt_and_from_the_paired_one(run, monkeypatch):
    checks = checklist(run, monkeypatch, follows)
    odd = checks._one_odd(checks.pairs.base, checks.pairs.contrast)
    changed = odd != checks.pairs.base
    assert (
        (changed.sum(1) == 1).all()
        and torch.equal(odd[changed], checks.pairs.contrast[changed])
        and changed.any(0).sum() == check.SHOTS
    )


@pytest.mark.parametrize(
    "right, at_least, verdict",
    [
        (100, True, "pass"),
        (96, True, "could not tell"),
        (80, True, "fail"),
        (0, False, "pass"),
        (92, False, "could not tell"),
        (100, False, "fail"),
    ],
)
def test_a_verdict_needs_the_whole_interval(right, at_least, verdict):
    assert check.judge(right, 100, 0.92, at_least)["verdict"] == verdict


def test_heads_are_judged_by_what_is_left_without_them(run, monkeypatch):
    save_json(run / "circuit.json", {"task": "addition", "groups": {"function_induction": ["0.1"]}})
    checks = checklist(run, monkeypatch, follows)
    assert checks.fi == ["0.1"]
    monkeypatch.setattr(
        checks,
        "_swapped",
        lambda groups: torch.stack(
            [
                checks.pairs.base_answers
                if list(group) == ["0.1"]
                else checks.pairs.contrast_answers
                for group in groups
            ]
        ),
    )
    assert checks.carriers().verdict == checks.others().verdict == "pass"
    monkeypatch.setattr(
        checks,
        "_swapped",
        lambda groups: torch.stack(
            [
                checks.pairs.contrast_answers
                if list(group) == ["0.1"]
                else checks.pairs.base_answers
                for group in groups
            ]
        ),
    )
    assert checks.carriers().verdict == checks.others().verdict == "fail"


def test_without_a_circuit_the_heads_cannot_be_told(run, monkeypatch):
    checks = checklist(run, monkeypatch, follows)
    assert {
        check_.verdict for check_ in (checks.carriers(), checks.others(), checks.rest_intact())
    } == {"could not tell"}


@pytest.mark.parametrize(
    "rows, verdict",
    [
        (None, "could not tell"),
        ([0.99] * 4, "could not tell"),
        ([0.99] * 9 + [0.3], "pass"),
        ([0.99] * 8 + [0.3, None], "fail"),
    ],
)
def test_seeds_are_counted_from_the_results_of_dependability(run, monkeypatch, rows, verdict):
    monkeypatch.setattr(check, "DEPENDABILITY", run / "dependability.json")
    if rows:
        save_json(run / "dependability.json", [{"off_by_one_8": share} for share in rows])
    assert checklist(run, monkeypatch, follows).over_seeds().verdict == verdict


def test_the_command_writes_check_json_and_says_by_its_exit_code_whether_all_is_well(
    run, monkeypatch, capsys
):
    for name in ("N_PROMPTS", "N_EACH"):
        monkeypatch.setattr(check, name, 10)
    assert patch.main(["--run", str(run), "--device", "cpu", "--check"]) == 1  # an untrained model
    written = json.loads((run / "check.json").read_text())
    assert len(written["checks"]) == 15 and len({row["name"] for row in written["checks"]}) == 15
    assert {row["verdict"] for row in written["checks"]} <= {
        "pass",
        "fail",
        "could not tell",
    } and all(
        row["means"] and row["advice"] and row["wanted"] and row["measured"]
        for row in written["checks"]
    )
    assert "FAIL" in capsys.readouterr().out
    monkeypatch.setattr(
        check.Checklist,
        "results",
        lambda self: [check.Result("x", "x?", "x", "x", "x", "could not tell", "x", "x")],
    )
    assert patch.main(["--run", str(run), "--device", "cpu", "--check"]) == 0


@pytest.mark.parametrize(
    "flags, circuit, says",
    [
        (["--k", "0"], None, "no new rule"),
        (["--k", "9"], None, "no new rule"),
        ([], {"task": "addition", "groups": 3}, "names no heads"),
        ([], {"task": "addition", "groups": {"function_induction": ["7.7"]}}, "names no heads"),
        ([], [], "names no heads"),
    ],
)
def test_what_cannot_be_checked_is_one_line_and_exit_code_2(run, capsys, flags, circuit, says):
    if circuit is not None:
        save_json(run / "circuit.json", circuit)
    assert patch.main(["--run", str(run), "--device", "cpu", "--check", *flags]) == 2
    captured = capsys.readouterr()
    assert (
        says in captured.err
        and captured.err.count("\n") == 1
        and captured.out == ""
        and not (run / "check.json").exists()
    )


def test_a_short_context_is_told(run):
    with pytest.raises(UserError, match="53 tokens"):
        check.run(
            Transformer(ModelConfig(n_layers=1, d_vocab=len(tasks.VOCABULARY), n_ctx=32)),
            {},
            run,
            1,
            0,
        )
