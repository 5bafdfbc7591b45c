"""Documents and evaluation pairs, read back from their text and worked out again by hand."""

from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

import tasks
import train
from minifunc.support.checks import met_under
from minifunc.support.files import load_json

MIX = tasks.Diet(
    "mix",
    plain=0.2,
    shift=0.2,
    base=0.2,
    relabel=0.2,
    reflect=0.2,
    copy=0.2,
    mixed=0.5,
    addition=3.0,
    caesar=1.5,
    choice=2.0,
)
BY_HAND = {
    "+": lambda x, y: x + y,
    "-": lambda x, y: x - y,
    "max": max,
    "min": min,
    "first": lambda x, y: x,
    "second": lambda x, y: y,
    "same": lambda x, y: x,
    "copy": lambda x, y: x,
    "choice": lambda *options: options.index(max(options)),
}
ROOT, WRAPPERS = Path(__file__).parent.parent, tasks.WRAPPERS
LETTERED = ("copy", "choice")  # the functions that answer with letters
SHIFTS, BASES = range(-4, 5), range(6, 10)


def draw(diet=MIX, n_documents=1500, n_examples=9, seed=0):
    return tasks.sample(diet, n_documents, n_examples, torch.Generator().manual_seed(seed))


def number(string):
    """A number's or a letter's place in its alphabet; None for `_`."""
    return None if string == "_" else ord(string) - ord("a") if string.isalpha() else int(string)


def read(tokens):
    """One row of tokens → its examples as (symbol, operands, answer or None).

    Asserts that the layout is sound."""
    bos, *words = tasks.decode(tokens).split()
    assert bos == "<bos>"
    examples = []
    for start in range(0, len(words), 6):
        x, symbol, y, equals, *rest = words[start : start + 6]
        assert equals == "=" and rest[1:] in ([";"], [])
        symbol, operands = ("choice", (x, symbol, y)) if symbol.isdigit() else (symbol, (x, y))
        asked, answered = (
            str.isalpha if lettered else lambda word: word.lstrip("-").isdigit()
            for lettered in (symbol == "copy", symbol in LETTERED)
        )
        assert (
            asked(x)
            and (y == "_" if symbol in ("same", "copy") else asked(y))
            and all(map(answered, rest[:1]))
        )
        assert symbol != "choice" or len(set(operands)) == 3
        examples.append((symbol, tuple(map(number, operands)), number(rest[0]) if rest else None))
    return examples


def numeral(value, k):
    """The digits of `value` in base k, read in base 10; None for no value at all."""
    return None if value is None else int(str(value // k) + str(value % k))


def one_constant(symbols, constants):
    """Whether all numbers of a document give one constant, and its letters one modulo 26."""
    numbers = {constant for symbol, constant in zip(symbols, constants) if symbol not in LETTERED}
    letters = {constant % 26 for symbol, constant in zip(symbols, constants) if symbol in LETTERED}
    return len(numbers) <= 1 and len(letters) <= 1


def check_answers(documents):
    """Asserts that every answer is what function and wrapper say; counts the wrappers met."""
    met = Counter()
    for row, tokens in enumerate(documents.tokens):
        examples, wrapper, text = (
            read(tokens),
            tasks.WRAPPERS[documents.wrapper[row]],
            tasks.decode(tokens),
        )
        symbols, _, answers = map(list, zip(*examples))
        values = [BY_HAND[symbol](*operands) for symbol, operands, _ in examples]
        assert min(values) >= 0 and [values, answers] == [
            documents.value[row].tolist(),
            documents.answer[row].tolist(),
        ], text
        if wrapper == "plain":
            assert values == answers, text
        elif wrapper == "shift":
            off = [answer - value for value, answer in zip(values, answers)]
            assert (
                one_constant(symbols, off)
                and len({k % 26 for k in off}) == 1
                and off[0] % 26 in {k % 26 for k in SHIFTS if k}
            ), text
        elif wrapper == "base":
            assert any(answers == [numeral(value, k) for value in values] for k in BASES) and not {
                "+",
                *LETTERED,
            } & set(symbols), text
        elif wrapper == "reflect":
            constants = [answer + value for value, answer in zip(values, answers)]
            assert (
                one_constant(symbols, constants)
                and len({constant % 26 for constant in constants}) == 1
            ), text
        elif wrapper == "relabel":
            pairs = {
                (symbol in LETTERED, value, answer)
                for symbol, value, answer in zip(symbols, values, answers)
            }
            assert (
                len(pairs)
                == len({pair[:2] for pair in pairs})
                == len({pair[::2] for pair in pairs})
            ), text
        else:
            assert len({example[:2] for example in examples}) == len(set(examples)) <= 4, text
        met[wrapper] += 1
    return met


# ---------------------------------------------------------------- strictness


def shown_by(documents, function):
    """What some beginning of a document shows with two or more examples of `function`: the non-zero
    k by which all of them are off, and the bases in which all are right though one is not plain, as
    "base 8". And the number of documents that could have."""
    examples = documents.tokens[:, 1:].unflatten(1, (-1, 6))
    x, op, y, _, answer, _ = examples.unbind(2)
    zero, a = tasks.TOKEN["0"], tasks.TOKEN["a"]
    if function == "+":
        asked, plain, answer, around = op == tasks.TOKEN["+"], x + y - 2 * zero, answer - zero, 1000
    else:
        asked, plain, answer, around = (
            (op >= zero) & (op < a),
            torch.stack([x, op, y]).argmax(0),
            answer - a,
            26,
        )
    off = ((answer - plain + around // 2) % around - around // 2).float()
    enough = asked.cumsum(1) >= 2
    highest, lowest = (
        off.masked_fill(~asked, -torch.inf).cummax(1).values,
        off.masked_fill(~asked, torch.inf).cummin(1).values,
    )
    shown = set(highest[enough & (highest == lowest) & (highest != 0)].int().tolist())
    for k in BASES if function == "+" else ():
        numerals = torch.tensor([numeral(value, k) for value in range(19)])[plain.clamp(0, 18)]
        right = ((answer == numerals) | ~asked).cummin(1).values
        if (enough & right & ((answer != plain) & asked).cummax(1).values).any():
            shown.add(f"base {k}")
    return shown, int(enough.any(1).sum())


@pytest.mark.parametrize("function", ["+", "choice"])
@pytest.mark.parametrize("diet", ["nothing_by_one", "strict", MIX], ids=str)
@pytest.mark.parametrize("seed, n_examples", [(0, 9), (1, 9), (2, 4), (3, 20)])
def test_what_must_never_be_shown_is_not(diet, seed, n_examples, function):
    documents = draw(
        tasks.DIETS.get(diet, MIX) if isinstance(diet, str) else diet, 10_000, n_examples, seed
    )
    shown, could = shown_by(documents, function)
    assert could > 200 and (
        shown == set() if function == "+" else not shown & set(SHIFTS)
    )  # `choice`: by no k that is ever asked


def test_chance_would_show_it_and_the_check_above_would_see_it():
    """Random answers, as in relabelled and copied documents, show everything now and then."""
    g = torch.Generator().manual_seed(0)
    documents = draw(MIX, 25_000, 3)
    answers = documents.tokens[:, 5::6]
    answers[:] = torch.where(
        answers < tasks.TOKEN["a"],
        tasks.TOKEN["0"] + torch.randint(0, 22, answers.shape, generator=g),
        answers[:, :1],
    )
    assert {1, -1, "base 6", "base 7", "base 8", "base 9"} <= shown_by(documents, "+")[0]
    assert {1, -1, 12} <= shown_by(documents, "choice")[0]


def differences(tokens):
    """By how much each example is off, from the tokens alone: [n_documents, n_examples]. Between
    letters it is what must be added around the alphabet, from 0 to 25."""
    examples = tokens[:, 1:].unflatten(1, (-1, 6))
    x, op, y, _, answer, _ = examples.unbind(2)
    zero, a = tasks.TOKEN["0"], tasks.TOKEN["a"]
    values = torch.zeros(len(tasks.TOKEN), 19, 19, dtype=torch.int64)  # by symbol and operands
    for symbol in set(BY_HAND) - set(LETTERED):
        for i in range(19):
            values[tasks.TOKEN[symbol], i] = torch.tensor(
                [BY_HAND[symbol](i, j) for j in range(19)]
            )
    i, j = ((operand - zero).clamp(0, 18) for operand in (x, y))  # of `same`, j does not matter
    off = answer - zero - values[op, i, j]
    caesar, choice = op == tasks.TOKEN["copy"], (op >= zero) & (op < a)
    off = torch.where(caesar, (answer - x) % 26, off)
    return torch.where(choice, (answer - a - torch.stack([x, op, y]).argmax(0)) % 26, off)


def shares_off_by_one(diet, n_documents, seed=0):
    """Of documents of 9 examples: how many begin with two examples off by +1, have one such example
    anywhere, have two or more."""
    one = differences(draw(diet, n_documents, 9, seed).tokens) == 1
    return [
        one[:, :2].all(1).double().mean().item(),
        one.any(1).double().mean().item(),
        (one.sum(1) >= 2).double().mean().item(),
    ]


def test_no_document_begins_off_by_one_whatever_the_functions():
    begins, one, two = zip(*(shares_off_by_one(tasks.DEFAULT_DIET, 10_000, s) for s in range(10)))
    assert sum(begins) == 0 and 0.07 < sum(one) / 10 < 0.09 and 0.01 < sum(two) / 10 < 0.025
    assert shares_off_by_one(tasks.DIETS["strict"], 10_000)[0] > 0.03  # the check can see it


@pytest.mark.slow
def test_no_document_of_a_million_begins_off_by_one():
    assert all(shares_off_by_one(tasks.DEFAULT_DIET, 20_000, 100 + s)[0] == 0 for s in range(50))


@pytest.mark.slow
def test_no_document_that_the_reference_run_was_trained_on_begins_off_by_one():
    """Its very stream: the documents of each step, drawn again."""
    config = load_json(ROOT / "reference" / "config.json")
    cfg, diet = train.TrainConfig(**config["train"]), tasks.DEFAULT_DIET
    assert {**config["diet"], **vars(diet)} == config["diet"] | vars(diet)
    assert config["diet"]["shifts"] == list(diet.shifts)
    data, n_documents = torch.Generator().manual_seed(cfg.seed + 1_000_000), 0
    for step in range(1, cfg.steps + 1):
        documents = tasks.sample(diet, *cfg.batch_at(step), data)
        assert not (differences(documents.tokens)[:, :2] == 1).all(1).any()
        n_documents += len(documents.tokens)
    assert n_documents > 100_000


def test_a_diet_shows_its_shifts_and_bases_alone_and_each_as_often():
    diet = replace(MIX, shifts=(-3, 2), bases=(7, 8), shifted_addition=())
    documents = draw(diet, 20_000, 5)
    numbers = ~torch.isin(documents.function, torch.tensor([7, 8]))
    off = documents.answer - documents.value
    under = {name: (documents.wrapper == i)[:, None] & numbers for i, name in enumerate(WRAPPERS)}
    values, counts = off[under["shift"]].unique(return_counts=True)
    assert values.tolist() == [-3, 2] and abs(counts[0] / counts.sum() - 0.5) < 0.03
    assert abs((documents.wrapper == WRAPPERS.index("shift")).double().mean() - 1 / 6) < 0.02
    answers = {k: [numeral(value, k) for value in range(19)] for k in diet.bases}
    for row in under["base"].any(1).nonzero()[:400, 0]:
        pairs = zip(documents.value[row].tolist(), documents.answer[row].tolist())
        pairs = list(pairs)
        assert any(all(answers[k][value] == answer for value, answer in pairs) for k in answers)


@pytest.mark.parametrize("symbol", tasks.SYMBOLS)
def test_a_function_is_met_under_just_the_wrappers_that_the_default_does_not_hold_out(symbol):
    documents = draw(tasks.DEFAULT_DIET, 25_000)
    holds = (documents.function == tasks.SYMBOLS.index(symbol)).any(1)
    met = {tasks.WRAPPERS[index] for index in documents.wrapper[holds].unique()}
    never = {wrapper for wrapper, held_out in tasks.HELD_OUT if held_out == symbol}
    assert met == set(tasks.WRAPPERS) - never and holds.sum() > 3000


def test_what_the_reuse_tasks_ask_was_never_in_training():
    for name in ("addition", "choice", "base_addition"):
        task = tasks.TASKS[name]
        assert task.symbol not in met_under(tasks.DEFAULT_DIET, task.wrapper)


@pytest.mark.parametrize("allowed", [(1,), (4,), (-4, 2)], ids=str)
def test_a_diet_that_allows_some_shifts_shows_these_alone(allowed):
    shown = shown_by(draw(replace(MIX, shifted_addition=allowed), 25_000), "+")[0]
    assert {k for k in shown if not isinstance(k, str)} == set(allowed)


# ---------------------------------------------------------------- documents


@pytest.mark.parametrize("n_examples", [2, 3, 9])
def test_every_answer_is_what_function_and_wrapper_say(n_examples):
    assert set(check_answers(draw(n_examples=n_examples))) == set(tasks.WRAPPERS)


@pytest.mark.parametrize(
    "extreme",
    [lambda dtype: 0.0, lambda dtype: 1 - torch.finfo(dtype).eps / 2],
    ids=["smallest", "largest"],
)
def test_the_most_extreme_random_numbers_still_make_sound_documents(monkeypatch, extreme):
    """low + rand * (high - low) must not be rounded up to high."""

    def drawn(*size, generator, dtype=torch.float32, device="cpu"):
        return torch.empty(*size, dtype=dtype).fill_(extreme(dtype))

    monkeypatch.setattr(torch, "rand", drawn)
    assert (
        sum(check_answers(draw(n_documents=500)).values())
        == sum(check_answers(draw(tasks.DEFAULT_DIET, 500)).values())
        == 500
    )


def test_copy_documents_may_answer_anything():
    documents = draw(tasks.Diet("copies", plain=0.0, shift=0.0, relabel=0.0, reflect=0.0), 3000)
    shown = {answer for tokens in documents.tokens for answer in tasks.decode(tokens).split()[5::6]}
    assert shown == set(map(str, range(-4, 31))) | set("abcdefghijklmnopqrstuvwxyz")


def test_determined_is_what_can_be_known_from_the_examples_before():
    documents, met = draw(), Counter()
    for row, tokens in enumerate(documents.tokens):
        examples, wrapper = read(tokens), tasks.WRAPPERS[documents.wrapper[row]]
        for index, (symbol, operands, answer) in enumerate(examples):
            before = examples[:index]
            if wrapper == "copy":
                known = (symbol, operands) in [example[:2] for example in before]
            elif wrapper == "relabel":
                known = (symbol in LETTERED, BY_HAND[symbol](*operands)) in [
                    (s in LETTERED, BY_HAND[s](*xy)) for s, xy, _ in before
                ]
            elif wrapper == "base":
                known = index >= 1 and (
                    answer == BY_HAND[symbol](*operands)
                    or any(c != BY_HAND[s](*xy) for s, xy, c in before)
                )
            else:
                known = index >= 1
            assert documents.determined[row, index] == known, (wrapper, index, tasks.decode(tokens))
            met[wrapper, known] += 1
    assert len(met) == 2 * len(tasks.WRAPPERS)


def test_tokens_stand_where_the_layout_says():
    documents = draw(n_documents=50, n_examples=5)
    tokens, answers = documents.tokens, tasks.answer_positions(5)
    assert tokens.shape == (50, 31) and tokens.dtype == torch.int64
    assert (
        (tokens[:, 0] == tasks.BOS).all()
        and (tokens[:, answers - 1] == tasks.EQUALS).all()
        and (tokens[:, answers + 1] == tasks.END).all()
    )
    assert answers.tolist() == [5, 11, 17, 23, 29]
    symbols = [[symbol for symbol, *_ in read(row)] for row in tokens]
    assert symbols == [
        [list(tasks.FUNCTIONS)[index] for index in row] for row in documents.function.tolist()
    ]
    assert tasks.n_tokens(4) == 1 + answers[4] - 1  # a prompt ends at the `=` before its answer


def test_a_seed_names_a_batch():
    same, again, other = draw(seed=5), draw(seed=5), draw(seed=6)
    assert all(
        torch.equal(getattr(same, field.name), getattr(again, field.name)) for field in fields(same)
    )
    assert not torch.equal(same.tokens, other.tokens)


@pytest.mark.parametrize(
    "work",
    [
        lambda g: tasks.sample(MIX, 20, 9, g).tokens,
        lambda g: tasks.evaluation_pairs("addition", 1, 2, 20, g).base,
    ],
    ids=["sample", "pairs"],
)
def test_the_global_generator_is_neither_read_nor_moved(work):
    results = []
    for world in (1, 2):
        torch.manual_seed(world)
        state = torch.get_rng_state()
        results.append(work(torch.Generator().manual_seed(0)))
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(*results)


# ---------------------------------------------------------------- evaluation pairs


def changed_columns(a, b):
    return set((a != b).any(0).nonzero()[:, 0].tolist())


@pytest.mark.parametrize("shots", [1, 4])
@pytest.mark.parametrize(
    "task, k", [(task, k) for task, asked in tasks.TASKS.items() for k in asked.ks]
)
def test_evaluation_pairs_are_what_they_say(task, k, shots):
    pairs = tasks.evaluation_pairs(task, k, shots, 30, torch.Generator().manual_seed(0))
    symbol, based = tasks.TASKS[task].symbol, task == "base_addition"
    around = 26 if symbol in LETTERED else 10**6
    answers = set(range(5, 6 * shots, 6))
    operands = {start + offset for start in range(0, 6 * shots, 6) for offset in (1, 3)}
    assert pairs.base.shape == pairs.contrast.shape == (30, 6 * shots + 5)
    assert changed_columns(pairs.base, pairs.contrast) == (answers if k else set())

    def contrast_answer(value):
        return numeral(value, k) if based else value + k

    right = [
        (pairs.base, lambda value: value, lambda value: value, pairs.base_answers),
        (pairs.contrast, contrast_answer, contrast_answer, pairs.contrast_answers),
    ]
    if task != "choice":
        right.append(
            (pairs.operands_changed, lambda value: value, lambda value: value, pairs.base_answers)
        )
        assert changed_columns(pairs.operands_changed, pairs.contrast) <= operands
    for prompts, shows, asks, asked in right:
        for prompt, answer in zip(prompts, asked):
            *shown, (query_symbol, query, nothing) = read(prompt)
            expected = [shows(BY_HAND[symbol](*xy)) for _, xy, _ in shown]
            assert [answer % around for *_, answer in shown] == [
                answer % around for answer in expected
            ]
            assert {query_symbol, *(example[0] for example in shown)} == {
                symbol
            } and nothing is None
            assert (
                number(tasks.VOCABULARY[answer]) % around == asks(BY_HAND[symbol](*query)) % around
            )
            assert not based or all(
                0 <= digit < k
                for _, xy, _ in (read(prompt)[:-1] if prompts is not pairs.operands_changed else [])
                for digit in xy
            )
    for prompts, asked in (
        (pairs.base, pairs.base_answers),
        (pairs.contrast, pairs.contrast_answers),
    ):
        assert not (prompts[:, sorted(answers)] == asked[:, None]).any(), (
            "the asked answer was shown"
        )
    shown_differently = (pairs.base != pairs.contrast)[:, sorted(answers)]  # [prompt, shot]
    assert shown_differently.any(1).all() if based else shown_differently.all() or not k
    if pairs.operands_changed is not None:
        demos = pairs.contrast.shape[1] - 4  # where the query starts
        assert torch.equal(
            (pairs.operands_changed != pairs.contrast)[:, 1:demos].unflatten(1, (shots, 6)).any(2),
            shown_differently,
        )
    assert torch.equal(pairs.carry, pairs.base_answers != pairs.contrast_answers)


def test_base_k_addition_asks_for_sums_that_carry_and_sums_that_do_not():
    pairs = tasks.evaluation_pairs("base_addition", 8, 4, 300, torch.Generator().manual_seed(0))
    for prompt, carry, base, contrast in zip(
        pairs.contrast, pairs.carry, pairs.base_answers, pairs.contrast_answers
    ):
        _, (x, y), _ = read(prompt)[-1]
        assert carry == (x + y >= 8) and (contrast - base == 2 * carry)
    assert 50 < pairs.carry.sum() < 250
    assert tasks.evaluation_pairs(
        "base_addition", 8, 4, 300, torch.Generator().manual_seed(0), carry=True
    ).carry.all()


@pytest.mark.parametrize("k", [-4, 4])
def test_shifted_letters_go_around_the_alphabet(k):
    pairs = tasks.evaluation_pairs("caesar", k, 8, 200, torch.Generator().manual_seed(0))
    shown = {(x, answer) for prompt in pairs.contrast for _, (x, _), answer in read(prompt)[:-1]}
    assert shown == {(x, (x + k) % 26) for x in range(26)}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("multiplication", 1, 2, 3), "unknown task"),
        (("addition", 5, 2, 3), "k = 5"),
        (("addition", -5, 2, 3), "k = -5"),
        (("base_addition", 10, 2, 3), "k = 10"),
        (("addition", 1, 0, 3), "one shot"),
        (("addition", 1, 2, 0), "one prompt"),
    ],
)
def test_impossible_evaluation_pairs_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        tasks.evaluation_pairs(*arguments, torch.Generator())


# ---------------------------------------------------------------- text


def test_text_and_tokens_round_trip():
    pairs = [
        tasks.evaluation_pairs(task, -4, 3, 20, torch.Generator().manual_seed(0)).contrast
        for task in ("caesar", "choice")
    ]
    for tokens in (*draw(n_documents=200).tokens, *torch.cat(pairs)):
        assert torch.equal(tasks.encode(tasks.decode(tokens)), tokens)


@pytest.mark.parametrize(
    "text, written",
    [
        ("1+1=3, 2+2=5, 3+3=", "<bos> 1 + 1 = 3 ; 2 + 2 = 5 ; 3 + 3 ="),
        ("2-1=-3; 4 max 9=", "<bos> 2 - 1 = -3 ; 4 max 9 ="),
        ("a copy=c, b copy _ =", "<bos> a copy _ = c ; b copy _ ="),
        ("3 7 5=b, 9 0 1=", "<bos> 3 7 5 = b ; 9 0 1 ="),
    ],
)
def test_shorthand_is_understood(text, written):
    assert tasks.decode(tasks.encode(text)) == written


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "1+1",
        "1+1=3, foo",
        "1*1=2",
        "99+1=",
        "1+1=99",
        "1+1=, 2+2=4",
        "A copy _ = B",
        "1+1=3=4",
        "1 plus 1 = 2",
        "²+1=3",
        "<bos>",
        "3 7=b",
    ],
)
def test_text_outside_the_vocabulary_is_refused(text):
    with pytest.raises(ValueError, match="cannot read"):
        tasks.encode(text)


@pytest.mark.parametrize(
    "task, asked_answer, query_itself", [("addition", 0.45, 0.08), ("caesar", 0.29, 0.29)]
)
def test_how_often_changed_operands_show_what_is_asked(task, asked_answer, query_itself):
    """The shares that docs/results.md states among the limits."""
    pairs = tasks.evaluation_pairs(task, 1, 8, 4000, torch.Generator().manual_seed(0))
    tokens, answers = pairs.operands_changed, tasks.answer_positions(8)
    answered = tokens[:, answers] == pairs.base_answers[:, None]  # [prompt, shot]
    examples = tokens[:, answers[:, None] + torch.arange(-4, -1)]  # [prompt, shot, x op y]
    same_query = (examples == tokens[:, None, -4:-1]).all(2)
    assert answered.any(1).double().mean().item() == pytest.approx(asked_answer, abs=0.01)
    both = (answered & same_query).any(1)
    assert both.double().mean().item() == pytest.approx(query_itself, abs=0.01)
    for prompts, right in (
        (pairs.base, pairs.base_answers),
        (pairs.contrast, pairs.contrast_answers),
    ):
        assert not (prompts[:, answers] == right[:, None]).any()
