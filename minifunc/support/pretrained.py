"""Language models of the Llama family, from files that others made, as our Transformer.

Llama, Mistral and Qwen2, from a Hugging Face folder or a GGUF file: docs/real-models.md tells what
these hold, and how it becomes ours. Nothing in a file is run; what our model would not compute is
refused by name. Needs the packages gguf, safetensors and tokenizers.
"""

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minifunc.model import ModelConfig, Transformer
from minifunc.support import files
from minifunc.support.errors import UserError
from minifunc.support.settled import settled
from minifunc.support.tokenizer import Tokenizer, gguf_tokenizer, optional_package

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
CHANGES = re.compile(
    "gguf|rope[.]|_act$|auto_map|bias|expert|factor|interl|norm$|original_max|quant|softcap"
)
UNCHANGED = (None, False, 0, 1, "none", "default", "silu")
LLAMA3 = ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor", "factor")


@dataclass(frozen=True)
class Source:
    """A folder or a file, opened: no weight of it has been read."""

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
    fault, for missing or damaged files, and for a model that ours would not compute."""
    source, model = opened(path)
    needed = sum(weight.numel() for weight in model.parameters()) * dtype.itemsize / 2**30
    has = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    if torch.device(device).type == "cpu" and 0 < has / 2**30 < needed:
        raise UserError(f"{path} takes {needed:.3g} GiB; this machine has {has / 2**30:.3g}")
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
    scaling = rope if rope.get("rope_type", rope.get("type")) == "llama3" else {}
    if scaling:
        rope = {name: rope[name] for name in rope if name not in (*LLAMA3, "rope_type", "type")}
    given |= {name if name == "rope_theta" else f"rope.{name}": rope[name] for name in rope}
    for name, value in given.items():
        if CHANGES.search(name) and (value is True or value not in UNCHANGED):
            raise ValueError(f"our model does not compute what {name} says, {value!r:.60}")
    if given.get("use_sliding_window", True) and given.get("sliding_window", n_ctx) < n_ctx:
        raise ValueError(f"sliding_window is below max_position_embeddings, {n_ctx}")
    shape = {ours: given[theirs] for ours, (theirs, _) in SHAPE.items()}
    shape |= {"tied_embeddings": given["tie_word_embeddings"], "qkv_bias": family == "qwen2"}
    cfg = ModelConfig(**shape, act_fn="silu", gated_mlp=True)
    return replace(cfg, rotary_divisors=llama3_divisors(cfg, scaling)) if scaling else cfg


def llama3_divisors(cfg: ModelConfig, rope: Mapping[str, Any]) -> tuple[float, ...]:
    """Llama 3.1 was trained on n_first positions, then on more. A pair that turns more than `high`
    times in n_first keeps its frequency f, one of less than `low` turns has f / factor, and between
    them stand means of both. Raises ValueError for numbers that don't fit."""
    n_first, low, high, factor = said = [rope[name] for name in LLAMA3]
    if not all(type(x) in (int, float) and 0 < x < 1e300 for x in said) or low >= high:
        raise ValueError(f"rope_type llama3 needs positive numbers, low < high, not {rope!r:.200}")
    wavelength = 2 * math.pi * cfg.rotary_base ** (2 * np.arange(cfg.d_head // 2) / cfg.d_head)
    kept = ((n_first / wavelength - low) / (high - low)).clip(0, 1)
    return tuple((1 / (kept + (1 - kept) / factor)).tolist())


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
        what = "bias" if kind.startswith("b_") else "weight"
        found[f"{before}{theirs}.{what}"] = view
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

    cfg = model_config(config)
    if shapes.pop("rope_freqs.weight", None):  # Llama 3.1's rotary divisors, which llama.cpp stores
        cfg = replace(cfg, rotary_divisors=tuple(read("rope_freqs.weight").tolist()))
    return Source(cfg, 1, family == "qwen2", shapes, read, gguf_tokenizer(values))
