"""Whether a path is a file or a folder. An inaccessible path (in a folder without permission, with a name that is too
long) is neither, whereas `Path.is_file` raises. Opening the path raises the reason."""

from __future__ import annotations

import os
from pathlib import Path


def is_file(path: Path) -> bool:
    """Whether the path is an accessible regular file."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Whether the path is an accessible folder."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def real_path(path: Path) -> Path:
    """`path` with resolved symbolic links, as far as possible. `Path.resolve` raises for a circle of links."""
    return Path(os.path.realpath(path))
