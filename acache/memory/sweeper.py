"""Expiry that needs no reader: in a cache that nobody uses, a timer looks for what is past its time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import Final, Protocol
from weakref import ref

__all__ = ["Sweeper", "Swept"]

_ROUND: Final = 30.0
"""Seconds between two rounds, and those over which a round through a large cache is spread."""
_SLICE: Final = 1024
"""Records looked at in one turn of the loop, a fraction of a millisecond."""
_PAUSE: Final = 0.002
"""Seconds between two slices while many of the records are past their time."""


class Swept(Protocol):
    """What is swept."""

    entries: int
    until_sweep: int
    """Inserts until it starts the timer again, if it is not set."""

    def sweep(self, now: float) -> tuple[int, int]:
        """Look at some records, and drop those past their time.

        Returns:
            How many it looked at, 0 at the end of a round, and how many it dropped.
        """
        ...


class Sweeper:
    """One timer for a whole near tier: no task, and none while there are no entries.

    It keeps nothing alive: a cache that was dropped without being closed is not kept by its own timer.
    """

    __slots__ = ("_handle", "_loop", "_now", "_rounds", "_swept")

    def __init__(self, swept: Swept, now: Callable[[], float]) -> None:
        self._swept: Final = ref(swept)
        self._now: Final = now
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handle: asyncio.TimerHandle | None = None
        self._rounds = 0
        """Rounds to look at before the next pause: the rest of one that inserts have begun, and a whole one."""

    @property
    def waiting(self) -> bool:
        """Whether the timer is set."""
        return self._handle is not None

    def start(self) -> None:
        """Set the timer, unless it is set in the loop that runs now."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # whoever runs a near hit or a near write by hand goes without
            return
        if self._handle is None or self._loop is not loop:
            self.stop()
            self._loop = loop
            self._wait(_ROUND, self._begin)

    def stop(self) -> None:
        """Leave no timer."""
        if self._handle is not None:
            self._handle.cancel()
        self._handle = self._loop = None

    def _wait(self, seconds: float, then: Callable[[], object]) -> None:
        assert self._loop is not None  # noqa: S101 - for the type checker
        # Whoever stored the first entry is long gone: what is in his context must not live as long as this timer.
        self._handle = self._loop.call_later(seconds, then, context=Context())

    def _begin(self) -> None:
        # 1: inserts begin a round. 2: more come, which that one will not look at. 3: nothing else comes, and the rest
        # of that one is not all.
        self._rounds = 2
        self.run()

    def run(self) -> None:
        """Look at one slice, and set the timer for the next."""
        swept = self._swept()
        if swept is None or not swept.entries:
            self.stop()
            if swept is not None:
                swept.until_sweep = 1
            return
        now = self._now()
        looked = dropped = seen = 0
        while looked < _SLICE:
            seen, gone = swept.sweep(now)
            looked, dropped = looked + seen, dropped + gone
            if not seen:
                self._rounds -= 1
                self._wait(*((_PAUSE, self.run) if self._rounds > 0 else (_ROUND, self._begin)))
                return
        pause = _PAUSE if 4 * dropped >= looked else max(_PAUSE, _ROUND * _SLICE / max(1, swept.entries))
        self._wait(pause, self.run)
