"""`LayeredBackend`: a backend close by in front of one that is shared, as one backend.

With files in front of Redis a cache has three tiers: memory, this machine's disk, the server.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, NamedTuple

from ..clock import Seconds, seconds
from ..entry import HEAD_BYTES
from ..errors import BackendError, ConfigurationError, KeyMissing, Unsupported
from .base import Add, Backend, Batch, Cas, Clear, Counter, KeyLimits, Scan, Touch, Version, check_key

__all__ = ["LayeredBackend"]

_NEEDED: Final = (Add, Batch, Cas, Counter, Touch)


class _Copy(NamedTuple):
    """The version of what the local backend answered."""

    head: bytes


class LayeredBackend:
    """Copies in ``local``, the truth in ``shared``.

    Reads ask ``local`` first and leave a copy of what ``shared`` had.  Writes go to ``shared`` and remove the copy.
    What this object changes it never reads stale.  A change that comes to ``shared`` another way, from another machine
    say, is seen at most ``local_ttl`` seconds late, be it an entry, the invalidation of a tag or a `clear`.  A copy
    does not outlive the entry it was made of.

    A local backend that fails to read is a miss.  One that cannot remove a copy makes the change raise.

    Args:
        local: such as ``FileBackend``, used by the processes of this machine.
        shared: with the capabilities Add, Batch, Cas, Counter and Touch.
        local_ttl: the most that a copy is kept.

    Raises:
        ConfigurationError: ``shared`` lacks a capability, or ``local_ttl`` is not above zero.
    """

    def __init__(self, local: Backend, shared: Backend, *, local_ttl: Seconds = 5.0) -> None:
        for backend in (local, shared):
            if isinstance(backend, type) or not isinstance(backend, Backend):
                msg = f"{backend!r} has no get, set, delete and aclose: pass a backend"
                raise ConfigurationError(msg)
        lacking = [needed.__name__ for needed in _NEEDED if not isinstance(shared, needed)]
        if lacking:
            msg = f"{shared!r} cannot be the shared one: it lacks {', '.join(lacking)}"
            raise ConfigurationError(msg)
        self._local: Final = local
        self._shared: Final[Any] = shared
        self._local_ttl: Final = seconds(local_ttl, "local_ttl", zero=False)
        self._reading: Final[dict[str, object]] = {}
        """Who is about to leave a copy; whoever changes a key takes its reader out."""
        limits = [getattr(backend, "key_limits", KeyLimits()) for backend in (local, shared)]
        self.key_limits: Final = KeyLimits(
            max_bytes=min(one.max_bytes for one in limits), printable=any(one.printable for one in limits)
        )
        self.value_limit: Final[int | None] = getattr(shared, "value_limit", None)
        self.ttl_granularity: Final[float] = max(
            getattr(backend, "ttl_granularity", 0.0) for backend in (local, shared)
        )

    def __repr__(self) -> str:
        return f"<LayeredBackend {self._local!r} over {self._shared!r}>"

    # Reading --------------------------------------------------------------------------------------------------------

    async def get(self, key: str, /) -> bytes | None:
        """See `Backend.get`."""
        return (await self._read(key, versioned=False))[0]

    async def get_versioned(self, key: str, /) -> tuple[bytes | None, Version]:
        """See `Cas.get_versioned`."""
        return await self._read(key, versioned=True)

    async def _read(self, key: str, *, versioned: bool) -> tuple[bytes | None, Version]:
        check_key(key, self.key_limits)
        if (copy := await self._look(key)) is not None:
            return copy, _Copy(copy[:HEAD_BYTES])
        mark = self._reading[key] = object()
        try:
            data, version = await self._shared.get_versioned(key) if versioned else (await self._shared.get(key), None)
            if data is not None:
                await self._keep(key, data, mark)
            return data, version
        finally:
            if self._reading.get(key) is mark:
                del self._reading[key]

    async def _look(self, key: str) -> bytes | None:
        with suppress(BackendError):
            return await self._local.get(key)
        return None

    async def _keep(self, key: str, data: bytes, mark: object) -> None:
        with suppress(BackendError, KeyMissing):
            # Asked after the entry was read: of an entry that took its place meanwhile this is the ttl, and the copy is
            # as late as one of an entry that was replaced a moment later.
            left = await self._shared.ttl(key)
            if self._reading.get(key) is mark:
                try:
                    await self._local.set(
                        key, data, ttl=self._local_ttl if left is None else min(left, self._local_ttl)
                    )
                finally:
                    # 1: this read the old entry.  2: a change removes the copy, which is not there yet.  3: this
                    # leaves it.
                    if self._reading.get(key) is not mark:
                        await self._local.delete(key)

    async def get_many(self, keys: Sequence[str], /) -> dict[str, bytes]:
        """See `Batch.get_many`; it reads copies, and leaves none."""
        for key in keys:
            check_key(key, self.key_limits)
        found: dict[str, bytes] = {}
        with suppress(BackendError):
            if isinstance(self._local, Batch):
                found = await self._local.get_many(keys)
        missing = [key for key in keys if key not in found]
        if not missing:
            return found
        try:
            rest: dict[str, bytes] = await self._shared.get_many(missing)
            return found | rest
        except BackendError as error:
            error.found = {**found, **error.found}
            raise

    async def drop_copy(self, key: str, /) -> None:
        """See `Copies.drop_copy`."""
        async with self._changing(key):
            pass

    async def ttl(self, key: str, /) -> float | None:
        """See `Touch.ttl`."""
        left: float | None = await self._shared.ttl(key)
        return left

    async def scan(self, prefix: str, /) -> AsyncIterator[str]:
        """See `Scan.scan`."""
        if not isinstance(self._shared, Scan):
            msg = f"{type(self._shared).__name__} cannot list keys: it has no Scan capability"
            raise Unsupported(msg)
        async for key in self._shared.scan(prefix):
            yield key

    # Changing -------------------------------------------------------------------------------------------------------

    async def set(self, key: str, data: bytes, /, *, ttl: float | None) -> None:
        """See `Backend.set`."""
        async with self._changing(key):
            await self._shared.set(key, data, ttl=ttl)

    async def delete(self, key: str, /) -> bool:
        """See `Backend.delete`."""
        async with self._changing(key):
            existed: bool = await self._shared.delete(key)
            return existed

    async def set_many(self, items: Mapping[str, bytes], /, *, ttl: float | None) -> None:
        """See `Batch.set_many`."""
        async with self._changing(*items):
            await self._shared.set_many(items, ttl=ttl)

    async def delete_many(self, keys: Sequence[str], /) -> int:
        """See `Batch.delete_many`."""
        async with self._changing(*keys):
            count: int = await self._shared.delete_many(keys)
            return count

    async def add(self, key: str, data: bytes, /, *, ttl: float | None) -> bool:
        """See `Add.add`."""
        async with self._changing(key):
            added: bool = await self._shared.add(key, data, ttl=ttl)
            return added

    async def incr(self, key: str, delta: int, /, *, ttl: float | None) -> int:
        """See `Counter.incr`."""
        async with self._changing(key):
            number: int = await self._shared.incr(key, delta, ttl=ttl)
            return number

    async def touch(self, key: str, /, *, ttl: float | None) -> bool:
        """See `Touch.touch`."""
        async with self._changing(key):
            existed: bool = await self._shared.touch(key, ttl=ttl)
            return existed

    async def set_if(self, key: str, data: bytes, version: Version, /, *, ttl: float | None) -> bool:
        """See `Cas.set_if`; a version that a copy had is current if the shared entry is still the one copied."""
        async with self._changing(key):
            if isinstance(version, _Copy):
                seen, current = await self._shared.get_versioned(key)
                if seen is not None and seen[:HEAD_BYTES] != version.head:
                    return False
                version = current
            stored: bool = await self._shared.set_if(key, data, version, ttl=ttl)
            return stored

    async def swap(self, key: str, data: bytes, /, *, ttl: float | None) -> bytes | None:
        """See `Cas.swap`."""
        async with self._changing(key):
            before: bytes | None = await self._shared.swap(key, data, ttl=ttl)
            return before

    async def clear(self, prefix: str, /) -> None:
        """See `Clear.clear`."""
        shared, local = self._shared, self._local
        if not (isinstance(shared, Clear) and isinstance(local, Clear)):
            lacking = local if isinstance(shared, Clear) else shared
            msg = f"{type(lacking).__name__} cannot remove keys by prefix: it has no Clear capability"
            raise Unsupported(msg)
        try:
            await shared.clear(prefix)
        finally:
            self._reading.clear()
            await local.clear(prefix)

    @asynccontextmanager
    async def _changing(self, *keys: str) -> AsyncIterator[None]:
        """Change the shared entries of ``keys``, and remove the copies, whatever came of it."""
        for key in keys:
            check_key(key, self.key_limits)
        try:
            yield
        finally:
            # Whoever began to read before has seen the old entry, and leaves no copy.
            for key in keys:
                self._reading.pop(key, None)
            await self._drop(keys)

    async def _drop(self, keys: Iterable[str]) -> None:
        keys = tuple(keys)
        if len(keys) > 1 and isinstance(self._local, Batch):
            await self._local.delete_many(keys)
        else:
            for key in keys:
                await self._local.delete(key)

    async def aclose(self) -> None:
        """Close both."""
        try:
            await self._shared.aclose()
        finally:
            await self._local.aclose()
