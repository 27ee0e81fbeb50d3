"""Standard output and error, which may be closed, on a full disk, or a pipe without a reader.

When the reader of a pipe is gone (`klinesync flags | head`), the text is dropped, and the exit status is that of the
work. After any other failure the command ends with one sentence; a service (`serve`, `demo`, `sim`) drops the text, and
goes on.
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
    """The output of a command cannot be written."""

    code = "output_lost"

    def __init__(self, reason: str) -> None:
        super().__init__(f"standard output cannot be written: {reason}")


class _Stream(io.FileIO):
    """Standard output or error. `drops`: whether text that cannot be written is dropped; `tells_closed_pipe`: whether a
    pipe without a reader raises `BrokenPipeError`."""

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
        # The original streams, referenced so that they are not closed before the process ends.
        self._originals: list[object] = []

    def take_over(self) -> None:
        """Replace the standard streams. A closed descriptor gets the null device, so that no file or socket takes its
        number: native code writes to these numbers, and uvloop aborts when such a socket closes."""
        _fill_closed_descriptors()
        if _is_ours(sys.stdout, STDOUT):
            self._stream = _Stream(STDOUT, drops=False)
            self._originals.append(sys.stdout)
            sys.stdout = _text(self._stream, sys.stdout, line_buffering=os.isatty(STDOUT))
        if _is_ours(sys.stderr, STDERR):
            self._originals.append(sys.stderr)
            sys.stderr = _text(_Stream(STDERR, drops=True), sys.stderr, line_buffering=True)

    def let_go(self) -> None:
        """From now on, drop text that cannot be written: the command is a service, which goes on without output."""
        if self._stream is not None:
            self._stream.drops = True

    def tell_closed_pipe(self) -> None:
        """From now on, raise `BrokenPipeError` when the reader of a pipe is gone: the command ends by that."""
        if self._stream is not None:
            self._stream.tells_closed_pipe = True

    def finish(self) -> None:
        """Flush standard output. Raises `OutputLost`; Python does not flush again at its end."""
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            _to_null_device(STDOUT)
        except OutputLost:
            _to_null_device(STDOUT)
            raise


def _is_ours(stream: io.TextIOBase | object, number: int) -> bool:
    """Whether a stream writes to the descriptor, unlike those of a test runner. None: the descriptor is closed."""
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
            # Opened for reading: a write fails with EBADF, as on a closed descriptor.
            opened = os.open(os.devnull, os.O_RDONLY)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)


def _to_null_device(number: int) -> None:
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, number)
        os.close(null)
