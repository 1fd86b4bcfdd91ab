"""Law 4, in one process: however many callers ask for a missing value, its loader is called once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from acache import Policy
from acache.events import Coalesced, Loaded
from acache.testing import Recorder

if TYPE_CHECKING:
    from tests.laws.conftest import Topology

    Settle = Callable[..., Awaitable[None]]
    Until = Callable[[Callable[[], object]], Awaitable[None]]


class Source:
    """A loader that counts its calls and returns when it is told to."""

    def __init__(self, value: Any = "value") -> None:
        self.value = value
        self.calls = 0
        self.asked: list[list[str]] = []
        self.began = asyncio.Event()
        self.finish = asyncio.Event()

    async def __call__(self) -> Any:
        self.calls += 1
        self.began.set()
        await self.finish.wait()
        return self.value

    async def many(self, keys: Sequence[str]) -> dict[str, str]:
        self.calls += 1
        self.asked.append(list(keys))
        self.began.set()
        await self.finish.wait()
        return {key: f"value of {key}" for key in keys}


@pytest.mark.parametrize(("value", "count"), [("value", 10_000), (None, 50), (0, 50), ([], 50), (b"", 50)])
async def test_ten_thousand_callers_are_one_load(topology: Topology, value: Any, count: int):
    """10,000 callers of one cold key: one load, and everybody has its value, whatever it is."""
    cache, source = topology.cache(), Source(value)
    callers = [asyncio.create_task(cache.get_or_load("k", source)) for _ in range(count)]
    await source.began.wait()
    source.finish.set()
    assert await asyncio.gather(*callers) == [value] * count
    assert source.calls == 1
    assert await cache.get_or_load("k", source) == value
    assert source.calls == 1


async def test_callers_who_come_at_every_stage_of_a_load_join_it(topology: Topology, settle: Settle, until: Until):
    """Whoever comes while a load is at any of its await points joins it or finds its value."""
    cache, tracer = topology.cache(), topology.tracer
    calls = 0

    async def loader() -> str:
        nonlocal calls
        calls += 1
        return str(await tracer.load("value"))

    for call in range(8):
        for when in ("before", "after"):
            key, calls = f"{call} {when}", 0
            tracer.restart()
            stop = tracer.stop(call, when)  # type: ignore[arg-type]
            first = asyncio.create_task(cache.get_or_load(key, loader))
            await until(lambda first=first, stop=stop: first.done() or stop.reached.is_set())  # type: ignore[misc]
            others = [asyncio.create_task(cache.get_or_load(key, loader)) for _ in range(5)]
            await settle()
            stop.release()
            assert await asyncio.gather(first, *others) == ["value"] * 6
            assert calls == 1, (key, tracer.calls)
    tracer.restart()


async def test_the_events_tell_who_loaded_and_who_waited(topology: Topology):
    """One ``Loaded``, and a ``Coalesced`` for everybody else."""
    recorder, source = Recorder(), Source()
    cache = topology.cache(observers=(recorder,))
    callers = [asyncio.create_task(cache.get_or_load("k", source)) for _ in range(10)]
    await source.began.wait()
    source.finish.set()
    await asyncio.gather(*callers)
    assert len(recorder.of(Loaded)) == 1
    assert len(recorder.of(Coalesced)) == 9
    assert (cache.stats().loads, cache.stats().coalesced) == (1, 9)


async def test_views_of_one_namespace_share_a_load_and_others_do_not(topology: Topology):
    """A load is one per namespace and key, whichever view asks."""
    cache = topology.cache()
    view, elsewhere = cache.view(policy=Policy(ttl=5)), cache.view(namespace=topology.namespace + ":other")
    source, other = Source(), Source("other value")
    callers = [asyncio.create_task(each.get_or_load("k", source)) for each in (cache, view)]
    apart = asyncio.create_task(elsewhere.get_or_load("k", other))
    await source.began.wait()
    source.finish.set()
    other.finish.set()
    assert await asyncio.gather(*callers, apart) == ["value", "value", "other value"]
    assert (source.calls, other.calls) == (1, 1)


async def test_refresh_joins_a_running_load_and_loads_join_a_refresh(topology: Topology):
    """``refresh`` and ``get_or_load`` at a time are one load."""
    cache = topology.cache()
    for first, second in ((cache.get_or_load, cache.refresh), (cache.refresh, cache.get_or_load)):
        source = Source()
        await cache.delete("k")
        one = asyncio.create_task(first("k", source))
        await source.began.wait()
        two = asyncio.create_task(second("k", source))
        source.finish.set()
        assert await asyncio.gather(one, two) == ["value", "value"]
        assert source.calls == 1


async def test_a_decorated_function_is_called_once(topology: Topology):
    """However its arguments are spelled, concurrent calls of a decorated function are one."""
    cache, source = topology.cache(), Source()

    @cache.cached()
    async def function(a: int, b: int = 2) -> Any:
        return await source()

    spellings = [
        call
        for _ in range(100)
        for call in (function(1), function(1, 2), function(a=1), function(b=2, a=1), function(1, b=2))
    ]
    tasks = [asyncio.create_task(call) for call in spellings]
    await source.began.wait()
    source.finish.set()
    assert await asyncio.gather(*tasks) == ["value"] * 500
    assert source.calls == 1
    assert function.stats().loads == 1


async def test_different_keys_do_not_wait_for_each_other(topology: Topology):
    """A slow load holds nobody up who asks for something else."""
    cache, slow = topology.cache(), Source("slow")
    task = asyncio.create_task(cache.get_or_load("slow", slow))
    await slow.began.wait()
    quick = Source("quick")
    quick.finish.set()
    assert await cache.get_or_load("quick", quick) == "quick"
    assert not task.done()
    slow.finish.set()
    assert await task == "slow"


async def test_overlapping_batches_load_each_key_once(topology: Topology):
    """Batches whose keys overlap ask their loaders for each key once in all."""
    cache, source = topology.cache(), Source()
    batches = [[f"key {number}" for number in range(start, start + 20)] for start in range(0, 100, 5)]
    tasks = [asyncio.create_task(cache.load_many(batch, source.many)) for batch in batches]
    await source.began.wait()
    source.finish.set()
    for batch, result in zip(batches, await asyncio.gather(*tasks), strict=True):
        assert result == {key: f"value of {key}" for key in batch}
    asked = [key for keys in source.asked for key in keys]
    assert len(asked) == len(set(asked)) == 115


async def test_two_batches_that_wait_for_each_other_both_end(topology: Topology):
    """Of two batches each loads what the other has not, in whatever order they name the keys."""
    cache, first, second = topology.cache(), Source(), Source()
    first.finish.set()
    second.finish.set()
    a = asyncio.create_task(cache.load_many(["1", "2", "3"], first.many))
    b = asyncio.create_task(cache.load_many(["4", "3", "2", "5"], second.many))
    c = asyncio.create_task(cache.load_many(["5", "4", "1"], second.many))
    assert await a == {key: f"value of {key}" for key in "123"}
    assert await b == {key: f"value of {key}" for key in "4325"}
    assert await c == {key: f"value of {key}" for key in "541"}
    asked = sorted(key for keys in first.asked + second.asked for key in keys)
    assert asked == ["1", "2", "3", "4", "5"]


async def test_a_batch_and_single_loads_share_keys(topology: Topology):
    """A batch waits for a single load of one of its keys, and single callers for the batch."""
    cache, one, batch = topology.cache(), Source("one"), Source()
    single = asyncio.create_task(cache.get_or_load("1", one))
    await one.began.wait()
    many = asyncio.create_task(cache.load_many(["1", "2"], batch.many))
    await batch.began.wait()
    late = asyncio.create_task(cache.get_or_load("2", one))
    batch.finish.set()
    assert await late == "value of 2"
    assert not many.done()
    one.finish.set()
    assert await single == "one"
    assert await many == {"1": "one", "2": "value of 2"}
    assert batch.asked == [["2"]]
    assert one.calls == 1


async def test_a_batch_is_one_call_with_each_key_once(topology: Topology):
    """The loader of a batch gets what is missing, each key once, in one call."""
    cache, source = topology.cache(), Source()
    source.finish.set()
    await cache.set("hit", "there")
    result = await cache.load_many(["a", "hit", "b", "a"], source.many)
    assert result == {"a": "value of a", "hit": "there", "b": "value of b"}
    assert [sorted(keys) for keys in source.asked] == [["a", "b"]]
    assert await cache.load_many([], source.many) == {}
    assert source.calls == 1


async def test_one_refresh_runs_behind_however_many_get_the_stale_value(topology: Topology, until: Until):
    """A thousand callers of a stale value get it at once, and one load runs behind them."""
    cache = topology.cache(policy=Policy(ttl=10, stale_while_revalidate=100, backend_timeout=30))
    await cache.set("k", "stale")
    topology.clock.advance(11)
    source = Source("new")
    callers = [cache.get_or_load("k", source) for _ in range(1000)]
    assert await asyncio.gather(*callers) == ["stale"] * 1000
    await source.began.wait()
    source.finish.set()
    await until(lambda: not cache._scope.flights.running)
    assert await asyncio.gather(*[cache.get_or_load("k", source) for _ in range(10)]) == ["new"] * 10
    assert source.calls == 1


async def test_waiters_do_not_poll(topology: Topology, settle: Settle):
    """While a load runs, a thousand callers who wait for it cost the event loop nothing: no turn, no timer."""
    cache, source = topology.cache(), Source("value")
    tasks = [asyncio.create_task(cache.get_or_load("k", source)) for _ in range(1000)]
    await source.began.wait()
    await settle()
    loop: Any = asyncio.get_running_loop()
    turns = 0

    def count() -> None:
        nonlocal turns
        turns += len(loop._ready)

    for _ in range(20):
        count()
        await asyncio.sleep(0)
    assert turns == 0
    timers = [timer for timer in loop._scheduled if not timer.cancelled()]
    assert len(timers) < 10, "the connections' own, whatever the number of callers"
    source.finish.set()
    assert set(await asyncio.gather(*tasks)) == {"value"}
