"""The files of a store, which no export or backup may replace."""

from __future__ import annotations

from pathlib import Path

from klinesync.core.errors import Rejected
from klinesync.runtime.looking import real_path

# The store, what SQLite keeps beside it (a log, its index, a journal), and our lock file.
SUFFIXES = ("", "-wal", "-shm", "-journal", ".lock")


def refuse_own_file(store: Path, target: Path) -> None:
    """Raises `Rejected` when writing `target` would replace `store`, or a file that belongs to the store, under any
    name."""
    real = real_path(store)
    try:
        inside = target.parent.samefile(real.parent) and target.name in {f"{real.name}{suffix}" for suffix in SUFFIXES}
        own = inside or (target.exists() and real.exists() and target.samefile(real))
    except OSError:  # there is no such folder: the first write reports it
        return
    if own:
        raise Rejected(f"{target} belongs to the store {store}; nothing else is written there: name another file")
