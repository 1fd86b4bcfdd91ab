"""Commands of many callers over few connections.

Those of one loop turn leave in one write, and the replies are matched in their order.  A `Line` is one connection;
`Lines` opens them, chooses one for each command, and knows what may be sent again.  A cancelled caller leaves his place
in the line: his reply is read, and dropped.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Container, Sequence
from contextvars import Context
from functools import partial
from itertools import islice
from typing import Any, Final

from ...errors import BackendTimeout, BackendUnavailable
from ..gate import Gate
from .pieces import read_in_pieces
from .resp import INCOMPLETE, Push, Reader

__all__ = ["Line", "Lines", "Lost"]

_HIGH_WATER: Final = 1 << 20
"""Bytes of one loop turn, above which further callers wait until they have left."""
_LARGE: Final = 1 << 16
"""Bytes of a command that would hold up small ones."""
_MOST_AT_ONCE: Final = 1 << 18
"""Bytes received in one turn of the loop."""
_LONG: Final = 1 << 20
"""Bytes of a reply under way that holds up others."""
_MOST_REMEMBERED: Final = 1000
"""Commands whose last reply was long."""
_LOOKS: Final = 4
"""How often in its timeout a connection is looked at, while somebody waits."""
_GET: Final = b"*2\r\n$3\r\nGET\r\n$"
_LONGEST_PAUSE: Final = 1.0
_ATTEMPTS: Final = 3


class Lost(BackendUnavailable):
    """The connection was lost before the reply came."""

    sent = True
    """Whether the command may have been carried out."""


class Line(asyncio.BufferedProtocol):
    """One connection, and those who wait for its replies.

    Args:
        reader: makes replies of bytes.
        timeout: seconds without a byte from or to the other side, while somebody waits, after which the connection is
            ended.
        place: of the server, for messages.
        on_push: gets the messages that answer nothing, in their order among the replies.
        on_long: called when a reply is so long that those behind it should not wait for its end.
        keep: what must live as long as the connection.
    """

    def __init__(
        self,
        reader: Reader,
        *,
        timeout: float,
        place: str,
        on_push: Callable[[Any], object] | None = None,
        on_long: Callable[[Line], object] | None = None,
        keep: object = None,
    ) -> None:
        self._keep: Final = keep
        self._loop: Final = asyncio.get_running_loop()
        self._reader: Final = reader
        self._timeout: Final = timeout
        self._place: Final = place
        self._on_push: Final = on_push
        self._on_long: Final = on_long
        self._transport: Any = None
        self._received: Final = memoryview(bytearray(_MOST_AT_ONCE))
        self._waiting: Final[deque[tuple[asyncio.Future[Any], bytes | None]]] = deque()
        """Those whose replies are to come, in order; with the command, where it may be sent again."""
        self._queue: Final[deque[tuple[asyncio.Future[None], int]]] = deque()
        """Those who wait until there is room to write, and for how many bytes."""
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._flushing = False
        self._paused = False
        self._watch: asyncio.TimerHandle | None = None
        self._active_at = 0.0
        self._written = 0
        self._backlog = 0  # as of the last look, and how much had left
        self._left = 0
        self._under_way = 0
        """Bytes received of a reply that is not all there."""
        self._why: BaseException | None = None
        self.gone: Final[asyncio.Future[None]] = self._loop.create_future()
        """Done when the socket is closed."""
        self.busy = False
        """Whether a long reply is under way."""
        self.answered = False
        """Whether a reply ever came."""
        self.closed = False
        """Whether it takes no more commands."""
        self._ended = False

    @property
    def crowded(self) -> bool:
        """Whether a caller has to wait, in `room`, before he may `send`."""
        return self._paused or self._out_bytes > _HIGH_WATER or bool(self._queue)

    @property
    def load(self) -> int:
        """How many wait for a reply."""
        return len(self._waiting)

    # Sending --------------------------------------------------------------------------------------------------------

    def send(self, command: bytes, *, again: bool) -> asyncio.Future[Any]:
        """Send a command, at once if nothing else is under way, else with those of this loop turn; return its reply.

        Args:
            command: in RESP.
            again: it changes nothing, and may be sent a second time.
        """
        future: asyncio.Future[Any] = self._loop.create_future()
        self._put(future, command, command if again else None)
        return future

    def begin(self, command: bytes, *, again: bool) -> asyncio.Future[Any] | None:
        """Do as `send` where nothing stands in the way, which is nearly always; else ``None``.

        All of it stands here, once more, because every call on the way would cost as much as a part of it.
        """
        if self.closed or self.busy or self._paused or self._queue or self._out_bytes > _HIGH_WATER:
            return None
        if not self._waiting:
            return self.send(command, again=again)
        future: asyncio.Future[Any] = asyncio.Future(loop=self._loop)
        self._waiting.append((future, command if again else None))
        self._out.append(command)
        self._out_bytes += len(command)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)
        return future

    def _put(self, future: asyncio.Future[Any], command: bytes, again: bytes | None) -> None:
        if self.closed:
            future.set_exception(self._lost(sent=False))
            return
        idle = not self._waiting
        self._waiting.append((future, again))
        if idle:
            self._active_at = self._loop.time()
            if self._watch is None:
                self._watch = self._loop.call_later(self._timeout / _LOOKS, self._look, context=Context())
            if not self._flushing and not self._queue:
                # Alone, it would only lose a turn of the loop by waiting for company.  Those in the queue count on the
                # flush that follows their predecessor.
                self._written += len(command)
                self._transport.write(command)
                return
        self._out.append(command)
        self._out_bytes += len(command)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        out, self._out = self._out, []
        self._written += self._out_bytes
        self._out_bytes = 0
        if out:
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))
        self._wake()

    async def room(self, size: int) -> None:
        """Wait, in turn, until there is room to write ``size`` bytes, or the connection is lost.

        Raises:
            BackendTimeout: nothing moved for too long; over another connection it would be the same.
        """
        if self.closed:
            return
        turn: asyncio.Future[None] = self._loop.create_future()
        self._queue.append((turn, size))
        try:
            await turn
        except asyncio.CancelledError:
            self._wake()  # it may have been this one's turn
            raise
        if isinstance(self._why, BackendTimeout):
            raise self._lost(sent=True)

    def _wake(self) -> None:
        """Let go on who finds room now; all of them send in the next loop turn, before the next `_flush`."""
        room = _HIGH_WATER - self._out_bytes
        while self._queue and (self.closed or (room > 0 and not self._paused)):
            turn, size = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                room -= size

    @property
    def under_way(self) -> bytes | None:
        """The command whose reply comes next, where it may be sent again."""
        return self._waiting[0][1] if self._waiting else None

    def relieve(self, other: Line, *, but: Container[bytes]) -> None:
        """Ask another line too for what is held up behind a long reply; whichever answers first counts."""
        for future, command in list(islice(self._waiting, 1, None)):
            if command is not None and command not in but and not future.done():
                other._put(future, command, None)

    # Receiving ------------------------------------------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - it is always the same
        """Say where to put what is received; the reader copies it from there, and nobody does on the way."""
        return self._received

    def buffer_updated(self, nbytes: int) -> None:
        """Match replies to those who wait."""
        answered = False
        waiting, gets = self._waiting, self._reader.gets
        self._under_way += nbytes
        try:
            self._reader.feed(self._received[:nbytes])
            while (reply := gets()) is not INCOMPLETE:
                self._under_way = 0
                if type(reply) is bytes:  # nearly all of them; without a call for each
                    future, _ = waiting.popleft()
                    answered = True
                    if not future.done():
                        future.set_result(reply)
                    continue
                answered |= self._take(reply)
        except Exception as error:  # noqa: BLE001 - not RESP, or a reply to nothing: what comes now belongs to nobody
            self._end(error)
            return
        if answered or self._under_way:  # messages are no sign that an answer is on its way
            self._active_at = self._loop.time()
            self.answered = True
        if self.closed and not waiting:
            self._end(None)
        if self._under_way <= _LONG:
            self.busy = False
        elif not self.busy:
            self.busy = True
            if self._on_long is not None:
                self._on_long(self)

    def _take(self, reply: Any) -> bool:
        """Pass a reply of any kind on; tell whether it answers a command."""
        if type(reply) is Push:
            if self._on_push is not None:
                self._on_push(reply)
            return False
        future, _ = self._waiting.popleft()
        if not future.done():
            if isinstance(reply, Exception):
                future.set_exception(reply)
            else:
                future.set_result(reply)
        return True

    def _look(self) -> None:
        """End a connection on which nothing moves while somebody waits."""
        self._watch = None
        if not self._waiting:
            return
        now, backlog = self._loop.time(), self._transport.get_write_buffer_size()
        left = self._written - backlog
        if self._backlog and left > self._left:  # what found room at once is no sign that anybody reads
            self._active_at = now
        self._backlog, self._left = backlog, left
        patience = self._active_at + self._timeout - now
        if patience > 0:
            self._watch = self._loop.call_later(min(patience, self._timeout / _LOOKS), self._look, context=Context())
        else:
            late = BackendTimeout(f"{self._place} did not answer within {self._timeout} s")
            late.__cause__ = TimeoutError()
            self._end(late)

    # Life -----------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        """Begin."""
        self._transport = transport

    def pause_writing(self) -> None:
        """The other side does not read as fast as this one writes."""
        self._paused = True

    def resume_writing(self) -> None:
        """It has caught up."""
        self._paused = False
        self._wake()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Tell those who wait."""
        self._end(exc)
        if not self.gone.done():
            self.gone.set_result(None)

    def retire(self) -> None:
        """Take no more commands, and end the connection when the last reply is there."""
        self.closed = True
        self._wake()
        if not self._waiting:
            self._end(None)

    def close(self) -> None:
        """End the connection now."""
        self._end(None)

    def _end(self, why: BaseException | None) -> None:
        if self._ended:
            return
        self._ended = self.closed = True
        self._why = why
        self._transport.abort()
        if self._watch is not None:
            self._watch.cancel()
        self._wake()
        sent = len(self._waiting) - len(self._out)
        for place, (future, _) in enumerate(self._waiting):
            if not future.done():
                future.set_exception(self._lost(sent=place < sent))
        self._waiting.clear()
        self._out.clear()

    def _lost(self, *, sent: bool) -> Exception:
        if sent and isinstance(self._why, BackendTimeout):
            late = BackendTimeout(*self._why.args)
            late.__cause__ = self._why.__cause__
            return late
        lost = Lost(f"the connection to {self._place} was lost{f': {self._why}' if self._why else ''}")
        lost.sent = sent
        lost.__cause__ = self._why or ConnectionResetError()
        return lost


class Lines:
    """The connections to one server, in one event loop.

    The first takes the small commands of everybody.  Others, up to ``most``, are opened for large commands, for those
    whose last reply was long, and while a long reply holds the first one up.

    Args:
        connect: opens a connection, whose ``on_long`` is the argument.
        most: connections.
    """

    def __init__(self, connect: Callable[[Callable[[Line], object]], Awaitable[Line]], *, most: int = 4) -> None:
        self._connect: Final = connect
        self._most: Final = most
        self._lines: list[Line] = []
        self._long: Final[dict[bytes, None]] = {}
        """Commands whose last reply was long, the oldest first."""
        self._lone: Line | None = None
        """Beside the others, for long values in pieces, of which one has the line to itself."""
        self._lone_turn: Final = asyncio.Lock()
        self._opening: asyncio.Task[Line] | None = None
        self._gate = Gate()
        """Opened when the line that is being opened is there, or is not to be had."""
        self._newest: Line | None = None
        """The last one that was opened, until it is known whether it was of any use."""
        self._retired: list[Line] = []
        self._retired_at = -_LONGEST_PAUSE
        self._failures = 0
        self._not_before = 0.0
        self._last: BaseException | None = None
        self._tasks: Final[set[asyncio.Task[None]]] = set()
        self._closed = False

    def begin(self, command: bytes, *, again: bool) -> asyncio.Future[Any] | None:
        """Send a command at once, where nothing stands in the way; return its reply, or ``None``: then `call`.

        Whoever gets `Lost` from it asks `call` to go on.
        """
        if self._lines and len(command) < _LARGE and not (self._long and command in self._long):
            return self._lines[0].begin(command, again=again)
        return None

    async def call(self, command: bytes, *, again: bool = False, lost: Lost | None = None) -> Any:
        """Send a command; return its reply, or raise it.

        What was not sent when its connection was lost is sent over another; what was, only if it may be sent ``again``.
        """
        if command in self._long and command.startswith(_GET) and (data := await self._in_pieces(command)) is not None:
            return data
        for _ in range(_ATTEMPTS):
            if lost is not None:
                if lost.sent and not again:
                    raise lost
                again = again and not lost.sent  # once
            line = await self._line(len(command), long=command in self._long)
            try:
                return await line.send(command, again=again)
            except Lost as error:
                lost = error
        raise lost or AssertionError  # for the type checker

    async def _in_pieces(self, command: bytes) -> bytes | None:
        """Return the long reply to a GET; ``None`` if it has to be asked for in one piece."""
        key = command[command.index(b"\r\n", len(_GET)) + 2 : -2]
        async with self._lone_turn:
            try:
                if self._lone is None or self._lone.closed:
                    line = await self._connect(_nothing)
                    if self._closed:
                        line.close()
                        return None
                    self._lone = line
                data = await read_in_pieces(partial(self._lone.send, again=False), key, least=_LONG)
            except BackendTimeout:
                raise
            except Exception:  # noqa: BLE001 - no connection, no permission: the usual way will tell, if it is none
                data = None
        if data is None:
            self._long.pop(command, None)  # the next reply tells
        return data

    async def call_many(self, commands: Sequence[bytes]) -> list[Any]:
        """Send commands one right after the other; return the reply or the error of each."""
        size = sum([len(command) for command in commands])
        line = await self._line(size)
        for _ in range(_ATTEMPTS - 1):
            if line.closed:  # while this one waited for room; nothing was sent
                line = await self._line(size)
        futures = [line.send(command, again=False) for command in commands]
        try:
            await asyncio.wait(futures)
        except asyncio.CancelledError:
            for future in futures:
                future.cancel()
            raise
        return [future.exception() or future.result() for future in futures]

    async def first(self) -> Line:
        """Return the line of the small commands."""
        while True:
            self._lines = [line for line in self._lines if not line.closed]
            if self._lines:
                return self._lines[0]
            await self._open()

    async def _line(self, size: int, *, long: bool = False) -> Line:
        lines = self._lines
        large = long or size >= _LARGE
        if not lines or lines[0].closed or lines[0].busy or large:
            line = await self._other(large=large)
        else:
            line = lines[0]
        if line.crowded:
            await line.room(size)
        return line

    async def _other(self, *, large: bool) -> Line:
        """Return a line that is not busy; for a large command not the first, which is for the small ones."""
        while True:
            self._lines = [line for line in self._lines if not line.closed]
            usable = self._lines[large:]
            free = [line for line in usable if not line.busy and not (large and line.load)]
            if free:
                return free[0]
            if usable and len(self._lines) >= self._most:
                return min(usable, key=lambda line: line.load)
            await self._open()

    async def _open(self) -> None:
        """Open one more line; those who need one at the same time share it."""
        loop = asyncio.get_running_loop()
        if self._closed:
            msg = "the connections were closed while this command was on its way"
            raise BackendUnavailable(msg)
        if self._opening is None:
            self._judge()
            if self._last is not None and loop.time() < self._not_before:
                raise self._last.with_traceback(None)  # it would be the same again, a moment ago as it was
            # Not in the context of whoever asked first, which would live as long as the connection.
            self._opening, self._gate = loop.create_task(self._open_one(), context=Context()), Gate()
            self._opening.add_done_callback(partial(_pass, self._gate))
        await self._gate.wait()

    async def _open_one(self) -> Line:
        try:
            line = await self._connect(self._relieve)
        except Exception as error:
            self._failed(error)
            raise
        finally:
            self._opening = None
        self._newest = line
        self._lines.append(line)
        return line

    def _judge(self) -> None:
        """Count a connection that ended before it gave an answer as a failure to connect."""
        line = self._newest
        if line is None or not (line.answered or line.closed):
            return
        self._newest = None
        if line.answered:
            self._failures, self._last = 0, None
        else:
            # The first may have been chance: the server restarted, or closed what was not used.
            self._failed(Lost("the server ends every connection before it answers"), pause=self._failures > 0)

    def _failed(self, error: BaseException, *, pause: bool = True) -> None:
        self._failures += 1
        self._last = error
        seconds = min(_LONGEST_PAUSE, 0.01 * 2.0**self._failures) * random.uniform(0.5, 1)  # noqa: S311 - jitter
        self._not_before = asyncio.get_running_loop().time() + (seconds if pause else 0)

    def _relieve(self, line: Line) -> None:
        """Find those who are held up behind a long reply another line, and remember what it is the reply to."""
        command = line.under_way
        if command is not None:
            self._long[command] = None
            if len(self._long) > _MOST_REMEMBERED:
                del self._long[next(iter(self._long))]
        task = asyncio.get_running_loop().create_task(self._relieve_by_other(line), context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _relieve_by_other(self, line: Line) -> None:
        try:
            other = await self._other(large=False)
        except Exception:  # noqa: BLE001 - then they wait
            return
        if other is not line and line.busy:
            line.relieve(other, but=self._long)

    def leave(self) -> None:
        """Open others for what comes, which may lead elsewhere; those who wait for a reply still get it.

        At most once a second: where they lead to the same place, each of many callers would have to leave it again.
        """
        now = asyncio.get_running_loop().time()
        if now - self._retired_at < _LONGEST_PAUSE:
            return
        self._retired_at = now
        for line in self._lines:
            line.retire()
        if self._lone is not None:
            self._lone.retire()
            self._retired.append(self._lone)
            self._lone = None
        self._retired = [line for line in (*self._retired, *self._lines) if not line.gone.done()]
        self._lines = []

    async def aclose(self) -> None:
        """Close every connection, and open none any more; those who wait get `BackendUnavailable`."""
        self._closed = True
        tasks = [*self._tasks, *([self._opening] if self._opening is not None else [])]
        for task in tasks:
            task.cancel()
        try:
            if tasks:
                await asyncio.wait(tasks)
        finally:
            lines = [*self._lines, *self._retired, *([self._lone] if self._lone is not None else [])]
            self._lines, self._retired = [], []
            for line in lines:
                line.close()
        if lines:
            await asyncio.wait([line.gone for line in lines], timeout=_LONGEST_PAUSE)


def _nothing(_: object) -> None:
    """Take no notice."""


def _pass(gate: Gate, task: asyncio.Task[Line]) -> None:
    """Let those go on who waited for a connection to be opened."""
    if task.cancelled():
        gate.open(BackendUnavailable("the connection was closed while it was being opened"))
    else:
        gate.open(task.exception())
