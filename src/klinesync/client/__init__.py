"""The client of a running service for other programs: reads and follows series. Imports `core` alone."""

from klinesync.client.asking import BadUrl, ServiceError
from klinesync.client.blocking import Klinesync
from klinesync.client.service import AsyncKlinesync
from klinesync.client.tables import Cursor, Drawings, Frame, Slices, Snapshot, UnknownFactor, to_pandas
from klinesync.client.updates import (
    CaughtUp,
    ClosedCandle,
    Connected,
    Disconnected,
    FormingCandle,
    Gap,
    System,
    Update,
)
from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId
from klinesync.core.times import BadTime

__all__ = [
    "AsyncKlinesync",
    "BadTime",
    "BadUrl",
    "Candle",
    "CaughtUp",
    "ClosedCandle",
    "Connected",
    "Cursor",
    "Disconnected",
    "Drawings",
    "FormingCandle",
    "Frame",
    "Gap",
    "Klinesync",
    "SeriesId",
    "ServiceError",
    "Slices",
    "Snapshot",
    "System",
    "UnknownFactor",
    "Update",
    "to_pandas",
]
