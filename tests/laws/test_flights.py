"""Laws 2, 4, 5, 6 and 9 for flights, under generated schedules of everything that can happen to one.

A schedule is a list of steps: somebody asks, is cancelled, a loader returns or fails, something is invalidated, the
loop turns a few times.  Hypothesis makes them up, and shrinks one that breaks a law to the shortest that does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acache import Cache, Policy, current_load

if TYPE_CHECKING:
    from tests.laws.conftest import Topology

MISS: Final = (-1, "(a miss)")
"""As `Value`."""
KEY: Final = "k"
TAGS: Final = ["t"]

Value = tuple[int, str]
"""Which version of the source it is of, and how it came to be."""


asked_in: Final[ContextVar[int]] = ContextVar("asked_in")
"""The epoch of the caller for whom a load was begun: its loader may have its first turn in a later one."""


class LoaderError(Exception):
    """What a loader of the schedule raises."""


class Caller:
    """Somebody who asked, and when."""

    def __init__(self, task: asyncio.Task[Value], asked_after: int) -> None:
        self.task = task
        self.asked_after = asked_after
        """The version whose change had been acknowledged when he asked: nothing older is for him."""
        self.cancelled = False


class Loading:
    """A loader that is being held until the schedule lets it go."""

    def __init__(self, epoch: int, version: int) -> None:
        self.epoch = epoch
        self.version = version
        self.outcome: asyncio.Future[str] = asyncio.get_running_loop().create_future()


class World:
    """One key, its source and its cache."""

    def __init__(self, topology: Topology, policy: Policy) -> None:
        self.topology = topology
        self.cache: Cache = topology.cache(policy=policy)
        self.version = 0
        """What the source holds."""
        self.acknowledged = 0
        """The version of which an invalidation has returned."""
        self.epoch = 0
        """How many invalidations were begun: who asks in another one may have a load of his own."""
        self.callers: list[Caller] = []
        self.running: list[Loading] = []
        self.loads = 0
        self.decorated = self.cache.cached(key=KEY, tags=TAGS)(self.loader)

    async def loader(self, *, batch: bool = False) -> Value:
        loading = Loading(asked_in.get(), self.version)
        twins = [one for one in self.running if one.epoch == loading.epoch and not one.outcome.done()]
        assert not twins, "two loads of one value run at the same time"
        self.running.append(loading)
        self.loads += 1
        try:
            outcome = await loading.outcome
        finally:
            self.running.remove(loading)
        if outcome == "raise":
            raise LoaderError
        if outcome == "no store" and not batch:  # a batch has no current_load()
            current_load().no_store()
        return loading.version, "loaded"

    async def many(self, keys: Sequence[str]) -> dict[str, Value]:
        return {key: await self.loader(batch=True) for key in keys}

    # Steps ----------------------------------------------------------------------------------------------------------

    async def ask(self, way: str) -> Value:
        value: Any
        asked_in.set(self.epoch)
        if way == "get_or_load":
            value = await self.cache.get_or_load(KEY, self.loader, tags=TAGS)
        elif way == "refresh":
            value = await self.cache.refresh(KEY, self.loader, tags=TAGS)
        elif way == "decorated":
            value = await self.decorated()
        else:
            value = (await self.cache.load_many([KEY], self.many, tags=TAGS))[KEY]
        return value[0], value[1]

    def step_ask(self, way: str) -> None:
        self.callers.append(Caller(asyncio.create_task(self.ask(way)), self.acknowledged))

    def step_cancel(self, which: int) -> None:
        if self.callers:
            caller = self.callers[which % len(self.callers)]
            caller.cancelled = caller.task.cancel() or caller.cancelled

    def step_leave(self) -> None:
        """Cancel everybody."""
        for number in range(len(self.callers)):
            self.step_cancel(number)

    def step_finish(self, which: int, outcome: str) -> None:
        waiting = [one for one in self.running if not one.outcome.done()]
        if waiting:
            waiting[which % len(waiting)].outcome.set_result(outcome)

    async def step_invalidate(self, how: str) -> None:
        self.version += 1
        self.epoch += 1
        version = self.version
        if how == "delete":
            await self.cache.delete(KEY)
        elif how == "tags":
            await self.cache.invalidate_tags(*TAGS)
        elif how == "clear":
            await self.cache.clear()
        else:
            await self.cache.set(KEY, (version, "set"), tags=TAGS)
        self.acknowledged = version

    async def run(self, steps: list[tuple[str, Any, Any]]) -> None:
        for what, one, other in steps:
            if what == "ask":
                self.step_ask(one)
            elif what == "cancel":
                self.step_cancel(one)
            elif what == "leave":
                self.step_leave()
            elif what == "finish":
                self.step_finish(one, other)
            elif what == "invalidate":
                await self.step_invalidate(one)
            else:
                await turn(one)
            await self.look()

    # Laws -----------------------------------------------------------------------------------------------------------

    async def look(self) -> None:
        """Law 2: what is stored is not older than the last invalidation that returned."""
        for stored in (self.cache.peek(KEY, MISS), await self.cache.get(KEY, MISS)):
            assert tuple(stored) == MISS or stored[0] >= self.acknowledged, stored

    async def end(self, *, abandoned: bool) -> None:
        """Let everybody go, or every loader come back; see that then nobody is left."""
        if abandoned:
            self.step_leave()
            await turn(20)
            assert not self.running, "a load goes on that nobody waits for"  # law 5
        while not all(caller.task.done() for caller in self.callers) or self.running:
            self.step_finish(0, "value")
            await turn(1)

    async def judge(self) -> None:
        await self.look()
        for caller in self.callers:
            if caller.task.cancelled():
                assert caller.cancelled, "somebody was cancelled with another"  # law 5
                continue
            error = caller.task.exception()
            if isinstance(error, AssertionError):
                raise error
            assert error is None or type(error) is LoaderError  # law 6
            if error is None:
                assert caller.task.result()[0] >= caller.asked_after, "a value from before his time"  # law 2
        assert self.cache.stats().loads == self.loads
        await turn(20)
        scope: Any = self.cache._scope  # law 9: nothing is left
        assert (len(scope.flights), scope.flights.running, scope.watch.marks, scope.batches) == (0, {}, {}, set())
        left = [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert [name for name in left if name.startswith("acache")] == []


async def turn(turns: int) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


ask = st.tuples(
    st.just("ask"), st.sampled_from(["get_or_load", "get_or_load", "decorated", "refresh", "load_many"]), st.none()
)
cancel = st.tuples(st.just("cancel"), st.integers(0, 9), st.none())
finish = st.tuples(st.just("finish"), st.integers(0, 3), st.sampled_from(["value", "value", "raise", "no store"]))
invalidate = st.tuples(st.just("invalidate"), st.sampled_from(["delete", "set", "tags", "clear"]), st.none())
turns = st.tuples(st.just("turn"), st.integers(1, 12), st.none())
leave = st.tuples(st.just("leave"), st.none(), st.none())
steps = st.lists(st.one_of(ask, ask, turns, turns, cancel, leave, finish, invalidate), min_size=3, max_size=30)

POLICIES: Final = {
    "default": Policy(backend_timeout=30),
    "finish_abandoned": Policy(backend_timeout=30, finish_abandoned=True),
    "early": Policy(ttl=1000, backend_timeout=30, refresh_ahead=0.9, stale_while_revalidate=10),
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", ["memory", "near+backend", "backend"])
def test_no_schedule_breaks_a_flight(kind: str, policy: str, make_topology: Callable[[str], Topology]):
    """Whatever happens to the loads of a key, in whatever order."""

    async def main(schedule: list[tuple[str, Any, Any]], *, abandoned: bool) -> None:
        async with make_topology(kind) as topology, asyncio.timeout(30):
            world = World(topology, POLICIES[policy])
            await world.run(schedule)
            await world.end(abandoned=abandoned and policy == "default")
            await world.judge()

    @settings(
        max_examples=600 if kind == "memory" else 200,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
        derandomize=True,
        database=None,
    )
    @given(steps, st.booleans())
    def check(schedule: list[tuple[str, Any, Any]], abandoned: bool) -> None:
        asyncio.run(main(schedule, abandoned=abandoned))

    check()
