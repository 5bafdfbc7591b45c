"""Traces the circuit of a trained run: `python patch.py --run out/default`.

In the paper's order: does the model do the task (base and contrast accuracy)? Which heads write the answer, what do
those read and from which heads (discovery, under both contrasts)? Is that the whole story (faithfulness,
completeness, minimality)? What is left when heads are taken out (ablation, with controls)? Do the same heads serve
other tasks (reuse)? The findings go to stdout and, complete, to circuit.json.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import tasks
from minifunc.ablation import (
    Ablator,
    ablation_row,
    control_row,
    random_group,
    random_group_anywhere,
)
from minifunc.analysis import function_vectors, reading
from minifunc.analysis.attribution import attribute, rank_correlation
from minifunc.analysis.probe import probes
from minifunc.circuit import Criteria, Discovery, discover, heads_of, other_thresholds, reader_roles
from minifunc.faithfulness import CircuitScores, eliminate, evaluate
from minifunc.model import Transformer
from minifunc.patching import Effects, PathPatcher
from minifunc.report.terminal import show
from minifunc.support.errors import UserError
from minifunc.support.evaluation import accuracy, last_logits
from minifunc.support.files import check_writable, save_json
from minifunc.support.flags import Parser, add_flags, from_flags, pick_device
from minifunc.support.processes import is_main, join, run_together
from minifunc.support.runs import add_run_flag, chosen_run, load_run

N_DRAWS = 50  # random groups of each kind beside an ablated one
N_OTHER_DRAWS = (
    10  # random circuits beside one that was found, and random groups for each reused task
)
N_COUNTED = (
    500  # prompts on which right answers are counted, as they are and without some heads; at least
)
N_EVALUATED = 100  # prompts on which circuits, single readers and reuse are measured
N_SEARCH = 50  # prompts on which circuits and worst subsets are looked for, to be measured on others; and those for more than FEW_GROUPS random groups
FEW_GROUPS = 5
REUSED = [
    (task, k)
    for task in ("addition", "caesar", "base_addition", "choice")
    for k in tasks.TASKS[task].ks
    if k
]
N_INPUTS = 10  # inputs 0..9 of function vectors
N_EXAMPLES = 4000  # at least so many examples stand behind shares of variance, so that every pair of labels occurs
MOST_PROMPTS = 100_000


def trace(
    model: Transformer,
    task: str,
    k: int,
    shots: int,
    n_prompts: int,
    seed: int,
    criteria: Criteria,
    freeze_mlps: bool,
    max_memory: float | None,
) -> dict[str, Any]:
    """The whole study of one run on one task; returns what circuit.json holds."""
    started = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    pairs = tasks.evaluation_pairs(
        task, k, shots, n_prompts, generator, carry=True
    )  # to trace with: patching averages logits
    if pairs.operands_changed is None:
        raise ValueError(f"{task} cannot be traced: it has no second contrast, with other operands")
    many = tasks.evaluation_pairs(
        task, k, shots, max(N_COUNTED, n_prompts), generator, carry=True
    )  # to count right answers on
    with tqdm(total=6, desc="patch", mininterval=0.5, disable=None) as bar:
        # 1. Does it do the task?
        shares = solving(model, many)
        bar.update()

        # 2. Discovery: from the logits down, under both contrasts.
        patchers = {
            name: PathPatcher(
                model,
                base,
                pairs.contrast,
                pairs.base_answers,
                pairs.contrast_answers,
                freeze_mlps,
                max_memory,
            )
            for name, base in (("answers", pairs.base), ("operands", pairs.operands_changed))
        }
        found = discover(
            patchers,
            tasks.answer_positions(shots),
            criteria,
            shares["contrast_prompt"]["contrast"] >= criteria.solves,
        )
        estimate = attribute(patchers["answers"])
        fi = found.groups["function_induction"]
        bar.update()

        # 3. Is that the whole circuit? And which heads bring what was to be expected?
        evaluation: dict[str, Any] = {}
        roles: dict[str, Any] = {}
        if fi:
            few = replacements(model, first(many, N_EVALUATED))
            evaluation = evaluate_circuits(
                replacements(model, first(pairs, N_SEARCH)),
                few,
                first(pairs, N_SEARCH),
                first(many, N_EVALUATED),
                found.groups,
                criteria,
                generator,
            )
            roles = readers(few, first(many, N_EVALUATED), found, criteria)
        bar.update()

        # 4. Ablation, with controls and with other thresholds.
        evaluation["ablation"], evaluation["sensitivity"] = [], []
        if fi:
            evaluation["ablation"], evaluation["sensitivity"] = ablations(
                model, many, few, found, roles, criteria, generator
            )
        bar.update()

        # 5. What the FI heads look for, hand over and write, and where it can be read off the stream.
        written = (
            writings(
                model, fi, found.groups["expected_answer"], task, k, shots, n_prompts, generator
            )
            if fi and task in tasks.ON_NUMBERS
            else {}
        )
        bar.update()

        # 6. Do the same heads serve other tasks?
        reused = reuse(model, fi, REUSED, shots, generator) if fi else []
        bar.update()

    F = {
        name: {
            "base": round(patcher.F_base.mean().item(), 5),
            "contrast": round(patcher.F_contrast.mean().item(), 5),
        }
        for name, patcher in patchers.items()
    }
    effects = {
        name: {receiver: as_lists(e) for receiver, e in each.items()}
        for name, each in found.effects.items()
    }
    return {
        "task": task,
        "k": k,
        "asked": f"in base {k}" if tasks.TASKS[task].wrapper == "base" else f"off by {k:+d}",
        "shots": shots,
        "n_prompts": n_prompts,
        "freeze_mlps": freeze_mlps,
        "seed": seed,
        "device": str(model.unembed.W_U.device),
        "seconds": round(time.perf_counter() - started, 2),
        "F": F["answers"],
        "accuracy": shares,
        "accuracy_prompts": len(many.base),
        "contrast": "answers",
        "effects": effects["answers"],
        "operands_changed": {"F": F["operands"], "effects": effects["operands"]},
        "attribution": as_lists(estimate)
        | {
            "rank_correlation": round(
                rank_correlation(estimate.heads, found.effects["answers"]["logits"].heads), 4
            )
        },
        "groups": found.groups,
        "example": {
            name: tasks.decode(
                torch.cat([tokens[0, : tasks.n_tokens(min(shots, 4)) - 4], tokens[0, -4:]])
            )
            for name, tokens in (("base", pairs.base), ("contrast", pairs.contrast))
        },
        "routes": {
            name: {node: round(r, 5) for node, r in route.items()}
            for name, route in found.routes.items()
        },
        "graph": found.graph,
        "readers": roles,
        "criteria": vars(criteria),
        "attention": found.attention,
        "evaluation": evaluation,
        "reuse": reused,
        **written,
    }


def as_lists(effects: Effects) -> dict[str, Any]:
    """r values for circuit.json."""
    return {
        "heads": _rounded(effects.heads),
        "mlps": _rounded(effects.mlps),
        "embedding": round(effects.embedding.item(), 5),
    }


def _rounded(tensor: Tensor) -> Any:
    return [
        [round(x, 5) for x in row] if isinstance(row, list) else round(row, 5)
        for row in tensor.tolist()
    ]


# ---------------------------------------------------------------- the steps


def first(pairs: tasks.Pairs, n: int) -> tasks.Pairs:
    """The first n pairs."""
    return some(pairs, slice(n))


def some(pairs: tasks.Pairs, which: slice | Tensor) -> tasks.Pairs:
    """Some of the pairs, by a slice or by a mask [n_prompts]."""
    tensors: dict[str, Any] = {
        name: value[which] for name, value in vars(pairs).items() if isinstance(value, Tensor)
    }
    return replace(pairs, **tensors)


def answers_of(pairs: tasks.Pairs) -> tuple[Tensor, Tensor]:
    return pairs.base_answers, pairs.contrast_answers


def solving(model: Transformer, pairs: tasks.Pairs) -> dict[str, dict[str, float]]:
    """Shares of the base and the contrast answer, given base and contrast prompts."""
    logits = {
        "base_prompt": last_logits(model, pairs.base),
        "contrast_prompt": last_logits(model, pairs.contrast),
    }
    return {
        prompt: {
            "base": accuracy(given, pairs.base_answers),
            "contrast": accuracy(given, pairs.contrast_answers),
        }
        for prompt, given in logits.items()
    }


def replacements(model: Transformer, pairs: tasks.Pairs, prompts: Tensor | None = None) -> Ablator:
    """The contrast prompts (or the `prompts` given), with all that is put in place of what a head sends there.

    base: what it sends on the paired base prompt; mean: its mean over base prompts; unrelated: what it sends on another
    pair's base prompt; same_k: on another pair's contrast prompt, which is off by the same k; same_answer: on one that
    asks for the same answer as well; operands_changed: on the prompt with the same shown answers, made plain by other
    operands.
    """
    assert pairs.operands_changed is not None
    sources = {
        "base": pairs.base,
        "unrelated": pairs.base.roll(1, 0),
        "same_k": pairs.contrast.roll(1, 0),
        "operands_changed": pairs.operands_changed,
    }
    sources["same_answer"] = donors(pairs)
    return Ablator(
        model, pairs.contrast if prompts is None else prompts, sources, means={"mean": pairs.base}
    )


def donors(pairs: tasks.Pairs) -> Tensor:
    """For each contrast prompt, another one with the same k and the same right answer, [n_prompts, pos]; some other prompt where none is found."""
    n = len(pairs.contrast)
    pool = tasks.evaluation_pairs(
        pairs.task, pairs.k, pairs.shots, 20 * n, torch.Generator().manual_seed(n)
    )
    chosen = torch.zeros(n, dtype=torch.int64)
    for answer in pairs.contrast_answers.unique():
        mine, theirs = ((some.contrast_answers == answer).nonzero()[:, 0] for some in (pairs, pool))
        if len(theirs):
            chosen[mine] = theirs[mine % len(theirs)]  # so that not all take the same donor
    return pool.contrast[chosen]


def evaluate_circuits(
    search: Ablator,
    few: Ablator,
    search_pairs: tasks.Pairs,
    few_pairs: tasks.Pairs,
    groups: dict[str, list[str]],
    criteria: Criteria,
    generator: torch.Generator,
) -> dict[str, Any]:
    """Faithfulness, completeness and minimality of the union of all groups, and of the circuits that elimination leaves."""
    hows = ("base", "operands_changed", "mean")
    looking = {how: CircuitScores(search, how, *answers_of(search_pairs)) for how in hows}
    scores = {how: CircuitScores(few, how, *answers_of(few_pairs)) for how in hows}
    circuits = {
        "union of groups": heads_of(head for heads in groups.values() for head in heads),
        "eliminated, both contrasts": eliminate(
            [looking["base"], looking["operands_changed"]], criteria.faithful
        ),
        "eliminated, shown answers alone": eliminate([looking["base"]], criteria.faithful),
        "eliminated, means put in": eliminate([looking["mean"]], criteria.faithful),
    }
    rows = []
    for name, heads in circuits.items():
        drawn = [
            random_group(heads, few.cfg.n_heads, generator, avoid=False)
            for _ in range(N_OTHER_DRAWS)
        ]
        for how, score in scores.items():
            got, faithfulness = score.scores([heads])[0], score.faithfulness([heads, *drawn])
            row = {
                "circuit": name,
                "heads": heads,
                "replaced_by": how,
                "faithfulness": round(faithfulness[0], 4),
                "circuit_accuracy": round(got.contrast_acc, 4),
                "base_acc": round(got.base_acc, 4),
            }
            row |= {
                "F": {
                    "circuit": round(got.F, 4),
                    "none": round(score.none.F, 4),
                    "full": round(score.full.F, 4),
                },
                "n_prompts": few.n_prompts,
            }
            rows.append(
                row
                | {
                    "random_circuits": {
                        "n_draws": N_OTHER_DRAWS,
                        "mean": round(sum(faithfulness[1:]) / N_OTHER_DRAWS, 4),
                        "highest": round(max(faithfulness[1:]), 4),
                    }
                }
            )
    union, eliminated = list(circuits.values())[:2]
    main = evaluate(scores["base"], union, groups, looking["base"], generator)
    return main | {
        "defined_as": "union of groups",
        "operands_changed": evaluate(
            scores["operands_changed"], union, groups, looking["operands_changed"], generator
        ),
        "by_elimination": evaluate(scores["base"], eliminated, groups, looking["base"], generator),
        "circuits": rows,
    }


def readers(
    few: Ablator, pairs: tasks.Pairs, found: Discovery, criteria: Criteria
) -> dict[str, Any]:
    """`reader_roles` of the heads below the FI heads: each is replaced, alone, over the shown examples; the query stays."""
    direct = {
        head for group in ("function_induction", "consolidation") for head in found.groups[group]
    }
    heads = [
        head
        for head in heads_of(
            head
            for group in ("shown_answer", "expected_answer", "upstream")
            for head in found.groups[group]
        )
        if head not in direct
    ]
    shown = range(int(tasks.answer_positions(pairs.shots)[-1]) + 1)
    replaced: dict[str, dict[str, dict[str, float]]] = {head: {} for head in heads}
    for name, how in (
        ("answers", "base"),
        ("operands", "operands_changed"),
        ("unrelated", "unrelated"),
    ):
        scores = CircuitScores(
            few, how if how != "unrelated" else "base", *answers_of(pairs)
        )  # for the range of F
        for head, logits in zip(heads, few.logits([[head] for head in heads], how, shown)):
            picked = logits.gather(1, scores.answers)
            r = scores.share((picked[:, 0] - picked[:, 1]).double().mean().item() - scores.full.F)
            replaced[head][name] = {
                "r": round(r, 4),
                "base_acc": round(accuracy(logits, pairs.base_answers), 4),
                "contrast_acc": round(accuracy(logits, pairs.contrast_answers), 4),
            }
    return reader_roles(heads, found.attention, replaced, criteria)


def ablations(
    model: Transformer,
    pairs: tasks.Pairs,
    few: Ablator,
    found: Discovery,
    roles: dict[str, Any],
    criteria: Criteria,
    generator: torch.Generator,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of `evaluation.ablation` (groups and their controls) and of `evaluation.sensitivity` (groups by other thresholds)."""
    cfg, many, answers = model.cfg, replacements(model, pairs), answers_of(pairs)
    plain = replacements(model, pairs, pairs.base)
    fewer, fewer_answers = (
        replacements(model, first(pairs, N_SEARCH)),
        answers_of(first(pairs, N_SEARCH)),
    )
    rows = []
    for label, heads, hows in (
        (
            "function_induction",
            found.groups["function_induction"],
            ("base", "mean", "unrelated", "same_k", "same_answer"),
        ),
        ("expected_answer", found.groups["expected_answer"], ("operands_changed",)),
    ):
        if heads:
            of_group = [ablation_row(many, answers, label, heads, how) for how in hows]
            for row in of_group:  # how often the answer off by k is given, without these heads, to prompts that never show it
                row["floor"] = ablation_row(plain, answers, label, heads, row["how"])[
                    "contrast_acc"
                ]
            rows += of_group
            drawn = {
                "random_same_layers": [
                    random_group(heads, cfg.n_heads, generator) for _ in range(N_DRAWS)
                ]
            }
            drawn |= {
                "random_any_layer": [
                    random_group_anywhere(heads, cfg.n_layers, cfg.n_heads, generator)
                    for _ in range(N_DRAWS)
                ]
            }
            for kind, groups in drawn.items():
                on = (
                    (many, answers)
                    if len(set(map(tuple, groups))) <= FEW_GROUPS
                    else (fewer, fewer_answers)
                )
                rows += [control_row(*on, kind, groups, how) | {"beside": label} for how in hows]
    for kind in ("operand_reader", "previous_token"):
        heads = [head for head, role in roles.items() if role["kind"] == kind]
        rows += (
            [
                ablation_row(many, answers, f"{kind}s", heads, how)
                for how in ("base", "operands_changed")
            ]
            if heads
            else []
        )
    sensitivity, few_answers = [], answers_of(first(pairs, few.n_prompts))
    for row in other_thresholds(found, criteria):
        how = (
            "operands_changed" if row["group"] in ("expected_answer", "previous_token") else "base"
        )
        left = ablation_row(few, few_answers, row["group"], row["heads"], how)
        sensitivity.append(
            row | {name: left[name] for name in ("how", "base_acc", "contrast_acc", "n_prompts")}
        )
    return rows, sensitivity


def reuse(
    model: Transformer,
    heads: Sequence[str],
    questions: Sequence[tuple[str, int]],
    shots: int,
    generator: torch.Generator,
) -> list[dict[str, Any]]:
    """Four rows for each (task, k): the base prompt, the contrast prompt, that without `heads`, and that without random heads.

    What is taken out is replaced by its base-run values. The random rows are means over groups from the same layers.
    Sums in base k stand apart by whether the asked one carries. A task that has no such prompts (see `evaluation_pairs`) has no rows.
    """
    rows = []
    drawn = [random_group(heads, model.cfg.n_heads, generator) for _ in range(N_OTHER_DRAWS)]
    for task, k in questions:
        try:
            pairs = tasks.evaluation_pairs(task, k, shots, N_EVALUATED, generator)
        except ValueError:
            continue
        kinds = (
            {"carry": pairs.carry, "no carry": ~pairs.carry}
            if tasks.TASKS[task].wrapper == "base"
            else {"all": pairs.carry}
        )
        for kind, which in kinds.items():
            asked = some(pairs, which)
            if not len(asked.base):
                continue
            ablator, answers = (
                Ablator(model, asked.contrast, {"base": asked.base}),
                answers_of(asked),
            )
            plain = last_logits(model, asked.base)
            four = [
                (
                    "base",
                    "none",
                    {
                        "base_acc": round(accuracy(plain, answers[0]), 4),
                        "contrast_acc": round(accuracy(plain, answers[1]), 4),
                    },
                )
            ]
            four += [
                ("contrast", label, ablation_row(ablator, answers, label, group, "base"))
                for label, group in (("none", []), ("function_induction", heads))
            ]
            four += [
                (
                    "contrast",
                    "random_same_layers",
                    control_row(ablator, answers, "random_same_layers", drawn, "base"),
                )
            ]
            rows += [
                {
                    "task": task,
                    "k": k,
                    "items": kind,
                    "prompt": prompt,
                    "ablated": ablated,
                    "base_acc": row["base_acc"],
                    "contrast_acc": row["contrast_acc"],
                    "n_prompts": len(asked.base),
                }
                for prompt, ablated, row in four
            ]
    return rows


def writings(
    model: Transformer,
    heads: Sequence[str],
    readers: Sequence[str],
    task: str,
    k: int,
    shots: int,
    n_prompts: int,
    generator: torch.Generator,
) -> dict[str, Any]:
    """Three analyses of the FI heads `heads` and the heads `readers` that gather the expected answer, for a function on numbers.

    function_vectors, function_vectors_by_k, function_vector_scores: what the FI heads write (`minifunc/analysis/function_vectors.py`). reading: what their
    q, k and v are for (`minifunc/analysis/reading.py`). probe: where numbers can be read off the stream (`minifunc/analysis/probe.py`).
    """
    numbers, zero = torch.tensor([tasks.TOKEN[str(n)] for n in tasks.NUMBERS]), -tasks.NUMBERS[0]
    pairs = {
        shift: tasks.evaluation_pairs(task, shift, shots, 3 * n_prompts, generator)
        for shift in tasks.SHIFTS
    }
    asked = {shift: p.base_answers - tasks.ZERO for shift, p in pairs.items()}
    found = function_vectors.study(
        model,
        {shift: p.contrast for shift, p in pairs.items()},
        asked,
        tasks.naive_prompts(N_INPUTS),
        heads,
        numbers,
        zero,
        k,
    )

    p, answers = (
        tasks.evaluation_pairs(task, k, shots, 2 * n_prompts, generator),
        tasks.answer_positions(shots),
    )
    assert p.operands_changed is not None
    sources = {
        "base": p.base,
        "operands_changed": p.operands_changed,
        "same_k": p.contrast.roll(1, 0),
    }
    tokens, expected, query = tasks.off_by_every_k(
        task, shots, max(n_prompts, -(-N_EXAMPLES // (len(tasks.SHIFTS) * shots))), generator
    )
    order = torch.randperm(len(tokens), generator=generator)
    tokens, expected, query = tokens[order], expected[order], query[order]
    shown, x, y = (tasks.numbers_at(tokens, answers + offset) for offset in (0, -4, -2))
    found["reading"] = {
        "inputs": reading.inputs_apart(
            model, p.base, p.contrast, p.base_answers, p.contrast_answers, sources, heads
        ),
        "looks_for": reading.looks_for(model, tokens, answers, expected, shown, query, heads),
        "hands_over": reading.hands_over(
            model, tokens, answers, expected, shown, numbers, tasks.NUMBERS[0], heads
        ),
        "wrote": reading.wrote(model, tokens, answers, x, y, expected, shown, readers)
        if readers and task == "addition"
        else {},
    }
    others = [
        tasks.off_by_every_k(other, shots, max(1, n_prompts // 5), generator)[:2]
        for other in tasks.ON_NUMBERS
        if other != task
    ]
    shifted = tasks.off_by_every_k(task, shots, n_prompts, generator)[:2]
    other_tokens, other_expected = (torch.cat(parts) for parts in zip(*others))
    mixed = tasks.dealt(other_tokens, other_expected, generator)
    found["probe"] = probes(
        model,
        {"consistent": shifted, "dealt": tasks.dealt(*shifted, generator)},
        mixed,
        answers,
        tasks.ZERO,
        generator,
    )
    return found


def main(argv: list[str] | None = None) -> int:
    def work() -> int:
        parser = Parser(prog="patch.py", description=__doc__.splitlines()[0])
        add_run_flag(parser)
        parser.add_argument(
            "--device", default="auto", help="auto, cpu, cuda (default: %(default)s)"
        )
        parser.add_argument(
            "--task",
            default="addition",
            help=f"one of: {', '.join(tasks.TASKS)} (default: %(default)s)",
        )
        parser.add_argument(
            "--k",
            type=int,
            default=1,
            help="the shift, or the base of base_addition (default: %(default)s)",
        )
        parser.add_argument(
            "--shots", type=int, default=8, help="examples in a prompt (default: %(default)s)"
        )
        parser.add_argument(
            "--prompts", type=int, default=100, help="prompts to patch (default: %(default)s)"
        )
        parser.add_argument(
            "--seed", type=int, default=0, help="which prompts are drawn (default: %(default)s)"
        )
        parser.add_argument(
            "--freeze-mlps",
            action="store_true",
            help="direct paths do not pass through MLPs (default: they do, as in the paper)",
        )
        parser.add_argument(
            "--max-memory",
            type=float,
            metavar="GIB",
            help="memory that the sweep may use (default: 2; on CUDA a quarter of what is free)",
        )
        parser.add_argument(
            "--json",
            metavar="PATH",
            help="where the findings go (default: circuit.json in the run's folder, which every trace replaces)",
        )
        add_flags(parser, "criteria of the groups", Criteria())
        arguments = parser.parse_args(argv)
        criteria, device = (
            from_flags(arguments, Criteria()),
            join(pick_device(arguments.device, float64=True)),
        )
        folders = chosen_run(arguments)
        model, _ = load_run(folders.run, device, tasks.VOCABULARY)
        if tasks.n_tokens(arguments.shots) > model.cfg.n_ctx:
            raise UserError(
                f"--shots {arguments.shots} makes prompts of {tasks.n_tokens(arguments.shots)} tokens; the model's context holds {model.cfg.n_ctx}"
            )
        if arguments.k == 0:
            raise UserError(
                "--k 0 leaves nothing to trace: base and contrast prompts would be the same"
            )
        path = Path(arguments.json) if arguments.json else folders.to_write("circuit.json")
        check_writable(path)
        if not 0 <= arguments.seed < 2**63 or arguments.prompts > MOST_PROMPTS:
            raise UserError(
                f"--seed must be from 0 to 2^63 - 1, and --prompts at most {MOST_PROMPTS}"
            )
        folders.announce()
        try:
            circuit = trace(
                model,
                arguments.task,
                arguments.k,
                arguments.shots,
                arguments.prompts,
                arguments.seed,
                criteria,
                arguments.freeze_mlps,
                arguments.max_memory,
            )
        except ValueError as error:
            raise UserError(str(error)) from None
        if is_main():
            save_json(path, circuit)
        print(show(circuit, colour=sys.stdout.isatty()))
        print(f"everything is in {path}")
        return 0

    return run_together(work)


if __name__ == "__main__":
    sys.exit(main())
