"""`Lease`: how one flight, of all processes that miss a value at a time, comes to be the one that loads it.

A lease is a record beside the entry, written by compare-and-set, so every engine that guards fills has leases.  It only
limits load: what keeps an old value from being stored is the guarded fill, whoever holds the lease.  So nothing here is
promised at any price: a holder that does not renew is replaced, and where the far tier cannot say who holds the lease,
each process loads for itself.

Who gives a lease back leaves a mark in its place for the time of a lease::

    W: looks, sees nothing ........................ takes the lease: over the mark, so it looks again before it loads
    H:          stores the value, gives the lease back

Without the mark W would have to look again each time, because it could not tell this from "nobody was here".
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from typing import Final, Literal, TypeAlias

from .clock import Clock, Timer
from .entry import new_token
from .errors import BackendError, CacheClosed
from .loading import Flight
from .notes import Notes
from .remote import Remote

__all__ = ["Lease", "Verdict"]

Verdict: TypeAlias = Literal["load", "look", "wait"]
"""What the flight should do: load; look whether the value is there now, else load; or wait, look and ask again."""

_GIVEN_BACK: Final = b"given back"
_LARGEST_MESSAGE: Final = 64 * 1024
"""Bytes of a stored entry that is sent to those who wait; a longer one they read."""
_FIRST_PAUSE: Final = 0.02
_LONGEST_PAUSE: Final = 0.5
"""Seconds between two looks where no messages come."""
_BETWEEN_MESSAGES: Final = 1.0
"""The same where messages come, for those that were lost."""


class Lease:
    """One flight's claim to a key; give it back in any case.

    Args:
        remote: where the lease is.
        key: the user's.
        turn: returns what to enter for what it does at the far tier, but for `claim`, whose caller has that.
        house: what the flights of one process and namespace have in common.
        ttl: seconds for which others believe in a holder of whom they hear nothing.
        clock: for the renewals and pauses.
        notes: of the failures.
        flight: the one that holds it; told to stop, it renews no more, whether its loader obeys or not.
    """

    def __init__(
        self,
        remote: Remote,
        key: str,
        turn: Callable[[], AbstractAsyncContextManager[object]],
        *,
        house: bytes,
        ttl: float,
        clock: Clock,
        notes: Notes,
        flight: Flight,
    ) -> None:
        self._remote: Final = remote
        self._key: Final = key
        self._turn: Final = turn
        self._ttl: Final = ttl
        self._clock: Final = clock
        self._notes: Final = notes
        self._flight: Final = flight
        self._house: Final = house + os.getpid().to_bytes(8)  # a fork is another process
        self._me: Final = self._house + new_token()
        self._claimed = False
        """Whether the record is ours, or may be."""
        self._told = False
        self._theirs = b""
        self._since = 0.0
        """What the holder wrote last, and when that was seen first."""
        self._timer: Timer | None = None
        self._renewal: asyncio.Task[None] | None = None
        self._pauses = 0
        self._listener: asyncio.Task[None] | None = None
        self._listening = False
        self._news = False
        self._entry: bytes | None = None
        self._waiter: asyncio.Future[None] | None = None

    # Holding --------------------------------------------------------------------------------------------------------

    async def claim(self) -> Verdict:
        """Become the holder, if there is none who is alive.

        Raises:
            BackendError: the far tier did not say.
        """
        record, version = await self._remote.read_lease(self._key)
        # Of one process, one flight of a key is current: if an older one has the lease, nothing comes of its load.
        if record is not None and record != _GIVEN_BACK and not record.startswith(self._house):
            now = self._clock.monotonic()
            if record != self._theirs:
                self._theirs, self._since = record, now
                return "wait"
            # The engine ends a lease that is not renewed; but it may be late, or the record may be nobody's.
            if now - self._since < self._ttl:
                return "wait"
        self._claimed = True  # also when this is cancelled on its way back
        try:
            self._claimed = await self._remote.write_lease(self._key, self._record(), version, ttl=self._ttl)
        except BackendError:
            self._claimed = False  # if it was written, it ends by itself
            raise
        if not self._claimed:
            return "wait"
        self._renew_later()
        return "load" if record is None else "look"

    def _record(self) -> bytes:
        """Return what shows who holds the lease, and that he is alive: no two are alike."""
        return self._me + new_token()

    def _renew_later(self) -> None:
        self._timer = self._clock.call_later(self._ttl / 3, self._begin_renewal)

    def _begin_renewal(self) -> None:
        self._renewal = asyncio.get_running_loop().create_task(self._renew(), name="acache lease renewal")

    async def _renew(self) -> None:
        if self._flight.abandoned:
            return
        try:
            async with self._turn():
                record, version = await self._remote.read_lease(self._key)
                if record is not None and not record.startswith(self._me):
                    return  # we were away for too long, and somebody else loads
                await self._remote.write_lease(self._key, self._record(), version, ttl=self._ttl)
        except BackendError as error:
            self._notes.failure("lease", self._key, error, raised=False)
        except CacheClosed:
            return
        self._renew_later()

    async def hand_over(self, entry: bytes) -> None:
        """Send what was stored to those who wait for it."""
        try:
            async with self._turn():
                await self._remote.publish(self._key, entry if len(entry) <= _LARGEST_MESSAGE else b"")
        except BackendError as error:
            self._notes.failure("lease", self._key, error, raised=False)
        self._told = True

    async def give_back(self) -> None:
        """Stop listening and renewing; let somebody else be the holder, and tell those who wait.

        Where that fails, the lease ends by itself.  A cancellation waits until it is done; a second one does not.
        """
        try:
            await self._give_back()
        except asyncio.CancelledError:
            await self._give_back()
            raise

    async def _give_back(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for task in (self._renewal, self._listener):
            if task is not None and not task.done():
                task.cancel()
                await asyncio.wait([task])
        if not self._claimed:
            return
        try:
            async with self._turn():
                for _ in range(2):  # a renewal that was cancelled just now may have come between
                    record, version = await self._remote.read_lease(self._key)
                    if record is None or not record.startswith(self._me):
                        return
                    if await self._remote.write_lease(self._key, _GIVEN_BACK, version, ttl=self._ttl):
                        break
                if not self._told:
                    await self._remote.publish(self._key, b"")
        except BackendError as error:
            self._notes.failure("lease", self._key, error, raised=False)
        except CacheClosed:
            pass

    # Waiting --------------------------------------------------------------------------------------------------------

    async def wait(self, longest: float) -> bytes | None:
        """Wait until it is time to look again, for ``longest`` seconds at most; return the entry if it was sent.

        Messages shorten the wait, and nothing depends on them: that one is lost, or the connection for them, costs a
        pause.  The pauses are random, so that those who wait do not all come at once.
        """
        if self._listener is None and self._remote.notifies:
            self._listener = asyncio.get_running_loop().create_task(self._listen(), name="acache lease listener")
        if not self._news:
            pause = _BETWEEN_MESSAGES
            if not self._listening:
                pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 1.5**self._pauses)
                self._pauses += 1
            pause = min(pause, self._ttl / 2) * random.uniform(0.75, 1.25)  # noqa: S311 - jitter
            self._waiter = asyncio.get_running_loop().create_future()
            timer = self._clock.call_later(min(pause, longest), self.wake)
            try:
                await self._waiter
            finally:
                timer.cancel()
        entry, self._entry, self._news = self._entry, None, False
        return entry

    def wake(self) -> None:
        """End the wait, if there is one."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _listen(self) -> None:
        with suppress(CacheClosed):
            try:
                async with AsyncExitStack() as stack:
                    async with self._turn():
                        messages = await stack.enter_async_context(self._remote.subscribe(self._key))
                    self._listening = True
                    self._hear(b"")  # what was said before anybody listened
                    async for message in messages:
                        self._hear(message)
            except BackendError as error:
                self._notes.failure("lease", self._key, error, raised=False)
            finally:
                self._listening = False

    def _hear(self, message: bytes) -> None:
        self._news, self._entry = True, message or None
        self.wake()
