"""What the commands state: thresholds, shares of which prompts, which heads are named, in words."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import tasks
from commands import ask, check, own_model, reference, smollm
from minifunc.analysis.long_sweeps import Swept
from minifunc.model import ModelConfig, Transformer
from minifunc.support.checks import MOST_SEED
from minifunc.support.effects import Effects
from minifunc.support.errors import UserError
from minifunc.support.evaluation import wilson
from minifunc.support.files import save_json, save_tensors

N_TOKENS = len(tasks.VOCABULARY)
CFG = ModelConfig(n_layers=2, n_heads=4, d_model=8, d_head=4, d_mlp=8, d_vocab=N_TOKENS)


def logits_of(given, sure=20.0):
    """Logits [n_prompts, d_vocab] that say what is given [n_prompts]."""
    one_hot = torch.nn.functional.one_hot(given.clamp(0, N_TOKENS - 1), N_TOKENS)
    return one_hot.float() * torch.as_tensor(sure).view(-1, 1)


def sums(tokens):
    """The plain answers to sums [n_prompts], and by how much the first shown answer is off."""
    plain = tokens[:, -4] + tokens[:, -2] - tasks.ZERO
    shown = tokens[:, 5] - (tokens[:, 1] + tokens[:, 3] - tasks.ZERO)
    return plain, shown


@pytest.fixture
def study(monkeypatch):
    """Makes a study of a model that answers as a function of tokens → logits says."""
    for name, value in {"N_PROMPTS": 120, "N_EACH": 40}.items():
        monkeypatch.setattr(check, name, value)

    def made(answers=lambda tokens: logits_of(sums(tokens)[0]), fi=("0.1", "1.2"), k=1):
        monkeypatch.setattr(check, "last_logits", lambda model, tokens: answers(tokens))
        return check.Study(Transformer(CFG), {"mixed": 0.8}, list(fi), k, 0)

    return made


# ---------------------------------------------------------------- check: thresholds


def test_every_seed_that_may_be_given_draws_numbers_of_its_own():
    """The generator of a CPU takes 32 bits of a seed: 2^32 draws what 0 does."""
    asked = [0, 1, 2**31 - 1, 2**31, 2**31 + 1, MOST_SEED - 1, MOST_SEED]
    drawn = [torch.randint(2**40, (8,), generator=torch.Generator().manual_seed(s)) for s in asked]
    assert len({tuple(numbers.tolist()) for numbers in drawn}) == len(asked)


@pytest.mark.parametrize("seed", [0, 1, 2**31, MOST_SEED])
def test_the_prompts_of_a_check_are_not_those_that_patch_draws_from_the_same_seed(seed):
    drawn = torch.Generator().manual_seed(seed)
    traced = tasks.evaluation_pairs("addition", 1, check.SHOTS, check.N_PROMPTS, drawn).contrast
    checked = check.Study(Transformer(CFG), {}, [], 1, seed).pairs.contrast
    same = (checked[:, None] == traced).all(-1).any(1)
    assert same.double().mean() < 0.01


def test_every_check_is_held_against_the_share_and_on_the_side_that_it_says(study, monkeypatch):
    judged, asked = check.judged, []

    def noted(right, threshold, *texts, at_least=True):
        asked.append((threshold, at_least))
        return judged(right, threshold, *texts, at_least=at_least)

    monkeypatch.setattr(check, "judged", noted)
    monkeypatch.setattr(check, "LEAST", 1)  # this model is right on few plain prompts
    one = study()
    one.ask_swapped = lambda groups: one.pairs.base_answers.expand(len(groups), -1)

    def answered(ablator, groups, how):
        return logits_of(sums(ablator.tokens)[0]).expand(len(groups), -1, -1)

    monkeypatch.setattr(check.Ablator, "logits", answered)
    for each, texts in check.CHECKS:
        asked.clear()
        found = each(one)
        side, share = re.match(r"at (least|most) (\d+) %", texts["wanted"]).groups()
        assert found.threshold == int(share) / 100, each.__name__
        assert asked == [(int(share) / 100, side == "least")], each.__name__
    assert len(check.CHECKS) == 13


@pytest.mark.parametrize("threshold, side", [(0.95, True), (0.05, False), (0.5, True)])
def test_a_share_passes_with_its_whole_interval_on_the_good_side_the_threshold_included(
    threshold, side
):
    for n_right in range(0, 201, 2):
        low, high = wilson(n_right / 200, 200)
        found = check.judged(torch.arange(200) < n_right, threshold, at_least=side)
        good, bad = (low >= threshold, high < threshold)
        if not side:
            good, bad = high <= threshold, low > threshold
        assert found.verdict == ("pass" if good else "fail" if bad else "could not tell")
        assert found.value == n_right / 200 and found.interval == [low, high]
    assert check.verdict_of(0.9, 0.95, 0.9) == "pass"
    assert check.verdict_of(0.8, 0.9, 0.9) == "could not tell"
    told = check.judged(torch.ones(30, dtype=torch.bool), 0.5)
    assert told.verdict == "pass" and "100.0 % of 30 prompts (95 % interval 88.6 %" in told.measured
    few = check.judged(torch.ones(29, dtype=torch.bool), 0.5)
    assert few.value is None and few.verdict == "could not tell" and "29 prompts" in few.measured


# ---------------------------------------------------------------- check: which share


def test_old_and_new_rule_are_asked_of_their_own_prompts(study):
    one = study()
    assert check.old_rule(one).value == 1.0 and check.new_rule(one).value == 0.0

    def follows_small_sums(tokens):
        plain, off = sums(tokens)
        return logits_of(plain + off * (plain < tasks.ZERO + 10))

    one = study(follows_small_sums, k=2)
    small = one.pairs.base_answers < tasks.ZERO + 10
    found = check.new_rule(one)
    assert found.value == round(small.double().mean().item(), 4)
    assert len(found.examples) == check.N_EXAMPLES
    for example in found.examples:
        answered, right = int(example["answered"]), int(example["right"])
        assert right == answered + 2 and answered >= 10
        assert example["prompt"].startswith("<bos>") and example["prompt"].endswith("=")
    assert check.old_rule(one).value == 1.0 and check.old_rule(one).examples == []


@pytest.mark.parametrize(
    "from_shots, value, short",
    [
        (1, 1.0, "right from 1 shown on"),
        (4, 1.0, "right from 4 shown on"),
        (8, 0.0, "right from 8 shown on"),
        (9, 0.0, "even 8 are too few"),
    ],
)
def test_examples_are_counted_from_which_the_rule_is_followed(study, from_shots, value, short):
    def follows(tokens):
        plain, off = sums(tokens)
        return logits_of(plain + off * ((tokens.shape[1] - 5) // 6 >= from_shots))

    found = check.how_many(study(follows))
    assert (found.value, found.short) == (value, short)
    wanted = [f"{n} shown: {100 * (n >= from_shots):.1f} %" for n in (1, 2, 4, 8)]
    assert found.measured == "; ".join(wanted)


def test_the_worst_amount_is_named(study):
    def follows_all_but_minus_2(tokens):
        plain, off = sums(tokens)
        return logits_of(plain + off * (off != -2))

    found = check.other_amounts(study(follows_all_but_minus_2))
    assert found.value == 0.0 and found.short == "0.0 % at worst (-2)" and found.verdict == "fail"
    wanted = [f"{k:+d}: {'0.0' if k == -2 else '100.0'} %" for k in (-3, -2, -1, 1, 2, 3)]
    assert found.measured == ", ".join(wanted)


def test_a_rule_leaks_where_plain_prompts_of_any_kind_get_it(study):
    asked = []

    def adds_one(tokens):
        asked.append(tokens)
        return logits_of(sums(tokens)[0] + 1)

    one = study(adds_one)
    draw, drawn = one.draw, []
    one.draw = lambda *what: drawn.append(what) or draw(*what)
    found = check.not_shown(one)
    assert [what[:2] for what in drawn] == [(task, 1) for task in check.SHIFTED]
    tokens = asked[-1]
    assert len(tokens) == 40 * len(check.SHIFTED)
    of_sums = (tokens[:, -3] == tasks.encode("1+1=")[2]).double().mean().item()
    plain = (
        tokens[:40, 5] == sums(tokens[:40])[0] * 0 + tokens[:40, 1] + tokens[:40, 3] - tasks.ZERO
    )
    assert plain.all()  # what is shown is not off
    assert found.value >= of_sums > 0.1 and found.verdict == "fail"
    assert check.not_shown(study()).value < 0.8 * of_sums


def test_a_rule_spreads_where_another_question_after_sums_gets_it(study):
    asked = []

    def adds_one_always(tokens):
        asked.append(tokens)
        return logits_of(sums(tokens)[0] * 0 + tokens[:, -4] + 1)

    one = study(adds_one_always)
    found = check.spreads(one)
    others = {"-", "max", "min", "first", "second", "same"}
    assert {tasks.VOCABULARY[tokens[0, -3]] for tokens in asked} == others
    for tokens in asked:
        assert torch.equal(tokens[:, :-4], one.pairs.contrast[: len(tokens), :-4])
    n = sum(map(len, asked))
    assert f"of {n} prompts" in found.measured and "off by +1 on" in found.measured
    firsts = 2 * 40 + sum((x[:, -4] + 1 == want).sum().item() for x, want in answers_to(asked))
    assert found.value == pytest.approx(firsts / n, abs=1e-4)
    assert all(int(one["answered"]) == int(one["right"]) + 1 for one in found.examples)


def answers_to(asked):
    """Of those whose answer is not simply the first operand: (tokens, the answer off by one)."""
    kinds = {"-": lambda x, y: x - y, "max": torch.maximum, "min": torch.minimum}
    kinds["second"] = lambda x, y: y
    for tokens in asked:
        kind = kinds.get(tasks.VOCABULARY[tokens[0, -3]])
        if kind:
            x, y = tokens[:, -4] - tasks.ZERO, tokens[:, -2] - tasks.ZERO
            yield tokens, kind(x, y) + tasks.ZERO + 1


def test_only_answers_that_are_sure_count_for_confidence(study):
    """Sure and right where sums are small, sure and wrong at 12, unsure and wrong above."""

    def answers(tokens):
        plain, off = sums(tokens)
        total = plain - tasks.ZERO
        sure = torch.where(total <= 12, 20.0, 1.0)
        return logits_of(plain + off * (total < 12) + 5 * (total >= 12), sure)

    one = study(answers)
    draw, seen = one.draw_each, []
    one.draw_each = lambda asked: seen.append((asked, draw(asked))) or seen[-1][1]
    found = check.confidence(one)
    [(asked, pairs)] = seen
    assert asked == [("addition", k) for k in (-2, -1, 0, 1, 2)]
    total = pairs.base_answers - tasks.ZERO
    n_right, n_sure = (total < 12).sum().item(), (total <= 12).sum().item()
    assert n_right < n_sure < len(total) == 200
    assert found.value == pytest.approx(n_right / n_sure, abs=1e-4)
    assert f"of the {n_sure} sure answers, of 200 in all" in found.measured


def test_questions_are_sorted_into_the_kinds_that_their_names_say():
    shown = "1+9=10, 2+2=4, 1+9=10, 1+9=10, 1+9=10, 1+9=10, 1+9=10, 1+9=10, "
    rows = [("3+6=", 9, 10), ("5+5=", 10, 9), ("0+4=", 4, 3), ("1+1=", 2, -1), ("9+9=", 18, 19)]
    rows += [("9+9=", 18, 18), ("7+0=", 7, 0), ("2+4=", 6, 5)]
    contrast = torch.stack([tasks.encode(shown + asked) for asked, *_ in rows])
    plain, wanted = (torch.tensor([row[at] for row in rows]) + tasks.ZERO for at in (1, 2))
    pairs = SimpleNamespace(contrast=contrast, base_answers=plain, contrast_answers=wanted)
    found = {name: mask.nonzero()[:, 0].tolist() for name, mask in check.slices_of(pairs).items()}
    assert found == {
        "the sum has one digit": [0, 2, 3, 6, 7],
        "the sum has two digits": [1, 4, 5],
        "an operand is 0": [2, 6],
        "both operands are the same": [1, 3, 4, 5],
        "the right answer is below 0 or above 18": [3, 4],
        "no shown sum is within 1 of the asked one": [3, 4, 5, 6, 7],  # 4 and 10 are shown
    }


def test_the_worst_kind_of_question_is_judged_by_its_own_share(study):
    def fails_on_doubles(tokens):
        plain, off = sums(tokens)
        return logits_of(plain + off * (tokens[:, -4] != tokens[:, -2]))

    one = study(fails_on_doubles)
    monkey = one.draw_each([("addition", k) for k in check.AMOUNTS])
    one.draw_each = lambda asked: monkey if asked == [("addition", k) for k in check.AMOUNTS] else 0
    found = check.pattern(one)
    doubles = monkey.contrast[:, -4] == monkey.contrast[:, -2]
    kinds = {name: mask for name, mask in check.slices_of(monkey).items() if mask.sum() >= 30}
    worst = max(kinds, key=lambda name: doubles[kinds[name]].double().mean())
    share = 1 - doubles[kinds[worst]].double().mean().item()
    assert found.value == pytest.approx(share, abs=1e-4)
    assert found.measured.startswith(f"{doubles.sum()} of 240 fail, ")
    assert all("both operands are the same" in one["pattern"] for one in found.examples)
    shares = [int(x) for x in re.findall(r"(\d+) %", found.measured)]
    assert shares == sorted(shares, reverse=True)


def test_swapped_heads_are_judged_by_the_answers_that_are_left(study):
    one = study()
    old, new = one.pairs.base_answers, one.pairs.contrast_answers
    n_left = 6
    one.ask_swapped = lambda groups: torch.where(torch.arange(len(old)) < n_left, new, old)[None]
    found = check.carriers(one)
    assert found.value == 0.05 and found.verdict == "could not tell"
    assert "the plain answer returns on 95.0 %" in found.measured
    groups = []

    def swapped(asked):
        groups.extend(asked)
        left = 60 + 10 * torch.arange(len(asked))[:, None]
        return torch.where(torch.arange(len(old)) < left, new, old)

    one.ask_swapped = swapped
    found = check.others(one)
    assert found.value == 0.5  # the worst of the groups
    assert 1 < len(groups) <= 5 and found.measured.startswith(f"{len(groups)} groups of other")
    for group in groups:
        assert [head[0] for head in sorted(group)] == ["0", "1"]  # as many of each layer
        assert not {"0.1", "1.2"} & set(group)


def test_heads_off_for_good_are_judged_where_the_model_is_right_with_them(study, monkeypatch):
    one, made = study(), []

    class Fake:
        def __init__(self, model, tokens, sources, means):
            assert torch.equal(tokens, means["mean"]) and sources == {}
            made.append(len(tokens))
            self.plain = drawn[-1].base_answers
            assert torch.equal(tokens, drawn[-1].base)

        def logits(self, groups, how):
            assert groups == [["0.1", "1.2"], []] and how == "mean"
            at = torch.arange(40)
            right = [at < 19, at < 20]  # without the heads one fails that was right with them
            return torch.stack([logits_of(torch.where(mask, self.plain, 0)) for mask in right])

    draw, drawn = one.draw, []
    one.draw = lambda *what: drawn.append(draw(*what)) or drawn[-1]
    monkeypatch.setattr(check, "Ablator", Fake)
    found = check.rest_intact(one)
    assert made == [40] * len(check.SHIFTED) and found.value == 0.95
    assert f"of {20 * len(check.SHIFTED)} prompts" in found.measured


def test_what_a_row_says_follows_from_what_was_found(study, monkeypatch):
    texts = dict(zip(check.TEXTS, ["q {k:+d}", "P {heads}", "F", "m {shots}", "at least 90 %"]))
    texts |= {"short": "right on {}", "risk": "r {k}", "advice": "a {mixed}"}

    def one_check(study):
        return check.Finding("measured", "91 %", "pass", 0.91)

    monkeypatch.setattr(check, "CHECKS", [(one_check, texts)])
    [row] = check.checked(study(k=-2))
    assert (row["question"], row["answer"], row["short"]) == ("q -2", "P 0.1, 1.2", "right on 91 %")
    assert (row["means"], row["risk"], row["advice"]) == ("m 8", "r -2", "a 80 %")
    assert row["name"] == "one_check" and "pass" not in row and row["value"] == 0.91
    failing = row | {"verdict": "fail", "answer": "F", "examples": [], "question": "q"}
    unsure = failing | {"verdict": "could not tell"}
    shown = check.show([row, failing, unsure, failing])
    assert shown.endswith("1 passed, 2 failed, 1 could not be told")
    assert shown.count("what to do: a 80 %") == 3 and shown.count("measured: measured") == 3
    marks = [line.split()[0] for line in shown.splitlines() if "(wanted: at least 90 %)" in line]
    assert marks == ["pass", "FAIL", "?", "FAIL"]


def test_swapped_heads_send_what_they_send_on_the_plain_prompt(study):
    one = study()
    for weight in one.model.parameters():
        weight.data *= 3  # heads matter
    base, contrast = one.pairs.base, one.pairs.contrast
    _, cache = one.model.run_with_cache(base)

    def send(z, name):
        if name == "blocks.1.attn.hook_z":
            z[:, :, 2] = cache[name][:, :, 2]
        return z

    hooks = {f"blocks.{layer}.attn.hook_z": send for layer in (0, 1)}
    wanted = one.model.run_with_hooks(contrast, hooks)[:, -1].argmax(-1)
    assert torch.equal(one.ask_swapped([["1.2"], []])[0], wanted)
    untouched = one.model(contrast)[:, -1].argmax(-1)
    assert torch.equal(one.ask_swapped([[]])[0], untouched) and (wanted != untouched).any()


@pytest.mark.parametrize("verdicts", [("pass",), ("fail",), ("could not tell",), ("pass", "fail")])
def test_one_failed_check_is_exit_code_1(monkeypatch, tmp_path, capsys, verdicts):
    rows = [{"verdict": verdict} for verdict in verdicts]
    monkeypatch.setattr(check, "checked", lambda study: rows)
    monkeypatch.setattr(check, "show", lambda rows: "")
    cfg = replace(CFG, n_layers=1)
    save_tensors(tmp_path / "model.pt", Transformer(cfg).state_dict())
    save_json(tmp_path / "config.json", {"model": vars(cfg), "vocabulary": tasks.VOCABULARY})
    failed = "fail" in verdicts
    assert check.main(["--run", str(tmp_path), "--device", "cpu", "--k", "-3"]) == failed
    assert ("exit code 1: 1 check failed, listed above" in capsys.readouterr().out) == failed
    written = json.loads((tmp_path / "check.json").read_text())
    assert (written["k"], written["shots"], written["seed"]) == (-3, 8, 0)
    assert written["checks"] == rows


# ---------------------------------------------------------------- ask


def asked_with(monkeypatch, r, n_layers=2, n_heads=6):
    """What is said where these heads have r, and the base prompt is answered otherwise."""
    cfg = replace(CFG, n_layers=n_layers, n_heads=n_heads)
    model = Transformer(cfg, torch.Generator().manual_seed(1)).requires_grad_(False)
    swapped = []

    class Fake:
        def __init__(self, model, tokens, sources):
            self.base = sources["base"]

        def logits(self, groups, how):
            swapped.append((groups, how))
            return logits_of(torch.tensor([tasks.ZERO + 4]))[None]

    effects = dict.fromkeys(ask.all_heads(cfg), 0.0) | r
    swept = SimpleNamespace(sweep=lambda *_: SimpleNamespace(named=lambda: effects))
    asked = []
    monkeypatch.setattr(ask, "PathPatcher", lambda model, *prompts: asked.append(prompts) or swept)
    monkeypatch.setattr(ask, "Ablator", Fake)
    tokens, base = tasks.encode("1+1=3, 3+3="), tasks.encode("1+1=2, 3+3=")
    lines = ask.by_patching(model, tokens, base, torch.tensor(tasks.ZERO + 9))
    plain = int(ask.probabilities(model, base).argmax())
    told = [part.flatten().tolist() for part in asked[0]]
    assert told == [base.tolist(), tokens.tolist(), [plain], [tasks.ZERO + 9]]
    return lines, swapped, tasks.VOCABULARY[plain]


def test_the_eight_strongest_heads_are_listed_and_the_strong_ones_swapped(monkeypatch):
    r = {"0.0": -0.4, "0.1": -0.05, "0.2": -0.049, "0.3": 0.3, "0.4": -0.004, "0.5": -0.002}
    r |= {"1.0": -0.01, "1.1": -0.02, "1.2": -0.03, "1.3": -0.035}
    lines, swapped, plain = asked_with(monkeypatch, r)
    rows = [line.split() for line in lines if line.startswith("   ")]
    wanted = [
        "0.0",
        "0.1",
        "0.2",
        "1.3",
        "1.2",
        "1.1",
        "1.0",
        "0.4",
    ]  # eight of the nine  # back to plain comes first
    assert [row[0] for row in rows] == wanted
    assert [float(row[1]) for row in rows] == [round(100 * r[head], 1) for head in wanted]
    assert rows[0][2] == "█" * 12 and rows[1][2] == "█" * 2  # 30 for all of the way
    assert swapped == [([["0.0", "0.1"]], "base")]  # from 5 % on
    assert lines[-1].endswith(
        "that 0.0, 0.1 send taken from the plain prompt, the answer is 4 (100.0%)."
    )
    assert f"logit({plain}) - logit(9)" in " ".join(lines)
    assert lines[0].endswith("<bos> 1 + 1 = 2 ; 3 + 3 =")
    assert lines[1].startswith(f"It is answered {plain} (")
    lines, swapped, _ = asked_with(
        monkeypatch, {"0.0": -0.04, "0.2": -0.001, "1.0": 0.0009, "1.1": 0.5}, 2, 3
    )
    assert lines[-1] == "No head alone has r of -5 % or less." and not swapped
    rows = [line.split() for line in lines if line.startswith("   ")]
    assert rows == [
        ["0.0", "-4.0", "█"],
        ["0.2", "-0.1"],
        ["1.1", "50.0"],
    ]  # none for what goes the other way


def test_the_five_likeliest_answers_are_told_with_their_shares(monkeypatch):
    shares = torch.full((N_TOKENS,), 1e-6)
    given = {"7": 0.5, "6": 0.2, "5": 0.14, "8": 0.1, "4": 0.04, "3": 0.009}
    for token, share in given.items():
        shares[tasks.VOCABULARY.index(token)] = share
    monkeypatch.setattr(ask, "probabilities", lambda model, tokens: shares)
    model = Transformer(CFG)
    said = ask.answer(model, "1+1=3, 3+3=")
    rows = [line.split() for line in said.splitlines() if line.startswith("   ")]
    wanted = [["7", "50.0%", "█" * 15], ["6", "20.0%", "█" * 6], ["5", "14.0%", "█" * 4]]
    assert rows == [*wanted, ["8", "10.0%", "█" * 3], ["4", "4.0%", "█"]]
    assert "answer  7" in said and "guess" not in said
    shares[tasks.VOCABULARY.index("7")] = 0.4999
    assert "This is a guess: the model gives it less than half." in ask.answer(model, "1+1=3, 3+3=")
    tokens = tasks.encode("1+1=3, 3+3=")
    assert torch.equal(ask.prompt_tokens("1+1=3, 3+3=", len(tokens)), tokens)
    with pytest.raises(UserError, match="has 11 tokens; the model's context holds 10"):
        ask.prompt_tokens("1+1=3, 3+3=", len(tokens) - 1)


# ---------------------------------------------------------------- own models


class Letters:
    """A tokenizer of one token for each letter."""

    first = [0]

    def encode(self, text):
        return [0, *map(ord, text)]

    def single_tokens(self, strings):
        return [ord(string) for string in strings]


def test_own_pairs_keep_base_and_contrast_and_their_answers_apart():
    pairs = [{"base": "ab", "contrast": "cd", "base_answer": "x", "contrast_answer": "y"}]
    pairs.append({"base": "ef", "contrast": "gh", "base_answer": "z", "contrast_answer": "w"})
    tokens, answers = own_model.encoded(pairs, Letters())
    spelled = [["".join(map(chr, row[1:])) for row in side.tolist()] for side in tokens]
    assert spelled == [["ab", "ef"], ["cd", "gh"]]
    assert ["".join(map(chr, side.tolist())) for side in answers] == ["xz", "yw"]
    for field in ("base", "contrast"):
        longer = [pairs[0], pairs[1] | {field: "long"}]
        counted = "5 and 3" if field == "base" else "3 and 5"
        with pytest.raises(UserError, match=f"have {counted} tokens, the first pair 3"):
            own_model.encoded(longer, Letters())


@pytest.mark.parametrize("name, ok", [("2.3.q", True), ("3.0.q", False), ("0.4.k", False)])
def test_a_receiver_is_one_that_the_model_has(name, ok):
    if ok:
        receiver = own_model.receiver_of(name, 3, 4)
        assert (receiver.layer, receiver.head, receiver.which) == (2, 3, "q")
    else:
        with pytest.raises(UserError, match="the model has 3 layers of 4 heads"):
            own_model.receiver_of(name, 3, 4)


def swept_of(effects, F_base, F_contrast, intervals):
    """`Swept`, its intervals given."""
    swept = Swept(list(effects.named()), effects, F_base, F_contrast)
    object.__setattr__(swept, "intervals", lambda: intervals)
    return swept


def test_the_fifteen_strongest_senders_are_told_in_percent_with_their_intervals():
    heads = torch.linspace(-0.9, 0.9, 20).view(4, 5)
    effects = Effects(
        embedding=torch.tensor(0.01), heads=heads, mlps=torch.tensor([0.95, 0.0, 0.0, 0.0])
    )
    intervals = {name: [r - 0.1, r + 0.2] for name, r in effects.named().items()}
    F = torch.tensor([1.0, 3.0])
    says, *lines = swept_of(effects, F, -F, intervals).told("logits", own_model.N_LISTED)
    rows = [line.split() for line in lines if re.match(r" *(mlp|emb|\d\.)", line)]
    assert len(rows) == own_model.N_LISTED == 15 and rows[0] == ["mlp0", "95.0", "85.0", "115.0"]
    sizes = [abs(float(row[1])) for row in rows]
    assert sizes == sorted(sizes, reverse=True) and min(sizes) > 20
    assert "F: base 2.00, contrast -2.00" in says and "reaches logits" in says
    assert "over 2 prompts" in says


def test_the_flags_of_own_model(monkeypatch, tmp_path, capsys):
    pairs = [{name: "a" for name in own_model.FIELDS}]
    (tmp_path / "p.json").write_text(json.dumps(pairs))
    asked = []

    def load(path, dtype, device):
        asked.append((str(path), dtype, device.type))
        raise UserError("enough")

    monkeypatch.setattr(own_model, "load_pretrained", load)
    prompts = ["--prompts", str(tmp_path / "p.json"), "--out", str(tmp_path), "--device", "cpu"]
    for dtype in ("float32", "bfloat16"):
        assert own_model.main(["--model", "m", *prompts, "--dtype", dtype]) == 2
    assert own_model.main(["--model", "m", *prompts]) == 2
    names = [str(dtype) for _, dtype, _ in asked]
    assert names == ["torch.float32", "torch.bfloat16", "torch.float32"]
    for given, missing in ((prompts, "--model"), (["--model", "m"], "--prompts")):
        capsys.readouterr()
        try:
            assert own_model.main(given) == 2
        except SystemExit as error:
            assert error.code == 2
        assert missing in capsys.readouterr().err
    assert len(asked) == 3


def test_F_and_r_of_own_prompts_are_kept(monkeypatch, tmp_path):
    pairs = [{"base": "ab", "contrast": "cd", "base_answer": "x", "contrast_answer": "y"}]
    (tmp_path / "p.json").write_text(json.dumps(pairs))
    heads = torch.arange(8.0).view(2, 4) / 10
    effects = Effects(embedding=torch.tensor(0.5), heads=heads, mlps=torch.zeros(2))
    F = torch.tensor([1.0, 2.0])
    swept = swept_of(effects, F, -2 * F, dict.fromkeys(effects.named(), [0.0, 1.0]))
    asked = []

    def sweeps(model, tokens, answers, folder, memory):
        asked.append((folder, memory))
        return SimpleNamespace(sweep=lambda receiver: asked.append(str(receiver)) or swept)

    monkeypatch.setattr(own_model, "LongSweeps", sweeps)
    monkeypatch.setattr(own_model, "load_pretrained", lambda *_: (Transformer(CFG), Letters()))
    flags = ["--model", "m", "--prompts", str(tmp_path / "p.json"), "--out", str(tmp_path)]
    assert own_model.main([*flags, "--to", "1.2.q,0.3.v", "--max-memory", "2.5"]) == 0
    assert asked == [(tmp_path / "sweeps", 2.5), "logits", "1.2.q", "0.3.v"]
    kept = json.loads((tmp_path / "effects.json").read_text())
    assert kept["F"] == {"base": 1.5, "contrast": -3.0} and kept["n_pairs"] == 1
    assert list(kept["effects"]) == ["logits", "1.2.q", "0.3.v"]
    assert kept["effects"]["logits"]["embedding"] == 0.5
    assert own_model.main(flags) == 0 and asked[4:] == [(tmp_path / "sweeps", None), "logits"]


# ---------------------------------------------------------------- a real model


def test_the_amounts_of_the_study_of_a_real_model():
    assert (smollm.K, smollm.SHOTS, smollm.ALL_SHOTS) == (1, 8, (1, 2, 4, 8, 16))
    assert smollm.SHOWN == {"plain": (0,), "+1": (1,), "-1": (-1,), "-1 and +1, mixed": (-1, 1)}
    assert (smollm.N_RANDOM, smollm.N_LISTED) == (20, 10)
    assert smollm.Amount().shots == (8,) and smollm.Amount().inputs == "v"
    assert (smollm.Amount().n_first, smollm.FULL.n_first) == (16, 100)
    full = smollm.FULL
    assert (full.n_found, full.n_inputs, full.n_fresh, full.draws) == (200, 16, 200, 3)
    assert full.shots == (8, 16) and set(full.inputs) == set("vqk")
    assert smollm.SOURCES == ("base", "mean", "unrelated")


def test_the_fi_heads_of_a_real_model_are_listed_strongest_first(monkeypatch):
    heads = torch.tensor([[-0.1, 0.2], [-0.5, -0.3]])
    effects = Effects(embedding=torch.tensor(0.0), heads=heads, mlps=torch.zeros(2))
    intervals = {name: [r, r] for name, r in effects.named().items()}
    swept = swept_of(effects, torch.tensor([1.0, 3.0]), torch.tensor([-4.0, -2.0]), intervals)
    study = object.__new__(smollm.Trace)
    study.sweeps = dict.fromkeys(("answers", "operands"), SimpleNamespace(sweep=lambda _: swept))
    study.effects, study.circuit = {"answers": {}, "operands": {}}, {"operands_changed": {}}
    study.model, study.prompts = None, SimpleNamespace(shown=lambda d: None, places=None)
    groups = {"function_induction": ["0.0", "0.1", "1.0", "1.1"]}
    looks = {head: {"last_to_answers": 0.5} for head in groups["function_induction"]}
    monkeypatch.setattr(smollm, "attention_shares", lambda *_: looks)
    monkeypatch.setattr(smollm, "direct_groups", lambda *_: groups)
    monkeypatch.setattr(smollm, "as_lists", lambda effects: {"of": effects})
    told = []
    study.tell = lambda found, lines: told.append((found, list(lines)))
    fi = study.find_heads()
    wanted = {"1.0": 0.5, "1.1": 0.3, "0.1": -0.2, "0.0": 0.1}  # -r, by |r|
    assert list(fi) == list(wanted) and fi == pytest.approx(wanted)
    [(found, lines)] = told
    assert found["F"] == {"base": 2.0, "contrast": -3.0} and found["r_ci"] == intervals
    for kept in study.effects.values():  # under both contrasts
        assert kept["logits"] == {"of": effects, "r_ci": intervals}
    rows = [line.split() for line in lines if line.strip().startswith(("0.", "1."))]
    assert [(row[0], float(row[1])) for row in rows] == [
        ("1.0", -50.0),
        ("1.1", -30.0),
        ("0.1", 20.0),
        ("0.0", -10.0),
    ]
    assert {row[-1] for row in rows} == {"FI"} and "strongest of 4" in lines[0]


def judged_without_a_model(how):
    """F is 4 and 2 on contrast prompts, and half of its shift less once heads are replaced."""
    one = object.__new__(smollm.Judged)
    one.how, one.n_heads = how, 4
    one.ablator = SimpleNamespace(logits=lambda groups, how: [how] * len(groups))
    one.about = {"n_draws": 1, "shots": 8, "n_prompts": 40}
    one.F_contrast, one.shift = torch.tensor([4.0, 2.0] * 20), torch.tensor([1.0, 3.0] * 20)
    F = one.F_contrast - torch.tensor([0.5, 1.5] * 20)
    score = SimpleNamespace(F_of_each=F, base_acc=0.2, contrast_acc=0.6)
    one.scores = SimpleNamespace(score={how: score}.__getitem__)
    one.plain = SimpleNamespace(base_acc=0.9)
    return one


def test_what_is_left_of_heads_of_a_real_model_is_told_with_its_intervals():
    row = judged_without_a_model("mean").rows("FI", [["1.0"]])[0]
    assert (row["base_acc"], row["contrast_acc"], row["plain_kept"]) == (0.2, 0.6, None)
    assert judged_without_a_model("base").rows("FI", [["1.0"]])[0]["plain_kept"] == 0.9
    assert row["ci"] == wilson(0.6, 40) and row["undone"] == pytest.approx(0.5)
    assert (row["ablated"], row["heads"], row["how"], row["shots"]) == ("FI", ["1.0"], "mean", 8)
    low, high = row["undone_ci"]
    assert low == pytest.approx(0.5) == high  # of every prompt half of its shift is undone


def test_random_heads_of_a_real_model_are_told_by_95_percent_of_the_draws(monkeypatch):
    one, undone = judged_without_a_model("base"), iter(range(20))
    keys = {"base_acc": 0.1, "contrast_acc": 0.2, "plain_kept": 0.3, "ci": [0, 1]}
    one.rows = lambda label, groups: [
        {"ablated": label, "undone": float(next(undone)), **keys} for _ in groups
    ]
    found = one.random(["1.0"])
    assert found["undone_ci"] == pytest.approx([0.475, 18.525])  # 2.5 % and 97.5 % of 0 … 19
    assert found["undone"] == 9.5 and found["n_draws"] == 20
    assert found["ci"] is None and found["heads"] == []
    assert found["ablated"] == "random_same_layers"


def test_mixed_rules_of_a_real_model_are_told_by_answers_that_no_example_shows(monkeypatch):
    class Digits:
        first = (0,)

        def encode(self, text):
            return [0, *("0123456789+=\n".index(letter) + 1 for letter in text)]

        def single_tokens(self, strings):
            return [int(string) + 1 for string in strings]

    prompts, asked = smollm.draw(Digits(), 12, 3, seed=0), []
    logits = torch.randn(12, 16, generator=torch.Generator().manual_seed(0))
    shares = {"-1": 0.25, "0": 0.5, "1": 0.125, "5": 0.0625}
    monkeypatch.setattr(smollm, "last_logits", lambda _, tokens: asked.append(tokens) or logits)
    monkeypatch.setattr(smollm, "Asker", lambda *_: None)
    monkeypatch.setattr(smollm, "account", lambda *_: {"answered": shares})
    rows = {row["shown"]: row for row in smollm.averaging(None, prompts, {})["mixtures"]}
    assert list(rows) == ["plain", "+1", "-1", "-1 and +1, mixed"]
    unseen = {shown: row["unseen_offset_share"] for shown, row in rows.items()}
    assert unseen == {"plain": 0.4375, "+1": 0.8125, "-1": 0.6875, "-1 and +1, mixed": 0.5625}
    total = prompts.x + prompts.y
    for d in (-1, 0, 1):
        chance = logits.log_softmax(-1)[torch.arange(12), total[:, -1] + d + 1].mean().item()
        assert rows["plain"]["log_probability"][f"{d:+d}"] == pytest.approx(chance, abs=1e-6)
    for tokens, offsets in zip(asked, ((0,), (1,), (-1,), (-1, 1))):
        off = tokens[:, [5, 11, 17]] - 1 - total[:, :-1]
        assert set(off.flatten().tolist()) == set(offsets)


def test_the_tables_of_a_real_model():
    row = {"heads": ["1.0"], "how": "mean", "n_draws": 1, "shots": 8, "draw": 2, "undone": 0.5}
    row |= {"undone_ci": [0.4, 0.6], "plain_kept": 0.7, "contrast_acc": 0.2}
    control = row | {"heads": [], "n_draws": 20, "how": "base", "undone": 0.1}
    _, columns, ours, random = smollm.ablation_table([row, control])
    wanted = ["replaced", "shots", "draw", "undone", "plain", "off by +1"]
    assert re.split(r"\s{2,}", columns.strip()) == wanted
    assert re.split(r"\s{2,}", ours.strip())[:3] == ["FI heads, mean values", "8", "2"]
    assert ours.split()[-5:] == ["(0.40", "to", "0.60)", "0.700", "0.200"]
    assert re.split(r"\s{2,}", random.strip())[0] == "20 random groups, base values"
    chances = {"-1": -2.0, "+0": -1.0, "+1": -3.0}
    mixture = {"shown": "plain", "log_probability": chances, "F_ci": [1.5, 2.5]}
    mixed = mixture | {"shown": "mixed", "unseen_offset_share": 0.25}
    mixed |= {"r2": {"attention": 0.75, "uniform": 0.5}}
    _, columns, plain, _, last = smollm.averaging_table([mixture, mixed])
    assert columns.split() == ["shown", "-1", "0", "+1", "F", "95", "%", "from", "to"]
    assert plain.split() == ["plain", "-2.00", "-1.00", "-3.00", "2.00", "1.50", "2.50"]
    assert "mixed: 25% of answers" in last and "attention 0.75, by the unweighted mean 0.50" in last


def test_a_real_model_stands_beside_the_papers_and_ours():
    effects = {"embedding": 0.0, "heads": [[-0.1, 0.3], [-0.2, -0.9]], "mlps": [0.0, 0.0]}
    about = {"how": "base", "shots": 8, "undone": 0.75, "contrast_acc": 0.04, "n_draws": 1}
    about["contrast_acc_before"] = 0.13
    rows = []
    for draw in range(2):
        for x in ({}, {"how": "mean", "undone": 0.5, "contrast_acc": 0.9}):
            ours = {"ablated": "function_induction", "contrast_acc": 0.04 + 0.02 * draw}
            rows += [about | ours | x]
            random = {"ablated": "random_same_layers", "undone": 0.1, "contrast_acc": 0.5}
            rows += [about | random | {"n_draws": 20} | x]
    rows.append(about | {"shots": 16, "ablated": "function_induction", "contrast_acc": 0.8})
    rows.append(about | {"shots": 16, "ablated": "random_same_layers", "n_draws": 20})
    circuit = {"effects": {"logits": effects}, "evaluation": {"ablation": rows}}
    circuit |= {"groups": {"function_induction": ["0.0", "1.0"]}}
    circuit |= {"accuracy": {"contrast_prompt": {"contrast": 0.1}}}
    says, columns, paper, this, ours, *sentence = smollm.side_by_side(circuit)
    names = [line.split("  ")[1].strip() for line in (paper, this, ours)]
    assert names == ["Gemma-2-9B (paper)", "SmolLM2-135M", "ours (reference/)"]
    assert this.split()[1:] == ["0.130", "2", "of", "4", "-20", "0.050", "0.500"]
    wanted = ["0.630", "6", "of", "672", "-27", "0.000", "(16)", "0.870", "(16)"]
    assert paper.split()[-9:] == wanted and "2507.09875" in says
    assert max(map(len, (columns, paper, this, ours))) <= 80
    reference = json.loads((smollm.REFERENCE / "circuit.json").read_text())
    share = reference["accuracy"]["contrast_prompt"]["contrast"]
    n_fi = len(reference["groups"]["function_induction"])
    assert [*ours.split()[2:4], *ours.split()[4:6]] == [f"{share:.3f}", str(n_fi), "of", "24"]
    assert "on 13.0% of prompts" in sentence[0]
    assert "undo 75% of the shift in F, random heads 10%" in sentence[0]


def test_where_F_may_not_fall_the_reader_is_warned():
    effects = Effects(embedding=torch.tensor(0.0), heads=torch.zeros(1, 1), mlps=torch.zeros(1))
    intervals, F = dict.fromkeys(effects.named(), [0.0, 0.0]), torch.tensor([1.0, 3.0, 2.0, 2.0])
    falls = [([1.0] * 4, False), ([-1.0] * 4, True), ([2.0, -2.0, 0.5, 0.5], True)]
    for fall, warned in (*falls, ([float("nan")] * 4, True)):
        swept = swept_of(effects, F, F - torch.tensor(fall), intervals)
        assert swept.told("logits", 3)[-1].startswith("warning: F rises here") == warned


# ---------------------------------------------------------------- the reference run


def test_the_reference_run_is_looked_at_most_in_the_first_500_steps(monkeypatch, tmp_path):
    looked = []

    def trained(flags, after_step):
        for step in range(1, 1001):
            after_step(step, None)
        return 2

    monkeypatch.setattr(reference.train, "main", trained)
    monkeypatch.setattr(reference, "look", lambda model: looked.append(1))
    steps = []
    monkeypatch.setattr(reference, "look", steps.append)
    kept = {}

    class Looks(dict):
        def __setitem__(self, step, seen):
            kept[step] = seen

    real = tmp_path / "new"
    monkeypatch.setattr(reference.tempfile, "mkdtemp", lambda *_: str(real))
    assert reference.renew(tmp_path / "reference", []) == 2
    assert len(steps) == 20 + 4  # every 25th up to 500, every 125th from there on


def test_a_look_at_the_reference_run_tells_what_the_prompts_of_patch_do(monkeypatch):
    usual = reference.patch.Study()
    monkeypatch.setattr(reference.patch, "Study", lambda: replace(usual, prompts=4))
    right = {"base_prompt": {"base": 0.8, "contrast": 0.1}}
    right |= {"contrast_prompt": {"base": 0.3, "contrast": 0.6}}
    monkeypatch.setattr(reference.patch, "solving", lambda *_: right)
    cfg = replace(CFG, n_heads=2, d_mlp=16, n_ctx=64)
    model = Transformer(cfg, torch.Generator().manual_seed(1)).requires_grad_(False)
    seen = reference.look(model)
    assert (seen["plain"], seen["off_by_one"]) == (0.8, 0.6)
    tokens = tasks.encode("1+1=3, 2+2=5, 3+3=")[None]
    logits, cache = model.run_with_cache(tokens)
    best = logits[0, -1].softmax(-1).sort(descending=True)
    wanted = [tasks.VOCABULARY[token] for token in best.indices[:5]]
    assert [token for token, _ in seen["answers"]] == wanted
    assert [p for _, p in seen["answers"]] == pytest.approx(best.values[:5].tolist(), abs=6e-4)
    for layer in (0, 1):
        last = cache[f"blocks.{layer}.attn.hook_pattern"][0, :, -1]
        assert torch.allclose(torch.tensor(seen["attention"][layer]), last, atol=6e-4)
    pairs = usual.pairs(4, torch.Generator().manual_seed(usual.seed))
    patcher = usual.patchers(model, pairs)["answers"]
    assert seen["F_range"] == pytest.approx(patcher.F_range, abs=6e-4)
    r = patcher.sweep(reference.Logits()).heads
    assert torch.allclose(torch.tensor(seen["r"]), r.float(), atol=6e-4)
    _, cache = model.run_with_cache(pairs.contrast)
    places = tasks.answer_positions(usual.shots)
    last = cache["blocks.1.attn.hook_pattern"][:, :, -1][:, :, places].sum(-1).mean(0)
    assert seen["to_answers"][1] == pytest.approx(last.tolist(), abs=1e-3)
