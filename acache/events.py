"""What happens in a cache, as frozen values for observers and as counters for everybody.

An `Observer` is called synchronously, in the order things happen; it cannot change a result, and what it raises is
logged and goes no further.  Nothing is built for observers when there are none.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import FrozenInstanceError, dataclass, fields
from typing import Any, Final, Literal, NoReturn, Protocol, TypeAlias, TypeVar, dataclass_transform

__all__ = [
    "BackendFailed",
    "BreakerChanged",
    "ChannelChanged",
    "Coalesced",
    "Counters",
    "DecodeFailed",
    "Event",
    "Evicted",
    "FillRefused",
    "Hit",
    "Invalidated",
    "InvalidationReceived",
    "KeptForReplay",
    "LoadFailed",
    "Loaded",
    "Miss",
    "Observer",
    "Operation",
    "Removed",
    "ReplayDropped",
    "Replayed",
    "Stats",
    "Stored",
    "Tier",
    "ToldBy",
]

logger: Final = logging.getLogger("acache")

Tier: TypeAlias = Literal["near", "far"]
ToldBy: TypeAlias = Literal["tracking", "messages"]
"""By whom changes of others are told: by the far tier, or by those who make them."""
Operation: TypeAlias = Literal["set", "delete", "invalidate_tags", "clear"]
"""A change that is kept for a far tier that did not confirm it."""


E = TypeVar("E")


@dataclass_transform(kw_only_default=True, frozen_default=True)
def _event(cls: type[E]) -> type[E]:
    """Make a class of events: a dataclass of which only ``__init__`` is generated.

    The rest, equality, order of fields in the repr and that it is frozen, is the same for all and stands in `Event`:
    generated for twenty classes it would be a quarter of the time that importing acache takes.
    """
    return dataclass(slots=True, kw_only=True, eq=False, repr=False)(cls)


@_event
class Event:
    """Something that happened to one key of one namespace: a frozen dataclass."""

    namespace: str
    """The namespace of the cache that saw it; ``""`` for none."""
    key: str
    """The user's key; ``""`` where the event is about more than one."""

    def __setattr__(self, name: str, value: object) -> None:
        if hasattr(self, name):  # not the first time, in __init__ or where a copy is made
            msg = f"cannot assign to field {name!r}"
            raise FrozenInstanceError(msg)
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> NoReturn:
        msg = f"cannot delete field {name!r}"
        raise FrozenInstanceError(msg)

    def __eq__(self, other: object) -> bool:
        if other.__class__ is not self.__class__:
            return NotImplemented
        return all(getattr(self, field.name) == getattr(other, field.name) for field in fields(self))

    def __hash__(self) -> int:
        return hash((self.__class__, *[getattr(self, field.name) for field in fields(self)]))

    def __repr__(self) -> str:
        values = ", ".join([f"{field.name}={getattr(self, field.name)!r}" for field in fields(self)])
        return f"{self.__class__.__qualname__}({values})"


@_event
class Hit(Event):
    """A value was answered from a tier."""

    tier: Tier
    stale: bool = False
    """Past its ttl, within a stale window of the policy."""


@_event
class Miss(Event):
    """No tier had a servable value."""


@_event
class Loaded(Event):
    """A loader returned."""

    seconds: float
    """How long it ran."""


@_event
class LoadFailed(Event):
    """A loader raised."""

    seconds: float
    error: BaseException


@_event
class Coalesced(Event):
    """A caller has his value from a load that another caller started, or waits for one."""

    elsewhere: bool = False
    """The load was another process's, which had the lease."""


@_event
class Stored(Event):
    """A value was written, by a caller or after a load."""

    ttl: float | None
    """Seconds; ``None`` never expires."""


@_event
class FillRefused(Event):
    """A loaded value was handed to its waiters but not stored: the key or one of its tags changed during the load."""


@_event
class Invalidated(Event):
    """Values were removed on request."""

    reason: Literal["delete", "tags", "clear"]
    tags: tuple[str, ...] = ()


@_event
class Removed(Event):
    """An entry left the near tier; once for each that does, but for those of a cache that is closed."""

    cause: Literal["size", "expired", "replaced", "invalidated"]
    """For want of room, past its time, another value was written, or it was deleted, cleared or found invalid."""


@_event
class Evicted(Removed):
    """It left because the near tier let it go: ``size`` or ``expired``."""


@_event
class BackendFailed(Event):
    """An operation of the far tier failed."""

    operation: str
    error: Exception
    raised: bool
    """Whether the caller saw it; otherwise it was taken as a miss, or as not stored."""


@_event
class BreakerChanged(Event):
    """The far tier's circuit breaker changed its state."""

    state: Literal["closed", "open", "half-open"]


@_event
class InvalidationReceived(Event):
    """The far tier, or another cache, told of a change: of ``key``, of ``tag``, or, with both empty, of everything."""

    tag: str = ""


@_event
class ChannelChanged(Event):
    """The near tier is kept coherent from now on (armed), or changes may go untold (lost).

    Lost: it was emptied; it is bypassed where the far tier tells, and bounded by time where messages do.
    Refused: nobody tells of changes, so near copies are bounded by time.
    """

    state: Literal["armed", "lost", "refused"]
    reason: Exception | None = None
    coherence: ToldBy | None = None
    """By whom changes are told, as in `Stats`."""


@_event
class KeptForReplay(Event):
    """A change that the far tier did not confirm is kept, and sent again when it answers."""

    operation: Operation
    tag: str = ""


@_event
class Replayed(Event):
    """A kept change has arrived."""

    operation: Operation
    tag: str = ""


@_event
class ReplayDropped(Event):
    """A change will not arrive: an old value may stay in the far tier until its ttl ends."""

    operation: Operation
    reason: Literal["full", "failed", "closed"]
    """Too many were kept, the engine has a bug, or the cache was closed."""
    tag: str = ""


@_event
class DecodeFailed(Event):
    """Bytes found in the far tier were not an entry this cache can read; taken as a miss."""

    error: Exception


class Observer(Protocol):
    """Gets every event.  Must be quick: it runs on the event loop, inside the operation."""

    def __call__(self, event: Event, /) -> object:
        """Take note of ``event``."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Counters since the cache was built, and the size of its near tier now.

    The views of a cache share its counters: ``stats()`` of any of them is that of all.  A cached function's are its own
    part of them.  What asks for no value (``has``, ``ttl``, ``peek``) is neither a hit nor a miss.
    """

    hits_near: int = 0
    """Fresh values from the near tier; where there are many keys, one for each."""
    hits_far: int = 0
    """Fresh values from the far tier."""
    hits_stale: int = 0
    """Values past their ttl, from either tier, within a stale window of the policy.

    One that is answered at once is no miss.  One in place of a loader's error is a miss, too: the loader was asked.
    """
    misses: int = 0
    """Questions for which no tier had a fresh value, nor a stale one to be answered at once."""
    loads: int = 0
    """Loader calls that were started; of a batch loader, the values it was asked for."""
    load_failures: int = 0
    """Those of them that raised, or took longer than ``load_timeout``."""
    coalesced: int = 0
    """Callers that waited for somebody else's load."""
    fills_refused: int = 0
    """Loaded values that were handed to their callers and not stored, as their key or tag changed during the load."""
    evictions: int = 0
    """Entries that left the near tier for want of room."""
    invalidations: int = 0
    """Calls that removed: ``delete``, and ``delete_many`` once for each key, ``invalidate_tags``, ``clear``."""
    backend_errors: int = 0
    """Operations of the far tier that failed, whether the caller was told or not."""
    decode_failures: int = 0
    """Entries of the far tier that could not be read, and were taken as misses."""
    replay_kept: int = 0
    """Changes that the far tier did not confirm, to be sent again: as many as the next four say together."""
    replayed: int = 0
    """Those of them that have arrived."""
    replay_dropped: int = 0
    """Those that never will: too many at a time, an engine's own mistake, or the cache was closed."""
    replay_replaced: int = 0
    """Those of whose key, tag or namespace something newer was kept, or confirmed, before they arrived."""
    replay_waiting: int = 0
    """Those that are kept now."""
    invalidations_received: int = 0
    """Changes that the far tier told of, scripts of this cache's own among them; or messages of other caches."""
    channel_losses: int = 0
    """How often changes may have gone untold from then on, so that the near tier was emptied or bypassed."""
    channel_restorations: int = 0
    """How often they were told again after that."""
    coherence: ToldBy | None = None
    """How the near tier comes to know of others' changes: the far tier tells of all (tracking), or other caches of
    theirs (messages); ``None``: not at all.  But for tracking, time bounds near copies."""
    near_entries: int = 0
    """Entries in the near tier, those of all namespaces; also such as are past their time and not yet dropped."""
    near_bytes: int = 0
    """Their bytes; zero unless the near tier is bounded by bytes (``max_bytes``)."""

    @property
    def hits(self) -> int:
        """All hits: near, far and stale."""
        return self.hits_near + self.hits_far + self.hits_stale

    @property
    def hit_ratio(self) -> float:
        """Hits as a share of hits and misses; 0.0 before the first question.

        Callers who waited for somebody else's load (``coalesced``) are neither.
        """
        asked = self.hits + self.misses
        return self.hits / asked if asked else 0.0


_GAUGES: Final = {"near_entries", "near_bytes", "replay_waiting", "coherence"}
_COUNTED: Final = tuple(field.name for field in fields(Stats) if field.name not in _GAUGES)


class Counters:
    """The mutable side of `Stats`.  A function's counters are parts of its cache's: the sum is made when asked for."""

    __slots__ = (*_COUNTED, "parts")

    hits_near: int
    hits_far: int
    hits_stale: int
    misses: int
    loads: int
    load_failures: int
    coalesced: int
    fills_refused: int
    evictions: int
    invalidations: int
    backend_errors: int
    decode_failures: int
    replay_kept: int
    replayed: int
    replay_dropped: int
    replay_replaced: int
    invalidations_received: int
    channel_losses: int
    channel_restorations: int

    def __init__(self) -> None:
        for name in _COUNTED:
            setattr(self, name, 0)
        self.parts: list[Counters] = []

    def part(self) -> Counters:
        """Counters of a function, added to these whenever a total is asked for."""
        part = Counters()
        self.parts.append(part)
        return part

    def snapshot(self, *, near_entries: int = 0, near_bytes: int = 0, replay_waiting: int = 0) -> Stats:
        """Freeze the totals, parts included."""
        every = [self, *self.parts]
        totals: dict[str, Any] = {name: sum(getattr(one, name) for one in every) for name in _COUNTED}
        return Stats(near_entries=near_entries, near_bytes=near_bytes, replay_waiting=replay_waiting, **totals)


def emit(observers: Sequence[Observer], event: Event) -> None:
    """Tell every observer; what one raises is logged and hides nothing from the next."""
    for observer in observers:
        try:
            observer(event)
        except Exception:
            logger.exception("an observer raised; the event was %r", event)
