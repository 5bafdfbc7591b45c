"""Language models of the Llama family, from files that others made, as our Transformer.

Llama, Mistral and Qwen2, from a Hugging Face folder or a GGUF file: docs/real-models.md tells what
these hold, and how it becomes ours. Nothing in a file is run; what our model would not compute is
refused by name. Needs the packages gguf, safetensors and tokenizers.
"""

import importlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minifunc.model import ModelConfig, Transformer
from minifunc.support import files
from minifunc.support.errors import UserError
from minifunc.support.settled import settled


def optional_package(name: str) -> Any:
    """The module of an optional package. Raises UserError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"this needs the package {name}, which is not installed here") from None


# Our names; those in a Hugging Face folder (column 0) and in a GGUF file (column 1).
SHAPE = {
    "n_layers": ("num_hidden_layers", "block_count"),
    "n_heads": ("num_attention_heads", "attention.head_count"),
    "n_kv_heads": ("num_key_value_heads", "attention.head_count_kv"),
    "d_model": ("hidden_size", "embedding_length"),
    "d_head": ("head_dim", "attention.key_length"),
    "d_mlp": ("intermediate_size", "feed_forward_length"),
    "d_vocab": ("vocab_size", "vocab_size"),
    "n_ctx": ("max_position_embeddings", "context_length"),
    "eps": ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
    "rotary_base": ("rope_theta", "rope.freq_base"),
}
TENSORS = {
    "blocks": ("model.layers", "blk"),
    "E": ("model.embed_tokens", "token_embd"),
    "U": ("lm_head", "output"),
    "ln_final": ("model.norm", "output_norm"),
    "ln1": ("input_layernorm", "attn_norm"),
    "ln2": ("post_attention_layernorm", "ffn_norm"),
    "Q": ("self_attn.q_proj", "attn_q"),
    "K": ("self_attn.k_proj", "attn_k"),
    "V": ("self_attn.v_proj", "attn_v"),
    "O": ("self_attn.o_proj", "attn_output"),
    "gate": ("mlp.gate_proj", "ffn_gate"),
    "in": ("mlp.up_proj", "ffn_up"),
    "out": ("mlp.down_proj", "ffn_down"),
}
# What may change the computation, by its name in a config; and values that leave it as it is.
CHANGES = re.compile("gguf|rope[.]|_act$|auto_map|bias|expert|factor|interl|norm$|quant|softcap")
UNCHANGED = (None, False, 0, 1, "none", "default", "silu")
# By tokenizer.ggml.pre: what cuts a text into words, one pattern after the other.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
WORDS = {"gpt-2": [GPT2], "smollm": [r"\p{N}", GPT2], "llama-bpe": [LLAMA3], "qwen2": [QWEN2]}


@dataclass(frozen=True)
class Tokenizer:
    """A model's own. inner: a tokenizers.Tokenizer; first: tokens that it lacks before a text."""

    inner: Any
    first: tuple[int, ...] = ()

    def encode(self, text: str) -> list[int]:
        return [*self.first, *self.inner.encode(text).ids]

    def string(self, token: int) -> str:
        return str(self.inner.decode([token], skip_special_tokens=False))

    def single_tokens(self, strings: Iterable[str]) -> list[int]:
        """The token of each string. Raises UserError for a string that is not one token."""
        tokens = []
        for string in strings:
            known = self.inner.token_to_id(string)
            ids = self.inner.encode(string, add_special_tokens=False).ids
            if known is None and len(ids) != 1:
                raise UserError(f"the model's vocabulary has no single token for {string!r:.40}")
            tokens.append(ids[0] if known is None else known)
        return tokens


@dataclass(frozen=True)
class Source:
    """A folder or a file, opened: no tensor of it has been read."""

    cfg: ModelConfig
    column: int
    halves: bool  # rotary pairs are (i, i + d_head / 2), not as ours (2i, 2i + 1)
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], Tensor]
    tokenizer: Tokenizer


@settled
def load_pretrained(
    path: str | Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> tuple[Transformer, Tokenizer]:
    """The model of a folder or a GGUF file, in evaluation mode, and its tokenizer.

    Takes memory for the weights and one tensor more. Raises UserError, with the name of what is at
    fault, for missing or damaged files, and for a model that ours would not compute.
    """
    source, model = opened(path)
    model = model.to(dtype).to_empty(device=device).requires_grad_(False).eval()
    for name, view in views(model, source).items():
        view.copy_(source.read(name).reshape(view.shape))
    return model, source.tokenizer


def read_config(path: str | Path) -> ModelConfig:
    """The shape of a folder's or a file's model. Raises UserError like `load_pretrained`."""
    return opened(path)[0].cfg


def opened(path: str | Path) -> tuple[Source, Transformer]:
    """The folder or file, and a model that it fits, whose weights are shapes alone."""
    file = Path(path, "config.json") if Path(path).is_dir() else Path(path)
    if not file.exists():
        raise UserError(f"{file} is missing: name a Hugging Face folder or a GGUF file")
    with files.reading(file, "holds no model of ours"):
        source = open_folder(file.parent) if Path(path).is_dir() else open_gguf(file)
        with torch.device("meta"):
            model = Transformer(source.cfg)
        wanted, found = views(model, source), source.shapes
        for name in sorted(wanted.keys() | found.keys()):
            if name not in found:
                raise ValueError(f"the tensor {name} is missing")
            if name not in wanted:
                raise ValueError(f"our model has no part for the tensor {name:.80}")
            flat = wanted[name].flatten(0, -1 if name.endswith(("norm.weight", "bias")) else -2)
            if found[name] != flat.shape:
                raise ValueError(f"{name} must be of shape {[*flat.shape]}, not {[*found[name]]}")
    return source, model


def model_config(config: Mapping[str, Any]) -> ModelConfig:
    """The shape that a config.json describes. Raises ValueError where our model has no such."""
    family = config.get("model_type")
    if family not in ("llama", "mistral", "qwen2"):
        raise ValueError(f"its architecture, {family!r:.60}, is none of llama, mistral, qwen2")
    n_heads, n_ctx = config["num_attention_heads"], config["max_position_embeddings"]
    given = {"head_dim": config["hidden_size"] // n_heads, "num_key_value_heads": n_heads}
    given |= {"rope_theta": 10000.0, "tie_word_embeddings": False}
    given |= {name: value for name, value in config.items() if value is not None}
    rope = given.get("rope_scaling", {}) | given.get("rope_parameters", {})  # of old, new files
    given |= {name if name == "rope_theta" else f"rope.{name}": rope[name] for name in rope}
    for name, value in given.items():
        if CHANGES.search(name) and (value is True or value not in UNCHANGED):
            raise ValueError(f"our model does not compute what {name} says, {value!r:.60}")
    if given.get("use_sliding_window", True) and given.get("sliding_window", n_ctx) < n_ctx:
        raise ValueError(f"sliding_window is below max_position_embeddings, {n_ctx}")
    shape = {ours: given[theirs] for ours, (theirs, _) in SHAPE.items()}
    shape |= {"tied_embeddings": given["tie_word_embeddings"], "qkv_bias": family == "qwen2"}
    return ModelConfig(**shape, act_fn="silu", gated_mlp=True)


def views(model: Transformer, source: Source) -> dict[str, Tensor]:
    """Their names → our parameters, seen in the order of their values: reshaped, their tensors.
    A weight is [out, in] there; the rows of q, k and v, and the columns of W_O, go by heads."""
    found = {}
    for name, weight in model.state_dict().items():
        *block, part, kind = name.split(".")  # "blocks", "3"; "attn"; "W_Q"
        view = weight.flatten(0, 1) if kind == "W_O" else weight
        if kind.startswith("W_") and kind != "W_E":
            view = view.mT  # W_Q, W_K, W_V: [head, d_head, d_model]
        if source.halves and kind[2:] in ("Q", "K"):
            view = view.unflatten(1, (-1, 2)).transpose(1, 2)  # [head, 2, pair, …]
        theirs = TENSORS[part if kind == "w" else kind[2:]][source.column]
        before = f"{TENSORS['blocks'][source.column]}.{block[1]}." if block else ""
        found[f"{before}{theirs}.{'bias' if kind.startswith('b_') else 'weight'}"] = view
    return found


def open_folder(folder: Path) -> Source:
    safetensors, tokenizers = optional_package("safetensors"), optional_package("tokenizers")
    cfg, names = model_config(files.load_json(folder / "config.json")), ["model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = sorted(set(files.load_json(index)["weight_map"].values()))
    places, shapes = {}, {}
    for path in [folder / name for name in names]:
        if path.parent != folder or not path.exists():
            raise UserError(f"{path} is missing")
        with files.reading(path), safetensors.safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                if not name.endswith(".inv_freq"):  # of old files; rope_theta says the same
                    places[name], shapes[name] = path, tuple(file.get_slice(name).get_shape())

    def read(name: str) -> Any:
        with safetensors.safe_open(places[name], "pt") as file:  # mapped anew: what was read goes
            return file.get_tensor(name)

    with files.reading(folder / "tokenizer.json"):
        inner = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    inner.no_truncation()
    inner.no_padding()
    return Source(cfg, 0, True, shapes, read, Tokenizer(inner))


def open_gguf(path: Path) -> Source:
    gguf = optional_package("gguf")
    reader = gguf.GGUFReader(path)
    values = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    shapes = {name: tuple(tensor.shape.tolist()[::-1]) for name, tensor in tensors.items()}
    family = values["general.architecture"]
    config = {"model_type": family, "tie_word_embeddings": "output.weight" not in shapes}
    config["vocab_size"] = shapes["token_embd.weight"][0]
    known = {"rope.dimension_count": "head_dim", "attention.value_length": "head_dim"}
    known |= {names[1]: names[0] for names in SHAPE.values()}
    for name, value in values.items():
        key = name.removeprefix(f"{family}.")
        theirs = known.get(key, f"gguf.{key}")  # `model_config` refuses what is not known
        if key != name and config.setdefault(theirs, value) != value:
            raise ValueError(f"{name} is {value}, where {theirs} is {config[theirs]}")

    def read(name: str) -> Tensor:
        data, at = tensors[name].data, tensors[name].data_offset
        with files.reading(path):
            mapped = np.memmap(path, data.dtype, "c", at, data.shape)  # anew: what was read goes
            return torch.from_numpy(gguf.dequantize(mapped, tensors[name].tensor_type))

    return Source(model_config(config), 1, family == "qwen2", shapes, read, gguf_tokenizer(values))


def gguf_tokenizer(values: Mapping[str, Any]) -> Tokenizer:
    """The byte-level tokenizer that a GGUF file holds. Tokens of kinds 3 and 4 are kept whole."""
    tokenizers, kind = optional_package("tokenizers"), values.get("tokenizer.ggml.pre")
    cut, scheme = tokenizers.pre_tokenizers, values.get("tokenizer.ggml.model")
    if scheme != "gpt2" or kind not in WORDS:
        raise ValueError(f"its tokenizer, {scheme} {kind}, is none of gpt2 {', '.join(WORDS)}")
    strings, kinds = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in values["tokenizer.ggml.merges"]]
    vocabulary = {string: token for token, string in enumerate(strings)}
    model = tokenizers.models.BPE(vocabulary, merges, ignore_merges=kind == "llama-bpe")
    inner = tokenizers.Tokenizer(model)
    steps = [cut.Split(tokenizers.Regex(words), "isolated") for words in WORDS[kind]]
    steps.append(cut.ByteLevel(add_prefix_space=False, use_regex=False))
    inner.pre_tokenizer, inner.decoder = cut.Sequence(steps), tokenizers.decoders.ByteLevel()
    inner.add_special_tokens([string for string, kind in zip(strings, kinds) if kind in (3, 4)])
    has_first = values.get("tokenizer.ggml.add_bos_token", False)
    return Tokenizer(inner, (values["tokenizer.ggml.bos_token_id"],) if has_first else ())
