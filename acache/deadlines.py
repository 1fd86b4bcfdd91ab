"""`Deadlines`: ends what takes too long, with one timer for however many operations.

``asyncio.timeout`` arms a timer for each, which costs more than the rest of a quick operation.
"""

from __future__ import annotations

import asyncio
from contextvars import Context
from typing import Any, Final

__all__ = ["Deadlines", "Operation"]

_TURNS: Final = 3
"""Turns of the loop between a deadline and its consequences: where the loop was late, the answer may be there."""


class Operation:
    """Something that a task is doing, and by when it has to be done."""

    __slots__ = ("_cancelling", "_taken_back", "_task", "due_at", "expired")

    def __init__(self, task: asyncio.Task[Any], due_at: float) -> None:
        self._task: Final = task
        self._cancelling: Final = task.cancelling()
        self.due_at: Final = due_at
        """By the loop's clock."""
        self.expired = False
        self._taken_back = False

    def expire(self) -> None:
        """End it: the task is cancelled, and `was_late` tells why."""
        if not self.expired:
            self.expired = True
            self._task.cancel()

    def was_late(self) -> bool:
        """Take the deadline's cancellation back, if it came; tell whether it did, and nobody else's."""
        if not self.expired:
            return False
        if not self._taken_back:
            self._taken_back = True
            self._task.uncancel()
        return not self.cancelled

    @property
    def cancelled(self) -> bool:
        """Whether somebody has cancelled the task since it began; to be asked after `was_late`."""
        return self._task.cancelling() > self._cancelling


class Deadlines:
    """Operations that have the same number of seconds; ``None`` for as long as they like."""

    __slots__ = ("_loop", "_running", "_seconds", "_timer")

    def __init__(self, seconds: float | None) -> None:
        self._seconds: Final = seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.Handle | None = None
        self._running: dict[Operation, None] = {}
        """In the order of their ends, which is that of their beginnings."""

    def begin(self, loop: asyncio.AbstractEventLoop) -> Operation:
        """Note that the current task begins something; it calls `end` in any case."""
        task = asyncio.current_task(loop)
        assert task is not None  # noqa: S101 - coroutines are run by tasks
        if self._loop is not loop:
            self._loop, self._timer, self._running = loop, None, {}
        if self._seconds is None:
            return Operation(task, float("inf"))
        operation = Operation(task, loop.time() + self._seconds)
        self._running[operation] = None
        if self._timer is None:
            # The timer outlives the operation: it must not keep the context of whoever began it.
            self._timer = loop.call_at(operation.due_at, self._expire, context=Context())
        return operation

    def end(self, operation: Operation) -> None:
        """Note that it has ended."""
        self._running.pop(operation, None)

    def _expire(self, turns: int = _TURNS) -> None:
        assert self._loop is not None  # noqa: S101 - its timer
        if turns:
            self._timer = self._loop.call_soon(self._expire, turns - 1)
            return
        self._timer = None
        now = self._loop.time()
        for operation in list(self._running):
            if operation.due_at > now:
                self._timer = self._loop.call_at(operation.due_at, self._expire)
                return
            del self._running[operation]
            operation.expire()
