"""The store against a model, over failing transactions, savepoints that are rolled back, and restarts: the writer's
memory and buffers always agree with the stored rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import apsw
from hypothesis import given, settings
from hypothesis import strategies as st

from klinesync.core.candle import MAX_TIME, Candle
from klinesync.core.gaps import Gap, GapChange, GapState
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.factor.graph import Said
from klinesync.overlay.instruction import Drawing, Instruction, Marker
from klinesync.storage.candles import CandleStore
from klinesync.storage.memory import Memory
from klinesync.storage.records import Ledger, Origin
from klinesync.storage.sqlite_file import SqliteFile
from klinesync.storage.sqlite_tables import SqliteTables
from support.candles import FLOWS, Flow, stored_over
from support.thorough import examples

SERIES = [SeriesId.parse(f"binance:spot:{name}/USDT:1m") for name in ("BTC", "ETH")]
# Over four chunks, so that candles are packed, corrected in their chunks, and read across chunks.
MINUTES = 900


class Undone(Exception):
    """How a transaction, or a savepoint within, ends."""


@dataclass
class Content:
    """The model's rows of a series."""

    candles: dict[int, Candle] = field(default_factory=dict)
    revised: list[Candle] = field(default_factory=list)
    gaps: dict[int, Gap] = field(default_factory=dict)
    ledger: Ledger | None = None
    events: list[Said] = field(default_factory=list)
    versions: dict[int, int] = field(default_factory=dict)  # by version, when it became visible
    checkpoints: dict[int, bool] = field(default_factory=dict)  # by time, whether it is kept

    def copy(self) -> Content:
        return Content(
            dict(self.candles),
            list(self.revised),
            dict(self.gaps),
            self.ledger,
            list(self.events),
            dict(self.versions),
            dict(self.checkpoints),
        )


Model = dict[SeriesId, Content]
Step = Callable[[CandleStore, Model], None]


def candle(minute: int, value: int, flow: Flow = FLOWS[0]) -> Candle:
    return Candle(minute * 60, 1.0, 9.0, 0.5, 1.0 + value, 2.0, *flow)


def revises(was: Candle | None, now: Candle) -> bool:
    """Whether `now` has a value that differs from one in `was`."""
    return was is not None and any(
        None not in (before, after) and before != after for before, after in zip(was, now, strict=True)
    )


def drawing(version: int, time: int) -> Instruction:
    return Instruction.numbered(
        version, Drawing(f"d{version}", time, Marker("toy.mark", time, "aboveBar", "red", "circle"))
    )


@st.composite
def writes(draw: st.DrawFn) -> Step:
    series = draw(st.sampled_from(SERIES))
    start, count, value = draw(st.integers(0, MINUTES)), draw(st.sampled_from((1, 1, 3, 300))), draw(st.integers(0, 2))
    flow = draw(st.sampled_from(FLOWS))

    def step(store: CandleStore, model: Model) -> None:
        batch = [candle(minute, value, flow) for minute in range(start, start + count)]
        applied = store.write(series, batch, Origin("test", 0))
        content = model.setdefault(series, Content())
        before = dict(content.candles)
        head = max(before, default=-1)
        content.candles |= {row.time: stored_over(before.get(row.time), row) for row in batch}
        changed = [content.candles[row.time] for row in batch if content.candles[row.time] != before.get(row.time)]
        revised = [row for row in changed if revises(before.get(row.time), row)]
        content.revised += [before[row.time] for row in revised]
        assert list(applied.candles) == changed
        late = {row.time for row in changed if row.time not in before and row.time < head}
        assert applied.revised == late.union(row.time for row in revised)
        enriched = {row.time for row in changed if row.time in before} - applied.revised
        assert applied.rounded == applied.enriched == enriched
        assert applied.flow_revised == {row.time for row in revised if row[:6] == before[row.time][:6]}

    return step


@st.composite
def appends(draw: st.DrawFn) -> Step:
    """Single candles from the one behind the head on, or elsewhere."""
    series, value = draw(st.sampled_from(SERIES)), draw(st.integers(0, 2))
    offset, count = draw(st.sampled_from((1, 1, 1, 0, 2, -1))), draw(st.sampled_from((1, 1, 5, 20)))

    def step(store: CandleStore, model: Model) -> None:
        content = model.get(series)
        head = max(content.candles, default=0) if content is not None else 0
        for minute in range(head // 60 + offset, head // 60 + offset + count):
            newest = max(content.candles, default=None) if content is not None else None
            row = candle(max(minute, 0), value)
            applied = store.append(series, row)
            if applied is None:
                continue
            assert content is not None
            assert newest is not None
            assert row.time == newest + 60, "a candle behind the head"
            assert (applied.candles, applied.revised) == ((row,), frozenset())
            content.candles[row.time] = row
            remembered = store.remembered(series, row.time - 120, row.time + 60)
            if remembered is not None:
                assert list(remembered) == [content.candles[row.time - back] for back in (120, 60, 0)]

    return step


@st.composite
def trims(draw: st.DrawFn) -> Step:
    series, before = draw(st.sampled_from(SERIES)), draw(st.integers(0, MINUTES)) * 60

    def step(store: CandleStore, model: Model) -> None:
        content = model.get(series)
        if content is None or all(time < before for time in content.candles):
            return
        store.trim(series, before)
        content.candles = {time: row for time, row in content.candles.items() if time >= before}
        content.revised = [row for row in content.revised if row.time >= before]

    return step


@st.composite
def gap_changes(draw: st.DrawFn) -> Step:
    series, start = draw(st.sampled_from(SERIES)), draw(st.integers(0, 5)) * 120

    def step(store: CandleStore, model: Model) -> None:
        content = model.get(series)
        if content is None:
            return
        gap = Gap(start, start + 60, GapState.UNKNOWN, None, None)
        if start in content.gaps:
            store.change_gaps(series, GapChange(delete=(content.gaps.pop(start),), insert=()))
        else:
            store.change_gaps(series, GapChange(delete=(), insert=(gap,)))
            content.gaps[start] = gap

    return step


@st.composite
def ledger_steps(draw: st.DrawFn) -> Step:
    """One candle of a factor: an event, a drawing, a checkpoint and the ledger; or a rewind."""
    series, rewinds = draw(st.sampled_from(SERIES)), draw(st.sampled_from((False, False, False, True)))
    back, kept = draw(st.integers(1, 4)), draw(st.booleans())

    def step(store: CandleStore, model: Model) -> None:
        content = model.get(series)
        if content is None:
            return
        was = content.ledger or Ledger("ours")
        if rewinds and was.factor_head is not None:
            time = was.factor_head - back * 60
            store.ledger.rewind(series, time)
            content.events = [said for said in content.events if _time(said) < time]
            content.versions = {version: at for version, at in content.versions.items() if at < time}
            content.checkpoints = {at: keeps for at, keeps in content.checkpoints.items() if at < time}
            version = max(content.versions, default=0)
            assert store.ledger.newest_version(series, time) == version
            ledger = was._replace(epoch=was.epoch + 1, factor_head=max(time - 60, 0), version_id=version)
        else:
            time = 0 if was.factor_head is None else was.factor_head + 60
            said = Said("pen", {"visible_time": time, "n": was.record_id})
            store.ledger.add_events(series, [said])
            store.ledger.add_drawings(series, [drawing(was.version_id + 1, time)])
            store.ledger.add_checkpoint(series, time, b"states", kept=kept)
            content.events.append(said)
            content.versions[was.version_id + 1] = time
            content.checkpoints = {at: keeps for at, keeps in content.checkpoints.items() if keeps or at >= time} | {
                time: kept
            }
            ledger = was._replace(record_id=was.record_id + 1, factor_head=time, version_id=was.version_id + 1)
        store.ledger.put(series, ledger)
        content.ledger = ledger

    return step


def _time(said: Said) -> int:
    time = said.event["visible_time"]
    assert isinstance(time, int)
    return time


@st.composite
def transactions(draw: st.DrawFn) -> tuple[list[tuple[list[Step], bool]], bool]:
    """Parts, each with or without a savepoint of its own, and whether the part, or the whole transaction, is rolled
    back."""
    step = st.one_of(writes(), writes(), appends(), trims(), gap_changes(), ledger_steps(), ledger_steps())
    part = st.tuples(st.lists(step, max_size=4), st.booleans())
    return draw(st.lists(part, min_size=1, max_size=3)), draw(st.sampled_from((False, False, True)))


def compare(store: CandleStore, model: Model) -> None:
    assert set(store.series()) == set(model)
    assert store.heads() == {series: max(content.candles) for series, content in model.items() if content.candles}
    for series in SERIES:
        content = model.get(series, Content())
        ascending = [content.candles[time] for time in sorted(content.candles)]
        assert (store.first(series), store.head(series)) == (
            (ascending[0].time, ascending[-1].time) if ascending else (None, None)
        )
        assert store.newest(series, MINUTES * 2) == ascending
        assert store.newest(series, 3) == ascending[-3:]
        assert store.oldest(series, 300, since=-1) == ascending[:300]
        middle = MINUTES * 30
        assert store.between(series, middle, MAX_TIME) == [row for row in ascending if row.time >= middle]
        assert store.count_after(series, middle, 10_000) == sum(row.time > middle for row in ascending)
        assert [revision.was for revision in store.revisions(series)] == content.revised
        assert store.gaps(series) == [content.gaps[start] for start in sorted(content.gaps)]
        assert store.ledger.get(series) == content.ledger
        assert store.ledger.events(series, 0, MAX_TIME) == content.events
        assert [drawing.version_id for drawing in store.ledger.drawings(series, 0, MAX_TIME)] == sorted(
            content.versions
        )
        assert list(checkpoints(store, series)) == sorted(content.checkpoints, reverse=True)


def checkpoints(store: CandleStore, series: SeriesId) -> Iterator[int]:
    before = MAX_TIME
    while (found := store.ledger.checkpoint(series, before)) is not None:
        before, _ = found
        yield before


def carry_out(parts: list[tuple[list[Step], bool]], store: CandleStore, model: Model) -> Model:
    for steps, undone in parts:
        fork = {series: content.copy() for series, content in model.items()}
        with suppress(Undone), store.savepoint():
            for step in steps:
                step(store, fork)
            if undone:
                raise Undone
            model = fork
    return model


@settings(max_examples=examples(80), deadline=None)
@given(st.lists(st.tuples(transactions(), st.booleans()), min_size=1, max_size=6))
def test_what_the_writer_remembers_is_what_is_stored(
    history: list[tuple[tuple[list[tuple[list[Step], bool]], bool], bool]],
) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "store.sqlite"
        file = SqliteFile(path)
        file.open()
        model: Model = {}
        for (parts, fails), restarts in history:
            found: list[Model] = []

            def change(store: CandleStore, parts=parts, fails=fails, found=found, was=model) -> None:  # type: ignore[no-untyped-def]
                found.append(carry_out(parts, store, was))
                if fails:
                    raise Undone

            with suppress(Undone):
                file.write(change)
            if not fails:
                model = found[0]
            if restarts:
                file.close()
                file = SqliteFile(path)
                file.open()
            file.write(lambda store, now=model: compare(store, now))  # type: ignore[misc]
            reader = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
            compare(CandleStore(SqliteTables(reader), Memory(writes=False)), model)
            reader.close()
        file.close()


def test_a_transaction_that_fails_costs_no_other_series_what_is_remembered(tmp_path: Path) -> None:
    """One plugin's fault used to make the next minute of all series read everything from the store again."""
    file = SqliteFile(tmp_path / "store.sqlite")
    file.open()
    btc, eth = SERIES
    for series in SERIES:
        file.write(lambda store, one=series: store.write(one, [candle(1, 0)], Origin("test", 0)))  # type: ignore[misc]
    asked: list[str] = []
    assert file._writer is not None

    def fail(store: CandleStore) -> None:
        store.write(btc, [candle(2, 0)], Origin("test", 0))
        raise Undone

    with suppress(Undone):
        file.write(fail)
    file._writer.trace_v2(apsw.SQLITE_TRACE_STMT, lambda event: asked.append(event["sql"]))
    file.write(lambda store: (store.head(eth), store.head(btc), store.gaps(eth), store.ledger.get(eth)))
    file._writer.trace_v2(0, None)
    file.close()
    assert not [statement for statement in asked if "SELECT" in statement], asked


def test_rows_that_contradict_what_is_stored_are_damage_of_their_series_alone(tmp_path: Path) -> None:
    file = SqliteFile(tmp_path / "store.sqlite")
    file.open()
    btc, eth = SERIES
    for series in SERIES:
        file.write(lambda store, one=series: store.write(one, [candle(1, 0)], Origin("test", 0)))  # type: ignore[misc]
        file.write(lambda store, one=series: store.ledger.put(one, Ledger("ours")))  # type: ignore[misc]
    file.write(lambda store: store.ledger.add_drawings(eth, [drawing(1, 60)]))

    def both(store: CandleStore) -> None:
        for series in SERIES:
            store.ledger.add_drawings(series, [drawing(1, 60)])

    with suppress(Exception):
        file.write(both)
    assert {damage.series for damage in file.damage.parts()} == {eth}
    assert file.write(lambda store: store.ledger.drawings(btc, 0, MAX_TIME)) == []
    file.close()


def test_span_is_that_of_the_stored_candles(tmp_path: Path) -> None:
    file = SqliteFile(tmp_path / "store.sqlite")
    file.open()
    file.write(lambda store: store.write(SERIES[0], [candle(1, 0), candle(5, 0)], Origin("test", 0)))
    assert file.write(lambda store: (store.span(SERIES[0]), store.span(SERIES[1]))) == (Span(60, 360), None)
    file.close()
