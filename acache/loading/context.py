"""`current_load`: what a loader is told about the value it loads, and what it may say about it."""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any, Final

from ..clock import Seconds, ttl_seconds
from ..entry import Entry
from ..policy import DEFAULT, Default

__all__ = ["LoadContext", "current_load", "running_load"]

running_load: Final[ContextVar[LoadContext | None]] = ContextVar("acache_load", default=None)


class LoadContext:
    """One running load, as its loader sees it; get it with `current_load`."""

    __slots__ = ("_ttl", "key", "stale", "stored", "tags")

    def __init__(self, key: str, tags: Iterable[str] = (), stale: Entry | None = None) -> None:
        self.key: Final = key
        """The key of the value; ``""`` where the function was called by ``bypass``."""
        self.tags: Final = set(tags)
        """The tags to store the value with; add what only the loader knows.

        An invalidation of such a tag during the load wins, as it does for any other tag.
        """
        self.stale: Final = stale
        """The old value, if the cache still has it: past its ttl, or fresh and refreshed ahead of its end.

        It is kept for the longer one of the policy's stale windows.  ``refresh()`` asks for a new value and has none.
        """
        self.stored = True
        """Whether the value is to be stored."""
        self._ttl: Seconds | Default | None = DEFAULT

    @property
    def ttl(self) -> Seconds | Default | None:
        """The ttl of the value: seconds above zero, a ``timedelta``, or ``None`` for ever.

        It wins over every other ttl; `DEFAULT` until it is set.
        """
        return self._ttl

    @ttl.setter
    def ttl(self, ttl: Seconds | Default | None) -> None:
        if ttl is not DEFAULT:
            ttl_seconds(ttl)  # so that the error is raised where it was made
        self._ttl = ttl

    def no_store(self) -> None:
        """Give the value to those who wait for it, and store it nowhere."""
        self.stored = False

    def not_modified(self) -> Any:
        """Keep the old value, with the tags it had, for another ttl: ``return current_load().not_modified()``.

        Raises:
            RuntimeError: there is no old value; ask for one only if ``stale`` is not ``None``.
        """
        if self.stale is None:
            msg = f"{self.key!r} has no old value to keep: answer that it was not modified only if .stale is not None"
            raise RuntimeError(msg)
        self.tags.update(self.stale.tags)
        return self.stale.value


def current_load() -> LoadContext:
    """Return the load that is running; for code inside a loader, at any depth, in a worker thread too.

    Raises:
        RuntimeError: none is running, or it is a batch, whose values have their ``ttl=`` and ``tags=`` each.
    """
    context = running_load.get()
    if context is None:
        msg = (
            "current_load() is for code that a loader runs; in a batch loader, pass ttl= a function of the value"
            " and tags= templates, and call the function under a decorator with bypass()"
        )
        raise RuntimeError(msg)
    return context
