"""The commands that run until they are stopped: serve, demo, sim."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import tempfile
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from klinesync.cli.arguments import count, given_flags, port, speed, time_of
from klinesync.cli.command import Command, WrongUse, add_nothing
from klinesync.cli.running import Stop, run
from klinesync.core.errors import BadFlag, CannotListen
from klinesync.runtime.flag_groups import FLAG_GROUPS
from klinesync.runtime.flags import RuntimeFlags, load_flags, read_configuration
from klinesync.runtime.logs import set_up_logs

if TYPE_CHECKING:
    from klinesync.sim.exchange import SimExchange
    from klinesync.sim.faults import Fault

# Series of each market that the demo follows without a whitelist, at most.
DEMO_MOST_SERIES_A_MARKET = 20


def _demo_arguments(demo: argparse.ArgumentParser) -> None:
    _add_exchange(demo)
    demo.add_argument("--no-browser", action="store_true", help="do not open the page")


def _sim_arguments(sim: argparse.ArgumentParser) -> None:
    sim.add_argument("--port", type=port, default=0, help="port to listen on (default: a free one)")
    _add_exchange(sim)
    sim.add_argument("--start", type=time_of, metavar="TIME", help="time of the exchange at the start")
    sim.add_argument("--contracts", action="store_true", help="generator: list quarterly and other futures too")
    sim.add_argument("--odd-symbols", action="store_true", help="add unusual symbols to exchangeInfo")
    sim.add_argument("--faults", type=Path, metavar="FILE", help="faults from the start: a JSON list")


def _add_exchange(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--speed", type=speed, default=1.0, help="exchange seconds per second (default 1)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="recorded candles to replay (default: a generator)")
    parser.add_argument("--symbols", type=count, default=20, help="generator: symbols on each market (default 20)")


def _serve(arguments: argparse.Namespace) -> int:
    flags = load_flags(given_flags(arguments))

    async def serve() -> int:
        stop = Stop()
        with stop.covers_start():
            await _serve_until_stopped(
                flags, "serve", stop, ready=lambda url: print(f"klinesync serves {url}", flush=True)
            )
        return 0

    return run(serve())


def _demo(arguments: argparse.Namespace) -> int:
    given = given_flags(arguments)
    for name in given:
        if name in EXCHANGE_URLS:
            raise WrongUse(f"--{name.replace('_', '-')} cannot be set: demo starts its own exchange")
    return run(_demo_until_stopped(arguments, given))


def _sim(arguments: argparse.Namespace) -> int:
    return run(_sim_until_stopped(arguments))


async def _serve_until_stopped(flags: RuntimeFlags, command: str, stop: Stop, *, ready: Callable[[str], None]) -> None:
    """Run the service until `stop` is called.

    flags: the configuration.
    command: name of this command, which the lock of the store shows to others.
    stop: gets the function that stops the service.
    ready: called with the address when the service answers.
    """
    from klinesync.market.app import bind, create_app, create_server
    from klinesync.market.http_limits import allow_connections
    from klinesync.market.runtime_builder import build_market_runtime

    verbose = logging.getLogger().isEnabledFor(logging.DEBUG)  # --verbose
    set_up_logs(flags.log_format, "debug" if verbose else flags.log_level)
    with contextlib.closing(bind(flags.host, flags.port)) as listener:
        host, port = listener.getsockname()[:2]
        async with build_market_runtime(flags, command=command) as runtime:
            asyncio.get_running_loop().set_exception_handler(runtime.on_loop_defect)
            allow_connections()
            server = create_server(create_app(runtime), runtime)
            stop.then = server.stop
            ready(f"http://{f'[{host}]' if ':' in host else host}:{port}/")
            await server.serve(sockets=[listener])


async def _demo_until_stopped(arguments: argparse.Namespace, given: dict[str, str]) -> int:
    stop = Stop()
    with stop.covers_start():
        await _serve_demo(arguments, given, stop)
    return 0


async def _serve_demo(arguments: argparse.Namespace, given: dict[str, str], stop: Stop) -> None:
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
            given_by = read_configuration(given).given
            if "port" not in given_by:
                given["port"] = "0"
            if "database_url" not in given_by:
                given["database_url"] = f"sqlite:///{folder}/klinesync.sqlite"
            if not given_by.keys() & {"whitelist", "whitelist_path"}:
                given["whitelist"] = ",".join(_demo_whitelist(exchange.exchange))
            flags = load_flags(given)
            print(
                f"the simulated exchange runs at {exchange.http_url} ({arguments.speed:g} times real time)", flush=True
            )
            print(f"the store is {flags.database_url}", flush=True)
            await _serve_until_stopped(flags, "demo", stop, ready=ready)


def _demo_whitelist(exchange: SimExchange) -> list[str]:
    """Series of the first symbols of each market."""
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
        contracts=arguments.contracts,
        odd_symbols=arguments.odd_symbols,
        start=arguments.start,
        faults=() if arguments.faults is None else _fault_script(arguments.faults),
    )
    stop = Stop()
    stopped = asyncio.Event()
    with stop.covers_start():
        async with contextlib.AsyncExitStack() as stack:
            try:
                exchange = await stack.enter_async_context(SimServer(config))
            except OSError as error:
                raise CannotListen("127.0.0.1", arguments.port, error) from None
            stop.then = stopped.set
            print(f"the simulated exchange listens on {exchange.http_url}", flush=True)
            await stopped.wait()
    return 0


def _fault_script(path: Path) -> tuple[Fault, ...]:
    from klinesync.sim.faults import BadFault, decode_script

    try:
        return decode_script(path.read_bytes())
    except OSError as error:
        raise BadFlag("faults", f"{path} cannot be read: {error.strerror}") from None
    except BadFault as error:
        raise BadFlag("faults", f"{path} cannot be used: {error}") from None


# Flags that the demo sets to its own exchange.
EXCHANGE_URLS = ("binance_spot_rest_url", "binance_spot_ws_url", "binance_futures_rest_url", "binance_futures_ws_url")
DEMO_FLAGS = tuple(name for group in FLAG_GROUPS.values() for name in group if name not in EXCHANGE_URLS)
COMMANDS = {
    "serve": Command(
        _serve,
        add_nothing,
        more=(
            "Follows the whitelist, and other series while a client is subscribed; serves the page, HTTP and "
            "WebSocket. Runs until SIGINT, SIGTERM or SIGHUP."
        ),
        examples=("klinesync serve --port 8000 --whitelist binance:spot:BTC/USDT:1m",),
        output="service",
    ),
    "demo": Command(
        _demo,
        _demo_arguments,
        more="Prints the address of the page. The store is a temporary file unless --database-url names another.",
        examples=("klinesync demo --speed 60",),
        flags=DEMO_FLAGS,
        defaults={
            "port": "a free port",
            "database_url": "a temporary file",
            "whitelist": f"the first {DEMO_MOST_SERIES_A_MARKET} symbols of each market of the exchange",
        },
        output="service",
    ),
    "sim": Command(
        _sim,
        _sim_arguments,
        more="Speaks Binance's public market-data protocol, spot and USD-M futures, at one address.",
        examples=("klinesync sim --port 9000 --symbols 5",),
        flags=None,
        output="service",
    ),
}
