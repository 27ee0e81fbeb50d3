"""Commands as processes that start with all modules loaded: forks of a process that has loaded the modules once.

A command takes a second or two to load its modules, longer than most of its work in a test. A fork is a process like
any other: its own memory, signals, standard streams and exit status. Behaviour during loading is tested with new
interpreters.

Each command has a minder, its parent: a fork that forks the command, reports its pid, waits for its end and reports its
status.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TextIO

MODULES = (
    "klinesync.cli.backup",
    "klinesync.cli.explain_words",
    "klinesync.cli.history",
    "klinesync.cli.history_backfill",
    "klinesync.cli.history_export",
    "klinesync.cli.history_import",
    "klinesync.cli.serve",
    "klinesync.cli.service_client",
    "klinesync.cli.verify",
    "klinesync.market.app",
    "klinesync.market.http_limits",
    "klinesync.market.runtime_builder",
    "klinesync.sim.server",
    "rich.live",
    "uvloop",
)
# A pid or a status.
NUMBER = struct.Struct("!i")
MAX_REQUEST_BYTES = 1 << 20
STREAMS = 3
# Signals that a new process ignores when its parent ignores them.
INHERITED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Preloaded:
    """A command that was forked.

    stdout: its standard output.
    """

    def __init__(self, status: socket.socket, stdout: asyncio.StreamReader, pipe: asyncio.ReadTransport) -> None:
        self._status = status
        self.stdout = stdout
        self._pipe = pipe
        self.pid = _number(status)
        self._ended = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(status, self._end)

    def _end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._status)
        self._ended.set_result(_number(self._status))
        self._status.close()

    @property
    def returncode(self) -> int | None:
        """The exit status, or the negative number of the signal that ended the command; None while it runs."""
        return int(self._ended.result()) if self._ended.done() else None

    async def wait(self) -> int:
        """Wait for the end; the exit status."""
        return int(await asyncio.shield(self._ended))

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the command has ended."""
        if not self._ended.done():
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    async def end(self) -> None:
        """Kill the command if it still runs, and release its resources here."""
        self.kill()
        await self.wait()
        self._pipe.close()
        await asyncio.sleep(0)


async def start(arguments: Sequence[str], environment: Mapping[str, str], errors: int) -> Preloaded:
    """Start a command in the working directory of this process; its standard output is a pipe.

    arguments: the arguments after `klinesync`.
    environment: all environment variables.
    errors: descriptor of its standard error.
    """
    loop = asyncio.get_running_loop()
    reader, writer = os.pipe()
    stdout = asyncio.StreamReader()
    made = loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdout), os.fdopen(reader, "rb", 0))
    pipe, _ = await made
    try:
        return Preloaded(_fork(arguments, environment, Path.cwd(), writer, errors), stdout, pipe)
    finally:
        os.close(writer)


def run(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    cwd: Path,
    stdout: TextIO,
    errors: TextIO,
    timeout_s: float,
) -> int:
    """Run a command to its end; the exit status. Raises `TimeoutError`, after the command was killed."""
    with _fork(arguments, environment, cwd, stdout.fileno(), errors.fileno()) as status:
        pid = _number(status)
        status.settimeout(timeout_s)
        try:
            return _number(status)
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            raise


def _number(status: socket.socket) -> int:
    raw = status.recv(NUMBER.size)
    number: int
    (number,) = NUMBER.unpack(raw)
    return number


def _fork(
    arguments: Sequence[str], environment: Mapping[str, str], cwd: Path, stdout: int, errors: int
) -> socket.socket:
    """Fork a command. The socket carries its pid, then its status when it has ended."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ignored = [number for number in INHERITED if signal.getsignal(number) is signal.SIG_IGN]
    request = json.dumps([list(arguments), dict(environment), str(cwd), ignored]).encode()
    with theirs, open(os.devnull, "rb") as nothing:  # noqa: PTH123  # a device
        socket.send_fds(_forker(os.getpid()), [request], [nothing.fileno(), stdout, errors, theirs.fileno()])
    return ours


@cache
def _forker(_pid: int) -> socket.socket:
    """The connection to the process that has loaded the modules; one per test process, and ends with it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        forker = subprocess.Popen(
            [sys.executable, "-c", f"from support.preloaded import fork_commands; fork_commands({theirs.fileno()})"],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )

    def end() -> None:
        ours.close()
        forker.wait()

    atexit.register(end)
    return ours


def fork_commands(number: int) -> None:
    """Load the modules, then fork a command for each request on the socket `number`. Each fork ends as its command; the
    process itself ends when the other end of the socket is closed."""
    for name in MODULES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=number) as requests:
        while True:
            request, descriptors, _, _ = socket.recv_fds(requests, MAX_REQUEST_BYTES, STREAMS + 1)
            _forget_ended()
            if not request:
                return
            if os.fork() == 0:
                break
            for descriptor in descriptors:
                os.close(descriptor)
    *streams, status = descriptors
    _mind(status)
    arguments, environment, cwd, ignored = json.loads(request)
    for signal_number in ignored:
        signal.signal(signal_number, signal.SIG_IGN)
    for stream, descriptor in enumerate(streams):
        os.dup2(descriptor, stream)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = ["klinesync", *arguments]
    sys.path.remove(str(Path(__file__).parents[1]))
    from klinesync.__main__ import main

    raise SystemExit(main())


def _forget_ended() -> None:
    """Wait for the minders that have ended, so that their CPU time counts as that of the tests."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _mind(number: int) -> None:
    """Fork the command; returns only in the fork."""
    pid = os.fork()
    if pid == 0:
        os.close(number)
        return
    with socket.socket(fileno=number) as status:
        status.send(NUMBER.pack(pid))
        _, ended = os.waitpid(pid, 0)
        status.send(NUMBER.pack(os.waitstatus_to_exitcode(ended)))
    os._exit(0)
