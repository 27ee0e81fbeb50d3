"""Symbols: their names, their precision, and their numbers as text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

import numpy as np

from klinesync.sim.tape import Floats, Market

SPOT_DIGITS = 8
_QUOTES = (
    "USDT", "USDC", "FDUSD", "BUSD", "TUSD", "USDP", "USDS", "PAX", "DAI", "UST",
    "BTC", "ETH", "BNB", "TRX", "XRP", "DOGE",
    "TRY", "EUR", "GBP", "AUD", "BRL", "RUB", "UAH", "NGN", "ZAR", "PLN", "RON", "ARS", "JPY", "MXN", "COP", "CZK",
    "IDRT", "BIDR", "BVND", "VAI",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Symbol:
    """A symbol as exchangeInfo describes it. `name` is `BTCUSDT`; digits are decimals behind the point. On futures:
    its type of contract, and when it is delivered (UTC seconds), if ever."""

    market: Market
    name: str
    base: str
    quote: str
    price_digits: int
    volume_digits: int
    contract: str = "PERPETUAL"
    delivery_s: int | None = None

    @property
    def price_text_digits(self) -> int:
        return SPOT_DIGITS if self.market == "spot" else self.price_digits

    @property
    def volume_text_digits(self) -> int:
        return SPOT_DIGITS if self.market == "spot" else self.volume_digits

    @property
    def quote_text_digits(self) -> int:
        return SPOT_DIGITS if self.market == "spot" else min(SPOT_DIGITS, self.price_digits + self.volume_digits)


def split_name(name: str) -> tuple[str, str] | None:
    """Base and quote asset of an exchange name such as `BTCUSDT`; None when no known quote asset ends it."""
    for quote in _QUOTES:
        if name.endswith(quote) and len(name) > len(quote):
            return name[: -len(quote)], quote
    return None


def has_digits(values: Floats, digits: int) -> bool:
    """Whether writing the numbers with that many decimals loses nothing: each reads back as the same double."""
    scale = 10.0**digits
    scaled = values * scale
    return bool((np.abs(scaled) < 2.0**53).all() and (np.rint(scaled) / scale == values).all())


def number_text(digits: int) -> Callable[[float], str]:
    """The writer of numbers with `digits` decimals. What it writes reads back as the very same double: a number that
    needs more decimals gets them."""
    template = f"%.{digits}f"

    def text(value: float) -> str:
        written = template % value
        return written if float(written) == value else format(Decimal(repr(value)), "f")

    return text
