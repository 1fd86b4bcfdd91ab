"""S3-FIFO (Yang, Zhang, Qiu, Yue, Rashmi: "FIFO queues are all you need for cache eviction", SOSP 2023)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final

from .eviction import first

__all__ = ["S3Fifo"]

_SMALL: Final = 10
"""The small queue holds a tenth of the keys."""
_MOST: Final = 3
"""Uses are counted up to here."""


class S3Fifo:
    """Three queues, first in, first out: what is not used again soon leaves early.

    A new key enters the small queue.  At its end it moves on to the main queue if it was used more than once, and goes
    otherwise; its hash is remembered for a while, and if it comes back it enters the main queue at once.  At the end of
    the main queue a key gets another round for each use.
    """

    def __init__(self) -> None:
        self._small: Final[dict[str, int]] = {}
        self._main: Final[dict[str, int]] = {}
        self._ghosts: Final[dict[int, None]] = {}

    def added(self, key: str) -> None:
        """See `Eviction.added`."""
        fingerprint = hash(key)
        if fingerprint in self._ghosts:
            del self._ghosts[fingerprint]
            self._main[key] = 0
        else:
            self._small[key] = 0

    def used(self, keys: Iterable[str]) -> None:
        """See `Eviction.used`."""
        small, main = self._small, self._main
        for key in keys:
            if (uses := main.get(key)) is not None:
                if uses < _MOST:
                    main[key] = uses + 1
            elif (uses := small.get(key, _MOST)) < _MOST:
                small[key] = uses + 1

    def removed(self, key: str) -> None:
        """See `Eviction.removed`."""
        if self._small.pop(key, None) is None:
            self._main.pop(key, None)

    def take(self, count: int) -> Sequence[str]:
        """See `Eviction.take`."""
        victims: list[str] = []
        small, main = self._small, self._main
        while len(victims) < count and (small or main):
            wanted = count - len(victims)
            surplus = len(small) - (len(small) + len(main)) // _SMALL
            if surplus > 0 or not main:
                self._take_small(min(wanted, max(surplus, 1)), victims)
            else:
                self._take_main(wanted, victims)
        held = len(small) + len(main)
        self._forget_ghosts(held - held // _SMALL)  # what the main queue may hold, not what it holds by now
        return victims

    def _take_small(self, count: int, victims: list[str]) -> None:
        small, main, ghosts = self._small, self._main, self._ghosts
        for key, uses in tuple(islice(small.items(), count)):
            del small[key]
            if uses > 1:
                main[key] = 0
            else:
                ghosts[hash(key)] = None
                victims.append(key)

    def _take_main(self, count: int, victims: list[str]) -> None:
        main = self._main
        for key, uses in tuple(islice(main.items(), count)):
            del main[key]
            if uses:
                main[key] = uses - 1
            else:
                victims.append(key)

    def _forget_ghosts(self, most: int) -> None:
        ghosts = self._ghosts
        for fingerprint in first(ghosts, len(ghosts) - most):
            del ghosts[fingerprint]

    def clear(self) -> None:
        """See `Eviction.clear`."""
        for queue in (self._small, self._main, self._ghosts):
            queue.clear()
