"""The shorter benchmarks run: they check what they measure, and a change of an answer or of a candle ends them. The
profiler of a command runs without being root."""

from __future__ import annotations

import json
import os
import signal
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


PROFILED = [sys.executable, str(BENCHMARKS / "profiled.py"), sys.executable, "-c"]


def test_a_command_that_is_not_profiled_goes_on_alone() -> None:
    ended = subprocess.run(
        [*PROFILED, "import os; print(os.getpid())"], input="", capture_output=True, text=True, timeout=60, check=True
    )
    process_id, printed = ended.stdout.split()
    assert process_id == printed


def test_a_command_is_profiled_by_its_parent(tmp_path: Path) -> None:
    output = tmp_path / "profile.txt"
    options = ["record", "--duration=1", "--format=raw", f"--output={output}"]
    process = subprocess.Popen(
        [*PROFILED, "def spin():\n    while True: pass\nspin()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    command = int(process.stdout.readline())
    try:
        print(json.dumps(options), file=process.stdin, flush=True)
        status = process.wait(60)
    finally:
        os.kill(command, signal.SIGKILL)
        _, errors = process.communicate()
    if "ermission" in errors:
        pytest.skip("this machine lets no process look into another one")
    assert status == 0, errors
    assert "spin" in output.read_text()
