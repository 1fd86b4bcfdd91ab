"""`Watch`: tells a reader, when it comes back with a value, whether something wrote the key meanwhile.

The race it settles, in one process::

    L: reads "nothing", calls the loader ........ comes back with the old value -> must not store it
    D:                       delete() returns

L opens a mark before it looks; D breaks every open mark of the key, both before it goes to the far tier (a load that
comes back now would be overwritten, one that comes back later would not) and after (a read that began meanwhile may
have seen the old value); L stores only under an intact mark.
"""

from __future__ import annotations

from typing import Final

__all__ = ["Mark", "Watch"]


class Mark:
    """One reader's or writer's note about a key."""

    __slots__ = ("intact", "writer")

    def __init__(self, *, writer: bool = False) -> None:
        self.intact = True
        self.writer: Final = writer


class Watch:
    """The open marks of one namespace."""

    __slots__ = ("marks",)

    def __init__(self) -> None:
        self.marks: Final[dict[str, set[Mark]]] = {}
        """The open marks by key; empty when nothing is being read, loaded or written."""

    def open(self, key: str) -> Mark:
        """Note that a value of ``key`` is about to be fetched."""
        mark = Mark()
        self.marks.setdefault(key, set()).add(mark)
        return mark

    def open_write(self, key: str) -> Mark:
        """Note that ``key`` is about to be written, and break what is open.

        Of two writers at a time, nobody here knows whose value the far tier kept: neither may keep its own near.
        """
        mark = Mark(writer=True)
        marks = self.marks.setdefault(key, set())
        for other in marks:
            other.intact = False
            if other.writer:
                mark.intact = False
        marks.add(mark)
        return mark

    def close(self, key: str, mark: Mark) -> None:
        """Forget a mark; a writer's end breaks the marks that were opened while it was writing."""
        marks = self.marks[key]
        marks.discard(mark)
        if mark.writer:
            for other in marks:
                other.intact = False
        if not marks:
            del self.marks[key]

    def break_all(self) -> None:
        """Break every mark: the whole namespace was written."""
        for marks in self.marks.values():
            for mark in marks:
                mark.intact = False

    def break_key(self, key: str) -> None:
        """Break the marks of a key that was written in one step, with no far tier to wait for."""
        for mark in self.marks.get(key, ()):
            mark.intact = False
