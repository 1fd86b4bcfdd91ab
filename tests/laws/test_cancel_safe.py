"""Law 5: a waiter's cancellation touches nobody else; the last waiter's cancels the load."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pytest

from acache import BackendUnavailable, Cache, LoadTimeout, Memory, MemoryBackend, Policy
from acache.testing import FaultyBackend

if TYPE_CHECKING:
    from tests.laws.conftest import Topology

    Settle = Callable[..., Awaitable[None]]
    Until = Callable[[Callable[[], object]], Awaitable[None]]

MISS = "(a miss)"
FINISHING = Policy(finish_abandoned=True, backend_timeout=30)


class Source:
    """A loader that returns when it is told to, and tells what became of it."""

    def __init__(self, value: str = "value") -> None:
        self.value = value
        self.calls = 0
        self.cancelled = 0
        self.finished = 0
        self.began = asyncio.Event()
        self.finish = asyncio.Event()

    async def __call__(self) -> str:
        self.calls += 1
        self.began.set()
        try:
            await self.finish.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        self.finished += 1
        return self.value

    async def many(self, keys: Any) -> dict[str, str]:
        await self()
        return {key: f"{self.value} of {key}" for key in keys}


async def gone(task: asyncio.Task[Any]) -> bool:
    """Wait for a task that was cancelled."""
    await asyncio.wait([task])
    return task.cancelled()


@pytest.mark.parametrize("who", [[0], [3], [9], [0, 1, 2], [8, 9], [0, 5, 9], list(range(9)), list(range(1, 10))])
async def test_those_who_stay_get_the_value(topology: Topology, who: list[int], settle: Settle):
    """Whichever waiters are cancelled during the load, the others get its value, and it is stored."""
    cache, source = topology.cache(), Source()
    tasks = [asyncio.create_task(cache.get_or_load("k", source)) for _ in range(10)]
    await source.began.wait()
    for number in who:
        tasks[number].cancel()
    await settle()
    assert all([await gone(tasks[number]) for number in who])
    source.finish.set()
    stayed = [task for number, task in enumerate(tasks) if number not in who]
    assert await asyncio.gather(*stayed) == ["value"] * len(stayed)
    assert (source.calls, source.cancelled) == (1, 0)
    assert await cache.get("k") == "value"


@pytest.mark.parametrize("turns", range(12))
@pytest.mark.parametrize("who", [0, 1, 2])
async def test_a_cancellation_in_any_turn_of_a_load_touches_nobody_else(
    topology: Topology, turns: int, who: int, settle: Settle
):
    """The first, middle or last waiter is cancelled in each of the first turns; the two others get the value."""
    cache, source = topology.cache(), Source()
    source.finish.set()
    tasks = [asyncio.create_task(cache.get_or_load("k", source)) for _ in range(3)]
    await settle(turns)
    tasks[who].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    for number, result in enumerate(results):
        assert result == "value" or (number == who and isinstance(result, asyncio.CancelledError))
    assert source.cancelled == 0


async def test_a_cancellation_at_any_await_point_touches_nobody_else(topology: Topology, until: Until):
    """The caller who started a load is cancelled while it is at any of its await points; the other gets the value."""
    cache, tracer = topology.cache(), topology.tracer
    calls = 0

    async def loader() -> str:
        nonlocal calls
        calls += 1
        return str(await tracer.load("value"))

    for call in range(8):
        for when in ("before", "after"):
            calls = 0
            key = f"{call} {when}"
            tracer.restart()
            stop = tracer.stop(call, when)  # type: ignore[arg-type]
            first = asyncio.create_task(cache.get_or_load(key, loader))
            second = asyncio.create_task(cache.get_or_load(key, loader))
            await until(lambda first=first, stop=stop: first.done() or stop.reached.is_set())  # type: ignore[misc]
            first.cancel()
            await asyncio.wait([first])
            stop.release()
            assert await second == "value", key
            assert calls == 1, key
    tracer.restart()


async def test_the_last_waiter_s_cancellation_cancels_the_load(topology: Topology, settle: Settle):
    """When the last waiter is gone the load is cancelled and nothing is stored."""
    cache, source = topology.cache(), Source()
    tasks = [asyncio.create_task(cache.get_or_load("k", source)) for _ in range(3)]
    await source.began.wait()
    for task in tasks:
        assert source.cancelled == 0
        task.cancel()
        assert await gone(task)
    await settle()
    assert (source.calls, source.cancelled, source.finished) == (1, 1, 0)
    assert await cache.get("k", MISS) == MISS


async def test_a_load_that_the_last_waiter_left_can_be_cancelled_at_any_await_point(topology: Topology, until: Until):
    """Wherever a load is when its only caller is cancelled, the next caller gets the right value."""
    cache, tracer = topology.cache(), topology.tracer

    async def loader() -> str:
        return str(await tracer.load("value"))

    for call in range(8):
        for when in ("before", "after"):
            key = f"{call} {when}"
            tracer.restart()
            stop = tracer.stop(call, when)  # type: ignore[arg-type]
            task = asyncio.create_task(cache.get_or_load(key, loader, tags=[key]))
            await until(lambda task=task, stop=stop: task.done() or stop.reached.is_set())  # type: ignore[misc]
            task.cancel()
            await asyncio.wait([task])
            tracer.restart()
            assert await cache.get_or_load(key, loader, tags=[key]) == "value", key
            assert await cache.get(key) == "value", key


async def test_a_newcomer_after_the_last_waiter_left_gets_a_load_of_its_own(topology: Topology, settle: Settle):
    """Who comes while the load is being cancelled is not cancelled with it."""
    cache = topology.cache()
    for turns in range(1, 5):
        key = f"key {turns}"
        old, new = Source("old"), Source("new")
        new.finish.set()
        task = asyncio.create_task(cache.get_or_load(key, old))
        await old.began.wait()
        task.cancel()
        await settle(turns)
        assert await cache.get_or_load(key, new) == "new"
        assert await gone(task)
        await settle()
        assert (old.cancelled, new.calls) == (1, 1)
        assert await cache.get(key) == "new"


async def test_a_newcomer_in_the_turn_of_the_cancellation_keeps_the_load_alive(topology: Topology):
    """The last waiter has been told to go, but has not gone: who joins now is the last waiter, and gets the value."""
    cache, source = topology.cache(), Source("value")
    task = asyncio.create_task(cache.get_or_load("key", source))
    await source.began.wait()
    task.cancel()
    newcomer = asyncio.ensure_future(cache.get_or_load("key", source))
    assert await gone(task)
    source.finish.set()
    assert await newcomer == "value"


async def test_a_cancelled_load_that_takes_its_time_does_not_overwrite_its_successor(
    topology: Topology, settle: Settle
):
    """A load that was abandoned and suppresses its cancellation does not store over the newcomer's."""
    cache = topology.cache()
    began, finish = asyncio.Event(), asyncio.Event()

    async def stubborn() -> str:
        began.set()
        try:
            await finish.wait()
        except asyncio.CancelledError:
            await finish.wait()
        return "stubborn"

    task = asyncio.create_task(cache.get_or_load("k", stubborn))
    await began.wait()
    task.cancel()
    assert await gone(task)
    new = Source("new")
    new.finish.set()
    assert await cache.get_or_load("k", new) == "new"
    finish.set()
    await settle(50)
    assert await cache.get("k") == "new"


async def test_no_loader_is_called_when_its_last_caller_has_left(topology: Topology, settle: Settle):
    """A load whose only caller is cancelled on the way to the loader does not go on to it."""
    cache = topology.cache()
    left: set[str] = set()
    late: list[tuple[str, int]] = []
    for turns in range(120):
        key = f"key {turns}"

        async def loader(key: str = key, turns: int = turns) -> str:
            if key in left:
                late.append((key, turns))
            return "value"

        task = asyncio.create_task(cache.get_or_load(key, loader))
        await settle(turns % 40)
        task.cancel()
        if await gone(task):
            left.add(key)
    await settle(100)
    assert await cache.get("another") is None
    assert late == []


async def test_finish_abandoned_lets_the_load_end_and_store(topology: Topology, until: Until):
    """With ``finish_abandoned`` the load of a caller who left goes on and fills; a newcomer joins it."""
    cache, source = topology.cache(policy=FINISHING), Source()
    task = asyncio.create_task(cache.get_or_load("k", source))
    await source.began.wait()
    task.cancel()
    assert await gone(task)
    newcomer = asyncio.create_task(cache.get_or_load("k", source))
    source.finish.set()
    assert await newcomer == "value"
    assert (source.calls, source.cancelled, source.finished) == (1, 0, 1)

    alone = Source()
    task = asyncio.create_task(cache.get_or_load("alone", alone))
    await alone.began.wait()
    task.cancel()
    assert await gone(task)
    alone.finish.set()
    await until(lambda: cache.stats().loads == 2)
    async with asyncio.timeout(10):
        while await cache.get("alone") != "value":
            await asyncio.sleep(0)
    assert alone.calls == 1


async def test_refresh_and_load_many_honour_finish_abandoned(topology: Topology):
    """``finish_abandoned`` holds for refreshes and batches too."""
    cache = topology.cache(policy=FINISHING)
    for number in range(2):
        source = Source()
        call = cache.refresh("0", source) if number == 0 else cache.load_many(["1"], source.many)
        task: asyncio.Task[Any] = asyncio.ensure_future(call)  # type: ignore[arg-type]
        await source.began.wait()
        task.cancel()
        assert await gone(task)
        source.finish.set()
        async with asyncio.timeout(10):
            while await cache.get(str(number)) is None:
                await asyncio.sleep(0)
        assert source.cancelled == 0


async def test_a_caller_s_own_timeout_is_his_own(topology: Topology, settle: Settle):
    """A caller with a deadline gets ``TimeoutError``; the others get the value of the same load."""
    cache, source = topology.cache(), Source()
    patient = asyncio.create_task(cache.get_or_load("k", source))
    await source.began.wait()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await cache.get_or_load("k", source)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(cache.get_or_load("k", source), 0.001)
    source.finish.set()
    assert await patient == "value"
    assert (source.calls, source.cancelled) == (1, 0)


async def test_a_lonely_caller_s_timeout_cancels_the_load(topology: Topology, settle: Settle):
    """The deadline of the only caller ends the load, and the loader sees the cancellation."""
    cache, source = topology.cache(), Source()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await cache.get_or_load("k", source)
    await settle()
    assert source.cancelled == source.calls


@pytest.mark.parametrize("way", ["get_or_load", "load_many"])
async def test_a_load_that_is_given_up_is_cancelled_once(topology: Topology, way: str, settle: Settle):
    """Its callers are answered and leave while it cleans up; that cancels no cleaning up, of whichever of them."""
    cache = topology.cache(policy=Policy(load_timeout=5, backend_timeout=30))
    began, clean, cleaned = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def loader(*_: Any) -> Any:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            await clean.wait()
            cleaned.set()

    def ask() -> Any:
        return cache.load_many(["k", "l"], loader) if way == "load_many" else cache.get_or_load("k", loader)

    tasks = [asyncio.ensure_future(ask()) for _ in range(3)]
    await began.wait()
    await settle()
    topology.clock.advance(5)
    await asyncio.wait(tasks)
    assert all(isinstance(task.exception(), LoadTimeout) for task in tasks)
    await settle()
    assert not cleaned.is_set()
    clean.set()
    await settle()
    assert cleaned.is_set()


async def test_soft_timeout_gives_the_stale_value_and_lets_the_load_finish(topology: Topology, until: Until):
    """After ``soft_timeout`` waiters and newcomers get the stale value; the load's value comes later."""
    policy = Policy(ttl=10, stale_if_error=100, soft_timeout=1, backend_timeout=30)
    cache, source = topology.cache(policy=policy), Source("new")
    await cache.set("k", "stale")
    topology.clock.advance(11)
    waiters = [asyncio.create_task(cache.get_or_load("k", source)) for _ in range(3)]
    await source.began.wait()
    waiters[1].cancel()
    assert await gone(waiters[1])
    topology.clock.advance(1)
    assert await waiters[0] == "stale"
    assert await waiters[2] == "stale"
    assert await cache.get_or_load("k", source) == "stale"
    assert source.cancelled == 0
    source.finish.set()
    await until(lambda: cache.stats().loads == 1)
    async with asyncio.timeout(10):
        while await cache.get_or_load("k", source) != "new":
            await asyncio.sleep(0)
    assert source.calls == 1


async def test_a_waiter_of_a_batch_can_leave(topology: Topology):
    """Of two callers whose batches overlap one is cancelled; the other gets all of its values."""
    cache, source, other = topology.cache(), Source(), Source()
    first = asyncio.create_task(cache.load_many(["1", "2"], source.many))
    await source.began.wait()
    second = asyncio.create_task(cache.load_many(["2", "3"], other.many))
    await other.began.wait()
    first.cancel()
    assert await gone(first)
    source.finish.set()
    other.finish.set()
    assert await second == {"2": "value of 2", "3": "value of 3"}
    assert (source.calls, source.cancelled) == (1, 0)


async def test_the_last_waiter_of_a_batch_cancels_its_load(topology: Topology, settle: Settle):
    """When nobody waits for any key of a batch, its loader is cancelled."""
    cache, source = topology.cache(), Source()
    task = asyncio.create_task(cache.load_many(["1", "2", "3"], source.many))
    await source.began.wait()
    task.cancel()
    assert await gone(task)
    await settle()
    assert (source.calls, source.cancelled) == (1, 1)
    assert await cache.get_many(["1", "2", "3"]) == {}
    source.finish.set()
    assert len(await cache.load_many(["1", "2", "3"], source.many)) == 3


async def test_a_batch_cancelled_in_any_turn_leaves_the_other_alone(topology: Topology, settle: Settle):
    """One of two overlapping batches is cancelled in each of the first turns; the other gets its values."""
    for turns in range(25):
        cache, source = topology.cache(), Source()
        source.finish.set()
        keys = [f"{turns} {name}" for name in "abc"]
        first = asyncio.create_task(cache.load_many(keys[:2], source.many))
        second = asyncio.create_task(cache.load_many(keys[1:], source.many))
        await settle(turns)
        first.cancel()
        assert await second == {key: f"value of {key}" for key in keys[1:]}, turns
        await asyncio.wait([first])


async def test_a_batch_whose_first_caller_leaves_at_any_await_point_serves_the_second(
    topology: Topology, settle: Settle, until: Until
):
    """One call has two keys, another waits for the second of them; the first leaves at each await point in turn."""
    cache, tracer = topology.cache(), topology.tracer

    async def many(keys: Any) -> dict[str, str]:
        return dict(await tracer.load({key: f"value of {key}" for key in keys}))

    for call in range(10):
        for when in ("before", "after"):
            keys = [f"{call} {when} {name}" for name in "ab"]
            tracer.restart()
            stop = tracer.stop(call, when)  # type: ignore[arg-type]
            first = asyncio.create_task(cache.load_many(keys, many))
            await until(lambda first=first, stop=stop: first.done() or stop.reached.is_set())  # type: ignore[misc]
            await settle()
            second = asyncio.create_task(cache.load_many(keys[1:], many))
            await settle()
            first.cancel()
            await asyncio.wait([first])
            await settle()
            stop.release()
            done, _ = await asyncio.wait([second], timeout=3)
            assert done, f"the second caller hangs: the first left {when} call {call} of {tracer.calls}"
            assert second.result() == {keys[1]: f"value of {keys[1]}"}
    tracer.restart()


async def test_cancelling_the_task_group_of_one_caller_spares_the_other(topology: Topology):
    """A task group that fails cancels its own callers; those outside of it get the value."""
    cache, source = topology.cache(), Source()
    outside = asyncio.create_task(cache.get_or_load("k", source))
    await source.began.wait()

    async def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(cache.get_or_load("k", source))
            group.create_task(fail())
    source.finish.set()
    assert await outside == "value"
    assert source.cancelled == 0


@pytest.mark.parametrize("answer", ["an error", "a value"])
async def test_a_deadline_leaves_no_cancellation_on_the_caller(answer: str):
    """Also where the engine's client makes something else of it: whoever asked is not cancelled."""

    class Stubborn(MemoryBackend):
        async def get(self, key: str, /) -> bytes | None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if answer == "an error":
                    msg = "lost"
                    raise BackendUnavailable(msg) from None
            return None

    async with Cache(Stubborn(), memory=None, policy=Policy(backend_timeout=0.01)) as cache:
        assert await cache.get("k") is None
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0


@pytest.mark.parametrize("end", ["cancelled", "failed"])
async def test_a_refresh_whose_fill_may_have_arrived_leaves_no_older_copy_near(end: str):
    """The far tier has the new value, perhaps, and nobody tells its maker."""
    backend = FaultyBackend()
    async with Cache(backend, namespace="n", memory=Memory(ttl=3600)) as cache:
        await cache.set("k", "old", ttl=3600)
        held = backend.hold("set_if")

        async def load() -> str:
            return "new"

        refreshing = asyncio.create_task(cache.refresh("k", load))
        await held.reached.wait()
        assert cache.peek("k") == "old"
        if end == "cancelled":
            refreshing.cancel()
            assert await gone(refreshing)
        else:
            backend.fail("set_if")
            held.release()
            assert await refreshing == "new"
        assert cache.peek("k") is None
