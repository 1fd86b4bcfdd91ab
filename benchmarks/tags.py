"""What does it cost to invalidate a tag, when more and more entries carry it?"""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

from cases import TTL, VALUE

from acache import Cache, Policy

__all__ = ["SIZES", "tag_costs"]

SIZES = (1_000, 10_000, 100_000, 1_000_000)
"""Entries that carry the tag."""
_TAG = "all"


@dataclass
class _Tagged:
    store: Callable[[str], Awaitable[object]]
    get: Callable[[str], Awaitable[object]]
    invalidate: Callable[[], Awaitable[object]]
    close: Callable[[], Awaitable[object]]


def _acache(size: int) -> _Tagged:
    cache = Cache(memory=size, policy=Policy(ttl=TTL))
    return _Tagged(
        lambda key: cache.set(key, VALUE, tags=(_TAG,)), cache.get, lambda: cache.invalidate_tags(_TAG), cache.aclose
    )


def _cashews(size: int) -> _Tagged:
    import cashews

    cache: Any = cashews.Cache()
    cache.setup("mem://", size=size + 10, check_interval=0)
    cache.register_tag(_TAG, "user:{number}")
    return _Tagged(
        lambda key: cache.set(key, VALUE, expire=TTL, tags=(_TAG,)),
        cache.get,
        lambda: cache.delete_tags(_TAG),
        cache.close,
    )


_CONTENDERS = (("acache", "ours", _acache), ("cashews", "peer", _cashews))


async def tag_costs(sizes: tuple[int, ...], rounds: int, budget: float) -> list[dict[str, Any]]:
    """Measure those that have tags, at each size: microseconds of one invalidation.

    A size for which, going by the one before it, more than *budget* seconds would be needed is left out, and said so.
    """
    rows: list[dict[str, Any]] = []
    for name, kind, make in _CONTENDERS:
        row: dict[str, Any] = {"contender": name, "kind": kind, "points": []}
        rows.append(row)
        try:
            spent, before = 0.0, 1
            for size in sizes:
                if spent / before * size > budget:
                    row["failed"] = f"{size:,} entries: would take more than {budget:g} s"
                    break
                start = perf_counter()
                taken = [await _invalidation(make, size) for _ in range(rounds)]
                spent, before = perf_counter() - start, size
                row["points"].append({"entries": size, "us": round(median(taken) * 1e6, 1)})
        except Exception as error:  # noqa: BLE001 - one that fails leaves the others
            row["failed"] = f"failed: {type(error).__name__}: {error}"
    return rows


async def _invalidation(make: Callable[[int], _Tagged], size: int) -> float:
    tagged = make(size)
    for number in range(size):
        await tagged.store(f"user:{number}")
    gc.collect()
    start = perf_counter()
    await tagged.invalidate()
    seconds = perf_counter() - start
    for number in (0, size // 2, size - 1):
        if await tagged.get(f"user:{number}") is not None:
            msg = "an entry outlived the invalidation of its tag"
            raise RuntimeError(msg)
    await tagged.close()
    return seconds
