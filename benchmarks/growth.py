"""Does a get or a set cost more when there is more in the cache? Each contender fills a process of its own."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import subprocess
import sys
from itertools import islice
from statistics import median
from time import perf_counter
from typing import Any

from cases import Case
from contenders import Contender, contenders
from measure import compile_sample

__all__ = ["SIZES", "grows", "growth_of"]

SIZES = (10_000, 100_000, 1_000_000, 5_000_000)
"""Entries in the cache when the calls are timed."""
_SAMPLE, _ROUNDS = 20_000, 5
_GET = Case("growth-get", "", "get", "many")
_SET = Case("growth-set", "", "set", "many")


def grows(contender: Contender) -> bool:
    """Tell whether a contender stores under given keys."""
    return contender.fill is not None and contender.fill.how == "set"


def growth_of(contender: Contender, sizes: tuple[int, ...], budget: float) -> dict[str, Any]:
    """Measure one contender in a new process; what does not fit into *budget* seconds is left out, and said so."""
    done = subprocess.run(
        [sys.executable, __file__, contender.name, str(budget), *map(str, sizes)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    row: dict[str, Any] = {"contender": contender.name, "kind": contender.kind}
    if done.returncode:
        return {**row, "points": [], "failed": (done.stderr.strip().splitlines() or ["it was killed"])[-1]}
    return {**row, **json.loads(done.stdout)}


async def _measure(contender: Contender, sizes: tuple[int, ...], budget: float) -> dict[str, Any]:
    assert contender.prepare is not None
    capacity = max(sizes)
    setting = await contender.prepare(Case(**{**vars(_SET), "capacity": capacity}))
    getting = await contender.prepare(Case(**{**vars(_GET), "capacity": 1}))
    if setting is None or getting is None:
        msg = f"{contender.name} has no get or no set"
        raise RuntimeError(msg)
    getting.names = setting.names  # both work on the one cache that is filled here
    store, read = compile_sample(setting), compile_sample(getting)
    filling, filled, points = 0.0, 0, []
    rng = random.Random(4)
    for size in sizes:
        if filled and filling / filled * size > budget:
            return {"points": points, "failed": f"{size:,} entries: to fill it would take more than {budget:g} s"}
        start = perf_counter()
        await store(f"user:{number}" for number in range(filled, size))
        filling += perf_counter() - start
        filled = size
        gc.collect()
        times: dict[str, list[float]] = {"get": [], "set": []}
        for _ in range(_ROUNDS):
            for name, sample in (("get", read), ("set", store)):
                keys = [f"user:{rng.randrange(size)}" for _ in range(_SAMPLE)]
                times[name].append(await sample(islice(keys, _SAMPLE)) / _SAMPLE * 1e9)
        points.append({"entries": size, **{f"{name}_ns": round(median(found)) for name, found in times.items()}})
    return {"points": points}


def _main() -> None:
    name, budget, *sizes = sys.argv[1:]
    found, _ = contenders()
    contender = next(contender for contender in found if contender.name == name)
    print(json.dumps(asyncio.run(_measure(contender, tuple(map(int, sizes)), float(budget)))), flush=True)
    os._exit(0)  # freeing millions of entries one by one takes longer than measuring them


if __name__ == "__main__":
    _main()
