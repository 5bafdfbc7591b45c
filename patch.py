"""Traces the circuit of a trained run: `python patch.py --run out/default`.

In the paper's order: does the model do the task (base and contrast accuracy)? Which heads write the answer
(heads → logits)? What do those read, and from which heads (heads → q, k, v, under both contrasts)? What is left
when they are taken out (ablation)? The findings go to stdout and, complete, to circuit.json.
"""

import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import tasks
from minifunc.attribution import attribute, rank_correlation
from minifunc.circuit import Criteria, ablated_logits, attention_shares, direct_groups, feeding, heads_of, nodes, parse, random_group, random_group_anywhere, wilson
from minifunc.distributed import is_main, join, run_together
from minifunc.evaluation import accuracy, last_logits
from minifunc.flags import Parser, add_flags, from_flags
from minifunc.model import Transformer
from minifunc.patching import Effects, HeadInput, Logits, PathPatcher
from minifunc.runs import UserError, check_writable, load_run, pick_device, save_json

N_RANDOM = 5  # random groups of each kind beside the ablated one
MOST_PROMPTS = 100_000


def as_lists(effects: Effects) -> dict[str, Any]:
    """r values for circuit.json."""
    return {"heads": _rounded(effects.heads), "mlps": _rounded(effects.mlps), "embedding": round(effects.embedding.item(), 5)}


def as_effects(lists: dict[str, Any]) -> Effects:
    """The way back from `as_lists`; the values of single prompts are not kept."""
    return Effects(torch.tensor(lists["heads"]), torch.tensor(lists["mlps"]), torch.tensor(lists["embedding"]), torch.empty(0))


def _rounded(tensor: torch.Tensor) -> Any:
    return [[round(x, 5) for x in row] if isinstance(row, list) else round(row, 5) for row in tensor.tolist()]


def trace(model: Transformer, task: str, k: int, shots: int, n_prompts: int, seed: int, criteria: Criteria, freeze_mlps: bool, max_memory: float | None) -> dict[str, Any]:
    """The whole study of one run on one task; returns what circuit.json holds."""
    started = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    pairs = tasks.evaluation_pairs(task, k, shots, n_prompts, generator)
    if pairs.operands_changed is None:
        raise ValueError(f"{task} cannot be traced: it has no second contrast, with other operands")
    answers = (pairs.base_answers, pairs.contrast_answers)

    # 1. Does it do the task? Accuracy is counted on more prompts than are patched: patching averages logits.
    many = tasks.evaluation_pairs(task, k, shots, max(500, n_prompts), generator)

    def scores(logits: torch.Tensor) -> dict[str, float]:
        return {"base": accuracy(logits, many.base_answers), "contrast": accuracy(logits, many.contrast_answers)}

    shares = {"base_prompt": scores(last_logits(model, many.base)), "contrast_prompt": scores(last_logits(model, many.contrast))}

    # 2. Heads → logits, under both contrasts.
    attention = attention_shares(model, pairs.contrast, tasks.answer_positions(shots))
    with tqdm(total=4, desc="patch", mininterval=0.5, disable=None) as bar:
        patchers = {name: PathPatcher(model, base, pairs.contrast, *answers, freeze_mlps, max_memory) for name, base in (("answers", pairs.base), ("operands", pairs.operands_changed))}
        effects: dict[str, dict[str, Effects]] = {name: {"logits": patcher.sweep(Logits())} for name, patcher in patchers.items()}
        estimate = attribute(patchers["answers"])
        bar.update(2)
        groups = direct_groups(effects["answers"]["logits"].heads, attention, criteria)
        if shares["contrast_prompt"]["contrast"] < criteria.solves:
            groups = {group: [] for group in groups}

        # 3. Heads → q, k, v of every FI and consolidation head, and of all FI heads together, under both contrasts.
        fi, receivers = groups["function_induction"], {}
        for which in "vqk":
            receivers |= {f"function_induction.{which}": [HeadInput(*parse(head), which) for head in fi]} if fi else {}
            receivers |= {f"{head}.{which}": [HeadInput(*parse(head), which)] for head in fi + groups["consolidation"]}
        for name, patcher in patchers.items():
            effects[name] |= dict(zip(receivers, patcher.sweep_each(list(receivers.values()))))
            bar.update()
    routes = {}
    for name, group in (("answers", "shown_answer"), ("operands", "expected_answer")):
        routes[group] = feeding([e for receiver, e in effects[name].items() if receiver[:-2] in [*fi, "function_induction"]], criteria)
        groups[group] = heads_of(routes[group])
    fed = heads_of(groups["shown_answer"] + groups["expected_answer"])
    groups["previous_token"] = [head for head in fed if attention[head]["answer_to_previous"] >= criteria.looks_at_previous]

    # 4. With other values in place of what the FI heads send; and the same for as many other heads.
    ablation = []
    if fi:
        n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
        drawn = [("random_same_layers", random_group(fi, n_heads, generator)) for _ in range(N_RANDOM)]
        drawn += [("random_any_layer", random_group_anywhere(fi, n_layers, n_heads, generator)) for _ in range(N_RANDOM)]
        distinct = {label: {tuple(heads) for name, heads in drawn if name == label} for label, _ in drawn}
        rows = [("function_induction", fi, how) for how in ("base", "mean", "unrelated")]
        rows += [(label, list(heads), how) for label in distinct for heads in sorted(distinct[label]) for how in ("base", "mean", "unrelated")]
        rows += [("expected_answer", groups["expected_answer"], "operands_changed")] if groups["expected_answer"] else []
        sources = {"base": many.base, "mean": many.base, "unrelated": many.base.roll(1, 0), "operands_changed": many.operands_changed}
        for label, heads, how in rows:
            left = scores(ablated_logits(model, many.contrast, sources[how], heads, how == "mean"))
            n_draws = sum(heads == other for name, other in drawn if name == label) or 1
            ci = wilson(left["contrast"], len(many.base))
            ablation.append({"ablated": label, "heads": heads, "how": how, "base_acc": left["base"], "contrast_acc": left["contrast"], "n_draws": n_draws, "ci": ci})

    F = {name: {"base": round(patcher.F_base.mean().item(), 5), "contrast": round(patcher.F_contrast.mean().item(), 5)} for name, patcher in patchers.items()}
    return {
        "task": task,
        "k": k,
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
        "effects": {receiver: as_lists(e) for receiver, e in effects["answers"].items()},
        "operands_changed": {"F": F["operands"], "effects": {receiver: as_lists(e) for receiver, e in effects["operands"].items()}},
        "attribution": as_lists(estimate) | {"rank_correlation": round(rank_correlation(estimate.heads, effects["answers"]["logits"].heads), 4)},
        "groups": groups,
        "routes": {name: {node: round(r, 5) for node, r in route.items()} for name, route in routes.items()},
        "criteria": vars(criteria),
        "attention": attention,
        "evaluation": {"ablation": ablation},
    }


# ---------------------------------------------------------------- what the terminal shows


def heat_map(title: str, heads: list[list[float]], mlps: list[float], embedding: float, colour: bool) -> str:
    """r in percent, a row per layer; red pulls back to base (r < 0), blue pushes on (r > 0)."""
    n_heads = len(heads[0])
    lines = [f"{title} (r in %)", "layer " + "".join(f"{f'h{head}':>7}" for head in range(n_heads)) + "     mlp"]
    for layer, row in reversed(list(enumerate(heads))):
        lines.append(f"{layer:>5} " + "".join(_cell(r, colour) for r in row) + " " + _cell(mlps[layer], colour))
    lines.append("embed " + _cell(embedding, colour))
    return "\n".join(lines)


def _cell(r: float, colour: bool) -> str:
    text = f"{100 * r:7.1f}"
    if not colour:
        return text
    shade = 255 - int(215 * min(1.0, abs(r) ** 0.5))
    red, green, blue = (255, shade, shade) if r < 0 else (shade, shade, 255)
    return f"\x1b[48;2;{red};{green};{blue}m\x1b[38;2;0;0;0m{text}\x1b[0m"


def named(effects: dict[str, float], most: int = 4) -> str:
    """Nodes with their r in percent: `0.0 -73, mlp1 -20`."""
    return ", ".join(f"{name} {100 * r:+.0f}" for name, r in list(effects.items())[:most]) or "none"


def in_words(route: dict[str, float], most: int = 4) -> str:
    """A route's strongest nodes: `the embedding (-34 %) and mlp0 (-29 %)`."""
    parts = [f"{'the ' * (name == 'embedding')}{name} ({100 * r:.0f} %)" for name, r in list(route.items())[:most]]
    return " and ".join([", ".join(parts[:-1])] * (len(parts) > 1) + parts[-1:]) or "no single node"


def sentence(circuit: dict[str, Any]) -> str:
    """One plain sentence that says what was found."""
    groups, task = circuit["groups"], f"{circuit['task']} off by {circuit['k']:+d}"
    done = circuit["accuracy"]["contrast_prompt"]["contrast"]
    if not groups["function_induction"]:
        why = "the model does not do the task" if done < circuit["criteria"]["solves"] else "no head moves the answer and looks at earlier answers as the criteria ask"
        return f"No function-induction circuit was found for {task} (right on {done:.1%} of prompts): {why}."
    effects = circuit["effects"]["logits"]
    direct = {name: r for name, r in nodes(as_effects(effects)).items() if abs(r) >= circuit["criteria"]["strong"]}
    fi, others = ({name: r for name, r in sorted(direct.items(), key=lambda pair: -abs(pair[1])) if (name in groups["function_induction"]) == wanted} for wanted in (True, False))
    left = circuit["evaluation"]["ablation"][0]
    return (
        f"{task.capitalize()} (right on {done:.1%} of prompts) is carried to the answer by the function-induction head{'s' * (len(fi) > 1)} {in_words(fi, len(fi))}, which at the last `=` look at the earlier answers; "
        f"other direct writers are {in_words(others, len(others))}. "
        f"What was shown reaches the inputs of these heads from {in_words(circuit['routes']['shown_answer'])}; what was to be expected, from {in_words(circuit['routes']['expected_answer'])}. "
        f"With their values from the base prompt put in, the model is off by {circuit['k']:+d} on {left['contrast_acc']:.1%} of prompts and gives the plain answer on {left['base_acc']:.1%}."
    )


def show(circuit: dict[str, Any], colour: bool) -> str:
    """The findings as text."""
    c, criteria, out = circuit, circuit["criteria"], []

    def fed(effects: dict[str, Any]) -> str:
        return named(feeding([as_effects(effects)], Criteria(**criteria)))

    out.append(f"{c['task']} off by {c['k']:+d}, {c['shots']} shots, {c['n_prompts']} prompts, {'frozen' if c['freeze_mlps'] else 'live'} MLPs, {c['seconds']:.0f} s on {c['device']}")
    for prompt in ("base_prompt", "contrast_prompt"):
        share = c["accuracy"][prompt]
        out.append(f"  {prompt.replace('_', ' '):16} plain answer {share['base']:.3f}   answer off by {c['k']:+d} {share['contrast']:.3f}")
    out.append(f"  F = logit(plain) - logit(off by {c['k']:+d}): base {c['F']['base']:.2f}, contrast {c['F']['contrast']:.2f}\n")
    logits = c["effects"]["logits"]
    worst = (torch.tensor(logits["heads"]) - torch.tensor(c["attribution"]["heads"])).abs().max().item()
    out.append(heat_map("heads → logits", logits["heads"], logits["mlps"], logits["embedding"], colour))
    out.append(f"attribution patching, the linear estimate of the same, ranks the heads with a correlation of {c['attribution']['rank_correlation']:.2f}; largest error {100 * worst:.0f} % points\n")
    for group, heads in c["groups"].items():
        out.append(f"{group.replace('_', ' '):20}" + (", ".join(heads) or "none"))
    out.append("  criteria: " + ", ".join(f"{name.replace('_', ' ')} >= {value:g}" for name, value in criteria.items()) + "\n")
    shown = heads_of(head for heads in c["groups"].values() for head in heads)
    if shown:
        out.append(f"{'head':8}{'r in %':>8}" + "".join(f"{name.replace('_', ' '):>20}" for name in c["attention"][shown[0]]) + "   (shares of attention)")
    for head in shown:
        layer, index = parse(head)
        out.append(f"{head:8}{100 * logits['heads'][layer][index]:8.1f}" + "".join(f"{share:20.2f}" for share in c["attention"][head].values()))
    out.append("")
    for receiver in (name for name in c["effects"] if name != "logits"):
        out.append(f"→ {receiver:20} shown answers changed: {fed(c['effects'][receiver])}")
        out.append(f"  {'':20} operands changed:      {fed(c['operands_changed']['effects'][receiver])}")
    if c["evaluation"]["ablation"]:
        out.append(f"\nablation: other values in place of what some heads send, {c['accuracy_prompts']} contrast prompts; [95 % interval over prompts]")
        out.append("  values from: base = the paired base prompt, mean = the mean over base prompts, unrelated = another pair's base prompt")
    for row in c["evaluation"]["ablation"]:
        low, high = row["ci"]
        out.append(
            f"  {row['ablated'].replace('_', ' '):20}{', '.join(row['heads']):30}{row['how'].replace('_', ' '):18}plain answer {row['base_acc']:.3f}   answer off by {c['k']:+d} {row['contrast_acc']:.3f} [{low:.2f}, {high:.2f}]"
        )
    return "\n".join([*out, "", sentence(c)])


def main(argv: list[str] | None = None) -> int:
    def work() -> int:
        parser = Parser(prog="patch.py", description=__doc__.splitlines()[0])
        parser.add_argument("--run", default="out/default", help="folder of the trained run (default: %(default)s)")
        parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (default: %(default)s)")
        parser.add_argument("--task", default="addition", help=f"one of: {', '.join(tasks.TASKS)} (default: %(default)s)")
        parser.add_argument("--k", type=int, default=1, help="the shift (default: %(default)s)")
        parser.add_argument("--shots", type=int, default=8, help="examples in a prompt (default: %(default)s)")
        parser.add_argument("--prompts", type=int, default=100, help="prompts to patch (default: %(default)s)")
        parser.add_argument("--seed", type=int, default=0, help="which prompts are drawn (default: %(default)s)")
        parser.add_argument("--freeze-mlps", action="store_true", help="direct paths do not pass through MLPs (default: they do, as in the paper)")
        parser.add_argument("--max-memory", type=float, metavar="GIB", help="memory that the sweep may use (default: 2; on CUDA a quarter of what is free)")
        parser.add_argument("--json", metavar="PATH", help="where the findings go (default: circuit.json in the run's folder, which every trace replaces)")
        add_flags(parser, "criteria of the groups", Criteria())
        arguments = parser.parse_args(argv)
        criteria, device = from_flags(arguments, Criteria()), join(pick_device(arguments.device))
        model, config = load_run(arguments.run, device)
        if config["vocabulary"] != tasks.VOCABULARY:
            raise UserError(f"{arguments.run} was trained on another vocabulary than this version has")
        if tasks.n_tokens(arguments.shots) > model.cfg.n_ctx:
            raise UserError(f"--shots {arguments.shots} makes prompts of {tasks.n_tokens(arguments.shots)} tokens; the model's context holds {model.cfg.n_ctx}")
        if arguments.k == 0:
            raise UserError("--k 0 leaves nothing to trace: base and contrast prompts would be the same")
        path = Path(arguments.json) if arguments.json else Path(arguments.run) / "circuit.json"
        check_writable(path)
        if not 0 <= arguments.seed < 2**63 or arguments.prompts > MOST_PROMPTS:
            raise UserError(f"--seed must be from 0 to 2^63 - 1, and --prompts at most {MOST_PROMPTS}")
        try:
            circuit = trace(model, arguments.task, arguments.k, arguments.shots, arguments.prompts, arguments.seed, criteria, arguments.freeze_mlps, arguments.max_memory)
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
