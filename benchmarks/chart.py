"""Bar charts as SVG, drawn by hand: linear or logarithmic, readable on light and dark pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

__all__ = ["Line", "Panel", "draw"]

_WIDTH, _LEFT, _RIGHT = 760, 230, 90
_BAR, _STEP, _TITLE, _GAP = 14, 22, 20, 16

_HEAD = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{title}" \
font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" font-size="12">
<title>{title}</title>
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


@dataclass(frozen=True)
class Line:
    """One bar of a chart."""

    label: str
    value: float
    kind: str
    """``ours``, ``peer`` or ``reference``."""
    most: float | None = None
    """Where the value should end: a dashed mark."""


@dataclass(frozen=True)
class Panel:
    """Bars under one title, shortest first."""

    title: str
    lines: Sequence[Line]


def draw(title: str, caption: str, panels: Sequence[Panel], unit: str = "", *, logarithmic: bool = False) -> str:
    """Return a chart whose panels share one axis."""
    shown = [max(line.value, 1e-9) for panel in panels for line in panel.lines] or [1.0]
    plot = _WIDTH - _LEFT - _RIGHT
    low = min(0.5, *(10.0 ** floor(log10(value)) for value in shown)) if logarithmic else 0.0
    high = 10.0 ** max(1, ceil(log10(max(shown)))) if logarithmic else max(shown)

    def at(value: float) -> float:
        share = log10(max(value, low) / low) / log10(high / low) if logarithmic else value / high
        return round(_LEFT + plot * share, 1)

    def text(x: float, y: float, content: str, more: str = 'class="text"') -> str:
        return f'<text {more} x="{x}" y="{y}">{escape(content)}</text>'

    def line(x: float, y: float, end: float, more: str) -> str:
        return f'<line {more} x1="{x}" x2="{x}" y1="{y}" y2="{end}"/>'

    y = 40.0
    parts = [text(16, 24, caption, 'class="soft"')]
    for panel in panels:
        y += _GAP
        parts.append(text(16, y + 8, panel.title, 'class="text" font-size="14" font-weight="600"'))
        y += _TITLE
        end = y + _STEP * len(panel.lines)
        powers = range(ceil(log10(low)), round(log10(high)) + 1) if logarithmic else ()
        parts += [line(at(10.0**power), y, end, 'class="grid"') for power in powers]
        for bar in sorted(panel.lines, key=lambda bar: bar.value):
            width = max(1.0, round(at(bar.value) - _LEFT, 1))
            weight = 'class="text" font-weight="700"' if bar.kind == "ours" else 'class="text"'
            middle = y + _STEP / 2 + 4
            box = f'x="{_LEFT}" y="{y + (_STEP - _BAR) / 2}" width="{width}" height="{_BAR}" rx="2"'
            parts += [
                text(_LEFT - 8, middle, bar.label, f'{weight} text-anchor="end"'),
                f'<rect class="{bar.kind}" {box}/>',
                text(_LEFT + width + 6, middle, number(bar.value) + unit, weight),
            ]
            if bar.most is not None:
                dashes = 'class="bar" stroke-width="2" stroke-dasharray="3 2"'
                parts.append(line(at(bar.most), y, y + _STEP, dashes))
            y += _STEP
    head = _HEAD.format(width=_WIDTH, height=round(y + 16), title=escape(title, quote=True))
    return head + "\n".join(parts) + "\n</svg>\n"


def number(value: float) -> str:
    """Write a value with two or three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
