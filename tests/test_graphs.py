"""A step that is recorded and replayed makes the steps that it stands for, and nothing else.

Where there is no GPU a stand-in records: like a CUDA graph it runs the very same call again, with
what then stands in its inputs, and writes its outputs where they were.
"""

import os
import runpy
import signal
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.optim import SGD, AdamW
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import tasks
import train
from minifunc.model import ModelConfig, Transformer
from minifunc.support import graphs
from minifunc.support.files import load_lines
from minifunc.support.graphs import Graphed, deterministic
from minifunc.support.runs import load_run

CFG = train.TrainConfig(
    seed=3, steps=8, documents=4, examples=4, long_every=2, lr=0.01, warmup=2, eval_every=4
)
MODEL = ModelConfig(
    n_layers=2,
    n_heads=2,
    d_model=16,
    d_head=8,
    d_mlp=16,
    d_vocab=len(tasks.VOCABULARY),
    n_ctx=1 + 6 * CFG.longest,
    act_fn="relu",
)
TABLE = {"addition": {"0": {"8": 0.5}, "1": {"8": 0.5}}}  # of `evaluate`, without its work
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


class Recorder:
    """Stands in for `recorded`. fails: at which call it raises. frozen: replays nothing."""

    def __init__(self, fails=0, frozen=False, error=RuntimeError):
        self.fails, self.frozen, self.error, self.calls = fails, frozen, error, 0

    def __call__(self, call, device):
        self.calls += 1
        for _ in range(3):
            call()
        outputs = call()
        if self.calls == self.fails:
            raise self.error("cannot be captured\nand more of it")

        def replay():
            for output, new in zip(outputs, call() if not self.frozen else outputs):
                output.copy_(new)

        return replay, outputs


class OnCuda(Graphed):
    """What is done on CUDA, on the CPU."""

    records = True

    def __init__(self, *of):
        super().__init__(*of)
        self.on_cuda, self.records = True, type(self).records
        for group in self.optimizer.param_groups:
            group["capturable"] = True


class Unrecorded(OnCuda):
    """The same, as torchrun has it."""

    records = False


@pytest.fixture
def record(monkeypatch):
    """A recorder in place of that for CUDA."""
    recorder = Recorder()
    monkeypatch.setattr(graphs, "recorded", recorder)
    return recorder


def fresh(kind, device=CPU):
    model = Transformer(MODEL, torch.Generator().manual_seed(0)).to(device)
    optimizer = train.make_optimizer(model, CFG)
    return model, optimizer, kind(train.train_step, model, optimizer, CFG)


def batches(n, device=CPU):
    """What n steps are given: the rate, and batches of two shapes in turn."""
    data = torch.Generator().manual_seed(1)
    for step in range(1, n + 1):
        documents = tasks.sample(tasks.DEFAULT_DIET, *CFG.batch_at(step), data)
        yield CFG.lr_at(step), documents.tokens.to(device), documents.determined.to(device)


def everything(optimizer):
    """Weights, moments and steps, copied."""
    return [tensor.detach().clone() for tensor in graphs.updated(optimizer)]


def same(some, others):
    return len(some) == len(others) and all(map(torch.equal, some, others))


def steps(n, kind, device=CPU):
    """What n steps return, and what they end in."""
    _, optimizer, update = fresh(kind, device)
    told = [value for batch in batches(n, device) for value in update(*batch)]
    return told, everything(optimizer)


# ---------------------------------------------------------------- the step


def step_of_before(model, optimizer, documents):
    """A step as it was before there were graphs, when it took documents of the CPU."""
    places = tasks.answer_positions(documents.answer.shape[1])
    answers = documents.tokens[:, places]
    logits = model(documents.tokens, places - 1)
    losses = F.cross_entropy(logits.flatten(0, 1), answers.flatten(), reduction="none")
    total = (losses.view(answers.shape) * documents.determined).sum()
    loss = total / documents.determined.sum().clamp(min=1)
    optimizer.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CFG.clip)
    optimizer.step()
    return loss.detach(), norm


def test_a_cpu_makes_the_steps_that_it_made_before_bit_for_bit():
    model = Transformer(MODEL, torch.Generator().manual_seed(0))
    settings = {"betas": (0.9, CFG.beta2), "weight_decay": CFG.weight_decay, "fused": True}
    optimizer = AdamW(model.parameters(), CFG.lr, **settings)
    data, told = torch.Generator().manual_seed(1), []
    for step in range(1, 7):
        optimizer.param_groups[0]["lr"] = CFG.lr_at(step)
        documents = tasks.sample(tasks.DEFAULT_DIET, *CFG.batch_at(step), data)
        told += step_of_before(model, optimizer, documents)
    now, state = steps(6, Graphed)
    assert same(told, now) and same(everything(optimizer), state)


class OnMetaAlone(TorchDispatchMode):
    """Fails for an operation that meets a tensor of another device than meta."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for each in tree_leaves((args, kwargs, found)):
            assert not isinstance(each, torch.Tensor) or each.is_meta, f"{func} on {each.device}"
        return found


def test_a_step_reads_no_value_back_and_brings_none_to_the_device():
    """As a graph needs it: on meta there is no value to read, and all tensors have to be there."""
    model = Transformer(MODEL).to("meta")
    optimizer = SGD(model.parameters(), lr=0.1)
    for _, *batch in batches(2, "meta"):
        with OnMetaAlone():
            loss, norm = train.train_step(model, optimizer, CFG, 0.1, *batch)
        assert loss.is_meta and norm.is_meta and loss.shape == norm.shape == ()


# ---------------------------------------------------------------- recorded and replayed


def test_recorded_steps_have_the_bits_of_the_steps_as_they_are(record):
    plain, recorded = steps(8, Unrecorded), steps(8, OnCuda)
    assert record.calls == 2  # of 8 batches of two shapes
    assert same(plain[0], recorded[0]) and same(plain[1], recorded[1])
    assert len({loss.item() for loss in plain[0][::2]}) == 8


def test_recording_changes_nothing_at_first_and_in_the_middle(record):
    """Not the weights, moments and steps, nor where they are."""
    record.frozen = True
    _, optimizer, update = fresh(OnCuda)
    weights = everything(optimizer)
    for batch in batches(2):
        update(*batch)
    now = everything(optimizer)
    assert same(now[: len(weights)], weights) and len(now) == 4 * len(weights)
    assert not any(kept.any() for kept in now[len(weights) :])

    update.records = False
    for batch in batches(3):
        update(*batch)
    before, places = everything(optimizer), [kept.data_ptr() for kept in graphs.updated(optimizer)]
    update.records, update.graphs = True, {}
    for batch in batches(2):
        update(*batch)
    assert record.calls == 4 and same(everything(optimizer), before)
    assert places == [kept.data_ptr() for kept in graphs.updated(optimizer)]


def test_what_is_recorded_keeps_its_own_inputs_and_gives_copies(record):
    _, _, update = fresh(OnCuda)
    (rate, *first), _, third = batches(3)
    given = [tensor.clone() for tensor in first]
    loss, norm = update(rate, *given)
    told = [loss.item(), norm.item()]
    for tensor in given:
        tensor.zero_()
    update(*third)
    assert [loss.item(), norm.item()] == told and not any(tensor.any() for tensor in given)
    ((inputs, _, _),) = update.graphs.values()
    assert same(inputs, [torch.tensor(third[0]), *third[1:]])


def test_a_graph_reads_the_learning_rate_where_it_is_given_anew(record):
    """A number would be frozen as it was when the step was recorded."""
    _, optimizer, update = fresh(OnCuda)
    rates = []
    for rate, *batch in batches(4):
        update(rate, *batch)
        rates.append(optimizer.param_groups[0]["lr"])
        assert torch.equal(rates[-1], torch.tensor(rate))
    assert rates[0] is rates[2] and rates[1] is rates[3]


@pytest.mark.parametrize("fails", [1, 2])
def test_a_step_that_cannot_be_recorded_is_made_as_it_is_and_one_line_says_so(
    record, capsys, fails
):
    record.fails = fails
    plain, recorded = steps(6, Unrecorded), steps(6, OnCuda)
    assert record.calls == fails  # is not tried again
    assert same(plain[0], recorded[0]) and same(plain[1], recorded[1])
    (line,) = capsys.readouterr().err.splitlines()
    assert "CUDA graph (cannot be captured): " in line


def test_what_stops_a_recording_leaves_all_as_it_was(record):
    record.fails, record.error = 1, KeyboardInterrupt
    _, optimizer, update = fresh(OnCuda)
    update.records = False
    (batch,) = batches(1)
    update(*batch)
    before, update.records = everything(optimizer), True
    with pytest.raises(KeyboardInterrupt):
        update(*batch)
    assert same(everything(optimizer), before)


def test_a_graph_is_recorded_after_three_calls_on_a_stream_of_its_own(monkeypatch):
    done = []

    class Stream:
        def wait_stream(self, other):
            done.append(f"{self.name} waits")

        def __init__(self, device, name="side"):
            assert device == torch.device("cuda", 1)
            self.name = name

    class Graph:
        def replay(self):
            done.append("replay")

    @contextmanager
    def entered(name, stream):
        done.append(f"{name} on {stream.name}")
        yield
        done.append(f"{name} ends")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(device, "main"))
    monkeypatch.setattr(torch.cuda, "stream", partial(entered, "stream"))
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, stream: entered("capture", stream))
    call = partial(lambda word: (done.append(word),), "call")
    replay, outputs = graphs.recorded(call, torch.device("cuda", 1))
    replay()
    warmed = ["side waits", "stream on side", "call", "call", "call"]
    recorded = ["capture on side", "call", "capture ends", "stream ends", "main waits", "replay"]
    assert done == warmed + recorded and outputs == (None,)


@pytest.mark.parametrize("kind, records", [("cpu", False), ("mps", False), ("cuda", True)])
def test_graphs_are_for_one_process_on_cuda(monkeypatch, kind, records):
    model = SimpleNamespace(device=torch.device(kind))
    optimizer = AdamW([torch.zeros(1)])

    def step(*of):
        return of

    found = Graphed(step, model, optimizer, CFG)
    assert found.records == records
    assert optimizer.param_groups[0]["capturable"] == records  # as a graph needs it
    monkeypatch.setattr(graphs, "world_size", lambda: 2)
    assert not Graphed(step, model, optimizer, CFG).records
    if not records:
        assert found(0.5, 1) == (model, optimizer, CFG, 0.5, 1)


# ---------------------------------------------------------------- a whole run


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(train, "evaluate", lambda *_, **__: TABLE)


def run(folder, device=CPU, stop=None, resume=False):
    """Trains into the folder; Ctrl-C comes after the step `stop`. → its weights"""
    folder.mkdir(exist_ok=True)

    def after_step(step, model):
        if step == stop:
            signal.raise_signal(signal.SIGINT)

    arguments = (folder, MODEL, CFG, tasks.DEFAULT_DIET, device, resume, after_step)
    if stop:
        with pytest.raises(KeyboardInterrupt):
            train.train(*arguments)
    else:
        train.train(*arguments)
    return list(load_run(folder)[0].state_dict().values())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nothing interrupted, as a CPU makes it, and its weights."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "evaluate", lambda *_, **__: TABLE)
        return folder, run(folder)


def losses(folder):
    return [line["loss"] for line in load_lines(folder / "metrics.jsonl")]


def test_a_recorded_run_is_stopped_and_resumed_to_the_bits_of_one_as_it_is(
    tmp_path, monkeypatch, record, quick
):
    monkeypatch.setattr(train, "Graphed", Unrecorded)
    plain = run(tmp_path / "plain")
    monkeypatch.setattr(train, "Graphed", OnCuda)
    assert same(run(tmp_path / "recorded"), plain)
    run(tmp_path / "half", stop=3)
    assert same(run(tmp_path / "half", resume=True), plain) and record.calls == 6
    assert losses(tmp_path / "half") == losses(tmp_path / "plain")


def from_cuda(folder):
    """A resume.pt as a run on CUDA would have written it, in the folder of one of the CPU."""
    state = torch.load(folder / "resume.pt", weights_only=True)
    (group,) = state["optimizer"]["param_groups"]
    group |= {"lr": torch.tensor(0.5), "capturable": True, "fused": True}
    assert all(kept["step"].shape == () for kept in state["optimizer"]["state"].values())
    torch.save(state | {"device": "NVIDIA H100"}, folder / "resume.pt")


def test_a_run_from_cuda_goes_on_with_the_settings_of_the_device_and_says_so(
    tmp_path, capsys, quick, whole
):
    run(tmp_path / "half", stop=3)
    from_cuda(tmp_path / "half")
    capsys.readouterr()
    assert same(run(tmp_path / "half", resume=True), whole[1])
    told = [line for line in capsys.readouterr().err.splitlines() if "bit" in line]
    assert len(told) == 1 and "'NVIDIA H100'" in told[0] and "'cpu'" in told[0]
    state = torch.load(tmp_path / "half" / "resume.pt", weights_only=True)
    (group,) = state["optimizer"]["param_groups"]
    assert (type(group["lr"]), group["capturable"], state["device"]) == (float, False, "cpu")


def test_a_run_goes_on_with_the_settings_of_cuda(tmp_path, monkeypatch, record, quick):
    """What a CPU has written."""
    run(tmp_path / "half", stop=3)
    monkeypatch.setattr(train, "Graphed", OnCuda)
    run(tmp_path / "half", resume=True)
    state = torch.load(tmp_path / "half" / "resume.pt", weights_only=True)
    (group,) = state["optimizer"]["param_groups"]
    assert torch.equal(group["lr"], torch.tensor(CFG.lr_at(8))) and group["capturable"]
    assert {kept["step"].item() for kept in state["optimizer"]["state"].values()} == {8}


@pytest.mark.parametrize("device", ["cpu", None])
def test_a_run_of_the_same_device_or_of_an_older_version_goes_on_without_a_word(
    tmp_path, capsys, quick, whole, device
):
    run(tmp_path / "half", stop=3)
    state = torch.load(tmp_path / "half" / "resume.pt", weights_only=True)
    assert state["device"] == "cpu"
    if device is None:
        del state["device"]
        torch.save(state, tmp_path / "half" / "resume.pt")
    capsys.readouterr()
    assert same(run(tmp_path / "half", resume=True), whole[1])
    assert "bit" not in capsys.readouterr().err


# ---------------------------------------------------------------- the same bits each time


def modes():
    memory = torch.utils.deterministic.fill_uninitialized_memory
    return torch.are_deterministic_algorithms_enabled(), memory


@pytest.mark.parametrize("given", [None, ":16:8"])
def test_the_workspace_is_chosen_before_any_product_is_made(monkeypatch, given):
    """Once a process has made one on CUDA, without it, torch refuses all in a fixed order."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    if given:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", given)
    runpy.run_path(graphs.__file__)  # as the import does it
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == (given or ":4096:8")


@pytest.mark.parametrize("config", [":4096:8", ":16:8"])
def test_sums_have_an_order_on_cuda_and_what_was_set_is_set_again(monkeypatch, capsys, config):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", config)
    before = modes()
    with pytest.raises(ZeroDivisionError), deterministic(CUDA):
        assert modes() == (True, False)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == config
        raise ZeroDivisionError
    assert modes() == before == (False, True) and not capsys.readouterr().err
    with deterministic(CPU):
        assert modes() == before


def test_a_workspace_without_an_order_is_kept_and_told_of(monkeypatch, capsys):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with deterministic(CUDA):  # where it is on, every matrix product would be refused
        assert modes() == (False, True)
    (line,) = capsys.readouterr().err.splitlines()
    assert "CUBLAS_WORKSPACE_CONFIG is ':0:0'" in line
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":0:0"


def test_a_run_makes_its_steps_under_it(tmp_path, monkeypatch, quick):
    within = []

    @contextmanager
    def watched(device):
        within.append(device)
        yield
        within.append("end")

    monkeypatch.setattr(train, "deterministic", watched)
    step = train.train_step
    monkeypatch.setattr(train, "train_step", lambda *of: (within.append("step"), step(*of))[1])
    run(tmp_path / "run")
    assert within == [CPU, *["step"] * CFG.steps, "end"]


# ---------------------------------------------------------------- on a GPU


class Plain(Graphed):
    """On CUDA, as torchrun has it."""

    def __init__(self, *of):
        super().__init__(*of)
        self.records = False


@needs_gpu
def test_on_cuda_a_graph_has_the_bits_of_the_steps_as_they_are():
    with deterministic(CUDA):
        plain, recorded = steps(8, Plain, CUDA), steps(8, Graphed, CUDA)
    assert same(plain[0], recorded[0]) and same(plain[1], recorded[1])


@needs_gpu
def test_on_cuda_recording_changes_nothing(monkeypatch):
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: None)
    _, optimizer, update = fresh(Graphed, CUDA)
    update.records = False
    with deterministic(CUDA):
        for batch in batches(3, CUDA):
            update(*batch)
        before, update.records = everything(optimizer), True
        for batch in batches(2, CUDA):
            update(*batch)
    assert len(update.graphs) == 2 and same(everything(optimizer), before)


@needs_gpu
def test_on_cuda_one_seed_gives_one_run_and_so_does_a_resumed_one(tmp_path, quick, capsys):
    first, second = run(tmp_path / "first", CUDA), run(tmp_path / "second", CUDA)
    assert same(first, second)
    run(tmp_path / "half", CUDA, stop=3)
    assert same(run(tmp_path / "half", CUDA, resume=True), first)
    assert losses(tmp_path / "half") == losses(tmp_path / "first")
    assert "cannot be recorded" not in capsys.readouterr().err


@needs_gpu
@pytest.mark.parametrize("first, then", [(CPU, CUDA), (CUDA, CPU)], ids=["to CUDA", "from CUDA"])
def test_on_cuda_a_run_goes_on_from_one_device_to_the_other(
    tmp_path, quick, capsys, whole, first, then
):
    run(tmp_path, first, stop=3)
    weights = run(tmp_path, then, resume=True)
    assert "to the bit" in capsys.readouterr().err
    for found, of_cpu in zip(weights, whole[1]):
        assert (found - of_cpu).abs().mean() < 1e-4


@needs_gpu
def test_on_cuda_a_step_that_reads_a_value_back_is_made_as_it_is(capsys):
    model, optimizer, _ = fresh(Plain, CUDA)

    def reads(*of):
        loss, norm = train.train_step(*of)
        return (loss, norm) if loss.item() > -1 else (norm, loss)

    update = Graphed(reads, model, optimizer, CFG)
    with deterministic(CUDA):
        told = [value for batch in batches(4, CUDA) for value in update(*batch)]
        wanted, _ = steps(4, Plain, CUDA)
    assert same(told, wanted) and "cannot be recorded" in capsys.readouterr().err
