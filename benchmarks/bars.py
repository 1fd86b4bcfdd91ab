"""What acache has to reach, and whether the results reach it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cases import BARS
from references import REFERENCES

__all__ = ["Verdict", "verdicts"]

_UNITS = {"wall": "wall time", "cpu": "CPU of the client", "server": "CPU of the server"}


@dataclass(frozen=True)
class Verdict:
    """One bar: what is compared, the number, the most it may be; no number where it was not measured."""

    what: str
    value: float | None
    most: float
    shown: str

    @property
    def word(self) -> str:
        """``ok``, ``short`` or ``not measured``."""
        if self.value is None:
            return "not measured"
        return "ok" if self.value <= self.most else "short"


def _ratio(what: str, value: float | None, most: float) -> Verdict:
    return Verdict(what, value, most, "" if value is None else f"{value:.2f}x" if value >= 1 else f"{value:.3f}x")


def _ms(what: str, value: float, most: float) -> Verdict:
    return Verdict(what, value, most, f"{value:.1f} ms" if value >= 10 else f"{round(value, 2) + 0:g} ms")


def verdicts(results: dict[str, Any]) -> list[Verdict]:
    """Hold every section of the results against its bars."""
    sections = results["sections"]
    return [*_near(sections), *_expiry(sections), *_eviction(sections), *_two_tiers(sections), *_far(sections)]


def _near(sections: dict[str, Any]) -> Iterator[Verdict]:
    for case in sections.get("hits", {}).get("cases", ()):
        for row in case["rows"]:
            if row["kind"] == "ours" and case["bar"] is not None:
                yield _ratio(f"{case['title']}: against the bare coroutine", row["ratio"], case["bar"])
    for row in sections.get("stampede", {}).get("rows", ()):
        if row["kind"] == "ours":
            loads = f"stampede ({row['contender']}): loads"
            yield Verdict(loads, row["loads"], BARS["stampede loads"], f"{row['loads']:,}")
            yield _ratio(
                f"stampede ({row['contender']}): wall time against one shared future", row["ratio"], BARS["stampede"]
            )
    for row in sections.get("memory", {}).get("rows", ()):
        if row["contender"] == "acache" and row["entries"] == 1_000_000 and "failed" not in row:
            size = row["bytes_per_entry"]
            yield Verdict("1 M entries: bytes each beyond the payload", size, BARS["memory"], f"{size:.0f} B")
            if "gc_ms" in row:
                yield _ms("1 M entries: a full garbage collection", row["gc_ms"], BARS["collection"])
    for row in sections.get("flights", {}).get("rows", ()):
        if "failed" not in row:
            what = f"{row['loads']:,} loads of as many keys: memory of the process beyond before"
            yield Verdict(what, row["kib"], BARS["flights"], f"{row['kib']:,} KiB")
    for row in sections.get("import", {}).get("rows", ()):
        if row["kind"] == "ours":
            yield Verdict("import", row["ms"], BARS["import"], f"{row['ms']:.0f} ms")


def _expiry(sections: dict[str, Any]) -> Iterator[Verdict]:
    for row in sections.get("expiry", {}).get("rows", ()):
        if row["kind"] == "ours" and "failed" not in row:
            what = f"{row['entries']:,} entries end together ({row['contender']}): the longest turn of the loop"
            yield _ms(what, row["ms"], BARS["expiry"])


def _eviction(sections: dict[str, Any]) -> Iterator[Verdict]:
    rows = sections.get("eviction", {}).get("rows", ())
    for policy, (package, _) in REFERENCES.items():
        other = f"{policy}, {package}"
        below = [(100 * (row[other] - row[policy]), row) for row in rows if other in row]
        if below:
            good = sum(points <= BARS["reference"] for points, _ in below)
            yield _points(f"hit ratio: {policy} below {package}", below, BARS["reference"], f"; {good} are good enough")
        if policy != "lru" and (below := [(100 * (row["lru"] - row[policy]), row) for row in rows if row["steady"]]):
            yield _points(f"hit ratio on Zipf: {policy} below LRU", below, BARS["lru"])


def _points(what: str, below: list[tuple[float, dict[str, Any]]], most: float, more: str = "") -> Verdict:
    points, row = max(below, key=lambda found: found[0])
    where = f"the worst of {len(below)} rows ({row['trace']}, {row['entries']:,} entries)"
    return Verdict(f"{what}: {where}{more}", round(points, 2), most, f"{points:.1f} points")


def _two_tiers(sections: dict[str, Any]) -> Iterator[Verdict]:
    for section, most in (("coherence", "tracked hit"), ("breaker", "breaker")):
        for table in sections.get(section, {}).get("tables", ()):
            for row in table["rows"]:
                if row["kind"] == "ours":
                    what = f"{table['title']}: {row['contender']}, against {table['rows'][0]['contender']}"
                    yield _ratio(what, row["ratio"], BARS[most])
    writes = sections.get("coherence", {}).get("writes")
    for since in ("from the beginning of the set", "from the return of the set") if writes else ():
        what = f"a write, until another process does not serve the old value, {since}: p99 of {writes['writes']:,}"
        yield _ms(what, writes[since]["p99"], BARS["agreement"])
    for row in sections.get("lease", {}).get("rows", ()):
        who = f"lease, {row['processes']} processes of {row['callers']} callers, {row['bytes']:,} B"
        yield Verdict(f"{who}: loads", row["loads"], BARS["lease loads"], f"{row['loads']:,}")
        yield _ms(f"{who}: p99 of the answers after the load", row["p99"], BARS["lease"])


def _far(sections: dict[str, Any]) -> Iterator[Verdict]:
    beside: list[tuple[float, str, str]] = []
    for section in sections.values():
        for case in section.get("cases", ()):
            rows = {row["contender"]: row for row in case["rows"]}
            for bar in case.get("bars", ()):
                number = rows.get(bar["contender"], {}).get(bar["unit"], {}).get("ratio")
                what = f"{case['title']}: {bar['contender']}, {_UNITS[bar['unit']]} against {case['base']}"
                yield _ratio(what, number, bar["most"])
            for row in case["rows"]:
                if row["kind"] == "ours" and "beside" in row.get("wall", {}):
                    other, ratio = row["wall"]["beside"]
                    beside.append((ratio, f"{row['contender']} against {other}, wall time", case["title"]))
    for what in dict.fromkeys(what for _, what, _ in beside):
        found = sorted((ratio, title) for ratio, name, title in beside if name == what)
        ratio, title = found[-1]
        good = sum(ratio <= BARS["uvloop"] for ratio, _ in found)
        yield _ratio(
            f"{what}: the worst of {len(found)} rows ({title}); {good} are at least as good", ratio, BARS["uvloop"]
        )
