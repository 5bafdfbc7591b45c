import pytest

import tasks
from commands import ask
from minifunc.support.files import save_json, save_tensors
from tests.handwired import headline_model


@pytest.fixture(scope="module")
def model():
    return headline_model(len(tasks.VOCABULARY))


@pytest.fixture
def run(model, tmp_path):
    save_tensors(tmp_path / "model.pt", model.state_dict())
    save_json(tmp_path / "config.json", {"model": vars(model.cfg), "vocabulary": tasks.VOCABULARY})
    return tmp_path


def test_the_answer_and_the_head_that_carried_it_are_told(run, capsys):
    assert ask.main(["--run", str(run), "--device", "cpu", "1+1=3, 2+2=5, 3+3="]) == 0
    out = capsys.readouterr().out
    assert "answer  7\n" in out and "is answered 6" in out
    assert "   0.0  -100.0  " in out and "0.1" not in out.split("Which heads")[1]
    assert "With all that 0.0 send taken from the plain prompt, the answer is 6" in out


def test_only_heads_that_bring_the_plain_answer_back_are_swapped(model, monkeypatch):
    r = dict.fromkeys(ask.all_heads(model.cfg), 0.0) | {"0.0": -0.5, "0.1": 0.5}
    monkeypatch.setattr(ask.PathPatcher, "sweep", lambda *_: Swept(r))
    out = ask.answer(model, "1+1=3, 2+2=5, 3+3=")
    assert "   0.1    50.0" in out and "With all that 0.0 send taken" in out


class Swept:
    def __init__(self, r):
        self.named = lambda: r


@pytest.mark.parametrize("text", ["1+1=2, 2+2=4, 3+3=", "3+3="])
def test_where_no_rule_is_shown_none_is_traced(model, text):
    out = ask.answer(model, text)
    assert "answer " in out and "Which heads" not in out
    assert out.endswith("Nothing shown departs from a known plain answer.")


def test_where_the_plain_prompt_is_answered_alike_nothing_is_traced(model):
    out = ask.answer(model, "1+1=30, 2+2=4, 3+3=")
    assert "answer  6\n" in out and "Which heads" not in out
    assert out.endswith("Shown the plain answers it says the same.")


def test_the_base_prompt_shows_plain_answers_of_every_function():
    shown = {
        "1+1=3": "1 + 1 = 2",
        "9-4=6": "9 - 4 = 5",
        "7 max 3 = 0": "7 max 3 = 7",
        "a copy _ = c": "a copy _ = a",
        "3 7 5 = c": "3 7 5 = b",
        "18 second 2 = 7": "18 second 2 = 2",
        "2 + 12 = 3": "2 + 12 = 3",  # sums of 12 are no problem of ours
    }
    base = ask.base_prompt(tasks.encode(", ".join([*shown, "5 same _ ="])))
    assert tasks.decode(base) == " ; ".join([f"<bos> {' ; '.join(shown.values())}", "5 same _ ="])


def test_the_prompt_of_the_readme_is_asked_if_none_is(run, capsys):
    assert ask.main(["--run", str(run), "--device", "cpu"]) == 0
    assert "answer  7\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    "prompt, says",
    [
        ("", "an empty prompt"),
        ("\n , ;", "an empty prompt"),
        ("what?", "'what' is not known"),
        ("99+1=", "'99' is not known; known: _ + - max min first second same copy, letters"),
        ("1+1=\n99+1=", "numbers -4 to 30"),
        ("2*2=5", "'*' is not known"),
        ("a caesar 1=e", "'caesar' is not known"),
        ("\N{ARABIC-INDIC DIGIT ONE}+1=", "'\N{ARABIC-INDIC DIGIT ONE}' is not known"),
        ("1+1=-9", "'-9' is not known"),
        ("1+1=3 2+2=", "an example is x, what to do, y (or _), = and its answer"),
        ("1+1=3, 2+2=5", "leave the last one open"),
        ("1+1=, 2+2=", "only the last example may lack its answer"),
        ("1+77=", "'77' is not known"),
        ("1+1=3," * 40 + "3+3=", "context holds 32"),
    ],
)
def test_a_prompt_that_cannot_be_asked_is_one_line_and_exit_code_2(run, capsys, prompt, says):
    assert ask.main(["--run", str(run), "--device", "cpu", "--prompt", prompt]) == 2
    captured = capsys.readouterr()
    assert says in captured.err and captured.err.count("\n") == 1 and captured.out == ""


@pytest.mark.parametrize("flag", [[], ["--prompt"]])
def test_a_prompt_may_have_lines_and_begin_with_a_minus(run, capsys, flag):
    assert ask.main(["--run", str(run), "--device", "cpu", *flag, "-1+2=1\n2+2=5\r\n3+3=\n"]) == 0
    assert "prompt  <bos> -1 + 2 = 1 ; 2 + 2 = 5 ; 3 + 3 =\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    "prompt, share, reasons",
    [
        ("1+1=3, 2+2=", 0.9, []),
        ("1+1=3, 2+2=", 0.49, ["less than half"]),
        ("1+1=", 0.9, ["no example"]),
        ("9-10=", 0.1, ["never asks 9 - 10", "no example", "less than half"]),
        ("2+12=3, 1+1=", 0.9, ["never asks 2 + 12"]),
        ("10+5=16, 20+3=", 0.9, ["never asks 20 + 3"]),  # of two the last, which is asked
        ("2+2=3, 3 3 1=", 0.9, ["never asks 3 3 1"]),
    ],
)
def test_a_guess_is_called_one_with_every_reason(prompt, share, reasons):
    found = ask.doubts(tasks.encode(prompt), share)
    assert len(found) == len(reasons)
    assert all(reason in said for reason, said in zip(reasons, found))


def test_under_a_guess_it_says_so(model):
    assert "This is a guess: no example shows" in ask.answer(model, "1+1=")
    assert "guess" not in ask.answer(model, "1+1=3, 2+2=5, 3+3=")
