"""Time: one protocol for everything that asks what time it is, and the one reading of a lifetime that people write.

People write relative seconds (``ttl=60``, ``ttl=timedelta(minutes=1)``); inside, absolute instants are called
``..._at`` (wall clock) and ``..._until`` (monotonic).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Final, Protocol, TypeAlias, runtime_checkable

from .errors import ConfigurationError, short

__all__ = ["FOREVER", "Clock", "Seconds", "SystemClock", "Timer", "seconds", "ttl_seconds"]

Seconds: TypeAlias = float | timedelta
"""A length of time as people write it: seconds as ``int`` or ``float``, or a ``timedelta``."""

FOREVER: Final = math.inf
_ENDLESS: Final = 1e18
"""Beyond this a float of seconds cannot even tell years apart."""


class Timer(Protocol):
    """A pending callback."""

    def cancel(self) -> None:
        """Make sure that the callback does not run from now on."""
        ...


@runtime_checkable
class Clock(Protocol):
    """What acache asks of time.  Tests pass `acache.testing.FakeClock`."""

    def wall(self) -> float:
        """Seconds since the epoch; may jump."""
        ...

    def monotonic(self) -> float:
        """Seconds since an arbitrary start; never goes back."""
        ...

    def call_later(self, delay: float, callback: Callable[[], object], /) -> Timer:
        """Run ``callback`` once, ``delay`` seconds from now, in the running event loop's thread."""
        ...


class SystemClock:
    """The machine's own clocks."""

    # The functions themselves, not methods around them: a cache hit reads the clock once, and a Python frame
    # around the read would cost as much as the read.
    wall = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)

    def call_later(self, delay: float, callback: Callable[[], object], /) -> Timer:
        """Run ``callback`` by the running loop's own timer."""
        import asyncio  # noqa: PLC0415 - floor 0 knows no event loop until one is running

        return asyncio.get_running_loop().call_later(delay, callback)

    def __repr__(self) -> str:
        return "SystemClock()"


def seconds(value: object, name: str, *, zero: bool = True) -> float:
    """Read a finite length of time; ``ConfigurationError`` for anything else, naming the parameter."""
    if isinstance(value, timedelta):
        number = value.total_seconds()
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        number = float(value) if abs(value) < _ENDLESS else math.inf
    else:
        msg = f"{name}={short(value)}: pass seconds as a number or a timedelta"
        raise ConfigurationError(msg)
    if not math.isfinite(number) or number < 0 or (number == 0 and not zero):
        msg = f"{name}={short(value)}: must be a finite number of seconds {'of at least' if zero else 'above'} zero"
        raise ConfigurationError(msg)
    return number


def ttl_seconds(value: object, name: str = "ttl") -> float:
    """Read a ttl: seconds above zero, or ``None`` for ever (returned as infinity).

    Zero is refused: some caches read it as "for ever" and others as "not at all".
    """
    if type(value) is float and 0.0 < value < FOREVER:
        return value
    if value is None:
        return FOREVER
    try:
        return seconds(value, name, zero=False)
    except ConfigurationError as error:
        msg = f"{error} (ttl=None never expires; delete() removes)"
        raise ConfigurationError(msg) from None
