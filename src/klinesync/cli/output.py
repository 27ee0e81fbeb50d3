"""Standard output and error that may be closed, full, or read by nobody, whatever the command.

A pipe that its reader has closed (`klinesync flags | head`) ends nothing: the text is dropped, and the exit status is
that of the work. Any other failure (closed, a full disk) loses what was asked for, and ends the command with one
sentence; of a service (`serve`, `demo`, `sim`) it drops the text alone.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import TYPE_CHECKING

from klinesync.core.errors import KlinesyncError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

STDOUT = 1
STDERR = 2


class OutputLost(KlinesyncError):
    """What a command has to say cannot be written."""

    code = "output_lost"

    def __init__(self, reason: str) -> None:
        super().__init__(f"standard output cannot be written: {reason}")


class _Stream(io.FileIO):
    """Standard output or error. `drops` says whether what cannot be written is dropped; `tells_closed_pipe` whether a
    pipe without a reader is an error (`BrokenPipeError`) all the same."""

    def __init__(self, number: int, *, drops: bool) -> None:
        super().__init__(number, "w", closefd=False)
        self.drops = drops
        self.tells_closed_pipe = False

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            if self.tells_closed_pipe:
                raise
        except OSError as error:
            if not self.drops:
                raise OutputLost(error.strerror or str(error)) from None
        return memoryview(data).nbytes


class Output:
    """The process's standard output and error, once `take_over` was called."""

    def __init__(self) -> None:
        self._stream: _Stream | None = None
        # What was opened in place of a closed descriptor, and the streams before: kept for as long as the process.
        self._kept: list[object] = []

    def take_over(self) -> None:
        """Stand between the program and its standard streams. A closed descriptor gets the null device, so that no
        file or socket ever takes its number: native code writes there, and uvloop aborts when such a socket closes."""
        _fill_closed_descriptors()
        if _is_ours(sys.stdout, STDOUT):
            self._stream = _Stream(STDOUT, drops=False)
            self._kept.append(sys.stdout)
            sys.stdout = _text(self._stream, sys.stdout, line_buffering=os.isatty(STDOUT))
        if _is_ours(sys.stderr, STDERR):
            self._kept.append(sys.stderr)
            sys.stderr = _text(_Stream(STDERR, drops=True), sys.stderr, line_buffering=True)

    def let_go(self) -> None:
        """Drop what cannot be written, from now on: the command is a service, which serves all the same."""
        if self._stream is not None:
            self._stream.drops = True

    def tell_closed_pipe(self) -> None:
        """Raise `BrokenPipeError` where nobody reads any more: that is how the command ends."""
        if self._stream is not None:
            self._stream.tells_closed_pipe = True

    def finish(self) -> None:
        """Write what is still held back. Raises `OutputLost`; at Python's end nothing is tried again."""
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            _to_null_device(STDOUT)
        except OutputLost:
            _to_null_device(STDOUT)
            raise


def _is_ours(stream: io.TextIOBase | object, number: int) -> bool:
    """Whether a stream writes to the descriptor: what tests put in its place does not. None is a closed one."""
    if stream is None:
        return True
    if not isinstance(stream, io.TextIOWrapper):
        return False
    try:
        return stream.fileno() == number and stream in (sys.__stdout__, sys.__stderr__)
    except (OSError, ValueError):
        return False


def _text(raw: _Stream, before: object, *, line_buffering: bool) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=before.encoding if isinstance(before, io.TextIOWrapper) else "utf-8",
        errors="backslashreplace",
        line_buffering=line_buffering,
    )


def _fill_closed_descriptors() -> None:
    for number in (0, STDOUT, STDERR):
        try:
            os.fstat(number)
        except OSError:
            # For reading: a write says EBADF, as it does on a closed descriptor.
            opened = os.open(os.devnull, os.O_RDONLY)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)


def _to_null_device(number: int) -> None:
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, number)
        os.close(null)
