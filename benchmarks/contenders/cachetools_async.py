"""cachetools-async: a decorator over the caches of cachetools."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from cachetools import LRUCache, TTLCache
from cachetools_async import cached, cachedmethod
from cases import CAPACITY, TTL, Case

from contenders.base import Call, Contender, Fill, Operation, decorated

__all__ = ["contenders"]


def _lru(capacity: int) -> Any:
    return LRUCache(capacity)


def _ttl(capacity: int) -> Any:
    return TTLCache(capacity, TTL)


async def _prepare(make: Callable[[int], Any], case: Case) -> Operation | None:
    if case.kind != "call":
        return None
    store = make(CAPACITY)
    return decorated(case, cached(make(CAPACITY)), cachedmethod(lambda _: store))


def _once(make: Callable[[int], Any], load: Call) -> Call:
    @cached(make(CAPACITY))
    async def once(number: int) -> Any:
        return await load(number)

    return once


async def _forget(once: Any, number: int) -> None:
    once.cache.pop(once.cache_key(number), None)


def _fill(make: Callable[[int], Any], capacity: int, values: list[Any]) -> Callable[..., Awaitable[Any]]:
    @cached(make(capacity))
    async def value_of(number: int) -> Any:
        return values[number]

    return value_of


def contenders() -> list[Contender]:
    """Return it over both stores."""
    return [
        Contender(
            f"cachetools-async {name}", "cachetools-async", f"`cached({store})`, `cachedmethod` for methods",
            partial(_prepare, make), load_once=partial(_once, make), forget=_forget,
            fill=Fill("call", partial(_fill, make)),
        )
        for name, store, make in (
            ("LRU", f"LRUCache({CAPACITY})", _lru), ("TTL", f"TTLCache({CAPACITY}, {TTL})", _ttl)
        )
    ]  # fmt: skip
