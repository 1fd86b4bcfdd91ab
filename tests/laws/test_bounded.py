"""Law 9: the near tier stays within its bound at all times, and at rest nothing is left of what is over."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, get_args
from weakref import ref

import pytest

from acache import Cache, KeyMissing, Memory, MemoryBackend, Policy, current_load
from acache.events import Event, Evicted
from acache.memory import sweeper
from acache.memory.eviction import PolicyName
from acache.testing import FakeClock

if TYPE_CHECKING:
    from tests.laws.conftest import Topology

    Settle = Callable[..., Awaitable[None]]
    Footprint = Callable[..., int]

BOUND = 50
TOTAL = 100_000
WARM_UP = 5_000


class Work:
    """A cache whose every structure must come to rest, and ways to use it on keys that are never used again."""

    def __init__(self, *, far: bool, policy: Policy | None = None, eviction: PolicyName = "lru") -> None:
        self.clock = FakeClock()
        self.backend = MemoryBackend(max_entries=BOUND, clock=self.clock) if far else None
        memory = Memory(max_entries=BOUND, eviction=eviction)
        self.cache = Cache(self.backend, memory=memory, namespace="n", policy=policy, clock=self.clock)
        self.number = 0

        @self.cache.cached(tags=["of {number}"])
        async def function(number: int) -> int:
            await asyncio.sleep(0)
            return number

        self.function = function

        @self.cache.cached_many(ignore=("session",))
        async def batch(numbers: list[int], session: object) -> dict[int, int]:
            await asyncio.sleep(0)
            return {number: number for number in numbers if number % 7}

        self.batch = batch

    @property
    def roots(self) -> tuple[object, ...]:
        return (self.cache, self.function, self.batch, self.backend, self.clock)

    def key(self) -> str:
        self.number += 1
        return f"key {self.number}"

    async def value(self) -> str:
        await asyncio.sleep(0)
        return "value"

    async def many(self, keys: Any) -> dict[str, str]:
        await asyncio.sleep(0)
        return dict.fromkeys(keys, "value")

    async def fail(self) -> str:
        await asyncio.sleep(0)
        raise ZeroDivisionError


async def sets(work: Work) -> None:
    await work.cache.set(work.key(), "value", tags=[f"tag {work.number}"], ttl=1 + work.number % 7)


async def loads(work: Work) -> None:
    await work.cache.get_or_load(work.key(), work.value, ttl=1 + work.number % 7, tags=[f"tag {work.number}"])


async def calls(work: Work) -> None:
    work.number += 1
    await work.function(work.number)


async def reads(work: Work) -> None:
    key = work.key()
    await work.cache.get(key)
    await work.cache.get_many([key])
    await work.cache.has(key)
    work.cache.peek(key)


async def removals(work: Work) -> None:
    key = work.key()
    await work.cache.set(key, "value", tags=[key])
    await work.cache.invalidate_tags(key)
    await work.cache.delete(key)


async def counters(work: Work) -> None:
    key = work.key()
    await work.cache.incr(key)
    await work.cache.add(key, 1)
    await work.cache.touch(key, ttl=1)


async def failures(work: Work) -> None:
    try:
        await work.cache.get_or_load(work.key(), work.fail)
    except ZeroDivisionError:
        pass


async def cancellations(work: Work) -> None:
    task = asyncio.create_task(work.cache.get_or_load(work.key(), work.value))
    for _ in range(work.number % 6):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])


async def batches(work: Work) -> None:
    keys = [work.key() for _ in range(3)]
    task = asyncio.create_task(work.cache.load_many([*keys, "a", "b"], work.many, ttl=0.001))
    if work.number % 2:
        for _ in range(work.number % 9):
            await asyncio.sleep(0)
        task.cancel()
    await asyncio.wait([task])


async def folded_calls(work: Work) -> None:
    session = object()
    tasks = [asyncio.create_task(work.batch.one(work.number + offset, session)) for offset in range(3)]
    work.key()
    if work.number % 2:
        for _ in range(work.number % 9):
            await asyncio.sleep(0)
        tasks[0].cancel()
        tasks[work.number % 3].cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        assert task.cancelled() or task.exception() is None or isinstance(task.exception(), KeyMissing)


async def tagging_loads(work: Work) -> None:
    async def load() -> str:
        current_load().tags.add(f"tag {work.number}")
        return await work.value()

    task = asyncio.create_task(work.cache.get_or_load(work.key(), load))
    for _ in range(work.number % 6):
        await asyncio.sleep(0)
    await work.cache.invalidate_tags(f"tag {work.number}")
    await task


async def removals_during_loads(work: Work) -> None:
    task = asyncio.create_task(work.cache.get_or_load(work.key(), work.value, tags=["tag"]))
    await asyncio.sleep(0)
    await (work.cache.delete(f"key {work.number}") if work.number % 2 else work.cache.invalidate_tags("tag"))
    await task


async def stale_answers(work: Work) -> None:
    key = work.key()
    await work.cache.set(key, "stale", ttl=1)
    work.clock.advance(2)
    await work.cache.get_or_load(key, work.fail if work.number % 2 else work.value)
    for _ in range(10):
        await asyncio.sleep(0)


WORK = [
    sets, loads, calls, reads, removals, counters, failures, cancellations, batches, removals_during_loads,
    stale_answers, folded_calls, tagging_loads,
]  # fmt: skip


@pytest.mark.parametrize("eviction", get_args(PolicyName))
@pytest.mark.parametrize("far", [False, True], ids=["memory", "near+backend"])
@pytest.mark.parametrize("use", WORK)
async def test_nothing_grows(
    use: Callable[[Work], Awaitable[None]],
    far: bool,
    eviction: PolicyName,
    settle: Settle,
    footprint: Footprint,
):
    """After thousands of operations on as many keys the cache holds no more objects than after the first thousand."""
    if eviction != "lru" and (far or use not in (sets, loads, calls, removals)):
        return  # what differs is in the near tier alone
    policy = Policy(ttl=10, stale_while_revalidate=50, stale_if_error=100) if use is stale_answers else None
    work = Work(far=far, policy=policy, eviction=eviction)

    async def run(count: int) -> int:
        for _ in range(count):
            await use(work)
            work.clock.advance(0.01)
        await settle(50)
        assert len(asyncio.all_tasks()) == tasks
        assert work.cache.stats().near_entries <= BOUND
        return footprint(*work.roots)

    await settle()
    tasks = len(asyncio.all_tasks())
    early = await run(1500)
    late = await run(1500)
    assert late <= early * 1.1 + 50
    await work.cache.aclose()


@pytest.mark.parametrize("far", [False, True], ids=["memory", "near+backend"])
async def test_a_hundred_thousand_keys_leave_nothing(far: bool, settle: Settle, footprint: Footprint):
    """100,000 loads of as many keys (25,000 with a far tier), some of them cancelled, leave what 5,000 left."""
    work = Work(far=far)
    early = 0
    tasks = len(asyncio.all_tasks())
    while work.number < (TOTAL // 4 if far else TOTAL):
        group = [asyncio.create_task(work.cache.get_or_load(work.key(), work.value)) for _ in range(1000)]
        await asyncio.sleep(0)
        for task in group[::5]:
            task.cancel()
        await asyncio.wait(group)
        assert work.cache.stats().near_entries <= BOUND
        if work.number == WARM_UP:
            await settle()
            early = footprint(*work.roots)
    del group, task
    await settle()
    assert footprint(*work.roots) <= early * 1.1 + 50
    assert len(asyncio.all_tasks()) == tasks
    assert work.cache.stats().near_entries <= BOUND
    await work.cache.aclose()


async def test_redis_at_rest_holds_no_task(redis_topology: Topology, settle: Settle, footprint: Footprint):
    """A few thousand loads, cancellations and failures over Redis leave no task and no growing structure."""
    cache = redis_topology.cache(memory=Memory(max_entries=BOUND) if redis_topology.near else None)

    async def value() -> str:
        await asyncio.sleep(0)
        return "value"

    async def many(keys: Any) -> dict[str, str]:
        return dict.fromkeys(keys, "value")

    async def round_of(number: int) -> None:
        group: list[asyncio.Task[Any]] = []
        for each in range(40):
            key = f"{number} {each}"
            group.append(asyncio.create_task(cache.get_or_load(key, value, ttl=60)))
            group.append(asyncio.create_task(cache.load_many([key, f"{key}+"], many, ttl=60)))
        for _ in range(number % 30):
            await asyncio.sleep(0)
        for task in group[::3]:
            task.cancel()
        _, pending = await asyncio.wait(group, timeout=10)
        for task in pending:
            task.cancel()
        assert not pending

    before = {task for task in asyncio.all_tasks() if task.get_name().startswith("acache")}
    for number in range(40):
        await round_of(number)
    async with asyncio.timeout(10):
        for _ in range(2000):
            await settle(1)
    left = {task for task in asyncio.all_tasks() if task.get_name().startswith("acache")} - before
    assert not left
    assert cache.stats().near_entries <= BOUND


@pytest.mark.parametrize("eviction", get_args(PolicyName))
@pytest.mark.parametrize("bound", [1, 2, 7, 128])
async def test_the_near_tier_is_within_its_bound_after_every_step(topology: Topology, bound: int, eviction: PolicyName):
    """However entries come in, there are never more than ``max_entries``, over all namespaces together."""
    if not topology.near:
        return
    cache = topology.cache(memory=Memory(max_entries=bound, eviction=eviction))
    view = cache.view(namespace=topology.namespace + ":other")

    async def value() -> str:
        return "value"

    async def many(keys: Any) -> dict[str, str]:
        return dict.fromkeys(keys, "value")

    for number in range(150):
        each = (cache, view)[number % 2]
        if number % 5 == 0:
            await each.set_many({f"{number} {index}": 1 for index in range(5)})
        elif number % 5 == 1:
            await each.load_many([f"{number} {index}" for index in range(5)], many)
        elif number % 5 == 2:
            await each.set(str(number), 1)
        elif number % 5 == 3:
            await each.get_many([f"{number - 3} {index}" for index in range(5)])
        else:
            await each.get_or_load(str(number), value)
        assert cache.stats().near_entries <= bound


@pytest.mark.parametrize("eviction", get_args(PolicyName))
async def test_the_near_tier_is_within_its_bytes_after_every_step(eviction: PolicyName):
    """With ``max_bytes`` the measured bytes never exceed it, and what can never fit is not kept."""
    cache = Cache(memory=Memory(max_entries=1000, max_bytes=10_000, sizeof=len, eviction=eviction))
    for number in range(500):
        await cache.set(f"key {number % 50}", "x" * (number * 37 % 3000))
        assert cache.stats().near_bytes <= 10_000
    await cache.set("small", "x")
    await cache.set("too large", "x" * 20_000)
    assert cache.peek("too large") is None
    await cache.set("small", "x" * 20_000)
    assert cache.peek("small") is None
    await cache.clear()
    assert (cache.stats().near_bytes, cache.stats().near_entries) == (0, 0)
    await cache.aclose()


async def test_expired_entries_make_room_without_being_asked_for():
    """Entries past their time go as others come in, although nobody asks for them and the bound is far."""
    clock = FakeClock()
    cache = Cache(memory=100_000, clock=clock)
    for number in range(2000):
        await cache.set(f"old {number}", 1, ttl=1)
    clock.advance(2)
    for number in range(2000):
        await cache.set(f"new {number}", 1, ttl=1000)
    assert cache.stats().near_entries <= 2100
    await cache.aclose()


async def test_an_idle_cache_gives_its_memory_back(monkeypatch: pytest.MonkeyPatch):
    """Nobody writes and nobody reads: what is past its time goes all the same, and then no timer is left."""
    monkeypatch.setattr(sweeper, "_ROUND", 0.01)
    clock, empty = FakeClock(), asyncio.Event()

    def look(event: Event) -> None:
        if isinstance(event, Evicted) and not cache.stats().near_entries:
            empty.set()

    memory = Memory(max_entries=10_000)
    async with Cache(memory=memory, clock=clock, observers=[look]) as cache:
        other = cache.view(namespace="other")
        for number in range(3000):
            await (cache, other)[number % 2].set(f"key {number}", "x" * 1000, ttl=1 + number % 50)
        clock.advance(100)
        async with asyncio.timeout(20):
            await empty.wait()
            while memory.sweeper is not None and memory.sweeper.waiting:
                await asyncio.sleep(0.01)
        assert not memory.bytes
        await cache.set("key", "value")
        assert memory.sweeper is not None
        assert memory.sweeper.waiting, "and when there is an entry again, there is a timer again"
    assert not memory.sweeper.waiting, "none after aclose()"


async def test_a_forgotten_cache_is_not_kept_by_its_timer(settle: Settle):
    """A cache that was never closed is garbage when its user lets go of it, whatever it holds."""
    import weakref

    memory = Memory()
    cache = Cache(memory=memory)
    await cache.set("key", "value", ttl=1000)
    gone = weakref.ref(memory)
    del cache, memory
    await settle()
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("eviction", get_args(PolicyName))
async def test_a_mass_expiry_is_spread_over_many_turns(eviction: PolicyName):
    """However many entries end at one time, one turn of the loop drops a thousand or so."""
    memory, clock = Memory(max_entries=50_000, eviction=eviction), FakeClock()
    async with Cache(memory=memory, clock=clock) as cache:
        await cache.set_many(dict.fromkeys(map(str, range(50_000)), 1), ttl=1)
        clock.advance(2)
        before = memory.entries
        await cache.set("another", 1)
        assert before - memory.entries <= 1024, "an insert drops no more than that either"
        assert memory.sweeper is not None
        for _ in range(200):
            before = memory.entries
            memory.sweeper.run()
            assert before - memory.entries <= 1100
        assert memory.entries == 1


class _Loop(asyncio.SelectorEventLoop):
    """An event loop whose timers can be made to go off early."""

    ahead = 0.0

    def time(self) -> float:
        return super().time() + self.ahead


@pytest.mark.parametrize("eviction", get_args(PolicyName))
def test_the_timer_s_next_round_finds_all_that_is_past_its_time(eviction: PolicyName):
    """Also what came during the round that inserts had begun and nobody had ended."""

    async def fill_and_leave() -> None:
        loop, clock = asyncio.get_running_loop(), FakeClock()
        assert isinstance(loop, _Loop)
        async with Cache(memory=Memory(max_entries=100_000, eviction=eviction), clock=clock) as cache:
            for number in range(5):
                await cache.set_many({f"{number} {each}": 1 for each in range(10_000)}, ttl=5)
            clock.advance(30)
            loop.ahead += 30
            for _ in range(500):  # a second
                loop.ahead += 0.002
                await asyncio.sleep(0)
            assert cache.stats().near_entries == 0

    with asyncio.Runner(loop_factory=_Loop) as runner:
        runner.run(fill_and_leave())


async def test_a_closed_cache_is_garbage(settle: Settle):
    """Nothing of this library keeps a cache alive that its user has let go of."""
    import weakref

    cache = Cache(MemoryBackend(), namespace="n", policy=Policy(soft_timeout=5, stale_if_error=5))

    async def value() -> str:
        return "value"

    await cache.get_or_load("k", value)
    view = cache.view(namespace="other")
    await view.set("k", 1)
    await cache.aclose()
    gone = weakref.ref(cache)
    del cache, view
    await settle()
    gc.collect()
    assert gone() is None


class Crowded(MemoryBackend):
    """Counts how many operations of each kind are under way at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.most = Counter[str](), Counter[str]()

    async def _count(self, name: str, operation: Any) -> Any:
        self.now[name] += 1
        self.most[name] = max(self.most[name], self.now[name])
        try:
            await asyncio.sleep(0)
            return await operation
        finally:
            self.now[name] -= 1

    async def get_versioned(self, key: str, /) -> Any:
        return await self._count("look", super().get_versioned(key))

    async def set_if(self, key: str, data: bytes, version: Any, /, *, ttl: float | None) -> bool:
        return bool(await self._count("store", super().set_if(key, data, version, ttl=ttl)))


@pytest.mark.parametrize("counting", [False, True], ids=["", "counting"])
async def test_namespaces_that_nobody_uses_any_more_leave_nothing(
    topology: Topology, settle: Settle, *, counting: bool
):
    """A namespace for each tenant, or session: views come and go."""
    cache = topology.cache()

    async def visit(number: int) -> None:
        view = cache.view(namespace=f"{cache.namespace}-{number}")
        if counting:
            await view.incr("c", ttl=0.1)
            await view.delete("c")
        await view.set("k", number, tags=["t"])
        assert await view.get_or_load("k", fail) == number
        assert await view.delete("k")

    async def fail() -> int:
        raise LookupError

    counts = []
    for start in range(0, 3000 if topology.kind == "memory" else 300, 150):
        for number in range(start, start + 150):
            await visit(number)
        await settle()
        gc.collect()
        counts.append(len(gc.get_objects()))
    assert len(cache._shared.scopes) <= 2 * 128
    assert topology.kind != "memory" or counts[-1] < counts[2] + 200 * 20


async def test_what_a_namespace_holds_is_there_for_its_next_view(topology: Topology, settle: Settle):
    """Entries, running loads and backoffs outlive the view; and changes by others are still told."""
    cache, begun, go = topology.cache(), asyncio.Event(), asyncio.Event()

    async def slow() -> str:
        begun.set()
        await go.wait()
        return "loaded"

    def view() -> Cache:
        return cache.view(namespace=f"{cache.namespace}-kept")

    def crowd(number: int) -> list[Cache]:
        return [cache.view(namespace=f"{cache.namespace}-{number}-{each}") for each in range(300)]

    await view().set("k", "v")
    loading = asyncio.create_task(view().get_or_load("slow", slow))
    await begun.wait()
    for number in range(3):
        crowd(number)
        gc.collect()
    joining = asyncio.create_task(view().get_or_load("slow", slow))
    await settle()
    go.set()
    assert await asyncio.gather(loading, joining) == ["loaded", "loaded"]
    assert cache.stats().loads == 1
    assert await view().get("k") == "v"
    await view().delete_many(["k", "slow"])
    for number in range(3, 6):
        crowd(number)
        gc.collect()
    assert f"{cache.namespace}-kept" not in cache._shared.scopes
    kept = view()
    await kept.set("k", "again")
    assert await kept.get("k") == "again"
    if topology.kind == "near+redis":
        other = topology.witness().view(namespace=kept.namespace)
        await other.set("k", "by another")
        async with asyncio.timeout(30):
            while await kept.get("k") != "by another":
                await asyncio.sleep(0)


request_of: ContextVar[object] = ContextVar("request")


class Request:
    """What frameworks keep in context variables: it should go with its call."""


async def test_nothing_of_a_caller_s_context_outlives_his_call(topology: Topology, settle: Settle):
    """Timers, connections and subscriptions that a call begins live longer than it, and keep nothing of it."""
    cache = topology.cache(policy=Policy(lease=topology.kind != "memory", backend_timeout=30))

    async def value() -> Request:
        current_load().tags.add("t")
        return Request()

    async def call() -> tuple[Any, Any]:
        request = Request()
        request_of.set(request)
        if topology.kind == "memory":
            return ref(request), ref(await cache.get_or_load("k", value))
        await cache.get_or_load("k", number)
        await cache.set("other", 1, tags=["u"])
        await cache.invalidate_tags("u")
        return ref(request), lambda: None

    async def number() -> int:
        return 1

    request, result = await asyncio.create_task(call())
    await cache.delete("k")
    await settle()
    scheduled: list[asyncio.TimerHandle] = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    scheduled[:] = sorted(timer for timer in scheduled if not timer.cancelled())  # which asyncio keeps until their time
    gc.collect()
    assert request() is None
    assert result() is None
    assert await cache.get("k") is None


@pytest.mark.parametrize("lease", [False, True], ids=["", "lease"])
@pytest.mark.parametrize("way", ["load_many", "cached_many", "one", "refresh"])
async def test_a_large_batch_is_looked_up_and_stored_a_few_at_a_time(way: str, *, lease: bool):
    """Each operation has its own deadline: begun all at once, most would miss it.

    Single calls that meet in a window are looked up at once, or they would not meet.
    """
    backend = Crowded()
    async with Cache(backend, namespace="n", memory=None, policy=Policy(lease=lease)) as cache:

        @cache.cached_many(key="k{items}")
        async def load(items: Any) -> dict[int, int]:
            return {item: -item for item in items}

        async def load_by_key(keys: Any) -> dict[str, int]:
            return {key: -int(key[1:]) for key in keys}

        numbers = range(3000)
        if way == "load_many":
            await cache.load_many([f"k{number}" for number in numbers], load_by_key)
        elif way == "one":
            await asyncio.gather(*[load.one(number) for number in numbers])
        else:
            await (load if way == "cached_many" else load.refresh)(numbers)
        assert backend.most["store"] <= 200 or (way == "one" and lease)  # what they meet after taking their leases
        assert backend.most["look"] <= 200 or way == "one"
        assert await cache.get_many([f"k{number}" for number in numbers]) == {f"k{n}": -n for n in numbers}
