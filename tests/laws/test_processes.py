"""Laws 2 and 4 between four real processes on one Redis: each an interpreter of its own, with clients of its own."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest

from acache.backends.redis import RedisBackend

WORKER: Final = Path(__file__).with_name("process.py")
_numbers: Final = itertools.count()


class Process:
    """One of the processes: what it is told, and what it answers."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._began: dict[int, asyncio.Event] = {}
        self._ready = asyncio.Event()
        self._listening = asyncio.create_task(self._listen())

    @classmethod
    async def start(cls, url: str, namespace: str, tier: str) -> Process:
        made = cls(
            await asyncio.create_subprocess_exec(
                *(sys.executable, WORKER, url, namespace, tier),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
        )
        await made._ready.wait()
        return made

    async def _listen(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            message = json.loads(line)
            if "ready" in message:
                self._ready.set()
            elif "began" in message:
                self._began[message["began"]].set()
            else:
                self._answers[message["id"]].set_result(message["result"])

    def tell(self, do: str, **command: Any) -> tuple[int, asyncio.Future[Any]]:
        """Send a command; return its number and its answer to come."""
        number = next(_numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        self._began[number] = asyncio.Event()
        self._write({"id": number, "do": do, **command})
        return number, answer

    async def ask(self, do: str, **command: Any) -> Any:
        return await self.tell(do, **command)[1]

    async def began(self, number: int) -> None:
        await self._began[number].wait()

    def finish(self, number: int) -> None:
        self._write({"finish": number})

    def _write(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")

    async def aclose(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert await self._process.wait() == 0
        await self._listening


@pytest.fixture(params=["near", "far"])
async def four(request: pytest.FixtureRequest, redis_url: str) -> AsyncIterator[list[Process]]:
    """Give four processes, all with a near tier or all without."""
    namespace = f"processes-{uuid.uuid4().hex}"
    started = [Process.start(redis_url, namespace, request.param) for _ in range(4)]
    processes = list(await asyncio.gather(*started))
    yield processes
    for process in processes:
        await process.aclose()
    sweeper = RedisBackend.from_url(redis_url, timeout=30)
    await sweeper.clear(namespace)
    await sweeper.aclose()


async def interleave(four: list[Process], removal: dict[str, Any], key: str, *tags: str) -> list[Process]:
    """Let three load, the fourth invalidate meanwhile, the three come back; return the three."""
    *loading, other = four
    running = [process.tell("load", key=key, value=f"old {i}", tags=tags) for i, process in enumerate(loading)]
    for process, (number, _) in zip(loading, running, strict=True):
        await process.began(number)
    await other.ask(**removal)
    for process, (number, _) in zip(loading, running, strict=True):
        process.finish(number)
    assert [await answer for _, answer in running] == [["old 0"], ["old 1"], ["old 2"]]
    return loading


async def test_an_invalidation_in_one_process_wins_over_the_loads_of_the_others(four: list[Process]):
    """What three were loading while the fourth invalidated is served by nobody."""
    for removal, left in (({"do": "delete", "key": "k"}, None), ({"do": "set", "key": "k", "value": "set"}, "set")):
        loading = await interleave(four, removal, "k")
        assert [await process.ask("get", key="k") for process in four] == [left] * 4, removal
    assert sum([(await process.ask("stats"))["refused"] for process in loading]) == 6

    await interleave(four, {"do": "tags", "tags": ["t"]}, "tagged", "t", "another")
    assert [await process.ask("get", key="tagged") for process in four] == [None] * 4


async def test_a_clear_in_one_process_wins_over_the_loads_of_the_others(four: list[Process]):
    """The same for the whole namespace."""
    await interleave(four, {"do": "clear"}, "k")
    assert [await process.ask("get", key="k") for process in four] == [None] * 4


async def test_each_process_loads_once_and_one_value_stands(four: list[Process]):
    """500 callers in each of four processes: a load in each, and the first that was stored is everybody's."""
    running = [process.tell("load", key="k", value=i, callers=500) for i, process in enumerate(four)]
    for process, (number, _) in zip(four, running, strict=True):
        await process.began(number)
    for i in (2, 0, 1, 3):
        four[i].finish(running[i][0])
        assert await running[i][1] == [i] * 500
    assert [await process.ask("get", key="k") for process in four] == [2] * 4
    assert [(await process.ask("stats"))["loads"] for process in four] == [1] * 4
    assert sum([(await process.ask("stats"))["refused"] for process in four]) == 3


async def test_a_storm_of_loads_never_brings_an_old_value_back(four: list[Process]):
    """Three processes load one key all the time, the fourth changes the source and invalidates, a hundred times."""
    *loading, changing = four
    for by in ("delete", "tags"):
        running = [process.tell("storm", key=by, tags=[by], seed=i) for i, process in enumerate(loading)]
        assert await changing.ask("change", key=by, tags=[by], by=by, times=100) == []
        for process, (number, _) in zip(loading, running, strict=True):
            process.finish(number)
        assert sum([await answer for _, answer in running]) > 0
    assert [(await process.ask("stats"))["errors"] for process in four] == [0] * 4
