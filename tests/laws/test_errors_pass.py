"""Law 6: the loader's own exception reaches every waiter as it is and is not cached; nothing is swallowed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import TYPE_CHECKING, Any

import pytest

from acache import LoadTimeout, Policy, RecursiveLoad, current_load
from acache.events import LoadFailed, Stored
from acache.testing import Recorder

if TYPE_CHECKING:
    from tests.laws.conftest import Topology

    Settle = Callable[..., Awaitable[None]]
    Until = Callable[[Callable[[], object]], Awaitable[None]]
    MakeTopology = Callable[[str], Topology]

MISS = "(a miss)"


class CustomError(Exception):
    """An exception that takes more than a message."""

    def __init__(self, code: int, *, detail: str) -> None:
        super().__init__(code)
        self.detail = detail


ERRORS = [
    CustomError(7, detail="x"),
    ValueError("v"),
    KeyError("k"),
    TimeoutError("the loader's own"),
    ConnectionError("the loader's own"),
    ExceptionGroup("several", [ValueError("a"), KeyError("b")]),
    RuntimeError("r"),
    AssertionError(),
    StopAsyncIteration(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("way", ["get_or_load", "refresh", "load_many", "cached"])
async def test_every_waiter_gets_the_very_exception(topology: Topology, until: Until, error: Exception, way: str):
    """Each of several waiters gets the loader's exception itself; it is counted, not cached and not wrapped."""
    recorder = Recorder()
    cache = topology.cache(observers=(recorder,))
    began, finish = asyncio.Event(), asyncio.Event()
    calls = 0

    async def loader() -> str:
        nonlocal calls
        calls += 1
        began.set()
        await finish.wait()
        if calls == 1:
            raise error
        return "value"

    async def many(keys: Any) -> dict[str, str]:
        return {"k": await loader()}

    @cache.cached(key="k{a}")
    async def function(a: str) -> str:
        return await loader()

    async def ask() -> Any:
        if way == "cached":
            return await function("")
        if way == "load_many":
            return (await cache.load_many(["k"], many))["k"]
        return await getattr(cache, way)("k", loader)

    tasks = [asyncio.create_task(ask()) for _ in range(5)]
    await began.wait()
    await until(lambda: cache.stats().coalesced == 4)  # before that, some are still looking at the far tier
    finish.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(result is error for result in results)
    assert calls == 1
    assert await cache.get("k", MISS) == MISS
    assert [event.error for event in recorder.of(LoadFailed)] == [error]
    assert recorder.of(Stored) == []
    assert cache.stats().load_failures == 1
    assert await ask() == "value"


@pytest.mark.parametrize("way", ["get_or_load", "load_many"])
async def test_stop_iteration_is_an_error_not_an_end(topology: Topology, way: str):
    """A loader that lets a ``StopIteration`` out makes an error, which neither hangs nor ends anybody's loop."""
    cache = topology.cache()

    async def through_a_coroutine(*_: Any) -> Any:
        raise StopIteration("s")

    class Bare:
        """An awaitable that raises ``StopIteration`` with no coroutine in between."""

        def __await__(self) -> Any:
            yield from asyncio.sleep(0).__await__()
            raise StopIteration("s") from None  # noqa: PLR1708

    def bare(*_: Any) -> Any:
        return Bare()

    def at_once(*_: Any) -> Any:
        raise StopIteration("s")

    for loader in (through_a_coroutine, bare, at_once):
        with pytest.raises(RuntimeError, match="StopIteration"):
            await (cache.get_or_load("k", loader) if way == "get_or_load" else cache.load_many(["k"], loader))
        assert await cache.get("k", MISS) == MISS


@pytest.mark.parametrize("way", ["get_or_load", "refresh", "load_many"])
async def test_a_loader_that_raises_before_it_awaits_is_no_different(topology: Topology, way: str):
    """A plain function that raises instead of returning an awaitable raises to its callers; so does a wrong result."""
    cache = topology.cache()
    error = ZeroDivisionError()

    def broken(*_: Any) -> Any:
        raise error

    def not_awaitable(*_: Any) -> Any:
        return 1

    argument: Any = ["k"] if way == "load_many" else "k"
    for _ in range(2):
        with pytest.raises(ZeroDivisionError) as caught:
            await getattr(cache, way)(argument, broken)
        assert caught.value is error
    with pytest.raises(TypeError):
        await getattr(cache, way)(argument, not_awaitable)


@pytest.mark.parametrize("way", ["get_or_load", "load_many"])
async def test_a_cancellation_that_the_loader_raises_cancels_its_callers(topology: Topology, way: str):
    """A ``CancelledError`` out of the loader itself reaches every caller; nobody hangs and nothing is cached."""
    cache = topology.cache()
    began, finish = asyncio.Event(), asyncio.Event()
    calls = 0

    async def loader(*_: Any) -> Any:
        nonlocal calls
        calls += 1
        began.set()
        await finish.wait()
        raise asyncio.CancelledError

    def ask() -> Any:
        return cache.get_or_load("k", loader) if way == "get_or_load" else cache.load_many(["k"], loader)

    tasks = [asyncio.create_task(ask()) for _ in range(3)]
    await began.wait()
    finish.set()
    await asyncio.wait(tasks)
    assert all(task.cancelled() for task in tasks)
    assert calls == 1
    assert await cache.get("k", MISS) == MISS


class CustomBaseError(BaseException):
    """Not an ``Exception``."""


@pytest.mark.parametrize("way", ["get_or_load", "load_many", "refresh"])
async def test_a_base_exception_of_the_user_s_own_reaches_every_waiter(topology: Topology, way: str):
    """A ``BaseException`` that is no exit passes like any exception."""
    cache = topology.cache()
    error = CustomBaseError()
    began, finish = asyncio.Event(), asyncio.Event()

    async def loader(*_: Any) -> Any:
        began.set()
        await finish.wait()
        raise error

    argument: Any = ["k"] if way == "load_many" else "k"

    async def ask() -> object:
        try:
            return await getattr(cache, way)(argument, loader)
        except CustomBaseError as caught:
            return caught

    tasks = [asyncio.create_task(ask()) for _ in range(3)]
    await began.wait()
    finish.set()
    assert all(result is error for result in await asyncio.gather(*tasks))


@pytest.mark.parametrize("kind", ["memory", "near+backend", "backend", "redis"])
@pytest.mark.parametrize("exit_", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("way", ["get_or_load", "load_many", "refresh"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_exit_leaves_the_loop(
    make_topology: MakeTopology,
    kind: str,
    exit_: type[BaseException],
    way: str,
    caplog: pytest.LogCaptureFixture,
):
    """``KeyboardInterrupt`` and ``SystemExit`` out of a loader end ``asyncio.run`` and stay themselves."""
    caplog.set_level(logging.CRITICAL)
    caught: list[BaseException] = []

    async def main() -> None:
        async with make_topology(kind) as topology:
            cache = topology.cache()

            async def loader(*_: Any) -> Any:
                await asyncio.sleep(0)
                raise exit_

            try:
                await (cache.load_many(["k"], loader) if way == "load_many" else getattr(cache, way)("k", loader))
            except BaseException as error:
                caught.append(error)
                raise

    with pytest.raises(exit_):
        asyncio.run(main())
    assert all(isinstance(error, exit_ | asyncio.CancelledError) for error in caught)


async def test_a_failed_load_does_not_poison_the_key(topology: Topology):
    """After a failure the next caller loads again, and a value that was set stays readable."""
    cache = topology.cache()

    async def fail() -> str:
        raise ZeroDivisionError

    async def succeed() -> str:
        return "value"

    with pytest.raises(ZeroDivisionError):
        await cache.get_or_load("k", fail)
    assert await cache.get_or_load("k", succeed) == "value"
    with pytest.raises(ZeroDivisionError):
        await cache.refresh("k", fail)
    assert await cache.get("k") == "value"


async def test_a_failing_key_of_a_batch_fails_the_call_and_the_others_are_stored(topology: Topology):
    """One key's own flight fails; what the batch loaded is stored all the same."""
    cache = topology.cache()
    began, finish = asyncio.Event(), asyncio.Event()

    async def fail() -> str:
        began.set()
        await finish.wait()
        raise ZeroDivisionError

    async def many(keys: Any) -> dict[str, str]:
        finish.set()
        return dict.fromkeys(keys, "value")

    single = asyncio.create_task(cache.get_or_load("1", fail))
    await began.wait()
    with pytest.raises(ZeroDivisionError):
        await cache.load_many(["1", "2", "3"], many)
    with pytest.raises(ZeroDivisionError):
        await single
    assert await cache.get_many(["1", "2", "3"]) == {"2": "value", "3": "value"}


async def test_a_batch_loader_s_exception_is_every_caller_s(topology: Topology):
    """The exception of a batch loader reaches the callers of all its keys, and is the same object."""
    cache = topology.cache()
    error = CustomError(1, detail="d")
    began, finish = asyncio.Event(), asyncio.Event()

    async def many(keys: Any) -> dict[str, str]:
        began.set()
        await finish.wait()
        raise error

    async def never() -> str:
        raise AssertionError

    batch = asyncio.create_task(cache.load_many(["1", "2"], many))
    await began.wait()
    single = asyncio.create_task(cache.get_or_load("2", never))
    await asyncio.sleep(0)
    finish.set()
    assert await asyncio.gather(batch, single, return_exceptions=True) == [error, error]


async def test_what_a_batch_loader_leaves_out_is_left_out(topology: Topology):
    """A key that the result lacks is neither returned nor stored, and ``None`` is a value."""
    cache = topology.cache()

    async def many(keys: Any) -> dict[str, Any]:
        return {"1": None, "not asked for": 1}

    assert await cache.load_many(["1", "2"], many) == {"1": None}
    assert await cache.get_many(["1", "2", "not asked for"]) == {"1": None}


async def test_stale_if_error_answers_for_exceptions_only(topology: Topology):
    """Within the window an ``Exception`` is answered with the stale value; a ``BaseException`` passes."""
    cache = topology.cache(policy=Policy(ttl=10, stale_if_error=100, backend_timeout=30, error_backoff=0))
    await cache.set("k", "stale")
    topology.clock.advance(11)

    async def fail() -> str:
        raise ZeroDivisionError

    async def fail_badly() -> str:
        raise CustomBaseError

    assert await cache.get_or_load("k", fail) == "stale"
    with pytest.raises(CustomBaseError):
        await cache.get_or_load("k", fail_badly)
    assert await cache.get_or_load("k", fail) == "stale"


async def test_a_hard_timeout_is_an_acache_error_for_every_waiter(topology: Topology, settle: Settle):
    """After ``load_timeout`` the loader is cancelled, and its callers get ``LoadTimeout``."""
    cache = topology.cache(policy=Policy(load_timeout=0.01, backend_timeout=30))
    began, cancelled = asyncio.Event(), asyncio.Event()

    async def slow() -> str:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return ""

    tasks = [asyncio.create_task(cache.get_or_load("k", slow)) for _ in range(3)]
    await began.wait()
    await settle()
    topology.clock.advance(1)
    await asyncio.wait(tasks)
    assert all(isinstance(task.exception(), LoadTimeout) for task in tasks)
    assert cancelled.is_set()


# --------------------------------------------------------------------------------------------------------- recursion


async def test_a_loader_that_asks_for_its_own_key_is_told_so(topology: Topology):
    """Direct recursion is ``RecursiveLoad``, not a deadlock; the key works afterwards."""
    cache = topology.cache()

    async def loader() -> str:
        return await cache.get_or_load("k", loader)

    async def good() -> str:
        return "value"

    with pytest.raises(RecursiveLoad):
        await cache.get_or_load("k", loader)
    assert await cache.get_or_load("k", good) == "value"


async def test_a_circle_of_loaders_is_told_so(topology: Topology):
    """Indirect recursion over several keys, functions and views is ``RecursiveLoad``."""
    cache = topology.cache()
    view = cache.view(namespace=topology.namespace + ":other")

    async def one() -> str:
        return await view.get_or_load("two", two)

    async def two() -> str:
        return await three()

    @cache.cached()
    async def three() -> str:
        return await cache.refresh("one", one)

    with pytest.raises(RecursiveLoad):
        await cache.get_or_load("one", one)
    with pytest.raises(RecursiveLoad):
        await three()


async def test_recursion_through_tasks_is_told_too(topology: Topology):
    """A loader that waits for its own key in a task or a gather of its own is told so."""
    cache = topology.cache()

    async def in_a_task() -> str:
        return await asyncio.create_task(cache.get_or_load("k", in_a_task))

    async def in_a_gather() -> Any:
        return await asyncio.gather(cache.get_or_load("other", other), cache.get_or_load("k", in_a_gather))

    async def other() -> str:
        return "other"

    with pytest.raises(RecursiveLoad):
        await cache.get_or_load("k", in_a_task)
    with pytest.raises(RecursiveLoad):
        await cache.get_or_load("k", in_a_gather)


async def test_two_loads_that_wait_for_each_other_are_told(topology: Topology):
    """Two callers start two loads; each then waits for the other's key: somebody gets ``RecursiveLoad``, nobody hangs."""
    cache = topology.cache()
    both = asyncio.Barrier(2)

    async def one() -> str:
        await both.wait()
        return "one" + await cache.get_or_load("two", two)

    async def two() -> str:
        await both.wait()
        return "two" + await cache.get_or_load("one", one)

    tasks = [asyncio.create_task(cache.get_or_load("one", one)), asyncio.create_task(cache.get_or_load("two", two))]
    done, pending = await asyncio.wait(tasks, timeout=5)
    for task in pending:
        task.cancel()
    assert not pending
    assert any(isinstance(task.exception(), RecursiveLoad) for task in done)


@pytest.mark.parametrize("key", ["1", "2"])
@pytest.mark.parametrize("way", ["get_or_load", "load_many"])
async def test_a_batch_loader_that_asks_for_one_of_its_keys_is_told_so(topology: Topology, key: str, way: str):
    """Whichever of its keys a batch loader waits for, it is ``RecursiveLoad`` and not a deadlock."""
    cache = topology.cache()

    async def one() -> str:
        return "value"

    async def many(keys: Any) -> dict[str, str]:
        if way == "get_or_load":
            return {key: await cache.get_or_load(key, one)}
        return await cache.load_many([key, "3"], many)

    task = asyncio.create_task(cache.load_many(["1", "2"], many))
    done, _ = await asyncio.wait([task], timeout=5)
    task.cancel()
    assert done, "a batch loader that waits for its own key hangs"
    assert isinstance(task.exception(), RecursiveLoad)


async def test_asking_for_other_keys_is_no_recursion(topology: Topology):
    """Loaders may call loaders: diamonds, chains and the same key in another namespace are fine."""
    cache = topology.cache()
    view = cache.view(namespace=topology.namespace + ":other")

    async def leaf() -> int:
        return 1

    async def left() -> int:
        return await cache.get_or_load("leaf", leaf) + 1

    async def right() -> int:
        return await cache.get_or_load("leaf", leaf) + await view.get_or_load("top", leaf)

    async def top() -> int:
        return sum(await asyncio.gather(cache.get_or_load("left", left), cache.get_or_load("right", right)))

    async def chain(depth: int) -> int:
        return 0 if depth == 0 else 1 + await cache.get_or_load(f"chain {depth}", lambda: chain(depth - 1))

    assert await cache.get_or_load("top", top) == 4
    assert await chain(60) == 60


async def test_what_a_loader_left_behind_may_ask_for_the_key_later(topology: Topology):
    """A task that a loader started may load the same key when that load is over."""
    cache = topology.cache()
    over = asyncio.Event()
    left_behind: list[asyncio.Task[str]] = []

    async def again() -> str:
        return "again"

    async def later() -> str:
        await over.wait()
        return await cache.refresh("k", again)

    async def loader() -> str:
        left_behind.append(asyncio.create_task(later()))
        return "value"

    assert await cache.get_or_load("k", loader) == "value"
    over.set()
    assert await left_behind[0] == "again"


@pytest.mark.parametrize("way", ["its own", "a batch's", "of who waits for it", "out of time"])
@pytest.mark.parametrize("stored", [True, False])
async def test_a_task_that_outlives_its_loader_is_no_part_of_the_load(
    topology: Topology, way: str, settle: Settle, *, stored: bool
):
    """From the return of the loader on, in any turn, what it started may ask for the key: nobody waits for that."""
    cache = topology.cache(policy=Policy(load_timeout=5, backend_timeout=30))

    async def again() -> str:
        return "again"

    for turns in range(25):
        key, left_behind, returned, began = f"k{turns}", list[asyncio.Task[str]](), asyncio.Event(), asyncio.Event()

        async def later(turns: int = turns, key: str = key, returned: asyncio.Event = returned) -> str:
            await returned.wait()
            await settle(turns)
            return await cache.get_or_load(key, again)

        async def loader(
            keys: Any = (),
            later: Any = later,
            left_behind: Any = left_behind,
            returned: asyncio.Event = returned,
            began: asyncio.Event = began,
        ) -> Any:
            left_behind.append(asyncio.create_task(later()))
            began.set()
            if not stored and not keys:
                current_load().no_store()
            if way == "out of time":
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    await settle()
            returned.set()
            return dict.fromkeys(keys, "value") if keys else "value"

        async def outer(key: str = key, loader: Any = loader) -> str:
            return str(await cache.get_or_load(f"inner {key}", loader))

        if way == "a batch's":
            condition: dict[str, Any] = {} if stored else {"condition": lambda _: False}
            many: Any = cache.cached_many(key="{keys}", **condition)(loader)
            task = asyncio.ensure_future(many([key]))
        else:
            task = asyncio.ensure_future(cache.get_or_load(key, outer if way == "of who waits for it" else loader))
        await began.wait()
        if way == "out of time":
            topology.clock.advance(5)
        await asyncio.wait([task])
        assert await left_behind[0] in ("value", "again")


async def test_a_task_without_the_context_is_no_part_of_the_load(topology: Topology):
    """While the loader runs, what carries its context is taken for it; a task with a context of its own is not."""
    cache = topology.cache()
    left_behind: list[asyncio.Task[str]] = []

    async def again() -> str:
        return "again"

    async def ask() -> str:
        return await cache.get_or_load("k", again)

    async def loader() -> str:
        left_behind.append(asyncio.create_task(ask()))
        left_behind.append(asyncio.create_task(ask(), context=Context()))
        await asyncio.wait(left_behind[:1])
        return "value"

    assert await cache.get_or_load("k", loader) == "value"
    with pytest.raises(RecursiveLoad):
        await left_behind[0]
    assert await left_behind[1] == "value"
