"""`MemcachedBackend` beside aiomcache."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import aiomcache

from acache.backends.memcached import MemcachedBackend
from engines.base import DATA, KEY, TTL, Engine, Side

__all__ = ["engines"]


@asynccontextmanager
async def _open(url: str) -> AsyncIterator[list[Side]]:
    parts = urlsplit(url)
    client = aiomcache.Client(parts.hostname or "localhost", parts.port or 11211, pool_size=100)
    backend = MemcachedBackend.from_url(url)
    bare = f"{KEY}:bare".encode()  # a key of its own: this client refuses an item that has flags
    await backend.set(KEY, DATA, ttl=TTL)
    await client.set(bare, DATA, exptime=int(TTL))
    try:
        yield [
            Side(
                "aiomcache",
                "`aiomcache.Client` with a pool of 100",
                lambda: client.get(bare),
                lambda: client.set(bare, DATA, exptime=int(TTL)),
            ),
            Side(
                "MemcachedBackend",
                "`MemcachedBackend.from_url(url)`",
                lambda: backend.get(KEY),
                lambda: backend.set(KEY, DATA, ttl=TTL),
                "ours",
            ),
        ]
        await backend.delete(KEY)
        await client.delete(bare)
    finally:
        await backend.aclose()
        await client.close()


def engines() -> list[Engine]:
    """Return the comparison."""
    bars = dict.fromkeys([(operation, tasks) for operation in ("get", "set") for tasks in (1, 100)], 1.1)
    return [Engine("memcached", "memcached", _open, bars)]
