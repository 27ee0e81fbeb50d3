"""What the simulated exchange tells of the last day of a symbol: 24-hour tickers, and the best bid and ask."""

from __future__ import annotations

from klinesync.sim.exchange import Listing
from klinesync.sim.tape import Row


def book_of(listing: Listing, day: Row) -> dict[str, object]:
    """The best bid and ask, in the texts of the exchange, as if the book were a tick wide around the last price."""
    tick = 10.0**-listing.symbol.price_digits
    price, volume = listing.price_text, listing.volume_text
    lot = 10.0**-listing.symbol.volume_digits
    ask = round(day.close + tick, listing.symbol.price_digits)
    return {
        "bidPrice": price(day.close),
        "bidQty": volume(round(lot * 10, 8)),
        "askPrice": price(ask),
        "askQty": volume(round(lot * 10, 8)),
    }


def ticker_of(listing: Listing, day: Row | None, now_ms: int, *, mini: bool, micro: bool) -> dict[str, object] | None:
    """The ticker of the last 24 hours (`day`); None without a trade. `mini`: prices and volumes alone; `micro`: times
    of spot in microseconds."""
    if day is None:
        return None
    price, volume, quote = listing.price_text, listing.volume_text, listing.quote_text
    spot = listing.symbol.market == "spot"
    scale = 1000 if micro and spot else 1
    whole: dict[str, object] = {
        "openPrice": price(day.open),
        "highPrice": price(day.high),
        "lowPrice": price(day.low),
        "lastPrice": price(day.close),
        "volume": volume(day.volume),
        "quoteVolume": quote(day.quote),
        "openTime": day.time * 1000 * scale,
        "closeTime": now_ms * scale,
        "firstId": day.first_id if day.trades else -1,
        "lastId": day.first_id + day.trades - 1 if day.trades else -1,
        "count": day.trades,
    }
    if mini:
        return {"symbol": listing.symbol.name} | whole
    digits = listing.symbol.price_digits
    change = round(day.close - day.open, digits)
    mean = day.quote / day.volume if day.volume else day.close
    full: dict[str, object] = {
        "symbol": listing.symbol.name,
        "priceChange": f"{change:.{listing.symbol.price_text_digits}f}",
        "priceChangePercent": f"{100.0 * change / day.open:.3f}",
        "weightedAvgPrice": f"{mean:.{listing.symbol.price_text_digits}f}",
        "lastQty": volume(round(10.0**-listing.symbol.volume_digits, 8)),
    }
    if spot:
        full |= {"prevClosePrice": price(day.open)} | book_of(listing, day)
    return full | whole
