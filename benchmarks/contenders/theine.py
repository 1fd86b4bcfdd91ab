"""theine: a cache that is called without await, and a decorator for coroutines."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from cases import CAPACITY, KEYS, TTL, VALUE, Case
from theine import Cache, Memoize

from contenders.base import Call, Contender, Fill, Operation, decorated

__all__ = ["contenders"]

_LIFE = timedelta(seconds=TTL)
_STATEMENTS = {"get": "cache.get(key)", "set": "cache.set(key, VALUE, LIFE)", "evict": "cache.set(key, VALUE, LIFE)"}


async def _prepare(case: Case) -> Operation | None:
    if case.kind == "call":
        return decorated(case, Memoize(CAPACITY, _LIFE, nolock=True))
    if case.kind not in _STATEMENTS or case.name == "get-namespace":
        return None
    cache: Any = Cache(case.capacity, nolock=True)
    for key in KEYS:
        cache.set(key, VALUE, _LIFE)

    async def close() -> None:
        cache.close()

    return Operation(_STATEMENTS[case.kind], {"cache": cache, "VALUE": VALUE, "LIFE": _LIFE}, close)


def _once(load: Call) -> Call:
    @Memoize(CAPACITY, _LIFE, nolock=True)
    async def once(number: int) -> Any:
        return await load(number)

    call: Call = once
    return call


def _fill(capacity: int, _: list[Any]) -> Callable[..., Awaitable[Any]]:
    cache: Any = Cache(capacity, nolock=True)

    async def store(key: str, value: Any) -> None:
        cache.set(key, value, _LIFE)

    return store


def contenders() -> list[Contender]:
    """Return the one configuration."""
    how = (
        f"tuned: `Cache({CAPACITY}, nolock=True)`: get and set are called without await; `Memoize(...)` for coroutines"
    )
    return [Contender("theine", "theine", how, _prepare, load_once=_once, fill=Fill("set", _fill))]
