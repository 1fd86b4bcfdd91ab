"""Laws 7, 8 and 9 over real servers behind a bad network, and over servers that die and come back."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import pytest
from pymongo import MongoClient
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster

from acache import Backend, BackendError, BackendUnavailable, Cache, Memory, Policy
from acache.backends.redis import RedisBackend
from acache.backends.urls import open_backend
from acache.events import BreakerChanged
from acache.testing import FakeClock, FaultyBackend, Recorder

from ..proxy import Proxy

if TYPE_CHECKING:
    from tests.services import PrivateRedis

DEADLINE: Final = 0.25
BUSY: Final = 20.0
"""Seconds that anything may take on a busy machine."""
ENGINES: Final = ("redis", "valkey", "redis-cluster", "mongodb")
FAULTS: Final[dict[str, Callable[[Proxy], object]]] = {
    "delay beyond the deadline": lambda proxy: proxy.delay(5.0),
    "drop": lambda proxy: proxy.drop(),
    "reset": lambda proxy: proxy.reset(),
    "half-open up": lambda proxy: proxy.half_open("up"),
    "half-open down": lambda proxy: proxy.half_open("down"),
    "throttle": lambda proxy: proxy.throttle(50),
}


@dataclass
class Far:
    """A far tier behind proxies, and a way past them."""

    proxies: list[Proxy]
    backend: Backend
    past: Backend
    """The same store, seen by another process with a good network."""
    namespace: str

    def fault(self, name: str) -> None:
        """Let all proxies misbehave."""
        for proxy in self.proxies:
            FAULTS[name](proxy)

    def resume(self) -> None:
        """Let all be well."""
        for proxy in self.proxies:
            proxy.resume()


@pytest.fixture(params=ENGINES)
async def far(request: pytest.FixtureRequest) -> AsyncIterator[Far]:
    """Give every engine in turn behind a proxy."""
    engine = request.param
    url = request.getfixturevalue(f"{engine.replace('-', '_')}_url")
    namespace = f"outage-{uuid.uuid4().hex[:12]}"
    async with AsyncExitStack() as stack:
        if engine == "redis-cluster":
            far = await over_cluster(url, namespace, stack)
        else:
            parts = urlsplit(url)
            proxy = await stack.enter_async_context(Proxy(parts.hostname or "", parts.port or 0))
            direct = url
            if engine == "mongodb":
                direct = f"mongodb://{parts.hostname}:{parts.port}/{namespace}?collection=c&directConnection=true"
            behind = direct.replace(f"{parts.hostname}:{parts.port}", f"127.0.0.1:{proxy.port}")
            far = Far([proxy], open_backend(behind), open_backend(direct), namespace)
        yield far
        far.resume()
        await far.backend.aclose()
        await far.past.clear(namespace)  # type: ignore[attr-defined]
        if engine == "mongodb":
            with MongoClient[dict[str, Any]](url) as client:
                client.drop_database(namespace)
        await far.past.aclose()


async def over_cluster(url: str, namespace: str, stack: AsyncExitStack) -> Far:
    """Put a proxy before each node."""
    parts = urlsplit(url)
    async with Redis(host=parts.hostname or "", port=parts.port or 0) as node:
        slots: list[Any] = await node.execute_command("CLUSTER", "SLOTS")
    ports = {int(master[1]) for _, _, master, *_ in slots}
    proxies = {port: await stack.enter_async_context(Proxy("127.0.0.1", port)) for port in ports}

    def remap(address: tuple[str, int]) -> tuple[str, int]:
        return ("127.0.0.1", proxies[address[1]].port) if address[1] in proxies else address

    client = RedisCluster(
        host="127.0.0.1",
        port=next(iter(proxies.values())).port,
        address_remap=remap,
        socket_timeout=1,
        socket_connect_timeout=1,
    )
    stack.push_async_callback(client.aclose)
    past = RedisBackend.from_url(f"redis+cluster://{parts.hostname}:{parts.port}")
    return Far(list(proxies.values()), RedisBackend(client), past, namespace)


async def eventually(condition: Callable[[], Awaitable[object] | object], seconds: float = 90.0) -> None:
    """Wait for what takes some real time."""
    async with asyncio.timeout(seconds):
        while True:
            result = condition()
            if await result if isinstance(result, Awaitable) else result:
                return
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("fault", FAULTS)
async def test_an_outage_from_its_beginning_to_its_end(far: Far, fault: str):
    """Reads are misses within the deadline, loads run once, removals raise and are kept, the breaker opens.

    And when the network is well again what was kept arrives, before this process believes the far tier again.
    """
    recorder = Recorder()
    policy = Policy(backend_timeout=DEADLINE)
    cache = Cache(far.backend, memory=None, namespace=far.namespace, policy=policy, observers=[recorder])
    other = Cache(far.past, memory=None, namespace=far.namespace, policy=Policy(backend_timeout=BUSY))
    await other.set_many({"deleted": "old", "written": "old", "kept": "v"})
    await other.set("tagged", "old", tags=["t"])
    await eventually(lambda: read_all(cache))

    far.fault(fault)
    started = time.monotonic()
    assert await asyncio.gather(*[cache.get(f"k{number}") for number in range(50)]) == [None] * 50
    assert time.monotonic() - started < 50 * DEADLINE, "they waited one after the other"
    with pytest.raises(BackendError):
        await cache.delete("deleted")
    with pytest.raises(BackendError):
        await cache.invalidate_tags("t")
    await cache.set("written", "new")
    loads = 0

    async def load() -> str:
        nonlocal loads
        loads += 1
        await asyncio.sleep(0)
        return "loaded"

    assert await asyncio.gather(*[cache.get_or_load("kept", load) for _ in range(100)]) == ["loaded"] * 100
    assert loads == 1
    assert "open" in [event.state for event in recorder.of(BreakerChanged)]
    assert cache.stats().replay_waiting == 3
    assert await other.get("deleted") == "old", "the network is bad for one only"

    far.resume()
    seen = set()
    while cache.stats().replay_waiting:
        seen |= set(await asyncio.gather(cache.get("deleted"), cache.get("tagged"), cache.get("written")))
        assert time.monotonic() - started < 120
        await asyncio.sleep(0.01)
    assert seen <= {None}, "an old value was believed"
    assert await other.get_many(["deleted", "tagged", "written"]) == {}
    await eventually(lambda: readable(cache, "kept", "v"))
    await cache.aclose()
    await other.aclose()


async def read_all(cache: Cache) -> bool:
    """Tell whether everything can be read; the first connection may take longer than a deadline."""
    return len(await cache.get_many(["deleted", "written", "kept", "tagged"])) == 4


async def readable(cache: Cache, key: str, value: object) -> bool:
    """Tell whether a value can be read."""
    return await cache.get(key) == value


@pytest.mark.parametrize("way", ["kill", "pause"])
async def test_a_redis_that_dies_under_load_and_comes_back(private_redis: Callable[..., PrivateRedis], way: str):
    """Nobody waits longer than a few deadlines, and what was changed meanwhile is there, or gone, afterwards."""
    server = private_redis("--appendonly", "yes")
    await dies_under_load(server, f"{server.url}", way)


@pytest.mark.parametrize("way", ["kill", "pause"])
async def test_a_mongod_that_dies_under_load_and_comes_back(private_mongodb: Callable[..., Any], way: str):
    """The same; mongod has its journal, of which a crash takes the last moments."""
    server = private_mongodb()
    await dies_under_load(server, f"{server.url}n?collection=c&directConnection=true", way)


async def dies_under_load(server: Any, url: str, way: str) -> None:
    cache = Cache.from_url(url, memory=100, namespace="n", policy=Policy(backend_timeout=DEADLINE))
    slowest, busy = 0.0, True

    async def load() -> str:
        return "loaded"

    async def live(number: int) -> None:
        nonlocal slowest
        while busy:
            started = time.monotonic()
            await cache.get_or_load(f"k{number}-{int(started * 50) % 50}", load)
            await cache.set(f"s{number}", started)
            slowest = max(slowest, time.monotonic() - started)
            await asyncio.sleep(0.005)

    await eventually(lambda: stored(cache, "old", "v"))
    users = [asyncio.create_task(live(number)) for number in range(20)]
    await asyncio.sleep(0.2)
    server.kill() if way == "kill" else server.pause()
    try:
        with pytest.raises(BackendError):
            await cache.delete("old")
        await eventually(lambda: cache._shared.breaker.state == "open")
        await cache.set("new", "n")
        await asyncio.sleep(0.5)
    finally:
        if way == "pause":
            server.resume()
    if way == "kill":
        server.restart()
    seen = set()
    while cache.stats().replay_waiting:
        seen.add(await cache.get("old"))
        await asyncio.sleep(0.005)
        if cache._shared.breaker.state == "closed":
            busy = False
    busy = False
    await asyncio.gather(*users)
    assert seen <= {None}
    assert slowest < BUSY
    async with Cache.from_url(url, memory=None, namespace="n", policy=Policy(backend_timeout=BUSY)) as other:
        assert await other.get("old") is None
        assert await other.get("new") == "n"
    stats = cache.stats()
    assert stats.replayed > 0
    assert stats.replay_dropped == 0
    assert stats.near_entries <= 100
    await cache.aclose()
    assert [task for task in asyncio.all_tasks() if task.get_name().startswith("acache")] == []


async def stored(cache: Cache, key: str, value: object) -> bool:
    """Tell whether a value could be stored."""
    await cache.set(key, value)
    return await cache.get_entry(key) is not None


# Stale values --------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock() -> FakeClock:
    """A clock that moves when told."""
    return FakeClock()


async def test_a_stale_near_value_answers_while_the_far_tier_and_the_database_are_down(clock: FakeClock):
    """Within ``stale_if_error``, which is counted from the end of the near copy's time; then the loader's error passes."""
    backend = FaultyBackend(clock=clock)
    policy = Policy(ttl=300, stale_if_error=60, error_backoff=1)
    async with Cache(backend, memory=Memory(ttl=5), clock=clock, policy=policy) as cache:
        await cache.set("k", "v")
        backend.fail()
        loads = 0

        async def load() -> str:
            nonlocal loads
            loads += 1
            raise LookupError("the database is down, too")

        assert await cache.get_or_load("k", load) == "v"
        assert loads == 0
        clock.advance(6)
        assert await cache.get_or_load("k", load) == "v"
        assert await cache.get_or_load("k", load) == "v"
        assert loads == 1, "the loader is spared for a second"
        assert cache.stats().hits_stale == 2
        assert await cache.get("k") is None, "get() returns what is fresh"
        clock.advance(58)
        assert await cache.get_or_load("k", load) == "v"
        clock.advance(2)
        with pytest.raises(LookupError):
            await cache.get_or_load("k", load)


async def test_without_a_stale_window_the_loader_s_error_passes(clock: FakeClock):
    """An outage alone makes nobody serve what is old."""
    backend = FaultyBackend(clock=clock)
    async with Cache(backend, memory=Memory(ttl=5), clock=clock) as cache:
        await cache.set("k", "v")
        backend.fail()
        clock.advance(6)

        async def load() -> str:
            raise LookupError

        with pytest.raises(LookupError):
            await cache.get_or_load("k", load)


async def test_a_loader_that_works_is_called_once_while_the_far_tier_is_down(clock: FakeClock):
    """And its value, not the stale one, is what everybody gets."""
    backend = FaultyBackend(clock=clock)
    async with Cache(backend, memory=Memory(ttl=5), clock=clock, policy=Policy(stale_if_error=60)) as cache:
        await cache.set("k", "v")
        backend.fail()
        clock.advance(6)
        loads = 0

        async def load() -> str:
            nonlocal loads
            loads += 1
            await asyncio.sleep(0)
            return f"loaded {loads}"

        assert await asyncio.gather(*[cache.get_or_load("k", load) for _ in range(50)]) == ["loaded 1"] * 50
        assert await cache.get_or_load("k", load) == "loaded 1"


@pytest.mark.parametrize("removal", ["delete", "invalidate_tags", "clear"])
async def test_what_was_removed_does_not_answer_as_a_stale_value(clock: FakeClock, removal: str):
    """Although the far tier did not confirm it."""
    backend = FaultyBackend(clock=clock)
    policy = Policy(stale_if_error=60)
    async with Cache(backend, memory=Memory(ttl=5), clock=clock, policy=policy, namespace="n") as cache:
        await cache.set("k", "v", tags=["t"])
        backend.fail()
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "delete": lambda: cache.delete("k"),
            "invalidate_tags": lambda: cache.invalidate_tags("t"),
            "clear": cache.clear,
        }
        with pytest.raises(BackendUnavailable):
            await calls[removal]()
        clock.advance(6)

        async def load() -> str:
            raise LookupError

        with pytest.raises(LookupError):
            await cache.get_or_load("k", load)


# The breaker ---------------------------------------------------------------------------------------------------------


async def test_a_long_probe_does_not_keep_all_others_out(clock: FakeClock):
    """What the breaker lets through first may have a long deadline, or none: after five seconds another one may try."""
    backend = FaultyBackend(clock=clock)
    async with Cache(backend, memory=None, clock=clock, policy=Policy(backend_timeout=60)) as cache:
        backend.fail()
        for number in range(5):
            await cache.get(f"k{number}")
        backend.mend()
        clock.advance(1.001)
        held = backend.hold("get_versioned")
        probe = asyncio.create_task(cache.touch("k", ttl=1))
        await held.reached.wait()
        backend.calls.clear()
        await cache.get("k")
        assert backend.calls == []
        clock.advance(5.001)
        await cache.get("k")
        assert backend.calls == ["get"]
        held.release()
        await probe
