"""gate v4: rows of spot are lists, of swaps objects; a request beyond the newest 10,000 candles is an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from venues.faults import Ask
from venues.market import Pair, Quiet, Row
from venues.venue import Query, Refused, Venue

MOST_ROWS = {"spot": 1000, "futures": 1999}


class Gate(Venue):
    """See the module."""

    name: ClassVar[str] = "gate"
    quiet: ClassVar[Quiet] = Quiet.FLAT
    rate_limit_ms: ClassVar[float] = 50
    weight_per_minute: float = 1200  # 200 in 10 s
    depth: ClassVar[int | None] = 10_000
    bars: ClassVar[Mapping[str, str]] = {frame: frame for frame in ("1m", "5m", "15m", "1h", "4h", "1d")}

    def ask(self, query: Query) -> Ask:
        """See `Venue`."""
        asks = {"/spot/time": Ask.TIME, "/candlesticks": Ask.ROWS, "/tickers": Ask.TICKERS}
        return next((ask for end, ask in asks.items() if query.path.endswith(end)), Ask.MARKETS)

    def answer(self, query: Query) -> object:
        """See `Venue`."""
        match self.ask(query):
            case Ask.TIME:
                return {"server_time": self.told_ms()}
            case Ask.ROWS:
                return self._candlesticks(query)
            case Ask.TICKERS:
                return []
        kind = query.path.removeprefix("/api/v4")
        if kind == "/spot/currency_pairs":
            return [_spot(pair) for pair in self.listed() if pair.settle is None]
        if kind == "/futures/usdt/contracts":
            return [_contract(pair) for pair in self.listed() if pair.settle is not None]
        if kind == "/spot/currencies":
            return [{"currency": name} for name in sorted({pair.base for pair in self.pairs} | {"USDT"})]
        return []

    def _candlesticks(self, query: Query) -> object:
        params, swap = query.params, "/futures/" in query.path
        name = params["contract" if swap else "currency_pair"]
        pairs = (pair for pair in self.pairs if (pair.settle is not None) is swap and _id(pair) == name)
        pair = next(pairs, None)
        if pair is None:
            raise Refused(400, {"label": "INVALID_CURRENCY_PAIR", "message": f"invalid currency pair {name}"})
        frame_s, most = self.frame_s(params["interval"]), MOST_ROWS["futures" if swap else "spot"]
        if "from" not in params:
            rows = self.newest(pair, frame_s, min(int(params.get("limit", 100)), most))
        else:
            start_s, now_s = int(params["from"]), self.now_ms() // 1000
            end_s = int(params.get("to", now_s))
            if start_s < self.oldest_s(frame_s):
                text = "Candlestick too long ago. Maximum 10000 points ago are allowed"
                raise Refused(400, {"label": "INVALID_PARAM_VALUE", "message": text})
            if (end_s - start_s) // frame_s >= most:
                text = f"Candlestick range too broad. Maximum {most} data points are allowed per request"
                raise Refused(400, {"label": "INVALID_PARAM_VALUE", "message": text})
            rows = self.window(pair, frame_s, start_s, end_s + 1)
        now_s = self.now_ms() // 1000
        return [_object(row) if swap else _values(row, closed=row.time + frame_s <= now_s) for row in rows]


def _id(pair: Pair) -> str:
    return f"{pair.base}_{pair.quote}"


def _values(row: Row, *, closed: bool) -> list[str]:
    values = (round(row.volume * row.close, 4), row.close, row.high, row.low, row.open, row.volume)
    return [str(row.time), *(repr(value) for value in values), "true" if closed else "false"]


def _object(row: Row) -> object:
    return {
        "t": row.time, "o": repr(row.open), "h": repr(row.high), "l": repr(row.low), "c": repr(row.close),
        "v": row.volume,
    }  # fmt: skip


def _spot(pair: Pair) -> object:
    return {
        "id": _id(pair), "base": pair.base, "quote": pair.quote, "fee": "0.2", "min_base_amount": "0.001",
        "min_quote_amount": "1", "amount_precision": 3, "precision": 2, "sell_start": pair.listed_s,
        "buy_start": pair.listed_s, "trade_status": "tradable" if pair.traded else "untradable", "type": "normal",
    }  # fmt: skip


def _contract(pair: Pair) -> object:
    return {
        "name": _id(pair), "type": "direct", "quanto_multiplier": "0.01", "mark_price": "1000", "last_price": "1000",
        "order_price_deviate": "0.5", "order_price_round": "0.01", "order_size_min": 1, "order_size_max": 1000,
        "leverage_min": "1", "leverage_max": "10", "maker_fee_rate": "0", "taker_fee_rate": "0.0005",
        "funding_interval": 28_800, "create_time": pair.listed_s, "launch_time": pair.listed_s,
        "in_delisting": not pair.traded, "status": "trading" if pair.traded else "suspend",
    }  # fmt: skip
