"""Chunks as stored in SQLite."""

import apsw

from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId
from klinesync.storage.chunks import chunk_start, seed_of, unpack


def stored_candles(connection: apsw.Connection, chunk_id: int, packed: bytes) -> list[Candle]:
    """The candles of the chunk that is stored under `chunk_id`."""
    number, chunk = chunk_id >> 32, chunk_id & 0xFFFFFFFF
    series = SeriesId.parse(str(connection.execute("SELECT series_id FROM series WHERE series_no = ?", (number,)).get))
    return unpack(packed, seed_of(series, max(chunk_start(number, series.timeframe, chunk), 0)))
