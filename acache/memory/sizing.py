"""How many bytes a Python object holds, near enough to bound a cache by."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["approximate_size"]


def approximate_size(value: Any) -> int:
    """Bytes of ``value`` and of what it contains: builtin containers, ``__dict__`` and ``__slots__``, each object once.

    Shared constants are counted as if they were owned, so the sum errs on the large side.
    """
    total = 0
    seen: set[int] = set()
    pending = [value]
    while pending:
        item = pending.pop()
        if id(item) in seen or isinstance(item, type):
            continue
        seen.add(id(item))
        total += sys.getsizeof(item)
        if isinstance(item, (str, bytes, int, float)):
            continue
        if isinstance(item, dict):
            pending += item.keys()
            pending += item.values()
        elif isinstance(item, (list, tuple, set, frozenset)):
            pending += item
        pending += getattr(item, "__dict__", {}).values()
        for slot in getattr(type(item), "__slots__", ()):
            if (held := getattr(item, slot, None)) is not None:
                pending.append(held)
    return total
