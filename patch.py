"""Traces the circuit of a trained run: `python patch.py --run out/default`.

In the paper's order: does the model do the task? Which heads write the answer, what do those read,
and from which heads (discovery, under both contrasts)? Is that the whole story (faithfulness,
completeness, minimality)? What is left when heads are taken out (ablation, with controls)? What do
the heads write? Do they serve other tasks (reuse)? Each finding is printed when it is known; all of
them are in circuit.json.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Generator
from tqdm import tqdm

import tasks
from minifunc.analysis import rows, shift_swap
from minifunc.analysis.ablations import group_ablations
from minifunc.analysis.completeness import evaluate_circuits
from minifunc.analysis.study import answers_of, asked, averaged, replacements, reuse, some, writings
from minifunc.circuit import Criteria, discover
from minifunc.model import Transformer
from minifunc.patching import PathPatcher
from minifunc.report.terminal import told
from minifunc.support.errors import UserError
from minifunc.support.evaluation import accuracy, last_logits
from minifunc.support.files import check_writable, save_json
from minifunc.support.flags import Parser, add_study_flags, check_study, from_flags, pick_device
from minifunc.support.processes import is_main, join, run_together
from minifunc.support.runs import add_run_flag, chosen_run, load_run

N_DRAWS = 50  # random groups of each kind beside an ablated one
N_COUNTED = 500  # prompts on which right answers are counted, at least
N_EVALUATED = 100  # prompts on which circuits are measured
N_SEARCH = 50  # prompts on which circuits and subsets are looked for, and many random groups run
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
        """By what is changed: the shown answers (the paper's contrast), or the operands."""
        if pairs.operands_changed is None:
            said = f"{self.task} cannot be traced: it has no second contrast, with other operands"
            raise ValueError(said)
        patchers = {}
        for changed, base in (("answers", pairs.base), ("operands", pairs.operands_changed)):
            prompts = (base, pairs.contrast, *answers_of(pairs))
            patchers[changed] = PathPatcher(model, *prompts, self.freeze_mlps, self.max_memory)
        return patchers


Tell = Callable[[str, dict[str, Any]], None]


def trace(model: Transformer, study: Study, criteria: Criteria, tell: Tell) -> dict[str, Any]:
    """The whole study of one run; returns what circuit.json holds.

    `tell(step, circuit)` is called when something is found, with all that is known by then.
    """
    started = time.perf_counter()
    generator = Generator().manual_seed(study.seed)
    for_tracing = study.pairs(study.prompts, generator)
    for_counting = study.pairs(max(N_COUNTED, study.prompts), generator)
    patchers = study.patchers(model, for_tracing)
    circuit: dict[str, Any] = {}
    with tqdm(total=6, desc="patch", mininterval=0.5, disable=None) as bar:

        def known(findings: dict[str, Any], *steps: str) -> None:
            circuit.update(findings)
            for step in steps:
                tell(step, circuit)
            bar.update()

        # 1. Does the model do the task, and which heads bring the answer to the end?
        shares = solving(model, for_counting)
        circuit |= asked(tasks, model, study, for_tracing) | {"criteria": vars(criteria)}
        circuit |= {"accuracy": shares, "accuracy_prompts": len(for_counting.base)}
        known(rows.direct(patchers), "task", "direct")

        # 2. Discovery: from the logits down, under both contrasts.
        solves = shares["contrast_prompt"]["contrast"] >= criteria.solves
        shown = tasks.answer_positions(study.shots)
        found = discover(patchers, shown, criteria, solves)
        known(rows.discovered(found, circuit), "circuit")
        groups, fi = found.groups, found.groups["function_induction"]
        if not fi:
            known(rows.NOTHING_FOUND, "conclusion")
            return circuit | {"seconds": round(time.perf_counter() - started, 2)}

        # 3. Is that the whole circuit?
        to_search = replacements(tasks, model, some(for_tracing, slice(N_SEARCH)))
        to_judge = replacements(tasks, model, some(for_counting, slice(N_EVALUATED)))
        evaluation = evaluate_circuits(to_search, to_judge, groups, criteria.faithful, generator)
        known({"evaluation": evaluation}, "enough")

        # 4. What is left without them? With controls.
        to_count = replacements(tasks, model, for_counting)
        base = replace(to_count, ablator=to_count.ablator.on(for_counting.base))
        fewer = replacements(tasks, model, some(for_counting, slice(N_SEARCH)))
        ablation = group_ablations((to_count, base, fewer), groups, (N_DRAWS, generator))
        evaluation = evaluation | {"ablation": ablation}
        evaluation |= shift_swap.study(tasks, model, fi, study)
        known({"evaluation": evaluation}, "ablation")

        # 5. What do the FI heads look for, hand over, write and compute?
        circuit |= averaged(tasks, model, found, study)
        known(writings(tasks, model, fi, study, generator), "writing")

        # 6. Do the same heads serve other tasks?
        reused = reuse(tasks, model, fi, REUSED, study.shots, generator)
        known({"reuse": reused}, "reuse", "conclusion")
    return circuit | {"seconds": round(time.perf_counter() - started, 2)}


def solving(model: Transformer, pairs: tasks.Pairs) -> dict[str, dict[str, float]]:
    """Shares of the base and the contrast answer, given base and contrast prompts."""
    shares = {}
    for prompt, tokens in (("base_prompt", pairs.base), ("contrast_prompt", pairs.contrast)):
        logits = last_logits(model, tokens)
        base, contrast = (accuracy(logits, answers) for answers in answers_of(pairs))
        shares[prompt] = {"base": base, "contrast": contrast}
    return shares


def work(argv: list[str] | None) -> int:
    parser = Parser("patch.py", __doc__)
    add_run_flag(parser)
    parser.epilog = f"Tasks: {', '.join(tasks.TASKS)}. k is a shift, or the base of base_addition."
    add_study_flags(parser, Study(), Criteria())
    arguments = parser.parse_args(argv)
    study, criteria = from_flags(arguments, Study()), from_flags(arguments, Criteria())
    device = join(pick_device(arguments.device, float64=True))
    folders = chosen_run(arguments)
    model, _ = load_run(folders.run, device, tasks.VOCABULARY)
    check_study(study, tasks.n_tokens(study.shots), model.cfg.n_ctx)
    path = arguments.json or folders.to_write("circuit.json")
    check_writable(path)
    folders.announce()

    def tell(step: str, circuit: dict[str, Any]) -> None:
        for line in told(step, circuit, arguments.full):
            tqdm.write(line)

    try:
        circuit = trace(model, study, criteria, tell)
    except ValueError as error:
        raise UserError(str(error)) from None
    if is_main():
        save_json(path, circuit)
    print(f"everything is in {path}, {circuit['seconds']:.0f} s")
    print(f"next: {folders.makes('report')}")
    return 0


def main(argv: list[str] | None = None) -> int:
    return run_together(lambda: work(argv))


if __name__ == "__main__":
    sys.exit(main())
