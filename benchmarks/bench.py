"""All benchmarks in one run, as one table.

    python benchmarks/bench.py --output build/bench.json

Runs the programs one after another, writes their figures with the machine and the versions to a file, and prints the
table. Ends with status 1 where a program failed or a must was missed. `--quick` takes about two minutes: smaller sizes,
fewer rounds, and rows that depend on the size are not judged. `--only` runs some of the programs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import apsw
from bench_output import read_figures
from bench_table import ROWS, Figure, cells, lines, missed, text

FOLDER = Path(__file__).parent
DEFAULT_OUTPUT = FOLDER.parent / "build/bench.json"
PACKAGES = ("klinesync", "apsw", "msgspec", "numpy", "pcodec", "pyarrow", "TA-Lib", "uvicorn", "uvloop")


class Program(NamedTuple):
    """A benchmark.

    name: of its file.
    full: arguments of a whole run.
    quick: arguments of a quick run; None: it is left out.
    """

    name: str
    full: tuple[str, ...] = ()
    quick: tuple[str, ...] | None = None


PROGRAMS = (
    Program("write_path.py", (), ("--series", "100", "--rounds", "1")),
    Program(
        "follow_exchange.py",
        (),
        ("--symbols", "100", "--history", "300", "--speed", "6", "--before", "90", "--nights", "1"),
    ),
    Program("pipeline.py", (), ("--series", "128", "--rounds", "1", "--seconds", "2")),
    Program("fanout.py", (), ("--clients", "1000", "--rounds", "2")),
    Program("reads.py", (), ("--rounds", "2", "--history", "5000")),
    Program("import_files.py", (), ("--months", "1", "--rounds", "1")),
    Program("chunks.py", (), ("--rounds", "1")),
    Program("derived.py"),
    Program("indicators.py"),
    Program("sim_load.py"),
)


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
    }


def versions() -> dict[str, str]:
    """Of Python, SQLite, and the packages that do most of the work; the commit where there is one."""
    found = {"python": platform.python_version(), "sqlite": apsw.sqlite_lib_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=FOLDER, capture_output=True, text=True, check=False
    ).stdout.strip()
    return found | ({"commit": commit} if commit else {})


def run(program: Program, quick: bool) -> list[Figure] | None:
    """The figures of a program, whose output is shown; None where it failed."""
    arguments = program.quick if quick else program.full
    assert arguments is not None
    print(f"\n--- {program.name} {' '.join(arguments)}", flush=True)
    with TemporaryDirectory(prefix="klinesync-bench-") as folder:
        output = Path(folder) / "figures.json"
        measures = any(row.program == program.name for row in ROWS)
        command = [sys.executable, str(FOLDER / program.name), *arguments]
        if subprocess.run([*command, *(["--json", str(output)] if measures else [])], check=False).returncode != 0:
            return None
        return read_figures(output) if measures else []


def report(programs: Sequence[Program], quick: bool) -> tuple[dict[str, object], list[str]]:
    """Run the programs: the report as a value, and the names of programs that failed."""
    began_s, load = time.monotonic(), os.getloadavg()[0]
    figures: list[Figure] = []
    failed: list[str] = []
    for program in programs:
        measured = run(program, quick)
        if measured is None:
            failed.append(program.name)
        else:
            figures += measured
    return as_json(
        figures,
        quick=quick,
        at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        minutes=round((time.monotonic() - began_s) / 60, 1),
        load=round(load, 1),
        failed=failed,
        machine=machine(),
        versions=versions(),
    ), failed


def as_json(figures: Iterable[Figure], *, quick: bool, **facts: object) -> dict[str, object]:
    """The report: facts of the run, the figures of each round, and the table in words.

    figures: of all programs. quick: whether sizes were reduced. facts: of the run and of the machine.
    """
    kept = list(figures)
    table = lines(kept, quick=quick)
    return {
        "quick": quick,
        **facts,
        "rows": [
            {"row": line.row.key, "verdict": line.verdict, "judged": line.judged, "cells": cells(line)}
            for line in table
        ],
        "figures": [figure._asdict() for figure in kept],
    }


def figures_of(found: dict[str, object]) -> list[Figure]:
    """The figures of a report."""
    kept = found["figures"]
    assert isinstance(kept, list)
    return [Figure(**figure) for figure in kept]


def exit_status(found: dict[str, object], failed: Sequence[str]) -> int:
    """0, or 1 where a must was missed or a program failed."""
    lost = missed(lines(figures_of(found), quick=bool(found["quick"])))
    for row in lost:
        print(f"must missed: {row.name}", file=sys.stderr)
    for name in failed:
        print(f"failed: {name}", file=sys.stderr)
    return 1 if lost or failed else 0


def main() -> None:
    """Run, write and print; the process ends with the status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="about two minutes")
    parser.add_argument("--only", nargs="+", metavar="PROGRAM", choices=[program.name for program in PROGRAMS])
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="of the figures, as JSON")
    chosen = parser.parse_args()
    programs = [
        program
        for program in PROGRAMS
        if (not chosen.quick or program.quick is not None) and (chosen.only is None or program.name in chosen.only)
    ]
    found, failed = report(programs, chosen.quick)
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    chosen.output.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    names = {program.name for program in programs}
    table = [line for line in lines(figures_of(found), quick=chosen.quick) if line.row.program in names]
    print(f"\n{text(table)}\n\nwritten to {chosen.output}")
    sys.exit(exit_status(found, failed))


if __name__ == "__main__":
    main()
