"""The far tiers beside other clients and caches: wall time, processor time here, and processor time of the server."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import cycle
from math import nan
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter, process_time
from typing import Any

from engines import Calls, Engine, Side, Workload
from engines.base import MANY
from machine import versions
from measure import Effort

__all__ = ["UNITS", "compare", "server_of"]

UNITS = ("wall", "cpu", "server")
"""Microseconds a call: wall time, processor time of this process, processor time of the server's process."""

Sample = tuple[float, float, float]
Call = Callable[[], Awaitable[object]]
Close = Callable[[], Coroutine[Any, Any, None]]


@dataclass
class _Entrant:
    side: Side
    runner: asyncio.Runner
    calls: Calls
    close: Close
    prefix: str
    samples: list[Sample] = field(default_factory=list)
    failed: str | None = None

    def keys(self, size: int) -> list[str]:
        return [f"{self.prefix}:{size}:{number}" for number in range(MANY if size > 10_000 else 1_000)]

    def value(self, size: int) -> Any:
        return "x" * size if self.side.text else b"x" * size


def compare(
    engine: Engine, url: str, effort: Effort, *, workloads: list[Workload] | None = None, sides: set[str] | None = None
) -> dict[str, Any]:
    """Let the sides of an engine take turns in each workload, all of them or those that are named."""
    missing: dict[str, str] = {}
    meter, why = _server_meter(engine, url)
    if why:
        missing["processor time of the server"] = why
    cases: list[dict[str, Any]] = []
    chosen = [side for side in engine.sides if sides is None or side.name in sides]
    with _opened(engine, chosen, url, missing) as entrants:
        sizes: set[int] = set()
        for workload in engine.workloads if workloads is None else workloads:
            if workload.size not in sizes:
                sizes.add(workload.size)
                for entrant in entrants:
                    _store(entrant, workload.size)
            cases.append(_case(engine, workload, entrants, effort, meter))
    packages, notes = versions(engine.packages), dict(engine.notes)
    return {"engine": engine.name, "packages": packages, "cases": cases, "missing": missing, "notes": notes}


@contextmanager
def _opened(engine: Engine, sides: list[Side], url: str, missing: dict[str, str]) -> Iterator[list[_Entrant]]:
    """Open each side in its own kind of event loop; the loops run in turn, like the sides."""
    runners: dict[str, asyncio.Runner] = {}
    entrants: list[_Entrant] = []
    try:
        for number, side in enumerate(sides):
            try:
                if side.loop not in runners:
                    runners[side.loop] = asyncio.Runner(loop_factory=_loop_factory(side.loop))
                runner = runners[side.loop]
                calls, close = runner.run(_held_open(side.open(url)))
            except ImportError as error:
                missing[side.name] = f"{error.name} is not installed" if error.name else str(error)
            except Exception as error:  # noqa: BLE001 - a side that cannot be had leaves the others
                missing[side.name] = f"failed: {type(error).__name__}: {error}"
            else:
                entrants.append(_Entrant(side, runner, calls, close, f"acache-bench-{engine.section}-{number}"))
        yield entrants
    finally:
        for entrant in entrants:
            try:
                entrant.runner.run(entrant.close())
            except Exception as error:  # noqa: BLE001
                missing.setdefault(f"{entrant.side.name}, closing", f"failed: {type(error).__name__}: {error}")
        for runner in runners.values():
            runner.close()


async def _held_open(manager: AbstractAsyncContextManager[Calls]) -> tuple[Calls, Close]:
    """Enter a context in a task that lives until it is closed: some may only be left by the task that entered."""
    opened: asyncio.Future[Calls] = asyncio.get_running_loop().create_future()
    closing = asyncio.Event()

    async def hold() -> None:
        try:
            async with manager as calls:
                opened.set_result(calls)
                await closing.wait()
        except Exception as error:
            if opened.done():
                raise
            opened.set_exception(error)

    task = asyncio.create_task(hold())

    async def close() -> None:
        closing.set()
        await task

    return await opened, close


def _loop_factory(loop: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if loop == "uvloop":
        import uvloop

        factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
        return factory
    return asyncio.new_event_loop


def _store(entrant: _Entrant, size: int) -> None:
    """Store what will be read, and read it once: it must be there, and some learn from the first read of a key."""

    async def fill() -> None:
        value = entrant.value(size)
        for key in entrant.keys(size):
            await entrant.calls.set(key, value)
        for key in entrant.keys(size):
            if await entrant.calls.get(key) != value:
                msg = "does not give back what was stored"
                raise ValueError(msg)

    try:
        entrant.runner.run(fill())
    except Exception as error:  # noqa: BLE001
        entrant.failed = f"failed: {type(error).__name__}: {error}"


def _case(
    engine: Engine, workload: Workload, entrants: list[_Entrant], effort: Effort, meter: Callable[[], float]
) -> dict[str, Any]:
    """Measure one workload; a side that fails in it is named with the reason."""
    failed = {entrant.side.name: entrant.failed for entrant in entrants if entrant.failed}
    running: list[tuple[_Entrant, Call, int]] = []
    for entrant in entrants:
        if entrant.failed:
            continue
        try:
            call = _call(entrant, workload)
            running.append((entrant, call, _calibrate(entrant, call, workload, effort.sample, meter)))
        except Exception as error:  # noqa: BLE001
            failed[entrant.side.name] = f"failed: {type(error).__name__}: {error}"
        entrant.samples = []
    gc.collect()
    gc.freeze()
    try:
        for number in range(effort.rounds):
            start = number % max(1, len(running))
            for entrant, call, count in running[start:] + running[:start]:
                if entrant.side.name in failed:
                    continue
                try:
                    entrant.samples.append(entrant.runner.run(_run(call, workload.tasks, count, meter)))
                except Exception as error:  # noqa: BLE001
                    failed[entrant.side.name] = f"failed: {type(error).__name__}: {error}"
    finally:
        gc.unfreeze()
    done = [entrant for entrant, _, _ in running if entrant.side.name not in failed]
    base = next((entrant for entrant in done if entrant.side is engine.sides[0]), None)
    return {
        "title": f"{engine.name}: {workload.title}",
        "operation": workload.operation,
        "tasks": workload.tasks,
        "size": workload.size,
        "base": engine.sides[0].name,
        "bars": [
            {"contender": bar.side, "unit": bar.unit, "most": bar.most}
            for bar in engine.bars
            if bar.workload == workload
        ],
        "rows": [_row(entrant, base, done) for entrant in done],
        "failed": failed,
    }


def _call(entrant: _Entrant, workload: Workload) -> Call:
    """Return one operation of a workload, without arguments; the keys go round."""
    names = entrant.keys(workload.size)
    keys, value, calls = cycle(names), entrant.value(workload.size), entrant.calls
    if workload.operation == "get":
        return lambda: calls.get(next(keys))
    if workload.operation == "set":
        return lambda: calls.set(next(keys), value)
    if workload.operation == "mixed":
        turns = cycle([True] + [False] * 9)
        return lambda: calls.set(next(keys), value) if next(turns) else calls.get(next(keys))
    if calls.get_many is None:
        msg = "has no get_many"
        raise ValueError(msg)
    get_many, batches = calls.get_many, cycle([names[at : at + MANY] for at in range(0, len(names), MANY)])
    return lambda: get_many(next(batches))


def _calibrate(entrant: _Entrant, call: Call, workload: Workload, seconds: float, meter: Callable[[], float]) -> int:
    """Warm up, which opens the connections, then find out how many calls of each task fit into a sample."""
    count = max(1, 20 // workload.tasks)
    entrant.runner.run(_run(call, workload.tasks, count, meter))
    wall, _, _ = entrant.runner.run(_run(call, workload.tasks, count, meter))
    return max(1, int(seconds / (wall * 1e-6 * workload.tasks)))


async def _run(call: Call, tasks: int, count: int, meter: Callable[[], float]) -> Sample:
    """Return microseconds of wall time, of this process's processor time and of the server's for each call."""

    async def work() -> None:
        for _ in range(count):
            await call()

    server, wall, cpu = meter(), perf_counter(), process_time()
    if tasks == 1:
        await work()
    else:
        await asyncio.gather(*[work() for _ in range(tasks)])
    wall, cpu, server = perf_counter() - wall, process_time() - cpu, meter() - server
    each = 1e6 / (count * tasks)
    return wall * each, cpu * each, server * each


def _server_meter(engine: Engine, url: str) -> tuple[Callable[[], float], str | None]:
    """Return what reads the processor time of the server's process in seconds, or why that cannot be had."""
    try:
        pid = engine.pid(url)
    except Exception as error:  # noqa: BLE001 - the other columns are left
        return lambda: nan, f"failed: {type(error).__name__}: {error}"
    if pid is None:
        return lambda: nan, None if engine.service is None else "the server does not say its process"
    tasks = Path(f"/proc/{pid}/task")

    def seconds() -> float:
        total = 0
        for task in tasks.iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended meanwhile
                total += int((task / "schedstat").read_bytes().split()[0])
        return total / 1e9

    try:
        if (name := (tasks.parent / "comm").read_text().strip()) not in engine.processes:
            return lambda: nan, f"process {pid} is {name} here: the server is on another machine"
        seconds()
    except (OSError, ValueError, IndexError) as error:
        return lambda: nan, f"/proc does not tell it: {error}"
    return seconds, None


def _row(entrant: _Entrant, base: _Entrant | None, done: list[_Entrant]) -> dict[str, Any]:
    side = entrant.side
    row: dict[str, Any] = {"contender": side.name, "kind": side.kind, "layer": side.layer, "how": side.how}
    beside = next((other for other in done if other.side.name == side.beside), None)
    for index, unit in enumerate(UNITS):
        if entrant.samples[0][index] != entrant.samples[0][index]:  # nan: it cannot be read here
            continue
        row[unit] = {"us": _digits(median(sample[index] for sample in entrant.samples))}
        if base is not None:
            ratios = _ratios(entrant, base, index)
            low, middle, high = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
            row[unit] |= {"ratio": round(middle, 3), "ratio_quartiles": [round(low, 3), round(high, 3)]}
        if beside is not None:
            row[unit]["beside"] = [beside.side.name, round(median(_ratios(entrant, beside, index)), 3)]
    return row


def _ratios(entrant: _Entrant, other: _Entrant, index: int) -> list[float]:
    pairs = zip(entrant.samples, other.samples, strict=True)
    return [mine[index] / max(1e-9, theirs[index]) for mine, theirs in pairs]


def _digits(value: float) -> float:
    return round(value, 2 if value < 10 else 1)


def server_of(engine: Engine) -> tuple[str, str | None]:
    """Return the URL of an engine's server, or why it cannot be measured."""
    if engine.service is None:
        return "", None
    variable = f"ACACHE_{engine.service.upper()}_URL"
    url = os.environ.get(variable, "")
    return url, None if url else f"no server: {variable} is not set; `make bench` starts what it can get"
