"""The `klinesync` command. Exit status: 0 done, 1 failed (one sentence on stderr), 2 wrong use."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import logging
import os
import signal
import sys
import tempfile
import time
import webbrowser
from collections.abc import Callable, Coroutine, Iterator, Sequence
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from klinesync import __version__
from klinesync.core.candle import Candle
from klinesync.core.errors import BadFlag, KlinesyncError, Rejected
from klinesync.core.series_id import SeriesId
from klinesync.core.timeframe import Timeframe
from klinesync.runtime.flags import RuntimeFlags, flag_rows, flag_text, load_flags, sqlite_path
from klinesync.runtime.logs import set_up_logs

if TYPE_CHECKING:
    from klinesync.market_data.findings import LedgerAudit, SeriesAudit
    from klinesync.sim.exchange import SimExchange
    from klinesync.sim.faults import Fault

# The demo follows that many series of each market when no whitelist is given.
DEMO_MOST_SERIES_A_MARKET = 20
MAX_SYMBOLS = 5000
# A look for garbage goes through all that a thousand series hold in memory, and stops everything meanwhile. Little of
# what comes and goes here is garbage that only such a look finds.
GARBAGE_THRESHOLDS = (100_000, 20, 50)
# Long work says how far it is that often when nobody looks at a terminal.
PROGRESS_LINE_S = 10.0
# The exit status of work that a signal broke off, as shells have it.
INTERRUPTED = 130


class WrongUse(Rejected):
    """The command line does not say what to do."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the process's exit status."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    set_up_logs("console", "debug" if arguments.verbose else "info")
    command: Callable[[argparse.Namespace], int] = arguments.run
    try:
        return command(arguments)
    except WrongUse as error:
        print(f"klinesync: {error}", file=sys.stderr)
        return 2
    except KlinesyncError as error:
        print(f"klinesync: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="klinesync", description="Candles that charts, strategies and bots can trust.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"klinesync {__version__}")
    parser.add_argument("--verbose", action="store_true", help="log more")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    serve = _command(commands, "serve", _serve, "the service, against the real exchange")
    _add_flags(serve)

    demo = _command(
        commands,
        "demo",
        _demo,
        "the service wired to a local simulated exchange: no network, account or key needed",
        "Prints the page's address. The store is a temporary file unless --database-url names one.",
    )
    _add_exchange(demo)
    demo.add_argument("--no-browser", action="store_true", help="do not open the page")
    _add_flags(demo)

    sim = _command(commands, "sim", _sim, "the simulated exchange alone")
    sim.add_argument("--port", type=_port, default=0, help="port to listen on (default: a free one)")
    _add_exchange(sim)
    sim.add_argument("--start", type=_time, metavar="TIME", help="the exchange's time at the start")
    sim.add_argument("--faults", type=Path, metavar="FILE", help="faults in force from the start: a JSON list")

    watch = _command(commands, "watch", _watch, "live candles of a running service in the terminal")
    watch.add_argument("series_id", metavar="SERIES_ID", help="for example binance:spot:BTC/USDT:1m")
    watch.add_argument("--url", help="the service's address (default: that of the flags host and port)")
    watch.add_argument("--json", action="store_true", help="one JSON message a line")
    _add_flags(watch)

    backfill = _command(
        commands,
        "backfill",
        _backfill,
        "fetch history into the store",
        "Asks only for what is missing. May be interrupted, and run again to go on.",
    )
    backfill.add_argument("series_id", type=_series, metavar="SERIES_ID", help="of a derived series, its base's")
    _add_span(backfill, needs_from=True)
    backfill.add_argument("--source", choices=("rest", "freqtrade", "archive"), help="take it from there alone")
    _add_url(backfill, "have the running service at this address do it; with --source, send it the candles")
    backfill.add_argument("--json", action="store_true", help="machine output")
    _add_flags(backfill)

    import_ = _command(
        commands,
        "import",
        _import,
        "candles from files: freqtrade's, an exchange's archive, CSV",
        "The name says which series a file holds, or --series. Of a folder the files count whose names do. A file that "
        "is unreadable, truncated or fails its checksum is refused as a whole; single bad rows are left out and "
        "counted. May be interrupted, and run again to go on.",
    )
    import_.add_argument("path", nargs="+", type=Path, metavar="PATH", help="files, or folders of them")
    import_.add_argument(
        "--series", type=_series, metavar="SERIES_ID", help="what the files hold, whatever their names"
    )
    import_.add_argument("--exchange", default="binance", metavar="NAME", help="whose freqtrade files are (binance)")
    import_.add_argument("--strict", action="store_true", help="refuse a file that has a bad row")
    _add_url(import_, "send the candles through the running service at this address")
    import_.add_argument("--json", action="store_true", help="machine output")
    _add_flags(import_)

    export = _command(
        commands,
        "export",
        _export,
        "closed candles of a series into a file",
        "Only reads, also beside a running service. A file that is there is replaced when the new one is whole.",
    )
    export.add_argument("series_id", type=_series, metavar="SERIES_ID", help="for example binance:spot:BTC/USDT:1h")
    export.add_argument("--format", choices=("parquet", "feather", "csv"), required=True, help="the file's format")
    export.add_argument(
        "--output", type=Path, required=True, metavar="PATH", help="the file; with --freqtrade a folder"
    )
    _add_span(export)
    export.add_argument(
        "--factors", action="store_true", help="beside the candles, what factors and indicators said when they closed"
    )
    export.add_argument("--freqtrade", action="store_true", help="freqtrade's name and columns, for its data folder")
    export.add_argument("--json", action="store_true", help="machine output")
    _add_flags(export)

    verify = _command(
        commands,
        "verify",
        _verify,
        "audit the store: gaps by state, derived candles, factors and overlays computed anew and compared",
        "Only reads, also beside a running service. Exit status 1 when something differs.",
    )
    verify.add_argument(
        "series_id", nargs="*", type=_series, metavar="SERIES_ID", help="audit these (default: all that are stored)"
    )
    verify.add_argument("--json", action="store_true", help="machine output")
    _add_flags(verify)

    backup = _command(
        commands,
        "backup",
        _backup,
        "an online copy of the store",
        "Works beside a running service. PATH must not exist; it appears when the copy is whole and on disk.",
    )
    backup.add_argument("path", type=Path, metavar="PATH", help="the new file")
    _add_flags(backup)

    flags = _command(commands, "flags", _flags, "every flag: default, value in force, where it came from")
    flags.add_argument("--json", action="store_true", help="machine output")
    _add_flags(flags)
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],  # argparse has no public name for it
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
    more: str = "",
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}. {more}".strip())
    parser.set_defaults(run=run)
    return parser


def _add_exchange(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--speed", type=_speed, default=1.0, help="exchange seconds in a second (default 1)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="recorded candles to replay (default: a generator)")
    parser.add_argument("--symbols", type=_count, default=20, help="generator: symbols on each market (default 20)")


def _add_span(parser: argparse.ArgumentParser, *, needs_from: bool = False) -> None:
    parser.add_argument(
        "--from", dest="from_", type=_time, required=needs_from, metavar="TIME", help="first open time (the oldest)"
    )
    parser.add_argument("--to", type=_time, metavar="TIME", help="open times before this one (all)")


def _add_url(parser: argparse.ArgumentParser, meaning: str) -> None:
    parser.add_argument("--url", type=_url, help=meaning)


def _add_flags(parser: argparse.ArgumentParser) -> None:
    """Every flag as an option; given ones are told apart by being present, so none has a default here."""
    group = parser.add_argument_group("flags", "also as KLINESYNC_<NAME> and in klinesync.toml")
    for name, field in RuntimeFlags.model_fields.items():
        option = "--" + name.replace("_", "-")
        # argparse formats help with %
        text = (field.description or "").replace("%", "%%")
        group.add_argument(option, dest=f"flag_{name}", metavar="VALUE", help=text, default=argparse.SUPPRESS)


def _given_flags(arguments: argparse.Namespace) -> dict[str, str]:
    return {name[5:]: value for name, value in vars(arguments).items() if name.startswith("flag_")}


def _serve(arguments: argparse.Namespace) -> int:
    flags = load_flags(_given_flags(arguments))
    return _run(_serve_until_stopped(flags, "serve", ready=lambda url: print(f"klinesync serves {url}", flush=True)))


def _demo(arguments: argparse.Namespace) -> int:
    given = _given_flags(arguments)
    for name in given:
        if name.startswith("binance_") and name.endswith("_url"):
            raise WrongUse(f"--{name.replace('_', '-')} has no place here: demo brings its own exchange")
    return _run(_demo_until_stopped(arguments, given))


def _sim(arguments: argparse.Namespace) -> int:
    return _run(_sim_until_stopped(arguments))


def _watch(arguments: argparse.Namespace) -> int:
    from klinesync.client.watch import watch  # the service does without its packages

    flags = load_flags(_given_flags(arguments))
    host = f"[{flags.host}]" if ":" in flags.host else flags.host
    url = arguments.url or f"http://{host}:{flags.port}"
    return _run(_until_interrupted(watch(url, arguments.series_id, as_json_lines=arguments.json)))


def _verify(arguments: argparse.Namespace) -> int:
    from klinesync.factor.indicator_names import parse_indicators
    from klinesync.market.runtime_builder import ledger_step
    from klinesync.market_data.verify import verify
    from klinesync.market_data.verify_ledger import LedgerVerifier
    from klinesync.storage.sqlite import SqliteReader

    flags = load_flags(_given_flags(arguments))
    indicators = parse_indicators(flags.indicators)
    ledger = LedgerVerifier(ledger_step(flags, indicators), indicators)
    targets = flags.derived_timeframes if flags.enable_derived_timeframes else ()
    with SqliteReader(sqlite_path(flags)) as store, _progress() as say:
        audits = list(
            verify(
                store,
                Timeframe.parse(flags.derived_base_timeframe),
                [Timeframe.parse(code) for code in targets],
                arguments.series_id,
                lambda audit: say(f"{audit.series}: {audit.now}"),
                ledger,
            )
        )
    different = [audit for audit in audits if audit.differences]
    differences = sum(audit.differences for audit in audits)
    if arguments.json:
        found = [_audit_json(audit) for audit in audits]
        print(json.dumps({"store": str(store.path), "differences": differences, "series": found}, indent=1))
    else:
        for audit in audits:
            _print_audit(audit)
        print(f"{len(audits)} series, {sum(audit.count for audit in audits)} candles")
    if different:
        plural = "difference" if differences == 1 else "differences"
        print(f"klinesync: {differences} {plural} in {len(different)} of {len(audits)} series", file=sys.stderr)
    return 1 if different else 0


def _backup(arguments: argparse.Namespace) -> int:
    from klinesync.storage.backup import backup
    from klinesync.storage.sqlite import SqliteReader

    flags = load_flags(_given_flags(arguments))
    with _stoppable(), SqliteReader(sqlite_path(flags)) as store, _progress() as say:
        backup(store, arguments.path, lambda done, total: say(f"{arguments.path}: {done * 100 // max(total, 1)} %"))
    print(f"{sqlite_path(flags)} is copied to {arguments.path} ({arguments.path.stat().st_size} bytes)")
    return 0


def _import(arguments: argparse.Namespace) -> int:
    from klinesync.history_commands import import_paths

    flags = load_flags(_given_flags(arguments))
    return _run(_until_interrupted(import_paths(flags, arguments), interrupted=INTERRUPTED))


def _export(arguments: argparse.Namespace) -> int:
    from klinesync.history_commands import export_series

    if arguments.factors and arguments.freqtrade:
        raise WrongUse("freqtrade reads no other columns than its own; leave --factors or --freqtrade")
    if arguments.freqtrade and arguments.format == "csv":
        raise WrongUse("freqtrade reads no CSV; use --format feather or parquet")
    with _stoppable():
        return export_series(load_flags(_given_flags(arguments)), arguments)


def _backfill(arguments: argparse.Namespace) -> int:
    from klinesync.history_commands import backfill

    flags = load_flags(_given_flags(arguments))
    return _run(_until_interrupted(backfill(flags, arguments), interrupted=INTERRUPTED))


def _print_audit(audit: SeriesAudit) -> None:
    covers = "" if audit.first is None or audit.head is None else f" from {_iso(audit.first)} to {_iso(audit.head)}"
    derived = "" if audit.base is None else f", derived from {audit.base.timeframe}"
    native = f", {audit.native} native" if audit.native else ""
    print(f"{audit.series}: {audit.count} candles{covers}{derived}{native}")
    for state, (spans, candles) in audit.gaps.items():
        if spans:
            plural = "gap" if spans == 1 else "gaps"
            print(f"    {spans} {plural} {state.replace('_', ' ')}: {candles} candles")
    if audit.ledger is not None and audit.head is not None:
        print(f"    factors and overlays: {_ledger_sentence(audit.ledger)}")
    for kind, count in audit.kinds.items():
        print(f"    DIFFERS: {count} {kind}")
    for difference in audit.shown:
        print(f"        {_iso(difference.time)}: {difference.what}")
        for name, candle in (("stored", difference.stored), ("expected", difference.expected)):
            if candle is not None:
                print(
                    f"            {name:<8} {' '.join(f'{part}={value!r}' for part, value in _values(candle).items())}"
                )
    if audit.differences > len(audit.shown):
        print(f"        … and {audit.differences - len(audit.shown)} more")


def _ledger_sentence(ledger: LedgerAudit) -> str:
    compared = f"{ledger.events} events, {ledger.drawings} drawings, {ledger.checkpoints} checkpoints"
    head = "nowhere" if ledger.factor_head is None else _iso(ledger.factor_head)
    match ledger.status:
        case "none":
            return "not computed yet; the service does"
        case "other_factors":
            return "computed by other factors, overlays or parameters, not compared; the service computes them anew"
        case "changing":
            return "rewound again and again while they were read, not compared; run it again"
        case "lagging":
            return f"{compared} up to {head}; behind the candles, the service brings them up to date"
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
    """Prices and volume; None for what is not finite, which JSON has no number for."""
    return {name: value if isfinite(value) else None for name, value in candle._asdict().items() if name != "time"}


def _flags(arguments: argparse.Namespace) -> int:
    given = _given_flags(arguments)
    rows = flag_rows(load_flags(given), given)
    if arguments.json:
        table = [
            {
                "name": row.name,
                "environment": row.environment,
                "default": flag_text(row.default),
                "value": flag_text(row.value),
                "source": row.source,
                "meaning": row.meaning,
            }
            for row in rows
        ]
        print(json.dumps(table, indent=1))
        return 0
    for row in rows:
        changed = "" if row.source == "default" else f"  (default {flag_text(row.default) or 'none'})"
        print(f"{row.name} = {flag_text(row.value) or 'none'}  [{row.source}]{changed}")
        print(f"    {row.environment}: {row.meaning}")
    return 0


def _run(command: Coroutine[object, object, int]) -> int:
    """Run a command on an event loop of its own until it ends, or is interrupted."""
    import uvloop

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(command)
    except* KlinesyncError as group:
        raise _first(group) from None


async def _until_interrupted(command: Coroutine[object, object, int], interrupted: int = 0) -> int:
    """Run a command until it ends, or SIGINT or SIGTERM do it: then the status is `interrupted`, which is 0 for one
    that is meant to be ended so. A second one acts at once."""
    task = asyncio.create_task(command, name="command")
    stopping = contextlib.ExitStack()

    def stop() -> None:
        stopping.close()
        task.cancel()

    with stopping:
        stopping.enter_context(_on_signal(stop))
        await asyncio.wait([task])
    if not task.cancelled():
        return task.result()
    if interrupted:
        print("klinesync: interrupted; what is written stays, and running it again goes on", file=sys.stderr)
    return interrupted


def _first(group: BaseExceptionGroup[KlinesyncError]) -> KlinesyncError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, KlinesyncError)
    return error


async def _serve_until_stopped(flags: RuntimeFlags, command: str, *, ready: Callable[[str], None]) -> int:
    """The service until SIGINT or SIGTERM; `ready` gets its address once it answers."""
    from klinesync.market.app import bind, create_app, create_server
    from klinesync.market.http_limits import allow_connections
    from klinesync.market.runtime_builder import build_market_runtime

    gc.set_threshold(*GARBAGE_THRESHOLDS)
    verbose = logging.getLogger().isEnabledFor(logging.DEBUG)  # --verbose
    set_up_logs(flags.log_format, "debug" if verbose else flags.log_level)
    listener = bind(flags.host, flags.port)
    host, port = listener.getsockname()[:2]
    async with build_market_runtime(flags, command=command) as runtime:
        allow_connections()
        server = create_server(create_app(runtime), runtime)
        with _on_signal(server.stop):
            ready(f"http://{f'[{host}]' if ':' in host else host}:{port}/")
            await server.serve(sockets=[listener])
    return 0


async def _demo_until_stopped(arguments: argparse.Namespace, given: dict[str, str]) -> int:
    from klinesync.sim.server import SimConfig, SimServer

    def ready(url: str) -> None:
        print(f"klinesync serves {url}", flush=True)
        if not arguments.no_browser and os.isatty(1):
            webbrowser.open(url)

    with tempfile.TemporaryDirectory(prefix="klinesync-demo-") as folder:
        async with SimServer(
            SimConfig(speed=arguments.speed, data=arguments.data, symbols=arguments.symbols)
        ) as exchange:
            for name in ("binance_spot", "binance_futures"):
                given |= {f"{name}_rest_url": exchange.http_url, f"{name}_ws_url": exchange.ws_url}
            sources = {row.name: row.source for row in flag_rows(load_flags(given), given)}
            if sources["port"] == "default":
                given["port"] = "0"
            if sources["database_url"] == "default":
                given["database_url"] = f"sqlite:///{folder}/klinesync.sqlite"
            if sources["whitelist"] == sources["whitelist_path"] == "default":
                given["whitelist"] = ",".join(_demo_whitelist(exchange.exchange))
            flags = load_flags(given)
            print(
                f"the simulated exchange runs at {exchange.http_url} ({arguments.speed:g} times real time)", flush=True
            )
            print(f"the store is {flags.database_url}", flush=True)
            return await _serve_until_stopped(flags, "demo", ready=ready)


def _demo_whitelist(exchange: SimExchange) -> list[str]:
    """The first symbols of each market; BTC and ETH are among them where the exchange has them."""
    symbols = [
        listing.symbol
        for listings in (exchange.spot, exchange.futures)
        for listing in list(listings.values())[:DEMO_MOST_SERIES_A_MARKET]
    ]
    return [f"binance:{symbol.market}:{symbol.base}/{symbol.quote}:1m" for symbol in symbols]


async def _sim_until_stopped(arguments: argparse.Namespace) -> int:
    from klinesync.sim.server import SimConfig, SimServer

    config = SimConfig(
        port=arguments.port,
        speed=arguments.speed,
        data=arguments.data,
        symbols=arguments.symbols,
        start=arguments.start,
        faults=() if arguments.faults is None else _fault_script(arguments.faults),
    )
    stop = asyncio.Event()
    async with contextlib.AsyncExitStack() as stack:
        try:
            exchange = await stack.enter_async_context(SimServer(config))
        except OSError as error:
            raise BadFlag("port", f"{arguments.port} cannot be listened on: {error.strerror}") from None
        with _on_signal(stop.set):
            print(f"the simulated exchange listens on {exchange.http_url}", flush=True)
            await stop.wait()
    return 0


def _fault_script(path: Path) -> tuple[Fault, ...]:
    from klinesync.sim.faults import BadFault, decode_script

    try:
        return decode_script(path.read_bytes())
    except OSError as error:
        raise BadFlag("faults", f"{path} cannot be read: {error.strerror}") from None
    except BadFault as error:
        raise BadFlag("faults", f"{path} cannot be used: {error}") from None


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """How far long work is, on stderr: one line that changes on a terminal, a line now and then elsewhere."""
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        with console.status("") as status:
            yield status.update
        return
    said_at_s = time.monotonic()

    def say(text: str) -> None:
        nonlocal said_at_s
        if time.monotonic() - said_at_s >= PROGRESS_LINE_S:
            said_at_s = time.monotonic()
            print(text, file=sys.stderr, flush=True)

    yield say


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM stops as SIGINT does, with everything put away."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _on_signal(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` at SIGINT or SIGTERM."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _iso(time_s: int) -> str:
    try:
        return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):  # what a damaged store may hold
        return str(time_s)


def _series(text: str) -> SeriesId:
    try:
        return SeriesId.parse(text)
    except Rejected as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _url(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"{text} is no http:// address")
    return text.rstrip("/")


def _speed(text: str) -> float:
    speed = float(text)
    if not (isfinite(speed) and speed > 0):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return speed


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MAX_SYMBOLS:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1 to {MAX_SYMBOLS}")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text} is not a port")
    return int(text)


def _time(text: str) -> int:
    """ISO 8601 (UTC when no zone is given) or unix seconds."""
    if text.isdecimal():
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is neither ISO 8601 nor unix seconds") from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
