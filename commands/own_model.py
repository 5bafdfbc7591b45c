"""Traces your own prompts in your own model: `python -m commands.own_model --model M --prompts F`.

M is a Hugging Face folder or a GGUF file of the Llama family (docs/real-models.md). F is a JSON
file, a list of pairs of prompts that should end alike and are answered differently:

    [{"base": "…", "contrast": "…", "base_answer": " Paris", "contrast_answer": " Rome"}, …]

Each answer is one token of the model's, and all prompts have equally many tokens. What is found
is told, and kept in --out, with r of every sender: on the logits, and on the q, k or v that --to
names (`--to 18.6.v,20.5.q`). The same command goes on where it was stopped.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from minifunc.analysis.long_sweeps import LongSweeps
from minifunc.analysis.rows import as_lists
from minifunc.patching import HeadInput, Logits
from minifunc.support.checks import checked_node
from minifunc.support.errors import UserError, command
from minifunc.support.files import check_writable, load_json, make_folder, save_json
from minifunc.support.flags import Parser, pick_device
from minifunc.support.pairs import Pair
from minifunc.support.pretrained import load_pretrained
from minifunc.support.tables import fitted, rounded
from minifunc.support.tokenizer import Tokenizer

FIELDS = ("base", "contrast", "base_answer", "contrast_answer")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
N_LISTED = 15


def read_pairs(path: Path) -> list[dict[str, str]]:
    """Raises UserError where the file holds no list of pairs."""
    if not path.is_file():
        raise UserError(f"{path} is missing: it is to hold the pairs")
    pairs: Any = load_json(path)
    if not isinstance(pairs, list) or not pairs:
        pairs = [None]  # which is refused
    for number, pair in enumerate(pairs):
        if not isinstance(pair, dict) or {type(pair.get(name)) for name in FIELDS} != {str}:
            raise UserError(f"{path}: pair {number} must hold the strings {', '.join(FIELDS)}")
    return list(pairs)


def encoded(pairs: Sequence[dict[str, str]], tokenizer: Tokenizer) -> tuple[Pair, Pair]:
    """Tokens [n_pairs, pos] of base and contrast prompts, and their answers [n_pairs]. Raises
    UserError, with the pair, where lengths differ or an answer is not one token."""
    rows: dict[str, list[Any]] = {name: [] for name in FIELDS}
    for number, pair in enumerate(pairs):
        for name in FIELDS[:2]:
            rows[name].append(tokenizer.encode(pair[name]))
        for name in FIELDS[2:]:
            rows[name] += tokenizer.single_tokens([pair[name]])
        lengths = [len(rows[name][at]) for name in FIELDS[:2] for at in (0, -1)]
        if len(set(lengths)) > 1:
            counted = f"{lengths[1]} and {lengths[3]} tokens, the first pair {lengths[0]}"
            raise UserError(f"pair {number}, {pair['base']!r:.60} and its contrast, have {counted}")
    base, contrast, *answers = (torch.tensor(rows[name]) for name in FIELDS)
    return (base, contrast), (answers[0], answers[1])


def receiver_of(name: str, n_layers: int, n_heads: int) -> HeadInput:
    """The receiver `18.6.v`. Raises UserError for what the model does not have."""
    try:
        layer, head, which = checked_node(name, "0.0.v").split(".")
    except ValueError as error:
        raise UserError(str(error)) from None
    if int(layer) >= n_layers or int(head) >= n_heads:
        raise UserError(f"--to {name}: the model has {n_layers} layers of {n_heads} heads")
    return HeadInput(int(layer), int(head), which)


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("python -m commands.own_model", __doc__)
    add = parser.add_argument
    add("--model", type=Path, required=True, help="a Hugging Face folder, or a GGUF file")
    add("--prompts", type=Path, required=True, help="JSON list of pairs, see docs/real-models.md")
    add("--out", type=Path, default=Path("out/own-model"), help="default: %(default)s")
    add("--to", default="", metavar="L.H.v,…", help="sweep inputs of heads as well: q, k or v")
    add("--device", default="auto", help="auto, cpu, cuda (default: %(default)s)")
    add("--dtype", choices=DTYPES, default="float32", help="of the weights")
    add("--max-memory", type=float, metavar="GIB", help="that a sweep may use beside the weights")
    flags = parser.parse_args(argv)
    device, pairs = pick_device(flags.device, float64=True), read_pairs(flags.prompts)
    make_folder(flags.out)
    check_writable(flags.out / "effects.json")
    model, tokenizer = load_pretrained(flags.model, DTYPES[flags.dtype], device)
    tokens, answers = encoded(pairs, tokenizer)
    named = flags.to.split(",") if flags.to else []
    inputs = [receiver_of(name, model.cfg.n_layers, model.cfg.n_heads) for name in named]
    sweeps = LongSweeps(model, tokens, answers, flags.out / "sweeps", flags.max_memory)
    effects = {}
    for receiver in (Logits(), *inputs):
        swept = sweeps.sweep(receiver)
        print(fitted([*swept.told(str(receiver), N_LISTED), ""]))
        effects[str(receiver)] = as_lists(swept.effects) | {"r_ci": swept.intervals()}
    found = {"model": str(flags.model), "n_pairs": len(pairs), "F": rounded(swept.F)}
    save_json(flags.out / "effects.json", found | {"effects": effects})
    print(f"everything is in {flags.out / 'effects.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
