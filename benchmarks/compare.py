"""What becomes of a load in other libraries when things go wrong: ``python benchmarks/compare.py``.

Each scenario is run, in one event loop and in memory, and the table in docs/memoization.md is written from what came
of it.  A library is used the way its own documentation names against stampedes, if it has one.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT)]

from contenders import SHARED_FUTURE, Contender, contenders  # noqa: E402
from contenders.base import Call  # noqa: E402
from machine import describe, now  # noqa: E402
from stampede import stampedes  # noqa: E402

__all__ = ["LIBRARIES", "RESULTS", "SCENARIOS", "compare", "write"]

RESULTS = ROOT / "benchmarks" / "results" / "comparison.json"
PAGE = ROOT / "docs" / "memoization.md"
BEGIN = "<!-- comparison: made by `make compare` -->\n"
END = "<!-- comparison: end -->\n"

LIBRARIES = {
    "acache, decorated": "acache",
    "aiocache cached_stampede": "aiocache",
    "cashews, lock=True": "cashews",
    "async-lru": "async-lru",
    "fastapi-cache2": "fastapi-cache2",
    "cachetools-async TTL": "cachetools-async",
}
"""The contenders of the table, and their packages."""

_CALLERS = 20
_KEY = 1_000_000
"""The scenarios ask for this and a little more: for nothing that `stampedes` asks for, as some stores are global."""
_PATIENCE = 10.0
_TURNS = 20

Row = dict[str, Any]


class Source:
    """What the loader asks; the test says when it answers, and with what."""

    def __init__(self, answer: Callable[[], Any]) -> None:
        self.answer = answer
        self.loads = 0
        self.began = asyncio.Event()
        self.finish = asyncio.Event()

    async def load(self, _: int) -> Any:
        """Read the answer, then take a while to return it."""
        self.loads += 1
        answer = self.answer()
        self.began.set()
        await self.finish.wait()
        if isinstance(answer, Exception):
            raise answer
        return answer


async def _crowd(contender: Contender, source: Source, number: int) -> tuple[Call, list[asyncio.Task[Any]]]:
    """Let some callers ask for one missing result, and wait until its load runs and all others wait."""
    call = _made(contender, source)

    async def ask() -> Any:
        return await call(number)

    tasks = [asyncio.create_task(ask()) for _ in range(_CALLERS)]
    await source.began.wait()
    for _ in range(_TURNS):
        await asyncio.sleep(0)
    return call, tasks


def _made(contender: Contender, source: Source) -> Call:
    if contender.load_once is None:
        message = f"{contender.name} loads nothing"
        raise ValueError(message)
    return contender.load_once(source.load)


async def _cancelled(contender: Contender) -> Row:
    """Cancel the caller who began the load, while it runs."""
    source = Source(lambda: "value")
    _, (first, *others) = await _crowd(contender, source, _KEY + 1)
    first.cancel()
    await asyncio.wait([first])
    source.finish.set()
    results = await asyncio.gather(*others, return_exceptions=True)
    return {"answered": results.count("value"), "of": len(others), "loads": source.loads}


async def _raising(contender: Contender) -> Row:
    """Let the load fail, and ask again."""
    source = Source(lambda: ConnectionError("down"))
    call, tasks = await _crowd(contender, source, _KEY + 2)
    source.finish.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    told = sum(isinstance(result, ConnectionError) for result in results)
    loads = source.loads
    source.answer = lambda: "value"
    (again,) = await asyncio.gather(call(_KEY + 2), return_exceptions=True)
    return {"told": told, "of": len(tasks), "loads": loads, "kept": again != "value"}


async def _none(contender: Contender) -> Row:
    """Let the result be None, and ask for it three times, one after the other."""
    source = Source(lambda: None)
    source.finish.set()
    call = _made(contender, source)
    return {"right": [await call(_KEY + 3) for _ in range(3)] == [None] * 3, "loads": source.loads}


async def _invalidated(contender: Contender) -> Row:
    """Change the source and remove the result while the load, which has read the old one, runs; then ask again."""
    source = Source(lambda: "old")
    call, tasks = await _crowd(contender, source, _KEY + 4)
    source.answer = lambda: "new"
    if contender.forget is None:
        message = f"{contender.name} removes nothing"
        raise ValueError(message)
    await contender.forget(call, _KEY + 4)
    source.finish.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    return {"afterwards": await call(_KEY + 4)}


Scenario = Callable[[Contender], Awaitable[Row]]
SCENARIOS: dict[str, Scenario] = {
    "cancelled": _cancelled,
    "raising": _raising,
    "none": _none,
    "invalidated": _invalidated,
}


async def _outcome(scenario: Scenario, contender: Contender) -> Row:
    try:
        async with asyncio.timeout(_PATIENCE):
            return await scenario(contender)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the outcome
        return {"failed": type(error).__name__}


async def compare(entering: list[Contender], *, rounds: int = 7, callers: int = 10_000) -> list[Row]:
    """Run every scenario with every contender."""
    rows = [
        {
            "library": contender.name,
            "how": contender.how,
            **{name: await _outcome(scenario, contender) for name, scenario in SCENARIOS.items()},
        }
        for contender in entering
    ]
    raced = await stampedes([SHARED_FUTURE, *entering], rounds, callers)
    for row in rows:
        (found,) = [one for one in raced if one["contender"] == row["library"]]
        row["callers"] = {"loads": found["loads"], "ms": found["ms"], "ratio": found["ratio"]}
    return rows


# The page -----------------------------------------------------------------------------------------------------------

_HEAD = (
    "", "the caller who began the load is cancelled; 19 others wait", "the load fails; 20 wait", "the result is `None`",
    "invalidated while the load runs", "10,000 callers",
)  # fmt: skip


def write(page: str, results: dict[str, Any]) -> str:
    """Return ``page`` with the table of these results between its markers."""
    packages = results["machine"]["packages"]
    lines = ["| " + " | ".join(_HEAD) + " |", "|---" * len(_HEAD) + "|"]
    for row in results["rows"]:
        package = LIBRARIES[row["library"]]
        name = f"{package} {packages[package]}" if package != "acache" else "**acache**"
        lines.append("| " + " | ".join([name, *_cells(row)]) + " |")
    when, machine = results["when"], results["machine"]
    used = [f"{LIBRARIES[row['library']]} `{row['how'].split('`')[1]}`" for row in results["rows"]]
    made = f"Run on {when['date'].split()[0]} with {machine['python']}; used as {', '.join(used)}."
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"the page has no {(BEGIN if not begin else END).strip()}")
    return f"{before}{begin}\n{chr(10).join(lines)}\n\n{made}\n\n{end}{after}"


def _cells(row: Row) -> list[str]:
    writers = {
        "cancelled": lambda it: f"{it['answered']} of {it['of']} get the value; {_loads(it)}",
        "raising": lambda it: (
            f"{it['told']} of {it['of']} get the error; {_loads(it)}; {'kept' if it['kept'] else 'not kept'}"
        ),
        "none": lambda it: "cached" if it["right"] and it["loads"] == 1 else f"3 calls, {_loads(it)}",
        "invalidated": lambda it: f"afterwards the {it['afterwards']} value is served",
        "callers": lambda it: f"{_loads(it)}; {it['ms']:,.0f} ms, {it['ratio']:.2f} of one shared future",
    }
    return [
        f"fails: {row[name]['failed']}" if "failed" in row[name] else say(row[name]) for name, say in writers.items()
    ]


def _loads(outcome: Row) -> str:
    return f"{outcome['loads']:,} load{'s' if outcome['loads'] != 1 else ''}"


def main() -> None:
    """Run everything and write the table."""
    found, missing = contenders()
    entering = [contender for name in LIBRARIES for contender in found if contender.name == name]
    if len(entering) < len(LIBRARIES):
        sys.exit(f"not all of them are here: {missing}")
    results = {"when": now(), "machine": describe(), "rows": asyncio.run(compare(entering))}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(write(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")
    for row in results["rows"]:
        print(row["library"], *_cells(row), sep="\n  ")


if __name__ == "__main__":
    main()
