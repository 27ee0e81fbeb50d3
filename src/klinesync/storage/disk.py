"""Disks: syncing files, and sentences about errors (full, read-only, failing): which path, and what to do."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import apsw

from klinesync.runtime.looking import is_file, is_folder
from klinesync.runtime.open_files import TooFewFiles
from klinesync.storage.damage import WHAT_TO_DO, OddValue

# With less free space on the file system, a failed write without a stated reason is explained by the full disk.
LEAST_FREE_BYTES = 1 << 20


class BadPage(apsw.CorruptError):
    """A page of the file fails its checksum, or the disk cannot read it. The transaction that met it is over."""


# Extended results of SQLite for a page that cannot be read. It rolls back the transaction that needed the page.
_BAD_PAGE = {
    apsw.SQLITE_IOERR_DATA: "a page of the file fails its checksum",
    apsw.SQLITE_IOERR_CORRUPTFS: "the file system is damaged",
    apsw.SQLITE_IOERR_READ: "the disk cannot read a page of the file",
}


def bad_page(error: BaseException) -> BadPage | None:
    """The damage behind an I/O error of SQLite; None when the error is no damage of the file."""
    if not isinstance(error, apsw.IOError):
        return None
    what = _BAD_PAGE.get(getattr(error, "extendedresult", 0))  # apsw sets it, and does not declare it
    return None if what is None else BadPage(what)


# Exceptions for damaged bytes of the file: of SQLite, of its binding (a text that is not UTF-8), of ours.
UNREADABLE = (apsw.CorruptError, apsw.NotADBError, UnicodeDecodeError, OddValue)

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}
_TOO_MANY_FILES = {errno.EMFILE, errno.ENFILE}
# Suffixes of the files beside a store.
_BESIDE = (".lock", "-wal", "-shm", "-journal")


def sync(path: Path) -> None:
    """Write a file, or the entries of a folder, to the disk. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def disk_trouble(error: apsw.Error | OSError | ValueError, path: Path, system_errno: int = 0) -> str:
    """Why `path` cannot be read or written, and what to do: a clause that follows "cannot be written: ".

    `system_errno`: the system's last error number on the connection, behind an I/O error of SQLite.
    """
    error = bad_page(error) or error
    if isinstance(error, apsw.IOError | apsw.CantOpenError) and system_errno in _FULL | _READ_ONLY | _TOO_MANY_FILES:
        error = OSError(system_errno, os.strerror(system_errno))
    if isinstance(error, UNREADABLE) and not isinstance(error, apsw.NotADBError):
        return f"{path} is damaged ({error}); {WHAT_TO_DO}"
    if _is_full(error, path):
        return f"disk full: make room on the disk that holds {path}"
    if isinstance(error, apsw.NotADBError):
        return (
            f"{path} is no SQLite file, or its header is damaged: name another one with --database-url; if it "
            "was a store, have `klinesync verify --repair` copy what can be read"
        )
    if isinstance(error, OSError) and error.errno in _TOO_MANY_FILES:
        return str(TooFewFiles())
    if isinstance(error, FileExistsError | NotADirectoryError) and (file := _file_as_folder(path)) is not None:
        return f"{file} is no folder"
    if (barrier := _barred(error, path)) is not None:
        return f"no permission: this user may not {barrier}"
    if is_folder(path):
        return f"{path} is a folder; name a file with --database-url"
    if (folder := _folder_beside(error, path)) is not None:
        return f"{folder} is a folder, and a file of that name belongs there; move the folder away"
    if _is_read_only(error, path):
        return f"read-only: {path} and its folder must be writable for this user, and the disk mounted writable"
    if isinstance(error, apsw.BusyError | apsw.LockedError):
        return f"another program holds {path} locked; end that program"
    if isinstance(error, apsw.IOError) or (isinstance(error, OSError) and error.errno == errno.EIO):
        return f"the disk that holds {path} is failing ({error}): read the system's log, and copy the store elsewhere"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return f"{error}"


def _barred(error: apsw.Error | OSError | ValueError, path: Path) -> str | None:
    """The action that permissions forbid this user, when reading the file is forbidden: `read X`, `look into X`."""
    denied = isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM)
    if not denied and not isinstance(error, apsw.CantOpenError | apsw.PermissionsError):
        return None
    for folder in reversed(path.absolute().parents):
        if is_folder(folder) and not os.access(folder, os.X_OK):
            return f"look into the folder {folder}"
    return f"read {path}" if is_file(path) and not os.access(path, os.R_OK) else None


def _file_as_folder(path: Path) -> Path | None:
    """The first part of the path to `path` that is a file, and would have to be a folder."""
    return next((place for place in reversed(path.absolute().parents) if not is_folder(place) and is_file(place)), None)


def _folder_beside(error: apsw.Error | OSError | ValueError, path: Path) -> Path | None:
    """The folder that has the name of a file beside the store at `path`."""
    if not isinstance(error, IsADirectoryError | apsw.CantOpenError | apsw.IOError):
        return None
    return next((name for suffix in _BESIDE if is_folder(name := Path(f"{path}{suffix}"))), None)


def _is_full(error: apsw.Error | OSError | ValueError, path: Path) -> bool:
    if isinstance(error, apsw.FullError) or (isinstance(error, OSError) and error.errno in _FULL):
        return True
    # SQLite reports a write-ahead index that cannot grow as an I/O error, or says that it cannot open the file.
    if not isinstance(error, apsw.IOError | apsw.CantOpenError):
        return False
    try:
        room = os.statvfs(path.parent)
    except OSError:
        return False
    return room.f_bavail * room.f_frsize < LEAST_FREE_BYTES and not room.f_flag & os.ST_RDONLY


def _is_read_only(error: apsw.Error | OSError | ValueError, path: Path) -> bool:
    if isinstance(error, apsw.ReadOnlyError) or (isinstance(error, OSError) and error.errno in _READ_ONLY):
        return True
    if not isinstance(error, apsw.CantOpenError | apsw.PermissionsError) or not is_file(path):
        return False
    return not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK))
