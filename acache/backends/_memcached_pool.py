"""The connections to one memcached server, and the ring that tells which server a key belongs to."""

from __future__ import annotations

import asyncio
import hashlib
from bisect import bisect
from collections.abc import Collection, Mapping, Sequence
from contextvars import Context
from typing import Any, Final, NamedTuple, TypeVar

from ..errors import BackendError, BackendRefused, BackendTimeout, BackendUnavailable, ValueTooLarge
from ._memcached import Connection, Item, Items, Lost, Reply, Words

__all__ = ["Pool", "Ring", "Server"]

T = TypeVar("T")

_PAUSE: Final = 10.0
"""A server that fails is left alone for so many times what the failure cost: dead, it takes a tenth of the time."""
_LONGEST_PAUSE: Final = 10.0


class Server(NamedTuple):
    """Where a server is, and how to connect to it."""

    host: str
    port: int
    size: int
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Host and port."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Pool:
    """The connections to one server, in one event loop.

    One connection does for everybody; another is opened only while something large is under way on the others.

    Args:
        server: where it is.
        connect_timeout: seconds.
        timeout: seconds for each answer.
        leave_alone: whether a server that cannot be reached or does not answer is left alone for a moment, in which
            every question to it fails at once.
    """

    def __init__(self, server: Server, connect_timeout: float, timeout: float, *, leave_alone: bool) -> None:
        self.loop: Final = asyncio.get_running_loop()
        self._server: Final = server
        self._connect_timeout: Final = connect_timeout
        self._timeout: Final = timeout
        self._leave_alone: Final = leave_alone
        self._connections: Final[list[Connection]] = []
        self._connecting: Final = asyncio.Lock()
        self._failures = 0
        self._trouble: BaseException | None = None
        self._pause = 0.0
        self._next_try = 0.0
        self._closed = False

    @property
    def failing(self) -> bool:
        """Whether the last attempt to reach the server failed."""
        return self._trouble is not None

    # Asking ---------------------------------------------------------------------------------------------------------

    async def items(self, question: bytes, asked: Collection[bytes]) -> dict[bytes, Item]:
        """Get what is there; asked once more if the connection is lost meanwhile."""
        items = await self._ask(question, Items(asked), again=True)
        self._trouble = None
        return items

    async def words(self, question: bytes, known: Collection[bytes], count: int = 1) -> list[bytes | BackendError]:
        """Send commands that are each answered by a line: one of ``known``, or what went wrong."""
        words = await self._ask(question, Words(known, count))
        if isinstance(words[-1], bytes):
            self._trouble = None
        return [word if isinstance(word, bytes) else self._error(word) for word in words]

    async def _ask(self, question: bytes, reply: Reply[T], *, again: bool = False) -> T:
        try:
            connection = self._take() or await self._connect()
            reply.deadline = self.loop.time() + self._timeout
            try:
                if connection.paused:
                    await connection.send_in_turn(question, reply)
                else:
                    connection.send(question, reply)
                result = await reply.future
            except Lost:
                if not again:
                    raise
                reply.restart()
                connection = self._take() or await self._connect()
                await connection.send_in_turn(question, reply)
                result = await reply.future
        except BackendError:
            raise
        except (OSError, ValueError) as error:
            raise self._error(error) from error
        return result

    def _error(self, error: Exception) -> BackendError:
        """Find the acache error that says what to do."""
        found: BackendError
        if isinstance(error, TimeoutError):
            found = BackendTimeout(f"memcached at {self._server.name} did not answer in time")
        elif isinstance(error, OSError):
            found = BackendUnavailable(f"cannot reach memcached at {self._server.name}: {error}")
        else:
            line = error.args[0]
            text = f"memcached at {self._server.name} answered {line!r}"
            if isinstance(line, bytes) and b"too large" in line:
                found = ValueTooLarge(f"{text}: its option -I sets the limit")
            elif isinstance(line, bytes) and b"unauthenticated" in line:
                found = BackendRefused(text)
            else:
                found = BackendUnavailable(text)
        found.__cause__ = error
        return found

    # Connections ----------------------------------------------------------------------------------------------------

    def _take(self) -> Connection | None:
        """Return the connection to use; ``None`` if one is to be opened."""
        if self._trouble is not None and self._leave_alone and not self._connections:
            self._probe()
        return self._light()

    def _light(self) -> Connection | None:
        for connection in self._connections:
            if not connection.heavy:
                return connection
        return None if len(self._connections) < self._server.size else self._least()

    def _least(self) -> Connection:
        return min(self._connections, key=lambda connection: connection.pending)

    def _probe(self) -> None:
        """Let one call try; those that come before it knows fail at once."""
        now = self.loop.time()
        if now < self._next_try:
            msg = f"memcached at {self._server.name} failed, and is left alone for {self._next_try - now:.3f} s"
            raise BackendUnavailable(msg) from self._trouble
        self._next_try = now + self._pause

    async def _connect(self) -> Connection:
        """Open a connection; one call at a time, and its failure is that of all who waited for it."""
        failures, began, tried = self._failures, 0.0, False
        try:
            async with asyncio.timeout(self._connect_timeout), self._connecting:
                if self._failures != failures:
                    raise TimeoutError if isinstance(self._trouble, TimeoutError) else OSError(str(self._trouble))
                if (connection := self._light()) is not None:  # opened meanwhile
                    return connection
                began, tried = self.loop.time(), True
                server, options = self._server, self._server.options
                connecting = self.loop.create_connection(self._protocol, server.host, server.port, **options)
                # In a context of its own: that of whoever asked first would live as long as the connection.
                opening = self.loop.create_task(connecting, context=Context())
                try:
                    _, connection = await opening
                except asyncio.CancelledError:
                    opening.add_done_callback(_close)  # it may have come to its end in this very turn
                    raise
        except (OSError, ValueError) as error:
            if tried:
                self._failures += 1
                self._note(error, self.loop.time() - began)
            if self._connections:  # it would have been another one
                return self._least()
            raise
        except asyncio.CancelledError:
            # Somebody's deadline is shorter than this pool's: that nobody accepts a connection must show all the same.
            if tried and self.loop.time() - began > self._connect_timeout / 2:
                self._note(TimeoutError("nobody accepted the connection"), self.loop.time() - began)
            raise
        self._connections.append(connection)
        connection.ending = self._closed
        return connection

    def _protocol(self) -> Connection:
        return Connection(self._timeout, self._on_lost)

    def _on_lost(self, connection: Connection, error: Exception) -> None:
        if connection in self._connections:
            self._connections.remove(connection)
        if isinstance(error, TimeoutError):
            self._note(error, self._timeout)
            for other in [*self._connections]:
                if not other.pending:  # it leads to the same server, and would say nothing for as long
                    other.close()

    def _note(self, error: Exception, seconds: float) -> None:
        """Remember a failure, and what it cost."""
        self._trouble = error.with_traceback(None)
        self._pause = min(_PAUSE * seconds, _LONGEST_PAUSE)
        self._next_try = self.loop.time() + self._pause

    def close(self) -> list[Connection]:
        """Close the connections, each one when those who wait for its answers have them; return the idle ones."""
        self._closed = True
        return [connection for connection in [*self._connections] if connection.close()]

    async def aclose(self) -> None:
        """Close the connections, and see them closed: those in use, or being opened, once they are not any more."""
        self.close()
        async with self._connecting:  # what is being opened has its place among the connections then
            connections = [*self._connections]
        for connection in connections:
            await connection.ended


class Ring:
    """Which server a key belongs to: the next point on a circle, so that few keys move when servers come or go."""

    def __init__(self, names: Sequence[str]) -> None:
        places = [(f"{name}-{number}".encode(), index) for index, name in enumerate(names) for number in range(40)]
        self._points: Final = sorted((point, index) for place, index in places for point in _hash(place))

    def find(self, wire: bytes) -> int:
        """Return the index of the server."""
        return self._points[bisect(self._points, (_hash(wire)[0],)) % len(self._points)][1]


def _hash(text: bytes) -> list[int]:
    digest = hashlib.md5(text, usedforsecurity=False).digest()
    return [int.from_bytes(digest[start : start + 4], "little") for start in range(0, 16, 4)]


def _close(opening: asyncio.Task[tuple[asyncio.Transport, Connection]]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        transport, _ = opening.result()
        transport.abort()
