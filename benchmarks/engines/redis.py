"""Redis: `RedisBackend` and a `Cache` over it, beside the clients and the caches of others."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from urllib.parse import urlsplit

from redis import Redis
from redis import asyncio as aioredis

from acache import Cache, Policy
from acache.backends.redis import RedisBackend
from engines.base import LONGEST, TTL, Bar, Calls, Engine, Side, Workload

__all__ = ["engines"]

_POOL = 1_100
"""Connections a pool may make: a thousand tasks each take one, and with fewer most of their calls would fail."""


@asynccontextmanager
async def _bare(url: str) -> AsyncIterator[Calls]:
    client = aioredis.Redis.from_url(url, max_connections=_POOL, socket_timeout=LONGEST)
    try:
        yield Calls(client.get, partial(client.set, px=TTL * 1000), client.mget)
    finally:
        await client.aclose()


@asynccontextmanager
async def _coredis(url: str) -> AsyncIterator[Calls]:
    import coredis

    client = coredis.Redis.from_url(url, max_connections=_POOL, stream_timeout=LONGEST)
    async with client:
        yield Calls(client.get, partial(client.set, px=TTL * 1000), client.mget)


@asynccontextmanager
async def _backend(url: str, *, multiplex: bool = True) -> AsyncIterator[Calls]:
    backend = RedisBackend.from_url(url, multiplex=multiplex, timeout=LONGEST)
    try:
        yield Calls(backend.get, partial(backend.set, ttl=TTL), backend.get_many)
    finally:
        await backend.aclose()


@asynccontextmanager
async def _cache(url: str) -> AsyncIterator[Calls]:
    backend = RedisBackend.from_url(url, timeout=LONGEST)
    cache = Cache(backend, memory=None, policy=Policy(ttl=TTL, backend_timeout=LONGEST, on_backend_error="raise"))
    try:
        yield Calls(cache.get, cache.set, cache.get_many)
    finally:
        await cache.aclose()
        await backend.aclose()


@asynccontextmanager
async def _aiocache(url: str) -> AsyncIterator[Calls]:
    from aiocache import RedisCache

    parts = urlsplit(url)
    cache = RedisCache(
        endpoint=parts.hostname, port=parts.port or 6379, db=int(parts.path.strip("/") or 0), password=parts.password,
        pool_max_size=_POOL, ttl=TTL, timeout=LONGEST,
    )  # fmt: skip
    try:
        yield Calls(cache.get, cache.set, cache.multi_get)
    finally:
        await cache.close()


@asynccontextmanager
async def _cashews(url: str) -> AsyncIterator[Calls]:
    import cashews

    cache = cashews.Cache()
    cache.setup(url, max_connections=50, socket_timeout=LONGEST, wait_for_connection_timeout=LONGEST, suppress=False)
    try:
        yield Calls(cache.get, partial(cache.set, expire=TTL), lambda keys: cache.get_many(*keys))
    finally:
        await cache.close()


def _pid(url: str) -> int:
    with Redis.from_url(url) as client:
        return int(client.info("server")["process_id"])


_MULTIPLEXED, _UVLOOP, _CACHE = "RedisBackend", "RedisBackend, uvloop", "Cache over RedisBackend"


def _sides() -> list[Side]:
    pool = f"`redis.asyncio.Redis.from_url(url, max_connections={_POOL})`: its pool as it comes, but large enough: with"
    pool += " the default of 100, nine in ten of a thousand simultaneous calls fail"
    return [
        Side("redis.asyncio", pool, _bare, "reference"),
        Side(_MULTIPLEXED, "`RedisBackend.from_url(url)`: all callers share few connections", _backend, "ours"),
        Side(
            "RedisBackend, pool",
            "`RedisBackend.from_url(url, multiplex=False)`: a pool of 50, callers wait",
            partial(_backend, multiplex=False),
            "ours",
            layer=None,
        ),
        Side(_CACHE, "`Cache(RedisBackend.from_url(url), memory=None)`: no near tier", _cache, "ours", layer="cache"),
        Side("coredis", f"`coredis.Redis.from_url(url, max_connections={_POOL})`", _coredis),
        Side(
            "aiocache", f"`RedisCache(pool_max_size={_POOL})`: JSON, as it comes", _aiocache, text=True, layer="cache"
        ),
        Side(
            "cashews",
            "`cache.setup(url, max_connections=50, suppress=False)` (default: 10 connections, errors are"
            " misses): callers wait",
            _cashews,
            layer="cache",
        ),
        Side("redis.asyncio, uvloop", "the first row on uvloop", _bare, "reference", loop="uvloop"),
        Side(_UVLOOP, "`RedisBackend` on uvloop", _backend, "ours", loop="uvloop", layer=None, beside=_MULTIPLEXED),
    ]


def _bars() -> list[Bar]:
    bars: list[Bar] = []
    for operation in ("get", "set"):
        for tasks in (100, 1000):
            bars += [Bar(Workload(operation, tasks), _MULTIPLEXED, unit, 0.12) for unit in ("wall", "cpu")]
        bars.append(Bar(Workload(operation, 100), _MULTIPLEXED, "server", 0.2))
    bars += [
        Bar(Workload("get"), _MULTIPLEXED, "wall", 0.85),
        Bar(Workload("get", 100, 100_000), _MULTIPLEXED, "wall", 0.6),
        Bar(Workload("get", 100), _CACHE, "wall", 0.25),
        Bar(Workload("get_many"), _CACHE, "wall", 1.3),
    ]
    return bars


def engines() -> list[Engine]:
    """Return the comparison."""
    workloads = [
        Workload(operation, tasks, size)
        for operation in ("get", "set", "mixed")
        for size in (100, 1_000, 100_000)
        for tasks in (1, 10, 100, 1_000)
    ]
    workloads += [
        Workload("get_many", tasks, size)
        for size, most in ((100, 100), (1_000, 100), (100_000, 1))
        for tasks in (1, 10, 100)
        if tasks <= most
    ]
    notes = {"get_many of 100 KB": "by one task only: ten tasks would hold 100 MB of replies"}
    packages = ("redis", "hiredis", "coredis", "aiocache", "cashews", "uvloop")
    return [
        Engine(
            "Redis",
            "redis",
            "redis",
            _sides(),
            workloads,
            _bars(),
            _pid,
            ("redis-server", "valkey-server"),
            packages,
            notes,
        )
    ]
