"""`heeding`: cancellations that a client library would lose."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

__all__ = ["heeding"]

T = TypeVar("T")


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
