"""Watchdog: what takes too long is made to raise, and nothing is left of a watchdog that is not used."""

from __future__ import annotations

import threading
import time

import pytest

from klinesync.pipelines import watchdog
from klinesync.pipelines.watchdog import TookTooLong, Watchdog


def watching() -> int:
    return sum(one.name == "plugin watchdog" for one in threading.enumerate())


def never_return(one: Watchdog) -> None:
    with one:
        while True:
            time.sleep(0.01)


def test_its_thread_ends_when_it_is_not_used_and_the_next_use_is_watched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "IDLE_S", 0.05)
    before, one = watching(), Watchdog(limit_s=0.1)
    for _ in range(2):
        with one:
            assert watching() == before + 1
        deadline_s = time.monotonic() + 10
        while watching() > before:
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        with pytest.raises(TookTooLong):
            never_return(one)
