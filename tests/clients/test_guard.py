"""The guard itself: on a machine without Internet access, a client that calls home would otherwise go unnoticed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import loopback_only
import pytest

ELSEWHERE = "192.0.2.1"  # an address reserved for documentation: no host answers there


@pytest.mark.parametrize(
    "reach_out",
    [
        lambda: socket.create_connection((ELSEWHERE, 80), timeout=1),
        lambda: socket.getaddrinfo("example.org", 443),
        lambda: urllib.request.urlopen("https://example.org/"),
    ],
    ids=["address", "name", "url"],
)
def test_an_address_beyond_this_machine_is_refused_and_remembered(reach_out: Callable[[], object]) -> None:
    with pytest.raises((PermissionError, OSError), match="stay on this machine"):
        reach_out()
    assert len(loopback_only.refused) == 1
    loopback_only.refused.clear()


def test_a_subprocess_is_guarded_too(tmp_path: Path) -> None:
    log = tmp_path / "refused.txt"
    done = subprocess.run(
        [sys.executable, "-c", f"import socket; socket.create_connection(({ELSEWHERE!r}, 80), timeout=1)"],
        env={**os.environ, "PYTHONPATH": str(Path(loopback_only.__file__).parent), loopback_only.LOG: str(log)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "PermissionError" in done.stderr
    assert ELSEWHERE in log.read_text()
