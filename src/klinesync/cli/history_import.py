"""`klinesync import`: candles from files, into the store or through a running service."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import sys
from collections.abc import Callable, Iterator, Sequence

from klinesync.cli.history_store import stored_derived_step, writer
from klinesync.cli.progress import Say, bar
from klinesync.core.counted import counted
from klinesync.core.errors import KlinesyncError, StoreError, UpstreamError
from klinesync.core.printable import printable
from klinesync.exchanges.exchange import Listing
from klinesync.history.files.importing import ReadOptions, import_files, sentence, stoppable
from klinesync.history.files.names import ARCHIVE_EXCHANGE
from klinesync.history.files.planning import Imported, ImportFile, find, plan
from klinesync.history.files.readers import BadFile
from klinesync.market_data.listings import SymbolNames, stored_listings
from klinesync.pipelines.derived_step import DerivedStep
from klinesync.runtime.clock import SYSTEM_CLOCK
from klinesync.runtime.flags import RuntimeFlags, sqlite_path
from klinesync.runtime.looking import is_file
from klinesync.storage.sqlite_reader import SqliteReader

# New objects between two runs of the garbage collector during an import: those of several batches.
COLLECT_AFTER_OBJECTS = 500_000
# Longest wait for the exchange's list of symbols, in seconds.
ASK_LISTING_TIMEOUT_S = 20.0


async def import_paths(flags: RuntimeFlags, arguments: argparse.Namespace) -> int:
    """Store the candles of the files. Returns 1 when a file was refused, or the import failed midway."""
    candidates = await stoppable(lambda stopped: find(arguments.path, arguments.series, arguments.exchange, stopped))
    names = _symbol_names(flags)
    planned, done = await plan(candidates, names.name)
    derived = stored_derived_step(flags, arguments.url)
    files = [file for file in planned if not (derived.derives(file.series) or file.series in derived.dormant)]
    done += [_derived(file, derived, named=file.path in arguments.path) for file in planned if file not in files]
    options = ReadOptions(strict=arguments.strict, unterminated=arguments.unterminated)
    imported: list[Imported] = []
    failure: KlinesyncError | None = None
    began_s = SYSTEM_CLOCK.monotonic_s()

    def report() -> None:
        took_s = SYSTEM_CLOCK.monotonic_s() - began_s
        _report([*done, *imported], len(files) - len(imported), took_s, as_json=arguments.json)

    try:
        async with writer(flags, derived, arguments.url, "import", names.asked, checked=True) as (put, now):
            with bar() as say, _rare_garbage_collection():
                try:
                    await import_files(files, put, now, options, imported, _progress_of(say, files))
                except KlinesyncError as error:
                    failure = error
    except asyncio.CancelledError:
        report()
        raise
    report()
    if failure is not None:
        stored = sum(file.stored for file in imported)
        are = "is" if stored == 1 else "are"
        advice = f"{counted(stored, 'candle')} {are} stored; run it again to continue"
        print(printable(f"klinesync: {failure}; {advice}"), file=sys.stderr)
        return 1
    refused = [file.refused for file in (*done, *imported) if file.refused is not None]
    if refused:
        count = len(done) + len(imported)
        why = f": {refused[0]}" if len(refused) == 1 else ""
        refusal = refused[0] if count == 1 else f"{len(refused)} of {count} files refused{why}"
        print(printable(f"klinesync: {refusal}"), file=sys.stderr)
    return 1 if refused else 0


def _symbol_names(flags: RuntimeFlags) -> SymbolNames:
    """The names of symbols, from the lists in the store, or from the exchange when the store has no list."""
    path = sqlite_path(flags)

    def stored(market: str) -> Sequence[Listing]:
        if not is_file(path):
            return []
        try:
            with SqliteReader(path) as store:
                return store.read(lambda look: stored_listings(look, ARCHIVE_EXCHANGE, market))
        except StoreError:
            return []  # the writer opens the store next, and migrates an old schema or raises the error

    async def ask(market: str) -> Sequence[Listing]:
        # Imported here: exchanges take longer to import than most files.
        from klinesync.cli.history_exchange import exchanges_of

        async with exchanges_of(flags) as registry:
            exchange = registry.exchange(ARCHIVE_EXCHANGE)
            try:
                async with asyncio.timeout(ASK_LISTING_TIMEOUT_S):
                    return list((await exchange.listings(market, 0.0)).values())
            except TimeoutError:
                why = exchange.contact(market).failure or f"no answer within {ASK_LISTING_TIMEOUT_S:g} s"
                raise UpstreamError(why) from None

    return SymbolNames(stored, ask)


def _derived(file: ImportFile, derived: DerivedStep, *, named: bool) -> Imported:
    """The result of a file of a derived series: refused when the command names the file, passed over in a folder."""
    base = derived.dormant[file.series].timeframe if file.series in derived.dormant else derived.base
    why = f"{file.series} is derived from {base}: import the {base} candles instead"
    if named:
        return Imported(file.path, file.series, refused=str(BadFile(file.path, why)))
    return Imported(file.path, file.series, note=f"passed over: {why}")


def _progress_of(say: Say, files: Sequence[ImportFile]) -> Callable[[ImportFile, int, int], None]:
    number = {file: position for position, file in enumerate(files)}

    def show(file: ImportFile, stored: int, candles: int) -> None:
        text = f"{file.path.name} ({number[file] + 1} of {len(files)}): {counted(stored, 'candle')}"
        say(text, (number[file] + stored / max(candles, 1)) / len(files))

    return show


def _report(done: Sequence[Imported], not_begun: int, took_s: float, *, as_json: bool) -> None:
    candles = sum(file.stored for file in done)
    if as_json:
        rows = [
            {
                "path": str(file.path),
                "series_id": None if file.series is None else str(file.series),
                "rows": file.rows,
                "candles": file.stored,
                "new": file.new,
                "quarantined": file.quarantined,
                "without_order_flow": file.flow_left_out,
                "first_bad_rows": file.examples,
                "first_time": file.first,
                "last_time": file.last,
                "refused": file.refused,
                "failed": file.failed,
                "note": file.note,
            }
            for file in done
        ]
        facts = {"files": rows, "candles": candles, "not_begun": not_begun, "seconds": round(took_s, 3)}
        print(json.dumps(facts, indent=1))
        return
    refused = sum(file.refused is not None for file in done)
    for file in done:
        if file.refused is None or refused > 1:  # a single refusal is printed on stderr
            print(sentence(file))
        for text in file.examples if file.refused is None else ():
            print(printable(f"    {text}"))
    print(
        f"{counted(len(done), 'file')}, {counted(candles, 'candle')} in {took_s:.1f} s "
        f"({candles / max(took_s, 1e-3):,.0f} candles/s)"
    )


@contextlib.contextmanager
def _rare_garbage_collection() -> Iterator[None]:
    """Run the cyclic garbage collector less often: candles are many small objects outside of cycles, and a run over
    them takes as long as all other work."""
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER_OBJECTS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
