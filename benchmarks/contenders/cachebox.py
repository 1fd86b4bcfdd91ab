"""cachebox: caches in Rust that are called without await, and a decorator for coroutines."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import cachebox
from cases import CAPACITY, KEYS, TTL, VALUE, Case

from contenders.base import Call, Contender, Fill, Operation, decorated

__all__ = ["contenders"]

_STATEMENTS = {"get": "cache.get(key)", "set": "cache.insert(key, VALUE)", "evict": "cache.insert(key, VALUE)"}


async def _prepare(case: Case) -> Operation | None:
    if case.kind == "call":
        cache: Any = cachebox.TTLCache(CAPACITY, TTL)
        return decorated(case, cachebox.cached(cachebox.TTLCache(CAPACITY, TTL)), cachebox.cached(lambda _: cache))
    if case.kind not in _STATEMENTS or case.name == "get-namespace":
        return None
    cache = cachebox.TTLCache(case.capacity, TTL)
    for key in KEYS:
        cache.insert(key, VALUE)
    return Operation(_STATEMENTS[case.kind], {"cache": cache, "VALUE": VALUE})


def _once(load: Call) -> Call:
    @cachebox.cached(cachebox.TTLCache(CAPACITY, TTL))
    async def once(number: int) -> Any:
        return await load(number)

    return once


def _fill(capacity: int, _: list[Any]) -> Callable[..., Awaitable[Any]]:
    cache: Any = cachebox.TTLCache(capacity, TTL)

    async def store(key: str, value: Any) -> None:
        cache.insert(key, value)

    return store


def contenders() -> list[Contender]:
    """Return the one configuration."""
    how = f"`TTLCache({CAPACITY}, {TTL})`: get and set are called without await; `cached(...)` for coroutines"
    return [Contender("cachebox", "cachebox", how, _prepare, load_once=_once, fill=Fill("set", _fill))]
