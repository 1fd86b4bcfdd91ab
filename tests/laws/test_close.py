"""Law 11: ``aclose`` ends every task and connection, twice is harmless, and use after it is ``CacheClosed``."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from acache import AcacheError, Cache, CacheClosed, MemoryBackend, Policy
from acache.testing import FaultyBackend

if TYPE_CHECKING:
    from tests.laws.conftest import Topology

    Settle = Callable[..., Awaitable[None]]

MISS = "(a miss)"

pytestmark = [
    # Connections are counted where they are the subject; here the collector would blame whichever test runs then.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True, scope="module")
def collected() -> Iterator[None]:
    """Collect here what is left, not in the next test."""
    yield
    gc.collect()


async def value() -> str:
    return "value"


async def values(keys: Any) -> dict[str, str]:
    return dict.fromkeys(keys, "value")


USES: dict[str, Callable[[Cache], Awaitable[Any]]] = {
    "get": lambda cache: cache.get("k"),
    "get_entry": lambda cache: cache.get_entry("k"),
    "has": lambda cache: cache.has("k"),
    "get_many": lambda cache: cache.get_many(["k"]),
    "ttl": lambda cache: cache.ttl("k"),
    "set": lambda cache: cache.set("k", 1),
    "add": lambda cache: cache.add("k", 1),
    "set_many": lambda cache: cache.set_many({"k": 1}),
    "touch": lambda cache: cache.touch("k", ttl=1),
    "incr": lambda cache: cache.incr("n"),
    "decr": lambda cache: cache.decr("n"),
    "delete": lambda cache: cache.delete("k"),
    "delete_many": lambda cache: cache.delete_many(["k"]),
    "invalidate_tags": lambda cache: cache.invalidate_tags("t"),
    "clear": lambda cache: cache.clear(),
    "get_or_load": lambda cache: cache.get_or_load("k", value),
    "refresh": lambda cache: cache.refresh("k", value),
    "load_many": lambda cache: cache.load_many(["k"], values),
}


@pytest.mark.parametrize("use", USES)
async def test_use_after_close_is_cache_closed(topology: Topology, use: str):
    """Every operation of a closed cache, and of a view of it, raises ``CacheClosed``, hit or miss."""
    cache = topology.cache()
    view = cache.view(policy=Policy(ttl=5))
    other = cache.view(namespace=topology.namespace + ":other")
    await cache.set("k", "value")
    await cache.incr("n")
    await cache.aclose()
    for each in (cache, view, other):
        with pytest.raises(CacheClosed):
            await USES[use](each)


async def test_nothing_of_a_closed_cache_is_served(topology: Topology):
    """A closed cache answers no ``peek`` and no decorated call from its near tier."""
    cache = topology.cache()

    @cache.cached()
    async def function(a: int) -> int:
        return a

    assert await function(1) == 1
    await cache.set("k", "value")
    await cache.aclose()
    with pytest.raises(CacheClosed):
        await function(1)
    with pytest.raises(CacheClosed):
        await function(2)
    with pytest.raises(CacheClosed):
        await function.refresh(1)
    with pytest.raises(CacheClosed):
        await function.invalidate(1)
    try:
        assert cache.peek("k", MISS) == MISS
    except CacheClosed:
        pass
    assert await function.bypass(1) == 1


async def test_twice_is_harmless(topology: Topology):
    """``aclose`` twice, at a time, through a view and through ``async with`` does no harm."""
    cache = topology.cache()
    view = cache.view(policy=Policy(ttl=5))
    async with cache:
        await cache.set("k", 1)
        await asyncio.gather(cache.aclose(), view.aclose(), cache.aclose())
        await cache.aclose()
    await view.aclose()


async def test_a_cache_that_was_never_used_can_be_closed(topology: Topology):
    """``aclose`` without any use before opens nothing and raises nothing."""
    await topology.cache().aclose()
    assert topology.tracer.calls == []


@pytest.mark.parametrize("way", ["get_or_load", "refresh", "load_many", "cached"])
async def test_close_cancels_loads_and_tells_their_callers(topology: Topology, way: str):
    """Callers of a load that runs when the cache is closed get ``CacheClosed``; the loader is cancelled and waited for."""
    cache = topology.cache()
    began = asyncio.Event()
    cleaned_up = False

    async def loader(*_: Any) -> Any:
        nonlocal cleaned_up
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned_up = True

    @cache.cached()
    async def function() -> Any:
        return await loader()

    async def ask() -> Any:
        if way == "cached":
            return await function()
        if way == "load_many":
            return await cache.load_many(["k", "l"], loader)
        return await getattr(cache, way)("k", loader)

    tasks = [asyncio.create_task(ask()) for _ in range(3)]
    await began.wait()
    await cache.aclose()
    assert cleaned_up
    await asyncio.wait(tasks)
    assert all(isinstance(task.exception(), CacheClosed) for task in tasks)


@pytest.mark.parametrize("way", ["get_or_load", "refresh", "load_many", "get", "set", "delete"])
async def test_close_at_every_await_point(topology: Topology, way: str, settle: Settle):
    """Closed at each await point of an operation, the cache leaves no task, and its caller gets an answer or an error."""
    for call in range(8):
        for when in ("before", "after"):
            cache, tracer = topology.cache(), topology.tracer
            await cache.delete("k")

            async def loader(*_: Any) -> Any:
                return await topology.tracer.load({"k": "value"})

            async def ask(cache: Cache = cache, loader: Any = loader) -> Any:
                if way in ("get", "delete"):
                    return await getattr(cache, way)("k")
                if way == "set":
                    return await cache.set("k", 1)
                return await getattr(cache, way)(["k"] if way == "load_many" else "k", loader)

            tracer.restart()
            stop = tracer.stop(call, when)  # type: ignore[arg-type]
            task = asyncio.create_task(ask())
            reached = asyncio.create_task(stop.reached.wait())
            await asyncio.wait([task, reached], return_when="FIRST_COMPLETED")
            reached.cancel()
            closing = asyncio.create_task(cache.aclose())
            await settle()
            stop.release()
            tracer.restart()
            async with asyncio.timeout(10):
                await closing
                await asyncio.wait([task])
            assert not task.cancelled(), (call, when)
            if task.exception() is not None:
                with pytest.raises(CacheClosed):
                    raise task.exception()  # type: ignore[misc]
            await settle()
            assert [each for each in asyncio.all_tasks() if each.get_name().startswith("acache")] == []


class Slow:
    """A loader that takes its time to end when it is cancelled, or goes on as if it was not."""

    def __init__(self, *, stubborn: bool = False) -> None:
        self.began = asyncio.Event()
        self.go = asyncio.Event()
        self.cancelled = 0
        self.ended = False
        self._stubborn = stubborn

    async def __call__(self, keys: Any = ()) -> Any:
        self.began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            await self.go.wait()
            self.ended = True
            if not self._stubborn:
                raise
        return dict.fromkeys(keys, "late") if keys else "late"


WAYS = ["get_or_load", "refresh", "load_many", "cached", "cached_many", "one"]


def ask(cache: Cache, way: str, loader: Slow) -> asyncio.Task[Any]:
    """Ask for ``k``, or something else with that name in its key."""
    if way == "load_many":
        return asyncio.ensure_future(cache.load_many(["k"], loader))  # type: ignore[arg-type]
    if way == "cached":
        return asyncio.ensure_future(cache.cached(key="k")(loader.__call__)())
    if way in ("cached_many", "one"):
        many: Any = cache.cached_many(key="{keys}")(loader.__call__)
        return asyncio.ensure_future(many.one("k") if way == "one" else many(["k"]))
    return asyncio.ensure_future(getattr(cache, way)("k", loader))


@pytest.mark.parametrize("way", WAYS)
async def test_close_answers_at_once_and_lets_loaders_clean_up(
    topology: Topology, way: str, settle: Settle, caplog: pytest.LogCaptureFixture
):
    """Callers do not wait for the end of a loader; ``aclose`` does."""
    cache, slow = topology.cache(), Slow()
    tasks = [ask(cache, way, slow) for _ in range(3)]
    await slow.began.wait()
    await settle()
    closing = asyncio.create_task(cache.aclose())
    await settle()
    assert [type(task.exception()) for task in tasks if task.done()] == [CacheClosed] * 3
    assert not slow.ended
    assert not closing.done()
    slow.go.set()
    async with asyncio.timeout(10):
        await closing
    assert (slow.cancelled, slow.ended) == (1, True)
    assert caplog.messages == []


@pytest.mark.parametrize("way", WAYS)
async def test_close_waits_five_seconds_for_a_loader_that_does_not_stop(
    topology: Topology, way: str, settle: Settle, caplog: pytest.LogCaptureFixture
):
    """Then it says which one, and goes on; what that one still returns is dropped."""
    cache, stubborn = topology.cache(), Slow(stubborn=True)
    task = ask(cache, way, stubborn)
    await stubborn.began.wait()
    await settle()
    closing = asyncio.create_task(cache.aclose())
    await settle()
    topology.clock.advance(4.9)
    await settle()
    assert not closing.done()
    assert caplog.messages == []
    topology.clock.advance(0.1)
    async with asyncio.timeout(10):
        await closing
    [message] = caplog.messages
    assert "5 s" in message
    assert "'k'" in message
    assert isinstance(task.exception(), CacheClosed)
    async with cache:
        stubborn.go.set()
        await settle()
        assert stubborn.ended
        assert await cache.get("k", MISS) == MISS
        stats = cache.stats()
        assert (stats.fills_refused, stats.load_failures) == (0, 0)


async def test_what_did_not_stop_is_not_waited_for_twice(topology: Topology, settle: Settle):
    """A cache that was opened again is closed again without the loaders of before."""
    cache, stubborn = topology.cache(), Slow(stubborn=True)
    tasks = [ask(cache, way, stubborn) for way in ("get_or_load", "one")]
    await settle()
    closing = asyncio.create_task(cache.aclose())
    await settle()
    topology.clock.advance(5)
    async with asyncio.timeout(10):
        await closing
        async with cache:
            pass
    stubborn.go.set()
    await asyncio.wait(tasks)
    await settle()


async def test_all_namespaces_share_five_seconds(topology: Topology, settle: Settle, caplog: pytest.LogCaptureFixture):
    """Every load is cancelled at once, however many views have loaders that do not stop; one warning names them."""
    cache = topology.cache()
    views = [cache.view(namespace=f"{topology.namespace}:{number}") for number in range(3)]
    loaders = [Slow(stubborn=True) for _ in views]
    tasks = [view.get_or_load(f"k{number}", loaders[number]) for number, view in enumerate(views)]
    running = [asyncio.ensure_future(task) for task in tasks]
    for loader in loaders:
        await loader.began.wait()
    closing = asyncio.create_task(cache.aclose())
    await settle()
    assert [loader.cancelled for loader in loaders] == [1, 1, 1]
    topology.clock.advance(5)
    async with asyncio.timeout(10):
        await closing
    [message] = caplog.messages
    assert all(f"'k{number}'" in message for number in range(3))
    assert all(isinstance(task.exception(), CacheClosed) for task in running)
    for loader in loaders:
        loader.go.set()
    await settle()


@pytest.mark.parametrize("way", ["get_or_load", "load_many"])
@pytest.mark.parametrize("why", ["out of time", "nobody waits"])
async def test_a_load_that_is_on_its_way_out_is_not_cancelled_again(
    topology: Topology, way: str, why: str, settle: Settle
):
    """Closing the cache does not cut the cleaning up short that it waits for."""
    cache, slow = topology.cache(policy=Policy(load_timeout=1, backend_timeout=30)), Slow()
    task = ask(cache, way, slow)
    await slow.began.wait()
    await settle()
    if why == "nobody waits":
        task.cancel()
    else:
        topology.clock.advance(1)
    await asyncio.wait([task])
    await settle()
    closing = asyncio.create_task(cache.aclose())
    await settle()
    assert not closing.done()
    slow.go.set()
    async with asyncio.timeout(10):
        await closing
    assert (slow.cancelled, slow.ended) == (1, True)


async def test_a_close_that_is_cancelled_while_loaders_clean_up_closes_the_backend(settle: Settle):
    """It has cancelled them, and leaves nothing of its own behind."""
    backend, slow = Releasing(), Slow()
    cache = Cache(backend, namespace="n")
    task = ask(cache, "get_or_load", slow)
    await slow.began.wait()
    closing = asyncio.create_task(cache.aclose())
    await settle()
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert backend.closed == 1
    assert isinstance(task.exception(), CacheClosed)
    slow.go.set()
    await settle()


async def test_close_ends_loads_behind(topology: Topology, caplog: pytest.LogCaptureFixture):
    """A refresh behind a stale answer and an abandoned load that was to finish are ended too."""
    policy = Policy(ttl=10, stale_while_revalidate=100, finish_abandoned=True, backend_timeout=30)
    cache = topology.cache(policy=policy)
    await cache.set("k", "stale")
    topology.clock.advance(11)
    ended: list[str] = []
    began = {"k": asyncio.Event(), "abandoned": asyncio.Event()}

    async def loader(key: str) -> str:
        began[key].set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(key)
        return ""

    assert await cache.get_or_load("k", lambda: loader("k")) == "stale"
    task = asyncio.create_task(cache.get_or_load("abandoned", lambda: loader("abandoned")))
    await began["k"].wait()
    await began["abandoned"].wait()
    task.cancel()
    await asyncio.wait([task])
    await cache.aclose()
    assert sorted(ended) == ["abandoned", "k"]
    assert caplog.messages == []


async def test_a_loader_may_close_its_own_cache(topology: Topology):
    """``aclose`` from inside a loader does not wait for itself."""
    cache = topology.cache()

    async def loader() -> str:
        await cache.aclose()
        return "value"

    async with asyncio.timeout(10):
        try:
            assert await cache.get_or_load("k", loader) == "value"
        except CacheClosed:
            pass
    with pytest.raises(CacheClosed):
        await cache.get("k")


async def test_a_loader_that_resists_its_cancellation_does_not_bring_the_closed_cache_back(topology: Topology):
    """A load that swallows its cancellation ends, and stores nothing in the closed cache."""
    cache = topology.cache()
    began = asyncio.Event()

    async def stubborn() -> str:
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass
        return "value"

    task = asyncio.create_task(cache.get_or_load("k", stubborn))
    await began.wait()
    async with asyncio.timeout(10):
        await cache.aclose()
        await asyncio.wait([task])
    assert not task.cancelled()
    assert cache.stats().near_entries == 0


async def test_a_shared_backend_outlives_one_of_its_caches():
    """Closing one cache over a `MemoryBackend` leaves the other one's values."""
    backend = MemoryBackend()
    p, q = Cache(backend, namespace="n"), Cache(backend, namespace="n")
    await p.set("k", "value")
    await p.aclose()
    assert await q.get("k") == "value"
    await q.aclose()


async def test_close_closes_every_connection(redis_topology: Topology):
    """After ``aclose`` the server has no client of this cache left."""
    cache = redis_topology.cache()
    await asyncio.gather(*[cache.get_or_load(str(number), value) for number in range(20)])
    assert await redis_topology.connections() > 0
    await cache.aclose()
    await no_connection(redis_topology)


@pytest.mark.parametrize("way", ["get", "set", "get_or_load", "a loader that closes"])
async def test_an_operation_that_close_overtakes_leaves_no_connection(redis_topology: Topology, way: str):
    """What was under way when the cache was closed does not open a connection that nobody will close."""
    cache, tracer = redis_topology.cache(), redis_topology.tracer

    async def closing() -> str:
        await cache.aclose()
        return "value"

    async def ask() -> Any:
        if way == "get":
            return await cache.get("k")
        if way == "set":
            return await cache.set("k", 1)
        return await cache.get_or_load("k", value if way == "get_or_load" else closing)

    tracer.restart()
    stop = tracer.stop(0, "before")
    task = asyncio.create_task(ask())
    await stop.reached.wait()
    if way != "a loader that closes":
        await cache.aclose()
    stop.release()
    await asyncio.wait([task])
    assert not task.cancelled()
    assert task.exception() is None or isinstance(task.exception(), AcacheError)
    await no_connection(redis_topology)


async def no_connection(topology: Topology) -> None:
    """See that the server has dropped every connection; it hears of a closed one a moment later."""
    for _ in range(50):
        if await topology.connections() == 0:
            return
    assert await topology.connections() == 0


class Releasing(FaultyBackend):
    """Counts how often it was closed."""

    closed = 0

    async def aclose(self) -> None:
        self.closed += 1


async def test_a_cancelled_aclose_closes_the_backend_all_the_same():
    """It cuts the time short that operations under way are given; a second call has nothing left to do."""
    backend = Releasing()
    cache = Cache(backend, namespace="n")
    held = backend.hold("get")
    reading = asyncio.create_task(cache.get("k"))
    await held.reached.wait()
    closing = asyncio.create_task(cache.aclose())
    for _ in range(5):
        await asyncio.sleep(0)
    assert backend.closed == 0  # it waits for the read
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert backend.closed == 1
    await cache.aclose()
    assert backend.closed == 1
    held.release()
    await asyncio.wait([reading])


async def test_an_aclose_that_was_cancelled_twice_is_taken_up_by_the_next():
    """What was not closed then is closed."""

    class Slow(Releasing):
        gate = asyncio.Event()

        async def aclose(self) -> None:
            await self.gate.wait()
            await super().aclose()

    backend = Slow()
    cache = Cache(backend, namespace="n")
    closing = asyncio.create_task(cache.aclose())
    for _ in range(5):
        await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert backend.closed == 0
    backend.gate.set()
    await cache.aclose()
    assert backend.closed == 1
