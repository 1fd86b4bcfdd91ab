"""10,000 callers ask for one missing value at the same time: how often is it loaded, and how long does it take."""

from __future__ import annotations

import asyncio
import gc
from statistics import median
from time import perf_counter
from typing import Any

from contenders import SHARED_FUTURE, Contender
from contenders.base import Call

__all__ = ["CALLERS", "LOAD_SECONDS", "stampedes"]

CALLERS = 10_000
LOAD_SECONDS = 0.05


async def stampedes(contenders: list[Contender], rounds: int, callers: int = CALLERS) -> list[dict[str, Any]]:
    """Measure every contender that can load, interleaved; a fresh key in each round."""
    taking_part = [contender for contender in contenders if contender.load_once is not None]
    loads: dict[str, list[int]] = {contender.name: [] for contender in taking_part}
    seconds: dict[str, list[float]] = {contender.name: [] for contender in taking_part}
    count = 0

    async def load(number: int) -> int:
        nonlocal count
        count += 1
        await asyncio.sleep(LOAD_SECONDS)
        return number

    async def caller(call: Call, number: int) -> int:
        result: int = await call(number)  # awaited here: gather would wait but once for equal awaitables
        return result

    calls = {contender.name: contender.load_once(load) for contender in taking_part if contender.load_once}
    for call in calls.values():
        await call(-1)  # what is set up at the first call is not measured
    gc.collect()
    gc.freeze()  # the collector stays on, but looks at nothing from before
    try:
        for number in range(rounds):
            for name, call in calls.items():
                gc.collect()
                count = 0
                start = perf_counter()
                results = await asyncio.gather(*[caller(call, number) for _ in range(callers)])
                seconds[name].append(perf_counter() - start)
                loads[name].append(count)
                if set(results) != {number}:
                    message = f"{name} gave a wrong value"
                    raise RuntimeError(message)
    finally:
        gc.unfreeze()
    base = seconds[SHARED_FUTURE.name]
    return [
        {
            "contender": contender.name,
            "kind": contender.kind,
            "loads": max(loads[contender.name]),
            "ms": round(median(seconds[contender.name]) * 1e3, 1),
            "ratio": round(median(a / b for a, b in zip(seconds[contender.name], base, strict=True)), 3),
        }
        for contender in taking_part
    ]
