"""The exchanges of the installed ccxt, and the protocol of its exchange objects as far as they are used."""

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

# Deepest inheritance of ccxt's exchange classes that is searched.
MOST_PARENTS = 5
# Patterns in a file of ccxt: whether the exchange has OHLCV, and which exchange it extends.
_HAS_OHLCV = re.compile(r"^\s+'fetchOHLCV': (True|False|None|'emulated'),", re.MULTILINE)
_PARENT = re.compile(r"^class \w+\((\w+)[,)]", re.MULTILINE)
NOT_INSTALLED = "exchanges other than binance need ccxt, which is not installed: pip install 'klinesync[ccxt]'"
# Timeout of a request of ccxt, in ms.
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
        """A limit of a method, `limit` of `fetchOHLCV` for example."""
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
        """Wait for rows that are new since the last call."""
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
    """Whether ccxt's exchange of that name has OHLCV, by its source file or that of the exchange which it extends; None
    when neither says so. Imports nothing."""
    spec = find_spec("ccxt")
    folders = [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or ()]
    for _ in range(MOST_PARENTS):
        path = next((path for folder in folders if (path := folder / "async_support" / f"{name}.py").is_file()), None)
        if path is None:
            return None
        text = path.read_text(encoding="utf-8", errors="replace")
        if (match := _HAS_OHLCV.search(text)) is not None:
            return match[1] == "True"
        if (parent := _PARENT.search(text)) is None:
            return None
        name = parent[1]
    return None


def ccxt_exchange(name: str, *, proxies: Proxies | None = None) -> Ccxt:
    """A new exchange object of ccxt, with stream methods where ccxt has them. The first call takes seconds.

    name: ccxt's name of the exchange.
    proxies: the proxies of the environment; None: hosts are connected directly, as ccxt does by default. For REST
        ccxt's HTTP library reads the same variables; it has no proxy for `wss://` addresses, so a stream gets the proxy
        by name.
    """
    module = import_module("ccxt.pro")
    make = getattr(module, name, None) or getattr(import_module("ccxt.async_support"), name)
    settings: dict[str, object] = {"enableRateLimit": True, "timeout": TIMEOUT_MS}
    if proxies is not None and proxies.named:
        settings["aiohttp_trust_env"] = True
        # ccxt does not tell the host of a stream before the stream is opened, so NO_PROXY is matched with the name.
        proxy = proxies.proxy_for(f"wss://{name}")
        if proxy is not None:
            settings["wssProxy"] = proxy.with_login
    exchange: Ccxt = make(settings)
    return exchange
