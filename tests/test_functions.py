"""What can be decorated besides a plain coroutine function, and forgetting all results of one."""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from typing import Any

import pytest

from acache import Cache, ConfigurationError, LoadTimeout, Memory, MemoryBackend, Policy, cached
from acache.testing import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    """A clock that moves when told."""
    return FakeClock()


@pytest.fixture(params=["near", "near over far", "far", "isolated"])
async def cache(request: pytest.FixtureRequest, clock: FakeClock) -> AsyncIterator[Cache]:
    """A cache of each kind that takes another path through the wrapper."""
    backend = MemoryBackend(clock=clock) if "far" in request.param else None
    memory = {"far": None, "isolated": Memory(isolate=True)}.get(request.param, Memory())
    async with Cache(backend, memory=memory, clock=clock, namespace="f") as cache:
        yield cache


# Threads -------------------------------------------------------------------------------------------------------------

user: ContextVar[str] = ContextVar("user")


async def test_a_synchronous_function_is_refused_with_its_remedy(cache: Cache):
    """It would block the loop; the remedy is in the message."""

    def read(x: int) -> int:
        return x

    with pytest.raises(ConfigurationError, match=r"read is not a coroutine function.*async def.*thread=True"):
        cache.cached()(read)  # type: ignore[arg-type, call-overload, unused-ignore]


async def test_a_coroutine_function_needs_no_thread(cache: Cache):
    """There it would only make a coroutine that nobody awaits."""

    async def read(x: int) -> int:
        return x

    with pytest.raises(ConfigurationError, match=r"read is a coroutine function.*leave thread=True out"):
        cache.cached(thread=True)(read)


async def test_generators_are_refused_with_their_remedy(cache: Cache):
    """Their items come one by one, and could be had once only."""

    async def lines() -> AsyncIterator[int]:
        yield 1

    def words() -> Iterator[int]:
        yield 1

    with pytest.raises(ConfigurationError, match=r"lines is an async generator.*list"):
        cache.cached()(lines)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"words is a generator.*list"):
        cache.cached(thread=True)(words)


class Asked:
    """Is called as a function is."""

    __cache_key__ = "asked"

    async def __call__(self, x: int) -> int:
        return x


@pytest.mark.parametrize("wrap", [lambda made: made, lambda made: functools.partial(made, 1)])
@pytest.mark.parametrize("thread", [False, True])
async def test_an_object_that_can_be_called_is_refused_with_its_remedy(cache: Cache, wrap: Any, thread: bool):
    """It has no name; its ``__call__`` has, and is a bound method like any other."""
    with pytest.raises(ConfigurationError, match=r"a Asked has no name.*the object's __call__, as in cached\(\)\("):
        cache.cached(thread=thread)(wrap(Asked()))  # type: ignore[call-overload]
    assert await cache.cached()(Asked().__call__)(1) == 1


async def test_a_synchronous_function_runs_in_a_thread(cache: Cache):
    """The wrapper is a coroutine function, and has the helpers of any other."""
    threads: list[int] = []

    @cache.cached(ttl=60, thread=True)
    def double(x: int, *, times: int = 2) -> int:
        """Doubles."""
        threads.append(threading.get_ident())
        return x * times

    assert inspect.iscoroutinefunction(double)
    assert double.__doc__ == "Doubles."
    assert await double(4) == await double(x=4) == await double(4, times=2) == 8
    assert len(threads) == 1
    assert threading.get_ident() not in threads
    assert await double.bypass(4) == 8
    assert await double.refresh(4) == 8
    assert threading.get_ident() not in threads
    assert len(threads) == 3
    assert await double.invalidate(4) is True
    assert double.stats().loads == 2


async def test_the_loop_goes_on_while_a_thread_loads(cache: Cache):
    """Callers of one key share one call; the thread waits for something that only the loop can do."""
    go, calls = threading.Event(), []

    @cache.cached(thread=True)
    def read(x: int) -> int:
        calls.append(x)
        assert go.wait(30)
        return x

    tasks = [asyncio.create_task(read(1)) for _ in range(100)]
    while not calls:
        await asyncio.sleep(0.001)
    go.set()
    assert await asyncio.gather(*tasks) == [1] * 100
    assert calls == [1]


async def test_errors_and_context_cross_the_thread(cache: Cache):
    """An exception arrives as it is; context variables of the caller who came first can be read."""

    class BrokenError(Exception): ...

    @cache.cached(thread=True)
    def read(x: int) -> str:
        if x:
            raise BrokenError(x)
        return user.get()

    with pytest.raises(BrokenError):
        await read(1)
    user.set("ada")
    assert await read(0) == "ada"


async def test_a_caller_leaves_a_thread_at_once(cache: Cache):
    """A thread cannot be stopped, but nobody has to wait for it: its result is dropped, and the next call loads."""
    go, calls = threading.Event(), []

    @cache.cached(thread=True)
    def read(x: int) -> int:
        calls.append(x)
        if len(calls) == 1:
            assert go.wait(30)
        return len(calls)

    try:
        task = asyncio.create_task(read(1))
        while not calls:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await read(1) == 2
    finally:
        go.set()
    assert await read(1) == 2


async def test_load_timeout_does_not_wait_for_the_thread(clock: FakeClock):
    """Its callers get ``LoadTimeout`` while the thread still runs."""
    go, begun = threading.Event(), threading.Event()
    async with Cache(clock=clock) as cache:

        @cache.cached(thread=True, policy=Policy(load_timeout=5))
        def read() -> None:
            begun.set()
            assert go.wait(30)

        try:
            task = asyncio.create_task(read())
            while not begun.is_set():
                await asyncio.sleep(0.001)
            clock.advance(5)
            with pytest.raises(LoadTimeout):
                await task
        finally:
            go.set()


async def test_methods_can_load_in_threads():
    """Bound as any other; the decorator with a cache of its own can do it too."""

    class Files:
        @cached(ttl=60, ignore=("self",), thread=True)
        def size(self, name: str) -> int:
            return len(name)

    assert await Files().size("abc") == 3
    assert await Files.size.invalidate("abc") is True


# Partial applications ------------------------------------------------------------------------------------------------


async def power(base: Any, exponent: int, *, plus: int = 0) -> int:
    """Compute."""
    return base**exponent + plus


async def test_a_partial_application_is_a_function_of_its_own(cache: Cache):
    """What was fixed is part of the key, so that two of them do not answer for each other."""
    square = cache.cached()(functools.partial(power, exponent=2))
    cube = cache.cached()(functools.partial(power, exponent=3))
    of_two = cache.cached()(functools.partial(power, 2))
    assert (await square(3), await cube(3), await of_two(3)) == (9, 27, 8)
    assert (await square(3), await cube(3), await of_two(3)) == (9, 27, 8)
    assert len({square.key(3), cube.key(3), of_two.key(3), cache.cached()(power).key(3, 2)}) == 4
    assert await square(3, exponent=3) == 27
    assert await of_two(3, plus=1) == 9
    assert inspect.iscoroutinefunction(square)
    assert square.__name__ == "power"
    assert square.__doc__ == "Compute."
    assert await square.invalidate(3) is True


async def test_a_partial_application_of_something_unstable_needs_a_key(cache: Cache):
    """As any argument without a stable text does; with a key of the user's own it is nobody's business."""
    with pytest.raises(ConfigurationError, match=r"power.*fixed.*key="):
        cache.cached()(functools.partial(power, object()))
    made = cache.cached(key="power:{exponent}")(functools.partial(power, 2))
    assert await made(5) == 32
    assert made.key(5) == "power:5"


async def test_a_partial_application_of_a_cached_function(cache: Cache):
    """Is a call like any other."""

    @cache.cached()
    async def add(a: int, b: int) -> int:
        return a + b

    assert await functools.partial(add, 1)(2) == 3
    assert add.peek(1, 2) in (3, None)
    assert add.stats().loads == 1
    assert await functools.partial(add, b=2)(1) == 3
    assert add.stats().loads == 1


async def test_a_partial_application_of_a_synchronous_function(cache: Cache):
    """In a thread too."""
    half = cache.cached(thread=True)(functools.partial(divmod, 10))
    assert await half(3) == (3, 1)


# All at once ---------------------------------------------------------------------------------------------------------


async def test_invalidate_all_forgets_every_result_of_one_function(cache: Cache):
    """By the tags that all its results carry; those of other functions stay."""
    calls: list[int] = []

    @cache.cached(tags=["doubles", "double:{x}"])
    async def double(x: int) -> int:
        calls.append(x)
        return 2 * x

    @cache.cached()
    async def other(x: int) -> int:
        calls.append(-x)
        return x

    for x in (1, 2):
        await double(x)
        await other(x)
    await double.invalidate_all()
    assert [await double(1), await double(2), await other(1), await other(2)] == [2, 4, 1, 2]
    assert calls == [1, -1, 2, -2, 1, 2]


async def test_invalidate_all_wins_over_a_running_load(cache: Cache):
    """What the load returns goes to its callers, and is not stored; newcomers get a load of their own."""
    begun, go, calls = asyncio.Event(), asyncio.Event(), []

    @cache.cached(tags=["all"])
    async def read(x: int) -> int:
        calls.append(x)
        number = len(calls)
        begun.set()
        await go.wait()
        return number

    first = asyncio.create_task(read(1))
    await begun.wait()
    await read.invalidate_all()
    second = asyncio.create_task(read(1))
    await asyncio.sleep(0)
    go.set()
    assert (await first, await second) == (1, 2)
    assert await read(1) == 2


async def test_invalidate_all_needs_no_tag_in_one_process():
    """Where the near tier is all there is, a function's keys are known by their beginning."""
    begun, go, calls = asyncio.Event(), asyncio.Event(), []
    async with Cache() as cache:

        @cache.cached()
        async def read(x: int) -> int:
            calls.append(x)
            if x == 3:
                begun.set()
                await go.wait()
            return len(calls)

        @cache.cached()
        async def reader(x: int) -> int:
            return x

        assert [await read(1), await read(2), await reader(1)] == [1, 2, 1]
        running = asyncio.create_task(read(3))
        await begun.wait()
        await read.invalidate_all()
        assert reader.peek(1) == 1
        go.set()
        assert await running == 3
        assert [await read(1), await read(2), await read(3)] == [4, 5, 6]
        assert read.stats().fills_refused == 1


@pytest.mark.parametrize("rules", [{"key": "k:{x}"}, {"key": lambda x: f"k:{x}"}])
async def test_invalidate_all_says_what_it_needs(cache: Cache, rules: dict[str, Any]):
    """Results that nothing tells from others cannot be found."""

    async def read(x: int) -> int:
        return x

    made = cache.cached(tags=["x:{x}"], **rules)(read)
    with pytest.raises(ConfigurationError, match=r"read\(\): invalidate_all.*tags=\["):
        await made.invalidate_all()


async def test_invalidate_all_over_a_far_tier_needs_a_tag():
    """There a scan for keys could not win over another process's load."""
    async with Cache(MemoryBackend(), namespace="n") as cache:

        @cache.cached()
        async def read(x: int) -> int:
            return x

        with pytest.raises(ConfigurationError, match=r"read\(\): invalidate_all.*tags=\["):
            await read.invalidate_all()
