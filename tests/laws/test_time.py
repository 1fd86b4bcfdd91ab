"""Law 8: never fresh after ttl; stale windows come after it; jitter and early refresh only shorten."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acache import Cache, Entry, KeyMissing, LoadTimeout, Memory, MemoryBackend, Policy
from acache.events import FillRefused, Hit, Loaded, LoadFailed, Stored
from acache.testing import FakeClock, FaultyBackend, Recorder

TOPOLOGIES = ("near", "near over far", "far")
Build = Callable[..., Cache]


class Source:
    """A loader that counts: 1, 2, 3 and so on; it can fail, and it can be held up."""

    def __init__(self, clock: FakeClock | None = None, takes: float = 0.0) -> None:
        self.count = 0
        self.error: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.started = asyncio.Event()
        self.cancelled = 0
        self._clock = clock
        self._takes = takes

    async def __call__(self) -> int:
        self.count += 1
        number = self.count
        self.started.set()
        if self._clock is not None:
            self._clock.advance(self._takes)
        if self.gate is not None:
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        if self.error is not None:
            raise self.error
        return number


async def settle() -> None:
    """Let what runs behind come to its end."""
    for _ in range(50):
        await asyncio.sleep(0)


@pytest.fixture
def clock() -> FakeClock:
    """A clock that moves when told."""
    return FakeClock()


@pytest.fixture(params=TOPOLOGIES)
def build(request: pytest.FixtureRequest, clock: FakeClock) -> Build:
    """Make a cache of each topology."""

    def build(recorder: Recorder | None = None, **policy: Any) -> Cache:
        backend = None if request.param == "near" else MemoryBackend(clock=clock)
        memory = None if request.param == "far" else Memory()
        observers = [] if recorder is None else [recorder]
        return Cache(
            backend, memory=memory, clock=clock, policy=Policy(**policy), namespace="time", observers=observers
        )

    return build


@pytest.fixture
async def cache(build: Build) -> AsyncIterator[Cache]:
    """A cache with the default policy."""
    async with build() as cache:
        yield cache


# ttl -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ttl", [0.001, 1, 60, 86400.0, timedelta(minutes=1), timedelta(milliseconds=250)])
async def test_a_value_is_fresh_up_to_its_ttl_and_not_at_it(cache: Cache, clock: FakeClock, ttl: Any):
    """The boundary itself is past it, for every way to read."""
    length = ttl.total_seconds() if isinstance(ttl, timedelta) else ttl
    await cache.set("k", "v", ttl=ttl)
    clock.advance(length * 0.999)
    assert await cache.get("k") == "v"
    assert await cache.has("k") is True
    assert await cache.get_many(["k"]) == {"k": "v"}
    assert isinstance(await cache.get_entry("k"), Entry)
    clock.advance(length * 0.001 + 1e-6)
    assert await cache.get("k") is None
    assert cache.peek("k") is None
    assert await cache.has("k") is False
    assert await cache.get_many(["k"]) == {}
    assert await cache.get_entry("k") is None
    with pytest.raises(KeyMissing):
        await cache.ttl("k")
    assert await cache.touch("k", ttl=5) is False
    assert await cache.delete("k") is False


async def test_the_boundary_is_exact(clock: FakeClock):
    """At exactly ttl a near value is a miss; a thousandth before it is a hit."""
    async with Cache(clock=clock) as cache:
        await cache.set("k", "v", ttl=64)
        clock.advance(63.999)
        assert await cache.get("k") == "v"
        clock.advance(clock_left(clock, 64))
        assert await cache.get("k") is None


def clock_left(clock: FakeClock, total: float) -> float:
    """Return what is missing to ``total`` seconds since the fake clock's start."""
    return 1000.0 + total - clock.monotonic()


@pytest.mark.parametrize("verb", ["set", "add", "set_many", "incr", "get_or_load", "refresh", "load_many", "touch"])
async def test_every_verb_honours_its_ttl(cache: Cache, clock: FakeClock, verb: str):
    """Whatever wrote the value, it ends when it was told to."""

    async def load() -> int:
        return 1

    async def load_many(keys: Any) -> dict[str, int]:
        return dict.fromkeys(keys, 1)

    if verb == "set":
        await cache.set("k", 1, ttl=10)
    elif verb == "add":
        await cache.add("k", 1, ttl=10)
    elif verb == "set_many":
        await cache.set_many({"k": 1}, ttl=10)
    elif verb == "incr":
        await cache.incr("k", ttl=10)
    elif verb == "get_or_load":
        await cache.get_or_load("k", load, ttl=10)
    elif verb == "refresh":
        await cache.refresh("k", load, ttl=10)
    elif verb == "load_many":
        await cache.load_many(["k"], load_many, ttl=10)
    else:
        await cache.set("k", 1, ttl=1000)
        await cache.touch("k", ttl=10)
    assert await cache.ttl("k") == pytest.approx(10, abs=0.01)
    clock.advance(9.9)
    assert await cache.get("k") == 1
    clock.advance(0.2)
    assert await cache.get("k") is None


async def test_a_read_does_not_prolong(cache: Cache, clock: FakeClock):
    """Reading, also through another tier, leaves the end where it was."""
    await cache.set("k", "v", ttl=20)
    for _ in range(19):
        clock.advance(1)
        assert await cache.get("k") == "v"
    clock.advance(1.001)
    assert await cache.get("k") is None


async def test_a_write_replaces_the_end(cache: Cache, clock: FakeClock):
    """Shorter, longer and for ever: the last write counts."""
    await cache.set("k", 1, ttl=10)
    await cache.set("k", 2, ttl=1000)
    clock.advance(500)
    assert await cache.get("k") == 2
    await cache.set("k", 3, ttl=None)
    clock.advance(10**9)
    assert await cache.get("k") == 3
    assert await cache.ttl("k") is None
    await cache.set("k", 4, ttl=1)
    clock.advance(1.001)
    assert await cache.get("k") is None


async def test_none_never_expires(build: Build, clock: FakeClock):
    """Neither by a call nor by the policy."""
    async with build(ttl=None) as cache:
        await cache.set("k", "v")
        clock.advance(10**10)
        assert await cache.get("k") == "v"
        entry = await cache.get_entry("k")
        assert entry is not None
        assert (entry.fresh_until, entry.expires_at) == (None, None)


async def test_the_default_is_the_policy_s(build: Build, clock: FakeClock):
    """Five minutes if nobody says otherwise."""
    async with build() as cache:
        await cache.set("k", "v")
        assert await cache.ttl("k") == pytest.approx(300)
    async with build(ttl=timedelta(seconds=7)) as cache:
        await cache.set("k", "v")
        assert await cache.ttl("k") == pytest.approx(7)


async def test_touch_counts_from_now(cache: Cache, clock: FakeClock):
    """It prolongs and shortens, and takes ``None``."""
    await cache.set("k", "v", ttl=10)
    clock.advance(8)
    assert await cache.touch("k", ttl=10) is True
    clock.advance(8)
    assert await cache.get("k") == "v"
    assert await cache.touch("k", ttl=1) is True
    clock.advance(1.001)
    assert await cache.get("k") is None
    await cache.set("k", "v", ttl=10)
    assert await cache.touch("k", ttl=None) is True
    clock.advance(10**6)
    assert await cache.get("k") == "v"


async def test_a_counter_keeps_its_time(cache: Cache, clock: FakeClock):
    """Only the first increment sets the end."""
    await cache.incr("n", ttl=10)
    clock.advance(9)
    assert await cache.incr("n", ttl=10) == 2
    clock.advance(1.001)
    assert await cache.incr("n", ttl=10) == 1


async def test_entry_dates_are_right(cache: Cache, clock: FakeClock):
    """`get_entry` tells when it was written, when its ttl ends and when it is gone."""
    written = clock.wall()
    await cache.set("k", "v", ttl=60, tags=["t"])
    clock.advance(20)
    entry = await cache.get_entry("k")
    assert entry is not None
    assert entry.created_at == pytest.approx(written)
    assert entry.fresh_until == pytest.approx(written + 60)
    assert entry.expires_at == pytest.approx(written + 60)
    assert entry.tags == ("t",)
    assert await cache.ttl("k") == pytest.approx(40)


async def test_the_near_copy_ends_with_the_entry(clock: FakeClock):
    """A near copy of a far value that is old already does not live a whole ttl again."""
    backend = MemoryBackend(clock=clock)
    async with Cache(backend, clock=clock, memory=Memory(ttl=1000)) as one, Cache(backend, clock=clock) as other:
        await other.set("k", "v", ttl=10)
        clock.advance(9)
        assert await one.get("k") == "v"
        clock.advance(1.001)
        assert await one.get("k") is None
        assert one.peek("k") is None


async def test_a_near_tier_s_own_ttl_is_an_upper_bound(clock: FakeClock):
    """After it, the far tier is asked again."""
    backend = FaultyBackend(clock=clock)
    async with Cache(backend, clock=clock, memory=Memory(ttl=2)) as cache:
        await cache.set("k", "v", ttl=60)
        backend.calls.clear()
        clock.advance(1.9)
        assert await cache.get("k") == "v"
        assert backend.calls == []
        clock.advance(0.2)
        assert cache.peek("k") is None
        assert await cache.get("k") == "v"
        assert backend.calls != []


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["set", "touch", "advance", "advance", "get", "load", "add"]),
            st.floats(0.01, 50, allow_nan=False),
        ),
        max_size=40,
    ),
    st.sampled_from(TOPOLOGIES),
    st.floats(0, 0.9),
)
@settings(deadline=None, max_examples=80)
async def test_never_fresh_after_ttl(steps: list[tuple[str, float]], topology: str, jitter: float):
    """Whatever is done in whatever order, a value is not returned after the ttl it was last given."""
    clock = FakeClock()
    backend = None if topology == "near" else MemoryBackend(clock=clock)
    policy = Policy(ttl=20, jitter=jitter)
    async with Cache(backend, memory=None if topology == "far" else 10, clock=clock, policy=policy) as cache:
        end = clock.monotonic()
        value = -1
        for number, (verb, amount) in enumerate(steps):
            now = clock.monotonic()
            if verb == "advance":
                clock.advance(amount)
            elif verb == "get":
                found = await cache.get("k")
                assert found is None or (found == value and now < end + 1e-6)
                assert not (jitter == 0 and found is None and now < end - 1e-6)
            elif verb == "set":
                await cache.set("k", number, ttl=amount)
                value, end = number, now + amount
            elif verb == "touch":
                if await cache.touch("k", ttl=amount):
                    assert now < end + 1e-6
                    end = now + amount
            elif verb == "add":
                if await cache.add("k", number, ttl=amount):
                    value, end = number, now + amount
            else:
                got = await cache.get_or_load("k", lambda number=number: answer(number), ttl=amount)  # type: ignore[misc]
                assert got in (value, number)
                if got == value and value != number:
                    assert now < end + 1e-6
                else:
                    value, end = number, now + amount


async def answer(value: Any) -> Any:
    """A loader's work."""
    return value


# Jitter --------------------------------------------------------------------------------------------------------------


async def test_jitter_only_shortens(build: Build):
    """Up to its fraction and never beyond the ttl; different entries end at different times."""
    async with build(ttl=100, jitter=0.2) as cache:
        lengths = []
        for number in range(200):
            await cache.set(f"k{number}", number)
            left = await cache.ttl(f"k{number}")
            assert left is not None
            lengths.append(left)
        assert all(79.999 <= left <= 100.001 for left in lengths)
        assert len(set(lengths)) > 150
        assert min(lengths) < 85
        assert max(lengths) > 95


async def test_jitter_applies_to_loads_and_explicit_ttls(build: Build):
    """Every finite ttl is spread; for ever stays for ever."""
    async with build(ttl=None, jitter=0.5) as cache:
        await cache.set("k", 1)
        assert await cache.ttl("k") is None
        lengths = set()
        for number in range(50):
            await cache.get_or_load(f"k{number}", lambda: answer(1), ttl=100)
            left = await cache.ttl(f"k{number}")
            assert left is not None
            assert 49.999 <= left <= 100.001
            lengths.add(left)
        assert len(lengths) > 40


async def test_without_jitter_the_ttl_is_exact(cache: Cache):
    """Off by default."""
    for number in range(20):
        await cache.set(f"k{number}", number, ttl=100)
        assert await cache.ttl(f"k{number}") == pytest.approx(100, abs=1e-6)


# stale_while_revalidate ----------------------------------------------------------------------------------------------


async def test_a_stale_value_answers_while_one_load_runs_behind(build: Build, clock: FakeClock):
    """Within the window every caller gets the old value at once; one load runs; then the new value is there."""
    source = Source()
    async with build(ttl=10, stale_while_revalidate=20) as cache:
        assert await cache.get_or_load("k", source) == 1
        clock.advance(15)
        source.gate = asyncio.Event()
        assert await asyncio.gather(*[cache.get_or_load("k", source) for _ in range(20)]) == [1] * 20
        assert await cache.get_or_load("k", source) == 1
        await settle()
        assert source.count == 2
        source.gate.set()
        await settle()
        assert await cache.get_or_load("k", source) == 2
        assert source.count == 2
        assert cache.stats().hits_stale >= 1
        assert cache.stats().hits_stale + cache.stats().coalesced >= 20


async def test_the_window_is_additional_and_ends(build: Build, clock: FakeClock):
    """It is counted after ttl (RFC 5861); past it, callers wait for the load."""
    source = Source()
    async with build(ttl=10, stale_while_revalidate=20) as cache:
        assert await cache.get_or_load("k", source) == 1
        clock.advance(29.9)
        assert await cache.get_or_load("k", source) == 1
        await settle()
        assert await cache.get_or_load("k", source) == 2
        clock.advance(30.1)
        assert await cache.get_or_load("k", source) == 3
        assert source.count == 3


async def test_a_stale_value_is_a_miss_for_plain_reads(build: Build, clock: FakeClock):
    """`get`, `has`, `peek`, `get_many`, `ttl` and `get_entry` know fresh values only."""
    async with build(ttl=10, stale_while_revalidate=1000, stale_if_error=1000) as cache:
        await cache.set("k", "v")
        await cache.get_or_load("l", lambda: answer("v"))
        clock.advance(11)
        for key in ("k", "l"):
            assert await cache.get(key) is None
            assert await cache.has(key) is False
            assert cache.peek(key) is None
            assert await cache.get_many([key]) == {}
            assert await cache.get_entry(key) is None
            assert await cache.touch(key, ttl=10) is False
            with pytest.raises(KeyMissing):
                await cache.ttl(key)


async def test_add_takes_the_place_of_a_stale_value(build: Build, clock: FakeClock):
    """Stored if there is no fresh value: a stale one is none."""
    async with build(ttl=10, stale_while_revalidate=1000) as cache:
        await cache.set("k", "old")
        assert await cache.add("k", "new") is False
        clock.advance(11)
        assert await cache.add("k", "new") is True
        assert await cache.get("k") == "new"


async def test_delete_of_a_stale_value_says_that_there_was_none(build: Build, clock: FakeClock):
    """``delete`` tells whether there was a value, as ``get`` would have; and no stale value comes after it."""
    source = Source()
    async with build(ttl=10, stale_while_revalidate=1000) as cache:
        await cache.get_or_load("k", source)
        clock.advance(11)
        assert await cache.delete("k") is False
        assert await cache.get_or_load("k", source) == 2


async def test_incr_of_a_stale_counter_value_starts_again(build: Build, clock: FakeClock):
    """A number that was set and is past its ttl is not added to."""
    async with build(ttl=10, stale_while_revalidate=1000) as cache:
        await cache.set("k", 5)
        clock.advance(11)
        assert await cache.incr("k") == 1


@pytest.mark.parametrize("verb", ["delete", "set", "tags", "clear"])
async def test_no_stale_value_after_an_invalidation(build: Build, clock: FakeClock, verb: str):
    """What was removed or replaced does not come back through a stale window."""
    source = Source()
    async with build(ttl=10, stale_while_revalidate=1000, stale_if_error=1000) as cache:
        assert await cache.get_or_load("k", source, tags=["t"]) == 1
        clock.advance(11)
        if verb == "delete":
            await cache.delete("k")
        elif verb == "set":
            await cache.set("k", 100)
        elif verb == "tags":
            await cache.invalidate_tags("t")
        else:
            await cache.clear()
        source.error = RuntimeError("the source is down")
        if verb == "set":
            assert await cache.get_or_load("k", source) == 100
        else:
            with pytest.raises(RuntimeError):
                await cache.get_or_load("k", source, tags=["t"])


async def test_the_window_of_a_call_wins(build: Build, clock: FakeClock):
    """``get_or_load(stale_while_revalidate=...)`` for one call, and its values are kept that long."""
    source = Source()
    async with build(ttl=10) as cache:
        await cache.get_or_load("k", source, stale_while_revalidate=60)
        clock.advance(50)
        assert await cache.get_or_load("k", source, stale_while_revalidate=60) == 1
        await settle()
        assert source.count == 2


async def test_a_call_without_a_window_does_not_take_stale_values(build: Build, clock: FakeClock):
    """Another caller's window is not this one's."""
    source = Source()
    async with build(ttl=10) as cache:
        await cache.get_or_load("k", source, stale_while_revalidate=60)
        clock.advance(11)
        assert await cache.get_or_load("k", source) == 2


async def test_a_caller_without_a_window_waits_for_the_load_behind(build: Build, clock: FakeClock):
    """While a stale value is being served to others, one who did not allow that gets the new one."""
    source = Source()
    async with build(ttl=10) as cache:
        await cache.get_or_load("k", source, stale_while_revalidate=60)
        clock.advance(11)
        source.gate = asyncio.Event()
        assert await cache.get_or_load("k", source, stale_while_revalidate=60) == 1
        strict = asyncio.create_task(cache.get_or_load("k", source))
        await settle()
        source.gate.set()
        assert await strict == 2


async def test_a_stale_hit_is_told_as_one(clock: FakeClock):
    """The event says stale, and it is no fresh hit in the numbers."""
    recorder, source = Recorder(), Source()
    async with Cache(clock=clock, policy=Policy(ttl=10, stale_while_revalidate=10), observers=[recorder]) as cache:
        await cache.get_or_load("k", source)
        clock.advance(11)
        await cache.get_or_load("k", source)
        assert [event.stale for event in recorder.of(Hit)] == [True]
        assert cache.stats().hits_near == 0


# stale_if_error ------------------------------------------------------------------------------------------------------


async def test_a_stale_value_answers_for_a_loader_that_raises(build: Build, clock: FakeClock):
    """Within the window, counted after ttl; past it the error reaches the caller."""
    source = Source()
    async with build(ttl=10, stale_if_error=20, error_backoff=0) as cache:
        assert await cache.get_or_load("k", source) == 1
        source.error = RuntimeError("down")
        clock.advance(11)
        assert await cache.get_or_load("k", source) == 1
        assert source.count == 2
        clock.advance(18.9)
        assert await cache.get_or_load("k", source) == 1
        clock.advance(0.2)
        with pytest.raises(RuntimeError, match="down"):
            await cache.get_or_load("k", source)


async def test_a_loader_that_works_again_is_used_again(build: Build, clock: FakeClock):
    """The error is not remembered beyond the backoff."""
    source = Source()
    async with build(ttl=10, stale_if_error=100) as cache:
        await cache.get_or_load("k", source)
        source.error = RuntimeError("down")
        clock.advance(11)
        assert await cache.get_or_load("k", source) == 1
        source.error = None
        clock.advance(1.001)
        assert await cache.get_or_load("k", source) == 3
        assert await cache.get("k") == 3


async def test_after_a_failure_the_loader_is_left_alone_for_a_moment(build: Build, clock: FakeClock):
    """For ``error_backoff`` seconds the stale value answers at once; then one caller tries again."""
    source = Source()
    async with build(ttl=10, stale_if_error=100, error_backoff=5) as cache:
        await cache.get_or_load("k", source)
        source.error = RuntimeError("down")
        clock.advance(11)
        for _ in range(10):
            assert await cache.get_or_load("k", source) == 1
        assert source.count == 2
        clock.advance(4.9)
        assert await cache.get_or_load("k", source) == 1
        assert source.count == 2
        clock.advance(0.2)
        assert await asyncio.gather(*[cache.get_or_load("k", source) for _ in range(10)]) == [1] * 10
        assert source.count == 3


async def test_the_backoff_of_one_key_is_its_own(build: Build, clock: FakeClock):
    """Other keys are loaded as ever."""
    source, other = Source(), Source()
    async with build(ttl=10, stale_if_error=100, error_backoff=5) as cache:
        await cache.get_or_load("k", source)
        source.error = RuntimeError("down")
        clock.advance(11)
        await cache.get_or_load("k", source)
        assert await cache.get_or_load("l", other) == 1


async def test_without_a_stale_value_an_error_is_not_throttled(build: Build):
    """A caller who would get nothing else gets a try of their own."""
    source = Source()
    source.error = RuntimeError("down")
    async with build(ttl=10, stale_if_error=100, error_backoff=5) as cache:
        for _ in range(3):
            with pytest.raises(RuntimeError):
                await cache.get_or_load("k", source)
        assert source.count == 3


async def test_an_error_behind_a_stale_value_reaches_nobody(build: Build, clock: FakeClock, caplog: Any):
    """A refresh behind that fails leaves the stale value, and is throttled as well."""
    source = Source()
    async with build(ttl=10, stale_while_revalidate=100, error_backoff=5) as cache:
        await cache.get_or_load("k", source)
        source.error = RuntimeError("down")
        clock.advance(11)
        for _ in range(5):
            assert await cache.get_or_load("k", source) == 1
            await settle()
        assert source.count == 2
        assert cache.stats().load_failures == 1


async def test_cancellation_is_not_an_error(build: Build, clock: FakeClock):
    """A loader's own CancelledError, or a SystemExit, is not answered with a stale value."""
    source = Source()
    async with build(ttl=10, stale_if_error=100) as cache:
        await cache.get_or_load("k", source)
        clock.advance(11)
        source.gate = asyncio.Event()
        task = asyncio.create_task(cache.get_or_load("k", source))
        await settle()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


# negative_ttl --------------------------------------------------------------------------------------------------------


async def test_a_loaded_none_has_its_own_ttl(build: Build, clock: FakeClock):
    """Shorter here; explicit writes of None are not negative results."""
    loads: list[str] = []

    async def find(key: str) -> str | None:
        loads.append(key)
        return None if key == "nobody" else key

    async with build(ttl=100, negative_ttl=5) as cache:
        for _ in range(3):
            assert await cache.get_or_load("nobody", lambda: find("nobody")) is None
            assert await cache.get_or_load("ada", lambda: find("ada")) == "ada"
        assert loads == ["nobody", "ada"]
        await cache.set("set", None)
        clock.advance(5.001)
        assert await cache.get_or_load("nobody", lambda: find("nobody")) is None
        assert await cache.get_or_load("ada", lambda: find("ada")) == "ada"
        assert loads == ["nobody", "ada", "nobody"]
        assert await cache.has("set") is True


async def test_negative_ttl_may_be_longer(build: Build, clock: FakeClock):
    """It replaces ttl, whichever is longer."""
    source = Source()
    async with build(ttl=5, negative_ttl=50) as cache:

        async def load() -> None:
            await source()

        await cache.get_or_load("k", load)
        clock.advance(49)
        await cache.get_or_load("k", load)
        assert source.count == 1
        clock.advance(1.001)
        await cache.get_or_load("k", load)
        assert source.count == 2


# refresh_ahead and early_refresh -------------------------------------------------------------------------------------


async def test_refresh_ahead_reloads_behind_a_hit(build: Build, clock: FakeClock):
    """After its fraction of ttl, a hit starts one load behind and returns the value that is there."""
    source = Source()
    async with build(ttl=100, refresh_ahead=0.8) as cache:
        assert await cache.get_or_load("k", source) == 1
        clock.advance(79)
        assert await cache.get_or_load("k", source) == 1
        await settle()
        assert source.count == 1
        clock.advance(2)
        source.gate = asyncio.Event()
        assert await asyncio.gather(*[cache.get_or_load("k", source) for _ in range(10)]) == [1] * 10
        await settle()
        assert source.count == 2
        source.gate.set()
        await settle()
        assert await cache.get_or_load("k", source) == 2
        clock.advance(79)
        assert await cache.get_or_load("k", source) == 2
        await settle()
        assert source.count == 2


@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.8])
async def test_a_busy_key_is_never_loaded_in_front(build: Build, clock: FakeClock, fraction: float):
    """With refresh_ahead, a key that is read every second is always a hit after the first load."""
    source = Source()
    async with build(ttl=10, refresh_ahead=fraction) as cache:
        await cache.get_or_load("k", source)
        misses = cache.stats().misses
        for _ in range(100):
            clock.advance(1)
            await cache.get_or_load("k", source)
            await settle()
        assert cache.stats().misses == misses
        assert 10 <= source.count <= 35


async def test_refresh_ahead_applies_to_decorated_functions(build: Build, clock: FakeClock):
    """The quick path of the wrapper sees it too."""
    source = Source()
    async with build(ttl=100, refresh_ahead=0.5) as cache:

        @cache.cached()
        async def f() -> int:
            return await source()

        assert [await f() for _ in range(3)] == [1, 1, 1]
        clock.advance(60)
        assert await f() == 1
        await settle()
        assert await f() == 2


async def test_a_failed_refresh_ahead_leaves_the_value(build: Build, clock: FakeClock):
    """It stays fresh to its end, the callers see nothing, and the loader is not asked at every hit."""
    source = Source()
    async with build(ttl=100, refresh_ahead=0.5, error_backoff=10) as cache:
        await cache.get_or_load("k", source)
        source.error = RuntimeError("down")
        clock.advance(60)
        for _ in range(5):
            assert await cache.get_or_load("k", source) == 1
            await settle()
        assert source.count == 2
        clock.advance(11)
        assert await cache.get_or_load("k", source) == 1
        await settle()
        assert source.count == 3


async def test_early_refresh_is_likelier_near_the_end(build: Build, clock: FakeClock):
    """XFetch: never long before, nearly always just before, and weighted by the time the load took."""

    async def refreshed(left: float, takes: float) -> int:
        count = 0
        for _ in range(40):
            source = Source(clock, takes)
            async with build(ttl=1000, early_refresh=1.0) as cache:
                await cache.get_or_load("k", source)
                clock.advance(1000 - left)
                assert await cache.get_or_load("k", source) == 1
                await settle()
                count += source.count - 1
        return count

    assert await refreshed(left=900, takes=1) == 0
    assert await refreshed(left=0.01, takes=10) >= 36
    assert 2 <= await refreshed(left=10, takes=10) <= 30
    assert await refreshed(left=500, takes=0.001) == 0


async def test_early_refresh_looks_at_every_hit(build: Build, clock: FakeClock):
    """Also at those on a near copy: a key that is read all the time is reloaded behind, again and again."""
    source = Source(clock, 10)
    async with build(ttl=60, early_refresh=1.0) as cache:
        await cache.get_or_load("k", source)
        misses = cache.stats().misses
        for _ in range(2000):
            clock.advance(0.1)
            await cache.get_or_load("k", source)
            await settle()
        assert source.count >= 4
        assert cache.stats().misses == misses


async def test_an_early_refresh_of_another_process_is_taken(clock: FakeClock):
    """Who is due to reload, and finds the entry newer than the own copy, has nothing to load."""
    backend, first, second = MemoryBackend(clock=clock), Source(clock, 10), Source(clock, 10)
    one = Cache(backend, clock=clock, memory=Memory(ttl=60), policy=Policy(ttl=60))
    two = Cache(backend, clock=clock, memory=Memory(ttl=60), policy=Policy(ttl=60, early_refresh=1e9))  # always due
    async with one, two:
        await one.get_or_load("k", first)
        await two.get_or_load("k", second)
        await settle()
        assert (first.count, second.count) == (1, 1)
        clock.advance(20)
        assert await one.refresh("k", first) == 2
        assert await two.get_or_load("k", second) == 1
        await settle()
        assert second.count == 1
        assert two.peek("k") == 2
        assert await two.get_or_load("k", second) == 2
        await settle()
        assert second.count == 2


async def test_early_refresh_is_off_by_default(build: Build, clock: FakeClock):
    """Up to the last moment nothing is loaded."""
    source = Source(clock, 10)
    async with build(ttl=100) as cache:
        await cache.get_or_load("k", source)
        clock.advance(89.9)
        for _ in range(50):
            await cache.get_or_load("k", source)
        await settle()
        assert source.count == 1


# Timeouts ------------------------------------------------------------------------------------------------------------


async def test_load_timeout_ends_a_load(build: Build, clock: FakeClock):
    """Every waiter gets LoadTimeout, which is a TimeoutError; the loader is cancelled; the next caller loads."""
    source = Source()
    source.gate = asyncio.Event()
    async with build(load_timeout=5) as cache:
        tasks = [asyncio.create_task(cache.get_or_load("k", source)) for _ in range(3)]
        await source.started.wait()
        await settle()
        clock.advance(4.9)
        await settle()
        assert not any(task.done() for task in tasks)
        clock.advance(0.2)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [LoadTimeout] * 3
        assert isinstance(results[0], TimeoutError)
        assert "5" in str(results[0])
        assert source.cancelled == 1
        source.gate.set()
        assert await cache.get_or_load("k", source) == 2


async def test_load_timeout_is_an_error_that_a_stale_value_answers(build: Build, clock: FakeClock):
    """With ``stale_if_error`` a load that is too slow is a load that failed."""
    source = Source()
    async with build(ttl=10, load_timeout=5, stale_if_error=100) as cache:
        assert await cache.get_or_load("k", source) == 1
        clock.advance(11)
        source.gate = asyncio.Event()
        source.started.clear()
        task = asyncio.create_task(cache.get_or_load("k", source))
        await source.started.wait()
        await settle()
        clock.advance(5.1)
        assert await task == 1


class Stubborn:
    """A loader that swallows its first cancellation, and ends when it is let go."""

    def __init__(self, *, uncancel: bool = False, error: Exception | None = None) -> None:
        self.cancelled = 0
        self.started = asyncio.Event()
        self.go = asyncio.Event()
        self._uncancel = uncancel
        self._error = error

    async def __call__(self) -> str:
        self.started.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            task = asyncio.current_task()
            if self._uncancel and task is not None:
                task.uncancel()
            await self.go.wait()
        if self._error is not None:
            raise self._error
        return "late"

    async def many(self, keys: Any) -> dict[Any, str]:
        return dict.fromkeys(keys, await self())


@pytest.mark.parametrize("uncancel", [False, True])
@pytest.mark.parametrize("error", [None, ZeroDivisionError("late")])
async def test_load_timeout_answers_at_its_instant_whether_or_not_the_loader_stops(
    build: Build, clock: FakeClock, *, uncancel: bool, error: Exception | None
):
    """Nobody waits for a loader that swallows its cancellation, nobody joins it, and nothing comes of what it does."""
    stubborn, recorder = Stubborn(uncancel=uncancel, error=error), Recorder()
    async with build(load_timeout=5, recorder=recorder) as cache:
        tasks = [asyncio.create_task(cache.get_or_load("k", stubborn)) for _ in range(3)]
        await stubborn.started.wait()
        await settle()
        clock.advance(4.9)
        await settle()
        assert not any(task.done() for task in tasks)
        clock.advance(0.1)
        await settle()
        assert [type(task.exception()) for task in tasks if task.done()] == [LoadTimeout] * 3
        assert stubborn.cancelled == 1
        assert await cache.get_or_load("k", lambda: answer("new")) == "new"
        assert await cache.delete("k") is True
        stubborn.go.set()
        await settle()
        assert await cache.get("k") is None
        stats = cache.stats()
        assert (stats.loads, stats.load_failures, stats.fills_refused) == (2, 1, 0)
        assert [event.seconds for event in recorder.of(LoadFailed)] == [pytest.approx(5)]
        assert len(recorder.of(Loaded)) == len(recorder.of(Stored)) == 1
        assert recorder.of(FillRefused) == []


async def test_who_takes_a_stale_value_for_a_timeout_has_it_at_that_instant(build: Build, clock: FakeClock):
    """The others get the error; for ``error_backoff`` the loader is left alone; then the next caller has his own."""
    stubborn = Stubborn()
    async with build(ttl=10, load_timeout=5, stale_if_error=100, error_backoff=2) as cache:
        await cache.set("k", "old")
        clock.advance(11)
        lenient = asyncio.create_task(cache.get_or_load("k", stubborn))
        strict = asyncio.create_task(cache.get_or_load("k", stubborn, stale_if_error=0))
        await stubborn.started.wait()
        await settle()
        clock.advance(5)
        await settle()
        assert lenient.done()
        assert lenient.result() == "old"
        assert strict.done()
        assert isinstance(strict.exception(), LoadTimeout)
        assert await cache.get_or_load("k", lambda: answer("new")) == "old"
        clock.advance(2)
        assert await cache.get_or_load("k", lambda: answer("new")) == "new"
        stubborn.go.set()
        await settle()
        assert await cache.get("k") == "new"
        assert cache.stats().load_failures == 1


@pytest.mark.parametrize("way", ["load_many", "cached_many", "one", "refresh", "cached"])
async def test_load_timeout_waits_for_no_loader_of_any_kind(build: Build, clock: FakeClock, way: str):
    """Batches, single items of a batch, refreshes and decorated functions are answered at that instant too."""
    stubborn = Stubborn()
    async with build(load_timeout=5) as cache:

        @cache.cached_many()
        async def many(items: list[int]) -> dict[int, str]:
            return await stubborn.many(items) if not stubborn.started.is_set() else dict.fromkeys(items, "new")

        @cache.cached()
        async def one() -> str:
            return await stubborn() if not stubborn.started.is_set() else "new"

        async def ask(loader: Stubborn | None = None) -> Any:
            if way == "load_many":
                return await cache.load_many(["k", "l"], loader.many if loader else many.__wrapped__)
            if way == "cached_many":
                return await many([1, 2])
            if way == "one":
                return {item: await many.one(item) for item in (1,)}
            return await one() if way == "cached" else await cache.refresh("k", loader or one.__wrapped__)

        task = asyncio.create_task(ask(stubborn))
        await stubborn.started.wait()
        await settle()
        clock.advance(5)
        await settle()
        assert task.done()
        assert isinstance(task.exception(), LoadTimeout)
        assert stubborn.cancelled == 1
        new = await ask()
        assert set(new.values() if isinstance(new, dict) else [new]) == {"new"}
        failures = cache.stats().load_failures
        stubborn.go.set()
        await settle()
        assert await ask() == new
        assert cache.stats().load_failures == failures == (2 if way in ("load_many", "cached_many") else 1)


async def test_a_timeout_behind_a_stale_answer_waits_for_no_loader(build: Build, clock: FakeClock):
    """Nobody waits for a refresh behind; once its time is up, another one may begin."""
    stubborn = Stubborn()
    async with build(ttl=10, load_timeout=5, stale_while_revalidate=100, error_backoff=0) as cache:
        await cache.set("k", "old")
        clock.advance(11)
        assert await cache.get_or_load("k", stubborn) == "old"
        await stubborn.started.wait()
        clock.advance(5)
        assert await cache.get_or_load("k", lambda: answer("new")) == "old"
        await settle()
        assert await cache.get_or_load("k", lambda: answer("newer")) == "new"
        stubborn.go.set()
        await settle()
        assert await cache.get("k") == "new"


async def test_a_timeout_that_nobody_waits_for_is_logged_once(build: Build, clock: FakeClock, caplog: Any):
    """A load that was to finish behind its callers tells the log; what it does later adds nothing."""
    stubborn = Stubborn()
    async with build(load_timeout=5, finish_abandoned=True) as cache:
        task = asyncio.create_task(cache.get_or_load("k", stubborn))
        await stubborn.started.wait()
        task.cancel()
        await asyncio.wait([task])
        clock.advance(5)
        stubborn.go.set()
        await settle()
        assert [record.message for record in caplog.records] == ["a load of 'k' that nobody waited for failed"]


async def test_a_load_that_its_callers_left_fails_no_more(build: Build, clock: FakeClock, caplog: Any):
    """If it does not stop, ``load_timeout`` passes unnoticed: what a newcomer loaded meanwhile is not to blame."""
    stubborn = Stubborn()
    async with build(ttl=3, load_timeout=5, stale_if_error=100) as cache:
        await cache.set("k", "old")
        clock.advance(4)
        task = asyncio.create_task(cache.get_or_load("k", stubborn))
        await stubborn.started.wait()
        task.cancel()
        await asyncio.wait([task])
        assert await cache.get_or_load("k", lambda: answer("new")) == "new"
        clock.advance(5)
        assert await cache.get_or_load("k", lambda: answer("newer")) == "newer"
        assert cache.stats().load_failures == 0
        assert caplog.records == []
        stubborn.go.set()
        await settle()


async def test_a_timeout_of_the_loader_s_own_is_not_load_timeout(build: Build):
    """It passes as it is."""
    source = Source()
    source.error = TimeoutError("mine")
    async with build(load_timeout=5) as cache:
        with pytest.raises(TimeoutError, match="mine") as caught:
            await cache.get_or_load("k", source)
        assert type(caught.value) is TimeoutError


async def test_a_quick_load_leaves_no_timer(build: Build, clock: FakeClock):
    """What ended in time is not cancelled later."""
    source = Source()
    async with build(load_timeout=5, ttl=10) as cache:
        assert await cache.get_or_load("k", source) == 1
        clock.advance(1000)
        assert await cache.get_or_load("k", source) == 2


async def test_soft_timeout_returns_the_stale_value_and_loads_on(build: Build, clock: FakeClock):
    """The caller waits that long for the new value, then takes the old one; the load finishes behind and fills."""
    source = Source()
    async with build(ttl=10, stale_if_error=100, soft_timeout=2) as cache:
        assert await cache.get_or_load("k", source) == 1
        clock.advance(11)
        source.gate = asyncio.Event()
        source.started.clear()
        tasks = [asyncio.create_task(cache.get_or_load("k", source)) for _ in range(3)]
        await source.started.wait()
        await settle()
        clock.advance(1.9)
        await settle()
        assert not any(task.done() for task in tasks)
        clock.advance(0.2)
        assert await asyncio.gather(*tasks) == [1, 1, 1]
        assert source.cancelled == 0
        source.gate.set()
        await settle()
        assert await cache.get_or_load("k", source) == 2
        assert source.count == 2


async def test_soft_timeout_without_a_stale_value_waits(build: Build, clock: FakeClock):
    """There is nothing else to return."""
    source = Source()
    source.gate = asyncio.Event()
    async with build(ttl=10, stale_if_error=100, soft_timeout=2) as cache:
        task = asyncio.create_task(cache.get_or_load("k", source))
        await source.started.wait()
        clock.advance(50)
        await settle()
        assert not task.done()
        source.gate.set()
        assert await task == 1


async def test_a_load_in_time_beats_the_soft_timeout(build: Build, clock: FakeClock):
    """A loader that answers within it gives the new value."""
    source = Source()
    async with build(ttl=10, stale_if_error=100, soft_timeout=2) as cache:
        assert await cache.get_or_load("k", source) == 1
        clock.advance(11)
        assert await cache.get_or_load("k", source) == 2


# Several machines ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skew", [-3600.0, -10.0, 10.0, 3600.0])
async def test_a_reader_with_a_wrong_clock_sees_no_value_after_its_ttl(skew: float):
    """No clocks are compared between machines: without stale windows the engine's own clock ends the entry."""
    clock = FakeClock()
    backend = MemoryBackend(clock=clock)
    other = FakeClock(wall=clock.wall() + skew)
    async with Cache(backend, clock=clock, memory=None) as writer, Cache(backend, clock=other, memory=None) as reader:
        await writer.set("k", "v", ttl=60)
        assert await reader.get("k") == "v"
        for step in (30.0, 29.0):
            clock.advance(step)
            other.advance(step)
            assert await reader.get("k") == "v"
        clock.advance(1.001)
        other.advance(1.001)
        assert await reader.get("k") is None


async def test_a_jump_of_the_wall_clock_changes_no_near_lifetime():
    """Lifetimes near are measured on the monotonic clock."""
    clock = FakeClock()
    async with Cache(clock=clock) as cache:
        await cache.set("k", "v", ttl=60)
        clock.set_wall(clock.wall() + 10**6)
        assert await cache.get("k") == "v"
        clock.set_wall(0.0)
        clock.advance(59)
        assert await cache.get("k") == "v"
        clock.advance(1.001)
        assert await cache.get("k") is None


async def test_stored_events_tell_the_ttl(clock: FakeClock):
    """As it was applied, with ``None`` for ever."""
    recorder = Recorder()
    async with Cache(clock=clock, observers=[recorder]) as cache:
        await cache.set("a", 1, ttl=5)
        await cache.set("b", 1, ttl=None)
        await cache.set("c", 1)
        assert [event.ttl for event in recorder.of(Stored)] == [5, None, 300]
