"""Law 7, the second half: what the far tier did not confirm is kept, and sent again when it is back."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from acache import (
    BackendError,
    BackendTimeout,
    BackendUnavailable,
    Cache,
    MemoryBackend,
    Policy,
    Unsupported,
    ValueTooLarge,
)
from acache.events import KeptForReplay, ReplayDropped, Replayed
from acache.replay import Replay
from acache.testing import FakeClock, FaultyBackend, Recorder

Call = Callable[[Cache], Awaitable[object]]

CHANGES: dict[str, Call] = {
    "set": lambda cache: cache.set("k", "new"),
    "set tagged": lambda cache: cache.set("k", "new", tags=["t"]),
    "set_many": lambda cache: cache.set_many({"k": "new", "l": "new"}),
    "delete": lambda cache: cache.delete("k"),
    "delete_many": lambda cache: cache.delete_many(["k", "l"]),
    "invalidate_tags": lambda cache: cache.invalidate_tags("t", "u"),
    "clear": lambda cache: cache.clear(),
}
REMOVALS = {name: call for name, call in CHANGES.items() if not name.startswith("set")}


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
    async with Cache(backend, memory=memory, clock=clock, namespace="n", observers=[recorder]) as cache:
        yield cache


@pytest.fixture
async def other(backend: FaultyBackend, clock: FakeClock) -> AsyncIterator[Cache]:
    """Another process over the same far tier, with no near tier to hide it."""
    cache = Cache(backend, memory=None, clock=clock, namespace="n")
    yield cache
    await cache.aclose()


async def attempt(call: Awaitable[object]) -> None:
    """Do what is bound to fail."""
    try:
        await call
    except BackendError:
        pass


async def fail(cache: Cache, backend: FaultyBackend, call: Call) -> None:
    """Change something while the far tier is away, which then is back."""
    backend.fail()
    await attempt(call(cache))
    backend.mend()


def accounted(cache: Cache) -> bool:
    """Tell whether the numbers say of every change what became of it."""
    stats = cache.stats()
    parts = (stats.replayed, stats.replay_dropped, stats.replay_replaced, stats.replay_waiting)
    return stats.replay_kept == sum(parts)


@pytest.fixture
def drained(clock: FakeClock, settle: Callable[..., Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    """Let the time pass after which what is kept is sent again."""

    async def drain() -> None:
        clock.advance(31)
        await settle()

    return drain


# What arrives --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", CHANGES)
async def test_what_failed_is_sent_when_the_far_tier_is_back(
    cache: Cache,
    other: Cache,
    backend: FaultyBackend,
    recorder: Recorder,
    drained: Callable[[], Awaitable[None]],
    change: str,
):
    """No other process sees the old value then, and it was told and counted."""
    await cache.set_many({"k": "old", "l": "old"}, tags=["t"])
    await fail(cache, backend, CHANGES[change])
    waiting = cache.stats().replay_waiting
    assert cache.stats().replay_kept == waiting == len(recorder.of(KeptForReplay)) >= 1
    assert await other.get("k") == "old", "the outage was none"
    await drained()
    assert await other.get("k") is None
    stats = cache.stats()
    assert (stats.replayed, stats.replay_waiting, stats.replay_dropped) == (waiting, 0, 0)
    assert len(recorder.of(Replayed)) == waiting


@pytest.mark.parametrize("change", CHANGES)
async def test_reads_are_misses_until_it_has_arrived(
    cache: Cache, backend: FaultyBackend, drained: Callable[[], Awaitable[None]], change: str
):
    """The far tier answers again, with what the caller has changed: it is not believed, by whatever verb."""
    await cache.set_many({"k": "old", "l": "old", "far": "off"}, tags=["t"])
    await cache.set("unharmed", 1)
    await fail(cache, backend, CHANGES[change])

    async def load() -> str:
        return "loaded"

    assert await cache.get("k") is None
    assert await cache.get_entry("k") is None
    assert await cache.has("k") is False
    assert (await cache.get_many(["k", "unharmed"])).get("k") is None
    with pytest.raises((BackendUnavailable, KeyError)):
        await cache.ttl("k")
    assert await cache.get_or_load("k", load) == "loaded"
    if change != "clear":
        assert await cache.get("unharmed") == 1
        assert await cache.get_many(["k", "unharmed"]) in ({"unharmed": 1}, {"unharmed": 1, "k": "loaded"})
    await drained()
    assert await cache.get("k") in (None, "loaded")
    assert await cache.get_or_load("k", load) == "loaded"


@pytest.mark.parametrize("verb", ["add", "incr", "touch"])
async def test_what_depends_on_the_old_value_raises_until_it_has_arrived(
    cache: Cache, backend: FaultyBackend, drained: Callable[[], Awaitable[None]], verb: str
):
    """Nobody counts on from a counter that was deleted."""
    calls: dict[str, Call] = {
        "add": lambda cache: cache.add("k", 1),
        "incr": lambda cache: cache.incr("k"),
        "touch": lambda cache: cache.touch("k", ttl=5),
    }
    await cache.incr("k", 7)
    await fail(cache, backend, CHANGES["delete"])
    with pytest.raises(BackendUnavailable, match="not confirmed a change of 'k'"):
        await calls[verb](cache)
    await drained()
    assert await calls[verb](cache) == {"add": True, "incr": 1, "touch": False}[verb]


async def test_a_write_over_nothing_arrives_with_its_value_and_the_rest_of_its_time(
    cache: Cache, other: Cache, backend: FaultyBackend, clock: FakeClock, settle: Callable[..., Awaitable[None]]
):
    """A server that came back empty has it again, and no longer than its ttl."""
    backend.fail()
    await cache.set("k", "v", ttl=50)
    backend.mend()
    clock.advance(20)
    await settle()
    assert await other.get("k") == "v"
    clock.advance(29.5)
    assert await other.get("k") == "v"
    clock.advance(1)
    assert await other.get("k") is None


async def test_a_write_arrives_at_a_server_that_came_back_without_the_namespace_s_epoch(
    cache: Cache, other: Cache, backend: FaultyBackend, drained: Callable[[], Awaitable[None]]
):
    """Entries are under an epoch that the server has lost with everything else; there they begin a new one."""
    await cache.set("before", 1)
    assert await other.get("before") == 1
    backend.fail()
    await cache.set_many({"k": "v", "l": "w"}, ttl=50)
    backend.mend()
    await backend.clear("")
    await drained()
    assert await other.get_many(["k", "l"]) == {"k": "v", "l": "w"}
    assert await cache.get_many(["k", "l"]) == {"k": "v", "l": "w"}


async def test_a_write_does_not_come_back_after_another_s_clear(
    cache: Cache, other: Cache, backend: FaultyBackend, drained: Callable[[], Awaitable[None]]
):
    """Nor does it leave a record that nobody can read."""
    await cache.set("before", 1)
    backend.fail()
    await cache.set("k", "v", ttl=None)
    backend.mend()
    await other.clear()
    await drained()
    assert cache.stats().replay_waiting == 0
    assert await other.get("k") is None
    assert [key async for key in backend.scan("n::k")] == []


async def test_a_value_whose_time_is_over_is_not_sent(
    cache: Cache, other: Cache, backend: FaultyBackend, clock: FakeClock, settle: Callable[..., Awaitable[None]]
):
    """But the older one under it goes all the same."""
    await cache.set("k", "old", ttl=None)
    backend.fail()
    await cache.set_many({"k": "new", "l": "new"}, ttl=5)
    for _ in range(4):
        clock.advance(5)
        await settle()
    backend.mend()
    clock.advance(31)
    await settle()
    assert cache.stats().replay_waiting == 0
    assert await other.get_many(["k", "l"]) == {}


async def test_a_write_never_wins_over_what_others_wrote(
    cache: Cache, other: Cache, backend: FaultyBackend, drained: Callable[[], Awaitable[None]]
):
    """A newer value of another process is at worst removed, never replaced by the older one."""
    await fail(cache, backend, CHANGES["set"])
    await other.set("k", "newer")
    await drained()
    assert await other.get("k") is None
    assert await cache.get("k") is None


async def test_a_write_never_comes_back_over_another_s_delete(
    cache: Cache, other: Cache, backend: FaultyBackend, drained: Callable[[], Awaitable[None]]
):
    """The tombstone stands."""
    await fail(cache, backend, CHANGES["set"])
    await other.delete("k")
    await drained()
    assert await other.get("k") is None


async def test_a_write_never_comes_back_after_the_tombstone_of_a_delete_is_gone(
    cache: Cache, other: Cache, backend: FaultyBackend, clock: FakeClock, settle: Callable[..., Awaitable[None]]
):
    """It was kept for longer than a delete is remembered: it is not stored over nothing."""
    backend.fail()
    await cache.set("k", "v", ttl=None)
    for _ in range(3):
        clock.advance(20)
        await settle()
    backend.mend()
    await other.delete("k")
    clock.advance(61)
    await settle()
    assert cache.stats().replay_waiting == 0
    assert await other.get("k") is None


async def test_a_write_that_had_arrived_is_left_as_it_is(
    backend: FaultyBackend, clock: FakeClock, drained: Callable[[], Awaitable[None]]
):
    """Only its confirmation was lost."""

    class Deaf(FaultyBackend):
        deaf = True

        async def set(self, key: str, data: bytes, /, *, ttl: float | None) -> None:
            await super().set(key, data, ttl=ttl)
            if self.deaf:
                raise BackendTimeout

    backend = Deaf(clock=clock)
    async with Cache(backend, memory=None, clock=clock) as cache:
        await cache.set("k", "v")
        backend.deaf = False
        assert await cache.get("k") is None
        await drained()
        assert await cache.get("k") == "v"


async def test_a_value_that_is_too_large_takes_the_older_one_with_it(
    cache: Cache, other: Cache, backend: FaultyBackend, drained: Callable[[], Awaitable[None]]
):
    """Whoever wrote it must not go on reading what was there before."""
    await cache.set("k", "old")
    backend.fail("set", error=ValueTooLarge("big"))
    await cache.set("k", "x" * 100)
    backend.mend()
    assert await cache.get("k") is None
    await drained()
    assert await other.get("k") is None


async def test_the_latest_change_of_a_key_is_the_one_that_is_kept(
    cache: Cache, other: Cache, backend: FaultyBackend, drained: Callable[[], Awaitable[None]]
):
    """A delete after a write leaves nothing, a write after a delete its value."""
    backend.fail()
    await cache.set("k", 1)
    await attempt(cache.delete("k"))
    await attempt(cache.delete("l"))
    await cache.set("l", 1)
    await cache.set("l", 2)
    assert cache.stats().replay_waiting == 2
    backend.mend()
    await drained()
    assert await other.get_many(["k", "l"]) == {"l": 2}


@pytest.mark.parametrize("newer", ["set", "set_many", "delete", "delete_many", "clear"])
async def test_a_newer_change_that_is_confirmed_replaces_what_is_kept(
    cache: Cache, other: Cache, backend: FaultyBackend, drained: Callable[[], Awaitable[None]], newer: str
):
    """It is not undone by the older one, and reads are trusted at once."""
    await cache.set("k", "old")
    await fail(cache, backend, REMOVALS["delete"])
    await CHANGES[newer](cache)
    assert cache.stats().replay_waiting == 0
    expected = "new" if newer.startswith("set") else None
    assert await cache.get("k") == expected
    await drained()
    assert await other.get("k") == expected
    assert cache.stats().replayed == 0


async def test_an_invalidation_that_is_confirmed_replaces_the_one_that_is_kept(cache: Cache, backend: FaultyBackend):
    """And what is stored under the tag from then on is read."""
    await fail(cache, backend, CHANGES["invalidate_tags"])
    assert cache.stats().replay_waiting == 2
    await cache.invalidate_tags("t", "u")
    assert cache.stats().replay_waiting == 0
    await cache.set("k", 1, tags=["t"])
    assert await cache.get("k") == 1


async def test_a_change_that_comes_while_the_older_one_is_being_sent_is_not_lost(
    cache: Cache, other: Cache, backend: FaultyBackend, clock: FakeClock, settle: Callable[..., Awaitable[None]]
):
    """1: a delete is kept.  2: it is being sent.  3: a write of the key fails.  4: the delete arrives: the write stays."""
    await fail(cache, backend, CHANGES["delete"])
    held = backend.hold("swap")
    clock.advance(1)
    await held.reached.wait()
    backend.fail("set")
    await cache.set("k", "new")
    backend.mend()
    held.release()
    await settle()
    assert cache.stats().replay_waiting == 1
    assert accounted(cache)
    clock.advance(31)
    await settle()
    assert cache.stats().replay_waiting == 0
    assert accounted(cache)


async def test_only_the_keys_that_failed_are_kept(cache: Cache, backend: FaultyBackend):
    """Of a batch, the others have arrived."""
    error = BackendTimeout("late")
    error.failed = {"n::l": BackendTimeout("late")}
    backend.fail("set_many", error=error)
    await cache.set_many({"k": 1, "l": 2})
    assert cache.stats().replay_kept == 1


class Plain:
    """An engine that cannot compare and set."""

    def __init__(self, clock: FakeClock) -> None:
        self.store = FaultyBackend(clock=clock)

    async def get(self, key: str, /) -> bytes | None:
        return await self.store.get(key)

    async def set(self, key: str, data: bytes, /, *, ttl: float | None) -> None:
        await self.store.set(key, data, ttl=ttl)

    async def delete(self, key: str, /) -> bool:
        return await self.store.delete(key)

    async def aclose(self) -> None:
        pass


async def test_an_engine_without_compare_and_set_gets_removals_only(
    clock: FakeClock, settle: Callable[..., Awaitable[None]]
):
    """Where nothing tells whether somebody wrote meanwhile, a late value is never stored."""

    backend = Plain(clock)
    async with Cache(backend, memory=None, clock=clock) as cache:
        await cache.set("k", "old")
        backend.store.fail()
        await cache.set_many({"k": "new", "l": "new"})
        backend.store.mend()
        clock.advance(31)
        await settle()
        assert cache.stats().replayed == 2
        assert await cache.get_many(["k", "l"]) == {}


# What is not kept ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", CHANGES)
async def test_who_asked_for_the_error_only_gets_no_replay(
    cache: Cache, other: Cache, backend: FaultyBackend, drained: Callable[[], Awaitable[None]], change: str
):
    """``Policy(replay=False)``: what is not confirmed is not sent again."""
    await cache.set_many({"k": "old", "l": "old"}, tags=["t"])
    strict = cache.view(policy=Policy(replay=False))
    await fail(strict, backend, CHANGES[change])
    assert cache.stats().replay_kept == 0
    assert await strict.get("k") == "old"
    await drained()
    assert await other.get("k") == "old"


@pytest.mark.parametrize("change", REMOVALS)
async def test_removals_raise_although_they_are_kept(cache: Cache, backend: FaultyBackend, change: str):
    """The caller must know that other processes may still see the old value."""
    backend.fail()
    with pytest.raises(BackendUnavailable):
        await REMOVALS[change](cache)
    assert cache.stats().replay_kept >= 1


async def test_a_write_that_may_raise_does_and_is_kept(cache: Cache, backend: FaultyBackend):
    """``on_backend_error="raise"`` tells the caller, too."""
    backend.fail()
    with pytest.raises(BackendUnavailable):
        await cache.view(policy=Policy(on_backend_error="raise")).set("k", 1)
    assert cache.stats().replay_waiting == 1


async def test_what_the_engine_cannot_do_is_not_tried_again(cache: Cache, backend: FaultyBackend):
    """`Unsupported` is no outage."""
    await cache.incr("c")  # counters are what `clear` has to look for
    backend.fail("clear", error=Unsupported("no such thing"))
    with pytest.raises(Unsupported):
        await cache.clear()
    assert cache.stats().replay_kept == 0


@pytest.mark.parametrize("verb", ["add", "incr", "touch"])
async def test_what_answers_a_question_is_not_tried_again(cache: Cache, backend: FaultyBackend, verb: str):
    """Done a second time, it would be done twice."""
    backend.fail()
    calls: dict[str, Call] = {
        "add": lambda cache: cache.add("k", 1),
        "incr": lambda cache: cache.incr("k"),
        "touch": lambda cache: cache.touch("k", ttl=5),
    }
    with pytest.raises(BackendUnavailable):
        await calls[verb](cache)
    assert cache.stats().replay_kept == 0


# When ----------------------------------------------------------------------------------------------------------------


async def test_the_breaker_s_recovery_sends_everything_at_once(
    cache: Cache, other: Cache, backend: FaultyBackend, clock: FakeClock, settle: Callable[..., Awaitable[None]]
):
    """The first answer after an outage is enough; nobody waits for a timer."""
    await cache.set("k", "old")
    backend.fail()
    for number in range(50):
        await attempt(cache.delete(f"k{number}"))
    await attempt(cache.delete("k"))
    for _ in range(100):  # until attempts have become rare
        clock.advance(2)
        await settle()
    backend.mend()
    while cache._shared.breaker.state != "closed":
        clock.advance(0.5)
        await cache.get("probe")
    await settle(40)
    assert cache.stats().replay_waiting == 0
    assert await other.get("k") is None


async def test_a_dead_server_is_not_asked_for_each_change(
    cache: Cache, backend: FaultyBackend, clock: FakeClock, settle: Callable[..., Awaitable[None]]
):
    """A round that meets a dead server is one question, and the rounds become rarer."""
    backend.fail()
    for number in range(200):
        await cache.set(f"k{number}", number)
    backend.calls.clear()
    for _ in range(600):
        clock.advance(1)
        await settle()
    assert 10 <= len(backend.calls) <= 60
    assert cache.stats().replay_waiting == 200


async def test_a_change_that_always_fails_does_not_hold_up_the_others(
    cache: Cache, backend: FaultyBackend, clock: FakeClock, settle: Callable[..., Awaitable[None]]
):
    """One key of a server that is away, and many of servers that are not."""
    backend.fail()
    for number in range(100):
        await cache.set(f"k{number}", number)
    await attempt(cache.invalidate_tags("t"))
    backend.mend()
    backend.fail("set_many")  # the invalidation of the tag
    for _ in range(10):
        clock.advance(31)
        await settle(60)
    assert cache.stats().replay_waiting == 1
    backend.mend()
    clock.advance(61)
    await settle()
    assert cache.stats().replay_waiting == 0


async def test_an_engine_s_own_mistake_is_told_and_dropped(
    cache: Cache,
    backend: FaultyBackend,
    recorder: Recorder,
    drained: Callable[[], Awaitable[None]],
    caplog: pytest.LogCaptureFixture,
):
    """It would be made again and again."""
    await fail(cache, backend, CHANGES["delete"])
    backend.fail("swap", error=ZeroDivisionError("a bug"))
    await drained()
    assert cache.stats().replay_waiting == 0
    assert [event.reason for event in recorder.of(ReplayDropped)] == ["failed"]
    assert "a bug" in caplog.text


# Bounds --------------------------------------------------------------------------------------------------------------


def small(cache: Cache, clock: FakeClock, recorder: Recorder, *, changes: int = 3, size: int = 1000) -> None:
    """Give a cache a small queue."""
    shared = cache._shared
    shared.replay = Replay(clock, shared.counters, [recorder], max_changes=changes, max_bytes=size)
    cache._remote._replay = shared.replay  # type: ignore[union-attr, misc]


async def test_too_many_changes_drop_the_oldest_writes(
    cache: Cache, backend: FaultyBackend, clock: FakeClock, recorder: Recorder, caplog: pytest.LogCaptureFixture
):
    """Never a removal; each is an event and counted, and the log says so once."""
    small(cache, clock, recorder)
    backend.fail()
    await cache.set("a", 1)
    await attempt(cache.delete("b"))
    await cache.set("c", 1)
    await attempt(cache.delete("d"))
    await attempt(cache.delete("e"))
    assert [event.key for event in recorder.of(ReplayDropped)] == ["a", "c"]
    assert cache.stats().replay_dropped == 2
    assert cache.stats().replay_waiting == 3
    assert caplog.text.count("no more are kept") == 1


async def test_where_only_removals_wait_the_new_change_is_not_kept(
    cache: Cache, backend: FaultyBackend, clock: FakeClock, recorder: Recorder
):
    """The callers of the others count on theirs; this one is told by the error, and by an event."""
    small(cache, clock, recorder)
    backend.fail()
    for key in "abcd":
        with pytest.raises(BackendUnavailable):
            await cache.delete(key)
    assert [(event.key, event.reason) for event in recorder.of(ReplayDropped)] == [("d", "full")]
    await attempt(cache.delete("a"))
    assert len(recorder.of(ReplayDropped)) == 1, "one that is kept is kept"


async def test_too_many_bytes_leave_the_oldest_writes_as_removals(
    cache: Cache,
    other: Cache,
    backend: FaultyBackend,
    clock: FakeClock,
    recorder: Recorder,
    drained: Callable[[], Awaitable[None]],
):
    """Their values are lost, the older ones under them go all the same; one too large by itself has no value to keep."""
    await cache.set_many(dict.fromkeys("abcd", "old"))
    small(cache, clock, recorder, changes=10)
    backend.fail()
    for key in "abc":
        await cache.set(key, key * 400)
    await cache.set("d", "d" * 2000)
    replay = cache._shared.replay
    assert replay.bytes <= 1000
    backend.mend()
    await backend.delete("n::b")
    await backend.delete("n::c")
    await drained()
    assert await other.get_many(list("abcd")) == {"b": "b" * 400, "c": "c" * 400}
    assert replay.bytes == 0
    assert recorder.of(ReplayDropped) == []


@pytest.mark.parametrize("seed", range(5))
async def test_every_change_is_accounted_for(
    backend: FaultyBackend, clock: FakeClock, recorder: Recorder, drained: Callable[[], Awaitable[None]], seed: int
):
    """Each has arrived, was dropped, gave its place to a later one, or waits: at any time, and after the end."""
    rng = random.Random(seed)
    calls: list[Call] = [
        lambda cache: cache.set(rng.choice("abcdef"), "x" * 100),
        lambda cache: cache.delete(rng.choice("abcdef")),
        lambda cache: cache.set_many(dict.fromkeys("abcd", "x" * 200)),
        lambda cache: cache.invalidate_tags("t", "u"),
        lambda cache: cache.clear(),
    ]
    async with Cache(backend, memory=None, clock=clock, namespace="n") as cache:
        small(cache, clock, recorder, changes=5)
        for _ in range(30):
            backend.fail()
            for _ in range(rng.randrange(20)):
                await attempt(rng.choices(calls, [10, 10, 2, 1, 1])[0](cache))
                assert accounted(cache)
            backend.mend()
            for _ in range(rng.randrange(3)):
                await attempt(rng.choice(calls)(cache))
                assert accounted(cache)
            await drained()
            assert accounted(cache)
        stats = cache.stats()
        assert min(stats.replayed, stats.replay_dropped, stats.replay_replaced) > 0
        backend.fail()
        await attempt(cache.delete("last"))
        assert cache.stats().replay_waiting == 1
    assert accounted(cache)
    stats = cache.stats()
    assert (stats.replayed, stats.replay_dropped) == (len(recorder.of(Replayed)), len(recorder.of(ReplayDropped)))


async def test_a_hundred_thousand_failed_changes_stay_within_the_bound(backend: FaultyBackend, clock: FakeClock):
    """However long the outage (law 9)."""
    async with Cache(backend, memory=None, clock=clock, namespace="n") as cache:
        backend.fail()
        for number in range(100_000):
            await cache.set(f"k{number}", number)
        assert cache.stats().replay_waiting == 10_000
        assert cache.stats().replay_dropped == 90_000


async def test_nothing_is_left_behind_after_the_replay(
    backend: FaultyBackend, clock: FakeClock, settle: Callable[..., Awaitable[None]], footprint: Callable[..., int]
):
    """No task, no timer, no growth."""
    async with Cache(backend, memory=None, clock=clock, namespace="n") as cache:
        sizes = []
        for _ in range(3):
            await fail(cache, backend, CHANGES["set_many"])
            await fail(cache, backend, CHANGES["delete"])
            await fail(cache, backend, CHANGES["invalidate_tags"])
            clock.advance(61)
            await settle()
            assert cache.stats().replay_waiting == 0
            backend.calls.clear()
            gc.collect()
            sizes.append(footprint(cache._shared.replay._removals, cache._shared.replay._writes))
        assert sizes[0] == sizes[1] == sizes[2]
        assert [task for task in asyncio.all_tasks() if task.get_name() == "acache-replay"] == []


# Closing -------------------------------------------------------------------------------------------------------------


async def test_closing_sends_what_is_kept_once_more(backend: FaultyBackend, other: Cache, clock: FakeClock):
    """If the far tier answers."""
    await other.set("k", "old")
    cache = Cache(backend, clock=clock, namespace="n")
    await fail(cache, backend, CHANGES["delete"])
    await cache.aclose()
    assert await other.get("k") is None
    assert cache.stats().replayed == 1


async def test_closing_drops_what_does_not_arrive_and_says_how_much(
    backend: FaultyBackend, clock: FakeClock, caplog: pytest.LogCaptureFixture
):
    """Within a bounded time."""
    recorder = Recorder()
    cache = Cache(backend, clock=clock, namespace="n", observers=[recorder])
    backend.fail()
    await attempt(cache.delete("k"))
    await cache.set_many({"a": 1, "b": 2})
    with caplog.at_level(logging.WARNING, "acache"):
        await cache.aclose()
    assert "confirmed 3 changes, of them 1 removals" in caplog.text
    assert [event.reason for event in recorder.of(ReplayDropped)] == ["closed"] * 3
    assert cache.stats().replay_waiting == 0


async def test_closing_does_not_wait_for_a_dead_server(backend: FaultyBackend, clock: FakeClock):
    """One that takes the question and does not answer costs a second."""
    cache = Cache(backend, clock=clock, namespace="n", policy=Policy(backend_timeout=60))
    await fail(cache, backend, CHANGES["delete"])
    held = backend.hold("swap")
    async with asyncio.timeout(30):
        await cache.aclose()
    assert held.reached.is_set()
    assert cache.stats().replay_dropped == 1
    held.release()


async def test_a_cache_that_is_opened_again_keeps_again(backend: FaultyBackend, other: Cache, clock: FakeClock):
    """And sends."""
    cache = Cache(backend, clock=clock, namespace="n")
    async with cache:
        pass
    async with cache:
        await other.set("k", "old")
        await fail(cache, backend, CHANGES["delete"])
        assert cache.stats().replay_waiting == 1
    assert await other.get("k") is None


def test_what_one_loop_left_another_one_sends():
    """The loop in which it failed has ended (law 12)."""
    backend = FaultyBackend()
    cache = Cache(backend, memory=None, namespace="n")

    async def first() -> None:
        await cache.set("k", "old")
        await fail(cache, backend, CHANGES["delete"])

    async def second() -> None:
        async with asyncio.timeout(30):
            while await cache.get("k") is not None or cache.stats().replay_waiting:
                await asyncio.sleep(0.01)
        await cache.aclose()

    asyncio.run(first())
    asyncio.run(second())
    assert cache.stats().replayed == 1


async def test_views_share_one_queue_and_keep_their_namespaces_apart(cache: Cache, backend: FaultyBackend):
    """A change in one namespace does not make another's values doubtful."""
    view = cache.view(namespace="m")
    await view.set("k", 1)
    await fail(cache, backend, CHANGES["clear"])
    assert view.stats().replay_waiting == 1
    assert await view.get("k") == 1


async def test_memory_backends_never_keep_anything():
    """The control group."""
    async with Cache(MemoryBackend(), namespace="n") as cache:
        for change in CHANGES.values():
            await change(cache)
        assert cache.stats().replay_kept == 0


async def test_a_fill_that_could_not_be_taken_back_is_removed_later(
    clock: FakeClock, settle: Callable[..., Awaitable[None]]
):
    """An engine that cannot compare stored a load's value over a delete, and the removal of it failed."""

    async def load() -> str:
        return "old"

    backend = Plain(clock)
    async with Cache(backend, memory=None, clock=clock) as cache:
        held = backend.store.hold("set")
        loading = asyncio.create_task(cache.get_or_load("k", load))
        await held.reached.wait()
        await cache.delete("k")
        backend.store.fail("delete")
        held.release()
        assert await loading == "old"
        backend.store.mend()
        assert await cache.get("k") is None
        clock.advance(1)
        await settle()
        assert await backend.store.get("k") is None
        assert cache.stats().replayed == 1
