"""The shorter benchmarks run: they check what they measure, and a change of an answer or of a candle ends them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from bench_output import read_figures
from bench_table import ROWS, lines

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize(
    "arguments",
    [
        ["indicators.py", "--candles", "5000"],
        ["fanout.py", "--clients", "20", "--rounds", "1"],
        ["reads.py", "--rounds", "1", "--history", "2500"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_benchmark_runs_to_its_end_and_gives_its_figures(arguments: list[str], tmp_path: Path) -> None:
    program, *options = arguments
    expected = {row.key for row in ROWS if row.program == program}
    output = tmp_path / "figures.json"
    ended = subprocess.run(
        [sys.executable, str(BENCHMARKS / program), *options, *(["--json", str(output)] if expected else [])],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout
    if expected:
        figures = read_figures(output)
        assert {figure.row for figure in figures} == expected
        assert all(line.judged for line in lines(figures) if line.row.key in expected)
