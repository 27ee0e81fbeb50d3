"""What lies at a path. A path that cannot even be looked at (below a folder that this user may not enter, a name that
is too long) has nothing, where `Path.is_file` raises. Whoever opens the path tells why."""

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
    """`path` behind its symbolic links, as far as they lead. `Path.resolve` raises where they lead in a circle."""
    return Path(os.path.realpath(path))
