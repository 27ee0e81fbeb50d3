"""The plan of an import: files, the series of each, and files that are refused or passed over, with the reason."""

from __future__ import annotations

import os
import shlex
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from klinesync.core.counted import counted
from klinesync.core.errors import UpstreamError
from klinesync.core.printable import printable
from klinesync.core.series_id import SeriesId
from klinesync.history.files.names import (
    ARCHIVE_EXCHANGE,
    CHECKSUM,
    ArchiveName,
    archive_name,
    coin_margined_archive,
    freqtrade_series,
)
from klinesync.history.files.readers import ENDINGS, BadFile, check_regular
from klinesync.runtime.looking import is_folder

# Most files of a folder that are listed as passed over; further files are counted.
MAX_PASSED_OVER = 100
# Most unlisted symbols that are listed; further symbols are counted.
MAX_UNNAMED = 100
# Parts of names of freqtrade's files that hold no candles, and what they hold.
_NO_CANDLES = {
    "-mark.": "mark prices",
    "-index.": "index prices",
    "-premiumindex.": "premium indices",
    "-funding_rate.": "funding rates",
    "-trades.": "trades",
}


@dataclass(frozen=True, slots=True)
class ImportFile:
    """A file and its series. `first`: when an archive's file begins, for the order of files."""

    path: Path
    series: SeriesId
    first: int = 0


@dataclass(slots=True)
class Imported:
    """The result of a file.

    path: the file.
    series: of its candles; None when unknown.
    rows: rows of the file.
    stored: candles that were written.
    new: candles of them that the store did not have; None when unknown.
    quarantined: bad rows, which are left out.
    flow_left_out: rows whose order flow was invalid: their candles are stored without order flow.
    flow_example: a sentence about the first of them.
    first, last: open times of the first and the last good row.
    examples: sentences about the first bad rows.
    refused: why the file was refused, a sentence; None when it was not.
    failed: the error that ended the whole import at this file, a sentence; None when there was none.
    note: why the file was passed over, or how it was verified; None for nothing.
    """

    path: Path
    series: SeriesId | None
    rows: int = 0
    stored: int = 0
    new: int | None = 0
    quarantined: int = 0
    flow_left_out: int = 0
    flow_example: str = ""
    first: int | None = None
    last: int | None = None
    examples: list[str] = field(default_factory=list)
    refused: str | None = None
    failed: str | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class ArchiveZip:
    """A zip of an archive, whose name has the exchange's name of a symbol."""

    path: Path
    name: ArchiveName


@dataclass(slots=True)
class Found:
    """The files under the paths of an import: `files` whose series is known, `zips` of archives, and `others`, which
    are refused or passed over, with the reason."""

    files: list[ImportFile] = field(default_factory=list)
    zips: list[ArchiveZip] = field(default_factory=list)
    others: list[Imported] = field(default_factory=list)

    def add(self, file: ImportFile | ArchiveZip) -> None:
        """Add a file to import."""
        if isinstance(file, ImportFile):
            self.files.append(file)
        else:
            self.zips.append(file)


# The symbol of a market by the exchange's name (`spot`, `BTCUSDT`: `BTC/USDT`); None for an unlisted symbol. Raises
# `UpstreamError` when no stored list has the symbol and the exchange cannot be asked.
SymbolName = Callable[[str, str], Awaitable[str | None]]


def find(
    paths: Sequence[Path], series: SeriesId | None, exchange: str, stopped: Callable[[], bool] = lambda: False
) -> Found:
    """Find the files to import, and their series by their names.

    paths: files and folders.
    series: of all files; None: the series that each name says.
    exchange: of freqtrade's files.
    stopped: asked between files whether to end the search; never by default.
    """
    found = Found()
    for path in paths:
        if is_folder(path):
            if series is not None:
                found.others.append(_refuse(path, "it is a folder, and one series was named; name the files"))
                continue
            _in_folder(found, path, exchange, stopped)
        else:
            file = ImportFile(path, series) if series is not None else _identify(path, exchange)
            try:
                check_regular(path)
            except BadFile as error:
                found.others.append(Imported(path, series, refused=str(error)))
                continue
            if file is None:
                readable = path.name.lower().endswith(ENDINGS)
                hint = "; say so with --series binance:spot:BTC/USDT:1m" if readable else ""
                found.others.append(_refuse(path, _why_no_series(path) + hint))
            else:
                found.add(file)
    return found


async def plan(found: Found, symbol_name: SymbolName) -> tuple[list[ImportFile], list[Imported]]:
    """The files to import, in order, and the files that are not imported. Zips of an unlisted symbol are refused, with
    a sentence for each folder.

    found: the files.
    symbol_name: looks up the symbols of zips.
    """
    files, others = list(found.files), list(found.others)
    by_symbol: dict[tuple[tuple[str, ...], str], list[ArchiveZip]] = {}
    for file in found.zips:
        by_symbol.setdefault((file.name.markets, file.name.symbol_id), []).append(file)
    unnamed: list[Imported] = []
    for (markets, symbol_id), zips in by_symbol.items():
        named = await _named(markets, symbol_id, symbol_name)
        if isinstance(named, str):
            unnamed += _unnamed(zips, named)
            continue
        for file in zips:
            known = file.name.file(*named)
            files.append(ImportFile(file.path, known.series, known.span.start))
    others += unnamed[:MAX_UNNAMED]
    if len(unnamed) > MAX_UNNAMED:
        more = counted(len(unnamed) - MAX_UNNAMED, "more folder")
        others.append(_refuse(unnamed[-1].path, f"it is the last of {more} with symbols that no list has"))
    unique = {file.path.resolve(): file for file in files}
    return sorted(unique.values(), key=lambda file: (str(file.series), file.first)), others


async def _named(markets: Sequence[str], symbol_id: str, symbol_name: SymbolName) -> tuple[str, str] | str:
    """The market and the name of a symbol, or a sentence why there is none."""
    try:
        for market in markets:
            symbol = await symbol_name(market, symbol_id)
            if symbol is not None:
                return market, symbol
    except UpstreamError as error:
        return (
            f"the symbol {symbol_id} is unknown: the store has no list of symbols with it, and {ARCHIVE_EXCHANGE} is "
            f"unreachable ({error}); import where {ARCHIVE_EXCHANGE} is reachable, or name the series"
        )
    return f"{ARCHIVE_EXCHANGE} does not list {symbol_id} on {' or '.join(markets)}; name the series"


def _unnamed(zips: Sequence[ArchiveZip], why: str) -> list[Imported]:
    """Refuse the zips of a symbol: a sentence for each folder and timeframe, with the command that imports them."""
    places: dict[tuple[Path, str], list[ArchiveZip]] = {}
    for file in zips:
        places.setdefault((file.path.parent, str(file.name.timeframe)), []).append(file)
    refused = []
    for (folder, timeframe), there in places.items():
        path, name = there[0].path, there[0].name
        files, which = shlex.quote(str(path)), ""
        if len(there) > 1:
            stem = path.name[: path.name.index("-", len(name.symbol_id) + 1) + 1]
            files, path = f"{shlex.quote(str(folder / stem))}*.zip", folder
            which = f" of its {len(there)} files"
        series = f"{ARCHIVE_EXCHANGE}:{name.markets[0]}:BASE/QUOTE:{timeframe}"
        other = "" if len(name.markets) == 1 else f" (on futures {ARCHIVE_EXCHANGE}:futures:…)"
        how = f"klinesync import {files} --series {series}{other}"
        dated = ", or with a delivery date BTC/USDT:USDT-250328" if "futures" in name.markets else ""
        means = f"BASE/QUOTE is what {name.symbol_id} stands for, such as BTC/USDT{dated}"
        refused.append(_refuse(path, f"{why}{which}: {how} ({means})"))
    return refused


def _in_folder(found: Found, folder: Path, exchange: str, stopped: Callable[[], bool]) -> None:
    """Add the files below a folder: files whose names say a series, and the others."""
    passed_over: list[Imported] = []
    count = files = 0
    for path, error in _walk(folder):
        if stopped():
            break
        file = None if error is not None else _identify(path, exchange)
        if file is not None:
            try:
                check_regular(path)
            except BadFile as bad:
                error = bad.reason
            else:
                found.add(file)
                files += 1
                continue
        count += 1
        if count <= MAX_PASSED_OVER:
            why = error or _why_no_series(path)
            passed_over.append(Imported(path, None, note=f"passed over: {printable(why)}"))
    if count > MAX_PASSED_OVER:
        passed_over.append(Imported(folder, None, note=f"passed over: {count - MAX_PASSED_OVER} more files"))
    if not files:
        found.others.append(_refuse(folder, "no file in this folder has a name that says which series it holds"))
    found.others += passed_over


def _walk(folder: Path) -> Iterator[tuple[Path, str | None]]:
    """The files below a folder in the order of their names, and folders that cannot be read, with the reason. Hidden
    files, and checksum files beside their file, are skipped."""
    errors: list[OSError] = []
    for place, folders, names in os.walk(folder, onerror=errors.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        known = set(names)
        for name in sorted(names):
            if not name.startswith(".") and not (name.endswith(CHECKSUM) and name.removesuffix(CHECKSUM) in known):
                yield Path(place, name), None
    for error in errors:
        yield Path(str(error.filename)), f"it cannot be read: {error.strerror}"


def _identify(path: Path, exchange: str) -> ImportFile | ArchiveZip | None:
    series = freqtrade_series(path.name, exchange)
    if series is not None:
        return ImportFile(path, series)
    name = archive_name(path)
    return None if name is None else ArchiveZip(path, name)


def _why_no_series(path: Path) -> str:
    """Why a file's name says no series."""
    name = path.name.lower()
    if not name.endswith(ENDINGS):
        return f"its name ends in none of {' '.join(ENDINGS)}"
    for part, what in _NO_CANDLES.items():
        if part in name:
            return f"by its name it holds {what}, not candles"
    if coin_margined_archive(path):
        return "its folder is that of coin-margined contracts, which are not built"
    return "its name does not say which series it holds"


def _refuse(path: Path, why: str) -> Imported:
    return Imported(path, None, refused=str(BadFile(path, why)))
