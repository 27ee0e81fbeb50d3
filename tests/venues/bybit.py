"""bybit v5: rows newest first, values as strings, the forming row included; every answer tells the time; a stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from venues.faults import Ask
from venues.market import Pair, Quiet, Row
from venues.venue import FRAMES_S, Query, Refused, Venue, strings

MOST_ROWS = 1000


class Bybit(Venue):
    """See the module."""

    name: ClassVar[str] = "bybit"
    quiet: ClassVar[Quiet] = Quiet.FLAT
    rate_limit_ms: ClassVar[float] = 20
    weight_per_minute: float = 7200  # 600 in 5 s
    stream_path: ClassVar[str | None] = "/v5/public/"
    bars: ClassVar[Mapping[str, str]] = {"1m": "1", "5m": "5", "15m": "15", "1h": "60", "4h": "240", "1d": "D"}

    def ask(self, query: Query) -> Ask:
        """See `Venue`."""
        asks = {"/market/time": Ask.TIME, "/instruments-info": Ask.MARKETS, "/market/tickers": Ask.TICKERS}
        return next((ask for end, ask in asks.items() if query.path.endswith(end)), Ask.ROWS)

    def answer(self, query: Query) -> object:
        """See `Venue`."""
        category, told_ms = query.params.get("category", ""), self.told_ms()
        match self.ask(query):
            case Ask.TIME:
                result: object = {"timeSecond": str(told_ms // 1000), "timeNano": str(told_ms * 1_000_000)}
            case Ask.MARKETS:
                pairs = [] if "status" in query.params else self._of(category, self.listed())
                result = {"category": category, "list": [_instrument(pair) for pair in pairs]}
            case Ask.ROWS:
                rows = self._klines(query, category)
                result = {"category": category, "symbol": query.params["symbol"], "list": rows}
            case Ask.TICKERS:
                result = {"category": category, "list": []}
        return {"retCode": 0, "retMsg": "OK", "result": result, "retExtInfo": {}, "time": told_ms}

    def _of(self, category: str, pairs: list[Pair]) -> list[Pair]:
        wanted = {"spot": False, "linear": True}.get(category)
        return [pair for pair in pairs if (pair.settle is not None) is wanted]

    def _klines(self, query: Query, category: str) -> object:
        params = query.params
        pair = next((pair for pair in self._of(category, self.pairs) if _id(pair) == params["symbol"]), None)
        if pair is None:
            raise Refused(200, {"retCode": 10001, "retMsg": "params error: Symbol Is Invalid", "result": {}})
        frame_s, limit = self.frame_s(params["interval"]), min(int(params.get("limit", 200)), MOST_ROWS)
        end_s = int(params["end"]) // 1000 + 1 if "end" in params else None
        if "start" in params:
            start_s = int(params["start"]) // 1000
            stop_s = start_s + limit * frame_s if end_s is None else end_s
            rows = self.window(pair, frame_s, start_s, stop_s)[:limit]
        else:
            rows = self.newest(pair, frame_s, limit, end_s)
        return [_values(row) for row in rows][::-1]

    def acknowledged(self, path: str, message: Mapping[str, object], subscribed: set[str]) -> list[object]:
        """See `Venue`."""
        if message["op"] == "ping":
            return [{"success": True, "ret_msg": "pong", "conn_id": "1", "op": "ping"}]
        args = message.get("args")
        topics = {f"{path.rpartition('/')[2]}/{arg}" for arg in args} if isinstance(args, list) else set()
        if any(self.topic_pair(topic) is None for topic in topics):
            text = "error:handler not found"
            return [
                {"success": False, "ret_msg": text, "conn_id": "1", "req_id": message.get("req_id"), "op": "subscribe"}
            ]
        if message["op"] == "subscribe":
            subscribed |= topics
        else:
            subscribed -= topics
        return [_status(message, "", success=True)]

    def push(self, topic: str, row: Row, *, closed: bool) -> object:
        """See `Venue`."""
        found = self.topic_pair(topic)
        assert found is not None, topic
        name = topic.partition("/")[2]
        open_, high, low, close, volume = strings(row[1:])
        data = {
            "start": row.time * 1000, "end": (row.time + found[1]) * 1000 - 1, "interval": name.split(".")[1],
            "open": open_, "close": close, "high": high, "low": low, "volume": volume, "turnover": volume,
            "confirm": closed, "timestamp": self.told_ms(),
        }  # fmt: skip
        return {"topic": name, "type": "snapshot", "ts": self.told_ms(), "data": [data]}

    def topic_pair(self, topic: str) -> tuple[Pair, int] | None:
        """See `Venue`."""
        category, _, name = topic.partition("/")
        kind, _, rest = name.partition(".")
        bar, _, symbol_id = rest.partition(".")
        frame = next((frame for frame, word in self.bars.items() if word == bar), None)
        pair = next((pair for pair in self._of(category, self.pairs) if _id(pair) == symbol_id), None)
        return None if kind != "kline" or frame is None or pair is None else (pair, FRAMES_S[frame])


def _status(message: Mapping[str, object], text: str, *, success: bool) -> object:
    told = {"req_id": message.get("req_id"), "op": message["op"]}
    return {"success": success, "ret_msg": text, "conn_id": "1"} | told


def _id(pair: Pair) -> str:
    return pair.base + pair.quote


def _values(row: Row) -> list[str]:
    return [str(row.time * 1000), *strings(row[1:]), repr(round(row.volume * row.close, 4))]


def _instrument(pair: Pair) -> object:
    one: dict[str, object] = {
        "symbol": _id(pair), "baseCoin": pair.base, "quoteCoin": pair.quote, "innovation": "0",
        "status": "Trading" if pair.traded else "Closed", "marginTrading": "none",
        "lotSizeFilter": {"basePrecision": "0.001", "quotePrecision": "0.01", "minOrderQty": "0.001"},
        "priceFilter": {"tickSize": "0.01"},
    }  # fmt: skip
    if pair.settle is not None:
        one |= {"contractType": "LinearPerpetual", "settleCoin": pair.settle, "launchTime": str(pair.listed_s * 1000)}
        one |= {
            "deliveryTime": "0",
            "leverageFilter": {"minLeverage": "1", "maxLeverage": "10", "leverageStep": "0.01"},
        }
    return one
