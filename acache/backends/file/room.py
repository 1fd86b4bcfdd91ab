"""The bound, kept without walking the directory at each write; and the work behind the scenes.

Each writer adds to the number of its shard, in one small file, under the lock it holds anyway.  Where the sum comes
near the bound, samples of the entries are looked through, and the longest unused go.  What a killed writer did not
count is put right when its shard is looked through the next time.
"""

from __future__ import annotations

import math
import os
import random
import threading
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from ...clock import Clock
from .disk import Shard, locked, open_root, open_shared

__all__ = ["LOW", "Room"]

_SHARDS: Final = 256
_HIGH: Final = 0.9
LOW: Final = 0.8
"""The part of the bound down to which room is made: a value larger than this would not stay."""
_SAMPLE: Final = 1000
"""Entries among which the longest unused are looked for."""
_SHARE: Final = 0.25
"""The part of a sample that goes before another sample is taken."""
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

    def make(self, size: int) -> None:
        """Before a write: see that there is room for ``size`` bytes, and behind the scenes for more to come.

        Raises:
            BlockingIOError: there is none yet, and somebody else is making it.
        """
        if not self.bounded:
            return
        used = self._used() + size
        if used > self._max_bytes:
            self._shrink(size)
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
        """After a write: look through one shard now and then, behind the scenes."""
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
        root = open_root(self._path, make=True)
        try:
            with self._sizes(root) as fd:
                return sum(array("Q", os.pread(fd, 8 * _SHARDS, 0)))
        finally:
            os.close(root)

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
            self._tidy_unless_held(index)

    def _shrink(self, size: int = 0) -> None:
        """Remove the longest unused of samples of the entries until a fifth is free, and ``size`` too."""
        goal = min(int(LOW * self._max_bytes), self._max_bytes - size)
        root = open_root(self._path)
        try:
            with locked(root, "sweep.lock"):
                # The first time round only the quarter of each sample that was not used for the longest time.
                for share in (_SHARE, 1.0):
                    sample: list[tuple[float, str, str]] = []
                    for index in random.sample(range(_SHARDS), _SHARDS):
                        if self._used() <= goal:
                            return
                        sample += self._tidy_unless_held(index)
                        if len(sample) >= _SAMPLE:
                            self._evict_from(sample, share, goal)
                            sample = []
                    self._evict_from(sample, share, goal)
        finally:
            os.close(root)

    def _evict_from(self, sample: list[tuple[float, str, str]], share: float, goal: int) -> None:
        sample.sort()
        for victim in sample[: math.ceil(len(sample) * share)]:
            if self._used() <= goal:
                return
            with suppress(BlockingIOError):
                self._evict(*victim)

    def _tidy_unless_held(self, index: int) -> list[tuple[float, str, str]]:
        """Look through a shard, unless whoever holds its lock does not let go: the others must not wait for it."""
        try:
            return self._tidy(f"{index:02x}")
        except BlockingIOError:
            return []

    def _in_background(self, work: Callable[[], object]) -> None:
        """Run ``work`` in a thread that ends with it, unless one is running already; it may die with the process."""

        def run() -> None:
            with suppress(OSError):  # the next one may have more luck
                work()

        with self._mutex:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=run, name="acache-sweep", daemon=True)
                self._thread.start()
