"""What several tests need."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes says more about the machine than about the code.
settings.register_profile("klinesync", deadline=None)
settings.load_profile("klinesync")


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
