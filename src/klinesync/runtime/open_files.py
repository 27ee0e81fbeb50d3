"""The limit of open files of this process, and the error when the limit is too low."""

from __future__ import annotations

import contextlib
import resource

from klinesync.core.errors import KlinesyncError

# Least limit of open files for a command with an event loop: the store has eight, each connection one.
LEAST_OPEN_FILES = 64
# The usual limit of a system. Where it is reached, twice the limit is advised.
USUAL_OPEN_FILES = 1024


class TooFewFiles(KlinesyncError):
    """The limit of open files is reached, or too low. `least`: the number that the command needs; None: unknown."""

    code = "too_few_files"

    def __init__(self, least: int | None = None) -> None:
        allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        needs = "which are too few" if least is None else f"and {least} are needed at least"
        super().__init__(
            f"the system lets this process open {allowed} files, {needs}; raise the limit: ulimit -n "
            f"{max(USUAL_OPEN_FILES, 2 * allowed)}"
        )


def require_open_files() -> None:
    """Raise the limit of open files to `LEAST_OPEN_FILES` where it is lower. Raises `TooFewFiles`."""
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _fewer(allowed) and not _fewer(most):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (LEAST_OPEN_FILES, most))
            return
    if _fewer(allowed):
        raise TooFewFiles(LEAST_OPEN_FILES)


def _fewer(limit: int) -> bool:
    return limit != resource.RLIM_INFINITY and limit < LEAST_OPEN_FILES
