"""Laws 7, 8 and 9 over real servers behind a bad network, and over servers that die and come back."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import pytest
from pymongo import MongoClient
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster

from acache import Backend, BackendError, BackendUnavailable, Cache, Memory, Policy, current_load
from acache.backends.redis import RedisBackend
from acache.backends.urls import open_backend
from acache.coherence.channel import TRUST
from acache.events import BreakerChanged, Hit
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
            far = Far([proxy], opened(behind), opened(direct), namespace)
        yield far
        far.resume()
        await far.backend.aclose()
        await far.past.clear(namespace)  # type: ignore[attr-defined]
        if engine == "mongodb":
            with MongoClient[dict[str, Any]](url) as client:
                client.drop_database(namespace)
        await far.past.aclose()


def opened(url: str) -> Backend:
    """Return the far tier under an address that has one."""
    backend = open_backend(url)
    assert backend is not None
    return backend


async def over_cluster(url: str, namespace: str, stack: AsyncExitStack) -> Far:
    """Put a proxy before each node."""
    parts = urlsplit(url)
    async with Redis(host=parts.hostname or "", port=parts.port or 0) as node:
        slots: Any = await node.execute_command("CLUSTER", "SLOTS")
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


@pytest.mark.parametrize("away", [True, False], ids=["far tier away", "far tier there"])
async def test_a_stale_hit_tells_which_tier_the_value_is_from(clock: FakeClock, away: bool):
    """Near while the far tier does not answer: in place of an error, while the loader is spared, and after a while."""
    backend, recorder, entries = FaultyBackend(clock=clock), Recorder(), list[Any]()
    policy = Policy(ttl=10, stale_if_error=60, error_backoff=1, soft_timeout=1)
    async with Cache(backend, memory=Memory(ttl=5), clock=clock, policy=policy, observers=[recorder]) as cache:
        await cache.set("k", "v")
        clock.advance(11)
        if away:
            backend.fail()

        async def load() -> str:
            entries.append(current_load().stale)
            await gate.wait()
            raise LookupError

        gate = asyncio.Event()
        gate.set()
        assert await cache.get_or_load("k", load) == "v"
        assert await cache.get_or_load("k", load) == "v"
        assert len(entries) == 1, "the second time it was spared"
        clock.advance(2)
        gate.clear()
        asking = [asyncio.create_task(cache.get_or_load("k", load)) for _ in range(2)]
        while len(entries) == 1:
            await asyncio.sleep(0)
        clock.advance(1)
        assert await asyncio.gather(*asking) == ["v", "v"]
        assert await cache.get_or_load("k", load) == "v"
        gate.set()
    tier = "near" if away else "far"
    assert [(hit.tier, hit.stale) for hit in recorder.of(Hit)] == [(tier, True)] * 3
    assert [entry.tier for entry in entries] == [tier] * 2


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


# Stale values of a near tier that is told of changes -----------------------------------------------------------------


async def fail() -> str:
    """Load from a database that is down."""
    raise LookupError("the database is down, too")


@dataclass
class Told:
    """A Redis of the test's own, and a cache that it tells of changes."""

    server: PrivateRedis
    clock: FakeClock
    stack: AsyncExitStack

    async def cache(self, **options: Any) -> Cache:
        """Return a cache over it, which stands for a process of its own."""
        far = RedisBackend.from_url(self.server.url, timeout=BUSY)
        policy = Policy(**{"ttl": 300, "backend_timeout": BUSY, "error_backoff": 1, **options})
        return await self.stack.enter_async_context(Cache(far, namespace="n", clock=self.clock, policy=policy))

    async def kill(self, *caches: Cache) -> None:
        """Let the server die, and wait until these have learnt of it."""
        self.server.kill()
        for cache in caches:
            await eventually(lambda cache=cache: cache.stats().channel_losses == 1)

    async def restart(self, cache: Cache) -> None:
        """Let it come back, empty, and wait until it tells of changes."""
        self.server.restart()

        def told() -> bool:
            self.clock.advance(0.1)  # for the next attempt
            return cache.stats().channel_restorations == 1

        await eventually(told)


@pytest.fixture
async def told(private_redis: Callable[..., PrivateRedis], clock: FakeClock) -> AsyncIterator[Told]:
    """Give a Redis that tells of changes until it is killed."""
    async with AsyncExitStack() as stack:
        yield Told(private_redis(), clock, stack)


async def test_a_dead_server_leaves_the_near_copies_to_those_who_take_stale_values(told: Told):
    """While the loader fails too, until their ttl and ``stale_if_error`` are over; they are no hits for anybody."""
    cache = await told.cache(stale_if_error=60)
    await cache.set("k", "v")
    assert cache.peek("k") == "v"
    await told.kill(cache)
    loads = 0

    async def load() -> str:
        nonlocal loads
        loads += 1
        return await fail()

    assert cache.peek("k") is None
    assert await cache.get("k") is None
    assert await cache.get_many(["k"]) == {}
    assert not await cache.has("k")
    assert await cache.get_or_load("k", load) == "v"
    assert await cache.get_or_load("k", load) == "v"
    assert loads == 1, "the loader is spared for a second"
    stats = cache.stats()
    assert (stats.hits_near, stats.hits_stale) == (0, 2)
    with pytest.raises(LookupError):
        await cache.get_or_load("k", load, stale_if_error=0)
    for seconds in (290, 69):
        told.clock.advance(seconds)
        assert await cache.get_or_load("k", load) == "v"
    told.clock.advance(1)
    with pytest.raises(LookupError):
        await cache.get_or_load("k", load)


async def test_a_silent_server_leaves_them_too(told: Told):
    """Nothing is lost, as far as anybody knows, and nothing near is trusted any more."""
    cache = await told.cache(stale_if_error=60, backend_timeout=DEADLINE)
    await eventually(lambda: stored(cache, "k", "v"))
    told.server.pause()
    try:
        told.clock.advance(TRUST + 1)
        assert cache.peek("k") is None
        assert await cache.get_or_load("k", fail) == "v"
        with pytest.raises(LookupError):
            await cache.get_or_load("k", fail, stale_if_error=0)
    finally:
        told.server.resume()


async def test_each_waiter_takes_the_bypassed_copy_by_its_own_policy(told: Told):
    """Of two who wait for one load, one gets the stale value, and the other, who takes none, the error."""
    cache = await told.cache()
    await cache.get_or_load("k", fail_not("v"), stale_if_error=60)
    await told.kill(cache)
    takes, refuses = await asyncio.gather(
        cache.get_or_load("k", fail, stale_if_error=60), cache.get_or_load("k", fail), return_exceptions=True
    )
    assert takes == "v"
    assert isinstance(refuses, LookupError)


def fail_not(value: str) -> Callable[[], Awaitable[str]]:
    """Return a loader that works."""

    async def load() -> str:
        return value

    return load


async def test_the_near_tier_of_a_dead_server_is_empty_where_nobody_takes_stale_values(told: Told):
    """The loader's error passes, and the memory is free."""
    cache = await told.cache()
    await cache.set("k", "v")
    await told.kill(cache)
    assert cache.stats().near_entries == 0
    with pytest.raises(LookupError):
        await cache.get_or_load("k", fail)


async def test_a_loader_that_works_hides_the_bypassed_copy(told: Told):
    """Its value is what everybody gets, nobody gets the older one after it, and no shortcut leads there."""
    cache = await told.cache(stale_if_error=60)
    loads = 0

    @cache.cached(key="{name}")
    async def function(name: str) -> str:
        nonlocal loads
        loads += 1
        if loads == 4:
            raise LookupError
        return f"loaded {loads}"

    assert [await function("k") for _ in range(3)] == ["loaded 1"] * 3
    await told.kill(cache)
    assert [await function("k") for _ in range(2)] == ["loaded 2", "loaded 3"]
    with pytest.raises(LookupError):
        await function("k")


async def test_a_server_that_is_back_finds_the_near_tier_empty(told: Told):
    """What changed while nobody was told is seen, and what was kept for the outage is no hit and no stale value."""
    cache = await told.cache(stale_if_error=60)
    await cache.set_many({"k": "old", "gone": "old"})
    await told.kill(cache)
    assert await cache.get_or_load("k", fail) == "old"
    await told.restart(cache)
    assert cache.stats().near_entries == 0
    other = await told.cache()
    await other.set("k", "new")
    await eventually(lambda: readable(cache, "k", "new"))
    told.server.kill()
    await eventually(lambda: cache.stats().channel_losses == 2)
    with pytest.raises(LookupError):
        await cache.get_or_load("gone", fail)


@pytest.mark.parametrize("removal", ["set", "delete", "delete_many", "invalidate_tags", "clear"])
async def test_what_this_process_changes_during_the_outage_does_not_answer(told: Told, removal: str):
    """Although the far tier cannot confirm it."""
    cache = await told.cache(stale_if_error=60)
    await cache.set("k", "v", tags=["t"])
    await told.kill(cache)
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "set": lambda: cache.set("k", "new"),
        "delete": lambda: cache.delete("k"),
        "delete_many": lambda: cache.delete_many(["k"]),
        "invalidate_tags": lambda: cache.invalidate_tags("t"),
        "clear": cache.clear,
    }
    with suppress(BackendError):
        await calls[removal]()
    with pytest.raises(LookupError):
        await cache.get_or_load("k", fail)


@pytest.mark.parametrize("removal", ["delete", "invalidate_tags", "clear"])
async def test_what_others_removed_just_before_the_outage_does_not_answer(told: Told, removal: str):
    """It was told in time."""
    cache, other = await told.cache(stale_if_error=60), await told.cache()
    await cache.set("k", "v", tags=["t"])
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "delete": lambda: other.delete("k"),
        "invalidate_tags": lambda: other.invalidate_tags("t"),
        "clear": other.clear,
    }
    assert cache.peek("k") == "v"
    await calls[removal]()
    await eventually(lambda: cache.peek("k") is None)
    await told.kill(cache)
    with pytest.raises(LookupError):
        await cache.get_or_load("k", fail)


async def test_a_server_that_refuses_to_tell_after_a_loss_finds_the_near_tier_empty(told: Told):
    """From then on near copies are trusted for a time, but none from before: it may have changed with nobody to tell."""
    cache, other = await told.cache(stale_if_error=60), await told.cache()
    await cache.set("k", "old")
    assert cache.peek("k") == "old"
    async with Redis.from_url(told.server.url) as raw:
        await raw.execute_command("ACL", "SETUSER", "default", "-client|tracking", "-subscribe")
        await raw.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    await eventually(lambda: stored(other, "k", "new"))

    def refused() -> bool:
        told.clock.advance(0.1)
        return cache._shared.channel.state == "refused"  # type: ignore[union-attr] - there is one

    await eventually(refused)
    assert cache.peek("k") is None
    assert await cache.get("k") == "new"


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


@pytest.mark.parametrize("memory", [100, None], ids=["near", "far"])
async def test_what_is_written_after_a_kept_clear_has_arrived_is_seen_by_all(
    private_redis: Callable[..., PrivateRedis], memory: int | None
):
    """On a server that came back empty, too, where the epoch is lost and made anew."""
    server = private_redis()
    policy = Policy(backend_timeout=BUSY)
    async with (
        Cache(opened(server.url), namespace="n", memory=memory, policy=policy) as cache,
        Cache(opened(server.url), namespace="n", memory=None, policy=policy) as other,
    ):
        await cache.set("k", "before")
        server.kill()
        with pytest.raises(BackendError):
            await cache.clear()
        server.restart()
        await eventually(lambda: cache.stats().replay_waiting == 0)
        assert cache.stats().replayed == 1
        await cache.set("k", "v")
        await cache.set_many({"of many": "v"})
        await cache.set("tagged", "v", tags=["t"])
        for key in ("k", "of many", "tagged"):
            assert (await cache.get(key), await other.get(key)) == ("v", "v")
