"""A million distinct loads, and what is left of them: the growth of a process of its own."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT)]

from acache import Cache  # noqa: E402

__all__ = ["flights", "growth_after"]

_AT_A_TIME = 1_000
_BOUND = 1_000
_WARM_UP = 50_000


def growth_after(count: int) -> dict[str, Any]:
    """Load so many keys in a new process: KiB that it is larger for than before."""
    done = subprocess.run(
        [sys.executable, __file__, str(count), str(min(count, _WARM_UP))],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    row: dict[str, Any] = {"contender": "acache", "kind": "ours", "loads": count}
    if done.returncode:
        return {**row, "failed": (done.stderr.strip().splitlines() or ["it was killed"])[-1]}
    found = json.loads(done.stdout)
    if found["before"] is None:
        return {**row, "failed": "the memory of a process is read from /proc, as Linux has it"}
    return {**row, "kib": found["after"] - found["before"], "of_kib": found["after"], "us": found["us"]}


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
        loads = cache.stats().loads - warm_up
        return {"loads": loads, "us": round(took / loads * 1e6, 1), "before": before, "after": _resident()}


def _resident() -> int | None:
    gc.collect()
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4
    except OSError:
        return None  # not Linux


if __name__ == "__main__":
    print(json.dumps(asyncio.run(flights(int(sys.argv[1]), int(sys.argv[2])))))
