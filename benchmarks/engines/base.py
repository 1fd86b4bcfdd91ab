"""What an engine is: one of acache's backends, and the bare client it stands on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["DATA", "KEY", "TTL", "Engine", "Side"]

KEY = "acache-bench:key"
DATA = b"x" * 100
TTL = 300.0


@dataclass
class Side:
    """The backend or a bare client, ready to work, with ``DATA`` stored."""

    name: str
    how: str
    """The configuration, for the report."""
    get: Callable[[], Awaitable[object]]
    set: Callable[[], Awaitable[object]]
    kind: Literal["ours", "reference"] = "reference"


@dataclass
class Engine:
    """One comparison; the first reference of its sides is the base of the ratios."""

    name: str
    service: str | None
    """As tests/services.py knows it; None for what needs no server."""
    open: Callable[[str], AbstractAsyncContextManager[list[Side]]]
    """Connect to a URL, fill, and close in the end what was opened."""
    bars: Mapping[tuple[str, int], float] = field(default_factory=dict)
    """By operation and number of tasks: the ratio acache wants to stay below."""
    judged_by: Literal["cpu", "wall"] = "cpu"
