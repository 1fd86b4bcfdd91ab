"""`Load`: everything one question with a loader is about."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from ..clock import Seconds
from ..events import Counters
from ..policy import Policy
from .batch import Part

__all__ = ["Load"]


class Load(NamedTuple):
    """A key, how to get its value, and the rules for keeping it.

    A tuple, because each of ten thousand waiters makes one, and a frozen dataclass takes three times as long.
    """

    key: str
    loader: Callable[[], Awaitable[Any]]
    policy: Policy
    counters: Counters
    tags: tuple[str, ...] = ()
    type: Any = None
    """What a stored value is decoded as."""
    condition: Callable[[Any], bool] | None = None
    """Decides whether a loaded value is stored."""
    ttl: Callable[[Any], Seconds | None] | None = None
    """Decides how long a loaded value is fresh, in place of the policy."""
    part: Part | None = None
    """What is told of its flight, if it is one of a batch that is collected until all its flights have asked."""
    batched: bool = False
    """Whether it is one of a batch, which may find that there is no such value."""
    windowed: bool = False
    """Whether it meets the others of its batch in a window, which closes without those that come late."""
