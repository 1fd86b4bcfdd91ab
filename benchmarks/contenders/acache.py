"""acache, as it comes: lifetime, LRU bound, counters and single-flight on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from cases import CAPACITY, KEYS, TTL, VALUE, Case

from acache import Cache, Policy, cached
from contenders.base import Call, Contender, Fill, Operation, decorated

__all__ = ["contenders"]

_STATEMENTS = {
    "get": "await cache.get(key)",
    "set": "await cache.set(key, VALUE)",
    "evict": "await cache.set(key, VALUE)",
    "load": "await cache.get_or_load(key, load)",
}


async def _load() -> str:
    return VALUE


async def _prepare(case: Case) -> Operation | None:
    if case.kind == "call":
        cache = Cache(memory=CAPACITY, policy=Policy(ttl=TTL))
        return decorated(case, cache.cached(), cache.cached(ignore=("self",)))
    cache = Cache(
        memory=case.capacity, namespace="bench" if case.name == "get-namespace" else "", policy=Policy(ttl=TTL)
    )
    for key in KEYS:
        await cache.set(key, VALUE)
    return Operation(_STATEMENTS[case.kind], {"cache": cache, "VALUE": VALUE, "load": _load}, cache.aclose)


def _get_or_load(load: Call) -> Call:
    cache = Cache(memory=CAPACITY, policy=Policy(ttl=TTL))
    return lambda number: cache.get_or_load(f"key:{number}", lambda: load(number))


def _decorated(load: Call) -> Call:
    @cached(ttl=TTL, max_entries=CAPACITY)
    async def once(number: int) -> Any:
        return await load(number)

    return once


def _fill_set(capacity: int, _: list[Any]) -> Callable[..., Awaitable[Any]]:
    return Cache(memory=capacity, policy=Policy(ttl=TTL)).set


def _fill_call(capacity: int, values: list[Any]) -> Callable[..., Awaitable[Any]]:
    @cached(ttl=TTL, max_entries=capacity)
    async def value_of(number: int) -> Any:
        return values[number]

    return value_of


def contenders() -> list[Contender]:
    """Return acache, and its decorator apart where that is a story of its own."""
    how = f"`Cache(memory={CAPACITY}, policy=Policy(ttl={TTL}))`, otherwise defaults; methods with `ignore=('self',)`"
    return [
        Contender(
            "acache", "acache", how, _prepare, load_once=_get_or_load, fill=Fill("set", _fill_set), kind="ours"
        ),
        Contender(
            "acache, decorated", "acache", f"`@cached(ttl={TTL})`, for what is not a hit", load_once=_decorated,
            forget=lambda once, number: once.invalidate(number), fill=Fill("call", _fill_call), kind="ours",
        ),
    ]  # fmt: skip
