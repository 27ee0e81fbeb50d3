"""A service of drawings in front of a real service of candles: what the page asks of it is answered in the browser."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

import msgspec
from playwright.sync_api import Page, Route

from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId
from klinesync.factor.graph import FactorGraph
from klinesync.factor.plugin import Event, FactorSettings
from klinesync.factor.structure import structure
from klinesync.overlay.delta import Cursor, DrawDelta, compose
from klinesync.overlay.graph import OverlayGraph
from klinesync.overlay.instruction import Instruction, Point
from klinesync.overlay.plugin import View
from klinesync.overlay.structure import AnchorOverlay, PenOverlay, PivotOverlay, ZhongshuOverlay

# Short windows, so that a few hundred candles have structure.
FACTORS = FactorGraph(structure(FactorSettings(pivot_window_major=12, pivot_window_minor=4)))
OVERLAYS = OverlayGraph([PivotOverlay(), PenOverlay(), ZhongshuOverlay(), AnchorOverlay()], FACTORS.names)
INDICATORS = [
    {"key": "sma_20", "label": "SMA(20)", "default_visible": True, "pane": "price", "sub_features": []},
    {"key": "body", "label": "Body", "default_visible": True, "pane": "own", "sub_features": []},
]


@dataclass
class DrawingService:
    """Answers `factor/catalog` and `draw/delta` of one page."""

    url: str
    epoch: int = 1
    lagging: bool = False
    # Moves the average, so that values of one epoch can be told from another's.
    shift: float = 0.0
    asked: list[Mapping[str, str]] = field(default_factory=list)

    def stand_before(self, page: Page) -> None:
        page.route("**/api/factor/catalog", self._catalogue)
        page.route("**/api/draw/delta?*", self._delta)

    def _catalogue(self, route: Route) -> None:
        route.fulfill(json={"schema_version": 1, "factors": [*FACTORS.catalog(), *INDICATORS]})

    def _delta(self, route: Route) -> None:
        query = {name: values[0] for name, values in parse_qs(urlsplit(route.request.url).query).items()}
        self.asked.append(query)
        if self.lagging:
            code = "ledger_out_of_sync:overlay"
            route.fulfill(status=409, json={"detail": code, "code": code})
        else:
            route.fulfill(body=msgspec.json.encode(self._answer(query)), content_type="application/json")

    def _answer(self, query: Mapping[str, str]) -> DrawDelta:
        series = SeriesId.parse(query["series_id"])
        candles = self._candles(query)
        states, said = FACTORS.advance_many(FACTORS.seed(), candles)
        events: dict[str, list[Event]] = {}
        for factor, event in said:
            events.setdefault(factor, []).append(event)
        stored = [Instruction.numbered(number, one) for number, one in enumerate(OVERLAYS.draw(said), 1)]
        first, last = candles[0].time, candles[-1].time
        averages = [
            Point(candles[at].time, self.shift + sum(one.close for one in candles[at - 19 : at + 1]) / 20)
            for at in range(19, len(candles))
        ]
        cursor = None
        if "cursor_version_id" in query:
            cursor = Cursor(int(query["cursor_version_id"]), int(query["cursor_point_time"]))
        return compose(
            series,
            self.epoch,
            start_time=first,
            at_time=last,
            version_id=len(stored),
            stored=stored,
            rendered=OVERLAYS.render(View(series, first, last, FACTORS.heads(states, candles[-1]), events, candles)),
            points={"sma_20": averages, "body": [Point(one.time, one.close - one.open) for one in candles]},
            cursor=cursor,
            cursor_epoch=int(query["epoch"]) if "epoch" in query else None,
        )

    def _candles(self, query: Mapping[str, str]) -> list[Candle]:
        path = f"api/market/candles?series_id={query['series_id']}&limit={query['window_candles']}"
        with urllib.request.urlopen(f"{self.url}{path}") as answer:
            rows = json.load(answer)["candles"]
        fields = ("candle_time", "open", "high", "low", "close", "volume")
        return [Candle(*(row[name] for name in fields)) for row in rows]
