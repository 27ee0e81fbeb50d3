"""Temporary files of the tests lie in memory, where the system has a file system there: each commit of a store waits
for its disk (`fsync`), some milliseconds on a real one, and no test turns the power off."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

# The file system in memory that Linux has.
SHM = Path("/dev/shm")
# A container's often has 64 MB. The whole run needs less than this; only what a failed test wrote is kept.
LEAST_FREE_BYTES = 2 << 30


def memory_folder() -> Path | None:
    """A folder in memory with room for the tests; None where there is none."""
    if not (SHM.is_dir() and os.access(SHM, os.W_OK | os.X_OK)):
        return None
    return SHM if shutil.disk_usage(SHM).free >= LEAST_FREE_BYTES else None


def temporary_files_in_memory() -> None:
    """Let this process and those it starts make their temporary files in memory, unless TMPDIR names a place."""
    folder = memory_folder()
    if folder is not None and "TMPDIR" not in os.environ:
        os.environ["TMPDIR"] = str(folder)
        tempfile.tempdir = None  # asked for anew
