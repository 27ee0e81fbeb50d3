"""The schema of a SQLite store, and whose file it is."""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import apsw

from klinesync.core.errors import StoreError

# "KLSY": the application_id of a store. Stores from before it was written have 0 there, and our tables.
APPLICATION_ID = 0x4B4C5359
# Tables of a store, of whatever version, and those that each store has.
OUR_TABLES = frozenset(
    {
        "series",
        "candle",
        "candle_chunk",
        "candle_revision",
        "gap",
        "commit_count",
        "ledger",
        "factor_event",
        "drawing",
        "checkpoint",
        "backfill",
        "derivation",
        "probe",
        "listing",
        "series_event",
        "repacking",
        "quarantine",
    }
)
_FIRST_TABLES = frozenset({"series", "candle", "candle_revision", "gap", "commit_count"})
# Names of another program's tables that a refusal lists.
MAX_TABLES_TOLD = 3


class ForeignFile(StoreError):
    """A SQLite file of another program. Nothing was written to it."""

    code = "foreign_file"


def check_owner(connection: apsw.Connection, path: Path) -> bool:
    """Whether the file is a store, or empty and about to become one (False). Raises `ForeignFile`. Only reads."""
    application = connection.execute("PRAGMA application_id").get
    if application == APPLICATION_ID:
        return True
    names = {
        str(name)
        for (name,) in connection.execute(
            "SELECT name FROM sqlite_schema WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
        )
    }
    if not application and not names and not version_of(connection):
        return False
    if not application and names >= _FIRST_TABLES and names <= OUR_TABLES and version_of(connection):
        return True
    theirs = sorted(names - OUR_TABLES) or sorted(names)
    more = f" and {len(theirs) - MAX_TABLES_TOLD} more" if len(theirs) > MAX_TABLES_TOLD else ""
    told = f"tables {', '.join(theirs[:MAX_TABLES_TOLD])}{more}" if theirs else f"application id {application}"
    raise ForeignFile(
        f"{path} is another program's SQLite file ({told}); nothing was written to it; "
        "name another file with --database-url"
    )


def migrate(connection: apsw.Connection, path: Path) -> None:
    """Bring the schema up to the newest version, one numbered script a transaction."""
    scripts = migrations()
    version = version_of(connection)
    refuse_newer(path, version, len(scripts))
    for number, script in enumerate(scripts[version:], version + 1):
        with connection:
            connection.execute(script.read_text())
            connection.execute(f"PRAGMA user_version = {number}")
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    if connection.execute("PRAGMA application_id").get != APPLICATION_ID:
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")


def migrations() -> list[Traversable]:
    """The numbered scripts, ascending."""
    return sorted(
        (item for item in resources.files("klinesync.storage.migrations").iterdir() if item.name.endswith(".sql")),
        key=lambda item: item.name,
    )


def version_of(connection: apsw.Connection) -> int:
    """The schema's version; 0 of a file that has none."""
    version = connection.execute("PRAGMA user_version").get
    assert isinstance(version, int)
    return version


def refuse_newer(path: Path, version: int, known: int) -> None:
    """Raises `StoreError` for a store that a newer klinesync wrote."""
    if version > known:
        raise StoreError(
            f"the store {path} has schema version {version}, and this klinesync knows {known}: "
            "it was written by a newer klinesync; use that one"
        )
