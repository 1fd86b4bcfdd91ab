"""What an engine is: a server, what is asked of it, and the sides that take turns: bare clients, backends, caches."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["LONGEST", "MANY", "TTL", "Bar", "Calls", "Engine", "Side", "Workload", "kilo"]

TTL = 300
"""Seconds every entry lives."""
LONGEST = 30.0
"""Seconds a side may wait for an answer, wherever that can be said: a loaded machine must fail nobody."""
MANY = 100
"""Keys of one get_many."""


@dataclass(frozen=True)
class Workload:
    """One table: what is called, by how many tasks at once, with values of how many bytes."""

    operation: Literal["get", "set", "get_many", "mixed"]
    tasks: int = 1
    size: int = 100

    @property
    def title(self) -> str:
        """Say it in words."""
        what = {"get": "get", "set": "set", "get_many": f"get_many of {MANY} x", "mixed": "90 % get, 10 % set,"}
        how = "one at a time" if self.tasks == 1 else f"{self.tasks:,} tasks"
        joint = " of" if self.operation in ("get", "set") else ""
        return f"{what[self.operation]}{joint} {kilo(self.size)}, {how}"


def kilo(size: int) -> str:
    """Write a number of bytes."""
    return f"{size} B" if size < 1000 else f"{size // 1000} KB"


@dataclass
class Calls:
    """An opened side: what each operation is there."""

    get: Callable[[str], Awaitable[object]]
    set: Callable[[str, Any], Awaitable[object]]
    get_many: Callable[[Sequence[str]], Awaitable[object]] | None = None


@dataclass
class Side:
    """One way to use the engine; the first of an engine's sides is the base of the ratios."""

    name: str
    how: str
    """The configuration, for the report."""
    open: Callable[[str], AbstractAsyncContextManager[Calls]]
    """Connect to a URL, and close in the end what was opened; ImportError where a package is missing."""
    kind: Literal["ours", "peer", "reference"] = "peer"
    text: bool = False
    """Whether its values are str, as a cache's are that writes JSON; else bytes."""
    loop: Literal["asyncio", "uvloop"] = "asyncio"
    layer: Literal["client", "cache"] | None = "client"
    """With which peers it is compared in the list of those that are ahead; None: with none, it is no default."""
    beside: str | None = None
    """Another side this one is compared with as well."""


@dataclass(frozen=True)
class Bar:
    """What acache wants to stay below: one side in one workload, against the first side."""

    workload: Workload
    side: str
    unit: Literal["wall", "cpu", "server"]
    most: float


@dataclass
class Engine:
    """One server, or none, and its sides."""

    name: str
    section: str
    """As the command line calls it."""
    service: str | None
    """As tests/services.py knows it; None for what needs no server."""
    sides: list[Side]
    workloads: list[Workload]
    bars: list[Bar] = field(default_factory=list)
    pid: Callable[[str], int | None] = lambda _: None
    """The process of the server, as the server itself says; its processor time is read if it is on this machine."""
    processes: tuple[str, ...] = ()
    """What such a process is called, so that no other is taken for one in a container or on another machine."""
    packages: tuple[str, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)
    """What was left out on purpose, and why."""
