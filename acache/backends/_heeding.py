"""`heeding` and `unharmed`: cancellations that a client library would lose, or come to harm by."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable
from inspect import iscoroutine
from typing import Any, Final, TypeVar

__all__ = ["heeding", "unharmed"]

T = TypeVar("T")

_LEFT_FOR: Final = 30.0
"""Seconds for which an operation that nobody waits for is left to end by itself."""


async def heeding(operation: Awaitable[T]) -> T:
    """Await an operation of a client library, and be cancelled if somebody wanted that while it ran.

    Until Python 3.12 ``asyncio.wait_for``, by which several of them send and receive, forgets a cancellation that comes
    together with the end of what it waits for; and some take a cancellation for a lost connection.  Whoever then waits
    for the cancelled task to end would wait for ever.
    """
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - coroutines are run by tasks
    before = task.cancelling()
    try:
        result = await operation
    except Exception as error:
        if task.cancelling() > before:
            raise asyncio.CancelledError from error
        raise
    if task.cancelling() > before:
        raise asyncio.CancelledError
    return result


async def unharmed(operation: Awaitable[T], running: set[asyncio.Task[Any]]) -> T:
    """Do as `heeding`, but leave the operation to end by itself when its caller is cancelled.

    It is in ``running`` until it has ended: the end of the event loop would cancel it, too.

    Until Python 3.12 ``asyncio.wait_for`` has what it waits for in a task of its own, and PyMongo waits by it for
    conditions, whose lock it holds before and after::

        caller: its time is over, so it cancels W ... is cancelled, and releases the lock that is nobody's
        W:      waits for the lock ................................................................ takes it, for ever

    From then on each operation of that client waits for the lock, and its ``close`` does.
    """
    if sys.version_info >= (3, 12) or not iscoroutine(operation):
        return await heeding(operation)
    loop = asyncio.get_running_loop()
    task: asyncio.Task[T] = loop.create_task(operation)
    running.add(task)
    task.add_done_callback(running.discard)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        timer = loop.call_later(_LEFT_FOR, task.cancel)

        def ended(_: object) -> None:
            timer.cancel()
            _ = task.cancelled() or task.exception()  # nobody else asks for it now

        task.add_done_callback(ended)
        raise
