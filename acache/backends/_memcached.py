"""One connection to memcached: questions are pipelined, and each answer goes to the one who asked.

Memcached answers in the order of the questions.  A caller who is cancelled or late leaves its place in the queue: the
answer to it is read and dropped, so the connection stays in step and need not be closed.  What cannot be the answer to
the question at the head closes the connection.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection
from contextvars import Context
from math import inf
from typing import Any, Final, Generic, NamedTuple, TypeVar

from ..entry import HEAD_BYTES
from .base import Version

__all__ = ["NUMBER", "Connection", "Item", "Items", "Lost", "Reply", "ServerError", "Words"]

T = TypeVar("T")

NUMBER: Final = b"<a number>"
"""Stands for any number among the words that an answer may be."""
_LONGEST_LINE: Final = 2048
"""A key of 250 bytes and three numbers are the longest answer there is; errors are some words."""
_LARGEST_VALUE: Final = 1 << 30
"""What memcached's own option ``-I`` can be at most."""
_HEAVY: Final = 1 << 16
"""Bytes under way, in or out, from which on other calls had better take another connection."""


class Item(NamedTuple):
    """What memcached holds under a key."""

    data: bytes
    flags: int
    token: bytes

    @property
    def version(self) -> Version:
        """What a compare-and-set compares."""
        return self.token, self.data[:HEAD_BYTES]


class Lost(ConnectionResetError):
    """The connection ended before the answer."""


class ServerError(ValueError):
    """The server answered, in step, that it cannot do this one thing."""


class Incomplete(Exception):
    """The next part of an answer is not there yet; at least ``missing`` bytes are to come."""

    def __init__(self, missing: int) -> None:
        super().__init__(missing)
        self.missing: Final = missing


class Reply(Generic[T]):
    """The place of a question in the queue: reads the answer to it."""

    __slots__ = ("deadline", "future")
    future: asyncio.Future[T]
    deadline: float

    def restart(self) -> None:
        """Forget what was read."""

    def read(self, data: bytes, start: int) -> tuple[int, bool]:
        """Read one part of the answer; return where the next begins, and whether this was the last.

        Raises:
            Incomplete: it is not all there.
            ValueError: this is no answer to what was asked.
        """
        raise NotImplementedError

    def _resolve(self, result: T) -> None:
        if not self.future.done():
            self.future.set_result(result)

    def fail(self, error: Exception) -> None:
        """Let the caller have the error, if there still is one."""
        if not self.future.done():
            self.future.set_exception(error)


class Items(Reply[dict[bytes, Item]]):
    """The answer to ``get`` or ``gets`` of the keys ``asked``."""

    __slots__ = ("_asked", "_found")

    def __init__(self, asked: Collection[bytes]) -> None:
        self._asked = asked
        self._found: dict[bytes, Item] = {}

    def restart(self) -> None:
        """See `Reply.restart`."""
        self._found = {}

    def read(self, data: bytes, start: int) -> tuple[int, bool]:
        """See `Reply.read`."""
        line, start = _line(data, start)
        if line == b"END":
            self._resolve(self._found)
            return start, True
        kind, _, rest = line.partition(b" ")
        if kind == b"SERVER_ERROR":
            self.fail(ServerError(line))
            return start, True
        if kind != b"VALUE":
            raise ValueError(line)
        key, flags, size, *token = rest.split(b" ")
        if key not in self._asked or key in self._found or len(size) > 10 or not size.isdigit():  # noqa: PLR2004
            raise ValueError(line)
        end = start + int(size)
        if end - start > _LARGEST_VALUE:
            raise ValueError(line)
        if end + 2 > len(data):
            raise Incomplete(end + 2 - len(data))
        if data[end : end + 2] != b"\r\n":
            raise ValueError(line)
        self._found[key] = Item(data[start:end], int(flags), token[0] if token else b"")
        return end + 2, False


class Words(Reply[list[bytes | Exception]]):
    """The answers to ``count`` commands that are each answered by a line: one of ``known``, or a server error."""

    __slots__ = ("_count", "_found", "_known")

    def __init__(self, known: Collection[bytes], count: int = 1) -> None:
        self._known = known
        self._count = count
        self._found: list[bytes | Exception] = []

    def read(self, data: bytes, start: int) -> tuple[int, bool]:
        """See `Reply.read`."""
        line, start = _line(data, start)
        if line in self._known or (NUMBER in self._known and line.isdigit()):
            self._found.append(line)
        elif line.startswith(b"SERVER_ERROR"):
            self._found.append(ServerError(line))
        else:
            raise ValueError(line)
        if len(self._found) < self._count:
            return start, False
        self._resolve(self._found)
        return start, True

    def fail(self, error: Exception) -> None:
        """See `Reply.fail`; what was answered before still counts."""
        if self._found:
            self._resolve([*self._found, *[error] * (self._count - len(self._found))])
        else:
            super().fail(error)


def _line(data: bytes, start: int) -> tuple[bytes, int]:
    end = data.find(b"\r\n", start)
    if end < 0:
        if len(data) - start > _LONGEST_LINE:
            raise ValueError(data[start : start + _LONGEST_LINE])
        raise Incomplete(1)
    return data[start:end], end + 2


class Connection(asyncio.Protocol):
    """A pipelined connection.

    Deadlines cost no timer for each call: one timer stands at the earliest of them.  A late caller alone gets a
    `TimeoutError`; but if nothing at all was answered for ``timeout`` seconds, the connection is given up.
    """

    def __init__(self, timeout: float, on_lost: Callable[[Connection, Exception], object]) -> None:
        self._loop: Final = asyncio.get_running_loop()
        self._timeout: Final = timeout
        self._on_lost: Final = on_lost
        self._transport: asyncio.Transport
        self._replies: Final[deque[Reply[Any]]] = deque()
        self._chunks: Final[list[bytes]] = []
        self._missing = 0
        self._unsent: Final[list[bytes]] = []
        self._unsent_bytes = 0
        self._turn: Final = asyncio.Lock()
        self._writable: Final = asyncio.Event()
        self._writable.set()
        self._timer: asyncio.TimerHandle | None = None
        self._due = inf
        self._answered = self._loop.time()
        self._lost: Exception | None = None
        self.ending = False
        """Whether it closes when the last answer is there."""
        self.paused = False
        """Whether a question has to wait until others are on their way."""
        self.ended: Final[asyncio.Future[None]] = self._loop.create_future()

    @property
    def pending(self) -> int:
        """How many answers are to come."""
        return len(self._replies)

    @property
    def heavy(self) -> bool:
        """Whether something large is under way, behind which others would have to wait."""
        return self.paused or self._missing > _HEAVY

    # Asking ---------------------------------------------------------------------------------------------------------

    def send(self, question: bytes, reply: Reply[Any]) -> None:
        """Send a question before its deadline; what is asked within one turn of the loop is written at once.

        Raises:
            Lost: the connection has ended.
        """
        if self._lost is not None:
            raise Lost(str(self._lost)) from self._lost
        reply.future = self._loop.create_future()
        if not self._replies:
            self._transport.write(question)
        else:
            if not self._unsent:
                self._loop.call_soon(self._flush)
            self._unsent.append(question)
            self._unsent_bytes += len(question)
            if self._unsent_bytes > _HEAVY:
                self._flush()
        self._replies.append(reply)
        if reply.deadline < self._due:
            self._look_at(reply.deadline)

    async def send_in_turn(self, question: bytes, reply: Reply[Any]) -> None:
        """Wait until there is room for it, one after the other; then `send`.

        Raises:
            TimeoutError: there was none before the deadline.
        """
        async with asyncio.timeout_at(reply.deadline), self._turn:
            await self._writable.wait()
            self.send(question, reply)

    def _flush(self) -> None:
        if self._unsent and self._lost is None:
            self._transport.write(b"".join(self._unsent))
        self._unsent.clear()
        self._unsent_bytes = 0

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self.paused = True
        self._writable.clear()

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self.paused = False
        self._writable.set()

    # Answers --------------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._missing:
            self._chunks.append(data)
            if len(data) < self._missing:
                self._missing -= len(data)
                return
            data = b"".join(self._chunks)
            self._chunks.clear()
            self._missing = 0
        position, end, replies = 0, len(data), self._replies
        try:
            while position < end:
                position, whole = replies[0].read(data, position)
                if whole:
                    replies.popleft()
        except Incomplete as rest:
            self._chunks.append(data[position:])
            self._missing = rest.missing
        except (ValueError, IndexError):  # no such answer, or nobody has asked
            if replies:
                replies.popleft().fail(ValueError(data[position : position + 200]))
            self._lose(Lost("the server sent what is no answer"))
        if position:
            self._answered = self._loop.time()
        if self.ending and not replies:
            self._transport.abort()

    def _look_at(self, instant: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = instant
        self._timer = self._loop.call_at(instant, self._look, context=Context())

    def _look(self) -> None:
        """Fail the callers that are late; see whether the server says anything at all."""
        now = self._loop.time()
        self._timer, self._due = None, inf
        if not self._replies:
            return
        silent_from = self._answered + self._timeout
        if self._replies[0].deadline <= now and silent_from <= now:
            self._lose(TimeoutError(f"no answer for {self._timeout:g} s"))
            return
        for reply in self._replies:
            if reply.deadline <= now:
                reply.fail(TimeoutError(f"no answer within {self._timeout:g} s"))
        late = self._replies[0].deadline <= now
        upcoming = [reply.deadline for reply in self._replies if reply.deadline > now]
        self._look_at(min([*upcoming, silent_from] if late else upcoming))

    # The connection -------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - of the event loop's
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._lose(exc or Lost("the server closed the connection"))
        if not self.ended.done():
            self.ended.set_result(None)

    def close(self) -> bool:
        """Close when the answers are there that somebody still waits for; tell whether that is now."""
        self.ending = True
        if any(not reply.future.done() for reply in self._replies):
            return False
        self._lose(Lost("closed"))
        return True

    def _lose(self, error: Exception) -> None:
        if self._lost is not None:
            return
        self._lost = error
        self._transport.abort()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._writable.set()
        while self._replies:
            late = isinstance(error, TimeoutError)
            self._replies.popleft().fail(TimeoutError(str(error)) if late else Lost(str(error)))
        self._on_lost(self, error)
