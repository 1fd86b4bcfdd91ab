"""Measure acache beside other caches: ``python benchmarks/run.py``.

Prints tables of ratios, saves them as JSON, and after a full run writes docs/benchmarks.md and docs/benchmarks.svg.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT)]

import report  # noqa: E402
from backends import compare_backends  # noqa: E402
from cases import CASES  # noqa: E402
from contenders import contenders  # noqa: E402
from imports import import_times  # noqa: E402
from machine import describe  # noqa: E402
from measure import Effort, time_case  # noqa: E402
from memory import memory_of  # noqa: E402
from stampede import stampedes  # noqa: E402

LATEST = ROOT / "benchmarks" / "results" / "latest.json"
QUICK = LATEST.with_name("quick.json")
OTHERS = ("stampede", "memory", "import", "backends")


def main() -> None:
    """Read the command line, measure, report."""
    names = [case.name for case in CASES]
    parser = argparse.ArgumentParser(prog="python benchmarks/run.py", description="Measure acache beside other caches.")
    parser.add_argument(
        "--quick", action="store_true", help="a rough picture in half a minute; the docs stay as they are"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="PART", help=f"some parts, by name or beginning: {', '.join((*names, *OTHERS))}"
    )
    parser.add_argument("--out", type=Path, help="where the JSON goes (default: benchmarks/results/)")
    parser.add_argument("--report", action="store_true", help="measure nothing: write the docs from the last full run")
    options = parser.parse_args()
    if options.report:
        report.write_docs(json.loads(LATEST.read_text()), ROOT / "docs")
        return
    wanted = [part for part in (*names, *OTHERS) if not options.only or part.startswith(tuple(options.only))]
    if not wanted:
        parser.error(f"--only: there are {', '.join((*names, *OTHERS))}")
    start = perf_counter()
    results = asyncio.run(_measure(wanted, quick=options.quick))
    results["seconds"] = round(perf_counter() - start)
    full = not options.quick and not options.only
    out: Path = options.out or (LATEST if full else QUICK)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\n{results['seconds']} s; saved in {out.relative_to(ROOT) if out.is_relative_to(ROOT) else out}")
    if full and options.out is None:
        report.write_docs(results, ROOT / "docs")
        print("docs/benchmarks.md and docs/benchmarks.svg are new")


async def _measure(wanted: list[str], *, quick: bool) -> dict[str, Any]:
    entering, missing = contenders()
    for name in missing:
        print(f"{name} is not installed: left out")
    effort = Effort(rounds=15, sample=0.002) if quick else Effort(rounds=60, sample=0.004)
    how = {contender.name: contender.how for contender in entering}
    results: dict[str, Any] = {"machine": describe(), "rounds": effort.rounds, "quick": quick, "contenders": how}
    results["cases"] = {}
    for case in CASES:
        if case.name in wanted:
            rows = await time_case(case, entering, effort)
            results["cases"][case.name] = {"title": case.title, "bar": case.bar, "rows": rows}
            print(report.case_text(results["cases"][case.name]), flush=True)
    if "stampede" in wanted:
        results["stampede"] = await stampedes(entering, 1 if quick else 5)
        print(report.stampede_text(results["stampede"]), flush=True)
    if "memory" in wanted:
        sizes = (100_000,) if quick else (100_000, 1_000_000)
        filling = [contender for contender in entering if contender.fill is not None]
        results["memory"] = [memory_of(contender, size) for size in sizes for contender in filling]
        print(report.memory_text(results["memory"]), flush=True)
    if "import" in wanted:
        results["import"] = import_times(3 if quick else 9)
        print(report.import_text(results["import"]), flush=True)
    if "backends" in wanted:
        results["backends"] = await compare_backends(7 if quick else 31, 0.03 if quick else 0.06)
        print(report.backends_text(results["backends"]), flush=True)
    return results


if __name__ == "__main__":
    main()
