"""`Flights`: single-flight.  However many callers ask for a key, one load runs; each caller waits for itself alone.

A load runs in a task of its own, in a copy of the context of the caller that started it.  Every waiter has a bare
future of its own: cancelling a waiter cancels that future and nothing else, and ten thousand of them cost what one
shared future costs (a shield each would cost three times as much).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine
from contextvars import ContextVar
from functools import partial
from typing import Any, Final, Protocol

from ..clock import Clock
from ..errors import CacheClosed, RecursiveLoad, short
from ..events import logger

__all__ = ["UNSERVED", "Flight", "Flights", "Node", "end_loads", "flying"]

_GRACE: Final = 5.0
"""Seconds that loaders have for cleaning up when the cache is closed."""
UNSERVED: Final[Any] = object()
"""What a flight has to offer before its time: nothing."""

flying: Final[ContextVar[Node | None]] = ContextVar("acache_flight", default=None)
"""What the running code is part of: whatever it waits for, this waits for."""


class Hearing(Protocol):
    """What hears of invalidations."""

    count: int
    """How many there were."""


class Passenger(Protocol):
    """What is told of a flight that is started for it."""

    def begun(self) -> None:
        """It begins."""
        ...

    def landed(self) -> None:
        """It has ended."""
        ...


class Node:
    """Something that ends only after what it waits for has ended."""

    __slots__ = ("key", "returned", "waiting_on")

    def __init__(self, key: str) -> None:
        self.key: Final = key
        self.waiting_on: Final[dict[asyncio.Future[Any], Node]] = {}
        """What its loader waits for at this moment, by the future on which it does."""
        self.returned = False
        """Whether its loader has returned: of the tasks it left behind, which carry its context, it waits for none."""

    @property
    def who(self) -> str:
        """What a message calls it."""
        return f"the loader of {self.key!r}"

    def waits_for(self, other: Node) -> bool:
        """Tell whether this is ``other``, or cannot end before it does."""
        seen: set[int] = set()
        pending: list[Node] = [self]
        while pending:
            node = pending.pop()
            if node is other:
                return True
            if id(node) not in seen:
                seen.add(id(node))
                pending += node.waiting_on.values()
        return False


class Flight(Node):
    """One running load."""

    __slots__ = (
        *("_early", "_early_since", "_task", "_waiters"),
        *("background", "from_near", "heard", "inside", "loop", "outdated", "over", "stopped", "tags"),
    )

    def __init__(self, key: str, loop: asyncio.AbstractEventLoop, tags: Collection[str], *, background: bool) -> None:
        super().__init__(key)
        self.tags = tags
        self.loop: Final = loop
        self.background = background
        """Whether it goes on when nobody waits any more."""
        self.heard: Hearing | None = None
        """The invalidations since its loader began."""
        self.outdated = 0
        """The last of them that was about its value: nothing for those who came after it.  0: none was."""
        self.inside = False
        """Whether some other load waits for it."""
        self.from_near = False
        """Whether the stale value that it has to offer is the near copy, because the far tier did not answer."""
        self._early: Any = UNSERVED
        self._early_since = 0.0
        self.over = False
        """Whether it was given up: its callers have their answer, and nothing comes of what its loader still does."""
        self.stopped = False
        """Whether it was cancelled from here: for want of callers, or because it was given up."""
        self._waiters: Final[dict[asyncio.Future[Any], float]] = {}
        """Each with its patience: how stale a value may be, in seconds, to be taken instead of waiting."""
        self._task: asyncio.Task[Any] | None = None

    def serve_early(self, value: Any, age: float, now: float) -> bool:
        """Answer whoever has the patience for a value that is ``age`` seconds stale, and go on behind.

        Fresh values have an age below zero.  Returns whether somebody was answered.
        """
        self._early, self._early_since = value, now - age
        served = [waiter for waiter, patience in self._waiters.items() if age < patience]
        for waiter in served:
            del self._waiters[waiter]
            if not waiter.done():
                waiter.set_result(value)
        # Whoever has been served will not cancel it by leaving.
        self.background = self.background or bool(served)
        return bool(served)

    def early(self, patience: float, now: float) -> Any:
        """Return the value that a caller of this patience may have at once, or `UNSERVED`."""
        return self._early if self._early is not UNSERVED and now - self._early_since < patience else UNSERVED

    def start(self, load: Coroutine[Any, Any, Any], landed: Callable[[Flight], object]) -> None:
        """Run ``load`` in a task."""
        self._task = task = self.loop.create_task(load, name=f"acache load {self.key!r}")

        def land(task: asyncio.Task[Any]) -> None:
            landed(self)
            self._land(task)

        task.add_done_callback(land)

    def _land(self, task: asyncio.Task[Any]) -> None:
        # In a callback of the task, not at the end of its coroutine: a task cancelled before its first step never
        # runs, and its waiters must hear of that too.
        if task.cancelled():
            for waiter in self._waiters:
                waiter.cancel()
            self._waiters.clear()
        elif (error := task.exception()) is not None:
            self._answer(error)
        else:
            self._answer(None, task.result())
        # Whatever is begun in a load lives in its context, and this with it: a connection, say.  Not the value.
        self._task = None

    def _answer(self, error: BaseException | None, result: Any = None) -> None:
        if error is not None and not self._waiters:
            logger.warning("a load of %r that nobody waited for failed", self.key, exc_info=error)
        for waiter in self._waiters:
            if waiter.done():
                continue
            if error is not None:
                waiter.set_exception(error)
            else:
                waiter.set_result(result)
        self._waiters.clear()

    def give_up(self, error: Exception | None, result: Any = None) -> None:
        """Cancel the load and answer whoever waits, now: its loader may take its time to stop, or never do."""
        self.over = True
        self._stop()
        self._answer(error, result)

    def _stop(self) -> None:
        if self._task is not None and not self.stopped:
            self.stopped = True  # once: a second cancellation would cut its cleaning up short
            self._task.cancel()

    def waiter(self, patience: float) -> asyncio.Future[Any]:
        """Return a future of the value; its cancellation is nobody else's, and `leave` has to be told of it."""
        waiter = self.loop.create_future()
        self._waiters[waiter] = patience
        return waiter

    def leave(self, waiter: asyncio.Future[Any]) -> None:
        """Take note that somebody does not wait any more."""
        self._waiters.pop(waiter, None)
        if not self._waiters and not self.background:
            self._stop()

    @property
    def awaited(self) -> bool:
        """Whether somebody waits for it."""
        return bool(self._waiters)

    @property
    def abandoned(self) -> bool:
        """Whether it was told to stop."""
        return self.stopped or (self._task is not None and self._task.cancelling() > 0)

    def close(self) -> asyncio.Task[Any] | None:
        """Give the load up, waiters get ``CacheClosed``; return the task to wait for, if it runs here."""
        task = self._task
        if task is None or self.loop.is_closed() or task is asyncio.current_task():
            return None
        if self.loop is not asyncio.get_running_loop():
            self.loop.call_soon_threadsafe(self.close)
            return None
        closed = CacheClosed("the cache was closed while this value was being loaded")
        self.give_up(closed if self._waiters else None)
        return task


class Flights:
    """The running loads of one namespace, by key."""

    __slots__ = ("_all", "running")

    def __init__(self) -> None:
        self.running: Final[dict[str, Flight]] = {}
        """The flights that new callers may join."""
        self._all: Final[set[Flight]] = set()

    def __len__(self) -> int:
        return len(self._all)

    def current(self, key: str) -> Flight | None:
        """Return the flight that a new caller should join.

        Raises:
            RuntimeError: it runs in another event loop, so this one could not be told of its end.
        """
        flight = self.running.get(key)
        if flight is None:
            return None
        if flight.abandoned:
            # Its last waiter is gone and it is on its way out: whoever comes now needs a load of their own.
            self.forget(key)
            return None
        if flight.loop is not asyncio.get_running_loop():
            if not flight.loop.is_closed():
                msg = (
                    f"{key!r} is being loaded in another event loop: a cache serves one loop at a time;"
                    " build one Cache for each loop that runs at the same time"
                )
                raise RuntimeError(msg)
            self.forget(key)  # the loop died under it
            self._all.discard(flight)
            return None
        return flight

    def start(
        self,
        key: str,
        load: Callable[[Flight], Coroutine[Any, Any, Any]],
        *,
        tags: Collection[str] = (),
        background: bool,
        passenger: Passenger | None = None,
    ) -> Flight:
        """Start a flight; in the same synchronous step in which the caller found that there is none."""
        flight = Flight(key, asyncio.get_running_loop(), tags, background=background)
        self.running[key] = flight
        self._all.add(flight)
        if passenger is not None:
            passenger.begun()
        flight.start(_fly(flight, load), partial(self._landed, passenger))
        return flight

    def join(self, flight: Flight, patience: float) -> asyncio.Future[Any]:
        """Return a future of a flight's value, or of the stale one it serves early to those with the patience for it.

        It is awaited in the caller's own frame: each coroutine between a caller and his future costs ten thousand of
        them as much as the future does.  Who is cancelled there tells the flight, by `Flight.leave`.

        Raises:
            RecursiveLoad: the caller is part of what the flight waits for.
        """
        inside = flying.get()
        if inside is None or inside.returned:
            return flight.waiter(patience)
        if flight.waits_for(inside):
            msg = (
                f"{inside.who} waits for {flight.key!r}, which waits for it:"
                " give the two values two keys, or call the function underneath;"
                " a task that the loader does not wait for needs a context of its own"
            )
            raise RecursiveLoad(msg)
        flight.inside = True
        waiter = flight.waiter(patience)
        inside.waiting_on[waiter] = flight
        waiter.add_done_callback(inside.waiting_on.pop)  # before the caller goes on
        return waiter

    def forget(self, key: str) -> None:
        """Let a running load hand its value to those who wait, but let nobody join it any more."""
        self.running.pop(key, None)

    def forget_tagged(self, tags: Collection[str]) -> None:
        """Forget the flights that load something under one of ``tags``."""
        for key in [key for key, flight in self.running.items() if not set(tags).isdisjoint(flight.tags)]:
            del self.running[key]

    def forget_all(self) -> None:
        """Forget every key's flight."""
        self.running.clear()

    def _landed(self, passenger: Passenger | None, flight: Flight) -> None:
        self._all.discard(flight)
        if self.running.get(flight.key) is flight:
            del self.running[flight.key]
        if passenger is not None:
            passenger.landed()

    def close(self) -> list[asyncio.Task[Any]]:
        """Give every load up and forget it; return the tasks to wait for."""
        tasks = [task for flight in tuple(self._all) if (task := flight.close()) is not None]
        self._all.clear()
        self.running.clear()
        return tasks


async def end_loads(tasks: Collection[asyncio.Task[Any]], clock: Clock) -> None:
    """Wait until tasks that were cancelled have cleaned up, but not for ever, as they may have swallowed that."""
    if not tasks:
        return
    ended = asyncio.ensure_future(asyncio.wait(tasks))
    timer = clock.call_later(_GRACE, ended.cancel)
    try:
        await asyncio.wait([ended])
    finally:
        timer.cancel()
        ended.cancel()
    if late := [task.get_name() for task in tasks if not task.done()]:
        logger.warning("still running %g s after the cache was closed, and left to themselves: %s", _GRACE, short(late))


async def _fly(flight: Flight, load: Callable[[Flight], Coroutine[Any, Any, Any]]) -> Any:
    flying.set(flight)  # in the task's own copy of the context
    return await load(flight)
