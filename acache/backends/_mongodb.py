"""How `MongoDBBackend` keeps a large body: documents of one chunk each, beside the manifest under the key.

::

    {_id: {s: the token of the manifest, n: 0, 1, 2...}, expires: a date, absent for ever, data: the bytes}

No ``_id`` of a chunk is text, so no key, prefix or scan meets one.  A reader names the token with each chunk it asks
for: what it gets is of one entry or is not there.

Chunks are written with a short lease, renewed while more are written; then the manifest is, in one step; then the
chunks take over its deadline.  So chunks that never end have, or had, a manifest that never ends, and a writer that
dies leaves nothing that does not end by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from typing import Any, Final, TypeVar

from ..errors import BackendUnavailable

__all__ = ["CHUNK_BYTES", "Chunks", "finished", "pieces"]

T = TypeVar("T")
Json = dict[str, Any]

CHUNK_BYTES: Final = 1024 * 1024
"""Read twice as fast as 256 KiB; 4 MiB are no faster, and hold four times the memory."""
_LEASE: Final = 300.0
"""Seconds that chunks without a manifest stay; renewed when half of it is over."""
_STEP: Final = 16
"""Chunks that one command changes or removes: little enough for the deadline of one operation."""


class Chunks:
    """The chunks of one body, by way of a backend's ``do``: the name of a collection's method, and its arguments."""

    def __init__(self, do: Callable[..., Awaitable[Any]], token: bytes, count: int = 0) -> None:
        self.token: Final = token
        self.count = count
        self._do: Final = do
        self._leased = 0.0

    async def append(self, data: bytes) -> None:
        """Write one more."""
        if self.count:
            await self.renew()
        else:
            self._leased = _now()
        document = {"_id": "$_id", "expires": _lease(), "data": {"$literal": data}}
        wanted = {"_id": {"s": self.token, "n": self.count}}
        self.count += 1  # also of a write that fails: it may have happened
        await self._do("update_one", wanted, [{"$replaceWith": document}], upsert=True)

    async def renew(self) -> None:
        """Prolong the lease where half of it is over.

        Raises:
            BackendUnavailable: the chunks came so slowly that the first ones have been removed.
        """
        if _now() - self._leased < _LEASE / 2:
            return
        began = _now()
        if await self._update([{"$set": {"expires": _lease()}}]) < self.count:
            msg = f"the body stood still for longer than {_LEASE:.0f} seconds, and its first chunks are gone"
            raise BackendUnavailable(msg)
        self._leased = began

    async def read(self, number: int) -> bytes | None:
        """Return one chunk."""
        found = await self._do("find_one", {"_id": {"s": self.token, "n": number}}, {"_id": 0, "data": 1})
        return None if found is None else found["data"]

    async def end(self, expires: object) -> None:
        """Give all of them this deadline."""
        await self._update({"$unset": {"expires": ""}} if expires is None else {"$set": {"expires": expires}})

    async def remove(self) -> None:
        """Remove them."""
        for wanted in self._steps():
            await self._do("delete_many", wanted)

    async def _update(self, update: Any) -> int:
        return sum([(await self._do("update_many", wanted, update)).matched_count for wanted in self._steps()])

    def _steps(self) -> list[Json]:
        return [
            {"_id": {"$gte": {"s": self.token, "n": start}, "$lt": {"s": self.token, "n": start + _STEP}}}
            for start in range(0, self.count, _STEP)
        ]


async def pieces(chunks: AsyncIterable[bytes] | Iterable[bytes], size: int) -> AsyncGenerator[bytes]:
    """Cut a body, however it comes, into pieces of ``size`` bytes; the last one, of an empty body too, may be short."""
    pending = bytearray()
    async for chunk in _each(chunks):
        rest = memoryview(chunk)
        while len(pending) + len(rest) > size:
            cut = size - len(pending)
            pending += rest[:cut]
            rest = rest[cut:]
            yield bytes(pending)
            pending.clear()
        pending += rest
    yield bytes(pending)


async def finished(work: Coroutine[Any, Any, T]) -> T:
    """Await ``work``, and see it through to its end if the caller is cancelled."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody else asks for it now
        await asyncio.wait([task])
        raise


async def _each(chunks: AsyncIterable[bytes] | Iterable[bytes]) -> AsyncIterator[bytes]:
    if isinstance(chunks, AsyncIterable):
        async for chunk in chunks:
            yield chunk
    else:
        for chunk in chunks:
            yield chunk


def _lease() -> Json:
    return {"$add": ["$$NOW", int(_LEASE * 1000)]}


def _now() -> float:
    return asyncio.get_running_loop().time()
