"""One prompt, answered and taken apart: `python -m commands.ask "1+1=3, 2+2=5, 3+3="`.

Which heads carried the answer is told in one of two exact ways. The *base prompt* is the same
prompt with the plain answers shown. If it is answered otherwise, path patching between the two
tells; if not, switching off one head at a time does.
"""

import sys
from argparse import SUPPRESS
from collections.abc import Sequence

import torch
from torch import Tensor

import tasks
from minifunc.ablation import Ablator, all_heads
from minifunc.circuit import Criteria, parse
from minifunc.model import Hook, Transformer
from minifunc.patching import Logits, PathPatcher
from minifunc.support.errors import UserError, run_main
from minifunc.support.flags import Parser, pick_device
from minifunc.support.runs import add_run_flag, chosen_run, load_run

PROMPT = "1+1=3, 2+2=5, 3+3="
NAMES = tasks.VOCABULARY
MOST_HEADS = 8  # lines of the list
STRONG = Criteria().strong  # |r| from which a head alone has carried part of the answer


def prompt_tokens(text: str, n_ctx: int) -> Tensor:
    """Text → tokens [pos], an `=` at the end. Raises UserError for what cannot be asked."""
    try:
        tokens = tasks.encode(text)
    except ValueError as error:
        raise UserError(str(error)) from None
    if tokens[-1] != tasks.EQUALS:
        fault = "the prompt shows every answer: leave the last one open, as in"
        raise UserError(f"{fault} {PROMPT}")
    if len(tokens) > n_ctx:
        raise UserError(f"the prompt has {len(tokens)} tokens; the model's context holds {n_ctx}")
    return tokens


def plain_answer(x: int, op: int, y: int) -> int | None:
    """The token that answers the problem `x op y` as it stands; None for no problem of ours."""
    p = tasks.PROBLEMS
    rows = ((p.x == x) & (p.op == op) & (p.y == y)).nonzero()[:, 0]
    if not len(rows):
        return None
    is_letter = tasks.LETTERED[p.function[rows[0]]]
    return int(p.value[rows[0]]) + (tasks.A if is_letter else tasks.ZERO)


def base_prompt(tokens: Tensor) -> Tensor:
    """The same prompt with plain answers shown, [pos]; an answer to no problem of ours stays."""
    base = tokens.clone()
    for place in tasks.answer_positions((len(tokens) - 5) // tasks.EXAMPLE).tolist():
        answer = plain_answer(*tokens[[place - 4, place - 3, place - 2]].tolist())
        if answer is not None:
            base[place] = answer
    return base


@torch.no_grad()
def probabilities(model: Transformer, tokens: Tensor, **hooks: Hook) -> Tensor:
    """Of what comes after the prompt tokens [pos], [d_vocab]."""
    return model.run_with_hooks(tokens[None], hooks)[0, -1].softmax(-1)


def top(shares: Tensor, n: int = 5) -> list[tuple[str, float]]:
    """The n most probable tokens of [d_vocab], as strings, with their probabilities."""
    best = shares.topk(n)
    return [(NAMES[token], share) for token, share in zip(best.indices, best.values.tolist())]


def without_head(model: Transformer, tokens: Tensor, name: str) -> Tensor:
    """Probabilities [d_vocab] when one head sends zeros and everything after it is live."""
    layer, head = parse(name)

    def zero(z: Tensor, _: str) -> Tensor:
        z = z.clone()  # [batch, pos, head, d_head]
        z[:, :, head] = 0
        return z

    return probabilities(model, tokens, **{f"blocks.{layer}.attn.hook_z": zero})


def by_switching_off(model: Transformer, tokens: Tensor, given: int) -> list[str]:
    """Lines: the probability of the answer `given` without each head, the lowest first."""
    shares = {name: without_head(model, tokens, name) for name in all_heads(model.cfg)}
    left = {name: shares[name][given].item() for name in shares}
    told = f"Which heads carried it: the probability of {NAMES[given]} when one head alone is"
    lines = [f"{told} switched off (sends zeros; everything after is live)."]
    for name in sorted(left, key=left.__getitem__)[:MOST_HEADS]:
        lines.append(f"  {name:>4}{left[name]:8.1%}   then {NAMES[shares[name].argmax()]}")
    return lines


def by_patching(model: Transformer, tokens: Tensor, base: Tensor) -> list[str]:
    """Lines: r of each head on the logits, the strongest first, and the answer without those."""
    base_shares = probabilities(model, base)
    plain, given = base_shares.argmax(), probabilities(model, tokens).argmax()
    patcher = PathPatcher(model, base[None], tokens[None], plain[None].cpu(), given[None].cpu())
    heads = patcher.sweep(Logits()).heads
    r = {name: heads[parse(name)].item() for name in all_heads(model.cfg)}
    lines = [
        f"The plain prompt shows the plain answers: {tasks.decode(base)}",
        f"It is answered {NAMES[plain]} ({base_shares[plain].item():.1%}).",
        "Which heads carried it? The direct path of each head to the logits gets what it sent on",
        f"the plain prompt (path patching, exact). r in %: how far logit({NAMES[plain]}) -"
        f" logit({NAMES[given]}) then goes,",
        "from 0 (as on this prompt) to -100 (as on the plain prompt).",
    ]
    for name in sorted(r, key=r.__getitem__)[:MOST_HEADS]:
        if abs(r[name]) >= 0.001:
            lines.append(f"  {name:>4}{100 * r[name]:8.1f}  {'█' * max(0, round(-30 * r[name]))}")
    strong = [name for name in r if r[name] <= -STRONG]
    if not strong:
        return [*lines, f"No head alone has r of {-100 * STRONG:.0f} % or less."]
    ablator = Ablator(model, tokens[None], {"base": base[None]})
    after = ablator.logits([strong], "base")[0, 0].softmax(-1)
    told = f"With all that {', '.join(strong)} send taken from the plain prompt, the answer is"
    return [*lines, f"{told} {NAMES[after.argmax()]} ({after.max().item():.1%})."]


def answer(model: Transformer, text: str) -> str:
    """What the command prints. Raises UserError for a prompt that cannot be asked."""
    tokens = prompt_tokens(text, model.cfg.n_ctx).to(model.device)
    base = base_prompt(tokens.cpu()).to(model.device)
    shares = probabilities(model, tokens)
    given = int(shares.argmax())
    lines = [f"prompt  {tasks.decode(tokens)}", f"answer  {NAMES[given]}", ""]
    for token, share in top(shares):
        lines.append(f"  {token:>4}{share:8.1%}  {'█' * round(30 * share)}")
    if given == probabilities(model, base).argmax():
        return "\n".join([*lines, "", *by_switching_off(model, tokens, given)])
    return "\n".join([*lines, "", *by_patching(model, tokens, base)])


def work(argv: Sequence[str] | None) -> int:
    parser = Parser(prog="python -m commands.ask", description=__doc__.splitlines()[0])
    add_run_flag(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default: %(default)s)")
    parser.add_argument("--prompt", default=PROMPT, help="default: %(default)s")
    parser.add_argument("prompt", nargs="?", default=SUPPRESS, help="the same, without a flag")
    arguments = parser.parse_args(argv)
    device, folders = pick_device(arguments.device, float64=True), chosen_run(arguments)
    model, _ = load_run(folders.run, device, tasks.VOCABULARY)
    told = answer(model, arguments.prompt)
    folders.announce()
    print(told)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(lambda: work(argv))


if __name__ == "__main__":
    sys.exit(main())
