"""How many files the system lets this process open, and the error where they are too few."""

from __future__ import annotations

import contextlib
import resource

from klinesync.core.errors import KlinesyncError

# Open files that a command with an event loop needs at least: the store has eight, each connection one.
LEAST_OPEN_FILES = 64


class TooFewFiles(KlinesyncError):
    """The system lets this process open no further file, or too few. `least`: how many the command needs, if known."""

    code = "too_few_files"

    def __init__(self, least: int | None = None) -> None:
        allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        needs = "which are too few" if least is None else f"and {least} are needed at least"
        super().__init__(f"the system lets this process open {allowed} files, {needs}; raise the limit: ulimit -n 1024")


def require_open_files() -> None:
    """Have the system let this process open `LEAST_OPEN_FILES`. Raises `TooFewFiles`."""
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _fewer(allowed) and not _fewer(most):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (LEAST_OPEN_FILES, most))
            return
    if _fewer(allowed):
        raise TooFewFiles(LEAST_OPEN_FILES)


def _fewer(limit: int) -> bool:
    return limit != resource.RLIM_INFINITY and limit < LEAST_OPEN_FILES
