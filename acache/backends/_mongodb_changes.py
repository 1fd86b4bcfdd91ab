"""Changes to a collection, told by the server: one change stream for each `Tracking`.

An event brings no more than the key.  Whatever could hide one ends the stream, and that is a loss; the next check opens
a stream at the newest write that a majority has.  A cursor that is lost is opened again behind what it told last.

Each reply brings a resume token, also the empty one of a stream that waited in vain, and a token begins with a place in
the oplog: the server has gone through everything before it.  So a check asks where the oplog of the primary ends, and
waits until the stream has passed that place.  Nothing is written, and no clock is asked.

A value that is read from the primary after its change was told is the new one.  Read from a secondary it might not be,
so that is refused.  Only what a majority has is told: a new primary may have undone writes that were seen, and nobody
tells of that.  It is another term, which a check takes for a loss.

https://www.mongodb.com/docs/manual/changeStreams/
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from contextvars import Context
from typing import Any, Final, NamedTuple, Protocol, TypeAlias
from weakref import ReferenceType, ref

from ..errors import BackendError, BackendRefused, BackendTimeout, BackendUnavailable
from ..events import logger
from ._mongodb import finished
from .base import Backend, Listener

__all__ = ["AWAITED", "Changes", "Cursor", "Feed", "Newest", "Place", "stages"]

Json = dict[str, Any]
Place: TypeAlias = tuple[int, int]
"""Where a write stands in the oplog: the second, and its number in that second."""

_AFTERWARDS: Final = 0.5
"""Seconds after which a stream that was cancelled counts as lost, if its event loop goes on."""
AWAITED: Final = 0.25
"""Seconds that the server waits for a change before it replies with none, which is how long a check may take."""
_PATIENCE: Final = 2.0
"""Seconds for a reply."""
_BATCH: Final = 1000
"""Events of one reply: they are told in one turn of the loop."""
_TOKEN: Final = re.compile("82([0-9A-F]{8})([0-9A-F]{8})")
"""A timestamp, as MongoDB spells it where bytes have to be in order."""
_ENDINGS: Final = ("drop", "rename", "dropDatabase", "invalidate")


class Newest(NamedTuple):
    """Where the oplog of the primary ends."""

    term: int
    applied: Place
    """The last write."""
    committed: Place
    """The last one that a majority has."""


class Cursor(Protocol):
    """An open change stream."""

    async def more(self) -> Json:
        """Return the next ``cursor`` of a reply, at the latest after `AWAITED`."""
        ...

    async def aclose(self) -> None:
        """Free the server of it."""
        ...


class Feed(Protocol):
    """The server's commands, with acache's errors."""

    async def newest(self) -> Newest:
        """Ask the primary.

        Raises:
            BackendRefused: this is no replica set, or its secondaries are read.
        """
        ...

    async def open(self, prefixes: Collection[str], since: Place | Json, batch: int) -> tuple[Cursor, Json]:
        """Open a stream of what `stages` leaves, from a place on or after a token; return its first token as well."""
        ...


def stages(ranges: Sequence[Json]) -> list[Json]:
    """Return the rest of the pipeline: the keys of changes in these ranges, and that the collection came to an end."""
    return [
        {"$match": {"$or": [*({"documentKey._id": span} for span in ranges), {"operationType": {"$in": _ENDINGS}}]}},
        {"$project": {"documentKey._id": 1}},
    ]


class Changes:
    """What one listener is told; see `Tracking`."""

    def __init__(self, backend: Backend, feed: Feed, listener: Listener) -> None:
        self._backend: Final = backend
        self._feed: Final = feed
        self._listener: Final[ReferenceType[Listener]] = ref(listener)
        self._stream: _Stream | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        """Those of this stream and of the ones before it that are still coming to their ends."""
        self._term: int | None = None

    @property
    def backend(self) -> Backend:
        """See `Tracking.backend`."""
        return self._backend

    async def check(self, prefixes: Sequence[str], /) -> None:
        """See `Tracking.check`: a ``hello``, then up to `AWAITED` where something was written since the last reply."""
        newest = await self._feed.newest()
        if self._term not in (None, newest.term):
            self._lost()
        self._term = newest.term
        stream = self._stream
        if stream is not None and stream.loop is not asyncio.get_running_loop():
            stream.stop()
            self._lost()
            stream = None
        if stream is None or stream.ended:
            since = newest.committed if stream is None or stream.ended_after is None else stream.ended_after
            stream = self._begin(prefixes, since, newest.committed)
            # What was written before this, and after the loss, was never to be told.
            await stream.passed(newest.committed)
            return
        if not stream.prefixes >= _cover({*prefixes, *stream.prefixes}):
            stream.stop()
            stream = self._begin({*prefixes, *stream.prefixes}, stream.since, stream.told)
        await stream.passed(newest.applied)

    async def aclose(self) -> None:
        """End the stream."""
        stream, self._stream, self._term = self._stream, None, None
        if stream is not None:
            stream.stop()
            self._lost()
        loop = asyncio.get_running_loop()
        if ending := [task for task in self._tasks if task.get_loop() is loop]:
            await asyncio.wait(ending)

    def _begin(self, prefixes: Collection[str], since: Place | Json, told: Place) -> _Stream:
        stream = self._stream = _Stream(self._feed, _cover(prefixes), since, told, self._tell, self._lost)
        self._tasks = {stream.task, *(task for task in self._tasks if not task.done())}
        return stream

    def _tell(self, keys: Sequence[str]) -> bool:
        """Tell of changes, and return whether there is still somebody to tell."""
        listener = self._listener()
        if listener is None:
            return False
        if keys:
            try:
                listener.changed(keys)
            except Exception:  # noqa: BLE001 - it must not take the stream along
                logger.exception("a listener raised; %d keys had changed", len(keys))
        return True

    def _lost(self) -> None:
        if (listener := self._listener()) is not None:
            listener.lost()


class _Stream:
    """One change stream, through all the cursors that it takes.

    Args:
        since: where it begins: at a place, or after a token.
        told: the place up to which there is nothing to tell.
    """

    def __init__(
        self,
        feed: Feed,
        prefixes: frozenset[str],
        since: Place | Json,
        told: Place,
        tell: Callable[[Sequence[str]], bool],
        lost: Callable[[], object],
    ) -> None:
        self.prefixes: Final = prefixes
        self.loop: Final = asyncio.get_running_loop()
        self.since = since
        """Where another one has to begin that goes on in the place of this one."""
        self.told = told
        self.ended = False
        self.ended_after: Json | None = None
        """The token of the event with which the server ended it: a stream cannot begin before that one."""
        self._feed: Final = feed
        self._tell: Final = tell
        self._lost: Final = lost
        self._token: Json | None = None
        self._cursor: Cursor | None = None
        self._open = False
        self._failure: BackendError = BackendUnavailable("the change stream was closed")
        self._news = asyncio.Event()
        self.task: Final = self.loop.create_task(self._run(), name="acache change stream", context=Context())

    async def passed(self, place: Place) -> None:
        """Wait until it is open, and everything up to ``place`` has been told.

        Raises:
            BackendError: it has ended.
        """
        while not self.ended:
            if self._open and self.told >= place:
                return
            await self._news.wait()
        raise type(self._failure)(*self._failure.args) from self._failure

    def stop(self) -> None:
        """End it.  It tells nothing any more, not even that it has ended."""
        if self.ended or self.loop.is_closed():
            return
        self.ended = True
        if self.loop is asyncio.get_running_loop():
            self._wake()
            self.task.cancel()
        else:
            self.loop.call_soon_threadsafe(self._wake)
            self.loop.call_soon_threadsafe(self.task.cancel)

    async def _run(self) -> None:
        try:
            await self._follow()
        except BackendError as error:
            self._failure = error
        except asyncio.CancelledError:
            if not self.ended:
                # By nobody here, so the event loop ends, most likely: what is begun now never comes to an end.
                self.ended, self._cursor = True, None
                self.loop.call_later(_AFTERWARDS, self._lost)
            raise
        finally:
            if not self.ended:
                self.ended = True
                self._lost()
            self._wake()
            if self._cursor is not None:
                await finished(self._close(self._cursor))

    async def _follow(self) -> None:
        replied = False
        await self._connect(self.since)
        while not self.ended:
            try:
                reply = await self._more()
            except BackendError:
                if not replied:
                    raise
                replied = False
                await self._connect(self._token)
                continue
            replied = True
            events, self._token = reply["nextBatch"], reply["postBatchResumeToken"]
            if not self._tell([event["documentKey"]["_id"] for event in events if "documentKey" in event]):
                return
            if not reply["id"]:
                self.ended_after = events[-1]["_id"] if events else None
                msg = "the collection was dropped or renamed, and its change stream ended"
                raise BackendUnavailable(msg)
            self._advance(partial=bool(events) and events[-1]["_id"] == self._token)

    def _advance(self, *, partial: bool) -> None:
        """Take note of how far a reply goes; one that ends with an event may stop in the midst of a transaction."""
        self.since = second, number = _place(self._token)
        self.told = max(self.told, (second, number - partial))
        self._wake()

    async def _more(self) -> Json:
        assert self._cursor is not None  # noqa: S101 - connected
        async with _in_time():
            return await self._cursor.more()

    async def _connect(self, since: Any) -> None:
        await finished(self._change_cursor(since))  # whose cursor must be known here to be closed
        if not self._open:
            _place(self._token)
            self._open = True
            self._wake()

    async def _change_cursor(self, since: Place | Json) -> None:
        old = self._cursor
        async with _in_time():
            self._cursor, self._token = await self._feed.open(self.prefixes, since, _BATCH)
        await self._close(old)

    async def _close(self, cursor: Cursor | None) -> None:
        if cursor is not None:
            with suppress(BackendError):  # it is gone, or ends by itself
                async with _in_time():
                    await cursor.aclose()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


@asynccontextmanager
async def _in_time() -> AsyncIterator[None]:
    """Wait for a reply no longer than a channel would wait for a check: somebody else's client may have no deadline."""
    try:
        async with asyncio.timeout(_PATIENCE):
            yield
    except BackendError:
        raise
    except TimeoutError as error:
        msg = f"MongoDB did not reply about changes within {_PATIENCE:.0f} s"
        raise BackendTimeout(msg) from error


def _cover(prefixes: Collection[str]) -> frozenset[str]:
    """Leave out what begins with another one."""
    kept: list[str] = []
    for prefix in sorted(prefixes):  # what begins with one comes right after it
        if not kept or not prefix.startswith(kept[-1]):
            kept.append(prefix)
    return frozenset(kept)


def _place(token: Json | None) -> Place:
    """Return the place in the oplog with which a token begins.

    Raises:
        BackendRefused: it has another form than that of MongoDB.
    """
    found = _TOKEN.match(str((token or {}).get("_data")))
    if found is None:
        msg = f"this server's resume tokens do not tell how far a change stream has come: {token!r}"
        raise BackendRefused(msg)
    return int(found[1], 16), int(found[2], 16)
