"""`Watch`: tells a reader, when it comes back with a value, whether something wrote the key meanwhile.

The race it settles, in one process::

    L: reads "nothing", calls the loader ........ comes back with the old value -> must not store it
    D:                       delete() returns

L opens a mark before it looks; D breaks every open mark of the key, both before it goes to the far tier (a load that
comes back now would be overwritten, one that comes back later would not) and after (a read that began meanwhile may
have seen the old value); L stores only under an intact mark.

What the far tier tells of others' changes breaks marks too, but keeps a load from its fill only while the loader runs::

    L: looks, the far tier finds that the entry has ended, and tells that before or after it answers "nothing"
    L: .......... calls the loader ........... fills by compare-and-set; the far tier tells of that, too

Around the look and the fill the far tier's own comparison decides.  In between, a change that it cannot tell from
"never there", such as another program's plain removal, makes what is being loaded old.
"""

from __future__ import annotations

from typing import Final

__all__ = ["Mark", "Watch"]


class Mark:
    """One reader's or writer's note about a key."""

    __slots__ = ("fillable", "intact", "loading", "writer")

    def __init__(self, *, writer: bool = False) -> None:
        self.intact = True
        """Whether nobody changed the key, as far as anybody here could know: the value may be kept near."""
        self.fillable = True
        """Whether a loaded value may be offered to the far tier."""
        self.loading = False
        """Whether it is between the look at the far tier and the fill."""
        self.writer: Final = writer

    def break_(self) -> None:
        """Note that this process changed the key."""
        self.intact = self.fillable = False


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
            other.break_()
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
                other.break_()
        if not marks:
            del self.marks[key]

    def break_all(self) -> None:
        """Break every mark: the whole namespace was written."""
        for marks in self.marks.values():
            for mark in marks:
                mark.break_()

    def break_key(self, key: str) -> None:
        """Break the marks of a key that was written in one step, with no far tier to wait for."""
        for mark in self.marks.get(key, ()):
            mark.break_()

    def told(self, key: str) -> bool:
        """Take note that the far tier told of a change of ``key``; return whether it makes a load old."""
        old = False
        for mark in self.marks.get(key, ()):
            mark.intact = False
            if mark.loading:
                mark.fillable, old = False, True
        return old

    def distrust(self) -> None:
        """Keep everything that is being read or loaded from the near tier: changes may have gone untold."""
        for marks in self.marks.values():
            for mark in marks:
                mark.intact = False
