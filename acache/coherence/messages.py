"""Changes told by those who make them, for a far tier that tells of none but passes messages on (`Notify`).

    A: set(k) ..... the far tier confirms ..... publishes "k has changed" ..... set() returns
    B: a mark is opened, k is read, its old value is kept     `-> the near copy goes, the marks of k break

A value that is read while its message is on its way is not kept.  Its reader opened a mark before he asked.  If the
far tier answered with the old value, the change was made after that, and its message comes later still: while the mark
is open, and breaks it, or afterwards, and finds the copy.

Messages are about the changes of other caches only.  Of what ends by itself, of what other programs write, of messages
that were lost, and of changes whose outcome their makers do not know, nobody tells.  So a near copy is bounded by time
as if there were no messages.

A message is a version byte, and by MessagePack the id of its sender and what changed: wire keys without their
namespace, or nil for everything.  One without keys is a hello: it tells its sender that his messages come back to him.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from contextvars import Context
from functools import cache
from typing import Final, Literal, Protocol, TypeAlias
from weakref import ref

from ..backends.base import Notify
from ..backends.gate import Gate
from ..clock import Clock, Timer
from ..entry import new_token
from ..errors import BackendError, BackendRefused, BackendTimeout, BackendUnavailable
from ..events import logger
from ..keys import topic_of_changes

__all__ = ["Ear", "Hearer", "Messages", "cancel", "read", "write"]

_VERSION: Final = b"\x01"
_MOST_KEYS: Final = 500
_MOST_BYTES: Final = 65_536
"""What would name more than that says "everything"."""
_WITHIN: Final = 3.0
"""Seconds for a hello to come back, and for a message to leave."""
_SHORTEST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 5.0
_DOUBLINGS: Final = 10

EarState: TypeAlias = Literal["opening", "armed", "lost", "refused", "ended"]


@cache
def _coder() -> tuple[Callable[[object], bytes], Callable[[memoryview], tuple[bytes, list[str] | None]]]:
    from msgspec import msgpack  # noqa: PLC0415 - most caches send no messages, and this takes a while

    return msgpack.Encoder().encode, msgpack.Decoder(tuple[bytes, list[str] | None]).decode


def write(sender: bytes, keys: Collection[str] | None) -> bytes:
    """Return the message that ``keys`` have changed; ``None``: everything; none at all: a hello."""
    encode, _ = _coder()
    if keys is not None and len(keys) <= _MOST_KEYS:
        message = _VERSION + encode((sender, list(keys)))
        if len(message) <= _MOST_BYTES:
            return message
    return _VERSION + encode((sender, None))


def read(message: bytes) -> tuple[bytes, Sequence[str] | None] | None:
    """Return the sender of a message and what changed; ``None`` if it is none of ours."""
    if not message.startswith(_VERSION) or len(message) > _MOST_BYTES:
        return None
    _, decode = _coder()
    try:
        sender, keys = decode(memoryview(message)[1:])
    except (ValueError, RecursionError):  # msgspec's errors are of the first kind
        return None
    return (sender, keys) if keys is None or len(keys) <= _MOST_KEYS else None


def cancel(task: asyncio.Task[None]) -> None:
    """Cancel a task, of whatever loop; that of a loop that was closed is as good as ended."""
    loop = task.get_loop()
    if not loop.is_closed():
        loop.call_soon_threadsafe(task.cancel)


class Hearer(Protocol):
    """One namespace's part of what is kept here."""

    def changed(self, wires: Sequence[str] | None) -> object:
        """Forget what these keys stand for; ``None``: everything."""
        ...

    def distrust(self) -> object:
        """Keep what is being read out of the near tier, and what is there only for those who take a stale value."""
        ...

    def drop(self) -> object:
        """Empty the near tier, and keep what is being read out of it."""
        ...


class Door(Protocol):
    """Leaves those alone who do not answer."""

    def check(self) -> None:
        """Let one through, or raise `BackendUnavailable`."""
        ...

    def succeeded(self) -> None:
        """Note an answer."""
        ...

    def failed(self, error: BaseException) -> None:
        """Note a failure."""
        ...

    def abandoned(self) -> None:
        """Note that nobody waited for the end."""
        ...


class Ear:
    """Who listens to one namespace, in one task: subscribes, says hello, and hears until the connection is lost.

    What may have been missed meanwhile is unknown, so the near tier is emptied when a hello has come back; and at the
    loss, unless somebody may need a stale value: time bounds near copies in any case.
    """

    def __init__(self, notify: Notify, clock: Clock, sender: bytes, prefix: str, hearer: Hearer) -> None:
        self._notify: Final = notify
        self._clock: Final = clock
        self._sender: Final = sender
        self._prefix: Final = prefix
        self._hearer: Final = hearer
        self._failures = 0
        self._timer: Timer | None = None
        self.task: asyncio.Task[None] | None = None
        self.tried = Gate()
        """Opened when the first attempt has ended, however it ended."""
        self.state: EarState = "opening"
        self.why: BackendError | None = None
        """Why it is lost or refused."""
        self.on_change: Callable[[], object] = _nothing

    def open(self) -> None:
        """Subscribe, in the running loop."""
        self._timer = None
        # The loop knows the task, and the task must not know the ear: a cache that nobody holds any more would live as
        # long as its subscription.
        listening = _listen(ref(self), self._notify, topic_of_changes(self._prefix), write(self._sender, ()))
        self.task = asyncio.get_running_loop().create_task(listening, name="acache messages", context=Context())

    def ask_again(self) -> None:
        """Open it again if it was refused."""
        if self.state == "refused" and self.task is None:
            self.state, self.tried = "opening", Gate()
            self.open()

    def close(self) -> asyncio.Task[None] | None:
        """End it; return the task that may have to be waited for."""
        task, self.task = self.task, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if task is not None:
            cancel(task)
        self.tried.open()
        return task

    def __del__(self) -> None:
        self.close()

    def greeted(self) -> None:
        """Take note that a hello has come back: what others send now is heard."""
        self._failures = 0
        if self.state != "armed":
            self._hearer.drop()
            self._become("armed", None)

    def hear(self, message: bytes) -> None:
        """Take a message of somebody's."""
        news = read(message)
        if news is None or news[0] == self._sender:
            return
        keys = news[1]
        if keys is None:
            self._hearer.changed(None)
        elif keys:
            self._hearer.changed([f"{self._prefix}{key}" for key in keys])

    def ended(self, error: BackendError) -> None:
        """Take note that nothing is heard any more."""
        self.task = None
        if isinstance(error, BackendRefused):
            self.refused(error)
            return
        self._failures += 1
        pause = min(_LONGEST_PAUSE, _SHORTEST_PAUSE * 2.0 ** min(self._failures, _DOUBLINGS))
        me = ref(self)

        def again() -> None:
            if (ear := me()) is not None and ear._timer is timer:  # noqa: SLF001 - its own class
                ear.open()

        timer = self._timer = self._clock.call_later(pause * random.uniform(0.5, 1.0), again)  # noqa: S311 - jitter
        if self.state == "armed":
            self._hearer.distrust()
        self._become("lost", error)

    def cancelled(self) -> None:
        """Take note that the event loop ends: in another one, somebody has to open it again."""
        self.task = None
        self._become("ended", None)

    def refused(self, error: BackendError) -> None:
        """Take note that no message passes; until somebody asks again."""
        self.close()
        self._become("refused", error)

    def _become(self, state: EarState, why: BackendError | None) -> None:
        changed, self.state, self.why = state != self.state, state, why
        self.tried.open()
        if changed:
            self.on_change()


async def _listen(me: ref[Ear], notify: Notify, topic: str, hello: bytes) -> None:
    error: BackendError = BackendUnavailable("the subscription has ended")
    try:
        async with asyncio.timeout(_WITHIN) as patience, notify.subscribe(topic) as messages:
            # It comes back after everything that was sent until now, and shows that messages pass at all.
            await notify.publish(topic, hello)
            async for message in messages:
                if (ear := me()) is None:
                    return
                if message == hello:
                    patience.reschedule(None)
                    ear.greeted()
                else:
                    ear.hear(message)
                del ear
    except BackendError as failure:
        error = failure
    except TimeoutError:
        error = BackendTimeout(f"no message came back within {_WITHIN} s")
    except asyncio.CancelledError:
        if (ear := me()) is not None and ear.task is asyncio.current_task():  # not by `close`
            ear.cancelled()
        raise
    except Exception as bug:  # noqa: BLE001 - an engine's own mistake must not leave an ear that only seems to hear
        logger.exception("the subscription to %s failed", topic)
        error = BackendUnavailable(repr(bug))
    ear = me()
    if ear is not None and ear.task is asyncio.current_task():
        ear.ended(error)


class _Batch:
    """What the next message says."""

    __slots__ = ("keys", "left")

    def __init__(self) -> None:
        self.keys: set[str] | None = set()
        """``None``: everything."""
        self.left: Final = Gate()
        """Opened when it has left, or will not leave."""

    def add(self, keys: Collection[str] | None) -> None:
        """Say that these keys have changed, too."""
        if keys is None:
            self.keys = None
        elif self.keys is not None:
            self.keys.update(keys)
            if len(self.keys) > _MOST_KEYS:
                self.keys = None


class Messages:
    """What one cache tells the others, and hears from them.

    Args:
        notify: the far tier.
        clock: for the pauses between attempts to subscribe.
        door: for messages alone: that they do not leave is no reason to leave the far tier's entries alone.
        failed: called with the namespace and the error when a message has not left.
    """

    def __init__(self, notify: Notify, clock: Clock, door: Door, failed: Callable[[str, BackendError], object]) -> None:
        self._notify: Final = notify
        self._clock: Final = clock
        self._door: Final = door
        self._failed: Final = failed
        self._sender: Final = new_token()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._next: dict[str, _Batch] = {}
        """By prefix, what is not on its way yet."""
        self._leaving: dict[str, asyncio.Task[None]] = {}
        """Who sends it, in that loop."""
        self.ears: Final[dict[str, Ear]] = {}
        self.closed = False

    # Hearing --------------------------------------------------------------------------------------------------------

    async def listen(self, hearers: Mapping[str, Hearer], on_change: Callable[[], object]) -> None:
        """Listen for the namespaces with these prefixes; return when each has been tried."""
        for prefix, hearer in hearers.items():
            if (ear := self.ears.get(prefix)) is None:
                ear = self.ears[prefix] = Ear(self._notify, self._clock, self._sender, prefix, hearer)
                ear.on_change = on_change
                ear.open()
            else:
                ear.ask_again()
        for ear in tuple(self.ears.values()):
            await ear.tried.wait()

    def forget(self, prefix: str) -> None:
        """Hear of this namespace no more."""
        if (ear := self.ears.pop(prefix, None)) is not None:
            ear.close()
        if (task := self._leaving.get(prefix)) is not None and task.done():
            del self._leaving[prefix]

    def stop_listening(self) -> list[asyncio.Task[None]]:
        """Hear nothing any more; return the tasks that may have to be waited for."""
        tasks = [ear.close() for ear in self.ears.values()]
        self.ears.clear()
        return [task for task in tasks if task is not None]

    # Telling --------------------------------------------------------------------------------------------------------

    async def tell(self, prefix: str, wires: Collection[str] | None, patience: float) -> None:
        """Tell of changed keys, for ``patience`` seconds at most; that it fails is nobody's failure but the message's.

        One message of a namespace is on its way at a time.  What changes meanwhile leaves together in the next one, so
        a burst of writes is no burst of messages.  A caller who is cancelled does not keep it from leaving: his change
        was confirmed.
        """
        ear = self.ears.get(prefix)
        if self.closed or (ear is not None and ear.state == "refused"):
            return
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._next, self._leaving = loop, {}, {}
        batch = self._next.get(prefix)
        if batch is None:
            batch = self._next[prefix] = _Batch()
        batch.add(None if wires is None else [wire[len(prefix) :] for wire in wires])
        if (task := self._leaving.get(prefix)) is None or task.done():
            # What its caller has in his context is not to live as long as the namespace.
            self._leaving[prefix] = loop.create_task(self._send(prefix), name="acache message", context=Context())
        await batch.left.wait(patience)

    async def _send(self, prefix: str) -> None:
        waiting = self._next
        while (batch := waiting.pop(prefix, None)) is not None:
            try:
                await self._publish(prefix, write(self._sender, batch.keys))
            finally:
                batch.left.open()

    async def _publish(self, prefix: str, message: bytes) -> None:
        door = self._door
        error: BackendError
        try:
            door.check()
        except BackendError as closed:
            self._failed(prefix[:-2], closed)
            return
        try:
            async with asyncio.timeout(_WITHIN):
                await self._notify.publish(topic_of_changes(prefix), message)
        except BackendError as failure:
            error = failure
        except TimeoutError:
            error = BackendTimeout(f"a message did not leave within {_WITHIN} s")
        except Exception as bug:  # noqa: BLE001 - an engine's own mistake, and no caller's
            logger.exception("a message to %s failed", topic_of_changes(prefix))
            error = BackendUnavailable(repr(bug))
        except BaseException:
            door.abandoned()
            raise
        else:
            door.succeeded()
            return
        door.failed(error)
        self._failed(prefix[:-2], error)
        if isinstance(error, BackendRefused) and (ear := self.ears.get(prefix)) is not None:
            ear.refused(error)

    async def aclose(self, grace: float) -> None:
        """Let nothing leave any more; wait for what is on its way, and after ``grace`` seconds end it."""
        self.closed = True
        if self._leaving and self._loop is asyncio.get_running_loop():
            _, late = await asyncio.wait(self._leaving.values(), timeout=grace)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)


def _nothing() -> None:
    """Tell nobody."""
