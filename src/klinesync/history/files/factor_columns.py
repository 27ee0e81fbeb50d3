"""FactorColumns: factors and indicators as columns beside candles, for strategies and machine learning.

The row of a candle has what was known at its close and nothing later: the answer of `GET /api/factor/slices` with that
`at_time`. Indicators, and factors with outputs, have a column for each output. A major pivot is in the row of the
candle at which the pivot became visible, not in the row of the pivot itself. The pen is the extending pen, the zhongshu
the living zone, and the anchor the current anchor, as of the candle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

from klinesync.core.candle import Candle
from klinesync.core.errors import KlinesyncError
from klinesync.core.series_id import SeriesId
from klinesync.factor.anchor import AnchorState
from klinesync.factor.columns import Floats
from klinesync.factor.graph import Said, States
from klinesync.factor.indicator import Indicator
from klinesync.factor.pen import PenState
from klinesync.factor.pivot import PivotState
from klinesync.factor.plugin import BadFactor, FactorFault, ForeignStates
from klinesync.factor.zhongshu import ZhongshuState
from klinesync.pipelines.factor_states import outputs_at, values_at
from klinesync.pipelines.ledger_step import LedgerStep
from klinesync.storage.candles import CandleStore

Kind = Literal["number", "integer", "text"]
# None (NaN in a column of floats) where a factor says nothing.
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
# The columns of the built-in factors, which are recognised by the type of their state.
_STRUCTURE: Sequence[tuple[str, type[object], Mapping[str, Kind]]] = (
    ("pivot", PivotState, _PIVOT),
    ("pen", PenState, _PEN),
    ("zhongshu", ZhongshuState, _ZHONGSHU),
    ("anchor", AnchorState, _ANCHOR),
)


class FactorsLag(KlinesyncError):
    """The ledger lags behind the candles, or was computed by other factors."""

    code = "ledger_out_of_sync:factor"


class FactorColumns:
    """The columns of a series, page by page. Of the factors of plugins, outputs have columns, events have none.

    step: has the factors, and their stored states.
    indicators: that get columns.
    series: whose candles.

    Raises `BadFactor` for an output with the name of another column.
    """

    def __init__(self, step: LedgerStep, indicators: Sequence[Indicator], series: SeriesId) -> None:
        self._step = step
        self._indicators = tuple(indicators)
        self._needed = [indicator for indicator in indicators if indicator.name in step.factors.outside]
        self._series = series
        seed = step.factors.seed()
        self._structure = [columns for name, state, columns in _STRUCTURE if isinstance(seed.get(name), state)]
        taken = {name for columns in self._structure for name in columns}
        for name, keys in step.factors.keys_by_factor.items():
            if taken.intersection(keys):
                raise BadFactor(name, "its output would be mistaken for another column of an export; rename it")
        # The states after the candle of `_at`, from the record `_record_id` of the ledger.
        self._states: States = seed
        self._at: int | None = None
        self._record_id = -1

    @property
    def kinds(self) -> dict[str, Kind]:
        """Names and types of the columns."""
        kinds: dict[str, Kind] = {output.key: "number" for item in self._indicators for output in item.outputs}
        kinds |= dict.fromkeys(self._step.factors.output_keys, "number")
        for columns in self._structure:
            kinds |= columns
        return kinds

    def of(self, store: CandleStore, candles: Sequence[Candle]) -> dict[str, Values]:
        """The columns at consecutive stored candles. Cheap when the candles follow those of the last call. Raises
        `FactorsLag`."""
        if not candles:
            return dict.fromkeys(self.kinds, ())
        values: dict[str, Values] = {}
        for outputs in outputs_at(store, self._series, self._indicators, candles).values():
            values.update(outputs)
        return values | self._factor_values(store, candles)

    def _factor_values(self, store: CandleStore, candles: Sequence[Candle]) -> dict[str, Values]:
        graph = self._step.factors
        if not (self._structure or graph.output_keys):
            return {}
        outside = values_at(store, self._series, self._needed, candles)
        rows: list[tuple[float | int | str | None, ...]] = []
        try:
            states = self._states_before(store, candles)
            for at, candle in enumerate(candles):
                beside = None if outside is None else outside[at : at + 1]
                states, said = graph.advance_many(states, (candle,), beside)
                rows.append((*self._row(states, said, candle.time), *graph.numbers(states, candle.time).values()))
        except (FactorFault, ForeignStates) as error:
            raise FactorsLag(f"{self._series}: its factors cannot be computed: {error}") from error
        self._states, self._at = states, candles[-1].time
        names = [*(name for columns in self._structure for name in columns), *graph.output_keys]
        return dict(zip(names, zip(*rows, strict=True), strict=True))

    def _states_before(self, store: CandleStore, candles: Sequence[Candle]) -> States:
        """The states before the first candle. Raises `FactorsLag` unless the ledger covers all the candles."""
        series = self._series
        ledger = store.ledger.get(series)
        if ledger is None or not self._step.computed(ledger):
            raise FactorsLag(
                f"{series}: its factors have not been computed; a running service computes them, with its flags"
                if ledger is None
                else f"{series}: its factors were computed with other settings than the flags of this command, or by "
                "another version; give the flags of the service (indicators, factor_pivot_window_major …)"
            )
        if ledger.factor_head is None or ledger.factor_head < candles[-1].time:
            raise FactorsLag(f"{series}: its factors lag behind its candles; the service brings them up to date")
        before = store.newest(series, 1, before=candles[0].time)
        at = before[0].time if before else None
        # Not the epoch: it stays when order flow is filled in, which changes states.
        if self._record_id != ledger.record_id or self._at != at or at is None:
            self._states = self._step.states.at(store, series, at)
            self._record_id = ledger.record_id
        return self._states

    def _row(self, states: States, said: Sequence[Said], time: int) -> tuple[float | int | str | None, ...]:
        """The values of a candle, in the order of the columns."""
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
