"""kraken: REST has the newest 720 candles only; minutes without trades are left out; ccxt has no stream."""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import formatdate
from typing import ClassVar

from venues.faults import Ask
from venues.market import Pair, Quiet, Row
from venues.venue import Query, Refused, Venue, strings

# kraken's own names of some assets.
NAMES = {"BTC": "XXBT", "ETH": "XETH"}


class Kraken(Venue):
    """See the module. It has no swaps."""

    name: ClassVar[str] = "kraken"
    quiet: ClassVar[Quiet] = Quiet.OMITTED
    rate_limit_ms: ClassVar[float] = 1000
    weight_per_minute: float = 60
    depth: ClassVar[int | None] = 720
    bars: ClassVar[Mapping[str, str]] = {"1m": "1", "5m": "5", "15m": "15", "1h": "60", "4h": "240", "1d": "1440"}

    def ask(self, query: Query) -> Ask:
        """See `Venue`."""
        asks = {"Time": Ask.TIME, "AssetPairs": Ask.MARKETS, "Assets": Ask.MARKETS, "Ticker": Ask.TICKERS}
        return asks.get(query.path.rpartition("/")[2], Ask.ROWS)

    def answer(self, query: Query) -> object:
        """See `Venue`."""
        match self.ask(query):
            case Ask.TIME:
                told_s = self.told_ms() // 1000
                result: object = {"unixtime": told_s, "rfc1123": formatdate(told_s)}
            case Ask.MARKETS if query.path.endswith("/Assets"):
                assets = {name for pair in self._spot(self.pairs) for name in (pair.base, pair.quote)}
                result = {NAMES.get(name, name): _asset(name) for name in sorted(assets)}
            case Ask.MARKETS:
                result = {_id(pair): _listing(pair) for pair in self._spot(self.listed())}
            case Ask.ROWS:
                result = self._rows(query)
            case Ask.TICKERS:
                result = {}
        return {"error": [], "result": result}

    def _spot(self, pairs: list[Pair]) -> list[Pair]:
        return [pair for pair in pairs if pair.settle is None]

    def _rows(self, query: Query) -> object:
        pair = next((pair for pair in self._spot(self.pairs) if _id(pair) == query.params["pair"]), None)
        if pair is None:
            raise Refused(200, {"error": ["EQuery:Unknown asset pair"]})
        frame_s = self.frame_s(query.params["interval"])
        rows = self.newest(pair, frame_s, self.depth or 0)
        since_s = int(query.params.get("since", 0))
        told = [_values(row) for row in rows if row.time > since_s]
        return {_id(pair): told, "last": rows[-2].time if len(rows) > 1 else 0}


def _id(pair: Pair) -> str:
    return NAMES.get(pair.base, pair.base) + pair.quote


def _values(row: Row) -> list[object]:
    return [row.time, *strings(row[1:5]), repr(row.close), repr(row.volume), 0 if not row.volume else 5]


def _asset(name: str) -> object:
    altname = "XBT" if name == "BTC" else name
    return {"aclass": "currency", "altname": altname, "decimals": 10, "display_decimals": 5, "status": "enabled"}


def _listing(pair: Pair) -> object:
    altname = ("XBT" if pair.base == "BTC" else pair.base) + pair.quote
    return {
        "altname": altname, "wsname": f"{altname.removesuffix(pair.quote)}/{pair.quote}", "aclass_base": "currency",
        "base": NAMES.get(pair.base, pair.base), "aclass_quote": "currency", "quote": pair.quote, "lot": "unit",
        "pair_decimals": 2, "lot_decimals": 3, "lot_multiplier": 1, "leverage_buy": [], "leverage_sell": [],
        "fees": [[0, 0.26]], "fees_maker": [[0, 0.16]], "fee_volume_currency": "ZUSD", "margin_call": 80,
        "margin_stop": 40, "ordermin": "0.001", "costmin": "0.5", "tick_size": "0.01",
        "status": "online" if pair.traded else "cancel_only",
    }  # fmt: skip
