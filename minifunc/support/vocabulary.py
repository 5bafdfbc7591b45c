"""Reading examples that people write: `1+1=3, 2+2=5, 3+3=` or `3 7 5=b`."""

import re
from collections.abc import Collection

SYMBOL_OR_OPTION = r"([+-]|[a-z]{2,}|(?<=\s)\d+(?=\s))"
EXAMPLE = rf"\s*([a-z]|\d+)\s*{SYMBOL_OR_OPTION}\s*([a-z]|\d+|_)?\s*=\s*([a-z]|-?\d+)?\s*"


def read_examples(text: str, known: Collection[str]) -> list[str]:
    """The strings of a text, all of them `known`; examples end with `;`, and only the last may lack
    its answer. Raises ValueError for what cannot be read.

    >>> read_examples("1+1=3, 2+2=", "123+=;")
    ['1', '+', '1', '=', '3', ';', '2', '+', '2', '=']
    """
    strings: list[str] = []
    for example in re.split(r"[;,]", text.replace("<bos>", " ").strip().rstrip(";,")):
        match = re.fullmatch(EXAMPLE, example)
        x, op, y, answer = match.groups() if match else ("", "", "", "")
        read = [x, op, y or "_", "="] + ([answer, ";"] if answer else [])
        if strings[-1:] == ["="] or not set(read) <= set(known):
            found = example.strip()
            raise ValueError(f"cannot read {found!r}: write examples like 1+1=3, 2+2=5, 3+3=")
        strings += read
    return strings
