"""One prompt, answered and taken apart in the terminal: `python patch.py --ask "1+1=3, 2+2=5, 3+3="`.

Which heads carried the answer is told in one of two exact ways. If another prompt differs from this one by the plain answers alone
(the *base prompt*) and is answered otherwise, by path patching between the two. If not, by switching off one head at a time.
"""

import torch
from torch import Tensor

import tasks
from minifunc.ablation import Ablator, all_heads
from minifunc.circuit import Criteria, heads_of, parse
from minifunc.model import Transformer
from minifunc.nodes import Logits
from minifunc.patching import PathPatcher
from minifunc.support.errors import UserError

MOST_HEADS = 8  # lines of the list


def prompt_tokens(text: str, n_ctx: int) -> Tensor:
    """Text → tokens [pos], an `=` at the end. Raises UserError for what cannot be read or asked."""
    try:
        tokens = tasks.encode(text)
    except ValueError as error:
        raise UserError(str(error)) from None
    if tokens[-1] != tasks.EQUALS:
        raise UserError(
            "the prompt shows every answer: leave the last one open, as in 1+1=3, 2+2=5, 3+3="
        )
    if len(tokens) > n_ctx:
        raise UserError(f"the prompt has {len(tokens)} tokens; the model's context holds {n_ctx}")
    return tokens


def plain_answer(x: int, op: int, y: int) -> int | None:
    """The token that answers the problem `x op y` as it stands; None for one that there is not."""
    p = tasks.PROBLEMS
    row = ((p.x == x) & (p.op == op) & (p.y == y)).nonzero()[:, 0]
    if not len(row):
        return None
    return int(p.value[row[0]]) + (tasks.A if tasks.LETTERED[p.function[row[0]]] else tasks.ZERO)


def base_prompt(tokens: Tensor) -> Tensor:
    """The same prompt with the plain answers shown, [pos]; an answer to what is no problem of ours stays."""
    base = tokens.clone()
    for place in tasks.answer_positions((len(tokens) - 5) // tasks.EXAMPLE).tolist():
        answer = plain_answer(*tokens[[place - 4, place - 3, place - 2]].tolist())
        base[place] = base[place] if answer is None else answer
    return base


def top(probabilities: Tensor, n: int = 5) -> list[tuple[str, float]]:
    best = probabilities.topk(min(n, len(probabilities)))
    return [
        (tasks.VOCABULARY[token], share)
        for token, share in zip(best.indices.tolist(), best.values.tolist())
    ]


@torch.no_grad()
def switched_off(model: Transformer, tokens: Tensor) -> dict[str, Tensor]:
    """Probabilities [d_vocab] of what comes next when one head sends zeros and everything after is live, for each head."""
    out = {}
    for name in all_heads(model.cfg):
        layer, head = parse(name)

        def zero(z: Tensor, _: str, head: int = head) -> Tensor:
            z = z.clone()
            z[:, :, head] = 0
            return z

        out[name] = model.run_with_hooks(tokens[None], {f"blocks.{layer}.attn.hook_z": zero})[
            0, -1
        ].softmax(-1)
    return out


@torch.no_grad()
def answer(model: Transformer, text: str, criteria: Criteria) -> str:
    """What `--ask` prints. Raises UserError for a prompt that cannot be asked."""
    tokens = prompt_tokens(text, model.cfg.n_ctx).to(model.unembed.W_U.device)
    base = base_prompt(tokens.cpu()).to(tokens.device)
    shares, base_shares = (model(prompt[None])[0, -1].softmax(-1) for prompt in (tokens, base))
    given, plain = int(shares.argmax()), int(base_shares.argmax())
    name = tasks.VOCABULARY
    lines = [f"prompt  {tasks.decode(tokens)}", f"answer  {name[given]}", ""]
    lines += [
        f"  {token:>4}{share:8.1%}  {'█' * round(30 * share)}" for token, share in top(shares)
    ]
    if given == plain:
        lines += [
            "",
            f"Which heads carried it: the probability of {name[given]} when one head alone is switched off (sends zeros; everything after is live).",
        ]
        left = sorted(switched_off(model, tokens).items(), key=lambda pair: pair[1][given].item())
        return "\n".join(
            lines
            + [
                f"  {head:>4}{after[given].item():8.1%}   then {top(after, 1)[0][0]}"
                for head, after in left[:MOST_HEADS]
            ]
        )
    patcher = PathPatcher(
        model, base[None], tokens[None], torch.tensor([plain]), torch.tensor([given])
    )
    effects = patcher.sweep(Logits()).heads
    ranked = sorted(all_heads(model.cfg), key=lambda head: effects[parse(head)].item())
    strong = heads_of(head for head in ranked if effects[parse(head)] <= -criteria.strong)
    lines += [
        "",
        f"The same with the plain answers shown, {tasks.decode(base)}, is answered {name[plain]} ({base_shares[plain].item():.1%}).",
    ]
    lines += [
        f"Which heads carried it: r in %, how far logit({name[plain]}) - logit({name[given]}) goes from this prompt's (0) to that one's (-100)",
        "when a head's direct path to the logits sends what it sends there (path patching, exact).",
    ]
    lines += [
        f"  {head:>4}{100 * effects[parse(head)].item():8.1f}  {'█' * max(0, round(-30 * effects[parse(head)].item()))}"
        for head in ranked[:MOST_HEADS]
        if abs(effects[parse(head)]) >= 0.001
    ]
    if not strong:
        return "\n".join(
            [*lines, f"No head alone has r of {-100 * criteria.strong:.0f} % or less."]
        )
    after = (
        Ablator(model, tokens[None], {"base": base[None]})
        .logits([strong], "base")[0, 0]
        .softmax(-1)
    )
    return "\n".join(
        [
            *lines,
            f"With all that {', '.join(strong)} send swapped for what they send there, the answer is {top(after, 1)[0][0]} ({top(after, 1)[0][1]:.1%}).",
        ]
    )
