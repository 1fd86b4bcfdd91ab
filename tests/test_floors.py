"""The house stands: imports go down only, and a client library has one door."""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent / "acache"
FLOORS = {
    "errors": 0,
    "clock": 0,
    "events": 0,
    "policy": 1,
    "entry": 1,
    "keys": 1,
    "names": 2,
    "codecs": 1,
    "memory": 2,
    "backends": 2,
    "loading": 3,
    "coherence": 3,
    "deadlines": 2,
    "replay": 2,
    "calls": 3,
    "inputs": 3,
    "notes": 3,
    "tokens": 4,
    "memoize": 4,
    "remote": 5,
    "memoize_many": 5,
    "tiers": 6,
    "lease": 6,
    "staircase": 7,
    "cache": 8,
    "http": 9,
    "integrations": 9,
    "testing": 9,
}
FOUNDATION = "errors"
"""The one room that its own floor may use: everybody raises what it defines."""
OWN_LIBRARIES = {"anyio", "msgspec"}
"""The runtime dependencies of the bare package."""
EVENT_LOOPS = {"asyncio", "anyio", "trio", "uvloop", "threading", "selectors"}


@dataclass(frozen=True)
class Import:
    """One import statement."""

    file: Path
    line: int
    target: str
    """The absolute dotted name."""
    at_top: bool
    """Executed when the module is imported."""
    for_types_only: bool

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT.parent)}:{self.line} imports {self.target}"

    @property
    def library(self) -> str:
        """The first part of the target."""
        return self.target.partition(".")[0]


MODULES = sorted(ROOT.rglob("*.py"))


def room(path: Path) -> str:
    """Return the part of the house a file belongs to; ``""`` for the front door."""
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py").replace("__init__", "")


def walk(node: ast.AST, *, at_top: bool = True, types: bool = False) -> Iterator[tuple[ast.AST, bool, bool]]:
    """Yield every node below ``node``, whether it runs at import, and whether only type checkers see it."""
    for child in ast.iter_child_nodes(node):
        top = at_top and not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        hidden = types or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) and child in node.body)
        yield child, top, hidden
        yield from walk(child, at_top=top, types=hidden)


def imports_of(path: Path) -> Iterator[Import]:
    """Read the import statements of a file, relative ones made absolute."""
    package = ("acache", *path.relative_to(ROOT).parent.parts)
    for node, top, types in walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            # "from . import cache" names modules; "from .cache import Cache" names a module and what is in it.
            names = [f"{module}.{alias.name}" for alias in node.names] if node.module is None else [module]
        else:
            continue
        for name in names:
            yield Import(path, node.lineno, name, top and not types, types)


IMPORTS = [found for path in MODULES for found in imports_of(path)]


def test_every_module_has_a_floor():
    """A new file or package at the top of acache is entered in the list of floors."""
    assert MODULES
    assert {room(path) for path in MODULES} - set(FLOORS) - {""} == set()


def test_imports_go_down_only():
    """A module imports from lower floors and from its own package, also inside functions and for type checkers."""
    wrong = []
    for found in IMPORTS:
        parts = found.target.split(".")
        here = room(found.file)
        if parts[0] != "acache" or not here:
            continue
        there = parts[1] if len(parts) > 1 else ""
        if there in {here, FOUNDATION}:
            continue
        if there not in FLOORS or FLOORS[there] >= FLOORS[here]:
            wrong.append(str(found))
    assert wrong == []


def test_the_foundation_stands_on_nothing():
    """The error tree imports no other part of acache."""
    assert [str(found) for found in IMPORTS if room(found.file) == FOUNDATION and found.library == "acache"] == []


def test_the_front_door_holds_names_only():
    """The top ``__init__`` imports from acache only, and defines nothing but ``__all__`` and the version."""
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    assigned = [
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    ]
    others = [node for node in tree.body[1:] if not isinstance(node, (ast.ImportFrom, ast.Assign))]
    assert set(assigned) <= {"__all__", "__version__"}
    assert others == []
    assert {found.library for found in IMPORTS if found.file == ROOT / "__init__.py"} == {"acache"}


def foreign() -> dict[str, list[Import]]:
    """Return the imports of libraries that an extra brings, by library."""
    known = {"acache", *OWN_LIBRARIES, *sys.stdlib_module_names}
    found: dict[str, list[Import]] = {}
    for one in IMPORTS:
        if one.library not in known:
            found.setdefault(one.library, []).append(one)
    return found


@pytest.mark.parametrize("library", sorted(foreign()))
def test_a_client_library_has_one_door(library: str):
    """It is imported at the top of exactly one file, which tells whoever lacks it what to install."""
    found = foreign()[library]
    files = {one.file for one in found}
    assert len(files) == 1, [str(one) for one in found]
    assert [str(one) for one in found if not (one.at_top or one.for_types_only)] == []
    source = files.pop().read_text(encoding="utf-8")
    assert "pip install 'acache[" in source
    assert "except ImportError" in source


def test_low_floors_know_no_client_library_and_no_event_loop():
    """Floors 0 and 1 use the standard library and the codec libraries, and load no event loop."""
    wrong = [
        str(found)
        for found in IMPORTS
        if FLOORS.get(room(found.file), 9) <= 1
        and found.library != "acache"
        and (
            (found.library in EVENT_LOOPS and found.at_top)
            or (found.library not in sys.stdlib_module_names and not found.file.is_relative_to(ROOT / "codecs"))
        )
    ]
    assert wrong == []


def test_only_engines_and_adapters_use_client_libraries():
    """A library of an extra is wanted in backends, codecs, http, integrations and testing, and nowhere else."""
    rooms = {room(one.file) for found in foreign().values() for one in found}
    assert rooms <= {"backends", "codecs", "http", "integrations", "testing"}
