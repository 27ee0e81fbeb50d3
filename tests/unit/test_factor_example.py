"""The page about the example factor shows its source."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_code_on_the_page_is_that_of_the_example() -> None:
    page = (ROOT / "docs/how-to/write-a-factor.md").read_text()
    example = (ROOT / "examples/momentum_run.py").read_text().splitlines()
    state, fold, numbers, name, *_ = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    for block in (state, fold, numbers, name):
        lines = [line for line in block.splitlines() if line]
        assert len(lines) > 2
        assert [line for line in lines if line not in example] == []


def test_the_example_is_short() -> None:
    lines = (ROOT / "examples/momentum_run.py").read_text().splitlines()
    assert len([line for line in lines if line.strip()]) <= 35
