"""Eight processes with 500 callers each ask for one cold key with a lease.

Tells how many loads there were, and how long after the loader had returned each caller had his value.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT)]

from acache import Cache, Policy  # noqa: E402

__all__ = ["CALLERS", "PROCESSES", "SIZES", "leases"]

PROCESSES, CALLERS = 8, 500
SIZES = (10, 200_000)
"""Bytes of the value: it travels in the message, or it is read."""
LOAD_SECONDS = 0.5
_SOON = 0.3
"""Seconds from the last process's being ready until all of them ask."""
_AFTERWARDS = 0.3
"""Seconds in which no process closes its cache and ends, which would take the processor from those still at it."""


def leases(url: str, rounds: int, processes: int, callers: int) -> list[dict[str, Any]]:
    """Measure rounds with a small value and with a large one; milliseconds, medians over the rounds."""
    rows: list[dict[str, Any]] = []
    for size in SIZES:
        found = [_round(url, processes, callers, size) for _ in range(rounds)]
        row: dict[str, Any] = {"bytes": size, "processes": processes, "callers": callers}
        row |= {name: round(median(one[name] for one in found), 1) for name in ("p50", "p99", "max")}
        row["worst p99"] = round(max(one["p99"] for one in found), 1)
        rows.append({**row, "loads": max(one["loads"] for one in found)})
    return rows


def _round(url: str, processes: int, callers: int, size: int) -> dict[str, Any]:
    """Start the processes, let them ask all at once, and sum up what they tell."""
    command = [sys.executable, __file__, url, f"bench-{os.urandom(6).hex()}", str(callers), str(size)]
    running = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    for process in running:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            msg = "one of the processes has failed"
            raise RuntimeError(msg)
    start_at = time.monotonic() + _SOON
    for process in running:
        assert process.stdin is not None
        process.stdin.write(f"{start_at}\n")
        process.stdin.flush()
    told = [json.loads(process.communicate()[0]) for process in running]
    times = sorted(1000 * seconds for one in told for seconds in one["answered"])
    return {
        "loads": sum(one["loads"] for one in told),
        "p50": times[len(times) // 2],
        "p99": times[len(times) * 99 // 100],
        "max": times[-1],
    }


async def _take_part(url: str, namespace: str, callers: int, size: int) -> dict[str, Any]:
    """Be one of the processes."""
    loads, answered = 0, list[float]()

    async def load() -> dict[str, Any]:
        nonlocal loads
        loads += 1
        await asyncio.sleep(LOAD_SECONDS)
        return {"at": time.monotonic(), "body": "x" * size}  # one clock for all processes of a machine

    async def warm() -> dict[str, Any]:
        return {"at": 0.0, "body": ""}

    async with Cache.from_url(url, namespace=namespace, policy=Policy(lease=True)) as cache:
        await cache.get_or_load(f"warm:{os.getpid()}", warm)  # what is imported and connected first is not measured

        async def ask() -> None:
            value = await cache.get_or_load("key", load)
            answered.append(time.monotonic() - value["at"])

        print("ready", flush=True)
        start_at = float(await asyncio.to_thread(sys.stdin.readline))
        await asyncio.sleep(start_at - time.monotonic())
        await asyncio.gather(*[ask() for _ in range(callers)])
        await asyncio.sleep(_AFTERWARDS)
    return {"loads": loads, "answered": answered}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_take_part(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))))
