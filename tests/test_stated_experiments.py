"""What the experiments state of their runs, rows and tables, with values known by hand."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import tasks
import train
from experiments import (
    catalogue,
    dependability,
    diets,
    emergence,
    experiment,
    measure,
    precursor,
    runs,
    seeds,
    summary,
    universality,
    unseen_shifts,
)
from minifunc.ablation import Ablator, CircuitScores, all_heads
from minifunc.analysis import scores
from minifunc.circuit import Criteria
from minifunc.model import ModelConfig, Transformer
from minifunc.support import checks
from minifunc.support.names import parse
from minifunc.support.runs import weights_hash

TINY = ModelConfig(n_layers=2, n_heads=2, d_model=16, d_head=8, d_mlp=16, n_ctx=128)
TINY = replace(TINY, d_vocab=len(tasks.VOCABULARY), act_fn="relu")
EVERY_K = (-4, -3, -2, -1, 1, 2, 3, 4)
NAMES = list(tasks.FUNCTIONS)
PLUS_FREE = {"copy", "plain", "relabel", "reflect"}  # the wrappers that + may meet, `strict`


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def cells(table):
    """The lines of a table as lists of words; columns stand apart by two spaces or more."""
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in table]


# ---------------------------------------------------------------- the diets

ALL_WRAPPERS = {"plain", "shift", "base", "relabel", "reflect", "copy"}
# What documents of a diet are wrapped in, whether a document mixes functions, the wrappers of +.
LADDER = {
    "addition": ({"plain"}, False, {"plain"}),
    "copied": ({"plain", "copy"}, False, {"plain", "copy"}),
    "shifted": ({"plain", "shift", "base", "copy"}, False, {"plain", "copy"}),
    "mixed": ({"plain", "shift", "base", "copy"}, True, {"plain", "copy"}),
    "relabelled": (ALL_WRAPPERS - {"reflect"}, True, {"plain", "copy", "relabel"}),
    "strict": (ALL_WRAPPERS, True, PLUS_FREE),
    "even": (ALL_WRAPPERS, True, PLUS_FREE),
    "no_relabel": (ALL_WRAPPERS - {"relabel"}, True, PLUS_FREE - {"relabel"}),
    "no_mixed": (ALL_WRAPPERS, False, PLUS_FREE),
    "no_copy": (ALL_WRAPPERS - {"copy"}, True, PLUS_FREE - {"copy"}),
    "held_out_cell": (ALL_WRAPPERS, True, PLUS_FREE | {"shift"}),
    "held_out_half": (ALL_WRAPPERS, True, PLUS_FREE | {"shift"}),
    "plus_plain": (ALL_WRAPPERS, True, {"plain"}),
    "plus_plain_often": (ALL_WRAPPERS, True, {"plain"}),
    "default_plus_plain": (ALL_WRAPPERS, True, {"plain"}),
    "default_plus_plain_often": (ALL_WRAPPERS, True, {"plain"}),
    "plus_relabel": (ALL_WRAPPERS, True, {"plain", "relabel"}),
    "plus_reflect": (ALL_WRAPPERS, True, {"plain", "reflect"}),
    "shifted_1": (ALL_WRAPPERS, True, PLUS_FREE),
    "shifted_3": (ALL_WRAPPERS, True, PLUS_FREE),
    "addition_low": (ALL_WRAPPERS, True, PLUS_FREE),
    "addition_high": (ALL_WRAPPERS, True, PLUS_FREE),
    "hold_minus": (ALL_WRAPPERS, True, PLUS_FREE | {"shift"}),
    "hold_max_reflect": (ALL_WRAPPERS, True, PLUS_FREE | {"shift"}),
    tasks.DEFAULT_DIET.name: (ALL_WRAPPERS, True, PLUS_FREE),
}
SHIFTS_OF_PLUS = {"held_out_cell": set(EVERY_K) - {1}, "held_out_half": {-4, -3, -2, -1}}
SHIFTS_OF_PLUS |= dict.fromkeys(("hold_minus", "hold_max_reflect"), set(EVERY_K))
SHOWN_SHIFTED = {"shifted_1": {"same"}, "shifted_3": {"same", "-", "max"}}
SHOWN = {"all": EVERY_K, "odd": (-3, -1, 1, 3), "even": (-4, -2, 2, 4), "plus_one": (1,)}
SHOWN |= {"negative": (-4, -3, -2, -1), "small": (-1, 1), "large": (-4, -3, 3, 4)}
SHOWN |= {f"all_but_{k:+d}": tuple(x for x in EVERY_K if x != k) for k in (1, -1, 2, -3, 4)}


def test_the_list_of_diets_is_that_of_the_claims():
    assert {diet.name for diet in catalogue.ALL} == set(catalogue.COMPARED) == set(LADDER)
    assert len(catalogue.ALL) == len(LADDER)
    assert {kind: diet.shifts for kind, diet in catalogue.SOME_SHIFTS.items()} == SHOWN
    assert set(catalogue.DIETS) == {*LADDER, *(f"shifts_{kind}" for kind in SHOWN)}
    for name, diet in catalogue.DIETS.items():
        assert diet.name == name
        even = name in ("even", tasks.DEFAULT_DIET.name) or name.startswith("shifts_")
        assert diet.even_sums == (even or name.startswith("default_"))
    assert catalogue.DIETS["addition_low"].addition < 1 < catalogue.DIETS["addition_high"].addition
    ratios = [catalogue.DIETS[f"addition_{x}"].addition for x in ("low", "high")]
    assert [ratio / catalogue.DIETS["strict"].addition for ratio in ratios] == [0.25, 4.0]


@pytest.mark.parametrize("name", LADDER)
def test_a_diet_shows_what_its_name_says_and_nothing_else(name):
    wrappers, mixes, of_plus = LADDER[name]
    drawn = tasks.sample(catalogue.DIETS[name], 800, 3, generator())
    wrapped = [tasks.WRAPPERS[number] for number in drawn.wrapper.tolist()]
    assert set(wrapped) == wrappers
    assert ((drawn.function != drawn.function[:, :1]).any()) == mixes
    met, shifted, k_of_plus = set(), set(), set()
    off = drawn.answer - drawn.value
    for row, wrapper in enumerate(wrapped):
        functions = drawn.function[row].tolist()
        met |= {wrapper} if tasks.PLUS in functions else set()
        if wrapper == "shift":
            shifted |= set(functions)
            k_of_plus |= {o for o, f in zip(off[row].tolist(), functions) if f == tasks.PLUS}
    assert met == of_plus
    assert k_of_plus == SHIFTS_OF_PLUS.get(name, set())
    usual = set(NAMES) - {"choice"} - ({"-"} if name == "hold_minus" else set())
    usual -= set() if name in SHIFTS_OF_PLUS else {"+"}
    expected = SHOWN_SHIFTED.get(name, usual) if "shift" in wrappers else set()
    assert {NAMES[number] for number in shifted} == expected
    if name in ("addition", "copied"):
        assert set(drawn.function.flatten().tolist()) == {tasks.PLUS}
    if name == "hold_max_reflect":
        reflected = drawn.wrapper == tasks.WRAPPERS.index("reflect")
        seen = {NAMES[i] for i in drawn.function[reflected].unique().tolist()}
        assert "max" not in seen and "min" in seen


# ---------------------------------------------------------------- the runs

PLAN = {  # experiment: (kinds, runs, steps of most, whether a call goes on with the rows)
    dependability: (1, 10, 3500, False),
    emergence: (1, 3, 3500, False),
    unseen_shifts: (12, 60, 1500, True),
    precursor: (4, 48, 1700, True),
    universality: (16, 16 * 3 + 2, 700, False),
    diets: (25, 25 * 2 + 17, 700, False),
}


@pytest.mark.parametrize("module", PLAN, ids=lambda module: module.__name__)
def test_an_experiment_is_as_large_as_stated(module):
    made = module.EXPERIMENT
    n_kinds, n_runs, steps, grows = PLAN[module]
    assert made.name == module.__name__.split(".")[1] and made.doc == module.__doc__
    assert len(made.kinds) == n_kinds and made.grows == grows
    all_of_it = made.runs(made.kinds, quick=False)
    assert len(all_of_it) == n_runs
    seeds_first = [run.train.seed for run in all_of_it]
    assert seeds_first == sorted(seeds_first)  # every kind once before any a second time
    longer = [run for run in all_of_it if run.name.endswith("_longer")]
    assert {run.train.steps for run in all_of_it if run not in longer} == {steps}
    assert {run.train.steps for run in longer} <= {1750} and len(longer) in (0, 12)
    quick = made.runs(made.kinds, quick=True)
    assert len(quick) == n_kinds and {run.train.seed for run in quick} == {0}
    for run in all_of_it:
        default = train.TrainConfig()
        short = module in (universality, diets)
        assert run.train.lr == (1e-2 if short else default.lr)
        if module in (universality, diets, unseen_shifts):  # in the middle and at the end
            assert run.train.eval_every == run.train.steps // 2
        else:
            assert run.train.eval_every == default.eval_every
    assert [made.make(made.kinds[0], 0, n).train.eval_every for n in (1, 3)] in ([1, 1], [250, 250])


def test_seeds_and_averaging_are_of_the_ten_default_runs():
    runs_of = [each.runs(each.kinds, False) for each in (seeds.EXPERIMENT, seeds.AVERAGING)]
    assert runs_of[0] == runs_of[1] == dependability.EXPERIMENT.runs(("default",), False)
    assert [seeds.EXPERIMENT.name, seeds.AVERAGING.name] == ["seeds", "averaging"]
    default = runs_of[0][3]
    assert default.train == replace(train.TrainConfig(), seed=3)
    assert default.diet == tasks.DEFAULT_DIET.name and default.model == train.MODEL
    assert default.snapshots[0] == 1 and default.snapshots[-1] == 3500


def test_each_model_of_universality_differs_from_the_default_by_what_its_name_says():
    wanted = {"default": {}, "learned_positions": {"positions": "learned"}}
    wanted["attention_only"] = {"act_fn": "none"}
    wanted |= {f"{n}_layers": {"n_layers": n} for n in (2, 3, 5, 6)}
    sizes = {"1_head": (1, 96), "2_heads": (2, 48), "8_heads": (8, 12)}
    wanted |= {name: {"n_heads": n, "d_head": size} for name, (n, size) in sizes.items()}
    wanted |= {f"width_{d}": {"d_model": d, "d_mlp": 4 * d} for d in (32, 128)}
    default = vars(train.MODEL)
    assert default["n_heads"] * default["d_head"] == 96
    for name, changes in wanted.items():
        run = universality.make(name, 1, 700)
        assert vars(run.model) == default | changes and run.name == f"model_{name}"
        assert run.train.steps == 700 and run.train.seed == 1
        row = universality.rows(run, {"diverged": True})[0]
        n_weights = sum(weight.numel() for weight in Transformer(run.model).parameters())
        assert row["config"]["n_parameters"] == n_weights and row["config"]["name"] == name
        assert row["config"]["n_layers"] == run.model.n_layers and row["fi_heads"] is None
    longer = {"2_layers", "1_head", "learned_positions", "attention_only"}
    for name in longer:
        run = universality.make(f"{name}_longer", 0, 700)
        assert run.train.steps == 1750 and vars(run.model) == default | wanted[name]
    assert set(universality.KINDS) == {*wanted, *(f"{name}_longer" for name in longer)}


def test_runs_of_precursor_and_unseen_shifts_are_what_their_kinds_say():
    by_kind = {kind: precursor.make(kind, 7, 90) for kind in precursor.KINDS}
    assert list(by_kind) == ["none", "no_copy_induction", "no_previous_token", "random_heads"]
    assert by_kind["none"].intervention is None
    chosen = {kind: run.intervention.args[0] for kind, run in by_kind.items() if kind != "none"}
    assert chosen["no_copy_induction"] is precursor.copy_induction_heads
    assert chosen["no_previous_token"] is precursor.previous_token_heads
    assert chosen["random_heads"] is precursor.random_heads
    after = {kind: run.after for kind, run in by_kind.items() if run.after}
    assert after == {"random_heads": "precursor_no_copy_induction"}
    for kind, run in by_kind.items():
        assert (run.train.seed, run.train.steps) == (7, 90)
        assert run.diet == tasks.DEFAULT_DIET.name and run.name == f"precursor_{kind}"
    unseen = unseen_shifts.make("odd", 4, 90)
    assert (unseen.diet, unseen.name) == ("shifts_odd", "unseen_odd")
    assert (unseen.train.seed, unseen.train.steps) == (4, 90)
    diet = diets.make("strict", 5, 90)
    assert (diet.diet, diet.name, diet.train.seed) == ("strict", "diet_strict", 5)


def test_a_head_passes_from_the_threshold_of_a_previous_token_head_on():
    least = Criteria().looks_at_previous
    score = torch.tensor([[least, least - 0.01], [0.0, 1.0]])
    assert precursor.passing(score) == {"0.0", "1.1"}


def test_heads_are_looked_for_by_the_score_that_their_kind_names(monkeypatch):
    asked = []
    monkeypatch.setattr(precursor, "passing", lambda score: {"score": score})
    model = Transformer(TINY, generator(3)).requires_grad_(False)
    shape = (None, model, None, None)
    tokens, period, queries, _ = measure.repeated_documents(32)
    copying = precursor.copy_induction_heads(*shape)["score"]
    assert torch.equal(copying, scores.copy_induction_score(model, tokens, period, queries))

    def previous(model, prompts, places):
        asked.append((prompts, places.tolist()))
        return prompts

    monkeypatch.setattr(precursor, "previous_token_score", previous)
    precursor.previous_token_heads(*shape)
    [(prompts, places)] = asked
    assert len(prompts) == 32 and places == tasks.answer_positions(8).tolist()
    shown = prompts[:, places] - tasks.ZERO
    x, y = (prompts[:, [place - at for place in places]] - tasks.ZERO for at in (4, 2))
    assert torch.equal(shown, x - y + 2)  # subtraction, off by two


@pytest.mark.parametrize(
    "cpuinfo, said, name",
    [
        ("model name\t: Fast 3000\nmodel name\t: other\n", ("p", "m"), "Fast 3000"),
        ("flags : x\n", ("p", "m"), "p"),
        (None, ("", "m"), "m"),
    ],
)
def test_the_processor_is_named_by_linux_or_by_python(monkeypatch, tmp_path, cpuinfo, said, name):
    path = tmp_path / "cpuinfo"
    if cpuinfo:
        path.write_text(cpuinfo)
    monkeypatch.setattr(runs, "Path", lambda _: path)
    monkeypatch.setattr(runs.platform, "processor", lambda: said[0])
    monkeypatch.setattr(runs.platform, "machine", lambda: said[1])
    assert runs.processor() == name


def test_rows_say_how_they_were_made(monkeypatch):
    run = runs.default_run("x", 1, 7)
    assert runs.provenance(run) == {"steps": 7, "criteria": vars(Criteria())}
    monkeypatch.setattr(runs.os, "cpu_count", lambda: 12)
    made = runs.made_on(torch.device("cpu"))["hardware"]
    assert made["cores"] == 12 and made["threads"] == torch.get_num_threads()
    assert made["device"] == "cpu" and made["processor"] == runs.processor()
    short = runs.SHORT
    assert (short.documents, short.long_every, short.lr, short.weight_decay) == (64, 3, 1e-2, 0.2)


@pytest.mark.parametrize("stops, silenced", [(False, []), (True, [runs.signal.SIGINT])])
def test_a_worker_counts_its_steps_and_stops_when_asked(monkeypatch, stops, silenced):
    raised = []
    n_steps = runs.multiprocessing.get_context("spawn").Value("q", 5)
    stop = SimpleNamespace(is_set=lambda: stops)
    monkeypatch.setattr(runs, "shared", (n_steps, stop))
    monkeypatch.setattr(runs.signal, "raise_signal", raised.append)
    runs.count_steps(3)
    assert n_steps.value == 8 and raised == silenced


def test_one_run_has_one_thread(monkeypatch):
    """A worker is set up: one thread, its parent watched, no bars."""
    threads, started = [], []
    monkeypatch.setattr(runs.torch, "set_num_threads", threads.append)
    monkeypatch.setattr(runs.signal, "signal", lambda *_: None)
    monkeypatch.setattr(runs, "let_ctrl_c_in", started.append)
    monkeypatch.setattr(runs.sys, "stderr", None)
    monkeypatch.setattr(runs, "shared", None)
    thread = SimpleNamespace(
        Thread=lambda **how: SimpleNamespace(start=lambda: started.append(how))
    )
    monkeypatch.setattr(runs, "threading", thread)
    runs.start_worker("steps", "stop")
    assert threads == [1] and runs.shared == ("steps", "stop")
    assert started[0] is True and started[1]["daemon"] is True
    runs.sys.stderr.close()


# ---------------------------------------------------------------- sums over several runs

STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306}
STUDENT |= {10: 2.262, 11: 2.228, 12: 2.201, 16: 2.131, 31: 2.042}  # by number of values


@pytest.mark.parametrize("n", STUDENT)
def test_an_interval_is_students_and_never_too_narrow(n):
    values = [0.1 * (i % 3) + 0.01 * i for i in range(n)]
    mean = sum(values) / n
    error = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1) / n)
    got, half = summary.mean_ci([None, *values, None])
    assert got == pytest.approx(mean)
    assert half >= STUDENT[n] * error * (1 - 1e-9)
    if n in (2, 3, 4, 5, 6, 8, 10, 12):
        assert half == pytest.approx(STUDENT[n] * error)
    assert half < 1.1 * STUDENT[n] * error


def test_runs_that_do_the_task_are_those_that_get_half_right():
    rows = [{"diverged": False, "off_by_one_8": share} for share in (0.49, 0.5, 1.0)]
    assert summary.solved([*rows, {"diverged": True, "off_by_one_8": 0.9}]) == rows[1:]
    grouped = summary.by([{"x": 2}, {"x": 1}, {"x": 2, "y": 0}], lambda row: row["x"])
    assert grouped == {2: [{"x": 2}, {"x": 2, "y": 0}], 1: [{"x": 1}]} and list(grouped) == [2, 1]
    some = [{"diverged": False, "a": 1.0, "b_8": 0.25}, {"diverged": True, "a": None, "b_8": None}]
    assert summary.means(some, "a", "b_8", digits=3) == ["1.000", "0.125 ± 1.588"]


def row_of(seed, right, **more):
    shares = dict.fromkeys(map(str, EVERY_K), 0.5) | {"1": right, "4": 0.25}
    row = {"seed": seed, "diverged": False, "steps": 9, "plain_8": 0.9, "off_by_one_8": right}
    row |= {"off_by_k_8": shares, "fi_heads": ["1.0", "1.1"], "pt_heads": ["0.0"]}
    row |= {"consolidation_heads": [], "top_fi_r": -0.5, "faithfulness": 0.8}
    return row | more


DIVERGED = {"diverged": True, "plain_8": None, "off_by_one_8": None, "off_by_k_8": None}
DIVERGED |= dict.fromkeys(("fi_heads", "pt_heads", "consolidation_heads", "top_fi_r"))
DIVERGED |= {"faithfulness": None, "seed": 9, "steps": 9, "message": "no longer finite"}


def test_the_table_of_dependability_counts_the_seeds_that_reach_95_percent():
    rows = [row_of(0, 0.97), row_of(1, 0.95), row_of(2, 0.94), DIVERGED]
    head, columns, *lines, last = cells(dependability.table(rows))
    assert "8 shots, 9 steps" in head[0]
    assert columns == ["seed", "plain", "-4", "-3", "-2", "-1", "+1", "+2", "+3", "+4"]
    by_seed = {line[0]: line[1:] for line in lines}
    assert by_seed["0"] == ["0.900", *["0.500"] * 4, "0.970", "0.500", "0.500", "0.250"]
    assert by_seed["9"][0] == "diverged"
    assert "lowest 0.000; at least 0.95 with 2 of 4 seeds" in last[0]
    assert "off by one: 0.715 ±" in last[0]  # (0.97 + 0.95 + 0.94 + 0) / 4


def test_the_table_of_universality_counts_runs_that_solve_and_have_all_groups():
    def of(name, right, **more):
        return row_of(0, right, config={"name": name}) | more

    rows = [of("default", 1.0), of("default", 0.4), of("2_layers", 0.8, pt_heads=[])]
    rows += [of("2_layers", 0.6, consolidation_heads=["1.2"], fi_heads=["1.0"])]
    rows += [of("1_head", 0.9, fi_heads=[]), DIVERGED | {"config": {"name": "1_head"}}]
    head, columns, *lines, fi, pt, every = cells(universality.table(rows))
    wanted = ["model", "runs", "solve it", "plain", "off by one", "FI heads", "PT heads"]
    assert columns == [*wanted, "consol.", "top FI r", "faithful"]
    assert "2.5 times as many" in head[0] and "9 steps each" in head[0]
    by_name = {line[0]: line[1:] for line in lines}
    assert by_name["default"][:2] == ["2", "1"] and by_name["2_layers"][:2] == ["2", "2"]
    assert by_name["default"][2].startswith("0.90") and by_name["default"][3].startswith("0.70")
    assert by_name["default"][4:] == [
        "2.0",
        "1.0",
        "0.0",
        "-0.50",
        "0.80",
    ]  # of the one that does it
    assert by_name["2_layers"][4].startswith("1.5 ±") and by_name["2_layers"][5].startswith("0.5")
    assert by_name["1_head"][:2] == ["2", "1"] and by_name["1_head"][3].startswith("0.45")
    assert fi == ["FI heads: in 3 of the 4 runs that do the task"]
    assert pt == ["FI and PT heads: in 2 of the 4 runs that do the task"]
    assert every == ["all three groups: in 1 of the 4 runs that do the task"]


def test_the_table_of_diets_tells_what_each_shows_and_gets_right_of_what_it_does_not():
    def of(name, right, failure, **more):
        shots = {str(n): right - 0.01 * n for n in train.SHOTS}
        cell = {"shift": {"+": right, "choice": 0.5}}
        row = row_of(0, right, diet=name, failure=failure, by_shots={"1": shots}, grid=cell)
        row |= {"shifts_of_plus_shown": [-1, 2], "plus_wrappers": 3, "shifted_functions": 7}
        return row | {"plus_share": 0.25, "held_out": [["shift", "+"]]} | more

    rows = [of("strict", 0.9, "none"), of("strict", 0.7, "the plain answer")]
    rows += [of("copied", 0.8, "none", shifts_of_plus_shown=list(EVERY_K), held_out=[])]
    table = cells(diets.table(rows))
    empty = table.index([])
    (_, columns, strict, copied), second = table[:empty], table[empty + 1 :]
    assert columns[3:-2] == [f"{n} shots" for n in train.SHOTS] and columns[-2] == "unseen k"
    assert strict[:3] == ["strict", "2", "0.90 ± 0.00"]
    by_shots = [float(cell.split()[0]) for cell in strict[3 : 3 + len(train.SHOTS)]]
    assert by_shots == pytest.approx([0.8 - 0.01 * n for n in train.SHOTS], abs=0.0051)
    # Of the eight k all but -1 and +2 were never shown: 1 → right, 4 → 0.25, four times 0.5.
    assert float(strict[-2].split()[0]) == pytest.approx((0.8 + 0.25 + 4 * 0.5) / 6, abs=0.006)
    assert strict[-1] == "none (1), the plain answer (1)" and copied[-2:] == ["–", "none (1)"]
    _, columns, strict, copied = second
    assert columns[1:5] == ["FI", "PT", "top FI r", "faithful"]
    assert [x.split()[0] for x in strict[1:5]] == ["2.0", "1.0", "-0.50", "0.80"]
    assert strict[5:8] == ["3", "7", "0.250"] and strict[8].startswith("(+, shift) 0.80 ±")
    gone = DIVERGED | {"shifts_of_plus_shown": []}
    assert diets.mean_of_unseen_k([gone]) == diets.off_by_one([gone], 8) == [0.0]


def test_what_a_diet_shows_is_told_as_its_documents_do():
    strict = diets.about(catalogue.DIETS["strict"])
    assert strict["wrappers_of_plus"] == ["plain", "relabel", "reflect", "copy"]
    assert strict["plus_wrappers"] == 4 and strict["shifts_of_plus_shown"] == []
    assert strict["shifted_functions"] == len(checks.met_under(catalogue.DIETS["strict"], "shift"))
    assert strict["shifted_functions"] == 7  # all but + and choice
    assert strict["held_out"] == [["shift", "+"], ["shift", "choice"], ["base", "+"]]
    half = diets.about(catalogue.DIETS["held_out_half"])
    assert "shift" in half["wrappers_of_plus"] and half["shifts_of_plus_shown"] == [-4, -3, -2, -1]
    assert ["shift", "+"] not in half["held_out"]
    assert diets.about(catalogue.DIETS["addition"])["plus_share"] == 1.0
    assert 0.1 < strict["plus_share"] < 0.4
    [row] = diets.rows(diets.make("strict", 5, 90), {"diverged": False, "plain_8": 0.5})
    assert row["diet"] == "strict" and row["plain_8"] == 0.5 and row["seed"] == 5
    assert {key: row[key] for key in strict} == strict


def test_the_table_of_unseen_shifts_sorts_k_by_where_they_lie():
    def of(task, seed, shares):
        row = {"kind": "odd", "task": task, "seed": seed, "steps": 9, "shifts": [-1, 2]}
        return row | {"accuracy": dict(zip(map(str, EVERY_K), shares)) if shares else None}

    first = [0.0, 0.1, 0.2, 1.0, 0.6, 0.8, 0.3, 0.4]  # of k = -4 … 4 without 0
    second = [0.2, 0.1, 0.2, 1.0, 0.4, 0.6, 0.3, 0.4]
    rows = [of("addition", 0, first), of("addition", 1, second), of("first", 0, None)]
    _, columns, added, missing, _, _, places, means, none = cells(unseen_shifts.table(rows))
    assert columns == ["shown", "task", "runs", *(f"{k:+}" for k in EVERY_K)]
    assert added[:3] == ["odd", "addition", "2"]
    assert [float(x.split()[0]) for x in added[3:]] == [0.1, 0.1, 0.2, 1.0, 0.5, 0.7, 0.3, 0.4]
    assert places == ["shown", "task", "shown", "between", "beyond"]
    # shown: -1, 2; between -1 and 2: 1; beyond: -4, -3, -2, 3, 4. Means over runs, the lowest.
    assert means == ["odd", "addition", "0.85 (0.60)", "0.50 (0.40)", "0.22 (0.00)"]
    assert missing[3:] == ["–"] * 8 and none[2:] == ["– (–)"] * 3


PLACES = [([1], 2, "beyond"), ([2], 1, "between"), ([-3], -1, "between"), ([3], -1, "beyond")]


@pytest.mark.parametrize(
    "shown, k, where", [*PLACES, ([-2, 2], 2, "shown"), ([-2, 2], -1, "between")]
)
def test_plain_documents_show_the_shift_0(shown, k, where):
    assert unseen_shifts.place(k, shown) == where


def test_the_table_of_precursor_tells_each_kind_and_the_verdict():
    def of(kind, seed, right, silenced, step):
        more = {"kind": kind, "silenced": silenced, "from_step": step}
        return row_of(seed, right) | more

    rows = [of("no_copy_induction", seed, 0.3, {"1.0": 20, "1.1": 40}, 900) for seed in range(3)]
    rows += [of("random_heads", seed, 0.9 + 0.01 * seed, {"1.0": 20}, 500) for seed in range(3)]
    _, columns, copying, random, verdict = cells(precursor.table(rows))
    wanted = ["kept away", "runs", "plain", "off by one", "lowest", "FI heads", "top FI r", "from"]
    assert columns == [*wanted, "silenced"]
    assert [x.split()[0] for x in random] == [
        *("random_heads", "3", "0.900", "0.910", "0.900", "2.0", "-0.50", "500", "1.0")
    ]
    assert [x.split()[0] for x in copying][3:] == ["0.300", "0.300", "2.0", "-0.50", "900", "2.0"]
    assert verdict[0].endswith("(3 seeds): ordinary induction is a precursor")
    assert "no_copy_induction less random_heads, paired: -0.610" in verdict[0]


@pytest.mark.parametrize(
    "differences, says",
    [
        ((-0.05, -0.01, -0.03, -0.02), "is a precursor"),  # -0.0275 ± 0.0272
        ((-0.05, -0.01, -0.03, -0.015), "is no precursor"),  # -0.026 ± 0.028
        ((-0.09, 0.01, -0.06, -0.02), "undecided"),  # -0.04 ± 0.0705: as low as -0.11
    ],
)
def test_a_precursor_needs_the_whole_interval_below_0_and_none_it_above_the_harmless(
    differences, says
):
    rows = []
    for seed, difference in enumerate(differences):
        for kind, right in (("no_copy_induction", 0.8 + difference), ("random_heads", 0.8)):
            rows.append({"kind": kind, "seed": seed, "off_by_one_8": right})
    rows.append({"kind": "none", "seed": 0, "off_by_one_8": 0.0})
    rows.append({"kind": "no_copy_induction", "seed": 99, "off_by_one_8": 0.0})  # without its pair
    assert precursor.verdict(rows).endswith(says)


def test_the_step_from_which_half_is_right_is_the_first_one(monkeypatch, tmp_path):
    def line(step, share):
        return {"step": step, "accuracy": {"addition": {"1": {"8": share, "4": 1.0}}}}

    for shares, first in (((0.4, 0.5, 0.9), 20), ((0.1, 0.2, 0.49), None)):
        lines = [line(10 * (i + 1), share) for i, share in enumerate(shares)]
        monkeypatch.setattr(precursor, "load_lines", lambda path, lines=lines: lines)
        assert precursor.from_step(tmp_path) == first


def test_half_way_is_enough_for_an_event():
    rows = [{"step": step, "x": x} for step, x in ((1, 0.2), (2, 0.6), (4, 0.5), (8, 1.0))]
    assert emergence.event_step(rows, lambda row: row["x"]) == 8  # half-way is 0.6
    assert emergence.event_step(rows[1:], lambda row: row["x"]) == 8
    rows[2]["x"] = 0.6
    assert emergence.event_step(rows, lambda row: row["x"]) == 2


def test_the_table_of_emergence_orders_events_by_their_median_step():
    def curve(seed, at):
        rows = []
        for step in range(1, 9):
            done = {name: float(step >= first) for name, first in at.items()}
            row = {"seed": seed, "step": 10 * step, "diverged": False, "loss": 1 - done["loss"]}
            row |= {"plain_8": done["plain"], "off_by_one_8": done["one"], "copy_accuracy": 0.5}
            row |= {"accuracy": {x: {"shift": done[x]} for x in ("subtraction", "caesar")}}
            row |= {"pt_score": done["pt"], "fi_score": done["fi"], "copy_induction_score": 1.0}
            rows.append(row | {"fi_effect": None, "fi_score_of_final_heads": done["fi"]})
        return rows

    early = {"loss": 2, "plain": 3, "one": 8, "subtraction": 5, "caesar": 6, "pt": 4, "fi": 7}
    late = early | {"loss": 4, "plain": 3}
    gone = {"seed": 5, "diverged": True, "message": "no longer finite"}
    head, columns, *lines, last = cells(emergence.table([*curve(0, early), *curve(1, late), gone]))
    assert columns == ["event", "median", "seed 0", "seed 1"]
    steps = {line[0]: line[1:] for line in lines}
    assert steps["loss falls"] == ["30.0", "20", "40"]
    assert steps["off-by-one addition (never shown)"] == ["80.0", "80", "80"]
    assert steps["Caesar's cipher"][0] == "60.0" and steps["shifted subtraction"][0] == "50.0"
    assert steps["PT score of the best head"][0] == "40.0"
    assert steps["FI score of the best head"][0] == "70.0"
    never = {"copying what is repeated", "effect of the strongest FI head"}
    assert {line[0] for line in lines[-3:]} == {*never, "copy-induction score of the best head"}
    known = [float(line[1]) for line in lines[:-3]]
    assert known == sorted(known) and last == ["seed 5: no longer finite"]


# ---------------------------------------------------------------- what is measured


def test_kinds_of_wrong_answers_are_told_apart(monkeypatch):
    """The plain answer is 5; 2 and 9 are shown; by the rule it is 6."""
    contrast = torch.zeros(6, 1 + tasks.EXAMPLE * 8 + 4, dtype=torch.int64)
    contrast[:, tasks.answer_positions(8)] = tasks.ZERO + 2
    contrast[:, tasks.answer_positions(8)[-1]] = tasks.ZERO + 9
    five = torch.full((6,), tasks.ZERO + 5)
    pairs = SimpleNamespace(
        contrast=contrast, base_answers=five, contrast_answers=five + 1, shots=8
    )
    for answers, kinds, failure in (
        ([6, 6, 6, 5, 5, 2], {"right": 3, "plain": 2, "shown": 1}, "none"),
        ([6, 6, 9, 9, 2, 5], {"right": 2, "shown": 3, "plain": 1}, "a shown answer"),
        ([6, 1, 3, 8, 10, 10], {"right": 1, "other_k": 3, "other": 2}, "off by another k"),
        ([6, 0, 15, 11, 8, 5], {"right": 1, "other": 3, "other_k": 1, "plain": 1}, "anything"),
        ([6, 5, 5, 5, 2, 2], {"right": 1, "plain": 3, "shown": 2}, "the plain answer"),
    ):
        given = torch.tensor(answers) + tasks.ZERO
        logits = torch.nn.functional.one_hot(given, TINY.d_vocab).float()
        monkeypatch.setattr(measure, "last_logits", lambda *_, logits=logits: logits)
        row = measure.answers_given(None, pairs)
        assert row["failure"] == failure
        met = {kind: share for kind, share in row["answers"].items() if share}
        assert met == {kind: round(n / 6, 4) for kind, n in kinds.items()}


def test_documents_of_the_grid_count_where_the_answer_is_determined_and_not_shown(monkeypatch):
    asked = []
    monkeypatch.setattr(measure, "share_right", lambda model, *what: asked.append(what) or 0.5)
    table = measure.grid(None, 16)
    shares = {(w, f): share for w, row in table.items() for f, share in row.items()}
    assert set(shares) == {(w, f) for w in tasks.WRAPPERS for f in tasks.FUNCTIONS}
    counted = iter(asked)
    for (wrapper, function), share in shares.items():
        if share is None:
            continue
        prompts, answers = next(counted)
        drawn = measure.cell_documents(wrapper, function, 16)
        wanted = []
        for tokens, determined in zip(drawn.tokens, drawn.determined[:, -1]):
            shown, answer = (
                tokens[tasks.answer_positions(9)[:-1]],
                tokens[tasks.answer_positions(9)[-1]],
            )
            known = wrapper not in ("relabel", "copy") and (shown == answer).any()
            if determined and not known:
                wanted.append(int(answer))
        assert answers.tolist() == wanted and len(prompts) == len(wanted) > 0
        assert (prompts[:, -1] == tasks.EQUALS).all()
    assert next(counted, None) is None and sum(share is None for share in shares.values()) < 12
    assert table["base"]["copy"] is table["base"]["choice"] is None


def test_addition_is_told_at_8_shots_and_by_shots(monkeypatch):
    table = {k: {"2": 0.1, "8": 0.5 + int(k) / 10} for k in map(str, range(-4, 5))}
    asked = []

    def evaluate(model, n_prompts, every_task):
        asked.append((n_prompts, every_task))
        return {"addition": table}

    monkeypatch.setattr(train, "evaluate", evaluate)
    row = measure.addition(None, 77)
    assert asked == [(77, False)] and row["n_prompts"] == 77 and row["by_shots"] == table
    assert row["plain_8"] == 0.5 and row["off_by_one_8"] == 0.6
    assert row["off_by_k_8"] == {str(k): 0.5 + k / 10 for k in EVERY_K}


def test_few_prompts_are_asked_only_where_it_is_to_be_quick(monkeypatch):
    assert measure.how_many(500, quick=True) == measure.FEW < 100
    assert measure.how_many(500, quick=False) == 500
    asked = []
    monkeypatch.setattr(measure, "addition", lambda model, n: asked.append(n) or {"a": 1})
    monkeypatch.setattr(measure, "circuit", lambda model, quick: {"c": quick})
    monkeypatch.setattr(dependability, "addition", lambda model, n: asked.append(n) or {"a": 1})
    assert measure.addition_and_circuit(None, None, None, False) == {"a": 1, "c": False}
    assert measure.addition_and_circuit(None, None, None, True) == {"a": 1, "c": True}
    dependability.measure(None, None, None, False)
    monkeypatch.setattr(precursor, "silenced", lambda folder: {"1.0": 20})
    monkeypatch.setattr(precursor, "from_step", lambda folder: 60)
    row = precursor.measure_run(None, None, None, False)
    assert row == {"silenced": {"1.0": 20}, "from_step": 60, "a": 1, "c": False}
    assert asked == [200, measure.FEW, 500, 500]


def test_a_row_of_a_run_that_diverged_has_every_key():
    run = runs.default_run("x", 3, 7)
    row = measure.result_row(run, {"diverged": True, "message": "m"}, {"kind": "k"})
    nothing = ["plain_8", "off_by_one_8", "off_by_k_8", "fi_heads", "pt_heads", "top_fi_r"]
    assert all(row[key] is None for key in [*nothing, "consolidation_heads", "faithfulness"])
    assert (row["failure"], row["kind"], row["seed"], row["steps"]) == ("diverged", "k", 3, 7)
    short = measure.result_row(run, {"plain_8": 1.0}, {}, circuit=False)
    assert "failure" not in short and "fi_heads" not in short and short["plain_8"] == 1.0


@pytest.fixture(scope="module")
def tiny():
    return Transformer(TINY, generator(1)).requires_grad_(False)


def test_a_circuit_is_measured_by_the_heads_that_were_found(monkeypatch, tiny):
    monkeypatch.setattr(measure, "FEW", 6)
    shares = {"right": 0.5, "plain": 0.1}  # from `solves` on
    monkeypatch.setattr(measure, "answers_given", lambda *_: {"answers": shares})
    groups = {"function_induction": ["1.0", "1.1"], "previous_token": ["0.1"], "consolidation": []}
    to_logits = torch.tensor([[0.5, -0.9], [-0.2, -0.4]])
    effects = {"answers": {"logits": SimpleNamespace(heads=to_logits)}}
    found = SimpleNamespace(effects=effects, groups=groups)
    monkeypatch.setattr(measure, "discover", lambda *_: found)
    row = measure.circuit(tiny, quick=True)
    assert row["groups"] == groups and row["top_fi_r"] == -0.4  # of the FI heads, the strongest
    assert row["fi_heads"] == ["1.0", "1.1"] and row["pt_heads"] == ["0.1"]
    assert row["circuit_heads"] == ["0.1", "1.0", "1.1"] and row["consolidation_heads"] == []
    drawn = measure.generator()
    measure.off_by_one(6, drawn)  # those on which the answers are counted come before
    pairs = measure.off_by_one(6, drawn)
    ablator = Ablator(tiny, pairs.contrast, {"base": pairs.base})
    judge = CircuitScores(ablator, "base", pairs.base_answers, pairs.contrast_answers)
    assert row["faithfulness"] == pytest.approx(
        judge.faithfulness([row["circuit_heads"]])[0], abs=1e-3
    )
    alone = SimpleNamespace(contrast_acc=0.75, base_acc=0.25)
    found_alone = SimpleNamespace(scores=lambda _: [alone], faithfulness=lambda _: [0.5])
    monkeypatch.setattr(measure, "CircuitScores", lambda *_: found_alone)
    assert measure.circuit(tiny, quick=True)["circuit_accuracy"] == 0.75
    shares |= {"right": 0.49, "plain": 0.51}
    row = measure.circuit(tiny, quick=True)  # it does not do the task
    assert row["groups"] == {} and row["fi_heads"] == row["pt_heads"] == row["circuit_heads"] == []
    assert [row[key] for key in ("top_fi_r", "faithfulness", "circuit_accuracy")] == [None] * 3


def test_scores_of_a_snapshot_are_of_the_best_head_and_of_the_final_heads(tiny, monkeypatch):
    asked = []
    monkeypatch.setattr(emergence.evaluation, "accuracy", lambda *x: asked.append(x) or 0.125)
    pairs = measure.off_by_one(5, generator())
    places = tasks.answer_positions(8)
    groups = {"previous_token": ["0.1", "1.0"], "function_induction": []}
    row = emergence.head_scores(tiny, pairs.contrast, groups)
    repeated, period, queries, copied = measure.repeated_documents(5)
    kinds = {"pt": scores.previous_token_score(tiny, pairs.contrast, places)}
    kinds["fi"] = scores.function_induction_score(tiny, pairs.contrast, places)
    kinds["copy_induction"] = scores.copy_induction_score(tiny, repeated, period, queries)
    for name, score in kinds.items():
        best = score.max()
        assert row[f"{name}_score"] == pytest.approx(best.item(), abs=6e-5)
        assert score[parse(row[f"{name}_head"])] == best
    mean = (kinds["pt"][0, 1] + kinds["pt"][1, 0]).item() / 2
    assert row["pt_score_of_final_heads"] == pytest.approx(mean, abs=6e-5)
    assert "fi_score_of_final_heads" not in row and "copy_induction_score_of_final_heads" not in row
    [(logits, answers)] = asked
    torch.testing.assert_close(logits, tiny(repeated)[:, queries].flatten(0, 1))
    assert torch.equal(answers, repeated[:, copied].flatten()) and row["copy_accuracy"] == 0.125


def test_prompts_are_the_same_for_every_run_and_others_where_an_offset_is_given():
    drawn = [torch.rand(4, generator=measure.generator(*at)).tolist() for at in ((), (), (1,))]
    assert drawn[0] == drawn[1] != drawn[2]
    tokens, _, _, answers = measure.repeated_documents(600)
    every = range(tasks.ZERO - 4, len(tasks.VOCABULARY))  # any number or letter
    assert tokens[:, answers].unique().tolist() == list(every)
    assert (precursor.EVERY, precursor.N_LOOKED_AT, precursor.HARMLESS) == (20, 32, -0.1)


def test_unseen_shifts_are_asked_of_both_functions_with_every_k(monkeypatch):
    asked, sizes = [], []

    def pairs(task, k, shots, n, drawn):
        sizes.append((task, k, shots, n))
        return SimpleNamespace(contrast="c", contrast_answers=(task, k), base="b", base_answers=0)

    monkeypatch.setattr(tasks, "evaluation_pairs", pairs)
    monkeypatch.setattr(
        unseen_shifts, "share_right", lambda *what: asked.append(what) or len(asked) / 100
    )
    found = unseen_shifts.measure("model", None, None, False)
    every = [(task, k) for task in ("addition", "first") for k in EVERY_K]
    assert sizes == [(task, k, 8, 300) for task, k in every]
    assert asked == [("model", "c", pair) for pair in every]
    wanted = {task: {} for task in ("addition", "first")}
    for at, (task, k) in enumerate(every, start=1):
        wanted[task][str(k)] = at / 100
    assert found == {"accuracy": wanted}
    run = unseen_shifts.make("odd", 4, 90)
    added, first = unseen_shifts.rows(run, found | {"diverged": False})
    assert (added["task"], first["task"]) == ("addition", "first")
    assert [row["accuracy"] for row in (added, first)] == list(wanted.values())
    for row in (added, first):
        assert (row["run"], row["kind"], row["seed"]) == ("unseen_odd", "odd", 4)
        assert row["shifts"] == [-3, -1, 1, 3] and row["steps"] == 90 and not row["diverged"]
    gone = unseen_shifts.rows(run, {"diverged": True})
    assert [row["accuracy"] for row in gone] == [None, None]


def test_a_run_taken_up_counts_all_of_its_steps(monkeypatch, tmp_path):
    counted, saved = [], []

    def train_two(folder, model, cfg, diet, device, resume, after_step):
        for step in (5, 6):
            after_step(step, Transformer(TINY))

    monkeypatch.setattr(train, "train", train_two)
    monkeypatch.setattr(runs, "count_steps", counted.append)
    monkeypatch.setattr(runs, "save_tensors", lambda path, state: saved.append(path.name))
    cfg = replace(train.TrainConfig(), steps=6)
    run = runs.Run("x", model=TINY, train=cfg, snapshots=(1, 6))
    runs.carry_out(run, runs.Study("s", lambda *_: {}, tmp_path))
    assert counted == [1, 1, 4] and saved == ["00006.pt"]


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--quick"], "next: the same without --quick and --only"),
        (["--only", "default"], "next: the same without --quick and --only"),
        ([], "next: make figures"),
    ],
)
def test_an_experiment_ends_with_what_is_next(monkeypatch, tmp_path, capsys, flags, told):
    made = []

    def run_all(some, study, jobs):
        made.append((len(some), study.quick))
        return [{"diverged": False} for _ in some]

    monkeypatch.setattr(experiment, "run_all", run_all)
    monkeypatch.setattr(experiment, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    hardware = {"hardware": {"device": "cpu", "processor": "x"}}
    small = replace(dependability.EXPERIMENT, rows=lambda *_: [hardware], table=lambda _: ["table"])
    out = tmp_path / "out"
    assert experiment.main(small, ["--device", "cpu", "--out", str(out), *flags]) == 0
    *_, where, last = capsys.readouterr().out.splitlines()
    assert last == told
    quick = "--quick" in flags
    assert made == [(1, True) if quick else (10, False)]
    folder = tmp_path / "results" if not flags else out / ("quick" if quick else "")
    assert where == f"the rows are in {folder / 'dependability.json'}"
    assert (folder / "dependability.json").exists()


def test_every_task_is_asked_plainly_and_with_every_k(monkeypatch):
    asked, shares = [], iter(range(99))

    def pairs(name, k, shots, n, drawn):
        asked.append((name, k, shots, n))
        return SimpleNamespace(contrast=torch.full((n, 1), k), contrast_answers=torch.full((n,), k))

    def share_right(model, prompts, answers):
        assert torch.equal(prompts[:, 0], answers)  # each prompt with its own answer
        return next(shares)

    monkeypatch.setattr(tasks, "evaluation_pairs", pairs)
    monkeypatch.setattr(measure, "share_right", share_right)
    table = emergence.every_task(None, 24)
    assert set(table) == set(tasks.TASKS)
    assert table["addition"] == {"plain": 0, "shift": 1}
    assert set(table["base_addition"]) == {"base"}
    every = [0, *EVERY_K]  # plain: 24 prompts; 3 of each of 8 k, 6 of each of 4 bases
    assert asked[:9] == [("addition", k, 8, 3 if k else 24) for k in every]
    assert asked[-4:] == [("base_addition", k, 8, 6) for k in (6, 7, 8, 9)]


def test_a_snapshot_is_measured_on_as_many_prompts_as_stated(monkeypatch, tiny):
    sizes, seen = [], {}
    monkeypatch.setattr(measure, "how_many", lambda n, quick: sizes.append(n) or 6)
    monkeypatch.setattr(train, "loss_on_answers", lambda model, *documents: torch.tensor(1.234567))
    monkeypatch.setattr(emergence, "every_task", lambda model, n: {"addition": {"plain": 0.75}})
    monkeypatch.setattr(emergence, "effects", lambda model, groups, n: {"r": groups})

    def head_scores(model, prompts, groups):
        seen["prompts"] = prompts
        return {"pt_score": 0.5}

    monkeypatch.setattr(emergence, "head_scores", head_scores)
    row = emergence.at_one_step(tiny, runs.default_run("x", 0, 7), {"g": ["0.0"]}, False)
    assert sizes == [256, 100, 96, 200, 50]  # documents; prompts of scores, tasks, +1, effects
    pairs = measure.off_by_one(6, measure.generator())
    assert torch.equal(seen["prompts"], pairs.contrast)
    right = measure.share_right(tiny, pairs.contrast, pairs.contrast_answers)
    assert row == {
        "loss": 1.23457,
        "accuracy": {"addition": {"plain": 0.75}},
        "plain_8": 0.75,
        "off_by_one_8": right,
        "pt_score": 0.5,
        "r": {"g": ["0.0"]},
    }


# ---------------------------------------------------------------- traced seeds


def traced_circuit(fi):
    heads = [[-0.1, -0.2], [-0.7, 0.4]]
    effects = {"embedding": 0.0, "heads": heads, "mlps": [0.0, 0.0]}
    circuit = {"accuracy": "a", "F": "f", "F_ci": "c", "reuse": "u", "effects": {"logits": effects}}
    circuit |= {"groups": {"function_induction": fi}, "r_ci": {"1.0": [-0.8, -0.6], "0.0": [0, 1]}}
    judged = [{name: f"{name} {which}" for name in seeds.JUDGED} for which in (0, 1)]
    both = [row | {"heads": ["1.0"]} for row in judged]
    evaluation = {"ablation": "x", "shift_swap": "y", "completeness": "z", "circuits": both}
    return circuit | {"evaluation": evaluation, "averaging": {"mixtures": [1]}}


def test_a_row_of_a_seed_holds_its_circuit_and_what_judges_it():
    row = seeds.circuit_of(traced_circuit(["1.0"]))
    assert row["fi_r"] == {"1.0": -0.7} and row["fi_r_ci"] == {"1.0": [-0.8, -0.6]}
    assert row["base_values"] == {name: f"{name} 0" for name in seeds.JUDGED}
    assert row["other_operands"] == {name: f"{name} 1" for name in seeds.JUDGED}
    assert [row[key] for key in ("ablation", "shift_swap", "completeness")] == ["x", "y", "z"]
    empty = seeds.circuit_of(traced_circuit([]))
    assert empty["fi_r"] == {} and empty["base_values"] is empty["ablation"] is None
    run = runs.default_run("default", 4, 7)
    [row] = seeds.seed_rows(run, {"diverged": False, "groups": 1})
    assert row["seed"] == 4 and row["steps"] == 7 and row["groups"] == 1


def test_rows_of_averaging_are_one_for_each_mixture_and_one_for_the_rest():
    run = runs.default_run("default", 4, 7)
    found = {"mixtures": [{"offsets": [0, 1]}, {"offsets": [-1, 2]}], "rules": [5]}
    rows = seeds.averaging_rows(run, {"averaging": found, "diverged": False})
    assert [row["offsets"] for row in rows] == [[0, 1], [-1, 2], None]
    assert rows[2]["rules"] == [5] and "rules" not in rows[0]
    assert all(row["seed"] == 4 and row["steps"] == 7 and not row["diverged"] for row in rows)
    assert "mixtures" in found  # left as it was
    [row] = seeds.averaging_rows(run, {"diverged": True})
    assert row["offsets"] is None and row["diverged"]


def test_the_null_of_a_seed_is_each_head_of_its_model_as_it_was_drawn(monkeypatch):
    run, asked = runs.default_run("default", 7, 5), []

    def row(swapped, low, other, passes):
        ends = {"answers": {"ci": [low, 1.0]}, "operands": {"ci": [other, 1.0]}}
        return {"swapped": swapped, "passes": passes} | ends

    def study(*given):
        asked.append(given)
        rows = [row("function_induction", 0.9, 0.9, True), row("one_fi_head", 0.5, 0.04, True)]
        rows += [row("one_fi_head", -0.3, 0.2, False), row("random_same_layers", 0.8, 0.8, True)]
        return {"shift_swap": {"rows": rows}}

    monkeypatch.setattr(seeds.shift_swap, "study", study)
    assert seeds.untrained(run, False) == {"n_heads": 2, "n_passing": 1, "highest": 0.04}
    language, model, heads, how = asked[0]
    drawn = Transformer(run.model, torch.Generator().manual_seed(7))
    assert weights_hash(model.state_dict()) == weights_hash(drawn.state_dict())
    assert language is tasks and heads == all_heads(run.model)
    assert (how.task, how.k, how.shots) == ("addition", 1, 8)


def test_a_circuit_is_traced_once_for_its_weights_and_apart_where_it_is_quick(
    monkeypatch, tmp_path
):
    traced = []
    model = Transformer(replace(TINY, n_layers=1), generator())
    weights = seeds.weights_hash(model.state_dict())

    def trace(model, study, criteria, tell):
        traced.append(study.prompts)
        return {"weights": weights, "n": len(traced)}

    monkeypatch.setattr(seeds.patch, "trace", trace)
    usual = seeds.patch.Study().prompts
    found = [seeds.traced(model, tmp_path, quick)["n"] for quick in (False, False, True, True)]
    assert found == [1, 1, 2, 2] and traced == [usual, measure.FEW]
    (tmp_path / "circuit.json").write_text('{"weights": "other", "n": 0}')
    assert seeds.traced(model, tmp_path, False)["n"] == 3


def test_the_tables_of_seeds_and_averaging():
    groups = {"function_induction": ["2.1", "2.3"], "previous_token": [], "consolidation": ["3.0"]}
    row = {"seed": 0, "diverged": False, "groups": groups, "other_operands": None}
    row |= {"base_values": {"faithfulness": 0.875}}
    _, columns, line = cells(seeds.seeds_table([row, {"diverged": True, "seed": 1}]))
    assert columns == ["seed", "function induction", "previous token", "consolidation"] + [
        "base values",
        "other operands",
    ]
    assert line == ["0", "2.1, 2.3", "–", "3.0", "0.875", "–"]
    rows = []
    for offsets, best in (([0, 1], 0.9), ([0, 1], 0.7), ([-1, 2], 0.2)):
        r2 = {"attention": best, "uniform": 0.5}
        rows.append({"offsets": offsets, "r2": r2, "unseen_offset_share": 0.25})
    _, columns, *lines, last = cells(seeds.averaging_table([*rows, {"offsets": None}]))
    assert columns == ["off by", "seeds", "attention", "uniform", "unseen"]
    assert lines[0][:2] == ["0, 1", "2"] and lines[0][2].startswith("0.80 ±")
    assert lines[1] == ["-1, 2", "1", "0.20", "0.50", "0.25"]
    assert last == ["attention is ahead of all other forecasts in 2 of 3 rows"]
    assert seeds.averaging_table([{"offsets": None}]) == ["no run has a circuit"]


def test_a_row_is_made_anew_where_anything_that_it_depends_on_is_another(monkeypatch, tmp_path):
    run = runs.Run("some", tasks.DEFAULT_DIET.name, train=train.TrainConfig(steps=3))
    study = runs.Study("some", print, tmp_path)
    found = [study.settings(run), replace(study, quick=True).settings(run)]
    shallow = replace(run.model, n_layers=1)
    for change in ({"diet": "strict"}, {"train": train.TrainConfig(steps=4)}, {"model": shallow}):
        found.append(study.settings(replace(run, **change)))
    monkeypatch.setattr(runs, "Criteria", lambda: Criteria(strong=0.3))
    found.append(study.settings(run))
    assert all(one != other for at, one in enumerate(found) for other in found[:at])
