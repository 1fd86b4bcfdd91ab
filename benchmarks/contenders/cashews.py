"""cashews: the facade, and its memory backend without the facade."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import cashews
from cases import CAPACITY, KEYS, TTL, VALUE, Case
from cashews.backends.memory import Memory

from contenders.base import Call, Contender, Fill, Operation, decorated

__all__ = ["contenders"]

_STATEMENTS = {
    "get": "await cache.get(key)",
    "set": "await cache.set(key, VALUE, expire=TTL)",
    "evict": "await cache.set(key, VALUE, expire=TTL)",
    "load": "await cache.get_or_set(key, load, expire=TTL)",
}


async def _load() -> str:
    return VALUE


def _facade(capacity: int = CAPACITY) -> cashews.Cache:
    # Its sweep over all keys, once a second, would run inside the time of whichever contender lets the loop turn.
    cache = cashews.Cache()
    cache.setup("mem://", size=capacity, check_interval=0)
    return cache


async def _prepare(case: Case, *, bare: bool) -> Operation | None:
    if case.name == "get-namespace" or (bare and case.kind in ("call", "load")):
        return None
    cache: Any = Memory(size=case.capacity, check_interval=0) if bare else _facade(case.capacity)
    await cache.init()
    if case.kind == "call":
        return decorated(case, cache(ttl=TTL), cache(ttl=TTL, key="method:{a}:{b}"))
    for key in KEYS:
        await cache.set(key, VALUE, expire=TTL)
    names = {"cache": cache, "VALUE": VALUE, "TTL": TTL, "load": _load}
    return Operation(_STATEMENTS[case.kind], names, cache.close)


def _once(options: dict[str, Any], load: Call) -> Call:
    cache: Any = _facade()

    async def once(number: int) -> Any:
        return await load(number)

    call: Any = cache(ttl=TTL, key="once:{number}", **options)(once)
    call.cache = cache
    return cast("Call", call)


def contenders() -> list[Contender]:
    """Return facade and backend."""
    setup = f"`cache.setup('mem://', size={CAPACITY}, check_interval=0)`"
    return [
        Contender(
            "cashews, bare backend", "cashews", f"tuned: `Memory(size={CAPACITY}, check_interval=0)`, no facade",
            partial(_prepare, bare=True),
            fill=Fill("set", lambda capacity, _: partial(Memory(size=capacity, check_interval=0).set, expire=TTL)),
        ),
        Contender(
            "cashews", "cashews", f"{setup}, `cache(ttl={TTL})`; its sweep, once a second by default, is off: it would"
            " run in other contenders' time", partial(_prepare, bare=False), load_once=partial(_once, {}),
        ),
        Contender(
            "cashews, lock=True", "cashews", f"the same, `cache(ttl={TTL}, lock=True)`",
            load_once=partial(_once, {"lock": True}),
            forget=lambda once, number: once.cache.delete(f"once:{number}"),
        ),
    ]  # fmt: skip
