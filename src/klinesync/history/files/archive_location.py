"""ArchiveLocation: where the files of an exchange's archive are, a folder or a server."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Protocol

import aiohttp

from klinesync.core.errors import UpstreamError
from klinesync.core.network_errors import unreachable
from klinesync.history.files.names import CHECKSUM, ArchiveFile
from klinesync.history.files.readers import MAX_CHECKSUM_BYTES, BadFile, check_sha256, verify_checksum
from klinesync.runtime.http_client import HttpClient, location
from klinesync.runtime.proxies import Proxies

# Largest zip: five times a month of one-second candles.
MAX_ZIP_BYTES = 512 << 20
CHUNK_BYTES = 1 << 20
CONNECT_TIMEOUT_S = 10.0
# Longest pause between two chunks of an answer; a whole file has no timeout.
READ_TIMEOUT_S = 30.0


class ArchiveLocation(Protocol):
    """The location of an archive's files."""

    async def may_have_any(self, days: Sequence[ArchiveFile]) -> bool:
        """Whether to request each of a month's daily files. Raises `UpstreamError`."""

    async def get(self, file: ArchiveFile) -> Path | None:
        """The file, verified by its checksum; None when it does not exist. The path is valid until the next call.
        Raises `BadFile`, `UpstreamError`."""

    async def __aenter__(self) -> ArchiveLocation: ...

    async def __aexit__(self, *exc: object) -> None: ...


def archive_at(location: Path | str, proxies: Proxies | None) -> ArchiveLocation:
    """The archive in a folder, or at an address."""
    return ArchiveFolder(location) if isinstance(location, Path) else ArchiveServer(location, proxies)


class ArchiveFolder:
    """An archive in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def may_have_any(self, days: Sequence[ArchiveFile]) -> bool:
        paths = [self._folder / day.path for day in days]
        try:
            return await asyncio.to_thread(lambda: any(path.is_file() for path in paths))
        except OSError:  # `get` raises the error
            return True

    async def get(self, file: ArchiveFile) -> Path | None:
        path = self._folder / file.path
        try:
            if not await asyncio.to_thread(path.is_file):
                return None
        except OSError as error:
            raise BadFile(path, f"it cannot be read: {error.strerror}") from error
        if not await asyncio.to_thread(verify_checksum, path):
            raise BadFile(path, f"no {CHECKSUM} file lies beside it")
        return path

    async def __aenter__(self) -> ArchiveFolder:
        return self

    async def __aexit__(self, *exc: object) -> None:
        return None


class ArchiveServer:
    """An archive at an address: downloads files one at a time into a temporary folder."""

    def __init__(self, url: str, proxies: Proxies | None) -> None:
        self._url = url
        self._proxies = proxies
        self._stack = AsyncExitStack()
        self._checksums: dict[str, bytes | None] = {}  # of the days that `may_have_any` has requested

    async def __aenter__(self) -> ArchiveServer:
        timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S)
        client = HttpClient(timeout, self._proxies, auto_decompress=False)
        self._session = await self._stack.enter_async_context(client)
        self._place = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="klinesync-archive-")))
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    async def may_have_any(self, days: Sequence[ArchiveFile]) -> bool:
        # If the first, the middle and the last day are missing, the symbol was not listed in that month, as a rule.
        # Years before the listing must not cost thirty requests a month.
        probes = {0, len(days) // 2, len(days) - 1}
        if len(days) <= len(probes):
            return True
        for at in sorted(probes):
            self._checksums[days[at].path] = await self._checksum(days[at])
        return any(self._checksums[days[at].path] is not None for at in probes)

    async def get(self, file: ArchiveFile) -> Path | None:
        checksum = self._checksums.pop(file.path) if file.path in self._checksums else await self._checksum(file)
        path = self._place / "candles.zip"
        if checksum is None or not await self._fetch(file.path, path, MAX_ZIP_BYTES):
            return None
        try:
            await asyncio.to_thread(check_sha256, path, checksum)
        except BadFile as error:
            raise BadFile(file.path, error.reason) from None
        return path

    async def _checksum(self, file: ArchiveFile) -> bytes | None:
        path = self._place / "checksum"
        if not await self._fetch(file.path + CHECKSUM, path, MAX_CHECKSUM_BYTES):
            return None
        return await asyncio.to_thread(path.read_bytes)

    async def _fetch(self, name: str, path: Path, most: int) -> bool:
        """Download a file to `path`. Returns False when it does not exist. Raises `BadFile`, `UpstreamError`."""
        url = f"{self._url}/{name}"
        try:
            async with self._session.get(url) as answer:
                if answer.status == 404:
                    return False
                if answer.status != 200:
                    retry = answer.headers.get("Retry-After", "")
                    raise UpstreamError(
                        f"the archive answered {answer.status} for {url}{location(answer)}",
                        answer.status,
                        float(retry) if retry.isdecimal() else None,
                    )
                size = 0
                with await asyncio.to_thread(path.open, "wb") as target:
                    async for chunk in answer.content.iter_chunked(CHUNK_BYTES):
                        size += len(chunk)
                        if size > most:
                            raise BadFile(name, f"it is larger than {most} bytes")
                        await asyncio.to_thread(target.write, chunk)
        except (aiohttp.ClientError, OSError) as error:
            reason = unreachable(url, error)
            raise UpstreamError(f"the archive does not send {url}: {reason}", cause=reason) from error
        return True
