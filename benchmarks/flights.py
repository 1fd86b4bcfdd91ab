"""A million distinct loads, and what is left of them: ``python benchmarks/flights.py [loads]``."""

from __future__ import annotations

import asyncio
import gc
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT)]

from acache import Cache  # noqa: E402

__all__ = ["flights"]

_AT_A_TIME = 1_000
_BOUND = 1_000


async def flights(count: int, warm_up: int) -> dict[str, Any]:
    """Load so many keys, each once, after some others; return the memory of the process before and after, in KiB."""
    async with Cache(memory=_BOUND) as cache:

        async def load() -> int:
            await asyncio.sleep(0)
            return 1

        async def fly(start: int, stop: int) -> None:
            for first in range(start, stop, _AT_A_TIME):
                await asyncio.gather(
                    *[cache.get_or_load(f"key {number}", load) for number in range(first, first + _AT_A_TIME)]
                )

        await fly(0, warm_up)
        before, started = _resident(), perf_counter()
        await fly(warm_up, warm_up + count)
        took = perf_counter() - started
        return {"loads": cache.stats().loads - warm_up, "seconds": took, "before": before, "after": _resident()}


def _resident() -> int | None:
    gc.collect()
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4
    except OSError:
        return None  # not Linux


def main() -> None:
    """Measure and print."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    found = asyncio.run(flights(count, 50_000))
    print(
        f"{found['loads']:,} loads in {found['seconds']:.0f} s; resident memory: {found['before']:,} KiB before, ",
        end="",
    )
    print(f"{found['after']:,} KiB after")


if __name__ == "__main__":
    main()
