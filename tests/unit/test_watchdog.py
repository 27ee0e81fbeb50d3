"""Watchdog: code that exceeds its time is interrupted by an exception, and an unused watchdog has no thread."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from klinesync.pipelines import watchdog
from klinesync.pipelines.watchdog import TookTooLong, Watchdog


def never_return(one: Watchdog) -> None:
    with one:
        while True:
            time.sleep(0.01)


def test_its_thread_ends_when_it_is_not_used_and_the_next_use_is_watched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "IDLE_S", 0.05)
    one = Watchdog(limit_s=0.1)
    for _ in range(2):
        with one:
            thread = one._watching
            assert thread is not None
        thread.join(30)
        assert not thread.is_alive()
        with pytest.raises(TookTooLong):
            never_return(one)


def compute(seconds: float) -> None:
    until_s = time.thread_time() + seconds
    while time.thread_time() < until_s:
        pass


def test_code_that_computes_too_long_is_made_to_raise() -> None:
    with pytest.raises(TookTooLong), Watchdog(limit_s=0.1):
        compute(20.0)


def test_a_thread_without_cpu_time_has_not_timed_out() -> None:
    """As on a busy machine: several times the limit passes while the thread uses less CPU time than the limit."""
    with Watchdog(limit_s=0.4):
        for _ in range(8):
            compute(0.01)
            time.sleep(0.08)


def test_a_stopped_process_has_not_timed_out(tmp_path: Path) -> None:
    script = tmp_path / "paused.py"
    script.write_text(
        "import time\n"
        "from klinesync.pipelines.watchdog import Watchdog\n"
        "with Watchdog(limit_s=0.3):\n"
        "    print('within', flush=True)\n"
        "    until_s = time.thread_time() + 0.05\n"
        "    while time.thread_time() < until_s:\n"
        "        pass\n"
        "    time.sleep(0.5)\n"
        "print('done', flush=True)\n"
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "within\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(3.0)  # ten times the limit, and twice as long for waiting code
        process.send_signal(signal.SIGCONT)
        assert process.stdout.readline() == "done\n"
        assert process.wait(30) == 0
