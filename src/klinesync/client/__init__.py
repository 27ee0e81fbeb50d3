"""What programs that follow a running service import. Imports the vocabulary alone."""

from klinesync.client.follow import (
    ClosedCandle,
    Connected,
    Disconnected,
    FormingCandle,
    Gap,
    ServiceError,
    System,
    Update,
)
from klinesync.client.service import AsyncKlinesync, Klinesync
from klinesync.client.tables import Cursor, Drawings, Frame, Slices, Snapshot, to_pandas
from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId

__all__ = [
    "AsyncKlinesync",
    "Candle",
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
    "Update",
    "to_pandas",
]
