"""Does a head carry the shift? At the last `=` it sends what it sends where only the shift differs.

    prompt                    1 + 1 = 3 ; 2 + 5 = 8 ; 3 + 3 =     off by +1
    donor                     2 + 2 = 5 ; 1 + 0 = 2 ; 4 + 2 =     off by +1, the same asked sum
    … with other answers      2 + 2 = 7 ; 1 + 0 = 4 ; 4 + 2 =     off by +3
    … with other operands     3 + 2 = 5 ; 1 + 1 = 2 ; 4 + 2 =     plain

A head that carries c - f(x, y) moves the answer whichever of the two the donors differ in. One that
looks at shown answers and copies them does not.
"""

from typing import Any

import torch
from torch import Generator, Tensor

from minifunc.ablation import Ablator, all_heads
from minifunc.analysis.ablations import random_group
from minifunc.analysis.rows import answered
from minifunc.analysis.study import answers_of, some
from minifunc.model import Transformer
from minifunc.support.evaluation import Language, accuracy, bootstrap, last_logits
from minifunc.support.names import Found, Heads, parse
from minifunc.support.settled import settled
from minifunc.support.tables import rounded

N_PROMPTS = 500
N_DRAWS = 5  # random groups of the same layers
LEAST = 0.02  # heads of untrained models: .002 at most (`untrained` in results/seeds.json)


def moved(logits: dict[str, Tensor], how: str, wanted: Tensor, own: Tensor) -> Tensor:
    """How far logit(wanted) - logit(own) goes between two kinds of donors, [..., prompt]."""
    change = (logits[how] - logits["same"]).double().cpu()  # [..., prompt, d_vocab]
    each = torch.arange(len(own), device=own.device)
    return change[..., each, wanted] - change[..., each, own]


@settled
def study(language: Language, model: Transformer, fi: Heads, asked: Any) -> Found:
    """`shift_swap` of circuit.json's `evaluation`: the FI heads together and each alone; random
    groups of their layers, and each other head there. Nothing for a function not on numbers.

    moved: how far logit(other answer) - logit(own answer) goes between donors of the same shift and
    of another, as a share of its mean size between the donors' own runs. passes: the 95 % interval
    lies above LEAST under other answers and under other operands.
    """
    if asked.task not in language.ON_NUMBERS:
        return {}
    generator = Generator().manual_seed(asked.seed)
    pairs = language.evaluation_pairs(asked.task, asked.k, asked.shots, N_PROMPTS, generator)
    order = pairs.base_answers.argsort(stable=True)
    following = order.roll(-1)
    same_sum = pairs.base_answers[order] == pairs.base_answers[following]
    prompts, donors = some(pairs, order[same_sum]), some(pairs, following[same_sum])
    plain, own = answers_of(prompts)
    shifts = [k for k in language.SHIFTS if k not in (0, asked.k)]
    other = torch.tensor(shifts)[torch.arange(len(own)) % len(shifts)]
    shown = donors.base.clone()
    shown[:, language.answer_positions(asked.shots)] += other[:, None]
    sources = {"same": donors.contrast, "answers": shown, "operands": donors.operands_changed}
    ablator = Ablator(model, prompts.contrast, sources)

    drawn = [random_group(fi, model.cfg.n_heads, generator) for _ in range(N_DRAWS)]
    layers = {parse(head)[0] for head in fi}
    others = [head for head in all_heads(model.cfg) if parse(head)[0] in layers and head not in fi]
    rows: list[Found] = [{"swapped": "function_induction", "heads": list(fi)}]
    rows += [{"swapped": "one_fi_head", "heads": [head]} for head in fi]
    rows += [{"swapped": "random_same_layers", "heads": group} for group in drawn]
    rows += [{"swapped": "one_other_head", "heads": [head]} for head in others]
    groups, last = [row["heads"] for row in rows], [ablator.n_pos - 1]
    runs = {how: last_logits(model, tokens) for how, tokens in sources.items()}
    given = {how: ablator.logits(groups, how, last) for how in sources}  # [group, prompt, d_vocab]
    for how, wanted in (("answers", plain + other), ("operands", plain)):
        change = moved(given, how, wanted, own)
        whole = moved(runs, how, wanted, own).abs().clamp(min=1e-6)  # so that 0 of 0 is 0
        for row, each, ci, logits in zip(rows, change, bootstrap(change, whole), given[how]):
            row[how] = {"moved": (each.mean() / whole.mean()).item(), "ci": ci}
            row[how] |= answered(logits, (plain, own)) | {"other_acc": accuracy(logits, wanted)}
    for row in rows:
        row["passes"] = min(row[how]["ci"][0] for how in ("answers", "operands")) > LEAST
    found = {"least": LEAST, "shifts": shifts, "n_prompts": len(own), "rows": rows}
    return {"shift_swap": rounded(found)}
