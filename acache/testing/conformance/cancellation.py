"""A call that is cancelled or timed out, at whatever turn of the loop, leaves the connection in step."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from ...backends.base import Add, Backend, Batch, Cas, Clear, Counter, Scan, Stream, Touch
from .harness import LONG, Harness, promises, settled, witnesses

__all__ = ["CancellationChecks"]

Operation = Callable[[str], Awaitable[object]]

_TURNS: Final = (*range(12), 14, 17, 21, 27, 35, 48, 70, 110, 200, 400)
_TIMEOUTS: Final = (0.0, 0.00005, 0.0001, 0.0002, 0.0004, 0.0008, 0.0015, 0.003)

promise = promises("cancellation")


class CancellationChecks(Harness):
    """Each operation is cancelled at each turn until it is quicker than the cancellation."""

    @promise
    async def test_a_cancelled_read_leaves_the_next_answers_right(self, backend: Backend) -> None:
        """Every way to read."""
        await self._cancel_each(backend, _reads(backend), {b"old"})

    @promise
    async def test_a_cancelled_write_is_done_or_not(self, backend: Backend) -> None:
        """Every way to replace: the old value or the new, and the next answers right."""
        await self._cancel_each(backend, _writes(backend), {b"old", b"new"})

    @promise
    async def test_a_cancelled_removal_is_done_or_not(self, backend: Backend) -> None:
        """Every way to remove: the old value or none, and the next answers right."""
        await self._cancel_each(backend, _removals(backend), {b"old", None})

    @promise
    async def test_a_cancelled_increment_is_done_or_not(self, backend: Backend) -> None:
        """It counts once or not at all."""
        if isinstance(backend, Counter):
            await self._cancel_each(backend, {"incr": lambda key: backend.incr(key, 2, ttl=LONG)}, {b"5", b"7"}, b"5")

    @promise
    async def test_the_first_call_may_be_cancelled(self, backend: Backend) -> None:
        """While it connects, again and again, a little later each time; the next one connects."""
        key = self.key()
        for turns in _TURNS:
            await settled(backend.get(key), turns)
        await backend.set(key, b"v", ttl=LONG)
        assert await backend.get(key) == b"v"

    @promise
    async def test_a_call_that_timed_out_leaves_the_next_answers_right(self, backend: Backend) -> None:
        """`asyncio.timeout` of nothing up to what is enough."""
        seen = witnesses(self.key(""))
        await _store(backend, seen)
        operations = {**_reads(backend), **_writes(backend), **_removals(backend)}
        for operation in operations.values():
            key = self.key()
            for seconds in _TIMEOUTS:
                try:
                    async with asyncio.timeout(seconds):
                        await operation(key)
                except TimeoutError:
                    pass
            await _in_step(backend, seen)

    @promise
    async def test_a_cancelled_crowd_leaves_the_others_alone(self, backend: Backend) -> None:
        """A hundred at once, every third of them cancelled on its way: the rest get their own answers."""
        seen = witnesses(self.key(""), 100)
        await _store(backend, seen)
        for turns in (0, 1, 2, 3, 5, 8, 13, 30):
            tasks = {key: asyncio.ensure_future(backend.get(key)) for key in seen}
            for _ in range(turns):
                await asyncio.sleep(0)
            for task in list(tasks.values())[::3]:
                task.cancel()
            await asyncio.wait(tasks.values())
            for index, (key, task) in enumerate(tasks.items()):
                if index % 3:
                    assert task.result() == seen[key]
                else:
                    assert task.cancelled() or task.result() == seen[key]
        await _in_step(backend, seen)

    @promise
    async def test_concurrent_calls_get_their_own_answers(self, backend: Backend) -> None:
        """A hundred tasks at once, each with a key of its own and every kind of operation."""

        async def round_trip(index: int) -> None:
            key, mine = self.key(str(index)), b"%d" % index
            await backend.set(key, mine, ttl=LONG)
            assert await backend.get(key) == mine
            if isinstance(backend, Counter):
                assert await backend.incr(key, 1000, ttl=LONG) == index + 1000
                await backend.set(key, mine, ttl=LONG)
            if isinstance(backend, Batch):
                assert await backend.get_many([key, key + "x"]) == {key: mine}
            if isinstance(backend, Add):
                assert await backend.add(key, b"other", ttl=LONG) is False
            if isinstance(backend, Touch):
                assert await backend.touch(key, ttl=LONG) is True
            if isinstance(backend, Cas):
                data, version = await backend.get_versioned(key)
                assert data == mine
                assert await backend.set_if(key, mine + b"!", version, ttl=LONG) is True
                assert await backend.swap(key, mine, ttl=LONG) == mine + b"!"
            assert await backend.get(key) == mine
            assert await backend.delete(key) is True
            assert await backend.get(key) is None

        await asyncio.gather(*[round_trip(index) for index in range(100)])

    async def _cancel_each(
        self, backend: Backend, operations: dict[str, Operation], after: set[bytes | None], before: bytes = b"old"
    ) -> None:
        seen = witnesses(self.key(""))
        await _store(backend, seen)
        for name, operation in operations.items():
            for turns in _TURNS:
                key = self.key()
                await backend.set(key, before, ttl=LONG)
                cancelled = await settled(operation(key), turns)
                await _in_step(backend, seen)
                assert await backend.get(key) in after, f"{name}, cancelled after {turns} turns"
                if not cancelled and turns:
                    break


async def _all(keys: Any) -> list[str]:
    return [key async for key in keys]


async def _whole(backend: Stream, key: str) -> bytes | None:
    async with backend.open(key) as chunks:
        return None if chunks is None else b"".join([chunk async for chunk in chunks])


async def _refill(backend: Cas, key: str) -> bool:
    _, version = await backend.get_versioned(key)
    return await backend.set_if(key, b"new", version, ttl=LONG)


async def _store(backend: Backend, entries: dict[str, bytes]) -> None:
    for key, data in entries.items():
        await backend.set(key, data, ttl=2 * LONG)


async def _in_step(backend: Backend, seen: dict[str, bytes]) -> None:
    """Ask one after the other, and all at once."""
    for key in list(seen)[:2]:
        assert await backend.get(key) == seen[key]
    assert await asyncio.gather(*[backend.get(key) for key in seen]) == list(seen.values())


def _reads(backend: Backend) -> dict[str, Operation]:
    reads: dict[str, Operation] = {"get": backend.get}
    if isinstance(backend, Batch):
        reads["get_many"] = lambda key: backend.get_many([key, *[f"{key}{index}" for index in range(20)]])
    if isinstance(backend, Cas):
        reads["get_versioned"] = backend.get_versioned
    if isinstance(backend, Touch):
        reads["touch"] = lambda key: backend.touch(key, ttl=LONG)
    if isinstance(backend, Add):
        reads["add"] = lambda key: backend.add(key, b"new", ttl=LONG)
    if isinstance(backend, Scan):
        reads["scan"] = lambda key: _all(backend.scan(key))
    if isinstance(backend, Stream):
        reads["open"] = lambda key: _whole(backend, key)
    if isinstance(backend, Clear):
        reads["clear"] = lambda key: backend.clear(f"{key}:nothing")
    return reads


def _writes(backend: Backend) -> dict[str, Operation]:
    writes: dict[str, Operation] = {"set": lambda key: backend.set(key, b"new", ttl=LONG)}
    if isinstance(backend, Batch):
        writes["set_many"] = lambda key: backend.set_many({f"{key}x": b"x", key: b"new"}, ttl=LONG)
    if isinstance(backend, Cas):
        writes["swap"] = lambda key: backend.swap(key, b"new", ttl=LONG)
        writes["set_if"] = lambda key: _refill(backend, key)
    if isinstance(backend, Stream):
        writes["store"] = lambda key: backend.store(key, [b"n", b"ew"], ttl=LONG)
    return writes


def _removals(backend: Backend) -> dict[str, Operation]:
    removals: dict[str, Operation] = {"delete": backend.delete}
    if isinstance(backend, Batch):
        removals["delete_many"] = lambda key: backend.delete_many([f"{key}x", key])
    if isinstance(backend, Clear):
        removals["clear"] = backend.clear
    return removals
