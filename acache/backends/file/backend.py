"""`FileBackend`: what the seam promises, on top of `store`, with every disk access in a worker thread."""

from __future__ import annotations

import asyncio
import errno
import os
import random
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from operator import index
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
    BackendTimeout,
    BackendUnavailable,
    ConfigurationError,
    DecodeError,
    KeyMissing,
    ValueTooLarge,
    short,
)
from ..base import KeyLimits, Version, batch_error, check_key
from .disk import CHUNK, Temporary
from .record import Record
from .room import LOW
from .store import Condition, Place, Store

__all__ = ["FileBackend"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_INT64: Final = range(-(2**63), 2**63)
_STEP: Final = 256
"""Entries handled in one go of a worker."""
_SMALLEST_BOUND: Final = 1 << 20
_RETRY: Final = 0.025
"""Seconds at the most between two tries for a lock that is held."""
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
        lock_timeout: seconds that a write waits for another process, which may be stopped, before `BackendTimeout`.

    Raises:
        ConfigurationError: an empty path, a bound below a megabyte, no thread, a timeout that is not above zero.
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
        lock_timeout: float = 1.0,
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
        if not 0 < lock_timeout < FOREVER:
            msg = f"lock_timeout={lock_timeout!r}: must be a number of seconds above zero"
            raise ConfigurationError(msg)
        self.value_limit: Final = None if max_bytes is None else int(LOW * max_bytes)
        self._clock: Final = clock or SystemClock()
        self._store: Final = Store(str(Path(path).absolute()), max_bytes=max_bytes, fsync=fsync, clock=self._clock)
        self._threads: Final = threads
        self._lock_timeout: Final = lock_timeout
        self._limiter: anyio.CapacityLimiter | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._gates: dict[str, asyncio.Lock] = {}

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
        place = self._place(key)
        found = self._store.get_warm(place) or await self._read(self._store.get, place)
        return None if found is None else found[0]

    async def set(self, key: str, data: bytes, /, *, ttl: float | None) -> None:
        """See `Backend.set`."""
        await self._set(key, data, ttl)

    async def delete(self, key: str, /) -> bool:
        """See `Backend.delete`."""
        place = self._place(key)
        return await self._locked(place.shard, self._store.delete, place)

    async def aclose(self) -> None:
        """Wait for what is being tidied up in the background; the entries stay."""
        await self._in_worker(self._store.room.wait)

    # Batch ----------------------------------------------------------------------------------------------------------

    async def get_many(self, keys: Sequence[str], /) -> dict[str, bytes]:
        """See `Batch.get_many`; 256 at a time."""
        places = {key: self._place(key) for key in keys}

        def get(chunk: Sequence[str]) -> dict[str, bytes]:
            found: dict[str, bytes] = {}
            for key in chunk:
                with suppress(OSError):
                    entry = self._store.get(places[key])
                    if entry is not None:
                        found[key] = entry[0]
            return found

        found: dict[str, bytes] = {}
        for chunk in _steps(list(places)):
            found |= await self._in_worker(get, chunk)
        return found

    async def set_many(self, items: Mapping[str, bytes], /, *, ttl: float | None) -> None:
        """See `Batch.set_many`; 256 at a time."""

        def write(key: str, place: Place) -> bool:
            self._check_length(len(items[key]))
            return self._store.write(place, items[key], ttl)[0]

        await self._write_many(items, write)

    async def delete_many(self, keys: Sequence[str], /) -> int:
        """See `Batch.delete_many`; 256 at a time."""
        return await self._write_many(keys, lambda _, place: self._store.delete(place))

    async def _write_many(self, keys: Iterable[str], write: Callable[[str, Place], bool]) -> int:
        """Write under each key; return how many writes told ``True``.

        A key whose lock is held is written by itself afterwards, and waits for it like any other write.
        """
        places = {key: self._place(key) for key in keys}
        failed: dict[str, BackendError] = {}

        def write_chunk(chunk: Sequence[str]) -> tuple[int, list[str]]:
            done, held = 0, []
            for key in chunk:
                try:
                    done += write(key, places[key])
                except BlockingIOError:
                    held.append(key)
                except OSError as error:
                    failed[key] = _translate(error)
                except BackendError as error:
                    failed[key] = error
            return done, held

        async def write_one(key: str) -> int:
            try:
                return await self._locked(places[key].shard, write, key, places[key])
            except BackendError as error:
                failed[key] = error
                return 0

        count = 0
        for chunk in _steps(list(places)):
            done, held = await self._in_worker(write_chunk, chunk)
            count += done + sum(await asyncio.gather(*map(write_one, held)))
        if failed:
            raise batch_error(failed)
        return count

    # Add, Counter, Touch --------------------------------------------------------------------------------------------

    async def add(self, key: str, data: bytes, /, *, ttl: float | None) -> bool:
        """See `Add.add`."""
        return await self._set(key, data, ttl, _nothing)

    async def incr(self, key: str, delta: int, /, *, ttl: float | None) -> int:
        """See `Counter.incr`."""
        place, delta = self._place(key), index(delta)

        def add(data: bytes | None) -> int:
            number = counter(data) if data is not None else 0
            if number is None:
                msg = f"cannot increment {short(key)}: it does not hold a counter"
                raise DecodeError(msg)
            if number + delta not in _INT64:
                msg = f"cannot increment {short(key)} to {number + delta}: counters have 64 bits"
                raise DecodeError(msg)
            return number + delta

        return await self._locked(place.shard, self._store.incr, place, ttl, add)

    async def touch(self, key: str, /, *, ttl: float | None) -> bool:
        """See `Touch.touch`."""
        place = self._place(key)
        return await self._locked(place.shard, self._store.touch, place, ttl)

    async def ttl(self, key: str, /) -> float | None:
        """See `Touch.ttl`."""
        body = await self._read(self._store.find, self._place(key))
        if body is None:
            msg = f"no entry under {short(key)}"
            raise KeyMissing(msg)
        expires_at = body.record.expires_at
        return None if expires_at == FOREVER else max(0.0, expires_at - self._clock.wall())

    # Clear, Scan ----------------------------------------------------------------------------------------------------

    async def clear(self, prefix: str, /) -> None:
        """See `Clear.clear`; the keys stand in the entries, so all of them are looked at, 256 at a time."""
        begin = _encode(prefix)
        async for shard, names in self._entries():
            await self._locked(shard, self._store.clear, shard, names, begin)

    async def scan(self, prefix: str, /) -> AsyncIterator[str]:
        """See `Scan.scan`; all entries are looked at, 256 at a time."""
        begin = _encode(prefix)
        async for shard, names in self._entries():
            for key in await self._write(self._store.keys, shard, names, begin):
                yield key

    async def _entries(self) -> AsyncIterator[tuple[str, list[str]]]:
        for shard in await self._write(self._store.shards):
            names = await self._write(self._store.names, shard)
            for chunk in _steps(names):
                yield shard, list(chunk)

    # Cas ------------------------------------------------------------------------------------------------------------

    async def get_versioned(self, key: str, /) -> tuple[bytes | None, Version]:
        """See `Cas.get_versioned`; the version is the SHA-256 of the value."""
        place = self._place(key)
        return self._store.get_warm(place) or await self._read(self._store.get, place) or (None, None)

    async def set_if(self, key: str, data: bytes, version: Version, /, *, ttl: float | None) -> bool:
        """See `Cas.set_if`."""

        def unchanged(record: Record | None) -> bool:
            return record is None or record.digest == version

        return await self._set(key, data, ttl, unchanged)

    async def swap(self, key: str, data: bytes, /, *, ttl: float | None) -> bytes | None:
        """See `Cas.swap`."""
        place = self._place(key)
        self._check_length(len(data))
        return await self._locked(place.shard, self._store.swap, place, data, ttl)

    # Stream ---------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def open(self, key: str, /) -> AsyncIterator[AsyncIterator[bytes] | None]:
        """See `Stream.open`; chunks of 256 KiB, of the entry as it was when it was opened.

        The whole body is compared with its digest first.  That reads it twice, but a damaged entry is a miss, which can
        be mended, and no error after half of it was passed on, which cannot.
        """
        body = await self._read(self._store.open_body, self._place(key))
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
                    msg = f"the file of {short(key)} was cut while it was read"
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
        place = self._place(key)
        body: Temporary | None = None
        pending = bytearray()
        length = 0
        try:
            async for chunk in _each(chunks):
                length += len(chunk)
                self._check_length(length)
                pending += chunk
                if len(pending) >= CHUNK:
                    if body is None:
                        body = await self._write(self._store.begin, place)
                    await self._write(body.append, bytes(pending))
                    pending.clear()
            if body is None:
                await self._set(key, bytes(pending), ttl)
            else:
                await self._write(body.append, bytes(pending))
                await self._locked(place.shard, self._store.commit, place, body, ttl)
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
            await self._locked(shard, self._store.tidy, shard)
        await self._locked("", self._store.room.make, 0)

    # Workers --------------------------------------------------------------------------------------------------------

    async def _set(self, key: str, data: bytes, ttl: float | None, condition: Condition | None = None) -> bool:
        place = self._place(key)
        self._check_length(len(data))
        return (await self._locked(place.shard, self._store.write, place, data, ttl, condition))[0]

    def _place(self, key: str) -> Place:
        return Place(check_key(key, self.key_limits))

    def _check_length(self, length: int) -> None:
        if self.value_limit is not None and length > self.value_limit:
            msg = f"{length} bytes are more than the {self.value_limit} that max_bytes leaves for one value"
            raise ValueTooLarge(msg)

    async def _read(self, work: Callable[[*Ts], T | None], *args: *Ts) -> T | None:
        """Run ``work`` in a worker; what cannot be read is not there."""
        try:
            return await self._in_worker(work, *args)
        except OSError:
            return None

    async def _write(self, work: Callable[[*Ts], T], *args: *Ts) -> T:
        """Run ``work`` in a worker; a failing disk is an error."""
        try:
            return await self._in_worker(work, *args)
        except BlockingIOError:
            raise  # a lock is held: for `_locked`
        except OSError as error:
            raise _translate(error) from error

    async def _locked(self, shard: str, work: Callable[[*Ts], T], *args: *Ts) -> T:
        """Run ``work``, which takes the lock of a shard, in a worker; a lock that nobody lets go of is an error.

        Where it is held, the tasks queue up here, and the first asks again and again: a process that was stopped while
        it held a lock must not take the workers away from the rest of the entries.
        """
        self._enter_loop()
        gate = self._gates.get(shard)
        if gate is None or not gate.locked():
            with suppress(BlockingIOError):
                return await self._write(work, *args)
            gate = self._gates.setdefault(shard, asyncio.Lock())
        try:
            async with asyncio.timeout(self._lock_timeout) as timeout:
                await gate.acquire()
        except TimeoutError as error:
            raise self._held() from error
        try:
            give_up_at = timeout.when() or 0.0
            while True:
                try:
                    return await self._write(work, *args)
                except BlockingIOError as error:
                    if asyncio.get_running_loop().time() >= give_up_at:
                        raise self._held() from error
                await asyncio.sleep(random.uniform(0.1, 1.0) * _RETRY)  # noqa: S311 - processes must not keep step
        finally:
            gate.release()

    def _held(self) -> BackendTimeout:
        return BackendTimeout(f"others have held a lock for {self._lock_timeout:g} s; is one of them stopped?")

    async def _in_worker(self, work: Callable[[*Ts], T], *args: *Ts) -> T:
        self._enter_loop()
        # A cancelled caller goes at once; what the worker began it ends, and whole entries are all it can leave.
        return await anyio.to_thread.run_sync(work, *args, abandon_on_cancel=True, limiter=self._limiter)

    def _enter_loop(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            # Threads of its own: an application that waits for the cache in all of anyio's would wait for ever.
            self._loop, self._limiter, self._gates = loop, anyio.CapacityLimiter(self._threads), {}


def _translate(error: OSError) -> BackendError:
    """Find the acache error that says what to do."""
    translated: BackendError
    if error.errno == errno.EFBIG:
        translated = ValueTooLarge(f"larger than the file system takes: {error}")
    elif error.errno in _REFUSED:
        translated = BackendRefused(f"the directory was refused: {error}")
    else:
        translated = BackendUnavailable(f"the disk failed: {error}")
    translated.__cause__ = error
    return translated


def _nothing(record: Record | None) -> bool:
    return record is None


def _encode(prefix: str) -> bytes:
    return prefix.encode("utf-8", "surrogatepass")  # no key begins with a surrogate


def _steps(items: Sequence[str]) -> list[Sequence[str]]:
    return [items[start : start + _STEP] for start in range(0, len(items), _STEP)]


async def _each(chunks: AsyncIterable[bytes] | Iterable[bytes]) -> AsyncIterator[bytes]:
    if isinstance(chunks, AsyncIterable):
        async for chunk in chunks:
            yield chunk
    else:
        for chunk in chunks:
            yield chunk
