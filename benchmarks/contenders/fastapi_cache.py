"""fastapi-cache2: the decorator, and its memory backend, which holds bytes."""

from __future__ import annotations

from typing import Any

from cases import KEYS, TTL, VALUE, Case
from fastapi_cache import FastAPICache
from fastapi_cache.backends.inmemory import InMemoryBackend
from fastapi_cache.decorator import cache as cached

from contenders.base import Call, Contender, Fill, Operation, decorated

__all__ = ["contenders"]

_STATEMENTS = {"get": "await cache.get(key)", "set": "await cache.set(key, VALUE, TTL)"}


async def _prepare(case: Case) -> Operation | None:
    FastAPICache.init(InMemoryBackend())
    if case.kind == "call":
        return decorated(case, cached(expire=TTL))
    if case.kind not in _STATEMENTS or case.name == "get-namespace":  # no bound, so nothing to evict
        return None
    cache = InMemoryBackend()
    for key in KEYS:
        await cache.set(key, VALUE.encode(), TTL)
    return Operation(_STATEMENTS[case.kind], {"cache": cache, "VALUE": VALUE.encode(), "TTL": TTL})


def _once(load: Call) -> Call:
    FastAPICache.init(InMemoryBackend())

    @cached(expire=TTL, namespace="stampede")
    async def once(number: int) -> Any:
        return await load(number)

    call: Call = once
    return call


async def _forget(_: Any, __: int) -> None:
    await FastAPICache.clear(namespace="stampede")


async def _store(key: str, value: Any) -> None:
    await InMemoryBackend().set(key, value, TTL)  # all instances share one dict


def contenders() -> list[Contender]:
    """Return the one configuration."""
    how = f"`cache(expire={TTL})` over `InMemoryBackend()`: JSON for the decorator, bytes below; it has no bound"
    return [
        Contender(
            "fastapi-cache2", "fastapi-cache2", how, _prepare, load_once=_once, forget=_forget,
            fill=Fill("set", lambda *_: _store),
        )
    ]  # fmt: skip
