"""Long values: read in pieces, never of two values, with room for others between the pieces."""

from __future__ import annotations

import asyncio
import random
import uuid
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from redis import asyncio as aioredis

from acache import BackendUnavailable
from acache.backends.redis import RedisBackend

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

SIZE = 8_000_000


@asynccontextmanager
async def backend_of(url: str) -> AsyncIterator[RedisBackend]:
    backend = RedisBackend.from_url(url, timeout=30)
    yield backend
    await backend.aclose()


@pytest.fixture
async def backend(redis_url: str) -> AsyncIterator[RedisBackend]:
    async with backend_of(redis_url) as backend:
        yield backend


@pytest.fixture
async def key(backend: RedisBackend) -> AsyncIterator[str]:
    """The key of a value that is known to be long."""
    key = f"pieces:{uuid.uuid4().hex}"
    await backend.set(key, b"a" * SIZE, ttl=60)
    for _ in range(2):
        assert await backend.get(key) == b"a" * SIZE
    yield key
    await backend.delete(key)


async def calls_of(url: str, command: str) -> int:
    async with aioredis.Redis.from_url(url) as client:
        stats: dict[str, Any] = await client.info("commandstats")
    return int(stats.get(f"cmdstat_{command}", {}).get("calls", 0))


@pytest.mark.need("faults", engine="Redis")
async def test_a_long_value_leaves_the_server_in_pieces_once_it_is_known_to_be_long(private_redis: Callable[..., Any]):
    server = private_redis()
    async with backend_of(server.url) as backend:
        await backend.set("k", bytes(SIZE), ttl=60)
        for _ in range(4):
            assert await backend.get("k") == bytes(SIZE)
            assert (await backend.get_versioned("k"))[0] == bytes(SIZE)
        assert await calls_of(server.url, "get") == 1
        assert await calls_of(server.url, "getrange") >= 4 * 8


async def test_pieces_of_two_values_are_never_taken_for_one(backend: RedisBackend, redis_url: str, key: str):
    """Somebody else replaces the value all the time, by others of its length too."""
    writes, done = 0, asyncio.Event()

    async def replace() -> None:
        nonlocal writes
        async with backend_of(redis_url) as other:
            while not done.is_set():
                letter = random.choice([b"a", b"b", b"c"])
                await other.set(key, letter * random.choice([SIZE, SIZE, SIZE // 2, 10]), ttl=60)
                writes += 1

    task = asyncio.create_task(replace())
    for _ in range(60):
        data = await backend.get(key)
        assert data is not None
        assert data == data[:1] * len(data)
        assert len(data) in (SIZE, SIZE // 2, 10)
    done.set()
    await task
    assert writes > 10


async def test_many_readers_of_long_values_at_once(backend: RedisBackend, key: str):
    other = f"{key}:b"
    await backend.set(other, b"b" * SIZE, ttl=60)
    letters = [b"a", b"b"] * 6
    replies = await asyncio.gather(*[backend.get(key if letter == b"a" else other) for letter in letters])
    assert [reply == letter * SIZE for reply, letter in zip(replies, letters, strict=True)] == [True] * 12
    await backend.delete(other)


async def test_cancelled_between_two_pieces(backend: RedisBackend, key: str):
    """At any moment; whoever reads next gets the whole value, and what lies under another key is not disturbed."""
    for turns in [*range(40), *random.choices(range(40, 400), k=20)]:
        task = asyncio.create_task(backend.get(key))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        small = asyncio.create_task(backend.get(f"{key}:none"))
        if turns % 10 == 0:
            assert await backend.get(key) == b"a" * SIZE
        assert await small is None
        await asyncio.wait([task])
    assert await backend.get(key) == b"a" * SIZE


async def test_a_long_value_that_is_gone_or_short_now(backend: RedisBackend, key: str):
    await backend.set(key, b"short", ttl=60)
    assert await backend.get(key) == b"short"
    await backend.set(key, b"b" * SIZE, ttl=60)
    for _ in range(3):
        assert await backend.get(key) == b"b" * SIZE
    await backend.delete(key)
    for _ in range(3):
        assert await backend.get(key) is None
    await backend.store(key, [b"c" * 1_000_000] * 8, ttl=60)
    for _ in range(3):
        assert await backend.get(key) == b"c" * SIZE


@pytest.mark.need("faults", engine="Redis")
@pytest.mark.parametrize("rules", ["-watch", "-strlen", "-getrange", "-multi", "-exec", "-unwatch"])
async def test_without_the_permission_it_comes_in_one_piece(private_redis: Callable[..., Any], rules: str):
    server = private_redis()
    async with aioredis.Redis.from_url(server.url) as admin:
        await admin.execute_command("ACL", "SETUSER", "cache", "reset", "on", ">pass", "~*", "+@all", rules)
    async with backend_of(f"redis://cache:pass@127.0.0.1:{server.port}") as backend:
        await backend.set("k", b"a" * SIZE, ttl=60)
        for _ in range(4):
            assert await backend.get("k") == b"a" * SIZE


@pytest.mark.need("faults", engine="Redis")
async def test_the_connection_is_lost_between_two_pieces(private_redis: Callable[..., Any]):
    """A read may be sent again, so nobody notices."""
    server = private_redis()
    async with aioredis.Redis.from_url(server.url) as admin, backend_of(server.url) as backend:
        await backend.set("k", b"a" * SIZE, ttl=60)
        for turns in range(3, 60, 4):
            for _ in range(2):  # known to be long, and over connections that are there
                await backend.get("k")
            task = asyncio.create_task(backend.get("k"))
            for _ in range(turns):
                await asyncio.sleep(0)
            await admin.client_kill_filter(_type="normal", skipme=True)
            assert await task == b"a" * SIZE


async def test_closed_while_a_long_value_is_read(redis_url: str, key: str):
    for turns in (2, 10, 30):
        async with backend_of(redis_url) as backend:
            for _ in range(2):
                await backend.get(key)
            task = asyncio.create_task(backend.get(key))
            for _ in range(turns):
                await asyncio.sleep(0)
            await backend.aclose()
            with suppress(BackendUnavailable):
                assert await task == b"a" * SIZE
