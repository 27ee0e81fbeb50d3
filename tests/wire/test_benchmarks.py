"""The shorter benchmarks run: they check what they measure, and a change of an answer or of a candle ends them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize(
    "arguments",
    [
        ["indicators.py", "--candles", "5000"],
        ["fanout.py", "--clients", "20", "--rounds", "1"],
        ["reads.py", "--rounds", "1"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_benchmark_runs_to_its_end(arguments: list[str]) -> None:
    program, *options = arguments
    ended = subprocess.run(
        [sys.executable, str(BENCHMARKS / program), *options], capture_output=True, text=True, timeout=240, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout
