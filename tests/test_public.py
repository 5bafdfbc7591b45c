"""What is set around a call, and how tokens are stored, changes no result: over all that is public.

torch keeps a default dtype and device, autocast, inference mode and no_grad for the whole process
or a block of code. Each public function of `tasks`, `train` and `minifunc` is called plainly, then
under each of these, with a model in train mode, and with tokens that are int32, strided or made in
inference mode. The results must be the same, to the bit. Whoever adds a function adds a case to
CASES, or says in NO_TENSORS why there is nothing to try.
"""

import dataclasses
import functools
import importlib
import inspect
import math
import pkgutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import minifunc
import tasks
import train
from minifunc import circuit, definition, model
from minifunc.ablation import Ablator, CircuitScores
from minifunc.analysis import (
    ablations,
    activations,
    averaging,
    completeness,
    function_vectors,
    long_sweeps,
    reading,
    rows,
    scores,
    shift_swap,
    study,
)
from minifunc.patching import HeadInput, KVInput, Logits, MLPInput, PathPatcher, Resid
from minifunc.support import (
    effects,
    evaluation,
    files,
    hooks,
    memory,
    pairs,
    processes,
    runs,
    shared_streams,
)
from minifunc.support import rows as row_tools

# ---------------------------------------------------------------- what is called with what

ROOT = Path(__file__).parent.parent
N_PROMPTS, SHOTS = 6, 2
HEADS, GROUP = ["0.0", "0.1", "1.0", "1.1"], ["0.1", "1.0"]


def drawing():
    return torch.Generator("cpu").manual_seed(0)


@dataclasses.dataclass(frozen=True)
class Study:
    task: str = "addition"
    k: int = 1
    shots: int = 2
    prompts: int = 4
    seed: int = 0
    freeze_mlps: bool = False
    max_memory: float | None = None

    def pairs(self, n, generator):
        return tasks.evaluation_pairs(self.task, self.k, self.shots, n, generator)


class World:
    """A tiny model, prompts and documents. stored: how ids of tokens are kept."""

    def __init__(self, stored=lambda ids: ids, training=False):
        shape = {"n_layers": 2, "n_heads": 2, "d_model": 16, "d_head": 4, "d_mlp": 8}
        cfg = minifunc.ModelConfig(d_vocab=len(tasks.VOCABULARY), **shape)
        self.grouped = minifunc.Transformer(dataclasses.replace(cfg, n_heads=4, n_kv_heads=2))
        self.model = minifunc.Transformer(cfg).train(training).requires_grad_(False)
        drawn = tasks.evaluation_pairs("addition", 1, SHOTS, N_PROMPTS, drawing())
        ids = {name: stored(x) for name, x in vars(drawn).items() if isinstance(x, Tensor)}
        self.p = dataclasses.replace(drawn, **ids)
        self.tokens, self.places = self.p.contrast, tasks.answer_positions(SHOTS)
        self.prompts = self.p.base, self.p.contrast
        self.answers = self.p.base_answers, self.p.contrast_answers
        self.sources = {"base": self.p.base, "operands_changed": self.p.operands_changed}
        examples, self.query = study.examples(tasks, "addition", 3, 40, drawing())
        self.examples = dataclasses.replace(examples, tokens=stored(examples.tokens))
        self.offs = examples.difference
        self.naive = stored(study.naive_prompts(tasks, 3))
        self.numbers = {number: tasks.TOKEN[str(number)] for number in tasks.NUMBERS}
        self.asking = {}
        for k in (-1, 0, 1):
            asked = tasks.evaluation_pairs("addition", k, SHOTS, 30, drawing())
            self.asking[k] = stored(asked.contrast)
        self.rules = tasks.draw_rules(tasks.DEFAULT_DIET, 20, drawing())
        self.problem = tasks.draw_problems(tasks.DEFAULT_DIET, self.rules, 4, drawing())
        self.answer = tasks.draw_answers(self.rules, self.problem, drawing())
        documents = tasks.sample(tasks.DEFAULT_DIET, 8, 4, drawing())
        self.documents = dataclasses.replace(documents, tokens=strided(documents.tokens))
        random = torch.randn(6, 40, 5, generator=drawing())
        self.logits, self.maps, self.wide = random[0], random[1:4, :3].contiguous(), random
        self.labels = torch.arange(40) % 3
        self.bools = random[0] > 0
        self.halves = torch.arange(40) % 2

    def asker(self):
        return averaging.Asker(self.model, {"0.1": 2.0, "1.0": 1.0}, tasks.ZERO, tasks.NUMBERS)

    def patcher(self, **changes):
        return PathPatcher(self.model, *self.prompts, *self.answers, **changes)

    def patchers(self):
        prompts = self.p.operands_changed, self.p.contrast
        return {
            "answers": self.patcher(),
            "operands": PathPatcher(self.model, *prompts, *self.answers),
        }

    def ablator(self):
        more = {"unrelated": self.p.base.roll(1, 0), "same_k": self.p.contrast.roll(1, 0)}
        more["same_answer"] = self.p.contrast.roll(2, 0)
        return Ablator(self.model, self.tokens, self.sources | more, {"mean": self.p.base})

    def for_ablation(self):
        return rows.Prompts(self.ablator(), self.answers)

    def scores(self):
        return CircuitScores(self.ablator(), "base", *self.answers)

    @functools.cached_property
    def found(self):
        """A discovery that names every head."""
        return circuit.discover(self.patchers(), self.places, EASY)

    def circuit_json(self):
        found = rows.direct(self.patchers())
        return found

    def stream(self):
        return self.model.run_with_cache(self.tokens)[1]["blocks.1.hook_resid_pre"]


EASY = circuit.Criteria(strong=1e-6, feeds=1e-6, looks_at_answers=1e-6)


def swept_in_parts(w):
    with tempfile.TemporaryDirectory() as folder:
        found = long_sweeps.LongSweeps(w.model, w.prompts, w.answers, Path(folder)).sweep(Logits())
    return found.effects, found.F_base, found.intervals()


def group_rows(w):
    prompts = w.for_ablation()
    groups = {"function_induction": ["1.0"], "expected_answer": ["0.1"]}
    return ablations.group_ablations((prompts,) * 3, groups, (2, drawing()))


def circuits_judged(w):
    prompts = w.for_ablation()
    return completeness.evaluate_circuits(prompts, prompts, {"a": GROUP}, 0.9, drawing())


def whole_circuit(w):
    scores = w.scores()
    return completeness.evaluate(scores, GROUP, {"a": ["0.1"]}, scores, drawing())


def rewired(w):
    """Every receiver, limited and joint senders, all sources."""
    patcher = w.patcher()
    receivers = [Logits(), HeadInput(1, 0, "q"), HeadInput(1, 1, "v", (4, 5)), MLPInput(0)]
    receivers += [Resid(1), [HeadInput(0, 0, "k"), HeadInput(1, 0, "k")]]
    found = patcher.sweep_each(receivers)
    found += patcher.sweep_each(receivers, ["mlp0", ["0.1", "embedding"]], source="mean")
    return found + [patcher.sweep(Resid(1), source=w.p.operands_changed, sender_positions=[5])]


def of_groups(w):
    patcher = PathPatcher(w.grouped, *w.prompts, *w.answers)
    return [patcher.sweep(KVInput(1, 1, which)) for which in "kv"]


def defined(w):
    _, sent = w.model.run_with_cache(w.p.base)
    senders = [definition.sender("0.1"), definition.sender("mlp0", [3, 4])]
    receivers = [definition.receiver("1.0.q", w.model.cfg)]
    return definition.path_patch(w.model, w.tokens, sent, senders, receivers)


def edited(w):
    def without_head_0(z, name):
        z[:, :, 0] = 0
        return z

    return w.model.run_with_hooks(w.tokens, {"blocks.0.attn.hook_z": without_head_0}, [3, 9])


def gradient_of(w):
    """A model as it is trained, and one step."""
    with torch.device("cpu"):
        trained = minifunc.Transformer(w.model.cfg).train()
    cfg = train.TrainConfig(steps=2, documents=8, examples=4)
    batch = w.documents.tokens, w.documents.determined
    loss, norm = train.train_step(trained, train.make_optimizer(trained, cfg), cfg, cfg.lr, *batch)
    return loss, norm, trained


def loss_of(w):
    return train.loss_on_answers(w.model, w.documents.tokens, w.documents.determined)


def a_whole_run(w, folder):
    cfg = train.TrainConfig(steps=2, documents=4, examples=3, eval_every=2)
    shape = dataclasses.replace(w.model.cfg, n_layers=1)
    with mock.patch.object(train, "SHOTS", (1,)):
        return train.train(folder, shape, cfg, tasks.DEFAULT_DIET, torch.device("cpu"))


def evaluated(w):
    with mock.patch.object(train, "SHOTS", (1,)):
        return train.evaluate(w.model, 10, every_task=False)


def all_written(w):
    with mock.patch.object(study, "N_EXAMPLES", 300):
        return study.writings(tasks, w.model, ["1.0"], Study(task="maximum"), drawing())


def where_examples_disagree(w):
    with mock.patch.object(averaging, "N_PROMPTS", 4):
        return study.averaged(tasks, w.model, w.found, Study())


def written_and_read(w, folder):
    files.save_tensors(folder / "x.pt", w.model.state_dict())
    return files.load_tensors(folder / "x.pt")


def loaded(w, folder):
    config = {"model": dataclasses.asdict(w.model.cfg), "vocabulary": tasks.VOCABULARY}
    files.save_json(folder / "config.json", config)
    files.save_tensors(folder / "model.pt", w.model.state_dict())
    return runs.load_run(folder)[0]


def summed(w):
    x = w.logits.clone()
    processes.all_sum(x)
    return x


def kept_streams(w):
    sent = {"base": shared_streams.z_of_layers(w.model, w.p.base)}
    streams = shared_streams.SharedStreams(w.model, w.tokens, sent)
    return streams.logits([[(0, 1)], [(0, 1), (1, 0)]], "base", (3, 4, 5))


def of_document(w):
    return tasks.looks_held_out(tasks.DEFAULT_DIET, w.problem, w.answer)


def in_parts(w):
    naive = function_vectors.Naive(w.model, w.naive, w.numbers, HEADS)
    logits = naive.parts(function_vectors.last_z(w.model, w.tokens)[0])
    return logits, naive.map(logits["all"]), naive.hits(logits["all"], 1)


def reused(w):
    return study.reuse_rows(w.model, w.p, GROUP, [["0.0"], ["1.1"]])


def z_put_in(w):
    vectors = function_vectors.last_z(w.model, w.tokens)[0]
    return function_vectors.logits_with(w.model, w.tokens, vectors, GROUP)


def repeated_scores(w):
    tokens = torch.cat([w.tokens, w.tokens], dim=1)
    return scores.copy_induction_score(w.model, tokens, w.tokens.shape[1], w.places + 17)


def every_head_found(w):
    return circuit.discover(w.patchers(), w.places, EASY)


def inputs_swept(w):
    return circuit.sweep_inputs(w.patcher(), ["1.0"], ["mlp0"], {"both": ["1.0", "1.1"]})


def fed(w, how):
    return how(w.found.effects["answers"])


# By module and name: what is done with a World, or with it and an empty folder.
CASES = {
    "tasks": {
        "answer_positions": lambda w: tasks.answer_positions(4),
        "encode": lambda w: tasks.encode("1+1=3, 2+2="),
        "decode": lambda w: tasks.decode(w.tokens[0]),
        "in_base": lambda w: tasks.in_base(w.answer.clamp(min=0), w.rules.base[:, None]),
        "examples_to_tokens": lambda w: tasks.examples_to_tokens(w.problem, w.answer),
        "sample": lambda w: tasks.sample(tasks.DEFAULT_DIET, 30, 5, drawing()),
        "draw_rules": lambda w: tasks.draw_rules(tasks.DEFAULT_DIET, 30, drawing()),
        "draw_problems": lambda w: tasks.draw_problems(tasks.DEFAULT_DIET, w.rules, 4, drawing()),
        "draw_answers": lambda w: tasks.draw_answers(w.rules, w.problem, drawing()),
        "looks_held_out": of_document,
        "determined": lambda w: tasks.determined(w.rules.wrapper, w.problem, w.answer),
        "evaluation_pairs": lambda w: tasks.evaluation_pairs("caesar", 2, 2, 5, drawing()),
        "Pairs": lambda w: w.p.carry,
    },
    "train": {
        "loss_on_answers": loss_of,
        "make_optimizer": gradient_of,
        "train_step": gradient_of,
        "evaluate": evaluated,
        "train": a_whole_run,
    },
    "minifunc.model": {
        "Transformer": lambda w: w.model(w.tokens),
        "at_positions": lambda w: model.at_positions(
            w.stream(), torch.tensor([1, 2], device="cpu")
        ),
        "rotate": lambda w: model.rotate(w.wide[:, :, None, :4].clone(), w.labels, 100.0),
        "attention_scores": lambda w: w.model.run_with_cache(w.tokens)[1],
    },
    "minifunc.support.hooks": {
        "Hooks": lambda w: w.model(w.tokens, [3], hooks.Hooks(keep=["hook_embed"])),
        "Hooked": edited,
    },
    "minifunc.definition": {
        "path_patch": defined,
        "effect": lambda w: definition.effect(
            *w.model(w.p.base, [9, 11, 16]).unbind(1), torch.stack(w.answers, 1).long()
        ),
    },
    "minifunc.support.places": dict.fromkeys(("Place", "sender", "receiver"), defined),
    "minifunc.patching": dict.fromkeys(("Batch", "PathPatcher"), rewired),
    "minifunc.support.receivers": {
        **dict.fromkeys(("Receiver", "Logits", "HeadInput", "MLPInput", "Resid"), rewired),
        "KVInput": of_groups,
    },
    "minifunc.support.pairs": {
        "CachedRuns": lambda w: [each.stream(1) for each in w.patcher().cached_runs()],
        "PairedRuns": lambda w: pairs.PairedRuns(w.model, w.prompts, w.answers, None).F_base,
    },
    "minifunc.support.effects": {
        "Effects": lambda w: effects.Effects(w.logits[:2, :2], w.logits[0, :2], w.maps[0, 0, 0]),
        "Senders": lambda w: effects.Senders(w.model.cfg).effects(
            [(0,), (2,)], w.logits[:2], w.logits[:2, 0].double()
        ),
    },
    "minifunc.support.memory": {
        "MemoryBudget": lambda w: memory.MemoryBudget(w.model, 17).prompt_ranges(range(9)),
    },
    "minifunc.support.evaluation": {
        "finite": lambda w: evaluation.finite(w.logits),
        "last_logits": lambda w: evaluation.last_logits(w.model, w.tokens),
        "answers_right": lambda w: evaluation.answers_right(w.model, w.tokens, w.answers[0]),
        "accuracy_by_shots": lambda w: evaluation.accuracy_by_shots(
            w.model, tasks, ["base_addition"], [1], 6
        ),
        "accuracy": lambda w: evaluation.accuracy(w.logits, w.labels),
        "bootstrap": lambda w: evaluation.bootstrap(w.logits.T, w.logits[:, 0].exp()),
    },
    "minifunc.support.shared_streams": dict.fromkeys(
        ("z_of_layers", "SharedStreams"), kept_streams
    ),
    "minifunc.support.rows": {
        "integers": lambda w: row_tools.integers(3, 9, (4, 5), drawing()),
        "evenly": lambda w: row_tools.evenly(w.logits.sigmoid(), w.labels),
        "among": lambda w: row_tools.among((3, 5), (4,), drawing()),
        "redrawn": lambda w: row_tools.redrawn(w.labels, (0, 1), drawing()),
        "permuted": lambda w: row_tools.permuted(w.labels[:, None], 3, drawing()),
        "all_so_far": lambda w: row_tools.all_so_far(w.bools, ~w.bools),
        "same_so_far": lambda w: row_tools.same_so_far(w.answer, w.answer > 4),
        "met_before": lambda w: row_tools.met_before(w.answer),
        "nearest": lambda w: row_tools.nearest(
            w.answer[:, :2], w.answer[:5, 2:], w.answer[:, :1] > 3
        ),
    },
    "minifunc.support.files": dict.fromkeys(("save_tensors", "load_tensors"), written_and_read),
    "minifunc.support.runs": {
        "load_run": loaded,
        "fitting_model": loaded,
        "whole": loaded,
        "weights_hash": lambda w: runs.weights_hash(w.model.state_dict()),
    },
    "minifunc.support.processes": {
        "share": lambda w: processes.share(w.tokens),
        "all_sum": summed,
        "any_process": lambda w: processes.any_process(True),
    },
    "minifunc.ablation": {
        "Ablator": lambda w: w.ablator().logits([GROUP, ["1.1"]], "mean", [3, 16]),
        "Score": lambda w: w.scores().full,
        "CircuitScores": lambda w: (
            w.scores().faithfulness([GROUP]),
            w.scores().gaps(HEADS, [GROUP]),
        ),
    },
    "minifunc.circuit": {
        "attention_shares": lambda w: circuit.attention_shares(w.model, w.tokens, w.places),
        "direct_groups": lambda w: circuit.direct_groups(
            w.found.effects["answers"]["logits"].heads, w.found.attention, EASY
        ),
        "feeding": lambda w: circuit.feeding(w.found.effects["answers"].values(), EASY),
        "route": lambda w: circuit.route(w.found.effects["answers"], HEADS, EASY),
        "discover": every_head_found,
        "strong_writers": lambda w: circuit.strong_writers(w.found.effects, EASY),
        "sweep_inputs": inputs_swept,
    },
    "minifunc.analysis.activations": {
        "Examples": lambda w: w.examples.rows(w.labels[1:4]),
        "activations": lambda w: activations.activations(
            w.model, w.tokens, ["hook_embed"], lambda x: x[:, 1:3]
        ),
    },
    "minifunc.analysis.averaging": {
        "Asker": lambda w: w.asker().ask(w.examples, w.query),
        "with_differences": lambda w: averaging.with_differences(w.examples, tasks.ZERO, w.offs),
        "r2": lambda w: averaging.r2(w.logits, w.wide[1]),
        "r2_interval": lambda w: averaging.r2_interval(w.logits[0], w.wide[1, 0]),
        "forecasts": lambda w: averaging.forecasts(w.offs, w.offs.double(), w.offs.abs()),
        "account": lambda w: averaging.account(w.asker(), w.examples, w.query, w.query),
        "steered": lambda w: averaging.steered(w.asker(), w.examples, w.query),
        "study": lambda w: averaging.study(tasks, w.model, {"1.0": 1.0}, ("maximum", 2), drawing()),
    },
    "minifunc.analysis.scores": {
        "attention_to": lambda w: scores.attention_to(
            w.model, w.tokens, w.places, w.places[:, None] - 1
        ),
        "previous_token_score": lambda w: scores.previous_token_score(w.model, w.tokens, w.places),
        "function_induction_score": lambda w: scores.function_induction_score(
            w.model, w.tokens, w.places
        ),
        "copy_induction_score": repeated_scores,
    },
    "minifunc.analysis.function_vectors": {
        "last_z": lambda w: function_vectors.last_z(w.model, w.tokens),
        "logits_with": z_put_in,
        "cells": lambda w: function_vectors.cells(w.maps[0], 1, 1),
        "moves": lambda w: function_vectors.moves(w.maps[0], 1, 1),
        "Naive": in_parts,
        "study": lambda w: function_vectors.study(w.model, w.asking, w.naive, GROUP, w.numbers),
    },
    "minifunc.analysis.long_sweeps": {
        "LongSweeps": swept_in_parts,
        "digest": lambda w: long_sweeps.digest(w.model, w.prompts),
    },
    "minifunc.analysis.reading": {
        "explained": lambda w: reading.explained(w.logits, w.labels, w.halves),
        "inputs_apart": lambda w: reading.inputs_apart(w.patcher(), w.sources, GROUP),
        "looks_for": lambda w: reading.looks_for(w.model, w.examples, w.query, GROUP),
        "hands_over": lambda w: reading.hands_over(w.model, w.examples, GROUP),
    },
    "minifunc.analysis.rows": {
        "Prompts": lambda w: w.for_ablation().scores("base").none,
        "as_lists": lambda w: rows.as_lists(w.found.effects["answers"]["logits"]),
        "as_effects": lambda w: rows.as_effects(
            rows.as_lists(w.found.effects["answers"]["logits"])
        ),
        "direct": lambda w: rows.direct(w.patchers()),
        "discovered": lambda w: rows.discovered(w.found, {"operands_changed": {}}),
        "answered": lambda w: rows.answered(w.logits, [w.labels, w.labels]),
        "ablation_row": lambda w: rows.ablation_row(w.for_ablation(), "x", GROUP, "base"),
        "control_row": lambda w: rows.control_row(
            w.for_ablation(), "x", [["0.1"], ["1.0"]], "base"
        ),
    },
    "minifunc.analysis.ablations": {
        "random_group": lambda w: ablations.random_group(["0.0"], 6, drawing()),
        "random_group_anywhere": lambda w: ablations.random_group_anywhere(
            ["0.0"], w.model.cfg, drawing()
        ),
        "group_ablations": group_rows,
    },
    "minifunc.analysis.completeness": {
        "greedy_subsets": lambda w: completeness.greedy_subsets(w.scores(), GROUP),
        "random_subsets": lambda w: completeness.random_subsets(HEADS, 9, drawing()),
        "minimality": lambda w: completeness.minimality(w.scores(), GROUP, {"a": ["0.1"]}),
        "eliminate": lambda w: completeness.eliminate([w.scores()], 0.5),
        "evaluate": whole_circuit,
        "interval": lambda w: completeness.interval(s := w.scores(), s.full, s.none),
        "alone": lambda w: completeness.alone(w.scores(), GROUP),
        "with_other_lower_heads": lambda w: completeness.with_other_lower_heads(
            GROUP, ["1.0"], HEADS, drawing()
        ),
        "by_chance": lambda w: completeness.by_chance(w.scores(), GROUP, [["0.0"], HEADS]),
        "circuit_row": lambda w: completeness.circuit_row(
            w.scores(), "x", GROUP, [["0.0"], HEADS], [GROUP]
        ),
        "evaluate_circuits": circuits_judged,
    },
    "minifunc.analysis.shift_swap": {
        "moved": lambda w: shift_swap.moved(
            {"same": w.logits, "answers": w.logits.roll(1, -1)},
            "answers",
            w.labels,
            w.labels.roll(1),
        ),
        "study": lambda w: shift_swap.study(tasks, w.model, ["1.0"], Study(shots=2)),
    },
    "minifunc.analysis.study": {
        "some": lambda w: study.some(w.p, slice(2)),
        "answers_of": lambda w: study.answers_of(w.p),
        "asked": lambda w: study.asked(tasks, w.model, Study(), w.p),
        "replacements": lambda w: study.replacements(tasks, w.model, w.p).ablator.sent,
        "donors": lambda w: study.donors(tasks, w.p),
        "reuse": lambda w: study.reuse(tasks, w.model, GROUP, [("addition", 2)], 2, drawing()),
        "reuse_rows": reused,
        "writings": all_written,
        "averaged": where_examples_disagree,
        "naive_prompts": lambda w: study.naive_prompts(tasks, 3),
        "examples": lambda w: study.examples(tasks, "maximum", 2, 3, drawing()),
    },
}

# What is no case: whole modules, or names in them, and why.
NO_TENSORS = {
    "minifunc.report": "JSON of a run's folder becomes text",
    "minifunc.support.checkpoints": "a training run's files; `train.train` goes through all of it",
    "minifunc.support.checks": "raises, or hands on what it was given: tests/test_refused.py",
    "minifunc.support.errors": "messages",
    "minifunc.support.flags": "the command line",
    "minifunc.support.graphs": "how `train.train` makes its steps: tests/test_graphs.py",
    "minifunc.support.names": "names of heads",
    "minifunc.support.settings": "the command line and config.json",
    "minifunc.support.settled": "this rule itself",
    "minifunc.support.products": "parts of a transformer: called alone, torch's settings hold",
    "minifunc.support.tables": "text",
    "minifunc.support.vocabulary": "text",
    "minifunc.support.pretrained": "others' files, optional packages: tests/test_pretrained.py",
    "minifunc.support.tokenizer": "text, an optional package: tests/test_pretrained.py",
    "minifunc.support.files": "files; those that hold tensors are cases",
    "minifunc.support.processes": "processes; what touches tensors is a case",
    "minifunc.support.runs": "files and flags; what makes a model is a case",
    "minifunc.analysis.long_sweeps": {"Swept"},  # made by `LongSweeps` alone
    "tasks": {"n_tokens", "Problems", "Diet", "Rules", "Documents", "Task"},  # numbers and shapes
    "train": {"TrainConfig", "print_table", "work", "main"},  # settings, the command line
    # The parts of a transformer, which `Transformer` runs: called alone, torch's settings hold.
    "minifunc.model": {"ModelConfig", "Embed", "PosEmbed", "Norm", "Attention", "MLP", "Block"},
    "minifunc.ablation": {"all_heads"},  # names
    "minifunc.circuit": {"Criteria", "Discovery", "previous_token"},  # names and numbers
    "minifunc.support.evaluation": {"wilson"},  # numbers
    "minifunc.support.shared_streams": {"prompts_in_a_pass"},  # a number
    "minifunc.analysis.function_vectors": {"hook_points"},  # names
}


def public():
    """Every function and class that is defined in a module of ours, as (module, name)."""
    walked = pkgutil.walk_packages(minifunc.__path__, "minifunc.")
    names = ["tasks", "train", *(each.name for each in walked if "__main__" not in each.name)]
    for module in map(importlib.import_module, names):
        for name, value in vars(module).items():
            defined = inspect.isfunction(value) or inspect.isclass(value)
            if defined and value.__module__ == module.__name__ and not name.startswith("_"):
                yield module.__name__, name


def reason(module, name):
    """Whether NO_TENSORS has it, by its module, a package of it, or by name."""
    for known, why in NO_TENSORS.items():
        inside = module == known or module.startswith(f"{known}.")
        if inside and (isinstance(why, str) or name in why):
            return True
    return False


def test_every_public_function_has_a_case_or_a_reason_to_have_none():
    found, cases = set(public()), {(module, name) for module in CASES for name in CASES[module]}
    assert cases <= found, cases - found
    missing = {each for each in found - cases if not reason(*each)}
    assert not missing, f"add cases to CASES: {sorted(missing)}"
    named = {
        (module, name) for module, why in NO_TENSORS.items() if isinstance(why, set) for name in why
    }
    assert named <= found - cases


# ---------------------------------------------------------------- what is set, and the same results


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def bfloat16():
    return torch.autocast("cpu", torch.bfloat16)


SETTINGS = {
    "default dtype float64": lambda: [default_dtype(torch.float64)],
    "default device meta": lambda: [torch.device("meta")],
    "autocast": lambda: [bfloat16()],
    "inference mode": lambda: [torch.inference_mode()],
    "no_grad": lambda: [torch.no_grad()],
}


# Those in one row do not hide each other; where it fails, try them one by one.
TOGETHER = (
    ("default dtype float64", "default device meta"),
    ("autocast",),
    ("inference mode", "no_grad"),
)


def together(*names):
    return [each for name in names for each in SETTINGS[name]()]


def strided(ids):
    return torch.stack([ids, ids], dim=-1)[..., 0]


def stored_so(ids):
    """int32, not contiguous, and made in inference mode."""
    with torch.inference_mode():
        return strided(ids.int())


world = functools.cache(World)
stored_otherwise = functools.cache(lambda: World(stored_so, training=True))
# These meet all settings at once alone: they take a second, and call what is tried one by one.
SLOW = {"evaluate_circuits", "writings", "study", "discover", "evaluate"}
SLOW |= {"group_ablations", "replacements"}


# Training needs gradients: where there are none, torch itself says so.
TRAINS = {("train", "train"), ("train", "train_step"), ("train", "make_optimizer")}
# Where an id's dtype is handed on, since it is what was given.
HANDS_ON = {("minifunc.analysis.study", name) for name in ("some", "answers_of")}
HANDS_ON |= {("minifunc.support.processes", "share"), ("minifunc.analysis.activations", "Examples")}


def called(case, of, folder, settings=()):
    two = len(inspect.signature(case).parameters) == 2
    if two:
        folder.mkdir()
    with ExitStack() as stack:
        for each in settings:
            stack.enter_context(each)
        return case(of, folder) if two else case(of)


def flat(value):
    """What there is in a result, as a flat list of tensors and plain values."""
    if isinstance(value, nn.Module):
        value = dict(value.state_dict())
    if dataclasses.is_dataclass(value):
        value = vars(value)
    if isinstance(value, dict):
        value = list(value.items())
    if isinstance(value, list | tuple):
        return [part for each in value for part in flat(each)]
    return [value]


def equal(a, b, ids_alone):
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if ids_alone and not a.is_floating_point():
            a, b = a.long(), b.long()
        alike = a.dtype == b.dtype and a.device == b.device and a.shape == b.shape
        return alike and torch.equal(a.nan_to_num(7e30), b.nan_to_num(7e30))
    if isinstance(a, float) and isinstance(b, float):
        return a == b or (math.isnan(a) and math.isnan(b))
    return type(a) is type(b) and a == b


def difference(found, wanted, ids_alone=False):
    """Empty where results are the same, else what is not."""
    found, wanted = flat(found), flat(wanted)
    if len(found) != len(wanted):
        return f"{len(found)} parts, not {len(wanted)}"
    for one, other in zip(found, wanted):
        if not equal(one, other, ids_alone):
            return f"{one!r:.300} is not {other!r:.300}"
    return ""


def tried(call, wanted, ids_alone=False):
    """`difference` of what a call returns; what it raises is one too."""
    try:
        return difference(call(), wanted, ids_alone)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def different_cases():
    """(module, name, case), a case that stands for several names once."""
    first = {}
    for module, named in CASES.items():
        for name, case in named.items():
            first.setdefault(case, (module, name))
    return [(*where, case) for case, where in first.items()]


@pytest.mark.parametrize("module, name, case", different_cases())
def test_what_is_set_around_a_call_and_how_tokens_are_stored_change_nothing(
    module, name, case, tmp_path
):
    wanted = called(case, world(), tmp_path / "plain")
    trains, ids_alone = (module, name) in TRAINS, (module, name) in HANDS_ON
    wrong, settings = {}, TOGETHER
    if name in SLOW:
        settings = [tuple(SETTINGS)]
    for number, names in enumerate(settings):
        call = functools.partial(called, case, world(), tmp_path / str(number), together(*names))
        if trains and "no_grad" in names:
            with pytest.raises(RuntimeError, match="does not require grad|[Ii]nference"):
                call()
        else:
            wrong[names] = tried(call, wanted)
    stored = functools.partial(called, case, stored_otherwise(), tmp_path / "stored")
    wrong["tokens"] = tried(stored, wanted, ids_alone)
    assert not any(wrong.values()), {what: how for what, how in wrong.items() if how}


@pytest.mark.slow
def test_what_is_set_before_the_import_changes_nothing():
    set_first = """if True:
        import torch
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
    """
    draw = """if True:
        import tasks, minifunc, torch
        drawn = tasks.sample(tasks.DEFAULT_DIET, 50, 6, torch.Generator("cpu").manual_seed(0))
        model = minifunc.Transformer(minifunc.ModelConfig(d_vocab=80)).to_empty(device="cpu")
        print(drawn.tokens.tolist(), tasks.PROBLEMS.value.tolist(), model.dtype)
    """
    printed = []
    for program in (draw, set_first + "\n" + draw):
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        printed.append(done.stdout)
    assert printed[0] == printed[1]
