"""What the installed ccxt has, and the part of its exchange objects that is used."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, TypeVar

from klinesync.exchanges.ccxt.rows import (
    Row,
)
from klinesync.runtime.proxies import Proxies

Found = TypeVar("Found")

# Exchanges of ccxt extend others, no more than so many deep.
MOST_PARENTS = 5
# How a file of ccxt says whether the exchange has OHLCV, and which exchange it extends.
_HAS_OHLCV = re.compile(r"^\s+'fetchOHLCV': (True|False|None|'emulated'),", re.MULTILINE)
_PARENT = re.compile(r"^class \w+\((\w+)[,)]", re.MULTILINE)
NOT_INSTALLED = "exchanges other than binance need ccxt, which is not installed: pip install 'klinesync[ccxt]'"
# ccxt gives up a request after so long, in ms.
TIMEOUT_MS = 10_000


class Ccxt(Protocol):
    """The part of a `ccxt.pro` exchange that is used. Symbols are ccxt's, times ms."""

    has: Mapping[str, object]
    timeframes: Mapping[str, object] | None
    rateLimit: float  # noqa: N815  # ccxt's name
    last_response_headers: Mapping[str, str] | None

    async def load_markets(self, reload: bool = False) -> Mapping[str, Mapping[str, object]]:
        """Every symbol of the exchange."""
        ...

    def feature_value(self, symbol: str, method: str, parameter: str) -> object:
        """What is known of a method's limits."""
        ...

    async def fetch_time(self) -> int | None:
        """The exchange's time."""
        ...

    async def fetch_ohlcv(
        self, symbol: str, timeframe: str, since: int | None = None, limit: int | None = None
    ) -> Sequence[Row]:
        """Rows, ascending."""
        ...

    async def fetch_tickers(self, symbols: list[str]) -> Mapping[str, Mapping[str, object]]:
        """The last 24 hours."""
        ...

    async def watch_ohlcv(self, symbol: str, timeframe: str) -> Sequence[Row]:
        """The rows that are new since the last call, once there are any."""
        ...

    async def un_watch_ohlcv(self, symbol: str, timeframe: str) -> object:
        """Unsubscribe."""
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...


Maker = Callable[[str], Ccxt]


def offers_exchange(name: str) -> bool | None:
    """Whether the installed ccxt has an exchange of that name; None when ccxt is not installed. Imports nothing."""
    spec = find_spec("ccxt")
    if spec is None or not spec.submodule_search_locations:
        return None
    return any((Path(folder) / "async_support" / f"{name}.py").is_file() for folder in spec.submodule_search_locations)


def offers_history(name: str) -> bool | None:
    """Whether ccxt's exchange of that name has OHLCV, as its file says, or that of the exchange which it extends; None
    when they do not say. Imports nothing."""
    spec = find_spec("ccxt")
    folders = [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or ()]
    for _ in range(MOST_PARENTS):
        path = next((path for folder in folders if (path := folder / "async_support" / f"{name}.py").is_file()), None)
        if path is None:
            return None
        text = path.read_text(encoding="utf-8", errors="replace")
        if (told := _HAS_OHLCV.search(text)) is not None:
            return told[1] == "True"
        if (parent := _PARENT.search(text)) is None:
            return None
        name = parent[1]
    return None


def ccxt_exchange(name: str, *, proxies: Proxies | None = None) -> Ccxt:
    """A new exchange object of ccxt, with its stream methods where there are any. Takes seconds for the first one.

    proxies: those of the environment; None, or no proxies: hosts are asked directly, as ccxt does by itself. For REST
        ccxt's HTTP library applies the same variables; that library knows no proxy of `wss://` addresses, so a stream
        gets the proxy by name.
    """
    module = import_module("ccxt.pro")
    make = getattr(module, name, None) or getattr(import_module("ccxt.async_support"), name)
    settings: dict[str, object] = {"enableRateLimit": True, "timeout": TIMEOUT_MS}
    if proxies is not None and proxies.named:
        settings["aiohttp_trust_env"] = True
        # The host of a stream is ccxt's secret until the stream is opened: NO_PROXY is asked for the exchange's name.
        proxy = proxies.proxy_for(f"wss://{name}")
        if proxy is not None:
            settings["wssProxy"] = proxy.with_login
    exchange: Ccxt = make(settings)
    return exchange
