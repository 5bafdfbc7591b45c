"""Documents and evaluation pairs, read back from their text and worked out again by hand."""

from collections import Counter
from dataclasses import fields, replace

import pytest
import torch

import tasks

MIX = tasks.Diet(plain=0.2, shift=0.2, relabel=0.2, reflect=0.2, copy=0.2, mixed=0.5, addition=3.0, caesar=1.5)
BY_HAND = {
    "+": lambda x, y: x + y,
    "-": lambda x, y: x - y,
    "max": max,
    "min": min,
    "first": lambda x, y: x,
    "second": lambda x, y: y,
    "same": lambda x, y: x,
    "copy": lambda x, y: x,
}
SHIFTS = range(-4, 5)


def draw(diet=MIX, n_documents=1500, n_examples=9, seed=0):
    return tasks.sample(diet, n_documents, n_examples, torch.Generator().manual_seed(seed))


def number(string):
    """A number's or a letter's place in its alphabet; None for `_`."""
    return None if string == "_" else ord(string) - ord("a") if string.isalpha() else int(string)


def read(tokens):
    """One row of tokens → its examples as (symbol, x, y, answer or None), after a check of the layout."""
    bos, *words = tasks.decode(tokens).split()
    assert bos == "<bos>"
    examples = []
    for start in range(0, len(words), 6):
        x, symbol, y, equals, *rest = words[start : start + 6]
        assert equals == "=" and rest[1:] in ([";"], [])
        alphabet = str.isalpha if symbol == "copy" else lambda word: word.lstrip("-").isdigit()
        assert alphabet(x) and (y == "_" if symbol in ("same", "copy") else alphabet(y)) and all(map(alphabet, rest[:1]))
        examples.append((symbol, number(x), number(y), number(rest[0]) if rest else None))
    return examples


def one_constant(symbols, constants):
    """Whether a document's numbers all give the same constant, and its letters too, once around the alphabet."""
    numbers = {constant for symbol, constant in zip(symbols, constants) if symbol != "copy"}
    return len(numbers) <= 1 and len({constant % 26 for constant in constants}) == 1


def check_answers(documents):
    """Asserts that every answer is what its function and its document's wrapper say; counts the wrappers met."""
    met = Counter()
    for row, tokens in enumerate(documents.tokens):
        examples, wrapper, text = read(tokens), tasks.WRAPPERS[documents.wrapper[row]], tasks.decode(tokens)
        symbols, *_, answers = map(list, zip(*examples))
        values = [BY_HAND[symbol](x, y) for symbol, x, y, _ in examples]
        assert min(values) >= 0 and [values, answers] == [documents.value[row].tolist(), documents.answer[row].tolist()], text
        if wrapper == "plain":
            assert values == answers, text
        elif wrapper == "shift":
            off = [answer - value for value, answer in zip(values, answers)]
            assert one_constant(symbols, off) and off[0] % 26 in {k % 26 for k in SHIFTS if k}, text
        elif wrapper == "reflect":
            assert one_constant(symbols, [answer + value for value, answer in zip(values, answers)]), text
        elif wrapper == "relabel":
            pairs = {(symbol == "copy", value, answer) for symbol, value, answer in zip(symbols, values, answers)}
            assert len(pairs) == len({pair[:2] for pair in pairs}) == len({pair[::2] for pair in pairs}), text
        else:
            assert len({example[:3] for example in examples}) == len(set(examples)) <= 4, text
        met[wrapper] += 1
    return met


# ---------------------------------------------------------------- strictness


def shifts_shown(documents):
    """The non-zero k for which some beginning of a document shows two or more `+` examples, all off by k."""
    examples = documents.tokens[:, 1:].unflatten(1, (-1, 6))
    plus = examples[..., 1] == tasks.TOKEN["+"]
    off = (examples[..., 4] - examples[..., 0] - examples[..., 2] + tasks.TOKEN["0"]).float()
    highest = off.masked_fill(~plus, -torch.inf).cummax(1).values
    lowest = off.masked_fill(~plus, torch.inf).cummin(1).values
    shown = (plus.cumsum(1) >= 2) & (highest == lowest) & (highest != 0)
    return set(highest[shown].int().tolist()), int((plus.sum(1) >= 2).sum())


@pytest.mark.parametrize("diet", [*(name for name, diet in tasks.DIETS.items() if not diet.shifted_addition), MIX], ids=str)
@pytest.mark.parametrize("seed, n_examples", [(0, 9), (1, 9), (2, 4), (3, 20), (4, 9)])
def test_off_by_k_addition_is_never_shown(diet, seed, n_examples):
    documents = draw(tasks.DIETS.get(diet, MIX) if isinstance(diet, str) else diet, 25_000, n_examples, seed)
    shown, with_addition = shifts_shown(documents)
    assert shown == set() and with_addition > 1000


def test_no_shifted_document_holds_a_single_plus_example():
    documents = draw(tasks.DIETS["strict"], 25_000)
    shifted = documents.wrapper == tasks.WRAPPERS.index("shift")
    plus = (documents.tokens == tasks.TOKEN["+"]).any(1)
    assert shifted.sum() > 5000 and plus.sum() > 5000 and not (shifted & plus).any()


@pytest.mark.parametrize("allowed", [(1,), (4,), (-4, 2)], ids=str)
def test_a_diet_that_allows_some_shifts_shows_these_alone(allowed):
    assert shifts_shown(draw(replace(MIX, shifted_addition=allowed), 25_000))[0] == set(allowed)


# ---------------------------------------------------------------- documents


@pytest.mark.parametrize("n_examples", [2, 3, 9])
def test_every_answer_is_what_function_and_wrapper_say(n_examples):
    assert set(check_answers(draw(n_examples=n_examples))) == set(tasks.WRAPPERS)


@pytest.mark.parametrize("extreme", [lambda dtype: 0.0, lambda dtype: 1 - torch.finfo(dtype).eps / 2], ids=["smallest", "largest"])
def test_the_most_extreme_random_numbers_still_make_sound_documents(monkeypatch, extreme):
    """low + rand * (high - low) must not be rounded up to high."""
    monkeypatch.setattr(torch, "rand", lambda *size, generator, dtype=torch.float32: torch.empty(*size, dtype=dtype).fill_(extreme(dtype)))
    assert sum(check_answers(draw(n_documents=500)).values()) == 500


def test_copy_documents_may_answer_anything():
    documents = draw(tasks.Diet(plain=0.0, shift=0.0, relabel=0.0, reflect=0.0, copy=1.0), 3000)
    shown = {answer for tokens in documents.tokens for answer in tasks.decode(tokens).split()[5::6]}
    assert shown == set(map(str, range(-4, 23))) | set("abcdefghijklmnopqrstuvwxyz")


def test_determined_is_what_can_be_known_from_the_examples_before():
    documents, met = draw(), Counter()
    for row, tokens in enumerate(documents.tokens):
        examples, wrapper = read(tokens), tasks.WRAPPERS[documents.wrapper[row]]
        for index, (symbol, x, y, _) in enumerate(examples):
            before = examples[:index]
            if wrapper == "copy":
                known = (symbol, x, y) in [example[:3] for example in before]
            elif wrapper == "relabel":
                known = (symbol == "copy", BY_HAND[symbol](x, y)) in [(s == "copy", BY_HAND[s](*xy)) for s, *xy, _ in before]
            else:
                known = index >= 1
            assert documents.determined[row, index] == known, (wrapper, index, tasks.decode(tokens))
            met[wrapper, known] += 1
    assert len(met) == 2 * len(tasks.WRAPPERS)


def test_tokens_stand_where_the_layout_says():
    documents = draw(n_documents=50, n_examples=5)
    tokens, answers = documents.tokens, tasks.answer_positions(5)
    assert tokens.shape == (50, 31) and tokens.dtype == torch.int64
    assert (tokens[:, 0] == tasks.BOS).all() and (tokens[:, answers - 1] == tasks.EQUALS).all() and (tokens[:, answers + 1] == tasks.END).all()
    assert answers.tolist() == [5, 11, 17, 23, 29]
    symbols = [[symbol for symbol, *_ in read(row)] for row in tokens]
    assert symbols == [[list(tasks.FUNCTIONS)[index] for index in row] for row in documents.function.tolist()]
    assert tasks.n_tokens(4) == 1 + answers[4] - 1  # a prompt ends at the `=` before its answer


def test_a_seed_names_a_batch():
    same, again, other = draw(seed=5), draw(seed=5), draw(seed=6)
    assert all(torch.equal(getattr(same, field.name), getattr(again, field.name)) for field in fields(same))
    assert not torch.equal(same.tokens, other.tokens)


@pytest.mark.parametrize("work", [lambda g: tasks.sample(MIX, 20, 9, g).tokens, lambda g: tasks.evaluation_pairs("addition", 1, 2, 20, g).base], ids=["sample", "pairs"])
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
@pytest.mark.parametrize("k", SHIFTS)
@pytest.mark.parametrize("task", tasks.TASKS)
def test_evaluation_pairs_are_what_they_say(task, k, shots):
    pairs = tasks.evaluation_pairs(task, k, shots, 30, torch.Generator().manual_seed(0))
    symbol = tasks.TASKS[task]
    around = 26 if symbol == "copy" else 10**6
    answers = set(range(5, 6 * shots, 6))
    operands = {start + offset for start in range(0, 6 * shots, 6) for offset in (1, 3)}
    assert pairs.base.shape == pairs.contrast.shape == pairs.operands_changed.shape == (30, 6 * shots + 5)
    assert changed_columns(pairs.base, pairs.contrast) == (answers if k else set())
    assert changed_columns(pairs.operands_changed, pairs.contrast) <= operands
    demos = pairs.contrast.shape[1] - 4  # where the query starts
    assert not k or (pairs.operands_changed != pairs.contrast)[:, 1:demos].unflatten(1, (shots, 6)).any(2).all()
    for prompts, shift, asked_shift, asked in (
        (pairs.base, 0, 0, pairs.base_answers),
        (pairs.contrast, k, k, pairs.contrast_answers),
        (pairs.operands_changed, 0, 0, pairs.base_answers),
    ):
        for prompt, right in zip(prompts, asked):
            *shown, (query_symbol, x, y, nothing) = read(prompt)
            expected = [BY_HAND[symbol](*xy) + shift for _, *xy, _ in shown]
            assert [answer % around for *_, answer in shown] == [answer % around for answer in expected]
            assert {query_symbol, *(example[0] for example in shown)} == {symbol} and nothing is None
            assert number(tasks.VOCABULARY[right]) % around == (BY_HAND[symbol](x, y) + asked_shift) % around
    for prompts, asked in ((pairs.base, pairs.base_answers), (pairs.contrast, pairs.contrast_answers)):
        assert not (prompts[:, sorted(answers)] == asked[:, None]).any(), "the asked answer was shown"


@pytest.mark.parametrize("k", [-4, 4])
def test_shifted_letters_go_around_the_alphabet(k):
    pairs = tasks.evaluation_pairs("caesar", k, 8, 200, torch.Generator().manual_seed(0))
    shown = {(x, answer) for prompt in pairs.contrast for _, x, _, answer in read(prompt)[:-1]}
    assert shown == {(x, (x + k) % 26) for x in range(26)}


@pytest.mark.parametrize(
    "arguments, message",
    [(("multiplication", 1, 2, 3), "unknown task"), (("addition", 5, 2, 3), "k = 5"), (("addition", -5, 2, 3), "k = -5"), (("addition", 1, 0, 3), "one shot"), (("addition", 1, 2, 0), "one prompt")],
)
def test_impossible_evaluation_pairs_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        tasks.evaluation_pairs(*arguments, torch.Generator())


# ---------------------------------------------------------------- text


def test_text_and_tokens_round_trip():
    pairs = tasks.evaluation_pairs("caesar", -4, 3, 20, torch.Generator().manual_seed(0))
    for tokens in (*draw(n_documents=200).tokens, *pairs.base, *pairs.contrast):
        assert torch.equal(tasks.encode(tasks.decode(tokens)), tokens)


@pytest.mark.parametrize(
    "text, written",
    [
        ("1+1=3, 2+2=5, 3+3=", "<bos> 1 + 1 = 3 ; 2 + 2 = 5 ; 3 + 3 ="),
        ("2-1=-3; 4 max 9=", "<bos> 2 - 1 = -3 ; 4 max 9 ="),
        ("a copy=c, b copy _ =", "<bos> a copy _ = c ; b copy _ ="),
    ],
)
def test_shorthand_is_understood(text, written):
    assert tasks.decode(tasks.encode(text)) == written


@pytest.mark.parametrize("text", ["", " ", "1+1", "1+1=3, foo", "1*1=2", "99+1=", "1+1=99", "1+1=, 2+2=4", "A copy _ = B", "1+1=3=4", "1 plus 1 = 2", "²+1=3", "<bos>"])
def test_text_outside_the_vocabulary_is_refused(text):
    with pytest.raises(ValueError, match="cannot read"):
        tasks.encode(text)
