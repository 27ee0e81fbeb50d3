"""What an import is about to do: which files, which series each holds, what is refused or passed over, and why."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from klinesync.core.printable import printable
from klinesync.core.series_id import SeriesId
from klinesync.market_data.history.files import ENDINGS, BadFile, check_regular
from klinesync.market_data.history.names import CHECKSUM, archive_file, freqtrade_series

# Files passed over in one folder that are named; the others are counted.
MAX_PASSED_OVER = 100
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


def plan(
    paths: Sequence[Path], series: SeriesId | None, exchange: str, stopped: Callable[[], bool] = lambda: False
) -> tuple[list[ImportFile], list[Imported]]:
    """The files to import, in order; and those that are refused, or passed over in a folder, each with the reason.

    series: what the files hold, whatever their names say; None: what the names say.
    exchange: whose freqtrade files are.
    stopped: asked between files; ends the search early.
    """
    files: list[ImportFile] = []
    others: list[Imported] = []
    for path in paths:
        if path.is_dir():
            if series is not None:
                others.append(_refuse(path, "it is a folder, and one series was named; name the files"))
                continue
            found, passed_over = _in_folder(path, exchange, stopped)
            files += found
            if not found:
                others.append(_refuse(path, "no file in this folder has a name that says which series it holds"))
            others += passed_over
        elif not path.exists():
            others.append(_refuse(path, "there is no such file"))
        else:
            file = ImportFile(path, series) if series is not None else _identify(path, exchange)
            try:
                check_regular(path)
            except BadFile as error:
                others.append(Imported(path, series, refused=str(error)))
                continue
            if file is None:
                readable = path.name.lower().endswith(ENDINGS)
                hint = "; say so with --series binance:spot:BTC/USDT:1m" if readable else ""
                others.append(_refuse(path, _why_no_series(path) + hint))
            else:
                files.append(file)
    unique = {file.path.resolve(): file for file in files}
    return sorted(unique.values(), key=lambda file: (str(file.series), file.first)), others


def _in_folder(folder: Path, exchange: str, stopped: Callable[[], bool]) -> tuple[list[ImportFile], list[Imported]]:
    """The files below a folder whose names say what they hold, and the others."""
    files: list[ImportFile] = []
    passed_over: list[Imported] = []
    count = 0
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
                files.append(file)
                continue
        count += 1
        if count <= MAX_PASSED_OVER:
            why = error or _why_no_series(path)
            passed_over.append(Imported(path, None, note=f"passed over: {printable(why)}"))
    if count > MAX_PASSED_OVER:
        passed_over.append(Imported(folder, None, note=f"passed over: {count - MAX_PASSED_OVER} more files"))
    return files, passed_over


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


def _identify(path: Path, exchange: str) -> ImportFile | None:
    series = freqtrade_series(path.name, exchange)
    if series is not None:
        return ImportFile(path, series)
    file = archive_file(path)
    return None if file is None else ImportFile(path, file.series, file.span.start)


def _why_no_series(path: Path) -> str:
    """Why a file's name says no series."""
    name = path.name.lower()
    if not name.endswith(ENDINGS):
        return f"its name ends in none of {' '.join(ENDINGS)}"
    for part, what in _NO_CANDLES.items():
        if part in name:
            return f"by its name it holds {what}, not candles"
    return "its name does not say which series it holds"


def _refuse(path: Path, why: str) -> Imported:
    return Imported(path, None, refused=str(BadFile(path, why)))
