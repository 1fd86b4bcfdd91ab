"""`Replay`: changes that the far tier did not confirm, kept until it does.

What is sent late must not undo what others wrote in the meantime, and no clock tells which of two processes came first.
So a kept change only ever takes away: a delete is sent again as it is, and a write as the removal of whatever older
value is still there.  The value itself is stored only where a load that began at the time of the write could store its
own (`Remote.settle`).  Sent twice, or in another order, the outcome is the same or a miss.

Until a change has arrived, this process does not trust what the far tier says of its key, its tag or its namespace.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from contextvars import Context
from typing import Final, Literal, TypeAlias

from .clock import Clock, Timer
from .entry import Envelope
from .errors import BackendError, BackendUnavailable, CacheClosed
from .events import Counters, KeptForReplay, Observer, Operation, ReplayDropped, Replayed, emit, logger

__all__ = ["MAX_BYTES", "MAX_CHANGES", "Replay"]

MAX_CHANGES: Final = 10_000
"""Changes that are kept at most."""
MAX_BYTES: Final = 16 * 2**20
"""Bytes of the values among them."""
_CONCURRENT: Final = 32
_SHORTEST_PAUSE: Final = 0.25
_LONGEST_PAUSE: Final = 30.0
_DOUBLINGS: Final = 7

Slot: TypeAlias = tuple[str, Literal["key", "tag", "clear"], str]
"""What a change is about: namespace, kind, name.  There is one change for each: the latest."""
Send: TypeAlias = Callable[[Envelope | None, float], Awaitable[object]]
"""Tells the far tier; gets the value, if there still is one, and when it was written (monotonic)."""


class _Change:
    """Something the far tier has to learn of."""

    __slots__ = ("envelope", "operation", "send", "since", "tries")

    def __init__(self, operation: Operation, send: Send, envelope: Envelope | None, since: float) -> None:
        self.operation: Final = operation
        self.send: Final = send
        self.envelope = envelope
        """The value of a write; ``None`` when only the removal of the older one is left of it."""
        self.since: Final = since
        self.tries = 0

    @property
    def size(self) -> int:
        return 0 if self.envelope is None else len(self.envelope.payload)


class Replay:
    """The changes that one cache and its views keep, and what sends them again.

    Bounded.  Too many bytes: the oldest values go, and their writes stay as removals.  Too many changes: the oldest
    writes go; when there are none, the new change is not kept.  Whatever goes is counted, logged and an event.
    """

    def __init__(
        self,
        clock: Clock,
        counters: Counters,
        observers: Sequence[Observer],
        *,
        max_changes: int = MAX_CHANGES,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._clock: Final = clock
        self._counters: Final = counters
        self._observers: Final = observers
        self._max_changes: Final = max_changes
        self._max_bytes: Final = max_bytes
        self._removals: Final[dict[Slot, _Change]] = {}
        self._writes: Final[dict[Slot, _Change]] = {}
        """Those that still have their value."""
        self._bytes = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: Timer | None = None
        self._task: asyncio.Task[None] | None = None
        self._futile = 0
        """Rounds in a row in which nothing arrived."""
        self._closing = False
        self._told_full = False

    def __len__(self) -> int:
        return len(self._removals) + len(self._writes)

    @property
    def bytes(self) -> int:
        """The size of the values that are kept."""
        return self._bytes

    # Keeping --------------------------------------------------------------------------------------------------------

    def keep(self, slot: Slot, operation: Operation, send: Send, envelope: Envelope | None = None) -> None:
        """Keep a change that the far tier did not confirm, in place of an older one of the same key or tag."""
        self._counters.replay_kept += 1
        self._replace(slot)
        if slot[1] == "clear":
            self.forget_all(slot[0])  # it removes what they would have removed
        if envelope is not None and len(envelope.payload) > self._max_bytes:
            envelope = None
        change = _Change(operation, send, envelope, self._clock.monotonic())
        if len(self) >= self._max_changes and not self._make_room():
            self._dropped(slot, change, "full")
            return
        self._put(slot, change)
        while self._bytes > self._max_bytes:
            oldest, stripped = next(iter(self._writes.items()))
            self._forget(oldest)
            stripped.envelope = None
            self._put(oldest, stripped)
        if self._observers:
            emit(self._observers, KeptForReplay(operation=operation, **_names(slot)))
        self._arm()

    def forget(self, slots: Iterable[Slot]) -> None:
        """Drop what the far tier need not be told any more: something newer was confirmed."""
        for slot in slots:
            self._replace(slot)

    def forget_all(self, namespace: str) -> None:
        """Drop everything of a namespace that was cleared."""
        for slot in [slot for slot in (*self._removals, *self._writes) if slot[0] == namespace]:
            self._replace(slot)

    def _put(self, slot: Slot, change: _Change) -> None:
        (self._removals if change.envelope is None else self._writes)[slot] = change
        self._bytes += change.size

    def _forget(self, slot: Slot) -> bool:
        change = self._removals.pop(slot, None) or self._writes.pop(slot, None)
        if change is not None:
            self._bytes -= change.size
        return change is not None

    def _replace(self, slot: Slot) -> None:
        """Let a change go whose place something newer has taken."""
        self._counters.replay_replaced += self._forget(slot)

    def _make_room(self) -> bool:
        """Let the oldest write go; an invalidation is not given up for anything."""
        for oldest, change in self._writes.items():
            self._forget(oldest)
            self._dropped(oldest, change, "full")
            return True
        return False

    def _dropped(self, slot: Slot, change: _Change, reason: Literal["full", "failed", "closed"]) -> None:
        self._counters.replay_dropped += 1
        if reason == "full" and not self._told_full:
            self._told_full = True  # once for each outage: there may be thousands a second
            logger.warning(
                "%d changes wait for the far tier, and no more are kept: what is dropped from now on may leave an old"
                " value there until its ttl ends",
                len(self),
            )
        if self._observers:
            emit(self._observers, ReplayDropped(operation=change.operation, reason=reason, **_names(slot)))

    # What a reader must not trust -----------------------------------------------------------------------------------

    def holds(self, namespace: str, key: str) -> bool:
        """Tell whether the far tier has not yet learnt of a change of ``key``."""
        slot: Slot = (namespace, "key", key)
        return slot in self._removals or slot in self._writes or (namespace, "clear", "") in self._removals

    def refusal(self, namespace: str, key: str) -> BackendUnavailable:
        """Say why what the far tier holds under ``key`` is not read, and see that it changes."""
        self._arm()
        return BackendUnavailable(
            f"the far tier has not confirmed a change of {key!r} (namespace {namespace!r}): what it has may be old"
        )

    def check_tags(self, namespace: str, tags: Iterable[str]) -> None:
        """Refuse to trust what the far tier says of tags.

        Raises:
            BackendUnavailable: it has not yet learnt that one of them was invalidated.
        """
        for tag in tags:
            if (namespace, "tag", tag) in self._removals or (namespace, "clear", "") in self._removals:
                self._arm()
                msg = f"the far tier has not confirmed an invalidation of the tag {tag!r} yet"
                raise BackendUnavailable(msg)

    # Sending --------------------------------------------------------------------------------------------------------

    def recovered(self) -> None:
        """Send everything now: the far tier answers again."""
        self._futile = 0
        if self and not self._closing:
            self._arm(at_once=True)

    def _arm(self, *, at_once: bool = False) -> None:
        """See that somebody sends what is kept, a while from now."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # the one that it was left to may have ended
            self._loop, self._timer, self._task = loop, None, None
        if self._closing or (self._task is not None and not self._task.done()):
            return
        if at_once:
            self._start()
        elif self._timer is None:
            pause = min(_LONGEST_PAUSE, _SHORTEST_PAUSE * 2.0 ** min(self._futile, _DOUBLINGS))
            self._timer = self._clock.call_later(pause * random.uniform(0.75, 1.0), self._start)  # noqa: S311 - jitter

    def _start(self) -> None:
        self._disarm()
        if self and not self._closing:
            self._task = asyncio.get_running_loop().create_task(self._drain(), name="acache-replay", context=Context())

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _drain(self) -> None:
        sent = await self._round()
        self._futile = 0 if sent else self._futile + 1
        if not self:
            self._told_full = False
        elif not self._closing:
            self._task = None  # this one is as good as done
            self._arm()

    async def _round(self) -> int:
        """Send each change once; tell how many arrived.  Ends early where the far tier seems to be away."""
        # What has failed most often goes last: if it fails for ever, it must not keep the others waiting.
        waiting = sorted((*self._removals.items(), *self._writes.items()), key=lambda item: item[1].tries)
        size, sent = 1, 0  # the first one alone: it may be all that the breaker lets through
        while waiting:
            some, waiting = waiting[:size], waiting[size:]
            arrived = sum(await asyncio.gather(*[self._send(slot, change) for slot, change in some]))
            if not arrived:
                break
            size, sent = _CONCURRENT, sent + arrived
        return sent

    async def _send(self, slot: Slot, change: _Change) -> bool:
        """Send one change; tell whether it arrived, or was overtaken meanwhile."""
        if not self._is_kept(slot, change):
            return True
        try:
            await change.send(change.envelope, change.since)
        except (BackendError, CacheClosed):
            change.tries += 1
            return False
        except Exception:  # noqa: BLE001 - an engine's own mistake must not stop the others
            logger.exception("the replay of %s of %r failed for good", change.operation, slot[2])
            if self._is_kept(slot, change):
                self._forget(slot)
                self._dropped(slot, change, "failed")
            return False
        if self._is_kept(slot, change):  # else it gave its place to a newer one on its way
            self._forget(slot)
            self._counters.replayed += 1
            if self._observers:
                emit(self._observers, Replayed(operation=change.operation, **_names(slot)))
        return True

    def _is_kept(self, slot: Slot, change: _Change) -> bool:
        return (self._removals.get(slot) or self._writes.get(slot)) is change

    # Closing --------------------------------------------------------------------------------------------------------

    def reopen(self) -> None:
        """Keep again, after `aclose`."""
        self._closing = False

    async def aclose(self, grace: float) -> None:
        """Try once more, for ``grace`` seconds at most, and drop the rest."""
        self._closing = True
        self._disarm()
        task, self._task = self._task, None
        if task is not None and not task.done() and task.get_loop() is asyncio.get_running_loop():
            task.cancel()
            await asyncio.wait([task])
        if not self:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self._round()
        if self:
            logger.warning(
                "closed before the far tier confirmed %d changes, of them %d removals: old values may stay there until"
                " their ttl ends",
                len(self),
                len(self._removals),
            )
        for kept in (self._removals, self._writes):
            for slot, change in list(kept.items()):
                self._forget(slot)
                self._dropped(slot, change, "closed")


def _names(slot: Slot) -> dict[str, str]:
    namespace, kind, name = slot
    return {"namespace": namespace, "key": name if kind == "key" else "", "tag": name if kind == "tag" else ""}
