"""What is measured on a trained model: accuracy, wrong answers, the grid of cells, the circuit."""

from itertools import chain, product
from pathlib import Path

import torch
from torch import Tensor

import patch
import tasks
import train
from experiments.runs import SWEEP_GIB, Row, Run, provenance
from minifunc.ablation import Ablator, CircuitScores
from minifunc.circuit import Criteria, discover
from minifunc.model import Transformer
from minifunc.support.evaluation import accuracy, finite, last_logits
from minifunc.support.names import heads_of, parse

SHOTS = 8  # of the measures that have one number of shots
CRITERIA = Criteria()
FEW = 16  # prompts of every kind where it is to be quick

GROUPS = {  # key in a row: the group of the circuit
    "fi_heads": "function_induction",
    "pt_heads": "previous_token",
    "consolidation_heads": "consolidation",
}


def result_row(run: Run, measured: Row, about: Row, circuit: bool = True) -> Row:
    """A whole row of results. What was not measured, as the run diverged, is None."""
    unmeasured: Row = dict.fromkeys(("plain_8", "off_by_one_8", "off_by_k_8"))
    if circuit:
        unmeasured |= dict.fromkeys((*GROUPS, "top_fi_r", "faithfulness"))
        unmeasured["failure"] = "diverged"
    return about | {"seed": run.train.seed} | unmeasured | measured | provenance(run)


def how_many(n: int, quick: bool) -> int:
    return FEW if quick else n


def generator(offset: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(2026 + offset)  # the same prompts for every run


def off_by_one(n_prompts: int, drawn: torch.Generator) -> tasks.Pairs:
    return tasks.evaluation_pairs("addition", 1, SHOTS, n_prompts, drawn)


def share_right(model: Transformer, prompts: Tensor, answers: Tensor) -> float:
    """Share of prompts [n_prompts, pos] that are answered with `answers`, [n_prompts]."""
    return round(accuracy(last_logits(model, prompts), answers), 4)


def addition_and_circuit(model: Transformer, run: Run, folder: Path, quick: bool) -> Row:
    return addition(model, how_many(200, quick)) | circuit(model, quick)


def addition(model: Transformer, n_prompts: int) -> Row:
    """Accuracy on addition: for all k by shots, {k: {shots: share}}, and at 8 shots alone."""
    by_shots = train.evaluate(model, n_prompts, every_task=False)["addition"]
    at_8 = {k: shares[str(SHOTS)] for k, shares in by_shots.items()}
    return {
        "plain_8": at_8["0"],
        "off_by_one_8": at_8["1"],
        "off_by_k_8": {k: share for k, share in at_8.items() if k != "0"},
        "by_shots": by_shots,
        "n_prompts": n_prompts,
    }


def answers_given(model: Transformer, pairs: tasks.Pairs) -> Row:
    """What a model answers on contrast prompts, as shares that add up to one; failure: the most
    frequent kind of wrong answer, in words, or "none" where at least half are right."""
    given = finite(last_logits(model, pairs.contrast)).argmax(-1).cpu()  # [n_prompts]
    answers = pairs.contrast[:, tasks.answer_positions(pairs.shots)]  # [n_prompts, n_shots]
    shown = (answers == given[:, None]).any(1)
    right, plain = given == pairs.contrast_answers, given == pairs.base_answers
    near = (given - pairs.base_answers).abs() <= tasks.MAX_SHIFT
    rest = ~(right | plain | shown)
    kinds = {
        "right": right,
        "plain": plain & ~shown,  # the unshifted answer
        "plain_and_shown": plain & shown,  # one cannot tell which of the two it follows
        "shown": shown & ~right & ~plain,
        "other_k": rest & near,
        "other": rest & ~near,
    }
    shares = {name: round(mask.float().mean().item(), 4) for name, mask in kinds.items()}
    failures = {
        "the plain answer": shares["plain"] + shares["plain_and_shown"],
        "a shown answer": shares["shown"],
        "off by another k": shares["other_k"],
        "anything": shares["other"],
    }
    failure = "none" if shares["right"] >= CRITERIA.solves else max(failures, key=failures.get)
    return {"answers": shares, "failure": failure}


def grid(model: Transformer, n_documents: int) -> dict[str, dict[str, float | None]]:
    """Accuracy by wrapper and function at the last example, {wrapper: {function: share}}. Documents
    count where what stands before determines it and, under a wrapper that is a rule, does not show
    it. None where no document is left, or where the cell makes no sense."""
    table = {wrapper: dict.fromkeys(tasks.FUNCTIONS) for wrapper in tasks.WRAPPERS}
    place = tasks.answer_positions(SHOTS + 1)[-1]
    for wrapper, symbol in product(tasks.WRAPPERS, tasks.FUNCTIONS):
        if wrapper == "base" and symbol in tasks.TO_LETTERS:
            continue
        documents = cell_documents(wrapper, symbol, n_documents)
        asked = documents.determined[:, -1]  # [n_documents]
        if wrapper not in ("relabel", "copy"):
            asked = asked & (documents.answer[:, :-1] != documents.answer[:, -1:]).all(1)
        tokens = documents.tokens[asked]
        if len(tokens):
            table[wrapper][symbol] = share_right(model, tokens[:, :place], tokens[:, place])
    return table


def cell_documents(wrapper: str, symbol: str, n: int) -> tasks.Documents:
    """Documents of one cell of the grid, with SHOTS + 1 examples, whatever a diet holds out."""
    weights = dict.fromkeys(tasks.WRAPPERS, 0.0) | {wrapper: 1.0}
    diet = tasks.Diet("one cell", **weights, functions=(symbol,), never=(), mixed=0.0)
    return tasks.sample(diet, n, SHOTS + 1, generator())


def circuit(model: Transformer, quick: bool) -> Row:
    """The circuit of off-by-one addition, by the criteria of patch.py on fewer prompts.
    faithfulness, circuit_accuracy: of all groups together; the others send what they send on base
    prompts. Where the model does not do the task, groups are empty, and these and top_fi_r None."""
    prompts = generator()
    row = answers_given(model, off_by_one(how_many(500, quick), prompts)) | {"groups": {}}
    pairs = off_by_one(how_many(50, quick), prompts)
    row |= dict.fromkeys((*GROUPS, "circuit_heads"), [])
    row |= dict.fromkeys(("top_fi_r", "faithfulness", "circuit_accuracy"))
    if row["answers"]["right"] < CRITERIA.solves:
        return row
    patchers = patch.Study(max_memory=SWEEP_GIB).patchers(model, pairs)
    found = discover(patchers, tasks.answer_positions(SHOTS), CRITERIA)
    to_logits = found.effects["answers"]["logits"].heads  # [n_layers, n_heads]
    row["groups"] = groups = found.groups
    row |= {key: groups[group] for key, group in GROUPS.items()}
    if row["fi_heads"]:
        row["top_fi_r"] = round(min(to_logits[parse(head)].item() for head in row["fi_heads"]), 4)
        row["circuit_heads"] = heads = heads_of(chain(*groups.values()))
        ablator = Ablator(model, pairs.contrast, {"base": pairs.base})
        scores = CircuitScores(ablator, "base", pairs.base_answers, pairs.contrast_answers)
        row["faithfulness"] = round(scores.faithfulness([heads])[0], 4)
        row["circuit_accuracy"] = round(scores.scores([heads])[0].contrast_acc, 4)
    return row


def repeated_documents(n: int) -> tuple[Tensor, int, Tensor, Tensor]:
    """Sequences that repeat themselves: SHOTS / 2 random problems with random answers, twice.
    Tokens [n, pos] int64, the period, and the positions of `=` and of answers in the repetition."""
    half = SHOTS // 2
    drawn = generator()
    problem = torch.randint(len(tasks.PROBLEMS.value), (n, half), generator=drawn)
    lowest, end = tasks.ZERO - tasks.MAX_SHIFT, len(tasks.VOCABULARY)  # any number or letter
    answer = torch.randint(lowest, end, (n, half), generator=drawn)
    tokens = tasks.examples_to_tokens(problem.repeat(1, 2), answer.repeat(1, 2))
    answers = tasks.answer_positions(SHOTS)[half:]
    return tokens, tasks.EXAMPLE * half, answers - 1, answers
