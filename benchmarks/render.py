"""A report as blocks, and three ways to write it: Markdown for the docs, one HTML file, text for the terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Block", "Chart", "Heading", "Table", "Text", "to_html", "to_markdown", "to_text"]


@dataclass(frozen=True)
class Heading:
    """A title; 1 is the page's own."""

    level: int
    text: str


@dataclass(frozen=True)
class Text:
    """Paragraphs, lists and blocks of code, in Markdown."""

    text: str


@dataclass(frozen=True)
class Table:
    """Cells hold one line of Markdown; all columns but the first ``left`` ones are numbers."""

    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    left: int = 1


@dataclass(frozen=True)
class Chart:
    """A picture, in a file of its own beside the page."""

    name: str
    title: str
    svg: str


Block = Heading | Text | Table | Chart


def to_markdown(blocks: Sequence[Block], pictures: str) -> str:
    """Write a page of the docs, whose pictures are in the folder *pictures*."""
    parts: list[str] = []
    for block in blocks:
        match block:
            case Heading(level, text):
                parts.append(f"{'#' * level} {text}\n")
            case Text(text):
                parts.append(f"{text.strip()}\n")
            case Table(head, rows, left):
                marks = ["---"] * left + ["---:"] * (len(head) - left)
                lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
                parts.append("\n".join([lines[0], f"|{'|'.join(marks)}|", *lines[1:]]) + "\n")
            case Chart(name, title, _):
                parts.append(f"![{title}]({pictures}/{name}.svg)\n")
    return "\n".join(parts)


_STYLE = """\
:root { color-scheme: light dark; --line: #d5dae0; --soft: #6b7280 }
@media (prefers-color-scheme: dark) { :root { --line: #2b323b; --soft: #9aa5b1 } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; font-size: 13px }
th, td { border-bottom: 1px solid var(--line); padding: .2rem .7rem; text-align: right }
.l { text-align: left } svg { max-width: 100%; height: auto } code { font-size: 12px } p { max-width: 48rem }
"""


def to_html(blocks: Sequence[Block]) -> str:
    """Write one file that needs no other."""
    title = next((block.text for block in blocks if isinstance(block, Heading)), "Report")
    head = f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
    parts = [f"{head}<style>\n{_STYLE}</style>"]
    for block in blocks:
        match block:
            case Heading(level, text):
                parts.append(f"<h{level}>{_inline(text)}</h{level}>")
            case Text(text):
                parts += [_paragraph(part) for part in re.split(r"\n\s*\n", text.strip())]
            case Table(head_row, rows, left):
                lines = [_html_row(head_row, "th", left), *(_html_row(row, "td", left) for row in rows)]
                parts.append("<table>\n" + "\n".join(lines) + "\n</table>")
            case Chart(_, _, svg):
                parts.append(svg)
    return "\n".join(parts) + "\n</html>\n"


def _html_row(cells: tuple[str, ...], tag: str, left: int) -> str:
    written = [
        f"<{tag}{' class=l' if number < left else ''}>{_inline(cell)}</{tag}>" for number, cell in enumerate(cells)
    ]
    return f"<tr>{''.join(written)}</tr>"


def _paragraph(text: str) -> str:
    if text.startswith("<!--"):
        return ""
    if text.startswith("```"):
        return f"<pre><code>{escape(text.partition(chr(10))[2].rstrip('`').rstrip())}</code></pre>"
    if text.startswith("- "):
        items = re.split(r"\n- ", text.removeprefix("- "))
        return f"<ul>{''.join(f'<li>{_inline(item)}</li>' for item in items)}</ul>"
    return f"<p>{_inline(text)}</p>"


def _inline(text: str) -> str:
    """Turn code, bold and italics into HTML; nothing within code."""
    parts = re.split(r"`([^`]*)`", text)
    for number, part in enumerate(parts):
        written = escape(part, quote=False)
        if number % 2:
            parts[number] = f"<code>{written}</code>"
        else:
            written = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", written)
            written = re.sub(r"\*(\S(?:.*?\S)?)\*", r"<i>\1</i>", written)
            parts[number] = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", written)
    return "".join(parts)


def to_text(blocks: Sequence[Block]) -> str:
    """Write headings and tables for a terminal, without marks."""
    parts: list[str] = []
    for block in blocks:
        if isinstance(block, Heading):
            parts.append(f"\n{block.text}")
        elif isinstance(block, Table):
            rows = [tuple(re.sub(r"[*`]", "", cell) for cell in row) for row in (block.head, *block.rows)]
            widths = [max(len(row[column]) for row in rows) for column in range(len(block.head))]
            for row in rows:
                cells = [
                    cell.ljust(width) if column < block.left else cell.rjust(width)
                    for column, (cell, width) in enumerate(zip(row, widths, strict=True))
                ]
                parts.append(f"  {'  '.join(cells)}".rstrip())
    return "\n".join(parts)
