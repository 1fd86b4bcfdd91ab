"""Memcached: `MemcachedBackend` and a `Cache` over it, beside aiomcache and aiocache."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from urllib.parse import urlsplit

import aiomcache

from acache import Cache, Policy
from acache.backends.memcached import MemcachedBackend
from engines.base import LONGEST, TTL, Bar, Calls, Engine, Side, Workload

__all__ = ["engines"]


def _place(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "localhost", parts.port or 11211


@asynccontextmanager
async def _bare(url: str, *, pool: int) -> AsyncIterator[Calls]:
    client = aiomcache.Client(*_place(url), pool_size=pool)

    async def get(key: str) -> bytes | None:
        return await client.get(key.encode())

    async def store(key: str, data: bytes) -> bool:
        return await client.set(key.encode(), data, exptime=TTL)

    async def get_many(keys: Sequence[str]) -> object:
        return await client.multi_get(*[key.encode() for key in keys])

    try:
        yield Calls(get, store, get_many)
    finally:
        await client.close()


@asynccontextmanager
async def _backend(url: str) -> AsyncIterator[Calls]:
    backend = MemcachedBackend.from_url(url, timeout=LONGEST)
    try:
        yield Calls(backend.get, partial(backend.set, ttl=TTL), backend.get_many)
    finally:
        await backend.aclose()


@asynccontextmanager
async def _cache(url: str) -> AsyncIterator[Calls]:
    backend = MemcachedBackend.from_url(url, timeout=LONGEST)
    cache = Cache(backend, memory=None, policy=Policy(ttl=TTL, backend_timeout=LONGEST, on_backend_error="raise"))
    try:
        yield Calls(cache.get, cache.set, cache.get_many)
    finally:
        await cache.aclose()
        await backend.aclose()


@asynccontextmanager
async def _aiocache(url: str) -> AsyncIterator[Calls]:
    from aiocache import MemcachedCache

    endpoint, port = _place(url)
    cache = MemcachedCache(endpoint=endpoint, port=port, pool_size=100, timeout=LONGEST)
    try:
        yield Calls(cache.get, partial(cache.set, ttl=TTL), cache.multi_get)
    finally:
        await cache.close()


def _pid(url: str) -> int:
    with socket.create_connection(_place(url), timeout=5) as connection:
        connection.sendall(b"stats\r\n")
        for line in connection.makefile("rb"):
            if line.startswith(b"STAT pid "):
                return int(line.split()[2])
    msg = "this Memcached does not say its process"
    raise OSError(msg)


def engines() -> list[Engine]:
    """Return the comparison."""
    ours = "MemcachedBackend"
    sides = [
        Side("aiomcache", "`aiomcache.Client(pool_size=100)`", partial(_bare, pool=100), "reference"),
        Side("aiomcache, default pool", "`aiomcache.Client()`: two connections", partial(_bare, pool=2), "reference"),
        Side(ours, "`MemcachedBackend.from_url(url)`", _backend, "ours"),
        Side("Cache over MemcachedBackend", "the same in a `Cache`, `memory=None`", _cache, "ours", layer="cache"),
        Side("aiocache", "`MemcachedCache(pool_size=100)`: JSON, as it comes", _aiocache, text=True, layer="cache"),
    ]
    workloads = [
        Workload(operation, tasks, size)
        for operation in ("get", "set", "mixed")
        for size in (100, 1_000, 100_000)
        for tasks in (1, 100)
    ]
    workloads += [Workload("get_many", tasks, 100) for tasks in (1, 10)]
    bars = [Bar(Workload(operation, tasks), ours, "cpu", 1.1) for operation in ("get", "set") for tasks in (1, 100)]
    return [
        Engine(
            "Memcached",
            "memcached",
            "memcached",
            sides,
            workloads,
            bars,
            _pid,
            ("memcached",),
            ("aiomcache", "aiocache"),
        ),
    ]
