"""`current_load`, and a ttl that depends on the result: what a loader decides about its own value."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import pytest

from acache import Cache, ConfigurationError, LoadContext, Memory, MemoryBackend, Policy, current_load
from acache.testing import FakeClock

Build = Callable[..., Cache]


@pytest.fixture
def clock() -> FakeClock:
    """A clock that moves when told."""
    return FakeClock()


@pytest.fixture(params=["near", "near over far", "far", "isolated"])
def build(request: pytest.FixtureRequest, clock: FakeClock) -> Build:
    """Make a cache of each topology."""

    def build(**policy: Any) -> Cache:
        backend = MemoryBackend(clock=clock) if "far" in request.param else None
        memory = {"far": None, "isolated": Memory(isolate=True)}.get(request.param, Memory())
        return Cache(backend, memory=memory, clock=clock, policy=Policy(**policy), namespace="c")

    return build


@pytest.fixture
async def cache(build: Build) -> AsyncIterator[Cache]:
    """A cache with the default policy."""
    async with build() as cache:
        yield cache


async def settle() -> None:
    """Let what runs behind come to its end."""
    for _ in range(50):
        await asyncio.sleep(0)


# The ttl -------------------------------------------------------------------------------------------------------------


async def test_a_ttl_may_depend_on_the_result(cache: Cache, clock: FakeClock):
    """Each value lives as long as the function of it says; ``None`` is for ever."""
    calls: list[Any] = []

    @cache.cached(ttl=lambda result: {1: 10, 2: timedelta(seconds=20), 3: None}[result])
    async def read(x: int) -> int:
        calls.append(x)
        return x

    for x in (1, 2, 3):
        await read(x)
    assert [await cache.ttl(read.key(x)) for x in (1, 2, 3)] == [pytest.approx(10), pytest.approx(20), None]
    clock.advance(10)
    for x in (1, 2, 3):
        await read(x)
    assert calls == [1, 2, 3, 1]
    await read.set(2, 5)
    assert await cache.ttl(read.key(5)) == pytest.approx(20)


@pytest.mark.parametrize("way", ["get_or_load", "refresh", "load_many"])
async def test_every_load_takes_such_a_ttl(cache: Cache, way: str):
    """Not the decorator alone."""

    async def one() -> int:
        return 7

    async def many(keys: Sequence[str]) -> Mapping[str, int]:
        return dict.fromkeys(keys, 7)

    if way == "load_many":
        await cache.load_many(["k"], many, ttl=lambda value: value)
    else:
        await getattr(cache, way)("k", one, ttl=lambda value: value)
    assert await cache.ttl("k") == pytest.approx(7)


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), "60", True])
async def test_a_ttl_that_is_none_is_told_to_the_caller(cache: Cache, ttl: Any):
    """As one that is written down is; nothing is stored."""

    async def one() -> int:
        return 1

    with pytest.raises(ConfigurationError, match="ttl"):
        await cache.get_or_load("k", one, ttl=lambda _: ttl)
    assert await cache.has("k") is False


async def test_an_error_of_the_ttl_function_is_the_caller_s(cache: Cache):
    """With the exception it raised."""

    @cache.cached(ttl=lambda result: result["ttl"])
    async def read() -> dict[str, int]:
        return {}

    with pytest.raises(KeyError, match="ttl"):
        await read()


async def test_the_loader_sets_the_ttl(cache: Cache, clock: FakeClock):
    """It wins over what was written down, over ``negative_ttl`` and over a function of the result."""

    @cache.cached(ttl=lambda _: 5, negative_ttl=3)
    async def read(ttl: Any, result: Any = 1) -> Any:
        if ttl:
            current_load().ttl = ttl
        return result

    assert current_ttl(await ttl_of(cache, read, 30)) == 30
    assert current_ttl(await ttl_of(cache, read, 30, None)) == 30
    assert current_ttl(await ttl_of(cache, read, 0, None)) == 3
    assert current_ttl(await ttl_of(cache, read, 0)) == 5


async def ttl_of(cache: Cache, read: Any, *args: Any) -> float | None:
    await read(*args)
    return await cache.ttl(read.key(*args))


def current_ttl(ttl: float | None) -> float | None:
    return None if ttl is None else round(ttl, 3)


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), "60"])
async def test_a_wrong_ttl_is_an_error_where_it_is_set(cache: Cache, ttl: Any):
    """Inside the loader, which may see to it."""
    raised = []

    async def read() -> int:
        try:
            current_load().ttl = ttl
        except ConfigurationError as error:
            raised.append(error)
        return 1

    assert await cache.get_or_load("k", read, ttl=60) == 1
    assert len(raised) == 1
    assert await cache.ttl("k") == pytest.approx(60)


async def test_jitter_shortens_such_a_ttl_too(build: Build):
    """As it does any other."""
    async with build(jitter=0.5) as cache:

        async def read() -> int:
            current_load().ttl = 100
            return 1

        ttls = []
        for number in range(50):
            await cache.get_or_load(f"{number}", read)
            ttls.append(await cache.ttl(f"{number}") or 0)
        assert 50 <= min(ttls) < max(ttls) <= 100


# Not to store --------------------------------------------------------------------------------------------------------


async def test_no_store_stores_nothing(cache: Cache):
    """The callers get the value, all of them by one load; the next one loads again."""
    calls, go = [], asyncio.Event()

    @cache.cached()
    async def read(x: int) -> int:
        calls.append(x)
        await go.wait()
        if x == 1:
            current_load().no_store()
        return len(calls)

    tasks = [asyncio.create_task(read(1)) for _ in range(5)]
    await asyncio.sleep(0)
    go.set()
    assert await asyncio.gather(*tasks) == [1] * 5
    assert await read(1) == 2
    assert await cache.has(read.key(1)) is False
    assert await read(2) == await read(2) == 3


async def test_no_store_leaves_the_old_value(build: Build, clock: FakeClock):
    """What is stale stays, for those who take it."""
    async with build(ttl=10, stale_while_revalidate=100) as cache:
        values = iter([1, 2, 3])

        async def read() -> int:
            value = next(values)
            if value > 1:
                current_load().no_store()
            return value

        assert await cache.get_or_load("k", read) == 1
        clock.advance(11)
        assert await cache.get_or_load("k", read) == 1
        await settle()
        assert await cache.get_or_load("k", read) == 1


# The old value -------------------------------------------------------------------------------------------------------


async def test_a_loader_sees_no_old_value_where_there_is_none(cache: Cache):
    """On a first load, after a delete, after an invalidation, and in a refresh on request."""
    seen: list[Any] = []

    @cache.cached(tags=["t"])
    async def read() -> int:
        seen.append(current_load().stale)
        return 1

    await read()
    await read.invalidate()
    await read()
    await cache.invalidate_tags("t")
    await read()
    await read.refresh()
    assert seen == [None] * 4


async def test_a_loader_sees_the_stale_entry(build: Build, clock: FakeClock):
    """With its value, dates and tags."""
    async with build(ttl=10, stale_if_error=100) as cache:
        seen: list[Any] = []

        @cache.cached(tags=["t"])
        async def read() -> list[int]:
            seen.append(current_load().stale)
            return [len(seen)]

        stored_at = clock.wall()
        await read()
        clock.advance(15)
        assert await read() == [2]
        entry = seen[1]
        assert (entry.value, entry.tags) == ([1], ("t",))
        assert entry.created_at == pytest.approx(stored_at)
        assert entry.fresh_until == pytest.approx(stored_at + 10)
        assert entry.expires_at == pytest.approx(stored_at + 110)


async def test_a_refresh_ahead_sees_the_value_it_replaces(build: Build, clock: FakeClock):
    """It is fresh still."""
    async with build(ttl=10, refresh_ahead=0.5) as cache:
        seen: list[Any] = []

        async def read() -> int:
            stale = current_load().stale
            seen.append(stale and stale.value)
            return len(seen)

        await cache.get_or_load("k", read)
        clock.advance(6)
        assert await cache.get_or_load("k", read) == 1
        await settle()
        assert seen == [None, 1]
        assert await cache.get_or_load("k", read) == 2


async def test_not_modified_keeps_the_old_value_for_another_ttl(build: Build, clock: FakeClock):
    """With the tags it had, those that its loader had added among them."""
    async with build(ttl=10, stale_if_error=100) as cache:
        asked: list[Any] = []

        @cache.cached(tags=["page"])
        async def read() -> dict[str, Any]:
            load = current_load()
            asked.append(load.stale and load.stale.value["etag"])
            if load.stale is not None and load.stale.value["etag"] == 1:
                result: dict[str, Any] = load.not_modified()
                return result
            load.tags.add("author:5")
            return {"etag": 1, "body": "long"}

        first = await read()
        clock.advance(11)
        assert await read() == first
        assert await cache.ttl(read.key()) == pytest.approx(10)
        clock.advance(9)
        assert await read() == first
        clock.advance(2)
        assert await read() == first
        assert asked == [None, 1, 1]
        await cache.invalidate_tags("author:5")
        await read()
        assert asked == [None, 1, 1, None]
        await cache.invalidate_tags("page")
        await read()
        assert asked == [None, 1, 1, None, None]


async def test_not_modified_without_an_old_value_is_an_error(cache: Cache):
    """It reaches the caller and says what to look at."""

    async def read() -> Any:
        return current_load().not_modified()

    with pytest.raises(RuntimeError, match=r"'k'.*stale is not None"):
        await cache.get_or_load("k", read)


async def test_an_invalidation_during_a_conditional_refresh_wins(build: Build, clock: FakeClock):
    """The old value is not brought back by a loader that says it was not modified."""
    async with build(ttl=10, stale_if_error=100) as cache:
        begun, go = asyncio.Event(), asyncio.Event()
        old: list[Any] = []

        async def read() -> Any:
            load = current_load()
            old.append(load.stale and load.stale.value)
            if load.stale is None:
                return "new"
            begun.set()
            await go.wait()
            return load.not_modified()

        await cache.get_or_load("k", read)
        clock.advance(11)
        task = asyncio.create_task(cache.get_or_load("k", read))
        await begun.wait()
        await cache.delete("k")
        go.set()
        assert await task == "new"
        assert await cache.has("k") is False
        await cache.get_or_load("k", read)
        assert old == [None, "new", None]


# Tags ----------------------------------------------------------------------------------------------------------------


async def test_a_loader_adds_tags(cache: Cache):
    """They are on the entry beside those of the rules, and invalidate it."""

    @cache.cached(tags=["user:{x}"])
    async def read(x: int) -> int:
        load = current_load()
        assert load.tags == {f"user:{x}"}
        load.tags.add(f"team:{x % 2}")
        return x

    for x in range(4):
        await read(x)
    entry = await cache.get_entry(read.key(1))
    assert entry is not None
    assert set(entry.tags) == {"user:1", "team:1"}
    await cache.invalidate_tags("team:1")
    assert [await cache.has(read.key(x)) for x in range(4)] == [True, False, True, False]


@pytest.mark.parametrize("tag", ["", 5, "x" * 2000])
async def test_a_wrong_tag_is_told_to_the_caller(cache: Cache, tag: Any):
    """And nothing is stored."""

    async def read() -> int:
        current_load().tags.add(tag)
        return 1

    with pytest.raises(ConfigurationError, match="tag"):
        await cache.get_or_load("k", read)
    assert await cache.has("k") is False


@pytest.mark.parametrize("when", ["before it is added", "after it was added"])
@pytest.mark.parametrize("who", ["the same cache", "another process"])
async def test_an_invalidation_of_an_added_tag_during_the_load_wins(
    build: Build, clock: FakeClock, when: str, who: str
):
    """Also where the loader has read its data and has yet to say that it belongs to the tag."""
    async with build() as cache:
        backend = cache._shared.backend
        if backend is None and who != "the same cache":
            pytest.skip("one process only")
        other = Cache(backend, clock=clock, namespace="c") if who != "the same cache" else cache
        begun, go = asyncio.Event(), asyncio.Event()

        async def read(number: int) -> int:
            if when == "after it was added":
                current_load().tags.add("team")
            begun.set()
            await go.wait()
            current_load().tags.add("team")
            return number

        task = asyncio.create_task(cache.get_or_load("k", lambda: read(1)))
        await begun.wait()
        await other.invalidate_tags("team")
        go.set()
        assert await task == 1
        assert await cache.has("k") is False
        assert await other.has("k") is False
        assert cache.stats().fills_refused == 1
        clock.advance(61)
        assert await cache.get_or_load("k", lambda: read(2)) == 2
        assert await cache.has("k") is True


async def test_newcomers_after_an_invalidation_of_an_added_tag_get_a_load_of_their_own(cache: Cache):
    """They do not join the load that had said it belongs to the tag."""
    begun, go, calls = asyncio.Event(), asyncio.Event(), []

    async def read() -> int:
        calls.append(1)
        number = len(calls)
        current_load().tags.add("team")
        begun.set()
        await go.wait()
        return number

    first = asyncio.create_task(cache.get_or_load("k", read))
    await begun.wait()
    await cache.invalidate_tags("team")
    second = asyncio.create_task(cache.get_or_load("k", read))
    await asyncio.sleep(0)
    go.set()
    assert (await first, await second) == (1, 2)


@pytest.mark.parametrize("how", ["get_or_load", "refresh"])
async def test_newcomers_after_an_invalidation_of_a_tag_that_is_added_later_get_a_load_of_their_own(
    cache: Cache, how: str
):
    """The load that they joined could not know yet; those who waited before the invalidation take what it has."""
    begun, go, calls = asyncio.Event(), asyncio.Event(), []

    async def read() -> int:
        calls.append(1)
        number = len(calls)
        begun.set()
        await go.wait()
        current_load().tags.add("team")
        return number

    first = asyncio.create_task(cache.get_or_load("k", read))
    await begun.wait()
    before = asyncio.create_task(cache.get_or_load("k", read))
    await asyncio.sleep(0)
    await cache.invalidate_tags("other", "team")
    after = [asyncio.create_task(getattr(cache, how)("k", read)) for _ in range(3)]
    await asyncio.sleep(0)
    await cache.invalidate_tags("another")
    last = asyncio.create_task(cache.get_or_load("k", read))
    await asyncio.sleep(0)
    go.set()
    assert (await first, await before) == (1, 1)
    assert await asyncio.gather(*after, last) == [2] * 4
    assert len(calls) == 2


# Where it is ---------------------------------------------------------------------------------------------------------


async def test_outside_of_a_load_there_is_none(cache: Cache):
    """The error says what it is for."""
    with pytest.raises(RuntimeError, match="that a loader runs"):
        current_load()
    await cache.get_or_load("k", lambda: asyncio.sleep(0, 1))
    with pytest.raises(RuntimeError):
        current_load()


async def test_a_batch_loader_has_none(cache: Cache):
    """It loads many values at once."""

    async def many(keys: Sequence[str]) -> Mapping[str, int]:
        with pytest.raises(RuntimeError, match="batch"):
            current_load()
        return dict.fromkeys(keys, 1)

    assert await cache.load_many(["a", "b"], many) == {"a": 1, "b": 1}


async def test_each_load_has_its_own(cache: Cache):
    """A load inside a load, and loads side by side."""

    @cache.cached(ttl=60, key="inner:{x}")
    async def inner(x: int) -> str:
        current_load().ttl = 10 + x
        await asyncio.sleep(0)
        return current_load().key

    @cache.cached(ttl=60, key="outer:{x}")
    async def outer(x: int) -> list[str]:
        before = current_load()
        keys = await asyncio.gather(inner(x), inner(x + 1))
        assert current_load() is before
        return [before.key, *keys]

    assert await outer(1) == ["outer:1", "inner:1", "inner:2"]
    assert await cache.ttl("outer:1") == pytest.approx(60)
    assert await cache.ttl("inner:1") == pytest.approx(11)
    assert await cache.ttl("inner:2") == pytest.approx(12)


async def test_bypass_has_one_that_changes_nothing(cache: Cache):
    """So that a function that uses it can be called through."""

    @cache.cached()
    async def read() -> Any:
        load = current_load()
        load.ttl = 5
        load.tags.add("t")
        load.no_store()
        return load.key, load.stale

    assert await read.bypass() == ("", None)
    assert await cache.has(read.key()) is False
    with pytest.raises(RuntimeError):
        current_load()


async def test_a_thread_has_the_load_it_runs_for(cache: Cache):
    """With ``thread=True`` too."""

    @cache.cached(thread=True)
    def read() -> int:
        current_load().ttl = 17
        return 1

    await read()
    assert await cache.ttl(read.key()) == pytest.approx(17)


async def test_what_is_said_after_the_load_comes_to_nothing(cache: Cache):
    """A task that the loader left behind holds the context still."""
    left: list[LoadContext] = []

    async def read() -> int:
        left.append(current_load())
        return 1

    await cache.get_or_load("k", read, ttl=60)
    left[0].ttl = 5
    left[0].no_store()
    assert await cache.ttl("k") == pytest.approx(60)


async def test_nothing_is_left_of_a_load(cache: Cache):
    """Failed, cancelled and finished loads stop listening for invalidations."""

    async def fail() -> Awaitable[None]:
        raise LookupError

    for number in range(3):
        await cache.get_or_load(f"{number}", lambda: asyncio.sleep(0, 1))
    with pytest.raises(LookupError):
        await cache.get_or_load("f", fail)
    task = asyncio.create_task(cache.get_or_load("c", lambda: asyncio.sleep(3600)))
    await settle()
    task.cancel()
    await settle()
    assert len(cache._scope.tags._listening) == 0
