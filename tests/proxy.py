"""A TCP proxy that misbehaves on request: a server as it is seen over a bad network.

It has one state, which holds for the connections that are open and those that come:

* `resume`: everything passes at once.
* `delay`: every byte arrives that much later, plus a random part drawn from the seed; the order stays.
* `drop`: connections are accepted, and what is sent is swallowed, both ways.
* `half_open`: one direction is silent; what was sent that way arrives after `resume`.
* `throttle`: so many bytes a second, for each direction of each connection.
* `reset`: what is open now is reset (RST), and so is each new connection until `resume`.

On loopback, in the test's own event loop.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from contextlib import suppress
from typing import Final, Literal, Self

__all__ = ["Proxy"]

Direction = Literal["up", "down"]
_CHUNK: Final = 65536


class Proxy:
    """A proxy in front of the server at ``host:port``: ``async with Proxy(host, port) as proxy: ... proxy.port``."""

    def __init__(self, host: str, port: int, *, seed: int = 0) -> None:
        self.target: Final = (host, port)
        self.port = 0
        """Where it listens on 127.0.0.1; set when it is entered."""
        self.connections = 0
        """How many were accepted so far."""
        self._random: Final = random.Random(seed)
        self._server: asyncio.Server | None = None
        self._tasks: Final[set[asyncio.Task[None]]] = set()
        self._writers: Final[set[asyncio.StreamWriter]] = set()
        self._changed = asyncio.Event()
        self._normal()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    # Faults ---------------------------------------------------------------------------------------------------------

    def resume(self) -> None:
        """Let everything pass; what a silent direction held back arrives now, what was dropped does not."""
        self._normal()
        self._tell()

    def delay(self, seconds: float, jitter: float = 0.0) -> None:
        """Let every byte take ``seconds`` and up to ``jitter`` more."""
        self._normal()
        self._delay, self._jitter = seconds, jitter
        self._tell()

    def drop(self) -> None:
        """Swallow everything."""
        self._normal()
        self._dropping = True
        self._tell()

    def half_open(self, silent: Direction) -> None:
        """Hold back what is sent to the server (``up``), or what it answers (``down``)."""
        self._normal()
        self._silent = silent
        self._tell()

    def throttle(self, bytes_per_second: float) -> None:
        """Let so many bytes a second pass."""
        self._normal()
        self._rate = bytes_per_second
        self._tell()

    def reset(self, *, once: bool = False) -> None:
        """Reset every connection; with ``once``, new ones are welcome."""
        self._normal()
        self._resetting = not once
        for writer in list(self._writers):
            _reset(writer)
        self._tell()

    def _normal(self) -> None:
        self._delay = self._jitter = 0.0
        self._dropping = self._resetting = False
        self._silent: Direction | None = None
        self._rate: float | None = None

    def _tell(self) -> None:
        """Wake those who wait for another state."""
        self._changed.set()
        self._changed = asyncio.Event()

    # Traffic --------------------------------------------------------------------------------------------------------

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        self.connections += 1
        server: asyncio.StreamWriter | None = None
        try:
            if self._resetting:
                _reset(writer)
                return
            answers, server = await asyncio.open_connection(*self.target)
            self._writers.add(server)
            ways = [self._pass(reader, server, "up"), self._pass(answers, writer, "down")]
            async with asyncio.TaskGroup() as group:
                for way in ways:
                    group.create_task(way)
        except* (OSError, asyncio.CancelledError):
            pass  # the server is down, either side hung up, or the test is over
        finally:
            for end in (writer, server):
                if end is not None:
                    self._writers.discard(end)
                    end.transport.abort()
                    with suppress(OSError):
                        await end.wait_closed()
            self._tasks.discard(task)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Direction) -> None:
        """Carry one direction: one task takes what comes, another one lets it go when its time has come."""
        loop = asyncio.get_running_loop()
        line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def release() -> None:
            due = 0.0
            while True:
                at, data = await line.get()
                due = max(due, at)  # never overtaken by what came later
                await asyncio.sleep(due - loop.time())
                while self._silent == way:
                    await self._changed.wait()
                if self._dropping:
                    continue
                if not data:
                    raise ConnectionResetError  # this side hung up: so does the other
                await self._trickle(writer, data)

        async with asyncio.TaskGroup() as group:
            group.create_task(release())
            while data := await reader.read(_CHUNK):
                line.put_nowait((loop.time() + self._delay + self._random.uniform(0, self._jitter), data))
            line.put_nowait((0.0, b""))

    async def _trickle(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        while data:
            if self._rate is None:
                writer.write(data)
                await writer.drain()
                return
            some = max(1, int(self._rate / 50))
            writer.write(data[:some])
            await writer.drain()
            data = data[some:]
            await asyncio.sleep(some / self._rate)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection so that the peer sees a reset, not an end."""
    connection = writer.get_extra_info("socket")
    if connection is not None:
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
