"""Bodies in chunks on Redis: one entry like any other, in bounded memory, and never a mix."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import sys
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from redis import asyncio as aioredis

from acache import BackendUnavailable, DecodeError, ValueTooLarge
from acache.backends import Stream
from acache.backends.redis import RedisBackend

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

MIB = 2**20


@pytest.fixture(params=["redis", "redis-cluster"])
async def backend(request: pytest.FixtureRequest) -> AsyncIterator[RedisBackend]:
    url = request.getfixturevalue(f"{request.param.replace('-', '_')}_url")
    if request.param == "redis-cluster":
        url = url.replace("redis://", "redis+cluster://")
    backend = RedisBackend.from_url(url, connect_timeout=10, timeout=10)
    yield backend
    await backend.aclose()


@pytest.fixture
async def prefix(backend: RedisBackend) -> AsyncIterator[str]:
    prefix = f"stream:{uuid.uuid4().hex}:"
    yield prefix
    await backend.clear(prefix)


def body(size: int, seed: bytes = b"") -> bytes:
    """Return bytes that are nowhere the same."""
    return hashlib.shake_128(b"%d" % size + seed).digest(size)


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def read(backend: RedisBackend, key: str) -> bytes | None:
    async with backend.open(key) as chunks:
        return None if chunks is None else b"".join([chunk async for chunk in chunks])


async def left(backend: RedisBackend, key: str) -> list[bytes]:
    """Return every key, hidden ones included, that begins with ``key``."""
    return [name async for page in backend._transport().scan(key.encode() + b"*") for name in page]


@pytest.mark.parametrize("size", [0, 1, 512 * 1024 - 1, 512 * 1024, 512 * 1024 + 1, 3 * MIB + 17])
async def test_both_spellings_are_of_one_entry(backend: RedisBackend, prefix: str, size: int):
    """What is stored in chunks can be got, what is set can be opened, and both can be opened in turn."""
    assert isinstance(backend, Stream)
    data, stored, was_set = body(size), f"{prefix}stored", f"{prefix}set"
    await backend.store(stored, pieces(data, 100_001), ttl=60)
    await backend.set(was_set, data, ttl=60)
    assert await backend.get(stored) == data
    assert await read(backend, stored) == data
    assert await read(backend, was_set) == data
    assert await backend.get_many([stored, was_set, f"{prefix}missing"]) == {stored: data, was_set: data}
    assert await left(backend, stored) == [stored.encode()]
    assert await left(backend, was_set) == [was_set.encode()]


async def test_nothing_is_opened_where_nothing_is(backend: RedisBackend, prefix: str):
    async with backend.open(f"{prefix}missing") as chunks:
        assert chunks is None


async def test_chunks_come_from_an_async_iterator_too(backend: RedisBackend, prefix: str):
    async def produce() -> AsyncIterator[bytes]:
        for piece in pieces(body(2 * MIB), MIB // 3):
            await asyncio.sleep(0)
            yield piece

    await backend.store(f"{prefix}k", produce(), ttl=60)
    assert await backend.get(f"{prefix}k") == body(2 * MIB)


async def test_every_other_operation_treats_a_body_as_an_entry(backend: RedisBackend, prefix: str):
    """Ttl, touch, add, delete, compare-and-set, swap, counters, overwriting both ways, scan."""
    key, data = f"{prefix}k", body(2 * MIB)

    async def stored(ttl: float | None = 60) -> None:
        await backend.store(key, [data], ttl=ttl)

    await stored()
    assert 50 < (await backend.ttl(key) or 0) <= 60
    assert await backend.touch(key, ttl=None) is True
    assert await backend.ttl(key) is None
    assert await backend.add(key, b"other", ttl=60) is False
    assert [name async for name in backend.scan(prefix)] == [key]
    with pytest.raises(DecodeError):
        await backend.incr(key, 1, ttl=60)
    await stored(ttl=None)
    assert await backend.ttl(key) is None
    found, version = await backend.get_versioned(key)
    assert found == data
    await stored()
    assert await backend.set_if(key, b"mine", version, ttl=60) is False, "another body of the same bytes"
    _, version = await backend.get_versioned(key)
    assert await backend.set_if(key, b"mine", version, ttl=60) is True
    assert await backend.get(key) == b"mine"
    _, version = await backend.get_versioned(key)
    await stored()
    assert await backend.set_if(key, b"mine", version, ttl=60) is False
    before = await backend.swap(key, b"new", ttl=60)
    assert before is not None
    assert len(before) >= 48
    assert data.startswith(before)
    await stored()
    await backend.set(key, b"plain", ttl=60)
    assert await read(backend, key) == b"plain"
    await stored()
    await backend.set_many({key: b"many"}, ttl=60)
    assert await backend.get(key) == b"many"
    await stored()
    assert await backend.delete(key) is True
    assert await backend.get(key) is None
    await stored(ttl=0.05)
    await asyncio.sleep(0.2)
    assert await read(backend, key) is None
    assert await backend.delete(key) is False


@pytest.mark.parametrize("key", ["k", "{tag}k", "k{", "k}", "}{k", "{}k", "a{b}{c}", "é\n{}{x}"])
async def test_any_key_can_hold_a_body(backend: RedisBackend, prefix: str, key: str):
    """Whatever its braces say about the slot."""
    for name in (f"{prefix}{key}", f"{key}{prefix}"):
        await backend.store(name, [body(MIB)], ttl=60)
        assert await read(backend, name) == body(MIB)
        assert await backend.delete(name) is True
        assert await left(backend, prefix) == []


@pytest.mark.parametrize("writer", ["store", "set"])
@pytest.mark.parametrize("change", ["store", "set", "delete"])
async def test_a_reader_never_gets_a_mix(backend: RedisBackend, prefix: str, writer: str, change: str):
    """While the entry is replaced or removed it gets the rest of the old one, or an error."""
    key, old, new = f"{prefix}k", body(4 * MIB, b"old"), body(4 * MIB, b"new")
    if writer == "store":
        await backend.store(key, [old], ttl=60)
    else:
        await backend.set(key, old, ttl=60)
    got = b""
    try:
        async with backend.open(key) as chunks:
            assert chunks is not None
            got = await anext(chunks)
            if change == "delete":
                await backend.delete(key)
            elif change == "store":
                await backend.store(key, [new], ttl=60)
            else:
                await backend.set(key, new, ttl=60)
            async for chunk in chunks:
                got += chunk
    except BackendUnavailable:
        assert old.startswith(got)
    else:
        assert got == old
    assert await backend.get(key) == (None if change == "delete" else new)


async def test_bodies_are_whole_under_racing_writers_and_readers(backend: RedisBackend, prefix: str):
    """Each read gives one of the bodies, an error, or nothing."""
    key, bodies = f"{prefix}k", [body(2 * MIB, b"%d" % number) for number in range(4)]
    writing = True

    async def write(number: int) -> None:
        for _ in range(4):
            await backend.store(key, pieces(bodies[number], 300_000), ttl=60)
            await backend.set(key, bodies[number], ttl=60)

    async def look() -> int:
        seen = 0
        while writing:
            for once in (read(backend, key), backend.get(key)):
                try:
                    assert await once in (None, *bodies)
                    seen += 1
                except BackendUnavailable:
                    pass
        return seen

    readers = [asyncio.ensure_future(look()) for _ in range(2)]
    await asyncio.gather(*[write(number) for number in range(4)])
    writing = False
    assert sum(await asyncio.gather(*readers)) > 0
    assert await left(backend, prefix) == [key.encode()]


async def test_an_error_in_the_chunks_leaves_what_was_there(backend: RedisBackend, prefix: str):
    """And the error is the caller's own; nothing of the body is left over."""
    key = f"{prefix}k"
    await backend.set(key, b"old", ttl=60)

    def broken() -> Iterator[bytes]:
        yield body(3 * MIB)
        raise LookupError(key)

    with pytest.raises(LookupError, match=key):
        await backend.store(key, broken(), ttl=60)
    assert await backend.get(key) == b"old"
    assert await left(backend, prefix) == [key.encode()]


async def test_a_cancelled_writer_leaves_what_was_there(backend: RedisBackend, prefix: str):
    """Nothing of the body is left over, and nobody saw it."""
    key, reached = f"{prefix}k", asyncio.Event()
    await backend.set(key, b"old", ttl=60)

    async def endless() -> AsyncIterator[bytes]:
        yield body(3 * MIB)
        reached.set()
        await asyncio.Event().wait()

    task = asyncio.ensure_future(backend.store(key, endless(), ttl=60))
    await reached.wait()
    assert len(await left(backend, prefix)) == 2
    assert [name async for name in backend.scan(prefix)] == [key], "unfinished bodies are hidden"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await backend.get(key) == b"old"
    assert await left(backend, prefix) == [key.encode()]


async def test_an_abandoned_body_goes_away_by_itself(backend: RedisBackend, prefix: str):
    """A writer that was killed leaves something with a deadline, and so does a reader of a long value."""
    await backend.set(f"{prefix}k", body(MIB), ttl=None)

    def observed() -> Iterator[bytes]:
        yield body(2 * MIB)

    async def hidden() -> list[bytes]:
        return [name for name in await left(backend, prefix) if name != f"{prefix}k".encode()]

    async def watched() -> AsyncIterator[bytes]:
        for chunk in observed():
            yield chunk
        [name] = await hidden()
        assert 0 < await backend._do("PTTL", name) <= 300_000

    await backend.store(f"{prefix}body", watched(), ttl=None)
    assert await backend.ttl(f"{prefix}body") is None
    await backend.delete(f"{prefix}body")
    async with backend.open(f"{prefix}k") as chunks:
        assert chunks is not None
        [name] = await hidden()
        assert 0 < await backend._do("PTTL", name) <= 300_000
        await anext(chunks)
    assert await hidden() == []
    await backend.delete(f"{prefix}k")


async def test_a_clear_in_the_middle_of_a_write_leaves_no_half(backend: RedisBackend, prefix: str):
    """The writer is told, or its entry is whole."""

    async def cleared() -> AsyncIterator[bytes]:
        yield body(2 * MIB)
        await backend.clear(prefix)
        yield body(2 * MIB)

    with pytest.raises(BackendUnavailable, match="removed while it was written"):
        await backend.store(f"{prefix}k", cleared(), ttl=60)
    assert await left(backend, prefix) == []


async def test_a_hash_of_another_program_is_no_body(redis_url: str):
    """It can be replaced and deleted, but not read."""
    key = f"stream:{uuid.uuid4().hex}"
    backend = RedisBackend.from_url(redis_url)
    async with aioredis.Redis.from_url(redis_url) as foreign:
        for fields in (("a", "b"), ("head", "tails")):
            await foreign.hset(key, *fields)
            with pytest.raises(DecodeError):
                await backend.get(key)
            with pytest.raises(DecodeError):
                await read(backend, key)
            assert await backend.get_many([key]) == {}
            assert await backend.delete(key) is True
    await backend.aclose()


async def test_a_body_over_the_limit_is_no_value(redis_url: str, monkeypatch: pytest.MonkeyPatch):
    """It is there, and can be opened."""
    monkeypatch.setattr(RedisBackend, "value_limit", MIB)
    backend, key = RedisBackend.from_url(redis_url), f"stream:{uuid.uuid4().hex}"
    await backend.store(key, [body(3 * MIB)], ttl=60)
    with pytest.raises(ValueTooLarge, match=f"{3 * MIB} bytes .* {MIB}"):
        await backend.get(key)
    with pytest.raises(ValueTooLarge) as caught:
        await backend.get_many([key])
    assert list(caught.value.failed) == [key]
    assert await read(backend, key) == body(3 * MIB)
    await backend.delete(key)
    await backend.aclose()


MEMORY = """
import asyncio, hashlib, resource, sys
from acache.backends.redis import RedisBackend

url, size = sys.argv[1], int(sys.argv[2])
block = bytes(range(256)) * 4096

async def main():
    backend = RedisBackend.from_url(url, connect_timeout=30, timeout=30)
    await backend.get("connects")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    await backend.store("big", (block for _ in range(size // len(block))), ttl=600)
    total = 0
    async with backend.open("big") as chunks:
        async for chunk in chunks:
            assert chunk == block[: len(chunk)]
            total += len(chunk)
    assert total == size, total
    await backend.delete("big")
    await backend.aclose()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)

asyncio.run(main())
"""


def test_a_large_body_goes_through_little_memory(private_redis: Callable[..., Any]):
    """In and out, the process grows by less than 32 MB; a body many times that size is enough to see it."""
    server = private_redis()
    run = [sys.executable, "-c", MEMORY, server.url, str(256 * MIB)]
    ended = subprocess.run(run, capture_output=True, text=True, check=False, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) < 32 * 1024
