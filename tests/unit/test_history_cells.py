"""Names, dates, separators and types of files of other programs; and sentences about unreadable ones."""

from __future__ import annotations

import decimal
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather as pa_feather
import pyarrow.parquet as pa_parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from klinesync.core.candle import Candle
from klinesync.core.timeframe import Timeframe
from klinesync.history.files.cells import of_arrow, time_of_cell, times_of_ints
from klinesync.history.files.readers import BadFile, batches
from klinesync.history.files.rows import NO_TIME, Judge
from support.history_files import minutes, write_freqtrade

START = 1_747_699_200  # 2025-05-20, a midnight
NOW = 1_800_000_000
CANDLE = Candle(START, 1.0, 2.0, 1.0, 2.0, 1.0)
NAMES = ("open", "high", "low", "close", "volume")


def judged(path: Path, *, unterminated: bool = False) -> tuple[list[Candle], list[str]]:
    """The valid rows of a file, and the reports about the others."""
    judge = Judge(Timeframe.parse("1m"), NOW)
    rows = judge.in_order(batches(path, judge.broken, unterminated=unterminated), 10_000).candles()
    return rows, judge.examples


def csv(folder: Path, text: str) -> Path:
    path = folder / "some.csv"
    path.write_bytes(text.encode())
    return path


# --- CSV


@pytest.mark.parametrize(
    "text",
    [
        "Open time,Open,High,Low,Close,Volume\n1747699200000,1,2,1,2,1\n",
        "openTime,open,high,low,close,volume\n1747699200000,1,2,1,2,1\n",
        "date;open;high;low;close;volume\n2025-05-20 00:00;1;2;1;2;1\n",
        "date,open,high,low,close,volume\n2025/05/20 00:00:00,1,2,1,2,1\n",
        "time,open,high,low,close,Volume\n1747699200,1,2,1,2,1\n",
        "datetime\topen\thigh\tlow\tclose\tvolume\n2025-05-20 00:00:00+00:00\t1\t2\t1\t2\t1\n",
        "sep=;\ndate;open;high;low;close;volume\n20250520;1;2;1;2;1\n",
        '"sep=;"\r\ndate;open;high;low;close;volume\r\n2025.05.20 00:00;1;2;1;2;1\r\n',
        ",open,high,low,close,volume\n2025-05-20,1,2,1,2,1\n",
        "timestamp,open,high,low,close,volume\n1747699200000.0,1,2,1,2,1\n",
        "timestamp,open,high,low,close,volume\n1.7476992e12,1,2,1,2,1\n",
        "open_time,close_time,open,high,low,close,volume\n1747699200000,1747699259999,1,2,1,2,1\n",
        "1747699200000;1;2;1;2;1;x\n",
        "\ufeffdate,open,high,low,close,volume\n2025-05-20 02:00:00+02:00,1,2,1,2,1\n",
        "unix,open,high,low,close,volume,volume usdt\n1747699200, 1 , 2, 1, 2, 1,9\n",
    ],
)
def test_files_of_common_programs_are_read(text: str, tmp_path: Path) -> None:
    assert judged(csv(tmp_path, text)) == ([CANDLE], [])


@pytest.mark.parametrize(
    "text",
    [
        "20250520", "2025-05-20", "2025/05/20", "2025.05.20", "2025/5/20", "20250520 0000", "20250520T000000",
        "202505200000", "20250520000000", "2025-05-20T00:00:00.000Z", "2025-05-20 00:00:00 UTC", "2025-05-20 00:00",
        "2025-05-20T02:00+0200", "2025/05/19 22:00:00-02:00", " 1747699200 ", "1747699200", "1747699200000",
        "1747699200000000", "1747699200000000000", "1747699200.0", "1747699200000.000", "1.7476992E+12",
    ],
)  # fmt: skip
def test_every_form_of_a_date_is_read_alone_and_mixed_with_others(text: str) -> None:
    assert time_of_cell(text) == START
    texts = pa.array([text, "2025-05-20", "1747699260", "oops"], pa.string())
    ones = [pa.array([1.0] * 4)] * 5
    found = of_arrow(("date", *NAMES), [texts, *ones])
    assert found.time.tolist() == [START, START, START + 60, NO_TIME]
    assert "its time 'oops' cannot be read; read are unix times" in found.unread[3]


@pytest.mark.parametrize(
    "text",
    [
        "", "20.05.2025", "05/20/2025", "2025-06-31", "20250631", "2025-13-01", "2025-05-20 25:00", "noon",
        "2025-05-20 00:00:00.5", "1747699200.5", "1e400", "-inf", "nan", "1_747_699_200", "2025-5/20", "2025520 00:00",
        "9" * 40,
    ],
)  # fmt: skip
def test_other_forms_of_dates_are_refused(text: str) -> None:
    assert time_of_cell(text) == NO_TIME


@given(st.datetimes(datetime(1970, 1, 1), datetime(2100, 12, 31)))
def test_numbers_that_are_dates_are_read_as_dates(moment: datetime) -> None:
    moment = moment.replace(microsecond=0)
    expected = [
        moment.replace(hour=0, minute=0, second=0),
        moment.replace(second=0),
        moment,
    ]
    numbers = [int(moment.strftime(form)) for form in ("%Y%m%d", "%Y%m%d%H%M", "%Y%m%d%H%M%S")]
    found = times_of_ints(np.array(numbers)).tolist()
    assert found == [int(one.replace(tzinfo=UTC).timestamp()) for one in expected]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "when,open,high,low,close,volume\n1,1,1,1,1,1\n",
            "no column with the open time (candle_time, open_time, date",
        ),
        ("when,open,high,low,close,volume\n1,1,1,1,1,1\n", "its columns are 'when', 'open', 'high'"),
        (
            "date,open,high,low,close,Volume BTC\n1,1,1,1,1,1\n",
            "it has no column volume; its columns are 'date', 'open'",
        ),
        ("date,open,high,low,Close,close,volume\n1,1,1,1,1,1,1\n", "it has more than one column 'Close'"),
        ("1747699200:1:2:1:2:1\n", "its first line is '1747699200:1:2:1:2:1', and columns are separated by"),
        ("\n", "its first line is empty"),
    ],
)
def test_an_unreadable_table_is_refused_with_its_columns_and_the_expected_ones(
    text: str, why: str, tmp_path: Path
) -> None:
    with pytest.raises(BadFile) as refused:
        judged(csv(tmp_path, text))
    assert why in str(refused.value)


def test_utf_16_and_control_characters_are_reported_in_printable_form(tmp_path: Path) -> None:
    path = csv(tmp_path, "")
    path.write_bytes("date,open,high,low,close,volume\n".encode("utf-16"))
    with pytest.raises(BadFile, match="it is UTF-16 text; save it as UTF-8"):
        judged(path)
    with pytest.raises(BadFile) as refused:
        judged(csv(tmp_path, "\x1b[31mx,open,high,low,close,volume\n1,1,1,1,1,1\n"))
    assert str(refused.value).isprintable()
    assert "'\\x1b[31mx'" in str(refused.value)


# --- ends of CSV files


HEAD = "candle_time,open,high,low,close,volume\n1747699200,1,2,1,2,10.5\n"


@pytest.mark.parametrize("separator", [",", ";"])
@pytest.mark.parametrize("end", ["1747699260,1,2,1,2,11.", "1747699260,1,2,1,2,11.5"])
def test_a_csv_without_its_last_line_end_is_refused_unless_allowed(end: str, separator: str, tmp_path: Path) -> None:
    path = csv(tmp_path, (HEAD + end).replace(",", separator))
    with pytest.raises(BadFile, match="its last line has no line end, so that its last number may be cut off: '17476"):
        judged(path)
    rows, told = judged(path, unterminated=True)
    assert ([row.volume for row in rows], told) == ([10.5, float(end.rsplit(",", 1)[1])], [])


@pytest.mark.parametrize("end", ["1747699320,1,2", "17476", '1747699320,1,2,1,2,"11.5'])
def test_a_csv_that_ends_in_the_middle_of_a_row_is_refused_always(end: str, tmp_path: Path) -> None:
    path = csv(tmp_path, HEAD + end)
    for unterminated in (False, True):
        with pytest.raises(BadFile, match="it ends in the middle of a row: '"):
            judged(path, unterminated=unterminated)


@given(cut=st.integers(1, len(HEAD) - 1))
def test_a_truncated_csv_never_yields_another_number(cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = csv(tmp_path_factory.mktemp("cut"), HEAD[:cut])
    try:
        rows, _ = judged(path)
    except BadFile:
        return
    assert rows in ([], [Candle(START, 1.0, 2.0, 1.0, 2.0, 10.5)])


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\n", "\n  "])
def test_line_ends_of_every_kind_are_ends(end: str, tmp_path: Path) -> None:
    text = HEAD.replace("\n", "\r") if end == "\r" else HEAD.rstrip("\n") + end
    assert len(judged(csv(tmp_path, text))[0]) == 1


# --- tables


def table(time: object, **columns: object) -> pa.Table:
    values = {name: pa.array([value]) for name, value in zip(NAMES, CANDLE.ohlcv[1:], strict=True)} | columns
    return pa.table({"date": time, **values})


TEXT = pa.array(["2025-05-20 00:00:00"])
TABLES: dict[str, pa.Table] = {
    "large string": table(TEXT.cast(pa.large_string())),
    "string view": table(TEXT.cast(pa.string_view())),
    "binary": table(TEXT.cast(pa.binary())),
    "dictionary": table(TEXT.dictionary_encode()),
    "large dictionary": table(TEXT.cast(pa.large_string()).dictionary_encode()),
    "prices as text of any type": table(
        TEXT,
        open=pa.array(["1.0"], pa.large_string()),
        high=pa.array(["2"]).cast(pa.string_view()),
        low=pa.array(["1"]).dictionary_encode(),
    ),
    "float milliseconds": table(pa.array([1747699200000.0])),
    "decimal": table(
        pa.array([decimal.Decimal("1747699200")]), close=pa.array([decimal.Decimal("2.00")], pa.decimal128(9, 2))
    ),
    "unsigned": table(pa.array([1747699200], pa.uint32()), high=pa.array([2], pa.uint8())),
    "unsigned 64": table(pa.array([1747699200000], pa.uint64()), open=pa.array([1], pa.uint64())),
    "small floats": table(TEXT, close=pa.array([2.0], pa.float32()), low=pa.array([np.float16(1.0)], pa.float16())),
    "date": table(pa.array([START // 86_400], pa.int32()).cast(pa.date32())),
    "date number": table(pa.array([20250520], pa.int32())),
    "timestamp elsewhere": table(pa.array([START * 1000], pa.timestamp("ms", "Asia/Tokyo"))),
    "unnamed index": table(TEXT).rename_columns(["__index_level_0__", *NAMES]),
}


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("ending", [".feather", ".parquet"])
def test_columns_of_any_type_are_read(kind: str, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"some{ending}"
    try:
        if ending == ".feather":
            pa_feather.write_feather(TABLES[kind], str(path))
        else:
            pa_parquet.write_table(TABLES[kind], path)
    except (pa.ArrowException, ValueError) as error:
        pytest.skip(f"the format has no such type: {error}")
    assert judged(path) == ([CANDLE], [])


def test_run_end_encoded_columns_are_read() -> None:
    runs: pa.Array[pa.Scalar[pa.DataType]] = pa.RunEndEncodedArray.from_arrays(
        pa.array([2], pa.int32()), pa.array(["1.5"])
    )
    found = of_arrow(("date", *NAMES), [pa.array([1, 2]), runs, *[pa.array([1.0, 1.0])] * 4])
    assert found.open.tolist() == [1.5, 1.5]


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({"close": pa.array([True])}, "its column 'close' is 'bool', which is no number"),
        ({"volume": pa.array([[1.0]])}, "its column 'volume' is 'list<"),
        ({"date": pa.array([True])}, "its column 'date' is 'bool', which is no time; read are unix times"),
    ],
)
def test_a_column_of_another_kind_is_refused_with_its_type(
    columns: dict[str, pa.Array[pa.Scalar[pa.DataType]]], why: str, tmp_path: Path
) -> None:
    path = tmp_path / "some.feather"
    pa_feather.write_feather(
        table(TEXT).drop_columns(list(columns)).append_column(*next(iter(columns.items()))), str(path)
    )
    with pytest.raises(BadFile) as refused:
        judged(path)
    assert why in str(refused.value)


def test_numbers_of_any_size_lose_at_most_their_rows() -> None:
    times = pa.array([2**64 - 1, 2**63, 1747699200000], pa.uint64())
    big = pa.array([1, 1, 2**63 + 1], pa.uint64())
    ones = pa.array([1.0, 1.0, 1.0])
    found = of_arrow(("date", *NAMES), [times, ones, big, ones, ones, ones])
    assert found.time[2] == START
    assert all(time < 0 for time in found.time[:2].tolist())
    assert found.high[2] == float(2**63)


# --- a bad cell loses its row, in every format

Cells = Sequence[object]
BAD: tuple[tuple[Cells, str], ...] = (
    ((START + 60, 1.0, 2.0, 1.0, "oops", 1.0), "its close 'oops' is no number"),
    ((START + 60, 1.0, "2,0", 1.0, 2.0, 1.0), "its high '2,0' is no number"),
    (("noon", 1.0, 2.0, 1.0, 2.0, 1.0), "its time 'noon' cannot be read"),
    ((START + 60, None, 2.0, 1.0, 2.0, 1.0), "open"),
    ((START + 60, 1.0, 2.0, 0.0, 2.0, 1.0), "low is 0.0; a price is greater than 0"),
    ((None, 1.0, 2.0, 1.0, 2.0, 1.0), "time"),
)


def as_csv(folder: Path, rows: Sequence[Cells]) -> Path:
    lines = [";".join("" if cell is None else str(cell) for cell in row) for row in rows]
    return csv(folder, "date;open;high;low;close;volume\n" + "".join(line + "\n" for line in lines))


def as_json(folder: Path, rows: Sequence[Cells]) -> Path:
    path = folder / "some.json"
    path.write_text(json.dumps(rows))
    return path


def as_table(folder: Path, rows: Sequence[Cells]) -> pa.Table:
    names = ("date", *NAMES)
    texts = [[None if cell is None else str(cell) for cell in column] for column in zip(*rows, strict=True)]
    return pa.table({name: pa.array(column, pa.string()) for name, column in zip(names, texts, strict=True)})


def as_feather(folder: Path, rows: Sequence[Cells]) -> Path:
    pa_feather.write_feather(as_table(folder, rows), str(folder / "some.feather"))
    return folder / "some.feather"


def as_parquet(folder: Path, rows: Sequence[Cells]) -> Path:
    pa_parquet.write_table(as_table(folder, rows), folder / "some.parquet")
    return folder / "some.parquet"


@pytest.mark.parametrize("write", [as_csv, as_json, as_feather, as_parquet])
@pytest.mark.parametrize(("bad", "why"), BAD)
def test_a_bad_cell_loses_its_row_alone(
    write: Callable[[Path, Sequence[Cells]], Path], bad: Cells, why: str, tmp_path: Path
) -> None:
    last = CANDLE._replace(time=START + 120)
    rows, told = judged(write(tmp_path, [list(CANDLE.ohlcv), bad, list(last.ohlcv)]))
    assert rows == [CANDLE, last]
    assert len(told) == 1
    assert told[0].startswith("row 2: ")
    assert why in told[0].replace('"', "")


def test_bad_rows_of_json_are_lost_alone(tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    good = f"[{START}000.0, 1, 2, 1, 2, 1, {START + 60}, 3]"
    bad = [
        '[1, [2], {"a": 1}, 4, 5, 6]',
        "7",
        "null",
        '{"t": 1}',
        f"[{START + 60}000, NaN, 2, 1, 2, 1]",
        f"[{10**30},1,2,1,2,1]",
    ]
    path.write_text("[" + ", ".join([good, *bad]) + "]")
    rows, told = judged(path)
    assert rows == [CANDLE]
    assert len(told) == 5
    text = path.read_text()
    for end in (-1, -20):
        path.write_text(text[:end])
        with pytest.raises(BadFile, match="it cannot be read"):
            judged(path)
    path.write_text("[" * 100_000)
    with pytest.raises(BadFile, match="it cannot be read"):
        judged(path)


def test_a_file_that_is_cut_short_while_it_is_read_is_refused(tmp_path: Path) -> None:
    """A file that is mapped into memory would end the process."""
    path = write_freqtrade(tmp_path / "BTC_USDT-1m.feather", minutes(START, 200_000))
    reading = batches(path, print)
    next(reading)
    with path.open("rb+") as file:
        file.truncate(100)
    with pytest.raises(BadFile, match="it cannot be read"):
        list(reading)


@pytest.mark.parametrize("bad", [b"\xff", b"\xc3", b"\xed\xa0\x80", "日".encode()[:2]])
def test_a_row_with_a_wrong_number_of_cells_is_reported_for_any_bytes(bad: bytes, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    rows = [b"%d,1,2,0.5,1,10,x\n" % (1_700_000_040 + 60 * at) for at in range(3)]
    path.write_bytes(b"date,open,high,low,close,volume,note\n" + rows[0] + b"1,2," + bad + b"\n" + b"".join(rows[1:]))
    candles, told = judged(path)
    assert len(candles) == 3
    assert told == ["line 3 has 3 columns instead of 7"]


def test_invalid_utf_8_in_unread_columns_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    note = "日本".encode() + b"\xff" + "é".encode() * 400_000  # characters that end in another block
    rows = [b"%d,1,2,0.5,1,10," % (1_700_000_040 + 60 * at) + note + b"\n" for at in range(3)]
    path.write_bytes(b"date,open,high,low,close,volume,note\n" + b"".join(rows))
    candles, told = judged(path)
    assert (len(candles), told) == (3, [])
