"""Candles out of thin air: seeded, the same for ever, and any minute at once without those before it.

Trades are counted first. Minutes are taken in blocks of 64; how many trades a block has follows from a number per
block, and inside a block they are dealt out by heavy-tailed weights, which makes bursts in busy symbols and minutes
without any trade in quiet ones. Trade ids count on from candle to candle that way, without adding up history.
Prices follow value noise in octaves from one minute to half a year, each sqrt(2) as high as the shorter one, which
looks like a random walk; futures follow spot's prices a little above them. The close of a minute with fewer than two
trades is the close before it. A block always has a minute with two trades or more, so the close before a block is
found in the block before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from math import ceil, log10

import numpy as np

from klinesync.sim.dice import dice_key, unit, units
from klinesync.sim.symbol import Symbol
from klinesync.sim.tape import MINUTE_S, NO_ROWS, Floats, Ints, Market, Rows

BLOCK = 64
LISTED_DAYS = 90
_OCTAVES = 18
_WINDOW_BLOCKS = 2
_BASIS = 0.001  # how far futures are above spot at most
_BASIS_OCTAVE = 7  # the basis changes its direction every 2**7 minutes
_SPREAD = 0.7  # how much the number of trades differs between blocks
_RATE_MIN = 0.2  # trades a minute; below it a block might have none


@dataclass(frozen=True, slots=True)
class Character:
    """What makes one generated symbol differ from another. `rate` is trades a minute, `step` the size of a usual
    minute's move as a share of the price, `size` the usual trade in units of the base asset."""

    symbol: Symbol
    price: float
    rate: float
    step: float
    size: float


class GeneratedTape:
    """One generated symbol, listed at `first_s`. Holds the last two blocks that were asked for, nothing else."""

    end_s: int | None = None

    def __init__(self, character: Character, seed: int, first_s: int) -> None:
        self._character = character
        self.first_s = first_s
        name = (seed, character.symbol.market, character.symbol.name)
        self._trades = dice_key(*name, "trades")
        self._deal = dice_key(*name, "deal")
        self._price = dice_key(seed, character.symbol.name, "price")  # both markets price the same thing
        self._basis = dice_key(*name, "basis") if character.symbol.market == "futures" else None
        self._shape = dice_key(*name, "shape")
        # Blocks of different symbols begin at different minutes, so that not all are computed in the same moment.
        self._phase = int(unit(self._deal, -1 & 0xFFFF) * BLOCK)
        self._listed_block = (first_s // MINUTE_S + self._phase) // BLOCK
        self._window = NO_ROWS
        self._window_s = (0, 0)

    def minutes(self, start_s: int, end_s: int) -> Rows:
        start_s = max(start_s, self.first_s)
        if end_s <= start_s:
            return NO_ROWS
        if self._window_s[0] <= start_s and end_s <= self._window_s[1]:
            return self._cut(self._window, start_s, end_s)
        first_block = (start_s // MINUTE_S + self._phase) // BLOCK
        end_block = -(-(end_s // MINUTE_S + self._phase) // BLOCK)
        few = end_block - first_block <= _WINDOW_BLOCKS
        if few:
            end_block = first_block + _WINDOW_BLOCKS
        rows = self._blocks(first_block, end_block)
        if few:
            self._window = rows
            self._window_s = (int(rows.time[0]), int(rows.time[-1]) + MINUTE_S)
        return self._cut(rows, start_s, end_s)

    def _cut(self, rows: Rows, start_s: int, end_s: int) -> Rows:
        base = int(rows.time[0])
        return rows.cut((start_s - base) // MINUTE_S, (end_s - base) // MINUTE_S)

    def _blocks(self, first_block: int, end_block: int) -> Rows:
        """The minutes of those blocks, none of them missing."""
        blocks = np.arange(first_block - 1, end_block, dtype=np.int64)  # one more, for the close before
        minute = (blocks[:, None] * BLOCK + np.arange(BLOCK, dtype=np.int64)).ravel() - self._phase
        counts, first_ids = self._counts(blocks, minute)
        character = self._character
        digits = character.symbol.price_digits
        ticks = self._close_ticks(minute, counts)
        close = ticks[BLOCK:]
        open_ = ticks[BLOCK - 1 : -1]
        minute, counts, first_ids = minute[BLOCK:], counts[BLOCK:], first_ids[BLOCK:]
        dice = units(self._shape, minute * 8 + np.arange(4, dtype=np.int64)[:, None])
        full = counts >= 4  # with fewer trades there is nothing beyond open and close
        reach = (-np.log1p(-dice[0:2])) * (character.step * 0.6) * close
        high = np.maximum(open_, close) + np.where(full, np.rint(reach[0]), 0.0).astype(np.int64)
        low = np.minimum(open_, close) - np.where(full, np.rint(reach[1]), 0.0).astype(np.int64)
        np.maximum(low, 1, out=low)
        scale = 10.0**digits
        volume = self._volume(counts, dice[2])
        volume_digits = character.symbol.volume_digits
        taker_volume = np.minimum(np.round(volume * (0.15 + 0.7 * dice[3]), volume_digits), volume)
        mean = (open_ + high + low + close) / (4.0 * scale)
        quote_digits = min(8, digits + volume_digits)
        return Rows(
            minute * MINUTE_S,
            open_ / scale,
            high / scale,
            low / scale,
            close / scale,
            volume,
            np.round(volume * mean, quote_digits),
            counts,
            taker_volume,
            np.round(taker_volume * mean, quote_digits),
            first_ids,
        )

    def _counts(self, blocks: Ints, minute: Ints) -> tuple[Ints, Ints]:
        """Trades of each minute and the id of its first one."""
        edges = np.append(blocks, blocks[-1] + 1)
        per_block = self._character.rate * BLOCK
        before = (edges - self._listed_block + 2 + _SPREAD * units(self._trades, edges)) * per_block
        before_block = before.astype(np.int64)
        in_block = np.diff(before_block)
        even = 0.3 * min(1.0, self._character.rate / 20.0)  # a busy symbol trades in every minute
        weights = (-np.log1p(-units(self._deal, minute))).reshape(len(blocks), BLOCK) ** 1.5 + even
        dealt = np.cumsum(weights, axis=1)
        dealt /= dealt[:, -1:]
        upto = (dealt * (in_block - 2)[:, None]).astype(np.int64)
        upto += 2 * (np.arange(BLOCK) >= np.argmax(weights, axis=1)[:, None])  # two go to the heaviest minute
        counts = np.diff(upto, axis=1, prepend=0)
        first_ids = before_block[:-1, None] + upto - counts + 1
        return counts.ravel(), first_ids.ravel()

    def _close_ticks(self, minute: Ints, counts: Ints) -> Ints:
        """Closing prices in ticks; a minute with fewer than two trades keeps the one before."""
        character = self._character
        first, last = int(minute[0]), int(minute[-1])
        nodes = [np.arange(first >> octave, (last >> octave) + 2, dtype=np.int64) for octave in range(_OCTAVES)]
        tagged = np.concatenate([node * 32 + octave for octave, node in enumerate(nodes)])
        noise = units(self._price, tagged) - 0.5
        walk = np.zeros(len(minute))
        at = 0
        for octave, node in enumerate(nodes):
            height = noise[at : at + len(node)]
            at += len(node)
            walk += np.interp(minute, node << octave, height) * 2.0 ** (octave / 2)
        walk *= character.step
        if self._basis is not None:
            node = np.arange(first >> _BASIS_OCTAVE, (last >> _BASIS_OCTAVE) + 2, dtype=np.int64)
            walk += np.interp(minute, node << _BASIS_OCTAVE, units(self._basis, node) * _BASIS)
        price = character.price * np.exp(walk)
        ticks = np.maximum(np.rint(price * 10.0**character.symbol.price_digits), 1.0).astype(np.int64)
        moved = np.maximum.accumulate(np.where(counts >= 2, np.arange(len(minute)), -1))
        # Before the first move of the extra block the values do not matter: nothing of them is used.
        return ticks[np.maximum(moved, 0)]

    def _volume(self, counts: Ints, dice: Floats) -> Floats:
        digits = self._character.symbol.volume_digits
        step = 10.0**-digits
        volume = counts * (self._character.size * np.exp(2.4 * (dice - 0.5)))
        return np.where(counts > 0, np.round(np.maximum(volume, counts * step), digits), 0.0)


_KNOWN = (
    ("BTC", 95_000.0), ("ETH", 3_400.0), ("BNB", 890.0), ("SOL", 186.0), ("XRP", 2.31), ("DOGE", 0.221),
    ("ADA", 0.72), ("TRX", 0.285), ("LINK", 18.4), ("AVAX", 24.1), ("SUI", 2.9), ("LTC", 97.0), ("BCH", 512.0),
    ("DOT", 4.1), ("UNI", 8.6), ("AAVE", 248.0), ("NEAR", 2.75), ("APT", 4.6), ("ATOM", 4.4), ("FIL", 2.3),
    ("ETC", 19.2), ("ARB", 0.42), ("OP", 0.63), ("INJ", 11.3), ("HBAR", 0.191), ("XLM", 0.318), ("ALGO", 0.219),
    ("VET", 0.0221), ("GRT", 0.0834), ("SAND", 0.271),
)  # fmt: skip


def generated_tapes(market: Market, count: int, seed: int, first_s: int) -> list[tuple[Symbol, GeneratedTape]]:
    """`count` symbols with their tapes, BTCUSDT and ETHUSDT always among them; every seventh one is quiet."""
    return [
        (character.symbol, GeneratedTape(character, seed, first_s))
        for character in (_character(market, rank, seed) for rank in range(max(count, 2)))
    ]


def dated_tapes(seed: int, first_s: int, now_s: int) -> list[tuple[Symbol, GeneratedTape]]:
    """Futures that are no plain perpetuals: the next two quarterlies of BTC and ETH, each at a price of its own, and a
    perpetual on something that is not a coin."""
    tapes = []
    for rank in range(2):
        base = _character("futures", rank, seed)
        for contract, delivery_s in zip(("CURRENT_QUARTER", "NEXT_QUARTER"), _deliveries(now_s), strict=True):
            name = f"{base.symbol.name}_{datetime.fromtimestamp(delivery_s, UTC):%y%m%d}"
            symbol = replace(base.symbol, name=name, contract=contract, delivery_s=delivery_s)
            tapes.append((symbol, GeneratedTape(replace(base, symbol=symbol, rate=base.rate / 8), seed, first_s)))
    gold = replace(_character("futures", 2, seed), price=2650.0)
    symbol = replace(gold.symbol, name="XAUUSDT", base="XAU", contract="TRADIFI_PERPETUAL", price_digits=2)
    return [*tapes, (symbol, GeneratedTape(replace(gold, symbol=symbol), seed, first_s))]


def _deliveries(now_s: int) -> list[int]:
    """The next two ends of a quarter at 08:00 UTC of its last Friday."""
    now = datetime.fromtimestamp(now_s, UTC)
    found: list[int] = []
    for quarter in range(now.year * 4 + (now.month - 1) // 3, now.year * 4 + 8):
        after = datetime(quarter // 4 + (quarter % 4 == 3), (quarter % 4 + 1) % 4 * 3 + 1, 1, 8, tzinfo=UTC)
        friday = after - timedelta((after.weekday() - 5) % 7 + 1)
        if friday > now:
            found.append(int(friday.timestamp()))
    return found[:2]


def _character(market: Market, rank: int, seed: int) -> Character:
    key = dice_key(seed, "character")
    if rank < len(_KNOWN):
        base, price = _KNOWN[rank]
    else:
        base = f"SIM{rank:03d}"
        price = 10.0 ** (unit(key, 4 * rank) * 5.0 - 2.0)
    quiet = rank > 2 and rank % 7 == 0
    if quiet:
        rate = _RATE_MIN + 1.5 * unit(key, 4 * rank + 1)
    else:
        rate = (30.0 + 900.0 / (1.0 + 0.15 * rank)) * (0.7 + 0.6 * unit(key, 4 * rank + 1))
    magnitude = ceil(log10(price))
    price_digits = min(8, max(0, (7 if rank < 2 else 6) - magnitude))
    volume_digits = min(5, max(0, magnitude))
    if market == "futures":
        volume_digits = max(0, volume_digits - 2)
        if not quiet:
            rate *= 1.3
    symbol = Symbol(market, f"{base}USDT", base, "USDT", price_digits, volume_digits)
    step = 0.0004 + 0.0008 * unit(key, 4 * rank + 2)
    size = 150.0 * (0.3 + unit(key, 4 * rank + 3)) / price
    return Character(symbol, price, rate, step, max(size, 10.0**-volume_digits))
