"""Processes that set, delete, invalidate, read and load at random, and what they note of it.

As a program it is one such process: ``processes.py URL LOG NUMBER SEED SECONDS BOUNDS``; the soak test starts several.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from acache import BackendError, Cache, Memory, Policy

if __package__:
    from .history import Operation, write_log
else:
    from history import Operation, write_log

__all__ = ["BOUND", "DEADLINE", "NEAR_TTL", "Process"]

KEYS: Final = tuple(f"k{number}" for number in range(120))
"""So many that a value lives for longer than the bound on average: otherwise no old one would be there to be seen."""
ALL_TAGS: Final = tuple(f"t{number}" for number in range(10))
TAGS: Final = {key: (ALL_TAGS[number // 2 % 10],) if number % 2 else () for number, key in enumerate(KEYS)}
"""Always the same ones; half of the keys have none: what is written without tags can be replayed with its value."""
DEADLINE: Final = 0.25
"""Seconds for each operation of the far tier."""
NEAR_TTL: Final = 0.5
"""Seconds for which a near copy is trusted."""
TTL: Final = 120.0
"""Longer than anything here is kept for a replay or remembered as deleted."""
SLACK: Final = 0.25
"""Seconds that a busy machine may take between two steps."""
BOUND: Final = NEAR_TTL + DEADLINE + SLACK
"""What may be read that somebody else changed so long ago: a value may be on its way for a deadline, and then be near."""
TASKS: Final = 6


class Process:
    """One process: a cache, some tasks that use it at random, and their notes."""

    def __init__(self, number: int, cache: Cache, seed: int, now: Callable[[], float]) -> None:
        self.history: Final[list[Operation]] = []
        self._number: Final = number
        self._cache: Final = cache
        self._strict: Final = cache.view(policy=Policy(backend_timeout=DEADLINE, on_backend_error="raise", ttl=TTL))
        self._seed: Final = seed
        self._now: Final = now
        self._values = 0
        self._loads: Final[dict[str, tuple[str, float]]] = {}
        """The loads under way: their keys, and when they began."""

    @staticmethod
    def policy() -> Policy:
        """Return the rules of its cache."""
        return Policy(backend_timeout=DEADLINE, ttl=TTL)

    async def live(self, until: float) -> None:
        """Do random things until then."""
        async with asyncio.TaskGroup() as group:
            for number in range(TASKS):
                group.create_task(self._act(random.Random(f"{self._seed}-{self._number}-{number}"), until))

    async def _act(self, chance: random.Random, until: float) -> None:
        while self._now() < until:
            key, dice = chance.choice(KEYS), chance.random()
            if dice < 0.6:
                await self._note("get", key, self._cache.get(key))
            elif dice < 0.65:
                await self._get_many(chance.sample(KEYS, 5))
            elif dice < 0.94:
                await self._load(key, chance)
            elif dice < 0.975:
                value = self._new()
                await self._note("set", key, self._strict.set(key, value, tags=TAGS[key]), value)
            elif dice < 0.995:
                await self._note("delete", key, self._cache.delete(key))
            else:
                tag = chance.choice(ALL_TAGS)
                await self._note("invalidate", tag, self._cache.invalidate_tags(tag))
            await asyncio.sleep(chance.uniform(0, 0.02))

    def _new(self) -> str:
        self._values += 1
        return f"{self._number}:{self._values}"

    async def _note(self, kind: Any, key: str, call: Any, value: str | None = None) -> None:
        begin, confirmed = self._now(), True
        try:
            result = await call
        except BackendError:
            result, confirmed = None, False
        self._add(kind, key, begin, result if kind == "get" else value, confirmed)

    async def _get_many(self, keys: list[str]) -> None:
        begin = self._now()
        for key, value in (await self._cache.get_many(keys)).items():
            self._add("get", key, begin, value)

    async def _load(self, key: str, chance: random.Random) -> None:
        pause = chance.uniform(0, 0.03)

        async def loader() -> str:
            value = self._new()
            self._loads[value] = (key, self._now())
            await asyncio.sleep(pause)
            return value

        begin = self._now()
        value = await self._cache.get_or_load(key, loader, tags=TAGS[key])
        self._add("get", key, begin, value)
        if value in self._loads:  # the first of those who waited; the others' tasks run in the same turn of the loop
            loaded, began = self._loads.pop(value)
            self._add("load", loaded, began, value)

    def _add(self, kind: Any, key: str, begin: float, value: str | None, confirmed: bool = True) -> None:
        self.history.append(
            Operation(
                kind=kind,
                process=self._number,
                begin=begin,
                end=self._now(),
                key=key,
                tag="".join(TAGS.get(key, ())),
                value=value,
                confirmed=confirmed,
            )
        )

    def finish(self) -> None:
        """Note the loads whose value nobody got."""
        for value, (key, began) in self._loads.items():
            self._add("load", key, began, value)
        self._loads.clear()


async def main(url: str, log: Path, number: int, seed: int, seconds: float) -> None:
    """Be one process."""
    random.seed(f"{seed}-{number}")
    async with Cache.from_url(
        url, memory=Memory(max_entries=1000, ttl=NEAR_TTL), namespace=f"soak-{seed}", policy=Process.policy()
    ) as cache:
        process = Process(number, cache, seed, time.monotonic)
        await process.live(time.monotonic() + seconds)
        process.finish()
        print(json.dumps({"stats": str(cache.stats())}))
    write_log(log, process.history)


if __name__ == "__main__":
    address, file, which, start, length = sys.argv[1:]
    asyncio.run(main(address, Path(file), int(which), int(start), float(length)))
