"""Cancellations and client libraries that wait by ``asyncio.wait_for``."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from typing import Any

import pytest

from acache.backends._heeding import unharmed


class Library:
    """Waits for a condition as PyMongo does, with its lock held before and after."""

    def __init__(self) -> None:
        self.condition = asyncio.Condition()
        self.ended = asyncio.Event()

    async def operation(self) -> str:
        try:
            async with self.condition:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.condition.wait(), 0.001)
                return "done"
        finally:
            self.ended.set()


async def test_an_operation_that_is_cancelled_in_the_wrong_moment_leaves_no_lock_taken():
    """Its time is over and it waits for the lock, which somebody else has."""
    library = Library()
    calling = asyncio.create_task(unharmed(library.operation(), set()))
    await asyncio.sleep(0)
    while library.condition.locked():
        await asyncio.sleep(0)
    await library.condition.acquire()
    await asyncio.sleep(0.02)
    calling.cancel()
    library.condition.release()
    await asyncio.wait([calling])
    assert calling.cancelled()
    await library.ended.wait()
    async with asyncio.timeout(5), library.condition:
        pass
    assert not library.condition.locked()


async def test_what_is_not_cancelled_answers_and_raises():
    """The one as the other."""
    assert await unharmed(Library().operation(), set()) == "done"

    async def fail() -> None:
        raise LookupError

    running: set[asyncio.Task[Any]] = set()
    with pytest.raises(LookupError):
        await unharmed(fail(), running)
    assert not running


async def test_an_operation_that_nobody_waits_for_ends_without_a_word(caplog: pytest.LogCaptureFixture):
    """Its error was for the caller who left."""
    go, running = asyncio.Event(), set[asyncio.Task[Any]]()

    async def fail() -> None:
        await go.wait()
        raise LookupError

    calling = asyncio.create_task(unharmed(fail(), running))
    await asyncio.sleep(0)
    calling.cancel()
    await asyncio.wait([calling])
    assert running or sys.version_info >= (3, 12)
    go.set()
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == 1
    assert not running
    assert not caplog.records
