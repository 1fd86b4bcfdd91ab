"""The comparison in docs/memoization.md: its scenarios can fail, acache does not, and the page says what was measured."""

from __future__ import annotations

import importlib
import json
import sys
import tomllib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "memoization.md"

Load = Callable[[str], ModuleType]
Call = Callable[[int], Awaitable[Any]]


@pytest.fixture(scope="module")
def load() -> Iterator[Load]:
    """Import the modules of benchmarks/, which is a folder of scripts and no package."""
    path, known = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield importlib.import_module
    sys.path[:] = path
    for name in set(sys.modules) - known:
        if "benchmarks" in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


async def row(load: Load, contender: Any) -> dict[str, Any]:
    (found,) = await load("compare").compare([contender], rounds=1, callers=7)
    return found


async def test_acache_passes_every_scenario(load: Load):
    """The outcomes that the page prints for it."""
    (ours,) = [one for one in load("contenders.acache").contenders() if one.name in load("compare").LIBRARIES]
    found = await row(load, ours)
    assert found["cancelled"] == {"answered": 19, "of": 19, "loads": 1}
    assert found["raising"] == {"told": 20, "of": 20, "loads": 1, "kept": False}
    assert found["none"] == {"right": True, "loads": 1}
    assert found["invalidated"] == {"afterwards": "new"}
    assert found["callers"]["loads"] == 1


async def test_a_scenario_tells_a_library_without_any_protection(load: Load):
    """A dict in front of the loader: everybody loads, ``None`` is a miss, and an old value is stored."""

    def make(load_number: Call) -> Call:
        kept: dict[int, Any] = {}

        async def once(number: int) -> Any:
            if kept.get(number) is None:
                kept[number] = await load_number(number)
            return kept[number]

        return once

    async def forget(_: Call, __: int) -> None: ...

    found = await row(load, load("contenders").Contender("dict", None, "", load_once=make, forget=forget))
    assert found["cancelled"] == {"answered": 19, "of": 19, "loads": 20}
    assert found["raising"] == {"told": 20, "of": 20, "loads": 20, "kept": False}
    assert found["none"] == {"right": True, "loads": 3}
    assert found["invalidated"] == {"afterwards": "old"}
    assert found["callers"]["loads"] == 7


async def test_a_scenario_that_a_library_cannot_run_is_named(load: Load):
    """An error of the library's own is the outcome of that scenario alone."""

    def make(load_number: Call) -> Call:
        return load_number

    async def forget(_: Call, __: int) -> None:
        raise NotImplementedError

    found = await row(load, load("contenders").Contender("none", None, "", load_once=make, forget=forget))
    assert found["invalidated"] == {"failed": "NotImplementedError"}
    assert found["none"]["loads"] == 3


def test_the_page_is_written_from_the_saved_outcomes(load: Load):
    """To the letter, and with every scenario of every library: `make compare` writes both."""
    compare = load("compare")
    results = json.loads(compare.RESULTS.read_text())
    assert compare.write(PAGE.read_text(), results) == PAGE.read_text()
    assert [one["library"] for one in results["rows"]] == list(compare.LIBRARIES)
    for one in results["rows"]:
        assert set(one) == {"library", "how", "callers", *compare.SCENARIOS}


def test_a_changed_outcome_changes_the_page(load: Load):
    """The table holds what was found and nothing else."""
    compare = load("compare")
    results = json.loads(compare.RESULTS.read_text())
    results["rows"][0]["cancelled"]["answered"] = 7
    assert "7 of 19" in compare.write(PAGE.read_text(), results)


def test_every_library_of_the_table_is_installed_for_it(load: Load):
    """Each is in the dependency group of the benchmarks."""
    group = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]["bench"]
    named = {line.partition(">")[0] for line in group} | {"acache"}
    assert set(load("compare").LIBRARIES.values()) <= named
