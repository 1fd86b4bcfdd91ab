"""Messages: SUBSCRIBE on a connection of its own, which is there only while somebody listens.

Plain pub/sub.  In a cluster every node passes every message on, but later than it tells its own subscribers: who
listens elsewhere would hear what was said before.  So a topic is published and heard at the node that owns its slot,
and while two processes do not agree on which that is, the nodes see to it that nothing is missed.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from contextvars import Context
from functools import partial
from typing import Any, Final

from ...errors import AcacheError, BackendUnavailable
from .transport import Argument, Feed

__all__ = ["Subscriptions"]

_QUIET: Final = 10.0
"""Seconds without a word from the server, after which it is asked for one."""
_MOST_UNREAD: Final = 1000
"""Messages that wait for one subscriber."""
_SHORTEST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 5.0


class Subscriptions:
    """Who listens to what, in one event loop.

    Args:
        server: tells where a topic is heard.
        open_feed: connects to such a server.
    """

    def __init__(self, server: Callable[[bytes], Awaitable[str]], open_feed: Callable[[str], Awaitable[Feed]]) -> None:
        self._server: Final = server
        self._open_feed: Final = open_feed
        self._ears: Final[dict[str, _Ear]] = {}
        self._closed = False

    @asynccontextmanager
    async def subscribe(self, topic: bytes) -> AsyncIterator[AsyncIterator[bytes]]:
        """Do what `Notify.subscribe` promises."""
        server = await self._server(topic)
        if self._closed:
            raise _closed()
        ear = self._ears.get(server)
        if ear is None:
            ear = self._ears[server] = _Ear(partial(self._open_feed, server))
        async with ear.subscribe(topic) as messages:
            yield messages

    async def aclose(self) -> None:
        """End every subscription."""
        self._closed = True
        for ear in self._ears.values():
            await ear.aclose()


class _Ear:
    """Who listens to what at one server; they share a connection."""

    def __init__(self, open_feed: Callable[[], Awaitable[Feed]]) -> None:
        self._open_feed: Final = open_feed
        self._link: _Link | None = None
        self._connecting: Final = asyncio.Lock()
        self._failures = 0
        self._again_at = 0.0
        self._closed = False

    @asynccontextmanager
    async def subscribe(self, topic: bytes) -> AsyncIterator[AsyncIterator[bytes]]:
        """See `Subscriptions.subscribe`."""
        async with self._connecting:  # the first connects for all
            link = await self._linked()
            listener = Listener()
            link.listeners.setdefault(topic, set()).add(listener)
        try:
            await link.ask(topic)
            yield listener
        finally:
            await self._leave(link, topic, listener)

    async def _linked(self) -> _Link:
        if self._closed:
            raise _closed()
        if self._link is not None and self._link.why is None:
            return self._link
        now = asyncio.get_running_loop().time()
        if now < self._again_at:
            msg = "the connection for messages could not be opened a moment ago, and is left alone"
            raise BackendUnavailable(msg)
        try:
            feed = await self._open_feed()
        except AcacheError:
            pause = min(_LONGEST_PAUSE, _SHORTEST_PAUSE * 2.0**self._failures)
            self._again_at = now + pause * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
            self._failures += 1
            raise
        self._failures = 0
        if self._closed:
            await feed.aclose()
            return await self._linked()  # which says so
        self._link = _Link(feed)
        return self._link

    async def _leave(self, link: _Link, topic: bytes, listener: Listener) -> None:
        listeners = link.listeners.get(topic, set())
        listeners.discard(listener)
        if listeners:
            return
        link.listeners.pop(topic, None)
        if link.listeners:
            await link.drop(topic)
        else:
            if self._link is link:
                self._link = None
            await link.aclose()

    async def aclose(self) -> None:
        """See `Subscriptions.aclose`."""
        self._closed = True
        if self._link is not None:
            await self._link.aclose()


def _closed() -> BackendUnavailable:
    return BackendUnavailable("the connections were closed while this subscription was on its way")


class Listener:
    """The messages of one subscription that were not read yet."""

    def __init__(self) -> None:
        self._unread: Final[deque[bytes]] = deque()
        self._why: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while not self._unread:
            if self._why is not None:
                msg = f"the subscription has ended, and messages may have been missed: {self._why}"
                raise BackendUnavailable(msg) from self._why
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._unread.popleft()

    def hear(self, message: bytes) -> None:
        """Take a message."""
        if len(self._unread) >= _MOST_UNREAD:
            self._unread.clear()
            self.end(BackendUnavailable(f"more than {_MOST_UNREAD} messages were not read"))
        if self._why is None:
            self._unread.append(message)
            self._wake()

    def end(self, why: BaseException) -> None:
        """Take note that nothing comes any more."""
        self._why = self._why or why
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class _Link:
    """One connection, its listeners by topic, and the task that reads."""

    def __init__(self, feed: Feed) -> None:
        self._feed: Final = feed
        self.listeners: Final[dict[bytes, set[Listener]]] = {}
        self._asked: Final[Counter[bytes]] = Counter()
        """How many SUBSCRIBEs of a topic were sent and not confirmed.

        Only the last one counts: SUBSCRIBE, UNSUBSCRIBE, SUBSCRIBE are confirmed in this order, and between the first
        two confirmations and the third messages pass by.
        """
        self._confirmed: Final[dict[bytes, asyncio.Future[None]]] = {}
        self.why: AcacheError | None = None
        """Why it has ended."""
        loop = asyncio.get_running_loop()
        self._task: Final = loop.create_task(self._read(), name="acache subscriptions", context=Context())

    async def ask(self, topic: bytes) -> None:
        """Subscribe, unless somebody did; return when the server has confirmed."""
        confirmed = self._confirmed.get(topic)
        if confirmed is None:
            confirmed = self._confirmed[topic] = asyncio.get_running_loop().create_future()
            self._asked[topic] += 1
            await self._send("SUBSCRIBE", topic)
        if self.why is None:
            await asyncio.wait([confirmed])  # not the future itself: it is others' too
        if self.why is not None:
            msg = f"the connection for messages has ended: {self.why}"
            raise type(self.why)(msg) from self.why

    async def drop(self, topic: bytes) -> None:
        """Take a subscription back."""
        if self._confirmed.pop(topic, None) is not None and self.why is None:
            with suppress(AcacheError):
                await self._send("UNSUBSCRIBE", topic)

    async def _send(self, *command: Argument) -> None:
        try:
            await self._feed.send(*command)
        except AcacheError as error:
            self._end(error)
            raise

    async def _read(self) -> None:
        try:
            quiet = False
            while True:
                news = await self._feed.receive(_QUIET)
                if news is not None:
                    quiet = False
                    self._take(news)
                elif quiet:
                    msg = f"no answer for {_QUIET} s"
                    raise BackendUnavailable(msg)
                else:
                    quiet = True
                    await self._feed.send("PING")
        except AcacheError as error:
            self._end(error)
        except asyncio.CancelledError:
            self._end(BackendUnavailable("it was closed"))
            raise
        finally:
            await self._feed.aclose()

    def _take(self, news: Any) -> None:
        match news:
            case [b"message", bytes(topic), bytes(message)]:
                for listener in self.listeners.get(topic, ()):
                    listener.hear(message)
            case [b"subscribe", bytes(topic), _]:
                self._asked[topic] -= 1
                if self._asked[topic] <= 0:
                    del self._asked[topic]
                    confirmed = self._confirmed.get(topic)
                    if confirmed is not None and not confirmed.done():
                        confirmed.set_result(None)
            case _:
                pass  # of UNSUBSCRIBE, of PING

    def _end(self, why: AcacheError) -> None:
        if self.why is None:
            self.why = why
            for listeners in self.listeners.values():
                for listener in listeners:
                    listener.end(why)
            for confirmed in self._confirmed.values():
                if not confirmed.done():
                    confirmed.set_result(None)

    async def aclose(self) -> None:
        """End the task, and with it the connection."""
        self._end(BackendUnavailable("it was closed"))
        self._task.cancel()
        await asyncio.wait([self._task])
