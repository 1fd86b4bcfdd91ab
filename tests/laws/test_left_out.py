"""What a batch leaves out is not there: a load that finds that removes the old value, as it would have replaced it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from acache import Cache, KeyMissing, Policy
from acache.errors import BackendUnavailable

from .conftest import PATIENT

if TYPE_CHECKING:
    from .conftest import Topology

Settle: TypeAlias = Callable[..., Awaitable[None]]
Until: TypeAlias = Callable[[Callable[[], object]], Awaitable[None]]
KEY = "name:1"


class Source:
    """A table that can be held up."""

    def __init__(self) -> None:
        self.rows = {1: "a", 2: "b"}
        self.calls = 0
        self.began = asyncio.Event()
        self.go = asyncio.Event()
        self.go.set()

    async def __call__(self, ids: Sequence[int]) -> Mapping[int, str]:
        found = {item: self.rows[item] for item in ids if item in self.rows}
        self.calls += 1
        self.began.set()
        await self.go.wait()
        return found

    def hold(self) -> None:
        """Stop whoever asks from now on."""
        self.began.clear()
        self.go.clear()


@pytest.fixture
def source() -> Source:
    """A source of its own for each test."""
    return Source()


@pytest.fixture(params=("memory", "near+backend", "backend", "redis", "near+redis", "near+plain", "plain"))
async def anywhere(request: pytest.FixtureRequest, make_topology: Callable[[str], Topology]) -> Any:
    """Give every arrangement, those over engines that cannot compare and set too."""
    async with make_topology(request.param) as topology:
        yield topology


def names(cache: Cache, source: Source, **rules: Any) -> Any:
    """Return a decorated function over a source."""

    @cache.cached_many(key="name:{ids}", **rules)
    async def names(ids: Sequence[int]) -> Mapping[int, str]:
        return await source(ids)

    return names


def policy(**rules: Any) -> Policy:
    return replace(PATIENT, ttl=10, **rules)


async def test_a_refresh_removes_what_the_function_leaves_out(anywhere: Topology, source: Source):
    """The function was asked, and there is none: whoever looks next finds none, in the far tier too."""
    get_names = names(cache := anywhere.cache(), source)
    await get_names([1, 2])
    del source.rows[1]
    assert await get_names.refresh([1, 2]) == {2: "b"}
    assert await cache.get(KEY) is None
    assert await get_names([1, 2]) == {2: "b"}
    assert source.calls == 3
    if anywhere.far:
        assert await anywhere.witness().get(KEY) is None
    source.rows[1] = "c"
    assert await get_names.one(1) == "c"
    assert await cache.get(KEY) == "c"


@pytest.mark.parametrize("way", ["one", "many", "load_many"])
async def test_a_reload_behind_removes_what_it_does_not_find(
    anywhere: Topology, source: Source, settle: Settle, until: Until, caplog: pytest.LogCaptureFixture, way: str
):
    """It is served once more while the function is asked, and then no more; that it is gone is nobody's error."""
    cache = anywhere.cache(policy=policy(stale_while_revalidate=1000))
    get_names = names(cache, source)

    async def ask() -> Any:
        if way == "one":
            return await get_names.one(1)
        if way == "many":
            return (await get_names([1])).get(1)
        return (await cache.load_many([KEY], by_key)).get(KEY)

    async def by_key(_: Sequence[str]) -> Mapping[str, str]:
        return {f"name:{item}": value for item, value in (await source([1])).items()}

    assert await ask() == "a"
    del source.rows[1]
    anywhere.clock.advance(11)
    source.hold()
    with caplog.at_level(logging.WARNING, "acache"):
        assert await ask() == "a"
        await source.began.wait()
        source.go.set()
        await until(lambda: not len(cache._scope.flights))
        await settle()
    assert caplog.records == []
    assert source.calls == 2
    if way == "one":
        with pytest.raises(KeyMissing):
            await ask()
    else:
        assert await ask() is None
    assert cache.stats().load_failures == 0


@pytest.mark.parametrize("rules", [{"refresh_ahead": 0.5}, {"early_refresh": 1e9}])
async def test_a_refresh_ahead_removes_what_it_does_not_find(
    topology: Topology, source: Source, until: Until, rules: dict[str, float]
):
    """Though it is fresh: the function's word is newer."""
    cache = topology.cache(policy=policy(**rules))

    async def slowly(ids: Sequence[int]) -> Mapping[int, str]:
        topology.clock.advance(0.1)
        return await source(ids)

    get_names = cache.cached_many(key="name:{ids}")(slowly)
    await get_names([1])
    del source.rows[1]
    topology.clock.advance(6)
    assert await get_names.one(1) == "a"
    await until(lambda: source.calls == 2 and not len(cache._scope.flights))
    assert await cache.get(KEY) is None
    with pytest.raises(KeyMissing):
        await get_names.one(1)


async def test_a_stale_value_does_not_stand_in_for_none(anywhere: Topology, source: Source):
    """``stale_if_error`` is for errors, and that there is none is an answer."""
    cache = anywhere.cache(policy=policy(stale_if_error=1000))
    get_names = names(cache, source)
    await get_names([1, 2])
    del source.rows[1], source.rows[2]
    anywhere.clock.advance(11)
    assert await get_names([1]) == {}
    with pytest.raises(KeyMissing):
        await get_names.one(2)

    async def fail() -> str:
        raise ConnectionError

    for key in (KEY, "name:2"):
        with pytest.raises(ConnectionError):  # the old value is gone, for others as well
            await cache.get_or_load(key, fail)


@pytest.mark.parametrize("where", ["here", "elsewhere"])
@pytest.mark.parametrize("how", ["refresh", "load"])
async def test_what_was_set_meanwhile_stays(topology: Topology, source: Source, where: str, how: str):
    """1: the function looks, and finds none.  2: somebody sets a value.  3: it says that there is none."""
    if where == "elsewhere" and not topology.far:
        where = "here"
    cache = topology.cache(policy=policy(stale_if_error=1000))
    writer = cache if where == "here" else topology.cache()
    get_names = names(cache, source)
    await get_names([1])
    del source.rows[1]
    source.hold()
    if how == "load":
        topology.clock.advance(11)
    task = asyncio.create_task(get_names.refresh([1]) if how == "refresh" else get_names([1]))
    await source.began.wait()
    await writer.set(KEY, "new")
    source.go.set()
    assert await task == {}
    assert await cache.get(KEY) == "new"
    assert await writer.get(KEY) == "new"


async def test_a_read_under_way_does_not_keep_what_was_removed(source: Source, make_topology: Any):
    """1: a read gets the old value.  2: a refresh removes it.  3: the read comes back, and does not keep it near."""
    async with make_topology("near+backend") as topology:
        writer, cache = topology.cache(), topology.cache()
        await names(writer, source)([1])
        del source.rows[1]
        topology.tracer.restart()
        stop = topology.tracer.stop(0, "after")
        reading = asyncio.create_task(cache.get(KEY))
        await stop.reached.wait()
        assert await names(cache, source).refresh([1]) == {}
        stop.release()
        assert await reading == "a"
        assert await cache.get(KEY) is None


async def test_other_processes_hear_of_the_removal(redis_topology: Topology, source: Source, until: Until):
    """As of any other change."""
    here, there = redis_topology.cache(), redis_topology.cache()
    get_names = names(here, source)
    await get_names([1])
    assert await there.get(KEY) == "a"
    del source.rows[1]
    assert await get_names.refresh([1]) == {}
    await until(lambda: there.peek(KEY) is None)
    assert await there.get(KEY) is None


async def test_who_waits_for_another_process_learns_that_there_is_none(
    far_topology: Topology, source: Source, until: Until
):
    """Nothing is handed over: they find nothing, and ask for themselves."""
    rules = policy(lease=True, lease_ttl=5, stale_if_error=1000)
    p, q = far_topology.cache(policy=rules), far_topology.cache(policy=rules)
    await names(p, source)([1])
    del source.rows[1]
    far_topology.clock.advance(11)
    source.hold()
    first = asyncio.create_task(names(p, source).one(1))
    await source.began.wait()
    second = asyncio.create_task(names(q, source).one(1))
    await until(lambda: len(q._scope.flights))
    source.go.set()

    async def pass_time() -> None:
        while not second.done():
            await asyncio.sleep(0)
            far_topology.clock.advance(0.01)

    await pass_time()
    for task in (first, second):
        with pytest.raises(KeyMissing):
            await task
    assert source.calls == 3
    assert await far_topology.witness().get(KEY) is None


@pytest.mark.parametrize("how", ["get_or_load", "refresh"])
async def test_a_loader_of_its_own_is_asked_when_a_batch_leaves_it_out(topology: Topology, source: Source, how: str):
    """Who joins somebody's batch, and has a loader that knows more."""
    cache = topology.cache()
    get_names = names(cache, source)
    del source.rows[1]
    source.hold()
    batch = asyncio.create_task(get_names([1]))
    await source.began.wait()

    async def own() -> str:
        return "its own"

    one = asyncio.create_task(cache.get_or_load(KEY, own) if how == "get_or_load" else cache.refresh(KEY, own))
    await asyncio.sleep(0)
    source.go.set()
    assert await one == "its own"
    assert await batch == {}
    assert await cache.get(KEY) == "its own"


async def test_an_item_that_never_was_costs_no_write(far_topology: Topology, source: Source):
    """Nor does one that is gone already."""
    cache = far_topology.cache()
    get_names = names(cache, source)
    await cache.set("another", 1)
    far_topology.tracer.restart()
    assert await get_names([7]) == {}
    reads = {"get", "get_many", "get_versioned"}
    assert set(far_topology.tracer.calls) <= reads
    await get_names([1])
    await get_names.invalidate([1])
    del source.rows[1]
    far_topology.tracer.restart()
    assert await get_names([1]) == {}
    assert set(far_topology.tracer.calls) <= reads


async def test_a_removal_that_fails_leaves_nothing_near(make_topology: Any, source: Source):
    """Whether it is there is the far tier's to say, when it answers again."""
    async with make_topology("near+backend") as topology:
        cache = topology.cache()
        get_names = names(cache, source)
        await get_names([1])
        del source.rows[1]
        source.hold()
        refreshing = asyncio.create_task(get_names.refresh([1]))
        await source.began.wait()
        topology.tracer.restart()
        stop = topology.tracer.stop(0, "before", error=BackendUnavailable("gone"))
        source.go.set()
        await stop.reached.wait()
        assert topology.tracer.calls == ["set_if"]
        stop.release()
        assert await refreshing == {}
        assert cache.peek(KEY) is None
        assert cache.stats().backend_errors == 1
