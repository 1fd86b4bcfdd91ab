"""Writes the table of docs/backends.md - needs by engine, what is green - from the outcomes of a test run.

`make conformance` runs the tests of every backend with ``--outcomes`` and then this::

    python tests/table.py outcomes.json docs/backends.md

A cell says how many tests of a need passed on an engine; a dash, that the engine lacks the capability; a cross, that
some failed.  A run that lacks a server leaves its engine out, and says so by its exit code.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

BEGIN = "<!-- conformance: made by `make conformance` -->\n"
END = "<!-- conformance: end -->\n"
NEEDS = (
    *("values", "keys", "TTLs", "atomic", "compare-and-set", "batch", "clear / scan", "stream", "messages"),
    *("cancellation", "lifecycle", "faults"),
)
LACKING = "–"

Cells = dict[str, dict[str, str]]
"""What stands in the table: by engine, by need."""


def cells(outcomes: Iterable[Mapping[str, str]]) -> Cells:
    """Count the outcomes.  What is marked for an engine counts in each column whose name begins with it."""
    counted: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    marked: list[Mapping[str, str]] = []
    for one in outcomes:
        if one["need"] == "faults":
            marked.append(one)
        else:
            counted[one["engine"]][one["need"]].append(one["outcome"])
    for one in marked:
        for engine, needs in counted.items():
            if f"{engine} ".startswith(f"{one['engine']} "):
                needs["faults"].append(one["outcome"])
    return {
        engine: {need: cell(needs[need]) for need in NEEDS}
        for engine, needs in sorted(counted.items())
        if not all("not run" in found for found in needs.values())
    }


def cell(found: list[str]) -> str:
    """Return what a table says of these outcomes of one need on one engine."""
    if "failed" in found:
        return f"✗ {found.count('failed')}"
    return f"✓ {found.count('passed')}" if "passed" in found else LACKING


def read(page: str) -> Cells:
    """Return what the table in ``page`` says."""
    rows = [
        [part.strip() for part in line.strip("|\n").split("|")]
        for line in page.partition(BEGIN)[2].partition(END)[0].splitlines()
        if line.startswith("|")
    ]
    if not rows:
        return {}
    needs = rows[0][1:]
    return {row[0]: dict(zip(needs, row[1:], strict=True)) for row in rows[2:]}


def write(page: str, table: Cells) -> str:
    """Return ``page`` with this table between its markers."""
    lines = ["| engine | " + " | ".join(NEEDS) + " |", "|---" * (len(NEEDS) + 1) + "|"]
    lines += [f"| {engine} | " + " | ".join(found[need] for need in NEEDS) + " |" for engine, found in table.items()]
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"the page has no {(BEGIN if not begin else END).strip()}")
    return before + begin + "\n" + "\n".join(lines) + "\n\n" + end + after


def main(source: str, target: str) -> int:
    """Write the table; tell by the exit code whether the run was whole and green."""
    outcomes = json.loads(Path(source).read_text(encoding="utf-8"))
    table = cells(outcomes)
    page = Path(target)
    page.write_text(write(page.read_text(encoding="utf-8"), table), encoding="utf-8")
    bad = sorted({f"{one['engine']}: {one['need']} {one['outcome']}" for one in outcomes
                  if one["outcome"] in ("failed", "not run")})  # fmt: skip
    print("\n".join(bad) or f"{len(table)} engines, all green")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
