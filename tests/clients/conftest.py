"""Shared by the client tests: two running exchanges, and the guard that keeps every client on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator

import loopback_only
import pytest
from simulated_exchange import SimulatedExchange, simulated_exchange

for variable in ("http_proxy", "https_proxy", "all_proxy", "ws_proxy", "wss_proxy"):
    os.environ.pop(variable, None)
    os.environ.pop(variable.upper(), None)

loopback_only.install()


@pytest.fixture(autouse=True)
def nothing_leaves_this_machine() -> Iterator[None]:
    """Fail the test in which a client asked for an address beyond loopback, also when it swallowed the refusal."""
    loopback_only.refused.clear()
    yield
    assert loopback_only.refused == []


@pytest.fixture(scope="session")
def exchange() -> Iterator[SimulatedExchange]:
    """An exchange whose minute lasts half a second, so that live candles close during a test."""
    with simulated_exchange("--speed", "120", "--symbols", "8") as running:
        yield running


@pytest.fixture(scope="session")
def calm_exchange() -> Iterator[SimulatedExchange]:
    """An exchange at our own time, for clients that decide by the system's clock which candles to fetch."""
    with simulated_exchange("--speed", "1", "--symbols", "8") as running:
        yield running
