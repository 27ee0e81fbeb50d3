"""Whether a path is a file or a folder. A path that cannot be looked at (below a folder that this user may not enter, a
name that is too long) is neither, where `Path.is_file` raises. Opening the path raises the reason."""

from __future__ import annotations

import os
from pathlib import Path


def is_file(path: Path) -> bool:
    """Whether a regular file can be seen there."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Whether a folder can be seen there."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def real_path(path: Path) -> Path:
    """`path` with its symbolic links resolved, as far as they lead. `Path.resolve` raises for links in a circle."""
    return Path(os.path.realpath(path))
