"""The seam of the eviction policies, and the policy that needs nothing but the order of the records: LRU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Final, Literal, Protocol, TypeAlias, TypeVar

__all__ = ["Eviction", "LeastRecentlyUsed", "PolicyName", "first", "to_the_end"]

K = TypeVar("K")
PolicyName: TypeAlias = Literal["lru", "s3fifo", "wtinylfu"]


class Eviction(Protocol):
    """Chooses which records of one namespace go when there is no room.

    It is told what comes, what goes and, in batches, what was used; uses of keys that went meanwhile are among them.
    """

    @property
    def added(self) -> Callable[[str], object] | None:
        """Is told of each new key; ``None`` where the order in ``records`` says it all."""
        ...

    def used(self, keys: Iterable[str]) -> None:
        """Take note of hits, oldest first."""
        ...

    def removed(self, key: str) -> None:
        """Forget a key that went for another reason than room."""
        ...

    def take(self, count: int) -> Sequence[str]:
        """Choose ``count`` keys to go, or all if there are fewer, and forget them."""
        ...

    def clear(self) -> None:
        """Forget everything."""
        ...


class LeastRecentlyUsed:
    """The key that was not used for the longest time goes first."""

    def __init__(self, records: dict[str, Any]) -> None:
        self.added: Final = None
        self._records: Final = records

    def used(self, keys: Iterable[str]) -> None:
        """See `Eviction.used`."""
        records = self._records
        for key in keys:
            if (record := records.pop(key, None)) is not None:
                records[key] = record

    def removed(self, key: str) -> None:
        """Do nothing: the order went with the record."""

    def take(self, count: int) -> Sequence[str]:
        """See `Eviction.take`."""
        return first(self._records, count)

    def clear(self) -> None:
        """Do nothing: the order went with the records."""


def first(queue: Mapping[K, Any], count: int) -> tuple[K, ...]:
    """Return the ``count`` keys at the front, none if it is negative.

    A dict passes over the places of keys that are gone, so take many at a time.
    """
    return tuple(islice(queue, max(0, count)))


def to_the_end(queue: dict[str, None], key: str) -> None:
    """Make ``key`` the last one."""
    queue.pop(key, None)
    queue[key] = None
