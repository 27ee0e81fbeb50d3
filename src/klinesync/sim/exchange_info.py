"""The bodies of exchangeInfo, as far as clients read them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from klinesync.sim.edits import TRADING
from klinesync.sim.exchange import Listing
from klinesync.sim.symbol import Symbol
from klinesync.sim.tape import Market

_PERPETUAL_DELIVERY_MS = 4_133_404_800_000

_SPOT_LIMITS = [
    {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1, "limit": 6000},
    {"rateLimitType": "ORDERS", "interval": "SECOND", "intervalNum": 10, "limit": 100},
    {"rateLimitType": "ORDERS", "interval": "DAY", "intervalNum": 1, "limit": 200_000},
    {"rateLimitType": "RAW_REQUESTS", "interval": "MINUTE", "intervalNum": 5, "limit": 300_000},
]
_FUTURES_LIMITS = [
    {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1, "limit": 2400},
    {"rateLimitType": "ORDERS", "interval": "MINUTE", "intervalNum": 1, "limit": 1200},
    {"rateLimitType": "ORDERS", "interval": "SECOND", "intervalNum": 10, "limit": 300},
]


class ExchangeInfo:
    """exchangeInfo of one market. What is said of a symbol is written once, unless its listing has been edited."""

    def __init__(self, market: Market, listings: dict[str, Listing], *, odd: bool = False) -> None:
        self._market = market
        self._listings = listings
        self._describe = _spot_symbol if market == "spot" else _futures_symbol
        self._symbols = {name: self._text(listing, TRADING) for name, listing in listings.items()}
        # Items that no client expects, for clients that are tested with them.
        first = next(iter(listings.values()), None) if odd else None
        items = [] if first is None else _odd_items(self._describe(first))
        self._odd = [msgspec.json.encode(item) for item in items]
        self._assets = sorted({listing.symbol.quote for listing in listings.values()} | {"BTC"})

    def body(self, now_ms: int, names: Iterable[str] | None = None, *, micro: bool = False) -> bytes:
        """The body for those symbols, all when None; what is not listed at that time is left out."""
        now_s = now_ms // 1000
        symbols: list[bytes] = []
        for name in self._listings if names is None else names:
            listing = self._listings[name]
            if listing.edits is None:
                symbols.append(self._symbols[name])
            elif listing.is_listed(now_s):
                symbols.append(self._text(listing, listing.status(now_s)))
        symbols.extend(self._odd)
        head: dict[str, object] = {"timezone": "UTC", "serverTime": now_ms * 1000 if micro else now_ms}
        if self._market == "spot":
            head |= {"rateLimits": _SPOT_LIMITS, "exchangeFilters": []}
        else:
            head |= {
                "futuresType": "U_MARGINED",
                "rateLimits": _FUTURES_LIMITS,
                "exchangeFilters": [],
                "assets": [{"asset": a, "marginAvailable": True, "autoAssetExchange": "-10000"} for a in self._assets],
            }
        return msgspec.json.encode(head)[:-1] + b',"symbols":[' + b",".join(symbols) + b"]}"

    def _text(self, listing: Listing, status: str) -> bytes:
        return msgspec.json.encode(self._describe(listing) | {"status": status})


def _odd_items(whole: Mapping[str, object]) -> list[object]:
    """Items that are not what exchangeInfo tells: nothing that names a symbol of its own may come of them."""
    named = {**whole, "symbol": "ODDUSDT", "baseAsset": "ODD"}
    without_status = {name: value for name, value in named.items() if name != "status"}
    return [
        None,
        [],
        {},
        without_status,
        named | {"status": None},
        named | {"symbol": 7},
        named | {"baseAsset": "O/D:D"},
        named | {"contractType": None, "baseAsset": None},
        named | {"onboardDate": "2024-01-01", "baseAsset": ""},
    ]


def _step(digits: int, text_digits: int) -> str:
    """The smallest step with that many digits, written with `text_digits` decimals."""
    return f"{10.0**-digits:.{max(digits, text_digits)}f}"


def _spot_symbol(listing: Listing) -> dict[str, object]:
    symbol: Symbol = listing.symbol
    tick, lot = _step(symbol.price_digits, 8), _step(symbol.volume_digits, 8)
    return {
        "symbol": symbol.name,
        "status": "TRADING",
        "baseAsset": symbol.base,
        "baseAssetPrecision": 8,
        "quoteAsset": symbol.quote,
        "quotePrecision": 8,
        "quoteAssetPrecision": 8,
        "baseCommissionPrecision": 8,
        "quoteCommissionPrecision": 8,
        "orderTypes": ["LIMIT", "LIMIT_MAKER", "MARKET", "STOP_LOSS", "STOP_LOSS_LIMIT", "TAKE_PROFIT_LIMIT"],
        "icebergAllowed": True,
        "ocoAllowed": True,
        "otoAllowed": True,
        "opoAllowed": True,
        "quoteOrderQtyMarketAllowed": True,
        "allowTrailingStop": True,
        "cancelReplaceAllowed": True,
        "amendAllowed": True,
        "pegInstructionsAllowed": True,
        "isSpotTradingAllowed": True,
        "isMarginTradingAllowed": True,
        "filters": [
            {"filterType": "PRICE_FILTER", "minPrice": tick, "maxPrice": "10000000.00000000", "tickSize": tick},
            {"filterType": "LOT_SIZE", "minQty": lot, "maxQty": "9000000.00000000", "stepSize": lot},
            {"filterType": "ICEBERG_PARTS", "limit": 50},
            {"filterType": "MARKET_LOT_SIZE", "minQty": "0.00000000", "maxQty": "90000.0", "stepSize": "0.00000000"},
            {"filterType": "TRAILING_DELTA", "minTrailingAboveDelta": 10, "maxTrailingAboveDelta": 2000,
             "minTrailingBelowDelta": 10, "maxTrailingBelowDelta": 2000},
            {"filterType": "PERCENT_PRICE_BY_SIDE", "bidMultiplierUp": "5", "bidMultiplierDown": "0.2",
             "askMultiplierUp": "5", "askMultiplierDown": "0.2", "avgPriceMins": 5},
            {"filterType": "NOTIONAL", "minNotional": "5.00000000", "applyMinToMarket": True,
             "maxNotional": "9000000.00000000", "applyMaxToMarket": False, "avgPriceMins": 5},
            {"filterType": "MAX_NUM_ORDERS", "maxNumOrders": 200},
            {"filterType": "MAX_NUM_ALGO_ORDERS", "maxNumAlgoOrders": 5},
        ],
        "permissions": [],
        "permissionSets": [["SPOT", "MARGIN"]],
        "defaultSelfTradePreventionMode": "EXPIRE_MAKER",
        "allowedSelfTradePreventionModes": ["EXPIRE_TAKER", "EXPIRE_MAKER", "EXPIRE_BOTH", "DECREMENT"],
    }  # fmt: skip


def _futures_symbol(listing: Listing) -> dict[str, object]:
    symbol: Symbol = listing.symbol
    tick = _step(symbol.price_digits, symbol.price_digits)
    lot = _step(symbol.volume_digits, symbol.volume_digits)
    return {
        "symbol": symbol.name,
        "pair": symbol.base + symbol.quote,
        "contractType": symbol.contract,
        "deliveryDate": _PERPETUAL_DELIVERY_MS if symbol.delivery_s is None else symbol.delivery_s * 1000,
        "onboardDate": listing.onboard_s * 1000,
        "status": "TRADING",
        "maintMarginPercent": "2.5000",
        "requiredMarginPercent": "5.0000",
        "baseAsset": symbol.base,
        "quoteAsset": symbol.quote,
        "marginAsset": symbol.quote,
        "pricePrecision": symbol.price_digits,
        "quantityPrecision": symbol.volume_digits,
        "baseAssetPrecision": 8,
        "quotePrecision": 8,
        "underlyingType": "COIN",
        "underlyingSubType": ["PoW"],
        "triggerProtect": "0.0500",
        "liquidationFee": "0.012500",
        "marketTakeBound": "0.05",
        "maxMoveOrderLimit": 10_000,
        "filters": [
            {"filterType": "PRICE_FILTER", "minPrice": tick, "maxPrice": "10000000", "tickSize": tick},
            {"filterType": "LOT_SIZE", "minQty": lot, "maxQty": "10000000", "stepSize": lot},
            {"filterType": "MARKET_LOT_SIZE", "minQty": lot, "maxQty": "1000000", "stepSize": lot},
            {"filterType": "MAX_NUM_ORDERS", "limit": 200},
            {"filterType": "MAX_NUM_ALGO_ORDERS", "limit": 10},
            {"filterType": "MIN_NOTIONAL", "notional": "5"},
            {"filterType": "PERCENT_PRICE", "multiplierUp": "1.0500", "multiplierDown": "0.9500",
             "multiplierDecimal": "4"},
        ],
        "orderTypes": ["LIMIT", "MARKET", "STOP", "STOP_MARKET", "TAKE_PROFIT", "TAKE_PROFIT_MARKET",
                       "TRAILING_STOP_MARKET"],
        "timeInForce": ["GTC", "IOC", "FOK", "GTX", "GTD"],
        "permissionSets": ["GRID", "COPY"],
    }  # fmt: skip
