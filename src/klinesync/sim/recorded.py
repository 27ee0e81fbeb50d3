"""Recorded candles as tapes: files in freqtrade's layout, and the exchange's own archives."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.feather as pa_feather
import pyarrow.parquet as pa_parquet

from klinesync.core.candle import MAX_VALUE, Candle, check_candle
from klinesync.core.errors import BadCandle, Rejected
from klinesync.core.spans import Span
from klinesync.core.timeframe import Timeframe
from klinesync.sim.dice import dice_key, units
from klinesync.sim.symbol import Symbol, has_digits, split_name
from klinesync.sim.tape import MINUTE_S, NO_ROWS, Floats, Ints, Market, Rows

DAY_S = 86_400
MINUTE = Timeframe.parse("1m")
_USUAL_TRADE = 500.0  # in the quote asset: how many trades a minute had is guessed from its turnover
_FREQTRADE = re.compile(
    r"(?P<base>[^_]+)_(?P<quote>[^_]+?)(?:_(?P<settle>[^_]+))?-1m(?P<futures>-futures)?"
    r"\.(?P<ending>feather|parquet|json|json\.gz)"
)
_ARCHIVE = re.compile(r"(?P<name>[^-/]+)-1m-\d{4}-\d{2}(?:-\d{2})?\.zip")
_ARCHIVE_COLUMNS = (
    "open_time", "open", "high", "low", "close", "volume", "close_time", "quote_volume", "count",
    "taker_buy_volume", "taker_buy_quote_volume", "ignore",
)  # fmt: skip


class BadRecording(Rejected):
    """Recorded data that cannot be replayed."""

    code = "bad_recording"


class RecordedTape:
    """Recorded minutes, `shift_s` later than they were. Holes stay holes; at its end the tape is silent."""

    def __init__(self, rows: Rows, shift_s: int) -> None:
        self._rows = rows
        self._shift_s = shift_s
        self.first_s = int(rows.time[0]) + shift_s
        self.end_s: int | None = int(rows.time[-1]) + MINUTE_S + shift_s
        self._whole = len(rows) * MINUTE_S == self.end_s - self.first_s

    def minutes(self, start_s: int, end_s: int) -> Rows:
        rows = self._rows
        if self._whole:
            first = max(0, (start_s - self.first_s) // MINUTE_S)
            end = max(first, (end_s - self.first_s) // MINUTE_S)
        else:
            bounds = np.array((start_s - self._shift_s, end_s - self._shift_s))
            first, end = (int(at) for at in np.searchsorted(rows.time, bounds))
        part = rows.cut(first, end)
        return part.shifted(self._shift_s) if len(part) else NO_ROWS


@dataclass(frozen=True, slots=True)
class Recording:
    """One symbol's minutes in recorded time."""

    symbol: Symbol
    rows: Rows

    @property
    def span(self) -> Span:
        return Span(int(self.rows.time[0]), int(self.rows.time[-1]) + MINUTE_S)


def load_recordings(directory: Path, seed: int) -> list[Recording]:
    """Every 1m recording below `directory`, by market and name; other timeframes are passed over.

    Raises `BadRecording` when there is none, or one cannot be read."""
    found: dict[tuple[Market, str, str, str], list[Path]] = {}
    try:
        if not directory.is_dir():
            raise BadRecording(f"data directory {directory} does not exist; name a directory of recorded candles")
        for path in sorted(directory.rglob("*")):
            key = _identify(path)
            if key is not None and path.is_file():  # opening a named pipe would wait for a writer
                found.setdefault(key, []).append(path)
    except OSError as error:
        raise BadRecording(f"data directory {directory} cannot be read: {error.filename}: {error.strerror}") from None
    if not found:
        raise BadRecording(
            f"data directory {directory} holds no 1m candles; it wants freqtrade files such as BTC_USDT-1m.feather "
            "(futures/ below) or archives such as BTCUSDT-1m-2020-01-01.zip"
        )
    recordings: dict[tuple[Market, str], Recording] = {}
    for (market, name, base, quote), paths in found.items():
        columns = [_read(path) for path in paths]
        recording = _recording(market, (name, base, quote), columns, seed, paths[0])
        known = recordings.get((market, name))
        if known is not None and len(known.rows) >= len(recording.rows):
            continue
        recordings[market, name] = recording
    return [recordings[key] for key in sorted(recordings)]


def choose_start(recordings: Sequence[Recording], host_now_s: float, start_s: int | None) -> tuple[int, float]:
    """By how many seconds recorded times are shifted (whole days), and the exchange's now at the start.

    With `start_s`, a recorded time, the exchange starts at exactly that moment, on the last possible day that is not
    in the host's future. Without, it starts at the host's now, and the shift puts that nearest to two thirds into
    what all recordings have in common (into the longest of them when they have nothing in common); when no whole-day
    shift puts it inside, as can happen with less than a day, it starts at two thirds. Raises `BadRecording` for a
    start outside all recordings.
    """
    first = max(recording.span.start for recording in recordings)
    end = min(recording.span.end for recording in recordings)
    if end <= first:
        first, end = max((recording.span for recording in recordings), key=lambda span: span.end - span.start)
    if start_s is not None:
        spans = [recording.span for recording in recordings]
        if not any(span.holds(start_s) for span in spans):
            low, high = min(span.start for span in spans), max(span.end for span in spans)
            raise BadRecording(
                f"start {_moment(start_s)} lies outside the recordings, which reach from {_moment(low)} "
                f"to {_moment(high)}"
            )
        shift_s = int((host_now_s - start_s) // DAY_S) * DAY_S
        return shift_s, float(start_s + shift_s)
    wanted = first + (end - first) * 2 / 3
    nearest = round((host_now_s - wanted) / DAY_S)
    for days in sorted((nearest - 1, nearest, nearest + 1), key=lambda days: abs(host_now_s - days * DAY_S - wanted)):
        if first <= host_now_s - days * DAY_S < end:
            return days * DAY_S, host_now_s
    wanted_s = int(wanted)
    shift_s = int((host_now_s - wanted_s) // DAY_S) * DAY_S
    return shift_s, float(wanted_s + shift_s)


def _moment(time_s: int) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _identify(path: Path) -> tuple[Market, str, str, str] | None:
    """Market, exchange name, base and quote of a recording's file; None for other files."""
    match = _FREQTRADE.fullmatch(path.name)
    if match is not None:
        market: Market = "futures" if match["futures"] else "spot"
        return market, match["base"] + match["quote"], match["base"], match["quote"]
    match = _ARCHIVE.fullmatch(path.name)
    if match is None:
        return None
    assets = split_name(match["name"])
    if assets is None:
        return None  # a delivery contract, for example
    folders = [part.lower() for part in path.parts[:-1]]
    return ("futures" if "um" in folders or "futures" in folders else "spot"), match["name"], *assets


@dataclass(frozen=True, slots=True)
class _Columns:
    """What one file has, in any order; `extra` are quote volume, count, taker volume and taker quote volume."""

    time: Ints
    prices: tuple[Floats, Floats, Floats, Floats]
    volume: Floats
    extra: tuple[Floats, Ints, Floats, Floats] | None


def _read(path: Path) -> _Columns:
    try:
        return _READERS[path.suffix](path)
    except _READ_ERRORS as error:
        raise BadRecording(f"recording {path} cannot be read: {error}") from error


def _read_feather(path: Path) -> _Columns:
    return _of_table(pa_feather.read_table(path))


def _read_parquet(path: Path) -> _Columns:
    return _of_table(pa_parquet.read_table(path))


def _of_table(table: pa.Table) -> _Columns:
    date = table.column("date")
    if not pa.types.is_timestamp(date.type):
        raise ValueError(f"column date is {date.type}, not a timestamp")
    time = pc.cast(date, pa.timestamp("s", date.type.tz)).cast(pa.int64()).to_numpy()
    open_, high, low, close, volume = (
        table.column(name).cast(pa.float64()).to_numpy() for name in ("open", "high", "low", "close", "volume")
    )
    return _Columns(time, (open_, high, low, close), volume, None)


def _read_json(path: Path) -> _Columns:
    return _of_rows(path.read_bytes())


def _read_gzip(path: Path) -> _Columns:
    with pa.input_stream(str(path), compression="gzip") as stream:
        return _of_rows(stream.read())


def _of_rows(text: bytes) -> _Columns:
    rows = msgspec.json.decode(text, type=list[tuple[int, float, float, float, float, float]])
    if not rows:
        raise ValueError("it has no candles")
    time, open_, high, low, close, volume = (np.array(column) for column in zip(*rows, strict=True))
    return _Columns(time.astype(np.int64) // 1000, (open_, high, low, close), volume, None)


def _read_archive(path: Path) -> _Columns:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if len(names) != 1:
            raise ValueError(f"it holds {len(names)} files instead of one")
        text = archive.read(names[0])
    has_header = not text[:1].isdigit()
    table = pa_csv.read_csv(
        io.BytesIO(text),
        read_options=pa_csv.ReadOptions(column_names=list(_ARCHIVE_COLUMNS), skip_rows=1 if has_header else 0),
        convert_options=pa_csv.ConvertOptions(
            column_types={
                name: pa.int64() if name in ("open_time", "close_time", "count") else pa.float64()
                for name in _ARCHIVE_COLUMNS
            }
        ),
    )
    column = {name: table.column(name).to_numpy() for name in _ARCHIVE_COLUMNS}
    time = column["open_time"]
    unit = 1_000_000 if len(time) and time[0] > 10**13 else 1000
    return _Columns(
        time // unit,
        (column["open"], column["high"], column["low"], column["close"]),
        column["volume"],
        (column["quote_volume"], column["count"], column["taker_buy_volume"], column["taker_buy_quote_volume"]),
    )


_READ_ERRORS = (
    OSError, EOFError, ValueError, KeyError, pa.ArrowException, msgspec.MsgspecError, zipfile.BadZipFile,
)  # fmt: skip
_READERS: dict[str, Callable[[Path], _Columns]] = {
    ".feather": _read_feather,
    ".parquet": _read_parquet,
    ".json": _read_json,
    ".gz": _read_gzip,
    ".zip": _read_archive,
}


def _recording(
    market: Market, name: tuple[str, str, str], parts: Sequence[_Columns], seed: int, path: Path
) -> Recording:
    time = np.concatenate([part.time for part in parts])
    if not len(time):
        raise BadRecording(f"recording {path} has no candles")
    open_, high, low, close = (np.concatenate([part.prices[i] for part in parts]) for i in range(4))
    volume = np.concatenate([part.volume for part in parts])
    sound = (
        (time % MINUTE_S == 0)
        & (low <= open_) & (open_ <= high) & (low <= close) & (close <= high)
        & (low > 0) & (high <= MAX_VALUE) & (volume >= 0) & (volume <= MAX_VALUE)
    )  # fmt: skip
    if not sound.all():
        row = int(np.flatnonzero(~sound)[0])
        values = (column[row].item() for column in (open_, high, low, close, volume))
        raise BadRecording(
            f"recording {path} cannot be replayed: {_why(Candle(int(time[row]), *values))}; repair or remove that row"
        )
    order = np.argsort(time, kind="stable")
    order = order[np.append(np.diff(time[order]) > 0, True)]  # of two for the same minute the later file's counts
    time, volume = time[order], volume[order]
    prices = [column[order] for column in (open_, high, low, close)]
    price_digits = max(_digits(column) for column in prices)
    volume_digits = _digits(volume)
    if all(part.extra is not None for part in parts):
        extras = [part.extra for part in parts if part.extra is not None]
        quote, taker, taker_quote = (np.concatenate([extra[i] for extra in extras])[order] for i in (0, 2, 3))
        count = np.concatenate([extra[1] for extra in extras])[order]
    else:
        quote, count, taker, taker_quote = _guess(
            time, prices, volume, dice_key(seed, market, name[0], "recorded"), price_digits, volume_digits
        )
    first_id = np.cumsum(count) - count + 1
    open_, high, low, close = prices
    rows = Rows(time, open_, high, low, close, volume, quote, count, taker, taker_quote, first_id)
    return Recording(Symbol(market, *name, price_digits, volume_digits), rows)


def _why(candle: Candle) -> str:
    """Why no exchange can have had this minute, in the words of `core.candle`."""
    try:
        check_candle(candle, MINUTE)
    except BadCandle as error:
        return str(error)
    raise AssertionError(f"{candle} is sound, and was taken for bad")


def _guess(
    time: Ints, prices: Sequence[Floats], volume: Floats, key: int, price_digits: int, volume_digits: int
) -> tuple[Floats, Ints, Floats, Floats]:
    """Quote volume, trades, taker volume and taker quote volume of minutes that were recorded without them."""
    open_, high, low, close = prices
    mean = (open_ + high + low + close) / 4.0
    digits = min(8, price_digits + volume_digits)
    dice = units(key, time // MINUTE_S * 2 + np.arange(2, dtype=np.int64)[:, None])
    traded = volume > 0
    # As many trades as the candle's shape needs: open, close, and those that touched high and low.
    needed = 1 + (open_ != close) + (high > np.maximum(open_, close)) + (low < np.minimum(open_, close))
    count = np.where(traded, needed + (volume * mean / _USUAL_TRADE * (0.5 + dice[0])).astype(np.int64), 0)
    quote = np.round(volume * mean, digits)
    taker = np.minimum(np.round(volume * (0.15 + 0.7 * dice[1]), volume_digits), volume)
    return quote, count, taker, np.minimum(np.round(taker * mean, digits), quote)


def _digits(values: Floats) -> int:
    """How many decimals the numbers have; 8 at most."""
    for digits in range(8):
        if has_digits(values, digits):
            return digits
    return 8
