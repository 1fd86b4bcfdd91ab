"""Tags in this process: one cell per tag in use; invalidating a tag spoils its cell.

An entry holds the cells of its tags and is valid while none of them is spoilt, so invalidating costs the same
whatever the number of entries.  A load takes its cells before it starts: an invalidation that comes during the load
spoils them, and the value is not stored.  A cell lives as long as an entry or a load holds it.

Where the far tier tells of changes, a cell also mirrors the token that the tag has there.  It takes one in only if it
was there, and trusted, from before the token was asked for until the answer came::

    P: asks for the token ............. the answer, old ............. takes it in?
    Q:            replaces it; P is told, and its cell is spoilt: nobody looks at that one any more
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from weakref import WeakValueDictionary

__all__ = ["EPOCH", "Heard", "TagCell", "Tags"]

EPOCH: Final = ""
"""What no user's tag is called: the namespace itself, whose token every entry in it carries."""


class TagCell:
    """One tag, from one invalidation to the next."""

    __slots__ = ("__weakref__", "seen_at", "spoilt", "tag", "token")

    def __init__(self, tag: str) -> None:
        self.tag: Final = tag
        self.spoilt = False
        self.token: bytes | None = None
        """The record that the far tier has for it, where it is mirrored."""
        self.seen_at = 0.0
        """When that was asked for last; monotonic."""


class Heard:
    """The tags that were invalidated while somebody listened, each with which invalidation was its last."""

    __slots__ = ("_last", "count")

    def __init__(self) -> None:
        self.count = 0
        self._last: Final[dict[str, int]] = {}

    def hear(self, tags: Iterable[str]) -> None:
        """Take note of one more invalidation."""
        self.count += 1
        for tag in tags:
            self._last[tag] = self.count

    def last_of(self, tags: Iterable[str]) -> int:
        """Return which invalidation was the last that named one of ``tags``; 0: none did."""
        return max([self._last.get(tag, 0) for tag in tags], default=0)


class Tags:
    """The cells of one namespace."""

    __slots__ = ("_cells", "_listening", "_of_namespace", "counted", "era", "ever_counted", "heir", "latest_epoch")

    def __init__(self, *, ever_counted: bool = False) -> None:
        self._cells: Final[WeakValueDictionary[str, TagCell]] = WeakValueDictionary()
        self._listening: Final[set[Heard]] = set()
        self._of_namespace: TagCell | None = None
        self.era = 0
        """Counts the times at which what was mirrored stopped being known to be so."""
        self.latest_epoch: bytes | None = None
        """What the far tier said last of the namespace's token, however long ago."""
        self.heir: tuple[bytes, bytes] | None = None
        """A token of the namespace that the far tier had lost, and the one that was made here in its place."""
        self.counted = False
        """Whether it said that there may be counters."""
        self.ever_counted = ever_counted
        """Whether it ever did: where the namespace's token is lost, so is that."""

    def cells(self, tags: Iterable[str]) -> tuple[TagCell, ...]:
        """Return the present cells of ``tags``."""
        return tuple([self._cells.get(tag) or self._new(tag) for tag in tags])

    def mirrored(self, tag: str) -> TagCell | None:
        """Return the cell that holds the tag's token, if there is one."""
        cell = self._cells.get(tag)
        return None if cell is None or cell.token is None else cell

    def forget_mirrored(self) -> None:
        """Mirror nothing any more of what was asked for until now."""
        self.era += 1
        for cell in tuple(self._cells.values()):
            cell.token = None

    def listen(self) -> Heard:
        """Return what hears of every tag that is spoilt, until `unlisten`.

        For a load that learns only while it runs under which tags its value belongs.
        """
        heard = Heard()
        self._listening.add(heard)
        return heard

    def unlisten(self, heard: Heard) -> None:
        """Tell ``heard`` nothing more."""
        self._listening.discard(heard)

    def spoil(self, tags: Iterable[str]) -> None:
        """Make everything that holds one of ``tags`` invalid."""
        tags = tuple(tags)
        for heard in self._listening:
            heard.hear(tags)
        for tag in tags:
            if (cell := self._cells.pop(tag, None)) is not None:
                cell.spoilt = True

    def spoil_all(self) -> None:
        """Make everything tagged invalid."""
        self.spoil(tuple(self._cells))

    def _new(self, tag: str) -> TagCell:
        cell = self._cells[tag] = TagCell(tag)
        if tag == EPOCH:
            self._of_namespace = cell  # no near entry holds it
        return cell
