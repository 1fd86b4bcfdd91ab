"""`Channel`: how near tiers come to know what others change in the far tier, and for how long they may be trusted.

    untrusted -- a check returns: what is near is dropped, then trusted ---> trusted until 3 s after that check began
        ^                                                                        |            ^
        |  lost: what is near answers no more, at once                           |            |  each second a check
        +------------------------------------------------------------------------+------------+

    untrusted -- a check is refused: what is near is dropped ---> trusted by time; told by messages, where they pass

Untrusted, the near tier answers nothing and takes nothing in; what it held before is left to those who take a stale
value rather than an error.  The bound is looked at on every hit, so it holds also for a process that was stopped, and
for a loop that was blocked and has not yet run the heartbeat that is due.  Trust that ran out while nothing was lost
comes back with the next check: until that returned, every change has been told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextvars import Context
from typing import Final, Literal, Protocol, TypeAlias
from weakref import ref

from ..backends.base import Backend, Track
from ..backends.gate import Gate
from ..clock import FOREVER, Clock, Timer
from ..errors import BackendError, BackendRefused, BackendTimeout
from ..events import ToldBy
from .messages import Hearer, Messages, cancel

__all__ = ["HEARTBEAT", "TRUST", "Channel", "ChannelState", "Member", "Trust"]

HEARTBEAT: Final = 1.0
"""Seconds from one check to the next."""
TRUST: Final = 3.0
"""Seconds from the beginning of a check for which the near tier is trusted."""
_SOON: Final = 0.05
"""Seconds until a check that failed is tried again; doubled each time, up to a heartbeat."""
_REFUSED_FOR: Final = 60.0
"""Seconds until a far tier that refused is asked again."""
_ATTEMPTS: Final = 5
"""Checks in a row that may be overtaken by a loss before there is a pause."""

ChannelState: TypeAlias = Literal["closed", "opening", "armed", "lost", "refused"]


class Trust:
    """Until when the near tier of one namespace may answer; and how long it may keep an entry meanwhile.

    Args:
        longest: seconds for which a near copy is kept where nobody tells of changes.
    """

    __slots__ = ("longest", "until")

    def __init__(self, longest: float) -> None:
        self.until = FOREVER
        """Monotonic."""
        self.longest = longest


class Member(Hearer, Protocol):
    """One namespace's part of what is kept here."""

    @property
    def trust(self) -> Trust:
        """Set by the channel."""
        ...


class Channel:
    """What one cache hears of others' changes.

    Args:
        track: the far tier; ``None``: it is not asked to tell.
        clock: for the heartbeat and the bound.
        unbounded: seconds for which a near copy may live while changes are told.
        bounded: seconds for which a near copy may live where the far tier refuses to tell.
        insist: such a refusal is an error, for everybody who needs the far tier.
        tell: called with each new state, by whom changes are told in it, and its reason.
    """

    def __init__(
        self,
        track: Track | None,
        clock: Clock,
        *,
        unbounded: float,
        bounded: float,
        insist: bool,
        tell: Callable[[ChannelState, ToldBy | None, Exception | None], object],
    ) -> None:
        self._tracking: Final = None if track is None else track.track(self)
        self._clock: Final = clock
        self._unbounded: Final = unbounded
        self._bounded: Final = bounded
        self._insist: Final = insist
        self._tell: Final = tell
        self._members: Final[dict[str, Member]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._checking: asyncio.Task[None] | None = None
        self._timer: Timer | None = None
        self._first: Gate | None = None
        """Opened when the first check of this loop, or of the latest member, has ended, however it ended."""
        self._awaited = False
        """Whether there is a member that no check has asked for yet."""
        self._losses = 0
        self._failures = 0
        self._refusal: BackendRefused | None = None
        self.state: ChannelState = "closed"
        self.by: ToldBy | None = None
        """By whom changes are told, when it is armed or lost; after its end, by whom they were."""
        self.messages: Messages | None = None
        """What is left where the far tier refuses to tell."""

    @property
    def backend(self) -> Backend | None:
        """The far tier, for those whose writes this channel need not hear of; ``None``: it hears of none of theirs."""
        return None if self._tracking is None else self._tracking.backend

    @property
    def tracks(self) -> bool:
        """Whether the far tier tells of changes."""
        return self.by == "tracking"

    def add(self, prefix: str, member: Member) -> None:
        """Let a namespace take part: the keys that begin with ``prefix``, and no key of another member does."""
        self._members[prefix] = member
        self._awaited = True
        if self.state == "refused" and not self._insist and self.messages is None:
            self._trust_by_time(member)
        else:
            self._distrust(member)

    def remove(self, prefix: str) -> None:
        """Let a namespace take part no more.  Its changes are told until the channel is opened anew, and to nobody."""
        del self._members[prefix]
        if self.messages is not None:
            self.messages.forget(prefix)

    async def wake(self, patience: float) -> None:
        """Open the channel if it is not open in this loop; wait for its first attempt, up to ``patience`` seconds.

        For those whom an untrusted near tier cannot answer, before they ask the far tier.  Later attempts, those after
        a loss, are not waited for.

        Raises:
            BackendRefused: the far tier does not tell, and this channel insists.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._open(loop)
        elif self._awaited and (self.state != "refused" or self.messages is not None):
            if self._first is None or self._first.opened:  # or somebody would be left waiting at the old one
                self._first = Gate()
            if self._checking is None:  # otherwise it notices
                self._check_now()
        self._awaited = False
        if self._first is not None:
            await self._first.wait(patience)
        if self._insist and self._refusal is not None:
            raise BackendRefused(*self._refusal.args) from self._refusal.__cause__

    def changed(self, keys: Sequence[str] | None, /) -> None:
        """See `Listener.changed`."""
        if keys is None:
            for member in self._members.values():
                member.changed(None)
        elif len(keys) == 1:
            self._changed(keys[0])
        else:
            for key in keys:
                self._changed(key)

    def _changed(self, key: str) -> None:
        # A namespace holds no "::", so what stands before the first one is all of it.
        namespace, colons, _ = key.partition("::")
        member = self._members.get(f"{namespace}::" if namespace and colons else "")
        if member is not None:
            member.changed((key,))

    def lost(self) -> None:
        """See `Listener.lost`."""
        self._losses += 1
        for member in self._members.values():
            self._distrust(member)
        if self.state == "armed":
            self._become("lost", "tracking")
            if self._checking is None and self._loop is not None:
                self._check_now()

    async def aclose(self) -> None:
        """End the heartbeat, and trust nothing any more; `wake` opens it again."""
        here = asyncio.get_running_loop()
        tasks = [task for task in self._stop() if task.get_loop() is here]
        if tasks:
            await asyncio.wait(tasks)

    # The heartbeat --------------------------------------------------------------------------------------------------

    def _open(self, loop: asyncio.AbstractEventLoop) -> None:
        self._stop()
        self._loop, self._first = loop, Gate()
        self.state, self.by = "opening", None
        self._check_now()

    def _stop(self) -> list[asyncio.Task[None]]:
        """End everything that is under way; return the tasks that may have to be waited for."""
        tasks = [] if self.messages is None else self.messages.stop_listening()
        if self._checking is not None:
            cancel(self._checking)
            tasks.append(self._checking)
        if self._timer is not None:
            self._timer.cancel()
        self._loop = self._timer = self._checking = self._first = self._refusal = None
        self._losses += 1
        self._failures = 0
        self.state = "closed"
        for member in self._members.values():
            self._distrust(member)
        return tasks

    def _check_now(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        assert self._loop is not None  # noqa: S101 - opened
        self._checking = self._loop.create_task(self._check(), name="acache heartbeat", context=Context())

    def _check_later(self, delay: float) -> None:
        me = ref(self)  # a cache that nobody holds any more must not live as long as its heartbeat

        def beat() -> None:
            if (channel := me()) is not None:
                channel._beat(timer)  # noqa: SLF001 - its own class

        timer = self._timer = self._clock.call_later(delay, beat)

    def _beat(self, timer: Timer) -> None:
        if self._timer is timer and self._loop is not None and not self._loop.is_closed():
            self._timer = None
            self._check_now()

    async def _check(self) -> None:
        me = asyncio.current_task()
        delay = HEARTBEAT
        try:
            delay = await self._attempt()
        finally:
            if self._checking is me:  # not closed, or opened in another loop, meanwhile
                self._checking = None
                if self._first is not None:
                    self._first.open()
                self._check_later(delay)

    async def _attempt(self) -> float:
        """Ask whether everything is told; return the seconds until that should be asked again."""
        if self._tracking is None:
            return await self._untold(None)
        error: BackendError
        try:
            async with asyncio.timeout(TRUST):
                for _ in range(_ATTEMPTS):
                    losses, began, members = self._losses, self._clock.monotonic(), dict(self._members)
                    await self._tracking.check(tuple(members))
                    if self._checking is not asyncio.current_task():
                        return FOREVER  # closed meanwhile, and the cancellation was swallowed on its way
                    if losses == self._losses and members.keys() == self._members.keys():
                        self._armed(began)
                        return HEARTBEAT
        except BackendRefused as refusal:
            return await self._untold(refusal)
        except TimeoutError as late:
            error = late if isinstance(late, BackendTimeout) else BackendTimeout(f"no answer within {TRUST} s")
        except BackendError as failure:
            error = failure
        else:
            return HEARTBEAT
        self._failures += 1
        if self.state == "armed" and self._clock.monotonic() >= self._until():
            self._become("lost", "tracking", error)
        return min(HEARTBEAT, _SOON * 2.0 ** min(self._failures, 10))

    def _until(self) -> float:
        return min((member.trust.until for member in self._members.values()), default=FOREVER)

    def _armed(self, began: float) -> None:
        for member in self._members.values():
            trust = member.trust
            if trust.until in (0.0, FOREVER):
                # What was read before everything was told may be older than what was told.
                member.drop()
                trust.longest = self._unbounded
            trust.until = began + TRUST
        self._failures, self._refusal = 0, None
        if self.messages is not None:
            self.messages.stop_listening()
        self._become("armed", "tracking")

    async def _untold(self, refusal: BackendRefused | None) -> float:
        """Go on without the far tier's word: by messages, where they pass, and bounded by time in any case."""
        self._refusal = refusal
        if self._insist:
            self.lost()
            self._become("refused", None, refusal)
            return HEARTBEAT
        if self.tracks:
            self.lost()
            self.by = None
        while True:
            members = dict(self._members)
            for member in members.values():
                if member.trust.until != FOREVER:
                    self._trust_by_time(member)
            if self.messages is None:
                self._become("refused", None, refusal)
                return _REFUSED_FOR
            await self.messages.listen(members, self._look)
            if self._checking is not asyncio.current_task():
                return FOREVER  # closed meanwhile, and the cancellation was swallowed on its way
            if members.keys() == self._members.keys():
                self._look()
                return _REFUSED_FOR

    def _look(self) -> None:
        """Take note of how it is with the messages of all namespaces together."""
        assert self.messages is not None  # noqa: S101 - it calls
        ears = self.messages.ears.values()
        states, why = {ear.state for ear in ears}, next((ear.why for ear in ears if ear.why is not None), None)
        if "ended" in states:
            self._stop()  # distrusted, the near tier has its next user open the channel, in whichever loop
        elif "refused" in states:
            if self._refusal is not None:
                why = BackendRefused(f"{self._refusal}; and of messages: {why}")
            self._become("refused", None, why)
        elif states == {"armed"}:
            self._become("armed", "messages", None if self.state == "lost" else self._refusal)
        elif self.state == "armed":
            self._become("lost", "messages", why)

    def _become(self, state: ChannelState, by: ToldBy | None, reason: Exception | None = None) -> None:
        if (state, by) != (self.state, self.by):
            self.state, self.by = state, by
            self._tell(state, by, reason)

    def _distrust(self, member: Member) -> None:
        member.trust.until = 0.0
        member.distrust()

    def _trust_by_time(self, member: Member) -> None:
        member.drop()  # what was kept until now may have changed with nobody to tell
        member.trust.longest, member.trust.until = self._bounded, FOREVER
