"""aiocache, with its default timeout around each operation and without."""

from __future__ import annotations

from functools import partial
from typing import Any

import aiocache
from cases import KEYS, TTL, VALUE, Case

from contenders.base import Call, Contender, Fill, Operation, decorated

__all__ = ["contenders"]

_STATEMENTS = {"get": "await cache.get(key)", "set": "await cache.set(key, VALUE)"}


async def _prepare(options: dict[str, Any], case: Case) -> Operation | None:
    if case.kind == "call":
        return decorated(case, aiocache.cached(ttl=TTL, **options), aiocache.cached(ttl=TTL, noself=True, **options))
    if case.kind not in _STATEMENTS:  # no bound, so nothing to evict
        return None
    namespace = {"namespace": "bench:"} if case.name == "get-namespace" else {}
    cache = aiocache.SimpleMemoryCache(ttl=TTL, **namespace, **options)
    for key in KEYS:
        await cache.set(key, VALUE)
    return Operation(_STATEMENTS[case.kind], {"cache": cache, "VALUE": VALUE}, cache.clear)


def _key(_: Any, number: int) -> str:
    return f"once:{number}"


def _once(decorator: Any, options: dict[str, Any], load: Call) -> Call:
    async def once(number: int) -> Any:
        return await load(number)

    call: Call = decorator(ttl=TTL, **options)(once)
    return call


def contenders() -> list[Contender]:
    """Return both configurations, and the decorator that is meant against stampedes."""
    fast: dict[str, Any] = {"timeout": None}
    return [
        Contender(
            "aiocache, no timeout", "aiocache", f"tuned: `SimpleMemoryCache(ttl={TTL}, timeout=None)`,"
            " `cached(..., timeout=None)`; methods with `noself=True`; it has no bound", partial(_prepare, fast),
            load_once=partial(_once, aiocache.cached, fast),
            fill=Fill("set", lambda _, __: aiocache.SimpleMemoryCache(ttl=TTL, **fast).set),
        ),
        Contender(
            "aiocache", "aiocache", "the same with the default timeout of 5 s", partial(_prepare, {}),
            load_once=partial(_once, aiocache.cached, {}),
        ),
        Contender(
            "aiocache cached_stampede", "aiocache", f"`cached_stampede(ttl={TTL}, lease=2, timeout=None)`",
            load_once=partial(_once, aiocache.cached_stampede, {"lease": 2, "key_builder": _key, **fast}),
            forget=lambda once, number: once.cache.delete(_key(once, number)),
        ),
    ]  # fmt: skip
