"""What Redis brings of its own: keys of other types, URLs, foreign bytes."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest
from redis import asyncio as aioredis

from acache import Cache, ConfigurationError, DecodeError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def cache(redis_url: str) -> AsyncIterator[Cache]:
    async with Cache.from_url(redis_url, memory=None, namespace=f"redis:{uuid.uuid4().hex}") as cache:
        yield cache
        await cache.clear()


@pytest.fixture
async def foreign(redis_url: str) -> AsyncIterator[aioredis.Redis]:
    """Another program on the same server."""
    async with aioredis.Redis.from_url(redis_url) as client:
        yield client


async def test_a_key_of_another_type_is_a_miss(cache: Cache, foreign: aioredis.Redis):
    """A list under an entry's key is garbage like any other: counted, loaded past, and replaced by a set."""
    await foreign.lpush(f"{cache.namespace}::k", "x")
    assert await cache.get("k") is None
    assert await cache.get_many(["k"]) == {}

    async def load() -> str:
        return "loaded"

    assert await cache.get_or_load("k", load) == "loaded"
    assert cache.stats().decode_failures >= 2
    await cache.set("k", "v")
    assert await cache.get("k") == "v"


async def test_a_key_of_another_type_can_be_deleted(cache: Cache, foreign: aioredis.Redis):
    """What is deleted is gone, and the answer is that no value was there."""
    await foreign.lpush(f"{cache.namespace}::k", "x")
    assert await cache.delete("k") is False
    assert await cache.get("k") is None


@pytest.mark.parametrize("data", [b"nope", b" 5", b"1e5", b"99999999999999999999", b""])
async def test_foreign_bytes_are_not_counted_over(cache: Cache, foreign: aioredis.Redis, data: bytes):
    """A counter that cannot be read is refused and stays; it does not start again at zero."""
    await foreign.set(f"{cache.namespace}::n", data)
    with pytest.raises(DecodeError):
        await cache.incr("n")
    assert await foreign.get(f"{cache.namespace}::n") == data


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("unix://", "path of the socket"),
        ("redis://localhost/0?protocol=9", "protocol"),
        ("redis://localhost/0?no_such_option=1", "unknown option 'no_such_option'"),
    ],
)
def test_a_url_that_cannot_work_is_refused_at_once(url: str, words: str):
    """By an error of acache's that names what is wrong."""
    with pytest.raises(ConfigurationError, match=words):
        Cache.from_url(url)
