"""`RedisBackend` beside the client it is built on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis import asyncio as aioredis

from acache.backends.redis import RedisBackend
from engines.base import DATA, KEY, TTL, Engine, Side

__all__ = ["engines"]


@asynccontextmanager
async def _open(url: str) -> AsyncIterator[list[Side]]:
    # A blocking pool for both: the default one raises when a hundred tasks want more than it has.
    client = aioredis.Redis.from_pool(aioredis.BlockingConnectionPool.from_url(url, max_connections=50, timeout=None))
    backend = RedisBackend.from_url(url)
    await backend.set(KEY, DATA, ttl=TTL)
    milliseconds = int(TTL * 1000)
    try:
        yield [
            Side(
                "redis.asyncio",
                "`redis.asyncio` with a blocking pool of 50",
                lambda: client.get(KEY),
                lambda: client.set(KEY, DATA, px=milliseconds),
            ),
            Side(
                "RedisBackend",
                "`RedisBackend.from_url(url)`",
                lambda: backend.get(KEY),
                lambda: backend.set(KEY, DATA, ttl=TTL),
                "ours",
            ),
        ]
        await backend.delete(KEY)
    finally:
        await backend.aclose()
        await client.aclose()
        await client.connection_pool.disconnect()


def engines() -> list[Engine]:
    """Return the comparison."""
    bars = dict.fromkeys([(operation, tasks) for operation in ("get", "set") for tasks in (1, 100)], 1.1)
    return [Engine("Redis", "redis", _open, bars)]
