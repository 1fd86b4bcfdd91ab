"""What several processes did to a cache, and whether what they read could be.

Each key is a register that may lose its value at any time, and must not bring an old one back:

* A read returns a value that was written or loaded under this very key, or nothing.
* No read returns a value that had been written, or whose load had begun, before a change of the key was begun that
  was confirmed longer than ``bound`` seconds before the read began.  Changes are sets, deletes and invalidations of the
  key's tag; instants are of one clock.
* In the process that made the change the bound is ``own_bound``, and the change need not have been confirmed: whoever
  wrote something does not read what was there before.

A write that was not confirmed may take effect up to ``late`` seconds after its end, by default at any time.  A load's
value may be handed to those who were waiting for it.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import accumulate
from math import inf
from pathlib import Path
from typing import Any, Final, Literal

__all__ = ["Operation", "check", "read_log", "write_log"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """Something that a process did, from ``begin`` to ``end``."""

    kind: Literal["set", "delete", "invalidate", "get", "load"]
    process: int
    begin: float
    end: float
    key: str = ""
    """For an invalidation, the tag."""
    tag: str = ""
    """The tag of the key: always the same one."""
    value: str | None = None
    """What was written, loaded or read."""
    confirmed: bool = True

    def __str__(self) -> str:
        doubt = "" if self.confirmed else " (not confirmed)"
        return f"{self.begin:.4f}..{self.end:.4f} process {self.process}: {self.kind} {self.key} {self.value}{doubt}"


def check(history: Iterable[Operation], *, bound: float, own_bound: float = 0.0, late: float = inf) -> list[str]:
    """Return what is wrong, in words; nothing is right."""
    operations = sorted(history, key=lambda operation: operation.begin)
    born: dict[str, Operation] = {}
    for operation in operations:
        if operation.kind in ("set", "load") and operation.value is not None:
            assert operation.value not in born, f"two operations made {operation.value}"
            born[operation.value] = operation
    changes, own_changes = _changes(operations)
    wrong: list[str] = []
    for read in operations:
        if read.kind != "get" or read.value is None:
            continue
        origin = born.get(read.value)
        if origin is None:
            wrong.append(f"nobody wrote this value\n  {read}")
        elif origin.key != read.key:
            wrong.append(f"this value was written under another key\n  {read}\n  {origin}")
        elif origin.begin > read.end:
            wrong.append(f"this value was read before it was written\n  {read}\n  {origin}")
        else:
            written = _written(origin, read, late)
            for change in (
                changes.latest((read.key,), read.begin - bound),
                own_changes.latest((read.key, read.process), read.begin - own_bound),
            ):
                if change is not None and change.begin > written:
                    wrong.append(f"this value had been replaced or removed\n  {read}\n  {change}\n  {origin}")
                    break
    return wrong


def _changes(operations: list[Operation]) -> tuple[_Changes, _Changes]:
    """Return the confirmed changes by key, and all of them by key and process."""
    changes, own_changes = _Changes(), _Changes()
    keys_of: dict[str, set[str]] = defaultdict(set)
    for operation in operations:
        if operation.tag:
            keys_of[operation.tag].add(operation.key)
    for operation in operations:
        if operation.kind in ("set", "delete", "invalidate"):
            for key in keys_of[operation.key] if operation.kind == "invalidate" else [operation.key]:
                if operation.confirmed:
                    changes.add((key,), operation)
                own_changes.add((key, operation.process), operation)
    return changes, own_changes


def _written(origin: Operation, read: Operation, late: float) -> float:
    """Return the instant after which a change that began makes the value of ``origin`` too old for ``read``."""
    if origin.kind == "load":
        return inf if read.begin <= origin.end else origin.begin  # perhaps it was waiting for this very load
    return origin.end if origin.confirmed else origin.end + late


class _Changes:
    """Changes by what they concern, and of those that had ended by an instant the one that began last."""

    def __init__(self) -> None:
        self._changes: Final[dict[tuple[Any, ...], list[Operation]]] = defaultdict(list)
        self._sorted: Final[dict[tuple[Any, ...], tuple[list[float], list[Operation]]]] = {}

    def add(self, what: tuple[Any, ...], change: Operation) -> None:
        self._changes[what].append(change)

    def latest(self, what: tuple[Any, ...], before: float) -> Operation | None:
        if what not in self._sorted:
            changes = sorted(self._changes.get(what, ()), key=lambda change: change.end)
            latest = list(accumulate(changes, lambda one, other: max(one, other, key=lambda change: change.begin)))
            self._sorted[what] = ([change.end for change in changes], latest)
        ends, latest = self._sorted[what]
        index = bisect_left(ends, before)
        return latest[index - 1] if index else None


def write_log(path: Path, history: Iterable[Operation]) -> None:
    """Write a history as lines of JSON."""
    path.write_text("".join(json.dumps(asdict(operation)) + "\n" for operation in history), encoding="utf-8")


def read_log(path: Path) -> list[Operation]:
    """Read one back."""
    return [Operation(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
