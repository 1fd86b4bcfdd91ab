"""How often keys were seen, roughly, in a few bytes each: a count-min sketch that ages."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

__all__ = ["Sketch"]

_MOST: Final = 15
_HALVES: Final = bytes(count // 2 for count in range(256))
_ROWS: Final = (32, 56, 80, 104)
"""Which bits of the hash lead to a counter, row by row."""
_MASK64: Final = (1 << 64) - 1
_LEAST, _WIDEST = 256, 1 << 24
_PERIOD: Final = 10
"""All counters are halved after so many additions for each key that is held."""


class Sketch:
    """Estimates frequencies of up to 15, never too low but for the ageing, seldom too high.

    Args:
        seed: 128 bits that those who choose the keys must not know: which keys share their counters depends on them.
    """

    __slots__ = ("_added", "_mask", "_multiplier", "_period", "_rows")

    def __init__(self, seed: int) -> None:
        self._multiplier: Final = seed | 1
        self._added = 0
        self._period = _PERIOD * _LEAST
        self._mask = _LEAST - 1
        self._rows = tuple([(shift, bytearray(_LEAST)) for shift in _ROWS])

    def fit(self, keys: int) -> None:
        """Grow so that ``keys`` are told apart; those that shared a counter until then both keep its count."""
        self._period = _PERIOD * max(_LEAST, keys)
        old, new = self._mask + 1, min(_WIDEST, 1 << (keys - 1).bit_length())
        if new > old:
            self._mask = new - 1
            self._rows = tuple([(shift, row * (new // old)) for shift, row in self._rows])

    def add(self, key: Hashable) -> None:
        """Count a key."""
        mixed, mask = (hash(key) & _MASK64) * self._multiplier, self._mask
        for shift, row in self._rows:
            index = mixed >> shift & mask
            if row[index] < _MOST:
                row[index] += 1
        self._added += 1
        if self._added >= self._period:
            self._rows = tuple([(shift, row.translate(_HALVES)) for shift, row in self._rows])
            self._added //= 2

    def estimate(self, key: Hashable) -> int:
        """Tell how often a key was seen of late."""
        mixed, mask = (hash(key) & _MASK64) * self._multiplier, self._mask
        return min([row[mixed >> shift & mask] for shift, row in self._rows])
