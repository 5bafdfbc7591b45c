"""What docstrings state of training, tables, memory and discovery: worked out again by hand."""

import json
from contextlib import nullcontext
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path
from statistics import fmean

import pytest
import torch
from test_discovery import edges
from torch.testing import assert_close

import tasks
import train
from minifunc import circuit
from minifunc.ablation import CircuitScores
from minifunc.circuit import Criteria, attention_shares, discover
from minifunc.model import ModelConfig, Transformer
from minifunc.patching import PathPatcher
from minifunc.report import terminal
from minifunc.report.accuracy import accuracy_table
from minifunc.support import checkpoints, evaluation, memory, processes
from minifunc.support.effects import Effects
from minifunc.support.evaluation import accuracy_by_shots
from minifunc.support.files import load_tensors
from minifunc.support.memory import GIB, MemoryBudget
from minifunc.support.settings import described
from train import TrainConfig

SMALL = ModelConfig(
    n_layers=2, n_heads=2, d_model=8, d_head=4, d_mlp=8, d_vocab=len(tasks.VOCABULARY)
)


def random_tokens(*shape, most=9):
    return torch.randint(most, shape, generator=torch.Generator().manual_seed(0))


# ---------------------------------------------------------------- training


def test_every_so_many_th_batch_is_of_half_as_many_documents_twice_as_long():
    cfg = TrainConfig(documents=10, examples=4, long_every=3)
    assert [cfg.batch_at(step) for step in range(1, 7)] == [(10, 4), (10, 4), (5, 7)] * 2
    assert cfg.longest == 7
    never = replace(cfg, long_every=0)
    assert {never.batch_at(step) for step in range(1, 7)} == {(10, 4)} and never.longest == 4
    assert replace(cfg, documents=1).batch_at(3) == (1, 7)


def test_the_optimizer_has_the_settings_of_the_config():
    cfg = TrainConfig(lr=0.5, beta2=0.7, weight_decay=0.3)
    (group,) = train.make_optimizer(Transformer(SMALL), cfg).param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.5, (0.9, 0.7), 0.3)


def test_a_step_goes_along_this_batchs_gradient_clipped_to_its_longest():
    model, cfg = Transformer(SMALL).double(), TrainConfig(clip=0.01)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    documents = tasks.sample(tasks.DEFAULT_DIET, 8, 4, torch.Generator().manual_seed(0))
    batch = documents.tokens, documents.determined
    for _ in range(2):
        before = [weight.detach().clone() for weight in model.parameters()]
        loss = train.loss_on_answers(model, *batch)
        gradient = torch.autograd.grad(loss, list(model.parameters()))
        norm = torch.stack([part.norm() for part in gradient]).norm()
        told, told_norm = train.train_step(model, optimizer, cfg, 1.0, *batch)
        assert_close((told, told_norm), (loss.detach(), norm))
        for old, weight, part in zip(before, model.parameters(), gradient):
            assert_close(old - weight.detach(), part * 0.01 / norm, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("seed", [3, 4])
def test_a_run_starts_by_its_seed_and_follows_its_schedule(seed, tmp_path, monkeypatch):
    cfg = TrainConfig(seed=seed, steps=5, documents=4, examples=2, eval_every=2, warmup=3)
    steps, evaluated, weights = [], [], []

    def step(model, optimizer, cfg, rate, tokens, determined):
        steps.append((rate, tokens))
        weights.append([weight.detach().clone() for weight in model.parameters()])
        return torch.tensor(1.0), torch.tensor(1.0)

    def evaluate(model, n_prompts, every_task):
        evaluated.append((len(steps), n_prompts, every_task))
        return {"addition": {"0": {"8": 0.5}, "1": {"8": 0.5}}}

    monkeypatch.setattr(train, "train_step", step)
    monkeypatch.setattr(train, "evaluate", evaluate)
    train.train(tmp_path, SMALL, cfg, tasks.DEFAULT_DIET, torch.device("cpu"))
    start = Transformer(SMALL, torch.Generator().manual_seed(seed))
    assert_close(weights[0], [weight.detach() for weight in start.parameters()], rtol=0, atol=0)
    assert [rate for rate, _ in steps] == [cfg.lr_at(number) for number in range(1, 6)]
    data = torch.Generator().manual_seed(seed + 1_000_000)
    for number, (_, tokens) in enumerate(steps, start=1):
        documents = tasks.sample(tasks.DEFAULT_DIET, *cfg.batch_at(number), data)
        assert torch.equal(tokens, documents.tokens)
    assert evaluated == [(2, 100, False), (4, 100, False), (5, 100, False)]


def test_what_is_done_after_a_step_is_in_its_metrics_and_its_checkpoint(tmp_path, monkeypatch):
    """An intervention of step 2, say, is part of the weights of step 2 wherever they are looked at:
    by the evaluation of that step, by its checkpoint, by the next step and by the caller."""
    cfg = TrainConfig(steps=4, documents=2, examples=2, eval_every=2)
    done, evaluated, saved, entered = [], [], [], []
    take_step, save = train.train_step, checkpoints.Progress.save

    def mark(step, model):
        done.append(step)
        model.unembed.W_U.data.fill_(step)

    def mark_of(weights):
        marks = weights.unique().tolist()
        return int(marks[0]) if len(marks) == 1 else 0  # 0: as an update left them

    def evaluate(model, *how, **more):
        evaluated.append(mark_of(model.unembed.W_U))
        return {"addition": {"0": {}, "1": {}}}

    def enter(model, *rest):
        entered.append(mark_of(model.unembed.W_U))
        return take_step(model, *rest)

    def read_again(run):
        save(run)
        saved.append([mark_of(load_tensors(run.out / "model.pt")["unembed.W_U"])])
        saved[-1].append(mark_of(load_tensors(run.out / "resume.pt")["model"]["unembed.W_U"]))

    monkeypatch.setattr(train, "evaluate", evaluate)
    monkeypatch.setattr(train, "train_step", enter)
    monkeypatch.setattr(checkpoints.Progress, "save", read_again)
    diet, cpu = tasks.DEFAULT_DIET, torch.device("cpu")
    model = train.train(tmp_path, SMALL, cfg, diet, cpu, after_step=mark)
    assert done == [1, 2, 3, 4] and entered == [0, 1, 2, 3]
    assert evaluated == [2, 4] and saved == [[2, 2], [4, 4]]
    assert mark_of(model.unembed.W_U) == 4


def test_metrics_are_of_addition_alone_at_the_stated_shots():
    assert train.SHOTS == (1, 2, 4, 8, 16)
    assert list(train.evaluate(Transformer(SMALL), 8, every_task=False)) == ["addition"]


def test_a_model_is_drawn_by_seed_0_if_no_generator_is_given():
    plain, seeded = Transformer(SMALL), Transformer(SMALL, torch.Generator().manual_seed(0))
    assert_close(dict(plain.named_parameters()), dict(seeded.named_parameters()), rtol=0, atol=0)


def test_the_reference_run_was_trained_with_the_defaults():
    """So what is read of it holds for what `make train` makes."""
    config = json.loads((Path(__file__).parents[1] / "reference" / "config.json").read_text())
    defaults = {"model": train.MODEL, "train": TrainConfig(), "diet": tasks.DEFAULT_DIET}
    stated = json.loads(json.dumps(described(*defaults.values(), tasks.VOCABULARY)))
    assert {part: config[part] for part in defaults} == {part: stated[part] for part in defaults}
    assert config["vocabulary"] == tasks.VOCABULARY


# ---------------------------------------------------------------- tables of accuracy


def asked_of(model, names, shots, n, monkeypatch):
    """The prompts that a table is made of: {(task, k, shots): contrast tokens}."""
    asked, draw = {}, tasks.evaluation_pairs

    def record(task, k, shots, n_prompts, generator):
        pairs = draw(task, k, shots, n_prompts, generator)
        asked[task, k, shots] = pairs.contrast
        return pairs

    def nothing_right(model, tokens, answers):
        return torch.zeros(len(tokens))

    monkeypatch.setattr(tasks, "evaluation_pairs", record)
    monkeypatch.setattr(evaluation, "answers_right", nothing_right)
    table = accuracy_by_shots(model, tasks, names, shots, n)
    monkeypatch.undo()
    return asked, table


def test_each_k_of_a_task_is_asked_as_often_as_stated(monkeypatch):
    asked, _ = asked_of(Transformer(SMALL), list(tasks.TASKS), [1], 24, monkeypatch)
    for (task, _, _), tokens in asked.items():
        often = {"addition": 24, "base_addition": 24 // 3}.get(task, 24 // 8)
        assert len(tokens) == often
    assert {(task, k) for task, k, _ in asked} == {
        (task, k) for task, kind in tasks.TASKS.items() for k in kind.ks
    }


def test_every_model_is_asked_the_same_prompts_however_short_its_context(monkeypatch):
    names, shots = ["addition", "caesar"], [2, 8, 3]
    asked, table = asked_of(Transformer(SMALL), names, shots, 8, monkeypatch)
    other = replace(SMALL, n_layers=1, n_heads=1, n_ctx=40)
    asked_other, shorter = asked_of(Transformer(other), names, shots, 8, monkeypatch)
    for key, tokens in asked.items():
        assert key[2] == 8 or torch.equal(tokens, asked_other[key])
    assert list(table["caesar"]["1"]) == ["2", "8", "3"]
    assert list(shorter["caesar"]["1"]) == ["2", "3"]


def test_a_row_of_the_printed_table_is_the_mean_over_all_its_k():
    def share(name, k, number):
        return (7 * len(name) + 13 * int(k) ** 2 + 5 * int(k) + number) % 97 / 97

    ks = {name: range(-4, 5) for name in ("addition", "caesar", "choice")}
    ks["base_addition_carry"] = range(6, 10)
    table = {
        name: {str(k): {str(number): share(name, k, number) for number in (1, 8)} for k in some}
        for name, some in ks.items()
    }
    lines = accuracy_table(table, tasks, tasks.DEFAULT_DIET, [1, 8], 10)[3:]
    rows = {line[:30].strip(): line[30:42].split() for line in lines}
    stated = {f"addition off by {k:+d}": ("addition", [k]) for k in range(-4, 5) if k}
    for name in ("addition", "caesar", "choice"):
        stated[f"{name} plain"] = (name, [0])
    for name in ("caesar", "choice"):
        stated[f"{name} shifted"] = (name, [-4, -3, -2, -1, 1, 2, 3, 4])
    stated["base addition carry 6..9"] = ("base_addition_carry", range(6, 10))
    assert rows.keys() == stated.keys()
    for title, (name, some) in stated.items():
        means = [fmean(share(name, k, number) for k in some) for number in (1, 8)]
        assert rows[title] == [f"{mean:.3f}" for mean in means]


# ---------------------------------------------------------------- memory, processes


@pytest.mark.parametrize("gib", [1e-4, 1e-3, 1e-2, None])
@pytest.mark.parametrize("n_prompts", [1, 7, 1000, 100_000])
def test_chunks_fit_their_halves_of_the_budget_and_fill_them(gib, n_prompts):
    budget = MemoryBudget(Transformer(SMALL), 16, gib)
    half = (2 if gib is None else gib) * GIB / 2
    most_rows = min(half, memory.CPU_ROWS) // budget.row_bytes(16)
    one = budget.cache_bytes()
    assert budget.keeps(n_prompts) == (n_prompts * one <= half)
    in_cache = half // one if budget.keeps(n_prompts) else half / 2 // one
    chunks = budget.prompt_ranges(range(3, 3 + n_prompts))
    size = min(n_prompts, in_cache, most_rows)
    assert [(chunk.start, chunk.stop) for chunk in chunks] == [
        (start, min(start + size, 3 + n_prompts)) for start in range(3, 3 + n_prompts, int(size))
    ]
    for n_pos in (1, 16):
        rows = min(half, memory.CPU_ROWS) // budget.row_bytes(n_pos)
        for part in budget.row_ranges(50, 5, n_pos):
            assert part.stop - part.start == max(1, rows // 5)


def test_the_cached_runs_of_a_prompt_take_what_the_budget_counts():
    paired = patcher(act_fn="relu", n_layers=8)
    (runs,) = paired.cached_runs()
    held = {x.data_ptr(): x.nbytes for x in (*runs.contrast.values(), *runs.base.values())}
    counted = 3 * paired.budget.cache_bytes()
    assert 0.75 * counted < sum(held.values()) <= counted


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_the_parts_of_all_processes_are_the_whole_and_do_not_overlap(world_size, monkeypatch):
    monkeypatch.setattr(processes, "world_size", lambda: world_size)
    for n in (0, 1, 5, 12):
        shares, ranges = [], []
        for rank in range(world_size):
            monkeypatch.setattr(processes, "rank", lambda: rank)  # noqa: B023
            shares += processes.share(list(range(n)))
            ranges += processes.own_range(n)
        assert sorted(shares) == list(range(n)) == ranges


@pytest.mark.parametrize("others", [0, 1, 2])
@pytest.mark.parametrize("own", [False, True])
def test_one_process_is_enough_for_any(own, others, monkeypatch):
    monkeypatch.setattr(processes, "all_sum", lambda count: count.add_(others))
    assert processes.any_process(own) == (own or others > 0)


# ---------------------------------------------------------------- effects


def test_the_map_of_effects_is_in_percent_the_highest_layer_on_top():
    heads, mlps = torch.tensor([[0.1, -0.2], [0.3, 0.4]]), torch.tensor([0.5, -0.6])
    assert str(Effects(heads, mlps, torch.tensor(0.7))).splitlines() == [
        "layer      h0     h1    mlp",
        "    1    30.0   40.0  -60.0",
        "    0    10.0  -20.0   50.0",
        "embed    70.0",
    ]


def patcher(**changes):
    shape = replace(SMALL, d_vocab=9, d_model=16, d_head=4, **changes)
    model = Transformer(shape).requires_grad_(False)
    base, contrast = random_tokens(2, 3, 6)
    return PathPatcher(model, base, contrast, torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5]))


def test_a_joint_sender_has_an_effect_of_its_own_and_lends_it_to_no_member():
    together = patcher().sweep(circuit.Logits(), [["0.0", "1.1"], "0.1"])
    named = {name: r for name, r in together.named().items() if r == r}
    assert named == {"0.1": together.r[1].item()}
    twice = patcher().sweep(circuit.Logits(), [["0.1", "0.1"]])  # one sender all the same
    assert_close(twice.heads[0, 1], together.r[1], rtol=0, atol=1e-6)


def test_F_is_a_difference_in_float64_of_logits_of_any_precision():
    logits = torch.zeros(3, 9)
    logits[:, 3:6] = 1e-9
    logits[torch.arange(3), torch.arange(3)] = 1.0
    F = patcher().score(logits, slice(0, 3))
    small = torch.tensor(1e-9).double().item()
    assert F.dtype == torch.float64
    assert F.tolist() == [float(Fraction(1) - Fraction(small))] * 3


@pytest.mark.parametrize("F_range, refused", [(9e-7, True), (-9e-7, True), (2e-6, False)])
def test_a_share_of_next_to_nothing_is_refused(F_range, refused):
    scores = object.__new__(CircuitScores)
    scores.F_range = F_range
    with pytest.raises(ValueError, match="nothing") if refused else nullcontext():
        assert scores.share(1e-6) == 1e-6 / F_range


# ---------------------------------------------------------------- discovery


def test_the_thresholds_are_those_of_the_committed_results():
    shares = {"solves": 0.5, "strong": 0.05, "feeds": 0.02, "faithful": 0.9}
    looks = {"looks_at_answers": 0.3, "looks_at_self_or_bos": 0.5}
    looks |= {"looks_at_previous": 0.3}
    assert asdict(Criteria()) == shares | looks


def test_attention_shares_are_those_of_the_patterns_place_by_place():
    model = Transformer(replace(SMALL, d_vocab=9), torch.Generator().manual_seed(1))
    model.requires_grad_(False)
    for _, weight in model.named_parameters():
        weight.data *= 2  # so that heads look somewhere
    n_shots, tokens = 3, random_tokens(5, 6 * 3 + 5)
    answers = [5, 11, 17]
    _, cache = model.run_with_cache(tokens)
    found = attention_shares(model, tokens, torch.tensor(answers))
    for name, shares in found.items():
        layer, head = map(int, name.split("."))
        looks = cache[f"blocks.{layer}.attn.hook_pattern"][:, head].double().mean(0)
        last = len(looks) - 1
        stated = {
            "last_to_answers": sum(looks[last, at] for at in answers),
            "answer_to_previous": sum(looks[at, at - 1] for at in answers) / n_shots,
            "answer_to_operands": sum(looks[at, at - 4] + looks[at, at - 2] for at in answers)
            / n_shots,
            "last_to_self": looks[last, last],
            "last_to_bos": looks[last, 0],
            "last_to_operands": looks[last, last - 3] + looks[last, last - 1],
        }
        assert shares == pytest.approx({key: float(x) for key, x in stated.items()}, abs=6e-5)


class Traced:
    """Stands in for a patcher of 4 layers × 3 heads: {receiver: {sender: r}}, all others 0.
    Receivers overwritten together are joined by `+`."""

    model = freeze_mlps = None
    contrast_tokens = torch.zeros(1)

    def __init__(self, known):
        self.known = known

    def sweep(self, receiver):
        return self.sweep_each([receiver])[0]

    def sweep_each(self, receivers):
        found = []
        for receiver in receivers:
            together = receiver if isinstance(receiver, list) else [receiver]
            r = self.known.get("+".join(map(str, together)), {})
            heads = [[r.get(f"{layer}.{head}", 0.0) for head in range(3)] for layer in range(4)]
            mlps = [r.get(f"mlp{layer}", 0.0) for layer in range(4)]
            values = (heads, mlps, r.get("embedding", 0.0))
            found.append(Effects(*(torch.tensor(x, dtype=torch.float64) for x in values)))
        return found


TRACED = {  # 2.0 and mlp1 just reach their thresholds
    "answers": {
        "logits": {"3.0": -0.5, "3.1": -0.2, "2.1": 0.1, "mlp3": 0.3, "1.0": 0.03},
        "3.0.v": {"1.0": -0.3, "2.1": -0.1, "mlp2": 0.2, "0.2": 0.019},
        "3.0.v+3.1.v": {"1.1": -0.03},  # counts on both together alone
        "2.1.q": {"0.1": -0.2},
        "mlp3": {"0.0": 0.1},
        "mlp2": {"2.2": 0.1},
        "1.0.v": {"embedding": -0.9, "0.1": 0.5},
        "1.0.v+1.1.v+2.1.v": {"mlp0": -0.4},
    },
    "operands": {
        "logits": {"3.0": -0.5, "3.1": -0.2, "2.0": 0.05},
        "3.1.k": {"1.2": -0.25},
        "1.2.v": {"mlp1": -0.02},
    },
}


def looks(**shares):
    names = ("last_to_answers", "answer_to_previous", "answer_to_operands", "last_to_self")
    return dict.fromkeys((*names, "last_to_bos", "last_to_operands"), 0.0) | shares


@pytest.fixture
def found(monkeypatch):
    attention = {f"{layer}.{head}": looks() for layer in range(4) for head in range(3)}
    for head in ("3.0", "3.1"):
        attention[head] = looks(last_to_answers=0.3, answer_to_previous=0.9)
    attention["2.1"] = looks(last_to_self=0.3, last_to_bos=0.2)
    for head in ("0.1", "1.0"):
        attention[head] = looks(answer_to_previous=0.3)
    monkeypatch.setattr(circuit, "attention_shares", lambda *_: attention)
    patchers = {contrast: Traced(known) for contrast, known in TRACED.items()}
    return discover(patchers, torch.tensor([5]), Criteria())


def test_discovery_groups_the_nodes_of_known_effects_as_stated(found):
    assert found.groups == {
        "function_induction": ["3.0", "3.1"],
        "consolidation": ["2.1"],
        "other_direct": [],
        "shown_answer": ["1.0", "1.1", "2.1"],
        "expected_answer": ["1.2"],
        "upstream": ["0.0", "0.1", "2.0", "2.2"],
        "previous_token": ["0.1", "1.0"],
    }
    strongest_first = [("1.0", -0.3), ("mlp2", 0.2), ("2.1", -0.1), ("1.1", -0.03)]
    assert list(found.routes["shown_answer"].items()) == strongest_first
    assert found.routes["expected_answer"] == {"1.2": -0.25}


def test_the_effects_that_count_are_those_traced_and_no_others(found):
    stated = set()
    for contrast, known in TRACED.items():
        for receiver, senders in known.items():
            name = {"3.0.v+3.1.v": "function_induction.v", "1.0.v+1.1.v+2.1.v": "shown_answer.v"}
            least = 0.05 if receiver == "logits" else 0.02
            for sender, r in senders.items():
                if abs(r) >= least:
                    stated.add((sender, name.get(receiver, receiver), contrast, r))
    # One head is a group of its own.
    stated.add(("mlp1", "expected_answer.v", "operands", -0.02))
    assert {(*edge, r) for edge, r in edges(found).items()} == stated


def test_the_heads_reused_are_told_by_the_shifted_answers_of_tasks_that_show_a_shift():
    """Rows by fours: base prompts, contrast prompts, these without FI heads, without random ones.
    Sums in base k that carry nothing show no shift, so they are left out."""
    shares = {"all": (0.0, 1.0, 0.2, 0.9), "carry": (0.0, 0.8, 0.4, 0.7), "no carry": (0.5,) * 4}
    rows = [
        {"items": items, "contrast_acc": x, "base_acc": x / 2}
        for items, row in shares.items()
        for x in row
    ]
    (line,) = terminal.spared({"reuse": rows})
    assert "2 tasks: shifted and plain answers 0.90 and 0.45, without them 0.30 and 0.15" in line
    assert "random ones 0.80 and 0.40" in line
    assert terminal.spared({"reuse": rows[8:]}) == []


def test_a_shift_of_addition_that_the_diet_shows_is_not_marked_as_never_trained_on():
    table = {"addition": {str(k): {"8": 1.0} for k in (0, 1, 2)}}
    diet = replace(tasks.DEFAULT_DIET, shifted_addition=(2,))
    lines = accuracy_table(table, tasks, diet, [8], 10)[3:]
    assert ["never trained on" in line for line in lines] == [False, True, False]
