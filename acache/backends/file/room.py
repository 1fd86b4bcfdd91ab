"""The bound, kept without walking the directory at each write; and the work behind the scenes.

Each writer adds to the number of its shard, in one small file, under the lock it holds anyway.  Where the sum comes
near the bound, samples of the entries are looked through, and the longest unused go.  What a killed writer did not
count is put right when its shard is looked through the next time.
"""

from __future__ import annotations

import os
import random
import threading
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from ...clock import Clock
from ...errors import ValueTooLarge
from .disk import Shard, locked, open_root, open_shared

__all__ = ["Room"]

_SHARDS: Final = 256
_HIGH: Final = 0.9
_LOW: Final = 0.8
_POOL: Final = 1000
"""Entries among which the longest unused are looked for."""
_SHARE: Final = 0.25
"""The part of a pool that goes before another pool is asked."""
_SWEEP_PAUSE: Final = 10.0
"""Seconds between two shards looked through behind the scenes."""


class Room:
    """How much is used, and who goes.

    Args:
        path: the directory.
        max_bytes: the bound, if there is one.
        clock: for the pauses.
        tidy: removes garbage from a shard and returns its entries as (last use, shard, name).
        evict: removes an entry, unless it was used since.
    """

    def __init__(
        self,
        path: str,
        max_bytes: int | None,
        clock: Clock,
        *,
        tidy: Callable[[str], list[tuple[float, str, str]]],
        evict: Callable[[float, str, str], None],
    ) -> None:
        self.bounded: Final = max_bytes is not None
        self._path: Final = path
        self._max_bytes: Final = max_bytes or 0
        self._clock: Final = clock
        self._tidy: Final = tidy
        self._evict: Final = evict
        self._next = random.randrange(_SHARDS)  # noqa: S311 - processes begin at different shards
        self._sweep_at = 0.0
        self._mutex: Final = threading.Lock()
        self._thread: threading.Thread | None = None

    def check(self, length: int) -> None:
        """Refuse what would not stay: making room leaves four fifths of the bound."""
        if self.bounded and length > _LOW * self._max_bytes:
            msg = f"{length} bytes are more than four fifths of max_bytes={self._max_bytes}"
            raise ValueTooLarge(msg)

    def keep(self) -> None:
        """After a write: make room behind the scenes where the bound comes near, at once where it is passed."""
        if not self.bounded:
            return
        used = self._used()
        if used > self._max_bytes:
            self._shrink()
        elif used > _HIGH * self._max_bytes:
            self._in_background(self._shrink)

    def account(self, shard: Shard, change: int, *, exactly: bool = False) -> None:
        """Note what a shard holds; under its lock."""
        if not self.bounded:
            return
        with self._sizes(shard.root) as fd:
            at = 8 * shard.index
            used = 0 if exactly else int.from_bytes(os.pread(fd, 8, at), "little")
            os.pwrite(fd, max(0, used + change).to_bytes(8, "little"), at)

    def tend(self) -> None:
        """After a write: keep the bound, and now and then look through one shard behind the scenes."""
        self.keep()
        now = self._clock.monotonic()
        if now < self._sweep_at:
            return
        self._sweep_at = now + _SWEEP_PAUSE
        self._next = (self._next + 1) % _SHARDS
        self._in_background(lambda: self._tidy(f"{self._next:02x}"))

    def wait(self) -> None:
        """Wait for what runs behind the scenes."""
        with self._mutex:
            thread = self._thread
        if thread is not None:
            thread.join()

    def _used(self) -> int:
        with open_root(self._path, make=True) as root, self._sizes(root) as fd:
            numbers = array("Q", os.pread(fd, 8 * _SHARDS, 0))
        return sum(numbers)

    @contextmanager
    def _sizes(self, root: int) -> Iterator[int]:
        with open_shared(root, "sizes") as fd:
            if os.fstat(fd).st_size != 8 * _SHARDS:
                os.ftruncate(fd, 8 * _SHARDS)
                self._in_background(self._count)
            yield fd

    def _count(self) -> None:
        """Count what was there before anybody counted."""
        for index in range(_SHARDS):
            self._tidy(f"{index:02x}")
        self.keep()

    def _shrink(self) -> None:
        """Remove the longest unused of samples of the entries until a fifth is free."""
        goal = int(_LOW * self._max_bytes)
        with open_root(self._path) as root, locked(root, "sweep.lock"):
            if self._used() <= goal:
                return  # somebody else made room meanwhile
            for share in (_SHARE, 1.0):
                pool: list[tuple[float, str, str]] = []
                for index in random.sample(range(_SHARDS), _SHARDS):
                    pool += self._tidy(f"{index:02x}")
                    if len(pool) >= _POOL:
                        if self._shrink_by(pool, share, goal):
                            return
                        pool = []
                if self._shrink_by(pool, share, goal):
                    return

    def _shrink_by(self, pool: list[tuple[float, str, str]], share: float, goal: int) -> bool:
        pool.sort()
        for victim in pool[: int(len(pool) * share) + 1]:
            if self._used() <= goal:
                return True
            self._evict(*victim)
        return self._used() <= goal

    def _in_background(self, work: Callable[[], object]) -> None:
        """Run ``work`` in a thread that ends with it, unless one is running already; it may die with the process."""

        def run() -> None:
            with suppress(OSError):  # the next one may have more luck
                work()

        with self._mutex:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=run, name="acache-sweep", daemon=True)
                self._thread.start()
