"""`MemoryBackend`: the bytes seam in this process, with every capability that needs no second process.

A far tier for tests and for single-process applications that want values isolated from each other: what goes in and
out is bytes, so nobody shares objects.  Several caches may share one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from operator import index
from typing import Final

from ..clock import FOREVER, Clock, SystemClock
from ..entry import counter
from ..errors import ConfigurationError, DecodeError, KeyMissing
from .base import KeyLimits, Version, check_key

__all__ = ["MemoryBackend"]

_INT64: Final = range(-(2**63), 2**63)
_CHUNK: Final = 256 * 1024


class MemoryBackend:
    """A dictionary with deadlines.  Each operation is one synchronous step, so all of them are atomic.

    Args:
        max_entries: the bound; the oldest write goes first.
        clock: for the deadlines.
    """

    key_limits: Final = KeyLimits(max_bytes=1 << 20, printable=False)
    value_limit: Final = None

    def __init__(self, *, max_entries: int = 100_000, clock: Clock | None = None) -> None:
        if max_entries < 1:
            msg = f"max_entries={max_entries!r}: must be at least 1"
            raise ConfigurationError(msg)
        self._clock: Final = clock or SystemClock()
        self._max_entries: Final = max_entries
        self._items: Final[OrderedDict[str, tuple[bytes, float]]] = OrderedDict()

    def __repr__(self) -> str:
        return f"<MemoryBackend {len(self._items)} of {self._max_entries} entries>"

    async def get(self, key: str, /) -> bytes | None:
        """See `Backend.get`."""
        return self._live(key)

    async def set(self, key: str, data: bytes, /, *, ttl: float | None) -> None:
        """See `Backend.set`."""
        self._put(key, data, ttl)

    async def delete(self, key: str, /) -> bool:
        """See `Backend.delete`."""
        return self._live(key) is not None and self._items.pop(key, None) is not None

    async def aclose(self) -> None:
        """Do nothing: the entries go with the object, and another cache may be using it."""

    async def get_many(self, keys: Sequence[str], /) -> dict[str, bytes]:
        """See `Batch.get_many`."""
        found = {key: self._live(key) for key in keys}
        return {key: data for key, data in found.items() if data is not None}

    async def set_many(self, items: Mapping[str, bytes], /, *, ttl: float | None) -> None:
        """See `Batch.set_many`."""
        for key in items:
            check_key(key, self.key_limits)
        for key, data in items.items():
            self._put(key, data, ttl)

    async def delete_many(self, keys: Sequence[str], /) -> int:
        """See `Batch.delete_many`."""
        for key in keys:
            check_key(key, self.key_limits)
        return sum([await self.delete(key) for key in keys])

    async def add(self, key: str, data: bytes, /, *, ttl: float | None) -> bool:
        """See `Add.add`."""
        if self._live(key) is not None:
            return False
        self._put(key, data, ttl)
        return True

    async def incr(self, key: str, delta: int, /, *, ttl: float | None) -> int:
        """See `Counter.incr`."""
        data = self._live(key)
        number = counter(data) if data is not None else 0
        if number is None:
            msg = f"cannot increment {key!r}: it does not hold a counter"
            raise DecodeError(msg)
        total = number + index(delta)
        if total not in _INT64:
            msg = f"cannot increment {key!r} to {total}: counters have 64 bits"
            raise DecodeError(msg)
        text = b"%d" % total
        if data is None:
            self._put(key, text, ttl)
        else:
            self._items[key] = (text, self._items[key][1])
        return total

    async def touch(self, key: str, /, *, ttl: float | None) -> bool:
        """See `Touch.touch`."""
        data = self._live(key)
        if data is None:
            return False
        self._put(key, data, ttl)
        return True

    async def ttl(self, key: str, /) -> float | None:
        """See `Touch.ttl`."""
        if self._live(key) is None:
            msg = f"no entry under {key!r}"
            raise KeyMissing(msg)
        until = self._items[key][1]
        return None if until == FOREVER else until - self._clock.monotonic()

    async def clear(self, prefix: str, /) -> None:
        """See `Clear.clear`."""
        for key in [key for key in self._items if key.startswith(prefix)]:
            del self._items[key]

    async def scan(self, prefix: str, /) -> AsyncIterator[str]:
        """See `Scan.scan`."""
        for key in [key for key in self._items if key.startswith(prefix)]:
            if self._live(key) is not None:
                yield key

    async def get_versioned(self, key: str, /) -> tuple[bytes | None, Version]:
        """See `Cas.get_versioned`."""
        data = self._live(key)
        return data, data

    async def set_if(self, key: str, data: bytes, version: Version, /, *, ttl: float | None) -> bool:
        """See `Cas.set_if`."""
        if self._live(key) not in (None, version):
            return False
        self._put(key, data, ttl)
        return True

    async def swap(self, key: str, data: bytes, /, *, ttl: float | None) -> bytes | None:
        """See `Cas.swap`."""
        before = self._live(key)
        self._put(key, data, ttl)
        return before

    @asynccontextmanager
    async def open(self, key: str, /) -> AsyncIterator[AsyncIterator[bytes] | None]:
        """See `Stream.open`; the reader keeps the entry that was there."""
        data = self._live(key)
        yield None if data is None else _chunks(data)

    async def store(self, key: str, chunks: AsyncIterator[bytes] | Iterable[bytes], /, *, ttl: float | None) -> None:
        """See `Stream.store`; the whole is in memory in the end, so this bounds nothing."""
        check_key(key, self.key_limits)
        body = bytearray()
        if isinstance(chunks, AsyncIterable):
            async for chunk in chunks:
                body += chunk
        else:
            for chunk in chunks:
                body += chunk
        self._put(key, bytes(body), ttl)

    def _live(self, key: str) -> bytes | None:
        check_key(key, self.key_limits)
        item = self._items.get(key)
        if item is None:
            return None
        data, until = item
        if until <= self._clock.monotonic():
            del self._items[key]
            return None
        return data

    def _put(self, key: str, data: bytes, ttl: float | None) -> None:
        check_key(key, self.key_limits)
        items = self._items
        items.pop(key, None)  # a rewritten key is the youngest
        while len(items) >= self._max_entries:
            items.popitem(last=False)
        whole = data if type(data) is bytes else bytes(memoryview(data))  # bytes(5) would be five zeros
        items[key] = (whole, FOREVER if ttl is None else self._clock.monotonic() + ttl)


async def _chunks(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), _CHUNK):
        yield data[start : start + _CHUNK]
