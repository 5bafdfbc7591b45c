"""What the FI heads hand over, and where it is made: `python analyses.py --run out/default`, after patch.py.

Three analyses of one run, joined here with the tasks' prompts: function vectors (`minifunc/function_vectors.py`), Q, K and V apart with
a reading of the weights (`minifunc/reading.py`), and linear probes for the difference between shown and expected answers (`minifunc/probe.py`).
The groups of heads come from circuit.json, and what is found is added to it.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tasks
from minifunc import function_vectors, reading
from minifunc.flags import Parser
from minifunc.model import Transformer
from minifunc.probe import fit, halves, largest_step, one_hot, r2, readable, writers
from minifunc.runs import UserError, check_writable, load_json, load_run, pick_device, run_main, save_json

N_INPUTS = 10  # inputs 0..9 of the naive prompts
SHIFTS = range(-tasks.MAX_SHIFT, tasks.MAX_SHIFT + 1)
NUMERIC = [name for name, symbol in tasks.TASKS.items() if symbol not in tasks.ON_LETTERS]


def naive_prompts() -> Tensor:
    """`2 same _ = 2 ; 5 same _ =`: [N_INPUTS, N_INPUTS - 1, pos], row x asks for x after each demonstration but that of x itself."""
    ask = [[tasks.encode(f"{demo} same _ = {demo}; {x} same _ =") for demo in range(N_INPUTS) if demo != x] for x in range(N_INPUTS)]
    return torch.stack([torch.stack(row) for row in ask])


def numbers_at(tokens: Tensor, positions: Tensor) -> Tensor:
    """Number tokens [n, pos] at some positions, as numbers: [n, m]."""
    return tokens[:, positions] - tasks.ZERO


def documents(task: str, shots: int, n_prompts: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts off by every k from -4 to 4: tokens [9 * n_prompts, pos], f(x, y) of their examples [·, shots] and of their query [·], as numbers."""
    pairs = [tasks.evaluation_pairs(task, k, shots, n_prompts, generator) for k in SHIFTS]
    expected = torch.cat([numbers_at(p.base, tasks.answer_positions(shots)) for p in pairs])
    return torch.cat([p.contrast for p in pairs]), expected, torch.cat([p.base_answers for p in pairs]) - tasks.ZERO


def dealt(tokens: Tensor, expected: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The same examples dealt anew over all prompts, so that one example's difference tells nothing of the next one's; queries stay."""
    n_prompts, shots = expected.shape
    examples = tokens[:, 1 : 1 + tasks.EXAMPLE * shots].reshape(-1, tasks.EXAMPLE)
    order = torch.randperm(len(examples), generator=generator)
    mixed = examples[order].reshape(n_prompts, -1)
    return torch.cat([tokens[:, :1], mixed, tokens[:, 1 + mixed.shape[1] :]], dim=1), expected.flatten()[order].reshape(n_prompts, shots)


def probes(model: Transformer, task: str, shots: int, n_prompts: int, generator: torch.Generator) -> dict[str, Any]:
    """R² of linear probes along the residual stream, on prompts that were not fitted.

    difference = c - f(x, y), shown = c, expected = f(x, y), shuffled = the differences of other examples (must come to about 0), at
        answer          the shown answers
        equals, y       the `=` before them and the second operand: before c is shown, the difference can only come from earlier examples
    consistent: one k in a prompt. dealt: the examples dealt anew, so nothing but the example itself tells its difference.
    from_shown_alone: what one table over c achieves, no stream at all. other_functions: probes fitted at the answers of all other numeric
    functions, scored on this one. made_by: what wrote into the stream where the difference's R² rises most, in dealt documents.
    """
    places = tasks.answer_positions(shots)
    tokens, expected, _ = documents(task, shots, n_prompts, generator)
    kinds = {"consistent": (tokens, expected), "dealt": dealt(tokens, expected, generator)}
    found: dict[str, Any] = {"sites": writers(model), "n_prompts": len(tokens), "consistent": {}, "dealt": {}}

    def targets(rows: Tensor, plain: Tensor) -> dict[str, Tensor]:
        shown = numbers_at(rows, places)
        return {"difference": shown - plain, "shown": shown, "expected": plain}

    for kind, (rows, plain) in kinds.items():
        numbers = targets(rows, plain)
        numbers["shuffled"] = numbers["difference"].flatten()[torch.randperm(plain.numel(), generator=generator)].reshape(plain.shape)
        train, test = ((rows[part], {name: values[part] for name, values in numbers.items()}) for part in halves(rows, generator))
        for place, offset in (("answer", 0), ("equals", -1), ("y", -2)):
            found[kind][place] = readable(model, train, test, places + offset)
        table, y = ([one_hot_numbers(part[1]["shown"].flatten()) for part in (train, test)], [part[1]["difference"].flatten()[:, None] for part in (train, test)])
        found[kind]["from_shown_alone"] = round(r2(fit(table[0], y[0]), table[1], y[1]).item(), 4)
    others = [documents(other, shots, max(1, n_prompts // 3), generator)[:2] for other in NUMERIC if other != task]
    there, plain = (torch.cat(parts) for parts in zip(*others))
    mixed = dealt(there, plain, generator)
    found["other_functions"] = readable(model, (mixed[0], targets(*mixed)), (kinds["dealt"][0], targets(*kinds["dealt"])), places)
    found["made_by"], found["step"] = largest_step(found["dealt"]["answer"]["difference"], found["sites"])
    return found


def one_hot_numbers(values: Tensor) -> Tensor:
    """Numbers [n] → [n, n_numbers] float64."""
    return torch.nn.functional.one_hot(values - tasks.NUMBERS[0], len(tasks.NUMBERS)).double()


def analyse(model: Transformer, heads: Sequence[str], readers: Sequence[str], task: str = "addition", k: int = 1, shots: int = 8, n_prompts: int = 200, seed: int = 0) -> dict[str, Any]:
    """All three, for the FI heads `heads` and the heads `readers` that gather the expected answer; keys to add to circuit.json.

    function_vectors, function_vectors_by_k, function_vector_scores; reading: inputs, looks_for, hands_over, wrote; probe.
    Raises ValueError where there is no FI head, or for a task that is not on numbers.
    """
    if not heads:
        raise ValueError("there is no function-induction head to analyse")
    if task not in NUMERIC:
        raise ValueError(f"the difference of shown and expected answers needs numbers; {task} has none")
    started, generator = time.perf_counter(), torch.Generator().manual_seed(seed)
    numbers, zero = torch.tensor([tasks.TOKEN[str(n)] for n in tasks.NUMBERS]), -tasks.NUMBERS[0]
    pairs = {shift: tasks.evaluation_pairs(task, shift, shots, 2 * n_prompts, generator) for shift in SHIFTS}
    asked = {shift: p.base_answers - tasks.ZERO for shift, p in pairs.items()}
    found = function_vectors.study(model, {shift: p.contrast for shift, p in pairs.items()}, asked, naive_prompts(), heads, numbers, zero, k)

    p, answers = tasks.evaluation_pairs(task, k, shots, n_prompts, generator), tasks.answer_positions(shots)
    sources = {"base": p.base, "operands_changed": p.operands_changed, "unrelated": p.contrast.roll(1, 0)}
    tokens, expected, query = documents(task, shots, n_prompts, generator)
    order = torch.randperm(len(tokens), generator=generator)
    tokens, expected, query = tokens[order], expected[order], query[order]
    shown, x, y = (numbers_at(tokens, answers + offset) for offset in (0, -4, -2))
    found["reading"] = {
        "inputs": reading.inputs_apart(model, p.base, p.contrast, p.base_answers, p.contrast_answers, sources, heads),
        "looks_for": reading.looks_for(model, tokens, answers, expected, shown, query, heads),
        "hands_over": reading.hands_over(model, tokens, answers, expected, shown, numbers, tasks.NUMBERS[0], heads),
        "wrote": reading.wrote(model, tokens, answers, x, y, expected, shown, readers) if readers and task == "addition" else {},
    }
    found["probe"] = probes(model, task, shots, n_prompts, generator)
    found["analyses_seconds"] = round(time.perf_counter() - started, 2)
    return found


# ---------------------------------------------------------------- what the terminal shows


def show(found: dict[str, Any], k: int) -> str:
    """All findings as text."""
    lines, probe = [function_vectors.show(found, k), "", reading.show(found["reading"]), ""], found["probe"]
    width = max(map(len, probe["sites"])) + 3
    lines.append(f"linear probes, R² on prompts not fitted, after each writer{'':15}" + "".join(f"{site:>{width}}" for site in probe["sites"]))
    rows = [(kind, place, target) for kind in ("dealt", "consistent") for place in ("answer", "equals") for target in ("difference", "expected", "shuffled")]
    for kind, place, target in rows:
        lines.append(f"  {kind + ' documents, at ' + place:34}{target:38}" + "".join(f"{value:{width}.3f}" for value in probe[kind][place][target]))
    lines.append(f"  {'fitted on other functions, at answer':34}{'  difference':36}" + "".join(f"{value:{width}.3f}" for value in probe["other_functions"]["difference"]))
    lines.append(f"  from the shown answer alone: {probe['dealt']['from_shown_alone']:.3f}. The difference becomes readable at the answers by {probe['made_by']} ({probe['step']:+.3f}).")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    def work() -> int:
        parser = Parser(prog="analyses.py", description=__doc__.splitlines()[0])
        parser.add_argument("--run", default="out/default", help="folder of a traced run (default: %(default)s)")
        parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (default: %(default)s)")
        parser.add_argument("--prompts", type=int, default=200, help="prompts for each k (default: %(default)s)")
        parser.add_argument("--seed", type=int, default=0, help="which prompts are drawn (default: %(default)s)")
        parser.add_argument("--json", metavar="PATH", help="where circuit.json with the findings goes (default: circuit.json in the run's folder)")
        arguments = parser.parse_args(argv)
        model, config = load_run(arguments.run, pick_device(arguments.device))
        if config["vocabulary"] != tasks.VOCABULARY:
            raise UserError(f"{arguments.run} was trained on another vocabulary than this version has")
        circuit = load_json(Path(arguments.run) / "circuit.json")
        path = Path(arguments.json) if arguments.json else Path(arguments.run) / "circuit.json"
        check_writable(path)
        if not 0 <= arguments.seed < 2**63:
            raise UserError("--seed must be from 0 to 2^63 - 1")
        try:
            groups, k = circuit["groups"], circuit["k"]
            found = analyse(model, groups["function_induction"], groups["expected_answer"], circuit["task"], k, circuit["shots"], arguments.prompts, arguments.seed)
        except (KeyError, TypeError):
            raise UserError(f"{Path(arguments.run) / 'circuit.json'} is no finding of patch.py") from None
        except ValueError as error:
            raise UserError(str(error)) from None
        save_json(path, circuit | found)
        print(show(found, k))
        return 0

    return run_main(work)


if __name__ == "__main__":
    sys.exit(main())
