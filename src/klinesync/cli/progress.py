"""Progress of long work, on stderr: in place on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from klinesync.core.printable import printable
from klinesync.runtime.clock import SYSTEM_CLOCK

# Seconds between two progress lines where stderr is no terminal.
PROGRESS_LINE_S = 10.0

# Shows what is being done, as a text, and the share of the work that is done, from 0 to 1.
Say = Callable[[str, float], None]


@contextlib.contextmanager
def bar() -> Iterator[Say]:
    """Progress of long work whose share is known: a bar on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        print_line = _line_printer()
        yield lambda text, share: print_line(f"{text} ({share:.0%})")
        return
    # Texts contain file names: they are neither markup nor control characters.
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=1.0)
        yield lambda text, share: progress.update(task, description=printable(text), completed=share)


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """Progress of long work of unknown length: one line that changes on a terminal."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _line_printer()
        return
    with console.status("") as status:
        yield lambda text: status.update(Text(printable(text)))


def _line_printer() -> Callable[[str], None]:
    """Prints a line on stderr, at most one every `PROGRESS_LINE_S`."""
    printed_at_s = SYSTEM_CLOCK.monotonic_s()

    def print_line(text: str) -> None:
        nonlocal printed_at_s
        if SYSTEM_CLOCK.monotonic_s() - printed_at_s >= PROGRESS_LINE_S:
            printed_at_s = SYSTEM_CLOCK.monotonic_s()
            print(printable(text), file=sys.stderr, flush=True)

    return print_line
