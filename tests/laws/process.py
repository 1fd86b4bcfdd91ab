"""A process of its own with a cache over Redis, for test_processes.py: does what it reads, a line of JSON at a time.

``{"id": 1, "do": "get", "key": "k"}`` is answered by ``{"id": 1, "result": ...}``, whenever it is done: commands run
side by side.  A load says ``{"began": id}`` when its loader runs, and its loader returns after ``{"finish": id}``.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from typing import Any

from acache import Cache, Policy
from acache.backends.redis import RedisBackend


class Process:
    """The caches of one process, and the commands that are under way."""

    def __init__(self, url: str, namespace: str, memory: int | None) -> None:
        policy = Policy(backend_timeout=30)
        self.raw = RedisBackend.from_url(url, timeout=30)
        self.cache = Cache(RedisBackend.from_url(url, timeout=30), memory=memory, namespace=namespace, policy=policy)
        self.witness = Cache(RedisBackend.from_url(url, timeout=30), memory=None, namespace=namespace, policy=policy)
        self.source = f"{namespace}-source"
        """Where what the loads of `storm` read is kept: beside the cache, on the same server."""
        self.finish: dict[int, asyncio.Event] = {}
        self.loads = 0

    def say(self, **message: Any) -> None:
        print(json.dumps(message), flush=True)

    async def handle(self, command: dict[str, Any]) -> None:
        number, do = command["id"], command["do"]
        try:
            result = await getattr(self, f"do_{do}")(command)
        except Exception as error:  # noqa: BLE001 - the test is told
            result = {"error": repr(error)}
        self.say(id=number, result=result)

    async def do_load(self, command: dict[str, Any]) -> Any:
        """Ask as many times as it says, side by side; the loader waits for the test."""
        number = command["id"]
        finish = self.finish[number] = asyncio.Event()

        async def loader() -> Any:
            self.loads += 1
            self.say(began=number)
            await finish.wait()
            return command["value"]

        callers = [
            asyncio.create_task(self.cache.get_or_load(command["key"], loader, tags=command.get("tags", ())))
            for _ in range(command.get("callers", 1))
        ]
        return await asyncio.gather(*callers)

    async def do_get(self, command: dict[str, Any]) -> Any:
        """Look at the far tier alone."""
        return await self.witness.get(command["key"])

    async def do_set(self, command: dict[str, Any]) -> None:
        await self.cache.set(command["key"], command["value"])

    async def do_delete(self, command: dict[str, Any]) -> bool:
        return await self.cache.delete(command["key"])

    async def do_tags(self, command: dict[str, Any]) -> None:
        await self.cache.invalidate_tags(*command["tags"])

    async def do_clear(self, _: dict[str, Any]) -> None:
        await self.cache.clear()

    async def do_stats(self, _: dict[str, Any]) -> dict[str, int]:
        stats = self.cache.stats()
        return {"loads": stats.loads, "refused": stats.fills_refused, "errors": stats.backend_errors}

    async def do_storm(self, command: dict[str, Any]) -> int:
        """Load one key again and again, reading the source and taking a random while to come back with it."""
        chance = random.Random(command["seed"])
        loads = 0
        stop = self.finish[command["id"]] = asyncio.Event()

        async def loader() -> int:
            nonlocal loads
            loads += 1
            value = int(await self.raw.get(self.source) or b"0")
            await asyncio.sleep(chance.random() * 0.003)
            return value

        while not stop.is_set():
            await self.cache.get_or_load(command["key"], loader, tags=command["tags"])
            await asyncio.sleep(0)
        return loads

    async def do_change(self, command: dict[str, Any]) -> list[str]:
        """Change the source, invalidate, and see that no older value comes back; as many times as it says."""
        wrong: list[str] = []
        for version in range(1, command["times"] + 1):
            await self.raw.set(self.source, str(version).encode(), ttl=600)
            if command["by"] == "delete":
                await self.cache.delete(command["key"])
            else:
                await self.cache.invalidate_tags(*command["tags"])
            for _ in range(10):
                value = await self.witness.get(command["key"])
                if value is not None and value < version:
                    wrong.append(f"{value} after {version}")
        return wrong


async def main() -> None:
    process = Process(sys.argv[1], sys.argv[2], 1000 if sys.argv[3] == "near" else None)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    process.say(ready=True)
    tasks: set[asyncio.Task[None]] = set()
    while line := await reader.readline():
        command = json.loads(line)
        if "finish" in command:
            process.finish[command["finish"]].set()
            continue
        task = asyncio.create_task(process.handle(command))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    for cache in (process.cache, process.witness):
        await cache.aclose()
    await process.raw.aclose()


if __name__ == "__main__":
    asyncio.run(main())
