"""The HTTP page documents exactly the events of `explain`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from klinesync.core.events import EventName

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "http.md"


def test_every_event_of_a_series_is_documented() -> None:
    section = PAGE.read_text().partition("\n## Explain\n")[2].partition("\n## ")[0]
    table = section.partition("| event | subject | when |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`([a-z]+\.[a-z_]+)`", table)) == set(get_args(EventName))
