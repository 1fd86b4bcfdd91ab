"""What a contender is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Literal

from cases import Case

__all__ = ["Contender", "Fill", "Operation", "decorated"]


async def _nothing() -> None: ...


@dataclass
class Operation:
    """A statement for the loop, and the names in it; it runs with ``key`` from the case's items."""

    statement: str
    names: dict[str, Any]
    close: Callable[[], Awaitable[object]] = _nothing


Decorate = Callable[[Callable[..., Coroutine[Any, Any, Any]]], Callable[..., Any]]
Call = Callable[[int], Awaitable[Any]]
Forget = Callable[[Any, int], Awaitable[object]]


@dataclass
class Fill:
    """For the memory benchmark: how to store entry after entry."""

    how: str
    """``set`` takes a key and a value; ``call`` a number, and the function returns the value for it."""
    make: Callable[[int, list[Any]], Callable[..., Awaitable[Any]]]
    """Called with the capacity and the values, inside the running loop."""


@dataclass
class Contender:
    """One library in one configuration."""

    name: str
    package: str | None
    """On PyPI; None for what comes with Python."""
    how: str
    """The configuration, for the report."""
    prepare: Callable[[Case], Awaitable[Operation | None]] | None = None
    """Build a filled cache for a case; None where it has no such operation."""
    load_once: Callable[[Call], Call] | None = None
    """For the stampede: make a loader of numbers into a cached one."""
    forget: Forget | None = None
    """For the comparison: remove the result for a number from what ``load_once`` made, by the library's own way."""
    fill: Fill | None = None
    kind: Literal["ours", "peer", "reference"] = "peer"
    notes: tuple[str, ...] = field(default=())


def decorated(case: Case, function: Decorate, method: Decorate | None = None) -> Operation:
    """Return the operation of a ``call`` case for a library that decorates."""

    async def f(a: Any, b: Any = 1) -> Any:  # noqa: ARG001
        return a

    async def method_(self: Any, a: Any, b: Any = 1) -> Any:  # noqa: ARG001
        return a

    if "owner" in case.statement:
        owner = type("Owner", (), {"method": (method or function)(method_)})()
        return Operation(case.statement, {"owner": owner})
    return Operation(case.statement, {"f": function(f)})
