"""Reading examples that people write, `1+1=3, 2+2=5, 3+3=` or `3 7 5=b`; what tokens are called."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import SupportsInt

OPERAND, SYMBOL_OR_OPTION = r"([a-z]|-?\d+)", r"([+-]|[a-z]{2,}|(?<=\s)\d+(?=\s))"
EXAMPLE = rf"\s*{OPERAND}\s*{SYMBOL_OR_OPTION}\s*(?:{OPERAND}|_)?\s*=\s*{OPERAND}?\s*"
WORD = r"\d+|[^\W\d_]+|\S"  # of any script
LIKE = "write examples like 1+1=3, 2+2=5, 3+3="


def token_name(strings: Sequence[str], token: SupportsInt) -> str:
    """A token's string. A token beyond the vocabulary, which a model may have, is `token 70`."""
    index = int(token)
    return strings[index] if 0 <= index < len(strings) else f"token {index}"


def read_examples(text: str, known: Mapping[str, int]) -> list[int]:
    """The tokens of a text, by the strings that are `known`; examples end with `;`, `,` or their
    line, and only the last may lack its answer. Raises ValueError, with the cause, for other text.

    >>> read_examples("1+1=2, 2+2=", {"1": 1, "2": 2, "+": 7, "=": 8, ";": 9})
    [1, 7, 1, 8, 2, 9, 2, 7, 2, 8]
    """
    strings: list[str] = []
    for example in re.split(r"[;,\n]", text.replace("<bos>", " ")):
        if not (found := example.strip()):
            continue
        match = re.fullmatch(EXAMPLE, example)
        x, op, y, answer = match.groups() if match else ("",) * 4
        read = [x, op, y or "_", "="] + ([answer, ";"] if answer else [])
        words = read if match else re.findall(WORD, found)
        unknown = next((word for word in words if word not in known), "")
        if unknown:
            why = f"{unknown!r:.20} is not known; {_listed(known)}"
        elif not match:
            why = f"an example is x, what to do, y (or _), = and its answer; {LIKE}"
        elif strings[-1:] == ["="]:
            why = "only the last example may lack its answer, and the one before it does"
        else:
            strings += read
            continue
        raise ValueError(f"cannot read {found!r:.40}: {why}")
    if not strings:
        raise ValueError(f"cannot read an empty prompt: {LIKE}")
    return [known[string] for string in strings]


def _listed(known: Iterable[str]) -> str:
    """What may be written, in words."""
    numbers = [int(word) for word in known if word.lstrip("-").isdecimal()]
    signs = [word for word in known if word in "+-_" or (word.isalpha() and len(word) > 1)]
    ranges = f"letters a to z, numbers {min(numbers)} to {max(numbers)}"
    return f"known: {' '.join(signs)}, {ranges}"
