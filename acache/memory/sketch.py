"""How often keys were seen, roughly, in a few bytes each: a count-min sketch that ages."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

__all__ = ["Sketch"]

_MOST: Final = 15
_HALVES: Final = bytes(count // 2 for count in range(256))
_ROWS: Final = 4
_MASK64: Final = (1 << 64) - 1
_COUNTERS: Final = 4
"""Counters in each row for each key that is held: there are as many keys again that are not, or were not for long."""
_LEAST, _WIDEST = 1 << 10, 1 << 24
_PERIOD: Final = 10
"""Additions for each key that is held, in which every counter is halved once: the sample of the TinyLFU paper."""
_GAP: Final = 64
"""The rows are halved 1/64 addition for each key apart."""


class Sketch:
    """Estimates frequencies of up to 15, never too low but for the ageing, seldom too high.

    Args:
        seed: 128 bits that those who choose the keys must not know: which keys share their counters depends on them.
    """

    __slots__ = ("_keys", "_left", "_mask", "_multiplier", "_rows", "_turn")

    def __init__(self, seed: int) -> None:
        self._multiplier: Final = seed | 1
        self._keys = _LEAST // _COUNTERS
        self._left = _PERIOD * self._keys
        self._mask = _LEAST - 1
        self._rows = [bytearray(_LEAST) for _ in range(_ROWS)]
        self._turn = 0

    def fit(self, keys: int) -> None:
        """Grow so that ``keys`` are told apart; those that shared a counter until then both keep its count."""
        if keys > self._keys:
            self._left += _PERIOD * (keys - self._keys)
            self._keys = keys
        old, new = self._mask + 1, min(_WIDEST, 1 << (_COUNTERS * keys - 1).bit_length())
        if new > old:
            self._mask = new - 1
            self._rows = [row * (new // old) for row in self._rows]

    def add(self, key: Hashable) -> None:
        """Count a key."""
        mixed, mask = (hash(key) & _MASK64) * self._multiplier >> 32, self._mask
        one, two, three, four = self._rows  # spelt out, as this is what each use costs
        if one[index := mixed & mask] < _MOST:
            one[index] += 1
        if two[index := mixed >> 24 & mask] < _MOST:
            two[index] += 1
        if three[index := mixed >> 48 & mask] < _MOST:
            three[index] += 1
        if four[index := mixed >> 72 & mask] < _MOST:
            four[index] += 1
        self._left -= 1
        if self._left <= 0:
            self._age()

    def estimate(self, key: Hashable) -> int:
        """Tell how often a key was seen of late."""
        mixed, mask = (hash(key) & _MASK64) * self._multiplier >> 32, self._mask
        one, two, three, four = self._rows
        return min(one[mixed & mask], two[mixed >> 24 & mask], three[mixed >> 48 & mask], four[mixed >> 72 & mask])

    def _age(self) -> None:
        """Halve the counters of one row, and soon those of the others.

        All at once would take long.  Far apart would make every estimate depend on which rows had their turn before,
        and between: what an estimate is held against must have been halved as often.
        """
        self._rows[self._turn] = self._rows[self._turn].translate(_HALVES)
        self._turn = (self._turn + 1) % _ROWS
        gap = self._keys // _GAP
        self._left = gap if self._turn else _PERIOD * self._keys - (_ROWS - 1) * gap
