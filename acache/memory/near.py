"""`Memory`, the bounded near tier, and `Space`, one namespace's part of it.

Everything here is synchronous: no await can come between a look and a change, so one call is one step for every task
of the loop.  It is not safe for use from several threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Final, Literal, TypeAlias

from ..clock import FOREVER, Seconds, ttl_seconds
from ..errors import ConfigurationError
from .sizing import approximate_size

__all__ = ["Memory", "Record", "Space", "stored_at"]

Record: TypeAlias = tuple[Any, float, float, Any]
"""(value, fresh_until, span, extra): a plain tuple, so that the garbage collector can stop tracking it.

``fresh_until`` is a monotonic instant, infinity for never.  ``span`` is the ttl, which entries of one policy share as
one object; where there is no ttl it is the instant the value was stored.  ``extra`` is ``None`` for an entry that is
valid by its date alone; otherwise the facade's, with what else must hold.
"""

Cause: TypeAlias = Literal["size", "expired"]

_TOUCHES: Final = 4096
"""Reads remembered between two evictions; older ones are forgotten, as they matter least."""
_SWEEP_EVERY: Final = 64
"""Inserts between two looks at twice as many records, in search of those past their time."""
_BATCHES: Final = 128
"""An eviction takes 1/128 of the bound at once: taking single keys from the front of a dict gets slower with each."""


def stored_at(record: Record) -> float:
    """Tell when a record was stored; a monotonic instant."""
    _, fresh_until, span, _ = record
    return span if fresh_until == FOREVER else fresh_until - span


class Memory:
    """The near tier of one cache: at most ``max_entries`` live objects, least recently used evicted first.

    Values are shared with the callers: treat what a cache returns as read-only, or pass ``isolate=True`` to get a
    copy through the codec each time.

    Args:
        max_entries: the bound, over all namespaces together; each gives up its share when room is needed.
        max_bytes: a second bound, on the sum of ``sizeof(value)`` and the keys.
        sizeof: bytes of a value; the default follows containers and attributes, which costs time on large values.
        eviction: ``"lru"``.
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
        eviction: str = "lru",
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
        if eviction != "lru":
            msg = f'eviction={eviction!r}: the known policy is "lru"'
            raise ConfigurationError(msg)
        self.max_entries: Final = max_entries
        self.max_bytes: Final = max_bytes
        self.ttl: Final = ttl_seconds(ttl)
        self.isolate: Final = isolate
        self.entries = 0
        self.bytes = 0
        self.evictions = 0
        """Entries that had to go for want of room."""
        self.keep_stale = 0.0
        """Seconds an entry stays after its ttl, for the readers that take stale values."""
        self.on_removed: Callable[[str, str, Cause], object] | None = None
        """If set, called with namespace, key and cause for each entry that the bound or the sweep takes."""
        self._sizeof: Final = (sizeof or approximate_size) if max_bytes is not None else None
        self._batch: Final = max(1, max_entries // _BATCHES)
        self._spaces: Final[dict[str, Space]] = {}
        self._owned = False

    def __repr__(self) -> str:
        return f"<Memory {self.entries} of {self.max_entries} entries>"

    def claim(self) -> None:
        """Take this near tier for one cache and its views.

        Raises:
            ConfigurationError: another cache has it: the two would answer each other's keys.
        """
        if self._owned:
            msg = "this Memory already belongs to another Cache: build one for each, or use cache.view()"
            raise ConfigurationError(msg)
        self._owned = True

    def space(self, namespace: str) -> Space:
        """Return the part that belongs to ``namespace``, always the same one."""
        space = self._spaces.get(namespace)
        if space is None:
            space = self._spaces[namespace] = Space(self, namespace)
        return space

    def clear(self) -> None:
        """Drop everything."""
        for space in self._spaces.values():
            space.clear()

    @property
    def sized(self) -> bool:
        """Whether the bytes of values are counted."""
        return self._sizeof is not None

    def measure(self, key: str, value: Any) -> int:
        """Bytes charged for an entry; 0 without a byte bound."""
        return 0 if self._sizeof is None else self._sizeof(value) + len(key)

    def make_room(self, size: int) -> bool:
        """Evict until ``size`` more bytes fit; ``False`` if they never would."""
        assert self.max_bytes is not None  # noqa: S101 - for the type checker
        if size > self.max_bytes:
            return False
        while self.bytes + size > self.max_bytes:
            self.evict(1)
        return True

    def evict(self, count: int | None = None) -> None:
        """Let ``count`` entries go, or one batch; each namespace gives up its share."""
        count, entries = count or self._batch, self.entries
        for space in tuple(self._spaces.values()):
            if held := len(space.records):
                space.evict(-(-count * held // entries))


class Space:
    """The entries of one namespace.

    ``records`` and ``touch`` are public for the sake of the hit path, which reads the one and calls the other without
    a frame in between.
    """

    __slots__ = (
        *("_memory", "_namespace", "_sizes", "_sized", "_sweep", "_touched", "_until_sweep"),
        *("records", "shortcuts", "touch"),
    )

    def __init__(self, memory: Memory, namespace: str) -> None:
        self.records: Final[dict[str, Record]] = {}
        """Least recently used first, but for the touches not yet settled."""
        self._touched: Final[deque[str]] = deque(maxlen=_TOUCHES)
        self.touch: Final = self._touched.append
        """Note a use of a key; the order is mended when something must be evicted."""
        self._memory: Final = memory
        self._namespace: Final = namespace
        self._sizes: Final[dict[str, int]] = {}
        self.shortcuts: Final[dict[str, tuple[dict[Any, Any], Any]]] = {}
        """Where a record is repeated, to be dropped together with it."""
        self._sized: Final = memory.sized
        self._sweep: Iterator[str] = iter(())
        self._until_sweep = _SWEEP_EVERY

    def put(self, key: str, record: Record, now: float) -> None:
        """Store a record, evicting others if there is no room; one that can never fit is not stored."""
        if self._sized:
            self.pop(key)
            size = self._memory.measure(key, record[0])
            if not self._memory.make_room(size):
                return
            self._sizes[key] = size
            self._memory.bytes += size
        elif key in self.records:
            if self.shortcuts:
                self.unlink(key)
            self.records[key] = record
            self.touch(key)
            return
        self.insert(key, record, now)

    def insert(self, key: str, record: Record, now: float) -> None:
        """Store a record under a key that is not there."""
        memory = self._memory
        if memory.entries >= memory.max_entries:
            memory.evict()
        self._until_sweep -= 1
        if not self._until_sweep:
            self._sweep_some(now)
        memory.entries += 1
        self.records[key] = record
        if self._touched:  # otherwise the end of the dict is where it belongs
            self.touch(key)

    def pop(self, key: str) -> Record | None:
        """Remove and return a record; ``None`` if there was none."""
        record = self.records.pop(key, None)
        if record is not None:
            self._memory.entries -= 1
            if self._sized:
                self._memory.bytes -= self._sizes.pop(key, 0)
            if self.shortcuts:
                self.unlink(key)
        return record

    def clear(self) -> None:
        """Drop every record of this namespace."""
        memory = self._memory
        memory.entries -= len(self.records)
        memory.bytes -= sum(self._sizes.values())
        for shortcut, name in self.shortcuts.values():
            shortcut.pop(name, None)
        for held in (self.records, self._sizes, self.shortcuts, self._touched):
            held.clear()

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
        """Let the ``count`` least recently used records go."""
        records = self.records
        if self._touched:
            for key in self._touched:
                if (record := records.pop(key, None)) is not None:
                    records[key] = record
            self._touched.clear()
        victims = tuple(islice(records, count))
        self._memory.evictions += len(victims)
        self._remove(victims, "size")

    def _sweep_some(self, now: float) -> None:
        """Look at two records for each that is inserted, and drop those past their time: no task, no full scan."""
        self._until_sweep = _SWEEP_EVERY
        gone = now - self._memory.keep_stale
        expired: list[str] = []
        for key in islice(self._sweep, 2 * _SWEEP_EVERY):
            record = self.records.get(key)
            if record is not None and record[1] <= gone:
                expired.append(key)
        if not expired and next(self._sweep, None) is None:
            self._sweep = iter(tuple(self.records))
        self._remove(expired, "expired")

    def _remove(self, keys: Sequence[str], cause: Cause) -> None:
        memory, records = self._memory, self.records
        if self._sized or self.shortcuts:
            for key in keys:
                self.pop(key)
        else:
            for key in keys:
                del records[key]
            memory.entries -= len(keys)
        if memory.on_removed is not None:
            for key in keys:
                memory.on_removed(self._namespace, key, cause)
