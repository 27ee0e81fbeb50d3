"""The exchange's JSON, byte for byte: kline rows, kline events, errors."""

from __future__ import annotations

import msgspec

from klinesync.sim.exchange import Grid, Listing
from klinesync.sim.symbol import has_digits
from klinesync.sim.tape import Row, Rows


def kline_rows(listing: Listing, grid: Grid, rows: Rows, *, micro: bool = False) -> bytes:
    """The answer of `klines`: twelve values a candle. With `micro`, times are microseconds."""
    scale = 1_000_000 if micro else 1000
    times: list[int] = rows.time.tolist()
    step = grid.timeframe.step_s
    ends = [time + step for time in times] if step else [grid.next(time) for time in times]
    symbol = listing.symbol
    numbers: list[list[float] | list[str]] = []
    marks: list[str] = []
    for column, digits, text in (
        (rows.open, symbol.price_text_digits, listing.price_text),
        (rows.high, symbol.price_text_digits, listing.price_text),
        (rows.low, symbol.price_text_digits, listing.price_text),
        (rows.close, symbol.price_text_digits, listing.price_text),
        (rows.volume, symbol.volume_text_digits, listing.volume_text),
        (rows.quote, symbol.quote_text_digits, listing.quote_text),
        (rows.taker_volume, symbol.volume_text_digits, listing.volume_text),
        (rows.taker_quote, symbol.quote_text_digits, listing.quote_text),
    ):
        # One look at a whole column is cheaper than `number_text` for each of its numbers.
        exact = has_digits(column, digits)
        marks.append(f"%.{digits}f" if exact else "%s")
        numbers.append(column.tolist() if exact else [text(value) for value in column.tolist()])
    open_, high, low, close, volume, quote, taker, taker_quote = marks
    template = f'[%d,"{open_}","{high}","{low}","{close}","{volume}",%d,"{quote}",%d,"{taker}","{taker_quote}","0"]'
    columns = zip(
        [time * scale for time in times],
        *numbers[:5],
        [end * scale - 1 for end in ends],
        numbers[5],
        rows.trades.tolist(),
        *numbers[6:],
        strict=True,
    )
    return ("[" + ",".join([template % values for values in columns]) + "]").encode()


def price_rows(listing: Listing, grid: Grid, rows: Rows, *, premium: bool = False) -> bytes:
    """The answer of `markPriceKlines` and its like: prices, and zeros where klines have volumes.

    With `premium`, of `premiumIndexKlines`: nothing but zeros, as mark and index prices are one here."""

    def price(value: float) -> str:
        return "0.00000000" if premium else listing.price_text(value)

    lines = [
        f'[{row.time * 1000},"{price(row.open)}","{price(row.high)}","{price(row.low)}","{price(row.close)}","0",'
        f'{grid.next(row.time) * 1000 - 1},"0",60,"0","0","0"]'
        for row in rows.rows()
    ]
    return ("[" + ",".join(lines) + "]").encode()


class KlineTemplate:
    """Writes the events of one kline stream; what never changes is prepared once."""

    __slots__ = ("_grid", "_head", "_middle", "_price", "_quote", "_volume")

    def __init__(self, listing: Listing, grid: Grid, *, continuous: bool) -> None:
        name, code = listing.symbol.name, grid.timeframe.code
        self._grid = grid
        self._price, self._volume, self._quote = listing.price_text, listing.volume_text, listing.quote_text
        if continuous:
            self._head = '{"e":"continuous_kline","E":%d,"ps":"' + name + '","ct":"PERPETUAL","k":{"t":%d,"T":%d,'
            self._middle = f'"i":"{code}",'
        else:
            self._head = '{"e":"kline","E":%d,"s":"' + name + '","k":{"t":%d,"T":%d,'
            self._middle = f'"s":"{name}","i":"{code}",'

    def event(self, row: Row, *, closed: bool, sent_ms: int, micro: bool) -> bytes:
        """The event that carries `row`. With `micro`, E, t and T are microseconds."""
        price, volume, quote = self._price, self._volume, self._quote
        end_s = self._grid.next(row.time)
        if micro:
            head = self._head % (sent_ms * 1000, row.time * 1_000_000, end_s * 1_000_000 - 1)
        else:
            head = self._head % (sent_ms, row.time * 1000, end_s * 1000 - 1)
        first, last = (row.first_id, row.first_id + row.trades - 1) if row.trades else (-1, -1)
        return (
            f'{head}{self._middle}"f":{first},"L":{last},"o":"{price(row.open)}","c":"{price(row.close)}",'
            f'"h":"{price(row.high)}","l":"{price(row.low)}","v":"{volume(row.volume)}","n":{row.trades},'
            f'"x":{"true" if closed else "false"},"q":"{quote(row.quote)}","V":"{volume(row.taker_volume)}",'
            f'"Q":"{quote(row.taker_quote)}","B":"0"}}}}'
        ).encode()


def combined(stream: str, event: bytes) -> bytes:
    """The event as a combined connection gets it."""
    return b'{"stream":' + msgspec.json.encode(stream) + b',"data":' + event + b"}"


def shutdown_event(now_ms: int, *, combined: bool, micro: bool) -> bytes:
    """What a server says on every connection before it stops."""
    event = b'{"e":"serverShutdown","E":%d}' % (now_ms * 1000 if micro else now_ms)
    return b'{"stream":"!serverShutdown","data":' + event + b"}" if combined else event


def error_body(code: int, message: str) -> bytes:
    """A REST error."""
    return msgspec.json.encode({"code": code, "msg": message})
