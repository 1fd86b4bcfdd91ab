"""The results as a page: what was measured, on what, and how; every table and picture comes from the numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from backends import UNITS
from bars import verdicts
from chart import Line, Panel, draw
from lease import LOAD_SECONDS as LEASED_SECONDS
from render import Block, Chart, Heading, Table, Text, to_html, to_markdown, to_text
from simulate import cells, columns
from stampede import CALLERS, LOAD_SECONDS

__all__ = ["ahead", "page", "section_text", "verdict_text", "write_docs", "write_html"]

Row = dict[str, Any]
Results = dict[str, Any]

_FAR = ("redis", "memcached", "files", "mongodb", "dynamodb")
_PANELS = ("call-1", "get", "set", "evict")


def write_docs(results: Results, docs: Path) -> None:
    """Write docs/benchmarks.md, and its pictures into docs/benchmarks/."""
    blocks = page(results)
    folder = docs / "benchmarks"
    folder.mkdir(exist_ok=True)
    for block in blocks:
        if isinstance(block, Chart):
            (folder / f"{block.name}.svg").write_text(block.svg)
    (docs / "benchmarks.md").write_text(to_markdown(blocks, "benchmarks"))


def write_html(results: Results, path: Path) -> None:
    """Write the same page as one HTML file."""
    path.write_text(to_html(page(results)))


def section_text(name: str, section: Row) -> str:
    """Return one section for the terminal."""
    return to_text(_BLOCKS[name](section))


def verdict_text(results: Results) -> str:
    """Return the table of the bars for the terminal."""
    return to_text([_verdicts(results)])


def page(results: Results) -> list[Block]:
    """Return the whole report."""
    sections = results["sections"]
    blocks: list[Block] = [
        Text("<!-- Written by benchmarks/run.py from benchmarks/results/latest.json: change it there. -->"),
        Heading(1, "Benchmarks"),
        Text(_HEAD),
        Heading(2, "The machine"),
        *_machine(results),
        Heading(2, "Against the bars"),
        _verdicts(results),
        Heading(2, "Where a peer is ahead"),
        Text(_AHEAD),
        ahead(results),
    ]
    for name, write in _BLOCKS.items():
        if name in sections:
            blocks += write(sections[name])
    left = [name for name in _BLOCKS if name not in sections]
    if left:
        blocks.append(Text(f"Not measured in these runs: {', '.join(left)}."))
    return [*blocks, Heading(2, "How it is measured"), Text(_METHOD), _configurations(results)]


# The head ------------------------------------------------------------------------------------------------------------


def _machine(results: Results) -> list[Block]:
    machine, sections = results["machine"], results["sections"]
    packages = dict(machine["packages"])
    for section in sections.values():
        packages |= section.get("packages", {})
    versions = ", ".join(f"{name} {version}" for name, version in sorted(packages.items()))
    text = f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}, {machine['python']}; {versions}."
    if any(section["effort"] != "full" for section in sections.values()):
        text += "\n\n**Provisional**: sections marked *quick* were measured in few and short rounds."
    rows = [
        (name, section["date"], section["effort"], "" if section["load"] is None else f"{section['load']:.1f}")
        for name, section in sections.items()
    ]
    head = ("section", "measured", "effort", "load average before")
    return [Text(text), Table(head, rows, left=3)]


def _verdicts(results: Results) -> Table:
    marks = {"short": "**short**"}
    rows = [
        (verdict.what, verdict.shown, f"{verdict.most:g}", marks.get(verdict.word, verdict.word))
        for verdict in verdicts(results)
    ]
    return Table(("", "acache", "bar, at most", ""), rows)


def ahead(results: Results) -> Table:
    """List the rows in which a peer has the better number; what asks a server is compared with its like."""
    rows: list[tuple[str, ...]] = []

    def compare(what: str, ours: Row, peers: Iterable[Row], value: Callable[[Row], float | None], unit: str) -> None:
        mine = value(ours)
        for peer in peers:
            theirs = value(peer)
            if mine is not None and theirs is not None and theirs < mine:
                cells = (f"{peer['contender']} {_short(theirs)}{unit}", f"{ours['contender']} {_short(mine)}{unit}")
                rows.append((what, *cells))

    def each(section: str, what: Callable[[Row], str], field: str, unit: str) -> None:
        found = [row for row in results["sections"].get(section, {}).get("rows", ()) if "failed" not in row]
        for group in dict.fromkeys(what(row) for row in found):
            mine = [row for row in found if what(row) == group]
            for ours in mine:
                if ours["kind"] == "ours":
                    compare(group, ours, _peers(mine), lambda row: row.get(field), unit)

    for case in results["sections"].get("hits", {}).get("cases", ()):
        for ours in case["rows"]:
            if ours["kind"] == "ours":
                compare(case["title"], ours, _peers(case["rows"]), lambda row: row["ratio"], "x")
    each("stampede", lambda _: "stampede, wall time", "ms", " ms")
    each("memory", lambda row: f"bytes each, {row['entries']:,} entries, {_kind_of_store(row)}", "bytes_per_entry", "")
    each("memory", lambda row: f"a collection, {row['entries']:,} entries, {_kind_of_store(row)}", "gc_ms", " ms")
    each("expiry", lambda row: f"{row['entries']:,} entries end together", "ms", " ms")
    each("import", lambda _: "import", "ms", " ms")
    for section, fields in (("growth", ("get_ns", "set_ns")), ("tags", ("us",))):
        for size, points in _by_size(results["sections"].get(section, {})).items():
            for ours in points:
                for field in fields if ours["kind"] == "ours" else ():
                    words = f"{section}, {field.replace('_', ', ')}, {size:,} entries"
                    compare(words, ours, _peers(points), lambda row, field=field: row.get(field), "")
    for section in _FAR:
        for case in results["sections"].get(section, {}).get("cases", ()):
            for ours in case["rows"]:
                if ours["kind"] == "ours" and ours["layer"] is not None:
                    alike = [row for row in _peers(case["rows"]) if row["layer"] == ours["layer"]]
                    compare(case["title"], ours, alike, lambda row: row["wall"]["us"], " us")
    return Table(("row", "ahead", "acache"), rows or [("in no row of these runs", "", "")], left=3)


def _peers(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row["kind"] == "peer"]


def _kind_of_store(row: Row) -> str:
    decorators = ("async-lru", "cachetools-async", "acache, decorated")
    return "results of a decorated function" if row["contender"].startswith(decorators) else "under given keys"


def _by_size(section: Row) -> dict[int, list[Row]]:
    sizes: dict[int, list[Row]] = {}
    for row in section.get("rows", ()):
        for point in row["points"]:
            sizes.setdefault(point["entries"], []).append({**point, "contender": row["contender"], "kind": row["kind"]})
    return sizes


# The sections --------------------------------------------------------------------------------------------------------


def _hits(section: Row) -> list[Block]:
    cases = {case["name"]: case for case in section["cases"]}
    panels = [
        Panel(case["title"], [_line(row, row["ratio"], case["bar"]) for row in case["rows"]])
        for name in _PANELS
        if (case := cases.get(name)) is not None
    ]
    caption = "times the bare coroutine, logarithmic: shorter is better; dashed: the bar for acache"
    blocks: list[Block] = [
        Heading(2, "A hit, a set, an eviction"),
        Text(
            f"Ratio to the bare coroutine: the median over {section['rounds']} rounds; in brackets the quartiles."
            " A line without `await` in the loop is a call that cannot wait: no coroutine, and no backend behind it."
        ),
        Chart("hits", "Ratios to the bare coroutine", draw("Hits", caption, panels, "x", logarithmic=True)),
    ]
    for case in section["cases"]:
        rows = [
            (_name(row), _quartiles(row), f"{row['ns']:,.0f}", f"`{row['statement']}`")
            for row in _by(case["rows"], "ratio")
        ]
        blocks += [Heading(3, _capital(case["title"])), Table(("", "ratio", "ns", "in the loop"), rows)]
    return blocks + _missing(section)


def _stampede(section: Row) -> list[Block]:
    rows = [
        (_name(row), f"{row['loads']:,}", f"{row['ratio']:.2f}", f"{row['ms']:,.0f}")
        for row in _by(section["rows"], "ratio")
    ]
    lines = [_line(row, row["ms"]) for row in section["rows"]]
    chart = draw("Stampede", "milliseconds until the last has its value: shorter is better", [Panel("", lines)], " ms")
    return [
        Heading(2, "A stampede"),
        Text(_STAMPEDE),
        Chart("stampede", "Milliseconds until the last caller has its value", chart),
        Table(("", "loads", "ratio", "ms"), rows),
    ]


def _memory(section: Row) -> list[Block]:
    found = [row for row in section["rows"] if "failed" not in row]
    sizes = sorted({row["entries"] for row in found})
    by_name: dict[str, dict[int, Row]] = {}
    for row in found:
        by_name.setdefault(row["contender"], {})[row["entries"]] = row
    rows = [
        (
            _name(next(iter(mine.values()))),
            *[f"{mine[size]['bytes_per_entry']:,.0f}" if size in mine else "" for size in sizes],
            *[f"{mine[size]['gc_ms']:,.1f}" if "gc_ms" in mine.get(size, ()) else "" for size in sizes[-1:]],
        )
        for mine in sorted(by_name.values(), key=lambda mine: list(mine.values())[-1]["bytes_per_entry"])
    ]
    lines = [_line(row, row["bytes_per_entry"]) for row in found if row["entries"] == sizes[-1]]
    caption = f"bytes an entry beyond the payload, {sizes[-1]:,} entries: shorter is better" if sizes else ""
    return [
        Heading(2, "Memory"),
        Text(_MEMORY),
        Chart("memory", "Bytes an entry", draw("Memory", caption, [Panel("", lines)], " B")),
        Table(("", *[f"{size:,} entries" for size in sizes], *["ms of a collection" for _ in sizes[-1:]]), rows),
        *_failed(section),
    ]


def _growth(section: Row) -> list[Block]:
    by_size = _by_size(section)
    blocks: list[Block] = [Heading(2, "Growth: a get and a set in a fuller cache"), Text(_GROWTH)]
    for field, what in (("get_ns", "get"), ("set_ns", "set of an existing key")):
        rows = []
        for row in section["rows"]:
            points = {point["entries"]: point[field] for point in row["points"]}
            rows.append((_name(row), *[f"{points[size]:,}" if size in points else "" for size in by_size]))
        blocks += [Heading(3, f"Nanoseconds of a {what}"), Table(("", *[f"{size:,}" for size in by_size]), rows)]
    panels = [
        Panel(f"{size:,} entries", [_line(point, point["get_ns"]) for point in points])
        for size, points in by_size.items()
    ]
    caption = "nanoseconds of a get of a random key: shorter is better"
    blocks.insert(2, Chart("growth", "Nanoseconds of a get", draw("Growth", caption, panels, " ns", logarithmic=True)))
    return blocks + _failed(section)


def _tags(section: Row) -> list[Block]:
    sizes = list(_by_size(section))
    rows = []
    for row in section["rows"]:
        points = {point["entries"]: point["us"] for point in row["points"]}
        rows.append((_name(row), *[f"{points[size]:,.0f}" if size in points else "" for size in sizes]))
    return [
        Heading(2, "Growth: invalidating a tag"),
        Text("Microseconds of one call, by the number of entries that carry the tag, all of them in memory."),
        Table(("", *[f"{size:,}" for size in sizes]), rows),
        *_failed(section),
    ]


def _flights(section: Row) -> list[Block]:
    rows = [
        (_name(row), f"{row['loads']:,}", f"{row['kib']:,}", f"{row['of_kib']:,}", f"{row['us']:,.0f}")
        for row in section["rows"]
        if "failed" not in row
    ]
    return [
        Heading(2, "What is left of loads"),
        Text(_FLIGHTS),
        Table(("", "loads", "KiB more than before", "of KiB", "us a load"), rows),
        *_failed(section),
    ]


def _expiry(section: Row) -> list[Block]:
    rows = [
        (_name(row), f"{row['entries']:,}", f"{row['ms']:.1f}", f"{row['rounds']}")
        for row in section["rows"]
        if "failed" not in row
    ]
    return [
        Heading(2, "Mass expiry"),
        Text(_EXPIRY),
        Table(("", "entries", "ms of the longest turn", "rounds"), rows),
        *_failed(section),
    ]


def _eviction(section: Row) -> list[Block]:
    rows = [cells(row["trace"], row["entries"], row) for row in section["rows"]]
    text = _EVICTION.format(requests=f"{section['requests']:,}")
    return [Heading(2, "Hit ratios"), Text(text), Table(columns(), rows)]


def _coherence(section: Row) -> list[Block]:
    blocks: list[Block] = [Heading(2, "Two tiers: a near hit, and a write elsewhere")]
    if not section["tables"]:
        return blocks + _missing(section)
    blocks.append(Text(_COHERENCE.format(rounds=section["rounds"])))
    blocks += _tables(section)
    writes = section["writes"]
    rows = [(what, *[f"{found[name]:.2f}" for name in found]) for what, found in writes.items() if what != "writes"]
    return [
        *blocks,
        Heading(3, "Until the old value cannot be had in another process"),
        Text(_WRITES.format(writes=f"{writes['writes']:,}")),
        Table(("milliseconds", "p50", "p99", "max"), rows),
    ]


def _breaker(section: Row) -> list[Block]:
    blocks: list[Block] = [Heading(2, "Two tiers: the far one is away")]
    if not section["tables"]:
        return blocks + _missing(section)
    return [*blocks, Text(_BREAKER.format(rounds=section["rounds"])), *_tables(section)]


def _tables(section: Row) -> list[Block]:
    """Write ratios to the first row of each table."""
    blocks: list[Block] = []
    for table in section["tables"]:
        rows = [(_name(row), _quartiles(row), f"{row['ns']:,.0f}", f"`{row['statement']}`") for row in table["rows"]]
        blocks += [Heading(3, _capital(table["title"])), Table(("", "ratio", "ns", "in the loop"), rows)]
    return blocks


def _lease(section: Row) -> list[Block]:
    blocks: list[Block] = [Heading(2, "Two tiers: a stampede of processes")]
    if not section["rows"]:
        return blocks + _missing(section)
    fields = ("p50", "p99", "max", "worst p99")
    rows = [
        (f"{row['bytes']:,}", f"{row['loads']}", *[f"{row[name]:.1f}" for name in fields]) for row in section["rows"]
    ]
    first = section["rows"][0]
    text = _LEASE.format(**first, rounds=section["rounds"], load=f"{LEASED_SECONDS:g}")
    return [*blocks, Text(text), Table(("bytes of the value", "loads", *fields), rows, left=0)]


def _import(section: Row) -> list[Block]:
    return [
        Heading(2, "Import"),
        Text("Median of new processes with compiled bytecode, in milliseconds."),
        Table(("", "ms"), [(_name(row), f"{row['ms']:.1f}") for row in _by(section["rows"], "ms")]),
    ]


def _far(section: Row) -> list[Block]:
    engine, cases = section["engine"], section["cases"]
    blocks: list[Block] = [Heading(2, engine)]
    if not cases:
        return blocks + _missing(section)
    base = cases[0]["base"]
    blocks.append(Text(_FAR_TEXT.format(base=base, rounds=section["rounds"])))
    panels = [
        Panel(
            case["title"].removeprefix(f"{engine}: "),
            [
                _line(row, row["wall"]["us"], _most(case, row))
                for row in case["rows"]
            ],
        )
        for case in cases
        if case["operation"] in ("get", "set") and case["size"] == 100
    ]  # fmt: skip
    caption = "microseconds of wall time a call, logarithmic: shorter is better; dashed: the bar for acache"
    svg = draw(engine, caption, panels, " us", logarithmic=True)
    blocks.append(Chart(engine.lower(), f"{engine}: microseconds a call", svg))
    for case in cases:
        units = [unit for unit in UNITS if any(unit in row for row in case["rows"])]
        beside = any("beside" in row["wall"] for row in case["rows"])
        head = ["", *[cell for unit in units for cell in (f"{_COLUMNS[unit]}, ratio", "us")]]
        rows = []
        for row in case["rows"]:
            cells = [_name(row)]
            for unit in units:
                cells += [_quartiles(row[unit]), f"{row[unit]['us']:,}"] if unit in row else ["", ""]
            if beside:
                other = row["wall"].get("beside")
                cells.append("" if other is None else f"{other[1]:.2f} of {other[0]}")
            rows.append(tuple(cells))
        if beside:
            head.append("wall, uvloop")
        blocks += [Heading(3, _capital(case["title"])), Table(tuple(head), rows)]
        blocks += _missing({"missing": case["failed"]})
    return blocks + _missing(section)


def _most(case: Row, row: Row) -> float | None:
    """Return the bar of a row in microseconds of wall time."""
    base = next((other["wall"]["us"] for other in case["rows"] if other["contender"] == case["base"]), None)
    bars = [
        bar["most"] for bar in case["bars"] if bar["unit"] == "wall" and bar["contender"] == row["contender"]
    ]  # fmt: skip
    return bars[0] * base if bars and base is not None else None


_BLOCKS: dict[str, Callable[[Row], list[Block]]] = {
    "hits": _hits,
    "stampede": _stampede,
    "memory": _memory,
    "growth": _growth,
    "tags": _tags,
    "flights": _flights,
    "expiry": _expiry,
    "eviction": _eviction,
    "import": _import,
    "coherence": _coherence,
    "breaker": _breaker,
    "lease": _lease,
    **dict.fromkeys(_FAR, _far),
}


def _configurations(results: Results) -> Table:
    how: dict[str, str] = dict(results["sections"].get("hits", {}).get("contenders", {}))
    for section in _FAR:
        for case in results["sections"].get(section, {}).get("cases", ()):
            engine = results["sections"][section]["engine"]
            how |= {f"{engine}: {row['contender']}": row["how"] for row in case["rows"]}
    return Table(("contender", "configuration"), list(how.items()), left=2)


# Cells ---------------------------------------------------------------------------------------------------------------


def _missing(section: Row) -> list[Block]:
    lines = [f"- {name}: not measured: {why}" for name, why in section.get("missing", {}).items()]
    lines += [f"- {name}: {note}" for name, note in section.get("notes", {}).items()]
    return [Text("\n".join(lines))] if lines else []


def _failed(section: Row) -> list[Block]:
    return _missing({"missing": {row["contender"]: row["failed"] for row in section["rows"] if "failed" in row}})


def _line(row: Row, value: float, most: float | None = None) -> Line:
    return Line(row["contender"], value, row["kind"], most if row["kind"] == "ours" else None)


def _name(row: Row) -> str:
    marks = {"ours": "**", "reference": "*"}.get(row["kind"], "")
    return f"{marks}{row['contender']}{marks}"


def _by(rows: list[Row], field: str) -> list[Row]:
    return sorted(rows, key=lambda row: row[field])


def _quartiles(row: Row) -> str:
    if "ratio" not in row:
        return ""
    low, high = row["ratio_quartiles"]
    return f"{row['ratio']:.2f} ({low:.2f} to {high:.2f})"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.2f}"


# Words ---------------------------------------------------------------------------------------------------------------

_COLUMNS = {"wall": "wall", "cpu": "client CPU", "server": "server CPU"}
_HEAD = """\
What acache costs, beside other asyncio caches and bare clients, all of them measured side by side. Near hits are given
as ratios to the bare coroutine: how many times as long as awaiting a trivial `async def` does it take? What asks a
server is given as ratios to a bare client. Only ratios carry over to another machine.

To repeat it, twenty minutes on a machine that does nothing else; servers are fetched and started for the run:

```sh
make bench
make bench BENCH_ARGS="--only redis"  # one section: hits, stampede, memory, growth, tags, flights, coherence ...
make bench-smoke  # in two minutes, the bars only
```

`benchmarks/results/latest.json` holds the numbers of this page; `benchmarks/report.html` is the same page of the last
run, in one file.
"""
_AHEAD = """\
Every row in which another library has the better number; wall time where a server is asked, and there backends are
held against clients and `Cache` against caches. Calls that cannot wait are in it too: they do less. Hit ratios stand
beside those of others in a table of their own.
"""
_FAR_TEXT = """\
Microseconds for each call: wall time, processor time of the client's process, all threads, and processor time of the
server's process where it is on this machine. Ratios are to {base}, taken within a round: medians over {rounds} rounds,
in brackets the quartiles. All sides use one server, in turns, each under keys of its own.
"""
_STAMPEDE = f"""\
{CALLERS:,} tasks ask for one missing value; the loader sleeps {LOAD_SECONDS * 1e3:.0f} ms. The ratio is to one bare
future that all of them await: the least it can cost, though there one cancelled caller cancels all.
"""
_MEMORY = """\
Bytes for each entry beyond its key and value, which exist before: the growth of the resident set of a process of its
own while the cache is filled, garbage collected before both readings. The last column is the first full collection when
the cache is full, which looks at what came with the cache and at nothing from before. Decorators (async-lru,
cachetools-async, "acache, decorated") store results under the function's arguments, the others values under given keys.
"""
_GROWTH = """\
Each cache has a process of its own and room for all entries; keys are drawn at random, so what grows for all alike is
the share of memory that the processor's caches do not hold.
"""
_FLIGHTS = """\
Distinct keys are loaded once each, a thousand at a time, into a near tier of a thousand entries: by how much is the
process larger afterwards, garbage collected before both readings? A load sleeps for one turn of the loop.
"""
_EXPIRY = """\
All entries end at about the same time, while the event loop does nothing but turn: how long does the longest turn take
until all of them have left? In a cache that nobody uses they leave in rounds of a timer, half a minute apart, which are
counted here and not waited for.
"""
_EVICTION = """\
`Memory` itself over traces of {requests} requests, the same in each run, beside other people's implementations of the
same policies: cachetools, theine, and for S3-FIFO the algorithm as it stands in the paper. In brackets: by how many
points ours is above or below, in bold where it is more than one below. `wtinylfu` is the mean of three runs. *Optimum*
is what a cache that knows the future could reach; the last columns say how much of the way from LRU to there a policy
makes.
"""
_COHERENCE = """\
Near hits where nobody else can change a value, and where Redis tells of each change by another process (tracking).
Ratios are to the first row, taken within a round: medians over {rounds} rounds, in brackets the quartiles.
"""
_WRITES = """\
One process writes a key {writes} times; another asks its near tier in each turn of its loop, and takes down the instant
from which the old value is not served. Below zero: it was gone before the `set` had returned.
"""
_BREAKER = """\
A read of what is not there, without a far tier and with one to which no connection can be had, so that the breaker is
open. Ratios are to the first row: medians over {rounds} rounds, in brackets the quartiles.
"""
_LEASE = """\
{processes} processes, {callers} callers in each, ask for one cold key with a lease, all at once; the loader takes
{load} s. How many loads are there, and how many milliseconds after the loader has returned does each caller have the
value? Medians over {rounds} rounds, the loads and the last column from the worst of them.
"""
_METHOD = """\
- Near hits: the statement stands in a `for` loop that awaits it; everything it names is a local variable. Nothing is
  subtracted, neither the loop nor the base, and the base runs in the same loop with the same call shape.
- All contenders of a table take turns in one process: many short rounds of some milliseconds each, every round in
  another order. A ratio is taken within a round; the table shows the median over the rounds.
- The sides on uvloop have an event loop of their own, which runs when it is their turn, in the same rounds.
- A sample ends with one turn of the event loop, so that work a library leaves to the loop is on its own account.
- The garbage collector is on. Objects from before the measurement are frozen (`gc.freeze`), so each contender pays for
  collecting what it makes itself.
- "Rotating" cases look up keys that are equal to the stored ones but other objects, as in a program that builds them;
  the large ints are beyond those that the interpreter keeps.
- Each cache is warm, holds the same entries, and has the same lifetime and bound where it has such a thing. Before a
  far side is timed it must give back what was stored. Keys go round: 1,000 of them, 100 of 100 KB.
- Pools have as many connections as there are tasks, or let callers wait; all are open before the first round.
- Bytes are stored where a client or cache takes bytes; what writes JSON stores a str of the same length.
- A contender that is not installed or fails is named under its table, with the reason.
- Names in italics are references, not peers: what Python or a bare client offers, or what one would write by hand
  without expiry of unused entries, statistics, single-flight or invalidation.
"""
