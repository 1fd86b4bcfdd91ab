"""Large bodies in chunks: one entry, seen whole or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Any, Final
from unittest import SkipTest

from ...backends.base import Add, Backend, Batch, Cas, Clear, Counter, Scan, Stream, Touch
from ...errors import BackendUnavailable, DecodeError, ValueTooLarge
from .harness import LONG, Harness, expecting, having, promises

__all__ = ["StreamChecks"]

_PIECE: Final = 64 * 1024
_LARGE: Final = 5 * 1024 * 1024 + 17
_MANAGEABLE: Final = 32 * 1024 * 1024

promise = promises("stream")


class _SourceError(Exception):
    """What a source of chunks raises."""


def _body(letter: bytes, size: int = _LARGE) -> bytes:
    return letter * size


def _pieces(body: bytes, size: int = _PIECE) -> Iterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


async def _apart(chunks: Iterable[Any]) -> AsyncIterator[Any]:
    for chunk in chunks:
        await asyncio.sleep(0)
        yield chunk


async def _read(backend: Stream, key: str) -> bytes | None:
    async with backend.open(key) as chunks:
        if chunks is None:
            return None
        found = []
        async for chunk in chunks:
            assert type(chunk) is bytes
            found.append(chunk)
        return b"".join(found)


class StreamChecks(Harness):
    """`Stream`.  `get` and `set`, `open` and `store` are two spellings of one entry."""

    @promise
    async def test_what_was_stored_is_read(self, backend: Backend) -> None:
        """By chunks and whole; nothing, one chunk, many, empty ones among them, of even and odd sizes."""
        stream = having(backend, Stream)
        odd = [bytes([index % 256]) * size for index, size in enumerate((1, 2, 3, 5, 8191, 8192, 8193, 65537, 200_001))]
        for chunks in (
            [],
            [b""],
            [b"one"],
            [b"", b"a", b"", b"b", b""],
            [b"x"] * 3000,
            odd,
            list(_pieces(_body(b"y"))),
        ):
            key, body = self.key(), b"".join(chunks)
            await stream.store(key, chunks, ttl=LONG)
            assert await _read(stream, key) == body, f"{len(chunks)} chunks, {len(body)} bytes"
            assert await backend.get(key) == body, f"{len(chunks)} chunks, {len(body)} bytes"
            await backend.delete(key)

    @promise
    async def test_a_source_may_be_async_or_not(self, backend: Backend) -> None:
        """A list, a generator, an async generator, one that waits between its chunks."""
        stream, body = having(backend, Stream), _body(b"s", 300_000)

        async def slowly() -> AsyncIterator[bytes]:
            for piece in _pieces(body):
                await asyncio.sleep(0.001)
                yield piece

        for source in (list(_pieces(body)), _pieces(body), _apart(_pieces(body)), slowly()):
            key = self.key()
            await stream.store(key, source, ttl=LONG)
            assert await _read(stream, key) == body

    @promise
    async def test_a_chunk_may_be_any_buffer(self, backend: Backend) -> None:
        """A source that fills one buffer again and again is read before it goes on."""
        stream, key, buffer = having(backend, Stream), self.key(), bytearray(1000)

        async def one_buffer(kind: Callable[[bytearray], Any]) -> AsyncIterator[Any]:
            for index in range(100):
                buffer[:] = bytes([index]) * 1000
                yield kind(buffer)
                await asyncio.sleep(0)

        expected = b"".join(bytes([index]) * 1000 for index in range(100))
        for kind in (bytes, bytearray, memoryview):
            await stream.store(key, one_buffer(kind), ttl=LONG)
            assert await _read(stream, key) == expected, kind.__name__

    @promise
    async def test_a_value_that_was_set_can_be_read_by_chunks(self, backend: Backend) -> None:
        """Also an empty one and a counter's."""
        stream = having(backend, Stream)
        for body in (b"", b"small", b"42", _body(b"v", min(_LARGE, self.value_limit(backend) or _LARGE))):
            key = self.key()
            await backend.set(key, body, ttl=LONG)
            assert await _read(stream, key) == body

    @promise
    async def test_a_missing_body_is_none(self, backend: Backend) -> None:
        """Never stored, deleted, or expired; an empty one is not missing."""
        stream = having(backend, Stream)
        gone, expired, empty = self.key("gone"), self.key("expired"), self.key("empty")
        await stream.store(gone, [b"v"], ttl=LONG)
        assert await backend.delete(gone) is True
        await stream.store(expired, _pieces(_body(b"v", 300_000)), ttl=self.short(backend))
        await stream.store(empty, [], ttl=LONG)
        await self.pass_time(self.over(backend))
        assert await _read(stream, self.key("never")) is None
        assert await _read(stream, gone) is None
        assert await _read(stream, expired) is None
        assert await backend.get(expired) is None
        assert await _read(stream, empty) == b""

    @promise
    async def test_storing_replaces_value_and_deadline(self, backend: Backend) -> None:
        """Of what was set and of what was streamed; shorter over longer, and a set over a stream."""
        stream = having(backend, Stream)
        key, freed, bound = self.key(), self.key("freed"), self.key("bound")
        for body in (_body(b"1"), _body(b"2", 100), b"", _body(b"3", 100_000)):
            await stream.store(key, _pieces(body), ttl=LONG)
            assert await _read(stream, key) == body
        await backend.set(key, b"set", ttl=LONG)
        assert await _read(stream, key) == b"set"
        await stream.store(key, _pieces(_body(b"4")), ttl=LONG)
        assert await backend.get(key) == _body(b"4")
        await backend.set(freed, b"old", ttl=self.short(backend))
        await stream.store(freed, [b"new"], ttl=None)
        await stream.store(bound, [b"old"], ttl=None)
        await stream.store(bound, [b"new"], ttl=self.short(backend))
        await self.pass_time(self.over(backend))
        assert await _read(stream, freed) == b"new"
        assert await _read(stream, bound) is None
        await backend.delete(freed)

    @promise
    async def test_an_error_of_the_source_leaves_what_was_there(self, backend: Backend) -> None:
        """It is raised as it is; the old entry, or nothing, stays, and no leftovers."""
        stream, stem = having(backend, Stream), self.key("")

        def failing() -> Iterator[bytes]:
            yield from _pieces(_body(b"n"))
            raise _SourceError

        await stream.store(f"{stem}old", _pieces(_body(b"o")), ttl=LONG)
        for name, expected in (("old", _body(b"o")), ("new", None)):
            for source in (failing(), _apart(failing())):
                await expecting(_SourceError, stream.store(stem + name, source, ttl=LONG))
                assert await _read(stream, stem + name) == expected
        if isinstance(backend, Scan):
            assert {key async for key in backend.scan(stem)} == {f"{stem}old"}

    @promise
    async def test_a_cancelled_store_leaves_what_was_there(self, backend: Backend) -> None:
        """Cancelled while it waits for the next chunk, after the first one and after many."""
        stream, stem = having(backend, Stream), self.key("")
        await stream.store(f"{stem}old", _pieces(_body(b"o")), ttl=LONG)
        for name, expected in (("old", _body(b"o")), ("new", None)):
            for pieces in (1, 60):
                waiting = asyncio.Event()
                task = asyncio.ensure_future(stream.store(stem + name, _stuck(pieces, waiting), ttl=LONG))
                await waiting.wait()
                task.cancel()
                await asyncio.wait([task])
                assert task.cancelled()
                assert await _read(stream, stem + name) == expected
        if isinstance(backend, Scan):
            assert {key async for key in backend.scan(stem)} == {f"{stem}old"}

    @promise
    async def test_nothing_is_seen_before_the_last_chunk(self, backend: Backend) -> None:
        """While a store is under way, readers see what was there, by every spelling."""
        stream, old, new = having(backend, Stream), self.key("old"), self.key("new")
        await backend.set(old, b"old", ttl=LONG)
        for key, expected in ((old, b"old"), (new, None)):
            waiting, go = asyncio.Event(), asyncio.Event()
            task = asyncio.ensure_future(stream.store(key, _stuck(60, waiting, go), ttl=LONG))
            await waiting.wait()
            assert await backend.get(key) == expected
            assert await _read(stream, key) == expected
            go.set()
            await task
            assert await _read(stream, key) == b"n" * (_PIECE * 60) + b"end"

    @promise
    async def test_a_reader_never_sees_a_mix(self, backend: Backend) -> None:
        """Replaced or removed after the first chunk: the rest of the old one, or BackendUnavailable."""
        stream, body = having(backend, Stream), _body(b"o")
        for name, change in _changes(backend, stream).items():
            key = self.key(name)
            await stream.store(key, _pieces(body), ttl=LONG)
            async with stream.open(key) as chunks:
                assert chunks is not None
                found = await anext(chunks)
                await change(key)
                try:
                    async for chunk in chunks:
                        found += chunk
                except BackendUnavailable:
                    assert body.startswith(found), f"a mix after {name}"
                else:
                    assert found == body, f"{len(found)} bytes of {len(body)} after {name}, and no error"
            await backend.delete(key)

    @promise
    async def test_a_reader_outlives_the_ttl_or_is_told(self, backend: Backend) -> None:
        """An entry that ends while it is read is the whole, or BackendUnavailable; never a shorter one."""
        stream, key, body = having(backend, Stream), self.key(), _body(b"o")
        await stream.store(key, _pieces(body), ttl=LONG)
        if isinstance(backend, Touch):
            await backend.touch(key, ttl=max(1.0, self.short(backend)))  # time enough to get the first chunk
        async with stream.open(key) as chunks:
            assert chunks is not None
            found = await anext(chunks)
            await self.pass_time(max(1.0, self.short(backend)) + self.over(backend))
            try:
                async for chunk in chunks:
                    found += chunk
            except BackendUnavailable:
                assert body.startswith(found)
            else:
                assert found == body

    @promise
    async def test_two_readers_do_not_disturb_each_other(self, backend: Backend) -> None:
        """Chunk by chunk in turn, of one entry and of two, with other operations between."""
        stream, first, second, small = having(backend, Stream), self.key("1"), self.key("2"), self.key("small")
        await stream.store(first, _pieces(_body(b"1")), ttl=LONG)
        await stream.store(second, _pieces(_body(b"2")), ttl=LONG)
        await backend.set(small, b"small", ttl=LONG)
        async with stream.open(first) as one, stream.open(first) as again, stream.open(second) as other:
            assert one is not None
            assert again is not None
            assert other is not None
            found = {"one": b"", "again": b"", "other": b""}
            readers: dict[str, AsyncIterator[bytes]] = {"one": one, "again": again, "other": other}
            while readers:
                for name, chunks in list(readers.items()):
                    chunk = await anext(chunks, None)
                    if chunk is None:
                        del readers[name]
                    else:
                        found[name] += chunk
                assert await backend.get(small) == b"small"
        assert found == {"one": _body(b"1"), "again": _body(b"1"), "other": _body(b"2")}

    @promise
    async def test_a_reader_may_stop_early(self, backend: Backend) -> None:
        """After no chunk, after one, by an error, by a cancellation: what follows gets its own answers."""
        stream, key, small = having(backend, Stream), self.key(), self.key("small")
        await stream.store(key, _pieces(_body(b"b")), ttl=LONG)
        await backend.set(small, b"small", ttl=LONG)
        async with stream.open(key):
            pass
        assert await backend.get(small) == b"small"
        async with stream.open(key) as chunks:
            assert chunks is not None
            assert (await anext(chunks)).strip(b"b") == b""
        assert await backend.get(small) == b"small"

        async def stopped(reached: asyncio.Event | None) -> None:
            async with stream.open(key) as chunks:
                assert chunks is not None
                await anext(chunks)
                if reached is None:
                    raise _SourceError
                reached.set()
                await asyncio.Event().wait()

        await expecting(_SourceError, stopped(None))
        reached = asyncio.Event()
        task = asyncio.ensure_future(stopped(reached))
        await reached.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert await backend.get(small) == b"small"
        assert await _read(stream, key) == _body(b"b")

    @promise
    async def test_a_streamed_entry_is_an_entry_to_every_operation(self, backend: Backend) -> None:
        """Added over, touched, batched, compared, swapped and removed like one that was set."""
        stream, stem = having(backend, Stream), self.key("")
        key, body = f"{stem}body", _body(b"e")
        await stream.store(key, _pieces(body), ttl=LONG)
        if isinstance(backend, Add):
            assert await backend.add(key, b"new", ttl=LONG) is False
        if isinstance(backend, Touch):
            assert await backend.touch(key, ttl=2 * LONG) is True
            left = await backend.ttl(key)
            assert left is not None
            assert left > LONG
        if isinstance(backend, Scan):
            assert [found async for found in backend.scan(stem)] == [key]
        if isinstance(backend, Batch):
            assert await backend.get_many([key]) == {key: body}
            assert await backend.delete_many([key]) == 1
            assert await _read(stream, key) is None
            await stream.store(key, _pieces(body), ttl=LONG)
        if isinstance(backend, Counter):
            await expecting(DecodeError, backend.incr(key, 1, ttl=LONG))
        if isinstance(backend, Cas):
            data, version = await backend.get_versioned(key)
            assert data == body
            assert await backend.set_if(key, b"new", version, ttl=LONG) is True
            assert await _read(stream, key) == b"new"
            body = _body(b"f")
            await stream.store(key, _pieces(body), ttl=LONG)
            assert await backend.set_if(key, b"newer", version, ttl=LONG) is False
            before = await backend.swap(key, b"newest", ttl=LONG)
            assert before is not None
            assert body.startswith(before)
        await stream.store(key, _pieces(body), ttl=LONG)
        assert await backend.delete(key) is True
        assert await backend.get(key) is None

    @promise
    async def test_streamed_digits_are_a_counter(self, backend: Backend) -> None:
        """As they are when they were set."""
        stream, counter, key = having(backend, Stream), having(backend, Counter), self.key()
        await stream.store(key, [b"4", b"1"], ttl=LONG)
        assert await counter.incr(key, 1, ttl=LONG) == 42
        assert await _read(stream, key) == b"42"

    @promise
    async def test_a_touch_moves_the_whole_body(self, backend: Backend) -> None:
        """All chunks of it live as long as the entry."""
        stream, toucher, key = having(backend, Stream), having(backend, Touch), self.key()
        await stream.store(key, _pieces(_body(b"t")), ttl=max(1.0, self.short(backend)))
        if await toucher.touch(key, ttl=LONG):
            await self.pass_time(max(1.0, self.short(backend)) + self.over(backend))
            assert await _read(stream, key) == _body(b"t")
        else:
            assert await _read(stream, key) is None

    @promise
    async def test_clear_takes_the_whole_body(self, backend: Backend) -> None:
        """Nothing of it is listed or read afterwards."""
        stream, clearer, stem = having(backend, Stream), having(backend, Clear), self.key("")
        await stream.store(f"{stem}body", _pieces(_body(b"c")), ttl=LONG)
        await clearer.clear(stem)
        assert await _read(stream, f"{stem}body") is None
        assert await backend.get(f"{stem}body") is None
        if isinstance(backend, Scan):
            assert [key async for key in backend.scan(stem)] == []

    @promise
    async def test_a_body_over_the_value_limit_is_read_by_chunks_only(self, backend: Backend) -> None:
        """`get` says ValueTooLarge; `open` returns all of it."""
        stream, limit = having(backend, Stream), self.value_limit(backend)
        if limit is None or limit > _MANAGEABLE:
            reason = f"{type(backend).__name__} takes what a check can hold in one value"
            raise SkipTest(reason)
        key, body = self.key(), _body(b"l", limit + 1)
        await stream.store(key, _pieces(body, 1 << 20), ttl=LONG)
        assert await _read(stream, key) == body
        await expecting(ValueTooLarge, backend.get(key))
        assert await backend.delete(key) is True

    @promise
    async def test_racing_writers_leave_one_whole_body(self, backend: Backend) -> None:
        """Of eight stores at once, their chunks interleaved, the entry is one."""
        stream, key = having(backend, Stream), self.key()
        bodies = [_body(bytes([65 + index]), 700_000 + index) for index in range(8)]
        await asyncio.gather(*[stream.store(key, _apart(_pieces(body)), ttl=LONG) for body in bodies])
        assert await _read(stream, key) in bodies


async def _stuck(pieces: int, waiting: asyncio.Event, go: asyncio.Event | None = None) -> AsyncIterator[bytes]:
    """Yield so many pieces, then say so and wait to be let go."""
    for _ in range(pieces):
        yield b"n" * _PIECE
    waiting.set()
    await (go or asyncio.Event()).wait()
    yield b"end"


def _changes(backend: Backend, stream: Stream) -> dict[str, Callable[[str], Awaitable[object]]]:
    return {
        "set": lambda key: backend.set(key, b"new", ttl=LONG),
        "a store of the same length": lambda key: stream.store(key, _pieces(_body(b"n")), ttl=LONG),
        "a shorter store": lambda key: stream.store(key, _pieces(_body(b"n", _LARGE // 2)), ttl=LONG),
        "a longer store": lambda key: stream.store(key, _pieces(_body(b"n", _LARGE + _PIECE)), ttl=LONG),
        "delete": backend.delete,
    }
