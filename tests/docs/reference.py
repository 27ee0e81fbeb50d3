"""The generated reference pages. Run as a program this module writes them (`make reference`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import architecture_page
import commands_table
import errors_page
import flags_table
import logs_page
import metrics_page
import routes_table
import socket_tables
import venues_table

# By page: its generated text.
PAGES: dict[Path, Callable[[], str]] = {
    architecture_page.PAGE: architecture_page.page,
    commands_table.PAGE: commands_table.page,
    errors_page.PAGE: errors_page.page,
    flags_table.PAGE: flags_table.page,
    logs_page.PAGE: logs_page.page,
    metrics_page.PAGE: metrics_page.page,
    routes_table.PAGE: routes_table.page,
    socket_tables.PAGE: socket_tables.page,
    venues_table.PAGE: venues_table.page,
}

if __name__ == "__main__":
    for path, page in PAGES.items():
        path.write_text(page())
