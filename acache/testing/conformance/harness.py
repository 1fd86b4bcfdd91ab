"""What the checks share: running one in a loop of its own, asking for a capability, keys and ttls to use."""

from __future__ import annotations

import asyncio
import functools
import uuid
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator, Mapping
from typing import Any, ClassVar, Final, TypeVar
from unittest import SkipTest

from ...backends.base import Backend, KeyLimits

__all__ = ["LONG", "MANY", "PAGES", "Harness", "expecting", "having", "promises", "settled", "witnesses"]

C = TypeVar("C")
E = TypeVar("E", bound=Exception)
Check = Callable[[Any, Any], Coroutine[Any, Any, None]]

LONG: Final = 60.0
"""Seconds that outlive every check, and not by much."""
MANY: Final = 2500
"""Keys of one call; more than any engine takes in one command of its own."""
PAGES: Final = 1100
"""Keys under one prefix; more than any engine lists in one step."""


def promises(need: str) -> Callable[[Check], Callable[[Any, Any], None]]:
    """Return the decorator that makes tests out of the checks of one need: a row of the table in docs/backends.md."""

    def promise(check: Check) -> Callable[[Any, Any], None]:
        @functools.wraps(check)
        def test(self: Any, backend: Any) -> None:
            self.run_check(check, backend)

        test.need = need  # type: ignore[attr-defined]  # read by whoever counts the outcomes
        return test

    return promise


def having(backend: object, capability: type[C]) -> C:
    """Return the backend as one with this capability, or skip the test."""
    if not isinstance(backend, capability):
        reason = f"{type(backend).__name__} has no {capability.__name__}"
        raise SkipTest(reason)
    return backend


async def expecting(kind: type[E], operation: Awaitable[object], what: object = "") -> E:
    """Return the error of this kind that ``operation`` raises; any other end fails the test."""
    try:
        result = await operation
    except kind as error:
        return error
    message = f"{kind.__name__} was not raised, but {str(result)[:80]} returned: {str(what)[:80]}"
    raise AssertionError(message)


async def settled(operation: Awaitable[object], turns: int) -> bool:
    """Start ``operation``, cancel it after so many turns of the loop, and wait; tell whether it was cancelled.

    That is so unless it had ended before: a cancellation that is not heeded lets whoever waits for the task wait for
    ever.
    """
    task = asyncio.ensure_future(operation)
    for _ in range(turns):
        if task.done():
            break
        await asyncio.sleep(0)
    if task.done():
        task.result()
        return False
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled(), f"cancelled after {turns} turns, and went on"
    return True


def witnesses(stem: str, number: int = 3) -> dict[str, bytes]:
    """Return entries that tell answers apart: each holds its own key."""
    return {f"{stem}{index}": f"{stem}{index}".encode() for index in range(number)}


class Harness:
    """What a subclass may state about its engine, and what the checks build on."""

    capabilities: ClassVar[Collection[type] | None] = None
    """The capabilities that the backend must have, no more and no less; ``None`` asks for none."""
    title: ClassVar[str] = ""
    """What the engine is called in a table of outcomes; by default what the class is called."""

    largest: ClassVar[int] = 100 * 1024 * 1024
    """The most bytes that a check stores as one value; less where a test server takes less than its original."""
    foreign_counters: ClassVar[Mapping[bytes, int]] = {}
    """What counts although it is not written as a counter is, because the engine's own commands leave it so."""

    def run_check(self, check: Check, backend: Backend) -> None:
        """Run a check in a fresh loop, close the backend, and see that no task is left behind."""

        async def run() -> None:
            try:
                await check(self, backend)
            finally:
                await backend.aclose()
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, f"tasks left behind: {left}"

        asyncio.run(run())

    async def pass_time(self, seconds: float) -> None:
        """Let the engine's clock move on; override it where the clock is a fake one."""
        await asyncio.sleep(seconds)

    def key(self, name: str = "key") -> str:
        """Return a key that no other test uses."""
        return f"{uuid.uuid4().hex}:{name}"

    @staticmethod
    def short(backend: Backend) -> float:
        """Return a ttl that is short for this engine, in seconds."""
        return max(0.1, float(getattr(backend, "ttl_granularity", 0.0)))

    @staticmethod
    def over(backend: Backend) -> float:
        """Return a time after which a short ttl has ended, in seconds."""
        granularity = float(getattr(backend, "ttl_granularity", 0.0))
        return max(0.1, granularity) + granularity + 0.06

    @staticmethod
    def key_limits(backend: Backend) -> KeyLimits:
        """Return what the engine holds as a key."""
        limits = getattr(backend, "key_limits", KeyLimits())
        assert isinstance(limits, KeyLimits)
        return limits

    @staticmethod
    def value_limit(backend: Backend) -> int | None:
        """Return the most bytes that the engine takes as one value; ``None`` for no limit of its own."""
        limit = getattr(backend, "value_limit", None)
        assert limit is None or (type(limit) is int and limit > 0)
        return limit

    def names(self, backend: Backend, *wanted: str) -> Iterator[str]:
        """Yield the names that may stand in a key of this engine."""
        printable = self.key_limits(backend).printable
        for name in wanted:
            if not printable or (name.isascii() and name.isprintable() and " " not in name):
                yield name
