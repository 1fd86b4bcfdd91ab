"""Eight processes with 500 callers each ask for one cold key with a lease: ``python benchmarks/lease.py redis://...``.

Tells how many loads there were, and how long after the loader had returned each caller had his value, in milliseconds.
Bar: one load, and 20 ms for 99 of 100 callers, over loopback.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from acache import Cache, Policy  # noqa: E402

LOAD_SECONDS = 0.5
PATIENCE = 20.0
"""Seconds until every process has begun."""


async def take_part(url: str, namespace: str, start_at: float, callers: int, size: int) -> dict[str, Any]:
    """Be one of the processes."""
    loads, answered = 0, list[float]()

    async def load() -> dict[str, Any]:
        nonlocal loads
        loads += 1
        await asyncio.sleep(LOAD_SECONDS)
        return {"at": time.time(), "body": "x" * size}

    async def warm() -> dict[str, Any]:
        return {"at": 0.0, "body": ""}

    async with Cache.from_url(url, namespace=namespace, policy=Policy(lease=True)) as cache:
        await cache.get_or_load(f"warm:{os.getpid()}", warm)  # what is imported and connected first is not measured

        async def ask() -> None:
            value = await cache.get_or_load("key", load)
            answered.append(time.time() - value["at"])

        late = time.time() - start_at
        await asyncio.sleep(-late)
        await asyncio.gather(*[ask() for _ in range(callers)])
    return {"loads": loads, "answered": answered, "late": late > 0}


def measure(url: str, processes: int, callers: int, size: int) -> dict[str, Any]:
    """Start the processes, and sum up what they tell."""
    namespace, start_at = f"bench-{os.urandom(6).hex()}", time.time() + PATIENCE
    command = [sys.executable, __file__, url, "--callers", str(callers), "--size", str(size)]
    command += ["--part", namespace, str(start_at)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(processes)]
    told = [json.loads(process.communicate()[0]) for process in running]
    if any(one["late"] for one in told):
        sys.exit(f"a process took more than {PATIENCE} s to begin: this machine is too busy to measure anything")
    times = sorted(1000 * seconds for one in told for seconds in one["answered"])
    return {
        "loads": sum(one["loads"] for one in told),
        "p50": times[len(times) // 2],
        "p99": times[len(times) * 99 // 100],
        "max": times[-1],
    }


def main() -> None:
    """Measure some rounds, for a value that travels in the message and for one that is read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--callers", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, help="bytes of the value; both 10 and 200,000 if not given")
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        namespace, start_at = options.part
        taking_part = take_part(options.url, namespace, float(start_at), options.callers, options.size)
        print(json.dumps(asyncio.run(taking_part)))
        return
    for size in (10, 200_000) if options.size is None else (options.size,):
        for _ in range(options.rounds):
            found = measure(options.url, options.processes, options.callers, size)
            numbers = ", ".join(f"{name} {found[name]:.1f} ms" for name in ("p50", "p99", "max"))
            print(f"{size:>7} bytes: {found['loads']} load(s); {numbers}", flush=True)


if __name__ == "__main__":
    main()
