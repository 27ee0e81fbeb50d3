"""History from files: what lies in freqtrade's folder, and in an exchange's archive.

Both bring rows and prove nothing: what they lack may well exist. A file that cannot be used is left out with a sentence
in the log, and so is a bad row.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Protocol

from klinesync.core.candle import Candle
from klinesync.core.gaps import Span
from klinesync.core.series_id import SeriesId


class HistoryFiles(Protocol):
    """Files with candles of many series."""

    def pages(self, series: SeriesId, span: Span) -> AsyncGenerator[list[Candle], None]:
        """The sound candles that open in `span`, strictly ascending, in pages that are never empty. Nothing at all
        where there is no file. Raises `UpstreamError` when a server does not answer; blocking work is in a thread."""
        ...


class FreqtradeFiles:
    """The data folder of freqtrade for one exchange: spot files in it, futures files in `futures` below."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def pages(self, series: SeriesId, span: Span) -> AsyncGenerator[list[Candle], None]:
        """See `HistoryFiles`."""
        raise NotImplementedError
        yield []


class ExchangeArchive:
    """An exchange's archive: a folder or an `http://` address below which `data/spot/monthly/klines/…` lies."""

    def __init__(self, location: Path | str) -> None:
        self._location = location

    async def pages(self, series: SeriesId, span: Span) -> AsyncGenerator[list[Candle], None]:
        """See `HistoryFiles`. Monthly files where they exist, else daily ones; only of the exchange whose it is."""
        raise NotImplementedError
        yield []
