"""Two tiers that agree, over a real Redis: what a near hit costs, and how long an old value can still be had.

The second is measured between two processes.  This one writes; the other asks its near tier again and again, and takes
down the instant from which the old value is not served.  Both read one clock, the machine's monotonic one.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from asyncio.subprocess import PIPE
from pathlib import Path
from statistics import quantiles
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT)]

from cases import CAPACITY, KEY, KEYS, TTL, VALUE, Case  # noqa: E402
from contenders import Contender, Operation  # noqa: E402
from contenders.base import decorated  # noqa: E402
from measure import Effort, time_case  # noqa: E402

from acache import Cache, Policy  # noqa: E402

__all__ = ["TRACKED", "hits", "quantiles_of", "writes"]

TRACKED = "tracking, two tags"
"""What has a bar."""
_TAGS = ("users", "user:42")
_CASES = (
    Case("near-hit", "get, a hit on one key", "get", "one", "await cache.get(key)"),
    Case("near-hit-1000", "get, hits rotating over 1,000 keys", "get", "many", "await cache.get(key)"),
    Case("near-call", "decorated hit, f(1)", "call", "one", "await f(1)"),
)
_WARM_UP = 50
"""Writes that are not counted."""
_LONGEST_PAUSE = 0.002
"""Seconds between two writes, drawn at random, so that they meet the reader's loop anywhere."""


async def hits(url: str, effort: Effort) -> list[dict[str, Any]]:
    """Measure near hits with and without tags, and with and without a far tier that tells of changes."""
    sides = [
        _side("no far tier, no tags", "", ()),
        _side("no far tier, two tags", "", _TAGS),
        _side("tracking, no tags", url, ()),
        _side(TRACKED, url, _TAGS),
    ]
    return [
        {"name": case.name, "title": case.title, "rows": await time_case(case, sides, effort, base=sides[0])}
        for case in _CASES
    ]


def _side(name: str, url: str, tags: tuple[str, ...]) -> Contender:
    async def prepare(case: Case) -> Operation:
        policy, namespace = Policy(ttl=TTL), f"bench-{os.urandom(6).hex()}"
        if url:
            cache = Cache.from_url(url, memory=CAPACITY, namespace=namespace, policy=policy, coherence="tracking")
        else:
            cache = Cache(memory=CAPACITY, namespace=namespace, policy=policy)
        for key in KEYS:
            await cache.set(key, VALUE, tags=tags)
        if case.kind == "call":
            operation = decorated(case, cache.cached(tags=tags))
            await operation.names["f"](1)
        else:
            operation = Operation(case.statement, {"cache": cache})

        async def close() -> None:
            near = cache.peek(KEY) == VALUE and cache.stats().coherence == ("tracking" if url else None)
            await cache.clear()
            await cache.aclose()
            if not near:
                msg = f"{name}: the hits were no near hits, or nobody told of changes"
                raise RuntimeError(msg)

        operation.close = close
        return operation

    return Contender(name, None, "", prepare, kind="ours" if name == TRACKED else "reference")


async def writes(url: str, count: int) -> dict[str, Any]:
    """Write a key so many times; milliseconds until the old value could not be had in another process.

    They are counted from the beginning of the ``set``, and from its return: below zero, the old value was gone before.
    """
    namespace = f"bench-{os.urandom(6).hex()}"
    command = [sys.executable, __file__, url, namespace, str(count + _WARM_UP)]
    reader = await asyncio.create_subprocess_exec(*command, stdout=PIPE, limit=1 << 26)
    assert reader.stdout is not None
    spans: list[tuple[float, float]] = []
    async with Cache.from_url(url, namespace=namespace, coherence="tracking") as cache:
        await cache.set("key", 0)
        for number in range(count + _WARM_UP):
            if int(await reader.stdout.readline() or -1) != number:
                msg = "the reading process has failed"
                raise RuntimeError(msg)
            await asyncio.sleep(random.uniform(0, _LONGEST_PAUSE))
            began = time.monotonic()
            await cache.set("key", number + 1)
            spans.append((began, time.monotonic()))
        gone = json.loads(await reader.stdout.readline())
        await reader.wait()
        await cache.clear()
    measured = list(zip(spans, gone, strict=True))[_WARM_UP:]
    return {
        "writes": len(measured),
        "from the beginning of the set": quantiles_of([instant - began for (began, _), instant in measured]),
        "from the return of the set": quantiles_of([instant - ended for (_, ended), instant in measured]),
        "the set itself": quantiles_of([ended - began for (began, ended), _ in measured]),
    }


def quantiles_of(seconds: list[float]) -> dict[str, float]:
    """Return milliseconds."""
    hundredths = quantiles(seconds, n=100, method="inclusive")
    found = {"p50": hundredths[49], "p99": hundredths[98], "max": max(seconds)}
    return {name: round(1000 * value, 3) for name, value in found.items()}


async def _read(url: str, namespace: str, count: int) -> None:
    """Be the other process."""
    gone: list[float] = []
    async with Cache.from_url(url, namespace=namespace, coherence="tracking") as cache:
        for number in range(count):
            while cache.peek("key") != number:
                await cache.get("key")
            print(number, flush=True)
            while cache.peek("key") == number:  # noqa: ASYNC110 - that is what is measured
                await asyncio.sleep(0)
            gone.append(time.monotonic())
    print(json.dumps(gone), flush=True)


if __name__ == "__main__":
    asyncio.run(_read(sys.argv[1], sys.argv[2], int(sys.argv[3])))
