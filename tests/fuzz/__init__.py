"""Structured fuzzing of all readers of outside data: `make fuzz`."""

from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
