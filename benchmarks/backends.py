"""What the backends cost beside the bare clients: processor and wall time, one call at a time and a hundred at once."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from statistics import median, quantiles
from time import perf_counter, process_time
from typing import Any

from engines import Engine, Side, engines

__all__ = ["compare_backends"]

TASKS = (1, 100)
_PACKAGES = ("aiomcache", "aioboto3", "aiobotocore", "hiredis", "pymongo", "redis")


async def compare_backends(rounds: int, sample: float) -> dict[str, Any]:
    """Measure every engine that can be had here; the others are in ``missing``, with the reason."""
    found, missing = engines()
    cases: list[dict[str, Any]] = []
    for engine in found:
        variable = f"ACACHE_{(engine.service or '').upper()}_URL"
        url = os.environ.get(variable, "")
        if engine.service is not None and not url:
            missing[engine.name] = f"no server: {variable} is not set; `make bench` starts what it can get"
            continue
        try:
            async with engine.open(url) as sides:
                cases += [
                    await _compare(engine, sides, operation, tasks, rounds, sample)
                    for operation in ("get", "set")
                    for tasks in TASKS
                ]
        except Exception as error:  # noqa: BLE001 - a server that is gone leaves the other engines
            missing[engine.name] = f"failed: {type(error).__name__}: {error}"
    packages = {name: known for name in _PACKAGES if (known := _version(name)) is not None}
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return {"date": date, "rounds": rounds, "packages": packages, "cases": cases, "missing": missing}


async def _compare(
    engine: Engine, sides: list[Side], operation: str, tasks: int, rounds: int, sample: float
) -> dict[str, Any]:
    """Let the sides take turns, each round in another order; ratios are taken within a round."""
    calls = [getattr(side, operation) for side in sides]
    counts = [await _calibrate(call, tasks, sample) for call in calls]
    samples: list[list[tuple[float, float]]] = [[] for _ in sides]
    gc.collect()
    gc.freeze()
    try:
        for number in range(rounds):
            order = list(range(len(sides)))
            start = number % len(sides)
            for index in order[start:] + order[:start]:
                samples[index].append(await _run(calls[index], tasks, counts[index]))
    finally:
        gc.unfreeze()
    rows = [_row(side, mine, samples[0]) for side, mine in zip(sides, samples, strict=True)]
    how = "one at a time" if tasks == 1 else f"{tasks} tasks"
    return {
        "title": f"{engine.name}: {operation} of 100 B, {how}",
        "bar": engine.bars.get((operation, tasks)),
        "judged_by": engine.judged_by,
        "rows": rows,
    }


async def _calibrate(call: Callable[[], Awaitable[object]], tasks: int, seconds: float) -> int:
    """Warm up, then find out how many calls of each task fit into a sample."""
    await _run(call, tasks, 5)
    wall, _ = await _run(call, tasks, 5)
    return max(2, int(seconds / (wall * 1e-6 * tasks)))


async def _run(call: Callable[[], Awaitable[object]], tasks: int, count: int) -> tuple[float, float]:
    """Return microseconds of wall time and of this process's processor time for each call."""

    async def work() -> None:
        for _ in range(count):
            await call()

    wall, cpu = perf_counter(), process_time()
    if tasks == 1:
        await work()
    else:
        await asyncio.gather(*[work() for _ in range(tasks)])
    wall, cpu = perf_counter() - wall, process_time() - cpu
    return wall / (count * tasks) * 1e6, cpu / (count * tasks) * 1e6


def _row(side: Side, samples: list[tuple[float, float]], base: list[tuple[float, float]]) -> dict[str, Any]:
    row: dict[str, Any] = {"contender": side.name, "kind": side.kind, "how": side.how}
    for index, unit in enumerate(("wall", "cpu")):
        ratios = [mine[index] / other[index] for mine, other in zip(samples, base, strict=True)]
        low, _, high = quantiles(ratios, n=4)
        row[unit] = {
            "us": round(median(sample[index] for sample in samples), 1),
            "ratio": round(median(ratios), 3),
            "ratio_quartiles": [round(low, 3), round(high, 3)],
        }
    return row


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
