"""Other people's answers to the traces of simulate.py: what the near tier's hit ratios are held against.

LRU is cachetools', W-TinyLFU is theine's.  No package in the ``bench`` group has S3-FIFO, so it is written here: from
the paper, and apart from the one in acache.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["REFERENCES", "S3Fifo"]


class S3Fifo:
    """Algorithm 1 of Yang, Zhang, Qiu, Yue, Rashmi: "FIFO queues are all you need for cache eviction", SOSP 2023.

    A small queue of a tenth of the cache, a main queue of the rest, and as many ghosts as the main queue holds keys.
    Each queue begins with what came first; a key has its counter of two bits beside it.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.small_size = max(1, size // 10)
        self.main_size = size - self.small_size
        self.small: OrderedDict[int, int] = OrderedDict()
        self.main: OrderedDict[int, int] = OrderedDict()
        self.ghosts: OrderedDict[int, None] = OrderedDict()

    def request(self, key: int) -> bool:
        """Ask for a key, which is stored if it is not there; tell whether it was."""
        for queue in (self.small, self.main):
            if key in queue:
                queue[key] = min(queue[key] + 1, 3)
                return True
        while len(self.small) + len(self.main) >= self.size:
            self._evict()
        if key in self.ghosts:
            del self.ghosts[key]
            self.main[key] = 0
        else:
            self.small[key] = 0
        return False

    def _evict(self) -> None:
        if len(self.small) >= self.small_size or not self.main:
            self._evict_small()
        else:
            self._evict_main()

    def _evict_small(self) -> None:
        while self.small:
            key, uses = self.small.popitem(last=False)
            if uses <= 1:
                self.ghosts[key] = None
                if len(self.ghosts) > self.main_size:
                    self.ghosts.popitem(last=False)
                return
            self.main[key] = 0
            if len(self.main) > self.main_size:
                self._evict_main()
                return

    def _evict_main(self) -> None:
        while True:
            key, uses = self.main.popitem(last=False)
            if not uses:
                return
            self.main[key] = uses - 1


def _s3fifo(keys: Sequence[int], size: int) -> float:
    request = S3Fifo(size).request
    return sum(map(request, keys)) / len(keys)


def _lru(keys: Sequence[int], size: int) -> float:
    from cachetools import LRUCache

    cache: Any = LRUCache(size)
    hits = 0
    for key in keys:
        if cache.get(key) is None:
            cache[key] = True
        else:
            hits += 1
    return hits / len(keys)


def _wtinylfu(keys: Sequence[int], size: int) -> float:
    from theine import Cache

    random.seed(1)  # which of its buffers a read goes into
    cache: Any = Cache(size, nolock=True)
    hits = 0
    for key in keys:
        if cache.get(key)[1]:
            hits += 1
        else:
            cache.set(key, True)
    cache.close()
    return hits / len(keys)


REFERENCES: dict[str, tuple[str, Callable[[Sequence[int], int], float]]] = {
    "lru": ("cachetools", _lru),
    "s3fifo": ("the paper", _s3fifo),
    "wtinylfu": ("theine", _wtinylfu),
}
"""For each policy whose reference it is, and the hit ratio of a cache of that size over a trace."""
