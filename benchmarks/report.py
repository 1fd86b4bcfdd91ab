"""The results as text for the terminal, as docs/benchmarks.md and as docs/benchmarks.svg."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cases import BARS
from chart import draw
from stampede import CALLERS, LOAD_SECONDS

__all__ = ["backends_text", "case_text", "import_text", "memory_text", "stampede_text", "write_docs"]

Row = dict[str, Any]
Results = dict[str, Any]


def _verdict(value: float, bar: float | None) -> str:
    return "" if bar is None else f"{'ok' if value <= bar else 'SHORT'} (bar {bar:g})"


def _by(rows: list[Row], field: str) -> list[Row]:
    return sorted(rows, key=lambda row: row[field])


# The terminal --------------------------------------------------------------------------------------------------------


def case_text(case: Row) -> str:
    """Return the table of one timed case."""
    lines = [f"\n{case['title']}", f"  {'':32} {'ratio':>8} {'quartiles':>15} {'ns':>9}"]
    for row in _by(case["rows"], "ratio"):
        low, high = row["ratio_quartiles"]
        verdict = _verdict(row["ratio"], case["bar"]) if row["kind"] == "ours" else ""
        quartiles = f"{low:.2f}..{high:.2f}"
        lines.append(
            f"  {row['contender']:32} {row['ratio']:8.2f} {quartiles:>15} {row['ns']:9,.0f}  {verdict}".rstrip()
        )
    return "\n".join(lines)


def stampede_text(rows: list[Row]) -> str:
    """Return the table of the stampede."""
    lines = [f"\n{CALLERS:,} callers, one missing key", f"  {'':32} {'loads':>8} {'ratio':>8} {'ms':>9}"]
    for row in _by(rows, "ratio"):
        verdict = (
            f"loads {_verdict(row['loads'], BARS['stampede loads'])}, time {_verdict(row['ratio'], BARS['stampede'])}"
        )
        line = f"  {row['contender']:32} {row['loads']:8,} {row['ratio']:8.2f} {row['ms']:9,.0f}"
        lines.append(line + (f"  {verdict}" if row["kind"] == "ours" else ""))
    return "\n".join(lines)


def memory_text(rows: list[Row]) -> str:
    """Return the table of bytes for each entry."""
    lines = ["\nmemory beyond the payload, bytes an entry"]
    for row in sorted(rows, key=lambda row: (row["entries"], row["bytes_per_entry"])):
        line = f"  {row['contender']:32} {row['entries']:>10,} entries {row['bytes_per_entry']:8,.0f}"
        lines.append(f"{line}  {_verdict(row['bytes_per_entry'], _memory_bar(row))}".rstrip())
    return "\n".join(lines)


def _memory_bar(row: Row) -> float | None:
    return BARS["memory"] if row["contender"] == "acache" and row["entries"] == 1_000_000 else None


def import_text(rows: list[Row]) -> str:
    """Return the table of import times."""
    lines = ["\nimport in a new process, ms"]
    for row in rows:
        verdict = _verdict(row["ms"], BARS["import"]) if row["kind"] == "ours" else ""
        lines.append(f"  {row['contender']:32} {row['ms']:8.1f}  {verdict}".rstrip())
    return "\n".join(lines)


def backends_text(backends: Row) -> str:
    """Return the tables of the backends beside the bare clients."""
    lines: list[str] = []
    for case in backends["cases"]:
        lines.append(f"\n{case['title']}\n  {'':32} {'cpu':>8} {'us':>9} {'wall':>8} {'us':>9}")
        for row in case["rows"]:
            cpu, wall = row["cpu"], row["wall"]
            verdict = _verdict(row[case["judged_by"]]["ratio"], case["bar"]) if row["kind"] == "ours" else ""
            line = (
                f"  {row['contender']:32} {cpu['ratio']:8.2f} {cpu['us']:9.1f} {wall['ratio']:8.2f} {wall['us']:9.1f}"
            )
            lines.append(f"{line}  {verdict}".rstrip())
    lines += [f"\n{name}: not measured: {why}" for name, why in backends["missing"].items()]
    return "\n".join(lines)


# The documentation ---------------------------------------------------------------------------------------------------


def write_docs(results: Results, docs: Path) -> None:
    """Write the page and its picture."""
    (docs / "benchmarks.svg").write_text(draw(results))
    (docs / "benchmarks.md").write_text(_page(results))


def _page(results: Results) -> str:
    machine = results["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    parts = [
        _HEAD.format(**machine, packages_text=packages),
        "## Against the bars\n",
        _bars(results),
        "## Where a peer is ahead\n",
        _ahead(results),
        "## A hit, a set, an eviction\n",
        f"Ratio to the bare coroutine: the median over {results['rounds']} rounds; in brackets the quartiles.\n",
        *[_case(case) for case in results["cases"].values()],
        "## A stampede\n",
        _STAMPEDE,
        _table(
            ("", "loads", "ratio", "ms"),
            [
                (_name(row), f"{row['loads']:,}", f"{row['ratio']:.2f}", f"{row['ms']:,.0f}")
                for row in _by(results["stampede"], "ratio")
            ],
        ),
        "## Memory\n",
        _MEMORY,
        _memory(results["memory"]),
        "## Import\n",
        "Median of new processes with compiled bytecode, in milliseconds.\n",
        _table(("", "ms"), [(_name(row), f"{row['ms']:.1f}") for row in results["import"]]),
        *_backends(results["backends"]),
        _METHOD,
        _table(("contender", "configuration"), [(name, how) for name, how in _configurations(results).items()]),
    ]
    return "\n".join(parts)


def _name(row: Row) -> str:
    return (
        f"**{row['contender']}**"
        if row["kind"] == "ours"
        else f"*{row['contender']}*"
        if row["kind"] == "reference"
        else row["contender"]
    )


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    if head[0]:
        lines[1] = "|---" * len(head) + "|"
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _case(case: Row) -> str:
    rows = []
    for row in _by(case["rows"], "ratio"):
        low, high = row["ratio_quartiles"]
        rows.append(
            (_name(row), f"{row['ratio']:.2f} ({low:.2f} to {high:.2f})", f"{row['ns']:,.0f}", f"`{row['statement']}`")
        )
    return f"### {case['title'][0].upper()}{case['title'][1:]}\n\n" + _table(("", "ratio", "ns", "in the loop"), rows)


def _backends(backends: Row) -> list[str]:
    """Write the section about the far tier: a table for each operation of each engine, and what was not measured."""
    packages = ", ".join(f"{name} {version}" for name, version in backends["packages"].items())
    parts = ["## Backends and the bare clients\n", _BACKENDS.format(**backends, packages_text=packages)]
    for case in backends["cases"]:
        rows = []
        for row in case["rows"]:
            cells = [_name(row)]
            for unit in ("cpu", "wall"):
                low, high = row[unit]["ratio_quartiles"]
                cells += [f"{row[unit]['ratio']:.2f} ({low:.2f} to {high:.2f})", f"{row[unit]['us']:,.1f}"]
            rows.append(tuple(cells))
        title = case["title"]
        parts.append(f"### {title[0].upper()}{title[1:]}\n")
        parts.append(_table(("", "CPU, ratio", "us", "wall, ratio", "us"), rows))
    parts += [f"- {name}: not measured: {why}\n" for name, why in backends["missing"].items()]
    return parts


def _configurations(results: Results) -> dict[str, str]:
    """Return what each contender, backend and bare client was, by name."""
    sides = {row["contender"]: row["how"] for case in results["backends"]["cases"] for row in case["rows"]}
    return {**results["contenders"], **sides}


def _bars(results: Results) -> str:
    rows: list[tuple[str, str, str, str]] = []

    def add(what: str, value: float, shown: str, bar: float) -> None:
        rows.append((what, shown, f"{bar:g}", "ok" if value <= bar else "**short**"))

    for case in results["cases"].values():
        for row in case["rows"]:
            if row["kind"] == "ours" and case["bar"] is not None:
                add(case["title"], row["ratio"], f"{row['ratio']:.2f}x", case["bar"])
    for row in results["stampede"]:
        if row["kind"] == "ours":
            add(f"stampede, loads ({row['contender']})", row["loads"], str(row["loads"]), BARS["stampede loads"])
            add(f"stampede, time ({row['contender']})", row["ratio"], f"{row['ratio']:.2f}x", BARS["stampede"])
    for row in results["memory"]:
        if (bar := _memory_bar(row)) is not None:
            add(
                "bytes an entry beyond the payload, 1 M entries",
                row["bytes_per_entry"],
                f"{row['bytes_per_entry']:.0f}",
                bar,
            )
    for row in results["import"]:
        if row["kind"] == "ours":
            add("import, ms", row["ms"], f"{row['ms']:.0f}", BARS["import"])
    for case in results["backends"]["cases"]:
        for row in case["rows"]:
            if row["kind"] == "ours" and case["bar"] is not None:
                unit = case["judged_by"]
                ratio = row[unit]["ratio"]
                add(
                    f"{case['title']}, {_UNITS[unit]} to {case['rows'][0]['contender']}",
                    ratio,
                    f"{ratio:.2f}x",
                    case["bar"],
                )
    return _table(("", "acache", "bar, at most", ""), rows)


def _ahead(results: Results) -> str:
    """List the rows in which another async library has the better number."""
    lines: list[str] = []

    def compare(what: str, rows: list[Row], field: str, unit: str) -> None:
        ours = [row for row in rows if row["kind"] == "ours"]
        peers = _by([row for row in rows if row["kind"] == "peer"], field)
        for mine in ours:
            lines.extend(
                f"- {what}: {peer['contender']} {peer[field]:,.2f}{unit}, {mine['contender']} {mine[field]:,.2f}{unit}"
                for peer in peers
                if peer[field] < mine[field]
            )

    for case in results["cases"].values():
        compare(case["title"], case["rows"], "ratio", "x")
    compare("stampede, wall time", results["stampede"], "ratio", "x")
    for size in dict.fromkeys(row["entries"] for row in results["memory"]):
        rows = [row for row in results["memory"] if row["entries"] == size]
        decorators = ("async-lru", "cachetools-async")
        stores = [
            row
            for row in rows
            if row["contender"] != "acache, decorated" and not row["contender"].startswith(decorators)
        ]
        calls = [
            row for row in rows if row["contender"] == "acache, decorated" or row["contender"].startswith(decorators)
        ]
        compare(f"bytes an entry, {size:,} entries", stores, "bytes_per_entry", "")
        compare(f"bytes an entry, {size:,} results of a decorated function", calls, "bytes_per_entry", "")
    compare("import", results["import"], "ms", " ms")
    return "\n".join(lines or ["In no row of this run."]) + "\n"


def _memory(rows: list[Row]) -> str:
    sizes = sorted({row["entries"] for row in rows})
    by_name: dict[str, dict[int, Row]] = {}
    for row in rows:
        by_name.setdefault(row["contender"], {})[row["entries"]] = row
    lines = [
        (_name(found[sizes[-1]]), *[f"{found[size]['bytes_per_entry']:,.0f}" for size in sizes])
        for found in sorted(by_name.values(), key=lambda found: found[sizes[-1]]["bytes_per_entry"])
    ]
    return _table(("", *[f"{size:,} entries" for size in sizes]), lines)


_UNITS = {"cpu": "CPU", "wall": "wall time"}
_BACKENDS = """\
What a backend adds to the client it stands on, or replaces: microseconds of processor time for each call, of all
threads of the client's process, and of wall time, with the server on loopback. Ratios are to the first row, taken
within a round: medians over {rounds} rounds, in brackets the quartiles. All sides use the same server, in turns.

Measured {date}: {packages_text}.
"""
_HEAD = """\
<!-- Written by benchmarks/run.py: change it there. -->
# Benchmarks

What acache adds to a call, beside other asyncio caches, all of them measured in one run. The unit is the bare
coroutine: how many times as long as awaiting a trivial `async def` does it take? Only ratios carry over to another
machine.

![Ratios to the bare coroutine](benchmarks.svg)

Measured {date} on {cpu} ({cores} cores, {system}), {python}, {event_loop}: {packages_text}.

To repeat it (about four minutes; `BENCH_ARGS=--quick` one minute, `BENCH_ARGS='--only get call'` some parts):

```sh
make bench
```
"""
_STAMPEDE = f"""\
{CALLERS:,} tasks ask for one missing value; the loader sleeps {LOAD_SECONDS * 1e3:.0f} ms. The ratio is to one bare
future that all of them await: the least it can cost, though there one cancelled caller cancels all.
"""
_MEMORY = """\
Bytes for each entry beyond its key and value, which exist before: the growth of the resident set of a process of its
own while the cache is filled, garbage collected before both readings. Decorators (async-lru, cachetools-async, "acache,
decorated") store results under the function's arguments, the others values under given keys.
"""
_METHOD = """\
## How it is measured

- The statement stands in a `for` loop that awaits it; everything it names is a local variable. Nothing is subtracted,
  neither the loop nor the base, and the base runs in the same loop with the same call shape.
- All contenders of a table take turns in one process and one event loop: many short rounds of a few milliseconds each,
  every round in another order. A ratio is taken within a round; the table shows the median over the rounds.
- A sample ends with one turn of the event loop, so that work a library leaves to the loop is on its own account.
- The garbage collector is on. Objects from before the measurement are frozen (`gc.freeze`), so each contender pays for
  collecting what it makes itself.
- "Rotating" cases look up keys that are equal to the stored ones but other objects, as in a program that builds them;
  the large ints are beyond those that the interpreter keeps.
- Each cache is warm, holds the same entries, and has the same lifetime and bound where it has such a thing.
- Names in italics are references, not peers: what Python offers, or what one would write by hand without expiry of
  unused entries, statistics, single-flight or invalidation.

"""
