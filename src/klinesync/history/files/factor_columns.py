"""FactorColumns: what factors and indicators say, as columns beside candles: for strategies and models that learn.

The row of a candle has what was known when it closed, and nothing that came to be known later: what `GET
/api/factor/slices` answers with that `at_time`. Indicators are their outputs. A major pivot stands in the row of the
candle at which it became visible, not in that of its own candle; the pen is the one that extends, the zhongshu the
living one, the anchor the present one, as far as they had come at the candle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

from klinesync.core.candle import Candle
from klinesync.core.errors import KlinesyncError
from klinesync.core.series_id import SeriesId
from klinesync.factor.anchor import AnchorState
from klinesync.factor.columns import Columns, Floats
from klinesync.factor.graph import Said, States
from klinesync.factor.indicator import Indicator
from klinesync.factor.pen import PenState
from klinesync.factor.pivot import PivotState
from klinesync.factor.plugin import FactorFault, ForeignStates
from klinesync.factor.zhongshu import ZhongshuState
from klinesync.pipelines.factor_states import values_at
from klinesync.pipelines.ledger_step import LedgerStep
from klinesync.storage.candles import CandleStore

Kind = Literal["number", "integer", "text"]
# None (in a column of floats NaN) where there is nothing.
Values: TypeAlias = "Sequence[float | int | str | None] | Floats"

_PIVOT: Mapping[str, Kind] = {
    "pivot_major_time": "integer",
    "pivot_major_resistance": "number",
    "pivot_major_support": "number",
}
_PEN: Mapping[str, Kind] = {
    "pen_direction": "integer",
    "pen_start_time": "integer",
    "pen_start_price": "number",
    "pen_end_time": "integer",
    "pen_end_price": "number",
}
_ZHONGSHU: Mapping[str, Kind] = {"zhongshu_zg": "number", "zhongshu_zd": "number", "zhongshu_start_time": "integer"}
_ANCHOR: Mapping[str, Kind] = {
    "anchor_kind": "text",
    "anchor_direction": "integer",
    "anchor_start_time": "integer",
    "anchor_end_time": "integer",
}
# The columns of the built-in factors, and whose they are by the type of its state.
_STRUCTURE: Sequence[tuple[str, type[object], Mapping[str, Kind]]] = (
    ("pivot", PivotState, _PIVOT),
    ("pen", PenState, _PEN),
    ("zhongshu", ZhongshuState, _ZHONGSHU),
    ("anchor", AnchorState, _ANCHOR),
)


class FactorsLag(KlinesyncError):
    """The ledger has not come as far as the candles, or was computed by others."""

    code = "ledger_out_of_sync:factor"


class FactorColumns:
    """The columns of one series, a stretch of candles after the other. Factors of others than klinesync have none."""

    def __init__(self, step: LedgerStep, indicators: Sequence[Indicator], series: SeriesId) -> None:
        self._step = step
        self._indicators = tuple(indicators)
        self._needed = [one for one in indicators if one.name in step.factors.outside]
        self._series = series
        seed = step.factors.seed()
        self._structure = [columns for name, state, columns in _STRUCTURE if isinstance(seed.get(name), state)]
        # The states after the candle of `_at`, of a ledger of that epoch.
        self._states: States = seed
        self._at: int | None = None
        self._epoch = -1

    @property
    def kinds(self) -> dict[str, Kind]:
        """The columns' names, and what is in them."""
        found: dict[str, Kind] = {output.key: "number" for one in self._indicators for output in one.outputs}
        for columns in self._structure:
            found |= columns
        return found

    def of(self, store: CandleStore, candles: Sequence[Candle]) -> dict[str, Values]:
        """The columns at these stored candles, which follow each other.

        Cheap when they follow those of the last call. Raises `FactorsLag`.
        """
        if not candles:
            return dict.fromkeys(self.kinds, ())
        return {**self._indicator_values(store, candles), **self._structure_values(store, candles)}

    def _indicator_values(self, store: CandleStore, candles: Sequence[Candle]) -> dict[str, Values]:
        if not self._indicators:
            return {}
        warm_up = max(one.warm_up for one in self._indicators)
        before = store.newest(self._series, warm_up, before=candles[0].time)
        columns = Columns.of([*before, *candles])
        found: dict[str, Values] = {}
        for indicator in self._indicators:
            found.update(indicator.compute(self._series.timeframe, columns, len(before)))
        return found

    def _structure_values(self, store: CandleStore, candles: Sequence[Candle]) -> dict[str, Values]:
        if not self._structure:
            return {}
        outside = values_at(store, self._series, self._needed, candles)
        graph = self._step.factors
        rows: list[tuple[float | int | str | None, ...]] = []
        try:
            states = self._states_before(store, candles)
            for at, candle in enumerate(candles):
                beside = None if outside is None else outside[at : at + 1]
                states, said = graph.advance_many(states, (candle,), beside)
                rows.append(self._row(states, said, candle.time))
        except (FactorFault, ForeignStates) as error:
            raise FactorsLag(f"{self._series}: its factors cannot be computed: {error}") from error
        self._states, self._at = states, candles[-1].time
        names = [name for columns in self._structure for name in columns]
        return dict(zip(names, zip(*rows, strict=True), strict=True))

    def _states_before(self, store: CandleStore, candles: Sequence[Candle]) -> States:
        """The states before the first of the candles, which the ledger has to have come beyond."""
        series = self._series
        ledger = store.ledger.get(series)
        if ledger is None or not self._step.computed(ledger):
            why = "have not been computed" if ledger is None else "were computed with other settings or versions"
            raise FactorsLag(f"{series}: its factors {why}; the service does that, with the same flags")
        if ledger.factor_head is None or ledger.factor_head < candles[-1].time:
            raise FactorsLag(f"{series}: its factors lag behind its candles; the service brings them up to date")
        before = store.newest(series, 1, before=candles[0].time)
        at = before[0].time if before else None
        if self._epoch != ledger.epoch or self._at != at or at is None:
            self._states = self._step.states.at(store, series, at)
            self._epoch = ledger.epoch
        return self._states

    def _row(self, states: States, said: Sequence[Said], time: int) -> tuple[float | int | str | None, ...]:
        """In the order of the columns."""
        row: list[float | int | str | None] = []
        for columns in self._structure:
            if columns is _PIVOT:
                row += _pivot(said)
            elif columns is _PEN:
                row += _pen(states["pen"], time)
            elif columns is _ZHONGSHU:
                row += _zhongshu(states["zhongshu"])
            else:
                row += _anchor(states["anchor"])
        return tuple(row)


def _pivot(said: Sequence[Said]) -> tuple[float | int | str | None, ...]:
    # Both a high and a low of one candle can be pivots.
    time = None
    price: dict[str, float | int | None] = {"resistance": None, "support": None}
    for factor, event in said:
        if factor == "pivot":
            at, value, direction = event["pivot_time"], event["pivot_price"], event["direction"]
            assert isinstance(at, int), "the factor is ours"
            assert isinstance(value, (int, float)), "the factor is ours"
            time, price[str(direction)] = at, value
    return time, price["resistance"], price["support"]


def _pen(state: object, time: int) -> tuple[float | int | str | None, ...]:
    assert isinstance(state, PenState), "its seed is one"
    pen = state.extending(time)
    if pen is None:
        return (None,) * len(_PEN)
    return pen.direction, pen.start_time, pen.start_price, pen.end_time, pen.end_price


def _zhongshu(state: object) -> tuple[float | int | str | None, ...]:
    assert isinstance(state, ZhongshuState), "its seed is one"
    zone = state.alive
    return (None,) * len(_ZHONGSHU) if zone is None else (zone.zg, zone.zd, zone.start_time)


def _anchor(state: object) -> tuple[float | int | str | None, ...]:
    assert isinstance(state, AnchorState), "its seed is one"
    anchor = state.current
    if anchor is None:
        return (None,) * len(_ANCHOR)
    return anchor.kind, anchor.direction, anchor.start_time, anchor.end_time
