"""Law 3: what anybody changes in the far tier, no near tier answers with from the moment it was told, or with bounded
delay where it cannot be told.

Clocks stand still where nothing else is said, so that nothing ends of itself: neither near copies nor trust.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

import pytest
import redis
from redis import asyncio as aioredis
from redis.crc import key_slot

from acache import BackendError, Cache, ConfigurationError, Memory, MemoryBackend, Msgpack, Policy
from acache.backends.redis import RedisBackend
from acache.clock import FOREVER
from acache.coherence import EPOCH
from acache.coherence.channel import HEARTBEAT, TRUST
from acache.entry import Envelope, new_token, pack
from acache.events import ChannelChanged, InvalidationReceived
from acache.testing import FakeClock, Recorder
from acache.tiers import NEAR_TTL

if TYPE_CHECKING:
    Until = Callable[[Callable[[], object]], Awaitable[None]]
    Settle = Callable[..., Awaitable[None]]

MISS: Final = "(a miss)"
PATIENT: Final = Policy(backend_timeout=30, ttl=3600)
FAR: Final = {
    "redis": ("redis_url", {}),
    "valkey": ("valkey_url", {}),
    "cluster": ("redis_cluster_url", {}),
    "redis pool": ("redis_url", {"multiplex": False}),
    "cluster pool": ("redis_cluster_url", {"multiplex": False}),
    "redis RESP2": ("redis_url", {"protocol": 2}),
    "cluster RESP2": ("redis_cluster_url", {"protocol": 2}),
}
SHARED: Final = ("redis", "valkey", "cluster")


@dataclass
class Far:
    """A far tier, and caches over it that stand for processes of their own."""

    url: str
    multiplex: bool = True
    clock: FakeClock = field(default_factory=FakeClock)
    namespace: str = field(default_factory=lambda: f"coherent-{uuid.uuid4().hex}")
    caches: list[Cache] = field(default_factory=list)

    @property
    def raw(self) -> Any:
        """Another program's client."""
        if "cluster" in self.url:
            return aioredis.RedisCluster.from_url(self.url.replace("redis+cluster", "redis"))
        return aioredis.Redis.from_url(self.url)

    def wire(self, key: str) -> str:
        return f"{self.namespace}::{key}"

    def backend(self, **options: Any) -> RedisBackend:
        return RedisBackend.from_url(self.url, multiplex=self.multiplex, **{"timeout": 10, **options})

    def cache(self, backend: RedisBackend | None = None, **options: Any) -> Cache:
        given = {"namespace": self.namespace, "policy": PATIENT, "clock": self.clock, **options}
        cache = Cache(backend or self.backend(), **given)
        self.caches.append(cache)
        return cache

    async def near(self, cache: Cache, key: str, value: Any) -> None:
        """Have a value near, whoever wrote it."""
        async with asyncio.timeout(20):
            while cache.peek(key, MISS) != value:
                assert await cache.get(key, MISS) == value
                await asyncio.sleep(0)  # the echo of one's own write may be on its way
        await self.told(cache)
        if cache.peek(key, MISS) == MISS:
            assert await cache.get(key) == value

    async def told(self, cache: Cache) -> None:
        """Let everything be told that happened until now."""
        channel = cache._shared.channel
        assert channel is not None
        await channel._tracking.check(tuple(channel._members))

    async def aclose(self) -> None:
        for cache in self.caches:
            await cache.aclose()


def far_of(request: pytest.FixtureRequest, name: str) -> Far:
    service, options = FAR[name]
    url = request.getfixturevalue(service)
    if "cluster" in name:
        url = url.replace("redis://", "redis+cluster://", 1)
    if "protocol" in options:
        url += f"?protocol={options['protocol']}"
    return Far(url, multiplex=options.get("multiplex", True))


@pytest.fixture(params=list(FAR))
async def far(request: pytest.FixtureRequest) -> AsyncIterator[Far]:
    far = far_of(request, request.param)
    yield far
    await far.aclose()


@pytest.fixture(params=SHARED)
async def shared_far(request: pytest.FixtureRequest) -> AsyncIterator[Far]:
    far = far_of(request, request.param)
    yield far
    await far.aclose()


@pytest.fixture
async def one_far(request: pytest.FixtureRequest) -> AsyncIterator[Far]:
    far = far_of(request, "redis")
    yield far
    await far.aclose()


# ----------------------------------------------------------------------------------------------------- who changes it


async def raw_write(far: Far, raw: Any, value: Any) -> None:
    """Write an entry as another program of ours would, without an end: under the epoch that the namespace has."""
    epoch = far.wire("@tag:")
    await raw.set(epoch, new_token(), nx=True)
    payload = Msgpack().encode(value)
    envelope = Envelope(new_token(), 1e9, FOREVER, FOREVER, 0.0, "msgpack", (), payload, await raw.get(epoch))
    await raw.set(far.wire("k"), pack(envelope))


async def raw_set(far: Far, _: Cache) -> None:
    async with far.raw as raw:
        await raw.set(far.wire("k"), b"12")


async def raw_delete(far: Far, _: Cache) -> None:
    async with far.raw as raw:
        await raw.delete(far.wire("k"))


async def raw_unlink(far: Far, _: Cache) -> None:
    async with far.raw as raw:
        await raw.unlink(far.wire("k"))


async def raw_expiry(far: Far, _: Cache) -> None:
    async with far.raw as raw:
        await raw.set(far.wire("k"), b"12", px=20)
        while await raw.exists(far.wire("k")):
            await asyncio.sleep(0.01)


async def raw_script(far: Far, _: Cache) -> None:
    async with far.raw as raw:
        await raw.eval("redis.call('SET', KEYS[1], '12')", 1, far.wire("k"))


async def set_elsewhere(_: Far, other: Cache) -> None:
    await other.set("k", "new")


async def set_many_elsewhere(_: Far, other: Cache) -> None:
    await other.set_many({"k": "new", "other": 1})


async def delete_elsewhere(_: Far, other: Cache) -> None:
    await other.delete("k")


async def delete_many_elsewhere(_: Far, other: Cache) -> None:
    await other.delete_many(["k", "other"])


async def touch_elsewhere(_: Far, other: Cache) -> None:
    assert await other.touch("k", ttl=1)


async def invalidate_elsewhere(_: Far, other: Cache) -> None:
    await other.invalidate_tags("t")


async def clear_elsewhere(_: Far, other: Cache) -> None:
    await other.clear()


CHANGES: Final = (
    *(raw_set, raw_delete, raw_unlink, raw_expiry, raw_script, set_elsewhere, set_many_elsewhere, delete_elsewhere),
    *(delete_many_elsewhere, touch_elsewhere, invalidate_elsewhere, clear_elsewhere),
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
async def test_a_change_by_anybody_else_ends_the_near_copy(
    far: Far, until: Until, change: Callable[[Far, Cache], Awaitable[None]]
):
    """Another program's, another process's, or the end of the entry: it is told, and no time has to pass."""
    reader, other = far.cache(), far.cache()
    await other.set("k", "old", tags=["t"])
    await far.near(reader, "k", "old")
    await change(far, other)
    await until(lambda: reader.peek("k", MISS) == MISS)
    assert await reader.get("k", MISS) == await other.get("k", MISS)
    assert reader.stats().coherence == "tracking"


@pytest.mark.parametrize("change", [delete_elsewhere, invalidate_elsewhere], ids=lambda change: change.__name__)
async def test_a_decorated_function_forgets_too(far: Far, until: Until, change: Callable[..., Awaitable[None]]):
    """The shortcut of a decorated hit ends with the near copy."""
    reader, other = far.cache(), far.cache()
    answers = itertools.count()

    @reader.cached(key="{name}", tags=["t"])
    async def function(name: str) -> int:
        return next(answers)

    await reader.set("another", 1, tags=["t"])  # or the echo of the making of a tag refuses the first fill
    await far.told(reader)
    first = await function("k")
    async with asyncio.timeout(20):  # the second call finds it near, or after an echo, puts it there
        while reader.peek("k", MISS) == MISS:
            assert await function("k") == first
    await far.told(reader)
    for _ in range(3):
        assert await function("k") == first
    await change(far, other)
    await until(lambda: reader.peek("k", MISS) == MISS)
    assert await function("k") == first + 1


@pytest.mark.parametrize("flush", ["FLUSHALL", "FLUSHDB", "SWAPDB"])
async def test_a_flush_ends_everything(private_redis: Callable[..., Any], until: Until, flush: str):
    """Tags and their loads included."""
    far = Far(private_redis().url)
    reader = far.cache()
    await reader.set("plain", 1)
    await reader.set("tagged", 2, tags=["t"])
    async with far.raw as raw:
        await raw.execute_command(flush, *(["0", "1"] if flush == "SWAPDB" else []))
        if flush == "SWAPDB":  # is told of no key, so this is what it takes
            await raw.flushdb()
    await until(lambda: reader.peek("plain", MISS) == MISS)
    assert reader.peek("tagged", MISS) == MISS
    assert await reader.get_many(["plain", "tagged"]) == {}
    await far.aclose()


@pytest.mark.parametrize("what", ["flushed", "cleared", "invalidated"])
@pytest.mark.parametrize("tags", [[], ["t"]], ids=["untagged", "tagged"])
async def test_a_write_after_the_end_of_everything_stays_although_that_was_not_heard_yet(
    private_redis: Callable[..., Any], what: str, tags: list[str]
):
    """The word of it is on the connection before the answer to the write."""
    far = Far(private_redis().url)
    writer, other = far.cache(), far.cache(coherence=None, memory=None)
    keys = writer._remote._keys  # type: ignore[union-attr] - there is one

    def end() -> None:
        with redis.Redis.from_url(far.url) as raw:  # which does not let the loop read
            if what == "flushed":
                raw.flushall()
            else:
                assert raw.set(keys.tag(EPOCH if what == "cleared" else "t"), bytes(range(8)))

    await writer.set("k", "old", ttl=None, tags=["t"])
    await far.told(writer)
    end()
    assert await writer.add("n", 3, ttl=None, tags=tags) is True
    assert await other.get("n") == 3
    assert await writer.get("n") == 3
    await far.told(writer)
    end()
    await writer.set("k", "newest", ttl=None, tags=tags)
    assert await other.get("k") == "newest"
    assert await writer.get("k") == "newest"
    await far.told(writer)
    assert await writer.get("k") == "newest"
    end()
    await writer.set_many({"l": 5, "m": 6}, ttl=None, tags=tags)
    assert await other.get_many(["l", "m"]) == {"l": 5, "m": 6}
    await far.aclose()


async def test_evicted_entries_leave_the_near_tier(private_redis: Callable[..., Any], until: Until):
    """A server that needs room tells what it took."""
    far = Far(private_redis("--maxmemory", "3mb", "--maxmemory-policy", "allkeys-lru").url)
    reader = far.cache()
    await reader.set("k", 1)
    async with far.raw as raw:
        for number in itertools.count():
            await raw.set(f"filler {number}", bytes(50_000))
            if not await raw.exists(far.wire("k")):
                break
    await until(lambda: reader.peek("k", MISS) == MISS)
    await far.aclose()


@pytest.mark.parametrize("writer", ["near", "far only", "backend"])
async def test_whoever_uses_the_same_backend_is_somebody_else(far: Far, until: Until, writer: str):
    """Two caches over one backend object, a cache without a near tier, and the backend itself: all are heard."""
    backend = far.backend()
    reader = far.cache(backend)
    await reader.set("k", "old")
    await far.near(reader, "k", "old")
    if writer == "backend":
        await backend.delete(far.wire("k"))
    else:
        await far.cache(backend, memory=10 if writer == "near" else None).set("k", "new")
    await until(lambda: reader.peek("k", MISS) == MISS)
    assert await reader.get("k", MISS) == (MISS if writer == "backend" else "new")


async def test_views_are_heard_apart(far: Far, until: Until):
    """Each namespace gets what is its own; one that is opened later, too."""
    a, other = far.cache(), far.cache()
    await a.set("k", "a")
    await far.near(a, "k", "a")
    b = a.view(namespace=f"{far.namespace}:b")
    await b.set("k", "b")
    await far.near(b, "k", "b")
    await other.view(namespace=f"{far.namespace}:b").set("k", "new")
    await until(lambda: b.peek("k", MISS) == MISS)
    assert a.peek("k", MISS) == "a"
    assert await b.get("k") == "new"


@pytest.mark.parametrize("key", ["k", "@k", "@tag:k", "::k", "k::l", "ключ", "k" * 4000, "k" * 5000, "@" + "é" * 3000])
@pytest.mark.parametrize("namespace", [True, False])
async def test_every_key_is_known_again(one_far: Far, until: Until, key: str, namespace: bool):
    """What stands for a key on the wire leads back to it, digests included; with a namespace and without."""
    if not namespace:
        one_far.namespace, key = "", f"{key} of {one_far.namespace}"
    reader, other = one_far.cache(), one_far.cache()
    await other.set(key, "old", ttl=60)
    await one_far.near(reader, key, "old")
    await reader.set("beside " + key, 1, ttl=60)
    await other.set(key, "new", ttl=60)
    await until(lambda: reader.peek(key, MISS) == MISS)
    assert reader.peek("beside " + key) == 1
    assert await reader.get(key) == "new"
    await reader.delete_many([key, "beside " + key])


async def test_many_long_keys_stay_bounded_and_known(one_far: Far, until: Until):
    """More keys than are remembered by their digests: those that are near are heard of."""
    reader, other = one_far.cache(), one_far.cache()
    keys = [f"{number} {'x' * 5000}" for number in range(1500)]
    await other.set_many(dict.fromkeys(keys, "old"), ttl=60)
    assert len(await reader.get_many(keys)) == len(keys)
    await other.set_many(dict.fromkeys(keys, "new"), ttl=60)
    await one_far.told(reader)
    assert [key for key in keys if reader.peek(key, MISS) == "old"] == []
    assert len(reader._scope._digests) <= 1000


async def test_one_s_own_writes_stay_near(shared_far: Far):
    """On a shared connection they do not come back, so a value that was written or loaded need not be read again."""
    cache = shared_far.cache()

    async def load() -> str:
        return "loaded"

    await cache.set("set", 1, tags=["t"])
    await cache.set_many({"a": 2, "b": 3})
    assert await cache.get_or_load("loaded", load, tags=["new tag"]) == "loaded"
    assert await cache.add("added", 4)
    await shared_far.told(cache)
    assert [cache.peek(key, MISS) for key in ("set", "a", "b", "loaded", "added")] == [1, 2, 3, "loaded", 4]


async def test_a_load_over_a_tombstone_is_stored_and_not_refused(far: Far):
    """A script's write comes back as a message: that costs the near copy at most."""
    cache = far.cache()

    async def load() -> str:
        return "loaded"

    for _ in range(5):
        await cache.set("k", "old")
        await cache.delete("k")
        assert await cache.get_or_load("k", load) == "loaded"
        assert await far.cache(memory=None).get("k", MISS) == "loaded"
    assert cache.stats().fills_refused == 0


async def test_an_entry_that_ends_is_loaded_once(far: Far):
    """The server tells that it has ended, perhaps when it is asked for it: the load that follows is stored."""
    cache = far.cache()
    loads = itertools.count()

    async def load() -> int:
        return next(loads)

    await far.cache(memory=None).set("another", 1)  # or the echo of the making of an epoch refuses the first fill
    async with far.raw as raw:
        for number in range(10):
            await raw.set(far.wire("k"), b"12", px=5)
            await asyncio.sleep(0.006)
            values = await asyncio.gather(*[cache.get_or_load("k", load) for _ in range(5)])
            if values == [12] * 5:  # not ended yet, on a busy machine
                continue
            assert len(set(values)) == 1
            assert await far.cache(memory=None).get("k", MISS) == values[0], number
    assert cache.stats().fills_refused == 0


# ------------------------------------------------------------------------------------------------------------- crossing


class HeldBackend(RedisBackend):
    """Holds what was read until the test lets it go."""

    reached: asyncio.Event
    gate: asyncio.Event

    async def _held(self, answer: Awaitable[Any]) -> Any:
        found = await answer
        if hasattr(self, "reached"):
            self.reached.set()
            await self.gate.wait()
        return found

    async def get(self, key: str, /) -> Any:
        return await self._held(super().get(key))

    async def get_versioned(self, key: str, /) -> Any:
        return await self._held(super().get_versioned(key))

    async def get_many(self, keys: Any, /) -> Any:
        return await self._held(super().get_many(keys))


async def by_get(cache: Cache, _: Any) -> Any:
    return await cache.get("k")


async def by_get_many(cache: Cache, _: Any) -> Any:
    return (await cache.get_many(["k"])).get("k")


async def by_load(cache: Cache, load: Any) -> Any:
    return await cache.get_or_load("k", load)


async def never() -> Any:
    raise AssertionError


@pytest.mark.parametrize("read", [by_get, by_get_many, by_load], ids=lambda read: read.__name__)
async def test_a_value_that_was_read_while_it_changed_is_not_kept(
    far: Far, until: Until, read: Callable[[Cache, Any], Awaitable[Any]]
):
    """The message comes after the server answered and before the answer is kept."""
    backend = HeldBackend.from_url(far.url, multiplex=far.multiplex, timeout=10)
    reader, other = far.cache(backend), far.cache()
    await other.set("k", "old")
    await reader.get("open the channel")
    held: Any = reader._shared.backend
    held.reached, held.gate = asyncio.Event(), asyncio.Event()
    task = asyncio.ensure_future(read(reader, never))
    await held.reached.wait()
    await other.set("k", "new")
    await until(lambda: reader.stats().invalidations_received)
    held.gate.set()
    assert await task == "old"
    assert reader.peek("k", MISS) == MISS
    assert await reader.get("k") == "new"


@pytest.mark.parametrize("again", [False, True], ids=["once", "again"])
@pytest.mark.parametrize("change", [raw_delete, delete_elsewhere, invalidate_elsewhere], ids=lambda one: one.__name__)
async def test_a_load_is_not_stored_when_its_key_changes_meanwhile(
    far: Far, until: Until, change: Callable[[Far, Cache], Awaitable[None]], again: bool
):
    """Also where the far tier could not tell: another program's plain removal of what the load had seen.

    Who comes after the change is not given what was being loaded before it.
    """
    reader, other = far.cache(), far.cache()
    await reader.set("k", "stale", ttl=10, tags=["t"])
    await far.told(reader)
    began, finish = asyncio.Event(), asyncio.Event()

    async def load() -> str:
        began.set()
        await finish.wait()
        return "loaded"

    heard = reader.stats().invalidations_received
    task = asyncio.ensure_future(reader.refresh("k", load, tags=["t"]))
    await began.wait()
    await change(far, other)
    await until(lambda: reader.stats().invalidations_received > heard)

    async def load_again() -> str:
        return "loaded again"

    if again:
        assert await reader.refresh("k", load_again, tags=["t"]) == "loaded again"
    finish.set()
    assert await task == "loaded"
    left = "loaded again" if again else MISS
    assert reader.peek("k", MISS) in (left, MISS)
    assert await other.get("k", MISS) == left
    assert reader.stats().fills_refused == 1


# ------------------------------------------------------------------------------------------------------------- failures


class Proxy:
    """Stands between a cache and a server; may cut, freeze, refuse, and hold what holds some bytes."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._flows = asyncio.Event()
        self._flows.set()
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.refuses = False
        self.holds = b"\0 nothing holds this"
        self.held = asyncio.Event()
        self.gate = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def cut(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    def freeze(self) -> None:
        self._flows.clear()

    def thaw(self) -> None:
        self._flows.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refuses:
            writer.transport.abort()
            return
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._open |= {writer, there_writer}
        for source, target in ((reader, there_writer), (there_reader, writer)):
            task = asyncio.ensure_future(self._pass_on(source, target))
            self._tasks.add(task)

    async def _pass_on(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                await self._flows.wait()
                if self.holds in data:
                    self.held.set()
                    await self.gate.wait()
                target.write(data)
        except OSError:
            pass
        finally:
            target.transport.abort()


async def found(cache: Cache, key: str) -> Any:
    """Return what is there; a connection of a pool may first have to find out that it was cut."""
    async with asyncio.timeout(20):
        while (value := await cache.get(key, MISS)) == MISS:
            await asyncio.sleep(0)
    return value


@pytest.fixture(params=[True, False], ids=["shared", "pool"])
async def behind_proxy(request: pytest.FixtureRequest, redis_url: str) -> AsyncIterator[tuple[Far, Far, Proxy]]:
    """Give a far tier by a proxy, and the same without."""
    async with Proxy(int(redis_url.rpartition(":")[2].partition("/")[0])) as proxy:
        near = Far(proxy.url, multiplex=request.param)
        direct = Far(redis_url, namespace=near.namespace)
        yield near, direct, proxy
        proxy.thaw()
        await near.aclose()
        await direct.aclose()


async def test_a_lost_connection_drops_the_near_tier_until_it_tells_again(
    behind_proxy: tuple[Far, Far, Proxy], until: Until
):
    """What changed while nobody was told is seen, and so is what changes after it is back."""
    far, direct, proxy = behind_proxy
    recorder = Recorder()
    reader, other = far.cache(observers=(recorder,), clock=None), direct.cache(clock=None)
    await other.set("k", "old")
    await far.near(reader, "k", "old")
    proxy.refuses = True
    proxy.cut()
    await until(lambda: reader.peek("k", MISS) == MISS)
    assert reader.stats().channel_losses == 1
    assert reader.stats().near_entries == 0
    await other.set("k", "while away")
    proxy.refuses = False
    await until(lambda: reader.stats().channel_restorations == 1)
    assert await found(reader, "k") == "while away"
    await far.near(reader, "k", "while away")
    await other.set("k", "afterwards")
    await until(lambda: reader.peek("k", MISS) == MISS)
    assert await reader.get("k") == "afterwards"
    assert [event.state for event in recorder.of(ChannelChanged)] == ["armed", "lost", "armed"]
    assert recorder.of(InvalidationReceived)[-1].key == "k"


async def test_nothing_is_kept_between_the_connection_and_the_tracking(redis_url: str, until: Until):
    """A connection that is back does not tell yet: what is read meanwhile is not kept."""
    async with Proxy(int(redis_url.rpartition(":")[2].partition("/")[0])) as proxy:
        far = Far(proxy.url, multiplex=False)
        direct = Far(redis_url, namespace=far.namespace)
        reader, other = far.cache(clock=None), direct.cache(clock=None)
        await other.set("k", "old")
        await far.near(reader, "k", "old")
        proxy.holds = b"TRACKING"
        proxy.cut()
        await proxy.held.wait()
        assert await found(reader, "k") == "old"
        assert reader.peek("k", MISS) == MISS
        await other.set("k", "new")
        proxy.gate.set()
        await until(lambda: reader.stats().channel_restorations == 1)
        assert await reader.get("k") == "new"
        await far.aclose()
        await direct.aclose()


async def test_a_value_read_before_the_tracking_and_kept_after_it(redis_url: str, until: Until):
    """The read began when nobody told; what changed before somebody did would never be told."""
    async with Proxy(int(redis_url.rpartition(":")[2].partition("/")[0])) as proxy:
        far = Far(proxy.url, multiplex=False)
        direct = Far(redis_url, namespace=far.namespace)
        reader, other = (
            far.cache(HeldBackend.from_url(proxy.url, multiplex=False), clock=None),
            direct.cache(clock=None),
        )
        await other.set("k", "old")
        await far.near(reader, "k", "old")
        proxy.holds = b"TRACKING"
        proxy.cut()
        await proxy.held.wait()
        assert await found(reader, "k") == "old"
        held: Any = reader._shared.backend
        held.reached, held.gate = asyncio.Event(), asyncio.Event()
        task = asyncio.ensure_future(reader.get("k"))
        await held.reached.wait()
        await other.set("k", "new")
        proxy.gate.set()
        await until(lambda: reader.stats().channel_restorations == 1)
        held.gate.set()
        assert await task == "old"
        assert reader.peek("k", MISS) == MISS
        assert await reader.get("k") == "new"
        await far.aclose()
        await direct.aclose()


async def test_killed_connections(private_redis: Callable[..., Any], until: Until):
    """CLIENT KILL again and again, with a change each time, is a loss each time."""
    far = Far(private_redis().url)
    reader = far.cache(clock=None)
    async with far.raw as raw:
        for number in range(10):
            await raw_write(far, raw, number)
            await far.near(reader, "k", number)
            await raw.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await raw_write(far, raw, number + 1)
            await until(lambda: reader.peek("k", MISS) == MISS)
            assert await found(reader, "k") == number + 1
            await until(lambda: reader.stats().channel_restorations > number)
    assert reader.stats().channel_losses == 10
    await far.aclose()


async def test_a_restarted_server(private_redis: Callable[..., Any], until: Until):
    """A server that died takes the near tier along; when it is back, tracking is."""
    server = private_redis()
    far = Far(server.url)
    reader = far.cache(clock=None)
    await reader.set("k", "old")
    assert reader.peek("k") == "old"
    server.kill()
    await until(lambda: reader.peek("k", MISS) == MISS)
    server.restart()
    await until(lambda: reader.stats().channel_restorations == 1)
    assert await reader.get("k", MISS) == MISS
    await far.aclose()


async def ask_nobody(cache: Cache, _: Any) -> Any:
    return cache.peek("k", MISS)


@pytest.mark.parametrize("read", [ask_nobody, by_get, by_get_many, by_load], ids=lambda read: read.__name__)
async def test_a_silent_partition_is_bounded(behind_proxy: tuple[Far, Far, Proxy], read: Callable[..., Awaitable[Any]]):
    """No message comes, and no end of the connection: the near tier answers until the bound, and no longer."""
    far, direct, proxy = behind_proxy
    reader, other = far.cache(policy=Policy(backend_timeout=0.2, ttl=3600)), direct.cache()

    async def load() -> str:
        return "loaded"

    await other.set("k", "old")
    await far.near(reader, "k", "old")
    proxy.freeze()
    await other.set("k", "new")
    far.clock.advance(TRUST - 0.01)
    assert await read(reader, load) == "old"
    far.clock.advance(0.02)
    assert await read(reader, load) in (MISS, None, "loaded")
    proxy.thaw()


async def test_trust_that_ended_with_nothing_lost_comes_back(one_far: Far, until: Until):
    """A process that was stopped, or a loop that was blocked: nothing near is served before a check has returned."""
    reader, other = one_far.cache(), one_far.cache()
    await other.set("k", "old")
    await other.set("unchanged", 1)
    await one_far.near(reader, "k", "old")
    await one_far.near(reader, "unchanged", 1)

    @reader.cached(key="{name}")
    async def function(name: str) -> str:
        return "loaded"

    assert await function("k") == "old"
    audience: Any = reader._shared.channel._tracking._audience  # type: ignore[union-attr] - there is one
    told: list[Any] = []
    audience.heard = told.append  # what is told now is still in the socket ...
    await other.set("k", "new")
    await until(lambda: told)
    one_far.clock.advance(TRUST + 100)  # ... of a process that was stopped
    assert reader.peek("k", MISS) == MISS
    assert reader.peek("unchanged", MISS) == MISS
    assert await function("k") == "new"
    assert await reader.get_or_load("k", never) == "new"
    assert await reader.get("k") == "new"
    del audience.heard
    audience.heard(told[0])
    await until(lambda: reader.peek("unchanged", MISS) == 1)
    assert reader.stats().channel_losses == 0


@pytest.mark.parametrize("coherence", ["auto", "messages"])
async def test_views_of_new_namespaces_that_are_used_at_once_do_not_wait_for_their_deadlines(
    redis_url: str, coherence: Any
):
    """Each is told of as soon as the server knows of it, whoever else comes meanwhile."""
    policy = Policy(backend_timeout=60)
    async with Cache.from_url(
        redis_url, namespace=f"views-{uuid.uuid4().hex}", policy=policy, coherence=coherence
    ) as cache:
        await cache.get("k")

        async def ask(number: int) -> None:
            await asyncio.sleep(0)
            view = cache.view(namespace=f"{cache.namespace}-{number}")
            assert await view.get("k") is None
            await view.set("k", number)
            assert await view.get("k") == number
            await view.clear()

        async with asyncio.timeout(30):
            await asyncio.gather(*[ask(number) for number in range(20)])


async def test_a_heartbeat_keeps_trust(one_far: Far, until: Until):
    """As long as the server answers, near copies live for their whole time."""
    reader = one_far.cache()
    await reader.set("k", 1, ttl=3600)
    channel = reader._shared.channel
    assert channel is not None
    for _ in range(20):
        one_far.clock.advance(HEARTBEAT)
        began = one_far.clock.monotonic()
        await until(lambda: channel._until() == began + TRUST)
        assert reader.peek("k") == 1
    assert reader.stats().hits_far == 0


async def test_who_waits_for_the_first_answer_does_not_wait_for_ever(redis_url: str):
    """A server that does not answer costs the first callers their deadline, and nobody his answer."""
    async with Proxy(int(redis_url.rpartition(":")[2].partition("/")[0])) as proxy:
        proxy.freeze()
        far = Far(proxy.url)
        cache = far.cache(policy=Policy(backend_timeout=0.1))

        async def load() -> str:
            return "loaded"

        async with asyncio.timeout(5):
            assert await asyncio.gather(*[cache.get_or_load("k", load) for _ in range(10)]) == ["loaded"] * 10
        assert cache.stats().near_entries == 0
        await far.aclose()


# -------------------------------------------------------------------------------------------------------------- refusal


@pytest.fixture
async def refusing(private_redis: Callable[..., Any]) -> AsyncIterator[Far]:
    """Give a server that does not allow CLIENT TRACKING."""
    server = private_redis()
    async with aioredis.Redis.from_url(server.url) as admin:
        await admin.execute_command(
            "ACL", "SETUSER", "cache", "reset", "on", ">pass", "~*", "+@all", "-client|tracking"
        )
    far = Far(f"redis://cache:pass@127.0.0.1:{server.port}")
    yield far
    await far.aclose()


async def test_a_server_that_refuses_leaves_time_as_the_bound(
    refusing: Far, caplog: pytest.LogCaptureFixture, until: Until
):
    """Near copies are kept for a few seconds; the log and the statistics say so; it is asked again now and then."""
    recorder = Recorder()
    cache, other = refusing.cache(observers=(recorder,)), refusing.cache(memory=None)
    with caplog.at_level(logging.WARNING, "acache"):
        await cache.set("k", "old")
    assert "does not tell of changes" in caplog.text
    assert cache.stats().coherence is None
    assert [event.state for event in recorder.of(ChannelChanged)] == ["refused"]
    await other.set("k", "new")
    refusing.clock.advance(NEAR_TTL - 0.01)
    assert await cache.get("k") == "old"
    refusing.clock.advance(0.02)
    assert await cache.get("k") == "new"
    assert cache.view(namespace="view").stats().coherence is None
    view = cache.view(namespace="view")
    await view.set("k", 1)
    assert view.peek("k") == 1
    async with aioredis.Redis.from_url(refusing.url.replace("cache:pass@", "")) as admin:
        await admin.execute_command("ACL", "SETUSER", "cache", "+client|tracking")
    refusing.clock.advance(60)
    await until(lambda: cache.stats().coherence == "tracking")
    assert view.peek("k", MISS) == MISS
    await cache.set("k", "old")
    await other.set("k", "new")
    await until(lambda: cache.peek("k", MISS) == MISS)


async def test_who_insists_is_told_of_a_refusal(refusing: Far):
    """Every operation that would use the near tier raises; when it is allowed again, all works."""
    cache = refusing.cache(coherence="tracking", clock=None)
    with pytest.raises(BackendError, match="CLIENT TRACKING"):
        await cache.set("k", 1)
    with pytest.raises(BackendError, match="CLIENT TRACKING"):
        await cache.get("k")
    async with aioredis.Redis.from_url(refusing.url.replace("cache:pass@", "")) as admin:
        await admin.execute_command("ACL", "SETUSER", "cache", "+client|tracking")
    async with asyncio.timeout(20):
        while True:
            try:
                await cache.set("k", 1)
                break
            except BackendError:
                await asyncio.sleep(0.05)
    assert cache.peek("k") == 1


async def test_contradictions_are_refused_at_construction():
    """With the sentence that mends them."""
    contradictions: list[tuple[dict[str, Any], str]] = [
        ({"coherence": "tracking", "memory": None}, "near tier"),
        ({"coherence": "tracking"}, "MemoryBackend"),
        ({"coherence": "sometimes"}, "auto"),
    ]
    for options, word in contradictions:
        with pytest.raises(ConfigurationError, match=word):
            Cache(MemoryBackend(), **options)
    with pytest.raises(ConfigurationError, match="backend"):
        Cache(coherence="tracking")


async def test_switched_off_is_bounded_by_time(one_far: Far):
    """As over an engine that does not tell."""
    cache, other = one_far.cache(coherence=None), one_far.cache()
    await cache.set("k", "old")
    await other.set("k", "new")
    await one_far.told(other)
    assert cache.peek("k") == "old"
    assert cache.stats().coherence is None
    one_far.clock.advance(NEAR_TTL)
    assert await cache.get("k") == "new"


async def test_the_near_tier_s_own_bound_holds(one_far: Far, until: Until):
    """Memory(ttl=...) ends near copies that nobody changed."""
    cache = one_far.cache(memory=Memory(ttl=2))
    await cache.set("k", 1)
    one_far.clock.advance(1.9)
    assert cache.peek("k") == 1
    one_far.clock.advance(0.1)
    await until(lambda: cache._trust.until > one_far.clock.monotonic())
    assert cache.peek("k", MISS) == MISS


# ----------------------------------------------------------------------------------------------------------- life, loops


async def test_closing_ends_the_heartbeat_and_opening_begins_it(one_far: Far, until: Until):
    """Nothing is left running, nothing near is trusted; a cache that is opened again is coherent again."""
    cache, other = one_far.cache(), one_far.cache()
    for _ in range(3):
        async with cache:
            await cache.set("k", "old")
            assert cache.peek("k") == "old"
            await other.set("k", "new")
            await until(lambda: cache.peek("k", MISS) == MISS)
        assert [task for task in asyncio.all_tasks() if task.get_name() == "acache heartbeat"] == []
        assert cache._shared.channel is not None
        assert cache._shared.channel._timer is None


@pytest.mark.parametrize("name", ["redis", "redis pool", "cluster"])
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("uvloop", [False, True], ids=["asyncio", "uvloop"])
def test_one_loop_after_the_other(request: pytest.FixtureRequest, name: str, uvloop: bool):
    """A cache that is used in several loops hears in each of them."""
    factory = pytest.importorskip("uvloop").new_event_loop if uvloop else None
    far = far_of(request, name)
    reader = far.cache()

    async def use(number: int) -> None:
        async with far.raw as raw:
            await raw_write(far, raw, number)
            far.clock.advance(TRUST)  # what the loop before it was told is worth nothing now
            async with asyncio.timeout(20):
                while reader.peek("k", MISS) != number:
                    assert await reader.get("k") == number
            await raw_write(far, raw, number + 1)
            async with asyncio.timeout(20):
                while reader.peek("k", MISS) != MISS:
                    await asyncio.sleep(0)
            assert await reader.get("k") == number + 1

    for number in range(3):
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(use(number))
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(far.aclose())


async def test_a_cache_that_nobody_holds_is_not_kept_alive_by_its_channel(one_far: Far, until: Until):
    """Its heartbeat ends with it."""
    import gc
    import weakref

    gc.collect()  # what others left must not raise in here, and hold these frames
    backend = one_far.backend()
    cache = Cache(backend, namespace=one_far.namespace, clock=one_far.clock)
    await cache.set("k", 1)
    twin, channel = cache._shared.backend, weakref.ref(cache._shared.channel)
    del cache

    def gone() -> bool:
        gc.collect()
        return channel() is None

    await until(gone)
    one_far.clock.advance(10)
    await twin.aclose()  # type: ignore[union-attr] - there is one


# -------------------------------------------------------------------------------------------------------------- history


async def test_nobody_reads_backwards(behind_proxy: tuple[Far, Far, Proxy]):
    """One writer counts up; connections break; every reader sees the numbers in their order, near and far."""
    far, direct, proxy = behind_proxy
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    database, written = 0, asyncio.Event()
    writer = direct.cache(clock=None)
    readers = [far.cache(clock=None, policy=Policy(ttl=60)) for _ in range(2)]

    async def load() -> int:
        now = database
        await asyncio.sleep(0)
        return now

    async def write() -> None:
        nonlocal database
        for _ in range(400):
            database += 1
            way = chance.choice(["set", "set", "delete", "tags"])
            if way == "set":
                await writer.set("k", database, tags=["t"])
            elif way == "delete":
                await writer.delete("k")
            else:
                await writer.invalidate_tags("t")
            if chance.random() < 0.03:
                proxy.cut()
            await asyncio.sleep(chance.choice([0, 0, 0.002]))
        written.set()

    async def read(cache: Cache) -> None:
        last = 0
        while not written.is_set():
            for way in ("load", "get", "many"):
                if way == "load":
                    # Its own loads see the database before the far tier does: they may be ahead, and are no measure.
                    await cache.get_or_load("k", load, tags=["t"])
                    continue
                if way == "get":
                    value = await cache.get("k", last)
                else:
                    value = (await cache.get_many(["k"])).get("k", last)
                assert value >= last, (seed, way)
                last = value
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        group.create_task(write())
        for cache in readers:
            group.create_task(read(cache))
    for cache in readers:
        async with asyncio.timeout(20):
            while await cache.get_or_load("k", load, tags=["t"]) != database:
                await asyncio.sleep(0.01)
        assert cache.stats().hits_near > 0, seed
        assert cache.stats().invalidations_received > 0, seed


# ------------------------------------------------------------------------------------------------- masters come and go


CLUSTERED: Final = (
    "--cluster-enabled",
    "yes",
    "--cluster-node-timeout",
    "1000",
    "--cluster-require-full-coverage",
    "no",
)


def ask(server: Any, *words: str) -> str:
    """Return the reply to a command; an error, as text."""
    services = sys.modules[type(server).__module__]
    try:
        return str(services.ask_redis(server.port, *words))
    except services.NotReadyError as error:
        return str(error)


async def so(condition: Callable[[], bool]) -> None:
    """Wait for what only servers among themselves bring about."""
    async with asyncio.timeout(30):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.02)


async def cluster_and_one_more(private_redis: Callable[..., Any]) -> tuple[Far, list[Any], Any]:
    """Start three masters, and a node that owns nothing yet."""
    nodes = [private_redis(*CLUSTERED) for _ in range(3)]
    sys.modules[type(nodes[0]).__module__].form_cluster([node.port for node in nodes])
    more = private_redis(*CLUSTERED)
    ask(nodes[0], "CLUSTER", "MEET", "127.0.0.1", str(more.port))
    everybody = [*nodes, more]
    names = [ask(node, "CLUSTER", "MYID") for node in everybody]
    await so(lambda: all(name in ask(node, "CLUSTER", "NODES") for node in everybody for name in names))
    await so(lambda: all("cluster_state:ok" in ask(node, "CLUSTER", "INFO") for node in everybody))
    return Far(f"redis+cluster://127.0.0.1:{nodes[0].port}"), nodes, more


async def answers_from(far: Far, reader: Cache, server: Any, until: Until) -> None:
    """See that what changes at a server reaches the reader: within the bound at first, and at once from then on."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert ask(server, "SET", far.wire("k"), "1") == "OK"
    await until(lambda: reader.peek("k", MISS) == MISS)
    assert loop.time() - began < TRUST + 1
    await until(lambda: reader.stats().channel_restorations)
    assert await found(reader, "k") == 1
    heard = reader.stats().invalidations_received
    assert ask(server, "SET", far.wire("k"), "2") == "OK"
    await until(lambda: reader.stats().invalidations_received > heard)


@pytest.mark.parametrize("multiplex", [True, False], ids=["shared", "pool"])
async def test_a_slot_that_moves_to_a_master_that_is_new(
    private_redis: Callable[..., Any], until: Until, multiplex: bool
):
    """The new owner is found by asking the old ones, and tells from then on."""
    far, nodes, more = await cluster_and_one_more(private_redis)
    far.multiplex = multiplex
    reader = far.cache(clock=None)
    await reader.set("k", "old")
    await far.near(reader, "k", "old")
    slot = str(key_slot(far.wire("k").encode()))
    source = nodes[int(slot) * 3 // 16384]
    ask(more, "CLUSTER", "SETSLOT", slot, "IMPORTING", ask(source, "CLUSTER", "MYID"))
    ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", ask(more, "CLUSTER", "MYID"))
    ask(source, "MIGRATE", "127.0.0.1", str(more.port), far.wire("k"), "0", "5000")
    for node in (more, source, *nodes):
        ask(node, "CLUSTER", "SETSLOT", slot, "NODE", ask(more, "CLUSTER", "MYID"))
    assert await found(reader, "k") == "old"
    await answers_from(far, reader, more, until)
    await far.aclose()


async def test_a_failover_in_a_cluster_that_breaks_no_connection(private_redis: Callable[..., Any], until: Until):
    """The old master becomes a replica and goes on answering; the new one's changes are told all the same."""
    far, nodes, replica = await cluster_and_one_more(private_redis)
    reader = far.cache(clock=None)
    master = nodes[key_slot(far.wire("k").encode()) * 3 // 16384]
    ask(replica, "CLUSTER", "REPLICATE", ask(master, "CLUSTER", "MYID"))
    await so(lambda: "master_link_status:up" in ask(replica, "INFO", "replication"))
    await reader.set("k", "old")
    await far.near(reader, "k", "old")
    ask(replica, "CLUSTER", "FAILOVER")
    await so(lambda: "role:master" in ask(replica, "INFO", "replication"))
    await answers_from(far, reader, replica, until)
    await far.aclose()


@pytest.mark.parametrize("multiplex", [True, False], ids=["shared", "pool"])
async def test_a_failover_by_sentinel(
    private_redis: Callable[..., Any], private_sentinel: Callable[..., Any], until: Until, multiplex: bool
):
    """The near tier is gone with the master that died, and coherent with the one that took over."""
    primary = private_redis()
    replica = private_redis("--replicaof", f"127.0.0.1 {primary.port}")
    sentinel = private_sentinel(primary.port)
    await so(lambda: "num-other-sentinels" in ask(sentinel, "INFO") or "slaves=1" in ask(sentinel, "INFO", "sentinel"))
    far = Far(f"redis+sentinel://127.0.0.1:{sentinel.port}/mymaster", multiplex=multiplex)
    reader = far.cache(clock=None)
    await reader.set("k", "old")
    await far.near(reader, "k", "old")
    primary.kill()
    await until(lambda: reader.peek("k", MISS) == MISS)
    await so(lambda: "role:master" in ask(replica, "INFO", "replication"))
    await answers_from(far, reader, replica, until)
    await far.aclose()
