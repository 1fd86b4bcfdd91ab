"""A clock that moves only when told."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count
from typing import Final

from ..clock import Timer

__all__ = ["FakeClock"]


class _FakeTimer:
    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        self.callback = None


class FakeClock:
    """A `Clock` for tests: ``Cache(clock=FakeClock())``, then ``clock.advance(60)``.

    Args:
        wall: the wall-clock time at the start, in seconds since the epoch.
    """

    def __init__(self, *, wall: float = 1_000_000_000.0) -> None:
        self._wall = wall
        self._monotonic = 1000.0
        self._timers: Final[list[tuple[float, int, _FakeTimer]]] = []
        self._ids: Final = count()

    def wall(self) -> float:
        """Return the pretended seconds since the epoch."""
        return self._wall

    def monotonic(self) -> float:
        """Return the pretended monotonic seconds."""
        return self._monotonic

    def call_later(self, delay: float, callback: Callable[[], object], /) -> Timer:
        """Run ``callback`` when the clock has been advanced by ``delay`` seconds."""
        timer = _FakeTimer(callback)
        heapq.heappush(self._timers, (self._monotonic + delay, next(self._ids), timer))
        return timer

    def advance(self, seconds: float) -> None:
        """Let time pass; timers that fall due run in order, each at its own instant."""
        if seconds < 0:
            msg = f"advance({seconds}): time does not go back; set_wall() moves the wall clock alone"
            raise ValueError(msg)
        end = self._monotonic + seconds
        while self._timers and self._timers[0][0] <= end:
            due, _, timer = heapq.heappop(self._timers)
            self._move_to(due)
            if timer.callback is not None:
                timer.callback()
        self._move_to(end)

    def set_wall(self, wall: float) -> None:
        """Jump the wall clock, as a time server would."""
        self._wall = wall

    def _move_to(self, instant: float) -> None:
        self._wall += instant - self._monotonic
        self._monotonic = instant

    def __repr__(self) -> str:
        return f"<FakeClock at {self._monotonic}>"
