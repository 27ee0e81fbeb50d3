"""hyperliquid: the newest 5000 candles; an answer weighs 20, plus one for each 60 rows; quiet minutes arrive late."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from venues.faults import Ask
from venues.market import Pair, Quiet, Row
from venues.venue import FRAMES_S, Query, Refused, Venue

MOST_ROWS = 5000
DEFAULT_PAIRS = tuple(Pair(base, "USDC", "USDC") for base in ("BTC", "ETH", "SOL", "XRP", "ADA", "DOT"))
ROWS_PER_WEIGHT = 60


class Hyperliquid(Venue):
    """See the module. Its pairs are perpetual swaps in USDC."""

    name: ClassVar[str] = "hyperliquid"
    quiet: ClassVar[Quiet] = Quiet.LATE_FLAT
    rate_limit_ms: ClassVar[float] = 50
    weight_per_minute: float = 1200
    depth: ClassVar[int | None] = MOST_ROWS
    bars: ClassVar[Mapping[str, str]] = {frame: frame for frame in FRAMES_S}

    def ask(self, query: Query) -> Ask:
        """See `Venue`."""
        asks = {"exchangeStatus": Ask.TIME, "candleSnapshot": Ask.ROWS}
        return asks.get(str(query.body.get("type")), Ask.MARKETS)

    def weight(self, query: Query) -> float:
        """See `Venue`."""
        match self.ask(query):
            case Ask.TIME:
                return 2.0
            case Ask.ROWS:
                return 20.0 + len(self._rows(query)) // ROWS_PER_WEIGHT
        return 20.0

    def answer(self, query: Query) -> object:
        """See `Venue`."""
        universe = [_coin(pair) for pair in self.listed()]
        match query.body.get("type"):
            case "exchangeStatus":
                return {"specialStatuses": None, "time": str(self.told_ms())}
            case "candleSnapshot":
                pair, frame, _, _ = self._window(query)
                return [_object(pair, frame, row) for row in self._rows(query)]
            case "metaAndAssetCtxs":
                context = {"dayNtlVlm": "1000.0", "markPx": "1000.0", "midPx": "1000.0", "prevDayPx": "1000.0"}
                return [{"universe": universe}, [context for _ in universe]]
            case "meta":
                return {"universe": universe}
            case "spotMeta":
                return {"tokens": _tokens(), "universe": []}
            case "spotMetaAndAssetCtxs":
                return [{"tokens": _tokens(), "universe": []}, []]
            case "perpDexs":
                return [None]
        raise Refused(422, "Failed to deserialize the JSON body into the target type")

    def _rows(self, query: Query) -> list[Row]:
        pair, frame, start_s, end_s = self._window(query)
        return self.window(pair, FRAMES_S[frame], start_s, end_s)[-MOST_ROWS:]

    def _window(self, query: Query) -> tuple[Pair, str, int, int]:
        request = query.body.get("req")
        if not isinstance(request, dict) or request["startTime"] < 0 or request["interval"] not in FRAMES_S:
            raise Refused(422, "Failed to deserialize the JSON body into the target type")
        pair = next((pair for pair in self.pairs if pair.base == request["coin"]), None)
        if pair is None:
            raise Refused(500, None)
        return pair, request["interval"], request["startTime"] // 1000, request["endTime"] // 1000 + 1


def _coin(pair: Pair) -> object:
    return {"name": pair.base, "szDecimals": 3, "maxLeverage": 10, "isDelisted": not pair.traded}


def _tokens() -> object:
    names = {"name": "USDC", "fullName": None, "tokenId": "0x1"}
    return [names | {"szDecimals": 8, "weiDecimals": 8, "index": 0, "isCanonical": True}]


def _object(pair: Pair, frame: str, row: Row) -> object:
    return {
        "t": row.time * 1000, "T": (row.time + FRAMES_S[frame]) * 1000 - 1, "s": pair.base, "i": frame,
        "o": repr(row.open), "c": repr(row.close), "h": repr(row.high), "l": repr(row.low), "v": repr(row.volume),
        "n": 5 if row.volume else 0,
    }  # fmt: skip
