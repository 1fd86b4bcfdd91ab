"""Laws 2, 4 and 7 together: Redis goes away while a load runs."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

import pytest

from acache import BackendError, Cache, Policy
from acache.testing import FakeClock

if TYPE_CHECKING:
    from tests.services import PrivateRedis


class Scene:
    """A server of the test's own, a cache over it, and a loader that returns when it is told to."""

    def __init__(self, server: PrivateRedis, *, near: bool) -> None:
        self.server = server
        self.clock = FakeClock()
        self.cache = Cache.from_url(
            server.url,
            memory=100 if near else None,
            namespace=f"outage-{uuid.uuid4().hex}",
            policy=Policy(backend_timeout=0.5),
            clock=self.clock,  # the breaker's, too: it opens its door when the test lets time pass
        )
        self.loads = 0
        self.began = asyncio.Event()
        self.finish = asyncio.Event()

    async def loader(self) -> str:
        self.loads += 1
        self.began.set()
        await self.finish.wait()
        return f"load {self.loads}"

    async def callers(self, count: int) -> list[asyncio.Task[str]]:
        """Let so many ask, and wait until the loader runs."""
        tasks = [asyncio.create_task(self.cache.get_or_load("k", self.loader)) for _ in range(count)]
        await self.began.wait()
        return tasks

    def stop(self, way: str) -> None:
        if way == "killed":
            self.server.kill()
        else:
            self.server.pause()

    def start(self, way: str) -> None:
        if way == "killed":
            self.server.restart()
        else:
            self.server.resume()
        self.clock.advance(31)


@pytest.fixture(params=["near", "far"])
async def scene(request: pytest.FixtureRequest, private_redis: Callable[..., PrivateRedis]) -> AsyncIterator[Scene]:
    """Give one with a near tier, and one without."""
    made = Scene(private_redis(), near=request.param == "near")
    async with made.cache:
        yield made


@pytest.mark.parametrize("way", ["killed", "paused"])
async def test_everybody_gets_the_value_of_the_one_load(scene: Scene, way: str):
    """The fill fails, which is nobody's business but the counters'; when Redis is back the next load is stored."""
    tasks = await scene.callers(100)
    scene.stop(way)
    try:
        scene.finish.set()
        assert await asyncio.gather(*tasks) == ["load 1"] * 100
        assert scene.loads == 1
        assert scene.cache.stats().backend_errors == 1
        assert scene.cache.peek("k") is None  # whether the far tier has it is unknown
    finally:
        scene.start(way)
    loaded = "load 1"
    async with asyncio.timeout(60):
        # A paused server may do what it was sent; and what is not known to be there is removed before anything is kept.
        while (value := await scene.cache.get("k")) is None:
            loaded = await scene.cache.get_or_load("k", scene.loader)
            await asyncio.sleep(0.05)
    assert value == loaded


@pytest.mark.parametrize("way", ["killed", "paused"])
async def test_a_load_that_begins_without_a_server_is_one_load_too(scene: Scene, way: str):
    """Reads fail open: 100 callers, one load, which is stored nowhere as long as nobody knows what is there."""
    scene.stop(way)
    try:
        tasks = await scene.callers(100)
        scene.finish.set()
        assert await asyncio.gather(*tasks) == ["load 1"] * 100
        assert scene.loads == 1
    finally:
        scene.start(way)


@pytest.mark.parametrize("way", ["killed", "paused"])
async def test_a_removal_that_could_not_be_confirmed_still_wins_in_this_process(scene: Scene, way: str):
    """It raises, and the load that it was about is stored nowhere, although Redis is back when that one ends."""
    (task,) = await scene.callers(1)
    scene.stop(way)
    try:
        with pytest.raises(BackendError):
            await scene.cache.delete("k")
    finally:
        scene.start(way)
    scene.finish.set()
    assert await task == "load 1"
    assert scene.cache.stats().fills_refused == 1
    assert await scene.cache.get("k") is None
