"""How far long work is, on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from klinesync.core.printable import printable
from klinesync.runtime.clock import SYSTEM_CLOCK

# Seconds between two progress lines where stderr is no terminal.
PROGRESS_LINE_S = 10.0

# Says what is being done, and what share of it is.
Say = Callable[[str, float], None]


@contextlib.contextmanager
def bar() -> Iterator[Say]:
    """How far long work is, on stderr: a bar on a terminal, a line now and then elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if console.is_terminal:
        # Texts are file names, too: none of them is markup, or a control character.
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("", total=1.0)
            yield lambda text, share: progress.update(task, description=printable(text), completed=share)
        return
    said_at_s = SYSTEM_CLOCK.monotonic_s()

    def say(text: str, share: float) -> None:
        nonlocal said_at_s
        if SYSTEM_CLOCK.monotonic_s() - said_at_s >= PROGRESS_LINE_S:
            said_at_s = SYSTEM_CLOCK.monotonic_s()
            print(printable(f"{text} ({share:.0%})"), file=sys.stderr, flush=True)

    yield say


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """How far long work is, on stderr: one line that changes on a terminal, a line now and then elsewhere."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True)
    if console.is_terminal:
        with console.status("") as status:
            yield lambda text: status.update(Text(printable(text)))
        return
    said_at_s = SYSTEM_CLOCK.monotonic_s()

    def say(text: str) -> None:
        nonlocal said_at_s
        if SYSTEM_CLOCK.monotonic_s() - said_at_s >= PROGRESS_LINE_S:
            said_at_s = SYSTEM_CLOCK.monotonic_s()
            print(printable(text), file=sys.stderr, flush=True)

    yield say
