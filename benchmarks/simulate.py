"""Hit ratios of the near tier's eviction policies over traces: ``python benchmarks/simulate.py [TRACE ...]``.

A trace is a text file, ``.gz`` or not, with one key on each line; with ``--format arc`` each line has a first block and
a number of blocks.  Without files it makes traces itself.  What is run is `Memory`, as a cache uses it: batches, lost
touches and all.  Beside the policies stand references, which are other people's implementations of the same (see
references.py), with the difference in points, and the offline optimum, which knows the future (Belady).
"""

from __future__ import annotations

import argparse
import gzip
import random
import sys
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import accumulate
from pathlib import Path
from statistics import mean
from time import perf_counter
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT)]

from references import REFERENCES  # noqa: E402

from acache import Memory  # noqa: E402
from acache.clock import FOREVER  # noqa: E402

__all__ = ["LENGTH", "POLICIES", "TRACES", "Trace", "cells", "columns", "hit_ratio", "hit_ratios", "optimum", "ratios"]

POLICIES = ("lru", "s3fifo", "wtinylfu")
LENGTH = 400_000
"""Requests in a trace that is made here."""
_RUNS = {"lru": 1, "s3fifo": 1, "wtinylfu": 3}
"""Over how many runs the hit ratio is the mean: which keys share a counter is another matter in each."""
Keys = Sequence[int]


@dataclass(frozen=True)
class Trace:
    """A sequence of keys, so many of them, and the sizes of caches it is run against."""

    name: str
    make: Callable[[int], Keys]
    sizes: tuple[int, ...]
    steady: bool = False
    """Whether nothing but Zipf's law says which key comes next."""


def hit_ratio(policy: Any, keys: Keys, size: int) -> float:
    """Run one policy: every miss is stored."""
    space = Memory(max_entries=size, eviction=policy).space("")
    records, touch, insert = space.records, space.touch, space.insert
    record: Any = (None, FOREVER, 0.0)
    misses = 0
    for key in keys:
        if key in records:
            touch(key)  # type: ignore[arg-type] - ints hash alike in every process, so that each run is the same
        else:
            misses += 1
            insert(key, record, 0.0)  # type: ignore[arg-type]
    return 1 - misses / len(keys)


def optimum(keys: Keys, size: int) -> float:
    """Evict the key whose next use is farthest away."""
    never = len(keys)
    following = array("q", [never]) * never
    last: dict[int, int] = {}
    for position in range(never - 1, -1, -1):
        following[position] = last.get(keys[position], never)
        last[keys[position]] = position
    held: dict[int, int] = {}
    farthest: list[tuple[int, int]] = []
    misses = 0
    for position, key in enumerate(keys):
        if key not in held:
            misses += 1
            if len(held) >= size:
                while True:
                    use, victim = heappop(farthest)
                    if held.get(victim) == -use:
                        break
                del held[victim]
        held[key] = following[position]
        heappush(farthest, (-following[position], key))
    return 1 - misses / len(keys)


def ratios(keys: Keys, size: int) -> dict[str, float]:
    """Run all policies, their references as far as they are installed, and the optimum."""
    found = {policy: mean(hit_ratio(policy, keys, size) for _ in range(_RUNS[policy])) for policy in POLICIES}
    for policy, (package, run) in REFERENCES.items():
        with suppress(ImportError):
            found[f"{policy}, {package}"] = run(keys, size)
    return {**found, "optimum": optimum(keys, size)}


def hit_ratios(length: int) -> list[dict[str, Any]]:
    """Run every trace that is made here through caches of every size."""
    return [
        {"trace": trace.name, "steady": trace.steady, "entries": size, **_rounded(ratios(keys, size))}
        for trace in TRACES
        for keys in [trace.make(length)]
        for size in trace.sizes
    ]


def _rounded(found: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in found.items()}


# Traces that are made here ------------------------------------------------------------------------------------------


def zipf(alpha: float, keys: int, length: int, *, seed: int = 1) -> list[int]:
    """Draw keys, the n-th most popular in proportion to 1 / n ** alpha."""
    rng = random.Random(seed)
    sums = list(accumulate([1 / n**alpha for n in range(1, keys + 1)]))
    names = list(range(keys))
    rng.shuffle(names)
    return [names[bisect_left(sums, rng.random() * sums[-1])] for _ in range(length)]


def with_scans(keys: Keys, *, every: int, scan: int) -> Iterator[int]:
    """Interrupt a trace by runs over keys that are asked for once."""
    fresh = 1 << 32
    for position, key in enumerate(keys):
        if position and not position % every:
            yield from range(fresh, fresh + scan)
            fresh += scan
        yield key


def loop(keys: int, length: int) -> list[int]:
    """Ask for the same keys in the same order again and again."""
    return [position % keys for position in range(length)]


def mixed(*parts: Keys) -> Iterator[int]:
    """Take turns with traces over keys of their own."""
    for keys in zip(*parts, strict=False):
        for number, key in enumerate(keys):
            yield key * len(parts) + number


def phases(alpha: float, keys: int, length: int, *, count: int) -> Iterator[int]:
    """Change from time to time which keys are popular."""
    for number in range(count):
        yield from zipf(alpha, keys, length // count, seed=number)


def _hot_then_new(length: int) -> Iterator[int]:
    """Ask for what came a moment ago: half of the requests are for new keys, half for one of the last thousand."""
    rng = random.Random(1)
    for newest in range(1, length // 2 + 1):
        yield newest
        yield max(1, newest - int(rng.expovariate(1 / 300)))


TRACES = (
    Trace("Zipf 0.8", lambda length: zipf(0.8, 100_000, length), (1_000, 10_000), steady=True),
    Trace("Zipf 1.0", lambda length: zipf(1.0, 100_000, length), (1_000, 10_000), steady=True),
    Trace("Zipf 1.2", lambda length: zipf(1.2, 100_000, length), (1_000, 10_000), steady=True),
    Trace(
        "Zipf 1.0, popularity changing",
        lambda length: list(phases(1.0, 100_000, length, count=8)),
        (1_000, 10_000),
    ),
    Trace(
        "Zipf 1.0, a third of it scans",
        lambda length: list(with_scans(zipf(1.0, 100_000, length * 2 // 3), every=10_000, scan=5_000)),
        (1_000, 10_000),
    ),
    Trace("loop over 12,000", lambda length: loop(12_000, length), (1_000, 10_000)),
    Trace(
        "Zipf 1.0 and a loop over 12,000",
        lambda length: list(mixed(zipf(1.0, 100_000, length // 2), loop(12_000, length // 2))),
        (1_000, 10_000),
    ),
    Trace("the newest keys", lambda length: list(_hot_then_new(length)), (300, 1_000)),
)


def read(path: Path, form: str) -> list[int]:
    """Read a trace file."""
    names: dict[str, int] = {}
    keys: list[int] = []
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        for line in lines:
            fields = line.split()
            if fields and form == "arc":
                keys += range(int(fields[0]), int(fields[0]) + int(fields[1]))
            elif fields:
                keys.append(names.setdefault(fields[0], len(names)))
    return keys


def columns() -> tuple[str, ...]:
    """Return the head of the table: each policy is followed by its reference, and the points it is above that."""
    head = ["trace", "entries"]
    for policy, (package, _) in REFERENCES.items():
        head += [f"`{policy}`", f"{package} (points)"]
    return (*head, "optimum", *[f"`{policy}`: share of the gap" for policy in POLICIES[1:]])


def cells(name: str, size: int, found: dict[str, float]) -> tuple[str, ...]:
    """Return one row of the table."""
    row = [name, f"{size:,}"]
    for policy, (package, _) in REFERENCES.items():
        other = found.get(f"{policy}, {package}")
        row += [f"{found[policy]:.1%}", "" if other is None else f"{other:.1%} ({_points(found[policy], other)})"]
    gap = found["optimum"] - found["lru"]
    shares = [f"{(found[policy] - found['lru']) / gap:.0%}" if gap > 0.001 else "" for policy in POLICIES[1:]]
    return (*row, f"{found['optimum']:.1%}", *shares)


def _points(ours: float, reference: float) -> str:
    """Write the difference, in bold where it is more than a point below zero."""
    found = f"{100 * (ours - reference):+.1f}"
    return f"**{found}**" if ours < reference - 0.01 else found


def main() -> None:
    """Read the command line, and print a table."""
    parser = argparse.ArgumentParser(prog="python benchmarks/simulate.py", description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="*", type=Path, metavar="TRACE", help="trace files; without, traces made here")
    parser.add_argument("--sizes", nargs="+", type=int, default=[1_000, 10_000], help="entries, for trace files")
    parser.add_argument("--format", choices=["keys", "arc"], default="keys")
    options = parser.parse_args()
    traces = [
        Trace(path.name, lambda _, path=path: read(path, options.format), options.sizes) for path in options.files
    ]
    start, head = perf_counter(), columns()
    print("| " + " | ".join(head) + " |\n|---|" + "---:|" * (len(head) - 1))
    for trace in traces or TRACES:
        keys = trace.make(LENGTH)
        for size in trace.sizes:
            print(f"| {' | '.join(cells(trace.name, size, ratios(keys, size)))} |", flush=True)
    print(f"\n{perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
