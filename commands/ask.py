"""One prompt, answered and taken apart: `python -m commands.ask "1+1=3, 2+2=5, 3+3="`.

Which heads carried the answer: the *base prompt* shows the plain answers instead. If it is answered
otherwise, path patching between the two tells.
"""

import re
import sys
from argparse import SUPPRESS
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

import tasks
from minifunc.ablation import Ablator, all_heads
from minifunc.circuit import Criteria
from minifunc.model import Transformer
from minifunc.patching import Logits, PathPatcher
from minifunc.support.errors import UserError, command
from minifunc.support.evaluation import finite, last_logits
from minifunc.support.flags import Parser, pick_device
from minifunc.support.runs import add_run_flag, chosen_run, load_run
from minifunc.support.tables import fitted
from minifunc.support.vocabulary import token_name

PROMPT = "1+1=3, 2+2=5, 3+3="
MOST_HEADS = 8  # lines of the list
STRONG = Criteria().strong  # |r| from which a head alone has carried part of the answer
name_of = partial(token_name, tasks.VOCABULARY)
EVERY = tasks.PROBLEMS
FIRST = torch.where(tasks.LETTERED[EVERY.function], tasks.A, tasks.ZERO)
ASKED = torch.stack([EVERY.x, EVERY.op, EVERY.y], dim=1)  # [n_problems, 3]
# plain answers by problem (x, op, y), all token ids
PLAIN = dict(zip(map(tuple, ASKED.tolist()), (EVERY.value + FIRST).tolist()))


def prompt_tokens(text: str, n_ctx: int) -> Tensor:
    """Text → tokens [pos], an `=` at the end. Raises UserError for what cannot be asked."""
    try:
        tokens = tasks.encode(text)
    except ValueError as error:
        raise UserError(str(error)) from None
    if tokens[-1] != tasks.EQUALS:
        raise UserError(f"the prompt shows every answer: leave the last one open, as in {PROMPT}")
    if len(tokens) > n_ctx:
        raise UserError(f"the prompt has {len(tokens)} tokens; the model's context holds {n_ctx}")
    return tokens


def base_prompt(tokens: Tensor) -> Tensor:
    """The same prompt with plain answers shown, [pos]; an answer to no problem of ours stays."""
    base, asked = tokens.clone(), problems(tokens)
    for place, problem in zip(tasks.answer_positions(len(asked) - 1).tolist(), asked):
        base[place] = PLAIN.get(problem, base[place])
    return base


def problems(tokens: Tensor) -> list[tuple[int, ...]]:
    """The x, op, y of a prompt's examples, the asked one last, as token ids."""
    return [tuple(problem) for problem in tokens[1:].unfold(0, 3, tasks.EXAMPLE).tolist()]


def doubts(tokens: Tensor, share: float) -> list[str]:
    """Why the answer to a prompt [pos] is a guess, if it is. share: its probability."""
    asked = problems(tokens)
    strange = [problem for problem in asked if problem not in PLAIN]
    why = [f"training never asks {tasks.decode(torch.tensor(one))}" for one in strange[-1:]]
    if len(asked) == 1:
        why.append("no example shows by which rule to answer")
    return [*why, "the model gives it less than half"] if share < 0.5 else why


def probabilities(model: Transformer, tokens: Tensor) -> Tensor:
    """Of what comes after the prompt tokens [pos], [d_vocab]."""
    return finite(last_logits(model, tokens[None])[0]).softmax(-1)


def by_patching(model: Transformer, tokens: Tensor, base: Tensor, given: Tensor) -> list[str]:
    """Lines: r of each head on the logits, the strongest first, and the answer without those."""
    share, plain = probabilities(model, base).max(-1)
    patcher = PathPatcher(model, base[None], tokens[None], plain[None].cpu(), given[None].cpu())
    effects = patcher.sweep(Logits()).named()
    r = {name: effects[name] for name in all_heads(model.cfg)}
    difference = f"logit({name_of(plain)}) - logit({name_of(given)})"
    lines = [
        f"The plain prompt shows the plain answers: {tasks.decode(base)}",
        f"It is answered {name_of(plain)} ({share.item():.1%}).",
        "Which heads carried it? The direct path of each head to the logits gets what it",
        "sent on the plain prompt (path patching, exact). r in %: how far",
        f"{difference} then goes, from 0 (this prompt) to -100 (plain prompt).",
    ]
    for name in sorted(r, key=r.__getitem__)[:MOST_HEADS]:
        if abs(r[name]) >= 0.001:
            lines.append(f"  {name:>4}{100 * r[name]:8.1f}  {'█' * max(0, round(-30 * r[name]))}")
    strong = [name for name in r if r[name] <= -STRONG]
    if not strong:
        return [*lines, f"No head alone has r of {-100 * STRONG:.0f} % or less."]
    ablator = Ablator(model, tokens[None], {"base": base[None]})
    share, after = finite(ablator.logits([strong], "base")[0, 0]).softmax(-1).max(-1)
    told = f"With all that {', '.join(strong)} send taken from the plain prompt, the answer is"
    return [*lines, f"{told} {name_of(after)} ({share.item():.1%})."]


def answer(model: Transformer, text: str) -> str:
    """What the command prints. Raises UserError for a prompt that cannot be asked."""
    tokens = prompt_tokens(text, model.cfg.n_ctx)
    base = base_prompt(tokens).to(model.device)
    tokens = tokens.to(model.device)
    best = probabilities(model, tokens).topk(5)
    given = best.indices[0]
    lines = [f"prompt  {tasks.decode(tokens)}", f"answer  {name_of(given)}"]
    if why := doubts(tokens.cpu(), best.values[0].item()):
        lines.append(f"This is a guess: {'; '.join(why)}.")
    lines.append("")
    for token, share in zip(best.indices, best.values.tolist()):
        lines.append(f"  {name_of(token):>4}{share:8.1%}  {'█' * round(30 * share)}")
    if torch.equal(tokens, base):
        return fitted([*lines, "", "Nothing shown departs from a known plain answer."])
    if given == probabilities(model, base).argmax():
        return fitted([*lines, "", "Shown the plain answers it says the same."])
    return fitted([*lines, "", *by_patching(model, tokens, base, given)])


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("python -m commands.ask", __doc__)
    parser._negative_number_matcher = re.compile(r"-\d")  # no flag: a prompt may begin with -1
    add_run_flag(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default: %(default)s)")
    parser.add_argument("--prompt", default=PROMPT, help="default: %(default)s")
    parser.add_argument("prompt", nargs="?", default=SUPPRESS, help="the same, without a flag")
    arguments = parser.parse_args(argv)
    device, folders = pick_device(arguments.device, float64=True), chosen_run(arguments)
    model, _ = load_run(folders.run, device, tasks.VOCABULARY)
    told = answer(model, arguments.prompt)
    folders.announce()
    print(told, f"next: {folders.makes('patch')}", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
