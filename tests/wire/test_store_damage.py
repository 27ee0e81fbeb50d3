"""Unreadable stored candles are reported by health, status, the log and `verify`; pages declare the hole, and other
candles and series are served and written as before."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from math import sin
from pathlib import Path

import apsw
import pytest

from klinesync.cli import main
from klinesync.core.candle import Candle
from klinesync.core.errors import StoreError
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.core.timeframe import Timeframe
from klinesync.market.surroundings import Surroundings
from klinesync.market.tuning import USUAL_TUNING, Tuning
from klinesync.market_data import store_scrub
from klinesync.market_data.store_healer import HealTimings
from klinesync.market_data.store_scrub import ScrubLimits
from klinesync.storage import damage
from klinesync.storage.candles import CandleStore
from klinesync.storage.chunks import first_time
from klinesync.storage.damage import Damage, Kept, StoreDamaged
from klinesync.storage.memory import Memory
from klinesync.storage.records import Origin
from klinesync.storage.sqlite import SqliteDatabase
from klinesync.storage.sqlite_reader import SqliteReader
from klinesync.storage.sqlite_tables import SqliteTables
from support.running_service import Service, running_service

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
ETH = SeriesId.parse("binance:spot:ETH/USDT:1m")
START = 1_700_006_400 // 86400 * 86400
COUNT = 2000
ROWS = 66
POLL_S = 0.02
PAGE_BYTES = 4096
AT_ONCE = ScrubLimits(begins_s=0.0)
READ_AT_ONCE = Tuning(scrub=AT_ONCE)
# Damage stays as it is, as it does until the healer has come to it.
NEVER = HealTimings(look_s=1e6)
UNHEALED = Tuning(healing=NEVER)


def candle(number: int, more: float = 0.0) -> Candle:
    """All candles differ, with pivots, and with values that hardly compress: a chunk takes several pages."""
    noise = [abs(sin(number + 0.1 * column)) for column in range(5)]
    high = 2.0 + number / 1000 + abs(number % 60 - 30) + more + noise[0]
    return Candle(START + number * 60, 1.0 + noise[1], high, 0.5 + noise[2] / 2, 1.5 + noise[3] / 2, noise[4])


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "store.sqlite"

    async def fill() -> None:
        async with SqliteDatabase(path) as database:
            for series, more in ((BTC, 0.0), (ETH, 0.25)):
                # The newest ones are more rows than usual: they fill pages of their own.
                for numbers in (range(COUNT - ROWS), range(COUNT - ROWS, COUNT)):
                    rows = [candle(number, more) for number in numbers]
                    await database.write(lambda store, to=series, rows=rows: store.write(to, rows, Origin("test", 1)))  # type: ignore[misc]

    asyncio.run(fill())
    return path


def spoil(store: Path, statement: str, which: int = 2) -> tuple[int, int]:
    """Execute a statement on a chunk of BTC, whose rowid is `:id`. Returns its first and last open time."""
    connection = apsw.Connection(str(store))
    number = connection.execute("SELECT series_no FROM series WHERE series_id = ?", (str(BTC),)).get
    assert isinstance(number, int)
    chunk_id, packed = connection.execute(
        "SELECT chunk_id, candles FROM candle_chunk WHERE chunk_id >= ? ORDER BY chunk_id LIMIT 1 OFFSET ?",
        (number << 32, which),
    ).get
    connection.execute(statement, {"id": chunk_id})
    connection.close()
    return first_time(packed), int.from_bytes(packed[8:16], "little")


def put_back(store: CandleStore, chunks: Sequence[tuple[object, ...]]) -> None:
    """Restore the chunks (id, bytes), in the transaction of `store`."""
    assert isinstance(store, CandleStore)
    assert isinstance(store.tables, SqliteTables)
    store.tables._connection.executemany("UPDATE candle_chunk SET candles = ?2 WHERE chunk_id = ?1", chunks)


@asynccontextmanager
async def service_on(store: Path, tuning: Tuning = USUAL_TUNING) -> AsyncIterator[Service]:
    around, flags = Surroundings(tuning=tuning), {"derived_timeframes": "5m,1h", "enable_ondemand_ingest": "off"}
    async with running_service(store, None, None, around, **flags) as service:
        yield service


async def page(service: Service, series: SeriesId = BTC, **more: int) -> dict[str, object]:
    status, answer = await service.get("/api/market/candles", series_id=str(series), limit=5000, **more)
    assert status == 200
    return answer


async def wait_for_health(service: Service, reason: str) -> dict[str, object]:
    async with asyncio.timeout(60):
        while True:
            status, answer = await service.get("/api/market/health", series_id=str(BTC))
            if status == 200 and answer["status_reason"] == reason:
                return answer
            await asyncio.sleep(POLL_S)


async def wait_for_health_without_damage(service: Service) -> None:
    async with asyncio.timeout(60):
        reason: object = "store_damaged"
        while reason == "store_damaged":
            _, answer = await service.get("/api/market/health", series_id=str(BTC))
            reason = answer["status_reason"]
            await asyncio.sleep(POLL_S)


CUT = "UPDATE candle_chunk SET candles = substr(candles, 1, length(candles) - 1) WHERE chunk_id = :id"
EMPTY = "UPDATE candle_chunk SET candles = zeroblob(0) WHERE chunk_id = :id"
NOISE = "UPDATE candle_chunk SET candles = randomblob(length(candles)) WHERE chunk_id = :id"
SWAPPED_BIT = (
    "UPDATE candle_chunk SET candles = CAST(substr(candles, 1, 80) || x'ff' || substr(candles, 82) AS BLOB)"
    " WHERE chunk_id = :id"
)


@pytest.mark.parametrize("statement", [CUT, EMPTY, NOISE, SWAPPED_BIT])
async def test_an_unreadable_chunk_is_red_is_logged_once_and_is_a_declared_hole(
    store: Path,
    statement: str,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, last = spoil(store, statement)
    async with service_on(store, UNHEALED) as service:
        found = await page(service)
        times = [row["candle_time"] for row in found["candles"]]  # type: ignore[attr-defined]
        assert times == [t for t in range(START, START + COUNT * 60, 60) if not first <= t <= last]
        assert found["gaps"] == [{"start_time": first, "end_time": last + 60, "state": "unknown"}]
        assert await page(service) == found

        assert (await wait_for_health(service, "store_damaged"))["status"] == "red"
        status, whole = await service.get("/api/market/status")
        assert (status, whole["status"], whole["status_reason"]) == (200, "red", "store_damaged")
        assert whole["store"]["ok"] is False  # type: ignore[index]
        assert str(BTC) in whole["store"]["detail"]  # type: ignore[index]

        # The head advances, and so does that of the other series.
        for series in (BTC, ETH):
            body = {"series_id": str(series), "candle": dict(zip(FIELDS, candle(COUNT).ohlcv, strict=True))}
            status, answer = await service.post("/api/market/ingest/candle_closed", body)
            assert status == 200, answer
            status, answer = await service.get("/api/market/candles", series_id=str(series), limit=1)
            assert answer["server_head_time"] == START + COUNT * 60
        status, answer = await service.get("/api/market/health", series_id=str(ETH))
        assert answer["status_reason"] != "store_damaged"

        # Only candles of the damaged part are refused.
        body = {"series_id": str(BTC), "candle": dict(zip(FIELDS, Candle(first, 3, 4, 2, 3, 1).ohlcv, strict=True))}
        status, answer = await service.post("/api/market/ingest/candle_closed", body)
        assert status == 500

        async with service.http.ws_connect(service.url + "/ws/market") as socket:
            await socket.send_json(
                {"type": "subscribe", "series_id": str(BTC), "since": START - 60, "supports_batch": True}
            )
            gap = await socket.receive_json(timeout=30)
            while gap["type"] != "gap" or gap.get("reason") == "truncated":
                gap = await socket.receive_json(timeout=30)
            assert (gap["expected_next_time"], gap["actual_time"]) == (first, last + 60)
        # What is damaged is missing, and is not called stored and left out.
        async with service.http.ws_connect(service.url + "/ws/market") as socket:
            await socket.send_json({"type": "subscribe", "series_id": str(BTC), "since": first - 60})
            gap = await socket.receive_json(timeout=30)
            assert (gap["type"], gap["expected_next_time"], gap["reason"]) == ("gap", first, "missing")
        async with service.http.ws_connect(service.url + "/ws/market") as socket:
            await socket.send_json({"type": "subscribe", "series_id": str(BTC), "since": first - 120})
            assert (await socket.receive_json(timeout=30))["type"] == "candle_closed"
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("event=store.damaged")]
    assert len(lines) == 1
    assert str(BTC) in lines[0]

    assert main(["verify", "--json", f"--database-url=sqlite:///{store}", "--derived-timeframes=5m,1h"]) == 1
    audits = {row["series_id"]: row for row in json.loads(capsys.readouterr().out)["series"]}
    assert audits[str(BTC)]["differences"].get("damaged") == 1
    assert "hole_not_in_ledger" not in audits[str(BTC)]["differences"]
    assert audits[str(ETH)]["differences"].get("damaged") is None
    assert audits[str(ETH)]["candle_count"] == COUNT + 1


FIELDS = ("candle_time", "open", "high", "low", "close", "volume")


async def test_damage_is_reported_without_a_reader(store: Path) -> None:
    spoil(store, CUT)
    async with service_on(store, READ_AT_ONCE) as service:
        await wait_for_health(service, "store_damaged")


async def test_health_is_well_again_once_the_chunk_can_be_read_again(store: Path) -> None:
    connection = apsw.Connection(str(store))
    before = connection.execute("SELECT chunk_id, candles FROM candle_chunk").fetchall()
    connection.close()
    spoil(store, CUT)
    async with service_on(store, UNHEALED) as service:
        await page(service)
        await wait_for_health(service, "store_damaged")
        # In a transaction of its own, because the writer may roll back its current transaction.
        await service.runtime._database.write(lambda store: put_back(store, before))
        found = await page(service)
        assert found["gaps"] == []
        await wait_for_health_without_damage(service)


async def test_a_notice_of_damage_ends_with_the_damage_without_a_reader(store: Path) -> None:
    _, last = spoil(store, CUT)
    async with service_on(store, Tuning(scrub=ScrubLimits(begins_s=0.0, recheck_s=0.05), healing=NEVER)) as service:
        await wait_for_health(service, "store_damaged")
        for series in (BTC, BTC.with_timeframe(Timeframe.parse("5m"))):
            await service.runtime._database.write(lambda store, of=series: store.trim(of, last + 60))  # type: ignore[misc]
        await wait_for_health_without_damage(service)


async def test_damage_beyond_the_limit_of_notices_is_not_taken_for_a_gap(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(damage, "MAX_DAMAGED_PARTS", 0)
    spoil(store, CUT)
    async with SqliteDatabase(store) as database:
        found = await database.read(lambda store: store_scrub.look_for_holes(store, BTC, -1))
        assert found == store_scrub.Slice(START + (COUNT - 1) * 60, [], Span(START, START + COUNT * 60))


async def test_damage_that_is_mended_during_an_older_read_is_not_taken_for_a_gap(store: Path) -> None:
    first, last = spoil(store, CUT)
    async with SqliteDatabase(store) as database:

        def look(store: CandleStore) -> store_scrub.Slice | None:
            return store_scrub.look_for_holes(Forgetful(store), BTC, -1)  # type: ignore[arg-type]  # a proxy

        class Forgetful:
            """The board learns from another reader that the candles can be read, right after they were read here."""

            def __init__(self, store: CandleStore) -> None:
                self._store = store

            def __getattr__(self, name: str) -> object:
                database.damage.clear(BTC, Kept.CANDLES, Span(0, last + 60))
                return getattr(self._store, name)

        found = await database.read(look)
        assert found == store_scrub.Slice(START + (COUNT - 1) * 60, [], Span(START, START + COUNT * 60))
    assert first < last


def break_table(store: Path, table: str) -> None:
    """Make the first page of a table unreadable for SQLite."""
    connection = apsw.Connection(str(store))
    root = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,)).get
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    connection.close()
    assert isinstance(root, int)
    raw = bytearray(store.read_bytes())
    raw[(root - 1) * PAGE_BYTES] = 0xFF  # the kind of the page
    store.write_bytes(bytes(raw))


@pytest.mark.parametrize("table", ["ledger", "factor_event", "drawing", "checkpoint"])
async def test_an_unreadable_ledger_is_red_is_logged_once_and_loses_no_candle(
    store: Path, table: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with service_on(store) as service, asyncio.timeout(60):
        for series in (BTC, ETH):
            answer: dict[str, object] = {}
            while answer.get("factor_head_time") != START + (COUNT - 1) * 60:
                _, answer = await service.get("/api/factor/health", series_id=str(series))
                await asyncio.sleep(POLL_S)
    break_table(store, table)
    caplog.clear()
    async with service_on(store) as service:
        for number in range(COUNT, COUNT + 70):  # beyond a checkpoint
            for series in (BTC, ETH):
                body = {"series_id": str(series), "candle": dict(zip(FIELDS, candle(number).ohlcv, strict=True))}
                status, answer = await service.post("/api/market/ingest/candle_closed", body)
                assert status == 200, answer
        body = {"series_id": str(BTC), "candle": dict(zip(FIELDS, candle(COUNT, 0.5).ohlcv, strict=True))}
        status, answer = await service.post("/api/market/ingest/candle_closed", body)
        assert status == 200, answer
        for series in (BTC, ETH):
            found = await page(service, series)
            assert len(found["candles"]) == COUNT + 70  # type: ignore[arg-type]
            assert found["gaps"] == []
        _, whole = await service.get("/api/market/status")
        assert (whole["status"], whole["status_reason"]) == ("red", "store_damaged")
        assert await service.get("/readyz") == (200, {"status": "ready"})
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("event=store.damaged")]
    assert lines
    assert len(lines) == len(set(lines))
    assert not any(record.exc_info for record in caplog.records)
    lags = [record.getMessage() for record in caplog.records if "cannot catch up" in record.getMessage()]
    assert len(lags) == len(set(lags))


TABLES = [
    "series",
    "candle",
    "candle_chunk",
    "candle_revision",
    "gap",
    "commit_count",
    "backfill",
    "derivation",
    "listing",
]


@pytest.mark.parametrize("table", TABLES)
async def test_whatever_table_is_damaged_the_status_is_red_the_log_is_short_and_what_is_acknowledged_is_stored(
    store: Path, table: str, caplog: pytest.LogCaptureFixture
) -> None:
    break_table(store, table)
    async with service_on(store, READ_AT_ONCE) as service:
        acknowledged = []
        for number, more in ((COUNT, 0.0), (COUNT + 1, 0.0), (COUNT - 300, 0.5)):
            row = candle(number, more)
            body = {"series_id": str(BTC), "candle": dict(zip(FIELDS, row.ohlcv, strict=True))}
            status, answer = await service.post("/api/market/ingest/candle_closed", body)
            if status == 200:
                acknowledged.append(row)
            else:
                assert (status, answer["code"]) == (500, "ingest_failed:candles")
        status, found = await service.get("/api/market/candles", series_id=str(BTC), limit=5000)
        assert status in (200, 503)
        if acknowledged and status == 200:
            assert {row.ohlcv for row in acknowledged} <= {tuple(row.values()) for row in found["candles"]}  # type: ignore[attr-defined]
        elif acknowledged:
            assert set(acknowledged) <= set(without_names(store))
        async with asyncio.timeout(60):
            whole: dict[str, object] = {}
            while whole.get("status") != "red":
                _, whole = await service.get("/api/market/status")
                await asyncio.sleep(POLL_S)
        assert whole["status_reason"] in ("store_damaged", "store_unavailable")
        assert "damaged" in whole["store"]["detail"]  # type: ignore[index]
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("event=store.damaged")]
    assert len(lines) == len(set(lines))
    assert not any(record.exc_info for record in caplog.records)
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) < 20


def without_names(store: Path) -> list[Candle]:
    """The stored candles, read without the index of the series' names."""
    connection = apsw.Connection(str(store), flags=apsw.SQLITE_OPEN_READONLY)
    memory = Memory(writes=True)
    memory.learn(SqliteTables(connection))
    found = CandleStore(SqliteTables(connection), memory).newest(BTC, 5000)
    connection.close()
    return found


def without_types(store: Path, statement: str) -> None:
    """Execute a statement without the type checks of tables, like damaged bytes."""
    connection = apsw.Connection(str(store))
    connection.execute("PRAGMA writable_schema = ON")
    schema = connection.execute("SELECT rowid, sql FROM sqlite_schema").fetchall()
    connection.execute("UPDATE sqlite_schema SET sql = replace(sql, 'STRICT, WITHOUT ROWID', 'WITHOUT ROWID')")
    connection.execute("UPDATE sqlite_schema SET sql = replace(sql, ' STRICT', '')")
    connection.execute("UPDATE sqlite_schema SET sql = replace(sql, 'REAL NOT NULL', 'NOT NULL')")
    connection.close()
    connection = apsw.Connection(str(store))
    connection.execute(statement)
    connection.execute("PRAGMA writable_schema = ON")
    connection.executemany("UPDATE sqlite_schema SET sql = ?2 WHERE rowid = ?1", schema)
    connection.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE candle SET high = 'much' WHERE time = (SELECT max(time) FROM candle)",
        "UPDATE candle_chunk SET candles = 'text' WHERE chunk_id = (SELECT min(chunk_id) FROM candle_chunk)",
        "INSERT INTO gap VALUES (1, 0, 60, 'nonsense', NULL, NULL)",
        "UPDATE series SET series_id = 'nonsense' WHERE series_no = 2",
        "UPDATE series SET origin = 77",
    ],
)
async def test_values_of_foreign_types_are_damage(
    store: Path, statement: str, capsys: pytest.CaptureFixture[str]
) -> None:
    without_types(store, statement)
    looks: list[Callable[[CandleStore], object]] = [
        lambda look: look.series(),
        lambda look: look.newest(BTC, COUNT),
        lambda look: look.gaps(BTC),
        lambda look: look.derivation(BTC),
    ]
    damaged = 0
    with SqliteReader(store) as reader:
        for look in looks:
            try:
                reader.read(look)
            except StoreError:
                damaged += 1
    assert damaged
    try:
        async with SqliteDatabase(store) as database:
            await database.write(lambda store: store.write(BTC, [candle(COUNT)], Origin("test", 1)))
    except StoreError as error:
        assert "damaged" in str(error)  # noqa: PT017  # it may be raised, and then says so
    assert main(["verify", f"--database-url=sqlite:///{store}"]) == 1
    assert "Traceback" not in capsys.readouterr().err


async def test_readable_candles_do_not_clear_the_notice_of_a_damaged_ledger(store: Path) -> None:
    async with SqliteDatabase(store) as database:
        at = START + 60
        of_ledger = Damage(BTC, Span(at, at + 1), "nonsense", Kept.EVENTS)
        database.damage.note(of_ledger)
        await database.read(lambda store: store.oldest(BTC, COUNT, since=-1))
        assert database.damage.parts() == [of_ledger]
        assert await database.read(lambda store: store.damaged(BTC)) == []  # no candle is missing
        await database.read(lambda store: store.ledger.events(BTC, at, at + 1))
        assert database.damage.parts() == []


async def test_a_lost_chunk_is_declared_by_the_page_and_then_by_the_gap_ledger(
    store: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    first, last = spoil(store, "DELETE FROM candle_chunk WHERE chunk_id = :id")
    assert main(["verify", "--json", f"--database-url=sqlite:///{store}", "--derived-timeframes=5m", str(BTC)]) == 1
    audit = json.loads(capsys.readouterr().out)["series"][0]
    assert audit["differences"]["hole_not_in_ledger"] == 1
    async with service_on(store) as service:
        gap = {"start_time": first, "end_time": last + 60, "state": "unknown"}
        assert (await page(service))["gaps"] == [gap]
        # A gap at the edge of a page belongs to the page.
        assert (await page(service, since=first - 60))["gaps"] == [gap]
        assert (await page(service, since=first + 600))["gaps"] == [gap | {"start_time": first + 660}]
        assert (await page(service, before=last + 60))["gaps"] == [gap]
        assert (await page(service, before=first))["gaps"] == []
        async with asyncio.timeout(60):
            missing: object = 0
            while missing != (last + 60 - first) // 60:
                _, health = await service.get("/api/market/health", series_id=str(BTC))
                missing = sum(health["gaps"].values())  # type: ignore[attr-defined]
                await asyncio.sleep(POLL_S)
    assert f"event=store.hole series={BTC} span={first}..{last + 60}" in caplog.text


def cut_page(store: Path, which: int = 2) -> tuple[int, int]:
    """Cut the chain of overflow pages of a chunk of BTC: the file's bytes, not the row."""
    connection = apsw.Connection(str(store))
    first, last = spoil(store, "SELECT :id", which)
    packed = connection.execute(
        "SELECT candles FROM candle_chunk WHERE substr(candles, 1, 7) = ? ORDER BY chunk_id",
        (first.to_bytes(7, "little"),),
    ).get
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    connection.close()
    assert isinstance(packed, bytes)
    raw = bytearray(store.read_bytes())
    middle = raw.find(packed[-PAGE_BYTES - 300 : -PAGE_BYTES - 100])  # in the last page but one of the chain
    assert middle > 0
    at = middle // PAGE_BYTES * PAGE_BYTES
    raw[at : at + 4] = (1 << 30).to_bytes(4)  # the number of the next page of the chain
    store.write_bytes(bytes(raw))
    return first, last


async def test_a_damaged_page_of_a_derived_series_loses_no_base_candle(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, last = cut_page(store, 7)
    assert START + 86400 < first < last < START + 2 * 86400
    day, hour = (BTC.with_timeframe(Timeframe.parse(code)) for code in ("1d", "1h"))
    async with running_service(store, derived_timeframes="1h,1d", enable_ondemand_ingest="off") as service:
        rows = [dict(zip(FIELDS, candle(number).ohlcv, strict=True)) for number in range(COUNT, 2 * 1440)]
        body = {"series_id": str(BTC), "candles": rows}
        status, answer = await service.post("/api/market/ingest/candles_closed", body)
        assert status == 200, answer
        found = await page(service)
        assert found["server_head_time"] == START + (2 * 1440 - 1) * 60
        assert found["gaps"] == [{"start_time": first, "end_time": last + 60, "state": "unknown"}]
        hours = [row["candle_time"] for row in (await page(service, hour))["candles"]]  # type: ignore[attr-defined]
        new = range(START + -(-COUNT // 60) * 3600, START + 2 * 86400, 3600)
        assert set(new) <= set(hours)
        assert not [time for time in hours if first - 3600 < time <= last]
        status, answer = await service.get("/api/market/candles", series_id=str(day), limit=10)
        assert START + 86400 not in [row["candle_time"] for row in answer.get("candles", [])]  # type: ignore[attr-defined]
        await wait_for_health(service, "store_damaged")
        assert await service.get("/readyz") == (200, {"status": "ready"})
    assert not any(record.exc_info for record in caplog.records)


async def test_a_page_of_the_file_that_sqlite_cannot_read_loses_its_own_candles_alone(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, last = cut_page(store)
    async with service_on(store) as service:
        found = await page(service)
        assert found["gaps"] == [{"start_time": first, "end_time": last + 60, "state": "unknown"}]
        await wait_for_health(service, "store_damaged")
        assert (await page(service, ETH))["gaps"] == []
    assert "Traceback" not in caplog.text


async def test_a_batch_of_several_series_is_stored_except_for_the_damaged_series(store: Path) -> None:
    first, _ = spoil(store, CUT)
    async with service_on(store) as service:
        pipeline = service.runtime._pipeline
        corrected = [Candle(first, 3.0, 4.0, 2.0, 3.0, 1.0)]
        results = await asyncio.gather(
            pipeline.submit(ETH, [candle(COUNT)], "http"),
            pipeline.submit(BTC, corrected, "http"),
            pipeline.submit(ETH, corrected, "http"),
            return_exceptions=True,
        )
        assert [type(result).__name__ for result in results] == ["Applied", "StoreDamaged", "Applied"]
        assert pipeline.bulk_candles == 0


def flip_in_rows(store: Path) -> None:
    """Flip a bit of the oldest candle of BTC that is a row of the closed store."""
    connection = apsw.Connection(str(store))
    # The first page of rows, which has rows of BTC alone; others may have stale bytes of them.
    first = "SELECT pageno FROM dbstat WHERE name = 'candle' AND pagetype = 'leaf' ORDER BY path LIMIT 1"
    page_number = connection.execute(first).get
    connection.close()
    assert isinstance(page_number, int)
    raw = bytearray(store.read_bytes())
    begin = (page_number - 1) * PAGE_BYTES
    places = (raw.find(struct.pack(">d", candle(number).high), begin, begin + PAGE_BYTES) for number in range(COUNT))
    raw[next(at for at in places if at > 0) + 5] ^= 4
    store.write_bytes(bytes(raw))


async def test_a_flipped_bit_in_a_row_costs_its_series_while_others_commit(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flip_in_rows(store)
    async with service_on(store) as service:
        for number in range(COUNT, COUNT + 3):
            for series, more in ((BTC, 0.0), (ETH, 0.25)):
                body = {"series_id": str(series), "candle": dict(zip(FIELDS, candle(number, more).ohlcv, strict=True))}
                status, answer = await service.post("/api/market/ingest/candle_closed", body)
                assert status == 200 or (series is BTC and answer["code"] == "ingest_failed:candles"), answer
        found = await page(service, ETH)
        assert len(found["candles"]) == COUNT + 3  # type: ignore[arg-type]
        status, answer = await service.get("/api/market/candles", series_id=str(BTC), limit=5000)
        assert (status, answer["code"]) == (503, "store_damaged")
        await wait_for_health(service, "store_damaged")
        _, healthy = await service.get("/api/market/health", series_id=str(ETH))
        assert healthy["status_reason"] != "store_damaged"
        async with service.http.get(service.url + "/metrics") as response:
            assert response.status == 200
    assert not any(record.exc_info for record in caplog.records)


async def test_a_writing_transaction_that_has_met_a_bad_page_writes_nothing(store: Path) -> None:
    flip_in_rows(store)
    async with SqliteDatabase(store) as database:

        def change(store: CandleStore) -> None:
            store.write(ETH, [candle(COUNT, 0.25)], Origin("test", 1))
            store.save()
            with contextlib.suppress(StoreDamaged):
                store.between(BTC, START, START + COUNT * 60)
            store.write(ETH, [candle(COUNT + 1, 0.25)], Origin("test", 1))

        with pytest.raises(StoreError):
            await database.write(change)
        assert await database.read(lambda store: store.head(ETH)) == START + (COUNT - 1) * 60
        await database.write(lambda store: store.write(ETH, [candle(COUNT, 0.25)], Origin("test", 1)))
        assert await database.read(lambda store: store.head(ETH)) == START + COUNT * 60


async def test_a_look_that_meets_a_bad_page_sees_one_state(store: Path) -> None:
    """The page ends SQLite's snapshot: what is committed then must not be seen by half."""
    flip_in_rows(store)
    looks = 0
    async with SqliteDatabase(store) as database:
        loop = asyncio.get_running_loop()

        def look(store: CandleStore) -> tuple[int | None, int | None]:
            nonlocal looks
            looks += 1
            before = store.head(ETH)
            with contextlib.suppress(StoreDamaged):
                store.newest(BTC, 300)
            if looks == 1:
                more = [candle(COUNT, 0.25)]
                writing = database.write(lambda store: store.write(ETH, more, Origin("test", 1)))
                asyncio.run_coroutine_threadsafe(writing, loop).result()
            return before, store.head(ETH)

        before, after = await database.read(look)
        assert before == after == START + COUNT * 60
        assert looks > 1


async def test_a_damaged_ledger_is_computed_again(store: Path) -> None:
    soon = Tuning(scrub=AT_ONCE, healing=HealTimings(look_s=0.05))

    async def computed(service: Service) -> dict[str, object]:
        answer: dict[str, object] = {}
        async with asyncio.timeout(60):
            while answer.get("factor_head_time") != START + (COUNT - 1) * 60:
                _, answer = await service.get("/api/factor/health", series_id=str(BTC))
                await asyncio.sleep(POLL_S)
        _, drawn = await service.get("/api/draw/delta", series_id=str(BTC), window_candles=2000)
        return drawn

    async with service_on(store, soon) as service:
        before = await computed(service)
    connection = apsw.Connection(str(store))
    connection.execute("UPDATE drawing SET instruction = substr(instruction, 2) WHERE version_id = 5")
    connection.execute("UPDATE factor_event SET event = 'x' || event WHERE event_no = 0 AND visible_time > ?", (START,))

    def rotten() -> int:
        count = "SELECT (SELECT count(*) FROM factor_event WHERE event LIKE 'x%')"
        drawings = "(SELECT count(*) FROM drawing WHERE instruction NOT LIKE '{%')"
        return int(connection.execute(f"{count} + {drawings}").get)

    assert rotten() > 4, "of several series"
    async with service_on(store, soon) as service:
        async with asyncio.timeout(60):
            epoch: object = before["epoch"]
            # The status is red for each series in turn.
            while epoch == before["epoch"] or rotten() or service.runtime._pipeline._ledger.behind():
                _, answer = await service.get("/api/draw/delta", series_id=str(BTC), window_candles=2000)
                epoch = answer.get("epoch", epoch)
                await asyncio.sleep(POLL_S)
        after = await computed(service)
        async with asyncio.timeout(60):
            while (await service.get("/api/market/status"))[1]["status"] == "red":
                await asyncio.sleep(POLL_S)
    connection.close()
    patch = "instruction_catalog_patch"
    assert after[patch] == before[patch]
    assert main(["verify", f"--database-url=sqlite:///{store}", "--derived-timeframes=5m,1h"]) == 0
