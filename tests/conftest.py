"""What all tests share."""

from __future__ import annotations

import gc
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# A shell's background job ignores Ctrl-C, and so would the processes that tests start and interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in every run, so that a change is what turns a test red; `make soak` draws others.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

# Tests that something is synced watch the call; the others would wait thousands of times for a disk that no power cut
# threatens. A descriptor that is none stays an error.
os.fsync = lambda descriptor: os.fstat(descriptor) and None

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("-m"):
        return
    skip = pytest.mark.skip(reason="takes long: `make soak` runs it")
    for item in items:
        if "soak" in item.keywords:
            item.add_marker(skip)


def pytest_collection_finish() -> None:
    """What is imported by now stays: neither Python's collector nor Beam needs to look at it again and again."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    if (userstate := sys.modules.get("apache_beam.transforms.userstate")) is None:
        return
    inspect, known = userstate.get_dofn_specs, {}

    def remembered(dofn: Any) -> Any:
        # Beam inspects every method of every step, thousands for a pipeline of ten rows: here those of a class once.
        # A function in the place of process is no method, and not inspected.
        key = (type(dofn), getattr(dofn.process, "__func__", None))
        if key not in known:
            known[key] = inspect(dofn)
        return known[key]

    userstate.get_dofn_specs = remembered


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's top folder."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the checkout; its files may not be redistributed."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real data sets (../shared/data) are not here and may not be redistributed")
    return folder
