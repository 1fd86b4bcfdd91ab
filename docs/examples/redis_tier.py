"""Memory in front of Redis: what one process loaded, the next one finds.

ACACHE_REDIS_URL=redis://localhost:6379/0 python redis_tier.py
"""

import asyncio
import os
import sys
from dataclasses import dataclass
from datetime import UTC, datetime

from acache import Cache, Memory, Policy


@dataclass(frozen=True)
class Rate:
    """What one euro was worth, and when."""

    currency: str
    value: float
    seen_at: datetime


async def load_rate() -> Rate:
    print("  loading")
    await asyncio.sleep(0.2)  # stands for a service on the network
    return Rate("SEK", 11.42, datetime.now(UTC))


def open_cache(url: str) -> Cache:
    return Cache.from_url(
        url,
        namespace="acache-example",
        # A near copy is trusted for this long, so a change by another process is seen after a second at the latest.
        memory=Memory(max_entries=1_000, ttl=1),
        # A Redis that does not answer makes a read a miss, after this long at most.
        policy=Policy(ttl=60, backend_timeout=0.5),
    )


async def process(name: str, url: str) -> None:
    """Do what a process of its own would do: it begins with an empty near tier."""
    print(name)
    async with open_cache(url) as cache:
        for _ in range(3):
            rate = await cache.get_or_load("rate:SEK", load_rate, type=Rate)
        stats = cache.stats()
        print(f"  {rate}")
        print(f"  {stats.loads} loads, {stats.hits_far} hits in Redis, {stats.hits_near} in memory")
        if stats.backend_errors:
            print(f"  and {stats.backend_errors} errors of Redis: the answers are right all the same, only slower")


async def main(url: str) -> None:
    await process("the first process", url)
    await process("the second process", url)
    async with open_cache(url) as cache:
        await cache.delete("rate:SEK")  # raises if Redis did not confirm: a delete must not be lost silently


if __name__ == "__main__":
    if not (redis_url := os.environ.get("ACACHE_REDIS_URL")):
        sys.exit("Set ACACHE_REDIS_URL, for example to redis://localhost:6379/0, and run this again.")
    asyncio.run(main(redis_url))
