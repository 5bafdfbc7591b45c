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
from minifunc.probe import correlation, fit, halves, largest_step, r2, readable, stream, writers
from minifunc.runs import UserError, check_writable, load_json, load_run, pick_device, run_main, save_json

N_INPUTS = 10  # inputs 0..9 of the naive prompts
SHIFTS = range(tasks.NUMBERS[0], 1 - tasks.NUMBERS[0])  # -4..4
OTHERS = ("subtraction", "maximum", "minimum", "first", "second", "same")  # the other functions on numbers
N_EXAMPLES = 4000  # at least so many examples stand behind the shares of variance, so that every pair of labels occurs


def naive_prompts() -> Tensor:
    """`2 same _ = 2 ; 5 same _ =`: [N_INPUTS, N_INPUTS - 1, pos], row x asks for x after each demonstration but that of x itself."""
    ask = [[f"<bos> {demo} same _ = {demo} ; {x} same _ =".split() for demo in range(N_INPUTS) if demo != x] for x in range(N_INPUTS)]
    return torch.tensor([[[tasks.TOKEN[string] for string in prompt] for prompt in row] for row in ask])


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
    places = tasks.answer_positions(expected.shape[1])[:, None] + torch.arange(-4, 1)  # [shots, 5]: x op y = c
    order = torch.randperm(expected.numel(), generator=generator)
    tokens = tokens.clone()
    tokens[:, places] = tokens[:, places].flatten(0, 1)[order].reshape(len(tokens), *places.shape)
    return tokens, expected.flatten()[order].reshape(expected.shape)


def probes(model: Transformer, task: str, shots: int, n_prompts: int, generator: torch.Generator) -> dict[str, Any]:
    """R² of linear probes along the residual stream, on prompts that were not fitted.

    difference = c - f(x, y), shown = c, expected = f(x, y), shuffled = the differences of other examples (must come to about 0), at
        answer          the shown answers
        equals, y       the `=` before them and the second operand: before c is shown, the difference can only come from earlier examples
    consistent: one k in a prompt. dealt: the examples dealt anew, so nothing but the example itself tells its difference.
    from_shown_alone: what one table over c achieves, no stream at all. other_functions: probes fitted at the answers of the other functions
    on numbers (dealt), scored on this one. made_by: what wrote into the stream where the difference's R² rises most, in dealt documents.
    """
    answers = tasks.answer_positions(shots)
    places = {"answer": 0, "equals": -1, "y": -2}
    where = torch.cat([answers + offset for offset in places.values()])
    tokens, expected, _ = documents(task, shots, n_prompts, generator)
    kinds = {"consistent": (tokens, expected), "dealt": dealt(tokens, expected, generator)}
    found: dict[str, Any] = {"sites": writers(model), "n_prompts": len(tokens), "consistent": {}, "dealt": {}}

    def targets(rows: Tensor, plain: Tensor) -> dict[str, Tensor]:
        shown = numbers_at(rows, answers)
        return {"difference": shown - plain, "shown": shown, "expected": plain}

    def part(streams: dict[str, Tensor], rows: Tensor | slice, index: int) -> dict[str, Tensor]:  # at the index-th place alone
        return {site: x[rows, shots * index : shots * (index + 1)] for site, x in streams.items()}

    for kind, (rows, plain) in kinds.items():
        streams, numbers = stream(model, rows, where), targets(rows, plain)
        numbers["shuffled"] = numbers["difference"].flatten()[torch.randperm(plain.numel(), generator=generator)].reshape(plain.shape)
        train, test = halves(rows, generator)
        fitted, scored = ({name: values[half] for name, values in numbers.items()} for half in (train, test))
        for index, place in enumerate(places):
            found[kind][place] = readable(part(streams, train, index), fitted, part(streams, test, index), scored)
        table, y = zip(*((one_hot_numbers(some["shown"].flatten()), some["difference"].flatten()[:, None]) for some in (fitted, scored)))
        found[kind]["from_shown_alone"] = round(r2(fit(table[0], y[0]), table[1], y[1]).item(), 4)
    others = [documents(other, shots, max(1, n_prompts // 5), generator)[:2] for other in OTHERS if other != task]
    mixed = dealt(*(torch.cat(some) for some in zip(*others)), generator)
    there, here = stream(model, mixed[0], answers), part(streams, slice(None), 0)  # here: the dealt documents of this task
    for name, measure in (("r2", r2), ("correlation", correlation)):
        found["other_functions"] = found.get("other_functions", {}) | {name: readable(there, targets(*mixed), here, targets(*kinds["dealt"]), measure)}
    found["made_by"], found["step"] = largest_step(found["dealt"]["answer"]["difference"], found["sites"])
    return found


def one_hot_numbers(values: Tensor) -> Tensor:
    """Numbers [n] → [n, n_numbers] float64."""
    return torch.nn.functional.one_hot(values - tasks.NUMBERS[0], len(tasks.NUMBERS)).double()


def analyse(model: Transformer, heads: Sequence[str], readers: Sequence[str], task: str = "addition", k: int = 1, shots: int = 8, n_prompts: int = 100, seed: int = 0) -> dict[str, Any]:
    """All three, for the FI heads `heads` and the heads `readers` that gather the expected answer; keys to add to circuit.json.

    function_vectors, function_vectors_by_k, function_vector_scores; reading: inputs, looks_for, hands_over, wrote; probe.
    Raises ValueError where there is no FI head, or for a task that is not on numbers.
    """
    if not heads:
        raise ValueError("there is no function-induction head to analyse")
    if task not in ("addition", *OTHERS):
        raise ValueError(f"these analyses are for a function on numbers, shifted: one of addition, {', '.join(OTHERS)}, not {task}")
    started, generator = time.perf_counter(), torch.Generator().manual_seed(seed)
    numbers, zero = torch.tensor([tasks.TOKEN[str(n)] for n in tasks.NUMBERS]), -tasks.NUMBERS[0]
    pairs = {shift: tasks.evaluation_pairs(task, shift, shots, 3 * n_prompts, generator) for shift in SHIFTS}
    asked = {shift: p.base_answers - tasks.ZERO for shift, p in pairs.items()}
    found = function_vectors.study(model, {shift: p.contrast for shift, p in pairs.items()}, asked, naive_prompts(), heads, numbers, zero, k)

    p, answers = tasks.evaluation_pairs(task, k, shots, 2 * n_prompts, generator), tasks.answer_positions(shots)
    sources = {"base": p.base, "operands_changed": p.operands_changed, "unrelated": p.contrast.roll(1, 0)}
    tokens, expected, query = documents(task, shots, max(n_prompts, -(-N_EXAMPLES // (len(SHIFTS) * shots))), generator)
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
    for measure, text in (("r2", "difference"), ("correlation", "difference, correlation instead of R²")):
        lines.append(f"  {'fitted on other functions':34}{text:38}" + "".join(f"{value:{width}.3f}" for value in probe["other_functions"][measure]["difference"]))
    lines.append(f"  from the shown answer alone: {probe['dealt']['from_shown_alone']:.3f}. The difference becomes readable at the answers by {probe['made_by']} ({probe['step']:+.3f}).")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    def work() -> int:
        parser = Parser(prog="analyses.py", description=__doc__.splitlines()[0])
        parser.add_argument("--run", default="out/default", help="folder of a traced run (default: %(default)s)")
        parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (default: %(default)s)")
        parser.add_argument("--prompts", type=int, default=100, help="prompts for each k (default: %(default)s)")
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
