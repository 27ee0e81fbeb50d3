"""The simulated exchange: the true candles, the pushes of its streams, and the answers of its REST.

It speaks Binance's market-data protocol as text, so that the service's own clients read it; the network in front of it
is in `network.py`. The true candles are made ahead of time from the seed; revisions are recorded as they happen.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import product
from math import fsum
from random import Random

import msgspec

from klinesync.core.candle import Candle, agree
from klinesync.core.derived import fold
from klinesync.core.series_id import SeriesId
from klinesync.core.timeframe import Timeframe
from klinesync.ingest.timings import USUAL_AUDIT
from klinesync.sim.clock import ExchangeClock
from sim.scenario import EPOCH_S, FOLDED, Scenario
from sim.virtual_loop import VirtualLoop

BASE = Timeframe.parse("1m")
MINUTE_S = 60
# Decimals of volumes in the base asset, and in the quote asset.
VOLUME_DIGITS = 3
QUOTE_DIGITS = 5
# Longest delay of the final event after the close of a minute, unless the close is late.
CLOSE_DELAY_MS = {"spot": (2, 120), "futures": (200, 800)}


@dataclass(frozen=True, slots=True)
class Halt:
    """A symbol is not traded in `[start, end)`. `unlisted`: and not listed during this time. `forgets`: it returns as a
    new symbol, whose history begins then."""

    start: int
    end: int
    unlisted: bool
    forgets: bool


@dataclass(slots=True)
class Listing:
    """One symbol: its minutes by open time. Minutes that are not in `final` never existed; `versions` are all values
    that the exchange has called final, the valid one last; `untraded` are the flat minutes; `told` are the forming
    candles that were pushed, with and without their order flow; `native` are the closed candles of longer timeframes
    that REST ever answered, by timeframe and open time."""

    series: SeriesId
    name: str
    final: dict[int, Candle]
    untraded: frozenset[int]
    halt: Halt | None = None
    versions: dict[int, list[Candle]] = field(default_factory=dict)
    times: list[int] = field(default_factory=list)
    told: set[Candle] = field(default_factory=set)
    native: dict[tuple[str, int], set[Candle]] = field(default_factory=dict)

    @property
    def stream(self) -> str:
        return f"{self.name.lower()}@kline_1m"

    def halted(self, now_s: float) -> bool:
        return self.halt is not None and self.halt.start <= now_s < self.halt.end

    def begins(self, now_s: float) -> int:
        """The first open time that the exchange still serves."""
        halt = self.halt
        return halt.end if halt is not None and halt.forgets and now_s >= halt.end else self.times[0]

    def forming(self, time: int, share: float) -> Candle | None:
        """The forming minute after `share` of its time: it approaches the final candle, and never equals it unless
        nothing is traded."""
        final = self.final.get(time)
        if final is None or time in self.untraded:
            return final
        close = round(final.open + (final.close - final.open) * share, 2)
        return traded(
            Candle(
                time,
                final.open,
                round(max(final.open, close), 2),
                round(min(final.open, close), 2),
                close,
                round(final.volume * 0.9 * share, 3),
            )
        )


# Largest error of a clock in ms, and its drift; and stamps that no clock shows.
APART_MS = (3_000, 59_000)
DRIFT = (-0.5, 1.0)
ABSURD_MS = (0, 10**18, 253_402_300_799_000)
# How long before its end an early frame closes a candle. Answers of REST may take 14 s of ours here, so that at a
# higher speed the lie could not be detected.
EARLY_MS = 15_000
EARLY_SPEED_MOST = 1.0


@dataclass(frozen=True, slots=True)
class WrongClock:
    """A clock that was off by `off_ms` when the true clock showed `since_ms`, and drifts."""

    since_ms: int = 0
    off_ms: int = 0
    drift: float = 0.0

    def stamp(self, true_ms: int) -> int:
        return true_ms + self.off_ms + int(self.drift * (true_ms - self.since_ms))


Sink = Callable[[Listing, Candle, bool, str], None]
"""Takes whose stream it is, the candle that is pushed, whether it is a final one, and the frame's text."""


class SimulatedExchange:
    """Both markets. `sinks` are the receivers of pushes, by market. `knows_rest`: whether the service knows the time of
    a market's REST."""

    def __init__(
        self, scenario: Scenario, loop: VirtualLoop, knows_rest: Callable[[str], bool] = lambda market: True
    ) -> None:
        self.scenario = scenario
        self._loop = loop
        self._knows_rest = knows_rest
        self._rng = Random(f"exchange {scenario.seed}")
        self.start_s = EPOCH_S + scenario.skew_s // MINUTE_S * MINUTE_S
        self.storm_end_s = self.start_s + scenario.storm_minutes * MINUTE_S
        self.end_s = self.storm_end_s + scenario.settle_minutes * MINUTE_S
        begin_ms = self.start_s * 1000 + self._rng.randrange(60_000)
        self.clock = ExchangeClock(begin_ms, loop.time(), scenario.speed)
        self.listings = {series: self._make(series) for series in scenario.series}
        self.sinks: dict[str, list[Sink]] = {"spot": [], "futures": []}
        self._untimely = Random(f"untimely {scenario.seed}")
        self._absurd: dict[str, bool] = {}
        self.wrong_clocks: dict[tuple[str, str], WrongClock] = {}
        # Revisions that the streams announced while no fault could hide them.
        self.must_be_revised: set[tuple[SeriesId, int]] = set()
        self.calm_revisions = False

    def begin(self) -> None:
        """Push events from now on."""
        minute = self.start_s
        for listing in self.listings.values():
            self.at(minute * 1000, self._minute, listing, minute)
        if self.scenario.faults.revise:
            self.at((self.end_s - 2 * MINUTE_S) * 1000, self._revise_in_the_calm)

    def now_ms(self) -> int:
        return self.clock.now_ms(self._loop.time())

    def stamp_ms(self, market: str, clock: str) -> int:
        """The time that a clock of the market shows: `rest` or `frames`."""
        return self.wrong_clocks.get((market, clock), WrongClock()).stamp(self.now_ms())

    def strike_clocks(self) -> None:
        """Once per exchange minute: a clock of each market may become wrong, or correct again.

        REST's clock is never ahead: with the few frames of the simulation it is often the only clock, and then it is
        believed.
        """
        rng = self._untimely
        for market in self.sinks:
            if rng.random() >= self.scenario.faults.clocks:
                continue
            for clock in ("rest", "frames"):
                self.wrong_clocks.pop((market, clock), None)
            kind, clock = rng.choice(("apart", "apart", "drift", "right")), rng.choice(("rest", "frames"))
            if kind == "apart":
                off_ms = rng.randint(*APART_MS) * (-1 if clock == "rest" else rng.choice((1, 1, -1)))
                self.wrong_clocks[market, clock] = WrongClock(self.now_ms(), off_ms)
            elif kind == "drift":
                drift = rng.uniform(*DRIFT)
                drift = -abs(drift) / 2 if clock == "rest" else drift
                self.wrong_clocks[market, clock] = WrongClock(self.now_ms(), 0, drift)

    def _time_ms(self, market: str) -> int:
        rng, faults = self._untimely, self.scenario.faults
        stormy, before = self._stormy(self.now_ms() // 1000), self._absurd.pop(market, False)
        if faults.absurd_time and stormy and not before and rng.random() < faults.absurd_time:
            self._absurd[market] = True  # two absurd answers in a row may agree with each other
            return rng.choice((*ABSURD_MS, self.now_ms() + 3_600_000, self.now_ms() - 3_600_000))
        return self.stamp_ms(market, "rest")

    def mono_s(self, time_s: float) -> float:
        """The loop's time at which the exchange's clock shows `time_s`."""
        at_s = self.clock.mono_s_at(time_s * 1000)
        assert at_s is not None
        return at_s

    def known(self, series: SeriesId, candle: Candle) -> bool:
        """Whether the exchange has called exactly this candle final by now."""
        listing = self.listings.get(series)
        if listing is None or (candle.time + MINUTE_S) * 1000 > self.now_ms():
            return False
        versions = listing.versions.get(candle.time)
        return candle in versions if versions is not None else listing.final.get(candle.time) == candle

    def known_shown(self, series: SeriesId, candle: Candle) -> bool:
        """Whether the exchange has called final a candle that a client was shown, perhaps without order flow."""
        listing = self.listings.get(series)
        final = None if listing is None else listing.final.get(candle.time)
        if listing is None or final is None:
            return False
        versions = listing.versions.get(candle.time, [final])
        return any(agree(version, candle) and self.known(series, version) for version in versions)

    def is_audited(self, series: SeriesId, time: int) -> bool:
        """Whether each audit, from the end of faults until the final check, has the candle of that time before its
        span."""
        scenario = self.scenario
        oldest = self.end_s - scenario.audit_candles * MINUTE_S
        newest = self.end_s - USUAL_AUDIT.age_s - 2 * MINUTE_S
        return bool(scenario.audit_interval_s) and oldest <= time <= newest and not self.forgot(series, time)

    def forgot(self, series: SeriesId, time: int) -> bool:
        """Whether REST no longer shows the candle of that time, because the symbol was relisted since."""
        return time < self.listings[series].begins(self.now_ms() / 1000)

    def is_listed_anew(self, series: SeriesId) -> bool:
        """Whether the exchange has forgotten part of the series' history."""
        return self.forgot(series, self.listings[series].times[0])

    def truth(self, series: SeriesId, first: int, end: int) -> dict[int, Candle]:
        """The valid candles that open in `[first, end)`."""
        final = self.listings[series].final
        return {time: final[time] for time in range(first, end, MINUTE_S) if time in final}

    # The answers of REST.

    def rest(self, market: str, name: str, params: Mapping[str, str], lag_s: float) -> bytes:
        """The body of a valid answer. `lag_s`: the newest rows of this many seconds are not shown yet
        (exchange time)."""
        if name == "time":
            return b'{"serverTime":%d}' % self._time_ms(market)
        if name == "exchangeInfo":
            return self._info(market)
        assert name == "klines", name
        listing = self.listing(market, params["symbol"])
        assert listing is not None, params
        if params["interval"] != BASE.code:
            return self._native_rows(listing, Timeframe.parse(params["interval"]), params, lag_s)
        now_ms = self.now_ms()
        start_s = max(-(-int(params["startTime"]) // 1000), listing.begins(now_ms / 1000))
        until_s = int(params.get("endTime", now_ms)) // 1000
        rows = []
        at = bisect_left(listing.times, start_s)
        for time in listing.times[at : at + int(params["limit"])]:
            close_ms = (time + MINUTE_S) * 1000
            if time > until_s:
                break
            if close_ms + lag_s * 1000 <= now_ms:
                rows.append(_row(listing.final[time]))
            elif time * 1000 <= now_ms and not lag_s and time < self.end_s:
                share = min(1.0, (now_ms - time * 1000) / 60_000)
                forming = listing.forming(time, share)
                if forming is not None and (market == "spot" or time not in listing.untraded):
                    rows.append(_row(forming if close_ms > now_ms else listing.final[time]))
            else:
                break
        return f"[{','.join(rows)}]".encode()

    def _native_rows(self, listing: Listing, frame: Timeframe, params: Mapping[str, str], lag_s: float) -> bytes:
        """Longer candles, folded from the minutes that the exchange still has."""
        now_ms = self.now_ms()
        begins = listing.begins(now_ms / 1000)
        asked_s = -(-int(params["startTime"]) // 1000)
        until_s = min(int(params.get("endTime", now_ms)) // 1000, self.end_s - frame.seconds)
        rows: list[str] = []
        first = frame.floor(max(begins, asked_s))
        for time in range(first if first >= asked_s else frame.next(first), until_s + 1, frame.seconds):
            end = frame.next(time)
            closed = end * 1000 + lag_s * 1000 <= now_ms
            if len(rows) == int(params["limit"]) or time * 1000 > now_ms or (lag_s and not closed):
                break
            minutes = listing.times[bisect_left(listing.times, max(time, begins)) : bisect_left(listing.times, end)]
            parts = [listing.final[minute] for minute in minutes if (minute + MINUTE_S) * 1000 <= now_ms]
            if len(parts) < len(minutes) and minutes[len(parts)] * 1000 <= now_ms:
                forming = listing.forming(minutes[len(parts)], (now_ms / 1000 - minutes[len(parts)]) / MINUTE_S)
                assert forming is not None
                parts.append(forming)
            if not parts:
                continue
            candle = exchange_roll_up(time, parts)
            rows.append(_row(candle, frame.seconds))
            if closed:
                listing.native.setdefault((frame.code, time), set()).add(candle)
        return f"[{','.join(rows)}]".encode()

    def has_told(self, series: SeriesId, candle: Candle) -> bool:
        """Whether REST ever answered exactly this closed candle of a longer timeframe, or candles that fold into it."""
        listing, frame = self.listings[series.with_timeframe(BASE)], series.timeframe
        if frame.code not in FOLDED:
            return candle in listing.native.get((frame.code, candle.time), ())
        part = Timeframe.parse(FOLDED[frame.code])
        halt, end = listing.halt, frame.next(candle.time)
        # A symbol that is listed anew has no parts from before any more, whatever was told of them.
        anew = [part.floor(halt.end)] if halt is not None and halt.forgets and candle.time < halt.end < end else []
        for start in (candle.time, *anew):
            opens = range(start, end, part.step_s)
            told = [versions for time in opens if (versions := listing.native.get((part.code, time)))]
            if told and any(fold(frame, parts) == [candle] for parts in product(*told)):
                return True
        return False

    def native(self, series: SeriesId, first: int, end: int) -> list[Candle]:
        """The exchange's own closed candles of a longer timeframe that open in `[first, end)`, in their present values.
        For a timeframe that the exchange lacks, those whose first part exists."""
        listing, frame = self.listings[series.with_timeframe(BASE)], series.timeframe
        begins = listing.begins(self.now_ms() / 1000)
        candles: list[Candle] = []
        if frame.code in FOLDED:
            part = series.with_timeframe(Timeframe.parse(FOLDED[frame.code]))
            for time in range(first, min(end, self.end_s - frame.seconds + 1), frame.seconds):
                parts = self.native(part, time, frame.next(time))
                if parts and parts[0].time == time >= begins:
                    candles += fold(frame, parts)
            return candles
        for time in range(first, min(end, self.end_s - frame.seconds + 1), frame.seconds):
            minutes = range(max(time, begins), frame.next(time), MINUTE_S)
            parts = [listing.final[minute] for minute in minutes if minute in listing.final]
            if parts:
                candles.append(exchange_roll_up(time, parts))
        return candles

    def listing(self, market: str, name: str) -> Listing | None:
        """The symbol of that market by the exchange's name, when it is listed at present."""
        return next((one for one in self.of_market(market) if one.name == name and self.lists(one)), None)

    def of_market(self, market: str) -> list[Listing]:
        return [listing for listing in self.listings.values() if listing.series.market == market]

    def is_unlisted_at_times(self, series: SeriesId) -> bool:
        """Whether the symbol of the series, or of its base, is unlisted for a while."""
        halt = self.listings[series.with_timeframe(BASE)].halt
        return halt is not None and halt.unlisted

    def lists(self, listing: Listing) -> bool:
        """Whether the symbol is listed at present."""
        return listing.halt is None or not (listing.halt.unlisted and listing.halted(self.now_ms() / 1000))

    def _info(self, market: str) -> bytes:
        symbols = []
        now_s = self.now_ms() / 1000
        for listing in filter(self.lists, self.of_market(market)):
            base, quote = listing.series.symbol.split("/")
            symbol: dict[str, object] = {
                "symbol": listing.name,
                "status": "BREAK" if listing.halted(now_s) else "TRADING",
                "baseAsset": base,
                "quoteAsset": quote,
            }
            if market == "futures":
                symbol |= {"contractType": "PERPETUAL", "onboardDate": listing.begins(now_s) * 1000}
            symbols.append(symbol)
        return msgspec.json.encode({"symbols": symbols})

    # The pushes of the streams.

    def _minute(self, listing: Listing, minute: int) -> None:
        """Schedule the events of the minute that opens now, and of its close."""
        if minute >= self.end_s:
            return
        rng, scenario = self._rng, self.scenario
        market = listing.series.market
        traded = minute in listing.final and (market == "spot" or minute not in listing.untraded)
        if traded:
            for share in sorted(rng.random() for _ in range(rng.randint(0, scenario.forming_per_minute))):
                self.at(minute * 1000 + int(share * 60_000), self._push_forming, listing, minute, share)
            early = scenario.faults.early_close if scenario.speed <= EARLY_SPEED_MOST else 0.0
            if early and self._stormy(minute) and self._untimely.random() < early:
                self.at((minute + MINUTE_S) * 1000 - EARLY_MS, self._push_early, listing, minute)
            low, high = CLOSE_DELAY_MS[market]
            delay_ms = rng.randint(low, high)
            if self._stormy(minute) and rng.random() < scenario.faults.late_close:
                delay_ms += int(rng.expovariate(1 / 30_000)) + 1000
            close_ms = (minute + MINUTE_S) * 1000 + delay_ms
            self.at(close_ms, self._push_closed, listing, listing.final[minute])
            if self._stormy(minute) and rng.random() < scenario.faults.revise:
                self.at(close_ms + rng.randint(60_000, 20 * 60_000), self._revise, listing, minute)
        self.at((minute + MINUTE_S) * 1000, self._minute, listing, minute + MINUTE_S)

    def _stormy(self, minute: int) -> bool:
        return minute < self.storm_end_s

    def _revise(self, listing: Listing, minute: int) -> None:
        if not self._stormy(self.now_ms() // 1000):
            return
        self._revise_now(listing, minute)

    def _revise_in_the_calm(self) -> None:
        """Revisions that no fault hides."""
        self.calm_revisions = True
        for listing in self.listings.values():
            minutes = listing.times[-30:-3]
            remembered = [time for time in minutes if time >= listing.begins(self.end_s)]
            self._revise_now(listing, self._rng.choice(remembered))

    def _revise_now(self, listing: Listing, minute: int) -> None:
        now_s = self.now_ms() / 1000
        if minute < listing.begins(now_s):
            return
        old = listing.final[minute]
        new = traded(old._replace(volume=round(old.volume + self._rng.randint(1, 999) / 1000, 3)))
        listing.final[minute] = new
        listing.versions.setdefault(minute, [old]).append(new)
        if self.calm_revisions:
            self.must_be_revised.add((listing.series, minute))
        if not listing.halted(now_s):
            self._push_closed(listing, new)

    def _push_forming(self, listing: Listing, minute: int, share: float) -> None:
        candle = listing.forming(minute, share)
        assert candle is not None
        listing.told |= {candle, Candle(*candle.ohlcv)}
        self._push(listing, candle, closed=False)

    def _push_early(self, listing: Listing, minute: int) -> None:
        """A frame that calls a candle final before its end, with its current values and a stamp past its end. Not while
        the frames' clock is ahead and the only known clock: then the lie could not be detected."""
        market = listing.series.market
        if self.stamp_ms(market, "frames") > self.now_ms() and not self._knows_rest(market):
            return
        candle = listing.forming(minute, 1.0 - EARLY_MS / 60_000)
        if candle is None or minute in listing.untraded:
            return
        text = kline_frame(listing, candle, closed=True, event_ms=(minute + MINUTE_S) * 1000 + 5)
        for sink in tuple(self.sinks[market]):
            sink(listing, candle, False, text)

    def _push_closed(self, listing: Listing, candle: Candle) -> None:
        if candle.time >= listing.begins(self.now_ms() / 1000):
            self._push(listing, candle, closed=True)

    def _push(self, listing: Listing, candle: Candle, *, closed: bool) -> None:
        event_ms = self.stamp_ms(listing.series.market, "frames")
        text = kline_frame(listing, candle, closed=closed, event_ms=event_ms)
        for sink in tuple(self.sinks[listing.series.market]):
            sink(listing, candle, closed, text)

    def at(self, time_ms: float, callback: Callable[..., None], *args: object) -> None:
        """Schedule a call for when the exchange's clock shows that time."""
        at_s = max(self.mono_s(time_ms / 1000), self._loop.time())
        self._loop.call_at(at_s, self._due, time_ms, callback, args, context=self._loop.outside)

    def _due(self, time_ms: float, callback: Callable[..., None], args: tuple[object, ...]) -> None:
        if self.now_ms() < int(time_ms):
            self.at(time_ms, callback, *args)  # the clock has been slowed down since
        else:
            callback(*args)

    def slow_down(self, speed: float) -> None:
        """Limit the exchange's speed from now on."""
        self.clock.set_speed(min(speed, self.clock.speed), self._loop.time())

    # The true candles.

    def _make(self, series: SeriesId) -> Listing:
        scenario = self.scenario
        rng = Random(f"truth {scenario.seed} {series}")
        base, quote = series.symbol.split("/")
        first = self.start_s - scenario.history_minutes * MINUTE_S
        halt = self._halt(series)
        missing = self._outages(series)
        kept = {first}
        if halt is not None:
            missing.update(range(halt.start, halt.end, MINUTE_S))
            missing.discard(halt.end)
            kept.add(halt.end)  # it is traded from the moment of its listing
        quiet = min(0.8, scenario.quiet * (3 if base == "QUIET" else 0.3))
        final: dict[int, Candle] = {}
        untraded = set()
        price = rng.randint(1000, 90_000)
        for time in range(first, self.end_s, MINUTE_S):
            if time in missing:
                continue
            if rng.random() < quiet and time < self.storm_end_s and time not in kept:
                untraded.add(time)
                flat = price / 100
                final[time] = traded(Candle(time, flat, flat, flat, flat, 0.0))
                continue
            open_ = price
            price = max(100, price + rng.randint(-50, 50))
            high = max(open_, price) + rng.randint(0, 20)
            low = min(open_, price) - rng.randint(0, 20)
            final[time] = traded(
                Candle(time, open_ / 100, high / 100, low / 100, price / 100, rng.randint(1000, 10**6) / 1000)
            )
        return Listing(series, base + quote, final, frozenset(untraded), halt, times=sorted(final))

    def _halt(self, series: SeriesId) -> Halt | None:
        scenario = self.scenario
        rng = Random(f"halt {scenario.seed} {series}")
        if rng.random() >= scenario.faults.delist:
            return None
        start = rng.randint(3, scenario.storm_minutes - 8)
        end = rng.randint(start + 2, min(start + 20, scenario.storm_minutes - 3))
        start_s, end_s = (self.start_s + minute * MINUTE_S for minute in (start, end))
        forgets = series.market == "futures" and rng.random() < 0.7
        return Halt(start_s, end_s, unlisted=rng.random() < 0.5, forgets=forgets)

    def _outages(self, series: SeriesId) -> set[int]:
        """Minutes that never existed: of the whole market, or of one symbol. None while settling."""
        scenario = self.scenario
        missing: set[int] = set()
        for owner in (series.market, str(series)):
            rng = Random(f"outages {scenario.seed} {owner}")
            for _ in range(scenario.outages):
                first = rng.randint(-scenario.history_minutes + 1, scenario.storm_minutes - 1)
                length = rng.choice((1, 2, 5, 15))
                end = min(first + length, scenario.storm_minutes)
                missing.update(self.start_s + minute * MINUTE_S for minute in range(first, end))
        return missing


def kline_frame(listing: Listing, candle: Candle, *, closed: bool, event_ms: int) -> str:
    """A push in the format of a combined connection."""
    time, open_, high, low, close, volume, quote, trades, taker, taker_quote = candle
    return (
        f'{{"stream":"{listing.stream}","data":{{"e":"kline","E":{event_ms},"s":"{listing.name}","k":{{'
        f'"t":{time * 1000},"T":{time * 1000 + 59_999},"s":"{listing.name}","i":"1m","f":1,"L":2,'
        f'"o":"{open_}","c":"{close}","h":"{high}","l":"{low}","v":"{volume}","n":{trades},'
        f'"x":{"true" if closed else "false"},"q":"{quote}","V":"{taker}","Q":"{taker_quote}","B":"0"}}}}}}'
    )


def exchange_roll_up(time: int, parts: list[Candle]) -> Candle:
    """The exchange's own candle of these minutes: volumes are added exactly, as decimals."""
    high, low = max(part.high for part in parts), min(part.low for part in parts)
    quote, trades, taker, taker_quote = (
        [value for value in values if value is not None] for values in zip(*(part.flow for part in parts), strict=True)
    )
    return Candle(
        time,
        parts[0].open,
        high,
        low,
        parts[-1].close,
        round(fsum(part.volume for part in parts), VOLUME_DIGITS),
        round(fsum(quote), QUOTE_DIGITS),
        int(sum(trades)),
        round(fsum(taker), VOLUME_DIGITS),
        round(fsum(taker_quote), QUOTE_DIGITS),
    )


def traded(candle: Candle) -> Candle:
    """The candle with the order flow of its trades: a larger volume has more trades, all at the mean price, and takers
    bought a share of 10 % to 70 % that depends on the minute."""
    time, open_, high, low, close, volume = candle.ohlcv
    mean, share = (open_ + high + low + close) / 4, (time // MINUTE_S % 7 + 1) / 10
    quote, taker = round(volume * mean, QUOTE_DIGITS), round(volume * share, VOLUME_DIGITS)
    return candle._replace(
        quote_volume=quote,
        trades=1 + int(volume) if volume else 0,
        taker_buy_volume=taker,
        taker_buy_quote_volume=round(taker * mean, QUOTE_DIGITS),
    )


def _row(candle: Candle, seconds: int = MINUTE_S) -> str:
    time, open_, high, low, close, volume, quote, trades, taker, taker_quote = candle
    end_ms = (time + seconds) * 1000 - 1
    return (
        f'[{time * 1000},"{open_}","{high}","{low}","{close}","{volume}",{end_ms},'
        f'"{quote}",{trades},"{taker}","{taker_quote}","0"]'
    )
