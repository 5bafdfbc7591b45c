"""Function vectors: what do FI heads write at the last `=`, and does it carry +k elsewhere?

What a head holds there (its z), mean over prompts off by k, is its function vector, FV(k). It is
put into naive prompts, which show no shift, at the same head. Everything after is live.

    contrast    1 + 1 = 2+k ; … ; 3 + 3 =     FV(k) is the mean of a head's z at the last `=`
    naive       2 same _ = 2 ;  5 same _ =    FV(k) is added to that head's z at the last `=`

A map is the picture of arXiv 2507.09875: cells say how much logit(y) (columns) rises at input x
(rows, here 5). A head that carries +k raises the cells y = x + k, and FV(0), the control, does not.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from minifunc.ablation import all_heads
from minifunc.analysis.activations import activations
from minifunc.model import Transformer
from minifunc.support.checks import check_shape, checked_heads
from minifunc.support.evaluation import finite, last_logits
from minifunc.support.hooks import Hooks
from minifunc.support.names import Found, Heads, parse
from minifunc.support.tables import rounded

Parts = dict[str, Tensor]  # logits [n_rows, d_vocab] by what was changed: a head, or "all"


def hook_points(model: Transformer, heads: Iterable[str], *kinds: str) -> list[str]:
    """Hook points of these kinds in the layers of `heads`. Raises ValueError for unknown heads."""
    layers = sorted({parse(head)[0] for head in checked_heads(heads, all_heads(model.cfg))})
    return [f"blocks.{layer}.{kind}" for layer in layers for kind in kinds]


def last_z(model: Transformer, tokens: Tensor) -> Tensor:
    """z at the last position of tokens [n_prompts, pos]: [n_prompts, n_layers, n_heads, d_head]."""
    names = [f"blocks.{layer}.attn.hook_z" for layer in range(model.cfg.n_layers)]
    z = activations(model, tokens, names, lambda z: z[:, -1], last=True)
    return torch.stack(list(z.values()), dim=1)


def logits_with(model: Transformer, tokens: Tensor, vectors: Tensor, heads: Heads) -> Tensor:
    """Logits [n_rows, d_vocab] at the last position of tokens [n_rows, pos], where z of `heads` is
    what it is plus vectors [n_layers, n_heads, d_head]."""
    cfg = model.cfg
    check_shape("vectors", vectors, [cfg.n_layers, cfg.n_heads, cfg.d_head])
    names = hook_points(model, heads, "attn.hook_z")

    def add(z: Tensor, name: str) -> Tensor:  # [n_rows, pos, head, d_head]
        layer = int(name.split(".")[1])
        here = [index for block, index in map(parse, heads) if block == layer]
        z[:, -1, here] += vectors[layer, here]
        return z

    return last_logits(model, tokens, Hooks(dict.fromkeys(names, add)))


def cells(change: Tensor, zero: int, k: int) -> Tensor:
    """The cells y = x + k, [n_inputs], of a map [n_inputs, n_numbers], number 0 in column `zero`.
    Raises ValueError where the map has no such column."""
    n_inputs, n_numbers = change.shape
    if zero + k < 0 or zero + k + n_inputs > n_numbers:
        missing = f"x{k:+d} for each of the {n_inputs} inputs"
        raise ValueError(f"the {n_numbers} columns do not hold {missing}")
    return change.diagonal(zero + k)


def moves(change: Tensor, zero: int, k: int) -> float:
    """How much a map moves the answer from x to x + k: that cell minus cell x, mean over x."""
    return (cells(change, zero, k) - cells(change, zero, 0)).mean().item()


class Naive:
    """Naive prompts [n_inputs, n_demos, pos] that vectors are tried on; row x is to be answered x.
    All n_rows = n_inputs * n_demos run together. tokens: of consecutive numbers, 0 among them."""

    def __init__(
        self, model: Transformer, prompts: Tensor, tokens: Mapping[int, int], heads: Heads
    ) -> None:
        self.model, self.heads, self.zero = model, heads, list(tokens).index(0)
        self.numbers = torch.tensor([*tokens.values()], device=model.device)  # [n_numbers]
        self.n_inputs, n_demos, _ = prompts.shape
        self.tokens = prompts.flatten(0, 1)  # [n_rows, pos]
        self.inputs = torch.arange(self.n_inputs, device=model.device).repeat_interleave(n_demos)
        self.before = last_logits(model, self.tokens)  # [n_rows, d_vocab]

    def parts(self, vectors: Tensor) -> Parts:
        """`logits_with` the vector of each head added, and "all": of all heads."""
        parts = {head: [head] for head in self.heads} | {"all": list(self.heads)}
        return {
            part: logits_with(self.model, self.tokens, vectors, heads)
            for part, heads in parts.items()
        }

    def map(self, logits: Tensor) -> Tensor:
        """How far logits [n_rows, d_vocab] rose, mean over demos: [n_inputs, n_numbers]."""
        rise = logits[:, self.numbers] - self.before[:, self.numbers]
        return rise.unflatten(0, (self.n_inputs, -1)).mean(1)

    def hits(self, logits: Tensor, k: int) -> float:
        """Share of the prompts that are answered x + k."""
        right = finite(logits).argmax(-1) == self.numbers[self.zero + self.inputs + k]  # [n_rows]
        return right.double().mean().item()


@torch.no_grad()
def study(
    model: Transformer,
    prompts: Mapping[int, Tensor],
    naive_prompts: Tensor,
    heads: Heads,
    tokens: Mapping[int, int],
    k: int = 1,
) -> Found:
    """Function vectors of `heads`, ready for circuit.json.

    prompts {k: tokens [n_prompts, pos]}: contrast prompts off by several k, 0 (plain) among them.
    naive_prompts, tokens {number: token}: see `Naive`. function_vectors: {head: map, "all": map}
    of this k, columns 0 to n_inputs - 1. In function_vector_scores are
        naive_accuracy  share of naive prompts that are answered x, as they are
        parts[k][part]  with FV(k) added: moves, and hits, the share that is then answered x + k;
                        plain_moves: moves with FV(0) added instead, the control
    Raises ValueError where k is 0, k or 0 is not among the prompts, or x + k is no number.
    """
    twice = len(set(heads)) < len(heads)
    if twice or not len(heads) or k == 0 or not {0, k} <= prompts.keys():
        raise ValueError("function vectors need different heads, and prompts for k and for k = 0")
    naive = Naive(model, naive_prompts, tokens, heads)
    columns = slice(naive.zero, naive.zero + naive.n_inputs)
    logits = {shift: naive.parts(last_z(model, some).mean(0)) for shift, some in prompts.items()}
    plain = {part: naive.map(after) for part, after in logits[0].items()}
    parts: Found = defaultdict(dict)
    drawn = {}
    for shift in sorted(prompts.keys() - {0}):
        for part, after in logits[shift].items():
            change = naive.map(after)
            parts[str(shift)][part] = {
                "moves": moves(change, naive.zero, shift),
                "plain_moves": moves(plain[part], naive.zero, shift),
                "hits": naive.hits(after, shift),
            }
            if shift == k:
                drawn[part] = rounded(change[:, columns].tolist(), 3)
    scores = rounded({"naive_accuracy": naive.hits(naive.before, 0), "parts": parts})
    return {"function_vectors": drawn, "function_vector_scores": scores}
