"""What a user reads when the disk of the store refuses: the path, the cause, and what to do."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import apsw
import pytest

from klinesync.storage.disk import bad_page, disk_trouble


def io_error(extended: int) -> apsw.IOError:
    """An I/O error as SQLite reports it."""
    error = apsw.IOError("disk I/O error")
    error.extendedresult = extended  # type: ignore[attr-defined]  # apsw sets it, and does not declare it
    return error


def system_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with any content; its name is not in the way of any cause."""
    store = tmp_path / "store.sqlite"
    store.write_bytes(b"content")
    return store


OTHER_IO = io_error(apsw.SQLITE_IOERR_FSYNC)


@pytest.mark.parametrize(
    ("error", "system_errno", "clause"),
    [
        (io_error(apsw.SQLITE_IOERR_DATA), 0, "{path} is damaged (a page of the file fails its checksum); "),
        (io_error(apsw.SQLITE_IOERR_CORRUPTFS), 0, "{path} is damaged (the file system is damaged); "),
        (io_error(apsw.SQLITE_IOERR_READ), 0, "{path} is damaged (the disk cannot read a page of the file); "),
        (apsw.CorruptError("malformed"), 0, "{path} is damaged (malformed); "),
        (apsw.NotADBError("no database"), 0, "{path} is no SQLite file, or its header is damaged: "),
        (apsw.FullError("full"), 0, "disk full: make room on the disk that holds {path}"),
        (system_error(errno.ENOSPC), 0, "disk full: make room on the disk that holds {path}"),
        (system_error(errno.EDQUOT), 0, "disk full: "),
        (OTHER_IO, errno.ENOSPC, "disk full: "),
        (system_error(errno.EMFILE), 0, "the system lets this process open "),
        (apsw.CantOpenError("unable to open"), errno.ENFILE, "the system lets this process open "),
        (apsw.ReadOnlyError("readonly"), 0, "read-only: {path} and its folder must be writable"),
        (system_error(errno.EROFS), 0, "read-only: {path} "),
        (OTHER_IO, errno.EROFS, "read-only: {path} "),
        (apsw.BusyError("busy"), 0, "another program holds {path} locked; end that program"),
        (apsw.LockedError("locked"), 0, "another program holds {path} locked; "),
        (OTHER_IO, 0, "the disk that holds {path} is failing (disk I/O error): "),
        (system_error(errno.EIO), 0, "the disk that holds {path} is failing ("),
        (system_error(errno.ENXIO), 0, os.strerror(errno.ENXIO)),
        (ValueError("of another kind"), 0, "of another kind"),
    ],
)
def test_each_cause_has_its_clause(
    path: Path, error: apsw.Error | OSError | ValueError, system_errno: int, clause: str
) -> None:
    assert disk_trouble(error, path, system_errno).lower().startswith(clause.format(path=path).lower())


def test_a_file_where_a_folder_would_have_to_be_is_named(path: Path) -> None:
    assert disk_trouble(NotADirectoryError(errno.ENOTDIR, ""), path / "more" / "store.sqlite") == f"{path} is no folder"


def test_a_folder_in_the_place_of_the_store_is_named(tmp_path: Path) -> None:
    error = apsw.CantOpenError("unable to open database file")
    assert disk_trouble(error, tmp_path) == f"{tmp_path} is a folder; name a file with --database-url"


@pytest.mark.parametrize("suffix", [".lock", "-wal", "-shm", "-journal"])
def test_a_folder_in_the_place_of_a_file_beside_the_store_is_named(path: Path, suffix: str) -> None:
    beside = Path(f"{path}{suffix}")
    beside.mkdir()
    told = disk_trouble(IsADirectoryError(errno.EISDIR, ""), path)
    assert told == f"{beside} is a folder, and a file of that name belongs there; move the folder away"


def test_a_limit_of_open_files_that_is_reached_is_to_be_raised(path: Path) -> None:
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    advised = disk_trouble(system_error(errno.EMFILE), path).rpartition(" ")[2]
    assert int(advised) > allowed


def test_an_error_that_is_no_damaged_page_is_told_apart() -> None:
    assert bad_page(OTHER_IO) is None
    assert bad_page(apsw.FullError("full")) is None
    assert bad_page(io_error(apsw.SQLITE_IOERR_DATA)) is not None
