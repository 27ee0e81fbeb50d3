"""Publisher: tells its subscribers of each commit, in a fixed order.

A subscriber may need a part that needs the pipeline, and the pipeline needs the publisher. The publisher is therefore
made first, and its subscribers are bound when all of them exist, before the first write.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from klinesync.core.candle import Applied
from klinesync.core.series_id import SeriesId
from klinesync.runtime.bulkheads import Bulkheads, Part

# Receives the changes of one series in one commit, and returns at once.
Take = Callable[[Applied], None]
# Repairs a series after a defect of `Take` left it half done.
Recover = Callable[[SeriesId], None]


@dataclass(frozen=True, slots=True)
class Subscriber:
    """A part that receives each commit.

    name: unique among subscribers; in logs and health.
    take: is called after each commit, in the order of the commits.
    recover: is called after a defect in `take`; None where a missed commit does no harm.
    """

    name: str
    take: Take
    recover: Recover | None = None


class Publisher:
    """Calls the subscribers, in the order in which they are bound. A defect of one does not affect the others."""

    def __init__(self, bulkheads: Bulkheads) -> None:
        self._bulkheads = bulkheads
        self._subscribers: tuple[Subscriber, ...] | None = None

    @property
    def order(self) -> tuple[str, ...]:
        """The names of the subscribers, in the order in which they are called."""
        return tuple(subscriber.name for subscriber in self._subscribers or ())

    def bind(self, subscribers: tuple[Subscriber, ...]) -> None:
        """Set the subscribers; called once."""
        assert self._subscribers is None, "the subscribers are bound once"
        self._subscribers = subscribers
        assert len(set(self.order)) == len(subscribers), "names are unique"

    def publish(self, applied: Applied) -> None:
        """Publish a commit to every subscriber. Never raises, and never waits."""
        assert self._subscribers is not None, "subscribers are bound before the first commit"
        for subscriber in self._subscribers:
            try:
                subscriber.take(applied)
            except Exception as error:  # noqa: BLE001  # a bulkhead, without the cost of `contained` for each commit
                series = applied.series
                recover = None if subscriber.recover is None else partial(subscriber.recover, series)
                self._bulkheads.met(Part.PUBLISH, f"{subscriber.name}: {series}", error, recover)
