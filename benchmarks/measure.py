"""Timing: all contenders of a case interleaved, many short rounds, medians of ratios within a round."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from statistics import median, quantiles
from time import perf_counter
from typing import Any

from cases import Case, items_of
from contenders import BASE, Contender, Operation

__all__ = ["Effort", "Row", "compile_sample", "time_case"]


@dataclass(frozen=True)
class Effort:
    """How long to measure."""

    rounds: int
    sample: float
    """Seconds that one contender runs in one round."""


@dataclass
class Row:
    """One contender in one case."""

    contender: Contender
    statement: str
    samples: list[float] = field(default_factory=list)
    """Nanoseconds for one execution of the statement, round by round."""

    def result(self, base: Row) -> dict[str, Any]:
        """Return what goes into the JSON file."""
        ratios = [mine / other for mine, other in zip(self.samples, base.samples, strict=True)]
        low, _, high = quantiles(ratios, n=4, method="inclusive")
        return {
            "contender": self.contender.name,
            "kind": self.contender.kind,
            "statement": self.statement,
            "ns": round(median(self.samples), 1),
            "ns_min": round(min(self.samples), 1),
            "ratio": round(median(ratios), 3),
            "ratio_quartiles": [round(low, 3), round(high, 3)],
        }


_LOOP = """
async def sample(items, {names}):
    await sleep(0)
    start = perf_counter()
    for key in items:
        {statement}
    await sleep(0)
    return perf_counter() - start
"""


def compile_sample(operation: Operation) -> Callable[[Iterator[Any]], Awaitable[float]]:
    """Write the loop around a statement, its names as local variables.

    A sample ends with a turn of the event loop, so that what a library leaves to the loop is on its own account.
    """
    scope = {**operation.names, "sleep": asyncio.sleep, "perf_counter": perf_counter}
    names = ", ".join(f"{name}={name}" for name in scope)
    exec(_LOOP.format(names=names, statement=operation.statement), scope)
    sample: Callable[[Iterator[Any]], Awaitable[float]] = scope["sample"]
    return sample


@dataclass
class _Entrant:
    row: Row
    operation: Operation
    sample: Callable[[Iterator[Any]], Awaitable[float]]
    items: Iterator[Any]
    count: int = 1

    async def run(self) -> float:
        return await self.sample(islice(self.items, self.count))

    async def calibrate(self, case: Case, seconds: float) -> None:
        """Warm up with a cycle over the items, then find out how often the statement fits into a sample."""
        _, self.count = items_of(case)
        took = await self.run()
        if self.count < 100:
            self.count = 100
            took = min([await self.run() for _ in range(3)])
        self.count = max(20, int(self.count * seconds / took))
        self.count = max(20, int(self.count * seconds / min([await self.run() for _ in range(3)])))


async def time_case(
    case: Case, contenders: list[Contender], effort: Effort, *, base: Contender = BASE
) -> list[dict[str, Any]]:
    """Measure one case; ratios are to the base, which is one of the contenders."""
    entrants: list[_Entrant] = []
    for contender in contenders:
        operation = None if contender.prepare is None else await contender.prepare(case)
        if operation is not None:
            row = Row(contender, operation.statement)
            entrants.append(_Entrant(row, operation, compile_sample(operation), items_of(case)[0]))
    for entrant in entrants:
        await entrant.calibrate(case, effort.sample)
    # The collector stays on, for its work is part of what a library costs; what was built so far is out of its sight.
    gc.collect()
    gc.freeze()
    try:
        for number in range(effort.rounds):
            start = number % len(entrants)  # nobody always runs after the same neighbour's start of the round
            for entrant in entrants[start:] + entrants[:start]:
                entrant.row.samples.append(await entrant.run() / entrant.count * 1e9)
    finally:
        gc.unfreeze()
        for entrant in entrants:
            await entrant.operation.close()
    base_row = next(entrant.row for entrant in entrants if entrant.row.contender is base)
    return [entrant.row.result(base_row) for entrant in entrants]
