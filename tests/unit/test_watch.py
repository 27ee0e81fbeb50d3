"""What `klinesync watch` shows of each update: the board on a terminal, lines elsewhere, JSON on request."""

import json

from klinesync.client.follow import ClosedCandle, Disconnected, System
from klinesync.client.watch import Board, _as_json, line
from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId

SERIES = SeriesId.parse("binance:spot:BTC/USDT:1m")
CLOSED = ClosedCandle(Candle(1_700_000_040, 1.0, 2.0, 0.5, 1.5, 10.0))
STALE = System("stream.stale", "no frames for 15 s", {"since": 1_700_000_100})


def test_a_system_message_is_a_line_with_its_sentence() -> None:
    assert line(STALE) == "stream.stale: no frames for 15 s"
    assert line(System("resync", "", {})) == "resync"
    assert json.loads(_as_json(STALE)) == {
        "type": "system",
        "event": "stream.stale",
        "message": "no frames for 15 s",
        "data": {"since": 1_700_000_100},
    }


def test_the_board_says_what_is_the_matter_until_it_is_over() -> None:
    board = Board(SERIES)
    progress = System("backfill.progress", "40 %", {"state": "running"})
    for update in (CLOSED, STALE, progress):
        board.take(update)
    assert board.table().caption == "live · stream.stale: no frames for 15 s · backfill.progress: 40 %"
    board.take(System("stream.live", "frames again", {}))
    board.take(CLOSED)
    assert board.table().caption == "live · backfill.progress: 40 %"
    board.take(System("backfill.progress", "100 %", {"state": "succeeded"}))
    assert board.table().caption == "live"
    board.take(STALE)
    board.take(Disconnected("the service ended the connection"))
    assert board.table().caption == "not connected: the service ended the connection"
