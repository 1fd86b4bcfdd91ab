"""What the near tier keeps of a value, and until when."""

from __future__ import annotations

from typing import Any, Final, NamedTuple, TypeAlias

from ..clock import FOREVER

__all__ = [
    "CONDITIONAL",
    "TICK",
    "Dates",
    "Record",
    "Terms",
    "extra_of",
    "fresh_until_of",
    "make_record",
    "stored_at",
    "terms_of",
]

TICK: Final = 0.001
"""Seconds; what is stored within one, for as long, has the same end."""
CONDITIONAL: Final = -FOREVER
"""In the place of the date of a record that is not valid by its date alone."""


class Terms(NamedTuple):
    """On what terms a record may be served."""

    fresh_until: float
    """A monotonic instant; infinity for never ending."""
    span: float
    """The ttl; where there is none, the instant the value was stored."""
    extra: Any
    """``None`` for an entry that is valid by its date alone; otherwise the facade's, with the ``cells`` to look at."""


Record: TypeAlias = tuple[Any, float, Any]
"""(value, fresh_until, span) of an entry that is valid by its date alone; or of one that is valid while none of some
cells is spoilt (value, `CONDITIONAL`, (cells, fresh_until, span, extra)).

Plain tuples, so that the garbage collector can stop tracking the first kind, and either is unpacked quickly.  One
comparison with the clock tells a hit; what has terms besides its date is never fresh to that comparison.
"""


def make_record(value: Any, terms: Terms) -> Record:
    """Return the record of a value."""
    fresh_until, span, extra = terms
    return (
        (value, fresh_until, span) if extra is None else (value, CONDITIONAL, (extra.cells, fresh_until, span, extra))
    )


def terms_of(record: Record) -> Terms:
    """Return the terms of a record of either kind."""
    _, fresh_until, rest = record
    return Terms(*rest[1:]) if type(rest) is tuple else Terms(fresh_until, rest, None)


def fresh_until_of(record: Record) -> float:
    """Return until when a record of either kind is fresh."""
    _, fresh_until, rest = record
    return rest[1] if type(rest) is tuple else fresh_until


def extra_of(record: Record) -> Any:
    """Return what must hold besides the date of a record, or ``None``."""
    rest = record[2]
    return rest[3] if type(rest) is tuple else None


def stored_at(record: Record) -> float:
    """Tell when a record was stored; a monotonic instant."""
    fresh_until, span, _ = terms_of(record)
    return span if fresh_until == FOREVER else fresh_until - span


class Dates:
    """The ends of lifetimes, to the millisecond.

    What is stored within one, for as long, ends with whichever came first, so never too late; and all of it shares one
    object, which in a cache that is filled quickly saves a quarter of what an entry costs.
    """

    __slots__ = ("_fresh_until", "_lifetime", "_since")

    def __init__(self) -> None:
        self._since = -FOREVER
        self._lifetime = 0.0
        self._fresh_until = -FOREVER

    def fresh_until(self, lifetime: float, now: float) -> float:
        """Return when something stored now for ``lifetime`` seconds ends."""
        if lifetime != self._lifetime or not self._since <= now < self._since + TICK:
            self._since, self._lifetime, self._fresh_until = now, lifetime, now + lifetime
        return self._fresh_until
