"""Sweeps that are kept on disk, and the two commands that trace models of others, on a tiny one."""

import copy
import json
from dataclasses import replace

import pytest
import torch

from commands import own_model, smollm
from minifunc.ablation import Ablator
from minifunc.analysis.long_sweeps import TOGETHER, LongSweeps
from minifunc.model import ModelConfig, Transformer
from minifunc.patching import HeadInput, Logits, PathPatcher
from minifunc.support.errors import UserError
from minifunc.support.evaluation import last_logits

CFG = ModelConfig(
    n_layers=3,
    n_heads=4,
    n_kv_heads=2,
    d_model=32,
    d_head=8,
    d_mlp=32,
    d_vocab=32,
    act_fn="silu",
    gated_mlp=True,
    tied_embeddings=True,
)
CHARACTERS = "?0123456789+=\n"


class Letters:
    """A tokenizer of single characters, with a token before each text."""

    first = (0,)

    def encode(self, text):
        return [0, *(CHARACTERS.index(character) for character in text)]

    def single_tokens(self, strings):
        for string in strings:
            if len(string) != 1 or string not in CHARACTERS:
                raise UserError(f"no single token for {string!r}")
        return [CHARACTERS.index(string) for string in strings]


class Pairs(Letters):
    """One that joins two digits, as many do."""

    def encode(self, text):
        return super().encode(text.replace("=", ""))


@pytest.fixture(scope="module")
def model():
    model = Transformer(CFG, torch.Generator().manual_seed(5)).requires_grad_(False)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("W_Q", "W_O", "W_out")):
                weight *= 3  # so that prompts are told apart
    return model


def drawn(n, seed=0):
    """n pairs of prompts with their answers."""
    prompts = smollm.draw(Letters(), n, 3, seed)
    tokens = prompts.shown(0), prompts.shown(1)
    return tokens, (prompts.answers(0), prompts.answers(1))


# ---------------------------------------------------------------- long sweeps


@pytest.mark.parametrize("receiver", [Logits(), HeadInput(2, 1, "v")], ids=str)
def test_a_sweep_in_parts_is_the_sweep_of_one_patcher(model, tmp_path, receiver):
    tokens, answers = drawn(2 * TOGETHER + 3)
    double = Transformer(CFG).double().requires_grad_(False)
    double.load_state_dict(model.state_dict())
    found = LongSweeps(double, tokens, answers, tmp_path).sweep(receiver)
    patcher = PathPatcher(double, *tokens, *answers)
    whole = patcher.sweep(receiver)
    assert whole.heads.abs().max() > 1e-3
    for part in ("heads", "mlps", "embedding", "per_prompt", "r"):
        ours, theirs = getattr(found.effects, part), getattr(whole, part)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.F_base, patcher.F_base, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.F_contrast, patcher.F_contrast, rtol=0, atol=1e-10)
    low, high = found.intervals()["0.0"]
    assert low <= whole.heads[0, 0] <= high


def test_intervals_go_by_the_senders_also_of_a_model_without_mlps(tmp_path):
    bare = replace(CFG, act_fn="none", gated_mlp=False)
    bare = Transformer(bare, torch.Generator().manual_seed(1)).requires_grad_(False)
    tokens, answers = drawn(TOGETHER)
    found = LongSweeps(bare, tokens, answers, tmp_path).sweep(Logits())
    intervals = found.intervals()
    assert list(intervals) == PathPatcher(bare, *tokens, *answers).senders
    named = found.effects.named()
    for name, (low, high) in intervals.items():
        assert low - 1e-4 <= named[name] <= high + 1e-4


def test_what_is_done_is_not_done_again_and_more_prompts_go_on(model, tmp_path, monkeypatch):
    tokens, answers = drawn(2 * TOGETHER + 3)
    swept = []
    sweep = PathPatcher.sweep

    def noted(patcher, *arguments):
        if len(swept) == 1 and not stopped:
            raise KeyboardInterrupt
        swept.append(patcher.n_prompts)
        return sweep(patcher, *arguments)

    monkeypatch.setattr(PathPatcher, "sweep", noted)
    stopped = []
    with pytest.raises(KeyboardInterrupt):
        LongSweeps(model, tokens, answers, tmp_path).sweep(Logits())
    stopped.append(True)
    again = LongSweeps(model, tokens, answers, tmp_path)
    few = again.sweep(Logits(), TOGETHER - 2)
    assert swept == [TOGETHER] and few.F_base.shape == (TOGETHER - 2,)
    whole = again.sweep(Logits())
    assert swept == [TOGETHER, TOGETHER, 3]
    fresh = LongSweeps(model, tokens, answers, tmp_path / "fresh").sweep(Logits())
    assert torch.equal(whole.effects.heads, fresh.effects.heads)
    assert torch.equal(few.F_contrast, fresh.F_contrast[: TOGETHER - 2])


@pytest.mark.parametrize("changed", ["weights", "prompts", "answers"])
def test_kept_effects_of_other_weights_or_prompts_are_refused(model, tmp_path, changed):
    tokens, answers = drawn(2)
    LongSweeps(model, tokens, answers, tmp_path).sweep(Logits())
    kept = (tmp_path / "logits.pt").read_bytes()
    if changed == "weights":
        model = Transformer(CFG).requires_grad_(False)
    if changed == "prompts":
        tokens, _ = drawn(2, seed=1)
    if changed == "answers":
        answers = answers[::-1]
    with pytest.raises(UserError, match="logits.pt is of other weights, prompts or positions"):
        LongSweeps(model, tokens, answers, tmp_path).sweep(Logits())
    assert (tmp_path / "logits.pt").read_bytes() == kept


def test_kept_effects_at_other_positions_are_refused(model, tmp_path):
    tokens, answers = drawn(3)
    sweeps, places = LongSweeps(model, tokens, answers, tmp_path), (None, [], [3], [3, 4])
    for kept in places:
        sweeps.sweep(HeadInput(2, 1, "v", kept))
        for other in places:
            receiver = HeadInput(2, 1, "v", other)
            if other == kept:
                sweeps.sweep(receiver)
                continue
            with pytest.raises(UserError, match="2.1.v.pt is of other weights, prompts or pos"):
                sweeps.sweep(receiver)
        (tmp_path / "2.1.v.pt").unlink()


# ---------------------------------------------------------------- sums


def test_prompts_are_spelled_as_the_tokenizer_does_and_show_what_they_say():
    prompts = smollm.draw(Letters(), 300, 3, seed=0)
    for d in (-1, 0, 1):
        for row, answer in zip(prompts.shown(d)[:50].tolist(), prompts.answers(d).tolist()):
            text = "".join(CHARACTERS[token] for token in row[1:])
            assert Letters().encode(text) == row
            *shown, asked = text.split("\n")
            left = [line.split("=") for line in shown]
            assert all(eval(sum_) + d == int(c) for sum_, c in left)
            right = eval(asked.removesuffix("=")) + d
            assert CHARACTERS[answer] == str(right)
            assert str(right) not in [c for _, c in left]
    changed = prompts.operands_changed()
    assert torch.equal(changed[:, -4:], prompts.shown(1)[:, -4:])  # the query
    places = prompts.places
    assert torch.equal(changed[:, places], prompts.shown(1)[:, places])
    for row in changed[:50].tolist():
        for line in "".join(CHARACTERS[token] for token in row[1:]).split("\n")[:-1]:
            sum_, c = line.split("=")
            assert eval(sum_) == int(c)
    asked = prompts.x[:, -1] + prompts.y[:, -1]
    assert set(asked.tolist()) == set(range(1, 9))


def test_a_tokenizer_that_joins_digits_is_refused():
    with pytest.raises(UserError, match="does not take a sum apart"):
        smollm.draw(Pairs(), 3, 3, seed=0).shown(0)


def test_what_is_undone_is_all_for_every_head_and_nothing_for_none(model):
    """Base values for all heads leave the base run: the embedding of the last `=` is the same."""
    prompts = smollm.draw(Letters(), 20, 3, seed=0)
    judged = smollm.Judged(model, prompts, "base")
    every = [f"{layer}.{head}" for layer in range(3) for head in range(4)]
    whole, nothing = judged.rows("x", [every])[0], judged.rows("x", [[]])[0]
    assert whole["undone"] == pytest.approx(1, abs=1e-4)
    assert nothing["undone"] == pytest.approx(0, abs=1e-6)
    some = judged.rows("x", [every[8:]])[0]
    low, high = some["undone_ci"]
    assert low < some["undone"] < high and abs(some["undone"] - 1) > 0.01
    judged = smollm.Judged(model, prompts, "mean")
    by_hand = judged.ablator.logits_plainly(every[8:], "mean")
    base, contrast = prompts.answers(0)[:, None], prompts.answers(1)[:, None]
    F = [
        (logits.gather(1, base) - logits.gather(1, contrast)).double().mean()
        for logits in (by_hand, *(last_logits(model, prompts.shown(d)) for d in (0, 1)))
    ]
    undone = (F[2] - F[0]) / (F[2] - F[1])
    found = judged.rows("x", [every[8:]])[0]["undone"]
    assert found == pytest.approx(undone.item(), abs=1e-5)


def test_other_values_are_of_the_paired_the_mean_and_the_plain_prompt_before(model):
    prompts, heads = smollm.draw(Letters(), 6, 3, seed=0), ["0.1", "1.2", "2.0"]
    base = prompts.shown(0)
    neighbours = torch.stack([base[(row - 1) % 6] for row in range(6)])
    sources = {"base": base, "unrelated": neighbours}
    expected = Ablator(model, prompts.shown(1), sources, means={"mean": base})
    for how in smollm.SOURCES:
        found = smollm.Judged(model, prompts, how).ablator.logits([heads], how)[0]
        torch.testing.assert_close(found, expected.logits_plainly(heads, how))


@pytest.mark.parametrize("how", smollm.SOURCES)
def test_what_plain_prompts_keep_is_measured_on_plain_prompts(model, monkeypatch, how):
    """Base values put into base prompts are their own. Of random groups it is not measured, unless
    it is known so."""
    prompts, heads = smollm.draw(Letters(), 8, 3, seed=0), ["0.1", "1.2", "2.0"]
    base = prompts.shown(0)
    sources = {"base": base, "unrelated": base.roll(1, 0)}
    replaced = Ablator(model, base, sources, means={"mean": base}).logits_plainly(heads, how)
    answered = replaced.argmax(-1)
    wanted = torch.where(torch.arange(8) < 5, answered, answered + 1)  # five are right
    told = {0: wanted % CFG.d_vocab, 1: prompts.answers(1)}
    monkeypatch.setattr(smollm.Prompts, "answers", lambda _, d: told[d])
    judged = smollm.Judged(model, prompts, how)
    assert judged.ours(heads)["plain_kept"] == pytest.approx(5 / 8)
    if how == "base":
        assert answered.equal(last_logits(model, base).argmax(-1))
        assert judged.random(["2.0"])["plain_kept"] == pytest.approx(5 / 8)
    else:
        assert judged.random(["2.0"])["plain_kept"] is None


def test_random_groups_are_told_by_means_of_all_draws(model, monkeypatch):
    monkeypatch.setattr(smollm, "N_RANDOM", 4)
    judged = smollm.Judged(model, smollm.draw(Letters(), 6, 3, seed=0), "mean")
    numbers, rows = ("undone", "base_acc", "contrast_acc"), []

    def told(label, groups):  # numbers that no two draws share
        for heads in groups:
            row = {name: (len(rows) + 1.0) ** (at + 1) for at, name in enumerate(numbers)}
            rows.append(row | {"heads": heads})
        return rows

    monkeypatch.setattr(judged, "rows", told)
    found = judged.random(["2.0"])
    assert len(rows) == 4 == found["n_draws"]
    for name in numbers:
        assert found[name] == pytest.approx(sum(each[name] for each in rows) / 4), name


def test_groups_that_are_replaced_together_are_told_as_each_alone(model):
    groups = [["2.0", "1.3"], [], ["2.0"], ["0.1", "2.2"]]
    for how in smollm.SOURCES:
        judged = smollm.Judged(model, smollm.draw(Letters(), 12, 3, seed=0), how)
        together = judged.rows("x", groups)
        assert together == [judged.rows("x", [group])[0] for group in groups]
        assert [row["heads"] for row in together] == groups


def test_what_is_answered_with_no_head_replaced_stands_in_each_row(model, monkeypatch):
    prompts = smollm.draw(Letters(), 12, 3, seed=0)
    answered = last_logits(model, prompts.shown(1)).argmax(-1)
    wanted = torch.where(torch.arange(12) < 9, answered, answered + 1)  # nine are right
    told = {0: answered + 2, 1: wanted}
    monkeypatch.setattr(smollm.Prompts, "answers", lambda _, d: told[d] % CFG.d_vocab)
    rows = smollm.Judged(model, prompts, "base").rows("x", [[], ["2.0"]])
    assert [row["contrast_acc_before"] for row in rows] == [pytest.approx(9 / 12)] * 2
    assert rows[0]["contrast_acc"] == pytest.approx(9 / 12)


def test_rows_of_replaced_heads_are_measured_once(model, monkeypatch, tmp_path):
    """A call goes on with the row at which an earlier one was stopped; other weights or heads have
    files of their own."""
    monkeypatch.setattr(smollm, "N_RANDOM", 2)
    measured, rows = [], smollm.Judged.rows

    def counted(self, label, groups):
        if len(measured) == stops_at:
            raise KeyboardInterrupt
        measured.append((label, self.how))
        return rows(self, label, groups)

    monkeypatch.setattr(smollm.Judged, "rows", counted)
    amount = smollm.Amount(4, 2, 5, 2, (2, 3))
    monkeypatch.setattr(smollm, "SHOTS", 3)
    groups = 2 * len(smollm.SOURCES)
    whole, stops_at = smollm.Trace(model, Letters(), amount, tmp_path / "whole"), None
    expected = whole.judge(["2.0", "2.1"])
    assert len(measured) == 2 * 2 * groups == len(expected["ablation"])
    assert [row["draw"] for row in expected["ablation"]] == [0] * 2 * groups + [1] * 2 * groups
    assert [row["shots"] for row in expected["ablation"]][::groups] == [2, 3, 2, 3]
    faithful = [row["how"] for row in expected["ablation"] if "faithfulness" in row]
    assert faithful == ["base"] * 4
    of_random = [row["n_draws"] for row in expected["ablation"][:groups]]
    assert of_random == 3 * [1, 2]  # ours, and random ones beside them
    assert [how for _, how in measured[:groups:2]] == ["base", "mean", "unrelated"]
    assert [how for _, how in measured[1:groups:2]] == ["base", "mean", "unrelated"]

    trace, stops_at = smollm.Trace(model, Letters(), amount, tmp_path / "parts"), 7
    measured.clear()
    with pytest.raises(KeyboardInterrupt):
        trace.judge(["2.0", "2.1"])
    stops_at = None
    assert trace.judge(["2.0", "2.1"]) == expected and len(measured) == 2 * 2 * groups
    trace.judge(["2.0", "2.1"])
    assert len(measured) == 2 * 2 * groups
    trace.judge(["2.0"])
    assert len(measured) == 2 * 2 * 2 * groups
    other = copy.deepcopy(model)
    other.blocks[0].attn.W_O[0] += 1.0
    smollm.Trace(other, Letters(), amount, tmp_path / "parts").judge(["2.0"])
    assert len(measured) == 3 * 2 * 2 * groups


# ---------------------------------------------------------------- the commands


@pytest.fixture
def loaded(model, monkeypatch):
    def load(*_, **__):
        return model, Letters()

    monkeypatch.setattr(smollm, "packaged", lambda: None)
    monkeypatch.setattr(smollm, "ALL_SHOTS", (1, 8))
    monkeypatch.setattr(smollm, "N_RANDOM", 2)
    for module in (smollm, own_model):
        monkeypatch.setattr(module, "load_pretrained", load)


KEYS = "task k shots n_prompts F accuracy effects operands_changed groups criteria attention"


@pytest.mark.parametrize("full", [[], ["--full"]])
def test_the_study_of_a_real_model_holds_what_it_must(full, loaded, tmp_path, monkeypatch, capsys):
    criteria = smollm.Criteria(strong=0.001, looks_at_answers=0.001)
    monkeypatch.setattr(smollm, "Criteria", lambda: criteria)
    monkeypatch.setattr(smollm, "RESULTS", tmp_path)
    amount = smollm.Amount(6, 2, 4, draws=2, inputs="vk" if full else "v", n_first=3)
    monkeypatch.setattr(smollm, "Amount", lambda: None if full else amount)
    monkeypatch.setattr(smollm, "FULL", amount if full else None)
    draw, drawn = smollm.draw, []

    def noted(tokenizer, n, shots, seed):
        drawn.append((shots, seed))
        return draw(tokenizer, n, shots, seed)

    monkeypatch.setattr(smollm, "draw", noted)
    assert smollm.main(["--out", str(tmp_path / "out"), "--device", "cpu", *full]) == 0
    circuit = json.loads((tmp_path / "out/circuit.json").read_text())
    assert {*KEYS.split(), "evaluation", "averaging", "missing"} <= circuit.keys()
    fi = circuit["groups"]["function_induction"]
    strongest, *_ = circuit["evaluation"]["circuit"]
    assert fi and f"{strongest}.v" in circuit["effects"]
    for effects in (circuit["effects"], circuit["operands_changed"]["effects"]):
        logits, first, *others = effects
        assert (logits, first) == ("logits", f"{strongest}.v")
        assert {name[-1] for name in others} == (set("vk") if full else set())
        swept = [effects[name] for name in (first, *others)]
        assert [each["n_prompts"] for each in swept] == [3, *[2] * len(others)]
        assert all(each["r_ci"].keys() == circuit["r_ci"].keys() for each in swept)
        assert all(each["F"].keys() == {"base", "contrast"} for each in swept)
    assert len(set(drawn)) == len(drawn) - 2 * 2  # what prompts found is judged by others
    assert all(drawn.count((8, seed)) == 3 for seed in (10, 11))  # once for each kind of values
    hows = [row["how"] for row in circuit["evaluation"]["ablation"] if row["heads"]]
    assert hows == 2 * ["base", "mean", "unrelated"]  # of each draw
    assert len(circuit["evaluation"]["ablation"]) == 12  # and random heads beside each
    assert circuit["averaging"]["mixtures"][-1]["r2"].keys() >= {"attention", "uniform"}
    (path,) = tmp_path.glob("*.json")
    assert path.name == ("smollm_full.json" if full else "smollm.json")
    summary = json.loads(path.read_text())
    assert summary == circuit and circuit["fi_r"].keys() == set(fi)
    assert nulls(circuit) == {part for parts in circuit["missing"] for part in parts.split(", ")}
    shown = capsys.readouterr()
    assert "Gemma-2-9B" in shown.out and "undo" in shown.out
    assert ("4 hours" in shown.out) == bool(full)


def nulls(found):
    """The keys of what is null, anywhere inside."""
    if isinstance(found, list):
        return set().union(*map(nulls, found))
    if not isinstance(found, dict):
        return set()
    return {key for key, x in found.items() if x is None}.union(*map(nulls, found.values()))


def test_where_no_head_meets_the_criteria_the_study_says_so(loaded, tmp_path, monkeypatch, capsys):
    criteria = smollm.Criteria(strong=1.0)
    monkeypatch.setattr(smollm, "Criteria", lambda: criteria)
    assert smollm.main(["--quick", "--out", str(tmp_path), "--device", "cpu"]) == 0
    circuit = json.loads((tmp_path / "quick.json").read_text())
    assert not (tmp_path / "circuit.json").exists()  # which may be of a longer run
    assert circuit["evaluation"] is None and circuit["averaging"] is None
    reasons = {part for parts in circuit["missing"] for part in parts.split(", ")}
    assert nulls(circuit) <= reasons and {"evaluation", "averaging"} <= reasons
    shown = capsys.readouterr()
    assert "no head meets the criteria" in shown.out + shown.err


def test_too_little_memory_for_the_study_is_one_line(loaded, tmp_path, capsys):
    paths = ["--quick", "--out", str(tmp_path), "--device", "cpu"]
    assert smollm.main([*paths, "--max-memory", "1e-6"]) == 2
    shown = capsys.readouterr()
    assert "too small for one row" in shown.err and shown.err.count("\n") == 1


def test_another_file_in_the_package_is_refused(tmp_path, monkeypatch):
    (tmp_path / smollm.PACKAGE).mkdir()
    (tmp_path / smollm.PACKAGE / "__init__.py").touch()
    (tmp_path / smollm.PACKAGE / smollm.FILE).write_bytes(b"GGUF")
    with pytest.raises(UserError, match="needs the package no-such-package-at-all"):
        monkeypatch.setattr(smollm, "PACKAGE", "no_such_package_at_all")
        smollm.packaged()
    monkeypatch.undo()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="is damaged, or another version"):
        smollm.packaged()


PAIRS = [
    {"base": "1+1=2\n2+2=", "contrast": "1+1=3\n2+2=", "base_answer": "4", "contrast_answer": "5"},
    {"base": "3+1=4\n1+2=", "contrast": "3+1=5\n1+2=", "base_answer": "3", "contrast_answer": "4"},
]


def own(tmp_path, pairs, *more):
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    paths = ["--model", "x", "--prompts", str(tmp_path / "pairs.json")]
    return own_model.main([*paths, "--out", str(tmp_path / "out"), "--device", "cpu", *more])


def test_own_pairs_are_traced_as_a_patcher_does(loaded, model, tmp_path, capsys):
    assert own(tmp_path, PAIRS, "--to", "2.3.v") == 0
    shown = capsys.readouterr().out
    assert "what reaches logits" in shown and "what reaches 2.3.v" in shown
    found = json.loads((tmp_path / "out/effects.json").read_text())
    columns = [[pair[name] for pair in PAIRS] for name in own_model.FIELDS]
    base, contrast = (torch.tensor([*map(Letters().encode, texts)]) for texts in columns[:2])
    answers = [torch.tensor(Letters().single_tokens(texts)) for texts in columns[2:]]
    patcher = PathPatcher(model, base, contrast, *answers)
    for receiver in (Logits(), HeadInput(2, 3, "v")):
        heads = patcher.sweep(receiver).heads
        kept = torch.tensor(found["effects"][str(receiver)]["heads"]).double()
        torch.testing.assert_close(kept, heads, rtol=0, atol=1e-5)
    assert found["F"]["contrast"] == pytest.approx(patcher.F_contrast.mean().item(), abs=1e-3)


FAULTS = [
    ([], (), "pair 0 must hold the strings base, contrast"),
    ({"base": "1"}, (), "pair 0 must hold the strings"),
    ([PAIRS[0], {**PAIRS[1], "base": 3}], (), "pair 1 must hold the strings"),
    ([{**PAIRS[0], "contrast": "1+1=\n2+2="}], (), "pair 0, '1+1=2\\n2+2=' and its contrast"),
    ([{**PAIRS[0], "contrast": "1+1=\n2+2="}], (), "have 11 and 10 tokens"),
    ([PAIRS[0], {**PAIRS[1], "base": "1+2=", "contrast": "1+2="}], (), "the first pair 11"),
    ([{**PAIRS[0], "base_answer": "12"}], (), "no single token for '12'"),
    (PAIRS, ("--max-memory", "1e-6"), "too small for one row"),
    (PAIRS, ("--to", "2.9.v"), "--to 2.9.v: the model has 3 layers of 4 heads"),
    (PAIRS, ("--to", "2.1.z"), "no node '2.1.z'"),
]


@pytest.mark.parametrize("pairs, more, word", FAULTS)
def test_bad_pairs_are_one_line(loaded, tmp_path, capsys, pairs, more, word):
    assert own(tmp_path, pairs, *more) == 2
    shown = capsys.readouterr()
    assert word in shown.err and shown.err.count("\n") == 1 and not shown.out
    assert not (tmp_path / "out/effects.json").exists()


def test_pairs_that_are_not_there_are_told_of_as_pairs(tmp_path, capsys):
    assert own_model.main(["--model", "x", "--prompts", str(tmp_path / "no.json")]) == 2
    assert "no.json is missing: it is to hold the pairs" in capsys.readouterr().err


@pytest.mark.parametrize("n", [0, -1, 2.5, True])
def test_a_number_of_prompts_that_is_none_is_refused(model, tmp_path, n):
    tokens, answers = drawn(2)
    with pytest.raises(ValueError, match="n_prompts must be a whole number from 1"):
        LongSweeps(model, tokens, answers, tmp_path).sweep(Logits(), n)
    assert LongSweeps(model, tokens, answers, tmp_path).sweep(Logits(), 9).F_base.shape == (2,)
