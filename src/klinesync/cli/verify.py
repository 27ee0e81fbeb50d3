"""The command that audits a store and prints the findings: verify. The audit itself is `market_data.verify`."""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from klinesync.cli.arguments import given_flags, series
from klinesync.cli.command import Command
from klinesync.cli.progress import progress
from klinesync.core.candle import Candle
from klinesync.core.counted import counted
from klinesync.core.errors import Rejected, StoreError
from klinesync.core.printable import printable
from klinesync.core.spans import candle_count
from klinesync.runtime.clock import SYSTEM_CLOCK
from klinesync.runtime.flags import load_flags, sqlite_path

if TYPE_CHECKING:
    from klinesync.market_data.findings import LedgerAudit, SeriesAudit
    from klinesync.storage.repair import Repaired

# Damaged parts that a repair lists one by one.
MAX_ERRORS_SHOWN = 20


def _verify_arguments(verify: argparse.ArgumentParser) -> None:
    verify.add_argument(
        "series_id", nargs="*", type=series, metavar="SERIES_ID", help="audit these series (default: all stored ones)"
    )
    verify.add_argument("--json", action="store_true", help="machine output")
    verify.add_argument(
        "--repair",
        action="store_true",
        help="copy what can be read into a new file, which takes the store's place; the old file is kept beside it. "
        "For a stopped service, whose next start fetches or computes again what is missing",
    )


def _verify(arguments: argparse.Namespace) -> int:
    return _repair(arguments) if arguments.repair else _audit(arguments)


def _repair(arguments: argparse.Namespace) -> int:
    from klinesync.storage.repair import repair

    flags = load_flags(given_flags(arguments))
    path = sqlite_path(flags)
    if arguments.series_id:
        raise Rejected("verify --repair copies the whole store; leave the series out")
    with progress() as say:
        done = repair(path, int(SYSTEM_CLOCK.wall_s()), say)
    if arguments.json:
        print(json.dumps(_repair_json(path, done), indent=1))
        return 0
    for error in done.errors[:MAX_ERRORS_SHOWN]:
        print(printable(f"    DAMAGED: {error}"))
    if len(done.errors) > MAX_ERRORS_SHOWN:
        print(f"    … and {len(done.errors) - MAX_ERRORS_SHOWN} more")
    for one, spans in done.lost.items():
        missing = counted(candle_count(one.timeframe, spans), "candle")
        print(f"{one}: {missing} missing from {iso(spans[0].start)} on, to be fetched or computed by the next start")
    if done.aside is None:
        print(printable(f"{path}: no damage; nothing was changed"))
    else:
        what = f"{done.series} series, {counted(done.candles, 'candle')}"
        print(printable(f"{path}: a new file with {what}; the old one is {done.aside}"))
    return 0


def _repair_json(path: Path, done: Repaired) -> dict[str, object]:
    return {
        "store": str(path),
        "damaged": done.errors,
        "series": done.series,
        "candles": done.candles,
        "missing": [
            {"series_id": str(one), "start_time": span.start, "end_time": span.end}
            for one, spans in done.lost.items()
            for span in spans
        ],
        "aside": None if done.aside is None else str(done.aside),
    }


def _audit(arguments: argparse.Namespace) -> int:
    from klinesync.market.parts_writing import ledger_step
    from klinesync.market.settings import derived_timeframes, ledger_settings
    from klinesync.market_data.verify import verify
    from klinesync.market_data.verify_ledger import LedgerVerifier
    from klinesync.storage.damage import WHAT_TO_DO
    from klinesync.storage.sqlite_reader import SqliteReader

    flags = load_flags(given_flags(arguments))
    settings = ledger_settings(flags)
    ledger = LedgerVerifier(ledger_step(settings), settings.indicators)
    # The settings in the store count. The flags of this command are for a store without settings.
    by_flags = derived_timeframes(flags)
    with SqliteReader(sqlite_path(flags)) as store, progress() as say:
        say(f"{store.path}: SQLite's integrity check")
        problems = store.file_problems()
        try:
            audits = list(
                verify(
                    store,
                    *(store.read(lambda look: look.derived_settings()) or by_flags),
                    arguments.series_id,
                    lambda audit: say(f"{audit.series}: {audit.now}"),
                    ledger,
                )
            )
        except StoreError:
            _print_file(problems)  # they may explain the error
            raise
    different = [audit for audit in audits if audit.differences]
    differences = sum(audit.differences for audit in audits)
    if arguments.json:
        answer = {
            "store": str(store.path),
            "differences": differences,
            "file_problems": problems,
            "series": [_audit_json(audit) for audit in audits],
        }
        print(json.dumps(answer, indent=1))
    else:
        _print_file(problems)
        for audit in audits:
            _print_audit(audit)
        print(f"{len(audits)} series, {counted(sum(audit.count for audit in audits), 'candle')}")
    if problems:
        print(printable(f"klinesync: the file {store.path} is damaged; {WHAT_TO_DO}"), file=sys.stderr)
    if different:
        print(
            f"klinesync: {counted(differences, 'difference')} in {len(different)} of {len(audits)} series",
            file=sys.stderr,
        )
    return 1 if different or problems else 0


def _print_file(problems: list[str]) -> None:
    print("file: damaged" if problems else "file: SQLite's integrity check found no problem")
    for problem in problems:
        print(printable(f"    DAMAGED: {problem}"))


def _print_audit(audit: SeriesAudit) -> None:
    covers = "" if audit.first is None or audit.head is None else f" from {iso(audit.first)} to {iso(audit.head)}"
    derived = "" if audit.base is None else f", derived from {audit.base.timeframe}"
    native = f", {audit.native} native" if audit.native else ""
    print(f"{audit.series}: {counted(audit.count, 'candle')}{covers}{derived}{native}")
    for state, (spans, candles) in audit.gaps.items():
        if spans:
            print(f"    {counted(spans, 'gap')} {state.replace('_', ' ')}: {counted(candles, 'candle')}")
    if audit.ledger is not None and audit.head is not None:
        print(printable(f"    factors and overlays: {_ledger_sentence(audit.ledger)}"))
    for kind, count in audit.kinds.items():
        print(f"    DIFFERS: {count} {kind}")
    for difference in audit.shown:
        when = f"{iso(difference.time)}: " if difference.time else ""  # 0: of all that is stored of the series
        print(printable(f"        {when}{difference.what}"))
        for name, candle in (("stored", difference.stored), ("expected", difference.expected)):
            if candle is not None:
                print(
                    f"            {name:<8} {' '.join(f'{part}={value!r}' for part, value in _values(candle).items())}"
                )
    if audit.differences > len(audit.shown):
        print(f"        … and {audit.differences - len(audit.shown)} more")


def _ledger_sentence(ledger: LedgerAudit) -> str:
    compared = f"{ledger.events} events, {ledger.drawings} drawings, {ledger.checkpoints} checkpoints"
    head = "no candle" if ledger.factor_head is None else iso(ledger.factor_head)
    match ledger.status:
        case "none":
            return "not computed yet; the service will compute them"
        case "other_factors":
            return (
                "not compared: computed with other settings than the flags of this command, or by another version; run "
                "verify with the flags of the service; a service with the flags of this command recomputes them"
            )
        case "changing":
            return "rewound several times during the audit; not compared; run it again"
        case "lagging":
            return f"{compared} up to {head}; they lag behind the candles; the service will bring them up to date"
        case "up_to_date":
            return compared


def _audit_json(audit: SeriesAudit) -> dict[str, object]:
    return {
        "series_id": str(audit.series),
        "derived_from": None if audit.base is None else str(audit.base),
        "first_time": audit.first,
        "head_time": audit.head,
        "candle_count": audit.count,
        "native_count": audit.native,
        "gaps": {state: {"spans": spans, "candles": candles} for state, (spans, candles) in audit.gaps.items()},
        "ledger": None
        if audit.ledger is None
        else {
            "status": audit.ledger.status,
            "epoch": audit.ledger.epoch,
            "factor_head_time": audit.ledger.factor_head,
            "overlay_head_time": audit.ledger.overlay_head,
            "events": audit.ledger.events,
            "drawings": audit.ledger.drawings,
            "checkpoints": audit.ledger.checkpoints,
        },
        "differences": audit.kinds,
        "first_differences": [
            {
                "kind": difference.kind,
                "candle_time": difference.time,
                "what": difference.what,
                "stored": None if difference.stored is None else _values(difference.stored),
                "expected": None if difference.expected is None else _values(difference.expected),
            }
            for difference in audit.shown
        ],
    }


def _values(candle: Candle) -> dict[str, float | None]:
    """Prices and volume; None for values that are not finite, which JSON cannot represent."""
    return {
        name: value if value is not None and isfinite(value) else None
        for name, value in candle._asdict().items()
        if name != "time"
    }


def iso(time_s: int) -> str:
    try:
        return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):  # a damaged store may have any number
        return str(time_s)


# The flags that an audit uses.
VERIFY_FLAGS = (
    "database_url",
    "enable_derived_timeframes",
    "derived_base_timeframe",
    "derived_timeframes",
    "indicators",
    "factor_pivot_window_major",
    "factor_pivot_window_minor",
)
COMMANDS = {
    "verify": Command(
        _verify,
        _verify_arguments,
        more="Only reads the store, also beside a running service; with --repair the service must be stopped. Exit "
        "status 1: a difference, or a damaged file.",
        examples=("klinesync verify", "klinesync verify --repair"),
        flags=VERIFY_FLAGS,
    ),
}
