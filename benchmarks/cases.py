"""What is measured: the timed cases, their bars, and the data every contender works on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, repeat
from typing import Any, Literal

__all__ = ["BARS", "CAPACITY", "CASES", "KEY", "KEYS", "TTL", "VALUE", "Case", "bare", "items_of"]

CAPACITY = 10_000
"""Entries every bounded cache may hold."""
TTL = 300
"""Seconds an entry lives, in every cache that has a lifetime."""
KEY = "user:42"
VALUE = "a small value"
KEYS = [f"user:{number}" for number in range(1_000)]
"""What each cache holds before a get or a set of an existing key is timed."""

BARS = {
    "get": 3.0,
    "set": 3.5,
    "evict": 8.0,
    "call": 2.3,
    "stampede loads": 1.0,
    "stampede": 1.5,
    "memory": 130.0,
    "collection": 60.0,
    "flights": 1024.0,
    "expiry": 10.0,
    "reference": 1.0,
    "lru": 2.0,
    "import": 60.0,
    "tracked hit": 1.3,
    "agreement": 5.0,
    "breaker": 3.0,
    "lease loads": 1.0,
    "lease": 20.0,
    "uvloop": 1.0,
}
"""Ratios to the bare coroutine; then loads, ratio, bytes, milliseconds, KiB, milliseconds, points twice, milliseconds,
ratio, milliseconds, ratio, loads, milliseconds, ratio.  Those of servers: engines/."""


@dataclass(frozen=True)
class Case:
    """One timed operation: a statement inside a ``for`` loop."""

    name: str
    title: str
    kind: Literal["get", "set", "evict", "load", "call"]
    items: Literal["one", "many", "new", "numbers"]
    statement: str = ""
    """For ``call``, the same for all; other kinds are spelt by each contender."""
    capacity: int = CAPACITY
    """Entries the cache may hold, where it has a bound."""

    @property
    def bar(self) -> float | None:
        """The ratio acache wants to stay below."""
        return BARS.get(self.kind)


CASES = (
    Case("get", "get, a hit on one key", "get", "one"),
    Case("get-1000", "get, hits rotating over 1,000 keys", "get", "many"),
    Case("get-namespace", "get in a namespace, hits rotating over 1,000 keys", "get", "many"),
    Case("get-or-load", "get or load, a hit on one key", "load", "one"),
    Case("set", "set of one existing key", "set", "one"),
    Case("set-1000", "set rotating over 1,000 existing keys", "set", "many"),
    Case("evict", f"set of a new key in a full cache ({CAPACITY:,} entries)", "evict", "new"),
    Case("call-1", "decorated hit, f(1)", "call", "one", "await f(1)"),
    Case("call-1-b2", "decorated hit, f(1, b=2)", "call", "one", "await f(1, b=2)"),
    Case("call-method", "decorated hit, a method", "call", "one", "await owner.method(1)"),
    Case("call-1000", "decorated hit, f(n) rotating over 1,000 large ints", "call", "numbers", "await f(key)"),
)


def items_of(case: Case) -> tuple[Iterator[Any], int]:
    """Return an endless iterator over the values of ``key`` in the loop, and the length of one cycle."""
    if case.items == "one":
        return repeat(KEY), 1
    if case.items == "many":  # equal to the stored keys, but other objects, as in a program that builds its keys
        return cycle([f"user:{number}" for number in range(1_000)]), 1_000
    if case.items == "numbers":  # beyond the ints that the interpreter keeps, and other objects in each of three rounds
        return cycle([int(f"{100_000 + number % 1_000}") for number in range(3_000)]), 3_000
    return cycle([f"new:{number}" for number in range(CAPACITY * 4)]), CAPACITY * 4


async def bare(a: Any, b: Any = 1) -> Any:  # noqa: ARG001 - the shape of the call
    """Be the trivial coroutine that everything is compared with, and that the decorators decorate."""
    return a
