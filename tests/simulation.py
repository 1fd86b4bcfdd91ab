"""A network and an event loop that are made up: what processes do over a bad network, again and again, from a seed.

Time is virtual: where nobody can run, it jumps to the next timer.  So an outage of minutes costs microseconds, and of two
runs from one seed each step is the same.
"""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Literal, TypeVar

from acache import MemoryBackend
from acache.clock import Timer

__all__ = ["LATE", "Network", "SimulatedBackend", "VirtualClock", "run"]

LATE: Final = 2.0
"""Seconds that a message needs at most, if it arrives at all."""
T = TypeVar("T")


class _NoWaiting(selectors.DefaultSelector):
    """A selector that does not wait: the loop's clock jumps instead."""

    jump = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise RuntimeError("everybody waits, and nobody will ever come")
            self.jump += timeout
        return ready


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._virtual = _NoWaiting()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.jump


class VirtualClock:
    """The virtual loop's time, for a cache."""

    def monotonic(self) -> float:
        """See `Clock`."""
        return asyncio.get_running_loop().time()

    def wall(self) -> float:
        """See `Clock`."""
        return 1e9 + asyncio.get_running_loop().time()

    def call_later(self, delay: float, callback: Callable[[], object], /) -> Timer:
        """See `Clock`."""
        return asyncio.get_running_loop().call_later(delay, callback)


def run(main: Coroutine[Any, Any, T], seed: int) -> T:
    """Run a coroutine in virtual time, with `random` from the seed."""
    state = random.getstate()
    random.seed(seed)
    loop = _VirtualLoop()
    try:
        return loop.run_until_complete(main)
    finally:
        loop.close()
        random.setstate(state)


class Network:
    """The way from one process to the store and back.  What is sent may arrive although its sender has given up."""

    def __init__(self, chance: random.Random) -> None:
        self._chance: Final = chance
        self._travelling: Final[set[asyncio.Task[None]]] = set()
        self.state: Literal["well", "slow", "lossy", "cut", "deaf", "mute"] = "well"
        """Cut: nothing arrives; deaf: no answer does; mute: no request does."""

    def misbehave(self) -> None:
        """Change to a state drawn from the seed; half of the time everything is well."""
        states: tuple[Any, ...] = ("slow", "lossy", "cut", "deaf", "mute")
        self.state = "well" if self._chance.random() < 0.5 else self._chance.choice(states)

    def _pause(self) -> float:
        return self._chance.uniform(0.0005, 0.005) if self.state != "slow" else min(LATE, self._chance.expovariate(4))

    def _lost(self, *states: str) -> bool:
        return self.state in states or (self.state == "lossy" and self._chance.random() < 0.3)

    async def send(self, effect: Callable[[], Awaitable[T]]) -> T:
        """Carry a request there, and its answer back; of what is lost, nobody is told."""
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        async def travel() -> None:
            lost = self._lost("cut", "mute")
            await asyncio.sleep(self._pause())
            if lost:
                return
            try:
                result, error = await effect(), None
            except Exception as failure:  # noqa: BLE001 - whatever it is, it is the answer
                error = failure
            lost = self._lost("cut", "deaf")
            await asyncio.sleep(self._pause())
            if lost or answer.done():
                return
            if error is None:
                answer.set_result(result)
            else:
                answer.set_exception(error)

        task = asyncio.get_running_loop().create_task(travel())
        self._travelling.add(task)
        task.add_done_callback(self._travelling.discard)
        return await answer

    async def settle(self) -> None:
        """Wait until nothing is on its way."""
        while self._travelling:
            await asyncio.wait(self._travelling)


class SimulatedBackend(MemoryBackend):
    """A process's client of a store behind a network; not of capabilities that the simulation does not use."""

    network: Network
    store: MemoryBackend

    async def aclose(self) -> None:
        """Leave the store to the others."""

    @classmethod
    def over(cls, store: MemoryBackend, network: Network) -> SimulatedBackend:
        """Make one."""
        backend = cls()
        backend.store, backend.network = store, network
        return backend


def _carried(name: str) -> Any:
    async def carried(self: SimulatedBackend, *args: Any, **options: Any) -> Any:
        return await self.network.send(lambda: getattr(self.store, name)(*args, **options))

    return carried


for _name in (
    "get", "set", "delete", "get_many", "set_many", "delete_many", "add", "incr", "touch", "ttl", "clear",
    "get_versioned", "set_if", "swap",
):  # fmt: skip
    setattr(SimulatedBackend, _name, _carried(_name))
