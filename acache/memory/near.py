"""`Memory`, the bounded near tier, and `Space`, one namespace's part of it.

Everything here is synchronous: no await can come between a look and a change, so one call is one step for every task
of the loop.  It is not safe for use from several threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Literal, TypeAlias

from ..clock import Seconds, ttl_seconds
from ..errors import ConfigurationError
from .eviction import Eviction, LeastRecentlyUsed, PolicyName
from .record import Dates, Record, fresh_until_of
from .sizing import approximate_size
from .sweeper import Sweeper

__all__ = ["Cause", "Memory", "Space"]

Cause: TypeAlias = Literal["size", "expired", "replaced", "invalidated"]

_POLICIES: Final = ("lru", "s3fifo", "wtinylfu")
_TOUCHES: Final = 4096
"""Reads remembered until something is evicted; with LRU older ones are forgotten, as they matter least."""
_COUNTED_TOUCHES: Final = 16_384
"""The same where each read counts: a loop is a run of hits as long as the cache, and then one of misses."""
_SETTLE: Final = 1024
"""Where it is not the last read alone that counts, they are taken note of before any is forgotten."""
_SWEEP_EVERY: Final = 64
"""Inserts between two looks at as many records, in search of those past their time."""
_MOST_LOOKS: Final = 8
"""Looks in a row while a quarter or more of what is found is past its time."""
_BATCHES: Final = 128
"""An eviction takes 1/128 of what is held: taking single keys from the front of a dict gets slower with each."""


class Memory:
    """The near tier of one cache: at most ``max_entries`` live objects; ``eviction`` says which go when it is full.

    Values are shared with the callers: treat what a cache returns as read-only, or pass ``isolate=True`` to get a
    copy through the codec each time.

    Args:
        max_entries: the bound, over all namespaces together; each gives up its share when room is needed.
        max_bytes: a second bound, on the sum of ``sizeof(value)`` and the keys.
        sizeof: bytes of a value, an int of at least 0; the default follows containers and attributes, which costs time
            on large values.  Where it raises, the value is not kept near; without a far tier the caller is told.
        eviction: ``"lru"``, ``"s3fifo"`` or ``"wtinylfu"``.  Hits cost the same with each; the second and third cost
            some memory and time on misses, and keep out what is asked for only once.
        ttl: an upper bound on the time an entry stays here, whatever its own ttl; ``None`` for no bound of its own.
        isolate: keep encoded bytes instead of objects.

    Raises:
        ConfigurationError: a bound below one, or an unknown eviction policy.
    """

    def __init__(
        self,
        *,
        max_entries: int = 10_000,
        max_bytes: int | None = None,
        sizeof: Callable[[Any], int] | None = None,
        eviction: PolicyName = "lru",
        ttl: Seconds | None = None,
        isolate: bool = False,
    ) -> None:
        for name, bound in (("max_entries", max_entries), ("max_bytes", max_bytes)):
            if bound is None and name == "max_bytes":
                continue
            if not isinstance(bound, int) or isinstance(bound, bool) or bound < 1:
                msg = f"{name}={bound!r}: must be an int of at least 1; memory=None switches the near tier off"
                raise ConfigurationError(msg)
        if sizeof is not None and max_bytes is None:
            msg = "sizeof without max_bytes measures nothing: set max_bytes, or leave sizeof out"
            raise ConfigurationError(msg)
        if eviction not in _POLICIES:
            msg = f"eviction={eviction!r}: the known policies are {', '.join(map(repr, _POLICIES))}"
            raise ConfigurationError(msg)
        self.max_entries: Final = max_entries
        self.max_bytes: Final = max_bytes
        self.eviction: Final = eviction
        self.ttl: Final = ttl_seconds(ttl)
        self.isolate: Final = isolate
        self.entries = 0
        self.bytes = 0
        self.evictions = 0
        """Entries that had to go for want of room."""
        self.keep_stale = 0.0
        """Seconds an entry stays after its ttl, for the readers that take stale values."""
        self.on_removed: Callable[[str, str, Cause], object] | None = None
        """If set, called with namespace, key and cause for each entry that goes, but for those of a closed cache."""
        self.on_unsized: Callable[[str, str, Exception], object] | None = None
        """If set, called with namespace, key and error when ``sizeof`` says no size: the value is kept elsewhere, too.

        If not, the error is the caller's, whose value would be stored nowhere.
        """
        self.dates: Final = Dates()
        self.sweeper: Sweeper | None = None
        self._sizeof: Final = (sizeof or approximate_size) if max_bytes is not None else None
        self._spaces: Final[dict[str, Space]] = {}
        self._round: Iterator[tuple[Space, Sequence[str]]] = iter(())
        self.until_sweep = 1
        """Inserts until the next look round; the first one sets the timer."""

    def __repr__(self) -> str:
        return f"<Memory {self.entries} of {self.max_entries} entries>"

    def claim(self, now: Callable[[], float]) -> None:
        """Take this near tier for one cache and its views, whose monotonic clock is ``now``.

        Raises:
            ConfigurationError: another cache has it: the two would answer each other's keys.
        """
        if self.sweeper is not None:
            msg = "this Memory already belongs to another Cache: build one for each, or use cache.view()"
            raise ConfigurationError(msg)
        self.sweeper = Sweeper(self, now)

    def space(self, namespace: str) -> Space:
        """Return the part that belongs to ``namespace``, always the same one."""
        space = self._spaces.get(namespace)
        if space is None:
            space = self._spaces[namespace] = Space(self, namespace)
        return space

    def forget(self, namespace: str) -> None:
        """Drop the part of a namespace that has no entries, and nobody who would put some there."""
        del self._spaces[namespace]

    def close(self) -> None:
        """Drop everything, without a word, and leave no timer."""
        for space in self._spaces.values():
            space.clear(cause=None)
        if self.sweeper is not None:
            self.sweeper.stop()
            self.until_sweep = 1

    def clear(self) -> None:
        """Drop everything."""
        for space in self._spaces.values():
            space.clear()

    @property
    def sized(self) -> bool:
        """Whether the bytes of values are counted."""
        return self._sizeof is not None

    def measure(self, key: str, value: Any) -> int:
        """Bytes charged for an entry; 0 without a byte bound.

        Raises:
            ConfigurationError: ``sizeof`` returned something that is no size.
            Exception: whatever ``sizeof`` raised.
        """
        if self._sizeof is None:
            return 0
        size = self._sizeof(value)
        if not isinstance(size, int) or size < 0:
            msg = f"sizeof returned {size!r} for the value of {key!r}: it must return an int of at least 0"
            raise ConfigurationError(msg)
        return size + len(key)

    def make_room(self, size: int) -> bool:
        """Evict until ``size`` more bytes fit; ``False`` if they never would."""
        assert self.max_bytes is not None  # noqa: S101 - for the type checker
        if size > self.max_bytes:
            return False
        while self.bytes + size > self.max_bytes:
            self.evict()
        return True

    def evict(self) -> None:
        """Let a batch of entries go; each namespace gives up its share."""
        entries = self.entries
        count = max(1, entries // _BATCHES)
        for space in tuple(self._spaces.values()):
            if held := len(space.records):
                space.evict(-(-count * held // entries))

    def look_round(self, now: float) -> None:
        """Look at some records, and see to it that somebody does when there are no more inserts."""
        self.until_sweep = _SWEEP_EVERY
        for _ in range(_MOST_LOOKS):
            looked, dropped = self.sweep(now)
            if 4 * dropped < looked or not looked:
                break
        if self.sweeper is not None:
            self.sweeper.start()

    def sweep(self, now: float) -> tuple[int, int]:
        """See `Swept.sweep`."""
        part = next(self._round, None)
        if part is None:
            self._round = self._rounds()
            return 0, 0
        space, keys = part
        return len(keys), space.drop_expired(keys, now)

    def _rounds(self) -> Iterator[tuple[Space, Sequence[str]]]:
        for space in tuple(self._spaces.values()):
            there = list(space.records)
            there.reverse()
            while there:
                part = there[-_SWEEP_EVERY:]
                del there[-_SWEEP_EVERY:]  # what has ended is freed with its part, not all keys of a round at once
                yield space, part


class Space:
    """The entries of one namespace.

    ``records`` and ``touch`` are public for the sake of the hit path, which reads the one and calls the other without
    a frame in between.
    """

    __slots__ = (
        *("_added", "_memory", "_namespace", "_order", "_sized", "_sizes", "_touched"),
        *("records", "shortcuts", "touch"),
    )

    def __init__(self, memory: Memory, namespace: str) -> None:
        self.records: Final[dict[str, Record]] = {}
        """With LRU, least recently used first, but for the touches not yet settled."""
        self._order: Final = _order(memory.eviction, self.records)
        self._added: Final = self._order.added
        self._touched: Final[deque[str]] = deque(maxlen=_TOUCHES if self._added is None else _COUNTED_TOUCHES)
        self.touch: Final = self._touched.append
        """Note a use of a key; the policy is told when something must be evicted."""
        self._memory: Final = memory
        self._namespace: Final = namespace
        self._sizes: Final[dict[str, int]] = {}
        self.shortcuts: Final[dict[str, tuple[dict[Any, Any], Any]]] = {}
        """Where a record is repeated, to be dropped together with it."""
        self._sized: Final = memory.sized

    def put(self, key: str, record: Record, now: float) -> None:
        """Store a record, evicting others if there is no room; one that can never fit is not stored.

        Raises:
            Exception: ``sizeof`` said no size, and nobody else keeps the value.
        """
        there = key in self.records
        if self._sized:
            memory = self._memory
            assert memory.max_bytes is not None  # noqa: S101 - it is what sizes are for
            try:
                size = memory.measure(key, record[0])
            except Exception as error:
                if memory.on_unsized is None:
                    raise
                self.pop(key, "replaced")
                memory.on_unsized(self._namespace, key, error)
                return
            more = size - self._sizes.get(key, 0)
            if there and memory.bytes + more > memory.max_bytes:
                self.pop(key, "replaced")
                there, more = False, size
            if not there and not memory.make_room(size):
                return
            self._sizes[key] = size
            memory.bytes += more
        if not there:
            self.insert(key, record, now)
            return
        if self.shortcuts:
            self.unlink(key)
        self.records[key] = record
        self.touch(key)
        self._tell((key,), "replaced")

    def insert(self, key: str, record: Record, now: float) -> None:
        """Store a record under a key that is not there."""
        memory = self._memory
        if memory.entries >= memory.max_entries:
            memory.evict()
        memory.entries += 1
        self.records[key] = record
        if self._added is not None:
            if len(self._touched) >= _SETTLE:
                self._settle()
            self._added(key)
        elif self._touched:  # otherwise the end of the dict is where it belongs
            self.touch(key)
        memory.until_sweep -= 1
        if not memory.until_sweep:
            memory.look_round(now)

    def pop(self, key: str, cause: Cause = "invalidated") -> Record | None:
        """Remove and return a record; ``None`` if there was none."""
        record = self.records.pop(key, None)
        if record is not None:
            self._memory.entries -= 1
            self._order.removed(key)
            self._forget(key)
            self._tell((key,), cause)
        return record

    def clear(self, cause: Cause | None = "invalidated") -> None:
        """Drop every record of this namespace; without a cause, nobody is told."""
        memory, keys = self._memory, tuple(self.records) if self._memory.on_removed and cause else ()
        memory.entries -= len(self.records)
        memory.bytes -= sum(self._sizes.values())
        for shortcut, name in self.shortcuts.values():
            shortcut.pop(name, None)
        for held in (self.records, self._sizes, self.shortcuts, self._touched, self._order):
            held.clear()
        if cause is not None:
            self._tell(keys, cause)

    def link(self, key: str, shortcut: dict[Any, Any], name: Any, repeated: Any) -> None:
        """Store ``shortcut[name] = repeated``, to be dropped together with the record that stands under ``key``.

        A record has one shortcut: a second one replaces the first.
        """
        self.unlink(key)
        shortcut[name] = repeated
        self.shortcuts[key] = (shortcut, name)

    def unlink(self, key: str) -> None:
        """Drop what repeats the record under ``key``."""
        if (link := self.shortcuts.pop(key, None)) is not None:
            link[0].pop(link[1], None)

    def evict(self, count: int) -> None:
        """Let ``count`` records go, which the policy chooses."""
        if self._touched:
            self._settle()
        victims = self._order.take(count)
        self._memory.evictions += len(victims)
        self._remove(victims, "size")

    def drop_expired(self, keys: Sequence[str], now: float) -> int:
        """Drop those of ``keys`` that are past their time, and tell how many."""
        gone = now - self._memory.keep_stale
        expired: list[str] = []
        for key in keys:
            record = self.records.get(key)
            if record is not None and record[1] <= gone and fresh_until_of(record) <= gone:
                expired.append(key)
        for key in expired:
            self._order.removed(key)
        self._remove(expired, "expired")
        return len(expired)

    def _settle(self) -> None:
        touched = self._touched
        if len(touched) > _TOUCHES:  # that takes milliseconds: the rest has time until the next entry comes
            self._order.used([touched.popleft() for _ in range(_TOUCHES)])
        else:
            self._order.used(touched)
            touched.clear()

    def _remove(self, keys: Sequence[str], cause: Cause) -> None:
        """Drop records that the policy knows of no more."""
        records = self.records
        self._memory.entries -= len(keys)
        for key in keys:
            del records[key]
        if not records:
            records.clear()  # a dict gives the room of what was deleted back only when it is told so
        if self._sized or self.shortcuts:
            for key in keys:
                self._forget(key)
        self._tell(keys, cause)

    def _forget(self, key: str) -> None:
        if self._sized:
            self._memory.bytes -= self._sizes.pop(key, 0)
        if self.shortcuts:
            self.unlink(key)

    def _tell(self, keys: Sequence[str], cause: Cause) -> None:
        if (tell := self._memory.on_removed) is not None:
            for key in keys:
                tell(self._namespace, key, cause)


def _order(policy: PolicyName, records: dict[str, Record]) -> Eviction:
    # Only those who want another policy import it.
    if policy == "s3fifo":
        from .s3fifo import S3Fifo  # noqa: PLC0415

        return S3Fifo()
    if policy == "wtinylfu":
        from .wtinylfu import WTinyLfu  # noqa: PLC0415

        return WTinyLfu()
    return LeastRecentlyUsed(records)
