"""What `acache.backends.memcached` sends its questions by: connections that stay in step, and the ring of servers.

No call can leave a connection with an answer still to come: one goes back to its pool only when its question was
answered in full, and whatever else happens - a cancellation, a deadline, an answer that is none - closes it.
"""

from __future__ import annotations

import asyncio
import hashlib
from bisect import bisect
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from ..entry import HEAD_BYTES
from ..errors import BackendError, BackendRefused, BackendTimeout, BackendUnavailable, ValueTooLarge
from .base import Version

__all__ = ["NOT_A_NUMBER", "Item", "Pool", "Ring", "Server", "read_items", "read_words"]

T = TypeVar("T")
Streams: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]

NOT_A_NUMBER: Final = b"CLIENT_ERROR cannot increment or decrement non-numeric value"
_WORDS: Final = frozenset((b"STORED", b"NOT_STORED", b"EXISTS", b"NOT_FOUND", b"DELETED", NOT_A_NUMBER))


class Item(NamedTuple):
    """What memcached holds under a key."""

    data: bytes
    flags: int
    token: bytes

    @property
    def version(self) -> Version:
        """What a compare-and-set compares."""
        return self.token, self.data[:HEAD_BYTES]


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

    One goes back only when its question was answered in full; after anything else it is closed.
    """

    def __init__(self, server: Server, connect_timeout: float, timeout: float) -> None:
        self.loop: Final = asyncio.get_running_loop()
        self._server: Final = server
        self._connect_timeout: Final = connect_timeout
        self._timeout: Final = timeout
        self._free: Final = asyncio.Semaphore(server.size)
        self._idle: list[Streams] = []
        self._closed = False

    async def talk(
        self,
        question: Sequence[bytes],
        answer: Callable[[asyncio.StreamReader, Collection[bytes]], Awaitable[T]],
        asked: Collection[bytes],
        *,
        again: bool = False,
    ) -> T:
        """Send the question and read the answer to what was asked; ``again``: once more if an old connection fails."""
        async with self._free:
            try:
                streams = self._take()
                if streams is not None and again:
                    with suppress(ConnectionError, EOFError):
                        return await self._exchange(streams, question, answer, asked)
                    self._drop()
                    streams = None
                return await self._exchange(streams or await self._connect(), question, answer, asked)
            except TimeoutError as error:
                msg = f"memcached at {self._server.name} did not answer in time"
                raise BackendTimeout(msg) from error
            except (OSError, EOFError) as error:
                self._drop()  # the others led to the same server
                msg = f"cannot reach memcached at {self._server.name}: {error}"
                raise BackendUnavailable(msg) from error
            except ValueError as error:
                raise _translate(self._server.name, error) from error

    async def _exchange(
        self,
        streams: Streams,
        question: Sequence[bytes],
        answer: Callable[[asyncio.StreamReader, Collection[bytes]], Awaitable[T]],
        asked: Collection[bytes],
    ) -> T:
        reader, writer = streams
        in_step = False
        # Cheaper than asyncio.timeout(), and on every call: the deadline ends the connection, that ends the call.
        deadline = self.loop.call_later(self._timeout, writer.transport.abort)
        try:
            writer.writelines(question)
            if writer.transport.get_write_buffer_size():
                await writer.drain()
            result = await answer(reader, asked)
            in_step = True
        except (ConnectionError, EOFError) as error:
            if self.loop.time() >= deadline.when():
                raise TimeoutError from error
            raise
        finally:
            deadline.cancel()
            if in_step and not self._closed and not writer.is_closing():
                self._idle.append(streams)
            else:
                writer.transport.abort()
        return result

    async def _connect(self) -> Streams:
        async with asyncio.timeout(self._connect_timeout):
            return await asyncio.open_connection(self._server.host, self._server.port, **self._server.options)

    def _take(self) -> Streams | None:
        while self._idle:
            reader, writer = self._idle.pop()
            if not (reader.at_eof() or writer.is_closing()):
                return reader, writer
            writer.transport.abort()
        return None

    def _drop(self) -> list[Streams]:
        idle, self._idle = self._idle, []
        for _, writer in idle:
            writer.transport.abort()
        return idle

    def close(self) -> list[Streams]:
        """Close the connections that are idle now, and each other one when its answer is there."""
        self._closed = True
        return self._drop()

    async def aclose(self) -> None:
        """Close the connections, and see the idle ones closed."""
        for _, writer in self.close():
            with suppress(OSError):
                await writer.wait_closed()


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


async def _line(reader: asyncio.StreamReader) -> bytes:
    line = await reader.readline()
    if not line.endswith(b"\r\n"):
        msg = "the connection ended before the answer"
        raise EOFError(msg)
    return line[:-2]


async def read_words(reader: asyncio.StreamReader, asked: Collection[bytes]) -> list[bytes]:
    """Read the answers to commands that are answered by a line."""
    words: list[bytes] = []
    for _ in asked:
        word = await _line(reader)
        if not (word in _WORDS or word.isdigit()):
            raise ValueError(word)
        words.append(word)
    return words


async def read_items(reader: asyncio.StreamReader, asked: Collection[bytes]) -> dict[bytes, Item]:
    """Read the answer to a get or gets, and see that it is about what was asked."""
    items: dict[bytes, Item] = {}
    while (line := await _line(reader)) != b"END":
        kind, *words = line.split(b" ")
        if kind != b"VALUE" or not words or words[0] not in asked:
            raise ValueError(line)
        wire, flags, size, *token = words
        data = await reader.readexactly(int(size) + 2)
        items[wire] = Item(data[:-2], int(flags), token[0] if token else b"")
    return items


def _translate(name: str, error: Exception) -> BackendError:
    """Find the acache error that says what to do."""
    text = f"memcached at {name} answered {str(error)[:200]!r}"
    if "too large" in text:
        return ValueTooLarge(f"{text}: its option -I sets the limit")
    return BackendRefused(text) if "unauthenticated" in text else BackendUnavailable(text)
