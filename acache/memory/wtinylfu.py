"""W-TinyLFU (Einziger, Friedman, Manes: "TinyLFU: a highly efficient cache admission policy", 2017).

The window adapts, as in "Adaptive software cache management" (Einziger, Eytan, Friedman, Manes, 2018), but no hill is
climbed: hit ratios of two periods differ more by the requests than by the window, and the climber went astray on them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random
from typing import Final

from .eviction import first, to_the_end
from .sketch import Sketch

__all__ = ["WTinyLfu"]

_WINDOW: Final = 0.005
"""The share of the window at first, and the least it can have.

It is 1 % in the paper, where it cannot grow; half of that leaves loops and scans more of the main part.
"""
_WIDEST: Final = 0.8
_PROTECTED: Final = 0.8
"""The share of the main part that is kept for keys used again there."""
_PERIOD: Final = 2
"""Requests for each key held between two changes of the window."""
_STEP: Final = 0.04
"""The share of the cache that the window grows or shrinks by."""
_CLOSE: Final = 5
"""From this frequency on, being asked for once more says nothing: one was just counted, the other is about to be."""
_WARM: Final = 6
"""From this frequency on, a key that lost is let in once in a while."""
_LUCK: Final = 128
_LOOK_EVERY: Final = 64
"""New keys between two looks at whether the sketch is large enough."""


class WTinyLfu:
    """A small LRU window before a main part that lets in only what is asked for more often than what it replaces.

    The main part has two segments: keys used again there are protected, and step down to probation when others take
    their place.  Whether recency or frequency counts for more is found out: the window grows while a place in it
    brings more keys back into use than a place in probation does, where those stand that would go for it.

    Args:
        seed: of the sketch and of the luck of the loser; without one it differs from process to process.
    """

    def __init__(self, *, seed: int | None = None) -> None:
        self._random: Final = Random(seed)  # noqa: S311 - it has to be unknown to the clients, not to the keeper
        self._sketch: Final = Sketch(self._random.getrandbits(128))
        self._window: Final[dict[str, bool]] = {}
        """Whether each key was used since it came."""
        self._probation: Final[dict[str, None]] = {}
        self._protected: Final[dict[str, None]] = {}
        self._share = _WINDOW
        self._hits = 0
        self._misses = 0
        self._revived_in_window = 0
        """Keys used for the first time since they came there, in this period; more uses would come anywhere."""
        self._revived_in_probation = 0

    def __len__(self) -> int:
        return len(self._window) + len(self._probation) + len(self._protected)

    def added(self, key: str) -> None:
        """See `Eviction.added`."""
        self._misses += 1
        if not self._misses % _LOOK_EVERY:
            self._sketch.fit(len(self))
        self._sketch.add(key)
        self._window[key] = False

    def used(self, keys: Iterable[str]) -> None:
        """See `Eviction.used`."""
        window, probation, protected = self._window, self._probation, self._protected
        for key in keys:
            self._hits += 1
            self._sketch.add(key)
            if key in protected:
                to_the_end(protected, key)
            elif key in probation:
                del probation[key]
                protected[key] = None
                self._revived_in_probation += 1
            elif key in window:
                self._revived_in_window += not window.pop(key)
                window[key] = True
        most = int(_PROTECTED * (1.0 - self._share) * len(self))
        for key in first(protected, len(protected) - most):
            del protected[key]
            probation[key] = None

    def removed(self, key: str) -> None:
        """See `Eviction.removed`."""
        for part in (self._window, self._probation, self._protected):
            part.pop(key, None)

    def take(self, count: int) -> Sequence[str]:
        """See `Eviction.take`."""
        held = len(self)
        if len(self._window) == held:  # it has just been filled, and there was no main part to compare with
            self._revived_in_window = 0
        if self._hits + self._misses >= _PERIOD * held:
            self._adapt()
        window, probation = self._window, self._probation
        leaving = first(window, len(window) - max(1, int(self._share * held)))
        for key in leaving:
            del window[key]
            probation[key] = None
        # What left the window before these did so while the main part had room.
        candidates = leaving[max(0, len(leaving) - count) :]
        victims = self._losers(candidates, first(probation, min(count, len(probation) - len(candidates))), count)
        for key in victims:
            del probation[key]
        for part in (probation, self._protected, window):
            for key in first(part, count - len(victims)):
                del part[key]
                victims.append(key)
        return victims

    def _losers(self, candidates: Iterable[str], residents: Iterable[str], count: int) -> list[str]:
        """Let those who want to come in compete with those who are next to go."""
        losers: list[str] = []
        waiting = iter(candidates)
        candidate = next(waiting, None)
        for resident in residents:
            while candidate is not None and not self._beats(candidate, resident):
                losers.append(candidate)
                candidate = next(waiting, None)
            losers.append(resident)
            candidate = next(waiting, None)
        return losers[:count]

    def _beats(self, candidate: str, resident: str) -> bool:
        mine, theirs = self._sketch.estimate(candidate), self._sketch.estimate(resident)
        if mine > theirs + (theirs >= _CLOSE):
            return True
        # Keys made to collide with a popular one would otherwise seem popular for ever, and keep everything else out.
        return mine >= _WARM and not self._random.randrange(_LUCK)

    def _adapt(self) -> None:
        """Give places to the window or take some, whichever part made more of each it had."""
        in_window = self._revived_in_window * len(self._probation)
        in_probation = self._revived_in_probation * len(self._window)
        step = _STEP if in_window > in_probation else -_STEP
        self._share = min(_WIDEST, max(_WINDOW, self._share + step))
        self._hits = self._misses = self._revived_in_window = self._revived_in_probation = 0

    def clear(self) -> None:
        """See `Eviction.clear`; what is popular is still known."""
        for part in (self._window, self._probation, self._protected):
            part.clear()
