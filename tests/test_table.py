"""The table of engines and needs in docs/backends.md says what the tests bear out."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "backends.md"

spec = importlib.util.spec_from_file_location("acache_tests_table", Path(__file__).with_name("table.py"))
assert spec is not None
assert spec.loader is not None
table = importlib.util.module_from_spec(spec)
spec.loader.exec_module(table)

CAPABILITIES = {
    "atomic": {"Add", "Counter"},
    "compare-and-set": {"Cas"},
    "batch": {"Batch"},
    "clear / scan": {"Clear", "Scan"},
    "stream": {"Stream"},
    "messages": {"Notify"},
}


def outcome(engine: str, need: str, result: str) -> dict[str, str]:
    return {"engine": engine, "need": need, "outcome": result}


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """The tests that have a place in the table, found in a process of its own."""
    path = tmp_path_factory.mktemp("table") / "outcomes.json"
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--collect-only", "--outcomes", path]
    result = subprocess.run([*run, ROOT / "tests" / "backends"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    found: list[dict[str, str]] = json.loads(path.read_text())
    return found


def test_the_page_has_a_row_for_each_engine_that_is_tested_and_no_other(collected: list[dict[str, str]]):
    """Who adds an engine, a client or a protocol makes the table anew: `make conformance`."""
    assert set(table.read(PAGE.read_text())) == set(table.cells(collected))


def test_each_need_is_a_column(collected: list[dict[str, str]]):
    """A check belongs to a column that the table has, and each column has checks."""
    assert {one["need"] for one in collected} - {"faults"} == set(table.NEEDS) - {"faults"}


@pytest.mark.parametrize("need", CAPABILITIES)
def test_a_need_is_met_where_the_engine_has_the_capabilities(need: str, collected: list[dict[str, str]]):
    """What the conformance class declares, and its own check holds the backend to, is what the page shows."""
    declared = {one["engine"]: one["capabilities"].split(", ") for one in collected if one["capabilities"]}
    page = table.read(PAGE.read_text())
    assert declared
    shown = {engine: page[engine][need] != table.LACKING for engine in declared}
    assert shown == {engine: not CAPABILITIES[need].isdisjoint(names) for engine, names in declared.items()}


def test_the_page_shows_nothing_red():
    """What is printed for readers was green when it was made."""
    red = {(engine, need) for engine, row in table.read(PAGE.read_text()).items() for need in row if "✗" in row[need]}
    assert red == set()


def test_outcomes_become_cells():
    """Passed ones are counted, a failure shows, a capability that is lacking is a dash, a server that is not is none."""
    outcomes = [
        *[outcome("A x", "keys", "passed")] * 3,
        outcome("A x", "keys", "skipped"),
        outcome("A x", "batch", "skipped"),
        outcome("A x", "values", "passed"),
        outcome("A x", "values", "failed"),
        outcome("A", "faults", "passed"),
        outcome("AB", "keys", "passed"),
        outcome("C", "keys", "not run"),
    ]
    found = table.cells(outcomes)
    assert list(found) == ["A x", "AB"]
    assert {need: found["A x"][need] for need in ("keys", "batch", "values", "faults")} == {
        "keys": "✓ 3", "batch": "–", "values": "✗ 1", "faults": "✓ 1",
    }  # fmt: skip
    assert found["AB"]["faults"] == "–"


def test_what_is_written_is_read():
    """Between the markers; the rest of the page stays, and writing again changes nothing."""
    page = f"before\n{table.BEGIN}old\n{table.END}after\n"
    cells = table.cells([outcome("A x", "keys", "passed"), outcome("B", "batch", "failed")])
    written = table.write(page, cells)
    assert table.read(written) == cells
    assert written.startswith("before\n")
    assert written.endswith("after\n")
    assert "old" not in written
    assert table.write(written, cells) == written
