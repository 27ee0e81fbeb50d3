"""The exchange's archive: klines of whole days and months as zips with checksums, made when they are asked for.

As the real one it is late: a day's file appears when the day is over, a month's on the first Monday after it. Spot
files have no header, and microseconds from 2025 on; futures files have a header and milliseconds. Pure.
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta

from klinesync.core.timeframe import DAY_S, Timeframe
from klinesync.sim.exchange import Grid, Listing, SimExchange
from klinesync.sim.tape import Market, Row

CHECKSUM = ".CHECKSUM"
_PATH = re.compile(
    r"data/(?P<market>spot|futures/um)/(?P<kind>daily|monthly)/klines/(?P<symbol>[^/]+)/(?P<interval>[^/]+)/"
    r"(?P<name>(?P=symbol)-(?P=interval)-(?P<year>\d{4})-(?P<month>\d\d)(?:-(?P<day>\d\d))?\.zip)(?P<sum>\.CHECKSUM)?"
)
_HEADER = (
    b"open_time,open,high,low,close,volume,close_time,"
    b"quote_volume,count,taker_buy_volume,taker_buy_quote_volume,ignore\n"
)  # fmt: skip
_MICROS_FROM = date(2025, 1, 1)
# So that a file is the same whenever it is made.
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file of the archive that exists by its name: `listing`'s candles from `first` up to `end` (exclusive)."""

    market: Market
    listing: Listing
    grid: Grid
    first: date
    end: date
    name: str
    checksum: bool


def wanted(exchange: SimExchange, path: str, now_ms: int) -> Wanted | None:
    """What a path from `data/` on asks for; None when the archive has, or knows, nothing of the kind (yet)."""
    match = _PATH.fullmatch(path)
    if match is None or (match["kind"] == "daily") != (match["day"] is not None):
        return None
    market: Market = "spot" if match["market"] == "spot" else "futures"
    listing = exchange.listings(market).get(match["symbol"])
    timeframe = Timeframe.known.get("1M" if match["interval"] == "1mo" else match["interval"])
    if listing is None or timeframe is None or match["interval"] == "1M":
        return None
    try:
        first = date(int(match["year"]), int(match["month"]), int(match["day"] or 1))
    except ValueError:
        return None
    if match["day"] is None:
        end = date(first.year + first.month // 12, first.month % 12 + 1, 1)
        published = end + timedelta(-end.weekday() % 7)
    else:
        end = published = first + timedelta(1)
    if _midnight(published) * 1000 > now_ms:
        return None
    return Wanted(market, listing, Grid(timeframe), first, end, match["name"], match["sum"] is not None)


def days(file: Wanted, now_ms: int) -> Iterator[bytes]:
    """The lines of the file, a day at a time, so that the writer can yield in between."""
    day = file.first
    while day < file.end:
        start, end = _midnight(day), _midnight(day + timedelta(1))
        first = file.grid.floor(start)
        first = first if first == start else file.grid.next(first)
        lines = b""
        if first < end:
            opens_until = file.grid.next(file.grid.floor(end - 1))
            rows = file.listing.candles(file.grid, first, opens_until, now_ms).rows()
            closed = [row for row in rows if file.grid.next(row.time) * 1000 <= now_ms]
            lines = b"".join(_line(file, row) for row in closed)
        yield lines
        day += timedelta(1)


def packed(file: Wanted, lines: bytes) -> bytes | None:
    """The zip, or its checksum file, with those lines; None when there are none: then there is no file."""
    if not lines:
        return None
    text = io.BytesIO()
    with zipfile.ZipFile(text, "w", zipfile.ZIP_DEFLATED) as archive:
        member = zipfile.ZipInfo(file.name.replace(".zip", ".csv"), _ZIP_TIME)
        member.compress_type = zipfile.ZIP_DEFLATED
        archive.writestr(member, (_HEADER if file.market == "futures" else b"") + lines)
    zipped = text.getvalue()
    if file.checksum:
        return f"{hashlib.sha256(zipped).hexdigest()}  {file.name}\n".encode()
    return zipped


def _line(file: Wanted, row: Row) -> bytes:
    listing = file.listing
    price, volume, quote = listing.price_text, listing.volume_text, listing.quote_text
    micros = file.market == "spot" and row.time >= _midnight(_MICROS_FROM)
    unit = 1_000_000 if micros else 1000
    close_time = file.grid.next(row.time) * unit - 1
    prices = ",".join(map(price, (row.open, row.high, row.low, row.close)))
    return (
        f"{row.time * unit},{prices},{volume(row.volume)},{close_time},{quote(row.quote)},{row.trades},"
        f"{volume(row.taker_volume)},{quote(row.taker_quote)},0\n"
    ).encode()


def _midnight(day: date) -> int:
    return (day - date(1970, 1, 1)).days * DAY_S
