"""The page of a distribution: built from `frontend/` when a wheel or an sdist is made, unless it is there and new.

An sdist carries the built page, so that installing it takes no Node. An editable install does without: `make` builds
the page there.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from hatchling.builders.config import BuilderConfig
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PAGE = Path("src", "klinesync", "web", "index.html")
FRONTEND = Path("frontend")
# `make` leaves it in node_modules when the packages of the lock file are installed.
INSTALLED = Path("node_modules", ".installed")


class PageNotBuilt(Exception):
    """The distribution would have no page, or an old one. The message says what to do."""


class PageBuildHook(BuildHookInterface[BuilderConfig]):
    """Builds the page before its files are collected."""

    def initialize(self, version: str, build_data: dict[str, object]) -> None:
        """Called by hatchling. `version` is `editable` or `standard`."""
        if version == "editable":
            return
        try:
            build_page(Path(self.root))
        except PageNotBuilt as error:
            raise SystemExit(f"klinesync: {error}") from None  # a sentence, where an exception is a page of hatchling


def build_page(root: Path) -> None:
    """Build the page of the source tree at `root`, unless it is newer than its sources. Raises `PageNotBuilt`."""
    page = root / PAGE
    if not page.is_file():
        why = "is not built"
    elif _is_old(page, root / FRONTEND):
        why = "is older than its sources"
    else:
        return
    npm = shutil.which("npm")
    if npm is None:
        raise PageNotBuilt(
            f"the page {why}, and there is no npm to build it: install Node.js (20.19, or 22.12 and newer), "
            "or install klinesync from a wheel or an sdist, which have the page"
        )
    frontend = root / FRONTEND
    marker, lock = frontend / INSTALLED, frontend / "package-lock.json"
    if not marker.is_file() or marker.stat().st_mtime < lock.stat().st_mtime:
        _run(npm, "ci", "--no-audit", "--no-fund", "--loglevel=error", cwd=frontend)
        marker.touch()
    _run(npm, "run", "--silent", "build", cwd=frontend)
    page.touch()


def _is_old(page: Path, frontend: Path) -> bool:
    built = page.stat().st_mtime
    sources = (path for path in frontend.rglob("*") if "node_modules" not in path.parts and path.is_file())
    return any(path.stat().st_mtime > built for path in sources)


def _run(*command: str, cwd: Path) -> None:
    done = subprocess.run(  # noqa: S603  # npm, with words of our own
        command, cwd=cwd, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise PageNotBuilt(f"the page cannot be built: `npm {' '.join(command[1:])}` failed:\n{done.stdout[-2000:]}")
