"""The `klinesync` command, one file a family of commands. `main` runs it."""

from klinesync.cli.program import main

__all__ = ["main"]
