"""References: what Python itself offers, and what one would write by hand."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from functools import lru_cache
from time import monotonic
from typing import Any

from cases import CAPACITY, KEYS, TTL, VALUE, Case, bare

from contenders.base import Call, Contender, Fill, Operation, decorated

__all__ = ["BASE", "SHARED_FUTURE", "contenders"]


async def _base(case: Case) -> Operation:
    if case.kind == "call":
        return decorated(case, lambda function: function)
    shape = {"get": "key", "load": "key, VALUE", "set": "key, VALUE", "evict": "key, VALUE"}[case.kind]
    return Operation(f"await bare({shape})", {"bare": bare, "VALUE": VALUE})


class DictCache:
    """A dict of values and deadlines: no bound."""

    def __init__(self) -> None:
        self._data: dict[str, tuple[Any, float]] = {}

    async def get(self, key: str) -> Any:
        try:
            value, until = self._data[key]
        except KeyError:
            return None
        return value if until > monotonic() else None

    async def set(self, key: str, value: Any) -> None:
        self._data[key] = (value, monotonic() + TTL)


class LruCache:
    """An OrderedDict of values and deadlines, least recently used out first."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._data: OrderedDict[str, tuple[Any, float]] = OrderedDict()
        self._capacity = capacity

    async def get(self, key: str) -> Any:
        try:
            value, until = self._data[key]
        except KeyError:
            return None
        if until <= monotonic():
            return None
        self._data.move_to_end(key)
        return value

    async def set(self, key: str, value: Any) -> None:
        self._data[key] = (value, monotonic() + TTL)
        self._data.move_to_end(key)
        if len(self._data) > self._capacity:
            self._data.popitem(last=False)


async def _dict(case: Case) -> Operation | None:
    if case.kind == "call":
        return decorated(case, _by_hand, _method_by_hand)
    return None if case.kind == "evict" else await _keyed(case, DictCache())


async def _lru(case: Case) -> Operation | None:
    return None if case.kind == "call" else await _keyed(case, LruCache(case.capacity))


async def _keyed(case: Case, cache: DictCache | LruCache) -> Operation | None:
    statements = {"get": "await cache.get(key)", "set": "await cache.set(key, VALUE)"}
    statements["evict"] = statements["set"]
    if case.kind not in statements or case.name == "get-namespace":
        return None
    for key in KEYS:
        await cache.set(key, VALUE)
    return Operation(statements[case.kind], {"cache": cache, "VALUE": VALUE})


def _by_hand(function: Any) -> Any:
    data: dict[Any, tuple[Any, float]] = {}

    async def f(a: Any, b: Any = 1) -> Any:
        try:
            value, until = data[a, b]
            if until > monotonic():
                return value
        except KeyError:
            pass
        value = await function(a, b)
        data[a, b] = (value, monotonic() + TTL)
        return value

    return f


def _method_by_hand(function: Any) -> Any:
    data: dict[Any, tuple[Any, float]] = {}

    async def method(self: Any, a: Any, b: Any = 1) -> Any:
        try:
            value, until = data[a, b]
            if until > monotonic():
                return value
        except KeyError:
            pass
        value = await function(self, a, b)
        data[a, b] = (value, monotonic() + TTL)
        return value

    return method


async def _functools(case: Case) -> Operation | None:
    if case.kind != "call":
        return None

    @lru_cache(CAPACITY)
    def f(a: Any, b: Any = 1) -> Any:  # noqa: ARG001
        return a

    class Owner:
        @lru_cache(CAPACITY)  # noqa: B019 - one owner
        def method(self, a: Any, b: Any = 1) -> Any:  # noqa: ARG002
            return a

    return Operation(case.statement.removeprefix("await "), {"f": f, "owner": Owner()})


def _shared_future(load: Call) -> Call:
    """Share one bare future: the least that single-flight can cost; not safe against cancelled callers."""
    futures: dict[int, asyncio.Future[Any]] = {}
    tasks: set[asyncio.Task[None]] = set()

    async def once(number: int) -> Any:
        if (future := futures.get(number)) is None:
            loop = asyncio.get_running_loop()
            future = futures[number] = loop.create_future()
            land = future.set_result

            async def fly() -> None:
                land(await load(number))

            tasks.add(loop.create_task(fly()))
        return await future

    return once


BASE = Contender("bare coroutine", None, "an undecorated `async def` with the same call shape", _base, kind="reference")


def _future_each(load: Call) -> Call:
    """Give each waiter a bare future: one caller's cancellation is nobody else's."""
    waiting: dict[int, list[asyncio.Future[Any]]] = {}
    tasks: set[asyncio.Task[None]] = set()

    async def once(number: int) -> Any:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        if (waiters := waiting.get(number)) is None:
            waiters = waiting[number] = []

            async def land() -> None:
                value = await load(number)
                for waiter in waiters:
                    waiter.set_result(value)

            tasks.add(loop.create_task(land()))
        waiters.append(future)
        return await future

    return once


SHARED_FUTURE = Contender(
    "one shared future", None, "a detached load, one future that all await", load_once=_shared_future, kind="reference"
)


def contenders() -> list[Contender]:
    """Return the references."""
    return [
        BASE,
        Contender(
            "functools.lru_cache (sync)", None, f"`lru_cache({CAPACITY})` on a plain function, called without await: no"
            " lifetime, no coroutines", _functools, kind="reference",
        ),
        Contender(
            "dict in a coroutine", None, "written by hand: a dict of (value, deadline), no bound", _dict,
            fill=Fill("set", lambda _, __: DictCache().set), kind="reference",
        ),
        Contender(
            "OrderedDict LRU in a coroutine", None, "written by hand: an OrderedDict of (value, deadline), bounded",
            _lru,
            fill=Fill("set", lambda capacity, _: LruCache(capacity).set), kind="reference",
        ),
        SHARED_FUTURE,
        Contender(
            "one future each", None, "a detached load, one bare future for each caller", load_once=_future_each,
            kind="reference",
        ),
    ]  # fmt: skip
