"""Law 4, across processes: with ``lease=True`` a missing value is loaded once, whoever asks, and whoever dies."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import sys
import textwrap
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from acache import Cache, CacheClosed, LoadTimeout, MemoryBackend, Policy, RecursiveLoad
from acache.backends.redis import RedisBackend
from acache.errors import BackendUnavailable, ConfigurationError
from acache.events import Coalesced
from acache.testing import FakeClock, FaultyBackend, Recorder

if TYPE_CHECKING:
    from tests.laws.conftest import Topology
    from tests.services import PrivateRedis

    Settle = Callable[..., Awaitable[None]]
    Until = Callable[[Callable[[], object]], Awaitable[None]]

ROOT: Final = Path(__file__).parents[2]
LEASED: Final = Policy(lease=True, backend_timeout=30)
LONG: Final = Policy(lease=True, lease_ttl=3600, backend_timeout=30)
"""A lease that nobody takes for dead within a test: whoever gets it, gets it because it was given back."""


class Source:
    """A loader that says when it began, and returns or raises when it is told to."""

    def __init__(self, value: Any = "value") -> None:
        self.value = value
        self.calls = 0
        self.began = asyncio.Event()
        self.finish = asyncio.Event()

    async def __call__(self) -> Any:
        self.calls += 1
        self.began.set()
        await self.finish.wait()
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


def ask(cache: Cache, loader: Any, key: str = "k", **options: Any) -> asyncio.Task[Any]:
    return asyncio.create_task(cache.get_or_load(key, loader, **options))


async def pass_time(topology: Topology, condition: Callable[[], object], *, step: float = 0.3) -> float:
    """Let the clock run until ``condition``; return how far it went."""
    began = topology.clock.monotonic()
    async with asyncio.timeout(60):
        while not condition():
            topology.clock.advance(step)
            await asyncio.sleep(0.002)
            while topology.tracer.under_way:  # the server's answers take no time on this clock
                await asyncio.sleep(0.001)
    return topology.clock.monotonic() - began


async def refused(topology: Topology, waiting: Callable[[], Any]) -> Any:
    """Let a second process begin, until it has found that somebody else has the lease; return what it began."""
    asked = len(topology.tracer.calls)
    begun = waiting()
    async with asyncio.timeout(60):
        while len(topology.tracer.calls) < asked + 2 or topology.tracer.under_way:  # for the entry, for the lease
            await asyncio.sleep(0)
    return begun


# ------------------------------------------------------------------------------------------------------ on every engine


@pytest.fixture(params=("memory", "redis", "redis-cluster", "valkey", "memcached", "mongodb", "dynamodb", "file"))
async def processes(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[..., Cache]]:
    """Give caches that share nothing but an engine: this is what processes are to each other."""
    engine, name = request.param, f"leases-{uuid.uuid4().hex[:12]}"
    store = MemoryBackend()
    if engine == "dynamodb":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    address = ""
    if engine not in ("memory", "file"):
        address = request.getfixturevalue(f"{engine.replace('-', '_')}_url")
    urls = {
        "file": f"file://{tmp_path / 'cache'}",
        "redis-cluster": address.replace("redis://", "redis+cluster://"),
        "mongodb": f"{address}{name}?collection=leases",
        "dynamodb": f"dynamodb://us-east-1/{name}?endpoint_url={address}&create_table=true",
    }
    caches: list[Cache] = []

    def start(*, policy: Policy = LEASED) -> Cache:
        if engine == "memory":
            cache = Cache(store, namespace=name, policy=policy)
        else:
            cache = Cache.from_url(urls.get(engine, address), namespace=name, policy=policy)
        caches.append(cache)
        return cache

    yield start
    for cache in caches:
        await cache.aclose()
    if engine == "mongodb":
        import pymongo

        async with pymongo.AsyncMongoClient(address) as client:
            await client.drop_database(name)


async def test_two_processes_are_one_load(processes: Callable[..., Cache]):
    """One loads, the other waits and has the value; then a third has it without either."""
    holder, waiter = processes(), processes()
    source = Source({"a": [1, 2.5, None]})
    first = ask(holder, source)
    await source.began.wait()
    others = [ask(waiter, source) for _ in range(10)]
    await asyncio.sleep(0.1)
    assert not any(other.done() for other in others)
    source.finish.set()
    assert await asyncio.gather(first, *others) == [{"a": [1, 2.5, None]}] * 11
    assert source.calls == 1
    assert await processes().get("k") == {"a": [1, 2.5, None]}


async def test_a_loader_that_raises_frees_the_lease(processes: Callable[..., Cache]):
    """Its error reaches the callers of its own process; another process loads at once."""
    holder, waiter = processes(policy=LONG), processes(policy=LONG)
    bad, good = Source(ValueError("bad")), Source("good")
    good.finish.set()
    failing = [ask(holder, bad) for _ in range(3)]
    await bad.began.wait()
    waiting = [ask(waiter, good) for _ in range(3)]
    await asyncio.sleep(0.05)
    assert good.calls == 0
    bad.finish.set()
    assert await asyncio.gather(*waiting) == ["good"] * 3
    assert [str(error) for error in await asyncio.gather(*failing, return_exceptions=True)] == ["bad"] * 3
    assert (bad.calls, good.calls) == (1, 1)


# ----------------------------------------------------------------------------------------------- who loads, who waits


async def test_many_processes_with_many_callers_are_one_load(far_topology: Topology, settle: Settle):
    """Ten of them, a hundred callers each, whenever they come."""
    caches = [far_topology.cache(policy=LEASED) for _ in range(10)]
    source = Source()
    callers = [ask(cache, source) for cache in caches for _ in range(50)]
    await source.began.wait()
    callers += [ask(cache, source) for cache in caches for _ in range(50)]
    await settle()
    source.finish.set()
    everybody = asyncio.gather(*callers)
    await pass_time(far_topology, everybody.done)
    assert await everybody == ["value"] * 1000
    assert source.calls == 1
    assert sum(cache.stats().loads for cache in caches) == 1
    assert sum(cache.stats().coalesced for cache in caches) == 999


async def test_who_comes_at_every_stage_of_a_load_makes_no_second_one(far_topology: Topology, until: Until):
    """A second process that begins at any await point of the first one's flight finds the lease, or the value."""
    for call in range(12):
        for when in ("before", "after"):
            first, second = far_topology.cache(policy=LEASED), far_topology.cache(policy=LEASED)
            key, source, tracer = f"{call} {when}", Source(), far_topology.tracer
            source.finish.set()
            tracer.restart()
            stop = tracer.stop(call, when)  # type: ignore[arg-type]
            one = ask(first, source, key)
            await until(lambda one=one, stop=stop: one.done() or stop.reached.is_set())  # type: ignore[misc]
            two = ask(second, source, key)
            await pass_time(far_topology, lambda two=two: two.done() or two._fut_waiter is not None)  # type: ignore[misc]
            stop.release()
            both = asyncio.gather(one, two)
            await pass_time(far_topology, both.done)
            assert await both == ["value"] * 2
            assert source.calls == 1, (key, tracer.calls)
    far_topology.tracer.restart()


async def test_the_events_tell_who_waited_for_another_process(far_topology: Topology):
    """Waiting is no miss and no hit: it is a ``Coalesced`` of its own kind."""
    recorder, source = Recorder(), Source()
    holder, waiter = far_topology.cache(policy=LEASED), far_topology.cache(policy=LEASED, observers=(recorder,))
    first = ask(holder, source)
    await source.began.wait()
    others = await refused(far_topology, lambda: asyncio.gather(*[ask(waiter, source) for _ in range(3)]))
    source.finish.set()
    await pass_time(far_topology, others.done)
    await first
    assert sorted(event.elsewhere for event in recorder.of(Coalesced)) == [False, False, True]
    stats = waiter.stats()
    assert (stats.coalesced, stats.misses, stats.hits, stats.loads) == (3, 0, 0, 0)


async def test_a_value_that_was_not_stored_is_loaded_by_each(far_topology: Topology):
    """What its loader keeps to itself is not handed over: the next process loads."""
    first, second = far_topology.cache(policy=LEASED), far_topology.cache(policy=LEASED)
    one, two = Source("one"), Source("two")
    two.finish.set()
    cached = first.cached(key="k", condition=lambda _: False)(one.__call__)
    task = asyncio.create_task(cached())
    await one.began.wait()
    other = await refused(far_topology, lambda: ask(second, two))
    one.finish.set()
    await pass_time(far_topology, other.done)
    assert (await task, await other, one.calls, two.calls) == ("one", "two", 1, 1)


async def test_a_long_load_keeps_its_lease(far_topology: Topology, settle: Settle):
    """It is renewed while the loader runs, however much longer than ``lease_ttl`` that is."""
    holder, waiter = far_topology.cache(policy=LEASED), far_topology.cache(policy=LEASED)
    source = Source()
    first = ask(holder, source)
    await source.began.wait()
    second = await refused(far_topology, lambda: ask(waiter, source))
    for _ in range(50):  # seconds
        far_topology.clock.advance(1)
        await settle()
        await asyncio.sleep(0.005)
    assert source.calls == 1
    assert not second.done()
    source.finish.set()
    both = asyncio.gather(first, second)
    await pass_time(far_topology, both.done)
    assert (await both, source.calls) == (["value"] * 2, 1)


async def test_no_message_is_needed(make_topology: Callable[[str], Topology]):
    """Where every message is lost, the waiter looks by itself."""

    class Mute(RedisBackend):
        async def publish(self, topic: str, message: bytes, /) -> None:
            pass

    async with make_topology("redis") as topology:
        holder, waiter = (
            Cache(Mute.from_url(topology._url), namespace=topology.namespace, policy=LEASED, clock=topology.clock)
            for _ in range(2)
        )
        source = Source()
        first = ask(holder, source)
        await source.began.wait()
        second = ask(waiter, source)
        await asyncio.sleep(0.05)
        source.finish.set()
        assert await first == "value"
        await pass_time(topology, second.done)
        assert (await second, source.calls) == ("value", 1)
        await holder.aclose()
        await waiter.aclose()


async def test_without_a_connection_for_messages_the_waiter_looks_by_itself(make_topology: Callable[[str], Topology]):
    """A subscription that fails is noted, and costs nothing but a pause."""

    class Deaf(RedisBackend):
        @asynccontextmanager
        async def subscribe(self, topic: str, /) -> AsyncIterator[AsyncIterator[bytes]]:
            raise BackendUnavailable(topic)
            yield

    async with make_topology("redis") as topology:
        backend = Deaf.from_url(topology._url)
        waiter = Cache(backend, namespace=topology.namespace, policy=LEASED, clock=topology.clock)
        holder, source = topology.cache(policy=LEASED), Source()
        first = ask(holder, source)
        await source.began.wait()
        second = ask(waiter, source)
        await asyncio.sleep(0.05)
        source.finish.set()
        await pass_time(topology, second.done)
        assert (await first, await second, source.calls) == ("value", "value", 1)
        assert waiter.stats().backend_errors == 1
        await waiter.aclose()


# -------------------------------------------------------------------------------------------------------- cancellation


async def test_a_cancelled_waiter_touches_nobody(far_topology: Topology, settle: Settle):
    """Of those who wait for another process, one leaves; then all of one process; the rest have the value."""
    holder, left, waiter = (far_topology.cache(policy=LEASED) for _ in range(3))
    source = Source()
    first = ask(holder, source)
    await source.began.wait()
    leaving = await refused(far_topology, lambda: [ask(left, source) for _ in range(2)])
    staying = await refused(far_topology, lambda: [ask(waiter, source) for _ in range(2)])
    for task in (*leaving, staying[0]):
        task.cancel()
    await settle()
    source.finish.set()
    await pass_time(far_topology, staying[1].done)
    assert (await first, await staying[1], source.calls) == ("value", "value", 1)
    assert all(task.cancelled() for task in (*leaving, staying[0]))


async def test_the_last_waiter_s_cancellation_frees_the_lease(far_topology: Topology):
    """No other process waits for a load that nobody wants any more."""
    holder, waiter = far_topology.cache(policy=LONG), far_topology.cache(policy=LONG)
    abandoned, source = Source(), Source()
    source.finish.set()
    tasks = [ask(holder, abandoned) for _ in range(2)]
    await abandoned.began.wait()
    waiting = ask(waiter, source)
    for task in tasks:
        task.cancel()
    assert await pass_time(far_topology, waiting.done) < 600
    assert (await waiting, abandoned.calls, source.calls) == ("value", 1, 1)
    await asyncio.wait(tasks)


@pytest.mark.parametrize("end", ["close", "cancel"])
async def test_whoever_is_cut_off_while_he_waits_for_a_lease_leaves_nothing_half_closed(redis_url: str, end: str):
    """Closing caches, or cancelling all callers, at any moment of many: no task and no generator ends in an error."""
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))

    async def use(cache: Cache, steps: asyncio.Semaphore) -> None:
        async def load() -> int:
            steps.release()
            await asyncio.sleep(0)
            return 1

        with suppress(CacheClosed):
            while True:
                await cache.get_or_load("k", load)
                steps.release()
                await cache.delete("k")
                steps.release()

    for round_ in range(60):
        namespace, steps = f"cut-off-{uuid.uuid4().hex[:12]}", asyncio.Semaphore(0)
        caches = [Cache.from_url(redis_url, namespace=namespace, policy=LEASED) for _ in range(2)]
        users = [asyncio.create_task(use(cache, steps)) for cache in caches for _ in range(3)]
        for _ in range(round_):
            await steps.acquire()
        if end == "cancel":
            for user in users:
                user.cancel()
            await asyncio.wait(users)
        for cache in caches:
            await cache.aclose()
        await asyncio.wait(users)
    gc.collect()
    await asyncio.sleep(0)  # for the finalizers of generators
    assert complaints == []


async def test_a_cancellation_at_every_point_leaves_the_key_free(far_topology: Topology, until: Until):
    """Wherever a flight with a lease is when it is cancelled, the next process loads without waiting for its end."""
    for call in range(10):
        for when in ("before", "after"):
            first, second = (far_topology.cache(policy=LONG) for _ in range(2))
            key, source, tracer = f"{call} {when}", Source(), far_topology.tracer
            source.finish.set()
            tracer.restart()
            stop = tracer.stop(call, when)  # type: ignore[arg-type]
            one = ask(first, source, key)
            await until(lambda one=one, stop=stop: one.done() or stop.reached.is_set())  # type: ignore[misc]
            one.cancel()
            await asyncio.wait([one])
            tracer.restart()
            await second.delete(key)  # what it may have stored
            two = ask(second, source, key)
            took = await pass_time(far_topology, two.done, step=1)
            assert (await two, took < 1200) == ("value", True), key


async def test_closing_frees_the_lease(far_topology: Topology):
    """A process that is shut down in good order leaves nothing behind for others to wait for."""
    holder, waiter = far_topology.cache(policy=LONG), far_topology.cache(policy=LONG)
    abandoned, source = Source(), Source()
    source.finish.set()
    task = ask(holder, abandoned)
    await abandoned.began.wait()
    waiting = ask(waiter, source)
    await holder.aclose()
    assert await pass_time(far_topology, waiting.done) < 600
    assert await waiting == "value"
    await asyncio.wait([task])


# ------------------------------------------------------------------------------------------------------- invalidations


async def test_a_delete_during_the_load_wins_and_the_waiter_loads_anew(far_topology: Topology):
    """What the holder read before the delete goes to its own callers only."""
    holder, waiter, third = (far_topology.cache(policy=LEASED) for _ in range(3))
    old, new = Source("old"), Source("new")
    new.finish.set()
    first = ask(holder, old)
    await old.began.wait()
    second = await refused(far_topology, lambda: ask(waiter, new))
    await third.delete("k")
    old.finish.set()
    await pass_time(far_topology, second.done)
    assert (await first, await second) == ("old", "new")
    assert await far_topology.witness().get("k") == "new"
    assert holder.peek("k") is None


async def test_after_a_delete_nobody_here_waits_for_the_load_that_it_ended(far_topology: Topology):
    """The process that holds the lease begins anew at once, and may store: its older load may not."""
    cache, old, new = far_topology.cache(policy=LEASED), Source("old"), Source("new")
    new.finish.set()
    first = ask(cache, old)
    await old.began.wait()
    await cache.delete("k")
    assert await ask(cache, new) == "new"
    old.finish.set()
    assert await first == "old"
    assert await far_topology.witness().get("k") == "new"


async def test_a_delete_here_keeps_what_is_handed_over_out_of_the_near_tier(make_topology: Callable[[str], Topology]):
    """The value comes by message, ``delete`` returns, the message is read: its value goes to those who wait, not near."""
    arrived, read = asyncio.Event(), asyncio.Event()

    class Slow(RedisBackend):
        @asynccontextmanager
        async def subscribe(self, topic: str, /) -> AsyncIterator[AsyncIterator[bytes]]:
            async with super().subscribe(topic) as messages:

                async def slowly() -> AsyncIterator[bytes]:
                    async for message in messages:
                        arrived.set()
                        await read.wait()
                        yield message

                yield slowly()

    async with make_topology("near+redis") as topology:
        holder, source = topology.cache(policy=LEASED), Source()
        waiter = Cache(Slow.from_url(topology._url), namespace=topology.namespace, policy=LEASED, clock=topology.clock)
        first = ask(holder, source)
        await source.began.wait()
        second = ask(waiter, source)
        async with asyncio.timeout(20):
            while await holder._remote._backend._do("PUBSUB", "NUMSUB", f"{topology.namespace}::@lease:k") == [  # type: ignore[union-attr]
                f"{topology.namespace}::@lease:k".encode(), 0,
            ]:  # fmt: skip
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        source.finish.set()
        await arrived.wait()
        await waiter.delete("k")
        read.set()
        assert (await first, await second) == ("value", "value")
        assert waiter.peek("k") is None
        assert await waiter.get("k") is None
        await waiter.aclose()


async def test_a_stale_value_is_served_while_another_process_refreshes(far_topology: Topology, settle: Settle):
    """Whoever does not get the lease does not refresh."""
    policy = Policy(ttl=10, stale_while_revalidate=100, lease=True, backend_timeout=30)
    first, second = far_topology.cache(policy=policy), far_topology.cache(policy=policy)
    await first.set("k", "old")
    far_topology.clock.advance(50)
    source = Source("new")
    assert await ask(first, source) == "old"
    await source.began.wait()
    other = Source("other")
    assert [await ask(second, other) for _ in range(5)] == ["old"] * 5
    await asyncio.sleep(0.05)
    await settle()
    assert (source.calls, other.calls) == (1, 0)
    assert len(second._scope.flights) == 0
    source.finish.set()
    witness = far_topology.witness()
    async with asyncio.timeout(20):
        while await witness.get("k") != "new":
            await asyncio.sleep(0.01)


async def test_the_soft_timeout_counts_the_wait(far_topology: Topology):
    """A caller gets the stale value after ``soft_timeout`` of waiting, and the hard one ends the wait."""
    soft = Policy(ttl=10, stale_if_error=1000, soft_timeout=4, lease=True, backend_timeout=30)
    holder = far_topology.cache(policy=LEASED)
    patient, hard = (
        far_topology.cache(policy=soft),
        far_topology.cache(policy=Policy(load_timeout=12, lease=True, backend_timeout=30)),
    )
    await patient.set("k", "old")
    far_topology.clock.advance(50)
    source, none = Source(), Source()
    first = ask(holder, source)
    await source.began.wait()
    began, waiting = far_topology.clock.monotonic(), ask(patient, none)
    await pass_time(far_topology, waiting.done)
    assert await waiting == "old"
    assert 4 <= far_topology.clock.monotonic() - began < 9
    began, refused = far_topology.clock.monotonic(), ask(hard, none)
    await pass_time(far_topology, refused.done)
    with pytest.raises(LoadTimeout, match=r"another process.*load_timeout=12"):
        await refused
    assert 12 <= far_topology.clock.monotonic() - began < 20
    assert none.calls == 0
    source.finish.set()
    assert await first == "value"


# ------------------------------------------------------------------------------------------------------ ahead of its end


class Ticks:
    """A loader that notes when it was asked, on the topology's clock; its first calls after the first one may fail."""

    def __init__(self, topology: Topology, *, failures: int = 0, takes: float = 0) -> None:
        self.at: list[float] = []
        self._failures = failures
        self._takes = takes
        self._clock = topology.clock
        self._began = topology.clock.monotonic()

    async def __call__(self) -> int:
        self.at.append(round(self._clock.monotonic() - self._began, 3))
        self._clock.advance(self._takes)
        if 2 <= len(self.at) < 2 + self._failures:
            msg = "down"
            raise RuntimeError(msg)
        return len(self.at)


async def landed(*caches: Cache) -> None:
    """Wait until what they load behind their hits has come to its end."""
    async with asyncio.timeout(60):
        while any(len(cache._scope.flights) for cache in caches):
            await asyncio.sleep(0)


@pytest.mark.parametrize(
    "rules",
    [{"refresh_ahead": 0.8}, {"early_refresh": 1e9, "error_backoff": 0}],
    ids=("refresh_ahead", "early_refresh"),
)
async def test_a_busy_key_is_refreshed_ahead_under_a_lease_as_without_one(
    far_topology: Topology, rules: dict[str, Any]
):
    """A value that is fresh because nobody has loaded it yet is not taken for one that somebody just loaded."""
    at = []
    for lease in (False, True):
        cache = far_topology.cache(
            policy=Policy(ttl=10, lease=lease, backend_timeout=30, **rules), namespace=f"{lease}"
        )
        source = Ticks(far_topology, takes=0.1)
        for _ in range(50):
            await cache.get_or_load("k", source)
            await landed(cache)
            far_topology.clock.advance(0.5)
        assert cache.stats().misses == 1
        at.append(source.at)
    assert len(at[0]) >= 3
    assert at[1] == at[0]


async def test_a_refresh_ahead_that_fails_under_a_lease_is_tried_again(far_topology: Topology):
    """After ``error_backoff``, as without a lease: that it gave the lease back is no sign of a new value."""
    policy = Policy(ttl=60, refresh_ahead=0.5, error_backoff=2, lease=True, backend_timeout=30)
    cache, source = far_topology.cache(policy=policy), Ticks(far_topology, failures=2)
    for _ in range(60):
        await cache.get_or_load("k", source)
        await landed(cache)
        far_topology.clock.advance(1)
    assert source.at == [0, 30, 32, 34]
    assert cache.stats().misses == 1


async def test_two_processes_refresh_ahead_once(far_topology: Topology, until: Until):
    """Wherever the second one is when the first one stores: it gives up, or finds an entry newer than the one it saw."""
    policy = Policy(ttl=100, refresh_ahead=0.5, lease=True, backend_timeout=30)
    for call in range(8):
        first, second = far_topology.cache(policy=policy), far_topology.cache(policy=policy)
        source, tracer, key = Ticks(far_topology), far_topology.tracer, f"{call}"
        assert await first.get_or_load(key, source) == await second.get_or_load(key, source) == 1
        far_topology.clock.advance(60)
        tracer.restart()
        stop = tracer.stop(call, "before")
        two = ask(second, source, key)
        await until(
            lambda stop=stop, two=two, second=second: (
                stop.reached.is_set() or (two.done() and not len(second._scope.flights))
            )
        )  # type: ignore[misc]
        one = ask(first, source, key)
        await one
        await landed(first)
        stop.release()
        await landed(second)
        assert {await one, await two} <= {1, 2}
        assert len(source.at) == 2, (call, tracer.calls)
        assert await first.get_or_load(key, source) == await second.get_or_load(key, source) == 2
        await landed(first, second)
        assert len(source.at) == 2


async def test_who_joins_a_refresh_ahead_waits_for_the_process_that_is_at_it(far_topology: Topology, until: Until):
    """``refresh`` asks for a new value: the one that is fresh still is none, and nobody else calls the loader."""
    policy = Policy(ttl=100, refresh_ahead=0.5, lease=True, backend_timeout=30)
    first, second = far_topology.cache(policy=policy), far_topology.cache(policy=policy)
    await first.set("k", "old")
    far_topology.clock.advance(60)
    source, none = Source("new"), Source()
    assert await ask(first, source) == "old"
    await source.began.wait()
    tracer, at_the_lease, gate = far_topology.tracer, asyncio.Event(), asyncio.Event()

    async def hold(name: str, when: str) -> None:
        if (name, when, tracer.calls.count("get_versioned")) == ("get_versioned", "before", 2):
            at_the_lease.set()
            await gate.wait()

    tracer.restart()
    tracer.everywhere = hold
    assert await ask(second, none) == "old"
    await at_the_lease.wait()
    refreshed = asyncio.create_task(second.refresh("k", none))
    await until(lambda: any(flight.awaited for flight in second._scope.flights._all))
    gate.set()
    began = far_topology.clock.monotonic()
    await pass_time(far_topology, lambda: far_topology.clock.monotonic() > began + 3 or refreshed.done())
    assert not refreshed.done()
    source.finish.set()
    await pass_time(far_topology, refreshed.done)
    assert (await refreshed, none.calls, source.calls) == ("new", 0, 1)


# ----------------------------------------------------------------------------------------------------- many, and in turn


async def test_crossing_batches_do_not_wait_for_each_other(far_topology: Topology):
    """Two processes, each with a batch of which the other one has begun a part: both end, and no key is loaded twice."""
    first, second = far_topology.cache(policy=LEASED), far_topology.cache(policy=LEASED)
    loaded: list[str] = []

    async def loader(keys: Sequence[str]) -> dict[str, str]:
        loaded.extend(keys)
        await asyncio.sleep(0)
        return {key: f"value of {key}" for key in keys}

    keys = [f"key {number}" for number in range(20)]
    both = asyncio.gather(first.load_many(keys, loader), second.load_many(keys[::-1], loader))
    await pass_time(far_topology, both.done)
    assert await both == [{key: f"value of {key}" for key in keys}, {key: f"value of {key}" for key in keys[::-1]}]
    assert sorted(loaded) == sorted(keys)


NOTHING: Final = {
    "left out": {"answers": lambda keys: {}},
    "half of it left out": {"answers": lambda keys: dict.fromkeys(keys[::2], "value")},
    "not to be stored": {"answers": lambda keys: dict.fromkeys(keys, "value"), "condition": lambda value: False},
    "failed": {"error": ZeroDivisionError()},
    "cancelled": {"cancel": True},
}


@pytest.mark.parametrize("way", NOTHING)
async def test_what_came_to_nothing_elsewhere_is_loaded_by_one_call(far_topology: Topology, way: str):
    """Whoever waited for another process's batch makes a batch of what that one did not store."""
    plan: dict[str, Any] = NOTHING[way]
    holder, waiter = far_topology.cache(policy=LONG), far_topology.cache(policy=LONG)
    keys, asked, began, go = [f"k{number}" for number in range(60)], list[list[str]](), asyncio.Event(), asyncio.Event()

    @holder.cached_many(key="{keys}", condition=plan.get("condition"))
    async def at_the_holder(keys: list[str]) -> dict[str, str]:
        began.set()
        await go.wait()
        if "error" in plan:
            raise plan["error"]
        return dict(plan["answers"](keys))

    @waiter.cached_many(key="{keys}")
    async def at_the_waiter(keys: list[str]) -> dict[str, str]:
        asked.append(list(keys))
        return dict.fromkeys(keys, "of its own")

    first = asyncio.create_task(at_the_holder(keys))
    await began.wait()
    second = asyncio.create_task(at_the_waiter(keys))
    await pass_time(
        far_topology, lambda: waiter._scope.flights.running and not asked and not far_topology.tracer.under_way
    )
    if "cancel" in plan:
        first.cancel()
    go.set()
    await asyncio.wait([first])
    await pass_time(far_topology, second.done)
    found = await second
    theirs = plan["answers"](keys) if way == "half of it left out" else {}
    assert found == dict.fromkeys(keys, "of its own") | theirs
    assert sorted(key for call in asked for key in call) == sorted(set(keys) - set(theirs))
    assert len(asked) <= 3, "a few, as not all of it is given back at the same moment"


async def test_processes_that_wait_for_each_other_find_out(far_topology: Topology):
    """P loads a, whose loader asks for b; Q loads b, whose loader asks for a: an error, not a deadlock."""
    p, q = far_topology.cache(policy=LEASED), far_topology.cache(policy=LEASED)
    inside = asyncio.Barrier(2)

    def asks_for(cache: Cache, key: str, other: str, *, meet: bool) -> Callable[[], Awaitable[str]]:
        async def loader() -> str:
            if meet:
                await inside.wait()
            return await cache.get_or_load(other, asks_for(cache, other, key, meet=False))

        return loader

    both = asyncio.gather(
        ask(p, asks_for(p, "a", "b", meet=True), "a"),
        ask(q, asks_for(q, "b", "a", meet=True), "b"),
        return_exceptions=True,
    )
    assert await pass_time(far_topology, both.done) < 120
    assert all(isinstance(result, RecursiveLoad) for result in await both)


async def test_a_batch_s_second_call_that_waits_for_itself_is_told_so(far_topology: Topology):
    """A key that another process failed to load gets a call of its own, after that for the others has returned."""
    first, second = far_topology.cache(policy=LONG), far_topology.cache(policy=LONG)
    source, asked = Source(ZeroDivisionError()), list[list[str]]()
    elsewhere = ask(first, source, "b")
    await source.began.wait()

    async def many(keys: Any) -> dict[str, str]:
        asked.append(list(keys))
        if len(asked) == 2:
            return {"b": await second.get_or_load("b", Source())}
        source.finish.set()
        return dict.fromkeys(keys, "value")

    both = asyncio.create_task(second.load_many(["a", "b"], many))
    await pass_time(far_topology, both.done)
    assert asked == [["a"], ["b"]]
    assert isinstance(both.exception(), RecursiveLoad)
    assert isinstance(elsewhere.exception(), ZeroDivisionError)


# ------------------------------------------------------------------------------------------------ the far tier is away


async def test_without_a_far_tier_each_process_loads_for_itself():
    """No lease is no error."""
    caches = [Cache(FaultyBackend(), policy=LEASED) for _ in range(2)]
    source = Source()
    source.finish.set()
    for cache in caches:
        cache._shared.backend.fail()  # type: ignore[union-attr]
        assert await asyncio.gather(*[ask(cache, source) for _ in range(10)]) == ["value"] * 10
    assert source.calls == 2


async def test_a_far_tier_that_fails_under_a_lease_does_not_fail_the_load():
    """At every operation: the loaded value arrives, and with ``on_backend_error="raise"`` the error does."""
    clock = FakeClock()
    for name, policy in (("miss", LEASED), ("raise", Policy(lease=True, on_backend_error="raise"))):
        backend = FaultyBackend(clock=clock)
        cache = Cache(backend, policy=policy, clock=clock)

        async def load(backend: FaultyBackend = backend) -> str:
            backend.fail()
            return "value"

        assert await cache.get_or_load("k", load) == "value"
        backend.mend()
        backend.fail("set_if")
        if name == "miss":
            assert await cache.get_or_load("other", _plain) == "plain"
        else:
            with pytest.raises(BackendUnavailable):
                await cache.get_or_load("other", _plain)
        backend.mend()
        await cache.aclose()


async def _plain() -> str:
    return "plain"


async def test_a_server_that_stops_under_a_load_leaves_one_load_for_each(private_redis: Callable[..., PrivateRedis]):
    """The holder has its value, the one who waited loads, and nobody sees an error."""
    server = private_redis()
    policy = Policy(lease=True, backend_timeout=0.5)
    holder, waiter = (Cache.from_url(server.url, policy=policy) for _ in range(2))
    source, other = Source(), Source("other")
    other.finish.set()
    first = ask(holder, source)
    await source.began.wait()
    second = ask(waiter, other)
    await asyncio.sleep(0.1)
    assert other.calls == 0
    server.stop()
    assert await second == "other"
    source.finish.set()
    assert (await first, source.calls, other.calls) == ("value", 1, 1)
    server.restart()
    await holder.aclose()
    await waiter.aclose()


@pytest.mark.parametrize("memory", [100, None], ids=["near and far", "far"])
@pytest.mark.parametrize("waits", [1.0, 6.0])
async def test_who_waited_when_the_far_tier_went_away_is_offered_the_stale_value_he_had(
    memory: int | None, waits: float, until: Until
):
    """As the holder is, whose loader fails too: within ``stale_if_error``, for which the wait counts."""
    clock, gate = FakeClock(), asyncio.Event()
    backend = FaultyBackend(clock=clock)
    policy = Policy(ttl=10, lease=True, stale_if_error=5)
    holder, waiter = (Cache(backend, policy=policy, clock=clock, memory=memory) for _ in range(2))

    async def load() -> str:
        await gate.wait()
        raise LookupError

    await holder.set("k", "old")
    assert await waiter.get("k") == "old"
    clock.advance(11)
    first = ask(holder, load)
    await until(lambda: holder.stats().loads)
    second = ask(waiter, load)
    await until(lambda: waiter._scope.flights.current("k"))
    for _ in range(20):
        await asyncio.sleep(0)
    backend.fail()
    clock.advance(waits)
    await until(lambda: waiter.stats().loads)
    gate.set()
    for task in (first, second):
        if waits < 4:
            assert await task == "old"
        else:
            with pytest.raises(LookupError):
                await task
    assert waiter.stats().load_failures == 1
    await holder.aclose()
    await waiter.aclose()


async def test_a_record_that_nobody_wrote_ends_like_any_lease(far_topology: Topology):
    """Whatever lies in the place of a lease, without an end of its own, holds nobody up for longer than one."""
    backend = far_topology.backend()
    assert backend is not None
    await backend.set(f"{far_topology.namespace}::@lease:k", b"\x00garbage", ttl=None)
    waiting = ask(far_topology.cache(policy=LEASED), _plain)
    took = await pass_time(far_topology, waiting.done)
    assert await waiting == "plain"
    assert 10 <= took < 20
    await backend.aclose()


# ------------------------------------------------------------------------------------------------------- at rest, loops


async def test_nothing_is_left_when_the_waiting_is_over(redis_topology: Topology):
    """No task; and no connection beyond those that carry commands, until there is somebody to listen again."""
    holder, waiter = redis_topology.cache(policy=LEASED), redis_topology.cache(policy=LEASED)
    await waiter.get("nothing")
    await holder.get("nothing")
    at_rest = await redis_topology.connections()
    for _ in range(3):
        key, source = uuid.uuid4().hex, Source()
        first = ask(holder, source, key)
        await source.began.wait()
        second = ask(waiter, source, key)
        async with asyncio.timeout(20):
            while await redis_topology.connections() <= at_rest:
                await asyncio.sleep(0.01)
        source.finish.set()
        assert await asyncio.gather(first, second) == ["value"] * 2
        async with asyncio.timeout(20):
            while await redis_topology.connections() != at_rest:
                await asyncio.sleep(0.01)
        assert [task for task in asyncio.all_tasks() if task.get_name().startswith("acache")] == []


@pytest.mark.parametrize("close", [True, False])
def test_a_second_event_loop_has_leases_too(redis_url: str, *, close: bool):
    """One loop after the other, closed between or simply ended while somebody waited."""
    namespace = f"leases-{uuid.uuid4().hex}"
    caches = [Cache.from_url(redis_url, namespace=namespace, policy=LEASED) for _ in range(2)]

    async def use(key: str, *, finish: bool) -> None:
        source = Source()
        first = ask(caches[0], source, key)
        await source.began.wait()
        second = ask(caches[1], source, key)
        await asyncio.sleep(0.05)
        if finish:
            source.finish.set()
            assert await asyncio.gather(first, second) == ["value"] * 2
            assert source.calls == 1
        if close or finish:
            for cache in caches:
                await cache.aclose()
                await cache.__aenter__()
            await asyncio.wait([first, second])

    asyncio.run(use("one", finish=close))
    asyncio.run(use("two", finish=True))


# ------------------------------------------------------------------------------------------------------- real processes

PROCESS: Final = textwrap.dedent("""
    import asyncio, json, sys, time
    from acache import Cache, Policy

    async def main(url, namespace, lease_ttl, callers):
        cache = Cache.from_url(url, namespace=namespace, policy=Policy(lease=True, lease_ttl=float(lease_ttl)))
        calls, answered = [], []

        async def warm():
            return {"at": 0.0}

        async def loader():
            calls.append(time.time())
            print("loading", flush=True)
            await asyncio.to_thread(sys.stdin.readline)
            return {"at": time.time(), "by": namespace}

        async def ask():
            value = await cache.get_or_load("k", loader)
            answered.append(max(0.0, time.time() - value["at"]))
            return value

        await cache.get_or_load("warm", warm)
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        values = await asyncio.gather(*[ask() for _ in range(int(callers))])
        assert all(value == values[0] for value in values)
        print(json.dumps({"loads": len(calls), "answered": answered, "value": values[0]}), flush=True)
        await cache.aclose()

    asyncio.run(main(*sys.argv[1:]))
""")


class Process:
    """Another process with a cache."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    @classmethod
    async def start(cls, url: str, namespace: str, *, lease_ttl: float = 10, callers: int = 1) -> Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROCESS, url, namespace, str(lease_ttl), str(callers),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)}, limit=1 << 20,
        )  # fmt: skip
        started = cls(process)
        assert await started.line() == "ready"
        return started

    async def line(self) -> str:
        assert self.process.stdout is not None
        return (await self.process.stdout.readline()).decode().strip()

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")

    async def end(self) -> None:
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        await self.process.wait()


@pytest.fixture(params=("redis", "file"))
def shared_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of an engine with messages, and of one without."""
    if request.param == "file":
        return f"file://{tmp_path / 'cache'}"
    return str(request.getfixturevalue("redis_url"))


async def test_a_killed_holder_is_replaced(shared_url: str):
    """By ``kill -9`` in the middle of its load: after the lease's time the one who waits loads."""
    namespace = f"leases-{uuid.uuid4().hex}"
    holder = await Process.start(shared_url, namespace, lease_ttl=1.5)
    try:
        holder.go_on()
        assert await holder.line() == "loading"
        async with Cache.from_url(
            shared_url, namespace=namespace, policy=Policy(lease=True, lease_ttl=1.5, backend_timeout=10)
        ) as waiter:
            waiting = [ask(waiter, _plain) for _ in range(5)]
            await asyncio.sleep(2)  # it is alive, and renews its lease
            assert not any(task.done() for task in waiting)
            holder.process.kill()
            killed = time.monotonic()
            assert await asyncio.gather(*waiting) == ["plain"] * 5
            assert time.monotonic() - killed < 30
            assert waiter.stats().loads == 1
    finally:
        await holder.end()


async def test_a_stopped_holder_is_replaced_and_does_no_harm_when_it_goes_on(shared_url: str):
    """By SIGSTOP: another process loads and stores; what the first one loads goes to its own callers."""
    namespace = f"leases-{uuid.uuid4().hex}"
    holder = await Process.start(shared_url, namespace, lease_ttl=1)
    try:
        holder.go_on()
        assert await holder.line() == "loading"
        holder.process.send_signal(signal.SIGSTOP)
        policy = Policy(lease=True, lease_ttl=1, backend_timeout=10)
        async with Cache.from_url(shared_url, namespace=namespace, policy=policy, memory=None) as waiter:
            assert await waiter.get_or_load("k", _plain) == "plain"
            holder.process.send_signal(signal.SIGCONT)
            holder.go_on()
            outcome = json.loads(await holder.line())
            assert (outcome["loads"], outcome["value"]["by"]) == (1, namespace)
            assert await waiter.get("k") == "plain"
    finally:
        await holder.end()


async def test_eight_processes_with_500_callers_each_are_one_load(redis_url: str):
    """One cold key: one load, and everybody has the value soon after it was stored."""
    namespace = f"leases-{uuid.uuid4().hex}"
    processes = await asyncio.gather(*[Process.start(redis_url, namespace, callers=500) for _ in range(8)])
    try:
        for process in processes:
            process.go_on()
        first_lines = {asyncio.create_task(process.line()): process for process in processes}
        done, waiting = await asyncio.wait(first_lines, return_when=asyncio.FIRST_COMPLETED)
        assert [task.result() for task in done] == ["loading"]
        await asyncio.sleep(1)  # for the others to come and wait
        loading = first_lines[next(iter(done))]
        loading.go_on()
        outcomes = [json.loads(await task) for task in waiting] + [json.loads(await loading.line())]
        assert sum(outcome["loads"] for outcome in outcomes) == 1
        answered = sorted(seconds for outcome in outcomes for seconds in outcome["answered"])
        assert len(answered) == 4000
        assert answered[-1] < 5
        for process in processes:
            assert await process.process.wait() == 0
    finally:
        for process in processes:
            await process.end()


# ------------------------------------------------------------------------------------------------------------- refusals


class Plain:
    """The least an engine can be."""

    get, set, delete, aclose = MemoryBackend.get, MemoryBackend.set, MemoryBackend.delete, MemoryBackend.aclose


@pytest.mark.parametrize("backend", [None, Plain()], ids=["nobody to share with", "no compare-and-set"])
async def test_a_lease_that_cannot_be_had_is_refused_early(backend: Any):
    """Whoever asks for one, where there is no backend that can: with the sentence that mends it."""
    leased = Policy(lease=True)
    cache = Cache(backend)
    mends = "leave lease out"
    with pytest.raises(ConfigurationError, match=mends):
        Cache(backend, policy=leased)
    with pytest.raises(ConfigurationError, match=mends):
        cache.view(policy=leased)
    with pytest.raises(ConfigurationError, match=mends):
        cache.cached(policy=leased)
    with pytest.raises(ConfigurationError, match=mends):
        cache.cached_many(policy=leased)
    with pytest.raises(ConfigurationError, match=mends):
        await cache.get_or_load("k", _plain, policy=leased)


def test_a_lease_longer_than_a_load_may_take_is_refused():
    """Callers would give up before the place of a process that died is taken."""
    with pytest.raises(ConfigurationError, match=r"lease_ttl=10\.0 must be shorter than load_timeout=5\.0"):
        Policy(lease=True, load_timeout=5)
    assert Policy(lease=True, load_timeout=5, lease_ttl=2).lease


async def test_a_load_that_was_abandoned_and_does_not_stop_is_replaced_after_the_lease():
    """Nobody waits for it any more, and it keeps nobody waiting."""
    clock, store, begun, stop = FakeClock(), MemoryBackend(), asyncio.Event(), asyncio.Event()

    async def stubborn() -> str:
        begun.set()
        while not stop.is_set():
            with suppress(asyncio.CancelledError):
                await stop.wait()
        return "late"

    async def load() -> str:
        return "value"

    policy = Policy(lease=True, lease_ttl=10)
    async with (
        Cache(store, namespace="n", clock=clock, policy=policy) as first,
        Cache(store, namespace="n", clock=clock, policy=policy) as second,
    ):
        abandoned = asyncio.create_task(first.get_or_load("k", stubborn))
        await begun.wait()
        abandoned.cancel()
        with pytest.raises(asyncio.CancelledError):
            await abandoned
        waiting = asyncio.create_task(second.get_or_load("k", load))
        async with asyncio.timeout(60):
            while not waiting.done():
                clock.advance(1)
                await asyncio.sleep(0.001)
        assert await waiting == "value"
        stop.set()


async def test_a_load_that_is_out_of_time_and_does_not_stop_is_replaced_after_the_lease(settle: Settle):
    """Its callers are answered; the next one here loads at once, and those elsewhere when the lease has ended."""
    clock, store, begun, stop, calls = FakeClock(), MemoryBackend(), asyncio.Event(), asyncio.Event(), []

    async def stubborn() -> str:
        begun.set()
        with suppress(asyncio.CancelledError):
            await stop.wait()
        await stop.wait()
        return "late"

    async def load() -> str:
        calls.append("load")
        return "value"

    policy = Policy(lease=True, lease_ttl=10, load_timeout=15)
    async with (
        Cache(store, namespace="n", clock=clock, policy=policy) as first,
        Cache(store, namespace="n", clock=clock, policy=policy) as second,
    ):
        for key, cache in (("here", first), ("elsewhere", second)):
            begun.clear()
            given_up = ask(first, stubborn, key)
            await begun.wait()
            async with asyncio.timeout(60):
                while not given_up.done():
                    clock.advance(1)
                    await asyncio.sleep(0.001)
            assert isinstance(given_up.exception(), LoadTimeout)
            given_up_at = clock.monotonic()
            waiting = ask(cache, load, key)
            async with asyncio.timeout(60):
                while not waiting.done():
                    await settle(50)
                    if not waiting.done():
                        clock.advance(1)
            assert await waiting == "value"
            assert clock.monotonic() - given_up_at <= (0 if cache is first else 11)
        assert calls == ["load", "load"]
        stop.set()
        await settle(50)
        assert await first.get_many(["here", "elsewhere"]) == {"here": "value", "elsewhere": "value"}
        assert first.stats().load_failures == 2
