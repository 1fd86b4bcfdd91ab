"""async-lru: a decorator only."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from async_lru import alru_cache
from cases import CAPACITY, TTL, Case

from contenders.base import Call, Contender, Fill, Operation, decorated

__all__ = ["contenders"]


async def _prepare(case: Case) -> Operation | None:
    return decorated(case, alru_cache(maxsize=CAPACITY, ttl=TTL)) if case.kind == "call" else None


def _once(load: Call) -> Call:
    @alru_cache(maxsize=CAPACITY, ttl=TTL)
    async def once(number: int) -> Any:
        return await load(number)

    return once


async def _forget(once: Any, number: int) -> None:
    once.cache_invalidate(number)


def _fill(capacity: int, values: list[Any]) -> Callable[..., Awaitable[Any]]:
    @alru_cache(maxsize=capacity, ttl=TTL)
    async def value_of(number: int) -> Any:
        return values[number]

    return value_of


def contenders() -> list[Contender]:
    """Return the one configuration."""
    how = f"`alru_cache(maxsize={CAPACITY}, ttl={TTL})` (defaults: 128, none); in methods `self` is part of the key"
    return [
        Contender("async-lru", "async-lru", how, _prepare, load_once=_once, forget=_forget, fill=Fill("call", _fill))
    ]
