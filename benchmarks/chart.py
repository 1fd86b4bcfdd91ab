"""A bar chart as SVG, drawn by hand: a logarithmic axis, readable on light and dark pages."""

from __future__ import annotations

from html import escape
from math import ceil, log10
from typing import Any

__all__ = ["draw"]

_PANELS = ("call-1", "get", "set", "evict")
_WIDTH, _LEFT, _RIGHT = 760, 220, 70
_BAR, _STEP, _TITLE, _GAP = 14, 22, 20, 16

_CAPTION = "times the bare coroutine, logarithmic: shorter is better; dashed: the bar for acache"

_HEAD = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-labelledby="title desc" \
font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" font-size="12">
<title id="title">acache beside other caches</title>
<desc id="desc">Times as long as awaiting a trivial coroutine; logarithmic axis, shorter is better.</desc>
<style>
  .paper {{ fill: #ffffff }} .text {{ fill: #24292f }} .soft {{ fill: #6b7280 }} .grid {{ stroke: #e5e7eb }}
  .ours {{ fill: #0f766e }} .peer {{ fill: #9aa5b1 }} .reference {{ fill: #d5dae0 }} .bar {{ stroke: #b45309 }}
  @media (prefers-color-scheme: dark) {{
    .paper {{ fill: #14181d }} .text {{ fill: #e6edf3 }} .soft {{ fill: #9aa5b1 }} .grid {{ stroke: #2b323b }}
    .ours {{ fill: #2dd4bf }} .peer {{ fill: #6b7785 }} .reference {{ fill: #3d4650 }} .bar {{ stroke: #fbbf24 }}
  }}
</style>
<rect class="paper" width="{width}" height="{height}" rx="8"/>
"""


def draw(results: dict[str, Any]) -> str:
    """Return the chart of the main cases."""
    cases = [results["cases"][name] for name in _PANELS if name in results["cases"]]
    shown = [row["ratio"] for case in cases for row in case["rows"]]
    low, high = min(0.5, *shown), 10.0 ** ceil(log10(max(shown)))
    plot = _WIDTH - _LEFT - _RIGHT

    def at(ratio: float) -> float:
        return round(_LEFT + plot * log10(ratio / low) / log10(high / low), 1)

    def text(x: float, y: float, content: str, more: str = 'class="text"') -> str:
        return f'<text {more} x="{x}" y="{y}">{escape(content)}</text>'

    def line(x: float, y: float, end: float, more: str) -> str:
        return f'<line {more} x1="{x}" x2="{x}" y1="{y}" y2="{end}"/>'

    y = 40.0
    parts = [text(_LEFT, 24, _CAPTION, 'class="soft"')]
    for case in cases:
        y += _GAP
        parts.append(text(16, y + 8, case["title"], 'class="text" font-size="14" font-weight="600"'))
        y += _TITLE
        rows = sorted(case["rows"], key=lambda row: row["ratio"])
        end = y + _STEP * len(rows)
        parts += [line(at(10.0**power), y, end, 'class="grid"') for power in range(round(log10(high)) + 1)]
        for row in rows:
            width = max(1.0, round(at(row["ratio"]) - _LEFT, 1))
            bold = 'class="text" font-weight="700"' if row["kind"] == "ours" else 'class="text"'
            middle = y + _STEP / 2 + 4
            box = f'x="{_LEFT}" y="{y + (_STEP - _BAR) / 2}" width="{width}" height="{_BAR}" rx="2"'
            parts += [
                text(_LEFT - 8, middle, row["contender"], f'{bold} text-anchor="end"'),
                f'<rect class="{row["kind"]}" {box}/>',
                text(_LEFT + width + 6, middle, _number(row["ratio"]), bold),
            ]
            if row["kind"] == "ours" and case["bar"] is not None:
                parts.append(line(at(case["bar"]), y, y + _STEP, 'class="bar" stroke-width="2" stroke-dasharray="3 2"'))
            y += _STEP
    height = round(y + 16)
    return _HEAD.format(width=_WIDTH, height=height) + "\n".join(parts) + "\n</svg>\n"


def _number(ratio: float) -> str:
    return f"{ratio:.1f}x" if ratio < 10 else f"{ratio:,.0f}x"
