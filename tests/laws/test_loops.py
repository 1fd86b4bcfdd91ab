"""Law 12: a cache used from a second event loop works or raises one clear error; it never hangs."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Self

import pytest

from acache import AcacheError, Cache, Policy, cached

if TYPE_CHECKING:
    from tests.laws.conftest import Topology

    MakeTopology = Callable[[str], Topology]

pytestmark = [
    # A loop that ends under an open connection leaves its transport to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

KINDS = ["memory", "near+backend", "backend", "redis", "near+redis"]


class OneLoop:
    """A cache that several loops use, one after the other or at a time."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.cache: Cache = topology.cache()


@pytest.fixture(params=KINDS)
def shared(request: pytest.FixtureRequest, make_topology: MakeTopology) -> Any:
    """Give a cache that no loop owns; a last loop closes it."""
    held = OneLoop(make_topology(request.param))
    yield held
    asyncio.run(held.topology.__aexit__())
    gc.collect()


async def value() -> str:
    return "value"


async def in_time(work: Coroutine[Any, Any, Any]) -> Any:
    """Turn a hang into an error."""
    async with asyncio.timeout(10):
        return await work


def test_asyncio_run_twice(shared: OneLoop):
    """One cache serves several loops one after the other, and what the first stored the next one reads."""
    cache = shared.cache

    async def use(number: int) -> None:
        assert await cache.get_or_load("k", value) == "value"
        assert await cache.get("number", 0) == number
        await cache.set("number", number + 1, tags=["t"])
        assert await cache.incr("n") == number + 1
        assert (await cache.load_many(["a", "b"], lambda keys: many(keys)))["a"] == "value"
        await cache.delete("a")
        await asyncio.gather(*[cache.get_or_load(f"{number} {i}", value) for i in range(20)])

    async def many(keys: Any) -> dict[str, str]:
        return dict.fromkeys(keys, "value")

    for number in range(4):
        asyncio.run(in_time(use(number)))


def test_a_decorated_function_serves_one_loop_after_the_other():
    """The decorator of its own cache works in each ``asyncio.run``."""
    calls = 0

    @cached(ttl=60)
    async def function(a: int) -> int:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0)
        return a

    for _ in range(3):
        assert asyncio.run(in_time(function(1))) == 1
    assert calls == 1


def test_a_loop_that_ended_under_a_load(shared: OneLoop):
    """``asyncio.run`` that ends while a load runs leaves a cache that the next loop can use, for the same key too."""
    cache = shared.cache
    began = threading.Event()

    async def never() -> str:
        began.set()
        await asyncio.Event().wait()
        return "never"

    async def start() -> None:
        task = asyncio.create_task(cache.get_or_load("k", never))
        while not began.is_set():
            await asyncio.sleep(0)
        assert not task.done()

    asyncio.run(in_time(start()))
    assert asyncio.run(in_time(cache.get_or_load("k", value))) == "value"
    assert asyncio.run(in_time(cache.get("k"))) == "value"


@pytest.mark.parametrize("way", ["get_or_load", "refresh", "load_many"])
def test_a_loop_that_was_closed_under_a_load(shared: OneLoop, way: str, caplog: pytest.LogCaptureFixture):
    """A loop closed without ceremony under a running load, which never ends now, does not make the next loop hang."""
    caplog.set_level(logging.CRITICAL)
    cache = shared.cache
    began = threading.Event()

    async def never() -> str:
        began.set()
        await asyncio.Event().wait()
        return "never"

    async def start() -> None:
        asyncio.get_running_loop().create_task(cache.get_or_load("k", never))
        while not began.is_set():
            await asyncio.sleep(0)

    async def many(keys: Any) -> dict[str, str]:
        return dict.fromkeys(keys, "value")

    async def ask() -> Any:
        if way == "load_many":
            return (await cache.load_many(["k"], many))["k"]
        return await getattr(cache, way)("k", value)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(in_time(start()))
    loop.close()
    assert asyncio.run(in_time(ask())) == "value"
    asyncio.run(in_time(cache.delete("k")))
    assert asyncio.run(in_time(ask())) == "value"


def test_a_cache_can_be_closed_in_another_loop(shared: OneLoop, caplog: pytest.LogCaptureFixture):
    """``aclose`` in a later loop ends, also when the loop of a running load is closed."""
    caplog.set_level(logging.CRITICAL)
    cache = shared.cache
    began = threading.Event()

    async def never() -> str:
        began.set()
        await asyncio.Event().wait()
        return "never"

    async def start() -> None:
        await cache.set("other", 1)
        asyncio.get_running_loop().create_task(cache.get_or_load("k", never))
        while not began.is_set():
            await asyncio.sleep(0)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(in_time(start()))
    loop.close()
    asyncio.run(in_time(cache.aclose()))
    with pytest.raises(AcacheError):
        asyncio.run(cache.get("k"))


class Elsewhere:
    """A second loop, in a thread of its own, in which a load runs until it is told to end."""

    def __init__(self, cache: Cache) -> None:
        self.began = threading.Event()
        self.loop = asyncio.new_event_loop()
        self.finish: asyncio.Event
        self.result: Any = None
        self.thread = threading.Thread(target=self._run, args=(cache,))

    def _run(self, cache: Cache) -> None:
        async def slow() -> str:
            self.finish = asyncio.Event()
            self.began.set()
            await self.finish.wait()
            return "slow"

        async def main() -> None:
            try:
                self.result = await in_time(cache.get_or_load("k", slow))
            except Exception as error:  # noqa: BLE001
                self.result = error

        self.loop.run_until_complete(main())

    def __enter__(self) -> Self:
        self.thread.start()
        assert self.began.wait(10)
        return self

    def end(self) -> None:
        self.loop.call_soon_threadsafe(self.finish.set)
        self.thread.join(15)
        assert not self.thread.is_alive()

    def __exit__(self, *error: object) -> None:
        if self.thread.is_alive():
            self.end()
        self.loop.close()


@pytest.mark.parametrize("way", ["get_or_load", "refresh", "load_many"])
def test_a_load_of_another_running_loop_is_one_clear_error(shared: OneLoop, way: str):
    """Who would have to wait for a load of another loop that runs now is told so at once."""

    async def many(keys: Any) -> dict[str, str]:
        return dict.fromkeys(keys, "value")

    async def ask() -> Any:
        if way == "load_many":
            return await shared.cache.load_many(["k"], many)
        return await getattr(shared.cache, way)("k", value)

    with Elsewhere(shared.cache) as elsewhere:
        with pytest.raises(RuntimeError, match="loop"):
            asyncio.run(in_time(ask()))
        elsewhere.end()
        assert elsewhere.result == "slow"


def test_other_keys_and_invalidations_work_from_a_second_loop_or_say_why(shared: OneLoop):
    """From a second loop at a time, other operations work or raise one clear error, and none of them hangs."""

    async def use() -> None:
        for operation in (
            shared.cache.get("other"),
            shared.cache.set("other", 1),
            shared.cache.get_or_load("another", value),
            shared.cache.delete("k"),
            shared.cache.clear(),
        ):
            try:
                await in_time(operation)
            except (RuntimeError, AcacheError) as error:
                assert "loop" in str(error)

    with Elsewhere(shared.cache) as elsewhere:
        asyncio.run(use())
        elsewhere.end()
        assert elsewhere.result == "slow" or "loop" in str(elsewhere.result)


def test_closing_from_a_second_loop_ends_the_load_of_the_first(shared: OneLoop):
    """``aclose`` from a second loop does not hang, and neither does the caller in the first."""
    with Elsewhere(shared.cache) as elsewhere:
        asyncio.run(in_time(shared.cache.aclose()))
        elsewhere.thread.join(10)
        elsewhere.end() if elsewhere.thread.is_alive() else None
        assert elsewhere.result == "slow" or isinstance(elsewhere.result, AcacheError)


def test_a_stale_value_of_one_loop_is_refreshed_behind_in_another(make_topology: MakeTopology):
    """A refresh that died with its loop does not keep the next loop from refreshing."""
    topology = make_topology("memory")
    cache = topology.cache(policy=Policy(ttl=10, stale_while_revalidate=1000))
    calls: list[int] = []

    async def never() -> str:
        calls.append(1)
        await asyncio.Event().wait()
        return "never"

    async def start() -> None:
        await cache.set("k", "stale")
        topology.clock.advance(11)
        assert await cache.get_or_load("k", never) == "stale"
        while not calls:
            await asyncio.sleep(0)

    async def again() -> None:
        async with asyncio.timeout(10):
            while await cache.get_or_load("k", value) == "stale":
                await asyncio.sleep(0)
        assert await cache.get("k") == "value"

    asyncio.run(start())
    asyncio.run(again())
    asyncio.run(cache.aclose())
