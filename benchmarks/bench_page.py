"""Write the table of a run into docs/performance.md.

    PYTHONPATH=tests/docs python benchmarks/bench_page.py build/bench.json

The text outside the two markers of the page is kept.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from bench_table import COLUMNS
from generated import table, with_part

PAGE = Path(__file__).parents[1] / "docs/performance.md"
PART = "figures"


def part(report: Mapping[str, object]) -> str:
    """The generated part of the page: the run, the machine, and the table.

    report: the JSON that `bench.py` writes.
    """
    machine, versions, rows = report["machine"], report["versions"], report["rows"]
    assert isinstance(machine, Mapping)
    assert isinstance(versions, Mapping)
    assert isinstance(rows, list)
    warning = (
        "**A quick run (`QUICK=1`)**: smaller sizes, few rounds. It shows the form; its numbers are no reference.\n\n"
        if report["quick"]
        else ""
    )
    return (
        f"\n{warning}Measured {report['at']} in {report['minutes']} minutes, on {machine['cores']} cores of"
        f" {machine['processor']}, {machine['memory_gb']} GB, {machine['system']}; load before the run"
        f" {report['load']}. Versions: {', '.join(f'{name} {text}' for name, text in versions.items())}.\n\n"
        + table(COLUMNS, [row["cells"] for row in rows])
        + "\n"
    )


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="the JSON of a run")
    report = json.loads(parser.parse_args().report.read_text())
    PAGE.write_text(with_part(PAGE.read_text(), PART, part(report)))


if __name__ == "__main__":
    main()
