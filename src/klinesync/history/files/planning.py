"""What an import is about to do: which files, which series each holds, what is refused or passed over, and why."""

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

# Files passed over in one folder that are named; the others are counted.
MAX_PASSED_OVER = 100
# Symbols that no list names and that are told of; the others are counted.
MAX_UNNAMED = 100
# Parts of names of freqtrade's files that hold something else than candles.
_NO_CANDLES = {
    "-mark.": "mark prices",
    "-index.": "index prices",
    "-premiumindex.": "premium indices",
    "-funding_rate.": "funding rates",
    "-trades.": "trades",
}


@dataclass(frozen=True, slots=True)
class ImportFile:
    """A file and the series that it holds. `first`: when an archive's file begins, by which they are ordered."""

    path: Path
    series: SeriesId
    first: int = 0


@dataclass(slots=True)
class Imported:
    """What became of one file. `refused`: why, as a sentence; nothing of it was written then, or, when `stored` is not
    zero, not all. `failed`: what ended the whole import in the middle of this file; `stored` candles are in. `new`:
    candles that the store did not have; None where that is not told. `quarantined` rows are left out, and `told` are
    sentences about the first of them. `note`: that a file was passed over and why, or how it was checked."""

    path: Path
    series: SeriesId | None
    rows: int = 0
    stored: int = 0
    new: int | None = 0
    quarantined: int = 0
    first: int | None = None
    last: int | None = None
    told: list[str] = field(default_factory=list)
    refused: str | None = None
    failed: str | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class ArchiveZip:
    """A zip of an archive, whose name says the exchange's name of a symbol."""

    path: Path
    name: ArchiveName


@dataclass(slots=True)
class Found:
    """What lies under the paths of an import: `files` whose series is known, archives' `zips`, and `others`, which are
    refused, or passed over in a folder, each with the reason."""

    files: list[ImportFile] = field(default_factory=list)
    zips: list[ArchiveZip] = field(default_factory=list)
    others: list[Imported] = field(default_factory=list)

    def add(self, found: ImportFile | ArchiveZip) -> None:
        """A file to import."""
        if isinstance(found, ImportFile):
            self.files.append(found)
        else:
            self.zips.append(found)


# Our name of a market's symbol by the exchange's name (`spot`, `BTCUSDT`: `BTC/USDT`); None for a symbol that the
# exchange does not list. Raises `UpstreamError` where no list has it and the exchange cannot be asked.
SymbolName = Callable[[str, str], Awaitable[str | None]]


def find(
    paths: Sequence[Path], series: SeriesId | None, exchange: str, stopped: Callable[[], bool] = lambda: False
) -> Found:
    """The files to import, as far as their names say what they hold.

    series: what the files hold, whatever their names say; None: what the names say.
    exchange: whose freqtrade files are.
    stopped: asked between files; ends the search early.
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
    """The files to import, in order, and all that are not imported. Zips of a symbol that has no name are refused, all
    of a folder together.

    symbol_name: what the symbols are that zips name.
    """
    files, others = list(found.files), list(found.others)
    alike: dict[tuple[tuple[str, ...], str], list[ArchiveZip]] = {}
    for file in found.zips:
        alike.setdefault((file.name.markets, file.name.symbol_id), []).append(file)
    unnamed: list[Imported] = []
    for (markets, symbol_id), zips in alike.items():
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
    """The market and our name of a symbol, or why there is none."""
    try:
        for market in markets:
            symbol = await symbol_name(market, symbol_id)
            if symbol is not None:
                return market, symbol
    except UpstreamError as error:
        return (
            f"no list in the store says what {symbol_id} is, and {ARCHIVE_EXCHANGE} cannot be asked ({error}); run the "
            "import once where it can be asked, or name the series"
        )
    return f"{ARCHIVE_EXCHANGE} does not list {symbol_id} on {' or '.join(markets)}; name the series"


def _unnamed(zips: Sequence[ArchiveZip], why: str) -> list[Imported]:
    """Zips of one symbol, refused: one sentence for each folder and timeframe, with the command that imports them."""
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
    """Add the files below a folder whose names say what they hold, and the others."""
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
    """The files below a folder in the order of their names, and folders that cannot be read with the reason. Hidden
    files, and checksums that lie beside their file, are none of an import's business."""
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
