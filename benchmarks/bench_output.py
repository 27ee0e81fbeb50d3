"""Figures of a program as JSON lines, for `bench.py`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from bench_table import Figure


def parser_of(docstring: str | None) -> argparse.ArgumentParser:
    """The argument parser of a program, which shows its docstring, with the option `--json`."""
    parser = argparse.ArgumentParser(description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures of `make bench` to this file")
    return parser


def write_figures(path: Path | None, figures: Iterable[Figure]) -> None:
    """Write the figures to the file of `--json`, if there is one."""
    if path is not None:
        path.write_text(json.dumps([figure._asdict() for figure in figures]))


def read_figures(path: Path) -> list[Figure]:
    """The figures of `write_figures`."""
    return [Figure(**figure) for figure in json.loads(path.read_text())]
