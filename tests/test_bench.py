"""The benchmarks run, with tiny counts and no server, and the page of the docs is written from the saved numbers."""

from __future__ import annotations

import gzip
import importlib
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias
from xml.etree import ElementTree as ET

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
TIMED = {"get", "get-1000", "get-namespace", "get-or-load", "set", "set-1000", "evict"}
TIMED |= {"call-1", "call-1-b2", "call-method", "call-1000"}

Load: TypeAlias = Callable[[str], ModuleType]


@pytest.fixture(scope="module")
def load() -> Iterator[Callable[[str], ModuleType]]:
    """Import the modules of benchmarks/, which is a folder of scripts and no package."""
    path, known = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield importlib.import_module
    sys.path[:] = path
    for name in set(sys.modules) - known:
        if "benchmarks" in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def latest() -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks" / "results" / "latest.json").read_text())


def ours(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["kind"] == "ours"]


async def test_every_near_case_times_acache_and_the_base(load: Load) -> None:
    """Each operation runs, and the base has the ratio one."""
    measure, cases = load("measure"), load("cases")
    contenders = load("contenders")
    entering = [contenders.BASE, *load("contenders.acache").contenders()]
    assert {case.name for case in cases.CASES} == TIMED
    for case in cases.CASES:
        base, acache = await measure.time_case(case, entering, measure.Effort(2, 0.0001))
        assert (base["kind"], base["ratio"]) == ("reference", 1.0)
        assert acache["kind"] == "ours"
        assert acache["ns"] > 0


def test_the_simulator_knows_the_optimum(load: Load) -> None:
    """Hit ratios of a few requests are those counted by hand, and no policy is above the optimum."""
    simulate = load("simulate")
    keys = [1, 2, 3, 1, 2, 4, 1, 2, 5, 1, 2]
    assert simulate.optimum(keys, 3) == 6 / 11
    assert simulate.hit_ratio("lru", keys, 3) == 6 / 11
    assert simulate.hit_ratio("lru", simulate.loop(4, 40), 3) == 0
    assert simulate.optimum(simulate.loop(4, 40), 3) == pytest.approx(1 - (4 + 12) / 40, abs=0.03)
    for trace in simulate.TRACES:
        some = trace.make(3000)
        found = simulate.ratios(some, 50)
        assert 0 <= max(found[policy] for policy in simulate.POLICIES) <= found["optimum"]


def test_no_policy_is_far_below_lru_where_popularity_is_steady(load: Load) -> None:
    """On Zipf, with and without scans, and beside a loop: two points at most."""
    simulate = load("simulate")
    for keys in (simulate.zipf(0.8, 5000, 40_000), simulate.zipf(1.2, 5000, 40_000)):
        for trace in (keys, list(simulate.with_scans(keys, every=1000, scan=500))):
            least = simulate.hit_ratio("lru", trace, 200) - 0.02
            assert simulate.hit_ratio("s3fifo", trace, 200) > least
            assert simulate.hit_ratio("wtinylfu", trace, 200) > least


def test_the_reference_of_s3fifo_is_the_paper_s(load: Load) -> None:
    """A cache of ten: one key in the small queue, nine in the main one, nine ghosts; hits counted by hand."""
    cache = load("references").S3Fifo(10)
    ten, more = range(10), range(10, 14)
    assert not any(cache.request(key) for key in ten)
    assert [cache.request(0), cache.request(0), cache.request(1)] == [True, True, True]
    # At the end of the small queue, 0 moves on, as it was used twice; 1 was used once and goes; so do 2, 3 and 4.
    assert not any(cache.request(key) for key in more)
    assert (list(cache.main), list(cache.ghosts)) == ([0], [1, 2, 3, 4])
    assert not cache.request(3)  # a ghost: it comes back into the main queue, and 5 goes
    assert (list(cache.main), list(cache.ghosts)) == ([0, 3], [1, 2, 4, 5])
    assert list(cache.small) == [6, 7, 8, 9, 10, 11, 12, 13]
    for key in range(1000):
        cache.request(key * key % 97)
        assert len(cache.small) + len(cache.main) <= 10
        assert len(cache.ghosts) <= 9


def test_the_simulator_says_where_a_reference_is_ahead(load: Load) -> None:
    """In bold from more than a point on; empty where the reference is not installed."""
    simulate, references = load("simulate"), load("references")
    found = dict.fromkeys(simulate.POLICIES, 0.5) | {"optimum": 0.75}
    found |= {f"s3fifo, {references.REFERENCES['s3fifo'][0]}": 0.515}
    row = dict(zip(simulate.columns(), simulate.cells("some", 1000, found), strict=True))
    assert row["the paper (points)"] == "51.5% (**-1.5**)"
    assert row["theine (points)"] == ""


def test_the_simulator_reads_trace_files(load: Load, tmp_path: Path) -> None:
    """One key a line, or first block and number of blocks; compressed or not."""
    simulate = load("simulate")
    (tmp_path / "keys.txt").write_text("a\nb\n\na\n")
    assert simulate.read(tmp_path / "keys.txt", "keys") == [0, 1, 0]
    with gzip.open(tmp_path / "blocks.gz", "wt") as file:
        file.write("5 3 0 1\n6 1 0 2\n")
    assert simulate.read(tmp_path / "blocks.gz", "arc") == [5, 6, 7, 6]


async def test_a_stampede_counts_the_loads_of_everybody(load: Load) -> None:
    """One load for single-flight, one for each caller without."""
    contenders = load("contenders")

    def without(load_number: Any) -> Any:
        return load_number

    naive = contenders.Contender("naive", None, "", load_once=without)
    racing = [contenders.SHARED_FUTURE, naive, *load("contenders.acache").contenders()]
    rows = await load("stampede").stampedes(racing, 1, 7)
    assert {row["contender"]: row["loads"] for row in rows} == {
        "one shared future": 1,
        "naive": 7,
        "acache": 1,
        "acache, decorated": 1,
    }


def test_memory_growth_and_tags_are_measured_in_small(load: Load) -> None:
    """Each row has a number for each size."""
    acache, _ = load("contenders.acache").contenders()
    assert load("memory").memory_of(acache, 1_000)["entries"] == 1_000
    grown = load("growth").growth_of(acache, (100, 1_000), 60.0)
    assert [point["entries"] for point in grown["points"]] == [100, 1_000]
    assert all(point["get_ns"] > 0 and point["set_ns"] > 0 for point in grown["points"])


async def test_a_crowd_of_loads_is_counted_and_weighed(load: Load) -> None:
    """How much memory is left of loads is measured here; that nothing is left of them, in tests/laws/test_bounded.py."""
    found = await load("flights").flights(2_000, 1_000)
    assert found["loads"] == 2_000
    assert set(found) == {"loads", "us", "before", "after"}


async def test_a_tag_costs_what_the_page_says_it_is(load: Load) -> None:
    """acache is measured at each size; a library that is not there is named with the reason."""
    rows = await load("tags").tag_costs((10, 20), 1, 60.0)
    assert [point["entries"] for point in ours(rows)[0]["points"]] == [10, 20]
    assert all(row["points"] or row["failed"] for row in rows)


def test_an_engine_without_a_server_is_measured(load: Load) -> None:
    """Files: ratios to the first side, and a reason for every side that is missing."""
    backends, engines, measure = load("backends"), load("engines"), load("measure")
    (engine,) = load("engines.file").engines()
    few = [engines.Workload("get"), engines.Workload("set", 3)]
    result = backends.compare(engine, "", measure.Effort(2, 0.0005), workloads=few)
    assert [case["title"] for case in result["cases"]] == [f"Files: {workload.title}" for workload in few]
    for case in result["cases"]:
        assert not case["failed"]
        assert case["rows"][0]["wall"]["ratio"] == 1.0
        assert [row["contender"] for row in ours(case["rows"])] == ["FileBackend"]
    named = {row["contender"] for row in result["cases"][0]["rows"]} | set(result["missing"])
    assert {side.name for side in engine.sides} <= named


def test_a_side_that_fails_is_named_and_the_others_are_measured(load: Load) -> None:
    """At the opening and in the middle: the reason is in the results."""
    backends, engines, measure = load("backends"), load("engines"), load("measure")

    @asynccontextmanager
    async def good(_: str) -> AsyncIterator[Any]:
        kept: dict[str, bytes] = {}

        async def get(key: str) -> bytes | None:
            return kept.get(key)

        async def store(key: str, data: bytes) -> None:
            kept[key] = data

        yield engines.Calls(get, store)

    @asynccontextmanager
    async def forgetful(_: str) -> AsyncIterator[Any]:
        async def get(key: str) -> None:
            return None

        async def store(key: str, data: bytes) -> None:
            return None

        yield engines.Calls(get, store)

    @asynccontextmanager
    async def closed(url: str) -> AsyncIterator[Any]:
        if not url:
            raise ConnectionError("no way in")
        yield

    @asynccontextmanager
    async def absent(url: str) -> AsyncIterator[Any]:
        if not url:
            raise ModuleNotFoundError(name="cachette")
        yield

    sides = [
        engines.Side("good", "", good, "reference"),
        engines.Side("forgetful", "", forgetful),
        engines.Side("closed", "", closed),
        engines.Side("absent", "", absent),
    ]
    engine = engines.Engine("Engine", "engine", None, sides, [engines.Workload("get")])
    result = backends.compare(engine, "", measure.Effort(2, 0.0005))
    (case,) = result["cases"]
    assert [row["contender"] for row in case["rows"]] == ["good"]
    assert "does not give back" in case["failed"]["forgetful"]
    assert "no way in" in result["missing"]["closed"]
    assert result["missing"]["absent"] == "cachette is not installed"


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="needs Linux, which tells a process's time")
def test_the_time_of_a_server_is_its_own_or_is_not_given(load: Load) -> None:
    """The process must have a server's name: a number from a container may be another process here."""
    backends, engines, measure = load("backends"), load("engines"), load("measure")
    (files,) = load("engines.file").engines()
    me = Path("/proc/self/comm").read_text().strip()
    for named, told in ((me, True), ("redis-server", False)):
        engine = engines.Engine(
            "Engine", "engine", "service", files.sides[:1], [], pid=lambda _: os.getpid(), processes=(named,)
        )
        result = backends.compare(engine, "", measure.Effort(2, 0.0005), workloads=[engines.Workload("get")])
        (row,) = result["cases"][0]["rows"]
        assert ("server" in row) is told
        assert ("processor time of the server" in result["missing"]) is not told


def test_sections_that_need_no_server_are_measured_in_small(load: Load) -> None:
    """Each has a page of the report and an answer to its bars; the rest is measured with `make bench`."""
    run = load("run")
    results = run.measure(["flights", "expiry", "eviction"], run.EFFORTS["tiny"])
    told = [verdict.what for verdict in load("bars").verdicts(results)]
    for words in ("loads of as many keys", "100 entries end together", "s3fifo below the paper", "wtinylfu below LRU"):
        assert any(words in what for what in told), words


def test_two_tiers_are_measured_in_small(load: Load, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes find each other, and every bar of two tiers gets an answer."""
    monkeypatch.setenv("ACACHE_REDIS_URL", redis_url)
    run = load("run")
    results = run.measure(["coherence", "breaker", "lease"], run.EFFORTS["tiny"])
    told = {verdict.what: verdict for verdict in load("bars").verdicts(results)}
    for words in ("tracking, two tags", "breaker open", "from the return of the set", "p99 of the answers"):
        assert any(words in what for what in told), words
    assert [told[what].value for what in told if "lease" in what and "loads" in what] == [1, 1]


def test_what_needs_a_server_says_so_without_one(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the other sections go on."""
    monkeypatch.delenv("ACACHE_REDIS_URL", raising=False)
    run = load("run")
    results = run.measure(["coherence", "lease"], run.EFFORTS["tiny"])
    for section in results["sections"].values():
        assert "ACACHE_REDIS_URL" in section["missing"]["all of it"]
    assert load("bars").verdicts(results) == []


def test_every_section_has_its_page(load: Load) -> None:
    """What is measured is reported."""
    report = load("report")
    assert set(load("run").SECTIONS) == set(report._BLOCKS)


def test_a_bar_is_ok_short_or_not_measured(load: Load) -> None:
    """At the bar is still ok."""
    verdict = load("bars").Verdict
    assert [verdict("", value, 0.12, "").word for value in (0.12, 0.121, None)] == ["ok", "short", "not measured"]


def test_every_bar_of_a_server_belongs_to_something_that_is_measured(load: Load) -> None:
    """A bar names a side and a workload of its engine: none is lost by a slip of the pen."""
    found, _ = load("engines").engines()
    assert {"Redis", "Files"} <= {engine.name for engine in found}
    for engine in found:
        for bar in engine.bars:
            assert bar.workload in engine.workloads, engine.name
            assert bar.side in {side.name for side in engine.sides}, engine.name


def test_the_page_is_written_from_the_saved_numbers(load: Load, tmp_path: Path) -> None:
    """docs/benchmarks.md and its pictures are what the report makes of latest.json, to the letter."""
    load("report").write_docs(latest(), tmp_path)
    assert (tmp_path / "benchmarks.md").read_text() == PAGE.read_text()
    pictures = {path.name: path.read_text() for path in (tmp_path / "benchmarks").iterdir()}
    assert pictures == {path.name: path.read_text() for path in (ROOT / "docs" / "benchmarks").iterdir()}
    assert set(re.findall(r"\(benchmarks/([\w-]+\.svg)\)", PAGE.read_text())) == set(pictures)


def test_a_changed_number_changes_the_page(load: Load) -> None:
    """The tables hold the numbers of the file and no others."""
    report, results = load("report"), latest()
    row = ours(results["sections"]["hits"]["cases"][0]["rows"])[0]
    row["ns"] = 123_456_789
    assert "123,456,789" in load("render").to_markdown(report.page(results), "benchmarks")


def test_a_peer_that_is_ahead_is_named(load: Load) -> None:
    """The list is made of the numbers: make a peer the fastest, and it is in it."""
    report, results = load("report"), latest()
    case = results["sections"]["hits"]["cases"][0]
    peer = next(row for row in case["rows"] if row["kind"] == "peer")
    for ratio, expected in ((0.001, True), (1e9, False)):
        peer["ratio"] = ratio
        listed = [row for row in report.ahead(results).rows if row[0] == case["title"]]
        assert any(cells[1].startswith(peer["contender"] + " ") for cells in listed) is expected


def test_pictures_are_well_formed_and_follow_the_page_into_the_dark() -> None:
    """Each is XML with a style for dark pages and loads nothing."""
    pictures = list((ROOT / "docs" / "benchmarks").glob("*.svg"))
    assert pictures
    for picture in pictures:
        text = picture.read_text()
        ET.fromstring(text)  # noqa: S314 - a file of ours
        assert "prefers-color-scheme: dark" in text
        assert not re.search(r"href|url\(|<script", text)


def test_the_html_report_is_one_file_with_every_table_and_picture(load: Load, tmp_path: Path) -> None:
    """Nothing is fetched, and nothing of the page is missing."""
    report, render = load("report"), load("render")
    results = latest()
    report.write_html(results, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    blocks = report.page(results)
    assert text.count("<table>") == sum(isinstance(block, render.Table) for block in blocks)
    assert text.count("<svg") == sum(isinstance(block, render.Chart) for block in blocks)
    assert not re.search(r"src=|<script|<link", text)
