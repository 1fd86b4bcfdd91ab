"""Memory of one entry beyond its payload: the growth of the resident set of a process of its own.

Keys and values exist before the first reading, so what is counted is what the cache adds to them: tables, records,
timers, copies, and what the allocator loses in between.  A full garbage collection is timed when the cache is full; it
looks at what came with the cache, and at nothing from before.
"""

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

from contenders import Contender, contenders

__all__ = ["memory_of"]

_COLLECTIONS = 3


def memory_of(contender: Contender, entries: int) -> dict[str, Any]:
    """Fill one contender's cache in a new process."""
    done = subprocess.run(
        [sys.executable, __file__, contender.name, str(entries)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    row = {"contender": contender.name, "kind": contender.kind, "entries": entries}
    if done.returncode:
        return {**row, "failed": (done.stderr.strip().splitlines() or ["it was killed"])[-1]}
    growth, seconds = json.loads(done.stdout)
    return {**row, "bytes_per_entry": round(growth / entries, 1), "gc_ms": round(seconds * 1e3, 1)}


def _resident() -> int:
    gc.collect()
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    done = subprocess.run(["ps", "-o", "rss=", "-p", str(os.getpid())], capture_output=True, text=True, check=True)
    return int(done.stdout) * 1024


async def _growth(contender: Contender, entries: int) -> tuple[int, float]:
    """Return bytes, and the seconds of the longest garbage collection."""
    assert contender.fill is not None
    keys: list[Any]
    values: list[Any]
    if contender.fill.how == "set":
        keys = [f"user:{number}" for number in range(entries)]
        values = [number + 1_000 for number in range(entries)]
        warm_up = contender.fill.make(10, values)
        await warm_up("warm", 1)
    else:
        keys = [number + 0 for number in range(entries)]
        values = [f"user:{number}" for number in range(entries)]
        warm_up = contender.fill.make(10, values)
        await warm_up(0)
    store = contender.fill.make(entries, values)
    before = _resident()
    gc.freeze()
    if contender.fill.how == "set":
        for key, value in zip(keys, values, strict=True):
            await store(key, value)
    else:
        for key in keys:
            await store(key)
    times: list[float] = []
    for _ in range(_COLLECTIONS):  # the first finds most to do
        start = perf_counter()
        gc.collect()
        times.append(perf_counter() - start)
    return _resident() - before, max(times)


def _main() -> None:
    name, entries = sys.argv[1:]
    found, _ = contenders()
    contender = next(contender for contender in found if contender.name == name)
    print(json.dumps(asyncio.run(_growth(contender, int(entries)))))


if __name__ == "__main__":
    _main()
