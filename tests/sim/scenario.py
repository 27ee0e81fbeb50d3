"""The scenario of a seed: duration, speed, symbols, and faults.

A seed has some of the faults, not all: a rare combination of two shows best when the other faults are off.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import ceil
from random import Random

from klinesync.core.series_id import SeriesId
from klinesync.core.timeframe import Timeframe
from klinesync.ingest.timings import USUAL_AUDIT

# The epoch is a multiple of a day, so that minutes count from midnight.
EPOCH_S = 1_700_006_400

# How long the exchange goes on after the last fault, at its speed or a lower speed: longer than the longest wait of the
# service, which is a connection that dies without notice followed by a backoff.
SETTLING_S = 90.0
SETTLING_SPEED = 10.0

# Share of seeds with a fault of the exchange's edge.
SELDOM = 0.25

# The derived timeframes that the service keeps.
DERIVED = ("5m", "15m", "1h")
# Timeframes that the exchange lacks, and the shorter timeframe from which each is folded; some seeds derive one of
# them.
FOLDED = {"10m": "5m", "20m": "5m", "45m": "15m"}

_SYMBOLS = (
    ("spot", "BTC/USDT"),
    ("futures", "BTC/USDT"),
    ("spot", "ETH/USDT"),
    ("futures", "ETH/USDT"),
    ("spot", "QUIET/BTC"),
    ("futures", "QUIET/USDT"),
)


@dataclass(frozen=True, slots=True)
class Faults:
    """Probabilities and rates of faults; 0: the seed does not have the fault."""

    # Per frame of the exchange.
    lose_closed: float = 0.0
    lose_forming: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    malformed: float = 0.0
    # Per closed candle: a late final event; or a later revision.
    late_close: float = 0.0
    revise: float = 0.0
    # Per minute of a connection: it is cut; and per cut: no connection can be made for a while.
    disconnect: float = 0.0
    refuse: float = 0.0
    # Per subscription: not answered, or answered with an error.
    deaf: float = 0.0
    # Per REST request.
    rest_slow: float = 0.0
    rest_error: float = 0.0
    rest_limit: float = 0.0
    rest_lag: float = 0.0
    # Per commit, during periods of a full disk; and per read of the store.
    disk_full: float = 0.0
    disk_read: float = 0.0
    # Per transaction: it is long, so that a backlog builds up.
    slow_disk: float = 0.0
    # Crashes and orderly restarts in the whole run.
    crashes: int = 0
    restarts: int = 0
    # Per subscription: acknowledged, but silent; and per minute of a stream: silent on every connection.
    silent: float = 0.0
    # Per minute of a connection: its end is announced, and follows soon. And the longest life of a connection in
    # minutes.
    shutdown: float = 0.0
    lifetime: int = 0
    # Per frame: a hostile frame follows.
    hostile: float = 0.0
    # Per REST request: REST is down for minutes. And the weight limit of a minute, where it is scarce.
    ban: float = 0.0
    weight: int = 0
    # Per candle of a factor, and per event of an overlay: the plugin fails.
    factor_fails: float = 0.0
    overlay_fails: float = 0.0
    # Per symbol: not traded for some minutes. And how often streams and REST are both down for minutes.
    delist: float = 0.0
    blackouts: int = 0
    # Per minute of a market: one of its clocks becomes wrong by up to a minute, or drifts; or both become correct. Per
    # answer of `time`: absurd. Per minute: a frame closes the candle 15 s early, stamped past its end. Per stored
    # candle: a frame has other values of the candle.
    clocks: float = 0.0
    absurd_time: float = 0.0
    early_close: float = 0.0
    other_values: float = 0.0
    # Per minute: an unexpected exception in one task of the service.
    defect: float = 0.0
    # Of a minute: packed candles of the store rot.
    rot: float = 0.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """One seed's run."""

    seed: int
    speed: float
    skew_s: int
    storm_minutes: int
    settle_minutes: int
    history_minutes: int
    series: tuple[SeriesId, ...]
    watched: tuple[SeriesId, ...]
    first_history_candles: int
    rest_page: int
    forming_per_minute: int
    outages: int
    quiet: float
    fast_clients: int
    slow_clients: int
    flapping_clients: int
    outbox_max_messages: int
    catch_up_max_candles: int
    writer_from_outside: bool
    audit_interval_s: float
    # The exchange's own candles before the first computed one of a derived series, and the base candles of its
    # backfill.
    native_candles: int
    derived_base_candles: int
    # The derived timeframe that the exchange lacks; None: the exchange has all.
    own_timeframe: str | None
    # The longest advance of factors inside a write transaction, in candles.
    advance_max_candles: int
    faults: Faults

    @property
    def derived(self) -> tuple[str, ...]:
        """The derived timeframes."""
        return DERIVED if self.own_timeframe is None else (*DERIVED, self.own_timeframe)

    @property
    def chain(self) -> tuple[tuple[str, str], ...]:
        """Each derived timeframe, and the timeframe from which its candles are folded."""
        links = tuple(zip(DERIVED, ("1m", *DERIVED), strict=False))
        return links if self.own_timeframe is None else (*links, (self.own_timeframe, FOLDED[self.own_timeframe]))

    @property
    def audit_candles(self) -> int:
        """Candles of an audit: a few pages."""
        return min(USUAL_AUDIT.candles, 8 * self.rest_page)

    def __str__(self) -> str:
        faults = " ".join(
            f"{field.name}={value:.3g}" for field in fields(Faults) if (value := getattr(self.faults, field.name))
        )
        return (
            f"seed {self.seed}: {len(self.series)} series, {self.storm_minutes} minutes at speed {self.speed:g}, "
            f"clients {self.fast_clients} fast {self.slow_clients} slow {self.flapping_clients} flapping; "
            f"faults {faults or 'none'}"
        )


def draw_scenario(seed: int) -> Scenario:
    """The scenario of a seed, always the same."""
    rng = Random(f"scenario {seed}")
    edge = Random(f"edge {seed}")
    ledgers = Random(f"ledgers {seed}")
    clocks = Random(f"clocks {seed}")
    parts = Random(f"parts {seed}")
    timeframes = Random(f"timeframes {seed}")
    rot = Random(f"rot {seed}")
    symbols = sorted(rng.sample(_SYMBOLS, rng.randint(1, 4)))

    def maybe(low: float, high: float, chance: float = 0.4) -> float:
        value = rng.uniform(low, high)
        return value if rng.random() < chance else 0.0

    def seldom(low: float, high: float) -> float:
        value = edge.uniform(low, high)
        return value if edge.random() < SELDOM else 0.0

    def count(*counts: int) -> int:
        value = edge.choice(counts)
        return value if edge.random() < SELDOM else 0

    def untimely(low: float, high: float) -> float:
        value = clocks.uniform(low, high)
        return value if clocks.random() < SELDOM else 0.0

    faults = Faults(
        lose_closed=maybe(0.02, 0.3),
        lose_forming=maybe(0.1, 0.5),
        duplicate=maybe(0.02, 0.2),
        reorder=maybe(0.02, 0.2),
        malformed=maybe(0.005, 0.03),
        late_close=maybe(0.05, 0.3),
        revise=maybe(0.01, 0.06),
        disconnect=maybe(0.01, 0.1, 0.6),
        refuse=maybe(0.2, 0.8),
        deaf=maybe(0.05, 0.3),
        rest_slow=maybe(0.05, 0.4),
        rest_error=maybe(0.05, 0.4),
        rest_limit=maybe(0.02, 0.15),
        rest_lag=maybe(0.1, 0.8),
        disk_full=maybe(0.1, 0.9),
        disk_read=maybe(0.01, 0.1),
        slow_disk=maybe(0.02, 0.2),
        crashes=rng.choice((0, 0, 1, 2, 4)),
        restarts=rng.choice((0, 0, 0, 1)),
        silent=seldom(0.1, 0.6),
        shutdown=seldom(0.02, 0.2),
        lifetime=count(5, 10, 25),
        hostile=seldom(0.02, 0.2),
        ban=seldom(0.005, 0.05),
        weight=count(60, 120, 240),
        delist=seldom(0.3, 1.0),
        blackouts=count(1, 2),
        factor_fails=ledgers.choice((0.0, 0.0, 0.005, 0.1)),
        overlay_fails=ledgers.choice((0.0, 0.0, 0.0, 0.1)),
        clocks=untimely(0.02, 0.3),
        absurd_time=untimely(0.02, 0.4),
        early_close=untimely(0.02, 0.3),
        other_values=untimely(0.02, 0.3),
        defect=parts.choice((0.0, 0.0, 0.1, 0.5)),
        rot=rot.choice((0.0, 0.0, 0.05, 0.3)),
    )
    catch_up_max_candles = rng.choice((10, 50, 2000))
    series = tuple(SeriesId.parse(f"binance:{market}:{symbol}:1m") for market, symbol in symbols)
    derived = [one.with_timeframe(Timeframe.parse(code)) for one in series for code in DERIVED]
    own_timeframe = timeframes.choice((None, None, *FOLDED))
    own: list[SeriesId] = []
    if own_timeframe is not None and timeframes.random() < 0.7:
        own = [timeframes.choice(series).with_timeframe(Timeframe.parse(own_timeframe))]
    speed = rng.choice((1.0, 1.0, 7.0, 60.0, 300.0))
    return Scenario(
        seed=seed,
        speed=speed,
        skew_s=rng.choice((0, 0, -3600, 37, 86_400 * 300)),
        # At speed 1 a minute takes the longest real time.
        storm_minutes=rng.randint(30, 90) // (2 if speed == 1.0 else 1),
        settle_minutes=max(6, ceil(SETTLING_S * min(speed, SETTLING_SPEED) / 60)),
        history_minutes=rng.choice((5, 30, 200)),
        series=series,
        watched=(*series, *rng.sample(derived, rng.randint(0, 2)), *own),
        first_history_candles=rng.choice((1, 5, 60, 150)),
        # Where weight is scarce a first history in pages of two rows would take hours.
        rest_page=max(rng.choice((2, 7, 50, 499)), 7 if faults.weight else 4),
        forming_per_minute=rng.choice((0, 1, 2, 4)),
        outages=rng.choice((0, 0, 1, 2, 3)),
        quiet=rng.choice((0.0, 0.0, 0.1, 0.5)),
        fast_clients=rng.randint(1, 2),
        slow_clients=rng.choice((0, 1, 2)),
        flapping_clients=rng.choice((0, 1, 2)),
        # A complete catch-up fits into the limits, as with the real ones, with little to spare.
        outbox_max_messages=min(
            10_000, (catch_up_max_candles + 2) * (len(symbols) + 2 + len(own)) + rng.choice((10, 50, 10_000))
        ),
        catch_up_max_candles=catch_up_max_candles,
        writer_from_outside=rng.random() < 0.3,
        audit_interval_s=edge.choice((0.0, 5.0, 30.0)),
        native_candles=ledgers.choice((0, 3, 20)),
        derived_base_candles=ledgers.choice((1, 2000)),
        own_timeframe=own_timeframe,
        advance_max_candles=ledgers.choice((5, 50, 2000)),
        faults=faults,
    )
