import functools
import gc
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch

# The models of the tests are tiny; starting threads would cost more than they save.
torch.set_num_threads(1)
# Looking for garbage after every 700 new objects takes a twentieth of the time.
gc.set_threshold(100_000)
# Run in the background by a shell: what Ctrl-C does is tested all the same.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# What the shell of a cluster has left: the tests that need these variables set them.
for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
    os.environ.pop(name, None)
os.environ.pop("TORCHELASTIC_RUN_ID", None)
# Where two processes note which files are taken; not for the tests that a test runs.
TAKEN = os.environ.pop("MINIFUNC_TESTS_TAKEN", None)


def pytest_runtest_protocol(item, nextitem):
    """Leaves out the tests of a file that another process has taken (tests/__main__.py)."""
    if not TAKEN or taken(Path(TAKEN) / item.nodeid.split("::")[0].replace("/", ".")):
        return None
    item.session._setupstate.teardown_exact(nextitem)  # as if it had run
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Where the page's tests were asked for (`make test-page`), a skipped one has failed."""
    report = yield
    if report.skipped and os.environ.get("MINIFUNC_NEED_BROWSER"):
        report.outcome, report.longrepr = "failed", f"skipped: {call.excinfo.value}"
    return report


@functools.cache
def taken(file):
    """Whether this process is the first to take the file."""
    try:
        file.mkdir()
    except FileExistsError:
        return False
    return True


def pytest_collection_modifyitems(items):
    """The longest files come first, so that no process is left with one at the end."""
    longest = ("test_surroundings", "test_hostile", "test_page", "test_walkthrough")
    items.sort(key=lambda item: not any(file in item.nodeid for file in longest))


@pytest.fixture(scope="session")
def forkserver():
    """Starts processes as copies of one that has loaded torch, but has trained nothing.

    To load it takes seconds. torch._dynamo: else the first optimizer of each copy would load it.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        pytest.skip("no fork here")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "experiments.universality"])
    context.Process(target=os.getpid).start()
    return context
