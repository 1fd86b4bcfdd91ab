"""Measure acache beside other caches and clients: ``python benchmarks/run.py``.

Each section prints its tables as it is done.  A full run, or ``--publish``, puts the sections into
benchmarks/results/latest.json and writes docs/benchmarks.md and its pictures from that file.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT)]

import breaker  # noqa: E402
import coherence  # noqa: E402
import growth  # noqa: E402
import lease  # noqa: E402
import report  # noqa: E402
import tags  # noqa: E402
from backends import compare, server_of  # noqa: E402
from cases import CASES  # noqa: E402
from contenders import SHARED_FUTURE, Contender, contenders  # noqa: E402
from engines import Engine, Workload, engines  # noqa: E402
from expiry import mass_expiry  # noqa: E402
from flights import growth_after  # noqa: E402
from imports import import_times  # noqa: E402
from machine import describe, now  # noqa: E402
from measure import Effort, time_case  # noqa: E402
from memory import memory_of  # noqa: E402
from simulate import LENGTH, hit_ratios  # noqa: E402
from stampede import stampedes  # noqa: E402

__all__ = ["EFFORTS", "SECTIONS", "measure", "smoke"]

RESULTS = ROOT / "benchmarks" / "results"
LATEST = RESULTS / "latest.json"
HTML = ROOT / "benchmarks" / "report.html"


@dataclass(frozen=True)
class Work:
    """How much is measured."""

    name: str
    near: Effort
    far: Effort
    stampedes: int
    entries: tuple[int, ...]
    """For the memory of each entry."""
    growth: tuple[int, ...]
    tags: tuple[int, ...]
    imports: int
    budget: float
    """Seconds that one contender may take to fill a cache, or to show one size."""
    writes: int
    """Of which it is measured when another process knows of them."""
    leases: int
    """Rounds."""
    flights: int
    expiring: int = 200_000
    """Entries that end together."""
    ttl: float = 3.0
    """Seconds until they do."""
    requests: int = LENGTH
    """In the traces that show hit ratios."""
    processes: int = lease.PROCESSES
    callers: int = 10_000
    most_bytes: int = 1_000_000_000
    """Of values under way at the same time."""


EFFORTS = {
    "full": Work(
        "full",
        Effort(40, 0.004),
        Effort(11, 0.025),
        5,
        (100_000, 1_000_000),
        growth.SIZES,
        tags.SIZES,
        9,
        60,
        writes=3_000,
        leases=7,
        flights=1_000_000,
    ),
    "quick": Work(
        "quick",
        Effort(9, 0.002),
        Effort(3, 0.008),
        2,
        (100_000,),
        growth.SIZES[:2],
        tags.SIZES[:2],
        3,
        10,
        writes=300,
        leases=1,
        flights=50_000,
        requests=40_000,
        most_bytes=1_000_000,
    ),
    "tiny": Work(
        "tiny",
        Effort(2, 0.0001),
        Effort(2, 0.0005),
        1,
        (100,),
        (100,),
        (10,),
        1,
        5,
        writes=3,
        leases=1,
        flights=1_000,
        expiring=100,
        ttl=0.2,
        requests=2_000,
        processes=2,
        callers=20,
    ),
}


def _hits(work: Work) -> dict[str, Any]:
    entering, missing = contenders()
    cases = [
        {"name": case.name, "title": case.title, "bar": case.bar}
        | {"rows": asyncio.run(time_case(case, entering, work.near))}
        for case in CASES
    ]
    how = {contender.name: contender.how for contender in entering}
    return {"rounds": work.near.rounds, "contenders": how, "cases": cases, "missing": missing}


def _stampede(work: Work) -> dict[str, Any]:
    return {"rows": asyncio.run(stampedes(contenders()[0], work.stampedes, work.callers))}


def _memory(work: Work) -> dict[str, Any]:
    filling = [contender for contender in contenders()[0] if contender.fill is not None]
    return {"rows": [memory_of(contender, size) for size in work.entries for contender in filling]}


def _growth(work: Work) -> dict[str, Any]:
    growing = [contender for contender in contenders()[0] if growth.grows(contender)]
    return {"rows": [growth.growth_of(contender, work.growth, work.budget) for contender in growing]}


def _tags(work: Work) -> dict[str, Any]:
    return {"rows": asyncio.run(tags.tag_costs(work.tags, 3, work.budget / 4))}


def _import(work: Work) -> dict[str, Any]:
    return {"rows": import_times(work.imports)}


def _flights(work: Work) -> dict[str, Any]:
    return {"rows": [growth_after(work.flights)]}


def _expiry(work: Work) -> dict[str, Any]:
    return {"rows": mass_expiry(work.expiring, work.ttl)}


def _eviction(work: Work) -> dict[str, Any]:
    return {"requests": work.requests, "rows": hit_ratios(work.requests)}


def _coherence(work: Work) -> dict[str, Any]:
    _, url, why = _server("redis")
    if why is not None:
        return {"tables": [], "missing": {"all of it": why}}
    tables = asyncio.run(coherence.hits(url, work.near))
    return {"rounds": work.near.rounds, "tables": tables, "writes": asyncio.run(coherence.writes(url, work.writes))}


def _breaker(work: Work) -> dict[str, Any]:
    if _server("redis")[0] is None:
        return {"tables": [], "missing": {"all of it": "redis is not installed"}}
    return {"rounds": work.near.rounds, "tables": asyncio.run(breaker.misses(work.near))}


def _lease(work: Work) -> dict[str, Any]:
    _, url, why = _server("redis")
    if why is not None:
        return {"rows": [], "missing": {"all of it": why}}
    callers = min(work.callers, lease.CALLERS)
    return {"rounds": work.leases, "rows": lease.leases(url, work.leases, work.processes, callers)}


def _server(name: str) -> tuple[Engine | None, str, str | None]:
    """Return the engine of a section and the URL of its server, or why it cannot be measured."""
    found, missing = engines()
    engine = next((engine for engine in found if engine.section == name), None)
    return (engine, *server_of(engine)) if engine is not None else (None, "", "; ".join(missing.values()))


def _far(name: str, work: Work) -> dict[str, Any]:
    engine, url, why = _server(name)
    if engine is None or why is not None:
        return {"engine": engine.name if engine else name, "cases": [], "missing": {"all of it": why}}
    workloads = [workload for workload in engine.workloads if workload.size * workload.tasks <= work.most_bytes]
    return {"rounds": work.far.rounds, **compare(engine, url, work.far, workloads=workloads)}


SECTIONS: dict[str, Callable[[Work], dict[str, Any]]] = {
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
    **{name: partial(_far, name) for name in ("redis", "memcached", "files", "mongodb", "dynamodb")},
}


def measure(
    sections: list[str], work: Work, *, done: Callable[[dict[str, Any]], object] = lambda _: None
) -> dict[str, Any]:
    """Measure sections one after the other, print each, and tell what there is so far."""
    results: dict[str, Any] = {"machine": describe(), "sections": {}}
    for name in sections:
        start, when = perf_counter(), now()
        section = {**when, "effort": work.name, **SECTIONS[name](work)}
        section["seconds"] = round(perf_counter() - start, 1)
        results["sections"][name] = section
        print(report.section_text(name, section), flush=True)
        print(f"\n{name}: {section['seconds']:.0f} s", flush=True)
        done(results)
    return results


def smoke() -> dict[str, Any]:
    """Measure what has a bar, acache and the base it is held against, and little else."""
    results: dict[str, Any] = {"machine": describe(), "sections": {}}
    sections = results["sections"]
    entering = [contender for contender in contenders()[0] if contender.kind != "peer"]
    named = ("get", "set", "evict", "call-1", "call-1-b2", "call-method")
    sections["hits"] = {
        "cases": [
            {"title": case.title, "bar": case.bar, "rows": asyncio.run(time_case(case, entering, Effort(15, 0.003)))}
            for case in CASES
            if case.name in named
        ]
    }
    racing = [contender for contender in entering if contender.kind == "ours" or contender is SHARED_FUTURE]
    sections["stampede"] = {"rows": asyncio.run(stampedes(racing, 5))}
    sections["memory"] = {"rows": [memory_of(_ours(entering), 1_000_000)]}
    for name in ("flights", "expiry", "coherence", "breaker", "lease"):
        sections[name] = SECTIONS[name](EFFORTS["quick"])
    for engine in engines()[0]:
        url, why = server_of(engine)
        if engine.section != "redis" or why is not None:
            continue
        held = {engine.sides[0].name} | {bar.side for bar in engine.bars}
        held |= {side.name for side in engine.sides if side.beside is not None}
        workloads = list(dict.fromkeys([*(bar.workload for bar in engine.bars), *_UVLOOP]))
        sections["redis"] = compare(engine, url, Effort(7, 0.03), workloads=workloads, sides=held)
    return results


_UVLOOP = [Workload("set"), Workload("set", 100, 100_000), Workload("mixed", 100), Workload("get_many", 10)]
"""Rows without a bar of their own in which uvloop is looked at as well."""


def _ours(entering: list[Contender]) -> Contender:
    return next(contender for contender in entering if contender.kind == "ours")


def publish(results: dict[str, Any]) -> None:
    """Put the sections into latest.json, beside those of earlier runs on the same machine, and write the docs."""
    if LATEST.exists():
        known = json.loads(LATEST.read_text())
        if known["machine"] == results["machine"]:
            results = {**results, "sections": {**known["sections"], **results["sections"]}}
    sections = {name: results["sections"][name] for name in SECTIONS if name in results["sections"]}
    results = {**results, "sections": sections}
    LATEST.write_text(json.dumps(results, indent=1) + "\n")
    report.write_docs(results, ROOT / "docs")


def main() -> None:
    """Read the command line, measure, report."""
    parser = argparse.ArgumentParser(prog="python benchmarks/run.py", description="Measure acache beside other caches.")
    parser.add_argument("--quick", action="store_true", help="few and short rounds: a rough picture")
    parser.add_argument(
        "--only", nargs="+", metavar="SECTION", help=f"some sections, by name or beginning: {', '.join(SECTIONS)}"
    )
    parser.add_argument(
        "--publish", action="store_true", help="into latest.json and the docs; implied unless --quick or --only"
    )
    parser.add_argument("--smoke", action="store_true", help="the bars only, in two minutes; always succeeds")
    parser.add_argument("--report", action="store_true", help="measure nothing: write docs and HTML from latest.json")
    options = parser.parse_args()
    if options.report:
        results = json.loads(LATEST.read_text())
        report.write_docs(results, ROOT / "docs")
        report.write_html(results, HTML)
        return
    if options.smoke:
        start, load = perf_counter(), now()["load"]
        results = smoke()
        print(report.verdict_text(results))
        if "redis" not in results["sections"]:
            print("  Redis: not measured: ACACHE_REDIS_URL is not set, or the redis package is not installed")
        print(f"\n{perf_counter() - start:.0f} s; load average before: {load}")
        return
    wanted = [name for name in SECTIONS if not options.only or name.startswith(tuple(options.only))]
    if not wanted:
        parser.error(f"--only: there are {', '.join(SECTIONS)}")
    start = perf_counter()
    publishing = options.publish or not (options.quick or options.only)
    done = publish if publishing else lambda _: None
    results = measure(wanted, EFFORTS["quick" if options.quick else "full"], done=done)
    print(f"\nagainst the bars\n{report.verdict_text(results)}\n\n{perf_counter() - start:.0f} s")
    if publishing:
        print("benchmarks/results/latest.json, docs/benchmarks.md and its pictures are new")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "last.json").write_text(json.dumps(results, indent=1) + "\n")
    report.write_html(results, HTML)
    print(f"all of it: {HTML.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
