"""Temporary files of the tests are in memory, where the system has a file system in memory: each commit of a store
waits for its disk (`fsync`), some milliseconds on a real disk, and no test turns the power off."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

# Linux's file system in memory.
SHM = Path("/dev/shm")
# In containers the file system often has 64 MB. The whole run needs less than this limit; only files of failed tests
# are kept.
LEAST_FREE_BYTES = 2 << 30


def memory_folder() -> Path | None:
    """A folder in memory with enough room for the tests; None without one."""
    if not (SHM.is_dir() and os.access(SHM, os.W_OK | os.X_OK)):
        return None
    return SHM if shutil.disk_usage(SHM).free >= LEAST_FREE_BYTES else None


def temporary_files_in_memory() -> None:
    """Put the temporary files of this process and its children into memory, unless TMPDIR names a folder."""
    folder = memory_folder()
    if folder is not None and "TMPDIR" not in os.environ:
        os.environ["TMPDIR"] = str(folder)
        tempfile.tempdir = None  # resets the cached folder
