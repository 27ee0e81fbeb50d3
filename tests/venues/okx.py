"""okx v5: rows newest first, values as strings; REST shows the newest 1440 candles, older ones on another path; a
stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from venues.faults import Ask
from venues.market import Pair, Quiet, Row
from venues.venue import FRAMES_S, Query, Refused, Venue, strings

NEWEST_ROWS = 1440
MOST_ROWS = 300


class Okx(Venue):
    """See the module."""

    name: ClassVar[str] = "okx"
    quiet: ClassVar[Quiet] = Quiet.FLAT
    rate_limit_ms: ClassVar[float] = 110
    weight_per_minute: float = 1200  # of candles: 40 in 2 s
    stream_path: ClassVar[str | None] = "/ws/v5/business"
    bars: ClassVar[Mapping[str, str]] = {
        "1m": "1m", "5m": "5m", "15m": "15m", "1h": "1H", "4h": "4H", "1d": "1Dutc",
    }  # fmt: skip

    def ask(self, query: Query) -> Ask:
        """See `Venue`."""
        asks = {"/public/time": Ask.TIME, "/public/instruments": Ask.MARKETS, "/market/tickers": Ask.TICKERS}
        return next((ask for end, ask in asks.items() if query.path.endswith(end)), Ask.ROWS)

    def answer(self, query: Query) -> object:
        """See `Venue`."""
        match self.ask(query):
            case Ask.TIME:
                data: object = [{"ts": str(self.told_ms())}]
            case Ask.MARKETS:
                wanted = {"SPOT": False, "SWAP": True}.get(query.params["instType"])
                data = [_instrument(pair) for pair in self.listed() if (pair.settle is not None) is wanted]
            case Ask.ROWS:
                data = self._candles(query)
            case Ask.TICKERS:
                data = []
        return {"code": "0", "msg": "", "data": data}

    def _candles(self, query: Query) -> object:
        params = query.params
        pair = next((pair for pair in self.pairs if _id(pair) == params["instId"]), None)
        if pair is None:
            raise Refused(200, {"code": "51001", "msg": "Instrument ID doesn't exist", "data": []})
        frame_s, limit = self.frame_s(params["bar"]), min(int(params.get("limit", 100)), MOST_ROWS)
        end_s = int(params["after"]) // 1000 if "after" in params else None
        rows = self.newest(pair, frame_s, 10 * MOST_ROWS if end_s is None else limit, end_s)
        if "before" in params:
            rows = [row for row in rows if row.time * 1000 > int(params["before"])]
        if query.path.endswith("/market/candles"):
            oldest_s = (self.now_ms() // 1000 // frame_s - NEWEST_ROWS) * frame_s
            rows = [row for row in rows if row.time > oldest_s]
        newest_s = self.now_ms() // 1000 // frame_s * frame_s
        return [_values(pair, row, closed=row.time < newest_s) for row in rows[-limit:]][::-1]

    def acknowledged(self, path: str, message: Mapping[str, object], subscribed: set[str]) -> list[object]:
        """See `Venue`."""
        answers: list[object] = []
        args = message.get("args")
        for arg in args if isinstance(args, list) else []:
            topic = f"{arg['channel']}/{arg['instId']}"
            if self.topic_pair(topic) is None:
                answers.append({"event": "error", "code": "60018", "msg": f"{topic} doesn't exist", "connId": "1"})
                continue
            (subscribed.add if message["op"] == "subscribe" else subscribed.discard)(topic)
            answers.append({"event": message["op"], "arg": arg, "connId": "1"})
        return answers

    def push(self, topic: str, row: Row, *, closed: bool) -> object:
        """See `Venue`."""
        channel, _, symbol_id = topic.partition("/")
        found = self.topic_pair(topic)
        assert found is not None, topic
        arg = {"channel": channel, "instId": symbol_id}
        return {"arg": arg, "data": [_values(found[0], row, closed=closed)]}

    def topic_pair(self, topic: str) -> tuple[Pair, int] | None:
        """See `Venue`."""
        channel, _, symbol_id = topic.partition("/")
        frame = next((frame for frame, bar in self.bars.items() if channel == f"candle{bar}"), None)
        pair = next((pair for pair in self.pairs if _id(pair) == symbol_id), None)
        return None if frame is None or pair is None else (pair, FRAMES_S[frame])


def _id(pair: Pair) -> str:
    return f"{pair.base}-{pair.quote}" + ("" if pair.settle is None else "-SWAP")


def _values(pair: Pair, row: Row, *, closed: bool) -> list[str]:
    quote = round(row.volume * row.close, 4)
    # A swap's volume is told in contracts, in the base asset, and in the quote asset.
    volumes = (row.volume, quote, quote) if pair.settle is None else (row.volume * 100, row.volume, quote)
    return [str(row.time * 1000), *strings(row[1:5]), *strings(volumes), "1" if closed else "0"]


def _instrument(pair: Pair) -> object:
    swap = pair.settle is not None
    return {
        "alias": "", "baseCcy": "" if swap else pair.base, "quoteCcy": "" if swap else pair.quote, "category": "1",
        "ctMult": "1" if swap else "", "ctType": "linear" if swap else "", "ctVal": "0.01" if swap else "",
        "ctValCcy": pair.base if swap else "", "expTime": "", "instId": _id(pair),
        "instType": "SWAP" if swap else "SPOT", "lever": "10", "listTime": str(pair.listed_s * 1000), "lotSz": "0.001",
        "minSz": "0.001", "optType": "", "settleCcy": pair.settle or "", "state": "live" if pair.traded else "suspend",
        "stk": "", "tickSz": "0.01", "uly": f"{pair.base}-{pair.quote}" if swap else "",
    }  # fmt: skip
