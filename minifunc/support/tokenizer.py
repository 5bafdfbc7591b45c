"""Tokenizers of language models that others made. A GGUF file holds the parts of one: of bytes
(GPT-2, Llama 3, Qwen2), or of text, SentencePiece's (Llama 1 and 2, Mistral)."""

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from unicodedata import normalize

from minifunc.support.errors import UserError

# By tokenizer.ggml.pre: what cuts a text into words, one pattern after the other.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
SPACE = chr(0x2581)  # how SentencePiece writes one
WORDS = {"gpt-2": [GPT2], "smollm": [r"\p{N}", GPT2], "llama-bpe": [LLAMA3], "qwen2": [QWEN2]}


def optional_package(name: str) -> Any:
    """The module of an optional package. Raises UserError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"this needs the package {name}, which is not installed here") from None


@dataclass(frozen=True)
class Tokenizer:
    """A model's own. inner: a tokenizers.Tokenizer; first: tokens that it lacks before a text."""

    inner: Any
    first: tuple[int, ...] = ()

    def encode(self, text: str) -> list[int]:
        """Raises UserError for a text of which the vocabulary has no tokens."""
        whole = text if self.inner.normalizer is None else normalize("NFC", text)  # one may compose
        found = self.inner.encode(whole)
        unknown = getattr(self.inner.model, "unk_token", None) or ""
        covered = {at for ends in found.offsets for at in range(*ends)}
        lost = [sign for at, sign in enumerate(whole) if at not in covered and not sign.isspace()]
        if lost or found.tokens.count(unknown) > whole.count(unknown):
            raise UserError(f"the model's vocabulary has no tokens for a part of {text!r:.40}")
        return [*self.first, *self.inner.encode(text).ids]

    def string(self, token: int) -> str:
        return str(self.inner.decode([token], skip_special_tokens=False))

    def single_tokens(self, strings: Iterable[str]) -> list[int]:
        """The token of each string. Raises UserError for a string that is not one token."""
        tokens = []
        for string in strings:
            known = self.inner.token_to_id(string.replace(" ", SPACE))
            ids = self.inner.encode(string, add_special_tokens=False).ids
            if known is None and (len(ids) != 1 or self.string(ids[0]) != string):
                raise UserError(f"the model's vocabulary has no single token for {string!r:.40}")
            tokens.append(ids[0] if known is None else known)
        return tokens


def gguf_tokenizer(values: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that a GGUF file holds. Raises ValueError for one that is neither of the two.
    Tokens of kinds 2 (unknown), 3 (control) and 4 (added by the file's maker) are kept whole. Where
    a file doesn't say whether a text begins with a token of its own, llama.cpp's defaults hold."""
    parts = {name.removeprefix("tokenizer.ggml."): value for name, value in values.items()}
    model, cut = parts.get("model"), parts.get("pre")
    if model != "llama" and (model != "gpt2" or cut not in WORDS):
        raise ValueError(f"its tokenizer, {model} {cut}, is none of llama, gpt2 {', '.join(WORDS)}")
    package, strings, kinds = optional_package("tokenizers"), parts["tokens"], parts["token_type"]
    vocabulary = {string: token for token, string in enumerate(strings)}
    inner = (of_text if model == "llama" else of_bytes)(package, vocabulary, parts)
    inner.add_special_tokens([text for text, kind in zip(strings, kinds) if kind in (2, 3, 4)])
    has_first = parts.get("add_bos_token", model == "llama" or cut == "llama-bpe")
    return Tokenizer(inner, (parts["bos_token_id"],) if has_first else ())


def of_bytes(tokenizers: Any, vocabulary: dict[str, int], parts: Mapping[str, Any]) -> Any:
    """A text is cut into words, and the bytes of each are joined by a list of merges."""
    cut, kind = tokenizers.pre_tokenizers, parts["pre"]
    merges = [tuple(merge.split(" ")) for merge in parts["merges"]]
    model = tokenizers.models.BPE(vocabulary, merges, ignore_merges=kind == "llama-bpe")
    inner = tokenizers.Tokenizer(model)
    steps = [cut.Split(tokenizers.Regex(words), "isolated") for words in WORDS[kind]]
    steps.append(cut.ByteLevel(add_prefix_space=False, use_regex=False))
    inner.pre_tokenizer, inner.decoder = cut.Sequence(steps), tokenizers.decoders.ByteLevel()
    return inner


def of_text(tokenizers: Any, vocabulary: dict[str, int], parts: Mapping[str, Any]) -> Any:
    """SentencePiece (Kudo & Richardson 2018), as Llama has it: a space is SPACE; one more stands
    before a text. Of two neighbours that make a token, those that make the one of the highest score
    are joined first. A character without a token becomes its UTF-8 bytes."""
    strings, merges = parts["tokens"], []
    for _, string in sorted(zip(parts["scores"], strings), key=lambda scored: -scored[0]):
        halves = [(string[:at], string[at:]) for at in range(len(string) - 1, 0, -1)]
        merges += [pair for pair in halves if vocabulary.keys() >= {*pair}]
    how = {"unk_token": strings[parts.get("unknown_token_id", 0)], "fuse_unk": True}
    model = tokenizers.models.BPE(vocabulary, merges, byte_fallback=True, **how)
    inner, spaces, back = tokenizers.Tokenizer(model), tokenizers.normalizers, tokenizers.decoders
    steps = [spaces.Prepend(SPACE)] if parts.get("add_space_prefix", True) else []
    inner.normalizer = spaces.Sequence([*steps, spaces.Replace(" ", SPACE)])
    inner.decoder = back.Sequence([back.Replace(SPACE, " "), back.ByteFallback(), back.Fuse()])
    return inner
