"""Structured fuzzing of what reads data from outside: `make fuzz`."""

from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
