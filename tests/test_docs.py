"""What the README and the docs say is run."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


LINK = re.compile(r"\]\(([^)\s#]*)(?:#[^)\s]*)?(?: \"([^\"]*)\")?\)")


def blocks(language: str) -> list[tuple[Path, str]]:
    return [(page, found[2]) for page in PAGES for found in BLOCK.finditer(page.read_text()) if found[1] == language]


def test_every_block_is_of_a_language_that_is_checked_here() -> None:
    """No block escapes the tests below by its label."""
    for page in PAGES:
        for found in BLOCK.finditer(page.read_text()):
            assert found[1] in ("python", "sh", "text"), f"{page.name}: a block of {found[1]!r}"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "```python" in page.read_text()], ids=lambda page: page.name
)
def test_python_blocks_run(page: Path, tmp_path: Path) -> None:
    """In their order, each page in a process of its own, warnings being errors; tests in them are run by pytest."""
    script = tmp_path / "test_page.py"
    script.write_text("\n\n".join(text for where, text in blocks("python") if where == page))
    run = [sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:asyncio", "-p", "no:cacheprovider"]
    plain = subprocess.run(
        [sys.executable, "-W", "error", script], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert plain.returncode == 0, plain.stderr
    if "class Test" in script.read_text():
        tested = subprocess.run([*run, script], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
        assert tested.returncode == 0, tested.stdout


@pytest.mark.parametrize(("page", "text"), blocks("sh"), ids=lambda value: getattr(value, "name", None))
def test_shell_blocks_name_what_exists(page: Path, text: str) -> None:
    """Each make target is one of the Makefile's, each extra one of the package's."""
    makefile = (ROOT / "Makefile").read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for line in text.splitlines():
        command = line.split("#")[0].strip()
        if command.startswith("make "):
            assert re.search(rf"^{command.split()[1]}:", makefile, re.MULTILINE), f"{page.name}: {command}"
        elif command.startswith("pip install"):
            assert set(re.findall(r"\[(\w+)\]", line)) <= set(extras), f"{page.name}: {command}"
        elif command:
            pytest.fail(f"{page.name}: nothing checks {command!r}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Each file is there; where the title of a link is the name of a test, that is in it."""
    for target, title in LINK.findall(BLOCK.sub("", page.read_text())):
        if not target or "://" in target:
            continue
        there = (page.parent / target).resolve()
        assert there.exists(), f"{page.name}: {target}"
        if title:
            assert f"def {title}(" in there.read_text(), f"{page.name}: {target} has no {title}"


def test_each_cell_of_what_a_reader_can_see_links_its_test() -> None:
    """But for those that say there is nothing to see."""
    page = (ROOT / "docs" / "tiers.md").read_text()
    sections = re.findall(
        r"^## (?:What a reader can see|Messages of the caches).*?(?=^## )", page, re.MULTILINE | re.DOTALL
    )
    rows = [line for section in sections for line in section.splitlines() if line.startswith("| ")]
    assert len(rows) > 20
    for row in rows:
        _, *cells = row.strip("| ").split(" | ")
        if cells[0].startswith(("Redis, Valkey", "what others see")):
            continue
        for cell in cells:
            assert cell == "-" or "[test](" in cell, row
