"""Law 3 where the far tier refuses to tell of changes: those who make them do, by message.

Clocks stand still where nothing else is said, so no near copy ends of itself.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from redis import asyncio as aioredis

from acache import BackendUnavailable, Cache, ConfigurationError, MemoryBackend, Policy
from acache.backends.redis import RedisBackend
from acache.coherence import messages
from acache.events import BackendFailed, BreakerChanged, ChannelChanged, InvalidationReceived
from acache.testing import FakeClock, Recorder
from acache.tiers import NEAR_TTL

if TYPE_CHECKING:
    Until = Callable[[Callable[[], object]], Awaitable[None]]

MISS: Final = "(a miss)"
PATIENT: Final = Policy(backend_timeout=30, ttl=3600)
UNTRACKED: Final = ("~*", "&*", "+@all", "-client|tracking")
"""What a user may who may do all but have changes told."""


class Fleet:
    """Caches over one server that refuses CLIENT TRACKING; each stands for a process of its own."""

    def __init__(self, url: str, *, multiplex: bool = True, query: str = "") -> None:
        self.user: Final = f"fleet-{uuid.uuid4().hex[:12]}"
        self.namespace: Final = self.user
        self.clock: Final = FakeClock()
        self._admin_url: Final = url
        self.url: Final = url.replace("://", f"://{self.user}:pass@", 1) + query
        self._multiplex: Final = multiplex
        self._caches: Final[list[Cache]] = []

    async def ask(self, *command: Any) -> Any:
        """Say something as another program, to every node."""
        if "cluster" not in self._admin_url:
            async with aioredis.Redis.from_url(self._admin_url) as raw:
                return await raw.execute_command(*command)
        async with aioredis.RedisCluster.from_url(self._admin_url.replace("redis+cluster", "redis")) as raw:
            if command[0] in ("ACL", "CLIENT"):
                return [await node.execute_command(*command) for node in raw.get_nodes()]
            return await raw.execute_command(*command)

    async def allow(self, *rules: str) -> None:
        await self.ask("ACL", "SETUSER", self.user, "on", ">pass", *rules)

    def wire(self, key: str) -> str:
        return f"{self.namespace}::{key}"

    @property
    def topic(self) -> str:
        return self.wire("@changes")

    def backend(self, kind: type[RedisBackend] = RedisBackend, **options: Any) -> RedisBackend:
        return kind.from_url(self.url, multiplex=self._multiplex, timeout=10, **options)

    def cache(self, backend: RedisBackend | None = None, **options: Any) -> Cache:
        given = {"namespace": self.namespace, "policy": PATIENT, "clock": self.clock, **options}
        cache = Cache(backend or self.backend(), **given)
        self._caches.append(cache)
        return cache

    async def near(self, cache: Cache, key: str, value: Any) -> None:
        """Have a value near, whoever wrote it."""
        async with asyncio.timeout(20):
            while cache.peek(key, MISS) != value:  # what was told of it may still be on its way
                await cache.get(key, MISS)
                await asyncio.sleep(0)

    async def told(self, *caches: Cache) -> None:
        """Let these caches hear what they sent each other, by a message after it."""
        for cache, number in zip(caches, itertools.count(), strict=False):
            ear = cache._shared.messages.ears[f"{cache.namespace}::"]  # type: ignore[union-attr] - there is one
            marker, heard, hear = b"\0%d" % number, asyncio.Event(), ear.hear

            def listen(message: bytes, marker: bytes = marker, heard: Any = heard, hear: Any = hear) -> None:
                hear(message)
                if message == marker:
                    heard.set()

            ear.hear = listen  # type: ignore[method-assign]
            await self.ask("PUBLISH", self.topic, marker)
            async with asyncio.timeout(20):
                await heard.wait()
            ear.hear = hear  # type: ignore[method-assign]

    async def aclose(self) -> None:
        for cache in self._caches:
            await cache.aclose()
        await self.ask("ACL", "DELUSER", self.user)


async def fleet_of(request: pytest.FixtureRequest, name: str) -> Fleet:
    service, _, kind = name.partition(" ")
    url = request.getfixturevalue({"cluster": "redis_cluster_url"}.get(service, f"{service}_url"))
    if service == "cluster":
        url = url.replace("redis://", "redis+cluster://", 1)
    fleet = Fleet(url, multiplex=kind != "pool", query="?protocol=2" if kind == "RESP2" else "")
    await fleet.allow(*UNTRACKED)
    return fleet


@pytest.fixture(params=["redis", "valkey", "cluster", "redis pool", "redis RESP2"])
async def any_fleet(request: pytest.FixtureRequest) -> AsyncIterator[Fleet]:
    """Give a fleet over every server."""
    fleet = await fleet_of(request, request.param)
    yield fleet
    await fleet.aclose()


@pytest.fixture
async def fleet(request: pytest.FixtureRequest) -> AsyncIterator[Fleet]:
    """Give a fleet over one Redis."""
    fleet = await fleet_of(request, "redis")
    yield fleet
    await fleet.aclose()


async def load_new() -> str:
    return "new"


# ----------------------------------------------------------------------------------------------------- who changes it


async def by_set(_: Fleet, other: Cache) -> None:
    await other.set("k", 2)


async def by_set_many(_: Fleet, other: Cache) -> None:
    await other.set_many({"k": 2, "other": 1})


async def by_delete(_: Fleet, other: Cache) -> None:
    assert await other.delete("k")


async def by_delete_many(_: Fleet, other: Cache) -> None:
    assert await other.delete_many(["k", "other"]) == 1


async def by_touch(_: Fleet, other: Cache) -> None:
    assert await other.touch("k", ttl=1)


async def by_incr(_: Fleet, other: Cache) -> None:
    assert await other.incr("k") == 2


async def by_add(fleet: Fleet, other: Cache) -> None:
    await fleet.ask("DEL", fleet.wire("k"))  # of which nobody tells
    assert await other.add("k", 2)


async def by_fill(_: Fleet, other: Cache) -> None:
    assert await other.refresh("k", load_new) == "new"


async def by_tag(_: Fleet, other: Cache) -> None:
    await other.invalidate_tags("t")


async def by_the_loss_of_a_tag(fleet: Fleet, other: Cache) -> None:
    await fleet.ask("DEL", fleet.wire("@tag:t"))  # of which nobody tells
    await other.set("another", 1, tags=["t"])


async def by_clear(_: Fleet, other: Cache) -> None:
    await other.clear()


CHANGES: Final = (
    *(by_set, by_set_many, by_delete, by_delete_many, by_touch, by_incr, by_add, by_fill, by_tag),
    *(by_the_loss_of_a_tag, by_clear),
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
async def test_a_change_by_another_cache_ends_the_near_copy(
    any_fleet: Fleet, until: Until, change: Callable[[Fleet, Cache], Awaitable[None]]
):
    """It is told when the call has returned, and no time has to pass."""
    recorder = Recorder()
    reader, other = any_fleet.cache(observers=(recorder,)), any_fleet.cache()
    await other.set("k", 1, tags=["t"])
    await any_fleet.near(reader, "k", 1)
    heard = len(recorder.of(InvalidationReceived))
    await change(any_fleet, other)
    await until(lambda: reader.peek("k", MISS) == MISS)
    assert len(recorder.of(InvalidationReceived)) > heard
    assert await reader.get("k", MISS) == await any_fleet.cache(memory=None).get("k", MISS)
    assert reader.stats().coherence == other.stats().coherence == "messages"


async def test_who_only_removes_tells_too(fleet: Fleet, until: Until):
    """His first operation finds out that the server does not tell."""
    reader, writer, remover = fleet.cache(), fleet.cache(), fleet.cache()
    await writer.set("k", 1)
    await fleet.near(reader, "k", 1)
    await remover.delete("k")
    await until(lambda: reader.peek("k", MISS) == MISS)
    assert await reader.get("k", MISS) == MISS


async def test_whoever_uses_the_same_backend_is_somebody_else(fleet: Fleet, until: Until):
    """Two caches over one backend object hear each other."""
    backend = fleet.backend()
    reader, other = fleet.cache(backend), fleet.cache(backend)
    await other.set("k", 1)
    await fleet.near(reader, "k", 1)
    await other.set("k", 2)
    await until(lambda: reader.peek("k", MISS) == MISS)
    assert await reader.get("k") == 2


async def test_one_s_own_messages_are_dropped(fleet: Fleet):
    """They come back, and cost no near copy."""
    cache, other = fleet.cache(), fleet.cache()
    await cache.set("set", 1, tags=["t"])
    await cache.set_many({"a": 2, "b": 3})
    assert await cache.get_or_load("loaded", load_new, tags=["new tag"]) == "new"
    assert await cache.refresh("loaded", load_new) == "new"
    assert await cache.add("added", 4)
    await other.set("theirs", 5)
    await fleet.told(cache)
    assert [cache.peek(key, MISS) for key in ("set", "a", "b", "loaded", "added")] == [1, 2, 3, "new", 4]
    assert cache.stats().invalidations_received == 1
    assert cache.stats().fills_refused == 0


async def test_views_are_heard_apart(fleet: Fleet, until: Until):
    """Each namespace has its messages; one that is opened later, too."""
    a, other = fleet.cache(), fleet.cache()
    await a.set("k", "a")
    b = a.view(namespace=f"{fleet.namespace}:b")
    await b.set("k", "b")
    assert b.peek("k") == "b"
    await other.view(namespace=f"{fleet.namespace}:b").set("k", "new")
    await until(lambda: b.peek("k", MISS) == MISS)
    assert a.peek("k", MISS) == "a"
    assert await b.get("k") == "new"
    assert a.stats().coherence == "messages"


@pytest.mark.parametrize("key", ["k", "@k", "@tag:k", "::k", "k::l", "ключ", "k" * 4000, "k" * 5000, "@" + "é" * 3000])
@pytest.mark.parametrize("namespace", [True, False])
async def test_every_key_is_known_again(fleet: Fleet, until: Until, key: str, namespace: bool):
    """What stands for a key in a message leads back to it, digests included; with a namespace and without."""
    options: dict[str, Any] = {} if namespace else {"namespace": ""}
    key = key if namespace else f"{key} of {fleet.namespace}"
    reader, other = fleet.cache(**options), fleet.cache(**options)
    await other.set(key, "old", ttl=60)
    await fleet.near(reader, key, "old")
    await reader.set("beside " + key, 1, ttl=60)
    await other.set(key, "new", ttl=60)
    await until(lambda: reader.peek(key, MISS) == MISS)
    assert reader.peek("beside " + key) == 1
    assert await reader.get(key) == "new"
    await reader.delete_many([key, "beside " + key])


@pytest.mark.parametrize("length", [3, 3000])
async def test_a_message_does_not_grow_without_bound(fleet: Fleet, until: Until, length: int):
    """Some hundreds of keys are named, in one message; for more, or for long ones, it says that any may have changed."""
    recorder = Recorder()
    reader, other = fleet.cache(observers=(recorder,)), fleet.cache()
    await reader.set("beside", 1)
    await fleet.told(reader)
    few, many = [f"{number:03}".ljust(length, "x") for number in range(20)], [f"{number}" for number in range(1000)]
    await other.set_many(dict.fromkeys(few, 1))
    await until(lambda: len(recorder.of(InvalidationReceived)) == 20)
    assert reader.peek("beside", MISS) == 1
    many = [name.ljust(length, "x") for name in (many if length == 3 else many[:100])]
    await other.set_many(dict.fromkeys(many, 1))
    await until(lambda: reader.peek("beside", MISS) == MISS)
    assert [(event.key, event.tag) for event in recorder.of(InvalidationReceived)[20:]] == [("", "")]
    async with aioredis.Redis.from_url(fleet._admin_url) as raw:
        await raw.delete(*[fleet.wire(key) for key in (*few, *many)])


async def test_a_burst_of_changes_is_no_burst_of_messages(fleet: Fleet, until: Until):
    """What changes while a message is on its way leaves together in the next one; nobody is flooded."""
    reader, other = fleet.cache(), fleet.cache()
    await reader.set("k0", "old")
    await other.get("open the channel")
    async with aioredis.Redis.from_url(fleet._admin_url) as raw, raw.pubsub() as listener:
        await until_subscribed(listener, fleet.topic)
        await asyncio.gather(*[other.set(f"k{number % 100}", number) for number in range(5000)])
        await raw.publish(fleet.topic, "the end")
        sent = 0
        while await next_message(listener) != b"the end":
            sent += 1
        assert 0 < sent < 500
        await raw.delete(*[fleet.wire(f"k{number}") for number in range(100)])
    await until(lambda: reader.peek("k0", MISS) == MISS)
    await fleet.told(reader, other)
    assert reader.stats().channel_losses == other.stats().channel_losses == 0
    assert other.peek("k0", MISS) in (MISS, 4900)


async def test_a_replayed_change_is_told_when_it_has_arrived(fleet: Fleet, until: Until):
    """Not before: until then the old value is what the far tier has."""

    class Failing(RedisBackend):
        fails = False

        async def swap(self, key: str, data: bytes, /, *, ttl: float | None) -> bytes | None:
            if self.fails:
                raise BackendUnavailable(key)
            return await super().swap(key, data, ttl=ttl)

    reader, other = fleet.cache(), fleet.cache(fleet.backend(Failing))
    await other.set("k", 1)
    await fleet.near(reader, "k", 1)
    failing: Any = other._shared.backend
    failing.fails = True
    with pytest.raises(BackendUnavailable):
        await other.delete("k")
    await fleet.told(reader)
    assert reader.peek("k") == 1
    failing.fails = False
    fleet.clock.advance(1)
    await until(lambda: reader.peek("k", MISS) == MISS)
    assert await reader.get("k", MISS) == MISS


async def test_of_many_changes_those_that_were_made_are_told(fleet: Fleet, until: Until):
    """Where some keys of a call fail, the others have changed."""

    class Full(RedisBackend):
        value_limit = 100  # type: ignore[misc] - of this test

        def _checked(self, data: bytes) -> bytes:
            from acache.backends.base import check_value

            return check_value(data, self.value_limit, "this server")

    reader, other = fleet.cache(), fleet.cache(fleet.backend(Full))
    await other.set_many({"small": 1, "large": 1})
    await fleet.near(reader, "small", 1)
    await fleet.near(reader, "large", 1)
    await other.set_many({"small": 2, "large": bytes(1000)})
    await until(lambda: reader.peek("small", MISS) == MISS)
    assert reader.peek("large", MISS) == 1


async def test_a_caller_who_leaves_does_not_keep_his_message(fleet: Fleet, until: Until):
    """His change was confirmed, so it is told, whether or not he waits for that."""
    reached, gate = asyncio.Event(), asyncio.Event()

    class Held(RedisBackend):
        held = False

        async def publish(self, topic: str, message: bytes, /) -> None:
            if self.held:
                reached.set()
                await gate.wait()
            await super().publish(topic, message)

    reader, other = fleet.cache(), fleet.cache(fleet.backend(Held))
    await other.set("k", 1)
    await fleet.near(reader, "k", 1)
    held: Any = other._shared.backend
    held.held = True
    task = asyncio.ensure_future(other.delete("k"))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert reader.peek("k") == 1
    gate.set()
    await until(lambda: reader.peek("k", MISS) == MISS)


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


async def never() -> Any:
    raise AssertionError


async def get(cache: Cache) -> Any:
    return await cache.get("k")


async def get_many(cache: Cache) -> Any:
    return (await cache.get_many(["k"])).get("k")


async def get_or_load(cache: Cache) -> Any:
    return await cache.get_or_load("k", never)


@pytest.mark.parametrize("read", [get, get_many, get_or_load], ids=lambda read: read.__name__)
async def test_a_value_that_was_read_while_it_changed_is_not_kept(
    any_fleet: Fleet, until: Until, read: Callable[[Cache], Awaitable[Any]]
):
    """The message comes after the server answered and before the answer is kept."""
    reader, other = any_fleet.cache(any_fleet.backend(HeldBackend)), any_fleet.cache()
    await other.set("k", "old")
    await reader.get("open the channel")
    held: Any = reader._shared.backend
    held.reached, held.gate = asyncio.Event(), asyncio.Event()
    heard = reader.stats().invalidations_received  # in a cluster, one from before the subscription may have come
    task = asyncio.ensure_future(read(reader))
    await held.reached.wait()
    await other.set("k", "new")
    await until(lambda: reader.stats().invalidations_received > heard)
    held.gate.set()
    assert await task == "old"
    assert reader.peek("k", MISS) == MISS
    assert await reader.get("k") == "new"


@pytest.mark.parametrize("change", [by_delete, by_tag, by_clear], ids=lambda change: change.__name__)
async def test_a_load_is_not_stored_when_its_key_changes_meanwhile(
    fleet: Fleet, until: Until, change: Callable[[Fleet, Cache], Awaitable[None]]
):
    """Who comes after the change is not given what was being loaded before it."""
    reader, other = fleet.cache(), fleet.cache()
    await reader.set("k", 1, tags=["t"])
    began, finish = asyncio.Event(), asyncio.Event()

    async def load() -> str:
        began.set()
        await finish.wait()
        return "loaded"

    task = asyncio.ensure_future(reader.refresh("k", load, tags=["t"]))
    await began.wait()
    await change(fleet, other)
    await until(lambda: reader.stats().invalidations_received)
    assert await reader.refresh("k", load_new, tags=["t"]) == "new"
    finish.set()
    assert await task == "loaded"
    assert await reader.get("k") == "new"
    assert await other.get("k") == "new"
    assert reader.stats().fills_refused == 1


async def test_what_was_read_before_anybody_listened_is_not_kept(fleet: Fleet, until: Until):
    """It may have changed before the hello came back."""
    gate, reached = asyncio.Event(), asyncio.Event()

    class Late(RedisBackend):
        async def publish(self, topic: str, message: bytes, /) -> None:
            reached.set()
            await gate.wait()
            await super().publish(topic, message)

    other = fleet.cache()
    await other.set("k", "old")
    reader = fleet.cache(fleet.backend(Late), policy=Policy(backend_timeout=0.01))
    async with asyncio.timeout(20):
        while reader.peek("k", MISS) == MISS:
            await reader.get("k")
    await reached.wait()
    gate.set()
    await until(lambda: reader.stats().coherence == "messages")
    assert reader.peek("k", MISS) == MISS


# ------------------------------------------------------------------------------------------------- what nobody tells of


async def test_time_bounds_what_nobody_tells_of(fleet: Fleet):
    """Another program's write, say."""
    cache = fleet.cache()
    await cache.set("k", "old")
    await fleet.ask("SET", fleet.wire("k"), "12")
    fleet.clock.advance(NEAR_TTL - 0.01)
    assert await cache.get("k") == "old"
    fleet.clock.advance(0.02)
    assert await cache.get("k") == 12


@pytest.mark.parametrize("cut", ["killed", "restarted"])
async def test_a_lost_subscription_empties_the_near_tier_and_comes_back(
    private_redis: Callable[..., Any], until: Until, caplog: pytest.LogCaptureFixture, cut: str
):
    """What was missed is unknown: what is near goes at once, and once more when messages come again."""
    server = private_redis()
    fleet, recorder = Fleet(server.url), Recorder()
    await fleet.allow(*UNTRACKED)
    reader, other = fleet.cache(clock=None, observers=(recorder,)), fleet.cache(clock=None)
    await other.set("k", 1, ttl=3600)
    await fleet.near(reader, "k", 1)
    losses = 3 if cut == "killed" else 1
    for number in range(losses):
        with caplog.at_level(logging.INFO, "acache"):
            if cut == "killed":
                await fleet.ask("CLIENT", "KILL", "USER", fleet.user, "TYPE", "pubsub")
            else:
                server.restart()
                await fleet.allow(*UNTRACKED)
            await until(lambda number=number: reader.stats().channel_losses > number)
            assert reader.stats().near_entries == 0
            await until(lambda number=number: reader.stats().channel_restorations > number)
            await until(lambda: other.stats().coherence == "messages")
            await until(lambda: other.stats().channel_restorations == other.stats().channel_losses)
        await other.set("k", number)
        await fleet.near(reader, "k", number)
        await other.set("k", "afterwards")
        await until(lambda: reader.peek("k", MISS) == MISS)
        assert await reader.get("k") == "afterwards"
    changes = [(event.state, event.coherence) for event in recorder.of(ChannelChanged)]
    assert changes == [("armed", "messages"), *[("lost", "messages"), ("armed", "messages")] * losses]
    assert "may be missed" in caplog.text
    await fleet.aclose()


async def test_stale_values_outlive_the_subscription(private_redis: Callable[..., Any], until: Until):
    """A server that dies takes the subscription along, and that is when they are needed."""
    server = private_redis()
    fleet = Fleet(server.url)
    await fleet.allow(*UNTRACKED)
    cache = fleet.cache(clock=None, policy=Policy(ttl=60, stale_if_error=60, backend_timeout=0.5))

    async def load() -> str:
        return "old"

    async def fail() -> str:
        raise LookupError

    assert await cache.get_or_load("k", load) == "old"
    await until(lambda: cache.stats().coherence == "messages")
    assert await cache.get_or_load("k", load) == "old"
    server.kill()
    await until(lambda: cache.stats().channel_losses > 0)
    async with asyncio.timeout(30):
        while cache.stats().hits_stale == 0:  # from the end of the near copy's time on
            assert await cache.get_or_load("k", fail) == "old"
            await asyncio.sleep(0.05)
    await cache.aclose()


async def test_a_failover_by_sentinel(
    private_redis: Callable[..., Any], private_sentinel: Callable[..., Any], until: Until
):
    """The near tier is emptied with the master that died, and told by way of the one that took over."""
    primary = private_redis()
    replica = private_redis("--replicaof", f"127.0.0.1 {primary.port}")
    sentinel = private_sentinel(primary.port)
    for server in (primary, replica):
        async with aioredis.Redis.from_url(server.url) as raw:
            await raw.execute_command("ACL", "SETUSER", "fleet", "on", ">pass", *UNTRACKED)
    async with aioredis.Redis.from_url(f"redis://127.0.0.1:{sentinel.port}") as raw, asyncio.timeout(30):
        while (await raw.info("sentinel"))["master0"]["slaves"] != 1:
            await asyncio.sleep(0.02)
    url = f"redis+sentinel://fleet:pass@127.0.0.1:{sentinel.port}/mymaster"
    reader, other = (Cache.from_url(url, namespace="n", policy=PATIENT, observers=(Recorder(),)) for _ in range(2))
    await reader.set("k", "old")
    await other.set("other", 1)
    assert reader.peek("k") == "old"
    primary.kill()
    await until(lambda: reader.peek("k", MISS) == MISS)
    await until(lambda: reader.stats().channel_restorations == other.stats().channel_restorations == 1)
    async with asyncio.timeout(20):
        while reader.peek("k", MISS) != "new":
            await other.set("k", "new")
            await reader.get("k")
    await other.set("k", "newer")
    await until(lambda: reader.peek("k", MISS) == MISS)
    assert await reader.get("k") == "newer"
    await reader.aclose()
    await other.aclose()


async def test_while_messages_are_lost_time_bounds_near_copies(fleet: Fleet, until: Until):
    """The near tier is used all the same."""

    class Deaf(RedisBackend):
        deaf = False

        def subscribe(self, topic: str, /) -> Any:
            if self.deaf:
                raise BackendUnavailable(topic)
            return super().subscribe(topic)

    reader, other = fleet.cache(fleet.backend(Deaf)), fleet.cache()
    await other.set("k", "old")
    await fleet.near(reader, "k", "old")
    deaf: Any = reader._shared.backend
    deaf.deaf = True
    await fleet.ask("CLIENT", "KILL", "USER", fleet.user, "TYPE", "pubsub")
    await until(lambda: reader.peek("k", MISS) == MISS)
    await fleet.near(reader, "k", "old")
    await other.set("k", "new")
    fleet.clock.advance(NEAR_TTL - 0.01)
    assert await reader.get("k") == "old"
    fleet.clock.advance(0.02)
    assert await reader.get("k") == "new"
    deaf.deaf = False
    fleet.clock.advance(60)
    await until(lambda: reader.stats().channel_restorations == 1)
    assert reader.peek("k", MISS) == MISS


async def test_no_message_that_comes_back_is_no_coherence(fleet: Fleet, until: Until, monkeypatch: pytest.MonkeyPatch):
    """A proxy that takes messages and passes none on: time bounds near copies, and the statistics say so."""
    monkeypatch.setattr(messages, "_WITHIN", 0.2)

    class Mute(RedisBackend):
        async def publish(self, topic: str, message: bytes, /) -> None:
            pass

    cache = fleet.cache(fleet.backend(Mute))
    await cache.set("k", 1)
    assert cache.stats().coherence is None
    assert cache.peek("k") == 1
    fleet.clock.advance(NEAR_TTL)
    assert cache.peek("k", MISS) == MISS


# -------------------------------------------------------------------------------------------------------------- refusal


@pytest.mark.parametrize("rules", [("-publish",), ("-subscribe",), ("resetchannels",)], ids=lambda rules: rules[0])
async def test_where_messages_are_refused_too_time_bounds_near_copies(
    fleet: Fleet, until: Until, caplog: pytest.LogCaptureFixture, rules: tuple[str, ...]
):
    """The log says it once, the statistics too; it is asked again now and then."""
    await fleet.allow(*rules)
    recorder = Recorder()
    cache, other = fleet.cache(observers=(recorder,)), fleet.cache()
    with caplog.at_level(logging.INFO, "acache"):
        for number in range(20):
            await cache.set("k", number)
    assert [record.message.count("does not tell of changes") for record in caplog.records] == [1]
    assert "TRACKING" in caplog.text
    assert "messages" in caplog.text
    assert cache.stats().coherence is None
    assert cache.stats().backend_errors == 0
    assert [(event.state, event.coherence) for event in recorder.of(ChannelChanged)] == [("refused", None)]
    await other.set("k", "new")
    assert await cache.get("k") == 19
    fleet.clock.advance(NEAR_TTL)
    assert await cache.get("k") == "new"
    await fleet.allow(*UNTRACKED)
    fleet.clock.advance(60)
    await until(lambda: cache.stats().coherence == other.stats().coherence == "messages")
    await fleet.near(cache, "k", "new")
    await other.set("k", "newer")
    await until(lambda: cache.peek("k", MISS) == MISS)


async def test_the_documented_permissions_are_enough(fleet: Fleet, until: Until):
    """Those of the page on Redis, without the one that lets the server tell."""
    page = (Path(__file__).parents[2] / "docs/backends/redis.md").read_text(encoding="utf-8")
    [line] = re.findall(r"^ACL SETUSER \w+ on >password (.*) \+client\|tracking$", page, re.MULTILINE)
    await fleet.allow("reset", "on", ">pass", *line.replace("<namespace>", fleet.namespace).split())
    reader, other = fleet.cache(), fleet.cache()
    await other.set("k", "old")
    await fleet.near(reader, "k", "old")
    await other.delete("k")
    await until(lambda: reader.peek("k", MISS) == MISS)
    assert reader.stats().coherence == other.stats().coherence == "messages"
    assert reader.stats().backend_errors == other.stats().backend_errors == 0


async def test_a_permission_that_is_taken_away_is_no_failure_of_the_changes(fleet: Fleet, until: Until):
    """One message is refused, and no more are sent until it is allowed again; the far tier is used as before."""
    recorder = Recorder()
    cache = fleet.cache(observers=(recorder,))
    await cache.set("k", 0)
    assert cache.stats().coherence == "messages"
    await fleet.allow("-publish")
    for number in range(20):
        await cache.set("k", number)
    assert await cache.delete("k")
    assert cache.stats().coherence is None
    assert [(event.operation, event.raised) for event in recorder.of(BackendFailed)] == [("publish", False)]
    assert recorder.of(BreakerChanged) == []
    await fleet.allow("+publish")
    fleet.clock.advance(60)
    await until(lambda: cache.stats().coherence == "messages")


async def test_messages_that_fail_do_not_open_the_breaker(fleet: Fleet):
    """A server that cannot be reached with messages, of a cluster say, and can be with everything else."""

    class Stuck(RedisBackend):
        stuck, tries = False, 0

        async def publish(self, topic: str, message: bytes, /) -> None:
            self.tries += 1
            if self.stuck:
                raise BackendUnavailable(topic)
            await super().publish(topic, message)

    recorder = Recorder()
    cache = fleet.cache(fleet.backend(Stuck), observers=(recorder,))
    await cache.set("k", 0)
    stuck: Any = cache._shared.backend
    stuck.stuck, stuck.tries = True, 0
    async with asyncio.TaskGroup() as group:
        for number in range(50):
            group.create_task(cache.set(f"k{number}", number))
    for _ in range(50):
        await cache.incr("n")
    assert await cache.get_many([f"k{number}" for number in range(50)]) == {f"k{n}": n for n in range(50)}
    assert recorder.of(BreakerChanged) == []
    assert len(recorder.of(BackendFailed)) > 50
    assert {event.operation for event in recorder.of(BackendFailed)} == {"publish"}
    assert stuck.tries < 10  # it is left alone after a while
    assert cache.stats().coherence == "messages"  # its own ears hear


async def test_when_tracking_is_allowed_again_it_takes_over(fleet: Fleet, until: Until):
    """It is asked for now and then; who tracks hears everybody, and tells nobody."""
    recorder = Recorder()
    reader, other = fleet.cache(observers=(recorder,)), fleet.cache()
    await other.set("k", "old")
    await fleet.near(reader, "k", "old")
    await fleet.allow("+client|tracking")
    fleet.clock.advance(60)
    await until(lambda: reader.stats().coherence == other.stats().coherence == "tracking")
    assert reader.peek("k", MISS) == MISS
    async with aioredis.Redis.from_url(fleet._admin_url) as raw, raw.pubsub() as listener:
        await until_subscribed(listener, fleet.topic)
        await fleet.near(reader, "k", "old")
        await other.set("k", "new")
        await until(lambda: reader.peek("k", MISS) == MISS)
        await raw.publish(fleet.topic, "the end")
        assert await next_message(listener) == b"the end"
    assert [event.coherence for event in recorder.of(ChannelChanged)] == ["messages", "tracking"]
    assert [task for task in asyncio.all_tasks() if task.get_name() == "acache messages"] == []


async def test_when_tracking_is_refused_after_a_loss_messages_take_over(redis_url: str, until: Until):
    """What was near when the connection broke may have changed with nobody to tell; what comes then, is told."""
    fleet = Fleet(redis_url)
    await fleet.allow("~*", "&*", "+@all")
    reader, other = fleet.cache(), fleet.cache()
    await other.set("k", "old")
    await fleet.near(reader, "k", "old")
    assert reader.stats().coherence == "tracking"
    await fleet.allow(*UNTRACKED)
    await fleet.ask("CLIENT", "KILL", "USER", fleet.user)

    def armed() -> bool:
        fleet.clock.advance(0.1)  # for the next attempt
        return reader.stats().coherence == other.stats().coherence == "messages"

    await until(armed)
    assert reader.peek("k", MISS) == MISS
    await fleet.near(reader, "k", "old")
    await other.set("k", "new")
    await until(lambda: reader.peek("k", MISS) == MISS)
    assert await reader.get("k") == "new"
    await fleet.aclose()


async def until_subscribed(listener: Any, topic: str) -> None:
    await listener.subscribe(topic)
    while (await listener.get_message(timeout=10))["type"] != "subscribe":
        pass


async def next_message(listener: Any) -> Any:
    return (await listener.get_message(timeout=10))["data"]


async def test_who_is_told_by_the_server_sends_no_message(redis_url: str, until: Until):
    """Where tracking is allowed, nothing is published."""
    fleet = Fleet(redis_url)
    await fleet.allow("~*", "&*", "+@all")
    cache = fleet.cache()
    async with aioredis.Redis.from_url(redis_url) as raw, raw.pubsub() as listener:
        await until_subscribed(listener, fleet.topic)
        await cache.delete("k")
        await cache.set("k", 1)
        await cache.invalidate_tags("t")
        await raw.publish(fleet.topic, "the end")
        assert await next_message(listener) == b"the end"
    assert cache.stats().coherence == "tracking"
    await fleet.aclose()


# --------------------------------------------------------------------------------------------------- by messages always


async def test_messages_can_be_asked_for(redis_url: str, until: Until):
    """All caches of a fleet, those that could track and those without a near tier among them."""
    fleet = Fleet(redis_url)
    await fleet.allow("~*", "&*", "+@all")
    reader, other = fleet.cache(coherence="messages"), fleet.cache(coherence="messages")
    writer = fleet.cache(coherence="messages", memory=None)
    assert reader.stats().coherence is None
    for number, who in enumerate([other, writer, other.view(), writer.view()]):
        await writer.set("k", number)
        await fleet.near(reader, "k", number)
        await who.delete("k")
        await until(lambda: reader.peek("k", MISS) == MISS)
        assert await reader.get("k", MISS) == MISS
    assert reader.stats().coherence == "messages"
    assert writer.stats().coherence is None
    fleet.clock.advance(3600)
    assert reader.stats().coherence == "messages"
    await fleet.aclose()


async def test_a_cache_without_a_near_tier_is_silent_unless_asked(fleet: Fleet):
    """It has no reason to find out whether the server tells: time bounds what others have of its keys."""
    reader, writer = fleet.cache(), fleet.cache(memory=None)
    await writer.set("k", "old")
    await fleet.near(reader, "k", "old")
    await writer.set("k", "new")
    await fleet.told(reader)
    assert reader.peek("k") == "old"
    fleet.clock.advance(NEAR_TTL)
    assert await reader.get("k") == "new"


async def test_contradictions_are_refused_at_construction():
    """With the sentence that mends them."""
    with pytest.raises(ConfigurationError, match="MemoryBackend no message passes"):
        Cache(MemoryBackend(), coherence="messages")
    with pytest.raises(ConfigurationError, match="without a backend no message passes"):
        Cache(coherence="messages")
    with pytest.raises(ConfigurationError, match='"messages"'):
        Cache(MemoryBackend(), coherence="message")  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------------- hostile bytes


async def test_garbage_is_no_message(fleet: Fleet, until: Until, caplog: pytest.LogCaptureFixture):
    """Whatever comes under the topic: nothing is raised, nothing logged, nothing dropped, and the ear hears on."""
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    cache, other = fleet.cache(), fleet.cache()
    await cache.set("k", 1)
    good = messages.write(b"somebody", ["k"])
    garbage = [
        b"", b"\0", b"\x01", b"\x02" + good[1:], good[:-1], good + b"\0", b"\x01\x92\xc4\x08somebody\x91\xa1\xff",
        b"\x01" + b"\x91" * 10_000, b"\x01\x92\xc4\x01a\xdd\xff\xff\xff\xff", b"\x01\x92\xc6\xff\xff\xff\xffa",
        b"\x01\x92\xc0\xc0", b"\x01\x92\xc4\x01a\x91\x01", messages.write(b"somebody", ["k"]) * 2, bytes(100_000),
        messages.write(b"somebody", ["x" * 60_000])[:-1] + b"x" * 10_000, messages.write(b"somebody", ()),
        *[chance.randbytes(chance.randrange(40)) for _ in range(200)],
        *[b"\x01\x92" + chance.randbytes(chance.randrange(40)) for _ in range(200)],
    ]  # fmt: skip
    caplog.clear()
    with caplog.at_level(logging.INFO):
        for message in garbage:
            await fleet.ask("PUBLISH", fleet.topic, message)
        await fleet.told(cache)
    assert cache.peek("k", MISS) == 1, seed
    assert cache.stats().invalidations_received == 0, seed
    assert caplog.records == []
    for strange in (["", "@", "@tag:", "@#", "@lease:k", "::", "\0", "\n", "no such key"], ["k"]):
        await fleet.ask("PUBLISH", fleet.topic, messages.write(b"somebody", strange))
    await until(lambda: cache.peek("k", MISS) == MISS)
    await cache.set("k", 1)
    await fleet.near(other, "k", 1)
    await fleet.ask("PUBLISH", fleet.topic, messages.write(b"somebody", None))
    await until(lambda: cache.peek("k", MISS) == other.peek("k", MISS) == MISS)
    assert cache.stats().channel_losses == 0


# ----------------------------------------------------------------------------------------------------------- life, loops


async def test_closing_leaves_nothing_and_opening_listens_again(fleet: Fleet, until: Until):
    """No task, no connection; a cache that is opened again hears and tells again."""
    cache, other = fleet.cache(), fleet.cache()
    for _ in range(3):
        async with cache:
            await cache.set("k", "old")
            await fleet.near(other, "k", "old")
            await cache.set("k", "new")
            await until(lambda: other.peek("k", MISS) == MISS)
            assert await other.get("k") == "new"
            await other.set("k", "newer")
            await until(lambda: cache.peek("k", MISS) == MISS)
        mine = [task for task in asyncio.all_tasks() if task.get_name() == "acache messages"]
        assert len(mine) == 1  # the other one's
    await other.aclose()
    assert [task for task in asyncio.all_tasks() if task.get_name().startswith("acache")] == []
    async with asyncio.timeout(20):
        while f"user={fleet.user} " in str(await fleet.ask("CLIENT", "LIST")):
            await asyncio.sleep(0)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("uvloop", [False, True], ids=["asyncio", "uvloop"])
def test_one_loop_after_the_other(redis_url: str, uvloop: bool):
    """A cache that is used in several loops hears and tells in each of them."""
    factory = pytest.importorskip("uvloop").new_event_loop if uvloop else None
    fleet = Fleet(redis_url)
    reader, other = fleet.cache(), fleet.cache()

    async def use(number: int) -> None:
        if not number:
            await fleet.allow(*UNTRACKED)
        async with asyncio.timeout(20):
            await other.set("k", number)
            await other.get("this loop")
            while reader.peek("k", MISS) != number or reader.stats().coherence != "messages":
                fleet.clock.advance(NEAR_TTL)  # what the loop before it was told is worth nothing now
                await reader.get("k")
            await fleet.near(reader, "k", number)
            await other.set("k", "new")
            while reader.peek("k", MISS) != MISS:
                await asyncio.sleep(0)
            assert await reader.get("k") == "new"

    for number in range(3):
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(use(number))
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(fleet.aclose())


async def test_a_cache_that_nobody_holds_is_not_kept_alive_by_its_subscription(fleet: Fleet, until: Until):
    """Its task ends with it."""
    import gc
    import weakref

    gc.collect()  # what others left must not raise in here, and hold these frames
    cache = Cache(fleet.backend(), namespace=fleet.namespace, clock=fleet.clock)
    await cache.set("k", 1)
    assert cache.stats().coherence == "messages"
    backend, channel = cache._shared.backend, weakref.ref(cache._shared.channel)
    del cache

    def gone() -> bool:
        gc.collect()
        return channel() is None

    await until(gone)
    await until(lambda: [task for task in asyncio.all_tasks() if task.get_name() == "acache messages"] == [])
    await backend.aclose()  # type: ignore[union-attr] - there is one


# -------------------------------------------------------------------------------------------------------------- history


async def test_nobody_reads_backwards(private_redis: Callable[..., Any]):
    """One writer counts up; subscriptions break; every reader sees the numbers in their order, near and far."""
    fleet = Fleet(private_redis().url)
    await fleet.allow(*UNTRACKED)
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    done = asyncio.Event()
    writer = fleet.cache(clock=None)
    readers = [fleet.cache(clock=None, policy=Policy(ttl=60)) for _ in range(2)]
    number = 0

    async def write() -> None:
        nonlocal number
        async with aioredis.Redis.from_url(fleet._admin_url) as raw:
            for number in range(1, 400):
                await writer.set("k", number, tags=["t"])
                if chance.random() < 0.1:
                    await writer.invalidate_tags("t")
                if chance.random() < 0.03:
                    await raw.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
                await asyncio.sleep(chance.choice([0, 0, 0.002]))
        done.set()

    async def read(cache: Cache) -> None:
        last = 0
        while not done.is_set():
            for way in ("get", "many"):
                value = await cache.get("k", last) if way == "get" else (await cache.get_many(["k"])).get("k", last)
                assert value >= last, (seed, way)
                last = value
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        group.create_task(write())
        for cache in readers:
            group.create_task(read(cache))
    await writer.set("k", number)
    for cache in readers:
        async with asyncio.timeout(20):
            while await cache.get("k") != number:
                await asyncio.sleep(0)
        assert cache.stats().hits_near > 0, seed
        assert cache.stats().invalidations_received > 0, seed
    await fleet.aclose()
