"""The history checker finds what is wrong, and nothing else."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from .history import Operation, check, read_log, write_log

BOUND = 10.0


def op(kind: Any, begin: float, end: float, value: str | None = None, process: int = 1, **more: Any) -> Operation:
    """One operation on the key k, which has the tag t."""
    key = more.pop("key", "t" if kind == "invalidate" else "k")
    return Operation(kind=kind, process=process, begin=begin, end=end, value=value, key=key, tag="t", **more)


GOOD: dict[str, list[Operation]] = {
    "a value that was set": [op("set", 0, 1, "a"), op("get", 2, 3, "a", 2)],
    "nothing, at any time": [op("set", 0, 1, "a"), op("get", 2, 3, None, 2), op("get", 2, 3, "a", 2)],
    "a read that overlaps the write": [op("set", 0, 5, "a"), op("get", 1, 2, "a", 2)],
    "an old value within the bound": [op("set", 0, 1, "a"), op("delete", 2, 3), op("get", 12.9, 14, "a", 2)],
    "a read that began within the bound": [op("set", 0, 1, "a"), op("set", 2, 3, "b"), op("get", 12, 99, "a", 2)],
    "a write that overlaps the delete": [op("set", 0, 3, "a"), op("delete", 2, 4), op("get", 50, 51, "a", 2)],
    "a delete that was not confirmed": [
        op("set", 0, 1, "a"), op("delete", 2, 3, confirmed=False), op("get", 50, 51, "a", 2),
    ],
    "a write that was not confirmed, and comes late": [
        op("set", 0, 1, "a", confirmed=False), op("delete", 2, 3), op("get", 50, 51, "a", 2),
    ],
    "a value that was loaded": [op("load", 0, 1, "a"), op("get", 2, 3, "a", 2)],
    "a load that began after the delete had": [op("delete", 0, 2), op("load", 1, 3, "a"), op("get", 50, 51, "a", 2)],
    "one who waited for the load": [op("load", 0, 40, "a"), op("delete", 1, 2), op("get", 39, 41, "a", 2)],
    "an invalidation of another tag": [
        op("set", 0, 1, "a"), op("invalidate", 2, 3, key="u"), op("get", 50, 51, "a", 2),
    ],
    "the value of another key": [
        op("set", 0, 1, "a"), op("set", 2, 3, "b", key="l"), op("get", 50, 51, "a", 2),
    ],
}  # fmt: skip
BAD: dict[str, tuple[str, list[Operation]]] = {
    "an invented value": ("nobody wrote", [op("get", 0, 1, "a")]),
    "another key's value": ("another key", [op("set", 0, 1, "a", key="l"), op("get", 2, 3, "a")]),
    "a value of the future": ("before it was written", [op("set", 5, 6, "a"), op("get", 2, 3, "a", 2)]),
    "a value that was deleted": (
        "replaced or removed", [op("set", 0, 1, "a"), op("delete", 2, 3), op("get", 13.1, 14, "a", 2)],
    ),
    "a value that was overwritten": (
        "replaced or removed", [op("set", 0, 1, "a"), op("set", 2, 3, "b"), op("get", 13.1, 14, "a", 2)],
    ),
    "a value whose tag was invalidated": (
        "replaced or removed", [op("set", 0, 1, "a"), op("invalidate", 2, 3), op("get", 13.1, 14, "a", 2)],
    ),
    "a load that began before the delete": (
        "replaced or removed", [op("load", 0, 5, "a"), op("delete", 1, 2), op("get", 13.1, 14, "a", 2)],
    ),
    "an old value after a long change had been followed by a short one": (
        "replaced or removed",
        [op("set", 2, 3, "a"), op("delete", 4, 5), op("delete", 0, 6), op("get", 20, 21, "a", 2)],
    ),
    "one's own change, not yet the others'": (
        "replaced or removed", [op("set", 0, 1, "a"), op("delete", 2, 3), op("get", 3.1, 4, "a", 1)],
    ),
    "one's own change, not confirmed": (
        "replaced or removed", [op("set", 0, 1, "a", 2), op("delete", 2, 3, confirmed=False), op("get", 4, 5, "a", 1)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_what_may_be_is_accepted(name: str):
    assert check(GOOD[name], bound=BOUND) == []


@pytest.mark.parametrize("name", BAD)
def test_what_may_not_be_is_found(name: str):
    words, history = BAD[name]
    [wrong] = check(history, bound=BOUND)
    assert words in wrong


def test_the_order_in_which_operations_were_noted_does_not_matter():
    for _, history in BAD.values():
        for seed in range(5):
            shuffled = random.Random(seed).sample(history, len(history))
            assert len(check(shuffled, bound=BOUND)) == 1


def test_a_larger_bound_forgives_what_a_smaller_one_does_not():
    history = BAD["a value that was deleted"][1]
    assert check(history, bound=0) != []
    assert check(history, bound=11) == []


def test_a_write_that_was_not_confirmed_may_be_late_but_not_later():
    history = GOOD["a write that was not confirmed, and comes late"]
    assert check(history, bound=BOUND, late=2) == []
    assert check(history, bound=BOUND, late=0.5) != []


def test_a_log_is_read_as_it_was_written(tmp_path: Path):
    history = [operation for operations in GOOD.values() for operation in operations]
    write_log(tmp_path / "log", history)
    assert read_log(tmp_path / "log") == history


@pytest.mark.parametrize("lag", [0.0, 5.0])
def test_a_register_with_a_lag_is_good_within_it_and_bad_beyond(lag: float):
    """A simulated cache that shows what was true a while ago: violations exactly where the bound is smaller."""
    chance, history, states = random.Random(1), [], [(0.0, None)]
    for number in range(2000):
        at = float(number)
        if chance.random() < 0.3:
            value = None if chance.random() < 0.3 else f"v{number}"
            states.append((at, value))
            history.append(op("set" if value else "delete", at, at + 0.1, value))
        else:
            value = [value for since, value in states if since <= at - lag or since == 0.0][-1]
            history.append(op("get", at, at + 0.1, value, 2))
    assert check(history, bound=lag) == []
    assert (check(history, bound=max(0.0, lag - 2)) == []) is (lag == 0)
