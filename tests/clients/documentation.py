"""The blocks of docs/reference/clients.md, so that the tests run exactly the documented examples."""

from __future__ import annotations

import re

from simulated_exchange import REPOSITORY, SimulatedExchange

PAGE = (REPOSITORY / "docs" / "reference" / "clients.md").read_text(encoding="utf-8")
EXAMPLE_ADDRESS = "127.0.0.1:9000"


def blocks(language: str) -> list[str]:
    """All fenced blocks of that language, in the order of the page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def pointed(block: str, exchange: SimulatedExchange) -> str:
    """The block with the address of a running exchange in place of the example's."""
    assert EXAMPLE_ADDRESS in block
    return block.replace(EXAMPLE_ADDRESS, exchange.http_url.removeprefix("http://"))
