"""`FileBackend`: what the seam promises, on top of `store`, with every disk access in a worker thread."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Self, TypeVar, TypeVarTuple
from urllib.parse import parse_qsl, unquote, urlsplit

import anyio
import anyio.to_thread

from ...clock import FOREVER, Clock, SystemClock
from ...entry import counter
from ...errors import (
    BackendError,
    BackendRefused,
    BackendUnavailable,
    ConfigurationError,
    DecodeError,
    KeyMissing,
    ValueTooLarge,
)
from ..base import KeyLimits, Version
from .disk import CHUNK, Temporary
from .record import Record
from .store import Store

__all__ = ["FileBackend"]

T = TypeVar("T")
D = TypeVar("D")
Ts = TypeVarTuple("Ts")

_INT64: Final = range(-(2**63), 2**63)
_STEP: Final = 256
"""Entries handled in one go of a worker."""
_SMALLEST_BOUND: Final = 1 << 20
_REFUSED: Final = frozenset((errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP, errno.ENOTDIR))


class FileBackend:
    """Entries as files in one directory, shared by any number of processes of one host and one user.

    Reads of what cannot be read are misses; writes that fail raise.  Nothing is made before the first write.

    Args:
        directory: made with its missing parents, for this user only.  It must not be a symbolic link.
        max_bytes: the bound, in bytes on the disk; the longest unused entries go first.  ``None``: no bound.
        fsync: whether a write waits until it would survive a power failure.  A killed process never needs it.
        clock: for the deadlines; the wall clock, as they outlive the process.
        threads: worker threads used at once.

    Raises:
        ConfigurationError: an empty path, a bound below a megabyte, no thread.
    """

    key_limits: Final = KeyLimits(max_bytes=1 << 20, printable=False)

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        max_bytes: int | None = None,
        fsync: bool = False,
        clock: Clock | None = None,
        threads: int = 8,
    ) -> None:
        path = os.fspath(directory)
        if not isinstance(path, str) or not path or "\0" in path:
            msg = f"directory={directory!r}: pass the path of a directory"
            raise ConfigurationError(msg)
        if max_bytes is not None and max_bytes < _SMALLEST_BOUND:
            msg = f"max_bytes={max_bytes!r}: must be at least {_SMALLEST_BOUND}, or None for no bound"
            raise ConfigurationError(msg)
        if threads < 1:
            msg = f"threads={threads!r}: must be at least 1"
            raise ConfigurationError(msg)
        self._clock: Final = clock or SystemClock()
        self._store: Final = Store(str(Path(path).absolute()), max_bytes=max_bytes, fsync=fsync, clock=self._clock)
        self._threads: Final = threads
        self._limiter: anyio.CapacityLimiter | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Build a backend from ``file:///absolute/path?max_bytes=1000000000&fsync=true``.

        Raises:
            ConfigurationError: a host, a relative path, an option that is not one of these.
        """
        parts = urlsplit(url)
        path = unquote(parts.path)
        if parts.scheme.lower() != "file" or parts.netloc not in ("", "localhost") or not path.startswith("/"):
            msg = f"{url!r}: write file:///absolute/path"
            raise ConfigurationError(msg)
        max_bytes: int | None = None
        fsync = False
        for name, value in parse_qsl(parts.query, keep_blank_values=True):
            if name == "max_bytes" and value.isascii() and value.isdigit():
                max_bytes = int(value)
            elif name == "fsync" and value in ("true", "false"):
                fsync = value == "true"
            else:
                msg = f"{url!r}: {name}={value!r} is not an option; known are max_bytes=<number>, fsync=true or false"
                raise ConfigurationError(msg)
        if parts.fragment:
            msg = f"{url!r}: write %23 for a # in the path"
            raise ConfigurationError(msg)
        return cls(path, max_bytes=max_bytes, fsync=fsync)

    def __repr__(self) -> str:
        return f"<FileBackend {self._store.path}>"

    # Backend --------------------------------------------------------------------------------------------------------

    async def get(self, key: str, /) -> bytes | None:
        """See `Backend.get`."""
        found = await self._read(None, self._store.get, key)
        return None if found is None else found[0]

    async def set(self, key: str, data: bytes, /, *, ttl: float | None) -> None:
        """See `Backend.set`."""
        await self._write(self._store.write, key, data, ttl)

    async def delete(self, key: str, /) -> bool:
        """See `Backend.delete`."""
        return await self._write(self._store.delete, key)

    async def aclose(self) -> None:
        """Wait for what is being tidied up in the background; the entries stay."""
        await self._in_worker(self._store.room.wait)

    # Batch ----------------------------------------------------------------------------------------------------------

    async def get_many(self, keys: Sequence[str], /) -> dict[str, bytes]:
        """See `Batch.get_many`; 256 at a time."""

        def get(chunk: Sequence[str]) -> dict[str, bytes]:
            found: dict[str, bytes] = {}
            for key in chunk:
                try:
                    entry = self._store.get(key)
                except OSError:
                    continue
                if entry is not None:
                    found[key] = entry[0]
            return found

        found: dict[str, bytes] = {}
        for chunk in _steps(keys):
            found |= await self._in_worker(get, chunk)
        return found

    async def set_many(self, items: Mapping[str, bytes], /, *, ttl: float | None) -> None:
        """See `Batch.set_many`; 256 at a time."""

        def write(chunk: Sequence[str]) -> None:
            for key in chunk:
                self._store.write(key, items[key], ttl)

        for chunk in _steps(list(items)):
            await self._write(write, chunk)

    async def delete_many(self, keys: Sequence[str], /) -> int:
        """See `Batch.delete_many`; 256 at a time."""

        def delete(chunk: Sequence[str]) -> int:
            return sum([self._store.delete(key) for key in chunk])

        return sum([await self._write(delete, chunk) for chunk in _steps(keys)])

    # Add, Counter, Touch --------------------------------------------------------------------------------------------

    async def add(self, key: str, data: bytes, /, *, ttl: float | None) -> bool:
        """See `Add.add`."""
        return await self._write(self._store.write, key, data, ttl, _nothing)

    async def incr(self, key: str, delta: int, /, *, ttl: float | None) -> int:
        """See `Counter.incr`."""

        def add(data: bytes | None) -> int:
            number = counter(data) if data is not None else 0
            if number is None:
                msg = f"cannot increment {key!r}: it does not hold a counter"
                raise DecodeError(msg)
            if number + delta not in _INT64:
                msg = f"cannot increment {key!r} to {number + delta}: counters have 64 bits"
                raise DecodeError(msg)
            return number + delta

        return await self._write(self._store.incr, key, ttl, add)

    async def touch(self, key: str, /, *, ttl: float | None) -> bool:
        """See `Touch.touch`."""
        return await self._write(self._store.touch, key, ttl)

    async def ttl(self, key: str, /) -> float | None:
        """See `Touch.ttl`."""
        body = await self._read(None, self._store.find, key)
        if body is None:
            msg = f"no entry under {key!r}"
            raise KeyMissing(msg)
        expires_at = body.record.expires_at
        return None if expires_at == FOREVER else max(0.0, expires_at - self._clock.wall())

    # Clear, Scan ----------------------------------------------------------------------------------------------------

    async def clear(self, prefix: str, /) -> None:
        """See `Clear.clear`; the keys stand in the entries, so all of them are looked at, 256 at a time."""
        async for shard, names in self._entries():
            await self._write(self._store.clear, shard, names, prefix)

    async def scan(self, prefix: str, /) -> AsyncIterator[str]:
        """See `Scan.scan`; all entries are looked at, 256 at a time."""
        async for shard, names in self._entries():
            for key in await self._write(self._store.keys, shard, names, prefix):
                yield key

    async def _entries(self) -> AsyncIterator[tuple[str, list[str]]]:
        for shard in await self._write(self._store.shards):
            names = await self._write(self._store.names, shard)
            for chunk in _steps(names):
                yield shard, list(chunk)

    # Cas ------------------------------------------------------------------------------------------------------------

    async def get_versioned(self, key: str, /) -> tuple[bytes | None, Version]:
        """See `Cas.get_versioned`; the version is the SHA-256 of the value."""
        return await self._read(None, self._store.get, key) or (None, None)

    async def set_if(self, key: str, data: bytes, version: Version, /, *, ttl: float | None) -> bool:
        """See `Cas.set_if`."""

        def unchanged(record: Record | None) -> bool:
            return record is None or record.digest == version

        return await self._write(self._store.write, key, data, ttl, unchanged)

    async def swap(self, key: str, data: bytes, /, *, ttl: float | None) -> bytes | None:
        """See `Cas.swap`."""
        return await self._write(self._store.swap, key, data, ttl)

    # Stream ---------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def open(self, key: str, /) -> AsyncIterator[AsyncIterator[bytes] | None]:
        """See `Stream.open`; chunks of 256 KiB, of the entry as it was when it was opened.

        The whole body is compared with its digest first: what is given out chunk by chunk is right from the beginning.
        """
        body = await self._read(None, self._store.open_body, key)
        if body is None:
            yield None
            return

        async def chunks() -> AsyncGenerator[bytes]:
            if body.file is None:
                yield body.data
                return
            at = 0
            while at < body.record.length:
                chunk = await self._write(body.file.read, CHUNK, at)
                if not chunk:
                    msg = f"the file of {key!r} was cut while it was read"
                    raise BackendUnavailable(msg)
                at += len(chunk)
                yield chunk

        reader = chunks()
        try:
            yield reader
        finally:
            await reader.aclose()

    async def store(self, key: str, chunks: AsyncIterator[bytes] | Iterable[bytes], /, *, ttl: float | None) -> None:
        """See `Stream.store`; with 256 KiB and one chunk in memory."""
        body: Temporary | None = None
        pending = bytearray()
        try:
            async for chunk in _each(chunks):
                pending += chunk
                if len(pending) >= CHUNK:
                    if body is None:
                        body = await self._write(self._store.begin_body, key)
                    await self._write(self._store.append, body, bytes(pending))
                    pending.clear()
            if body is None:
                await self.set(key, bytes(pending), ttl=ttl)
                return
            await self._write(self._store.append, body, bytes(pending))
            await self._write(self._store.commit_body, key, body, ttl)
        except BaseException:
            if body is not None:
                with anyio.CancelScope(shield=True):
                    await self._in_worker(body.discard)
            raise

    # Tidying up -----------------------------------------------------------------------------------------------------

    async def sweep(self) -> None:
        """Remove expired entries and abandoned files everywhere, and what exceeds the bound.

        It goes on behind the scenes by itself, bit by bit, while there are writes; this is for those who cannot wait.
        """
        for shard in await self._write(self._store.shards):
            await self._write(self._store.tidy, shard)
        await self._write(self._store.room.keep)

    # Workers --------------------------------------------------------------------------------------------------------

    async def _read(self, default: D, work: Callable[[*Ts], T], *args: *Ts) -> T | D:
        """Run ``work`` in a worker; what cannot be read is not there."""
        try:
            return await self._in_worker(work, *args)
        except OSError:
            return default

    async def _write(self, work: Callable[[*Ts], T], *args: *Ts) -> T:
        """Run ``work`` in a worker; a failing disk is an error."""
        try:
            return await self._in_worker(work, *args)
        except OSError as error:
            raise _translate(error) from error

    async def _in_worker(self, work: Callable[[*Ts], T], *args: *Ts) -> T:
        loop = asyncio.get_running_loop()
        if self._limiter is None or self._loop is not loop:
            # Threads of its own: an application that waits for the cache in all of anyio's would wait for ever.
            self._loop, self._limiter = loop, anyio.CapacityLimiter(self._threads)
        # A cancelled caller goes at once; what the worker began it ends, and whole entries are all it can leave.
        return await anyio.to_thread.run_sync(work, *args, abandon_on_cancel=True, limiter=self._limiter)


def _translate(error: OSError) -> BackendError:
    """Find the acache error that says what to do."""
    if error.errno == errno.EFBIG:
        return ValueTooLarge(f"larger than the file system takes: {error}")
    if error.errno in _REFUSED:
        return BackendRefused(f"the directory was refused: {error}")
    return BackendUnavailable(f"the disk failed: {error}")


def _nothing(record: Record | None) -> bool:
    return record is None


def _steps(items: Sequence[str]) -> list[Sequence[str]]:
    return [items[start : start + _STEP] for start in range(0, len(items), _STEP)]


async def _each(chunks: AsyncIterable[bytes] | Iterable[bytes]) -> AsyncIterator[bytes]:
    if isinstance(chunks, AsyncIterable):
        async for chunk in chunks:
            yield chunk
    else:
        for chunk in chunks:
            yield chunk
