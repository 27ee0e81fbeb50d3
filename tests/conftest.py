"""Fixtures and settings that all tests share."""

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
# Imports leave only objects that stay in use.
gc.disable()

# The duration of an example depends on the machine, so there is no deadline. The explain phase is off: it traces each
# line, and a timeout during the phase hangs Python 3.11 for good.
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


# New objects between two garbage collections. Python's default of 700 cost a fifth of the run time, because so many
# objects are loaded; a test that looks for garbage collects by itself.
OBJECTS_A_COLLECTION = 20_000


def pytest_collection_finish() -> None:
    """Exclude the objects that are loaded by now from garbage collection."""
    gc.enable()
    gc.collect()
    gc.freeze()
    gc.set_threshold(OBJECTS_A_COLLECTION)


@pytest.fixture(autouse=True)
def _no_flags_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The developer's own flags, in the environment or the working directory, do not reach the tests."""
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
    for handler in [handler for handler in root.handlers if handler.name == HANDLER]:
        root.removeHandler(handler)
