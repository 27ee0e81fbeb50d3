"""The order in which subscribers get a commit, and that a defect of one does not affect the others."""

from __future__ import annotations

import pytest

from klinesync.core.candle import Applied, Candle
from klinesync.core.series_id import SeriesId
from klinesync.pipelines.publishing import Publisher, Subscriber
from klinesync.runtime.bulkheads import Bulkheads, Part

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
APPLIED = Applied(BTC, (Candle(60, 1.0, 2.0, 0.5, 1.5, 3.0),), frozenset(), commit=1)


class Told:
    """Records the calls of subscribers."""

    def __init__(self) -> None:
        self.events: list[tuple[str, object]] = []

    def subscriber(self, name: str, *, breaks: bool = False) -> Subscriber:
        def take(applied: Applied) -> None:
            self.events.append((name, applied))
            if breaks:
                raise LookupError(name)

        return Subscriber(name, take, lambda series: self.events.append((f"recover {name}", series)))


async def test_subscribers_get_a_commit_in_the_order_of_binding() -> None:
    told, publisher = Told(), Publisher(Bulkheads())
    publisher.bind(tuple(map(told.subscriber, "cab")))
    publisher.publish(APPLIED)
    assert publisher.order == ("c", "a", "b")
    assert told.events == [("c", APPLIED), ("a", APPLIED), ("b", APPLIED)]


async def test_a_defect_of_a_subscriber_recovers_its_series_and_spares_the_next_subscriber() -> None:
    told, bulkheads = Told(), Bulkheads()
    publisher = Publisher(bulkheads)
    publisher.bind((told.subscriber("a", breaks=True), Subscriber("b", told.subscriber("b", breaks=True).take)))
    publisher.publish(APPLIED)
    publisher.publish(APPLIED)
    assert told.events == [("a", APPLIED), ("recover a", BTC), ("b", APPLIED)] * 2
    assert bulkheads.counts == {Part.PUBLISH: 4}


async def test_subscribers_are_bound_once_and_before_the_first_commit() -> None:
    told, publisher = Told(), Publisher(Bulkheads())
    with pytest.raises(AssertionError, match="before the first commit"):
        publisher.publish(APPLIED)
    publisher.bind((told.subscriber("a"),))
    with pytest.raises(AssertionError, match="once"):
        publisher.bind((told.subscriber("b"),))
    with pytest.raises(AssertionError, match="unique"):
        Publisher(Bulkheads()).bind((told.subscriber("a"), told.subscriber("a")))
