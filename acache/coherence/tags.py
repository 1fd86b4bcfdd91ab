"""Tags in this process: one cell per tag in use; invalidating a tag spoils its cell.

An entry holds the cells of its tags and is valid while none of them is spoilt, so invalidating costs the same
whatever the number of entries.  A load takes its cells before it starts: an invalidation that comes during the load
spoils them, and the value is not stored.  A cell lives as long as an entry or a load holds it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from weakref import WeakValueDictionary

__all__ = ["TagCell", "Tags"]


class TagCell:
    """One tag, from one invalidation to the next."""

    __slots__ = ("__weakref__", "spoilt", "tag")

    def __init__(self, tag: str) -> None:
        self.tag: Final = tag
        self.spoilt = False


class Tags:
    """The cells of one namespace."""

    __slots__ = ("_cells", "_listening")

    def __init__(self) -> None:
        self._cells: Final[WeakValueDictionary[str, TagCell]] = WeakValueDictionary()
        self._listening: Final[dict[int, set[str]]] = {}

    def cells(self, tags: Iterable[str]) -> tuple[TagCell, ...]:
        """Return the present cells of ``tags``."""
        return tuple([self._cells.get(tag) or self._new(tag) for tag in tags])

    def listen(self) -> set[str]:
        """Return a set that gets the name of every tag that is spoilt, until `unlisten`.

        For a load that learns only while it runs under which tags its value belongs.
        """
        heard: set[str] = set()
        self._listening[id(heard)] = heard
        return heard

    def unlisten(self, heard: set[str]) -> None:
        """Add nothing more to ``heard``."""
        del self._listening[id(heard)]

    def spoil(self, tags: Iterable[str]) -> None:
        """Make everything that holds one of ``tags`` invalid."""
        tags = tuple(tags)
        for heard in self._listening.values():
            heard.update(tags)
        for tag in tags:
            if (cell := self._cells.pop(tag, None)) is not None:
                cell.spoilt = True

    def spoil_all(self) -> None:
        """Make everything tagged invalid."""
        self.spoil(tuple(self._cells))

    def _new(self, tag: str) -> TagCell:
        cell = self._cells[tag] = TagCell(tag)
        return cell
