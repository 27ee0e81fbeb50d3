"""Reading factors and overlays: slices, draw deltas, frames, all of one state of the store. Nothing is written.

What is stored are events, drawings and states at checkpoints; heads, windows and indicators are computed here, from
the newest checkpoint and the candles behind it, so that they need not be stored at all.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from klinesync.core.candle import Candle
from klinesync.core.errors import KlinesyncError
from klinesync.core.series_id import SeriesId
from klinesync.factor.columns import Columns
from klinesync.factor.graph import FactorGraph, States
from klinesync.factor.indicator import Indicator
from klinesync.factor.plugin import Event, FactorFault, ForeignStates, Json
from klinesync.market_data.factor_health import FactorHealth, factor_health
from klinesync.overlay import delta
from klinesync.overlay.delta import Cursor, DrawDelta
from klinesync.overlay.instruction import Drawing, Point
from klinesync.overlay.plugin import OverlayFault, View
from klinesync.pipelines.factor_states import values_at
from klinesync.pipelines.ledger_step import LedgerStep
from klinesync.runtime.log_events import Log
from klinesync.storage.candles import CandleStore
from klinesync.storage.database import Database
from klinesync.storage.records import Ledger

log = Log(__name__)

SCHEMA_VERSION = 1


class LedgerOutOfSync(KlinesyncError):
    """Factors or overlays (`part`) have not come as far as the candles. Ask again in a moment."""

    def __init__(self, part: str) -> None:
        self.code = f"ledger_out_of_sync:{part}" if part else "ledger_out_of_sync"
        super().__init__(self.code)


class Poll(msgspec.Struct, frozen=True):
    """One record of `delta/poll`."""

    id: int
    series_id: str
    to_candle_id: str
    to_candle_time: int
    epoch: int
    draw_delta: DrawDelta
    factor_slices: None = None


@dataclass(frozen=True, slots=True)
class _Window:
    """What is stored about the candles of a window; `events` by factor, `heads` at its last candle."""

    ledger: Ledger
    factors: FactorGraph
    candles: list[Candle]
    events: dict[str, list[Event]]
    heads: dict[str, dict[str, Json]]

    @property
    def at(self) -> Candle:
        return self.candles[-1]


class FactorReader:
    """Reads the ledger. `check_known` raises `UnknownSeries` for a series that its exchange does not list."""

    def __init__(
        self,
        database: Database,
        step: LedgerStep,
        indicators: Sequence[Indicator],
        check_known: Callable[[SeriesId], Awaitable[None]],
    ) -> None:
        self._database = database
        self._step = step
        self._indicators = tuple(indicators)
        self._check_known = check_known

    def lagging(self, series: SeriesId) -> bool:
        """Whether it is known that the series' factors or overlays lag behind its candles."""
        return self._step.lag(series) is not None

    def catalog(self) -> dict[str, Json]:
        """The factors and indicators with their features, as `GET /api/factor/catalog` answers."""
        indicators: list[Json] = [
            {
                "key": one.name,
                "label": one.label,
                "default_visible": True,
                "pane": one.pane,
                "sub_features": [
                    {"key": output.key, "label": output.label, "default_visible": True, "style": output.style}
                    for output in one.outputs
                ],
            }
            for one in self._indicators
        ]
        return {"schema_version": SCHEMA_VERSION, "factors": [*self._step.factors.catalog(), *indicators]}

    async def slices(self, series: SeriesId, at_time: int | None, window: int) -> dict[str, Json]:
        """What each factor said within the newest `window` candles up to `at_time` (None: all), and its head there.

        Raises `LedgerOutOfSync` when the factors have not come that far, `UnknownSeries`.
        """

        def look(store: CandleStore) -> dict[str, Json] | None:
            found = self._window(store, series, at_time, window, drawn=False)
            return None if found is None else self._slices(series, found, self._points(store, series, found.candles))

        found = await self._database.read(look)
        if found is None:
            await self._check_known(series)
            return self._no_slices(series)
        return found

    async def slices_after(self, series: SeriesId, since: int, limit: int) -> dict[str, Json]:
        """The slices of the oldest `limit` candles after `since`, each of its candle alone: as many `slices` with a
        window of one candle, at the cost of one and a fold. They end where factors have come to.

        Raises `LedgerOutOfSync` when that is before the first of these candles, `UnknownSeries`.
        """

        def look(store: CandleStore) -> tuple[list[Json], bool]:
            candles = store.oldest(series, limit, since=since)
            return self._slices_of(store, series, candles) if candles else [], store.head(series) is not None

        found, stored = await self._database.read(look)
        if not stored:
            await self._check_known(series)
        return {"schema_version": SCHEMA_VERSION, "series_id": str(series), "slices": found}

    async def draw(
        self, series: SeriesId, at_time: int | None, window: int, cursor: Cursor, epoch: int | None
    ) -> DrawDelta:
        """What a reader with that cursor (of that epoch, None: he does not say) has to learn to show the window.

        Raises `LedgerOutOfSync` when factors or overlays have not come that far, `UnknownSeries`.
        """

        def look(store: CandleStore) -> DrawDelta | None:
            found = self._window(store, series, at_time, window, drawn=True)
            return None if found is None else self._draw(store, series, found, cursor, epoch)

        found = await self._database.read(look)
        if found is None:
            await self._check_known(series)
            return delta.nothing(series, 0)
        return found

    async def frame(self, series: SeriesId, at_time: int | None, window: int) -> dict[str, object]:
        """Slices and drawings of one candle. Raises `LedgerOutOfSync`, `UnknownSeries`."""

        def look(store: CandleStore) -> dict[str, object] | None:
            found = self._window(store, series, at_time, window, drawn=True)
            if found is None:
                return None
            time = found.at.time
            return {
                "schema_version": SCHEMA_VERSION,
                "series_id": str(series),
                "time": {
                    "at_time": time if at_time is None else at_time,
                    "aligned_time": time,
                    "candle_id": series.candle_id(time),
                },
                "factor_slices": self._slices(series, found, self._points(store, series, found.candles)),
                "draw_state": self._draw(store, series, found, Cursor(), None),
            }

        try:
            frame = await self._database.read(look)
        except LedgerOutOfSync:
            raise LedgerOutOfSync("") from None
        if frame is None:
            await self._check_known(series)
            nothing = {"at_time": at_time, "aligned_time": None, "candle_id": None}
            return {
                "schema_version": SCHEMA_VERSION,
                "series_id": str(series),
                "time": nothing,
                "factor_slices": self._no_slices(series),
                "draw_state": delta.nothing(series, 0),
            }
        return frame

    async def poll(self, series: SeriesId, after_id: int, window: int) -> dict[str, object]:
        """At most one record, when anything has changed since the record `after_id`. Raises `UnknownSeries`."""

        def look(store: CandleStore) -> tuple[Poll | None, int, bool]:
            ledger, head = store.ledger.get(series), store.head(series)
            if ledger is None or ledger.record_id <= after_id or head is None:
                return None, after_id, head is not None
            try:
                found = self._window(store, series, None, window, drawn=True)
            except LedgerOutOfSync:
                return None, after_id, True  # there will be something when it has caught up
            assert found is not None, "there is a head"
            time = found.at.time
            drawn = self._draw(store, series, found, Cursor(), None)
            record_id = ledger.record_id
            candle_id = series.candle_id(time)
            return Poll(record_id, str(series), candle_id, time, ledger.epoch, drawn), record_id, True

        record, newest, stored = await self._database.read(look)
        if not stored:
            await self._check_known(series)
        return {
            "schema_version": SCHEMA_VERSION,
            "series_id": str(series),
            "records": [] if record is None else [record],
            "next_cursor": {"id": newest},
        }

    async def health(self, series: SeriesId) -> FactorHealth:
        """How far factors and overlays are. Raises `UnknownSeries`."""
        found = await self._database.read(lambda store: factor_health(store, self._step, series))
        if found.head_time is None:
            await self._check_known(series)
        return found

    def _window(
        self, store: CandleStore, series: SeriesId, at_time: int | None, window: int, *, drawn: bool
    ) -> _Window | None:
        """None for a series without candles (up to `at_time`)."""
        step = self._step
        before = None if at_time is None else at_time + 1
        candles = store.newest(series, window, before=before)
        if not candles:
            return None
        start, time = candles[0].time, candles[-1].time
        ledger = self._ledger(store, series, time)
        if drawn and (ledger.overlay_head is None or ledger.overlay_head < time):
            raise LedgerOutOfSync("overlay")
        events: dict[str, list[Event]] = {}
        for factor, event in store.ledger.events(series, start, time + 1):
            events.setdefault(factor, []).append(event)
        try:
            states = step.states.at(store, series, time)
        except (ForeignStates, FactorFault):
            raise LedgerOutOfSync("factor") from None
        factors, heads = _heads(series, step.factors, states, candles[-1])
        return _Window(ledger, factors, candles, events, heads)

    def _ledger(self, store: CandleStore, series: SeriesId, time: int) -> Ledger:
        """The series' ledger, which has come to the candle at `time`. Raises `LedgerOutOfSync`."""
        step = self._step
        ledger = store.ledger.get(series)
        if step.idle:
            return Ledger("", factor_head=time, overlay_head=time)
        if ledger is None or not step.computed(ledger) or ledger.factor_head is None or ledger.factor_head < time:
            raise LedgerOutOfSync("factor")
        return ledger

    def _slices_of(self, store: CandleStore, series: SeriesId, candles: Sequence[Candle]) -> list[Json]:
        """The slices of these stored candles, which follow each other."""
        step = self._step
        ledger = self._ledger(store, series, candles[0].time)
        if not step.idle:
            candles = [candle for candle in candles if candle.time <= (ledger.factor_head or 0)]
        events: dict[int, dict[str, list[Event]]] = {}
        for factor, event in store.ledger.events(series, candles[0].time, candles[-1].time + 1):
            assert isinstance(event["visible_time"], int), "the events were checked when they were made"
            events.setdefault(event["visible_time"], {}).setdefault(factor, []).append(event)
        points: dict[str, dict[int, Point]] = {
            key: {point.time: point for point in some} for key, some in self._points(store, series, candles).items()
        }
        needed = [one for one in self._indicators if one.name in step.factors.outside]
        outside = values_at(store, series, needed, candles)
        found: list[Json] = []
        try:
            states = step.states.at(store, series, candles[0].time - 1)
            for at, candle in enumerate(candles):
                beside = None if outside is None else outside[at : at + 1]
                states, _ = step.factors.advance_many(states, (candle,), beside)
                factors, heads = _heads(series, step.factors, states, candle)
                window = _Window(ledger, factors, [candle], events.get(candle.time, {}), heads)
                here = {key: [some[candle.time]] if candle.time in some else [] for key, some in points.items()}
                found.append(self._slices(series, window, here))
        except (FactorFault, ForeignStates):
            raise LedgerOutOfSync("factor") from None
        return found

    def _points(self, store: CandleStore, series: SeriesId, candles: Sequence[Candle]) -> dict[str, list[Point]]:
        """The indicators' values at these stored candles, which follow each other."""
        if not (self._indicators and candles):
            return {}
        warm_up = max(one.warm_up for one in self._indicators)
        columns = Columns.of([*store.newest(series, warm_up, before=candles[0].time), *candles])
        times = [candle.time for candle in candles]
        points: dict[str, list[Point]] = {}
        for indicator in self._indicators:
            values = indicator.compute(series.timeframe, columns, len(columns) - len(candles))
            points |= delta.points_of(times, {key: array.tolist() for key, array in values.items()})
        return points

    def _no_slices(self, series: SeriesId) -> dict[str, Json]:
        """The answer for a series without candles."""
        return _slices(series, None, {})

    def _slices(self, series: SeriesId, found: _Window, points: Mapping[str, Sequence[Point]]) -> dict[str, Json]:
        time = found.at.time
        snapshots: dict[str, Json] = {}
        histories = found.factors.histories(found.events, time)
        for name in found.factors.names:
            snapshots[name] = _snapshot(series, name, found, _public(histories[name]), _public(found.heads[name]))
        for indicator in self._indicators:
            held = {output.key: points[output.key] for output in indicator.outputs}
            history: dict[str, Json] = {
                key: [{"time": point.time, "value": point.value} for point in some] for key, some in held.items()
            }
            head: dict[str, Json] = {
                key: some[-1].value if some and some[-1].time == time else None for key, some in held.items()
            }
            snapshots[indicator.name] = _snapshot(series, indicator.name, found, history, head)
        return _slices(series, time, snapshots)

    def _draw(
        self, store: CandleStore, series: SeriesId, found: _Window, cursor: Cursor, epoch: int | None
    ) -> DrawDelta:
        candles, time, now = found.candles, found.at.time, found.ledger.epoch
        version_id = store.ledger.newest_version(series, time + 1)
        known = delta.resumed(cursor, epoch, Cursor(version_id, time), now).point_time
        new = [candle for candle in candles if candle.time > known]
        points: dict[str, list[Point]] = {
            output.key: [] for indicator in self._indicators for output in indicator.outputs
        }
        return delta.compose(
            series,
            now,
            start_time=candles[0].time,
            at_time=time,
            version_id=version_id,
            stored=store.ledger.drawings(series, candles[0].time, time + 1),
            rendered=self._rendered(View(series, candles[0].time, time, found.heads, found.events, candles)),
            points=points | self._points(store, series, new),
            cursor=cursor,
            cursor_epoch=epoch,
        )

    def _rendered(self, view: View) -> list[Drawing]:
        """What the overlays draw at this read: those that can."""
        overlays = self._step.overlays
        while True:
            try:
                return overlays.render(view)
            except OverlayFault as fault:
                log.error("overlay.left_out", "drawn without it", series=view.series, plugin=fault.overlay, error=fault)
                overlays = overlays.without(fault.overlay)


def _heads(
    series: SeriesId, factors: FactorGraph, states: States, candle: Candle
) -> tuple[FactorGraph, dict[str, dict[str, Json]]]:
    """What factors say of the present; those that cannot are left out."""
    while True:
        try:
            return factors, factors.heads(states, candle)
        except FactorFault as fault:
            log.error("factor.left_out", "read without it", series=series, plugin=fault.factor, error=fault)
            factors = factors.without(fault.factor)


def _slices(series: SeriesId, time: int | None, snapshots: dict[str, Json]) -> dict[str, Json]:
    return {
        "schema_version": SCHEMA_VERSION,
        "series_id": str(series),
        "at_time": time,
        "candle_id": None if time is None else series.candle_id(time),
        "factors": list(snapshots),
        "snapshots": snapshots,
    }


def _public(said: Mapping[str, Json]) -> dict[str, Json]:
    """The same without keys that begin with `_`, also of its events: those are for overlays alone."""
    return {
        key: [_event(one) if isinstance(one, dict) else one for one in value] if isinstance(value, list) else value
        for key, value in said.items()
        if not key.startswith("_")
    }


def _event(event: dict[str, Json]) -> dict[str, Json]:
    return {key: value for key, value in event.items() if not key.startswith("_")}


def _snapshot(
    series: SeriesId, name: str, found: _Window, history: dict[str, Json], head: dict[str, Json]
) -> dict[str, Json]:
    time = found.at.time
    return {
        "schema_version": SCHEMA_VERSION,
        "history": history,
        "head": head,
        "meta": {
            "series_id": str(series),
            "epoch": found.ledger.epoch,
            "at_time": time,
            "candle_id": series.candle_id(time),
            "factor_name": name,
        },
    }
