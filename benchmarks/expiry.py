"""Many entries end together: how long does a turn of the event loop take while they are dropped, and who drops them?"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from cases import VALUE

from acache import Cache

__all__ = ["mass_expiry"]

_ROUND = 31.0
"""Seconds after which the timer of a near tier that nobody uses has gone off."""
_MOST_ROUNDS = 4


class _Loop(asyncio.SelectorEventLoop):
    """An event loop whose timers can be made to go off early."""

    ahead = 0.0

    def time(self) -> float:
        return super().time() + self.ahead


@dataclass
class _Expiring:
    store: Callable[[str], Awaitable[object]]
    held: Callable[[], int]
    close: Callable[[], Awaitable[object]]


def _acache(size: int, ttl: float) -> _Expiring:
    cache = Cache(memory=2 * size)
    return _Expiring(lambda key: cache.set(key, VALUE, ttl=ttl), lambda: cache.stats().near_entries, cache.aclose)


def _cashews(size: int, ttl: float) -> _Expiring:
    import cashews

    cache: Any = cashews.Cache()
    backend: Any = cache.setup("mem://", size=2 * size, check_interval=1)
    return _Expiring(lambda key: cache.set(key, VALUE, expire=ttl), lambda: len(backend.store), cache.close)


_CONTENDERS = (
    ("acache, used by nobody", "ours", _acache, False),
    ("acache, while others are stored", "ours", _acache, True),
    ("cashews, used by nobody", "peer", _cashews, False),
)


def mass_expiry(size: int, ttl: float) -> list[dict[str, Any]]:
    """Let so many entries end in each cache: milliseconds of the longest turn of the loop until all have left.

    *ttl* is longer than it takes to store all of them, and than it takes to drop them.
    """
    rows: list[dict[str, Any]] = []
    for name, kind, make, busy in _CONTENDERS:
        row: dict[str, Any] = {"contender": name, "kind": kind, "entries": size}
        try:
            with asyncio.Runner(loop_factory=_Loop) as runner:
                row |= runner.run(_expire(make(size, ttl), size, ttl, busy=busy))
        except Exception as error:  # noqa: BLE001 - one that fails leaves the others
            row["failed"] = f"failed: {type(error).__name__}: {error}"
        rows.append(row)
    return rows


async def _expire(cache: _Expiring, size: int, ttl: float, *, busy: bool) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, _Loop)
    gc.collect()
    gc.freeze()  # the collector stays on, but looks at nothing from before
    try:
        for number in range(size):
            await cache.store(f"user:{number}")
        if cache.held() < size:
            msg = f"{cache.held():,} of {size:,} entries are held: to store them took too long"
            raise RuntimeError(msg)
        longest, others, rounds, before = 0.0, 0, 0, perf_counter()
        ended = look_at = before + ttl
        while cache.held() > others:
            if busy and before > ended:
                others += 1
                await cache.store(f"other:{others}")
            if before > look_at:
                if rounds == _MOST_ROUNDS:
                    msg = f"{cache.held() - others:,} entries are left after {rounds} rounds"
                    raise RuntimeError(msg)
                rounds += 1
                loop.ahead += 0 if busy else _ROUND
                look_at += ttl
            await asyncio.sleep(0)
            now = perf_counter()
            longest, before = max(longest, now - before), now
    finally:
        gc.unfreeze()
        await cache.close()
    return {"ms": round(longest * 1e3, 2), "rounds": rounds}
