"""The analyses of a study that draw more prompts than those it traces."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from math import ceil
from typing import Any

import torch
from torch import Generator, Tensor

from minifunc.ablation import Ablator
from minifunc.analysis import averaging, function_vectors, reading
from minifunc.analysis.ablations import random_group
from minifunc.analysis.activations import Examples
from minifunc.analysis.rows import Prompts, ablation_row, control_row
from minifunc.circuit import Discovery
from minifunc.model import Transformer
from minifunc.patching import PathPatcher
from minifunc.support.evaluation import Language
from minifunc.support.names import Found, Heads, parse
from minifunc.support.runs import weights_hash

N_DRAWS = 10  # random groups for each reused task
N_REUSED = 100  # prompts on which reuse is measured
N_INPUTS = 10  # inputs 0..9 of function vectors
N_EXAMPLES = 4000  # at least, behind shares of variance


def some(pairs: Any, which: slice | Tensor) -> Any:
    """Some of the pairs, by a slice or by a mask [n_prompts]."""
    tensors = {name: x[which] for name, x in vars(pairs).items() if isinstance(x, Tensor)}
    return replace(pairs, **tensors)


def answers_of(pairs: Any) -> tuple[Tensor, Tensor]:
    return pairs.base_answers, pairs.contrast_answers


def asked(language: Language, model: Transformer, study: Any, pairs: Any) -> dict[str, Any]:
    """What is studied, with an example of at most four shots."""
    based = language.TASKS[study.task].wrapper == "base"
    beginning = language.n_tokens(min(study.shots, 4)) - 4
    example = {}
    for name, tokens in (("base", pairs.base[0]), ("contrast", pairs.contrast[0])):
        example[name] = language.decode(torch.cat([tokens[:beginning], tokens[-4:]]))
    return {
        "task": study.task,
        "k": study.k,
        "asked": f"in base {study.k}" if based else f"off by {study.k:+d}",
        "shots": study.shots,
        "n_prompts": study.prompts,
        "freeze_mlps": study.freeze_mlps,
        "seed": study.seed,
        "device": str(model.device),
        "weights": weights_hash(model.state_dict()),
        "example": example,
    }


def replacements(language: Language, model: Transformer, pairs: Any) -> Prompts:
    """The contrast prompts, with all that is put in place of what a head sends there.

    base: what it sends on the paired base prompt; mean: its mean over base prompts; unrelated: what
    it sends on another pair's base prompt; same_k: on another pair's contrast prompt; same_answer:
    on one that asks for the same answer as well; operands_changed: on the prompt with the same
    shown answers, made plain by other operands.
    """
    sources = {
        "base": pairs.base,
        "operands_changed": pairs.operands_changed,
        "unrelated": pairs.base.roll(1, 0),
        "same_k": pairs.contrast.roll(1, 0),
        "same_answer": donors(language, pairs),
    }
    ablator = Ablator(model, pairs.contrast, sources, means={"mean": pairs.base})
    return Prompts(ablator, answers_of(pairs))


def donors(language: Language, pairs: Any) -> Tensor:
    """For each contrast prompt another with the same k and answer, if any: [n_prompts, pos]."""
    n = len(pairs.contrast)
    generator = Generator().manual_seed(n)
    pool = language.evaluation_pairs(pairs.task, pairs.k, pairs.shots, 20 * n, generator)
    chosen = torch.zeros(n, dtype=torch.int64, device="cpu")
    for answer in pairs.contrast_answers.unique():
        mine = (pairs.contrast_answers == answer).nonzero()[:, 0]
        theirs = (pool.contrast_answers == answer).nonzero()[:, 0]
        if len(theirs):
            chosen[mine] = theirs[mine % len(theirs)]  # so that not all take the same donor
    return pool.contrast[chosen]


def reuse(
    language: Language,
    model: Transformer,
    heads: Sequence[str],
    questions: Sequence[tuple[str, int]],
    shots: int,
    generator: Generator,
) -> list[dict[str, Any]]:
    """`reuse_rows` of each (task, k); sums in base k by whether they carry."""
    drawn = [random_group(heads, model.cfg.n_heads, generator) for _ in range(N_DRAWS)]
    found = []
    for task, k in questions:
        pairs = language.evaluation_pairs(task, k, shots, N_REUSED, generator)
        kinds = {"all": pairs.carry}
        if language.TASKS[task].wrapper == "base":
            kinds = {"carry": pairs.carry, "no carry": ~pairs.carry}
        for items, which in kinds.items():
            if which.any():
                four = reuse_rows(model, some(pairs, which), heads, drawn)
                found += [{"task": task, "k": k, "items": items, **row} for row in four]
    return found


def reuse_rows(model: Transformer, pairs: Any, heads: Heads, drawn: Sequence[Heads]) -> list[Found]:
    """Rows: base and contrast prompts, the latter without `heads`, without `drawn` (means)."""
    prompts = Prompts(Ablator(model, pairs.contrast, {"base": pairs.base}), answers_of(pairs))
    on_base = replace(prompts, ablator=prompts.ablator.on(pairs.base))
    rows = [
        {"prompt": "base"} | ablation_row(on_base, "none", [], "base"),
        {"prompt": "contrast"} | ablation_row(prompts, "none", [], "base"),
        {"prompt": "contrast"} | ablation_row(prompts, "function_induction", heads, "base"),
        {"prompt": "contrast"} | control_row(prompts, "random_same_layers", drawn, "base"),
    ]
    kept = ("prompt", "ablated", "base_acc", "contrast_acc", "ci", "n_prompts")
    return [{name: row[name] for name in kept} for row in rows]


def writings(
    language: Language, model: Transformer, fi: Sequence[str], study: Any, generator: Generator
) -> dict[str, Any]:
    """For a function on numbers: what the FI heads write (function_vectors…) and read (reading)."""
    if study.task not in language.ON_NUMBERS:
        return {}
    n = study.prompts
    numbers = {number: language.TOKEN[str(number)] for number in language.NUMBERS}
    contrast = {}
    for shift in language.SHIFTS:
        contrast[shift] = replace(study, k=shift).pairs(3 * n, generator).contrast
    naive = naive_prompts(language, N_INPUTS)
    found = function_vectors.study(model, contrast, naive, fi, numbers, study.k)

    pairs = study.pairs(2 * n, generator)
    prompts = (pairs.base, pairs.contrast, *answers_of(pairs))
    patcher = PathPatcher(model, *prompts, max_memory=study.max_memory)
    sources = {"base": pairs.base, "operands_changed": pairs.operands_changed}
    enough = max(n, ceil(N_EXAMPLES / (len(language.SHIFTS) * study.shots)))  # prompts of each k
    shown, query = examples(language, study.task, study.shots, enough, generator)
    found["reading"] = {
        "inputs": reading.inputs_apart(patcher, sources, fi),
        "looks_for": reading.looks_for(model, shown, query, fi),
        "hands_over": reading.hands_over(model, shown, fi),
    }
    return found


def averaged(language: Language, model: Transformer, found: Discovery, study: Any) -> Found:
    """For a function on numbers: what the FI heads compute where examples disagree (averaging)."""
    if study.task not in language.ON_NUMBERS:
        return {}
    to_logits = found.effects["answers"]["logits"].heads
    fi = {head: -to_logits[parse(head)].item() for head in found.groups["function_induction"]}
    generator, asked = Generator().manual_seed(study.seed), (study.task, study.shots)
    return {"averaging": averaging.study(language, model, fi, asked, generator)}


def naive_prompts(language: Language, n: int) -> Tensor:
    """`2 same _ = 2 ; 5 same _ =`: [n, n - 1, pos]; row x asks for x after each other number."""
    numbers = permutations(range(n), 2)
    prompts = [language.encode(f"{y} same = {y}, {x} same =") for x, y in numbers]
    return torch.stack(prompts).unflatten(0, (n, n - 1))


def examples(
    language: Language, task: str, shots: int, n: int, generator: Generator
) -> tuple[Examples, Tensor]:
    """n contrast prompts of each k with their numbers, and f(x, y) of the queries."""
    pairs = [language.evaluation_pairs(task, k, shots, n, generator) for k in language.SHIFTS]
    answers = language.answer_positions(shots)
    tokens, plain = torch.cat([p.contrast for p in pairs]), torch.cat([p.base for p in pairs])
    expected, shown = plain[:, answers] - language.ZERO, tokens[:, answers] - language.ZERO
    query = torch.cat([p.base_answers for p in pairs]) - language.ZERO
    return Examples(tokens, answers, expected, shown), query
