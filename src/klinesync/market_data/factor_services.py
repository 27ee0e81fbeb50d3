"""Reading factors and overlays: slices, draw deltas, frames, all of one state of the store. Nothing is written.

What is stored are events, drawings and states at checkpoints; heads, windows, outputs of factors and indicators are
computed here, from the newest checkpoint and the candles behind it, so that they need not be stored at all.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from klinesync.core.candle import Candle
from klinesync.core.errors import KlinesyncError
from klinesync.core.series_id import SeriesId
from klinesync.factor.graph import FactorGraph, States
from klinesync.factor.indicator import Indicator
from klinesync.factor.plugin import Event, FactorFault, ForeignStates, Json
from klinesync.market_data.factor_health import FactorHealth, factor_health
from klinesync.market_data.slices import SCHEMA_VERSION, lines_of, public, slices_of, snapshot_of
from klinesync.overlay import delta
from klinesync.overlay.delta import Cursor, DrawDelta
from klinesync.overlay.instruction import Drawing, Point
from klinesync.overlay.plugin import OverlayFault, View
from klinesync.pipelines.factor_states import outputs_at, values_at
from klinesync.pipelines.ledger_step import LedgerStep
from klinesync.runtime.log_events import Log
from klinesync.storage.candles import CandleStore
from klinesync.storage.database import Database
from klinesync.storage.records import Ledger

log = Log(__name__)


class LedgerOutOfSync(KlinesyncError):
    """Factors or overlays (`part`) lag behind the candles; retry later."""

    def __init__(self, part: str) -> None:
        self.code = f"ledger_out_of_sync:{part}" if part else "ledger_out_of_sync"
        super().__init__(self.code)


class Poll(msgspec.Struct, frozen=True):
    """A record of `delta/poll`."""

    id: int
    series_id: str
    to_candle_id: str
    to_candle_time: int
    epoch: int
    draw_delta: DrawDelta
    factor_slices: None = None


@dataclass(frozen=True, slots=True)
class _Window:
    """The stored data of a window of candles.

    ledger: of the series.
    factors: those that give heads.
    candles: ascending.
    events: by factor.
    heads: of each factor at the last candle.
    """

    ledger: Ledger
    factors: FactorGraph
    candles: list[Candle]
    events: dict[str, list[Event]]
    heads: dict[str, dict[str, Json]]

    @property
    def at(self) -> Candle:
        return self.candles[-1]


class FactorReader:
    """Reads factors and drawings from the ledger.

    database: the store.
    step: the present factors and overlays.
    indicators: that are computed at each read.
    check_known: raises `UnknownSeries` when the exchange does not list a series.
    """

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
        """Whether the factors or overlays of the series are known to lag behind its candles."""
        return self._step.lag(series) is not None

    def catalog(self) -> dict[str, Json]:
        """The factors and indicators with their features, as `GET /api/factor/catalog` answers."""
        indicators: list[Json] = [
            {
                "key": indicator.name,
                "label": indicator.label,
                "default_visible": True,
                "pane": indicator.pane,
                "sub_features": [
                    {"key": output.key, "label": output.label, "default_visible": True, "style": output.style}
                    for output in indicator.outputs
                ],
            }
            for indicator in self._indicators
        ]
        return {"schema_version": SCHEMA_VERSION, "factors": [*self._step.factors.catalog(), *indicators]}

    async def slices(self, series: SeriesId, at_time: int | None, window: int) -> dict[str, Json]:
        """The events of each factor within a window of candles, and its head at the last candle.

        series: the series.
        at_time: newest open time of the window; None: the stored head.
        window: most candles.

        Raises `LedgerOutOfSync` when the factors lag behind the window, `UnknownSeries`.
        """

        def look(store: CandleStore) -> dict[str, Json] | None:
            stored = self._window(store, series, at_time, window, drawn=False)
            return None if stored is None else self._slices(series, stored, self._points(store, series, stored.candles))

        slices = await self._database.read(look)
        if slices is None:
            await self._check_known(series)
            return self._no_slices(series)
        return slices

    async def slices_after(self, series: SeriesId, since: int, limit: int) -> dict[str, Json]:
        """The slices of the oldest `limit` candles after `since`, each with a window of one candle, up to the factor
        head. Cheaper than `slices` for each candle: the states are folded once.

        series: the series.
        since: open time, exclusive.
        limit: most candles.

        Raises `LedgerOutOfSync` when the factor head is before the first of these candles, `UnknownSeries`.
        """

        def look(store: CandleStore) -> tuple[list[Json], bool]:
            candles = store.oldest(series, limit, since=since)
            return self._slices_of(store, series, candles) if candles else [], store.head(series) is not None

        slices, stored = await self._database.read(look)
        if not stored:
            await self._check_known(series)
        return {"schema_version": SCHEMA_VERSION, "series_id": str(series), "slices": slices}

    async def draw(
        self, series: SeriesId, at_time: int | None, window: int, cursor: Cursor, epoch: int | None
    ) -> DrawDelta:
        """The drawings of a window that a reader does not have yet.

        series: the series.
        at_time: newest open time of the window; None: the stored head.
        window: most candles.
        cursor: of the reader.
        epoch: of the cursor; None: unknown.

        Raises `LedgerOutOfSync` when factors or overlays lag behind the window, `UnknownSeries`.
        """

        def look(store: CandleStore) -> DrawDelta | None:
            stored = self._window(store, series, at_time, window, drawn=True)
            return None if stored is None else self._draw(store, series, stored, cursor, epoch)

        drawn = await self._database.read(look)
        if drawn is None:
            await self._check_known(series)
            return delta.nothing(series, 0)
        return drawn

    async def frame(self, series: SeriesId, at_time: int | None, window: int) -> dict[str, object]:
        """Slices and drawings as of a candle. Parameters as for `slices`. Raises `LedgerOutOfSync`, `UnknownSeries`."""

        def look(store: CandleStore) -> dict[str, object] | None:
            stored = self._window(store, series, at_time, window, drawn=True)
            if stored is None:
                return None
            time = stored.at.time
            return {
                "schema_version": SCHEMA_VERSION,
                "series_id": str(series),
                "time": {
                    "at_time": time if at_time is None else at_time,
                    "aligned_time": time,
                    "candle_id": series.candle_id(time),
                },
                "factor_slices": self._slices(series, stored, self._points(store, series, stored.candles)),
                "draw_state": self._draw(store, series, stored, Cursor(), None),
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
        """At most one record: the drawings, if they have changed since the record `after_id`.

        series: the series.
        after_id: the newest record that the reader has.
        window: most candles.

        Raises `UnknownSeries`.
        """

        def look(store: CandleStore) -> tuple[Poll | None, int, bool]:
            ledger, head = store.ledger.get(series), store.head(series)
            if ledger is None or ledger.record_id <= after_id or head is None:
                return None, after_id, head is not None
            try:
                stored = self._window(store, series, None, window, drawn=True)
            except LedgerOutOfSync:
                return None, after_id, True  # a record follows when the ledger has caught up
            assert stored is not None, "there is a head"
            time = stored.at.time
            drawn = self._draw(store, series, stored, Cursor(), None)
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
        """The delay of factors and overlays. Raises `UnknownSeries`."""
        health = await self._database.read(lambda store: factor_health(store, self._step, series))
        if health.head_time is None:
            await self._check_known(series)
        return health

    def _window(
        self, store: CandleStore, series: SeriesId, at_time: int | None, window: int, *, drawn: bool
    ) -> _Window | None:
        """The window up to `at_time`; None without candles. `drawn`: overlays are needed too. Raises
        `LedgerOutOfSync`."""
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
        """The series' ledger. Raises `LedgerOutOfSync` unless its factor head is at `time` or later."""
        step = self._step
        ledger = store.ledger.get(series)
        if step.idle:
            return Ledger("", factor_head=time, overlay_head=time)
        if ledger is None or not step.computed(ledger) or ledger.factor_head is None or ledger.factor_head < time:
            raise LedgerOutOfSync("factor")
        return ledger

    def _slices_of(self, store: CandleStore, series: SeriesId, candles: Sequence[Candle]) -> list[Json]:
        """The slices of consecutive stored candles."""
        step = self._step
        ledger = self._ledger(store, series, candles[0].time)
        if not step.idle:
            candles = [candle for candle in candles if candle.time <= (ledger.factor_head or 0)]
        events: dict[int, dict[str, list[Event]]] = {}
        for factor, event in store.ledger.events(series, candles[0].time, candles[-1].time + 1):
            assert isinstance(event["visible_time"], int), "the events were checked when they were made"
            events.setdefault(event["visible_time"], {}).setdefault(factor, []).append(event)
        points: dict[str, dict[int, Point]] = {
            key: {point.time: point for point in line} for key, line in self._points(store, series, candles).items()
        }
        needed = [indicator for indicator in self._indicators if indicator.name in step.factors.outside]
        outside = values_at(store, series, needed, candles)
        slices: list[Json] = []
        try:
            states = step.states.at(store, series, candles[0].time - 1)
            for at, candle in enumerate(candles):
                beside = None if outside is None else outside[at : at + 1]
                states, _ = step.factors.advance_many(states, (candle,), beside)
                factors, heads = _heads(series, step.factors, states, candle)
                window = _Window(ledger, factors, [candle], events.get(candle.time, {}), heads)
                here = {key: [line[candle.time]] if candle.time in line else [] for key, line in points.items()}
                slices.append(self._slices(series, window, here))
        except (FactorFault, ForeignStates):
            raise LedgerOutOfSync("factor") from None
        return slices

    def _points(self, store: CandleStore, series: SeriesId, candles: Sequence[Candle]) -> dict[str, list[Point]]:
        """The values of indicators and of factors' outputs at consecutive stored candles, up to the factor head."""
        times = [candle.time for candle in candles]
        points = delta.points_of(times, self._outputs_of_factors(store, series, candles))
        for outputs in outputs_at(store, series, self._indicators, candles).values():
            points |= delta.points_of(times, {key: array.tolist() for key, array in outputs.items()})
        return points

    def _outputs_of_factors(
        self, store: CandleStore, series: SeriesId, candles: Sequence[Candle]
    ) -> dict[str, list[float]]:
        """The outputs of factors at consecutive stored candles, NaN where there is no value; a factor with a fault is
        left out. Raises `LedgerOutOfSync`."""
        step = self._step
        factors = step.factors.numeric
        while candles and factors.output_keys:
            needed = [indicator for indicator in self._indicators if indicator.name in factors.outside]
            outside = values_at(store, series, needed, candles)
            try:
                states = step.states.at(store, series, candles[0].time - 1, factors)
                return factors.fold_outputs(states, candles, outside)[1]
            except FactorFault as fault:
                log.error("factor.left_out", "read without it", series=series, plugin=fault.factor, error=fault)
                factors = factors.without(fault.factor)
            except ForeignStates:
                raise LedgerOutOfSync("factor") from None
        return {}

    def _no_slices(self, series: SeriesId) -> dict[str, Json]:
        """The answer for a series without candles."""
        return slices_of(series, None, {})

    def _slices(self, series: SeriesId, window: _Window, points: Mapping[str, Sequence[Point]]) -> dict[str, Json]:
        time, epoch = window.at.time, window.ledger.epoch
        snapshots: dict[str, Json] = {}
        histories = window.factors.histories(window.events, time)
        for name, keys in window.factors.keys_by_factor.items():
            history, head = lines_of({key: points[key] for key in keys if key in points}, time)
            history, head = public(histories[name]) | history, public(window.heads[name]) | head
            snapshots[name] = snapshot_of(series, name, epoch, time, history, head)
        for indicator in self._indicators:
            history, head = lines_of({output.key: points[output.key] for output in indicator.outputs}, time)
            snapshots[indicator.name] = snapshot_of(series, indicator.name, epoch, time, history, head)
        return slices_of(series, time, snapshots)

    def _draw(
        self, store: CandleStore, series: SeriesId, window: _Window, cursor: Cursor, epoch: int | None
    ) -> DrawDelta:
        candles, time, now = window.candles, window.at.time, window.ledger.epoch
        version_id = store.ledger.newest_version(series, time + 1)
        known = delta.resumed(cursor, epoch, Cursor(version_id, time), now).point_time
        new = [candle for candle in candles if candle.time > known]
        points: dict[str, list[Point]] = {key: [] for key in window.factors.output_keys}
        points |= {output.key: [] for indicator in self._indicators for output in indicator.outputs}
        return delta.compose(
            series,
            now,
            start_time=candles[0].time,
            at_time=time,
            version_id=version_id,
            stored=store.ledger.drawings(series, candles[0].time, time + 1),
            rendered=self._rendered(View(series, candles[0].time, time, window.heads, window.events, candles)),
            points=points | self._points(store, series, new),
            cursor=cursor,
            cursor_epoch=epoch,
        )

    def _rendered(self, view: View) -> list[Drawing]:
        """The drawings that overlays render at read; an overlay with a fault is left out."""
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
    """The heads of factors at a candle, and the factors that have one; a factor with a fault is left out."""
    while True:
        try:
            return factors, factors.heads(states, candle)
        except FactorFault as fault:
            log.error("factor.left_out", "read without it", series=series, plugin=fault.factor, error=fault)
            factors = factors.without(fault.factor)
