"""What several tests need."""

from __future__ import annotations

import gc
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import Phase, settings

from klinesync.runtime.logs import HANDLER
from support.memory_folder import temporary_files_in_memory
from support.thorough import EXAMPLES, examples

temporary_files_in_memory()
# Imports make nothing but what stays.
gc.disable()

# How long an example takes says more about the machine than the code. Nothing is explained: that traces each line,
# and a timeout that strikes meanwhile hangs Python 3.11 for good.
settings.register_profile(
    "klinesync",
    deadline=None,
    max_examples=examples(EXAMPLES),
    phases=[phase for phase in Phase if phase is not Phase.explain],
)
settings.load_profile("klinesync")


# Children inherit signals that are ignored here, as under `nohup` or behind a script's `&`; not those with a handler.
for _signal in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_signal) is signal.SIG_IGN:
        signal.signal(_signal, lambda *_: None)


# How many objects are made between two collections of garbage. Python's 700 cost a fifth of all time here, because so
# much is loaded; a test that looks for garbage collects it itself.
OBJECTS_A_COLLECTION = 20_000


def pytest_collection_finish() -> None:
    """What is loaded by now stays, and is not looked through for garbage again."""
    gc.enable()
    gc.collect()
    gc.freeze()
    gc.set_threshold(OBJECTS_A_COLLECTION)


@pytest.fixture(autouse=True)
def _no_flags_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Flags of the developer's own, in the environment or the working directory, do not reach the tests."""
    for variable in os.environ:
        if variable.startswith("KLINESYNC_") and variable not in ("KLINESYNC_REAL_DATA", "KLINESYNC_CHROMIUM"):
            monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of recorded market data; the test is skipped where there is none."""
    folder = os.environ.get("KLINESYNC_REAL_DATA")
    if not folder:
        pytest.skip("KLINESYNC_REAL_DATA names no folder of recorded market data")
    return Path(folder)


@pytest.fixture(autouse=True)
def _logs_end_with_the_test() -> Iterator[None]:
    """A command that runs in this process sets up logs on the stderr that pytest has put in place for one test."""
    yield
    root = logging.getLogger()
    for handler in [one for one in root.handlers if one.name == HANDLER]:
        root.removeHandler(handler)
