"""Traces the circuit of a trained run: `python patch.py --run out/default`.

In the paper's order: does the model do the task? Which heads write the answer, what do those read,
and from which heads (discovery, under both contrasts)? Is that the whole story (faithfulness,
completeness, minimality)? What is left when heads are taken out (ablation, with controls)? What do
the heads write? Do they serve other tasks (reuse)? Each finding is printed when it is known; all of
them are in circuit.json.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor
from tqdm import tqdm

import tasks
from minifunc.ablation import Ablator, random_group
from minifunc.analysis import function_vectors, reading, rows
from minifunc.analysis.ablations import group_ablations, reuse_rows
from minifunc.analysis.activations import Examples
from minifunc.analysis.completeness import evaluate_circuits
from minifunc.analysis.probe import probes
from minifunc.analysis.roles import readers, sensitivity
from minifunc.analysis.rows import Prompts
from minifunc.circuit import Criteria, discover
from minifunc.model import Transformer
from minifunc.patching import PathPatcher
from minifunc.report.terminal import told
from minifunc.support.errors import UserError
from minifunc.support.evaluation import accuracy, last_logits
from minifunc.support.files import check_writable, save_json
from minifunc.support.flags import Parser, add_flags, from_flags, pick_device
from minifunc.support.processes import is_main, join, run_together
from minifunc.support.runs import add_run_flag, chosen_run, load_run, weights_hash

N_DRAWS = 50  # random groups of each kind beside an ablated one
N_OTHER_DRAWS = 10  # random groups for each reused task
N_COUNTED = 500  # prompts on which right answers are counted, at least
N_EVALUATED = 100  # prompts on which circuits, single readers and reuse are measured
N_SEARCH = 50  # prompts on which circuits and subsets are looked for, and many random groups run
N_INPUTS = 10  # inputs 0..9 of function vectors
N_EXAMPLES = 4000  # at least, behind shares of variance, so that every pair of labels occurs
MOST_PROMPTS = 100_000
REUSED_TASKS = ("addition", "caesar", "base_addition", "choice")
REUSED = [(task, k) for task in REUSED_TASKS for k in tasks.TASKS[task].ks if k]


@dataclass(frozen=True)
class Study:
    """What is traced, and on which prompts. k is the shift, or the base of base_addition."""

    task: str = "addition"
    k: int = 1
    shots: int = 8
    prompts: int = 100
    seed: int = 0
    freeze_mlps: bool = False
    max_memory: float | None = None  # GiB that a sweep may use

    def pairs(self, n: int, generator: Generator) -> tasks.Pairs:
        """n pairs of prompts; in base k, those whose asked sum carries."""
        return tasks.evaluation_pairs(self.task, self.k, self.shots, n, generator, carry=True)

    def patchers(self, model: Transformer, pairs: tasks.Pairs) -> dict[str, PathPatcher]:
        """By contrast: with other shown answers (the paper's), and with other operands."""
        if pairs.operands_changed is None:
            said = f"{self.task} cannot be traced: it has no second contrast, with other operands"
            raise ValueError(said)
        patchers = {}
        for contrast, base in (("answers", pairs.base), ("operands", pairs.operands_changed)):
            prompts = (base, pairs.contrast, *answers_of(pairs))
            patchers[contrast] = PathPatcher(model, *prompts, self.freeze_mlps, self.max_memory)
        return patchers


Tell = Callable[[str, dict[str, Any]], None]


def trace(model: Transformer, study: Study, criteria: Criteria, tell: Tell) -> dict[str, Any]:
    """The whole study of one run; returns what circuit.json holds.

    `tell(step, circuit)` is called when something is found, with all that is known by then.
    """
    started, generator = time.perf_counter(), Generator().manual_seed(study.seed)
    pairs = study.pairs(study.prompts, generator)  # to trace with: patching averages logits
    many = study.pairs(max(N_COUNTED, study.prompts), generator)  # to count right answers on
    patchers = study.patchers(model, pairs)
    circuit: dict[str, Any] = {}
    with tqdm(total=6, desc="patch", mininterval=0.5, disable=None) as bar:

        def known(findings: dict[str, Any], *steps: str) -> None:
            circuit.update(findings)
            for step in steps:
                tell(step, circuit)
            bar.update()

        # 1. Does the model do the task, and which heads write the answer?
        shares = solving(model, many)
        circuit |= asked(model, study, pairs) | {"criteria": vars(criteria)}
        circuit |= {"accuracy": shares, "accuracy_prompts": len(many.base)}
        known(rows.direct(patchers), "task", "direct")

        # 2. Discovery: from the logits down, under both contrasts.
        solves = shares["contrast_prompt"]["contrast"] >= criteria.solves
        answers = tasks.answer_positions(study.shots)
        found = discover(patchers, answers, criteria, solves)
        known(rows.discovered(found, circuit), "circuit")
        fi, gathering = (found.groups[name] for name in ("function_induction", "expected_answer"))
        evaluation: dict[str, Any] = {"ablation": [], "sensitivity": []}
        if not fi:
            known({"readers": {}, "evaluation": evaluation, "reuse": []}, "conclusion")
            return circuit | {"seconds": round(time.perf_counter() - started, 2)}

        # 3. Is that the whole circuit? And which heads bring what was to be expected?
        search = replacements(model, first(pairs, N_SEARCH))
        few = replacements(model, first(many, N_EVALUATED))
        evaluation |= evaluate_circuits(search, few, found.groups, criteria.faithful, generator)
        roles = readers(few, range(int(answers[-1]) + 1), found, criteria)
        known({"evaluation": evaluation, "readers": roles}, "enough")

        # 4. What is left without them? With controls, and with other thresholds.
        counted, fewer = replacements(model, many), replacements(model, first(many, N_SEARCH))
        prompts = (counted, replace(counted, ablator=counted.ablator.on(many.base)), fewer)
        draws = (N_DRAWS, generator)
        evaluation["ablation"] = group_ablations(prompts, found.groups, roles, draws)
        evaluation["sensitivity"] = sensitivity(few, found, criteria)
        known({"evaluation": evaluation}, "ablation")

        # 5. What do the FI heads look for, hand over and write?
        on_numbers = study.task in tasks.ON_NUMBERS
        known(writings(model, fi, gathering, study, generator) if on_numbers else {}, "writing")

        # 6. Do the same heads serve other tasks?
        known({"reuse": reuse(model, fi, REUSED, study.shots, generator)}, "reuse", "conclusion")
    return circuit | {"seconds": round(time.perf_counter() - started, 2)}


# ---------------------------------------------------------------- the prompts of each step


def asked(model: Transformer, study: Study, pairs: tasks.Pairs) -> dict[str, Any]:
    """What is studied, with an example of at most four shots."""
    based = tasks.TASKS[study.task].wrapper == "base"
    beginning = tasks.n_tokens(min(study.shots, 4)) - 4
    example = {}
    for name, tokens in (("base", pairs.base[0]), ("contrast", pairs.contrast[0])):
        example[name] = tasks.decode(torch.cat([tokens[:beginning], tokens[-4:]]))
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


def solving(model: Transformer, pairs: tasks.Pairs) -> dict[str, dict[str, float]]:
    """Shares of the base and the contrast answer, given base and contrast prompts."""
    shares = {}
    for prompt, tokens in (("base_prompt", pairs.base), ("contrast_prompt", pairs.contrast)):
        logits = last_logits(model, tokens)
        base, contrast = (accuracy(logits, answers) for answers in answers_of(pairs))
        shares[prompt] = {"base": base, "contrast": contrast}
    return shares


def some(pairs: tasks.Pairs, which: slice | Tensor) -> tasks.Pairs:
    """Some of the pairs, by a slice or by a mask [n_prompts]."""
    tensors = {name: x[which] for name, x in vars(pairs).items() if isinstance(x, Tensor)}
    return replace(pairs, **tensors)  # type: ignore[arg-type]


def first(pairs: tasks.Pairs, n: int) -> tasks.Pairs:
    return some(pairs, slice(n))


def answers_of(pairs: tasks.Pairs) -> tuple[Tensor, Tensor]:
    return pairs.base_answers, pairs.contrast_answers


def replacements(model: Transformer, pairs: tasks.Pairs) -> Prompts:
    """The contrast prompts, with all that is put in place of what a head sends there.

    base: what it sends on the paired base prompt; mean: its mean over base prompts; unrelated: what
    it sends on another pair's base prompt; same_k: on another pair's contrast prompt; same_answer:
    on one that asks for the same answer as well; operands_changed: on the prompt with the same
    shown answers, made plain by other operands.
    """
    assert pairs.operands_changed is not None
    sources = {
        "base": pairs.base,
        "operands_changed": pairs.operands_changed,
        "unrelated": pairs.base.roll(1, 0),
        "same_k": pairs.contrast.roll(1, 0),
        "same_answer": donors(pairs),
    }
    ablator = Ablator(model, pairs.contrast, sources, means={"mean": pairs.base})
    return Prompts(ablator, answers_of(pairs))


def donors(pairs: tasks.Pairs) -> Tensor:
    """For each contrast prompt another with the same k and answer, if any: [n_prompts, pos]."""
    n, generator = len(pairs.contrast), Generator().manual_seed(len(pairs.contrast))
    pool = tasks.evaluation_pairs(pairs.task, pairs.k, pairs.shots, 20 * n, generator)
    chosen = torch.zeros(n, dtype=torch.int64)
    for answer in pairs.contrast_answers.unique():
        mine = (pairs.contrast_answers == answer).nonzero()[:, 0]
        theirs = (pool.contrast_answers == answer).nonzero()[:, 0]
        if len(theirs):
            chosen[mine] = theirs[mine % len(theirs)]  # so that not all take the same donor
    return pool.contrast[chosen]


def reuse(
    model: Transformer,
    heads: Sequence[str],
    questions: Sequence[tuple[str, int]],
    shots: int,
    generator: Generator,
) -> list[dict[str, Any]]:
    """`reuse_rows` of each (task, k) that has prompts; sums in base k by whether they carry."""
    drawn = [random_group(heads, model.cfg.n_heads, generator) for _ in range(N_OTHER_DRAWS)]
    found = []
    for task, k in questions:
        try:
            pairs = tasks.evaluation_pairs(task, k, shots, N_EVALUATED, generator)
        except ValueError:
            continue
        kinds = {"all": pairs.carry}
        if tasks.TASKS[task].wrapper == "base":
            kinds = {"carry": pairs.carry, "no carry": ~pairs.carry}
        for items, which in kinds.items():
            part = some(pairs, which)
            if len(part.base):
                ablator = Ablator(model, part.contrast, {"base": part.base})
                four = reuse_rows(Prompts(ablator, answers_of(part)), part.base, heads, drawn)
                found += [{"task": task, "k": k, "items": items, **row} for row in four]
    return found


def writings(
    model: Transformer,
    fi: Sequence[str],
    gathering: Sequence[str],
    study: Study,
    generator: Generator,
) -> dict[str, Any]:
    """For a function on numbers: what the FI heads write and read, where numbers can be read off.

    function_vectors…: what they write. reading: what their q, k and v are for, and what the heads
    `gathering` the expected answer write. probe: where numbers can be read off the stream.
    """
    task, shots, n = study.task, study.shots, study.prompts
    answers = tasks.answer_positions(shots)
    tokens = torch.tensor([tasks.TOKEN[str(number)] for number in tasks.NUMBERS])
    numbers = function_vectors.Numbers(tokens, tasks.NUMBERS[0])
    asking = {}
    for shift in tasks.SHIFTS:
        p = replace(study, k=shift).pairs(3 * n, generator)
        asking[shift] = (p.contrast, p.base_answers - tasks.ZERO)
    naive = tasks.naive_prompts(N_INPUTS)
    found = function_vectors.study(model, asking, naive, fi, numbers, study.k)

    p = study.pairs(2 * n, generator)
    assert p.operands_changed is not None
    sources = {"base": p.base, "operands_changed": p.operands_changed}
    sources["same_k"] = p.contrast.roll(1, 0)
    inputs = reading.inputs_apart(model, p.base, p.contrast, *answers_of(p), sources, fi)
    enough = max(n, -(-N_EXAMPLES // (len(tasks.SHIFTS) * shots)))  # prompts of each k
    tokens, expected, query = tasks.off_by_every_k(task, shots, enough, generator)
    order = torch.randperm(len(tokens), generator=generator)
    shown = examples(tokens[order], expected[order], answers)
    x, y = (tasks.numbers_at(shown.tokens, answers + offset) for offset in (-4, -2))
    gathering = gathering if task == "addition" else []
    found["reading"] = {
        "inputs": inputs,
        "looks_for": reading.looks_for(model, shown, query[order], fi),
        "hands_over": reading.hands_over(model, shown, numbers, fi),
        "wrote": reading.wrote(model, shown, x, y, gathering) if gathering else {},
    }
    found["probe"] = probed(model, study, generator)
    return found


def examples(tokens: Tensor, expected: Tensor, answers: Tensor) -> Examples:
    return Examples(tokens, answers, expected, tasks.numbers_at(tokens, answers))


def probed(model: Transformer, study: Study, generator: Generator) -> dict[str, Any]:
    """Linear probes on documents of one k, on examples dealt anew, and on other functions."""
    answers = tasks.answer_positions(study.shots)
    others = []
    for task in tasks.ON_NUMBERS:
        if task != study.task:
            few = max(1, study.prompts // 5)
            others.append(tasks.off_by_every_k(task, study.shots, few, generator)[:2])
    shifted = tasks.off_by_every_k(study.task, study.shots, study.prompts, generator)[:2]
    other_tokens, other_expected = (torch.cat(parts) for parts in zip(*others))
    mixed = tasks.dealt(other_tokens, other_expected, generator)
    dealt = tasks.dealt(*shifted, generator)
    kinds = {"consistent": examples(*shifted, answers), "dealt": examples(*dealt, answers)}
    return probes(model, kinds, examples(*mixed, answers), generator)


# ---------------------------------------------------------------- the command line


def work(argv: list[str] | None) -> int:
    parser = Parser(prog="patch.py", description=__doc__.splitlines()[0])
    add_run_flag(parser)
    told_of_k = "k is the shift, or the base of base_addition"
    parser.epilog = f"tasks: {', '.join(tasks.TASKS)}; {told_of_k}"
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default: auto)")
    parser.add_argument("--json", type=Path, help="where the findings go (default: circuit.json)")
    parser.add_argument("--full", action="store_true", help="print all that is found")
    add_flags(parser, "what is traced", Study())
    parser.add_argument(
        "--freeze-mlps",
        action="store_true",
        help="direct paths do not pass through MLPs (default: they do, as in the paper)",
    )
    parser.add_argument(
        "--max-memory",
        type=float,
        metavar="GIB",
        help="memory that a sweep may use (default: 2; on CUDA a quarter of what is free)",
    )
    add_flags(parser, "criteria of the groups", Criteria())
    arguments = parser.parse_args(argv)
    study, criteria = from_flags(arguments, Study()), from_flags(arguments, Criteria())
    device = join(pick_device(arguments.device, float64=True))
    folders = chosen_run(arguments)
    model, _ = load_run(folders.run, device, tasks.VOCABULARY)
    n_tokens = tasks.n_tokens(study.shots)
    if n_tokens > model.cfg.n_ctx:
        said = f"--shots {study.shots} makes prompts of {n_tokens} tokens"
        raise UserError(f"{said}; the model's context holds {model.cfg.n_ctx}")
    if study.k == 0:
        raise UserError(
            "--k 0 leaves nothing to trace: base and contrast prompts would be the same"
        )
    path = arguments.json or folders.to_write("circuit.json")
    check_writable(path)
    if not 0 <= study.seed < 2**63 or study.prompts > MOST_PROMPTS:
        raise UserError(f"--seed must be from 0 to 2^63 - 1, and --prompts at most {MOST_PROMPTS}")

    folders.announce()

    def tell(step: str, circuit: dict[str, Any]) -> None:
        for line in told(step, circuit, arguments.full, colour=sys.stdout.isatty()):
            tqdm.write(line)

    try:
        circuit = trace(model, study, criteria, tell)
    except ValueError as error:
        raise UserError(str(error)) from None
    if is_main():
        save_json(path, circuit)
    print(f"everything is in {path}, {circuit['seconds']:.0f} s")
    print("next: make report")
    return 0


def main(argv: list[str] | None = None) -> int:
    return run_together(lambda: work(argv))


if __name__ == "__main__":
    sys.exit(main())
