"""The command that copies a store: backup."""

from __future__ import annotations

import argparse
from pathlib import Path

from klinesync.cli.arguments import given_flags
from klinesync.cli.command import Command
from klinesync.cli.progress import progress
from klinesync.cli.running import stoppable
from klinesync.core.printable import printable
from klinesync.runtime.flags import load_flags, sqlite_path


def _backup_arguments(backup: argparse.ArgumentParser) -> None:
    backup.add_argument("path", type=Path, metavar="PATH", help="the new file")


def _backup(arguments: argparse.Namespace) -> int:
    from klinesync.storage.backup import backup
    from klinesync.storage.sqlite_reader import SqliteReader

    flags = load_flags(given_flags(arguments))
    with stoppable(), SqliteReader(sqlite_path(flags)) as store, progress() as say:
        backup(store, arguments.path, lambda done, total: say(f"{arguments.path}: {done * 100 // max(total, 1)} %"))
    size = arguments.path.stat().st_size
    print(printable(f"{sqlite_path(flags)} is copied to {arguments.path} ({size} bytes)"))
    return 0


COMMANDS = {
    "backup": Command(
        _backup,
        _backup_arguments,
        more="Works beside a running service. PATH must not exist; it appears when the copy is complete and on disk.",
        examples=("klinesync backup klinesync-backup.sqlite",),
        flags=("database_url",),
    ),
}
