"""What is measured on a trained model, in a few seconds: accuracies, what failing models answer, the grid, the circuit."""

from typing import Any

import torch
from torch import Tensor

import tasks
import train
from minifunc.ablation import Ablator, CircuitScores
from minifunc.circuit import Criteria, discover, heads_of, parse
from minifunc.model import Transformer
from minifunc.patching import PathPatcher
from minifunc.support.evaluation import accuracy, last_logits

SHOTS = 8  # of the measures that have one number of shots
SEED = 2026  # of the prompts, the same for every run
CRITERIA = Criteria()
FEW = 16  # prompts of every kind where it is to be quick


def addition(model: Transformer, n_prompts: int) -> dict[str, Any]:
    """Accuracy on addition: plain_8, off_by_one_8, off_by_k_8 {k: share}, and by_shots {k: {shots: share}}, all k."""
    by_shots = train.evaluate(model, n_prompts, every_task=False)["addition"]
    at_8 = {k: shares[str(SHOTS)] for k, shares in by_shots.items()}
    return {
        "plain_8": at_8["0"],
        "off_by_one_8": at_8["1"],
        "off_by_k_8": {k: share for k, share in at_8.items() if k != "0"},
        "by_shots": by_shots,
        "n_prompts": n_prompts,
    }


def answers_given(model: Transformer, pairs: tasks.Pairs) -> dict[str, Any]:
    """What a model answers on contrast prompts, as shares that add up to one, and how sure it is.

    right; plain (the unshifted answer); plain_and_shown (that, where a demonstration shows it: one cannot tell which
    of the two it follows); shown (another shown answer); other_k (off by another k, not shown); other.
    top_probability: of the preferred token, mean; failure: in words, "none" where at least half are right.
    """
    logits = last_logits(model, pairs.contrast).cpu()
    given = logits.argmax(-1)
    shown = (pairs.contrast[:, tasks.answer_positions(pairs.shots)] == given[:, None]).any(1)
    right, plain = given == pairs.contrast_answers, given == pairs.base_answers
    near = (given - pairs.base_answers).abs() <= tasks.MAX_SHIFT
    kinds = {
        "right": right,
        "plain": plain & ~shown,
        "plain_and_shown": plain & shown,
        "shown": shown & ~right & ~plain,
    }
    rest = ~torch.stack(list(kinds.values())).any(0)
    kinds |= {"other_k": rest & near, "other": rest & ~near}
    shares = {name: round(mask.float().mean().item(), 4) for name, mask in kinds.items()}
    sure = logits.softmax(-1).amax(-1).mean().item()
    groups = {
        "the plain answer": shares["plain"] + shares["plain_and_shown"],
        "a shown answer": shares["shown"],
        "off by another k": shares["other_k"],
        "anything": shares["other"],
    }
    failure = (
        "none" if shares["right"] >= CRITERIA.solves else max(groups, key=lambda name: groups[name])
    )
    return {"answers": shares, "top_probability": round(sure, 4), "failure": failure}


def cell_documents(wrapper: str, symbol: str, n: int) -> tasks.Documents:
    """Documents of one cell of the grid, with SHOTS + 1 examples, whatever a diet holds out."""
    weights = dict.fromkeys(tasks.WRAPPERS, 0.0) | {wrapper: 1.0}
    return tasks.sample(
        tasks.changed(**weights, functions=(symbol,), never=(), mixed=0.0),
        n,
        SHOTS + 1,
        torch.Generator().manual_seed(SEED),
    )


def grid(model: Transformer, n_documents: int) -> dict[str, dict[str, float | None]]:
    """Accuracy at the last example of a document, {wrapper: {function: share}}, where what stands before determines it and,
    for wrappers that are a rule, does not show it. None where no document is left, or where the cell makes no sense."""
    table: dict[str, dict[str, float | None]] = {}
    for wrapper in tasks.WRAPPERS:
        for symbol in tasks.FUNCTIONS:
            table.setdefault(wrapper, {})[symbol] = None
            if wrapper == "base" and symbol in tasks.TO_LETTERS:
                continue
            documents = cell_documents(wrapper, symbol, n_documents)
            asked = documents.determined[:, -1]
            if wrapper not in ("relabel", "copy"):
                asked = asked & (documents.answer[:, :-1] != documents.answer[:, -1:]).all(1)
            if asked.any():
                place = tasks.answer_positions(SHOTS + 1)[-1]
                tokens = documents.tokens[asked]
                table[wrapper][symbol] = round(
                    accuracy(last_logits(model, tokens[:, :place]), tokens[:, place]), 4
                )
    return table


def patchers_of(model: Transformer, pairs: tasks.Pairs) -> dict[str, PathPatcher]:
    """A patcher for each contrast, as `discover` takes them."""
    assert pairs.operands_changed is not None
    return {
        name: PathPatcher(model, base, pairs.contrast, pairs.base_answers, pairs.contrast_answers)
        for name, base in (("answers", pairs.base), ("operands", pairs.operands_changed))
    }


def circuit(model: Transformer, n_count: int, n_patch: int) -> dict[str, Any]:
    """The circuit of off-by-one addition by patch.py's criteria, with fewer prompts: groups of heads, the r of the strongest FI
    head, and how faithful all groups together are (heads outside send what they send on base prompts).

    Where the model does not do the task all groups are empty and there is nothing to measure r by: top_fi_r and faithfulness are None.
    """
    generator = torch.Generator().manual_seed(SEED)
    count = tasks.evaluation_pairs("addition", 1, SHOTS, n_count, generator)
    pairs = tasks.evaluation_pairs("addition", 1, SHOTS, n_patch, generator)
    given = answers_given(model, count)
    empty: list[str] = []
    row = given | {
        "fi_heads": empty,
        "pt_heads": empty,
        "consolidation_heads": empty,
        "groups": {},
        "top_fi_r": None,
        "faithfulness": None,
        "circuit_heads": empty,
        "circuit_accuracy": None,
    }
    if given["answers"]["right"] < CRITERIA.solves:
        return row
    patchers = patchers_of(model, pairs)
    found = discover(patchers, tasks.answer_positions(SHOTS), CRITERIA)
    effects, groups = found.effects["answers"]["logits"].heads, found.groups
    fi = groups["function_induction"]
    row |= {
        "fi_heads": fi,
        "pt_heads": groups["previous_token"],
        "consolidation_heads": groups["consolidation"],
        "groups": groups,
    }
    row |= {"heads_to_logits": [[round(r, 4) for r in layer] for layer in effects.tolist()]}
    if fi:
        union = heads_of(head for heads in groups.values() for head in heads)
        scores = CircuitScores(
            Ablator(model, pairs.contrast, {"base": pairs.base}),
            "base",
            pairs.base_answers,
            pairs.contrast_answers,
        )
        row["top_fi_r"] = round(min(effects[parse(head)].item() for head in fi), 4)
        row |= {
            "circuit_heads": union,
            "faithfulness": round(scores.faithfulness([union])[0], 4),
            "circuit_accuracy": round(scores.scores([union])[0].contrast_acc, 4),
        }
    return row


def repeated_documents(n: int) -> tuple[Tensor, int, Tensor, Tensor]:
    """Sequences that repeat themselves: SHOTS / 2 random problems with random answers, twice. Tokens [n, pos], the period in
    positions, the `=` of the repetition [SHOTS / 2], and where their answers stand."""
    half = SHOTS // 2
    generator = torch.Generator().manual_seed(SEED)
    problem = torch.randint(len(tasks.PROBLEMS.value), (n, half), generator=generator)
    answer = torch.randint(
        tasks.ZERO - tasks.MAX_SHIFT, len(tasks.VOCABULARY), (n, half), generator=generator
    )  # any number or letter
    tokens = tasks.examples_to_tokens(problem.repeat(1, 2), answer.repeat(1, 2))
    answers = tasks.answer_positions(SHOTS)[half:]
    return tokens, tasks.EXAMPLE * half, answers - 1, answers
