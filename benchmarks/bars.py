"""What acache has to reach, and whether the results reach it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cases import BARS

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


def verdicts(results: dict[str, Any]) -> list[Verdict]:
    """Hold every section of the results against its bars."""
    return [*_near(results["sections"]), *_far(results["sections"])]


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
    for row in sections.get("import", {}).get("rows", ()):
        if row["kind"] == "ours":
            yield Verdict("import", row["ms"], BARS["import"], f"{row['ms']:.0f} ms")


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
