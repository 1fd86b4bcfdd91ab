"""Law 7: an outage makes reads misses and deletes errors, and a dead server costs microseconds."""

from __future__ import annotations

import asyncio
import socket
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis

from acache import (
    BackendError,
    BackendRefused,
    BackendTimeout,
    BackendUnavailable,
    Cache,
    MemoryBackend,
    Policy,
    Unsupported,
    ValueTooLarge,
)
from acache.backends.redis.lines import _LONGEST_PAUSE
from acache.events import BackendFailed, BreakerChanged, Miss
from acache.testing import FakeClock, FaultyBackend, Recorder

from .conftest import PATIENT

if TYPE_CHECKING:
    from tests.services import PrivateRedis

Call = Callable[[Cache], Awaitable[object]]


async def load() -> str:
    """A loader."""
    return "loaded"


async def load_many(keys: Any) -> dict[str, str]:
    """A batch loader."""
    return dict.fromkeys(keys, "loaded")


READS: dict[str, tuple[Call, object]] = {
    "get": (lambda cache: cache.get("k", "default"), "default"),
    "get_entry": (lambda cache: cache.get_entry("k"), None),
    "has": (lambda cache: cache.has("k"), False),
    "get_many": (lambda cache: cache.get_many(["k", "l"]), {}),
    "get_or_load": (lambda cache: cache.get_or_load("k", load), "loaded"),
    "get_or_load tagged": (lambda cache: cache.get_or_load("k", load, tags=["t"]), "loaded"),
    "load_many": (lambda cache: cache.load_many(["k", "l"], load_many), {"k": "loaded", "l": "loaded"}),
    "cached": (lambda cache: cache.cached(key="k")(load)(), "loaded"),
    "refresh": (lambda cache: cache.refresh("k", load), "loaded"),
}
WRITES: dict[str, Call] = {
    "set": lambda cache: cache.set("k", 1),
    "set tagged": lambda cache: cache.set("k", 1, tags=["t"]),
    "set_many": lambda cache: cache.set_many({"k": 1, "l": 2}),
}
CONFIRMED: dict[str, Call] = {
    "delete": lambda cache: cache.delete("k"),
    "delete_many": lambda cache: cache.delete_many(["k", "l"]),
    "invalidate_tags": lambda cache: cache.invalidate_tags("t"),
    "clear": lambda cache: cache.clear(),
    "add": lambda cache: cache.add("k", 1),
    "touch": lambda cache: cache.touch("k", ttl=5),
    "incr": lambda cache: cache.incr("k"),
    "decr": lambda cache: cache.decr("k"),
    "ttl": lambda cache: cache.ttl("k"),
    "invalidate": lambda cache: cache.cached(key="k")(load).invalidate(),
}
ERRORS = [
    BackendUnavailable("gone"),
    BackendTimeout("late"),
    BackendRefused("no"),
    ValueTooLarge("big"),
    Unsupported("never heard of it"),
    BackendError("anything"),
]


@pytest.fixture
def clock() -> FakeClock:
    """A clock that moves when told."""
    return FakeClock()


@pytest.fixture
def backend(clock: FakeClock) -> FaultyBackend:
    """A backend that fails when told."""
    return FaultyBackend(clock=clock)


@pytest.fixture
def recorder() -> Recorder:
    """An observer that remembers."""
    return Recorder()


@pytest.fixture(params=[True, False], ids=["near over far", "far"])
async def cache(
    request: pytest.FixtureRequest, backend: FaultyBackend, clock: FakeClock, recorder: Recorder
) -> AsyncIterator[Cache]:
    """A cache over the faulty backend."""
    memory = 100 if request.param else None
    async with Cache(backend, memory=memory, clock=clock, namespace="open", observers=[recorder]) as cache:
        yield cache


def raising(cache: Cache) -> Cache:
    """Return a view whose reads raise."""
    return cache.view(policy=Policy(on_backend_error="raise"))


# Reads and writes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("verb", READS)
async def test_a_failing_read_is_a_miss(
    cache: Cache, backend: FaultyBackend, recorder: Recorder, verb: str, error: Exception
):
    """With an event that holds the error, and a count; the loader runs, and its value is returned."""
    read, expected = READS[verb]
    backend.fail(error=error)
    assert await read(cache) == expected
    failures = recorder.of(BackendFailed)
    assert failures != []
    assert failures[0].error is error
    assert not any(event.raised for event in failures)
    assert cache.stats().backend_errors == len(failures)
    if verb not in ("has", "refresh"):
        assert recorder.of(Miss) != []
        assert cache.stats().misses >= 1


@pytest.mark.parametrize("verb", [verb for verb in READS if verb != "refresh"])
async def test_a_failing_read_raises_on_request(cache: Cache, backend: FaultyBackend, recorder: Recorder, verb: str):
    """``on_backend_error="raise"``: the error itself, told and counted, and no loader is run."""
    read, _ = READS[verb]
    backend.fail(error=BackendUnavailable("gone"))
    with pytest.raises(BackendUnavailable, match="gone"):
        await read(raising(cache))
    assert recorder.of(BackendFailed)[0].raised is True
    assert cache.stats().backend_errors >= 1
    assert cache.stats().loads == 0


@pytest.mark.parametrize("verb", WRITES)
async def test_a_failing_write_is_an_event(cache: Cache, backend: FaultyBackend, recorder: Recorder, verb: str):
    """The caller goes on, and what may not have been stored is not served from near either."""
    await cache.set_many({"k": "old", "l": "old"})
    backend.fail()
    await WRITES[verb](cache)
    assert recorder.of(BackendFailed)[0].raised is False
    assert cache.stats().backend_errors >= 1
    assert cache.peek("k") != "old"
    assert cache.peek("k") is None


@pytest.mark.parametrize("verb", WRITES)
async def test_a_failing_write_raises_on_request(cache: Cache, backend: FaultyBackend, verb: str):
    """``on_backend_error="raise"`` is for writes too."""
    backend.fail()
    with pytest.raises(BackendUnavailable):
        await WRITES[verb](raising(cache))


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("verb", CONFIRMED)
async def test_what_promises_to_have_happened_raises(
    cache: Cache, backend: FaultyBackend, recorder: Recorder, verb: str, error: Exception
):
    """Whatever the policy says, deletes, invalidations and counters raise if the far tier did not confirm."""
    await cache.set("k", 1, tags=["t"])
    recorder.clear()
    backend.fail(error=error)
    with pytest.raises(type(error)) as caught:
        await CONFIRMED[verb](cache)
    assert caught.value is error
    if verb != "ttl":
        assert recorder.of(BackendFailed)[0].raised is True
        assert recorder.of(BackendFailed)[0].error is error


@pytest.mark.parametrize("verb", ["delete", "delete_many", "invalidate_tags", "clear", "invalidate"])
async def test_a_failed_removal_is_not_served_from_near(cache: Cache, backend: FaultyBackend, verb: str):
    """Although it raised, this process no longer answers with the old value."""
    await cache.set("k", "old", tags=["t"])
    backend.fail()
    with pytest.raises(BackendUnavailable):
        await CONFIRMED[verb](cache)
    assert cache.peek("k") is None
    assert await cache.get("k") is None


@pytest.mark.parametrize("verb", ["delete", "delete_many", "invalidate_tags", "clear", "invalidate"])
async def test_a_removal_works_again_after_the_outage(
    cache: Cache, backend: FaultyBackend, clock: FakeClock, verb: str
):
    """Said again, it is done."""
    await cache.set("k", "old", tags=["t"])
    backend.fail()
    with pytest.raises(BackendUnavailable):
        await CONFIRMED[verb](cache)
    backend.mend()
    clock.advance(60)
    await CONFIRMED[verb](cache)
    assert await cache.get("k") is None


async def test_near_hits_do_not_notice(backend: FaultyBackend, clock: FakeClock):
    """What is fresh near is answered although the far tier is down."""
    async with Cache(backend, clock=clock) as cache:
        await cache.set("k", "v")
        backend.fail()
        assert await cache.get("k") == "v"
        assert await cache.get_or_load("k", load) == "v"
        assert cache.stats().backend_errors == 0


async def test_loads_are_kept_near_during_an_outage_or_not_but_one_runs_at_a_time(cache: Cache, backend: FaultyBackend):
    """Single-flight holds without the far tier."""
    backend.fail()
    loads = 0

    async def slow() -> int:
        nonlocal loads
        loads += 1
        await asyncio.sleep(0)
        return loads

    assert await asyncio.gather(*[cache.get_or_load("k", slow) for _ in range(100)]) == [1] * 100
    assert loads == 1


async def test_a_failing_fill_gives_the_value_all_the_same(cache: Cache, backend: FaultyBackend, recorder: Recorder):
    """The loaded value reaches its callers; that it was not stored is an event."""
    backend.fail("set_if", "set", "add")
    assert await cache.get_or_load("k", load) == "loaded"
    [failure] = recorder.of(BackendFailed)
    assert (failure.key, failure.raised) == ("k", False)
    backend.mend()
    assert await cache.get("k") in (None, "loaded")


async def test_the_loader_s_error_passes_during_an_outage(cache: Cache, backend: FaultyBackend):
    """Unwrapped, and not mistaken for the outage."""

    async def broken() -> None:
        raise LookupError("mine")

    backend.fail()
    with pytest.raises(LookupError, match="mine"):
        await cache.get_or_load("k", broken)


async def test_a_loader_s_connection_error_is_the_loader_s(cache: Cache, recorder: Recorder):
    """Even an acache error of the loader's own passes, and counts as no failure of the far tier."""

    async def broken() -> None:
        raise BackendUnavailable("another cache's")

    with pytest.raises(BackendUnavailable, match="another cache's"):
        await cache.get_or_load("k", broken)
    assert recorder.of(BackendFailed) == []
    assert cache.stats().backend_errors == 0


async def test_a_programming_error_of_an_engine_is_not_hidden(cache: Cache, backend: FaultyBackend):
    """What is no backend error is a bug, and is not taken for an outage."""
    backend.fail("get", error=ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        await cache.get("k")


# The deadline --------------------------------------------------------------------------------------------------------


async def test_an_engine_that_does_not_answer_is_left_at_the_deadline(backend: FaultyBackend):
    """``backend_timeout`` bounds every operation; it is a BackendTimeout, a miss for reads and raised by deletes."""
    recorder = Recorder()
    policy = Policy(backend_timeout=0.01)
    async with Cache(backend, memory=None, policy=policy, observers=[recorder]) as cache:
        held = [backend.hold(name) for name in ("get", "get_versioned", "swap")]
        started = time.monotonic()
        assert await cache.get("k", "default") == "default"
        assert await cache.get_or_load("k", load) == "loaded"
        with pytest.raises(BackendTimeout, match=r"0\.01 s"):
            await cache.delete("k")
        assert time.monotonic() - started < 5  # the engine would never have answered
        assert {type(event.error) for event in recorder.of(BackendFailed)} == {BackendTimeout}
        for hold in held:
            hold.release()


async def test_a_caller_s_own_timeout_is_not_the_far_tier_s(backend: FaultyBackend):
    """A caller who gives up is cancelled, and nothing is counted as a failure."""
    async with Cache(backend, memory=None) as cache:
        held = backend.hold("get")
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.01):
                await cache.get("k")
        assert not isinstance(caught.value, BackendError)
        assert cache.stats().backend_errors == 0
        held.release()
        assert await cache.get("k") is None


# The breaker ---------------------------------------------------------------------------------------------------------


async def open_breaker(cache: Cache, backend: FaultyBackend) -> None:
    """Let five reads fail."""
    backend.fail()
    for number in range(5):
        await cache.get(f"k{number}")
    backend.calls.clear()


async def test_the_breaker_opens_after_five_failures_in_a_row(cache: Cache, backend: FaultyBackend, recorder: Recorder):
    """Four are borne; a success starts the count again; the fifth is told, and the engine is left alone."""
    backend.fail()
    for _ in range(4):
        await cache.get("k")
    backend.mend()
    await cache.get("k")
    assert recorder.of(BreakerChanged) == []
    backend.fail()
    for _ in range(5):
        await cache.get("k")
    assert [event.state for event in recorder.of(BreakerChanged)] == ["open"]
    backend.calls.clear()
    for _ in range(100):
        assert await cache.get("k", "default") == "default"
    assert backend.calls == []
    assert cache.stats().backend_errors == 109


async def test_an_open_breaker_fails_at_once(cache: Cache, backend: FaultyBackend):
    """Reads are misses and removals raise, without a word to the engine, with the last error as the cause."""
    await open_breaker(cache, backend)
    backend.calls.clear()
    for _ in range(1000):
        await cache.get("k")
    assert backend.calls == []
    for verb in ("delete", "delete_many", "invalidate_tags", "clear", "incr"):
        with pytest.raises(BackendUnavailable, match="made to fail") as caught:
            await CONFIRMED[verb](cache)
        assert isinstance(caught.value.__cause__, BackendUnavailable)
    assert await cache.get_or_load("k", load) == "loaded"
    await cache.set("k", 1)
    assert backend.calls == []


async def test_after_a_while_one_operation_is_let_through(
    cache: Cache, backend: FaultyBackend, clock: FakeClock, recorder: Recorder
):
    """Half-open: of many callers one asks the engine; its failure opens again, for longer."""
    await open_breaker(cache, backend)
    clock.advance(1.001)
    held = backend.hold("get")
    probe = asyncio.create_task(cache.get("probe"))
    await held.reached.wait()
    assert await asyncio.gather(*[cache.get(f"k{number}") for number in range(20)]) == [None] * 20
    assert backend.calls == ["get"]
    held.release()
    await probe
    assert [event.state for event in recorder.of(BreakerChanged)] == ["open", "half-open", "open"]
    clock.advance(1.001)
    await cache.get("k")
    assert backend.calls == ["get"], "the second pause is longer than the first"
    clock.advance(1)
    await cache.get("k")
    assert backend.calls == ["get", "get"]


async def test_a_success_closes_the_breaker(cache: Cache, backend: FaultyBackend, clock: FakeClock, recorder: Recorder):
    """From then on everything works as before."""
    await cache.set("k", "v")
    await open_breaker(cache, backend)
    backend.mend()
    assert await cache.get("other") is None
    assert backend.calls == []
    clock.advance(1.001)
    assert await cache.get("other") is None
    assert [event.state for event in recorder.of(BreakerChanged)] == ["open", "half-open", "closed"]
    clock.advance(10)
    assert await cache.get("k") == "v"
    await cache.delete("k")
    assert await cache.get("k") is None


async def test_the_pause_grows_to_half_a_minute_and_no_further(cache: Cache, backend: FaultyBackend, clock: FakeClock):
    """However long the outage was, thirty seconds after the server is back it is used again."""
    await open_breaker(cache, backend)
    for _ in range(20):
        clock.advance(31)
        await cache.get("k")
    assert len(backend.calls) == 20
    backend.mend()
    clock.advance(30.001)
    await cache.get("k")
    await cache.get("k")
    assert len(backend.calls) == 24, "each with a look at the namespace's token"


async def test_a_cancelled_probe_is_not_the_end(cache: Cache, backend: FaultyBackend, clock: FakeClock):
    """If the one that was let through is cancelled, the next one is let through."""
    await open_breaker(cache, backend)
    backend.mend()
    clock.advance(1.001)
    held = backend.hold("get")
    probe = asyncio.create_task(cache.get("probe"))
    await held.reached.wait()
    probe.cancel()
    with pytest.raises(asyncio.CancelledError):
        await probe
    held.release()
    backend.calls.clear()
    clock.advance(1.001)
    await cache.get("k")
    assert backend.calls == ["get", "get"], "the entry, and the namespace's token"


async def test_a_probe_that_dies_of_a_bug_is_not_the_end(cache: Cache, backend: FaultyBackend, clock: FakeClock):
    """Nor does an engine's own programming error leave the breaker half-open for ever."""
    await open_breaker(cache, backend)
    backend.mend()
    backend.fail("get", error=ZeroDivisionError())
    clock.advance(1.001)
    with pytest.raises(ZeroDivisionError):
        await cache.get("k")
    backend.mend()
    clock.advance(31)
    backend.calls.clear()
    await cache.get("k")
    assert backend.calls == ["get", "get"], "the entry, and the namespace's token"


async def test_a_late_failure_of_before_does_not_disturb_a_recovered_breaker(
    backend: FaultyBackend, clock: FakeClock, recorder: Recorder
):
    """One failure after the recovery is one of five, not a new outage."""
    async with Cache(backend, memory=None, clock=clock, observers=[recorder]) as cache:
        await open_breaker(cache, backend)
        backend.mend()
        clock.advance(1.001)
        await cache.get("k")
        backend.fail()
        await cache.get("k")
        backend.mend()
        assert [event.state for event in recorder.of(BreakerChanged)] == ["open", "half-open", "closed"]
        backend.calls.clear()
        await cache.get("k")
        assert backend.calls == ["get"]


@pytest.mark.parametrize("error", [ValueTooLarge("big"), Unsupported("no such thing")])
async def test_a_refused_value_is_an_answer(cache: Cache, backend: FaultyBackend, recorder: Recorder, error: Exception):
    """A server that says "too large" is alive."""
    backend.fail("set", error=error)
    for number in range(20):
        await cache.set(f"k{number}", number)
    assert recorder.of(BreakerChanged) == []


async def test_views_share_one_breaker(backend: FaultyBackend, clock: FakeClock):
    """They share the server, so what one found out serves the others."""
    async with Cache(backend, memory=None, clock=clock, namespace="a") as cache:
        await open_breaker(cache, backend)
        await cache.view(namespace="b").get("k")
        assert backend.calls == []


async def test_two_caches_have_two_breakers(clock: FakeClock):
    """One dead server says nothing about another."""
    dead, alive = FaultyBackend(clock=clock), FaultyBackend(clock=clock)
    async with Cache(dead, clock=clock, memory=None) as one, Cache(alive, clock=clock, memory=None) as other:
        await open_breaker(one, dead)
        await other.set("k", 1)
        assert await other.get("k") == 1


async def test_an_observer_that_raises_hides_nothing(backend: FaultyBackend, caplog: pytest.LogCaptureFixture):
    """Neither the result nor the next observer."""
    recorder = Recorder()

    def broken(event: object) -> None:
        raise RuntimeError

    async with Cache(backend, memory=None, observers=[broken, recorder]) as cache:
        backend.fail()
        assert await cache.get("k", "default") == "default"
        assert recorder.of(BackendFailed) != []
    assert "an observer raised" in caplog.text


async def test_aclose_during_an_outage(backend: FaultyBackend):
    """Closing does not ask the dead server anything."""
    cache = Cache(backend)
    backend.fail()
    await cache.get("k")
    await cache.aclose()
    await cache.aclose()


# A real server -------------------------------------------------------------------------------------------------------


@pytest.fixture
async def redis(
    private_redis: Callable[..., PrivateRedis],
) -> AsyncIterator[tuple[PrivateRedis, Cache, FakeClock, Recorder]]:
    """A Redis of the test's own, and a cache over it whose breaker goes by a fake clock."""
    server = private_redis()
    clock, recorder = FakeClock(), Recorder()
    cache = Cache.from_url(
        server.url,
        memory=None,
        namespace=f"open-{uuid.uuid4().hex}",
        clock=clock,
        policy=Policy(backend_timeout=0.25),
        observers=[recorder],
    )
    async with cache:
        await cache.set("k", "v", tags=["t"])
        assert await cache.get("k") == "v"
        yield server, cache, clock, recorder


@pytest.mark.parametrize("way", ["killed", "paused"])
async def test_a_real_server_dies(redis: tuple[PrivateRedis, Cache, FakeClock, Recorder], way: str):
    """Reads are misses within the deadline, deletes raise, then the breaker makes both immediate."""
    server, cache, _, recorder = redis
    if way == "killed":
        server.kill()
    else:
        server.pause()
    try:
        started = time.monotonic()
        assert await cache.get("k", "default") == "default"
        assert time.monotonic() - started < 2
        with pytest.raises(BackendUnavailable if way == "killed" else BackendTimeout):
            await cache.delete("k")
        assert await cache.get_or_load("k", load, tags=["t"]) == "loaded"
        for number in range(5):
            await cache.get(f"other{number}")
        assert [event.state for event in recorder.of(BreakerChanged)] == ["open"]
        started = time.monotonic()
        for _ in range(200):
            assert await cache.get("k", "default") == "default"
        assert time.monotonic() - started < 0.05 * 200, "each waited for the server"
        with pytest.raises(BackendUnavailable):
            await cache.invalidate_tags("t")
    finally:
        if way == "paused":
            server.resume()


async def test_a_paused_server_holds_up_many_callers_for_one_deadline(
    redis: tuple[PrivateRedis, Cache, FakeClock, Recorder],
):
    """A hundred callers at once wait together, not one after the other."""
    server, cache, _, _ = redis
    server.pause()
    try:
        started = time.monotonic()
        assert await asyncio.gather(*[cache.get(f"k{number}") for number in range(100)]) == [None] * 100
        assert time.monotonic() - started < 50 * cache.policy.backend_timeout, "they waited one after the other"
    finally:
        server.resume()


async def test_a_restarted_server_is_used_again(redis: tuple[PrivateRedis, Cache, FakeClock, Recorder]):
    """After the pause of the breaker the first read connects anew; nothing old, nothing broken."""
    server, hasty, clock, recorder = redis
    cache = hasty.view(policy=PATIENT)
    server.kill()
    for _ in range(6):
        assert await cache.get("k") is None
    server.restart()
    await asyncio.sleep(_LONGEST_PAUSE)  # between two attempts to connect, which goes by real time
    clock.advance(31)
    assert await cache.get("k") is None
    await cache.set("k", "new", tags=["t"])
    assert await cache.get("k") == "new"
    assert await cache.delete("k") is True
    assert [event.state for event in recorder.of(BreakerChanged)] == ["open", "half-open", "closed"]


async def test_a_restart_between_two_reads_costs_one_miss_at_most(
    redis: tuple[PrivateRedis, Cache, FakeClock, Recorder],
):
    """Pooled connections that died meanwhile are no lasting trouble."""
    server, hasty, clock, _ = redis
    cache = hasty.view(policy=PATIENT)
    await asyncio.gather(*[cache.get(f"k{number}") for number in range(20)])
    server.restart()
    for number in range(25):
        await cache.set(f"k{number}", number)
        clock.advance(31)
    await cache.set("k", "after")
    assert await cache.get("k") == "after"


async def test_a_resumed_server_answers_in_step(redis: tuple[PrivateRedis, Cache, FakeClock, Recorder]):
    """Replies that come after their callers gave up reach nobody else."""
    server, cache, clock, _ = redis
    await cache.set_many({f"k{number}": number for number in range(50)})
    server.pause()
    try:
        await asyncio.gather(*[cache.get(f"k{number}") for number in range(50)])
    finally:
        server.resume()
    clock.advance(31)
    for _ in range(3):
        found = await asyncio.gather(*[cache.get(f"k{number}") for number in range(50)])
        assert all(value in (None, number) for number, value in enumerate(found))
        clock.advance(31)
    patient = cache.view(policy=PATIENT)
    assert await asyncio.gather(*[patient.get(f"k{number}") for number in range(50)]) == list(range(50))


async def test_a_full_server_refuses_and_reads_go_on(private_redis: Callable[..., PrivateRedis]):
    """Writes that find no memory are events; what is there is still read."""
    server = private_redis("--maxmemory", "3mb", "--maxmemory-policy", "noeviction")
    recorder = Recorder()
    async with Cache.from_url(server.url, memory=None, namespace="full", observers=[recorder]) as cache:
        await cache.set("small", "v")
        for number in range(12):
            await cache.set(f"k{number}", "x" * 1_000_000)
        assert len(recorder.of(BackendFailed)) > 5  # which would be enough to leave a server alone that does not answer
        assert await cache.get("small") == "v"


async def test_a_password_that_is_wrong_is_refused(private_redis: Callable[..., PrivateRedis]):
    """It is BackendRefused, and the message holds no password."""
    server = private_redis()
    async with Redis.from_url(server.url) as administrator:
        await administrator.config_set("requirepass", "right")
    url = server.url.replace("redis://", "redis://:wrong@")
    async with Cache.from_url(url, memory=None, namespace="n") as cache:
        assert await cache.get("k") is None
        with pytest.raises(BackendRefused) as caught:
            await cache.delete("k")
        assert "wrong@" not in str(caught.value)
        assert "wrong" not in repr(cache)


async def test_memory_backends_never_fail():
    """The control group: without faults no failure is ever told."""
    recorder = Recorder()
    async with Cache(MemoryBackend(), namespace="open", observers=[recorder]) as cache:
        for read, _ in READS.values():
            await read(cache)
        for name, verb in CONFIRMED.items():
            if name != "ttl":
                await verb(cache)
    assert recorder.of(BackendFailed) == []


async def test_a_far_tier_that_refuses_is_told_of_once_in_a_while(
    cache: Cache, backend: FaultyBackend, clock: FakeClock, caplog: pytest.LogCaptureFixture
):
    """A wrong permission is no outage, and would look like a cache that never hits."""
    backend.fail(error=BackendRefused("NOPERM"))
    for _ in range(20):
        await cache.get("k")
        await cache.set("k", 1)
    told = [record for record in caplog.records if "refuses to" in record.message]
    assert len(told) == 1
    assert "NOPERM" in told[0].message
    clock.advance(10)
    await cache.get("another")
    assert len([record for record in caplog.records if "refuses to" in record.message]) == 2


class BehindASocket(MemoryBackend):
    """Its answers come through the event loop's selector, as a server's do."""

    def __init__(self) -> None:
        super().__init__()
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)

    async def get(self, key: str, /) -> bytes | None:
        data = await super().get(key)
        await asyncio.get_running_loop().sock_recv(self.ours, 1)
        return data

    async def aclose(self) -> None:
        self.ours.close()
        self.theirs.close()


async def test_an_answer_that_is_there_is_not_late_because_the_loop_was():
    """Something blocks the loop for longer than the deadline: that is no fault of the far tier."""
    backend = BehindASocket()
    async with Cache(backend, memory=None, policy=Policy(backend_timeout=0.05)) as cache:
        await cache.set("k", "v")
        reading = asyncio.create_task(cache.get("k"))
        await asyncio.sleep(0)
        backend.theirs.send(b"!" * 10)
        time.sleep(0.1)  # noqa: ASYNC251 - what no coroutine should do
        assert await reading == "v"
        assert cache.stats().backend_errors == 0
